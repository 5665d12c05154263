"""Ctrl-C and SIGTERM end the work in order: each run notes its state, and what is finished is kept.

The handler raises, which ends nearly all that Python does at once. But Python drops what is raised inside a finaliser
(`__del__`, a weak reference's callback, a step of the garbage collector). So the handler also keeps the signal, and
each step and each round looks at it.
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

ONE_REQUEST = 0.5  # seconds: `timeout` sends its signal twice, to the process and to the group that the process is in
LOOK = 0.5  # seconds between two looks at whether the parent is there
LEAVE = 3.5  # seconds to note the state in and to close what is open

_asked: int | None = None  # the first signal that asked to stop
_asked_at = 0.0
_depth = 0
_usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


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

    Left to itself, Lightning notes SIGTERM and goes on predicting. A handler that is not Python's own stays as it is:
    the environment that set it, Slurm's for one, has a use for the signal.
    """
    global _asked, _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = _asked if _depth else None
    ours = [number for number, handler in _usual.items() if signal.getsignal(number) is handler]
    for number in ours:
        signal.signal(number, _stop)
    _depth += 1
    try:
        yield
        stop_if_asked()
    except BaseException as end:
        # Whatever the stop was made into on its way here: sys.exit(1) by Lightning, a UserError by a failed import.
        if not (isinstance(end, SystemExit) and end.code == exit_code()):
            stop_if_asked()
        raise
    finally:
        _depth -= 1
        for number in ours:
            signal.signal(number, _usual[number])


def listen_again() -> None:
    """Lightning ignores Ctrl-C once it has seen one. A second one is to end the process all the same."""
    if _asked == signal.SIGINT and _depth:
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    again = _asked is not None
    if again and time.monotonic() - _asked_at < ONE_REQUEST:
        return
    if again and number == signal.SIGINT:
        os._exit(128 + number)
    if not again:
        _asked, _asked_at = number, time.monotonic()
    stop_if_asked()


def end_with_parent(*_: int) -> None:
    """This process, a worker, stops as after SIGTERM when the one that started it is gone, killed before it could."""
    threading.Thread(target=_watch, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + LEAVE
    while _depth and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(128 + signal.SIGTERM)


def stop_behind(error: BaseException) -> BaseException | None:
    """The Ctrl-C, or the exception that a signal's handler raised, behind an error. None: the code itself failed.

    A handler's exception comes up inside the code that runs at that moment. Its type tells nothing, for that code may
    raise SystemExit as well. Its traceback tells: it ends in the handler.
    """
    timers = {signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF}  # they are the code's own
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals() - timers}
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        codes = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
        if isinstance(error, KeyboardInterrupt) or codes & handlers:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
