from al_bench.text import printable


class UserError(Exception):
    """An error that the user can fix: what is wrong, where, and what to do. Shown without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a file or its name
