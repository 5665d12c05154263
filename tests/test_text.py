"""Hostile text in folder names and files. It never reaches a terminal unescaped and never stops a report."""

import csv
import io
import json
import logging
import os
import re

import numpy as np
import pytest
import torch
from conftest import asked, run_here
from test_report import two_arms, write_run
from test_store import record

from al_bench import loop, pictures, tracking
from al_bench.analysis import canvas, figures, plots, report, results, status
from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.text import Formatter, as_cell, printable

ESCAPE, TURN, BYTE = "\x1b]0;owned\x07\x1b[31m", "\u202egnp.\u200f", "caf\udce9"
HOSTILE = [ESCAPE, TURN, BYTE, "a\x00b", "$a$b", r"\$x^{", "x" * 5000, "=1+1", "水", ""]


def is_plain(text: str) -> bool:
    return not set(text) & {"\x1b", "\x07", "\u202e", "\u200f", "\udce9", "\x00", "\r", "\x9b"}


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31m", r"\x1b[31m"), ("\x9b0m", r"\x9b0m"), ("a\rb\x08", r"a\rb\x08"), ("\udce9", r"\udce9"),
        ("\u202eabc", r"\u202eabc"), ("\u2028", r"\u2028"), ("\ufeff", r"\ufeff"), ("\U000e0041", r"\U000e0041"),
        ("one\n\ttwo", "one\n\ttwo"), ("Käse, 水, سلام", "Käse, 水, سلام"),
        ("👩\u200d🔬", "👩\u200d🔬"), ("\xa0", "\xa0"),
    ],
)  # fmt: skip
def test_only_what_an_eye_can_see_is_kept(text, shown):
    assert printable(text) == shown and printable(shown) == shown
    assert str(UserError(text)) == shown
    assert Formatter().format(logging.makeLogRecord({"msg": "%s", "args": (text,)})) == shown


@pytest.mark.parametrize(
    "value, cell",
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-x", "'-x"), ("@a", "'@a"), ("\tx", "'\tx"), ("\rx", "'\rx"),
        (-1.5, -1.5), (None, None), ("a=b", "a=b"), ("20+5x20", "20+5x20"),
    ],
)  # fmt: skip
def test_text_that_begins_like_a_formula_is_text(value, cell):
    assert as_cell(value) == cell


def hostile_study(root):
    two_arms(root, n=2)
    run = write_run(root, ESCAPE.replace("/", "_"), 0, cpu=ESCAPE)
    write_run(root, TURN, 1, state="failed", error=f"no {BYTE}: {ESCAPE}")
    write_run(root, os.fsdecode(b"caf\xe9"), 0, state="failed", error=BYTE)
    write_run(root, "bald", 1, steps=json.dumps(ESCAPE))
    write_run(root, "cal", 1, state="interrupted", accuracy=(0.5,)).joinpath("run.json").write_text('{"error": 7}')
    info = json.loads((run / "run.json").read_text())
    info["dataset"]["classes"] = [BYTE, ESCAPE]
    (run / "run.json").write_text(json.dumps(info))


