"""Round 0 is trained once a seed: what is shared, what is not, and what the records say of it."""

import json
import logging
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from conftest import command, lines_of, run_here
from test_learner import configured, learner, same, setting

from al_bench.analysis import figures, results
from al_bench.analysis.compare import comparisons
from al_bench.analysis.metric import ACCURACY
from al_bench.data.cache import DAY
from al_bench.models import first_fit, nets
from al_bench.models.first_fit import FirstFit
from al_bench.models.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")

STOPPING = ("trainer.max_steps=null", "trainer.max_epochs=6", "trainer.early_stopping.patience=2")
TIMM = ("model=timm", "model.name=test_resnet", "model.pretrained=false")
FROZEN = (*TIMM, "model.mode=frozen")
PARTS = {"fit", "evaluate", "committee", "predict", "select"}
STARTED = {
    "cpu": "x86", "device": "cpu", "threads": 1, "precision": "32-true", "python": "3.13",
    "versions": {"torch": "2", "timm": "1"}, "host": "here", "time": "now",
}  # fmt: skip
TRAINED = "a/digits/small_cnn/b/random/seed=0"


def files_in(cache):
    return sorted((cache / first_fit.FOLDER).glob("*"))


def raw(store):
    return [json.loads(line) for line in store.rounds_path.read_text().splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        (),
        STOPPING,
        ("trainer.start=best", "model.optimizer.lr=0.02"),
        ("trainer.start=previous",),
        (*FROZEN, "model.dropout=0.3"),
        ("trainer.augment=flip_crop", "trainer.test_passes=2"),
        ("stressor.label_noise=0.2", "stressor.foreign=2"),
    ],
)
def test_the_second_strategy_takes_the_first_fit_and_has_the_records_of_a_run_that_trains_it(tmp_path, options):
    shared = f"cache_dir={tmp_path}/shared"
    first = run_here(tmp_path / "a", *options, shared, "strategy=random")
    second = run_here(tmp_path / "a", *options, shared, "strategy=bald", "strategy.passes=3")
    alone = run_here(tmp_path / "b", *options, "strategy=bald", "strategy.passes=3")
    assert lines_of(second.folder) == lines_of(alone.folder)
    assert second.records() == [replace(r, seconds=s.seconds, peak_memory=s.peak_memory)
                                for r, s in zip(alone.records(), second.records(), strict=True)]  # fmt: skip
    trained_by = str(first.folder.relative_to(tmp_path / "a"))
    assert [r["fit_from"] for r in raw(second)] == [trained_by, None, None, None]
    assert {r["fit_from"] for r in raw(first) + raw(alone)} == {None}
    assert [r["seconds"].keys() - PARTS for r in raw(second)] == [{"shared_fit"}, set(), set(), set()]
    assert all(r["seconds"].keys() == PARTS for r in raw(first) + raw(alone))
    assert raw(second)[0]["seconds"]["shared_fit"] <= raw(first)[0]["seconds"]["fit"]
    assert len(files_in(tmp_path / "shared")) == 1
    assert f"Round 0 takes its weights from the cache: {trained_by}" in (second.folder / "run.log").read_text()


# -- what is shared --


@pytest.fixture
def quick_fit(monkeypatch):
    """A fit that takes no time. The fixture's value: one entry a fit."""
    fits = []

    def fit(learner, net, pool, round, member=0):
        fits.append(round)
        torch.nn.init.constant_(net.net.get_classifier().bias, 0.5)
        net.history.append({"loss": 0.1, "accuracy": 1 / 3})
        return 1, 5

    monkeypatch.setattr(Learner, "fit", fit)
    return fits


def fit_one(cache, *overrides, data=None, info=None, run=TRAINED, before=None, round=0):
    """(the net, the Fit) of a run with this cache."""
    c = configured(f"cache_dir={cache}", *overrides)
    dataset, pool = data or setting()
    info = {"id": run, "starts": [STARTED | (info or {})]}
    ours = learner(c, dataset)
    net = ours.build(round)
    if before:
        before(net)
    return net, FirstFit(c, ours, run, info).fit(net, pool, round)


