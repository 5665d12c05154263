"""The pages in Markdown: their links lead somewhere, and README's recipes work as they are written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import lines_of

import al_bench

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in (ROOT, *(ROOT / name for name in ("al_bench", "conf", "results", "scripts", "tests")))
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("README.md"))
)


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives a page's headings."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        place, _, anchor = unquote(link).partition("#")
        if re.match(r"\w+:", place):
            continue
        target = page.parent / place if place else page
        there = target / "README.md" if target.is_dir() else target
        if not target.exists() or (anchor and anchor not in anchors(there)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_there_are(page):
    assert not broken(ROOT / page)


def test_a_lost_file_and_a_lost_heading_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# A *title*: with `signs`\n```\n# no title\n```\n")
    good = "[a](there.md#a-title-with-signs) [b](there.md) [c](https://example.org/x#y) [d](#here)\n\n## Here\n"
    bad = "[e](gone.md) [f](there.md#no-title) ![g](gone.png) [h](#nowhere)"
    (tmp_path / "page.md").write_text(good + bad)
    assert broken(tmp_path / "page.md") == ["gone.md", "there.md#no-title", "gone.png", "#nowhere"]


def test_the_readme_fits_a_few_screens_and_begins_with_the_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len("\n".join(lines).encode()) < 9_500
    assert max(i for i, line in enumerate(lines) if line.startswith("pip install -e")) < 20


def recipe(title: str) -> tuple[dict[str, str], list[str]]:
    """(the files that a section of README shows, by the path in their first line; its commands)"""
    text = (ROOT / "README.md").read_text().split(f"\n### {title}\n")[1].split("\n## ")[0].split("\n### ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    files = {code.partition("\n")[0].removeprefix("# "): code for kind, code in blocks if kind in ("python", "yaml")}
    return files, [line for kind, code in blocks if kind == "bash" for line in code.splitlines()]


def follow(title: str, folder: Path) -> str:
    """Write the files into an empty folder and type the commands. Returns what the screen shows."""
    files, commands = recipe(title)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    shown = ""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for line in commands:
        program, *arguments = shlex.split(line)
        assert program == "al-bench"
        done = subprocess.run(
            [sys.executable, "-m", "al_bench", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        shown += done.stdout
    return shown


def test_the_recipe_of_a_strategy(tmp_path):
    shown = follow("A strategy", tmp_path)
    assert re.search(r"^mine.strongest_second obeys all \d+ rules\.$", shown, re.MULTILINE)
    runs = {p.parent.parent.name: lines_of(p.parent) for p in (tmp_path / "results").rglob("seed=1/rounds.jsonl")}
    assert runs["strongest_second"][0]["acquired"] != runs["random"][0]["acquired"]
    assert (tmp_path / "results" / "default" / "report" / "index.html").is_file()


def test_the_recipe_of_a_model(tmp_path):
    follow("A model", tmp_path)
    info = json.loads((tmp_path / "results/default/digits/tiny/20+5x20/bald/seed=0/run.json").read_text())
    assert info["state"] == "finished" and "my_model" in info["model_code"]["modules"]


def test_the_recipe_of_a_data_set(tmp_path):
    follow("A data set", tmp_path)
    (folder,) = (p.parent for p in (tmp_path / "results/default/stripes").rglob("run.json"))
    info = json.loads((folder / "run.json").read_text())
    assert info["dataset"]["classes"] == ["lying", "standing"] and info["dataset"]["n_test"] == 120
    assert lines_of(folder)[-1]["metrics"]["accuracy"] > 0.8  # the stripes can be told apart


def test_the_recipe_of_a_metric(tmp_path):
    follow("A metric", tmp_path)
    found = al_bench.read(tmp_path / "results" / "top2")
    assert len(found) == 4 * 6 and (found["top2"] >= found["accuracy"]).all() and found["top2"].max() > 0.5
    page = tmp_path / "results" / "top2" / "report-top2"
    assert "top2" in (page / "verdict.txt").read_text()
    assert list(pd.read_csv(page / "rounds.csv")["top2"]) == list(found["top2"])


def test_the_notebook_draws_the_curves_of_the_committed_runs(monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT / "results")
    cells = json.loads(Path("redraw.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    # Stored, so that GitHub shows them; made by: jupyter nbconvert --to notebook --execute --inplace redraw.ipynb
    _, table, drawn = (output["data"] for cell in cells for output in cell.get("outputs", ()))
    assert "".join(table["text/plain"]) == repr(names["curves"].tail()) and len(drawn["image/png"]) > 10_000
    assert Path("redraw.ipynb").stat().st_size < 150_000
    lines = {line.get_label(): line.get_xydata() for line in names["ax"].lines}
    summary = pd.read_csv("repeated_mnist/summary.csv").set_index("strategy")
    assert set(lines) == set(summary.index)
    for strategy, points in lines.items():
        assert points[-1, 1] == pytest.approx(summary["final_accuracy"][strategy])
    assert np.isfinite([line.get_ydata() for line in names["ax"].lines]).all()
    names["plt"].close(names["figure"])
