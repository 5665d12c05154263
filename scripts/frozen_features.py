"""The practitioner's case: many strategies, ten seeds, three budgets, on a frozen backbone's features, from nothing.

    python scripts/frozen_features.py --cifar10 FOLDER --dogs-vs-cats train.zip [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. Stopped and typed again, it goes on. Writes
results/frozen_features/ and its part of README.md.
"""

import argparse
from pathlib import Path

import published

from al_bench import report

OUT = published.ROOT / "results" / "frozen_features"
STRATEGIES = (
    "random", "random_control", "least_confidence", "margin", "entropy", "power_margin", "coreset", "k_means",
    "typiclust", "prob_cover", "uncertainty_herding", "badge", "drop_query",
)  # fmt: skip
HEADLINE = "low"  # the budget in README.md


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    a = ask.parse_args()
    common = ["experiment=frozen_features", f"strategy={','.join(STRATEGIES)}", "seed=range(10)"]
    # A random fifth of CIFAR-10's pool is looked at each round, so that all of it costs hours and not days.
    common += ["strategy.candidates=10000"]
    common += [f"model.weights={a.weights.resolve()}"] if a.weights else []
    cifar10 = f"dataset.root={a.cifar10.resolve()}"
    for data in (
        ("dataset=image_folder", "dataset.name=cifar10", "dataset.image_size=128", cifar10),
        ("dataset=dogs_vs_cats", f"dataset.root={a.dogs_vs_cats.resolve()}"),
    ):
        for budget in ("low", "medium", "high"):
            published.sweep(*common, *data, f"budget={budget}")
    write()


def write() -> None:
    figures, dropped = ("learning_curves", "difference_to_random"), ("acquired", "class_counts")
    studies = published.keep("frozen_features", OUT, figures, dropped)
    parts = [f"### {s.cell.dataset}, {s.cell.budget} budget\n\n{published.words(s)}" for s in studies]
    runs = [run for s in studies for runs in s.runs.values() for run in runs]
    published.fill(OUT / "README.md", verdicts="\n\n".join(parts), costs=published.costs(runs))
    (headline,) = (s for s in studies if (s.cell.dataset, s.cell.budget) == ("cifar10", HEADLINE))
    published.fill(published.ROOT / "README.md", frozen_features=report.markdown_table(headline))


if __name__ == "__main__":
    main()
