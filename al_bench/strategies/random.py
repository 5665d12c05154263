"""Random sampling: the baseline that every strategy is compared with. P pool images."""

import torch
from torch import Tensor

from al_bench.strategies import PoolView, needs


@needs(predictions=False)
def random_sampling(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """Draw uniformly without replacement, from its own random stream. The pool is not even predicted."""
    return torch.randperm(view.n_pool, generator=rng)[:k]


@needs(predictions=False)
def random_control(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """Random sampling by the second shuffle of the stream. Two equal arms: their differences are chance alone."""
    torch.randperm(view.n_pool, generator=rng)  # the first is random_sampling's
    return torch.randperm(view.n_pool, generator=rng)[:k]
