"""What a round shows the strategy: the candidates of the pool, and what the nets and the fixed features say of them.

P candidates of the pool, L labelled, N images of the data set, S passes of all members, C classes, D embedding width.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench import rng
from al_bench.config import Head, InitialDraw, Mode, ModelConfig
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.imports import function
from al_bench.models.classifier import Classifier, Passes, build_optimizer
from al_bench.models.learner import Learner
from al_bench.models.logistic import fit_head
from al_bench.strategies import PoolView, Size, Strategy
from al_bench.strategies.example import example_view
from al_bench.strategies.guard import package_of, select
from al_bench.strategies.uncertainty import average_prediction

# Strategies that may choose the initial set: they need fixed features and no label.
COLD_STARTS = {
    InitialDraw.k_center: "al_bench.strategies.diversity.k_center",
    InitialDraw.k_means: "al_bench.strategies.diversity.k_means",
    InitialDraw.typiclust: "al_bench.strategies.diversity.typiclust",
    InitialDraw.prob_cover: "al_bench.strategies.coverage.prob_cover",
    InitialDraw.active_ft: "al_bench.strategies.active_finetuning.active_ft",
    InitialDraw.bilaf: "al_bench.strategies.active_finetuning.bilaf",
}


def try_settings(strategy: Strategy, model: ModelConfig) -> None:
    """Raises UserError if a bad option of the strategy or the optimizer can be told before anything is read."""
    for stage in strategy.stages:
        try_options(stage, model)
    build_optimizer(model.optimizer, [torch.nn.Parameter(torch.zeros(1, 1))])


def try_options(strategy: Strategy, model: ModelConfig) -> None:
    """Raises UserError if a strategy of al_bench cannot choose from a small random pool with its options.

    So a bad option is reported before anything is read or trained. A user's own strategy is not tried, since it may
    need more images.
    """
    if strategy.needs.refits and model.mode is not Mode.frozen:
        raise UserError(
            f"strategy {strategy.name} trains last layers on features that stay the same: set model.mode=frozen, or "
            "model=pca."
        )
    if package_of(strategy.function) != "al_bench" or strategy.needs.record:
        return
    size = Size(P=12, L=6, S=(strategy.n_passes or 1) * (strategy.members or 1), C=3, D=4, F=4, k=2)
    needs = replace(strategy.needs, held_out=holds_out(strategy, model))
    try:
        select(strategy, example_view(size, 0, needs), size.k, torch.Generator(), 0)
    except UserError as error:
        if not isinstance(error.__cause__, TypeError | AttributeError):
            raise
        raise UserError(f"strategy {strategy.name}: its options do not fit it ({error.__cause__}).") from error


def holds_out(strategy: Strategy, model: ModelConfig) -> bool:
    """Whether the view has held-out predictions: of the logistic head alone, whose fits are cheap, by a single pass."""
    return strategy.needs.held_out and model.head is Head.logistic and not strategy.n_passes


def try_dropout(strategy: Strategy, learner: Learner) -> None:
    """Raises UserError if the strategy or the test needs passes with dropout and the net cannot make them."""
    asked = learner.trainer.test_passes or strategy.n_passes
    if not asked or learner.model.head is Head.logistic:  # its passes need no dropout
        return
    net = learner.build(round=0)
    learner.test_passes(net, round=0)
    if strategy.n_passes:
        _passes(strategy, learner, net, round=0, member=0)


def initial_draw(how: InitialDraw, learner: Learner) -> Callable[[Tensor, int, torch.Generator], Tensor] | None:
    """What chooses the initial set by fixed features: a function (indices, k, rng) -> k indices. None: a plain draw."""
    if how not in COLD_STARTS:
        return None
    strategy = Strategy(function("budget.start", COLD_STARTS[how]), f"{how.name} (initial set)")

    def choose(idx: Tensor, k: int, stream: torch.Generator) -> Tensor:
        features_PF = learner.features_NF[idx]
        nothing_LF, no_labels_L = features_PF[:0], torch.empty(0, dtype=torch.int64)
        view = PoolView(
            len(idx), learner.dataset.n_classes, emb_PD=features_PF, labelled_emb_LD=nothing_LF,
            labelled_labels_L=no_labels_L, features_PF=features_PF, labelled_features_LF=nothing_LF,
        )  # fmt: skip
        return idx[select(strategy, view, k, stream, 0)]

    return choose


def candidates(strategy: Strategy, n_pool: int, seed: int, round: int) -> Tensor:
    """Positions of the pool images that the strategy chooses from: all, or strategy.candidates drawn at random."""
    n = strategy.candidates
    if n is None or n >= n_pool:
        return torch.arange(n_pool)
    return torch.randperm(n_pool, generator=rng.stream(seed, "candidates", round))[:n].sort().values


def committee(strategy: Strategy, learner: Learner, net: Classifier, pool: Pool, round: int) -> list[Classifier]:
    """The round's net, and the other members, trained alike from other weights. Only the round's net is tested."""
    nets = [net]
    for member in range(1, strategy.members or 1):
        nets.append(learner.build(round, member))
        learner.fit(nets[member], pool, round, member)
    return nets


def pool_view(
    strategy: Strategy, learner: Learner, nets: list[Classifier], pool: Pool, positions_P: Tensor, round: int
) -> PoolView:
    """What the strategy may see of the pool images at these positions, fetched in one pass over them."""
    needs, features_NF, idx_P = strategy.needs, learner.features_NF, pool.to_indices(positions_P)
    by_model = needs.features and features_NF is None
    embeddings = needs.embeddings or by_model
    seen: dict[str, Any] = {"labelled_labels_L": pool.labels_L}
    if needs.predictions or embeddings:
        seen["log_probs_PSC"], seen["emb_PD"] = _predict(strategy, learner, nets, idx_P, embeddings, round)
    if needs.labelled:  # by the nets and passes of the pool, since the two are compared
        log_probs_LSC, seen["labelled_emb_LD"] = _predict(strategy, learner, nets, pool.labelled_L, embeddings, round)
        seen["labelled_log_probs_LC"] = average_prediction(log_probs_LSC).float()
    elif embeddings:
        seen["labelled_emb_LD"] = learner.predict(nets[0], pool.labelled_L, embeddings=True).emb_PD
    if by_model:
        seen["features_PF"] = F.normalize(seen["emb_PD"], dim=1)
        seen["labelled_features_LF"] = F.normalize(seen["labelled_emb_LD"], dim=1)
    elif needs.features:
        seen["features_PF"], seen["labelled_features_LF"] = features_NF[idx_P], features_NF[pool.labelled_L]
    if needs.foreign:
        seen["foreign_emb_OD"] = learner.predict(nets[0], pool.open_set_O, embeddings=True).emb_PD
    if needs.head:
        head = nets[0].net.get_classifier()
        seen["head_weight_CD"] = head.weight.detach().float().cpu()
        seen["head_bias_C"] = head.bias.detach().float().cpu()
    if needs.refits:
        seen["refit_head"] = partial(fit_head, learner.dataset.n_classes, learner.model.penalty)
    if needs.oracle:
        seen |= beyond_the_wall(learner, nets[0], idx_P)
    if holds_out(strategy, learner.model):
        seen["held_out_log_probs_LC"] = learner.held_out(nets[0], pool, round)
    return PoolView(len(idx_P), learner.dataset.n_classes, **seen)


def beyond_the_wall(learner: Learner, net: Classifier, idx_P: Tensor) -> dict[str, Tensor]:
    """What an oracle line sees besides: the labels of the pool, and the test images with theirs."""
    test = learner.predict(net, learner.dataset.test_idx, embeddings=True)
    labels_V = learner.dataset.test_labels_V
    return {"truth_P": learner.truth_N[idx_P], "test_emb_VD": test.emb_PD, "test_labels_V": labels_V}


def _predict(
    strategy: Strategy, learner: Learner, nets: list[Classifier], idx_P: Tensor, embeddings: bool, round: int
) -> tuple[Tensor, Tensor | None]:
    """(log_probs_PSC of all passes of all members, emb_PD of the first net's deterministic pass)"""
    seen = []
    for member, net in enumerate(nets):
        passes = _passes(strategy, learner, net, round, member) if strategy.n_passes else None
        seen.append(learner.predict(net, idx_P, embeddings and member == 0, passes))
    log_probs_PSC = torch.cat([s.log_probs_PSC for s in seen], dim=1) if len(seen) > 1 else seen[0].log_probs_PSC
    return log_probs_PSC, seen[0].emb_PD


def _passes(strategy: Strategy, learner: Learner, net: Classifier, round: int, member: int) -> Passes:
    try:
        return learner.passes(net, strategy.n_passes, rng.of_member("dropout", member), round)
    except UserError as error:
        raise UserError(
            f"strategy {strategy.name}: {error}. Or train a committee instead: strategy.passes=null strategy.members=5."
        ) from None
