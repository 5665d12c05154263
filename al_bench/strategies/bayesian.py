"""Bayesian strategies: the passes are nets drawn from a posterior, and a label is worth what it tells about them.

P pool images, S stochastic passes or committee members, C classes, T target images, N a few images, M configurations:
the ways in which the images picked so far may turn out to be labelled. All information is in nats.
"""

from math import inf, log

import torch
from torch import Tensor

from al_bench import strategies
from al_bench.imports import function
from al_bench.strategies import PoolView, by_chunks, needs, top_k
from al_bench.strategies.greedy import lazy_greedy
from al_bench.strategies.uncertainty import entropy_of, pass_probs

ROUNDING = 1e-12  # nats; what differs by less, after sums of float64 and inputs of float32, is taken to be equal


def without_rounding(information: Tensor) -> Tensor:
    """In steps of 1e-12, and never negative: passes that agree tie at 0, and equal images tie wherever they lie."""
    return (information / ROUNDING).round().clamp_min(0) * ROUNDING


def bald_score(log_probs_PSC: Tensor) -> Tensor:
    """BALD (Houlsby et al., 2011): entropy of the mean prediction minus the passes' mean entropy, which is the
    information the label holds about the net. ValueError for one pass, which holds none."""
    if log_probs_PSC.shape[1] < 2:
        raise ValueError(f"bald_score {strategies.ONE_PREDICTION}")
    probs_PSC = pass_probs(log_probs_PSC)
    return without_rounding(entropy_of(probs_PSC.mean(dim=1)) - entropy_of(probs_PSC).mean(dim=1))


@needs(passes=True)
def bald(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(bald_score, view.log_probs_PSC), k, rng)


def gumbel_score(score_P: Tensor, how: str, beta: float, rng: torch.Generator) -> Tensor:
    """What stochastic_batch takes the k highest of: the k of a draw without replacement (Gumbel top-k)."""
    noise_P = -torch.empty(len(score_P), dtype=torch.float64).exponential_(generator=rng).log()
    if how == "softmax":
        return beta * score_P + noise_P
    if how == "softrank":
        rank_P = torch.empty_like(noise_P)
        rank_P[top_k(score_P, len(score_P), rng)] = torch.arange(1.0, len(score_P) + 1, dtype=torch.float64)
        return noise_P - beta * rank_P.log()
    if (score_P < 0).any():
        raise ValueError("how=power takes the logarithm of scores, and some are negative; how=softrank takes any")
    return beta * score_P.log() + noise_P


def stochastic_batch(
    view: PoolView, k: int, rng: torch.Generator, *, score: str, how: str = "power", beta: float = 1.0
) -> Tensor:
    """Draws k images without replacement, likelier with a higher score (Kirsch et al., 2023, section 3).

    The chance of a draw is in proportion to score ** beta (power), exp(beta * score) (softmax) or rank ** -beta
    (softrank; the highest score has rank 1, equal ones a random order). score: dotted path of a function
    log_probs_PSC -> score_P. Under power an image of score 0 is drawn once all others are.
    """
    if how not in ("power", "softmax", "softrank"):
        raise ValueError(f"how={how} is none of power, softmax, softrank")
    if not 0 < beta < inf:
        raise ValueError(f"beta={beta} has to be above 0 and finite")
    score_P = by_chunks(function("strategy.score", score), view.log_probs_PSC).double()
    if not score_P.isfinite().all():
        raise ValueError(f"{score} gave {int((~score_P.isfinite()).sum())} NaN or infinite scores")
    return top_k(gumbel_score(score_P, how, beta, rng), k, rng)


def information_given(weight_M: Tensor, posterior_MS: Tensor, log_probs_NSC: Tensor) -> Tensor:
    """What each image's label would tell about the net once the picked are labelled, I(y; s | labels).

    weight_M: how likely each configuration of those labels is. posterior_MS: how likely each pass is given it.
    """
    probs_NSC = pass_probs(log_probs_NSC)
    n, s, c = probs_NSC.shape
    probs_MX = posterior_MS @ probs_NSC.transpose(0, 1).reshape(s, n * c)
    entropy_N = -(weight_M @ torch.xlogy(probs_MX, probs_MX)).view(n, c).sum(dim=1)
    return without_rounding(entropy_N - entropy_of(probs_NSC) @ (weight_M @ posterior_MS))


