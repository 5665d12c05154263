from dataclasses import replace

import pytest
import torch

from al_bench.config import BudgetConfig, DatasetConfig, InitialDraw
from al_bench.data import pool
from al_bench.data.oracle import Oracle
from al_bench.data.sources import Source, split
from al_bench.errors import UserError

ARTICLE = BudgetConfig(initial=5000, query=200, rounds=29, validation=2475)


def started(labels, budget, seed=0):
    source = Source(labels, ("cat", "dog"), (3, 8, 8), None, read=None)
    train_idx, test_idx = split(DatasetConfig(test_fraction=0.1), source, torch.arange(len(labels)), seed)
    oracle = Oracle(labels, train_idx)
    return test_idx, pool.start(train_idx, oracle, budget, seed), oracle


def counts_of_balanced_draw(class_sizes, k, seed=0):
    labels = torch.arange(len(class_sizes)).repeat_interleave(torch.tensor(class_sizes))
    budget = BudgetConfig(initial=k, query=1, rounds=0, validation=0, start=InitialDraw.balanced)
    drawn = pool.start(torch.arange(len(labels)), Oracle(labels, torch.arange(len(labels))), budget, seed)
    assert torch.equal(drawn.labels_L, labels[drawn.labelled_L]) and len(drawn.labelled_L.unique()) == k
    return drawn.labels_L.bincount(minlength=len(class_sizes)).tolist()


def test_the_articles_split_of_cats_and_dogs():
    labels = torch.arange(25_000) % 2
    test_idx, start, oracle = started(labels, ARTICLE)
    parts = [test_idx, start.validation_V, start.labelled_L, start.unlabelled_P]
    assert [len(part) for part in parts] == [2500, 2475, 5000, 15_025]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(25_000))  # disjoint and complete
    assert torch.equal(start.labels_L, labels[start.labelled_L])
    assert torch.equal(start.validation_labels_V, labels[start.validation_V])
    assert oracle.n_acquired == 5000 + 2475


def test_one_seed_gives_one_split_and_another_seed_another():
    labels, everything = torch.arange(1000) % 2, torch.arange(1000)
    budget = BudgetConfig(initial=100, query=10, rounds=1, validation=100)
    test, same_test, other_test = [started(labels, budget, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(test, same_test) and not torch.equal(test, other_test)
    one, same, other = [pool.start(everything, Oracle(labels, everything), budget, seed) for seed in (0, 0, 1)]
    for name in ("validation_V", "labelled_L", "unlabelled_P"):
        assert torch.equal(getattr(one, name), getattr(same, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


def test_the_full_budget_labels_everything_but_validation():
    budget = BudgetConfig(initial=None, query=1, rounds=0, validation=10)
    _, start, oracle = started(torch.arange(100) % 2, budget)
    assert len(start.labelled_L) == 80 and len(start.unlabelled_P) == 0 and oracle.n_acquired == 90
    balanced = replace(budget, start=InitialDraw.balanced)
    assert torch.equal(started(torch.arange(100) % 2, balanced)[1].labelled_L, start.labelled_L)  # nothing to choose


def test_a_balanced_draw_takes_as_many_of_each_class_as_it_can():
    assert counts_of_balanced_draw([50, 9, 20], 12) == [4, 4, 4]
    assert counts_of_balanced_draw([50, 2, 20], 12) == [5, 2, 5]  # the other classes make up for a small one
    assert counts_of_balanced_draw([3, 3, 3], 9) == [3, 3, 3]
    uneven = [counts_of_balanced_draw([50, 9, 20], 10, seed) for seed in range(20)]
    assert {tuple(sorted(counts)) for counts in uneven} == {(3, 3, 4)}
    assert {counts.index(4) for counts in uneven} == {0, 1, 2}  # the surplus falls to a random class


def test_the_oracle_sells_no_test_label_and_counts_each_purchase_once():
    oracle = Oracle(torch.tensor([0, 1, 1, 0]), train_idx=torch.tensor([0, 1, 2]))
    assert oracle.label(torch.tensor([2, 0])).tolist() == [1, 0] and oracle.n_acquired == 2
    assert oracle.label(torch.tensor([0, 1])).tolist() == [0, 1] and oracle.n_acquired == 3
    with pytest.raises(ValueError, match="not in the training split"):
        oracle.label(torch.tensor([1, 3]))
    assert oracle.n_acquired == 3


def test_acquired_images_leave_the_pool_in_the_order_of_acquisition():
    labels = torch.arange(20) % 2
    _, start, oracle = started(labels, BudgetConfig(initial=3, query=1, rounds=1, validation=0))
    acquired = start.to_indices(torch.tensor([5, 0]))
    after = start.acquire(acquired, oracle)
    assert acquired.tolist() == [start.unlabelled_P[5], start.unlabelled_P[0]]
    assert after.labelled_L.tolist() == [*start.labelled_L.tolist(), *acquired.tolist()]
    assert torch.equal(after.labels_L, labels[after.labelled_L]) and oracle.n_acquired == 5
    assert after.unlabelled_P.tolist() == [i for i in start.unlabelled_P.tolist() if i not in acquired]
    for wrong in (acquired, start.labelled_L[:1], after.unlabelled_P[[1, 1]]):  # acquired before, initial, twice
        with pytest.raises(UserError, match="not in the pool"):
            after.acquire(wrong, oracle)


@pytest.mark.parametrize(
    "budget, keys",
    [
        (dict(initial=11, query=1, rounds=0, validation=90), ["budget.validation=90", "budget.initial=11"]),
        (dict(initial=101, query=1, rounds=0, validation=0), ["budget.validation=0", "budget.initial=101"]),
        (dict(initial=None, query=1, rounds=0, validation=100), ["budget.validation=100"]),
        (dict(initial=10, query=61, rounds=None, validation=30), ["budget.query=61", "60 images"]),
        (dict(initial=11, query=20, rounds=3, validation=30), ["budget.rounds=3", "budget.query=20", "At most 2"]),
    ],
)
def test_a_budget_one_image_larger_than_the_data_names_the_keys(budget, keys):
    with pytest.raises(UserError) as refused:
        pool.check_budget(100, BudgetConfig(**budget))
    assert all(key in str(refused.value) for key in keys)
    pool.check_budget(101, BudgetConfig(**budget))
