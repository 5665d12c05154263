"""What the user can put right, told in words."""

from collections.abc import Iterator
from contextlib import contextmanager

from al_bench.signals import stop_behind
from al_bench.text import in_a_line, printable


class UserError(Exception):
    """An error that the user can fix: what is wrong, where, and what to do. Shown without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a file or its name


@contextmanager
def users_code(what: str, hint: str = "") -> Iterator[None]:
    """Turns whatever a user's function raises into a UserError that says what failed. A request to stop stays one."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if stop := stop_behind(error):
            raise stop from None
        raise UserError(f"{what} failed ({type(error).__name__}: {in_a_line(error)}).{hint}") from error
