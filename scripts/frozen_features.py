"""The practitioner's case: many strategies, ten seeds, three budgets, on a frozen backbone's features, from nothing.

    python scripts/frozen_features.py --cifar10 FOLDER --dogs-vs-cats train.zip [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. Some five hours of one core, and half an hour for the
features; stopped and typed again, it goes on. Writes results/frozen_features/ and its part of README.md.
"""

import argparse
from pathlib import Path
from statistics import fmean

import published
from matplotlib.ticker import MaxNLocator

from al_bench import plots, report, results, stats, verdict
from al_bench.stats import Comparison, Efficiency
from al_bench.verdict import CONTROL, RANDOM, Study

OUT = published.ROOT / "results" / "frozen_features"
STRATEGIES = [
    "random", "random_control", "least_confidence", "margin", "entropy", "power_margin", "falcun", "galaxy", "badge",
    "alfa_mix", "cal", "coreset", "coreset_unit", "typiclust", "uncertainty_herding",
]  # fmt: skip
LOW_ONLY = ["prob_cover", "drop_query"]  # these take minutes a round where a thousand labels are bought
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
        n = bought(dataset, budget)
        labels = [f"budget={budget}", f"budget.initial={n}", f"budget.query={n}"]
        published.sweep(*common, *data[dataset], *labels, f"strategy={','.join(strategies(dataset, budget))}")
    for dataset in data:
        published.sweep(*common, *data[dataset], "budget=full")
    write(cells)


def bought(dataset: str, budget: str) -> int:
    """Labels a round."""
    return LABELS_A_CLASS[budget] * CLASSES[dataset]


def strategies(dataset: str, budget: str) -> list[str]:
    found = STRATEGIES + LOW_ONLY * (budget == "low")
    return found if CLASSES[dataset] > 2 else [s for s in found if s not in ALIKE] + TWO_CLASSES


def write(cells: list[tuple[str, str]]) -> None:
    studies: dict[str, dict[str, Study]] = {dataset: {} for dataset, _ in cells}
    runs = results.find(published.RUNS / "frozen_features")
    for dataset, budget in cells:
        ours = [run for run in runs if run.cell.dataset == dataset and run.cell.budget in (budget, "full")]
        dropped = ("acquired", "class_counts", "per_class")
        studies[dataset][budget] = published.keep(ours, OUT / f"{dataset}-{budget}", FIGURES, dropped)
    overviews = {}
    for dataset, found in studies.items():
        draw(OUT / f"{dataset}.png", found)
        overviews[dataset] = overview(found)
    pictured = "\n\n".join(f"![{dataset}]({dataset}.png)\n\n{words}" for dataset, words in overviews.items())
    sections = "\n\n".join(
        section(f"{dataset}-{budget}", s) for dataset, found in studies.items() for budget, s in found.items()
    )
    costs = published.costs(s for found in studies.values() for s in found.values())
    published.fill(OUT / "README.md", overviews=pictured, verdicts=sections, costs=costs)
    published.fill(published.ROOT / "README.md", frozen_features=overviews["cifar10"])


def compared(studies: dict[str, Study]) -> list[str]:
    """The strategies of any of the studies."""
    return list(dict.fromkeys(name for s in studies.values() for name in s.against))


def draw(path: Path, studies: dict[str, Study]) -> None:
    """The budgets side by side, each strategy with the same look in all of them."""
    figure = plots.new_figure(plots.PAGE, 3.6)
    axes = figure.subplots(1, len(studies))
    looks = plots.style(compared(studies))
    for ax, (budget, s) in zip(axes, studies.items(), strict=True):
        differences = {name: against.difference for name, against in s.against.items()}
        plots.difference_to_random(ax, s.labels_R, differences, verdict.noise(s), looks)
        ax.set_title(f"{s.cell.dataset}, {budget} budget", fontsize=plots.FONT)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_ylabel("" if ax is not axes[0] else ax.get_ylabel())
    legends = [ax.get_legend() for ax in axes]
    most = max(legends, key=lambda legend: len(legend.get_texts()))
    names = [text.get_text() for text in most.get_texts()]
    figure.legend(
        most.legend_handles, names, loc="outside lower center", ncols=5, fontsize=plots.SMALL, frameon=False,
        handlelength=2.6,
    )  # fmt: skip
    for legend in legends:
        legend.remove()
    figure.savefig(path, dpi=200)


def overview(studies: dict[str, Study]) -> str:
    """Every strategy at every budget, the best on average first, in Markdown."""

    def mean_gain(name: str) -> float:
        return fmean(s.against[name].area.mean for s in studies.values() if name in s.against)

    heads = ["", *(f"{budget}: {s.labels_R[0]:,} to {s.labels_R[-1]:,} labels" for budget, s in studies.items())]
    rows = [
        [RANDOM, *(f"{s.area(RANDOM).mean():.1%}" for s in studies.values())],
        [report.md(CONTROL), *map(noise, studies.values())],
    ]
    for name in sorted(compared(studies), key=mean_gain, reverse=True):
        rows.append([report.md(name), *(cell(s, name) for s in studies.values())])
    targets = ", ".join(f"{s.target:.0%} ({budget})" for budget, s in studies.items() if s.target is not None)
    s = next(iter(studies.values()))
    full = s.references[0]
    words = (
        f"random: its mean accuracy over the labels (with all {full.labels_R[-1]:,} labels, in the same "
        f"{full.config['trainer.max_steps']} steps: {s.full:.1%}). The others, the best on average first: points more "
        "than that, with 95% intervals, paired by seed; bold: significant (Wilcoxon, p < 0.05 after Holm's correction "
        "over the strategies of the column, so that an interval by itself can be clear of 0 without it). Then the "
        f"share of random's labels saved (negative: it takes more) on the way to an accuracy of {targets}, where every "
        f"seed reaches it. {report.md(CONTROL)} is a second random arm: the noise. Empty: not run."
    )
    return f"{report.markdown_rows(heads, rows)}\n\n{words}"


def cell(s: Study, name: str) -> str:
    if name not in s.against:
        return ""
    a = s.against[name]
    return gain(a.area, a.efficiency, a.significant)


def noise(s: Study) -> str:
    return gain(stats.compare(s.area(CONTROL), s.area(RANDOM)), verdict.savings(s, CONTROL, s.seeds(CONTROL)))


def gain(area: Comparison, e: Efficiency, significant: bool = False) -> str:
    points = f"**{verdict.points(area.mean)}**" if significant else verdict.points(area.mean)
    words = f"{points}{verdict.interval(area.low, area.high)}"
    if e.n_pairs == e.n:
        saved, low, high = e.savings
        words += f"; saves {100 * saved:{verdict.PER_CENT}}%{verdict.interval(low, high, verdict.PER_CENT)}"
    return words


def section(name: str, s: Study) -> str:
    figures = "\n".join(f"![{name}: {figure}]({name}/{figure}.png)" for figure in FIGURES)
    return f"### {name}\n\n{figures}\n\n{published.words(s)}"


if __name__ == "__main__":
    main()
