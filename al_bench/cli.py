"""The command: compose the configuration, find the run folder, run what is missing, say how it ended.

A sweep (-m) is handled by sweep.py, which launches `run` for each unfinished run. Nothing here imports torch, so the
command returns at once if the run is finished.
"""

import importlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from al_bench import arguments, config, hints, process, signals
from al_bench.errors import UserError
from al_bench.finished import is_finished
from al_bench.options import conf_dir
from al_bench.store import RunStore
from al_bench.text import Formatter
from al_bench.waiting import LabelsWanted

# The module of each command, below al_bench. Its `main` takes the arguments and returns the exit code.
COMMANDS = {
    "check": "check.command",
    "report": "analysis.report",
    "status": "analysis.status",
    "label": "labelling.command",
    "suggest": "labelling.suggest",
    "ingest": "labelling.ingest",
    "finish": "labelling.finish",
    "predict": "labelling.predict",
}


def main() -> None:
    process.prepare()
    try:
        sys.path.append(os.getcwd())  # finds a user's own strategies, as `python -m` does
    except FileNotFoundError:
        sys.exit("al_bench: The current folder has been deleted. Change to a folder that exists.")
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:  # no key=value, so nothing for Hydra
        process.end(command(sys.argv[1], sys.argv[2:]))
    if sys.argv[1:2] and re.fullmatch(r"\w+", sys.argv[1]):
        sys.exit(f"al_bench: {sys.argv[1]} is neither a command ({', '.join(COMMANDS)}) nor a setting (key=value).")
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has: terminals cannot show every name
    log = logging.getLogger("al_bench")
    log.addHandler(screen := logging.StreamHandler(sys.stdout))
    screen.setLevel(logging.INFO)
    screen.setFormatter(Formatter())
    log.propagate = False
    traces = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them: hints words them
    try:
        sys.argv[1:] = arguments.in_order(sys.argv[1:])
        arguments.check(sys.argv[1:])
        from al_bench import sweep

        sweep.register()
        with signals.handled():
            run()
    except BrokenPipeError:
        sys.exit(unread())
    except KeyboardInterrupt:
        print("al_bench: Interrupted; what is finished is kept.", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"al_bench: {error}")
    except Exception as error:  # of composing the configuration; `run` catches the errors of a run
        if traces:
            raise
        sys.exit(f"al_bench: {hints.in_words(error, sys.argv[1:])}")
    finally:
        # Dataclasses call exec("...") while they are imported. A Ctrl-C in it sets a flag in CPython: `python -m` then
        # ends by SIGINT, whatever the exit code and even if the exception was caught. The next exec clears the flag.
        exec("")


def command(name: str, arguments: list[str]) -> int:
    """Returns the exit code: that of the command, 130 after Ctrl-C, 141 if nobody reads what it prints (| head)."""
    try:
        with signals.handled():
            try:
                return importlib.import_module(f"al_bench.{COMMANDS[name]}").main(arguments)
            finally:
                sys.stdout.flush()  # a closed pipe is told here, and not while Python ends
    except BrokenPipeError:
        return unread()
    except KeyboardInterrupt:
        return 130
    except SystemExit as asked:  # of SIGTERM, or of argparse
        return asked.code if isinstance(asked.code, int) else 1 if asked.code else 0


def unread() -> int:
    """The exit code where nobody reads what is printed. Nothing is printed any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
    return 128 + signal.SIGPIPE


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def run(cfg: DictConfig) -> None:
    """Do one run. In a sweep an error is printed and kept in the run's folder, and the other runs go on."""
    process.prepare()  # `main` has not run in a process that a sweep started
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's: no DataLoader can start workers with it
        multiprocessing.set_start_method("fork", force=True)
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        os.chdir(HydraConfig.get().runtime.cwd)  # the workers of a Ray cluster begin in another folder
        run_one(config.read(cfg))
    except LabelsWanted as wanted:
        print(f"al_bench: The run {wanted}. al-bench label asks for them.")
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


def run_one(c: config.Config) -> None:
    """Show the plan, or run what is missing. Raises UserError if the folder holds another run."""
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

        process.prepare()  # again: importing Lightning sets its own log levels
        loop.run(c, store)
    process.return_freed_memory()  # joblib replaces a worker that holds 300 MB more than after its first run
    if multiprocessing.parent_process():  # a worker, whose rounds are not on the screen
        print(f"Finished: {store.folder}")
