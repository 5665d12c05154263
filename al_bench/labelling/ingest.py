"""al-bench ingest FOLDER FILE: take labels that were given elsewhere: a spreadsheet, a file manager, Label Studio."""

import argparse
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from al_bench import process
from al_bench.errors import UserError, told
from al_bench.labelling import given as elsewhere
from al_bench.labelling.finder import Finder
from al_bench.labelling.given import Given
from al_bench.labelling.labels import SKIP, UNSURE, ChangesTestLabel, Label, locked
from al_bench.labelling.options import class_names
from al_bench.labelling.session import Session
from al_bench.text import near, one_line, printable

LISTED = 20  # names in a message
INCOMPLETE = 3  # the exit code if some answers were not taken


@told
def main(arguments: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(
        prog="al-bench ingest", description="Take labels that were given elsewhere.",
        epilog=f"The exit code is {INCOMPLETE} if some answers were not taken.",
    )  # fmt: skip
    ask.add_argument("folder", help="the folder of images")
    ask.add_argument("file", type=Path, help="a CSV, an export of Label Studio, or a folder with a folder a class")
    ask.add_argument("--classes", type=class_names, default=[], help="comma-separated: classes that are added before")
    ask.add_argument("--who", help="a name that is noted with each answer")
    ask.add_argument("--correct-test", action="store_true", help="let answers change those of test images")
    options = ask.parse_args(arguments)
    process.prepare()
    session = Session(options.folder, who=options.who)
    with locked(session.home):
        session.labels.read_again()
        said = session.add_classes(options.classes)
        taken = take(session, elsewhere.read(options.file, session.classes), options.correct_test)
    print(printable("\n".join([*said, taken.text(options.folder)])))
    return INCOMPLETE if taken.refused else 0


@dataclass
class Taken:
    """What became of the answers of a file. refused: names by the reason."""

    new: Counter[str] = field(default_factory=Counter)
    same: int = 0
    told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    empty: int = 0
    notes: tuple[str, ...] = ()

    def text(self, folder: str) -> str:
        counts = ", ".join(f"{one_line(name)} {n:,}" for name, n in self.new.items())
        lines = [
            f"{self.new.total():,} answers are new{f' ({counts})' if counts else ''}, {self.same:,} were known.",
            *([f"{self.empty:,} images are not labelled there."] if self.empty else []),
            *(f"{why} ({len(names):,}): {_listed(names)}" for why, names in self.told.items()),
            *self.notes,
            *(f"Not taken ({len(names):,}), {why}: {_listed(names)}" for why, names in self.refused.items()),
        ]
        shown = shlex.quote(folder)
        return "\n".join([*lines, f"Next: al-bench suggest {shown}, or al-bench finish {shown}"])


def take(session: Session, read: elsewhere.Read, correct_test: bool) -> Taken:
    """Write the answers into labels.jsonl. What is not taken is told by name. The session's folder is locked."""
    taken = Taken(empty=read.empty, notes=read.notes)
    for path, given in _last_of_each(session, read, taken).items():
        before = session.labels.current.get(path)
        if before and before.answer == given.answer:
            taken.same += 1
        elif before and given.time and before.time and given.time < datetime.fromisoformat(before.time):
            taken.refused["older than the answer that the image has"].append(f"{path} ({before.answer})")
        else:
            _add(session, path, given, correct_test, taken)
    return taken


def _add(session: Session, path: str, given: Given, correct_test: bool, taken: Taken) -> None:
    try:
        item = session.item(path)
    except UserError:
        taken.refused["cannot be read any more"].append(path)
        return
    before = session.labels.current.get(path)
    # No seconds: `undo` in the page takes back answers with seconds, and the pace is measured on them.
    label = Label(
        path, given.answer, before.role if before else item.role, item.sha256, None, given.round, given.rank,
        given.shown, session.who or given.who or "ingest", given.time and given.time.isoformat(),
    )  # fmt: skip
    try:
        session.labels.add(label, correct_test)
    except ChangesTestLabel:
        why = "another answer for a test image (--correct-test allows it)"
        taken.refused[why].append(f"{path} ({before.answer}, not {given.answer})")
        return
    taken.new[given.answer] += 1
    if before:
        taken.told["Changed"].append(f"{path} ({given.answer}, was {before.answer})")


def _last_of_each(session: Session, read: elsewhere.Read, taken: Taken) -> dict[str, Given]:
    """The answer that counts of each image, by its path, as far as images and classes are known."""
    find, known = Finder(session.listing), (*session.classes, SKIP, UNSURE)
    found: dict[str, list[Given]] = defaultdict(list)
    for given in read.answers:
        name, answer = given.name or given.sha256 or "", _class(given.answer, known)
        path = find(given)
        if path is None:
            changed = find.by_name(name) and given.sha256
            why = "the file has changed since" if changed else "not among the images of the folder"
            taken.refused[why].append(name)
        elif answer is None:
            hint = near(given.answer, [*known]) or "--classes adds a class"
            taken.refused[f"the class {one_line(given.answer)} is unknown ({hint})"].append(path)
        else:
            found[path].append(replace(given, answer=answer))
    return {path: last for path, all_of in found.items() if (last := _one(path, all_of, read, taken))}


def _one(path: str, answers: list[Given], read: elsewhere.Read, taken: Taken) -> Given | None:
    said = [given.answer for given in answers]
    if len({*said}) > 1 and not read.ordered:
        taken.refused["in several class folders"].append(f"{path} ({', '.join(said)})")
        return None
    if len(said) > 1:
        what = "Several answers, the last counts" if len({*said}) > 1 else "Labelled more than once"
        taken.told[what].append(f"{path} ({', '.join(said)})" if len({*said}) > 1 else path)
    return answers[-1]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(one_line, names[:LISTED])) + (", ..." if len(names) > LISTED else "")


def _class(answer: str, known: Sequence[str]) -> str | None:
    """The class that is meant: spreadsheets may have changed its case, or quoted it against formulas."""
    alike = [name for name in known if name.casefold() == answer.removeprefix("'").casefold()]
    return answer if answer in known else alike[0] if len(alike) == 1 else None
