"""REFINE's filter and SelectAL: against a slow reference, values computed by hand, and what it needs."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import asked, run_here, seeded

from al_bench import plan
from al_bench.errors import UserError
from al_bench.models.logistic import fit_head
from al_bench.provenance import code_version
from al_bench.strategies import PoolView, Size, Strategy, ensembles, load, needs, needs_of, take, top_k
from al_bench.strategies.diversity import typiclust
from al_bench.strategies.ensembles import REFINE, accuracy_without, cross_validated, progressive_filter, select_al
from al_bench.strategies.example import example_view, only_declared
from al_bench.strategies.gradient import badge
from al_bench.strategies.guard import select
from al_bench.strategies.random import random_sampling

FILTER = "strategy.filter={_target_:al_bench.strategies.ensembles.progressive_filter,depth:2,batches:9}"
SMALLEST, LARGEST = "test_ensembles.smallest", "test_ensembles.largest"


@needs(predictions=False, features=True)
def smallest(view, k, rng):
    return top_k(-view.features_PF[:, 0].double(), k, rng)


@needs(predictions=False, features=True, labelled=True)
def largest(view, k, rng):
    return top_k(view.features_PF[:, 0].double(), k, rng)


@needs(predictions=False)
def first_three(view, k, rng):
    return torch.arange(3)


def on_a_line(values):
    return PoolView(len(values), 2, features_PF=torch.tensor(values, dtype=torch.float32)[:, None])


def test_what_no_strategy_chooses_is_left_out_computed_by_hand():
    view, both = on_a_line([5.0, 1.0, 4.0, 2.0, 9.0, 3.0]), {"ensemble": [SMALLEST, LARGEST], "share": 1.0}
    kept = progressive_filter(view, 2, seeded(), depth=1, batches=2, **both)
    assert kept.tolist() == [0, 1, 3, 4]  # the values 1 and 2, and 5 and 9
    assert progressive_filter(view, 1, seeded(), depth=9, batches=2, **both).tolist() == [1, 4]
    assert progressive_filter(view, 2, seeded(), depth=0, **both).tolist() == [0, 1, 2, 3, 4, 5]


def slow_filter(values, k, rng, *, depth, batches, share, largest):
    """The paper's union of choices, part by part, with lists. The two strategies have five choices a depth each."""
    left = list(range(len(values)))
    for _ in range(depth):
        size, after = max(k, min(largest, int(share * len(left)))), set()
        for sign in (1, -1):
            for _ in range(batches // 2):
                part = sorted(left[i] for i in torch.randperm(len(left), generator=rng)[:size].tolist())
                torch.randperm(len(part), generator=rng)  # top_k draws the order of ties
                after |= set(sorted(part, key=lambda i: sign * values[i])[:k])
        left = sorted(after)
    return left


@pytest.mark.parametrize("depth, share, largest", [(1, 0.4, 5000), (3, 0.4, 5000), (2, 0.9, 15), (4, 0.01, 9)])
def test_it_agrees_with_a_slow_reference(depth, share, largest):
    values = torch.randn(80, generator=seeded(3)).tolist()
    settings = {"depth": depth, "batches": 10, "share": share, "largest": largest}
    found = progressive_filter(on_a_line(values), 4, seeded(7), ensemble=[SMALLEST, LARGEST], **settings)
    assert found.tolist() == slow_filter(values, 4, seeded(7), **settings)
    assert len(found) >= 4


def test_images_without_value_for_any_strategy_vanish_with_the_depth():
    values = torch.randn(400, generator=seeded(1))
    in_the_middle = values.abs().argsort()[:200]
    spread = [
        progressive_filter(on_a_line(values.tolist()), 10, seeded(2), depth=depth, ensemble=[SMALLEST, LARGEST])
        for depth in (1, 3)
    ]
    assert not torch.isin(torch.cat(spread), in_the_middle).any()
    assert len(spread[1]) < len(spread[0]) < 200


def test_needs_are_the_union_of_the_strategies():
    default, own = needs_of(progressive_filter), load(settings_of(ensemble=[SMALLEST, LARGEST])).needs
    assert (default.features, default.embeddings, default.head, default.held_out, default.labelled) == (True,) * 5
    assert (own.features, own.labelled, own.predictions, own.embeddings, own.passes) == (True, True, True, False, False)
    size = Size(P=9000, L=50, S=1, C=10, D=64, F=64, k=100)
    most = max(m.memory(replace(size, P=5000)) for m in map(needs_of, REFINE) if m.memory)
    assert default.memory(size) == most + 4 * 5000 * (10 + 64 + 64)


def settings_of(target="al_bench.strategies.uncertainty.margin", **options):
    filtered = {"_target_": "al_bench.strategies.ensembles.progressive_filter"} | options
    return {"name": "margin_refined", "_target_": target, "filter": filtered}


def test_any_strategy_chooses_behind_the_filter_from_what_it_keeps():
    options = {"depth": 2, "batches": 9}
    strategy, view = load(settings_of(**options)), example_view(Size(200, 20, 1, 3, 4, 4, 5), 0)
    kept = progressive_filter(view, 5, seeded(4), **options)
    chosen = select(strategy, only_declared(view, strategy.needs), 5, seeded(4), 0)
    alone = load(settings_of() | {"filter": None})
    assert set(chosen.tolist()) == set(kept[select(alone, take(view, kept), 5, seeded(), 0)].tolist())
    assert len(kept) < 200


def test_refine_is_uncertainty_herding_behind_the_filter():
    c = asked("strategy=refine", "strategy.filter.depth=1")
    bound = load(c.strategy).function.keywords
    assert bound["choose"].func.__name__ == "uncertainty_herding" and bound["keep"].keywords["depth"] == 1
    modules = {f"al_bench.strategies.{name}" for name in ("ensembles", "coverage", "gradient", "hybrid", "random")}
    assert modules <= code_version(c.strategy)["modules"].keys()
    behind = code_version(asked("strategy=random", FILTER).strategy)
    assert modules <= behind["modules"].keys()


def test_a_run_with_a_filter(tmp_path):
    settings = ("strategy=random", FILTER, "strategy.name=filtered", "strategy.candidates=200")
    records = run_here(tmp_path, *settings).records()
    assert [r.n_candidates for r in records] == [200, 200, 200, 0] and all(len(r.acquired) == 10 for r in records[:3])
    made = plan.make(asked(*settings, "budget.rounds=1"))
    assert made.predicted == [200, 0]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"depth": -1}, "depth has to be 0 or more, batches 9 or more, and share above 0"),
        ({"batches": 8}, "depth has to be 0 or more, batches 9 or more, and share above 0"),
        ({"share": 0}, "depth has to be 0 or more, batches 9 or more, and share above 0"),
        ({"ensemble": []}, "strategy.filter.ensemble=[]: name one strategy or more"),
        ({"ensemble": ["no.such"]}, "strategy.filter.ensemble=no.such cannot be loaded"),
        ({"_target_": "test_ensembles.first_three"}, "the filter kept 3 images, and 5 are to be chosen"),
        ({"_target_": "no.such"}, "strategy margin_refined, filter: no.such cannot be loaded"),
        ({"size": 2}, "strategy margin_refined, filter: al_bench.strategies.ensembles.progressive_filter cannot"),
    ],
)
def test_a_mistake_in_a_filter_gets_a_sentence(change, said):
    with pytest.raises(UserError) as error:
        strategy = load(settings_of(**change))
        select(strategy, example_view(Size(30, 9, 1, 3, 4, 4, 5), 0), 5, seeded(), 0)
    assert said in str(error.value)


