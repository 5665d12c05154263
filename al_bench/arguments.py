"""Check each argument as it was typed, before Hydra composes a configuration from them.

Hydra cannot be left to do this. Its grammar gives a meaning to signs that occur in file names. Its schema accepts any
number as a boolean and turns any value into a text.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from al_bench import hints
from al_bench.config import types
from al_bench.errors import UserError
from al_bench.options import files_by_group
from al_bench.text import near

TYPES = {**types(), "strategy.name": str, "strategy._target_": str}
BOOLEANS = ("true", "false", "yes", "no", "on", "off")
LARGEST = 2**63 - 1  # the largest integer of tensors, files and the system's clocks


class Mistake(NamedTuple):
    message: str
    correction: str | None = None  # the argument as the user meant it


def in_order(arguments: list[str]) -> list[str]:
    """Move the flags to the front: some versions of Hydra refuse settings on both sides of a flag."""
    left = list(settings := get_args_parser().parse_known_intermixed_args(arguments)[0].overrides)
    flags = []
    for argument in reversed(arguments):
        if left and argument == left[-1]:
            left.pop()
        else:
            flags.insert(0, argument)
    return [*flags, *settings]


def check(arguments: list[str]) -> None:
    """Raise UserError if an argument is a mistake. If quotes would help, the message ends with a command to paste."""
    asked = get_args_parser().parse_known_args(arguments)[0]
    if asked.config_dir is not None and not (asked.config_dir and Path(asked.config_dir).is_dir()):
        raise UserError(f"--config-dir {asked.config_dir}: there is no such folder.")
    if asked.package and not asked.cfg:
        raise UserError("--package selects the part of the configuration that --cfg shows: add --cfg job.")
    if asked.experimental_rerun:
        raise UserError(
            "--experimental-rerun: al_bench writes no such file. Type the same command again to go on with a run."
        )
    in_sweep = asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides
    groups = files_by_group(asked.config_dir)
    n_times = Counter(text.partition("=")[0] for text in asked.overrides)
    if twice := [key for key in ("seed", *groups) if n_times[key] > 1]:  # of other keys the last one counts
        raise UserError(f"{twice[0]} is set twice. For several runs: -m {twice[0]}=FIRST,SECOND")
    found = {text: mistake for text in asked.overrides if (mistake := find_mistake(text, groups, in_sweep))}
    lines = [mistake.message for mistake in found.values()]
    if found and all(mistake.correction for mistake in found.values()):
        program = "al-bench" if Path(sys.argv[0]).stem == "al-bench" else "python -m al_bench"
        corrected = shlex.join(found[text].correction if text in found else text for text in arguments)
        lines += ["Paste this:", f"  {program} {corrected}"]
    if lines:
        raise UserError("\n".join(lines))


def find_mistake(text: str, groups: dict[str, dict[str, Path]], in_sweep: bool) -> Mistake | None:
    """Return the first mistake in one argument, or None."""
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        shown = text.encode(errors="surrogateescape").decode(errors="replace")
        return Mistake(f"{shown} is not UTF-8. Rename the file or folder, or make a link to it with another name.")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        return explain_unreadable(text, error, groups, in_sweep)
    key = override.key_or_group
    if not key:
        return Mistake(f"{text!r} has no key. Type settings as key=value.")
    if override.is_delete() or override.package is not None:
        return None
    if override.is_sweep_override() and not in_sweep:
        message = f"{text} asks for several runs: add -m for a sweep."
        if takes(key, str):
            return Mistake(f"{message} A single value needs quotes.", quoted(text, in_sweep))
        return Mistake(message)
    typed = text.partition("=")[2]
    for value in values(override):
        if (key in groups or key == "hydra" or "/" in key) and not isinstance(value, dict):
            mistake = find_option_mistake(key, value, typed, list(groups.get(key, ())))
        else:
            found = (find_value_mistake(k, v, text, in_sweep) for k, v in leaves(key, value))
            mistake = next(filter(None, found), None)
        if mistake:
            return mistake
    return None


def values(override: Override) -> list[Any]:
    """Return the values of an override: one, or in a sweep all that are listed, or the two ends of a range."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [v.text if isinstance(v, QuotedString) else v for v in value.list]
    if isinstance(value, RangeSweep):
        return [value.start, value.stop]
    return [] if override.is_sweep_override() else [value]


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each setting: trainer={max_steps: 5} sets trainer.max_steps."""
    if isinstance(value, dict) and value and not takes(key, str):
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def find_option_mistake(key: str, value: Any, typed: str, names: list[str]) -> Mistake | None:
    """Return the mistake in the choice of a group's option, or None. names: the options of the group."""
    if (isinstance(value, str) and value) or (value is None and key not in TYPES):
        return None
    one_of = f"{key} is one of {', '.join(names)}" if names else f"{key} takes the name of an option"
    several = f" For several runs: -m {key}={','.join(map(str, value))}" if isinstance(value, list) else ""
    return Mistake(f"{key}={typed}: {one_of}. Its settings are {key.replace('/', '.')}.NAME=...{several}")


