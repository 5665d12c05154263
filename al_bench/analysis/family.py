"""Tests of several strategies against random at once, such that the chance of any false call stays below alpha.

Two tests give the same record: `max_t`, with simultaneous intervals, and `holm_wilcoxon`. S seeds, T strategies, X sign
vectors, n_T pairs. The difference of a pair that a strategy lacks is nan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy import stats as tests

from al_bench.analysis import stats

MOST_SEEDS = 16  # with more of them the sign vectors are drawn
DRAWN = 2**15 - 1
NOISE = 1e-9  # statistics that differ by less differ by the rounding of floats


@dataclass(frozen=True)
class FamilyTest:
    """One strategy of a family against random. p is corrected for the family, p_alone is not.

    low, high: the simultaneous interval of the mean difference. 0 lies inside unless p <= alpha; then 0 is outside or
    an end. None: this test has no intervals.
    """

    p: float
    p_alone: float
    n_strategies: int
    low: float | None = None
    high: float | None = None


def max_t(difference_ST: ArrayLike, alpha: float = 0.05) -> list[FamilyTest | None]:
    """Step-down max-T by sign flips of whole seeds (Westfall and Young, 1993; Romano and Wolf, 2005).

    Where no strategy differs from random, each seed's differences could as well have the opposite sign. So the largest
    |t| of the family has a known distribution: its values over all sign vectors, one sign a seed. A strategy's p is
    the share of sign vectors whose largest |t|, of this strategy and those with a smaller |t|, reaches its own.

    The interval is the mean -+ c standard errors. c is the quantile of the largest |t| of the whole family. A strategy
    that the step-down alone finds has an interval that ends at 0 (Strassburger and Bretz, 2008).

    None for a strategy that is in no family: its differences do not vary, or its pairs cannot reach alpha.
    """
    difference_ST = np.round(np.asarray(difference_ST, float), stats.DECIMALS)
    there = [t for t, d_S in enumerate(difference_ST.T) if can_be_called(d_S[~np.isnan(d_S)], alpha)]
    found: list[FamilyTest | None] = [None] * difference_ST.shape[1]
    if not there:
        return found
    d_ST = difference_ST[:, there]
    n_T = (~np.isnan(d_ST)).sum(0)
    size_XT = sizes(np.nan_to_num(d_ST), n_T)
    p_T, p_alone_T = step_down(size_XT), reached_by(size_XT, size_XT[0]).mean(0)
    c_T = critical_t(size_XT.max(1), n_T, alpha)
    for i, t in enumerate(there):
        d_S = d_ST[~np.isnan(d_ST[:, i]), i]
        low, high = cut_at_zero(d_S.mean(), c_T[i] * tests.sem(d_S), p_T[i] <= alpha)
        found[t] = FamilyTest(float(p_T[i]), float(p_alone_T[i]), len(there), low, high)
    return found


def can_be_called(difference_S: np.ndarray, alpha: float) -> bool:
    """Whether the pairs vary, and some p of theirs can be as small as alpha."""
    return stats.smallest_p(np.count_nonzero(difference_S)) <= alpha and np.ptp(difference_S) > 0


@cache
def signs(n: int) -> np.ndarray:
    """Sign vectors of n seeds, [X, n], the first without a flip: each of a pair of opposite ones, or so many drawn."""
    if n > MOST_SEEDS:
        drawn_XS = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWN, n))
        return np.vstack([np.ones(n), drawn_XS])
    flips_XS = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1  # the last seed keeps its sign
    return 1.0 - 2 * flips_XS


def sizes(d_ST: np.ndarray, n_T: np.ndarray) -> np.ndarray:
    """size_XT: what grows with |t| of each strategy under each sign vector, comparable between strategies.

    Of equally many pairs it is |sum| / sqrt(n * sum of squares), which lies between 0 and 1. Else it is 1 - p of the
    t-test, because a |t| means less with fewer pairs.
    """
    r_XT = np.abs(signs(len(d_ST)) @ d_ST) / np.sqrt(n_T * (d_ST**2).sum(0))
    return r_XT if np.ptp(n_T) == 0 else special.betainc(0.5, (n_T - 1) / 2, np.minimum(r_XT, 1) ** 2)


def reached_by(size_XT: np.ndarray, observed_T: np.ndarray) -> np.ndarray:
    return size_XT >= observed_T - NOISE


def step_down(size_XT: np.ndarray) -> np.ndarray:
    """p_T, corrected. The first row of size_XT is what was observed."""
    order_T = size_XT[0].argsort()
    largest_XT = np.maximum.accumulate(size_XT[:, order_T], axis=1)  # of a strategy and those with a smaller size
    p_T = np.empty(size_XT.shape[1])
    smallest_last = reached_by(largest_XT, size_XT[0, order_T]).mean(0)
    p_T[order_T] = np.maximum.accumulate(smallest_last[::-1])[::-1]
    return p_T


def critical_t(largest_X: np.ndarray, n_T: np.ndarray, alpha: float) -> np.ndarray:
    """c_T: |t| above it is called by the single step, |t| up to it is not."""
    n_above = int(alpha * len(largest_X) + NOISE)
    size = np.sort(largest_X)[::-1][n_above]
    if np.ptp(n_T) == 0:
        return size * np.sqrt((n_T - 1) / (1 - size**2)) if size < 1 - NOISE else np.full(len(n_T), np.inf)
    return tests.t.isf((1 - size) / 2, n_T - 1)


def cut_at_zero(mean: float, half: float, called: bool) -> tuple[float, float]:
    """mean -+ half, where 0 lies inside if and only if the strategy is not called."""
    low, high = float(mean - half), float(mean + half)
    if not called:
        return min(low, 0.0), max(high, 0.0)  # the rounding of floats
    if low <= 0 <= high:
        return (0.0, high) if mean > 0 else (low, 0.0)
    return low, high


def holm_wilcoxon(difference_ST: ArrayLike, alpha: float = 0.05) -> list[FamilyTest | None]:
    """Exact Wilcoxon signed-rank tests, corrected by Holm's method. None as in max_t. There are no intervals."""
    difference_ST = np.round(np.asarray(difference_ST, float), stats.DECIMALS)
    pairs = {t: d_S[~np.isnan(d_S)] for t, d_S in enumerate(difference_ST.T)}
    there = [t for t, d_S in pairs.items() if can_be_called(d_S, alpha)]
    p_alone_T = [stats.exact_wilcoxon(pairs[t]) for t in there]
    found = {
        t: FamilyTest(float(p), p_alone, len(there))
        for t, p, p_alone in zip(there, stats.holm(p_alone_T), p_alone_T, strict=True)
    }
    return [found.get(t) for t in pairs]


@dataclass(frozen=True)
class Method:
    """A test of a family: how it is computed, and what a report calls it."""

    test: Callable[..., list[FamilyTest | None]]  # (difference_ST, alpha)
    short: str  # in the head of a column
    words: str  # below a table


METHODS = {
    "max_t": Method(
        max_t,
        "max-T",
        "p and 95% intervals of differences hold for all strategies at once (step-down max-T over sign flips of whole "
        "seeds); below 6 pairs intervals are Student's t, each strategy alone.",
    ),
    "wilcoxon": Method(
        holm_wilcoxon,
        "Wilcoxon, Holm",
        "p: exact Wilcoxon tests, Holm's correction. 95% intervals: Student's t, each strategy alone.",
    ),
}
