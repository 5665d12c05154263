"""What lies in a results folder: every run below it, in whatever state it is. Only reads; nothing here imports torch.

R rounds, C classes.
"""

import json
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from al_bench.errors import UserError
from al_bench.files import read_file, write_atomically
from al_bench.provenance import n_cores
from al_bench.recipe import NOT_COMPARED, as_asked, differing_keys, run_name
from al_bench.records import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
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


class Cell(NamedTuple):
    """What is compared with each other: all strategies and seeds of one."""

    study: str
    dataset: str
    model: str
    budget: str

    def __str__(self) -> str:
        return " / ".join(self)


@dataclass(frozen=True, eq=False)  # a run equals itself alone: arrays have no one truth
class Run:
    cell: Cell
    strategy: str
    seed: int
    state: str = MISSING
    folder: Path | None = None
    why: str | None = None  # the error of a failed run; what is wrong with an unreadable one
    info: dict[str, Any] = field(default_factory=dict)  # run.json
    labels_R: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    metrics: dict[str, np.ndarray] = field(default_factory=dict)  # accuracy, nll, ...: [R]
    seconds: dict[str, np.ndarray] = field(default_factory=dict)  # fit, evaluate, committee, predict, select: [R]
    acquired: list[np.ndarray] = field(default_factory=list)  # indices in the order they were picked, a round each
    class_counts_RC: np.ndarray | None = None  # of the labelled images of each round
    torn: bool = False  # the last line was cut short and is not counted

    @property
    def name(self) -> str:
        return f"{self.strategy}, seed {self.seed}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as asked, with dotted keys. Raises OSError, or ValueError where it is damaged."""
        return as_asked(self.folder / "config.yaml")


def find(root: Path) -> list[Run]:
    """Every run below root, which may be a results folder, a study in it, or a folder further down.

    With state "missing" those that a sweep asked for and that never began. Raises UserError where there is none.
    """
    begun = folders(root)
    never = {run for study in {folder.parents[4] for folder in begun} for run in asked(study)} - set(begun)
    missing = sorted(run for run in never if run.is_relative_to(os.path.abspath(root)))
    return [*read_all(begun), *(Run(**identity_of(folder)) for folder in missing)]


def folders(root: Path) -> list[Path]:
    """Of every run below root that has begun, unread. Raises UserError where there is none."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}. Name one that holds runs: results/my_study.")
    top = Path(os.path.abspath(root))  # a run's place is where it is seen, behind a link too
    seen = [Path(folder) for folder, files in walk(str(top), []) if files & set(RUN)]
    found = sorted(p for p in seen if RUN_FOLDER.fullmatch(p.name) and len(p.parts) > 6)
    if not found:
        raise UserError(f"{root} holds no runs. Name a folder that holds some: results, or results/my_study.")
    return found


def stamp(root: Path) -> dict[str, int]:
    """When each run below root last changed its state, and each study the list of its runs. Of what is read next."""
    found = {}
    for folder, files in walk(os.path.abspath(root), []):
        for name in {"run.json", SWEEPS} & files:
            with suppress(OSError):  # deleted meanwhile, or not to be seen by this user
                path = os.path.join(folder, name)
                found[os.path.relpath(path, root)] = os.stat(path).st_mtime_ns
    return dict(sorted(found.items()))


def closed(root: Path) -> list[str]:
    """A sentence for each folder below root, other than a run's, that this user may not look into."""
    lost: list[str] = []
    for _ in walk(os.path.abspath(root), lost):
        pass
    return lost


