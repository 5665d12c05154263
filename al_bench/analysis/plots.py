"""Figures that compare strategies: functions of (ax, numbers) that return the ax. They draw and compute nothing.

S seeds, R rounds, M strategies, C classes. Values come as they are recorded; those of a share are drawn in per cent.
Values that are not finite are left out of a drawing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from al_bench.analysis.canvas import (
    NAME,
    SMALL,
    Look,
    band,
    count_on_x,
    dress,
    finite,
    fit,
    fit_rows,
    heat_map,
    legend,
    letters,
    line,
    names_on,
    pitch,
    plain,
    shown,
    style,
)
from al_bench.analysis.metric import ACCURACY, Metric

FULL_DATA = {"color": "0.35", "linewidth": 1, "linestyle": (0, (6, 3))}
ORACLE = {"color": "0.35", "linewidth": 1.3, "linestyle": (0, (1, 1.5))}
NOISE = {"facecolor": "0.92", "edgecolor": "0.7", "hatch": "/////", "linewidth": 0, "zorder": 0}
MOST_CLASSES_IN_A_BAR = 12


# -- curves over labels --


class Curve(NamedTuple):
    """The mean over seeds, and the interval of the mean where there is one."""

    labels_R: ArrayLike
    mean_R: ArrayLike
    low_R: ArrayLike | None = None
    high_R: ArrayLike | None = None
    seen: ArrayLike | None = None  # values of all seeds: the frame shows them, and cuts intervals that are far wider


def learning_curves(
    ax: Axes,
    curves: Mapping[str, Curve],
    full: float | None = None,
    styles: Mapping[str, Look] | None = None,
    metric: Metric = ACCURACY,
    oracles: Mapping[str, Curve] | None = None,
) -> Axes:
    """The metric over labels: a line and a band for each strategy, a line for each oracle.

    full: its value on the full data.
    """
    looks, scale = styles or style(curves), metric.scale
    handles, names, seen = [], list(curves), []
    for name, curve in curves.items():
        mean_R = scale * finite(curve.mean_R)
        handles += line(ax, curve.labels_R, mean_R, looks[name])
        if curve.low_R is not None:
            low_R, high_R = scale * finite(curve.low_R), scale * finite(curve.high_R)
            ax.fill_between(curve.labels_R, low_R, high_R, color=looks[name]["color"], **band(len(looks)))
        seen += [*scale * finite(curve.mean_R if curve.seen is None else curve.seen).ravel()]
    for name, curve in (oracles or {}).items():
        mean_R = scale * finite(curve.mean_R)
        handles += ax.plot(curve.labels_R, mean_R, **ORACLE)
        names.append(f"{name} (oracle)")
        seen += [*mean_R]
    if full is not None and math.isfinite(full):
        handles.append(full_data(ax, scale * full))
        names.append(f"full data ({metric.level(full)})")
        seen.append(scale * full)
    _cut_bands(ax, seen, 0.25)
    dress(ax, "Training labels", f"{metric.label}{metric.in_unit}")
    count_on_x(ax)
    legend(ax, handles, names)
    return ax


def full_data(ax: Axes, full: float) -> Line2D:
    """A line at the value on the full data."""
    level = ax.axhline(full, **FULL_DATA)
    ax.autoscale_view(scalex=False)  # else a line just inside the frame lies on it
    return level


def difference_to_random(
    ax: Axes,
    labels_R: ArrayLike,
    differences: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    noise: tuple[ArrayLike, ArrayLike] | None = None,
    styles: Mapping[str, Look] | None = None,
    metric: Metric = ACCURACY,
) -> Axes:
    """The metric minus random's. differences: strategy -> (mean_R, low_R, high_R); noise: (low_R, high_R)."""
    looks, scale = styles or style(differences), metric.scale
    handles, names = [], list(differences)
    for name, difference in differences.items():
        mean_R, low_R, high_R = (scale * finite(value_R) for value_R in difference)
        handles += line(ax, labels_R, mean_R, looks[name])
        ax.fill_between(labels_R, low_R, high_R, color=looks[name]["color"], **band(len(looks)))
    ax.axhline(0, color="black", linewidth=1, zorder=1)
    if noise is not None:
        low_R, high_R = (scale * finite(edge_R) for edge_R in noise)
        handles.append(ax.fill_between(labels_R, low_R, high_R, **NOISE))
        names.append("random against random")
    seen = [0, *(scale * m for mean_R, _, _ in differences.values() for m in mean_R)]
    _cut_bands(ax, seen, 1, least=10 if metric.is_share else 0)
    dress(ax, "Training labels", metric.difference_axis)
    count_on_x(ax)
    legend(ax, handles, names)
    return ax


