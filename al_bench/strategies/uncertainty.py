"""Uncertainty sampling: label the images whose predicted class is least certain.

P pool images, S stochastic passes or committee members (1 if neither), C classes.
Scores: (log_probs_PSC) -> score_P in float64, higher means "label me first". With two classes least confidence, margin
and entropy rank alike, for each is a falling function of the larger probability; they are written so that rounding
keeps it so, for nearly even and for very certain rows.
"""

from math import log

import torch
from torch import Tensor

from al_bench.strategies import PoolView, by_chunks, top_k


def mean_log_probs(log_probs_PSC: Tensor) -> Tensor:
    """Log of the average prediction over passes, averaged as probabilities, not as logits.

    In float64, and normalised there: float32 cannot tell the entropies of nearly even predictions apart, for they
    differ by the square of the margin.
    """
    return (log_probs_PSC.double().logsumexp(dim=1) - log(log_probs_PSC.shape[1])).log_softmax(dim=-1)


def unlikely_probs(log_probs_PSC: Tensor) -> Tensor:
    """The mean probabilities [P, C], 0 in place of the largest. They add up to 1 - max p, and tell 1 - 1e-20 from 1."""
    log_probs_PC = mean_log_probs(log_probs_PSC)
    return log_probs_PC.exp().scatter(-1, log_probs_PC.argmax(dim=-1, keepdim=True), 0)


def least_confidence_score(log_probs_PSC: Tensor) -> Tensor:
    """1 - max p (Lewis & Gale, 1994)."""
    return unlikely_probs(log_probs_PSC).sum(dim=-1)


def margin_score(log_probs_PSC: Tensor) -> Tensor:
    """1 minus the gap between the two likeliest classes (Scheffer et al., 2001): 1 - (p1 - p2) = (1 - p1) + p2."""
    unlikely_PC = unlikely_probs(log_probs_PSC)
    return unlikely_PC.sum(dim=-1) + unlikely_PC.max(dim=-1).values


def entropy_score(log_probs_PSC: Tensor) -> Tensor:
    """Shannon entropy in nats (Shannon, 1948). 0 log 0 is exactly 0, so a certain net scores 0, not NaN."""
    probs_PC = mean_log_probs(log_probs_PSC).exp()
    return -torch.xlogy(probs_PC, probs_PC).sum(dim=-1)


def least_confidence(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(least_confidence_score, view.log_probs_PSC), k, rng)


def margin(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(margin_score, view.log_probs_PSC), k, rng)


def entropy(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(entropy_score, view.log_probs_PSC), k, rng)
