"""Warnings about odd data: each function returns a sentence for the log and run.json, or nothing."""

from collections.abc import Sequence

import numpy as np
import torch

from al_bench.config import DatasetConfig
from al_bench.data.stressors import Split
from al_bench.options import shipped

THUMBNAILS = "@eaDir"  # where a NAS keeps small copies of images


def tested_and_trained(same: Sequence[Sequence[int]], used: Split) -> tuple[str, ...]:
    """Warn of test images that are training images as well: on them the test measures memory."""
    train, test = ((idx if used.copied_N is None else used.copied_N[idx]) for idx in (used.train_idx, used.test_idx))
    trained = set(train.tolist()) if same else set()
    in_both = [row for group in same if trained.intersection(group) for row in group]
    n = int(torch.isin(test, torch.tensor(in_both, dtype=torch.int64)).sum())
    if not n:
        return ()
    return (
        f"{n:,} of the {len(test):,} test images are byte-identical to training images: on them the test "
        "measures memory. Remove the copies.",
    )


def dark(peak: int | None) -> tuple[str, ...]:
    """Warn of 16-bit images that come out dark. peak: their highest value.

    A 16-bit file need not say that it holds 12 bits. A single dark image looks the same, a whole data set does not.
    """
    bits = max(9, int(peak or 0).bit_length())
    if peak is None or bits > 14:
        return ()
    return (
        f"No value of the 16-bit images is above {peak:,}, and 65,535 is white, so they come out dark. If they hold "
        f"{bits} bits, set dataset.white={2**bits - 1} (grey only).",
    )


def thumbnails(names: Sequence[str]) -> tuple[str, ...]:
    n = sum(f"/{THUMBNAILS}/" in f"/{name}" for name in names)
    return (f"{n:,} of the images lie in {THUMBNAILS}/, thumbnails that a NAS made. Remove them.",) if n else ()


def scale_of_others(c: DatasetConfig, pixels: np.ndarray) -> tuple[str, ...]:
    """Warn where a data set of one's own keeps the mean and std of digits, which the default configuration has.

    pixels: uint8 [N, H, W, channels].
    """
    digits = shipped("dataset", "digits")
    if digits["_target_"] == c._target_ or (c.mean, c.std) != (digits["mean"], digits["std"]):
        return ()
    some = pixels[:: max(1, len(pixels) // 1000)].astype(np.float32) / 255
    mean, std = some.mean((0, 1, 2)), some.std((0, 1, 2))
    if np.allclose(mean, c.mean, atol=0.01) and np.allclose(std, c.std, atol=0.01):
        return ()
    return (
        f"dataset.mean and dataset.std are those of digits. The images of {c.name} have others: set "
        f"dataset.mean={_listed(mean)} dataset.std={_listed(std)}.",
    )


def _listed(values: np.ndarray) -> str:
    return f"[{','.join(f'{value:.2g}' for value in values.tolist())}]"
