"""The label wall: training labels are held here and nowhere else."""

import torch
from torch import Tensor

from al_bench.data import Dataset
from al_bench.errors import UserError

OPEN_SET = -1  # the answer for an image that belongs to no class of the data set


class Oracle:
    """Reveals the labels that are acquired, and counts them.

    labels_N: int64, the label of each image of the data set, or OPEN_SET. train_idx: the images whose labels may be
    acquired; no test image is among them.
    """

    def __init__(self, labels_N: Tensor, train_idx: Tensor) -> None:
        self._labels_N = labels_N
        self._acquirable_N = torch.zeros(len(labels_N), dtype=torch.bool)
        self._acquirable_N[train_idx] = True
        self._acquired_N = torch.zeros(len(labels_N), dtype=torch.bool)

    @property
    def n_acquired(self) -> int:
        return int(self._acquired_N.sum())

    def label(self, idx_K: Tensor) -> Tensor:
        """Labels [K] of idx_K, which count as acquired from now on. Raises ValueError for images outside train_idx."""
        if not self._acquirable_N[idx_K].all():
            raise ValueError("asked for the label of an image that is not in the training split")
        self._acquired_N[idx_K] = True
        return self._labels_N[idx_K]

    def reveal_all(self) -> Tensor:
        """All labels [N], for a strategy that is an oracle line itself. It counts none as acquired."""
        return self._labels_N

    def ask(self, validation_V: Tensor, initial_K: Tensor) -> None:
        """Say which labels are acquired at the start. A person is asked for them, the test images among them."""

    def given(self, candidates: Tensor) -> Tensor:
        """Those of the candidates whose labels a person gave before the run. They join the initial set."""
        return candidates[:0]

    def tested(self, dataset: Dataset) -> Dataset:
        """The data set with the labels of its test images, once they are known."""
        return dataset

    def draw_balanced(self, candidates: Tensor, k: int, rng: torch.Generator) -> Tensor:
        """Draw k of the candidates, equally many of each class until one runs out.

        This is what a curator with examples of every class would choose. A real pool has no such draw. It is a method
        of the oracle because it uses labels that have not been acquired. Raises UserError if fewer than k of the
        candidates belong to a class.
        """
        candidates = candidates[self._labels_N[candidates] != OPEN_SET]
        if len(candidates) < k:
            raise UserError(
                f"budget.start=balanced draws {k:,} images, and {len(candidates):,} belong to a class. "
                "Lower budget.initial or stressor.foreign."
            )
        shuffled = candidates[torch.randperm(len(candidates), generator=rng)]
        labels = self._labels_N[shuffled]
        turn = torch.empty_like(labels)  # how many images of the same class come before it
        for c in labels.unique():
            turn[labels == c] = torch.arange(int((labels == c).sum()))
        # Without a random order of the classes, the surplus would fall to the largest class.
        rank_C = torch.randperm(int(labels.max()) + 1, generator=rng)
        return shuffled[(turn * len(rank_C) + rank_C[labels]).argsort()[:k]]
