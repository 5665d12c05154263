import logging
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_learner import configured
from test_nets import data, saved

from al_bench.data import cache
from al_bench.data.cache import DAY, cached_array
from al_bench.errors import UserError
from al_bench.models import features

ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 1]]

CHILD = """
import sys, time
from al_bench.data.cache import cached_array

def fill(out):
    out[:2] = 9
    print("filling", flush=True)
    time.sleep(float(sys.argv[2]))
    out[:] = 9
    return len(out), {}

cached_array(sys.argv[1], {"name": "rows"}, (4, 3), "uint8", fill)
"""


def fill(out):
    out[:] = ROWS
    return len(out), {"note": "a"}


def not_again(out):
    raise AssertionError("it is in the cache already")


def cached(folder, fill, shape=(4, 3)):
    return cached_array(str(folder), {"name": "rows"}, shape, "uint8", fill)


def left_in(folder):
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def filling_child(folder, seconds):
    child = subprocess.Popen([sys.executable, "-c", CHILD, folder, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "filling\n"
    return child


@pytest.fixture
def logged(caplog):
    log = logging.getLogger("al_bench")  # does not propagate once the command has run in this process
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


def test_the_second_call_reads_what_the_first_made(tmp_path, logged):
    (first, notes), (second, same_notes) = cached(tmp_path, fill), cached(tmp_path, not_again)
    assert first.tolist() == second.tolist() == ROWS and notes == same_notes and notes["note"] == "a"
    assert not logged.text


def test_the_array_can_be_written_in_memory_and_the_file_stays(tmp_path):
    array, _ = cached(tmp_path, fill)
    array[0, 0] = 99
    assert array[0, 0] == 99 and cached(tmp_path, not_again)[0].tolist() == ROWS


def test_rows_that_were_claimed_and_not_used_are_given_back(tmp_path):
    assert cached(tmp_path, lambda out: (2, fill(out)[1]))[0].tolist() == ROWS[:2]
    assert cached(tmp_path, not_again)[0].tolist() == ROWS[:2]
    assert next(tmp_path.glob("*.bin")).stat().st_size == 6


@pytest.mark.parametrize(
    "suffix, damage",
    [
        ("bin", None),
        ("bin", lambda b: b[:-1]),
        ("bin", lambda b: b[:5] + b"\x80" + b[6:]),
        ("json", None),
        ("json", lambda b: b[:-9]),
        ("json", lambda b: b"[]"),
        ("json", lambda b: b.replace(b'"a"', b'"b"')),
        ("json", lambda b: b.replace(b"[4, 3]", b"[3, 4]")),
    ],
)
def test_what_is_damaged_or_missing_is_made_again_and_said_so(suffix, damage, tmp_path, logged):
    cached(tmp_path, fill)
    path = next(tmp_path.glob(f"*.{suffix}"))
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    array, notes = cached(tmp_path, fill)
    assert array.tolist() == ROWS and notes["note"] == "a"
    assert "WARNING" in logged.text and "made again" in logged.text
    assert cached(tmp_path, not_again)[0].tolist() == ROWS


def test_what_was_read_and_sound_is_read_again_only_once_the_file_has_changed(tmp_path, logged, monkeypatch):
    cached(tmp_path, fill)
    monkeypatch.setattr(cache, "checksum", lambda _: pytest.fail("it reads the whole file again"))
    assert cached(tmp_path, not_again)[0].tolist() == ROWS
    monkeypatch.undo()
    (path,) = tmp_path.glob("*.bin")
    before = path.stat()
    path.write_bytes(bytes(12))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached(tmp_path, fill)[0].tolist() == ROWS and "made again" in logged.text


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        cached(tmp_path, not_again)
    assert left_in(tmp_path) == []


def test_what_a_killed_process_wrote_does_not_count_and_goes_after_a_day(tmp_path):
    with filling_child(tmp_path, 60) as child:
        child.kill()
    assert left_in(tmp_path) == [".part"]
    assert cached(tmp_path, fill)[0].tolist() == ROWS
    assert left_in(tmp_path) == [".bin", ".json", ".part"]  # a process on another machine might still write it
    part, yesterday = next(tmp_path.glob("*.part")), -2 * DAY
    os.utime(part, (part.stat().st_atime, part.stat().st_mtime + yesterday))
    next(tmp_path.glob("*.json")).unlink()
    assert cached(tmp_path, fill)[0].tolist() == ROWS and left_in(tmp_path) == [".bin", ".json"]


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path):
    with filling_child(tmp_path, 0.5) as child:
        assert cached(tmp_path, not_again)[0].tolist() == [[9, 9, 9]] * 4
    assert child.returncode == 0


def test_a_full_disk_is_said_so(tiny_disk):
    with pytest.raises(UserError, match=f"No space left in the cache folder {tiny_disk}.*cache_dir="):
        cached(tiny_disk, not_again, (1 << 17, 3))
    assert left_in(tiny_disk) == []


@pytest.mark.parametrize("folder", ["file", "file/below", "closed", "closed/below"])
def test_a_folder_that_cannot_be_written_is_said_so(folder, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(0o500)
    user = os.geteuid()
    if "closed" in folder:
        os.seteuid(user or 65534)  # the superuser may write in every folder
    try:
        with pytest.raises(UserError, match=f"cache folder .*{folder} cannot be written.*cache_dir="):
            cached(tmp_path / folder, fill)
    finally:
        os.seteuid(user)


def test_a_filled_cache_is_read_where_nothing_can_be_written(tiny_disk, logged):
    cached(tiny_disk, fill)
    for lock in tiny_disk.glob("*.lock"):
        lock.unlink()
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    assert cached(tiny_disk, not_again)[0].tolist() == ROWS and not logged.text
    with pytest.raises(UserError, match=f"cache folder {tiny_disk} cannot be written"):
        cached_array(str(tiny_disk), {"name": "others"}, (4, 3), "uint8", fill)


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_second_user_reads_what_the_first_made(mode, logged):
    with tempfile.TemporaryDirectory() as folder:  # not below tmp_path, which is closed to others
        cached(folder, fill)
        Path(folder).chmod(mode)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            assert cached(folder, not_again)[0].tolist() == ROWS and not logged.text
        finally:
            os.seteuid(user)


def test_what_another_process_is_writing_is_no_damage(tmp_path, logged):
    cached(tmp_path, fill)
    path = next(tmp_path.glob("*.json"))
    path.rename(tmp_path / "aside")  # as between the two files that are written
    with ThreadPoolExecutor(1) as other:
        with filelock.FileLock(next(tmp_path.glob("*.lock"))):
            reading = other.submit(cached, tmp_path, not_again)
            time.sleep(0.1)
            (tmp_path / "aside").rename(path)
        assert reading.result()[0].tolist() == ROWS and not logged.text


def test_as_many_threads_as_the_process_may_use_cores(monkeypatch):
    cores, threads = os.sched_getaffinity(0), []
    pool = cache.ThreadPoolExecutor
    monkeypatch.setattr(cache, "ThreadPoolExecutor", lambda n: threads.append(n) or pool(n))
    try:
        os.sched_setaffinity(0, {min(cores)})
        cache.checksum(np.zeros(9))
        assert cache.n_cores() == 1 and threads == [1]
    finally:
        os.sched_setaffinity(0, cores)
    assert cache.n_cores() == len(cores)


def test_features_of_another_backbone_or_of_other_weights_are_another_file(tmp_path, one_thread):
    weights = tmp_path / "weights.safetensors"
    state = saved(weights, "mobilenetv3_small_075")
    c = configured(
        "model=timm", "model.name=mobilenetv3_small_075", f"model.weights={weights}", "model.mode=frozen",
        f"cache_dir={tmp_path}",
    )  # fmt: skip
    dataset = data(n=4)

    def frozen(**changed):
        images = features.freeze(replace(c, model=replace(c.model, **changed)), dataset).images
        return images, len(list(tmp_path.glob("*.bin")))

    first, n = frozen()
    other_name, n_names = frozen(name="tf_mobilenetv3_small_075")  # the same weights, padded in another way
    other_options, n_options = frozen(options={"act_layer": "relu"})
    again, n_again = frozen()
    save_file({key: 2 * value for key, value in state.items()}, weights)
    rewritten, n_weights = frozen()
    assert (n, n_names, n_options, n_again, n_weights) == (1, 2, 3, 3, 4)
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in (other_name, other_options, rewritten))


def mapped_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_array_is_not_held_in_memory_once_it_is_written_and_checked(tmp_path):
    def fill(out):
        out[:] = 7
        return len(out), {}

    def read_again():
        cache._known_sound.clear()
        return cached_array(str(tmp_path), {}, (1,), "uint8", fill)[0]

    size, before = 200 << 20, mapped_memory()
    array, _ = cached_array(str(tmp_path), {}, (200, 1 << 20), "uint8", fill)
    assert mapped_memory() - before < size / 4
    assert read_again().sum() == array.sum() == 7 * size
    assert mapped_memory() - before > size / 2
    cache.release_pages()
    assert mapped_memory() - before < size / 4 and array[-1, -1] == 7
    read_again()
    assert mapped_memory() - before < size / 4
