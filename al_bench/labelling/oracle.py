"""The oracle whose answers a person gives: it reads labels.jsonl, and waits for what is missing there.

N images of the data set, K asked for together.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from al_bench import rng
from al_bench.config import Config
from al_bench.data import Dataset
from al_bench.data.oracle import OPEN_SET, Oracle
from al_bench.errors import UserError
from al_bench.labelling.images import LABELS, home_of
from al_bench.labelling.labels import TEST, TRAIN, VALIDATION, Label, fold, read_lines
from al_bench.text import one_line


class PersonOracle(Oracle):
    def __init__(
        self, c: Config, dataset: Dataset, files: Sequence[str], wait_for: Callable[[dict[str, str]], None]
    ) -> None:
        """files: the paths of all images, of which the data set may lack some that cannot be decoded.

        wait_for: called with the missing labels, their roles by path. Returns when they may be there, or raises
        LabelsWanted.
        """
        super().__init__(torch.full((len(dataset.images),), OPEN_SET), dataset.train_idx)
        skipped = set(dataset.skipped)
        self.paths = [path for path in files if path not in skipped]
        self.test_idx, self.class_names = dataset.test_idx, dataset.class_names
        self.file, self.seed, self.wait_for = home_of(c.dataset.root) / LABELS, c.seed, wait_for
        self.n_known = c.dataset.known or 0

    def ask(self, validation_V: Tensor, initial_K: Tensor) -> None:
        """Wait for the labels of the test, validation and initial images, in a random order."""
        idx = torch.cat([self.test_idx, validation_V, initial_K])
        roles = [TEST] * len(self.test_idx) + [VALIDATION] * len(validation_V) + [TRAIN] * len(initial_K)
        order = torch.randperm(len(idx), generator=rng.stream(self.seed, "queue")).tolist()
        self._fill({int(idx[i]): roles[i] for i in order})

    def reveal_all(self) -> Tensor:
        raise UserError("oracle=person: an oracle line needs all labels before the first is asked for.")

    def given(self, candidates: Tensor) -> Tensor:
        known = fold(read_lines(self.file)[: self.n_known])
        return candidates[torch.tensor([self.paths[i] in known for i in candidates.tolist()], dtype=torch.bool)]

    def tested(self, dataset: Dataset) -> Dataset:
        """The data set with the answers on its test images. Those that were skipped are left out."""
        labels_V = self._labels_N[self.test_idx]
        useful_V = labels_V != OPEN_SET
        if not useful_V.any():
            raise UserError(
                f"None of the {len(labels_V):,} test images has a class, so no accuracy can be measured. Take an "
                "answer back (Backspace) and give the image a class, or end without an accuracy: al-bench finish."
            )
        return replace(dataset, test_idx=self.test_idx[useful_V], test_labels_V=labels_V[useful_V])

    def label(self, idx_K: Tensor) -> Tensor:
        """Labels [K], once a person has given them all. OPEN_SET: skipped or unsure."""
        self._fill({i: TRAIN for i in idx_K.tolist()})
        return super().label(idx_K)

    def _fill(self, roles: dict[int, str]) -> None:
        """Write the answers on these images into _labels_N. roles: by image, in the order in which to ask."""
        answers = self._answers()
        while missing := {self.paths[i]: role for i, role in roles.items() if self.paths[i] not in answers}:
            self.wait_for(missing)
            answers = self._answers()
        for i in roles:
            self._labels_N[i] = self._class_of(answers[self.paths[i]])

    def _answers(self) -> dict[str, Label]:
        return fold(read_lines(self.file))

    def _class_of(self, label: Label) -> int:
        if not label.of_class:
            return OPEN_SET
        if label.answer not in self.class_names:
            raise UserError(
                f"{one_line(label.path)} is labelled {one_line(label.answer)}, which is none of the classes "
                f"({', '.join(map(one_line, self.class_names))}). A new class begins a new run: see al-bench label."
            )
        return self.class_names.index(label.answer)
