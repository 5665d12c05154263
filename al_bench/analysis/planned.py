"""Which seeds were planned together. A sweep notes its seeds before its first run, in seeds.json beside the strategies.

Seeds that are added once results could be read make one more look at the data. Each look has a chance of a false call,
so a report corrects for their number. Every command imports this file, which therefore imports no statistics.
"""

import json
from pathlib import Path

import filelock

from al_bench.analysis.results import Run
from al_bench.errors import UserError
from al_bench.files import is_there, read_file, write_atomically

PLANS = "seeds.json"  # a list of plans, each a list of seeds


def note(setting: Path, seeds: set[int]) -> None:
    """Note the seeds that a sweep plans for a setting, whose folder is <study>/<dataset>/<model>/<budget>.

    They are a new plan only if some are new and some run has a result. Raises OSError or UserError.
    """
    setting.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(setting / f".{PLANS}.lock"):  # of sweeps that start together
        seen = seeds_with_results(setting)
        plans = read(setting) or [seen] * bool(seen)
        if not (new := seeds - set().union(*plans)):
            return
        plans = [*plans, new] if seen else [new.union(*plans)]
        write_atomically(setting / PLANS, json.dumps([sorted(plan) for plan in plans]) + "\n")


def seeds_with_results(setting: Path) -> set[int]:
    """The seeds of which some run has finished a round."""
    rounds = setting.glob("*/seed=*/rounds.jsonl")
    return {int(n) for path in rounds if path.stat().st_size and (n := path.parent.name[5:]).isdecimal()}


def read(setting: Path) -> list[set[int]]:
    """The plans of a setting, the first one first. Raises UserError if the file is damaged."""
    path = setting / PLANS
    if not is_there(path):
        return []
    try:
        plans = [set(map(int, plan)) for plan in json.loads(read_file(path))]
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is no list of lists of seeds. Delete it if all seeds were planned together.") from None
    return plans


def looks(runs: list[Run], fewest: int) -> tuple[int, list[int]]:
    """(how often a call could be made, now included; the seeds that were added after the first time).

    fewest: seeds with which a call is possible. A look at fewer has no chance of a false one.
    """
    seeds = {run.seed for run in runs}
    settings = {run.folder.parents[1] for run in runs if run.folder}
    plans = max(map(read, sorted(settings)), key=len, default=[])
    so_far: set[int] = set()
    added: list[set[int]] = []  # at each look
    for plan in plans:
        added = [*added, plan & seeds - so_far] if len(so_far) >= fewest else [so_far | plan & seeds]
        so_far |= plan & seeds
    added = [new for new in added if new]
    return max(1, len(added)), sorted(set().union(*added[1:]))
