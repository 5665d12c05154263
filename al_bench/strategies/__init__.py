"""The contract of a strategy: a function (view, k, rng) -> positions of the k pool images to label, in order.

P pool images, L labelled, S stochastic passes or committee members (1 if neither), C classes, D embedding width,
F width of the fixed features. It sees tensors alone, on the CPU; what it needs beyond predictions it declares with
@needs.
"""

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch
from hydra.utils import instantiate
from torch import Tensor

from al_bench.errors import UserError
from al_bench.signals import stop_behind
from al_bench.text import in_a_line

SETTINGS = ("name", "passes", "members", "candidates")  # keys of a strategy's yaml that the loop reads
ONE_PREDICTION = (  # what is wrong where there is only one
    "compares several predictions of an image. Set strategy.passes=20 (dropout) or strategy.members=5 (nets trained "
    "from other weights)"
)
LONGEST = 400  # characters of an error's text that a message repeats
CHUNK = 2**22  # numbers a chunk works on at once; a test makes it small


@dataclass(frozen=True)
class PoolView:
    """What a strategy may look at. A field it did not ask for is None. Predictions and embeddings may be float16."""

    n_pool: int
    n_classes: int
    log_probs_PSC: Tensor | None = None
    emb_PD: Tensor | None = None  # what the last linear layer sees
    labelled_emb_LD: Tensor | None = None
    labelled_labels_L: Tensor | None = None  # int64, always there; L may be 0
    labelled_log_probs_LC: Tensor | None = None  # averaged over the passes and members that predict the pool
    features_PF: Tensor | None = None  # of the extractor `features`, unit length
    labelled_features_LF: Tensor | None = None
    head_weight_CD: Tensor | None = None  # logits = emb_PD @ head_weight_CD.T + head_bias_C
    head_bias_C: Tensor | None = None


FIELDS_OF = {  # what each need brings; labelled_labels_L is always there
    "predictions": ["log_probs_PSC"],
    "embeddings": ["emb_PD", "labelled_emb_LD"],
    "labelled": ["labelled_log_probs_LC"],
    "features": ["features_PF", "labelled_features_LF"],
    "head": ["head_weight_CD", "head_bias_C"],
}


@dataclass(frozen=True)
class Size:
    """What a strategy's memory depends on; k images are to be chosen."""

    P: int
    L: int
    S: int
    C: int
    D: int
    F: int
    k: int


@dataclass(frozen=True)
class Needs:
    predictions: bool = True
    embeddings: bool = False  # of pool and labelled images
    labelled: bool = False  # predictions for the labelled images
    features: bool = False  # fixed features of pool and labelled images
    head: bool = False  # weight and bias of the last linear layer
    passes: bool = False  # at least two passes or members
    memory: Callable[[Size], float] | None = None  # bytes it works with beyond its view; None: next to nothing


Strategy = Callable[[PoolView, int, torch.Generator], Tensor]


def needs(
    *,
    predictions: bool = True,
    embeddings: bool = False,
    labelled: bool = False,
    features: bool = False,
    head: bool = False,
    passes: bool = False,
    memory: Callable[[Size], float] | None = None,
) -> Callable[[Strategy], Strategy]:
    """Declares, beside a strategy, what the one pass over the pool fetches for it. Undeclared: predictions alone."""

    def declare(strategy: Strategy) -> Strategy:
        strategy.needs = Needs(predictions, embeddings, labelled, features, head, passes, memory)  # type: ignore[attr-defined]
        return strategy

    return declare


def load(settings: dict[str, Any]) -> Strategy:
    """The function that the settings' _target_ names; keys that are not SETTINGS are its options. Raises UserError."""
    node = {key: value for key, value in settings.items() if key not in SETTINGS} | {"_partial_": True}
    try:
        strategy = instantiate(node)
        signature = inspect.signature(strategy.func)
        signature.bind(None, 1, None, **strategy.keywords)
        for option, parameter in signature.parameters.items():
            if parameter.annotation is bool and not isinstance(value := strategy.keywords.get(option, False), bool):
                raise TypeError(f"{option}={value}: true or false")
    except BaseException as error:  # a user's module may raise anything when imported
        if stop := stop_behind(error):
            raise stop from None
        reason = in_a_line(error.__cause__ or error)
        raise UserError(f"strategy {settings['name']}: {settings['_target_']} cannot be loaded ({reason}).") from error
    several = [key for key in ("passes", "members") if settings.get(key)]
    if several and not needs_of(strategy).predictions:
        raise UserError(
            f"strategy {settings['name']} looks at no predictions: strategy.{several[0]} would be work for nothing. "
            f"Set strategy.{several[0]}=null."
        )
    if needs_of(strategy).passes and not several:
        raise UserError(f"strategy {settings['name']} {ONE_PREDICTION}.")
    return strategy


