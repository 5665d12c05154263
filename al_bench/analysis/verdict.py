"""From numbers to words: how each strategy stands against random, and what a reader needs to judge it."""

from statistics import median

import numpy as np

from al_bench.analysis import power, rankings, stats
from al_bench.analysis.compare import ALPHA, RANDOM, Across, Comparison, VersusRandom
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
    return [*(sentence(c, name) for name in c.best_first), *words, *misses(c)]


def sentence(c: Comparison, name: str) -> str:
    v, metric = c.versus_random[name], c.metric
    labels = labels_saved(v, metric, c.target)
    of = "of" if metric.unit else "in"
    gain = f"{metric.gain(v.area.mean)} {of} {metric.area}{metric.bounds(*v.interval)}"
    facts = f"{labels}{gain}; n = {v.area.n} {'pair' if v.area.n == 1 else 'pairs'}"
    if v.why_no_call:
        return f"{name}{' ' if labels else ': '}{facts}, no call."
    family = f" after correcting for {v.test.n_strategies} strategies" if v.test.n_strategies > 1 else ""
    if v.significant:
        better = "better" if metric.sign * v.area.mean > 0 else "worse"
        return f"{name} is {better} than random: {facts}, p = {v.test.p:.2g}{family}."
    alone = f" (alone p = {v.test.p_alone:.2g})" if family else ""
    return f"{name}: not told apart from random{family}: {facts}, p = {v.test.p:.2g}{alone}. {how_close(c, name)}"


def how_close(c: Comparison, name: str) -> str:
    """That a strategy equals random, or which difference would have shown. It is not told apart from random."""
    v, metric = c.versus_random[name], c.metric
    if v.area.equal_within(margin := metric.negligible(c.area(RANDOM).mean())):
        return f"Equal to random within {metric.amount(margin)}, by two one-sided t-tests at 0.05."
    could = metric.amount(power.detectable(v.area.n, v.area.sd, ALPHA / c.n_looks / v.test.n_strategies))
    return f"A difference of {could} would have shown {power.DELIVERED}."


def misses(c: Comparison) -> list[str]:
    """A warning where random reaches the target only because it was chosen so, and a strategy misses it at times."""
    censored = [v.efficiency for v in c.versus_random.values() if v.efficiency and v.efficiency.n_censored_method]
    if not censored or not c.by_random:
        return []
    return [
        f"The target of {c.metric.target(c.target)} is chosen such that random reaches it with every seed. A strategy "
        "that is as good as random may miss it in some pairs."
    ]


def labels_saved(v: VersusRandom, metric: Metric, target: float | None) -> str:
    """ "needs 31% [12, 44] fewer training labels than random to reach 90%; ", or why that cannot be said."""
    e = v.efficiency
    if e is None or not e.n:
        return ""
    level = metric.target(target)
    if not e.complete:
        return f"reached {level} {in_pairs(*e.n_reached, e.n)}; "
    share, fewer = fewer_labels(e)
    of_all = ""
    if v.of_all_labels:
        share_of_all, _ = fewer_labels(v.of_all_labels)
        of_all = f" ({share_of_all} of all labels, those for validation included)"
    _, low, high = e.savings
    chance = " (this may be chance)" if v.significant and low is not None and low <= 0 <= high else ""
    return f"needs {share} {fewer} training labels{of_all} than random to reach {level}{chance}; "


def fewer_labels(e: Efficiency) -> tuple[str, str]:
    """("31% [12, 44]", "fewer" or "more")"""
    mean, low, high = e.savings
    low, high = (low, high) if mean >= 0 or low is None else (-high, -low)
    return f"{100 * abs(mean):.0f}%{per_cent(low, high)}", "fewer" if mean >= 0 else "more"


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
        f"{c.labels_R[0]:,} to {c.labels_R[-1]:,} labels, divided by its width. {c.method.words} Intervals of "
        "labels saved: Student's t of their logarithms, each strategy alone."
    ]
    if c.target is not None:
        by_random = f", the {c.metric.rounding} that random reaches with every seed"
        extreme = "maximum" if c.metric.higher_is_better else "minimum"
        words.append(
            f"Target: {c.metric.level(c.target)}{by_random if c.by_random else ''}. Labels to the "
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
        f"{seeds} ({power.DELIVERED}, at 0.05 divided by the number of strategies). Plan them before the first run."
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
    if a.why_no_ranks:
        words.append(f"No diagram of mean ranks. {a.why_no_ranks}")
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
    text = f"the mean is {side} random's on {n_better} of {b} data sets, {metric.gain(gain_B.mean())} on average"
    if b < stats.FEWEST:
        return text
    rope = metric.negligible(random_B.mean())
    better, same, worse = rankings.bayesian_signed_rank(metric.sign * area_B, metric.sign * random_B, rope)
    return (
        f"{text}; Bayesian signed-rank test: better by more than {metric.amount(rope)} with probability {better:.2f}, "
        f"as good {same:.2f}, worse {worse:.2f}"
    )
