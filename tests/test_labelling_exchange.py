"""suggest and ingest: files for spreadsheets, file managers and Label Studio, and what comes back in them."""

import csv
import errno
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import command
from labelling import CLASSES, cached, digits_in, opened, truth

from al_bench.errors import UserError
from al_bench.labelling import ingest, label_studio, links, suggest
from al_bench.labelling.labels import Labels
from al_bench.labelling.session import Item, Session
from al_bench.labelling.tables import path_cell

START = ("--classes", ",".join(CLASSES), "dataset.image_size=16", "budget.initial=20")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of `photos`, whose classes are known."""
    monkeypatch.chdir(digits_in(tmp_path / "photos", 120).parent)
    session = opened(tmp_path, classes=())
    for name in CLASSES:
        session.add_class(name)
    return tmp_path


def answers(folder: Path) -> dict[str, str]:
    return {path: label.answer for path, label in Labels(folder / "photos-labels/labels.jsonl").current.items()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return [*csv.DictReader(file)]


def paths_of(folder: Path, role: str, n: int) -> list[str]:
    """The first n images of this role."""
    session = opened(folder)
    return [path for path in session.listing.paths if session.item(path).role == role][:n]


def ingested(file, *options: str) -> int:
    return ingest.main(["photos", str(file), *options])


def exported(*tasks: tuple, name="export.json") -> Path:
    """Label Studio's JSON. tasks: (file, annotations), of these (choices or None for skipped, created_at)."""
    out = []
    for number, (file, notes) in enumerate(tasks):
        made = [
            {
                "id": 10 * number + i, "completed_by": 1, "was_cancelled": chosen is None, "lead_time": 1.7,
                "created_at": time, "result": [] if chosen is None else [
                    {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": chosen}}
                ],
            }
            for i, (chosen, time) in enumerate(notes)
        ]  # fmt: skip
        out.append({"id": number, "data": {"image": f"/data/local-files/?d=photos/{file}", "file": file, "rank": 4,
                                           "round": 2, "sha256": "x"}, "annotations": made})  # fmt: skip
    Path(name).write_text(json.dumps(out))
    return Path(name)


AT = "2099-11-28T19:02:{:02d}.637368Z"  # after every answer that a test gives by itself


# -- suggest --


def test_the_table_asks_for_what_the_page_asks_for_and_comes_back_filled(folder, capsys):
    shutil.rmtree("photos-labels")
    assert suggest.main(["photos", "--n", "25", *START, cached(folder)]) == 0
    said = capsys.readouterr().out
    table = folder / "photos-labels/suggested/batch-1.csv"
    assert "25 images to label" in said and f"al-bench ingest {folder}/photos {table}" in said
    rows = rows_of(table)
    with Session("photos") as session:
        session.wait(60, chosen=True)
        items = session.next(25)
    assert [(r["path"], r["sha256"], r["rank"]) for r in rows] == [(i.path, i.sha256, str(i.rank)) for i in items]
    assert {r["label"] for r in rows} == {""} and {i.role for i in items} == {"test", "train"}
    for row in rows:
        row["label"] = truth(row["path"])
    write(table, rows)
    assert ingested(table) == 0
    assert [*answers(folder).items()] == [(i.path, truth(i.path)) for i in items]  # order kept
    kept = (folder / "photos-labels/labels.jsonl").read_bytes()
    assert ingested(table) == 0 and "0 answers are new, 25 were known" in capsys.readouterr().out
    assert (folder / "photos-labels/labels.jsonl").read_bytes() == kept
    assert suggest.main(["photos", "--n", "99"]) == 0
    assert "19 images are asked for now; the next 25 are chosen when they are labelled" in capsys.readouterr().out
    again = rows_of(folder / "photos-labels/suggested/batch-2.csv")
    assert len(again) == 19 and not {r["path"] for r in again} & answers(folder).keys()


def write(path: Path, rows: list[dict], delimiter=",", encoding="utf-8") -> Path:
    with open(path, "w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def test_folders_are_sorted_by_moving_links(folder, capsys):
    assert suggest.main(["photos", "--n", "6", "--to", "folders"]) == 0
    place = folder / "photos-labels/suggested/batch-1"
    found = sorted(p for p in place.iterdir() if p.is_symlink())
    assert [p.name[:2] for p in found] == [f"{n} " for n in range(1, 7)]
    assert {p.name for p in place.iterdir() if p.is_dir()} == {*CLASSES, "skip", "unsure"}
    real = {p: os.path.relpath(p.resolve(), folder / "photos") for p in found}
    for p in found[:4]:
        p.rename(place / truth(real[p]) / p.name)
    found[4].rename(place / "unsure" / "renamed.png")
    Path("photos", real[found[4]]).write_bytes(b"changed")  # a link is followed, whatever lies there
    capsys.readouterr()
    assert ingested(place) == 0
    assert "5 answers are new" in (said := capsys.readouterr().out) and "1 images are not labelled there" in said
    assert answers(folder) == {real[p]: truth(real[p]) for p in found[:4]} | {real[found[4]]: "unsure"}


def test_copies_are_made_where_links_cannot_be(folder, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", none)
    assert suggest.main(["photos", "--n", "3", "--to", "folders"]) == 0
    assert "3 of them are copies" in capsys.readouterr().out
    place = folder / "photos-labels/suggested/batch-1"
    (copy, *_) = sorted(p for p in place.glob("*.png"))
    copy.rename(place / "c7" / "x.png")
    assert ingested(place) == 0
    ((path, answer),) = answers(folder).items()
    assert answer == "c7" and (folder / "photos" / path).read_bytes() == (place / "c7/x.png").read_bytes()


def test_tasks_for_label_studio(folder, capsys):
    os.rename("photos/c0", "photos/a &0")
    shutil.rmtree("photos-labels")
    options = ["--to", "label_studio", "--n", "60", *START, "budget.query=10", cached(folder)]
    assert suggest.main(["photos", *options]) == 0
    said = capsys.readouterr().out
    place = folder / "photos-labels/suggested/batch-1.json"
    tasks = [task["data"] for task in json.loads(place.read_text())]
    assert [t["rank"] for t in tasks] == [*range(44)] and {t["round"] for t in tasks} == {0}
    odd = next(t for t in tasks if t["file"].startswith("a &0/"))
    assert odd["image"] == f"/data/local-files/?d=photos/a%20%260/{odd['file'].split('/')[1]}"
    assert label_studio.path_in(odd["image"]) == f"photos/{odd['file']}"
    assert all("predictions" not in t for t in json.loads(place.read_text()))
    view = ET.fromstring(place.with_suffix(".xml").read_text())
    (choices,) = view.iter("Choices")
    assert (choices.get("name"), choices.get("toName"), choices.get("choice")) == ("label", "image", "single")
    assert [c.get("value") for c in choices] == [*CLASSES] and choices[8].get("hotkey") == "9"
    assert view.find("Image").attrib == {"name": "image", "value": "$image"}
    assert f"DOCUMENT_ROOT={folder} label-studio start" in said and f"Local Files: {folder}/photos," in said


def test_a_prediction_has_a_class_of_the_configuration(tmp_path):
    item = Item("a.png", "0" * 64, tmp_path / "a.png", "train", 2, 5)
    task = label_studio.task(item, tmp_path, ("cat", "<b>&\"'"), ("cat", 0.87654), "pca-60-labels")
    assert task["predictions"] == [
        {"model_version": "pca-60-labels", "score": 0.8765, "result": [
            {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
        ]}
    ]  # fmt: skip
    assert task["data"]["shown"] == "cat"
    with pytest.raises(ValueError, match="'bird' is none of the classes"):
        label_studio.task(item, tmp_path, ("cat", "dog"), ("bird", 0.9), "x")
    (choices,) = ET.fromstring(label_studio.configuration(["cat", "<b>&\"'"])).iter("Choices")
    assert choices[1].get("value") == "<b>&\"'"


def test_what_cannot_be_suggested_is_told(folder, capsys, tiny_disk):
    def told(*arguments):
        assert suggest.main(["photos", *arguments]) == 1
        return capsys.readouterr().err

    (tiny_disk / "full").write_bytes(b"x" * 65_536)
    with pytest.raises(SystemExit):
        suggest.main(["photos", "cat"])
    assert "cat is no setting" in capsys.readouterr().err
    assert "No space left on the disk" in told("--n", "60", "--out", f"{tiny_disk}/x.csv")
    assert not (tiny_disk / "x.csv").exists()
    Path("there.csv").write_text("labels of a whole evening")
    assert "there.csv is there already" in told("--out", "there.csv")
    shutil.rmtree("photos-labels")
    assert "--to folders needs the classes" in told("--to", "folders")


# -- ingest: tables --


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("utf-8", "path,label\n{a},c1\n{b},C2\n{c},\n"),
        ("utf-8-sig", "File;note;Class;more\n{a};x;c1;\n{b};y;c2\n{c};;;\n"),
        ("utf-16", "path\tlabel\n{a}\tc1\n{b}\tc2\n{c}\t\n"),
        ("cp1252", "path;label;note\n{a};c1;schön\n{b};c2;\n{c};;\n"),
        ("utf-8", 'sep=;\n"path";"label"\n"photos/{a}";"c1"\n"./{b}";" c2 "\n"{c}";""\n'),
        ("utf-8", "path,label\n{absolute}/{a},c1\nphotos\\{b},c2\n{c},\n"),
    ],
)
def test_a_table_of_any_spreadsheet_is_read(folder, capsys, encoding, text):
    a, b, c = paths_of(folder, "train", 3)
    win = b.replace("/", "\\") if "\\" in text else b
    Path("x.csv").write_bytes(text.format(a=a, b=win, c=c, absolute=folder / "photos").encode(encoding))
    assert ingested("x.csv") == 0
    assert answers(folder) == {a: "c1", b: "c2"}
    assert "2 answers are new (c1 1, c2 1)" in (said := capsys.readouterr().out)
    assert "1 images are not labelled there" in said


def test_what_is_not_taken_is_told_by_name(folder, capsys):
    a, b, c = paths_of(folder, "train", 3)
    os.remove(f"photos/{c}")
    Path("x.csv").write_text(f"path,label\n{a},c1\n../{b},c1\n{b},bird\n{b},c11\ngone.png,c1\n{c},c1\n")
    assert ingested("x.csv") == ingest.INCOMPLETE == 3
    said = capsys.readouterr().out
    assert answers(folder) == {a: "c1"}
    assert f"Not taken (2), not among the images of the folder: ../{b}, gone.png" in said
    assert f"the class bird is unknown (--classes adds a class): {b}" in said
    assert "the class c11 is unknown ('c11': did you mean c1" in said
    assert f"Not taken (1), cannot be read any more: {c}" in said
    assert ingested("x.csv", "--classes", "bird") == 3
    assert answers(folder)[b] == "bird" and "bird is unknown" not in capsys.readouterr().out


def test_the_last_of_contradicting_answers_wins_and_is_told(folder, capsys):
    a, b = paths_of(folder, "train", 2)
    Path("x.csv").write_text(f"path,label\n{a},c1\n{a},c2\n{b},c3\n{b},c3\n")
    assert ingested("x.csv") == 0
    said = capsys.readouterr().out
    assert answers(folder) == {a: "c2", b: "c3"}
    assert f"Several answers, the last counts (1): {a} (c1, c2)" in said and f"more than once (1): {b}" in said
    kept = (folder / "photos-labels/labels.jsonl").read_bytes()
    assert ingested("x.csv") == 0 and (folder / "photos-labels/labels.jsonl").read_bytes() == kept
    capsys.readouterr()
    Path("x.csv").write_text(f"path,label\n{a},c4\n")
    assert ingested("x.csv") == 0 and answers(folder)[a] == "c4"
    assert f"Changed (1): {a} (c4, was c2)" in capsys.readouterr().out


def test_test_labels_change_only_with_the_flag(folder, capsys):
    (a,) = paths_of(folder, "test", 1)
    for answer in ("c1", "c2"):
        Path(f"{answer}.csv").write_text(f"path,label\n{a},{answer}\n")
    assert ingested("c1.csv") == 0 and ingested("c2.csv") == 3
    assert f"another answer for a test image (--correct-test allows it): {a} (c1, not c2)" in capsys.readouterr().out
    assert answers(folder) == {a: "c1"}
    assert ingested("c2.csv", "--correct-test") == 0 and answers(folder) == {a: "c2"}
    assert Labels(folder / "photos-labels/labels.jsonl").current[a].role == "test"


def test_a_checksum_finds_a_renamed_file_and_tells_a_changed_one(folder, capsys):
    a, b = paths_of(folder, "train", 2)
    rows = [{"path": p, "label": "c1", "sha256": opened(folder).item(p).sha256} for p in (a, b)]
    write(Path("x.csv"), [rows[0] | {"path": "other name.png"}, rows[1]])
    Path(f"photos/{b}").write_bytes(Path(f"photos/{b}").read_bytes() + b"\0")
    assert ingested("x.csv") == 3
    assert answers(folder) == {a: "c1"} and f"the file has changed since: {b}" in capsys.readouterr().out


def test_odd_names_come_back(folder, capsys):
    odd = [os.fsdecode(b"\xff.png"), "=1+1.png", 'a\nb, "c".png', "\u202egnp.png"]
    for i, name in enumerate(odd):
        Path("photos", name).write_bytes(Path("photos", paths_of(folder, "train", 9)[i]).read_bytes() + b"x")
    (folder / "photos-labels/images.jsonl").unlink()
    write(Path("x.csv"), [{"path": path_cell(name), "label": f"c{i}"} for i, name in enumerate(odd)])
    assert ingested("x.csv") == 0
    assert answers(folder) == {name: f"c{i}" for i, name in enumerate(odd)}


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "has no row below its first line"),
        ("path,label\n", "has no row below its first line"),
        ("name of it,what\nx,y\n", "has the columns name of it, what. It needs path .or sha256. and label"),
        ("\0\1\2", "is no text"),
        ('{"a": 1}', "is no JSON or JSON_MIN export"),
        ("[1, 2]", "is no JSON or JSON_MIN export"),
        ('[{"data": {"file": "x"}, "annotations": [{"result": [{"type": "choices"}]}]}]', "is no JSON or JSON_MIN"),
        (None, "There is no file x.csv. Name a CSV, an export"),
    ],
)
def test_a_file_of_another_kind_is_told(folder, capsys, content, said):
    if content is not None:
        Path("x.csv").write_text(content)
    assert ingested("x.csv") == 1
    assert re.search(said, capsys.readouterr().err)


