"""What a round asks for: the numbers that the strategy may see, and the images that it chooses.

P candidates of the pool, L labelled images, N images of the data set.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench import rng
from al_bench.config import Config, InitialDraw
from al_bench.data import Dataset
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.imports import function
from al_bench.models import engine
from al_bench.models.classifier import Classifier
from al_bench.strategies import PoolView, Strategy
from al_bench.strategies.guard import select
from al_bench.strategies.uncertainty import mean_log_probs

# What may choose the initial set: on fixed features, without any label.
COLD_STARTS = {
    InitialDraw.k_center: "al_bench.strategies.diversity.k_center",
    InitialDraw.k_means: "al_bench.strategies.diversity.k_means",
    InitialDraw.typiclust: "al_bench.strategies.diversity.typiclust",
    InitialDraw.prob_cover: "al_bench.strategies.coverage.prob_cover",
}


def prepare(c: Config, strategy: Strategy, dataset: Dataset) -> Tensor | None:
    """The fixed features [N, F] if anything here asks for them. Raises UserError if dropout is asked for in vain."""
    if strategy.n_passes:
        _dropout(c, strategy, engine.build(c, dataset, 0), dataset.images, 0)
    return engine.fixed_features(c, dataset) if wants_features(c, strategy) else None


def wants_features(c: Config, strategy: Strategy) -> bool:
    return strategy.needs.features or c.budget.start in COLD_STARTS


def cold_start(c: Config, dataset: Dataset, features_NF: Tensor | None) -> Callable[..., Tensor] | None:
    """Chooses the initial set by budget.start: (indices, how many, rng) -> indices. None where that is a plain draw."""
    if c.budget.start not in COLD_STARTS:
        return None
    choose_first = function("budget.start", COLD_STARTS[c.budget.start])
    strategy = Strategy(choose_first, f"{c.budget.start.name} (initial set)")

    def choose(idx: Tensor, k: int, stream: torch.Generator) -> Tensor:
        features_PF = features_NF[idx]
        nothing_LF, no_labels_L = features_PF[:0], torch.empty(0, dtype=torch.int64)
        view = PoolView(
            len(idx), dataset.n_classes, emb_PD=features_PF, labelled_emb_LD=nothing_LF, labelled_labels_L=no_labels_L,
            features_PF=features_PF, labelled_features_LF=nothing_LF,
        )  # fmt: skip
        return idx[select(strategy, view, k, stream, 0)]

    return choose


def committee(
    c: Config, members: int | None, classifier: Classifier, dataset: Dataset, images: Tensor, pool: Pool, round: int
) -> list[Classifier]:
    """The round's net, and those trained beside it for a strategy with `members`; only the first is tested."""
    others = range(1, members or 1)
    nets = [classifier, *(engine.build(c, dataset, round, member) for member in others)]
    for member in others:
        engine.fit(c, nets[member], images, pool, round, member)
    return nets


def candidates(c: Config, n: int | None, n_pool: int, round: int) -> Tensor:
    """Positions of the pool images the strategy chooses from: all, or n of them drawn at random."""
    if n is None or n >= n_pool:
        return torch.arange(n_pool)
    return torch.randperm(n_pool, generator=rng.stream(c.seed, "candidates", round))[:n].sort().values


def look(
    c: Config,
    strategy: Strategy,
    nets: list[Classifier],
    images: Tensor,
    features_NF: Tensor | None,
    pool: Pool,
    positions_P: Tensor,
    n_classes: int,
    round: int,
) -> PoolView:
    """What the strategy may see of the pool images at these positions; one pass over them fetches what it needs."""
    needs, idx_P = strategy.needs, pool.to_indices(positions_P)
    by_model = needs.features and features_NF is None
    embeddings = needs.embeddings or by_model
    seen: dict[str, Any] = {"labelled_labels_L": pool.labels_L}
    if needs.predictions or embeddings:
        seen["log_probs_PSC"], seen["emb_PD"] = _predict(c, strategy, nets, images, idx_P, embeddings, round)
    if needs.labelled:  # by the same nets and passes as the pool: the two are compared
        log_probs_LSC, seen["labelled_emb_LD"] = _predict(c, strategy, nets, images, pool.labelled_L, embeddings, round)
        seen["labelled_log_probs_LC"] = mean_log_probs(log_probs_LSC).float()
    elif embeddings:
        seen["labelled_emb_LD"] = engine.predict(c.trainer, nets[0], images, pool.labelled_L, True).emb_PD
    if by_model:
        seen["features_PF"] = F.normalize(seen["emb_PD"], dim=1)
        seen["labelled_features_LF"] = F.normalize(seen["labelled_emb_LD"], dim=1)
    elif needs.features:
        seen["features_PF"], seen["labelled_features_LF"] = features_NF[idx_P], features_NF[pool.labelled_L]
    if needs.head:
        head = nets[0].net.get_classifier()
        seen["head_weight_CD"] = head.weight.detach().float().cpu()
        seen["head_bias_C"] = head.bias.detach().float().cpu()
    return PoolView(len(idx_P), n_classes, **seen)


def _predict(
    c: Config, strategy: Strategy, nets: list[Classifier], images: Tensor, idx: Tensor, embeddings: bool, round: int
) -> tuple[Tensor, Tensor | None]:
    """(log_probs_PSC of all passes of all members, emb_PD of the first net's deterministic pass)"""
    seen = [
        engine.predict(
            c.trainer, net, images, idx, embeddings and member == 0,
            _dropout(c, strategy, net, images, round, member) if strategy.n_passes else None,
        )
        for member, net in enumerate(nets)
    ]  # fmt: skip
    log_probs_PSC = torch.cat([s.log_probs_PSC for s in seen], dim=1) if len(seen) > 1 else seen[0].log_probs_PSC
    return log_probs_PSC, seen[0].emb_PD


def _dropout(
    c: Config, strategy: Strategy, net: Classifier, images: Tensor, round: int, member: int = 0
) -> engine.Passes:
    try:
        stream = rng.stream(c.seed, rng.of_member("dropout", member), round)
        return engine.dropout_passes(c.trainer, net, images, strategy.n_passes, stream)
    except UserError as error:
        raise UserError(
            f"strategy {strategy.name}: {error}. Or train a committee instead: strategy.passes=null strategy.members=5."
        ) from None
