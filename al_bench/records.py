"""The only reader of a run folder's files: the records in rounds.jsonl and the facts in run.json.

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

STATES = FINISHED, FAILED, RUNNING, INTERRUPTED, WAITING = "finished", "failed", "running", "interrupted", "waiting"
LARGEST_COUNT = 2**53

FINITE = sys.float_info.max
ROUNDING = 1e-5  # metrics are means in float32
SHARE, LOSS, ANY = (-ROUNDING, 1 + ROUNDING), (-ROUNDING, FINITE), (-FINITE, FINITE)
BOUNDS = {  # of the metrics on the test set and on the validation set
    **dict.fromkeys(("accuracy", "ece", "macro_f1", "balanced_accuracy", "worst_class", "per_class"), SHARE),
    "nll": LOSS, "loss": LOSS, "brier": (-ROUNDING, 2 + ROUNDING),
}  # fmt: skip
COUNTS = ("round", "n_labelled", "n_val", "weights_from", "epochs", "steps", "peak_memory", "n_candidates", "n_foreign")
counts_of = operator.attrgetter(*COUNTS)
MAX_SECONDS = 1e9
SHARED_FIT = "shared_fit"  # in seconds of round 0: what the fit took the run that made it


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl.

    `acquired` is queried after the fit that `metrics` describes, so n_labelled does not count it.
    """

    round: int
    n_labelled: int  # training labels of this round's fit
    n_val: int  # validation labels, which count towards the label budget too
    metrics: dict[str, Any]  # on the test set, from metrics.py
    validation: dict[str, float] | None  # loss and accuracy of this round's fit
    acquired: list[int]  # dataset indices in the order they were picked
    weights_from: int  # the round whose weights were tested and queried with; an earlier one if start=best
    epochs: int
    steps: int
    history: list[dict[str, float]]  # one entry per epoch
    seconds: dict[str, float]  # fit, evaluate, committee, predict, select
    peak_memory: int  # bytes: of the accelerator, or of the process since its start, with its earlier runs
    n_candidates: int = 0  # pool images that the strategy chose from: all, or a random part
    n_foreign: int = 0  # labels queried for out-of-distribution images; not in n_labelled
    class_counts: list[int] = field(default_factory=list)  # of the training labels of this round's fit
    fit_from: str | None = field(default=None, compare=False)  # <study>/<run_name> of another run that made this fit
    run: str | None = field(default=None, compare=False)  # store.run_name of the run; None in old records

    @property
    def n_labels(self) -> int:
        """Return the x value of the learning curve: all labels queried for training."""
        return self.n_labelled + self.n_foreign


FIELDS = frozenset(f.name for f in fields(RoundRecord))
REQUIRED = FIELDS - {"n_candidates", "n_foreign", "class_counts", "fit_from", "run"}  # old records lack these


def read_records(path: Path, run: str | None = None, by_person: bool = False) -> list[RoundRecord]:
    """Return the finished rounds of a rounds.jsonl, in order. Leave out an incomplete last line.

    run: the name of the run. A record that names another run is an error. by_person: a person labels, who may take
    labels back. Raises UserError if anything is wrong.
    """
    return parse(path, read_file(path), run, by_person)


def parse(path: Path, data: bytes, run: str | None = None, by_person: bool = False) -> list[RoundRecord]:
    """Do the same with data that has been read already."""
    records, acquired = [], set()
    try:
        for line in split_lines(data)[0]:
            record = parse_line(line)
            if why := why_misplaced(record, records, acquired, by_person):
                raise ValueError(why)
            if run and record.run and record.run != run:
                raise OtherRunError
            records.append(record)
    except OtherRunError:
        raise UserError(
            f"{path}, line {len(records) + 1} is a record of {record.run}, but this is the folder of {run}. Restore "
            f"the {path.name} of this run, or delete {path.parent} to begin anew."
        ) from None
    except NewerVersionError as error:
        raise UserError(
            f"{path}, line {len(records) + 1} is a record of a newer al_bench: {error}. Read it with that version."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path}, line {len(records) + 1} is not a valid record ({error}). Delete that line and all after it to "
            f"go on from there, or delete {path.parent} to begin anew."
        ) from None
    return records


