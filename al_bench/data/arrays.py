"""A data set before its images are decoded, and one made from arrays. N images in all, C classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench.config import DatasetConfig
from al_bench.data.cache import checksum
from al_bench.errors import UserError


@dataclass(frozen=True)
class Images:
    pixels: np.ndarray  # uint8 [N, H, W, channels], or features float32 [N, D]
    checksum: str
    kept_N: Tensor  # their positions among the source's images
    skipped: tuple[str, ...] = ()  # file names
    same: tuple[tuple[int, ...], ...] = ()  # groups of images whose files are byte-identical
    warnings: tuple[str, ...] = ()
    shown: np.ndarray | None = None  # uint8 [N, H, W, channels], where the pixels are features


@dataclass(frozen=True)
class Source:
    """A data set before its images are decoded: enough for a plan."""

    labels_N: Tensor
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]  # channels, height, width; or the width of features
    test_idx: Tensor | None  # the data's own test split
    read: Callable[[], Images]
    files: tuple[str, ...] = ()  # the name of each image's file, where it has one
    warnings: tuple[str, ...] = ()  # what is odd about the data; none of it stops a run
    labelled: bool = True  # False: labels_N says nothing, a person labels the images


def in_memory(
    c: DatasetConfig, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], test_idx: Tensor | None = None
) -> Source:
    """Make a Source from arrays in memory. N images, C classes.

    images: uint8 [N, height, width, channels], square. labels: whole numbers [N] from 0 to C - 1. test_idx: int64, the
    images of the test set; None: dataset.test_fraction of all images is drawn. Raises UserError if these do not fit.
    """
    _refuse_arrays(c, images, labels, class_names)
    for key in ("white", "max_pixels"):
        if getattr(c, key) is not None:
            raise UserError(f"dataset.{key} is about image files, and dataset {c.name} has none. Leave it out.")
    if c.image_size and c.image_size != images.shape[1]:
        images = _resized(images, c.image_size, c.antialias)
    images = np.ascontiguousarray(images)  # batches are slices of whole rows
    _, height, width, channels = images.shape
    labels_N = torch.from_numpy(labels.astype(np.int64))

    def read() -> Images:
        return Images(images, checksum(images), torch.arange(len(images)))

    return Source(labels_N, tuple(class_names), (channels, height, width), test_idx, read)


def _refuse_arrays(c: DatasetConfig, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    what = f"dataset {c.name}: images have to be uint8 [N, size, size, channels], but are {kind(images)}."
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise UserError(f"{what} {_cure_of_type(images)}")
    if images.ndim != 4:
        raise UserError(f"{what} Grey images need images[..., None]." if images.ndim == 3 else what)
    if images.shape[1] != images.shape[2]:
        last = images.shape[2] == images.shape[3]
        raise UserError(f"{what} " + ("images.transpose(0, 2, 3, 1) puts the channels last." if last else SQUARE))
    what = f"dataset {c.name}: labels have to be one whole number for each of {len(images):,} images"
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{what}, but are {kind(labels)}. {INTEGERS}")
    if labels.shape != images.shape[:1]:
        one_hot = labels.shape == (len(images), len(class_names))
        raise UserError(f"{what}, but are {kind(labels)}." + (" One-hot: labels.argmax(1)." if one_hot else ""))
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise UserError(
            f"dataset {c.name}: labels have to lie between 0 and {len(class_names) - 1}, for {len(class_names)} class "
            f"names, but go from {labels.min()} to {labels.max()}. {INTEGERS}"
        )


SQUARE = "Crop or pad them to squares."
INTEGERS = "names, labels = np.unique(labels, return_inverse=True) makes class names and such labels of any values."


def kind(values: Any) -> str:
    """The type and the shape of an array, for a message."""
    return f"{values.dtype} {list(values.shape)}" if hasattr(values, "dtype") else type(values).__name__


def _cure_of_type(images: Any) -> str:
    if not isinstance(images, np.ndarray):
        return "np.asarray(images) makes an array."
    if np.issubdtype(images.dtype, np.floating) and images.size and 0 <= images.min() <= images.max() <= 1:
        return "(255 * images).round().astype(np.uint8) makes such numbers of values from 0 to 1."
    return "Bring them to values from 0 to 255: images.astype(np.uint8)."


def _resized(images: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    chunks = torch.from_numpy(images).permute(0, 3, 1, 2).split(4096)
    resized = [F.interpolate(x.float(), (size, size), mode="bilinear", antialias=antialias) for x in chunks]
    return torch.cat([x.round().clamp(0, 255).byte() for x in resized]).permute(0, 2, 3, 1).numpy()
