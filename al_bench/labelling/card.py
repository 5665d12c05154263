"""What is known of a finished model: its card, for the file and for people. V random test images, C classes."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

import al_bench
from al_bench.config import Mode
from al_bench.labelling.advice import wilson
from al_bench.labelling.final import Final
from al_bench.labelling.finished_model import FORMAT, SETTINGS
from al_bench.labelling.labels import SKIP, TEST, TRAIN, UNSURE, VALIDATION
from al_bench.labelling.settings import hub_file
from al_bench.metrics import classification_metrics
from al_bench.models.features import PCA_HEAD
from al_bench.provenance import file_version, machine, now
from al_bench.text import one_line

LEAST = 30  # test images, with fewer of which nothing is said
CONFIDENCES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Share:
    """hits of n images, with Wilson's 95% interval. Of fewer than LEAST images nothing is said."""

    hits: int
    n: int

    @property
    def is_known(self) -> bool:
        return self.n >= LEAST

    def facts(self) -> dict[str, Any]:
        low, high = wilson(self.hits / self.n, self.n) if self.is_known else (None, None)
        share = self.hits / self.n if self.is_known else None
        return {"hits": self.hits, "n": self.n, "share": share, "low": low, "high": high}

    def __str__(self) -> str:
        if not self.is_known:
            return f"unknown ({self.hits:,} of {self.n:,} are too few to say; {LEAST} are the least)"
        facts = self.facts()
        return f"{facts['share']:.1%} [{facts['low']:.1%}, {facts['high']:.1%}], {self.hits:,} of {self.n:,}"


def accuracy(final: Final) -> Share:
    probs_VC, labels_V = final.test()
    return Share(int((probs_VC.argmax(1) == labels_V).sum()), len(labels_V))


def error_above(final: Final, confidence: float) -> Share:
    """The errors among the test images that the model is at least so sure of."""
    probs_VC, labels_V = final.test()
    sure_V = probs_VC.amax(1) >= confidence
    return Share(int((probs_VC.argmax(1) != labels_V)[sure_V].sum()), int(sure_V.sum()))


def recall_of(final: Final, row: int) -> Share:
    probs_VC, labels_V = final.test()
    of_class_V = labels_V == row
    return Share(int((probs_VC.argmax(1) == row)[of_class_V].sum()), int(of_class_V.sum()))


def facts(final: Final) -> dict[str, Any]:
    """The card as JSON."""
    found, c = final.labelled, final.labelled.config
    parts = {name: OmegaConf.structured(getattr(c, name)) for name in SETTINGS}
    settings = {name: OmegaConf.to_container(part, enum_to_str=True) for name, part in parts.items()}
    settings["dataset"] |= {"root": None, "classes": None, "known": None}  # predict needs none of them
    if c.model.weights:
        settings["model"]["weights"] = os.path.abspath(os.path.expanduser(c.model.weights))
    answers = Counter(label.answer for label in found.answers.values())
    return {
        "format": FORMAT,
        "al_bench": al_bench.__version__,
        "time": now(),
        "classes": [*final.classes],
        "image_size": final.dataset.images.shape[-1],
        "temperature": final.temperature,
        "calibration": final.calibration,
        "seed": c.seed,
        "settings": settings,
        "backbone": {"name": c.model.name, "weights": _weights(final)},
        "data": {
            "folder": found.listing.folder.name, "images": len(found.listing.images),
            "checksum": final.dataset.checksum, "not_decoded": len(final.dataset.skipped),
            SKIP: answers[SKIP], UNSURE: answers[UNSURE],
            **{role: dict(Counter(found.of(role).values())) for role in (TRAIN, VALIDATION, TEST)},
        },
        "accuracy": accuracy(final).facts(),
        "test": _metrics(*final.test()),
        "machine": machine(),
    }  # fmt: skip


