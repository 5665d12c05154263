"""Arrays worth computing once: memory-mapped files named by what went into them, written whole or not at all."""

import errno
import hashlib
import json
import logging
import os
import time
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

CHUNK = 1 << 24
DAY = 24 * 60 * 60  # seconds

# What this process has read and found sound: its checksum, and inode, size and times of change as they were then
_proved: dict[Path, tuple[str | int, ...]] = {}

Fill = Callable[[np.ndarray], tuple[int, dict[str, Any]]]


def cached_array(
    cache_dir: str, key: dict[str, Any], shape: tuple[int, ...], dtype: str, fill: Fill
) -> tuple[np.ndarray, dict[str, Any]]:
    """The array `fill` writes, from the cache if it is there and sound, and the notes fill made, `checksum` among them.

    fill(out) writes rows into `out` and returns how many rows to keep (from the front) and its notes. The array comes
    back memory-mapped copy-on-write, so nobody can alter the file through it. A file cut short or altered is found by
    its checksum and made again. Raises UserError where the disk is full or the folder cannot be written.
    """
    folder = Path(cache_dir).expanduser()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    data, meta = folder / f"{name}.bin", folder / f"{name}.json"
    if found := _look(data, meta):  # whoever may only read, another user's cache or a disk, needs no lock
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):  # the other jobs of a sweep wait for the first, then read
            found = _open(data, meta)
            if found is None:
                _make(data, meta, key, shape, np.dtype(dtype), fill)
                found = _open(data, meta)
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
        raise UserError(f"{data} changes while it is read. Is the disk sound?")
    return found


def checksum(array: np.ndarray) -> str:
    """sha256 over the sha256 of chunks, on as many threads as it may use cores."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    parts = [flat[i : i + CHUNK] for i in range(0, len(flat), CHUNK)]
    with ThreadPoolExecutor(n_cores()) as threads:
        digests = threads.map(lambda part: hashlib.sha256(part).digest(), parts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _look(data: Path, meta: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Without a lock another process may be half way through, so nothing is said of what is not sound."""
    try:
        return _sound(data, meta)
    except OSError:
        return None  # whatever it is, the one with the lock meets it as well


def _open(data: Path, meta: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    if not data.exists() and not meta.exists():
        return None
    found = _sound(data, meta)
    if found is None:
        log.warning(f"The cached array {data} was cut short or altered; it is made again.")
    return found


def _sound(data: Path, meta: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    try:
        facts = json.loads(meta.read_text())
        if facts.pop("seal") == _seal(facts):
            array = np.memmap(data, dtype=facts["dtype"], mode="c", shape=tuple(facts["shape"]))
            info, expected = data.stat(), facts["notes"]["checksum"]
            state = (expected, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            # The next run of a sweep need not read gigabytes again.
            if _proved.get(data) == state or (info.st_size == array.nbytes and checksum(array) == expected):
                _proved[data] = state
                return array, facts["notes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        pass  # missing, or damaged in some way
    return None


def _make(data: Path, meta: Path, key: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> None:
    _remove_leftovers(data)
    part = data.with_name(f"{data.name}.{os.getpid()}.part")
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    try:
        with open(part, "wb") as file:
            # Claim the space now: writing through a memory map to a full disk kills the process without a word.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, shape[0] * row_bytes)
            else:
                file.truncate(shape[0] * row_bytes)
        out = np.memmap(part, dtype=dtype, mode="r+", shape=shape)
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


def _remove_leftovers(data: Path) -> None:
    """What killed processes left. Not the young ones: on some clusters a lock holds on one machine only."""
    for part in data.parent.glob(f"{data.name}.*.part"):
        if time.time() - part.stat().st_mtime > DAY:
            part.unlink(missing_ok=True)
