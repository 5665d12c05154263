"""Networks, one contract (timm's): forward_features(x), forward_head(features, pre_logits), get_classifier().

Every net takes images as uint8 [B, C, H, W] and brings them to its own size, mean and std.
`forward_head(..., pre_logits=True)` is what the last linear layer sees: the embedding, of width `head_hidden_size`.
`layers()` is the same net as one row of layers, for passes with dropout (models/dropout.py): only these need it.
A net of the user's comes from a class or function (c: ModelConfig, dataset: Dataset); models/contract.py checks it.
"""

import functools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from al_bench.config import FeaturesConfig, Mode, ModelConfig
from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.known import Known
from al_bench.models.backbone import input_of, short, timm_backbone
from al_bench.provenance import file_version


class Normalise(nn.Module):
    """(x / scale - mean) / std, as one multiplication and one addition. Not part of the weights."""

    def __init__(
        self, mean: tuple[float, ...] | Tensor, std: tuple[float, ...] | Tensor, scale: float, width: int | None
    ) -> None:
        """width: of the images, [B, C, H, W]; None for features, [B, D]."""
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        factor, shift = 1 / (std * scale), -mean / std
        if width:  # a whole row [C, 1, W], laid out as in channels_last images: three times as fast as one per channel
            factor, shift = (v.repeat(width).view(width, -1).T[:, None] for v in (factor, shift))
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.factor + self.shift


class SimpleCNN(nn.Module):
    """normalise -> features -> hidden -> classifier, each a row of layers."""

    head_hidden_size = 128
    normalise: Normalise
    features: nn.Sequential
    hidden: nn.Sequential
    classifier: nn.Linear

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(self.normalise(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        emb = self.hidden(x)
        return emb if pre_logits else self.classifier(emb)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def layers(self) -> list[nn.Module]:
        return [self.normalise, *self.features, *self.hidden, self.classifier]


class SmallCNN(SimpleCNN):
    """The seed article's CNN (a Keras model): 684,162 trainable parameters for 3x64x64 images and two classes.

    Three blocks of convolution, ReLU, batch norm, max-pooling and dropout, the first padded, the others not; then a
    dense layer of 128. Keras's initial weights (Glorot uniform, zero biases) and batch-norm epsilon. From 8x8 pixels
    up: a block whose map would shrink to nothing is padded.
    """

    def __init__(self, dataset: Dataset, bn_momentum: float) -> None:
        super().__init__()
        _, channels, size, _ = dataset.images.shape
        self.normalise = Normalise(dataset.mean, dataset.std, scale=255, width=size)
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


class BayesianCNN(SimpleCNN):
    """BatchBALD's net for MNIST: dropout of whole channels after both convolutions (Kirsch et al., 2019, section 4.1).

    184,586 parameters for 1x28x28 images and ten classes; torch's initial weights. From 16x16 pixels up.
    """

    def __init__(self, dataset: Dataset, dropout: float) -> None:
        super().__init__()
        _, channels, size, _ = dataset.images.shape
        if size < 16:
            raise UserError(
                f"model=bcnn needs images of 16 pixels or more, and these have {size}. Try model=small_cnn."
            )
        self.normalise = Normalise(dataset.mean, dataset.std, scale=255, width=size)
        layers: list[nn.Module] = []
        for width in (32, 64):
            layers += [nn.Conv2d(channels, width, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU()]
            channels, size = width, (size - 4) // 2
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * size * size, 128), nn.Dropout(dropout), nn.ReLU()
        )
        self.classifier = nn.Linear(128, dataset.n_classes)


class CifarResNet18(SimpleCNN):
    """ResNet-18 for small images, as papers on CIFAR-10 use it: 11,173,962 parameters for ten classes.

    He et al., 2016, with a first convolution of 3x3 and stride 1 and without the pooling after it, so that an image of
    32 pixels keeps its size up to the second stage. timm's layers and initial weights.
    """

    head_hidden_size = 512

    def __init__(self, dataset: Dataset, dropout: float) -> None:
        """dropout: on the input of the last layer. The papers have none."""
        import timm

        super().__init__()
        _, channels, _, size = dataset.images.shape
        net = timm.create_model("resnet18", num_classes=0, zero_init_last=False)
        first = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as timm's convolutions
        self.normalise = Normalise(dataset.mean, dataset.std, scale=255, width=size)
        self.features = nn.Sequential(first, net.bn1, net.act1, net.layer1, net.layer2, net.layer3, net.layer4)
        self.hidden = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.classifier = nn.Linear(self.head_hidden_size, dataset.n_classes)


class TimmNet(nn.Module):
    """A timm backbone and a linear layer, fed at the input size, mean and std of timm's configuration for its weights.

    The layer takes the place of timm's own classifier, which in a dozen families is not one linear layer on the
    embedding: two heads (distilled DeiT, LeViT), a convolution (BiT, DPN), batch norm (SHViT), an extra head (VOLO).
    """

    def __init__(self, c: ModelConfig, dataset: Dataset) -> None:
        super().__init__()
        self.net = timm_backbone(c)
        data = input_of(self.net)
        self.size = data["input_size"][-1]
        self.normalise = Normalise(data["mean"], data["std"], scale=255, width=dataset.images.shape[-1])
        self.head_hidden_size = self.net.head_hidden_size
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(self.head_hidden_size, dataset.n_classes)
        _refuse_misfit(self, c)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.normalise(x.expand(-1, 3, -1, -1))  # grey images: the same in all three channels
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=x.shape[-1] > self.size)
        return self.net.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        emb = self.dropout(self.net.forward_head(x, pre_logits=True))
        return emb if pre_logits else self.classifier(emb)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def layers(self) -> list[Any]:
        """Dropout inside the backbone, where it has any, rests: what is stochastic is the last layer's input."""
        return [
            self.forward_features,
            lambda x: self.net.forward_head(x, pre_logits=True),
            self.dropout,
            self.classifier,
        ]


