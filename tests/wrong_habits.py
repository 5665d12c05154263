"""Strategies that misuse the process: its settings, memory or time. A few correct ones are among them."""

import math
import os
import signal
import sys
import warnings
from functools import cache

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from wrong_strategies import score_of

from al_bench.strategies import by_chunks, needs, top_k
from al_bench.strategies.uncertainty import entropy

# --- Settings of the process


def with_side_effect(act, name):
    def strategy(view, k, rng):
        act()
        return entropy(view, k, rng)

    strategy.__name__ = name
    return strategy


sets_default_dtype = with_side_effect(lambda: torch.set_default_dtype(torch.float64), "sets_default_dtype")
SETTERS = [
    sets_default_dtype,
    with_side_effect(lambda: torch.set_num_threads(1 + (torch.get_num_threads() == 1)), "sets_threads"),
    with_side_effect(lambda: torch.set_grad_enabled(False), "turns_gradients_off"),
    with_side_effect(lambda: torch.use_deterministic_algorithms(True), "asks_for_determinism"),
    with_side_effect(lambda: torch.set_float32_matmul_precision("medium"), "lowers_precision"),
    with_side_effect(lambda: np.seterr(all="ignore"), "silences_numpy"),
    with_side_effect(lambda: warnings.simplefilter("ignore"), "silences_warnings"),
    with_side_effect(lambda: os.environ.update(OMP_NUM_THREADS="64"), "changes_the_environment"),
    with_side_effect(lambda: os.chdir("/"), "changes_the_folder"),
    with_side_effect(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), "ignores_sigterm"),
    with_side_effect(lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 9000), "deepens_recursion"),
]


def a_thread_each(view, k, rng):
    """Splits the ranking into one part per thread and interleaves the parts."""
    parts = top_k(score_of(view), view.n_pool, rng).chunk(torch.get_num_threads())
    return torch.stack([part[: min(map(len, parts))] for part in parts], 1).flatten()[:k]


def only_with_many_threads(view, k, rng):
    return entropy(view, k, rng) if torch.get_num_threads() == 1 else top_k(-score_of(view), k, rng)


# --- What is kept, memory, time

KEPT = []


def keeps_the_view(view, k, rng):
    KEPT[:] = [view]
    return entropy(view, k, rng)


def keeps_an_array(view, k, rng):
    KEPT[:] = [view.log_probs_PSC.numpy()]
    return entropy(view, k, rng)


def keeps_a_row(view, k, rng):
    KEPT[:] = [view.log_probs_PSC[0]]
    return entropy(view, k, rng)


@cache
def scores_of(view):
    return score_of(view)


def keeps_what_it_is_asked_with(view, k, rng):
    return top_k(scores_of(view), k, rng)


def scores_by_size(view, k, rng):
    """Scores all pools of one size like the first pool of that size."""
    if (view.n_pool, view.log_probs_PSC.shape) not in SCORES:
        SCORES[view.n_pool, view.log_probs_PSC.shape] = score_of(view)
    return top_k(SCORES[view.n_pool, view.log_probs_PSC.shape], k, rng)


SCORES = {}


@needs(embeddings=True)
def all_distances(view, k, rng):
    return top_k(torch.cdist(view.emb_PD.double(), view.emb_PD.double()).mean(1), k, rng)


@needs(embeddings=True)
def all_neighbours(view, k, rng):
    """Takes one byte for each pair of images."""
    x_PD = view.emb_PD.double()
    near = [torch.cdist(x, x_PD) < 1 for x in x_PD.split(100)]
    return top_k(torch.cat(near).sum(1) + 1e-3 * x_PD.norm(dim=1), k, rng)


@needs(embeddings=True)
def all_distances_of_scipy(view, k, rng):
    return top_k(torch.from_numpy(squareform(pdist(view.emb_PD.double().numpy())).mean(1)), k, rng)


def all_pairs_of_numpy(view, k, rng):
    score_P = score_of(view).numpy()
    return top_k(torch.from_numpy(np.abs(score_P[:, None] - score_P).sum(1)), k, rng)


@needs(embeddings=True, memory=lambda size: 9 * size.P**2)
def all_distances_declared(view, k, rng):
    return all_distances(view, k, rng)


@needs(embeddings=True, memory=lambda size: 8 * size.P)
def all_distances_declared_too_low(view, k, rng):
    return all_distances(view, k, rng)


@needs(embeddings=True)
def distances_by_chunks(view, k, rng):
    x_PD = view.emb_PD.double()
    return top_k(by_chunks(lambda x: torch.cdist(x, x_PD).mean(1), x_PD, width=view.n_pool), k, rng)


@needs(embeddings=True)
def distances_by_own_blocks(view, k, rng):
    x_PD = view.emb_PD.double()
    return top_k(torch.cat([torch.cdist(x, x_PD).mean(1) for x in x_PD.split(1024)]), k, rng)


def image_by_image(view, k, rng):
    """Compares each pair of images in Python."""
    x_P = score_of(view).tolist()
    return top_k(torch.tensor([sum(sum(math.sin(i * x - y) for i in range(5)) for y in x_P) for x in x_P]), k, rng)


# --- The end of the process


def leaves_the_process(view, k, rng):
    sys.exit()


def asks_for_too_much(view, k, rng):
    raise Exit


class Exit(BaseException):
    pass
