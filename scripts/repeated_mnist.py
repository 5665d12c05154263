"""Repeated-MNIST: random, BALD, BatchBALD and PowerBALD where every image has near copies in the pool, from nothing.

    python scripts/repeated_mnist.py --mnist data [--seeds 7]

data/, in the project's folder, is dataset.root: MNIST is downloaded to it where it is not there. Five to twelve minutes
a run on one core; stopped and typed again, it goes on. Writes results/repeated_mnist/.
"""

import argparse

import check_results
import published

from al_bench.analysis import results

OUT = published.ROOT / "results" / "repeated_mnist"
RUNS = OUT / "runs"  # committed, so that more seeds go on from there


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--mnist", required=True, help="from the project's folder")
    ask.add_argument("--seeds", type=int, default=7, help="fewer than 7 pairs cannot make three strategies significant")
    a = ask.parse_args()
    common = ("experiment=repeated_mnist", f"dataset.root={a.mnist}", f"seed=range({a.seeds})")
    published.sweep(*common, "strategy=random", runs=RUNS)
    published.sweep(*common, "strategy=bald,batchbald", "strategy.passes=10", runs=RUNS)
    published.sweep(*common, "strategy=power_bald", "strategy.passes=10", "strategy.beta=8", runs=RUNS)
    published.sweep(*common, "budget=full", runs=RUNS)
    figures = ("learning_curves", "difference_to_random")
    runs = [run for run in results.find(RUNS) if run.seed < a.seeds]
    comparison = published.keep(runs, OUT, figures, target=0.9)
    checks = check_results.as_list("repeated_mnist")
    costs = published.costs([comparison])
    published.fill(OUT / "README.md", verdict=published.words(comparison), checks=checks, costs=costs)


if __name__ == "__main__":
    main()
