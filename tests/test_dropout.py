from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import asked, seeded
from torch import nn

from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.models import dropout, hardware
from al_bench.models.classifier import Classifier
from al_bench.models.dropout import DropoutPasses, draw_masks, dropout_late, mask_shapes, seen_shapes
from al_bench.models.learner import Learner
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
                if values is not None:
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
    shapes = mask_shapes(layers, seen_shapes(layers, images[:1]))
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
    logits_BSC = DropoutPasses(net, 6, images[:1], seeded(3))(images)
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
    logits_BSC = DropoutPasses(net, 4000, images[:1], seeded())(images)
    torch.testing.assert_close(logits_BSC.mean(1), net.forward_head(net.forward_features(images)), atol=0.1, rtol=0)


@pytest.mark.parametrize("model", ["bcnn", "small_cnn"])
def test_masks_are_shared_by_all_images_and_by_all_batches_and_nothing_is_left_changed(model):
    c, dataset = (
        asked(f"model={model}", "trainer.progress=false", "trainer.predict_batch_size=5", "trainer.precision=32-true"),
        data(),
    )
    alike = dataset.images[:1].expand(12, -1, -1, -1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    learner = Learner(c.model, c.trainer, replace(dataset, images=alike), c.seed)
    classifier = learner.build(0)
    before = deepcopy(classifier.state_dict())
    passes = learner.passes(classifier, 4, "dropout", 0)
    random_state = torch.get_rng_state()
    seen = learner.predict(classifier, torch.arange(12), passes=passes)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert seen.log_probs_PSC.shape == (12, 4, 5)
    torch.testing.assert_close(seen.log_probs_PSC, seen.log_probs_PSC[:1].expand(12, -1, -1))  # in 3 batches: 5, 5, 2
    assert seen.log_probs_PSC[0].std(0).min() > 1e-4
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    again = learner.predict(classifier, torch.arange(12))
    assert again.log_probs_PSC.shape == (12, 1, 5)


@pytest.mark.parametrize("name", NETS)
def test_passes_lie_where_the_net_will_predict(name, monkeypatch):
    """Between Lightning's calls a net is on the CPU. torch's meta device stands in for an accelerator."""
    net, images = NETS[name]()
    classifier = Classifier(net, {}, asked().trainer.schedule)
    monkeypatch.setattr(hardware, "find_device", lambda t: torch.device("meta"))
    learner = Learner(asked().model, asked().trainer, SimpleNamespace(images=images), 0)
    passes = learner.passes(classifier, 3, "dropout", 0)
    with torch.inference_mode():  # layer by layer, for autocast does not know the meta device
        x = dropout.run(passes.once, images.to("meta"))
        assert [dropout.run(layers, x).shape for layers in passes.passes] == [(12, 5)] * 3


def test_the_layers_before_the_first_dropout_run_once(monkeypatch):
    net, images = NETS["bcnn"]()
    calls = []
    net.features[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        passes = DropoutPasses(net.eval(), 9, images[:1], seeded())
        calls.clear()
        passes(images)
    assert len(calls) == 1


def test_a_thinned_net_has_about_half_the_channels(monkeypatch):
    net, images = NETS["bcnn"]()
    widths = []
    original = nn.functional.conv2d
    monkeypatch.setattr(
        nn.functional, "conv2d", lambda x, w, *rest: widths.append(w.shape[:2]) or original(x, w, *rest)
    )
    with torch.inference_mode():
        DropoutPasses(net.eval(), 40, images[:1], seeded())(images)
    thin = [w for w in widths if w[1] > 1]  # the second convolution's; the first runs whole
    out, into = (sum(w[i] for w in thin) / len(thin) for i in (0, 1))
    assert 28 < out < 36 and 13 < into < 19  # of 64 and 32, and once whole to see the shapes


def test_a_model_without_dropout_is_refused_with_what_to_set():
    net = LinearHead(features_data())
    with pytest.raises(UserError, match="no dropout.*model.dropout=0.5"):
        DropoutPasses(net.eval(), 5, features_data().images[:1], seeded())


# Layers that cannot be cut down, or that have settings of their own


class Row(nn.Module):
    """A user's net: a row of layers on images of 4x12x12, then a linear layer for 5 classes."""

    def __init__(self, *row, head=True):
        super().__init__()
        self.row = nn.ModuleList([*row, nn.Flatten(), nn.LazyLinear(5)] if head else row)

    def layers(self):
        return list(self.row)


class Reversed(nn.Module):
    """A layer of a user's own, which moves the channels."""

    def forward(self, x):
        return x.flip(1)


def conv(inp=12, out=12, kernel=3, **options):
    return nn.Conv2d(inp, out, kernel, **options)


def hooked(layer):
    layer.register_forward_hook(lambda module, given, out: out + given[0].mean())
    return layer


def row_of(second, *, first=None, between=()):
    """Whole-channel dropout in front of the layer in question."""
    return lambda: Row(first or conv(4), nn.Dropout2d(0.5), nn.ReLU(), *between, second, nn.ReLU())


def between_of(*layers):
    """The layers in question between a convolution and its dropout, and in between dropout and the next."""
    return lambda: Row(conv(4), *map(deepcopy, layers), nn.Dropout2d(0.5), *map(deepcopy, layers), conv())


norm = nn.BatchNorm2d
ROWS = {
    "dilated": row_of(conv(dilation=2)),
    "dilated and strided": row_of(conv(dilation=(2, 1), stride=(1, 2), padding=1)),
    "circular": row_of(conv(padding=1, padding_mode="circular")),
    "reflected, in the first": row_of(conv(), first=conv(4, padding=2, padding_mode="reflect")),
    "replicated and dilated": row_of(conv(dilation=2, padding=(2, 1), padding_mode="replicate")),
    "same": row_of(conv(kernel=4, padding="same", dilation=2)),
    "groups": row_of(conv(groups=3)),
    "groups in the first": row_of(conv(), first=conv(4, 16, groups=2), between=[conv(16)]),
    "depthwise": row_of(conv(groups=12), between=[conv()]),
    "no bias": row_of(conv(bias=False), first=conv(4, bias=False)),
    "transposed": row_of(nn.ConvTranspose2d(12, 3, 3, stride=2), first=nn.ConvTranspose2d(4, 12, 3)),
    "parametrised": row_of(nn.utils.parametrizations.weight_norm(conv())),
    "with a hook": row_of(hooked(conv()), first=hooked(conv(4))),
    "linear, no bias": lambda: Row(nn.Flatten(), nn.Linear(576, 19, bias=False), nn.Dropout(0.5),
                                   nn.Linear(19, 7, bias=False), nn.Dropout(0.5)),
    "linear on the last dimension": row_of(nn.Linear(10, 7)),
    "linear and dropout of tokens": lambda: Row(nn.Flatten(2), nn.Linear(144, 4), nn.Dropout1d(0.5),
                                                nn.Linear(4, 5), nn.Dropout(0.5)),
    "batch norm": between_of(norm(12)),
    "batch norm, not affine": between_of(norm(12, affine=False)),
    "batch norm of the batch": between_of(norm(12, track_running_stats=False)),
    "batch norm behind dropout": lambda: Row(nn.Flatten(), nn.Linear(576, 19), nn.Dropout(0.5), nn.BatchNorm1d(19)),
    "group norm": between_of(nn.GroupNorm(2, 12)),
    "layer norm": between_of(nn.LayerNorm([12, 10, 10])),
    "instance norm": between_of(nn.InstanceNorm2d(12, affine=True)),
    "channels mixed by norm": between_of(nn.LocalResponseNorm(3)),
    "a slope for each channel": between_of(nn.PReLU(12)),
    "sigmoid, of 0 not 0": between_of(nn.Sigmoid()),
    "softmax over channels": between_of(nn.Softmax2d()),
    "pooling, padded": between_of(nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)),
    "average pooling": between_of(nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True)),
    "adaptive pooling": between_of(nn.AdaptiveAvgPool2d(7)),
    "shuffled channels": between_of(nn.ChannelShuffle(3)),
    "flat in part": row_of(nn.Flatten(2)),
    "pixels become channels": lambda: Row(nn.PixelUnshuffle(2), conv(16), nn.Dropout2d(0.5), conv(12, 48),
                                          nn.PixelShuffle(2), nn.Dropout2d(0.5), conv()),
    "a user's own": between_of(Reversed()),
    "dropout twice": lambda: Row(nn.Flatten(), nn.Linear(576, 19), nn.Dropout(0.3), nn.Dropout(0.3), nn.Linear(19, 8)),
    "dropout of both kinds": lambda: Row(conv(4), nn.Dropout2d(0.3), nn.Dropout(0.3), conv()),
    "one dimension": lambda: Row(nn.Flatten(2), nn.Conv1d(4, 12, 3), nn.Dropout1d(0.5), nn.Conv1d(12, 5, 3)),
    "three dimensions": lambda: Row(nn.Unflatten(2, (3, 4)), nn.Dropout3d(0.5), nn.Conv3d(4, 5, (1, 3, 3))),
    "a flat input": lambda: Row(nn.Flatten(), nn.Linear(576, 19), nn.Dropout2d(0.5), nn.Linear(19, 7)),
    "one channel, often dropped": lambda: Row(conv(4, 1), nn.Dropout2d(0.6), nn.MaxPool2d(2), conv(1)),
    "all dropped": row_of(conv(), first=nn.Sequential(conv(4)), between=[nn.Dropout2d(1.0)]),
}  # fmt: skip


