import json
from dataclasses import replace

import pytest
import torch
from conftest import lines_of, pulled_plug, run_here
from PIL import Image
from sklearn.datasets import load_digits

from al_bench.data import pool, sources
from al_bench.data.oracle import Oracle
from al_bench.errors import UserError
from al_bench.store import RunStore

STRATEGIES = ("random", "least_confidence", "margin", "entropy")
FULL = ("budget=full", "budget.initial=null", "budget.rounds=0")


def test_strategies_of_one_seed_share_the_initial_set_and_the_first_fit(tmp_path):
    stores = [run_here(tmp_path, f"strategy={s}", "budget.rounds=1") for s in STRATEGIES]
    infos = [s.info() for s in stores]
    assert len({i["initial_set"]["checksum"] for i in infos}) == 1
    assert len({i["validation_set"]["checksum"] for i in infos}) == 1
    first = [lines_of(s.folder)[0] for s in stores]
    assert all(r["metrics"] == first[0]["metrics"] and r["history"] == first[0]["history"] for r in first)
    assert first[0]["acquired"] != first[3]["acquired"]  # random and entropy do differ in what they acquire

    other = run_here(tmp_path, "seed=1", "budget.rounds=1")
    assert other.info()["initial_set"]["checksum"] != infos[0]["initial_set"]["checksum"]
    assert lines_of(other.folder)[0]["metrics"] != first[0]["metrics"]


def test_with_two_classes_the_three_uncertainty_scores_acquire_the_same_images(tmp_path):
    images, labels = load_digits(return_X_y=True)
    for kind in (3, 8):
        (tmp_path / "photos" / str(kind)).mkdir(parents=True)
        for i in (labels == kind).nonzero()[0]:
            pixels = (images[i].reshape(8, 8) * 15.9).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "photos" / str(kind) / f"{i}.png")
    data = ("dataset=image_folder", f"dataset.root={tmp_path}/photos", "dataset.image_size=8")
    runs = [lines_of(run_here(tmp_path, *data, f"strategy={s}").folder) for s in STRATEGIES[1:]]
    assert [[r | {"run": None} for r in run] for run in runs[1:]] == 2 * [[r | {"run": None} for r in runs[0]]]
    assert [len(r["acquired"]) for r in runs[0]] == [10, 10, 10, 0]


class StrictOracle(Oracle):
    """Raises if a label is read in any other way than by acquiring it. `asked`: the indices that were acquired."""

    def __init__(self, oracle: Oracle) -> None:
        self.__dict__ |= {k: v for k, v in oracle.__dict__.items() if k != "_labels_N"}
        self._answers = oracle._labels_N
        self.asked: list[int] = []

    def __getattr__(self, name):
        raise AssertionError(f"somebody looked at {name}")

    def label(self, idx_K):
        self.asked += idx_K.tolist()
        return self._answers[idx_K]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_label_is_read_before_it_is_acquired(tmp_path, monkeypatch, strategy):
    oracles = []

    def load(*args, load=sources.load):
        dataset, oracle = load(*args)
        oracles.append(StrictOracle(oracle))
        return dataset, oracles[0]

    monkeypatch.setattr(sources, "load", load)
    records = run_here(tmp_path, f"strategy={strategy}").records()
    acquired = [i for r in records for i in r.acquired]
    assert len(oracles[0].asked) == len(set(oracles[0].asked)) == 20 + 20 + 30
    assert set(acquired) < set(oracles[0].asked)


