"""The rules every strategy obeys, each a function any strategy can be put through: `al-bench check mine.my_strategy`.

A rule is given the strategy and S, its passes or members; it returns None or a remark, and raises Broken with the input
that broke it. P pool images.
"""

import difflib
import importlib
import inspect
import linecache
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from yaml import YAMLError

from al_bench import strategies
from al_bench.cli import conf_dir
from al_bench.conformance_inputs import Case, cases, large, take
from al_bench.errors import UserError, in_a_line, stop_behind
from al_bench.strategies import PoolView, Strategy, needs_of, package_of, select


class Broken(Exception):
    """The strategy broke a rule: on which input, and what came out."""


class Refused(Exception):
    """The strategy raised ValueError or UserError of its own, where it may: what it said."""


# --- Running a strategy


def choose(
    strategy: Strategy, case: Case, stream: int = 0, view: PoolView | None = None, may_refuse: bool = False
) -> Tensor:
    """The checked choice from a case, or from the view given for it, with the generator seeded by `stream`."""
    view = case.view(needs_of(strategy)) if view is None else view
    try:
        return select(strategy, "", view, case.size.k, torch.Generator().manual_seed(stream), 0)
    except UserError as error:
        if may_refuse and is_refusal(strategy, cause := error.__cause__ or error):
            raise Refused(str(cause)) from error
        raise Broken(f"{explain(error)} Input: {case}, k={case.size.k}, seed {stream}.") from error


def is_refusal(strategy: Strategy, error: BaseException) -> bool:
    """Raised by a `raise` of the strategy's own package, not by a library, and not for want of a better answer."""
    module, code, line = frames(error)[-1]
    return (
        isinstance(error, ValueError | UserError)
        and module.split(".")[0] in ("al_bench", package_of(strategy))
        and code not in (strategies.top_k.__code__, strategies.select.__code__)
        and line.startswith("raise ")
    )


def explain(error: UserError) -> str:
    """What `select` says of the strategy, as a sentence."""
    said = str(error).removeprefix("strategy , round 0: ")
    if said.startswith("it ") or error.__cause__ is None:
        return said[0].upper() + said[1:]
    return f"It raised {'ValueError: ' if isinstance(error.__cause__, ValueError) else ''}{said}"


def frames(error: BaseException) -> list[tuple[str, CodeType, str]]:
    """Module, code and line of each call that led to the error, outermost first."""
    return [
        (
            frame.f_globals.get("__name__", ""),
            frame.f_code,
            linecache.getline(frame.f_code.co_filename, line).strip(),
        )
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]


def expect(true: bool, what: str, case: Case) -> None:
    if not true:
        raise Broken(f"{what} Input: {case}, k={case.size.k}.")


def is_even(count_P: Tensor) -> bool:
    """Whether the counts may be those of a fair draw (chi-squared; a fair one fails once in a million times)."""
    fair = count_P.sum() / len(count_P)
    excess = (count_P - fair).square().sum() / fair
    return bool(torch.special.gammaincc(torch.tensor((len(count_P) - 1) / 2), excess / 2) > 1e-6)


