"""BoSS, the oracle line: its choice, and the wall that keeps its labels from every strategy."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import asked, lines_of, run_here, seeded

import al_bench
from al_bench.analysis import compare, figures, results
from al_bench.analysis.canvas import new_figure
from al_bench.check.command import load as load_to_check
from al_bench.check.rules import RULES, try_rule
from al_bench.data.oracle import Oracle
from al_bench.errors import UserError
from al_bench.models.logistic import fit_head
from al_bench.strategies import FIELDS_OF, ORACLES, PoolView, Size, load, needs, needs_of, oracles
from al_bench.strategies.example import example_view
from al_bench.strategies.oracles import accuracy_with, boss, by_class, typical_of_class

PACKAGE = Path(al_bench.__file__).parent
ON_PCA = ("model=pca", "budget.initial=20", "budget.query=10", "budget.rounds=2")


@needs(oracle=True)
def thief(view, k, rng):
    return view.truth_P.argsort()[:k]


# -- its choice --


def slow_accuracy(view, batch):
    """Least squares by normal equations, image by image, then the share of the test images that are right."""
    rows = [*zip(view.labelled_emb_LD.double().tolist(), view.labelled_labels_L.tolist(), strict=True)]
    rows += [(view.emb_PD[i].double().tolist(), int(view.truth_P[i])) for i in batch if view.truth_P[i] >= 0]
    width = len(rows[0][0]) + 1
    left = [[0.1 * (i == j) for j in range(width)] for i in range(width)]
    right = [[0.0] * view.n_classes for _ in range(width)]
    for x, label in rows:
        x = [*x, 1.0]
        for i in range(width):
            right[i][label] += x[i]
            for j in range(width):
                left[i][j] += x[i] * x[j]
    weight = torch.linalg.inv(torch.tensor(left, dtype=torch.float64)) @ torch.tensor(right, dtype=torch.float64)
    hits = 0
    for x, label in zip(view.test_emb_VD.double().tolist(), view.test_labels_V.tolist(), strict=True):
        hits += int((torch.tensor([*x, 1.0], dtype=torch.float64) @ weight).argmax()) == label
    return hits / len(view.test_labels_V)


def test_an_accuracy_agrees_with_a_slow_reference():
    view = example_view(Size(40, 6, 1, 4, 3, 3, 5), 2)
    noisy = replace(view, test_emb_VD=torch.randn(60, 3, generator=seeded()), test_labels_V=torch.arange(60) % 4)
    noisy.truth_P[3] = -1  # of no class
    for batch in ([0, 1, 2], [3, 4, 5, 6], [39, 20, 3]):
        assert accuracy_with(noisy, torch.tensor(batch)) == pytest.approx(slow_accuracy(noisy, batch))


def test_it_takes_the_best_of_the_batches_it_tried(monkeypatch):
    view, tried = example_view(Size(60, 6, 1, 3, 4, 4, 4), 5), []
    spread = replace(view, test_emb_VD=torch.randn(90, 4, generator=seeded(1)), test_labels_V=torch.arange(90) % 3)

    def noting(view, positions, score=accuracy_with):
        tried.append((score(view, positions), positions.tolist()))
        return tried[-1][0]

    monkeypatch.setattr(oracles, "accuracy_with", noting)
    chosen = boss(spread, 4, seeded(), batches=30)
    best = max(accuracy for accuracy, _ in tried)
    assert len(tried) == 30 and len({accuracy for accuracy, _ in tried}) > 1
    assert chosen.tolist() in [batch for accuracy, batch in tried if accuracy == best]


def test_the_class_with_the_fewest_labels_gets_its_best_image_computed_by_hand():
    truth_P = torch.tensor([0, 0, 1, 1, 2, 2])
    view = PoolView(6, 3, labelled_labels_L=torch.tensor([0, 0, 1]), truth_P=truth_P)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = by_class(view, torch.arange(6), 4, seeded(), lambda at: values[at])
    assert found[0] == 5 and set(found[1:3].tolist()) == {3, 4}  # class 2, then 1 and 2 with one label each
    assert found[3] in (1, 2)  # of two labels each, 2 has none left
    assert sorted(by_class(view, torch.arange(6), 6, seeded(), lambda at: values[at]).tolist()) == [0, 1, 2, 3, 4, 5]


def test_images_of_no_class_come_last():
    truth_P = torch.tensor([-1, 0, -1, 1, -1, 1])
    view = PoolView(6, 2, labelled_labels_L=torch.tensor([0, 0, 1]), truth_P=truth_P)
    for k, known in ((2, {3, 5}), (3, {1, 3, 5}), (5, {1, 3, 5})):
        found = by_class(view, torch.arange(6), k, seeded(), lambda at: torch.zeros(len(at)).double()).tolist()
        assert set(found[: len(known)]) == known and len(set(found)) == k


def test_typical_of_class_takes_the_middle_of_each_class():
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 13.0, 14.0])
    truth_P = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    view = PoolView(8, 2, labelled_labels_L=truth_P[:0], features_PF=line[:, None], truth_P=truth_P)
    assert sorted(typical_of_class(view, 2, seeded()).tolist()) == [1, 5]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_it_obeys_the_rules(rule):
    (function, S) = load_to_check("oracle/boss", ["batches=10"])[0]
    result, remark = try_rule(rule, function, S)
    assert result != "FAILED", remark


@pytest.mark.parametrize("options", [{"batches": 9}, {"largest": 0}])
def test_a_bad_option_is_refused(options):
    with pytest.raises(ValueError, match="batches has to be 10 or more, and largest 1 or more"):
        boss(example_view(Size(60, 6, 1, 3, 4, 4, 4), 5), 4, seeded(), **options)


# -- the wall --


def test_no_other_strategy_gets_at_the_labels():
    boss_settings = {"name": "boss", "_target_": ORACLES[0]}
    stolen = {"name": "thief", "_target_": "test_oracles.thief"}
    behind = {"_target_": "al_bench.strategies.ensembles.progressive_filter", "ensemble": [ORACLES[0]]}
    margin = {"name": "mine", "_target_": "al_bench.strategies.uncertainty.margin", "filter": behind}
    within = {"name": "mine", "_target_": "al_bench.strategies.ensembles.select_al", "high": ORACLES[0]}
    for settings in (stolen, stolen | {"oracle": True}, margin, margin | {"oracle": True}, within):
        with pytest.raises(UserError, match="asks for labels that were not acquired. Only al_bench.strategies.oracles"):
            load(settings)
    for settings in (boss_settings, margin | {"filter": None, "oracle": True}):
        with pytest.raises(UserError, match="oracle=true marks a strategy that sees all labels, and no other"):
            load(settings)
    assert load(boss_settings | {"oracle": True}).needs.oracle
    for stage in ({"strategy": "boss"}, {"_target_": ORACLES[0], "oracle": True}):
        with pytest.raises(UserError, match="is no strategy of al_bench that can be a stage"):
            load({"name": "mine", "schedule": [stage]})
    with pytest.raises(UserError, match="oracle=true marks a strategy that sees all labels, and no other"):
        load({"name": "mine", "schedule": [{"_target_": ORACLES[0]}]})


def test_only_boss_declares_the_need_and_only_the_loop_asks_for_all_labels():
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [name for name, text in sources.items() if "oracle=True" in text] == ["strategies/oracles.py"]
    assert [name for name, text in sources.items() if ".reveal_all(" in text] == ["loop.py"]
    assert needs_of(boss).oracle and len(ORACLES) == 1


def test_its_honest_strategies_do_not_see_the_labels(monkeypatch):
    seen = []

    @needs(predictions=False)
    def looks(view, k, rng):
        seen.extend(getattr(view, name) for name in FIELDS_OF["oracle"])
        return torch.arange(k)

    monkeypatch.setattr(oracles, "HONEST", (looks,))
    boss(example_view(Size(60, 6, 1, 3, 4, 4, 4), 5), 4, seeded(), batches=3)
    assert seen == [None] * 3


def test_it_is_not_among_the_strategies_of_a_sweep_over_all():
    shown = {path.stem for path in (PACKAGE.parent / "conf" / "strategy").glob("*.yaml")}
    assert "boss" not in shown and asked("strategy=oracle/boss", *ON_PCA).strategy["oracle"] is True


def test_other_runs_never_reveal_the_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(Oracle, "reveal_all", lambda self: pytest.fail("somebody looked behind the wall"))
    run_here(tmp_path, *ON_PCA, "strategy=margin")


def test_features_have_to_stay_the_same(tmp_path):
    with pytest.raises(UserError, match="strategy boss trains last layers on features that stay the same"):
        run_here(tmp_path, "strategy=oracle/boss")


# -- a run and its report --


def test_it_beats_the_others_and_a_report_ranks_it_nowhere(tmp_path, caplog):
    for name in ("random", "margin", "oracle/boss"):
        for seed in (0, 1):
            run_here(tmp_path, *ON_PCA, f"strategy={name}", f"seed={seed}")
    assert "This is an oracle line" in caplog.text
    (c,) = compare.comparisons(results.find(tmp_path / "default"))
    assert list(c.runs) == ["random", "margin"] and list(c.versus_random) == ["margin"]
    (line,) = [note for note in c.notes if note.startswith("oracle: ")]
    mean = float(re.search(r"is ([\d.]+)", line)[1])
    assert mean > 100 * max(c.area(name).mean() for name in c.runs) and "(2 seeds)" in line
    ax = new_figure().subplots()
    figures.learning_curves(c).draw(ax)
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["random", "margin", "boss (oracle)"]
    assert any(np.allclose(drawn.get_ydata(), 100 * c.curve("boss").mean(0)) for drawn in ax.get_lines())
    assert [run.strategy for run in c.all_runs] == ["random"] * 2 + ["margin"] * 2 + ["boss"] * 2


def test_a_resumed_line_equals_an_uninterrupted_one(tmp_path):
    whole = run_here(tmp_path / "whole", *ON_PCA, "strategy=oracle/boss", "strategy.batches=10")
    half = run_here(tmp_path / "half", *ON_PCA, "strategy=oracle/boss", "strategy.batches=10")
    lines = half.rounds_path.read_text().splitlines(keepends=True)
    half.rounds_path.write_text("".join(lines[:1]))
    run_here(tmp_path / "half", *ON_PCA, "strategy=oracle/boss", "strategy.batches=10")
    assert lines_of(half.folder) == lines_of(whole.folder)


def test_the_refit_head_is_the_logistic_one():
    emb_ND, labels_N = torch.randn(30, 4, generator=seeded()), torch.arange(30) % 3
    weight_CD, bias_C = fit_head(3, 1e-4, emb_ND, labels_N)
    assert weight_CD.shape == (3, 4) and weight_CD.sum(0).abs().max() < 1e-3 and abs(float(bias_C.sum())) < 1e-3
