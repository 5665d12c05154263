"""Monte Carlo dropout with one mask a pass, the same for all images (Gal & Ghahramani, 2016; Kirsch et al., 2019).

A pass with a fixed mask is an ordinary, smaller net. Dropped channels are cut out of the layers before and after the
mask instead of being multiplied by zero, and the layers before the first dropout run once for all passes. Layers are
cut only where that is known to give the same result. Next to any other layer, the input is multiplied by the mask.
All but dropout is in eval mode. B images in a batch, S passes, C classes.
"""

from collections.abc import Callable
from itertools import takewhile
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from al_bench.errors import UserError

Layer = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
# The dropout layers that masks are drawn for, and the numbers of dimensions that their input may have; None: any. With
# other numbers torch takes the batch for the channels, or warns that a later version will.
DROPOUTS = {nn.Dropout: None, nn.Dropout1d: (3,), nn.Dropout2d: (2, 4), nn.Dropout3d: (5,)}


class DropoutPasses:
    """S nets that share the present weights of `net`, whose layers() lists its layers in the order they run."""

    def __init__(self, net: nn.Module, n: int, image: Tensor, stream: torch.Generator) -> None:
        """image: any one, [1, channels, H, W] or [1, D]; it shows the layers' input shapes. Raises UserError."""
        if not hasattr(net, "layers"):
            raise UserError("passes with dropout need the layers of the net in their order: give it a method layers()")
        layers = dropout_late(net.layers())
        refuse_unknown_dropout(layers)
        first = next((i for i, layer in enumerate(layers) if is_dropout(layer)), None)
        if first is None:
            raise UserError(
                "the model has no dropout, so all passes would be the same. Set model.dropout=0.5 (timm and frozen "
                "models) or model.head=logistic (frozen models), or choose model=small_cnn or bcnn"
            )
        seen = seen_shapes(layers, image)[first:]
        self.once, rest = layers[:first], layers[first:]
        masks = mask_shapes(rest, seen)
        self.passes = [thinned(rest, seen, draw_masks(rest, masks, stream)) for _ in range(n)]

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
    return type(layer) in DROPOUTS and layer.p > 0


def refuse_unknown_dropout(layers: list[Layer]) -> None:
    """Raises UserError for dropout that no mask is drawn for: it would be off, and the passes would agree too much.

    A function among the layers, such as timm's backbone, is not searched.
    """
    for layer in layers:
        inside = [part for part in layer.modules() if _drops(part)] if isinstance(layer, nn.Module) else []
        if inside and not is_dropout(layer):
            where = "" if inside[0] is layer else f" inside the layer {type(layer).__name__}"
            raise UserError(
                f"passes with dropout draw no masks for {type(inside[0]).__name__}{where}. They know "
                f"{', '.join(kind.__name__ for kind in DROPOUTS)} as layers of their own in the model's layers(). Use "
                "one of these there, or set its probability to 0"
            )


def _drops(part: nn.Module) -> bool:
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase):
        return part.dropout > 0
    return isinstance(part, (*DROPOUTS, nn.AlphaDropout, nn.FeatureAlphaDropout)) and part.p > 0


def dropout_late(layers: list[Layer]) -> list[Layer]:
    """Whole-channel dropout moved behind ReLU and max-pooling: the same result, with less to mask."""
    layers = list(layers)
    for i in range(len(layers) - 1):
        if type(layers[i]) is nn.Dropout2d and (type(layers[i + 1]) is nn.ReLU or _is_max_pool(layers[i + 1])):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return layers


def seen_shapes(layers: list[Layer], image: Tensor) -> list[Shape]:
    """The shape of each layer's input; () where it is not a tensor."""
    shapes = []
    for layer in layers:
        shapes.append(tuple(getattr(image, "shape", ())))
        image = layer(image)
    return shapes


def mask_shapes(layers: list[Layer], seen: list[Shape]) -> list[Shape | None]:
    """The shape of the mask of each dropout layer, None for other layers. Raises UserError."""
    shapes: list[Shape | None] = []
    for layer, shape in zip(layers, seen, strict=True):
        if is_dropout(layer) and len(shape) not in (DROPOUTS[type(layer)] or [len(shape)]):
            raise UserError(
                f"{type(layer).__name__} cannot tell the channels of an input of {len(shape)} dimensions, the batch "
                "included. Use Dropout1d for 3 dimensions, Dropout2d for 4, Dropout3d for 5, Dropout for any"
            )
        whole_channels = type(layer) is not nn.Dropout
        shapes.append((shape[1:2] if whole_channels else shape[1:]) if is_dropout(layer) else None)
    return shapes


def draw_masks(layers: list[Layer], shapes: list[Shape | None], stream: torch.Generator) -> dict[int, Tensor]:
    """By the layer's place: True where an entry is kept."""
    return {i: torch.rand(s, generator=stream) >= layers[i].p for i, s in enumerate(shapes) if s is not None}


