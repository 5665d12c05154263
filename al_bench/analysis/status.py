"""How far a sweep is: done, running, failed and missing runs of each strategy, accuracy so far, time left.

al-bench status results/my_study [--live]. Only reads; nothing here imports torch.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from al_bench.analysis import results
from al_bench.analysis.results import MISSING, UNREADABLE, Run, Setting
from al_bench.errors import told
from al_bench.records import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING

STATES = (FINISHED, RUNNING, WAITING, FAILED, INTERRUPTED, MISSING, UNREADABLE)
EVERY = 5  # seconds
MOST = 1e12  # seconds that a timedelta can hold


@told
def main(arguments: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="al-bench status", description="How far the runs of a results folder are.")
    ask.add_argument("folder", type=Path, help="results, results/my_study, or a folder further down")
    ask.add_argument("--live", action="store_true", help=f"look again every {EVERY} seconds until all is done")
    options = ask.parse_args(arguments)
    try:
        screen = overview(options.folder)
        if options.live:
            follow(options.folder, screen)
        else:
            Console().print(screen)
    except KeyboardInterrupt:
        return 130
    return 0


def follow(root: Path, screen: Group) -> None:
    with Live(screen, auto_refresh=False) as live:
        while any(run.state in (RUNNING, WAITING, MISSING, INTERRUPTED) for run in results.find(root)):
            time.sleep(EVERY)
            live.update(overview(root), refresh=True)


def overview(root: Path) -> Group:
    settings = results.by_setting(results.find(root))
    parts = (part for setting, runs in settings.items() for part in (table(setting, runs), errors(runs)))
    return Group(*parts, *map(Text, results.closed_folders(root)))


def table(setting: Setting, runs: list[Run]) -> Table:
    present = [state for state in STATES if any(run.state == state for run in runs)]
    shown = Table(
        "strategy", *present, "labels", "accuracy so far", "time left", title=escape(str(setting)), title_justify="left"
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    pace, rounds, total = seconds_a_round(runs), rounds_planned(runs), 0.0
    for strategy in dict.fromkeys(
        run.strategy for run in sorted(runs, key=lambda r: (r.strategy != "random", r.strategy))
    ):
        ours = [run for run in runs if run.strategy == strategy]
        states = Counter(run.state for run in ours)
        seconds = left(ours, pace, rounds)
        total += seconds
        time_left = duration(seconds) if seconds else ""
        shown.add_row(escape(strategy), *(str(states[s] or "") for s in present), *so_far(ours), time_left)
    if (busy := sum(run.state == RUNNING for run in runs)) and total:
        shown.caption = f"{busy} at work; all in about {duration(total / busy)}"
    return shown


def so_far(runs: list[Run]) -> tuple[str, str]:
    """Label count and mean accuracy of the latest round that all begun runs have finished."""
    begun = [run for run in runs if len(run.labels_R)]
    if not begun:
        return "", ""
    last = min(len(run.labels_R) for run in begun) - 1
    accuracy = np.mean([run.metrics["accuracy"][last] for run in begun])
    return f"{begun[0].labels_R[last]:,}", f"{100 * accuracy:.1f} %"


def left(runs: list[Run], pace: float | None, rounds: int | None) -> float:
    """Seconds for these runs of one strategy, one after another. pace: seconds a round, where none has finished one."""
    to_do = sum(max(0, (rounds or 0) - len(run.labels_R)) for run in runs if run.state != FINISHED)
    return to_do * (seconds_a_round(runs) or pace or 0.0)


def seconds_a_round(runs: list[Run]) -> float | None:
    spent = [
        sum(values.sum() for values in run.seconds.values()) / len(run.labels_R) for run in runs if len(run.labels_R)
    ]
    return float(np.median(spent)) if spent else None


def rounds_planned(runs: list[Run]) -> int | None:
    """As many as a finished run has, else as the budget says. None: the budget lasts until the pool is empty."""
    finished = [len(run.labels_R) for run in runs if run.state == FINISHED]
    if finished:
        return max(finished)
    for run in runs:
        with suppress(OSError, ValueError, AttributeError):  # config.yaml is missing or damaged, or the run never began
            rounds = run.config.get("budget.rounds")
            return rounds + 1 if type(rounds) is int else None
    return None


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, MOST))))


def errors(runs: list[Run]) -> Text:
    lines = [f"  {run.name}: {run.why.splitlines()[0]}" for run in runs if run.why]
    return Text("\n".join([*lines, ""]))
