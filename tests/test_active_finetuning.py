"""ActiveFT and BiLAF: one batch for a pretrained net, by hand, by slow references and on planted groups."""

import math
from functools import partial
from statistics import mean

import pytest
import torch
from conftest import seeded
from test_diversity import clumps, noise, view_of

from al_bench.strategies import active_finetuning
from al_bench.strategies.active_finetuning import (
    active_ft,
    active_ft_loss,
    bilaf,
    boundary_picks,
    by_density,
    shares,
)

# --- active_ft


def test_the_loss_of_active_ft_is_the_papers_by_hand():
    x_PF = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    prototype_KF = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    near = (1 + 1 + 0.8) / 3 / 0.5  # each image to its nearest prototype
    apart = [math.log(math.exp(a / 0.5) + math.exp(b / 0.5)) for a, b in ((0, -1), (0, 0), (-1, 0))]
    assert float(active_ft_loss(x_PF, prototype_KF, 0.5)) == pytest.approx(sum(apart) / 3 - near, abs=1e-6)
    assert float(active_ft_loss(x_PF, prototype_KF[:1], 0.5)) == pytest.approx(-(1 + 0 + 0.6) / 3 / 0.5, abs=1e-6)


def active_ft_by_steps(x_PF, prototype_KF, temperature, steps, lr):
    """The gradient of the loss written out, and Adam by its formula, in float64."""
    theta, m, v = prototype_KF.double().clone(), 0.0, 0.0
    x_PF = x_PF.double()
    for step in range(1, steps + 1):
        pull = torch.zeros_like(theta)
        for x in x_PF:
            pull[(theta @ x).argmax()] -= x / len(x_PF) / temperature
        similar_KK = (theta @ theta.T / temperature).fill_diagonal_(-torch.inf).softmax(dim=1)
        pull += (similar_KK + similar_KK.T) @ theta / len(theta) / temperature
        pull -= (pull * theta).sum(1, keepdim=True) * theta  # theta has length 1 in the loss
        m, v = 0.9 * m + 0.1 * pull, 0.999 * v + 0.001 * pull**2
        theta -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        theta /= theta.norm(dim=1, keepdim=True)
    return theta


def test_active_ft_takes_the_images_nearest_to_the_prototypes_of_a_slow_reference():
    x_PF = torch.nn.functional.normalize(noise(40, 5))
    found = active_ft(view_of(x_PF), 4, seeded(3), steps=60, lr=0.05)
    stream = seeded(3)
    part = torch.randperm(40, generator=stream)
    begin_K = part[torch.randperm(40, generator=stream)[:4]]
    theta = active_ft_by_steps(x_PF, x_PF[begin_K], 0.07, 60, 0.05)
    free, expected = set(range(40)), []
    for prototype in theta:
        best = max(free, key=lambda i: float(x_PF[i].double() @ prototype))
        free.remove(best)
        expected.append(best)
    assert found.tolist() == expected != begin_K.tolist()


def test_active_ft_leaves_no_planted_group_out_where_random_images_do():
    x_PF, of = clumps([100, 30, 12, 8], spread=0.3)
    begun, chosen = [], []
    for seed in range(10):
        stream = seeded(seed)
        part = torch.randperm(len(x_PF), generator=stream)
        begun.append(len(of[part[torch.randperm(len(x_PF), generator=stream)[:8]]].unique()))
        chosen.append(len(of[active_ft(view_of(x_PF), 8, seeded(seed), lr=0.02)].unique()))
    assert sum(chosen) > sum(begun) and min(chosen) >= 3


def test_active_ft_refuses_a_temperature_of_zero_and_takes_a_single_image():
    x_PF = torch.nn.functional.normalize(noise(10))
    with pytest.raises(ValueError, match="temperature is 0 and has to be above 0"):
        active_ft(view_of(x_PF), 2, seeded(), temperature=0)
    assert len(active_ft(view_of(x_PF), 1, seeded(), steps=5)) == 1
    assert sorted(active_ft(view_of(x_PF), 10, seeded(), steps=5).tolist()) == list(range(10))


