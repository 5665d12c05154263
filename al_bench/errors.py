"""Errors that a user can put right, and how to tell them from a stop of the whole process."""

import signal
import traceback

from al_bench.text import printable


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do. Shown without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may name a file, or hold what a file says


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


def in_a_line(error: BaseException) -> str:
    """The text of an error on one line; its type as well where the text alone says too little, as SystemExit's 0."""
    if isinstance(error, SystemExit):
        return f"it asks to end the process, by {error!r}"
    text = " ".join(str(error).split())
    return text if text and isinstance(error, Exception) else repr(error)