def test_the_line_of_a_users_strategy_is_told_behind_a_filter():
    strategy = load(settings_of("test_ensembles.first_three", batches=9, depth=1))
    assert isinstance(strategy, Strategy)
    with pytest.raises(
        UserError, match=r"it has to return an int64 tensor of 5 positions, but returned torch.int64 \[3\]"
    ):
        select(strategy, example_view(Size(30, 9, 1, 3, 4, 4, 5), 0), 5, seeded(), 0)


# -- SelectAL --


def labelled_view(emb_LD, labels_L):
    view = example_view(Size(30, len(labels_L), 1, 3, emb_LD.shape[1], emb_LD.shape[1], 4), 0)
    return replace(view, labelled_emb_LD=emb_LD, labelled_labels_L=labels_L, labelled_features_LF=emb_LD)


@needs(predictions=False, features=True)
def takes_zero(view, k, rng):
    return torch.arange(k)


@needs(predictions=False, features=True)
def takes_last(view, k, rng):
    return torch.arange(view.n_pool - k, view.n_pool)


CHOOSERS = {"low": "test_ensembles.takes_zero", "high": "test_ensembles.takes_last"}


@pytest.mark.parametrize(
    "accuracies, first", [([0.2, 0.5, 0.6], 0), ([0.7, 0.5, 0.4], 26), ([None, 0.1, 0.1], 0), ([0.9, 0.9, None], 0)]
)
def test_the_strategy_whose_images_are_missed_most_chooses(monkeypatch, accuracies, first):
    left = iter(accuracies)
    monkeypatch.setattr(ensembles, "accuracy_without", lambda *_: next(left))
    assert select_al(example_view(Size(30, 9, 1, 3, 4, 4, 4), 0), 4, seeded(), **CHOOSERS)[0] == first


