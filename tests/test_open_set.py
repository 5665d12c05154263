import numpy as np
import pytest
import torch
from conftest import lines_of, run_here, seeded
from scipy.optimize import minimize
from scipy.stats import norm

from al_bench.strategies import PoolView
from al_bench.strategies.open_set import known_margin, known_probability, lfosa, upper_share
from al_bench.strategies.uncertainty import margin


def view_of(x_PD, labelled_LD, labels_L, foreign_OD, log_probs_PC=None):
    if log_probs_PC is None:
        log_probs_PC = torch.full((len(x_PD), 2), 0.5).log()
    return PoolView(
        len(x_PD), log_probs_PC.shape[1], log_probs_PC[:, None], x_PD, labelled_LD, torch.tensor(labels_L),
        foreign_emb_OD=foreign_OD,
    )  # fmt: skip


def column(*values):
    return torch.tensor(values)[:, None]


def test_known_margin_ranks_the_images_left_of_the_border_by_margin_and_the_others_by_how_near_they_are():
    x_PD = column(-2.0, -1.5, -0.5, 0.5, 3.0, 1.0)
    p = torch.tensor([0.9, 0.6, 0.7, 0.51, 0.5, 0.5])  # the smaller, the smaller the margin
    log_probs_PC = torch.stack([p, 1 - p], 1).log()
    view = view_of(x_PD, column(-2.0, -1.0), [0, 1], column(1.0, 2.0), log_probs_PC)
    assert known_margin(view, 6, seeded()).tolist() == [1, 2, 0, 3, 5, 4]  # the border lies at 0


def test_how_likely_an_image_is_known_is_the_optimum_of_the_penalised_loss():
    stream = seeded(1)
    known_LD, foreign_OD = torch.randn(9, 3, generator=stream), 1 + torch.randn(5, 3, generator=stream)
    x_PD = torch.randn(7, 3, generator=stream)
    x = torch.cat([known_LD, foreign_OD]).double()
    mean, std = x.mean(0), x.std(0, correction=0)
    x, sign = ((x - mean) / std).numpy(), np.array([1] * 9 + [-1] * 5)

    def loss(w):
        return np.logaddexp(0, -sign * (x @ w[:3] + w[3])).sum() + (w[:3] ** 2).sum() / 2

    w = minimize(loss, np.zeros(4), tol=1e-12).x
    expected = 1 / (1 + np.exp(-(((x_PD - mean) / std).numpy() @ w[:3] + w[3])))
    found = known_probability(view_of(x_PD, known_LD, [0] * 9, foreign_OD))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("strategy", [known_margin, lfosa])
def test_while_nothing_foreign_was_acquired_all_images_count_as_known(strategy):
    x_PD = torch.randn(30, 2, generator=seeded())
    log_probs_PC = torch.randn(30, 3, generator=seeded(1)).log_softmax(1)
    view = view_of(x_PD, x_PD[:4], [0, 1, 2, 0], x_PD[:0], log_probs_PC)
    chosen = strategy(view, 5, seeded(2)).tolist()
    if strategy is known_margin:
        assert chosen == margin(view, 5, seeded(2)).tolist()
    else:
        top_P, class_P = log_probs_PC.double().max(1)
        share_P = torch.zeros(30).double()
        for c in range(3):
            share_P[class_P == c] = upper_share(top_P[class_P == c])
        assert share_P[chosen].tolist() == pytest.approx(share_P.sort(descending=True).values[:5].tolist(), abs=1e-4)


def test_the_upper_gaussian_is_that_of_expectation_maximisation():
    values = torch.cat([torch.randn(40, generator=seeded()), 4 + 0.5 * torch.randn(25, generator=seeded(1))]).double()
    x, low, high = values.numpy(), float(values.min()), float(values.max())
    weight, mean, sd = np.array([0.5, 0.5]), np.array([low, high]), np.full(2, (high - low) / 2)
    for _ in range(200):
        share = weight * norm.pdf(x[:, None], mean, sd)
        share /= share.sum(1, keepdims=True)
        n = share.sum(0)
        weight, mean = n / len(x), (share * x[:, None]).sum(0) / n
        sd = np.sqrt((share * (x[:, None] - mean) ** 2).sum(0) / n + 1e-6)
    np.testing.assert_allclose(upper_share(values).numpy(), share[:, 1], atol=1e-3)
    assert upper_share(torch.ones(3)).tolist() == [1, 1, 1]


def test_where_foreign_images_lie_between_the_classes_margin_takes_them_and_the_others_do_not():
    def group(at, n, seed):
        return torch.tensor(at) + 0.2 * torch.randn(n, 2, generator=seeded(seed))

    groups = group([-2.0, 0.0], 40, 1), group([2.0, 0.0], 40, 2), group([0.0, 2.0], 40, 3)  # the last one is foreign
    x_PD = torch.cat(groups)
    labelled_LD = torch.cat([group([-2.0, 0.0], 4, 4), group([2.0, 0.0], 4, 5)])
    log_probs_PC = torch.stack([-x_PD[:, 0], x_PD[:, 0]], 1).log_softmax(1)
    view = view_of(x_PD, labelled_LD, [0] * 4 + [1] * 4, group([0.0, 2.0], 4, 6), log_probs_PC)
    taken = {f.__name__: int((f(view, 10, seeded()) >= 80).sum()) for f in (margin, known_margin, lfosa)}
    assert taken == {"margin": 10, "known_margin": 0, "lfosa": 0}


@pytest.mark.parametrize("name", ["known_margin", "lfosa"])
def test_a_run_with_foreign_images_shows_them_to_the_strategy(tmp_path, name, monkeypatch):
    seen, function = [], {"known_margin": known_margin, "lfosa": lfosa}[name]

    def spied(view, k, rng, **options):
        seen.append(len(view.foreign_emb_OD))
        return function(view, k, rng, **options)

    spied.needs = function.needs
    monkeypatch.setattr(f"al_bench.strategies.open_set.{name}", spied)
    monkeypatch.setattr("al_bench.observe.try_options", lambda *_: None)
    store = run_here(tmp_path, f"strategy={name}", "stressor=foreign", "stressor.foreign=5", "budget.rounds=2")
    n_foreign = [line["n_foreign"] for line in lines_of(store.folder)]
    assert seen == n_foreign[:2] and n_foreign[0] > 0
