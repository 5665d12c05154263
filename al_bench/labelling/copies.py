"""Near-duplicates: images that are the same picture, saved again, resized or compressed. They are asked for once.

The answer of one is the answer of all. Each copy gets a line of its own in labels.jsonl, which says whose answer it is.
N images, S the side of a small grey picture.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from al_bench.data.cache import release_pages
from al_bench.labelling.images import Listing
from al_bench.labelling.labels import PROGRAM, Label, Labels
from al_bench.labelling.progress import Item
from al_bench.text import one_line

WHO = "copy of "  # of a copy's label, before the path of the image whose answer it is
# Two pictures are the same if their grey pixels, SIDE x SIDE, differ by less than SHARE of the contrast, as root mean
# squares, and none by more than MOST. Chosen on one half of the cats and dogs: photographs that were saved again differ
# by up to 0.07, those of half the size by up to 0.11, and two that are not the same by more than 0.13.
SIDE, SHARE, MOST = 32, 0.08, 24.0
FLAT = 4.0  # standard deviation of grey levels below which a picture shows too little to be compared
COARSE, NEAR = 4, 2.5  # side of the first comparison, and its largest root mean square: 1 for re-saved pictures
GREY = (0.299, 0.587, 0.114)
AT_ONCE = 64  # images that are made grey together


def same_pictures(paths: Sequence[str], images: Tensor) -> dict[str, list[str]]:
    """The paths of a picture by each of them, where it has several. images: uint8 [N, channels, H, W], of the paths."""
    groups = [[paths[row] for row in group] for group in same_rows(images)]
    return {path: group for group in groups for path in group}


def same_rows(images: Tensor) -> list[list[int]]:
    """Groups of rows that show the same picture as the first of them. images: uint8 [N, channels, H, W]."""
    grey_NSS = np.concatenate([_grey(images[i : i + AT_ONCE]) for i in range(0, len(images), AT_ONCE)])
    contrast_N = grey_NSS.std((1, 2))
    kept = np.flatnonzero(contrast_N >= FLAT)
    if not len(kept):
        return []
    coarse = F.interpolate(torch.from_numpy(grey_NSS[kept])[:, None], (COARSE, COARSE), mode="area")
    tree = cKDTree(coarse.flatten(1).numpy() / COARSE)
    is_free_N = np.ones(len(images), dtype=bool)
    groups = []
    for i, point in zip(kept, tree.data, strict=True):
        if not is_free_N[i]:
            continue
        near = kept[tree.query_ball_point(point, NEAR)]
        near = near[(near > i) & is_free_N[near]]
        rest = np.abs(grey_NSS[near] - grey_NSS[i])
        limit = SHARE * np.minimum(contrast_N[near], contrast_N[i])
        found = near[(np.sqrt((rest**2).mean((1, 2))) < limit) & (rest.max((1, 2)) < MOST)]
        if len(found):
            is_free_N[found] = False
            groups.append([int(i), *sorted(map(int, found))])
    return groups


def _grey(images_BCHW: Tensor) -> np.ndarray:
    """[B, S, S], float32"""
    side = min(SIDE, images_BCHW.shape[-1])
    small = F.interpolate(images_BCHW.float(), (side, side), mode="area")
    release_pages()
    return (small[:, 0] if len(small[0]) == 1 else torch.einsum("bchw,c->bhw", small, torch.tensor(GREY))).numpy()


def left_out(undecoded: Sequence[str]) -> list[str]:
    """A sentence on files that cannot be decoded, which names the first ones; none if there are none."""
    if not undecoded:
        return []
    names, n_more = ", ".join(map(one_line, undecoded[:3])), len(undecoded) - 3
    return [
        f"{len(undecoded):,} files cannot be decoded and are left out: {names}{f' and {n_more:,} more' * (n_more > 0)}."
    ]


class Copies:
    """The answers that images of the same picture share, and the files that hold no picture."""

    def __init__(self, labels: Labels, listing: Listing) -> None:
        self.labels, self.listing = labels, listing
        self.groups: dict[str, list[str]] = {}  # of `same_pictures`
        self.undecoded: list[str] = []  # the paths of files that cannot be decoded

    def find(self, paths: Sequence[str], images: Tensor) -> None:
        """paths: of the listed images that could be decoded. images: uint8 [N, channels, H, W], of these paths"""
        decoded = {*paths}
        self.undecoded = [path for path in self.listing.paths if path not in decoded]
        self.groups = same_pictures(paths, images)

    def n_images(self) -> int:
        """How many of the listed images have an answer or can get one."""
        return len(self.listing.images) - sum(path not in self.labels.current for path in self.undecoded)

    def once(self, items: Iterable[Item]) -> list[Item]:
        """The items without those that show the same picture as an earlier one."""
        first: dict[str, Item] = {}
        for item in items:
            first.setdefault(self._picture(item.path), item)
        return [*first.values()]

    def follow(self, queue: Iterable[Item]) -> list[str]:
        """Give each copy the answer that its original has now, and each image of the queue that of its picture.

        Returns the paths whose answer was another one before. Raises UserError if the disk is full.
        """
        changed = []
        for label in self._copied():
            now = self.labels.current.get(original_of(label))
            if now is None:
                self.labels.undo(label.path)
            elif now.answer != label.answer:
                self._copy(now, label, label.sha256)
            else:
                continue
            changed.append(label.path)
        given = self._given()
        for item in queue if given else ():
            answer = given.get(self._picture(item.path))
            if answer and item.path not in self.labels.current:
                with suppress(OSError):  # a lost file is told when its turn comes
                    self._copy(answer, item, self.listing.sha256(item.path))
        return changed

    def told(self) -> tuple[str, ...]:
        """What the person is told of the copies and of files that cannot be decoded, in sentences."""
        said = left_out(self.undecoded)
        if n := len(self._copied()):
            said.append(f"{n:,} images show the picture of another file and take its answer: labels.jsonl says which.")
        return (*said,)

    def _picture(self, path: str) -> str:
        return self.groups[path][0] if path in self.groups else path

    def _copied(self) -> list[Label]:
        return [label for label in self.labels.order() if original_of(label)]

    def _given(self) -> dict[str, Label]:
        """The answer that a person gave to a picture with copies."""
        labels = (self.labels.current.get(path) for path in self.groups)
        own = [label for label in labels if label and label.who != PROGRAM and not original_of(label)]
        return {self._picture(label.path): label for label in own}

    def _copy(self, given: Label, to: Item | Label, sha256: str | None) -> None:
        label = Label(to.path, given.answer, to.role, sha256, None, to.round, to.rank, who=f"{WHO}{given.path}")
        self.labels.add(label, correct_test=True)


def original_of(label: Label) -> str | None:
    """The path of the image whose answer this is, or None if it is the image's own."""
    return label.who.removeprefix(WHO) if label.who and label.who.startswith(WHO) else None
