"""A schedule: which strategy chooses in which rounds."""

import pytest
import torch
from conftest import asked, lines_of, pulled_plug, run_here

from al_bench import plan
from al_bench.check.command import load as load_to_check
from al_bench.errors import UserError
from al_bench.loop import run
from al_bench.provenance import code_version
from al_bench.schedule import stages_of, with_stages
from al_bench.store import RunStore
from al_bench.strategies import load, needs
from al_bench.strategies.diversity import typiclust
from al_bench.strategies.uncertainty import margin

MINE = "strategy.schedule=[{strategy:mc_margin,rounds:1},{_target_:test_schedule.every_other,step:3}]"
ROUNDS = ("budget.rounds=5",)
MARGIN = "al_bench.strategies.uncertainty.margin"


@needs(predictions=False, embeddings=True)
def every_other(view, k, rng, *, step=2):
    return step * torch.arange(k)


def schedule(*stages, **settings):
    return {"name": "mine", "schedule": list(stages)} | settings


def test_tcm_is_typiclust_for_three_rounds_and_margin_in_all_others():
    tcm = load(asked("strategy=tcm").strategy)
    functions = [getattr(tcm.at(round).function, "func", None) for round in (0, 1, 2, 3, 4, 100)]
    assert functions == [typiclust] * 3 + [margin] * 3
    assert [stage.name for stage in tcm.stages] == ["tcm (typiclust)", "tcm (margin)"]
    assert tcm.at(0).needs.features and not tcm.at(0).needs.predictions and not tcm.at(3).needs.features


def test_stages_end_where_their_rounds_end():
    stages = ({"strategy": name, "rounds": n} for name, n in (("random", 1), ("margin", 2), ("entropy", 1)))
    strategy = load(schedule(*stages, {"strategy": "badge"}))
    names = [strategy.at(round).name[6:-1] for round in range(6)]
    assert names == ["random", "margin", "margin", "entropy", "badge", "badge"]


def test_a_run_acquires_what_the_stage_of_each_round_chooses(tmp_path):
    tcm, all_typical = (lines_of(run_here(tmp_path, *ROUNDS, f"strategy={s}").folder) for s in ("tcm", "typiclust"))
    acquired = [[record["acquired"] for record in records] for records in (tcm, all_typical)]
    assert acquired[0][:3] == acquired[1][:3] and acquired[0][3] != acquired[1][3]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    settings = (*ROUNDS, "strategy=tcm", MINE, "strategy.name=mine")
    whole = run_here(tmp_path / "whole", *settings)
    with pulled_plug(40):
        run_here(tmp_path / "killed", *settings)
    again = run_here(tmp_path / "killed", *settings)
    assert lines_of(again.folder) == lines_of(whole.folder)
    pool_positions = [record["acquired"] for record in lines_of(whole.folder)]
    assert len(pool_positions) == 6 and pool_positions[1] == sorted(pool_positions[1]) != pool_positions[0]


def test_the_configuration_holds_all_settings_of_each_stage_and_may_be_read_again(tmp_path):
    c = asked("strategy=tcm", MINE, "strategy.name=mine", "strategy.candidates=300")
    first, second = c.strategy["schedule"]
    assert (first["_target_"], first["passes"]) == ("al_bench.strategies.uncertainty.margin", 20)
    assert (second["name"], second["step"], second["candidates"]) == ("every_other", 3, 300)
    assert with_stages(c.strategy) == c.strategy and load(c.strategy).at(3).candidates == 300
    assert {"al_bench.strategies.uncertainty", "test_schedule"} <= code_version(c.strategy)["modules"].keys()
    margin_alone = asked("strategy=margin").strategy
    assert with_stages(margin_alone) is margin_alone and stages_of(margin_alone) == [margin_alone]


def test_another_schedule_in_the_same_folder_is_refused(tmp_path):
    run_here(tmp_path, "strategy=tcm")
    with pytest.raises(UserError, match="was made by another configuration:\n  strategy.schedule: there"):
        run_here(tmp_path, "strategy=tcm", "strategy.schedule=[{strategy:typiclust,rounds:2},{strategy:margin}]")


