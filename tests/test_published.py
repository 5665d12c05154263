"""The committed results: the checks of published bands, and README's words, are what the records say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

import check_results  # noqa: E402
import published  # noqa: E402


@pytest.mark.parametrize(
    "bounds, line",
    [
        ({"low": 3}, "pass  x: gap: 3.0 points (wanted: at least 3)"),
        ({"low": 5.5}, "miss  x: gap: 3.0 points (wanted: at least 5.5, missed by 2.5)"),
        ({"high": 2}, "miss  x: gap: 3.0 points (wanted: at most 2, missed by 1.0)"),
        ({"low": 4, "high": 6}, "miss  x: gap: 3.0 points (wanted: 4 to 6, missed by 1.0)"),
        ({"low": 2, "high": 6}, "pass  x: gap: 3.0 points (wanted: 2 to 6)"),
    ],
)
def test_a_band_says_by_how_much_it_is_missed(bounds, line):
    assert str(check_results.Band("x", "gap", 3.0, **bounds)) == line


def test_what_is_never_reached_is_missed():
    labels_R, accuracy_SR = np.array([10, 20, 30]), np.array([[50, 91, 80], [50, 60, 95], [50, 60, 70], [50, 60, 70]])
    assert check_results.median_labels_to(90, labels_R, accuracy_SR[:3]) == 30
    band = check_results.Band("x", "labels", check_results.median_labels_to(90, labels_R, accuracy_SR[1:]), high=120)
    assert str(band).startswith("miss  x: labels: inf")


def test_the_committed_checks_are_those_of_the_committed_records():
    found = [str(band) for band in check_results.bands()]
    assert (ROOT / "results" / "checks.txt").read_text().splitlines() == found


@pytest.mark.parametrize("name", ["digits", "frozen_features"])
def test_the_readme_says_what_the_summary_says(name):
    (words,) = re.findall(rf"<!-- {name} -->\n(.*)<!-- /{name} -->", (ROOT / "README.md").read_text(), re.DOTALL)
    summary = (ROOT / "results" / name / "summary.md").read_text().splitlines()
    assert len(words.splitlines()) > 5 and set(words.splitlines()) <= set(summary)


def test_a_place_in_a_page_is_filled_and_a_missing_one_is_said(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- b -->\nold\n<!-- /b -->\nc\n")
    published.fill(page, b=r"new \1")
    published.fill(page, b=r"newer \1")
    assert page.read_text() == "a\n<!-- b -->\nnewer \\1\n<!-- /b -->\nc\n"
    with pytest.raises(SystemExit, match="no place for d"):
        published.fill(page, d="")


def test_the_scripts_say_what_they_want():
    for name in ("frozen_features", "repeated_mnist"):
        done = subprocess.run([sys.executable, ROOT / "scripts" / f"{name}.py"], capture_output=True, text=True)
        assert done.returncode == 2 and "the following arguments are required" in done.stderr
