"""Scores over several passes or members; scores over one pass are tested in test_strategies.py."""

from dataclasses import replace
from functools import partial
from inspect import signature
from math import log
from pathlib import Path
from statistics import pstdev

import numpy as np
import pytest
import torch
from conftest import random_log_probs, seeded, view_of
from hydra.utils import get_method
from omegaconf import OmegaConf
from scipy.stats import chisquare
from skactiveml.pool._query_by_committee import variation_ratios as skactiveml_variation_ratios
from skactiveml.pool._query_by_committee import vote_entropy as skactiveml_vote_entropy

from al_bench.strategies import Needs, Strategy, needs_of
from al_bench.strategies.bayesian import bald, stochastic_batch
from al_bench.strategies.gradient import badge, expected_gradient_length
from al_bench.strategies.guard import select
from al_bench.strategies.hybrid import cal
from al_bench.strategies.uncertainty import (
    average_prediction,
    entropy,
    entropy_score,
    least_confidence,
    least_confidence_score,
    log_mean_probs,
    margin,
    margin_score,
    mean_std,
    mean_std_score,
    variation_ratios,
    variation_ratios_score,
    vote_entropy,
    vote_entropy_score,
)

UNCERTAINTY = {"least_confidence": least_confidence, "margin": margin, "entropy": entropy}
COMMITTEE = {"variation_ratios": variation_ratios, "vote_entropy": vote_entropy, "mean_std": mean_std}
SCORES = {"variation_ratios": variation_ratios_score, "vote_entropy": vote_entropy_score, "mean_std": mean_std_score}
YAMLS = {
    "variation_ratios": (variation_ratios, {"passes": 20}),
    "mean_std": (mean_std, {"passes": 20}),
    "vote_entropy": (vote_entropy, {"members": 5}),
    "mc_least_confidence": (least_confidence, {"passes": 20}),
    "mc_margin": (margin, {"passes": 20}),
    "mc_entropy": (entropy, {"passes": 20}),
    "ensemble_margin": (margin, {"members": 5}),
    "ensemble_entropy": (entropy, {"members": 5}),
}


def votes_for(*classes, c=3):
    """One-hot passes, so probabilities of exactly 0."""
    return torch.eye(c, dtype=torch.float64)[list(classes)].log()


UNANIMOUS, SPLIT, ALL_DIFFER = votes_for(1, 1, 1, 1), votes_for(0, 2, 0, 1), votes_for(0, 1, 2, 0)
UNSURE = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.5, 0.3, 0.2], [0.1, 0.5, 0.4]], dtype=torch.float64).log()
EVEN = torch.full((4, 3), 1 / 3, dtype=torch.float64).log()


@pytest.mark.parametrize(
    "score, expected",
    [
        (variation_ratios_score, [0, 0.5, 0.5, 0.5, 2 / 3]),
        (vote_entropy_score, [0, 1.5 * log(2), 1.5 * log(2), log(2), log(3)]),
        (mean_std_score, [0, 0.4553418, 0.4553418, (0.2 + 0.1 + 0.1) / 3, 0]),
        # Scores that average the passes average probabilities. Averaged logits would be undefined for SPLIT.
        (least_confidence_score, [0, 0.5, 0.5, 0.6, 2 / 3]),
        (margin_score, [0, 0.75, 0.75, 0.9, 1]),
        (entropy_score, [0, 1.5 * log(2), 1.5 * log(2), 1.0888999, log(3)]),
    ],
)
def test_scores_match_values_computed_by_hand(score, expected):
    log_probs = torch.stack([UNANIMOUS, SPLIT, ALL_DIFFER, UNSURE, EVEN])
    assert score(log_probs).tolist() == pytest.approx(expected, abs=1e-6)
    assert score(log_probs).dtype == torch.float64


def slow_scores(log_probs_PSC):
    found = {name: [] for name in SCORES}
    for passes_SC in log_probs_PSC.double().exp().tolist():
        s, c = len(passes_SC), len(passes_SC[0])
        votes = [0.0] * c
        for pass_C in passes_SC:
            winners = [i for i in range(c) if pass_C[i] == max(pass_C)]
            for i in winners:
                votes[i] += 1 / len(winners)
        found["variation_ratios"].append(1 - max(votes) / s)
        found["vote_entropy"].append(-sum(v / s * log(v / s) for v in votes if v))
        normal = [[p / sum(pass_C) for p in pass_C] for pass_C in passes_SC]
        found["mean_std"].append(sum(pstdev(column) for column in zip(*normal, strict=True)) / c)
    return found


