"""Reading run folders, the verdict on them, the report's files, and al-bench status. Runs here are written by hand."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import command

from al_bench import sweep
from al_bench.analysis import canvas, compare, figures, power, report, results, status, tables, verdict
from al_bench.analysis.metric import ACCURACY
from al_bench.errors import UserError

LABELS = (10, 20, 30)
CONFIG = """\
results_dir: results
study: {study}
seed: {seed}
dataset: {{root: {images}}}
stressor: {{copies: {copies}}}
trainer: {{max_steps: {steps}, progress: true}}
features: {{extractor: pca, width: 64}}
budget: {{rounds: 2, query: 10}}
strategy: {{name: {strategy}, option: {option}}}
"""


def write_run(
    root, strategy="random", seed=0, accuracy=(0.5, 0.6, 0.7), *, labels=LABELS, state="finished", study="study",
    data="a", start="s", cpu="one", steps=100, error=None, dataset="digits", budget="10+2x10", features=None,
    option=1, code=None, time="2026-01-01", images="here", copies=1,
    code_key="strategy_code",
):  # fmt: skip
    """A run folder as al_bench writes it, with these accuracies."""
    folder = root / study / dataset / "small_cnn" / budget / strategy / f"seed={seed}"
    folder.mkdir(parents=True)
    info = {
        "state": state, "error": error, "dataset": {"checksum": data, "classes": ["x", "y"], "n_test": 4},
        "initial_set": {"checksum": f"{start}{seed}"}, "features": features,
        "starts": [{"time": time, "cpu": cpu, "precision": "32-true", "versions": {"torch": "2"}}],
    } | ({code_key: {"checksum": code}} if code else {})  # fmt: skip
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text(
        CONFIG.format(
            study=study, seed=seed, strategy=json.dumps(strategy), steps=steps, option=option, images=images,
            copies=copies,
        )
    )  # fmt: skip
    n_rounds = min(len(labels), len(accuracy))
    step = max([100, *np.diff(labels).tolist()])
    lines = [
        {
            "round": r, "n_labelled": n, "n_val": 0, "validation": None, "weights_from": r, "epochs": 2, "steps": 9,
            "acquired": [step * r + 10 * seed + i for i in range(labels[r + 1] - n)] if r + 1 < n_rounds else [],
            "metrics": {"accuracy": a, "ece": 0.1, "worst_class": max(a - 0.2, 0), "per_class": [a, max(a - 0.2, 0)]},
            "seconds": {"fit": 2.0, "predict": 1.0}, "class_counts": [n // 2, n - n // 2],
            "peak_memory": 1, "history": [{"loss": 1.0, "accuracy": 0.9, "val_loss": 1.1, "val_accuracy": a}] * 2,
        }
        for r, (n, a) in enumerate(zip(labels, accuracy, strict=False))
    ]  # fmt: skip
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def two_arms(root, n=6, gain=0.1, **kwargs):
    """n pairs of random and of margin, which is better by `gain` and a little more with each seed."""
    for seed in range(n):
        level = 0.01 * seed
        write_run(root, "random", seed, (0.5 + level, 0.6 + level, 0.7 + level), **kwargs)
        own = gain + 0.002 * seed
        write_run(root, "margin", seed, (0.5 + level, 0.6 + level + own, 0.7 + level + own), **kwargs)


def addresses(page):
    """What the page would load or lead to."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, pairs: found.extend(v for k, v in pairs if k in ("src", "href"))
    parser.feed(page)
    return found


def the_study(root, target=None, metric=ACCURACY):
    (found,) = compare.comparisons(results.find(root), metric, target)
    return found


# -- reading --


def test_a_run_is_read_as_arrays_and_named_by_its_folder(tmp_path):
    write_run(tmp_path, "margin", 3, (0.5, 0.6, 0.7))
    (run,) = results.find(tmp_path / "study" / "digits")  # a folder further down
    assert run.setting == ("study", "digits", "small_cnn", "10+2x10") and (run.strategy, run.seed) == ("margin", 3)
    assert run.labels_R.tolist() == [10, 20, 30] and run.metrics["accuracy"].tolist() == [0.5, 0.6, 0.7]
    assert run.metrics["worst_class"].tolist() == pytest.approx([0.3, 0.4, 0.5]) and run.seconds["fit"].sum() == 6
    assert [len(a) for a in run.acquired] == [10, 10, 0] and run.config["trainer.max_steps"] == 100


def test_foreign_labels_count_on_the_axis_of_labels(tmp_path):
    folder = write_run(tmp_path)
    lines = [
        json.loads(line) | {"n_labelled": n, "n_foreign": i}
        for i, (n, line) in enumerate(
            zip((10, 19, 28), (folder / "rounds.jsonl").read_text().splitlines(), strict=True)
        )
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert results.read(folder).labels_R.tolist() == [10, 20, 30]


@pytest.mark.parametrize("place, words", [("nothing", "There is no folder"), ("", "holds no runs")])
def test_a_folder_without_runs_is_named(tmp_path, place, words):
    with pytest.raises(UserError, match=words):
        results.find(tmp_path / place)


@pytest.mark.parametrize("kept", [0, 2])
def test_a_finished_run_that_lost_rounds_is_interrupted(tmp_path, kept):
    two_arms(tmp_path, n=2)
    folder = tmp_path / "study/digits/small_cnn/10+2x10/random/seed=1"
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(lines[:kept]))
    run = results.read(folder)
    assert (run.state, len(run.labels_R)) == (results.INTERRUPTED, kept)
    ((name, why),) = the_study(tmp_path).left_out
    assert name == "random, seed 1" and why.startswith("interrupted")
    assert why.endswith("rounds.jsonl has lost its last rounds")


def test_a_torn_last_line_is_not_a_round(tmp_path):
    folder = write_run(tmp_path, state="interrupted")
    with open(folder / "rounds.jsonl", "a") as file:
        file.write('{"round": 3, "n_lab')
    run = results.read(folder)
    assert run.torn and len(run.labels_R) == 3


