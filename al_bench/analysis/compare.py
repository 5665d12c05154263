"""What is compared: the runs of one setting by one metric, each strategy with random sampling in pairs of one seed.

S seeds, R rounds, M strategies, K comparisons, B data sets. Numbers only; verdict.py has the words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

import numpy as np

from al_bench.analysis import notes, rankings, results, stats
from al_bench.analysis.comparable import LeftOut, comparable_runs, usable_references
from al_bench.analysis.family import METHODS, FamilyTest, Method
from al_bench.analysis.metric import ACCURACY, Metric
from al_bench.analysis.results import Run, Setting
from al_bench.analysis.stats import ALPHA, Efficiency, PairedDifference
from al_bench.text import printable

RANDOM, CONTROL = "random", "random_control"


@dataclass(frozen=True)
class VersusRandom:
    """A strategy against random, paired by seed."""

    seeds: list[int]
    area: PairedDifference  # of the areas under the curve, alone
    test: FamilyTest | None  # of the areas, among all strategies; None: its pairs allow no call
    efficiency: Efficiency | None  # of training labels; None: there is no target
    of_all_labels: Efficiency | None  # the same with validation labels; None: there are none
    difference: tuple[np.ndarray, np.ndarray, np.ndarray]  # mean_R, low_R, high_R of the metric minus random's
    n_looks: int = 1  # at the data, which p is corrected for

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Of the mean difference of the areas: simultaneous for all strategies where the test has such, else alone."""
        if self.test is None or self.test.low is None:
            return self.area.low, self.area.high
        return self.test.low, self.test.high

    @property
    def why_no_call(self) -> str | None:
        d = self.area
        if d.mean == 0 and d.sd == 0:
            return f"the two are identical in all {d.n} pairs"
        least = min(1.0, self.n_looks * d.smallest_p)
        if least > ALPHA:
            pairs = f"{d.n} pairs" if d.n > 1 else "1 pair"
            looks = f" after {self.n_looks} looks" if self.n_looks > 1 else ""
            return f"{pairs} can never reach p <= {ALPHA:g}{looks}: the smallest possible p is {least:.2g}"
        if d.low is None:
            return f"all {d.n} differences are the same: nothing varies that they could be judged by"
        if self.test.low is None and self.test.p <= ALPHA and d.low <= 0 <= d.high:
            return f"the test of ranks is significant (p = {self.test.p:.2g}), but the interval of the mean contains 0"
        return None

    @property
    def significant(self) -> bool:
        return self.why_no_call is None and self.test.p <= ALPHA


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
    by_random: bool = False  # the target is what random reaches with every seed; False: it was given
    method: Method = METHODS["max_t"]
    n_looks: int = 1  # how often a report could be read before more seeds were planned, and now
    versus_random: dict[str, VersusRandom] = field(default_factory=dict)
    oracles: dict[str, list[Run]] = field(default_factory=dict)  # lines of their own, with all of labels_R

    @property
    def full(self) -> float | None:
        """The metric on the full data, mean over its seeds."""
        return mean(self.full_by_seed.values()) if self.references else None

    @property
    def full_by_seed(self) -> dict[int, float]:
        return {run.seed: run.metrics[self.metric.name][-1] for run in self.references}

    @property
    def all_runs(self) -> list[Run]:
        """Those of the strategies, then the references and the oracles."""
        strategies, oracles = ([run for runs in of.values() for run in runs] for of in (self.runs, self.oracles))
        return [*strategies, *self.references, *oracles]

    @property
    def best_first(self) -> list[str]:
        """The strategies that are compared with random."""
        return sorted(self.versus_random, key=lambda name: -self.metric.sign * self.versus_random[name].area.mean)

    def seeds(self, strategy: str) -> list[int]:
        return [run.seed for run in self.runs[strategy]]

    def shared_seeds(self, strategies: Sequence[str]) -> list[int]:
        """The seeds that all of these strategies have."""
        return sorted(set.intersection(*(set(self.seeds(name)) for name in strategies))) if strategies else []

    def curve(self, strategy: str, seeds: Sequence[int] | None = None, metric: str | None = None) -> np.ndarray:
        """value_SR at labels_R, of these seeds or of all. metric: another one than the comparison's.

        nan where a run lacks the metric. strategy: or an oracle.
        """
        runs = [run for run in (self.runs | self.oracles)[strategy] if seeds is None or run.seed in seeds]
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


