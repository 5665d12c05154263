from functools import partial
from inspect import signature
from itertools import permutations, product
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_log_probs, seeded, view_of
from hydra.utils import get_method
from omegaconf import OmegaConf
from scipy.stats import chisquare, spearmanr
from skactiveml.pool import batch_bald as skactiveml_batch_bald

from al_bench.errors import UserError
from al_bench.strategies import Size, Strategy, needs_of
from al_bench.strategies.bayesian import (
    bald,
    bald_score,
    batchbald,
    continue_configurations,
    epig,
    epig_score,
    information_given,
    pass_probs,
    stochastic_batch,
)
from al_bench.strategies.guard import select

BALD = "al_bench.strategies.bayesian.bald_score"
ALL = {
    "bald": bald,
    "batchbald": batchbald,
    "batchbald_sampled": partial(batchbald, configurations=20),
    "epig": epig,
    **{how: partial(stochastic_batch, score=BALD, how=how) for how in ("power", "softmax", "softrank")},
}
EXACT = 10**9


def with_certain_rows(log_probs):
    """One image that is certain, one that is even, one whose passes are certain of different classes."""
    p, s, c = log_probs.shape
    log_probs[3], log_probs[4], log_probs[5] = (
        torch.eye(c)[0].log(),
        log(1 / c),
        torch.eye(c)[torch.arange(s) % c].log(),
    )
    return log_probs


def slow_entropy(probs):
    return -sum(p * log(p) for p in probs if p > 0)


def slow_information(images_NSC):
    """I(labels; pass) over all configurations of labels: joint entropy minus mean entropy of the passes."""
    images = [[[p / sum(row) for p in row] for row in image] for image in images_NSC.double().exp().tolist()]
    s, c = images_NSC.shape[1:]
    joint = []
    for labels in product(range(c), repeat=len(images)):
        joint.append(sum(np.prod([im[i][y] for im, y in zip(images, labels, strict=True)]) for i in range(s)) / s)
    return slow_entropy(joint) - sum(slow_entropy(row) for image in images for row in image) / s


def slow_epig(candidate_SC, targets_TSC):
    """For each pair the sum over both labels of joint * log(joint / product), averaged over targets."""
    candidate, total = candidate_SC.double().softmax(-1), 0.0
    for target in targets_TSC.double().softmax(-1):
        joint = sum(candidate[i][:, None] * target[i] for i in range(len(candidate))) / len(candidate)
        for y, z in product(range(joint.shape[0]), repeat=2):
            if joint[y, z] > 0:
                total += float(joint[y, z] * (joint[y, z] / (joint[y].sum() * joint[:, z].sum())).log())
    return total / len(targets_TSC)


# BALD


