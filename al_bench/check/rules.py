"""The rules that every strategy obeys. Each rule is a function, and its docstring is the line that the user reads.

A rule takes the strategy and S, its number of passes or members. It returns None or a remark. If the rule is broken, it
raises Broken, which names the input. Where a strategy cannot choose, say without labels, it raises a ValueError. The
rules on few labels accept that. P pool images.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from al_bench.check.inputs import Case, cases, large_case
from al_bench.check.invariance import (
    numbers_of_classes,
    order_does_not_matter,
    order_of_labels,
    order_of_passes,
    order_without_labels,
)
from al_bench.check.process import (
    global_generators_are_left_alone,
    large_pools,
    no_nan_is_compared,
    nothing_is_kept,
    settings_are_left_alone,
    settings_restored,
    threads_do_not_matter,
)
from al_bench.check.trial import Broken, Refused, brief, choose, chunk_size, expect, global_seed, is_uniform
from al_bench.strategies import PoolView, Size, Strategy, StrategyFunction, needs_of
from al_bench.strategies.guard import select


def it_runs(strategy: StrategyFunction, S: int) -> None:
    """It runs on a random pool, with only the fields that it declared by @needs."""
    for case in cases(S):
        choose(strategy, case)


def every_size(strategy: StrategyFunction, S: int) -> None:
    """It returns k distinct int64 positions of the pool: for k = 1, for k = all, for any size of the pool."""
    for case in cases(S):
        for k in (1, case.size.k, case.size.P):
            choose(strategy, case.changed(k=k))
            with chunk_size(50):
                choose(strategy, case.changed(k=k))


def degenerate_predictions(strategy: StrategyFunction, S: int) -> None:
    """Certain (log 0 = -inf) or uniform predictions, zero embeddings and duplicates cause no error."""
    for kind in (
        "certain",
        "saturated",
        "uniform",
        "embeddings 0",
        "every third embedding 0",
        "every image twice",
        "identical",
    ):
        for case in cases(S)[1:]:
            choose(strategy, case.changed(kind=kind))


def odd_proportions(strategy: StrategyFunction, S: int) -> None:
    """More labelled than pool images, more classes than images, wide embeddings or one image left cause no error."""
    for size in (
        Size(P=9, L=40, S=S, C=3, D=5, F=4, k=3),
        Size(P=7, L=5, S=S, C=12, D=33, F=40, k=3),
        Size(P=2, L=11, S=S, C=3, D=5, F=4, k=1),
        Size(P=1, L=11, S=S, C=3, D=5, F=4, k=1),
    ):
        for k in {1, size.k, size.P}:
            choose(strategy, Case(size, 6).changed(k=k))


def several_passes(strategy: StrategyFunction, S: int) -> str | None:
    """Several passes cause no error, not even certain or uniform ones."""
    if not needs_of(strategy).predictions:
        return "not tried: the strategy uses no predictions"
    for case in cases(max(S, 4)):
        for kind in ("random", "certain", "uniform", "a probability of 0", "identical"):
            for k in (1, case.size.k, case.size.P):
                choose(strategy, case.changed(k=k, kind=kind), may_refuse=True)
    return None


def certainty_is_told_apart(strategy: StrategyFunction, S: int) -> str | None:
    """It does not treat probabilities that round to 1 in float32 as ties, because their logarithms differ."""
    if needs_of(strategy).passes:
        return "not compared: rounding hides how the passes disagree on such probabilities"
    compared = 0
    for case in cases(S)[1:]:
        plain, sure = (
            {tuple(choose(strategy, case.changed(kind=kind), stream).tolist()) for stream in range(4)}
            for kind in ("random", "saturated")
        )
        if len(plain) == 1:
            compared += 1
            expect(len(sure) == 1, f"Four seeds gave {len(sure)} different choices.", case.changed(kind="saturated"))
    return None if compared else "not compared: the strategy samples, or its scores have ties"


def zero_is_a_small_probability(strategy: StrategyFunction, S: int) -> None:
    """A probability of exactly 0 gives the same picks as a very small one. No NaN is ranked first."""
    for case in cases(S)[1:]:
        case = case.changed(kind="a probability of 0", k=-(-case.size.P // 3))  # as many as there are images with a 0
        found = choose(strategy, case)
        wanted = choose(strategy, case.changed(kind="a probability of exp(-80)"))
        expect(
            set(found.tolist()) == set(wanted.tolist()),
            f"It chose {brief(found)}. With log-probabilities of -80 in place of -inf it chose {brief(wanted)}.",
            case,
        )


def ties_are_drawn(strategy: StrategyFunction, S: int) -> None:
    """If all images are identical, each is equally likely to be chosen, and to be chosen first."""
    for kind in ("identical, certain", "identical, uniform, embeddings 0"):
        case = cases(S)[1].changed(P=12, k=4, kind=kind)
        view = case.view(needs_of(strategy))
        chosen = torch.stack([choose(strategy, case, stream, view) for stream in range(30)])
        for which, positions in (("chosen", chosen.flatten()), ("chosen first", chosen[:, 0])):
            counts = positions.bincount(minlength=12)
            expect(is_uniform(counts), f"In 30 draws the 12 images were {which} {counts.tolist()} times.", case)


def no_image_is_left_out(strategy: StrategyFunction, S: int) -> None:
    """Images at the end of a pool larger than usual blocks are chosen like all others."""
    case = large_case(S).changed(kind="identical")
    view = case.view(needs_of(strategy))
    chosen = torch.cat([choose(strategy, case, stream, view) for stream in range(20)])
    # A uniform draw misses the last tenth once in 20 million times.
    expect(bool((chosen >= 900).any()), "In 20 draws from 999 identical images none of the last 99 was chosen.", case)


def seed_decides(strategy: StrategyFunction, S: int) -> None:
    """The same seed gives the same picks."""
    for case in [*cases(S), cases(S)[1].changed(kind="identical")]:
        for stream in (0, 1):
            picks = []
            for _ in range(2):
                with global_seed(0):  # reading the global generators breaks another rule
                    picks.append(choose(strategy, case, stream))
            first, second = picks
            expect(torch.equal(first, second), f"Seed {stream} gave {brief(first)}, then {brief(second)}.", case)


def chunks_do_not_matter(strategy: StrategyFunction, S: int) -> None:
    """Working in small chunks gives the same picks."""
    for case in cases(S):
        whole = choose(strategy, case)
        for numbers in (1, 50) if case.size.P < 10 else (50,):  # image by image is slow
            with chunk_size(numbers):
                parts = choose(strategy, case)
            expect(torch.equal(whole, parts), f"It chose {brief(whole)}, with CHUNK={numbers} {brief(parts)}.", case)


def few_labels(strategy: StrategyFunction, S: int) -> None:
    """With no labelled image, one, or one labelled class it chooses, or it raises a ValueError that says why."""
    refusals = {}
    for case in cases(S):
        for what, few in (
            ("no labelled image", case.changed(L=0)),
            ("one labelled image", case.changed(L=1)),
            ("one labelled class", case.changed(kind="one labelled class")),
        ):
            try:
                choose(strategy, few, may_refuse=True)
            except Refused as refusal:
                refusals[what] = f"{what}: {refusal}"
    if refusals:
        raise Refused("; ".join(refusals.values()))


def few_distinct_points(strategy: StrategyFunction, S: int) -> None:
    """Fewer distinct images than picks, or than clusters, cause no error."""
    for case in cases(S):
        for k in (min(5, case.size.P), case.size.P):
            choose(strategy, case.changed(k=k, kind="three distinct images"))


def view_is_read_only(strategy: StrategyFunction, S: int) -> None:
    """It changes no tensor of the view."""
    for kind in ("random", "certain", "a probability of 0", "identical", "float16"):
        case = cases(S)[1].changed(kind=kind)
        view, before = case.view(needs_of(strategy)), case.view(needs_of(strategy))
        choose(strategy, case, view=view)
        for name, values in tensors(before).items():
            expect(torch.equal(getattr(view, name), values), f"It changed view.{name}.", case)


def tensors(view: PoolView) -> dict[str, Tensor]:
    return {name: values for name, values in vars(view).items() if isinstance(values, Tensor)}


def broken_models_are_refused(strategy: StrategyFunction, S: int) -> str | None:
    """NaN or infinity from the model stops the run. The message names strategy, round and cause."""
    case = cases(S)[1]
    names = [name for name, values in tensors(case.view(needs_of(strategy))).items() if values.is_floating_point()]
    for name in names:
        for bad in (torch.nan, torch.inf):
            view = case.view(needs_of(strategy))
            getattr(view, name).flatten()[-1] = bad
            said = "nothing"
            try:
                select(Strategy(strategy, "mine"), view, case.size.k, torch.Generator(), 7)
            except Exception as error:
                said = str(error)
            named = "strategy mine, round 7" in said and name in said
            expect(named, f"With {bad} in view.{name} the message was: {said}", case)
    return None if names else "not tried: the strategy uses no output of the model"


def float16_works(strategy: StrategyFunction, S: int) -> None:
    """Predictions and embeddings in float16 give the same picks as the same numbers in float32."""
    for case in (cases(S)[1], large_case(S).changed(P=299, k=60)):  # enough images that rounding would swap some
        half, wide = (choose(strategy, case.changed(kind=kind)) for kind in ("float16", "float16 as float32"))
        expect(
            torch.equal(half, wide),
            f"It chose {brief(half)}. From the same numbers in float32 it chose {brief(wide)}.",
            case.changed(kind="float16"),
        )


Rule = Callable[[StrategyFunction, int], str | None]
RULES: tuple[Rule, ...] = (
    # First those on errors, because a cause is told at the first rule that it breaks.
    it_runs, every_size, odd_proportions, few_labels, degenerate_predictions, few_distinct_points, several_passes,
    seed_decides, global_generators_are_left_alone, settings_are_left_alone, threads_do_not_matter, ties_are_drawn,
    no_image_is_left_out, order_does_not_matter, order_without_labels, order_of_passes, numbers_of_classes,
    order_of_labels, chunks_do_not_matter, zero_is_a_small_probability, certainty_is_told_apart, no_nan_is_compared,
    float16_works, view_is_read_only, nothing_is_kept, broken_models_are_refused, large_pools,
)  # fmt: skip


def try_rule(rule: Rule, strategy: StrategyFunction, S: int) -> tuple[str, str]:
    """Return ("ok" | "refused" | "FAILED", remark)."""
    try:
        with settings_restored():
            torch.set_num_threads(1)  # several threads wait for each other after every tiny step
            return "ok", rule(strategy, S) or ""
    except Refused as refusal:
        return "refused", str(refusal)
    except Broken as broken:
        return "FAILED", str(broken)
