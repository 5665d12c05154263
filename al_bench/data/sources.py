"""Where images come from: one function a source, each returns a Source; `load` turns it into (Dataset, Oracle)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_method
from torch import Tensor

from al_bench import rng
from al_bench.config import DatasetConfig, OnBadImage
from al_bench.data import Dataset
from al_bench.data.cache import checksum
from al_bench.data.decode import ImageFiles, complaint, decode, files_in
from al_bench.data.oracle import Oracle
from al_bench.errors import UserError

PHOTO_SIZE = 64  # pixels, where neither dataset.image_size nor the model asks for a size


@dataclass(frozen=True)
class Source:
    """A data set before its images are decoded: enough for a plan."""

    labels_N: Tensor
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # channels, height, width
    test_idx: Tensor | None  # the data's own test split
    read: Callable[
        [], tuple[np.ndarray, Tensor, tuple[str, ...]]
    ]  # uint8 [N, H, W, channels], rows kept, names skipped


def find(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """model_size: the input size the model prefers; dataset.image_size goes before it."""
    source: Source = get_method(c._target_)(c, model_size, cache_dir)
    if len(source.class_names) < 2:
        raise UserError(
            f"dataset {c.name} has one class only ({', '.join(source.class_names)}): there is nothing to learn."
        )
    return source


def load(c: DatasetConfig, source: Source, seed: int) -> tuple[Dataset, Oracle]:
    images, kept, skipped = source.read()
    labels_N = source.labels_N[kept]
    train_idx, test_idx = split(c, source, kept, seed)
    counts_C = labels_N[train_idx].bincount(minlength=len(source.class_names))
    if (counts_C == 0).any():
        raise UserError(
            f"class {source.class_names[int(counts_C.argmin())]!r} of dataset {c.name} has no training image."
        )
    dataset = Dataset(
        name=c.name,
        images=torch.from_numpy(images).permute(0, 3, 1, 2),  # stored as [N, H, W, C], so every batch is channels_last
        train_idx=train_idx,
        test_idx=test_idx,
        test_labels_V=labels_N[test_idx],
        class_names=source.class_names,
        mean=tuple(c.mean),
        std=tuple(c.std),
        checksum=checksum(np.frombuffer((checksum(images) + checksum(labels_N.numpy())).encode(), np.uint8)),
        skipped=skipped,
    )
    return dataset, Oracle(labels_N, train_idx)


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
            f"dataset {c.name}: {len(kept)} images cannot be split into training and test. Add images or change dataset.test_fraction."
        )
    return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]


def digits(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _in_memory(c, images, labels, tuple("0123456789"), None)


def dogs_vs_cats(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """Kaggle's layout, `cat.0.jpg`, or Microsoft's, `Cat/0.jpg`."""
    root = Path(c.root).expanduser()
    if (root / "train.zip").exists() and not (root / "train").exists():
        root = root / "train.zip"
    files = files_in(str(root))
    paths = [PurePosixPath(n) for n in files.names]
    homes = {p.parent for p in paths if p.name.startswith(("cat.", "dog."))}
    if any(p.parent.name in ("Cat", "Dog") for p in paths):
        names, kinds = zip(
            *[(str(p), p.parent.name.lower()) for p in paths if p.parent.name in ("Cat", "Dog")], strict=True
        )
    elif homes:
        names, kinds = zip(*[(str(p), p.name.split(".")[0]) for p in paths if p.parent in homes], strict=True)
    else:
        raise UserError(
            f"dataset.root={c.root}: none of its {len(paths)} files is named cat.* or dog.*, or lies in Cat/ or Dog/. "
            "Give Kaggle's zip, its train.zip, the extracted folder, or PetImages."
        )
    strangers = [n for n, kind in zip(names, kinds, strict=True) if kind not in ("cat", "dog")]
    if strangers and c.on_bad_image is OnBadImage.stop:
        raise UserError(complaint(files.where, dict.fromkeys(strangers, "neither cat.* nor dog.*")))
    known = {n: ("cat", "dog").index(kind) for n, kind in zip(names, kinds, strict=True) if n not in strangers}
    return _from_files(c, files, known, ("cat", "dog"), set(), model_size, cache_dir, skipped=strangers)


def image_folder(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """One sub-folder a class; with train/ and test/ above them that split is kept. A folder or a zip of one."""
    files = files_in(c.root)
    top = {f for f in files.folders if "/" not in f}
    if len(top) == 1 and "train" not in top:  # an archive or a folder with one folder around it all
        above = f"{top.pop()}/"
        top = {f.removeprefix(above) for f in files.folders if f.count("/") == 1 and f.startswith(above)}
    else:
        above = ""
    parts = ("train/", "test/") if {"train", "test"} <= top else ("train/",) if top == {"train"} else ("",)
    depth = (above + parts[0]).count("/")
    inside = [f.split("/")[-1] for f in files.folders if f.count("/") == depth and f.startswith(above + parts[0])]
    class_names = tuple(sorted(inside))
    labels = {}
    for name in files.names:
        home = name.split("/")[depth : depth + 1]
        if name.startswith(tuple(above + p for p in parts)) and name.count("/") > depth:
            if home[0] not in class_names:
                raise UserError(f"dataset.root={c.root}: test/ has a class {home[0]!r} that train/ lacks.")
            labels[name] = class_names.index(home[0])
    empty = [name for i, name in enumerate(class_names) if i not in labels.values()]
    if empty:
        raise UserError(f"dataset.root={c.root}: the class folder {empty[0]!r} is empty. Fill it or remove it.")
    if not class_names:
        raise UserError(
            f"dataset.root={c.root}: no sub-folders. It needs one folder a class, with that class's images in it."
        )
    test = {n for n in labels if n.startswith(above + "test/")} if "test/" in parts else set()
    return _from_files(c, files, labels, class_names, test, model_size, cache_dir)


def _from_files(
    c: DatasetConfig, files: ImageFiles, labels: dict[str, int], class_names: tuple[str, ...], test: set[str],
    model_size: int | None, cache_dir: str, skipped: Sequence[str] = (),
) -> Source:  # fmt: skip
    files = replace(files, names=tuple(labels))
    size = c.image_size or model_size or PHOTO_SIZE

    def read() -> tuple[np.ndarray, Tensor, tuple[str, ...]]:
        images, bad = decode(files, size, c.antialias, c.on_bad_image, cache_dir)
        kept = [i for i, name in enumerate(files.names) if name not in set(bad)]
        return images, torch.tensor(kept), (*skipped, *bad)

    test_idx = torch.tensor([i for i, name in enumerate(files.names) if name in test]) if test else None
    return Source(torch.tensor(list(labels.values())), class_names, (3, size, size), test_idx, read)


def mnist(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, "MNIST", {"train": True}, {"train": False})


def fashion_mnist(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, "FashionMNIST", {"train": True}, {"train": False})


def cifar10(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, "CIFAR10", {"train": True}, {"train": False})


def cifar100(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, "CIFAR100", {"train": True}, {"train": False})


def svhn(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    return _torchvision(c, "SVHN", {"split": "train"}, {"split": "test"})


def _torchvision(c: DatasetConfig, name: str, train: dict, test: dict) -> Source:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name)
    try:
        parts = [kind(str(Path(c.root).expanduser()), download=True, **part) for part in (train, test)]
    except (OSError, RuntimeError) as error:  # no network, a broken file
        raise UserError(
            f"dataset {c.name} is not whole in dataset.root={c.root} and could not be downloaded ({error})."
        ) from None
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
        images = _resized(images, c.image_size)
    _, height, width, channels = images.shape
    labels_N = torch.from_numpy(labels.astype(np.int64))
    everything = torch.arange(len(images))
    return Source(labels_N, class_names, (channels, height, width), test_idx, lambda: (images, everything, ()))


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    chunks = torch.from_numpy(images).permute(0, 3, 1, 2).split(4096)
    small = [
        F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for x in chunks
    ]
    return np.ascontiguousarray(torch.cat(small).permute(0, 2, 3, 1).numpy())
