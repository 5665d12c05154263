import os
import shutil

import pytest
from PIL import Image

from al_bench.errors import UserError
from al_bench.labelling import images
from al_bench.labelling.images import home_of, labelled_by_folder, list_images


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(("b.png", "a.png", "sub/deep/c.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(path)
    return tmp_path / "photos"


def test_images_are_listed_by_path_and_the_list_is_kept_beside_the_folder(photos):
    found = list_images(photos)
    assert found.paths == ("a.png", "b.png", "sub/deep/c.png") and found.notes == ()
    assert home_of(f"{photos}/") == photos.parent / "photos-labels"
    assert len((home_of(photos) / "images.jsonl").read_text().splitlines()) == 3
    assert list_images(photos) == found


def test_byte_identical_copies_are_asked_once_under_the_first_name(photos):
    shutil.copy(photos / "b.png", photos / "z.png")
    shutil.copy(photos / "b.png", photos / "sub/0.png")
    found = list_images(photos)
    assert found.paths == ("a.png", "b.png", "sub/deep/c.png")
    assert found.images[1].copies == ("sub/0.png", "z.png")
    assert found.canonical["z.png"] == found.canonical["b.png"] == "b.png"
    assert found.notes == ("2 files are copies of others: each picture is asked once.",)


def test_only_files_of_equal_size_are_read(photos, monkeypatch):
    Image.new("RGB", (200, 8)).save(photos / "alone.bmp")
    read = []
    monkeypatch.setattr(images, "sha256_of", lambda path, real=images.sha256_of: read.append(path.name) or real(path))
    list_images(photos)
    assert "alone.bmp" not in read


def test_files_that_are_no_images_are_noted_and_left_out(photos):
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.png").write_text("x")
    found = list_images(photos)
    assert len(found.paths) == 3 and found.notes == ("Files left out, as they are not named like images: 1 (.txt 1).",)


def test_a_place_that_cannot_be_written_is_told_with_the_way_out(photos, tmp_path):
    (tmp_path / "photos-labels").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot be .* a link to the folder of images, made where you may write"):
        list_images(photos)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/photos").symlink_to(photos)
    assert list_images(tmp_path / "elsewhere/photos").paths == list_images(tmp_path / "elsewhere/photos").paths
    assert (tmp_path / "elsewhere/photos-labels/images.jsonl").exists()


def test_photographs_that_are_not_read_are_told_with_what_to_do(photos, tmp_path):
    for name in ("a.HEIC", "b.heic", "c.dng", "d", "e.db"):
        (photos / name).write_text("x")
    (note,) = list_images(photos).notes
    assert note == (
        "Files left out, as they are not named like images: 5 (.heic 2, .dng 1, no ending 1, .db 1). "
        "Photographs of these kinds are not read: save them as JPEG."
    )
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/a.HEIC").write_text("x")
    with pytest.raises(UserError, match="has no images .* Photographs of these kinds are not read: save them as JPEG."):
        list_images(tmp_path / "phone")


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_without_images_is_told(tmp_path, name):
    (tmp_path / "photos").mkdir()
    if name:
        (tmp_path / "photos" / name).write_text("x")
    with pytest.raises(UserError, match="has no images .*Name a folder"):
        list_images(tmp_path / "photos")
    with pytest.raises(UserError, match="no such file or folder"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_text("x")
    with pytest.raises(UserError, match="a.jpg is a file. Name the folder of images: "):
        list_images(tmp_path / "a.jpg")


def test_an_image_keeps_its_place_when_others_come_go_move_or_change(photos):
    before = list_images(photos)
    os.remove(photos / "a.png")
    os.rename(photos / "b.png", photos / "sub/b.png")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(photos / "0 new.png")
    Image.new("RGB", (16, 8), (9, 9, 9)).save(photos / "sub/deep/c.png")
    now = list_images(photos)
    assert now.paths == before.paths and now.files().fingerprint == before.files().fingerprint
    assert now.file("b.png") == photos / "sub/b.png" and not now.file("a.png").exists()
    said = "\n".join(now.notes)
    assert "1 listed images are gone" in said and "a.png" in said
    assert "1 listed images have changed" in said and "sub/deep/c.png" in said
    assert "1 images are new" in said and "0 new.png" in said and "b.png" not in said.replace("sub/b.png", "")


def test_odd_names_are_listed_as_they_are(photos):
    names = [os.fsdecode(b"\xff.png"), "<b>&'\".png", "a\nb.png", "\u202egnp.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (50 + i, 0, 0)).save(photos / name, format="png")
    assert {*names} < {*list_images(photos).paths} == {*list_images(photos).paths}


def test_a_damaged_list_is_told(photos):
    list_images(photos)
    (home_of(photos) / "images.jsonl").write_text('{"path": "a.png"}\n')
    with pytest.raises(UserError, match="images.jsonl is damaged .*answers stay with their paths"):
        list_images(photos)


def test_sub_folders_named_like_classes_give_labels(photos):
    assert [*labelled_by_folder(list_images(photos), ["sub", "other"])] == [("sub/deep/c.png", "sub")]
    assert [*labelled_by_folder(list_images(photos), ["sub", "deep"])] == [("sub/deep/c.png", "deep")]


@pytest.mark.parametrize("classes", [["cat", "cat"], ["skip", "dog"], ["unsure", "dog"], [" ", "dog"]])
def test_classes_that_cannot_be_told_apart_are_refused(classes):
    with pytest.raises(UserError):
        images.refuse_classes(classes)
