"""Run Repeated-MNIST from scratch: strategies that score images and strategies that compose batches, among near copies.

    python scripts/repeated_mnist.py --mnist data [--seeds 7]

data/ in the project's folder is dataset.root. MNIST is downloaded to it if it is missing. A run takes five to twelve
minutes on one core. Type the command again to continue after a stop. Writes results/repeated_mnist/.
"""

import argparse

import check_results
import published

from al_bench.analysis import results

OUT = published.ROOT / "results" / "repeated_mnist"
RUNS = OUT / "runs"  # committed, so that later runs add seeds to these


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="folder of MNIST, relative to the project's folder")
    parser.add_argument("--seeds", type=int, default=7, help="no call can be made below 6")
    args = parser.parse_args()
    common = ("experiment=repeated_mnist", f"dataset.root={args.mnist}", f"seed=range({args.seeds})")
    published.sweep(*common, "strategy=random,uncertainty_herding", runs=RUNS)
    published.sweep(*common, "strategy=bald,batchbald", "strategy.passes=10", runs=RUNS)
    published.sweep(*common, "strategy=power_bald", "strategy.passes=10", "strategy.beta=8", runs=RUNS)
    published.sweep(*common, "budget=full", runs=RUNS)
    figures = ("learning_curves", "difference_to_random")
    runs = [run for run in results.find(RUNS) if run.seed < args.seeds]
    comparison = published.keep(runs, OUT, figures, target=0.9)
    checks = check_results.as_list("repeated_mnist")
    costs = published.costs([comparison])
    published.fill(OUT / "README.md", verdict=published.words(comparison), checks=checks, costs=costs)


if __name__ == "__main__":
    main()
