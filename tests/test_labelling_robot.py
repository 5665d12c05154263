"""scripts/labelling_robot.py: the real command, labelled by keys, against the benchmark on the same images."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import command
from labelling import CLASSES, digits_in
from labelling_robot import class_of, compared, drawn, make_folder, waits

from al_bench.data.files import files_in

SCRIPT = Path(__file__).parents[1] / "scripts" / "labelling_robot.py"


@pytest.mark.xdist_group("browser")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_folder_labelled_by_keys_has_the_records_of_the_benchmark(tmp_path):
    digits_in(tmp_path / "digits", 200)
    sizes = ("--images=100", "--labels=50", "--seed=3", "dataset.image_size=16")
    done = command(
        tmp_path, f"--images-from={tmp_path}/digits", f"--out={tmp_path}/found.json", *sizes, program=(SCRIPT,)
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["differences"] == [] and found["label"] == found["benchmark"]
    assert found["label"]["labels"] == [25, 50] and found["label"]["accuracy"][-1] > 0.3
    assert (found["images"], found["test_images"], found["training_labels"], found["keys"]) == (100, 20, 50, 70)
    assert found["classes"] == [*CLASSES] and found["all_answers_right"] and found["seed"] == 3
    assert "70 keys. All records are equal." in done.stdout
    assert not list(tmp_path.glob("photos*"))


def test_what_differs_is_named():
    line = {"round": 0, "metrics": {"accuracy": 0.5}, "acquired": [3, 1]}
    assert compared([line, line], [line, line]) == []
    other = line | {"acquired": [1, 3]}
    assert compared([line, line], [line, other]) == ["round 1: acquired"]
    assert compared([line], [line, line]) == ["1 and 2 rounds"]
    assert compared([line | {"more": None, "new": 1}], [line]) == ["round 0: more", "round 0: new"]


def test_the_folder_names_no_class_and_holds_each_content_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for n in range(6):
            archive.writestr(f"train/cat.{n}.jpg", f"cat {n // 2}")  # each twice
            archive.writestr(f"train/dog.{n}.jpg", f"dog {n}")
    files = files_in(str(tmp_path / "train.zip"))
    kinds = make_folder(tmp_path / "home", files, 9, seed=0)
    assert (
        sorted(kinds)
        == [f"IMG_{n:04d}.jpg" for n in range(9)]
        == [path.name for path in sorted((tmp_path / "home/photos").iterdir())]
    )
    for name, kind in kinds.items():
        assert (tmp_path / "home/photos" / name).read_text().startswith(kind)
    assert [*kinds.values()].count("cat") == 3 and [*kinds.values()] != sorted(kinds.values())
    assert [*drawn(files, 5, 0)] == [*drawn(files, 5, 0)] != [*drawn(files, 5, 1)]


def test_the_class_of_a_name():
    assert [class_of(name) for name in ("train/cat.0.jpg", "dog.1.jpg", "a/bird/x.png")] == ["cat", "dog", "bird"]


def test_waits_are_told_within_a_batch_and_between_two():
    answered = [("a", 9.0), ("b", 0.1), ("c", 0.3), ("d", 2.0), ("e", 0.2)]
    rounds = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1}
    assert waits(answered, rounds) == {"within_a_batch": 0.2, "between_batches": 2.0}
