"""The command as a person meets it: real processes, real signals, what the screen says and the exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import QUICK, STARTED, asked, command, lines_of

from al_bench.recipe import run_folder

pytestmark = pytest.mark.xdist_group("commands")  # the tests share the process that forks
ROOT = Path(__file__).parents[1]

# Kills itself by SIGKILL in a named phase of a named round: no handler, no clean-up, as in a power cut.
KILLED = """
import os, signal, sys
from al_bench import cli, observe
from al_bench.models.learner import Learner
phase, at = sys.argv.pop(1), int(sys.argv.pop(1))

def dies(function, is_it_time):
    def wrapped(*args, **kwargs):
        if is_it_time(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

from al_bench.models.classifier import Classifier
from al_bench.store import RunStore
state = {"round": -1, "steps": 0}

def build(learner, round, build=Learner.build):
    state.update(round=round, steps=0)
    return build(learner, round)

def step(*args):
    state["steps"] += 1
    return phase == "fit" and state["round"] == at and state["steps"] == 10

Learner.build = build
Classifier.training_step = dies(Classifier.training_step, step)
observe.pool_view = dies(observe.pool_view, lambda *args: phase == "predict" and state["round"] == at)
RunStore.append = dies(RunStore.append, lambda self, record: phase == "record" and record.round == at)
cli.main()
"""


def folder_of(results: Path, *overrides: str) -> Path:
    return run_folder(asked(f"results_dir={results}", *overrides))


def test_a_run_killed_in_fit_in_predict_and_before_its_record_ends_as_if_it_had_not_been(tmp_path):
    ask = (*QUICK, "strategy=entropy")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    for phase, at, left in (("fit", 1, 1), ("predict", 1, 1), ("record", 2, 2)):
        died = command(tmp_path, phase, str(at), *ask, "results_dir=killed", script=script)
        assert died.returncode == -signal.SIGKILL, died.stderr
        folder = folder_of(tmp_path / "killed", *ask)
        assert len(lines_of(folder)) == left
        assert json.loads((folder / "run.json").read_text())["state"] == "running"
    resumed = command(tmp_path, *ask, "results_dir=killed")
    assert resumed.returncode == 0 and "2 rounds are there already; going on after them." in resumed.stdout

    whole = command(tmp_path, *ask, "results_dir=whole", program=STARTED)
    assert whole.returncode == 0
    assert lines_of(folder) == lines_of(folder_of(tmp_path / "whole", *ask))
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 4

    # A normal run: a line a round, where the results are, and not a word from the libraries.
    assert whole.stderr == ""
    lines = whole.stdout.splitlines()
    assert lines[0] == "digits, small_cnn, entropy, seed 0"
    assert lines[1].split() == ["round", "labels", "test", "accuracy", "fit", "s", "predict", "s", "select", "s"]
    assert [line.split()[:2] for line in lines[2:6]] == [["0", "20"], ["1", "30"], ["2", "40"], ["3", "50"]]
    assert lines[6] == "Stopped: the budget is used up, with 50 training labels and 20 validation labels."
    assert lines[7].startswith("Results: whole/default/digits") and Path(tmp_path, lines[8].split(": ")[1]).exists()

    # The same command again returns at once: torch is not even imported.
    ask_again = "from al_bench import cli; import sys\ntry: cli.main()\nfinally: print('torch' in sys.modules)"
    again = command(tmp_path, *ask, "results_dir=whole", program=("-c", ask_again))
    assert again.stdout.splitlines() == [f"Already finished: {lines[7].split(': ')[1]}", "False"]


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_leave_an_interrupted_run_that_says_how_to_go_on(tmp_path, sent, code):
    ask = (*QUICK, "trainer.max_steps=5000", f"results_dir={tmp_path}")
    run = subprocess.Popen(
        [sys.executable, "-m", "al_bench", *ask], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip
    assert run.stdout.readline().startswith("digits")
    time.sleep(2)  # into the fit, where Lightning has its own idea of Ctrl-C
    run.send_signal(sent)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == code
    assert out.splitlines()[-1] == "Interrupted; 0 finished rounds are kept. The same command goes on from there."
    info = json.loads((run_folder(asked(*ask)) / "run.json").read_text())
    assert info["state"] == "interrupted"


def test_ctrl_c_in_the_midst_of_an_import_has_the_same_exit_code(tmp_path):
    source = 'def pick(view, k, rng):\n    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")\n'
    (tmp_path / "mine.py").write_text(source)  # as a dataclass's exec does it, when the signal comes at that moment
    done = command(
        tmp_path, *QUICK, "strategy.name=pick", "strategy._target_=mine.pick", f"results_dir={tmp_path}",
        program=STARTED,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.splitlines()[-1].startswith("Interrupted; 0 finished rounds are kept.")


@pytest.mark.parametrize(
    "mistake, said",
    [
        ("strategy=entrpy", "'entrpy': did you mean entropy or mc_entropy"),
        ("stratgy=entropy", "'stratgy': did you mean strategy"),
        ("trainer.max_stps=5", "'trainer.max_stps': did you mean trainer.max_steps"),
        ("seed=abc", "Value 'abc' of type 'str' could not be converted to Integer"),
        ("trainer.start=bst", "Invalid value 'bst', expected one of [fresh, previous, best]"),
        ("seed=-1", "al_bench: seed=-1: 0 or more"),
        ("budget=50", "al_bench: budget=50: budget is one of cifar10_resnet18, default, full, "),
        ("budget.initial=0", "al_bench: budget.initial=0: 1 or more label"),
        ("dataset=dogs_vs_cats", "al_bench: dataset.root is not set."),
        ("strategy.tempo=2", "Key 'tempo' is not in struct"),
        (
            "statsu",
            "al_bench: statsu is neither a command (check, report, status, label, suggest, ingest, finish, predict) "
            "nor a setting (key=value).",
        ),
    ],
)
def test_a_mistake_gets_a_message_and_a_bad_exit_code_before_anything_starts(tmp_path, mistake, said):
    done = command(tmp_path, mistake)
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_working_directory_is_said_to_be_one(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    done = command(folder, "seed=0", program=STARTED, preexec_fn=folder.rmdir)
    said = "al_bench: The current folder has been deleted. Change to a folder that exists.\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    "mistake, said",
    [
        ("dataset=dogs_vs_cats dataset.root=nowhere", "dataset.root=nowhere: there is no such file or folder."),
        ("budget.query=2000", "budget.query=2,000 is larger than the pool: 1,398 images"),
        ("model.optimizer.lr=1e30", "round 0: the loss is not a number at step "),
    ],
)
def test_a_mistake_found_later_gets_no_traceback_either(tmp_path, mistake, said):
    done = command(tmp_path, *QUICK, *mistake.split())
    assert done.returncode == 1
    assert done.stderr.startswith("al_bench: ") and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_sweep_goes_on_after_a_failed_job_exits_with_1_and_runs_only_what_is_missing(tmp_path):
    ask = ("-m", *QUICK, "budget.rounds=1", "results_dir=.", "seed=0,1", "study=sweep")
    first = command(tmp_path, *ask, "strategy=random,entropy", "budget.initial=20,5000")
    assert first.returncode == 1 and "Traceback" not in first.stderr
    assert first.stderr.count("al_bench: The training split has 1,438 images") == 4
    assert first.stdout.count("Stopped: the budget is used up") == 4
    start = time.perf_counter()
    again = command(tmp_path, *ask, "strategy=random,entropy")
    assert time.perf_counter() - start < 10  # no import of torch: a second or two
    assert again.returncode == 0
    page, cell, verdict, *notes, end = again.stdout.splitlines()
    assert (page, end) == ("Report: sweep/report/index.html", "Sweep: 0 finished, 4 there already, 0 failed.")
    assert cell == "sweep / digits / small_cnn / 20+1x10:" and re.match("  entropy.*n = 2 pairs, no call", verdict)


def test_help_and_the_configuration_are_shown_alike_by_both_commands(tmp_path):
    script = Path(sys.executable).with_name("al-bench")
    for ask in ("--help", "--cfg=job"):
        module = command(tmp_path, ask, program=STARTED)
        assert module.returncode == 0 and module.stderr == ""
        console = subprocess.run([script, ask], cwd=tmp_path, capture_output=True, text=True)
        assert console.stdout == command(tmp_path, ask).stdout == module.stdout
    assert "budget: cifar10_resnet18, default, full, gentle_introduction" in command(tmp_path, "--help").stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_shows_the_budget_and_the_work_and_trains_nothing(tmp_path):
    done = command(tmp_path, *QUICK, "strategy=entropy", "plan=true", env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0 and done.stderr == ""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [
        ["0", "20", "10", "1,280", "1,398"],
        ["1", "30", "10", "1,280", "1,388"],
        ["2", "40", "10", "1,280", "1,378"],
        ["3", "50", "0", "1,280", "0"],
    ]
    assert "Labels acquired: 70 (50 to train on, 20 for validation)" in done.stdout
    assert "Memory: about" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_strategy_of_ones_own_runs_from_its_own_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from al_bench.strategies import needs, top_k\n\n"
        "@needs(embeddings=True)\n"
        "def longest(view, k, rng):\n"
        "    assert view.labelled_emb_LD.shape[1] == view.emb_PD.shape[1] and len(view.labelled_labels_L) >= 20\n"
        "    return top_k(view.emb_PD.norm(dim=1), k, rng)\n"
    )
    (tmp_path / "my_conf" / "strategy").mkdir(parents=True)
    (tmp_path / "my_conf" / "strategy" / "longest.yaml").write_text("name: longest\n_target_: mine.longest\n")
    script = Path(sys.executable).with_name("al-bench")
    ask = [script, "--config-dir", "my_conf", "strategy=longest", *QUICK, "results_dir=."]
    done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(lines_of(next(tmp_path.glob("**/longest/seed=0")))) == 4


def test_a_built_wheel_works_in_an_empty_folder(tmp_path):
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"))
    built = command(ROOT, program=build)
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next((tmp_path / "dist").glob("*.whl"))
    place, empty = tmp_path / "place", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(place)  # what an installer does with a pure wheel
    script = "import al_bench; from al_bench import cli; cli.main(); print(al_bench.__file__)"
    env = {**os.environ, "PYTHONPATH": str(place)}
    done = command(empty, *QUICK, "budget.rounds=1", program=("-c", script), env=env)
    assert done.returncode == 0, done.stderr
    *_, page, where = done.stdout.splitlines()
    assert (empty / page.split(": ")[1]).exists() and where.startswith(str(place))


CHECKED = """
from al_bench.strategies import top_k
from al_bench.strategies.uncertainty import log_mean_probs

def strongest_second(view, k, rng):
    return top_k(log_mean_probs(view.log_probs_PSC).topk(2, dim=-1).values[:, 1], k, rng)

def first_files(view, k, rng):
    return log_mean_probs(view.log_probs_PSC).topk(2, dim=-1).values[:, 1].argsort(stable=True)[:k]
"""


def test_check_puts_a_strategy_of_ones_own_folder_through_the_rules(tmp_path):
    (tmp_path / "mine.py").write_text(CHECKED)
    script = Path(sys.executable).with_name("al-bench")
    ask = [script, "check", "mine.strongest_second"]
    done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    *lines, verdict = done.stdout.splitlines()
    assert verdict == f"mine.strongest_second obeys all {len(lines)} rules."
    assert len(lines) >= 10 and all(line.startswith("ok ") for line in lines)

    wrong = command(tmp_path, "check", "mine.first_files")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stdout + wrong.stderr
    assert "FAILED   If all images are identical" in wrong.stdout


def test_check_answers_a_mistake_with_a_sentence_and_starts_without_lightning(tmp_path):
    ask = "from al_bench import cli; import sys\ntry: cli.main()\nfinally: print('pytorch_lightning' in sys.modules)"
    done = command(tmp_path, "check", "mine.nothing", program=("-c", ask))
    assert done.returncode == 1 and done.stdout == "False\n"
    assert done.stderr == "al_bench: strategy._target_=mine.nothing cannot be loaded: No module named 'mine'.\n"
    assert list(tmp_path.iterdir()) == []
