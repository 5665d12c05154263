"""Ctrl-C and SIGTERM end the work in order: the run notes its state, and what is finished is kept.

The handler raises, which ends nearly all that Python does at once. But Python drops what is raised inside a finaliser
(`__del__`, a weak reference's callback, a step of the garbage collector). So the handler also keeps the signal, and
each step and each round looks at it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 0.5  # seconds: `timeout` and a terminal send one request twice, to the process and to its group

_asked: int | None = None  # the first signal that asked to stop
_asked_at = 0.0
_depth = 0


def asked_to_stop() -> bool:
    return _asked is not None


def exit_code() -> int:
    """As a shell counts it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (signal.SIGINT if _asked is None else _asked)


def stop_if_asked() -> None:
    """Raises what the handler raised, in case it was dropped there."""
    if _asked is not None:
        raise KeyboardInterrupt if _asked == signal.SIGINT else SystemExit(exit_code())


@contextmanager
def heeded() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop what is done in here, at the latest where it ends.

    Left to itself, Lightning notes SIGTERM and goes on predicting. A handler that is not Python's own stays: Slurm's
    jobs bring one.
    """
    global _asked, _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = _asked if _depth else None
    before = install()
    _depth += 1
    try:
        yield
        stop_if_asked()
    finally:
        _depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def install() -> dict[int, object]:
    """Take the signals over that nobody else handles. Returns their handlers so far."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    taken = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in taken:
        signal.signal(number, _handle)
    return taken


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    now = time.monotonic()
    if _asked is None:
        _asked, _asked_at = number, now
    elif now - _asked_at < PATIENCE:
        return
    elif number == signal.SIGINT:
        os._exit(128 + number)
    stop_if_asked()
