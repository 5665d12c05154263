"""Figures of a single run: functions of (ax, numbers) that return the ax. R rounds, E epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from al_bench.analysis.canvas import COLOURS, count_on_x, dress, finite, legend, line, style, thin
from al_bench.analysis.metric import ACCURACY, Metric
from al_bench.analysis.plots import full_data


def training_history(ax: Axes, history: Sequence[Mapping[str, float]], quantity: str = "accuracy") -> Axes:
    """Training and validation "accuracy" or "loss" of one fit over its epochs. history: RoundRecord.history."""
    percent = quantity == "accuracy"
    names = {"training": quantity, "validation": f"val_{quantity}"}
    known = {name: _of(history, key, percent) for name, key in names.items() if any(key in epoch for epoch in history)}
    looks = {"training": {"color": "black", "linestyle": "-"}, "validation": {"color": COLOURS[1], "linestyle": "--"}}
    lines = [ax.plot(np.arange(1, len(y_E) + 1), y_E, **looks[n], **thin(y_E))[0] for n, y_E in known.items()]
    dress(ax, "Epoch", "Accuracy (%)" if percent else "Loss (cross-entropy, nats)")
    count_on_x(ax)
    legend(ax, lines, known)
    return ax


def pool_sizes(ax: Axes, labelled_R: ArrayLike, unlabelled_R: ArrayLike) -> Axes:
    """Images in the training set and in the unlabelled pool at each training."""
    sizes = {"training set": (labelled_R, "black", "o", "-"), "unlabelled pool": (unlabelled_R, COLOURS[0], "s", "--")}
    lines = [
        line(ax, np.arange(len(n_R)), finite(n_R), {"color": color, "marker": marker, "linestyle": dash})[0]
        for n_R, color, marker, dash in sizes.values()
    ]
    dress(ax, "Retraining (0: on the initial set)", "Images")
    count_on_x(ax)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_ylim(bottom=0)
    legend(ax, lines, sizes)
    return ax


def after_retraining(ax: Axes, value_R: ArrayLike, full: float | None = None, metric: Metric = ACCURACY) -> Axes:
    """The metric after each training. full: its value on the full data."""
    lines = line(ax, np.arange(len(value_R)), metric.scale * finite(value_R), style(())["random"])
    if full is not None and math.isfinite(full):
        lines.append(full_data(ax, metric.scale * full))
        legend(ax, lines, ["this run", f"full data ({metric.level(full)})"])
    dress(ax, "Retraining (0: on the initial set)", f"{metric.label}{metric.in_unit}")
    count_on_x(ax)
    return ax


def validation_history(ax: Axes, histories: Sequence[Sequence[Mapping[str, float]]]) -> Axes:
    """Validation accuracy over the epochs of all rounds, in a row. histories: RoundRecord.history of each round."""
    accuracy_E = np.concatenate([_of(history, "val_accuracy", percent=True) for history in histories] or [[]])
    start_R = np.cumsum([1, *map(len, histories)])[:-1]  # epochs are counted from 1
    epochs_E = np.arange(1, len(accuracy_E) + 1)
    handles = ax.plot(epochs_E, accuracy_E, color=COLOURS[0], linewidth=1, **_dots(accuracy_E))
    starts = [round for round, history in enumerate(histories) if round and len(history)]
    names = ["validation accuracy"]
    if starts:
        x = start_R[starts]
        handles += ax.plot(x, accuracy_E[x - 1], linestyle="", marker="v", color=COLOURS[1], markersize=5)
        names.append("first epoch of a retraining")
    dress(ax, "Epoch, all trainings", "Validation accuracy (%)")
    count_on_x(ax)
    legend(ax, handles, names)
    return ax


def _dots(y_E: ArrayLike) -> dict[str, Any]:
    return {"marker": ".", "markersize": 3} if len(y_E) < 60 else {}


def _of(history: Sequence[Mapping[str, float]], key: str, percent: bool) -> NDArray[np.float64]:
    return (100 if percent else 1) * finite([epoch.get(key, math.nan) for epoch in history])
