"""The recipe on one data set: build a net, train it, predict with it. What a round does to a net is a method here.

N images of the data set, L labelled, P images predicted, S passes, C classes, D embedding width, F feature width.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor

from al_bench import rng
from al_bench.config import Mode, ModelConfig, Monitor, TrainerConfig
from al_bench.data import Dataset
from al_bench.data.datamodule import PoolDataModule, image_loader
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.metrics import loss_and_accuracy
from al_bench.models import contract, hardware
from al_bench.models.classifier import Classifier, Passes, PredictionBuffer
from al_bench.models.dropout import DropoutPasses
from al_bench.models.masks import byte_masks
from al_bench.models.nets import LinearHead

MONITORS = {Monitor.loss: ("val_loss", "min"), Monitor.accuracy: ("val_accuracy", "max")}


@dataclass(frozen=True)
class Prediction:
    log_probs_PSC: Tensor  # float32
    emb_PD: Tensor | None  # float32, where asked for


@dataclass(frozen=True, eq=False)
class Learner:
    """Trains and predicts on `dataset` as `model` and `trainer` say.

    Each random stream depends only on `seed`, its purpose and the round.
    """

    model: ModelConfig
    trainer: TrainerConfig
    dataset: Dataset
    seed: int
    features_NF: Tensor | None = None  # fixed features, where the strategy or the initial draw asks for them
    truth_N: Tensor | None = None  # all labels, in the run of an oracle line alone

    ADVICE_ON_NAN = "Lower model.optimizer.lr, or try trainer.precision=32-true."  # ends a message

    @cached_property
    def device(self) -> torch.device:
        return hardware.find_device(self.trainer)

    @cached_property
    def images(self) -> Tensor:
        """The data set's images where they are computed on: on the device if there is room for them."""
        return hardware.on_device(self.dataset.images, self.device)

    def build(self, round: int, member: int = 0) -> Classifier:
        """A fresh classifier. Its weights depend only on the seed, the round and its place in a committee."""
        with rng.seeded(self.seed, rng.of_member("weights", member), round):
            net = (
                LinearHead(self.dataset, self.model.dropout)
                if self.model.mode is Mode.frozen
                else contract.build(self.model, self.dataset)
            )
        return Classifier(net, self.model.optimizer, self.trainer.schedule)

    def fit(self, net: Classifier, pool: Pool, round: int, member: int = 0) -> tuple[int, int]:
        """Train `net` on the labelled images, with a fresh Trainer and optimizer. Returns (epochs, steps).

        With early stopping the net ends with the weights of its best epoch on validation, else with the last ones.
        Raises UserError where the loss is not a number.
        """
        t = self.trainer
        stops_early = t.early_stopping.patience is not None
        epoch_steps, max_epochs = training_length(t, len(pool.labelled_L), round)
        data = PoolDataModule(self.images, pool, t, epoch_steps, self._streams(round, member))
        best = BestWeights(*MONITORS[t.early_stopping.monitor])
        trainer = hardware.new_trainer(
            t,
            f"Training, round {round}" + (f", member {member}" if member else ""),
            callbacks=[early_stopping(t), best] if stops_early else [],
            max_epochs=-1 if max_epochs is None else max_epochs,
            max_steps=t.max_steps or -1,
            limit_val_batches=1.0 if stops_early else 0,
        )
        try:
            cheaper = byte_masks(net) if t.dropout_masks else nullcontext()
            with cheaper, rng.seeded(self.seed, rng.of_member("fit", member), round):
                trainer.fit(net, datamodule=data)
            steps = trainer.global_step
        except UserError as error:
            raise UserError(f"round {round}: {error}") from None
        finally:
            hardware.let_go(trainer, net)
        if stops_early:
            self._validate_cut_epoch(net, pool, best)
            if best.weights is not None:  # None: no epoch's value was a number
                net.load_state_dict(best.weights)
        return len(net.history), steps

    def _validate_cut_epoch(self, net: Classifier, pool: Pool, best: "BestWeights") -> None:
        """Lightning validates whole epochs only. Where max_steps cut the last one, its weights are validated here."""
        if "val_loss" not in net.history[-1]:
            net.history[-1] |= {f"val_{name}": value for name, value in self.validate(net, pool).items()}
            best.offer(net.history[-1][best.monitor], net)

    def _streams(self, round: int, member: int) -> Callable[[str], torch.Generator]:
        """The random streams of one fit, by their purpose."""
        return lambda purpose: rng.stream(self.seed, rng.of_member(purpose, member), round)

    def predict(
        self, net: Classifier, idx_P: Tensor, embeddings: bool = False, passes: Passes | None = None
    ) -> Prediction:
        """Without augmentation, in the order of idx_P; results on the CPU. One deterministic pass, or these `passes`.

        Raises UserError where a prediction is not a number.
        """
        net.keep_embeddings, net.passes, net.buffer = embeddings, passes, PredictionBuffer(len(idx_P))
        try:
            self._fill_buffer(net, idx_P)
            log_probs_PSC, emb_PD = net.buffer.log_probs_PSC, net.buffer.emb_PD
        finally:
            net.buffer = net.passes = None
        if n_nan := int(log_probs_PSC.isnan().flatten(1).any(1).sum()):
            raise UserError(
                f"the predictions of {n_nan:,} of {len(idx_P):,} images are not numbers. {self.ADVICE_ON_NAN}"
            )
        return Prediction(log_probs_PSC, emb_PD)

    def _fill_buffer(self, net: Classifier, idx_P: Tensor) -> None:
        trainer = hardware.new_trainer(self.trainer, "Predicting")
        try:
            trainer.predict(net, image_loader(self.images, idx_P, self.trainer), return_predictions=False)
        finally:
            hardware.let_go(trainer, net)

    def validate(self, net: Classifier, pool: Pool) -> dict[str, float] | None:
        """Loss and accuracy on the validation images; None where there are none."""
        if not len(pool.validation_V):
            return None
        log_probs_VC = self.predict(net, pool.validation_V).log_probs_PSC[:, 0]
        return loss_and_accuracy(log_probs_VC, pool.validation_labels_V)

    def test(self, net: Classifier, round: int) -> Prediction:
        """The test images, predicted once, or by trainer.test_passes passes. Reads no label."""
        return self.predict(net, self.dataset.test_idx, passes=self.test_passes(net, round))

    def test_passes(self, net: Classifier, round: int) -> Passes | None:
        """The passes that predict the test images; None without trainer.test_passes. Raises UserError."""
        n = self.trainer.test_passes
        try:
            return self.passes(net, n, "test dropout", round) if n else None
        except UserError as error:
            raise UserError(f"trainer.test_passes={n}: {error}.") from None

    def passes(self, classifier: Classifier, n: int, purpose: str, round: int) -> Passes:
        """n passes with dropout for `predict`, each with its own masks, drawn from the random stream of this purpose.

        Raises UserError if the net has no dropout. Its text ends a sentence: the caller puts the option before it and a
        full stop after it.
        """
        # Lightning leaves a net on the CPU. The passes copy weights, which would not move with the net later.
        net = classifier.net.to(self.device).eval()
        with torch.inference_mode():
            image = self.dataset.images[:1].to(self.device)
            return DropoutPasses(net, n, image, rng.stream(self.seed, purpose, round))


