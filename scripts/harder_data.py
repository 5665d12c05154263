"""A long tail and foreign classes: strategies in pools that are not balanced, on a frozen backbone's features.

    python scripts/harder_data.py --cifar10 FOLDER [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. It takes a quarter of an hour on two cores, with the
features of scripts/frozen_features.py. The same command continues after a stop. Writes results/harder_data/.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import published

from al_bench.analysis import report
from al_bench.analysis.compare import RANDOM, Comparison
from al_bench.analysis.published import ARCHIVE, pack

OUT = published.ROOT / "results" / "harder_data"
STUDY = "harder_data"
COMMON = ["random", "random_control", "margin", "entropy", "badge", "typiclust", "uncertainty_herding"]


class Case(NamedTuple):
    settings: list[str]
    dataset: str  # as run folders name it
    strategies: list[str]  # beside the common ones
    figures: tuple[str, ...]


CASES = {  # by their names in results/harder_data/
    "long_tail": Case(
        ["stressor=long_tail"],
        "cifar10+imbalance=100",
        ["galaxy", "coreset_unit"],
        ("learning_curves", "difference_to_random", "worst_class", "class_balance"),
    ),
    "foreign": Case(
        ["stressor=foreign", "stressor.foreign=4"],
        "cifar10+foreign=4",
        ["known_margin", "lfosa"],
        ("learning_curves", "difference_to_random"),
    ),
}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    a = ask.parse_args()
    common = ["experiment=frozen_features", f"study={STUDY}", "seed=range(10)", "strategy.candidates=10000"]
    labels = ["budget.initial=50", "budget.query=50"]
    common += [*published.cifar10(a.cifar10), *([f"model.weights={a.weights.resolve()}"] if a.weights else [])]
    for case in CASES.values():
        published.sweep(*common, *case.settings, *labels, f"strategy={','.join([*COMMON, *case.strategies])}")
        published.sweep(*common, *case.settings, "budget=full")
    write()


def write() -> None:
    runs = published.finished(published.RUNS / STUDY)
    comparisons = {}
    for name, case in CASES.items():
        ours = [run for run in runs if run.setting.dataset == case.dataset]
        comparisons[name] = published.keep(ours, OUT / name, case.figures, ("acquired",))
    pack(runs, published.RUNS, OUT / ARCHIVE)
    parts = {name: published.as_section(name, c, CASES[name].figures) for name, c in comparisons.items()}
    costs = published.costs(comparisons.values())
    found = {"wasted": wasted(comparisons["foreign"]), "rarest": rarest(comparisons["long_tail"])}
    published.fill(OUT / "README.md", **parts, **found, costs=costs)


def rarest(c: Comparison) -> str:
    """The recall of the rarest class, which is the last one, the best strategy first, in Markdown."""
    name = c.runs[RANDOM][0].info["dataset"]["classes"][-1]
    recall = last_round(c, lambda record: record["metrics"]["per_class"][-1])
    words = in_words(reversed(recall), ".1%")
    return f"Recall of the rarest class, {name}, after {c.labels_R[-1]:,} labels, mean over seeds: {words}."


def wasted(c: Comparison) -> str:
    """How many of a run's labels were spent on foreign images, the fewest first, in Markdown."""
    words = in_words(last_round(c, lambda record: record["n_foreign"]), ".0f")
    return f"Foreign images among the {c.labels_R[-1]:,} that a run acquired, mean over seeds: {words}."


def last_round(c: Comparison, value: Callable[[dict[str, Any]], float]) -> list[tuple[str, float]]:
    """(strategy, the mean over seeds of a value of the last record), the lowest first."""
    means = {name: fmean(value(published.rounds(run)[-1]) for run in runs) for name, runs in c.runs.items()}
    return sorted(means.items(), key=lambda item: item[1])


def in_words(means: Iterable[tuple[str, float]], form: str) -> str:
    return ", ".join(f"{report.md(name)} {mean:{form}}" for name, mean in means)


if __name__ == "__main__":
    main()
