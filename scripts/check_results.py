"""Compare the committed results with bands, set after publications, after a pilot or by this project.

    python scripts/check_results.py        reads results/*/records.jsonl, writes results/checks.txt

There is a line for each band. It says pass, miss and by how much, or open: no run acquired as many labels as the band
asks for. Results that do not exist yet are left out. S seeds, R rounds.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as tests

from al_bench.analysis import acquired, stats
from al_bench.analysis.report import md

RESULTS = Path(__file__).parents[1] / "results"
MNIST = {"dataset": {"n_test": 10_000}}, {"stressor.copies": 5}  # as its runs' run.json and config.yaml say
ARTICLE, STEPS, EXPECTED, PAPER, PAPER_FULL, LATER_FULL, PILOT, OURS = (
    "set around the article's numbers",
    "expected of kept weights; the article's own table falls, too",
    "expected before it was measured, of nets trained to the end",
    "set after Kirsch et al. 2019",
    "set around Kirsch et al. 2019, whose pool is the full one",
    "set after Kirsch et al. 2023, whose pool is the full one",
    "set after two seeds of a pilot",
    "this project's",
)
# Means of six runs of Kirsch et al. 2019 with five copies:
AT_5_COPIES = {  # strategy -> label count -> (mean accuracy, how far ours may be from it)
    "random": {100: (85.9, 1.8), 200: (90.4, 0.8)},
    "bald": {100: (78.5, 3.0), 200: (85.1, 3.9)},
    "batchbald": {100: (89.3, 1.9), 200: (93.0, 0.5)},
}
AREA_AT_5_COPIES = {"random": (84.2, 1.3), "bald": (79.0, 1.3), "batchbald": (87.4, 0.5)}  # mean, sd; 20 to 200 labels


@dataclass(frozen=True)
class Band:
    folder: str  # in results/
    what: str  # is measured
    value: float
    unit: str
    source: str
    n: int  # seeds
    low: float = -inf
    high: float = inf
    above: float = -inf  # a lower bound that value must exceed
    beyond: bool = False  # the true value is larger than `value`, the last label count

    @property
    def verdict(self) -> str:
        within = self.low <= self.value <= self.high and self.value > self.above
        if not self.beyond:
            return "pass" if within else "miss"
        if self.value >= self.high:
            return "miss"
        return "pass" if within and self.high == inf else "open"

    def __str__(self) -> str:
        bounds = {"more than": self.above, "at least": self.low, "at most": self.high}
        wanted = " and ".join(f"{words} {bound:,g}" for words, bound in bounds.items() if abs(bound) < inf)
        gap = max(self.low - self.value, self.above - self.value, self.value - self.high)
        more, form = "more than " * self.beyond, ",g" if self.unit in ("labels", "rounds") else ".1f"
        missed = f", missed by {more}{gap:{form}}" if self.verdict == "miss" else ""
        return (
            f"{self.verdict}  {self.folder}: {self.what}: {more}{self.value:{form}} {self.unit}, n = {self.n} "
            f"(wanted: {wanted}{missed}; {self.source})"
        )


def main() -> list[Band]:
    found = bands()
    lines = "".join(f"{band}\n" for band in found)
    (RESULTS / "checks.txt").write_text(lines)
    print(lines, end="")
    return found


def bands() -> list[Band]:
    checks = {
        "gentle_introduction/as_published": as_published,
        "gentle_introduction/fair": fair,
        "gentle_introduction/trained": trained,
        "repeated_mnist": repeated_mnist,
    }
    there = (name for name in checks if (RESULTS / name / "records.jsonl").exists())
    return [band for name in there for band in checks[name](read(name))]


def as_list(folder: str) -> str:
    """Check all results, and return the bands of one folder as a list in Markdown."""
    return "\n".join(f"- {md(str(band))}" for band in main() if band.folder == folder)


def read(name: str) -> pd.DataFrame:
    """The records of a folder in results/: one row a round, with the accuracy in percent."""
    rounds = pd.read_json(RESULTS / name / "records.jsonl", lines=True)
    return rounds.assign(accuracy=[100 * metrics["accuracy"] for metrics in rounds["metrics"]])


def curves(rounds: pd.DataFrame, strategies: Iterable[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """labels_R, and accuracy_SR of each strategy by seed. Exits unless all have the same seeds and label counts.

    A label count is what was paid for: images of no class are in it.
    """
    loops = rounds[rounds["budget"] != "full"]
    n_foreign = loops["n_foreign"].fillna(0).astype(int) if "n_foreign" in loops else 0
    loops = loops.assign(n_labels=loops["n_labelled"] + n_foreign)
    table = loops.pivot(index=["strategy", "seed"], columns="n_labels", values="accuracy")
    ours = {name: table.loc[name].sort_index() for name in strategies}
    seeds = {name: list(t.index) for name, t in ours.items()}
    if len(set(map(tuple, seeds.values()))) != 1 or any(t.isna().to_numpy().any() for t in ours.values()):
        sys.exit(f"Not the same seeds and label counts for all: {seeds}")
    return table.columns.to_numpy(), {name: t.to_numpy() for name, t in ours.items()}


def as_published(rounds: pd.DataFrame) -> list[Band]:
    """The bands of the article's full data and, once it is there, of its loop."""
    full, loop = (rounds[(rounds["budget"] == "full") == is_full] for is_full in (True, False))
    n_full, n = full["seed"].nunique(), loop["seed"].nunique()

    def band(what: str, value: float, unit: str, n: int = n, source: str = ARTICLE, **bounds: float) -> Band:
        return Band("gentle_introduction/as_published", what, value, unit, source, n, **bounds)

    at_all = band("full data", full["accuracy"].mean(), "%", n_full, low=86.5, high=89.5)
    if loop.empty:
        return [at_all]
    loop = loop.sort_values(["seed", "round"])
    labels_R, curve = curves(loop, ["entropy"])
    accuracy_SR = curve["entropy"]
    n_thrown_away = (loop["weights_from"] != loop["round"]).groupby(loop["seed"]).sum()
    n_falls_S = (np.diff(accuracy_SR) < 0).sum(1)
    full_S = full.set_index("seed")["accuracy"].loc[sorted(loop["seed"].unique())].to_numpy()
    nearly_S = stats.labels_to(-0.25, labels_R, accuracy_SR - full_S[:, None])
    nearly = median_labels(nearly_S, labels_R)
    return [
        at_all,
        band("5,000 labels", loop[loop["n_labelled"] == 5000]["accuracy"].mean(), "%", low=75, high=83),
        band("rounds whose weights are thrown away", n_thrown_away.mean(), "rounds", low=8),
        band("rounds with a lower test accuracy than the one before", n_falls_S.mean(), "rounds", source=STEPS, high=0),
        band("to its own seed's full data less 0.25 points, median", **nearly, low=9000, high=14000),
    ]


