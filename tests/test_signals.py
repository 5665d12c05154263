"""Ctrl-C and SIGTERM at any moment, also where Python drops the exception of the handler. All signals are real."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import QUICK, asked, command, lines_of, run_here
from test_sweeps import LOCAL, start, until  # noqa: F401  # start is a fixture

from al_bench import loop, observe, pictures, signals
from al_bench.data import sources
from al_bench.errors import UserError
from al_bench.models.classifier import Classifier
from al_bench.recipe import run_folder
from al_bench.store import RunStore

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("machine")]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
BRIEF = ("budget.rounds=1", "trainer.max_steps=4")


class Dying:
    """Sends the signal to this process in its finaliser, where Python drops the exception of the handler."""

    def __init__(self, sent: signal.Signals) -> None:
        self.sent = sent

    def __del__(self) -> None:
        os.kill(os.getpid(), self.sent)
        for _ in range(1000):  # the handler runs in here
            pass


def before(function: Callable, at: int, act: Callable[[], object]) -> Callable:
    """Wrap the function so that `act` runs before call number `at`."""
    calls = iter(range(1, 10**6))

    def called(*args, **kwargs):
        if next(calls) == at:
            act()
        return function(*args, **kwargs)

    return called


PLACES = {  # owner, function, number of the call, number of rounds finished by then
    "data": (sources, "load", 1, 0),
    "fit": (Classifier, "training_step", 6, 1),
    "predict": (Classifier, "predict_step", 2, 0),
    "look": (observe, "pool_view", 1, 0),
    "select": (loop, "select", 1, 0),
    "pictures": (pictures, "learning_curve", 1, 2),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[dict]:
    return lines_of(run_here(tmp_path_factory.mktemp("undisturbed"), *BRIEF).folder)


@pytest.mark.parametrize("sent", CODES, ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_whose_exception_is_dropped_stops_the_run(tmp_path, monkeypatch, undisturbed, place, sent):
    owner, name, at, finished = PLACES[place]
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(owner, name, before(getattr(owner, name), at, lambda: Dying(sent)))
        run_here(tmp_path, *BRIEF)
    assert dropped == [KeyboardInterrupt if sent == signal.SIGINT else SystemExit]
    assert end.value.code == CODES[sent] and signals.asked_to_stop()
    folder = run_folder(asked(f"results_dir={tmp_path}", *QUICK, *BRIEF))
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert lines_of(folder) == undisturbed[:finished] if finished else not (folder / "rounds.jsonl").exists()
    assert lines_of(run_here(tmp_path, *BRIEF).folder) == undisturbed  # the same command goes on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_an_import_or_an_except_takes_for_an_error_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "signals_mine.py").write_text("import os\nos.kill(os.getpid(), 15)\ndef pick(view, k, rng): pass\n")
    with pytest.raises(SystemExit) as end:
        run_here(tmp_path, "strategy.name=pick", "strategy._target_=signals_mine.pick")
    assert end.value.code == 143

    def careless(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except BaseException:
            raise ValueError("something else") from None

    monkeypatch.setattr(loop, "select", careless)
    with pytest.raises(SystemExit) as end:
        run_here(tmp_path, *BRIEF)
    assert end.value.code == 130


@pytest.mark.parametrize("code", [0, 3, "bye"])
def test_an_exit_that_nobody_asked_for_is_a_failure(tmp_path, monkeypatch, code):
    monkeypatch.setattr(sources, "load", lambda *_: sys.exit(code))
    with pytest.raises(UserError, match=rf"sys.exit\({code!r}\) was called by code that the run uses"):
        run_here(tmp_path, *BRIEF)
    info = json.loads((run_folder(asked(f"results_dir={tmp_path}", *QUICK, *BRIEF)) / "run.json").read_text())
    assert info["state"] == "failed" and info["error"].startswith(f"sys.exit({code!r})")
    assert not signals.asked_to_stop()


def test_one_request_may_come_twice(tmp_path):
    """`timeout` sends the signal to the process and to its group."""
    store = RunStore(asked(f"results_dir={tmp_path}"))
    store.at_end.callback(lambda: os.kill(os.getpid(), signal.SIGTERM))
    note = store.note
    store.note = before(note, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))  # the first call notes the state running
    with pytest.raises(SystemExit) as end, store.at_work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert (end.value.code, store.info()["state"]) == (143, "interrupted")


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "SAME_REQUEST", 0)
    step = before(Classifier.training_step, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(Classifier, "training_step", step)
    leave = RunStore._leave

    def slowly(*args: object) -> None:  # by now Lightning has seen the first Ctrl-C and ignores others
        leave(*args)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    monkeypatch.setattr(RunStore, "_leave", slowly)
    with pytest.raises(KeyboardInterrupt):  # because the fake _exit does not end this process
        run_here(tmp_path, *BRIEF)
    assert codes == [130]


def test_outside_the_main_thread_nothing_is_taken_over():
    seen = []

    def look() -> None:
        with signals.handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_the_handler_of_someone_else_stays(monkeypatch):
    """Such as that of submitit in a Slurm job."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with signals.handled():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["theirs"] and not signals.asked_to_stop()


