"""What is compared: the runs of one setting by one metric, each strategy with random sampling in pairs of one seed.

S seeds, R rounds, M strategies, B comparisons. Numbers only; verdict.py has the words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import mean

import numpy as np

from al_bench.analysis import notes, rankings, results, stats
from al_bench.analysis.comparable import LeftOut, comparable_runs, usable_references
from al_bench.analysis.metric import ACCURACY, Metric
from al_bench.analysis.results import Run, Setting
from al_bench.analysis.stats import Efficiency, PairedDifference
from al_bench.text import printable

RANDOM, CONTROL = "random", "random_control"
ALPHA = 0.05


@dataclass(frozen=True)
class VersusRandom:
    """A strategy against random, paired by seed."""

    seeds: list[int]
    area: PairedDifference  # of the areas under the curve
    p_holm: float | None  # after Holm's correction; None where the pairs are too few to ever be significant
    efficiency: Efficiency
    difference: tuple[np.ndarray, np.ndarray, np.ndarray]  # mean_R, low_R, high_R of the metric minus random's
    n_tests: int  # that Holm's method corrects this p-value for: significant if p <= ALPHA / n_tests

    @property
    def why_no_call(self) -> str | None:
        if why := stats.why_no_call(self.area, ALPHA, self.n_tests):
            return why
        if self.p_holm < ALPHA and self.area.low <= 0 <= self.area.high:
            return f"the test of ranks is significant (p = {self.p_holm:.2g}), but the interval of the mean contains 0"
        return None

    @property
    def significant(self) -> bool:
        return self.why_no_call is None and self.p_holm < ALPHA


@dataclass(frozen=True)
class Comparison:
    """The runs of one setting that can be compared, on the label counts that all of them have."""

    setting: Setting
    metric: Metric
    runs: dict[str, list[Run]]  # of each strategy, by seed; random first
    labels_R: np.ndarray
    references: list[Run]  # finished runs on the full data, one a seed
    left_out: LeftOut
    notes: list[str]
    target: float | None = None  # value of the metric that labels are counted to
    versus_random: dict[str, VersusRandom] = field(default_factory=dict)

    @property
    def full(self) -> float | None:
        """The metric on the full data, mean over its seeds."""
        return mean(self.full_by_seed.values()) if self.references else None

    @property
    def full_by_seed(self) -> dict[int, float]:
        return {run.seed: run.metrics[self.metric.name][-1] for run in self.references}

    @property
    def all_runs(self) -> list[Run]:
        """Those of the strategies, then the references."""
        return [*(run for runs in self.runs.values() for run in runs), *self.references]

    @property
    def best_first(self) -> list[str]:
        """The strategies that are compared with random, that of the best mean area first."""
        return sorted(self.versus_random, key=lambda name: -self.metric.sign * self.versus_random[name].area.mean)

    def seeds(self, strategy: str) -> list[int]:
        return [run.seed for run in self.runs[strategy]]

    def shared_seeds(self, strategies: Sequence[str]) -> list[int]:
        """The seeds that all of these strategies have."""
        return sorted(set.intersection(*(set(self.seeds(name)) for name in strategies))) if strategies else []

    def curve(self, strategy: str, seeds: Sequence[int] | None = None, metric: str | None = None) -> np.ndarray:
        """value_SR at labels_R, of these seeds or of all. metric: another one than the comparison's.

        nan where a run lacks the metric.
        """
        runs = [run for run in self.runs[strategy] if seeds is None or run.seed in seeds]
        return np.array([at_label_counts(self.labels_R, run, metric or self.metric.name) for run in runs])

    def scores(self, strategy: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """The curve with a sign such that higher is better."""
        return self.metric.sign * self.curve(strategy, seeds)

    def area(self, strategy: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Area under the curve of each seed, divided by its width."""
        return stats.aubc(self.labels_R, self.curve(strategy, seeds))

    def labels_to_target(self, strategy: str, rule: str = "first", seeds: Sequence[int] | None = None) -> np.ndarray:
        return stats.labels_to(self.metric.sign * self.target, self.labels_R, self.scores(strategy, seeds), rule)


def at_label_counts(labels_R: np.ndarray, run: Run, metric: str) -> np.ndarray:
    values = run.metrics.get(metric)
    if values is not None and np.array_equal(run.labels_R, labels_R):
        return values
    return np.full(len(labels_R), np.nan) if values is None else values[np.isin(run.labels_R, labels_R)]


def comparisons(runs: list[Run], metric: Metric = ACCURACY, target: float | None = None) -> list[Comparison]:
    """One for each setting, in the order of their names; full-data runs are references of the settings beside them."""
    settings = results.by_setting(runs)
    full = {setting[:3]: there for setting, there in settings.items() if setting.budget == "full"}
    partial = {setting[:3] for setting in settings if setting.budget != "full"}
    return [
        comparison(there, [] if setting.budget == "full" else full.get(setting[:3], []), metric, target)
        for setting, there in settings.items()
        if setting.budget != "full" or setting[:3] not in partial
    ]


def comparison(there: list[Run], full: list[Run], metric: Metric, target: float | None) -> Comparison:
    """there: all runs of one setting; full: those on the full data."""
    runs, left_out = comparable_runs(there, metric.name)
    references, others = usable_references(full, runs, metric.name)
    labels_R = common_labels(runs, metric)
    c = Comparison(
        setting=there[0].setting,
        metric=metric,
        runs=by_strategy(runs) if len(labels_R) else {},
        labels_R=labels_R,
        references=references,
        left_out=[(printable(who), printable(why)) for who, why in (*left_out, *others)],
        notes=[
            *map(printable, notes.of_runs(runs, references, labels_R, metric)),
            *notes.not_recorded([*there, *full], metric),
        ],
        target=target,
    )
    if c.runs and RANDOM not in c.runs:
        return noted(c, ["No finished run of random sampling: there is nothing to compare the strategies with."])
    if len(labels_R) == 1:
        return noted(c, ["One label count only: there is no curve to compare."])
    return with_random(c) if c.runs else c


