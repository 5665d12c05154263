"""oracle=person in the loop: what it asks for, when, and that its records are those of the benchmark."""

import json

import pytest
import torch
from conftest import asked, command, lines_of
from labelling import CLASSES, SMALL, benchmarked, cached, digits_in, label_all, opened, truth

from al_bench import loop
from al_bench.data.oracle import OPEN_SET
from al_bench.errors import UserError
from al_bench.labelling.images import home_of
from al_bench.labelling.labels import SKIP, UNSURE, Label, Labels
from al_bench.store import RunStore
from al_bench.waiting import LabelsWanted

pytestmark = pytest.mark.usefixtures("all_threads")


@pytest.fixture
def photos(tmp_path):
    return digits_in(tmp_path / "photos", 200)


def configured(photos, *overrides):
    return asked(
        "dataset=unlabelled", f"dataset.root={photos}", "dataset.name=photos", "dataset.test_fraction=0.2",
        f"dataset.classes={json.dumps(CLASSES)}", "model=pca", "strategy=margin", "budget.validation=10", *SMALL,
        f"results_dir={photos.parent}/results", "trainer.progress=false", cached(photos.parent), *overrides,
    )  # fmt: skip


def go_on(c):
    """The same command again. Returns the store and what the run waits for, or None if it has ended."""
    store = RunStore(c)
    try:
        with store.at_work():
            loop.run(c, store)
    except LabelsWanted as wanted:
        return store, wanted
    return store, None


def keep(photos, wanted, answer=truth):
    kept = Labels(home_of(photos) / "labels.jsonl")
    for path, role in wanted.roles.items():
        assert path not in kept.current, "asked twice"
        kept.add(Label(path, answer(path), role))


def test_the_record_is_on_disk_before_its_labels_are_asked_for_and_the_same_command_goes_on(photos):
    c, waited = configured(photos), []
    while True:
        store, wanted = go_on(c)
        if wanted is None:
            break
        waited.append((len(wanted.roles), wanted.round, store.info()["state"], store.info()["waits_for"]))
        records = store.records()
        assert len(records) == wanted.round
        if records:
            paths = [*sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))]
            assert [paths[i] for i in records[-1].acquired] == [*wanted.roles]  # in the order of the strategy
        keep(photos, wanted)
    # 40 test, 10 validation and 20 initial images first
    assert waited == [(70, 0, "waiting", 70), *((10, r, "waiting", 10) for r in range(1, 5))]
    assert store.finished() and [r.n_labelled for r in store.records()] == [20, 30, 40, 50, 60]


def test_the_first_images_are_mixed_at_random_and_have_their_roles(photos):
    _, wanted = go_on(configured(photos))
    roles = [*wanted.roles.values()]
    assert {role: roles.count(role) for role in set(roles)} == {"test": 40, "validation": 10, "train": 20}
    assert 0 < roles[:35].count("train") < 20 and 0 < roles[:35].count("test") < 35
    assert [*go_on(configured(photos))[1].roles.items()] == [*wanted.roles.items()]  # the same again


def test_the_command_says_what_it_waits_for_and_status_too(photos):
    overrides = [
        "dataset=unlabelled", f"dataset.root={photos}", f"dataset.classes={json.dumps(CLASSES)}", "model=pca", *SMALL,
        cached(photos.parent),
    ]  # fmt: skip
    done = command(photos.parent, *overrides)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The run waits for 60 labels. al-bench label asks for them." in done.stdout
    shown = command(photos.parent, "status", "results")
    assert "waiting" in shown.stdout and "random, seed 0: waits for 60 labels" in shown.stdout
    sweep = command(photos.parent, "-m", *overrides)
    assert sweep.returncode == 1 and "waits for a person's labels" in sweep.stderr


