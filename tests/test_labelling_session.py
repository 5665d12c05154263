import signal
import threading
import time
from dataclasses import replace

import pytest
from conftest import command, lines_of
from labelling import CLASSES, benchmarked, cached, digits_in, label_all, opened, truth

from al_bench import signals
from al_bench.analysis import results
from al_bench.errors import UserError
from al_bench.labelling.advice import Measured, advise, expected_gain, wilson
from al_bench.labelling.answering import Answering
from al_bench.labelling.command import folders_named_like_classes, remove_class
from al_bench.labelling.labels import SKIP, UNSURE, ChangesTestLabel
from al_bench.labelling.session import Session

pytestmark = pytest.mark.usefixtures("all_threads")


@pytest.fixture
def folder(tmp_path):
    digits_in(tmp_path / "photos", 200)
    return tmp_path


def label(session, n, answer=truth):
    """Answer n images. Returns their items."""
    found = []
    for _ in range(n):
        assert session.wait(60).state == "labelling"
        (item,) = session.next()
        session.answer(item.path, answer(item.path), seconds=0.5)
        found.append(item)
    return found


def test_progress_says_what_is_done_and_how_accurate_the_net_is(folder):
    with opened(folder) as session:
        label(session, 40 + 20)
        now = session.wait(60)
        assert (now.state, now.done, now.left, now.labelled, now.images) == ("labelling", 0, 10, 60, 200)
        assert now.seconds == 0.5 and sum(now.counts.values()) == 60 and now.counts.keys() <= {*CLASSES}
        (first,) = now.accuracy
        assert (first.labels, first.n_test) == (20, 40) and first.low < first.accuracy < first.high
        path = session.next()[0].path
        likely = session.likely(path)
        assert {name for name, _ in likely} == {*CLASSES} and likely[0][1] == max(p for _, p in likely)
        assert sum(p for _, p in likely) == pytest.approx(1, abs=1e-4)


def test_undo_has_no_limit_and_what_it_takes_back_is_next(folder):
    with opened(folder) as session:
        items = label(session, 12)
        back = [session.undo().path for _ in range(12)]
        assert back == [item.path for item in reversed(items)] and session.undo() is None
        assert session.progress().labelled == 0
        assert session.next()[0].path == items[0].path and session.next()[0].role == items[0].role
        label_all(session)
    assert lines_of(session.store.folder) == benchmarked(session)


def test_an_answer_that_was_trained_on_can_be_corrected_and_counts_from_the_next_round(folder):
    def counts(session):
        trained = [line.answer for line in session.labels.order() if line.role == "train"]
        return [trained.count(name) for name in CLASSES]

    with opened(folder) as session:
        items = label(session, 60)
        (wrong,) = [item for item in items if item.role == "train"][:1]
        while session.undo().path != wrong.path:
            pass
        session.answer(wrong.path, "c0" if truth(wrong.path) != "c0" else "c1", seconds=1)
        label(session, 60 - items.index(wrong) - 1)
        assert session.wait(60).accuracy and session.store.records()[0].class_counts == counts(session)
        label(session, 3)
        assert session.answer(wrong.path, truth(wrong.path), seconds=1).answer != truth(wrong.path)  # told
        label_all(session)
        assert session.progress().state == "finished"
        assert session.store.records()[-1].class_counts == counts(session)


def test_a_skipped_image_may_get_a_class_after_the_round_that_skipped_it(folder):
    skipped = []

    def answer(path):
        if session.next()[0].role == "train" and not skipped:
            skipped.append(path)
            return SKIP
        return truth(path)

    with opened(folder) as session:
        label(session, 63, answer)
        session.answer(skipped[0], truth(skipped[0]), seconds=1)
        label_all(session)
        assert session.progress().state == "finished"
        assert [r.n_foreign for r in session.store.records()] == [1, 0, 0, 0, 0]


def test_labels_of_many_finished_rounds_can_be_taken_back(folder):
    with opened(folder, "budget.query=3") as session:
        label(session, 70)
        train = [label.path for label in session.labels.order() if label.role == "train"]
        for path in train[:12]:  # more than a round adds: the labels of the next round are fewer
            session.answer(path, UNSURE, seconds=1)
        label_all(session)
        now = session.progress()
        assert (now.state, now.error) == ("finished", None)
        records = session.store.records()
        assert [r.n_labelled for r in records[-2:]] == [29, 20]
    (run,) = results.find(folder / "photos-labels")
    assert run.state == "finished" and [*run.labels_R] == [20, 23, 26, 29, 32]
    assert len(results.histories(run)) == 5