@pytest.mark.parametrize("s, c, dtype", [(2, 2, torch.float64), (5, 10, torch.float32), (20, 4, torch.float16)])
@pytest.mark.parametrize("chunk", [64, 2**22])
def test_scores_and_choices_agree_with_a_slow_reference(s, c, dtype, chunk, monkeypatch):
    monkeypatch.setattr("al_bench.strategies.CHUNK", chunk)
    log_probs = random_log_probs(150, s, c).to(dtype)
    log_probs[5], log_probs[6] = log(1 / c), torch.eye(c)[0].log()
    for name, slow in slow_scores(log_probs).items():
        torch.testing.assert_close(SCORES[name](log_probs), torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-9)
        chosen = COMMITTEE[name](view_of(log_probs), 20, seeded())
        assert [slow[i] for i in chosen] == pytest.approx(sorted(slow, reverse=True)[:20], abs=1e-9)


def test_votes_score_as_in_scikit_activeml():
    log_probs = random_log_probs(200, 7, 4)
    votes = log_probs.argmax(-1).numpy()
    np.testing.assert_allclose(vote_entropy_score(log_probs), skactiveml_vote_entropy(votes, np.arange(4)), atol=1e-12)
    np.testing.assert_allclose(variation_ratios_score(log_probs), skactiveml_variation_ratios(votes), atol=1e-12)


@pytest.mark.parametrize("name", COMMITTEE)
def test_passes_that_agree_score_exactly_0(name):
    one_pass = random_log_probs(200, 1, 7).half()
    even = torch.full((1, 1, 7), log(1 / 7))
    alike = torch.cat([one_pass, even]).expand(-1, 20, -1)
    score_P = SCORES[name](alike)
    assert (score_P[:-1] == 0).all()
    if name == "mean_std":
        assert score_P[-1] == 0


@pytest.mark.parametrize("name", COMMITTEE)
def test_equal_splits_of_votes_tie_whichever_the_classes_and_ties_are_drawn(name):
    generator = seeded(3)
    seven = torch.eye(5)[[0] * 8 + [1] * 5 + [2] * 4 + [3] * 2 + [4]].log()
    pool = torch.stack([seven[torch.randperm(20, generator=generator)][:, torch.randperm(5, generator=generator)]
                        for _ in range(40)])  # fmt: skip
    if name != "mean_std":  # its sums over classes have another order
        assert len(SCORES[name](pool).unique()) == 1
    else:
        pool = seven.expand(40, 20, 5)
    counts = sum(COMMITTEE[name](view_of(pool), 4, seeded(i)).bincount(minlength=40) for i in range(200))
    assert chisquare(counts).pvalue > 1e-3


AVERAGING = {
    **UNCERTAINTY,
    **COMMITTEE,
    "bald": bald,
    "softrank": partial(
        stochastic_batch, score="al_bench.strategies.uncertainty.margin_score", how="softrank", beta=99.0
    ),
    "egl": lambda view, k, rng: expected_gradient_length(with_embeddings(view), k, rng),
    "cal": lambda view, k, rng: cal(with_embeddings(view), k, rng),
    "badge": lambda view, k, rng: badge(with_embeddings(view), k, rng),
}


def with_embeddings(view):
    """A view with the same embedding for all images, and one labelled image."""
    emb = torch.ones(view.n_pool, 2)
    certain = torch.tensor([[0.9] + [0.1 / (view.n_classes - 1)] * (view.n_classes - 1)]).log()
    return replace(
        view, emb_PD=emb, labelled_emb_LD=emb[:1], labelled_labels_L=torch.tensor([0]), labelled_log_probs_LC=certain
    )


def pool_of(passes, n=24):
    """The same passes in many orders. Their mean is the same, but its last digit in float64 depends on the order."""
    return torch.stack([passes[torch.randperm(len(passes), generator=seeded(i))] for i in range(n)])


