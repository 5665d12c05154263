"""Simulate the verdict: false calls, coverage, power, and what the committed calls become by another test.

    python scripts/calibration.py [--sweeps 2000]

A simulated sweep has the curves of a committed comparison: its random arm's mean curve, an effect of each seed that all
arms share (normal, with the covariance of the records), and each arm's own residual, drawn from the committed ones.
In a null sweep no strategy differs from random. Writes results/calibration/. It takes fifteen minutes of two cores.
"""

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import check_results
import numpy as np
import published

from al_bench.analysis import family, power, report, stats
from al_bench.analysis.compare import CONTROL, RANDOM
from al_bench.analysis.family import FamilyTest
from al_bench.analysis.stats import ALPHA, FEWEST
from al_bench.provenance import sha256_of

OUT = check_results.RESULTS / "calibration"
CELLS = ("digits", "frozen_features/dogs_vs_cats-low", "frozen_features/cifar10-high")  # what sweeps look like
COMMITTED = (
    "digits", "repeated_mnist", "gentle_introduction/fair", "gentle_introduction/trained",
    "harder_data/long_tail", "harder_data/foreign",
    "frozen_features/fashion_mnist-low", "frozen_features/fashion_mnist-medium",
    *(f"frozen_features/{d}-{b}" for d in ("cifar10", "dogs_vs_cats") for b in ("low", "medium", "high")),
)  # fmt: skip
SEEDS, FAMILIES = (3, 5, 6, 7, 8, 10, 15, 20), (1, 5, 15)
EFFECT = 1.5  # standard deviations of the paired difference, of the one strategy that is better
TESTS = {method.short: method.test for method in family.METHODS.values()}


@dataclass(frozen=True)
class Cell:
    """What sweeps are drawn from. S committed seeds, R label counts, N residual curves."""

    labels_R: np.ndarray
    mean_R: np.ndarray
    shared_SR: np.ndarray  # of each seed, what all arms have in common
    own_NR: np.ndarray

    def sweep(self, n: int, arms: int, rng: np.random.Generator) -> np.ndarray:
        """Curves of random and of strategies that equal it: accuracy_ASR with n seeds, random first."""
        s = len(self.shared_SR)
        shared_SR = rng.standard_normal((n, s)) @ self.shared_SR / sqrt(s - 1)
        own_ASR = self.own_NR[rng.integers(len(self.own_NR), size=(arms, n))]
        return self.mean_R + shared_SR + own_ASR


def cell(folder: str) -> Cell:
    labels_R, accuracy_MSR, _ = committed(folder)
    m, s, _ = accuracy_MSR.shape
    residual_MSR = accuracy_MSR - accuracy_MSR.mean(1, keepdims=True)
    shared_SR = residual_MSR.mean(0)
    own_MSR = (residual_MSR - shared_SR) * sqrt(m / (m - 1) * s / (s - 1))
    return Cell(labels_R, accuracy_MSR[0].mean(0), shared_SR, own_MSR.reshape(m * s, -1))