# --- bilaf


def on_a_line(*places):
    return torch.tensor(places)[:, None]


def test_a_cluster_grows_from_its_core_by_the_mean_distance_to_the_two_nearest():
    x_PF = on_a_line(0.0, 1.0, 2.0, 3.0, 7.0, 4.5, -1.9)
    # From 0 it reaches 1, then 2 at (1 + 2) / 2 before -1.9 at (1.9 + 2.9) / 2, then 3, then -1.9 before 4.5, then 7.
    assert by_density(x_PF, torch.arange(7), 0, near=2, step=0.1).tolist() == [0, 1, 2, 3, 5, 6, 4]


def test_two_are_taken_in_a_turn_where_the_step_says_so():
    x_PF = on_a_line(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert by_density(x_PF, torch.tensor([6, 5, 4, 3, 0]), 3, near=1, step=0.4).tolist() == [3, 4, 5, 6, 0]


def test_boundary_picks_by_hand():
    x_PF = on_a_line(0.0, 2.0, 1.6, -1.0, -2.0, 5.0, -8.0)
    members_M, others_K = torch.arange(5), torch.tensor([5, 6])
    # Mean distances to the five: 1.32, 1.88, 1.64, 1.52, 2.12. Distances to the nearest other core: 5, 3, 3.4, 6, 6.
    # Scores: 0.37 at 2, 0.52 at 1.6, 0.65 at -2, 0.75 at -1. Each pick leaves out itself: 5 // 5 = 1.
    assert boundary_picks(x_PF, members_M, others_K, 5, 1.0, seeded()).tolist() == [0, 1, 2, 4, 3]
    # After 2 the distances to the core at 5 count 1.5 times: 1.6 has (5.1 - 1.64) / 3.4 = 1.02, more than -2.
    assert boundary_picks(x_PF, members_M, others_K, 5, 1.5, seeded()).tolist() == [0, 1, 4, 2, 3]
    # With the core at 1.9 and 5 // 2 = 2, the one at 2 is left out. Then -2 has (6 - 2.5) / 6 = 0.583, and 1.6 0.594.
    x_PF[0] = 1.9
    assert boundary_picks(x_PF, members_M, others_K, 2, 1.0, seeded()).tolist() == [0, 4]


def grown_by_loops(x, members, core, near, step):
    order, left = [core], [i for i in members if i != core]
    while left:
        far = {i: mean(sorted(math.dist(x[i].tolist(), x[j].tolist()) for j in order)[:near]) for i in left}
        new = sorted(left, key=far.get)[: max(1, int(step * len(members)))]
        order, left = order + new, [i for i in left if i not in new]
    return order


@pytest.mark.parametrize("near", [1, 2, 5])
def test_a_cluster_grows_as_loops_over_single_distances_grow_it(near):
    x_PF, members = noise(60), list(range(5, 55))
    found = by_density(x_PF, torch.tensor(members), 9, near, step=0.04)
    assert found.tolist() == grown_by_loops(x_PF.double(), members, 9, near, 0.04)


def bilaf_by_loops(x, core, k, near=10, step=0.1, removed=0.1, penalty=1.1):
    """The same by single distances in float64, without ties."""

    def d(i, j):
        return math.dist(x[i].tolist(), x[j].tolist())

    parts = {c: [i for i in range(len(x)) if min(core, key=lambda j: d(i, j)) == c] for c in core}
    for c, members in parts.items():
        order = grown_by_loops(x, members, c, near, step)
        parts[c] = order[: len(order) - int(removed * len(order))]
    quota = dict.fromkeys(core, 1)
    while sum(quota.values()) < k:
        open_to = [c for c in core if quota[c] < len(parts[c])]
        quota[max(open_to, key=lambda c: len(parts[c]) / (quota[c] + 1))] += 1
    picks = []
    for c, members in parts.items():
        inner = {i: mean(d(i, j) for j in members) for i in members}
        rival = {i: min((j for j in core if j != c), key=lambda j: d(i, j)) for i in members}
        times, free, chosen = dict.fromkeys(core, 1.0), set(members), [c]
        while len(chosen) < quota[c]:
            last = chosen[-1]
            free -= set(sorted(free, key=lambda i: d(i, last))[: len(members) // quota[c]])
            times[rival[last]] *= penalty if last != c else 1

            outer = {i: d(i, rival[i]) for i in free}
            score = {i: (outer[i] * times[rival[i]] - inner[i]) / max(outer[i], inner[i]) for i in free}
            chosen.append(min(free, key=score.get))
        picks += chosen
    return picks


@pytest.mark.parametrize("k, options", [(24, {}), (40, {"penalty": 1.5, "near": 3}), (110, {}), (6, {"removed": 0.3})])
def test_bilaf_chooses_what_loops_over_single_distances_choose(monkeypatch, k, options):
    monkeypatch.setattr("al_bench.strategies.CHUNK", 700)  # numbers, so that all is computed in parts
    x_PF = torch.nn.functional.normalize(clumps([40, 40, 30, 10], spread=1.2)[0])
    core_K = torch.tensor([3, 77, 50, 110, 21])
    monkeypatch.setattr(active_finetuning, "active_ft", lambda view, n, rng: core_K[:n])
    found = bilaf(view_of(x_PF), k, seeded(), core=5, **options)
    assert found.tolist() == bilaf_by_loops(
        x_PF.double(), core_K.tolist(), k, **({"removed": 0.0} if k > 108 else options)
    )


def test_the_shares_of_the_parts_follow_their_sizes_and_stay_within_them():
    assert shares(10, [50, 30, 20]) == [5, 3, 2]
    assert shares(10, [50, 2, 1]) == [8, 1, 1]
    assert shares(8, [5, 2, 1]) == [5, 2, 1]
    assert shares(3, [9, 1, 1]) == [1, 1, 1]


def planted(seed):
    """Four groups around the first four axes that overlap, of unit length."""
    stream = seeded(seed)
    group_P = torch.randint(4, (400,), generator=stream)
    return torch.nn.functional.normalize(torch.eye(4, 8)[group_P] + 0.35 * torch.randn(400, 8, generator=stream))


def test_boundary_images_lie_between_planted_groups_more_than_those_of_active_ft_do():
    """What the paper's second step is for: the similarities to the two nearest groups differ less."""

    def random_images(view, k, rng):
        return torch.randperm(view.n_pool, generator=rng)[:k]

    gaps = {}
    for strategy in (partial(bilaf, core=4), active_ft, random_images):
        gaps[strategy] = []
        for seed in range(10):
            similarity_P2 = planted(seed)[:, :4].topk(2, dim=1).values
            at = strategy(view_of(planted(seed)), 40, seeded(seed))
            gaps[strategy].append(float((similarity_P2[at, 0] - similarity_P2[at, 1]).mean()))
    of_bilaf, of_active_ft, of_chance = gaps.values()
    assert mean(of_bilaf) < 0.9 * mean(of_active_ft) < 0.9 * mean(of_chance)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_and_copies(n):
    x_PF = torch.nn.functional.normalize(torch.ones(20, 3))
    x_PF[10:] = torch.nn.functional.normalize(noise(10, 3))
    for k in (n, 12, 20):
        found = bilaf(view_of(x_PF), k, seeded())
        assert len(set(found.tolist())) == k


@pytest.mark.parametrize(
    "options", [{"core": 0}, {"core": 7}, {"step": 0}, {"removed": 1.0}, {"near": 0}, {"penalty": 0.9}]
)
def test_bilaf_refuses_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="has to be|have to be"):
        bilaf(view_of(noise(10)), 6, seeded(), **options)
