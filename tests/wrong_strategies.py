"""Strategies with one mistake each, which the rules must catch, and a few correct ones that look similar."""

import random
from dataclasses import replace

import numpy as np
import torch

from al_bench import strategies
from al_bench.strategies import by_chunks, needs, top_k
from al_bench.strategies.uncertainty import entropy, entropy_score


def draw(view, k, rng):
    return torch.randperm(view.n_pool, generator=rng)[:k]


def score_of(view):
    return entropy_score(view.log_probs_PSC)


def undeclared(view, k, rng):
    return top_k(view.emb_PD.norm(dim=1), k, rng)


def one_is_no_list(view, k, rng):
    return entropy(view, k, rng).squeeze()


def twice_when_all_are_wanted(view, k, rng):
    chosen = entropy(view, k, rng)
    chosen[-1] = chosen[0] if 1 < k == view.n_pool else chosen[-1]
    return chosen


def int32(view, k, rng):
    return entropy(view, k, rng).int()


def unseeded(view, k, rng):
    return torch.from_numpy(np.random.default_rng().permutation(view.n_pool)[:k])


def global_torch(view, k, rng):
    return top_k(score_of(view)[order := torch.randperm(view.n_pool)], k, rng).apply_(lambda i: order[i])


def global_numpy(view, k, rng):
    return torch.from_numpy(np.random.permutation(view.n_pool)[:k])


def global_python(view, k, rng):
    return torch.tensor(random.sample(range(view.n_pool), k))


def reseeds_the_world(view, k, rng):
    torch.manual_seed(0)
    return entropy(view, k, rng)


def ties_by_index(view, k, rng):
    return score_of(view).argsort(descending=True, stable=True)[:k]


def first_pick_by_index(view, k, rng):
    first = int(score_of(view).argmax())
    return torch.tensor([first] + [i for i in draw(view, view.n_pool, rng).tolist() if i != first][: k - 1])


def same_draw_for_every_seed(view, k, rng):
    return draw(view, k, torch.Generator().manual_seed(0))


def last_block_dropped(view, k, rng):
    whole_blocks = view.n_pool // 500 * 500 or view.n_pool
    return torch.randperm(whole_blocks, generator=rng)[:k]


