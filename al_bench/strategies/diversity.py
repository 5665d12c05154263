"""Diversity: label images that differ from each other and from the labelled ones, whatever the net predicts.

P pool images, L labelled, D embedding width, F width of the fixed features, K clusters, N and M rows of any kind.
Distances are Euclidean, computed as |x|^2 + |y|^2 - 2 <x, y> in blocks of rows, never for all pairs at once.
If the rows lie far from 0, their mean is subtracted first (centred.py).
"""

import warnings
from collections.abc import Callable, Iterator
from math import inf, isqrt

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from al_bench import process, strategies
from al_bench.strategies import PoolView, by_chunks, needs, top_k
from al_bench.strategies.centred import Points, centred
from al_bench.strategies.greedy import draw, random_argmax, rounded

Rows = Callable[[Tensor], Tensor]  # positions -> a float32 copy of those rows

NEIGHBOURS, SMALL, MOST_CLUSTERS = 20, 5, 500  # TypiClust's
AHEAD = 64  # rows of distances that k_center computes together


def sq_norms(x_ND: Points) -> Tensor:
    """Squared lengths minus a millionth of them, so that equal rows have distance exactly 0 in spite of rounding."""
    return by_chunks(lambda x: x.float().square().sum(1) * (1 - 1e-6), x_ND)


def sq_distances(x_ND: Tensor, y_MD: Tensor, norm_N: Tensor, norm_M: Tensor) -> Tensor:
    """Squared distances [N, M] in float32; the norms are those of sq_norms."""
    dist_NM = torch.addmm(norm_M, x_ND.float(), y_MD.float().T, alpha=-2)
    return dist_NM.add_(norm_N[:, None]).clamp_min_(0)


def blocks(n: int) -> Iterator[slice]:
    """Slices of n rows, such that any two of them make a block of at most CHUNK distances."""
    side = max(1, isqrt(strategies.CHUNK))
    return (slice(i, min(i + side, n)) for i in range(0, n, side))


def to_all(y_MD: Tensor, norm_M: Tensor, x_PD: Points, norm_P: Tensor) -> Tensor:
    """Squared distances [M, P] of a few rows to a whole pool."""
    return torch.cat([sq_distances(y_MD, x_PD[p], norm_M, norm_P[p]) for p in blocks(len(x_PD))], 1)


def nearest(x_ND: Points, y_MD: Points) -> tuple[Tensor, Tensor]:
    """For each row of x the squared distance to the nearest row of y, and that row's index; inf and 0 if y is empty."""
    dist_N, index_N = torch.full((len(x_ND),), inf), torch.zeros(len(x_ND), dtype=torch.int64)
    norm_N, norm_M = sq_norms(x_ND), sq_norms(y_MD) if len(y_MD) else None
    for m in blocks(len(y_MD)):
        for n in blocks(len(x_ND)):
            near_N, which_N = sq_distances(x_ND[n], y_MD[m], norm_N[n], norm_M[m]).min(dim=1)
            closer_N = near_N < dist_N[n]
            index_N[n] = torch.where(closer_N, which_N + m.start, index_N[n])
            dist_N[n] = torch.where(closer_N, near_N, dist_N[n])
    return dist_N, index_N


