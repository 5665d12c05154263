"""Ctrl-C and SIGTERM end a run cleanly: the run notes its state and keeps its finished rounds.

The handler raises an exception, which ends nearly everything at once. But Python drops an exception that is raised in a
finaliser (`__del__`, the callback of a weak reference, a step of the garbage collector). So the handler also stores the
signal, and each training step and each round checks it.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_REQUEST = 0.5  # seconds in which a second signal is not a new request: `timeout` sends to process and group
POLL = 0.5  # seconds between two checks that the parent process exists
GRACE = 3.5  # seconds to note the state and to close open files

_asked: int | None = None  # the first signal that asked to stop
_asked_at = 0.0  # time.monotonic()
_depth = 0  # of nested `handled` blocks
_default_handlers = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


def asked_to_stop() -> bool:
    return _asked is not None


def exit_code() -> int:
    """Return the exit code by the convention of shells: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (signal.SIGINT if _asked is None else _asked)


def stop_if_asked() -> None:
    """Raise the handler's exception again, in case Python dropped it."""
    if _asked is not None:
        raise KeyboardInterrupt if _asked == signal.SIGINT else SystemExit(exit_code())


@contextmanager
def handled() -> Iterator[None]:
    """Stop the block on Ctrl-C or SIGTERM, at the latest at its end.

    Without this, Lightning notes SIGTERM and goes on predicting. A handler that is not Python's own stays in place,
    because the environment that set it, such as Slurm's, needs the signal. In other threads nothing is handled.
    """
    global _asked, _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = _asked if _depth else None
    ours = [number for number, handler in _default_handlers.items() if signal.getsignal(number) is handler]
    for number in ours:
        signal.signal(number, _stop)
    _depth += 1
    try:
        yield
        stop_if_asked()
    except BaseException as end:
        # Other code may have turned the stop into another error: Lightning makes it sys.exit(1), an import a UserError.
        if not (isinstance(end, SystemExit) and end.code == exit_code()):
            stop_if_asked()
        raise
    finally:
        _depth -= 1
        for number in ours:
            signal.signal(number, _default_handlers[number])


def listen_again() -> None:
    """Set the handler of Ctrl-C again: Lightning ignores Ctrl-C after the first, but a second must end the process.

    Python lets the main thread alone set handlers.
    """
    if _asked == signal.SIGINT and _depth and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    again = _asked is not None
    if again and time.monotonic() - _asked_at < SAME_REQUEST:
        return
    if again and number == signal.SIGINT:
        os._exit(128 + number)
    if not again:
        _asked, _asked_at = number, time.monotonic()
    stop_if_asked()


def end_with_parent(*_: int) -> None:
    """Stop this worker process, as after SIGTERM, once its parent is gone. A killed parent cannot stop its workers."""
    threading.Thread(target=_watch, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + GRACE
    while _depth and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(128 + signal.SIGTERM)


def stop_behind(error: BaseException) -> BaseException | None:
    """Return the exception of Ctrl-C or of a signal handler that caused the error, or None if the code itself failed.

    A handler's exception is raised in whatever code runs at that moment. Its type does not identify it, because that
    code may raise SystemExit too. Its traceback does: it ends in the handler.
    """
    timers = {signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF}  # timers belong to the code itself
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals() - timers}
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        codes = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
        if isinstance(error, KeyboardInterrupt) or codes & handlers:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
