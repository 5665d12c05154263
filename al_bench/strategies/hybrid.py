"""Uncertainty and diversity at once: strategies that use the predictions and how the images differ.

P pool images, L labelled, S stochastic passes or committee members (1 if neither), C classes, D embedding width,
K cluster centres, A anchors, M images among which a strategy chooses, N rows of any kind.
"""

from math import ceil, inf, sqrt

import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from al_bench.strategies import PoolView, by_chunks, joined, needs, top_k
from al_bench.strategies.centred import SAMPLE, centred, mean_if_far
from al_bench.strategies.diversity import cluster, fit_centres, fit_memory, nearest_to_centres, sq_distances, sq_norms
from al_bench.strategies.gradient import KEPT, cached_chunks, logit_gradient
from al_bench.strategies.greedy import draw, random_argmax, rounded
from al_bench.strategies.uncertainty import entropy_score, log_mean_probs, margin_score


def cluster_picks(
    emb_PD: Tensor, among_M: Tensor, weight_M: Tensor, k: int, rng: torch.Generator, unit: bool = False
) -> Tensor:
    """Of the images `among_M` the nearest to each of k weighted k-means centres. unit: scale embeddings to length 1."""

    def rows(at: Tensor) -> Tensor:
        x_ND = emb_PD[among_M[at]].float()
        return F.normalize(x_ND, dim=1) if unit else x_ND

    mean_D = mean_if_far(rows(torch.arange(0, len(among_M), ceil(len(among_M) / SAMPLE))))
    near_0 = rows if mean_D is None else lambda at: rows(at) - mean_D
    centre_KD = fit_centres(near_0, len(among_M), emb_PD.shape[1], k, rng, weight_M)
    return among_M[nearest_to_centres(near_0, len(among_M), centre_KD, rng)]


