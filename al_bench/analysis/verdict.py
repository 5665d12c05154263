"""From runs to a verdict: what is compared, with which numbers, in which words. Reads results, never trains.

S seeds, R rounds. A cell's strategies are compared with random sampling, in pairs of one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import floor, inf
from statistics import mean, median
from typing import Any

import numpy as np

from al_bench.analysis import results, stats
from al_bench.analysis.results import Cell, Run
from al_bench.analysis.stats import Comparison, Efficiency
from al_bench.recipe import matters_where_all_is_labelled
from al_bench.records import FINISHED
from al_bench.text import printable

RANDOM, CONTROL = "random", "random_control"
ALPHA = 0.05
POINTS, PER_CENT = "+z.1f", "z.0f"  # how they are written; z: a small loss is no -0.0
AREA = "mean accuracy over the labels"  # what a reader makes of the area under the budget curve


@dataclass(frozen=True)
class Against:
    """A strategy against random, paired by seed."""

    seeds: list[int]
    area: Comparison  # of the areas under the budget curve
    p_holm: float | None  # None: in no family, for want of pairs
    efficiency: Efficiency
    difference: tuple[np.ndarray, np.ndarray, np.ndarray]  # mean_R, low_R, high_R of accuracy minus random's
    n_tests: int  # with p <= ALPHA / n_tests it is called: its Holm family, less the others of it that are called

    @property
    def refusal(self) -> str | None:
        if why := stats.refusal(self.area, ALPHA, self.n_tests):
            return why
        if self.p_holm < ALPHA and self.area.low <= 0 <= self.area.high:
            return f"the ranks of the differences say one thing (p = {self.p_holm:.2g}), their mean does not follow"
        return None

    @property
    def significant(self) -> bool:
        return self.refusal is None and self.p_holm < ALPHA


@dataclass(frozen=True)
class Study:
    """One cell: the runs that can be compared, on the label counts that all of them have."""

    cell: Cell
    runs: dict[str, list[Run]]  # of each strategy, by seed; random first
    labels_R: np.ndarray
    target: float | None  # accuracy that labels are counted to
    references: list[Run]  # finished runs on the full data
    against: dict[str, Against] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (runs or strategies, why)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each strategy, as row makes them

    @property
    def full(self) -> float | None:
        """Accuracy of the full-data reference, mean over its seeds."""
        return mean(self.full_by_seed.values()) if self.references else None

    @property
    def full_by_seed(self) -> dict[int, float]:
        """Accuracy of the full-data reference."""
        return {run.seed: run.metrics["accuracy"][-1] for run in self.references}

    @property
    def all_runs(self) -> list[Run]:
        """Those of the strategies, then the references."""
        return [*(run for runs in self.runs.values() for run in runs), *self.references]

    def seeds(self, strategy: str) -> list[int]:
        return [run.seed for run in self.runs[strategy]]

    def shared_seeds(self, strategies: Sequence[str]) -> list[int]:
        """The seeds that all of these strategies have."""
        return sorted(set.intersection(*(set(self.seeds(name)) for name in strategies))) if strategies else []

    def curve(self, strategy: str, metric: str = "accuracy", seeds: Sequence[int] | None = None) -> np.ndarray:
        """[S, R] at labels_R, of these seeds or of all; nan where a run lacks the metric."""
        runs = [run for run in self.runs[strategy] if seeds is None or run.seed in seeds]
        return np.array([on(self.labels_R, run, metric) for run in runs])

    def area(self, strategy: str) -> np.ndarray:
        return stats.aubc(self.labels_R, self.curve(strategy))

    def labels_to_target(self, strategy: str, rule: str = "first", seeds: Sequence[int] | None = None) -> np.ndarray:
        return stats.labels_to(self.target, self.labels_R, self.curve(strategy, seeds=seeds), rule)


def on(labels_R: np.ndarray, run: Run, metric: str) -> np.ndarray:
    values = run.metrics.get(metric)
    if values is not None and np.array_equal(run.labels_R, labels_R):
        return values
    return np.full(len(labels_R), np.nan) if values is None else values[np.isin(run.labels_R, labels_R)]


def studies(runs: list[Run], target: float | None = None) -> list[Study]:
    """One for each cell, in the order of their names; runs on the full data are the reference of others beside them."""
    cells = results.cells(runs)
    full = {cell[:3]: there for cell, there in cells.items() if cell.budget == "full"}
    partial = {cell[:3] for cell in cells if cell.budget != "full"}
    return [
        study(cell, there, [] if cell.budget == "full" else full.get(cell[:3], []), target)
        for cell, there in cells.items()
        if cell.budget != "full" or cell[:3] not in partial
    ]


def study(cell: Cell, there: list[Run], full: list[Run], target: float | None) -> Study:
    runs, left_out = comparable(there)
    references, others = usable_references(full, runs)
    labels_R, notes = common_labels(runs)
    order = sorted(runs if len(labels_R) else [], key=lambda r: (r.strategy != RANDOM, r.strategy, r.seed))
    by_strategy = {name: [r for r in order if r.strategy == name] for name in dict.fromkeys(r.strategy for r in order)}
    notes = [*validation_labels(runs), *differences([*runs, *references]), *notes]
    apart = [(printable(who), printable(why)) for who, why in (*left_out, *others)]
    s = Study(cell, by_strategy, labels_R, target, references, {}, apart, [*map(printable, notes)])
    if by_strategy and RANDOM not in by_strategy:
        s.notes.append("No finished run of random sampling: there is nothing to compare the strategies with.")
    elif len(labels_R) == 1:
        s.notes.append("One label count only: there is no curve to compare.")
    elif by_strategy:
        s = replace(s, target=reached_by_all(s) if target is None else target)
        if why := had_from_the_start(s):
            s = replace(s, target=None)
            s.notes.append(why)
        s.against.update(against_random(s))
        s.notes.extend(seeds_apart(s))
    s.rows.update({name: row(s, name) for name in s.runs})
    return s


def usable_references(full: list[Run], runs: list[Run]) -> tuple[list[Run], list[tuple[str, str]]]:
    """Full-data runs of the recipe and the images of these runs, one a seed; the others with the reason."""
    if not runs:
        return [], []
    usable, left_out = comparable(full)
    found: dict[int, Run] = {}
    by_path = results.weights_by_path([*runs, *usable])
    ours, images = without_budget(runs[0], by_path), {results.checksum(run.info, "dataset") for run in runs}
    weights = results.usual_weights(runs)
    for run in usable:
        theirs = without_budget(run, by_path)
        if theirs != ours:
            left_out.append((run.name, f"another configuration: {results.difference(theirs, ours)}"))
        elif weights and results.weights(run) not in (None, weights):
            left_out.append((run.name, "other weights than the runs it would be a reference for"))
        elif results.checksum(run.info, "dataset") not in images:
            left_out.append((run.name, "other images than the runs it would be a reference for"))
        else:
            found.setdefault(run.seed, run)
    return list(found.values()), [(f"full data, {name}", why) for name, why in left_out]


def without_budget(run: Run, by_path: bool) -> dict[str, Any]:
    return {k: v for k, v in results.recipe(run, by_path).items() if matters_where_all_is_labelled(k)}


def common_labels(runs: list[Run]) -> tuple[np.ndarray, list[str]]:
    """The label counts that all runs have, and what is to be said about others."""
    if not runs:
        return np.zeros(0, int), []
    try:
        curves = stats.common([(run.labels_R, run.metrics["accuracy"]) for run in runs])
    except ValueError as error:
        return np.zeros(0, int), [str(error)]
    cut = sum(map(bool, curves.dropped))
    fewest = min(len(run.labels_R) for run in runs)
    short = [run.name for run in runs if len(run.labels_R) == fewest]
    words = (
        f"Compared on the {len(curves.labels_R)} label counts that all runs have, {curves.labels_R[0]:,} to "
        f"{curves.labels_R[-1]:,}; {cut} of {len(runs)} runs have others besides. Fewest: {', '.join(short[:4])}"
        f"{f' and {len(short) - 4} more' if len(short) > 4 else ''}."
    )
    return curves.labels_R, [words] if cut else []


def comparable(there: list[Run]) -> tuple[list[Run], list[tuple[str, str]]]:
    """The finished runs that belong together, and all others with the reason. Unfinished ones are never averaged in."""
    left_out = {run: why for run in there if (why := why_not(run))}
    counted: dict[tuple[str, int], Run] = {}
    for run in there:
        if run not in left_out and (first := counted.setdefault((run.strategy, run.seed), run)) is not run:
            left_out[run] = f"there twice, and counted once: {first.folder}"
    left_out |= results.odd_ones([run for run in there if run not in left_out])
    return [run for run in there if run not in left_out], [(run.name, why) for run, why in left_out.items()]


def why_not(run: Run) -> str | None:
    """Why a run has no place in a comparison, whatever the others are."""
    if run.state == FINISHED:
        try:
            run.config  # noqa: B018
        except (OSError, ValueError) as error:
            return f"config.yaml cannot be read ({error})"
        return cannot_be_used(run)
    rounds = f" after {len(run.labels_R)} rounds" if len(run.labels_R) else ""
    torn = "; the last line of rounds.jsonl was cut short" if run.torn else ""
    return f"{run.state}{rounds}{torn}{': ' + run.why if run.why else ''}"


def cannot_be_used(run: Run) -> str | None:
    """What a comparison computes with is not what al_bench writes."""
    for key in ("stressor.copies", "budget.validation"):
        if type(value := run.config.get(key, 0)) is not int:
            return f"config.yaml is damaged ({key} is {value!r}, not a whole number)"
    if run.config["stressor.copies"] > 1 and not (run.info.get("dataset") or {}).get("n_test"):
        return "run.json is damaged (it lacks dataset.n_test)"
    return None


def validation_labels(runs: list[Run]) -> list[str]:
    n = runs[0].config.get("budget.validation", 0) if runs else 0
    return [f"Each run has {n:,} labels more, for validation, which are not counted here."] if n else []


def differences(runs: list[Run]) -> list[str]:
    words = []
    for name, counts in results.circumstances(runs).items():
        shown = counts.most_common(4)
        if n_others := counts.total() - sum(n for _, n in shown):
            shown.append(("others", n_others))
        there = ", ".join(f"{value} ({n} of {len(runs)} runs)" for value, n in shown)
        words.append(f"Computed on different hardware or software: {name} {there}")
    return words


def seeds_apart(s: Study) -> list[str]:
    """A sentence where strategies have other seeds than random: pairs are made of what both have."""
    have = set(s.seeds(RANDOM))
    apart = [
        f"{name} {len(a.seeds)} of {len(have | set(s.seeds(name)))}"
        for name, a in s.against.items()
        if have != set(s.seeds(name))
    ]
    return [f"Not all have the seeds of random; pairs in common: {', '.join(apart)}."] if apart else []


def reached_by_all(s: Study) -> float | None:
    """The highest whole per cent that random reaches with every seed: a target that censors none of its runs."""
    return floor(100 * s.curve(RANDOM).max(1).min() + 1e-9) / 100


def had_from_the_start(s: Study) -> str:
    """Why no labels can be counted to the target: some runs' initial set was enough, which no strategy chose."""
    has = np.concatenate([s.curve(name)[:, 0] >= s.target for name in s.runs])
    return (
        f"No labels are counted to {s.target:.1%}: {has.sum()} of {len(has)} runs have it from the start."
        if has.any()
        else ""
    )


