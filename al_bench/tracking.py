"""Trackers copy the rounds of a run to csv, TensorBoard or Weights & Biases. The records remain the source of truth.

A tracker is made by a callable (config, run folder, class names). It has two methods:

    log(records, picked)   takes all finished rounds so far and adds those that it does not hold yet
    finish(failed)

`picked()` returns the images that the newest round acquired. It costs a prediction, so a tracker calls it only if it
shows images. Rounds are drawn over n_labels, epochs over epoch/total, which counts on through all retrainings.
"""

import csv
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np
from omegaconf import OmegaConf

from al_bench.config import Config, TrackingMode
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.files import write_atomically
from al_bench.imports import function
from al_bench.models.classifier import Classifier
from al_bench.models.learner import Learner
from al_bench.recipe import run_folder
from al_bench.records import RoundRecord
from al_bench.store import RunStore
from al_bench.strategies.uncertainty import entropy_score
from al_bench.text import printable

log = logging.getLogger("al_bench")

Picked = Callable[[], list[dict[str, Any]]]


class Tracker(Protocol):
    def log(self, records: Sequence[RoundRecord], picked: Picked | None = None) -> None: ...

    def finish(self, failed: bool) -> None: ...


@contextmanager
def opened(
    c: Config, folder: Path, class_names: Sequence[str], records: Sequence[RoundRecord]
) -> Iterator[Callable[[Sequence[RoundRecord], Picked], None]]:
    """Open the tracker that c.logger names, log the rounds so far, yield its log method, and finish it at the end.

    An error in a tracker is logged once and never ends the run.
    """
    silent = False

    def attempt(act: Callable[..., Any], *args: Any) -> Any:
        nonlocal silent
        try:
            return act(*args)
        except UserError:
            raise
        except Exception as error:
            if not silent:
                log.warning(f"The tracker failed ({error!r}). The run goes on; its records in {folder} are complete.")
            silent = True

    class_names = [*map(printable, class_names)]
    make = function("logger._target_", c.logger._target_)
    tracker = attempt(make, c, folder, class_names) or NoTracker()
    attempt(tracker.log, records)
    failed = True
    try:
        yield partial(attempt, tracker.log)
        failed = False
    finally:
        attempt(tracker.finish, failed)


class NoTracker:
    def __init__(self, *_: Any) -> None:
        pass

    def log(self, records: Sequence[RoundRecord], picked: Picked | None = None) -> None:
        pass

    def finish(self, failed: bool) -> None:
        pass


class CsvTracker:
    """Writes metrics.csv in the run folder, one row per round. Rewrites it each time, so no round appears twice."""

    def __init__(self, c: Config, folder: Path, class_names: Sequence[str]) -> None:
        self.path, self.class_names = folder / "metrics.csv", class_names

    def log(self, records: Sequence[RoundRecord], picked: Picked | None = None) -> None:
        rows = [round_row(r, self.class_names) for r in records]
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.path, text.getvalue())

    def finish(self, failed: bool) -> None:
        pass


