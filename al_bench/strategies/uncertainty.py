"""Uncertainty sampling: label the images whose predicted class is least certain, or on which the passes disagree.

P pool images, S stochastic passes or committee members (1 if neither), C classes.
A score is a function log_probs_PSC -> score_P in float64. Higher means "label me first".

With two classes least confidence, margin and entropy rank alike, because each falls as the larger probability grows.
The formulas preserve this under rounding, for nearly even and for very certain predictions.

A mean over several passes is rounded to DIGITS. In float64 the last digit of a sum depends on the order of the passes,
and it would decide which images tie. A single pass is not rounded.
"""

from math import log

import torch
from torch import Tensor

from al_bench.strategies import PoolView, by_chunks, needs, top_k
from al_bench.strategies.greedy import rounded

# Binary digits of a mean over passes, about as many as the averaged float32 has. With more of them the entropies of two
# nearly even predictions could be equal in float64 while their margins differ.
DIGITS = 25

TEMPERATURES = [10 ** (i / 20) for i in range(-14, 15)]  # that fitted_temperature tries: 0.2 to 5


def log_mean_probs(log_probs_PSC: Tensor) -> Tensor:
    """Log of the mean prediction over passes [P, C], in float64, for scores.

    The mean of several passes is rounded to DIGITS, so that their order decides no tie.
    """
    log_probs_PC = average_prediction(log_probs_PSC)
    return log_probs_PC if log_probs_PSC.shape[1] == 1 else rounded_mean(log_probs_PC)


def average_prediction(log_probs_PSC: Tensor) -> Tensor:
    """Log of the mean prediction over passes [P, C], not rounded. Probabilities are averaged, not logits.

    It is computed and normalised in float64. Entropies of nearly even predictions differ by the square of the margin,
    which float32 cannot resolve.
    """
    return (log_probs_PSC.double().logsumexp(dim=1) - log(log_probs_PSC.shape[1])).log_softmax(dim=-1)


def rounded_mean(log_probs_PC: Tensor) -> Tensor:
    """Round all probabilities but the largest to DIGITS.

    The largest is 1 minus the others, so that 1 - 1e-20 and 1 - 2e-20 still differ.
    """
    likeliest_P1 = log_probs_PC.argmax(dim=-1, keepdim=True)
    unlikely_PC = rounded(log_probs_PC.exp().scatter(-1, likeliest_P1, 0), DIGITS)
    rounded_PC = unlikely_PC.log().where(unlikely_PC > 0, log_probs_PC)
    return rounded_PC.scatter(-1, likeliest_P1, (-unlikely_PC.sum(dim=-1, keepdim=True)).log1p())


def unlikely_probs(log_probs_PSC: Tensor) -> Tensor:
    """The mean probabilities [P, C], with 0 in place of the largest.

    Their sum is 1 - max p. It tells max p = 1 - 1e-20 from max p = 1, which float64 rounds to the same number.
    """
    log_probs_PC = log_mean_probs(log_probs_PSC)
    return log_probs_PC.exp().scatter(-1, log_probs_PC.argmax(dim=-1, keepdim=True), 0)


def least_confidence_score(log_probs_PSC: Tensor) -> Tensor:
    """1 - max p (Lewis & Gale, 1994)."""
    return unlikely_probs(log_probs_PSC).sum(dim=-1)


def margin_score(log_probs_PSC: Tensor) -> Tensor:
    """1 minus the gap between the two likeliest classes (Scheffer et al., 2001): 1 - (p1 - p2) = (1 - p1) + p2."""
    unlikely_PC = unlikely_probs(log_probs_PSC)
    return unlikely_PC.sum(dim=-1) + unlikely_PC.max(dim=-1).values


def temperature_of(view: PoolView, constant: float, fit: bool | None) -> float:
    """The fitted temperature where the view has held-out predictions, unless fit is False; else the constant."""
    held_out_LC = view.held_out_log_probs_LC
    if fit and held_out_LC is None:
        raise ValueError("fit_temperature=true needs model.head=logistic, strategy.passes=null and two labelled images")
    if fit is False or held_out_LC is None:
        return constant
    if constant != 1:
        raise ValueError(
            f"temperature={constant} has no effect where it is fitted. Set fit_temperature=false to use it"
        )
    return fitted_temperature(held_out_LC, view.labelled_labels_L)


