"""When a run ends, and the full-data reference that it may end at."""

from dataclasses import replace

import pytest
from conftest import asked, run_here
from test_store import DATA, SETS, record

from al_bench import loop, stopping
from al_bench.config import StopConfig
from al_bench.errors import UserError
from al_bench.models.learner import Learner
from al_bench.stopping import find_reference, is_reached
from al_bench.store import RunStore

FULL = ("budget=full", "budget.initial=null", "budget.rounds=0")


def test_a_pool_without_a_round_limit_is_acquired_to_the_last_image(tmp_path):
    store = run_here(tmp_path, "budget.rounds=null", "budget.query=500", "trainer.max_steps=2")
    assert [r.n_labelled for r in store.records()] == [20, 520, 1020, 1438 - 20]
    assert store.info()["stopped"] == "the pool is empty"


def test_a_run_stops_where_the_full_data_reference_is_reached_on_validation(tmp_path):
    longer = ("trainer.max_steps=80", "budget.validation=100")
    target = run_here(tmp_path, *FULL, *longer).records()[0].validation["accuracy"]
    stop = ("budget.stop.at=validation", "budget.stop.tolerance=0.1", "budget.rounds=30")
    stops = run_here(tmp_path, *longer, *stop)
    accuracies = [r.validation["accuracy"] for r in stops.records()]
    assert all(a < target - 0.1 for a in accuracies[:-1]) and accuracies[-1] >= target - 0.1
    assert 1 < len(accuracies) < 31
    assert stops.info()["stopped"].startswith("the full-data reference is reached on validation")


def test_a_missing_or_different_reference_is_an_error_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match="Train it first: the same command with budget=full"):
        run_here(tmp_path, "budget.stop.at=validation")
    run_here(tmp_path, *FULL, "trainer.max_steps=3")
    with pytest.raises(UserError, match=r"has another trainer\.max_steps"):
        run_here(tmp_path, "budget.stop.at=validation")


def test_the_reference_is_trained_by_the_same_command_and_the_one_that_fits_is_taken(tmp_path):
    stop = ("budget.stop.at=validation", "budget.stop.tolerance=1")
    run_here(tmp_path, *FULL, "strategy=entropy", "trainer.max_steps=2")
    full = run_here(tmp_path, *FULL, *stop, "strategy=margin", "trainer.max_steps=3")
    assert full.info()["state"] == "finished" and len(full.records()) == 1
    assert run_here(tmp_path, *stop, "strategy=margin", "trainer.max_steps=3").info()["state"] == "finished"
    with pytest.raises(UserError, match=r"has another trainer\.max_steps\. Delete it and train it again"):
        run_here(tmp_path, *stop, "strategy=margin", "trainer.max_steps=4", "budget.query=5")


@pytest.mark.parametrize(
    "accuracy, two_sided, reached",
    [(0.8806, False, False), (0.8807, False, True), (0.95, False, True), (0.8807, True, True), (0.8857, True, True),
     (0.8858, True, False), (0.95, True, False)],
)  # fmt: skip
def test_the_stop_rule_by_hand(accuracy, two_sided, reached):
    assert is_reached(accuracy, 0.8832, StopConfig(tolerance=0.0025, two_sided=two_sided)) is reached


@pytest.fixture
def dictated(monkeypatch):
    """Run with a target of 0.8 and these results of its fits: (validation loss, validation accuracy, test accuracy)."""

    def run(folder, fits, *options):
        validated = iter([{"loss": loss, "accuracy": validation} for loss, validation, _ in fits])
        tested = iter([test for *_, test in fits])
        with monkeypatch.context() as patch:
            patch.setattr(stopping, "find_reference", lambda c: None)
            patch.setattr(stopping, "stop_rule", lambda c, *_: stopping.StopRule(c.budget, 0.8))
            patch.setattr(Learner, "validate", lambda *_: next(validated))
            measure = loop.measure
            patch.setattr(loop, "measure", lambda *x: measure(*x) | {"accuracy": next(tested)})
            asks = ("trainer.max_steps=1", f"budget.rounds={len(fits) - 1}", "budget.stop.at=validation")
            return run_here(folder, *asks, *options)

    return run


def test_best_so_far_is_the_best_of_all_rounds_and_not_better_than_the_last(tmp_path, dictated):
    run = dictated(tmp_path, [(1, 0, 0), (3, 0, 0), (2, 0, 0), (0.5, 0, 0)], "trainer.start=best")
    assert [r.weights_from for r in run.records()] == [0, 0, 0, 3]


@pytest.mark.parametrize("at", ["validation", "test"])
def test_a_run_stops_by_the_accuracy_it_names_and_not_by_the_other(tmp_path, dictated, at):
    fits = [(1, 0.9, 0.5), (1, 0.5, 0.9), (1, 0.5, 0.5)]
    run = dictated(tmp_path, fits if at == "test" else [fits[1], fits[0], fits[2]], f"budget.stop.at={at}")
    assert len(run.records()) == 2
    assert run.info()["stopped"] == f"the full-data reference is reached on {at} (80.00%)"


def test_a_fit_that_is_thrown_away_does_not_stop_the_run(tmp_path, dictated):
    run = dictated(tmp_path, [(1, 0.5, 0), (2, 0.9, 0), (3, 0.9, 0)], "trainer.start=best")
    assert len(run.records()) == 3 and run.info()["stopped"] == "the budget is used up"


def test_a_reference_on_other_images_is_refused(tmp_path, monkeypatch):
    store = run_here(tmp_path, *FULL, "trainer.max_steps=3")
    store.note(dataset=store.info()["dataset"] | {"checksum": "another"})
    with pytest.raises(UserError, match="The full-data reference was trained on other images"):
        run_here(tmp_path, "budget.stop.at=validation", "trainer.max_steps=3")


def test_a_reference_with_another_validation_set_is_refused(tmp_path):
    here = (f"results_dir={tmp_path}", "strategy=entropy")
    full = RunStore(asked(*here, "budget=full", "budget.validation=30"))
    with full.at_work():
        full.identify(DATA, SETS)
        full.append(replace(record(0, acquired=()), validation={"accuracy": 0.7}))
    other = ("budget.initial=40", "budget.query=7", "budget.stop.at=test")  # a full-data run ignores these
    found = find_reference(asked(*here, *other, "budget.validation=30"))
    assert found == ({"test": 0.5, "validation": 0.7}, "one", None)
    with pytest.raises(UserError, match=r"has another budget\.validation\. Delete it"):
        find_reference(asked(*here, *other, "budget.validation=20"))
    full.rounds_path.write_text("")
    with pytest.raises(UserError, match="has lost its rounds. Train it again with budget=full"):
        find_reference(asked(*here, *other, "budget.validation=30"))