@contextmanager
def chunk(numbers: int) -> Iterator[None]:
    before, strategies.CHUNK = strategies.CHUNK, numbers
    try:
        yield
    finally:
        strategies.CHUNK = before


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """The three global generators seeded, and as they were afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def global_state() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))


# --- Rules


def it_runs(strategy: Strategy, S: int) -> None:
    """It runs on a random pool, with no more than it declared by @needs."""
    for case in cases(S):
        choose(strategy, case)


def every_size(strategy: Strategy, S: int) -> None:
    """k distinct int64 positions of the pool come back: for k = 1, for k = all, for sizes that no block divides."""
    for case in cases(S):
        for k in (1, case.size.k, case.size.P):
            choose(strategy, case.of(k=k))
            with chunk(50):
                choose(strategy, case.of(k=k))


def degenerate_predictions(strategy: Strategy, S: int) -> None:
    """Certain (log 0 = -inf) and uniform predictions, zero embeddings and duplicates are no error."""
    for kind in ("certain", "uniform", "embeddings 0", "every image twice", "alike"):
        for case in cases(S)[1:]:
            choose(strategy, case.of(kind=kind))


def zero_is_a_small_probability(strategy: Strategy, S: int) -> None:
    """A probability of exactly 0 wins no more than a very small one: no NaN gets to the front."""
    for case in cases(S)[1:]:
        case = case.of(kind="a probability of 0", k=-(-case.size.P // 3))  # as many as images with a 0
        found = choose(strategy, case)
        wanted = choose(strategy, case.of(kind="a probability of exp(-80)"))
        expect(
            set(found.tolist()) == set(wanted.tolist()),
            f"It chose {brief(found)}, and with log-probabilities of -80 in place of -inf {brief(wanted)}.",
            case,
        )


def ties_are_drawn(strategy: Strategy, S: int) -> None:
    """Where all images are alike, every one of them is as likely to be chosen, and to be chosen first."""
    for kind in ("alike, certain", "alike, uniform, embeddings 0"):
        case = cases(S)[1].of(P=12, k=4, kind=kind)
        view = case.view(needs_of(strategy))
        chosen = torch.stack([choose(strategy, case, stream, view) for stream in range(30)])
        for which, positions in (("chosen", chosen.flatten()), ("chosen first", chosen[:, 0])):
            counts = positions.bincount(minlength=12)
            expect(is_even(counts), f"In 30 draws the 12 images were {which} {counts.tolist()} times.", case)


def no_image_is_left_out(strategy: Strategy, S: int) -> None:
    """The end of the pool is as good as the rest, where the pool is larger than any usual block."""
    case = large(S).of(kind="alike")
    view = case.view(needs_of(strategy))
    chosen = torch.cat([choose(strategy, case, stream, view) for stream in range(20)])
    # A fair draw leaves out the last tenth once in 20 million times.
    expect(bool((chosen >= 900).any()), "In 20 draws none of the last 99 of 999 equal images was chosen.", case)


def seed_decides(strategy: Strategy, S: int) -> None:
    """The same seed gives the same picks."""
    for case in [*cases(S), cases(S)[1].of(kind="alike")]:
        for stream in (0, 1):
            picks = []
            for _ in range(2):
                with global_seed(0):  # what reads the global generators breaks another rule
                    picks.append(choose(strategy, case, stream))
            first, second = picks
            expect(torch.equal(first, second), f"Twice stream {stream}: {brief(first)}, then {brief(second)}.", case)


def global_generators_are_left_alone(strategy: Strategy, S: int) -> None:
    """The global generators of torch, numpy and Python are neither read nor moved."""
    for case in [*cases(S)[1:], cases(S)[1].of(kind="alike")]:
        picks = []
        for seed in (0, 0, 1):
            with global_seed(seed):
                before = global_state()
                picks.append(choose(strategy, case))
                expect(global_state() == before, "It moved a global generator.", case)
        same, again, other = picks
        reads = torch.equal(same, again) and not torch.equal(same, other)
        expect(not reads, f"It chose {brief(same)} and, globally seeded anew, {brief(other)}.", case)


def chunks_do_not_matter(strategy: Strategy, S: int) -> None:
    """Working in small chunks gives the same picks."""
    for case in cases(S):
        whole = choose(strategy, case)
        for numbers in (1, 50) if case.size.P < 10 else (50,):  # image by image is slow
            with chunk(numbers):
                parts = choose(strategy, case)
            expect(torch.equal(whole, parts), f"{brief(whole)}, and with CHUNK={numbers} {brief(parts)}.", case)


def few_labels(strategy: Strategy, S: int) -> None:
    """No labelled image, one, or one labelled class: it works, or refuses with a sentence."""
    refusals = {}
    for case in cases(S):
        for what, few in (
            ("no labelled image", case.of(L=0)),
            ("one labelled image", case.of(L=1)),
            ("one labelled class", case.of(kind="one labelled class")),
        ):
            try:
                choose(strategy, few, may_refuse=True)
            except Refused as refusal:
                refusals[what] = f"{what}: {refusal}"
    if refusals:
        raise Refused("; ".join(refusals.values()))


def few_distinct_points(strategy: Strategy, S: int) -> None:
    """Fewer distinct images than picks, or fewer than clusters, is no error."""
    for case in cases(S):
        for k in (min(5, case.size.P), case.size.P):
            choose(strategy, case.of(k=k, kind="three distinct images"))


def order_does_not_matter(strategy: Strategy, S: int) -> str | None:
    """Permuting the pool permutes the picks, for a strategy that does not sample."""
    compared = 0
    for case in [*cases(S), large(S)]:
        view, P = case.view(needs_of(strategy)), case.size.P
        shuffled_P = torch.randperm(P, generator=torch.Generator().manual_seed(0))
        found: list[set[tuple[int, ...]]] = []  # the choices of five seeds from each order of the pool
        for i, order_P in enumerate((torch.arange(P), torch.arange(P).flip(0), shuffled_P)):
            picks = (order_P[choose(strategy, case, 5 * i + j, take(view, order_P))] for j in range(5))
            found.append({tuple(positions.tolist()) for positions in picks})
        if max(len(choices) for choices in found) > 1:
            continue  # it samples, or has ties here
        compared += 1
        plain, *others = (choices.pop() for choices in found)
        for other in others:
            expect(plain == other, f"{list(plain)}, and of the permuted pool {list(other)}.", case)
    return None if compared else "not compared: it samples, or its scores have ties"


def view_is_read_only(strategy: Strategy, S: int) -> None:
    """The view's tensors are as they were afterwards."""
    for kind in ("random", "certain", "a probability of 0", "alike", "float16"):
        case = cases(S)[1].of(kind=kind)
        view, before = case.view(needs_of(strategy)), case.view(needs_of(strategy))
        choose(strategy, case, view=view)
        for name, values in tensors(before).items():
            expect(torch.equal(getattr(view, name), values), f"It changed view.{name}.", case)


