"""Train, predict, measure: everything that touches a Lightning Trainer.

P images predicted, S passes, C classes, D embedding width.
"""

import ctypes
import logging
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from threadpoolctl import threadpool_limits
from torch import Tensor

from al_bench import rng
from al_bench.config import Augment, Config, Extractor, Mode, ModelConfig, Monitor, TrainerConfig
from al_bench.data import Dataset
from al_bench.data.cache import cached_array
from al_bench.data.datamodule import PoolDataModule, image_loader
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.imports import function
from al_bench.metrics import loss_and_accuracy
from al_bench.models.classifier import Classifier, Results
from al_bench.models.dropout import Passes
from al_bench.models.nets import LinearHead, weights_version
from al_bench.models.progress import ProgressLine
from al_bench.provenance import n_cores

# Lightning announces the hardware at every Trainer, misses the loader processes that whole batches do not need, calls a
# part of torch's that is on its way out, and wants to be started by srun on every machine that has it.
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
QUIET = (".*does not have many workers.*", ".*LeafSpec.*is deprecated.*", "The `srun` command is available.*")
for message in QUIET:
    warnings.filterwarnings("ignore", message)

log = logging.getLogger("al_bench")

ALL_THREADS = torch.get_num_threads()
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")  # with the -true halves the last layer could not be float32


def _libc(function: str, *arguments: int) -> None:
    if sys.platform == "linux" and (call := getattr(ctypes.CDLL(None), function, None)):
        call(*arguments)


# glibc hands blocks over 32 MB back at once, and each step takes its activations anew, page by page: on a CPU the small
# CNN then needs twice the time to predict, and a quarter more to train in batches of 128. So freed memory is kept
# during a fit or a prediction and handed back after it (see _let_go): from one to the next it would pile up.
_libc("mallopt", -3, 2**30)  # M_MMAP_THRESHOLD: blocks up to this size come from the heap
_libc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD: which is not cut back below this

# oneDNN keeps what it prepared for each convolution and each size of a batch, and the pool's last batch has another
# size in every round. With 1,024 of them, as by default, that adds 100 MB; with 256 the largest nets lose no time.
for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "256")


def all_threads() -> int:
    """As many as torch began with, but at most one for each core that this process may use."""
    return min(ALL_THREADS, n_cores())


def _let_go(trainer: pl.Trainer, classifier: Classifier) -> None:
    """Free at once what a fit or a prediction held.

    The parts of a Trainer refer to each other, and so does an optimiser with a schedule to itself. Python finds such
    circles only after many rounds: until then each of them would keep its net, its gradients and its batches.
    """
    for part in (*trainer.optimizers, trainer.strategy, trainer):
        vars(part).clear()
    classifier.trainer = None
    _libc("malloc_trim", 0)


@dataclass(frozen=True)
class Prediction:
    log_probs_PSC: Tensor  # float32
    emb_PD: Tensor | None  # float32, where asked for


def build(c: Config, dataset: Dataset, round: int, member: int = 0) -> Classifier:
    """A fresh classifier; its weights depend on the seed, the round and its place in a committee alone."""
    with rng.seeded(c.seed, rng.of_member("weights", member), round):
        net = (
            LinearHead(dataset, c.model.dropout)
            if c.model.mode is Mode.frozen
            else function("model._target_", c.model._target_)(c.model, dataset)
        )
    return Classifier(net, c.model.optimizer, c.trainer.schedule)


