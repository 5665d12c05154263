from itertools import product
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, t, ttest_1samp, ttest_rel, wilcoxon
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from al_bench.analysis import acquired, family, power, rankings, stats
from al_bench.analysis.stats import Efficiency, efficiency, labels_to, paired_difference, quartiles

few = settings(max_examples=60, deadline=None, derandomize=True)
accuracies = st.integers(0, 1000).map(lambda hits: hits / 1000)


def crossing(*rounds):
    """Curves over 20, 30 ... 300 labels that first have each (target, labels) of a seed; inf: never."""
    labels_R = np.arange(20, 301, 10)
    return labels_R, np.array([[0.5 + sum(0.1 * (n >= x) for x in seed) for n in labels_R] for seed in rounds])


# Curves


def test_runs_are_cut_to_the_label_counts_they_share_and_say_what_was_dropped():
    curves = stats.common([([20, 40, 60, 80], [0.1, 0.2, 0.3, 0.4]), ([20, 60, 70, 80], [0.5, 0.6, 0.7, 0.8])])
    assert curves.labels_R.tolist() == [20, 60, 80]
    assert curves.accuracy_SR.tolist() == [[0.1, 0.3, 0.4], [0.5, 0.6, 0.8]]
    assert curves.dropped == ((40,), (70,))


@pytest.mark.parametrize(
    "options, area",
    [
        ({}, (10 * 0.5 + 80 * 0.7) / 90),
        ({"over": "log"}, (log(2) * 0.5 + log(5) * 0.7) / log(10)),
        ({"over": "rounds"}, 0.6),
        ({"skip_first": True}, 0.7),
    ],
)
def test_the_area_under_a_curve_by_hand(options, area):
    assert stats.aubc([10, 20, 100], [[0.4, 0.6, 0.8]], **options) == pytest.approx([area], abs=1e-12)


@few
@given(st.lists(accuracies, min_size=2, max_size=8), st.sampled_from(["labels", "log", "rounds"]))
def test_an_area_is_an_accuracy(accuracy_R, over):
    labels_R = 10 * np.arange(1, len(accuracy_R) + 1) ** 2
    area, flat = stats.aubc(labels_R, [accuracy_R, [accuracy_R[0]] * len(accuracy_R)], over)
    assert min(accuracy_R) - 1e-12 <= area <= max(accuracy_R) + 1e-12
    assert flat == pytest.approx(accuracy_R[0], abs=1e-12)


@pytest.mark.parametrize(
    "rule, expected",
    [("first", [20, 10, inf]), ("sustained", [40, 10, inf]), ("envelope", [15, 10, inf])],
)
def test_labels_to_a_target_by_each_rule(rule, expected):
    accuracy_SR = [[0.5, 0.7, 0.4, 0.6], [0.6, 0.6, 0.6, 0.6], [0.5, 0.59, 0.4, 0.1]]
    assert labels_to(0.6, [10, 20, 30, 40], accuracy_SR, rule) == pytest.approx(expected)


@few
@given(st.lists(accuracies, min_size=1, max_size=8), accuracies)
def test_the_envelope_crosses_first_and_sustained_comes_last(accuracy_R, target):
    labels_R = np.arange(1, len(accuracy_R) + 1) * 10
    envelope, first, sustained = (
        labels_to(target, labels_R, [accuracy_R], rule)[0] for rule in ("envelope", "first", "sustained")
    )
    assert envelope <= first <= sustained
    assert np.isfinite(envelope) == np.isfinite(first) == (max(accuracy_R) >= target)
    assert np.isfinite(sustained) == (accuracy_R[-1] >= target)


# BatchBALD's Table 1 (TARGETS.md 2.2): true labelled-set sizes of six runs with queries of 10, nearest rank.
BATCHBALD = [(70, 190), (80, 200), (100, 210), (110, 230), (120, 240), (130, 260)]
BALD = [(120, 250), (130, 260), (130, 260), (150, 300), (180, inf), (190, inf)]


