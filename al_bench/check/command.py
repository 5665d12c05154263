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
from al_bench.check.rules import RULES, it_runs, verdict
from al_bench.config import conf_dir
from al_bench.errors import UserError
from al_bench.imports import function
from al_bench.strategies import StrategyFunction, needs_of


def load(name: str, arguments: list[str]) -> tuple[StrategyFunction, int]:
    """The strategy of a dotted path, of a name in conf/strategy or of a yaml file, and how many passes it is shown."""
    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise UserError(f"{wrong[0]}: an option is given as name=value.")
    try:
        asked = settings(name) | OmegaConf.to_container(OmegaConf.from_dotlist(arguments))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} {' '.join(arguments)} cannot be read: {error}") from error
    target = asked["_target_"]
    if not isinstance(target, str):
        raise UserError(f"{name}: _target_={target} is no dotted path, such as my_module.my_strategy.")
    found = function("strategy._target_", target)
    if not inspect.isroutine(found):
        raise UserError(f"{target} is no function, and a strategy is one: (view, k, rng, *, options...).")
    if needs_of(found).passes:
        asked = {"passes": 4} | asked
    strategy = strategies.load(asked)
    return strategy.function, 4 if strategy.n_passes or strategy.members else 1


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
    except KeyboardInterrupt:
        print("al_bench: Interrupted.", file=sys.stderr)
        return 130


USAGE = """al-bench check NAME [option=value ...]

Puts a strategy through the rules that all of them obey. NAME is a function's dotted path (my_module.my_strategy, looked
for in the current folder too), the name of a strategy that comes with al_bench, or a yaml file. With passes=N it is
shown several passes of a stochastic net."""


def report(name: str, strategy: StrategyFunction, S: int) -> int:
    console = Console(highlight=False, soft_wrap=True)
    colour = {"ok": "green", "refused": "yellow", "FAILED": "bold red"}
    failed = 0
    for rule in RULES:
        with console.status(escape(rule.__doc__)):
            result, remark = verdict(rule, strategy, S)
        console.print(f"[{colour[result]}]{result:<8}[/] {below(console, rule.__doc__)}")
        if remark:
            console.print(f"{MARGIN}{below(console, remark)}")
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


MARGIN = " " * 9


def below(console: Console, text: str) -> str:
    """The text, in lines that fit the terminal and keep its margin. A file gets one line."""
    lines = textwrap.wrap(text, console.width - len(MARGIN)) if console.is_terminal else [text]
    return f"\n{MARGIN}".join(map(escape, lines))