def test_without_a_class_among_the_first_images_others_are_asked_for(folder):
    with opened(folder) as session:
        first = label(session, 60, lambda path: truth(path) if session.item(path).role == "test" else SKIP)
        asked = label_all(session)
        assert session.progress().state == "finished"
        assert session.settings.run == 2 and session.store.records()[0].n_labels == 40
    assert not {item.path for item in first} & {*asked}


def test_a_folder_of_which_nothing_has_a_class_waits_for_another_answer(tmp_path):
    digits_in(tmp_path / "photos", 10)
    with Session(tmp_path / "photos", CLASSES, ["dataset.image_size=16", cached(tmp_path)]) as session:
        label_all(session, lambda path: SKIP if session.item(path).role == "train" else truth(path))
        assert session.progress().error == "No image has a class, so there is nothing to train on."
        item = session.undo()
        assert session.wait(60).state == "labelling"
        session.answer(item.path, truth(item.path), seconds=1)
        assert session.wait(60).error is None


def test_test_images_without_a_class_are_told_and_one_answer_mends_it(tmp_path):
    digits_in(tmp_path / "photos", 10)
    with Session(tmp_path / "photos", CLASSES, ["dataset.image_size=16", cached(tmp_path)]) as session:
        label(session, 4, lambda path: UNSURE if session.item(path).role == "test" else truth(path))
        assert "None of the 2 test images has a class, so no accuracy" in session.wait(60).error
        test = next(label.path for label in session.labels.order() if label.role == "test")
        session.answer(test, truth(test), seconds=1, correct_test=True)
        label_all(session)
        assert (session.progress().state, session.progress().error) == ("finished", None)


@pytest.mark.parametrize("n", [5, 10, 12, 20, 30, 40, 50])
def test_small_folders_are_labelled_in_smaller_batches(tmp_path, n):
    digits_in(tmp_path / "photos", n)
    with Session(tmp_path / "photos", CLASSES, ["dataset.image_size=16", cached(tmp_path)]) as session:
        asked = label_all(session)
        assert (session.progress().state, session.progress().error) == ("finished", None)
        assert len(session.store.records()) >= 2
    assert n - 1 <= len(asked) <= n


def test_a_folder_of_four_images_is_told_in_the_persons_words(tmp_path):
    digits_in(tmp_path / "photos", 4)
    with pytest.raises(UserError, match="photos has 4 images. 5 are the fewest: .* Add images."):
        Session(tmp_path / "photos", CLASSES)


@pytest.mark.parametrize("classes", [("c0",), (*CLASSES, *(f"other {i}" for i in range(190)))], ids=["one", "200"])
def test_one_class_and_two_hundred_are_trained_on(folder, classes):
    with opened(folder, "budget.rounds=1", classes=classes) as session:
        label_all(session, lambda path: truth(path) if truth(path) in classes else UNSURE)
        assert (session.progress().state, session.progress().error) == ("finished", None)


def test_two_people_label_two_folders_at_the_same_time(folder, tmp_path):
    digits_in(tmp_path / "second/photos", 100)
    with opened(folder) as one, opened(tmp_path / "second") as other:
        label(one, 3)
        label(other, 2)
        assert (len(one.labels.lines), len(other.labels.lines)) == (3, 2) and one.home != other.home


def test_images_on_screen_stay_first(folder):
    with opened(folder) as session:
        third = session.next(3)[2]
        assert session.next(2, first=[third.path])[0].path == third.path


def test_a_session_goes_on_where_another_one_ended(folder):
    with opened(folder) as session:
        asked = [item.path for item in label(session, 65)]
    assert session.store.info()["state"] == "waiting"
    with opened(folder, classes=()) as session:  # without the classes
        assert session.classes == CLASSES
        asked += label_all(session)
    assert len(asked) == len(set(asked)) == 100
    assert lines_of(session.store.folder) == benchmarked(session)


def test_a_second_session_on_a_folder_is_refused(folder):
    with opened(folder):
        with pytest.raises(UserError, match="Another al-bench label is at work"):
            opened(folder).__enter__()