@pytest.mark.parametrize(
    "runs, to_90, to_95",
    [(BATCHBALD, (80, 100, 120), (200, 210, 240)), (BALD, (130, 130, 180), (260, 260, inf))],
)
def test_batchbalds_table_of_quartiles(runs, to_90, to_95):
    labels_R, accuracy_SR = crossing(*(runs[i] for i in (3, 0, 5, 1, 4, 2)))
    assert quartiles(labels_to(0.6, labels_R, accuracy_SR)) == to_90
    assert quartiles(labels_to(0.7, labels_R, accuracy_SR)) == to_95


def test_quartiles_are_observed_counts_also_where_most_runs_never_got_there():
    assert quartiles([inf, 100, inf, 80]) == (80, 100, inf)
    assert quartiles([inf]) == (inf, inf, inf)
    assert quartiles(range(1, 101)) == (25, 50, 75)


# The seed article's table (TARGETS.md 15.2): one run, and the full data at 88.32%.
ARTICLE_LABELS = [5000, 5200, 5400, 5600, 5800, 6000, 6600, 7000, 8000, 9000, 10000, 10400, 10800]
ARTICLE = [[*[77.64] * 4, 82.88, 82.88, 82.56, 83.76, 85.64, 86.20, 86.40, 87.00, 88.24]]


@pytest.mark.parametrize(
    "target, rule, labels",
    [
        (82.88, "first", 5800), (82.88, "sustained", 7000), (86.2, "first", 9000), (88, "first", 10800),
        (88, "envelope", 10400 + 400 * 1.00 / 1.24), (80.26, "envelope", 5700), (88.32 - 0.25, "first", 10800),
        (88.32, "first", inf), (88.32, "envelope", inf),
    ],
)  # fmt: skip
def test_the_seed_articles_table(target, rule, labels):
    assert labels_to(target, ARTICLE_LABELS, ARTICLE, rule) == pytest.approx([labels])


def test_the_seed_articles_saving_of_46_percent_is_one_pair_without_an_interval():
    found = efficiency([20025], labels_to(88, ARTICLE_LABELS, ARTICLE))
    assert found.savings[0] == pytest.approx(0.4607, abs=5e-5)
    assert found.n_pairs == 1 and found.low is found.high is None and found.savings[1:] == (None, None)


# Efficiency


def test_savings_are_measured_at_randoms_own_crossing_and_not_at_its_last_budget():
    labels_R = np.arange(10, 461, 10)  # Random goes on to 460 labels: 4.6 times as many as the method needs
    random_SR = [0.5 + 0.4 * (labels_R >= 340)]
    method_SR = [0.5 + 0.4 * (labels_R >= 100)]
    found = efficiency(labels_to(0.9, labels_R, random_SR), labels_to(0.9, labels_R, method_SR))
    assert found.mean == pytest.approx(3.4) and found.savings[0] == pytest.approx(1 - 1 / 3.4)
    never = efficiency(labels_to(0.9, labels_R[:30], [random_SR[0][:30]]), [100])
    assert never == Efficiency(1, 0, 1, 0, 0, None, None, None, 0.95) and never.savings == (None, None, None)


def test_efficiency_by_hand_with_censored_pairs_counted_and_left_out():
    found = efficiency([100, 400, inf, 300, inf, 200], [100, 100, 100, inf, inf, 100])
    assert (found.n, found.n_pairs) == (6, 3)
    assert (found.n_censored_random, found.n_censored_method, found.n_censored_both) == (1, 1, 1)
    # logs 0, 2 and 1 times log 2: mean 1, sd 1, t of 2 degrees of freedom 4.302653
    half = 4.302653 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 ** (1 - half), 2 ** (1 + half)), rel=1e-6)
    assert found.savings == pytest.approx((0.5, 1 - 2 ** (half - 1), 1 - 2 ** -(1 + half)), rel=1e-6)


def test_efficiency_of_equal_ratios_has_no_interval():
    found = efficiency([300, 310, 70], [90, 93, 21])
    assert found.mean == pytest.approx(10 / 3) and found.low is found.high is None


counts = st.one_of(st.integers(1, 500).map(float), st.just(inf))