# -- ingest: Label Studio --


def test_json_keeps_skips_and_the_latest_annotation(folder, capsys):
    a, b, c, d = paths_of(folder, "train", 4)
    export = exported(
        (a, [(["c2"], AT.format(9)), (["c1"], AT.format(5))]), (b, [(None, AT.format(7))]), (c, []),
        (d, [(["c3"], AT.format(8))]),
    )  # fmt: skip
    assert ingested(export) == 0
    said = capsys.readouterr().out
    assert answers(folder) == {b: "skip", d: "c3", a: "c2"}
    assert f"the last counts (1): {a} (c1, c2)" in said and "1 images are not labelled there" in said
    kept = Labels(folder / "photos-labels/labels.jsonl").current[a]
    assert (kept.round, kept.rank, kept.who, kept.seconds) == (2, 4, "1", None)
    assert kept.time == "2099-11-28T19:02:09.637368+00:00"
    before = (folder / "photos-labels/labels.jsonl").read_bytes()
    assert ingested(export) == 0 and (folder / "photos-labels/labels.jsonl").read_bytes() == before


def test_an_export_that_is_older_than_an_answer_does_not_change_it(folder, capsys):
    (a,) = paths_of(folder, "train", 1)
    assert ingested(exported((a, [(["c1"], AT.format(9))]))) == 0
    assert ingested(exported((a, [(["c2"], AT.format(5))]))) == 3
    assert answers(folder) == {a: "c1"}
    assert f"older than the answer that the image has: {a} (c1)" in capsys.readouterr().out


