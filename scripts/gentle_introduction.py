"""The article as its code runs it, flaws included, and its question with a protocol that can answer it, from nothing.

    python scripts/gentle_introduction.py --dogs-vs-cats train.zip [--seeds 6]

Three full-data references and one run of the article's loop, then random, margin and BADGE with fresh weights and equal
steps at six label counts, and the full data with the same steps: some twenty hours of one core. Stopped and typed
again, it goes on. Writes results/gentle_introduction/.
"""

import argparse
from pathlib import Path

import check_results
import published

OUT = published.ROOT / "results" / "gentle_introduction"
FAITHFUL, FAIR = "gentle_introduction", "gentle_introduction_fair"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--seeds", type=int, default=6)
    a = ask.parse_args()
    root, seeds = f"dataset.root={a.dogs_vs_cats.resolve()}", f"seed=range({a.seeds})"
    published.sweep(f"experiment={FAITHFUL}", root, "budget=full", "seed=0,1,2")
    published.sweep(f"experiment={FAITHFUL}", root, "seed=0")
    published.sweep(f"experiment={FAIR}", root, seeds, "strategy=random,margin,badge")
    published.sweep(f"experiment={FAIR}", root, seeds, "budget=full")
    figures = ("full_accuracy", "retraining-0-entropy")
    faithful = published.keep(published.RUNS / FAITHFUL, OUT / "as_published", figures)
    fair = published.keep(published.RUNS / FAIR, OUT / "fair", ("learning_curves", "difference_to_random"))
    checks = check_results.as_list("gentle_introduction/as_published")
    costs = published.costs([faithful, fair])
    published.fill(OUT / "README.md", checks=checks, verdict=published.words(fair), costs=costs)


if __name__ == "__main__":
    main()
