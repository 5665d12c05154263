"""Oracle lines: what could be gained by choosing, if all labels were known. They are compared with no strategy.

P pool images, V test images, D embedding width, M images among which is chosen.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench.strategies import FIELDS_OF, PoolView, StrategyFunction, needs, top_k
from al_bench.strategies.diversity import k_center, typicality, typiclust
from al_bench.strategies.ensembles import choice, forward_bait, random_part
from al_bench.strategies.gradient import badge
from al_bench.strategies.greedy import random_argmax
from al_bench.strategies.hybrid import alfa_mix, class_changes, drop_query
from al_bench.strategies.random import random_sampling
from al_bench.strategies.uncertainty import margin

HONEST = (random_sampling, margin, k_center, badge, forward_bait, typiclust, alfa_mix, drop_query)


@needs(embeddings=True, labelled=True, features=True, head=True, refits=True, oracle=True)
def boss(view: PoolView, k: int, rng: torch.Generator, *, batches: int = 100, largest: int = 2500) -> Tensor:
    """BoSS (Huseljic et al., 2026), an oracle: of many batches the one after which the test accuracy is highest.

    Ten strategies choose batches from random parts of the pool, of k to `largest` images. For each batch a head is fit
    to the labelled images and the batch with its true labels. Two of the strategies see the true labels themselves:
    typical_of_class and changing_of_class. Ties are broken at random. Images of no class add nothing to a fit.

    The paper retrains the last layer for 50 epochs; here the head is at its optimum. Its largest part is not known to
    us: 2,500 is that of the authors' code.
    """
    strategies = (*HONEST, typical_of_class, changing_of_class)
    if batches < len(strategies) or largest < 1:
        raise ValueError(f"batches has to be {len(strategies)} or more, and largest 1 or more")
    found = [
        batch(view, strategy, k, min(view.n_pool, max(k, largest)), rng)
        for strategy in strategies
        for _ in range(batches // len(strategies))
    ]
    return found[random_argmax(torch.tensor([accuracy_with(view, positions) for positions in found]).double(), rng)]


def batch(view: PoolView, strategy: StrategyFunction, k: int, largest: int, rng: torch.Generator) -> Tensor:
    """k positions that the strategy chooses from a random part of the pool, of a random size."""
    size = int(torch.randint(k, largest + 1, (1,), generator=rng))
    part = random_part(torch.arange(view.n_pool), size, rng)
    return choice(without_labels(view) if strategy in HONEST else view, part, strategy, k, rng)


def without_labels(view: PoolView) -> PoolView:
    return replace(view, **dict.fromkeys(FIELDS_OF["oracle"]))


def accuracy_with(view: PoolView, positions: Tensor) -> float:
    """The accuracy on the test images of a head that knows the labels at these positions as well."""
    known = positions[view.truth_P[positions] >= 0]
    emb_ND = torch.cat([view.labelled_emb_LD, view.emb_PD[known]]).float()
    labels_N = torch.cat([view.labelled_labels_L, view.truth_P[known]])
    if not len(labels_N):
        return 0.0
    weight_CD, bias_C = view.refit_head(emb_ND, labels_N)
    predicted_V = (view.test_emb_VD.float() @ weight_CD.T + bias_C).argmax(1)
    return float((predicted_V == view.test_labels_V).double().mean())


def typical_of_class(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """TypiClust with the classes as clusters: the most typical image of the class with the fewest labels.

    Typicality is that of typiclust, among the images of the class in the pool, computed once.
    """
    return by_class(view, torch.arange(view.n_pool), k, rng, lambda at: typicality((view.features_PF,), at).double())


def changing_of_class(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """DropQuery with the classes as clusters: of the images whose class changes, the most central one of a class.

    Central is what has the least sum of distances to the others of the class, on embeddings of length 1. If fewer than
    k images change, the others follow in random order.
    """
    changes_P = class_changes(view.emb_PD, view.head_weight_CD, view.head_bias_C, 3, 0.75, rng)
    among_M = (2 * changes_P > 3).nonzero()[:, 0]
    if len(among_M) <= k:
        return top_k(changes_P, k, rng)

    def central(at: Tensor) -> Tensor:
        x_MD = F.normalize(view.emb_PD[at].double(), dim=1)
        return -torch.cdist(x_MD, x_MD).sum(1)

    return by_class(view, among_M, k, rng, central)


def by_class(
    view: PoolView, among_M: Tensor, k: int, rng: torch.Generator, score: Callable[[Tensor], Tensor]
) -> Tensor:
    """k of the images: each time the one of the highest score in the class with the fewest labels, picks included.

    Images of no class come last, for they teach nothing.
    """
    is_known_M = view.truth_P[among_M] >= 0
    if is_known_M.sum() < k:
        known_M, foreign_M = among_M[is_known_M], among_M[~is_known_M]
        return torch.cat([known_M, random_part(foreign_M, k - len(known_M), rng)])
    among_M = among_M[is_known_M]
    label_M = view.truth_P[among_M]
    count = {int(c): int((view.labelled_labels_L == c).sum()) for c in label_M.unique()}
    order = {c: best_last(among_M[label_M == c], score, rng) for c in count}
    picked: list[int] = []
    while len(picked) < k:
        left = [c for c in order if order[c]]
        fewest = min(count[c] for c in left)
        tied = [c for c in left if count[c] == fewest]
        c = tied[int(torch.randint(len(tied), (1,), generator=rng))]
        picked.append(order[c].pop())
        count[c] += 1
    return torch.tensor(picked)


def best_last(at: Tensor, score: Callable[[Tensor], Tensor], rng: torch.Generator) -> list[int]:
    return at[top_k(score(at), len(at), rng)].flip(0).tolist()