def test_a_plan_counts_each_stage_by_itself():
    settings = ("strategy=tcm", MINE, "strategy.name=mine", "budget.initial=38", "budget.query=100", "budget.rounds=3")
    made = plan.make(asked(*settings, "strategy.candidates=500"))
    assert made.predicted == [500 * 20, 500, 500, 0]
    assert made.memory["predictions of the pool"] == 4 * (128 + 20 * 10) * 500
    assert plan.make(asked("strategy=tcm", *settings[3:], "budget.rounds=5")).predicted[:4] == [0, 0, 0, 1438 - 338]


def test_the_check_tries_each_stage():
    assert [(function.func, S) for function, S in load_to_check("tcm", [])] == [(typiclust, 1), (margin, 1)]


@pytest.mark.parametrize(
    "settings, said",
    [
        (schedule(), "strategy.schedule of mine: a list of stages, such as {strategy: typiclust, rounds: 3}."),
        (schedule("margin"), "strategy.schedule of mine: a list of stages"),
        (schedule({"rounds": 2}), "mine, stage 1: name one of al_bench's strategies"),
        (schedule({"strategy": "margin", "_target_": "a.b"}), "mine, stage 1: name one of al_bench's strategies"),
        (schedule({"strategy": "best"}), "mine, stage 1: best is no strategy of al_bench that can be a stage."),
        (schedule({"strategy": "tcm"}), "mine, stage 1: tcm is no strategy of al_bench that can be a stage."),
        (schedule({"strategy": "margin"}, {"strategy": "badge"}), "mine, stage 1: rounds=None: the number of rounds"),
        (schedule({"strategy": "margin", "rounds": 0}, {"strategy": "badge"}), "mine, stage 1: rounds=0: the number"),
        (schedule({"strategy": "margin", "rounds": 2}), "mine, stage 1: leave out rounds=2: the last stage chooses"),
        (schedule({"strategy": "margin", "passes": 1}), "mine, stage 1: strategy.passes=1: from 2 to 10,000, or null"),
        (schedule({"strategy": "margin", "beta": 1}), "strategy mine (margin): al_bench.strategies.uncertainty.margin"),
        (schedule({"strategy": "margin"}, passes=4), "mine is a schedule, so passes belongs into one of its stages."),
        (schedule({"strategy": "margin"}, name="badge"), "strategy.name=badge belongs to another strategy."),
        (schedule({"strategy": "margin"}, name="tcm"), "strategy.name=tcm belongs to another strategy."),
        (
            schedule({"strategy": "replay", "study": "a", "of": "margin"}),
            "strategy mine (replay_${strategy.of}): a run that replays another one does so in all rounds.",
        ),
        ({"name": "margin", "_target_": MARGIN, "rounds": 1}, "unexpected keyword argument 'rounds'"),
    ],
)
def test_a_mistake_in_a_schedule_gets_a_sentence(settings, said):
    with pytest.raises(UserError) as error:
        load(settings)
    assert said in str(error.value)


def test_what_contradicts_the_other_settings_is_found_in_each_stage():
    mine = ("strategy=tcm", "strategy.name=mine")
    with pytest.raises(UserError, match="strategy.candidates=5: 20 or more"):
        asked(*mine, "strategy.schedule=[{strategy:margin,candidates:5}]")
    with pytest.raises(UserError, match="strategy.members trains its nets from fresh weights"):
        asked(*mine, "strategy.schedule=[{strategy:margin,members:3}]", "trainer.start=previous")


def test_a_bad_option_of_a_later_stage_stops_before_anything_is_trained(tmp_path):
    c = asked(
        f"results_dir={tmp_path}",
        "strategy=tcm",
        "strategy.name=mine",
        "strategy.schedule=[{strategy:random,rounds:9},{strategy:falcun,gamma:-1}]",
    )
    store = RunStore(c)
    with (
        pytest.raises(UserError, match=r"strategy mine \(falcun\), round 0: gamma has to be at least 0"),
        store.at_work(),
    ):
        run(c, store)
