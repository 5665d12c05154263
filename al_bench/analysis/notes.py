"""What a reader has to know of a comparison besides its verdict: sentences from runs and numbers."""

import re
from typing import Any

import numpy as np

from al_bench.analysis import planned
from al_bench.analysis.metric import ACCURACY, RECORDED_IN_TRAINING, Metric
from al_bench.analysis.results import Run
from al_bench.analysis.stats import FEWEST
from al_bench.errors import UserError
from al_bench.records import FINISHED

SHOWN = 4  # runs, or values of a fact, that a sentence names
SHOWS_A_CLASS = ("worst_class", "macro_f1", "balanced_accuracy")  # metrics that fall if one class is not learned


def of_runs(runs: list[Run], references: list[Run], labels_R: np.ndarray, metric: Metric) -> list[str]:
    """What is to be said of runs that are compared, and of the label counts that all of them have."""
    return [
        *validation_labels(runs),
        *hardware([*runs, *references]),
        *first_rounds(runs, metric),
        *label_counts(runs, labels_R),
        *misleading(runs, metric),
    ]


def oracle_lines(areas: dict[str, np.ndarray], metric: Metric) -> list[str]:
    """A sentence on each oracle line. areas: under the curve of each seed, as of a strategy."""
    return [
        f"oracle: {name} chooses with all labels of the pool and of the test images. Its mean over the labels is "
        f"{metric.value(float(area_S.mean()))} ({len(area_S)} seeds). It shows how much is left to gain, and is "
        "compared with no strategy."
        for name, area_S in areas.items()
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
    return [f"Each run has {n:,} labels more, for validation. Curves and label counts leave them out."] if n else []


def hardware(runs: list[Run]) -> list[str]:
    words = []
    for name, having in circumstances(runs).items():
        most_first = sorted(having, key=lambda value: -len(having[value]))
        shown = {value: having[value] for value in most_first[:SHOWN]}
        if others := [run for value in most_first[SHOWN:] for run in having[value]]:
            shown["others"] = others
        there = ", ".join(
            f"{value} ({len(with_it)} of {len(runs)} runs{wholly(with_it, runs) if i else ''})"
            for i, (value, with_it) in enumerate(shown.items())
        )
        words.append(f"Computed on different hardware or software: {name} {there}")
    return words


def wholly(some: list[Run], runs: list[Run]) -> str:
    """Which strategies have all of their runs among some of the runs: they differ by more than by their choice."""
    names = dict.fromkeys(run.strategy for run in some)
    whole = [name for name in names if all(run in some for run in runs if run.strategy == name)]
    return f": all of {', '.join(whole)}" if whole else ""


def circumstances(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """For each fact of hardware and software in which the runs differ: which runs had which value."""
    facts: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        of_run: dict[str, dict[str, None]] = {}
        for start in run.info.get("starts", []):  # a run that was continued may have changed machines
            versions = {f"version of {k}": v for k, v in (start.get("versions") or {}).items()}
            there = {name: start.get(name) for name in ("cpu", "device", "precision", "threads", "python")}
            there["git"] = commit(start)
            for name, value in (versions | there).items():
                of_run.setdefault(name, {})[str(value)] = None
        for name, values in of_run.items():
            facts.setdefault(name, {}).setdefault(", then ".join(values), []).append(run)
    return {name: having for name, having in facts.items() if len(having) > 1}


def first_rounds(runs: list[Run], metric: Metric) -> list[str]:
    """A sentence where strategies of one seed do not begin alike, although they share the first fit."""
    of_seed: dict[int, set[float]] = {}
    for run in runs:
        of_seed.setdefault(run.seed, set()).add(round(float(run.metrics[metric.name][0]), 6))
    apart = [seed for seed, values in sorted(of_seed.items()) if len(values) > 1]
    if not apart:
        return []
    shown = ", ".join(map(str, apart[:SHOWN])) + (" and others" if len(apart) > SHOWN else "")
    return [
        f"The first round differs between strategies of the same seed ({shown}), which train on the same labels: part "
        "of their differences is hardware or software."
    ]


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
    better = next((name for name in SHOWS_A_CLASS if all(name in run.metrics for run in runs)), None)
    instead = f" See {better}: al-bench report ... --metric {better}." if better else ""
    return [
        f"Accuracy may mislead on this pool: {' and '.join(why)}. The mean over the test images can rise while a class "
        f"with few acquired labels is not learned.{instead}"
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


def reached_from_the_start(target: float, n: int, n_seeds: int, metric: Metric, too_many: bool) -> list[str]:
    """A sentence where the initial set of n seeds, which no strategy chose, reaches the target.

    too_many: no labels saved are computed from the others.
    """
    if not n:
        return []
    with_it = f"{n} of {n_seeds} seeds reach the target of {metric.target(target)} with the initial set already."
    if too_many:
        return [f"Labels saved are not computed: {with_it} Choose another by --target."]
    return [f"Labels saved leave out some seeds: {with_it}"]


def looks(runs: list[Run]) -> tuple[int, list[str]]:
    """(how often the results could be looked at, now included; a sentence where seeds were added after a look)."""
    try:
        n_looks, added = planned.looks(runs, FEWEST)
    except UserError as error:
        return 1, [str(error)]
    if n_looks == 1:
        return 1, []
    return n_looks, [
        f"Seeds were added after results could be read ({', '.join(map(str, added))}): {n_looks} looks at the data. "
        f"Each has a chance of a false call, so p-values are multiplied by {n_looks} and intervals are wider."
    ]