def tensors(view: PoolView) -> dict[str, Tensor]:
    return {name: values for name, values in vars(view).items() if isinstance(values, Tensor)}


def broken_models_are_refused(strategy: Strategy, S: int) -> str | None:
    """NaN or infinity from the model stops the run with a message that names strategy, round and cause."""
    case = cases(S)[1]
    names = [name for name, values in tensors(case.view(needs_of(strategy))).items() if values.is_floating_point()]
    for name in names:
        for bad in (torch.nan, torch.inf):
            view = case.view(needs_of(strategy))
            getattr(view, name).flatten()[-1] = bad
            said = "nothing"
            try:
                select(strategy, "mine", view, case.size.k, torch.Generator(), 7)
            except Exception as error:
                said = str(error)
            named = "strategy mine, round 7" in said and name in said
            expect(named, f"With {bad} in view.{name} it said: {said}", case)
    return None if names else "nothing to break: it looks at no numbers of the model"


def float16_works(strategy: Strategy, S: int) -> None:
    """Predictions and embeddings in float16 give the picks of the same numbers in float32."""
    for case in (cases(S)[1], large(S).of(P=299, k=60)):  # so many that rounding would swap some
        half, wide = (choose(strategy, case.of(kind=kind)) for kind in ("float16", "float16 as float32"))
        expect(
            torch.equal(half, wide),
            f"It chose {brief(half)}, and of the same numbers in float32 {brief(wide)}.",
            case.of(kind="float16"),
        )


def brief(positions: Tensor) -> str:
    return str(positions.tolist()) if len(positions) < 21 else f"{positions.tolist()[:20]}..."


Rule = Callable[[Strategy, int], str | None]
RULES: tuple[Rule, ...] = (
    it_runs, every_size, seed_decides, global_generators_are_left_alone, ties_are_drawn, no_image_is_left_out,
    order_does_not_matter, chunks_do_not_matter, degenerate_predictions, zero_is_a_small_probability,
    few_distinct_points, few_labels, float16_works, view_is_read_only, broken_models_are_refused,
)  # fmt: skip