def comparisons(
    runs: list[Run], metric: Metric = ACCURACY, target: float | None = None, test: str = "max_t"
) -> list[Comparison]:
    """One for each setting, in the order of their names; full-data runs are references of the settings beside them."""
    settings = results.by_setting(runs)
    full = {setting[:3]: there for setting, there in settings.items() if setting.budget == "full"}
    partial = {setting[:3] for setting in settings if setting.budget != "full"}
    return [
        comparison(there, [] if setting.budget == "full" else full.get(setting[:3], []), metric, target, test)
        for setting, there in settings.items()
        if setting.budget != "full" or setting[:3] not in partial
    ]


def comparison(there: list[Run], full: list[Run], metric: Metric, target: float | None, test: str) -> Comparison:
    """there: all runs of one setting; full: those on the full data."""
    runs, left_out = comparable_runs(there, metric.name)
    oracles = [run for run in runs if is_oracle(run)]
    runs = [run for run in runs if not is_oracle(run)]
    references, others = usable_references(full, runs, metric.name)
    labels_R = common_labels(runs, metric)
    n_looks, about_looks = notes.looks(runs)
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
            *about_looks,
        ],
        target=target,
        method=METHODS[test],
        n_looks=n_looks,
        oracles=by_strategy([run for run in oracles if {*labels_R} <= {*run.labels_R}]),
    )
    if c.runs and RANDOM not in c.runs:
        return noted(c, ["No finished run of random sampling: there is nothing to compare the strategies with."])
    if len(labels_R) == 1:
        return noted(c, ["One label count only: there is no curve to compare."])
    areas = {name: c.area(name) for name in c.oracles}
    c = noted(c, [*map(printable, notes.oracle_lines(areas, metric))])
    return with_random(c) if c.runs else c


def is_oracle(run: Run) -> bool:
    """Whether its strategy saw labels that were not acquired. Such a run is a line of its own and is never compared."""
    return bool(run.config.get("strategy.oracle"))


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
    if c.target is None:
        c = replace(c, target=reached_by_random(c), by_random=True)
    lucky, seeds = reached_at_once(c), c.seeds(RANDOM)
    n_lucky = len(lucky & set(seeds))
    too_many = 2 * n_lucky > len(seeds)
    c = noted(c, notes.reached_from_the_start(c.target, n_lucky, len(seeds), c.metric, too_many))
    c = replace(c, target=None) if too_many else c
    c = replace(c, versus_random=versus_random(c, lucky))
    return noted(c, notes.other_seeds(seeds, {name: c.seeds(name) for name in c.versus_random}))


def reached_by_random(c: Comparison) -> float:
    """The best round number that random reaches with every seed, as a target."""
    return c.metric.rounded_target(c.scores(RANDOM).max(1).min())


def versus_random(c: Comparison, lucky: set[int]) -> dict[str, VersusRandom]:
    """lucky: seeds that labels saved leave out."""
    pairs = {
        name: seeds for name in c.runs if name not in (RANDOM, CONTROL) and (seeds := c.shared_seeds([name, RANDOM]))
    }
    tests = family_tests(c, pairs)
    n_val = c.runs[RANDOM][0].config.get("budget.validation", 0)
    fair = {name: [seed for seed in seeds if seed not in lucky] for name, seeds in pairs.items()}
    return {
        name: VersusRandom(
            seeds=seeds,
            area=stats.paired_difference(c.area(name, seeds), c.area(RANDOM, seeds)),
            test=tests[name],
            efficiency=efficiency(c, name, fair[name]),
            of_all_labels=efficiency(c, name, fair[name], n_val) if n_val else None,
            difference=stats.difference_curve(c.curve(name, seeds), c.curve(RANDOM, seeds)),
            n_looks=c.n_looks,
        )
        for name, seeds in pairs.items()
    }


