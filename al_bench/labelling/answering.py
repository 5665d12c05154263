"""What the page asks a session for, and what it is told, as JSON. An image's id is its place in the list of images."""

import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from al_bench.errors import UserError
from al_bench.labelling.advice import advise
from al_bench.labelling.labels import TEST, ChangesTestLabel, Label
from al_bench.labelling.progress import Item
from al_bench.labelling.session import Session
from al_bench.text import one_line

AHEAD = 12  # images that the page gets at once
LIKELY = 9  # classes of an image that the page gets with their probabilities


class Contradiction(UserError):
    """The image has another answer already. kept: that one."""

    def __init__(self, label: Label, answer: str) -> None:
        self.kept, self.test = label.answer, label.role == TEST
        what = ", and it is a test image" if self.test else ""
        super().__init__(
            f"{one_line(label.path)} is labelled {one_line(label.answer)} already{what}. "
            f"Your answer {one_line(answer)} is not kept."
        )


class Answering:
    """The session in the words of the page. Threads may share it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.paths = session.listing.paths
        self.ids = {path: number for number, path in enumerate(self.paths)}

    def state(self) -> dict[str, Any]:
        """How far the labelling is."""
        session = self.session
        now = session.progress()
        picks = session.predicted.picks if session.predicted else None  # once there, the predictions stay
        return asdict(now) | {
            "counts": None,  # the page needs none, and they may be many
            "accuracy": [asdict(measured) for measured in now.accuracy[-1:]],
            "weak": [{"text": one_line(name), "share": share, "n": n} for name, share, n in now.weak],
            "advice": advise(now.accuracy, now.seconds, now.images - now.labelled, now.flipped, picks).text,
            "classes": [{"name": c, "text": one_line(c), "n": now.counts.get(c, 0)} for c in session.classes],
            "finish": one_line(f"al-bench finish {shlex.quote(str(session.listing.folder))}"),
            "notes": [one_line(note) for note in (*session.notes, *session.copies.told())],
        }  # fmt: skip

    def next(self, first: list[int]) -> dict[str, Any]:
        """The next images. first: ids of those on the screen, which stay first while they are wanted."""
        items = self.session.next(AHEAD, [self._path(id) for id in first])
        return {"items": [self._item(item) for item in items]}

    def answer(
        self, id: int, answer: str, seconds: float, shown: str | None = None, first: str | None = None,
        correct: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Keep an answer. Raises Contradiction if the image has another one already, unless correct."""
        path = self._path(id)
        if not isinstance(answer, str) or not isinstance(shown, str | None) or not isinstance(first, str | None):
            raise UserError("An answer is a text.")
        if not isinstance(seconds, float | int) or not math.isfinite(seconds):
            raise UserError("The seconds are no number.")  # an undo tells a person's answers by them
        with self.session.lock:
            before = self.session.labels.current.get(path)
            if before and before.answer != answer and correct is not True:
                raise Contradiction(before, answer)
            try:
                self.session.answer(path, answer, seconds, shown, first, correct is True)
            except ChangesTestLabel:
                raise Contradiction(before, answer) from None
            return {"labelled": len(self.session.labels.current)}

    def undo(self) -> dict[str, Any]:
        """Take back the last answer. item: its image, or None if there is none."""
        item = self.session.undo()
        return {"item": item and self._item(item), "labelled": len(self.session.labels.current)}

    def add_class(self, name: str) -> dict[str, Any]:
        """A further class. said: what it means for the run, or None."""
        if not isinstance(name, str):
            raise UserError("The name of a class is a text.")
        return {"said": self.session.add_class(name.strip())}

    def file(self, id: str) -> Path:
        """The file of an image. Raises UserError if there is no such id."""
        return self.session.listing.file(self._path(int(id) if id.isascii() and id.isdecimal() and len(id) < 9 else -1))

    def _path(self, id: int) -> str:
        if not isinstance(id, int) or not 0 <= id < len(self.paths):
            raise UserError("There is no image of this number.")
        return self.paths[id]

    def _item(self, item: Item) -> dict[str, Any]:
        likely = [[name, round(share, 4)] for name, share in self.session.likely(item.path)[:LIKELY]]
        return {"id": self.ids[item.path], "text": one_line(item.path), "likely": likely}


POSTS = {"next": Answering.next, "answer": Answering.answer, "undo": Answering.undo, "class": Answering.add_class}
