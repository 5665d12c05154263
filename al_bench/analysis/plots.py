"""Figures: functions of (ax, arrays) that return the ax. Accuracies come as fractions and are drawn in per cent.

S seeds, R rounds, E epochs, M strategies, C classes. Every function is made for a figure of `new_figure`,
one printed column wide; where its ax stands alone in the figure, the figure grows with its legend, rows or columns, so
that many strategies cost paper and not readability. Values that are not finite are left out of a drawing. Names are
drawn as they are written: no `$` starts a formula, a leading underscore hides nothing.
"""

import math
import textwrap
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from al_bench.text import printable

COLUMN, PAGE, HEIGHT = 3.5, 7.0, 2.6  # inches
FONT, SMALL = 8, 7  # points
LINE = 0.125  # inches from line to line of small letters
# Okabe & Ito (2008). Black is random's; yellow is left out, a thin line of it is lost on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Eleven and four have no common divisor: 44 strategies pass before a marker meets the same dashes again.
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
DASHES = ("-", "--", ":", "-.")
FULL_DATA = {"color": "0.35", "linewidth": 1, "linestyle": (0, (6, 3))}
NOISE = {"facecolor": "0.92", "edgecolor": "0.7", "hatch": "/////", "linewidth": 0, "zorder": 0}
MOST_CLASSES_IN_A_BAR = 12
MANY = 14  # curves; a legend of more takes a figure as wide as a page
NAME = 28  # letters of a name in one line beside a row
LONGEST = 300  # letters of a name

# Letters that matplotlib's font lacks are drawn as boxes; a line on the screen for each helps nobody.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from|Matplotlib currently does not support")

Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]
Look = dict[str, str]


def new_figure(width: float = COLUMN, height: float = HEIGHT) -> Figure:
    """Sizes in inches. Never pyplot's figure: that one is kept in a global list and looks for a display."""
    return Figure(figsize=(width, height), layout="constrained")


def style(names: Iterable[str]) -> dict[str, Look]:
    """A colour, marker and dash for each name, by its place in the list; random's look is the same in every list."""
    others = [name for name in names if name != "random"]
    looks = {"random": {"color": "black", "marker": "o", "linestyle": "-"}}
    for i, name in enumerate(others):
        looks[name] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
        }
    return looks


# -- curves over labels --


def learning_curves(
    ax: Axes, curves: Curves, full: float | None = None, styles: Mapping[str, Look] | None = None
) -> Axes:
    """Mean test accuracy over labels, with the 95% interval of the mean as a band; `full`: that of the full data.

    curves: strategy -> (labels_R, accuracy_SR).
    """
    return over_labels(ax, curves, "Test accuracy", True, styles, full)


def over_labels(
    ax: Axes,
    curves: Curves,
    ylabel: str,
    percent: bool = False,
    styles: Mapping[str, Look] | None = None,
    full: float | None = None,
) -> Axes:
    """Any metric, mean and 95% t interval of the mean over seeds. curves: strategy -> (labels_R, value_SR)."""
    looks, scale = styles or style(curves), 100 if percent else 1
    handles, names, seen = [], list(curves), []
    for name, (labels_R, value_SR) in curves.items():
        mean_R, low_R, high_R = scale * t_interval(value_SR)
        handles += _line(ax, labels_R, mean_R, looks[name])
        ax.fill_between(labels_R, low_R, high_R, color=looks[name]["color"], **_band(len(looks)))
        seen += [*scale * _finite(value_SR).ravel()]
    if full is not None and math.isfinite(full):
        handles.append(_full_data(ax, scale * full))
        names.append(f"full data ({full:.1%})")
        seen.append(scale * full)
    _cut_bands(ax, seen, 0.25)
    _dress(ax, "Training labels", f"{ylabel} (%)" if percent else ylabel)
    _count_on_x(ax)
    _legend(ax, handles, names)
    return ax


def _full_data(ax: Axes, full: float) -> Line2D:
    line = ax.axhline(full, **FULL_DATA)
    ax.autoscale_view(scalex=False)  # else a line just inside the frame lies on it
    return line


