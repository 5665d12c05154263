"""Call a strategy, and check its input and its result. The loop calls `select`.

P pool images, L labelled, S stochastic passes or committee members, C classes, D embedding width, F width of the fixed
features.
"""

import sysconfig
import traceback
from dataclasses import fields
from difflib import SequenceMatcher
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor

from al_bench.errors import UserError, users_code
from al_bench.strategies import FIELDS_OF, Needs, PoolView, Size, Strategy, StrategyFunction, call_with

LONGEST = 400  # characters of an error's text that a message repeats at most


def select(strategy: Strategy, view: PoolView, k: int, rng: torch.Generator, round: int) -> Tensor:
    """The k pool positions that the strategy chooses, in its order: int64 [k], all different.

    Raises UserError with the strategy's name, the round and the cause if the view is unusable, the strategy fails, or
    it returns anything else.
    """
    where = f"strategy {strategy.name}, round {round}"
    if k > view.n_pool:
        raise UserError(f"{where}: {k} images are to be chosen, but the pool has only {view.n_pool}.")
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    check_view(view, where)
    with users_code(lambda error: f"{where}: {why_it_failed(error, strategy.function, view)}"):
        check_memory(strategy.needs, view, k, where)
        positions = strategy.function(view, k, rng)
    check_positions(positions, view.n_pool, k, where)
    return positions


def check_positions(positions: Any, n_pool: int, k: int, where: str) -> None:
    if (got := type_and_shape(positions)) != f"torch.int64 [{k}]":
        raise UserError(f"{where}: it has to return an int64 tensor of {k} positions, but returned {got}.")
    if not 0 <= int(positions.min()) <= int(positions.max()) < n_pool:
        raise UserError(f"{where}: it returned a position outside the pool of {n_pool}.")
    if (n := len(positions.unique())) < k:
        raise UserError(f"{where}: it returned {n} different positions instead of {k}.")


def type_and_shape(positions: Any) -> str:
    """Type and shape of what a strategy returned, with layout and device if it is no plain tensor on the CPU."""
    if not isinstance(positions, Tensor):
        return type(positions).__name__
    plain = positions.device.type == "cpu" and positions.layout is torch.strided
    return f"{positions.dtype} {list(positions.shape)}{'' if plain else f' ({positions.layout}, {positions.device})'}"


def why_it_failed(error: BaseException, function: StrategyFunction, view: PoolView) -> str:
    """A sentence on what a strategy raised, with the line of the user's file."""
    if isinstance(error, AttributeError | TypeError) and "NoneType" in str(error):
        if missing := undeclared_field(view, error):
            need, name = missing
            return f"it uses view.{name} without declaring it: put @needs({need}=True) above it."
    line = line_of(error, function)
    if isinstance(error, AttributeError) and isinstance(error.obj, PoolView):
        return f"it uses view.{error.name}{line}, but a view has only the fields {fields_like(error.name)}."
    if isinstance(error, TypeError) and last_call(error).tb_frame.f_code is select.__code__:
        return f"{reason_of(error)}. {call_with(getattr(function, 'keywords', {}))}"
    if isinstance(error, SystemExit):
        return f"it asks to end the process, as sys.exit() does{line}. Return the positions, or raise ValueError."
    return f"{reason_of(error)}{line}."


def last_call(error: BaseException) -> TracebackType:
    """Return the innermost call of an error's traceback."""
    call = error.__traceback__
    while call.tb_next:
        call = call.tb_next
    return call


def fields_like(name: str) -> str:
    """The fields of a view, those first whose names are most like `name`."""

    def likeness(field: str) -> float:
        return SequenceMatcher(None, name.lower(), field.lower()).ratio()

    return ", ".join(sorted((field.name for field in fields(PoolView)), key=likeness, reverse=True))


def reason_of(error: BaseException) -> str:
    """The text of an error on one line. A ValueError's text stands alone; other errors have their type in front."""
    reason = " ".join("".join(traceback.format_exception_only(error)).split()).rstrip(".")
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."
    return reason.removeprefix("ValueError: ")


