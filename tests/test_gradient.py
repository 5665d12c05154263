"""BADGE, BAIT and EGL against slow references. What every strategy has to fulfil is tested in test_hybrid.py."""

from math import log, sqrt

import pytest
import torch
from conftest import seeded, slow_draw
from scipy.stats import chisquare

from al_bench.strategies import PoolView
from al_bench.strategies import gradient as family
from al_bench.strategies.gradient import (
    Fisher,
    badge,
    bait,
    cached_chunks,
    expected_gradient_length,
    fisher_scale,
    gradient_length_score,
    logit_gradient,
    mean_fisher,
)
from al_bench.strategies.greedy import draw, random_argmax


def random_view(p=40, labelled=9, s=1, c=4, d=6, seed=0, dtype=torch.float32):
    rng = seeded(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    return PoolView(
        p, c, (2 * normal(p, s, c)).log_softmax(-1).to(dtype), normal(p, d).to(dtype), normal(labelled, d).to(dtype),
        torch.randint(c, (labelled,), generator=rng), (2 * normal(labelled, c)).log_softmax(-1).to(dtype),
    )  # fmt: skip


@pytest.fixture(params=["whole", "in chunks"])
def chunked(request, monkeypatch):
    if request.param == "in chunks":
        monkeypatch.setattr("al_bench.strategies.CHUNK", 64)
        monkeypatch.setattr(family, "KEPT", 0)


def test_the_gradient_of_the_logits_by_hand():
    rows = torch.tensor([[[0.7, 0.2, 0.1]], [[0.0, 1.0, 0.0]], [[0.25, 0.25, 0.5]]]).log()
    expected = [[-0.3, 0.2, 0.1], [0, 0, 0], [0.25, 0.25, -0.5]]
    torch.testing.assert_close(logit_gradient(rows), torch.tensor(expected))
    passes = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]]).log()  # averaged as probabilities: 0.7 and 0.3
    torch.testing.assert_close(logit_gradient(passes), torch.tensor([[-0.3, 0.3]]))
    certain = torch.tensor([[[0.0, -40.0]]])  # p - 1 would be 0 in float32
    assert logit_gradient(certain)[0].tolist() == pytest.approx([-4.248354e-18, 4.248354e-18], abs=1e-22)


def slow_badge(view, k, rng, first="longest"):
    """BADGE with whole gradients, distances by subtraction, and a loop for the draw."""
    gradients = []
    for passes_SC, h_D in zip(view.log_probs_PSC.double().exp(), view.emb_PD.double(), strict=True):
        a_C = passes_SC.mean(0)
        a_C[a_C.argmax()] -= 1
        gradients.append(torch.outer(a_C, h_D).flatten())
    lengths = [float(g.norm()) for g in gradients]
    if first == "longest":
        picked = [lengths.index(max(lengths))]
        torch.randint(1, (1,), generator=rng)  # badge draws among equally long ones
    else:
        picked = [int(torch.rand(1, dtype=torch.float64, generator=rng) * len(lengths))]
    while len(picked) < k:
        weights = [min(float((g - gradients[c]).square().sum()) for c in picked) for g in gradients]
        picked.append(slow_draw(weights, rng))
    return picked


@pytest.mark.parametrize("first", ["longest", "random"])
@pytest.mark.parametrize("seed, s, c, d", [(0, 1, 4, 6), (1, 3, 2, 9), (2, 1, 30, 5)])
def test_badge_equals_kmeans_plus_plus_over_gradients_built_whole(chunked, first, seed, s, c, d):
    view = random_view(s=s, c=c, d=d, seed=seed)
    assert badge(view, 25, seeded(seed), first=first).tolist() == slow_badge(view, 25, seeded(seed), first)


def test_badge_never_draws_a_copy_of_a_pick_while_others_are_left():
    view = random_view(p=30, c=10, d=512)
    copies = torch.arange(30).repeat(40)[torch.randperm(1200, generator=seeded(3))]
    many = PoolView(1200, 10, view.log_probs_PSC[copies], view.emb_PD[copies])
    for seed in range(5):
        chosen = copies[badge(many, 31, seeded(seed))]
        assert len(chosen[:30].unique()) == 30  # after that only copies are left
    assert len(badge(many, 1200, seeded()).unique()) == 1200


def test_badge_draws_by_squared_distance():
    """Gradients on a line at 3 (the longest), 0, 1 and 2: the second pick is 0, 1 or 2 with odds of 9 : 4 : 1."""
    view = PoolView(4, 2, torch.tensor([0.5, 0.5]).log().expand(4, 1, 2), torch.tensor([[3.0], [0.0], [1.0], [2.0]]))
    picks = torch.stack([badge(view, 2, seeded(seed)) for seed in range(700)])
    assert (picks[:, 0] == 0).all()
    assert chisquare(picks[:, 1].bincount(minlength=4)[1:], [450, 200, 50]).pvalue > 1e-3
    first = torch.cat([badge(view, 1, seeded(seed), first="random") for seed in range(400)])
    assert chisquare(first.bincount(minlength=4)).pvalue > 1e-3
    with pytest.raises(ValueError, match="longest or random, not last"):
        badge(view, 1, seeded(), first="last")