def test_labels_that_were_not_acquired_and_test_labels_change_no_decision(tmp_path, monkeypatch):
    honest = run_here(tmp_path / "honest", "strategy=entropy")
    acquired = {i for r in honest.records() for i in r.acquired}

    def load(*args, load=sources.load):
        dataset, oracle = load(*args)
        strict = StrictOracle(oracle)
        first = pool.start(dataset.train_idx, strict, honest.config.budget, 0)
        keep = torch.tensor(sorted({*acquired, *first.labelled_L.tolist(), *first.validation_V.tolist()}))
        scrambled = (oracle._labels_N + 1) % 10
        scrambled[keep] = oracle._labels_N[keep]
        wrong_test = (dataset.test_labels_V + 1) % 10
        return replace(dataset, test_labels_V=wrong_test), Oracle(scrambled, dataset.train_idx)

    monkeypatch.setattr(sources, "load", load)
    lied_to = run_here(tmp_path / "lied_to", "strategy=entropy")

    def decisions(records):
        return [(r.acquired, r.n_labelled, r.validation, r.history) for r in records]

    assert decisions(lied_to.records()) == decisions(honest.records())
    assert lied_to.records()[-1].metrics["accuracy"] < honest.records()[-1].metrics["accuracy"]


def test_the_budget_full_labels_everything_and_fits_once(tmp_path):
    store = run_here(tmp_path, *FULL, "trainer.max_steps=2")
    assert [(r.n_labelled, r.acquired) for r in store.records()] == [(1438 - 20, [])]
    assert store.folder == tmp_path / "default/digits/small_cnn/full/random/seed=0"


def test_best_so_far_answers_the_query_and_throws_worse_fits_away(tmp_path):
    options = ("strategy=entropy", "trainer.start=best", "model.optimizer.lr=0.02", "budget.rounds=6")
    records = run_here(tmp_path, *options).records()
    losses = [r.validation["loss"] for r in records]
    for r in records:
        assert r.weights_from == min(range(r.round + 1), key=losses.__getitem__)
    thrown_away = [r for r in records if r.weights_from != r.round]
    assert thrown_away, "with this learning rate some fits get worse; else the test shows nothing"
    for r in thrown_away:
        assert r.metrics == records[r.weights_from].metrics


@pytest.mark.parametrize("initial, epochs", [(300, 2), (600, 1)])  # 8 steps: an epoch of 5 and a part, or a part of 10
def test_early_stopping_judges_the_weights_of_an_epoch_that_max_steps_cut_short(tmp_path, initial, epochs):
    stopping = ("trainer.max_steps=8", "trainer.early_stopping.patience=50", "budget.rounds=0")
    (record,) = run_here(tmp_path, *stopping, f"budget.initial={initial}").records()
    assert (record.steps, record.epochs, len(record.history)) == (8, epochs, epochs)
    losses = [epoch["val_loss"] for epoch in record.history]
    assert record.validation["loss"] == pytest.approx(min(losses), abs=1e-5)


def test_a_warm_start_goes_on_from_the_previous_weights(tmp_path):
    cold = run_here(tmp_path, "budget.rounds=2").records()
    warm = run_here(tmp_path, "budget.rounds=2", "trainer.start=previous", "study=warm").records()
    assert warm[0].metrics == cold[0].metrics
    assert warm[2].history[0]["loss"] < cold[2].history[0]["loss"] - 0.2


@pytest.mark.parametrize("start", ["previous", "best"])
def test_warm_starts_resume_to_the_same_records(tmp_path, start):
    options = ("strategy=margin", f"trainer.start={start}", "model.optimizer.lr=0.02")
    whole = run_here(tmp_path / "whole", *options)
    for broken_round in (1, 2):
        with pulled_plug(20 + 10 * broken_round):
            run_here(tmp_path / "broken", *options)
    resumed = run_here(tmp_path / "broken", *options)
    assert lines_of(resumed.folder) == lines_of(whole.folder)
    assert not (resumed.folder / "weights").exists()


@pytest.mark.parametrize("lost", ["run.json", "rounds.jsonl"])
def test_a_run_whose_folder_lost_a_file_is_made_whole_again(tmp_path, lost):
    whole = run_here(tmp_path)
    before = lines_of(whole.folder)
    (whole.folder / lost).unlink()
    assert not whole.finished()
    again = run_here(tmp_path)
    assert again.finished() and lines_of(again.folder) == before