def _cut_bands(ax: Axes, values: ArrayLike, room: float, least: float = 0.0) -> None:
    """The axis ends `room` of the values' span beyond them: the band of two seeds can be many times wider."""
    values = finite(values)
    values = values[np.isfinite(values)]
    if values.size and (room := max(room * np.ptp(values), least)):
        bottom, top = ax.get_ylim()
        ax.set_ylim(max(bottom, values.min() - room), min(top, values.max() + room))


# -- strategies compared --


def labels_to_target(
    ax: Axes,
    rows: Mapping[str, tuple[float, float]],
    target: float,
    most: float | None = None,
    styles: Mapping[str, Look] | None = None,
    metric: Metric = ACCURACY,
) -> Axes:
    """Labels to reach the target. rows: strategy -> (labels_random, labels_method), inf where not reached.

    most: the last number of labels that was tried; what was not reached is an arrow to the right of it.
    """
    looks = styles or style(rows)
    reached = [n for pair in rows.values() for n in pair if math.isfinite(n)]
    last = most if most is not None else max(reached, default=1.0)
    edge = last + 0.08 * (last - min(reached, default=0.0) or last)
    beyond = f"> {last:,.0f}" if most is not None else "> max"
    for y, (name, (random, method)) in enumerate(rows.items()):
        look = {"marker": looks[name]["marker"], "color": looks[name]["color"]}
        ax.plot([min(random, edge), min(method, edge)], [y, y], color=look["color"], linewidth=1.5, zorder=1)
        _reach(ax, random, y, edge, {"marker": "o", "color": "black", "markerfacecolor": "white"})
        _reach(ax, method, y, edge, look)
        if math.inf in (random, method):
            words = f"both {beyond}" if random == method else beyond
            ax.annotate(
                plain(words), (1, y), (3, 0), ax.get_yaxis_transform(), "offset points", va="center", fontsize=SMALL
            )
    fit_rows(ax, rows)
    dress(ax, metric.target_axis(target), "")
    count_on_x(ax)
    names_on(ax.yaxis, rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    hollow = Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor="white", markersize=5)
    filled = Line2D([], [], linestyle="", marker="s", color="0.4", markersize=5)
    legend(ax, [hollow, filled], ["random", "the strategy"])
    return ax


def penalty_matrix(ax: Axes, names: Sequence[str], matrix_MM: ArrayLike) -> Axes:
    """How often each strategy beats each other, and the mean of each column (Ash et al., 2020, section 4).

    matrix_MM[i, j]: share of the settings in which strategy i beats j. Column means count the diagonal as 0.
    """
    m = len(names)
    shown_MM = np.full((m + 1, m), np.nan)
    shown_MM[:m] = np.where(np.eye(m, dtype=bool), np.nan, finite(matrix_MM).reshape(m, m))
    if m:
        shown_MM[m] = np.where(np.eye(m, dtype=bool), 0.0, shown_MM[:m]).mean(0)
    heat_map(ax, shown_MM, [*names, "column mean"], names)
    ax.axhline(m - 0.5, color="black", linewidth=1)
    dress(ax, "... the column\n(low mean: seldom beaten)", "Share in which\nthe row beats ...", grid=False)
    return ax