class TensorBoardTracker:
    """Writes tensorboard/ in the run folder. Each start rebuilds it from the records, so no round appears twice."""

    def __init__(self, c: Config, folder: Path, class_names: Sequence[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"logger=tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            ) from None
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        # purge_step makes an open TensorBoard forget what it read from the file of an earlier start.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
        self.class_names, self.n_logged = class_names, 0

    def log(self, records: Sequence[RoundRecord], picked: Picked | None = None) -> None:
        for row in rows(records, self.class_names)[self.n_logged :]:
            step = row.pop("epoch/total" if "epoch/total" in row else "n_labels")
            for key, value in row.items():
                self.writer.add_scalar(key, value, step)
            self.n_logged += 1
        self.writer.flush()

    def finish(self, failed: bool) -> None:
        self.writer.close()


def start_wandb(c: Config, folder: Path, class_names: Sequence[str]) -> "WandbTracker | NoTracker":
    return NoTracker() if c.logger.mode is TrackingMode.disabled else WandbTracker(c, folder, class_names)


class WandbTracker:
    """A Weights & Biases run: one row per epoch, one row per round, and a table of the images that the round acquired.

    The step of a row is its place among all rows of the run. An online run continues after the last step that the
    server holds. Offline, each start makes a file of its own and continues after the rows of earlier files.
    """

    def __init__(self, c: Config, folder: Path, class_names: Sequence[str]) -> None:
        self.class_names, self.axes = class_names, set()
        self.run = begin_run(c, folder)
        self.n_logged_path = folder / "wandb" / "rows-given"
        offline = self.run.offline and self.n_logged_path.exists()
        self.n_logged = int(self.n_logged_path.read_text()) if offline else self.run.starting_step

    def log(self, records: Sequence[RoundRecord], picked: Picked | None = None) -> None:
        all_rows = rows(records, self.class_names)
        if picked and (images := picked()):
            all_rows[-1]["picked"] = wandb_table(images)
        if not picked and self.n_logged > len(all_rows):
            log.warning(f"W&B holds later rounds of this run ({self.run.id}). Only rounds after those are added.")
        for step in range(self.n_logged, len(all_rows)):
            self._set_axes(all_rows[step])
            self.run.log(all_rows[step], step=step, commit=True)
            self.n_logged = step + 1
            self.n_logged_path.write_text(str(self.n_logged))

    def _set_axes(self, row: dict[str, Any]) -> None:
        new = {f"{key.split('/')[0]}/*" if "/" in key else key for key in row} - self.axes
        for key in new - {"n_labels"}:
            self.run.define_metric(key, step_metric="epoch/total" if key == "epoch/*" else "n_labels")
        self.axes |= new

    def finish(self, failed: bool) -> None:
        folder = self.run.settings.sync_dir
        try:
            self.run.finish(exit_code=int(failed))
        except TimeoutError as error:
            log.warning(
                f"W&B did not receive all of the run ({error}). To send it: wandb sync --include-online {quote(folder)}"
            )


def begin_run(c: Config, folder: Path) -> Any:
    """Start a wandb.Run: online if configured and if there are a key and a network; else offline, with a log line."""
    import wandb

    files = (folder / "wandb").absolute()
    # Without these, W&B keeps its log and the images of tables, until they are sent, in the home folder.
    os.environ |= {"WANDB_DATA_DIR": str(files), "WANDB_CACHE_DIR": str(files / "cache")}
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "15")  # seconds to wait for a server
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")  # seconds; what is not sent by then stays on the disk
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # an offline run contacts no server
    wandb.setup(wandb.Settings(silent=True))
    *path, strategy, seed = run_folder(c).parts[-6:]
    identity = (*path, strategy, seed, RunStore(c).info().get("id", ""))
    start = partial(
        wandb.init,
        entity=c.logger.entity, project=c.logger.project, dir=files.parent,
        id=hashlib.sha256("/".join(identity).encode()).hexdigest()[:16], resume="allow",
        group="/".join(path)[:128], job_type=strategy[:64], name=f"{strategy} {seed}"[:128],
        config=OmegaConf.to_container(OmegaConf.structured(c), enum_to_str=True),
        save_code=False, reinit="create_new", settings=wandb_settings(),
    )  # fmt: skip
    why = "logger.mode=offline"
    if c.logger.mode is TrackingMode.online:
        try:
            if wandb.login(prompt=False, verify=False):
                return start(mode="online")
            why = "there is no API key; `wandb login` stores one"
        except Exception as error:
            why = str(error).splitlines()[0]
            wandb.teardown()  # otherwise W&B treats the id as in use
            wandb.setup(wandb.Settings(silent=True))
    log.info(f"W&B: offline ({why}). To send the run later: wandb sync {quote(str(folder / 'wandb'))}")
    return start(mode="offline")


def wandb_settings() -> Any:
    import wandb

    wanted = {
        "silent": True, "console": "off", "disable_git": True, "disable_code": True, "use_dot_wandb": False,
        "symlink": False,  # `wandb sync` would treat latest-run as another run
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": 1.0,  # seconds, so that a killed run leaves its rounds in the file
    }  # fmt: skip
    return wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields})


def wandb_table(images: Sequence[dict[str, Any]]) -> Any:
    import wandb

    data = [[wandb.Image(v) if isinstance(v, np.ndarray) else v for v in row.values()] for row in images]
    return wandb.Table(columns=list(images[0]), data=data)


def rows(records: Sequence[RoundRecord], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of all rounds in order of time: for each round one row per epoch, then the row of the round."""
    all_rows, n_epochs = [], 0
    for record in records:
        for epoch in record.history:
            n_epochs += 1
            all_rows.append({"epoch/total": n_epochs} | {f"epoch/{key}": value for key, value in epoch.items()})
        all_rows.append(round_row(record, class_names))
    return all_rows


def round_row(record: RoundRecord, class_names: Sequence[str]) -> dict[str, float]:
    """Return a record's numbers without its history: n_labels, test/accuracy, test/per_class/cat, seconds/fit, ..."""
    facts = {"n_labels": record.n_labels} | asdict(record)
    return _flat({k: v for k, v in facts.items() if k not in ("metrics", "acquired", "history")}, "", class_names) | (
        _flat(facts["metrics"], "test", class_names)
    )


def _flat(value: Any, key: str, class_names: Sequence[str]) -> dict[str, float]:
    if isinstance(value, list):
        names = class_names if len(value) == len(class_names) else range(len(value))
        value = dict(zip(names, value, strict=True))
    if isinstance(value, dict):
        parts = [_flat(v, f"{key}/{k}" if key else str(k), class_names) for k, v in value.items()]
        return {k: v for part in parts for k, v in part.items()}
    return {key: value} if isinstance(value, int | float) else {}


def picked(learner: Learner, net: Classifier, pool: Pool, n_before: int, n: int) -> list[dict[str, Any]]:
    """Return one row per image that the round acquired, in the order of picking, for at most n images.

    n_before: the number of training labels before the acquisition. The prediction comes from the round's net without
    dropout. Its entropy, in nats, stands in for the score, because strategies do not return their scores. Features have
    no image to show, unless they came with some.
    """
    dataset, chosen = learner.dataset, slice(n_before, n_before + n)
    idx_K, labels_K = pool.labelled_L[chosen], pool.labels_L[chosen]
    if not len(idx_K):
        return []
    log_probs_K1C = learner.predict(net, idx_K).log_probs_PSC
    probability_K, class_K = log_probs_K1C[:, 0].exp().max(dim=1)
    columns = {
        "index": idx_K.tolist(),
        "predicted": [printable(dataset.class_names[i]) for i in class_K],
        "probability": probability_K.tolist(),
        "prediction entropy": entropy_score(log_probs_K1C).tolist(),
        "label": [printable(dataset.class_names[i]) for i in labels_K],
    }
    if dataset.pictures is not None:
        columns = {"image": [*dataset.pictures[idx_K].permute(0, 2, 3, 1).numpy()]} | columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
