"""Several strategies together: what one of them would choose from a random part of the pool is worth a second look.

P pool images, N images that are left.
"""

from functools import partial

import torch
from torch import Tensor

from al_bench.errors import UserError
from al_bench.imports import function
from al_bench.strategies import Needs, PoolView, Size, StrategyFunction, needs_by_options, needs_of, take, top_k, union
from al_bench.strategies.coverage import max_herding, uncertainty_herding
from al_bench.strategies.diversity import typiclust
from al_bench.strategies.gradient import badge, bait
from al_bench.strategies.hybrid import alfa_mix, drop_query
from al_bench.strategies.random import random_sampling
from al_bench.strategies.uncertainty import margin

forward_bait = partial(bait, oversample=1.0)  # without its backward half, a third of the time
REFINE = (
    random_sampling,
    margin,
    badge,
    forward_bait,
    typiclust,
    alfa_mix,
    drop_query,
    max_herding,
    uncertainty_herding,
)


def members_of(ensemble: list[str] | None) -> list[StrategyFunction]:
    """The functions at these dotted paths; None: the nine of the paper."""
    if ensemble == []:
        raise UserError("strategy.filter.ensemble=[]: name one strategy or more, or null for the nine of the paper.")
    return [*REFINE] if ensemble is None else [function("strategy.filter.ensemble", path) for path in ensemble]


def _needs_of_members(ensemble: list[str] | None, largest: int, **_) -> Needs:
    needs = [needs_of(member) for member in members_of(ensemble)]

    def memory(n: Size) -> float:
        part = Size(**vars(n) | {"P": min(n.P, largest)})
        return max(m.memory(part) if m.memory else 0 for m in needs) + 4 * part.P * (n.S * n.C + n.D + n.F)

    return union(needs, memory)


