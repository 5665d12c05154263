"""Random sampling: what every strategy is judged against. P pool images."""

import torch
from torch import Tensor

from al_bench.strategies import PoolView, needs


@needs(predictions=False)
def random_sampling(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """Uniform without replacement, from its own stream; the pool is not even predicted."""
    return torch.randperm(view.n_pool, generator=rng)[:k]


@needs(predictions=False)
def random_control(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """Random sampling by the stream's second shuffle: two equal arms, whose differences are what chance alone does."""
    torch.randperm(view.n_pool, generator=rng)  # the first is random_sampling's
    return torch.randperm(view.n_pool, generator=rng)[:k]
