import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from al_bench.errors import UserError
from al_bench.labelling.labels import SKIP, ChangesTestLabel, Label, Labels, fold, locked, read_lines

CAT = Label("a.jpg", "cat", "train", "0" * 64, 1.5, 2, 7, None, "ada")


def answers(kept: Labels) -> dict[str, str]:
    return {path: label.answer for path, label in kept.current.items()}


def test_a_line_holds_all_that_is_known_of_an_answer_and_is_read_back(tmp_path):
    kept = Labels(tmp_path / "labels.jsonl")
    kept.add(CAT)
    (line,) = map(json.loads, (tmp_path / "labels.jsonl").read_text().splitlines())
    assert line.pop("time")
    assert line == {
        "path": "a.jpg", "answer": "cat", "role": "train", "sha256": "0" * 64, "seconds": 1.5, "round": 2, "rank": 7,
        "who": "ada",
    }  # fmt: skip
    again = Labels(tmp_path / "labels.jsonl").current["a.jpg"]
    assert replace(again, time=None) == CAT


def test_the_last_line_wins_and_an_undo_is_a_further_line(tmp_path):
    kept = Labels(tmp_path / "labels.jsonl")
    assert kept.add(CAT) is None
    assert kept.add(CAT) is None and len(kept.lines) == 1  # the same answer again
    assert kept.add(replace(CAT, answer="dog")).answer == "cat"  # told
    kept.add(replace(CAT, path="b.jpg", answer=SKIP))
    assert answers(kept) == {"a.jpg": "dog", "b.jpg": SKIP}
    assert kept.undo("b.jpg").answer == SKIP and kept.undo("b.jpg") is None
    assert kept.undo("a.jpg").answer == "dog"
    assert answers(kept) == {}
    assert [line.answer for line in read_lines(kept.path)] == ["cat", "dog", SKIP, None, None]
    kept.add(CAT)
    assert fold(read_lines(kept.path)).keys() == {"a.jpg"}


def test_a_test_label_changes_only_when_that_is_allowed(tmp_path):
    kept = Labels(tmp_path / "labels.jsonl")
    kept.add(replace(CAT, role="test"))
    with pytest.raises(ChangesTestLabel, match="a.jpg is a test image and is labelled cat already, not dog"):
        kept.add(replace(CAT, role="test", answer="dog"))
    assert len(kept.lines) == 1
    assert kept.add(replace(CAT, role="test", answer="dog"), correct_test=True).answer == "cat"
    assert answers(kept) == {"a.jpg": "dog"}


@pytest.mark.parametrize("torn", [b'{"path": "b.jpg", "ans', b'{"path": "b.jpg", "answer": "dog"}'])
def test_a_line_that_was_cut_short_is_dropped_and_no_other(tmp_path, torn):
    kept = Labels(tmp_path / "labels.jsonl")
    kept.add(CAT)
    with open(kept.path, "ab") as file:
        file.write(torn)
    assert answers(Labels(kept.path)) == {"a.jpg": "cat"}
    Labels(kept.path).add(replace(CAT, path="c.jpg"))
    assert answers(Labels(kept.path)) == {"a.jpg": "cat", "c.jpg": "cat"}


def test_a_full_disk_keeps_the_file_whole_and_is_told(tmp_path, monkeypatch):
    kept = Labels(tmp_path / "labels.jsonl")
    kept.add(CAT)
    before = kept.path.read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match="No space left on the disk .*all before it are. Make room and answer again"
        ):
            kept.add(replace(CAT, path="b.jpg"))
    assert kept.path.read_bytes() == before and answers(kept) == {"a.jpg": "cat"}
    kept.add(replace(CAT, path="b.jpg"))
    assert answers(Labels(kept.path)).keys() == {"a.jpg", "b.jpg"}


def test_a_small_disk_that_fills_up_keeps_every_answer_but_the_last(tiny_disk):
    kept = Labels(tiny_disk / "labels.jsonl")
    with pytest.raises(UserError, match="No space left"):
        for i in range(10_000):
            kept.add(replace(CAT, path=f"{i}.jpg"))
    assert len(read_lines(kept.path)) == len(kept.current) == i
    assert kept.path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"path": "a.jpg"}', "line 1 is not a label .*path and answer"),
        ('{"path": "a.jpg", "answer": "cat", "role": "tset"}', "role is 'tset'"),
        ('{"path": "a.jpg", "answer": 3}', "answer is 3"),
        ('{"path": "a.jpg", "answer": "cat", "seconds": "1"}', "seconds is '1'"),
        ("[]", "line 1 is not a label"),
        ('{"path": }', "line 1 is not a label"),
    ],
)
def test_a_damaged_line_is_told_with_its_number(tmp_path, line, said):
    (tmp_path / "labels.jsonl").write_text(line + '\n{"path": "b.jpg", "answer": "cat"}\n')
    with pytest.raises(UserError, match=said):
        Labels(tmp_path / "labels.jsonl")


def test_names_that_are_not_utf8_come_back_as_they_were(tmp_path):
    name = os.fsdecode(b'\xff"<b>\n\xe2\x80\xae.jpg')
    kept = Labels(tmp_path / "labels.jsonl")
    kept.add(replace(CAT, path=name))
    assert Labels(kept.path).current.keys() == {name}


def test_a_second_process_is_refused(tmp_path):
    with locked(tmp_path):
        code = "import pathlib, sys, al_bench.labelling.labels as l\nwith l.locked(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert other.returncode and "Another al-bench label is at work in" in other.stderr
    with locked(tmp_path):
        pass


def test_the_labels_need_no_torch():
    code = "import sys, al_bench.labelling.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
