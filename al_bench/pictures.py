"""What a finished run leaves to look at, in its folder. N test images, S = 1 pass, C classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from al_bench import plots, sheets
from al_bench.data import Dataset
from al_bench.store import RoundRecord
from al_bench.strategies.uncertainty import entropy_score, least_confidence_score, margin_score

PICKED = 12  # of each round
ROUNDS = 30  # at the most
UNCERTAIN = 10  # by each score
SCORES = {"least confidence": least_confidence_score, "margin": margin_score, "entropy": entropy_score}


def learning_curve(path: Path, records: Sequence[RoundRecord], name: str) -> None:
    labels = [r.n_labels for r in records]
    plots.save_learning_curve(path, labels, [r.metrics["accuracy"] for r in records], name)


def picked(path: Path, dataset: Dataset, records: Sequence[RoundRecord]) -> None:
    """The first images that rounds bought; of many rounds some, evenly spaced."""
    bought = [r for r in records if r.acquired]
    shown = bought[:: -(-len(bought) // ROUNDS) or 1]
    rows = [(f"Picked with {r.n_labels:,} labels", [pixels(dataset, i) for i in r.acquired[:PICKED]]) for r in shown]
    figure = sheets.contact_sheet(plots.new_figure(plots.PAGE), rows, PICKED)
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 80})


def most_uncertain(path: Path, dataset: Dataset, log_probs_NSC: Tensor) -> None:
    """The test images that the last net is least certain of, by each score, with their true and predicted classes."""
    score_N = {name: score(log_probs_NSC) for name, score in SCORES.items()}
    shown = sorted({int(i) for s in score_N.values() for i in s.topk(min(UNCERTAIN, len(s))).indices})
    predicted_N = log_probs_NSC.mean(1).argmax(-1)
    names = dataset.class_names
    figure = sheets.most_uncertain(
        plots.new_figure(plots.PAGE),
        [pixels(dataset, dataset.test_idx[i]) for i in shown],
        {name: s[shown].numpy() for name, s in score_N.items()},
        [f"{names[dataset.test_labels_V[i]]}, not {names[predicted_N[i]]}"
         if dataset.test_labels_V[i] != predicted_N[i] else names[predicted_N[i]] for i in shown],
        UNCERTAIN,
    )  # fmt: skip
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 80})


def pixels(dataset: Dataset, i: int | Tensor) -> NDArray[np.uint8]:
    return sheets.picture(dataset.images[i])
