"""Metrics of predictions whose labels are known: al_bench's own and the user's. V images, C classes.

A new metric is a function (log_probs_VC, labels_V) -> float. The key `metrics` names it by its dotted path. One of
al_bench's own is a line in classification_metrics and, where its values are bounded, one in records.BOUNDS.
"""

from collections.abc import Callable, Iterable
from math import isfinite, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from al_bench.errors import UserError, failure_of, users_code
from al_bench.imports import function
from al_bench.records import BOUNDS

Metric = Callable[[Tensor, Tensor], float]
COLUMNS = ("study", "dataset", "model", "budget", "strategy", "seed", "round", "labels", "seconds")
TAKEN = {*BOUNDS, *COLUMNS}  # names of al_bench's own metrics, and of the other columns of al_bench.read

# A probability of 0 for the true class counts as the smallest normal float32, so that the mean stays finite.
MIN_LOG_PROB = log(torch.finfo(torch.float32).tiny)


def classification_metrics(log_probs_VC: Tensor, labels_V: Tensor) -> dict[str, Any]:
    """Return the metrics of a test set:

    accuracy
    nll                 mean negative log-likelihood, in nats
    ece                 expected calibration error (Guo et al., 2017: 15 bins, L1)
    brier               Brier score (Brier, 1950: the sum over classes, 0 to 2)
    macro_f1
    per_class           recall of each class, None for a class that the test set lacks
    balanced_accuracy   mean recall of the other classes
    worst_class         lowest recall of the other classes
    """
    n_classes = log_probs_VC.shape[1]
    probs_VC, predicted_V = log_probs_VC.exp(), log_probs_VC.argmax(1)
    recall_C = multiclass_accuracy(predicted_V, labels_V, n_classes, average=None)
    seen_C = labels_V.bincount(minlength=n_classes) > 0
    per_class = [r if seen else None for r, seen in zip(recall_C.tolist(), seen_C.tolist(), strict=True)]
    return {
        "accuracy": (predicted_V == labels_V).double().mean().item(),
        "nll": _nll(log_probs_VC, labels_V),
        "ece": multiclass_calibration_error(probs_VC, labels_V, n_classes, n_bins=15).item(),
        "brier": (probs_VC - F.one_hot(labels_V, n_classes)).square().sum(1).mean().item(),
        "macro_f1": multiclass_f1_score(predicted_V, labels_V, n_classes, average="macro").item(),
        "balanced_accuracy": recall_C[seen_C].mean().item(),
        "worst_class": recall_C[seen_C].min().item(),
        "per_class": per_class,
    }


def own_metrics(paths: Iterable[str] | None) -> dict[str, Metric]:
    """The user's functions at these dotted paths, each under its last part. Raises UserError."""
    found: dict[str, Metric] = {}
    for path in paths or ():
        name = path.rpartition(".")[2]
        if name in TAKEN or name in found:
            whose = "al_bench uses this name itself" if name in TAKEN else "two functions have this name"
            raise UserError(f"metrics: {path}: {whose}. Give the function another name.")
        found[name] = function("metrics", path)
    return found


def measure(log_probs_VC: Tensor, labels_V: Tensor, own: dict[str, Metric]) -> dict[str, Any]:
    """al_bench's metrics, then the user's. Raises UserError where one of the user's fails or is no finite number."""
    values = {name: _value(name, metric, log_probs_VC, labels_V) for name, metric in own.items()}
    return classification_metrics(log_probs_VC, labels_V) | values


def try_out(own: dict[str, Metric], n_test: int, n_classes: int) -> None:
    """Let the user's metrics measure made-up predictions and labels of all classes. A mistake is told before a fit."""
    labels_V = torch.arange(n_test) % n_classes
    log_probs_VC = torch.rand(n_test, n_classes, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    for name, metric in own.items():
        _value(name, metric, log_probs_VC, labels_V)


def _value(name: str, metric: Metric, log_probs_VC: Tensor, labels_V: Tensor) -> float:
    shapes = f"log_probs_VC {list(log_probs_VC.shape)} and labels_V {list(labels_V.shape)}"
    with users_code(failure_of(f"metric {name}", f" It gets {shapes}, and returns one number.")):
        value = float(metric(log_probs_VC.clone(), labels_V.clone()))  # clones: it may change them
    if not isfinite(value):
        raise UserError(f"metric {name} returned {value}. It has to return a finite number.")
    return value


def loss_and_accuracy(log_probs_VC: Tensor, labels_V: Tensor) -> dict[str, float]:
    hits_V = log_probs_VC.argmax(1) == labels_V
    return {"loss": _nll(log_probs_VC, labels_V), "accuracy": hits_V.double().mean().item()}


def _nll(log_probs_VC: Tensor, labels_V: Tensor) -> float:
    return F.nll_loss(log_probs_VC.clamp_min(MIN_LOG_PROB), labels_V).item()
