"""Read and write files of a run folder. A failed read gives the reason; a write is complete or does not happen.

Nothing here imports torch.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from al_bench.errors import UserError

# What the error of the system means, and what the user can do about it.
DISK = {
    errno.ENOSPC: "No space left on the disk",
    errno.EDQUOT: "No space left in the disk quota",
    errno.EFBIG: "A file would be larger than the limit of this shell or this disk allows (ulimit -f)",
}

ADVICE = {
    **dict.fromkeys(DISK, "Make room, or name another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Give yourself the permission, or name another place"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP), "Move away what lies there, or name "
                    "another place"),
    errno.ENAMETOOLONG: "Shorten study, dataset.name, model.name, budget.name or strategy.name, or the path",
}  # fmt: skip


@contextmanager
def accessible(path: Path, what: str, elsewhere: str = "results_dir=...") -> Iterator[None]:
    """Turn an OSError of the block into a UserError: which path cannot be read or written, why, and what to do.

    elsewhere: how the user names another place.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed: cli.command ends quietly
        raise
    except OSError as error:
        reason = DISK.get(error.errno, error.strerror)
        todo = ADVICE.get(error.errno, "Name another place")
        raise UserError(f"{error.filename or path} cannot be {what} ({reason}). {todo}: {elsewhere}") from None


def is_there(path: Path) -> bool:
    """Return whether anything has this name, even a dead link. Raises OSError if the system does not say."""
    try:
        path.lstat()
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_file(path: Path) -> bytes:
    """Return the content of a file. Raises UserError if it cannot be read, or is a folder, a pipe or a device."""
    with accessible(path, "read"):
        if not path.is_file():
            os.stat(path)
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(f"{path} is {kind}, not a file. Move it away.")
        return path.read_bytes()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of a file. A reader sees the old content or the new, never a part of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w" if isinstance(content, str) else "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
