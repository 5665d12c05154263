"""Images that come into a folder after its list was made."""

import shutil
from pathlib import Path

import pytest
from conftest import command, lines_of
from labelling import CLASSES, SMALL, cached, digits_in, label_all, opened, truth

from al_bench.errors import UserError
from al_bench.labelling.growth import take_in_new
from al_bench.labelling.images import list_images
from al_bench.labelling.session import Session


def more_in(folder, n):
    """Further images beside those that are there, which stay untouched."""
    there = digits_in(folder.with_name("more"), n)
    shutil.copytree(there, folder, dirs_exist_ok=True, ignore=lambda home, names: [
        name for name in names if name.endswith(".png") and (folder / Path(home).name / name).exists()
    ])  # fmt: skip


@pytest.fixture
def grown(tmp_path):
    """100 images that were labelled, and 100 that have come since."""
    digits_in(tmp_path / "photos", 100)
    with opened(tmp_path) as session:
        label_all(session)
        session.tested_before = session._tested
    more_in(tmp_path / "photos", 200)
    return tmp_path, session


def test_new_images_are_told_with_what_takes_them_in(grown):
    (note,) = list_images(grown[0] / "photos").notes
    assert note.startswith("100 images are new since the list was made, and are not asked for; --new takes them in: c")


def test_new_images_are_taken_in_behind_the_others_and_keep_all_labels_and_roles(grown):
    folder, before = grown
    said = take_in_new(folder / "photos")
    with Session(folder / "photos") as session:
        assert session.listing.paths[:100] == before.listing.paths and len(session.listing.paths) == 200
        assert sorted(session.listing.paths[100:]) == [*session.listing.paths[100:]] and session.listing.notes == ()
        tested = session._tested - before.tested_before
        assert before.tested_before < session._tested and not tested & {*before.listing.paths}
        assert 10 <= len(tested) <= 30  # about a fifth
        assert said == f"100 new images are taken in, {len(tested)} of them as test images. " + (
            "A new run begins. All labels are kept."
        )
        assert session.settings.run == 2
        known = {*session.labels.current}
        asked = label_all(session)
        assert session.progress().state == "finished" and not known & {*asked}
        assert session.store.info()["dataset"]["n_test"] == len(session._tested)
        assert session.store.records()[0].n_labels == 60 + 20
        roles = {label.path: label.role for label in session.labels.current.values()}
        assert {path for path in asked if roles[path] == "test"} == tested
    first = lines_of(before.store.folder)
    assert len(first) == 5  # the run before is as it was
    done = command(folder, "label", "photos", "--new", "--remove-class", "x")
    assert "x is none of the classes" in done.stderr


def test_a_second_addition_keeps_the_roles_of_the_first(grown):
    folder, _ = grown
    take_in_new(folder / "photos")
    first = {i.path: i.test for i in list_images(folder / "photos").images}
    more_in(folder / "photos", 300)
    take_in_new(folder / "photos")
    images = list_images(folder / "photos").images
    assert {i.path: i.test for i in images[:200]} == first and len(images) == 300
    assert {type(i.test) for i in images} == {bool}
    assert take_in_new(folder / "photos").endswith("photos has no new images.")


def test_a_new_copy_of_a_listed_image_is_not_asked_for(grown):
    folder, before = grown
    shutil.rmtree(folder / "photos")
    digits_in(folder / "photos", 100)
    first = before.listing.paths[0]
    shutil.copy(folder / "photos" / first, folder / "photos/copy.png")
    assert take_in_new(folder / "photos").endswith("photos has no new images.")
    with Session(folder / "photos") as session:
        assert session.listing.canonical["copy.png"] == first
        assert session.settings.run == 1 and not any("new since" in note for note in session.notes)


def test_a_folder_that_grows_a_lot_is_not_flooded_with_test_images(tmp_path):
    digits_in(tmp_path / "photos", 50)
    with Session(tmp_path / "photos", CLASSES, [*SMALL, cached(tmp_path)]):
        pass
    digits_in(tmp_path / "photos", 1797)
    shutil.copytree(tmp_path / "photos", tmp_path / "more")
    for i, file in enumerate(sorted((tmp_path / "more").rglob("*.png"))):
        file.write_bytes(file.read_bytes() + b" " * (i + 1))  # other contents
    shutil.move(tmp_path / "more", tmp_path / "photos/more")
    take_in_new(tmp_path / "photos")
    images = list_images(tmp_path / "photos").images
    assert 260 < sum(i.test for i in images) < 360 and len(images) > 3_000  # a fifth would be 700


def test_a_folder_without_labels_has_no_new_images(tmp_path):
    digits_in(tmp_path / "photos", 10)
    with pytest.raises(UserError, match="all of its images are new. Leave out --new"):
        take_in_new(tmp_path / "photos")
    assert truth(list_images(tmp_path / "photos").paths[0]) == "c0"
