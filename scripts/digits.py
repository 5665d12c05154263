"""Make the figure and text on digits in results/README.md: nine strategies and two random arms, ten seeds.

    python scripts/digits.py        about an hour on two cores; the same command continues after a stop

Writes results/digits/ and its parts of results/README.md.
"""

import check_results
import pandas as pd
import published

from al_bench.analysis import report, results
from al_bench.analysis.compare import CONTROL
from al_bench.analysis.published import ARCHIVE, pack

OUT = published.ROOT / "results" / "digits"
STRATEGIES = [
    "random", "random_control", "margin", "entropy", "bald", "badge", "coreset", "typiclust", "uncertainty_herding",
    "tcm", "refine",
]  # fmt: skip


def main() -> None:
    published.sweep(f"strategy={','.join(STRATEGIES)}", "seed=range(10)", "study=digits")
    published.sweep("budget=full", "seed=range(10)", "study=digits")
    runs = results.find(published.RUNS / "digits")
    comparison = published.keep(runs, OUT, ("learning_curves", "difference_to_random"), ("acquired",))
    pack(runs, published.RUNS, OUT / ARCHIVE)
    published.fill(check_results.RESULTS / "README.md", digits=published.words(comparison), digits_noise=of_chance())
    published.fill(OUT / "README.md", costs=published.costs([comparison]))


def of_chance() -> str:
    noise = published.noise(check_results.read("digits"), pd.read_csv(OUT / "summary.csv")["target"][0])
    return f"{report.md(CONTROL)} is random sampling drawn a second time, so this is chance: {noise} (points, labels)."


if __name__ == "__main__":
    main()
