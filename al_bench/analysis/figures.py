"""Which figures a report has. Each is one function (Comparison) -> Drawing | None in a tuple, and its twin in plots.py.

None: the comparison lacks what the figure shows. To add a figure, write both functions and name the first in FIGURES.
"""

import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from al_bench.analysis import acquired, plots, rankings, results, run_plots, stats, tables
from al_bench.analysis.canvas import Look, style
from al_bench.analysis.compare import ALPHA, CONTROL, RANDOM, Across, Comparison, noise
from al_bench.analysis.metric import METRICS
from al_bench.analysis.results import Run
from al_bench.recipe import as_file_name


@dataclass(frozen=True)
class Drawing:
    title: str
    caption: str
    draw: Callable[[Axes], Any]


def rivals(c: Comparison) -> list[str]:
    """All strategies but the second random arm."""
    return [name for name in c.runs if name != CONTROL]


def looks(c: Comparison) -> Mapping[str, Look]:
    return style(rivals(c))


def mean_curves(c: Comparison, metric: str, names: Iterable[str]) -> dict[str, plots.Curve]:
    found = {}
    for name in names:
        value_SR = c.curve(name, metric=metric)
        found[name] = plots.Curve(c.labels_R, *stats.t_interval(value_SR), seen=value_SR)
    return found


# -- of strategies --


def learning_curves(c: Comparison) -> Drawing:
    seeds = ", ".join(f"{name} {len(c.runs[name])}" for name in rivals(c))
    return Drawing(
        "Learning curves",
        f"Mean and 95% interval of the mean, cut at the frame where wide; seeds: {seeds}.",
        partial(
            plots.learning_curves,
            curves=mean_curves(c, c.metric.name, rivals(c)),
            full=c.full,
            styles=looks(c),
            metric=c.metric,
            oracles=mean_curves(c, c.metric.name, c.oracles),
        ),
    )


def difference_to_random(c: Comparison) -> Drawing | None:
    if not c.versus_random:
        return None
    band = noise(c)
    words = (
        " Grey: a second random arm's difference to the first."
        if band
        else f" strategy={CONTROL} in the sweep would draw the noise: random against random."
    )
    return Drawing(
        "Difference to random",
        f"Paired by seed, pointwise 95% intervals that resample whole curves, cut at the frame where wide.{words}",
        partial(
            plots.difference_to_random,
            labels_R=c.labels_R,
            differences={name: v.difference for name, v in c.versus_random.items()},
            noise=band,
            styles=looks(c),
            metric=c.metric,
        ),
    )


def labels_to_target(c: Comparison) -> Drawing | None:
    if not c.versus_random or c.target is None:
        return None
    rows = {
        name: tuple(float(np.median(c.labels_to_target(x, "envelope", v.seeds))) for x in (RANDOM, name))
        for name, v in c.versus_random.items()
    }
    extreme = "maximum" if c.metric.higher_is_better else "minimum"
    return Drawing(
        f"Labels to {c.metric.level(c.target)}",
        f"Median over the pairs of seeds, where the running {extreme} crosses it, interpolated. An arrow: not reached "
        "by half of them.",
        partial(
            plots.labels_to_target,
            rows=rows,
            target=c.target,
            most=c.labels_R[-1],
            styles=looks(c),
            metric=c.metric,
        ),
    )


UNCORRECTED = "The pairs are not corrected for: among many strategies that are alike, some pair shows a win by chance."


def penalty_matrix(c: Comparison) -> Drawing | None:
    names = rivals(c)
    seeds = c.shared_seeds(names)
    if len(seeds) < 2 or len(names) < 2:
        return None
    score_MSR = np.array([c.scores(name, seeds) for name in names])
    return Drawing(
        "Who beats whom",
        "Share of the label counts at which the row beats the column: paired t-tests, with Holm's correction over "
        f"the label counts of each pair. {UNCORRECTED}",
        partial(plots.penalty_matrix, names=names, matrix_MM=rankings.penalty_holm(score_MSR)),
    )


def cost(c: Comparison) -> Drawing:
    points = {name: (median_seconds(c, name), float(c.curve(name)[:, -1].mean())) for name in rivals(c)}
    return Drawing(
        f"Cost against {c.metric.words}",
        "Median seconds of a whole run: fit, evaluate, predict and select." + shared_fits(c),
        partial(plots.cost, points=points, styles=looks(c), metric=c.metric),
    )


