"""Decode image files of any kind into one uint8 array [N, size, size, 3], once and in parallel."""

import hashlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from al_bench import signals
from al_bench.config import DatasetConfig, OnBadImage
from al_bench.data.cache import cached_array, release_pages
from al_bench.data.files import LARGEST_FILE, ImageFiles
from al_bench.data.photo import SharedLimit, return_freed_memory, square, why_bad
from al_bench.errors import UserError
from al_bench.provenance import n_cores
from al_bench.text import one_line

LISTED = 20  # faulty files that a message names
MOST_PIXELS = 1 << 27  # decoded at once by all threads; each takes up to eight bytes
AT_ONCE = 500  # files after which the memory of the decoded images is given back
PIXEL_BYTES = 8  # the most that a pixel takes in a file: four channels of 16 bits


def decode(files: ImageFiles, size: int, c: DatasetConfig, cache_dir: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The images as uint8 [N, size, size, 3], memory-mapped, and notes about them.

    Notes: `checksum` of the array; `skipped`, the names of the files without a row; `same`, lists of rows whose files
    are byte-identical; `peak`, the highest value over all files that say nothing about white but that they have 16 bits
    (None: no such file). Raises UserError with the names of the unsound files, unless c.on_bad_image is skip.
    """
    key = {
        "files": files.fingerprint,
        "names": hashlib.sha256(repr(files.names).encode()).hexdigest(),
        "size": size,
        "antialias": c.antialias,
        "on_bad": c.on_bad_image.name,
        "white": c.white,
        "max_pixels": c.max_pixels,
        "decoder": 3,
    } | ({"jpeg_scaling": True} if c.jpeg_scaling else {})
    fill = partial(_decode_all, files, size, c)
    return cached_array(cache_dir, key, (len(files.names), size, size, 3), "uint8", fill)


class Decoded(NamedTuple):
    """What decoding found about a file, beside its pixels."""

    digest: bytes = b""
    peak: int | None = None
    fault: str | None = None


def _decode_all(files: ImageFiles, size: int, c: DatasetConfig, out: np.ndarray) -> tuple[int, dict[str, Any]]:
    names, seen = files.names, decode_into(out, files, size, c)
    bad = {names[row]: s.fault for row, s in enumerate(seen) if s.fault}
    kept = [row for row, s in enumerate(seen) if not s.fault]
    if bad and (c.on_bad_image is OnBadImage.stop or not kept):
        raise UserError(complaint(files.where, bad))
    for to, row in enumerate(kept):
        if to != row:
            out[to] = out[row]
    peaks = [s.peak for s in seen if s.peak is not None]
    notes = {"skipped": list(bad), "same": _same([seen[row].digest for row in kept]), "peak": max(peaks, default=None)}
    return len(kept), notes


def decode_into(out: np.ndarray, files: ImageFiles, size: int, c: DatasetConfig) -> list[Decoded]:
    """Decode each file into its row of `out`, uint8 [N, size, size, 3], in parallel. Unsound files have a fault."""
    largest = max(LARGEST_FILE, PIXEL_BYTES * (c.max_pixels or 0))
    contents, pixels, names = SharedLimit(LARGEST_FILE), SharedLimit(MOST_PIXELS), files.names
    seen: list[Decoded] = []

    def one(row: int) -> Decoded:
        signals.stop_if_asked()
        name, content = names[row], b""
        try:
            if files.sizes[name] > largest:
                raise ValueError(f"{files.sizes[name]:,} bytes, too large for a photograph")
            with contents.taken(files.sizes[name]):
                content = files.read(name)
                out[row], peak = square(content, size, c, pixels)
            return Decoded(hashlib.blake2b(content, digest_size=16).digest(), peak)
        except Exception as error:  # a broken file can make a decoder raise anything; the message names the file
            return Decoded(fault=why_bad(content, error, Image.MAX_IMAGE_PIXELS))

    with _pixel_limit(c.max_pixels), ThreadPoolExecutor(n_cores()) as threads:
        rows = threads.map(one, range(len(out)))
        for found in track(rows, "Decoding images", total=len(out), disable=not sys.stdout.isatty(), transient=True):
            seen.append(found)
            if len(seen) % AT_ONCE == 0:
                release_pages()
    return_freed_memory()
    return seen


@contextmanager
def _pixel_limit(most: int | None) -> Iterator[None]:
    """Make Pillow refuse images of more pixels than `most`. Its limit is a global, so it holds for all threads."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            Image.MAX_IMAGE_PIXELS = most or before
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _same(digests: list[bytes]) -> list[list[int]]:
    rows = defaultdict(list)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def complaint(where: Path, bad: dict[str, str]) -> str:
    listed = [f"  {one_line(name)}: {one_line(fault)}" for name, fault in list(bad.items())[:LISTED]]
    more = [f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    head = f"{len(bad)} of the files in {one_line(str(where))} cannot be used:"
    todo = "Repair or remove them, or set dataset.on_bad_image=skip to leave them out."
    return "\n".join([head, *listed, *more, todo])
