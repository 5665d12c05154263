"""How many seeds a difference takes, and which difference a number of seeds shows. Numbers in, numbers out."""

from functools import cache

import numpy as np
from scipy import stats as tests

from al_bench.analysis import stats

PLANNED = 10_000  # samples to read a power from
MANY = 30  # pairs: from here on the power of the Wilcoxon test has a formula (1% off)


def seeds_needed(sd: float, difference: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Pairs with which the Wilcoxon test finds this difference in mean with this power; sd: of the paired differences.

    ValueError for a difference of 0 or one that 10,000 pairs do not find.
    """
    if difference == 0:
        raise ValueError("No number of seeds shows a difference of 0.")
    n_N = np.arange(next(n for n in range(2, 100) if stats.smallest_wilcoxon_p(n) <= alpha), 10_001)
    enough_N = sd * _detectable_of_many(n_N, alpha, power) <= abs(difference)
    if not enough_N.any():
        raise ValueError(f"A difference of {difference:g} with sd {sd:g} would need more than 10,000 seeds.")
    n = int(n_N[enough_N.argmax()])
    while n < MANY and detectable(n, sd, alpha, power) > abs(difference):
        n += 1
    return n


def detectable(n: int, sd: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference in mean that the exact Wilcoxon test finds with this power in n pairs whose differences
    are normal; with sd = 1 it is d_z. ValueError where n pairs never reach alpha."""
    if stats.smallest_wilcoxon_p(n) > alpha:
        raise ValueError(f"{n} pairs never reach p <= {alpha:g}, however large the difference.")
    return sd * (_detectable(n, alpha, power) if n < MANY else float(_detectable_of_many(np.array(n), alpha, power)))


@cache
def _detectable(n: int, alpha: float, power: float) -> float:
    """In sd. The sum of positive ranks is the number of Walsh averages (means of two differences, or one twice) above
    0 (Tukey, 1949): it is w or more as soon as the shift lifts the w-th largest of them above 0."""
    w = int((2 * stats.rank_sums(range(1, n + 1))[::-1].cumsum()[::-1] <= alpha).argmax())
    i, j = np.triu_indices(n)
    samples = np.random.default_rng(0).standard_normal((PLANNED, n))
    shift = -np.partition((samples[:, i] + samples[:, j]) / 2, -w, axis=1)[:, -w]
    return float(np.quantile(shift, power))


def _detectable_of_many(n_N: np.ndarray, alpha: float, power: float) -> np.ndarray:
    """The same where n is large: the t-test's, with the test's efficiency of 3 / pi (Hodges and Lehmann, 1956)."""
    return (tests.t.ppf(1 - alpha / 2, n_N - 1) + tests.t.ppf(power, n_N - 1)) * np.sqrt(np.pi / 3 / n_N)