def against_random(s: Study) -> dict[str, Against]:
    pairs = {
        name: seeds for name in s.runs if name not in (RANDOM, CONTROL) and (seeds := s.shared_seeds([name, RANDOM]))
    }
    areas = {}
    for name, seeds in pairs.items():
        ours, theirs = (stats.aubc(s.labels_R, s.curve(x, seeds=seeds)) for x in (name, RANDOM))
        areas[name] = stats.compare(ours, theirs)
    return {
        name: Against(
            pairs[name],
            areas[name],
            p_holm,
            savings(s, name, pairs[name]),
            stats.difference_curve(s.curve(name, seeds=pairs[name]), s.curve(RANDOM, seeds=pairs[name])),
            n_tests,
        )
        for name, (p_holm, n_tests) in corrected(areas).items()
    }


def corrected(areas: dict[str, Comparison]) -> dict[str, tuple[float | None, int]]:
    """Holm's p and n_tests, as in Against. What has too few pairs for any call is in no family."""
    family = [name for name, a in areas.items() if a.smallest_p <= ALPHA]
    p_T = stats.holm([areas[name].p_wilcoxon for name in family])
    n_tests_T = len(family) - (p_T < ALPHA).sum() + (p_T < ALPHA)
    found = {name: (float(p), int(n)) for name, p, n in zip(family, p_T, n_tests_T, strict=True)}
    return {name: found.get(name, (None, 1)) for name in areas}


