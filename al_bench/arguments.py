"""The arguments as they were typed, each by itself, before Hydra composes a configuration of them.

Hydra's grammar has meanings of its own for signs that names of files have. Its schema takes any number for a truth
value, and turns any value into a text.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from al_bench import hints
from al_bench.config import near, types
from al_bench.errors import UserError

TYPES = {**types(), "strategy.name": str, "strategy._target_": str}
BOOLEANS = ("true", "false", "yes", "no", "on", "off")
LARGEST = 2**63 - 1  # of the integers that tensors, files and the system's clocks hold


class Mistake(NamedTuple):
    said: str
    instead: str | None = None  # the argument as it was meant


def in_order(arguments: list[str]) -> list[str]:
    """The flags first: some versions of Hydra refuse settings on both sides of a flag."""
    left = list(settings := get_args_parser().parse_known_intermixed_args(arguments)[0].overrides)
    flags = []
    for argument in reversed(arguments):
        if left and argument == left[-1]:
            left.pop()
        else:
            flags.insert(0, argument)
    return [*flags, *settings]


def check(arguments: list[str]) -> None:
    """Raises UserError where an argument cannot be meant as it is, with the command to paste where quotes help."""
    asked = get_args_parser().parse_known_args(arguments)[0]
    if asked.config_dir is not None and not (asked.config_dir and Path(asked.config_dir).is_dir()):
        raise UserError(f"--config-dir {asked.config_dir}: there is no such folder.")
    if asked.package and not asked.cfg:
        raise UserError("--package is the part of the configuration that --cfg shows: add --cfg job.")
    if asked.experimental_rerun:
        raise UserError(
            "--experimental-rerun: al_bench writes no such file. The same command again goes on with a run."
        )
    in_sweep = asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides
    groups = hints.options(asked.config_dir)
    found = {text: mistake for text in asked.overrides if (mistake := of(text, groups, in_sweep))}
    lines = [mistake.said for mistake in found.values()]
    if found and all(mistake.instead for mistake in found.values()):
        program = "al-bench" if Path(sys.argv[0]).stem == "al-bench" else "python -m al_bench"
        whole = shlex.join(found[text].instead if text in found else text for text in arguments)
        lines += ["Paste this:", f"  {program} {whole}"]
    if lines:
        raise UserError("\n".join(lines))


def of(text: str, groups: dict[str, dict[str, Path]], in_sweep: bool) -> Mistake | None:
    """The first mistake in one argument."""
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        shown = text.encode(errors="surrogateescape").decode(errors="replace")
        return Mistake(f"{shown} is not UTF-8. Give the file or folder another name, or a link of another name.")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        return unreadable(text, error, groups, in_sweep)
    key = override.key_or_group
    if not key:
        return Mistake(f"{text!r} has no key. Settings are typed as key=value.")
    if override.is_delete() or override.package is not None:
        return None
    if override.is_sweep_override() and not in_sweep:
        said = f"{text} asks for several runs: add -m for a sweep."
        if takes(key, str):
            return Mistake(f"{said} One value needs quotes.", quoted(text, in_sweep))
        return Mistake(said)
    typed = text.partition("=")[2]
    for value in values(override):
        if (key in groups or key == "hydra" or "/" in key) and not isinstance(value, dict):
            mistake = of_group(key, value, typed, list(groups.get(key, ())))
        else:
            mistake = next(filter(None, (of_value(k, v, text, in_sweep) for k, v in leaves(key, value))), None)
        if mistake:
            return mistake
    return None


def values(override: Override) -> list[Any]:
    """The value; in a sweep those that are named, of a range its ends."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [v.text if isinstance(v, QuotedString) else v for v in value.list]
    if isinstance(value, RangeSweep):
        return [value.start, value.stop]
    return [] if override.is_sweep_override() else [value]


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """trainer={max_steps: 5} sets trainer.max_steps."""
    if isinstance(value, dict) and value and not takes(key, str):
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def of_group(key: str, value: Any, typed: str, names: list[str]) -> Mistake | None:
    if (isinstance(value, str) and value) or (value is None and key not in TYPES):
        return None
    one_of = f"{key} is one of {', '.join(names)}" if names else f"{key} takes the name of an option"
    several = f" For several runs: -m {key}={','.join(map(str, value))}" if isinstance(value, list) else ""
    return Mistake(f"{key}={typed}: {one_of}. Its settings are {key.replace('/', '.')}.NAME=...{several}")


def of_value(key: str, value: Any, text: str, in_sweep: bool) -> Mistake | None:
    if value == "" and key in TYPES:
        return Mistake(f"{key}= has no value. Give it one, or leave it out.")
    if value is None and key in TYPES and not takes(key, NoneType):
        return Mistake(f"{key}=null: it needs a value.")
    if takes(key, bool) and not is_bool(value):
        return Mistake(f"{key}={value}: true or false.")
    typed = text.partition("=")[2]
    changed = isinstance(value, (list, dict)) or (isinstance(value, (bool, int, float)) and str(value) not in typed)
    if takes(key, str) and changed:
        said = f"{key} is a text, and Hydra reads {typed} as {value!r}. In quotes it stays as it is."
        return Mistake(said, quoted(text, in_sweep))
    if isinstance(value, int) and abs(value) > LARGEST and key != "seed":  # a seed is hashed, whatever its length
        return Mistake(f"{key}={value}: a whole number is {LARGEST:,} at most.")
    return None


def takes(key: str, kind: type) -> bool:
    annotation = TYPES.get(key)
    return kind in (get_args(annotation) if isinstance(annotation, UnionType) else (annotation,))


def is_bool(value: Any) -> bool:
    """What an interpolation stands for, the schema has to judge."""
    return isinstance(value, bool) or str(value).lower() in BOOLEANS or "${" in str(value)


def unreadable(text: str, error: HydraException, groups: dict[str, dict[str, Path]], in_sweep: bool) -> Mistake:
    """What to type in the place of an argument that is not of Hydra's grammar."""
    before, equals, value = text.partition("=")
    key = before.lstrip("+~")
    if not equals:
        return Mistake(f"{text!r} is not a setting. Settings are typed as key=value.")
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
        return Mistake(f"{text!r} is one argument with several settings. Leave the blanks between them unquoted.")
    reason = str(error).partition("\n")[0].partition(" expecting")[0]
    return Mistake(f"{text} cannot be read: {reason}. Several values are typed as 0,1,2 or 'range(10)', with -m.")


def quoted(text: str, in_sweep: bool) -> str:
    """The argument with quotes for Hydra: around each value of a sweep, or around all of it."""
    key, _, value = text.partition("=")
    parts = value.split(",") if in_sweep else [value]
    inner = (QuotedString(part, Quote.single if '"' in part else Quote.double).with_quotes() for part in parts)
    return f"{key}={','.join(inner)}"