def test_other_settings_begin_a_run_with_all_labels(folder):
    with opened(folder) as session:
        asked = [item.path for item in label(session, 65)]
    with opened(folder, "budget.query=5", "model=pca") as session:
        assert session.notes[0] == "With budget.query=5 model=pca a new run begins. All labels are kept."
        assert (session.settings.run, session.base.budget.query) == (2, 5)
        assert [o for o in session.settings.overrides if "query" in o] == ["budget.query=5"]
        asked += label_all(session)
        assert session.progress().state == "finished"
        assert session.store.records()[0].n_labels == 25 + 20  # 40 of the 65 were test images
    assert len(asked) == len(set(asked))
    with Session(folder / "photos", overrides=["model=pca"]) as session:  # it has this one already, and others
        assert session.settings.run == 2


@pytest.mark.parametrize("override", ["seed=1", "dataset.test_fraction=0.5"])
def test_settings_that_would_draw_other_test_images_are_refused(folder, override):
    with opened(folder):
        pass
    with pytest.raises(UserError, match=f"{override} would draw other test images"):
        opened(folder, override)


@pytest.mark.parametrize("override", ["study=mine", "dataset.root=.", "dataset.classes=[a,b]", "dataset=digits"])
def test_settings_that_are_not_set_here_are_told(folder, override):
    with pytest.raises(UserError, match="Leave it out"):
        opened(folder, override)


def test_classes_named_later_are_added_and_told_and_none_is_lost(folder):
    with opened(folder, classes=CLASSES[:9]) as session:
        label(session, 61, lambda path: truth(path) if truth(path) != "c9" else UNSURE)
    with opened(folder, classes=("c9", "c0")) as session:
        said = " ".join(session.notes)
        assert "c9 is a new class. With the class c9 a new run begins. All labels are kept." in said
        assert "Classes that were not named stay: c1, c2, c3, c4, c5, c6, c7, c8." in said
        assert session.classes == CLASSES and session.settings.run == 2
        label_all(session)
        assert session.progress().state == "finished"
    with opened(folder, classes=CLASSES) as session:
        assert session.settings.run == 2 and not any("class" in note for note in session.notes)


def test_a_misspelt_class_can_be_removed_while_no_image_has_it(folder):
    with opened(folder, classes=(*CLASSES, "c99")) as session:
        label(session, 61)
    with pytest.raises(UserError, match="images are labelled c1"):
        remove_class(session, "c1")
    with pytest.raises(UserError, match="x is none of the classes: c0, "):
        remove_class(session, "x")
    done = command(folder, "label", "photos", "--remove-class", "c99")
    assert done.stdout == "The class c99 is removed. A new run begins. All labels are kept.\n", done.stderr
    with opened(folder, classes=()) as session:
        assert session.classes == CLASSES
        label_all(session)
        assert session.progress().state == "finished"
        assert session.store.info()["dataset"]["classes"] == [*CLASSES]


def test_what_cannot_be_answered_is_told_by_name(folder):
    with opened(folder) as session:
        with pytest.raises(UserError, match="bird is no class. There are c0, .* Add the class first"):
            session.answer(session.next()[0].path, "bird")
        with pytest.raises(UserError, match="../x.png is not among the images"):
            session.answer("../x.png", "c0")
        (item,) = label(session, 1)
        other = next(name for name in CLASSES if name != truth(item.path))
        assert item.role == "test"
        with pytest.raises(ChangesTestLabel):
            session.answer(item.path, other)
        assert session.answer(item.path, other, correct_test=True).answer == truth(item.path)
        assert session.labels.current[item.path].role == "test"


def test_an_image_whose_file_is_gone_is_passed_over_and_noted(folder):
    with opened(folder) as session:
        gone, after = session.next(2)
        session.wait(60)
        gone.file.unlink()
        assert session.next()[0].path == after.path or gone.path not in {item.path for item in session.next(99)}
        kept = session.labels.current[gone.path]
        assert (kept.answer, kept.who) == (SKIP, "al-bench")
        with pytest.raises(UserError, match="cannot be read"):
            session.answer(gone.path, "c0")


def test_copies_have_one_answer(folder):
    first = sorted((folder / "photos/c0").iterdir())[0]
    (folder / "photos/zz.png").write_bytes(first.read_bytes())
    with opened(folder) as session:
        session.answer("zz.png", "c0")
        assert session.labels.current.keys() == {f"c0/{first.name}"}