def _weights(final: Final) -> str | None:
    """The checksum of the file that has the frozen backbone's weights. None for a net that needs none."""
    m = final.labelled.config.model
    if m.mode is not Mode.frozen or m._target_ == PCA_HEAD:
        return None
    file = m.weights or (hub_file(m.name) if m.pretrained else None)
    return file_version(file) if file else None


def _metrics(probs_VC: Tensor, labels_V: Tensor) -> dict[str, Any] | None:
    return classification_metrics(probs_VC.log(), labels_V) if len(labels_V) >= LEAST else None


def how_trained(final: Final) -> str:
    m = final.labelled.config.model
    n = f"{len(final.pool.labelled_L):,} labels"
    if m._target_ == PCA_HEAD:
        return f"A logistic head on {final.learner.dataset.images.shape[1]} principal components of the pixels, {n}."
    if m.mode is Mode.frozen:
        head = "A logistic head, trained to its optimum" if m.head else "A linear head"
        return f"{head}, on the frozen features of {one_line(m.name)} (weights {_weights(final)}), {n}."
    return f"{one_line(m.name)}, trained as a whole, {n}."


def markdown(final: Final, card: dict[str, Any], confidence: float, command: str | None) -> str:
    """The card for people. command: what benchmarks strategies on these labels; None: too few."""
    data, machine_ = card["data"], card["machine"]
    rows = [
        f"| {_cell(name)} | {data[TRAIN].get(name, 0):,} | {data[TEST].get(name, 0):,} | {recall_of(final, row)} |"
        for row, name in enumerate(final.classes)
    ]
    above = [f"| {t:.0%} | {_n_above(final, t):,} | {error_above(final, t)} |" for t in _confidences(confidence)]
    ece = f"{card['test']['ece']:.3f}" if card["test"] else "unknown: too few test images"
    versions = ", ".join(f"{name} {version}" for name, version in machine_["versions"].items())
    compare = [f"```\n{command}\n```"] if command else ["Too few labels to compare strategies on them."]
    return "\n".join([
        f"# A model of {_cell(data['folder'])}", "",
        f"{how_trained(final)} Made {card['time']} by al_bench {card['al_bench']}.", "",
        f"- **Accuracy on random test images: {accuracy(final)}** (95% interval of Wilson). They were drawn before any "
        "label, and are neither trained on nor chosen.",
        f"- Images: {data['images']:,} in the folder, {data[SKIP]:,} skipped, {data[UNSURE]:,} unsure, "
        f"{data['not_decoded']:,} cannot be decoded. Skipped and unsure test images are not in the accuracy.",
        f"- Checksum of the images: `{card['data']['checksum']}`",
        f"- Temperature {final.temperature:.2f}, {final.calibration}. Expected calibration error on the test images: "
        f"{ece}.", "",
        "| class | trained on | tested on | recognised |", "| --- | --- | --- | --- |", *rows, "",
        "## Accepting predictions", "",
        f"`accept.csv` has the images of which the model is at least {confidence:.0%} sure, `review.csv` all others, "
        "the least sure first. The error is that of the random test images which are as sure. A threshold that is "
        "chosen by this table makes its error look a little smaller than it is.", "",
        "| at least so sure | unlabelled images | error among such test images |", "| --- | --- | --- |", *above, "",
        "## Comparing strategies on these labels", "", *compare, "",
        f"Python {machine_['python']}, {versions}.", "",
    ])  # fmt: skip


def _confidences(confidence: float) -> list[float]:
    return sorted({*CONFIDENCES, confidence})


def _n_above(final: Final, confidence: float) -> int:
    return int((unlabelled_probs(final).amax(1) >= confidence).sum())


def unlabelled_probs(final: Final) -> Tensor:
    answered = final.labelled.answers.keys()
    rows = [row for path, row in final.rows.items() if path not in answered]
    return final.probs_NC[torch.tensor(rows, dtype=torch.int64)]


def _cell(name: str) -> str:
    return one_line(name).replace("|", "\\|")
