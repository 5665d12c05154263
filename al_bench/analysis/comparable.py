"""Which runs may be compared with each other, and why the others may not.

Runs of one setting are compared if they share a recipe, the weights and code of the net, the images, and for each seed
the initial set; runs of one strategy also share its settings and its code.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from al_bench.analysis.results import Run
from al_bench.provenance import version_of
from al_bench.recipe import NOT_COMPARED, differing_keys, matters_where_all_is_labelled
from al_bench.records import FINISHED

LeftOut = list[tuple[str, str]]  # (runs or strategies, why)
MOST_KEYS = 5  # that a reason names


def comparable_runs(runs: list[Run], metric: str = "accuracy") -> tuple[list[Run], LeftOut]:
    """The finished runs of one setting that belong together, and all others with the reason.

    An unfinished run is never part of a mean, and a run that is there twice counts once.
    """
    left_out = {run: why for run in runs if (why := why_unusable(run, metric))}
    left_out |= incomparable([run for run in runs if run not in left_out])
    counted: dict[tuple[str, int], Run] = {}
    for run in runs:
        if run not in left_out and (first := counted.setdefault((run.strategy, run.seed), run)) is not run:
            left_out[run] = f"there twice, and counted once: {first.folder}"
    return [run for run in runs if run not in left_out], [(run.name, why) for run, why in left_out.items()]


def usable_references(full: list[Run], runs: list[Run], metric: str) -> tuple[list[Run], LeftOut]:
    """Full-data runs with the recipe and the images of these runs, one a seed; the others with the reason."""
    if not runs:
        return [], []
    usable, left_out = comparable_runs(full, metric)
    found: dict[int, Run] = {}
    for run in usable:
        if why := why_no_reference(run, runs, weights_by_path([*runs, *usable])):
            left_out.append((run.name, why))
        else:
            found.setdefault(run.seed, run)
    return list(found.values()), [(f"full data, {name}", why) for name, why in left_out]


def why_no_reference(reference: Run, runs: list[Run], by_path: bool) -> str | None:
    """Why this full-data run is no reference for these runs, which are comparable."""
    theirs, ours = without_budget(reference, by_path), without_budget(runs[0], by_path)
    usual = usual_weights(runs)
    if theirs != ours:
        return f"another configuration: {difference(theirs, ours)}"
    if usual and weights(reference) not in (None, usual):
        return "other weights than the runs it would be a reference for"
    if checksum("dataset", reference) not in {checksum("dataset", run) for run in runs}:
        return "other images than the runs it would be a reference for"
    return None


# -- one run --


def why_unusable(run: Run, metric: str) -> str | None:
    """Why a run has no place in a comparison, whatever the others are."""
    if run.state == FINISHED:
        try:
            run.config  # noqa: B018
        except (OSError, ValueError) as error:
            return f"config.yaml cannot be read ({error})"
        return damage(run) or (None if metric in run.metrics else f"its records do not have {metric} in every round")
    rounds = f" after {len(run.labels_R)} rounds" if len(run.labels_R) else ""
    torn = "; the last line of rounds.jsonl was cut short" if run.torn else ""
    return f"{run.state}{rounds}{torn}{': ' + run.why if run.why else ''}"


def damage(run: Run) -> str | None:
    """What a comparison computes with and al_bench would not have written."""
    if (seed := run.config.get("seed")) != run.seed:
        return f"config.yaml is damaged (its seed is {seed}, and its folder says {run.seed})"
    for key in ("stressor.copies", "budget.validation"):
        if type(value := run.config.get(key, 0)) is not int:
            return f"config.yaml is damaged ({key} is {value!r}, not a whole number)"
    if run.config["stressor.copies"] > 1 and not (run.info.get("dataset") or {}).get("n_test"):
        return "run.json is damaged (it lacks dataset.n_test)"
    return None


# -- runs of one setting --


def incomparable(runs: list[Run]) -> dict[Run, str]:
    """The runs that cannot be compared with the others of their setting, each with the first reason.

    The usual value is the most common one; of a strategy's code it is the latest run's, or that of published runs.
    Where two are equally common, random's is usual.
    """
    runs, by_path = sorted(runs, key=lambda run: run.strategy != "random"), weights_by_path(runs)
    copies = any(run.config.get("stressor.copies", 1) > 1 for run in runs)  # whose noise is another for each seed
    found: dict[Run, str] = {}

    def check(of: Callable[[Run], str | None], group: Callable[[Run], Any], words: str, usual=most_common_of) -> None:
        for run, value, others in unusual(runs, of, group, usual):
            text = difference(*map(json.loads, (value, others))) if value.startswith("{") else ""
            newest = f"the latest run of {run.strategy}: delete it and run it again"
            if any(other.published for other in runs if other.strategy == run.strategy):
                newest = f"the published runs of {run.strategy}, which stay"
            found.setdefault(run, words.format(run=run, value=value, others=others, text=text, newest=newest))

    everywhere, strategy, seed = (lambda run: None), (lambda run: run.strategy), (lambda run: run.seed)
    check(lambda run: as_text(recipe(run, by_path)), everywhere, "another configuration: {text}")
    check(weights, everywhere, "other weights than most runs: {value} (others {others})")
    for fact in ("model_version", "model_code"):  # runs of earlier versions of al_bench have the first
        check(partial(checksum, fact), everywhere, "another version of its net's code than most runs")
    other_settings = "other settings than most runs of {run.strategy}: {text}"
    check(lambda run: as_text(own_settings(run, by_path)), strategy, other_settings)
    for fact in ("strategy_version", "strategy_code"):
        check(partial(checksum, fact), strategy, "another version of its code than {newest}", latest_of)
    other_images = f"other images than most runs{' of seed {run.seed}' if copies else ''} (dataset checksum)"
    check(lambda run: checksum("dataset", run) or "none", seed if copies else everywhere, other_images)
    other_set = "another initial set than most runs of seed {run.seed}"
    check(lambda run: checksum("initial_set", run) or "none", seed, other_set)
    return {run: found[run] for run in runs if run in found}


def unusual(
    runs: list[Run], of: Callable[[Run], str | None], group: Callable[[Run], Any], usual: Callable[..., str]
) -> Iterator[tuple[Run, str, str]]:
    """(run, its value, the usual value) of each run whose value is not the usual one of its group; None is no value."""
    values = {run: value for run in runs if (value := of(run)) is not None}
    groups: dict[Any, list[Run]] = {}
    for run in values:
        groups.setdefault(group(run), []).append(run)
    for members in groups.values():
        expected = usual(members, values)
        yield from ((run, values[run], expected) for run in members if values[run] != expected)


def most_common_of(runs: list[Run], values: dict[Run, str]) -> str:
    return most_common(values[run] for run in runs)


def latest_of(runs: list[Run], values: dict[Run, str]) -> str:
    """The value of the run that was started last; where some are published, of the last one of these."""
    return max((run.published, (run.info.get("starts") or [{}])[-1].get("time") or "", values[run]) for run in runs)[2]


def most_common(values: Iterable[Any]) -> Any:
    """The first of equally common ones."""
    return Counter(values).most_common(1)[0][0]


# -- what is compared of a run --


def recipe(run: Run, by_path: bool) -> dict[str, Any]:
    """The part of the configuration that all runs of a setting share. by_path: see weights_by_path."""
    free = ("seed", "strategy.", "features.", *(() if by_path else ("model.weights",)))
    return {k: v for k, v in without_nulls(run).items() if not k.startswith(free) and k not in NOT_COMPARED}


def without_budget(run: Run, by_path: bool) -> dict[str, Any]:
    """The part of the recipe that a full-data run shares."""
    return {k: v for k, v in recipe(run, by_path).items() if matters_where_all_is_labelled(k)}


def own_settings(run: Run, by_path: bool) -> dict[str, Any]:
    """The part of the configuration that all runs of a strategy share; of the features' weights their version."""
    used = ("strategy.", "features.") if run.info.get("features") is not None else ("strategy.",)
    own = {k: v for k, v in without_nulls(run).items() if k.startswith(used)}
    version = {} if by_path else run.info["weights"]
    return own | ({"features.weights": version["features"]} if version.get("features") else {})


def without_nulls(run: Run) -> dict[str, Any]:
    """The configuration without nulls: a run that is older than a setting equals one that leaves it unset."""
    return {k: v for k, v in run.config.items() if v is not None}


def weights_by_path(runs: list[Run]) -> bool:
    """Whether some of these runs noted no checksum of their weights: then paths are compared instead."""
    return not all("weights" in run.info for run in runs)


def weights(run: Run) -> str | None:
    """The version of the weights that the nets began with; None where the run noted none."""
    return (run.info.get("weights") or {}).get("model")


def usual_weights(runs: list[Run]) -> str | None:
    return most_common([version for run in runs if (version := weights(run))] or [None])


def checksum(fact: str, run: Run) -> str | None:
    found = run.info.get(fact) or {}
    return version_of(found) if "checksum" in found else None


def as_text(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def difference(config: dict[str, Any], usual: dict[str, Any]) -> str:
    keys = differing_keys(config, usual)
    words = [f"{k}={config.get(k)} (others {usual.get(k)})" for k in keys[:MOST_KEYS]]
    return ", ".join(words + ["..."] * (len(keys) > MOST_KEYS))
