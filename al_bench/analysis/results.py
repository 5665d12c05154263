"""Reads a results folder: every run below it, in whatever state it is. Nothing here imports torch.

R rounds, C classes.
"""

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from al_bench.errors import UserError
from al_bench.files import read_file, write_atomically
from al_bench.provenance import n_cores
from al_bench.recipe import as_asked, run_name
from al_bench.records import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    SHARED_FIT,
    WAITING,
    RoundRecord,
    is_complete,
    parse,
    read_json,
    read_records,
    split_lines,
)
from al_bench.text import printable

RUN = _, ROUNDS = "run.json", "rounds.jsonl"  # in the run's folder
MANY = 1000  # runs to read
RUN_FOLDER = re.compile(r"seed=\d+")
SWEEPS = "sweeps.json"  # in the study's folder
STAMP, VERDICT = "stamp.json", "verdict.txt"  # in the report's folder
MISSING, UNREADABLE = "missing", "unreadable"  # beside the states that run.json names


class Setting(NamedTuple):
    """Runs of one setting, all strategies and seeds, are compared with each other."""

    study: str
    dataset: str
    model: str
    budget: str

    def __str__(self) -> str:
        return " / ".join(self)


@dataclass(frozen=True, eq=False)  # compared by identity: NumPy arrays have no single truth value
class Run:
    setting: Setting
    strategy: str
    seed: int
    state: str = MISSING
    folder: Path | None = None
    why: str | None = None  # the error of a failed run, or what is wrong with an unreadable one
    info: dict[str, Any] = field(default_factory=dict)  # run.json
    labels_R: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    metrics: dict[str, np.ndarray] = field(default_factory=dict)  # accuracy, nll, ...: [R]
    seconds: dict[str, np.ndarray] = field(default_factory=dict)  # fit, evaluate, committee, predict, select: [R]
    fit_from: str | None = None  # the run that made its first fit, if it is another one
    acquired: list[np.ndarray] = field(default_factory=list)  # of each round: indices in the order they were picked
    class_counts_RC: np.ndarray | None = None  # of the labelled images of each round
    torn: bool = False  # the last line of its records was cut short and is not counted
    published: bool = False  # of the study that a report sets beside one's own

    @property
    def name(self) -> str:
        return f"{self.strategy}, seed {self.seed}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as asked, with dotted keys. Raises OSError, or ValueError where it is damaged."""
        return as_asked(self.folder / "config.yaml")


def find(root: Path) -> list[Run]:
    """Every run below root, which may be a results folder, a study in it, or a folder further down.

    Runs that a sweep asked for and that never began have the state "missing". Raises UserError where there is no run.
    """
    begun = folders(root)
    never = {run for study in {folder.parents[4] for folder in begun} for run in requested_runs(study)} - set(begun)
    missing = sorted(run for run in never if run.is_relative_to(os.path.abspath(root)))
    return [*read_all(begun), *(Run(**identity_of(folder)) for folder in missing)]


def folders(root: Path) -> list[Path]:
    """The folder of every run below root that has begun. Raises UserError where there is none."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}. Name one that holds runs: results/my_study.")
    top = Path(os.path.abspath(root))  # a run behind a link is where the link is
    seen = [Path(folder) for folder, files in walk(str(top), []) if files & set(RUN)]
    found = sorted(p for p in seen if RUN_FOLDER.fullmatch(p.name) and len(p.parts) > 6)
    if not found:
        raise UserError(f"{root} holds no runs. Name a folder that holds some: results, or results/my_study.")
    return found


def stamp(root: Path) -> dict[str, int]:
    """When each run.json and sweeps.json was last modified. Taken before reading: later changes make a report stale."""
    found = {}
    for folder, files in walk(os.path.abspath(root), []):
        for name in {"run.json", SWEEPS} & files:
            with suppress(OSError):  # deleted meanwhile, or this user may not see it
                path = os.path.join(folder, name)
                found[os.path.relpath(path, root)] = os.stat(path).st_mtime_ns
    return dict(sorted(found.items()))


def closed_folders(root: Path) -> list[str]:
    """A sentence for each folder below root, other than a run's, that this user may not look into."""
    lost: list[str] = []
    for _ in walk(os.path.abspath(root), lost):
        pass
    return lost


