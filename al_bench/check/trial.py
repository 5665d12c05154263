"""Running a strategy on trial: its checked choice, or what it broke.

P pool images.
"""

import linecache
import pickle
import random
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CodeType

import numpy as np
import torch
from torch import Tensor

from al_bench import strategies
from al_bench.check.inputs import Case
from al_bench.errors import UserError
from al_bench.strategies import PoolView, Strategy, StrategyFunction, needs_of
from al_bench.strategies.guard import package_of, select

NAN = "a NaN reached"  # what process.NaNWatch raises in the strategy's stead


class Broken(Exception):
    """The strategy broke a rule: on which input, and what came out."""


class Refused(Exception):
    """The strategy raised ValueError or UserError of its own, where it may: what it said."""


def choose(
    strategy: StrategyFunction,
    case: Case,
    stream: int = 0,
    view: PoolView | None = None,
    may_refuse: bool = False,
    watch: AbstractContextManager | None = None,
) -> Tensor:
    """The checked choice from a case, or from the view given for it, with the generator seeded by `stream`."""
    view = case.view(needs_of(strategy)) if view is None else view
    try:
        with watch or nullcontext():
            return select(Strategy(strategy, ""), view, case.size.k, torch.Generator().manual_seed(stream), 0)
    except UserError as error:
        if may_refuse and is_refusal(strategy, cause := error.__cause__ or error):
            raise Refused(str(cause)) from error
        raise Broken(f"{explain(error)} Input: {case}, k={case.size.k}, seed {stream}.") from error


def is_refusal(strategy: StrategyFunction, error: BaseException) -> bool:
    """Raised by a `raise` of the strategy's own package, not by a library, and not for want of a better answer."""
    module, code, line = frames(error)[-1]
    return (
        isinstance(error, ValueError | UserError)
        and module.split(".")[0] in ("al_bench", package_of(strategy))
        and code not in (strategies.top_k.__code__, select.__code__)
        and line.startswith("raise ")
        and not str(error).startswith(NAN)
    )


def explain(error: UserError) -> str:
    """What `select` says of the strategy, as a sentence."""
    said = str(error).removeprefix("strategy , round 0: ")
    if said.startswith(("it ", NAN)) or error.__cause__ is None:
        return said[0].upper() + said[1:]
    return f"It raised {'ValueError: ' if isinstance(error.__cause__, ValueError) else ''}{said}"


def frames(error: BaseException) -> list[tuple[str, CodeType, str]]:
    """Module, code and line of each call that led to the error, outermost first."""
    return [
        (
            frame.f_globals.get("__name__", ""),
            frame.f_code,
            linecache.getline(frame.f_code.co_filename, line).strip(),
        )
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]


def expect(true: bool, what: str, case: Case) -> None:
    if not true:
        raise Broken(f"{what} Input: {case}, k={case.size.k}.")


def is_even(count_P: Tensor) -> bool:
    """Whether the counts may be those of a fair draw (chi-squared; a fair one fails once in a million times)."""
    fair = count_P.sum() / len(count_P)
    excess = (count_P - fair).square().sum() / fair
    return bool(torch.special.gammaincc(torch.tensor((len(count_P) - 1) / 2), excess / 2) > 1e-6)


def brief(positions: Tensor) -> str:
    return str(positions.tolist()) if len(positions) < 21 else f"{positions.tolist()[:20]}..."


@contextmanager
def chunk(numbers: int) -> Iterator[None]:
    before, strategies.CHUNK = strategies.CHUNK, numbers
    try:
        yield
    finally:
        strategies.CHUNK = before


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """The three global generators seeded, and as they were afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def global_state() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))
