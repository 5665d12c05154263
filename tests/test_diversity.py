import warnings
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from skactiveml.pool import CoreSet

from al_bench.strategies import Needs, PoolView, Size, Strategy, needs_of
from al_bench.strategies.diversity import (
    cluster,
    fit_memory,
    k_center,
    k_means,
    nearest,
    seed_rows,
    sq_distances,
    sq_norms,
    to_all,
    typicality,
    typiclust,
)
from al_bench.strategies.guard import select

ALL = {"k_center": k_center, "k_means": k_means, "typiclust": typiclust}


def view_of(x_PD, labelled_LD=None):
    """The same numbers as embeddings and as fixed features."""
    labelled_LD = x_PD[:0] if labelled_LD is None else labelled_LD
    labels_L = torch.zeros(len(labelled_LD), dtype=torch.int64)
    return PoolView(len(x_PD), 3, None, x_PD, labelled_LD, labels_L, None, x_PD, labelled_LD)


def noise(n, d=4, seed=0):
    return torch.randn(n, d, generator=seeded(seed))


def clumps(sizes, d=6, seed=0, spread=0.05):
    """Well separated clumps on the axes, shuffled, and the clump of each row."""
    of = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    of = of[torch.randperm(len(of), generator=seeded(seed))]
    return 3 * torch.eye(len(sizes), d)[of] + spread * noise(len(of), d, seed + 1), of