@pytest.mark.parametrize(
    "break_it",
    [
        lambda f: (f / "run.json").write_text("{"),
        lambda f: (f / "run.json").unlink(),
        lambda f: (f / "rounds.jsonl").write_text('{"round": 0}\n'),
        lambda f: (f / "rounds.jsonl").write_text("[]\n"),
        lambda f: (f / "rounds.jsonl").write_text((f / "rounds.jsonl").read_text().splitlines()[1] + "\n"),
        lambda f: (f / "config.yaml").write_text("{a: ["),
        lambda f: (f / "config.yaml").unlink(),
        lambda f: ((f / "rounds.jsonl").unlink(), (f / "rounds.jsonl").mkdir()),
    ],
)
def test_a_broken_run_is_left_out_by_name_and_the_others_are_compared(tmp_path, break_it):
    two_arms(tmp_path, n=3)
    break_it(write_run(tmp_path, "entropy", 1))
    found = the_study(tmp_path)
    assert list(found.versus_random) == ["margin"]
    assert [who for who, _ in found.left_out] == ["entropy, seed 1"]


def test_a_run_that_says_running_was_killed_unless_its_lock_is_held(tmp_path):
    folder = write_run(tmp_path, state="running")
    (folder / ".lock").touch()
    assert results.read(folder).state == "interrupted"
    holder = (
        "import sys, time; from filelock import FileLock; l = FileLock(sys.argv[1]); l.acquire(); print(flush=True)"
    )
    held = [sys.executable, "-c", f"{holder}; time.sleep(60)", folder / ".lock"]
    process = subprocess.Popen(held, stdout=subprocess.PIPE)
    with process:
        process.stdout.readline()
        state = results.read(folder).state
        process.kill()
    assert state == "running"


def test_runs_that_a_sweep_asked_for_and_that_never_began_are_missing(tmp_path):
    begun = write_run(tmp_path, "random", 0)
    never = begun.parents[1] / "margin" / "seed=4"
    results.note_requested(tmp_path / "study", [begun, never])
    results.note_requested(tmp_path / "study", [begun])  # a later, smaller sweep forgets nothing
    found = results.find(tmp_path)
    assert [(r.strategy, r.seed, r.state) for r in found] == [("random", 0, "finished"), ("margin", 4, "missing")]
    assert len(results.find(begun)) == 1  # of no concern further down


def test_sweeps_that_start_together_all_note_what_they_ask_for(tmp_path):
    folders = [tmp_path / f"study/digits/small_cnn/10+2x10/margin/seed={seed}" for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda folder: results.note_requested(tmp_path / "study", [folder]), folders))
    assert results.requested_runs(tmp_path / "study") == set(folders)


# -- what is compared --


@pytest.mark.parametrize(
    "odd, words",
    [
        ({"option": 2}, r"other settings than most runs of entropy: strategy\.option=2 \(others 1\)"),
        ({"steps": 50}, r"trainer\.max_steps=50 \(others 100\)"),
        ({"data": "b"}, "other images"),
        ({"start": "t"}, "another initial set"),
        ({"code": "b"}, "another version of its code than the latest run of entropy: delete it and run it again"),
        ({"state": "failed", "error": "boom"}, "failed after 3 rounds: boom"),
        ({"state": "interrupted", "accuracy": (0.5,)}, "interrupted after 1 rounds"),
    ],
)
def test_what_does_not_belong_is_left_out_and_said(tmp_path, odd, words):
    two_arms(tmp_path, n=3)
    write_run(tmp_path, "entropy", 1, **{"accuracy": (0.5, 0.6, 0.7), **odd})
    write_run(tmp_path, "entropy", 0, code="a", time="2026-01-02")
    write_run(tmp_path, "entropy", 2, code="a", time="2026-01-02")
    found = the_study(tmp_path)
    ((who, why),) = found.left_out
    assert who == "entropy, seed 1" and re.search(words, why)
    assert found.seeds("entropy") == [0, 2]


def test_a_run_that_is_there_twice_counts_once(tmp_path):
    two_arms(tmp_path, n=4)
    shutil.copytree(tmp_path / "study", tmp_path / "backup" / "study")
    shutil.rmtree(next((tmp_path / "backup").rglob("random/seed=0")))  # so that it has other seeds besides
    found = the_study(tmp_path)
    assert found.versus_random["margin"].area.n == 4 and found.seeds("random") == [0, 1, 2, 3]
    assert [who for who, _ in found.left_out].count("margin, seed 0") == 1 and len(found.left_out) == 7
    assert {why for _, why in found.left_out} == {
        f"there twice, and counted once: {run.folder}" for run in results.find(tmp_path / "backup")
    }


def test_the_same_images_may_lie_in_another_place_on_every_machine(tmp_path):
    two_arms(tmp_path, n=3)
    write_run(tmp_path, "random", 3, images="there")
    write_run(tmp_path, "margin", 3, images="elsewhere")
    write_run(tmp_path, "random", 0, (0.9,), budget="full", images="there")
    found = the_study(tmp_path)
    assert found.left_out == [] and found.versus_random["margin"].seeds == [0, 1, 2, 3] and found.full == 0.9


def test_other_images_are_left_out_with_every_seed_but_where_each_seed_has_copies_of_its_own(tmp_path):
    for copies, study in ((1, "one"), (5, "several")):
        two_arms(tmp_path / study, n=2, copies=copies)
        for name in ("random", "margin"):
            write_run(tmp_path / study, name, 2, data="b", copies=copies)
    found = the_study(tmp_path / "one")
    assert found.seeds("margin") == [0, 1]
    assert found.left_out == [
        (f"{name}, seed 2", "other images than most runs (dataset checksum)") for name in ("random", "margin")
    ]
    assert the_study(tmp_path / "several").seeds("margin") == [0, 1, 2]


@pytest.mark.parametrize("key", ["strategy_code", "strategy_version"])  # the second: of earlier versions of al_bench
def test_of_two_versions_of_a_strategy_the_later_counts_and_runs_from_before_it_was_noted_stay(tmp_path, key):
    two_arms(tmp_path, n=5)
    for seed, time in enumerate(("2026-01-01", "2026-01-03", "2026-01-02")):
        write_run(tmp_path, "entropy", seed, code="old", time=time, code_key=key)
    write_run(tmp_path, "entropy", 3, code="new", time="2026-01-04", code_key=key)
    write_run(tmp_path, "entropy", 4, time="2026-01-05")
    found = the_study(tmp_path)
    assert [who for who, _ in found.left_out] == ["entropy, seed 0", "entropy, seed 1", "entropy, seed 2"]
    assert found.seeds("entropy") == [3, 4]


