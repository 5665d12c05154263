"""Many strategies at once: who beats whom, and ranks over several comparisons. Arrays in, numbers out.

S seeds (paired across strategies), R rounds, M strategies, B blocks (one data set in one regime), K checkpoints. Scores
are such that more is better.
"""

from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as tests

from al_bench.analysis import stats


def blocks_needed(n_strategies: int, alpha: float = 0.05) -> int:
    """The fewest blocks with which one pair of these strategies can be told apart, after Holm's correction for all."""
    n_pairs = n_strategies * (n_strategies - 1) // 2
    return next(b for b in range(1, 1000) if n_pairs * stats.smallest_p(b) <= alpha)


def badge_checkpoints(random_SR: ArrayLike) -> np.ndarray:
    """The rounds at which BADGE's matrix compares: 1, 2, 4, ... (Ash et al., 2020, section 4).

    n0 is the label count at which Random's mean reaches 99% of its final accuracy: past it all strategies are alike.
    Checkpoints are the label counts M + 2^(m-1) B for m = 1 ... floor(log2((n0 - M) / B)), with M initial labels and
    queries of one size B: rounds 2^(m-1). ValueError where the rule leaves none.
    """
    mean_R = np.asarray(random_SR, float).mean(0)
    n0 = int((mean_R >= 0.99 * mean_R[-1]).argmax())
    if n0 < 2:
        raise ValueError(f"BADGE's rule leaves no checkpoint: Random has 99% of its final accuracy in round {n0}.")
    return 2 ** np.arange(int(log2(n0)))


def penalty_badge(accuracy_MSR: ArrayLike, random: int) -> np.ndarray:
    """Pairwise penalty matrix of one setting by BADGE's own rules (Ash et al., 2020): penalty_MM.

    At each of K checkpoints, 1/K goes to entry [i, j] where i beats j by a two-sided paired t-test at 0.05, without
    any correction; the authors have 5 repeats, hence t > 2.776. So [i, j] is the share of checkpoints at which row i
    beats column j; the mean over settings of these matrices is theirs, divided by the number of settings.
    random: the row of accuracy_MSR that is Random.
    """
    accuracy_MSR = _strategies(accuracy_MSR)
    checkpoints = badge_checkpoints(accuracy_MSR[random])
    t_MMK = _paired_t(accuracy_MSR[:, :, checkpoints])
    return (t_MMK > tests.t.ppf(0.975, accuracy_MSR.shape[1] - 1)).mean(-1)


def penalty_holm(accuracy_MSR: ArrayLike, alpha: float = 0.05) -> np.ndarray:
    """Pairwise penalty matrix of one setting over all R rounds: penalty_MM, [i, j] the share in which i beats j.

    Two-sided paired t-tests; for each pair of strategies Holm's correction over its R rounds, and none over the pairs.
    A round in which all differences are the same is no win.
    """
    accuracy_MSR = _strategies(accuracy_MSR)
    t_MMR = _paired_t(accuracy_MSR)
    p_MMR = np.where(np.isfinite(t_MMR), 2 * tests.t.sf(np.abs(t_MMR), accuracy_MSR.shape[1] - 1), 1)
    return ((t_MMR > 0) & (stats.holm(p_MMR) < alpha)).mean(-1)


def _strategies(accuracy_MSR: ArrayLike) -> np.ndarray:
    accuracy_MSR = np.asarray(accuracy_MSR, float)
    if accuracy_MSR.ndim != 3 or accuracy_MSR.shape[0] < 2 or accuracy_MSR.shape[1] < 2:
        raise ValueError(f"A penalty matrix needs at least 2 strategies and 2 seeds; these are {accuracy_MSR.shape}.")
    if not np.isfinite(accuracy_MSR).all():
        raise ValueError("An accuracy is not a finite number.")
    return accuracy_MSR


def _paired_t(accuracy_MSR: np.ndarray) -> np.ndarray:
    """t of row minus column, by seeds; infinite where all differences are the same, nan where they are 0."""
    difference_MMSR = np.round(accuracy_MSR[:, None] - accuracy_MSR[None], stats.DECIMALS)
    constant_MMR = np.ptp(difference_MMSR, axis=2) == 0
    sd_MMR = np.where(constant_MMR, 0, difference_MMSR.std(axis=2, ddof=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return difference_MMSR.mean(2) * np.sqrt(accuracy_MSR.shape[1]) / sd_MMR


@dataclass(frozen=True)
class Ranks:
    """mean_M: 1 is best. p-values, 1 on the diagonal: what a critical-difference diagram is drawn from."""

    n_blocks: int
    mean_M: np.ndarray
    p_friedman: float
    p_wilcoxon_MM: np.ndarray  # exact, Holm over all pairs


def ranks(score_BM: ArrayLike) -> Ranks:
    """Mean ranks over blocks (Demsar, 2006; pairs by Wilcoxon and Holm: Benavoli et al., 2016).

    score_BM: each block's mean. A block is a data set: its seeds and its budgets are no independent blocks. ValueError
    below 3 strategies, or below the blocks with which some pair can be told apart.
    """
    score_BM = np.round(np.asarray(score_BM, float), stats.DECIMALS)
    b, m = score_BM.shape
    if m < 3:
        raise ValueError(f"Ranks need at least 3 strategies, and there are {m}.")
    if b < blocks_needed(m):
        raise ValueError(f"Ranks of {m} strategies need at least {blocks_needed(m)} data sets, and there are {b}.")
    if not np.isfinite(score_BM).all():
        raise ValueError("A score is not a finite number.")
    rank_BM = tests.rankdata(-score_BM, axis=1)
    return Ranks(
        n_blocks=b,
        mean_M=rank_BM.mean(0),
        p_friedman=float(tests.friedmanchisquare(*rank_BM.T).pvalue) if np.ptp(rank_BM) else 1.0,
        p_wilcoxon_MM=_wilcoxon_holm(score_BM),
    )


def _wilcoxon_holm(score_BM: np.ndarray) -> np.ndarray:
    m = score_BM.shape[1]
    i_T, j_T = np.triu_indices(m, 1)
    p_MM = np.ones((m, m))
    p_MM[i_T, j_T] = stats.holm(
        [stats.exact_wilcoxon(score_BM[:, i] - score_BM[:, j]) for i, j in zip(i_T, j_T, strict=True)]
    )
    return np.minimum(p_MM, p_MM.T)


def bayesian_signed_rank(
    a_B: ArrayLike, b_B: ArrayLike, rope: float = 0.005, seed: int = 0
) -> tuple[float, float, float]:
    """Chances that a is better by more than rope, that the two are equal within it, that b is (Benavoli et al., 2014).

    a_B, b_B: means of each block (or the pairs of one comparison). 10,000 draws from baycomp: two digits are good.
    """
    import baycomp

    stats.check_pairs(a_B, b_B)
    a_B, b_B = np.asarray(a_B, float), np.asarray(b_B, float)
    p_a, p_rope, p_b = baycomp.two_on_multiple(a_B, b_B, rope=rope, nsamples=10_000, random_state=seed)
    return float(p_a), float(p_rope), float(p_b)
