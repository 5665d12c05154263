"""When a run ends: the pool is empty, the budget is used up, or the accuracy of the full-data reference is reached."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from al_bench.config import BudgetConfig, Config, StopAt, StopConfig, flat
from al_bench.data import Dataset
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.models import nets
from al_bench.recipe import (
    NOT_COMPARED,
    differing_keys,
    matters_where_all_is_labelled,
    read_recipe,
    run_folder,
    run_name,
)
from al_bench.records import FINISHED, is_complete, read_json, read_records


@dataclass(frozen=True)
class StopRule:
    budget: BudgetConfig
    target: float | None  # the full-data reference's accuracy; None: the run does not stop there

    def reason(self, round: int, pool: Pool, test: dict[str, Any], validation: dict[str, float] | None) -> str | None:
        """Why the run ends after this round, in words. None if it goes on.

        test, validation: metrics of the weights that the round ends with. validation: None without validation images.
        """
        if not len(pool.unlabelled_P):
            return "the pool is empty"
        if self.budget.rounds is not None and round >= self.budget.rounds:
            return "the budget is used up"
        if self.target is None:
            return None
        stop = self.budget.stop
        metrics = test if stop.at is StopAt.test else validation
        if is_reached(metrics["accuracy"], self.target, stop):
            return f"the full-data reference is reached on {stop.at.name} ({self.target:.2%})"
        return None


def is_reached(accuracy: float, target: float, stop: StopConfig) -> bool:
    """Whether the accuracy is at most the tolerance below the target; with two_sided, also at most that much above."""
    gap = abs(accuracy - target) if stop.two_sided else target - accuracy
    return gap <= stop.tolerance + 1e-9  # accuracies are fractions of counts, so 0.0025 off has to count as 0.0025


class Reference(NamedTuple):
    """The finished run on the full data with the same data set, model and seed."""

    accuracy: dict[str, float]  # on test and validation; NaN without validation images
    checksum: str  # of its images
    weights: str | None  # the version of the weights that its net began from; None: none are noted


def find_reference(c: Config) -> Reference | None:
    """The reference to stop at. None if the run does not stop at one.

    Raises UserError if there is none yet, or if it was trained by another recipe.
    """
    if c.budget.stop.at is None or c.budget.initial is None:  # the same command with budget=full trains the reference
        return None
    run = _nearest(c)
    records = read_records(run / "rounds.jsonl", run_name(read_recipe(run / "config.yaml")))
    if not is_complete(records):
        raise UserError(f"The full-data reference {run} has lost its rounds. Train it again with budget=full.")
    last, info = records[-1], read_json(run / "run.json")
    accuracy = {
        "test": last.metrics["accuracy"],
        "validation": last.validation["accuracy"] if last.validation else float("nan"),
    }
    return Reference(accuracy, info["dataset"]["checksum"], (info.get("weights") or {}).get("model"))


def _nearest(c: Config) -> Path:
    """The folder of the finished full-data run whose configuration is that of `c`."""
    folder = run_folder(c).parents[2] / "full"
    found = sorted(folder.glob(f"*/seed={c.seed}/run.json"))
    done = [path.parent for path in found if read_json(path).get("state") == FINISHED]
    if not done:
        raise UserError(
            f"budget.stop.at={c.budget.stop.at.name} needs the full-data reference, and {folder} holds no finished one "
            f"for seed={c.seed}. Train it first: the same command with budget=full."
        )
    differing = {run: _relevant_differences(c, run) for run in done}
    nearest, keys = min(differing.items(), key=lambda item: len(item[1]))
    if keys:
        raise UserError(
            f"The full-data reference {nearest} has another {', '.join(keys)}. Delete it and train it again with "
            "budget=full."
        )
    return nearest


def _relevant_differences(c: Config, run: Path) -> list[str]:
    """The keys in which the run differs from `c` and which change what a full-data run computes."""
    theirs, noted = read_recipe(run / "config.yaml"), read_json(run / "run.json").get("weights") or {}
    ignored = NOT_COMPARED | {f"{name}.weights" for name in noted}  # these weights are compared by content
    keys = differing_keys(flat(asdict(c)), theirs)
    return [key for key in keys if key not in ignored and matters_where_all_is_labelled(key)]


def stop_rule(c: Config, reference: Reference | None, dataset: Dataset) -> StopRule:
    """Raises UserError if the reference was trained on other images or from other weights."""
    if reference is None:
        return StopRule(c.budget, None)
    if reference.checksum != dataset.checksum:
        raise UserError("The full-data reference was trained on other images. Train it again with budget=full.")
    ours = nets.weights_version(c.model) or ""
    if reference.weights and not reference.weights.startswith(ours):  # before a download the hub's revision is unknown
        raise UserError("The full-data reference began from other weights. Train it again with budget=full.")
    return StopRule(c.budget, reference.accuracy[c.budget.stop.at.name])
