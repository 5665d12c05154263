"""How a folder is labelled: the configuration of its run, made of defaults and of what the user typed.

FOLDER-labels/settings.json keeps the classes and the overrides, so `al-bench label FOLDER` alone goes on.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from al_bench import arguments, config, hints
from al_bench.config import Config
from al_bench.errors import UserError
from al_bench.files import accessible, is_there, read_file, write_atomically
from al_bench.labelling import ELSEWHERE
from al_bench.labelling.images import Listing, home_of, refuse_classes
from al_bench.options import conf_dir
from al_bench.text import one_line

TEST_IMAGES = 300  # a 95% interval of 3.4 points on either side of 90%
LARGEST_TEST_SHARE = 0.2
BATCH = 25  # images that are asked for between two trainings
FEWEST = 5  # images in a folder
MOST_CANDIDATES = 5_000  # pool images that a round chooses from: 20,000 take uncertainty_herding ten seconds
BACKBONE = "tf_efficientnet_lite0"
HUB_FILE = "model.safetensors"  # of weights, in a repository of timm's
DEFAULTS = {
    "dataset": "unlabelled", "strategy": "uncertainty_herding", "budget.start": "typiclust", "budget.rounds": "null",
    "trainer.progress": "false",
    "trainer.predict_batch_size": "16",  # more need gigabytes with a backbone, and are no faster on a CPU
}  # fmt: skip
FROZEN = {"model": "timm", "model.name": BACKBONE, "model.mode": "frozen", "model.head": "logistic"}
PATHS = ("model.weights", "features.weights", "cache_dir", "results_dir")  # settings that name a file or a folder
FIXED = ("seed=", "dataset.test_fraction=")  # settings that draw the test images
# Settings that come from elsewhere: what the user does instead.
SET_HERE = {
    "dataset": "al-bench label reads the images of its folder", "dataset.root": "name the folder without a key",
    "dataset.classes": "name the classes with --classes", "dataset.known": "a run begins with all labels so far",
    "study": "runs are numbered", "oracle": "a person labels",
}  # fmt: skip
PLACEHOLDERS = ("the first class", "the second class")  # until two classes are known; nothing is trained with them


@dataclass(frozen=True)
class Settings:
    """What settings.json holds."""

    classes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    run: int = 1  # a new class begins another run
    known: int | None = None  # dataset.known of this run; None: all labels that are there when it begins
    model: str | None = None  # model.name of this run, which depends on the weights that are on this machine


def read_settings(folder: str | Path) -> Settings | None:
    """The settings of a folder that was labelled before, or None. Raises UserError if the file is damaged."""
    path = home_of(folder) / "settings.json"
    if not is_there(path):
        return None
    try:
        found = json.loads(read_file(path))
        lists = {name: tuple(found[name]) for name in ("classes", "overrides")}
        return Settings(**found | lists)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete it and name the classes again: --classes.") from None


def settings_of(
    folder: str | Path, classes: Sequence[str], overrides: Sequence[str]
) -> tuple[Settings, tuple[str, ...]]:
    """(the settings of the folder, or new ones; sentences on what is new). Other overrides than before begin a new run.

    Raises UserError if they would draw other test images: some of these were trained on.
    """
    found = read_settings(folder)
    refuse_classes(classes)
    typed = tuple(map(absolute, overrides))
    if found is None:
        return Settings(tuple(classes), typed), ()
    before = tuple(map(absolute, found.overrides))
    if not (new := [setting for setting in typed if setting not in before]):
        return found, ()
    if fixed := next((setting for setting in new if setting.startswith(FIXED)), None):
        raise UserError(
            f"{fixed} would draw other test images, and {one_line(str(folder))} is labelled with "
            f"{' '.join(before) or 'the defaults'}: some of them were trained on. Leave it out."
        )
    keys = {setting.partition("=")[0] for setting in new}
    kept = [setting for setting in before if setting.partition("=")[0] not in keys]
    said = f"With {one_line(' '.join(new))} a new run begins. All labels are kept."
    return replace(next_run(found), overrides=(*kept, *new), model=None), (said,)


def for_model(settings: Settings, name: str) -> tuple[Settings, tuple[str, ...]]:
    """(settings, what is new in sentences): another model than before, such as one whose weights came, begins a run."""
    if settings.model in (None, name):
        return replace(settings, model=name), ()
    was = one_line(settings.model)
    said = f"The model was {was}, and is {one_line(name)} now: a new run begins. All labels are kept."
    return replace(next_run(settings), model=name), (said,)


def next_run(settings: Settings) -> Settings:
    """Another run, which begins with all labels that are there."""
    return replace(settings, run=settings.run + 1, known=None)


def absolute(override: str) -> str:
    """The override with its path from the root: it means the same file in another working folder."""
    key, _, typed = override.partition("=")
    if key not in PATHS or "${" in typed:
        return override
    try:
        path = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return override  # `composed` refuses it in words
    return f"{key}={plain(os.path.abspath(os.path.expanduser(path)))}" if isinstance(path, str) and path else override


def write_settings(folder: str | Path, settings: Settings) -> None:
    path = home_of(folder) / "settings.json"
    with accessible(path, "written", ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(settings), indent=1) + "\n")


@dataclass(frozen=True)
class Composed:
    config: Config
    notes: tuple[str, ...] = field(default=())  # what was chosen for the user, in sentences
    overrides: tuple[str, ...] = field(default=())  # what a user of the benchmark would type


def composed(listing: Listing, overrides: Sequence[str]) -> Composed:
    """The configuration of a folder's run, with placeholders for classes. Raises UserError for a wrong override."""
    given = dict(override.partition("=")[::2] for override in overrides)
    _refuse(listing, given)
    model, notes = _model(given)
    n = len(listing.images)
    n_test = max(1, min(TEST_IMAGES, round(LARGEST_TEST_SHARE * n)))
    batch = str(max(1, min(BATCH, (n - n_test) // 3)))  # a third is left for files that cannot be decoded
    ours = DEFAULTS | model | {
        "budget.initial": batch, "budget.query": batch,
        "dataset.root": quoted(str(listing.folder)), "dataset.name": quoted(listing.folder.name),
        "dataset.test_fraction": repr(n_test / n), "dataset.classes": json.dumps(PLACEHOLDERS),
        "results_dir": quoted(str(home_of(listing.folder))), "study": "run-1",
    }  # fmt: skip
    if n > MOST_CANDIDATES:
        ours["strategy.candidates"] = str(MOST_CANDIDATES)
        if "strategy.candidates" not in given:
            notes = (
                *notes,
                f"Each batch is chosen from {MOST_CANDIDATES:,} of the unlabelled images, drawn at random.",
            )
    typed = [*(f"{key}={value}" for key, value in ours.items() if key not in given), *overrides]
    try:
        arguments.check(list(overrides))
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return Composed(config.read(compose("config", typed)), notes, tuple(typed))
    except UserError:
        raise
    except Exception as error:  # Hydra's, of composing
        raise UserError(hints.in_words(error, list(overrides))) from None
    finally:
        GlobalHydra.instance().clear()


def _refuse(listing: Listing, given: dict[str, str]) -> None:
    """Raises UserError for too few images, and for settings that are not set here."""
    if (n := len(listing.images)) < FEWEST:
        raise UserError(
            f"{one_line(str(listing.folder))} has {n} image{'s' if n > 1 else ''}. {FEWEST} are the fewest: one to "
            "measure the accuracy, and two of each of two classes to train on. Add images."
        )
    if key := next((key for key in given if key in SET_HERE), None):
        raise UserError(f"{key}={given[key]}: {SET_HERE[key]}. Leave it out.")


def of_run(c: Config, settings: Settings) -> Config:
    """The configuration of the current run: its classes and the labels that it begins with."""
    classes = [*settings.classes, *PLACEHOLDERS[len(settings.classes) :]]
    return replace(
        c, study=f"run-{settings.run}", dataset=replace(c.dataset, classes=classes, known=settings.known or None)
    )


def _model(given: dict[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(overrides of the model, what to say of it)"""
    if "model" in given or "model._target_" in given:
        return {}, ()
    name = given.get("model.name", BACKBONE)
    if "model.weights" in given or hub_file(name):
        return FROZEN, (f"Images are compared by the features of {name}.",)
    hub = hub_name(name)
    download = f" Download them once (hf download {hub} {HUB_FILE}), or name" if hub else " Name"
    return {"model": "pca"}, (
        f"The weights of {one_line(name)} are not on this machine, so images are compared by their pixels (PCA), which "
        f"needs more labels.{download} a file of weights: model.weights=FILE.",
    )


def hub_name(name: str) -> str | None:
    """The repository of a timm model's weights, or None."""
    from timm.models import get_pretrained_cfg  # takes seconds to import, and few commands need it

    cfg = None if ":" in name else get_pretrained_cfg(name)
    return (cfg and cfg.hf_hub_id) or None


def hub_file(name: str) -> str | None:
    """The file of a timm model's weights that was downloaded before, or None."""
    hub = hub_name(name)
    found: Any = hub and try_to_load_from_cache(hub, HUB_FILE)
    return found if isinstance(found, str) else None


def plain(text: str) -> str:
    """A text as Hydra takes it literally, in quotes only where they are needed."""
    return text if re.fullmatch(r"[\w./-]*[A-Za-z_][\w./-]*", text, re.ASCII) else quoted(text)


def quoted(text: str) -> str:
    """A text as Hydra takes it literally."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
