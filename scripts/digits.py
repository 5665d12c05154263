"""The README's first figure and table: four strategies x six seeds on digits, from nothing.

    python scripts/digits.py        about ten minutes on two cores; stopped and typed again, it goes on

Runs the sweep (into results/runs, not committed), then writes results/digits/ (records, figure, table) and the table
into README.md.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

ROOT = Path(__file__).parents[1]
BUDGET = ("budget.initial=20", "budget.query=20", "budget.rounds=5", "budget.name=20+5x20")
STRATEGIES = ("random", "least_confidence", "margin", "entropy")
SEEDS = range(6)
TARGET = 0.9
MARKS = {"random": ("o", "-"), "least_confidence": ("^", "--"), "margin": ("s", "-"), "entropy": ("D", ":")}
COLOURS = {"random": "black", "least_confidence": "#CC79A7", "margin": "#0072B2", "entropy": "#D55E00"}  # Okabe & Ito


def main() -> None:
    sweep()
    records = collect()
    out = ROOT / "results" / "digits"
    out.mkdir(exist_ok=True)
    (out / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    labels_R, accuracy_SR = curves(records)
    draw(labels_R, accuracy_SR, out / "learning_curves.png")
    text = table(labels_R, accuracy_SR)
    (out / "table.md").write_text(text)
    readme = ROOT / "README.md"
    new = re.sub(r"(<!-- digits -->\n).*?(<!-- /digits -->)", rf"\g<1>{text}\2", readme.read_text(), flags=re.S)
    readme.write_text(new)
    print(text)


def sweep() -> None:
    """Two processes, a core each: digits trains on one thread."""
    seeds = f"seed={','.join(map(str, SEEDS))}"
    halves = (STRATEGIES[:2], STRATEGIES[2:])
    command = [sys.executable, "-m", "al_bench", "-m", "study=digits", "results_dir=results/runs", *BUDGET, seeds]
    jobs = [subprocess.Popen([*command, f"strategy={','.join(half)}"], cwd=ROOT) for half in halves]
    if any([job.wait() for job in jobs]):
        sys.exit("The sweep did not finish: its own words are above. The same command goes on from there.")


def collect() -> list[dict]:
    """Every round of every run, without what differs between machines."""
    records = []
    for strategy in STRATEGIES:
        for seed in SEEDS:
            folder = ROOT / f"results/runs/digits/digits/small_cnn/20+5x20/{strategy}/seed={seed}"
            for line in (folder / "rounds.jsonl").read_text().splitlines():
                record = {k: v for k, v in json.loads(line).items() if k not in ("seconds", "peak_memory")}
                records.append({"strategy": strategy, "seed": seed, **record})
    return records


def curves(records: list[dict]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Label counts [rounds] and, for each strategy, test accuracies [seeds, rounds]."""
    labels = sorted({r["n_labelled"] for r in records})
    grid = {
        s: np.array([r["metrics"]["accuracy"] for r in records if r["strategy"] == s]).reshape(len(SEEDS), -1)
        for s in STRATEGIES
    }
    return np.array(labels), grid


def draw(labels_R: np.ndarray, accuracy: dict[str, np.ndarray], path: Path) -> None:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for s, accuracy_SR in accuracy.items():
        mean = 100 * accuracy_SR.mean(0)
        half = 100 * stats.sem(accuracy_SR, 0) * stats.t.ppf(0.975, len(SEEDS) - 1)
        marker, dash = MARKS[s]
        ax.plot(
            labels_R, mean, marker=marker, linestyle=dash, markersize=4.5, color=COLOURS[s], label=s.replace("_", " ")
        )
        ax.fill_between(labels_R, mean - half, mean + half, color=COLOURS[s], alpha=0.13, linewidth=0)
    ax.set(xlabel="Training labels", ylabel="Test accuracy (%)")
    ax.set_title(f"Digits, small CNN: mean of {len(SEEDS)} seeds, 95% interval", fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=160)


def table(labels_R: np.ndarray, accuracy: dict[str, np.ndarray]) -> str:
    rows = [
        f"| strategy | labels to {TARGET:.0%}, median | mean accuracy of the curve | minus random, 95% interval |",
        "| --- | --- | --- | --- |",
    ]
    area = {s: np.trapezoid(a, labels_R, axis=1) / (labels_R[-1] - labels_R[0]) for s, a in accuracy.items()}
    for s, accuracy_SR in accuracy.items():
        reached = accuracy_SR >= TARGET
        first = np.where(reached.any(1), labels_R[reached.argmax(1)], np.inf)
        median = np.quantile(first, 0.5, method="inverted_cdf")  # an observed count, also where some never get there
        needed = f"{median:.0f}" if np.isfinite(median) else f"> {labels_R[-1]}"
        rows.append(f"| {s.replace('_', ' ')} | {needed} | {area[s].mean():.1%} | {versus_random(area, s)} |")
    how = "Student's t on the differences, not corrected for three comparisons"
    return "\n".join(rows) + f"\n\nPaired by seed, n = {len(SEEDS)}; {how}.\n"


def versus_random(area: dict[str, np.ndarray], strategy: str) -> str:
    if strategy == "random":
        return ""
    test = stats.ttest_rel(area[strategy], area["random"])
    low, high = test.confidence_interval(0.95)
    return f"{100 * (area[strategy] - area['random']).mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


if __name__ == "__main__":
    main()
