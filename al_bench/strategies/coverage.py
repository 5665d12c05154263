"""Coverage: label the images that represent most of the pool, by distances in the space of fixed features.

P pool images, L labelled, F width of the fixed features, N and X rows of any kind, B candidates.
All four strategies greedily maximise sum_n weight_n * max over chosen and labelled x of K(n, x), for a kernel K between
0 and 1. The gain of x is sum_n weight_n * max(0, K(n, x) - covered_n). It depends on how far the points n around x are
covered already, not on how far x is. The sum runs over the pool; labelled points are covered by themselves.
The sum is monotone and submodular. With balls as the kernel an image is covered once and for all. So keeping every gain
exact costs all picks together no more than the gains before the first pick. With a Gaussian kernel lazy_greedy is used.
"""

from collections.abc import Callable
from dataclasses import replace
from math import exp, inf

import torch
from torch import Tensor

from al_bench import strategies
from al_bench.imports import function
from al_bench.strategies import PoolView, Size, by_chunks, needs
from al_bench.strategies.centred import Points, centred
from al_bench.strategies.diversity import (
    AHEAD,
    blocks,
    cluster,
    fit_memory,
    nearest,
    sq_distances,
    sq_norms,
    to_all,
)
from al_bench.strategies.greedy import lazy_greedy, random_argmax, rounded
from al_bench.strategies.uncertainty import log_mean_probs, margin_score, temperature_of

Kernel = Callable[[Tensor], Tensor]  # squared distances -> similarities; it may overwrite its input

KEPT = 2**27  # numbers of a kernel that is kept; a larger one is computed again where it is looked at
PROBES = 500  # images that prob_cover's radius is estimated from
RESOLUTION = 0.05  # of the radii that dcom searches for, as in the paper


def ball(delta: float) -> Kernel:
    return lambda sq_dist: sq_dist.lt_(delta**2)


def gaussian(sigma: float) -> Kernel:
    """exp(-d^2 / sigma^2), without the factor 2 of a normal density, as in both papers by Bae et al."""
    return lambda sq_dist: sq_dist.mul_(-1 / sigma**2).exp_()


def first_gains(
    x_PF: Points, norm_P: Tensor, kernel: Kernel, weight_P: Tensor, covered_P: Tensor, kernel_PP: Tensor | None = None
) -> Tensor:
    """The gains of all P candidates. K(n, x) = K(x, n), so each block of the kernel is computed only once.

    kernel_PP: an array that the kernel is kept in.
    """
    gain_P, begun = torch.zeros(len(x_PF), dtype=torch.float64), bool(covered_P.any())
    for a in blocks(len(x_PF)):
        for b in blocks(len(x_PF)):
            if b.start < a.start:
                continue
            kernel_AB = kernel(sq_distances(x_PF[a], x_PF[b], norm_P[a], norm_P[b]))
            if kernel_PP is not None:
                kernel_PP[a, b], kernel_PP[b, a] = kernel_AB, kernel_AB.T
            gain_P[a] += ((kernel_AB - covered_P[b]).clamp_min_(0) if begun else kernel_AB) @ weight_P[b]
            if b != a:
                gain_P[b] += weight_P[a] @ (kernel_AB.sub_(covered_P[a, None]).clamp_min_(0) if begun else kernel_AB)
    return gain_P