def walk(top: str, lost: list[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Every folder from top downwards, and the names in it. Links are followed; a run's folder is not entered.

    A run's folder comes with those of the names in RUN that it has, or may have where this user may not look. Each
    other folder that this user may not look into adds a sentence to lost.
    """
    if RUN_FOLDER.fullmatch(os.path.basename(top)) and (run := {name for name in RUN if may_exist(f"{top}/{name}")}):
        yield top, run
        return
    try:
        here = os.stat(top)
        with os.scandir(top) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        lost.append(printable(f"{top} cannot be read ({error.strerror}): runs in it are not shown."))
        return
    yield top, {entry.name for entry in there}
    identity = here.st_dev, here.st_ino
    if identity in above:  # a link leads back
        return
    for entry in there:
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        if is_folder and not entry.name.startswith("."):
            yield from walk(entry.path, lost, (*above, identity))


def may_exist(path: str) -> bool:
    """Whether a file is there, or this user cannot tell."""
    try:
        os.lstat(path)
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_current(report: Path) -> bool:
    """Whether nothing that this report shows has changed since it was written."""
    try:
        made_of = json.loads((report / STAMP).read_text())
        there = all((report / name).is_file() for name in ("index.html", VERDICT))
        return there and made_of == stamp(report.parent)
    except (OSError, ValueError, RecursionError):
        return False


def in_words(page: Path) -> str:
    """What the screen shows of a report: where its page lies, and the verdict."""
    return printable(f"Report: {page}\n{(page.parent / VERDICT).read_text(errors='replace')}").removesuffix("\n")


def read_all(folders: list[Path]) -> list[Run]:
    """In order. A second process reads half of many runs, where there is a core for it."""
    alone = threading.active_count() == 1  # a fork would copy the locks of other threads, and none would release them
    if len(folders) < MANY or not alone or n_cores() == 1 or not hasattr(os, "fork"):
        return [*map(read, folders)]
    half = len(folders) // 2
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.imap(read, folders[half:], chunksize=50)
        return [*map(read, folders[:half]), *theirs]


def read(folder: Path) -> Run:
    """One run, as far as it can be read."""
    identity = identity_of(folder)
    try:
        info = read_json(folder / "run.json")
        data = read_file(folder / ROUNDS) if os.path.lexists(folder / ROUNDS) else b""
        records = parse(folder / ROUNDS, data, own_name(folder), by_person(info))
        state, why = state_of(folder, info), info.get("error")
        if state == WAITING:
            why = f"waits for {info.get('waits_for', 0):,} labels"
        if state == FINISHED and not is_complete(records):
            state, why = INTERRUPTED, f"{ROUNDS} has lost its last rounds"  # the folder was perhaps copied too early
        torn = bool(split_lines(data)[1])
        return Run(**identity, folder=folder, info=info, state=state, why=why, torn=torn, **arrays(records))
    except UserError as error:
        return Run(**identity, folder=folder, state=UNREADABLE, why=str(error))
    except OSError as error:  # its lock
        why = f"{error.filename or folder} cannot be read ({error.strerror})"
        return Run(**identity, folder=folder, state=UNREADABLE, why=printable(why))


def by_person(info: dict[str, Any]) -> bool:
    """Whether a person labels in this run. info: its run.json, which notes how many labels it waits for."""
    return "waits_for" in info


def own_name(folder: Path) -> str | None:
    """By the run's configuration, wherever its folder lies. None where it cannot be read; others report that."""
    try:
        return run_name(as_asked(folder / "config.yaml"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def histories(run: Run) -> list[list[dict[str, float]]]:
    """Of each round, one entry an epoch: loss, accuracy, val_loss, val_accuracy."""
    return [record.history for record in read_records(run.folder / ROUNDS, None, by_person(run.info))][
        : len(run.labels_R)
    ]


def state_of(folder: Path, info: dict[str, Any]) -> str:
    """The state in run.json; but a run that is "running" while no process holds its lock was killed."""
    state = info.get("state", INTERRUPTED)
    if state != RUNNING:
        return state
    import fcntl

    if not (folder / ".lock").is_file():
        return INTERRUPTED
    with open(folder / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return INTERRUPTED
        except BlockingIOError:
            return RUNNING


def arrays(records: list[RoundRecord]) -> dict[str, Any]:
    """The records of one run as arrays over rounds."""
    if not records:
        return {}
    numbers = [k for k, v in records[0].metrics.items() if all(type(r.metrics.get(k)) in (int, float) for r in records)]
    counts = [r.class_counts for r in records]
    acquired = np.array([i for r in records for i in r.acquired])
    acquired = acquired.astype(np.int32 if acquired.max(initial=0) < 2**31 else np.int64)  # most of what a run holds
    return {
        "labels_R": np.array([r.n_labels for r in records]),
        "metrics": {k: np.array([r.metrics[k] for r in records], dtype=float) for k in numbers},
        "seconds": seconds(records),
        "fit_from": records[0].fit_from,
        "acquired": np.split(acquired, np.cumsum([len(r.acquired) for r in records])[:-1]),
        "class_counts_RC": np.array(counts) if all(counts) and len(set(map(len, counts))) == 1 else None,
    }  # fmt: skip


def seconds(records: list[RoundRecord]) -> dict[str, np.ndarray]:
    """Of each part of the rounds. The first fit counts in full where another run made it, for all strategies alike."""
    values = {k: np.array([r.seconds.get(k, 0.0) for r in records]) for k in records[-1].seconds if k != SHARED_FIT}
    if "fit" in values:
        values["fit"][0] += records[0].seconds.get(SHARED_FIT, 0.0)
    return values


def by_setting(runs: list[Run]) -> dict[Setting, list[Run]]:
    found: dict[Setting, list[Run]] = {}
    for run in runs:
        found.setdefault(run.setting, []).append(run)
    return dict(sorted(found.items()))


def requested_runs(study: Path) -> set[Path]:
    """The run folders that all sweeps of this study so far asked for, as sweep.py notes them."""
    try:
        names = json.loads(read_file(study / SWEEPS))
        return {study / name for name in names if re.fullmatch(r"([^/]+/){4}seed=\d+", name)}
    except (UserError, ValueError, TypeError, RecursionError):
        return set()


def note_requested(study: Path, folders: Iterable[Path]) -> None:
    names = {str(folder.relative_to(study)) for folder in folders}
    study.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(study / f".{SWEEPS}.lock"):  # of sweeps that start together
        there = {str(folder.relative_to(study)) for folder in requested_runs(study)}
        if not names <= there:
            write_atomically(study / SWEEPS, json.dumps(sorted(names | there), indent=1) + "\n")


def identity_of(folder: Path) -> dict[str, Any]:
    *setting, strategy, seed = map(printable, Path(os.path.abspath(folder)).parts[-6:])
    return {"setting": Setting(*setting), "strategy": strategy, "seed": int(seed.removeprefix("seed="))}
