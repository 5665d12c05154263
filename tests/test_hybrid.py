"""The strategies of hybrid.py against slow references, and what all strategies of hybrid.py and gradient.py
have to fulfil.
"""

from dataclasses import fields, replace
from math import inf, log
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import seeded, slow_draw
from omegaconf import OmegaConf
from scipy.stats import chisquare
from skactiveml.base import SkactivemlClassifier
from skactiveml.pool import ContrastiveAL
from skactiveml.pool import Falcun as TheirFalcun
from sklearn.cluster import AgglomerativeClustering

from al_bench.strategies import PoolView, Strategy, gradient, load, needs_of
from al_bench.strategies.diversity import nearest_to_centres
from al_bench.strategies.guard import select, size_of
from al_bench.strategies.hybrid import (
    agglomerate,
    alfa_mix,
    bisect,
    cal,
    class_changes,
    clue,
    cluster_margin,
    contrast_score,
    drop_query,
    falcun,
    flip_score,
    galaxy,
    round_robin,
)
from al_bench.strategies.uncertainty import entropy_score, margin_score

CONF = Path(__file__).parents[1] / "conf" / "strategy"
NAMES = "alfa_mix badge bait cal clue cluster_margin drop_query expected_gradient_length falcun galaxy".split()
CONFIGS = {name: OmegaConf.load(CONF / f"{name}.yaml") for name in NAMES}
ALL = {name: load(OmegaConf.to_container(c)).function for name, c in CONFIGS.items()}


def make_view(p=60, labelled=12, c=4, d=6, s=1, seed=0, scale=1.0, dtype=torch.float32):
    """A pool whose predictions are those of a linear head on its embeddings."""
    rng = seeded(seed)
    emb, near = torch.randn(p, d, generator=rng), torch.randn(labelled, d, generator=rng)
    weight, bias = scale * torch.randn(c, d, generator=rng), 0.1 * torch.randn(c, generator=rng)
    log_probs = (emb @ weight.T + bias + 0.3 * torch.randn(s, p, c, generator=rng) * (s > 1)).log_softmax(-1)
    labels = torch.randint(c, (labelled,), generator=rng)
    near_log_probs = (near @ weight.T + bias).log_softmax(-1)
    return PoolView(
        p, c, log_probs.transpose(0, 1).contiguous().to(dtype), emb.to(dtype), near.to(dtype), labels,
        near_log_probs.to(dtype), None, None, weight, bias,
    )  # fmt: skip


def in_chunks(monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", 64)
    monkeypatch.setattr(gradient, "KEPT", 0)


# What all ten have to fulfil.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [
        {}, {"s": 3}, {"c": 2}, {"labelled": 0}, {"labelled": 1}, {"dtype": torch.float16}, {"scale": 1e4},
        {"scale": 0.0}, {"d": 1},
    ],
    ids=str,
)  # fmt: skip
def test_k_positions_once_each_from_what_was_asked_for_by_the_generator_alone(name, change):
    view, needed = make_view(**change), needs_of(ALL[name])
    given = {"labelled_labels_L"}
    given |= {"log_probs_PSC"} if needed.predictions else set()
    given |= {"emb_PD", "labelled_emb_LD"} if needed.embeddings else set()
    given |= {"labelled_log_probs_LC"} if needed.labelled else set()
    given |= {"head_weight_CD", "head_bias_C"} if needed.head else set()
    tensors = [f.name for f in fields(view) if f.name not in ("n_pool", "n_classes")]
    view = replace(view, **{f: None for f in tensors if f not in given})
    before = {f: getattr(view, f).clone() for f in given}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for k in (1, 11, 60):
        picks = [select(Strategy(ALL[name], name), view, k, seeded(seed), 0) for seed in (3, 3)]
        assert torch.equal(*picks)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(getattr(view, f), before[f]) for f in given)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("certain", [True, False])
def test_where_all_images_are_equal_the_choice_is_random(name, certain):
    view = make_view(p=30, d=5)
    row = torch.tensor([0, -inf, -inf, -inf]) if certain else torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    view = replace(view, log_probs_PSC=row.expand(30, 1, 4), emb_PD=view.emb_PD[:1].expand(30, 5))
    picks = torch.cat([select(Strategy(ALL[name], name), view, 3, seeded(i), 0) for i in range(100)])
    assert chisquare(picks.bincount(minlength=30)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["expected_gradient_length", "bait", "cal"])
