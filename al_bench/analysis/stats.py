"""The statistics of a comparison: arrays in, numbers out.

S seeds (paired across strategies: the same order everywhere), R rounds, labels_R the labelled-set sizes of the rounds
(increasing), T tests.

Accuracies are fractions; any score will do of which higher is better. What cannot be computed raises a ValueError in
words. Where n is too small for an answer, the answer is None or an unbounded interval, never nan and never a small p.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate
from scipy import stats as tests

# Accuracies are hits / n: what differs by less is the rounding of floats, which would break ties at random.
DECIMALS = 12
ALPHA = 0.05


@dataclass(frozen=True)
class Curves:
    """labels_R and accuracy_SR of the label counts that all runs share; dropped: of each run, those it had besides."""

    labels_R: np.ndarray
    accuracy_SR: np.ndarray
    dropped: tuple[tuple[int, ...], ...]


def common(runs: Sequence[tuple[ArrayLike, ArrayLike]]) -> Curves:
    """Runs (labels, accuracy) on the label counts they share. ValueError where they share none."""
    runs = [_checked(labels, np.atleast_2d(accuracy)) for labels, accuracy in runs]
    shared = sorted(set.intersection(*(set(labels_R.tolist()) for labels_R, _ in runs)) if runs else ())
    if not shared:
        raise ValueError(f"{len(runs)} runs have no label count in common.")
    return Curves(
        np.array(shared),
        np.array([accuracy_1R[0, np.isin(labels_R, shared)] for labels_R, accuracy_1R in runs]),
        tuple(tuple(n for n in labels_R.tolist() if n not in shared) for labels_R, _ in runs),
    )


def aubc(
    labels_R: ArrayLike,
    accuracy_SR: ArrayLike,
    over: Literal["labels", "log", "rounds"] = "labels",
    skip_first: bool = False,
) -> np.ndarray:
    """Area under the budget curve of each seed, aubc_S: trapezoid / range of x, so it is an accuracy.

    Zhan et al., 2021, whose x is linear. skip_first leaves out round 0, which all strategies of a seed share.
    ValueError where fewer than 2 rounds are left.
    """
    labels_R, accuracy_SR = _checked(labels_R, accuracy_SR)
    if over not in ("labels", "log", "rounds"):
        raise ValueError(f"over={over!r}: labels, log or rounds.")
    x_R = {"labels": labels_R, "log": np.log(labels_R), "rounds": np.arange(len(labels_R))}[over][skip_first:]
    if len(x_R) < 2:
        raise ValueError(f"The area under a curve needs at least 2 rounds; there are {len(x_R)}.")
    return integrate.trapezoid(accuracy_SR[:, skip_first:], x_R, axis=1) / (x_R[-1] - x_R[0])


def labels_to(
    target: float,
    labels_R: ArrayLike,
    accuracy_SR: ArrayLike,
    rule: Literal["first", "sustained", "envelope"] = "first",
) -> np.ndarray:
    """True labelled-set size at which each seed's accuracy is target or more, labels_S; inf: not reached (censored).

    first: the smallest such; sustained: the smallest from which it is never below again; envelope: where the running
    maximum crosses the target, interpolated linearly between label counts.
    """
    labels_R, accuracy_SR = _checked(labels_R, accuracy_SR)
    if rule == "envelope":
        return np.array([_crossing(target, labels_R, best_R) for best_R in np.maximum.accumulate(accuracy_SR, axis=1)])
    reached_SR = accuracy_SR >= target
    if rule == "sustained":
        reached_SR = np.logical_and.accumulate(reached_SR[:, ::-1], axis=1)[:, ::-1]
    elif rule != "first":
        raise ValueError(f"rule={rule!r}: first, sustained or envelope.")
    return np.where(reached_SR.any(1), labels_R[reached_SR.argmax(1)], np.inf)


def _crossing(target: float, labels_R: np.ndarray, best_R: np.ndarray) -> float:
    if best_R[-1] < target:
        return np.inf
    r = int((best_R >= target).argmax())
    return float(np.interp(target, best_R[r - 1 : r + 1], labels_R[r - 1 : r + 1]) if r else labels_R[0])


def quartiles(labels_S: ArrayLike) -> tuple[float, float, float]:
    """25, 50 and 75 % of label counts by nearest rank: observed ones, so inf (censored) needs no arithmetic."""
    low, median, high = np.quantile(np.asarray(labels_S, float), [0.25, 0.5, 0.75], method="inverted_cdf")
    return float(low), float(median), float(high)


@dataclass(frozen=True)
class Efficiency:
    """labels_Random / labels_method at one target: geometric mean over the n_pairs of n seeds in which both reached it.

    The other seeds are counted by who did not (random, method, both) and are in no mean: where only Random did not,
    the mean understates the method, where only the method did not, it flatters it. None: too few pairs to say.
    """

    n: int
    n_pairs: int
    n_censored_random: int
    n_censored_method: int
    n_censored_both: int
    mean: float | None
    low: float | None
    high: float | None
    level: float

    @property
    def n_reached(self) -> tuple[int, int]:
        """The seeds in which the target was reached: by the method, by Random."""
        missed = self.n_censored_both
        return self.n - self.n_censored_method - missed, self.n - self.n_censored_random - missed

    @property
    def complete(self) -> bool:
        """Whether both reached the target in every pair. Otherwise a mean over those that did flatters one of them."""
        return 0 < self.n == self.n_pairs

    @property
    def savings(self) -> tuple[float | None, float | None, float | None]:
        """Share of Random's labels that the method saves, 1 - 1/efficiency: (mean, low, high). Negative: it costs."""
        mean, low, high = (None if e is None else 1 - 1 / e for e in (self.mean, self.low, self.high))
        return mean, low, high