def difference_to_random(
    ax: Axes,
    labels_R: ArrayLike,
    differences: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    noise: tuple[ArrayLike, ArrayLike] | None = None,
    styles: Mapping[str, Look] | None = None,
) -> Axes:
    """Accuracy minus random's. differences: strategy -> (mean_R, low_R, high_R), noise: (low_R, high_R); fractions."""
    looks = styles or style(differences)
    handles, names = [], list(differences)
    for name, (mean_R, low_R, high_R) in differences.items():
        handles += _line(ax, labels_R, 100 * _finite(mean_R), looks[name])
        ax.fill_between(
            labels_R, 100 * _finite(low_R), 100 * _finite(high_R), color=looks[name]["color"], **_band(len(looks))
        )
    ax.axhline(0, color="black", linewidth=1, zorder=1)
    if noise is not None:
        low_R, high_R = (100 * _finite(edge_R) for edge_R in noise)
        handles.append(ax.fill_between(labels_R, low_R, high_R, **NOISE))
        names.append("random against random")
    _cut_bands(ax, [0, *(100 * m for mean_R, _, _ in differences.values() for m in mean_R)], 1, least=10)
    _dress(ax, "Training labels", "Accuracy minus random's\n(percentage points)")
    _count_on_x(ax)
    _legend(ax, handles, names)
    return ax


def _cut_bands(ax: Axes, values: ArrayLike, room: float, least: float = 0.0) -> None:
    """The axis ends `room` of the values' span beyond them: the band of two seeds can be many times wider."""
    values = _finite(values)
    values = values[np.isfinite(values)]
    if values.size and (room := max(room * np.ptp(values), least)):
        bottom, top = ax.get_ylim()
        ax.set_ylim(max(bottom, values.min() - room), min(top, values.max() + room))


def t_interval(value_SR: ArrayLike, level: float = 0.95) -> NDArray[np.float64]:
    """Mean over seeds and Student's t interval of it: rows mean_R, low_R, high_R. One seed has no interval: nan."""
    from scipy.special import stdtrit

    value_SR = _finite(value_SR)
    n = len(value_SR)
    if n == 0:
        return np.full((3, *value_SR.shape[1:]), np.nan)
    mean_R = value_SR.mean(0)
    half_R = value_SR.std(0, ddof=1) / math.sqrt(n) * stdtrit(n - 1, (1 + level) / 2) if n > 1 else np.nan * mean_R
    return np.stack([mean_R, mean_R - half_R, mean_R + half_R])


# -- strategies compared --