def fitted_temperature(log_probs_LC: Tensor, labels_L: Tensor) -> float:
    """The temperature with the least calibration error on images whose labels the net has not seen.

    The error is the expected calibration error with 15 bins of equal width (Guo et al., 2017, Equation 3). TEMPERATURES
    are tried, and of equally good ones the nearest to 1 is taken. Without images it is 1.
    """
    hit_L = (log_probs_LC.argmax(1) == labels_L).double()

    def error(temperature: float) -> float:
        confidence_L = (log_probs_LC.double() / temperature).softmax(1).amax(1)
        bin_L = (15 * confidence_L).ceil().long()
        return float(bin_L.bincount(weights=confidence_L - hit_L).abs().sum()) / max(1, len(hit_L))

    nearest_first = sorted(TEMPERATURES, key=lambda t: abs(log(t)))
    return min(nearest_first, key=lambda t: round(error(t), 9))


def entropy_of(probs: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis (Shannon, 1948). 0 log 0 is exactly 0, not NaN."""
    return -torch.xlogy(probs, probs).sum(dim=-1)


def entropy_score(log_probs_PSC: Tensor) -> Tensor:
    return entropy_of(log_mean_probs(log_probs_PSC).exp())


def pass_probs(log_probs_PSC: Tensor) -> Tensor:
    """Each pass's probabilities in float64. They are normalised again, because they may have been stored as float16."""
    return log_probs_PSC.double().log_softmax(dim=-1).exp()


def vote_shares(log_probs_PSC: Tensor) -> Tensor:
    """The share of the passes that vote for each class [P, C]. A pass with several likeliest classes splits its vote.

    Otherwise uniform predictions would all vote for class 0, and would count as unanimous.
    """
    likeliest_PSC = log_probs_PSC == log_probs_PSC.amax(dim=-1, keepdim=True)
    votes_PC = (likeliest_PSC.double() / likeliest_PSC.sum(dim=-1, keepdim=True)).sum(dim=1)
    # Sums of whole votes are exact. Sums of thirds depend on the order of the passes in the last digit.
    return rounded(votes_PC, 32) / log_probs_PSC.shape[1]


def variation_ratios_score(log_probs_PSC: Tensor) -> Tensor:
    """1 - the share of the votes for the most voted class (Freeman, 1965; with dropout passes: Gal's thesis, 2016).

    Gal et al. (2017) use 1 - max p of the mean prediction instead. Here that is the strategy mc_least_confidence. It
    still ranks the images on which all passes vote for one class. This score is 0 for all of them.
    """
    return 1 - vote_shares(log_probs_PSC).amax(dim=-1)


def vote_entropy_score(log_probs_PSC: Tensor) -> Tensor:
    """Entropy of the votes in nats (Dagan & Engelson, 1995), without their constant factor 1 / log min(S, C)."""
    # Most images tie, because the votes take few values. Sorting makes 3 votes to 2 and 2 votes to 3 exactly equal.
    return entropy_of(vote_shares(log_probs_PSC).sort(dim=-1).values)


def mean_std_score(log_probs_PSC: Tensor) -> Tensor:
    """Mean over classes of the standard deviation of a probability over the passes.

    Sources: Kampffmeyer et al. (2016), Kendall et al. (2017). The variance is divided by S, not S - 1, because the S
    nets are the whole posterior, each equally likely.
    """
    probs_PSC = pass_probs(log_probs_PSC)
    likeliest_PSC = probs_PSC.mean(dim=1, keepdim=True).argmax(dim=-1, keepdim=True).expand(-1, len(probs_PSC[0]), 1)
    others_PSC = probs_PSC.scatter(-1, likeliest_PSC, 0)
    # The sum of the others deviates exactly as the likeliest does. It keeps the digits that 1 - 1e-9 loses.
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
