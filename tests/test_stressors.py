import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK, asked, lines_of, run_here, seeded
from omegaconf import OmegaConf
from scipy.stats import binomtest, chisquare, norm

from al_bench import plan
from al_bench.analysis import acquired, results
from al_bench.config import BudgetConfig, InitialDraw, StressorConfig
from al_bench.data import pool, sources, stressors
from al_bench.data.oracle import OPEN_SET, Oracle
from al_bench.data.stressors import (
    Split,
    long_tail,
    make_open_set,
    noisy_copies,
    noisy_labels,
    redundant,
    stress,
)
from al_bench.errors import UserError
from al_bench.recipe import run_folder


def split_of(class_sizes, n_test=0):
    """n_test test images first, their classes taking turns, then the training images, shuffled."""
    labels = torch.arange(len(class_sizes)).repeat_interleave(torch.tensor(class_sizes))
    labels = labels[torch.randperm(len(labels), generator=seeded())]
    names = tuple(map(str, range(len(class_sizes))))
    test = torch.arange(n_test)
    return Split(torch.cat([test % len(names), labels]), names, torch.arange(n_test, n_test + len(labels)), test)


def train_counts(split):
    labels = split.labels_N[split.train_idx]
    return labels[labels != OPEN_SET].bincount(minlength=len(split.class_names)).tolist()


@pytest.mark.parametrize(
    "sizes, imbalance, left",
    [
        ([5000] * 10, 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),  # the usual long-tailed CIFAR-10
        ([100, 30, 40], 4, [60, 30, 15]),  # shares 1, 1/2, 1/4; the middle class has 30 for its half
        ([100, 15, 20], 8, [42, 15, 5]),  # 15 / 8^-0.5 * 8^-0.5 comes out below 15
        ([40, 40], 1.6, [40, 25]),
    ],
)
def test_a_long_tail_falls_geometrically_and_leaves_the_test_alone(sizes, imbalance, left):
    before = split_of(sizes, n_test=20)
    one, same, other = [long_tail(before, imbalance, seed) for seed in (0, 0, 1)]
    assert train_counts(one) == train_counts(other) == left
    assert torch.equal(one.train_idx, same.train_idx) and not torch.equal(one.train_idx, other.train_idx)
    assert torch.equal(one.test_idx, before.test_idx) and torch.equal(one.labels_N, before.labels_N)
    assert len(one.train_idx.unique()) == sum(left) and set(one.train_idx.tolist()) < set(before.train_idx.tolist())


def test_the_given_share_of_labels_is_wrong_and_every_other_class_equally_likely():
    before = split_of([3000] * 5, n_test=100)
    noisy = noisy_labels(before, 0.3, seed=0)
    true, given = before.labels_N[before.train_idx], noisy.labels_N[before.train_idx]
    wrong = true != given
    assert binomtest(int(wrong.sum()), len(true), 0.3).pvalue > 1e-3
    pairs = (true * 5 + given)[wrong].bincount(minlength=25).view(5, 5)
    assert pairs.diagonal().sum() == 0 and chisquare(pairs[~torch.eye(5, dtype=torch.bool)]).pvalue > 1e-3
    assert torch.equal(noisy.labels_N[before.test_idx], before.labels_N[before.test_idx])
    assert torch.equal(noisy_labels(before, 0.3, 0).labels_N, noisy.labels_N)
    assert not torch.equal(noisy_labels(before, 0.3, 1).labels_N, noisy.labels_N)
    more = noisy_labels(before, 0.5, 0).labels_N[before.train_idx]
    assert torch.equal(more[wrong], given[wrong])  # a higher rate keeps the errors of a lower one and adds more


def test_an_oracle_that_errs_gives_the_same_answer_twice_and_test_labels_are_right():
    c = asked("stressor=label_noise").dataset
    source = sources.find(c, None, "unused")
    dataset, oracle = sources.load(c, source, 0, StressorConfig(label_noise=0.2))
    answers = oracle.label(dataset.train_idx)
    assert torch.equal(oracle.label(dataset.train_idx[:50]), answers[:50])
    wrong = answers != source.labels_N[dataset.train_idx]
    assert binomtest(int(wrong.sum()), len(answers), 0.2).pvalue > 1e-3
    assert torch.equal(dataset.test_labels_V, source.labels_N[dataset.test_idx])