def test_shuffling_the_pool_shuffles_the_choice_alike(name):
    view, order = make_view(), torch.randperm(60, generator=seeded(4))
    shuffled = replace(view, log_probs_PSC=view.log_probs_PSC[order], emb_PD=view.emb_PD[order])
    assert torch.equal(order[ALL[name](shuffled, 12, seeded(1))], ALL[name](view, 12, seeded()))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "cluster_margin"])
def test_in_chunks_the_choice_is_the_same(name, monkeypatch):
    view = make_view(s=2)
    whole = ALL[name](view, 10, seeded())
    in_chunks(monkeypatch)
    chosen = ALL[name](view, 10, seeded())
    # k-means may number its centres differently.
    assert torch.equal(whole.sort().values, chosen.sort().values)


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_asked_for_is_small_beside_the_embeddings_of_a_large_pool(name):
    """ImageNet in float16: 2 GB of embeddings, 2.6 GB of predictions."""
    estimate = needs_of(ALL[name]).memory
    view = make_view(p=20)
    size = replace(size_of(view, 1000), P=1_280_000, L=10_000, C=1000, D=768, S=1)
    assert estimate is None or 0 <= estimate(size) < 1.28e6 * 768 * 2


# Picking from clusters.


def test_the_nearest_to_each_centre_and_the_next_where_that_is_taken():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    centres = torch.tensor([[9.0], [0.9], [1.1], [0.8]])
    assert nearest_to_centres(lambda at: x[at], 4, centres, seeded()).tolist() == [3, 1, 2, 0]
    same = torch.zeros(20, 1)
    firsts = torch.cat([nearest_to_centres(lambda at: same[at], 20, centres, seeded(i)) for i in range(100)])
    assert chisquare(firsts.bincount(minlength=20)).pvalue > 1e-3


def slow_nearest(x, centres):
    picked = []
    for centre in centres.tolist():
        left = [i for i in range(len(x)) if i not in picked]
        picked.append(min(left, key=lambda i: sum((a - b) ** 2 for a, b in zip(x[i].tolist(), centre, strict=True))))
    return picked


@pytest.mark.parametrize("rows", [10**6, 7])
def test_nearest_to_centres_agrees_with_a_slow_search(monkeypatch, rows):
    monkeypatch.setattr("al_bench.strategies.CHUNK", rows * 30)
    x, centres = torch.randn(50, 5, generator=seeded()), 0.3 * torch.randn(25, 5, generator=seeded(1))
    found = nearest_to_centres(lambda at: x[at], 50, centres, seeded())
    assert len(found.unique()) == 25
    assert found.tolist() == slow_nearest(x, centres)


# CLUE


def test_clue_with_one_centre_takes_the_image_nearest_to_the_entropy_weighted_mean():
    for seed in range(10):
        view = make_view(seed=seed, scale=3.0)
        weight = entropy_score(view.log_probs_PSC)
        mean = (weight[:, None] * view.emb_PD).sum(0) / weight.sum()
        assert clue(view, 1, seeded()).tolist() == [int((view.emb_PD - mean).norm(dim=1).argmin())]


