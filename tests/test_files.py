import csv
import os
import re
import shutil
import socket
import warnings
import zipfile
from pathlib import Path

import pytest
from conftest import lines_of, run_here
from test_decode import SKIP, decoded, encoded, flat, grey, write, zipped
from test_sources import greys, loaded

from al_bench.data.files import files_in
from al_bench.data.listing import write_listing
from al_bench.errors import UserError
from al_bench.text import one_line

LATIN = os.fsdecode(b"caf\xe9")  # a Latin-1 name, as on an old disk or in an old zip


def test_a_link_that_leads_nowhere_a_pipe_and_a_device_are_bad_files_by_name(tmp_path):
    folder = write(tmp_path / "in", {"a.png": grey(1), "z.png": grey(2)})
    (folder / "dead.png").symlink_to(tmp_path / "gone.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.png"))
    with pytest.raises(UserError) as stopped:
        decoded(folder, tmp_path)
    head, *listed, _ = str(stopped.value).splitlines()
    assert "5 of the files" in head and [line.strip() for line in listed] == [
        "dead.png: a link that leads nowhere",
        "itself.png: a link that leads nowhere",
        "pipe.png: a pipe, not a file",
        "socket.png: a socket, not a file",
        "zero.png: a device, not a file",
    ]
    images, notes = decoded(folder, tmp_path, on_bad=SKIP)
    assert images[:, 0, 0, 0].tolist() == [1, 2] and len(notes["skipped"]) == 5


def test_a_dead_link_in_place_of_a_class_folder_is_no_class_less(tmp_path):
    folder = write(tmp_path / "in", greys("a/0 a/1 b/2 b/3"))
    (folder / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="(?s)1 of the files.* c: a link that leads nowhere"):
        loaded(folder, tmp_path, "image_folder")
    assert loaded(folder, tmp_path, "image_folder", on_bad_image=SKIP)[0].skipped == ("c",)


def test_a_root_that_is_a_pipe_a_device_or_a_dead_link_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    for root, why in (("pipe", "is a pipe"), ("dead", "there is no such file"), ("/dev/zero", "is a device")):
        with pytest.raises(UserError, match=f"dataset.root=.*{root}:? {why}"):
            files_in(str(tmp_path / root))


@pytest.mark.parametrize("place, target", [("a/back", "a"), ("a/back", ""), ("a/b/back", "a"), ("b/back", "/")])
def test_a_folder_that_is_linked_into_itself_is_refused_by_name(place, target, tmp_path):
    folder = write(tmp_path / "in", greys("a/b/0 b/1"))
    (folder / place).symlink_to(folder / target if target != "/" else "/")
    with pytest.raises(UserError, match=f"{place} is a link to a folder that contains it"):
        files_in(str(folder))


@pytest.mark.parametrize("names", [["a.bmp"], ["a.bmp", "sub/b.bmp"]])
def test_other_pixels_of_one_name_size_and_time_are_decoded(names, tmp_path):
    def written(value):
        folder = write(tmp_path / "in", {name: encoded(flat("L", value), "bmp") for name in names})
        for name in names:
            os.utime(folder / name, (0, 0))
        return folder

    assert decoded(written(1), tmp_path)[0].max() == 1
    assert decoded(written(200), tmp_path)[0].max() == 200


def test_a_copy_that_brings_its_times_along_is_decoded_again(tmp_path):
    """rsync -a, cp -p and unpacking keep old times, so a replaced image may have the time of the old one."""
    folder = write(tmp_path / "in", {"a.bmp": encoded(flat("L", 1), "bmp")})
    backup = write(tmp_path / "backup", {"a.bmp": encoded(flat("L", 200), "bmp")})
    os.utime(folder / "a.bmp", (5, 5))
    os.utime(backup / "a.bmp", (5, 5))
    assert decoded(folder, tmp_path)[0].max() == 1
    shutil.copy2(backup / "a.bmp", folder / "a.bmp")
    assert decoded(folder, tmp_path)[0].max() == 200


def twice(path, *files):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns about the repeated name
        for name, content in files:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "files, told",
    [
        (["a/0.png", "b/1.png", "a/0.png"], r"several files of one name \(a/0.png\): .* 1 files"),
        (["a/0.png", "b/1.png", "./a/0.png", "a//0.png"], r"\(a/0.png\): .* 2 files"),
        (["a/0.png", "b/1.png", "a\\0.png", "b/1.png"], r"\(a/0.png, b/1.png\): .* 2 files"),
    ],
)
def test_two_files_of_one_name_in_a_zip_are_told(files, told, tmp_path):
    archive = twice(tmp_path / "in.zip", *((name, grey(10 * i)) for i, name in enumerate([*files, "a/x.png"])))
    (warning,) = files_in(str(archive)).warnings
    assert re.search(told, warning)
    nested = zipped(tmp_path / "outer.zip", {"train.zip": archive.read_bytes()})
    assert len(files_in(str(nested)).warnings) == 1
    assert files_in(str(zipped(tmp_path / "sound.zip", greys("a/0.png b/1.png")))).warnings == ()
    assert loaded(archive, tmp_path, "image_folder")[0].warnings == (warning,)


