"""Rules on what a strategy leaves behind in the process, and on what it takes of it: settings, NaN, memory, time.

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

from al_bench.check.inputs import KINDS, Case, cases, large
from al_bench.check.trial import NAN, brief, choose, chunk, expect, global_seed, global_state
from al_bench.strategies import PoolView, Size, StrategyFunction, needs_of


def global_generators_are_left_alone(strategy: StrategyFunction, S: int) -> None:
    """The global generators of torch, numpy and Python are neither read nor moved."""
    for case in [*cases(S)[1:], cases(S)[1].of(kind="alike")]:
        picks = []
        for seed in (0, 0, 1):
            with global_seed(seed):
                before = global_state()
                picks.append(choose(strategy, case))
                expect(global_state() == before, "It moved a global generator.", case)
        same, again, other = picks
        reads = torch.equal(same, again) and not torch.equal(same, other)
        expect(not reads, f"It chose {brief(same)} and, globally seeded anew, {brief(other)}.", case)


# --- Settings of the process

# What the next round's training would run under: how to read it, and how to set it.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "whether torch keeps gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "torch's detection of anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "numpy's treatment of errors": (np.geterr, lambda setting: np.seterr(**setting)),
    "the environment": (lambda: dict(os.environ), lambda there: (os.environ.clear(), os.environ.update(there))),
    "the current folder": (os.getcwd, os.chdir),
    "Python's limit of recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the filters of warnings": (
        lambda: list(warnings.filters),
        lambda there: warnings.filters.__setitem__(slice(None), there),
    ),
    "the handler of SIGTERM": (lambda: signal.getsignal(signal.SIGTERM), lambda h: signal.signal(signal.SIGTERM, h)),
    "the handler of SIGINT": (lambda: signal.getsignal(signal.SIGINT), lambda h: signal.signal(signal.SIGINT, h)),
}


def settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in SETTINGS.items()}


@contextmanager
def settings_kept() -> Iterator[None]:
    """The process's settings are afterwards as they were, so that no rule is judged under what another one met."""
    before = settings()
    try:
        yield
    finally:
        for name, now in settings().items():
            if now != before[name]:
                SETTINGS[name][1](before[name])


def settings_are_left_alone(strategy: StrategyFunction, S: int) -> None:
    """The settings of torch, numpy and Python are as they were: threads, default dtype, gradients, environment."""
    case = cases(S)[1]
    with settings_kept():  # what it imports at its first call may well set something
        choose(strategy, case)
    with settings_kept():
        before = settings()
        choose(strategy, case)
        for name, now in settings().items():
            said = f"It changed {name}" + (f" from {before[name]} to {now}." if len(str(now)) < 40 else ".")
            expect(now == before[name], said, case)


def threads_do_not_matter(strategy: StrategyFunction, S: int) -> None:
    """One thread and three give the same picks."""
    for case in [*cases(S), large(S)]:
        picks = []
        for threads in (1, 3):
            with settings_kept():
                torch.set_num_threads(threads)
                picks.append(choose(strategy, case))
        one, three = picks
        expect(torch.equal(one, three), f"With one thread it chose {brief(one)}, with three {brief(three)}.", case)


# --- NaN


PICKING = {"argmax", "argmin", "topk", "sort", "kthvalue", "max", "min", "median", "mode"}  # and say where


class NaNWatch(TorchDispatchMode):
    """ValueError where torch picks among numbers of which one is NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        positions = name.startswith("arg") or isinstance(found, tuple)  # max and min of all numbers say no place
        if name in PICKING and positions and args[0].is_floating_point() and args[0].isnan().any():
            raise ValueError(f"{NAN} {name}, which takes it for the largest of all numbers, or for the smallest")
        return found


def no_nan_is_compared(strategy: StrategyFunction, S: int) -> None:
    """No NaN is among the numbers that torch picks from: it would be taken for the largest of them."""
    few = [cases(S)[1].of(L=n) for n in (0, 1)]
    for case in [*(cases(S)[1].of(kind=kind) for kind in KINDS), *few]:
        choose(strategy, case, may_refuse=case in few or case.kind == "one labelled class", watch=NaNWatch())


# --- Memory and time


def nothing_is_kept(strategy: StrategyFunction, S: int) -> None:
    """What it was shown is let go when it returns."""
    case = cases(S)[1]
    view = case.view(needs_of(strategy))
    shown = {
        name: weakref.ref(values.untyped_storage())  # which a slice of the tensor holds as well
        for name, values in vars(view).items()
        if isinstance(values, Tensor)
    }
    choose(strategy, case, view=view)
    del view
    if any(values() is not None for values in shown.values()):
        gc.collect()  # a function that refers to itself waits for this
    kept = [f"view.{name}" for name, values in shown.items() if values() is not None]
    expect(not kept, f"It still holds {', '.join(kept)}: each round's would be added to those before.", case)


class Memory(TorchDispatchMode):
    """Bytes of the tensors made while it is on, and the most there were at a time."""

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
    """Bytes that it works with at most, beyond its view."""
    view = case.view(needs_of(strategy))
    watch, traced = Memory(view), tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        choose(strategy, case, view=view, watch=watch)
        return watch.most + tracemalloc.get_traced_memory()[1] - before  # tracemalloc sees Python's and numpy's
    finally:
        if not traced:
            tracemalloc.stop()


def seconds_of(strategy: StrategyFunction, case: Case) -> float:
    """Seconds of one thread, the least of three runs: what else the machine does counts as little as can be."""
    view, seconds = case.view(needs_of(strategy)), []
    with settings_kept(), threadpool_limits(1):  # several would count the time in which they wait for each other
        torch.set_num_threads(1)
        for _ in range(3):
            start = time.thread_time()
            choose(strategy, case, view=view)
            seconds.append(time.thread_time() - start)
    return min(seconds)


PATIENCE = 300  # seconds that choosing from REALISTIC images may take where it grows with the square of the pool
REALISTIC = 50_000


def large_pools(strategy: StrategyFunction, S: int) -> None:
    """Neither memory nor time grows with the square of the pool, but for what @needs(memory=...) declares."""
    few, many = (of_size(P, S) for P in (250, 1000))
    one, four = seconds_of(strategy, few), seconds_of(strategy, many)
    expected = four * (REALISTIC / 1000) ** 2
    expect(
        four < 8 * one or expected < PATIENCE,
        f"Of 250 images it chose in {one:.2f} s, of 1,000 in {four:.2f} s: of {REALISTIC:,} in about "
        f"{expected / 60:.0f} minutes.",
        many,
    )
    few, many = (of_size(P, S) for P in (2000, 4000))
    with chunk(2**16):  # so that what works in chunks of this size shows it
        one, two = memory_of(strategy, few), memory_of(strategy, many)
    estimate = needs_of(strategy).memory
    expect(
        two < 3 * one or two < 4000**2 or (estimate is not None and two <= estimate(many.size)),
        f"Of 2,000 images it chose with {one / 1e6:.0f} MB, of 4,000 with {two / 1e6:.0f} MB: of {REALISTIC:,} with "
        f"{two / 1e9 * (REALISTIC / 4000) ** 2:.0f} GB. Work in chunks (by_chunks), or declare @needs(memory=...).",
        many,
    )


def of_size(P: int, S: int) -> Case:
    return Case(Size(P=P, L=7, S=S, C=3, D=4, F=4, k=8), 5)
