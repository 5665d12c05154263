"""From numbers to words: how each strategy stands against random, and what a reader needs to judge it."""

from statistics import median

import numpy as np

from al_bench.analysis import power, rankings, stats
from al_bench.analysis.compare import ALPHA, RANDOM, Across, Comparison, VersusRandom, reached_by_random
from al_bench.analysis.metric import Metric
from al_bench.analysis.stats import Efficiency

PER_CENT = "z.0f"  # z: a small loss is no -0


def sentences(c: Comparison) -> list[str]:
    """The verdict, the best strategy first, and why there is no call where there is none."""
    reasons: dict[str, list[str]] = {}
    for name in c.best_first:
        if why := c.versus_random[name].why_no_call:
            reasons.setdefault(why, []).append(name)
    words = [f"No call for {', '.join(names)}: {why}." for why, names in reasons.items()]
    return [sentence(name, c.versus_random[name], c.metric, c.target) for name in c.best_first] + words


def sentence(name: str, v: VersusRandom, metric: Metric, target: float | None) -> str:
    labels = labels_saved(v.efficiency, metric, target)
    of = "of" if metric.unit else "in"
    gain = f"{metric.gain(v.area.mean)} {of} {metric.area}{metric.bounds(v.area.low, v.area.high)}"
    facts = f"{labels}{gain}; n = {v.area.n} {'pair' if v.area.n == 1 else 'pairs'}"
    if v.why_no_call:
        return f"{name}{' ' if labels else ': '}{facts}, no call."
    if v.significant:
        better = "better" if metric.sign * v.area.mean > 0 else "worse"
        return f"{name} is {better} than random: {facts}, p = {v.p_holm:.2g} (Wilcoxon, Holm)."
    could = metric.amount(power.detectable(v.area.n, v.area.sd, ALPHA / v.n_tests))
    return (
        f"{name}: no difference to random that {v.area.n} pairs could show: {facts}, p = {v.p_holm:.2g} (Wilcoxon, "
        f"Holm). A difference of {could} would have shown four times in five."
    )


def labels_saved(e: Efficiency, metric: Metric, target: float | None) -> str:
    """ "needs 31% [12, 44] fewer training labels than random to reach 90%; ", or why that cannot be said."""
    if target is None:
        return ""
    level = metric.target(target)
    if e.n_pairs < e.n:  # a mean over those that got there would flatter the strategy
        return f"reached {level} {in_pairs(*e.n_reached, e.n)}; "
    mean, low, high = e.savings
    fewer = "fewer" if mean >= 0 else "more"
    low, high = (low, high) if mean >= 0 or low is None else (-high, -low)
    return f"needs {100 * abs(mean):.0f}%{per_cent(low, high)} {fewer} training labels than random to reach {level}; "


def in_pairs(n: int, n_random: int, n_pairs: int) -> str:
    return f"in {n} of {n_pairs} pairs{'' if n_random == n_pairs else f', random in {n_random}'}"


def per_cent(low: float | None, high: float | None) -> str:
    """The interval of a share of labels; nothing where there is none."""
    return "" if low is None else f" [{100 * low:{PER_CENT}}, {100 * high:{PER_CENT}}]"


def method_notes(c: Comparison) -> list[str]:
    """How the numbers of the table came about."""
    if len(c.labels_R) == 1:
        return []
    words = [
        f"Paired with random by seed. Mean {c.metric.words} over labels: area under the curve from "
        f"{c.labels_R[0]:,} to {c.labels_R[-1]:,} labels, divided by its width. 95% intervals: BCa bootstrap over "
        f"seeds from {stats.BOOTSTRAP_FROM} pairs on, Student's t below; of labels saved, Student's t of their "
        "logarithms."
    ]
    if c.target is not None:
        by_random = f", the {c.metric.rounding} that random reaches with every seed"
        extreme = "maximum" if c.metric.higher_is_better else "minimum"
        words.append(
            f"Target: {c.metric.level(c.target)}{by_random if c.target == reached_by_random(c) else ''}. Labels to the "
            "target: the first label count trained that has it, the median by nearest rank; labels saved: 1 - labels / "
            f"random's labels at the interpolated crossings of the running {extreme}, geometric mean over the pairs "
            "that both reach it."
        )
    return words


def planner(c: Comparison, multiples: tuple[int, ...] = (1, 2, 4)) -> str:
    """How many seeds a difference would take, from the median spread of the differences seen here; else nothing.

    multiples: of the difference that is too small to matter.
    """
    spread = [v.area.sd for v in c.versus_random.values() if v.area.sd]
    if not spread:
        return ""
    unit = c.metric.negligible(c.area(RANDOM).mean())
    alpha = ALPHA / len(c.versus_random)
    seeds = "; ".join(
        f"{c.metric.amount(n * unit)}: {seeds_needed(median(spread), n * unit, alpha)}" for n in multiples
    )
    return (
        "Seeds it would take, with the spread of the differences seen here, to show a difference of "
        f"{seeds} (four times in five, at 0.05 divided by the number of strategies)."
    )


def seeds_needed(sd: float, difference: float, alpha: float) -> str:
    try:
        return str(power.seeds_needed(sd, difference, alpha))
    except ValueError:
        return "more than 10,000"


def across_sentences(a: Across) -> list[str]:
    """How each strategy stands against random over several comparisons."""
    random_B = a.area_BM[:, a.names.index(RANDOM)]
    words = [
        f"{name}: {versus_random_across(a.metric, area_B, random_B)}."
        for name, area_B in zip(a.names, a.area_BM.T, strict=True)
        if name != RANDOM
    ]
    if a.n_left_out:
        words.append(
            f"{a.n_left_out} studies are not in these numbers: the same data, model and budget under another name, or "
            "fewer than two seeds that all strategies have."
        )
    return words


def versus_random_across(metric: Metric, area_B: np.ndarray, random_B: np.ndarray) -> str:
    gain_B, b = area_B - random_B, len(area_B)
    side = "above" if metric.higher_is_better else "below"
    n_better = int((metric.sign * gain_B > 0).sum())
    text = f"{side} random in {n_better} of {b} studies, {metric.gain(gain_B.mean())} on average"
    if b < rankings.MIN_BLOCKS:
        return text
    rope = metric.negligible(random_B.mean())
    better, same, worse = rankings.bayesian_signed_rank(metric.sign * area_B, metric.sign * random_B, rope)
    return (
        f"{text}; Bayesian signed-rank test: better by more than {metric.amount(rope)} with probability {better:.2f}, "
        f"as good {same:.2f}, worse {worse:.2f}"
    )