def shared_fits(c: Comparison) -> str:
    n = sum(run.fit_from is not None for runs in c.runs.values() for run in runs)
    return f" {n} runs took their first fit from another run; it counts in full in each." if n else ""


def median_seconds(c: Comparison, name: str) -> float:
    return float(np.median([sum(tables.seconds(c, run).values()) for run in c.runs[name]]))


def calibration(c: Comparison) -> Drawing | None:
    return other_metric(c, "ece", "Calibration", "Expected calibration error on the test set.")


def worst_class(c: Comparison) -> Drawing | None:
    if not all("worst_class" in run.metrics for name in rivals(c) for run in c.runs[name]):
        return None
    return other_metric(c, "worst_class", "Worst class", "Lowest recall of any class.")


def other_metric(c: Comparison, metric: str, title: str, caption: str) -> Drawing | None:
    """Curves of a metric beside the one that the comparison is by."""
    if metric == c.metric.name:
        return None
    curves = mean_curves(c, metric, rivals(c))
    draw = partial(plots.learning_curves, curves=curves, styles=looks(c), metric=METRICS[metric])
    return Drawing(title, caption, draw)


def class_balance(c: Comparison) -> Drawing | None:
    names = rivals(c)
    counted = [run.class_counts_RC for name in names for run in c.runs[name]]
    if len(c.labels_R) == 1 or any(x is None for x in counted) or len({x.shape[1] for x in counted}) > 1:
        return None
    counts_MC = [np.mean([tables.acquired_per_class(c, run) for run in c.runs[name]], axis=0) for name in names]
    known = (c.runs[names[0]][0].info.get("dataset") or {}).get("classes")
    classes = known or [str(i) for i in range(len(counts_MC[0]))]
    return Drawing(
        "Classes of what was acquired",
        "After the initial set; mean over seeds; from left to right as in the legend.",
        partial(plots.class_balance, names=names, counts_MC=counts_MC, class_names=classes, styles=looks(c)),
    )


def overlap(c: Comparison) -> Drawing | None:
    names = rivals(c)
    seeds = c.shared_seeds(names)
    if len(names) < 2 or not seeds or len(c.labels_R) == 1:
        return None
    runs = {(name, run.seed): run for name in names for run in c.runs[name]}
    of_seeds = [[tables.acquired_by(c, runs[name, seed]) for name in names] for seed in seeds]
    jaccard_MM = np.mean([acquired.jaccard(acquired_M) for acquired_M in of_seeds], axis=0)
    return Drawing(
        "Overlap of what was acquired",
        "Up to the last label count, mean over seeds in common.",
        partial(plots.overlap, names=names, jaccard_MM=jaccard_MM),
    )


FIGURES = (
    learning_curves, difference_to_random, labels_to_target, penalty_matrix, cost, calibration, worst_class,
    class_balance, overlap,
)  # fmt: skip


# -- of the full data, and of single runs of strategies with one seed --


def full_accuracy(c: Comparison) -> Drawing | None:
    return full_history(c, "accuracy")


def full_loss(c: Comparison) -> Drawing | None:
    return full_history(c, "loss")


def full_history(c: Comparison, quantity: str) -> Drawing | None:
    if not c.references:
        return None
    run = c.references[0]
    draw = partial(run_plots.training_history, history=results.histories(run)[-1], quantity=quantity)
    title = f"Training on the full data: {quantity}"
    return Drawing(title, f"Over its epochs; seed {run.seed}.", draw)


FULL_FIGURES = (full_accuracy, full_loss)


def pool(c: Comparison, run: Run) -> Drawing:
    n_val = (run.info.get("validation_set") or {}).get("n", 0)
    unlabelled_R = (run.info.get("dataset") or {}).get("n_train", 0) - n_val - run.labels_R
    draw = partial(run_plots.pool_sizes, labelled_R=run.labels_R, unlabelled_R=unlabelled_R)
    return Drawing("Training set and pool", f"At each training of {run.name}.", draw)


def retraining(c: Comparison, run: Run) -> Drawing:
    full = c.full_by_seed.get(run.seed, c.full)  # of the same test set, where that seed has it
    value_R = run.metrics[c.metric.name]
    draw = partial(run_plots.after_retraining, value_R=value_R, full=full, metric=c.metric)
    return Drawing(c.metric.label, f"After each training of {run.name}.", draw)