def family_tests(c: Comparison, pairs: dict[str, list[int]]) -> dict[str, FamilyTest | None]:
    """The test of each strategy among all. After several looks each has its share of ALPHA, and p grows as much."""
    seeds = sorted(set().union(*pairs.values()))
    difference_ST = np.full((len(seeds), len(pairs)), np.nan)
    for t, (name, shared) in enumerate(pairs.items()):
        difference_ST[np.isin(seeds, shared), t] = c.area(name, shared) - c.area(RANDOM, shared)
    found = c.method.test(difference_ST, ALPHA / c.n_looks)
    looked = [t and replace(t, p=min(1, c.n_looks * t.p), p_alone=min(1, c.n_looks * t.p_alone)) for t in found]
    return dict(zip(pairs, looked, strict=True))


def efficiency(c: Comparison, name: str, seeds: list[int], n_val: int = 0) -> Efficiency | None:
    """Over the pairs of these seeds. n_val: labels that are counted besides."""
    if c.target is None:
        return None
    return stats.efficiency(*(n_val + c.labels_to_target(x, "envelope", seeds) for x in (RANDOM, name)))


def reached_at_once(c: Comparison) -> set[int]:
    """The seeds whose initial set, which no strategy chose, is enough for the target in some run."""
    goal = c.metric.sign * c.target
    return {s for name in c.runs for s, first in zip(c.seeds(name), c.scores(name)[:, 0], strict=True) if first >= goal}


def noise(c: Comparison) -> tuple[np.ndarray, np.ndarray] | None:
    """low_R and high_R of a second random arm's difference to random: what chance alone does."""
    seeds = c.shared_seeds([RANDOM, CONTROL]) if {RANDOM, CONTROL} <= c.runs.keys() else []
    if len(seeds) < 2:
        return None
    return stats.difference_curve(c.curve(CONTROL, seeds), c.curve(RANDOM, seeds))[1:]


# -- over several comparisons --


@dataclass(frozen=True)
class Across:
    """Strategies over comparisons on B data sets. A data set counts once: its budgets are no independent evidence."""

    metric: Metric
    settings: list[Setting]
    names: list[str]
    datasets: list[str]
    area_KM: np.ndarray  # area under the curve of each comparison, mean over seeds
    area_BM: np.ndarray  # of each data set, mean over its comparisons
    penalty_MM: np.ndarray  # mean over comparisons: the row beats the column
    ranks: rankings.Ranks | None
    why_no_ranks: str | None
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
    area_KM = np.array([[c.area(n, s).mean() for n in names] for c, s in zip(usable, seeds, strict=True)])
    of_K = [data_set_of(c.setting) for c in usable]
    datasets = list(dict.fromkeys(of_K))
    area_BM = np.array([area_KM[[name == of for of in of_K]].mean(0) for name in datasets])
    metric = usable[0].metric
    try:
        ranks, why_no_ranks = rankings.ranks(metric.sign * area_BM), None
    except ValueError as error:
        ranks, why_no_ranks = None, str(error)
    return Across(
        metric=metric,
        settings=[c.setting for c in usable],
        names=names,
        datasets=datasets,
        area_KM=area_KM,
        area_BM=area_BM,
        penalty_MM=np.mean([*map(rankings.penalty_holm, score_BMSR)], 0),
        ranks=ranks,
        why_no_ranks=why_no_ranks,
        n_left_out=sum(bool(c.versus_random) for c in found) - len(usable),
    )


def data_set_of(setting: Setting) -> str:
    """The data set without its stressors, which change its images' classes, labels or copies."""
    return setting.dataset.partition("+")[0]
