"""Sweeps as a person types them: one process, worker processes, a real Slurm; real signals, and the command again."""

import csv
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import QUICK, STARTED, asked, command, lines_of
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from test_store import record

from al_bench import sweep
from al_bench.options import conf_dir
from al_bench.store import RunStore

pytestmark = pytest.mark.xdist_group("machine")  # processes and moments, so one at a time
RUNS = ("strategy=random,entropy", "seed=0,1")
SWEEP = ("-m", "--config-dir=my_conf", *QUICK, "budget.rounds=5", "results_dir=.")
LOCAL = ("hydra/launcher=local", "hydra.launcher.n_jobs=2")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")
BREAKS = "strategy breaks, round 0: ZeroDivisionError: division by zero (mine.py, line 2)."
LEAVES = (
    "strategy leaves, round 0: it asks to end the process, as sys.exit() does (mine.py, line 6). "
    "Return the positions, or raise ValueError."
)
AGAIN = "The same command again runs only what is missing."


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with two strategies: `breaks` divides by zero, and `leaves` calls sys.exit."""
    (tmp_path / "mine.py").write_text(
        "def breaks(view, k, rng):\n    return 1 / 0\n\n\ndef leaves(view, k, rng):\n    raise SystemExit(0)\n"
    )
    (tmp_path / "my_conf" / "strategy").mkdir(parents=True)
    for name in ("breaks", "leaves"):
        (tmp_path / "my_conf" / "strategy" / f"{name}.yaml").write_text(f"name: {name}\n_target_: mine.{name}\n")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed_place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "my_conf").mkdir()
    done = command(folder, *SWEEP, *RUNS)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "Sweep: 4 finished, 0 there already, 0 failed."
    return folder


@pytest.fixture(scope="module")
def undisturbed(undisturbed_place) -> dict[str, list[dict]]:
    return records(undisturbed_place)


def reported(folder: Path) -> tuple[str, list[dict[str, str]]]:
    """What the report says, timings aside."""
    report = folder / "default" / "report"
    rows = csv.DictReader((report / "summary.csv").read_text().splitlines())
    numbers = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    return (report / "summary.md").read_text(), numbers


def records(folder: Path) -> dict[str, list[dict]]:
    return {"/".join(path.parts[-3:-1]): lines_of(path.parent) for path in sorted(folder.rglob("rounds.jsonl"))}


def n_records(folder: Path, run: str) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.rglob(f"{run}/rounds.jsonl"))


def state(folder: Path, run: str) -> dict:
    return json.loads(next(folder.rglob(f"{run}/run.json")).read_text())


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command. At the end of the test it and its workers are killed if they still run."""
    drivers = []

    def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-m", "al_bench", *arguments], cwd=folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()


