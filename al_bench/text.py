"""Text of unknown origin (names of files, what files hold) made fit to be shown."""

import logging
import unicodedata
from typing import Any

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (text direction), surrogates, line and paragraph separators
KEPT = "\n\t\u200c\u200d"  # the last two join letters of some scripts


def printable(text: str) -> str:
    r"""Without what a terminal obeys, UTF-8 cannot hold or an eye cannot see: such letters as \x1b, \udc80, \u202e."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in HIDDEN and letter not in KEPT
        else letter
        for letter in text
    )


def one_line(name: str) -> str:
    """The same of a name inside a sentence, which must not break the line."""
    return printable(name).replace("\n", r"\n").replace("\t", r"\t")


def in_a_line(error: BaseException) -> str:
    """The text of an error on one line; its type as well where the text alone says too little, as SystemExit's 0."""
    if isinstance(error, SystemExit):
        return f"it asks to end the process, by {error!r}"
    text = " ".join(str(error).split())
    return text if text and isinstance(error, Exception) else repr(error)


def printable_in(content: Any, depth: int = 50) -> Any:
    """The same for all keys and values of what was read from JSON. Raises ValueError where it is nested deeper."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, dict | list) and not depth:
        raise ValueError("nested too deeply")
    if isinstance(content, dict):
        return {printable(k): printable_in(v, depth - 1) for k, v in content.items()}
    return [printable_in(v, depth - 1) for v in content] if isinstance(content, list) else content


class Formatter(logging.Formatter):
    """Of log lines, which may name files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def as_cell(value: Any) -> Any:
    """Of a table that a spreadsheet may open, which takes text that begins like a formula for one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
