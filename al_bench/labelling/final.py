"""The model of all labels that a folder has so far, and what is measured of it.

N images of the data set, L trained on, V random test images with a class, C classes, D embedding width.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from al_bench.config import Config, Mode
from al_bench.data import Dataset, sources
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.files import is_there
from al_bench.labelling.finished_model import calibrated
from al_bench.labelling.images import LABELS, Listing, home_of, list_images
from al_bench.labelling.labels import TEST, TRAIN, VALIDATION, Label, fold, read_lines
from al_bench.labelling.settings import Composed, Settings, composed, of_run, read_settings
from al_bench.models import features, hardware, nets
from al_bench.models.classifier import Classifier
from al_bench.models.learner import Learner
from al_bench.models.logistic import FOLDS, LogisticLearner, learner_of
from al_bench.strategies.uncertainty import average_prediction, fitted_temperature
from al_bench.text import one_line

MISTAKES = 10  # among held-out predictions, with fewer of which a temperature below 1 is not trusted


@dataclass(frozen=True)
class Labelled:
    """A folder and the answers on its images."""

    listing: Listing
    settings: Settings
    made: Composed
    answers: dict[str, Label]  # by path, in the order in which they were given

    @property
    def home(self) -> Path:
        return home_of(self.listing.folder)

    @property
    def config(self) -> Config:
        return of_run(self.made.config, self.settings)

    def of(self, role: str) -> dict[str, str]:
        """The class of each image of this role, by path; without images that were skipped or are unsure."""
        return {path: label.answer for path, label in self.answers.items() if label.role == role and label.of_class}


def labelled(folder: str | Path) -> Labelled:
    """Raises UserError if no model can be made of the answers: none, one class alone, or no class twice."""
    home, shown = home_of(folder), one_line(str(folder))
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"There is no folder {shown}. Name the folder of images that was labelled.")
    settings = read_settings(folder)
    if settings is None or not is_there(home / LABELS):
        raise UserError(f"Nothing of {shown} is labelled yet. Begin: al-bench label {shown} --classes cat,dog")
    listing = list_images(folder)
    found = Labelled(listing, settings, composed(listing, settings.overrides), fold(read_lines(home / LABELS)))
    counts = Counter(found.of(TRAIN).values())
    if strange := sorted(counts.keys() - {*settings.classes}):
        raise UserError(
            f"Images are labelled {one_line(strange[0])}, which is none of the classes of {home / 'settings.json'}. "
            "Add it there, or correct the labels."
        )
    if len(counts) < 2 or max(counts.values()) < 2:
        raise UserError(f"{_how_few(counts, len(found.of(TEST)))} Go on: al-bench label {shown}")
    return found


def _how_few(counts: Counter[str], n_test: int) -> str:
    tested = f" {n_test:,} test images are labelled, and they are never trained on." if n_test else ""
    if not counts:
        return f"No training image has a class yet.{tested}"
    if len(counts) < 2:
        return f"All {counts.total():,} training images are labelled {one_line(*counts)}: a model needs two classes."
    return f"No class has two training images, which are too few for a model.{tested}"


@dataclass(frozen=True, eq=False)
class Final:
    """The model, and the predictions of all images by it."""

    labelled: Labelled
    dataset: Dataset  # the images themselves
    learner: Learner  # on the images, or on their features
    net: Classifier
    pool: Pool
    rows: dict[str, int]  # by path; an image that cannot be decoded has none
    temperature: float
    calibration: str  # how the temperature was found, as a sentence
    probs_NC: Tensor  # calibrated

    @property
    def classes(self) -> tuple[str, ...]:
        return self.learner.dataset.class_names

    def test(self) -> tuple[Tensor, Tensor]:
        """(probs_VC, labels_V) of the random test images with a class."""
        idx_V, labels_V = rows_of(self.labelled.of(TEST), self.rows, self.classes)
        return self.probs_NC[idx_V], labels_V


def train(found: Labelled) -> Final:
    """Train on all training labels, as a round does. Raises UserError."""
    c = found.config
    source = sources.find(c.dataset, nets.preferred_size(c.model), c.cache_dir)
    dataset, _ = sources.load(c.dataset, source, c.seed, c.stressor, c.cache_dir)
    seen = features.freeze(c, dataset) if c.model.mode is Mode.frozen else dataset
    learner = learner_of(c, seen)
    hardware.begin_run(c.trainer, learner.images, learner.device)
    skipped = {*dataset.skipped}
    rows = {path: row for row, path in enumerate(path for path in source.files if path not in skipped)}
    pool = _pool(found, rows, seen)
    net = learner.build(round=0)
    learner.fit(net, pool, round=0)
    log_probs_NC = average_prediction(learner.predict(net, torch.arange(len(rows))).log_probs_PSC).float()
    temperature, calibration = _temperature(learner, net, pool)
    probs_NC = calibrated(log_probs_NC, temperature)
    return Final(found, dataset, learner, net, pool, rows, temperature, calibration, probs_NC)


def rows_of(answers: dict[str, str], rows: dict[str, int], classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(rows, classes) of the answers, int64, without images that cannot be decoded."""
    kept = [(rows[path], classes.index(name)) for path, name in answers.items() if path in rows]
    return tuple(torch.tensor(kept, dtype=torch.int64).reshape(-1, 2).T)