def until(is_so: Callable[[], object], driver: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert driver.poll() is None and time.monotonic() < end, driver.communicate(timeout=1)
        time.sleep(0.02)


# Composed in the driver


@pytest.fixture
def sweeper(tmp_path, monkeypatch) -> Iterator[sweep.Sweeper]:
    monkeypatch.chdir(tmp_path)  # whose results/ is empty
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["+hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        sweeper = sweep.Sweeper(None, None)
        sweeper.setup(hydra_context=SimpleNamespace(config_loader=loader), task_function=None, config=master)
        yield sweeper


@pytest.mark.parametrize(
    "job",
    [
        ["strategy=bald", "seed=3", "model.optimizer.lr=1e-4", "dataset=mnist"],
        ["trainer.early_stopping={patience: 3}", "trainer.early_stopping.min_delta=0.5", "budget.validation=100"],
        ["budget={query: 7}", "budget.query=8", "budget.name=a b"],
        ["strategy=power_bald", "+strategy.more=[1, x]", "strategy.passes=null", "study='${dataset.name}'"],
        [
            "strategy=bald",
            "seed=1",
            "~strategy.passes",
            "trainer.early_stopping={patience: 2}",
            "++model.options.width=3",
        ],
        ["experiment=gentle_introduction", "dataset.root=train.zip", "budget=full"],
    ],
)
def test_a_job_is_composed_as_hydra_composes_it(sweeper, job):
    theirs = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, job)
    with open_dict(theirs):
        del theirs["hydra"]
    twice = list(sweeper.composed([job, ["seed=5"], job]))
    assert twice[0] == theirs and twice[2] == theirs and twice[1].seed == 5
    assert OmegaConf.to_object(twice[0]) == OmegaConf.to_object(theirs)


@pytest.mark.parametrize("override, said", [("seed=abc", "seed=abc"), ("trainer.max_stps=3", "trainer.max_stps")])
def test_a_wrong_value_is_refused_in_hydras_words(sweeper, override, said):
    with pytest.raises(HydraException, match=said):
        list(sweeper.composed([["seed=1"], [override]]))


def test_two_runs_of_one_folder_are_refused_and_the_same_run_twice_is_one(sweeper, capsys):
    jobs = [["seed=0", f"trainer.batch_size={n}"] for n in (32, 32, 64)]
    there, todo, failed = sweep.sort_out(jobs, list(sweeper.composed(jobs)))
    assert not there and [store.config.trainer.batch_size for _, store in todo.values()] == [32]
    assert list(failed) == ["trainer.batch_size=64"]
    assert re.search("has the same folder, .* Give each a name of its own: study=", capsys.readouterr().err)
    jobs = [["strategy=power_margin", f"strategy.beta={n}"] for n in (1, 8)]  # two arms of one comparison
    sweep.sort_out(jobs, list(sweeper.composed(jobs)))
    assert "its own: strategy.name='power_margin_${strategy.beta}'." in capsys.readouterr().err


def copy_as(seed: int, run: Path) -> None:
    """Copy a finished run of seed 0 as the run of another seed."""
    folder = run.with_name(f"seed={seed}")
    shutil.copytree(run, folder)
    for name, its in (("config.yaml", "\nseed: {}\n"), ("rounds.jsonl", '/seed={}"')):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(its.format(0), its.format(seed)))


def test_forty_finished_runs_typed_again_take_less_than_five_seconds(tmp_path):
    here = f"results_dir={tmp_path}"
    for strategy in ("random", "entropy", "margin", "bald"):
        store = RunStore(asked(here, f"strategy={strategy}"))
        with store.at_work():
            for round in range(6):
                store.append(record(round, acquired=None if round < 5 else ()))
        for seed in range(1, 10):
            copy_as(seed, store.folder)
    script = "from al_bench import cli; import sys\ntry: cli.main()\nfinally: print('torch' in sys.modules)"
    ask = ("-m", here, "strategy=random,entropy,margin,bald", "seed=range(10)")
    assert command(tmp_path, *ask).returncode == 0  # leaves their report
    before = os.times()
    done = command(tmp_path, *ask, program=("-c", script))
    after = os.times()
    page = f"Report: {tmp_path}/default/report/index.html"
    shown = done.stdout.splitlines()
    assert shown[:1] + shown[-2:] == [page, "Sweep: 0 finished, 40 there already, 0 failed.", "False"], done.stderr
    assert after.children_user + after.children_system - before.children_user - before.children_system < 5


def test_what_is_refused_needs_another_command_and_what_failed_the_same_one(capsys):
    here = [Path("a"), Path("b")]
    other = "r was made by another configuration:\n  trainer.max_steps: there 20, asked 25\n  more"
    for failed, last in (({}, "1 of them cannot begin until this is corrected."), ({"b": "killed"}, AGAIN)):
        with pytest.raises(SystemExit) as end:
            sweep.conclude(set(), here, {"seed=0": other}, failed, {})
        first, why, *_ = lines = end.value.code.splitlines()
        assert first == f"Sweep: {2 - len(failed)} finished, 0 there already, {1 + len(failed)} failed."
        assert why == "  seed=0: r was made by another configuration: trainer.max_steps: there 20, asked 25"
        assert lines[-1] == last and "1 of them cannot begin until this is corrected." in lines
    sweep.conclude(set(), here, {}, {}, {})
    assert capsys.readouterr().out == "Sweep: 2 finished, 0 there already, 0 failed.\n"


# In one process