class BestWeights(pl.Callback):
    """Keeps, in memory, the weights of the epoch with the best monitored value."""

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.sign = monitor, 1 if mode == "max" else -1
        self.best, self.weights = -torch.inf, None

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.offer(float(trainer.callback_metrics[self.monitor]), module)

    def offer(self, value: float, module: pl.LightningModule) -> None:
        if self.sign * value > self.best:
            self.best, self.weights = self.sign * value, deepcopy(module.state_dict())


def early_stopping(t: TrainerConfig) -> EarlyStopping:
    monitor, mode = MONITORS[t.early_stopping.monitor]
    return EarlyStopping(
        monitor,
        mode=mode,
        patience=t.early_stopping.patience,
        min_delta=t.early_stopping.min_delta,
        check_finite=False,
        strict=False,  # max_steps may end the fit before the first epoch does
    )


def training_length(t: TrainerConfig, n_labelled: int, round: int) -> tuple[int | None, int | None]:
    """Return (full batches in an epoch, largest number of epochs).

    The first is None where an epoch is one pass over the labelled images. The second is None where nothing limits it.
    """
    epoch_steps, max_epochs = t.steps_per_epoch, t.later_max_epochs if round and t.later_max_epochs else t.max_epochs
    if epoch_steps is None and max_epochs is None:
        # Counted in steps, all batches are full. Without early stopping nothing happens between epochs: one is enough.
        stops_early = t.early_stopping.patience is not None
        epoch_steps = -(-n_labelled // t.batch_size) if stops_early else t.max_steps
    return epoch_steps, max_epochs


def images_trained(t: TrainerConfig, n_labelled: int, round: int) -> int:
    """The images that a fit trains on, repeats included, unless it is stopped early."""
    epoch_steps, max_epochs = training_length(t, n_labelled, round)
    an_epoch = epoch_steps * t.batch_size if epoch_steps else n_labelled
    by_epochs = torch.inf if max_epochs is None else max_epochs * an_epoch
    by_steps = torch.inf if t.max_steps is None else t.max_steps * t.batch_size
    return int(min(by_epochs, by_steps))
