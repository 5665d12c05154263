"""Bayesian strategies: the passes are nets drawn from a posterior, and a label is worth what it tells about the net.

P pool images, S stochastic passes or committee members, C classes, T target images, N a few images.
M configurations: possible labellings of the images picked so far. Information is in nats.
"""

from math import inf, log

import torch
from torch import Tensor

from al_bench import strategies
from al_bench.imports import function
from al_bench.strategies import PoolView, by_chunks, needs, top_k
from al_bench.strategies.greedy import lazy_greedy
from al_bench.strategies.uncertainty import entropy_of, pass_probs

ROUNDING = 1e-12  # nats; smaller differences count as rounding of float32 inputs and float64 sums


def without_rounding(information: Tensor) -> Tensor:
    """Round to steps of 1e-12 and clamp at 0. Passes that agree tie at 0, and equal images tie wherever they lie."""
    return (information / ROUNDING).round().clamp_min(0) * ROUNDING


def bald_score(log_probs_PSC: Tensor) -> Tensor:
    """BALD (Houlsby et al., 2011): entropy of the mean prediction minus mean entropy of the passes.

    This is the information that the label holds about the net. Raises ValueError for a single pass, which holds none.
    """
    if log_probs_PSC.shape[1] < 2:
        raise ValueError(f"bald_score {strategies.ONE_PREDICTION}")
    probs_PSC = pass_probs(log_probs_PSC)
    return without_rounding(entropy_of(probs_PSC.mean(dim=1)) - entropy_of(probs_PSC).mean(dim=1))


@needs(passes=True)
def bald(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    return top_k(by_chunks(bald_score, view.log_probs_PSC), k, rng)


def gumbel_score(score_P: Tensor, how: str, beta: float, rng: torch.Generator) -> Tensor:
    """Noisy scores [P] for stochastic_batch. Their k highest are a draw of k without replacement (Gumbel top-k)."""
    noise_P = -torch.empty(len(score_P), dtype=torch.float64).exponential_(generator=rng).log()
    if how == "softmax":
        return beta * score_P + noise_P
    if how == "softrank":
        rank_P = torch.empty_like(noise_P)
        rank_P[top_k(score_P, len(score_P), rng)] = torch.arange(1.0, len(score_P) + 1, dtype=torch.float64)
        return noise_P - beta * rank_P.log()
    if (score_P < 0).any():
        raise ValueError("how=power takes the logarithm of scores, but some are negative; how=softrank takes any")
    return beta * score_P.log() + noise_P


def stochastic_batch(
    view: PoolView, k: int, rng: torch.Generator, *, score: str, how: str = "power", beta: float = 1.0
) -> Tensor:
    """Draw k images without replacement, likelier the higher their score (Kirsch et al., 2023, section 3).

    The probability of a draw is proportional to score ** beta (power), exp(beta * score) (softmax) or rank ** -beta
    (softrank). The highest score has rank 1; equal scores are ranked at random. Under power, an image of score 0 is
    drawn only after all others. score: dotted path of a function log_probs_PSC -> score_P.
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
    """What each image's label would tell about the net once the picked images are labelled: I(y; s | labels) [N].

    weight_M: the probability of each configuration. posterior_MS: the probability of each pass given a configuration.
    """
    probs_NSC = pass_probs(log_probs_NSC)
    n, s, c = probs_NSC.shape
    probs_MX = posterior_MS @ probs_NSC.transpose(0, 1).reshape(s, n * c)
    entropy_N = -(weight_M @ torch.xlogy(probs_MX, probs_MX)).view(n, c).sum(dim=1)
    return without_rounding(entropy_N - entropy_of(probs_NSC) @ (weight_M @ posterior_MS))


def continued(row_X: Tensor, posterior_MS: Tensor, probs_SC: Tensor) -> Tensor:
    """The posteriors [X, S] after one more label. Row m * C + c is configuration m followed by class c."""
    c = probs_SC.shape[1]
    posterior_XS = posterior_MS[row_X // c] * probs_SC.T[row_X % c]
    return posterior_XS / posterior_XS.sum(dim=1, keepdim=True)


def continue_configurations(
    weight_M: Tensor, posterior_MS: Tensor, probs_SC: Tensor, most: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Continue every configuration by every label of one more image, or a sample of them if they are too many.

    Returns weight_M and posterior_MS of the new configurations.

    A configuration adds at most its worth to any gain. Its worth is its weight times the entropy of its posterior: once
    the labels have settled which pass is right, a further label tells nothing. So configurations are sampled in
    proportion to their worth, by one draw and equal steps along the cumulative sum, and reweighted accordingly. `most`
    shrinks with the square root of the information still open, because the gains and their errors shrink as well.
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

    An image's gain is I(y; net | labels of the picked images). It is the paper's joint entropy without the terms that
    all candidates share. It is averaged over the configurations of those labels: over all possible ones while they are
    few, then over a sample.

    The computation differs from section 3.3 of the paper:
    - Gains are computed lazily, because they only shrink. A sampled gain can rise, and then its earlier value is no
      bound. In 48 runs with 100 or 2,000 configurations (400 and 4,000 images, 10 to choose) each batch was the same
      as with every gain computed at every pick. With 20 and 4 some batches differed, no more than those of two seeds.
    - Each sample grows out of the last one, prefers configurations that leave the net open, and serves both entropies.
      So no gain is negative. 2,000 configurations have a smaller error than 10,000 plain draws.

    Once the labels of the picked images would tell the S passes apart, log S nats in all, every gain is 0 and the rest
    is random. So a large batch needs many passes. The passes have to share their dropout masks over the pool.
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
    """EPIG (Bickford Smith et al., 2023): the mean over targets of I(y; y*).

    I(y; y*) is what an image's label tells about a target's label. Their joint probability is the mean over passes of
    the product of the two probabilities.
    """
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
    """The k images of the highest EPIG. Scores are not estimated jointly for the batch.

    The targets stand for the images that the net is to be good at. They are drawn from the pool itself, so that the
    test set stays unseen. In the paper they are samples of the inputs that the net is made for, apart from the pool.

    Here a candidate may be one of its own targets. Its score then includes what one label of an image tells about a
    second label of the same image. In a large pool that is one target of 200. A pool with no more images than targets
    consists of targets only: among 20 images each makes up a twentieth of its own score, which leans towards BALD.
    """
    if targets < 1:
        raise ValueError(f"targets is {targets} and has to be at least 1")
    target_log_probs_TSC = view.log_probs_PSC[torch.randperm(view.n_pool, generator=rng)[:targets]]
    width = view.n_classes**2 * len(target_log_probs_TSC)
    score_P = by_chunks(lambda part: epig_score(part, target_log_probs_TSC), view.log_probs_PSC, width=width)
    return top_k(score_P, k, rng)