def split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Return (complete lines, incomplete last line). The last line is incomplete after a kill, else empty."""
    *lines, last = data.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True) or [b""]
    complete = last.endswith(b"\n") and last.rstrip().endswith(b"}")
    return ([*lines, last], b"") if complete else (lines, last)


def is_complete(records: list[RoundRecord]) -> bool:
    """Return whether these are all rounds of a run. Only the last round of a run acquires nothing."""
    return bool(records) and not records[-1].acquired


# -- one record --


class OtherRunError(Exception):
    """The record belongs to another run."""


class NewerVersionError(ValueError):
    """The record holds fields that this version does not know."""


def parse_line(line: bytes) -> RoundRecord:
    """Return the record of one line. Raises ValueError if it is not a record or a value is impossible."""
    content = orjson.loads(line)  # refuses NaN, infinity, lone surrogates and deep nesting
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__}, not a mapping")
    if missing := REQUIRED - content.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if unknown := content.keys() - FIELDS:
        raise NewerVersionError(f"this version does not know {', '.join(sorted(unknown))}")
    if (b"true" in line or b"false" in line) and (name := next(filter(lambda k: holds_bool(content[k]), content), "")):
        raise ValueError(f"{name} holds true or false, not a number")
    record = RoundRecord(**content)
    if why := why_invalid(record):
        raise ValueError(why)
    if line.count(b":") != n_keys(record, content):  # a key that appears twice, or a colon in a text
        json.loads(line, object_pairs_hook=refuse_repeated_keys)
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


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(repeated)} appears twice")
    return dict(pairs)


def why_invalid(r: RoundRecord) -> str | None:
    """Return what is wrong with the first impossible value of a record, or None.

    Each value is checked by itself. The caller has refused true and false.
    """
    if why := why_out_of_range("", [*counts_of(r)], 0, LARGEST_COUNT, int):
        named = zip(COUNTS, counts_of(r), strict=True)
        return next(filter(None, (why_out_of_range(name, [n], 0, LARGEST_COUNT, int) for name, n in named)), why)
    for name in ("class_counts", "acquired"):
        if why := why_out_of_range(name, getattr(r, name), 0, LARGEST_COUNT, int):
            return why
    if r.weights_from > r.round:
        return f"weights_from is {r.weights_from}, a later round"
    for name in ("run", "fit_from"):
        if not isinstance(getattr(r, name), str | None):
            return f"{name} is {short(getattr(r, name))}, not a name"
    return (
        why_invalid_metrics("metrics", r.metrics)
        or ("metrics lacks accuracy" if "accuracy" not in r.metrics else None)
        or (why_invalid_metrics("validation", r.validation) if r.validation is not None else None)
        or why_invalid_history(r.history)
        or why_invalid_seconds(r.seconds)
    )


def why_out_of_range(name: str, values: Any, low: float, high: float, kind: Any = int | float) -> str | None:
    """Return why `values` is not a list of numbers of this kind from low to high, or None."""
    if type(values) is not list:
        return f"{name} is {short(values)}, not a list"
    with suppress(TypeError):  # fast: a sum is an int only if each value is one, and fails for non-numbers
        if isinstance(sum(values), kind) and (not values or (low <= min(values) and max(values) <= high)):
            return None
    for value in values:
        if not isinstance(value, kind):
            return f"{name} is {short(value)}, not a {'whole ' if kind is int else ''}number"
        if not low <= value <= high:
            return f"{name} is {value}, outside {low:.3g} to {high:.3g}"
    return None


def why_invalid_metrics(part: str, values: Any) -> str | None:
    """Return why a mapping of metrics is invalid, or None.

    per_class is a list of one number per class, null for a class that the test set lacks.
    """
    if type(values) is not dict:
        return f"{part} is {short(values)}, not a mapping"
    for name, value in values.items():
        low, high = BOUNDS.get(name, ANY)
        if isinstance(value, int | float) and low <= value <= high and name != "per_class":
            continue
        numbers = [value]
        if name == "per_class":
            numbers = [v for v in value if v is not None] if type(value) is list else value
        if why := why_out_of_range(f"{part}.{name}", numbers, low, high):
            return why
    return None


def why_invalid_seconds(seconds: Any) -> str | None:
    if type(seconds) is not dict:
        return f"seconds is {short(seconds)}, not a mapping"
    return why_out_of_range("seconds", [*seconds.values()], 0, MAX_SECONDS)


def why_invalid_history(history: Any) -> str | None:
    try:
        sum(itertools.chain.from_iterable(map(dict.values, history)))
    except TypeError:
        return f"history is {short(history)}, not a list of mappings to numbers"
    for name in ("accuracy", "val_accuracy"):
        shares = [epoch[name] for epoch in history if name in epoch]
        if why := why_out_of_range(f"history.{name}", shares, *SHARE):
            return why
    return None


def why_misplaced(
    record: RoundRecord, before: list[RoundRecord], acquired: set[int], by_person: bool = False
) -> str | None:
    """Return why the record cannot follow the records `before`, or None.

    acquired: the images that these acquired. The images of the record are added to it. by_person: see read_records.
    """
    if record.round != len(before):
        return f"rounds are missing or repeated: this is round {record.round}, and round {len(before)} is due"
    if before:
        last = before[-1]
        if not last.acquired:
            return "the round before it acquired nothing, so the run ended there"
        if record.n_labels != last.n_labels + len(last.acquired):
            due = f"{last.n_labels:,} labels and {len(last.acquired):,} acquired images"
            return f"n_labelled and n_foreign make {record.n_labels:,} labels, after {due}"
        if record.n_labelled < last.n_labelled and not by_person:
            return "n_labelled has decreased"
    elif record.n_labels < 1:
        return "n_labelled is 0"
    n_before = len(acquired)
    acquired.update(record.acquired)
    if len(acquired) - n_before < len(record.acquired):
        twice = len(set(record.acquired)) < len(record.acquired)
        return f"acquired names an image {'twice' if twice else 'that an earlier round acquired'}"
    return None


# -- run.json --

# The shape of the facts in run.json that are read: a type, a list of one shape, or a mapping of shapes.
# Other facts may be present. Null counts as absent, except in place of a list.
CHECKED_SET = {"checksum": str, "n": int}
FACTS = {
    "id": str, "state": str, "error": str, "stopped": str, "ended": str, "features": str, "waits_for": int,
    "starts": [{"time": str, "git": str, "versions": {}}],
    "dataset": {"name": str, "checksum": str, "classes": [str], "n_train": int, "n_test": int},
    "initial_set": CHECKED_SET, "validation_set": CHECKED_SET, "strategy_code": {"checksum": str, "modules": {}},
    "model_code": {"checksum": str, "modules": {}}, "strategy_version": {"checksum": str, "files": str},
    "model_version": {"checksum": str, "files": str}, "metrics_code": {"checksum": str, "modules": {}},
    "weights": {"model": str, "features": str},
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a run.json with its texts made printable.

    Raises UserError if it cannot be read or a fact does not have the shape that runs write.
    """
    data = read_file(path)
    try:
        content = json.loads(data)
        if why := why_mismatched(content, FACTS, ""):
            raise ValueError(why)
        if content.get("state", FINISHED) not in STATES:
            raise ValueError(f"state is {content['state']!r}, not one of {', '.join(STATES)}")
        return printable_in(content)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is damaged ({why}). Delete {path.parent} to begin anew.") from None


def why_mismatched(value: Any, shape: Any, name: str) -> str | None:
    """Return the first mismatch between a value and its shape (see FACTS), or None. name: where the value stands."""
    kind = shape if isinstance(shape, type) else type(shape)
    if value is None and kind is not list and name:
        return None
    if type(value) is not kind:
        words = {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}[kind]
        return f"{f'{name} is ' if name else ''}{type(value).__name__}, not {words}"
    if kind is list:
        parts = [(v, shape[0], f"{name}[{i}]") for i, v in enumerate(value)]
    elif kind is dict:
        parts = [(value[k], inner, f"{name}.{k}".lstrip(".")) for k, inner in shape.items() if k in value]
    else:
        return None
    return next((why for part in parts if (why := why_mismatched(*part))), None)