@few
@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=12), st.randoms())
def test_turning_an_efficiency_round_inverts_it_and_the_order_of_seeds_is_nothing(pairs, random):
    there = efficiency(*zip(*pairs, strict=True))
    back = efficiency(*zip(*((b, a) for a, b in pairs), strict=True))
    assert there.n_censored_random == back.n_censored_method
    assert there.n_pairs + there.n_censored_random + there.n_censored_method + there.n_censored_both == there.n
    for a, b in ((there.mean, back.mean), (there.low, back.high), (there.high, back.low)):
        assert a is b is None or a * b == pytest.approx(1)
    random.shuffle(pairs)
    again = efficiency(*zip(*pairs, strict=True))
    assert again.mean == pytest.approx(there.mean) and again.low == pytest.approx(there.low)


# Paired differences


def test_the_interval_is_students_t_by_hand():
    found = paired_difference([0.51, 0.62, 0.73], [0.5, 0.6, 0.7])
    half = 4.302653 * 0.01 / 3**0.5
    assert (found.mean, found.sd, found.low, found.high) == pytest.approx((0.02, 0.01, 0.02 - half, 0.02 + half))
    assert found.p_t == pytest.approx(ttest_rel([0.51, 0.62, 0.73], [0.5, 0.6, 0.7]).pvalue)
    assert (found.n, found.smallest_p) == (3, 0.25)


NORMAL = ("normal", lambda rng, shape: rng.normal(size=shape))
SKEWED = ("skewed", lambda rng, shape: (rng.gamma(4, size=shape) - 4) / 2)  # skewness 1
HEAVY = ("heavy tails", lambda rng, shape: rng.standard_t(3, size=shape))


@pytest.mark.parametrize("kind", [NORMAL, SKEWED, HEAVY], ids=lambda kind: kind[0])
@pytest.mark.parametrize("n", [3, 5, 8, 10, 20])
def test_the_intervals_cover(n, kind):
    """100,000 samples: two standard errors are 0.15 points."""
    samples_SK = kind[1](np.random.default_rng(n), (n, 100_000))
    _, low_K, high_K = stats.difference_curve(samples_SK, np.zeros((n, 100_000)))
    assert 0.93 < np.mean((low_K < 0) & (high_K > 0)) < 0.97
    one = paired_difference(samples_SK[:, 0], np.zeros(n))
    assert (one.low, one.high) == pytest.approx((low_K[0], high_K[0]))


def test_a_level_is_a_level():
    a = np.random.default_rng(0).normal(size=10)
    wide, narrow = paired_difference(a, 0 * a, 0.99), paired_difference(a, 0 * a, 0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("difference, smallest_p", [([0.0] * 10, 1), ([0.1], 1), ([0.1] * 10, 2 / 2**10)])
def test_where_nothing_varies_nothing_is_claimed(difference, smallest_p):
    b = 0.3 + 0.07 * np.arange(len(difference))  # 0.3 + 0.1 - 0.3 is not 0.37 + 0.1 - 0.37 in floats
    found = paired_difference(b + difference, b)
    assert found.low is found.high is found.p_t is None and not found.equal_within(1)
    assert found.smallest_p == smallest_p


def test_a_difference_of_zero_has_no_sign():
    found = paired_difference([0, 0.1, 0.2, 0.3, 0.4, 0.5], np.zeros(6))
    assert found.smallest_p == stats.exact_wilcoxon([0, 0.1, 0.2, 0.3, 0.4, 0.5]) == 2 / 2**5


def test_two_one_sided_tests_by_hand():
    found = paired_difference([0.51, 0.62, 0.73], [0.5, 0.6, 0.7])
    edge = 0.02 + 2.919986 * 0.01 / 3**0.5  # t at 0.95 with 2 degrees of freedom
    assert found.equal_within(1.0001 * edge) and not found.equal_within(0.9999 * edge)
    assert ttest_1samp([0.01 - edge, 0.02 - edge, 0.03 - edge], 0, alternative="less").pvalue == pytest.approx(0.05)


@few
@given(st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=12), st.randoms())
def test_the_order_of_seeds_changes_nothing_and_no_number_is_nan(pairs, random):
    a_S, b_S = np.array(pairs).T
    found, back = paired_difference(a_S, b_S), paired_difference(b_S, a_S)
    assert back.mean == pytest.approx(-found.mean) and back.smallest_p == found.smallest_p
    assert found.low is None or found.low <= found.mean <= found.high
    order = random.sample(range(len(pairs)), len(pairs))
    again = paired_difference(a_S[order], b_S[order])
    assert (again.mean, again.low or 0) == pytest.approx((found.mean, found.low or 0), abs=1e-12)