def test_the_weights_a_round_started_from_are_kept_until_its_record_is_written(tmp_path, monkeypatch):
    options = ("trainer.start=previous", "trainer.max_steps=5", "budget.rounds=2")
    whole = run_here(tmp_path / "whole", *options)

    def append(store, record, append=RunStore.append):
        if record.round == 1:
            raise RuntimeError("pulled the plug")
        append(store, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append", append)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run_here(tmp_path / "broken", *options)
    assert lines_of(run_here(tmp_path / "broken", *options).folder) == lines_of(whole.folder)


def test_the_run_folder_says_what_was_run(tmp_path):
    store = run_here(tmp_path, "strategy=entropy")
    info = store.info()
    assert info["state"] == "finished"
    assert info["dataset"]["n_train"] == 1438 and info["dataset"]["n_test"] == 359
    assert info["starts"][0]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (store.folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(store.rounds_path.read_text().splitlines()[1])
    assert (record["round"], record["n_labelled"], record["n_val"], len(record["acquired"])) == (1, 30, 20, 10)
    classwise = {"balanced_accuracy", "worst_class", "per_class"}
    assert record["metrics"].keys() == {"accuracy", "nll", "ece", "brier", "macro_f1"} | classwise
    assert record["seconds"].keys() == {"fit", "evaluate", "committee", "predict", "select"}
    assert (record["epochs"], record["steps"]) == (1, 20) and record["peak_memory"] > 1e8
    assert all(sum(r.class_counts) == r.n_labelled for r in store.records())


def test_a_strategy_that_fails_its_contract_is_named_with_its_round(tmp_path):
    with pytest.raises(UserError, match="strategy broken, round 0: it has to return .* but returned NoneType"):
        run_here(tmp_path, "strategy.name=broken", "strategy._target_=builtins.print")
    with pytest.raises(UserError, match="entropy cannot be loaded .*unexpected keyword argument 'tempo'"):
        run_here(tmp_path, "strategy=entropy", "+strategy.tempo=2")
    with pytest.raises(UserError, match="al_bench.strategies.uncertainty.entrop cannot be loaded"):
        run_here(tmp_path, "strategy.name=entrop", "strategy._target_=al_bench.strategies.uncertainty.entrop")


@pytest.mark.parametrize(
    "options, said",
    [
        ("power_margin strategy.score=nowhere.typo", "strategy.score=nowhere.typo cannot be loaded"),
        ("power_margin strategy.score=al_bench.strategies.uncertainty.margin", "power_margin: its options do not fit"),
        ("power_margin strategy.beta=-1", "power_margin, round 0: beta=-1 has to be above 0"),
        ("power_margin strategy.beta=much", "power_margin: its options do not fit it .*str"),
        ("power_bald strategy.passes=5 strategy.how=best", "how=best is none of power, softmax, softrank"),
        ("uncertainty_herding strategy.uncertainty=nowhere", "strategy.uncertainty=nowhere cannot be loaded"),
        ("cal strategy.neighbours=2.5", "cal: its options do not fit it"),
        ("dcom strategy.max_delta=-1", "dcom, round 0: max_delta=-1 has to be above 0"),
        ("coreset strategy.unit=no", "strategy coreset: .* cannot be loaded .unit=no: true or false"),
        ("entropy model.optimizer.lr=high", "model.optimizer={.*'lr': 'high'}: "),
    ],
)
def test_an_impossible_option_is_told_before_anything_is_read_or_trained(tmp_path, monkeypatch, options, said):
    monkeypatch.setattr(sources, "find", None)
    strategy, *rest = options.split()
    with pytest.raises(UserError, match=said):
        run_here(tmp_path, f"strategy={strategy}", *(f"++{option}" for option in rest))


def test_each_round_acquires_its_own_number_of_labels(tmp_path):
    quick = ("trainer.max_steps=2", "budget.query=[5,10]", "budget.rounds=3")
    whole = run_here(tmp_path, *quick).records()
    assert [(r.n_labelled, len(r.acquired)) for r in whole] == [(20, 5), (25, 10), (35, 10), (45, 0)]