def test_what_one_run_raises_lies_in_its_folder_and_the_others_go_on(place):
    ask = (*SWEEP, "budget.rounds=1", "trainer.threads=1")
    done = command(place, *ask, "strategy=leaves,breaks,bald,random", "strategy.passes=null,1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("al_bench: strategy.passes=1: from 2 to 10,000, or null.") == 4
    assert f"al_bench: {BREAKS}" in done.stderr and f"al_bench: {LEAVES}" in done.stderr
    *_, first, a, b, c, d, e, f, g, refused, last = done.stderr.splitlines()
    assert refused == "4 of them cannot begin until this is corrected."
    assert first == "Sweep: 1 finished, 0 there already, 7 failed." and last == AGAIN
    assert b == "  strategy=breaks strategy.passes=1: strategy.passes=1: from 2 to 10,000, or null."
    assert e.endswith(f"/leaves/seed=0: {LEAVES}") and f.endswith(f"/breaks/seed=0: {BREAKS}")
    assert "/bald/seed=0: strategy bald compares several predictions" in g
    for name, said in (("breaks", BREAKS), ("leaves", LEAVES)):
        info = state(place, f"{name}/seed=0")
        assert (info["state"], info["error"]) == ("failed", said)
        log = next(place.rglob(f"{name}/seed=0/run.log")).read_text()
        assert "Traceback (most recent call last)" in log and f"in {name}" in log
    assert "strategy bald compares several" in next(place.rglob("bald/seed=0/run.log")).read_text()

    for name, said in (("breaks", BREAKS), ("leaves", LEAVES)):
        alone = command(place, *ask[1:], f"strategy={name}", "strategy.passes=null")
        assert alone.returncode == 1 and alone.stderr == f"al_bench: {said}\n"


def test_run_folders_that_cannot_be_read_are_failures_of_their_runs_and_the_report_is_written(place):
    ask = ("-m", *QUICK, "budget.rounds=1", "trainer.max_steps=1", "results_dir=.", "strategy=random", "study=ok,sweep")
    whole = command(place, *ask, "seed=0")
    assert whole.returncode == 0, whole.stderr
    runs = next(place.glob("sweep/*/*/*/random"))
    for seed, broken in enumerate(("rounds.jsonl", "run.json", "config.yaml"), start=1):
        copy_as(seed, runs / "seed=0")
        (runs / f"seed={seed}" / broken).unlink()
        (runs / f"seed={seed}" / broken).mkdir()
    (runs / "seed=4").write_text("a file in the place of a folder")
    (runs / "seed=5").symlink_to("seed=5")
    copy_as(6, runs / "seed=0")
    (runs / "seed=6" / "run.json").chmod(0)
    copy_as(7, runs / "seed=0")
    (runs / "seed=7").chmod(0)
    shutil.rmtree(place / "sweep" / "report")
    (place / "sweep" / "sweeps.json").unlink()
    (place / "sweep" / "sweeps.json").mkdir()
    try:
        typed = [*ask[:-1], f"study=sweep,{'x' * 300}", "seed=range(9)", "trainer.max_epochs=null"]
        done = subprocess.run([*without_privileges(), sys.executable, "-m", "al_bench", *typed], cwd=place,
                              capture_output=True, text=True)  # fmt: skip
    finally:
        (runs / "seed=7").chmod(0o755)
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    *_, first, refused, last = (line for line in done.stderr.splitlines() if not line.startswith("  "))
    assert (first, last) == ("Sweep: 1 finished, 1 there already, 16 failed.", AGAIN)
    assert refused == "15 of them cannot begin until this is corrected."
    lines = [line for line in done.stderr.splitlines() if line.startswith("  ")]
    assert all(
        sum(f"sweep/digits/small_cnn/20+1x10/random/seed={seed}" in line for line in lines) for seed in range(1, 8)
    )
    for why, n in (("Is a directory|is a folder", 3), ("Permission denied", 2), ("File name too long", 9)):
        assert sum(bool(re.search(why, line)) for line in lines) == n, lines
    for seed in (4, 5):
        assert re.search(rf"al_bench: sweep/.*/seed={seed}.* cannot be (read|written) .*results_dir=", done.stderr)
    assert "sweep/sweeps.json: Is a directory" in done.stderr and "cannot name runs that never begin." in done.stderr
    assert (place / "sweep" / "report" / "index.html").exists()
    assert len(lines_of(runs / "seed=8")) == 2  # the run after all of them


def without_privileges() -> tuple[str, ...]:
    """The prefix of a command that takes two rights from root, by which it can read every file."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root can read every folder, and there is no setpriv to take that right away")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_what_a_damaged_run_json_says_is_told_and_ends_no_sweep(sweeper, capsys):
    jobs = [[f"seed={seed}"] for seed in range(5)]
    _, todo, _ = sweep.sort_out(jobs, list(sweeper.composed(jobs)))
    stores = [store for _, store in todo.values()]
    contents = ('{"state": ["failed"]}', '{"state": "failed", "error": 7}', '{"state": "failed", "error": "\\n"}',
                "[" * 100_000, "[]")  # fmt: skip
    for store, content in zip(stores, contents, strict=True):
        store.folder.mkdir(parents=True)
        (store.folder / "run.json").write_text(content)
    failed = {str(store.folder): sweep.why_missing(store) for store in stores}
    assert all(failed.values())
    with pytest.raises(SystemExit) as end:
        sweep.conclude(set(), list(todo), {}, failed, {})
    assert len(str(end.value.code).splitlines()) == 7


def test_code_that_calls_sys_exit_fails_its_own_run_alone(place):
    (place / "mine.py").write_text(
        "import sys\n\n"
        "def leaves(view, k, rng):\n    sys.exit()\n\n"
        "def net(*args, **options):\n    sys.exit(0)\n\n"
        "def data(c, model_size, cache_dir):\n    raise SystemExit('no licence')\n"
    )
    for group, name in (("strategy", "leaves"), ("model", "net"), ("dataset", "data")):
        (place / "my_conf" / group).mkdir(exist_ok=True)
        more = "optimizer: {_target_: torch.optim.Adam}\n" if group == "model" else "root: null\n"
        (place / "my_conf" / group / f"{name}.yaml").write_text(
            f"name: {name}\n_target_: mine.{name}\n" + more * (group != "strategy")
        )
    ask = (*SWEEP, "budget.rounds=1", "trainer.max_steps=1")
    done = command(place, *ask, "dataset=data,digits", "model=net,small_cnn", "strategy=leaves,random")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Sweep: 1 finished, 0 there already, 7 failed." in done.stderr
    assert done.stdout.count("Stopped: the budget is used up") == 1
    assert list(records(place)) == ["random/seed=0"]

    alone = command(place, *ask[1:], "model=net", "strategy=random")  # sys.exit(0), and yet no success
    assert alone.returncode == 1 and "mine.net failed (SystemExit: it asks to end the process" in alone.stderr


def test_a_plan_that_calls_sys_exit_fails_alone_too(sweeper, capsys, monkeypatch):
    Path("mine_too.py").write_text("def data(*args):\n    raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(os.getcwd())
    mine = ["dataset._target_=mine_too.data", "dataset.name=mine"]
    jobs = [["plan=true", *mine], ["plan=true"]]
    there, todo, failed = sweep.sort_out(jobs, list(sweeper.composed(jobs)))
    ended = (
        "dataset mine: mine_too.data failed (SystemExit: it asks to end the process, by SystemExit(0)). It is called "
        "as (config.dataset, model_size, cache_dir), and returns in_memory(...)."
    )
    assert (there, todo, failed) == (set(), {}, {" ".join(mine): ended})
    assert capsys.readouterr().out.count("Labels acquired") == 1


def test_a_sweep_whose_driver_is_killed_at_a_random_moment_ends_as_if_it_had_not_been(
    start, place, undisturbed, undisturbed_place
):
    seed = random.randrange(10**6)
    moment = random.Random(seed)
    n = moment.randrange(sum(map(len, undisturbed.values())))
    driver = start(place, *SWEEP, *RUNS)
    until(lambda: n_records(place, "seed=*") >= n, driver)
    time.sleep(moment.uniform(0, 0.5))
    driver.kill()
    driver.communicate()
    assert all(undisturbed[run][: len(lines)] == lines for run, lines in records(place).items()), f"moment: {seed}"
    again = command(place, *SWEEP, *RUNS)
    assert again.returncode == 0, again.stderr
    assert records(place) == undisturbed, f"moment: {seed}"
    assert reported(place) == reported(undisturbed_place)


@pytest.mark.parametrize(
    "launcher, sent, code",
    [((), signal.SIGINT, 130), (LOCAL, signal.SIGINT, 130), (LOCAL, signal.SIGTERM, 143)],
    ids=["basic-ctrl-c", "local-ctrl-c", "local-sigterm"],
)
def test_ctrl_c_and_sigterm_end_the_whole_sweep(start, place, launcher, sent, code):
    driver = start(place, *SWEEP, *RUNS, "trainer.max_steps=5000", "trainer.num_workers=1", *launcher)
    until(lambda: list(place.rglob("run.json")), driver)
    time.sleep(3)
    workers = psutil.Process(driver.pid).children(recursive=True)
    (os.killpg if sent == signal.SIGINT else os.kill)(driver.pid, sent)  # a terminal sends Ctrl-C to all of them
    _, err = driver.communicate(timeout=30)
    assert driver.returncode == code, err
    assert "Traceback" not in err and not psutil.wait_procs(workers, timeout=10)[1]
    assert {json.loads(path.read_text())["state"] for path in place.rglob("run.json")} == {"interrupted"}


# Worker processes


def test_local_goes_on_after_a_killed_worker_and_equals_one_process(start, place, undisturbed):
    ask = (*SWEEP, *LOCAL, *RUNS)
    driver = start(place, *ask)
    until(lambda: n_records(place, "random/seed=*"), driver)
    workers = [
        p for p in psutil.Process(driver.pid).children(recursive=True) if "popen_loky_posix" in " ".join(p.cmdline())
    ]
    workers[0].kill()
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 1 and "Traceback" not in err
    assert "al_bench: TerminatedWorkerError: A worker process" in err and err.splitlines()[-1] == AGAIN
    assert ": killed, or at work in another process" in err and ": not started" in err

    # With a DataLoader's processes, which loky's start method would not allow, and with a run that breaks.
    again = command(place, *ask[:-2], "strategy=breaks,random,entropy", "seed=0,1", "trainer.num_workers=1")
    first, *shown = again.stdout.splitlines()
    finished = shown[: shown.index("Report: default/report/index.html")]
    there = re.fullmatch(r"Sweep: \d to run, (\d) there already.", first)[1]
    assert again.returncode == 1 and len(finished) == 4 - int(there) and finished[0].startswith("Finished: default/")
    assert again.stderr.count(f"al_bench: {BREAKS}") == 2
    assert "in breaks" in next(place.rglob("breaks/seed=1/run.log")).read_text()
    assert {run: lines for run, lines in records(place).items() if "breaks" not in run} == undisturbed
    threads = {
        start["threads"]
        for path in place.rglob("entropy/*/run.json")
        for start in json.loads(path.read_text())["starts"]
    }
    assert threads == {1}


# A real Slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm of this one host."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if missing := [name for name in programs if not shutil.which(name, path=path)]:
        pytest.skip(f"Slurm is not installed here: no {', '.join(missing)}")
    if os.geteuid():
        pytest.skip("a Slurm of one's own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).with_name("slurm.sh"))
    env = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{path}"}
    with socket.create_server(("127.0.0.1", 0)) as free:  # another session of tests may have a Slurm of its own
        env["SLURM_TEST_PORT"] = str(free.getsockname()[1])
    try:
        up = subprocess.run(["bash", script, "up", folder], env=env, capture_output=True, text=True, timeout=60)
        assert up.returncode == 0, up.stderr
        yield env
    finally:
        subprocess.run(["scancel", "--user=root"], env=env, timeout=30)
        subprocess.run(["bash", script, "down", folder], env=env, timeout=60)


def test_slurm_requeues_a_preempted_run_and_goes_on_after_a_killed_one(slurm, start, place, undisturbed, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm[name])

    def job_of(task: int) -> str:
        return next((place / "default" / ".submitit").glob(f"*_{task}")).name

    def process_of(task: int) -> psutil.Process:
        submitted = (
            p
            for p in psutil.process_iter(["cmdline"])
            if p.info["cmdline"]
            and p.info["cmdline"][0] == sys.executable  # not srun, which has the same words
            and "submitit.core._submit" in p.info["cmdline"]
        )
        return next(p for p in submitted if p.environ().get("SLURM_ARRAY_TASK_ID") == str(task))

    def is_back() -> bool:
        start_now = ["scontrol", "update", f"JobId={job_of(0)}", "StartTime=now"]  # Slurm would wait for two minutes
        subprocess.run(start_now, capture_output=True)
        time.sleep(0.3)
        return len(state(place, "random/seed=0")["starts"]) == 2

    ask = (*SWEEP, *SLURM, *RUNS)
    driver = start(place, *ask)
    jobs = []
    for task in (0, 1):
        until(lambda task=task: n_records(place, f"random/seed={task}"), driver, 120)
        jobs.append(process_of(task))
        jobs[task].suspend()  # otherwise a fast machine finishes it before the signal
    jobs[1].kill()
    preempt = subprocess.Popen(["scancel", "--signal=USR2", job_of(0)], stderr=subprocess.DEVNULL)
    time.sleep(1)
    with suppress(psutil.NoSuchProcess):  # Slurm may have resumed it, so that it is back in the queue
        jobs[0].resume()
    with suppress(subprocess.TimeoutExpired):  # it sends the signal again later if the job requeues itself at once
        preempt.wait(2)
    preempt.kill()
    preempt.wait()
    until(is_back, driver)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 1 and err.splitlines()[-1] == AGAIN, err
    assert "Sweep: 3 finished, 0 there already, 1 failed." in err
    assert "/random/seed=1: killed, or at work in another process" in err

    again = command(place, *ask)
    begin, page, *_, end = again.stdout.splitlines()
    assert again.returncode == 0 and (begin, page, end) == (
        "Sweep: 1 to run, 3 there already.",
        "Report: default/report/index.html",
        "Sweep: 1 finished, 3 there already, 0 failed.",
    )
    assert records(place) == undisturbed


# Ray


@pytest.fixture
def ray() -> Iterator[SimpleNamespace]:
    """A Ray cluster of this one machine, whose workers begin in another folder than the sweep."""
    if not importlib.util.find_spec("ray") or not importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("Ray is not installed here: no hydra-ray-launcher, the extra `ray` of pyproject.toml")
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))  # paths of sockets must be short
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = os.environ | {"HOME": str(folder), "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_USAGE_STATS_ENABLED": "0"}
    up = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
          "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]  # fmt: skip
    head = subprocess.Popen(up, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cluster = psutil.Process(head.pid)
    try:
        yield SimpleNamespace(cluster=cluster, env=env)
    finally:
        processes = [*cluster.children(recursive=True), cluster]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        psutil.wait_procs(processes, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def test_ray_goes_on_after_a_killed_worker_and_equals_one_process(ray, start, place, undisturbed, monkeypatch):
    for name, value in ray.env.items():
        monkeypatch.setenv(name, value)
    ask = (*SWEEP, "hydra/launcher=ray", *RUNS)
    driver = start(place, *ask, "hydra.launcher.ray.remote.max_retries=0")
    until(lambda: n_records(place, "random/seed=0"), driver, 120)
    at_work = [p for p in ray.cluster.children(recursive=True) if p.cmdline()[:1] == ["ray::_run_job"]]
    at_work[0].kill()
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 1 and "Traceback" not in err and err.splitlines()[-1] == AGAIN, err
    assert "Sweep: 3 finished, 0 there already, 1 failed." in err
    assert ": killed, or at work in another process" in err

    again = command(place, *ask[:-2], "strategy=breaks,random,entropy", "seed=0,1", program=STARTED)
    assert again.returncode == 1 and "Sweep: 3 to run, 3 there already." in again.stdout, again.stderr
    assert "Sweep: 1 finished, 3 there already, 2 failed." in again.stderr
    assert again.stderr.count(f"/breaks/seed=1: {BREAKS}") == 1
    assert {run: lines for run, lines in records(place).items() if "breaks" not in run} == undisturbed


@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"), reason="the Ray launcher is here")
def test_without_ray_its_launcher_says_what_to_install(tmp_path):
    done = command(tmp_path, "-m", "hydra/launcher=ray", "seed=0,1")
    said = "hydra/launcher=ray needs a package that is not installed: pip install hydra-ray-launcher"
    assert done.returncode == 1 and done.stderr == f"al_bench: {said}\n"


def test_a_report_that_fails_is_no_run_that_failed(tmp_path):
    with pytest.raises(SystemExit) as end:
        sweep.conclude(set(), [tmp_path / "a"], {}, {}, {"the report of b": "boom"})
    counts, why, _ = str(end.value).splitlines()
    assert (counts, why) == ("Sweep: 1 finished, 0 there already, 0 failed.", "  the report of b: boom")
