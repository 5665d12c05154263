"""Gradient-based selection: label the images that would change the last linear layer most, and in different ways.

P pool images, L labelled, S stochastic passes or committee members (1 if neither), C classes, D embedding width.
The gradient of the cross-entropy with respect to the last layer's weights is an outer product a (x) h. a_C is the
gradient with respect to the logits, and h_D is the embedding. The product has C*D entries for each image and is never
built. The bias is ignored throughout, as in BADGE.
"""

from collections.abc import Callable, Iterable
from math import prod

import torch
from torch import Tensor

from al_bench import strategies
from al_bench.strategies import PoolView, by_chunks, joined, needs, top_k
from al_bench.strategies.centred import Centred, Points, centred
from al_bench.strategies.greedy import draw, random_argmax
from al_bench.strategies.uncertainty import unlikely_probs

KEPT = 2**26  # numbers that a strategy keeps between picks; larger arrays are computed again at each pick
ROUNDING = 1e-6  # of the squared norms: smaller squared distances are rounding of float32


def cached_chunks(f: Callable[[Tensor], Tensor], log_probs_PSC: Tensor) -> Callable[[], Iterable[Tensor]]:
    """A function that gives f of the rows, chunk by chunk. The results are kept if small, else computed anew."""
    _, S, C = log_probs_PSC.shape
    parts = log_probs_PSC.split(max(1, strategies.CHUNK // (S * C)))
    if len(log_probs_PSC) * C > KEPT:
        return lambda: map(f, parts)
    done = [f(part) for part in parts]
    return lambda: done


def logit_gradient(log_probs_PSC: Tensor) -> Tensor:
    """a_PC = p - onehot(argmax p): the gradient with respect to the logits if the likeliest class is the true one.

    Probabilities are averaged over the passes. p - 1 is computed as minus the sum of the others, which keeps its digits
    if p is nearly 1.
    """
    # In float64 the mean does not depend on the order of the passes. For one pass it is the same as in float32.
    probs_PC = log_probs_PSC.float().exp().mean(dim=1, dtype=torch.float64).float()
    likeliest_P1 = probs_PC.argmax(dim=1, keepdim=True)
    probs_PC.scatter_(1, likeliest_P1, 0)
    return probs_PC.scatter_(1, likeliest_P1, -probs_PC.sum(dim=1, keepdim=True))


def times(rows_PD: Tensor, right_DK: Tensor) -> Tensor:
    """rows_PD @ right_DK in the precision of right_DK."""
    left_KD = right_DK.T.contiguous()
    if rows_PD.dtype == left_KD.dtype:
        return (left_KD @ rows_PD.T).T
    # A few rows at a time, so that their copy stays in the processor's cache: many times faster than one large copy.
    parts = rows_PD.split(max(1, strategies.CHUNK // (8 * rows_PD.shape[1])))
    copy_ND = torch.empty(parts[0].shape, dtype=left_KD.dtype)
    return torch.cat([left_KD @ copy_ND[: len(part)].copy_(part).T for part in parts], dim=1).T


def product(rows_PD: Points) -> Callable[[Tensor], Tensor]:
    """A function v_D -> rows_PD @ v_D. A small array is copied by columns, because that is read in half the time."""
    if prod(rows_PD.shape) > KEPT and isinstance(rows_PD, Centred):
        return lambda v_D: by_chunks(lambda x_ND: x_ND @ v_D, rows_PD)
    if prod(rows_PD.shape) > KEPT:
        return lambda v_D: times(rows_PD, v_D[:, None])[:, 0]
    columns_DP = rows_PD[:].T.float().contiguous()
    return lambda v_D: v_D @ columns_DP


def sq_length(rows_PD: Tensor) -> Tensor:
    return rows_PD.double().square().sum(dim=1)


def mean_terms(parts: Iterable[Tensor], a_C: Tensor, i: int, mean_D: Tensor, mean_times_P: Tensor) -> Tensor:
    """The terms of |g - g'|^2 that depend on the mean m, where g = a (x) (m + h): what |a (x) h - a' (x) h'|^2 lacks.

    With b = a - a' they are |b|^2 |m|^2 + 2 <b, a> <m, h> - 2 <b, a'> <m, h'>. Image i has a' and h'. mean_times_P is
    <m, h>.
    """

    def products(part: Tensor) -> Tensor:
        b = (part - a_C).double()
        return torch.stack([b.square().sum(dim=1), (b * part).sum(dim=1), b @ a_C.double()], dim=1)

    sq_P, own_P, other_P = joined(map(products, parts), len(mean_times_P)).unbind(dim=1)
    return sq_P * mean_D.double().square().sum() + 2 * (own_P * mean_times_P - other_P * mean_times_P[i])


@needs(embeddings=True, memory=lambda n: 4 * (min(n.P * n.C, KEPT) + min(n.P * n.D, KEPT)) + 500 * n.P)
def badge(view: PoolView, k: int, rng: torch.Generator, *, first: str = "longest") -> Tensor:
    """BADGE (Ash et al., 2020, Algorithm 1): k-means++ seeding over the gradients a (x) h of the predicted class.

    A pick costs O(P(C + D)), because |g - g'|^2 = |a|^2 |h|^2 + |a'|^2 |h'|^2 - 2 <a, a'> <h, h'>. If the embeddings
    lie far from 0, their mean m is subtracted from h, and mean_terms adds what depends on m.
    first: "longest" starts from the longest gradient, as the authors' code does. "random" draws the first centre, as
    the paper's k-means++ does. If all remaining gradients lie on a centre, the choice is random.
    """
    if first not in ("longest", "random"):
        raise ValueError(f"first has to be longest or random, not {first}")
    (emb_PD,), a = centred(view.emb_PD), cached_chunks(logit_gradient, view.log_probs_PSC)
    emb_times, width = product(emb_PD), 8 * emb_PD.shape[1]
    sq_a_P = joined((sq_length(part) for part in a()), view.n_pool)
    sq_norm_P = sq_a_P * by_chunks(sq_length, view.emb_PD, width=width)
    picked = [random_argmax(sq_norm_P, rng) if first == "longest" else draw(torch.ones(view.n_pool), [], rng)]
    if isinstance(emb_PD, Centred):
        sq_norm_P = sq_a_P * by_chunks(sq_length, emb_PD, width=width)
        mean_times_P = by_chunks(lambda h: h.double() @ emb_PD.mean_D.double(), emb_PD, width=width)
    sq_dist_P = torch.full_like(sq_norm_P, torch.inf)
    while len(picked) < k:
        i = picked[-1]
        a_C, h_D = logit_gradient(view.log_probs_PSC[i : i + 1])[0], emb_PD[i].float()
        inner_P = joined((part @ a_C for part in a()), view.n_pool).double()
        inner_P *= emb_times(h_D)
        sums_P = sq_norm_P + sq_norm_P[i]
        new_P = sums_P - 2 * inner_P
        if isinstance(emb_PD, Centred):
            new_P += mean_terms(a(), a_C, i, emb_PD.mean_D, mean_times_P)
        sq_dist_P = torch.minimum(sq_dist_P, new_P.where(new_P > ROUNDING * sums_P, 0))
        picked.append(draw(sq_dist_P, picked, rng))
    return torch.tensor(picked)


def fisher_scale(log_probs_PSC: Tensor) -> Tensor:
    """sqrt(p (1 - p)) of the likeliest class."""
    others_P = unlikely_probs(log_probs_PSC).sum(dim=1)
    return (others_P * (1 - others_P)).sqrt()


def mean_fisher(emb_PD: Tensor, scale_P: Tensor) -> Tensor:
    """The mean of v v^T with v = scale * embedding, in float64; 0 if there is no image."""
    D = emb_PD.shape[1]
    fisher_DD = torch.zeros(D, D, dtype=torch.float64)
    rows = max(1, strategies.CHUNK // (8 * D))
    for h, scale in zip(emb_PD.split(rows), scale_P.split(rows), strict=True):
        v = h.double() * scale[:, None]
        fisher_DD.addmm_(v.T, v)
    return fisher_DD / max(1, len(emb_PD))


class Fisher:
    """What BAIT's greedy search needs to know about N images while its matrix M changes by one image at a time.

    An image's vector is v = scale * embedding. inv_DD is the inverse of M; add and remove change it in place.
    """

    def __init__(self, emb_ND: Tensor, scale_N: Tensor, inv_DD: Tensor, fisher_DD: Tensor) -> None:
        """fisher_DD: the pool's mean Fisher information F."""
        self.emb_ND, self.scale_N, self.inv_DD, self.fisher_DD = emb_ND, scale_N, inv_DD, fisher_DD
        self.q_N = self._quadratic(inv_DD)  # v^T M^-1 v
        self.r_N = self._quadratic(inv_DD @ fisher_DD @ inv_DD)  # v^T M^-1 F M^-1 v

    def add(self, i: int) -> None:
        """M + v v^T of image i."""
        self._update(i, 1)

    def remove(self, i: int) -> None:
        """M - v v^T of image i."""
        self._update(i, -1)

    def _update(self, i: int, sign: int) -> None:
        """Update by the formula of Sherman & Morrison (1950)."""
        v_D = self.emb_ND[i].double() * self.scale_N[i]
        u_D = self.inv_DD @ v_D
        step = sign / (1 + sign * (v_D @ u_D))
        fu_D = self.fisher_DD @ u_D
        both_D2 = torch.stack([u_D, self.inv_DD @ fu_D], dim=1)
        vu_N, vw_N = (times(self.emb_ND, both_D2) * self.scale_N[:, None]).unbind(1)
        self.q_N -= step * vu_N.square()
        self.r_N += step**2 * (u_D @ fu_D) * vu_N.square() - 2 * step * vu_N * vw_N
        self.inv_DD -= step * torch.outer(u_D, u_D)

    def _quadratic(self, matrix_DD: Tensor) -> Tensor:
        """v^T matrix v of every image."""

        def form(h: Tensor, scale: Tensor) -> Tensor:
            v = h.double() * scale[:, None]
            return (v @ matrix_DD).mul_(v).sum(dim=1)

        return by_chunks(form, self.emb_ND, self.scale_N, width=8 * self.emb_ND.shape[1])


@needs(embeddings=True, labelled=True, memory=lambda n: 8 * (8 * n.D**2 + 12 * n.P + 3 * 2 * n.k * n.D))
def bait(
    view: PoolView, k: int, rng: torch.Generator, *, regularisation: float = 1.0, oversample: float = 2.0
) -> Tensor:
    """BAIT (Ash et al., 2021, Algorithm 1) with the binary likelihood of Huseljic et al. (2024).

    It minimises tr(M^-1 F) greedily: forward to oversample * k images, then backward to k. F is the pool's mean Fisher
    information. M is regularisation * I + the labelled images' mean + the sum over the chosen images. Without labelled
    images M starts at regularisation * I.
    BAIT's Fisher information of the last layer is C*D x C*D, of rank C for each image. Here it is that of the question
    "is it the likeliest class or not": D x D and of rank one, v v^T with v = sqrt(p (1 - p)) h. A pick costs O(PD), in
    float64.
    """
    if regularisation <= 0 or oversample < 1:
        raise ValueError("regularisation has to be above 0 and oversample at least 1")
    emb_PD, scale_P = view.emb_PD, by_chunks(fisher_scale, view.log_probs_PSC)
    labelled_scale_L = fisher_scale(view.labelled_log_probs_LC[:, None])
    fisher_DD = mean_fisher(emb_PD, scale_P)
    inv_DD = torch.linalg.inv(
        regularisation * torch.eye(len(fisher_DD), dtype=torch.float64)
        + mean_fisher(view.labelled_emb_LD, labelled_scale_L)
    )
    picked = forward(Fisher(emb_PD, scale_P, inv_DD, fisher_DD), min(view.n_pool, round(oversample * k)), rng)
    return picked[backward(Fisher(emb_PD[picked], scale_P[picked], inv_DD, fisher_DD), k, rng)]


def forward(pool: Fisher, n: int, rng: torch.Generator) -> Tensor:
    """n positions. Each pick adds the image that lowers tr(M^-1 F) most, by r / (1 + q)."""
    picked: list[int] = []
    while len(picked) < n:
        gain_P = pool.r_N / (1 + pool.q_N)
        gain_P[picked] = -torch.inf
        picked.append(random_argmax(gain_P, rng))
        pool.add(picked[-1])
    return torch.tensor(picked)


def backward(chosen: Fisher, k: int, rng: torch.Generator) -> Tensor:
    """Which k of the N chosen stay, in order. Each step drops the one that raises tr(M^-1 F) least, by r / (1 - q)."""
    stays_N = torch.ones(len(chosen.q_N), dtype=torch.bool)
    for _ in range(len(chosen.q_N) - k):
        i = random_argmax((-chosen.r_N / (1 - chosen.q_N)).where(stays_N, -torch.inf), rng)
        stays_N[i] = False
        chosen.remove(i)
    return stays_N.nonzero()[:, 0]


def gradient_length_score(log_probs_PSC: Tensor, emb_PD: Tensor) -> Tensor:
    """|h| * sum over classes c of p_c |p - onehot_c|.

    This is the length of the last layer's gradient, in expectation over the predicted labels.
    """
    others_PC = unlikely_probs(log_probs_PSC)
    rest_P, sq_rest_P = others_PC.sum(dim=1), others_PC.square().sum(dim=1)
    sq_probs_P1 = (sq_rest_P + (1 - rest_P).square())[:, None]
    # |p - onehot_c|^2 = |p|^2 - 2 p_c + 1, except for the likeliest class, where this would lose all its digits.
    others_P = (others_PC * (sq_probs_P1 - 2 * others_PC + 1).sqrt()).sum(dim=1)
    likeliest_P = (1 - rest_P) * (sq_rest_P + rest_P.square()).sqrt()
    return sq_length(emb_PD).sqrt() * (others_P + likeliest_P)


@needs(embeddings=True)
def expected_gradient_length(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """EGL (Settles et al., 2008) of the last layer only. The whole net's would take C backward passes an image."""
    width = view.log_probs_PSC[0].numel() + view.emb_PD.shape[1]
    return top_k(by_chunks(gradient_length_score, view.log_probs_PSC, view.emb_PD, width=width), k, rng)