def test_clue_takes_uncertain_images_from_different_places_and_never_certain_ones():
    place, noise = torch.eye(4).repeat_interleave(15, 0) * 20, 0.1 * torch.randn(60, 4, generator=seeded())
    probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.6, 0.4]]).repeat(20, 1)
    view = PoolView(60, 2, probs.log()[:, None], place + noise)
    for seed in range(10):
        chosen = clue(view, 4, seeded(seed))
        assert sorted((chosen // 15).tolist()) == [0, 1, 2, 3] and (chosen % 3 != 1).all()
        all_40 = clue(view, 45, seeded(seed))[:40]  # and the rest at random
        assert (all_40 % 3 != 1).all() and len(all_40.unique()) == 40
        assert (clue(view, 12, seeded(seed)) % 3 != 1).all()
        assert (clue(view, 39, seeded(seed)) % 3 != 1).all()


# Cluster-Margin


def test_round_robin_by_hand():
    cluster = torch.tensor([2, 0, 0, 0, 1, 1])
    for seed in range(10):
        order = round_robin(cluster, 6, seeded(seed))
        assert cluster[order].tolist() == [2, 1, 0, 1, 0, 0] and len(order.unique()) == 6
    firsts = torch.cat([round_robin(cluster, 3, seeded(i))[2:] for i in range(300)])
    assert chisquare(firsts.bincount(minlength=4)[1:]).pvalue > 1e-3
    ties = torch.tensor([int(round_robin(torch.arange(5), 1, seeded(i))) for i in range(300)])
    assert chisquare(ties.bincount(minlength=5)).pvalue > 1e-3


def test_agglomeration_agrees_with_scikit_learn():
    x = torch.randn(60, 4, generator=seeded())
    theirs = torch.from_numpy(AgglomerativeClustering(7, linkage="average").fit_predict(x.numpy()))
    ours = agglomerate(x, 7)
    assert torch.equal(ours[:, None] == ours, theirs[:, None] == theirs)


@pytest.mark.parametrize("limit", [40, 39])
def test_cluster_margin_takes_a_lone_image_before_a_second_of_the_same_kind(limit, monkeypatch):
    """40 uncertain images, 36 of them copies of two; another 60 are certain."""
    place = torch.cat([torch.zeros(18), torch.full((18,), 50.0), torch.tensor([100.0, 200, 300, 400]), torch.zeros(60)])
    emb = torch.stack([place, 0.01 * torch.randn(100, generator=seeded())], 1)
    certainty = torch.where(torch.arange(100) < 40, 0.52, 0.99)
    view = PoolView(100, 2, torch.stack([certainty, 1 - certainty], 1).log()[:, None], emb)
    if limit < 40:
        monkeypatch.setattr("al_bench.strategies.hybrid.agglomerate", None)
    for seed in range(5):
        chosen = cluster_margin(view, 8, seeded(seed), factor=5, cluster_size=7, limit=limit)
        assert (chosen < 40).all() and len(chosen.unique()) == 8
        if limit == 40:  # k-means may split a crowd
            assert {36, 37, 38, 39} == set(chosen[:4].tolist())
            assert sorted((chosen[4:] // 18).tolist()) == [0, 0, 1, 1]


def test_cluster_margin_takes_the_least_margins_where_there_is_nothing_to_cluster():
    view = make_view()
    by_margin = margin_score(view.log_probs_PSC).argsort(descending=True)
    assert cluster_margin(view, 9, seeded(), factor=1).tolist() == by_margin[:9].tolist()
    assert set(cluster_margin(view, 9, seeded(), factor=2).tolist()) < set(by_margin[:18].tolist())
    for options in ({"factor": 0}, {"cluster_size": 0}):
        with pytest.raises(ValueError, match="factor and cluster_size have to be at least 1"):
            cluster_margin(view, 9, seeded(), **options)


# FALCUN


def slow_falcun(view, k, rng, gamma):
    rows = view.log_probs_PSC.double().exp().mean(1).tolist()
    uncertain = [1 - (sorted(row)[-1] - sorted(row)[-2]) for row in rows]
    diverse, picked = list(uncertain), []
    while True:
        weights = [
            0 if i in picked else (u + d) ** gamma for i, (u, d) in enumerate(zip(uncertain, diverse, strict=True))
        ]
        picked.append(slow_draw(weights, rng))
        if len(picked) == k:
            return picked
        far = [sum(abs(a - b) for a, b in zip(row, rows[picked[-1]], strict=True)) for row in rows]
        diverse = [min(d, f) for d, f in zip(diverse, far, strict=True)]
        low, high = min(diverse), max(diverse)
        diverse = [(d - low) / (high - low) for d in diverse]


@pytest.mark.parametrize("gamma, s, small", [(10.0, 1, False), (2.0, 3, True), (0.0, 1, True)])
def test_falcun_agrees_with_a_slow_reference(gamma, s, small, monkeypatch):
    if small:
        in_chunks(monkeypatch)
    view = make_view(s=s)
    for seed in range(5):
        assert falcun(view, 20, seeded(seed), gamma=gamma).tolist() == slow_falcun(view, 20, seeded(seed), gamma)


class Table(SkactivemlClassifier):
    """A classifier for their library, with our linear head."""

    def __init__(self, weight=None, bias=None):
        super().__init__(classes=None)
        self.weight, self.bias = weight, bias

    def fit(self, X, y, sample_weight=None):
        return self

    def predict_proba(self, X):
        return (torch.from_numpy(X).double() @ self.weight.T.double() + self.bias).softmax(1).numpy()


def theirs(strategy, view, k, **options):
    X = torch.cat([view.emb_PD, view.labelled_emb_LD]).double().numpy()
    y = np.concatenate([np.full(view.n_pool, np.nan), view.labelled_labels_L.numpy()])
    return strategy.query(X, y, Table(view.head_weight_CD, view.head_bias_C), fit_clf=False, batch_size=k, **options)


@pytest.mark.parametrize("gamma", [10.0, 1.0])
def test_falcun_draws_by_the_probabilities_of_scikit_activeml(gamma, monkeypatch):
    """Our function is made to pick what theirs picked. Its weights for each draw are compared with theirs."""
    view = make_view()
    picks, their_weights = theirs(TheirFalcun(gamma=gamma, random_state=0), view, 10, return_utilities=True)
    weights = []

    def record(weight_P, taken, rng):
        weights.append(weight_P.index_fill(0, torch.tensor(taken, dtype=torch.int64), 0))
        return int(picks[len(taken)])

    monkeypatch.setattr("al_bench.strategies.hybrid.draw", record)
    assert falcun(view, 10, seeded(), gamma=gamma).tolist() == picks.tolist()
    ours = torch.stack([w / w.sum() for w in weights])
    torch.testing.assert_close(ours, torch.from_numpy(their_weights[:, :60]).nan_to_num(0), rtol=1e-5, atol=1e-9)


def test_falcun_refuses_a_negative_gamma():
    with pytest.raises(ValueError, match="gamma has to be at least 0, not -1"):
        falcun(make_view(), 1, seeded(), gamma=-1)


# DropQuery


def test_class_changes_by_hand_and_against_a_slow_reference(monkeypatch):
    emb, weight, bias = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([-0.5, 0.0])
    # The first image's class is 0 with its one number and 1 without; the second's is always 1.
    changes = class_changes(emb.expand(2, 1).repeat(500, 1), weight, bias, 4, 0.75, seeded())
    assert (changes[1::2] == 0).all()
    counts = changes[::2].bincount(minlength=5)
    binomial = torch.tensor([1 + 12, 54, 108, 81]) * 500 / 256
    assert chisquare(torch.stack([counts[:2].sum(), *counts[2:]]), binomial).pvalue > 1e-3
    assert (class_changes(emb, weight, bias, 4, 0.0, seeded()) == 0).all()

    view, rng = make_view(d=9), seeded(7)
    slow = torch.zeros(60, dtype=torch.int64)
    for _ in range(5):
        for i, keep in enumerate(torch.rand(60, 9, generator=rng) >= 0.4):
            with_all = view.head_weight_CD @ view.emb_PD[i] + view.head_bias_C
            without = view.head_weight_CD @ (view.emb_PD[i] * keep / 0.6) + view.head_bias_C
            slow[i] += int(with_all.argmax() != without.argmax())
    in_chunks(monkeypatch)
    assert torch.equal(class_changes(view.emb_PD, view.head_weight_CD, view.head_bias_C, 5, 0.4, seeded(7)), slow)


def test_drop_query_chooses_among_those_that_change_and_fills_up_by_their_changes():
    view = make_view(p=200, d=9)
    changes = class_changes(view.emb_PD, view.head_weight_CD, view.head_bias_C, 3, 0.75, seeded(2))
    often = int((changes >= 2).sum())
    assert 20 < often < 150
    chosen = changes[drop_query(view, 20, seeded(2))]
    assert set(chosen.tolist()) == {2, 3} and (changes == 3).sum() > 20  # by k-means, not by the most changes
    more = changes[drop_query(view, often + 10, seeded(2))]
    assert (more[:often] >= 2).all() and torch.equal(more, changes.sort(descending=True).values[: often + 10])
    for options in ({"masks": 0}, {"dropout": 1.0}, {"dropout": -0.1}):
        with pytest.raises(ValueError, match="masks has to be at least 1, and dropout"):
            drop_query(view, 2, seeded(), **options)


# ALFA-Mix


def mixed_class(view, i, anchor, eps):
    """The class predicted when the anchor is mixed in, with alpha computed number by number as in the paper."""
    z, weight, bias = view.emb_PD[i].double(), view.head_weight_CD.double(), view.head_bias_C.double()
    logits = weight @ z + bias
    p_C = logits.softmax(0)
    p_C[logits.argmax()] -= 1
    g = weight.T @ p_C
    alpha = eps / len(z) ** 0.5 * (anchor - z).norm() * g / (g.norm() * (anchor - z))
    return int(logits.argmax()), int((weight @ ((1 - alpha) * z + alpha * anchor) + bias).argmax())


@pytest.mark.parametrize("c, small", [(4, False), (2, True)])
def test_the_eps_at_which_a_class_flips_agrees_with_mixing(c, small, monkeypatch):
    if small:
        in_chunks(monkeypatch)
    view = make_view(p=25, c=c, seed=3)
    labels = view.labelled_labels_L.unique()
    anchors = [view.labelled_emb_LD[view.labelled_labels_L == j].double().mean(0) for j in labels]
    flip = flip_score(view.emb_PD, view.head_weight_CD, view.head_bias_C, torch.stack(anchors))
    changed = 0
    for i in range(25):
        for eps in (0.1, 0.3, 1.0):
            pairs = [mixed_class(view, i, anchor, eps) for anchor in anchors]
            assert (float(flip[i]) < eps) == any(a != b for a, b in pairs)
            changed += any(a != b for a, b in pairs)
    assert 10 < changed < 65


def test_alfa_mix_by_hand():
    """Two classes that meet at 0, one anchor at 4, D = 1: the image at 1 flips after 1 of eps * 3."""
    emb = torch.tensor([[1.0], [-1.0], [4.0], [0.1]])
    score = flip_score(emb, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([[4.0]]))
    assert score.tolist() == pytest.approx([1 / 3, 1 / 5, inf, 0.1 / 3.9], rel=1e-5)
    certain = flip_score(torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([[4.0]]))
    assert certain.item() == inf  # no gradient, and not NaN


def test_alfa_mix_chooses_among_those_that_flip_first():
    view = make_view(p=300, d=20, scale=0.3)
    labels = view.labelled_labels_L
    anchors = torch.stack([view.labelled_emb_LD[labels == c].mean(0) for c in labels.unique()])
    flip = flip_score(view.emb_PD, view.head_weight_CD, view.head_bias_C, anchors)
    eps = next(e / 32 for e in range(1, 33) if (flip < e / 32).sum() > 10)
    assert eps < 0.8 and (flip[alfa_mix(view, 10, seeded())] < eps).all()
    few = int((flip < 1).sum())
    assert 10 < few < 300
    filled = flip[alfa_mix(view, few + 3, seeded())]
    assert (filled[:few] < 1).all() and (filled[few:] >= 1).all()


def test_alfa_mix_with_one_centre_takes_the_image_nearest_in_direction_to_those_that_flip():
    for seed in range(10):
        view = make_view(p=300, d=3, seed=seed)
        emb = view.emb_PD * (1 + 5 * torch.rand(300, 1, generator=seeded(seed)))
        labels = view.labelled_labels_L
        anchors = torch.stack([view.labelled_emb_LD[labels == c].mean(0) for c in labels.unique()])
        flip = flip_score(emb, view.head_weight_CD, view.head_bias_C, anchors)
        among = (flip < 1 / 32).nonzero()[:, 0]
        assert len(among) > 1
        unit = emb[among] / emb[among].norm(dim=1, keepdim=True)
        expected = among[(unit - unit.mean(0)).norm(dim=1).argmin()]
        assert alfa_mix(replace(view, emb_PD=emb), 1, seeded()).tolist() == [int(expected)]


# CAL


def test_cal_by_hand():
    """The image at 0 has its neighbours at 0 and 1; the one at 10 its at 10 and 1."""
    near, emb = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.0], [10.0]])
    near_probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    view = PoolView(2, 2, probs.log()[:, None], emb, near, torch.tensor([0, 1, 1]), near_probs.log())
    second = 0.25 * log(0.25 / 0.75) + 0.75 * log(0.75 / 0.25)
    assert contrast_score(view, 1).tolist() == pytest.approx([0, second])
    assert contrast_score(view, 2).tolist() == pytest.approx([log(2) / 2, (second + log(1 / 0.75)) / 2])
    ruled_out = replace(view, log_probs_PSC=torch.tensor([[0.0, 1.0], [0.5, 0.5]]).log()[:, None])
    assert contrast_score(ruled_out, 10)[0] == inf and cal(ruled_out, 2, seeded()).tolist() == [0, 1]


def test_cal_agrees_with_scikit_activeml():
    for seed in range(3):
        view = make_view(seed=seed)
        theirs_ = theirs(ContrastiveAL(nearest_neighbors_dict={"n_neighbors": 5}, eps=1e-30), view, 10)
        assert cal(view, 10, seeded(), neighbours=5).tolist() == theirs_.tolist()


@pytest.mark.parametrize("small, s, neighbours", [(False, 1, 10), (True, 3, 4), (True, 1, 100)])
def test_cal_agrees_with_a_slow_reference(small, s, neighbours, monkeypatch):
    if small:
        in_chunks(monkeypatch)
    view = make_view(labelled=30, s=s)
    slow = []
    for own_SC, x in zip(view.log_probs_PSC.double().exp(), view.emb_PD, strict=True):
        own, total = own_SC.mean(0).tolist(), 0.0
        near = sorted(range(30), key=lambda j: float((view.labelled_emb_LD[j] - x).norm()))[:neighbours]
        for j in near:
            q = view.labelled_log_probs_LC[j].double().exp().tolist()
            total += sum(a * log(a / b) for a, b in zip(q, own, strict=True))
        slow.append(total / len(near))
    assert contrast_score(view, neighbours).tolist() == pytest.approx(slow, rel=1e-5)


# GALAXY


@pytest.mark.parametrize(
    "line, answers",
    [
        ("1____0", {2}),  # the middle; of an even number, the left one
        ("1___0_1", {5}),  # the shortest stretch
        ("1_0___1_1", {1}),
        ("1_1_0_0", {3}),  # between images of one class there is no boundary
        ("1_0_1", {1, 3}),
        ("__10__", {1, 4}),  # no stretch left: next to where a 1 meets a 0
        ("_1_10___", {2, 5}),
        ("_1110_", {5}),
        ("_110000_", {0}),
        ("10_1111101_", {2}),
        ("1_1_1", {1, 3}),  # nothing meets
        ("_____", {0, 1, 2, 3, 4}),
    ],
)
def test_where_bisection_asks_next(line, answers):
    known = torch.tensor([{"1": 1, "0": 0, "_": -1}[character] for character in line])
    assert {bisect(known, seeded(i)) for i in range(60)} == answers


def slow_bisect(known):
    """All correct answers, found by looking at every pair and every unknown."""
    places = [i for i, value in enumerate(known) if value >= 0]
    pairs = [(a, b) for a, b in zip(places, places[1:], strict=False) if known[a] != known[b]]
    unknown = [i for i, value in enumerate(known) if value < 0]
    stretches = [(b - a - 1, a) for a, b in pairs if b - a > 1]
    if stretches:
        return {a + 1 + (gap - 1) // 2 for gap, a in stretches if gap == min(stretches)[0]}
    if not pairs:
        return set(unknown)
    distance = {u: min(min(abs(u - a), abs(u - b)) for a, b in pairs) for u in unknown}
    return {u for u in unknown if distance[u] == min(distance.values())}


def test_bisection_agrees_with_a_slow_search():
    rng = seeded(8)
    for _ in range(300):
        n = int(torch.randint(3, 14, (1,), generator=rng))
        known = torch.randint(-1, 2, (n,), generator=rng)
        known[int(torch.randint(n, (1,), generator=rng))] = -1
        right = slow_bisect(known.tolist())
        assert {bisect(known, seeded(i)) for i in range(8)} <= right
        if len(right) == 1:
            assert {bisect(known, seeded())} == right


@pytest.mark.parametrize("c", [2, 4])
def test_galaxy_agrees_with_a_slow_reference(c):
    """Replay the choice: the rule has to allow each pick for some class's line."""
    view = make_view(p=25, labelled=8, c=c, seed=1)
    probs = torch.cat([view.log_probs_PSC[:, 0], view.labelled_log_probs_LC]).double().exp().tolist()
    known = [None] * 25 + view.labelled_labels_L.tolist()
    for pick in galaxy(view, 25, seeded()).tolist():
        allowed = set()
        for j in range(c if c > 2 else 1):
            margin = [row[j] - max(p for m, p in enumerate(row) if m != j) for row in probs]
            line = sorted(range(33), key=margin.__getitem__)
            allowed |= {line[i] for i in slow_bisect([-1 if known[n] is None else int(known[n] == j) for n in line])}
        assert pick in allowed
        known[pick] = max(range(c), key=probs[pick].__getitem__)


def test_galaxy_finds_the_boundary_of_a_rare_class_where_the_net_is_far_from_it():
    """One image in a hundred is of the rare class, and the net predicts none of them.

    GALAXY queries between the labelled images of the rare class and the labelled others. Margin queries the images that
    the net is least certain of.
    """
    p_P = torch.linspace(0.001, 0.4, 400)  # the probability of the rare class
    log_probs = torch.stack([p_P, 1 - p_P], 1).log()
    labelled = log_probs[[100, 110]]
    view = PoolView(400, 2, log_probs[:, None], None, None, torch.tensor([1, 0]), labelled)
    assert 95 < galaxy(view, 1, seeded()).item() < 115
