"""The article as its code runs it, flaws included, and its question with a protocol that can answer it, from nothing.

    python scripts/gentle_introduction.py --dogs-vs-cats train.zip [--seeds 7]

Three full-data references and one run of the article's loop, then random, margin and BADGE with fresh weights and equal
steps at six label counts, and the full data with the same steps: some twenty hours of one core. Stopped and typed
again, it goes on. Writes results/gentle_introduction/.
"""

import argparse
from pathlib import Path

import check_results
import published

from al_bench import results, stats
from al_bench.verdict import Study, interval, points

OUT = published.ROOT / "results" / "gentle_introduction"
FAITHFUL, FAIR = "gentle_introduction", "gentle_introduction_fair"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--seeds", type=int, default=7, help="with two strategies, no call can be made below 7")
    a = ask.parse_args()
    root, seeds = f"dataset.root={a.dogs_vs_cats.resolve()}", f"seed=range({a.seeds})"
    published.sweep(f"experiment={FAITHFUL}", root, "budget=full", "seed=0,1,2")
    published.sweep(f"experiment={FAITHFUL}", root, "seed=0")
    published.sweep(f"experiment={FAIR}", root, seeds, "strategy=random,margin,badge")
    published.sweep(f"experiment={FAIR}", root, seeds, "budget=full")
    figures = ("full_accuracy", "full_loss", "pool-0-entropy", "retraining-0-entropy", "validation-0-entropy")
    faithful = published.keep(results.find(published.RUNS / FAITHFUL), OUT / "as_published", figures)
    curves = ("learning_curves", "difference_to_random")
    fair = published.keep(results.find(published.RUNS / FAIR), OUT / "fair", curves)
    checks = check_results.as_list("gentle_introduction/as_published")
    costs = published.costs([faithful, fair])
    verdict = f"{published.words(fair)}\n\n{to_the_full_data(fair)}"
    published.fill(OUT / "README.md", checks=checks, verdict=verdict, costs=costs)


def to_the_full_data(s: Study) -> str:
    """What is still missing at the last label count, paired by seed with training on all labels, in Markdown."""
    full = {run.seed: run.metrics["accuracy"][-1] for run in s.references}
    last, n_train = s.labels_R[-1], s.references[0].labels_R[-1]
    lines = [f"At {last:,} labels, minus the accuracy with all {n_train:,} ({s.full:.1%}):", ""]
    for name in s.runs:
        gap = stats.compare(s.curve(name)[:, -1], [full[seed] for seed in s.seeds(name)])
        lines.append(f"- {name}: {points(gap.mean)} points{interval(gap.low, gap.high)}, n = {gap.n} pairs")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
