"""The bounds of each number of the configuration. Nothing here imports torch."""

from collections.abc import Iterator
from math import inf, isfinite
from typing import Any, NamedTuple

from al_bench.provenance import n_cores

LARGEST = 10**9  # images, steps or labels: a larger number is a typing error
THREADS = max(16, 4 * n_cores())  # more threads only wait for each other, and thousands crash torch


class Bound(NamedTuple):
    low: float
    high: float = LARGEST
    note: str = ""  # ends the message: the unit, another allowed value, or the reason for the bound
    above_low: bool = False  # low itself is refused
    below_high: bool = False  # high itself is refused
    whole: bool = False  # the schema does not check that it is a whole number

    def holds(self, value: float) -> bool:
        low = self.low < value if self.above_low else self.low <= value
        high = value < self.high if self.below_high else value <= self.high
        return isfinite(value) and low and high

    def __str__(self) -> str:
        if self.high in (LARGEST, inf):
            words = f"above {self.low:,}" if self.above_low else f"{self.low:,} or more"
        elif self.above_low:
            between, to = ("between", "and") if self.below_high else ("above", "and at most")
            words = f"{between} {self.low:,} {to} {self.high:,}"
        else:
            words = f"from {self.low:,} to {'below ' if self.below_high else ''}{self.high:,}"
        return words + self.note


SHARE = Bound(0, 1)
COUNT, LENGTH = Bound(0), Bound(1, note=", or null")
BOUNDS = {
    "seed": Bound(0, inf),
    "dataset.image_size": Bound(8, 4096, " pixels"),
    "dataset.test_fraction": Bound(0, 1, above_low=True, below_high=True),
    "dataset.mean": Bound(0, 1, " (of images in [0, 1])"),
    "dataset.std": Bound(0, 1, " (of images in [0, 1])", above_low=True),
    "dataset.max_pixels": LENGTH,
    "dataset.known": COUNT._replace(note=", or null"),
    "dataset.white": Bound(0, 2**32, above_low=True),
    "stressor.imbalance": Bound(1, note=" (1 is balanced)"),
    "stressor.label_noise": Bound(0, 1, below_high=True),
    "stressor.images": Bound(2, note=", or null for all"),
    "stressor.copies": Bound(1, 10_000),
    "stressor.noise": Bound(0, 1000),
    "stressor.foreign": Bound(0, note=" classes"),
    "model.dropout": Bound(0, 1, below_high=True),
    "model.penalty": Bound(0, 1000, ", or null", above_low=True),
    "budget.initial": Bound(1, note=" labels to start from"),
    "budget.query": Bound(1, note=" labels a round", whole=True),
    "budget.rounds": Bound(0, note=", or null until the pool is empty"),
    "budget.validation": COUNT,
    "budget.stop.tolerance": SHARE,
    "trainer.batch_size": Bound(2, 2**16, " (batch norm needs two images)"),
    "trainer.predict_batch_size": Bound(1, 2**20),
    "trainer.max_steps": LENGTH,
    "trainer.max_epochs": LENGTH,
    "trainer.steps_per_epoch": LENGTH,
    "trainer.later_max_epochs": LENGTH,
    "trainer.test_passes": Bound(2, 10_000, " passes with dropout, or null for one without"),
    "trainer.early_stopping.patience": Bound(1, note=" epochs, or null"),
    "trainer.early_stopping.min_delta": Bound(0, 1000),
    "trainer.num_workers": Bound(0, THREADS, f" ({n_cores()} cores are here)"),
    "trainer.threads": Bound(1, THREADS, f" ({n_cores()} cores are here)"),
    "features.width": Bound(1, 2**16),
    "logger.images": Bound(0, 10_000),
    "strategy.passes": Bound(2, 10_000, ", or null", whole=True),
    "strategy.members": Bound(2, 1000, ", or null", whole=True),
    "strategy.candidates": LENGTH._replace(whole=True),
}


def violations(flat: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each number that is out of its bounds. flat: the configuration with dotted keys."""
    for key, value in flat.items():
        if key == "budget.query" and value in ([], None):
            yield f"budget.query={value}: labels a round, one number or a list of several."
        elif bound := BOUNDS.get(key):
            for number in value if isinstance(value, list) else [value]:
                kinds = int if bound.whole else int | float
                if number is not None and not (is_number(number, kinds) and bound.holds(number)):
                    yield f"{key}={value}: {bound}."
        elif key.startswith(("model.optimizer.", "model.options.")):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not isfinite(number):
                    yield f"{key}={value}: a finite number."


def is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