def thinned(layers: list[Layer], seen: list[Shape], masks: dict[int, Tensor]) -> list[Layer]:
    """The layers of one pass. Inside, kept: the channels that are left at this layer, None for all."""
    net: list[Layer] = []
    kept: Tensor | None = None
    for i, layer in enumerate(layers):
        if i in masks:
            scale = 1 / (1 - layer.p) if layer.p < 1 else 0.0
            after = _channels_to_keep(layers, seen, masks, i)
            net.append(_multiply(masks[i], scale, len(seen[i])) if after is None else _keep(after, scale, kept))
            kept = after
        elif mixes(layer, seen[i]):
            kept_in, kept = kept, _dropped_next(layers, seen, masks, i + 1)
            net.append(_smaller(layer, kept_in, kept))
        elif kept is not None and _is_norm(layer, seen[i]):
            net.append(_smaller_norm(layer, kept))
        else:
            if kept is not None and _is_flatten(layer):
                area = prod(seen[i][2:])
                kept = (kept[:, None] * area + torch.arange(area)).flatten()
            net.append(layer)
    return net


def _channels_to_keep(layers: list[Layer], seen: list[Shape], masks: dict[int, Tensor], i: int) -> Tensor | None:
    """The channels that the dropout at i keeps; None where the others cannot be cut.

    They can be if a channel of zeros stays zero up to the next layer that mixes channels. Batch norm would shift it.
    """
    if masks[i].ndim > 1 or not masks[i].any():  # no layer takes an image without channels
        return None
    after = range(i + 1, len(layers))
    j = i + 1 + len(list(takewhile(lambda j: _is_relu_or_pool(layers[j], seen[j]) or _is_flatten(layers[j]), after)))
    return masks[i].nonzero()[:, 0] if j < len(layers) and mixes(layers[j], seen[j]) else None


def _dropped_next(layers: list[Layer], seen: list[Shape], masks: dict[int, Tensor], start: int) -> Tensor | None:
    """The output channels of a layer that the next dropout keeps; None if a layer between them mixes channels."""
    between = takewhile(
        lambda j: _is_relu_or_pool(layers[j], seen[j]) or _is_norm(layers[j], seen[j]), range(start, len(layers))
    )
    i = start + len(list(between))
    return _channels_to_keep(layers, seen, masks, i) if i in masks else None


def _plain(layer: Layer, *kinds: type[nn.Module]) -> bool:
    """Exactly one of these torch layers, without hooks. A subclass, such as a parametrised layer, may compute more."""
    return type(layer) in kinds and not layer._forward_hooks and not layer._forward_pre_hooks


def mixes(layer: Layer, seen: Shape) -> bool:
    """Whether channels, dimension 1, can be cut out of the layer's input and output."""
    return (_plain(layer, nn.Conv2d) and len(seen) == 4 and layer.groups == 1) or (
        _plain(layer, nn.Linear) and len(seen) == 2
    )


def _is_max_pool(layer: Layer) -> bool:
    return _plain(layer, nn.MaxPool2d) and not layer.return_indices


def _is_relu_or_pool(layer: Layer, seen: Shape) -> bool:
    """Whether each output channel depends on the same input channel alone, and is 0 where that is 0."""
    return _plain(layer, nn.ReLU) or (_is_max_pool(layer) and len(seen) == 4)


def _is_norm(layer: Layer, seen: Shape) -> bool:
    return _plain(layer, nn.BatchNorm1d, nn.BatchNorm2d) and len(seen) in (2, 4)


def _is_flatten(layer: Layer) -> bool:
    return _plain(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _keep(chosen: Tensor, scale: float, kept: Tensor | None) -> Layer:
    # Where the layer before has cut the channels already, only the scale is left to apply.
    return (lambda x: x * scale) if kept is not None else (lambda x: x.index_select(1, chosen.to(x.device)) * scale)


def _multiply(mask: Tensor, scale: float, n_dims: int) -> Layer:
    weights = (mask * scale).view(-1, *[1] * (n_dims - 2)) if mask.ndim == 1 else mask * scale
    return lambda x: x * weights.to(x.device, x.dtype)


def _smaller(layer: nn.Conv2d | nn.Linear, kept_in: Tensor | None, kept_out: Tensor | None) -> Layer:
    parts = {name: values.detach() for name, values in layer.named_parameters()}  # a bias, where it has one
    if kept_in is not None:
        parts["weight"] = parts["weight"].index_select(1, kept_in.to(parts["weight"].device))
    if kept_out is not None:
        parts = {name: values.index_select(0, kept_out.to(values.device)) for name, values in parts.items()}
    if isinstance(layer, nn.Conv2d):
        parts["weight"] = parts["weight"].contiguous(memory_format=torch.channels_last)
    return lambda x: functional_call(layer, parts, x)  # the layer's own stride, padding, dilation


def _smaller_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, kept: Tensor) -> Layer:
    per_channel = {
        name: values.detach().index_select(0, kept.to(values.device))
        for name, values in [*layer.named_parameters(), *layer.named_buffers()]
        if values.ndim == 1
    }
    return lambda x: functional_call(layer, per_channel, x)
