import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
from conftest import asked

from al_bench import provenance
from al_bench.config import flat
from al_bench.errors import UserError
from al_bench.files import write_atomically
from al_bench.options import whole_strategies
from al_bench.provenance import code_version
from al_bench.recipe import as_asked, as_file_name, run_folder
from al_bench.records import RoundRecord
from al_bench.schedule import stages_of
from al_bench.store import RunStore


def record(round: int, acquired: tuple[int, ...] | None = None) -> RoundRecord:
    indices = [2 * round + 1, 2 * round] if acquired is None else list(acquired)
    return RoundRecord(round, 20 + 2 * round, 10, {"accuracy": 0.5}, None, indices, round, 1, 20, [], {"fit": 1.0}, 1)


WHOLE = [record(0), record(1, acquired=())]


@pytest.fixture
def store(tmp_path) -> RunStore:
    store = RunStore(asked(f"results_dir={tmp_path}", "strategy=entropy"))
    with store.at_work():
        for r in WHOLE:
            store.append(r)
    return store


def again(store: RunStore, *overrides: str) -> RunStore:
    return RunStore(asked(f"results_dir={store.config.results_dir}", "strategy=entropy", *overrides))


def test_the_folder_is_named_by_what_is_asked():
    c = asked("study=s", "dataset=mnist", "model=timm", "model.mode=frozen", "strategy=margin", "seed=7")
    assert run_folder(c).as_posix() == "results/s/mnist/resnet18-frozen/20+5x20/margin/seed=7"
    assert run_folder(asked("budget.rounds=null")).parts[-3] == "20+allx20"
    assert run_folder(asked("budget.name=low")).parts[-3] == "low"


@pytest.mark.parametrize(
    "name, file_name",
    [("hf_hub:timm/vit.augreg_in1k", "hf_hub_timm_vit.augreg_in1k"), ("..", "_"), ("../../etc", "_.._etc"), ("", "_")],
)
def test_a_name_never_leaves_its_folder(name, file_name):
    assert as_file_name(name) == file_name


def test_records_come_back_as_they_were_written(store):
    assert store.records() == WHOLE
    assert store.info()["state"] == "finished" and store.finished()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_finished_run_that_lost_rounds_goes_on_from_what_is_left(store, kept):
    lines = store.rounds_path.read_bytes().splitlines(keepends=True)
    store.rounds_path.write_bytes(b"".join(lines[:kept]))
    assert store.info()["state"] == "finished" and not again(store).finished()
    with again(store).at_work():
        for r in WHOLE[kept:]:
            store.append(r)
    assert again(store).finished()


@pytest.mark.parametrize("torn", [b'{"round": 2, "n_lab', b'{"round": 2}', b"\n", b'{"round": 2, "x": {"a": 1}'])
def test_a_torn_last_line_is_dropped_and_said(store, torn, capfd):
    whole = store.rounds_path.read_bytes().splitlines(keepends=True)[0]
    store.rounds_path.write_bytes(whole + torn)
    assert store.records() == [record(0)]
    with store.at_work():
        assert store.rounds_path.read_bytes() == whole
        store.append(record(1))
    assert store.records() == [record(0), record(1)]
    assert "was cut short; its round is done again" in (store.folder / "run.log").read_text()


@pytest.mark.parametrize(
    "damaged, message",
    [(b'{"round": 0}\n{}\n', "line 1 is not a valid record"), (b"garbage\n{}\n", "line 1 is not a valid record")],
)
def test_a_damaged_record_is_an_error_that_names_the_line(store, damaged, message):
    store.rounds_path.write_bytes(damaged)
    with pytest.raises(UserError, match=message):
        store.records()


