"""Several strategies together: what one of them would choose from a random part of the pool is worth a second look.

P pool images, N images that are left.
"""

import torch
from torch import Tensor

from al_bench.imports import function
from al_bench.strategies import Needs, PoolView, Size, StrategyFunction, needs_by_options, needs_of, take, union
from al_bench.strategies.coverage import max_herding, uncertainty_herding
from al_bench.strategies.diversity import typiclust
from al_bench.strategies.gradient import badge, bait
from al_bench.strategies.hybrid import alfa_mix, drop_query
from al_bench.strategies.random import random_sampling
from al_bench.strategies.uncertainty import margin

REFINE = (random_sampling, margin, badge, bait, typiclust, alfa_mix, drop_query, max_herding, uncertainty_herding)


def members_of(ensemble: list[str] | None) -> list[StrategyFunction]:
    """The functions at these dotted paths; None: the nine of the paper."""
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
    to the next depth. Here the share holds at each depth, as in the paper, and parts alone are limited.
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