def test_classes_may_come_on_the_way_and_are_fixed_by_the_first_fit(folder):
    with opened(folder, classes=()) as session:

        def answer(path):
            assert session.add_class(truth(path)) is None
            return truth(path)

        label(session, 60, answer)
        now = session.wait(60)
        assert now.error is None and len(now.accuracy) == 1
        assert session.store.info()["dataset"]["classes"] == [*session.classes]


def test_a_class_added_in_the_middle_begins_a_run_with_all_labels_and_asks_no_image_again(folder):
    five = CLASSES[:9]
    with opened(folder, classes=five) as session:
        asked = [item.path for item in label(session, 75, lambda path: truth(path) if truth(path) in five else UNSURE)]
        first_run = session.store
        assert session.add_class("c9") == "With the class c9 a new run begins. All labels are kept."
        session.wait(60)
        asked += label_all(session)
        assert session.progress().state == "finished"
    assert len(asked) == len(set(asked))
    assert first_run.folder != session.store.folder and len(first_run.records()) == 2
    record = session.store.records()[0]
    assert record.n_labels == 20 + 15 + 20  # 40 of the 75 were test images
    assert session.store.info()["dataset"]["classes"] == [*CLASSES]


def test_sub_folders_that_are_classes_are_labels_if_the_user_says_so(folder):
    with opened(folder, classes=("c0", "c1"), use_folders=True) as session:
        known = {line.path for line in session.labels.order()}
        assert known == {path for path in session.listing.paths if path.startswith(("c0/", "c1/"))}
        assert {line.who for line in session.labels.order()} == {"folder"}
        assert session.undo() is None  # nobody answered yet
        asked = label_all(session, lambda path: SKIP)
    assert not known & set(asked)
    assert session.store.records()[0].n_labelled == sum(
        line.role == "train" for line in session.labels.order() if line.of_class
    )


def test_sub_folders_named_like_classes_are_told(folder):
    with opened(folder, classes=("c0", "dog")) as session:
        (said,) = folders_named_like_classes(session)
        n = len([path for path in session.listing.paths if truth(path) == "c0"])
        assert said == (
            f"{n} images lie in sub-folders that are named like classes. --use-folders takes these names as labels."
        )
    with opened(folder, classes=(), use_folders=True) as session:
        assert folders_named_like_classes(session) == []


def test_an_error_of_the_run_is_told_and_answers_stay(folder, monkeypatch):
    def broken(*_):
        raise UserError("the disk of the run is broken")

    with opened(folder) as session:
        monkeypatch.setattr(type(session), "trained", broken)
        label(session, 60)
        now = session.wait(60)
        assert (now.state, now.labelled, now.error) == ("failed", 60, "the disk of the run is broken")


def test_ctrl_c_while_the_run_computes_is_no_failure(folder, monkeypatch, caplog):
    def stopped(*_):
        monkeypatch.setattr(signals, "_asked", signal.SIGINT)
        raise KeyboardInterrupt  # as signals.stop_if_asked does in each part of a run

    monkeypatch.setattr("al_bench.loop.run", stopped)
    uncaught = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    with opened(folder) as session:
        session._thread.join(60)
        assert session.error is None and "The run failed" not in caplog.text
    assert uncaught == []


def test_answers_are_taken_while_the_net_is_trained(folder, monkeypatch):
    from al_bench.models.logistic import LogisticLearner

    real = LogisticLearner.fit
    monkeypatch.setattr(LogisticLearner, "fit", lambda *args: time.sleep(1) or real(*args))
    with opened(folder) as session:
        label(session, 59)
        last = session.next()[0]
        session.answer(last.path, truth(last.path), seconds=0.5)
        start = time.perf_counter()
        assert session.undo().path == last.path
        session.answer(last.path, truth(last.path), seconds=0.5)
        assert time.perf_counter() - start < 0.5 and session.progress().state == "training"


