"""What a reader has to know of a comparison besides its verdict: sentences from runs and numbers."""

import re
from collections import Counter
from typing import Any

import numpy as np

from al_bench.analysis.metric import ACCURACY, RECORDED_IN_TRAINING, Metric
from al_bench.analysis.results import Run
from al_bench.records import FINISHED

SHOWN = 4  # runs, or values of a fact, that a sentence names
FAIRER = ("macro_f1", "balanced_accuracy", "worst_class")  # metrics in which each class counts the same


def of_runs(runs: list[Run], references: list[Run], labels_R: np.ndarray, metric: Metric) -> list[str]:
    """What is to be said of runs that are compared, and of the label counts that all of them have."""
    return [
        *validation_labels(runs),
        *hardware([*runs, *references]),
        *label_counts(runs, labels_R),
        *misleading(runs, metric),
    ]


def not_recorded(runs: list[Run], metric: Metric) -> list[str]:
    """A sentence where finished runs lack the metric. runs: all there are, with those that are left out."""
    finished = [run for run in runs if run.state == FINISHED]
    n = sum(metric.name not in run.metrics for run in finished)
    if metric is ACCURACY or not n:
        return []
    return [f"{n} of {len(finished)} finished runs do not have {metric.words}. {RECORDED_IN_TRAINING}"]


def validation_labels(runs: list[Run]) -> list[str]:
    n = runs[0].config.get("budget.validation", 0) if runs else 0
    return [f"Each run has {n:,} labels more, for validation, which are not counted here."] if n else []


def hardware(runs: list[Run]) -> list[str]:
    words = []
    for name, counts in circumstances(runs).items():
        shown = counts.most_common(SHOWN)
        if n_others := counts.total() - sum(n for _, n in shown):
            shown.append(("others", n_others))
        there = ", ".join(f"{value} ({n} of {len(runs)} runs)" for value, n in shown)
        words.append(f"Computed on different hardware or software: {name} {there}")
    return words


def circumstances(runs: list[Run]) -> dict[str, Counter[str]]:
    """For each fact of hardware and software in which the runs differ: how many runs had which value."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        of_run: dict[str, dict[str, None]] = {}
        for start in run.info.get("starts", []):  # a run that was continued may have changed machines
            versions = {f"version of {k}": v for k, v in (start.get("versions") or {}).items()}
            there = {name: start.get(name) for name in ("cpu", "device", "precision", "threads", "python")}
            there["git"] = commit(start)
            for name, value in (versions | there).items():
                of_run.setdefault(name, {})[str(value)] = None
        for name, values in of_run.items():
            facts.setdefault(name, Counter())[", then ".join(values)] += 1
    return {name: counts for name, counts in facts.items() if len(counts) > 1}


def commit(start: dict[str, Any]) -> str:
    """The commit that a start of a run had, in short; with a + where code or configuration was changed."""
    return re.sub(r"^(\w{7})\w+", r"\1", start.get("git") or "unknown")


def label_counts(runs: list[Run], labels_R: np.ndarray) -> list[str]:
    """A sentence where some runs have label counts that others lack."""
    if runs and not len(labels_R):
        return [f"{len(runs)} runs have no label count in common."]
    n_longer = sum(len(run.labels_R) > len(labels_R) for run in runs)
    if not n_longer:
        return []
    fewest = min(len(run.labels_R) for run in runs)
    short = [run.name for run in runs if len(run.labels_R) == fewest]
    return [
        f"Compared on the {len(labels_R)} label counts that all runs have, {labels_R[0]:,} to {labels_R[-1]:,}; "
        f"{n_longer} of {len(runs)} runs have others besides. Fewest: {', '.join(short[:SHOWN])}"
        f"{f' and {len(short) - SHOWN} more' if len(short) > SHOWN else ''}."
    ]


def misleading(runs: list[Run], metric: Metric) -> list[str]:
    """A warning where accuracy can hide that a class is not learned, and the metric to ask for instead."""
    config = runs[0].config if runs and metric is ACCURACY else {}
    asked = (config.get(f"stressor.{key}") for key in ("imbalance", "foreign"))
    imbalance, foreign = (value if isinstance(value, int | float) else 0 for value in asked)
    why = [f"its classes have a long tail (stressor.imbalance={imbalance:g})"] if imbalance > 1 else []
    why += [f"it holds images of no class (stressor.foreign={foreign})"] if foreign else []
    if not why:
        return []
    better = next((name for name in FAIRER if all(name in run.metrics for run in runs)), None)
    instead = f" In {better} each class counts the same: al-bench report ... --metric {better}." if better else ""
    return [
        f"Accuracy may mislead on this pool: {' and '.join(why)}. Accuracy can rise while a class with few acquired "
        f"labels is not learned.{instead}"
    ]


def other_seeds(seeds_of_random: list[int], seeds: dict[str, list[int]]) -> list[str]:
    """A sentence where strategies have other seeds than random. seeds: of each strategy that is paired with it."""
    have = set(seeds_of_random)
    apart = [
        f"{name} {len(have & set(theirs))} of {len(have | set(theirs))}"
        for name, theirs in seeds.items()
        if have != set(theirs)
    ]
    return [f"Not all have the seeds of random; pairs in common: {', '.join(apart)}."] if apart else []


def reached_from_the_start(target: float, first_S: np.ndarray, metric: Metric) -> list[str]:
    """A sentence where some runs reach the target with their initial set, which no strategy chose.

    first_S: the metric of each run after its initial set.
    """
    if not (n := int((metric.sign * first_S >= metric.sign * target).sum())):
        return []
    return [
        f"Labels saved are not computed: {n} of {len(first_S)} runs reach the target of {metric.target(target)} with "
        "the initial set already. Choose another by --target."
    ]