def cover(x_PF: Points, kernel: Kernel, weight_P: Tensor, covered_P: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Greedily maximise the weighted coverage; returns k positions. If nothing gains, the choice is random."""
    n, norm_P, covered_P = len(x_PF), sq_norms(x_PF), covered_P.clone()
    kernel_PP = torch.empty(n, n) if n * n <= KEPT else None

    def rows(positions: Tensor) -> Tensor:
        if kernel_PP is not None:
            return kernel_PP[positions]
        return kernel(to_all(x_PF[positions], norm_P[positions], x_PF, norm_P))

    def gains(positions: Tensor) -> Tensor:
        return rounded(by_chunks(lambda at: gains_of(rows(at), weight_P, covered_P), positions, width=n))

    def take(i: int) -> None:
        torch.maximum(covered_P, rows(torch.tensor([i]))[0], out=covered_P)

    gain_P = rounded(first_gains(x_PF, norm_P, kernel, weight_P, covered_P, kernel_PP))
    return lazy_greedy(gains, gain_P, k, take, rng)


def gains_of(kernel_BP: Tensor, weight_P: Tensor, covered_P: Tensor) -> Tensor:
    """The gains of B candidates, from their rows of the kernel, which are overwritten."""
    gain_BP = kernel_BP.sub_(covered_P).clamp_min_(0)
    return sum(gain_BP[:, n].mv(weight_P[n]).double() for n in blocks(gain_BP.shape[1]))


def neighbours(x_PF: Points, norm_P: Tensor, of: Tensor, delta: float) -> Tensor:
    """For each pool image, how many of the images `of` lie within delta of it."""
    count_P = torch.zeros(len(x_PF), dtype=torch.float64)
    for n in blocks(len(of)):
        for p in blocks(len(x_PF)):
            count_P[p] += ball(delta)(sq_distances(x_PF[of[n]], x_PF[p], norm_P[of[n]], norm_P[p])).sum(0)
    return count_P


def cover_balls(
    x_PF: Points, delta: float, covered_P: Tensor, k: int, rng: torch.Generator, rank: Callable[[Tensor], Tensor]
) -> Tensor:
    """Positions of k images: one by one the image of the highest rank(degree_P).

    The degree of an image is the number of uncovered images within delta of it. A pick covers these.
    """
    norm_P, covered_P = sq_norms(x_PF), covered_P.clone()
    # A ball covers an image or not, so covered images can get weight 0, which is faster.
    degree_P = first_gains(x_PF, norm_P, ball(delta), 1 - covered_P, torch.zeros(len(x_PF)))
    picked: list[int] = []
    ahead: dict[int, Tensor] = {}
    while True:
        rank_P = rank(degree_P).index_fill(0, torch.tensor(picked).long(), -inf)
        picked.append(i := random_argmax(rank_P, rng))
        if len(picked) == k:
            return torch.tensor(picked)
        if i not in ahead:
            ahead = balls_ahead(x_PF, norm_P, delta, covered_P, rank_P, i)
        fresh = (ahead[i] & (covered_P == 0)).nonzero()[:, 0]
        if all(n in ahead for n in fresh.tolist()):
            degree_P -= sum(ahead[n] for n in fresh.tolist())
        else:
            degree_P -= neighbours(x_PF, norm_P, fresh, delta)
        covered_P[fresh] = 1


def balls_ahead(
    x_PF: Points, norm_P: Tensor, delta: float, covered_P: Tensor, rank_P: Tensor, i: int
) -> dict[int, Tensor]:
    """Images [P] within delta, by position: of i, of the highest ranks, and of what these cover if it is few.

    The next picks are mostly among them. Computing many at once costs far less than one by one.
    """

    def balls(of: Tensor) -> dict[int, Tensor]:
        near = [ball(delta)(to_all(x_PF[n], norm_P[n], x_PF, norm_P)).bool() for n in of.split(room)]
        return dict(zip(of.tolist(), torch.cat(near), strict=True))

    room = max(1, strategies.CHUNK // len(x_PF))
    width = min(len(x_PF), AHEAD, room)
    found = balls(torch.cat([torch.tensor([i]), rank_P.topk(width).indices])[:width])
    covers = (torch.stack(list(found.values())).any(0) & (covered_P == 0)).nonzero()[:, 0]
    return found | (balls(covers) if 0 < len(covers) <= 4 * room else {})  # bool: a byte each, not four


def pure_radius(x_PF: Points, n_classes: int, purity: float, rng: torch.Generator) -> float:
    """The largest radius at which at least a share `purity` of the balls hold a single pseudo-label.

    The pseudo-labels are k-means clusters. The ball around an image is pure up to the distance to the nearest image of
    another cluster. So the radius is a quantile of these distances, here of at most PROBES images drawn at random.
    """
    if not 0 < purity <= 1:
        raise ValueError(f"purity is {purity} and has to be above 0 and at most 1")
    cluster_P = cluster((x_PF,), n_classes, rng)[1]
    probe_N = torch.randperm(len(x_PF), generator=rng)[:PROBES]
    norm_P, limit_N = sq_norms(x_PF), torch.full((len(probe_N),), inf)
    for n in blocks(len(probe_N)):
        i = probe_N[n]
        for p in blocks(len(x_PF)):
            dist_NP = sq_distances(x_PF[i], x_PF[p], norm_P[i], norm_P[p])
            dist_NP[cluster_P[i, None] == cluster_P[p]] = inf
            limit_N[n] = torch.minimum(limit_N[n], dist_NP.min(dim=1).values)
    impure = int((1 - purity) * len(limit_N) + 1e-9)
    return float(limit_N.sort().values[min(impure, len(limit_N) - 1)].sqrt())


def with_centred_features(view: PoolView) -> PoolView:
    pool, labelled = centred(view.features_PF, view.labelled_features_LF)
    return replace(view, features_PF=pool, labelled_features_LF=labelled)


def radius(view: PoolView, delta: float | None, purity: float, rng: torch.Generator) -> float:
    if delta is None:
        return pure_radius(view.features_PF, view.n_classes, purity, rng)
    if delta <= 0:
        raise ValueError(f"delta is {delta} and has to be above 0, or null")
    return delta


def radius_memory(n: Size) -> float:
    return fit_memory(n.P, n.F, n.C)


@needs(predictions=False, features=True, memory=radius_memory)
def prob_cover(
    view: PoolView, k: int, rng: torch.Generator, *, delta: float | None = None, purity: float = 0.95
) -> Tensor:
    """Cover as many images as possible by balls of radius delta (Yehuda et al., 2022, Algorithm 1).

    The balls lie around chosen and labelled images. delta None: pure_radius of this round's pool, with as many clusters
    as classes. The paper fixes one delta for each data set, from all its images. Once all images are covered, the
    choice is random.
    """
    view = with_centred_features(view)
    delta = radius(view, delta, purity, rng)
    covered_P = ball(delta)(nearest(view.features_PF, view.labelled_features_LF)[0])
    return cover_balls(view.features_PF, delta, covered_P, k, rng, lambda degree_P: degree_P)


def kernel_memory(n: Size) -> float:
    return (4 * n.P**2 if n.P**2 <= KEPT else 0) + 500 * n.P


@needs(predictions=False, features=True, memory=kernel_memory)
def max_herding(view: PoolView, k: int, rng: torch.Generator, *, sigma: float = 1.0) -> Tensor:
    """MaxHerding (Bae, Noh & Sutherland, 2024): maximise the pool's mean similarity to its most similar labelled image.

    The kernel is a Gaussian on features of unit length.
    """
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma} and has to be above 0")
    view, kernel = with_centred_features(view), gaussian(sigma)
    covered_P = kernel(nearest(view.features_PF, view.labelled_features_LF)[0])
    return cover(view.features_PF, kernel, torch.ones(view.n_pool), covered_P, k, rng)


def least_distance(x_LF: Points) -> float:
    """The smallest distance above 0 between two rows; 1.0 if there is none."""
    norm_L, least = sq_norms(x_LF) if len(x_LF) else None, inf
    for a in blocks(len(x_LF)):
        for b in blocks(len(x_LF)):
            dist_AB = sq_distances(x_LF[a], x_LF[b], norm_L[a], norm_L[b])
            # Copies lie at up to a millionth of their squared length, by rounding: see sq_norms.
            least = min(least, float(dist_AB.masked_fill_(dist_AB <= 1e-5 * norm_L.max(), inf).min()))
    return 1.0 if least == inf else least**0.5


@needs(features=True, held_out=True, memory=kernel_memory)
def uncertainty_herding(
    view: PoolView,
    k: int,
    rng: torch.Generator,
    *,
    uncertainty: str = "al_bench.strategies.uncertainty.margin_score",
    temperature: float = 1.0,
    fit_temperature: bool | None = None,
) -> Tensor:
    """MaxHerding with each image weighted by its uncertainty (Bae, Oliveira & Sutherland, 2025: UHerding).

    sigma is the smallest distance between two labelled images, as in the paper. It shrinks as labels are added, and the
    choice moves from covering the pool to its most uncertain images. Copies do not count. With fewer than two distinct
    labelled images sigma is 1.0.

    temperature divides the logits. Where the view has predictions of labelled images that are held out, it is fitted to
    them each round: see fitted_temperature. So does the paper, with one held-out part and a separate training.
    Elsewhere, and with fit_temperature=False, it is the constant. fit_temperature=True refuses a view without them.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature} and has to be above 0")
    temperature = temperature_of(view, temperature, fit_temperature)
    score = function("strategy.uncertainty", uncertainty)
    weight_P = by_chunks(lambda x: score((x.float() / temperature).log_softmax(-1)), view.log_probs_PSC)
    if not (weight_P >= 0).all():
        raise ValueError(f"{uncertainty} is NaN or below 0 for some images and cannot weigh them")
    weight_P = torch.ldexp(weight_P, -torch.frexp(weight_P.max()).exponent).float()  # exact: float32 rounds none to 0
    view = with_centred_features(view)
    kernel = gaussian(least_distance(view.labelled_features_LF))
    covered_P = kernel(nearest(view.features_PF, view.labelled_features_LF)[0])
    return cover(view.features_PF, kernel, weight_P, covered_P, k, rng)