@needs_by_options(_needs_of_members)
def progressive_filter(
    view: PoolView,
    k: int,
    rng: torch.Generator,
    *,
    depth: int = 5,
    batches: int = 100,
    share: float = 0.4,
    largest: int = 5000,
    ensemble: list[str] | None = None,
) -> Tensor:
    """The images that REFINE leaves of the pool (Huseljic et al., 2026, progressive filtering), k or more positions.

    At each depth every strategy of the ensemble chooses k images from each of several random parts of what is left. All
    that are chosen by any of them go on to the next depth. `batches` is the number of such choices at a depth, dealt
    equally to the strategies. A part holds the `share` of what is left, at least k images and at most `largest`.

    In the authors' code a part at the first depth has 5,000 images whatever the pool, and at most 10,000 images go on
    to the next depth. Here the share holds at each depth, as in the paper, and parts alone are limited. BAIT chooses
    forward alone: its backward half would take most of the filter's time.
    """
    members = members_of(ensemble)
    if depth < 0 or batches < len(members) or not 0 < share <= 1:
        raise ValueError(f"depth has to be 0 or more, batches {len(members)} or more, and share above 0 and at most 1")
    left = torch.arange(view.n_pool)
    for _ in range(depth):
        size = max(k, min(largest, int(share * len(left))))
        chosen = [
            choice(view, random_part(left, size, rng), member, k, rng)
            for member in members
            for _ in range(batches // len(members))
        ]
        left = torch.cat(chosen).unique()
    return left


def random_part(left: Tensor, n: int, rng: torch.Generator) -> Tensor:
    return left[torch.randperm(len(left), generator=rng)[:n].sort().values]


def choice(view: PoolView, part: Tensor, member: StrategyFunction, k: int, rng: torch.Generator) -> Tensor:
    """What the member chooses from this part of the pool."""
    return part[member(take(view, part), k, rng)]


def _needs_of_budgets(low: str, high: str, **_) -> Needs:
    both = [needs_of(function("strategy", path)) for path in (low, high)]
    memories = [needs.memory for needs in both if needs.memory]
    labelled = Needs(predictions=False, embeddings=True, labelled=True, features=True, refits=True)
    return union([labelled, *both], (lambda n: max(memory(n) for memory in memories)) if memories else None)


@needs_by_options(_needs_of_budgets)
def select_al(
    view: PoolView,
    k: int,
    rng: torch.Generator,
    *,
    low: str = "al_bench.strategies.diversity.typiclust",
    high: str = "al_bench.strategies.gradient.badge",
    removed: float = 0.5,
    folds: int = 10,
) -> Tensor:
    """SelectAL (Hacohen & Weinshall, 2023): a strategy for few labels, random, or one for many, by the labelled set.

    Each of the three chooses images of the labelled set, equally many of each class, as if nothing were labelled. They
    are removed, and a head is cross-validated on the rest. The strategy whose images are missed most, so the one with
    the lowest accuracy, chooses from the pool. Ties are broken at random. With fewer than two images left the budget is
    low.

    The details are those of the code of Huseljic et al. (2026), who compare with it. Two things differ: it validates
    ten times on a random hundredth of the images, which is one image of a small set. Here each image is validated once,
    in `folds` folds. And it trains a net by gradient descent where the head here is at its optimum.

    On planted groups that overlap, the one for many labels is hardly ever the lowest, with few labels or many: BADGE
    removes the images that are hard, and the rest is easy to validate.
    """
    if not 0 < removed < 1 or folds < 2:
        raise ValueError(f"removed={removed} has to be above 0 and below 1, and folds={folds} at least 2")
    strategies = [function("strategy.low", low), random_sampling, function("strategy.high", high)]
    accuracies = [accuracy_without(view, strategy, removed, folds, rng) for strategy in strategies]
    if None in accuracies:
        return strategies[0](view, k, rng)
    missed_most = int(top_k(-torch.tensor(accuracies), 1, rng))
    return strategies[missed_most](view, k, rng)


def accuracy_without(
    view: PoolView, strategy: StrategyFunction, removed: float, folds: int, rng: torch.Generator
) -> float | None:
    """The cross-validated accuracy on the labelled images that a strategy leaves. None where it leaves fewer than two.

    From each class it removes the same number of images, and no more than the smallest class has.
    """
    labels_L = view.labelled_labels_L
    classes, counts = labels_L.unique(return_counts=True)
    stays_L = torch.ones(len(labels_L), dtype=torch.bool)
    for c in classes:
        members = (labels_L == c).nonzero()[:, 0]
        n = min(int(counts.min()), max(1, int(removed * len(labels_L)) // len(classes)))
        stays_L[members[strategy(as_pool(view, members), n, rng)]] = False
    if stays_L.sum() < 2:
        return None
    return cross_validated(view, stays_L.nonzero()[:, 0], folds, rng)


def as_pool(view: PoolView, rows: Tensor) -> PoolView:
    """The view of these labelled images as a pool without labels."""
    return PoolView(
        len(rows),
        view.n_classes,
        log_probs_PSC=view.labelled_log_probs_LC[rows, None],
        emb_PD=view.labelled_emb_LD[rows],
        labelled_emb_LD=view.labelled_emb_LD[:0],
        labelled_labels_L=view.labelled_labels_L[:0],
        labelled_log_probs_LC=view.labelled_log_probs_LC[:0],
        features_PF=view.labelled_features_LF[rows],
        labelled_features_LF=view.labelled_features_LF[:0],
        head_weight_CD=view.head_weight_CD,
        head_bias_C=view.head_bias_C,
        foreign_emb_OD=view.labelled_emb_LD[:0],
    )


def cross_validated(view: PoolView, rows: Tensor, folds: int, rng: torch.Generator) -> float:
    """The accuracy on these labelled images, each by a head that was fit to the other folds."""
    emb_ND, labels_N = view.labelled_emb_LD[rows].float(), view.labelled_labels_L[rows]
    n_folds = min(folds, len(rows))
    fold_N = torch.randperm(len(rows), generator=rng) % n_folds
    hits = 0
    for fold in range(n_folds):
        held_N = fold_N == fold
        weight_CD, bias_C = view.refit_head(emb_ND[~held_N], labels_N[~held_N])
        hits += int(((emb_ND[held_N] @ weight_CD.T + bias_C).argmax(1) == labels_N[held_N]).sum())
    return hits / len(rows)
