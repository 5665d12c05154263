"""The pictures in the folder of a finished run: its curve, acquired images, and most uncertain test images.

V test images, K images side by side, H and W pixels; S passes, C classes. Sizes on the page are inches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from al_bench.analysis.canvas import (
    COLUMN,
    FONT,
    HEIGHT,
    LINE,
    PAGE,
    SMALL,
    count_on_x,
    dress,
    line,
    plain,
    shown,
    style,
)
from al_bench.analysis.metric import ACCURACY
from al_bench.data import Dataset
from al_bench.records import RoundRecord
from al_bench.strategies import uncertainty

PICKED = 12  # images shown per round
ROUNDS = 30  # at most
UNCERTAIN = 10  # images shown per score
SCORES = {
    "least confidence": uncertainty.least_confidence_score,
    "margin": uncertainty.margin_score,
    "entropy": uncertainty.entropy_score,
}


def learning_curve(path: Path, records: Sequence[RoundRecord], name: str) -> None:
    title = shown(name, 44)
    above = 0.1 + LINE * (1 + title.count("\n"))
    height = HEIGHT + above
    figure = Figure((COLUMN, height))  # a layout engine would draw it twice; the positions are computed here
    ax = figure.add_axes((0.55 / COLUMN, 0.45 / height, 1 - 0.7 / COLUMN, 1 - (0.45 + above) / height))
    line(ax, [r.n_labels for r in records], [100 * r.metrics["accuracy"] for r in records], style(())["random"])
    dress(ax, "Training labels", f"{ACCURACY.label}{ACCURACY.in_unit}")
    count_on_x(ax)
    ax.set_title(title, fontsize=FONT)
    figure.savefig(path, dpi=150)


def picked(path: Path, dataset: Dataset, records: Sequence[RoundRecord]) -> None:
    """Show the first images that each round acquired. Of more than ROUNDS rounds, show some, evenly spaced."""
    acquiring = [r for r in records if r.acquired]
    rounds = acquiring[:: -(-len(acquiring) // ROUNDS) or 1]
    rows = [Row(f"Picked with {r.n_labels:,} labels", dataset.pictures[r.acquired[:PICKED]]) for r in rounds]
    save(contact_sheet(rows, PICKED), path)


def most_uncertain(path: Path, dataset: Dataset, log_probs_VSC: Tensor) -> None:
    """Show the test images that the last net is least certain of, for each score, with predicted and true class."""
    names, predicted_V = dataset.class_names, uncertainty.log_mean_probs(log_probs_VSC).argmax(-1)
    rows = []
    for name, score in SCORES.items():
        score_K, top_K = score(log_probs_VSC).sort(descending=True, stable=True)
        score_K, top_K = score_K[:UNCERTAIN], top_K[:UNCERTAIN]
        captions = []
        for value, true, guess in zip(score_K, dataset.test_labels_V[top_K], predicted_V[top_K], strict=True):
            right = names[guess] if true == guess else f"{names[true]}, not {names[guess]}"
            captions.append(f"{shown(right, 9)}\n{value:.3g}")
        rows.append(Row(name, dataset.pictures[dataset.test_idx[top_K]], captions))
    save(contact_sheet(rows, UNCERTAIN), path)


class Row(NamedTuple):
    title: str
    images_KCHW: Tensor  # uint8, one or three channels
    captions: Sequence[str] = ()  # one below each image


def contact_sheet(rows: Sequence[Row], columns: int) -> Figure:
    """Draw each row: its title and below it up to `columns` images side by side."""
    figure = Figure((PAGE, HEIGHT))  # without a layout engine, which takes seconds; the positions are computed below
    cell, places, y = PAGE / columns, [], 0.0
    for row in rows:
        h, w = row.images_KCHW.shape[2:]
        gap = max(1, w // 16)
        middle, height = 0.5 * w / (w + gap), h * cell / (w + gap)  # share of a cell's width; inches
        strip_CHX = F.pad(row.images_KCHW, (0, gap), value=255).permute(1, 2, 0, 3).flatten(2)  # white gaps
        top = y + LINE + 0.08
        places.append((row, strip_CHX.expand(3, -1, -1), top, height, middle))
        y = top + height + LINE * max((text.count("\n") + 1 for text in row.captions), default=0) + 0.1
    y = max(y, 0.2)
    figure.set_figheight(y)
    for row, strip_CHX, top, height, middle in places:
        figure.text(0.02 / PAGE, 1 - (top - 0.02) / y, plain(row.title), fontsize=SMALL)
        ax = figure.add_axes((0, 1 - (top + height) / y, len(row.images_KCHW) / columns, height / y))
        ax.imshow(strip_CHX.permute(1, 2, 0).numpy())
        ax.set_axis_off()
        for i, text in enumerate(row.captions):
            x, below = (i + middle) / columns, 1 - (top + height + 0.02) / y
            figure.text(x, below, text, fontsize=SMALL, ha="center", va="top")
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 80})
