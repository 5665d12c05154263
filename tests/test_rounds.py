"""al_bench.read and rounds.csv: all rounds of a results folder as one table. Runs here are written by hand."""

import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_report import write_run

import al_bench
from al_bench.analysis import results, rounds
from al_bench.errors import UserError
from al_bench.metrics import TAKEN


def test_a_row_is_a_run_and_a_round_by_hand(tmp_path):
    write_run(tmp_path, "random", 1, (0.5, 0.6, 0.7))
    write_run(tmp_path, "margin", 0, (0.5, 0.8), labels=(10, 20))
    found = al_bench.read(tmp_path)
    assert list(found) == [
        "study", "dataset", "model", "budget", "strategy", "seed", "round", "labels", "accuracy", "ece", "worst_class",
        "seconds",
    ]  # fmt: skip
    assert set(found) <= TAKEN  # no metric of the user's may have such a name
    assert found.values.tolist() == [
        ["study", "digits", "small_cnn", "10+2x10", *rest]
        for rest in (
            ["margin", 0, 0, 10, 0.5, 0.1, 0.3, 3.0],
            ["margin", 0, 1, 20, 0.8, 0.1, 0.8 - 0.2, 3.0],
            ["random", 1, 0, 10, 0.5, 0.1, 0.3, 3.0],
            ["random", 1, 1, 20, 0.6, 0.1, 0.6 - 0.2, 3.0],
            ["random", 1, 2, 30, 0.7, 0.1, 0.7 - 0.2, 3.0],
        )
    ]


def test_a_metric_that_some_runs_lack_is_nan_there(tmp_path):
    write_run(tmp_path, "random")
    path = write_run(tmp_path, "random", 1) / "rounds.jsonl"
    lines = list(map(json.loads, path.read_text().splitlines()))
    for value, line in enumerate(lines):
        line["metrics"]["top2"] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = al_bench.read(str(tmp_path / "study"))
    assert found["top2"].isna().tolist() == [True] * 3 + [False] * 3
    assert found[found.seed == 1]["top2"].tolist() == [0, 1, 2]


def test_runs_that_the_report_leaves_out_are_left_out_and_counted_by_reason(tmp_path):
    for seed in range(5):
        write_run(tmp_path, "random", seed)
    write_run(tmp_path, "margin", 0, state="failed", error="out of memory")
    write_run(tmp_path, "margin", 1, (0.5,), state="failed", error="interrupted: (by hand)")
    (write_run(tmp_path, "margin", 2) / "run.json").write_text("{")
    for seed, other in enumerate(({"start": "t"}, {"start": "t"}, {"steps": 7}, {"steps": 8}, {"option": 2})):
        write_run(tmp_path, "entropy", seed, **other)
    for seed in range(5, 8):
        write_run(tmp_path, "entropy", seed)
    with pytest.warns(UserWarning) as warned:
        found = al_bench.read(tmp_path)
    assert found.groupby("strategy")["seed"].nunique().to_dict() == {"entropy": 3, "random": 5}
    (warning,) = warned
    assert warning.filename == __file__
    assert str(warning.message) == (
        "8 of 16 runs are left out: failed (2), another initial set than most runs (2), another configuration (2), "
        "unreadable (1), other settings than most runs of entropy (1). al-bench report names each, with its reason."
    )


def test_a_folder_without_a_finished_run_is_an_empty_table_and_one_without_runs_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no runs"):
        al_bench.read(tmp_path)
    write_run(tmp_path, "random", state="failed")
    with pytest.warns(UserWarning, match="1 of 1 runs"):
        found = al_bench.read(tmp_path)
    assert len(found) == 0 and {"study", "seed", "labels", "seconds"} <= set(found)


def test_rounds_csv_is_the_same_table_and_no_formula(tmp_path):
    write_run(tmp_path, "=1+1", 10**14)
    write_run(tmp_path, "random", 2)
    runs = results.find(tmp_path)
    found, there = pd.read_csv(io.StringIO(rounds.as_csv(runs))), rounds.table(runs)
    assert list(found["strategy"]) == ["'=1+1"] * 3 + ["random"] * 3 and list(found) == list(there)
    assert list(map(int, found["seed"])) == [10**14] * 3 + [2] * 3
    numbers = ["round", "labels", "accuracy", "seconds"]
    assert np.array_equal(found[numbers], there[numbers])


def test_import_al_bench_stays_light_and_reading_needs_no_torch(tmp_path):
    write_run(tmp_path)
    code = (
        "import sys, al_bench; assert not {'numpy', 'pandas', 'torch'} & set(sys.modules); "
        f"print(len(al_bench.read({str(tmp_path)!r}))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")
