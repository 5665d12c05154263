"""Batches for Lightning: labelled images to train on, validation images, and images to predict, without labels.

N images of the data set, L labelled, B images in a batch. A batch is one indexing of one array: no Python
runs per image.
"""

from collections.abc import Callable, Iterable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from al_bench import signals
from al_bench.config import Augment, TrainerConfig
from al_bench.data.pool import Pool


class PoolDataModule(pl.LightningDataModule):
    """The labelled and validation images of one fit."""

    def __init__(
        self, images: Tensor, pool: Pool, c: TrainerConfig, steps: int | None, stream: Callable[[str], torch.Generator]
    ) -> None:
        """images: Dataset.images, perhaps on the device. steps: batches an epoch, None for one pass over the labelled.

        stream(purpose) -> the random stream of the batches' order, and that of their augmentation.
        """
        super().__init__()
        self.images, self.pool, self.c = images, pool, c
        self.order = BatchOrder(len(pool.labelled_L), c.batch_size, steps, stream("batches"))
        self.augment_rng = stream("augment")

    def train_dataloader(self) -> DataLoader:
        return _loader(Batches(self.images, self.pool.labelled_L, self.pool.labels_L), self.order, self.c)

    def val_dataloader(self) -> DataLoader:
        return image_loader(self.images, self.pool.validation_V, self.c, self.pool.validation_labels_V)

    def on_after_batch_transfer(self, batch, dataloader_idx: int):
        if not self.trainer.training:
            return batch
        images, labels = batch
        return augment(images, self.c.augment, self.augment_rng), labels


class Batches(Dataset):
    """A data set of whole batches: item `rows` is (images, labels), or images alone where labels is None."""

    def __init__(self, images: Tensor, idx: Tensor, labels: Tensor | None) -> None:
        # index_select on [N, H, W, C] copies whole rows; on the [N, C, H, W] view it would go pixel by pixel.
        self.rows = images.permute(0, 2, 3, 1) if images.ndim == 4 else images
        self.idx, self.labels = idx, labels

    def __getitem__(self, rows: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = self.rows.index_select(0, self.idx[rows].to(self.rows.device))
        images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images
        return images if self.labels is None else (images, self.labels[rows])


class BatchOrder:
    """Which rows of the labelled set make each training batch, epoch after epoch.

    With `steps`: that many full batches an epoch, cut from an endless sequence of shuffled passes, so that a step costs
    the same at every label count. Without: one shuffled pass, split evenly. No image is dropped, and no batch has a
    single image, since batch norm needs two.
    """

    def __init__(self, n: int, batch_size: int, steps: int | None, stream: torch.Generator) -> None:
        self.n, self.batch_size, self.steps, self.stream = n, batch_size, steps, stream
        self.left = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.steps or max(1, min(-(-self.n // self.batch_size), self.n // 2))

    def __iter__(self) -> Iterator[Tensor]:
        if self.steps is None:
            yield from self._shuffled().tensor_split(len(self))
            return
        for _ in range(self.steps):
            passes, n = [self.left], len(self.left)
            while n < self.batch_size:
                passes.append(self._shuffled())
                n += len(passes[-1])
            rows = torch.cat(passes)  # once a batch: adding pass by pass would copy a large batch many times
            batch, self.left = rows[: self.batch_size], rows[self.batch_size :]
            yield batch

    def _shuffled(self) -> Tensor:
        rows = torch.randperm(self.n, generator=self.stream)
        return rows.repeat(2) if self.n == 1 else rows


def image_loader(images: Tensor, idx: Tensor, c: TrainerConfig, labels: Tensor | None = None) -> DataLoader:
    """Large batches in the order of idx, not augmented: of (images, labels), or of images where labels is None."""
    order = list(torch.arange(len(idx)).split(c.predict_batch_size))
    return _loader(Batches(images, idx, labels), order, c)


def augment(images_BCHW: Tensor, how: Augment, stream: torch.Generator) -> Tensor:
    """Each image mirrored and shifted at random, by up to an eighth of its side; edge pixels are repeated."""
    if how is Augment.none:
        return images_BCHW
    n, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    mirrored_B = (torch.rand(n, generator=stream) < 0.5).to(device)
    images_BCHW = torch.where(mirrored_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)
    if how is Augment.flip:
        return images_BCHW
    far = max(1, width // 8)
    shift_B2 = torch.randint(-far, far + 1, (n, 2), generator=stream).to(device)
    rows_BH = (torch.arange(height, device=device) + shift_B2[:, :1]).clamp(0, height - 1)
    cols_BW = (torch.arange(width, device=device) + shift_B2[:, 1:]).clamp(0, width - 1)
    each_B = torch.arange(n, device=device)[:, None, None]
    shifted_BHWC = images_BCHW.permute(0, 2, 3, 1)[each_B, rows_BH[:, :, None], cols_BW[:, None, :]]
    return shifted_BHWC.permute(0, 3, 1, 2)


def _loader(batches: Batches, order: Iterable[Tensor], c: TrainerConfig) -> DataLoader:
    workers = c.num_workers if batches.rows.device.type == "cpu" else 0  # they do not share the device's memory
    own = torch.Generator().manual_seed(0)  # without it each pass draws from torch's global generator
    return DataLoader(
        batches, sampler=order, batch_size=None, num_workers=workers, generator=own,
        worker_init_fn=signals.end_with_parent,
    )  # fmt: skip