def test_what_half_of_the_pairs_never_reach_is_an_arrow(tmp_path):
    for seed, reached in enumerate((0.8, 0.6)):
        write_run(tmp_path, "random", seed, (0.5, 0.6, 0.7))
        write_run(tmp_path, "margin", seed, (0.5, 0.6, reached))
    ax = canvas.new_figure().subplots()
    figures.labels_to_target(the_study(tmp_path, 0.65)).draw(ax)
    assert [text.get_text() for text in ax.texts] == ["> 30"]
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_markerfacecolor() == "white"] == pytest.approx(
        [25]
    )


def test_keys_that_only_say_where_or_how_it_is_shown_do_not_matter(tmp_path):
    two_arms(tmp_path, n=2)
    folder = write_run(tmp_path, "entropy", 0)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        text.replace("results_dir: results", "results_dir: elsewhere").replace("progress: true", "progress: false")
        .replace("width: 64", "width: 32")  # no strategy here looks at fixed features
    )  # fmt: skip
    assert not the_study(tmp_path).left_out


def test_a_run_from_before_there_was_a_setting_is_as_one_that_leaves_it_unset(tmp_path):
    two_arms(tmp_path, n=3)
    write_run(tmp_path, "margin", 3)
    write_run(tmp_path, "random", 0, (0.9,), budget="full")
    newer = [*tmp_path.rglob("margin/seed=3/config.yaml"), *tmp_path.rglob("full/*/seed=0/config.yaml")]

    def set_to(value):
        for path in newer:
            text = re.sub("(trainer: {|strategy: {)(new: .*?, )?", rf"\1new: {value}, ", path.read_text())
            path.write_text(text)
        return the_study(tmp_path)

    found = set_to("null")
    assert len(newer) == 2 and not found.left_out and found.seeds("margin") == [0, 1, 2, 3] and found.full == 0.9
    assert [why for _, why in set_to(1).left_out] == 2 * ["another configuration: trainer.new=1 (others None)"]


def test_strategies_on_fixed_features_are_compared_with_those_that_use_none(tmp_path):
    two_arms(tmp_path, n=2)
    for seed in range(2):
        write_run(tmp_path, "typiclust", seed, features="pca")
        write_run(tmp_path, "prob_cover", seed, features="pca")
    found = the_study(tmp_path)
    assert not found.left_out and set(found.versus_random) == {"margin", "typiclust", "prob_cover"}


def test_where_configurations_are_tied_randoms_is_the_usual_one(tmp_path):
    write_run(tmp_path, "a", 0, steps=50)
    write_run(tmp_path, "random", 0)
    assert [who for who, _ in the_study(tmp_path).left_out] == ["a, seed 0"]


def test_old_configurations_without_stressors_are_the_same(tmp_path):
    two_arms(tmp_path, n=2)
    for path in tmp_path.rglob("random/*/config.yaml"):
        path.write_text(path.read_text() + "stressor: {imbalance: 1.0, label_noise: 0.0, images: null, copies: 1}\n")
    assert not the_study(tmp_path).left_out


def test_other_hardware_is_compared_and_said(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "entropy", 0, cpu="two")
    found = the_study(tmp_path)
    assert (
        found.notes[0]
        == "Computed on different hardware or software: cpu one (4 of 5 runs), two (1 of 5 runs: all of entropy)"
    )
    assert "entropy" in found.versus_random
    for strategy, cpu in (("badge", "three"), ("bald", "four"), ("coreset", "five"), ("cal", "six")):
        write_run(tmp_path, strategy, 0, cpu=cpu)
    (note,) = (note for note in the_study(tmp_path).notes if "hardware" in note)
    assert note.startswith("Computed on different hardware or software: cpu one (4 of 9 runs), ")
    assert re.search(r", others \(2 of 9 runs: all of \w+, \w+\)$", note) and note.count(" of 9 runs") == 5
    write_run(tmp_path, "badge", 1, (0.51, 0.61, 0.71), cpu="one")  # no longer all of badge
    (note,) = (note for note in the_study(tmp_path).notes if "hardware" in note)
    assert "three (1 of 10 runs)" in note


def test_strategies_that_do_not_begin_alike_are_told(tmp_path):
    two_arms(tmp_path, n=3)
    assert not any("first round" in note for note in the_study(tmp_path).notes)
    write_run(tmp_path, "entropy", 1, (0.52, 0.6, 0.7))  # random with seed 1 begins with 0.51
    (note,) = (note for note in the_study(tmp_path).notes if "first round" in note)
    assert note.startswith("The first round differs between strategies of the same seed (1), which train on the same")


def test_a_reference_on_other_hardware_is_said(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "random", 0, (0.9,), labels=(500,), budget="full", cpu="two")
    notes = the_study(tmp_path).notes
    assert "Computed on different hardware or software: cpu one (4 of 5 runs), two (1 of 5 runs)" in notes


def test_validation_labels_are_said_where_there_are_any(tmp_path):
    two_arms(tmp_path, n=2)
    assert the_study(tmp_path).notes == []
    for path in tmp_path.rglob("config.yaml"):
        path.write_text(path.read_text().replace("budget: {", "budget: {validation: 1024, "))
    assert the_study(tmp_path).notes == [
        "Each run has 1,024 labels more, for validation. Curves and label counts leave them out."
    ]


def test_the_words_say_where_the_target_comes_from(tmp_path):
    two_arms(tmp_path)
    by_random = "Target: 70.0%, the highest whole per cent that random reaches with every seed. Labels"
    assert verdict.method_notes(the_study(tmp_path))[1].startswith(by_random)
    assert verdict.method_notes(the_study(tmp_path, target=0.65))[1].startswith("Target: 65.0%. Labels")


