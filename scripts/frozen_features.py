"""The practitioner's case: many strategies on a frozen backbone's features, with ten seeds and three budgets.

    python scripts/frozen_features.py --cifar10 FOLDER --dogs-vs-cats train.zip --fashion-mnist data [--weights FILE]

FOLDER holds CIFAR-10 as images, train/<class>/ and test/<class>/. It takes some four hours of one core, and an hour for
the features. The same command continues after a stop. Writes results/frozen_features/ and its parts of README.md and
results/README.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import check_results
import pandas as pd
import published
from matplotlib.ticker import MaxNLocator

from al_bench.analysis import canvas, compare, plots, report, verdict
from al_bench.analysis.compare import CONTROL, RANDOM, Comparison, noise
from al_bench.analysis.published import ARCHIVE, pack

OUT = published.ROOT / "results" / "frozen_features"
STRATEGIES = [
    "random", "random_control", "least_confidence", "margin", "entropy", "power_margin", "falcun", "galaxy", "badge",
    "alfa_mix", "cal", "coreset", "coreset_unit", "typiclust", "uncertainty_herding", "tcm",
]  # fmt: skip
LOW_ONLY = ["prob_cover", "drop_query", "select_al", "oracle/boss"]  # these take long to acquire a thousand labels
ALIKE = {"least_confidence", "margin"}  # with two classes they choose as entropy does; these are run instead:
TWO_CLASSES = ["cluster_margin", "clue", "k_means"]
CLASSES = {"cifar10": 10, "dogs_vs_cats": 2, "fashion_mnist": 10}
LABELS_A_CLASS = {"low": 5, "medium": 25, "high": 100}  # of the initial set and of each round
BUDGETS = {"cifar10": [*LABELS_A_CLASS], "dogs_vs_cats": [*LABELS_A_CLASS], "fashion_mnist": ["low", "medium"]}
FIGURES = ("learning_curves", "difference_to_random")
FIRST = ("random", "random_control", "uncertainty_herding", "badge", "entropy")  # the rows of the first screen


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cifar10", type=Path, required=True)
    ask.add_argument("--dogs-vs-cats", type=Path, required=True)
    ask.add_argument("--fashion-mnist", type=Path, required=True, help="it is downloaded to this folder if missing")
    ask.add_argument("--weights", type=Path, help="where there is no network: timm's weights, a .safetensors file")
    a = ask.parse_args()
    # Each round looks at 10,000 random images of the pool, so that the whole takes hours and not days.
    common = ["experiment=frozen_features", "seed=range(10)", "strategy.candidates=10000"]
    common += [f"model.weights={a.weights.resolve()}"] if a.weights else []
    data = {
        "cifar10": published.cifar10(a.cifar10),
        "dogs_vs_cats": ["dataset=dogs_vs_cats", f"dataset.root={a.dogs_vs_cats.resolve()}"],
        "fashion_mnist": ["dataset=fashion_mnist", f"dataset.root={a.fashion_mnist.resolve()}"],
    }
    settings = [(dataset, budget) for dataset, budgets in BUDGETS.items() for budget in budgets]
    for dataset, budget in settings:
        n = labels_per_round(dataset, budget)
        labels = [f"budget={budget}", f"budget.initial={n}", f"budget.query={n}"]
        published.sweep(*common, *data[dataset], *labels, f"strategy={','.join(strategies(dataset, budget))}")
    for dataset in data:
        published.sweep(*common, *data[dataset], "budget=full")
    write(settings)


def labels_per_round(dataset: str, budget: str) -> int:
    return LABELS_A_CLASS[budget] * CLASSES[dataset]


def strategies(dataset: str, budget: str) -> list[str]:
    found = STRATEGIES + LOW_ONLY * (budget == "low")
    return found if CLASSES[dataset] > 2 else [s for s in found if s not in ALIKE] + TWO_CLASSES


def write(settings: list[tuple[str, str]]) -> None:
    comparisons: dict[str, dict[str, Comparison]] = {dataset: {} for dataset, _ in settings}
    runs = published.finished(published.RUNS / "frozen_features")
    for dataset, budget in settings:
        ours = [run for run in runs if run.setting.dataset == dataset and run.setting.budget in (budget, "full")]
        dropped = ("acquired", "class_counts", "per_class")
        comparisons[dataset][budget] = published.keep(ours, OUT / f"{dataset}-{budget}", FIGURES, dropped)
    pack(runs, published.RUNS, OUT / ARCHIVE)
    compared = dict.fromkeys(name for found in comparisons.values() for c in found.values() for name in c.versus_random)
    looks = canvas.style(compared)
    for dataset, found in comparisons.items():
        draw(OUT / f"{dataset}.png", found, looks)
    draw(OUT / "first.png", comparisons["cifar10"], {name: looks[name] for name in FIRST if name in looks})
    sections = "\n\n".join(
        f"### {dataset}-{budget}\n\n{published.as_section(f'{dataset}-{budget}', c, FIGURES)}"
        for dataset, found in comparisons.items()
        for budget, c in found.items()
    )
    every = [c for found in comparisons.values() for c in found.values()]
    published.fill(
        OUT / "README.md",
        overviews=overviews(),
        oracle=oracle_lines(every),
        across="\n".join(f"- {report.md(text)}" for text in verdict.across_sentences(compare.across(every))),
        verdicts=sections,
        costs=published.costs(every),
    )
    published.fill(published.ROOT / "README.md", frozen_features=first_rows())
    published.fill(check_results.RESULTS / "README.md", frozen_features=overview("cifar10"))


def draw(path: Path, comparisons: dict[str, Comparison], looks: dict[str, canvas.Look]) -> None:
    """Draw the budgets side by side: the strategies that have a look, the same in all figures."""
    figure = canvas.new_figure(canvas.PAGE, 3.6)
    axes = figure.subplots(1, len(comparisons))
    for ax, (budget, c) in zip(axes, comparisons.items(), strict=True):
        differences = {name: v.difference for name, v in c.versus_random.items() if name in looks}
        plots.difference_to_random(ax, c.labels_R, differences, noise(c), looks)
        ax.set_title(f"{c.setting.dataset}, {budget} budget", fontsize=canvas.FONT)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_ylabel("" if ax is not axes[0] else ax.get_ylabel())
    legends = [ax.get_legend() for ax in axes]
    most = max(legends, key=lambda legend: len(legend.get_texts()))
    names = [text.get_text() for text in most.get_texts()]
    figure.legend(
        most.legend_handles, names, loc="outside lower center", ncols=5, fontsize=canvas.SMALL, frameon=False,
        handlelength=2.6,
    )  # fmt: skip
    for legend in legends:
        legend.remove()
    figure.savefig(path, dpi=200)


def overviews() -> str:
    return "\n\n".join(f"![{dataset}]({dataset}.png)\n\n{overview(dataset)}" for dataset in CLASSES)


def overview(dataset: str) -> str:
    """A table of all strategies and budgets, and how to read it, in Markdown. The numbers come from results/."""
    rounds, summaries = kept(dataset)
    names = best_first(summaries)
    rows = strategy_table([RANDOM, CONTROL, *names], rounds, summaries)
    of_random = {budget: summary.loc[RANDOM] for budget, summary in summaries.items()}
    targets = {budget: r["target"] for budget, r in of_random.items() if pd.notna(r["target"])}
    last = rounds[BUDGETS[dataset][-1]]
    full = last[last["budget"] == "full"]
    words = (
        f"random: its mean accuracy over the labels (with all {full['n_labelled'].max():,} labels "
        f"{full['accuracy'].mean():.1f}%). The others, the best on average first, "
        "and last those that were not run with every budget: points "
        "more than that, paired by seed, with 95% intervals that hold for all strategies of the column at once; bold: "
        "significant by the same test (step-down max-T). Then the share of random's labels saved (negative: it takes "
        "more) on the way to an accuracy of "
        f"{', '.join(f'{target:.0%} ({budget})' for budget, target in targets.items())}, where every seed reaches it; "
        f"its intervals hold for one strategy alone. {report.md(CONTROL)} is a second random arm: the noise, its "
        "intervals alone. Empty: not run."
    )
    if len(targets) > 1:
        words += f" {what_a_target_decides(rounds, targets, names[0])}"
    return f"{rows}\n\n{words}"


def oracle_lines(comparisons: Sequence[Comparison]) -> str:
    """How far each oracle comes, and the best strategy and random with the same seeds, as a list in Markdown."""
    lines = []
    for c in comparisons:
        for oracle, runs in c.oracles.items():
            seeds = [run.seed for run in runs]
            areas = {name: c.area(name, seeds).mean() for name in (oracle, c.best_first[0], RANDOM)}
            words = ", ".join(f"{name} {area:.1%}" for name, area in areas.items())
            lines.append(f"{c.setting.dataset}, {c.setting.budget}, {len(runs)} seeds: {words}")
    return "\n".join(f"- {report.md(line)}" for line in lines)


def first_rows() -> str:
    """The table on the README's first screen, and how to read it in short, in Markdown."""
    rounds, summaries = kept("cifar10")
    targets = ", ".join(f"{summary.loc[RANDOM]['target']:.0%}" for summary in summaries.values())
    return (
        f"{strategy_table(FIRST, rounds, summaries)}\n\n"
        "*random*: its accuracy, the mean over the labels. The others: percentage points more than random, paired by "
        "seed, with 95% intervals for all strategies at once. Bold: significant, by the same test. *saves*: labels "
        f"saved on the way to {targets}, each interval alone. random\\_control is random a second time: chance, its "
        f"intervals alone. [All {len(best_first(summaries))} strategies, and how the numbers come about]"
        "(results/README.md#frozen-features)."
    )