def test_copies_stand_side_by_side_after_the_test_with_the_label_of_their_image():
    before = Split(torch.tensor([0, 1, 0, 1, 1]), ("a", "b"), torch.tensor([1, 2, 4]), torch.tensor([0, 3]))
    after = redundant(before, None, 2, seed=0)
    assert after.copied_N.tolist() == [0, 3, 1, 1, 2, 2, 4, 4]
    assert after.labels_N.tolist() == [0, 1, 1, 1, 0, 0, 1, 1]
    assert (after.test_idx.tolist(), after.train_idx.tolist()) == ([0, 1], [2, 3, 4, 5, 6, 7])
    originals = acquired.originals(after.train_idx.numpy(), {"dataset": {"n_test": 2}}, {"stressor.copies": 2})
    assert originals.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_number_of_images_is_drawn_by_the_seed_and_each_copied():
    before = split_of([30, 30], n_test=4)
    one, same, other = [redundant(before, 20, 3, seed) for seed in (0, 0, 1)]
    assert torch.equal(one.copied_N, same.copied_N) and not torch.equal(one.copied_N, other.copied_N)
    assert (one.copied_N[4:].bincount()[4:].unique()).tolist() == [0, 3] and len(one.train_idx) == 60
    few = redundant(before, 20, 1, seed=0)  # without copies there are only fewer images, and no new array
    assert few.copied_N is None and torch.equal(few.train_idx, one.copied_N[4:].unique())
    with pytest.raises(UserError, match="stressor.images=61 is more than the 60 training images"):
        redundant(before, 61, 1, seed=0)


@pytest.mark.parametrize("chunk", [1, 5000, 1 << 21])
def test_every_copy_has_gaussian_noise_of_its_own_and_the_test_has_none(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(stressors, "CHUNK", chunk)
    before = split_of([15, 15], n_test=10)
    grey = np.arange(100, 140, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), dtype=np.uint8)
    after = redundant(before, None, 4, seed=0)
    made, checksum = noisy_copies(grey, "grey", after, [0.02, 0.02, 0.06], 0, str(tmp_path))
    assert made.shape == (10 + 120, 8, 8, 3) and (made[:10] == grey[:10]).all()
    noise = made[10:].astype(float) - grey[after.copied_N[10:]]
    assert abs(noise.mean()) < 0.2
    rounding = 1 / 12
    for channel, sd in enumerate((0.02, 0.02, 0.06)):
        assert noise[..., channel].std() == pytest.approx(np.sqrt((255 * sd) ** 2 + rounding), rel=0.03)
    assert len({row.tobytes() for row in made}) == len(made)  # no two copies alike
    again = noisy_copies(grey, "grey", after, [0.02, 0.02, 0.06], 0, str(tmp_path))
    assert isinstance(made, np.memmap) and again[1] == checksum and len(list(tmp_path.glob("*.bin"))) == 1
    assert noisy_copies(grey, "grey", after, [0.02, 0.02, 0.06], 1, str(tmp_path))[1] != checksum
    plain, _ = noisy_copies(grey, "grey", after, [0.0], 0, str(tmp_path))
    assert (plain == grey[after.copied_N]).all()


def test_noise_is_measured_in_the_data_sets_standard_deviation(tmp_path):
    grey = np.full((60, 8, 8, 1), 128, dtype=np.uint8)
    shape, test = (1, 8, 8), torch.arange(10)
    everything = torch.arange(60)
    source = sources.Source(everything % 2, ("a", "b"), shape, test, lambda: sources.Images(grey, "grey", everything))
    c = asked("dataset.std=[0.3]").dataset
    plain, _ = sources.load(c, source, 0)
    dataset, oracle = sources.load(c, source, 0, StressorConfig(copies=4, noise=0.2), str(tmp_path))
    copies = dataset.images[dataset.train_idx]
    assert len(copies) == 200 and copies.float().std() == pytest.approx(255 * 0.3 * 0.2, rel=0.03)
    assert torch.equal(oracle.label(dataset.train_idx), (torch.arange(10, 60) % 2).repeat_interleave(4))
    assert dataset.checksum != plain.checksum and dataset.images.permute(0, 2, 3, 1).is_contiguous()


