"""Figures: functions of (ax, arrays) that return the ax."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter


def learning_curve(ax: Axes, n_labelled: Sequence[int], accuracy: Sequence[float], name: str) -> Axes:
    """Test accuracy in percent over the number of training labels."""
    ax.plot(n_labelled, [100 * a for a in accuracy], marker="o", markersize=4, label=name)
    ax.set_xlabel("Training labels")
    ax.set_ylabel("Test accuracy (%)")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", frameon=False)
    return ax


def save_learning_curve(path: Path, n_labelled: Sequence[int], accuracy: Sequence[float], name: str) -> None:
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    learning_curve(figure.subplots(), n_labelled, accuracy, name)
    figure.savefig(path, dpi=200)