def savings(s: Study, name: str, seeds: list[int]) -> Efficiency:
    if s.target is None:
        never = np.full(len(seeds), inf)
        return stats.efficiency(never, never)
    return stats.efficiency(*(s.labels_to_target(x, "envelope", seeds) for x in (RANDOM, name)))


def noise(s: Study) -> tuple[np.ndarray, np.ndarray] | None:
    """What a difference to random looks like where there is none, low_R and high_R: a second random arm's."""
    seeds = s.shared_seeds([RANDOM, CONTROL]) if {RANDOM, CONTROL} <= s.runs.keys() else []
    if len(seeds) < 2:
        return None
    return stats.difference_curve(s.curve(CONTROL, seeds=seeds), s.curve(RANDOM, seeds=seeds))[1:]


# -- over several studies --


@dataclass(frozen=True)
class Across:
    """Strategies over B studies, each of which counts once, by its mean over seeds. M strategies."""

    cells: list[Cell]
    names: list[str]
    score_BM: np.ndarray  # area under the budget curve
    penalty_MM: np.ndarray  # mean over studies: the row beats the column
    ranks: stats.Ranks | None  # None: too few studies or strategies
    n_left_out: int  # studies: the same cell under another name, or fewer than two seeds that all strategies have


def across(found: list[Study]) -> Across | None:
    """None below two studies, or two strategies, that can be put side by side; paired by the seeds that all have."""
    compared = {s.cell[1:]: s for s in reversed(found) if s.against}  # a cell under several names of study counts once
    usable = list(reversed(compared.values()))
    names = [n for n in usable[0].runs if n != CONTROL and all(n in s.runs for s in usable)] if usable else []
    shared = [s.shared_seeds(names) for s in usable]
    usable, shared = (
        [s for s, seeds in zip(usable, shared, strict=True) if len(seeds) > 1],
        [x for x in shared if len(x) > 1],
    )
    if len(usable) < 2 or len(names) < 2:
        return None
    curves = [np.array([s.curve(n, seeds=seeds) for n in names]) for s, seeds in zip(usable, shared, strict=True)]
    score_BM = np.array(
        [[stats.aubc(s.labels_R, x_SR).mean() for x_SR in x_MSR] for s, x_MSR in zip(usable, curves, strict=True)]
    )
    try:
        ranks = stats.ranks(score_BM)
    except ValueError:
        ranks = None
    n_left_out = len([s for s in found if s.against]) - len(usable)
    return Across(
        [s.cell for s in usable], names, score_BM, np.mean([*map(stats.penalty_holm, curves)], 0), ranks, n_left_out
    )


