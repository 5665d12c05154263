import json
from math import log

import pytest
import torch

from al_bench.metrics import classification_metrics, loss_and_accuracy

PROBS = [[0.68, 0.2, 0.12], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.08, 0.72]]


def test_every_metric_matches_values_computed_by_hand():
    m = classification_metrics(torch.tensor(PROBS).log(), torch.tensor([0, 1, 1, 1]))  # predicted: 0, 1, 0, 2
    assert m["accuracy"] == 0.5
    assert m["nll"] == pytest.approx(-(log(0.68) + log(0.6) + log(0.3) + log(0.08)) / 4, rel=1e-6)
    # 15 bins: 0.68 and 0.72 share one, and one of them is right; 0.6 is right, 0.5 is wrong.
    assert m["ece"] == pytest.approx((abs(1.4 - 1) + abs(0.6 - 1) + abs(0.5 - 0)) / 4, rel=1e-5)
    # 0.1024 + 0.04 + 0.0144, 0.01 + 0.16 + 0.09, 0.25 + 0.49 + 0.04, 0.04 + 0.8464 + 0.5184
    assert m["brier"] == pytest.approx((0.1568 + 0.26 + 0.78 + 1.4048) / 4, rel=1e-6)
    # class 0: precision 1/2, recall 1; class 1: precision 1, recall 1/3; class 2: predicted once, never true
    assert m["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, rel=1e-6)
    assert m["per_class"] == [1.0, pytest.approx(1 / 3), None]
    assert (m["balanced_accuracy"], m["worst_class"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))  # of two classes


def test_validation_reports_the_same_loss_and_accuracy():
    log_probs, labels = torch.tensor(PROBS).log(), torch.tensor([0, 1, 1, 1])
    m, v = classification_metrics(log_probs, labels), loss_and_accuracy(log_probs, labels)
    assert v == {"loss": m["nll"], "accuracy": m["accuracy"]}


def test_certain_predictions_right_and_wrong_give_numbers_that_json_can_hold():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()  # -inf beside 0
    m = classification_metrics(certain, torch.tensor([0, 1]))
    ones = dict.fromkeys(("accuracy", "macro_f1", "balanced_accuracy", "worst_class"), 1)
    assert m == {"nll": 0, "ece": 0, "brier": 0, "per_class": [1, 1]} | ones
    m = classification_metrics(certain, torch.tensor([0, 0]))
    assert m["nll"] == pytest.approx(126 * log(2) / 2)  # 2^-126, the smallest normal float32, replaces 0
    assert (m["accuracy"], m["ece"], m["brier"], m["per_class"]) == (0.5, 0.5, 1, [0.5, None])
    json.dumps([m, loss_and_accuracy(certain, torch.tensor([0, 0]))], allow_nan=False)


def test_an_ordinary_loss_is_not_touched_by_that_floor():
    log_probs = torch.tensor([[-80.0, 0.0]])
    assert classification_metrics(log_probs, torch.tensor([0]))["nll"] == 80
