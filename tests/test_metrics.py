import json
import sys
from math import log

import pytest
import torch
from conftest import command, lines_of, run_here

from al_bench import provenance
from al_bench.analysis import results
from al_bench.analysis.comparable import incomparable
from al_bench.errors import UserError
from al_bench.metrics import classification_metrics, loss_and_accuracy, measure, own_metrics, try_out

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


MINE = """
import torch


def top2(log_probs_VC, labels_V):
    return (log_probs_VC.topk(2, dim=1).indices == labels_V[:, None]).any(1).double().mean()


def greedy(log_probs_VC, labels_V):
    log_probs_VC.zero_()
    labels_V.zero_()
    return torch.tensor([1])


def absent(log_probs_VC, labels_V):
    return float("nan")


def two(log_probs_VC, labels_V):
    return log_probs_VC[:2, 0]


def three(log_probs_VC):
    return 3


def accuracy(log_probs_VC, labels_V):
    return 1.0


number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "metrics_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "metrics_of_mine", raising=False)  # an earlier test's
    return "metrics_of_mine"


def test_a_users_metric_stands_beside_the_others_by_hand(mine):
    log_probs, labels = torch.tensor(PROBS).log(), torch.tensor([0, 1, 1, 1])
    m = measure(log_probs, labels, own_metrics([f"{mine}.top2", f"{mine}.greedy"]))
    assert m.pop("top2") == 0.75 and m.pop("greedy") == 1  # of the fourth image, class 1 is the last guess
    assert m == classification_metrics(log_probs, labels)  # which saw what greedy has not overwritten
    assert measure(log_probs, labels, own_metrics(None)) == m


@pytest.mark.parametrize(
    "path, why",
    [
        ("metrics_of_mine.accuracy", "metrics: metrics_of_mine.accuracy: al_bench uses this name itself"),
        ("x.seconds", "metrics: x.seconds: al_bench uses this name itself"),  # a column of al_bench.read
        ("metrics_of_mine.number", "metrics=metrics_of_mine.number cannot be loaded: .*int"),
        ("metrics_of_mine.nothing", "metrics=metrics_of_mine.nothing cannot be loaded"),
        ("no_such_module.top2", "metrics=no_such_module.top2 cannot be loaded"),
    ],
)
def test_a_metric_that_cannot_be_used_is_told_with_its_path(mine, path, why):
    with pytest.raises(UserError, match=why):
        own_metrics([path])


def test_two_metrics_of_one_name_are_refused(mine):
    with pytest.raises(UserError, match="metrics: other.top2: two functions have this name"):
        own_metrics([f"{mine}.top2", "other.top2"])


@pytest.mark.parametrize(
    "name, why",
    [
        ("absent", "metric absent returned nan. It has to return a finite number"),
        ("two", r"metric two failed \(.*It gets log_probs_VC \[7, 3\] and labels_V \[7\], and returns one number"),
        ("three", r"metric three failed \(TypeError: three\(\) takes 1 positional argument"),
    ],
)
def test_a_metric_that_fails_is_named(mine, name, why):
    with pytest.raises(UserError, match=why):
        try_out(own_metrics([f"{mine}.{name}"]), 7, 3)


def test_a_metric_changes_no_other_number_and_is_measured_in_every_round(mine, tmp_path):
    plain, with_metric = (
        run_here(tmp_path / name, f"metrics={metrics}", "budget.rounds=1", "trainer.max_steps=5", "seed=4")
        for name, metrics in (("plain", "null"), ("own", f"[{mine}.top2]"))
    )
    lines = lines_of(with_metric.folder)
    assert [0 <= line["metrics"].pop("top2") <= 1 for line in lines] == [True, True]
    assert lines == lines_of(plain.folder)
    with pytest.raises(UserError, match=r"another configuration:\n  metrics: there None, asked \['metrics_of_mine"):
        run_here(tmp_path / "plain", f"metrics=[{mine}.top2]", "budget.rounds=1", "trainer.max_steps=5", "seed=4")
    code = (mine_file := tmp_path / f"{mine}.py").read_text()
    mine_file.write_text(code.replace("topk(2", "topk(3"))
    provenance._source.cache_clear()  # what a new process has not read yet
    with pytest.raises(UserError, match="began with other code of its metrics: metrics_of_mine changed since"):
        with_metric.finished()
    runs = [results.read(store.folder) for store in (plain, with_metric)]
    assert not incomparable(runs)  # they are compared by the metrics that both have


def test_a_metric_is_a_list_and_a_bad_one_stops_before_anything_is_trained(mine, tmp_path):
    single = command(tmp_path, f"metrics={mine}.top2")
    assert single.returncode == 1 and f"python -m al_bench 'metrics=[{mine}.top2]'" in single.stderr
    failed = command(tmp_path, f"metrics=[{mine}.three]")
    assert failed.returncode == 1 and "al_bench: metric three failed" in failed.stderr
    assert "test accuracy" not in failed.stdout  # the heading of the rounds
    assert not list(tmp_path.rglob("rounds.jsonl")) and len(list(tmp_path.rglob("run.json"))) == 1