def test_grey_values_end_at_black_and_white(tmp_path):
    images = np.array([0, 0, 255], dtype=np.uint8)[:, None, None, None].repeat(64, axis=1).repeat(64, axis=2)
    split = Split(torch.tensor([0, 0, 1]), ("a", "b"), torch.tensor([1, 2]), torch.tensor([0]))
    made, _ = noisy_copies(images, "bw", redundant(split, None, 2, 0), [0.1], 0, str(tmp_path))
    dark, light = made[1:3].astype(float), 255 - made[3:].astype(float)
    for half in (dark, light):  # half of a normal distribution: mean sd / sqrt(2 pi)
        assert half.mean() == pytest.approx(25.5 * norm.pdf(0), rel=0.05) and (half == 0).mean() > 0.45


def test_foreign_classes_leave_the_class_list_and_the_test_but_not_the_pool():
    before = Split(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), tuple("abcd"), torch.arange(4), torch.arange(4, 8))
    after = make_open_set(before, 2)
    assert after.class_names == ("a", "b") and after.test_idx.tolist() == [4, 5]
    assert after.train_idx.tolist() == [0, 1, 2, 3] and after.labels_N[:4].tolist() == [0, 1, OPEN_SET, OPEN_SET]
    with pytest.raises(UserError, match="stressor.foreign=3 leaves 1 of 4 classes"):
        make_open_set(before, 3)
    with pytest.raises(UserError, match="leaves no test image"):
        make_open_set(replace(before, test_idx=torch.tensor([6, 7])), 2)


def test_a_foreign_image_costs_a_label_and_is_not_trained_on():
    labels = torch.tensor([0, OPEN_SET, 1, OPEN_SET, 1, 0, OPEN_SET, 0])
    oracle = Oracle(labels, torch.arange(8))
    empty = torch.empty(0, dtype=torch.int64)
    before = pool.Pool(empty, empty, torch.arange(8), empty, empty)
    after = before.acquire(torch.tensor([3, 2, 0]), oracle).acquire(torch.tensor([6, 5]), oracle)
    assert (after.labelled_L.tolist(), after.labels_L.tolist()) == ([2, 0, 5], [1, 0, 0])
    assert (after.open_set_O.tolist(), after.unlabelled_P.tolist()) == ([3, 6], [1, 4, 7])
    assert oracle.n_acquired == 5
    with pytest.raises(UserError, match="not in the pool"):
        after.acquire(torch.tensor([3]), oracle)


def test_foreign_images_in_the_first_sets():
    labels = torch.tensor([0, 1] * 20 + [OPEN_SET] * 60)

    def start(**budget):
        oracle = Oracle(labels, torch.arange(100))
        return pool.start(torch.arange(100), oracle, BudgetConfig(query=1, rounds=0, **budget), seed=0), oracle

    first, oracle = start(initial=30, validation=20)
    assert oracle.n_acquired == 50 and len(first.labelled_L) + len(first.open_set_O) == 30
    assert 0 < len(first.validation_V) < 20 and 0 < len(first.labelled_L) < 30
    assert OPEN_SET not in first.labels_L and OPEN_SET not in first.validation_labels_V
    balanced, _ = start(initial=10, validation=0, start=InitialDraw.balanced)
    assert balanced.labels_L.bincount().tolist() == [5, 5] and not len(balanced.open_set_O)
    with pytest.raises(UserError, match="draws 41 images, and 40 belong to a class"):
        start(initial=41, validation=0, start=InitialDraw.balanced)
    for key, other in (("validation", "initial"), ("initial", "validation")):
        with pytest.raises(
            UserError, match=rf"budget.{key}=1: all of these images are open-set \(stressor.foreign\). Raise it."
        ):
            for seed in range(20):  # 0.4 ^ 20: one of them is foreign
                oracle = Oracle(labels, torch.arange(100))
                budget = BudgetConfig(query=1, rounds=0, **{key: 1, other: 30})
                pool.start(torch.arange(100), oracle, budget, seed)