def images_4():
    return torch.randn(7, 4, 12, 12, generator=seeded(5))


def own_masks(net, images, n, stream):
    """Slower still: each mask multiplied right where the dropout stands, in the order in which masks are drawn."""
    passes = []
    for _ in range(n):
        x, masks = images, {}
        for layer in dropout_late(net.layers()):
            if isinstance(layer, tuple(dropout.DROPOUTS)) and layer.p:
                shape = x.shape[1:] if type(layer) is nn.Dropout else x.shape[1:2]
                kept = torch.rand(shape, generator=stream) >= layer.p
                masks[layer] = (kept / (1 - layer.p) if layer.p < 1 else kept * 0.0), x.ndim
            x = layer(x)
        x = images
        for layer in net.layers():
            x = layer(x)
            if layer in masks:
                factor = masks[layer][0]
                x = x * (factor if type(layer) is nn.Dropout else factor.view(-1, *[1] * (x.ndim - 2)))
        passes.append(x)
    return torch.stack(passes, 1)


@pytest.mark.filterwarnings("ignore:dropout2d:UserWarning", "ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", ROWS)
@torch.inference_mode()
def test_whatever_the_layers_passes_give_what_masks_give(name):
    torch.manual_seed(0)
    net = ROWS[name]().eval()
    net.layers()[-1](dropout.run(net.layers()[:-1], images_4()))  # the lazy layer sees its width
    net = lively(net)
    logits_BSC = DropoutPasses(net, 8, images_4()[:1], seeded(3))(images_4())
    torch.testing.assert_close(logits_BSC, own_masks(net, images_4(), 8, seeded(3)), rtol=1e-4, atol=1e-5)
    assert name == "all dropped" or logits_BSC.std(1).max() > 1e-3


