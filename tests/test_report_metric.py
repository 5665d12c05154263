"""Reports by another metric than accuracy: what is better, where labels are counted to, how values are written."""

import csv
import json
import re

import numpy as np
import pytest
from test_report import the_study, two_arms, write_run

from al_bench.analysis import canvas, compare, figures, report, results, tables, verdict
from al_bench.analysis.metric import ACCURACY, METRICS, named


def set_metric(root, name, of, only=lambda path: True):
    """Give every record a metric, computed from its accuracy."""
    for path in filter(only, root.rglob("rounds.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["metrics"][name] = of(line["metrics"]["accuracy"])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_of_a_loss_less_is_better_and_the_verdict_is_the_same(tmp_path):
    two_arms(tmp_path, n=6)
    set_metric(tmp_path, "nll", lambda accuracy: round(2 - 2 * accuracy, 9))
    by_accuracy, by_nll = the_study(tmp_path), the_study(tmp_path, metric=METRICS["nll"])
    a, n = by_accuracy.versus_random["margin"], by_nll.versus_random["margin"]
    assert n.area.mean == pytest.approx(-2 * a.area.mean) and n.significant and n.test.p == a.test.p
    # Random reaches 0.70 at least with every seed, which is a loss of 0.6.
    assert by_nll.target == 0.6 and n.efficiency.savings == pytest.approx(a.efficiency.savings)
    (words,) = verdict.sentences(by_nll)
    assert (
        words.startswith("margin is better than random: needs ")
        and "to reach 0.6 nats; -0.158 nats of mean NLL" in words
    )
    row = tables.row(by_nll, "margin")
    assert row["final_nll"] == pytest.approx(2 - 2 * tables.row(by_accuracy, "margin")["final_accuracy"])
    assert row["labels_to_target_median"] == tables.row(by_accuracy, "margin")["labels_to_target_median"]


def test_a_strategy_with_a_higher_loss_is_worse_and_comes_last(tmp_path):
    two_arms(tmp_path, n=7)
    for seed in range(7):
        write_run(tmp_path, "entropy", seed, (0.5, 0.5 + 0.002 * seed, 0.6))
    set_metric(tmp_path, "brier", lambda accuracy: 1 - accuracy)
    found = the_study(tmp_path, metric=METRICS["brier"])
    assert found.best_first == ["margin", "entropy"]
    assert verdict.sentences(found)[1].startswith("entropy is worse than random: ")
    matrix_MM = figures.penalty_matrix(found).draw.keywords["matrix_MM"]
    names = figures.rivals(found)
    beats = {(a, b) for i, a in enumerate(names) for j, b in enumerate(names) if matrix_MM[i, j] > 0}
    assert ("margin", "random") in beats and ("entropy", "random") not in beats


def test_shares_are_in_per_cent_and_others_as_they_are_recorded(tmp_path):
    two_arms(tmp_path, n=6)
    set_metric(tmp_path, "macro_f1", lambda accuracy: accuracy - 0.1)
    set_metric(tmp_path, "nll", lambda accuracy: round(2 - 2 * accuracy, 9))
    shares, nats = (the_study(tmp_path, metric=METRICS[name]) for name in ("macro_f1", "nll"))
    of_random, of_margin = tables.section(shares).table
    assert of_random["final macro F1"] == "62.5%" and of_margin["minus random (points)"].startswith("+7.9 [+7")
    of_random, of_margin = tables.section(nats).table
    assert of_random["final NLL (nats)"] == "0.55" and of_margin["minus random (nats)"].startswith("-0.158 [-0.16")
    assert shares.target == 0.6 and "Target: 60.0%, the highest whole per cent" in verdict.method_notes(shares)[1]
    assert "Target: 0.6 nats, the lowest value of two digits" in verdict.method_notes(nats)[1]
    assert "running minimum" in verdict.method_notes(nats)[1]


@pytest.mark.parametrize(
    "metric, scores, target",
    [
        (ACCURACY, [0.7, 0.701, 0.7099], [0.7] * 3),
        (
            METRICS["nll"],
            [-0.413, -0.41, -0.0017000000000000001, -12.34, -0.0],
            [0.42, 0.41, 0.0018, 13.0, 0.0],
        ),  # a higher loss is easier to reach
        (named("f"), [1234.0, -1234.0, 0.00567], [1200.0, -1300.0, 0.0056]),
    ],
)
def test_a_target_is_a_round_number_that_is_reached(metric, scores, target):
    assert [metric.rounded_target(score) for score in scores] == pytest.approx(target)


def test_the_report_of_a_metric_lies_beside_that_of_accuracy_and_names_it(tmp_path, capsys):
    for dataset in ("digits", "mnist"):
        two_arms(tmp_path, n=6, dataset=dataset)
    set_metric(tmp_path, "nll", lambda accuracy: round(2 - 2 * accuracy, 9))
    first = report.write(tmp_path)
    before = first.read_bytes()
    assert report.main([str(tmp_path), "--metric", "nll"]) == 0
    page = tmp_path / "report-nll" / "index.html"
    assert capsys.readouterr().out.startswith(f"Report: {page}\n") and first.read_bytes() == before
    text = page.read_text()
    assert "report by NLL</title>" in text and "judged by NLL, lower is better; " in text
    assert re.search(r"margin: the mean is below random&#39;s on 2 of 2 data sets, -0\.15[78] nats on average\.", text)
    assert "Cost against NLL" in text and "Test NLL (nats)" in text and "mean NLL over labels (nats)" in text
    assert "to show a difference of 0.0075 nats: " in text  # 1% of random's mean, 0.75
    setting = "study / digits / small_cnn / 10+2x10"
    by_nll = f"{setting}, judged by NLL (lower is better)"
    assert (page.parent / "verdict.txt").read_text().startswith(f"{by_nll}:\n  margin is better than random: ")
    assert (page.parent / "summary.md").read_text().startswith(f"### {report.md(by_nll)}\n")
    assert (first.parent / "verdict.txt").read_text().startswith(f"{setting}:\n")
    assert "judged by" not in first.read_text()
    rows = list(csv.DictReader((page.parent / "summary.csv").read_text().splitlines()))
    assert float(rows[1]["mean_nll_over_labels"]) < float(rows[0]["mean_nll_over_labels"])
    assert "accuracy" not in "".join(rows[0])


def test_a_metric_of_the_users_own_is_better_where_it_is_higher_or_as_they_say(tmp_path):
    two_arms(tmp_path, n=6)
    set_metric(tmp_path, "my_errors", lambda accuracy: 100 - 100 * accuracy)
    better, worse = (report.write(tmp_path, metric=named("my_errors", lower)) for lower in (True, False))
    assert better == tmp_path / "report-my_errors-lower" / "index.html"
    assert worse == tmp_path / "report-my_errors" / "index.html"
    assert ", judged by my_errors (lower is better):\n" in (better.parent / "verdict.txt").read_text()
    assert ", judged by my_errors (higher is better):\n" in (worse.parent / "verdict.txt").read_text()
    assert "margin is better than random: " in better.read_text()
    assert "margin is worse than random: " in worse.read_text()
    found = the_study(tmp_path, metric=named("my_errors", lower_is_better=True))
    assert "better than random: needs" in verdict.sentences(found)[0]
    assert "; -7.88 in mean my_errors over the labels" in verdict.sentences(found)[0]


@pytest.mark.parametrize(
    "arguments, n_hints",
    [
        (["--metric", "my_errors"], 1),
        (["--metric", "my_errors", "--lower-is-better"], 0),
        (["--metric", "worst_class"], 0),
        ([], 0),
    ],
)
def test_whoever_leaves_the_direction_of_their_own_metric_out_is_told_which_is_taken(
    tmp_path, arguments, n_hints, capsys
):
    two_arms(tmp_path, n=2)
    set_metric(tmp_path, "my_errors", lambda accuracy: 100 - 100 * accuracy)
    assert report.main([str(tmp_path), *arguments]) == 0
    hint = "al_bench: higher values of my_errors are taken as better. If lower ones are, add --lower-is-better.\n"
    assert capsys.readouterr().err == n_hints * hint
    assert not any("--lower" in path.read_text() for path in tmp_path.glob("report*/verdict.txt"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["--metric", "f1"],
            "--metric f1: no run has it as one number in each round. These runs have accuracy, ece, wo",
        ),
        (
            ["--metric", "per_class"],
            "--metric per_class: no run has it as one number in each round. These runs have acc",
        ),
        (["--lower-is-better"], "--lower-is-better: of accuracy higher is better"),
        (["--metric", "worst_class", "--lower-is-better"], "--lower-is-better: of worst_class higher is better"),
        (["--metric", "worst_class", "--target", "80"], "--target 80.0: worst class's recall is between 0 and 1"),
        (["--metric", "ece", "--target", "nan"], "--target nan: ECE is a finite number"),
    ],
)
def test_a_metric_that_nobody_recorded_is_told_with_those_that_are_there(tmp_path, arguments, words, capsys):
    two_arms(tmp_path, n=2)
    assert report.main([str(tmp_path), *arguments]) == 1
    said = capsys.readouterr().err
    assert f"al_bench: {words}" in said and not list(tmp_path.glob("report*"))
    no_run = "no run has it" in words
    assert said.endswith(" set metrics=[...] and study=NAME, a new name.\n") == no_run
    assert ("Metrics are recorded while a run trains" in said) == no_run


def test_runs_without_the_metric_are_left_out_by_name(tmp_path):
    two_arms(tmp_path, n=3)
    write_run(tmp_path, "random", 0, (0.9,), budget="full")
    set_metric(
        tmp_path,
        "top2",
        lambda accuracy: accuracy,
        lambda path: path.parent.name != "seed=1" and "full" not in str(path),
    )
    found = the_study(tmp_path, metric=named("top2"))
    assert found.seeds("margin") == [0, 2] and found.full is None
    assert dict(found.left_out) == dict.fromkeys(
        ["random, seed 1", "margin, seed 1", "full data, random, seed 0"], "its records do not have top2 in every round"
    )
    (note,) = (note for note in found.notes if "top2" in note)
    assert note.startswith("3 of 7 finished runs do not have top2. Metrics are recorded while a run trains: ")
    assert not any("while a run trains" in note for note in the_study(tmp_path).notes)


def test_every_figure_can_be_drawn_by_a_loss(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "entropy", 0)
    write_run(tmp_path, "random", 0, (0.9,), budget="full")
    set_metric(tmp_path, "nll", lambda accuracy: round(2 - 2 * accuracy, 9))
    page = report.write(tmp_path, metric=METRICS["nll"])
    assert report.NOT_DRAWN not in page.read_text()
    makers = figures.makers(the_study(tmp_path, metric=METRICS["nll"]))
    makers["retraining-1-entropy"]().draw(ax := canvas.new_figure().subplots())
    assert ax.get_ylabel() == "Test NLL (nats)" and ax.get_lines()[1].get_ydata()[0] == pytest.approx(0.2)


def test_the_curve_of_the_metric_itself_is_not_drawn_twice(tmp_path):
    two_arms(tmp_path, n=2)
    ece, accuracy = the_study(tmp_path, metric=METRICS["ece"]), the_study(tmp_path)
    assert figures.calibration(ece) is None and figures.calibration(accuracy) and figures.worst_class(ece)


@pytest.mark.parametrize(
    "stressor, why",
    [
        ("imbalance: 100.0", "its classes have a long tail (stressor.imbalance=100). "),
        ("foreign: 2", "it holds images of no class (stressor.foreign=2). "),
        ("imbalance: many", None),
        ("copies: 1", None),
    ],
)
def test_where_accuracy_may_mislead_the_page_says_so_and_which_metric_to_ask_for(tmp_path, stressor, why):
    two_arms(tmp_path, n=2)
    for path in tmp_path.rglob("config.yaml"):
        path.write_text(path.read_text().replace("stressor: {copies: 1}", f"stressor: {{copies: 1, {stressor}}}"))
    found = the_study(tmp_path)
    notes = [note for note in found.notes if "mislead" in note]
    assert len(notes) == bool(why) and len(found.versus_random) == 1
    if why:
        assert why in notes[0] and notes[0].endswith("al-bench report ... --metric worst_class.")
        assert not any("mislead" in note for note in the_study(tmp_path, metric=METRICS["worst_class"]).notes)


def test_over_several_studies_the_lower_loss_has_the_better_rank(tmp_path):
    for i in range(7):
        two_arms(tmp_path, n=2, gain=0.02 * (i + 1), dataset=f"data_{i}")
        for seed in range(2):
            write_run(tmp_path, "entropy", seed, (0.5, 0.5, 0.5), dataset=f"data_{i}")
    set_metric(tmp_path, "nll", lambda accuracy: round(2 - 2 * accuracy, 9))
    found = compare.across(compare.comparisons(results.find(tmp_path), METRICS["nll"]))
    assert found.names == ["random", "entropy", "margin"] and found.ranks.mean_M.tolist() == [2, 3, 1]
    words = verdict.across_sentences(found)
    assert words[1].startswith("margin: the mean is below random's on 7 of 7 data sets, -0.1")
    assert "better by more than 0.0079 nats with probability 1.00" in words[1]  # 1% of random's mean, 0.79
    assert words[0].startswith("entropy: the mean is below random's on 0 of 7 data sets, +")
    assert np.isfinite(found.area_BM).all()
