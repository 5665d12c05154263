"""Rules on what a choice must not depend on: the order of the pool, passes and labelled images, and the class numbers.

A strategy that does not sample must choose the same images before and after a change. A strategy that samples must
choose each image equally often, so its choices are counted.
P pool images, S passes or members, C classes, L labelled, N choices.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from al_bench.check.inputs import Case, cases, large_case
from al_bench.check.trial import Broken, choose
from al_bench.strategies import PoolView, StrategyFunction, needs_of, take

CHOICES = 24  # draws from each view of a strategy that samples
Views = list[tuple[PoolView, Tensor | None]]  # a view and the positions of its images in the first; None: the same
PARTLY_DEGENERATE = ("a probability of 0", "every third embedding 0")  # without ties among the other images


def order_does_not_matter(strategy: StrategyFunction, S: int) -> None:
    """Permuting the pool permutes the picks."""
    degenerate = [cases(S)[1].changed(kind=kind) for kind in PARTLY_DEGENERATE]
    expect_same_choices(strategy, [*cases(S), large_case(S), *degenerate], pool_reordered)


def order_without_labels(strategy: StrategyFunction, S: int) -> None:
    """Permuting the pool permutes the picks, with no labelled image too."""
    unlabelled = [case.changed(L=0) for case in cases(S)[1:]]
    for case in unlabelled:
        choose(strategy, case, may_refuse=True)
    expect_same_choices(strategy, unlabelled, pool_reordered)


def order_of_passes(strategy: StrategyFunction, S: int) -> str | None:
    """Permuting several passes, or giving each twice, does not change the picks."""

    def permuted(view: PoolView) -> Views:
        plain_S, backwards_S, shuffled_S = orders_of(view.log_probs_PSC.shape[1])
        orders = (plain_S, backwards_S, shuffled_S.repeat(2))
        return [(replace(view, log_probs_PSC=view.log_probs_PSC[:, order_S]), None) for order_S in orders]

    if not needs_of(strategy).predictions:
        return "not tried: the strategy uses no predictions"
    for case in cases(max(S, 4)):
        choose(strategy, case, may_refuse=True)
    expect_same_choices(strategy, cases(max(S, 4)), permuted)
    return None


def numbers_of_classes(strategy: StrategyFunction, S: int) -> None:
    """Numbering the classes in another order does not change the picks."""

    def rotated(view: PoolView) -> Views:
        n = view.n_classes
        return [(renumbered(view, torch.arange(n).roll(shift)), None) for shift in range(min(3, n))]

    expect_same_choices(strategy, [*cases(S), cases(S)[2].changed(kind="one labelled class")], rotated)


def order_of_labels(strategy: StrategyFunction, S: int) -> None:
    """Permuting the labelled images does not change the picks."""

    def permuted(view: PoolView) -> Views:
        return [(labelled_reordered(view, order_L), None) for order_L in orders_of(len(view.labelled_labels_L))]

    expect_same_choices(strategy, cases(S), permuted)


def pool_reordered(view: PoolView) -> Views:
    return [(take(view, order_P), order_P) for order_P in orders_of(view.n_pool)]


def orders_of(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return three orders of n items: unchanged, reversed, shuffled."""
    return torch.arange(n), torch.arange(n).flip(0), torch.randperm(n, generator=torch.Generator().manual_seed(0))


def renumbered(view: PoolView, order_C: Tensor) -> PoolView:
    """Renumber the classes: class order_C[0] becomes class 0, order_C[1] becomes class 1, and so on."""
    changed = {
        "log_probs_PSC": lambda values: values[:, :, order_C],
        **dict.fromkeys(("labelled_labels_L", "truth_P", "test_labels_V"), lambda values: order_C.argsort()[values]),
        "labelled_log_probs_LC": lambda values: values[:, order_C],
        "held_out_log_probs_LC": lambda values: values[:, order_C],
        "head_weight_CD": lambda values: values[order_C],
        "head_bias_C": lambda values: values[order_C],
    }
    return with_changes(view, changed)


def labelled_reordered(view: PoolView, order_L: Tensor) -> PoolView:
    names = (
        "labelled_emb_LD", "labelled_labels_L", "labelled_log_probs_LC", "labelled_features_LF",
        "held_out_log_probs_LC",
    )  # fmt: skip
    return with_changes(view, {name: lambda values: values[order_L] for name in names})