def across_sentences(a: Across, rope: float = 0.005) -> list[str]:
    """How each strategy stands against random over the studies."""
    b = len(a.score_BM)
    random_B = a.score_BM[:, a.names.index(RANDOM)]
    words = []
    for name, score_B in zip(a.names, a.score_BM.T, strict=True):
        if name == RANDOM:
            continue
        gain_B = score_B - random_B
        n_above = int((gain_B > 0).sum())
        text = f"{name}: above random in {n_above} of {b} studies, {points(gain_B.mean())} points on average"
        if b >= stats.MIN_BLOCKS:
            better, same, worse = stats.bayesian_signed_rank(score_B, random_B, rope)
            text += (
                f"; Bayesian signed-rank test: better by more than {100 * rope:g} points with probability "
                f"{better:.2f}, as good {same:.2f}, worse {worse:.2f}"
            )
        words.append(f"{text}.")
    if a.n_left_out:
        words.append(
            f"{a.n_left_out} studies are not in these numbers: the same data, model and budget under another name, or "
            "fewer than two seeds that all strategies have."
        )
    return words


# -- in words --


def sentences(s: Study) -> list[str]:
    """The verdict, the best strategy first, and why there is no call where there is none."""
    order = sorted(s.against, key=lambda name: -s.against[name].area.mean)
    refusals: dict[str, list[str]] = {}
    for name in order:
        if why := s.against[name].refusal:
            refusals.setdefault(why, []).append(name)
    words = [f"No call for {', '.join(names)}: {why}." for why, names in refusals.items()]
    return [sentence(name, s.against[name], s.target) for name in order] + words


