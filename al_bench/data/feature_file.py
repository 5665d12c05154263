"""Features that were computed elsewhere: an .npz, or an .npy with others beside it. N items, D columns, C classes.

The arrays are features [N, D] and labels [N], and where they are given class_names [C], is_test [N], names [N] and
images [N, H, W, 1 or 3], for contact sheets. Beside x.npy they lie in x_labels.npy, x_class_names.npy and so on.
"""

import functools
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from al_bench.config import DatasetConfig
from al_bench.data.arrays import Images, Source, kind
from al_bench.data.cache import checksum
from al_bench.data.files import facts_of
from al_bench.errors import UserError
from al_bench.text import in_a_line, one_line

ARRAYS = ("features", "labels", "class_names", "is_test", "names", "images")
# Keys of dataset
OF_IMAGES = ("image_size", "on_bad_image", "antialias", "mean", "std", "max_pixels", "jpeg_scaling", "white")
LARGEST = 1e12  # a number of the features: the sum of the squares of a column stays a number in float32
HOW_TO_SAVE = "np.savez('x.npz', features=features, labels=labels) writes such a file."


def features(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """The Source of the features in dataset.root. Raises UserError where the file or one of its arrays is unfit."""
    usual = DatasetConfig()
    for key in OF_IMAGES:
        if getattr(c, key) != getattr(usual, key):
            raise UserError(f"dataset.{key} is about images, and dataset {c.name} holds features. Leave it out.")
    if c.root is None or Path(c.root).suffix not in (".npz", ".npy"):
        raise UserError(f"dataset.root={c.root}: dataset {c.name} needs the path of an .npz or .npy. {HOW_TO_SAVE}")
    path = Path(c.root).expanduser()
    beside = {} if path.suffix == ".npz" else {key: path.with_name(f"{path.stem}_{key}.npy") for key in ARRAYS[1:]}
    files = {"features": path} | {key: file for key, file in beside.items() if file.exists()}
    with _readable(f"dataset.root={c.root}"):
        stamps = tuple(facts_of(file.stat()) for file in files.values())
    return _source(c.root, tuple(files.items()), stamps)


@functools.lru_cache(1)
def _source(root: str, files: tuple[tuple[str, Path], ...], stamps: tuple[tuple[int, ...], ...]) -> Source:
    """Read, check and hash once for all runs of a process. stamps: what facts_of says of each file."""
    where = f"dataset.root={one_line(root)}"
    arrays, unread = _arrays(where, dict(files))
    features_ND = _as_float32(where, arrays["features"])
    n = len(features_ND)
    for key in ("labels", "is_test", "names"):
        if key in arrays:
            _refuse_length(where, key, arrays[key], n)
    labels_N, class_names = _classes(where, arrays["labels"], arrays.get("class_names"))
    test_idx = _test_idx(where, arrays["is_test"]) if "is_test" in arrays else None
    names = tuple(_texts(where, "names", arrays["names"])) if "names" in arrays else ()
    name = one_line(files[0][1].name)
    warnings = (*_unread(name, unread), *_constant_columns(name, features_ND))
    shown = _shown(where, arrays["images"], n) if "images" in arrays else None
    images = Images(features_ND, checksum(features_ND), torch.arange(n), shown=shown)
    return Source(labels_N, class_names, features_ND.shape[1:], test_idx, lambda: images, names, warnings)


def _arrays(where: str, files: dict[str, Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays by their names, and the names of those in an .npz that al_bench does not know."""
    first, unread, arrays = files["features"], [], {}
    if first.suffix == ".npz":
        with _readable(where):
            if not zipfile.is_zipfile(first):
                raise UserError(f"{where} is no .npz, or it is cut short. {HOW_TO_SAVE}")
            content = np.load(first, allow_pickle=False)
        with content:
            unread = sorted(set(content.files) - set(ARRAYS))
            for key in filter(content.files.__contains__, ARRAYS):
                with _readable(f"{where}: {key}"):
                    arrays[key] = content[key]
    else:
        for key, file in files.items():
            with _readable(f"{where}: {one_line(file.name)}"):
                arrays[key] = np.load(file, allow_pickle=False)
    for key, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise UserError(f"{where}: {key} is no array of NumPy. {HOW_TO_SAVE}")
    if missing := [key for key in ("features", "labels") if key not in arrays]:
        there = f" It holds {', '.join(map(one_line, unread))}." if unread else ""
        beside = f"Save it as {one_line(first.stem)}_labels.npy in the same folder."
        raise UserError(f"{where} lacks {missing[0]}.{there} {HOW_TO_SAVE if first.suffix == '.npz' else beside}")
    return arrays, unread


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what NumPy raises for a file that it cannot read into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be read ({error.strerror or in_a_line(error)}). Check the path.") from None
    except (ValueError, EOFError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{what} holds a pickle (Python objects), which may run code when it is read, so al_bench reads none. "
                "Save texts as labels.astype(str), and numbers as features.astype(np.float32)."
            ) from None
        raise UserError(f"{what} is damaged ({in_a_line(error)}). Save it again.") from None


def _as_float32(where: str, values: np.ndarray) -> np.ndarray:
    """The features as float32 [N, D]. Raises UserError where they have another shape or are no finite numbers."""
    what = f"{where}: features have to be numbers [N, D], but are {kind(values)}."
    if values.dtype.kind not in "fiub":
        raise UserError(f"{what} features.astype(np.float32) makes numbers.")
    if values.ndim != 2 or 0 in values.shape:
        cure = "Save one row for each item and one column for each feature."
        raise UserError(f"{what} " + ("features.reshape(len(features), -1)." if values.ndim > 2 else cure))
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        features_ND = np.ascontiguousarray(values, dtype=np.float32)
    fits_N = (np.abs(features_ND) <= LARGEST).all(1)
    if not fits_N.all():  # NaN is not below anything either
        bad = np.flatnonzero(~fits_N)
        raise UserError(
            f"{where}: features have NaN, infinite values or values beyond {LARGEST:g} in {len(bad):,} of "
            f"{len(values):,} rows, in row {bad[0]} for one (counted from 0). Leave such rows out of all arrays, or "
            "replace the values."
        )
    return features_ND


def _refuse_length(where: str, key: str, values: np.ndarray, n: int) -> None:
    if values.shape == (n,):
        return
    cure = ""
    if values.shape[:1] == (n,):
        cure = f" {key}.ravel()." if values.size == n else f" One-hot: {key}.argmax(1)." if values.ndim == 2 else ""
    raise UserError(
        f"{where}: {key} has to hold one value for each of the {n:,} rows of features, but is {kind(values)}."
        f"{cure or ' Save both of the same items, in the same order.'}"
    )


def _texts(where: str, key: str, values: np.ndarray) -> list[str]:
    """Texts, bytes in UTF-8 or whole numbers as texts."""
    if values.dtype.kind not in "USiub" or values.ndim != 1:
        raise UserError(f"{where}: {key} have to be a list of texts, but are {kind(values)}. {key}.astype(str).")
    try:
        texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
        "".join(texts).encode()
    except ValueError:  # UnicodeError is one
        raise UserError(f"{where}: {key} hold a text that is not in UTF-8. Write it in other letters.") from None
    return texts


def _classes(where: str, labels: np.ndarray, names: np.ndarray | None) -> tuple[Tensor, tuple[str, ...]]:
    """(labels_N from 0 to C - 1, class names). Raises UserError where the labels do not fit the names."""
    if labels.dtype.kind not in "USiub":
        raise UserError(
            f"{where}: labels have to be whole numbers or texts, but are {kind(labels)}. labels.astype(int) makes "
            "numbers, labels.astype(str) texts."
        )
    values = np.array(_texts(where, "labels", labels)) if labels.dtype.kind in "US" else labels
    found, labels_N = np.unique(values, return_inverse=True)
    if len(found) < 2:
        raise UserError(
            f"{where}: labels have one class only ({one_line(str(found[0]))}): there is nothing to learn. Add items of "
            "another class."
        )
    if names is None:
        return torch.from_numpy(labels_N), tuple(map(str, found.tolist()))
    named = _texts(where, "class_names", names)
    if len(set(named)) < len(named):
        raise UserError(f"{where}: class_names has a name twice. Give each class its own.")
    position = _positions(where, found.tolist(), named)
    return torch.from_numpy(np.array(position, dtype=np.int64)[labels_N]), tuple(named)


def _positions(where: str, found: list, named: list[str]) -> list[int]:
    """The position of each label in class_names: of a text its own, of a number the number or else its rank."""
    if isinstance(found[0], str):
        if strange := sorted(set(found) - set(named)):
            raise UserError(f"{where}: labels have {one_line(strange[0])!r}, which class_names lacks. Add it there.")
        return [named.index(label) for label in found]
    if 0 <= found[0] and found[-1] < len(named):
        return [int(label) for label in found]
    if len(found) != len(named):
        raise UserError(
            f"{where}: labels have {len(found):,} different numbers from {found[0]} to {found[-1]}, and "
            f"class_names has {len(named):,} names. Give each number a name, in the order of the numbers, or leave "
            "class_names out."
        )
    return list(range(len(named)))


def _test_idx(where: str, is_test: np.ndarray) -> Tensor:
    if is_test.dtype != np.bool_:
        raise UserError(f"{where}: is_test has to be of booleans, but is {kind(is_test)}. is_test.astype(bool).")
    if is_test.all() or not is_test.any():
        raise UserError(
            f"{where}: is_test is {bool(is_test[0])} for all items, so there is nothing to "
            f"{'train on' if is_test.all() else 'test on'}. Mark some, or leave is_test out: dataset.test_fraction "
            "draws a test set."
        )
    return torch.from_numpy(np.flatnonzero(is_test))


def _shown(where: str, images: np.ndarray, n: int) -> np.ndarray:
    """The images as uint8 [N, H, W, 1 or 3]. Raises UserError."""
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or images.shape[0] != n:
        raise UserError(
            f"{where}: images have to be uint8 [{n:,}, height, width, 1 or 3], but are {kind(images)}. Contact sheets "
            "show them. Thumbnails are enough; leave them out to have none."
        )
    return images


def _unread(file: str, names: list[str]) -> Iterator[str]:
    if names:
        yield f"{file}: not read: {', '.join(map(one_line, names))}. al_bench reads {', '.join(ARRAYS)}."


def _constant_columns(file: str, features_ND: np.ndarray) -> Iterator[str]:
    if n := int((features_ND == features_ND[0]).all(0).sum()):
        yield (
            f"{file}: {n:,} of the {features_ND.shape[1]:,} columns of features have the same value in all rows. A "
            "linear head learns nothing from them: features[:, features.std(0) > 0] leaves them out."
        )