def test_other_label_counts_are_compared_on_the_common_part(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "entropy", 0, (0.5, 0.9), labels=(10, 20))
    found = the_study(tmp_path)
    assert found.labels_R.tolist() == [10, 20]
    assert "on the 2 label counts that all runs have, 10 to 20; 4 of 5 runs have others" in found.notes[0]
    assert found.versus_random["entropy"].area.mean == pytest.approx((0.9 - 0.6) / 2)


def test_pairs_are_the_seeds_that_both_have(tmp_path):
    two_arms(tmp_path, n=3)
    write_run(tmp_path, "entropy", 2, (0.52, 0.72, 0.82))
    write_run(tmp_path, "entropy", 7, (0.9, 0.9, 0.9))
    found = the_study(tmp_path)
    assert found.versus_random["entropy"].seeds == [2]
    assert found.versus_random["entropy"].area.mean == pytest.approx(
        (0.1 + 0.2) / 2 / 2
    )  # against seed 2 of random alone
    assert any("entropy 1 of 4" in note for note in found.notes)


def test_with_no_finished_run_the_page_names_them_all(tmp_path):
    write_run(tmp_path, state="failed", error="boom")
    write_run(tmp_path, "margin", state="interrupted", accuracy=())
    text = report.write(tmp_path).read_text()
    assert "failed after 3 rounds: boom" in text and "margin, seed 0" in text


@pytest.mark.parametrize("missing", ["random", "curve"])
def test_without_random_or_without_a_curve_there_is_no_verdict(tmp_path, missing):
    if missing == "random":
        write_run(tmp_path, "margin", 0)
    else:
        write_run(tmp_path, "random", 0, (0.5,))
        write_run(tmp_path, "margin", 0, (0.5,))
    found = the_study(tmp_path)
    assert not found.versus_random and found.notes
    report.write(tmp_path)


def test_numbers_of_the_verdict_by_hand(tmp_path):
    two_arms(tmp_path, n=6, gain=0.1)
    found = the_study(tmp_path)
    # Differences 0, g, g over 10, 20, 30 labels: an area of 3/4 g, g = 0.1 + 0.002 seed.
    against = found.versus_random["margin"]
    assert against.area.mean == pytest.approx(0.75 * 0.105) and against.area.n == 6
    assert against.test.p == against.test.p_alone == 2 / 2**6 and against.significant
    # Random reaches 0.70 with every seed, seed s after 10 + 10 (0.2 - 0.01 s) / 0.1 labels. Margin, from 0.5 + 0.01 s:
    # slope (0.2 + 0.002 s) / 2 a round... its running maximum crosses 0.70 between 10 and 20 labels or at 20.
    assert found.target == 0.7
    s = np.arange(6)
    random_S = 10 + 10 * (0.2 - 0.01 * s) / 0.1
    margin_S = 10 + 10 * np.minimum(1, (0.2 - 0.01 * s) / (0.2 + 0.002 * s))
    assert found.labels_to_target("random", "envelope") == pytest.approx(random_S)
    assert found.labels_to_target("margin", "envelope") == pytest.approx(margin_S)
    saved = 1 - 1 / np.exp(np.log(random_S / margin_S).mean())
    assert against.efficiency.savings[0] == pytest.approx(saved)
    (words,) = verdict.sentences(found)
    assert words.startswith("margin is better than random: needs ")
    assert f"needs {100 * saved:.0f}% [" in words and "fewer training labels than random to reach 70%" in words
    assert words.endswith("n = 6 pairs, p = 0.031.")


def test_five_pairs_are_never_significant_and_the_words_say_so(tmp_path):
    two_arms(tmp_path, n=5)
    words = verdict.sentences(the_study(tmp_path))
    assert words[0].endswith("n = 5 pairs, no call.")
    assert words[1].startswith("No call for margin: 5 pairs can never reach p <= 0.05: the smallest possible p is 0.06")


def test_no_difference_is_said_with_what_could_have_been_seen(tmp_path):
    for seed in range(8):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "margin", seed, (0.5, 0.6 + 0.02 * (-1) ** seed, 0.7))
    (words,) = verdict.sentences(the_study(tmp_path))
    assert words.startswith("margin: not told apart from random: ")
    assert re.search(r"p = 1\. A difference of 1\.\d points would have shown about three times in four\.$", words)


def test_what_is_surely_close_to_random_is_equal_to_it(tmp_path):
    for seed in range(8):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "margin", seed, (0.5, 0.6 + 0.001 * (-1) ** seed, 0.7))
    (words,) = verdict.sentences(the_study(tmp_path))
    assert words.endswith("p = 1. Equal to random within 0.5 points, by two one-sided t-tests at 0.05.")


def test_what_is_told_apart_alone_and_not_among_others_says_both(tmp_path):
    shifts = np.array([-0.002, 0.004, 0.006, 0.008, 0.01, 0.012, 0.014])
    rng = np.random.default_rng(0)
    for seed, shift in enumerate(shifts):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "badge", seed, (0.5, 0.6 + shift, 0.7 + shift))
        for name in ("bald", "cal", "coreset", "entropy", "margin"):
            write_run(tmp_path, name, seed, (0.5, 0.6 + rng.normal(0, 0.02), 0.7))
    found = the_study(tmp_path)
    words = next(words for words in verdict.sentences(found) if words.startswith("badge"))
    v = found.versus_random["badge"]
    assert v.test.p_alone == 2 * 2 / 2**7 and v.test.p > 0.05 and v.area.low > 0 > v.interval[0]
    assert words.startswith("badge: not told apart from random after correcting for 6 strategies: ")
    assert f"[{100 * v.interval[0]:+.1f}, {100 * v.interval[1]:+.1f}]; n = 7 pairs" in words
    assert f", p = {v.test.p:.2g} (alone p = 0.031). " in words


