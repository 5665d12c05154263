"""What FOLDER-labels/settings.json keeps of what the user typed."""

import json
import os

import pytest
from labelling import CLASSES, cached, digits_in

from al_bench.labelling import settings
from al_bench.labelling.session import Session
from al_bench.labelling.settings import absolute


@pytest.mark.parametrize("key", ["model.weights", "features.weights", "cache_dir", "results_dir"])
@pytest.mark.parametrize(
    "typed, kept",
    [
        ("w.bin", "{here}/w.bin"),
        ("'a b/c=d.bin'", "'{here}/a b/c=d.bin'"),
        ("../x/w.bin", "{above}/x/w.bin"),
        ("'~/w.bin'", "{home}/w.bin"),
        ("/w/w.bin", "/w/w.bin"),
        ("null", "null"),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
    ],
)
def test_paths_are_kept_from_the_root(tmp_path, monkeypatch, key, typed, kept):
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "above": tmp_path.parent, "home": os.path.expanduser("~")}
    for name, place in places.items():
        kept = kept.replace(f"{{{name}}}", str(place))
    assert absolute(f"{key}={typed}") == f"{key}={kept}"
    assert absolute(absolute(f"{key}={typed}")) == f"{key}={kept}"


def test_other_settings_stay_as_they_are_typed():
    for setting in ("model.name=w.bin", "strategy=margin", "model.weights='no end"):
        assert absolute(setting) == setting


def test_the_same_relative_path_goes_on_from_another_working_folder(tmp_path, monkeypatch):
    digits_in(tmp_path / "photos", 10)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "w.bin").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    typed = ["model=pca", "features.weights=w.bin", "cache_dir=cache"]
    with Session("photos", CLASSES, typed):
        pass
    kept = json.loads((tmp_path / "photos-labels/settings.json").read_text())["overrides"]
    assert kept == ["model=pca", f"features.weights={tmp_path}/w.bin", f"cache_dir={tmp_path}/cache"]
    with Session("photos", overrides=typed) as session:
        assert session.settings.run == 1
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Session("../photos") as session:
        assert session.base.features.weights == f"{tmp_path}/w.bin" and session.settings.run == 1
    assert not (tmp_path / "elsewhere/cache").exists()


def test_settings_that_an_earlier_version_kept_are_the_same_settings(tmp_path, monkeypatch):
    digits_in(tmp_path / "photos", 10)
    monkeypatch.chdir(tmp_path)
    with Session("photos", CLASSES, [cached(tmp_path)]):
        pass
    file = tmp_path / "photos-labels/settings.json"
    file.write_text(file.read_text().replace(f"{tmp_path}/cache", "cache"))
    with Session("photos", overrides=["cache_dir=cache"]) as session:
        assert session.settings.run == 1


def test_weights_that_came_to_the_machine_begin_a_run(tmp_path, monkeypatch):
    digits_in(tmp_path / "photos", 10)
    with Session(tmp_path / "photos", CLASSES, [cached(tmp_path)]) as session:
        (note,) = (note for note in session.notes if "PCA" in note)
        assert "Download them once (hf download timm/tf_efficientnet_lite0.in1k model.safetensors), or name" in note
        assert session.settings.model == "pca"
    monkeypatch.setattr(settings, "hub_file", lambda name: str(tmp_path / "w.safetensors"))
    said = "The model was pca, and is tf_efficientnet_lite0 now: a new run begins. All labels are kept."
    session = Session(tmp_path / "photos")
    assert session.notes[0] == said and (session.settings.run, session.settings.known) == (2, None)
    session = Session(tmp_path / "photos", overrides=["model=pca"])  # told once, as what was typed
    assert session.settings.run == 2 and not any("The model was" in note for note in session.notes)
