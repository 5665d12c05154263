"""A line that shows the progress of a fit or a prediction and disappears when it ends."""

from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10  # batches between two updates: drawing takes longer than a small step


class ProgressLine(pl.Callback):
    """In place of Lightning's bars, of which three a round would stay on the screen."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, transient=True)
        self.task = self.bar.add_task(what, total=None)

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.bar.start()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.bar.stop()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *batch: Any) -> None:
        if trainer.global_step % EVERY == 0:
            total = trainer.estimated_stepping_batches
            self.bar.update(self.task, completed=trainer.global_step, total=total if total < float("inf") else None)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *more: Any
    ) -> None:
        if batch_idx % EVERY == 0:
            self.bar.update(self.task, completed=batch_idx + 1, total=sum(trainer.num_predict_batches))
