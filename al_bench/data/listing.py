"""Which image an index is: a table for people, beside the runs of a study. The program never reads it."""

import csv
import errno
import functools
import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from al_bench.files import write_atomically
from al_bench.text import one_line

log = logging.getLogger("al_bench")


def write_listing(folder: Path, files: Sequence[str], classes: Iterable[str]) -> Path | None:
    """Write images-<checksum>.csv, one row for each image, once for all runs on the same images.

    files: the names of the images' files; empty for data without files. Returns None if it cannot be written.
    """
    table = _table(tuple(files), tuple(classes))
    path = folder / f"images-{hashlib.sha256(table.encode()).hexdigest()[:12]}.csv"
    try:
        if not path.exists():
            write_atomically(path, table)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning(f"{path} cannot be written ({error.strerror}), so no file says which image an index is.")
        return None
    return path


@functools.lru_cache(1)  # the runs of a process show the same images
def _table(files: tuple[str, ...], classes: tuple[str, ...]) -> str:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["index", *(["file"] if files else []), "class"])
    names = ((_as_path(name),) for name in files) if files else iter(lambda: (), None)
    rows.writerows((i, *name, _as_text(label)) for i, (name, label) in enumerate(zip(names, classes, strict=False)))
    return table.getvalue()


def _is_formula(text: str) -> bool:
    return text.startswith(("=", "+", "-", "@"))  # to a spreadsheet


def _as_path(name: str) -> str:
    return one_line(f"./{name}" if _is_formula(name) else name)


def _as_text(label: str) -> str:
    return one_line(f"'{label}" if _is_formula(label) else label)