def test_a_missing_round_is_an_error(store):
    store.rounds_path.write_bytes(store.rounds_path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(UserError, match="rounds are missing or repeated"):
        store.records()


@pytest.mark.parametrize("damage", ['{"state": ', "[]", ""])
def test_a_damaged_run_json_is_an_error_that_says_what_to_do(store, damage):
    (store.folder / "run.json").write_text(damage)
    with pytest.raises(UserError, match=r"run\.json is damaged.*Delete"):
        store.info()


def test_another_configuration_is_refused_by_the_keys_that_differ(store):
    for act in (
        again(store, "trainer.batch_size=32").finished,
        again(store, "trainer.batch_size=32").at_work().__enter__,
    ):
        with pytest.raises(UserError, match=r"trainer\.batch_size: there 64, asked 32") as error:
            act()
        assert "study=" in str(error.value) and "max_steps" not in str(error.value)
    assert again(store, "trainer.num_workers=2", "plan=true", "cache_dir=elsewhere").finished()


def test_a_start_that_finished_no_round_may_be_corrected(tmp_path):
    wrong = RunStore(asked(f"results_dir={tmp_path}", "budget.validation=7"))
    with pytest.raises(UserError, match="no good"), wrong.at_work():
        raise UserError("no good")
    assert wrong.info()["state"] == "failed" and wrong.info()["error"] == "no good"
    assert "Traceback" not in (wrong.folder / "run.log").read_text()
    with pytest.raises(UserError, match="no good"), wrong.at_work():
        raise UserError("no good") from ValueError("in a strategy of one's own")
    assert "ValueError: in a strategy of one's own" in (wrong.folder / "run.log").read_text()
    right = RunStore(asked(f"results_dir={tmp_path}"))
    with right.at_work():
        assert right.info()["state"] == "running" and right.info()["error"] is None


DATA = {"name": "digits", "checksum": "one", "classes": ["a", "b"], "n_train": 3, "n_test": 3, "images": None}
SETS = {name: {"n": 3, "checksum": "drawn"} for name in ("initial_set", "validation_set")}


def test_data_that_changed_between_two_starts_are_refused(store):
    store.identify(DATA, SETS)
    store.identify(DATA, SETS)
    with pytest.raises(UserError, match="began with other data: its images or labels changed since"):
        store.identify(DATA | {"checksum": "two"}, SETS)


@pytest.mark.parametrize(
    "drawn, words", [("initial_set", "another initial set"), ("validation_set", "another validation set")]
)
def test_a_set_that_is_drawn_otherwise_at_the_second_start_is_refused(store, drawn, words):
    store.identify(DATA, SETS)
    with pytest.raises(UserError, match=f"began with {words}: it is drawn otherwise now. Bring"):
        store.identify(DATA, SETS | {drawn: {"n": 3, "checksum": "drawn otherwise"}})


PICKS = """
import torch
FACTOR = 2
def other(view, k, rng):
    return 0
def pick(view, k, rng):
    return FACTOR * k
class A:
    pick = None
"""


@pytest.fixture
def version(tmp_path, monkeypatch):
    """The code version of a strategy's settings after these files are written."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(files: str | dict[str, str], **settings):
        for name, text in ({"mine_noted.py": files} if isinstance(files, str) else files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        provenance._source.cache_clear()
        return code_version({"name": "pick", "beta": 1.0} | (settings or {"_target_": "mine_noted.pick"}))

    return of


def test_a_strategys_version_is_the_content_of_its_file(version):
    there = version(PICKS)
    assert list(there["modules"]) == ["mine_noted"] and version(PICKS) == there
    for change in (
        ("= 2", "= 3"),
        ("return 0", "return 1"),
        ("FACTOR *", "FACTOR  *"),
        ("FACTOR = 2", "FACTOR = 2  # !"),
    ):
        assert version(PICKS.replace(*change))["checksum"] != there["checksum"]
    assert list(version(PICKS, _target_="mine_noted.A.pick")["modules"]) == ["mine_noted"]
    assert version("def x(: no Python") != version("def y(: no Python")


OURS = "al_bench.strategies"


def test_a_strategys_version_covers_the_files_of_our_strategies_that_it_imports(version, monkeypatch):
    badge = {"_target_": f"{OURS}.gradient.badge"}
    there = version(PICKS, **badge)
    assert list(there["modules"]) == [
        OURS,
        *(f"{OURS}.{name}" for name in ("centred", "gradient", "greedy", "uncertainty")),
    ]
    real = provenance._source
    for edited, counts in (("greedy", True), ("uncertainty", True), ("__init__", True), ("coverage", False)):
        with monkeypatch.context() as patched:
            comment = lambda file, edited=edited: real(file) + "# a remark\n" * (file.stem == edited)  # noqa: E731
            patched.setattr(provenance, "_source", comment)
            assert (code_version(badge)["checksum"] != there["checksum"]) == counts, edited
    for line in (f"from {OURS}.greedy import draw", f"from {OURS} import greedy", f"import {OURS}.greedy as g"):
        assert (
            f"{OURS}.greedy" in version(f"def pick(view, k, rng):\n    {line}\n")["modules"]
        )  # inside a function, too


def test_every_dotted_path_of_a_strategys_settings_counts(version):
    ours = {"_target_": "al_bench.strategies.bayesian.stochastic_batch"}
    assert f"{OURS}.bayesian" in version(PICKS, **ours)["modules"]
    for given in ("mine_noted.other", [{"_target_": "mine_noted.other"}]):
        scored = version(PICKS, **ours, score=given)
        assert scored["modules"].keys() == version(PICKS, **ours)["modules"].keys() | {"mine_noted"}
        assert version(PICKS.replace("2", "3"), **ours, score=given) != scored
    for other in (
        "nowhere.pick",
        "math.sqrt",
        "array.npy",
        "mine_noted",
        "torch." + 300 * "x",
        "",
        ".",
        "1.5",
        "a b.c",
    ):
        assert version(PICKS, **ours, other=other) == version(PICKS, **ours), other


def test_the_file_is_the_one_that_python_would_import(version):
    version({"pack_a/inner/mine.py": PICKS, "pack_b/__init__.py": PICKS, "pack_b/mine.py": PICKS, "pack_b/mine/x": ""})
    assert code_version({"_target_": "pack_a.inner.mine.pick"})["modules"].keys() == {
        "pack_a.inner.mine"
    }  # a namespace package
    assert code_version({"_target_": "pack_b.pick"})["modules"].keys() == {"pack_b"}
    assert code_version({"_target_": "pack_b.mine.pick"})["modules"].keys() == {
        "pack_b.mine"
    }  # not the folder of its name
    assert code_version({"_target_": "pack_b.mine"}) is None  # a module is no function


def test_the_code_of_every_strategy_here_is_found():
    for name in whole_strategies():
        settings = dict(asked(f"strategy={name}").strategy)
        for stage in stages_of(settings):
            assert stage["_target_"].rpartition(".")[0] in code_version(settings)["modules"]


def test_a_run_of_an_earlier_version_whose_checksum_cannot_be_compared_goes_on_with_a_warning(
    tmp_path, version, caplog
):
    version(PICKS)
    c = asked(f"results_dir={tmp_path}", "strategy._target_=mine_noted.pick", "strategy.name=pick")
    store = RunStore(c)
    with suppress(KeyboardInterrupt, SystemExit), store.at_work():
        store.append(record(0))
        store.note(strategy_version={"checksum": "of another kind", "files": "pick in mine_noted.py"})
        raise KeyboardInterrupt
    caplog.clear()
    for warned in (True, False):  # then today's checksum is noted
        with suppress(KeyboardInterrupt, SystemExit), store.at_work():
            store.identify(DATA, SETS)
            assert ("was begun by an earlier al_bench" in caplog.text) == warned
            raise KeyboardInterrupt
        caplog.clear()
    with store.at_work():
        store.append(record(1, acquired=()))
    assert store.finished()


def test_a_strategy_that_changed_between_two_starts_is_refused(tmp_path, version):
    version(PICKS)
    c = asked(f"results_dir={tmp_path}", "strategy._target_=mine_noted.pick", "strategy.name=pick")
    store = RunStore(c)
    with suppress(KeyboardInterrupt, SystemExit), store.at_work():
        store.identify(DATA, SETS)
        store.append(record(0))
        raise KeyboardInterrupt
    assert not store.finished()
    with store.at_work():
        store.identify(DATA, SETS)
        store.append(record(1, acquired=()))
    assert store.finished()
    version(PICKS.replace("FACTOR *", "FACTOR +"))
    changed = "began with other code of its strategy: mine_noted changed since"
    with pytest.raises(UserError, match=changed):
        store.identify(DATA, SETS)
    with pytest.raises(UserError, match=changed):
        store.finished()  # not taken for a run of the new version
    store.note(state="interrupted")
    with pytest.raises(UserError, match=changed):
        store.finished()  # before any image is loaded
    c.budget.initial = None
    store.identify(DATA, SETS)  # on the full data no strategy chooses


@pytest.mark.parametrize("damage", [b"<<<<<<< HEAD\nseed: 0\n", b"\xff", b"- 1\n", b"seed: [\n"])
def test_a_damaged_config_yaml_is_an_error_that_says_what_to_do(store, damage):
    (store.folder / "config.yaml").write_bytes(damage)
    with pytest.raises(UserError, match=r"config\.yaml is damaged.*Delete|was made by another configuration"):
        again(store).finished()


@pytest.mark.parametrize(
    "value", [1e-5, "1e-5", "2020-01-01", "1:30", "no", "null", "0x1f", "", None, [1e-5, "on"], float("inf")], ids=repr
)
def test_a_setting_comes_back_from_config_yaml_as_it_was_asked(tmp_path, value):
    c = asked(f"results_dir={tmp_path}", "trainer.early_stopping.monitor=accuracy")
    c.strategy["odd"] = value
    with RunStore(c).at_work():
        pass
    there = as_asked(run_folder(c) / "config.yaml")
    assert there == flat(asdict(c))
    assert repr(there["strategy.odd"]) == repr(value)
    assert there["trainer.early_stopping.monitor"] == "accuracy"  # an enum is written as its name


def test_an_internal_error_leaves_its_traceback_in_the_log(store):
    with pytest.raises(ZeroDivisionError), again(store).at_work():
        1 / 0  # noqa: B018
    assert store.info()["state"] == "failed" and "ZeroDivisionError" in store.info()["error"]
    assert "Traceback" in (store.folder / "run.log").read_text()
    assert store.records() == WHOLE


def test_a_second_process_is_turned_away(store):
    holder = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from conftest import asked; from al_bench.store import RunStore\n"
        "with RunStore(asked(*sys.argv[2:])).at_work(): print('in', flush=True); time.sleep(60)"
    )
    tests = __file__.rsplit("/", 1)[0]
    asked_for = (f"results_dir={store.config.results_dir}", "strategy=entropy")
    first = subprocess.Popen([sys.executable, "-c", holder, tests, *asked_for], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="Another process is at work in"), again(store).at_work():
            pass
    finally:
        first.kill()
        first.communicate()
    with again(store).at_work():  # the kill released the lock
        assert store.info()["state"] == "running"


def test_a_full_disk_keeps_the_finished_rounds_and_says_so(tiny_disk):
    store = RunStore(asked(f"results_dir={tiny_disk}"))
    with pytest.raises(UserError, match="No space left on the disk.*2 finished rounds are kept"), store.at_work():
        store.append(record(0))
        store.append(record(1))
        (tiny_disk / "other").write_bytes(b"x" * 8000)
        store.append(record(2, acquired=tuple(range(20_000))))
    (tiny_disk / "other").unlink()
    assert store.records() == [record(0), record(1)]
    with store.at_work():
        store.append(record(2))
    assert len(store.records()) == 3


def test_a_record_that_fits_only_in_part_leaves_nothing_of_itself(store):
    before = store.rounds_path.read_bytes()
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from conftest import asked; from test_store import record; from al_bench.store import RunStore\n"
        "store = RunStore(asked(*sys.argv[3:])); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))\n"
        "store.append(record(2))"
    )
    here = (f"results_dir={store.config.results_dir}", "strategy=entropy")
    arguments = [__file__.rsplit("/", 1)[0], str(len(before) + 100), *here]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert store.rounds_path.read_bytes() == before


def test_a_results_folder_that_cannot_be_written_is_said_so():
    with (
        pytest.raises(UserError, match="cannot be written.*results_dir="),
        RunStore(asked("results_dir=/dev/null/x")).at_work(),
    ):
        pass


def test_going_on_with_other_hardware_is_said(store):
    with again(store).at_work():
        again(store).note_hardware(device="cpu", precision="32-true")
    with again(store).at_work():
        again(store).note_hardware(device="cpu", precision="bf16-mixed")
    assert "computed with precision 32-true; going on with bf16-mixed" in (store.folder / "run.log").read_text()


def test_a_record_that_is_not_a_number_is_never_written(store):
    with pytest.raises(ValueError), again(store).at_work():
        store.append(replace(record(2), metrics={"accuracy": float("nan")}))
    assert store.records() == WHOLE


def test_an_atomic_write_leaves_the_old_content_when_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udc80")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_run_json_is_readable_json(store):
    assert json.loads((store.folder / "run.json").read_text())["starts"][0]["python"] == sys.version.split()[0]


def test_a_commit_is_marked_where_code_or_configuration_differ_and_nowhere_else(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "al_bench" / "provenance.py"))
    assert provenance._git_commit() is None
    for name in ("al_bench/loop.py", "conf/config.yaml", "results/run.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "results" / "run.json").write_text("2")
    assert provenance._git_commit() == commit
    (tmp_path / "al_bench" / "mine.py").touch()
    assert provenance._git_commit() == f"{commit}+"
    (tmp_path / "al_bench" / "mine.py").unlink()
    (tmp_path / "conf" / "config.yaml").write_text("2")
    assert provenance._git_commit() == f"{commit}+"