def test_json_min_and_csv_exports_are_read_and_tell_that_skips_are_unknown(folder, capsys):
    a, b = paths_of(folder, "train", 2)
    row = {"annotation_id": 1, "annotator": 1, "created_at": AT.format(5), "file": a, "id": 3, "image": "y",
           "label": "c1", "lead_time": 1.7, "rank": 0, "sha256": "x", "updated_at": AT.format(5)}  # fmt: skip
    Path("min.json").write_text(json.dumps([row, row | {"file": None, "image": f"/data/local-files/?d=photos/{b}"}]))
    assert ingested("min.json") == 0 and answers(folder) == {a: "c1", b: "c1"}
    assert "it is not known which were skipped" in capsys.readouterr().out
    later = row | {"label": "c2", "created_at": AT.format(9), "updated_at": AT.format(9), "lead_time": ""}
    write(Path("x.csv"), [later, row])  # Label Studio puts the newest first
    assert ingested("x.csv") == 0 and answers(folder) == {a: "c2", b: "c1"}
    assert "it is not known which were skipped" in capsys.readouterr().out


def test_several_classes_of_an_image_are_refused_by_name(folder, capsys):
    a, b = paths_of(folder, "train", 2)
    Path("min.json").write_text(
        json.dumps([{"file": b, "label": "c1"}, {"file": a, "label": {"choices": ["c1", "c2"]}}])
    )
    write(Path("x.csv"), [{"file": a, "label": '{"choices": ["c1", "c2"]}', "annotation_id": 1}])
    for file in (exported((a, [(["c1", "c2"], AT.format(1))])), "min.json", "x.csv"):
        assert ingested(file) == 1
        assert (
            f'{a} has several classes (c1, c2): the project was set up with choice="multiple"'
            in capsys.readouterr().err
        )
    assert not answers(folder)


