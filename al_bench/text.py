"""Make text of unknown origin, such as file names and file contents, safe to print."""

import difflib
import logging
import unicodedata
from typing import Any

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (text direction), surrogates, line and paragraph separators
KEPT = "\n\t\u200c\u200d"  # line break, tab, and two signs that join letters in some scripts


def printable(text: str) -> str:
    r"""Escape characters that control a terminal, that UTF-8 cannot hold or that are invisible (\x1b \udc80 \u202e)."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in HIDDEN and letter not in KEPT
        else letter
        for letter in text
    )


def one_line(name: str) -> str:
    """Escape a name for use inside a sentence: as `printable` does, and line breaks and tabs too."""
    return printable(name).replace("\n", r"\n").replace("\t", r"\t")


def in_a_line(error: BaseException) -> str:
    """Return the message of an error on one line, or its repr where the message says too little."""
    if isinstance(error, SystemExit):
        return f"it asks to end the process, by {error!r}"
    text = " ".join(str(error).split())
    return text if text and isinstance(error, Exception) else repr(error)


def printable_in(content: Any, depth: int = 50) -> Any:
    """Apply `printable` to all keys and values of JSON content. Raises ValueError if nested deeper than `depth`."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, dict | list) and not depth:
        raise ValueError("nested too deeply")
    if isinstance(content, dict):
        return {printable(k): printable_in(v, depth - 1) for k, v in content.items()}
    return [printable_in(v, depth - 1) for v in content] if isinstance(content, list) else content


class Formatter(logging.Formatter):
    """Makes log lines printable, because they may name files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def as_cell(value: Any) -> Any:
    """Quote text that a spreadsheet would run as a formula. Return other values unchanged."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def near(word: str, known: list[str]) -> str | None:
    """A question with the nearest known words. None if the word is one of them or resembles none."""
    found = [] if word in known else difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"{word!r}: did you mean {' or '.join(found)}?" if found else None
