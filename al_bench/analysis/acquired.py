"""What strategies acquired: how redundant, how balanced, how alike. A acquired images, C classes, M runs."""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as tests


def originals(idx: np.ndarray, info: dict[str, Any], config: dict[str, Any]) -> np.ndarray:
    """For training images of a redundant pool, as records name them: equal numbers are copies of one image.

    info: the run.json; config: with dotted keys.
    """
    return (idx - info["dataset"]["n_test"]) // config["stressor.copies"]


def duplicate_share(source_A: ArrayLike) -> float:
    """Share of the acquired images that are another copy of one acquired before; source_A: what each is a copy of."""
    source_A = np.asarray(source_A)
    return 1 - len(np.unique(source_A)) / len(source_A) if len(source_A) else 0.0


def label_entropy(counts_C: ArrayLike) -> float:
    """Shannon entropy of the acquired labels / log C: 1 is balanced, 0 is one class only (or nothing acquired)."""
    counts_C = np.asarray(counts_C)
    several = len(counts_C) > 1 and counts_C.sum() > 0
    return float(tests.entropy(counts_C) / log(len(counts_C))) if several else 0.0


def jaccard(acquired_M: Sequence[ArrayLike]) -> np.ndarray:
    """Overlap of what each two of M runs acquired, |both| / |either|: [M, M]. Two that have nothing are alike: 1."""
    acquired_of = [np.asarray(indices, int) for indices in acquired_M]
    has_MN = np.zeros((len(acquired_of), 1 + max((b.max(initial=0) for b in acquired_of), default=0)), np.float32)
    for has_N, indices in zip(has_MN, acquired_of, strict=True):
        has_N[indices] = 1
    both_MM, size_M = has_MN @ has_MN.T, has_MN.sum(1)
    either_MM = size_M[:, None] + size_M - both_MM
    return np.divide(both_MM, either_MM, out=np.ones_like(both_MM), where=either_MM > 0)
