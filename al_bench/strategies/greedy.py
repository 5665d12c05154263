"""Choose one image after another, as half of the strategies do. P pool images."""

from collections.abc import Callable

import torch
from torch import Tensor


def rounded(x: Tensor, digits: int = 18) -> Tensor:
    """Round to so many binary digits (18 are about five decimals), so that values that differ by rounding alone tie."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**digits).round(), exponent - digits)


def random_argmax(score_P: Tensor, rng: torch.Generator) -> int:
    """The position of the highest score. Scores that differ by rounding alone tie. NaN raises ValueError."""
    best = score_P.max()
    if best.isnan():
        raise ValueError(f"{int(score_P.isnan().sum())} of {len(score_P)} scores are NaN")
    # An infinite score ties only with itself.
    ties = (score_P >= best - (1e-9 * best.abs() if best.isfinite() else 0)).nonzero()[:, 0]
    return int(ties[torch.randint(len(ties), (1,), generator=rng)])


def draw(weight_P: Tensor, taken: list[int], rng: torch.Generator) -> int:
    """Draw a position that is not taken, with probability proportional to its weight; uniformly if all weights are 0.

    Not by torch.multinomial, which refuses more than 2^24 positions and sums in float32.
    """
    weight_P = weight_P.double().index_fill(0, torch.tensor(taken, dtype=torch.int64), 0)
    if not weight_P.any():
        weight_P = torch.ones_like(weight_P).index_fill(0, torch.tensor(taken, dtype=torch.int64), 0)
    sum_P = weight_P.cumsum(0)
    at = torch.rand(1, dtype=torch.float64, generator=rng) * sum_P[-1]
    # If the product was rounded up to the whole sum, take the last position with a weight.
    return int(min(torch.searchsorted(sum_P, at, right=True), torch.searchsorted(sum_P, sum_P[-1:])))


def lazy_greedy(
    gains: Callable[[Tensor], Tensor], gain_P: Tensor, k: int, take: Callable[[int], None], rng: torch.Generator
) -> Tensor:
    """The k positions that greedy maximisation of a monotone submodular function picks, in order (Minoux, 1978).

    Gains only shrink as the set grows. So an earlier gain of a position bounds its present one, and most gains need not
    be computed again. gain_P: the gains before the first pick. gains(positions) -> their present gains.
    take(position): called after each pick but the last. Ties are broken at random.
    """
    order_P = torch.randperm(len(gain_P), generator=rng)
    bound_P = gain_P[order_P].clone()
    current_P = torch.ones(len(gain_P), dtype=torch.bool)
    picked: list[int] = []
    while True:
        batch = 32
        # argmax returns the first of equal bounds, and order_P is random: ties are broken at random.
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