@pytest.fixture(params=[2**22, 64], ids=["whole", "chunked"])
def chunk(request, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", request.param)


def distance(x_D, y_D):
    return sum((a - b) ** 2 for a, b in zip(x_D, y_D, strict=True)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_distances_and_the_nearest_row_are_those_of_a_double_loop(chunk, dtype):
    x, y = noise(37).to(dtype), noise(23, seed=1).to(dtype)
    slow = torch.tensor([[distance(a, b) ** 2 for b in y.double().tolist()] for a in x.double().tolist()])
    torch.testing.assert_close(sq_distances(x, y, sq_norms(x), sq_norms(y)), slow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_all(x, sq_norms(x), y, sq_norms(y)), slow, rtol=1e-4, atol=1e-4)
    near, which = nearest(x, y)
    torch.testing.assert_close(near, slow.min(1).values, rtol=1e-4, atol=1e-4)
    assert torch.equal(which, slow.argmin(1))
    assert nearest(x, y[:0])[0].tolist() == [torch.inf] * 37


@pytest.mark.parametrize("d", [3, 512, 2048])
def test_equal_rows_are_at_distance_0_in_spite_of_rounding(d):
    x = noise(300, d).abs() + 1
    dist = sq_distances(x, x, sq_norms(x), sq_norms(x))
    assert (dist.diagonal() == 0).all() and (dist > 0).sum() == 300 * 299


# k_center


def slow_k_center(pool, centres, k):
    pool, centres, picked = pool.double().tolist(), centres.double().tolist(), []
    while len(picked) < k:
        gaps = [min(distance(x, c) for c in centres) for x in pool]
        best = max((i for i in range(len(pool)) if i not in picked), key=lambda i: gaps[i])
        picked.append(best)
        centres.append(pool[best])
    return picked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_k_center_is_a_slow_reference(chunk, seed, dtype, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.diversity.AHEAD", 3)
    pool, labelled = noise(60, seed=seed).to(dtype), noise(7, seed=9).to(dtype)
    assert k_center(view_of(pool, labelled), 60, seeded()).tolist() == slow_k_center(pool, labelled, 60)


def test_k_center_takes_the_ends_of_a_line_by_hand():
    # From the labelled 0: 10 is farthest; then 4 (4 from 0), then 7 (3 from 4 and 10), then 2 (2 from 0 and 4).
    view = view_of(torch.tensor([[1.0], [2.0], [4.0], [7.0], [10.0]]), torch.tensor([[0.0]]))
    assert k_center(view, 4, seeded()).tolist() == [4, 2, 3, 1]


def test_on_the_unit_circle_a_long_embedding_is_no_outlier():
    # Labelled: east. Unscaled, the long one is farthest (9). At length 1, west is (2), then north (root 2).
    view = view_of(torch.tensor([[10.0, 0.1], [-0.5, 0.0], [0.0, 0.3], [2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert k_center(view, 1, seeded()).tolist() == [0]
    assert k_center(view, 3, seeded(), unit=True).tolist() == [1, 2, 0]
    assert k_center(replace(view, labelled_emb_LD=torch.zeros(0, 2)), 4, seeded(), unit=True).unique().tolist() == [
        0, 1, 2, 3,
    ]  # fmt: skip


def test_k_center_covers_as_well_as_scikit_activemls_and_within_twice_the_best_radius():
    pool = noise(40, 2)
    ours = k_center(view_of(pool, pool[:1]), 6, seeded())
    y = torch.full((40,), torch.nan)
    y[0] = 0
    theirs = CoreSet(random_state=0).query(pool.double().numpy(), y.numpy(), batch_size=6)
    assert ours.tolist() == theirs.tolist()

    def radius(centres):
        return float(torch.cdist(pool, pool[centres]).min(1).values.max())

    best = min(radius(list(c)) for c in combinations(range(40), 3))
    assert radius(k_center(view_of(pool), 3, seeded())) <= 2 * best


def test_without_labels_k_center_starts_at_random():
    view = view_of(noise(20))
    firsts = torch.tensor([int(k_center(view, 1, seeded(i))) for i in range(400)])
    assert chisquare(firsts.bincount(minlength=20)).pvalue > 1e-3


# k-means


def slow_k_means(pool, centres, order, k):
    picked = []
    for c in order:
        left = [i for i in range(len(pool)) if i not in picked]
        picked.append(min(left, key=lambda i: distance(pool[i], centres[c])))
    return picked[:k]


def test_k_means_takes_the_image_nearest_to_each_centre_the_largest_cluster_first(chunk):
    sizes = [40, 30, 20, 10]
    pool, of = clumps(sizes)
    chosen = k_means(view_of(pool), 4, seeded())
    assert of[chosen].tolist() == [0, 1, 2, 3]
    centres = [pool[of == c].double().mean(0).tolist() for c in range(4)]
    assert chosen.tolist() == slow_k_means(pool.double().tolist(), centres, range(4), 4)


def test_where_two_centres_share_their_nearest_image_the_second_takes_the_next(monkeypatch):
    pool = torch.tensor([[0.0], [1.0], [2.1], [50.0]])
    centres, of = torch.tensor([[0.1], [0.2], [49.0]]), torch.tensor([0, 0, 1, 2])
    monkeypatch.setattr("al_bench.strategies.diversity.cluster", lambda *_: (centres, of))
    assert k_means(view_of(pool), 3, seeded())[0] == 0  # centre 0 has two images; then 1 and 2 have one each
    assert sorted(k_means(view_of(pool), 3, seeded()).tolist()) == [0, 1, 3]


@pytest.mark.parametrize("k", [4, 60])
def test_k_means_spreads_over_clumps_of_both_kinds_of_k_means(chunk, k):
    pool, of = clumps([50] * 4) if k == 4 else clumps([12] * 60, d=60)
    chosen = k_means(view_of(pool), k, seeded())
    assert len(of[chosen].unique()) >= (4 if k == 4 else 45)


def test_seeding_draws_in_proportion_to_the_squared_distance():
    # From 0 the others are at 1 and 3: chances 1 and 9 of 10, whichever comes first being a third.
    x = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = [tuple(seed_rows(x, torch.ones(len(x)), 2, seeded(i))[:, 0].tolist()) for i in range(3000)]
    after_0 = [b for a, b in pairs if a == 0]
    assert 900 < len(after_0) < 1100
    assert chisquare([after_0.count(1), after_0.count(3)], [len(after_0) * 0.1, len(after_0) * 0.9]).pvalue > 1e-3


def test_large_data_are_clustered_on_a_random_part_and_every_row_gets_its_nearest_centre(monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", 64)
    x, of = clumps([300, 300, 300])
    centre, found = cluster((x[:100], x[100:]), 3, seeded())
    slow = [min(range(3), key=lambda c: distance(row, centre[c].tolist())) for row in x.tolist()]
    assert found.tolist() == slow
    assert {len(found[of == c].unique()) for c in range(3)} == {1} and len(found.unique()) == 3
    assert fit_memory(900, 6, 3) < 900 * 6 * 8


# TypiClust


def slow_typicality(rows, n_near=20):
    found = []
    for i, x in enumerate(rows):
        gaps = sorted(distance(x, y) for j, y in enumerate(rows) if j != i)[:n_near]
        mean = sum(gaps) / len(gaps) if gaps else 0
        found.append(1 / mean if mean else torch.inf)
    return found


def slow_typiclust(labelled, pool, of, k):
    """of: the clusters of labelled and pool."""
    rows, n = labelled + pool, len(labelled)
    members = {c: [i for i, o in enumerate(of) if o == c] for c in set(of)}
    score = {}
    for group in members.values():
        for i, t in zip(group, slow_typicality([rows[i] for i in group]), strict=True):
            score[i] = t
    done = set(range(n))
    picked = []
    while len(picked) < k:
        left = [c for c, group in members.items() if set(group) - done]
        left = [c for c in left if len(members[c]) >= 5] or left
        c = min(left, key=lambda c: (len(set(members[c]) & done), -len(members[c])))
        best = max(set(members[c]) - done, key=lambda i: score[i])
        done.add(best)
        picked.append(best - n)
    return picked


def test_typicality_by_hand():
    line = torch.tensor([[0.0], [1.0], [3.0]])
    expected = [1 / 2, 1 / 1.5, 1 / 2.5]
    assert typicality((line[:1], line[1:]), torch.arange(3)).tolist() == pytest.approx(expected, rel=1e-5)
    assert typicality((line[:0], line), torch.tensor([2])).tolist() == [torch.inf]
    assert typicality((line[:0], torch.ones(3, 1)), torch.arange(3)).tolist() == [torch.inf] * 3


@pytest.mark.parametrize("n", [5, 21, 22, 70])
def test_typicality_is_a_slow_reference(chunk, n):
    x = noise(n)
    found = typicality((x[:3], x[3:]), torch.arange(n))
    torch.testing.assert_close(found, torch.tensor(slow_typicality(x.double().tolist())), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_labelled, k", [(0, 12), (9, 12), (9, 91)])
def test_typiclust_is_a_slow_reference(chunk, n_labelled, k, monkeypatch):
    # Sizes differ, so that no clusters tie. Clusters below 5 come last.
    x, of = clumps([37, 29, 19, 12, 3], seed=3, spread=0.3)
    monkeypatch.setattr("al_bench.strategies.diversity.cluster", lambda *_: (torch.zeros(5, 6), of))
    labelled, pool = x[:n_labelled], x[n_labelled:]
    found = typiclust(view_of(pool, labelled), k, seeded()).tolist()
    assert found == slow_typiclust(labelled.double().tolist(), pool.double().tolist(), of.tolist(), k)


def test_typiclust_goes_to_the_clumps_without_labels_and_leaves_strays_alone(chunk):
    x, of = clumps([30, 28, 26, 24, 1], seed=2)
    has_label = torch.zeros(len(x), dtype=torch.bool)
    has_label[(of == 0).nonzero()[0]] = has_label[(of == 1).nonzero()[0]] = True
    order = torch.cat([has_label.nonzero()[:, 0], (~has_label).nonzero()[:, 0]])
    x, of = x[order], of[order]
    for seed in range(5):
        chosen = of[2:][typiclust(view_of(x[2:], x[:2]), 3, seeded(seed))].tolist()
        assert {2, 3} <= set(chosen) and 4 not in chosen


def test_typiclust_needs_at_most_500_clusters_however_many_labels(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "al_bench.strategies.diversity.cluster",
        lambda parts, n, rng: asked.append(n) or (torch.zeros(n, 2), torch.arange(sum(map(len, parts))) % n),
    )
    for n_labelled in (0, 10, 600):
        typiclust(view_of(noise(700, 2), noise(n_labelled, 2)), 30, seeded())
    assert asked == [30, 40, 500]


# All three strategies


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("pool", ["noise", "equal", "zero", "copies", "float16"])
@pytest.mark.parametrize("n_labelled", [0, 3])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_k_distinct_positions_from_any_pool_and_the_generator_alone(strategy, pool, n_labelled, k, chunk):
    x = {"noise": noise(12), "equal": noise(1).expand(12, 4), "zero": torch.zeros(12, 4)}.get(pool, noise(12))
    if pool == "copies":
        x = noise(3).repeat(4, 1)
    x = x.half() if pool == "float16" else x
    view, before = view_of(x, x[:n_labelled]), x.clone()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picks = [select(Strategy(strategy, "s"), view, k, seeded(seed), 0) for seed in (0, 0)]
    assert torch.equal(*picks) and torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    if pool == "copies" and n_labelled == 0 and k == 5 and strategy is k_center:
        assert len((picks[0][:3] % 3).unique()) == 3  # each of the three before any copy


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@pytest.mark.parametrize("n_labelled", [0, 2])
def test_among_equal_images_the_choice_is_random(strategy, n_labelled):
    x = (noise(1, 64) + 5).expand(30, 64)
    view = view_of(x, x[:n_labelled])
    counts = sum(torch.zeros(30).index_add_(0, strategy(view, 5, seeded(i)), torch.ones(5)) for i in range(120))
    assert chisquare(counts).pvalue > 1e-3


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(0, 5), st.integers(0, 2**32), st.data())
def test_shuffling_the_pool_shuffles_k_centers_choice_alike(p, n_labelled, seed, data):
    k = data.draw(st.integers(1, p))
    x, labelled = noise(p, seed=seed), noise(max(1, n_labelled), seed=seed + 1)
    order = torch.randperm(p, generator=seeded(seed))
    plain = k_center(view_of(x, labelled), k, seeded())
    assert torch.equal(order[k_center(view_of(x[order], labelled), k, seeded(1))], plain)


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_no_block_of_distances_is_larger_than_a_chunk(strategy, monkeypatch):
    largest = [0]

    def spy(*args):
        found = sq_distances(*args)
        largest[0] = max(largest[0], found.numel())
        return found

    monkeypatch.setattr("al_bench.strategies.CHUNK", 1000)
    monkeypatch.setattr("al_bench.strategies.diversity.sq_distances", spy)
    strategy(view_of(noise(203), noise(50, seed=1)), 20, seeded())
    assert 0 < largest[0] <= 1000


def test_what_they_ask_for():
    assert needs_of(k_center) == Needs(predictions=False, embeddings=True)
    assert needs_of(k_means).embeddings and not needs_of(k_means).predictions and not needs_of(k_means).features
    assert needs_of(typiclust).features and not needs_of(typiclust).embeddings
    imagenet = Size(P=1_280_000, L=1000, S=1, C=1000, D=768, F=768, k=1000)
    assert all(needs_of(s).memory(imagenet) < 1.28e6 * 768 * 4 / 4 for s in (k_means, typiclust))
