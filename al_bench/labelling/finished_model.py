"""The model that `al-bench finish` writes and `al-bench predict` reads: one file of safetensors, its card inside.

A frozen backbone's weights are not in the file: the card has their checksum. B images, C classes, D embedding width.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from al_bench.config import DatasetConfig, Mode, ModelConfig, TrainerConfig
from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.files import accessible, write_atomically
from al_bench.labelling.settings import hub_file
from al_bench.models import hardware
from al_bench.models.classifier import Classifier
from al_bench.models.features import PCA_HEAD, small_pixels
from al_bench.models.learner import Learner
from al_bench.provenance import file_version
from al_bench.text import one_line

FILE = "model.safetensors"
KEY = "al_bench"  # of the card in the file's metadata
FORMAT = 1
SETTINGS = {"model": ModelConfig, "trainer": TrainerConfig, "dataset": DatasetConfig}


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """card: JSON. tensors: of a frozen net the head's, and the components of model=pca; else all of the net's."""

    card: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: str | None = None  # the file of the frozen backbone's weights

    def probs(self, images: Tensor) -> Tensor:
        """Calibrated probabilities [B, C] of images, uint8 [B, 3, size, size], as float32 on the CPU."""
        m = self.settings["model"]
        if m._target_ == PCA_HEAD:
            emb_BD = small_pixels(images) @ self.tensors["components"].T - self.tensors["centre"]
        else:
            learner = self._learner(images)
            seen = learner.predict(self._net, torch.arange(len(images)), embeddings=m.mode is Mode.frozen)
            if m.mode is not Mode.frozen:
                return calibrated(seen.log_probs_PSC[:, 0], self.card["temperature"])
            emb_BD = seen.emb_PD
        x_BD = emb_BD * self.tensors["factor"] + self.tensors["shift"]
        logits_BC = x_BD @ self.tensors["weight"].T + self.tensors["bias"]
        return calibrated(logits_BC.log_softmax(1), self.card["temperature"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """model: ModelConfig, trainer: TrainerConfig, dataset: DatasetConfig."""
        saved = self.card["settings"]
        merged = {name: OmegaConf.merge(OmegaConf.structured(kind), saved[name]) for name, kind in SETTINGS.items()}
        return {name: OmegaConf.to_object(settings) for name, settings in merged.items()}

    def _learner(self, images: Tensor) -> Learner:
        """What predicts these images: the backbone, or the net if it was trained as a whole."""
        m, t, d = (self.settings[name] for name in SETTINGS)
        if m.mode is Mode.frozen:
            m = replace(m, weights=self.weights, mode=Mode.finetune, dropout=0.0, head=None)
        else:
            m = replace(m, weights=None, pretrained=False)
        empty = torch.empty(0, dtype=torch.int64)
        classes = tuple(self.card["classes"])
        images = images.contiguous(memory_format=torch.channels_last)
        dataset = Dataset("", images, empty, empty, empty, classes, tuple(d.mean), tuple(d.std), "")
        return Learner(m, t, dataset, self.card["seed"])

    @cached_property
    def _net(self) -> Classifier:
        size = self.card["image_size"]
        learner = self._learner(torch.zeros(2, 3, size, size, dtype=torch.uint8))
        hardware.set_threads(learner.trainer)
        net = learner.build(round=0)
        if self.settings["model"].mode is not Mode.frozen:
            net.net.load_state_dict(self.tensors)
        return net


def calibrated(log_probs_PC: Tensor, temperature: float) -> Tensor:
    return (log_probs_PC / temperature).softmax(1)


def write(path: Path, model: FinishedModel) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    with accessible(path, "written", "--out"):
        write_atomically(path, save(tensors, {KEY: json.dumps(model.card)}))


def read(path: Path, weights: str | None = None) -> FinishedModel:
    """The model of a file, or of a folder that `finish` wrote. weights: a file of the frozen backbone's weights.

    Raises UserError if it is no such model, or the backbone's weights are not on this machine.
    """
    path = path / FILE if path.is_dir() else path
    shown = one_line(str(path))
    if not path.is_file():
        raise UserError(f"There is no file {shown}. Name the {FILE} that al-bench finish wrote, or its folder.")
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if card is None:
            raise UserError(
                f"{shown} holds weights, and is no model of al-bench finish. Name the {FILE} that it wrote."
            )
        if card["format"] > FORMAT:
            raise UserError(f"{shown} was written by a newer al_bench ({card['al_bench']}). Install that one.")
        model = FinishedModel(card, tensors, _weights(card, weights))
        assert model.settings  # read now, to tell a damaged card at once
        return model
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, OmegaConfBaseException) as error:
        raise UserError(
            f"{shown} is no model of al-bench finish ({type(error).__name__}: {one_line(str(error))}). Name the {FILE} "
            "that it wrote, or finish again."
        ) from None


def _weights(card: dict[str, Any], given: str | None) -> str | None:
    """The file that has the backbone's weights, by its content. None for a net that needs none."""
    wanted, was = card["backbone"]["weights"], card["settings"]["model"]["weights"]
    name = card["backbone"]["name"]
    if wanted is None:
        return None
    for file in (given, was, hub_file(name)):
        if file and file_version(file) == wanted:
            return file
    if given and Path(given).is_file():
        raise UserError(
            f"{one_line(given)} holds other weights ({file_version(given)}) than those that the model was trained on "
            f"({wanted}). Name the file of those: --weights FILE."
        )
    where = f", which was {one_line(was)}" if was else ", from the hub"
    raise UserError(
        f"The model looks at images through {one_line(name)}, whose weights ({wanted}{where}) are not on this "
        "machine. Name their file: --weights FILE."
    )