def continued(row_X: Tensor, posterior_MS: Tensor, probs_SC: Tensor) -> Tensor:
    """Posteriors after one more label, of row m * C + c: configuration m, then class c."""
    c = probs_SC.shape[1]
    posterior_XS = posterior_MS[row_X // c] * probs_SC.T[row_X % c]
    return posterior_XS / posterior_XS.sum(dim=1, keepdim=True)


def continue_configurations(
    weight_M: Tensor, posterior_MS: Tensor, probs_SC: Tensor, most: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Every configuration continued by every label of one more image; if these are too many, a sample of them.

    A configuration adds to no gain more than its worth, its weight times the entropy of its posterior: where the labels
    have settled which pass is right, no further one tells anything. So rows are sampled in proportion to their worth,
    by one draw and equal steps along its cumulative sum, and weighted to make up for it. `most` shrinks with the root
    of the information that is still open, for the gains and so their errors shrink as well.
    """
    weight_X = (weight_M[:, None] * (posterior_MS @ probs_SC)).flatten()
    row_X = (weight_X > 1e-15).nonzero().squeeze(1)
    entropy_X = by_chunks(lambda row: entropy_of(continued(row, posterior_MS, probs_SC)), row_X, width=len(probs_SC))
    row_X, entropy_X = row_X[entropy_X > 1e-10], entropy_X[entropy_X > 1e-10]
    weight_X = weight_X[row_X]
    worth_X = weight_X * entropy_X
    size = 1 + int(most * float(worth_X.sum() / log(max(2, len(probs_SC)))) ** 0.5)
    if len(row_X) > size:
        sum_X = worth_X.cumsum(0)
        step = sum_X[-1] / size
        at = step * (torch.arange(size) + torch.rand(1, generator=rng, dtype=torch.float64))
        drawn, times = torch.searchsorted(sum_X, at).clamp_max(len(row_X) - 1).unique(return_counts=True)
        row_X, weight_X = row_X[drawn], times * step / entropy_X[drawn]
    return weight_X, continued(row_X, posterior_MS, probs_SC)


CONFIGURATIONS = 2_000


@needs(passes=True, memory=lambda n: 8 * (8 * strategies.CHUNK + CONFIGURATIONS * (10 * n.C + 4 * n.S)))
def batchbald(view: PoolView, k: int, rng: torch.Generator, *, configurations: int = CONFIGURATIONS) -> Tensor:
    """BatchBALD (Kirsch et al., 2019, algorithm 1): greedily the batch whose labels together tell most about the net.

    An image's gain is I(y; net | labels of the picked), the paper's joint entropies less what all candidates share,
    averaged over the configurations of those labels: over all that are possible while these are few, then over a
    sample. We differ from section 3.3 in how: gains are looked at lazily, for they only shrink; the sample grows out of
    the last one, prefers configurations that leave the net open, and serves both entropies, so no gain is negative.
    2,000 configurations err less than 10,000 plain draws. A sampled gain can rise, and its earlier value then bounds it
    no more. In 48 runs with 100 or 2,000 configurations (400 and 4,000 images, 10 to choose) each batch was the one of
    working out every gain at every pick. With 20 and 4 some batches differed, by no more than those of two seeds do.

    Once the labels of the picked would tell the S passes apart, log S nats in all, every gain is 0 and the rest is
    random: a large batch wants many passes. The passes have to share their dropout masks over the pool.
    """
    if configurations < 1:
        raise ValueError(f"configurations is {configurations} and has to be at least 1")
    s = view.log_probs_PSC.shape[1]
    weight_M, posterior_MS = torch.ones(1, dtype=torch.float64), torch.full((1, s), 1 / s, dtype=torch.float64)

    def gains(position_N: Tensor) -> Tensor:
        return by_chunks(
            lambda position: information_given(weight_M, posterior_MS, view.log_probs_PSC[position]),
            position_N,
            width=(len(weight_M) + s) * view.n_classes,
        )

    def take(position: int) -> None:
        nonlocal weight_M, posterior_MS
        probs_SC = pass_probs(view.log_probs_PSC[position])
        weight_M, posterior_MS = continue_configurations(weight_M, posterior_MS, probs_SC, configurations, rng)

    return lazy_greedy(gains, by_chunks(bald_score, view.log_probs_PSC), k, take, rng)


def epig_score(log_probs_NSC: Tensor, target_log_probs_TSC: Tensor) -> Tensor:
    """EPIG (Bickford Smith et al., 2023): the mean over targets of I(y; y*), what an image's label tells about
    a target's. Their joint probability is the passes' mean of the product of the two."""
    probs_NSC = pass_probs(log_probs_NSC)
    n, s, c = probs_NSC.shape
    total_N = len(target_log_probs_TSC) * entropy_of(probs_NSC.mean(dim=1))
    for part_TSC in target_log_probs_TSC.split(max(1, strategies.CHUNK // (n * c * c))):
        target_TSC = pass_probs(part_TSC)
        joint_XY = probs_NSC.transpose(1, 2).reshape(n * c, s) @ target_TSC.transpose(0, 1).reshape(s, -1) / s
        total_N += entropy_of(target_TSC.mean(dim=1)).sum() - entropy_of(joint_XY).view(n, c).sum(dim=1)
    return without_rounding(total_N / len(target_log_probs_TSC))


@needs(passes=True, memory=lambda n: 8 * 6 * max(strategies.CHUNK, n.C**2))
def epig(view: PoolView, k: int, rng: torch.Generator, *, targets: int = 200) -> Tensor:
    """The k images of the highest EPIG. The targets, which stand for the images that the net is to be good at, are
    drawn from the pool itself: the test set stays unseen. Scores are not estimated jointly for the batch.

    The paper's targets are samples of the inputs that the net is made for, apart from the pool. Here a candidate may be
    one of its own targets, and then gains what one label of an image tells of a second label of it. That is one target
    of 200 in a large pool. A pool of no more images than targets is all targets: of 20 images each is a twentieth of
    its own score, which leans towards BALD.
    """
    if targets < 1:
        raise ValueError(f"targets is {targets} and has to be at least 1")
    target_log_probs_TSC = view.log_probs_PSC[torch.randperm(view.n_pool, generator=rng)[:targets]]
    width = view.n_classes**2 * len(target_log_probs_TSC)
    score_P = by_chunks(lambda part: epig_score(part, target_log_probs_TSC), view.log_probs_PSC, width=width)
    return top_k(score_P, k, rng)