def validation(c: Comparison, run: Run) -> Drawing | None:
    histories = results.histories(run)
    if not any("val_accuracy" in epoch for history in histories for epoch in history):
        return None
    draw = partial(run_plots.validation_history, histories=histories)
    return Drawing("Validation accuracy", f"Over all epochs of {run.name}.", draw)


RUN_FIGURES = (pool, retraining, validation)


def makers(c: Comparison) -> dict[str, Callable[[], Drawing | None]]:
    """Of each figure of a comparison, by its name: the call that gathers its numbers."""
    found = {figure.__name__: partial(figure, c) for figure in FIGURES if rivals(c)}
    found |= {figure.__name__: partial(figure, c) for figure in FULL_FIGURES}
    for i, (strategy, runs) in enumerate(c.runs.items()):
        if len(runs) == 1:  # the number, since two strategies may be alike as file names
            found |= {f"{figure.__name__}-{i}-{strategy}": partial(figure, c, runs[0]) for figure in RUN_FIGURES}
    return found


# -- over several comparisons --


def penalty_matrix_across(a: Across) -> Drawing:
    share = f"Mean over {len(a.settings)} studies of the share of label counts at which the row beats the column."
    caption = f"{share} {UNCORRECTED}"
    draw = partial(plots.penalty_matrix, names=a.names, matrix_MM=a.penalty_MM)
    return Drawing("Who beats whom", caption, draw)


def ranks_across(a: Across) -> Drawing | None:
    if not a.ranks:
        return None
    caption = (
        f"Over {a.ranks.n_blocks} data sets, by {a.metric.area}; bars join what exact Wilcoxon tests with Holm's "
        f"correction do not tell apart. Friedman p = {a.ranks.p_friedman:.2g}."
    )
    same_MM = a.ranks.p_wilcoxon_MM >= ALPHA
    draw = partial(plots.rank_diagram, names=a.names, rank_M=a.ranks.mean_M, same_MM=same_MM)
    return Drawing("Mean ranks", caption, draw)


FIGURES_ACROSS = {"penalty_matrix": penalty_matrix_across, "ranks": ranks_across}


# -- to hover over --


def interactive(c: Comparison) -> str:
    """Learning curves to hover over and to toggle, as a part of a page."""
    import plotly.graph_objects as go

    styles, scale, figure = looks(c) | {CONTROL: {"color": "#999999"}}, c.metric.scale, go.Figure()
    for name in c.runs:
        mean_R, low_R, high_R = map(np.array, stats.t_interval(c.curve(name)))
        colour = styles[name]["color"]
        common = {"legendgroup": name, "line_color": "#000000" if colour == "black" else colour}
        shown = html.escape(name)  # plotly reads a part of HTML in names
        if c.metric.is_share:
            mean_R, low_R, high_R = (x.clip(0, 1) for x in (mean_R, low_R, high_R))
        if len(c.runs[name]) > 1:
            x, y = np.concatenate([c.labels_R, c.labels_R[::-1]]), scale * np.concatenate([high_R, low_R[::-1]])
            band = {"fill": "toself", "opacity": 0.15, "hoverinfo": "skip", "showlegend": False, "line_width": 0}
            figure.add_scatter(x=x, y=rounded(c, y), **(common | band), mode="lines")
        figure.add_scatter(x=c.labels_R, y=rounded(c, scale * mean_R), name=shown, mode="lines+markers", **common)
    if c.full is not None:
        figure.add_hline(scale * c.full, line_dash="dash", annotation_text=f"full data ({c.metric.level(c.full)})")
    figure.update_layout(
        template="plotly_white", height=460, margin={"l": 60, "r": 20, "t": 20, "b": 50}, hovermode="x unified",
        xaxis_title="Training labels", yaxis_title=html.escape(f"{c.metric.label}{c.metric.in_unit}", quote=False),
    )  # fmt: skip
    place = "curves-" + as_file_name("-".join(c.setting))
    return figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=place, config={"displaylogo": False, "responsive": True}
    )


def rounded(c: Comparison, y: np.ndarray) -> np.ndarray:
    """No more digits than a reader can see, which keeps a page small."""
    return y.round(3) if c.metric.is_share else np.array([float(f"{value:.6g}") for value in y])
