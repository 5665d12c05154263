"""al-bench suggest FOLDER: what to label next, for people who label elsewhere: as CSV, folders, or for Label Studio."""

import argparse
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from al_bench import process
from al_bench.errors import UserError, told
from al_bench.files import accessible, is_there, write_atomically
from al_bench.labelling import label_studio, links, tables
from al_bench.labelling.advice import beside_random
from al_bench.labelling.final import labelled, train
from al_bench.labelling.images import home_of, list_images
from al_bench.labelling.labels import SKIP, UNSURE
from al_bench.labelling.options import class_names, read_with_settings
from al_bench.labelling.progress import Item
from al_bench.labelling.session import Session
from al_bench.labelling.settings import read_settings
from al_bench.labelling.tables import path_cell
from al_bench.text import one_line, printable

CSV, FOLDERS, LABEL_STUDIO = "csv", "folders", "label_studio"
COLUMNS = ["path", "label", "rank", "round", "sha256"]


@told
def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    process.prepare()
    logging.getLogger("al_bench").propagate = False  # the run writes its own run.log
    print(printable(suggest(options)))
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    ask = argparse.ArgumentParser(prog="al-bench suggest", description="What to label next, to be labelled elsewhere.")
    ask.add_argument("folder", help="of images, flat or nested")
    ask.add_argument("--n", type=int, default=100, help="how many images")
    ask.add_argument("--to", choices=[CSV, FOLDERS, LABEL_STUDIO], default=CSV, help="the kind of file")
    ask.add_argument("--classes", type=class_names, default=[], help="comma-separated: cat,dog")
    ask.add_argument("--predictions", action="store_true", help="show the model's classes in Label Studio; this biases")
    ask.add_argument("--out", type=Path, help="the file or folder to write; usually in FOLDER-labels/suggested")
    options = read_with_settings(ask, arguments)
    if options.n < 1:
        ask.error(f"--n {options.n}: 1 or more")
    if options.predictions and options.to != LABEL_STUDIO:
        ask.error("--predictions is for --to label_studio")
    return options


@dataclass(frozen=True)
class Batch:
    """Images to label, in their order."""

    folder: Path
    items: list[Item]
    classes: tuple[str, ...]
    notes: list[str]


def suggest(options: argparse.Namespace) -> str:
    """Write the next images to label. Returns what to do with them, in sentences. Raises UserError."""
    batch = chosen(options)
    home = home_of(batch.folder) / "suggested"
    write = {CSV: to_csv, FOLDERS: to_folders, LABEL_STUDIO: to_label_studio}[options.to]
    place = options.out or _free(home, {CSV: ".csv", FOLDERS: "", LABEL_STUDIO: ".json"}[options.to])
    with accessible(place, "written", "--out"):
        place.parent.mkdir(parents=True, exist_ok=True)
        said = write(batch, place, *([options.predictions] if options.to == LABEL_STUDIO else []))
    return "\n".join([*batch.notes, f"{len(batch.items):,} images to label, in the order in which to ask:", *said])


def chosen(options: argparse.Namespace) -> Batch:
    """The images that `al-bench label` would ask for next."""
    classes = options.classes
    before, overrides = read_settings(options.folder), [*options.overrides]
    if options.to != CSV and len({*classes, *(before.classes if before else ())}) < 2:
        raise UserError(f"--to {options.to} needs the classes: --classes cat,dog")
    if before is None and not any(o.startswith("budget.query=") for o in overrides):
        most = len(list_images(options.folder).images) // 4  # the pool of a small folder is small
        overrides.append(f"budget.query={max(1, min(options.n, most))}")
    with Session(options.folder, classes, overrides) as session:
        now = session.wait(chosen=True)
        if now.error:
            raise UserError(now.error)
        items, classes = session.next(options.n), session.classes
        notes = [*session.notes]
        if session.predicted and session.predicted.picks:
            notes.append(beside_random(session.predicted.picks))
    if not items:
        raise UserError(f"Nothing is left to label: the run is {now.state}. Next: al-bench finish {options.folder}")
    if len(items) < options.n:
        notes.append(
            f"{now.left:,} images are asked for now; the next {session.base.budget.query:,} are chosen when they are "
            "labelled (budget.query, which the first command on a folder sets)."
        )
    return Batch(session.listing.folder, items, classes, notes)


def _free(home: Path, ending: str) -> Path:
    """A name that no batch has: what was filled in is never overwritten."""
    number = 1
    while any(is_there(home / f"batch-{number}{e}") for e in (".csv", ".json", "")):
        number += 1
    return home / f"batch-{number}{ending}"


def to_csv(batch: Batch, place: Path) -> list[str]:
    _refuse_there(place)
    rows = ([path_cell(i.path), "", i.rank, i.round, i.sha256] for i in batch.items)
    tables.write(place, COLUMNS, rows)
    names = ", ".join(map(one_line, batch.classes)) or "the class"
    return [
        f"  {place}",
        f"Fill in the column label: {names}, or {SKIP} or {UNSURE}. Empty cells are not labelled yet.",
        f"Then: al-bench ingest {_quoted(batch.folder)} {_quoted(place)}",
    ]


def to_folders(batch: Batch, place: Path) -> list[str]:
    """Numbered links beside a folder for each class."""
    _refuse_there(place)
    width = len(str(len(batch.items)))
    names = [f"{n:0{width}d} {path_cell(i.path).replace('/', '_')[-150:]}" for n, i in enumerate(batch.items, start=1)]
    copies = links.make(place, dict(zip(names, (i.file for i in batch.items), strict=True)))
    for folder in links.class_folders([*batch.classes, SKIP, UNSURE]).values():
        (place / folder).mkdir(exist_ok=True)
    return [
        f"  {place}",
        *([f"{copies:,} of them are copies: this disk has no links."] if copies else []),
        f"Move each into one of its folders: {', '.join(map(one_line, batch.classes))}, {SKIP} or {UNSURE}.",
        f"Then: al-bench ingest {_quoted(batch.folder)} {_quoted(place)}",
    ]


def to_label_studio(batch: Batch, place: Path, predictions: bool) -> list[str]:
    view = place.with_suffix(".xml")
    for path in (place, view):
        _refuse_there(path)
    guesses, by = _guesses(batch) if predictions else ({}, "")
    tasks = [label_studio.task(i, batch.folder, batch.classes, guesses.get(i.path), by) for i in batch.items]
    write_atomically(view, label_studio.configuration(batch.classes))
    write_atomically(place, json.dumps(tasks, indent=1) + "\n")
    return [f"  {place}", f"  {view}", *label_studio.steps(batch.folder, place, view)]


def _guesses(batch: Batch) -> tuple[dict[str, tuple[str, float]], str]:
    """(class and probability by path, the name of the model): of a model of all labels so far."""
    final = train(labelled(batch.folder))
    top = final.probs_NC.max(1)
    found = {path: (final.classes[int(top.indices[row])], float(top.values[row])) for path, row in final.rows.items()}
    return found, f"{final.labelled.config.model.name}-{len(final.pool.labelled_L)}-labels"


def _refuse_there(place: Path) -> None:
    if is_there(place):
        raise UserError(f"{one_line(str(place))} is there already. Name another place: --out")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
