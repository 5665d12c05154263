"""Features that no round changes: a frozen backbone's embeddings, and the principal components of the pixels.

N images of the data set, T training images, D embedding width, F feature width.
"""

import functools
import logging
import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from al_bench import process
from al_bench.config import Augment, Config, Extractor, Mode, ModelConfig
from al_bench.data import Dataset
from al_bench.data.cache import cached_array, release_pages
from al_bench.errors import UserError
from al_bench.models import contract, hardware
from al_bench.models.learner import Learner
from al_bench.models.nets import weights_version

log = logging.getLogger("al_bench")

AT_ONCE = 2048  # images after which their memory is given back
PCA_HEAD = "al_bench.models.nets.pca_head"  # the target of model=pca


def freeze(c: Config, dataset: Dataset) -> Dataset:
    """The data set with a frozen backbone's embeddings [N, D] in place of its images, computed once and cached.

    Features computed elsewhere are used as they are. The mean and std are those of the training images' embeddings.
    Raises UserError where images are augmented.
    """
    m = c.model
    if c.trainer.augment is not Augment.none:
        raise UserError("model.mode=frozen sees each image once, not augmented. Set trainer.augment=none.")
    if m._target_ == PCA_HEAD and dataset.images.ndim == 4:
        width = c.features.width
        features = principal_components(dataset, width)
        return _without_constants(_with_features(dataset, features, f"{width} components of {dataset.checksum}"))
    if dataset.images.ndim == 2:
        contract.build(m, dataset)  # raises UserError for a net that takes images
        return _without_constants(_with_features(dataset, dataset.images, dataset.checksum))
    hardware.set_threads(c.trainer)  # an earlier run of this process may have set fewer
    plain = replace(m, mode=Mode.finetune, dropout=0.0)  # model.dropout is the linear head's
    learner = Learner(plain, c.trainer, dataset, c.seed)
    net = functools.cache(lambda: learner.build(round=0))  # only where the features are not in the cache
    trained = m.pretrained or m.weights is not None  # random weights differ by the seed
    key = {
        "images": dataset.checksum,
        "model": [m._target_, m.name, m.options, None if trained else c.seed],
        "weights": (weights_version(m) or "").removeprefix("sha256:") or None,
        "scaling": [*map(float, dataset.mean), *map(float, dataset.std)],
        "precision": hardware.precision(c.trainer),
        "features": 1,
    }  # fmt: skip
    n = len(dataset.images)

    def fill(out: Any) -> tuple[int, dict[str, Any]]:
        log.info(f"Computing the features of {n:,} images by {m.name}, once.")
        batch = c.trainer.predict_batch_size
        for rows in torch.arange(n).split(batch * max(1, AT_ONCE // batch)):  # whole batches, as if all were predicted
            out[rows.numpy()] = learner.predict(net(), rows, embeddings=True).emb_PD.numpy()
            release_pages()
        return n, {}

    features, notes = cached_array(c.cache_dir, key, lambda: (n, net().net.head_hidden_size), "float32", fill)
    return _with_features(dataset, torch.from_numpy(features), notes["checksum"])


def _with_features(dataset: Dataset, features_ND: Tensor, checksum: str) -> Dataset:
    """checksum: of the features, or of more."""
    kept, split = _means_and_stds(checksum), dataset.train_idx.numpy().tobytes()
    if split not in kept:
        kept[split] = _mean_and_std(features_ND[dataset.train_idx])
    mean_D, std_D = kept[split]
    return replace(dataset, images=features_ND, mean=mean_D, std=std_D)


@functools.lru_cache(1)
def _means_and_stds(checksum: str) -> dict[bytes, tuple[Tensor, Tensor]]:
    """Of the features with this checksum, those that this process knows already, by training images.

    Only these small tensors are kept: the features' file may change between two runs.
    """
    return {}


def _mean_and_std(train_TD: Tensor) -> tuple[Tensor, Tensor]:
    """(mean_D, std_D). Overwrites train_TD."""
    mean_D = train_TD.mean(0)
    std_D = train_TD.sub_(mean_D).square_().mean(0).sqrt_()  # torch.std takes five times as long along this axis
    return mean_D, std_D.clamp_min(1e-6)


def _without_constants(dataset: Dataset) -> Dataset:
    """Give std 1 to a column with one value in all training items, else the net would see 1e6 times a test item's."""
    train_TD = dataset.images[dataset.train_idx]
    constant_D = (train_TD == train_TD[0]).all(0)
    mean_D = dataset.mean.where(~constant_D, train_TD[0])  # exactly: the sum is rounded
    return replace(dataset, mean=mean_D, std=dataset.std.masked_fill(constant_D, 1.0))


def fixed_features(c: Config, dataset: Dataset) -> Tensor | None:
    """The features of `c.features`, [N, F] of unit length; None where the model of each round gives them.

    Raises UserError where the backbone cannot be had.
    """
    if c.features.extractor is Extractor.model:
        return None
    if c.features.extractor is Extractor.backbone:
        features_NF = backbone_features(c, dataset)
    elif dataset.images.ndim == 2:  # frozen: they are features already
        features_NF = dataset.images
    else:
        features_NF = principal_components(dataset, c.features.width)
    return F.normalize(features_NF, dim=1)


def backbone_features(c: Config, dataset: Dataset) -> Tensor:
    """The embeddings [N, D] of the timm model that `c.features` names. Errors name the keys of features, not model."""
    f = c.features
    if f.name is None:
        raise UserError("features.extractor=backbone needs a timm model: set features.name=...")
    if dataset.images.ndim == 2:
        raise UserError("model.mode=frozen has features already: leave features=pca, which takes them as they are.")
    backbone = ModelConfig(
        _target_="al_bench.models.nets.timm_net", name=f.name, pretrained=f.pretrained, weights=f.weights,
        optimizer=c.model.optimizer,
    )  # fmt: skip
    try:
        return freeze(replace(c, model=backbone, trainer=replace(c.trainer, augment=Augment.none)), dataset).images
    except UserError as error:
        raise UserError(re.sub(r"\bmodel\.(name|weights|pretrained)\b", r"features.\1", str(error))) from None


def principal_components(dataset: Dataset, width: int) -> Tensor:
    """Pixels, at 32x32 at most, on the `width` main axes of up to 10,000 training images: [N, width], centred."""
    parts = torch.arange(len(dataset.images)).split(10_000)
    with process.one_blas_thread():  # a cold start might choose other images
        pca = fitted_pca(dataset, width)
        return torch.cat([torch.from_numpy(pca.transform(_pixels(dataset, rows).numpy())) for rows in parts]).float()


def fitted_pca(dataset: Dataset, width: int) -> Any:
    """scikit-learn's PCA of up to 10,000 training images' pixels. It is the same each time."""
    from sklearn.decomposition import PCA

    some = dataset.train_idx[:: -(-len(dataset.train_idx) // 10_000)]
    flat = _pixels(dataset, some)
    with process.one_blas_thread():
        return PCA(min(width, *flat.shape), svd_solver="randomized", random_state=0).fit(flat.numpy())


def _pixels(dataset: Dataset, rows: Tensor) -> Tensor:
    return small_pixels(dataset.images.cpu()[rows])


def small_pixels(images: Tensor) -> Tensor:
    """Images as rows of numbers from 0 to 1, float32, at 32x32 at most. images: uint8 [B, channels, H, W]."""
    size, x = min(32, images.shape[-1]), images.float() / 255
    return (F.interpolate(x, (size, size), mode="area") if size < images.shape[-1] else x).flatten(1)
