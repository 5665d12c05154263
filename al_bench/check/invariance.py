"""Rules on what a choice must not depend on: the order of the pool, of the passes, of the labelled images, the classes'
numbers.

A strategy that does not sample chooses the same. One that samples chooses as often: its choices are counted.
P pool images, S passes or members, C classes, L labelled, N choices.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from al_bench.check.inputs import Case, cases, large, take
from al_bench.check.trial import Broken, choose
from al_bench.strategies import PoolView, StrategyFunction, needs_of

CHOICES = 24  # of each view, where they are counted
Views = list[tuple[PoolView, Tensor | None]]  # each with the positions of its images in the first; None: the same
PARTLY_DEGENERATE = ("a probability of 0", "every third embedding 0")  # and no ties among the others


def order_does_not_matter(strategy: StrategyFunction, S: int) -> None:
    """Permuting the pool permutes the picks."""
    degenerate = [cases(S)[1].of(kind=kind) for kind in PARTLY_DEGENERATE]
    all_alike(strategy, [*cases(S), large(S), *degenerate], reordered)


def order_without_labels(strategy: StrategyFunction, S: int) -> None:
    """Permuting the pool permutes the picks where nothing is labelled, too."""
    unlabelled = [case.of(L=0) for case in cases(S)[1:]]
    for case in unlabelled:
        choose(strategy, case, may_refuse=True)
    all_alike(strategy, unlabelled, reordered)


def order_of_passes(strategy: StrategyFunction, S: int) -> str | None:
    """Several passes: permuting them, or showing each twice, changes nothing."""

    def permuted(view: PoolView) -> Views:
        plain_S, backwards_S, shuffled_S = orders_of(view.log_probs_PSC.shape[1])
        orders = (plain_S, backwards_S, shuffled_S.repeat(2))
        return [(replace(view, log_probs_PSC=view.log_probs_PSC[:, order_S]), None) for order_S in orders]

    if not needs_of(strategy).predictions:
        return "nothing to permute: it looks at no predictions"
    for case in cases(max(S, 4)):
        choose(strategy, case, may_refuse=True)
    all_alike(strategy, cases(max(S, 4)), permuted)
    return None


def numbers_of_classes(strategy: StrategyFunction, S: int) -> None:
    """Numbering the classes in another order changes nothing."""

    def rotated(view: PoolView) -> Views:
        n = view.n_classes
        return [(renumbered(view, torch.arange(n).roll(shift)), None) for shift in range(min(3, n))]

    all_alike(strategy, [*cases(S), cases(S)[2].of(kind="one labelled class")], rotated)


def order_of_labels(strategy: StrategyFunction, S: int) -> None:
    """Permuting the labelled images changes nothing."""

    def permuted(view: PoolView) -> Views:
        return [(relabelled(view, order_L), None) for order_L in orders_of(len(view.labelled_labels_L))]

    all_alike(strategy, cases(S), permuted)


def reordered(view: PoolView) -> Views:
    return [(take(view, order_P), order_P) for order_P in orders_of(view.n_pool)]


def orders_of(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """As it is, backwards, shuffled."""
    return torch.arange(n), torch.arange(n).flip(0), torch.randperm(n, generator=torch.Generator().manual_seed(0))


def renumbered(view: PoolView, order_C: Tensor) -> PoolView:
    """Class order_C[0] becomes class 0, order_C[1] class 1."""
    changed = {
        "log_probs_PSC": lambda values: values[:, :, order_C],
        "labelled_labels_L": lambda values: order_C.argsort()[values],
        "labelled_log_probs_LC": lambda values: values[:, order_C],
        "head_weight_CD": lambda values: values[order_C],
        "head_bias_C": lambda values: values[order_C],
    }
    return with_changes(view, changed)


def relabelled(view: PoolView, order_L: Tensor) -> PoolView:
    names = ("labelled_emb_LD", "labelled_labels_L", "labelled_log_probs_LC", "labelled_features_LF")
    return with_changes(view, {name: lambda values: values[order_L] for name in names})


def with_changes(view: PoolView, changes: dict[str, Callable[[Tensor], Tensor]]) -> PoolView:
    """Fields that were not asked for stay None."""
    there = {name: change for name, change in changes.items() if getattr(view, name) is not None}
    return replace(view, **{name: change(getattr(view, name)) for name, change in there.items()})


def all_alike(strategy: StrategyFunction, some: list[Case], views_of: Callable[[PoolView], Views]) -> None:
    """Raises Broken unless it chooses alike from all views of each case; where it samples, as often, in one case."""
    sampled = []
    for case in some:
        views = views_of(case.view(needs_of(strategy)))
        if not same_choice(strategy, case, views) and case.size.P < 100:  # many choices from a large pool take long
            sampled.append((case, views))
    if sampled:
        same_counts(strategy, *sampled[:2][-1])


def same_choice(strategy: StrategyFunction, case: Case, views: Views) -> bool:
    """Whether no view's choice depends on the seed. Raises Broken where the views' choices then differ."""
    found: list[list[int]] = []
    for i, view in enumerate(views):
        first, *others = choices(strategy, case, view, range(3 * i, 3 * i + 3))
        if any(other != first for other in others):
            return False  # it samples, or there are ties
        found.append(first)
    for other in found:
        if other != found[0]:
            raise Broken(f"It chose {found[0]}, and {other} after the change. Input: {case}, k={case.size.k}.")
    return True


def same_counts(strategy: StrategyFunction, case: Case, views: Views) -> None:
    """Raises Broken where it samples, and chooses some images more often after the change than before."""
    one_NP, other_NP = (
        chosen(choices(strategy, case, view, range(seed, seed + CHOICES)), case.size.P)
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
    """As positions in the first view."""
    shown, order_P = view
    picks = (choose(strategy, case, stream, shown) for stream in streams)
    return [(positions if order_P is None else order_P[positions]).tolist() for positions in picks]


def chosen(choices: list[list[int]], n_pool: int) -> Tensor:
    """1 for each image of each choice [N, P]."""
    return torch.zeros(len(choices), n_pool).scatter_(1, torch.tensor(choices), 1)


def differ(one_NP: Tensor, other_NP: Tensor) -> bool:
    """Whether the two samples of choices come from different strategies; two of one do so once in a million times.

    A permutation test: choices are independent of each other, and the images of one choice need not be. The counts'
    squared differences are compared with those where the choices are dealt out at random. Their distribution is taken
    for a gamma distribution of the same mean and variance, for a thousand deals show none so rare.
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