@needs(predictions=False, embeddings=True)
def k_center(view: PoolView, k: int, rng: torch.Generator, *, unit: bool = False) -> Tensor:
    """Repeatedly pick the image farthest from its nearest centre (Sener & Savarese, 2018, Algorithm 1).

    The labelled images are the first centres. Without any, the first pick is random. The paper's costlier robust
    version, a mixed integer programme that may leave outliers uncovered, is not implemented.
    unit: scale embeddings to length 1, so that a long one is not far from all others. The paper takes them as they are.
    """
    x_PD, labelled_LD = view.emb_PD, view.labelled_emb_LD
    if unit:
        x_PD, labelled_LD = (F.normalize(x.float(), dim=1) for x in (x_PD, labelled_LD))
    x_PD, labelled_LD = centred(x_PD, labelled_LD)
    norm_P = sq_norms(x_PD)
    dist_P = nearest(x_PD, labelled_LD)[0]
    width = min(len(x_PD), AHEAD, max(1, strategies.CHUNK // len(x_PD)))
    picked: list[int] = []
    ahead: dict[int, Tensor] = {}
    while True:
        picked.append(i := random_argmax(dist_P, rng))
        if len(picked) == k:
            return torch.tensor(picked)
        if i not in ahead:
            # The next picks are mostly among those farthest now. Many at once cost far less than one by one.
            some = torch.cat([torch.tensor([i]), dist_P.topk(width).indices])[:width]
            ahead = dict(zip(some.tolist(), to_all(x_PD[some], norm_P[some], x_PD, norm_P), strict=True))
        dist_P = torch.minimum(dist_P, ahead[i])
        dist_P[i] = -1


def gather(parts: tuple[Points, ...], rows: Tensor) -> Tensor:
    """A float32 copy of some rows of the concatenated parts. `rows` is in ascending order."""
    found, start = [], 0
    for x in parts:
        found.append(x[rows[(rows >= start) & (rows < start + len(x))] - start].float())
        start += len(x)
    return torch.cat(found)


def fitted_rows(n: int, width: int, n_clusters: int) -> int:
    """How many rows k-means is fitted on: all of 50,000 x 768, fewer than all of larger arrays."""
    return min(n, max(20 * n_clusters, 16 * strategies.CHUNK // max(1, width)))


def seed_rows(x_ND: Tensor, weight_N: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii, 2007): draw rows by weight times squared distance to the nearest drawn row.

    It takes a tenth of the time of scikit-learn's, which tries several rows for each draw, in float64.
    """
    norm_N, dist_N = sq_norms(x_ND), torch.full((len(x_ND),), inf)
    picked = [draw(weight_N, [], rng)]
    while len(picked) < k:
        last = picked[-1:]
        dist_N = torch.minimum(dist_N, to_all(x_ND[last], norm_N[last], x_ND, norm_N)[0])
        picked.append(draw(weight_N * dist_N, [], rng))  # if only copies are left, any row will do
    return x_ND[picked]


def fit_centres(
    rows: Rows, n: int, width: int, n_clusters: int, rng: torch.Generator, weight_N: Tensor | None = None
) -> Tensor:
    """Centres [K, D] of weighted k-means over n rows, fitted on a random part of them if they are many.

    Up to 50 clusters are fitted by Lloyd's algorithm, more by scikit-learn's mini-batches of 1,024 rows, as in
    TypiClust's code. Other papers name plain k-means. Both start from k-means++ over 3 * max(1024, K) random rows.
    Centres of mini-batches are rougher, and some may be nearest to no row.
    """
    part = torch.randperm(n, generator=rng)[: fitted_rows(n, width, n_clusters)]
    weight_N = torch.ones(n) if weight_N is None else weight_N.float()
    some = part[: 3 * max(1024, n_clusters)].sort().values
    options = {
        "init": seed_rows(rows(some), weight_N[some], n_clusters, rng).numpy(),
        "n_init": 1,
        "random_state": int(torch.randint(2**31 - 1, (1,), generator=rng)),
    }
    model = KMeans(n_clusters, copy_x=False, **options) if n_clusters <= 50 else MiniBatchKMeans(n_clusters, **options)
    part = part.sort().values
    with process.one_blas_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: harmless here
        model.fit(rows(part).numpy(), sample_weight=weight_N[part].numpy())
    return torch.from_numpy(model.cluster_centers_).float()


def cluster(parts: tuple[Points, ...], n_clusters: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """k-means centres [K, D] of all rows of the parts, and each row's nearest centre [N]. Centres may have no row."""
    n = sum(len(x) for x in parts)
    centre_KD = fit_centres(lambda at: gather(parts, at), n, parts[0].shape[1], min(n_clusters, n), rng)
    return centre_KD, torch.cat([nearest(x, centre_KD)[1] for x in parts if len(x)])


def distances_to(rows: Rows, at_N: Tensor, centre_KD: Tensor) -> Tensor:
    """Distances [N, K], in float64 and rounded.

    The two images of a cluster of two are equally far from its centre; the rounding of float32 would break that tie.
    """
    x_ND = rows(at_N).double()
    return rounded(torch.cdist(x_ND, centre_KD.double()))


def nearest_to_centres(rows: Rows, n: int, centre_KD: Tensor, rng: torch.Generator) -> Tensor:
    """For each centre, in order, the nearest of n images; if that one is taken, the nearest that is not.

    The images are compared in random order, so that ties are broken at random.
    """
    width, order_M = sum(centre_KD.shape), torch.randperm(n, generator=rng)
    near_K, at_K = torch.full((len(centre_KD),), inf, dtype=torch.float64), torch.zeros(len(centre_KD)).long()
    for part in order_M.split(max(1, strategies.CHUNK // width)):
        near, which = distances_to(rows, part, centre_KD).min(dim=0)
        at_K = part[which].where(near < near_K, at_K)
        near_K = torch.minimum(near, near_K)
    free_M, picked = torch.ones(n, dtype=torch.bool), []
    for j, i in enumerate(at_K.tolist()):
        if not free_M[i]:
            left_M = order_M[free_M[order_M]]
            far_M = by_chunks(lambda at, j=j: distances_to(rows, at, centre_KD[j : j + 1])[:, 0], left_M, width=width)
            i = int(left_M[far_M.argmin()])
        free_M[i] = False
        picked.append(i)
    return torch.tensor(picked)


def fit_memory(n: int, width: int, n_clusters: int) -> float:
    return 8 * fitted_rows(n, width, n_clusters) * width  # bytes: the copied rows, and as much inside scikit-learn


@needs(predictions=False, embeddings=True, memory=lambda n: fit_memory(n.P, n.D, n.k))
def k_means(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """The image nearest to each of k k-means centres (Bodo et al., 2011; Zhdanov, 2019, without his weights).

    Clusters are visited from the largest to the smallest, so that the first picks represent most images. If a centre's
    nearest image is taken, the nearest free one is used. For k above 50 k-means runs by mini-batches: see fit_centres.
    """
    emb = centred(view.emb_PD)
    centre_KD, cluster_P = cluster(emb, k, rng)
    order_K = top_k(cluster_P.bincount(minlength=k).float(), k, rng)
    return nearest_to_centres(lambda at: emb[0][at].float(), view.n_pool, centre_KD[order_K], rng)


def typicality(parts: tuple[Points, ...], members: Tensor) -> Tensor:
    """Inverse mean distance of each member to the 20 nearest other members, or to all if there are fewer.

    It is infinite if these are all copies, and for a single member.
    """
    n_near, found = min(NEIGHBOURS, len(members) - 1), []
    if not n_near:
        return torch.full((1,), inf)
    for n in blocks(len(members)):
        x_ND, near = gather(parts, members[n]), torch.empty(n.stop - n.start, 0)
        for m in blocks(len(members)):
            y_MD = gather(parts, members[m])
            dist_NM = sq_distances(x_ND, y_MD, sq_norms(x_ND), sq_norms(y_MD))
            if m == n:
                dist_NM.fill_diagonal_(inf)  # an image is not its own neighbour
            near = torch.cat([near, dist_NM], 1)
            near = near.topk(min(n_near, near.shape[1]), largest=False).values
        found.append(1 / near.sqrt().mean(dim=1))
    return torch.cat(found)


def typical_order(parts: tuple[Points, ...], cluster_N: Tensor, c: int, rng: torch.Generator) -> list[int]:
    """Positions in the pool of the pool images in cluster c, the least typical first."""
    members = (cluster_N == c).nonzero()[:, 0]
    order = members[top_k(typicality(parts, members), len(members), rng)] - len(parts[0])
    return order[order >= 0].flip(0).tolist()


@needs(predictions=False, features=True, memory=lambda n: fit_memory(n.P + n.L, n.F, min(n.L + n.k, MOST_CLUSTERS)))
def typiclust(view: PoolView, k: int, rng: torch.Generator) -> Tensor:
    """Typical images of the largest clusters without labels (Hacohen, Dekel & Weinshall, 2022, Algorithm 1, TPC_RP).

    k-means divides pool and labelled images together into min(L + k, 500) clusters. Each pick considers the clusters
    with the fewest labelled members, where earlier picks count as labelled. It takes the most typical image of the
    largest of them. Clusters below 5 images wait until the others are used up. A labelled image counts as a neighbour,
    because typicality is a property of the data, not of what is left of it.

    The authors' code differs:
    - It leaves out clusters of 5 images or fewer for good.
    - It sorts the clusters once, by labelled members and size, and goes through them in turn.
    - Neighbours are the unlabelled members of the cluster that are not picked yet, found anew at each pick. It takes
      20, or half of them if these are fewer. We take 20 or all.
    - It averages squared distances. We average distances, as the paper does.
    """
    parts = centred(view.labelled_features_LF, view.features_PF)
    n_labelled = len(parts[0])
    centre_KF, cluster_N = cluster(parts, min(n_labelled + k, MOST_CLUSTERS), rng)
    size_K = cluster_N.bincount(minlength=len(centre_KF))
    labelled_K = cluster_N[:n_labelled].bincount(minlength=len(centre_KF))
    orders: dict[int, list[int]] = {}
    picked: list[int] = []
    while len(picked) < k:
        left_K = labelled_K < size_K
        large_K = left_K & (size_K >= SMALL)
        open_K = large_K if large_K.any() else left_K
        fewest_K = open_K & (labelled_K == labelled_K[open_K].min())
        c = random_argmax(torch.where(fewest_K, size_K, 0), rng)
        if c not in orders:
            orders[c] = typical_order(parts, cluster_N, c, rng)
        picked.append(orders[c].pop())
        labelled_K[c] += 1
    return torch.tensor(picked)
