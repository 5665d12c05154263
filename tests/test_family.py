"""Tests of several strategies at once: by hand, against a slow reference, and by simulation."""

from itertools import product
from math import inf, sqrt

import numpy as np
import pytest
from scipy import stats as tests

from al_bench.analysis import family
from al_bench.analysis.family import FamilyTest, holm_wilcoxon, max_t


def t_of(d_S):
    sd = d_S.std(ddof=1)
    return abs(d_S.mean()) / (sd / sqrt(len(d_S))) if sd > 1e-12 else inf * abs(d_S.mean())


def slow_max_t(d_ST):
    """p_T by the definition: over all sign vectors, the largest |t| of this strategy and those with a smaller one."""
    n_T = d_ST.shape[1]
    observed = [t_of(d_S) for d_S in d_ST.T]
    flipped = [[t_of(np.array(signs) * d_S) for d_S in d_ST.T] for signs in product((1, -1), repeat=len(d_ST))]

    def p(i):
        rivals = [j for j in range(n_T) if observed[j] <= observed[i]]
        return np.mean([max(t[j] for j in rivals) >= observed[i] * (1 - 1e-9) for t in flipped])

    return [max(p(j) for j in range(n_T) if observed[j] >= observed[i]) for i in range(n_T)]


@pytest.mark.parametrize("n, n_strategies", [(6, 1), (6, 3), (7, 4), (8, 2)])
def test_the_p_values_are_those_of_the_definition(n, n_strategies):
    rng = np.random.default_rng(n)
    d_ST = rng.normal(0.5, 1, (n, n_strategies))
    found = max_t(d_ST)
    assert [f.p for f in found] == pytest.approx(slow_max_t(d_ST))
    assert [f.p_alone for f in found] == pytest.approx([slow_max_t(d_ST[:, [i]])[0] for i in range(n_strategies)])


def test_one_strategy_by_hand():
    # Of 32 pairs of opposite sign vectors only (no flip) and (1 flipped) have a |sum| of 19 or more: 21 and 19.
    (found,) = max_t(np.array([[-1.0], [2], [3], [4], [5], [6]]))
    assert found.p == found.p_alone == 2 / 32 and found.n_strategies == 1
    (found,) = max_t(np.array([[1.0], [2], [3], [4], [5], [6]]))
    assert found.p == 1 / 32
    # c is the second largest |t|: 19 = 21 - 2 for the signs (-, +, +, +, +, +).
    flipped = np.array([-1.0, 2, 3, 4, 5, 6])
    half = t_of(flipped) * np.arange(1.0, 7).std(ddof=1) / sqrt(6)
    assert (found.low, found.high) == pytest.approx((3.5 - half, 3.5 + half)) and found.low > 0


@pytest.mark.parametrize("n, smallest", [(6, 2 / 2**6), (10, 2 / 2**10)])
def test_the_smallest_p_does_not_grow_with_the_family(n, smallest):
    d_ST = np.repeat(0.01 * np.arange(1, n + 1)[:, None], 12, axis=1)
    assert [f.p for f in max_t(d_ST)] == pytest.approx([smallest] * 12)


def test_who_can_never_be_called_is_in_no_family():
    many = np.array([0.1, 0.3, 0.2, 0.4, 0.1, 0.2, 0.3])
    few = np.where(np.arange(7) < 5, many, np.nan)  # 5 pairs
    zeros = np.where(np.arange(7) < 5, many, 0)  # 7 pairs, 5 of which have a sign
    found = max_t(np.stack([many, few, zeros, np.full(7, 0.1), np.zeros(7)], axis=1))
    assert found[1:] == [None] * 4 and found[0].n_strategies == 1 and found[0].p == 2 / 2**7
    assert holm_wilcoxon(np.stack([many, few], axis=1))[1] is None


def test_words_and_intervals_agree():
    rng = np.random.default_rng(0)
    n_called_by_step_down = 0
    for _ in range(200):
        n, n_strategies = rng.integers(6, 12), rng.integers(1, 8)
        d_ST = rng.normal(rng.normal(0, 1, n_strategies), 1, (n, n_strategies)) + rng.normal(0, 1, (n, 1))
        for d_S, found in zip(d_ST.T, max_t(d_ST), strict=True):
            called = found.p <= 0.05
            assert found.low <= d_S.mean() <= found.high
            assert (found.low >= 0 or found.high <= 0) if called else found.low <= 0 <= found.high
            n_called_by_step_down += called and 0 in (found.low, found.high)
    assert n_called_by_step_down > 3  # these intervals end at 0


