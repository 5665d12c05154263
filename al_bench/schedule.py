"""The stages of a schedule: which strategy chooses in which rounds. Nothing here imports torch.

A strategy's yaml holds either _target_, or schedule: a list of stages. A stage names one of al_bench's strategies or a
function, the number of its rounds, and may set options:

    schedule:
      - {strategy: typiclust, rounds: 3}
      - {_target_: my_module.my_strategy, my_option: 2}
"""

from typing import Any

from al_bench.bounds import is_number, violations
from al_bench.errors import UserError
from al_bench.options import shipped

OWN = ("name", "schedule", "candidates", "filter")  # what a schedule's yaml sets itself; the rest belongs to a stage


def stages_of(strategy: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of each strategy that chooses: those of the stages, or of the strategy itself."""
    return strategy.get("schedule") or [strategy]


def with_stages(strategy: dict[str, Any]) -> dict[str, Any]:
    """The settings of a strategy with all settings of each stage in place of its name. Raises UserError.

    So the run's config.yaml holds what ran, and the version of the run's code covers each stage. A strategy without a
    schedule, and one whose stages are complete, are returned as they are.
    """
    if "schedule" not in strategy:
        return strategy
    name, stages = strategy.get("name"), strategy["schedule"]
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UserError(f"strategy.schedule of {name}: a list of stages, such as {{strategy: typiclust, rounds: 3}}.")
    if extra := [key for key, value in strategy.items() if key not in OWN and value is not None]:
        raise UserError(f"strategy {name} is a schedule, so {extra[0]} belongs into one of its stages.")
    there = shipped("strategy", str(name)) or {}
    if there and [*map(_chosen_by, there.get("schedule", []))] != [*map(_chosen_by, stages)]:
        raise UserError(f"strategy.name={name} belongs to another strategy. Give the schedule a name of its own.")
    found = [_complete(stage, f"strategy {name}, stage {i}") for i, stage in enumerate(stages, start=1)]
    for i, stage in enumerate(found, start=1):
        _check_rounds(stage.get("rounds"), i, len(found), f"strategy {name}, stage {i}")
    inherited = {key: strategy.get(key) for key in ("candidates", "filter")}
    return strategy | {"schedule": [inherited | stage for stage in found]}


def _chosen_by(stage: dict[str, Any]) -> Any:
    """The function that chooses in a stage; None where the stage names no strategy that there is."""
    return stage.get("_target_") or (shipped("strategy", str(stage.get("strategy"))) or {}).get("_target_")


def _complete(stage: dict[str, Any], where: str) -> dict[str, Any]:
    named = stage.get("strategy")
    if (named is None) == (stage.get("_target_") is None):
        raise UserError(f"{where}: name one of al_bench's strategies (strategy: margin) or a function (_target_: ...).")
    rest = {key: value for key, value in stage.items() if key != "strategy"}
    known = shipped("strategy", str(named)) if named else {"name": str(stage["_target_"]).rpartition(".")[2]}
    if not known or {"schedule", "oracle"} & {**known, **rest}.keys():
        raise UserError(f"{where}: {named} is no strategy of al_bench that can be a stage. Give a function's _target_.")
    settings = {"passes": None, "members": None} | known | rest
    for mistake in violations({f"strategy.{key}": value for key, value in settings.items()}):
        raise UserError(f"{where}: {mistake}")
    return settings


def _check_rounds(rounds: Any, i: int, n: int, where: str) -> None:
    if i < n and not (is_number(rounds, int) and rounds > 0):
        raise UserError(f"{where}: rounds={rounds}: the number of rounds in which it chooses, 1 or more.")
    if i == n and rounds is not None:
        raise UserError(f"{where}: leave out rounds={rounds}: the last stage chooses in all rounds that are left.")