def noted(c: Comparison, more: list[str]) -> Comparison:
    return replace(c, notes=[*c.notes, *more])


def by_strategy(runs: list[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.strategy != RANDOM, run.strategy, run.seed)):
        found.setdefault(run.strategy, []).append(run)
    return found


def common_labels(runs: list[Run], metric: Metric) -> np.ndarray:
    """The label counts that all runs have."""
    try:
        return stats.common([(run.labels_R, run.metrics[metric.name]) for run in runs]).labels_R
    except ValueError:  # there are none
        return np.zeros(0, int)


# -- against random --


def with_random(c: Comparison) -> Comparison:
    """With the target, and each strategy against random."""
    c = replace(c, target=reached_by_random(c) if c.target is None else c.target)
    first_S = np.concatenate([c.curve(name)[:, 0] for name in c.runs])
    if why := notes.reached_from_the_start(c.target, first_S, c.metric):
        c = noted(replace(c, target=None), why)
    c = replace(c, versus_random=versus_random(c))
    return noted(c, notes.other_seeds(c.seeds(RANDOM), {name: c.seeds(name) for name in c.versus_random}))


def reached_by_random(c: Comparison) -> float:
    """The best round number that random reaches with every seed, as a target."""
    return c.metric.rounded_target(c.scores(RANDOM).max(1).min())


def versus_random(c: Comparison) -> dict[str, VersusRandom]:
    pairs = {
        name: seeds for name in c.runs if name not in (RANDOM, CONTROL) and (seeds := c.shared_seeds([name, RANDOM]))
    }
    areas = {name: stats.paired_difference(c.area(name, seeds), c.area(RANDOM, seeds)) for name, seeds in pairs.items()}
    return {
        name: VersusRandom(
            seeds=pairs[name],
            area=areas[name],
            p_holm=p_holm,
            efficiency=efficiency(c, name, pairs[name]),
            difference=stats.difference_curve(c.curve(name, pairs[name]), c.curve(RANDOM, pairs[name])),
            n_tests=n_tests,
        )
        for name, (p_holm, n_tests) in corrected(areas).items()
    }


def corrected(areas: dict[str, PairedDifference]) -> dict[str, tuple[float | None, int]]:
    """(p_holm, n_tests) of each strategy. Holm's method corrects those whose number of pairs can be significant.

    The others have (None, 1). They are left out of the correction, where they would only make it stricter.
    """
    family = [name for name, area in areas.items() if area.smallest_p <= ALPHA]
    p_T = stats.holm([areas[name].p_wilcoxon for name in family])
    n_tests_T = len(family) - (p_T < ALPHA).sum() + (p_T < ALPHA)
    found = {name: (float(p), int(n)) for name, p, n in zip(family, p_T, n_tests_T, strict=True)}
    return {name: found.get(name, (None, 1)) for name in areas}


def efficiency(c: Comparison, name: str, seeds: list[int]) -> Efficiency:
    if c.target is None:
        never = np.full(len(seeds), inf)
        return stats.efficiency(never, never)
    return stats.efficiency(*(c.labels_to_target(x, "envelope", seeds) for x in (RANDOM, name)))


def noise(c: Comparison) -> tuple[np.ndarray, np.ndarray] | None:
    """low_R and high_R of a second random arm's difference to random: what chance alone does."""
    seeds = c.shared_seeds([RANDOM, CONTROL]) if {RANDOM, CONTROL} <= c.runs.keys() else []
    if len(seeds) < 2:
        return None
    return stats.difference_curve(c.curve(CONTROL, seeds), c.curve(RANDOM, seeds))[1:]


# -- over several comparisons --


@dataclass(frozen=True)
class Across:
    """Strategies over B comparisons, each of which counts once, by its mean over seeds."""

    metric: Metric
    settings: list[Setting]
    names: list[str]
    area_BM: np.ndarray  # area under the curve
    penalty_MM: np.ndarray  # mean over comparisons: the row beats the column
    ranks: rankings.Ranks | None  # None: too few comparisons or strategies
    n_left_out: int  # the same setting under another study's name, or fewer than two seeds that all strategies have


def across(found: list[Comparison]) -> Across | None:
    """Paired by the seeds that all strategies have. None below two comparisons or strategies to put side by side."""
    # A setting that several studies have counts once.
    compared = {c.setting[1:]: c for c in reversed(found) if c.versus_random}
    usable = list(reversed(compared.values()))
    names = [n for n in usable[0].runs if n != CONTROL and all(n in c.runs for c in usable)] if usable else []
    usable = [c for c in usable if len(c.shared_seeds(names)) > 1]
    if len(usable) < 2 or len(names) < 2:
        return None
    seeds = [c.shared_seeds(names) for c in usable]
    score_BMSR = [np.array([c.scores(n, s) for n in names]) for c, s in zip(usable, seeds, strict=True)]
    area_BM = np.array([[c.area(n, s).mean() for n in names] for c, s in zip(usable, seeds, strict=True)])
    metric = usable[0].metric
    try:
        ranks = rankings.ranks(metric.sign * area_BM)
    except ValueError:
        ranks = None
    return Across(
        metric=metric,
        settings=[c.setting for c in usable],
        names=names,
        area_BM=area_BM,
        penalty_MM=np.mean([*map(rankings.penalty_holm, score_BMSR)], 0),
        ranks=ranks,
        n_left_out=sum(bool(c.versus_random) for c in found) - len(usable),
    )
