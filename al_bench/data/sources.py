"""Where images come from: one function for each source returns a Source; `load` turns it into (Dataset, Oracle).

A function of the user's has the same signature: (c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source.
arrays.in_memory makes a Source from arrays.
"""

import functools
import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from al_bench import rng
from al_bench.config import DatasetConfig, OnBadImage, StressorConfig
from al_bench.data import Dataset, layout, oddities, stressors
from al_bench.data.arrays import Images, Source, in_memory
from al_bench.data.cache import checksum
from al_bench.data.decode import complaint, decode
from al_bench.data.files import ImageFiles, files_in, stamp
from al_bench.data.idx import packed
from al_bench.data.listing import write_listing
from al_bench.data.oracle import Oracle
from al_bench.data.stressors import UNSTRESSED, Split
from al_bench.errors import UserError, failure_of, users_code
from al_bench.imports import function
from al_bench.known import Known
from al_bench.text import one_line

log = logging.getLogger("al_bench")

FROM_FILES = ("al_bench.data.sources.image_folder", "al_bench.data.sources.dogs_vs_cats")
PHOTO_SIZE = 64  # pixels, if neither dataset.image_size nor the model asks for a size


def find(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """The Source of a data set, checked. model_size: the model's input size; dataset.image_size takes precedence."""
    read_from = stamp(c.root) if c._target_ in FROM_FILES and c.root else ()
    settings = Known((repr(c), read_from), c)
    # Only where files tell of a change: a user's function may make other data each time.
    return (_found if read_from else _found.__wrapped__)(settings, model_size, cache_dir)


@functools.lru_cache(1)
def _found(settings: Known[DatasetConfig], model_size: int | None, cache_dir: str) -> Source:
    """The same, once for all runs of a process on the same files."""
    c = settings.value
    source = _make_source(c, model_size, cache_dir)
    if source.labelled:
        _refuse_empty_class(c, source.labels_N, source.class_names, "image")
    channels = source.image_shape[0]
    if len(c.mean) not in (1, channels):
        raise UserError(
            f"dataset.mean and dataset.std have {len(c.mean)} values, and the images of {c.name} have {channels} "
            "channels: one value for all of them, or one for each."
        )
    if len(source.class_names) < 2:
        names = ", ".join(map(one_line, source.class_names))
        raise UserError(f"dataset {c.name} has one class only ({names}): there is nothing to learn. Add another.")
    return source


def _make_source(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """What dataset._target_ returns. Raises UserError if a user's function fails."""
    make = function("dataset._target_", c._target_)
    if c._target_.startswith("al_bench."):
        return make(c, model_size, cache_dir)
    called = " It is called as (config.dataset, model_size, cache_dir), and returns in_memory(...)."
    with users_code(failure_of(f"dataset {c.name}: {c._target_}", called)):
        source = make(c, model_size, cache_dir)
    if not isinstance(source, Source):
        raise UserError(
            f"dataset {c.name}: {c._target_} returned {type(source).__name__}, and a Source is wanted: "
            "al_bench.data.arrays.in_memory makes one of arrays."
        )
    return source


def load(
    c: DatasetConfig, source: Source, seed: int, stressor: StressorConfig = UNSTRESSED, cache_dir: str = "",
    list_in: Path | None = None,
) -> tuple[Dataset, Oracle]:  # fmt: skip
    """Decode the images and apply the stressors. list_in: the folder for the table of which image an index is."""
    images = source.read()
    used = stressed(c, source, images.kept_N, seed, stressor)
    if images.skipped:
        log.warning(f"dataset.on_bad_image=skip left out {len(images.skipped):,} files; run.json names them.")
    odd = (*oddities.tested_and_trained(images.same, used), *oddities.scale_of_others(c, images.pixels))
    warnings = (*source.warnings, *images.warnings, *odd)
    for warning in warnings:
        log.warning(warning)
    pixels, seen = images.pixels, images.checksum
    if used.copied_N is not None:
        sd = [stressor.noise * std for std in c.std]
        pixels, seen = stressors.noisy_copies(pixels, seen, used, sd, seed, cache_dir)
    values = torch.from_numpy(pixels)
    dataset = Dataset(
        name=c.name,
        # Images are stored as [N, H, W, C]: batches are channels_last. Features are [N, D].
        images=values.permute(0, 3, 1, 2) if values.ndim == 4 else values,
        train_idx=used.train_idx,
        test_idx=used.test_idx,
        test_labels_V=used.labels_N[used.test_idx],
        class_names=used.class_names,
        mean=tuple(c.mean),
        std=tuple(c.std),
        checksum=hashlib.sha256((seen + checksum(source.labels_N[images.kept_N].numpy())).encode()).hexdigest(),
        skipped=images.skipped,
        warnings=warnings,
        listing=_listing(list_in, source, images.kept_N, used) if list_in else None,
        shown=None if images.shown is None else torch.from_numpy(images.shown).permute(0, 3, 1, 2),
    )
    return dataset, Oracle(used.labels_N, used.train_idx)


def _listing(folder: Path, source: Source, kept_N: Tensor, used: Split) -> Path | None:
    """Write the listing with the source's classes. It shows neither label noise nor which classes are open-set."""
    shown_N = (kept_N if used.copied_N is None else kept_N[used.copied_N]).tolist()
    labels_N, names = source.labels_N.tolist(), source.class_names
    files = [source.files[i] for i in shown_N] if source.files else []
    return write_listing(folder, files, (names[labels_N[i]] if source.labelled else "" for i in shown_N))


def stressed(c: DatasetConfig, source: Source, kept_N: Tensor, seed: int, stressor: StressorConfig) -> Split:
    """The split after all stressors and the oracle's answers. No image is decoded."""
    if stressor.copies > 1 and len(source.image_shape) == 1:
        raise UserError(
            f"stressor.copies={stressor.copies} adds noise to pixels, and dataset {c.name} holds features. "
            "Set stressor.copies=1."
        )
    labels_N = source.labels_N[kept_N]
    train_idx, test_idx = split(c, source, kept_N, seed)
    plain = Split(labels_N, source.class_names, train_idx, test_idx)
    if not source.labelled:  # config.py refuses all stressors
        return plain
    _refuse_empty_class(c, labels_N[train_idx], source.class_names, "training image")
    return stressors.stress(stressor, plain, seed)


def split(c: DatasetConfig, source: Source, kept: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(train_idx, test_idx): the data's own split, or a random dataset.test_fraction drawn by the seed."""
    if source.test_idx is not None:
        is_test = torch.isin(kept, source.test_idx)
    elif c.test_fraction is None:
        raise UserError(f"dataset {c.name} has no test split of its own: set dataset.test_fraction, 0.2 for example.")
    else:
        # A person labels test images before it is known which files cannot be decoded: they are drawn from all files.
        n = len(kept) if source.labelled else len(source.labels_N)
        is_test = draw_test(n, c.test_fraction, seed)
        is_test = is_test if source.labelled else is_test[kept]
    if not is_test.any() or is_test.all():
        raise UserError(
            f"dataset {c.name}: {len(kept)} images cannot be split into training and test. "
            "Add images or change dataset.test_fraction."
        )
    return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]


def draw_test(n: int, fraction: float, seed: int) -> Tensor:
    """bool [n]: which images are the test set, a random share drawn by the seed."""
    is_test = torch.zeros(n, dtype=torch.bool)
    is_test[torch.randperm(n, generator=rng.stream(seed, "test_split"))[: round(n * fraction)]] = True
    return is_test


def digits(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    from sklearn.datasets import load_digits

    if c.root is not None:
        raise UserError(f"dataset.root={c.root}: digits reads no files. Say what lies there: dataset=image_folder, ...")
    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return in_memory(c, images, labels, tuple("0123456789"), None)


def dogs_vs_cats(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    root = _root(c)
    if (root / "train.zip").exists() and not (root / "train").exists():
        root = root / "train.zip"
    files = files_in(str(root))
    kinds = layout.cat_or_dog(files.names)
    if not kinds:
        raise UserError(
            f"dataset.root={root}: none of its {len(files.names)} files is named cat.* or dog.*, or lies in Cat/ or "
            "Dog/. Give Kaggle's zip, its train.zip, the extracted folder, or PetImages."
        )
    strangers = {name: "neither cat.* nor dog.*" for name, kind in kinds.items() if kind not in ("cat", "dog")}
    if strangers and c.on_bad_image is OnBadImage.stop:
        raise UserError(complaint(files.where, strangers))
    labels = {name: ("cat", "dog").index(kind) for name, kind in kinds.items() if name not in strangers}
    layout.refuse_merging(c, kinds)
    found = LabelledFiles(files, labels, ("cat", "dog"), skipped=tuple(strangers))
    return from_files(c, found, model_size, cache_dir)


def image_folder(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """A folder, or a zip of one, with a sub-folder for each class; train/ and test/ above them are the split."""
    files = files_in(str(_root(c)))
    base = ""
    while len(top := layout.subfolders(files, base)) == 1 and layout.subfolders(files, f"{base}{top[0]}/"):
        base += f"{top[0]}/"  # an archive often has one folder around everything
    is_split = {"train", "test"} <= set(top)
    home = f"{base}train/" if is_split else base
    lost = {name: why for name, why in files.faults.items() if name.rpartition("/")[0] == home.rstrip("/")}
    if lost and c.on_bad_image is OnBadImage.stop:  # a dead link may have been a class
        raise UserError(complaint(files.where, lost))
    train = layout.by_class(files, home)
    test = layout.by_class(files, f"{base}test/") if is_split else {}
    class_names = tuple(layout.subfolders(files, home))
    if not is_split:
        layout.refuse_unnamed_split(c, top, (layout.subfolders(files, f"{base}{part}/") for part in top))
    layout.refuse_layout(c, top, class_names, test)
    layout.refuse_unreadable_name(c, class_names)
    labels = {name: class_names.index(folder) for name, folder in (train | test).items()}
    found = LabelledFiles(files, labels, class_names, frozenset(test), tuple(lost))
    return from_files(c, found, model_size, cache_dir)


@dataclass(frozen=True)
class LabelledFiles:
    files: ImageFiles
    labels: dict[str, int]  # the class of each file that is used; the others are left out
    class_names: tuple[str, ...]
    test: frozenset[str] = frozenset()  # files of the data's own test split
    skipped: tuple[str, ...] = ()


def from_files(c: DatasetConfig, found: LabelledFiles, model_size: int | None, cache_dir: str) -> Source:
    labels = found.labels
    files = replace(found.files, sizes={name: found.files.sizes[name] for name in labels})
    size = c.image_size or model_size or PHOTO_SIZE

    def read() -> Images:
        pixels, notes = decode(files, size, c, cache_dir)
        bad = set(notes["skipped"])
        kept = [row for row, name in enumerate(files.names) if name not in bad]
        skips = (*found.skipped, *notes["skipped"])
        same = tuple(map(tuple, notes["same"]))
        return Images(pixels, notes["checksum"], torch.tensor(kept), skips, same, oddities.dark(notes["peak"]))

    test_idx = torch.tensor([i for i, name in enumerate(files.names) if name in found.test]) if found.test else None
    labels_N = torch.tensor(list(labels.values()), dtype=torch.int64)
    warnings = (*files.warnings, *oddities.thumbnails(files.names))
    return Source(labels_N, found.class_names, (3, size, size), test_idx, read, files.names, warnings)


def mnist(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _mnist(c, cache_dir, "MNIST")


def fashion_mnist(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _mnist(c, cache_dir, "FashionMNIST")


def cifar10(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "CIFAR10", {"train": True}, {"train": False})


def cifar100(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "CIFAR100", {"train": True}, {"train": False})


def svhn(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "SVHN", {"split": "train"}, {"split": "test"})


def _mnist(c: DatasetConfig, cache_dir: str, name: str) -> Source:
    """MNIST or FashionMNIST, read from the .gz files if the unpacked ones are missing."""
    import torchvision.datasets

    whole = {"train": True}, {"train": False}
    try:
        parts = packed(_root(c) / name / "raw")
    except UserError as damaged:  # or another process is downloading them now and holds the lock
        try:
            return _torchvision(c, cache_dir, name, *whole)
        except UserError:
            raise damaged from None
    if parts is None:
        return _torchvision(c, cache_dir, name, *whole)
    classes = getattr(torchvision.datasets, name).classes
    return _of_parts(c, [SimpleNamespace(data=x, targets=y, classes=classes) for x, y in parts])


def _torchvision(c: DatasetConfig, cache_dir: str, name: str, train: dict, test: dict) -> Source:
    import torchvision.datasets

    kind, root = getattr(torchvision.datasets, name), str(_root(c))
    parts = None
    with suppress(Exception):  # missing or incomplete: the download below tells
        # Without the lock, so that data and cache may be read-only.
        parts = [kind(root, **part) for part in (train, test)]
    if parts:
        return _of_parts(c, parts)
    cache = Path(cache_dir).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f"{name}.lock"):  # only one of a sweep's first jobs downloads and unpacks
            parts = [kind(root, download=True, **part) for part in (train, test)]
    except Exception as error:  # no network, a broken file, a full disk: torchvision does not document what it raises
        raise UserError(
            f"dataset {c.name} is not complete in dataset.root={root}, and could not be downloaded "
            f"({type(error).__name__}: {error}). Delete what is broken there. Without a network, copy the files there."
        ) from error
    return _of_parts(c, parts)


def _of_parts(c: DatasetConfig, parts: Sequence[Any]) -> Source:
    """parts: torchvision's training set and test set."""
    images = np.concatenate([_as_nhwc(part.data) for part in parts])
    labels = np.concatenate([np.asarray(getattr(part, "targets", getattr(part, "labels", None))) for part in parts])
    names = tuple(map(str, getattr(parts[0], "classes", range(10))))
    return in_memory(c, images, labels, names, torch.arange(len(parts[0].data), len(images)))


def _as_nhwc(images: Tensor | np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim == 3:  # grey
        return images[..., None]
    return images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)  # SVHN comes as NCHW


def _root(c: DatasetConfig) -> Path:
    if c.root is None:
        raise UserError(f"dataset {c.name} needs dataset.root=..., the folder or the file its images are in.")
    return Path(c.root).expanduser()


def _refuse_empty_class(c: DatasetConfig, labels: Tensor, class_names: tuple[str, ...], what: str) -> None:
    counts_C = labels.bincount(minlength=len(class_names))
    if (counts_C == 0).any():
        name = class_names[int(counts_C.argmin())]
        raise UserError(
            f"class {name!r} of dataset {c.name} (dataset.root={c.root}) has no {what}. Add some, or remove the class."
        )