# -- ingest: folders --


def test_an_image_in_two_class_folders_is_told_and_not_taken(folder, capsys):
    a, b = paths_of(folder, "train", 2)
    for place, path in (("c1/x.png", a), ("c2/y.png", a), ("c3/deep/er/z.png", b), ("bird/b.png", b), ("loose.png", b)):
        Path("sorted", place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"photos/{path}", f"sorted/{place}")
    Path("sorted/c1/notes.txt").write_text("x")
    Path("sorted/c1/.DS_Store").write_text("x")
    os.symlink("nowhere", "sorted/c1/dead.png")
    assert ingested("sorted") == 3
    said = capsys.readouterr().out
    assert answers(folder) == {b: "c3"}
    assert f"in several class folders: {a} (c1, c2)" in said and "the class bird is unknown" in said
    assert "not among the images of the folder: dead.png, notes.txt" in said and ".DS_Store" not in said


def test_links_never_delete_a_file_that_al_bench_did_not_make(tmp_path):
    file = tmp_path / "a.png"
    file.write_text("a")
    links.make(tmp_path / "out", {"cat/a.png": file, "dog/b.png": file})
    (tmp_path / "out/dog/mine.txt").write_text("x")
    links.make(tmp_path / "out", {"dog/a.png": file})
    links.make(tmp_path / "out", {"dog/a.png": file})
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if not p.name.startswith(".")}
    assert found == {"dog", "dog/a.png", "dog/mine.txt"}
    with pytest.raises(Exception, match="dog/mine.txt is in the way: al-bench did not make it"):
        links.make(tmp_path / "out", {"dog/mine.txt": file})
    assert (tmp_path / "out/dog/mine.txt").read_text() == "x"