def slow_wilcoxon(difference):
    """Over all signs: rank sums as far from the middle as ours, or further."""
    size = [abs(d) for d in difference]
    ranks = [sum(s < d for s in size) + (sum(s == d for s in size) + 1) / 2 for d in size]
    ranks = [(r if d > 0 else -r) for r, d in zip(ranks, difference, strict=True) if d]
    sums = [
        sum(sign * r for sign, r in zip(signs, ranks, strict=True)) for signs in product((1, -1), repeat=len(ranks))
    ]
    # sums are symmetric around 0, so two tails are twice one
    return min(1, 2 * sum(s >= abs(sum(ranks)) for s in sums) / len(sums))


@few
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_exact_wilcoxon_test_goes_over_all_signs_also_with_ties_and_zeros(difference):
    assert stats.exact_wilcoxon(np.array(difference) / 1000) == pytest.approx(slow_wilcoxon(difference))


@pytest.mark.parametrize("n", [5, 12, 30])
def test_without_ties_it_is_scipys(n):
    difference = np.random.default_rng(n).normal(0.3, 1, n)
    assert stats.exact_wilcoxon(difference) == pytest.approx(wilcoxon(difference, method="exact").pvalue)


@pytest.mark.parametrize(
    "n, p, digits",
    [(3, 0.25, 2), (5, 0.0625, 4), (6, 0.031, 3), (8, 0.0078, 4), (10, 0.0020, 4), (15, 6e-5, 5), (20, 2e-6, 6),
     (50, 2e-15, 15)],
)  # fmt: skip
def test_the_smallest_p_that_n_pairs_can_give(n, p, digits):
    """TARGETS.md 16.1."""
    assert round(stats.smallest_p(n), digits) == p
    assert stats.exact_wilcoxon(np.arange(1, n + 1)) == pytest.approx(stats.smallest_p(n))


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.6]).tolist() == [1, 1] and stats.holm([]).tolist() == []


def test_holm_is_statsmodels_holm():
    p_FT = np.random.default_rng(0).random((3, 7)) ** 3
    expected = [multipletests(p_T, method="holm")[1] for p_T in p_FT]
    np.testing.assert_allclose(stats.holm(p_FT), expected)


@pytest.mark.parametrize("n", [5, 10])
def test_rounds_that_are_alike_have_the_interval_of_one(n):
    difference_S = np.random.default_rng(0).normal(0.02, 0.02, n)
    zeros = np.zeros((n, 5))
    mean_R, low_R, high_R = stats.difference_curve(np.repeat(difference_S[:, None], 5, 1), zeros)
    one = paired_difference(difference_S, zeros[:, 0])
    assert (low_R == low_R[0]).all() and (high_R == high_R[0]).all()
    assert (low_R[0], high_R[0]) == pytest.approx((one.low, one.high), abs=1e-5)
    np.testing.assert_allclose(mean_R, one.mean)


def test_a_difference_curve_with_a_shared_start_and_a_round_that_does_not_vary():
    rng = np.random.default_rng(0)
    for n in (4, 9):
        a_SR = np.full((n, 3), 0.7)
        b_SR = a_SR + np.stack([np.zeros(n), np.full(n, 0.1), rng.normal(0, 0.1, n)], axis=1)
        mean_R, low_R, high_R = stats.difference_curve(b_SR, a_SR)
        assert (mean_R[0], low_R[0], high_R[0]) == (0, 0, 0)
        assert mean_R[1] == pytest.approx(0.1) and (low_R[1], high_R[1]) == (-inf, inf)
        assert np.isfinite(low_R[2]) and low_R[2] < mean_R[2] < high_R[2]
        order = rng.permutation(n)
        np.testing.assert_array_equal(stats.difference_curve(b_SR[order], a_SR[order])[1], low_R)
    assert stats.difference_curve([[0.5, 0.7]], [[0.5, 0.6]])[1].tolist() == [-inf, -inf]


