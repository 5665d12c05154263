from dataclasses import replace
from math import exp, pi, sin, sqrt

import pytest
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from skactiveml.pool import MaxHerding

from al_bench.errors import UserError
from al_bench.strategies import Needs, PoolView, Strategy, diversity, needs_of
from al_bench.strategies.coverage import (
    ball,
    competence,
    cover,
    dcom,
    first_gains,
    gains_of,
    gaussian,
    kernel_memory,
    labelled_balls,
    least_distance,
    max_herding,
    prob_cover,
    pure_radii,
    pure_radius,
    rounded,
    share_covered,
    uncertainty_herding,
)
from al_bench.strategies.diversity import sq_norms
from al_bench.strategies.guard import select
from al_bench.strategies.uncertainty import TEMPERATURES, fitted_temperature, margin_score

ALL = {"prob_cover": prob_cover, "max_herding": max_herding, "uncertainty_herding": uncertainty_herding, "dcom": dcom}


def unit(x_NF):
    return torch.nn.functional.normalize(x_NF, dim=1)


def noise(n, f=5, seed=0):
    return unit(torch.randn(n, f, generator=seeded(seed)))


def view_of(x_PF, labelled_LF=None, labels_L=None, log_probs_PSC=None, seed=0):
    p, labelled_LF = len(x_PF), x_PF[:0] if labelled_LF is None else labelled_LF
    labels_L = torch.arange(len(labelled_LF)) % 3 if labels_L is None else labels_L
    if log_probs_PSC is None:
        log_probs_PSC = (2 * torch.randn(p, 2, 3, generator=seeded(seed + 50))).log_softmax(-1)
    return PoolView(p, 3, log_probs_PSC, labelled_labels_L=labels_L, features_PF=x_PF, labelled_features_LF=labelled_LF)