@torch.inference_mode()
def test_a_dilated_and_a_circular_convolution_are_still_cut_down():
    """Not only right: the known settings of a convolution do not cost the speed."""
    for name in ("dilated", "circular", "same", "no bias"):
        net = ROWS[name]().eval()
        dropout.run(net.layers(), images_4())
        sizes, plain = [], nn.Conv2d._conv_forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Conv2d, "_conv_forward", lambda s, x, w, b: sizes.append(x.shape[1]) or plain(s, x, w, b))  # noqa: B023
            DropoutPasses(net, 8, images_4()[:1], seeded(3))(images_4())
        assert len(sizes) == 11 and max(sizes[3:]) < 12, (name, sizes)  # whole: to see the shapes, before the dropout


@pytest.mark.parametrize(
    "layers, complaint",
    [
        ([nn.AlphaDropout(0.2), nn.Dropout(0.5)], "no masks for AlphaDropout. They know Dropout, Dropout1d, Dropout2d"),
        ([nn.FeatureAlphaDropout(0.2), nn.Dropout(0.5)], "no masks for FeatureAlphaDropout"),
        ([type("Mine", (nn.Dropout,), {})(0.5)], "no masks for Mine"),
        ([nn.Sequential(conv(4), nn.Dropout2d(0.3)), nn.Dropout(0.5)], "Dropout2d inside the layer Sequential"),
        (
            [nn.Flatten(2), nn.TransformerEncoderLayer(144, 2, 8, 0.1), nn.Dropout(0.5)],
            "inside the layer TransformerEncoderLayer",
        ),
        ([nn.Flatten(), nn.Dropout1d(0.5)], "Dropout1d cannot tell the channels of an input of 2 dimensions"),
        ([nn.Dropout3d(0.5)], "Dropout3d cannot tell the channels of an input of 4 dimensions"),
        (
            [nn.Flatten(2), nn.Dropout2d(0.5)],
            "Dropout2d cannot tell the channels of an input of 3 dimensions.*Use Drop",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout:UserWarning")
def test_dropout_that_no_mask_is_drawn_for_is_refused_and_does_not_rest_in_silence(layers, complaint):
    net = Row(*layers).eval()
    dropout.run(net.layers(), images_4())
    with pytest.raises(UserError, match=complaint):
        DropoutPasses(net, 5, images_4()[:1], seeded())


def test_dropout_of_probability_0_is_no_dropout_wherever_it_stands():
    net = Row(nn.Sequential(conv(4), nn.Dropout2d(0.0)), nn.AlphaDropout(0.0), nn.Dropout(0.5)).eval()
    with torch.inference_mode():
        dropout.run(net.layers(), images_4())
        passes = DropoutPasses(net, 3, images_4()[:1], seeded(3))(images_4())
        torch.testing.assert_close(passes, own_masks(net, images_4(), 3, seeded(3)), rtol=1e-4, atol=1e-5)
