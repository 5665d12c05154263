"""Numbers and words of the verdict on runs written by hand: each where a likely slip would give another one."""

import json
from statistics import median

import pytest
from test_report import the_study, two_arms, write_run

from al_bench.analysis import compare, power, results, tables, verdict
from al_bench.analysis.stats import Efficiency


def cut_to_two(root):
    """Random with 10, 20 and 30 labels, compared on 10 and 20: entropy has no more."""
    write_run(root, "random")
    write_run(root, "entropy", accuracy=(0.5, 0.6), labels=(10, 20))
    return the_study(root)


def test_the_area_is_one_over_labels_and_not_over_rounds(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "random", seed, (0.5, 0.5, 0.5), labels=(10, 20, 40))
        write_run(tmp_path, "margin", seed, (0.5, 0.6, 0.6), labels=(10, 20, 40))
    found = the_study(tmp_path)
    # 0, g, g: half of g over the first third of the labels, g over the rest.
    assert found.area("margin") == pytest.approx([0.5 + 0.1 * 5 / 6] * 2)
    assert found.versus_random["margin"].area.mean == pytest.approx(0.1 * 5 / 6)


def test_what_is_below_random_is_said_to_be_worse(tmp_path):
    two_arms(tmp_path, n=6, gain=-0.1)
    words, misses = verdict.sentences(the_study(tmp_path))
    assert misses.startswith("The target of 70% is chosen such that random reaches it with every seed.")
    assert words.startswith("margin is worse than random: reached 70% in 0 of 6 pairs; -7.1 points")


def test_the_interval_of_labels_in_excess_runs_from_few_to_many():
    e = Efficiency(6, 6, 0, 0, 0, mean=0.5, low=0.4, high=0.8, level=0.95)  # 1 / 0.4 = 2.5 times random's, 1.25 times
    assert verdict.fewer_labels(e) == ("100% [25, 150]", "more")


def test_final_is_the_last_accuracy_and_not_the_best(tmp_path):
    write_run(tmp_path, "random", 0, (0.5, 0.8, 0.7))
    assert tables.row(the_study(tmp_path), "random")["final_accuracy"] == 0.7


def test_labels_to_the_target_are_those_of_the_first_time(tmp_path):
    write_run(tmp_path, "random", 0, (0.5, 0.8, 0.6, 0.8), labels=(10, 20, 30, 40))
    write_run(tmp_path, "margin", 0, (0.5, 0.6, 0.7, 0.8), labels=(10, 20, 30, 40))
    found = the_study(tmp_path, 0.8)
    assert [tables.row(found, name)["labels_to_target_median"] for name in ("random", "margin")] == [20, 40]


def test_the_target_is_what_random_reaches_at_its_best(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "random", seed, (0.5, 0.75, 0.7))
        write_run(tmp_path, "margin", seed, (0.5, 0.75, 0.8))
    assert the_study(tmp_path).target == 0.75


def test_the_row_of_the_penalty_matrix_beats_the_column(tmp_path):
    for dataset in ("a", "b"):
        two_arms(tmp_path, n=6, dataset=dataset)
    found = compare.across(compare.comparisons(results.find(tmp_path)))
    assert found.names == ["random", "margin"]
    assert found.penalty_MM.ravel() == pytest.approx([0, 0, 2 / 3, 0])  # in round 0 all have the same set


def test_the_planner_takes_the_median_spread_and_counts_the_family(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "random", seed)
        for name, sd in {"margin": 0.01, "entropy": 0.02, "badge": 0.06}.items():
            write_run(tmp_path, name, seed, [a + (seed - 1) * sd for a in (0.5, 0.6, 0.7)])
    found = the_study(tmp_path)
    assert sorted(a.area.sd for a in found.versus_random.values()) == pytest.approx([0.01, 0.02, 0.06])
    n_seeds = [power.seeds_needed(median((0.01, 0.02, 0.06)), d, 0.05 / 3) for d in (0.005, 0.01, 0.02)]
    expected = "0.5 points: {}; 1.0 points: {}; 2.0 points: {} (about three times in four".format(*n_seeds)
    assert f"to show a difference of {expected}" in verdict.planner(found)
    assert "0.0 points: more than 10,000 (" in verdict.planner(found, (0.02,))


def test_without_a_spread_there_is_nothing_to_plan_with(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "margin", seed, (0.5, 0.7, 0.8))
    assert verdict.planner(the_study(tmp_path)) == ""


def test_acquired_is_what_the_fit_at_the_last_compared_count_had(tmp_path):
    found = cut_to_two(tmp_path)
    assert found.labels_R.tolist() == [10, 20]
    assert tables.acquired_by(found, found.runs["random"][0]).tolist() == list(range(10))  # those of round 0


def test_seconds_are_those_up_to_the_last_compared_count(tmp_path):
    row = tables.row(cut_to_two(tmp_path), "random")
    assert (row["seconds_fit"], row["seconds_predict"]) == (4, 2)


def test_the_balance_of_what_was_acquired_leaves_the_initial_set_out(tmp_path):
    folder = write_run(tmp_path, accuracy=(0.5, 0.6), labels=(10, 30))
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line, counts in zip(lines, ([10, 0], [15, 15]), strict=True):
        line["class_counts"] = counts
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = the_study(tmp_path)
    assert tables.acquired_per_class(found, found.runs["random"][0]).tolist() == [5, 15]
    assert tables.row(found, "random")["label_entropy"] == pytest.approx(0.8113, abs=5e-5)  # of 1/4 and 3/4, in bits


def test_the_noise_lies_where_the_second_random_arm_does(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "random_control", seed, (0.5, 0.6 + 0.02 + 0.01 * seed, 0.7))
    low_R, high_R = compare.noise(the_study(tmp_path))
    assert (low_R + high_R) / 2 == pytest.approx([0, 0.03, 0], abs=1e-9)


def test_where_a_strategy_looks_at_fixed_features_their_settings_are_its_own(tmp_path):
    two_arms(tmp_path, n=3)
    for seed in range(3):
        path = write_run(tmp_path, "typiclust", seed, features="pca") / "config.yaml"
        path.write_text(path.read_text().replace("width: 64", f"width: {32 if seed == 1 else 64}"))
    found = the_study(tmp_path)
    why = "other settings than most runs of typiclust: features.width=32 (others 64)"
    assert found.left_out == [("typiclust, seed 1", why)] and found.seeds("typiclust") == [0, 2]
