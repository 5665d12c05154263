"""The walls around a strategy: what it may see and declare, and the lazy greedy search that half of them use."""

from types import SimpleNamespace

import pytest
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from al_bench import strategies
from al_bench.errors import UserError
from al_bench.strategies import PoolView, Strategy, by_chunks, guard, needs, top_k
from al_bench.strategies.greedy import lazy_greedy
from al_bench.strategies.guard import select


def anything(view, k, rng):
    return top_k(torch.zeros(view.n_pool), k, rng)


def view(p=6, c=3, d=4, labelled=2, **changed):
    given = {
        "log_probs_PSC": torch.zeros(p, 1, c).log_softmax(-1),
        "emb_PD": torch.ones(p, d),
        "labelled_emb_LD": torch.ones(labelled, d),
        "labelled_labels_L": torch.zeros(labelled, dtype=torch.int64),
    }
    return PoolView(p, c, **given | changed)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"emb_PD": torch.ones(5, 4)}, r"emb_PD has the shape \[5, 4\] instead of \[6, D\]"),
        ({"labelled_emb_LD": torch.ones(2, 3)}, r"labelled_emb_LD has the shape \[2, 3\] instead of \[2, 4\]"),
        ({"log_probs_PSC": torch.zeros(6, 3)}, r"log_probs_PSC has the shape \[6, 3\]"),
        ({"log_probs_PSC": torch.zeros(6, 1, 4)}, r"log_probs_PSC has the shape \[6, 1, 4\] instead of \[6, 1, 3\]"),
        ({"emb_PD": torch.full((6, 4), torch.nan)}, "emb_PD holds NaN"),
        ({"emb_PD": torch.full((6, 4), -torch.inf)}, "emb_PD holds NaN or infinite"),
        ({"log_probs_PSC": torch.full((6, 1, 3), torch.nan)}, "log_probs_PSC holds NaN"),
        ({"log_probs_PSC": torch.full((6, 1, 3), torch.inf)}, "log_probs_PSC holds NaN or infinite"),
    ],
)
def test_numbers_that_do_not_fit_or_are_none_are_refused_with_strategy_round_and_cause(changed, message):
    with pytest.raises(UserError, match=f"strategy any, round 7: .*{message}"):
        select(Strategy(anything, "any"), view(**changed), 2, seeded(), 7)
    assert len(select(Strategy(anything, "any"), view(), 2, seeded(), 7)) == 2


def test_one_bad_number_among_many_is_found():
    for field, shape in (("emb_PD", (6, 4)), ("log_probs_PSC", (6, 1, 3))):
        for bad in (torch.nan, torch.inf):
            values = torch.zeros(shape)
            values.view(-1)[7] = bad
            with pytest.raises(UserError, match=field):
                select(Strategy(anything, "any"), view(**{field: values}), 2, seeded(), 0)


def test_a_probability_of_zero_is_no_fault():
    log_probs = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2])][:, None].log()
    assert len(select(Strategy(anything, "any"), view(log_probs_PSC=log_probs), 2, seeded(), 0)) == 2


def test_what_would_not_fit_in_memory_is_refused_with_a_number_of_candidates_that_would(monkeypatch):
    asked = []

    @needs(memory=lambda n: asked.append(n) or 1e6 * n.P**2 * n.C)
    def hungry(view, k, rng):
        return anything(view, k, rng)

    monkeypatch.setattr(guard.psutil, "virtual_memory", lambda: SimpleNamespace(available=30e6 * 3))
    with pytest.raises(
        UserError, match=r"strategy hungry, round 1: .*about 0\.1 GB.*6 images.*Set strategy.candidates=3"
    ):
        select(Strategy(hungry, "hungry"), view(), 2, seeded(), 1)
    first = asked[0]
    assert (first.P, first.L, first.S, first.C, first.D, first.F, first.k) == (6, 2, 1, 3, 4, 0, 2)
    monkeypatch.setattr(guard.psutil, "virtual_memory", lambda: SimpleNamespace(available=36e6 * 3))
    assert len(select(Strategy(hungry, "hungry"), view(), 2, seeded(), 1)) == 2
    monkeypatch.setattr(guard.psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    with pytest.raises(UserError, match="Lower budget.query"):
        select(Strategy(hungry, "hungry"), view(), 2, seeded(), 1)


def test_chunks_are_small_and_joined_in_order(monkeypatch):
    monkeypatch.setattr(strategies, "CHUNK", 12)
    sizes = []
    x, y = torch.arange(50.0).view(10, 5), torch.arange(10.0)
    out = by_chunks(lambda a, b: sizes.append(len(a)) or a.sum(1) + b, x, y)
    assert torch.equal(out, x.sum(1) + y) and sizes == [2] * 5
    sizes.clear()
    by_chunks(lambda a, b: sizes.append(len(a)) or b, x, y, width=100)  # at least one row
    assert sizes == [1] * 10


def naive_greedy(gains_of_all, p, k, order):
    picked = []
    for _ in range(k):
        gains = gains_of_all(picked)
        picked.append(
            max((i for i in order if i not in picked), key=lambda i: gains[i])
        )  # max keeps the first of equal ones
    return picked


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 80), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6), st.data())
def test_lazy_greedy_picks_what_greedy_picks(p, n, density, seed, data):
    """Weighted set cover with many ties: integer weights, and sets that are equal or empty."""
    k = data.draw(st.integers(1, p))
    covers_PN = torch.rand(p, n, generator=seeded(seed)) < density
    weight_N = torch.randint(0, 3, (n,), generator=seeded(seed + 1)).double()

    def gains(covered_N, rows):
        return (covers_PN[rows] & ~covered_N).double() @ weight_N

    def slow(picked):
        return gains(covers_PN[picked].any(0) if picked else torch.zeros(n, dtype=torch.bool), torch.arange(p)).tolist()

    covered_N = torch.zeros(n, dtype=torch.bool)
    lazy = lazy_greedy(
        lambda rows: gains(covered_N, rows),
        gains(covered_N, torch.arange(p)),
        k,
        lambda i: covered_N.logical_or_(covers_PN[i]),
        seeded(seed),
    )
    order = torch.randperm(p, generator=seeded(seed)).tolist()
    assert lazy.tolist() == naive_greedy(slow, p, k, order)


def test_lazy_greedy_looks_at_few_gains_again():
    x, looked = torch.rand(2000, generator=seeded()), []
    lazy_greedy(lambda rows: looked.append(len(rows)) or x[rows], x.clone(), 50, lambda i: None, seeded())
    assert sum(looked) < 50 * 100


def test_no_image_is_none_and_more_than_the_pool_is_refused():
    assert select(Strategy(anything, "any"), view(), 0, seeded(), 0).tolist() == []
    with pytest.raises(UserError, match="strategy any, round 3: 7 images are to be chosen, but the pool has only 6"):
        select(Strategy(anything, "any"), view(), 7, seeded(), 3)
