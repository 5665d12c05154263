"""Subtract the mean from embeddings that lie far from 0: distances stay the same and keep their digits.

A distance computed as |x|^2 + |y|^2 - 2 <x, y> has an error proportional to |x|^2, however close x and y are.
N rows of any kind, D embedding width.
"""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor

# The mean is subtracted if its squared length lies between these multiples of the rows' mean squared distance to it.
FAR = 10
EQUAL = 1e12  # rows that agree to six digits differ only by the net's rounding: they stay equal, so that they tie
SAMPLE = 1000  # rows that the mean is computed from: it has to lie among them, and need not be exact


class Centred:
    """Rows of a tensor minus `mean_D`, in float32. They are computed on request, so that a pool is not copied."""

    def __init__(self, x_ND: Tensor, mean_D: Tensor) -> None:
        self.x_ND, self.mean_D, self.shape = x_ND, mean_D, x_ND.shape

    def __len__(self) -> int:
        return len(self.x_ND)

    def __getitem__(self, at: Tensor | slice | list[int]) -> Tensor:
        return (self.x_ND[at] - self.mean_D).float()

    def split(self, rows: int) -> Iterator[Tensor]:
        return (self[start : start + rows] for start in range(0, max(1, len(self)), rows))


Points = Tensor | Centred  # both know len, shape, split, and [slice or positions]


def mean_if_far(*parts: Points) -> Tensor | None:
    """The mean [D] of all rows of the parts; None if it is near 0 for their spread, or if they hardly spread."""
    every = ceil(sum(map(len, parts)) / SAMPLE)
    some_ND = torch.cat([part[::every] for part in parts if len(part)]).double()
    mean_D = some_ND.mean(dim=0)
    spread = (some_ND - mean_D).square().sum(dim=1).mean()
    return mean_D.float() if FAR * spread < mean_D.square().sum() < EQUAL * spread else None


def centred(*parts: Points) -> tuple[Points, ...]:
    """The parts minus the mean of all their rows; the parts themselves, unchanged, if mean_if_far is None."""
    mean_D = mean_if_far(*parts)
    return parts if mean_D is None else tuple(Centred(part, mean_D) for part in parts)
