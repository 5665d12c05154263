"""The reader of a run folder's files. The command and the report refuse the same damage with the same words."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import asked
from test_report import write_run
from test_store import record

from al_bench.analysis import results, status
from al_bench.errors import UserError
from al_bench.records import read_json, read_records
from al_bench.store import RunStore


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunStore:
    store = RunStore(asked(f"results_dir={tmp_path_factory.mktemp('whole')}", "strategy=entropy"))
    with store.at_work():
        for r in (record(0), record(1), record(2, acquired=())):
            store.append(r)
    return store


@pytest.fixture
def run(whole, tmp_path) -> RunStore:
    """A finished run that a test may damage."""
    shutil.copytree(whole.config.results_dir, tmp_path / "runs")
    store = RunStore(asked(f"results_dir={tmp_path / 'runs'}", "strategy=entropy"))
    assert store.finished() and results.read(store.folder).state == "finished"
    return store


def changed(line: int, **values) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        lines = [json.loads(text) for text in data.splitlines()]
        for key, value in values.items():
            *parts, last = key.split("__")
            place = lines[line]
            for part in parts:
                place = place[part]
            place[last] = value
        return "".join(json.dumps(text) + "\n" for text in lines).encode()

    return change


def swap(one: bytes, other: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(one, other, 1)


REFUSED = {
    "an accuracy of 7.5": (changed(1, metrics__accuracy=7.5), 2, "metrics.accuracy is 7.5, outside"),
    "a negative accuracy": (changed(0, metrics__accuracy=-0.2), 1, "metrics.accuracy is -0.2, outside"),
    "a true accuracy": (changed(0, metrics__accuracy=True), 1, "metrics holds true or false"),
    "no accuracy": (changed(2, metrics={"nll": 1.0}), 3, "metrics lacks accuracy"),
    "a negative nll": (changed(0, metrics__nll=-1.0), 1, "metrics.nll is -1.0, outside"),
    "a recall of 2": (changed(0, metrics__per_class=[0.1, None, 2.0]), 1, "metrics.per_class is 2.0, outside"),
    "a validation accuracy of 50": (changed(0, validation={"accuracy": 50}), 1, "validation.accuracy is 50, outside"),
    "a history in per cent": (changed(0, history=[{"loss": 1.0, "accuracy": 97.0}]), 1, "is 97.0, outside"),
    "a word in the history": (changed(0, history=[{"loss": "low"}]), 1, "not a list of mappings to numbers"),
    "acquired: null": (changed(2, acquired=None), 3, "acquired is None, not a list"),
    "an image twice": (changed(0, acquired=[1, 1]), 1, "acquired names an image twice"),
    "an image of an earlier round": (changed(1, acquired=[0, 7]), 2, "an image that an earlier round acquired"),
    "a fraction of an image": (changed(0, acquired=[1, 0.5]), 1, "acquired is 0.5, not a whole number"),
    "an index of thirty digits": (changed(0, acquired=[1, 10**30]), 1, "not a whole number"),
    "a negative index": (changed(0, acquired=[1, -5]), 1, "acquired is -5, outside 0"),
    "a true count": (changed(0, epochs=True), 1, "epochs holds true or false"),
    "negative seconds": (changed(0, seconds__fit=-1.0), 1, "seconds is -1.0, outside"),
    "endless seconds": (changed(0, seconds__fit=1e300), 1, "outside 0 to 1e+09"),
    "labels that grow too fast": (changed(1, n_labelled=30), 2, "30 labels, after 20 labels and 2 acquired images"),
    "labels that fall": (changed(1, n_labelled=19, n_foreign=3), 2, "has decreased"),
    "a round twice": (changed(1, round=0, weights_from=0), 2, "rounds are missing or repeated"),
    "an end in the middle": (changed(0, acquired=[]), 2, "acquired nothing, so the run ended there"),
    "a later round's weights": (changed(0, weights_from=1), 1, "weights_from is 1, a later round"),
    "a missing value": (lambda data: data.replace(b'"steps": 20, ', b"", 1), 1, "it lacks steps"),
    "NaN": (swap(b"0.5", b"NaN"), 1, "not a valid record"),
    "Infinity": (swap(b"0.5", b"Infinity"), 1, "not a valid record"),
    "a double beyond all": (swap(b"0.5", b"1e400"), 1, "not a valid record"),
    "a key twice": (swap(b'"round": 0', b'"round": 0, "round": 0'), 1, "round appears twice"),
    "a key twice below": (swap(b'"accuracy": 0.5', b'"accuracy": 0.9, "accuracy" :0.5'), 1, "accuracy appears twice"),
    "no UTF-8": (swap(b"entropy", b"entr\xffpy"), 1, "not a valid record"),
    "nested without end": (swap(b'"history": []', b'"history": ' + b"[" * 5000 + b"]" * 5000), 1, "not a valid"),
    "a newer al_bench's": (changed(1, mood="good"), 2, "a record of a newer al_bench: this version does not know mood"),
    "another seed's": (swap(b"seed=0", b"seed=7"), 1, "is a record of digits/small_cnn/20+5x20/entropy/seed=7"),
    "a fit of no run": (changed(0, fit_from=3), 1, "fit_from is 3, not a name"),
    "another strategy's, later": (changed(2, run="digits/small_cnn/20+5x20/margin/seed=0"), 3, "is a record of digits"),
}  # fmt: skip


@pytest.mark.parametrize("damage, line, words", REFUSED.values(), ids=REFUSED)
def test_what_the_command_refuses_the_report_refuses_with_the_same_words(run, damage, line, words, capsys):
    run.rounds_path.write_bytes(damage(run.rounds_path.read_bytes()))
    with pytest.raises(UserError) as error:
        run.finished()
    assert str(error.value).startswith(f"{run.rounds_path}, line {line} is ") and words in str(error.value)
    with pytest.raises(UserError) as resumed, run.at_work():
        pass
    read = results.read(run.folder)
    assert (read.state, read.why) == ("unreadable", str(error.value)) and str(resumed.value) == str(error.value)
    assert status.main([run.config.results_dir]) == 0
    assert f"line {line} is " in " ".join(capsys.readouterr().out.split())


def test_a_mark_of_byte_order_and_lines_of_windows_make_no_difference(run):
    data = run.rounds_path.read_bytes()
    for same in (b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.replace(b'": ', b'":')):
        run.rounds_path.write_bytes(same)
        assert run.finished() and results.read(run.folder).state == "finished"


@pytest.mark.parametrize("last", [b'{"round": 3', b'{"round": 3}', b"\n", b"x\n"])
def test_a_torn_last_line_is_torn_for_both(run, last):
    with open(run.rounds_path, "ab") as file:
        file.write(last)
    read = results.read(run.folder)
    assert run.finished() and (read.state, read.torn, len(read.labels_R)) == ("finished", True, 3)


def test_a_record_names_its_run_and_old_ones_name_none(run):
    assert {r.run for r in run.records()} == {"digits/small_cnn/20+5x20/entropy/seed=0"}
    lines = [json.loads(line) for line in run.rounds_path.read_text().splitlines()]
    for line in lines:
        del line["run"], line["n_candidates"], line["n_foreign"], line["class_counts"], line["fit_from"]
    run.rounds_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.finished() and results.read(run.folder).state == "finished"


def test_the_rounds_of_another_seed_are_no_finished_run(whole, tmp_path):
    other = RunStore(asked(f"results_dir={tmp_path}", "strategy=entropy", "seed=1"))
    with other.at_work():
        other.append(record(0, acquired=()))
    shutil.copy(whole.rounds_path, other.rounds_path)
    words = r"line 1 is a record of .*/entropy/seed=0, but this is the folder of .*/entropy/seed=1\. Restore"
    with pytest.raises(UserError, match=words):
        other.finished()
    assert results.read(other.folder).state == "unreadable"


def test_a_run_is_its_configurations_wherever_its_folder_lies(whole, tmp_path):
    place = tmp_path / "backup" / "renamed" / "data" / "net" / "budget" / "mine" / "seed=9"
    shutil.copytree(whole.folder, place)
    (found,) = results.find(tmp_path)
    assert (found.state, found.strategy, found.seed) == ("finished", "mine", 9)


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"error": 7}', "error is int, not text"),
        (b'{"state": "finished", "starts": {}}', "starts is dict, not a list"),
        (b'{"starts": [3]}', "starts[0] is int, not a mapping"),
        (b'{"dataset": {"classes": [1]}}', "dataset.classes[0] is int, not text"),
        (b'{"initial_set": {"checksum": 1}}', "initial_set.checksum is int"),
        (b'{"state": "done"}', "state is 'done', not one of finished"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deeply"),
        (b"null", "NoneType, not a mapping"),
        (b"\xff", "is damaged"),
    ],
)
def test_facts_that_no_run_writes_are_damage(run, content, words):
    (run.folder / "run.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        run.finished()
    assert words in str(error.value) and results.read(run.folder).why == str(error.value)


@pytest.mark.parametrize("name", ["run.json", "rounds.jsonl"])
def test_what_is_no_file_is_named_and_never_waited_for(run, name):
    path = run.folder / name
    path.unlink()
    for make, words in (
        (path.mkdir, "a folder, not a file"),
        (lambda: os.mkfifo(path), "a pipe or a device, not a file"),
        (lambda: path.symlink_to("/dev/zero"), "a pipe or a device, not a file"),
    ):
        make()
        with pytest.raises(UserError, match=words):
            (read_json if name == "run.json" else read_records)(path)
        assert words in results.read(run.folder).why
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_folder_without_permission_is_named(open_folder):
    closed = [write_run(open_folder, "margin", seed) for seed in (1, 2)] + [write_run(open_folder, "bald").parent]
    write_run(open_folder, "random")
    closed[0].chmod(0o600)  # its files can be listed but not opened
    closed[1].chmod(0)
    closed[2].chmod(0)
    code = (
        "import os, sys; from pathlib import Path; from al_bench.analysis import results\n"
        "os.getuid() or os.setuid(65534)\n"
        "print([(r.name, r.state) for r in results.find(Path(sys.argv[1])) if 'Permission denied' in (r.why or '')])\n"
        "print(results.closed_folders(Path(sys.argv[1])), results.stamp(Path(sys.argv[1])).keys())"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code, open_folder], capture_output=True, text=True)
    finally:
        for folder in closed:
            folder.chmod(0o755)
    found, rest = done.stdout.splitlines()
    assert found == "[('margin, seed 1', 'unreadable'), ('margin, seed 2', 'unreadable')]", done.stderr
    assert f"{closed[2]} cannot be read (Permission denied): runs in it are not shown." in rest


def test_a_link_that_leads_back_ends(tmp_path):
    folder = write_run(tmp_path)
    (folder.parents[3] / "again").symlink_to(tmp_path)
    assert folder in results.folders(tmp_path)


def test_committed_runs_are_readable():
    runs = results.find(Path(__file__).parents[1] / "results")
    assert {run.state for run in runs} == {"finished"}


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_two_processes_read_what_one_reads_in_the_same_order(tmp_path, monkeypatch):
    for seed in range(5):
        write_run(tmp_path, "random", seed, (0.5, 0.6, 0.7 + seed / 100))
    (tmp_path / "study/digits/small_cnn/10+2x10/random/seed=4/rounds.jsonl").write_text("x\ny\n")
    one = results.find(tmp_path)
    monkeypatch.setattr(results, "MANY", 2)
    two = results.find(tmp_path)
    assert [(r.name, r.state, r.why, r.info) for r in two] == [(r.name, r.state, r.why, r.info) for r in one]
    assert [[*r.metrics["accuracy"]] for r in two[:4]] == [[*r.metrics["accuracy"]] for r in one[:4]]
