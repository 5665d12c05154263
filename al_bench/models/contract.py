"""Builds the net that a configuration names, and checks one of the user's own against the contract of nets.py."""

import torch
from torch import nn

from al_bench.config import ModelConfig
from al_bench.data import Dataset
from al_bench.errors import UserError, failure_of, users_code
from al_bench.imports import function
from al_bench.models.dropout import run

LINEAR_HEAD = "al_bench.models.nets.linear_head"  # the one net for features computed elsewhere
MEMBERS = ("head_hidden_size", "forward_features", "forward_head", "get_classifier")


def build(c: ModelConfig, dataset: Dataset) -> nn.Module:
    """What model._target_(c, dataset) returns. Raises UserError where a user's function fails or its net is no use."""
    if dataset.images.ndim == 2 and c._target_ != LINEAR_HEAD:
        raise UserError(
            f"model={c.name} takes images, and dataset {dataset.name} holds features. Leave out model=...: "
            "dataset=features sets model=linear."
        )
    make = function("model._target_", c._target_)
    if c._target_.startswith("al_bench."):
        return make(c, dataset)
    with users_code(failure_of(f"model {c.name}: {c._target_}", " It is called as (config.model, dataset).")):
        net = make(c, dataset)
    with users_code(failure_of(f"model {c.name}: its net", f" It gets uint8 {list(dataset.images[:2].shape)}.")):
        why = misfit(net, dataset)
    if why:
        raise UserError(f"model {c.name}: {why}")
    return net


def misfit(net: nn.Module, dataset: Dataset) -> str | None:
    """How a net departs from the contract, tried on two images; None where it does not."""
    if not isinstance(net, nn.Module):
        return f"its function returned {type(net).__name__}, and a torch.nn.Module is wanted."
    if missing := [name for name in MEMBERS if not hasattr(net, name)]:
        return (
            f"the net lacks {', '.join(missing)}. Inherit from al_bench.models.nets.SimpleCNN, or write them: the "
            "docstring of al_bench/models/nets.py says what each returns."
        )
    if not isinstance(head := net.get_classifier(), nn.Linear):
        return f"get_classifier() returned {type(head).__name__}, and the last layer has to be an nn.Linear."
    images = dataset.images[:2]
    was_training = net.training
    net.eval()
    with torch.no_grad():
        features = net.forward_features(images)
        emb_BD = net.forward_head(features, pre_logits=True)
        wanted = [len(images), net.head_hidden_size]
        if list(emb_BD.shape) != wanted:
            return (
                f"forward_head(features, pre_logits=True) has the shape {list(emb_BD.shape)}, and {wanted} is wanted: "
                "images, head_hidden_size. It is what the last layer sees."
            )
        logits_BC = head(emb_BD)
        if list(logits_BC.shape) != [len(images), dataset.n_classes]:
            return f"the last layer has {head.out_features} outputs, and there are {dataset.n_classes} classes."
        if not torch.allclose(net.forward_head(features), logits_BC, rtol=1e-3, atol=1e-3):
            return "forward_head(features) gives other outputs than the last layer on the embedding."
        if hasattr(net, "layers") and not torch.allclose(run(net.layers(), images), logits_BC, rtol=1e-3, atol=1e-3):
            return "layers(), run one after the other, give other outputs than forward_features and forward_head."
    net.train(was_training)
    return None
