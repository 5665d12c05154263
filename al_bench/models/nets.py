"""Networks, one contract (timm's): forward_features(x), forward_head(features, pre_logits), get_classifier().

Every net takes images as uint8 [B, C, H, W] and brings them to its own size, mean and std. `forward_head(..., pre_logits=True)`
is what the last linear layer sees: the embedding, of width `head_hidden_size`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from al_bench.config import ModelConfig
from al_bench.data import Dataset
from al_bench.errors import UserError


class Normalise(nn.Module):
    """(x / scale - mean) / std, as one multiplication and one addition. Not part of the weights."""

    def __init__(
        self, mean: tuple[float, ...] | Tensor, std: tuple[float, ...] | Tensor, scale: float, spatial: bool
    ) -> None:
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        factor, shift = 1 / (std * scale), -mean / std
        self.register_buffer("factor", factor[:, None, None] if spatial else factor, persistent=False)
        self.register_buffer("shift", shift[:, None, None] if spatial else shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.factor + self.shift


class SmallCNN(nn.Module):
    """The seed article's CNN (a Keras model): 684,162 trainable parameters for 3x64x64 images and two classes.

    Three blocks of convolution, ReLU, batch norm, max-pooling and dropout, the first padded, the others not; then a
    dense layer of 128. Keras's initial weights (Glorot uniform, zero biases) and batch-norm epsilon. From 8x8 pixels up:
    a block whose map would shrink to nothing is padded.
    """

    head_hidden_size = 128

    def __init__(self, dataset: Dataset, bn_momentum: float) -> None:
        super().__init__()
        _, channels, size, _ = dataset.images.shape
        self.normalise = Normalise(dataset.mean, dataset.std, scale=255, spatial=True)
        bn = {"eps": 1e-3, "momentum": bn_momentum}
        layers: list[nn.Module] = []
        for width, padded in ((32, True), (64, False), (128, False)):
            padded = padded or size < 6
            layers += [nn.Conv2d(channels, width, 3, padding=int(padded)), nn.ReLU(), nn.BatchNorm2d(width, **bn)]
            layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
            channels, size = width, (size if padded else size - 2) // 2
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * size * size, 128), nn.ReLU(), nn.BatchNorm1d(128, **bn), nn.Dropout(0.5)
        )
        self.classifier = nn.Linear(128, dataset.n_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(self.normalise(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        emb = self.hidden(x)
        return emb if pre_logits else self.classifier(emb)

    def get_classifier(self) -> nn.Linear:
        return self.classifier


class TimmNet(nn.Module):
    """A timm backbone with a new head, fed at the input size, mean and std of timm's own configuration for its weights."""

    def __init__(self, c: ModelConfig, dataset: Dataset) -> None:
        super().__init__()
        import timm

        data = timm.data.resolve_data_config(model=(net := _timm_model(c, dataset.n_classes)))
        self.net = net
        self.size = data["input_size"][-1]
        self.normalise = Normalise(data["mean"], data["std"], scale=255, spatial=True)
        self.head_hidden_size = net.head_hidden_size

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.normalise(x.expand(-1, 3, -1, -1))  # grey images: the same in all three channels
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.net.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.net.forward_head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        return self.net.get_classifier()


class LinearHead(nn.Module):
    """A linear layer on frozen features, which it standardises by the mean and std of all training images' features."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.head_hidden_size = dataset.images.shape[1]
        self.normalise = Normalise(dataset.mean, dataset.std, scale=1, spatial=False)
        self.classifier = nn.Linear(self.head_hidden_size, dataset.n_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.normalise(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.classifier(x)

    def get_classifier(self) -> nn.Linear:
        return self.classifier


def small_cnn(c: ModelConfig, dataset: Dataset) -> nn.Module:
    return SmallCNN(dataset, **c.options)


def timm_net(c: ModelConfig, dataset: Dataset) -> nn.Module:
    return TimmNet(c, dataset)


def preferred_size(c: ModelConfig) -> int | None:
    """The input size the weights were trained for, without building the network; None where any size will do."""
    if not c._target_.endswith("timm_net"):
        return None
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(c.name, allow_unregistered=True)
    if known is None:
        raise _unknown(c.name)
    return int(known.input_size[-1])


def _timm_model(c: ModelConfig, n_classes: int) -> nn.Module:
    import timm

    if c.weights is not None and not Path(c.weights).expanduser().is_file():
        raise UserError(f"model.weights={c.weights}: there is no such file.")
    local = {"pretrained_cfg_overlay": {"file": str(Path(c.weights).expanduser())}} if c.weights else {}
    try:
        return timm.create_model(
            c.name, pretrained=c.pretrained or bool(c.weights), num_classes=n_classes, **local, **c.options
        )
    except RuntimeError as error:
        if "Unknown model" in str(error):
            raise _unknown(c.name) from None
        if c.weights:
            raise UserError(f"model.weights={c.weights} does not fit {c.name}: {str(error)[:500]}") from None
        raise
    except Exception as error:
        if c.weights:  # a file that is no weights file, or one that would run code when read
            raise UserError(f"model.weights={c.weights} cannot be read as weights: {str(error)[:500]}") from None
        if c.pretrained and _is_network_error(error):
            raise UserError(
                f"The weights of {c.name} could not be downloaded ({type(error).__name__}). "
                "Give them as a file (model.weights=...), or train from nothing (model.pretrained=false)."
            ) from None
        raise


def _is_network_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
            "httpx",
            "requests",
            "huggingface_hub",
            "urllib3",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unknown(name: str) -> UserError:
    import difflib

    import timm

    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    return UserError(
        f"model.name={name}: timm has no such model." + (f" Did you mean {' or '.join(near)}?" if near else "")
    )
