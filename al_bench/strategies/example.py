"""A random pool with every field of a view: what strategies are tried on without any data.

P pool images, L labelled, S passes or members, C classes, D embedding width, F width of the fixed features.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from al_bench.strategies import FIELDS_OF, Needs, PoolView, Size


def example_view(size: Size, seed: int, needs: Needs | None = None) -> PoolView:
    """Images in one cluster for each class, predicted by a head that fits their embeddings.

    needs: the fields that it holds, the others are None; None: all.
    """
    draw = torch.Generator().manual_seed(seed)
    centre_CD, centre_CF = (torch.randn(size.C, width, generator=draw) for width in (size.D, size.F))

    def images(n: int) -> tuple[Tensor, Tensor, Tensor]:
        label_N = torch.randint(size.C, (n,), generator=draw)
        emb_ND = centre_CD[label_N] + torch.randn(n, size.D, generator=draw)
        features_NF = centre_CF[label_N] + torch.randn(n, size.F, generator=draw)
        return label_N, emb_ND, torch.nn.functional.normalize(features_NF)

    truth_P, emb_PD, features_PF = images(size.P)
    label_L, emb_LD, features_LF = images(size.L)
    test_labels_V, test_emb_VD = torch.arange(3 * size.C) % size.C, centre_CD.repeat(3, 1)
    bias_C = -centre_CD.square().sum(1) / 2
    logits_PSC = (emb_PD @ centre_CD.T + bias_C)[:, None].repeat(1, size.S, 1)
    if size.S > 1:
        logits_PSC += torch.randn(logits_PSC.shape, generator=draw)
    labelled_log_probs_LC = (emb_LD @ centre_CD.T + bias_C).log_softmax(-1)
    held_out_log_probs_LC = (labelled_log_probs_LC + torch.randn(size.L, size.C, generator=draw)).log_softmax(-1)
    foreign_emb_OD = 3 * torch.randn(size.L // 2, size.D, generator=draw)
    view = PoolView(
        size.P, size.C, logits_PSC.log_softmax(-1), emb_PD, emb_LD, label_L, labelled_log_probs_LC,
        features_PF, features_LF, centre_CD, bias_C, held_out_log_probs_LC, foreign_emb_OD,
        partial(ridge, size.C), truth_P, test_emb_VD, test_labels_V,
    )  # fmt: skip
    return view if needs is None else only_declared(view, needs)


def ridge(n_classes: int, emb_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(weight_CD, bias_C) of least squares with a small penalty: a head that is fit in an instant."""
    x_NE = torch.cat([emb_ND.double(), torch.ones(len(emb_ND), 1, dtype=torch.float64)], 1)
    target_NC = torch.nn.functional.one_hot(labels_N, n_classes).double()
    weight_EC = torch.linalg.solve(x_NE.T @ x_NE + 0.1 * torch.eye(x_NE.shape[1]).double(), x_NE.T @ target_NC)
    return weight_EC[:-1].T.float(), weight_EC[-1].float()


def only_declared(view: PoolView, needs: Needs) -> PoolView:
    """The view with None in each field that `needs` does not declare."""
    return replace(view, **{name: None for need in undeclared(needs) for name in FIELDS_OF[need]})


def undeclared(needs: Needs) -> list[str]:
    return [need for need in FIELDS_OF if not getattr(needs, need)]
