"""The hardware that a run computes on: Lightning's Trainer for it, device, threads, precision and memory."""

import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from al_bench import process
from al_bench.config import TrainerConfig
from al_bench.errors import UserError
from al_bench.models.progress import ProgressLine
from al_bench.provenance import n_cores

ALL_THREADS = torch.get_num_threads()
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")  # with the -true halves the last layer could not be float32


def new_trainer(t: TrainerConfig, what: str = "", callbacks: Sequence[pl.Callback] = (), **limits: Any) -> pl.Trainer:
    """A Trainer of one device that writes no files. what: the text of the progress line. Raises UserError."""
    alone = multiprocessing.parent_process() is None  # a sweep's workers would overwrite each other's line
    line = [ProgressLine(what)] if t.progress and sys.stdout.isatty() and alone else []
    try:
        return pl.Trainer(
            accelerator=t.accelerator,
            devices=1,
            precision=precision(t),
            deterministic=t.deterministic,
            callbacks=[*callbacks, *line],
            plugins=[LightningEnvironment()],  # a run is one process, in Slurm too: Lightning must not ask Slurm
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            **limits,
        )
    except (MisconfigurationException, ValueError, ImportError) as error:
        raise UserError(f"trainer.accelerator={t.accelerator}, trainer.precision={t.precision}: {error}") from None


def let_go(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Free at once what a fit or a prediction held.

    The parts of a Trainer refer to each other, and an optimizer with a schedule refers to itself. Python collects such
    cycles only after many rounds: until then each of them would keep its net, its gradients and its batches.
    """
    for part in (*trainer.optimizers, trainer.strategy, trainer):
        vars(part).clear()
    module.trainer = None
    process.return_freed_memory()


def find_device(t: TrainerConfig) -> torch.device:
    """The device that Lightning chooses for trainer.accelerator. Builds a Trainer, which takes milliseconds."""
    trainer = new_trainer(t)
    device = trainer.strategy.root_device
    vars(trainer).clear()  # as in let_go
    return device


def precision(t: TrainerConfig) -> str:
    """auto: bf16 autocast where the hardware multiplies matrices in bf16, float32 elsewhere. Raises UserError.

    A CPU with avx512_bf16 and without AMX does not: bf16 gains nothing there (results/bench_precision.json).
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
        able = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.15; earlier versions cannot tell
        fast = able.get("amx_bf16") or able.get("bf16")
    return "bf16-mixed" if fast else "32-true"


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """The images in the accelerator's memory if they take less than half of what is free there, else unchanged."""
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


def begin_run(t: TrainerConfig, images: Tensor, device: torch.device) -> dict[str, Any]:
    """Set the number of threads for these images and begin to count memory. Returns device, threads and precision."""
    small = images.ndim == 2 or images[0].numel() <= 16 * 16
    set_threads(t, few=small)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "precision": precision(t)}


def set_threads(t: TrainerConfig, few: bool = False) -> None:
    """As many CPU threads as trainer.threads says; null: one for each core that this process may use, or one if `few`.

    Small batches gain nothing from a second thread. Where other programs use the cores too, they lose: threads that
    wait for each other after every small layer made a fit ten times slower on a busy machine.
    """
    torch.set_num_threads(t.threads or (1 if few else min(ALL_THREADS, n_cores())))


def peak_memory(device: torch.device) -> int:
    """Bytes: of a CUDA device since the run began, else of this process since it started."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else process.peak_memory()
