"""Nets of timm below their last layer, and where their weights come from: the hub, a file, or nowhere."""

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from al_bench.config import ModelConfig
from al_bench.errors import UserError


def input_of(net: nn.Module) -> dict[str, Any]:
    """What timm's weights were trained on: input_size, mean, std."""
    from timm.data import resolve_data_config

    return resolve_data_config(model=net)


def timm_backbone(c: ModelConfig) -> nn.Module:
    """timm's net without its last layer, with random weights, the hub's or those of a file. Raises UserError."""
    import timm

    download = c.pretrained and not c.weights
    try:
        with _hub_asked_once() if download or ":" in c.name else nullcontext():  # hf-hub:name reads its settings there
            net = timm.create_model(c.name, pretrained=download, num_classes=0, **c.options)
    except Exception as error:
        raise _complaint(c, error) from error
    if not hasattr(net, "forward_head"):
        raise UserError(f"model.name={c.name}, model.options={c.options}: this makes a net without a head of its own.")
    if c.weights:
        _load_file(net, c)
    return net


def _load_file(net: nn.Module, c: ModelConfig) -> None:
    """Every weight of the backbone from the file model.weights; the file's own classifier is left out.

    Read here and not by create_model, which in older versions runs a pickle's code, and takes a file without one
    fitting name for a success.
    """
    import timm

    # timm's own change of a file to its model, position embeddings to another image size for one.
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", lambda state, net: state)
    path = Path(c.weights).expanduser()
    if not path.is_file():
        raise UserError(f"model.weights={c.weights}: there is no such file.")
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # no weights file, cut short, or one that would run code when read
        raise UserError(f"model.weights={c.weights} cannot be read as weights: {short(error)}") from error
    try:
        missing = net.load_state_dict(convert(state, net), strict=False).missing_keys
    except Exception as error:  # other shapes, or no state dict at all
        raise UserError(f"model.weights={c.weights} does not fit {c.name}: {short(error)}") from error
    if missing:
        raise UserError(
            f"model.weights={c.weights} does not fit {c.name}: it lacks {len(missing)} of {len(net.state_dict())} "
            f"entries, {missing[0]} for one. The names have to be timm's."
        )


@contextmanager
def _hub_asked_once() -> Iterator[None]:
    """Without a network huggingface_hub tries again for a minute; in its offline mode it looks at its cache alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE
    try:
        down = get_session().head(constants.ENDPOINT, timeout=10).status_code >= 500
    except Exception:  # requests' or httpx's, by version
        down = True
    constants.HF_HUB_OFFLINE = before or down
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _complaint(c: ModelConfig, error: Exception) -> UserError:
    """What the user can do about an error of timm's."""
    import timm

    if isinstance(error, RuntimeError) and str(error).startswith(("Unknown model", "Invalid pretrained tag")):
        near = difflib.get_close_matches(c.name, timm.list_models() + timm.list_pretrained(), n=3)
        return UserError(
            f"model.name={c.name}: timm has no such model." + (f" Did you mean {' or '.join(near)}?" if near else "")
        )
    if isinstance(error, OSError):  # as huggingface_hub's and urllib's are
        return UserError(
            f"The weights of {c.name} could not be downloaded ({short(error)}). "
            "Give them as a file (model.weights=...), or train from nothing (model.pretrained=false)."
        )
    return UserError(f"model.name={c.name}, model.options={c.options}: timm cannot build it: {short(error)}")


def short(error: Exception) -> str:
    """Type and text of an error on one line, at most 300 characters of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