# Penalty matrices


def rounds_until(n0, last=10):
    """Random's curve, which has 99% of its final accuracy from round n0 on."""
    return np.where(np.arange(last) >= n0, 0.8, 0.79)


@pytest.mark.parametrize("n0, rounds", [(2, [1]), (3, [1]), (4, [1, 2]), (8, [1, 2, 4]), (9, [1, 2, 4])])
def test_badges_checkpoints_double_and_end_before_random_is_done(n0, rounds):
    assert rankings.badge_checkpoints([rounds_until(n0)]).tolist() == rounds


def test_badges_matrix_by_hand_and_which_way_it_is_read():
    spread = np.array([-1, -1, 0, 1, 1]) / 100  # sd 0.01, so t = 100 sqrt(5) mean
    random_SR = np.tile(rounds_until(8), (5, 1))
    good_SR = random_SR.copy()
    good_SR[:, 1] += spread + 0.0125  # t = 2.795 > 2.776
    good_SR[:, 2] += spread + 0.0124  # t = 2.773
    good_SR[:, 4] -= spread + 0.0125
    good_SR[:, [3, 5, 9]] += 0.2  # no checkpoints
    penalty_MM = rankings.penalty_badge(np.stack([random_SR, good_SR, random_SR + 0.1]), random=0)
    np.testing.assert_allclose(penalty_MM, [[0, 1 / 3, 0], [1 / 3, 0, 0], [1, 1, 0]])  # row beats column


def test_the_holm_matrix_by_hand_and_which_way_it_is_read():
    spread = np.array([-1, -1, 0, 1, 1]) / 100
    base_SR = np.full((5, 2), 0.5)

    def better_by(*p_R):
        return base_SR + np.stack([spread + 0.01 * t.isf(p / 2, 4) / 5**0.5 for p in p_R], axis=1)

    for p_R, share in (((0.02, 0.9), 0.5), ((0.03, 0.9), 0), ((0.03, 0.04), 0), ((0.02, 0.04), 1)):
        np.testing.assert_allclose(
            rankings.penalty_holm(np.stack([base_SR, better_by(*p_R)])), [[0, 0], [share, 0]], err_msg=str(p_R)
        )


def test_the_holm_matrix_agrees_with_a_slow_reference():
    rng = np.random.default_rng(0)
    accuracy_MSR = 0.5 + 0.05 * rng.normal(size=(3, 8, 6)) + 0.06 * rng.normal(size=(3, 1, 6))
    found = rankings.penalty_holm(accuracy_MSR)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = accuracy_MSR[i], accuracy_MSR[j]
        p_R = multipletests([ttest_rel(a[:, r], b[:, r]).pvalue for r in range(6)], method="holm")[1]
        assert found[i, j] == np.mean((p_R < 0.05) & (a.mean(0) > b.mean(0)))
        assert found[j, i] == np.mean((p_R < 0.05) & (a.mean(0) < b.mean(0)))
    assert 0 < found.max() < 1


@few
@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 99))
def test_equals_never_beat_each_other_and_no_two_beat_each_other_at_once(m, s, seed):
    one_SR = np.sort(np.random.default_rng(seed).random((s, 5)), axis=1)
    one_SR[:, -1] = one_SR[:, 3] = 1
    others_MSR = np.stack([one_SR, *np.random.default_rng(seed + 1).random((m, s, 5))])
    for matrix in (rankings.penalty_holm, lambda a: rankings.penalty_badge(a, random=0)):
        assert not matrix(np.stack([one_SR] * m)).any()
        assert (matrix(others_MSR) + matrix(others_MSR).T <= 1).all()


def test_two_seeds_that_agree_by_chance_are_no_win():
    base_SR = np.array([[0.3] * 3, [0.37] * 3])  # in floats 0.3 + 0.1 - 0.3 is not 0.37 + 0.1 - 0.37
    assert not rankings.penalty_holm([base_SR, base_SR + 0.1]).any()


# Several studies


