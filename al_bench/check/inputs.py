"""Test inputs for the rules: random pools, degenerate pools, float16, and pools of any size.

P pool images, L labelled, S passes or members, C classes, D embedding width, F width of the fixed features.
`make_view(size, seed, kind)` rebuilds the input that the message of a broken rule names.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from al_bench.strategies import Needs, PoolView, Size, take
from al_bench.strategies.example import example_view, only_declared


def make_view(size: Size, seed: int, kind: str = "random") -> PoolView:
    """Make a pool with every field filled, as example_view does, and change it as `kind` says."""
    return KINDS[kind](example_view(size, seed))


def certain(view: PoolView) -> PoolView:
    """Give the likeliest class of each image the probability 1."""

    def one_hot(log_probs: Tensor) -> Tensor:
        return torch.zeros_like(log_probs).scatter(-1, log_probs.argmax(-1, keepdim=True), 1).log()

    return replace(
        view,
        log_probs_PSC=one_hot(view.log_probs_PSC.mean(1, keepdim=True)).expand_as(view.log_probs_PSC).clone(),
        labelled_log_probs_LC=one_hot(view.labelled_log_probs_LC),
    )


def uniform(view: PoolView) -> PoolView:
    return replace(view, log_probs_PSC=torch.full_like(view.log_probs_PSC, 1 / view.n_classes).log())


def identical(view: PoolView) -> PoolView:
    return take(view, torch.zeros(view.n_pool, dtype=torch.int64))


def zero_embeddings(view: PoolView) -> PoolView:
    return replace(view, emb_PD=torch.zeros_like(view.emb_PD), labelled_emb_LD=torch.zeros_like(view.labelled_emb_LD))


def some_zero_embeddings(view: PoolView) -> PoolView:
    """Set the embedding of every third image to 0."""
    third_P1 = (torch.arange(view.n_pool) % 3 == 0)[:, None]
    return replace(view, emb_PD=view.emb_PD.masked_fill(third_P1, 0))


def saturated(view: PoolView) -> PoolView:
    """Round the largest probability of each image to 1 in float32. Its logarithm still differs between images."""
    top_PS1 = (
        view.log_probs_PSC.mean(1, keepdim=True).argmax(-1, keepdim=True).expand(-1, view.log_probs_PSC.shape[1], 1)
    )
    logits_PSC = view.log_probs_PSC.double().scatter_add(-1, top_PS1, torch.full(top_PS1.shape, 18.0).double())
    return replace(view, log_probs_PSC=logits_PSC.log_softmax(-1).float())


def likeliest_class_ruled_out(view: PoolView, log_zero: float) -> PoolView:
    """Give the likeliest class of every third image the log-probability log_zero, in every pass."""
    log_probs_PSC = view.log_probs_PSC.clone()
    for row_SC in log_probs_PSC[::3]:
        row_SC[:, row_SC.mean(0).argmax()] = -torch.inf
    return replace(view, log_probs_PSC=log_probs_PSC.log_softmax(-1).clamp_min(log_zero))


def one_labelled_class(view: PoolView) -> PoolView:
    return replace(view, labelled_labels_L=torch.zeros_like(view.labelled_labels_L))


def in_float16(view: PoolView) -> PoolView:
    names = ("log_probs_PSC", "emb_PD", "labelled_emb_LD", "labelled_log_probs_LC")
    return replace(view, **{name: getattr(view, name).half() for name in names})


def in_float32(view: PoolView) -> PoolView:
    floats = {
        f.name: v for f in fields(view) if isinstance(v := getattr(view, f.name), Tensor) and v.dtype == torch.half
    }
    return replace(view, **{name: values.float() for name, values in floats.items()})


KINDS: dict[str, Callable[[PoolView], PoolView]] = {
    "random": lambda view: view,
    "certain": certain,
    "uniform": uniform,
    "identical": identical,
    "identical, certain": lambda view: identical(certain(view)),
    "identical, uniform, embeddings 0": lambda view: identical(uniform(zero_embeddings(view))),
    "embeddings 0": zero_embeddings,
    "every third embedding 0": some_zero_embeddings,
    "saturated": saturated,
    "every image twice": lambda view: take(view, torch.arange(view.n_pool) // 2),
    "three distinct images": lambda view: take(view, torch.arange(view.n_pool) % min(3, view.n_pool)),
    "a probability of 0": lambda view: likeliest_class_ruled_out(view, -torch.inf),
    "a probability of exp(-80)": lambda view: likeliest_class_ruled_out(view, -80),
    "one labelled class": one_labelled_class,
    "float16": in_float16,
    "float16 as float32": lambda view: in_float32(in_float16(view)),
}


@dataclass(frozen=True)
class Case:
    """One test input: how to make the view. size.k is the number of images to choose."""

    size: Size
    seed: int = 0
    kind: str = "random"

    def __str__(self) -> str:
        return f"make_view({self.size}, {self.seed}, {self.kind!r})"

    def view(self, needs: Needs) -> PoolView:
        """Make the view. Fields that the strategy did not declare are None."""
        return only_declared(make_view(self.size, self.seed, self.kind), needs)

    def changed(self, **change: Any) -> "Case":
        """Return a copy with another seed, kind or part of the size."""
        new = {key: change.pop(key) for key in ("seed", "kind") if key in change}
        return replace(self, size=replace(self.size, **change), **new)


def cases(S: int) -> list[Case]:
    """Return three small inputs without ties."""
    return [
        Case(Size(P=5, L=3, S=S, C=2, D=2, F=3, k=2), 1),
        Case(Size(P=37, L=11, S=S, C=3, D=5, F=4, k=7), 2),
        Case(Size(P=59, L=20, S=S, C=5, D=3, F=8, k=12), 3),
    ]


def large_case(S: int) -> Case:
    """Return a pool larger than usual blocks, whose last block is incomplete but holds many images.

    That is so for blocks of 64, 100, 128, 250, 256, 500 and 512.
    """
    return Case(Size(P=999, L=7, S=S, C=3, D=4, F=4, k=8), 4)
