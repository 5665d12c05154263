"""al-bench report MINE --with PUBLISHED: one's own runs beside those of a published study."""

import pytest
from test_report import two_arms, write_run

from al_bench.analysis import published, report, results


@pytest.fixture
def study(tmp_path):
    """A published study of random and margin with six seeds: its folder holds the archive alone."""
    two_arms(tmp_path / "made", study="theirs")
    folder = tmp_path / "frozen"
    folder.mkdir()
    published.pack(results.find(tmp_path / "made"), tmp_path / "made", folder / published.ARCHIVE)
    return folder


def newcomer(root, **kwargs):
    for seed in range(6):
        level = 0.01 * seed
        write_run(root, "mine", seed, (0.5 + level, 0.65 + level + 0.002 * seed, 0.75 + level), study="own", **kwargs)


def told(capsys, *arguments):
    code = report.main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out + err


def test_a_newcomer_is_compared_with_published_runs_as_if_they_lay_in_its_study(tmp_path, study, capsys):
    newcomer(tmp_path / "results")
    code, beside = told(capsys, tmp_path / "results" / "own", "--with", study)
    folder = tmp_path / "results" / "own" / "report-with-frozen"
    assert code == 0 and (folder / "index.html").is_file()
    newcomer(tmp_path / "together")
    two_arms(tmp_path / "together", study="own")
    _, together = told(capsys, tmp_path / "together" / "own")
    assert beside.splitlines()[1:] == together.splitlines()[1:]
    assert "mine is better than random" in beside and "margin is better than random" in beside
    assert not (tmp_path / "results" / "own" / "report").exists()  # the plain report is another one


@pytest.mark.parametrize(
    "odd, why",
    [
        ({"data": "b"}, "other images than most runs (dataset checksum)"),
        ({"steps": 200}, "another configuration: trainer.max_steps=200 (others 100)"),
        ({"start": "t"}, "another initial set than most runs of seed 0"),
    ],
)
def test_what_does_not_match_is_left_out_and_said(tmp_path, study, capsys, odd, why):
    newcomer(tmp_path / "results", **odd)
    code, words = told(capsys, tmp_path / "results" / "own", "--with", study)
    assert code == 0 and f"Left out: mine, seed 0: {why}" in words


def test_runs_that_both_have_count_once_and_are_ours(tmp_path, study, capsys):
    newcomer(tmp_path / "results")
    write_run(tmp_path / "results", "random", 0, (0.1, 0.1, 0.1), study="own")
    with published.opened(study) as theirs:
        runs, unmatched = theirs.joined(results.find(tmp_path / "results"))
    (first, second) = (run for run in runs if (run.strategy, run.seed) == ("random", 0))
    assert first.metrics["accuracy"].tolist() == [0.1] * 3 and second.metrics["accuracy"][0] == 0.5
    assert unmatched == []
    _, words = told(capsys, tmp_path / "results" / "own", "--with", study)
    assert "Left out: random, seed 0: there twice, and counted once" in words


def test_a_few_runs_of_ones_own_by_newer_code_do_not_replace_the_published_ones(tmp_path, capsys):
    for seed in range(6):
        write_run(tmp_path / "made", "random", seed, (0.5, 0.6, 0.7), study="theirs", code="old")
        write_run(tmp_path / "made", "margin", seed, (0.5, 0.7 + 0.01 * seed, 0.8), study="theirs", code="old")
    folder = tmp_path / "frozen"
    folder.mkdir()
    published.pack(results.find(tmp_path / "made"), tmp_path / "made", folder / published.ARCHIVE)
    newcomer(tmp_path / "results")
    write_run(tmp_path / "results", "random", 0, (0.5, 0.6, 0.7), study="own", code="new", time="2026-02-02")
    _, words = told(capsys, tmp_path / "results" / "own", "--with", folder)
    assert "Left out: random, seed 0: another version of its code than the published runs of random, which" in words
    assert "n = 6 pairs" in words and "no call" not in words and "delete" not in words


def test_each_of_several_studies_gets_the_published_runs(tmp_path, study, capsys):
    newcomer(tmp_path / "results" / "one")
    newcomer(tmp_path / "results" / "two")
    for name in ("one", "two"):
        (tmp_path / "results" / name / "own").rename(tmp_path / "results" / f"own_{name}")
        (tmp_path / "results" / name).rmdir()
    _, words = told(capsys, tmp_path / "results", "--with", study)
    assert words.count("margin is better than random") == words.count("mine is better than random") == 2


def test_a_setting_without_a_match_is_named_and_with_none_at_all_it_is_an_error(tmp_path, study, capsys):
    newcomer(tmp_path / "results", dataset="mnist")
    code, words = told(capsys, tmp_path / "results" / "own", "--with", study)
    assert code == 1
    assert "frozen has no runs of mnist / small_cnn / 10+2x10. It has runs of these data sets, models and" in words
    assert "  digits / small_cnn / 10+2x10" in words
    newcomer(tmp_path / "results")
    code, words = told(capsys, tmp_path / "results" / "own", "--with", study)
    assert code == 0 and "frozen has no runs of mnist / small_cnn / 10+2x10." in words


def test_the_same_runs_make_the_same_archive_with_all_that_was_acquired(tmp_path, study):
    again = tmp_path / "again.tar.xz"
    published.pack(reversed(results.find(tmp_path / "made")), tmp_path / "made", again)
    assert again.read_bytes() == (study / published.ARCHIVE).read_bytes()
    acquired = {(r.strategy, r.seed): [a.tolist() for a in r.acquired] for r in results.find(tmp_path / "made")}
    with published.opened(study) as theirs:
        assert {(r.strategy, r.seed): [a.tolist() for a in r.acquired] for r in theirs.runs} == acquired


@pytest.mark.parametrize("part", [0, 0.1, 0.7])
def test_a_damaged_archive_and_an_empty_folder_are_named(tmp_path, study, capsys, part):
    newcomer(tmp_path / "results")
    archive = study / published.ARCHIVE
    archive.write_bytes(archive.read_bytes()[: int(part * archive.stat().st_size)])
    code, words = told(capsys, tmp_path / "results" / "own", "--with", study)
    assert code == 1 and f"{archive} cannot be unpacked" in words
    archive.unlink()
    code, words = told(capsys, tmp_path / "results" / "own", "--with", study)
    assert code == 1 and "holds no runs" in words
