"""Uncertain and different at once: strategies that look at the predictions and at where the images lie.

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
from al_bench.strategies.gradient import KEPT, kept, logit_gradient
from al_bench.strategies.greedy import draw, random_argmax, rounded
from al_bench.strategies.uncertainty import entropy_score, margin_score, mean_log_probs


def cluster_picks(
    emb_PD: Tensor, among_M: Tensor, weight_M: Tensor, k: int, rng: torch.Generator, unit: bool = False
) -> Tensor:
    """k of the images `among`: the nearest to each of k weighted k-means centres. unit: of embeddings of length 1."""

    def rows(at: Tensor) -> Tensor:
        x_ND = emb_PD[among_M[at]].float()
        return F.normalize(x_ND, dim=1) if unit else x_ND

    mean_D = mean_if_far(rows(torch.arange(0, len(among_M), ceil(len(among_M) / SAMPLE))))
    near_0 = rows if mean_D is None else lambda at: rows(at) - mean_D
    centre_KD = fit_centres(near_0, len(among_M), emb_PD.shape[1], k, rng, weight_M)
    return among_M[nearest_to_centres(near_0, len(among_M), centre_KD, rng)]


@needs(embeddings=True, memory=lambda n: fit_memory(n.P, n.D, n.k) + 80 * n.P)
def clue(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """CLUE (Prabhu et al., 2021, Eq. 4): k-means weighted with the entropy, and the nearest image to each centre.

    The softmax has temperature 1. An image whose entropy is 0 weighs nothing and is not chosen either, unless fewer
    than k have more: then those are taken and the rest at random. The paper names plain k-means; for k above 50 it runs
    by mini-batches here: see fit_centres.
    """
    entropy_P = by_chunks(entropy_score, view.log_probs_PSC)
    # Relative, for k-means counts in float32.
    weight_P = (entropy_P / entropy_P.max().clamp_min(1e-300)).float()
    among_M = weight_P.nonzero()[:, 0]
    if len(among_M) <= k:
        return top_k(entropy_P, k, rng)
    return cluster_picks(view.emb_PD, among_M, weight_P[among_M], k, rng)


def agglomerate(x_MD: Tensor, n_clusters: int) -> Tensor:
    """The cluster of each image by agglomeration with average linkage; M^2 / 2 distances."""
    tree = linkage(torch.pdist(x_MD.float()).double().numpy(), "average")
    return torch.from_numpy(fcluster(tree, n_clusters, "maxclust") - 1).long()


def round_robin(cluster_M: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k of the images: one of each cluster, from the smallest cluster to the largest, then another of each. At random
    within a cluster and among clusters of a size."""
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
    """Cluster-Margin (Citovsky et al., 2021, Algorithm 2): of the factor * k images with the least margin, one from
    each cluster in turn, the smallest clusters first.

    The paper clusters the whole pool once, agglomeratively with average linkage, which takes a distance for every two
    images. Here the candidates alone are clustered, in every round, so that cluster_size of them share a cluster on
    average; by k-means where they are more than limit. As in the paper an image is drawn at random from its cluster.
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
    """FALCUN (Gilhuber et al., 2024): draws by (uncertainty + diversity)^gamma, both in the space of probabilities.

    Uncertainty is 1 - margin (Eq. 1). Diversity starts as the uncertainty (Eq. 3) and is then the L1 distance to the
    nearest pick (Eqs. 2, 4), scaled to 0..1 over the pool after each. gamma: at 0 the draw is random, and the larger it
    is the surer is the best image.
    """
    if gamma < 0:
        raise ValueError(f"gamma has to be at least 0, not {gamma}")
    probs = kept(mean_probs, view.log_probs_PSC)
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
    """In how many of `masks` passes with dropout on the embedding the predicted class is not that without."""

    def predicted(x_ND: Tensor) -> Tensor:
        return torch.addmm(bias_C.float(), x_ND.float(), weight_CD.float().T).argmax(dim=1)

    def changed(x_ND: Tensor, class_N: Tensor) -> Tensor:
        keep_ND = torch.rand(x_ND.shape, generator=rng) >= dropout
        return predicted(x_ND.float() * keep_ND / (1 - dropout)) != class_N

    class_P = by_chunks(predicted, emb_PD)
    return sum(by_chunks(changed, emb_PD, class_P).long() for _ in range(masks))


@needs(predictions=False, embeddings=True, head=True, memory=lambda n: fit_memory(n.P, n.D, n.k) + 80 * n.P)
def drop_query(view: PoolView, k: int, rng: torch.Generator, *, masks: int = 3, dropout: float = 0.75) -> Tensor:
    """DropQuery (Gupte et al., 2024): k-means among the images whose class changes in more than half of the passes
    with dropout on the embedding, a mask for each image and pass; the nearest image to each centre.

    Where k or fewer change that often, those with the most changes are taken, equal ones at random. The paper names
    plain k-means; for k above 50 it runs by mini-batches here: see fit_centres.
    """
    if masks < 1 or not 0 <= dropout < 1:
        raise ValueError("masks has to be at least 1, and dropout at least 0 and below 1")
    changes_P = class_changes(view.emb_PD, view.head_weight_CD, view.head_bias_C, masks, dropout, rng)
    among_M = (2 * changes_P > masks).nonzero()[:, 0]
    if len(among_M) <= k:
        return top_k(changes_P, k, rng)
    return cluster_picks(view.emb_PD, among_M, torch.ones(len(among_M)), k, rng)


def flip_score(emb_PD: Tensor, weight_CD: Tensor, bias_C: Tensor, anchor_AD: Tensor) -> Tensor:
    """The least eps at which mixing in some anchor changes the predicted class; inf where none does.

    The closed form (Parvaneh et al., 2022, Eq. 5), alpha = eps / sqrt(D) |z* - z| g / |g| elementwise over z* - z,
    moves z by eps / sqrt(D) |z* - z| along the loss's gradient g = W^T (p - onehot): the anchor z* sets only how far.
    The embeddings with one predicted class are a convex set, so the farthest anchor changes what any other changes, and
    at which eps follows from how fast each logit rises on the way.
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
    """ALFA-Mix (Parvaneh et al., 2022) with alpha in closed form: k-means among the images whose class changes when the
    mean embedding of a labelled class is mixed in a little; the nearest image to each centre.

    As in the authors' code eps grows by step, to 1 at most, until more than k images change, and the embeddings are
    scaled to length 1 before k-means. Where k or fewer change at 1 those are taken, and the rest at random; without
    labelled images all. A class without labels has no anchor (in the authors' code, the mean of all). The paper names
    plain k-means; for k above 50 it runs by mini-batches here: see fit_centres.
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

    Infinite where a neighbour deems possible what the image rules out.
    """
    emb_PD, labelled_LD = centred(view.emb_PD, view.labelled_emb_LD)
    near_emb_LD, norm_L = labelled_LD[:].float(), sq_norms(labelled_LD)
    log_q_LC = mean_log_probs(view.labelled_log_probs_LC[:, None])
    neighbours = min(neighbours, len(norm_L))

    def score(log_probs_NSC: Tensor, x_ND: Tensor) -> Tensor:
        dist_NL = sq_distances(x_ND, near_emb_LD, sq_norms(x_ND), norm_L)
        log_q_NKC = log_q_LC[dist_NL.topk(neighbours, largest=False).indices]
        q_NKC = log_q_NKC.exp()
        terms_NKC = q_NKC * (log_q_NKC - mean_log_probs(log_probs_NSC)[:, None])
        return terms_NKC.where(q_NKC > 0, 0).sum(dim=2).mean(dim=1)

    width = len(norm_L) + emb_PD.shape[1] + 4 * neighbours * view.n_classes
    return by_chunks(score, view.log_probs_PSC, emb_PD, width=width)


