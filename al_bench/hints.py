"""Help for a mistyped command line: the nearest groups, options and keys, and Hydra's errors in plain words."""

import re
import textwrap
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from al_bench import config
from al_bench.options import files_by_group
from al_bench.text import near

OPEN = ("model.optimizer.", "model.options.")  # keys below which + may add others
FREE = ("hydra", *OPEN)  # keys below which any name may be right


def own_conf_dir(arguments: list[str]) -> str | None:
    return get_args_parser().parse_known_args(arguments)[0].config_dir


def in_words(error: Exception, arguments: list[str]) -> str:
    """Why no configuration could be composed, in plain words, with the nearest names that exist."""
    if isinstance(error, yaml.YAMLError):
        said = f"This yaml file cannot be read: {' '.join(str(error).split())}"
    elif isinstance(error, UnicodeDecodeError):
        said = f"{not_utf8(arguments)} is not UTF-8 ({error}). Save it in that encoding."
    elif isinstance(error, MissingConfigException) and error.options:
        said = no_option_of_group(error, arguments)
    elif isinstance(error, (HydraException, OmegaConfBaseException, ValueError)):
        said = plain(error)
        key = re.search(r"Could not override '(strategy\.\w+)'", said)
        if key and any(argument.startswith("strategy._target_=") for argument in arguments):
            said = f"{said}\nAn option that no yaml holds is added with a plus: +{key[1]}=..."
    elif isinstance(error, OSError):
        said = f"{error.filename}: {error.strerror}."
    else:
        said = f"{type(error).__name__}: {error}\nThe environment variable HYDRA_FULL_ERROR=1 shows where."
    return "\n".join(filter(None, [said, near_misses(arguments)]))


def no_option_of_group(error: MissingConfigException, arguments: list[str]) -> str:
    """The options of the group, and where the file of a new option belongs."""
    group, _, option = error.missing_cfg_file.rpartition("/")
    there = textwrap.fill(", ".join(error.options), 100, initial_indent="  ", subsequent_indent="  ")
    own = own_conf_dir(arguments) or "FOLDER"
    return (
        f"There is no {group}={option}. The options are:\n{there}\n"
        f"For one of your own write {own}/{group}/{option}.yaml and type --config-dir {own}."
    )


def not_utf8(arguments: list[str]) -> Path | str:
    """The first yaml file that is not UTF-8."""
    for files in files_by_group(own_conf_dir(arguments)).values():
        for file in files.values():
            try:
                file.read_bytes().decode()
            except UnicodeDecodeError:
                return file
    return "A yaml file"


def plain(error: Exception) -> str:
    """Hydra's message without its internals, and without its advice to add a misspelt key by +."""
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is error or isinstance(e, OmegaConfBaseException))
    noise = r"\s*(full_key: |reference_type=|object_type=|See https://|To append to your |Or add a second \+).*"
    keep = re.search(rf"use \+({'|'.join(map(re.escape, (*OPEN, 'hydra.')))})", text)  # for these keys + is right
    return "\n".join(line for line in text.splitlines() if line.strip() and (keep or not re.fullmatch(noise, line)))


def near_misses(arguments: list[str]) -> str:
    """For each misspelt group, option or key among the arguments, the nearest that exist."""
    groups = files_by_group(own_conf_dir(arguments))
    keys = sorted({*groups, *config.keys()})
    typed = [argument.removeprefix("strategy=") for argument in arguments if argument.startswith("strategy=")]
    chosen = [word for value in typed for word in option_names(value) if word in groups["strategy"]]
    hints = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if argument.startswith(("-", "+", "~")) or not value:
            continue
        if key in groups:
            hints += [hint for word in option_names(value) if (hint := near(word, list(groups[key])))]
            if key == "model" and not groups[key].keys() >= set(option_names(value)):
                hints.append("Nets of timm: model=timm model.name=...")
        elif key.startswith("strategy."):
            hints += [hint for name in chosen if (hint := no_option(key, name, groups["strategy"][name]))]
        elif not key.startswith(FREE) and (hint := near(key, keys)):
            hints.append(hint)
    return "\n".join(hints)


def option_names(value: str) -> list[str]:
    """The options of a group that a value names."""
    return [word for word in re.split(r"[,\s]+", value) if re.fullmatch(r"[\w.]+", word)]


def no_option(key: str, strategy: str, file: Path) -> str | None:
    """Which settings the strategy has, in words. None if the key is one of them."""
    try:
        settings = {*config.Config().strategy, *(OmegaConf.load(file) or {})}  # those of every strategy, and its own
    except (yaml.YAMLError, OSError, ValueError):  # in_words has said so
        return None
    if key.split(".")[1] in settings or "defaults" in settings:  # its defaults bring more settings
        return None
    return f"strategy={strategy} has no {key}: it has {', '.join(sorted(settings - {'name', '_target_'}))}."