def needs_of(strategy: Strategy) -> Needs:
    return getattr(getattr(strategy, "func", strategy), "needs", Needs())  # func: a yaml's _partial_


def top_k(score_P: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Positions of the k highest scores, equal ones drawn at random, never in file order. NaN raises ValueError."""
    if score_P.isnan().any():
        raise ValueError(f"{int(score_P.isnan().sum())} of {len(score_P)} scores are NaN")
    order_P = torch.randperm(len(score_P), generator=rng)
    return order_P[score_P[order_P].argsort(descending=True, stable=True)[:k]]


def by_chunks(f: Callable[..., Tensor], *tensors: Tensor, width: int | None = None) -> Tensor:
    """f over the rows of tensors that all have P rows, a few rows at a time, so that what f makes stays small.

    width: numbers f works on for a row; None: as many as the first tensor's row has.
    """
    rows = max(1, CHUNK // max(1, width or tensors[0][0:1].numel()))
    return joined((f(*parts) for parts in zip(*(t.split(rows) for t in tensors), strict=True)), len(tensors[0]))


def joined(parts: Iterable[Tensor], n: int) -> Tensor:
    """The rows of the parts, n in all, in an array made at the first part.

    Small results that are kept between large temporary arrays would keep the memory of those from being used again.
    """
    out, start = None, 0
    for part in parts:
        if out is None:
            out = part.new_empty(n, *part.shape[1:])
        out[start : start + len(part)] = part
        start += len(part)
    return out


def select(strategy: Strategy, name: str, view: PoolView, k: int, rng: torch.Generator, round: int) -> Tensor:
    """The strategy's choice, checked: k distinct positions of the pool. UserError names strategy, round and cause."""
    where = f"strategy {name}, round {round}"
    if k > view.n_pool:
        raise UserError(f"{where}: {k} images are asked for, and the pool has {view.n_pool}.")
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    check_view(view, where)
    try:
        check_memory(strategy, view, k, where)
        positions = strategy(view, k, rng)
    except UserError:
        raise
    except BaseException as error:
        if stop := stop_behind(error):
            raise stop from None
        raise UserError(f"{where}: {why_it_failed(error, strategy, view)}") from error
    if (got := kind_of(positions)) != f"torch.int64 [{k}]":
        raise UserError(f"{where}: it has to return an int64 tensor of {k} positions, and returned {got}.")
    if not 0 <= int(positions.min()) <= int(positions.max()) < view.n_pool:
        raise UserError(f"{where}: it returned a position outside the pool of {view.n_pool}.")
    if (n := len(positions.unique())) < k:
        raise UserError(f"{where}: it returned {n} different positions, and {k} are wanted.")
    return positions


def kind_of(positions: Any) -> str:
    """What a strategy returned: type and shape of a tensor, and where it is if that is not the CPU's plain memory."""
    if not isinstance(positions, Tensor):
        return type(positions).__name__
    plain = positions.device.type == "cpu" and positions.layout is torch.strided
    return f"{positions.dtype} {list(positions.shape)}{'' if plain else f' ({positions.layout}, {positions.device})'}"


def why_it_failed(error: BaseException, strategy: Strategy, view: PoolView) -> str:
    """What a strategy raised, as a sentence with the line of the user's file."""
    if isinstance(error, AttributeError | TypeError) and "NoneType" in str(error):
        if undeclared := looked_at_in_vain(view, error):
            need, name = undeclared
            return f"it uses view.{name} without declaring it: put @needs({need}=True) above it."
    line = line_of(error, strategy)
    if isinstance(error, SystemExit):
        return f"it asks to end the process, as sys.exit() does{line}. Return the positions, or raise ValueError."
    return f"{reason_of(error)}{line}."


def reason_of(error: BaseException) -> str:
    """The text of an error on one line. A ValueError's text is a sentence, any other has its type before it."""
    reason = " ".join("".join(traceback.format_exception_only(error)).split()).rstrip(".")
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."
    return reason.removeprefix("ValueError: ")


def looked_at_in_vain(view: PoolView, error: BaseException) -> tuple[str, str] | None:
    """(need, field) of a field that is None, and that the functions name in which the error came up."""
    named = {name for frame, _ in traceback.walk_tb(error.__traceback__) for name in frame.f_code.co_names}
    absent = [
        (need, name)
        for need, names in FIELDS_OF.items()
        for name in names
        if name in named and getattr(view, name) is None
    ]
    return absent[0] if absent else None


def line_of(error: BaseException, strategy: Strategy) -> str:
    """The last line of the user's own code that led to an error, as " (mine.py, line 7)"; "" where none did.

    The user's own: the strategy's package, and any file outside the libraries. Where our strategy fails by itself, its
    line. A ValueError of ours needs none: its sentence says it all.
    """
    ours, theirs = package_of(select), package_of(strategy)
    libraries = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    places: dict[bool, str] = {}
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, package = Path(frame.f_code.co_filename), frame.f_globals.get("__name__", "").split(".")[0]
        inside = any(folder in file.parents for folder in libraries)
        if file.is_file() and (package in (ours, theirs) or not inside):
            places[package == ours] = f" ({file.name}, line {line})"
    return places.get(False) or ("" if isinstance(error, ValueError) else places.get(True, ""))


def package_of(strategy: Strategy) -> str:
    return (getattr(getattr(strategy, "func", strategy), "__module__", None) or "").split(".")[0]


def check_view(view: PoolView, where: str) -> None:
    """Raises UserError where the model's numbers are unusable or do not fit each other."""
    for field in fields(view):
        values = getattr(view, field.name)
        if not isinstance(values, Tensor) or not values.is_floating_point() or not len(values):
            continue
        low, high = values.aminmax()  # NaN if any value is
        # A probability of exactly 0 has the logarithm -inf and is no fault.
        if not high < torch.inf or not (low > -torch.inf or "log_probs" in field.name):
            raise UserError(
                f"{where}: the model's {field.name} holds NaN or infinite values. "
                "Lower the learning rate or try trainer.precision=32-true."
            )
    sizes = {"P": view.n_pool, "C": view.n_classes}
    for field in fields(view):
        values, shape = getattr(view, field.name), field.name.rpartition("_")[2]
        if not isinstance(values, Tensor):
            continue
        found = list(values.shape)
        if len(found) != len(shape) or any(sizes.setdefault(s, n) != n for s, n in zip(shape, found, strict=True)):
            wanted = ", ".join(str(sizes.get(s, s)) for s in shape)
            raise UserError(
                f"{where}: {field.name} has the shape {found}, and [{wanted}] is wanted ({', '.join(shape)})."
            )


def size_of(view: PoolView, k: int) -> Size:
    def width(tensor: Tensor | None, dim: int) -> int:
        return 0 if tensor is None else tensor.shape[dim]

    return Size(
        view.n_pool,
        width(view.labelled_labels_L, 0),
        width(view.log_probs_PSC, 1),
        view.n_classes,
        width(view.emb_PD, 1),
        width(view.features_PF, 1),
        k,
    )


def check_memory(strategy: Strategy, view: PoolView, k: int, where: str) -> None:
    """Refuses a strategy that would not fit beside what is in memory already, naming what would."""
    estimate = needs_of(strategy).memory
    if estimate is None:
        return
    size, free = size_of(view, k), psutil.virtual_memory().available
    if (wanted := estimate(size)) <= free:
        return
    fits = size.P
    while fits > k and estimate(Size(**{**vars(size), "P": fits})) > free:
        fits //= 2
    way_out = f"Set strategy.candidates={fits}, a random part of the pool" if fits > k else "Lower budget.query"
    raise UserError(
        f"{where}: it would need about {wanted / 1e9:.1f} GB for a pool of {size.P:,} images, and {free / 1e9:.1f} GB "
        f"are free. {way_out}."
    )