def test_strategies_with_fewer_pairs_are_compared_by_their_own_t_distribution():
    rng = np.random.default_rng(1)
    d_ST = rng.normal(1, 1, (9, 3))
    d_ST[6:, 1] = np.nan
    found = max_t(d_ST)
    (alone,) = max_t(d_ST[:6, [1]])
    assert found[1].p_alone == alone.p and found[1].p >= alone.p
    # The definition, with the p of each t-test in place of |t|.
    flips = np.array(list(product((1, -1), repeat=9)))[:, :, None] * d_ST
    p_XT = np.stack([tests.ttest_1samp(flips[:, : 6 if i == 1 else 9, i], 0, axis=1).pvalue for i in range(3)], axis=1)
    smallest_X = p_XT.min(1)
    best = int(p_XT[0].argmin())
    assert found[best].p == pytest.approx((smallest_X <= p_XT[0, best] * (1 + 1e-9)).mean())


def test_the_order_of_seeds_and_strategies_and_the_scale_change_nothing():
    rng = np.random.default_rng(2)
    d_ST = rng.normal(0.5, 1, (8, 4))
    there = max_t(d_ST)
    seeds, names = rng.permutation(8), rng.permutation(4)
    back = max_t(d_ST[seeds][:, names])
    assert [back[i].p for i in range(4)] == [there[j].p for j in names]
    assert [f.p for f in max_t(1e-6 * d_ST)] == [f.p for f in max_t(-d_ST)] == [f.p for f in there]


def test_with_many_seeds_signs_are_drawn_and_the_draw_is_fixed():
    d_ST = np.random.default_rng(3).normal(0.3, 1, (24, 3))
    found = max_t(d_ST)
    assert found == max_t(d_ST)
    for f, d_S in zip(found, d_ST.T, strict=True):
        assert f.p_alone == pytest.approx(tests.ttest_1samp(d_S, 0).pvalue, abs=0.02) and 0 < f.p_alone <= f.p
    assert len(family.signs(24)) == family.DRAWN + 1 and (family.signs(24)[0] == 1).all()


def correlated(rng, n, n_strategies):
    """What strategies share, random's own runs, makes half of the variance."""
    return (rng.standard_normal((n, n_strategies)) + rng.standard_normal((n, 1))) / sqrt(2)


@pytest.mark.parametrize("n, n_strategies", [(6, 5), (10, 15)])
def test_false_calls_of_a_family_stay_below_alpha(n, n_strategies):
    rng = np.random.default_rng(4)
    false = [any(f.p <= 0.05 for f in max_t(correlated(rng, n, n_strategies))) for _ in range(400)]
    assert np.mean(false) < 0.05 + 2 * sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("n, n_strategies", [(6, 1), (8, 5), (10, 15)])
def test_all_intervals_of_a_family_cover_together(n, n_strategies):
    rng, true_T = np.random.default_rng(5), np.linspace(0, 2, n_strategies)
    covered = [
        all(f.low <= true <= f.high for f, true in zip(max_t(true_T + correlated(rng, n, n_strategies)), true_T,
                                                       strict=True))
        for _ in range(400)
    ]  # fmt: skip
    assert abs(np.mean(covered) - 0.95) < 3 * sqrt(0.05 * 0.95 / 400)


def test_it_finds_more_than_wilcoxon_and_holm():
    """STATISTICS: 10 seeds, 15 strategies, one better by 1.5 standard deviations: 45% and 76 to 79%."""
    rng, shift_T = np.random.default_rng(6), np.array([1.5] + [0] * 14)
    samples = [shift_T + correlated(rng, 10, 15) for _ in range(200)]
    power = {test: np.mean([test(d_ST)[0].p <= 0.05 for d_ST in samples]) for test in (max_t, holm_wilcoxon)}
    assert power[max_t] > 0.68 and power[holm_wilcoxon] < 0.55


def test_wilcoxon_and_holm_by_hand():
    up = 0.01 * np.arange(1, 8)
    mixed = up * [-1, 1, 1, 1, 1, 1, 1]
    # p alone: 2 / 128 and 4 / 128. Holm: 2 * 2 / 128, then the larger of that and 4 / 128.
    assert holm_wilcoxon(np.stack([up, mixed], axis=1)) == [
        FamilyTest(4 / 128, 2 / 128, 2),
        FamilyTest(4 / 128, 4 / 128, 2),
    ]
