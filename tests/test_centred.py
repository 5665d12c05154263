"""Distances of embeddings that lie far from 0: each strategy is compared with itself on the same
numbers minus their mean.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import seeded

from al_bench import strategies
from al_bench.strategies import PoolView
from al_bench.strategies.centred import Centred, centred, mean_if_far
from al_bench.strategies.coverage import dcom, max_herding, prob_cover, uncertainty_herding
from al_bench.strategies.diversity import k_center, k_means, nearest, sq_norms, typiclust
from al_bench.strategies.gradient import badge, logit_gradient, mean_terms
from al_bench.strategies.hybrid import cal, clue, cluster_margin, cluster_picks, drop_query

UNMOVED = {  # by adding the same vector to all embeddings
    "k_center": k_center,
    "k_means": k_means,
    "typiclust": typiclust,
    "prob_cover": prob_cover,
    "max_herding": partial(max_herding, sigma=0.3),
    "uncertainty_herding": uncertainty_herding,
    "dcom": dcom,
    "cal": cal,
    "clue": clue,
    "cluster_margin": partial(cluster_margin, limit=10),
    "drop_query": partial(drop_query, dropout=0.0),  # fewer than k images change their class: any will do
}
P, L, D, C = 160, 12, 8, 3


def clouds(n, seed=0):
    """Five clouds with a spread of 1 each, on the same scale."""
    generator = seeded(seed)
    centre = 2 * torch.randn(5, D, generator=generator)
    return centre[torch.arange(n) % 5] + torch.randn(n, D, generator=generator)


def view_at(offset, dtype=torch.float32, seed=0):
    x = (clouds(P + L, seed).double() + offset).to(dtype)
    log_probs = (2 * torch.randn(P + L, 1, C, generator=seeded(seed + 1))).log_softmax(-1)
    labels = torch.arange(L) % C
    head = torch.randn(C, D, generator=seeded(seed + 2)), torch.zeros(C)
    return PoolView(P, C, log_probs[L:], x[L:], x[:L], labels, log_probs[:L, 0], x[L:], x[:L], *head)


def less_mean(*parts):
    """Subtract the mean in float64, where an offset of 10,000 leaves eleven digits."""
    mean = torch.cat([x.double() for x in parts]).mean(0)
    return [(x.double() - mean).float() for x in parts]


def unshifted(view):
    emb, labelled_emb = less_mean(view.emb_PD, view.labelled_emb_LD)
    features, labelled = less_mean(view.features_PF, view.labelled_features_LF)
    return replace(view, emb_PD=emb, labelled_emb_LD=labelled_emb, features_PF=features, labelled_features_LF=labelled)


@pytest.fixture(params=[2**22, 64], ids=["whole", "chunked"])
def chunk(request, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", request.param)


@pytest.mark.parametrize("offset, dtype", [(1000, torch.float32), (-20_000, torch.float32), (60, torch.float16)])
@pytest.mark.parametrize("name", UNMOVED)
def test_a_shift_of_all_embeddings_changes_no_choice(name, offset, dtype):
    for seed in range(3):
        view = view_at(offset, dtype, seed)
        picks = [UNMOVED[name](v, 20, seeded(seed)).tolist() for v in (view, unshifted(view))]
        assert picks[0] == picks[1]


def slow_k_center(pool, centres, k):
    """k-center in float64, coordinate by coordinate."""
    dist = (pool[:, None].double() - centres.double()).square().sum(2).amin(1)
    picked = []
    for _ in range(k):
        picked.append(int(dist.argmax()))
        dist = torch.minimum(dist, (pool.double() - pool[picked[-1]].double()).square().sum(1))
    return picked


@pytest.mark.parametrize("offset", [0, 3, 1000, 10_000])
def test_core_set_takes_the_farthest_wherever_the_embeddings_lie(chunk, offset):
    """At an offset of 1,000 the image chosen was on average 0.57 times as far as the farthest."""
    view = view_at(offset)
    assert k_center(view, 40, seeded()).tolist() == slow_k_center(view.emb_PD, view.labelled_emb_LD, 40)


def test_at_length_1_embeddings_far_from_0_are_a_narrow_cone_and_the_farthest_is_still_taken():
    view = view_at(1000)
    unit, labelled = (torch.nn.functional.normalize(x.double(), dim=1) for x in (view.emb_PD, view.labelled_emb_LD))
    found = k_center(view, 20, seeded(), unit=True).tolist()
    dist = torch.cdist(unit, labelled).amin(1)
    for i in found:  # float32 keeps five digits of such distances
        assert dist[i] > (1 - 1e-3) * dist.max()
        dist = torch.minimum(dist, (unit - unit[i]).norm(dim=1))


def test_clusters_of_a_narrow_cone():
    x, among = 1000 + clouds(P), torch.arange(P)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    expected = cluster_picks((unit - unit.mean(0)).float(), among, torch.ones(P), 6, seeded())
    assert cluster_picks(x, among, torch.ones(P), 6, seeded(), unit=True).tolist() == expected.tolist()


def test_copies_far_from_0_are_still_at_distance_0(chunk):
    x = (1000 + clouds(40)).repeat(3, 1)
    (points,) = centred(x)
    assert isinstance(points, Centred) and (nearest(points, points[:40])[0] == 0).all()
    picks = k_center(PoolView(120, C, None, x, x[:0], torch.empty(0).long()), 40, seeded())
    assert len((picks % 40).unique()) == 40


# BADGE: adding a vector to h does not just shift its gradients a (x) h


@pytest.mark.parametrize("offset", [0, 1000, 10_000])
def test_badges_squared_distances_are_those_of_gradients_built_whole(chunk, offset, monkeypatch):
    """Predictions are nearly equal, so gradients differ only by h, which varies by a thousandth of its length."""
    view = replace(view_at(offset), log_probs_PSC=(1e-4 * clouds(P, 3)[:, None, :C]).log_softmax(-1))
    a = logit_gradient(view.log_probs_PSC).double()
    g = (a[:, :, None] * view.emb_PD.double()[:, None]).flatten(1)
    seen = []

    def spy(weight_P, taken, rng):
        seen.append(weight_P.clone())
        return int(weight_P.argmax())

    monkeypatch.setattr("al_bench.strategies.gradient.draw", spy)
    monkeypatch.setattr("al_bench.strategies.gradient.KEPT", strategies.CHUNK)
    picks = badge(view, 12, seeded())
    assert int(picks[0]) == int(g.norm(dim=1).argmax())
    for n, weight_P in enumerate(seen, start=1):
        slow = torch.stack([(g - g[i]).square().sum(1) for i in picks[:n]]).amin(0)
        torch.testing.assert_close(weight_P, slow, rtol=1e-4, atol=1e-5 * float(slow.max()))


def test_what_the_mean_adds_to_a_squared_distance_by_hand():
    # m = (10, 0); a = (1, -1), h = (1, 2); a' = (2, -2), h' = (0, 1), both minus m.
    # g - g' = a (11, 2) - a' (10, 1) = rows (-9, 0) and (9, 0): 162. Minus m: (1, 0) and (-1, 0): 2.
    a = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    added = mean_terms([a], a[1], 1, torch.tensor([10.0, 0.0]), torch.tensor([10.0, 0.0], dtype=torch.float64))
    assert added.tolist() == [160, 0]


# The rule


def test_the_mean_is_taken_away_where_it_is_far_and_the_rows_differ():
    near, far = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])  # 1 and 16 in squared spreads of 1
    assert mean_if_far(near) is None and mean_if_far(far).tolist() == [4.0]
    assert mean_if_far(far[:1], far[1:]).tolist() == [4.0] == mean_if_far(far[:0], far).tolist()
    assert centred(near, near[:0])[0] is near
    points, none = centred(far, far[:0])
    assert points[:].tolist() == [[-1.0], [1.0]] and points[torch.tensor([1])].tolist() == [[1.0]]
    assert [part.tolist() for part in points.split(1)] == [[[-1.0]], [[1.0]]]
    assert len(points) == 2 and points.shape == (2, 1) and len(none) == 0 and sq_norms(none).tolist() == []
    # Nearly equal, as from a net that distinguishes nothing: the differences are rounding and must not decide.
    same = torch.full((50, 4), 3.7)
    assert mean_if_far(same) is None and mean_if_far(same * (1 + 1e-7 * torch.randn(50, 4, generator=seeded()))) is None


def test_a_pool_of_usual_embeddings_is_not_touched():
    for x in (clouds(P), clouds(P).relu(), 3 + 2 * clouds(P), torch.nn.functional.normalize(clouds(P), dim=1)):
        assert centred(x, x[:3])[0] is x


def test_nothing_of_the_pools_size_is_copied():
    x = (1000 + torch.randn(50_000, 64, generator=seeded())).half()
    (points,) = centred(x)
    assert points.x_ND is x and points.mean_D.shape == (64,)
    assert float((points.mean_D - 1000).abs().max()) < 0.2
