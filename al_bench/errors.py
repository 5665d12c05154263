from al_bench.text import printable


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do. Shown without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may name a file, or hold what a file says