def test_a_fit_is_taken_whole(tmp_path, quick_fit):
    net, fit = fit_one(tmp_path)
    other, taken = fit_one(tmp_path, "strategy=entropy", run="another")
    assert quick_fit == [0] and same(net, other) and net.history == other.history
    assert (fit.epochs, fit.steps, fit.run, fit.seconds) == (1, 5, None, {})
    assert (taken.epochs, taken.steps, taken.run) == (1, 5, TRAINED) and taken.seconds.keys() == {"shared_fit"}
    assert fit_one(tmp_path)[1].run is None  # a run that was interrupted after its fit takes its own


def changed(of=lambda dataset, pool: (dataset, pool), **settings):
    return lambda: of(*setting(**settings))


def with_pixel(row):
    def other(dataset, pool):
        images = dataset.images.clone()
        images[row, 0, 0, 0] ^= 1
        return replace(dataset, images=images), pool

    return changed(other, n_validation=10)


def with_labels(name):
    def other(dataset, pool):
        labels = getattr(pool, name).clone()
        labels[0] = 1 - labels[0]
        return dataset, replace(pool, **{name: labels})

    return changed(other, n_validation=10)


def reordered(dataset, pool):
    return dataset, replace(pool, labelled_L=pool.labelled_L.flip(0), labels_L=pool.labels_L.flip(0))


STOPS = ("trainer.early_stopping.patience=2", "budget.validation=10")
DATA = changed(n_validation=10)
SHARED = {
    "strategy": {"overrides": ("strategy=badge", "strategy.candidates=500")},
    "folders": {"overrides": ("results_dir=elsewhere", "study=mine")},
    "display": {"overrides": ("logger=csv", "trainer.progress=true", "trainer.num_workers=2")},
    "later rounds": {"overrides": ("budget.rounds=1", "budget.query=7", "trainer.later_max_epochs=1")},
    "start": {"overrides": ("trainer.start=previous",)},
    "test": {"overrides": ("trainer.test_passes=2",)},
    "accelerator": {"overrides": ("trainer.accelerator=auto",)},
    "unlabelled image": {"data": with_pixel(30)},
    "test image": {"data": with_pixel(55)},
    "validation label": {"data": with_labels("validation_labels_V")},
    "host": {"info": {"host": "there", "time": "later"}},
}
OTHER = {
    "seed": {"overrides": ("seed=1",)},
    "learning rate": {"overrides": ("model.optimizer.lr=0.1",)},
    "optimizer": {"overrides": ("model.optimizer._target_=torch.optim.SGD",)},
    "batch norm": {"overrides": ("model.options.bn_momentum=0.3",)},
    "dropout": {"always": TIMM, "overrides": ("model.dropout=0.1",)},
    "epochs": {"overrides": ("trainer.max_epochs=3",)},
    "steps": {"overrides": ("trainer.max_epochs=null", "trainer.max_steps=6")},
    "steps an epoch": {"overrides": ("trainer.steps_per_epoch=3",)},
    "batch size": {"overrides": ("trainer.batch_size=4",)},
    "predicted batch": {"overrides": ("trainer.predict_batch_size=4",)},
    "schedule": {"overrides": ("trainer.schedule=cosine",)},
    "augmentation": {"overrides": ("trainer.augment=flip",)},
    "dropout masks": {"overrides": ("trainer.dropout_masks=bytes",)},
    "deterministic": {"overrides": ("trainer.deterministic=true",)},
    "patience": {"overrides": STOPS},
    "labelled image": {"data": with_pixel(3)},
    "label": {"data": with_labels("labels_L")},
    "order": {"data": changed(reordered, n_validation=10)},
    "fewer labels": {"data": changed(n_labelled=19)},
    "mean": {"data": changed(lambda dataset, pool: (replace(dataset, mean=(0.3,)), pool))},
    "std": {"data": changed(lambda dataset, pool: (replace(dataset, std=(0.4,)), pool))},
    "classes": {"data": changed(lambda dataset, pool: (replace(dataset, class_names=("a", "b", "c")), pool))},
    "first weights": {"before": lambda net: net.net.get_classifier().weight.data[0].neg_()},
    "cpu": {"info": {"cpu": "arm"}},
    "device": {"info": {"device": "NVIDIA H200"}},
    "threads": {"info": {"threads": 2}},
    "precision": {"info": {"precision": "bf16-mixed"}},
    "python": {"info": {"python": "3.12"}},
    "torch": {"info": {"versions": {"torch": "3", "timm": "1"}}},
    "timm": {"info": {"versions": {"torch": "2", "timm": "2"}}},
}
IF_STOPPED_EARLY = {
    "monitor": {"overrides": ("trainer.early_stopping.monitor=accuracy",)},
    "least improvement": {"overrides": ("trainer.early_stopping.min_delta=0.1",)},
    "validation label": {"data": with_labels("validation_labels_V")},
    "validation image": {"data": with_pixel(45)},
}


