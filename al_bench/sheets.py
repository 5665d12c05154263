"""Figures of images: what was picked, what was uncertain. The figure takes the height that its images need.

Images are uint8 [H, W, 1 or 3], N of them; sizes are inches. Names are drawn as they are written.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from al_bench.plots import LINE, SMALL, plain, shown

if TYPE_CHECKING:
    from torch import Tensor


def contact_sheet(
    figure: Figure, rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], columns: int | None = None
) -> Figure:
    """Images under the title of each row, say a strategy and a round.

    columns: how many stand side by side, by itself as many as the longest row has, up to 20; longer rows are folded.
    """
    columns = columns or min(20, max((len(images) for _, images in rows), default=1)) or 1
    width, y = figure.get_figwidth(), 0.0
    places = []  # name, sheet, inches from the top, height
    for name, images in rows:
        words = shown(name if len(images) else f"{name}: none", int(15 * width))
        y += LINE * (words.count("\n") + 1) + 0.05
        sheet = _sheet(images, columns)
        places.append((words, sheet, y, width * len(sheet) / sheet.shape[1] if len(images) else 0))
        y += places[-1][3] + 0.08
    _set_height(figure, y)
    for words, sheet, top, height in places:
        _write(figure, 0.02, top, words)
        if height:
            _put(figure, sheet, 0, top, width, height)
    return figure


def picture(pixels: "Tensor") -> NDArray[np.uint8]:
    """[H, W, 1 or 3] of a data set's uint8 [1 or 3, H, W]."""
    return pixels.permute(1, 2, 0).numpy()


def most_uncertain(
    figure: Figure,
    images: Sequence[NDArray[np.uint8]],
    scores: Mapping[str, ArrayLike],
    captions: Sequence[str] | None = None,
    n: int = 10,
) -> Figure:
    """The n images of highest score, a row for each score, with the score and, if given, a caption below each.

    scores: name -> score_N; captions: N words such as true and predicted class.
    """
    top = {name: _highest(score_N, n) for name, score_N in scores.items()}
    cell = figure.get_figwidth() / max([1, *map(len, top.values())])
    side, places, y = 0.94 * cell, [], 0.0  # places: name, inches from the top, height, images with their words
    for name, chosen in top.items():
        y += LINE + 0.08
        height = side * max((images[i].shape[0] / images[i].shape[1] for i in chosen), default=0.0)
        words = {i: f"{np.asarray(scores[name])[i]:.3g}" for i in chosen}
        if captions is not None:
            words = {i: f"{shown(captions[i], max(4, int(15 * side)))}\n{word}" for i, word in words.items()}
        places.append((name, y, height, words))
        y += height + LINE * max((word.count("\n") + 1 for word in words.values()), default=0) + 0.1
    _set_height(figure, y)
    for name, y, height, words in places:
        _write(figure, 0.02, y, plain(name))
        for column, (i, word) in enumerate(words.items()):
            _put(figure, images[i], column * cell, y, side, height)
            _write(figure, column * cell + side / 2, y + height, word, ha="center", va="top")
    return figure


def _sheet(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """One RGB image of them all, `columns` side by side with white between; at least one empty place."""
    height = max((image.shape[0] for image in images), default=1)
    width = max((image.shape[1] for image in images), default=height)
    gap = max(1, width // 16)
    lines = -(-len(images) // columns) or 1
    sheet = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def _set_height(figure: Figure, inches: float) -> None:
    figure.set_layout_engine("none")  # images are placed to the inch
    figure.set_figheight(max(inches, 0.2))


def _put(figure: Figure, image: NDArray[np.uint8], x: float, y: float, width: float, height: float) -> None:
    """Inches from the left and from the top."""
    w, h = figure.get_size_inches()
    ax = figure.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))
    ax.imshow(_sheet([image], 1))
    ax.set_axis_off()


def _write(figure: Figure, x: float, y: float, words: str, ha: str = "left", va: str = "bottom") -> None:
    w, h = figure.get_size_inches()
    figure.text(x / w, 1 - (y + (0.02 if va == "top" else -0.02)) / h, words, fontsize=SMALL, ha=ha, va=va)


def _highest(score_N: ArrayLike, n: int) -> list[int]:
    """The first of equal scores first; nan is no score."""
    score_N = np.asarray(score_N, dtype=np.float64)
    order = np.argsort(-score_N, kind="stable")
    return [int(i) for i in order if not np.isnan(score_N[i])][:n]