def labels_to_target(
    ax: Axes,
    rows: Mapping[str, tuple[float, float]],
    target: float,
    most: float | None = None,
    styles: Mapping[str, Look] | None = None,
) -> Axes:
    """Labels to reach the accuracy `target`. rows: strategy -> (labels_random, labels_method), inf where not reached.

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
    _fit_rows(ax, rows)
    _dress(ax, f"Labels to {target:.1%} test accuracy", "")
    _count_on_x(ax)
    _names_on(ax.yaxis, rows)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    hollow = Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor="white", markersize=5)
    filled = Line2D([], [], linestyle="", marker="s", color="0.4", markersize=5)
    _legend(ax, [hollow, filled], ["random", "the strategy"])
    return ax


def penalty_matrix(ax: Axes, names: Sequence[str], matrix_MM: ArrayLike) -> Axes:
    """How often each strategy beats each other, and the mean of each column (Ash et al., 2020, section 4).

    matrix_MM[i, j]: share of the settings in which strategy i beats j. Column means count the diagonal as 0.
    """
    m = len(names)
    shown_MM = np.full((m + 1, m), np.nan)
    shown_MM[:m] = np.where(np.eye(m, dtype=bool), np.nan, _finite(matrix_MM).reshape(m, m))
    if m:
        shown_MM[m] = np.where(np.eye(m, dtype=bool), 0.0, shown_MM[:m]).mean(0)
    _heat_map(ax, shown_MM, [*names, "column mean"], names)
    ax.axhline(m - 0.5, color="black", linewidth=1)
    _dress(ax, "... the column\n(low mean: seldom beaten)", "Share in which\nthe row beats ...", grid=False)
    return ax


def overlap(ax: Axes, names: Sequence[str], jaccard_MM: ArrayLike) -> Axes:
    """Jaccard index of what two strategies bought: images that both have, over images that at least one has."""
    m = len(names)
    shown_MM = np.where(np.tri(m, k=-1, dtype=bool), _finite(jaccard_MM).reshape(m, m), np.nan)
    _heat_map(ax, shown_MM[1:, :-1], names[1:], names[:-1])
    _dress(ax, "Images bought by both / by either", "", grid=False)
    return ax


def rank_diagram(ax: Axes, names: Sequence[str], rank_M: ArrayLike, same_MM: ArrayLike) -> Axes:
    """Critical-difference diagram (Demsar, 2006): mean ranks, with a bar for each group of which no two differ.

    same_MM[i, j]: strategies i and j are not significantly different. A bar has a dot at each strategy it joins: one
    that lies between may not belong to it.
    """
    rank_M = _finite(rank_M)
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
    _fit(ax, 0.7 + 0.8 * _pitch(labels) * (half - lowest), 1.6 + 0.05 * len(order) + 2 * 0.06 * _letters(labels))
    _dress(ax, "Mean rank (1 is the best)\na bar joins those not significantly different", "", grid=False)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.yaxis.set_visible(False)
    ax.spines[["left", "right", "bottom"]].set_visible(False)
    ax.set(xlim=(first, last), ylim=(lowest - max(half, 1) + 0.4, 0))
    return ax


def cost(ax: Axes, points: Mapping[str, tuple[float, float]], styles: Mapping[str, Look] | None = None) -> Axes:
    """Accuracy at the end against the time of all rounds. points: strategy -> (seconds, accuracy)."""
    looks = styles or style(points)
    good = {name: (s, 100 * a) for name, (s, a) in points.items() if 0 < s < math.inf and math.isfinite(a)}
    handles = [
        ax.plot(*p, marker=looks[n]["marker"], color=looks[n]["color"], markersize=5.5, linestyle="")[0]
        for n, p in good.items()
    ]
    seconds = [s for s, _ in good.values()] or [1.0]
    ax.set_xscale("log")
    ax.set_xlim(min(seconds) / 2, max(seconds) * 2)
    _dress(ax, "Training, predicting and selecting, all rounds\n(seconds, log scale)", "Test accuracy at the end (%)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(seconds) / min(seconds) < 100 else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    _legend(ax, handles, good)
    return ax


def class_balance(
    ax: Axes,
    names: Sequence[str],
    counts_MC: ArrayLike,
    class_names: Sequence[str],
    styles: Mapping[str, Look] | None = None,
) -> Axes:
    """Shares of the classes in what each strategy bought.

    Up to twelve classes are bars cut in shares, more are curves of the shares in falling order: a hundred colours say
    nothing, while the steepness of the curve says how unequal the classes are.
    """
    counts_MC = np.nan_to_num(_finite(counts_MC).reshape(len(names), len(class_names)))
    share = dict(zip(names, 100 * counts_MC / np.maximum(counts_MC.sum(1, keepdims=True), 1e-12), strict=True))
    if len(class_names) > MOST_CLASSES_IN_A_BAR:
        return _sorted_shares(ax, share, styles or style(names))
    return _stacked_shares(ax, share, class_names)


# -- one run, as in the article --


def training_history(ax: Axes, history: Sequence[Mapping[str, float]], quantity: str = "accuracy") -> Axes:
    """Training and validation "accuracy" or "loss" of one fit over its epochs. history: RoundRecord.history."""
    percent = quantity == "accuracy"
    names = {"training": quantity, "validation": f"val_{quantity}"}
    known = {name: _of(history, key, percent) for name, key in names.items() if any(key in epoch for epoch in history)}
    looks = {"training": {"color": "black", "linestyle": "-"}, "validation": {"color": COLOURS[1], "linestyle": "--"}}
    lines = [ax.plot(np.arange(1, len(y_E) + 1), y_E, **looks[n], **_thin(y_E))[0] for n, y_E in known.items()]
    _dress(ax, "Epoch", "Accuracy (%)" if percent else "Loss (cross-entropy, nats)")
    _count_on_x(ax)
    _legend(ax, lines, known)
    return ax


def pool_sizes(ax: Axes, labelled_R: ArrayLike, unlabelled_R: ArrayLike) -> Axes:
    """Images in the training set and in the unlabelled pool at each training."""
    sizes = {"training set": (labelled_R, "black", "o", "-"), "unlabelled pool": (unlabelled_R, COLOURS[0], "s", "--")}
    lines = [
        _line(ax, np.arange(len(n_R)), _finite(n_R), {"color": color, "marker": marker, "linestyle": dash})[0]
        for n_R, color, marker, dash in sizes.values()
    ]
    _dress(ax, "Retraining (0: on the initial set)", "Images")
    _count_on_x(ax)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_ylim(bottom=0)
    _legend(ax, lines, sizes)
    return ax


def retraining_accuracy(ax: Axes, accuracy_R: ArrayLike, full: float | None = None) -> Axes:
    """Test accuracy after each training; `full`: that of the full data."""
    lines = _line(ax, np.arange(len(accuracy_R)), 100 * _finite(accuracy_R), style(())["random"])
    if full is not None and math.isfinite(full):
        lines.append(_full_data(ax, 100 * full))
        _legend(ax, lines, ["this run", f"full data ({full:.1%})"])
    _dress(ax, "Retraining (0: on the initial set)", "Test accuracy (%)")
    _count_on_x(ax)
    return ax


def validation_history(ax: Axes, histories: Sequence[Sequence[Mapping[str, float]]]) -> Axes:
    """Validation accuracy over the epochs of all rounds, in a row. histories: RoundRecord.history of each round."""
    accuracy_E = np.concatenate([_of(history, "val_accuracy", percent=True) for history in histories] or [[]])
    start_R = np.cumsum([1, *map(len, histories)])[:-1]  # epochs are counted from 1
    line = ax.plot(np.arange(1, len(accuracy_E) + 1), accuracy_E, color=COLOURS[0], linewidth=1, **_dots(accuracy_E))[0]
    starts = [round for round, history in enumerate(histories) if round and len(history)]
    handles, names = [line], ["validation accuracy"]
    if starts:
        x = start_R[starts]
        handles += ax.plot(x, accuracy_E[x - 1], linestyle="", marker="v", color=COLOURS[1], markersize=5)
        names.append("first epoch of a retraining")
    _dress(ax, "Epoch, all trainings", "Validation accuracy (%)")
    _count_on_x(ax)
    _legend(ax, handles, names)
    return ax


# -- what they share --


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    """As floats, infinities as nan: sums of them would warn, and matplotlib leaves nan out."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def plain(text: str) -> str:
    """An escaped dollar is drawn as a dollar; two bare ones would be read as a formula."""
    return printable(text).replace("$", r"\$")


