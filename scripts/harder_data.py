"""A long tail and foreign classes: strategies in pools that are not balanced, on a frozen backbone's features.

    python scripts/harder_data.py --cifar10 FOLDER [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. It takes a quarter of an hour on two cores, with the
features of scripts/frozen_features.py. The same command continues after a stop. Writes results/harder_data/.
"""

import argparse
from pathlib import Path

import published

from al_bench.analysis import results
from al_bench.analysis.published import ARCHIVE, pack

OUT = published.ROOT / "results" / "harder_data"
STUDY = "harder_data"
COMMON = ["random", "random_control", "margin", "entropy", "badge", "typiclust", "uncertainty_herding"]
CASES = {
    # name in results/: settings, strategies beside the common ones, figures
    "long_tail": (
        ["stressor=long_tail", "budget.initial=50", "budget.query=50"],
        ["galaxy", "coreset_unit"],
        ("learning_curves", "difference_to_random", "worst_class", "class_balance"),
    ),
    "foreign": (
        ["stressor=foreign", "stressor.foreign=4", "budget.initial=50", "budget.query=50"],
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
    common += ["dataset=image_folder", "dataset.name=cifar10", f"dataset.root={a.cifar10.resolve()}"]
    common += ["dataset.image_size=128", *([f"model.weights={a.weights.resolve()}"] if a.weights else [])]
    for settings, more, _ in CASES.values():
        published.sweep(*common, *settings, f"strategy={','.join([*COMMON, *more])}")
        published.sweep(*common, *[s for s in settings if s.startswith("stressor")], "budget=full")
    write()


def write() -> None:
    runs, parts, comparisons = results.find(published.RUNS / STUDY), {}, []
    for name, (settings, _, figures) in CASES.items():
        stressor = settings[0].removeprefix("stressor=")
        ours = [run for run in runs if is_of(run, stressor)]
        c = published.keep(ours, OUT / name, figures, ("acquired",))
        comparisons.append(c)
        drawn = "\n".join(f"![{name}: {figure}]({name}/{figure}.png)" for figure in figures)
        parts[name] = f"{drawn}\n\n{published.words(c)}"
    pack(runs, published.RUNS, OUT / ARCHIVE)
    published.fill(OUT / "README.md", **parts, costs=published.costs(comparisons))


def is_of(run: results.Run, stressor: str) -> bool:
    return (run.config["stressor.foreign"] > 0) == (stressor == "foreign")


if __name__ == "__main__":
    main()
