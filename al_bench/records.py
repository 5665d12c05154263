"""What a run folder says of its run: the records in rounds.jsonl, the facts in run.json, and the one reader of both.

Nothing here imports torch.
"""

import codecs
import itertools
import json
import operator
import sys
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

import orjson

from al_bench.errors import UserError
from al_bench.files import read_file
from al_bench.text import printable_in

STATES = FINISHED, FAILED, RUNNING, INTERRUPTED = "finished", "failed", "running", "interrupted"
MOST = 2**53  # of what is counted

FINITE = sys.float_info.max
ROUNDING = 1e-5  # metrics are means in float32
SHARE, LOSS, ANY = (-ROUNDING, 1 + ROUNDING), (-ROUNDING, FINITE), (-FINITE, FINITE)
BOUNDS = {  # of metrics and of the validation set's
    **dict.fromkeys(("accuracy", "ece", "macro_f1", "balanced_accuracy", "worst_class", "per_class"), SHARE),
    "nll": LOSS, "loss": LOSS, "brier": (-ROUNDING, 2 + ROUNDING),
}  # fmt: skip
COUNTS = ("round", "n_labelled", "n_val", "weights_from", "epochs", "steps", "peak_memory", "n_candidates", "n_foreign")
counts_of = operator.attrgetter(*COUNTS)
LONGEST = 1e9  # seconds


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. `acquired` was bought after the fit that `metrics` describes: not in n_labelled."""

    round: int
    n_labelled: int  # training labels this round's fit had
    n_val: int  # validation labels, bought as well
    metrics: dict[str, Any]  # on the test set: those of metrics.py
    validation: dict[str, float] | None  # loss and accuracy of this round's fit on the validation set
    acquired: list[int]  # dataset indices in the order they were picked
    weights_from: int  # the round whose weights were tested and queried; another only with trainer.start=best
    epochs: int
    steps: int
    history: list[dict[str, float]]  # one entry an epoch
    seconds: dict[str, float]  # fit, evaluate, committee, predict, select
    peak_memory: int  # bytes; of the device where there is one, else of the process since it started, earlier runs' too
    n_candidates: int = 0  # pool images the strategy chose from: all, or a random part
    n_foreign: int = 0  # labels bought in vain beside n_labelled: of images that belong to no class
    class_counts: list[int] = field(default_factory=list)  # of the training labels this round's fit had
    run: str | None = field(default=None, compare=False)  # whose it is, as store.run_name has it; in old ones None

    @property
    def n_labels(self) -> int:
        """What the curve is drawn over: all training labels that were paid for."""
        return self.n_labelled + self.n_foreign


NAMES = frozenset(f.name for f in fields(RoundRecord))
NEEDED = NAMES - {"n_candidates", "n_foreign", "class_counts", "run"}  # which came later


def read_records(path: Path, run: str | None = None) -> list[RoundRecord]:
    """The finished rounds of a rounds.jsonl, in order; a torn last line is not one.

    run: the name of the run that they have to be of, where they name one. Raises UserError where anything is wrong.
    """
    return parse(path, read_file(path), run)


def parse(path: Path, data: bytes, run: str | None = None) -> list[RoundRecord]:
    """The same, of data that has been read already."""
    records, bought = [], set()
    try:
        for line in split(data)[0]:
            record = one(line)
            if why := check_place(record, records, bought):
                raise ValueError(why)
            if run and record.run and record.run != run:
                raise StrangerError
            records.append(record)
    except StrangerError:
        raise UserError(
            f"{path}, line {len(records) + 1} is a record of {record.run}, and this is the folder of {run}. Bring this "
            f"run's own {path.name} back, or delete {path.parent} to begin anew."
        ) from None
    except NewerError as error:
        raise UserError(
            f"{path}, line {len(records) + 1} is a record of a newer al_bench: {error}. Read it with that version."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path}, line {len(records) + 1} is not a round's record ({error}). Delete that line and those after it "
            f"to go on from there, or delete {path.parent} to begin anew."
        ) from None
    return records


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """(whole lines, a last line that was cut short, which may be empty)"""
    *lines, last = data.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True) or [b""]
    whole = last.endswith(b"\n") and last.rstrip().endswith(b"}")
    return ([*lines, last], b"") if whole else (lines, last)


def is_complete(records: list[RoundRecord]) -> bool:
    """Whether a run ends with these rounds, by what each bought: the last of a run, and it alone, buys nothing."""
    return bool(records) and not records[-1].acquired


# -- one record --


class StrangerError(Exception):
    """A record of another run."""


class NewerError(ValueError):
    """A record that holds more than this version knows."""


def one(line: bytes) -> RoundRecord:
    """Raises ValueError where a line is not a record, or its values cannot be."""
    content = orjson.loads(line)  # takes no NaN, no infinity, no lone surrogate, no endless nesting
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__}, not a mapping")
    if missing := NEEDED - content.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if unknown := content.keys() - NAMES:
        raise NewerError(f"this version knows no {', '.join(sorted(unknown))}")
    if (b"true" in line or b"false" in line) and (name := next(filter(lambda k: holds_bool(content[k]), content), "")):
        raise ValueError(f"{name} holds true or false, not a number")
    record = RoundRecord(**content)
    if why := wrong(record):
        raise ValueError(why)
    if line.count(b":") != n_keys(record, content):  # a doubled key, or a colon in a word
        json.loads(line, object_pairs_hook=distinct)
    return record


def holds_bool(value: Any) -> bool:
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, bool):
            return True
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return False


def n_keys(record: RoundRecord, content: dict[str, Any]) -> int:
    parts = (content, record.metrics, record.validation or {}, record.seconds, *record.history)
    return sum(map(len, parts))


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(doubled)} is there twice")
    return dict(pairs)


def wrong(r: RoundRecord) -> str | None:
    """What cannot be in the values of a record, each on its own; there is no true and no false among them."""
    if why := outside("", [*counts_of(r)], 0, MOST, int):
        each = (outside(name, [value], 0, MOST, int) for name, value in zip(COUNTS, counts_of(r), strict=True))
        return next(filter(None, each), why)
    if why := outside("class_counts", r.class_counts, 0, MOST, int) or outside("acquired", r.acquired, 0, MOST, int):
        return why
    if r.weights_from > r.round:
        return f"weights_from is {r.weights_from}, a later round"
    if not isinstance(r.run, str | None):
        return f"run is {short(r.run)}, not a name"
    return (
        outside_bounds("metrics", r.metrics)
        or ("metrics lacks accuracy" if "accuracy" not in r.metrics else None)
        or (outside_bounds("validation", r.validation) if r.validation is not None else None)
        or outside_history(r.history)
        or outside_seconds(r.seconds)
    )


def outside(name: str, values: Any, low: float, high: float, kind: Any = int | float) -> str | None:
    """What is wrong with a list of numbers within bounds, if anything."""
    if type(values) is not list:
        return f"{name} is {short(values)}, not a list"
    with suppress(TypeError):  # a sum is a whole number only where each is, and none of what is no number
        if isinstance(sum(values), kind) and (not values or (low <= min(values) and max(values) <= high)):
            return None
    for value in values:
        if not isinstance(value, kind):
            return f"{name} is {short(value)}, not a {'whole ' if kind is int else ''}number"
        if not low <= value <= high:
            return f"{name} is {value}, outside {low:.3g} to {high:.3g}"
    return None


def outside_bounds(part: str, values: Any) -> str | None:
    """The same of a mapping whose names have bounds. per_class lists a number a class, null where the test has none."""
    if type(values) is not dict:
        return f"{part} is {short(values)}, not a mapping"
    for name, value in values.items():
        low, high = BOUNDS.get(name, ANY)
        if isinstance(value, int | float) and low <= value <= high and name != "per_class":
            continue
        numbers = [value]
        if name == "per_class":
            numbers = [v for v in value if v is not None] if type(value) is list else value
        if why := outside(f"{part}.{name}", numbers, low, high):
            return why
    return None


def outside_seconds(seconds: Any) -> str | None:
    if type(seconds) is not dict:
        return f"seconds is {short(seconds)}, not a mapping"
    return outside("seconds", [*seconds.values()], 0, LONGEST)


def outside_history(history: Any) -> str | None:
    try:
        sum(itertools.chain.from_iterable(map(dict.values, history)))
    except TypeError:
        return f"history is {short(history)}, not a list of mappings to numbers"
    for name in ("accuracy", "val_accuracy"):
        shares = [epoch[name] for epoch in history if name in epoch]
        if why := outside(f"history.{name}", shares, *SHARE):
            return why
    return None


def check_place(record: RoundRecord, before: list[RoundRecord], bought: set[int]) -> str | None:
    """Why a record cannot follow these; bought: the images that they bought, to which its own are added."""
    if record.round != len(before):
        return f"rounds are missing or doubled: it is round {record.round}, and {len(before)} is due"
    if before:
        last = before[-1]
        if not last.acquired:
            return "the round before it bought nothing, which is the end of a run"
        if record.n_labels != last.n_labels + len(last.acquired):
            due = f"{last.n_labels:,} and {len(last.acquired):,} bought"
            return f"n_labelled and n_foreign make {record.n_labels:,} labels, after {due}"
        if record.n_labelled < last.n_labelled or record.n_foreign < last.n_foreign:
            return "n_labelled or n_foreign has fallen"
    elif record.n_labels < 1:
        return "n_labelled is 0"
    there = len(bought)
    bought.update(record.acquired)
    if len(bought) - there < len(record.acquired):
        twice = len(set(record.acquired)) < len(record.acquired)
        return f"acquired names an image {'twice' if twice else 'that an earlier round bought'}"
    return None


# -- run.json --

# Of the facts in run.json that are used, what each is: a type, a list of what it shows, a mapping with such entries.
# Others may stand beside them. Null is as good as not there, but for a list.
CHECKED = {"checksum": str, "n": int}
FACTS = {
    "id": str, "state": str, "error": str, "stopped": str, "ended": str, "features": str,
    "starts": [{"time": str, "git": str, "versions": {}}],
    "dataset": {"name": str, "checksum": str, "classes": [str], "n_train": int, "n_test": int},
    "initial_set": CHECKED, "validation_set": CHECKED, "strategy_code": {"checksum": str, "modules": {}},
    "model_code": {"checksum": str, "modules": {}}, "strategy_version": {"checksum": str, "files": str},
    "model_version": {"checksum": str, "files": str}, "weights": {"model": str, "features": str},
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A run.json, its texts printable. Raises UserError where it cannot be read or holds what no run writes."""
    data = read_file(path)
    try:
        content = json.loads(data)
        if why := misfit(content, FACTS, ""):
            raise ValueError(why)
        if content.get("state", FINISHED) not in STATES:
            raise ValueError(f"state is {content['state']!r}, none of {', '.join(STATES)}")
        return printable_in(content)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is damaged ({why}). Delete {path.parent} to begin anew.") from None


def misfit(value: Any, like: Any, name: str) -> str | None:
    """The first place at which a value is not as FACTS shows it."""
    kind = like if isinstance(like, type) else type(like)
    if value is None and kind is not list and name:
        return None
    if type(value) is not kind:
        words = {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}[kind]
        return f"{f'{name} is ' if name else ''}{type(value).__name__}, not {words}"
    if kind is list:
        parts = [(v, like[0], f"{name}[{i}]") for i, v in enumerate(value)]
    elif kind is dict:
        parts = [(value[k], of, f"{name}.{k}".lstrip(".")) for k, of in like.items() if k in value]
    else:
        return None
    return next((why for part in parts if (why := misfit(*part))), None)