def undeclared_field(view: PoolView, error: BaseException) -> tuple[str, str] | None:
    """(need, field) of the first field that is None and that a function in the traceback uses; None if none is."""
    named = {name for frame, _ in traceback.walk_tb(error.__traceback__) for name in frame.f_code.co_names}
    absent = [
        (need, name)
        for need, names in FIELDS_OF.items()
        for name in names
        if name in named and getattr(view, name) is None
    ]
    return absent[0] if absent else None


def line_of(error: BaseException, function: StrategyFunction) -> str:
    """The last line of the user's own code that led to an error, as " (mine.py, line 7)"; "" if there is none.

    The user's own code is the strategy's package and every file outside the libraries. If a strategy of al_bench fails
    by itself, its line is given. A ValueError of al_bench needs no line, because its text explains it.
    """
    ours, theirs = package_of(select), package_of(function)
    libraries = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    places: dict[bool, str] = {}
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, package = Path(frame.f_code.co_filename), frame.f_globals.get("__name__", "").split(".")[0]
        inside = any(folder in file.parents for folder in libraries)
        if file.is_file() and (package in (ours, theirs) or not inside):
            places[package == ours] = f" ({file.name}, line {line})"
    return places.get(False) or ("" if isinstance(error, ValueError) else places.get(True, ""))


def package_of(function: StrategyFunction) -> str:
    function = getattr(function, "keywords", {}).get("choose", function)  # of a strategy behind a filter
    return (getattr(getattr(function, "func", function), "__module__", None) or "").split(".")[0]


def check_view(view: PoolView, where: str) -> None:
    """Raises UserError if the model's numbers are unusable or their shapes do not fit together."""
    for field in fields(view):
        values = getattr(view, field.name)
        if not isinstance(values, Tensor) or not values.is_floating_point() or not len(values):
            continue
        low, high = values.aminmax()  # NaN if any value is
        # -inf is valid in a log-probability: the probability is exactly 0.
        if not high < torch.inf or not (low > -torch.inf or "log_probs" in field.name):
            raise UserError(
                f"{where}: the model's {field.name} holds NaN or infinite values. "
                "Lower the learning rate or try trainer.precision=32-true."
            )
    sizes = {"P": view.n_pool, "C": view.n_classes}
    for field in fields(view):
        values, shape = getattr(view, field.name), field.name.rpartition("_")[2]
        if not isinstance(values, Tensor):
            continue
        found = list(values.shape)
        if len(found) != len(shape) or any(sizes.setdefault(s, n) != n for s, n in zip(shape, found, strict=True)):
            wanted = ", ".join(str(sizes.get(s, s)) for s in shape)
            raise UserError(f"{where}: {field.name} has the shape {found} instead of [{wanted}] ({', '.join(shape)}).")


def size_of(view: PoolView, k: int) -> Size:
    def width(tensor: Tensor | None, dim: int) -> int:
        return 0 if tensor is None else tensor.shape[dim]

    return Size(
        view.n_pool,
        width(view.labelled_labels_L, 0),
        width(view.log_probs_PSC, 1),
        view.n_classes,
        width(view.emb_PD, 1),
        width(view.features_PF, 1),
        k,
    )


def check_memory(needs: Needs, view: PoolView, k: int, where: str) -> None:
    """Raises UserError if the strategy's estimate exceeds the free memory. The message names a pool size that fits."""
    estimate = needs.memory
    if estimate is None:
        return
    size, free = size_of(view, k), psutil.virtual_memory().available
    if (wanted := estimate(size)) <= free:
        return
    fits = size.P
    while fits > k and estimate(Size(**{**vars(size), "P": fits})) > free:
        fits //= 2
    way_out = f"Set strategy.candidates={fits}, a random part of the pool" if fits > k else "Lower budget.query"
    raise UserError(
        f"{where}: it would need about {wanted / 1e9:.1f} GB for a pool of {size.P:,} images, but {free / 1e9:.1f} GB "
        f"are free. {way_out}."
    )
