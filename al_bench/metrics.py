"""Metrics of predictions whose labels are known. V images, C classes."""

from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

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


def loss_and_accuracy(log_probs_VC: Tensor, labels_V: Tensor) -> dict[str, float]:
    hits_V = log_probs_VC.argmax(1) == labels_V
    return {"loss": _nll(log_probs_VC, labels_V), "accuracy": hits_V.double().mean().item()}


def _nll(log_probs_VC: Tensor, labels_V: Tensor) -> float:
    return F.nll_loss(log_probs_VC.clamp_min(MIN_LOG_PROB), labels_V).item()