@needs(embeddings=True, memory=lambda n: fit_memory(n.P, n.D, n.k) + 80 * n.P)
def clue(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """CLUE (Prabhu et al., 2021, Eq. 4): k-means weighted by entropy, and the nearest image to each centre.

    The softmax has temperature 1. An image of entropy 0 has weight 0 and is not chosen, unless fewer than k images have
    a higher entropy. Then those are taken, and the rest is random. The paper names plain k-means. For k above 50 it
    runs by mini-batches here: see fit_centres.
    """
    entropy_P = by_chunks(entropy_score, view.log_probs_PSC)
    # Relative to the largest, because k-means computes in float32.
    weight_P = (entropy_P / entropy_P.max().clamp_min(1e-300)).float()
    among_M = weight_P.nonzero()[:, 0]
    if len(among_M) <= k:
        return top_k(entropy_P, k, rng)
    return cluster_picks(view.emb_PD, among_M, weight_P[among_M], k, rng)


def agglomerate(x_MD: Tensor, n_clusters: int) -> Tensor:
    """The cluster of each image [M] by agglomeration with average linkage. It computes M^2 / 2 distances."""
    tree = linkage(torch.pdist(x_MD.float()).double().numpy(), "average")
    return torch.from_numpy(fcluster(tree, n_clusters, "maxclust") - 1).long()


def round_robin(cluster_M: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k of the images: one of each cluster, from the smallest cluster to the largest, then another of each, and so on.

    The order is random within a cluster and among clusters of equal size.
    """
    size_K = cluster_M.bincount()
    K, turn_K = len(size_K), top_k(-size_K, len(size_K), rng).argsort()
    shuffled_M = torch.randperm(len(cluster_M), generator=rng)
    by_cluster_M = shuffled_M[cluster_M[shuffled_M].argsort(stable=True)]
    sorted_M = cluster_M[by_cluster_M]
    round_M = torch.arange(len(cluster_M)) - (size_K.cumsum(0) - size_K)[sorted_M]
    return by_cluster_M[(round_M * K + turn_K[sorted_M]).argsort()[:k]]


@needs(embeddings=True, memory=lambda n: 10 * min(10 * n.k, n.P, 5000) ** 2 + fit_memory(10 * n.k, n.D, n.k))
def cluster_margin(
    view: PoolView, k: int, rng: torch.Generator, *, factor: int = 10, cluster_size: int = 10, limit: int = 5000
) -> Tensor:
    """Cluster-Margin (Citovsky et al., 2021, Algorithm 2): uncertain images from different clusters.

    The candidates are the factor * k images with the least margin. One is taken from each cluster in turn, the smallest
    clusters first. As in the paper, it is drawn at random from its cluster.

    The paper clusters the whole pool once, agglomeratively with average linkage, which takes a distance for every pair
    of images. Here only the candidates are clustered, in every round, cluster_size of them to a cluster on average. If
    there are more than `limit` candidates, k-means is used.
    """
    if factor < 1 or cluster_size < 1:
        raise ValueError("factor and cluster_size have to be at least 1")
    among_M = top_k(by_chunks(margin_score, view.log_probs_PSC), min(view.n_pool, factor * k), rng)
    if len(among_M) <= k:
        return among_M
    x_MD, n_clusters = view.emb_PD[among_M], ceil(len(among_M) / cluster_size)
    if len(among_M) <= limit:
        cluster_M = agglomerate(x_MD, n_clusters)
    else:
        cluster_M = cluster(centred(x_MD), n_clusters, rng)[1]
    return among_M[round_robin(cluster_M, k, rng)]


def mean_probs(log_probs_PSC: Tensor) -> Tensor:
    return log_probs_PSC.float().exp().mean(dim=1)


@needs(memory=lambda n: 4 * min(n.P * n.C, KEPT) + 80 * n.P)
def falcun(view: PoolView, k: int, rng: torch.Generator, *, gamma: float = 10.0) -> Tensor:
    """FALCUN (Gilhuber et al., 2024): draw images by (uncertainty + diversity)^gamma, both in probability space.

    Uncertainty is 1 - margin (Eq. 1). Diversity starts as the uncertainty (Eq. 3). After each pick it is the L1
    distance to the nearest pick (Eqs. 2, 4), scaled to 0..1 over the pool. With gamma = 0 the draw is uniform. The
    larger gamma is, the likelier is the best image.
    """
    if gamma < 0:
        raise ValueError(f"gamma has to be at least 0, not {gamma}")
    probs = cached_chunks(mean_probs, view.log_probs_PSC)
    uncertain_P = by_chunks(margin_score, view.log_probs_PSC)
    diverse_P, picked = uncertain_P.clone(), []
    while True:
        relevance_P = (uncertain_P + diverse_P).index_fill(0, torch.tensor(picked, dtype=torch.int64), 0)
        picked.append(draw((relevance_P / relevance_P.max().clamp_min(1e-300)) ** gamma, picked, rng))
        if len(picked) == k:
            return torch.tensor(picked)
        p_C = mean_probs(view.log_probs_PSC[picked[-1:]])[0]
        new_P = joined(((part - p_C).abs().sum(dim=1) for part in probs()), view.n_pool)
        diverse_P = torch.minimum(diverse_P, new_P.double())
        diverse_P -= diverse_P.min()
        diverse_P /= diverse_P.max().clamp_min(1e-300)


def class_changes(
    emb_PD: Tensor, weight_CD: Tensor, bias_C: Tensor, masks: int, dropout: float, rng: torch.Generator
) -> Tensor:
    """In how many of `masks` passes with dropout on the embedding the predicted class changes [P]."""

    def predicted(x_ND: Tensor) -> Tensor:
        return torch.addmm(bias_C.float(), x_ND.float(), weight_CD.float().T).argmax(dim=1)

    def changed(x_ND: Tensor, class_N: Tensor) -> Tensor:
        keep_ND = torch.rand(x_ND.shape, generator=rng) >= dropout
        return predicted(x_ND.float() * keep_ND / (1 - dropout)) != class_N

    class_P = by_chunks(predicted, emb_PD)
    return sum(by_chunks(changed, emb_PD, class_P).long() for _ in range(masks))


@needs(predictions=False, embeddings=True, head=True, memory=lambda n: fit_memory(n.P, n.D, n.k) + 80 * n.P)
def drop_query(view: PoolView, k: int, rng: torch.Generator, *, masks: int = 3, dropout: float = 0.75) -> Tensor:
    """DropQuery (Gupte et al., 2024): k-means among the images whose class changes under dropout.

    Dropout acts on the embedding, with a mask for each image and pass. Candidates change class in more than half of the
    passes. The image nearest to each centre is chosen. If there are k candidates or fewer, the images with the most
    changes are taken, ties at random. The paper names plain k-means. For k above 50 it runs by mini-batches here: see
    fit_centres.
    """
    if masks < 1 or not 0 <= dropout < 1:
        raise ValueError("masks has to be at least 1, and dropout at least 0 and below 1")
    changes_P = class_changes(view.emb_PD, view.head_weight_CD, view.head_bias_C, masks, dropout, rng)
    among_M = (2 * changes_P > masks).nonzero()[:, 0]
    if len(among_M) <= k:
        return top_k(changes_P, k, rng)
    return cluster_picks(view.emb_PD, among_M, torch.ones(len(among_M)), k, rng)


def flip_score(emb_PD: Tensor, weight_CD: Tensor, bias_C: Tensor, anchor_AD: Tensor) -> Tensor:
    """The least eps at which mixing in some anchor changes the predicted class [P]; inf if none does.

    The closed form (Parvaneh et al., 2022, Eq. 5) is alpha = eps / sqrt(D) |z* - z| g / |g| elementwise over z* - z. It
    moves z by eps / sqrt(D) |z* - z| along the loss's gradient g = W^T (p - onehot). So the anchor z* sets only how
    far. The embeddings with one predicted class form a convex set. So the farthest anchor changes the class if any
    anchor does, and eps follows from how fast each logit rises on the way.
    """
    W_CD, anchor_AD = weight_CD.double(), anchor_AD.double()
    gram_CC = W_CD @ W_CD.T

    def flips(x_ND: Tensor) -> Tensor:
        z_ND = x_ND.double()
        logits_NC = torch.addmm(bias_C.double(), z_ND, W_CD.T)
        a_NC = logit_gradient(logits_NC.log_softmax(dim=1)[:, None]).double()
        rise_NC = a_NC @ gram_CC
        length_N = (a_NC * rise_NC).sum(dim=1).clamp_min(0).sqrt()
        top_N1 = logits_NC.argmax(dim=1, keepdim=True)
        faster_NC = rise_NC - rise_NC.gather(1, top_N1)
        steps_NC = (logits_NC.gather(1, top_N1) - logits_NC) / faster_NC
        distance_N = steps_NC.where(faster_NC > 0, inf).amin(dim=1) * length_N
        farthest_N = torch.cdist(z_ND, anchor_AD).amax(dim=1)
        return (sqrt(z_ND.shape[1]) * distance_N / farthest_N).where((length_N > 0) & (farthest_N > 0), inf)

    return by_chunks(flips, emb_PD, width=2 * emb_PD.shape[1] + 4 * len(weight_CD) + len(anchor_AD))


@needs(
    predictions=False,
    embeddings=True,
    head=True,
    memory=lambda n: fit_memory(n.P, n.D, n.k) + 80 * n.P + 24 * n.C * (n.C + n.D),
)
def alfa_mix(view: PoolView, k: int, rng: torch.Generator, *, step: float = 0.03125) -> Tensor:
    """ALFA-Mix (Parvaneh et al., 2022), alpha in closed form: k-means among images whose class changes by mixing.

    A little of an anchor, the mean embedding of a labelled class, is mixed in. Of the images whose class changes, the
    nearest to each centre is chosen. As in the authors' code, eps grows by `step`, to 1 at most, until more than k
    images change, and embeddings are scaled to length 1 before k-means. If k or fewer change at 1, those are taken and
    the rest is random. Without labelled images all picks are random. A class without labels has no anchor; in the
    authors' code its anchor is the mean of all. The paper names plain k-means. For k above 50 it runs by mini-batches
    here: see fit_centres.
    """
    if not 0 < step <= 1:
        raise ValueError(f"step is {step} and has to be above 0 and at most 1")
    labels_L = view.labelled_labels_L
    if not len(labels_L):
        return top_k(torch.zeros(view.n_pool), k, rng)
    anchor_AD = torch.stack([view.labelled_emb_LD[labels_L == c].float().mean(dim=0) for c in labels_L.unique()])
    flip_P = flip_score(view.emb_PD, view.head_weight_CD, view.head_bias_C, anchor_AD)
    eps = step
    while eps < 1 and (flip_P < eps).sum() <= k:
        eps = min(1, eps + step)
    among_M = (flip_P < eps).nonzero()[:, 0]
    if len(among_M) <= k:
        return top_k((flip_P < eps).float(), k, rng)
    return cluster_picks(view.emb_PD, among_M, torch.ones(len(among_M)), k, rng, unit=True)


def contrast_score(view: PoolView, neighbours: int) -> Tensor:
    """Mean KL(neighbour's prediction || own prediction) over the nearest labelled images (Margatina et al., 2021).

    It is infinite if a neighbour gives a probability above 0 to a class to which the image gives 0.
    """
    emb_PD, labelled_LD = centred(view.emb_PD, view.labelled_emb_LD)
    near_emb_LD, norm_L = labelled_LD[:].float(), sq_norms(labelled_LD)
    log_q_LC = log_mean_probs(view.labelled_log_probs_LC[:, None])
    neighbours = min(neighbours, len(norm_L))

    def score(log_probs_NSC: Tensor, x_ND: Tensor) -> Tensor:
        dist_NL = sq_distances(x_ND, near_emb_LD, sq_norms(x_ND), norm_L)
        log_q_NKC = log_q_LC[dist_NL.topk(neighbours, largest=False).indices]
        q_NKC = log_q_NKC.exp()
        terms_NKC = q_NKC * (log_q_NKC - log_mean_probs(log_probs_NSC)[:, None])
        return terms_NKC.where(q_NKC > 0, 0).sum(dim=2).mean(dim=1)

    width = len(norm_L) + emb_PD.shape[1] + 4 * neighbours * view.n_classes
    return by_chunks(score, view.log_probs_PSC, emb_PD, width=width)


@needs(embeddings=True, labelled=True, memory=lambda n: 4 * n.L * n.D + 24 * n.L * n.C)
def cal(view: PoolView, k: int, rng: torch.Generator, *, neighbours: int = 10) -> Tensor:
    """CAL (Margatina et al., 2021, Algorithm 1): images whose predictions differ from their labelled neighbours'.

    Without labelled images the choice is random.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours} and has to be at least 1")
    if not len(view.labelled_labels_L):
        return top_k(torch.zeros(view.n_pool), k, rng)
    return top_k(contrast_score(view, neighbours), k, rng)


def bisect(known_N: Tensor, rng: torch.Generator) -> int:
    """The position on a line to query next. known_N: 1 in the class, 0 in another, -1 unknown, in the line's order.

    It is the middle of the shortest stretch of unknowns between a 1 and a 0. If no stretch is left, it is the unknown
    nearest to where a 1 meets a 0. If none meet, it is any unknown. Ties are broken at random.
    """
    unknown = (known_N < 0).nonzero()[:, 0]
    at = (known_N >= 0).nonzero()[:, 0]
    cut = known_N[at].diff() != 0
    start, gap = at[:-1][cut], (at.diff() - 1)[cut]
    if gap.any():
        j = random_argmax((-gap.double()).where(gap > 0, -inf), rng)
        return int(start[j] + 1 + (gap[j] - 1) // 2)
    if not len(start):
        return int(unknown[torch.randint(len(unknown), (1,), generator=rng)])
    after = torch.searchsorted(start, unknown)  # cuts before each unknown
    left, right = start[(after - 1).clamp_min(0)] + 1, start[after.clamp_max(len(start) - 1)]
    distance = torch.minimum(
        (unknown - left).where(after > 0, len(known_N)), (right - unknown).where(after < len(start), len(known_N))
    )
    return int(unknown[random_argmax(-distance.double(), rng)])


def pass_means(probs_NSX: Tensor) -> Tensor:
    """Means over the passes in float64. Several are rounded, so that their order decides nothing."""
    mean_NX = probs_NSX.mean(dim=1)
    return mean_NX if probs_NSX.shape[1] == 1 else rounded(mean_NX, 40)


def best_two(log_probs_NSC: Tensor) -> Tensor:
    """The two largest probabilities and the likeliest class [N, 3]."""
    top = pass_means(log_probs_NSC.double().exp()).topk(2, dim=1)
    return torch.cat([top.values, top.indices[:, :1]], dim=1)


@needs(labelled=True, memory=lambda n: 120 * (n.P + n.L))
def galaxy(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """GALAXY (Zhang et al., 2022): bisect towards the boundary of a class. Made for rare classes.

    For each class, pool and labelled images form a line, ordered by the margin p_c - max p_other. A pick bisects the
    shortest stretch between an image of the class and one of another class. The class is drawn at random for each pick,
    as in the authors' code. With two classes there is one line.

    The paper learns each pick's label before the next pick. In a batch no label is known, so a pick counts as its
    predicted class, which bisects towards the net's own boundary. Classes without labelled images on both sides begin
    with random picks. Without labels these are all classes.

    Further differences:
    - The paper's margin is p_c - max p. It is 0 for all images predicted as the class, and the confidence p_c orders
      these. Ours orders them by p_c - second p.
    - Of equally short stretches the authors' code takes the first, from the likeliest image of the class on. We draw.
    - If no stretch is left, their code takes the unknown image nearest to where an image of another class stands
      directly before one of the class. We take the one nearest to any two known neighbours in the line of which one is
      of the class.
    """
    parts = view.log_probs_PSC, view.labelled_log_probs_LC[:, None]
    first_N, second_N, likeliest_N = torch.cat([by_chunks(best_two, x) for x in parts if len(x)]).unbind(dim=1)
    label_N = torch.cat([torch.full((view.n_pool,), -1), view.labelled_labels_L])
    picked: list[int] = []
    while len(picked) < k:
        c = int(torch.randint(view.n_classes, (1,), generator=rng)) if view.n_classes > 2 else 0
        p_N = torch.cat([pass_means(x[:, :, c].double().exp()) for x in parts])
        margin_N = p_N - second_N.where(likeliest_N == c, first_N)
        shuffled_N = torch.randperm(len(margin_N), generator=rng)
        line_N = shuffled_N[margin_N[shuffled_N].argsort(stable=True)]
        known_N = (label_N == c).long().where(label_N >= 0, -1)
        picked.append(int(line_N[bisect(known_N[line_N], rng)]))
        label_N[picked[-1]] = likeliest_N[picked[-1]].long()
    return torch.tensor(picked)
