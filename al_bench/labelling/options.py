"""Options that several commands on labels have."""

import argparse
from collections.abc import Sequence


def class_names(text: str) -> list[str]:
    """The value of --classes, as in cat,dog."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_with_settings(ask: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with settings key=value among them in `overrides`. Exits where one is no setting."""
    ask.add_argument("overrides", nargs="*", metavar="key=value", help="settings of al-bench, such as budget.query=50")
    options = ask.parse_intermixed_args(arguments)
    if strays := [text for text in options.overrides if "=" not in text]:
        ask.error(f"{strays[0]} is no setting; settings are key=value, and classes are --classes cat,dog")
    return options
