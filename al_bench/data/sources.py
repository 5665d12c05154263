"""Where images come from: one function a source, each returns a Source; `load` turns it into (Dataset, Oracle)."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench import rng
from al_bench.config import DatasetConfig, OnBadImage, StressorConfig, function
from al_bench.data import Dataset, stressors
from al_bench.data.cache import checksum
from al_bench.data.decode import ImageFiles, complaint, decode, files_in
from al_bench.data.oracle import Oracle
from al_bench.data.stressors import UNSTRESSED, Split
from al_bench.errors import UserError

log = logging.getLogger("al_bench")

PHOTO_SIZE = 64  # pixels, where neither dataset.image_size nor the model asks for a size


@dataclass(frozen=True)
class Images:
    pixels: np.ndarray  # uint8 [N, H, W, channels]
    checksum: str
    kept_N: Tensor  # which of the source's images they are
    skipped: tuple[str, ...] = ()  # file names


@dataclass(frozen=True)
class Source:
    """A data set before its images are decoded: enough for a plan."""

    labels_N: Tensor
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # channels, height, width
    test_idx: Tensor | None  # the data's own test split
    read: Callable[[], Images]


def find(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """model_size: the input size the model prefers; dataset.image_size goes before it."""
    source: Source = function("dataset._target_", c._target_)(c, model_size, cache_dir)
    _refuse_empty_class(c, source.labels_N, source.class_names, "image")
    channels = source.image_shape[0]
    if len(c.mean) not in (1, channels):
        raise UserError(
            f"dataset.mean and dataset.std have {len(c.mean)} values, and the images of {c.name} have {channels} "
            "channels: one value for all of them, or one for each."
        )
    if len(source.class_names) < 2:
        names = ", ".join(source.class_names)
        raise UserError(f"dataset {c.name} has one class only ({names}): there is nothing to learn. Add another.")
    return source


def load(
    c: DatasetConfig, source: Source, seed: int, stressor: StressorConfig = UNSTRESSED, cache_dir: str = ""
) -> tuple[Dataset, Oracle]:
    images = source.read()
    used = stressed(c, source, images.kept_N, seed, stressor)
    if images.skipped:
        log.warning(f"dataset.on_bad_image=skip left out {len(images.skipped):,} files; run.json names them.")
    pixels, seen = images.pixels, images.checksum
    if used.copied_N is not None:
        sd = [stressor.noise * std for std in c.std]
        pixels, seen = stressors.noisy_copies(pixels, seen, used, sd, seed, cache_dir)
    dataset = Dataset(
        name=c.name,
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),  # stored [N, H, W, C]: batches are channels_last
        train_idx=used.train_idx,
        test_idx=used.test_idx,
        test_labels_V=used.labels_N[used.test_idx],
        class_names=used.class_names,
        mean=tuple(c.mean),
        std=tuple(c.std),
        checksum=hashlib.sha256((seen + checksum(source.labels_N[images.kept_N].numpy())).encode()).hexdigest(),
        skipped=images.skipped,
    )
    return dataset, Oracle(used.labels_N, used.train_idx)


def stressed(c: DatasetConfig, source: Source, kept_N: Tensor, seed: int, stressor: StressorConfig) -> Split:
    """Which image is for what and what the oracle answers, before any image is decoded."""
    labels_N = source.labels_N[kept_N]
    train_idx, test_idx = split(c, source, kept_N, seed)
    _refuse_empty_class(c, labels_N[train_idx], source.class_names, "training image")
    return stressors.stress(stressor, Split(labels_N, source.class_names, train_idx, test_idx), seed)


def split(c: DatasetConfig, source: Source, kept: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(train_idx, test_idx): the data's own split, or dataset.test_fraction of it drawn by the seed."""
    if source.test_idx is not None:
        is_test = torch.isin(kept, source.test_idx)
    elif c.test_fraction is None:
        raise UserError(f"dataset {c.name} has no test split of its own: set dataset.test_fraction, 0.2 for example.")
    else:
        is_test = torch.zeros(len(kept), dtype=torch.bool)
        n_test = round(len(kept) * c.test_fraction)
        is_test[torch.randperm(len(kept), generator=rng.stream(seed, "test_split"))[:n_test]] = True
    if not is_test.any() or is_test.all():
        raise UserError(
            f"dataset {c.name}: {len(kept)} images cannot be split into training and test. "
            "Add images or change dataset.test_fraction."
        )
    return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]


