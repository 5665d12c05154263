"""Uncertainty sampling: label the images whose predicted class is least certain.

P pool images, S stochastic passes (1 if the net is deterministic), C classes.
Scores: higher means "label me first". With two classes the three rank alike, for each is a falling function of
the larger probability; they are written so that rounding keeps it so, for nearly even and for very certain rows.
"""

from math import log

import torch
from torch import Tensor

from al_bench.strategies import PoolView, top_k


def mean_log_probs(log_probs_PSC: Tensor) -> Tensor:
    """Log of the average prediction over passes, averaged as probabilities, not as logits.

    In float64, and normalised there: float32 cannot tell the entropies of nearly even predictions apart, for they
    differ by the square of the margin.
    """
    return (log_probs_PSC.double().logsumexp(dim=1) - log(log_probs_PSC.shape[1])).log_softmax(dim=-1)


def unlikely_probs(log_probs_PC: Tensor) -> Tensor:
    """The probabilities with 0 in place of the largest. They add up to 1 - max p, and tell 1 - 1e-20 from 1."""
    probs_PC = log_probs_PC.exp()
    return probs_PC.scatter(-1, log_probs_PC.argmax(dim=-1, keepdim=True), 0)


def least_confidence_score(log_probs_PC: Tensor) -> Tensor:
    """1 - max p (Lewis & Gale, 1994)."""
    return unlikely_probs(log_probs_PC).sum(dim=-1)


def margin_score(log_probs_PC: Tensor) -> Tensor:
    """1 minus the gap between the two likeliest classes (Scheffer et al., 2001): 1 - (p1 - p2) = (1 - p1) + p2."""
    unlikely_PC = unlikely_probs(log_probs_PC)
    return unlikely_PC.sum(dim=-1) + unlikely_PC.max(dim=-1).values


def entropy_score(log_probs_PC: Tensor) -> Tensor:
    """Shannon entropy in nats (Shannon, 1948). 0 log 0 is exactly 0, so a certain net scores 0, not NaN."""
    probs_PC = log_probs_PC.exp()
    return -torch.xlogy(probs_PC, probs_PC).sum(dim=-1)


def least_confidence(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(least_confidence_score(mean_log_probs(view.log_probs_PSC)), k, rng)


def margin(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(margin_score(mean_log_probs(view.log_probs_PSC)), k, rng)


def entropy(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(entropy_score(mean_log_probs(view.log_probs_PSC)), k, rng)
