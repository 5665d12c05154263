"""finish and predict: the files, their numbers, and what is told where there is too little to say."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from conftest import command
from labelling import CLASSES, cached, digits_in, label_all, opened, truth
from safetensors.torch import save_file

from al_bench.labelling import card, final, finish, finished_model, predict
from al_bench.labelling.advice import wilson
from al_bench.labelling.labels import Label, Labels
from al_bench.labelling.settings import write_settings

OUT = Path("photos-labels/finished")


@pytest.fixture(scope="module")
def once_labelled(tmp_path_factory):
    """A folder of 300 digits, 60 test and 60 training images of which a robot has labelled."""
    home = tmp_path_factory.mktemp("labelled")
    digits_in(home / "photos")
    with opened(home) as session:
        label_all(session)
        assert session.progress().state == "finished"
    return home


@pytest.fixture
def folder(once_labelled, monkeypatch):
    """The same, without what an earlier test finished. Tests that change labels make a folder of their own."""
    monkeypatch.chdir(once_labelled)
    shutil.rmtree(OUT, ignore_errors=True)
    return once_labelled


def labelled(home: Path, n_train: int, n_test: int, *overrides: str, answer=truth) -> Path:
    """A folder of 120 digits with so many labels of either role."""
    session = opened(digits_in(home / "photos", 120).parent, *overrides)
    for name in CLASSES:
        session.add_class(name)
    write_settings(home / "photos", session.settings)
    items = [session.item(path) for path in session.listing.paths]
    items.sort(key=lambda item: item.path.split("/")[1])  # the classes mixed
    for role, n in (("train", n_train), ("test", n_test)):
        for item in [item for item in items if item.role == role][:n]:
            session.labels.add(Label(item.path, answer(item.path), role, item.sha256))
    return home


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return [*csv.DictReader(file)]


def numbers(rows: list[dict[str, str]]) -> dict[str, tuple[str, float]]:
    return {row["path"]: (row["class"], float(row["probability"])) for row in rows}


def test_finish_writes_labels_folders_a_model_and_predictions(folder, capsys):
    assert finish.main(["photos", "--accept", "0.8"]) == 0
    said = capsys.readouterr().out
    answers = Labels(folder / "photos-labels/labels.jsonl").current
    rows = rows_of(OUT / "labels.csv")
    assert {r["path"]: (r["label"], r["role"]) for r in rows} == {p: (a.answer, a.role) for p, a in answers.items()}
    found = {str(p.relative_to(OUT / "classes")): p for p in (OUT / "classes").rglob("*.png")}
    assert found.keys() == {f"{truth(path)}/{path}" for path in answers}
    for name, link in found.items():
        assert link.is_symlink() and link.resolve() == (folder / "photos" / name.partition("/")[2]).resolve()
    predicted, accepted, review = (rows_of(OUT / f"{name}.csv") for name in ("predictions", "accept", "review"))
    assert {r["path"] for r in predicted} == {*opened(folder).listing.paths} - answers.keys() and len(predicted) == 180
    assert {r["path"] for r in accepted} | {r["path"] for r in review} == {r["path"] for r in predicted}
    sure = [float(r["probability"]) for r in accepted]
    unsure = [float(r["probability"]) for r in review]
    assert min(sure) >= 0.8 > max(unsure) and sure == sorted(sure, reverse=True) and unsure == sorted(unsure)
    assert 0.8 < sum(r["class"] == truth(r["path"]) for r in predicted) / 180 < 1
    assert all(r["class"] != r["class_2"] != r["class_3"] and r["probability"] >= r["probability_2"] for r in predicted)
    assert f"accept.csv         {len(accepted):,} of them, at least 80% sure; error" in said


def test_the_accuracy_is_that_of_the_last_round_with_wilsons_interval(folder, capsys):
    assert finish.main(["photos"]) == 0
    last = opened(folder).store.records()[-1]
    facts = finished_model.read(OUT).card
    assert last.n_labelled == sum(facts["data"]["train"].values()) == 60
    assert facts["accuracy"]["share"] == last.metrics["accuracy"] and facts["accuracy"]["n"] == 60
    low, high = wilson(last.metrics["accuracy"], 60)
    assert (facts["accuracy"]["low"], facts["accuracy"]["high"]) == (low, high)
    page, said = (OUT / "card.md").read_text(), capsys.readouterr().out
    words = f"{last.metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}], {facts['accuracy']['hits']} of 60"
    assert words in page and words in said
    assert facts["data"]["checksum"] == opened(folder).store.info()["dataset"]["checksum"]
    assert facts["machine"]["versions"]["torch"] and facts["time"] and "host" not in facts["machine"]


def test_the_error_of_what_is_accepted_is_counted_on_the_test_images(folder):
    made = final.train(final.labelled("photos"))
    probs_VC, labels_V = made.test()
    sure = [(float(p.max()), int(p.argmax()) != int(label)) for p, label in zip(probs_VC, labels_V, strict=True)]
    for confidence in (0.0, 0.5, 0.9):
        wrong = [is_wrong for prob, is_wrong in sure if prob >= confidence]
        found = card.error_above(made, confidence)
        assert (found.hits, found.n) == (sum(wrong), len(wrong))
    assert card.error_above(made, 0.0).n == 60


def test_predict_gives_the_numbers_of_finish_and_needs_no_labelling_folder(folder, tmp_path, capsys):
    assert finish.main(["photos"]) == 0
    expected = numbers(rows_of(OUT / "predictions.csv"))
    shutil.copy(OUT / "model.safetensors", tmp_path / "my model.safetensors")
    shutil.copytree("photos", tmp_path / "elsewhere")
    os.chdir(tmp_path)
    assert predict.main(["my model.safetensors", "elsewhere", "--out", "x.csv"]) == 0
    rows = rows_of(Path("x.csv"))
    found = numbers(rows)
    assert len(found) == 300 and [r["path"] for r in rows] == sorted(found)
    assert all(found[path][0] == name and abs(found[path][1] - p) < 2e-4 for path, (name, p) in expected.items())
    assert {p.name for p in tmp_path.iterdir()} == {"my model.safetensors", "elsewhere", "x.csv"}
    assert "300 images predicted: x.csv, 0 left out" in capsys.readouterr().err


def test_broken_files_are_listed_and_skipped(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "AT_ONCE", 2)
    assert finish.main(["photos"]) == 0
    capsys.readouterr()
    images = sorted(Path("photos/c1").iterdir())[:3]
    for i, file in enumerate(images):
        shutil.copy(file, tmp_path / f"{i}.png")
    for name in ("bad.jpg", "worse.png", "=x.png"):
        (tmp_path / name).write_text("no image")
    shutil.copy(images[0], tmp_path / "+1.png")
    (tmp_path / "notes.txt").write_text("x")
    assert predict.main([str(OUT), str(tmp_path)]) == predict.SKIPPED == 3
    out, said = capsys.readouterr()
    assert [r["path"] for r in csv.DictReader(out.splitlines())] == ["./+1.png", "0.png", "1.png", "2.png"]
    assert "bad.jpg is left out: not an image" in said and "worse.png is left out" in said
    assert "4 images predicted, 3 left out." in said and "not named like images: 1 (.txt 1)." in said


@pytest.mark.parametrize("model", ["small_cnn", "backbone"])
def test_nets_of_other_kinds_are_kept_too(tmp_path, monkeypatch, capsys, model):
    monkeypatch.chdir(tmp_path)
    overrides = ("model=small_cnn", "trainer.max_steps=20")
    if model == "backbone":
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet").state_dict(), "w.safetensors")
        overrides = ("model.name=test_efficientnet", "model.weights=w.safetensors", "dataset.image_size=32")
    labelled(tmp_path, 40, 10, *overrides)
    assert finish.main(["photos"]) == 0
    assert predict.main([str(OUT), "photos", "--out", "x.csv"]) == 0
    expected, found = numbers(rows_of(OUT / "predictions.csv")), numbers(rows_of(Path("x.csv")))
    assert len({round(p, 2) for _, p in expected.values()}) > 3
    assert all(abs(found[path][1] - p) < 2e-4 for path, (_, p) in expected.items())
    said = capsys.readouterr().out
    if model == "small_cnn":
        assert "the probabilities are not calibrated" in said
        return
    assert "on the frozen features of test_efficientnet (weights sha256:" in said
    os.rename("w.safetensors", "moved.safetensors")
    assert predict.main([str(OUT), "photos", "--out", "y.csv"]) == 1
    why = capsys.readouterr().err
    assert "through test_efficientnet, whose weights (sha256:" in why and "--weights FILE" in why
    assert predict.main([str(OUT), "photos", "--out", "y.csv", "--weights", "moved.safetensors"]) == 0
    assert rows_of(Path("y.csv")) == rows_of(Path("x.csv"))
    torch.manual_seed(1)
    save_file(timm.create_model("test_efficientnet").state_dict(), "other.safetensors")
    assert predict.main([str(OUT), "photos", "--out", "z.csv", "--weights", "other.safetensors"]) == 1
    assert "other.safetensors holds other weights (sha256:" in capsys.readouterr().err and not Path("z.csv").exists()


def test_too_few_test_images_are_told_and_no_accuracy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(labelled(tmp_path, 25, 12, answer=lambda path: "skip" if path.endswith("0.png") else truth(path)))
    assert finish.main(["photos"]) == 0
    said, facts = capsys.readouterr().out, finished_model.read(OUT).card
    n = sum(facts["data"]["test"].values())
    assert re.search(
        rf"Accuracy on random test images: unknown \(\d+ of {n} are too few to say; 30 are the least\)", said
    )
    assert (facts["accuracy"]["share"], facts["accuracy"]["low"], facts["test"]) == (None, None, None)
    assert "Too few labels to compare strategies on them: 5 of each class and 40 in all." in said
    assert "al-bench -m" not in said + (OUT / "card.md").read_text()
    skipped = {r["path"] for r in rows_of(OUT / "labels.csv") if r["label"] == "skip"}
    assert skipped and skipped <= {r["path"] for r in rows_of(OUT / "review.csv") if r["answer"] == "skip"}
    assert not skipped & {r["path"] for r in rows_of(OUT / "accept.csv")}


def test_a_class_that_nothing_was_trained_on_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(labelled(tmp_path, 40, 0, answer=lambda path: "skip" if truth(path) == "c7" else truth(path)))
    assert finish.main(["photos"]) == 0
    assert "No training image is c7, so the model does not know this class." in capsys.readouterr().out


def test_finishing_again_moves_corrected_images_and_keeps_files_of_the_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(labelled(tmp_path, 40, 5))
    assert finish.main(["photos"]) == 0
    (path, *_) = [p for p, a in Labels(Path("photos-labels/labels.jsonl")).current.items() if a.answer == "c1"]
    (OUT / "classes/c1/notes.txt").write_text("mine")
    Labels(Path("photos-labels/labels.jsonl")).add(Label(path, "c2", "train"))
    assert (OUT / "classes/c1" / path).is_symlink()
    assert finish.main(["photos"]) == 0
    assert not (OUT / "classes/c1" / path).is_symlink() and (OUT / "classes/c2" / path).is_symlink()
    assert (OUT / "classes/c1/notes.txt").read_text() == "mine"


def test_what_cannot_be_finished_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def told(*arguments):
        assert finish.main([*arguments]) == 1
        return capsys.readouterr().err

    assert "There is no folder nowhere" in told("nowhere")
    Path("photos").mkdir()
    assert "Nothing of photos is labelled yet. Begin: al-bench label photos" in told("photos")
    assert not Path("photos-labels").exists()
    labelled(tmp_path, 0, 5)
    assert "No training image has a class yet. 5 test images are labelled" in told("photos")
    shutil.rmtree("photos-labels")
    labelled(tmp_path, 9, 0, answer=lambda path: "c1")
    assert "All 9 training images are labelled c1: a model needs two classes" in told("photos")
    shutil.rmtree("photos-labels")
    given = iter(["c1", "c2", "c3"])
    labelled(tmp_path, 3, 0, answer=lambda path: next(given))
    assert "No class has two training images" in told("photos")
    with pytest.raises(SystemExit):
        finish.main(["photos", "--accept", "95"])
    assert "--accept 95.0: a probability from 0 to 1" in capsys.readouterr().err


def test_a_full_disk_is_told_and_leaves_no_part_of_a_model(folder, tiny_disk, capsys):
    assert finish.main(["photos", "--out", f"{tiny_disk}/out"]) == 1
    said = capsys.readouterr().err
    assert "No space left on the disk" in said and "--out" in said
    assert not [*tiny_disk.rglob("model.safetensors*")]
    assert finish.main(["photos"]) == 0
    with suppress(OSError):
        (tiny_disk / "full").write_bytes(b"x" * 65_536)
    assert predict.main([str(OUT), "photos", "--out", f"{tiny_disk}/x.csv"]) == 1
    assert "No space left on the disk" in capsys.readouterr().err and not (tiny_disk / "x.csv").exists()


def test_a_file_that_is_no_model_is_told(folder, tmp_path, capsys):
    def told(model, images="photos"):
        assert predict.main([str(model), str(images)]) == 1
        return capsys.readouterr().err

    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "x.safetensors").write_text("x")
    assert "There is no file" in told(tmp_path / "nowhere")
    assert "There is no file" in told(tmp_path)
    assert "is no model of al-bench finish (SafetensorError" in told(tmp_path / "x.safetensors")
    assert "holds weights, and is no model of al-bench finish" in told(tmp_path / "weights.safetensors")
    assert finish.main(["photos"]) == 0
    facts = finished_model.read(OUT).card
    for key, value, said in (("format", 99, "written by a newer al_bench"), ("settings", {}, "is no model of")):
        save_file({"a": torch.zeros(2)}, tmp_path / "y.safetensors", {"al_bench": json.dumps(facts | {key: value})})
        assert said in told(tmp_path / "y.safetensors")
    capsys.readouterr()
    assert "There is no folder" in told(OUT, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty has no images (0 other files)" in told(OUT, tmp_path / "empty")


def test_a_temperature_below_1_needs_mistakes():
    labels_L = torch.arange(40) % 2
    log_probs_LC = torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()[labels_L]
    assert final.fitted(log_probs_LC, labels_L, "x")[0] == 1.0  # no mistake: 0.2 would be best
    assert "not below 1 with fewer than 10 mistakes (0)" in final.fitted(log_probs_LC, labels_L, "x")[1]
    wrong_L = labels_L.clone()
    wrong_L[:6] = 1 - wrong_L[:6]  # 85% right and 70% sure: T of (0.7 / 0.3) ** (1 / T) = 0.85 / 0.15 is 0.49
    many_C, many_L = log_probs_LC.repeat(2, 1), wrong_L.repeat(2)
    temperature, how = final.fitted(many_C, many_L, "the images")
    assert temperature == pytest.approx(0.49, abs=0.05) and how == "fitted on 80 predictions of the images"


def test_the_command_that_compares_strategies_runs_as_it_is_written(folder, capsys):
    assert finish.main(["photos"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("al-bench -m ")]
    assert line in (OUT / "card.md").read_text()
    words = shlex.split(line)[1:]
    assert cached(folder) in words and "model=pca" in words
    quick = [word if not word.startswith("seed=") else "seed=0,1" for word in words]
    done = command(folder, *quick, "budget.rounds=2")
    assert done.returncode == 0, done.stderr
    runs = [*(folder / "photos-labels/benchmark").rglob("run.json")]
    states = Counter(json.loads(run.read_text())["state"] for run in runs)
    assert states == {"finished": 3 * 2}
    assert json.loads(runs[0].read_text())["dataset"]["classes"] == [*CLASSES]


def test_a_command_whose_output_nobody_reads_ends_quietly(folder):
    for arguments in (
        ["status", "photos-labels"],
        ["finish", "photos"],
        ["predict", "photos-labels/finished", "photos"],
        ["label", "photos", "--no-browser"],
    ):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([sys.executable, "-m", "al_bench", *arguments], stdout=write, stderr=-1, text=True)
        os.close(write)
        code = 1 if arguments[0] == "status" else 141  # rich ends status
        assert (done.returncode, done.stderr) == (code, ""), arguments