def verdict(rule: Rule, strategy: Strategy, S: int) -> tuple[str, str]:
    """("ok" | "refused" | "FAILED", remark)"""
    try:
        return "ok", rule(strategy, S) or ""
    except Refused as refusal:
        return "refused", str(refusal)
    except Broken as broken:
        return "FAILED", str(broken)


# --- The command


def load(name: str, arguments: list[str]) -> tuple[Strategy, int]:
    """The strategy of a dotted path, of a name in conf/strategy or of a yaml file, and how many passes it is shown."""
    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise UserError(f"{wrong[0]}: an option is given as name=value.")
    try:
        asked = settings(name) | OmegaConf.to_container(OmegaConf.from_dotlist(arguments))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} {' '.join(arguments)} cannot be read: {error}") from error
    if not isinstance(asked["_target_"], str):
        raise UserError(f"{name}: _target_={asked['_target_']} is no dotted path, such as my_module.my_strategy.")
    if needs_of(function(asked["_target_"])).passes:
        asked = {"passes": 4} | asked
    return strategies.load(asked), 4 if asked.get("passes") or asked.get("members") else 1


def settings(name: str) -> dict[str, Any]:
    """The keys of a strategy's yaml; for a dotted path those a yaml would hold."""
    path = Path(name) if name.endswith(".yaml") else conf_dir() / "strategy" / f"{name}.yaml"
    if path.is_file():
        keys = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(keys, dict):
            raise UserError(f"{path} holds a list, and a strategy's file has keys: name, _target_ and its options.")
        return {"name": name, "_target_": name} | keys
    if "." in name and not name.endswith(".yaml"):
        return {"name": name, "_target_": name}
    near = difflib.get_close_matches(name, [f.stem for f in path.parent.glob("*.yaml")], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"There is no strategy {name}. Name your own with its module: my_module.my_strategy.{hint}")


def function(target: str) -> Strategy:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except BaseException as error:  # a user's module may raise anything when imported
        if stop := stop_behind(error):
            raise stop from None
        raise UserError(f"{target} cannot be loaded: {in_a_line(error).rstrip('.')}.") from error
    if not inspect.isroutine(found):
        raise UserError(f"{target} is no function, and a strategy is one: (view, k, rng, *, options...).")
    return found


def main(arguments: list[str]) -> int:
    """`al-bench check NAME [option=value ...]`: a line a rule, and whether all hold. The exit code."""
    if not arguments or arguments[0].startswith("-"):
        print(USAGE)
        return 0 if arguments else 1
    try:
        return report(arguments[0], *load(arguments[0], arguments[1:]))
    except UserError as error:
        print(f"al_bench: {error}", file=sys.stderr)
        return 1


USAGE = """al-bench check NAME [option=value ...]

Puts a strategy through the rules that all of them obey. NAME is a function's dotted path (my_module.my_strategy, looked
for in the current folder too), the name of a strategy that comes with al_bench, or a yaml file. With passes=N it is
shown several passes of a stochastic net."""


def report(name: str, strategy: Strategy, S: int) -> int:
    console = Console(highlight=False, soft_wrap=True)
    colour = {"ok": "green", "refused": "yellow", "FAILED": "bold red"}
    failed = 0
    for rule in RULES:
        with console.status(escape(rule.__doc__)):
            result, remark = verdict(rule, strategy, S)
        console.print(f"[{colour[result]}]{result:<8}[/] {escape(rule.__doc__)}")
        if remark:
            console.print(f"         {escape(remark)}")
        failed += result == "FAILED"
        if failed and rule is it_runs:
            console.print(f"{escape(name)} does not run, so the other rules were not tried.")
            return 1
    console.print(
        f"{escape(name)} breaks {failed} of {len(RULES)} rules."
        if failed
        else f"{escape(name)} obeys all {len(RULES)} rules."
    )
    return 1 if failed else 0