def test_wilsons_interval_against_values_worked_out_by_hand():
    # (0.9 + 3.8415/200) / (1 + 3.8415/100) -+ ...: the textbook example of 90 of 100
    low, high = wilson(0.9, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(1.0, 50)[1] == pytest.approx(1) and wilson(0.0, 50)[0] == pytest.approx(0)


def test_the_gain_of_a_power_law_is_what_the_law_says():
    def at(n):
        return 1 - 2 * n**-0.5  # half the error for four times the labels

    curve = [Measured(n, at(n), 0, 1, 10**9) for n in (100, 150, 200, 300, 400)]
    gain, low, high = expected_gain(curve, 1200)
    assert (gain, low, high) == pytest.approx((0.05, 0.05, 0.05), abs=1e-5)
    bumpy = [replace(m, accuracy=m.accuracy + 0.01 * (-1) ** i) for i, m in enumerate(curve)]
    gain, low, high = expected_gain(bumpy, 1200)
    assert low < gain < high and high - low > 0.01
    assert expected_gain(curve[:3]) is None


def test_advice_says_when_labelling_the_rest_is_cheaper():
    curve = [Measured(n, 1 - 2 * n**-0.5, 0, 1, 300) for n in (100, 150, 200, 300, 400)]
    few = advise(curve, 2.0, 300, 0.01)
    assert few.seconds == 400 and few.rest_seconds == 600 and "that is cheaper than choosing" in few.text
    many = advise(curve, 2.0, 20_000, 0.013)
    assert "Labelling all 20,000 images that are left would take 11.1 hours." in many.text
    assert "would bring about +1.8 points [" in many.text and "7 minutes at your pace" in many.text
    assert "changed the predicted class of 1.3%" in many.text
    assert advise([], None, 0, None).text == "All images are labelled."
    falling = [replace(m, accuracy=1 - m.accuracy) for m in curve]
    assert expected_gain(falling) is None and "do not show a rising accuracy" in advise(falling, 2.0, 300, None).text


def test_what_the_command_cannot_do_is_told(folder):
    with opened(folder):
        pass
    for arguments, said in [
        (["photos", "cats"], "cats is no setting"),
        (["photos", "bugdet.query=2"], "did you mean budget.query"),
        (["nowhere"], "no such file or folder"),
    ]:
        done = command(folder, "label", *arguments)
        assert done.returncode and said in done.stderr


def test_a_file_that_cannot_be_decoded_is_left_out_and_moves_no_other(folder):
    before = opened(folder)
    tested = [item.path for item in before.next(99)]
    broken = [next(path for path in tested), next(path for path in before.listing.paths if path not in tested)]
    for path in broken:
        (folder / "photos" / path).write_text(f"no image, {path}")
    (before.home / "images.jsonl").unlink()
    with opened(folder) as session:
        asked = label_all(session)
        assert session.progress().state == "finished"
    info, paths = session.store.info(), [path for path in session.listing.paths if path not in broken]
    assert (info["dataset"]["skipped"], info["dataset"]["n_test"]) == (sorted(broken), 39)
    acquired = [paths[i] for record in session.store.records() for i in record.acquired]
    assert acquired == [line.path for line in session.labels.order() if line.round] and {*acquired} < {*asked}


def test_files_that_cannot_be_decoded_are_named_and_do_not_end_the_labelling(tmp_path):
    home = digits_in(tmp_path / "photos", 46)
    for name in ("empty", "text", "torn"):
        (home / f"{name}.png").write_bytes({"empty": b"", "text": b"no image"}.get(name, (b"\x89PNG\r\n\x1a\n")))
    with Session(home, CLASSES, ("dataset.image_size=16", "trainer.progress=false", cached(tmp_path))) as session:
        asked = label_all(session)
        now = session.progress()
        state = Answering(session).state()
    assert (now.state, now.error, now.labelled, now.images) == ("finished", None, 46, 46)
    assert len({*asked} & {path for path in session.listing.paths if "/" in path}) == 46
    assert "3 files cannot be decoded and are left out: empty.png, text.png, torn.png." in state["notes"]
    assert "All images are labelled." in state["advice"]


def test_a_full_disk_before_the_first_round_is_told_and_does_not_end_the_session(folder, monkeypatch):
    begin, full = Session._begin, [UserError("settings.json cannot be written (No space left on the disk).")]
    monkeypatch.setattr(Session, "_begin", lambda self: begin(self) if not full else raised(full.pop()))
    with opened(folder) as session:
        until = time.monotonic() + 60
        while not session.progress().error and time.monotonic() < until:
            time.sleep(0.05)
        assert session.progress().error == "settings.json cannot be written (No space left on the disk)."
        (first,) = session.next()
        session.answer(first.path, UNSURE, seconds=1)
        session.answer(first.path, truth(first.path), seconds=1, correct_test=True)  # an answer that changes
        label_all(session)
        assert session.progress().state == "finished"


def raised(error):
    raise error
