"""Monte Carlo dropout with one mask a pass, the same for all images (Gal & Ghahramani, 2016; Kirsch et al., 2019).

With its mask fixed a pass is an ordinary, smaller net: the channels that the mask drops are left out of the layers
before and after it instead of being multiplied by zero, and the layers before the first dropout run once for all
passes. Nothing else leaves eval mode. B images in a batch, S passes, C classes.
"""

from collections.abc import Callable
from itertools import takewhile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from al_bench.errors import UserError

Layer = Callable[[Tensor], Tensor]
PER_CHANNEL = (nn.ReLU, nn.MaxPool2d, nn.BatchNorm1d, nn.BatchNorm2d)  # a channel out depends on that channel in alone


class Passes:
    """The S nets that share the weights of `net` now. net.layers(): its layers in the order they run."""

    def __init__(self, net: nn.Module, n: int, image: Tensor, stream: torch.Generator) -> None:
        """image: one of them, [1, channels, H, W] or [1, D], to see the layers' shapes. Raises UserError."""
        layers = dropout_late(net.layers())
        first = next((i for i, layer in enumerate(layers) if is_dropout(layer)), None)
        if first is None:
            raise UserError(
                "the model has no dropout, so all passes would be the same. Set model.dropout=0.5 (timm and frozen "
                "models) or choose model=small_cnn or bcnn"
            )
        self.once, rest = layers[:first], layers[first:]
        shapes = dropout_shapes(layers, image)[first:]
        self.passes = [thinned(rest, draw_masks(rest, shapes, stream)) for _ in range(n)]

    def __call__(self, images: Tensor) -> Tensor:
        """logits_BSC, float32."""
        x = run(self.once, images)
        return torch.stack([_classify(layers, x) for layers in self.passes], dim=1)


def run(layers: list[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _classify(layers: list[Layer], x: Tensor) -> Tensor:
    emb = run(layers[:-1], x).float()
    with torch.autocast(emb.device.type, enabled=False):  # the last layer never in bf16, as in Classifier.forward
        return layers[-1](emb)


def is_dropout(layer: Layer) -> bool:
    return isinstance(layer, nn.Dropout | nn.Dropout2d) and layer.p > 0


def dropout_late(layers: list[Layer]) -> list[Layer]:
    """Whole-channel dropout moved behind ReLU and max-pooling, which gives the same and leaves less to mask."""
    layers = list(layers)
    for i in range(len(layers) - 1):
        if isinstance(layers[i], nn.Dropout2d) and isinstance(layers[i + 1], nn.ReLU | nn.MaxPool2d):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return layers


def dropout_shapes(layers: list[Layer], image: Tensor) -> list[tuple[int, ...] | None]:
    """The shape of the mask of each dropout layer, None for other layers."""
    shapes: list[tuple[int, ...] | None] = []
    for layer in layers:
        whole_channels = isinstance(layer, nn.Dropout2d)
        shapes.append((tuple(image.shape[1:2] if whole_channels else image.shape[1:])) if is_dropout(layer) else None)
        image = layer(image)
    return shapes


def draw_masks(layers: list[Layer], shapes: list[tuple[int, ...] | None], stream: torch.Generator) -> dict[int, Tensor]:
    """By the layer's place: True where an entry is kept."""
    return {i: torch.rand(s, generator=stream) >= layers[i].p for i, s in enumerate(shapes) if s is not None}


def thinned(layers: list[Layer], masks: dict[int, Tensor]) -> list[Layer]:
    """The layers of one pass. kept: the channels that there still are, None for all."""
    net: list[Layer] = []
    kept: Tensor | None = None
    n_channels = 0  # before thinning, of what comes next
    for i, layer in enumerate(layers):
        if i in masks:
            net += _masked(masks[i], 1 / (1 - layer.p), kept)
            if masks[i].ndim == 1:
                kept, n_channels = masks[i].nonzero()[:, 0], len(masks[i])
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            kept_in, kept = kept, _dropped_next(layers[i + 1 :], masks, i + 1)
            net.append(_smaller(layer, kept_in, kept))
            n_channels = len(layer.weight)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and kept is not None:
            net.append(_smaller_norm(layer, kept))
        else:
            if isinstance(layer, nn.Flatten) and kept is not None:
                after = next(later for later in layers[i:] if isinstance(later, nn.Linear))
                area = after.in_features // n_channels
                kept = (kept[:, None] * area + torch.arange(area)).flatten()
            net.append(layer)
    return net


def _dropped_next(after: list[Layer], masks: dict[int, Tensor], start: int) -> Tensor | None:
    """The channels of a layer's output that the next dropout keeps, if only layers that mix none lie between."""
    between = len(list(takewhile(lambda layer: isinstance(layer, PER_CHANNEL), after)))
    mask = masks.get(start + between)
    return mask.nonzero()[:, 0] if mask is not None and mask.ndim == 1 else None


def _masked(mask: Tensor, scale: float, kept: Tensor | None) -> list[Layer]:
    if mask.ndim == 1:
        chosen = mask.nonzero()[:, 0]
        # Channels that the layer before has left out already only want their scale.
        return [
            (lambda x: x * scale) if kept is not None else (lambda x: x.index_select(1, chosen.to(x.device)) * scale)
        ]
    weights = mask * scale
    return [lambda x: x * weights.to(x.device, x.dtype)]


def _smaller(layer: nn.Conv2d | nn.Linear, kept_in: Tensor | None, kept_out: Tensor | None) -> Layer:
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if kept_in is not None:
        weight = weight.index_select(1, kept_in.to(weight.device))
    if kept_out is not None:
        weight, bias = (v.index_select(0, kept_out.to(weight.device)) for v in (weight, bias))
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, weight, bias)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda x: F.conv2d(x, weight, bias, layer.stride, layer.padding)


def _smaller_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, kept: Tensor) -> Layer:
    parts = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    mean, var, weight, bias = (v.detach().index_select(0, kept.to(v.device)) for v in parts)
    return lambda x: F.batch_norm(x, mean, var, weight, bias, eps=layer.eps)
