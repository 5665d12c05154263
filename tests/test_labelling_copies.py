"""Near-duplicates: which images are the same picture, and that a person is asked for it once."""

import io
import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import lines_of
from labelling import benchmarked, digits_in, label_all, opened, truth
from PIL import Image
from sklearn.datasets import load_digits
from test_cache import mapped_memory

from al_bench.data.cache import cached_array, release_pages
from al_bench.labelling import copies
from al_bench.labelling.copies import original_of, same_rows
from al_bench.labelling.labels import read_lines

pytestmark = pytest.mark.usefixtures("all_threads")

CLASSES = ("c0", "c1")
SMALL = ("dataset.image_size=32", "budget.initial=10", "budget.query=5", "budget.rounds=2")


def photograph(seed, side=96):
    """Soft random shapes, with noise."""
    draw = np.random.default_rng(seed)
    soft = Image.fromarray(draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(soft) + draw.normal(0, 5, (side, side, 1))).clip(0, 255).astype(np.uint8))


def again(image, kind="JPEG", side=None, **options):
    """The image saved again."""
    file = io.BytesIO()
    (image.resize((side, side)) if side else image).save(file, kind, **options)
    return Image.open(file).convert("RGB")


def rows(images, side=64):
    pixels = np.stack([np.asarray(image.convert("RGB").resize((side, side))) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_a_picture_that_was_saved_again_is_the_same_one(side):
    first = photograph(0)
    ways = [{"quality": 95}, {"quality": 50}, {"side": 80, "quality": 85}, {"side": 192, "quality": 75},
            {"kind": "WEBP", "quality": 60}, {"kind": "PNG"}]  # fmt: skip
    copies = [again(first, **way) for way in ways]
    others = [photograph(seed) for seed in range(1, 60)]
    assert same_rows(rows([first, *others, *copies], side)) == [[0, *range(60, 66)]]


def changed(image, box, colour):
    image = image.copy()
    image.paste(colour, box)
    return image


def test_a_picture_with_a_change_or_without_content_is_another_one():
    first = photograph(0)
    here, there = ((x, 40, x + 8, 48) for x in (20, 50))
    spot = (45, 45, 47, 47)
    different = [
        first, changed(first, here, (255, 255, 255)), changed(first, there, (0, 0, 0)),
        first.transpose(Image.Transpose.FLIP_LEFT_RIGHT), first.point(lambda value: value * 0.8),
        first.crop((6, 6, 90, 90)), changed(first, spot, (255, 255, 255)), changed(first, spot, (0, 0, 0)),
    ]  # fmt: skip
    assert same_rows(rows(different)) == []
    flat = [Image.new("RGB", (64, 64), (grey,) * 3) for grey in (0, 128, 128, 129, 255)]
    faint = first.point(lambda value: 120 + value / 40)
    assert same_rows(rows([*flat, faint, faint])) == []
    textures = np.random.default_rng(0).integers(118, 139, (20, 64, 64), dtype=np.uint8)
    assert same_rows(rows([Image.fromarray(texture) for texture in textures.repeat(2, 1).repeat(2, 2)], 64)) == []
    paper = Image.new("RGB", (96, 96), "white")
    drawings = [changed(paper, (x, y, x + 6, y + 6), (0, 0, 0)) for x in (10, 18, 60) for y in (10, 40)]
    assert same_rows(rows([paper, paper, *drawings])) == []
    assert same_rows(rows(drawings * 2)) == [[i, i + 6] for i in range(6)]


@pytest.mark.parametrize("side", [8, 16, 64])
def test_different_digits_are_different_pictures(side):
    images, _ = load_digits(return_X_y=True)
    assert same_rows(rows([Image.fromarray((x.reshape(8, 8) * 15.9).astype(np.uint8)) for x in images], side)) == []


# Of the 34 pairs that are found among all 25,000 cats and dogs, all of them the same picture by eye
PAIRS = [
    ("cat.10360", "cat.3345"), ("cat.11053", "cat.4667"), ("cat.2565", "cat.3565"), ("dog.10", "dog.6058"),
    ("dog.39", "dog.8591"), ("dog.5874", "dog.8044"), ("cat.11595", "cat.8137"), ("dog.180", "dog.74"),
]  # fmt: skip


def test_no_two_different_photographs_are_the_same_picture(shared):
    with zipfile.ZipFile(shared / "dogs-vs-cats/train.zip") as archive:
        known = [f"train/{name}.jpg" for pair in PAIRS for name in pair]
        others = sorted({name for name in archive.namelist() if name.endswith("0.jpg")} - {*known})[::2]
        images = [Image.open(io.BytesIO(archive.read(name))) for name in (*known, *others)]
        assert len(images) > 1000
        found = same_rows(rows(images, 64))
    assert found[: len(PAIRS)] == [[2 * i, 2 * i + 1] for i in range(len(PAIRS))]
    assert found[len(PAIRS) :] == []


# -- what the person is asked --


@pytest.fixture
def folder(tmp_path):
    """60 photographs, and ten of them once more in another quality."""
    for i in range(60):
        home = tmp_path / "photos" / CLASSES[i % 2]
        home.mkdir(parents=True, exist_ok=True)
        photograph(i).save(home / f"{i:02d}.jpg", quality=95)
        if i < 20 and i % 2:
            again(photograph(i), quality=70).save(home / f"again-{i:02d}.jpg", quality=60)
    return tmp_path


def begun(folder, **options):
    return opened(folder, *SMALL, classes=CLASSES, **options)


def asked_by(session):
    """Wait until the run has decoded all images and waits for answers."""
    with session.lock:
        assert session.lock.wait_for(lambda: session._outstanding, 60)


def picture(path):
    return path.replace("again-", "")


def test_the_same_picture_is_asked_once_and_the_records_are_those_of_the_benchmark(folder):
    with begun(folder) as session:
        asked_by(session)
        asked = label_all(session)
        assert session.progress().state == "finished"
        (note,) = session.copies.told()
    assert max(Counter(map(picture, asked)).values()) == 1
    lines = read_lines(session.labels.path)
    copied = [line for line in lines if original_of(line)]
    assert len(copied) >= 3 and note.startswith(f"{len(copied)} images show the picture of another file")
    for line in copied:
        assert line.path not in asked and line.seconds is None and len(line.sha256) == 64
        assert original_of(line) in asked and picture(line.path) == picture(original_of(line))
        assert line.answer == truth(line.path)
    assert len(lines) == len(asked) + len(copied)
    assert lines_of(session.store.folder) == benchmarked(session, *SMALL)


def first_pair(session):
    """(item, path of its copy): both are asked for now"""
    asked_by(session)
    items = session.next(100)
    wanted = {item.path for item in session._queue}
    return next(
        (item, other)
        for item in items
        for other in session.copies.groups.get(item.path, ())
        if other != item.path and other in wanted
    )


def test_a_correction_and_an_undo_carry_over_to_the_copy(folder):
    with begun(folder) as session:
        item, copy = first_pair(session)
        answers = session.labels.current
        session.answer(item.path, "c0", seconds=0.5)
        assert answers[copy].answer == "c0" and answers[copy].who == f"copy of {item.path}"
        session.answer(item.path, "c1", seconds=0.5, correct_test=True)
        assert answers[copy].answer == "c1" and answers[copy].who == f"copy of {item.path}"
        assert session.undo().path == item.path
        assert copy not in answers and item.path not in answers
        left = [other.path for other in session.next(100)]
        assert item.path in left and copy not in left  # one of them is asked for again
        session.answer(item.path, "unsure", seconds=0.5)
        assert answers[copy].answer == "unsure"
        session.answer(copy, "c1", seconds=0.5, correct_test=True)  # the person says that it is another one
        session.answer(item.path, "c0", seconds=0.5, correct_test=True)
        assert (answers[copy].answer, answers[copy].who) == ("c1", None)


def test_another_session_knows_the_copies_and_follows_what_changed_between(folder):
    with begun(folder) as session:
        item, copy = first_pair(session)
        session.answer(item.path, "c0", seconds=0.5)
        n = len(session.labels.lines)
    with begun(folder) as session:
        asked_by(session)
        assert len(session.labels.lines) == n and copy not in [other.path for other in session.next(100)]
    session.labels.undo(item.path)  # as another program may
    with begun(folder) as session:
        asked_by(session)
        assert copy not in session.labels.current
        assert [*map(picture, (other.path for other in session.next(100)))].count(picture(copy)) == 1


def test_a_lost_file_is_no_answer_for_its_copy(folder):
    with begun(folder) as session:
        item, copy = first_pair(session)
        (folder / "photos" / item.path).unlink()
        left = [other.path for other in session.next(100)]
        assert session.labels.current[item.path].answer == "skip" and copy not in session.labels.current
        assert copy in left or copy in [other.path for other in session.next(100)]


def test_digits_are_all_asked_for(tmp_path):
    digits_in(tmp_path / "photos", 100)
    with opened(tmp_path) as session:
        asked_by(session)
        assert session.copies.groups == {} and session.copies.told() == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_comparing_mapped_images_holds_few_of_them_in_memory(tmp_path):
    def fill(out):
        for i in range(0, len(out), 50):
            out[i : i + 50] = np.random.default_rng(i).integers(0, 255, (50, *out.shape[1:]), dtype=np.uint8)
        return len(out), {}

    shape, held = (1500, 224, 224, 3), []
    pixels, _ = cached_array(str(tmp_path), {}, shape, "uint8", fill)
    images, before = torch.from_numpy(pixels).permute(0, 3, 1, 2), mapped_memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "release_pages", lambda: held.append(mapped_memory()) or release_pages())
        copies.same_rows(images)
    assert len(held) == -(-shape[0] // copies.AT_ONCE) and max(held) - before < pixels.nbytes / 4