@pytest.mark.parametrize("name", [LATIN, os.fsdecode(b"\xff\xfe"), os.fsdecode("猫".encode("shift_jis"))])
def test_a_class_folder_whose_name_is_not_utf_8_is_refused_by_name_before_any_training(name, tmp_path):
    folder = write(tmp_path / "in", {"dog/1.png": grey(1), f"{name}/2.png": grey(2)})
    with pytest.raises(UserError) as refused:
        loaded(folder, tmp_path, "image_folder")
    assert one_line(name) in str(refused.value) and "not in UTF-8. Rename it" in str(refused.value)
    str(refused.value).encode()


def test_names_reach_a_terminal_without_control_characters_and_bytes_that_are_no_utf_8(tmp_path):
    folder = write(tmp_path / "in", {"a\x1b[31m\r\n.png": b"", f"{LATIN}.png": b"", "Käse 一.png": b""})
    with pytest.raises(UserError) as stopped:
        decoded(folder, tmp_path)
    _, *listed, _ = str(stopped.value).splitlines()
    assert [line.split(": ")[0].strip() for line in listed] == ["Käse 一.png", r"a\x1b[31m\r\n.png", r"caf\udce9.png"]
    write(tmp_path / "zip", {})
    bad = zipped(tmp_path / "zip" / "a.zip", {"a/\x1b]0;title\x07.png": b"", "b/1.png": grey(1)})
    with pytest.raises(UserError, match=r"a/\\x1b\]0;title\\x07.png: not an image"):
        loaded(bad, tmp_path, "image_folder")


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def listing_of(store):
    return (store.folder / store.info()["dataset"]["images"]).resolve()


QUICK = ("trainer.max_steps=1", "budget.initial=4", "budget.query=2", "budget.rounds=1", "budget.validation=2")


def test_a_table_beside_the_runs_says_which_image_an_index_is(tmp_path, one_thread):
    names = [f"{kind}/{i:02}.png" for kind in ("cat", "dog") for i in range(10)] + [f"dog/{LATIN}.png", "dog/=x,y.png"]
    root = write(tmp_path / "in", {name: grey(i) for i, name in enumerate(names)} | {"cat/bad.png": b""})
    data = (f"dataset.root={root}", "dataset=image_folder", "dataset.on_bad_image=skip", "dataset.image_size=8")
    one, two = (run_here(tmp_path, *data, *QUICK, f"seed={seed}", "stressor.label_noise=0.5") for seed in (0, 1))
    assert listing_of(one) == listing_of(two) and listing_of(one).parent == one.folder.parents[3]
    head, *rows = rows_of(listing_of(one))
    assert head == ["index", "file", "class"] and [int(row[0]) for row in rows] == list(range(22))
    by_name = {row[1]: row[2] for row in rows}
    assert by_name == {one_line(name): name.split("/")[0] for name in names}  # not the noisy label
    copies = run_here(tmp_path, *data, *QUICK, "stressor.copies=2", "stressor.noise=0.2")
    _, *rows = rows_of(listing_of(copies))
    assert len(rows) == 4 + 2 * 18 and all(row[2] == by_name[row[1]] for row in rows)
    assert [a[1] for a in rows[4::2]] == [b[1] for b in rows[5::2]]
    assert lines_of(one.folder)[0]["acquired"]


def test_the_table_of_data_without_files_has_their_classes(tmp_path, one_thread):
    store = run_here(tmp_path, *QUICK)
    head, *rows = rows_of(listing_of(store))
    assert head == ["index", "class"] and len(rows) == 1797 and rows[:3] == [["0", "0"], ["1", "1"], ["2", "2"]]


def test_files_at_the_top_whose_names_are_formulas_stay_paths_and_no_formulas(tmp_path):
    _, *rows = rows_of(write_listing(tmp_path, ["=1+1.png", "@x.png", "a/=b.png"], ["-1", "+", "a"]))
    assert [row[1] for row in rows] == ["./=1+1.png", "./@x.png", "a/=b.png"]
    assert [row[2] for row in rows] == ["'-1", "'+", "a"] and Path(rows[0][1]) == Path("=1+1.png")