@pytest.mark.parametrize("test, head", [("max_t", "p (max-T)"), ("wilcoxon", "p (Wilcoxon, Holm)")])
def test_the_test_is_a_choice(tmp_path, test, head):
    two_arms(tmp_path, n=7)
    for seed in range(7):
        level = 0.01 * seed
        write_run(tmp_path, "entropy", seed, (0.5 + level, 0.6 + level + 0.01 * seed * (-1) ** seed, 0.7 + level))
    assert report.main([str(tmp_path / "study"), "--test", test]) == 0
    assert head in (tmp_path / "study" / "report" / "summary.md").read_text()
    p = pd.read_csv(tmp_path / "study" / "report" / "summary.csv").set_index("strategy")["p"]
    assert p["margin"] == {"max_t": 2 / 2**7, "wilcoxon": 2 * 2 / 2**7}[test] and p["entropy"] > 0.5


def test_what_could_have_been_seen_is_seen_among_all(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(10):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "badge", seed, (0.5, 0.7, 0.8 + 0.001 * seed))
        for name in ("bald", "margin", "entropy"):
            write_run(tmp_path, name, seed, (0.5, 0.6 + rng.normal(0, 0.02), 0.7))
    found = the_study(tmp_path)
    assert [name for name, a in found.versus_random.items() if a.significant] == ["badge"]
    assert {a.test.n_strategies for a in found.versus_random.values()} == {4}
    could = power.detectable(10, found.versus_random["bald"].area.sd, 0.05 / 4)
    (words,) = (words for words in verdict.sentences(found) if words.startswith("bald"))
    assert f"A difference of {100 * could:.1f} points would have shown about three times in four." in words


def test_few_pairs_have_no_corrected_p(tmp_path):
    two_arms(tmp_path, n=5)
    found = the_study(tmp_path)
    row = tables.row(found, "margin")
    assert row["p"] is row["p_alone"] is None and row["minus_random_low"] == row["minus_random_low_alone"]
    assert tables.readable(found, row)["p (max-T)"] == "no call"


def test_a_small_loss_is_no_negative_zero_and_a_bound_keeps_its_side():
    assert ACCURACY.difference(-0.0004) == "+0.0"
    assert ACCURACY.bounds(-0.0004, 0.0004) == " [-0.0, +0.0]" and ACCURACY.bounds(-0.0006, 0.0) == " [-0.1, +0.0]"
    assert ACCURACY.bounds(-0.0084, -0.0003) == " [-0.8, -0.0]" and ACCURACY.bounds(0.0, 0.012) == " [+0.0, +1.2]"


def test_a_target_that_is_not_reached_is_never_replaced_by_the_last_budget(tmp_path):
    two_arms(tmp_path, n=3, gain=0.1)
    found = the_study(tmp_path, target=0.8)  # margin gets there, random does not
    assert found.versus_random["margin"].efficiency.savings == (None, None, None)
    assert "margin reached 80% in 2 of 3 pairs, random in 0; " in verdict.sentences(found)[0]
    assert "% fewer" not in verdict.sentences(found)[0]
    assert tables.row(found, "random")["labels_to_target_median"] == np.inf


def test_whoever_missed_the_target_is_named(tmp_path):
    for seed in range(6):
        write_run(tmp_path, "random", seed, (0.5, 0.6, 0.8 if seed < 2 else 0.7))
        write_run(tmp_path, "margin", seed, (0.5, 0.7, 0.9))
    found = the_study(tmp_path, target=0.8)
    assert "reached 80% in 6 of 6 pairs, random in 2; " in verdict.sentences(found)[0]
    row = tables.row(found, "margin")
    assert tables.readable(found, row)["labels saved"] == "reached in 6 of 6 pairs, random in 2"
    assert (row["pairs_that_reached_target"], row["pairs_in_which_random_did"]) == (6, 2)


@pytest.mark.parametrize("target", [None, 0.61])
def test_a_lucky_initial_set_is_left_out_of_labels_saved_alone(tmp_path, target):
    for seed in range(6):
        start = 0.62 if seed == 1 else 0.5
        write_run(tmp_path, "random", seed, (start, 0.6, 0.615))
        write_run(tmp_path, "margin", seed, (start, 0.7, 0.8))
    found = the_study(tmp_path, target)
    against = found.versus_random["margin"]
    assert found.target == 0.61 and against.efficiency.n == against.efficiency.n_pairs == 5 and against.area.n == 6
    # Random crosses 0.61 two thirds of the way from 20 to 30 labels, margin 0.11 / 0.2 of the way from 10 to 20.
    assert against.efficiency.mean == pytest.approx((20 + 20 / 3) / (10 + 10 * 0.11 / 0.2))
    note = "Labels saved leave out some seeds: 1 of 6 seeds reach the target of 61% with the initial set already."
    assert note in found.notes


@pytest.mark.parametrize("target", [None, 0.61])
def test_no_labels_saved_are_computed_to_a_target_that_most_initial_sets_reach(tmp_path, target):
    for seed in range(6):
        start = 0.62 if seed > 1 else 0.5
        write_run(tmp_path, "random", seed, (start, 0.6, 0.615))
        write_run(tmp_path, "margin", seed, (start, 0.7, 0.8))
    found = the_study(tmp_path, target)
    assert found.target is None and found.versus_random["margin"].efficiency is None
    (note,) = (n for n in found.notes if "target" in n)
    assert note == (
        "Labels saved are not computed: 4 of 6 seeds reach the target of 61% with the initial set already. Choose "
        "another by --target."
    )
    assert "fewer" not in verdict.sentences(found)[0]


def test_a_second_random_arm_draws_the_noise_and_is_no_rival(tmp_path):
    two_arms(tmp_path, n=3)
    assert compare.noise(the_study(tmp_path)) is None
    for seed in range(3):
        level = 0.01 * seed
        write_run(tmp_path, "random_control", seed, (0.5 + level, 0.61 + level, 0.7 + level + 0.01 * seed))
    found = the_study(tmp_path)
    low_R, high_R = compare.noise(found)
    assert list(found.versus_random) == ["margin"] and found.versus_random["margin"].area.n == 3
    assert low_R[0] == high_R[0] == 0 and low_R[2] < 0.01 < high_R[2]


def test_the_full_data_run_is_the_reference_of_its_cell_and_no_study(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "random", 0, (0.9,), budget="full")
    assert the_study(tmp_path).full == 0.9


