"""The command: compose the configuration, find the run folder, run what is missing, say how it ended.

A sweep (-m) is sweep.py's: it launches `run` for each run that is not finished. Nothing here imports torch: a finished
run returns at once.
"""

import difflib
import importlib
import logging
import multiprocessing
import os
import re
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from al_bench import config, signals
from al_bench.errors import UserError
from al_bench.store import RunStore
from al_bench.text import Formatter

FREE = ("hydra", "model.optimizer.", "model.options.")  # keys that may be anything
COMMANDS = {"check": "check.command", "report": "report", "status": "status"}  # each a module with a main


def conf_dir() -> Path:
    """conf/ inside the installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def main() -> None:
    try:
        sys.path.append(os.getcwd())  # a user's own strategies, for the console script as for `python -m`
    except FileNotFoundError:
        sys.exit("al_bench: the folder this was started in has been deleted. Go into it again, or into another.")
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:  # no key=value, so none of Hydra's
        sys.exit(command(sys.argv[1], sys.argv[2:]))
    if sys.argv[1:2] and re.fullmatch(r"\w+", sys.argv[1]):
        sys.exit(f"al_bench: {sys.argv[1]} is neither a command ({', '.join(COMMANDS)}) nor a setting (key=value).")
    if wrong := no_name(sys.argv[1:]):
        sys.exit(f"al_bench: {wrong}")
    log = logging.getLogger("al_bench")
    log.addHandler(screen := logging.StreamHandler(sys.stdout))
    screen.setLevel(logging.INFO)
    screen.setFormatter(Formatter())
    log.propagate = False
    try:
        from al_bench import sweep  # noqa: F401  # makes itself known to Hydra

        with signals.heeded():
            run()
    except KeyboardInterrupt:
        print("al_bench: Interrupted; what is finished is kept.", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == 1 and (hint := near_misses(sys.argv[1:])):
            print(hint, file=sys.stderr)
        raise
    finally:
        # A Ctrl-C inside exec("...") (a dataclass's, while importing) marks CPython to end `python -m` by SIGINT,
        # caught or not and whatever the exit code. The next exec takes the mark away.
        exec("")


def command(name: str, arguments: list[str]) -> int:
    try:
        with signals.heeded():
            return importlib.import_module(f"al_bench.{COMMANDS[name]}").main(arguments)
    except KeyboardInterrupt:
        return 130


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def run(cfg: DictConfig) -> None:
    """One run. In a sweep, what goes wrong is told and lies in the run's folder, and the other runs go on."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # a worker of joblib's: a DataLoader's cannot start
        multiprocessing.set_start_method("fork", force=True)
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        one(config.read(cfg))
    except UserError as error:
        if not in_sweep:
            sys.exit(f"al_bench: {error}")
        print(f"al_bench: {error}", file=sys.stderr)
    except Exception as error:
        if not in_sweep:
            raise
        print(f"al_bench: {error!r}. The run.log of the run holds the traceback.", file=sys.stderr)


def one(c: config.Config) -> None:
    if c.plan:
        from al_bench import plan

        plan.show(c)
        return
    store = RunStore(c)
    if store.finished():
        print(f"Already finished: {store.folder}")
        return
    with store.at_work():
        from al_bench import loop

        loop.run(c, store)
    if multiprocessing.parent_process():  # one of several workers, whose rounds the screen does not show
        print(f"Finished: {store.folder}")


def near_misses(arguments: list[str]) -> str:
    """For each misspelt group, option or key among the arguments, the nearest that exist."""
    own = own_conf_dir(arguments)
    if own and not Path(own).is_dir():
        return f"--config-dir {own}: there is no such folder."
    groups = options(own)
    keys = sorted({*groups, *config.keys()})
    typed = [argument.removeprefix("strategy=") for argument in arguments if argument.startswith("strategy=")]
    chosen = [word for value in typed for word in names(value) if word in groups["strategy"]]
    hints = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if argument.startswith(("-", "+", "~")) or not value:
            continue
        if key in groups:
            hints += [hint for word in names(value) if (hint := near(word, list(groups[key])))]
            if key == "model" and not groups[key].keys() >= set(names(value)):
                hints.append("Nets of timm: model=timm model.name=...")
        elif key.startswith("strategy."):
            hints += [hint for name in chosen if (hint := no_option(key, name, groups["strategy"][name]))]
        elif not key.startswith(FREE) and (hint := near(key, keys)):
            hints.append(hint)
    return "\n".join(hints)


def no_name(arguments: list[str]) -> str | None:
    """Of a group that is set to a number, true or null, which names it has; Hydra's words for it are a traceback."""
    groups = options(own_conf_dir(arguments))
    for key, _, value in (argument.partition("=") for argument in arguments):
        if key in groups and re.fullmatch(r"[-+\d.e]+|null|true|false|nan|inf", value.lower()):
            return f"{key}={value}: {key} is one of {', '.join(groups[key])}. Its settings are {key}.NAME=..."
    return None


def own_conf_dir(arguments: list[str]) -> str | None:
    return get_args_parser().parse_known_args(arguments)[0].config_dir


def options(own: str | None) -> dict[str, dict[str, Path]]:
    """The configuration groups, ours and those of a user's own folder: the file of each option."""
    groups: dict[str, dict[str, Path]] = {}
    for file in sorted(file for folder in (conf_dir(), own) if folder for file in Path(folder).glob("*/*.yaml")):
        groups.setdefault(file.parent.name, {})[file.stem] = file
    return groups


def names(value: str) -> list[str]:
    """The options of a group that a value asks for."""
    return [word for word in re.split(r"[,\s]+", value) if re.fullmatch(r"[\w.]+", word)]


def near(word: str, known: list[str]) -> str | None:
    found = [] if word in known else difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"{word!r}: did you mean {' or '.join(found)}?" if found else None


def no_option(key: str, strategy: str, file: Path) -> str | None:
    """Which settings a strategy's file has, where this key is none of them."""
    settings = {*config.Config().strategy, *(OmegaConf.load(file) or {})}  # every strategy's, and its own
    if key.split(".")[1] in settings or "defaults" in settings:  # those bring more
        return None
    return (
        f"strategy={strategy} has no {key}: it has {', '.join(sorted(settings - {'name', '_target_', '_partial_'}))}."
    )
