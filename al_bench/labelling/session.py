"""One person at work on one folder: what to label next, answers, and the run that goes on in the background.

A page needs nothing else. All methods may be called from any thread. N images of the data set, C classes.
"""

import logging
import statistics
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from al_bench import loop, rng
from al_bench.data.sources import draw_test
from al_bench.errors import UserError
from al_bench.files import is_there
from al_bench.labelling import labels as answers
from al_bench.labelling.advice import Advice, Measured, advise, measured, weak_classes
from al_bench.labelling.images import LABELS, home_of, labelled_by_folder, list_images, refuse_classes
from al_bench.labelling.labels import SKIP, TEST, TRAIN, UNSURE, Label, Labels
from al_bench.labelling.predicted import Predicted
from al_bench.labelling.settings import composed, of_run, settings_of, write_settings
from al_bench.store import RunStore
from al_bench.strategies.uncertainty import average_prediction
from al_bench.text import one_line
from al_bench.waiting import LabelsWanted

log = logging.getLogger("al_bench")

PACE = 50  # answers that the pace is measured on
FOLDER, PROGRAM = "folder", "al-bench"  # who labelled: sub-folders named like classes; al_bench, for a lost file


@dataclass(frozen=True)
class Item:
    """An image to label. The role is not for the person's eyes."""

    path: str
    sha256: str
    file: Path
    role: str
    round: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Progress:
    """done, left: of the images asked for now. labelled: images with an answer. seconds: a typical answer takes."""

    state: str  # preparing, labelling, training, finished or failed
    done: int
    left: int
    labelled: int
    images: int
    seconds: float | None
    counts: dict[str, int]  # answers by class, skip and unsure, of all images
    accuracy: list[Measured]
    weak: list[tuple[str, float, int]]  # as advice.weak_classes
    error: str | None


