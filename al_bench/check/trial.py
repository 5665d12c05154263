"""Run a strategy on one test input: return its checked choice, or raise what it broke.

P pool images.
"""

import dis
import pickle
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from al_bench import strategies
from al_bench.check.inputs import Case
from al_bench.errors import UserError
from al_bench.strategies import PoolView, Strategy, StrategyFunction, needs_of
from al_bench.strategies.guard import last_call, package_of, select

NAN_MESSAGE = "a NaN reached"  # how the message of process.NaNWatch begins


class Broken(Exception):
    """The strategy broke a rule. The message says on which input and what came out."""


class Refused(Exception):
    """The strategy refused an input by its own ValueError or UserError, where a rule allows that. Holds its message."""


def choose(
    strategy: StrategyFunction,
    case: Case,
    stream: int = 0,
    view: PoolView | None = None,
    may_refuse: bool = False,
    watch: AbstractContextManager | None = None,
) -> Tensor:
    """Return the checked choice for a case, or for `view` if that is given.

    stream: the seed of the generator. may_refuse: the strategy may refuse the input. watch: a context to run it in.
    Raises Refused where the strategy refuses and may do so, and Broken for any other error.
    """
    view = case.view(needs_of(strategy)) if view is None else view
    try:
        with watch or nullcontext():
            return select(Strategy(strategy, ""), view, case.size.k, torch.Generator().manual_seed(stream), 0)
    except UserError as error:
        if may_refuse and is_refusal(strategy, cause := error.__cause__ or error):
            raise Refused(str(cause)) from error
        raise Broken(f"{explain(error)} Input: {case}, k={case.size.k}, seed {stream}.") from error


def is_refusal(strategy: StrategyFunction, error: BaseException) -> bool:
    """Return whether the error is a refusal: a ValueError or UserError from a `raise` in the strategy's own package.

    Errors of libraries, of `top_k` and `guard`, and of NaNWatch are failures.
    """
    last = last_call(error)
    code, module = last.tb_frame.f_code, last.tb_frame.f_globals.get("__name__", "")
    return (
        isinstance(error, ValueError | UserError)
        and module.split(".")[0] in ("al_bench", package_of(strategy))
        and module != select.__module__  # guard.py checks what comes back
        and code is not strategies.top_k.__code__
        and code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]  # int("x") raises without this instruction
        and not str(error).startswith(NAN_MESSAGE)
    )


def explain(error: UserError) -> str:
    """Return the message of `select` about the strategy, as a sentence."""
    said = str(error).removeprefix("strategy , round 0: ")
    if said.startswith(("it ", NAN_MESSAGE)) or error.__cause__ is None:
        return said[0].upper() + said[1:]
    return f"It raised {'ValueError: ' if isinstance(error.__cause__, ValueError) else ''}{said}"


def expect(holds: bool, message: str, case: Case) -> None:
    """Raise Broken with the message and the input unless `holds`."""
    if not holds:
        raise Broken(f"{message} Input: {case}, k={case.size.k}.")


def is_uniform(count_P: Tensor) -> bool:
    """Return whether the counts fit a uniform draw (chi-squared; a uniform draw fails once in a million times)."""
    fair = count_P.sum() / len(count_P)
    excess = (count_P - fair).square().sum() / fair
    return bool(torch.special.gammaincc(torch.tensor((len(count_P) - 1) / 2), excess / 2) > 1e-6)


def brief(positions: Tensor) -> str:
    return str(positions.tolist()) if len(positions) < 21 else f"{str(positions.tolist()[:20])[:-1]}, ...]"


@contextmanager
def chunk_size(numbers: int) -> Iterator[None]:
    """Set strategies.CHUNK to `numbers` for the block."""
    before, strategies.CHUNK = strategies.CHUNK, numbers
    try:
        yield
    finally:
        strategies.CHUNK = before


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch for the block, then restore them."""
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