def n_fits(cache, fits, always=(), overrides=(), data=DATA, **rest):
    """How many of two runs train: a first one, and one with something else."""
    fit_one(cache, *always, data=DATA())
    fit_one(cache, *always, *overrides, data=data(), **rest)
    return len(fits)


@pytest.mark.parametrize("other", SHARED.values(), ids=SHARED)
def test_what_changes_nothing_in_a_fit_keeps_no_run_from_taking_it(tmp_path, quick_fit, other):
    assert n_fits(tmp_path, quick_fit, **other) == 1


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
def test_whatever_changes_a_fit_is_trained_anew(tmp_path, quick_fit, other):
    assert n_fits(tmp_path, quick_fit, **other) == 2 and len(files_in(tmp_path)) == 2


@pytest.mark.parametrize("other", IF_STOPPED_EARLY.values(), ids=IF_STOPPED_EARLY)
def test_a_fit_that_stops_early_depends_on_validation_too(tmp_path, quick_fit, other):
    assert n_fits(tmp_path, quick_fit, STOPS) == 1
    assert n_fits(tmp_path, quick_fit, STOPS, **other) == 2


def test_a_fit_of_another_seed_is_another_one_even_from_equal_weights(tmp_path, quick_fit):
    for seed in (0, 1):
        fit_one(tmp_path, f"seed={seed}", before=lambda net: [torch.nn.init.ones_(p) for p in net.parameters()])
    assert len(quick_fit) == 2


def test_other_code_of_al_bench_trains_anew(tmp_path, quick_fit, monkeypatch):
    fit_one(tmp_path)
    monkeypatch.setattr(first_fit, "own_code", lambda: "changed")
    fit_one(tmp_path)
    assert len(quick_fit) == 2


def test_weights_of_a_file_are_known_by_their_content(tmp_path, quick_fit):
    net = learner(configured(*TIMM), setting()[0]).build(0)
    for name in ("one", "moved", "other"):
        state = {k: v + (name == "other") for k, v in net.net.net.state_dict().items()}
        torch.save(state, tmp_path / f"{name}.pth")
        fit_one(tmp_path, *TIMM, f"model.weights={tmp_path}/{name}.pth")
    assert len(quick_fit) == 2


def own_net(c, dataset):
    return nets.small_cnn(c, dataset)


def own_optimizer(parameters, lr, **_):
    return torch.optim.SGD(parameters, lr)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model._target_=test_first_fit.own_net", "model.name=mine"),
        ("model.optimizer._target_=test_first_fit.own_optimizer",),
        ("budget=full",),
        (*FROZEN, "model.head=logistic"),
    ],
    ids=["own net", "own optimizer", "full data", "logistic head"],
)
def test_these_fits_are_not_shared(overrides):
    assert not first_fit.is_shared(configured(*overrides)) and first_fit.is_shared(configured())


def test_a_net_of_ones_own_is_trained_in_each_run(tmp_path):
    own = ("model._target_=test_first_fit.own_net", "model.name=mine", f"cache_dir={tmp_path}/shared")
    stores = [run_here(tmp_path, *own, "budget.rounds=0", f"strategy={name}") for name in ("random", "margin")]
    assert [r["fit_from"] for store in stores for r in raw(store)] == [None, None]
    assert not files_in(tmp_path / "shared")