def test_references_of_another_recipe_or_of_other_images_are_left_out_and_one_counts_for_a_seed(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "random", 0, (0.9,), budget="full")
    write_run(tmp_path, "margin", 0, (0.1,), budget="full")
    write_run(tmp_path, "random", 1, (0.2,), budget="full", data="b")
    write_run(tmp_path, "random", 2, (0.3,), budget="full", state="failed", error="boom")
    write_run(tmp_path, "random", 3, (0.4,), budget="full", steps=7)
    config = write_run(tmp_path, "random", 4, (0.5,), budget="full") / "config.yaml"
    config.write_text(config.read_text().replace("budget: {", "budget: {validation: 300, "))
    found = the_study(tmp_path)
    assert found.full in (0.9, 0.1) and len(found.references) == 1
    why = dict(found.left_out)
    assert set(why) == {f"full data, random, seed {n}" for n in (1, 2, 3, 4)}
    assert "budget.validation=300" in why["full data, random, seed 4"]


def test_ranks_and_mean_that_disagree_are_no_call(tmp_path):
    for seed in range(12):
        gain = 0.01 + 0.001 * seed if seed else -0.3
        write_run(tmp_path, "random", seed, (0.5, 0.6, 0.7))
        write_run(tmp_path, "margin", seed, (0.5, 0.6 + gain, 0.7 + gain))
    (found,) = compare.comparisons(results.find(tmp_path), test="wilcoxon")
    against = found.versus_random["margin"]
    assert against.test.p < 0.05 and against.area.mean < 0 and not against.significant
    assert any("but the interval of the mean contains 0" in words for words in verdict.sentences(found))
    assert the_study(tmp_path).versus_random["margin"].test.p > 0.05  # max_t tests the mean


def test_a_strategy_with_few_pairs_costs_the_others_nothing(tmp_path):
    two_arms(tmp_path, n=6)
    for seed in range(3):
        write_run(tmp_path, "entropy", seed, (0.5, 0.6, 0.75 + 0.01 * seed))
    found = the_study(tmp_path).versus_random
    assert found["margin"].significant and found["margin"].test.p == 2 / 2**6
    assert "3 pairs can never reach p <= 0.05: the smallest possible p is 0.25" in found["entropy"].why_no_call


def test_two_cells_are_two_studies(tmp_path):
    two_arms(tmp_path, n=2)
    two_arms(tmp_path, n=2, dataset="mnist")
    assert [s.setting.dataset for s in compare.comparisons(results.find(tmp_path))] == ["digits", "mnist"]


@pytest.mark.parametrize("n", [1, 2, 6, 7])
def test_several_studies_count_once_each(tmp_path, n):
    for i in range(n):
        two_arms(tmp_path, n=3, gain=0.02 * (i + 1), dataset=f"data_{i}")
        for seed in range(3):
            write_run(tmp_path, "entropy", seed, dataset=f"data_{i}", accuracy=(0.5, 0.5, 0.5))
    found = compare.across(compare.comparisons(results.find(tmp_path)))
    if n == 1:
        assert found is None
        return
    assert found.names == ["random", "entropy", "margin"] and found.area_BM.shape == (n, 3)
    # Area of margin minus random's: three quarters of the gain, which grows by 0.002 with each of the seeds 0, 1, 2.
    assert found.area_BM[0, 2] - found.area_BM[0, 0] == pytest.approx(0.75 * (0.02 + 0.002))
    words = verdict.across_sentences(found)
    assert words[1].startswith(f"margin: the mean is above random's on {n} of {n} data sets, ")
    assert (found.ranks is None) == (n < 7) and ("Bayesian" in words[1]) == (n > 5)
    refused = f"No diagram of mean ranks. Ranks of 3 strategies need at least 7 data sets, and there are {n}."
    assert (refused in words) == (n < 7)
    if n == 7:
        assert found.ranks.mean_M.tolist() == [2, 3, 1]
        assert float(re.search(r"probability (\d\.\d+)", words[1])[1]) > 0.9
        text = report.write(tmp_path).read_text()
        assert "All studies" in text and "figures/all-ranks.pdf" in text and "figures/all-penalty_matrix.pdf" in text


def test_budgets_of_a_data_set_are_one_block(tmp_path):
    for dataset, gain in (("a", 0.02), ("a+imbalance=10", 0.04), ("b", 0.1)):
        two_arms(tmp_path, n=2, gain=gain, dataset=dataset)
    found = compare.across(compare.comparisons(results.find(tmp_path)))
    assert found.datasets == ["a", "b"] and found.area_KM.shape == (3, 2) and found.area_BM.shape == (2, 2)
    # 3/4 of the mean of 0.021 and 0.041, and of 0.101
    assert found.area_BM[:, 1] - found.area_BM[:, 0] == pytest.approx([0.75 * 0.031, 0.75 * 0.101])


def test_validation_labels_count_in_a_second_share(tmp_path):
    for seed in range(6):
        for name, accuracy in (("random", (0.5, 0.6, 0.7)), ("margin", (0.5, 0.7, 0.8))):
            config = write_run(tmp_path, name, seed, accuracy) / "config.yaml"
            config.write_text(config.read_text().replace("budget: {", "budget: {validation: 70, "))
    found = the_study(tmp_path, 0.7)
    against = found.versus_random["margin"]
    assert against.efficiency.savings[0] == pytest.approx(1 - 20 / 30)
    assert against.of_all_labels.savings[0] == pytest.approx(1 - 90 / 100)
    assert (
        "needs 33% fewer training labels (10% of all labels, those for validation included) than"
        in (verdict.sentences(found)[0])
    )
    assert tables.row(found, "margin")["of_all_labels_saved"] == pytest.approx(0.1)


def test_studies_are_put_side_by_side_on_the_seeds_that_all_strategies_have(tmp_path):
    for dataset in ("a", "b"):
        for seed in range(3):
            write_run(tmp_path, "random", seed, dataset=dataset)
            write_run(tmp_path, "margin", seed, dataset=dataset)
        write_run(tmp_path, "margin", 7, (0.9, 0.9, 0.9), dataset=dataset)
        write_run(tmp_path, "random", 8, (0.1, 0.1, 0.1), dataset=dataset)
    two_arms(tmp_path, n=2, dataset="a", study="again")
    found = compare.across(compare.comparisons(results.find(tmp_path)))
    assert found.area_BM.shape == (2, 2) and found.area_BM[1] == pytest.approx([0.6, 0.6])
    assert "1 studies are not in these numbers" in verdict.across_sentences(found)[-1]