def test_badge_takes_one_of_each_far_cluster():
    centre, noise = torch.eye(5).repeat_interleave(20, 0) * 100, torch.randn(100, 5, generator=seeded())
    view = PoolView(100, 2, torch.tensor([0.6, 0.4]).log().expand(100, 1, 2), centre + 0.01 * noise)
    assert all(len((badge(view, 5, seeded(seed)) // 20).unique()) == 5 for seed in range(20))


def test_draw_follows_the_weights_never_takes_a_zero_and_knows_no_limit_of_positions():
    weights = torch.tensor([0, 1, 0, 3, 4, 0.0])
    counts = torch.tensor([draw(weights, [4], seeded(i)) for i in range(800)]).bincount(minlength=6)
    assert counts[[0, 2, 4, 5]].sum() == 0 and chisquare(counts[[1, 3]], [200, 600]).pvalue > 1e-3
    none_left = torch.tensor([draw(weights, [1, 3, 4], seeded(i)) for i in range(300)]).bincount(minlength=6)
    assert none_left[[1, 3, 4]].sum() == 0 and chisquare(none_left[[0, 2, 5]]).pvalue > 1e-3
    large = torch.zeros(2**24 + 3)
    large[-1] = 1
    assert draw(large, [], seeded()) == 2**24 + 2


@pytest.mark.parametrize("number, weights, drawn", [(0.0, [0, 0, 1, 1], 2), (1 - 2**-53, [1, 1, 0, 0], 1)])
def test_the_first_and_the_last_random_number_do_not_draw_a_zero(number, weights, drawn, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), number, dtype=torch.float64))
    assert draw(torch.tensor(weights), [], seeded()) == drawn


def test_random_argmax_draws_among_equals_and_refuses_nan():
    score = torch.tensor([1.0, 5.0, 5.0 - 1e-12, 4.99, -torch.inf], dtype=torch.float64)
    assert {random_argmax(score, seeded(i)) for i in range(30)} == {1, 2}
    assert {random_argmax(torch.tensor([-torch.inf, torch.inf, torch.inf]), seeded(i)) for i in range(30)} == {1, 2}
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        random_argmax(torch.tensor([torch.nan, 1.0]), seeded())


def test_what_is_kept_and_what_is_worked_out_anew_are_equal(monkeypatch):
    log_probs = random_view(p=50).log_probs_PSC
    held = cached_chunks(logit_gradient, log_probs)
    assert held() is held()
    monkeypatch.setattr("al_bench.strategies.CHUNK", 64)
    monkeypatch.setattr(family, "KEPT", 50 * 4 - 1)
    anew = cached_chunks(logit_gradient, log_probs)
    assert [len(part) for part in anew()] == [16, 16, 16, 2]
    for _ in range(2):
        assert torch.equal(torch.cat(list(anew())), torch.cat(list(held())))


def slow_bait(view, k, regularisation=1.0, oversample=2.0):
    """BAIT with every candidate's matrix inverted anew."""

    def rows(log_probs_NC, emb_ND):
        p_N = log_probs_NC.exp().max(1).values
        return (p_N * (1 - p_N)).sqrt()[:, None] * emb_ND

    v_PD = rows(view.log_probs_PSC.double().exp().mean(1).log(), view.emb_PD.double())
    labelled_LD = rows(view.labelled_log_probs_LC.double(), view.labelled_emb_LD.double())
    fisher_DD = sum(torch.outer(v, v) for v in v_PD) / len(v_PD)
    matrix_DD = regularisation * torch.eye(v_PD.shape[1], dtype=torch.float64)
    matrix_DD += sum((torch.outer(v, v) for v in labelled_LD), torch.zeros_like(matrix_DD)) / max(1, len(labelled_LD))

    def cost(change_DD):
        return float((torch.linalg.inv(matrix_DD + change_DD) @ fisher_DD).trace())

    chosen = []
    while len(chosen) < min(round(oversample * k), len(v_PD)):
        left = [i for i in range(len(v_PD)) if i not in chosen]
        chosen.append(min(left, key=lambda i: cost(torch.outer(v_PD[i], v_PD[i]))))
        matrix_DD = matrix_DD + torch.outer(v_PD[chosen[-1]], v_PD[chosen[-1]])
    while len(chosen) > k:
        gone = min(chosen, key=lambda i: cost(-torch.outer(v_PD[i], v_PD[i])))
        matrix_DD = matrix_DD - torch.outer(v_PD[gone], v_PD[gone])
        chosen.remove(gone)
    return chosen


@pytest.mark.parametrize(
    "labelled, s, k, options",
    [
        (9, 1, 6, {}),
        (0, 1, 6, {}),
        (9, 3, 12, {"regularisation": 0.01}),
        (9, 1, 8, {"oversample": 1.0}),
        (1, 1, 25, {}),
    ],
)
def test_bait_equals_greedy_choice_by_inverting_afresh(chunked, labelled, s, k, options):
    view = random_view(p=30, labelled=labelled, s=s, seed=k)
    assert bait(view, k, seeded(), **options).tolist() == slow_bait(view, k, **options)


def test_bait_goes_back_over_its_choice():
    views = [random_view(p=30, seed=seed) for seed in range(10)]
    assert any(bait(v, 5, seeded()).tolist() != bait(v, 5, seeded(), oversample=1).tolist() for v in views)


def test_bait_by_hand_where_there_is_one_number_an_image():
    """With D = 1 the largest v^2 = p (1 - p) h^2 lowers F / M most."""
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [1.0, 0.0]])  # v^2: 1, 1.44, 2.25, 0
    emb, none = torch.tensor([[2.0], [4.0], [-3.0], [90.0]]), torch.zeros(0, 1)
    view = PoolView(4, 2, probs.log()[:, None], emb, none, none[:, 0].long(), none.expand(0, 2))
    assert fisher_scale(view.log_probs_PSC).square().tolist() == pytest.approx([0.25, 0.09, 0.25, 0])
    assert mean_fisher(view.emb_PD, fisher_scale(view.log_probs_PSC)).item() == pytest.approx(4.69 / 4)
    assert bait(view, 3, seeded(), oversample=1).tolist() == [2, 1, 0]
    assert bait(view, 2, seeded()).tolist() == [2, 1]


