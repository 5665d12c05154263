"""The LightningModule: loss, optimiser, schedule, predictions. It knows nothing of active learning.

B images in a batch, C classes, D embedding width.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from al_bench.config import Schedule
from al_bench.errors import UserError


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, optimizer: dict[str, Any], schedule: Schedule) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.optimizer_config, self.schedule = optimizer, schedule
        self.keep_embeddings = False
        self.history: list[dict[str, float]] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_BC, emb_BD), both float32. The last layer never runs in bf16: its 8 bits would make ties of near scores."""
        emb_BD = self.net.forward_head(self.net.forward_features(images), pre_logits=True).float()
        with torch.autocast(emb_BD.device.type, enabled=False):
            return self.net.get_classifier()(emb_BD), emb_BD

    def on_train_epoch_start(self) -> None:
        self.seen = torch.zeros(3, device=self.device)  # sum of losses, hits, images: read once an epoch
        self.first_bad_step = torch.full((), torch.inf, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits_BC, _ = self(images)
        loss = F.cross_entropy(logits_BC, labels)
        with torch.no_grad():
            n = len(labels)
            hits = (logits_BC.argmax(1) == labels).sum()
            self.seen += torch.stack([loss.detach() * n, hits.float(), torch.full_like(loss, n)])
            step = torch.where(loss.isfinite(), torch.inf, self.global_step)
            self.first_bad_step = torch.minimum(self.first_bad_step, step)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.judged = torch.zeros(3, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits_BC, _ = self(images)
        hits = (logits_BC.argmax(1) == labels).sum()
        self.judged += torch.stack(
            [
                F.cross_entropy(logits_BC, labels, reduction="sum"),
                hits.float(),
                torch.full_like(hits, len(labels)).float(),
            ]
        )

    def on_validation_epoch_end(self) -> None:
        loss, hits, n = self.judged.tolist()
        self.log_dict({"val_loss": loss / n, "val_accuracy": hits / n})

    def on_train_epoch_end(self) -> None:
        if self.first_bad_step.isfinite():
            raise UserError(
                f"the loss is not a number at step {int(self.first_bad_step)}. Lower model.optimizer.lr, or try trainer.precision=32-true."
            )
        loss, hits, n = self.seen.tolist()
        judged = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
        self.history.append({"loss": loss / n, "accuracy": hits / n} | judged)

    def predict_step(self, images: Tensor, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        logits_BC, emb_BD = self(images)
        return logits_BC.log_softmax(1).cpu(), emb_BD.cpu() if self.keep_embeddings else None

    def configure_optimizers(self) -> Any:
        optimizer = instantiate(self.optimizer_config, params=list(self.parameters()))
        if self.schedule is Schedule.constant:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