def sentence(name: str, a: Against, target: float | None) -> str:
    gain = f"{points(a.area.mean)} points of {AREA}{interval(a.area.low, a.area.high)}"
    labels = labels_saved(a.efficiency, target)
    facts = f"{labels}{gain}; n = {a.area.n} {'pair' if a.area.n == 1 else 'pairs'}"
    if a.refusal:
        return f"{name}{' ' if labels else ': '}{facts}, no call."
    if a.significant:
        better = "better" if a.area.mean > 0 else "worse"
        return f"{name} is {better} than random: {facts}, p = {a.p_holm:.2g} (Wilcoxon, Holm)."
    could = 100 * stats.detectable(a.area.n, a.area.sd, ALPHA / a.n_tests)
    return (
        f"{name}: no difference to random that {a.area.n} pairs could show: {facts}, p = {a.p_holm:.2g} (Wilcoxon, "
        f"Holm). A difference of {could:.1f} points would have shown four times in five."
    )


def labels_saved(e: Efficiency, target: float | None) -> str:
    """ "needs 31% [12, 44] fewer labels than random to reach 90%; ", or why that cannot be said."""
    if target is None:
        return ""
    percent = f"{target:.0%}" if round(100 * target, 6) == round(100 * target) else f"{target:.1%}"
    if e.n_pairs < e.n:  # a mean over those that got there would flatter the strategy
        return f"reached {percent} {in_pairs(*e.n_reached, e.n)}; "
    mean, low, high = e.savings
    fewer = "fewer" if mean >= 0 else "more"
    low, high = (low, high) if mean >= 0 or low is None else (-high, -low)
    share = f"{100 * abs(mean):.0f}%{interval(low, high, PER_CENT)}"
    return f"needs {share} {fewer} training labels than random to reach {percent}; "


def in_pairs(n: int, n_random: int, n_pairs: int) -> str:
    return f"in {n} of {n_pairs} pairs{'' if n_random == n_pairs else f', random in {n_random}'}"


def points(fraction: float) -> str:
    return f"{100 * fraction:{POINTS}}"


def interval(low: float | None, high: float | None, form: str = POINTS) -> str:
    """Of fractions, in per cent or points; nothing where there is none."""
    return "" if low is None else f" [{100 * low:{form}}, {100 * high:{form}}]"