def fair(rounds: pd.DataFrame) -> list[Band]:
    labels_R, curve = curves(rounds, ["random"])
    last, n = f"random at {labels_R[-1]:,} labels", len(curve["random"])
    return [Band("gentle_introduction/fair", last, curve["random"][:, -1].mean(), "%", EXPECTED, n, low=85, high=87)]


def trained(rounds: pd.DataFrame) -> list[Band]:
    """Whether the net is trained long enough: with all labels it reaches what the article's does."""
    full = rounds[rounds["budget"] == "full"]
    value, n = full["accuracy"].mean(), full["seed"].nunique()
    return [Band("gentle_introduction/trained", "full data", value, "%", ARTICLE, n, low=87)]


def median_labels(labels_S: np.ndarray, labels_R: np.ndarray) -> dict[str, Any]:
    """Value, unit and beyond of a Band: the median of label counts by nearest rank, at most the last of labels_R."""
    median = stats.quartiles(labels_S)[1]
    return {"value": min(median, float(labels_R[-1])), "unit": "labels", "beyond": median == inf}


def repeated_mnist(rounds: pd.DataFrame) -> list[Band]:
    labels_R, curve = curves(rounds, ("random", "bald", "batchbald", "power_bald"))
    n = len(curve["random"])
    area = {name: stats.aubc(labels_R, accuracy_SR) for name, accuracy_SR in curve.items()}
    gains = {f"{a} - {b}": area[a] - area[b] for a, b in (
        ("batchbald", "random"), ("power_bald", "random"), ("random", "bald"))}  # fmt: skip
    mean, worst = {k: v.mean() for k, v in gains.items()}, {k: v.min() for k, v in gains.items()}
    at = {name: {x: float(c[:, labels_R == x].mean()) for x in (100, 200)} for name, c in curve.items()}
    to_90 = {name: median_labels(stats.labels_to(90, labels_R, c), labels_R) for name, c in curve.items()}
    copies = {name: 100 * duplicate_share(rounds, name) for name in ("bald", "batchbald")}
    selecting = {name: sum(r["select"] for r in rounds.loc[rounds["strategy"] == name, "seconds"]) for name in curve}

    def band(what: str, value: float, unit: str, source: str, **bounds: float) -> Band:
        return Band("repeated_mnist", what, value, unit, source, n, **bounds)

    over, points = "mean accuracy over labels", "points"
    source = {"batchbald - random": PAPER, "power_bald - random": OURS, "random - bald": PAPER}
    found = [band(f"{k} in its worst seed, {over}", v, points, source[k], above=0) for k, v in worst.items()]
    found += [
        band(f"{k}, {over}", mean[k], points, source, low=low)
        for k, low, source in (
            ("batchbald - random", 1.5, PAPER), ("random - bald", 1.5, PAPER),
            ("power_bald - random", 3, PILOT), ("random - bald", 1, PILOT),
        )
    ]  # fmt: skip
    for name, (theirs, sd) in AREA_AT_5_COPIES.items():
        bounds = around(theirs, half_interval_of_difference(sd, 6))
        found.append(band(f"{name}, {over}", area[name].mean(), "%", PAPER_FULL, **bounds))
    found += [
        band("copies among what bald acquired", copies["bald"], "%", PAPER, low=50),
        band("copies among what batchbald acquired", copies["batchbald"], "%", PAPER, high=10),
        band("power_bald to 90%, median", **to_90["power_bald"], source=PILOT, high=120),
        band("random to 90%, median", **to_90["random"], source=PILOT, low=140, high=230),
        band("random to 90%, median", **to_90["random"], source=PAPER_FULL, low=150, high=190),
        band("batchbald to 90%, median", **to_90["batchbald"], source=PAPER_FULL, low=90, high=120),
        band("bald to 90%, median", **to_90["bald"], source=PAPER_FULL, low=240),
    ]
    for name, means in AT_5_COPIES.items():
        for x, (theirs, gap) in means.items():
            found.append(band(f"{name} at {x} labels", at[name][x], "%", PAPER_FULL, **around(theirs, gap)))
    for x in (100, 200):
        power, bald, batch = (at[name][x] for name in ("power_bald", "bald", "batchbald"))
        found += [
            band(f"power_bald - bald at {x} labels", power - bald, points, LATER_FULL, low=5),
            band(f"power_bald - batchbald at {x} labels, either way", abs(power - batch), points, LATER_FULL, high=1.5),
        ]
    gain = at["power_bald"][200] - at["random"][200]
    slower, as_fast = (selecting[a] / selecting[b] for a, b in (("batchbald", "power_bald"), ("power_bald", "bald")))
    return [
        *found,
        band("power_bald - random at 200 labels", gain, points, LATER_FULL, low=2.5),
        band("batchbald's seconds to select, of power_bald's", slower, "times", LATER_FULL, low=5),
        band("power_bald's seconds to select, of bald's", as_fast, "times", LATER_FULL, high=1.1),
    ]


def around(theirs: float, gap: float) -> dict[str, float]:
    """The bounds of a Band."""
    return {"low": round(theirs - gap, 1), "high": round(theirs + gap, 1)}


def half_interval_of_difference(sd: float, n: int) -> float:
    """Half the 95% interval of the difference between two means of n runs, both with the sd of n runs.

    The sd comes from n runs alone, so it has n - 1 degrees of freedom.
    """
    return float(tests.t.ppf(0.975, n - 1) * sd * np.sqrt(2 / n))


def duplicate_share(rounds: pd.DataFrame, strategy: str) -> float:
    """The share of acquired images that are another copy of an image acquired before, mean over seeds."""
    runs = rounds[rounds["strategy"] == strategy].sort_values("round").groupby("seed")["acquired"]
    return float(np.mean([acquired.duplicate_share(acquired.originals(np.concatenate([*a]), *MNIST)) for _, a in runs]))


if __name__ == "__main__":
    main()
