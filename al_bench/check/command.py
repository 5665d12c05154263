"""The command `al-bench check NAME`."""

import difflib
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from yaml import YAMLError

from al_bench import strategies
from al_bench.check.rules import RULES, it_runs, try_rule
from al_bench.errors import UserError, told
from al_bench.imports import function
from al_bench.options import conf_dir
from al_bench.schedule import stages_of, with_stages
from al_bench.strategies import Strategy, StrategyFunction, needs_of


def load(name: str, arguments: list[str]) -> list[tuple[StrategyFunction, int]]:
    """Return the strategy, or each stage of a schedule, with the number of passes to test it with.

    name: a dotted path, a name in conf/strategy or a yaml file. arguments: options, each as name=value.
    """
    if malformed := [argument for argument in arguments if "=" not in argument]:
        raise UserError(f"{malformed[0]}: type an option as name=value.")
    try:
        asked = OmegaConf.to_container(OmegaConf.merge(settings(name), OmegaConf.from_dotlist(arguments)))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} {' '.join(arguments)} cannot be read: {error}") from error
    found = [_stage(stage) for stage in stages_of(with_stages(asked))]
    return [(strategy.function, 4 if strategy.n_passes or strategy.members else 1) for strategy in found]


def _stage(asked: dict[str, Any]) -> Strategy:
    name, target = asked["name"], asked["_target_"]
    if not isinstance(target, str):
        raise UserError(f"{name}: _target_={target} is not a dotted path such as my_module.my_strategy.")
    found = function("strategy._target_", target)
    if not inspect.isroutine(found):
        raise UserError(f"{target} is not a function. A strategy is a function: (view, k, rng, *, options...).")
    if needs_of(found).record:
        raise UserError(f"{name} acquires what a record names. It chooses nothing, so there is nothing to check.")
    if needs_of(found).passes and not (asked.get("passes") or asked.get("members")):
        asked = asked | {"passes": 4}
    return strategies.load({key: value for key, value in asked.items() if key != "rounds"})  # those of a stage


def settings(name: str) -> dict[str, Any]:
    """Return the keys of a strategy's yaml, or for a dotted path the keys that a yaml would hold."""
    path = Path(name) if name.endswith(".yaml") else conf_dir() / "strategy" / f"{name}.yaml"
    if path.is_file():
        keys = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(keys, dict):
            raise UserError(f"{path} holds a list. A strategy's file holds keys: name, _target_ and its options.")
        return {"name": name} | ({} if "schedule" in keys else {"_target_": name}) | keys
    if "." in name and not name.endswith(".yaml"):
        return {"name": name, "_target_": name}
    near = difflib.get_close_matches(name, [f.stem for f in path.parent.glob("*.yaml")], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"There is no strategy {name}. Name your own with its module, as in my_module.my_strategy.{hint}")


@told
def main(arguments: list[str]) -> int:
    """Run `al-bench check NAME [option=value ...]` and print one line per rule. Return 0 if all rules hold, else 1."""
    if not arguments or arguments[0].startswith("-"):
        print(USAGE)
        return 0 if arguments else 1
    try:
        stages = titled(arguments[0], load(arguments[0], arguments[1:]))
        return max([report(title, *stage) for title, stage in stages.items()])
    except KeyboardInterrupt:
        print("al_bench: Interrupted.", file=sys.stderr)
        return 130


def titled(name: str, stages: list[Any]) -> dict[str, Any]:
    return {f"{name}, stage {i}" if len(stages) > 1 else name: stage for i, stage in enumerate(stages, start=1)}


USAGE = """al-bench check NAME [option=value ...]

Tests a strategy against the rules that all strategies obey. NAME is one of:
  - the dotted path of a function, such as my_module.my_strategy (the current folder is searched too)
  - the name of a strategy that comes with al_bench
  - a yaml file
With passes=N the strategy is tested on several passes of a stochastic net."""


def report(name: str, strategy: StrategyFunction, S: int) -> int:
    """Try the rules, print a line for each and a verdict. A cause that several rules meet is told once."""
    console = Console(highlight=False, soft_wrap=True)
    colour = {"ok": "green", "refused": "yellow", "FAILED": "bold red"}
    failed, first_with = 0, {}
    for rule in RULES:
        with console.status(escape(rule.__doc__)):
            result, remark = try_rule(rule, strategy, S)
        console.print(f"[{colour[result]}]{result:<8}[/] {indented(console, rule.__doc__)}")
        if result == "FAILED":
            failed += 1
            first = first_with.setdefault(remark.split(" Input: ")[0], rule)
            remark = remark if first is rule else f"The same cause broke this rule above: {first.__doc__}"
        if remark:
            console.print(f"{MARGIN}{indented(console, remark)}")
        if failed and rule is it_runs:
            break
    if failed:
        console.print(TO_REBUILD)
    console.print(f"{escape(name)} {verdict(failed, len(first_with), stopped=rule is it_runs)}")
    return 1 if failed else 0


TO_REBUILD = "To rebuild an input: from al_bench.check.inputs import make_view; from al_bench.strategies import Size"


def verdict(n_failed: int, n_causes: int, stopped: bool) -> str:
    if stopped:
        return "does not run, so the other rules were not tried."
    if not n_failed:
        return f"obeys all {len(RULES)} rules."
    causes = "" if n_causes == n_failed else f", from {n_causes} {'cause' if n_causes == 1 else 'causes'}"
    return f"breaks {n_failed} of {len(RULES)} rules{causes}."


MARGIN = " " * 9


def indented(console: Console, text: str) -> str:
    """Wrap the text to the terminal and indent all lines but the first. Do not wrap it if the output is a file."""
    lines = textwrap.wrap(text, console.width - len(MARGIN)) if console.is_terminal else [text]
    return f"\n{MARGIN}".join(map(escape, lines))
