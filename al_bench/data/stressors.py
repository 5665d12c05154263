"""What makes a data set hard to label: rare classes, wrong labels, near-duplicates, open-set images.

N images of the data set, T of them for training, C classes. Each function takes a Split and returns another one. Only
`noisy_copies` touches images. All draws depend on the seed alone, so all strategies of a seed share them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from al_bench import rng
from al_bench.config import StressorConfig
from al_bench.data.cache import cached_array, checksum
from al_bench.data.oracle import OPEN_SET
from al_bench.errors import UserError

CHUNK = 1 << 21  # pixel values that get noise at once

UNSTRESSED = StressorConfig()


@dataclass(frozen=True)
class Split:
    """Which image is used for what. labels_N: true labels of test images, the oracle's answers for training images."""

    labels_N: Tensor  # OPEN_SET for an image that belongs to no class
    class_names: tuple[str, ...]
    train_idx: Tensor
    test_idx: Tensor
    copied_N: Tensor | None = None  # which of the source's images image n shows; None: image n itself


def stress(s: StressorConfig, split: Split, seed: int) -> Split:
    """The split after all stressors. Raises UserError if a class would lose its last training image."""
    split = make_open_set(split, s.foreign) if s.foreign else split
    split = long_tail(split, s.imbalance, seed) if s.imbalance > 1 else split
    split = redundant(split, s.images, s.copies, seed)
    _refuse_lost_class(split)
    return noisy_labels(split, s.label_noise, seed) if s.label_noise else split


def make_open_set(split: Split, n: int) -> Split:
    """Make the last n classes open-set: not in the class list and not in the test set, but still in the pool."""
    n_classes = len(split.class_names) - n
    if n_classes < 2:
        raise UserError(
            f"stressor.foreign={n} leaves {max(0, n_classes)} of {len(split.class_names)} classes. Two have to remain."
        )
    labels_N = split.labels_N.where(split.labels_N < n_classes, OPEN_SET)
    test_idx = split.test_idx[labels_N[split.test_idx] != OPEN_SET]
    if not len(test_idx):
        raise UserError(f"stressor.foreign={n} leaves no test image. Lower it.")
    return Split(labels_N, split.class_names[:n_classes], split.train_idx, test_idx)


def long_tail(split: Split, imbalance: float, seed: int) -> Split:
    """Give the classes a long tail: class c of C keeps n * imbalance^(-c / (C - 1)) training images (Cui et al., 2019).

    c is in the order of the class list. n is as large as the classes allow. The seed draws which images are kept. All
    open-set images are kept.
    """
    n_classes, labels_T = len(split.class_names), split.labels_N[split.train_idx]
    share_C = imbalance ** (-torch.arange(n_classes, dtype=torch.float64) / (n_classes - 1))
    there = [split.train_idx[labels_T == c] for c in range(n_classes)]
    n = min(len(idx) / share for idx, share in zip(there, share_C.tolist(), strict=True))
    keep_C = (n * share_C + 1e-6).long().tolist()  # rounding may leave whole numbers slightly too small
    stream = rng.stream(seed, "long_tail")
    kept = [idx[torch.randperm(len(idx), generator=stream)[:k]] for idx, k in zip(there, keep_C, strict=True)]
    others = split.train_idx[labels_T == OPEN_SET]
    return replace(split, train_idx=torch.cat([*kept, others]).sort().values)


def redundant(split: Split, images: int | None, copies: int, seed: int) -> Split:
    """Keep `images` of the training images, drawn by the seed (None: all), and repeat each `copies` times.

    With copies the images are renumbered: test images come first, then the copies, those of one image side by side.
    """
    base = split.train_idx
    if images is not None:
        if images > len(base):
            raise UserError(
                f"stressor.images={images:,} is more than the {len(base):,} training images. "
                "Lower it, or take all of them: stressor.images=null."
            )
        base = base[torch.randperm(len(base), generator=rng.stream(seed, "redundant"))[:images]].sort().values
    if copies == 1:
        return replace(split, train_idx=base)
    copied_N, n_test = torch.cat([split.test_idx, base.repeat_interleave(copies)]), len(split.test_idx)
    everything = torch.arange(len(copied_N))
    return Split(split.labels_N[copied_N], split.class_names, everything[n_test:], everything[:n_test], copied_N)


def noisy_labels(split: Split, rate: float, seed: int) -> Split:
    """Make each training label wrong with probability `rate`, independently. All other classes are equally likely.

    An image always gets the same answer. A label that is wrong at one rate is wrong at each higher rate.
    """
    stream, n = rng.stream(seed, "label_noise"), len(split.train_idx)
    wrong_T = torch.rand(n, generator=stream) < rate
    further_T = torch.randint(1, len(split.class_names), (n,), generator=stream)
    true_T = split.labels_N[split.train_idx]
    noisy_T = torch.where(wrong_T & (true_T != OPEN_SET), (true_T + further_T) % len(split.class_names), true_T)
    return replace(split, labels_N=split.labels_N.index_copy(0, split.train_idx, noisy_T))


def noisy_copies(
    pixels: np.ndarray, images_checksum: str, split: Split, sd: list[float], seed: int, cache_dir: str
) -> tuple[np.ndarray, str]:
    """The images of a redundant split, uint8 [N, H, W, channels], memory-mapped from the cache, and their checksum.

    Every copy has its own Gaussian noise; test images have none. sd: one for each channel or one for all, for images in
    [0, 1]. Values are clipped to 0 and 255. In Kirsch et al. (2019) noise may go below black and above white.
    """
    copied_N, n_test = split.copied_N.numpy(), len(split.test_idx)
    key = {
        "images": images_checksum, "copied": checksum(copied_N), "n_test": n_test, "sd": sd, "seed": seed,
        "noisy_copies": 1,
    }  # fmt: skip

    def fill(out: np.ndarray) -> tuple[int, dict]:
        stream, sd_255 = rng.stream(seed, "noisy_copies"), 255 * torch.tensor(sd)
        rows = max(1, CHUNK // out[0].size)
        for start in range(0, n_test, rows):
            stop = min(start + rows, n_test)
            out[start:stop] = pixels[copied_N[start:stop]]
        for start in range(n_test, len(out), rows):
            clean = torch.from_numpy(pixels[copied_N[start : start + rows]])
            noisy = clean + sd_255 * torch.randn(clean.shape, generator=stream)
            out[start : start + rows] = noisy.round().clamp(0, 255).byte().numpy()
        return len(out), {}

    copies, notes = cached_array(cache_dir, key, (len(copied_N), *pixels.shape[1:]), "uint8", fill)
    return copies, notes["checksum"]


def _refuse_lost_class(split: Split) -> None:
    labels_T = split.labels_N[split.train_idx]
    counts_C = labels_T[labels_T != OPEN_SET].bincount(minlength=len(split.class_names))
    if (counts_C == 0).any():
        raise UserError(
            f"The stressor leaves class {split.class_names[int(counts_C.argmin())]!r} no training image. "
            "Lower stressor.imbalance or raise stressor.images."
        )