@needs(embeddings=True, labelled=True, memory=lambda n: 4 * n.L * n.D + 24 * n.L * n.C)
def cal(view: PoolView, k: int, rng: torch.Generator, *, neighbours: int = 10) -> Tensor:
    """CAL (Margatina et al., 2021, Algorithm 1): images that the net predicts unlike their nearest labelled images.

    Without labelled images the choice is random.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours} and has to be at least 1")
    if not len(view.labelled_labels_L):
        return top_k(torch.zeros(view.n_pool), k, rng)
    return top_k(contrast_score(view, neighbours), k, rng)


def bisect(known_N: Tensor, rng: torch.Generator) -> int:
    """Where on a line to ask next. known_N: 1 of the class, 0 of another, -1 not known, in the order of the line.

    The middle of the shortest stretch of unknowns between a 1 and a 0; where no stretch is left, the unknown nearest
    to where a 1 meets a 0; where none meet, any unknown. Equal ones at random.
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
    """Means over the passes in float64. Several are rounded, for the order of the passes is no reason to choose."""
    mean_NX = probs_NSX.mean(dim=1)
    return mean_NX if probs_NSX.shape[1] == 1 else rounded(mean_NX, 40)


def best_two(log_probs_NSC: Tensor) -> Tensor:
    """The two largest probabilities and the likeliest class [N, 3]."""
    top = pass_means(log_probs_NSC.double().exp()).topk(2, dim=1)
    return torch.cat([top.values, top.indices[:, :1]], dim=1)


@needs(labelled=True, memory=lambda n: 120 * (n.P + n.L))
def galaxy(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """GALAXY (Zhang et al., 2022): for a class, pool and labelled images stand in line by the margin
    p_c - max p_other, and the next pick bisects the shortest stretch between one of the class and one that is not.

    Made for rare classes. The class is drawn at random for each pick, as in the authors' code; with two classes there
    is one line. The paper learns each pick's label before the next. In a batch no label is known, so a pick counts as
    what the net predicts, which bisects towards the net's own boundary. Classes without labelled images on both sides,
    and so all of them where there are no labels, begin with random picks.

    Where we differ further. The paper's margin is p_c - max p, which is 0 for all images that the net takes for the
    class; confidence, p_c, orders these. Ours orders them by p_c - second p. Of equally short stretches the authors'
    code takes the first, from the likeliest image of the class on; we draw. Where no stretch is left, it goes to the
    unknown image nearest to where an image of another class stands directly before one of the class; we go to the one
    nearest to any two known neighbours in line of which one is of the class.
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
