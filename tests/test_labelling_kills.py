"""Processes that label are killed at random moments: nothing is asked twice, and at most the last key is lost."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from conftest import lines_of
from labelling import benchmarked, digits_in, opened, truth

from al_bench.labelling.labels import read_lines

KILLS = int(os.environ.get("AL_BENCH_KILLS", "6"))


def robot(folder: Path, diary: Path) -> None:
    """Label until the run has ended. The diary says which image was asked for, and which answer was kept."""
    with opened(folder) as session, open(diary, "a", buffering=1) as said:
        while session.wait().state == "labelling":
            for item in session.next(2):
                said.write(f"asked {item.path}\n")
                session.answer(item.path, truth(item.path), seconds=0.1)
                said.write(f"kept {item.path}\n")
                time.sleep(0.08)
        assert session.error is None


def started(folder: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=robot, args=(folder, folder / "diary"))
    process.start()
    return process


def test_a_killed_process_loses_at_most_the_key_being_pressed_and_nothing_is_asked_twice(tmp_path):
    digits_in(tmp_path / "photos")
    moments = random.Random(0)
    (tmp_path / "diary").touch()
    for kill in range(KILLS):
        process, size = started(tmp_path), (tmp_path / "diary").stat().st_size
        # Every third is killed while it starts.
        while kill % 3 and process.is_alive() and (tmp_path / "diary").stat().st_size == size:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    killed = len(read_lines(tmp_path / "photos-labels/labels.jsonl"))
    process = started(tmp_path)
    process.join(120)
    assert process.exitcode == 0

    diary = [line.split(" ", 1) for line in (tmp_path / "diary").read_text().splitlines()]
    kept = [path for word, path in diary if word == "kept"]
    asked = [path for word, path in diary if word == "asked"]
    lines = read_lines(tmp_path / "photos-labels/labels.jsonl")
    assert 0 < killed < len(lines) == 120  # the kills came in the middle
    assert len(kept) == len(set(kept)) and {*kept} <= {line.path for line in lines}
    assert len(asked) - len(kept) <= KILLS and len(lines) - len(kept) <= KILLS
    again = [path for path in asked if asked.count(path) > 1]
    assert all(path in kept for path in again)  # asked again only where the kill came between question and answer
    with opened(tmp_path) as session:
        pass
    assert lines_of(session.store.folder) == benchmarked(session)