def shown(name: str, width: int) -> str:
    """A user's name in lines of at most `width` letters."""
    return plain("\n".join(_wrapped(name, width)))


def _wrapped(name: str, width: int) -> list[str]:
    """Of a name that would fill a page, its beginning and its end."""
    name = printable(name)
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]} ... {name[-LONGEST // 2 :]}"
    return textwrap.wrap(short, width) or [""]


def _line(ax: Axes, x: ArrayLike, y: ArrayLike, look: Mapping[str, str]) -> list[Line2D]:
    return ax.plot(x, y, **look, **_thin(y))


def _thin(y: ArrayLike) -> dict[str, Any]:
    """Markers at fifteen of the points at most, so that the dashes between them are seen."""
    return {"linewidth": 1.3, "markersize": 4, "markevery": -(-len(y) // 15) or 1}


def _band(n: int) -> dict[str, float]:
    """Many bands on top of each other would be one dark cloud."""
    return {"alpha": min(0.13, 0.8 / n), "linewidth": 0}


def _dots(y_E: ArrayLike) -> dict[str, Any]:
    return {"marker": ".", "markersize": 3} if len(y_E) < 60 else {}


def _of(history: Sequence[Mapping[str, float]], key: str, percent: bool) -> NDArray[np.float64]:
    return (100 if percent else 1) * _finite([epoch.get(key, math.nan) for epoch in history])


def _dress(ax: Axes, xlabel: str, ylabel: str, grid: bool = True) -> None:
    ax.set_xlabel(xlabel, fontsize=FONT)
    ax.set_ylabel(ylabel, fontsize=FONT)
    ax.tick_params(labelsize=FONT)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(alpha=0.3, linewidth=0.6)


def _count_on_x(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _names_on(axis: Any, names: Iterable[str], **kwargs: Any) -> None:
    words = [shown(name, NAME) for name in names]
    axis.set_ticks(range(len(words)), words, fontsize=FONT, **kwargs)


def _lines(names: Iterable[str], width: int) -> list[list[str]]:
    return [_wrapped(name, width) for name in names]


def _letters(names: Iterable[str]) -> int:
    return max((len(line) for lines in _lines(names, NAME) for line in lines), default=0)


def _pitch(names: Iterable[str]) -> float:
    """Inches from name to name that leave room for the one of most lines."""
    return 0.09 + 0.135 * max(map(len, _lines(names, NAME)), default=1)


def _fit_rows(ax: Axes, names: Collection[str], width: float = 0.0, below: float = 0.4) -> None:
    """The figure large enough for a row each, for the names beside them, and for `below` inches under the rows."""
    height = 0.5 + below + max(len(names), 2) * _pitch(names)
    _fit(ax, height, 0.5 + max(width, 2.2) + 0.07 * _letters(names))


def _is_alone(ax: Axes) -> bool:
    return isinstance(ax.figure, Figure) and ax.figure.axes == [ax]


def _fit(ax: Axes, height: float, width: float = 0.0) -> None:
    """The figure so high, and at least so wide, in inches."""
    if _is_alone(ax):
        ax.figure.set_size_inches(max(ax.figure.get_figwidth(), width), height)


def _legend(ax: Axes, handles: Sequence[Artist], names: Iterable[str]) -> None:
    """Below the axes, in as many columns as fit; the figure grows by it. Inside the axes where others stand beside."""
    names, figure = list(names), ax.figure
    if not names:
        return
    # matplotlib before 3.10 leaves out labels that begin with an underscore: the words are set afterwards
    blank = [" "] * len(names)
    if not _is_alone(ax):
        return _set_words(ax.legend(handles, blank, fontsize=SMALL, framealpha=0.8), names)
    if len(names) > MANY:
        _fit(ax, figure.get_figheight() + 1, PAGE)
    for columns, width in [(n, 44) for n in range(min(4, len(names)), 0, -1)] + [(1, 22)]:
        legend = figure.legend(
            handles, blank, loc="outside lower center", ncols=columns, fontsize=FONT, frameon=False,
            borderaxespad=0.2, columnspacing=1.2, handlelength=2.6,
        )  # fmt: skip
        _set_words(legend, names, width)
        extent = legend.get_window_extent()
        if width == 22 or extent.width < 0.97 * figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def _set_words(legend: Legend, names: Sequence[str], width: int = 44) -> None:
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(shown(name, width))


def _reach(ax: Axes, labels: float, y: float, edge: float, look: Mapping[str, Any]) -> None:
    if labels == math.inf:
        ax.plot(edge, y, **{**look, "marker": ">"}, markersize=6)
    elif math.isfinite(labels):
        ax.plot(labels, y, **look, markersize=5.5)


def _heat_map(ax: Axes, value_RC: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Cells with their numbers on a scale from 0 to the largest; nan is an empty cell."""
    known = value_RC[np.isfinite(value_RC)]
    top = max(known.max(initial=0.0), 1e-12)
    _fit_rows(ax, rows, len(columns) * max(0.3, _pitch(columns)), 0.6 + 0.07 * _letters(columns))
    if known.size:
        ax.imshow(value_RC, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(value_RC):
        if np.isfinite(value):
            ax.text(
                j, i, f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.3g}", ha="center", va="center",
                fontsize=SMALL, color="white" if value > 0.6 * top else "black",
            )  # fmt: skip
    _names_on(ax.yaxis, rows)
    _names_on(ax.xaxis, columns, rotation=90)
    ax.tick_params(length=0)


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
    _fit_rows(ax, list(share))
    _dress(ax, "Share of the images bought (%)", "", grid=False)
    _names_on(ax.yaxis, list(share))
    ax.set(xlim=(0, 100), ylim=(len(share) - 0.4, -0.6))
    _legend(ax, [Patch(color=colour) for colour in colours[: len(class_names)]], class_names)
    return ax


def _far_apart(n: int) -> list[int]:
    """0 to n - 1 with neighbours about n / 2 apart, so that shares side by side differ in greyscale as well."""
    half = (n + 1) // 2
    return [i // 2 + half * (i % 2) for i in range(n)]


def _sorted_shares(ax: Axes, share: Mapping[str, NDArray[np.float64]], looks: Mapping[str, Look]) -> Axes:
    handles = []
    for name, share_C in share.items():
        handles += _line(ax, np.arange(1, len(share_C) + 1), np.sort(share_C)[::-1], looks[name])
    _dress(ax, "Classes, from the most to the least bought", "Share of the images bought (%)")
    _count_on_x(ax)
    ax.set_ylim(bottom=0)
    _legend(ax, handles, list(share))
    return ax
