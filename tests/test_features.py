"""Frozen backbones, their embeddings, and the principal components of pixels."""

import threading
from dataclasses import replace

import pytest
import torch
from conftest import asked, run_here
from test_learner import configured, fitted, learner, setting
from threadpoolctl import threadpool_info, threadpool_limits

from al_bench import process
from al_bench.data import sources
from al_bench.errors import UserError
from al_bench.models import features
from al_bench.models.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")


def digits(c):
    return sources.load(c.dataset, sources.find(c.dataset, None, "unused"), c.seed)


def test_frozen_features_are_computed_once_and_are_the_nets_embeddings(tmp_path, monkeypatch):
    c, (dataset, pool) = configured("model.mode=frozen", f"cache_dir={tmp_path}"), setting()
    frozen = features.freeze(c, dataset)
    plain = learner(configured(), dataset)
    expected = plain.predict(plain.build(0), torch.arange(60), embeddings=True).emb_PD
    assert torch.equal(frozen.images, expected)
    train = expected[dataset.train_idx]
    torch.testing.assert_close(frozen.mean, train.mean(0))
    torch.testing.assert_close(frozen.std, train.std(0, correction=0).clamp_min(1e-6))
    head, length = fitted(c, frozen, pool)
    assert length == (2, 6) and sum(p.numel() for p in head.parameters()) == 128 * 2 + 2

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "predict", None)
        again = features.freeze(c, dataset)
    assert torch.equal(again.images, frozen.images) and torch.equal(again.std, frozen.std)

    for changed, data in [
        (replace(c, seed=1), dataset),
        (c, replace(dataset, mean=(0.1,))),
        (c, replace(dataset, checksum="")),
    ]:
        assert not torch.equal(features.freeze(changed, data).images, frozen.images) or data.checksum == ""
    assert len(list(tmp_path.glob("*.bin"))) == 4
    with pytest.raises(UserError, match="Set trainer.augment=none"):
        features.freeze(configured("model.mode=frozen", "trainer.augment=flip"), dataset)


def test_principal_components_are_those_of_a_plain_decomposition():
    """Distances in as many components as there are pixels are distances of pixels."""
    c = asked("features.width=64")
    dataset, _ = digits(c)
    parts_NF = features.principal_components(dataset, 64)[:50].double()
    pixels_NF = dataset.images[:50].flatten(1).double() / 255
    torch.testing.assert_close(torch.cdist(parts_NF, parts_NF), torch.cdist(pixels_NF, pixels_NF), atol=1e-3, rtol=0)
    few_NF = features.principal_components(dataset, 3)
    centred = dataset.images[dataset.train_idx].flatten(1).double() / 255
    values = torch.linalg.svdvals(centred - centred.mean(0))[:3].square() / (len(centred) - 1)
    torch.testing.assert_close(few_NF[dataset.train_idx].double().var(0), values, rtol=1e-3, atol=0)


def test_principal_components_are_the_same_on_any_number_of_threads():
    """A killed run may go on with more of them."""
    c = asked()
    dataset, _ = sources.load(c.dataset, sources.find(c.dataset, None, "unused"), 2)
    found = []
    for n in (1, 2):
        with threadpool_limits(n):
            found.append(features.principal_components(dataset, 64))
    assert torch.equal(*found)


def test_threads_take_turns_to_compute_with_one_blas_thread():
    """The limit of a BLAS holds for the process: the first of two threads to end would lift it for the other one."""
    inside, seen = threading.Event(), []

    def second():
        with process.one_blas_thread():
            inside.set()
            seen.extend(library["num_threads"] for library in threadpool_info())

    other = threading.Thread(target=second)
    with process.one_blas_thread():
        other.start()
        assert not inside.wait(0.3)
        with process.one_blas_thread():  # a fit within a decomposition
            seen.extend(library["num_threads"] for library in threadpool_info())
    assert inside.wait(10)
    other.join()
    assert {*seen} == {1} and len(seen) >= 4


@pytest.mark.parametrize(
    "ask, said",
    [
        ("features.name=resnet_18", "features.name=resnet_18: timm has no such model. Did you mean"),
        ("features.name=resnet10t features.weights=nofile", "features.weights=nofile: there is no such file."),
    ],
)
def test_a_mistake_in_the_extractor_is_told_by_its_own_keys(tmp_path, ask, said):
    with pytest.raises(UserError) as error:
        run_here(tmp_path, "strategy=typiclust", "features=backbone", *ask.split())
    assert str(error.value).startswith(said)
