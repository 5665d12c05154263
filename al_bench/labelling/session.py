"""One person at work on one folder: what to label next, answers, and the run that goes on in the background.

A page needs nothing else. All methods may be called from any thread. N images of the data set, C classes.
"""

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from al_bench import process, signals
from al_bench.data.pool import NoneUseful
from al_bench.errors import UserError
from al_bench.files import is_there
from al_bench.labelling import labels as answers
from al_bench.labelling.advice import measured, weak_classes
from al_bench.labelling.copies import Copies
from al_bench.labelling.images import LABELS, home_of, labelled_by_folder, list_images, refuse_classes, test_images
from al_bench.labelling.labels import FOLDER, PROGRAM, SKIP, TEST, TRAIN, UNSURE, Label, Labels
from al_bench.labelling.predicted import Predicted, predictions
from al_bench.labelling.progress import Item, Progress, pace, queue_of, tested
from al_bench.labelling.settings import composed, for_model, next_run, of_run, settings_of, write_settings
from al_bench.store import RunStore
from al_bench.text import one_line
from al_bench.waiting import LabelsWanted

log = logging.getLogger("al_bench")


class Session:
    """Open with `with`. It locks FOLDER-labels, so a second session on the same folder raises UserError."""

    def __init__(
        self, folder: str | Path, classes: Sequence[str] = (), overrides: Sequence[str] = (), who: str | None = None,
        use_folders: bool = False,
    ) -> None:  # fmt: skip
        """classes, overrides: later sessions may leave them out. Classes that the folder lacks are added. use_folders:
        take the names of sub-folders that are classes as labels. Raises UserError.
        """
        self.home, self.who = home_of(folder), who
        self.listing = list_images(folder)
        self.settings, said = settings_of(folder, classes, overrides)
        made = composed(self.listing, self.settings.overrides)
        self.base = made.config
        self.settings, more = for_model(self.settings, self.base.model.name)
        self.notes = (*said, *more, *self.listing.notes, *made.notes)
        self.labels = Labels(self.home / LABELS)
        self.copies = Copies(self.labels, self.listing)
        self.decoded = self.copies.find
        self.lock = threading.Condition(threading.RLock())
        self.error: str | None = None
        self.predicted: Predicted | None = None
        self._asked_classes, self._use_folders, self._thread = classes, use_folders, None
        self._closing = self._finished = self._waited = self._new_run = False
        self._run_classes: tuple[str, ...] = ()  # the classes of the run at work
        self._outstanding: set[str] | None = None  # what the run waits for; None while it does not wait
        self._mendable = False  # whether another answer may mend the error
        self._stale = False  # the run has read an answer, or a class list, that is another one now
        first = test_images(self.listing, self.base.dataset.test_fraction, self.base.seed)
        self._tested = {*first}  # they can be labelled while the others are decoded
        self._queue = [Item(path, "", self.listing.folder / path, TEST) for path in first]

    # -- the session --

    def __enter__(self) -> "Session":
        self._locked = answers.locked(self.home)
        self._locked.__enter__()
        self.labels.read_again()
        self.notes = (*self.add_classes(self._asked_classes), *self.notes)
        if self._use_folders:
            self._take_folders()
        write_settings(self.listing.folder, self.settings)
        self._thread = threading.Thread(target=self._work, name=process.COMPUTING, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            self._closing = True
            self.lock.notify_all()
        self._thread.join(timeout=5)
        self._locked.__exit__(None, None, None)

    @property
    def store(self) -> RunStore:
        """The run folder of the current run."""
        return RunStore(of_run(self.base, self.settings))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.settings.classes

    def add_class(self, name: str) -> str | None:
        """Add a class. Returns what it means where images were trained on already: a new run with all labels kept."""
        with self.lock:
            if name in self.classes:
                return None
            begun = self.set_classes([*self.classes, name])
            return f"With the class {one_line(name)} a new run begins. All labels are kept." if begun else None

    def add_classes(self, names: Sequence[str]) -> list[str]:
        """Add those that the folder lacks. Returns sentences on these, and on classes that are not among the names."""
        with self.lock:
            known = self.classes
            new = {one_line(name): self.add_class(name) for name in names if name not in known}
            said = [" ".join(filter(None, (f"{name} is a new class.", what))) for name, what in new.items()]
            if names and (others := [one_line(name) for name in known if name not in names]):
                said.append(f"Classes that were not named stay: {', '.join(others)}. --remove-class takes one away.")
            return said

    def set_classes(self, classes: Sequence[str]) -> bool:
        """Returns whether a new run begins, because the one before has trained on other classes. Raises UserError."""
        refuse_classes(classes)
        begun = is_there(self.store.rounds_path)
        self.settings = replace(self.settings, classes=tuple(classes))
        self._begin_anew() if begun else write_settings(self.listing.folder, self.settings)
        self._set_stale()
        return begun

    # -- items and answers --

    def next(self, n: int = 1, first: Sequence[str] = ()) -> list[Item]:
        """The next n images to label. Those of `first`, paths that are on screen, come first if they are still wanted.

        Images whose files are gone are skipped on the way, and recorded as such.
        """
        with self.lock:
            wanted = [item for item in self._queue if item.path not in self.labels.current]
            wanted.sort(key=lambda item: item.path not in first)  # stable
            found = []
            for item in self.copies.once(wanted):
                if len(found) == n:
                    break
                try:
                    found.append(replace(item, sha256=self.listing.sha256(item.path)))
                except OSError:
                    self._keep(Label(item.path, SKIP, item.role, round=item.round, rank=item.rank, who=PROGRAM))
            return found

    def answer(
        self, path: str, answer: str, seconds: float | None = None, shown: str | None = None, first: str | None = None,
        correct_test: bool = False,
    ) -> Label | None:  # fmt: skip
        """Keep an answer: a class, "skip" or "unsure". Returns the earlier label if it was another one.

        shown, first: as in Label. Raises UserError for an unknown image or class, or a full disk, and
        labels.ChangesTestLabel unless correct_test.
        """
        if answer not in (*self.classes, SKIP, UNSURE):
            known = ", ".join(map(one_line, (*self.classes, SKIP, UNSURE)))
            raise UserError(f"{one_line(answer)} is no class. There are {known}. Add the class first.")
        with self.lock:
            item = self.item(path)
            before = self.labels.current.get(item.path)
            item = replace(item, role=before.role, round=before.round, rank=before.rank) if before else item
            label = Label(
                item.path, answer, item.role, item.sha256, seconds, item.round, item.rank, shown, self.who, first=first
            )  # fmt: skip
            return self._keep(label, correct_test)

    def undo(self) -> Item | None:
        """Take back the last answer that a person gave here. It is the next image again. None: there is no such."""
        with self.lock:
            given = [label for label in self.labels.order() if label.seconds is not None]
            if not given:
                return None
            last = self.labels.undo(given[-1].path)
            self._note_change(last.path)
            item = Item(last.path, last.sha256 or "", self.listing.file(last.path), last.role, last.round, last.rank)
            self._queue = [item, *(other for other in self._queue if other.path != item.path)]
            self._follow()
            return item

    def item(self, path: str) -> Item:
        """The image of this path or of a copy of it. Raises UserError if it is not listed or gone."""
        with self.lock:
            try:
                path = self.listing.canonical[path]
                queued = next((item for item in self._queue if item.path == path), None)
                item = queued or Item(path, "", self.listing.file(path), self._role(path))
                return replace(item, sha256=self.listing.sha256(path))
            except KeyError:
                raise UserError(f"{one_line(path)} is not among the images of {self.listing.folder}.") from None
            except OSError as error:
                raise UserError(f"{one_line(path)} cannot be read ({error.strerror}). Bring it back.") from None

    # -- what the person is told --

    def progress(self) -> Progress:
        with self.lock:
            current, left, records = self.labels.current, self._n_left(), self.store.records()
            return Progress(
                state=self._state(left),
                done=len(self._queue) - left,
                left=left,
                labelled=len(current),
                images=self.copies.n_images(),
                seconds=pace(self.labels.order()),
                counts=dict(Counter(label.answer for label in current.values())),
                accuracy=measured(records, self.store.info()),
                weak=weak_classes(records[-1], self.classes, tested(current.values())) if records else [],
                flipped=self.predicted.flipped if self.predicted else None,
                error=self.error,
            )

    def likely(self, path: str) -> list[tuple[str, float]]:
        """The classes of an image with their probabilities, the likeliest first. Empty before the first training."""
        with self.lock:
            return self.predicted.of(self.listing.canonical[path]) if self.predicted else []

    def wait(self, timeout: float | None = None, chosen: bool = False) -> Progress:
        """Wait until there is something to label, or the run has ended. chosen: not test images alone."""
        with self.lock:
            ended, asks = ("finished", "failed"), ("finished", "failed", "labelling")
            self.lock.wait_for(
                lambda: self._state(self._n_left()) in (ended if chosen and not self._waited else asks), timeout
            )
            return self.progress()

    # -- what the run calls, in its own thread --

    def wait_for_labels(self, wanted: LabelsWanted) -> None:
        """Return when these labels are there. Raises `wanted` if the run has to begin again, or the session ends."""
        with self.lock:
            self._queue = queue_of(wanted, self.listing.file)
            self._outstanding, self._waited = set(wanted.roles), True
            self._follow()
            if wanted.round == 0:  # only the classes have been read so far
                self._stale = self.classes != self._run_classes
            elif self.predicted:
                self.predicted.compare(wanted.roles)
            self.lock.notify_all()
            self.lock.wait_for(
                lambda: self._closing or self._new_run or self._outstanding <= self.labels.current.keys()
            )
            self._outstanding = None
            if self._closing or self._stale:
                raise wanted

    def trained(self, learner: Any, net: Any, pool: Any) -> None:
        """Keep the predictions of all images, and how many of the pool's are others than a round before."""
        now = predictions(learner, net, pool, self.listing.paths)
        with self.lock:
            self.predicted = now.after(self.predicted)

    # -- inside --

    def _begin_anew(self) -> None:
        """Begin another run, with all labels that are there."""
        self.settings = next_run(self.settings)
        write_settings(self.listing.folder, self.settings)
        self._new_run, self._queue = True, []  # the new run asks for other images

    def _work(self) -> None:
        """Run the loop until it has ended. It begins again, and replays its records, where an answer has changed."""
        try:
            process.step_back()  # a key is answered first
            while not self._closing and not self._finished:
                self._run()
        except BaseException as error:
            if self._closing or signals.asked_to_stop():  # Ctrl-C stops this thread, too
                return
            log.exception("The run failed.")
            self.error = f"{error!r}; {self.store.folder}/run.log says where."
        with self.lock:
            self.lock.notify_all()

    def _run(self) -> None:
        """Run the loop until it has ended, waits for other answers than it has read, or has failed for want of some."""
        from al_bench import loop  # Lightning takes seconds to import, and the page is there before

        process.prepare()  # again: Lightning sets its own log levels
        try:
            store = self._begin()
            with suppress(LabelsWanted), store.at_work():
                loop.run(store.config, store)
                self._finished = True
        except NoneUseful:
            with self.lock:
                if len(self.labels.current) < self.copies.n_images():
                    self._begin_anew()  # other images are asked for
                else:
                    self._wait_for_another_answer("No image has a class, so there is nothing to train on.")
        except UserError as error:
            with self.lock:
                self._wait_for_another_answer(str(error))

    def _wait_for_another_answer(self, error: str) -> None:
        """Tell the error until an answer or the classes have changed, which may mend it."""
        self.error, self._mendable = error, True
        self.lock.notify_all()
        self.lock.wait_for(lambda: self._closing or self._stale or self._new_run)
        self._mendable = False

    def _begin(self) -> RunStore:
        """The run folder of the current run. A new run begins with all labels that are there."""
        with self.lock:
            if self.settings.known is None:
                self.settings = replace(self.settings, known=len(self.labels.lines))
                write_settings(self.listing.folder, self.settings)
            self._stale = self._new_run = False
            self._run_classes = self.classes
            store = self.store
            store.person = self
            return store

    def _n_left(self) -> int:
        return sum(item.path not in self.labels.current for item in self._queue)

    def _state(self, left: int) -> str:
        if self.error or self._finished:
            return "failed" if self.error else "finished"
        if left:
            return "labelling"
        return "training" if self._waited else "preparing"

    def _keep(self, label: Label, correct_test: bool = False) -> Label | None:
        before = self.labels.add(label, correct_test)
        if before:
            self._note_change(label.path)
        self._follow()
        self.lock.notify_all()
        return before

    def _follow(self) -> None:
        for path in self.copies.follow(self._queue):
            self._note_change(path)

    def _note_change(self, path: str) -> None:
        if self._outstanding is None or path not in self._outstanding:
            self._set_stale()

    def _set_stale(self) -> None:
        self._stale = True
        self.error = None if self._mendable else self.error
        self.lock.notify_all()

    def _take_folders(self) -> None:
        for path, name in labelled_by_folder(self.listing, self.classes):
            if path not in self.labels.current:
                self.labels.add(Label(path, name, self._role(path), self.listing.sha256(path), who=FOLDER))

    def _role(self, path: str) -> str:
        return TEST if path in self._tested else TRAIN