TIES = {
    "0.45": torch.tensor([[p, 1 - p] for p in (0.2, 0.5, 0.8, 0.3)], dtype=torch.float64).log(),
    "0.45, float32": torch.tensor([[p, 1 - p] for p in (0.2, 0.5, 0.8, 0.3)]).log(),
    "two classes, certain": torch.tensor([[p, 1 - p] for p in (3e-9, 7e-11, 2e-9, 5e-10, 1e-9)]).double().log(),
    "three classes": (2 * torch.randn(7, 3, generator=seeded(1))).log_softmax(-1),
    "ten classes, float16": torch.randn(20, 10, generator=seeded(2)).log_softmax(-1).half(),
    "passes that are undecided": torch.tensor(
        [[1 / 3] * 3, [0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [1 / 3] * 3]
    ).log(),
}


@pytest.mark.parametrize("passes", TIES.values(), ids=TIES)
@pytest.mark.parametrize("name", AVERAGING)
def test_the_order_of_the_passes_decides_no_tie(name, passes):
    view = view_of(pool_of(passes))
    firsts = torch.cat([AVERAGING[name](view, 1, seeded(i)) for i in range(120)])
    assert chisquare(firsts.bincount(minlength=24)).pvalue > 1e-3


@pytest.mark.parametrize("name", UNCERTAINTY)
def test_means_that_are_equal_are_a_tie_whatever_they_are_the_means_of(name):
    """0.45 by four passes in two ways, and once by four passes that agree."""
    p = torch.tensor([[0.2, 0.5, 0.8, 0.3], [0.1, 0.6, 0.4, 0.7], [0.45] * 4], dtype=torch.float64)
    view = view_of(torch.stack([p, 1 - p], 2).log())
    firsts = torch.cat([UNCERTAINTY[name](view, 1, seeded(i)) for i in range(300)])
    assert chisquare(firsts.bincount(minlength=3)).pvalue > 1e-3


@pytest.mark.parametrize("name", UNCERTAINTY)
def test_very_certain_means_are_still_told_apart(name):
    """1 - 1e-20 is less certain than 1 - 0.99e-20, and 1 - 1e-300 than 1 - 1e-301."""
    q = torch.tensor([1e-20, 0.99e-20, 1e-300, 1e-301, 3e-9, 2.9999e-9], dtype=torch.float64)[:, None].expand(6, 4)
    log_probs = torch.stack([q.log(), torch.log1p(-q)], 2)
    assert UNCERTAINTY[name](view_of(log_probs), 6, seeded()).tolist() == [4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize("strategy", COMMITTEE.values(), ids=COMMITTEE)
@pytest.mark.parametrize("k", [1, 30])
def test_k_of_1_or_all_and_the_seed_decides(strategy, k):
    log_probs = random_log_probs(30, 3, 4)
    before, state = log_probs.clone(), torch.get_rng_state()
    picks = [select(Strategy(strategy, "s"), view_of(log_probs), k, seeded(5), 0) for _ in range(2)]
    assert torch.equal(*picks) and len(picks[0].unique()) == k
    assert torch.equal(log_probs, before) and torch.equal(torch.get_rng_state(), state)


def test_mean_std_shuffles_with_the_pool():
    log_probs, order = random_log_probs(300, 5, 5), torch.randperm(300, generator=seeded(4))
    shuffled = mean_std(view_of(log_probs[order]), 30, seeded(1))
    assert torch.equal(order[shuffled], mean_std(view_of(log_probs), 30, seeded()))


def test_committee_strategies_ask_for_several_passes():
    assert all(needs_of(s) == Needs(passes=True) for s in COMMITTEE.values())


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_names_a_function_and_its_options(name):
    strategy, loops = YAMLS[name]
    yaml = dict(OmegaConf.load(Path(__file__).parents[1] / f"conf/strategy/{name}.yaml"))
    assert yaml.pop("name") == name and get_method(yaml.pop("_target_")) is strategy
    assert yaml == loops
    assert list(signature(strategy).parameters) == ["view", "k", "rng"]


def test_the_average_prediction_is_exact_and_the_mean_for_scores_is_rounded():
    """(0.1 + 0.2) / 2 = 0.15. Metrics take the exact mean; scores take 25 binary digits of it."""
    log_probs_1SC = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]], dtype=torch.float64).log()
    exact = average_prediction(log_probs_1SC).exp()
    assert exact[0].tolist() == pytest.approx([0.15, 0.85], rel=1e-15)
    for_scores = log_mean_probs(log_probs_1SC).exp()[0, 0].item()
    assert for_scores == pytest.approx(round(0.15 * 2**27) / 2**27, rel=1e-15) and for_scores != exact[0, 0].item()
