"""The command `al-bench check`: its output, its messages for mistakes, and its exit code."""

import re

import pytest

from al_bench.check.command import TO_REBUILD, main
from al_bench.check.rules import RULES, few_labels, ties_are_drawn


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_checked.py").write_text(MINE)
    (tmp_path / "mine_unclosed.py").write_text("x = (")
    (tmp_path / "mine.yaml").write_text("name: mine\n_target_: mine_checked.scaled\npasses: 3\nby: 2.0\n")
    (tmp_path / "mine_script.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "list.yaml").write_text("- name: mine\n")
    (tmp_path / "latin.yaml").write_bytes("name: médiane\n".encode("latin-1"))
    (tmp_path / "nothing.yaml").write_text("_target_:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


MINE = """
import torch
from al_bench.strategies import needs, top_k
from al_bench.strategies.uncertainty import entropy_score

NUMBER = 3

def scaled(view, k, rng, *, by=1.0):
    return top_k(by * entropy_score(view.log_probs_PSC), k, rng)

def by_index(view, k, rng):
    return entropy_score(view.log_probs_PSC).argsort(descending=True, stable=True)[:k]

@needs(passes=True)
def committee(view, k, rng):
    assert view.log_probs_PSC.shape[1] > 1
    return top_k(entropy_score(view.log_probs_PSC), k, rng)

def undeclared(view, k, rng):
    return top_k(view.features_PF[:, 0], k, rng)

def no_strategy(view):
    return view

def leaves(view, k, rng):
    raise SystemExit

@needs(memory=lambda size: exit())
def leaves_by_its_needs(view, k, rng):
    return torch.arange(k)

def is_stopped(view, k, rng):
    raise KeyboardInterrupt

class Chooser:
    pass

@needs(embeddings=True)
def far_from_labels(view, k, rng):
    return top_k(torch.cdist(view.emb_PD.double(), view.labelled_emb_LD.double()).min(1).values, k, rng)
"""


@pytest.mark.parametrize(
    "ask", ["entropy", "mine_checked.scaled", "mine_checked.scaled by=2", "mine_checked.committee", "mine.yaml"]
)
def test_the_command_prints_a_line_a_rule_and_a_verdict(mine, capsys, ask):
    assert main(ask.split()) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("         not compared: ")]
    assert lines == [f"ok       {rule.__doc__}" for rule in RULES] + [f"{ask.split()[0]} obeys all {len(RULES)} rules."]


def test_the_command_says_what_failed_and_stops_where_nothing_runs(mine, capsys):
    assert main(["mine_checked.by_index"]) == 1
    out = capsys.readouterr().out
    assert f"FAILED   {ties_are_drawn.__doc__}\n         In 30 draws the 12 images were chosen [30, 30" in out
    assert out.splitlines()[-2:] == [TO_REBUILD, f"mine_checked.by_index breaks 2 of {len(RULES)} rules."]
    assert main(["mine_checked.undeclared"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [TO_REBUILD, "mine_checked.undeclared does not run, so the other rules were not tried."]


def test_one_cause_is_told_once(mine, capsys):
    assert main(["mine_checked.far_from_labels"]) == 1
    *_, verdict = lines = capsys.readouterr().out.splitlines()
    remarks = [lines[i + 1].strip() for i, line in enumerate(lines) if line.startswith("FAILED ")]
    assert remarks[0].startswith("It raised IndexError: ") and "Input: make_view(Size(P=5, L=0" in remarks[0]
    assert remarks[1:] == [f"The same cause broke this rule above: {few_labels.__doc__}"] * 2
    assert verdict == f"mine_checked.far_from_labels breaks 3 of {len(RULES)} rules, from 1 cause."
    assert main(["mine_checked.undeclared"]) == main(["mine_checked.by_index"]) == 1
    assert "same cause" not in capsys.readouterr().out


def test_the_imports_that_are_told_rebuild_an_input(mine, capsys):
    assert main(["mine_checked.undeclared"]) == 1
    out, known = capsys.readouterr().out, {}
    exec(TO_REBUILD.removeprefix("To rebuild an input: "), known)
    assert eval(out.split("Input: ")[1].split(", k=2, seed")[0], known).n_pool == 5


@pytest.mark.parametrize("name, line", [("leaves", 26), ("leaves_by_its_needs", 28)])
def test_a_strategy_that_leaves_the_process_fails_like_any_other(mine, capsys, name, line):
    assert main([f"mine_checked.{name}"]) == 1
    failed, remark, _, last = capsys.readouterr().out.splitlines()
    assert failed.startswith("FAILED   It runs on a random pool")
    assert f"It asks to end the process, as sys.exit() does (mine_checked.py, line {line})." in remark
    assert last == f"mine_checked.{name} does not run, so the other rules were not tried."


def test_ctrl_c_ends_the_check_in_a_sentence(mine, capsys):
    assert main(["mine_checked.is_stopped"]) == 130
    assert capsys.readouterr().err == "al_bench: Interrupted.\n"


def test_in_a_terminal_the_lines_fit_and_keep_their_margin(mine, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["mine_checked.by_index"]) == 1
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().out.replace("\r", "\n")).splitlines()
    lines = [line for line in shown if line.startswith(("ok  ", "FAILED  ", "         "))]
    assert len(lines) > len(RULES) + 4 and max(map(len, lines)) <= 80
    told = " ".join(line[9:] for line in lines)
    assert all(rule.__doc__ in told for rule in RULES) and "In 30 draws the 12 images were chosen [30, 30" in told


@pytest.mark.parametrize(
    "ask, said",
    [
        ("entrpy", "There is no strategy entrpy. Name your own with its module, as in my_module.my_strategy. Did"),
        ("nowhere.yaml", "There is no strategy nowhere.yaml."),
        ("broken.yaml", "broken.yaml  cannot be read: "),
        ("list.yaml", "list.yaml holds a list. A strategy's file holds keys: name, _target_ and its options."),
        ("latin.yaml", "latin.yaml  cannot be read: 'utf-8' codec can't decode"),
        ("nothing.yaml", "nothing.yaml: _target_=None is not a dotted path such as my_module.my_strategy."),
        ("badge _target_=[a]", "badge: _target_=['a'] is not a dotted path such as my_module.my_strategy."),
        ("mine_script.f", "mine_script.f cannot be loaded: it asks to end the process, by SystemExit(0)."),
        ("no_module.f", "no_module.f cannot be loaded: No module named 'no_module'."),
        ("mine_unclosed.f", "mine_unclosed.f cannot be loaded: '(' was never closed"),
        ("mine_checked.f", "mine_checked.f cannot be loaded: module 'mine_checked' has no attribute 'f'."),
        ("mine_checked.NUMBER", "mine_checked.NUMBER cannot be loaded: it is of type int, which cannot be called."),
        ("mine_checked.Chooser", "mine_checked.Chooser is not a function. A strategy is a function: (view, k, rng,"),
        ("mine_checked.no_strategy", "(too many positional arguments). A strategy is called as (view, k, rng)."),
        ("mine_checked.scaled bye=2", "argument 'bye'). A strategy is called as (view, k, rng, bye=...)."),
        ("mine_checked.scaled by", "by: type an option as name=value."),
    ],
)
def test_a_mistake_gets_a_sentence(mine, capsys, ask, said):
    assert main(ask.split()) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("al_bench: ") and said in shown.err and shown.out == ""


def test_without_a_name_the_command_says_how_it_is_used(capsys):
    assert main([]) == 1 and main(["--help"]) == 0
    assert capsys.readouterr().out.count("al-bench check NAME [option=value ...]") == 2
