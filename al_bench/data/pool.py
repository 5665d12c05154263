"""Which images are labelled. L labelled, P pool, V validation, K acquired, O open-set: all dataset indices."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from al_bench import rng
from al_bench.config import BudgetConfig, InitialDraw
from al_bench.data.oracle import OPEN_SET, Oracle
from al_bench.errors import UserError


class NoneUseful(UserError):
    """No image of the initial set has a class."""


@dataclass(frozen=True)
class Pool:
    labelled_L: Tensor  # in the order of acquisition
    labels_L: Tensor
    unlabelled_P: Tensor  # ascending
    validation_V: Tensor
    validation_labels_V: Tensor
    open_set_O: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # acquired, but of no class

    def facts(self) -> dict[str, dict[str, Any]]:
        """Sizes and checksums of the labelled and the validation set at the start of a run, for run.json."""
        sets = {"initial_set": self.labelled_L.tolist(), "validation_set": self.validation_V.tolist()}
        return {
            name: {"n": len(idx), "checksum": hashlib.sha256(json.dumps(idx).encode()).hexdigest()}
            for name, idx in sets.items()
        }

    def to_indices(self, positions_K: Tensor) -> Tensor:
        """Turn positions in the pool, which a strategy returns, into dataset indices, which the record holds."""
        return self.unlabelled_P[positions_K]

    def acquire(self, idx_K: Tensor, oracle: Oracle) -> "Pool":
        """The pool after the labels of idx_K are acquired. Open-set images leave the pool but are not trained on.

        Raises UserError if one of idx_K is not in the pool.
        """
        taken_P = torch.isin(self.unlabelled_P, idx_K)
        if int(taken_P.sum()) != len(idx_K):
            raise UserError(
                "The record acquires images that are not in the pool: it belongs to other data or another split."
            )
        labels_K = oracle.label(idx_K)
        useful_K = labels_K != OPEN_SET
        return replace(
            self,
            labelled_L=torch.cat([self.labelled_L, idx_K[useful_K]]),
            labels_L=torch.cat([self.labels_L, labels_K[useful_K]]),
            unlabelled_P=self.unlabelled_P[~taken_P],
            open_set_O=torch.cat([self.open_set_O, idx_K[~useful_K]]),
        )


def start(
    train_idx: Tensor,
    oracle: Oracle,
    budget: BudgetConfig,
    seed: int,
    cold_start: Callable[[Tensor, int, torch.Generator], Tensor] | None = None,
) -> Pool:
    """The pool before round 0. Validation images are drawn first, then the initial set, from separate streams.

    budget.initial=null labels everything. cold_start(indices, how many, rng) -> indices chooses the initial set without
    labels. Validation images that turn out to be open-set count as acquired and are left out. Raises UserError if no
    image of the validation set or of the initial set can be used.
    """
    check_budget(len(train_idx), budget)
    order = train_idx[torch.randperm(len(train_idx), generator=rng.stream(seed, "validation"))]
    validation_V = order[: budget.validation].sort().values
    rest = order[budget.validation :].sort().values
    given = oracle.given(rest)
    free = rest[~torch.isin(rest, given)]
    initial = len(free) if budget.initial is None else budget.initial
    stream = rng.stream(seed, "initial_set")
    chosen = initial < len(free)
    if cold_start and chosen:
        first = cold_start(free, initial, stream)
    elif budget.start is InitialDraw.balanced and chosen:
        first = oracle.draw_balanced(free, initial, stream)
    else:
        first = free[torch.randperm(len(free), generator=stream)[:initial]]
    oracle.ask(validation_V, first)
    first = torch.cat([given, first])
    nothing = torch.empty(0, dtype=torch.int64)
    answers_V = oracle.label(validation_V)
    useful_V = answers_V != OPEN_SET
    pool = Pool(nothing, nothing, rest, validation_V[useful_V], answers_V[useful_V]).acquire(first, oracle)
    for key, wanted, kept in (
        ("validation", budget.validation, pool.validation_V),
        ("initial", initial, pool.labelled_L),
    ):
        if wanted and not len(kept):
            error = NoneUseful if key == "initial" else UserError
            raise error(f"budget.{key}={wanted:,}: all of these images are open-set (stressor.foreign). Raise it.")
    return pool


def check_budget(n_train: int, budget: BudgetConfig) -> None:
    """Raises UserError if the training split has fewer images than the budget asks for."""
    left = n_train - budget.validation - (budget.initial or 1)
    if left < 0:
        raise UserError(
            f"The training split has {n_train:,} images; budget.validation={budget.validation:,} and "
            f"budget.initial={budget.initial or 1:,} need {n_train - left:,}. Lower one of them."
        )
    if budget.initial is None:
        return
    if budget.rounds != 0 and (first := budget.query_of(0)) > left:
        raise UserError(
            f"budget.query={first:,} is larger than the pool: {left:,} images are left after validation and the "
            "initial set. Lower one of budget.query, budget.initial and budget.validation."
        )
    acquired = 0
    for round in range(budget.rounds or 0):
        acquired += budget.query_of(round)
        if acquired > left:
            raise UserError(
                f"budget.rounds={budget.rounds} times budget.query={budget.query} is more than the pool's {left:,} "
                f"images. At most {round} rounds, or budget.rounds=null to go on until the pool is empty."
            )
