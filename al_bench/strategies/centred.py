"""Embeddings that lie far from 0, taken less their mean: the distances stay what they are, and keep their digits.

A distance by |x|^2 + |y|^2 - 2 <x, y> has an error in proportion to |x|^2, however near to each other x and y lie.
N rows of any kind, D embedding width.
"""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor

# The squared length of the mean, in mean squared distances of the rows to it: from where to where it is taken away.
FAR = 10
EQUAL = 1e12  # rows that agree to six digits differ by the rounding of the net: they stay equal, and are drawn from
SAMPLE = 1000  # rows that the mean is taken of: it has to lie in their midst, and need not be exact


class Centred:
    """Rows of a tensor less `mean_D`, in float32. They are worked out when asked for: a pool is not copied."""

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
    """The mean [D] of the parts' rows together. None where it is near 0 for how they spread, or where they do not."""
    every = ceil(sum(map(len, parts)) / SAMPLE)
    some_ND = torch.cat([part[::every] for part in parts if len(part)]).double()
    mean_D = some_ND.mean(dim=0)
    spread = (some_ND - mean_D).square().sum(dim=1).mean()
    return mean_D.float() if FAR * spread < mean_D.square().sum() < EQUAL * spread else None


def centred(*parts: Points) -> tuple[Points, ...]:
    """The parts less the mean of all their rows. The parts themselves where mean_if_far is None: no number changes."""
    mean_D = mean_if_far(*parts)
    return parts if mean_D is None else tuple(Centred(part, mean_D) for part in parts)
