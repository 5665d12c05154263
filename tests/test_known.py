"""What one process computes once for all its runs, and that a changed file is noticed between two of them."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import asked, run_here
from test_decode import grey, write, zipped

from al_bench.config import DatasetConfig
from al_bench.data import arrays, cache, files, listing, sources
from al_bench.data.files import stamp
from al_bench.models import backbone, features, nets

pytestmark = pytest.mark.usefixtures("one_thread")
PETS = {f"{kind}/{i}.jpg": grey(10 * i + n) for n, kind in enumerate(("cat", "dog")) for i in range(12)}
FROZEN = (
    "model=timm", "model.name=test_resnet", "model.pretrained=false", "model.mode=frozen", "model.head=logistic",
    "dataset=image_folder", "dataset.image_size=8", "dataset.test_fraction=0.25", "budget.initial=4", "budget.query=2",
    "budget.rounds=1", "budget.validation=0", "strategy=margin",
)  # fmt: skip


@pytest.fixture
def pets(tmp_path) -> Path:
    return write(tmp_path / "pets", PETS)


def find(root: Path, source: str = "image_folder") -> sources.Source:
    c = DatasetConfig(f"al_bench.data.sources.{source}", source, str(root), test_fraction=0.25, image_size=8)
    return sources.find(c, None, str(root.parent / "cache"))


def counted(monkeypatch, module, name: str) -> list:
    """A list that grows with each call of the function."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **more: calls.append(args) or function(*args, **more))
    return calls


def rewrite(path: Path, content: bytes) -> None:
    """Other content of the same size under the old modification time."""
    info = path.stat()
    assert len(content) == info.st_size and content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def swapped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    return bytes(content)


