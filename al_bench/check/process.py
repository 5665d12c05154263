"""Rules on the process around a strategy: global generators and settings, NaN, memory, time.

P pool images.
"""

import gc
import os
import signal
import sys
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from al_bench.check.inputs import KINDS, Case, cases, large_case
from al_bench.check.trial import NAN_MESSAGE, brief, choose, chunk_size, expect, global_seed, global_state
from al_bench.strategies import PoolView, Size, StrategyFunction, needs_of


def global_generators_are_left_alone(strategy: StrategyFunction, S: int) -> None:
    """It neither reads nor advances the global generators of torch, numpy and Python."""
    for case in [*cases(S)[1:], cases(S)[1].changed(kind="identical")]:
        picks = []
        for seed in (0, 0, 1):
            with global_seed(seed):
                before = global_state()
                picks.append(choose(strategy, case))
                expect(global_state() == before, "It advanced a global generator.", case)
        same, again, other = picks
        reads = torch.equal(same, again) and not torch.equal(same, other)
        expect(not reads, f"It chose {brief(same)}. With another global seed it chose {brief(other)}.", case)


# --- Settings of the process

# Settings that would affect the training of the next round: (how to read one, how to set it).
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's switch for gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "torch's anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "numpy's error handling": (np.geterr, lambda setting: np.seterr(**setting)),
    "the environment": (lambda: dict(os.environ), lambda there: (os.environ.clear(), os.environ.update(there))),
    "the current folder": (os.getcwd, os.chdir),
    "Python's recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the warning filters": (
        lambda: list(warnings.filters),
        lambda there: warnings.filters.__setitem__(slice(None), there),
    ),
    "the handler of SIGTERM": (lambda: signal.getsignal(signal.SIGTERM), lambda h: signal.signal(signal.SIGTERM, h)),
    "the handler of SIGINT": (lambda: signal.getsignal(signal.SIGINT), lambda h: signal.signal(signal.SIGINT, h)),
}


def settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in SETTINGS.items()}


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restore the process's settings after the block, so that one rule does not affect the next."""
    before = settings()
    try:
        yield
    finally:
        for name, now in settings().items():
            if now != before[name]:
                SETTINGS[name][1](before[name])


def settings_are_left_alone(strategy: StrategyFunction, S: int) -> None:
    """It changes no setting of torch, numpy and Python: threads, default dtype, gradients, environment."""
    case = cases(S)[1]
    with settings_restored():  # an import at the first call may change settings
        choose(strategy, case)
    with settings_restored():
        before = settings()
        choose(strategy, case)
        for name, now in settings().items():
            said = f"It changed {name}" + (f" from {before[name]} to {now}." if len(str(now)) < 40 else ".")
            expect(now == before[name], said, case)


def threads_do_not_matter(strategy: StrategyFunction, S: int) -> None:
    """One thread and three give the same picks."""
    for case in [*cases(S), large_case(S)]:
        picks = []
        for threads in (1, 3):
            with settings_restored():
                torch.set_num_threads(threads)
                picks.append(choose(strategy, case))
        one, three = picks
        expect(torch.equal(one, three), f"With one thread it chose {brief(one)}, with three {brief(three)}.", case)


# --- NaN


RANKING = {"argmax", "argmin", "topk", "sort", "kthvalue", "max", "min", "median", "mode"}  # return positions


