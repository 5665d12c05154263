"""strategy=replay: acquire, seed by seed, what a strategy of another study acquired, with another model.

So a study asks whether the choice of a cheap proxy is good for an expensive net.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from al_bench.analysis import published, results
from al_bench.analysis.results import Run
from al_bench.config import Config
from al_bench.errors import UserError
from al_bench.records import FINISHED, RoundRecord
from al_bench.strategies import PoolView, needs


@needs(predictions=False, record=True)
def replay(view: PoolView, k: int, rng: torch.Generator, *, study: str, of: str, model: str | None = None) -> Tensor:
    """The target of strategy=replay. The loop acquires what a record names, and does not call this.

    study: the folder of a study, with its runs or their archive. of: the strategy that chose. model: the model that it
    chose for, as the run's folder names it; needed where the study has several.
    """
    raise ValueError("replay chooses nothing by itself: it acquires what a finished run acquired")


def runs(c: Config) -> list[Run]:
    """The finished runs that this run may replay: of the strategy and the seed. Raises UserError if there is none."""
    if c.budget.rounds is None:
        raise UserError("strategy=replay acquires what another run did, round by round: set budget.rounds.")
    folder, of, model = (c.strategy.get(key) for key in ("study", "of", "model"))
    with published.unpacked(Path(folder).expanduser()) as place:
        there = [results.identity_of(run) | {"folder": run} for run in results.folders(place)]
        wanted = [run for run in there if run["strategy"] == of and run["seed"] == c.seed]
        found = [results.read(run["folder"]) for run in wanted if model in (None, run["setting"].model)]
        oracle = any(run.config.get("strategy.oracle") for run in found)
    if oracle:
        raise UserError(f"{of} of strategy.study={folder} is an oracle: it saw all labels, so nobody may replay it.")
    if done := [run for run in found if run.state == FINISHED]:
        return done
    strategies = ", ".join(sorted({run["strategy"] for run in there}))
    seeds = ", ".join(map(str, sorted({run["seed"] for run in there if run["strategy"] == of}))) or "none"
    of_model = f" and model {model}" if model else ""
    raise UserError(
        f"strategy.study={folder} has no finished run of {of} with seed {c.seed}{of_model} to replay. It has runs of "
        f"{strategies}; of {of} with the seeds {seeds}."
    )


def picks(c: Config, found: list[Run], info: dict, records: list[RoundRecord]) -> list[Tensor]:
    """The indices [k] that are acquired after each round, as the run to replay acquired them.

    info, records: of this run. Raises UserError unless the runs that began with the same images, stressors and initial
    set, and acquired as many labels in each round, all acquired the same, and this run did so in its finished rounds.
    """
    stressed = {f"stressor.{key}": value for key, value in asdict(c.stressor).items()}
    same_images = [
        run
        for run in found
        if (run.info.get("dataset") or {}).get("checksum") == info["dataset"]["checksum"]
        and all(run.config.get(key, value) == value for key, value in stressed.items())
    ]
    same_start = [run for run in same_images if run.info.get("initial_set") == info["initial_set"]]
    asked = [c.budget.query_of(round) for round in range(c.budget.rounds)]
    fitting = [run for run in same_start if [len(idx) for idx in run.acquired[: len(asked)]] == asked]
    acquired = {tuple(map(tuple, run.acquired[: len(asked)])): run for run in fitting}
    what = f"strategy.study={c.strategy['study']}: the run of {c.strategy['of']} with seed {c.seed}"
    if len(acquired) == 1:
        (idx_RK,) = acquired
        if any(record.acquired not in ([], [*idx]) for record, idx in zip(records, idx_RK, strict=False)):
            raise UserError(f"{what} is not the one that this run began to replay. Delete this run and run it again.")
        return [torch.tensor(idx) for idx in idx_RK]
    names = sorted({run.setting.model for run in fitting})
    if len(names) > 1:
        raise UserError(f"{what} is there for several models. Choose one: strategy.model={' or '.join(names)}.")
    if acquired:
        folders = "".join(f"\n  {run.folder}" for run in acquired.values())
        raise UserError(
            f"{what} is there several times, and each acquired others. Name one as strategy.study:{folders}"
        )
    if not same_images:
        raise UserError(
            f"{what} has other images, another dataset.image_size or other stressors. Replay it on the images that it "
            "chose from."
        )
    if not same_start:
        raise UserError(f"{what} has another initial set. Set its budget.initial, budget.start and budget.validation.")
    theirs = [len(idx) for idx in same_start[0].acquired if len(idx)]
    raise UserError(
        f"{what} acquired {theirs} labels in its rounds, and budget.query and budget.rounds ask for {asked}."
    )