def test_no_escape_sequence_reaches_a_terminal_or_a_file_of_the_report(tmp_path, capfd):
    hostile_study(tmp_path)
    assert report.main([str(tmp_path)]) == 0 and status.main([str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert is_plain(out + err) and r"\x1b]0;owned" in out and r"caf\udce9" in out
    for name in ("verdict.txt", "summary.csv", "summary.md", "summary.tex", "index.html"):
        text = (tmp_path / "report" / name).read_bytes().decode()
        assert name == "index.html" or is_plain(text), name  # plotly's code contains such characters
    assert r"\x1b]0;owned" in text and r"no caf\udce9" in text and "\x1b]0;owned" not in text
    (tmp_path / "report" / "verdict.txt").write_bytes(b"fine\x1b[2J\xff\n")
    assert is_plain(results.in_words(tmp_path / "report" / "index.html"))


def test_a_spreadsheet_takes_no_cell_of_a_summary_for_a_formula(tmp_path):
    names = ["=HYPERLINK(1)", "+x", "-y", "@z"]
    for seed in range(2):
        for name in ("random", *names):
            write_run(tmp_path, name, seed, (0.5, 0.4, 0.3), study="=s")
    rows = list(csv.DictReader(io.StringIO((report.write(tmp_path).parent / "summary.csv").read_text())))
    assert [row["strategy"] for row in rows] == ["random", *sorted(f"'{name}" for name in names)]
    assert {row["study"] for row in rows} == {"'=s"} and {row["minus_random"] for row in rows} == {"", "0.0"}


SPOILT = [
    lambda run: (run / "run.json").write_text('{"error": 7, "state": "failed"}'),
    lambda run: (run / "run.json").write_text('{"a":' * 50_000),
    lambda run: (run / "run.json").write_text('{"a":' * 900 + "1" + "}" * 900),
    lambda run: ((run / "run.json").unlink(), (run / "run.json").mkdir()),
    lambda run: ((run / "run.json").unlink(), os.mkfifo(run / "run.json")),
    lambda run: ((run / "rounds.jsonl").unlink(), (run / "rounds.jsonl").symlink_to("/dev/zero")),
    lambda run: (run / "config.yaml").write_text("stressor: {copies: many}\n"),
    lambda run: (run / "config.yaml").write_text("a: " + "{a: " * 900 + "1" + "}" * 900),
    lambda run: ((run / ".lock").mkdir(), (run / "run.json").write_text('{"state": "running"}')),
]


def test_a_bad_run_is_listed_with_its_reason_and_the_others_are_compared(tmp_path, capsys):
    two_arms(tmp_path, n=2)
    for seed, spoil in enumerate(SPOILT):
        spoil(write_run(tmp_path, "entropy", seed))
    page = report.write(tmp_path)
    listed = re.findall(r"<li><b>entropy, seed (\d)</b>: (.{20,})</li>", page.read_text())
    assert [int(seed) for seed, _ in listed] == [*range(len(SPOILT))]
    assert "| margin | 2 |" in (page.parent / "summary.md").read_text()
    assert status.main([str(tmp_path)]) == 0


def test_what_stands_beside_a_run_does_not_stop_a_report(tmp_path):
    two_arms(tmp_path, n=2)
    write_run(tmp_path, "entropy", 0).joinpath("acquired.jpg").mkdir()
    os.mkfifo(write_run(tmp_path, "bald", 0) / "acquired.jpg")
    (tmp_path / "study" / "sweeps.json").write_text("[" * 100_000)
    assert "bald" in report.write(tmp_path).read_text()


@pytest.mark.parametrize("rounds", ["many", "1e300", "10000000000000000000000", "[1]", "true"])
def test_a_budget_that_is_none_does_not_stop_the_overview(tmp_path, rounds, capsys):
    run = write_run(tmp_path, state="interrupted", accuracy=(0.5,))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("rounds: 2", f"rounds: {rounds}"))
    assert status.main([str(tmp_path)]) == 0 and "50.0 %" in capsys.readouterr().out


def test_a_figure_that_fails_is_said_and_costs_no_other(tmp_path, monkeypatch):
    two_arms(tmp_path, n=2)
    monkeypatch.setattr(plots, "cost", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(figures.acquired, "jaccard", lambda *args: [][1])  # fails while computing, not while drawing
    page = report.write(tmp_path)
    text = page.read_text()
    assert "<b>Cost against accuracy.</b> This figure could not be drawn: division by zero" in text
    assert "<b>Overlap.</b> This figure could not be drawn: list index out of range" in text
    assert any("calibration" in path.name for path in page.parent.rglob("*.pdf"))


def test_names_as_long_as_a_file_system_takes_are_drawn(tmp_path):
    names = ["é" * 127, "x" * 255]
    for seed in range(2):
        for name in ("random", *names):
            write_run(tmp_path, name, seed, study="s" * 255, dataset="d" * 200)
    made = list(report.write(tmp_path).parent.rglob("*.pdf"))
    assert len(made) >= 8 and all(len(path.name.encode()) < 255 for path in made)


@pytest.mark.filterwarnings("ignore:Glyph")  # process.prepare sets this filter, and pytest replaces it
def test_classes_of_any_name_are_drawn_and_tracked(tmp_path):
    n = len(HOSTILE)
    idx, none = torch.arange(n), torch.empty(0, dtype=torch.int64)
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    dataset = Dataset("photos", images, none, idx, idx.flip(0), tuple(HOSTILE), (0.0,), (1.0,), "")
    log_probs = torch.eye(n).mul(5).log_softmax(-1)[:, None]
    pictures.most_uncertain(tmp_path / "sheet.jpg", dataset, log_probs)
    plots.class_balance((figure := canvas.new_figure()).subplots(), ["random"], np.ones((1, n)), HOSTILE)
    figure.savefig(tmp_path / "classes.pdf")
    assert (tmp_path / "sheet.jpg").stat().st_size
    records = [record(0, acquired=())]
    records[0].metrics["per_class"] = [0.5] * n
    with tracking.opened(asked("logger=csv"), tmp_path, HOSTILE, records):
        pass
    header, row = csv.reader((tmp_path / "metrics.csv").read_text().splitlines())
    assert is_plain("".join(header)) and r"test/per_class/caf\udce9" in header and len(header) == len(row)


def test_a_picture_that_fails_leaves_the_run_finished_and_is_said(tmp_path, monkeypatch, caplog):
    def fail(path, dataset, records):
        raise MemoryError("no room for the sheet")

    monkeypatch.setattr(pictures, "picked", fail)
    monkeypatch.setattr(loop.log, "propagate", True)
    run = run_here(tmp_path, "strategy=random", "budget.rounds=0")
    assert run.finished() and (run.folder / "most_uncertain.jpg").exists()
    assert "acquired.jpg could not be drawn, and the run is finished without it: MemoryError" in caplog.text
