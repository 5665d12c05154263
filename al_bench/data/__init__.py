"""What the rest of al_bench knows about a data set. N images in all, V test images, C classes, H x W pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images and the test split. It holds no training label: only the Oracle has those."""

    name: str
    images: Tensor  # uint8 [N, channels, H, W], or features float32 [N, D]
    train_idx: Tensor  # int64: the images that may be labelled
    test_idx: Tensor  # int64 [V]
    test_labels_V: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | Tensor  # per channel, of images in [0, 1]; or per feature
    std: tuple[float, ...] | Tensor
    checksum: str  # of images and labels
    skipped: tuple[str, ...] = ()  # files left out by dataset.on_bad_image=skip
    warnings: tuple[str, ...] = ()  # what is odd about the data; none of it stops a run
    listing: Path | None = None  # the table of which image an index is, for people only
    shown: Tensor | None = None  # uint8 [N, channels, H, W]: what features were computed from, for people only

    def facts(self) -> dict[str, Any]:
        """What run.json says about the data. images: the path of the listing."""
        return {
            "name": self.name,
            "checksum": self.checksum,
            "classes": list(self.class_names),
            "n_train": len(self.train_idx),
            "n_test": len(self.test_idx),
            "skipped": list(self.skipped),
            "warnings": list(self.warnings),
            "images": self.listing and str(self.listing),
        }

    @property
    def pictures(self) -> Tensor | None:
        """What contact sheets show, uint8 [N, channels, H, W]. None: features, and nothing to show them by."""
        return self.images if self.images.ndim == 4 else self.shown

    @property
    def n_classes(self) -> int:
        return len(self.class_names)