def summary(found: list[Study]) -> list[dict[str, Any]]:
    """One row for each strategy of each study: the numbers behind figures and words. Accuracies are fractions."""
    return [row for s in found for row in s.rows.values()]


def row(s: Study, name: str) -> dict[str, Any]:
    several = len(s.labels_R) > 1
    final_S = s.curve(name)[:, -1]
    quartiles = stats.quartiles(s.labels_to_target(name)) if s.target is not None else (None,) * 3
    values: dict[str, Any] = {
        **s.cell._asdict(),
        "strategy": name,
        "n_seeds": len(s.runs[name]),
        "labels_from": int(s.labels_R[0]),
        "labels_to": int(s.labels_R[-1]),
        "final_accuracy": float(final_S.mean()),
        "mean_accuracy_over_labels": float(s.area(name).mean()) if several else None,
        "target": s.target,
        **dict(
            zip(("labels_to_target_q25", "labels_to_target_median", "labels_to_target_q75"), quartiles, strict=True)
        ),
    }
    if a := s.against.get(name):
        e = a.efficiency
        saved, saved_low, saved_high = e.savings if e.n_pairs == e.n else (None, None, None)
        values |= {
            "n_pairs": a.area.n,
            "minus_random": a.area.mean,
            "minus_random_low": a.area.low,
            "minus_random_high": a.area.high,
            "interval": a.area.interval,
            "p_wilcoxon": a.area.p_wilcoxon,
            "p_holm": a.p_holm,
            "p_t": a.area.p_t,
            "significant": a.significant,
            "why_no_call": a.refusal,
            "labels_saved": saved,
            "labels_saved_low": saved_low,
            "labels_saved_high": saved_high,
            "pairs_that_reached_target": e.n_reached[0],
            "pairs_in_which_random_did": e.n_reached[1],
        }
    if several and s.runs[name][0].config["stressor.copies"] > 1:
        values["duplicate_share"] = mean(duplicate_share(s, run) for run in s.runs[name])
    if several and all(run.class_counts_RC is not None for run in s.runs[name]):
        values["label_entropy"] = mean(stats.label_entropy(bought_per_class(s, run)) for run in s.runs[name])
    keys = dict.fromkeys(key for run in s.runs[name] for key in run.seconds)
    return values | {f"seconds_{key}": median(seconds(s, run).get(key, 0.0) for run in s.runs[name]) for key in keys}


def last_round(s: Study, run: Run) -> int:
    """The run's round at the last label count that is compared."""
    return int(np.flatnonzero(run.labels_R == s.labels_R[-1])[0])


def bought(s: Study, run: Run) -> np.ndarray:
    """What it acquired up to there, after the initial set."""
    return np.concatenate(run.acquired[: last_round(s, run)])


def bought_per_class(s: Study, run: Run) -> np.ndarray:
    return run.class_counts_RC[last_round(s, run)] - run.class_counts_RC[0]


def duplicate_share(s: Study, run: Run) -> float:
    return stats.duplicate_share(results.originals(bought(s, run), run.info, run.config))


def seconds(s: Study, run: Run) -> dict[str, float]:
    """Up to the last label count that is compared."""
    return {key: float(values[run.labels_R <= s.labels_R[-1]].sum()) for key, values in run.seconds.items()}


def planner(s: Study, points: Sequence[float] = (0.005, 0.01, 0.02)) -> dict[float, str] | None:
    """How many seeds a difference of so much would take, from the median spread of the differences seen here."""
    spread = [a.area.sd for a in s.against.values() if a.area.sd]
    if not spread:
        return None

    def seeds(difference: float) -> str:
        try:
            return str(stats.seeds_needed(median(spread), difference, ALPHA / len(s.against)))
        except ValueError:
            return "more than 10,000"

    return {p: seeds(p) for p in points}
