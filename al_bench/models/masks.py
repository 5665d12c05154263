"""Dropout masks from random bytes, for training on a CPU. torch draws a whole random number for each entry."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from al_bench.errors import UserError

BYTE = 256  # the values that a byte has


@contextmanager
def byte_masks(net: nn.Module) -> Iterator[None]:
    """Within it the nn.Dropout layers of the net draw one byte for each entry of their masks.

    They drop with the same probability, if it is a multiple of 1/256; other layers stay as they are. On a GPU torch's
    masks are cheap and are kept. Raises UserError if the net has no such layer.
    """
    layers = [m for m in net.modules() if type(m) is nn.Dropout and 0 < m.p < 1 and (BYTE * m.p).is_integer()]
    if not layers:
        raise UserError(
            "trainer.dropout_masks=bytes: the model has no nn.Dropout with a probability that is a multiple of 1/256. "
            "Set model.dropout=0.25 or 0.5 if the model has that key, or trainer.dropout_masks=null."
        )
    for layer in layers:
        layer.forward = partial(dropout, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def dropout(layer: nn.Dropout, x: Tensor) -> Tensor:
    """What the layer does with x, from the global random stream of the CPU."""
    if not layer.training or x.device.type != "cpu":
        return F.dropout(x, layer.p, layer.training)
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    order = torch.empty_like(x, device="meta").stride()  # of the memory: channels_last stays so
    mask = words.view(torch.uint8).as_strided(x.shape, order) >= BYTE * layer.p
    return x * mask.to(x.dtype).div_(1 - layer.p)