def committed(folder: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """labels_R, accuracy_MSR and the names of the strategies, random first, as fractions."""
    rounds = check_results.read(folder)
    names = [RANDOM, *sorted(set(rounds[rounds["budget"] != "full"]["strategy"]) - {RANDOM})]
    labels_R, curves = check_results.curves(rounds, names)
    return labels_R, np.stack([curves[name] for name in names]) / 100, names


def differences(labels_R: np.ndarray, accuracy_ASR: np.ndarray) -> np.ndarray:
    """Areas minus random's: difference_ST."""
    area_AS = np.stack([stats.aubc(labels_R, accuracy_SR) for accuracy_SR in accuracy_ASR])
    return (area_AS[1:] - area_AS[0]).T


def called(tests: list[FamilyTest | None]) -> list[bool]:
    return [t is not None and t.p <= ALPHA for t in tests]


def simulate(c: Cell, n: int, strategies: int, sweeps: int, rng: np.random.Generator) -> dict[str, float]:
    """Shares of null sweeps, and of sweeps in which the first strategy is better by EFFECT."""
    draws = [differences(c.labels_R, c.sweep(n, 1 + strategies, rng)) for _ in range(sweeps)]
    effect = EFFECT * np.std([d[0, 0] for d in draws])
    found: dict[str, list[float]] = {}

    def add(what: str, holds: float) -> None:
        found.setdefault(what, []).append(holds)

    for d_ST in draws:
        area = stats.paired_difference(d_ST[:, 0], np.zeros(n))
        add("alone", area.low <= 0 <= area.high)
        if n < FEWEST:
            continue
        better_ST = d_ST + effect * np.eye(strategies)[0]
        for test, of in TESTS.items():
            tests = of(d_ST)
            add(f"false, {test}", any(called(tests)))
            add(f"power, {test}", called(of(better_ST))[0])
            if test == "max-T":
                add("together", all(t is None or t.low <= 0 <= t.high for t in tests))
    return {what: float(np.mean(values)) for what, values in found.items()}


def simulate_curves(c: Cell, n: int, sweeps: int, rng: np.random.Generator) -> dict[str, float]:
    """Coverage of the band of differences at a label count, and of labels saved, in null sweeps."""
    inside, saved = [], []
    for _ in range(sweeps):
        random_SR, margin_SR = c.sweep(n, 2, rng)
        _, low_R, high_R = stats.difference_curve(margin_SR, random_SR)
        inside.append(((low_R <= 0) & (high_R >= 0))[1:].mean())  # the first label count is the same for all
        target = np.floor(100 * random_SR.max(1).min()) / 100
        e = stats.efficiency(*(stats.labels_to(target, c.labels_R, x, "envelope") for x in (random_SR, margin_SR)))
        if e.n_pairs == n and e.low is not None:
            saved.append(e.low <= 1 <= e.high)
    return {"band": float(np.mean(inside)), "saved": float(np.mean(saved)) if saved else float("nan")}


def delivered(c: Cell, n: int, strategies: int, sweeps: int, rng: np.random.Generator) -> float:
    """How often a difference is found that a sweep of n seeds says would have shown, from its own spread."""
    found = []
    for _ in range(sweeps):
        spread = differences(c.labels_R, c.sweep(n, 1 + strategies, rng)).std(0, ddof=1)
        shown = power.detectable(n, float(np.median(spread)), ALPHA / strategies)
        again_ST = differences(c.labels_R, c.sweep(n, 1 + strategies, rng)) + shown * np.eye(strategies)[0]
        found.append(called(family.max_t(again_ST))[0])
    return float(np.mean(found))


def peeking(c: Cell, last: int, sweeps: int, rng: np.random.Generator) -> dict[str, float]:
    """False calls of one strategy, if a report is read after each seed from the sixth on."""
    plain = corrected = 0
    for _ in range(sweeps):
        d_ST = differences(c.labels_R, c.sweep(last, 2, rng))
        tests = [family.max_t(d_ST[:n])[0] for n in range(FEWEST, last + 1)]
        p_K = np.array([t.p if t else 1 for t in tests])
        plain += (p_K <= ALPHA).any()
        corrected += (p_K * np.arange(1, len(p_K) + 1) <= ALPHA).any()
    return {"plain": plain / sweeps, "corrected": corrected / sweeps}


def changed_calls() -> list[list[str]]:
    """Of each committed comparison, the calls that one test makes and the other does not."""
    rows = []
    for folder in COMMITTED:
        labels_R, accuracy_MSR, names = committed(folder)
        kept = [i for i, name in enumerate(names) if name != CONTROL]
        d_ST, strategies = differences(labels_R, accuracy_MSR[kept]), [names[i] for i in kept[1:]]
        of = {test: TESTS[test](d_ST) for test in TESTS}
        for i, name in enumerate(strategies):
            if len({called(of[test])[i] for test in TESTS}) == 2:
                p = [f"{of[test][i].p:.2g}" for test in TESTS]
                rows.append([folder, name, f"{100 * d_ST[:, i].mean():+.1f}", *p, f"{of['max-T'][i].p_alone:.2g}"])
    return rows


def table(found: list[dict], what: Iterable[str], families: Iterable[int] = FAMILIES) -> str:
    """A row for each number of seeds; each cell has the mean over the simulated comparisons."""
    what, families = list(what), list(families)
    heads = ["seeds", *(f"{w}: {t} strateg{'y' if t == 1 else 'ies'}" for w in what for t in families)]
    rows = []
    for n in SEEDS:
        cells = [[r[w] for r in found if r["n"] == n and r["T"] == t and w in r] for w in what for t in families]
        if any(cells):
            rows.append([str(n), *(f"{100 * np.nanmean(values):.1f}" if values else "" for values in cells)])
    return report.markdown_rows(heads, rows)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--sweeps", type=int, default=2000)
    ask.add_argument("--out", type=Path, default=OUT)
    a = ask.parse_args()
    with ProcessPoolExecutor(2) as pool:
        of_cells = list(pool.map(partial(of_cell, sweeps=a.sweeps), CELLS))
    simulated = {what: [r for found in of_cells for r in found[what]] for what in of_cells[0]}
    numbers = {"sweeps": a.sweeps, "records": checksums(), **simulated}
    (a.out / "calibration.json").write_text(json.dumps(numbers, indent=1) + "\n")
    write(a.out, numbers)


def checksums() -> dict[str, str]:
    """The records that sweeps are drawn from, as they are now: cell -> sha256."""
    return {name: sha256_of(check_results.RESULTS / name / "records.jsonl") for name in CELLS}


def of_cell(name: str, sweeps: int) -> dict[str, list[dict]]:
    """All that is simulated of one committed comparison."""
    c, rng = cell(name), np.random.default_rng(CELLS.index(name))
    who = {"cell": name}
    found, curves = [], []
    for n in SEEDS:
        found += [who | {"n": n, "T": t} | simulate(c, n, t, sweeps, rng) for t in FAMILIES]
        curves.append(who | {"n": n, "T": 1} | simulate_curves(c, n, sweeps, rng))
        print(f"{name}, {n} seeds: {found[-1]}", flush=True)
    plans = [who | {"n": n, "T": 5, "delivered": delivered(c, n, 5, sweeps, rng)} for n in (7, 10, 15)]
    looks = [who | {"n": 15, "T": 1} | peeking(c, 15, sweeps // 2, rng)]
    return {"found": found, "curves": curves, "plans": plans, "looks": looks}


def write(out: Path, numbers: dict[str, Any]) -> None:
    """Fill the page of the calibration with what main has simulated."""
    sweeps, found, curves, plans, looks = (numbers[what] for what in ("sweeps", "found", "curves", "plans", "looks"))
    page = out / "README.md"
    heads = ["comparison", "strategy", "points", *(f"p ({test})" for test in TESTS), "p alone"]
    published.fill(
        page,
        said=(
            f"Each number is the mean over three comparisons ({', '.join(CELLS)}), {sweeps:,} sweeps each. The "
            f"standard error of a share near 5% or 95% is {100 * sqrt(0.05 * 0.95 / (len(CELLS) * sweeps)):.1f} points."
        ),
        false_calls=table(found, [f"false, {test}" for test in TESTS]),
        coverage="\n\n".join(
            [table(found, ["together"]), table(found, ["alone"], [1]), table(curves, ["band", "saved"], [1])]
        ),
        power=f"{table(found, [f'power, {test}' for test in TESTS])}",
        plans=table(plans, ["delivered"], [5]),
        looks=table(looks, ["plain", "corrected"], [1]),
        calls=report.markdown_rows(heads, [[*map(report.md, row)] for row in changed_calls()]),
    )


if __name__ == "__main__":
    main()
