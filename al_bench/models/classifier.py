"""The LightningModule: loss, optimizer, schedule, predictions. It knows nothing of active learning.

B images in a batch, S passes, C classes, D embedding width.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from al_bench import signals
from al_bench.config import Schedule
from al_bench.errors import UserError

Passes = Callable[[Tensor], Tensor]  # images -> logits_BSC, as DropoutPasses and LaplacePasses are called


class PredictionBuffer:
    """The predictions of P images, on the CPU. Preallocated: tensors appended batch by batch fragment the heap."""

    def __init__(self, n_images: int) -> None:
        self.n_images, self.n_seen = n_images, 0
        self.log_probs_PSC: Tensor | None = None
        self.emb_PD: Tensor | None = None

    def add(self, log_probs_BSC: Tensor, emb_BD: Tensor | None) -> None:
        if self.n_seen == 0:
            self.log_probs_PSC = self._empty_for(log_probs_BSC)
            self.emb_PD = None if emb_BD is None else self._empty_for(emb_BD)
        here = slice(self.n_seen, self.n_seen + len(log_probs_BSC))
        self.log_probs_PSC[here] = log_probs_BSC
        if emb_BD is not None:
            self.emb_PD[here] = emb_BD
        self.n_seen = here.stop

    @torch.inference_mode(False)  # else they could not be written to later
    def _empty_for(self, batch: Tensor) -> Tensor:
        return torch.empty(self.n_images, *batch.shape[1:], dtype=batch.dtype)


def build_optimizer(config: dict[str, Any], parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `config` describes. Raises UserError for whatever it raises: config is the user's."""
    try:
        return instantiate(config, _partial_=True)(parameters)
    except Exception as error:
        raise UserError(f"model.optimizer={config}: {error.__cause__ or error}") from error


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, optimizer: dict[str, Any], schedule: Schedule) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # as the batches come
        self.optimizer_config, self.schedule = optimizer, schedule
        self.keep_embeddings = False
        self.passes: Passes | None = None  # they predict in place of the one deterministic pass
        self.buffer: PredictionBuffer | None = None  # of the prediction in progress
        self.history: list[dict[str, float]] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_BC, emb_BD), both float32. The last layer never runs in bf16: 8 bits would make near scores ties."""
        images = images.contiguous() if images.device.type == "mps" else images  # setup says why
        emb_BD = self.net.forward_head(self.net.forward_features(images), pre_logits=True).float()
        with torch.autocast(emb_BD.device.type, enabled=False):
            return self.net.get_classifier()(emb_BD), emb_BD

    def setup(self, stage: str) -> None:
        if self.trainer.strategy.root_device.type == "mps":  # batch norm's backward pass fails there in channels_last
            self.net.to(memory_format=torch.contiguous_format)

    def on_train_epoch_start(self) -> None:
        # Sums on the device, read once an epoch: reading them at each step would wait for the step to end.
        self.first_step, self.n_seen = self.global_step, 0
        self.loss_sum, self.n_hits, self.n_good_steps = torch.zeros(3, device=self.device).unbind()
        self.validation: dict[str, float] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        signals.stop_if_asked()
        images, labels = batch
        logits_BC, _ = self(images)
        loss = F.cross_entropy(logits_BC, labels)
        self.n_seen += len(labels)
        self.n_hits += (logits_BC.argmax(1) == labels).sum()
        self.loss_sum.add_(loss.detach(), alpha=len(labels))
        self.n_good_steps += self.loss_sum.isfinite()  # once NaN, a sum stays NaN
        return loss

    def on_validation_epoch_start(self) -> None:
        self.validation_sums = torch.zeros(3, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits_BC, _ = self(images)
        hits = (logits_BC.argmax(1) == labels).sum()
        self.validation_sums += torch.stack(
            [
                F.cross_entropy(logits_BC, labels, reduction="sum"),
                hits.float(),
                torch.full_like(hits, len(labels)).float(),
            ]
        )

    def on_validation_epoch_end(self) -> None:
        loss, hits, n = self.validation_sums.tolist()
        self.validation = {"val_loss": loss / n, "val_accuracy": hits / n}
        self.log_dict(self.validation)

    def on_train_epoch_end(self) -> None:
        if not self.loss_sum.isfinite():
            raise UserError(
                f"the loss is not a number at step {self.first_step + int(self.n_good_steps)}. "
                "Lower model.optimizer.lr, or try trainer.precision=32-true."
            )
        loss, accuracy = float(self.loss_sum) / self.n_seen, float(self.n_hits) / self.n_seen
        self.history.append({"loss": loss, "accuracy": accuracy} | self.validation)

    def predict_step(self, images: Tensor, batch_idx: int) -> int:
        """Fills self.buffer: log_probs_PSC and emb_PD, float32; the embeddings are those of the deterministic pass."""
        signals.stop_if_asked()
        if self.passes:
            logits_BSC = self.passes(images)
            emb_BD = self(images)[1] if self.keep_embeddings else None
        else:
            logits_BC, emb_BD = self(images)
            logits_BSC = logits_BC[:, None]
        self.buffer.add(logits_BSC.log_softmax(2), emb_BD if self.keep_embeddings else None)
        return len(images)  # Lightning warns of a step that returns nothing

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer_config, self.parameters())
        if self.schedule is Schedule.constant:
            return optimizer
        n_steps = self.trainer.estimated_stepping_batches
        if self.schedule is Schedule.cosine:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
        else:
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.8 * n_steps)], gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