def with_changes(view: PoolView, changes: dict[str, Callable[[Tensor], Tensor]]) -> PoolView:
    """Apply a function to each named field. Fields that are None stay None."""
    there = {name: change for name, change in changes.items() if getattr(view, name) is not None}
    return replace(view, **{name: change(getattr(view, name)) for name, change in there.items()})


def expect_same_choices(strategy: StrategyFunction, some: list[Case], views_of: Callable[[PoolView], Views]) -> None:
    """Raise Broken unless the strategy chooses the same from all views of each case.

    Where the strategy samples, count its choices, in one case only: counting takes long.
    """
    sampled = []
    for case in some:
        views = views_of(case.view(needs_of(strategy)))
        if not chooses_the_same(strategy, case, views) and case.size.P < 100:  # counting in a large pool takes long
            sampled.append((case, views))
    if sampled:
        expect_same_counts(strategy, *sampled[:2][-1])


def chooses_the_same(strategy: StrategyFunction, case: Case, views: Views) -> bool:
    """Return False if the choice from some view depends on the seed.

    Otherwise return True, or raise Broken if the choices from the views differ.
    """
    found: list[list[int]] = []
    for i, view in enumerate(views):
        first, *others = choices(strategy, case, view, range(3 * i, 3 * i + 3))
        if any(other != first for other in others):
            return False  # the strategy samples, or scores are tied
        found.append(first)
    for other in found:
        if other != found[0]:
            raise Broken(f"It chose {found[0]}, and {other} after the change. Input: {case}, k={case.size.k}.")
    return True


def expect_same_counts(strategy: StrategyFunction, case: Case, views: Views) -> None:
    """Raise Broken if some images are chosen more often after the change than before."""
    one_NP, other_NP = (
        choice_matrix(choices(strategy, case, view, range(seed, seed + CHOICES)), case.size.P)
        for seed, view in zip((100, 200), views, strict=False)
    )
    if differ(one_NP, other_NP):
        counts = " and ".join(str(some_NP.sum(0).long().tolist()) for some_NP in (one_NP, other_NP))
        raise Broken(
            f"In {CHOICES} draws each it chose the images {counts} times, before and after the change. "
            f"Input: {case}, k={case.size.k}."
        )


def choices(
    strategy: StrategyFunction, case: Case, view: tuple[PoolView, Tensor | None], streams: range
) -> list[list[int]]:
    """Return one choice per stream, as positions in the first view."""
    shown, order_P = view
    picks = (choose(strategy, case, stream, shown) for stream in streams)
    return [(positions if order_P is None else order_P[positions]).tolist() for positions in picks]


def choice_matrix(choices: list[list[int]], n_pool: int) -> Tensor:
    """Return a matrix [N, P] with 1 where choice n holds image p, else 0."""
    return torch.zeros(len(choices), n_pool).scatter_(1, torch.tensor(choices), 1)


def differ(one_NP: Tensor, other_NP: Tensor) -> bool:
    """Test whether two samples of choices come from different strategies. One test in a million is a false alarm.

    This is a permutation test, because the images of one choice may depend on each other, while the choices do not. The
    statistic is the sum of squared differences of the counts. It is compared with its values when the choices are
    dealt to the two sides at random. A gamma distribution of the same mean and variance stands for these values,
    because a thousand deals cannot show an event that rare.
    """
    both_NP, n = torch.cat([one_NP, other_NP]), len(one_NP)
    side_N = torch.cat([torch.ones(n), -torch.ones(n)])
    deal_MN = torch.rand(1000, 2 * n, generator=torch.Generator().manual_seed(0)).argsort(1)
    sides_MN = torch.cat([side_N[None], side_N[deal_MN]])
    found, *dealt = ((sides_MN @ both_NP).square() / both_NP.sum(0).clamp_min(1)).sum(1).double()
    dealt_M = torch.stack(dealt)
    mean, variance = dealt_M.mean(), dealt_M.var()
    if found <= dealt_M.max() or not variance > 0:
        return False
    return bool(torch.special.gammaincc(mean**2 / variance, found * mean / variance) < 1e-6)
