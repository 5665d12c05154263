"""al-bench label FOLDER [--classes cat,dog] [key=value ...]: label the images of a folder."""

import argparse
import logging
import shlex
import threading
import time
import webbrowser
from collections.abc import Sequence

from al_bench import process, signals
from al_bench.errors import UserError, told
from al_bench.labelling.growth import take_in_new
from al_bench.labelling.images import labelled_by_folder
from al_bench.labelling.labels import locked
from al_bench.labelling.options import class_names, read_with_settings
from al_bench.labelling.server import served
from al_bench.labelling.session import Session
from al_bench.text import one_line, printable

LOOK = 0.5  # seconds between two looks at whether the program is to stop


@told
def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    process.prepare()
    log = logging.getLogger("al_bench")
    log.propagate = False  # the run writes its own run.log
    if options.remove_class:
        print(printable(without_class(options)))
        return 0
    if options.new:
        print(printable(take_in_new(options.folder)))
    with opened(options) as session:
        for note in (*session.notes, *([] if options.use_folders else folders_named_like_classes(session))):
            print(printable(note))
        label(session, options)
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    ask = argparse.ArgumentParser(
        prog="al-bench label", description="Label the images of a folder, the most useful first."
    )
    ask.add_argument("folder", help="of images, flat or nested")
    ask.add_argument(
        "--classes", type=class_names, default=[], help="comma-separated: cat,dog; more can be added on the way"
    )
    ask.add_argument("--remove-class", metavar="NAME", help="remove a class that no image has, and do no more")
    ask.add_argument("--new", action="store_true", help="take in images that have come into the folder since")
    ask.add_argument("--who", help="a name that is noted with each answer")
    ask.add_argument(
        "--use-folders",
        action="store_true",
        help="images in sub-folders that are named like classes are labelled already",
    )
    ask.add_argument("--no-browser", action="store_true", help="print the address of the page, and open nothing")
    ask.add_argument("--port", type=int, default=0, help="of the page; without it a free one")
    return read_with_settings(ask, arguments)


def opened(options: argparse.Namespace) -> Session:
    """The session that these options ask for; to be used with `with`."""
    return Session(options.folder, options.classes, options.overrides, options.who, options.use_folders)


def without_class(options: argparse.Namespace) -> str:
    session = opened(options)
    with locked(session.home):
        session.labels.read_again()
        return remove_class(session, options.remove_class)


def folders_named_like_classes(session: Session) -> list[str]:
    """A sentence on images that lie as if they were labelled, if there are such."""
    found = labelled_by_folder(session.listing, session.classes)
    n = sum(path not in session.labels.current for path, _ in found)
    said = f"{n:,} images lie in sub-folders that are named like classes. --use-folders takes these names as labels."
    return [said] if n else []


def label(session: Session, options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    with served(session, options.port) as server:
        try:
            print(
                f"Label in the browser: {server.url}\nCtrl-C ends the program; every answer is kept at once.",
                flush=True,
            )
            if not options.no_browser:
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()  # some do not return
            while True:  # a wait without end was seen to sleep through a Ctrl-C while the backbone computed
                time.sleep(LOOK)
                signals.stop_if_asked()
        finally:
            now = session.progress()
            folder = printable(shlex.quote(str(session.listing.folder)))
            print(
                f"\n{now.labelled:,} of {now.images:,} images are labelled. Their answers are in "
                f"{printable(str(session.labels.path))}.\n"
                f"Go on: al-bench label {folder}\nOr end: al-bench finish {folder}",
                flush=True,
            )  # fmt: skip


def remove_class(session: Session, name: str) -> str:
    """Remove a class that no image has. Returns a sentence. Raises UserError."""
    with session.lock:
        if name not in session.classes:
            raise UserError(f"{one_line(name)} is none of the classes: {', '.join(map(one_line, session.classes))}.")
        if n := sum(label.answer == name for label in session.labels.current.values()):
            raise UserError(
                f"{n:,} images are labelled {one_line(name)}. Give them other answers first: al-bench ingest."
            )
        begun = session.set_classes([other for other in session.classes if other != name])
        return f"The class {one_line(name)} is removed.{' A new run begins. All labels are kept.' if begun else ''}"
