"""Two starts are the same run if images, weights and code have the same content, wherever they lie."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import QUICK, asked, command, lines_of, run_here
from PIL import Image
from safetensors.torch import save_file

from al_bench import loop, provenance
from al_bench.analysis import comparable, results
from al_bench.errors import UserError
from al_bench.finished import is_finished
from al_bench.models import nets
from al_bench.provenance import version_of
from al_bench.store import RunStore

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "budget.initial=10", "budget.query=5", "budget.rounds=2", "budget.validation=0", "trainer.max_steps=2",
    "trainer.batch_size=8", "dataset.image_size=16",
)  # fmt: skip


def images(folder: Path, seed: int = 0) -> Path:
    """Write two classes of 20 images of noise."""
    rng = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def weights(file: Path, seed: int, name: str = "test_resnet") -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = timm.create_model(name, num_classes=0).state_dict()
    save_file(state, file)
    return file


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    return images(tmp_path_factory.mktemp("pets") / "d" / "F")


def folder_run(pets: Path, *overrides: str) -> tuple[str, ...]:
    return ("dataset=image_folder", f"dataset.root={pets}", "dataset.test_fraction=0.25", *SMALL, *overrides)


def on_weights(pets: Path, file: Path, *overrides: str) -> tuple[str, ...]:
    return folder_run(pets, "model=timm", "model.name=test_resnet", f"model.weights={file}", *overrides)


def cut_to(store: RunStore, n: int) -> None:
    """Leave the run as a kill after n rounds leaves it."""
    lines = store.rounds_path.read_bytes().splitlines(keepends=True)
    store.rounds_path.write_bytes(b"".join(lines[:n]))
    store.note(state="running")


# --- Weights


@pytest.mark.parametrize("mode", ["finetune", "frozen"])
def test_a_run_goes_on_with_the_weights_it_began_with_and_no_others(tmp_path, pets, mode):
    file = weights(tmp_path / "w.safetensors", seed=0)
    ask = on_weights(pets, file, f"model.mode={mode}", "strategy=entropy")
    store = run_here(tmp_path, *ask)
    whole = lines_of(store.folder)
    assert store.info()["weights"]["model"].startswith("sha256:")
    cut_to(store, 1)

    weights(file, seed=1)
    with pytest.raises(UserError, match=r"began with other weights: model\.weights was sha256:.*w\.safetensors"):
        run_here(tmp_path, *ask)
    assert len(lines_of(store.folder)) == 1

    file.unlink()
    elsewhere = weights(tmp_path / "the same.safetensors", seed=0)
    run_here(tmp_path, *ask, f"model.weights='{elsewhere}'")
    assert lines_of(store.folder) == whole


def test_a_finished_run_is_finished_for_its_weights_alone(tmp_path, pets):
    file = weights(tmp_path / "w.safetensors", seed=0)
    ask = (f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache", *on_weights(pets, file))
    run_here(tmp_path, *ask)
    copy = shutil.copy(file, tmp_path / "copy.safetensors")
    gone = f"model.weights={tmp_path}/gone.safetensors"  # a finished run does not read its weights
    for same in ((), (f"model.weights={copy}",), (gone,)):
        assert RunStore(asked(*ask[:2], "trainer.progress=false", *ask[2:], *same)).finished()
    other = weights(tmp_path / "other.safetensors", seed=1)
    for change in (f"model.weights={other}", "model.weights=null"):
        with pytest.raises(UserError, match="began with other weights"):
            RunStore(asked(*ask[:2], "trainer.progress=false", *ask[2:], change)).finished()


def test_weights_that_are_replaced_between_two_rounds_stop_the_run(tmp_path, pets, monkeypatch):
    file = weights(tmp_path / "w.safetensors", seed=0)

    @contextmanager
    def replacing(*_):
        yield lambda records, picked: weights(file, seed=1)

    monkeypatch.setattr(loop.tracking, "opened", replacing)
    with pytest.raises(UserError, match="began with other weights"):
        run_here(tmp_path, *on_weights(pets, file))
    (records,) = tmp_path.rglob("rounds.jsonl")
    assert len(records.read_text().splitlines()) == 1


def test_the_weights_of_features_are_compared_where_features_are_used(tmp_path, pets):
    file = weights(tmp_path / "w.safetensors", seed=0)
    backbone = ("features=backbone", "features.name=test_resnet", f"features.weights={file}")
    used = run_here(tmp_path, *folder_run(pets, *backbone, "strategy=typiclust"))
    unused = run_here(tmp_path, *folder_run(pets, *backbone, "strategy=entropy"))
    assert used.info()["weights"]["features"].startswith("sha256:") and "features" not in unused.info()["weights"]
    cut_to(used, 1)
    cut_to(unused, 1)
    weights(file, seed=1)
    with pytest.raises(UserError, match=r"began with other weights: features\.weights was"):
        run_here(tmp_path, *folder_run(pets, *backbone, "strategy=typiclust"))
    run_here(tmp_path, *folder_run(pets, *backbone, "strategy=entropy"))


def test_the_hubs_weights_are_its_id_and_revision(tmp_path, pets, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    c = asked("model=timm", "model.name=test_resnet", "model.pretrained=true").model
    assert nets.weights_version(c) == "timm/test_resnet.r160_in1k"  # not downloaded yet
    for revision in ("a" * 40, "b" * 40):
        (repository / "snapshots" / revision).mkdir(parents=True)
        weights(repository / "snapshots" / revision / "model.safetensors", seed=0)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
        assert nets.weights_version(c) == f"timm/test_resnet.r160_in1k@{revision}"
    c.name = "hf-hub:timm/test_resnet.r160_in1k@" + "a" * 40
    assert nets.weights_version(c) == "timm/test_resnet.r160_in1k@" + "a" * 40
    c.pretrained = False
    assert nets.weights_version(c) is None


def test_a_report_compares_runs_of_the_same_weights_wherever_they_lay(tmp_path, pets):
    a, b = weights(tmp_path / "a.safetensors", seed=0), weights(tmp_path / "b.safetensors", seed=1)
    copy = shutil.copy(a, tmp_path / "copy.safetensors")
    run_here(tmp_path, *on_weights(pets, a, "strategy=random"))
    run_here(tmp_path, *on_weights(pets, copy, "strategy=margin"))
    run_here(tmp_path, *on_weights(pets, b, "strategy=entropy"))
    runs = results.find(tmp_path)
    kept, ((name, why),) = comparable.comparable_runs(runs)
    assert {run.strategy for run in kept} == {"random", "margin"}
    assert name.startswith("entropy") and why.startswith("other weights than most runs: sha256:")
    # Runs from before weights were noted are compared by path, as before.
    for run in runs:
        info = json.loads((run.folder / "run.json").read_text())
        del info["weights"]
        (run.folder / "run.json").write_text(json.dumps(info))
    _, left_out = comparable.comparable_runs(results.find(tmp_path))
    assert [why.split("=")[0] for _, why in left_out] == ["another configuration: model.weights"] * 2


def test_a_reference_began_from_the_same_weights(tmp_path, pets):
    file = weights(tmp_path / "w.safetensors", seed=0)
    valid = ("budget.validation=4",)
    run_here(tmp_path, *on_weights(pets, file, "budget=full", *valid, "budget.initial=null"))
    stops = ("budget.stop.at=validation", *valid, "strategy=entropy")
    run_here(tmp_path, *on_weights(pets, Path(shutil.copy(file, tmp_path / "copy.safetensors")), *stops))
    weights(file, seed=1)
    with pytest.raises(UserError, match="reference began from other weights"):
        run_here(tmp_path, *on_weights(pets, file, *stops, "strategy.name=another"))


def test_weights_to_start_from_that_are_cut_short_are_named(tmp_path, pets):
    store = run_here(tmp_path, *folder_run(pets, "trainer.start=previous"))
    cut_to(store, 2)
    kept = store.folder / "weights" / "round-0001.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match=r"round-0001\.safetensors.*cannot be read.*Delete"):
        run_here(tmp_path, *folder_run(pets, "trainer.start=previous"))


# --- Images


def test_images_that_moved_are_the_same_images(tmp_path, pets, monkeypatch):
    monkeypatch.chdir(pets.parents[1])
    store = run_here(tmp_path, *folder_run(Path("d/F"), "strategy=entropy"))
    whole = lines_of(store.folder)
    copy = shutil.copytree(pets, tmp_path / "elsewhere" / "pets")
    (tmp_path / "link").symlink_to(pets)
    for root in ("d/F", "d/F/", "./d/../d/F", pets, tmp_path / "link", copy):
        ask = folder_run(pets, "strategy=entropy", f"dataset.root={root}", "trainer.progress=false")
        assert is_finished(RunStore(asked(f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache", *ask))), root
    cut_to(store, 1)
    run_here(tmp_path, *folder_run(copy, "strategy=entropy"))
    assert lines_of(store.folder) == whole


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_other_images_are_refused_whether_the_run_is_finished_or_not(tmp_path, pets, n_rounds):
    store = run_here(tmp_path, *folder_run(pets))
    if n_rounds < 3:
        cut_to(store, n_rounds)
    before = store.rounds_path.read_bytes()
    other = images(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="began with other data: its images or labels changed since"):
        c = asked(
            f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache", "trainer.progress=false", *folder_run(other)
        )
        is_finished(RunStore(c))
        run_here(tmp_path, *folder_run(other))
    assert store.rounds_path.read_bytes() == before


def test_a_finished_run_on_images_that_lie_where_they_lay_reads_none_of_them(tmp_path, pets, monkeypatch):
    run_here(tmp_path, *folder_run(pets))
    monkeypatch.setattr("al_bench.data.sources.find", None)  # a call would fail
    ask = folder_run(Path(f"{pets}/"), "trainer.progress=false")
    assert is_finished(RunStore(asked(f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache", *ask)))


# --- Code and configuration


def test_a_net_of_ones_own_is_noted_with_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "from al_bench.models.nets import SmallCNN\ndef net(c, dataset):\n    return SmallCNN(dataset, {momentum})\n"
    (tmp_path / "mine_net.py").write_text(code.format(momentum=0.1))
    own = ("model._target_=mine_net.net", "model.name=mine", "strategy=entropy")
    store = run_here(tmp_path, *own)
    assert store.info()["model_code"]["modules"].keys() == {"mine_net"}
    run_here(tmp_path, *own)
    provenance._source.cache_clear()
    (tmp_path / "mine_net.py").write_text(code.format(momentum=0.5))
    with pytest.raises(UserError, match=r"began with other code of its net: mine_net changed since\. Bring"):
        run_here(tmp_path, *own)


def test_rounds_without_a_configuration_are_refused(tmp_path):
    store = run_here(tmp_path, "strategy=entropy")
    cut_to(store, 2)
    (store.folder / "config.yaml").unlink()
    before = store.rounds_path.read_bytes()
    for change in ("trainer.max_steps=3", "trainer.max_steps=20"):
        with pytest.raises(UserError, match=r"finished rounds and no config\.yaml.*Bring config\.yaml back"):
            run_here(tmp_path, "strategy=entropy", change)
    assert store.rounds_path.read_bytes() == before and not (store.folder / "config.yaml").exists()


def test_rounds_without_run_json_go_on_and_say_what_is_not_known(tmp_path):
    store = run_here(tmp_path, "strategy=entropy")
    cut_to(store, 2)
    (store.folder / "run.json").unlink()
    run_here(tmp_path, "strategy=entropy")
    assert "has lost its run.json, so images, weights and code cannot" in (store.folder / "run.log").read_text()


def test_studies_that_would_share_a_folder_are_told_apart(tmp_path):
    store = run_here(tmp_path, "study=a/b")
    for name in ("a:b", "a b"):
        with pytest.raises(UserError, match=f"study=a/b and study={name} have the same folder"):
            run_here(tmp_path, f"study='{name}'")
    shutil.move(store.folder.parents[4], tmp_path / "renamed")
    run_here(tmp_path, "study=renamed")
    assert len(list(tmp_path.rglob("rounds.jsonl"))) == 1


# --- Folders and disks


def test_a_disk_that_is_full_at_the_very_start_is_said(tiny_disk, tmp_path):
    (tiny_disk / "other").write_bytes(b"x" * (64 << 10))
    here = (f"results_dir={tiny_disk}", f"cache_dir={tmp_path}")
    done = command(tmp_path, *here, "trainer.max_steps=2", "budget.rounds=0")
    assert done.returncode == 1 and "No space left" in done.stderr and "Make room" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("kilobytes", [0, 1, 4])
def test_a_limit_of_the_size_of_files_is_said(tmp_path, kilobytes):
    """The first file that cannot be written is run.json (0), config.yaml (1), or a picture or features (4)."""
    quick = f"results_dir={tmp_path} trainer.max_steps=2 budget.rounds=60 budget.query=1 budget.validation=0"
    shell = f"ulimit -f {kilobytes}; exec {sys.executable} -m al_bench cache_dir={tmp_path} {quick}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "ulimit -f" in done.stderr and "Traceback" not in done.stderr, done.stderr


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("name", ["rounds.jsonl", "run.json", "config.yaml"])
@pytest.mark.parametrize("spoil", [to_folder, link_to_itself])
def test_a_run_folder_that_cannot_be_read_is_an_error_that_says_what_to_do(tmp_path, name, spoil):
    store = run_here(tmp_path)
    spoil(store.folder / name)
    for act in (RunStore(store.config).finished, RunStore(store.config).at_work().__enter__):
        with pytest.raises(
            UserError, match="cannot be read.*Move away what lies there|is a folder, not a file. Move it away"
        ):
            act()


def test_a_name_that_is_too_long_for_a_folder_is_said(tmp_path):
    store = RunStore(asked(f"results_dir={tmp_path}", f"study={'s' * 300}"))
    for act in (store.finished, store.at_work().__enter__):
        with pytest.raises(UserError, match="File name too long.*Shorten study"):
            act()


def test_a_file_without_permission_is_not_to_be_deleted(open_folder):
    store = run_here(open_folder)
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from conftest import asked; from al_bench.errors import UserError; from al_bench.store import RunStore\n"
        "store = RunStore(asked(*sys.argv[2:]))\n"
        "os.setuid(65534)\n"
        "try: store.finished()\n"
        "except UserError as error: print(error)"
    )
    (store.folder / "run.json").chmod(0)
    arguments = [str(Path(__file__).parent), f"results_dir={open_folder}", f"cache_dir={open_folder}/cache"]
    done = subprocess.run([sys.executable, "-c", script, *arguments, *QUICK], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("needs the right to become another user")
    assert "run.json cannot be read (Permission denied). Give yourself the permission" in done.stdout, done.stderr
    assert "Delete" not in done.stdout


def test_files_that_choose_alike_are_one_version_and_all_others_are_not(monkeypatch):
    monkeypatch.setattr(provenance, "CHOOSE_ALIKE", {"a" * 16: "b" * 16})
    a, b, c = ({"checksum": x, "modules": {"m": x * 64, "n": "d" * 64}} for x in "abc")
    assert version_of(a) == version_of(b) != version_of(c)
    assert version_of(a) != version_of({"checksum": "a", "modules": {"m": "a" * 64, "n": "e" * 64}})
    assert version_of({"checksum": "x"}) == "x"