@pytest.mark.parametrize("strategy", ["uncertainty_herding", "random"])
def test_a_robot_that_knows_the_truth_makes_the_records_of_the_benchmark(tmp_path, strategy):
    digits_in(tmp_path / "photos")
    with opened(tmp_path, f"strategy={strategy}") as session:
        asked_for = label_all(session)
        assert session.progress().state == "finished" and session.error is None
    ours = lines_of(session.store.folder)
    assert len(ours) == 5 and ours == benchmarked(session)
    assert len(asked_for) == len(set(asked_for)) == 60 + 20 + 40


def test_skipped_images_leave_the_pool_as_open_set_images_do(tmp_path):
    digits_in(tmp_path / "photos")
    odd = {"c8": SKIP, "c9": UNSURE}
    with opened(tmp_path, classes=CLASSES[:8]) as session:
        label_all(session, lambda path: odd.get(truth(path), truth(path)))
        assert session.progress().state == "finished"
    ours, theirs = lines_of(session.store.folder), benchmarked(session, "stressor.foreign=2")
    assert ours[-1]["n_foreign"] > 0 and sum(ours[-1]["class_counts"]) == ours[-1]["n_labelled"]
    assert [r | {"run": None} for r in ours] == [r | {"run": None} for r in theirs]


def test_the_data_set_holds_no_training_label_and_the_oracle_only_those_that_were_asked_for(photos, monkeypatch):
    c = configured(photos, "budget.rounds=1")
    oracles = []
    made = loop.PersonOracle
    monkeypatch.setattr(loop, "PersonOracle", lambda *args: oracles.append(made(*args)) or oracles[-1])
    _, wanted = go_on(c)
    kept = Labels(home_of(photos) / "labels.jsonl")
    for path in sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png")):  # labels nobody asked for, too
        kept.add(Label(path, truth(path), wanted.roles.get(path, "train")))
    store, wanted = go_on(c)
    assert wanted is None and store.finished()
    held = {i for i, label in enumerate(oracles[-1]._labels_N.tolist()) if label != OPEN_SET}
    assert len(held) == 40 + 10 + 20 + 10


def test_a_skipped_test_image_is_left_out_of_the_test_set(photos):
    c = configured(photos, "budget.rounds=0")
    _, wanted = go_on(c)
    skipped = [path for path, role in wanted.roles.items() if role == "test"][:3]
    keep(photos, wanted, lambda path: SKIP if path in skipped else truth(path))
    store, wanted = go_on(c)
    assert wanted is None and store.info()["dataset"]["n_test"] == 37


def test_an_answer_that_is_no_class_of_the_run_is_told(photos):
    c = configured(photos)
    _, wanted = go_on(c)
    keep(photos, wanted, lambda path: "bird")
    with pytest.raises(
        UserError, match="is labelled bird, which is none of the classes .*A new class begins a new run"
    ):
        go_on(c)


def test_labels_from_before_the_run_join_its_initial_set(photos):
    kept = Labels(home_of(photos) / "labels.jsonl")
    _, wanted = go_on(configured(photos))
    others = [p for p in (str(p.relative_to(photos)) for p in photos.rglob("*.png")) if p not in wanted.roles][:15]
    for path in others:
        kept.add(Label(path, truth(path)))
    kept.add(Label(others[0], SKIP))
    c = configured(photos, "dataset.known=16", "budget.rounds=0")
    _, wanted = go_on(c)
    assert not wanted.roles.keys() & set(others)
    keep(photos, wanted)
    store, wanted = go_on(c)
    assert wanted is None
    (record,) = store.records()
    assert (record.n_labelled, record.n_foreign) == (14 + 20, 1)
    assert torch.tensor(record.class_counts).sum() == 34


UNLABELLED = ("dataset=unlabelled", "dataset.root=x", "dataset.classes=[a,b]")


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["dataset=digits", "oracle=person"], "oracle=person and dataset=unlabelled go together"),
        ([*UNLABELLED, "oracle=null"], "oracle=person and dataset=unlabelled go together"),
        ([*UNLABELLED, "stressor=long_tail"], "a stressor changes known labels"),
        ([*UNLABELLED, "budget.start=balanced"], "needs all labels before the first is asked for"),
    ],
)
def test_settings_that_a_person_cannot_serve_are_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        asked(*overrides)
