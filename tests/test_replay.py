"""strategy=replay: what another study's strategy acquired is acquired again, with another model."""

import json
import shutil

import pytest
from conftest import asked, lines_of, run_here

from al_bench import loop
from al_bench.analysis import published, results
from al_bench.check import command as check
from al_bench.errors import UserError
from al_bench.store import RunStore

OTHER_NET = ("model.options.bn_momentum=0.5", "model.optimizer.lr=0.01")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """A study in which margin chose."""
    place = tmp_path_factory.mktemp("proxy")
    store = run_here(place, "strategy=margin", "study=proxy")
    return place / "proxy", [line["acquired"] for line in lines_of(store.folder)]


def replayed(folder, study, *overrides):
    return run_here(folder, "strategy=replay", f"strategy.study={study}", "strategy.of=margin", *OTHER_NET, *overrides)


def another_order(file):
    """Turn round the order of what was acquired first."""
    first, *rest = map(json.loads, file.read_text().splitlines())
    first["acquired"].reverse()
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (first, *rest)))


def test_the_same_images_are_acquired_with_another_net(tmp_path, proxy):
    study, acquired = proxy
    store = replayed(tmp_path, study)
    lines = lines_of(store.folder)
    assert [line["acquired"] for line in lines] == acquired and len(acquired[0]) == 10
    assert store.folder.parent.name == "replay_margin"
    own = run_here(tmp_path, "strategy=margin", *OTHER_NET)  # it would have chosen others
    assert [line["acquired"] for line in lines_of(own.folder)] != acquired


def test_fewer_rounds_are_replayed_and_an_archive_will_do(tmp_path, proxy):
    study, acquired = proxy
    archive = tmp_path / "published"
    archive.mkdir()
    published.pack(results.find(study), study.parent, archive / published.ARCHIVE)
    store = replayed(tmp_path, archive, "budget.rounds=2")
    assert [line["acquired"] for line in lines_of(store.folder)] == [*acquired[:2], []]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["seed=1"], "no finished run of margin with seed 1 to replay. It has runs of margin; .* the seeds 0."),
        (["strategy.of=entropy"], "no finished run of entropy with seed 0 .*; of entropy with the seeds none."),
        (["strategy.model=vit"], "no finished run of margin with seed 0 and model vit to replay"),
        (["budget.initial=30"], "has another initial set. Set its budget.initial"),
        (["stressor.copies=2"], "has other images"),
        (["budget.rounds=4"], r"acquired \[10, 10, 10\] labels in its rounds, .* ask for \[10, 10, 10, 10\]"),
        (["budget.query=5"], r"acquired \[10, 10, 10\] labels in its rounds, .* ask for \[5, 5, 5\]"),
        (["budget.rounds=null"], "round by round: set budget.rounds"),
        (["strategy.study=/nowhere"], "There is no folder /nowhere"),
    ],
)
def test_what_cannot_be_replayed_is_said(tmp_path, proxy, overrides, words):
    with pytest.raises(UserError, match=words):
        replayed(tmp_path, proxy[0], *overrides)


def test_of_several_models_one_has_to_be_chosen(tmp_path, proxy):
    study, acquired = proxy
    copy = tmp_path / "two"
    for run in results.find(study):
        for name in ("a", "b"):
            there = copy / "study" / "digits" / name / "20+3x10" / "margin" / "seed=0"
            there.mkdir(parents=True)
            for file in published.KEPT:
                (there / file).write_bytes((run.folder / file).read_bytes().replace(b"small_cnn", name.encode()))
    another_order(there / "rounds.jsonl")
    with pytest.raises(UserError, match="is there for several models. Choose one: strategy.model=a or b."):
        replayed(tmp_path, copy / "study")
    store = replayed(tmp_path, copy / "study", "strategy.model=b")
    assert [line["acquired"] for line in lines_of(store.folder)] == [acquired[0][::-1], *acquired[1:]]


def test_the_stressors_have_to_be_the_same_too(tmp_path, proxy):
    noisy = run_here(tmp_path, "strategy=margin", "study=noisy", "stressor.label_noise=0.2")
    with pytest.raises(UserError, match="has other images, another dataset.image_size or other stressors"):
        replayed(tmp_path, noisy.folder.parents[4], "study=clean")
    both = tmp_path / "both"
    shutil.copytree(proxy[0], both / "clean")
    shutil.copytree(noisy.folder.parents[4], both / "noisy")
    store = replayed(tmp_path, both, "stressor.label_noise=0.2")
    assert [line["acquired"] for line in lines_of(store.folder)] == [r["acquired"] for r in lines_of(noisy.folder)]


def test_of_several_runs_that_acquired_others_none_is_guessed(tmp_path, proxy):
    shutil.copytree(proxy[0], tmp_path / "all" / "a")
    run_here(tmp_path / "all", "strategy=margin", "study=b", *OTHER_NET)
    with pytest.raises(UserError, match=r"(?s)is there several times, and each acquired others.*all/a/.*all/b/"):
        replayed(tmp_path, tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "b")
    shutil.copytree(proxy[0], tmp_path / "all" / "b")  # twice the same is no question
    replayed(tmp_path, tmp_path / "all", "budget.rounds=1")


def test_an_oracle_is_not_replayed(tmp_path, proxy):
    study = tmp_path / "oracle"
    shutil.copytree(proxy[0], study)
    (config,) = study.rglob("config.yaml")
    config.write_text(config.read_text().replace("strategy:\n", "strategy:\n  oracle: true\n"))
    with pytest.raises(UserError, match="margin of strategy.study=.* is an oracle: it saw all labels"):
        replayed(tmp_path, study)


def test_a_run_that_was_killed_does_not_go_on_with_another_source(tmp_path, proxy):
    study = tmp_path / "source"
    shutil.copytree(proxy[0], study)
    store = replayed(tmp_path, study)
    (rounds,) = store.folder.glob("rounds.jsonl")
    rounds.write_text(rounds.read_text().splitlines(keepends=True)[0])
    info = json.loads((store.folder / "run.json").read_text())
    (store.folder / "run.json").write_text(json.dumps(info | {"state": "running"}))
    another_order(*study.rglob("rounds.jsonl"))
    with pytest.raises(UserError, match="is not the one that this run began to replay"):
        replayed(tmp_path, study)


@pytest.mark.parametrize("setting", ["candidates=100", "filter=al_bench.strategies.ensembles.progressive_filter"])
def test_settings_of_a_choice_are_refused(tmp_path, proxy, setting):
    with pytest.raises(UserError, match=f"so strategy.{setting.partition('=')[0]} would have no effect"):
        replayed(tmp_path, proxy[0], f"strategy.{setting}")


def test_an_unfinished_run_is_not_replayed_and_what_is_missing_on_the_command_line_is_named(tmp_path, proxy):
    store = RunStore(asked(f"results_dir={tmp_path}", "strategy=margin", "study=killed"))
    with pytest.raises(KeyError), store.at_work():
        raise KeyError
    with pytest.raises(UserError, match="no finished run of margin"):
        replayed(tmp_path, tmp_path / "killed")
    for given, missing in (("of=margin", "study"), ("study=here", "of")):
        with pytest.raises(UserError, match=f"strategy.{missing} is not set. Set it on the command line: strategy."):
            asked("strategy=replay", f"strategy.{given}")


def test_there_is_nothing_to_check():
    with pytest.raises(UserError, match="acquires what a record names. It chooses nothing"):
        check.load("replay", ["study=here", "of=margin"])


def test_the_strategies_own_function_is_never_asked(tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(loop, "acquire", None)
    replayed(tmp_path, proxy[0], "budget.rounds=1")