def overlap(ax: Axes, names: Sequence[str], jaccard_MM: ArrayLike) -> Axes:
    """Jaccard index of what two strategies acquired: images that both have / images that at least one has."""
    m = len(names)
    shown_MM = np.where(np.tri(m, k=-1, dtype=bool), finite(jaccard_MM).reshape(m, m), np.nan)
    heat_map(ax, shown_MM[1:, :-1], names[1:], names[:-1])
    dress(ax, "Images acquired by both / by either", "", grid=False)
    return ax


def rank_diagram(ax: Axes, names: Sequence[str], rank_M: ArrayLike, same_MM: ArrayLike) -> Axes:
    """Critical-difference diagram (Demsar, 2006): mean ranks, with a bar for each group of which no two differ.

    same_MM[i, j]: strategies i and j are not significantly different. A bar has a dot at each strategy that it joins:
    a strategy between two dots need not belong to it.
    """
    rank_M = finite(rank_M)
    order = [int(i) for i in np.argsort(rank_M, kind="stable") if np.isfinite(rank_M[i])]
    first, last = (1, max(len(names), 2)) if order else (0, 1)
    levels = _stack([sorted(float(rank_M[i]) for i in group) for group in _groups(order, same_MM)])
    for y, ranks in levels:
        ax.plot(ranks, [y] * len(ranks), color="black", linewidth=2, marker="o", markersize=3.5)
    lowest = min((y for y, _ in levels), default=0.0) - 0.8
    half = (len(order) + 1) // 2
    labels = [f"{name}  {rank:.2f}" for name, rank in zip(names, rank_M, strict=True)]
    for row, i in enumerate([*order[:half], *reversed(order[half:])]):
        on_left = row < half
        x, y = (first, lowest - row) if on_left else (last, lowest - row + half)
        ax.plot([rank_M[i], rank_M[i], x], [0, y, y], color="0.45", linewidth=0.8, zorder=1)
        words = shown(labels[i], NAME)
        offset, side = ((-3, 0), "right") if on_left else ((3, 0), "left")
        ax.annotate(words, (x, y), offset, textcoords="offset points", ha=side, va="center", fontsize=SMALL)
    fit(ax, 0.7 + 0.8 * pitch(labels) * (half - lowest), 1.6 + 0.05 * len(order) + 2 * 0.06 * letters(labels))
    dress(ax, "Mean rank (1 is the best)\na bar joins those not significantly different", "", grid=False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.yaxis.set_visible(False)
    ax.spines[["left", "right", "bottom"]].set_visible(False)
    ax.set(xlim=(first, last), ylim=(lowest - max(half, 1) + 0.4, 0))
    return ax


def cost(
    ax: Axes,
    points: Mapping[str, tuple[float, float]],
    styles: Mapping[str, Look] | None = None,
    metric: Metric = ACCURACY,
) -> Axes:
    """The metric at the end against the time of all rounds. points: strategy -> (seconds, value)."""
    looks = styles or style(points)
    good = {n: (s, metric.scale * v) for n, (s, v) in points.items() if 0 < s < math.inf and math.isfinite(v)}
    handles = [
        ax.plot(*p, marker=looks[n]["marker"], color=looks[n]["color"], markersize=5.5, linestyle="")[0]
        for n, p in good.items()
    ]
    seconds = [s for s, _ in good.values()] or [1.0]
    ax.set_xscale("log")
    ax.set_xlim(min(seconds) / 2, max(seconds) * 2)
    axis = f"{metric.label} at the end{metric.in_unit}"
    dress(ax, "Training, predicting and selecting, all rounds\n(seconds, log scale)", axis)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(seconds) / min(seconds) < 100 else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    legend(ax, handles, good)
    return ax


def class_balance(
    ax: Axes,
    names: Sequence[str],
    counts_MC: ArrayLike,
    class_names: Sequence[str],
    styles: Mapping[str, Look] | None = None,
) -> Axes:
    """Shares of the classes in what each strategy acquired.

    Up to twelve classes are bars cut in shares. More are curves of the shares in falling order: nobody tells a hundred
    colours apart, and a steep curve shows unequal classes.
    """
    counts_MC = np.nan_to_num(finite(counts_MC).reshape(len(names), len(class_names)))
    share = dict(zip(names, 100 * counts_MC / np.maximum(counts_MC.sum(1, keepdims=True), 1e-12), strict=True))
    if len(class_names) > MOST_CLASSES_IN_A_BAR:
        return _sorted_shares(ax, share, styles or style(names))
    return _stacked_shares(ax, share, class_names)


# -- parts of figures --


def _reach(ax: Axes, labels: float, y: float, edge: float, look: Mapping[str, Any]) -> None:
    if labels == math.inf:
        ax.plot(edge, y, **{**look, "marker": ">"}, markersize=6)
    elif math.isfinite(labels):
        ax.plot(labels, y, **look, markersize=5.5)


def _groups(order: Sequence[int], same_MM: ArrayLike) -> list[list[int]]:
    """The largest groups of at least two of which no two differ."""
    import networkx

    same_MM = np.asarray(same_MM, dtype=bool)
    pairs = [(i, j) for a, i in enumerate(order) for j in order[a + 1 :] if same_MM[i, j]]
    return list(networkx.find_cliques(networkx.Graph(pairs)))


def _stack(bars: Sequence[Sequence[float]]) -> list[tuple[float, Sequence[float]]]:
    """(y, bar) with bars that would touch on different heights, from -0.6 downwards."""
    placed, ends = [], []
    for bar in sorted(bars):
        level = next((level for level, end in enumerate(ends) if end < bar[0]), len(ends))
        ends[level : level + 1] = [bar[-1]]
        placed.append((-0.6 - 0.6 * level, bar))
    return placed


def _stacked_shares(ax: Axes, share: Mapping[str, NDArray[np.float64]], class_names: Sequence[str]) -> Axes:
    tone_C = np.linspace(0.05, 0.95, len(class_names))[_far_apart(len(class_names))]
    colours = colormaps["cividis"](tone_C)
    for y, share_C in enumerate(share.values()):
        left_C = np.cumsum(share_C) - share_C
        ax.barh([y] * len(share_C), share_C, left=left_C, color=colours, edgecolor="white", linewidth=0.6, height=0.75)
        for c in np.flatnonzero(share_C >= 8):
            ax.text(
                left_C[c] + share_C[c] / 2, y, f"{share_C[c]:.0f}", ha="center", va="center", fontsize=SMALL,
                color="white" if tone_C[c] < 0.5 else "black",
            )  # fmt: skip
    fit_rows(ax, list(share))
    dress(ax, "Share of the images acquired (%)", "", grid=False)
    names_on(ax.yaxis, list(share))
    ax.set(xlim=(0, 100), ylim=(len(share) - 0.4, -0.6))
    legend(ax, [Patch(color=colour) for colour in colours[: len(class_names)]], class_names)
    return ax


def _far_apart(n: int) -> list[int]:
    """0 to n - 1 with neighbours about n / 2 apart, so that shares side by side differ in greyscale as well."""
    half = (n + 1) // 2
    return [i // 2 + half * (i % 2) for i in range(n)]


def _sorted_shares(ax: Axes, share: Mapping[str, NDArray[np.float64]], looks: Mapping[str, Look]) -> Axes:
    handles = []
    for name, share_C in share.items():
        handles += line(ax, np.arange(1, len(share_C) + 1), np.sort(share_C)[::-1], looks[name])
    dress(ax, "Classes, from the most to the least acquired", "Share of the images acquired (%)")
    count_on_x(ax)
    ax.set_ylim(bottom=0)
    legend(ax, handles, list(share))
    return ax
