"""The contract of a strategy: a function (view, k, rng) -> positions of the k pool images to label, in order.

P pool images, L labelled, S stochastic passes (1 if the net is deterministic), C classes, D embedding width.
It sees tensors alone, on the CPU; what it needs beyond predictions it declares with @needs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from al_bench.errors import UserError


@dataclass(frozen=True)
class PoolView:
    """What a strategy may look at. A field it did not ask for is None."""

    n_pool: int
    n_classes: int
    log_probs_PSC: Tensor | None = None  # float32
    emb_PD: Tensor | None = None  # float32: what the last linear layer sees
    labelled_emb_LD: Tensor | None = None
    labelled_labels_L: Tensor | None = None


@dataclass(frozen=True)
class Needs:
    predictions: bool = True
    embeddings: bool = False


Strategy = Callable[[PoolView, int, torch.Generator], Tensor]


def needs(*, predictions: bool = True, embeddings: bool = False) -> Callable[[Strategy], Strategy]:
    """Declares, beside a strategy, what the one pass over the pool fetches for it. Undeclared: predictions alone."""

    def declare(strategy: Strategy) -> Strategy:
        strategy.needs = Needs(predictions, embeddings)  # type: ignore[attr-defined]
        return strategy

    return declare


def needs_of(strategy: Strategy) -> Needs:
    return getattr(getattr(strategy, "func", strategy), "needs", Needs())  # func: a yaml's _partial_


def top_k(score_P: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Positions of the k highest scores, equal ones drawn at random, never in file order. NaN raises ValueError."""
    if score_P.isnan().any():
        raise ValueError(f"{int(score_P.isnan().sum())} of {len(score_P)} scores are NaN")
    order_P = torch.randperm(len(score_P), generator=rng)
    return order_P[score_P[order_P].argsort(descending=True, stable=True)[:k]]


def select(strategy: Strategy, name: str, view: PoolView, k: int, rng: torch.Generator, round: int) -> Tensor:
    """The strategy's choice, checked: k distinct positions of the pool. UserError names strategy, round and cause."""
    where = f"strategy {name}, round {round}"
    for field in ("log_probs_PSC", "emb_PD", "labelled_emb_LD"):
        values = getattr(view, field)
        if values is None:
            continue
        # A probability of exactly 0 has the logarithm -inf and is no fault.
        fine = (values < torch.inf) if field == "log_probs_PSC" else values.isfinite()
        if not fine.all():
            raise UserError(
                f"{where}: the model's {field} holds NaN or infinite values. "
                "Lower the learning rate or try trainer.precision=32-true."
            )
    try:
        positions = strategy(view, k, rng)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from error
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64 or positions.shape != (k,):
        got = (
            f"{positions.dtype} {list(positions.shape)}" if isinstance(positions, Tensor) else type(positions).__name__
        )
        raise UserError(f"{where}: it has to return an int64 tensor of {k} positions, and returned {got}.")
    if k and not 0 <= int(positions.min()) <= int(positions.max()) < view.n_pool:
        raise UserError(f"{where}: it returned a position outside the pool of {view.n_pool}.")
    if len(positions.unique()) < k:
        raise UserError(f"{where}: it returned {k - len(positions.unique())} positions twice.")
    return positions
