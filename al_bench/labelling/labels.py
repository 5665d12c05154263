"""The answers of a person: labels.jsonl, one line an answer, never rewritten. Nothing here imports torch.

An undo is a further line without an answer. Of several lines on one image the last one counts.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import filelock

from al_bench.errors import UserError
from al_bench.files import DISK, accessible, is_there, read_file
from al_bench.labelling import ELSEWHERE
from al_bench.provenance import now
from al_bench.records import split_lines
from al_bench.text import one_line

SKIP, UNSURE = "skip", "unsure"  # answers that name no class: the image leaves the pool and is not trained on
FOLDER, PROGRAM = "folder", "al-bench"  # who labelled: sub-folders named like classes; al_bench, for a lost file
TEST, VALIDATION, TRAIN = ROLES = "test", "validation", "train"


@dataclass(frozen=True)
class Label:
    """One line of labels.jsonl."""

    path: str  # of the image, below the folder of images
    answer: str | None  # a class, SKIP or UNSURE; None undoes the answers before it
    role: str = TRAIN
    sha256: str | None = None  # of the image's file
    seconds: float | int | None = None  # from the image on the screen to the key
    round: int | None = None  # the first round that trains on it; None: nobody asked for it
    rank: int | None = None  # its place among the images that were asked for together
    shown: str | None = None  # the predicted class that the person saw as such before answering
    who: str | None = None
    time: str | None = None
    first: str | None = None  # the class that stood first, where the likely ones did; nothing said that it is predicted

    @property
    def of_class(self) -> bool:
        return self.answer not in (None, SKIP, UNSURE)


class ChangesTestLabel(UserError):
    """A test image would get another answer than it has."""


class Labels:
    """labels.jsonl, read once and appended to. One process may write: `locked` sees to it. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.current = path, [], {}
        self._lock = threading.RLock()
        self.read_again()

    def read_again(self) -> None:
        """Read what another process has appended since."""
        with self._lock:
            self.lines = read_lines(self.path)
            self.current = fold(self.lines)

    def add(self, label: Label, correct_test: bool = False) -> Label | None:
        """Write the label to the disk. Returns the earlier label of the image if its answer was another one.

        An answer that the image has already is not written again. Raises ChangesTestLabel if a test image has another
        answer, unless correct_test, and UserError if the disk is full: the file then holds what it held before.
        """
        with self._lock:
            before = self.current.get(label.path)
            if before and before.answer == label.answer:
                return None
            if before and before.role == TEST and not correct_test:
                raise ChangesTestLabel(
                    f"{one_line(label.path)} is a test image and is labelled {before.answer} already, not "
                    f"{label.answer}. If the earlier answer is wrong, allow the correction of test labels."
                )
            self._write(label)
            return before

    def undo(self, path: str) -> Label | None:
        """Take back the current answer of an image. Returns it, or None if the image has none."""
        with self._lock:
            if before := self.current.get(path):
                self._write(Label(path, None, before.role, before.sha256, round=before.round, rank=before.rank))
            return before

    def order(self) -> list[Label]:
        """The current labels in the order in which they were given: the last is what an undo takes back."""
        with self._lock:
            return list(self.current.values())

    def _write(self, label: Label) -> None:
        label = Label(**asdict(label) | {"time": label.time or now()})
        append(self.path, label)
        self.lines.append(label)
        _apply(self.current, label)


def fold(lines: Iterable[Label]) -> dict[str, Label]:
    """The current label of each image, by its path, in the order in which they were given."""
    current: dict[str, Label] = {}
    for label in lines:
        _apply(current, label)
    return current


def _apply(current: dict[str, Label], label: Label) -> None:
    current.pop(label.path, None)
    if label.answer is not None:
        current[label.path] = label


def read_lines(path: Path) -> list[Label]:
    """All lines of a labels.jsonl; none if it is not there. A last line that was cut short is left out.

    Raises UserError with the number of the first line that is no label.
    """
    if not is_there(path):
        return []
    lines = split_lines(read_file(path))[0]
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


FIELDS = {f.name: f.type for f in fields(Label)}


def _parsed(path: Path, number: int, line: bytes) -> Label:
    try:
        content = json.loads(line)
        if not isinstance(content, dict) or not {"path", "answer"} <= content.keys() <= FIELDS.keys():
            raise ValueError("it needs path and answer, and may have " + ", ".join([*FIELDS][2:]))
        if why := next((name for name, value in content.items() if not isinstance(value, FIELDS[name])), None):
            raise ValueError(f"{why} is {content[why]!r}")
        if content.get("role", TRAIN) not in ROLES:
            raise ValueError(f"role is {content['role']!r}, not one of {', '.join(ROLES)}")
        return Label(**content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is not a label ({error}). Correct the line or delete it.") from None


def append(path: Path, label: Label) -> None:
    """Append a line and sync it to the disk. A line that was cut short before is removed first.

    Raises UserError if the disk is full. The file then holds what it held before.
    """
    line = json.dumps({k: v for k, v in asdict(label).items() if v is not None or k == "answer"}).encode() + b"\n"
    with accessible(path, "written", ELSEWHERE), open(path, "ab", buffering=0) as file:
        before = _end_of_whole_lines(path, file.tell())
        try:
            os.ftruncate(file.fileno(), before)
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError as error:
            os.truncate(path, before)
            if what := DISK.get(error.errno):
                raise UserError(
                    f"{what} ({path}), so the last answer was not kept; all before it are. Make room and answer again."
                ) from None
            raise


def _end_of_whole_lines(path: Path, size: int) -> int:
    """Where the next line begins. A kill may have cut the last one short."""
    if not size:
        return 0
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        return size - len(split_lines(file.read())[1])


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Let one process label in this folder. Raises UserError if another one does. The kernel ends a killed one's."""
    lock = filelock.FileLock(home / ".lock", timeout=1, thread_local=False)
    with accessible(home, "written", ELSEWHERE):
        home.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"Another al-bench label is at work in {home}. Go on there, or stop it: two would spoil the labels."
            ) from None
    try:
        yield
    finally:
        lock.release()
