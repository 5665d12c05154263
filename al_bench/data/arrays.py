"""A data set before its images are decoded, and one made of arrays. N images in all, C classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench.config import DatasetConfig
from al_bench.data.cache import checksum
from al_bench.errors import UserError


@dataclass(frozen=True)
class Images:
    pixels: np.ndarray  # uint8 [N, H, W, channels]
    checksum: str
    kept_N: Tensor  # which of the source's images they are
    skipped: tuple[str, ...] = ()  # file names
    same: tuple[tuple[int, ...], ...] = ()  # images whose files are equal to the byte
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set before its images are decoded: enough for a plan."""

    labels_N: Tensor
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # channels, height, width
    test_idx: Tensor | None  # the data's own test split
    read: Callable[[], Images]
    files: tuple[str, ...] = ()  # the name of each image's file, where it has one
    warnings: tuple[str, ...] = ()  # what is odd about the data and stops nothing


def in_memory(
    c: DatasetConfig, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], test_idx: Tensor | None = None
) -> Source:
    """A data set that is in memory. N images, C classes.

    images: uint8 [N, height, width, channels], square. labels: whole numbers [N] from 0 to C - 1. test_idx: int64, the
    images of the test set; None: dataset.test_fraction of all are drawn. Raises UserError where these do not fit.
    """
    _refuse_arrays(c, images, labels, class_names)
    for key in ("white", "max_pixels"):
        if getattr(c, key) is not None:
            raise UserError(f"dataset.{key} is about image files, and dataset {c.name} has none. Leave it out.")
    if c.image_size and c.image_size != images.shape[1]:
        images = _resized(images, c.image_size, c.antialias)
    images = np.ascontiguousarray(images)  # a batch is cut in whole rows
    _, height, width, channels = images.shape
    labels_N = torch.from_numpy(labels.astype(np.int64))

    def read() -> Images:
        return Images(images, checksum(images), torch.arange(len(images)))

    return Source(labels_N, tuple(class_names), (channels, height, width), test_idx, read)


def _refuse_arrays(c: DatasetConfig, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    what = f"dataset {c.name}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(
            f"{what}: images are {images.dtype} {list(images.shape)}, and uint8 [N, size, size, channels] is wanted."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{what}: labels are {labels.dtype} {list(labels.shape)}, and one whole number for each of "
            f"{len(images):,} images is wanted."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise UserError(
            f"{what}: labels go from {labels.min()} to {labels.max()}, and {len(class_names)} classes have names: "
            f"0 to {len(class_names) - 1} are wanted."
        )


def _resized(images: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    chunks = torch.from_numpy(images).permute(0, 3, 1, 2).split(4096)
    resized = [F.interpolate(x.float(), (size, size), mode="bilinear", antialias=antialias) for x in chunks]
    return torch.cat([x.round().clamp(0, 255).byte() for x in resized]).permute(0, 2, 3, 1).numpy()
