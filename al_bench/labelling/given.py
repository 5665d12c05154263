"""Read what was labelled elsewhere: a CSV of any kind, a folder of class folders, Label Studio's exports."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from al_bench.errors import UserError
from al_bench.files import accessible, read_file
from al_bench.labelling import label_studio
from al_bench.labelling.links import class_folders
from al_bench.text import one_line

# The columns that are looked for, the first that a table has.
NAMES, CLASSES = (
    ("path", "file", "filename", "file_name", "image", "name"),
    ("label", "class", "answer", "category", "choice"),
)
TIMES, WHO = ("time", "updated_at", "created_at"), ("who", "annotator")
KINDS = "Name a CSV, an export of Label Studio, or a folder with a folder a class."
NO_SKIPS = (
    "Label Studio leaves skipped tasks out of CSV and JSON_MIN, so it is not known which were skipped: JSON has them."
)


@dataclass(frozen=True)
class Given:
    """One answer that a file holds."""

    name: str | None  # of the image's file, as it was written
    answer: str
    sha256: str | None = None
    file: Path | None = None  # a copy of the image, or a link to it
    round: int | None = None
    rank: int | None = None
    shown: str | None = None
    who: str | None = None
    time: datetime | None = None


@dataclass(frozen=True)
class Read:
    answers: list[Given]  # in the order in which they count: a later one replaces an earlier one
    empty: int  # images that are listed without an answer
    notes: tuple[str, ...] = ()
    ordered: bool = True  # False: of two answers on one image none is the later one


def read(path: Path, classes: Sequence[str]) -> Read:
    """Raises UserError if the file is of no kind that is known."""
    shown = one_line(str(path))
    if path.is_dir():
        return _folder(path, classes)
    if not path.exists():
        raise UserError(f"There is no file {shown}. {KINDS}")
    text = _decoded(read_file(path))
    if text.lstrip()[:1] in ("[", "{"):
        return _json(shown, text)
    if "\0" in text:
        raise UserError(f"{shown} is no text. {KINDS}")
    return _csv(shown, text)


def _decoded(content: bytes) -> str:
    """The text of a file as spreadsheets save it."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _json(shown: str, text: str) -> Read:
    try:
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(task, dict) for task in found):
            raise ValueError("it is no list of tasks")
        if any("data" in task for task in found):
            return _read(shown, [*label_studio.rows_of(found)], sum(not task.get("annotations") for task in found))
        return _read(shown, found, notes=(NO_SKIPS,))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{shown} is no JSON or JSON_MIN export of Label Studio ({error!r}). Export again.") from None


def _csv(shown: str, text: str) -> Read:
    lines = text.splitlines(keepends=True)
    if lines and lines[0].lower().startswith("sep="):
        lines = lines[1:]
    header = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t|", key=header.count)
    try:
        rows = [*csv.DictReader(io.StringIO("".join(lines), newline=""), delimiter=delimiter, restval="")]
    except csv.Error as error:
        raise UserError(f"{shown} cannot be read as CSV ({error}). Save it as CSV again.") from None
    columns = {name: name.strip().lower() for name in rows[0] if name} if rows else {}
    if not rows:
        raise UserError(f"{shown} has no row below its first line. The first line names the columns: path and label.")
    plain = [{columns[name]: value.strip() for name, value in row.items() if name in columns} for row in rows]
    return _read(shown, plain, notes=(NO_SKIPS,) if "annotation_id" in plain[0] else ())


def _read(shown: str, rows: Sequence[Mapping[str, Any]], empty: int = 0, notes: tuple[str, ...] = ()) -> Read:
    """The answers of rows with named columns, the oldest first where all have a time."""
    there = {name for row in rows for name in row}
    if rows and not there & {*NAMES, "sha256"} or rows and not there & {*CLASSES}:
        raise UserError(
            f"{shown} has the columns {', '.join(map(one_line, sorted(there)))}. It needs path (or sha256) and label."
        )
    found = [given for row in rows if (given := _given(row))]
    if found and all(given.time for given in found):
        found.sort(key=lambda given: given.time)  # stable
    return Read(found, empty + len(rows) - len(found), notes)


def _given(row: Mapping[str, Any]) -> Given | None:
    """The answer of a row; None if its label is empty."""
    name, answer = _first(row, NAMES), _first(row, CLASSES)
    if not answer:
        return None
    if isinstance(answer, list | dict) or str(answer).startswith('{"choices"'):
        choices = json.loads(answer) if isinstance(answer, str) else answer
        label_studio.refuse_several(str(name), choices["choices"] if isinstance(choices, dict) else choices)
    sha256 = str(row.get("sha256") or "").lower()
    who = _first(row, WHO)
    return Given(
        str(name) if name else None, str(answer).strip(), sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else None,
        None, _int(row.get("round")), _int(row.get("rank")), row.get("shown") or None, str(who) if who else None,
        _time(_first(row, TIMES)),
    )  # fmt: skip


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name)), None)


def _int(value: Any) -> int | None:
    return int(value) if re.fullmatch(r"\d{1,9}", str(value)) else None


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    except ValueError:
        return None


def _folder(root: Path, classes: Sequence[str]) -> Read:
    """Files below a folder of a class have this class; those beside the class folders are not labelled."""
    names = {folder: name for name, folder in class_folders(classes).items()}
    with accessible(root, "read", "--out"):
        files = [root / name for name in sorted(_visible(root))]
        found = [_sorted(root, file, names) for file in files]
    return Read([given for given in found if given], found.count(None), ordered=False)


def _visible(root: Path) -> Iterator[str]:
    for home, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini"):
                yield os.path.relpath(os.path.join(home, name), root)


def _sorted(root: Path, file: Path, names: Mapping[str, str]) -> Given | None:
    parts = file.relative_to(root).parts
    if len(parts) < 2:
        return None
    return Given(file.name, names.get(parts[0], parts[0]), file=file)
