"""A comparison as a table: the numbers of each strategy, and the section that a report shows of them."""

from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np

from al_bench.analysis import acquired, stats, verdict
from al_bench.analysis.compare import Comparison, VersusRandom
from al_bench.analysis.metric import ACCURACY, Metric
from al_bench.analysis.results import Run
from al_bench.analysis.stats import Efficiency


@dataclass(frozen=True)
class Section:
    """What a report says of one comparison, in plain text. It is built once; report.py renders it."""

    comparison: Comparison
    title: str
    sentences: list[str]  # the verdict
    rows: list[dict[str, Any]]  # numbers of each strategy
    table: list[dict[str, str]]  # heading -> cell: random, then the others, the best first
    method_notes: list[str]
    planner: str


def section(c: Comparison) -> Section:
    rows = {name: row(c, name) for name in c.runs}
    others = [name for name in c.runs if name not in c.versus_random]
    return Section(
        comparison=c,
        title=title(c),
        sentences=verdict.sentences(c),
        rows=list(rows.values()),
        table=[readable(c, rows[name]) for name in (*others, *c.best_first)],
        method_notes=verdict.method_notes(c) if c.runs else [],
        planner=verdict.planner(c),
    )


def title(c: Comparison) -> str:
    """The setting; by another metric than accuracy with the metric and its direction."""
    by = "" if c.metric == ACCURACY else f", judged by {c.metric.words} ({c.metric.direction})"
    return f"{c.setting}{by}"


# -- numbers --


def row(c: Comparison, name: str) -> dict[str, Any]:
    """Numbers of a strategy. Shares are fractions; other metrics are as they are recorded."""
    several, runs, metric = len(c.labels_R) > 1, c.runs[name], c.metric.name
    quartiles = stats.quartiles(c.labels_to_target(name)) if c.target is not None else (None,) * 3
    values: dict[str, Any] = {
        **c.setting._asdict(),
        "strategy": name,
        "n_seeds": len(runs),
        "labels_from": int(c.labels_R[0]),
        "labels_to": int(c.labels_R[-1]),
        f"final_{metric}": float(c.curve(name)[:, -1].mean()),
        f"mean_{metric}_over_labels": float(c.area(name).mean()) if several else None,
        "target": c.target,
        **{f"labels_to_target_{q}": n for q, n in zip(("q25", "median", "q75"), quartiles, strict=True)},
    }
    if v := c.versus_random.get(name):
        values |= against_random(v)
    if several and runs[0].config["stressor.copies"] > 1:
        values["duplicate_share"] = mean(duplicate_share(c, run) for run in runs)
    if several and all(run.class_counts_RC is not None for run in runs):
        values["label_entropy"] = mean(acquired.label_entropy(acquired_per_class(c, run)) for run in runs)
    keys = dict.fromkeys(key for run in runs for key in run.seconds)
    return values | {f"seconds_{key}": median(seconds(c, run).get(key, 0.0) for run in runs) for key in keys}


def against_random(v: VersusRandom) -> dict[str, Any]:
    nothing = (None, None, None)
    saved, saved_low, saved_high = savings_of(v.efficiency) or nothing
    of_all, of_all_low, of_all_high = savings_of(v.of_all_labels) or nothing
    return {
        "n_pairs": v.area.n,
        "minus_random": v.area.mean,
        "minus_random_low": v.interval[0],
        "minus_random_high": v.interval[1],
        "minus_random_low_alone": v.area.low,
        "minus_random_high_alone": v.area.high,
        "p": v.test and v.test.p,
        "p_alone": v.test and v.test.p_alone,
        "p_t": v.area.p_t,
        "significant": v.significant,
        "why_no_call": v.why_no_call,
        "labels_saved": saved,
        "labels_saved_low": saved_low,
        "labels_saved_high": saved_high,
        "of_all_labels_saved": of_all,
        "of_all_labels_saved_low": of_all_low,
        "of_all_labels_saved_high": of_all_high,
        "pairs_that_count_for_target": v.efficiency and v.efficiency.n,
        "pairs_that_reached_target": v.efficiency and v.efficiency.n_reached[0],
        "pairs_in_which_random_did": v.efficiency and v.efficiency.n_reached[1],
    }