def efficiency(random_S: ArrayLike, method_S: ArrayLike, level: float = 0.95) -> Efficiency:
    """From what `labels_to` gives for both, paired by seed. The interval is Student's t on the logarithms.

    A crossing that was not reached is never replaced by the last label count: savings would then depend on how long a
    run went on.
    """
    random_S, method_S = np.asarray(random_S, float), np.asarray(method_S, float)
    if random_S.shape != method_S.shape or random_S.ndim != 1:
        raise ValueError(f"Pairs need two lists of one length; these are {random_S.shape} and {method_S.shape}.")
    random_missed_S, method_missed_S = np.isinf(random_S), np.isinf(method_S)
    both_reached_S = ~(random_missed_S | method_missed_S)
    log_ratio_S = np.log(random_S[both_reached_S] / method_S[both_reached_S])
    low, high = _bounds(_t_interval(log_ratio_S[:, None], level))
    return Efficiency(
        n=len(random_S),
        n_pairs=len(log_ratio_S),
        n_censored_random=int((random_missed_S & ~method_missed_S).sum()),
        n_censored_method=int((method_missed_S & ~random_missed_S).sum()),
        n_censored_both=int((random_missed_S & method_missed_S).sum()),
        mean=exp(log_ratio_S.mean()) if len(log_ratio_S) else None,
        low=None if low is None else exp(low),
        high=None if high is None else exp(high),
        level=level,
    )


@dataclass(frozen=True)
class PairedDifference:
    """a - b over n pairs, with Student's t interval of the mean and p of the t-test.

    low, high, p_t: None where nothing varies or n = 1. sd: of the differences (None: n = 1). smallest_p: the smallest p
    that signed tests can give with these pairs: all signs alike. A difference of 0 has no sign.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    level: float
    p_t: float | None
    smallest_p: float

    def equal_within(self, margin: float, alpha: float = 0.05) -> bool:
        """Two one-sided t-tests (Schuirmann, 1987): whether both say at alpha that |mean| is below margin."""
        if self.low is None:
            return False
        half = tests.t.ppf(1 - alpha, self.n - 1) * self.sd / sqrt(self.n)
        return abs(self.mean) + half < margin


def paired_difference(a_S: ArrayLike, b_S: ArrayLike, level: float = 0.95) -> PairedDifference:
    """Paired difference of two strategies' scores (one number a seed: AUBC, or the accuracy of one round).

    results/calibration/ has the coverage of the interval.
    """
    difference_S = _differences(a_S, b_S)
    n = len(difference_S)
    low, high = _bounds(_t_interval(difference_S[:, None], level))
    return PairedDifference(
        n=n,
        mean=float(difference_S.mean()),
        sd=float(difference_S.std(ddof=1)) if n > 1 else None,
        low=low,
        high=high,
        level=level,
        p_t=None if low is None else float(tests.ttest_1samp(difference_S, 0).pvalue),
        smallest_p=smallest_p(np.count_nonzero(difference_S)),
    )


def difference_curve(
    a_SR: ArrayLike, b_SR: ArrayLike, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a - b at each round: mean_R, low_R, high_R, Student's t.

    Pointwise. Zero wide where the two are identical in all of several pairs (round 0), unbounded (inf) where there is
    one pair, or where all differences are the same by chance.
    """
    difference_SR = _differences(a_SR, b_SR)
    low_R, high_R = _t_interval(difference_SR, level)
    identical_R = (difference_SR == 0).all(0) & (len(difference_SR) > 1)
    return difference_SR.mean(0), np.where(identical_R, 0, low_R), np.where(identical_R, 0, high_R)


