"""Read MNIST's files as they are published: gzip-compressed, in the IDX format (a type, the sizes, then bytes)."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from al_bench.errors import UserError
from al_bench.text import one_line

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def packed(raw: Path) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """[(images, labels)] to train on and for the test; None if no .gz file is needed, or if one is missing.

    Raises UserError if a file is damaged.
    """
    found = {name: _find(raw / name) for pair in NAMES.values() for name in pair}
    if None in found.values() or not any(path.suffix == ".gz" for path in found.values()):
        return None
    parts = [(_read(found[images], 3), _read(found[labels], 1)) for images, labels in NAMES.values()]
    for images, labels in parts:
        if len(images) != len(labels):
            raise UserError(f"{one_line(str(raw))}: one part has {len(images):,} images but {len(labels):,} labels.")
    return parts


def _find(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def _read(path: Path, dimensions: int) -> np.ndarray:
    try:
        content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError("its header is not that of such a file")
        sizes = np.frombuffer(content, ">i4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{one_line(str(path))} is damaged ({error}), and it could not be downloaded. Put a sound one there."
        ) from None