def kept(dataset: str) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """(rounds, summary by strategy) of each budget."""
    names = {budget: f"frozen_features/{dataset}-{budget}" for budget in BUDGETS[dataset]}
    summaries = {b: pd.read_csv(check_results.RESULTS / name / "summary.csv") for b, name in names.items()}
    return (
        {budget: check_results.read(name) for budget, name in names.items()},
        {budget: summary.set_index("strategy") for budget, summary in summaries.items()},
    )


def best_first(summaries: dict[str, pd.DataFrame]) -> list[str]:
    """All strategies but the random arms, the largest mean gain first. Those that lack a budget are the last."""
    gains = pd.DataFrame({budget: summary["minus_random"] for budget, summary in summaries.items()}).dropna(how="all")
    order = pd.DataFrame({"lacking": gains.isna().sum(axis=1), "gain": -gains.mean(axis=1)})
    return list(order.sort_values(["lacking", "gain"]).index)


def strategy_table(names: Sequence[str], rounds: dict[str, pd.DataFrame], summaries: dict[str, pd.DataFrame]) -> str:
    """A row for each of these strategies, a column for each budget, in Markdown."""
    of_random = {budget: summary.loc[RANDOM] for budget, summary in summaries.items()}
    special = {
        RANDOM: [f"{r['mean_accuracy_over_labels']:.1%}" for r in of_random.values()],
        CONTROL: [published.noise(rounds[budget], r["target"]) for budget, r in of_random.items()],
    }
    rows = [
        [report.md(name), *(special.get(name) or [cell(summary, name) for summary in summaries.values()])]
        for name in names
    ]
    heads = ["", *(f"{b}: {r['labels_from']:,} to {r['labels_to']:,} labels" for b, r in of_random.items())]
    return report.markdown_rows(heads, rows)


