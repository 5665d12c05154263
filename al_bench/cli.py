"""The command: compose the configuration, find the run folder, run what is missing, say how it ended.

A sweep (-m) is sweep.py's: it launches `run` for each run that is not finished. Nothing here imports torch: a finished
run returns at once.
"""

import importlib
import logging
import multiprocessing
import os
import re
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from al_bench import arguments, config, hints, process, signals
from al_bench.config import conf_dir
from al_bench.errors import UserError
from al_bench.finished import is_finished
from al_bench.store import RunStore
from al_bench.text import Formatter

# Each is a module with a `main`.
COMMANDS = {"check": "check.command", "report": "analysis.report", "status": "analysis.status"}


def main() -> None:
    try:
        sys.path.append(os.getcwd())  # a user's own strategies, for the console script as for `python -m`
    except FileNotFoundError:
        sys.exit("al_bench: the folder this was started in has been deleted. Go into it again, or into another.")
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:  # no key=value, so none of Hydra's
        sys.exit(command(sys.argv[1], sys.argv[2:]))
    if sys.argv[1:2] and re.fullmatch(r"\w+", sys.argv[1]):
        sys.exit(f"al_bench: {sys.argv[1]} is neither a command ({', '.join(COMMANDS)}) nor a setting (key=value).")
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name may hold what the terminal cannot show
    process.prepare()
    log = logging.getLogger("al_bench")
    log.addHandler(screen := logging.StreamHandler(sys.stdout))
    screen.setLevel(logging.INFO)
    screen.setFormatter(Formatter())
    log.propagate = False
    traces = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, so that hints can say it in words
    try:
        sys.argv[1:] = arguments.in_order(sys.argv[1:])
        arguments.check(sys.argv[1:])
        from al_bench import sweep

        sweep.register()
        with signals.handled():
            run()
    except KeyboardInterrupt:
        print("al_bench: Interrupted; what is finished is kept.", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"al_bench: {error}")
    except Exception as error:  # run has dealt with its own
        if traces:
            raise
        sys.exit(f"al_bench: {hints.in_words(error, sys.argv[1:])}")
    finally:
        # A Ctrl-C inside exec("...") (a dataclass's, while importing) marks CPython to end `python -m` by SIGINT,
        # caught or not and whatever the exit code. The next exec takes the mark away.
        exec("")


def command(name: str, arguments: list[str]) -> int:
    try:
        with signals.handled():
            return importlib.import_module(f"al_bench.{COMMANDS[name]}").main(arguments)
    except KeyboardInterrupt:
        return 130


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def run(cfg: DictConfig) -> None:
    """One run. In a sweep, what goes wrong is told and lies in the run's folder, and the other runs go on."""
    process.prepare()  # in a process that a sweep started, `main` has not run
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # a worker of joblib's: a DataLoader's cannot start
        multiprocessing.set_start_method("fork", force=True)
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        one(config.read(cfg))
    except UserError as error:
        if not in_sweep:
            sys.exit(f"al_bench: {error}")
        print(f"al_bench: {error}", file=sys.stderr)
    except SystemExit as end:
        if signals.asked_to_stop():
            raise
        said = f"al_bench: sys.exit({end.code!r}) was called by code that the run uses."
        if not in_sweep:
            sys.exit(said)
        print(said, file=sys.stderr)
    except Exception as error:
        if not in_sweep:
            traceback.print_exc()
            sys.exit(1)
        print(f"al_bench: {error!r}. The run.log of the run holds the traceback.", file=sys.stderr)


def one(c: config.Config) -> None:
    if c.plan:
        from al_bench import plan

        plan.show(c)
        return
    store = RunStore(c)
    if is_finished(store):
        print(f"Already finished: {store.folder}")
        return
    with store.at_work():
        from al_bench import loop

        process.prepare()  # again, since importing Lightning has set its own log levels
        loop.run(c, store)
    if multiprocessing.parent_process():  # one of several workers, whose rounds the screen does not show
        print(f"Finished: {store.folder}")
