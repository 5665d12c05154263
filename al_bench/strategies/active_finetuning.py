"""Active finetuning: one batch for a pretrained net, chosen by fixed features alone, as an initial set.

P pool images, F width of the fixed features, K prototypes or pseudo-classes, M members of one pseudo-class,
N and X rows of any kind.
"""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench.strategies import PoolView, by_chunks, needs
from al_bench.strategies.diversity import fitted_rows, nearest, nearest_to_centres, sq_distances, sq_norms
from al_bench.strategies.greedy import random_argmax


def active_ft_loss(x_PF: Tensor, prototype_KF: Tensor, temperature: float) -> Tensor:
    """Minus the mean similarity of the images to their nearest prototype, plus how near the prototypes are (Eq. 9)."""
    near = (x_PF @ prototype_KF.T).max(dim=1).values.mean() / temperature
    if len(prototype_KF) == 1:
        return -near
    apart_KK = (prototype_KF @ prototype_KF.T / temperature).fill_diagonal_(-inf)
    return apart_KK.logsumexp(dim=1).mean() - near


@needs(predictions=False, features=True, memory=lambda n: 4 * n.F * fitted_rows(n.P, n.F, n.k) + 12 * n.P * n.k)
def active_ft(
    view: PoolView, k: int, rng: torch.Generator, *, temperature: float = 0.07, steps: int = 300, lr: float = 0.001
) -> Tensor:
    """k images that are spread as the pool is and differ from each other (Xie et al., 2023: ActiveFT, Algorithm 1).

    k prototypes of length 1 begin at random images. Adam moves them by active_ft_loss. Then each prototype takes the
    image that is most similar to it and still free. Labelled images are not looked at: it chooses an initial set. The
    loss is over all images, or over a random part of them if they are many.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature} and has to be above 0")
    part = torch.randperm(view.n_pool, generator=rng)
    x_PF = F.normalize(view.features_PF[part[: fitted_rows(view.n_pool, view.features_PF.shape[1], k)]].float(), dim=1)
    begin_K = part[torch.randperm(view.n_pool, generator=rng)[:k]]
    prototype_KF = F.normalize(view.features_PF[begin_K].float(), dim=1).requires_grad_()
    optimizer = torch.optim.Adam([prototype_KF], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            active_ft_loss(x_PF, F.normalize(prototype_KF, dim=1), temperature).backward()
        optimizer.step()
        with torch.no_grad():
            prototype_KF.copy_(F.normalize(prototype_KF, dim=1))
    return nearest_to_centres(
        lambda at: F.normalize(view.features_PF[at].float(), dim=1), view.n_pool, prototype_KF.detach(), rng
    )


@needs(predictions=False, features=True, memory=lambda n: 4 * n.F * fitted_rows(n.P, n.F, n.k) + 12 * n.P * n.k)
def bilaf(
    view: PoolView,
    k: int,
    rng: torch.Generator,
    *,
    core: int | None = None,
    near: int = 10,
    step: float = 0.1,
    removed: float = 0.1,
    penalty: float = 1.1,
) -> Tensor:
    """Core images of pseudo-classes, and images at the boundaries between these (Lu et al., 2024: BiLAF).

    active_ft chooses the core images. Each makes a pseudo-class of the images that it is nearest to. Of each, the
    share `removed` that is reached last from the core is left out: see by_density. The others of the k images are
    divided by the sizes of the pseudo-classes, and chosen by boundary_picks.

    core: how many core images; None: five for each class, as in the paper's CIFAR-10, and at most half of k. Where what
    is left out would leave fewer than k images, nothing is.

    Two things differ from the authors' code. It rounds the shares of the pseudo-classes down and gives what is left to
    the smallest. And in the order by density it takes the distances to images at the neighbours' places in the
    cluster's list, not to the neighbours.
    """
    if not (0 < step <= 1 and 0 <= removed < 1) or near < 1 or penalty < 1:
        raise ValueError("step has to be above 0 and at most 1, removed from 0 to below 1, near and penalty at least 1")
    n_core = min(5 * view.n_classes, max(1, k // 2)) if core is None else core
    if not 1 <= n_core <= k:
        raise ValueError(f"core={n_core} has to be at least 1 and at most the {k} images to choose")
    core_K = active_ft(view, n_core, rng)
    x_PF = view.features_PF
    class_P = nearest(x_PF, x_PF[core_K])[1]
    class_P[core_K] = torch.arange(n_core)  # copies of one image may be several cores
    removed = removed if (1 - removed) * view.n_pool >= k else 0.0
    members = [by_density(x_PF, (class_P == c).nonzero()[:, 0], int(i), near, step) for c, i in enumerate(core_K)]
    members = [of[: len(of) - int(removed * len(of))] for of in members]
    quotas = shares(k, [len(of) for of in members])
    others = [core_K[torch.arange(n_core) != c] for c in range(n_core)]
    parts = zip(members, others, quotas, strict=True)
    return torch.cat([boundary_picks(x_PF, *part, penalty, rng) for part in parts])


def shares(k: int, sizes: list[int]) -> list[int]:
    """How many of k each part gets: one, then the others by size (the method of D'Hondt).

    No part gets more than it has: its next quotient would be below 1, and that of a part with some left is not.
    """
    found = [1] * len(sizes)
    for _ in range(k - len(sizes)):
        found[max(range(len(sizes)), key=lambda c: sizes[c] / (found[c] + 1))] += 1
    return found


def by_density(x_PF: Tensor, members_M: Tensor, core: int, near: int, step: float) -> Tensor:
    """The members in the order in which a cluster that begins at the core reaches them.

    In each turn it takes the share `step` of all: those with the least mean distance to their `near` nearest images of
    the cluster.
    """
    left_M = members_M[members_M != core]
    at_once, order = max(1, int(step * len(members_M))), [members_M[members_M == core]]
    near_MN = torch.empty(len(left_M), 0)

    def nearer(at: Tensor, near_XN: Tensor) -> Tensor:
        near_XN = torch.cat([near_XN, distances(x_PF, at, order[-1])], 1)
        return near_XN.topk(min(near, near_XN.shape[1]), largest=False).values

    while len(left_M):
        near_MN = by_chunks(nearer, left_M, near_MN, width=x_PF.shape[1] + at_once)
        nearest_first = near_MN.mean(dim=1).argsort(stable=True)
        new, stay = nearest_first[:at_once], nearest_first[at_once:]
        order.append(left_M[new])
        left_M, near_MN = left_M[stay], near_MN[stay]
    return torch.cat(order)


def boundary_picks(
    x_PF: Tensor, members_M: Tensor, others_K: Tensor, n: int, penalty: float, rng: torch.Generator
) -> Tensor:
    """The first member, the core, then n - 1 others, each with the lowest boundary score of those that are left.

    The score is (d - a) / max(d, a). a is the mean distance to all members. d is the distance to the nearest core of
    another pseudo-class, others_K, times `penalty` for each earlier pick with that nearest core. The denominator is
    without the penalty, as in the authors' code. After the core and after each pick, the M / n members nearest to it
    are left out. Ties are broken at random. Without another pseudo-class all members tie.
    """
    width = x_PF.shape[1] + len(members_M)
    inner_M = by_chunks(lambda at: distances(x_PF, at, members_M).mean(dim=1), members_M, width=width)
    outer_M, rival_M = torch.zeros(len(members_M)), torch.zeros(len(members_M), dtype=torch.int64)
    if len(others_K):
        outer_M, rival_M = distances(x_PF, members_M, others_K).min(dim=1)
    scale_M = torch.maximum(outer_M, inner_M).clamp_min(1e-12)
    penalty_K, free_M = torch.ones(len(others_K) or 1), torch.ones(len(members_M), dtype=torch.bool)
    picked = [0]
    while len(picked) < n:
        last = picked[-1]
        distance_M = distances(x_PF, members_M[last : last + 1], members_M)[0]
        distance_M[last] = -1  # before its copies
        free_M[distance_M.where(free_M, inf).topk(len(members_M) // n, largest=False).indices] = False
        if last:
            penalty_K[rival_M[last]] *= penalty
        score_M = (outer_M * penalty_K[rival_M] - inner_M) / scale_M
        picked.append(random_argmax((-score_M).where(free_M, -inf), rng))
    return members_M[picked]


def distances(x_PF: Tensor, at_N: Tensor, to_M: Tensor) -> Tensor:
    """[N, M]"""
    x_NF, y_MF = x_PF[at_N], x_PF[to_M]
    return sq_distances(x_NF, y_MF, sq_norms(x_NF), sq_norms(y_MF)).sqrt()