def find_value_mistake(key: str, value: Any, text: str, in_sweep: bool) -> Mistake | None:
    """Return the mistake in the value of one setting, or None."""
    if value == "" and key in TYPES:
        return Mistake(f"{key}= has no value. Give it one, or leave it out.")
    if value is None and key in TYPES and not takes(key, NoneType):
        return Mistake(f"{key}=null: this key needs a value.")
    if takes(key, bool) and not is_bool(value):
        return Mistake(f"{key}={value}: true or false.")
    typed = text.partition("=")[2]
    if is_list(key) and not isinstance(value, list | NoneType) and "${" not in typed:
        return Mistake(f"{key} is a list, in brackets: {key}=[{typed}].", f"{key}=[{typed}]")
    changed = isinstance(value, (list, dict)) or (isinstance(value, (bool, int, float)) and str(value) not in typed)
    if takes(key, str) and changed:
        message = f"{key} is a text, but Hydra reads {typed} as {value!r}. In quotes it stays as it is."
        return Mistake(message, quoted(text, in_sweep))
    if isinstance(value, int) and abs(value) > LARGEST and key != "seed":  # a seed is hashed, whatever its length
        return Mistake(f"{key}={value}: the largest whole number is {LARGEST:,}.")
    return None


def takes(key: str, kind: type) -> bool:
    """Return whether the schema allows a value of this type under the key."""
    annotation = TYPES.get(key)
    return kind in (get_args(annotation) if isinstance(annotation, UnionType) else (annotation,))


def is_list(key: str) -> bool:
    annotation = TYPES.get(key)
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def is_bool(value: Any) -> bool:
    """Return whether the value is a boolean. An interpolation passes: the schema checks its value later."""
    return isinstance(value, bool) or str(value).lower() in BOOLEANS or "${" in str(value)


def explain_unreadable(text: str, error: HydraException, groups: dict[str, dict[str, Path]], in_sweep: bool) -> Mistake:
    """Say what to type instead of an argument that Hydra's grammar does not allow."""
    before, equals, value = text.partition("=")
    key = before.lstrip("+~")
    if not equals:
        return Mistake(f"{text!r} is not a setting. Type settings as key=value.")
    if key not in TYPES and key not in groups and not key.startswith((*hints.FREE, "strategy.")):
        return Mistake(f"There is no key {key!r}. {near(key, sorted({*groups, *TYPES})) or 'See --help.'}")
    if takes(key, str) or key.startswith((*hints.OPEN, "strategy.")):
        signs = " ".join(sorted(set(re.findall(r"[^\w/.:+@?|%$*\\\s-]|[^\W\d_a-zA-Z]|[\n\r]", value))))
        return Mistake(
            f"{key}={value} cannot be read: {signs or 'some sign'} in a value needs quotes, one pair for Hydra, which "
            "reads the command line, and one for the shell.",
            quoted(text, in_sweep),
        )
    if re.search(r"\s[\w.]+=", value):
        return Mistake(f"{text!r} is one argument with several settings. Do not quote the blanks between them.")
    reason = str(error).partition("\n")[0].partition(" expecting")[0]
    return Mistake(f"{text} cannot be read: {reason}. Several values are typed as 0,1,2 or 'range(10)', with -m.")


def quoted(text: str, in_sweep: bool) -> str:
    """Return the argument with quotes for Hydra: around each value of a sweep, or around the whole value."""
    key, _, value = text.partition("=")
    parts = value.split(",") if in_sweep else [value]
    inner = (QuotedString(part, Quote.single if '"' in part else Quote.double).with_quotes() for part in parts)
    return f"{key}={','.join(inner)}"