def cell(summary: pd.DataFrame, name: str) -> str:
    if name not in summary.index:
        return ""
    r = summary.loc[name]
    area, saved = ([r[f"{what}{end}"] for end in ("", "_low", "_high")] for what in ("minus_random", "labels_saved"))
    return published.gain(area, None if pd.isna(saved[0]) else saved, r["significant"])


def what_a_target_decides(rounds: dict[str, pd.DataFrame], targets: dict[str, float], best: str) -> str:
    """In words: labels saved at the last budget to its target, and at the last two to the target of the one before."""
    *_, (before, lower), (last, target) = targets.items()

    def saved(budget: str, t: float) -> str:
        e = published.savings(rounds[budget], best, t)
        share = f"{100 * e.savings[0]:.0f}%" if e else "no countable share (most initial sets reach it)"
        return f"{share} on the way to {t:.0%}"

    at_target, at_lower, at_before = saved(last, target), saved(last, lower), saved(before, lower)
    initial = {budget: rounds[budget]["n_labelled"].min() for budget in (before, last)}
    return (
        "A target is the highest whole per cent that random reaches with every seed, so it is known only afterwards; "
        f"it and the initial set decide what is saved: with the {last} budget {report.md(best)} saves {at_target} and "
        f"{at_lower}, where {initial[last]:,} labels are the initial set that all share; with the {before} budget, "
        f"which starts with {initial[before]:,}, it saves {at_before}."
    )


if __name__ == "__main__":
    main()
