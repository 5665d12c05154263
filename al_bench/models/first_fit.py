"""Round 0 is trained once a seed: its fit is kept in the cache, and the other strategies of the seed take it.

The strategies of a seed share images, initial set, first weights and order of batches, so their first fits are equal.
A fit is found by a checksum of everything that it depends on, so whatever changes is trained anew.
"""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from al_bench.config import Config, Head, flat
from al_bench.data.cache import remove_leftovers
from al_bench.data.pool import Pool
from al_bench.files import write_atomically
from al_bench.models.classifier import Classifier
from al_bench.models.learner import Learner
from al_bench.provenance import own_code
from al_bench.records import SHARED_FIT

log = logging.getLogger("al_bench")

FOLDER = "first_fits"  # in the cache
# Keys of trainer without an effect on the weights of round 0. The last three name the hardware, which the run notes.
NO_EFFECT = {
    "progress", "num_workers", "start", "test_passes", "later_max_epochs", "accelerator", "precision", "threads",
}  # fmt: skip
HARDWARE = ("cpu", "device", "threads", "precision", "versions", "python")  # of a run's start, in run.json


@dataclass(frozen=True)
class Fit:
    """How the net of a round was trained."""

    epochs: int
    steps: int
    run: str | None = None  # the run that trained it, if it is another one
    seconds: dict[str, float] = field(default_factory=dict)  # as records.SHARED_FIT says


class FirstFit:
    """Fits the nets of a run, and shares the fit of round 0 with other runs."""

    def __init__(self, c: Config, learner: Learner, run: str, info: dict[str, Any]) -> None:
        """run: the path of the run's folder, from results_dir on. info: its run.json, with the hardware noted."""
        self.learner, self.run, self.id = learner, run, info.get("id")
        self.folder = Path(c.cache_dir).expanduser() / FOLDER if is_shared(c) else None
        self.made_on = {name: info["starts"][-1][name] for name in HARDWARE}

    def fit(self, net: Classifier, pool: Pool, round: int) -> Fit:
        """Train `net` as Learner.fit does. In round 0, give it the weights of an equal fit if there is one."""
        if round or self.folder is None:
            return Fit(*self.learner.fit(net, pool, round))
        key = ingredients(self.learner, net, pool) | self.made_on
        path = self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.fit"
        if found := read(path):
            return self._take(net, *found)
        start = time.perf_counter()
        epochs, steps = self.learner.fit(net, pool, round)
        seconds = time.perf_counter() - start
        made_by = {"run": self.run, "id": self.id, "seconds": seconds}
        keep(path, net, made_by | {"steps": steps, "history": net.history, "key": key})
        return Fit(epochs, steps)

    def _take(self, net: Classifier, facts: dict[str, Any], weights: dict[str, Tensor]) -> Fit:
        net.load_state_dict(weights)
        net.history += facts["history"]
        of_run = None if facts["id"] == self.id else facts["run"]  # None: this run was interrupted after its fit
        log.info(f"Round 0 takes its weights from the cache: {of_run or 'this run'} trained them.")
        return Fit(len(net.history), facts["steps"], of_run, {SHARED_FIT: round(facts["seconds"], 3)})


def is_shared(c: Config) -> bool:
    """Not on the full data, which a seed is trained on once, and not the logistic head, which trains in milliseconds.

    Nor with a net or an optimizer of the user's: what their code imports may change without a trace.
    """
    targets = [value for key, value in flat(c.model.optimizer).items() if key.endswith("_target_")]
    known = c.model._target_.startswith("al_bench.") and all(t.startswith(("torch.", "timm.")) for t in targets)
    return known and c.budget.initial is not None and c.model.head is not Head.logistic


def ingredients(learner: Learner, net: Classifier, pool: Pool) -> dict[str, Any]:
    """What the weights after the fit depend on, besides hardware and versions. net: before the fit."""
    t, m = learner.trainer, learner.model
    sets = {"labelled": (pool.labelled_L, pool.labels_L)}
    if t.early_stopping.patience is not None:
        sets["validation"] = (pool.validation_V, pool.validation_labels_V)
    images = learner.dataset.images
    rows = images.permute(0, 2, 3, 1) if images.ndim == 4 else images  # as they lie in memory
    return {
        **{name: checksum({"images": rows[idx], "labels": labels}) for name, (idx, labels) in sets.items()},
        "weights": checksum(dict([*net.named_parameters(), *net.named_buffers()])),  # the mean and std of images too
        "model": {k: v for k, v in plain(m).items() if k != "weights"},  # their path
        "trainer": {k: v for k, v in plain(t).items() if k not in NO_EFFECT},
        "seed": learner.seed,
        "code": own_code(),
    }


def plain(settings: Any) -> dict[str, Any]:
    return flat(asdict(settings))


def checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and contents."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def keep(path: Path, net: Classifier, facts: dict[str, Any]) -> None:
    """Write the fit, unless another run was faster: a line with the checksum of the rest, a line of facts, the weights.

    The run does not need the file, so one that cannot be written is a warning.
    """
    weights = {k: v.clone(memory_format=torch.contiguous_format) for k, v in net.state_dict().items()}
    rest = json.dumps(facts).encode() + b"\n" + save(weights)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            write_atomically(path, hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
    except OSError as error:
        log.warning(
            f"The first fit could not be kept in the cache ({error}), so other strategies of this seed train it again."
        )


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(facts, weights) of a file that `keep` wrote. None if there is none, or if it is unreadable or damaged."""
    try:
        seal, _, rest = path.read_bytes().partition(b"\n")
        if hashlib.sha256(rest).hexdigest().encode() == seal:
            facts, _, weights = rest.partition(b"\n")
            return json.loads(facts), load(weights)
        log.warning(f"The first fit in {path} was truncated or altered; it is trained again.")
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning(f"The first fit in {path} cannot be read ({error}); it is trained again.")
    return None
