"""What the person is told of the run: accuracy with its interval, and whether further labels are worth their time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

from scipy import stats

from al_bench.records import RoundRecord

Z = 1.959964  # of a 95% interval
FURTHER = 200  # labels that the advice looks ahead
ROUNDS = 6  # the last ones, which the slope is fitted to
SHORT = 15 * 60  # seconds in which all the rest can as well be labelled


@dataclass(frozen=True)
class Measured:
    """Accuracy on the test images after one round, with its 95% interval. labels: trained on."""

    labels: int
    accuracy: float
    low: float
    high: float
    n_test: int


@dataclass(frozen=True)
class Picks:
    """How uncertain the net that chose the n images of a batch is of them.

    error: on which share of them it expects to be wrong, the mean of 1 - max p. low, high: the same of n random images
    of the pool, in 95 of 100 draws.
    """

    n: int
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Advice:
    """gain: what FURTHER labels would bring, as (expected, low, high) of a 95% interval. seconds: they would take.

    flipped: share of the unlabelled images whose predicted class changed with the last round. rest_seconds: labelling
    everything. None: not known yet. text: all of this in sentences.
    """

    gain: tuple[float, float, float] | None
    seconds: float | None
    flipped: float | None
    rest_seconds: float | None
    text: str


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share measured on n images (Wilson, 1927)."""
    centre, half = share + Z**2 / (2 * n), Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, (centre - half) / (1 + Z**2 / n)), min(1.0, (centre + half) / (1 + Z**2 / n))


def measured(records: Sequence[RoundRecord], info: dict[str, Any]) -> list[Measured]:
    """Of each round. info: the run.json, which says how many images are tested."""
    n = (info.get("dataset") or {}).get("n_test") or 1
    return [Measured(r.n_labels, r.metrics["accuracy"], *wilson(r.metrics["accuracy"], n), n) for r in records]


def weak_classes(
    record: RoundRecord, classes: Sequence[str], n_tested: Mapping[str, int]
) -> list[tuple[str, float, int]]:
    """(class, share of its test images that is predicted right, how many these are), the weakest first.

    A class is weak if the 95% interval of its share lies below the accuracy on all test images. n_tested: by class.
    """
    shares = zip(classes, record.metrics["per_class"], strict=False)  # the run may have begun before the last class
    known = [(name, share, n_tested.get(name, 0)) for name, share in shares if share is not None]
    weak = [(name, share, n) for name, share, n in known if n and wilson(share, n)[1] < record.metrics["accuracy"]]
    return sorted(weak, key=lambda found: found[1])


def expected_gain(curve: Sequence[Measured], further: int = FURTHER) -> tuple[float, float, float] | None:
    """What further labels would bring, if the error goes on falling as a power of the number of labels.

    A line is fitted to log(error) over log(labels) of the last rounds; the interval is the t interval of its slope. The
    test images are the same in all rounds, so it holds the scatter about the line and not their number. None with fewer
    than four rounds, and where the error does not fall.
    """
    last = curve[-ROUNDS:]
    if len(last) < 4 or last[0].labels == last[-1].labels:
        return None
    errors = [((1 - m.accuracy) * m.n_test + 0.5) / (m.n_test + 1) for m in last]  # no error at all has no logarithm
    line = stats.linregress([log(m.labels) for m in last], [log(error) for error in errors])
    if line.slope >= 0:
        return None
    half = stats.t.ppf(0.975, len(last) - 2) * line.stderr
    now, more = last[-1], (last[-1].labels + further) / last[-1].labels
    slopes = line.slope, line.slope + half, line.slope - half
    return tuple(max(-now.accuracy, (1 - now.accuracy) * (1 - more**slope)) for slope in slopes)


def advise(
    curve: Sequence[Measured], pace: float | None, left: int, flipped: float | None, picks: Picks | None = None
) -> Advice:
    """pace: seconds an answer. left: images without an answer. picks: of the last batch."""
    further = min(FURTHER, left)
    gain = expected_gain(curve, further) if further else None
    seconds, rest = (None, None) if pace is None else (pace * further, pace * left)
    said = []
    if not left:
        said.append("All images are labelled.")
    if gain:
        points = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * g for g in gain))
        time = f", {duration(seconds)} at your pace" if seconds is not None else ""
        said.append(f"The next {further:,} labels would bring about {points}{time}.")
    elif left and len(curve) >= 4:
        said.append("The last rounds do not show a rising accuracy, so what further labels would bring is not known.")
    elif left:
        said.append("After four rounds the curve says what further labels would bring.")
    if flipped is not None:
        said.append(f"The last round changed the predicted class of {flipped:.1%} of the unlabelled images.")
    if picks:
        said.append(beside_random(picks))
    if rest is not None and left and (rest <= SHORT or left <= FURTHER):
        said.append(
            f"Labelling the {left:,} images that are left takes {duration(rest)}: that is cheaper than choosing."
        )
    elif rest is not None and left:
        said.append(f"Labelling all {left:,} images that are left would take {duration(rest)}.")
    return Advice(gain, seconds, flipped, rest, " ".join(said))


def beside_random(picks: Picks) -> str:
    """Whether the images of a batch are more uncertain than random ones, in a sentence."""
    are = "not clearly more uncertain than" if picks.error >= picks.low else "less uncertain than"
    are = "more uncertain than" if picks.error > picks.high else are
    return (
        f"The last {picks.n:,} chosen images are {are} random ones: by its own probabilities the model would be wrong "
        f"on {picks.error:.1%} of them, and on {picks.low:.1%} to {picks.high:.1%} of {picks.n:,} random ones."
    )


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
