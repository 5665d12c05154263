"""What the user can put right, told in words."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

from al_bench.signals import stop_behind
from al_bench.text import in_a_line, printable


class UserError(Exception):
    """An error that the user can fix: what is wrong, where, and what to do. Shown without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a file or its name


Arguments = ParamSpec("Arguments")


def told(command: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """The command, which prints a UserError on stderr and then returns the exit code 1."""

    @functools.wraps(command)
    def telling(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f"al_bench: {error}", file=sys.stderr)
            return 1

    return telling


@contextmanager
def users_code(in_words: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn what a user's function raises into a UserError with these words. UserErrors and requests to stop stay."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if stop := stop_behind(error):
            raise stop from None
        raise UserError(in_words(error)) from error


def failure_of(what: str, hint: str = "") -> Callable[[BaseException], str]:
    """Words for `users_code`: what failed, the error, and a sentence on how to mend it."""
    return lambda error: f"{what} failed ({type(error).__name__}: {in_a_line(error)}).{hint}"