def _differences(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    check_pairs(a, b)
    return np.round(np.asarray(a, float) - np.asarray(b, float), DECIMALS)


def check_pairs(a: ArrayLike, b: ArrayLike) -> None:
    """Raises ValueError for arrays that are no pairs of finite numbers."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"Pairs need two arrays of one shape that are not empty; these are {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("A score is not a finite number.")


def t_interval(value_SR: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean_R over seeds, and low_R, high_R: Student's t interval of the mean.

    nan where a value is not finite, and of one seed. Where all seeds have the same value the interval has width 0.
    """
    value_SR = np.asarray(value_SR, float)
    value_SR = np.where(np.isfinite(value_SR), value_SR, np.nan)
    n = len(value_SR)
    if n == 0:
        return (np.full(value_SR.shape[1:], np.nan),) * 3
    mean_R = value_SR.mean(0)
    half_R = tests.t.ppf((1 + level) / 2, n - 1) * tests.sem(value_SR) if n > 1 else np.full(mean_R.shape, np.nan)
    return mean_R, mean_R - half_R, mean_R + half_R


def _t_interval(difference_SR: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Unbounded where a column does not vary, or there is one seed: nothing can be said there."""
    _, low_R, high_R = t_interval(difference_SR, level)
    varies_R = (np.ptp(difference_SR, axis=0) > 0) if len(difference_SR) else np.zeros(difference_SR.shape[1], bool)
    return np.where(varies_R, low_R, -np.inf), np.where(varies_R, high_R, np.inf)


def _bounds(interval: tuple[np.ndarray, np.ndarray]) -> tuple[float | None, float | None]:
    low, high = interval[0].item(), interval[1].item()
    return (low, high) if np.isfinite(low) else (None, None)


def exact_wilcoxon(difference_S: ArrayLike) -> float:
    """Two-sided p of the signed-rank test, exact with ties and zeros too.

    Zeros by Pratt, 1959: ranked, then left out. The distribution over all 2^n signs, by convolution. Without ties and
    zeros it is scipy's method="exact"; with them that is not exact (six zeros would have p = 0.03), and scipy's
    permutations take a second at n = 13.
    """
    difference_S = np.round(np.asarray(difference_S, float), DECIMALS)
    twice_ranks = np.round(2 * tests.rankdata(np.abs(difference_S))).astype(int)  # mid-ranks are halves
    twice_ranks_N, positive_N = twice_ranks[difference_S != 0], difference_S[difference_S != 0] > 0
    chance = rank_sums(twice_ranks_N)
    w = twice_ranks_N[positive_N].sum()
    return float(min(1, 2 * min(chance[: w + 1].sum(), chance[w:].sum())))


def rank_sums(ranks: Iterable[int]) -> np.ndarray:
    """chance[w]: that the ranks of the positive differences sum to w, where each sign is a coin's."""
    chance = np.ones(1)
    for rank in ranks:
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    return chance


def smallest_p(n: int) -> float:
    """The smallest two-sided p of the exact Wilcoxon test, and of sign flips, with n differences that are not 0.

    All signs are alike, which has the chance 2 / 2^n.
    """
    return min(1.0, 2.0 ** (1 - n))


FEWEST = next(n for n in range(1, 100) if smallest_p(n) <= ALPHA)  # pairs with which a call is possible


def holm(p_T: ArrayLike) -> np.ndarray:
    """p-values adjusted for all T tests of a family (Holm, 1979); leading axes are families of their own.

    The same numbers as statsmodels' multipletests(method="holm"), which collects all garbage (50 ms) at every call.
    """
    p_T = np.asarray(p_T, float)
    order_T = p_T.argsort(-1)
    steps_T = np.take_along_axis(p_T, order_T, -1) * np.arange(p_T.shape[-1], 0, -1)
    adjusted_T = np.empty_like(p_T)
    np.put_along_axis(adjusted_T, order_T, np.maximum.accumulate(steps_T, -1).clip(max=1), -1)
    return adjusted_T


def _checked(labels_R: ArrayLike, accuracy_SR: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels_R, accuracy_SR = np.asarray(labels_R), np.asarray(accuracy_SR, float)
    if accuracy_SR.ndim != 2 or accuracy_SR.shape[1] != len(labels_R) or not accuracy_SR.size:
        raise ValueError(f"Accuracies {accuracy_SR.shape} do not fit {len(labels_R)} label counts: [seeds, rounds].")
    if not (np.diff(labels_R) > 0).all() or labels_R[0] <= 0:
        raise ValueError(f"Label counts must be positive and increase from round to round: {labels_R.tolist()}.")
    if not np.isfinite(accuracy_SR).all():
        raise ValueError("An accuracy is not a finite number.")
    return labels_R, accuracy_SR
