"""trainer.start: which weights a round's net trains from, and which are kept for the next round.

fresh: new ones in each round. previous: those of the round before. best: those of the round with the lowest validation
loss so far, which also answer the query; a fit that is worse is discarded.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from al_bench.config import Weights
from al_bench.errors import UserError
from al_bench.models.classifier import Classifier
from al_bench.records import RoundRecord

Validation = dict[str, float] | None


class WarmStart:
    """The weights between the rounds of a run, in `folder`. Does nothing with trainer.start=fresh."""

    def __init__(self, start: Weights, folder: Path) -> None:
        self.start, self.folder = start, folder

    def load(self, net: Classifier, records: Sequence[RoundRecord]) -> Classifier:
        """The net with the weights that this round trains from. Raises UserError where their file is unusable."""
        if self.start is not Weights.fresh and records:
            load_weights(net, self._path(records[-1].weights_from))
        return net

    def keep(
        self, net: Classifier, validation: Validation, records: Sequence[RoundRecord], round: int
    ) -> tuple[int, Validation]:
        """(the round whose weights the net has from here on, the validation metrics of these weights).

        With trainer.start=best this may be an earlier round, whose weights the net then gets back.
        """
        if self.start is Weights.best and records:
            best = records[-1].weights_from
            if validation["loss"] >= records[best].validation["loss"]:
                load_weights(net, self._path(best))
                return best, records[best].validation
        if self.start is not Weights.fresh:
            save_weights(net, self._path(round))
        return round, validation

    def forget_others(self, round: int) -> None:
        """Delete all weights but this round's. Only once the round's record is written are they of no more use."""
        for path in self.folder.glob("*.safetensors"):
            if path != self._path(round):
                path.unlink()

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:04d}.safetensors"


def save_weights(net: Classifier, path: Path) -> None:
    """Written whole or not at all. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(save({k: v.contiguous() for k, v in net.state_dict().items()}))  # a full disk is an OSError
    part.replace(path)


def load_weights(net: Classifier, path: Path) -> None:
    """Raises UserError where the file is missing, cut short, or another net's."""
    if not path.exists():
        raise UserError(
            f"{path}, which the next round starts from, is missing. Delete {path.parents[1]} to begin anew."
        )
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path}, which the next round starts from, cannot be read ({' '.join(str(error).split())[:200]}). "
            f"Delete {path.parents[1]} to begin anew."
        ) from None
