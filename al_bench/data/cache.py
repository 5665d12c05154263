"""Cache of arrays: memory-mapped files, named by what they are computed from, written whole or not at all."""

import errno
import hashlib
import json
import logging
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from al_bench.errors import UserError
from al_bench.files import write_atomically
from al_bench.provenance import n_cores

log = logging.getLogger("al_bench")

CHUNK = 1 << 24  # bytes of which a checksum is computed at once
DAY = 24 * 60 * 60  # seconds

# The files that this process has verified: their checksum, inode, size and times of change at that time
_known_sound: dict[Path, tuple[str | int, ...]] = {}

# The maps of all arrays that are in use
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_adding = threading.Lock()

Shape = tuple[int, ...] | Callable[[], tuple[int, ...]]
Fill = Callable[[np.ndarray], tuple[int, dict[str, Any]]]


def cached_array(
    cache_dir: str, key: dict[str, Any], shape: Shape, dtype: str, fill: Fill
) -> tuple[np.ndarray, dict[str, Any]]:
    """The array that `fill` writes and the notes that it returns; both come from the cache if they are there and sound.

    shape: of `out`, or a function that returns it and is called only where `fill` is. fill(out) writes rows into `out`,
    and returns how many rows to keep (from the front) and its notes. `checksum` is added to the notes. The array is
    memory-mapped copy-on-write, so nobody can alter the file through it. A truncated or altered file is detected by its
    checksum and written again. Raises UserError if the disk is full or the folder cannot be written.
    """
    folder = Path(cache_dir).expanduser()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    data, meta = folder / f"{name}.bin", folder / f"{name}.json"
    if found := _read_unlocked(data, meta):  # no lock: another user's cache may be read-only, and so may a disk
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):  # the other jobs of a sweep wait for the first, then read
            found = _read_locked(data, meta)
            if found is None:
                _write(data, meta, key, shape() if callable(shape) else shape, np.dtype(dtype), fill)
                found = _read_locked(data, meta)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"No space left in the cache folder {folder}. Make room, or name another one: cache_dir=..."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise UserError(
                f"The cache folder {folder} cannot be written ({error}). Name another one: cache_dir=..."
            ) from None
        raise
    if found is None:
        raise UserError(f"{data} changed while it was read. Is the disk sound?")
    return found


def checksum(array: np.ndarray) -> str:
    """sha256 over the sha256 of each chunk, with one thread for each core that this process may use."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    parts = [flat[i : i + CHUNK] for i in range(0, len(flat), CHUNK)]

    def digest(part: np.ndarray) -> bytes:
        found = hashlib.sha256(part).digest()
        release_pages()
        return found

    with ThreadPoolExecutor(n_cores()) as threads:
        digests = threads.map(digest, parts)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def release_pages() -> None:
    """Give the memory of all mapped arrays back to the system. What is read again comes from its cache of files.

    The system would take the memory back by itself only where it runs short, so a process that has read all of a large
    array seems to need as much memory.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        with _adding:
            maps = [*_maps]
        for each in maps:
            each.madvise(mmap.MADV_DONTNEED)


def _mapped(*arguments: Any, **options: Any) -> np.memmap:
    array = np.memmap(*arguments, **options)
    with _adding:
        _maps.add(array.base)
    return array


def _read_unlocked(data: Path, meta: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Read without a lock. Another process may be writing the file, so an unsound one is no reason for a warning."""
    try:
        return _verified(data, meta)
    except OSError:
        return None  # the reader with the lock meets the same error and reports it


def _read_locked(data: Path, meta: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    if not data.exists() and not meta.exists():
        return None
    found = _verified(data, meta)
    if found is None:
        log.warning(f"The cached array {data} was truncated or altered; it is made again.")
    return found


def _verified(data: Path, meta: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    try:
        facts = json.loads(meta.read_text())
        if facts.pop("seal") == _seal(facts):
            array = _mapped(data, dtype=facts["dtype"], mode="c", shape=tuple(facts["shape"]))
            info, expected = data.stat(), facts["notes"]["checksum"]
            state = (expected, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            # A file verified before is not read again: in a sweep that would be gigabytes for each run.
            if _known_sound.get(data) == state or (info.st_size == array.nbytes and checksum(array) == expected):
                _known_sound[data] = state
                return array, facts["notes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        pass  # missing, or damaged in any way
    return None


def _write(data: Path, meta: Path, key: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> None:
    remove_leftovers(data)
    part = data.with_name(f"{data.name}.{os.getpid()}.part")
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    try:
        with open(part, "wb") as file:
            # Reserve the space now: writing through a memory map to a full disk kills the process without a message.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, shape[0] * row_bytes)
            else:
                file.truncate(shape[0] * row_bytes)
        out = _mapped(part, dtype=dtype, mode="r+", shape=shape)
        rows, notes = fill(out)
        out.flush()
        notes = {**notes, "checksum": checksum(out[:rows])}
        facts = {"key": key, "shape": [rows, *shape[1:]], "dtype": dtype.str, "notes": notes}
        facts["seal"] = _seal(facts)
        del out
        os.truncate(part, rows * row_bytes)
        os.replace(part, data)
        write_atomically(meta, json.dumps(facts) + "\n")  # last: without it the array does not count
    finally:
        part.unlink(missing_ok=True)


def _seal(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remove_leftovers(data: Path) -> None:
    """Delete what killed processes left, if it is older than a day.

    A younger file may belong to a running process: on some clusters a lock holds on one machine only.
    """
    for part in data.parent.glob(f"{data.name}.*.part"):
        if time.time() - part.stat().st_mtime > DAY:
            part.unlink(missing_ok=True)