def test_ties_between_the_strategies_are_drawn(monkeypatch):
    monkeypatch.setattr(ensembles, "accuracy_without", lambda *_: 0.5)
    view = example_view(Size(30, 9, 1, 3, 4, 4, 4), 0)
    firsts = [select_al(view, 4, seeded(i), **CHOOSERS).tolist() for i in range(60)]
    n_low, n_high = firsts.count([0, 1, 2, 3]), firsts.count([26, 27, 28, 29])
    assert min(n_low, n_high, 60 - n_low - n_high) >= 8  # 20 of each are expected


def planted(n, seed):
    """A labelled set of four groups that overlap, and the head that is fit to it."""
    labels_L = torch.arange(n) % 4
    emb_LD = torch.eye(4, 16)[labels_L] + 0.5 * torch.randn(n, 16, generator=seeded(seed))
    weight_CD, bias_C = fit_head(4, None, emb_LD, labels_L)
    log_probs_LC = (emb_LD @ weight_CD.T + bias_C).log_softmax(1)
    return PoolView(
        n, 4, log_probs_LC[:, None], emb_LD, emb_LD, labels_L, log_probs_LC, emb_LD, emb_LD, weight_CD, bias_C,
        refit_head=partial(fit_head, 4, None),
    )  # fmt: skip


def test_a_strategy_for_open_set_pools_may_be_one_of_the_two():
    view = planted(40, 0)
    found = select_al(view, 3, seeded(), low="al_bench.strategies.open_set.known_margin")
    assert len(found.unique()) == 3


@pytest.mark.parametrize("n", [40, 400])
def test_on_planted_groups_the_images_of_badge_are_missed_least(n):
    """A negative result, which the docstring tells: BADGE removes what is hard, and the rest is easy to validate."""
    strategies = typiclust, random_sampling, badge
    accuracy_ST = [[accuracy_without(planted(n, i), s, 0.5, 10, seeded(i)) for s in strategies] for i in range(6)]
    low, chance, high = torch.tensor(accuracy_ST).mean(0)
    assert high > 0.1 + max(low, chance)


def test_equally_many_of_each_class_are_removed_and_the_rest_is_validated(monkeypatch):
    labels_L, rest = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0, 1, 0]), []
    monkeypatch.setattr(ensembles, "cross_validated", lambda view, rows, *_: rest.append(rows.tolist()) or 0.5)
    view = labelled_view(torch.randn(10, 4, generator=seeded()), labels_L)
    for removed in (0.3, 0.5, 0.9):
        accuracy_without(view, takes_zero, removed, 10, seeded())
    # One of each class, one of each class (5 of 10 shared by three), and two of each: class 2 has no more.
    assert rest == [[2, 4, 5, 6, 7, 8, 9], [2, 4, 5, 6, 7, 8, 9], [5, 7, 8, 9]]
    assert accuracy_without(labelled_view(torch.randn(3, 4), torch.arange(3)), takes_zero, 0.5, 10, seeded()) is None
    assert accuracy_without(labelled_view(torch.randn(0, 4), labels_L[:0]), takes_zero, 0.5, 10, seeded()) is None


def test_cross_validation_agrees_with_a_slow_reference():
    view = labelled_view(torch.randn(17, 2, generator=seeded(4)), torch.arange(17) % 3)
    rows = torch.tensor([0, 2, 3, 5, 7, 8, 11, 12, 13, 16])
    fold = (torch.randperm(10, generator=seeded(9)) % 4).tolist()
    hits = 0
    for i, row in enumerate(rows.tolist()):
        others = [r for j, r in enumerate(rows.tolist()) if fold[j] != fold[i]]
        x = torch.cat([view.labelled_emb_LD[others].double(), torch.ones(len(others), 1).double()], 1)
        y = torch.eye(3).double()[view.labelled_labels_L[others]]
        weight = torch.linalg.inv(x.T @ x + 0.1 * torch.eye(3).double()) @ x.T @ y
        predicted = (torch.cat([view.labelled_emb_LD[row].double(), torch.ones(1).double()]) @ weight).argmax()
        hits += int(predicted == view.labelled_labels_L[row])
    assert cross_validated(view, rows, 4, seeded(9)) == pytest.approx(hits / 10)


def test_it_needs_features_that_stay_the_same(tmp_path):
    with pytest.raises(UserError, match="strategy select_al trains last layers on features that stay the same: set"):
        run_here(tmp_path, "strategy=select_al")
    records = run_here(tmp_path, "strategy=select_al", "model=pca", "budget.rounds=2").records()
    assert [len(r.acquired) for r in records] == [10, 10, 0]
    assert needs_of(load(asked("strategy=select_al").strategy).function).refits


@pytest.mark.parametrize("options", [{"removed": 0}, {"removed": 1}, {"folds": 1}])
def test_a_bad_option_of_select_al_is_refused(options):
    with pytest.raises(ValueError, match="removed=.* has to be above 0 and below 1, and folds=.* at least 2"):
        select_al(example_view(Size(30, 9, 1, 3, 4, 4, 4), 0), 4, seeded(), **options)