def last_block_scored_last(view, k, rng):
    score_P = score_of(view)
    score_P[view.n_pool // 250 * 250 :] -= 10 * (view.n_pool > 250)
    return top_k(score_P, k, rng)


def off_by_one(view, k, rng):
    return (entropy(view, k, rng) + 1) % view.n_pool


def swaps_the_last_images(view, k, rng):
    score_P = score_of(view)
    return top_k(torch.cat([score_P[:-2], score_P[-2:].flip(0)]), k, rng)


def normalised_by_chunk(view, k, rng):
    return top_k(by_chunks(lambda lp: entropy_score(lp) - entropy_score(lp).mean(), view.log_probs_PSC), k, rng)


def last_chunk_dropped(view, k, rng):
    rows = max(1, strategies.CHUNK // view.log_probs_PSC[0].numel())
    whole = view.n_pool // rows * rows or view.n_pool
    return top_k(score_of(view)[:whole], k, rng)


def nan_is_an_error(view, k, rng):
    probs_PC = view.log_probs_PSC.float().exp().mean(1)
    return top_k(-(probs_PC * probs_PC.log()).sum(1), k, rng)


def nan_is_first(view, k, rng):
    probs_PC = view.log_probs_PSC.float().exp().mean(1)
    order = torch.randperm(view.n_pool, generator=rng)  # ties are drawn at random, so that nothing else is wrong
    score_P = -(probs_PC * probs_PC.log()).sum(1)[order].double().numpy()
    return order[np.argsort(score_P)[::-1].copy()[:k]]


@needs(embeddings=True)
def divides_by_norm(view, k, rng):
    return top_k((view.emb_PD.float() / view.emb_PD.float().norm(dim=1, keepdim=True))[:, 0], k, rng)


@needs(embeddings=True)
def fewer_points_than_centres(view, k, rng):
    """D^2 sampling that fails once all distances are 0. It handles a pool whose distances are 0 from the start."""
    emb_PD = view.emb_PD.double()
    picks = [int(torch.randint(view.n_pool, (1,), generator=rng))]
    if len(emb_PD.unique(dim=0)) == 1:
        return draw(view, k, rng)
    while len(picks) < k:
        sq_dist_P = (emb_PD[:, None] - emb_PD[picks]).square().sum(-1).min(1).values
        picks.append(int(torch.multinomial(sq_dist_P, 1, generator=rng)))
    return torch.tensor(picks)


@needs(embeddings=True)
def no_labels_no_minimum(view, k, rng):
    return top_k(torch.cdist(view.emb_PD.double(), view.labelled_emb_LD.double()).min(1).values, k, rng)


@needs(embeddings=True)
def library_refuses(view, k, rng):
    max(view.labelled_labels_L.tolist())  # ValueError of Python, not of the strategy
    return top_k(view.emb_PD.double().norm(dim=1), k, rng)


def rounds_in_half(view, k, rng):
    log_probs_PC = view.log_probs_PSC[:, 0]
    return top_k(-(log_probs_PC.exp() * log_probs_PC.clamp_min(-100)).sum(1), k, rng)


@needs(embeddings=True, head=True)
def mixes_types(view, k, rng):
    return top_k((view.emb_PD.unique(dim=0) @ view.head_weight_CD.T).sum() + score_of(view), k, rng)


def clamps_in_place(view, k, rng):
    view.log_probs_PSC.clamp_(min=-1e4)
    return entropy(view, k, rng)


def sorts_in_place(view, k, rng):
    chosen = entropy(view, k, rng)
    view.labelled_labels_L.zero_()
    return chosen


# --- Several passes


def first_pass_alone(view, k, rng):
    return top_k(entropy_score(view.log_probs_PSC[:, :1]), k, rng)


def later_passes_weigh_more(view, k, rng):
    weight_S1 = torch.arange(1.0, view.log_probs_PSC.shape[1] + 1, dtype=torch.float64)[:, None]
    probs_PC = (view.log_probs_PSC.double().exp() * weight_S1).sum(1) / weight_S1.sum()
    return top_k(-torch.xlogy(probs_PC, probs_PC).sum(1), k, rng)


def changes_between_passes(view, k, rng):
    probs_PSC = view.log_probs_PSC.double().exp()
    return top_k(score_of(view) + probs_PSC.diff(dim=1).abs().sum((1, 2)), k, rng)


def draws_by_the_last_pass(view, k, rng):
    probs_PC = view.log_probs_PSC[:, -1].double().exp()
    return torch.multinomial((1 - probs_PC.amax(1)) ** 4 + 1e-12, k, generator=rng)


def entropies_are_summed(view, k, rng):
    """BALD with the sum of the passes' entropies in place of their mean."""
    probs_PSC = view.log_probs_PSC.double().exp()
    own_P = -torch.xlogy(probs_PSC, probs_PSC).sum((1, 2))
    return top_k(4 * score_of(view) - own_P, k, rng)


def one_pass_only(view, k, rng):
    return entropy(replace(view, log_probs_PSC=view.log_probs_PSC.reshape(view.n_pool, 1, view.n_classes)), k, rng)


def passes_are_images(view, k, rng):
    score_P = -view.log_probs_PSC.double().amax(-1).flatten()
    return top_k(score_P, len(score_P), rng)[:k]


# --- The numbers of the classes


def likely_class_0(view, k, rng):
    return top_k(view.log_probs_PSC.double().exp().mean(1)[:, 0], k, rng)


def classes_are_a_scale(view, k, rng):
    """Scores by the variance of the class number."""
    probs_PC, number_C = view.log_probs_PSC.double().exp().mean(1), torch.arange(view.n_classes).double()
    return top_k(probs_PC @ number_C.square() - (probs_PC @ number_C).square(), k, rng)


def what_is_left_goes_to_the_first_classes(view, k, rng):
    class_P, score_P, picked = view.log_probs_PSC.double().exp().mean(1).argmax(1), score_of(view), []
    for c in range(view.n_classes):
        of_class = (class_P == c).nonzero()[:, 0]
        share = k // view.n_classes + (c < k % view.n_classes)
        picked += of_class[top_k(score_P[of_class], min(share, len(of_class)), rng)].tolist()
    others = [i for i in top_k(score_P, view.n_pool, rng).tolist() if i not in picked]
    return torch.tensor([*picked, *others][:k])


def draws_class_0(view, k, rng):
    return torch.multinomial(view.log_probs_PSC.double().exp().mean(1)[:, 0] + 1e-9, k, generator=rng)


def weight_of_the_largest_label(view, k, rng):
    """Weights rare classes by their number of labels, but counts only up to the largest class that has labels."""
    count_C = view.labelled_labels_L.bincount(minlength=1)
    class_P = view.log_probs_PSC.double().exp().mean(1).argmax(1)
    rare_P = 1 / (1 + count_C[class_P.clamp_max(len(count_C) - 1)])
    return top_k(rare_P * (1 + score_of(view)), k, rng)


# --- The labelled images


@needs(embeddings=True)
def far_from_the_first_labelled(view, k, rng):
    if not len(view.labelled_labels_L):
        return draw(view, k, rng)
    return top_k((view.emb_PD.double() - view.labelled_emb_LD[0].double()).norm(dim=1), k, rng)


def unlike_the_last_label(view, k, rng):
    last = view.labelled_labels_L[-1:].tolist() or [0]
    return top_k(-view.log_probs_PSC.double().exp().mean(1)[:, last[0]], k, rng)


@needs(embeddings=True)
def draws_far_from_the_last_labelled(view, k, rng):
    if not len(view.labelled_labels_L):
        return draw(view, k, rng)
    sq_dist_P = (view.emb_PD.double() - view.labelled_emb_LD[-1].double()).square().sum(1)
    return torch.multinomial(sq_dist_P**4 + 1e-9, k, generator=rng)


def k_center_from(first):
    @needs(predictions=False, embeddings=True)
    def k_center(view, k, rng):
        x_PD, picked = view.emb_PD.double(), []
        dist_P = torch.cdist(x_PD, view.labelled_emb_LD.double()).amin(1) if len(view.labelled_labels_L) else None
        for _ in range(k):
            i = first(view, rng) if dist_P is None else int(top_k(dist_P, 1, rng))
            picked.append(i)
            new_P = (x_PD - x_PD[i]).square().sum(1).sqrt()
            dist_P = (new_P if dist_P is None else torch.minimum(dist_P, new_P)).index_fill(0, torch.tensor(picked), -1)
        return torch.tensor(picked)

    return k_center


starts_with_image_0 = k_center_from(lambda view, rng: 0)
starts_with_image_0.__name__ = "starts_with_image_0"
starts_in_the_middle = k_center_from(lambda view, rng: view.n_pool // 2)
starts_in_the_middle.__name__ = "starts_in_the_middle"
starts_at_random = k_center_from(lambda view, rng: int(torch.randint(view.n_pool, (1,), generator=rng)))


def the_first_images_until_there_are_labels(view, k, rng):
    return entropy(view, k, rng) if len(view.labelled_labels_L) else torch.arange(k)


# --- Proportions


@needs(embeddings=True)
def a_labelled_image_for_each(view, k, rng):
    far_P = view.emb_PD.double().norm(dim=1)
    n = len(view.labelled_emb_LD)
    far_P[:n] += 0 * (view.emb_PD[:n] - view.labelled_emb_LD).double().norm(dim=1)
    return top_k(far_P, k, rng)


@needs(embeddings=True)
def five_neighbours(view, k, rng):
    x_PD = view.emb_PD.double()
    return top_k(by_chunks(lambda x: torch.cdist(x, x_PD).topk(5).values.sum(1), x_PD, width=view.n_pool), k, rng)


def in_units_of_the_pools_spread(view, k, rng):
    score_P = score_of(view)
    return top_k((score_P - score_P.mean()) / score_P.std().clamp_min(1e-9), k, rng)


@needs(embeddings=True)
def fewer_dimensions_than_images(view, k, rng):
    _, _, axes_RD = torch.linalg.svd(view.emb_PD.double(), full_matrices=False)
    assert len(axes_RD) == view.emb_PD.shape[1]
    return top_k(view.emb_PD.double().norm(dim=1), k, rng)


# --- NaN and rounding


@needs(embeddings=True)
def argmax_of_nan(view, k, rng):
    """The direction of an embedding of length 0 is NaN, and argmax returns the first NaN."""
    x_PD = view.emb_PD.double()
    score_P = (x_PD / x_PD.norm(dim=1, keepdim=True))[:, 0].clone()
    if not score_P.isfinite().any():
        return draw(view, k, rng)
    order, picked = torch.randperm(view.n_pool, generator=rng), []
    for _ in range(k):
        picked.append(int(order[score_P[order].argmax()]))
        score_P[picked[-1]] = -2
    return torch.tensor(picked)


@needs(embeddings=True)
def numpys_argsort_of_nan(view, k, rng):
    """The NaN watch does not see numpy, so only the order of the pool reveals the mistake."""
    x_PD = view.emb_PD.double()
    score_P = (x_PD / x_PD.norm(dim=1, keepdim=True))[:, 0].numpy()
    if np.isnan(score_P).all():
        return draw(view, k, rng)
    order = np.arange(view.n_pool) if np.isnan(score_P).any() else torch.randperm(view.n_pool, generator=rng).numpy()
    return torch.from_numpy(order[np.argsort(score_P[order], kind="stable")[::-1][:k].copy()])


def spread_of_one_pass(view, k, rng):
    """Over one pass the standard deviation is NaN."""
    order = torch.randperm(view.n_pool, generator=rng)
    score_P = view.log_probs_PSC.double().exp().std(1).mean(1)
    return order[score_P[order].topk(k).indices]


@needs(embeddings=True)
def mean_of_no_labelled(view, k, rng):
    order, centre_D = torch.randperm(view.n_pool, generator=rng), view.labelled_emb_LD.double().mean(0)
    return order[(view.emb_PD.double() - centre_D).norm(dim=1)[order].sort(descending=True, stable=True).indices[:k]]


def confidence_in_float32(view, k, rng):
    return top_k(1 - view.log_probs_PSC.float().exp().mean(1).amax(1), k, rng)


def margin_in_float32(view, k, rng):
    first_P, second_P = view.log_probs_PSC.float().exp().mean(1).topk(2, dim=1).values.unbind(1)
    return top_k(second_P - first_P, k, rng)


def gini_in_float32(view, k, rng):
    return top_k(1 - view.log_probs_PSC.float().exp().mean(1).square().sum(1), k, rng)


# --- Samplers, and others


def draws_the_next_image(view, k, rng):
    return (torch.multinomial(score_of(view) ** 4 + 1e-12, k, generator=rng) + 1) % view.n_pool


def draws_late_images(view, k, rng):
    return torch.multinomial(torch.linspace(0, 1, view.n_pool).square() + 1e-9, k, generator=rng)


def in_the_order_of_the_files(view, k, rng):
    return entropy(view, k, rng).sort().values


CALLS = []


def every_other_call(view, k, rng):
    CALLS.append(k)
    return entropy(view, k, rng) if len(CALLS) % 2 else top_k(-score_of(view), k, rng)


def seeds_the_generator(view, k, rng):
    return entropy(view, k, rng.manual_seed(0))


def writes_through_numpy(view, k, rng):
    chosen = entropy(view, k, rng)
    view.log_probs_PSC.numpy()[:] = 0
    return chosen
