"""al_bench: which images should be labelled next? Active-learning strategies on images, compared fairly."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__version__ = "0.1.0"


def read(root: "str | Path") -> "pd.DataFrame":
    """A row for each run and round below a results folder: al_bench.read("results/my_study").

    Columns: study, dataset, model, budget, strategy, seed, round, labels, every metric that is a number, seconds.
    al_bench.analysis.rounds.read says more.
    """
    from al_bench.analysis import rounds  # `import al_bench` alone imports neither pandas nor torch

    return rounds.read(root)