@pytest.fixture(params=[(2**22, 2**27), (64, 2**27), (64, 0)], ids=["whole", "chunked", "kernel not kept"])
def chunk(request, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", request.param[0])
    monkeypatch.setattr("al_bench.strategies.coverage.KEPT", request.param[1])


# A slow reference: the coverage of every set that one more image makes. Ties are common (two images that cover only
# each other are equally good), so each pick is compared with all that were possible at that time.


def distance(x_F, y_F):
    return sqrt(sum((a - b) ** 2 for a, b in zip(x_F, y_F, strict=True)))


def slow_value(kernel, points, chosen, weight):
    return sum(
        w * max((kernel(distance(x, c)) for c in chosen), default=0) for x, w in zip(points, weight, strict=True)
    )


def assert_greedy(found, view, kernel, weight):
    pool, chosen = view.features_PF.double().tolist(), view.labelled_features_LF.double().tolist()
    for step, pick in enumerate(found):
        rest = [i for i in range(len(pool)) if i not in found[:step]]
        value = {i: slow_value(kernel, pool, chosen + [pool[i]], weight) for i in rest}
        assert value[pick] > max(value.values()) - 1e-4, (step, pick)
        chosen.append(pool[pick])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("n_labelled", [0, 4])
def test_every_pick_is_as_good_as_any_by_a_slow_reference(chunk, n_labelled, dtype):
    view = view_of(noise(24).to(dtype), noise(n_labelled, seed=9).to(dtype) if n_labelled else None)
    ones = [1.0] * 24
    found = max_herding(view, 10, seeded(), sigma=0.7).tolist()
    assert_greedy(found, view, lambda d: exp(-((d / 0.7) ** 2)), ones)
    found = prob_cover(view, 10, seeded(), delta=0.9).tolist()
    assert_greedy(found, view, lambda d: float(d < 0.9), ones)
    with pytest.raises(AssertionError):
        assert_greedy(found, view, lambda d: float(d < 0.5), ones)

    gaps = [distance(a, b) for a in view.labelled_features_LF.tolist() for b in view.labelled_features_LF.tolist()]
    sigma = min((g for g in gaps if g > 1e-2), default=1.0)
    weight = margin_score((view.log_probs_PSC.double() / 2).log_softmax(-1)).tolist()
    found = uncertainty_herding(view, 10, seeded(), temperature=2.0).tolist()
    assert_greedy(found, view, lambda d: exp(-((d / sigma) ** 2)), weight)


@pytest.mark.parametrize("kernel", [ball(0.9), gaussian(0.6)], ids=["ball", "gaussian"])
@pytest.mark.parametrize("p", [1, 8, 13, 41])
def test_gains_are_a_double_loops_for_pools_that_no_block_divides(chunk, kernel, p):
    # A known repository drops the last part of a block, so that up to 499 images can never be chosen.
    x, weight = noise(p), torch.rand(p, generator=seeded(1))
    covered = torch.rand(p, generator=seeded(2))
    kernel_PP = kernel(torch.cdist(x.double(), x.double()).square().float())
    slow = [
        sum(float(weight[n]) * max(0.0, float(kernel_PP[n, c]) - float(covered[n])) for n in range(p)) for c in range(p)
    ]
    slow = torch.tensor(slow, dtype=torch.float64)
    args, kept_PP = (x, sq_norms(x), kernel, weight, covered), torch.empty(p, p)
    torch.testing.assert_close(first_gains(*args, kept_PP), slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first_gains(*args), slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept_PP, kernel_PP, rtol=1e-4, atol=2e-3)  # of an image to itself: rounding
    some = torch.randperm(p, generator=seeded(3))
    torch.testing.assert_close(gains_of(kept_PP[some], weight, covered), slow[some], rtol=1e-4, atol=1e-3)


def test_what_is_subtracted_is_the_covered_points_coverage_and_not_the_candidates():
    differ = 0
    for seed in range(40):
        x, labelled = noise(30, 3, seed=seed), noise(3, 3, seed=seed + 100)
        kernel_PP = torch.exp(-torch.cdist(x, x).square())
        covered = torch.exp(-torch.cdist(x, labelled).square()).max(1).values
        right = (kernel_PP - covered[:, None]).clamp_min(0).sum(0)
        wrong = (kernel_PP - covered[None]).clamp_min(0).sum(0)
        differ += int(right.argmax() != wrong.argmax())
        pick = int(max_herding(view_of(x, labelled), 1, seeded()))
        assert right[pick] > right.max() - 1e-5
    assert differ > 5


def test_max_herding_is_scikit_activemls_choice_for_choice():
    x = noise(60, 8)
    y = torch.full((60,), torch.nan)
    y[:3] = 0
    theirs = MaxHerding(metric_dict={"gamma": 1.0}, random_state=0).query(x.double().numpy(), y.numpy(), batch_size=15)
    ours = max_herding(view_of(x[3:], x[:3]), 15, seeded()) + 3
    assert ours.tolist()[:9] == theirs.tolist()[:9]  # the tenth is a tie of two
    for picks in (ours, torch.from_numpy(theirs)):
        assert_greedy((picks - 3).tolist(), view_of(x[3:], x[:3]), lambda d: exp(-(d**2)), [1.0] * 57)


def test_by_hand_on_a_line():
    """Five images of one class around 0, two around 90 degrees, one stray: balls of 12 degrees or so."""
    degree = torch.tensor([-10.0, -5, 0, 5, 10, 90, 91, 200]) * torch.pi / 180
    view = view_of(torch.stack([degree.cos(), degree.sin()], 1))
    for seed in range(10):
        picks = prob_cover(view, 8, seeded(seed), delta=0.2).tolist()
        assert picks[0] == 2 and picks[1] in (5, 6) and picks[2] == 7
    # A label at 0 degrees leaves the two and the stray.
    labelled = replace(view, labelled_features_LF=view.features_PF[2:3], labelled_labels_L=torch.tensor([0]))
    picks = [prob_cover(labelled, 3, seeded(seed), delta=0.2).tolist() for seed in range(60)]
    assert all(p[0] in (5, 6) and p[1] == 7 for p in picks)
    # Now all images are covered: the choice is random among the rest, and no image is chosen twice.
    assert {p[2] for p in picks} == {0, 1, 2, 3, 4, 5, 6} and all(len(set(p)) == 3 for p in picks)


# The radius of prob_cover


def slow_share_pure(points, cluster, delta):
    pure = 0
    for i, x in enumerate(points):
        pure += all(cluster[i] == cluster[j] for j, y in enumerate(points) if distance(x, y) < delta)
    return pure / len(points)


@pytest.mark.parametrize("purity", [1.0, 0.95, 0.8, 0.5])
def test_the_radius_is_the_largest_at_which_that_share_of_balls_is_pure(chunk, purity, monkeypatch):
    x, of = noise(40, seed=4), torch.arange(40) % 3
    x = unit(x + 1.2 * torch.eye(5)[of])
    monkeypatch.setattr("al_bench.strategies.coverage.cluster", lambda *_: (None, of))
    delta, points = pure_radius(x, 3, purity, seeded()), x.double().tolist()
    assert slow_share_pure(points, of.tolist(), delta - 1e-4) >= purity
    assert slow_share_pure(points, of.tolist(), delta + 1e-4) < purity


def test_the_radius_by_hand_for_two_clumps_and_without_bound_for_one():
    degree = torch.tensor([0.0, 1, 2, 60, 61, 62]) * torch.pi / 180
    x = torch.stack([degree.cos(), degree.sin()], 1)
    # The balls around 2 and 60 degrees reach the other clump first: at the chord of 58 degrees.
    assert pure_radius(x, 2, 1.0, seeded()) == pytest.approx(2 * sin(29 * pi / 180), abs=1e-5)
    assert pure_radius(x, 2, 0.6, seeded()) == pytest.approx(2 * sin(29.5 * pi / 180), abs=1e-5)
    assert pure_radius(x, 1, 0.95, seeded()) == torch.inf
    assert len(prob_cover(replace(view_of(x), n_classes=1), 6, seeded()).unique()) == 6
    with pytest.raises(UserError, match="strategy p, round 3: purity is 0 and has to be above 0"):
        select(Strategy(lambda *a: prob_cover(*a, purity=0), "p"), view_of(x), 2, seeded(), 3)


def test_the_radius_of_a_large_pool_is_estimated_on_a_part_of_it(monkeypatch):
    of = torch.arange(1500) % 3
    x = unit(torch.eye(5)[of] + 0.3 * noise(1500))
    exact = pure_radius(x, 3, 0.9, seeded())
    monkeypatch.setattr("al_bench.strategies.coverage.PROBES", 400)
    assert pure_radius(x, 3, 0.9, seeded(1)) == pytest.approx(exact, rel=0.1)


def test_prob_cover_takes_one_image_of_each_clump_the_largest_first(chunk):
    of = torch.cat([torch.full((n,), c) for c, n in enumerate([30, 20, 10])])
    view = view_of(unit(torch.eye(5)[of] + 0.05 * noise(60)))
    assert of[prob_cover(view, 3, seeded())].tolist() == [0, 1, 2]
    assert of[max_herding(view, 3, seeded(), sigma=0.5)].tolist() == [0, 1, 2]


# UHerding


def test_uncertainty_counts_at_the_covered_images_and_not_at_the_candidate():
    """A star of eight uncertain images around a certain one, and nine certain images far away."""
    rays = torch.cat([torch.eye(5)[1:], -torch.eye(5)[1:]])
    x = unit(torch.cat([torch.eye(5)[:1], torch.eye(5)[:1] + rays, -torch.eye(5)[:1] + 0.1 * noise(9)]))
    log_probs = torch.tensor([1.0, 0, 0]).log().repeat(18, 1, 1)
    log_probs[1:9] = torch.full((3,), 1 / 3).log()
    assert uncertainty_herding(view_of(x, log_probs_PSC=log_probs), 1, seeded()).tolist() == [0]


def test_equal_uncertainty_makes_it_max_herding_and_no_uncertainty_a_random_choice():
    x, even = noise(30), torch.full((30, 1, 3), 1 / 3).log()
    view = view_of(x, log_probs_PSC=even)
    assert uncertainty_herding(view, 10, seeded()).tolist() == max_herding(view, 10, seeded()).tolist()
    certain = view_of(x, log_probs_PSC=torch.tensor([1.0, 0, 0]).log().expand(30, 1, 3))
    counts = torch.cat([uncertainty_herding(certain, 5, seeded(i)) for i in range(120)]).bincount(minlength=30)
    assert chisquare(counts).pvalue > 1e-3


def test_the_width_is_the_smallest_distance_of_two_labelled_images(chunk):
    x = noise(23)
    by_loop = min(distance(x[i].tolist(), x[j].tolist()) for i in range(23) for j in range(i))
    assert least_distance(x) == pytest.approx(by_loop, rel=1e-4)
    assert least_distance(torch.cat([x, x[:4]])) == pytest.approx(by_loop, rel=1e-4)  # copies do not count
    assert [least_distance(y) for y in (x[:0], x[:1], x[:1].expand(9, 5))] == [1.0] * 3


def test_with_many_labels_it_turns_from_coverage_to_uncertainty():
    x = noise(80, 8)
    view = view_of(x, x[:2] * 1.0)
    near = unit(x[:1] + 0.005 * noise(1, 8, seed=3))
    crowded = replace(view, labelled_features_LF=torch.cat([x[:1], near]))
    by_margin = margin_score(view.log_probs_PSC).argsort(descending=True)
    picks = uncertainty_herding(crowded, 10, seeded())
    assert picks.tolist() == [i for i in by_margin.tolist() if i != 0][:10]  # image 0 is labelled
    assert uncertainty_herding(view, 10, seeded()).tolist() != picks.tolist()


def test_uncertainty_is_an_option_and_nonsense_is_refused():
    view = view_of(noise(20))
    entropy = uncertainty_herding(view, 5, seeded(), uncertainty="al_bench.strategies.uncertainty.entropy_score")
    assert entropy.tolist() != uncertainty_herding(view, 5, seeded()).tolist()
    with pytest.raises(ValueError, match="torch.mean is NaN or below 0|temperature is 0"):
        uncertainty_herding(view, 5, seeded(), temperature=0)
    with pytest.raises(ValueError, match="test_coverage.negative is NaN or below 0"):
        uncertainty_herding(view, 5, seeded(), uncertainty="test_coverage.negative")


def test_the_temperature_is_fitted_to_held_out_predictions_where_there_are_some():
    # All four images have the confidence 0.9, and three are right: 0.75 is calibrated.
    held_out_LC = torch.tensor([[0.9, 0.05, 0.05]] * 4).log()
    view = replace(
        view_of(noise(20), noise(4, seed=9)),
        held_out_log_probs_LC=held_out_LC,
        labelled_labels_L=torch.tensor([0, 0, 0, 1]),
    )
    fitted = fitted_temperature(held_out_LC, view.labelled_labels_L)
    top = 1 / (1 + 2 * (0.05 / 0.9) ** (1 / fitted))
    assert abs(top - 0.75) < 0.02 and fitted in TEMPERATURES
    constant = replace(view, held_out_log_probs_LC=None)
    picks = uncertainty_herding(view, 10, seeded()).tolist()
    assert picks == uncertainty_herding(constant, 10, seeded(), temperature=fitted).tolist()
    plain = uncertainty_herding(constant, 10, seeded()).tolist()
    assert picks != plain == uncertainty_herding(view, 10, seeded(), fit_temperature=False).tolist()
    with pytest.raises(ValueError, match="temperature=2.0 has no effect where it is fitted"):
        uncertainty_herding(view, 5, seeded(), temperature=2.0)
    with pytest.raises(ValueError, match="fit_temperature=true needs model.head=logistic"):
        uncertainty_herding(constant, 5, seeded(), fit_temperature=True)


def test_the_fitted_temperature_is_the_one_that_was_planted():
    logits = 2 * torch.randn(20_000, 3, generator=seeded(), dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=seeded(1))[:, 0]
    for planted in (0.5, 1.0, 3.0):
        fitted = fitted_temperature((planted * logits).log_softmax(1), labels)
        assert abs(fitted / planted - 1) < 0.13  # one step of the grid
    assert fitted_temperature(torch.full((5, 4), 0.25).log(), torch.tensor([0, 1, 2, 3, 0])) == 1  # no one is better


def negative(log_probs_PSC):
    return log_probs_PSC[:, 0, 0]


# DCoM


def assert_dcom(found, view, delta, max_delta):
    """Check dcom image by image and ball by ball; returns the competence."""
    labelled, pool = view.labelled_features_LF.double().tolist(), view.features_PF.double().tolist()
    labels, points = view.labelled_labels_L.tolist(), labelled + pool
    classes = labels + view.log_probs_PSC.double().exp().mean(1).argmax(1).tolist()

    def share(radii):
        inside = [any(distance(x, c) < r for c, r in zip(labelled, radii, strict=True)) for x in points]
        return sum(inside) / len(points), inside[len(labelled) :]

    threshold = 0.2 * share([delta] * len(labelled))[0] + 0.4
    radii = []
    for c, label in zip(labelled, labels, strict=True):
        low, high = 0.0, max_delta
        while high - low > 0.05:
            middle = (low + high) / 2
            ball = [o for x, o in zip(points, classes, strict=True) if distance(x, c) < middle]
            low, high = (middle, high) if ball.count(label) >= threshold * len(ball) else (low, middle)
        radii.append((low + high) / 2)
    coverage, covered = share(radii)
    radius_L, covered_P = labelled_balls(view, delta, max_delta)
    assert radius_L.tolist() == pytest.approx(radii, abs=1e-6) and covered_P.tolist() == covered
    assert share_covered(covered_P, len(radii)) == pytest.approx(coverage)
    skill = (1 + exp(-30 * (1 - 0.9))) / (1 + exp(-30 * (coverage - 0.9)))
    radius = sum(radii) / len(radii) if radii else delta
    margin = margin_score(view.log_probs_PSC).tolist()
    margin = [(m - min(margin)) / (max(margin) - min(margin)) for m in margin]
    for step, pick in enumerate(found):
        degree = [sum(not c for c, y in zip(covered, pool, strict=True) if distance(x, y) < radius) for x in pool]
        rank = [skill * m + (1 - skill) * d / max(1, *degree) for m, d in zip(margin, degree, strict=True)]
        assert rank[pick] > max(r for i, r in enumerate(rank) if i not in found[:step]) - 1e-6
        covered = [c or distance(pool[pick], y) < radius for c, y in zip(covered, pool, strict=True)]
    return skill


@pytest.mark.parametrize("n_labelled, delta, low, high", [(0, 0.8, 0, 1e-6), (6, 0.8, 0, 0.9), (30, 0.5, 0.3, 1.1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_dcom_is_a_slow_reference(chunk, n_labelled, delta, low, high, seed):
    labelled = noise(n_labelled, 3, seed=9) if n_labelled else None
    pool = noise(25, 3, seed=seed)
    # The net sees the class of the nearest axis, and so do the labels.
    log_probs = (3 * pool[:, None, :3] + 2 * torch.randn(25, 2, 3, generator=seeded(seed))).log_softmax(-1)
    labels = labelled.argmax(1) if n_labelled else None
    view = view_of(pool, labelled, labels, log_probs)
    assert low <= assert_dcom(dcom(view, 12, seeded(), delta=delta).tolist(), view, delta, 1.1) <= high


def test_the_competence_by_hand():
    # (1 + e^-3) / (1 + e^(-30 (c - 0.9))) at 1, at the centre and below.
    assert competence(1.0) == 1
    assert competence(0.9) == pytest.approx(1.0497871 / 2)
    assert competence(0.8) == pytest.approx(1.0497871 / (1 + exp(3)))
    assert competence(0.0) < 1e-11


def test_a_balls_radius_is_where_its_labels_class_loses_its_share():
    # Images at 0 (itself), 0.3, 0.5 agree, those at 0.7 and 0.8 do not: 3 of 5 agree within 0.8.
    dist = torch.tensor([[0.0, 0.3, 0.5, 0.7, 0.8]]).square()
    classes = torch.tensor([1, 1, 1, 2, 2])
    for threshold, edge in [(0.8, 0.7), (0.7, 0.8), (0.6, 1.1), (0.95, 0.7)]:
        radius = float(pure_radii(dist, torch.tensor([1]), classes, threshold, 1.1))
        assert abs(radius - edge) <= 0.05, (threshold, radius)
    assert pure_radii(dist, torch.tensor([2]), classes, 1.0, 1.1) < 0.05  # no image of its own class is near


def test_dcom_is_prob_cover_without_labels_and_margin_once_all_is_covered():
    x = noise(40, 3)
    log_probs = (2 * torch.randn(40, 1, 3, generator=seeded(2))).log_softmax(-1)
    degree = (torch.cdist(x, x) < 0.6).sum(1)
    assert degree[dcom(view_of(x, log_probs_PSC=log_probs), 1, seeded(), delta=0.6)] == degree.max()
    # The net agrees with the labels everywhere, and the labels are everywhere.
    log_probs = (log_probs.abs() * 0.01 + torch.tensor([3.0, 0, 0])).log_softmax(-1)
    view = view_of(x, x + 0, torch.zeros(40, dtype=torch.int64), log_probs)
    assert (
        dcom(view, 10, seeded(), delta=0.6).tolist() == margin_score(log_probs).argsort(descending=True)[:10].tolist()
    )


# All four strategies


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("pool", ["noise", "equal", "copies", "float16"])
@pytest.mark.parametrize("n_labelled", [0, 1, 3])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_k_distinct_positions_from_any_pool_and_the_generator_alone(strategy, pool, n_labelled, k, chunk):
    x = {"equal": noise(1).expand(12, 5), "copies": noise(3).repeat(4, 1)}.get(pool, noise(12))
    one_hot = torch.eye(3)[torch.arange(12) % 3].log()[:, None]
    view = view_of(x, x[:n_labelled], torch.zeros(n_labelled, dtype=torch.int64), one_hot if pool == "equal" else None)
    if pool == "float16":
        half = {n: getattr(view, n).half() for n in ("features_PF", "labelled_features_LF", "log_probs_PSC")}
        view = replace(view, **half)
    before, state = view.features_PF.clone(), torch.get_rng_state()
    picks = [select(Strategy(strategy, "s"), view, k, seeded(seed), 0) for seed in (0, 0)]
    assert torch.equal(*picks) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(view.features_PF, before)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("n_labelled", [0, 2])
def test_among_equal_images_the_choice_is_random(strategy, n_labelled):
    x, even = noise(1, 64).expand(30, 64), torch.tensor([0.5, 0.3, 0.2]).log().expand(30, 1, 3)
    view = view_of(x, x[:n_labelled], log_probs_PSC=even)
    counts = torch.cat([strategy(view, 5, seeded(i)) for i in range(120)]).bincount(minlength=30)
    assert chisquare(counts).pvalue > 1e-3


def test_among_copies_in_a_large_space_the_choice_is_random():
    """Copies in different blocks have gains that differ by rounding."""
    x = torch.cat([noise(1, 200).expand(20, 200), noise(80, 200, seed=1)])
    firsts = torch.cat([max_herding(view_of(x), 1, seeded(i)) for i in range(300)])
    assert (firsts < 20).all() and chisquare(firsts.bincount(minlength=20)).pvalue > 1e-3


def test_rounding_keeps_five_digits_and_makes_ties_of_the_rest():
    gains = torch.tensor([1.0, 1 + 1e-7, 1 + 1e-4, 1e-9, 0.0, 12345.678], dtype=torch.float64)
    found = rounded(gains)
    assert found[0] == found[1] < found[2]
    torch.testing.assert_close(found, gains, rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(p=st.integers(2, 40), n_labelled=st.integers(0, 5), seed=st.integers(0, 2**32), data=st.data())
def test_shuffling_the_pool_shuffles_the_choice_of_uncertainty_herding_alike(p, n_labelled, seed, data):
    k = data.draw(st.integers(1, max(1, p // 2)))
    view = view_of(noise(p, 8, seed=seed), noise(5, 8, seed=seed + 1)[:n_labelled])
    order = torch.randperm(p, generator=seeded(seed))
    shuffled = replace(view, features_PF=view.features_PF[order], log_probs_PSC=view.log_probs_PSC[order])
    plain = uncertainty_herding(view, k, seeded())
    assert torch.equal(order[uncertainty_herding(shuffled, k, seeded(1))], plain)


def test_cover_leaves_what_it_is_given_as_it_was():
    x, covered = noise(20), torch.zeros(20)
    cover(x, gaussian(1.0), torch.ones(20), covered, 5, seeded())
    assert not covered.any()


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_no_block_of_distances_is_larger_than_a_chunk(strategy, monkeypatch):
    largest, plain = [0], diversity.sq_distances

    def spy(*args):
        found = plain(*args)
        largest[0] = max(largest[0], found.numel())
        return found

    monkeypatch.setattr("al_bench.strategies.CHUNK", 1000)
    monkeypatch.setattr(diversity, "sq_distances", spy)
    monkeypatch.setattr("al_bench.strategies.coverage.sq_distances", spy)
    strategy(view_of(noise(203), noise(50, seed=1)), 20, seeded())
    assert 0 < largest[0] <= 1000


def test_what_they_ask_for():
    assert needs_of(max_herding) == Needs(predictions=False, features=True, memory=kernel_memory)
    assert needs_of(uncertainty_herding) == Needs(features=True, held_out=True, memory=kernel_memory)
    assert needs_of(prob_cover).features and not needs_of(prob_cover).predictions
    assert needs_of(dcom).features and needs_of(dcom).predictions