def test_rank_one_updates_there_and_back_agree_with_inverting(chunked):
    rng = seeded(5)
    emb_PD, scale_P = torch.randn(50, 8, generator=rng), torch.rand(50, generator=rng).double()
    v_PD, matrix_DD = emb_PD.double() * scale_P[:, None], torch.eye(8, dtype=torch.float64)
    fisher_DD, inv_DD = mean_fisher(emb_PD, scale_P), matrix_DD.clone()
    torch.testing.assert_close(fisher_DD, v_PD.T @ v_PD / 50)
    pool = Fisher(emb_PD, scale_P, inv_DD, fisher_DD)
    for i, sign in [(3, 1), (7, 1), (11, 1), (7, -1), (20, 1), (3, -1)]:
        (pool.add if sign > 0 else pool.remove)(i)
        matrix_DD += sign * torch.outer(v_PD[i], v_PD[i])
        direct_DD = torch.linalg.inv(matrix_DD)
        torch.testing.assert_close(inv_DD, direct_DD)
        torch.testing.assert_close(pool.q_N, torch.stack([v @ direct_DD @ v for v in v_PD]))
        torch.testing.assert_close(pool.r_N, torch.stack([v @ direct_DD @ fisher_DD @ direct_DD @ v for v in v_PD]))


@pytest.mark.parametrize("options", [{"regularisation": 0.0}, {"oversample": 0.5}])
def test_bait_refuses_options_without_a_meaning(options):
    with pytest.raises(ValueError, match="regularisation has to be above 0 and oversample at least 1"):
        bait(random_view(), 2, seeded(), **options)


def test_expected_gradient_length_by_hand():
    probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.8, 0.2]], dtype=torch.float64)
    emb = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, -1.0]])
    assert gradient_length_score(probs.log()[:, None], emb).tolist() == pytest.approx(
        [5 * sqrt(0.5), 0, 0.8 * sqrt(0.08) + 0.2 * sqrt(1.28)]
    )
    certain = torch.tensor([[[0.0, -50.0]]], dtype=torch.float64)  # both classes give sqrt(2) e^-50
    assert log(gradient_length_score(certain, emb[:1])) == pytest.approx(log(5 * 2 * sqrt(2)) - 50)


def test_expected_gradient_length_agrees_with_the_gradients_of_a_linear_layer(chunked):
    view = random_view(s=1)
    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    lengths = []
    for log_probs_C, h_D in zip(view.log_probs_PSC[:, 0].double(), view.emb_PD.double(), strict=True):
        logits_C = weight @ h_D + log_probs_C  # the weight is 0: these are the net's log-probabilities
        total = 0.0
        for c in range(4):
            loss = torch.nn.functional.cross_entropy(logits_C, torch.tensor(c))
            total += float(log_probs_C[c].exp() * torch.autograd.grad(loss, weight, retain_graph=True)[0].norm())
        lengths.append(total)
    score_P = gradient_length_score(view.log_probs_PSC, view.emb_PD)
    assert score_P.tolist() == pytest.approx(lengths, rel=1e-6)
    chosen = expected_gradient_length(view, 10, seeded())
    assert chosen.tolist() == sorted(range(40), key=lambda i: -lengths[i])[:10]
