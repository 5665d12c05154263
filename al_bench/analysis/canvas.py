"""What all figures share: paper sizes, a look for each strategy, names as they are written, axes, legends, heat maps.

Every figure is made by `new_figure`, one printed column wide. Where its ax stands alone, the figure grows with its
legend, rows or columns, so that many strategies cost paper and not readability. No `$` in a name starts a formula, and
a leading underscore hides nothing.
"""

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from al_bench.text import printable

COLUMN, PAGE, HEIGHT = 3.5, 7.0, 2.6  # inches
FONT, SMALL = 8, 7  # points
LINE = 0.125  # inches from line to line of small letters
# Okabe & Ito (2008). Black is random's; yellow is left out, a thin line of it is lost on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# After each twelve strategies the dashes shift by one: 24 differ in colour and dashes, 48 in marker and dashes.
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
DASHES = ("-", "--", ":", "-.")
MANY = 14  # curves; a legend of more takes a figure as wide as a page
NAME = 28  # letters of a name in one line beside a row
LONGEST = 300  # letters of a name

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
            "linestyle": DASHES[(i + i // len(MARKERS)) % len(DASHES)],
        }
    return looks


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """As floats, with nan for infinities: their sums would warn, and matplotlib leaves nan out."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def plain(text: str) -> str:
    """An escaped dollar is drawn as a dollar; two bare ones would be read as a formula."""
    return printable(text).replace("$", r"\$")


def shown(name: str, width: int) -> str:
    """A user's name in lines of at most `width` letters."""
    return plain("\n".join(_wrapped(name, width)))


def _wrapped(name: str, width: int) -> list[str]:
    """A name in lines; of one that would fill a page, the beginning and the end."""
    name = printable(name)
    short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]} ... {name[-LONGEST // 2 :]}"
    return textwrap.wrap(short, width) or [""]


def line(ax: Axes, x: ArrayLike, y: ArrayLike, look: Mapping[str, str]) -> list[Line2D]:
    return ax.plot(x, y, **look, **thin(y))


def thin(y: ArrayLike) -> dict[str, Any]:
    """Markers at no more than fifteen points, so that the dashes between them are seen."""
    return {"linewidth": 1.3, "markersize": 4, "markevery": -(-len(y) // 15) or 1}


def band(n: int) -> dict[str, float]:
    """The more bands there are, the paler each is: many would make one dark cloud."""
    return {"alpha": min(0.13, 0.8 / n), "linewidth": 0}


def dress(ax: Axes, xlabel: str, ylabel: str, grid: bool = True) -> None:
    ax.set_xlabel(xlabel, fontsize=FONT)
    ax.set_ylabel(ylabel, fontsize=FONT)
    ax.tick_params(labelsize=FONT)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(alpha=0.3, linewidth=0.6)


def count_on_x(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def names_on(axis: Any, names: Iterable[str], **kwargs: Any) -> None:
    words = [shown(name, NAME) for name in names]
    axis.set_ticks(range(len(words)), words, fontsize=FONT, **kwargs)


def _lines(names: Iterable[str], width: int) -> list[list[str]]:
    return [_wrapped(name, width) for name in names]


def letters(names: Iterable[str]) -> int:
    return max((len(line) for lines in _lines(names, NAME) for line in lines), default=0)


def pitch(names: Iterable[str]) -> float:
    """Inches from name to name, with room for the name of most lines."""
    return 0.09 + 0.135 * max(map(len, _lines(names, NAME)), default=1)


def fit_rows(ax: Axes, names: Collection[str], width: float = 0.0, below: float = 0.4) -> None:
    """Size the figure for a row a name, the names beside the rows, and `below` inches under them."""
    height = 0.5 + below + max(len(names), 2) * pitch(names)
    fit(ax, height, 0.5 + max(width, 2.2) + 0.07 * letters(names))


def _is_alone(ax: Axes) -> bool:
    return isinstance(ax.figure, Figure) and ax.figure.axes == [ax]


def fit(ax: Axes, height: float, width: float = 0.0) -> None:
    """Give the figure this height and at least this width, in inches, where the ax is alone in it."""
    if _is_alone(ax):
        ax.figure.set_size_inches(max(ax.figure.get_figwidth(), width), height)


def legend(ax: Axes, handles: Sequence[Artist], names: Iterable[str]) -> None:
    """Below the axes, in as many columns as fit, and the figure grows. Inside the axes where the figure has others."""
    names, figure = list(names), ax.figure
    if not names:
        return
    # matplotlib before 3.10 leaves out labels that begin with an underscore: the words are set afterwards
    blank = [" "] * len(names)
    if not _is_alone(ax):
        return _set_words(ax.legend(handles, blank, fontsize=SMALL, framealpha=0.8), names)
    if len(names) > MANY:
        fit(ax, figure.get_figheight() + 1, PAGE)
    for columns, width in [(n, 44) for n in range(min(4, len(names)), 0, -1)] + [(1, 22)]:
        box = figure.legend(
            handles, blank, loc="outside lower center", ncols=columns, fontsize=FONT, frameon=False,
            borderaxespad=0.2, columnspacing=1.2, handlelength=2.6,
        )  # fmt: skip
        _set_words(box, names, width)
        extent = box.get_window_extent()
        if width == 22 or extent.width < 0.97 * figure.bbox.width:
            break
        box.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def _set_words(legend: Legend, names: Sequence[str], width: int = 44) -> None:
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(shown(name, width))


def heat_map(ax: Axes, value_RC: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Cells with their numbers, coloured from 0 to the largest; nan is an empty cell."""
    known = value_RC[np.isfinite(value_RC)]
    top = max(known.max(initial=0.0), 1e-12)
    fit_rows(ax, rows, len(columns) * max(0.3, pitch(columns)), 0.6 + 0.07 * letters(columns))
    if known.size:
        ax.imshow(value_RC, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(value_RC):
        if np.isfinite(value):
            ax.text(
                j, i, f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.3g}", ha="center", va="center",
                fontsize=SMALL, color="white" if value > 0.6 * top else "black",
            )  # fmt: skip
    names_on(ax.yaxis, rows)
    names_on(ax.xaxis, columns, rotation=90)
    ax.tick_params(length=0)