class LinearHead(nn.Module):
    """A linear layer on frozen features, which it standardises by the mean and std of all training images' features."""

    def __init__(self, dataset: Dataset, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_hidden_size = dataset.images.shape[1]
        self.normalise = Normalise(dataset.mean, dataset.std, scale=1, width=None)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.head_hidden_size, dataset.n_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.normalise(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        emb = self.dropout(x)
        return emb if pre_logits else self.classifier(emb)

    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def layers(self) -> list[nn.Module]:
        return [self.normalise, self.dropout, self.classifier]


def linear_head(c: ModelConfig, dataset: Dataset) -> nn.Module:
    """The linear head by itself, for features that were computed elsewhere."""
    if dataset.images.ndim != 2:
        raise UserError(f"model={c.name} takes features, and dataset {dataset.name} holds images. Set another model.")
    if c.mode is not Mode.frozen:
        raise UserError(f"model.mode={c.mode.name}: model={c.name} has no backbone to train. Set model.mode=frozen.")
    if c.pretrained or c.weights or c.options:
        raise UserError(
            f"model.pretrained={c.pretrained}, model.weights={c.weights}, model.options={c.options}: model={c.name} "
            "has none of them. Leave them out."
        )
    return LinearHead(dataset, c.dropout)


def pca_head(c: ModelConfig, dataset: Dataset) -> nn.Module:
    """The target of model=pca. With mode=frozen, models/features.py puts the components in place of the images."""
    raise UserError(f"model.mode={c.mode.name}: model={c.name} has no backbone to train. Set model.mode=frozen.")


def small_cnn(c: ModelConfig, dataset: Dataset) -> nn.Module:
    return _own(SmallCNN, c, dataset)


def bayesian_cnn(c: ModelConfig, dataset: Dataset) -> nn.Module:
    return _own(BayesianCNN, c, dataset)


def cifar_resnet18(c: ModelConfig, dataset: Dataset) -> nn.Module:
    _refuse_weights(c)
    if c.options:
        raise UserError(f"model.options={c.options}: model={c.name} has none. Leave them out.")
    return CifarResNet18(dataset, c.dropout)


def _refuse_weights(c: ModelConfig) -> None:
    if c.pretrained or c.weights:
        raise UserError(
            f"model.pretrained={c.pretrained}, model.weights={c.weights}: model={c.name} is trained from nothing. "
            "Pretrained weights are for model=timm."
        )


def _own(net: type[SimpleCNN], c: ModelConfig, dataset: Dataset) -> nn.Module:
    if c.dropout:
        raise UserError(f"model.dropout={c.dropout}: model={c.name} has its own dropout; leave it at 0.")
    _refuse_weights(c)
    for key, value in c.options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"model.options.{key}={value}: a number from 0 to 1.")
    try:
        return net(dataset, **c.options)
    except TypeError as error:
        raise UserError(f"model.options={c.options}: {error}.") from None


_fitting: set[str] = set()  # what this process has tried already: a net is built in each round


def _refuse_misfit(net: TimmNet, c: ModelConfig) -> None:
    """Raises UserError for options with which the backbone does not turn a colour image into one embedding."""
    if (key := repr((c.name, c.options))) in _fitting:
        return
    what = f"model.name={c.name}, model.options={c.options}"
    image = torch.zeros(1, 3, net.normalise.factor.shape[-1], net.normalise.factor.shape[-1], dtype=torch.uint8)
    net.eval()
    try:
        with torch.no_grad():
            emb = net.forward_head(net.forward_features(image), pre_logits=True)
    except Exception as error:
        raise UserError(f"{what}: the net cannot look at an image of three colours ({short(error)}).") from error
    finally:
        net.train()
    if emb.shape != (1, net.head_hidden_size):
        raise UserError(
            f"{what}: of an image the net makes numbers of the shape {list(emb.shape[1:])}, and one embedding "
            f"[{net.head_hidden_size}] is wanted. Leave out what changes the net's end, global_pool for one."
        )
    _fitting.add(key)


def timm_net(c: ModelConfig, dataset: Dataset) -> nn.Module:
    return TimmNet(c, dataset)


def preferred_size(c: ModelConfig) -> int | None:
    """The input size the weights were trained for; None where any size will do."""
    if c._target_ != "al_bench.models.nets.timm_net":
        return None
    plain = replace(c, pretrained=False, weights=None)
    # A name with a colon stands for settings on the hub or the disk, which may change.
    return (_input_size.__wrapped__ if ":" in c.name else _input_size)(Known((c.name, repr(c.options)), plain))


@functools.lru_cache
def _input_size(model: Known[ModelConfig]) -> int:
    return input_of(timm_backbone(model.value))["input_size"][-1]


def weights_version(c: ModelConfig | FeaturesConfig) -> str | None:
    """Which weights a net begins from, by content: sha256:<hex> of a file, or the hub's id and revision.

    None for random weights. The revision is known once the weights have been downloaded.
    """
    if c.weights:
        return file_version(c.weights)
    return _hub_version(c.name) if c.pretrained and c.name else None


def _hub_version(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    cfg = None if ":" in name else get_pretrained_cfg(name)
    source = name.partition(":")[2] or (cfg and (cfg.hf_hub_id or cfg.url))
    if not source:
        return None
    repository, _, revision = source.partition("@")
    for file in ("model.safetensors", "pytorch_model.bin"):
        with suppress(ValueError):  # an address is no repository
            cached = try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(cached, str):  # .../snapshots/<revision>/<file>
                return f"{repository}@{Path(cached).parent.name}"
    return source