def savings_of(e: Efficiency | None) -> tuple[float | None, float | None, float | None] | None:
    """(mean, low, high); None where some pair did not reach the target, since a mean over the others would flatter."""
    return e.savings if e and e.complete else None


def last_round(c: Comparison, run: Run) -> int:
    """The run's round at the last label count that is compared."""
    return int(np.flatnonzero(run.labels_R == c.labels_R[-1])[0])


def acquired_by(c: Comparison, run: Run) -> np.ndarray:
    """The images that it acquired up to there, without the initial set."""
    return np.concatenate(run.acquired[: last_round(c, run)])


def acquired_per_class(c: Comparison, run: Run) -> np.ndarray:
    return run.class_counts_RC[last_round(c, run)] - run.class_counts_RC[0]


def duplicate_share(c: Comparison, run: Run) -> float:
    return acquired.duplicate_share(acquired.originals(acquired_by(c, run), run.info, run.config))


def seconds(c: Comparison, run: Run) -> dict[str, float]:
    """Up to the last label count that is compared."""
    return {key: float(values[run.labels_R <= c.labels_R[-1]].sum()) for key, values in run.seconds.items()}


# -- cells that people read --


def readable(c: Comparison, r: dict[str, Any]) -> dict[str, str]:
    """heading -> cell, of a row."""
    metric, unit = c.metric, f" ({c.metric.unit_of_difference})" if c.metric.unit else ""
    cells = {
        "strategy": r["strategy"],
        "seeds": str(r["n_seeds"]),
        heading(metric, "final {}"): metric.value(r[f"final_{metric.name}"]),
        heading(metric, "mean {} over labels"): in_words(r[f"mean_{metric.name}_over_labels"], metric.value),
        f"minus random{unit}": with_bounds(r, "minus_random", metric.difference, metric.bounds),
        "labels to target, median": labels_to_target(c, r["labels_to_target_median"]),
        "labels saved": labels_saved(c, r),
        f"p ({c.method.short})": "no call" if r.get("why_no_call") else in_words(r.get("p"), "{:.2g}".format),
    }
    if "duplicate_share" in r:  # only where the pool has copies
        cells["copies of what it had acquired"] = f"{100 * r['duplicate_share']:.1f}%"
    return cells


def heading(metric: Metric, text: str) -> str:
    return text.format(metric.words) + ("" if metric.is_share else metric.in_unit)


def in_words(value: float | None, write: Any) -> str:
    return "" if value is None else write(value)


def with_bounds(r: dict[str, Any], key: str, write: Any, bounds: Any) -> str:
    """A number with its interval; nothing where the strategy is not compared with random."""
    return "" if r.get(key) is None else f"{write(r[key])}{bounds(r[f'{key}_low'], r[f'{key}_high'])}"


def labels_to_target(c: Comparison, n: float | None) -> str:
    if n is None:
        return ""
    return f"{n:,.0f}" if np.isfinite(n) else f"> {c.labels_R[-1]:,}"


def labels_saved(c: Comparison, r: dict[str, Any]) -> str:
    """The share, or in how many pairs the target was reached where not in all."""
    if r.get("labels_saved") is None and r.get("pairs_that_count_for_target"):
        reached = r["pairs_that_reached_target"], r["pairs_in_which_random_did"]
        return f"reached {verdict.in_pairs(*reached, r['pairs_that_count_for_target'])}"
    return with_bounds(r, "labels_saved", share_of_labels, verdict.per_cent)


def share_of_labels(x: float) -> str:
    return f"{100 * x:{verdict.PER_CENT}}%"
