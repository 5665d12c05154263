"""The practitioner's case: many strategies, ten seeds, three budgets, on a frozen backbone's features, from nothing.

    python scripts/frozen_features.py --cifar10 FOLDER --dogs-vs-cats train.zip [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. Some four hours of one core, and half an hour for the
features; stopped and typed again, it goes on. Writes results/frozen_features/ and its part of README.md.
"""

import argparse
from pathlib import Path

import published

OUT = published.ROOT / "results" / "frozen_features"
STRATEGIES = [
    "random", "random_control", "least_confidence", "margin", "entropy", "power_margin", "falcun", "galaxy", "badge",
    "alfa_mix", "cal", "coreset", "typiclust",
]  # fmt: skip
LOW_ONLY = ["prob_cover", "uncertainty_herding", "drop_query"]  # minutes a round where a thousand labels are bought
ALIKE = {"least_confidence", "margin"}  # with two classes they choose what entropy does; in their place:
TWO_CLASSES = ["cluster_margin", "clue", "k_means"]
CLASSES = {"cifar10": 10, "dogs_vs_cats": 2}
LABELS_A_CLASS = {"low": 5, "medium": 25, "high": 100}  # bought a round, and to start with
FIGURES = ("learning_curves", "difference_to_random")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    a = ask.parse_args()
    # A random 10,000 images of the pool are looked at each round, so that all of it takes hours and not days.
    common = ["experiment=frozen_features", "seed=range(10)", "strategy.candidates=10000"]
    common += [f"model.weights={a.weights.resolve()}"] if a.weights else []
    data = {
        "cifar10": ["dataset=image_folder", "dataset.name=cifar10", f"dataset.root={a.cifar10.resolve()}",
                    "dataset.image_size=128"],
        "dogs_vs_cats": ["dataset=dogs_vs_cats", f"dataset.root={a.dogs_vs_cats.resolve()}"],
    }  # fmt: skip
    cells = [(dataset, budget) for dataset in data for budget in LABELS_A_CLASS]
    for dataset, budget in cells:
        n = LABELS_A_CLASS[budget] * CLASSES[dataset]
        labels = [f"budget={budget}", f"budget.initial={n}", f"budget.query={n}"]
        published.sweep(*common, *data[dataset], *labels, f"strategy={','.join(strategies(dataset, budget))}")
    write(cells)


def strategies(dataset: str, budget: str) -> list[str]:
    found = STRATEGIES + LOW_ONLY * (budget == "low")
    return found if CLASSES[dataset] > 2 else [s for s in found if s not in ALIKE] + TWO_CLASSES


def write(cells: list[tuple[str, str]]) -> None:
    studies = {}
    for dataset, budget in cells:
        folder = published.RUNS / "frozen_features" / dataset / "tf_efficientnet_lite0-frozen" / budget
        dropped = ("acquired", "class_counts", "per_class")
        studies[dataset, budget] = published.keep(folder, OUT / f"{dataset}-{budget}", FIGURES, dropped)
    parts = [section(f"{dataset}-{budget}", s) for (dataset, budget), s in studies.items()]
    published.fill(OUT / "README.md", verdicts="\n\n".join(parts), costs=published.costs(studies.values()))
    published.fill(published.ROOT / "README.md", frozen_features=published.table(studies["cifar10", "low"]))


def section(name: str, s: published.Study) -> str:
    figures = "\n".join(f"![{name}: {figure}]({name}/{figure}.png)" for figure in FIGURES)
    return f"### {name}\n\n{figures}\n\n{published.words(s)}"


if __name__ == "__main__":
    main()