# -- the files --


def no_key(name, key):
    def change(folder):
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        for line in lines:
            (line if name is None else line[name]).pop(key)
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return change


def test_the_screen_shows_the_verdict_and_names_a_few_of_the_runs_left_out(tmp_path, capsys):
    two_arms(tmp_path, n=7)
    for seed in range(7, 14):
        write_run(tmp_path, "margin", seed, steps=50)
    assert report.main([str(tmp_path)]) == 0
    page, cell, call, *rest = capsys.readouterr().out.splitlines()
    assert page == f"Report: {tmp_path}/report/index.html" and cell == "study / digits / small_cnn / 10+2x10:"
    assert call.startswith("  margin is better than random: needs ") and "n = 7 pairs, p = 0.016" in call
    *named, more = [line for line in rest if "Left out" in line]
    assert len(named) == 5 and all(re.match(r"  Left out: margin, seed \d+: another configuration", n) for n in named)
    assert more == "  Left out: 2 more, which the page names."


@pytest.mark.parametrize(
    "odd",
    [
        no_key("seconds", "predict"),
        no_key(None, "history"),
        no_key(None, "class_counts"),
        no_key("metrics", "worst_class"),
        no_key("metrics", "accuracy"),
        lambda f: (f / "run.json").write_text('{"state": "finished", "dataset": null}'),
        lambda f: (f.parents[4] / "sweeps.json").write_text('{"a": 1}'),
        lambda f: (f.parents[4] / "sweeps.json").write_text('["../../x", 3]'),
        lambda f: (f / "rounds.jsonl").write_text((f / "rounds.jsonl").read_text().replace("0.6,", "NaN,", 1)),
        lambda f: (f / "rounds.jsonl").write_text((f / "rounds.jsonl").read_text().replace(": 20,", ": 10,", 1)),
    ],
)
def test_one_odd_run_never_costs_the_page(tmp_path, odd, capsys):
    two_arms(tmp_path, n=2)
    odd(write_run(tmp_path, "entropy", 0))
    report.write(tmp_path)
    assert "margin" in the_study(tmp_path).versus_random
    assert status.main([str(tmp_path)]) == 0


def test_a_second_random_arm_alone_is_a_page(tmp_path):
    write_run(tmp_path, "random_control", 0)
    assert "nothing to compare" in report.write(tmp_path).read_text()


def test_a_redundant_pool_shows_how_much_of_what_was_acquired_was_there_already(tmp_path):
    for run in (write_run(tmp_path, name, seed) for name in ("random", "margin") for seed in range(2)):
        with open(run / "config.yaml", "a") as config:
            config.write("stressor: {copies: 2}\n")
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(info | {"dataset": info["dataset"] | {"n_test": 4}}))
    path = tmp_path / "study/digits/small_cnn/10+2x10/margin/seed=1/rounds.jsonl"
    first, *others = map(json.loads, path.read_text().splitlines())
    first["acquired"] = [4, 5, 6, 8, 10, 12, 14, 16, 18, 20]  # of images 0, 0, 1, 2, ...; the next round's are in pairs
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *others)))
    (found,) = compare.comparisons(results.find(tmp_path))
    assert tables.row(found, "random")["duplicate_share"] == pytest.approx(0.5)
    assert tables.row(found, "margin")["duplicate_share"] == pytest.approx((0.5 + 6 / 20) / 2)
    assert tables.section(found).table[1]["copies of what it had acquired"] == "40.0%"


def test_the_report_is_one_page_with_tables_and_figures(tmp_path):
    two_arms(tmp_path, n=6)
    write_run(tmp_path, "entropy", 0, state="failed", error="boom")
    page = report.write(tmp_path)
    text = page.read_text()
    assert "margin is better than random" in text and "failed after 3 rounds: boom" in text
    assert all(re.match("data:|figures/", address) for address in addresses(text))  # needs no network
    pictures = [a for a in addresses(text) if a.startswith("data:")]
    assert len(pictures) == len(list((page.parent / "figures").glob("*.pdf"))) >= 8
    rows = list(csv.DictReader((page.parent / "summary.csv").read_text().splitlines()))
    assert [r["strategy"] for r in rows] == ["random", "margin"]
    assert float(rows[1]["minus_random"]) == pytest.approx(0.75 * 0.105)
    assert "\\begin{tabular}" in (page.parent / "summary.tex").read_text()
    assert "| margin | 6 |" in (page.parent / "summary.md").read_text()


def test_single_runs_and_the_full_data_run_are_shown_in_detail(tmp_path):
    write_run(tmp_path, "random", 0)
    write_run(tmp_path, "random", 1)
    write_run(tmp_path, "margin", 0)
    write_run(tmp_path, "random", 0, (0.9,), budget="full")
    made = {path.stem.split("10+2x10-")[1] for path in report.write(tmp_path).parent.rglob("*.pdf")}
    assert {"full_accuracy", "full_loss", "pool-1-margin", "retraining-1-margin", "validation-1-margin"} <= made
    assert "pool-0-random" not in made  # it has two seeds


def test_a_single_run_is_drawn_beside_the_full_data_of_its_own_seed(tmp_path):
    write_run(tmp_path, "margin", 0)
    for seed, accuracy in ((1, 0.7), (0, 0.9)):
        write_run(tmp_path, "random", seed, (accuracy,), budget="full")
    (s,) = compare.comparisons(results.find(tmp_path))
    (name,) = (name for name in figures.makers(s) if name.startswith("retraining"))
    figures.makers(s)[name]().draw(ax := canvas.new_figure().subplots())
    _, full = ax.get_lines()
    assert full.get_ydata()[0] == pytest.approx(90) and s.full == pytest.approx(0.8)


def test_the_report_changes_no_run_and_says_the_same_again(tmp_path):
    two_arms(tmp_path, n=3)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    first = report.write(tmp_path)
    made = {p: p.read_bytes() for p in first.parent.glob("summary.*")}
    report.write(tmp_path)
    assert all(p.read_bytes() == content for p, content in (files | made).items())