def test_stressors_combine_in_a_fixed_order():
    s = StressorConfig(imbalance=4, label_noise=0.5, images=60, copies=2, foreign=1)
    before = split_of([40, 40, 40, 40], n_test=8)
    after = stress(s, before, seed=0)
    given, true = after.labels_N[after.train_idx], before.labels_N[after.copied_N[after.train_idx]]
    assert after.class_names == ("0", "1", "2") and len(after.train_idx) == 120 and len(after.test_idx) == 6
    assert ((given == OPEN_SET) == (true == 3)).all() and (given == OPEN_SET).any()  # noise makes none open-set
    assert (true == 0).sum() > (true == 1).sum() > (true == 2).sum() > 0
    own = given != OPEN_SET
    assert 0.3 < (given != true)[own].float().mean() < 0.7 and set(given[own].tolist()) == {0, 1, 2}
    with pytest.raises(UserError, match="leaves class '3' no training image. Lower stressor.imbalance"):
        stress(StressorConfig(imbalance=100), before, seed=0)
    assert stress(StressorConfig(), before, seed=0) == before


NAMED = {
    "none": StressorConfig(),
    "long_tail": StressorConfig(imbalance=100),
    "label_noise": StressorConfig(label_noise=0.2),
    "redundant": StressorConfig(images=4000, copies=5, noise=0.1),
    "foreign": StressorConfig(foreign=2),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_named_stressors_are_what_they_are_called(name):
    assert asked(f"stressor={name}").stressor == NAMED[name]


@pytest.mark.parametrize(
    "overrides, dataset",
    [
        ((), "digits"),
        (("stressor=none",), "digits"),
        (("stressor=long_tail",), "digits+imbalance=100"),
        (("stressor=redundant", "stressor.label_noise=0.05"), "digits+label_noise=0.05+images=4000+copies=5"),
        (("stressor=foreign", "stressor.imbalance=2.5"), "digits+imbalance=2.5+foreign=2"),
    ],
)
def test_a_run_folder_says_what_was_done_to_the_data(overrides, dataset):
    assert run_folder(asked(*overrides)).as_posix() == f"results/default/{dataset}/small_cnn/20+5x20/random/seed=0"


@pytest.mark.parametrize("budget, per_class, final", [("low", 5, 500), ("medium", 25, 2500), ("high", 100, 10_000)])
def test_budgets_of_three_regimes(budget, per_class, final):
    c = asked(f"budget={budget}")
    assert c.budget.initial == c.budget.query == 10 * per_class
    assert c.budget.initial + c.budget.rounds * c.budget.query == final and run_folder(c).parts[-3] == budget


@pytest.mark.parametrize(
    "override", ["imbalance=0.5", "imbalance=inf", "label_noise=1", "label_noise=-0.1", "images=1", "copies=0",
    "noise=-1", "noise=nan", "foreign=-1"],
)  # fmt: skip
def test_a_stressor_that_makes_no_sense_is_named(override):
    with pytest.raises(UserError, match=f"stressor.{override}"):
        asked(f"stressor.{override}")


def test_a_run_from_before_there_were_stressors_is_still_that_run(tmp_path):
    ask = ("trainer.max_steps=2", "budget.rounds=1")
    store = run_here(tmp_path, *ask)
    config = OmegaConf.load(store.folder / "config.yaml")
    del config["stressor"]
    OmegaConf.save(config, store.folder / "config.yaml")
    old = [json.loads(line) for line in store.rounds_path.read_text().splitlines()]
    for record in old:
        del record["n_foreign"], record["metrics"]["worst_class"], record["metrics"]["balanced_accuracy"]
    store.rounds_path.write_text("".join(json.dumps(record) + "\n" for record in old))
    assert store.finished() and store.records()[0].n_foreign == 0
    store.rounds_path.write_text(json.dumps(old[0]) + "\n")
    resumed = run_here(tmp_path, *ask)
    assert [r.n_labelled for r in resumed.records()] == [20, 30]
    config["stressor"] = {"imbalance": 2.0}
    OmegaConf.save(config, store.folder / "config.yaml")
    with pytest.raises(UserError, match=r"stressor.imbalance: there 2.0, asked 1.0\n"):
        store.finished()


@pytest.mark.parametrize(
    "ask",
    [
        ("stressor.imbalance=10", "budget.start=balanced"),
        ("stressor.label_noise=0.2", "stressor.imbalance=5", "strategy=entropy"),
        ("stressor.copies=3", "stressor.images=300", "strategy=coreset", "budget.start=k_means"),  # fixed features
        ("stressor.copies=2", "stressor.images=200", "model.mode=frozen", "trainer.augment=none", "strategy=margin"),
        ("stressor.foreign=4", "strategy=badge", "trainer.early_stopping.patience=3"),
    ],
)
def test_a_run_under_each_stressor_keeps_to_its_plan(ask, tmp_path):
    store = run_here(tmp_path, *ask)
    records, facts, planned = store.records(), store.info()["dataset"], plan.make(store.config)
    assert [r.n_labelled + r.n_foreign for r in records] == planned.labels == [20, 30, 40, 50]
    assert (facts["n_test"], {r.n_val for r in records}) == (planned.tested, {20})
    assert planned.predicted[-2] in (0, facts["n_train"] - 20 - 40)
    assert (records[-1].n_foreign > 0) == ("stressor.foreign=4" in ask)
    assert len(records[-1].metrics["per_class"]) == len(facts["classes"]) == 10 - store.config.stressor.foreign
    if store.config.stressor.images:
        run, n = results.read(store.folder), store.config.stressor.images
        assert facts["n_train"] == n * store.config.stressor.copies
        originals = acquired.originals(np.concatenate(run.acquired), run.info, run.config)
        assert originals.min() >= 0 and originals.max() < n


def test_strategies_of_a_seed_share_what_the_stressors_drew_and_seeds_do_not(tmp_path):
    ask = ("stressor.copies=2", "stressor.images=100", "stressor.label_noise=0.3", "budget.rounds=0")
    one, same, other = [run_here(tmp_path, *ask, *more) for more in ([], ["strategy=random_control"], ["seed=1"])]
    facts = [store.info()["dataset"]["checksum"] for store in (one, same, other)]
    assert facts[0] == facts[1] != facts[2]
    assert lines_of(one.folder)[0]["history"] == lines_of(same.folder)[0]["history"]


def test_a_stressed_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path):
    ask = [*QUICK, "strategy=entropy", "stressor.copies=2", "stressor.images=400", "stressor.label_noise=0.2",
           "stressor.foreign=2", "cache_dir=cache", "budget.rounds=6"]  # fmt: skip
    record = run_folder(asked(*ask, f"results_dir={tmp_path}/killed")) / "rounds.jsonl"
    with subprocess.Popen([sys.executable, "-m", "al_bench", *ask, "results_dir=killed"], cwd=tmp_path) as process:
        deadline = time.time() + 60
        while time.time() < deadline and not (record.exists() and record.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert 1 < record.read_bytes().count(b"\n") < 7
    resumed, whole = (run_here(tmp_path / name, *ask, f"cache_dir={tmp_path}/{name}") for name in ("killed", "whole"))
    assert resumed.folder == record.parent and lines_of(resumed.folder) == lines_of(whole.folder)
    assert "rounds are there already; going on after them" in (said := (resumed.folder / "run.log").read_text())
    assert f"{resumed.records()[-1].n_foreign} more acquired images belong to no class" in said