def test_bald_matches_values_computed_by_hand():
    probs = [[[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [[0.8, 0.2], [0.4, 0.6]], [[0, 1], [0, 1]]]
    score = bald_score(torch.tensor(probs, dtype=torch.float64).log())
    assert score.tolist() == pytest.approx([log(2), 0, 0.673012 - (0.500402 + 0.673012) / 2, 0], abs=1e-6)


@pytest.mark.parametrize("s, c, dtype", [(2, 2, torch.float64), (5, 10, torch.float32), (20, 4, torch.float16)])
@pytest.mark.parametrize("chunk", [64, 2**22])
def test_bald_agrees_with_a_slow_reference(s, c, dtype, chunk, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", chunk)
    log_probs = with_certain_rows(random_log_probs(80, s, c)).to(dtype)
    slow = [slow_information(image[None]) for image in log_probs]
    torch.testing.assert_close(bald_score(log_probs), torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-9)
    assert bald(view_of(log_probs), 20, seeded()).tolist() == sorted(range(80), key=lambda i: -slow[i])[:20]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_passes_that_agree_hold_no_information_however_uncertain(dtype):
    one_pass = random_log_probs(500, 1, 10).to(dtype)
    assert (bald_score(one_pass.expand(-1, 20, -1)) == 0).all()
    shaken = one_pass.float() + 1e-7 * torch.randn(500, 20, 10, generator=seeded())  # float32's last digit
    assert (bald_score(shaken) == 0).all()


def test_one_pass_has_no_bald_score_whoever_asks():
    view = view_of(random_log_probs(50, 1, 10))
    for strategy in (
        bald,
        batchbald,
        partial(stochastic_batch, score=BALD),
        partial(stochastic_batch, score=BALD, how="softrank"),
    ):
        with pytest.raises(UserError, match="round 3: bald_score compares several predictions.*strategy.passes=20"):
            select(Strategy(strategy, "mine"), view, 5, seeded(), 3)


def test_bald_is_never_negative_and_at_most_log_of_classes_and_passes():
    score = bald_score(random_log_probs(2000, 5, 10, scale=30.0))
    assert (score >= 0).all() and log(5) - 0.01 < score.max() <= log(5) + 1e-9


# BatchBALD


def slow_batchbald(log_probs, k):
    picked = []
    for _ in range(k):
        rest = [i for i in range(len(log_probs)) if i not in picked]
        picked.append(max(rest, key=lambda i: slow_information(log_probs[[*picked, i]])))
    return picked


def gain_sum(log_probs, picked, configurations, rng):
    """The information of a batch as the strategy sums it, gain by gain, and the gains of all images after it."""
    s = log_probs.shape[1]
    weight, posterior = torch.ones(1, dtype=torch.float64), torch.full((1, s), 1 / s, dtype=torch.float64)
    total = 0.0
    for i in picked:
        total += float(information_given(weight, posterior, log_probs[i : i + 1]))
        weight, posterior = continue_configurations(weight, posterior, pass_probs(log_probs[i]), configurations, rng)
    return total, information_given(weight, posterior, log_probs)


@pytest.mark.parametrize("s, c, scale", [(3, 2, 1.0), (6, 3, 2.0), (7, 4, 4.0)])
@pytest.mark.parametrize("chunk", [64, 2**22])
def test_batchbald_picks_as_a_slow_greedy_over_joint_entropies(s, c, scale, chunk, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", chunk)
    log_probs = with_certain_rows(random_log_probs(14, s, c, seed=c, scale=scale).double())
    log_probs[5] = log_probs[6].roll(1, 0)  # its labels would settle which pass is right
    picked = batchbald(view_of(log_probs), 4, seeded()).tolist()
    assert picked == slow_batchbald(log_probs, 4)


@pytest.mark.parametrize("s, c, k", [(3, 2, 7), (20, 3, 5), (5, 10, 3)])
def test_gains_add_up_to_the_joint_information(s, c, k):
    log_probs = with_certain_rows(random_log_probs(20, s, c, scale=1.0))
    total, after = gain_sum(log_probs, range(k), EXACT, seeded())
    assert total == pytest.approx(slow_information(log_probs[:k]), abs=1e-9)
    more = [slow_information(log_probs[[*range(k), i]]) - total for i in (k, k + 1)]
    assert after[k : k + 2].tolist() == pytest.approx(more, abs=1e-9)


def test_sampled_configurations_estimate_the_gains_without_bias():
    log_probs = random_log_probs(60, 10, 5, scale=1.0)
    total, exact = gain_sum(log_probs, range(5), EXACT, seeded())
    runs = [gain_sum(log_probs, range(5), 100, seeded(i)) for i in range(60)]
    for found, true in [(torch.tensor([t for t, _ in runs]), total), (torch.stack([g for _, g in runs]), exact)]:
        assert found.std(0).max() > 0  # it sampled: 5 ** 5 configurations are too many
        assert ((found.mean(0) - true).abs() < 5 * found.std(0) / 60**0.5 + 1e-9).all()
        assert (found.std(0) < 0.03).all()
    assert (torch.stack([g for _, g in runs]) >= 0).all()


def test_default_configurations_find_what_exact_ones_find():
    log_probs = random_log_probs(150, 20, 4, seed=2, scale=1.0) + 3 * torch.randn(150, 1, 4, generator=seeded(9))
    log_probs = log_probs.log_softmax(-1)
    exact = batchbald(view_of(log_probs), 8, seeded(), configurations=EXACT)
    default = batchbald(view_of(log_probs), 8, seeded())
    best, found = (gain_sum(log_probs, picks.tolist(), EXACT, seeded())[0] for picks in (exact, default))
    assert abs(best - found) < 0.005 and torch.equal(default[:5], exact[:5])
    of_bald = gain_sum(log_probs, bald(view_of(log_probs), 8, seeded()).tolist(), EXACT, seeded())[0]
    assert best > of_bald + 0.01


def every_gain(gains, gain_P, k, take, rng):
    """lazy_greedy without laziness: every gain is computed at every pick. The random order is the same."""
    order_P = torch.randperm(len(gain_P), generator=rng)
    score_P, places = gain_P[order_P].clone(), []
    for _ in range(k):
        places.append(int(score_P.argmax()))
        if len(places) < k:
            take(int(order_P[places[-1]]))
            score_P = gains(order_P).double()
            score_P[places] = -torch.inf
    return order_P[places]


@pytest.mark.parametrize("seed", range(4))
def test_lazy_gains_lose_nothing_where_configurations_are_sampled(seed, monkeypatch):
    """100 configurations, a twentieth of the default: sampled gains do rise now and then, by the sample's error."""
    log_probs = 2 * torch.randn(600, 1, 10, generator=seeded(seed)) + torch.randn(
        600, 20, 10, generator=seeded(seed + 9)
    )
    view = view_of(log_probs.log_softmax(-1))
    lazy = batchbald(view, 10, seeded(seed), configurations=100)
    monkeypatch.setattr("al_bench.strategies.bayesian.lazy_greedy", every_gain)
    assert lazy.tolist() == batchbald(view, 10, seeded(seed), configurations=100).tolist()


def test_batchbald_agrees_with_scikit_activeml():
    log_probs = random_log_probs(30, 6, 3, seed=1, scale=1.0).double().log_softmax(-1)
    table = skactiveml_batch_bald(log_probs.exp().transpose(0, 1).numpy(), 4, n_MC_samples=10_000, random_state=0)
    picked = batchbald(view_of(log_probs), 4, seeded()).tolist()
    assert [int(np.nanargmax(row)) for row in table] == picked
    np.testing.assert_allclose(table[0], bald_score(log_probs).numpy(), atol=1e-9)
    total, after = gain_sum(log_probs, picked[:3], EXACT, seeded())
    rest = [i for i in range(30) if i not in picked[:3]]
    np.testing.assert_allclose(table[3][rest], (total + after[rest]).numpy(), atol=1e-9)


def test_the_first_pick_is_balds():
    for seed in range(10):
        view = view_of(random_log_probs(50, 8, 4, seed=seed))
        assert batchbald(view, 1, seeded()).equal(bald(view, 1, seeded()))


def disagreeing(*answers, sure=0.98):
    """Images of two classes; answers: the class each pass believes in."""
    class_PS = torch.tensor([[int(a) for a in answer] for answer in answers])
    return torch.where(torch.eye(2, dtype=torch.bool)[class_PS], sure, 1 - sure).log()


def test_bald_takes_copies_and_batchbald_what_is_new():
    log_probs = torch.cat([disagreeing(*["0101"] * 5), disagreeing("0011", "0110", sure=0.95)])
    assert set(bald(view_of(log_probs), 3, seeded()).tolist()) < {0, 1, 2, 3, 4}
    for seed in range(5):
        picked = set(batchbald(view_of(log_probs), 3, seeded(seed)).tolist())
        assert {5, 6} < picked and len(picked & {0, 1, 2, 3, 4}) == 1


def test_where_the_labels_settle_everything_the_rest_of_the_batch_is_random():
    log_probs = torch.cat([disagreeing("0101", "0011", sure=1.0), disagreeing(*["0001"] * 40, sure=0.9)])
    picks = torch.stack([batchbald(view_of(log_probs), 6, seeded(i)) for i in range(200)])
    assert (picks[:, :2].sort(dim=1).values == torch.tensor([0, 1])).all()
    assert chisquare(picks[:, 2:].flatten().bincount(minlength=42)[2:]).pvalue > 1e-3


def test_batchbald_declares_memory_that_does_not_grow_with_the_pool_or_the_batch():
    memory = needs_of(batchbald).memory
    assert memory(Size(10**6, 0, 20, 1000, 0, 0, 100)) == memory(Size(10, 0, 20, 1000, 0, 0, 1)) > 2000 * 1000 * 8
    assert needs_of(epig).memory(Size(10**6, 0, 20, 5000, 0, 0, 100)) > 5000**2 * 8


# EPIG


def test_epig_matches_values_computed_by_hand():
    agreeing, opposed, other = disagreeing("0011", "1100", "0101", sure=1.0)
    certain, even = torch.tensor([[1.0, 0.0]] * 4).log(), torch.tensor([[0.5, 0.5]] * 4).log()
    candidates = torch.stack([agreeing, other, certain, even])
    assert epig_score(candidates, agreeing[None]).tolist() == pytest.approx([log(2), 0, 0, 0], abs=1e-12)
    assert epig_score(candidates, torch.stack([opposed, certain])).tolist() == pytest.approx([log(2) / 2, 0, 0, 0])


@pytest.mark.parametrize("s, c, t", [(2, 2, 1), (5, 4, 7), (8, 3, 30)])
@pytest.mark.parametrize("chunk", [16, 2**22])
def test_epig_agrees_with_a_slow_reference(s, c, t, chunk, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", chunk)
    log_probs = with_certain_rows(random_log_probs(25, s, c).double())
    targets = with_certain_rows(random_log_probs(max(t, 6), s, c, seed=1).double())[-t:]
    slow = [slow_epig(image, targets) for image in log_probs]
    assert epig_score(log_probs, targets).tolist() == pytest.approx(slow, abs=1e-9)
    whole_pool = [slow_epig(image, log_probs) for image in log_probs]
    picked = epig(view_of(log_probs), 8, seeded(), targets=1000)
    assert picked.tolist() == sorted(range(25), key=lambda i: -whole_pool[i])[:8]


def test_epig_passes_over_the_outlier_that_bald_takes():
    bulk = disagreeing(*["0011"] * 30, *["1100"] * 30, sure=0.9)
    log_probs = torch.cat([bulk, disagreeing("0101", sure=1.0)])
    assert bald(view_of(log_probs), 1, seeded()).item() == 60
    assert epig(view_of(log_probs), 60, seeded(), targets=61).sort().values.equal(torch.arange(60))


def test_targets_are_drawn_from_the_pool_anew_with_the_seed():
    view = view_of(random_log_probs(200, 5, 4))
    orders = {seed: epig(view, 200, seeded(seed), targets=3).argsort() for seed in (0, 1)}
    assert not torch.equal(orders[0], orders[1])
    whole = epig(view, 200, seeded(), targets=200).argsort()
    assert spearmanr(whole, epig(view, 200, seeded(), targets=100).argsort()).statistic > 0.9


# Stochastic batches over any score


def first_prob(log_probs_PSC):
    return log_probs_PSC[:, 0, 0].exp()


def signed(log_probs_PSC):
    return log_probs_PSC[:, 0, 0]


def broken(log_probs_PSC):
    return torch.where(log_probs_PSC[:, 0, 0] > -1, torch.nan, log_probs_PSC[:, 0, 0].exp())


def rows_of(*first):
    p = torch.tensor(first, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()[:, None]


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize(
    "how, weight", [("power", lambda s, r: s), ("softmax", lambda s, r: np.exp(s)), ("softrank", lambda s, r: 1 / r)]
)
def test_draws_without_replacement_have_the_papers_probabilities(how, weight, beta):
    scores, ranks = np.array([0.3, 0.9, 0.1, 0.5]), np.array([3, 1, 4, 2])
    strategy = partial(stochastic_batch, score=f"{__name__}.first_prob", how=how, beta=beta)
    rng, view = seeded(), view_of(rows_of(*scores))
    drawn = [tuple(strategy(view, 2, rng).tolist()) for _ in range(3000)]
    w = weight(scores, ranks) ** beta
    pairs = list(permutations(range(4), 2))
    chance = np.array([w[i] / w.sum() * w[j] / (w.sum() - w[i]) for i, j in pairs])
    assert chisquare([drawn.count(pair) for pair in pairs], 3000 * chance).pvalue > 1e-3


def test_a_high_beta_is_the_top_k():
    view = view_of(random_log_probs(100, 10, 5))
    best = bald(view, 10, seeded())
    for how in ("power", "softmax", "softrank"):
        assert stochastic_batch(view, 10, seeded(3), score=BALD, how=how, beta=1e8).equal(best)


def test_power_takes_images_of_score_0_last_and_at_random():
    view = view_of(rows_of(0.0, 1e-300, 0.0, 0.5, *[0.0] * 16))
    picks = torch.stack([stochastic_batch(view, 4, seeded(i), score=f"{__name__}.first_prob") for i in range(200)])
    assert (picks[:, :2].sort(dim=1).values == torch.tensor([1, 3])).all()
    zeros = [i for i in range(20) if i not in (1, 3)]
    assert chisquare(picks[:, 2:].flatten().bincount(minlength=20)[zeros]).pvalue > 1e-3


def test_softrank_and_softmax_take_negative_scores():
    view = view_of(rows_of(0.3, 0.9, 0.1))
    for how in ("softmax", "softrank"):
        assert stochastic_batch(view, 3, seeded(), score=f"{__name__}.signed", how=how, beta=1e6).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"score": f"{__name__}.signed"}, "how=power takes the logarithm of scores, but some are negative"),
        *[({"score": f"{__name__}.broken", "how": h}, "gave 1 NaN") for h in ("power", "softmax", "softrank")],
        ({"score": BALD, "how": "top"}, "how=top is none of power, softmax, softrank"),
        ({"score": BALD, "beta": 0.0}, "beta=0.0 has to be above 0"),
        ({"score": BALD, "beta": float("nan")}, "beta=nan has to be above 0"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_with_the_reason(options, complaint):
    with pytest.raises(UserError, match=f"strategy mine, round 2: .*{complaint}"):
        select(Strategy(partial(stochastic_batch, **options), "mine"), view_of(rows_of(0.3, 0.9, 0.1)), 1, seeded(), 2)


# What holds for all strategies


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("k", [1, 25])
def test_k_of_1_or_all_the_seed_decides_and_nothing_else_changes(name, k):
    log_probs = with_certain_rows(random_log_probs(25, 4, 3)).half()
    log_probs[10:15] = log_probs[9]  # copies
    before, state = log_probs.clone(), torch.get_rng_state()
    picks = [select(Strategy(ALL[name], name), view_of(log_probs), k, seeded(5), 0) for _ in range(2)]
    assert torch.equal(*picks) and len(picks[0].unique()) == k
    assert torch.equal(log_probs, before) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("alike", ["passes", "images"])
def test_where_all_scores_are_equal_the_choice_is_a_draw_and_not_the_first_files(name, alike, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", 100)
    one = torch.eye(3)[:1].log() if alike == "passes" else random_log_probs(1, 4, 3)[0]
    view = view_of(one.expand(40, 4, 3))
    counts = sum(ALL[name](view, 4, seeded(i)).bincount(minlength=40) for i in range(100))
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("name", ["bald", "batchbald", "epig"])
def test_shuffling_the_pool_shuffles_the_choice_alike(name):
    log_probs, order = random_log_probs(150, 5, 3), torch.randperm(150, generator=seeded(4))
    k = 5 if name == "batchbald" else 30
    plain, shuffled = ALL[name](view_of(log_probs), k, seeded()), ALL[name](view_of(log_probs[order]), k, seeded(1))
    assert torch.equal(order[shuffled], plain)


@pytest.mark.parametrize("name", ["bald", "batchbald", "epig", "softrank"])
def test_the_order_of_the_passes_changes_no_choice(name):
    """The passes are reordered for the whole pool, because a pass is a net. Every image is there twice: exact ties."""
    log_probs = random_log_probs(40, 6, 3).repeat(2, 1, 1)
    for seed in range(8):
        order = torch.randperm(6, generator=seeded(seed))
        picks = [ALL[name](view_of(x), 12, seeded(seed)).tolist() for x in (log_probs, log_probs[:, order])]
        assert picks[0] == picks[1]


def test_needs():
    assert all(needs_of(s).passes for s in (bald, batchbald, epig)) and not needs_of(stochastic_batch).passes
    assert all(needs_of(s).predictions and not needs_of(s).embeddings for s in ALL.values())


@pytest.mark.parametrize(
    "name, strategy, loops",
    [
        ("bald", bald, {"passes": 20}),
        ("ensemble_bald", bald, {"members": 5}),
        ("batchbald", batchbald, {"passes": 20}),
        ("epig", epig, {"passes": 20}),
        ("power_bald", stochastic_batch, {"passes": 20}),
        ("softmax_bald", stochastic_batch, {"passes": 20}),
        ("softrank_bald", stochastic_batch, {"passes": 20}),
        ("power_margin", stochastic_batch, {}),
    ],
)
def test_yaml_names_a_function_and_its_options(name, strategy, loops):
    yaml = dict(OmegaConf.load(Path(__file__).parents[1] / f"conf/strategy/{name}.yaml"))
    assert yaml.pop("name") == name and get_method(yaml.pop("_target_")) is strategy
    assert {key: yaml.pop(key) for key in ("passes", "members", "candidates") if key in yaml} == loops
    assert set(yaml) == set(signature(strategy).parameters) - {"view", "k", "rng"}
    view = view_of(random_log_probs(30, 3, 4))
    assert len(select(Strategy(partial(strategy, **yaml), name), view, 5, seeded(), 0)) == 5