def walk(top: str, lost: list[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Every folder from top downwards and the names in it; links are followed, what lies in a run's folder is not.

    A run's folder, which may be closed to this user, comes with the names of RUN. lost: is told of others.
    """
    if RUN_FOLDER.fullmatch(os.path.basename(top)) and (run := {name for name in RUN if may_be(f"{top}/{name}")}):
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


def may_be(path: str) -> bool:
    """Whether a file is there, or nobody can tell."""
    try:
        os.lstat(path)
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_current(report: Path) -> bool:
    """Whether this report was made of all that lies beside it now."""
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
    """In order. Of thousands a second process, where there is a core for it, reads a part."""
    alone = threading.active_count() == 1  # a fork knows nothing of other threads, nor of the locks that they hold
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
        records = parse(folder / ROUNDS, data, own_name(folder))
        state, why = state_of(folder, info), info.get("error")
        if state == FINISHED and not is_complete(records):
            state, why = INTERRUPTED, f"{ROUNDS} has lost its last rounds"  # copied too early, perhaps
        torn = bool(split_lines(data)[1])
        return Run(**identity, folder=folder, info=info, state=state, why=why, torn=torn, **arrays(records))
    except UserError as error:
        return Run(**identity, folder=folder, state=UNREADABLE, why=str(error))
    except OSError as error:  # its lock
        why = f"{error.filename or folder} cannot be read ({error.strerror})"
        return Run(**identity, folder=folder, state=UNREADABLE, why=printable(why))


def own_name(folder: Path) -> str | None:
    """By the run's configuration, wherever its folder lies; None where that cannot be read, which is told apart."""
    try:
        return run_name(as_asked(folder / "config.yaml"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def histories(run: Run) -> list[list[dict[str, float]]]:
    """Of each round, one entry an epoch: loss, accuracy, val_loss, val_accuracy."""
    return [record.history for record in read_records(run.folder / ROUNDS)][: len(run.labels_R)]


def state_of(folder: Path, info: dict[str, Any]) -> str:
    """A run that says it is running while nobody holds its lock was killed."""
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
    bought = np.array([i for r in records for i in r.acquired])
    bought = bought.astype(np.int32 if bought.max(initial=0) < 2**31 else np.int64)  # most of what a run holds
    return {
        "labels_R": np.array([r.n_labels for r in records]),
        "metrics": {k: np.array([r.metrics[k] for r in records], dtype=float) for k in numbers},
        "seconds": {k: np.array([r.seconds.get(k, 0.0) for r in records]) for k in records[-1].seconds},
        "acquired": np.split(bought, np.cumsum([len(r.acquired) for r in records])[:-1]),
        "class_counts_RC": np.array(counts) if all(counts) and len(set(map(len, counts))) == 1 else None,
    }  # fmt: skip


def cells(runs: list[Run]) -> dict[Cell, list[Run]]:
    return {cell: [run for run in runs if run.cell == cell] for cell in sorted({run.cell for run in runs})}


def asked(study: Path) -> set[Path]:
    """The run folders of all sweeps of this study so far; sweep.py writes them down."""
    try:
        names = json.loads(read_file(study / SWEEPS))
        return {study / name for name in names if re.fullmatch(r"([^/]+/){4}seed=\d+", name)}
    except (UserError, ValueError, TypeError, RecursionError):
        return set()


def note_asked(study: Path, folders: Iterable[Path]) -> None:
    names = {str(folder.relative_to(study)) for folder in folders}
    study.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(study / f".{SWEEPS}.lock"):  # of sweeps that start together
        there = {str(folder.relative_to(study)) for folder in asked(study)}
        if not names <= there:
            write_atomically(study / SWEEPS, json.dumps(sorted(names | there), indent=1) + "\n")


def originals(idx: np.ndarray, info: dict[str, Any], config: dict[str, Any]) -> np.ndarray:
    """For training images of a redundant pool, as records name them: equal numbers are copies of one image.

    info: the run.json; config: with dotted keys.
    """
    return (idx - info["dataset"]["n_test"]) // config["stressor.copies"]


def identity_of(folder: Path) -> dict[str, Any]:
    *cell, strategy, seed = map(printable, Path(os.path.abspath(folder)).parts[-6:])
    return {"cell": Cell(*cell), "strategy": strategy, "seed": int(seed.removeprefix("seed="))}


def recipe(run: Run, by_path: bool) -> dict[str, Any]:
    """The part of the configuration that all runs of a cell share. by_path: see weights_by_path."""
    free = ("seed", "strategy.", "features.", *(() if by_path else ("model.weights",)))
    return {k: v for k, v in set_in(run).items() if not k.startswith(free) and k not in NOT_COMPARED}


def weights_by_path(runs: list[Run]) -> bool:
    """Whether some of these runs noted no checksum of their weights: then the paths are compared as well."""
    return not all("weights" in run.info for run in runs)


def weights(run: Run) -> str | None:
    """Which weights the nets began from; None where the run noted none."""
    return (run.info.get("weights") or {}).get("model")


def usual_weights(runs: list[Run]) -> str | None:
    return most_common([version for run in runs if (version := weights(run))] or [None])


def own_settings(run: Run, by_path: bool) -> dict[str, Any]:
    """The part of the configuration that all runs of a strategy share; of the features' weights, what they are."""
    used = ("strategy.", "features.") if run.info.get("features") is not None else ("strategy.",)
    own = {k: v for k, v in set_in(run).items() if k.startswith(used)}
    version = {} if by_path else run.info["weights"]
    return own | ({"features.weights": version["features"]} if version.get("features") else {})


def set_in(run: Run) -> dict[str, Any]:
    """The configuration without nulls: a run from before there was a setting is as one that leaves it unset."""
    return {k: v for k, v in run.config.items() if v is not None}


def odd_ones(runs: list[Run]) -> dict[Run, str]:
    """The runs that cannot be compared with the others of their cell, each with the reason.

    Another configuration than most have, other weights or code of the net, other settings than most of the same
    strategy, other code than its latest run, other images than most (of the same seed, where copies are made), or
    another initial set than most of the same seed. Where two are equally common, random's is usual.
    """
    runs, by_path = sorted(runs, key=lambda run: run.strategy != "random"), weights_by_path(runs)
    copies = any(run.config.get("stressor.copies", 1) > 1 for run in runs)  # whose noise is another for each seed
    found: dict[Run, str] = {}

    def look(of: Callable[[Run], str | None], group: Callable[[Run], Any], words: str, usual=most_common_of) -> None:
        for run, value, others in unusual(runs, of, group, usual):
            text = difference(*map(json.loads, (value, others))) if value.startswith("{") else ""
            found.setdefault(run, words.format(run=run, value=value, others=others, text=text))

    everywhere, strategy, seed = (lambda run: None), (lambda run: run.strategy), (lambda run: run.seed)
    look(lambda run: as_text(recipe(run, by_path)), everywhere, "another configuration: {text}")
    look(weights, everywhere, "other weights than most runs: {value} (others {others})")
    for fact in ("model_version", "model_code"):  # runs of earlier versions of al_bench have the first
        look(partial(noted, fact), everywhere, "another version of its net's code than most runs")
    other_settings = "other settings than most runs of {run.strategy}: {text}"
    look(lambda run: as_text(own_settings(run, by_path)), strategy, other_settings)
    older = "another version of its code than the latest run of {run.strategy}: delete it and run it again"
    for fact in ("strategy_version", "strategy_code"):
        look(partial(noted, fact), strategy, older, latest_of)
    other_images = f"other images than most runs{' of seed {run.seed}' if copies else ''} (dataset checksum)"
    look(lambda run: noted("dataset", run) or "none", seed if copies else everywhere, other_images)
    look(lambda run: noted("initial_set", run) or "none", seed, "another initial set than most runs of seed {run.seed}")
    return {run: found[run] for run in runs if run in found}


def unusual(
    runs: list[Run], of: Callable[[Run], str | None], group: Callable[[Run], Any], usual: Callable[..., str]
) -> Iterator[tuple[Run, str, str]]:
    """(run, its value, the usual value) of each run whose value is not the usual one of its group; None is no value."""
    values = {run: value for run in runs if (value := of(run)) is not None}
    groups: dict[Any, list[Run]] = {}
    for run in values:
        groups.setdefault(group(run), []).append(run)
    for members in groups.values():
        expected = usual(members, values)
        yield from ((run, values[run], expected) for run in members if values[run] != expected)


def most_common_of(runs: list[Run], values: dict[Run, str]) -> str:
    return most_common(values[run] for run in runs)


def latest_of(runs: list[Run], values: dict[Run, str]) -> str:
    """The value of the run that was started last."""
    return max(((run.info.get("starts") or [{}])[-1].get("time") or "", values[run]) for run in runs)[1]


def noted(fact: str, run: Run) -> str | None:
    return checksum(run.info, fact)


def as_text(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def difference(config: dict[str, Any], usual: dict[str, Any]) -> str:
    keys = differing_keys(config, usual)
    words = [f"{k}={config.get(k)} (others {usual.get(k)})" for k in keys[:5]]
    return ", ".join(words + ["..."] * (len(keys) > 5))


def checksum(info: dict[str, Any], name: str) -> str | None:
    return (info.get(name) or {}).get("checksum")


def circumstances(runs: list[Run]) -> dict[str, Counter[str]]:
    """On what the runs were computed, for each fact in which they differ: how many runs had which."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        of_run: dict[str, dict[str, None]] = {}
        for start in run.info.get("starts", []):  # a run that was continued may have changed machines
            versions = {f"version of {k}": v for k, v in (start.get("versions") or {}).items()}
            there = {name: start.get(name) for name in ("cpu", "device", "precision", "threads", "python")}
            there["git"] = commit(start)
            for name, value in (versions | there).items():
                of_run.setdefault(name, {})[str(value)] = None
        for name, values in of_run.items():
            facts.setdefault(name, Counter())[", then ".join(values)] += 1
    return {name: counts for name, counts in facts.items() if len(counts) > 1}


def commit(start: dict[str, Any]) -> str:
    """What a start of a run ran, in short; with a + where its code or configuration was changed."""
    return re.sub(r"^(\w{7})\w+", r"\1", start.get("git") or "unknown")


def most_common(values: Iterable[Any]) -> Any:
    """The first of equally common ones."""
    return Counter(values).most_common(1)[0][0]
