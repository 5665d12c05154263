"""Greedy maximisation, which half of the strategies come down to. P pool images."""

from collections.abc import Callable

import torch
from torch import Tensor


def lazy_greedy(
    gains: Callable[[Tensor], Tensor], gain_P: Tensor, k: int, take: Callable[[int], None], rng: torch.Generator
) -> Tensor:
    """The k positions that greedy maximisation of a monotone submodular function picks, in order (Minoux, 1978).

    Gains only shrink as the set grows, so the gain a position had earlier bounds the one it has now, and most need not
    be looked at again. gain_P: the gains before the first pick. gains(positions) -> those they have now.
    take(position): called at each pick. Equal gains are drawn at random.
    """
    order_P = torch.randperm(len(gain_P), generator=rng)
    bound_P = gain_P[order_P].clone()
    current_P = torch.ones(len(gain_P), dtype=torch.bool)
    picked: list[int] = []
    while True:
        batch = 32
        # argmax returns the first of equals, and the order is random.
        while not current_P[best := int(bound_P.argmax())]:
            stale = torch.where(current_P, -torch.inf, bound_P).topk(min(batch, int((~current_P).sum()))).indices
            bound_P[stale] = gains(order_P[stale]).to(bound_P.dtype)
            current_P[stale] = True
            batch *= 2
        picked.append(int(order_P[best]))
        if len(picked) == k:
            return torch.tensor(picked)
        take(picked[-1])
        bound_P[best] = -torch.inf
        current_P.fill_(False)
        current_P[bound_P == -torch.inf] = True
