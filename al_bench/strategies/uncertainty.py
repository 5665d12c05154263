"""Uncertainty sampling: label the images whose predicted class is least certain, or on which the passes disagree.

P pool images, S stochastic passes or committee members (1 if neither), C classes.
Scores: (log_probs_PSC) -> score_P in float64, higher means "label me first". With two classes least confidence, margin
and entropy rank alike, for each is a falling function of the larger probability; they are written so that rounding
keeps it so, for nearly even and for very certain rows. What averages over passes takes means that agree to DIGITS for
equal: in float64 the last digit of a sum hangs on the order of the passes, and would decide what is a tie. One pass is
taken as it is.
"""

from math import log

import torch
from torch import Tensor

from al_bench.strategies import PoolView, by_chunks, needs, top_k
from al_bench.strategies.greedy import rounded

# Binary digits of a mean over passes, counted from its first: about those of the float32 that is averaged. With more of
# them the entropies of two nearly even rows would be equal in float64 where their margins differ.
DIGITS = 25


def mean_log_probs(log_probs_PSC: Tensor) -> Tensor:
    """Log of the average prediction over passes, as `average_prediction` gives it, for scores.

    Of several passes the mean is rounded to DIGITS, so that their order decides no tie.
    """
    log_probs_PC = average_prediction(log_probs_PSC)
    return log_probs_PC if log_probs_PSC.shape[1] == 1 else rounded_mean(log_probs_PC)


def average_prediction(log_probs_PSC: Tensor) -> Tensor:
    """Log of the average prediction over passes, averaged as probabilities, not as logits.

    In float64, and normalised there: float32 cannot tell the entropies of nearly even predictions apart, for they
    differ by the square of the margin.
    """
    return (log_probs_PSC.double().logsumexp(dim=1) - log(log_probs_PSC.shape[1])).log_softmax(dim=-1)


def rounded_mean(log_probs_PC: Tensor) -> Tensor:
    """All probabilities but the largest to DIGITS, the largest what they leave: 1 - 1e-20 is still not 1 - 2e-20."""
    likeliest_P1 = log_probs_PC.argmax(dim=-1, keepdim=True)
    unlikely_PC = rounded(log_probs_PC.exp().scatter(-1, likeliest_P1, 0), DIGITS)
    rounded_PC = unlikely_PC.log().where(unlikely_PC > 0, log_probs_PC)
    return rounded_PC.scatter(-1, likeliest_P1, (-unlikely_PC.sum(dim=-1, keepdim=True)).log1p())


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


def entropy_of(probs: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis (Shannon, 1948). 0 log 0 is exactly 0: certainty is 0, not NaN."""
    return -torch.xlogy(probs, probs).sum(dim=-1)


def entropy_score(log_probs_PSC: Tensor) -> Tensor:
    return entropy_of(mean_log_probs(log_probs_PSC).exp())


def pass_probs(log_probs_PSC: Tensor) -> Tensor:
    """Each pass's probabilities in float64, adding up to 1 again where they were stored as float16."""
    return log_probs_PSC.double().log_softmax(dim=-1).exp()


def vote_shares(log_probs_PSC: Tensor) -> Tensor:
    """The share of the passes that vote for each class [P, C]. A pass with several likeliest classes splits its vote:
    all of it to the first would call an even prediction a unanimous one."""
    likeliest_PSC = log_probs_PSC == log_probs_PSC.amax(dim=-1, keepdim=True)
    votes_PC = (likeliest_PSC.double() / likeliest_PSC.sum(dim=-1, keepdim=True)).sum(dim=1)
    return rounded(votes_PC, 32) / log_probs_PSC.shape[1]  # whole votes are exact; of thirds the sum has to be rounded


def variation_ratios_score(log_probs_PSC: Tensor) -> Tensor:
    """1 - the modal class's share of the votes (Freeman, 1965; over dropout passes: Gal's thesis, 2016).

    The formula of Gal et al. (2017) is 1 - max p of the mean prediction. That is least confidence over the passes:
    mc_least_confidence. Where all passes vote for one class, theirs still ranks the images; by votes they tie at 0.
    """
    return 1 - vote_shares(log_probs_PSC).amax(dim=-1)


def vote_entropy_score(log_probs_PSC: Tensor) -> Tensor:
    """Entropy of the votes in nats (Dagan & Engelson, 1995), without their constant factor 1 / log min(S, C)."""
    # Sorted, so that 3 votes to 2 is the same to the last bit whichever the classes: few values exist, and most tie.
    return entropy_of(vote_shares(log_probs_PSC).sort(dim=-1).values)


def mean_std_score(log_probs_PSC: Tensor) -> Tensor:
    """The probability's standard deviation over the passes, averaged over classes (Kampffmeyer et al., 2016; Kendall
    et al., 2017). Divided by S, not S - 1, as the variance of a posterior of S equally likely nets."""
    probs_PSC = pass_probs(log_probs_PSC)
    likeliest_PSC = probs_PSC.mean(dim=1, keepdim=True).argmax(dim=-1, keepdim=True).expand(-1, len(probs_PSC[0]), 1)
    others_PSC = probs_PSC.scatter(-1, likeliest_PSC, 0)
    # What the others add up to deviates as the likeliest does, and keeps the digits that 1 - 1e-9 loses.
    varying_PSC = others_PSC.scatter(-1, likeliest_PSC, others_PSC.sum(dim=-1, keepdim=True))
    return rounded(varying_PSC.std(dim=1, correction=0).mean(dim=-1), 30)


def least_confidence(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(least_confidence_score, view.log_probs_PSC), k, rng)


def margin(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(margin_score, view.log_probs_PSC), k, rng)


def entropy(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(entropy_score, view.log_probs_PSC), k, rng)


@needs(passes=True)
def variation_ratios(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(variation_ratios_score, view.log_probs_PSC), k, rng)


@needs(passes=True)
def vote_entropy(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(vote_entropy_score, view.log_probs_PSC), k, rng)


@needs(passes=True)
def mean_std(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(mean_std_score, view.log_probs_PSC), k, rng)