REPORT = """
import os, signal, sys
sent = int(sys.argv.pop(1))
from al_bench import cli
from al_bench.analysis import report

class Dying:
    def __del__(self):
        os.kill(os.getpid(), sent)
        for _ in range(1000):
            pass

def write(*args, write=report.write):
    Dying()
    return write(*args)

report.write = write
cli.main()
"""


def test_a_signal_whose_exception_is_dropped_in_the_report_is_not_taken_for_success(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(REPORT)
    ask = ("-m", *QUICK, *BRIEF, "results_dir=.", "seed=0,1")
    done = command(tmp_path, "2", *ask, script=script)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "Exception ignored in" in done.stderr and "finished," not in done.stdout
    again = command(tmp_path, "15", "report", "default", script=script)
    assert again.returncode == 143 and "Traceback" not in again.stderr.partition("SystemExit: 143")[2]


# --- Child processes


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    return [child for child in driver.children() if "LokyProcess" in " ".join(child.cmdline())]


def states(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in folder.rglob("run.json")]


def test_no_worker_outlives_a_killed_sweep(start, tmp_path):  # noqa: F811
    ask = ("-m", *QUICK, *LOCAL, "trainer.max_steps=100000", "trainer.num_workers=1", "seed=0,1,2", "results_dir=.")
    driver = start(tmp_path, *ask)
    process = psutil.Process(driver.pid)
    until(lambda: [len(worker.children()) for worker in workers_of(process)] == [1, 1], driver, seconds=120)
    children = process.children(recursive=True)
    driver.kill()
    assert gone(children, seconds=5)
    assert states(tmp_path) == ["interrupted", "interrupted"]


def test_no_worker_outlives_a_sweep_that_is_killed_before_their_first_job(start, tmp_path):  # noqa: F811
    driver = start(tmp_path, "-m", *QUICK, *LOCAL, "seed=0,1", "results_dir=.")
    process = psutil.Process(driver.pid)
    until(lambda: len(workers_of(process)) == 2, driver)
    children = process.children(recursive=True)
    driver.kill()
    assert gone(children, seconds=5)


def test_no_loader_process_outlives_its_killed_run(start, tmp_path):  # noqa: F811
    driver = start(tmp_path, *QUICK, "trainer.max_steps=100000", "trainer.num_workers=2", "results_dir=.")
    run = psutil.Process(driver.pid)
    until(lambda: len(run.children()) == 2, driver, seconds=120)
    loaders = run.children()
    driver.kill()
    assert gone(loaders, seconds=5)


def test_a_run_in_another_thread_ends_with_its_own_error_after_ctrl_c(monkeypatch):
    monkeypatch.setattr(signals, "_asked", signal.SIGINT)
    monkeypatch.setattr(signals, "_depth", 1)
    raised = []

    def listen():
        try:
            signals.listen_again()
        except ValueError as error:  # signal only works in main thread of the main interpreter
            raised.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert raised == []


def test_ctrl_c_while_modules_are_imported_ends_the_process_without_a_traceback(tmp_path):
    program = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores the signal

class Interrupting:
    def find_spec(self, name, *_):
        if name == "al_bench.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from al_bench.__main__ import main
main()
"""
    done = command(tmp_path, "--help", program=("-c", program))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