def test_later_rounds_are_not_shared(tmp_path, quick_fit):
    for run in ("a", "b"):
        assert fit_one(tmp_path, round=1, run=run)[1].run is None
    assert quick_fit == [1, 1] and not files_in(tmp_path)


# -- the file --


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-7], lambda b: b[:40], lambda b: b"", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]]
)
def test_a_damaged_file_is_said_and_trained_anew(tmp_path, quick_fit, caplog, damage):
    net, _ = fit_one(tmp_path)
    (file,) = files_in(tmp_path)
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    with caplog.at_level(logging.WARNING):
        other, fit = fit_one(tmp_path, run="another")
    assert quick_fit == [0, 0] and fit.run is None and same(net, other)
    assert f"The first fit in {file} was truncated or altered; it is trained again." in caplog.text
    assert fit_one(tmp_path, run="a third")[1].run == "another"


def test_of_two_runs_that_train_at_once_the_first_to_end_is_kept(tmp_path, quick_fit, monkeypatch):
    fit_one(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(first_fit, "read", lambda path: None)  # as if it had begun before the file was there
        assert fit_one(tmp_path, run="slower")[1].run is None
    assert fit_one(tmp_path, run="a third")[1].run == TRAINED


@pytest.mark.parametrize("place", ["a file", "a full disk"])
def test_a_cache_that_takes_no_file_costs_no_run(tmp_path, quick_fit, caplog, place, request):
    cache = tmp_path / "cache"
    if place == "a file":
        cache.write_text("")
    else:
        cache = request.getfixturevalue("tiny_disk")
    with caplog.at_level(logging.WARNING):
        assert fit_one(cache)[1].steps == 5
    assert "The first fit could not be kept in the cache" in caplog.text
    assert place == "a file" or not files_in(cache)


KILLED = """
import os, signal
from al_bench import cli, files
fsync = os.fsync
def dies(descriptor):
    if ".fit." in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
files.os.fsync = dies
cli.main()
"""


def test_a_run_killed_while_it_writes_the_file_ends_as_if_it_had_not_been(tmp_path):
    ask = ("trainer.max_steps=5", "budget.rounds=1", f"cache_dir={tmp_path}/cache")
    (tmp_path / "killed.py").write_text(KILLED)
    died = command(tmp_path, *ask, "results_dir=killed", script=tmp_path / "killed.py")
    assert died.returncode == -signal.SIGKILL, died.stderr
    (part,) = files_in(tmp_path / "cache")
    assert part.suffix == ".part"
    old = time.time() - 2 * DAY
    os.utime(part, (old, old))
    assert command(tmp_path, *ask, "results_dir=killed").returncode == 0
    (file,) = files_in(tmp_path / "cache")  # the leftover is gone
    assert file.suffix == ".fit"
    assert command(tmp_path, *ask, "results_dir=whole", "cache_dir=other").returncode == 0
    killed, whole = (next((tmp_path / name).rglob("rounds.jsonl")).parent for name in ("killed", "whole"))
    assert lines_of(killed) == lines_of(whole)


# -- costs --


def test_all_strategies_of_a_seed_cost_the_same_first_fit(tmp_path):
    options = (f"cache_dir={tmp_path}/shared", "budget.rounds=1", "trainer.max_steps=60")
    stores = {name: run_here(tmp_path, *options, f"strategy={name}") for name in ("random", "margin", "entropy")}
    runs = {run.strategy: run for run in results.find(tmp_path / "default")}
    seconds = {name: raw(store)[0]["seconds"] for name, store in stores.items()}
    for name in ("margin", "entropy"):
        assert runs[name].fit_from == "default/digits/small_cnn/20+1x10/random/seed=0"
        assert runs[name].seconds["fit"][0] == seconds[name]["fit"] + seconds[name]["shared_fit"]
        assert seconds[name]["fit"] < seconds[name]["shared_fit"] <= seconds["random"]["fit"]
        assert set(runs[name].seconds) == PARTS
    assert runs["random"].fit_from is None and runs["random"].seconds["fit"][0] == seconds["random"]["fit"]
    (c,) = comparisons([*runs.values()], ACCURACY, None)
    assert figures.cost(c).caption.endswith("2 runs took their first fit from another run; it counts in full in each.")
