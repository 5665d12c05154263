"""Which settings make two runs the same: what is compared, how folders are named, how a config.yaml is read.

A configuration is either a Config or flat: a mapping with dotted keys, such as trainer.max_steps.
Nothing here imports torch.
"""

import functools
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from al_bench.config import Config, LoggerConfig, StressorConfig, flat, keys
from al_bench.errors import UserError
from al_bench.files import accessible

# Keys that only affect storage or display. Any other difference is another experiment. dataset.root is among them, for
# images are compared by their checksum. So are weights, where the run noted their checksum.
NOT_COMPARED = {
    "results_dir", "study", "cache_dir", "plan", "dataset.root", "trainer.progress", "trainer.num_workers", "metrics",
    *keys(LoggerConfig, "logger."),
}  # fmt: skip
# Runs with other metrics are compared by the metrics that they share. All rounds of one run have the same metrics.
SAME_IN_ALL_ROUNDS = {"metrics"}
UNSTRESSED = flat(asdict(StressorConfig()), "stressor")  # the settings of a config.yaml older than the stressors


def run_folder(c: Config) -> Path:
    """The run's folder: <results_dir>/<study>/<dataset>/<model>/<budget>/<strategy>/seed=<n>.

    Its name says what the run is, not when it was made. <dataset> names the stressor's keys that change the data, as
    in digits+imbalance=100+label_noise=0.2.
    """
    return Path(c.results_dir).expanduser().joinpath(as_file_name(c.study), run_name(flat(asdict(c))))


def run_name(c: dict[str, Any]) -> str:
    """<dataset>/<model>/<budget>/<strategy>/seed=<n>, from a flat configuration. Each record holds it."""
    mode = None if c["model.mode"] == "finetune" else c["model.mode"]
    model = "-".join(filter(None, [c["model.name"], mode, c.get("model.head")]))
    rounds = "all" if c["budget.rounds"] is None else c["budget.rounds"]
    query = c["budget.query"]
    a_round = "-".join(map(str, query)) if isinstance(query, list) else query
    budget = c["budget.name"] or f"{c['budget.initial']}+{rounds}x{a_round}"
    stress = [f"{k.removeprefix('stressor.')}={c[k]:g}" for k, usual in UNSTRESSED.items() if c[k] != usual]
    names = ["+".join([c["dataset.name"], *stress]), model, budget, c["strategy.name"]]
    return "/".join([*map(as_file_name, names), f"seed={c['seed']}"])


def as_file_name(name: str) -> str:
    """The name as one part of a path, without the slashes and colons of timm's hub names or a leading dot."""
    return re.sub(r"[^\w.+=-]", "_", str(name)).lstrip(".") or "_"


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ. A key that is missing equals one that is null."""
    return [k for k in sorted(one.keys() | other.keys()) if one.get(k) != other.get(k)]


def separating_override(c: Config, differ: list[str]) -> str:
    """The override that gives a run its own folder. It differs in these keys from a run that would share its folder."""
    if all(key.startswith("strategy.") for key in differ):  # the study stays the same, so that the two are compared
        return f"strategy.name='{'_'.join([c.strategy['name'], *(f'${{{key}}}' for key in differ)])}'"
    return "study=..."


def matters_where_all_is_labelled(key: str) -> bool:
    """A full-data run ignores strategy, features and budget, except budget.validation."""
    return key == "budget.validation" or not key.startswith(("strategy.", "budget.", "features."))


def read_recipe(config: Path) -> dict[str, Any]:
    """A run's config.yaml as a flat configuration. Raises UserError if it cannot be read or is damaged."""
    try:
        with accessible(config, "read"):
            return as_asked(config)
    except ValueError as error:
        raise UserError(f"{config} is damaged ({error}). Delete {config.parent} to begin anew.") from None


def as_asked(config: Path) -> dict[str, Any]:
    """As read_recipe, but raises OSError if the file cannot be read, and ValueError if it is damaged.

    strategy._partial_, which earlier versions of al_bench wrote into every config.yaml, is left out.
    """
    text = config.read_text()
    try:
        parts = [_part(part) for part in re.split(r"^(?=\w+:)", text, flags=re.MULTILINE) if part]
    except ValueError:  # a file that al_bench did not write may need to be read whole
        parts = [_part(text)]
    flat = {k: v for part in (UNSTRESSED, *parts) for k, v in part.items()}
    flat.pop("strategy._partial_", None)
    return flat


@functools.lru_cache(1024)
def _part(text: str) -> dict[str, Any]:
    """Parse one top-level key of a config.yaml. Cached: YAML is slow, and most runs share most of these parts."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, if libyaml is installed
    try:
        content = yaml.load(text, loader)
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__}, not a mapping")
        return flat(content)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
