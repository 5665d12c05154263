"""The metric that strategies are judged by: which of the recorded ones, what is better, and how its values are written.

A share is recorded as a fraction and written in per cent; its differences are points. Other metrics are written as they
are recorded, with their unit where they have one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, isfinite, log10

from al_bench.errors import UserError
from al_bench.text import one_line


@dataclass(frozen=True)
class Metric:
    name: str  # its key in the records
    words: str  # in a sentence: accuracy
    label: str  # at an axis, without the unit: Test accuracy
    unit: str = ""  # "%" for a share
    higher_is_better: bool = True

    @property
    def is_share(self) -> bool:
        return self.unit == "%"

    @property
    def sign(self) -> int:
        """sign * value is a score: higher is better, whatever the metric."""
        return 1 if self.higher_is_better else -1

    @property
    def direction(self) -> str:
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    @property
    def scale(self) -> int:
        """A recorded value times this is what is drawn."""
        return 100 if self.is_share else 1

    @property
    def unit_of_difference(self) -> str:
        return "points" if self.is_share else self.unit

    @property
    def in_unit(self) -> str:
        """What stands behind a heading: " (nats)", or nothing."""
        return f" ({self.unit})" if self.unit else ""

    @property
    def difference_axis(self) -> str:
        words = self.words[:1].upper() + self.words[1:] if self.name in METRICS else self.words
        unit = "percentage points" if self.is_share else self.unit
        return f"{words} minus random's" + (f"\n({unit})" if unit else "")

    def target_axis(self, target: float) -> str:
        level = self.level(target)
        return f"Labels to {level} test {self.words}" if self.is_share else f"Labels to a test {self.words} of {level}"

    @property
    def area(self) -> str:
        """In words, the area under the curve divided by its width."""
        return f"mean {self.words} over the labels"

    # -- numbers in words --

    def value(self, x: float) -> str:
        return f"{100 * x:.1f}%" if self.is_share else f"{x:.4g}"

    def level(self, x: float) -> str:
        """With the unit."""
        return self.value(x) if self.is_share or not self.unit else f"{self.value(x)} {self.unit}"

    def target(self, x: float) -> str:
        """With the unit, and no decimals where it is a whole per cent."""
        return f"{x:.0%}" if self.is_share and round(100 * x, 6) == round(100 * x) else self.level(x)

    def difference(self, x: float) -> str:
        """With its sign and without the unit; a small loss is no -0.0."""
        return f"{100 * x:+z.1f}" if self.is_share else f"{x:+z.3g}"

    def bounds(self, low: float | None, high: float | None) -> str:
        """The interval of a difference; nothing where there is none."""
        return "" if low is None else f" [{self.bound(low)}, {self.bound(high)}]"

    def bound(self, x: float) -> str:
        """As a difference, but a bound just below 0 is -0.0: on which side of 0 it lies is what it says."""
        return f"-{self.difference(-x)[1:]}" if x < 0 else self.difference(x)

    def gain(self, x: float) -> str:
        """A difference with the unit."""
        return f"{self.difference(x)} {self.unit_of_difference}".rstrip()

    def amount(self, x: float) -> str:
        """The size of a difference, with the unit."""
        return f"{100 * x:.1f} points" if self.is_share else f"{x:.2g} {self.unit}".rstrip()

    # -- numbers that a comparison needs --

    def negligible(self, level: float) -> float:
        """A difference too small to matter: half a point of a share, else 1% of `level`."""
        return 0.005 if self.is_share else 0.01 * abs(level)

    def rounded_target(self, score: float) -> float:
        """The best value in whole per cents, or of two digits, that this score (sign * value) reaches."""
        if self.is_share:
            return self.sign * floor(100 * score + 1e-9) / 100  # 100 * 0.57 is less than 57
        step = 10.0 ** (floor(log10(abs(score))) - 1) if score else 1.0
        n = floor(score / step)
        target = float(f"{n * step:.2g}")
        return self.sign * (target if target <= score else float(f"{(n - 1) * step:.2g}"))

    @property
    def rounding(self) -> str:
        """What rounded_target gives, in words."""
        best = "highest" if self.higher_is_better else "lowest"
        return f"{best} whole per cent" if self.is_share else f"{best} value of two digits"


RECORDED_IN_TRAINING = (
    "Metrics are recorded while a run trains: a finished study gets no new one. To record one, set metrics=[...] and "
    "study=NAME, a new name."
)
ACCURACY = Metric("accuracy", "accuracy", "Test accuracy", "%")
METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY,
        Metric("balanced_accuracy", "balanced accuracy", "Balanced test accuracy", "%"),
        Metric("macro_f1", "macro F1", "Test macro F1", "%"),
        Metric("worst_class", "worst class's recall", "Worst class's recall", "%"),
        Metric("nll", "NLL", "Test NLL", "nats", higher_is_better=False),
        Metric("ece", "ECE", "ECE", higher_is_better=False),
        Metric("brier", "Brier score", "Test Brier score", higher_is_better=False),
    )
}


def named(name: str, lower_is_better: bool = False) -> Metric:
    """The metric of this name. lower_is_better: of a metric of the user's. Raises UserError where that is wrong."""
    if name not in METRICS:
        words = one_line(name)
        return Metric(name, words, f"Test {words}", higher_is_better=not lower_is_better)
    if lower_is_better and METRICS[name].higher_is_better:
        raise UserError(f"--lower-is-better: of {name} higher is better. Leave --lower-is-better out.")
    return METRICS[name]


def check_recorded(metric: Metric, recorded: Iterable[str]) -> None:
    """recorded: the names that records have as a number in each round. Raises UserError where it is none of them."""
    if metric.name not in (names := sorted(set(recorded))):
        there = (
            f"These runs have {', '.join(names)}. {RECORDED_IN_TRAINING}" if names else "No run has finished a round."
        )
        raise UserError(f"--metric {one_line(metric.name)}: no run has it as one number in each round. {there}")


def check_target(metric: Metric, target: float | None) -> None:
    """Raises UserError for what the metric cannot be."""
    if target is None:
        return
    if metric.is_share and not 0 < target < 1:
        noun = "an accuracy" if metric is ACCURACY else f"{metric.words} is"
        raise UserError(f"--target {target}: {noun} between 0 and 1, such as 0.9.")
    if not isfinite(target):
        raise UserError(f"--target {target}: {metric.words} is a finite number, such as 0.5.")