def competence(coverage: float, steepness: float = 30.0, centre: float = 0.9) -> float:
    """S(L), a logistic curve: near 0 if the labelled balls cover little, 1 if they cover everything."""
    return (1 + exp(-steepness * (1 - centre))) / (1 + exp(-steepness * (coverage - centre)))


def pure_radii(dist_LN: Tensor, class_L: Tensor, class_N: Tensor, threshold: float, max_delta: float) -> Tensor:
    """For each centre the radius up to which its class has at least a share `threshold` of its ball, by bisection."""
    low_L, high_L = torch.zeros(len(dist_LN)), torch.full((len(dist_LN),), max_delta)
    same_LN = class_L[:, None] == class_N
    while (high_L - low_L).max() > RESOLUTION:
        middle_L = (low_L + high_L) / 2
        inside_LN = dist_LN < middle_L[:, None] ** 2
        pure_L = (inside_LN & same_LN).sum(1) >= threshold * inside_LN.sum(1)
        low_L, high_L = torch.where(pure_L, middle_L, low_L), torch.where(pure_L, high_L, middle_L)
    return (low_L + high_L) / 2


def labelled_balls(view: PoolView, delta: float, max_delta: float) -> tuple[Tensor, Tensor]:
    """The radius of each labelled image [L], and which pool images their balls cover [P], 0 or 1."""
    x_LF, x_PF, class_L = view.labelled_features_LF, view.features_PF, view.labelled_labels_L
    radius_L, covered_P = torch.full((len(x_LF),), delta), torch.zeros(len(x_PF))
    if not len(x_LF):
        return radius_L, covered_P
    norm_L, norm_P = sq_norms(x_LF), sq_norms(x_PF)
    class_P = by_chunks(lambda x: log_mean_probs(x).argmax(-1), view.log_probs_PSC)
    class_N = torch.cat([class_L, class_P])
    threshold = 0.2 * share_covered(ball(delta)(nearest(x_PF, x_LF)[0]), len(x_LF)) + 0.4
    for some_L in torch.arange(len(x_LF)).split(max(1, strategies.CHUNK // len(class_N))):
        centre, norm = x_LF[some_L], norm_L[some_L]
        dist_LP = to_all(centre, norm, x_PF, norm_P)
        dist_LN = torch.cat([to_all(centre, norm, x_LF, norm_L), dist_LP], 1)
        radius_L[some_L] = pure_radii(dist_LN, class_L[some_L], class_N, threshold, max_delta)
        covered_P[(dist_LP < radius_L[some_L, None] ** 2).any(0)] = 1
    return radius_L, covered_P


def share_covered(covered_P: Tensor, n_labelled: int) -> float:
    return (float(covered_P.sum()) + n_labelled) / (len(covered_P) + n_labelled)


@needs(features=True, memory=radius_memory)
def dcom(
    view: PoolView,
    k: int,
    rng: torch.Generator,
    *,
    delta: float | None = None,
    purity: float = 0.95,
    max_delta: float = 1.1,
) -> Tensor:
    """Coverage while the net knows little, margin once it knows much (Mishal & Weinshall, 2024: DCoM).

    Each labelled image has a ball of its own radius: the largest at which a share of 0.2 * coverage + 0.4 of the
    predictions in it agree with its label. What the balls cover gives the competence S. Images are picked one by one by
    the highest S * margin + (1 - S) * degree, both between 0 and 1. The degree is the number of uncovered images within
    the mean radius; a pick covers these. Without labels the radius is delta, S is about 0, and this is prob_cover.
    delta None: as in prob_cover.

    Differences from the paper: it keeps each image's radius from the round after it was labelled. We compute all radii
    anew from this round's net, and take the coverage in the threshold from balls of radius delta. Labelled images count
    in a ball with their labels.

    Differences from the authors' code: we scale the margin to 0..1 once, over the pool alone, and divide the degree by
    its largest value. They scale the margin over pool and labelled images, then set it to 0 for the labelled images and
    for each pick. At every pick they scale margin and degree again, from the least to the largest value over all these
    images.
    """
    if not 0 < max_delta <= 2:
        raise ValueError(f"max_delta={max_delta} has to be above 0 and at most 2, the diameter of the unit ball")
    view = with_centred_features(view)
    delta = radius(view, delta, purity, rng)
    radius_L, covered_P = labelled_balls(view, delta, max_delta)
    skill = competence(share_covered(covered_P, len(radius_L)))
    margin_P = by_chunks(margin_score, view.log_probs_PSC)
    margin_P = (margin_P - margin_P.min()) / (margin_P.max() - margin_P.min()).clamp_min(1e-12)

    def rank(degree_P: Tensor) -> Tensor:
        return skill * margin_P + (1 - skill) * degree_P / degree_P.max().clamp_min(1)

    mean = float(radius_L.mean()) if len(radius_L) else delta
    return cover_balls(view.features_PF, mean, covered_P, k, rng, rank)
