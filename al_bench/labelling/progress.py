"""What a session tells: an image to label, and how far the labelling is."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from al_bench.labelling.advice import Measured
from al_bench.labelling.labels import TEST, Label
from al_bench.waiting import LabelsWanted

PACE = 50  # answers that the pace is measured on


@dataclass(frozen=True)
class Item:
    """An image to label. The role is not for the person's eyes."""

    path: str
    sha256: str
    file: Path
    role: str
    round: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Progress:
    """done, left: of the images asked for now. labelled: images with an answer. seconds: a typical answer takes."""

    state: str  # preparing, labelling, training, finished or failed
    done: int
    left: int
    labelled: int
    images: int
    seconds: float | None
    counts: dict[str, int]  # answers by class, skip and unsure, of all images
    accuracy: list[Measured]
    weak: list[tuple[str, float, int]]  # as advice.weak_classes
    flipped: float | None  # share of the pool whose predicted class changed with the last round
    error: str | None


def queue_of(wanted: LabelsWanted, file: Callable[[str], Path]) -> list[Item]:
    """The images whose labels the run waits for, in its order. file: where each lies."""
    roles = enumerate(wanted.roles.items())
    return [Item(path, "", file(path), role, wanted.round, rank) for rank, (path, role) in roles]


def pace(labels: Sequence[Label]) -> float | None:
    """Seconds that a typical one of the last answers took. labels: in the order in which they were given."""
    times = [label.seconds for label in labels[-PACE:] if label.seconds is not None]
    return statistics.median(times) if times else None


def tested(labels: Iterable[Label]) -> Counter[str]:
    """How many test images have each answer."""
    return Counter(label.answer for label in labels if label.role == TEST)