def training_length(t: TrainerConfig, n_labelled: int, round: int) -> tuple[int | None, int | None]:
    """(full batches in an epoch, or None for one pass over the labelled set; epochs at most, or None for no limit)."""
    epoch_steps, max_epochs = t.steps_per_epoch, t.later_max_epochs if round and t.later_max_epochs else t.max_epochs
    if epoch_steps is None and max_epochs is None:
        # Counted in steps, batches are full. Without early stopping nothing happens between epochs: one will do.
        stopping = t.early_stopping.patience is not None
        epoch_steps = -(-n_labelled // t.batch_size) if stopping else t.max_steps
    return epoch_steps, max_epochs


def images_trained(t: TrainerConfig, n_labelled: int, round: int) -> int:
    """Images a fit goes through, repeats included, unless it is stopped early."""
    epoch_steps, max_epochs = training_length(t, n_labelled, round)
    an_epoch = epoch_steps * t.batch_size if epoch_steps else n_labelled
    by_epochs = torch.inf if max_epochs is None else max_epochs * an_epoch
    by_steps = torch.inf if t.max_steps is None else t.max_steps * t.batch_size
    return int(min(by_epochs, by_steps))


def fit(c: Config, classifier: Classifier, images: Tensor, pool: Pool, round: int, member: int = 0) -> tuple[int, int]:
    """Train on the labelled set with a fresh Trainer; the weights end up in `classifier`. Returns (epochs, steps).

    With early stopping these are the weights of the best epoch on validation, else the last.
    """
    t = c.trainer
    stopping = t.early_stopping.patience is not None
    epoch_steps, max_epochs = training_length(t, len(pool.labelled_L), round)
    data = PoolDataModule(images, pool, t, epoch_steps, c.seed, round, member)
    monitor, mode = {Monitor.loss: ("val_loss", "min"), Monitor.accuracy: ("val_accuracy", "max")}[
        t.early_stopping.monitor
    ]
    best = BestWeights(monitor, mode)
    stop = EarlyStopping(
        monitor,
        mode=mode,
        patience=t.early_stopping.patience or 1,
        min_delta=t.early_stopping.min_delta,
        check_finite=False,
        strict=False,  # max_steps may end the fit before the first epoch does
    )
    trainer = _trainer(
        t,
        f"Training, round {round}" + (f", member {member}" if member else ""),
        callbacks=[stop, best] if stopping else [],
        max_epochs=-1 if max_epochs is None else max_epochs,
        max_steps=t.max_steps or -1,
        limit_val_batches=1.0 if stopping else 0,
    )
    try:
        with rng.seeded(c.seed, rng.of_member("fit", member), round):
            trainer.fit(classifier, datamodule=data)
        steps = trainer.global_step
    except UserError as error:
        raise UserError(f"round {round}: {error}") from None
    finally:
        _let_go(trainer, classifier)
    if stopping and "val_loss" not in classifier.history[-1]:
        # max_steps ended inside an epoch, and Lightning validates whole ones: the last weights are judged here.
        _judge_last(t, classifier, images, pool, best)
    if best.weights is not None:
        classifier.load_state_dict(best.weights)
    return len(classifier.history), steps


def _judge_last(t: TrainerConfig, classifier: Classifier, images: Tensor, pool: Pool, best: "BestWeights") -> None:
    seen = predict(t, classifier, images, pool.validation_V)
    judged = loss_and_accuracy(seen.log_probs_PSC[:, 0], pool.validation_labels_V)
    classifier.history[-1] |= {f"val_{name}": value for name, value in judged.items()}
    best.offer(classifier.history[-1][best.monitor], classifier)


def predict(
    t: TrainerConfig,
    classifier: Classifier,
    images: Tensor,
    idx: Tensor,
    embeddings: bool = False,
    passes: Passes | None = None,
) -> Prediction:
    """Without augmentation, in the order of idx; results on the CPU. One deterministic pass, or these `passes`."""
    classifier.keep_embeddings, classifier.passes, classifier.results = embeddings, passes, Results(len(idx))
    trainer = _trainer(t, "Predicting")
    try:
        trainer.predict(classifier, image_loader(images, idx, t), return_predictions=False)
        log_probs_PSC, emb_PD = classifier.results.log_probs_PSC, classifier.results.emb_PD
    finally:
        classifier.results = classifier.passes = None
        _let_go(trainer, classifier)
    if log_probs_PSC.isnan().any():
        raise UserError(
            f"the predictions of {int(log_probs_PSC.isnan().flatten(1).any(1).sum()):,} of {len(idx):,} images are not "
            "numbers. Lower model.optimizer.lr, or try trainer.precision=32-true."
        )
    return Prediction(log_probs_PSC, emb_PD)


def dropout_passes(t: TrainerConfig, classifier: Classifier, images: Tensor, n: int, stream: torch.Generator) -> Passes:
    """n nets thinned by dropout, for `predict`. Raises UserError where the model has no dropout."""
    device = _device(t)  # Lightning leaves a net on the CPU, and the thinned weights do not move with it
    net = classifier.net.to(device).eval()
    with torch.inference_mode():
        return Passes(net, n, images[:1].to(device), stream)


def freeze(c: Config, dataset: Dataset) -> Dataset:
    """The data set with a frozen backbone's embeddings [N, D] in place of its images, computed once and kept.

    mean and std are those of the training images, labelled or not.
    """
    m = c.model
    if c.trainer.augment is not Augment.none:
        raise UserError("model.mode=frozen sees each image once, not augmented. Set trainer.augment=none.")
    torch.set_num_threads(c.trainer.threads or all_threads())  # an earlier job of this process may have taken fewer
    with rng.seeded(c.seed, "weights"):
        net = function("model._target_", m._target_)(replace(m, dropout=0.0), dataset)  # which is the linear head's
    trained = m.pretrained or m.weights is not None  # random weights are another network for each seed
    key = {
        "images": dataset.checksum,
        "model": [m._target_, m.name, m.options, None if trained else c.seed],
        "weights": (weights_version(m) or "").removeprefix("sha256:") or None,
        "scaling": [*map(float, dataset.mean), *map(float, dataset.std)],
        "precision": _precision(c.trainer),
        "features": 1,
    }  # fmt: skip
    images = on_device(c.trainer, dataset.images)

    def fill(out: Any) -> tuple[int, dict[str, Any]]:
        log.info(f"Computing the features of {len(images):,} images by {m.name}, once.")
        classifier = Classifier(net, m.optimizer, c.trainer.schedule)
        out[:] = predict(c.trainer, classifier, images, torch.arange(len(images)), embeddings=True).emb_PD.numpy()
        return len(out), {}

    features, _ = cached_array(c.cache_dir, key, (len(images), net.head_hidden_size), "float32", fill)
    features_ND = torch.from_numpy(features)
    train_TD = features_ND[dataset.train_idx]
    mean_D = train_TD.mean(0)
    std_D = train_TD.sub_(mean_D).square_().mean(0).sqrt_()  # torch.std takes five times as long along this axis
    return replace(dataset, images=features_ND, mean=mean_D, std=std_D.clamp_min(1e-6))


def fixed_features(c: Config, dataset: Dataset) -> Tensor | None:
    """Features that no label and no round changes, [N, F] of unit length; None where the round's model gives them."""
    f = c.features
    if f.extractor is Extractor.model:
        return None
    if f.extractor is Extractor.backbone:
        if f.name is None:
            raise UserError("features.extractor=backbone needs a timm model: set features.name=...")
        backbone = ModelConfig(
            _target_="al_bench.models.nets.timm_net", name=f.name, pretrained=f.pretrained, weights=f.weights,
            optimizer=c.model.optimizer,
        )  # fmt: skip
        if dataset.images.ndim == 2:
            raise UserError("model.mode=frozen has features already: leave features=pca, which takes them as they are.")
        plain = replace(c, model=backbone, trainer=replace(c.trainer, augment=Augment.none))
        try:
            features_NF = freeze(plain, dataset).images
        except UserError as error:
            raise UserError(re.sub(r"\bmodel\.(name|weights|pretrained)\b", r"features.\1", str(error))) from None
    else:
        features_NF = dataset.images if dataset.images.ndim == 2 else principal_components(dataset, f.width)
    return F.normalize(features_NF, dim=1)


def principal_components(dataset: Dataset, width: int) -> Tensor:
    """Pixels, at 32x32 at most, on the `width` main axes of up to 10,000 training images: [N, width], centred."""
    from sklearn.decomposition import PCA

    images = dataset.images
    size = min(32, images.shape[-1])

    def pixels(rows: Tensor) -> Tensor:
        x = images.cpu()[rows].float() / 255
        return (F.interpolate(x, (size, size), mode="area") if size < images.shape[-1] else x).flatten(1)

    some = dataset.train_idx[:: -(-len(dataset.train_idx) // 10_000)]
    flat = pixels(some)
    pca = PCA(min(width, *flat.shape), svd_solver="randomized", random_state=0)
    parts = torch.arange(len(images)).split(10_000)
    with threadpool_limits(1):  # other sums with other threads: a cold start might choose other images
        pca.fit(flat.numpy())
        return torch.cat([torch.from_numpy(pca.transform(pixels(rows).numpy())) for rows in parts]).float()


def on_device(t: TrainerConfig, images: Tensor) -> Tensor:
    """The images on the accelerator's memory if they take less than half of what is free there, else where they are."""
    device = _device(t)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return images
    if images.nbytes * 2 > free:
        return images
    # Sent as stored, [N, H, W, C], so that batches stay channels_last there.
    return (
        images.permute(0, 2, 3, 1).contiguous().to(device).permute(0, 3, 1, 2)
        if images.ndim == 4
        else images.to(device)
    )


def use_hardware(t: TrainerConfig, images: Tensor) -> dict[str, Any]:
    """Set the number of CPU threads for these images, begin counting memory, and name what the run computes on.

    Small batches gain nothing from a second thread, and lose a lot where other programs want the cores as well: threads
    that wait for each other after every small layer made a fit ten times slower on a busy machine.
    """
    small = images.ndim == 2 or images[0].numel() <= 16 * 16
    torch.set_num_threads(t.threads or (1 if small else all_threads()))
    device = _device(t)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "precision": _precision(t)}


def peak_memory(t: TrainerConfig) -> int:
    """Bytes: of the CUDA device since the run began, or of this process."""
    return torch.cuda.max_memory_allocated() if _device(t).type == "cuda" else process_memory()


def process_memory() -> int:
    """The most this process has held, in bytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def save_weights(classifier: Classifier, path: Path) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(save({k: v.contiguous() for k, v in classifier.state_dict().items()}))  # a full disk is an OSError
    part.replace(path)


def load_weights(classifier: Classifier, path: Path) -> None:
    if not path.exists():
        raise UserError(
            f"{path}, which the next round starts from, is missing. Delete {path.parents[1]} to begin anew."
        )
    try:
        classifier.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:  # cut short, or another net's
        raise UserError(
            f"{path}, which the next round starts from, cannot be read ({' '.join(str(error).split())[:200]}). "
            f"Delete {path.parents[1]} to begin anew."
        ) from None


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


def _trainer(t: TrainerConfig, what: str = "", callbacks: Sequence[pl.Callback] = (), **limits: Any) -> pl.Trainer:
    alone = multiprocessing.parent_process() is None  # workers would write over each other's line
    line = [ProgressLine(what)] if t.progress and sys.stdout.isatty() and alone else []
    try:
        return pl.Trainer(
            accelerator=t.accelerator,
            devices=1,
            precision=_precision(t),
            deterministic=t.deterministic,
            callbacks=[*callbacks, *line],
            plugins=[LightningEnvironment()],  # a run is one process, in Slurm too: nothing there is for Lightning
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            **limits,
        )
    except (MisconfigurationException, ValueError, ImportError) as error:
        raise UserError(f"trainer.accelerator={t.accelerator}, trainer.precision={t.precision}: {error}") from None


def _device(t: TrainerConfig) -> torch.device:
    trainer = _trainer(t)
    device = trainer.strategy.root_device
    vars(trainer).clear()  # as in _let_go
    return device


def _precision(t: TrainerConfig) -> str:
    """auto: bf16 autocast where the hardware multiplies matrices in bf16, float32 elsewhere.

    A CPU's avx512_bf16 without AMX is not that: bf16 gains nothing there (results/bench_precision.json).
    """
    if t.precision not in PRECISIONS:
        raise UserError(f"trainer.precision={t.precision}: there are {', '.join(PRECISIONS)}.")
    if t.precision != "auto":
        return t.precision
    if t.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif t.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        fast = False
    else:
        able = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.15; earlier ones cannot tell
        fast = able.get("amx_bf16") or able.get("bf16")
    return "bf16-mixed" if fast else "32-true"