def test_ranks_by_hand():
    found = rankings.ranks(np.array([[0.9, 0.8, 0.7]] * 7) + 0.01 * np.arange(7)[:, None] * [[3, 2, 1]])
    assert found.mean_M.tolist() == [1, 2, 3] and found.n_blocks == 7
    assert found.p_friedman == pytest.approx(exp(-7))  # chi2 = 14 with 2 degrees of freedom
    off = ~np.eye(3, dtype=bool)
    assert found.p_wilcoxon_MM[off] == pytest.approx([3 * 2 / 2**7] * 6)
    assert (np.diag(found.p_wilcoxon_MM) == 1).all()


@pytest.mark.parametrize("n_strategies, blocks", [(2, 6), (3, 7), (4, 8), (5, 9), (8, 11), (12, 12)])
def test_the_blocks_that_ranks_need_are_those_with_which_a_pair_can_be_told_apart(n_strategies, blocks):
    assert rankings.blocks_needed(n_strategies) == blocks
    score_BM = np.arange(n_strategies) + 0.01 * np.random.default_rng(0).random((blocks, n_strategies))
    if n_strategies > 2:
        assert rankings.ranks(score_BM).p_wilcoxon_MM.min() <= 0.05


def test_ranks_with_ties():
    score_BM = np.random.default_rng(0).random((14, 4))
    score_BM[:, 0], score_BM[:, 1] = 0.3, 0.1 + 0.2  # equal but for the last digit
    found = rankings.ranks(score_BM)
    assert found.mean_M[0] == found.mean_M[1] and found.mean_M.sum() == pytest.approx(10)
    assert found.p_wilcoxon_MM[0, 1] == 1


def test_studies_without_any_difference():
    found = rankings.ranks(np.full((7, 3), 0.1) * 3)
    assert found.mean_M.tolist() == [2, 2, 2] and found.p_friedman == 1
    assert (found.p_wilcoxon_MM == 1).all()


def test_friedman_agrees_with_its_formula():
    score_BM = np.random.default_rng(1).random((9, 5)) + [0, 0, 0, 0.1, 0.3]
    found = rankings.ranks(score_BM)
    statistic = 12 / (9 * 5 * 6) * ((9 * found.mean_M) ** 2).sum() - 3 * 9 * 6
    assert found.p_friedman == pytest.approx(chi2.sf(statistic, 4))


def test_the_bayesian_test_of_one_block_by_hand():
    # Weights of the prior's 0 and of the difference are Dirichlet(1/2, 1). The difference wins where the prior's
    # squared weight is below 1/2, that is with probability sqrt(sqrt(1/2)).
    assert rankings.bayesian_signed_rank([0.52], [0.5])[0] == pytest.approx(0.5**0.25, abs=0.015)
    assert rankings.bayesian_signed_rank([0.5], [0.52])[2] == pytest.approx(0.5**0.25, abs=0.015)


def test_the_bayesian_test_knows_better_worse_and_the_same_and_leaves_numpys_state_alone():
    b_B = np.linspace(0.6, 0.9, 10)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    better, same = rankings.bayesian_signed_rank(b_B + 0.02, b_B), rankings.bayesian_signed_rank(b_B + 0.001, b_B)
    assert better[0] > 0.99 and same[1] > 0.99 and sum(better) == pytest.approx(1)
    assert rankings.bayesian_signed_rank(b_B + 0.001, b_B, rope=0.0001)[0] > 0.99
    mixed = b_B + 0.006 * np.arange(-4, 6)
    assert rankings.bayesian_signed_rank(mixed, b_B) == rankings.bayesian_signed_rank(mixed, b_B)
    assert rankings.bayesian_signed_rank(mixed, b_B) != rankings.bayesian_signed_rank(mixed, b_B, seed=1)
    assert (np.random.get_state()[1] == before).all()


# Planning, acquisitions


@pytest.mark.parametrize("n, n_strategies", [(6, 1), (8, 1), (10, 5), (14, 1), (10, 15)])
def test_what_can_be_detected_is_detected_so_often(n, n_strategies):
    """By the test that a report makes, for independent strategies of which one is better."""
    shift_T = np.eye(n_strategies)[0] * power.detectable(n, alpha=0.05 / n_strategies)
    rng = np.random.default_rng(1)
    found = np.mean([family.max_t(rng.normal(shift_T, 1, (n, n_strategies)))[0].p <= 0.05 for _ in range(400)])
    assert 0.8 - 0.06 < found < 0.9