class Session:
    """Open with `with`. It locks FOLDER-labels, so a second session on the same folder raises UserError."""

    def __init__(
        self, folder: str | Path, classes: Sequence[str] = (), overrides: Sequence[str] = (), who: str | None = None,
        use_folders: bool = False,
    ) -> None:  # fmt: skip
        """classes, overrides: of the first session; later ones may leave them out. use_folders: take the names of
        sub-folders that are classes as labels. Raises UserError.
        """
        self.home, self.who = home_of(folder), who
        self.listing = list_images(folder)
        self.settings = settings_of(folder, classes, overrides)
        made = composed(self.listing, self.settings.overrides)
        self.notes = (*self.listing.notes, *made.notes)
        self.base = made.config
        self.labels = Labels(self.home / LABELS)
        self.lock = threading.Condition(threading.RLock())
        self.error: str | None = None
        self.predicted: Predicted | None = None
        self._use_folders, self._thread = use_folders, None
        self._closing = self._finished = self._waited = self._new_run = False
        self._run_classes: tuple[str, ...] = ()  # the classes of the run at work
        self._outstanding: set[str] | None = None  # what the run waits for; None while it does not wait
        self._stale = False  # the run has read an answer, or a class list, that is another one now
        self._queue = self._test_items()

    # -- the session --

    def __enter__(self) -> "Session":
        self._locked = answers.locked(self.home)
        self._locked.__enter__()
        self.labels.read_again()
        if self._use_folders:
            self._take_folders()
        write_settings(self.listing.folder, self.settings)
        self._thread = threading.Thread(target=self._work, name="al_bench run", daemon=True)
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
            refuse_classes([*self.classes, name])
            begun = is_there(self.store.rounds_path)
            step = {"run": self.settings.run + 1, "known": None} if begun else {}
            self.settings = replace(self.settings, classes=(*self.classes, name), **step)
            write_settings(self.listing.folder, self.settings)
            self._stale, self._new_run = True, begun
            self._queue = [] if begun else self._queue  # the new run asks for other images
            self.lock.notify_all()
            return f"With the class {one_line(name)} a new run begins. All labels are kept." if begun else None

    # -- items and answers --

    def next(self, n: int = 1, first: Sequence[str] = ()) -> list[Item]:
        """The next n images to label. Those of `first`, paths that are on screen, come first if they are still wanted.

        Images whose files are gone are skipped on the way, and recorded as such.
        """
        with self.lock:
            wanted = [item for item in self._queue if item.path not in self.labels.current]
            wanted.sort(key=lambda item: item.path not in first)  # stable
            found = []
            for item in wanted:
                if len(found) == n:
                    break
                try:
                    found.append(replace(item, sha256=self.listing.sha256(item.path)))
                except OSError:
                    self._keep(Label(item.path, SKIP, item.role, round=item.round, rank=item.rank, who=PROGRAM))
            return found

    def answer(
        self, path: str, answer: str, seconds: float | None = None, shown: str | None = None, correct_test: bool = False
    ) -> Label | None:
        """Keep an answer: a class, "skip" or "unsure". Returns the earlier label if it was another one.

        shown: the prediction that the person saw. Raises UserError for an unknown image or class, or a full disk, and
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
                item.path, answer, item.role, item.sha256, seconds, item.round, item.rank, shown, self.who
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
            current, queue = self.labels.current, self._queue
            left = self._n_left()
            times = [label.seconds for label in self.labels.order()[-PACE:] if label.seconds is not None]
            store = self.store
            records = store.records()
            return Progress(
                state=self._state(left),
                done=len(queue) - left,
                left=left,
                labelled=len(current),
                images=len(self.listing.images),
                seconds=statistics.median(times) if times else None,
                counts=dict(Counter(label.answer for label in current.values())),
                accuracy=measured(records, store.info()),
                weak=weak_classes(records[-1], self.classes, self._n_tested()) if records else [],
                error=self.error,
            )

    def likely(self, path: str) -> list[tuple[str, float]]:
        """The classes of an image with their probabilities, the likeliest first. Empty before the first training."""
        with self.lock:
            return self.predicted.of(self.listing.canonical[path]) if self.predicted else []

    def advice(self, now: Progress) -> Advice:
        """Whether to go on, from the accuracy so far, the predictions that flip, and the pace."""
        flipped = self.predicted.flipped if self.predicted else None
        return advise(now.accuracy, now.seconds, now.images - now.labelled, flipped)

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
            self._queue = [
                Item(path, "", self.listing.file(path), role, wanted.round, rank)
                for rank, (path, role) in enumerate(wanted.roles.items())
            ]
            self._outstanding, self._waited = set(wanted.roles), True
            if wanted.round == 0:  # only the classes have been read so far
                self._stale = self.classes != self._run_classes
            self.lock.notify_all()
            self.lock.wait_for(
                lambda: self._closing or self._new_run or self._outstanding <= self.labels.current.keys()
            )
            self._outstanding = None
            if self._closing or self._stale:
                raise wanted

    def trained(self, learner: Any, net: Any, pool: Any) -> None:
        """Keep the predictions of all images, and how many of the pool's are others than a round before."""
        skipped = set(learner.dataset.skipped)
        paths = [path for path in self.listing.paths if path not in skipped]
        idx_N = torch.arange(len(paths))
        probs_NC = average_prediction(learner.predict(net, idx_N).log_probs_PSC).float().exp()
        now = Predicted(paths, learner.dataset.class_names, probs_NC, pool.unlabelled_P)
        with self.lock:
            self.predicted = now.after(self.predicted)

    # -- inside --

    def _work(self) -> None:
        """Run the loop until it has ended. It begins again, and replays its records, where an answer has changed."""
        try:
            while not self._closing:
                store = self._begin()
                with suppress(LabelsWanted):
                    with store.at_work():
                        loop.run(store.config, store)
                    self._finished = True
                    break
        except UserError as error:
            self.error = str(error)
        except Exception as error:
            if self._closing:  # Python is ending, and lets nobody begin anything
                return
            log.exception("The run failed.")
            self.error = f"{error!r}; {self.store.folder}/run.log says where."
        with self.lock:
            self.lock.notify_all()

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

    def _n_tested(self) -> Counter[str]:
        return Counter(label.answer for label in self.labels.current.values() if label.role == TEST)

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
        self.lock.notify_all()
        return before

    def _note_change(self, path: str) -> None:
        if self._outstanding is None or path not in self._outstanding:
            self._stale = True

    def _take_folders(self) -> None:
        for path, name in labelled_by_folder(self.listing, self.classes):
            if path not in self.labels.current:
                self.labels.add(Label(path, name, self._role(path), self.listing.sha256(path), who=FOLDER))

    def _test_items(self) -> list[Item]:
        """The test images in a random order: they can be labelled while the others are decoded."""
        paths, c = self.listing.paths, self.base
        tested = draw_test(len(paths), c.dataset.test_fraction, c.seed).nonzero()[:, 0].tolist()
        self._tested = {paths[i] for i in tested}
        order = torch.randperm(len(tested), generator=rng.stream(c.seed, "queue")).tolist()
        return [Item(paths[tested[i]], "", self.listing.folder / paths[tested[i]], TEST) for i in order]

    def _role(self, path: str) -> str:
        return TEST if path in self._tested else TRAIN
