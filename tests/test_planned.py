"""Which seeds were planned together, and what a report says of seeds that were added."""

import subprocess
import sys

import pytest
from conftest import command
from test_report import the_study, two_arms, write_run

from al_bench.analysis import planned, power, verdict
from al_bench.analysis.compare import VersusRandom
from al_bench.analysis.stats import PairedDifference
from al_bench.errors import UserError


def begin(setting, strategy, *seeds, lines="{}\n"):
    for seed in seeds:
        (setting / strategy / f"seed={seed}").mkdir(parents=True, exist_ok=True)
        (setting / strategy / f"seed={seed}" / "rounds.jsonl").write_text(lines)


def test_seeds_that_are_planned_before_any_result_are_one_plan(tmp_path):
    planned.note(tmp_path, {0, 1, 2})
    begin(tmp_path, "random", 0, lines="")  # killed in its first round
    planned.note(tmp_path, {0, 1, 2, 3, 4})
    planned.note(tmp_path, {1})
    assert planned.read(tmp_path) == [{0, 1, 2, 3, 4}]


def test_seeds_that_are_added_after_a_result_are_another_plan(tmp_path):
    planned.note(tmp_path, {0, 1, 2})
    begin(tmp_path, "random", 0, 1)
    planned.note(tmp_path, {0, 1, 2})  # the same command continues
    planned.note(tmp_path, {1, 2, 3})
    planned.note(tmp_path, {3, 9})
    assert planned.read(tmp_path) == [{0, 1, 2}, {3}, {9}]


def test_runs_that_were_made_without_a_plan_count_as_the_first(tmp_path):
    begin(tmp_path, "random", 0, 1)
    begin(tmp_path, "margin", 0)
    planned.note(tmp_path, {0, 1})
    assert planned.read(tmp_path) == []  # all there already: nothing is added
    planned.note(tmp_path, {0, 1, 2})
    assert planned.read(tmp_path) == [{0, 1}, {2}]


@pytest.mark.parametrize("content", ["{", "[1, 2]", '[["a"]]', "[" * 100_000, "3"])
def test_a_damaged_list_is_told(tmp_path, content):
    (tmp_path / planned.PLANS).write_text(content)
    with pytest.raises(UserError, match="is no list of lists of seeds. Delete it if all seeds were planned together."):
        planned.read(tmp_path)


def test_a_sweep_notes_its_seeds(tmp_path):
    quick = ["strategy=random,margin", "trainer.max_steps=1", "budget.rounds=1", "results_dir=here"]
    for seeds in ("0,1", "0,1", "2"):
        assert command(tmp_path, "-m", *quick, f"seed={seeds}").returncode == 0
    (setting,) = (tmp_path / "here" / "default" / "digits" / "small_cnn").iterdir()
    assert planned.read(setting) == [{0, 1}, {2}]


def add_pair(root, seed):
    level, own = 0.01 * seed, 0.1 + 0.002 * seed
    write_run(root, "random", seed, (0.5 + level, 0.6 + level, 0.7 + level))
    write_run(root, "margin", seed, (0.5 + level, 0.6 + level + own, 0.7 + level + own))


def test_so_few_pairs_after_several_looks_are_no_call():
    area = PairedDifference(6, 0.1, 0.01, 0.09, 0.11, 0.95, 0.001, smallest_p=2 / 2**6)
    v = VersusRandom([*range(6)], area, None, None, None, (), n_looks=2)
    assert v.why_no_call == "6 pairs can never reach p <= 0.05 after 2 looks: the smallest possible p is 0.062"


def test_each_look_takes_its_share_of_alpha(tmp_path):
    two_arms(tmp_path, n=6)
    setting = next(tmp_path.rglob("seed=0")).parents[1]
    once = the_study(tmp_path).versus_random["margin"]
    (setting / planned.PLANS).write_text("[[0, 1, 2, 3, 4], [5]]")
    assert the_study(tmp_path).n_looks == 1  # 5 pairs allow no call, so nothing could be called at the first look
    for seed in (6,):
        add_pair(tmp_path, seed)
    (setting / planned.PLANS).write_text("[[0, 1, 2, 3, 4, 5], [6]]")
    twice = the_study(tmp_path)
    assert once.test.p == 2 / 2**6 and once.significant
    assert twice.n_looks == 2 and twice.versus_random["margin"].test.p == 2 * 2 / 2**7
    assert verdict.sentences(twice)[0].endswith("n = 7 pairs, p = 0.031.")
    could = power.detectable(7, twice.versus_random["margin"].area.sd, 0.05 / 2)
    assert (
        verdict.how_close(twice, "margin")
        == f"A difference of {100 * could:.1f} points would have shown {power.DELIVERED}."
    )
    (note,) = (note for note in twice.notes if "looks" in note)
    assert note.startswith("Seeds were added after results could be read (6): 2 looks at the data.")
    add_pair(tmp_path, 7)
    (setting / planned.PLANS).write_text("[[0, 1, 2, 3, 4, 5], [6], [7]]")
    # 3 * 2 / 2^8 = 0.023. With a fourth look 7 pairs would not reach 0.05.
    assert the_study(tmp_path).versus_random["margin"].test.p == 3 * 2 / 2**8
    (setting / planned.PLANS).write_text("[[0, 1, 2, 3, 4, 5], [77], [6, 7]]")
    assert the_study(tmp_path).n_looks == 2  # no run of 77 is there


def test_a_plan_of_other_seeds_is_no_look(tmp_path):
    two_arms(tmp_path, n=6)
    setting = next(tmp_path.rglob("seed=0")).parents[1]
    (setting / planned.PLANS).write_text("[[0, 1, 2, 3, 4, 5], [77]]")
    assert the_study(tmp_path).n_looks == 1
    (setting / planned.PLANS).write_text("nonsense")
    found = the_study(tmp_path)
    assert found.n_looks == 1 and any("is no list of lists of seeds" in note for note in found.notes)


def test_a_command_starts_without_torch_and_without_the_statistics():
    """Each command imports sweep.py, and scipy alone takes longer than all the rest."""
    ask = "import sys, al_bench.sweep; print([name for name in ('torch', 'scipy', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