def _pool(found: Labelled, rows: dict[str, int], dataset: Dataset) -> Pool:
    labelled_L, labels_L = rows_of(found.of(TRAIN), rows, dataset.class_names)
    validation_V, validation_labels_V = rows_of(found.of(VALIDATION), rows, dataset.class_names)
    if len(labels_L.unique()) < 2:
        raise UserError("The training images of all classes but one cannot be decoded. Repair them, or label others.")
    left = dataset.train_idx[~torch.isin(dataset.train_idx, torch.cat([labelled_L, validation_V]))]
    return Pool(labelled_L, labels_L, left, validation_V, validation_labels_V)


def _temperature(learner: Learner, net: Classifier, pool: Pool) -> tuple[float, str]:
    """(temperature, how it was found)"""
    if isinstance(learner, LogisticLearner):
        how = f"the training labels, each predicted by a head that was fit to the other {FOLDS - 1} of {FOLDS} folds"
        return fitted(learner.held_out(net, pool, round=0), pool.labels_L, how)
    if len(pool.validation_V):
        log_probs_VC = learner.predict(net, pool.validation_V).log_probs_PSC[:, 0]
        return fitted(log_probs_VC, pool.validation_labels_V, "the validation images")
    return 1.0, "as there are no held-out predictions to fit it on: the probabilities are not calibrated"


def fitted(log_probs_LC: Tensor, labels_L: Tensor, on: str) -> tuple[float, str]:
    """(temperature, how it was found), not below 1 where too few mistakes tell how sure the model may be.

    Without a mistake the best temperature would be 0. Of 25 labels of cats and dogs it was 0.2, and the negative
    log-likelihood of other images 0.30 instead of 0.13.
    """
    mistakes = int((log_probs_LC.argmax(1) != labels_L).sum())
    temperature, how = fitted_temperature(log_probs_LC, labels_L), f"fitted on {len(labels_L):,} predictions of {on}"
    if mistakes >= MISTAKES or temperature >= 1:
        return temperature, how
    return 1.0, f"not below 1 with fewer than {MISTAKES} mistakes ({mistakes}); {how}"


def tensors_of(final: Final) -> dict[str, Tensor]:
    """What a finished model needs beside its card and the backbone's weights."""
    c, net = final.labelled.config, final.net.net
    if c.model.mode is not Mode.frozen:
        return net.state_dict()
    head = net.get_classifier()
    found = {"factor": net.normalise.factor, "shift": net.normalise.shift, "weight": head.weight, "bias": head.bias}
    if c.model._target_ == features.PCA_HEAD:
        pca = features.fitted_pca(final.dataset, c.features.width)
        components, mean = (torch.from_numpy(part).float() for part in (pca.components_, pca.mean_))
        found |= {"components": components, "centre": components @ mean}
    return found