def test_plans_are_those_of_what_can_be_detected():
    for n in (6, 8, 10, 20, 28, 60, 200):
        assert power.seeds_needed(1, 1.0001 * power.detectable(n)) == n
        assert power.detectable(n, sd=0.02) == pytest.approx(0.02 * power.detectable(n))
        assert power.seeds_needed(0.02, -0.0199 * power.detectable(n)) > n
    for n, alpha in ((8, 0.05), (200, 0.05 / 14)):
        assert power.detectable(n, alpha=alpha) == pytest.approx(
            TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8), rel=1e-6
        )


def test_no_plan_with_fewer_seeds_than_can_be_significant():
    assert power.seeds_needed(0.01, 1) == power.seeds_needed(0, 0.1) == power.seeds_needed(1e-9, 0.5) == 6


def test_diagnostics_of_acquisitions_by_hand():
    assert acquired.duplicate_share([3, 3, 5, 3, 3]) == pytest.approx(0.6) and acquired.duplicate_share([]) == 0
    assert acquired.label_entropy([2, 2, 0, 0]) == pytest.approx(0.5)
    assert acquired.label_entropy([0, 0, 2, 0]) == acquired.label_entropy([0, 0, 0, 0]) == 0
    assert acquired.label_entropy([1, 1, 1]) == pytest.approx(1)
    overlap_MM = acquired.jaccard([[1, 2, 3], [4, 2, 1, 9], [], []])
    np.testing.assert_allclose(overlap_MM, [[1, 2 / 5, 0, 0], [2 / 5, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: stats.common([([1, 2], [0.1, 0.2]), ([3], [0.1])]), "2 runs have no label count in common"),
        (lambda: stats.common([]), "0 runs have no label count"),
        (lambda: stats.aubc([20], [[0.5]]), "at least 2 rounds; there are 1"),
        (lambda: stats.aubc([20, 30], [[0.5, 0.6]], skip_first=True), "at least 2 rounds; there are 1"),
        (lambda: stats.aubc([20, 30], [[0.5, 0.6]], over="cost"), "labels, log or rounds"),
        (lambda: stats.aubc([20, 20], [[0.5, 0.6]]), "increase from round to round"),
        (lambda: stats.aubc([0, 20], [[0.5, 0.6]], over="log"), "must be positive"),
        (lambda: stats.aubc([20, 30], [[0.5, np.nan]]), "not a finite number"),
        (lambda: labels_to(0.5, [20, 30], [0.5, 0.6]), "do not fit 2 label counts"),
        (lambda: labels_to(0.5, [20, 30], [[0.5, 0.6]], "best"), "first, sustained or envelope"),
        (lambda: paired_difference([0.5, 0.6], [0.5]), "one shape"),
        (lambda: paired_difference([], []), "not empty"),
        (lambda: paired_difference([0.5, np.nan], [0.5, 0.5]), "not a finite number"),
        (lambda: efficiency([100, 200], [100]), "one length"),
        (lambda: rankings.badge_checkpoints([[0.5, 0.8, 0.8]]), "leaves no checkpoint.*round 1"),
        (lambda: rankings.penalty_holm(np.ones((2, 1, 3))), "at least 2 strategies and 2 seeds"),
        (lambda: rankings.penalty_holm(np.full((2, 2, 3), np.nan)), "not a finite number"),
        (lambda: rankings.ranks(np.ones((6, 3))), "Ranks of 3 strategies need at least 7 data sets, and there are 6"),
        (lambda: rankings.ranks(np.ones((6, 2))), "at least 3 strategies, and there are 2"),
        (lambda: rankings.ranks(np.full((7, 3), np.nan)), "not a finite number"),
        (lambda: power.seeds_needed(1, 0), "difference of 0"),
        (lambda: power.seeds_needed(1, 0.01), "more than 10,000 seeds"),
        (lambda: power.detectable(5), "5 pairs never reach p <= 0.05"),
    ],
)
def test_what_cannot_be_computed_is_said_in_words(act, message):
    with pytest.raises(ValueError, match=message):
        act()
