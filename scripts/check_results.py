"""The committed results against published numbers: one line a band, pass or miss, and by how much.

python scripts/check_results.py        reads results/*/records.jsonl, writes results/checks.txt
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from al_bench import results, stats

RESULTS = Path(__file__).parents[1] / "results"
MNIST = {"dataset": {"n_test": 10_000}}, {"stressor.copies": 5}


@dataclass(frozen=True)
class Band:
    of: str  # the folder in results/
    what: str
    value: float
    low: float = -inf
    high: float = inf
    unit: str = "points"

    def __str__(self) -> str:
        gap = max(self.low - self.value, self.value - self.high)
        wanted = " to ".join(f"{x:g}" for x in (self.low, self.high) if abs(x) < inf)
        kind = "at most " if self.low == -inf else "at least " if self.high == inf else ""
        missed = "" if gap <= 0 else f", missed by {gap:.1f}"
        return (
            f"{'miss' if missed else 'pass'}  {self.of}: {self.what}: {self.value:.1f} {self.unit} "
            f"(wanted: {kind}{wanted}{missed})"
        )


def main() -> None:
    lines = "".join(f"{band}\n" for band in bands())
    (RESULTS / "checks.txt").write_text(lines)
    print(lines, end="")


def bands() -> list[Band]:
    return [*repeated_mnist(read("repeated_mnist")), *frozen_features(read("frozen_features"))]


def read(name: str) -> pd.DataFrame:
    """A row a round: dataset, budget, strategy, seed, n_labelled, accuracy, acquired where it was kept."""
    return pd.read_json(RESULTS / name / "records.jsonl", lines=True).assign(
        accuracy=lambda rounds: [metrics["accuracy"] for metrics in rounds["metrics"]]
    )


def curves(rounds: pd.DataFrame, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """labels_R and accuracy_SR in percent, by seed."""
    table = rounds[rounds["strategy"] == strategy].pivot(index="seed", columns="n_labelled", values="accuracy")
    return table.columns.to_numpy(), 100 * table.to_numpy()


def repeated_mnist(rounds: pd.DataFrame) -> list[Band]:
    """Kirsch et al. (2019) and Kirsch et al. (2023), Repeated-MNIST; the bands are those of the small version."""
    area = {name: stats.aubc(*curves(rounds, name)) for name in ("random", "bald", "batchbald", "power_bald")}
    to_90 = {name: median_labels_to(90, *curves(rounds, name)) for name in ("random", "power_bald")}
    copies = {name: 100 * duplicate_share(rounds, name) for name in ("bald", "batchbald")}
    band = "repeated_mnist"
    return [
        Band(band, "PowerBALD above random, mean over labels", (area["power_bald"] - area["random"]).mean(), low=3),
        Band(band, "random above BALD, mean over labels", (area["random"] - area["bald"]).mean(), low=1),
        Band(band, "BatchBALD above random in its worst seed", (area["batchbald"] - area["random"]).min(), low=0),
        Band(band, "PowerBALD above random in its worst seed", (area["power_bald"] - area["random"]).min(), low=0),
        Band(band, "random above BALD in its worst seed", (area["random"] - area["bald"]).min(), low=0),
        Band(band, "copies among what BALD bought", copies["bald"], low=50, unit="%"),
        Band(band, "copies among what BatchBALD bought", copies["batchbald"], high=10, unit="%"),
        Band(band, "PowerBALD to 90%, median", to_90["power_bald"], high=120, unit="labels"),
        Band(band, "random to 90%, median", to_90["random"], low=140, high=230, unit="labels"),
    ]


def median_labels_to(target: float, labels_R: np.ndarray, accuracy_SR: np.ndarray) -> float:
    return stats.quartiles(stats.labels_to(target, labels_R, accuracy_SR, "first"))[1]


def duplicate_share(rounds: pd.DataFrame, strategy: str) -> float:
    runs = rounds[rounds["strategy"] == strategy].groupby("seed")["acquired"]
    return float(np.mean([stats.duplicate_share(results.originals(np.concatenate([*a]), *MNIST)) for _, a in runs]))


def frozen_features(rounds: pd.DataFrame) -> list[Band]:
    ours: Any = rounds[(rounds["dataset"] == "dogs_vs_cats") & (rounds["budget"] == "low")]
    labels_R, accuracy_SR = curves(ours, "entropy")
    at_200 = accuracy_SR[:, labels_R == 200].mean()
    return [Band("frozen_features", "cats and dogs, entropy, 200 labels", at_200, low=90, unit="%")]


if __name__ == "__main__":
    main()
