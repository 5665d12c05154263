from copy import deepcopy

import pytest
import torch
from conftest import asked, seeded
from torch import nn

from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.models import dropout, engine
from al_bench.models.dropout import Passes, draw_masks, dropout_late, dropout_shapes
from al_bench.models.nets import BayesianCNN, LinearHead, SmallCNN


def data(size=20, channels=1, n_classes=5):
    images = torch.randint(0, 256, (12, size, size, channels), dtype=torch.uint8, generator=seeded())
    nothing = torch.empty(0, dtype=torch.int64)
    names = tuple(map(str, range(n_classes)))
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Dataset("noise", images.permute(0, 3, 1, 2), torch.arange(12), nothing, nothing, names, mean, std, "noise")


def features_data():
    d = data()
    x = torch.randn(12, 7, generator=seeded())
    return Dataset("noise", x, d.train_idx, d.test_idx, d.test_labels_V, d.class_names, x.mean(0), x.std(0), "noise")


def lively(net):
    """Batch norm with statistics and weights of its own: with the initial ones an error there would not show."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for i, values in enumerate((layer.running_mean, layer.running_var, layer.weight, layer.bias)):
                values.data.uniform_(0.5, 1.5, generator=seeded(i))
    return net.eval()


NETS = {
    "small_cnn": lambda: (SmallCNN(data(16, 3), bn_momentum=0.1), data(16, 3).images),
    "bcnn": lambda: (BayesianCNN(data(), dropout=0.5), data().images),
    "bcnn, 0.3": lambda: (BayesianCNN(data(28), dropout=0.3), data(28).images),
    "linear head": lambda: (LinearHead(features_data(), dropout=0.4), features_data().images),
}


def masked_logits(net, images, n, stream):
    """The slow reference: every layer whole, and each dropout layer's output multiplied by its mask."""
    layers = dropout_late(net.layers())
    shapes = dropout_shapes(layers, images[:1])
    passes = []
    for _ in range(n):
        x = images
        masks = draw_masks(layers, shapes, stream)
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in masks:
                x = _channels(x, masks[i], layer.p) if masks[i].ndim == 1 else x * masks[i] / (1 - layer.p)
        passes.append(x)
    return torch.stack(passes, 1)


def _channels(x, mask, p):
    return x * mask.view(1, -1, *[1] * (x.ndim - 2)) / (1 - p)


@pytest.mark.parametrize("name", NETS)
@torch.inference_mode()
def test_thinned_nets_give_what_masked_ones_give(name):
    net, images = NETS[name]()
    net = lively(net)
    logits_BSC = Passes(net, 6, images[:1], seeded(3))(images)
    assert logits_BSC.shape == (12, 6, 5)
    torch.testing.assert_close(logits_BSC, masked_logits(net, images, 6, seeded(3)), rtol=1e-4, atol=1e-4)
    assert (logits_BSC.std(1) > 1e-3).all()  # the passes differ, for every image and class


@torch.inference_mode()
def test_dropout_behind_relu_and_pooling_is_the_same_dropout():
    net, images = NETS["bcnn"]()
    kinds = [type(layer).__name__ for layer in dropout_late(net.layers())]
    assert kinds.index("Dropout2d") == 1 + kinds.index("ReLU") == 2 + kinds.index("MaxPool2d")
    plain, late = net.eval().layers(), dropout_late(net.layers())
    mask = torch.rand(32, generator=seeded()) < 0.5
    results = []
    for layers in (plain, late):
        x = images
        for layer in layers[:5]:
            x = _channels(layer(x), mask, 0.5) if isinstance(layer, nn.Dropout2d) else layer(x)
        results.append(x)
    torch.testing.assert_close(*results)


@torch.inference_mode()
def test_the_average_of_many_passes_is_near_the_whole_net_in_a_linear_layer():
    """E[mask / (1 - p)] = 1, so the mean logit of a linear net is that of the net without dropout."""
    net, images = NETS["linear head"]()
    net.eval()
    logits_BSC = Passes(net, 4000, images[:1], seeded())(images)
    torch.testing.assert_close(logits_BSC.mean(1), net.forward_head(net.forward_features(images)), atol=0.1, rtol=0)


@pytest.mark.parametrize("model", ["bcnn", "small_cnn"])
def test_masks_are_shared_by_all_images_and_by_all_batches_and_nothing_is_left_changed(model):
    c, dataset = (
        asked(f"model={model}", "trainer.progress=false", "trainer.predict_batch_size=5", "trainer.precision=32-true"),
        data(),
    )
    classifier = engine.build(c, dataset, 0)
    before = deepcopy(classifier.state_dict())
    passes = engine.dropout_passes(c.trainer, classifier, dataset.images, 4, seeded())
    alike = dataset.images[:1].expand(12, -1, -1, -1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    random_state = torch.get_rng_state()
    seen = engine.predict(c.trainer, classifier, alike, torch.arange(12), passes=passes)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert seen.log_probs_PSC.shape == (12, 4, 5)
    torch.testing.assert_close(seen.log_probs_PSC, seen.log_probs_PSC[:1].expand(12, -1, -1))  # in 3 batches: 5, 5, 2
    assert seen.log_probs_PSC[0].std(0).min() > 1e-4
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    again = engine.predict(c.trainer, classifier, alike, torch.arange(12))
    assert again.log_probs_PSC.shape == (12, 1, 5)


@pytest.mark.parametrize("name", NETS)
def test_passes_lie_where_the_net_will_predict(name, monkeypatch):
    """Between Lightning's calls a net is on the CPU. torch's meta device stands in for an accelerator."""
    net, images = NETS[name]()
    classifier = engine.Classifier(net, {}, asked().trainer.schedule)
    monkeypatch.setattr(engine, "_device", lambda t: torch.device("meta"))
    passes = engine.dropout_passes(asked().trainer, classifier, images, 3, seeded())
    with torch.inference_mode():  # layer by layer, for autocast does not know the meta device
        x = dropout.run(passes.once, images.to("meta"))
        assert [dropout.run(layers, x).shape for layers in passes.passes] == [(12, 5)] * 3


def test_the_layers_before_the_first_dropout_run_once(monkeypatch):
    net, images = NETS["bcnn"]()
    calls = []
    net.features[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        passes = Passes(net.eval(), 9, images[:1], seeded())
        calls.clear()
        passes(images)
    assert len(calls) == 1


def test_a_thinned_net_has_about_half_the_channels():
    net, images = NETS["bcnn"]()
    widths = []
    original = dropout.F.conv2d
    try:
        dropout.F.conv2d = lambda x, w, *rest: widths.append(w.shape[:2]) or original(x, w, *rest)
        with torch.inference_mode():
            Passes(net.eval(), 40, images[:1], seeded())(images)
    finally:
        dropout.F.conv2d = original
    thin = [w for w in widths if w[1] > 1]  # the second convolution's; the first runs whole
    out, into = (sum(w[i] for w in thin) / len(thin) for i in (0, 1))
    assert 28 < out < 36 and 13 < into < 19  # of 64 and 32, and once whole to see the shapes


def test_a_model_without_dropout_is_refused_with_what_to_set():
    net = LinearHead(features_data())
    with pytest.raises(UserError, match="no dropout.*model.dropout=0.5"):
        Passes(net.eval(), 5, features_data().images[:1], seeded())