CHANGES = {
    "an image is added": lambda root: write(root, {"cat/new.jpg": grey(99)}),
    "an image is removed": lambda root: (root / "dog/3.jpg").unlink(),
    "an image is renamed": lambda root: (root / "dog/3.jpg").rename(root / "dog/x.jpg"),
    "an image moves to another class": lambda root: (root / "dog/3.jpg").rename(root / "cat/33.jpg"),
    "an image is rewritten": lambda root: rewrite(root / "cat/5.jpg", swapped(root / "cat/5.jpg")),
    "a class is added": lambda root: write(root, {"cow/0.jpg": grey(99)}),
    "an image in a linked folder is added": lambda root: write(root.parent / "elsewhere", {"b.jpg": grey(98)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_listed_again(pets, change):
    write(pets.parent / "elsewhere", {"a.jpg": grey(97)})
    (pets / "linked").symlink_to(pets.parent / "elsewhere")
    before = find(pets)
    assert find(pets) is before
    CHANGES[change](pets)
    after = find(pets)
    assert after is not before and find(pets) is after
    was, now = files.files_in(str(pets)), {name: (pets / name).stat().st_size for name in after.files}
    assert after.files == was.names and was.sizes == now
    assert [after.class_names[i] for i in after.labels_N] == [name.split("/")[0] for name in after.files]


def test_a_replaced_archive_is_read_again(tmp_path):
    path = zipped(tmp_path / "train.zip", {f"train/{k}.{i}.jpg": grey(i) for k in ("cat", "dog") for i in range(9)})
    before = find(path, "dogs_vs_cats")
    assert find(path, "dogs_vs_cats") is before and before.read().pixels[3].max() == 3
    other = zipped(tmp_path / "b.zip", {f"train/{k}.{i}.jpg": grey(i + 50) for k in ("cat", "dog") for i in range(9)})
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert find(path, "dogs_vs_cats").read().pixels[3].max() == 53


def test_another_configuration_of_the_same_folder_is_another_source(pets):
    c = DatasetConfig("al_bench.data.sources.image_folder", "pets", str(pets), test_fraction=0.25, image_size=8)
    assert sources.find(c, None, "cache").image_shape == (3, 8, 8)
    c.image_size = 4
    assert sources.find(c, None, "cache").image_shape == (3, 4, 4)


def test_what_a_users_function_makes_is_never_kept(tmp_path, monkeypatch):
    made = []

    def mine(c, model_size, cache_dir):
        made.append(1)
        images = np.full((8, 4, 4, 1), len(made), dtype=np.uint8)
        return arrays.in_memory(c, images, np.arange(8) % 2, ["a", "b"])

    monkeypatch.setattr(sources, "function", lambda key, path: mine)
    c = DatasetConfig("mine.mine", "mine", str(tmp_path), mean=[0.5], std=[0.5])
    assert [sources.find(c, None, "").read().pixels.max() for _ in range(2)] == [1, 2]


def test_the_stamp_of_what_cannot_be_looked_at_is_empty_and_files_in_says_why(tmp_path):
    assert stamp(str(tmp_path / "nothing")) == ()
    (tmp_path / "dead").symlink_to("nowhere")
    assert files.files_in(str(tmp_path)).faults == {"dead": "a link that leads nowhere"}


def test_the_second_run_of_a_process_lists_hashes_and_averages_nothing_again(tmp_path, pets, monkeypatch):
    ask = (*FROZEN, f"dataset.root={pets}")
    first = run_here(tmp_path, *ask)
    calls = {
        name: counted(monkeypatch, module, name)
        for module, name in (
            (files, "_folder"), (files, "_digest"), (sources, "_make_source"), (listing, "_as_path"),
            (nets, "timm_backbone"), (backbone, "input_of"),
        )
    }  # fmt: skip
    hashed = counted(monkeypatch, cache, "checksum")
    averaged = counted(monkeypatch, features, "_mean_and_std")
    second = run_here(tmp_path, *ask, "study=again")
    assert {name: len(found) for name, found in calls.items()} == dict.fromkeys(calls, 0)
    assert not hashed and not averaged
    assert second.records()[0].metrics == first.records()[0].metrics
    assert second.info()["dataset"] == first.info()["dataset"] | {"images": second.info()["dataset"]["images"]}
    write(pets, {"cat/new.jpg": grey(99)})
    third = run_here(tmp_path, *ask, "study=third")
    assert third.info()["dataset"]["checksum"] != first.info()["dataset"]["checksum"]
    assert len(calls["_folder"]) == 1


def test_features_that_were_damaged_between_two_runs_are_computed_again(tmp_path, pets):
    ask = (*FROZEN, f"dataset.root={pets}")
    first = run_here(tmp_path, *ask)
    width = 4 * features.freeze(asked(*ask, f"cache_dir={tmp_path}/cache"), loaded(pets, tmp_path)).images.shape[1]
    (path,) = (p for p in (tmp_path / "cache").glob("*.bin") if p.stat().st_size == len(PETS) * width)
    content = path.read_bytes()
    rewrite(path, bytes(len(content)))
    assert run_here(tmp_path, *ask, "study=again").records()[0].metrics == first.records()[0].metrics
    assert path.read_bytes() == content


def loaded(pets: Path, tmp_path: Path):
    c = asked(*FROZEN, f"dataset.root={pets}")
    return sources.load(c.dataset, sources.find(c.dataset, None, f"{tmp_path}/cache"), c.seed)[0]


def test_mean_and_std_are_those_of_each_split(tmp_path, pets):
    dataset, c = loaded(pets, tmp_path), asked(*FROZEN, f"dataset.root={pets}", f"cache_dir={tmp_path}/cache")
    frozen = features.freeze(c, dataset)
    half = features.freeze(c, replace(dataset, train_idx=dataset.train_idx[::2]))
    for found, idx in ((frozen, dataset.train_idx), (half, dataset.train_idx[::2])):
        torch.testing.assert_close(found.mean, found.images[idx].mean(0))
        torch.testing.assert_close(found.std, found.images[idx].std(0, correction=0).clamp_min(1e-6))
    assert features.freeze(c, dataset).mean is frozen.mean


def test_a_fact_that_is_there_is_not_written_again(tmp_path):
    store = run_here(tmp_path, "budget.rounds=0")
    before = (store.folder / "run.json").stat().st_ino
    store.note(stopped=store.info()["stopped"])
    assert (store.folder / "run.json").stat().st_ino == before
    store.note(more=None)
    assert "more" in store.info() and (store.folder / "run.json").stat().st_ino != before
