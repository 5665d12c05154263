"""The predictions of all images by the last trained net. N images, P of them in the pool, C classes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from al_bench.labelling.advice import Picks
from al_bench.strategies.uncertainty import average_prediction

DRAWS = 1000  # of random batches, which a batch is compared with


class Predicted:
    """What the last trained net says of all images."""

    def __init__(self, paths: list[str], classes: Sequence[str], probs_NC: Tensor, pool_P: Tensor) -> None:
        self.rows = {path: row for row, path in enumerate(paths)}
        self.classes, self.probs_NC, self.pool_P = tuple(classes), probs_NC, pool_P
        self.flipped: float | None = None  # share of the pool with another class than a round before
        self.picks: Picks | None = None  # the batch that this net chose

    def after(self, before: "Predicted | None") -> "Predicted":
        if before and before.rows.keys() == self.rows.keys() and len(self.pool_P):
            now_P, then_P = (p.probs_NC[self.pool_P].argmax(1) for p in (self, before))
            self.flipped = float((now_P != then_P).double().mean())
        return self

    def compare(self, picked: Iterable[str]) -> None:
        """Note how uncertain the images are that this net chose, beside random ones of the pool. The first call counts:
        later ones are of what is left of the batch.
        """
        rows_K = [self.rows[path] for path in picked if path in self.rows]
        if self.picks or not rows_K or not len(self.pool_P):
            return
        errors_N = 1 - self.probs_NC.double().max(1).values
        drawn = torch.randint(len(self.pool_P), (DRAWS, len(rows_K)), generator=torch.Generator().manual_seed(0))
        means = errors_N[self.pool_P[drawn]].mean(1)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        # As they are shown: the last digits of a mean decide nothing.
        self.picks = Picks(len(rows_K), *(round(x, 3) for x in (float(errors_N[rows_K].mean()), low, high)))

    def of(self, path: str) -> list[tuple[str, float]]:
        """(class, probability), the likeliest first; empty for an image that cannot be decoded."""
        if path not in self.rows:
            return []
        return sorted(zip(self.classes, self.probs_NC[self.rows[path]].tolist(), strict=True), key=lambda x: -x[1])


def predictions(learner: Any, net: Any, pool: Any, paths: Sequence[str]) -> Predicted:
    """Of all images by this net. paths: of all listed images, of which the data set may lack some."""
    skipped = set(learner.dataset.skipped)
    kept = [path for path in paths if path not in skipped]
    probs_NC = average_prediction(learner.predict(net, torch.arange(len(kept))).log_probs_PSC).float().exp()
    return Predicted(kept, learner.dataset.class_names, probs_NC, pool.unlabelled_P)