class NaNWatch(TorchDispatchMode):
    """Raise ValueError where torch returns the position of a largest or smallest number and one number is NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        positions = name.startswith("arg") or isinstance(found, tuple)  # max and min over all return none
        if name in RANKING and positions and args[0].is_floating_point() and args[0].isnan().any():
            raise ValueError(f"{NAN_MESSAGE} {name}, which ranks NaN as the largest of all numbers, or as the smallest")
        return found


def no_nan_is_compared(strategy: StrategyFunction, S: int) -> None:
    """No NaN is sorted or compared by torch, which would rank it as the largest number."""
    few = [cases(S)[1].changed(L=n) for n in (0, 1)]
    for case in [*(cases(S)[1].changed(kind=kind) for kind in KINDS), *few]:
        choose(strategy, case, may_refuse=case in few or case.kind == "one labelled class", watch=NaNWatch())


# --- Memory and time


def nothing_is_kept(strategy: StrategyFunction, S: int) -> None:
    """It keeps no tensor of the view after it returns."""
    case = cases(S)[1]
    view = case.view(needs_of(strategy))
    shown = {
        name: weakref.ref(values.untyped_storage())  # a slice of the tensor holds the storage too
        for name, values in vars(view).items()
        if isinstance(values, Tensor)
    }
    choose(strategy, case, view=view)
    del view
    if any(values() is not None for values in shown.values()):
        gc.collect()  # a reference cycle, as of a recursive inner function, needs this
    kept = [f"view.{name}" for name, values in shown.items() if values() is not None]
    expect(not kept, f"It still holds {', '.join(kept)}. Each round would add more.", case)


class Memory(TorchDispatchMode):
    """Count the bytes of the tensors that are made while it is active: now, and at most at one time."""

    def __init__(self, view: PoolView) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = {v.untyped_storage()._cdata for v in vars(view).values() if isinstance(v, Tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return found

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())

    def free(self, which: int, size: int) -> None:
        self.known.discard(which)
        self.now -= size


def memory_of(strategy: StrategyFunction, case: Case) -> int:
    """Return the peak memory of the strategy in bytes, without its view."""
    view = case.view(needs_of(strategy))
    watch, traced = Memory(view), tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        choose(strategy, case, view=view, watch=watch)
        return watch.most + tracemalloc.get_traced_memory()[1] - before  # tracemalloc counts Python and numpy
    finally:
        if not traced:
            tracemalloc.stop()


def seconds_of(strategy: StrategyFunction, case: Case) -> float:
    """Return the CPU seconds of one thread: the least of three runs, because other work on the machine adds to them."""
    view, seconds = case.view(needs_of(strategy)), []
    with settings_restored(), threadpool_limits(1):  # several threads would add their waiting time
        torch.set_num_threads(1)
        for _ in range(3):
            start = time.thread_time()
            choose(strategy, case, view=view)
            seconds.append(time.thread_time() - start)
    return min(seconds)


REALISTIC = 50_000  # images of a real pool
MAX_SECONDS = 300  # for a choice from REALISTIC images, if the time grows with the square of the pool


def large_pools(strategy: StrategyFunction, S: int) -> None:
    """Neither memory nor time grows with the square of the pool, except as @needs(memory=...) declares."""
    few, many = (case_of_size(P, S) for P in (250, 1000))
    one, four = seconds_of(strategy, few), seconds_of(strategy, many)
    expected = four * (REALISTIC / 1000) ** 2
    expect(
        four < 8 * one or expected < MAX_SECONDS,
        f"A choice from 250 images took {one:.2f} s and from 1,000 images {four:.2f} s. From {REALISTIC:,} it would "
        f"take about {expected / 60:.0f} minutes.",
        many,
    )
    few, many = (case_of_size(P, S) for P in (2000, 4000))
    with chunk_size(2**16):  # so small that working in chunks shows
        one, two = memory_of(strategy, few), memory_of(strategy, many)
    estimate = needs_of(strategy).memory
    expect(
        two < 3 * one or two < 4000**2 or (estimate is not None and two <= estimate(many.size)),
        f"A choice from 2,000 images took {one / 1e6:.0f} MB and from 4,000 images {two / 1e6:.0f} MB. From "
        f"{REALISTIC:,} it would take {two / 1e9 * (REALISTIC / 4000) ** 2:.0f} GB. Work in chunks (by_chunks), "
        "or declare @needs(memory=...).",
        many,
    )


def case_of_size(P: int, S: int) -> Case:
    return Case(Size(P=P, L=7, S=S, C=3, D=4, F=4, k=8), 5)