def digits(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    from sklearn.datasets import load_digits

    if c.root is not None:
        raise UserError(f"dataset.root={c.root}: digits reads no files. Say what lies there: dataset=image_folder, ...")
    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _in_memory(c, images, labels, tuple("0123456789"), None)


def dogs_vs_cats(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    root = _root(c)
    if (root / "train.zip").exists() and not (root / "train").exists():
        root = root / "train.zip"
    files = files_in(str(root))
    kinds = _cat_or_dog(files.names)
    if not kinds:
        raise UserError(
            f"dataset.root={root}: none of its {len(files.names)} files is named cat.* or dog.*, or lies in Cat/ or "
            "Dog/. Give Kaggle's zip, its train.zip, the extracted folder, or PetImages."
        )
    strangers = {name: "neither cat.* nor dog.*" for name, kind in kinds.items() if kind not in ("cat", "dog")}
    if strangers and c.on_bad_image is OnBadImage.stop:
        raise UserError(complaint(files.where, strangers))
    labels = {name: ("cat", "dog").index(kind) for name, kind in kinds.items() if name not in strangers}
    return _from_files(c, files, labels, ("cat", "dog"), set(), model_size, cache_dir, skipped=tuple(strangers))


def _cat_or_dog(names: Sequence[str]) -> dict[str, str]:
    """What each photograph is called: Microsoft's `Cat/0.jpg`, or Kaggle's `cat.0.jpg` and all that lies beside it."""
    places = [(name, *name.rpartition("/")[::2]) for name in names]
    pets = {name: home.rpartition("/")[2].lower() for name, home, _ in places if f"/{home}".endswith(("/Cat", "/Dog"))}
    homes = {home for _, home, file in places if file.startswith(("cat.", "dog."))}
    return pets or {name: file.split(".")[0] for name, home, file in places if home in homes}


def image_folder(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """One sub-folder a class; with train/ and test/ above them that split is kept. A folder or a zip of one."""
    files = files_in(str(_root(c)))
    base = ""
    while len(top := _subfolders(files, base)) == 1 and _subfolders(files, f"{base}{top[0]}/"):
        base += f"{top[0]}/"  # an archive often has one folder around it all
    is_split = {"train", "test"} <= set(top)
    home = f"{base}train/" if is_split else base
    train = _by_class(files, home)
    test = _by_class(files, f"{base}test/") if is_split else {}
    class_names = tuple(_subfolders(files, home))
    if not is_split:
        _refuse_unnamed_split(c, top, (_subfolders(files, f"{base}{part}/") for part in top))
    _refuse_layout(c, top, class_names, test)
    labels = {name: class_names.index(folder) for name, folder in (train | test).items()}
    return _from_files(c, files, labels, class_names, set(test), model_size, cache_dir)


def _subfolders(files: ImageFiles, above: str) -> list[str]:
    below = [folder.removeprefix(above) for folder in files.folders if folder.startswith(above)]
    return sorted(folder for folder in below if "/" not in folder)


def _by_class(files: ImageFiles, above: str) -> dict[str, str]:
    """Each file's class: the first folder below `above`, however deep the file lies in it."""
    below = {name: name.removeprefix(above) for name in files.names if name.startswith(above)}
    return {name: rest.split("/")[0] for name, rest in below.items() if "/" in rest}


def _refuse_unnamed_split(c: DatasetConfig, top: list[str], inside: Iterator[list[str]]) -> None:
    """train/ and val/, or Train/ and Test/, would be taken for two classes. Looks no further than it has to."""
    first = next(inside, [])
    if len(top) > 1 and len(first) > 1 and all(folders == first for folders in inside):
        raise UserError(
            f"dataset.root={c.root}: {'/ and '.join(top)}/ hold the same folders ({', '.join(first[:3])}...), so "
            "they are no classes. Name the parts of a split train/ and test/."
        )


def _refuse_layout(c: DatasetConfig, top: list[str], class_names: tuple[str, ...], test: dict[str, str]) -> None:
    if not class_names:
        raise UserError(
            f"dataset.root={c.root}: no class folders in {'train/' if 'train' in top else 'it'}. "
            "It needs one sub-folder a class, with that class's images in it."
        )
    if not {"train", "test"} <= set(top):
        return
    if others := sorted(set(top) - {"train", "test"}):
        raise UserError(
            f"dataset.root={c.root}: beside train/ and test/ there is {others[0]}/, which would not be read. "
            "Move its images into train/ (validation images are drawn from there), or take it away."
        )
    if not test:
        raise UserError(f"dataset.root={c.root}: test/ holds no class folders with images. Fill it or remove it.")
    if strange := sorted(set(test.values()) - set(class_names)):
        raise UserError(f"dataset.root={c.root}: test/ has a class {strange[0]!r} that train/ lacks.")


def _from_files(
    c: DatasetConfig, files: ImageFiles, labels: dict[str, int], class_names: tuple[str, ...], test: set[str],
    model_size: int | None, cache_dir: str, skipped: Sequence[str] = (),
) -> Source:  # fmt: skip
    files = replace(files, names=tuple(labels))
    size = c.image_size or model_size or PHOTO_SIZE

    def read() -> Images:
        pixels, notes = decode(files, size, c.antialias, c.on_bad_image, cache_dir)
        bad = set(notes["skipped"])
        kept = [row for row, name in enumerate(files.names) if name not in bad]
        return Images(pixels, notes["checksum"], torch.tensor(kept), (*skipped, *notes["skipped"]))

    test_idx = torch.tensor([i for i, name in enumerate(files.names) if name in test]) if test else None
    labels_N = torch.tensor(list(labels.values()), dtype=torch.int64)
    return Source(labels_N, class_names, (3, size, size), test_idx, read)


def mnist(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "MNIST", {"train": True}, {"train": False})


def fashion_mnist(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "FashionMNIST", {"train": True}, {"train": False})


def cifar10(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "CIFAR10", {"train": True}, {"train": False})


def cifar100(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "CIFAR100", {"train": True}, {"train": False})


def svhn(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, cache_dir, "SVHN", {"split": "train"}, {"split": "test"})


def _torchvision(c: DatasetConfig, cache_dir: str, name: str, train: dict, test: dict) -> Source:
    import torchvision.datasets

    kind, root, cache = getattr(torchvision.datasets, name), str(_root(c)), Path(cache_dir).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f"{name}.lock"):  # of a sweep's first jobs only one downloads and unpacks
            parts = [kind(root, download=True, **part) for part in (train, test)]
    except Exception as error:  # no network, a broken file, a full disk: torchvision does not say what it raises
        raise UserError(
            f"dataset {c.name} is not whole in dataset.root={root}, and could not be fetched "
            f"({type(error).__name__}: {error}). Delete what is broken there; without a network, bring the files."
        ) from error
    images = np.concatenate([_as_nhwc(part.data) for part in parts])
    labels = np.concatenate([np.asarray(getattr(part, "targets", getattr(part, "labels", None))) for part in parts])
    names = tuple(map(str, getattr(parts[0], "classes", range(10))))
    return _in_memory(c, images, labels, names, torch.arange(len(parts[0].data), len(images)))


def _as_nhwc(images: Tensor | np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim == 3:  # grey
        return images[..., None]
    return images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)  # SVHN comes as NCHW


def _in_memory(
    c: DatasetConfig, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], test_idx: Tensor | None
) -> Source:
    if c.image_size and c.image_size != images.shape[1]:
        images = _resized(images, c.image_size, c.antialias)
    images = np.ascontiguousarray(images)  # a batch is cut in whole rows
    _, height, width, channels = images.shape
    labels_N = torch.from_numpy(labels.astype(np.int64))

    def read() -> Images:
        return Images(images, checksum(images), torch.arange(len(images)))

    return Source(labels_N, class_names, (channels, height, width), test_idx, read)


def _resized(images: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    chunks = torch.from_numpy(images).permute(0, 3, 1, 2).split(4096)
    resized = [F.interpolate(x.float(), (size, size), mode="bilinear", antialias=antialias) for x in chunks]
    return torch.cat([x.round().clamp(0, 255).byte() for x in resized]).permute(0, 2, 3, 1).numpy()


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