def test_names_from_users_are_escaped_everywhere(tmp_path):
    evil = "<img src=x onerror=alert(1)>_$x^{"
    for seed in range(2):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, evil, seed, (0.5, 0.7, 0.8 + 0.01 * seed), error=None)
    write_run(tmp_path, "entropy", 0, state="failed", error="</script><script>alert(2)</script>")
    page = report.write(tmp_path)
    text = page.read_text()
    assert "<img src=x" not in text and "<script>alert" not in text and "&lt;img src=x" in text
    assert r"\$x\textasciicircum \{" in (page.parent / "summary.tex").read_text()


def test_the_commands_say_what_is_wrong_without_a_traceback(tmp_path):
    for name in ("report", "status"):
        done = command(tmp_path, name, "nowhere")
        assert done.returncode == 1 and "There is no folder nowhere" in done.stderr
        assert "Traceback" not in done.stderr
    assert report.main([str(tmp_path), "--target", "90"]) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match="report cannot be written"):
        report.write(tmp_path)


def test_a_sweep_makes_the_report_anew_where_anything_has_changed_and_says_what_went_wrong(tmp_path, monkeypatch):
    folder, study = write_run(tmp_path, "margin"), tmp_path / "study"
    last = write_run(tmp_path)
    assert sweep.report_on(study) is None
    summary = study / "report" / "summary.md"
    assert "margin" in summary.read_text()
    summary.write_text("old")
    assert sweep.report_on(study) is None and summary.read_text() == "old"
    shutil.rmtree(folder)
    assert sweep.report_on(study) is None and summary.read_text() != "old" and "margin" not in summary.read_text()
    summary.write_text("old")
    results.note_requested(study, [folder])
    assert sweep.report_on(study) is None and summary.read_text() != "old"
    monkeypatch.setattr(report, "write", lambda study: 1 / 0)
    os.utime(last / "run.json", (0, 0))
    assert "division by zero" in sweep.report_on(study)


def test_a_run_that_ends_while_the_report_is_drawn_is_in_the_next(tmp_path, monkeypatch):
    last, study = write_run(tmp_path), tmp_path / "study"
    draw = report.page

    def meanwhile(*args):
        os.utime(last / "run.json", (0, 0))
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(report, "page", meanwhile)
        report.write(study)
    assert not results.is_current(study / "report")
    report.write(study)
    assert results.is_current(study / "report")


def test_reports_of_sweeps_that_end_together_wait_for_each_other(tmp_path):
    for name in ("random", "margin"):
        for seed in range(2):
            write_run(tmp_path, name, seed)
    both = [
        subprocess.Popen([sys.executable, "-m", "al_bench", "report", tmp_path], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [(p.communicate()[1], p.returncode) for p in both] == [(b"", 0)] * 2


def test_runs_behind_a_link_are_found_where_they_are_seen(tmp_path):
    folder = write_run(tmp_path)
    cell = folder.parents[1]
    shutil.move(cell, tmp_path / "big")
    cell.symlink_to(tmp_path / "big")
    results.note_requested(tmp_path / "study", [folder])
    (run,) = results.find(tmp_path / "study")
    assert (run.folder, run.setting.study, run.setting.budget) == (folder, "study", cell.name)


def test_a_study_of_the_full_data_alone_has_a_table(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "random", seed, (0.9,), budget="full")
    write_run(tmp_path, "random", 2, state="failed", error="no space", budget="full")
    page = report.write(tmp_path)
    assert "90.0%" in (page.parent / "summary.md").read_text() and "no space" in page.read_text()


# -- status --


def test_status_counts_states_and_shows_accuracy_and_time_left(tmp_path, capsys):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "entropy", 0, (0.5, 0.55), state="interrupted")
    write_run(tmp_path, "entropy", 1, (0.6, 0.65, 0.7), state="failed", error="boom\nmore")
    run = tmp_path / "study/digits/small_cnn/10+2x10/entropy/seed=2"
    results.note_requested(tmp_path / "study", [run])
    slow = write_run(tmp_path, "bait", 0, (0.5,), state="interrupted") / "rounds.jsonl"
    slow.write_text(slow.read_text().replace('"fit": 2.0', '"fit": 99.0'))
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in out.splitlines()
        if "│" in line
    }
    assert lines["margin"] == ["2", "", "", "", "30", "80.6 %", ""]
    # 3 seconds a round: one round of seed 0 and three of the missing seed 2; the failed one has all its rounds
    assert lines["entropy"] == ["", "1", "1", "1", "20", "60.0 %", "0:00:12"]
    assert lines["bait"] == ["", "", "1", "", "10", "50.0 %", "0:03:20"]  # two rounds more of 100 seconds
    assert "entropy, seed 1: boom" in out and "more" not in out


def test_letters_that_the_font_lacks_put_no_warning_on_the_screen(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "random", seed)
        write_run(tmp_path, "\u540d", seed)
    done = command(tmp_path, "report", "study")
    assert (done.returncode, done.stderr) == (0, "")


def test_status_imports_no_torch(tmp_path):
    write_run(tmp_path)
    code = (
        "import sys; from al_bench.analysis import status as s; s.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=os.environ, stdout=subprocess.DEVNULL)


# -- in a browser --


@pytest.mark.xdist_group("machine")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_page_draws_its_curves_from_disk_without_an_error(tmp_path):
    two_arms(tmp_path, n=3)
    page = report.write(tmp_path)
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path}/browser", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
         page.as_uri()], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.count('class="legendtext"') == 2  # plotly drew both strategies
    assert "CONSOLE" not in done.stderr


def test_a_run_whose_configuration_was_emptied_is_left_out_and_not_the_others(tmp_path):
    two_arms(tmp_path, n=2)
    (tmp_path / "study/digits/small_cnn/10+2x10/margin/seed=1/config.yaml").write_text("")
    found = the_study(tmp_path)
    why = "config.yaml is damaged (its seed is None, and its folder says 1)"
    assert found.left_out == [("margin, seed 1", why)] and found.seeds("random") == [0, 1]
