"""All rounds below a results folder as one table, for notebooks and spreadsheets. Only reads; nothing imports torch."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from al_bench.analysis import results
from al_bench.analysis.comparable import comparable_runs
from al_bench.analysis.results import Run, Setting
from al_bench.text import as_cell, printable

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = (*Setting._fields, "strategy", "seed")


def read(root: str | Path) -> "pd.DataFrame":
    """A row for each run and round below root, a results folder, a study in it or a folder further down.

    Columns: study, dataset, model, budget, strategy, seed, round, labels (training labels so far), each recorded metric
    that is a number, seconds (of the whole round). A metric that a run lacks is NaN. The runs are those that the report
    compares; a UserWarning counts the others by the reason to leave them out. Raises UserError where there is no run.
    """
    runs = results.find(Path(root).expanduser())
    kept, reasons = comparable(runs)
    if reasons:
        counts = ", ".join(f"{why} ({n})" for why, n in Counter(map(without_details, reasons)).most_common())
        warnings.warn(
            f"{len(reasons)} of {len(runs)} runs are left out: {counts}. al-bench report names each, with its reason.",
            stacklevel=3,
        )
    return table(kept)


def comparable(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """The runs that the report compares, and of each other one the reason why it is left out."""
    kept: list[Run] = []
    reasons: list[str] = []
    for there in results.by_setting(runs).values():
        usable, others = comparable_runs(there)
        kept += sorted(usable, key=lambda run: (run.strategy, run.seed))
        reasons += [printable(why) for _, why in others]
    return kept, reasons


def without_details(why: str) -> str:
    """A reason without what only one run has: its rounds, its error, its values, its seed."""
    return re.split(r" after \d+ rounds|; |: | \(| of seed \d", why, maxsplit=1)[0]


def table(runs: Sequence[Run]) -> "pd.DataFrame":
    """Their rounds, one below the other; the columns are those of `read`."""
    import pandas as pd  # memory that the processes that draw a report can do without

    n_rounds = [len(run.labels_R) for run in runs]
    of_run = [(*run.setting, run.strategy, run.seed) for run in runs]
    columns = {name: np.repeat([who[i] for who in of_run], n_rounds) for i, name in enumerate(IDENTITY)}
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    columns["round"] = joined([np.arange(n) for n in n_rounds])
    columns["labels"] = joined([run.labels_R for run in runs])
    for name in names:
        absent = [np.full(n, np.nan) for n in n_rounds]
        columns[name] = joined([run.metrics.get(name, nan_R) for run, nan_R in zip(runs, absent, strict=True)])
    columns["seconds"] = joined([sum(run.seconds.values(), np.zeros(len(run.labels_R))) for run in runs])
    return pd.DataFrame(columns)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def as_csv(runs: list[Run]) -> str:
    rounds = table(comparable(runs)[0])
    words = rounds.select_dtypes(exclude="number")
    return rounds.assign(**{name: words[name].map(as_cell) for name in words}).to_csv(index=False)
