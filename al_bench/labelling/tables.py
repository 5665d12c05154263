"""Tables as CSV: written for spreadsheets and programs, and what they make of paths."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from al_bench.files import accessible, write_atomically
from al_bench.text import as_cell, one_line

BOM = "\ufeff"  # tells spreadsheets that the file is UTF-8


def table(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([as_cell(value) for value in row] for row in rows)
    return text.getvalue()


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Raises UserError if the disk is full."""
    with accessible(path, "written", "--out"):
        write_atomically(path, (BOM + table([header, *rows])).encode())


def path_cell(path: str) -> str:
    """A path as a cell shows it: no formula, no line break, no byte that is not UTF-8."""
    return one_line(f"./{path}" if path.startswith(("=", "+", "-", "@")) else path)