def test_a_link_that_the_user_moved_to_where_it_belongs_is_in_nobodys_way(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"image")
    links.make(tmp_path / "classes", {"cat/a.png": image})
    (tmp_path / "classes/dog").mkdir()
    (tmp_path / "classes/cat/a.png").rename(tmp_path / "classes/dog/a.png")
    links.make(tmp_path / "classes", {"dog/a.png": image})
    assert (tmp_path / "classes/dog/a.png").read_bytes() == b"image" and not (tmp_path / "classes/cat").exists()
    (tmp_path / "classes/dog/b.png").symlink_to(image)
    with pytest.raises(UserError, match="b.png is in the way"):
        links.make(tmp_path / "classes", {"dog/b.png": tmp_path / "b.png"})


def test_each_class_has_a_folder_of_its_own():
    names = ["cat", "a/b", "a_b", "..", ".", "chat noir", " x"]
    found = links.class_folders(names)
    assert len({*found.values()}) == len(names) and (found["cat"], found["chat noir"]) == ("cat", "chat noir")
    assert not any("/" in folder or folder.startswith(".") for folder in found.values())


def test_a_folder_at_work_is_not_written_to(folder, capsys):
    Path("x.csv").write_text("path,label\n")
    with Session("photos"):
        assert ingested("x.csv") == 1
    assert "Another al-bench label is at work" in capsys.readouterr().err


def test_the_commands_are_there(tmp_path):
    for name in ("suggest", "ingest", "finish", "predict"):
        done = command(tmp_path, name, "--help")
        assert done.returncode == 0 and f"usage: al-bench {name}" in done.stdout
