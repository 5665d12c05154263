import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from al_bench.config import ModelConfig
from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.models import nets

# One linear layer on the embedding in timm itself, and families whose own classifier is something else.
PLAIN = ("resnet10t", "mobilenetv3_small_050", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto")
ODD = ("levit_128s", "deit_tiny_distilled_patch16_224", "resnetv2_18", "shvit_s1")


pytestmark = pytest.mark.usefixtures("one_thread")


def data(size=32, channels=3, classes=3, n=2):
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=stream).permute(0, 3, 1, 2)
    idx, names = torch.arange(n), tuple(map(str, range(classes)))
    return Dataset("d", images, idx, idx, idx % classes, names, (0.4,) * channels, (0.2,) * channels, "checksum")


def small_cnn(dataset, momentum=0.1):
    return nets.small_cnn(ModelConfig(options={"bn_momentum": momentum}), dataset)


def cifar_resnet18(dataset, **options):
    return nets.cifar_resnet18(ModelConfig(name="cifar_resnet18", **options), dataset)


def linear_head(features):
    labels = torch.arange(len(features)) % 3
    mean, std = features.mean(0), features.std(0)
    return nets.LinearHead(Dataset("f", features, labels, labels, labels, ("a", "b", "c"), mean, std, "checksum"))


def timm_config(name, weights=None, pretrained=False, **options):
    return ModelConfig("al_bench.models.nets.timm_net", name, pretrained, weights and str(weights), options=options)


def timm_net(name, *args, **kwargs):
    torch.manual_seed(0)
    return nets.timm_net(timm_config(name, *args, **kwargs), data())


def saved(path, name, **options):
    torch.manual_seed(1)
    state = timm.create_model(name, **options).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return state


def first_convolution_input(net, images):
    seen = []
    convolution = next(m for m in net.net.modules() if isinstance(m, nn.Conv2d))
    with convolution.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.inference_mode():
        net.forward_features(images)
    return seen[0]


def test_the_articles_network_has_its_684162_weights_and_its_layers_in_order_with_keras_settings():
    net = small_cnn(data(64, classes=2), momentum=0.01)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 684_162
    block = ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "Dropout"]
    assert [type(layer).__name__ for layer in net.features] == 3 * block
    assert [type(layer).__name__ for layer in net.hidden] == ["Flatten", "Linear", "ReLU", "BatchNorm1d", "Dropout"]
    layers = list(net.modules())
    convolutions, dense = [m for m in layers if isinstance(m, nn.Conv2d)], net.hidden[1]
    assert [(m.out_channels, m.kernel_size, m.padding) for m in convolutions] == [
        (32, (3, 3), (1, 1)), (64, (3, 3), (0, 0)), (128, (3, 3), (0, 0)),
    ]  # fmt: skip
    assert [m.p for m in layers if isinstance(m, nn.Dropout)] == [0.25, 0.25, 0.25, 0.5]
    assert {(m.eps, m.momentum) for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm)} == {(1e-3, 0.01)}
    bound = (6 / (4608 + 128)) ** 0.5  # Glorot's
    assert dense.weight.abs().max() <= bound and dense.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert all(not m.bias.any() for m in [*convolutions, dense, net.classifier])


def test_the_literatures_resnet18_has_its_parameters_and_keeps_the_size_of_a_small_image():
    net = cifar_resnet18(data(classes=10))
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    sizes, images = [], net.normalise(data().images)
    for layer in net.features:
        images = layer(images)
        sizes.append(images.shape[1:])
    assert sizes == [(64, 32, 32)] * 4 + [(128, 16, 16), (256, 8, 8), (512, 4, 4)]
    first = net.features[0].weight
    assert first.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # He's, by the number of outputs
    assert all(m.weight.eq(1).all() for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(UserError, match="model.options={'a': 1}: model=cifar_resnet18 has none"):
        cifar_resnet18(data(), options={"a": 1})


def test_the_literatures_resnet18_learns_in_a_few_steps_and_takes_dropout():
    torch.manual_seed(0)
    dataset = data(8, classes=2, n=16)
    dataset.images[::2] //= 4  # the dark ones are of class 0
    net = cifar_resnet18(dataset, dropout=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    labels = torch.arange(16) % 2
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(net.forward_head(net.forward_features(dataset.images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    net.eval()
    features = net.forward_features(dataset.images)
    assert torch.equal(net.forward_head(features), net.forward_head(features))


@pytest.mark.parametrize(
    "channels, classes, sizes", [(1, 10, range(8, 41, 2)), (3, 2, range(9, 41, 2)), (3, 100, [64, 96])]
)
def test_the_small_cnn_learns_from_images_of_any_size(channels, classes, sizes):
    for size in sizes:
        dataset = data(size, channels, classes)
        net = small_cnn(dataset)
        torch.testing.assert_close(net.normalise(dataset.images), (dataset.images / 255 - 0.4) / 0.2)
        logits = net.forward_head(net.forward_features(dataset.images))
        assert logits.shape == (2, classes)
        nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["small_cnn", "cifar_resnet18", "linear_head", *PLAIN, *ODD])
def test_every_net_keeps_the_contract_and_its_embedding_is_what_the_linear_layer_sees(name):
    x = torch.randn(4, 20) if name == "linear_head" else data().images
    own = {
        "small_cnn": lambda: small_cnn(data()),
        "cifar_resnet18": lambda: cifar_resnet18(data()),
        "linear_head": lambda: linear_head(x),
    }
    net = own.get(name, lambda: timm_net(name))()
    net.eval()
    with torch.inference_mode():
        features = net.forward_features(x)
        emb, logits, classifier = (
            net.forward_head(features, pre_logits=True),
            net.forward_head(features),
            net.get_classifier(),
        )
        assert isinstance(classifier, nn.Linear) and logits.shape == (len(x), 3)
        assert emb.shape == (len(x), net.head_hidden_size) and emb.std() > 0
        assert torch.equal(classifier(emb), logits)
    if name not in PLAIN:
        return
    theirs = timm.create_model(name, num_classes=3).eval()
    missing = theirs.load_state_dict(net.net.state_dict(), strict=False).missing_keys
    assert missing == [f"{theirs.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")]
    theirs.get_classifier().load_state_dict(classifier.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(theirs(first_convolution_input(net, x)), logits)


IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    "name, size, mean, std", [("resnet10t", 176, *IMAGENET), ("test_vit", 160, [0.5] * 3, [0.5] * 3)]
)
def test_a_backbone_is_fed_in_colour_at_timms_size_with_timms_mean_and_std(name, size, mean, std):
    grey = torch.full((2, 1, 32, 32), 51, dtype=torch.uint8)
    x = first_convolution_input(timm_net(name), grey)
    expected = (51 / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(x, expected[:, None, None].expand(2, 3, size, size), atol=1e-5, rtol=1e-5)
    coloured = first_convolution_input(timm_net(name), grey.repeat(1, 3, 1, 1))
    assert torch.equal(x, coloured) and nets.preferred_size(timm_config(name)) == size
    assert nets.preferred_size(ModelConfig("al_bench.models.nets.small_cnn")) is None


def test_weights_come_from_the_real_file_of_a_pretrained_backbone(shared):
    path = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    file, ours = load_file(path), timm_net("tf_efficientnet_lite0", path).net.state_dict()
    assert file.keys() - ours.keys() == {"classifier.weight", "classifier.bias"}
    assert {name.rpartition(".")[2] for name in ours.keys() - file.keys()} == {"num_batches_tracked"}
    assert all(torch.equal(ours[name], file[name]) for name in ours if name in file)


@pytest.mark.parametrize("file, classes", [("w.pth", 0), ("w.pth", 3), ("w.safetensors", 7)])
def test_weights_come_from_a_file_whatever_classifier_it_holds(tmp_path, file, classes):
    state = saved(tmp_path / file, "test_resnet", num_classes=classes)
    net = timm_net("test_resnet", tmp_path / file).net
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_position_embeddings_of_a_file_are_fitted_to_another_image_size(tmp_path):
    state = saved(tmp_path / "w.pth", "test_vit", img_size=160)
    net = timm_net("test_vit", tmp_path / "w.pth", img_size=64).net
    assert state["pos_embed"].shape[1] == 101 and net.pos_embed.shape[1] == 17
    assert torch.equal(net.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_weights_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, save):
    save({"conv1.weight": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth cannot be read as weights"):
        timm_net("test_resnet", tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_weights_file_that_is_missing_cut_short_or_of_another_network_is_named(tmp_path):
    state = saved(tmp_path / "whole.safetensors", "test_resnet")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 not weights")
    saved(tmp_path / "vit.pth", "test_vit")
    torch.save(state | {"conv1.0.weight": torch.zeros(3, 3)}, tmp_path / "shape.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for file, complaint in [
        ("nowhere.pth", "there is no such file"),
        ("short.safetensors", "cannot be read as weights"),
        ("photo.pth", "cannot be read as weights"),
        ("list.pth", "cannot be read as weights"),
        ("vit.pth", r"does not fit test_resnet: it lacks \d+ of \d+ entries, conv1"),
        ("shape.pth", "does not fit test_resnet: .*size mismatch for conv1.0.weight"),
    ]:
        with pytest.raises(UserError, match=f"model.weights=.*{file}.*{complaint}"):
            timm_net("test_resnet", tmp_path / file)


@pytest.mark.parametrize(
    "name, options, complaint",
    [
        ("resnet_18", {}, "model.name=resnet_18: timm has no such model. Did you mean .*resnet18"),
        ("resnet18.a1_in2k", {}, "Did you mean .*resnet18.a1_in1k"),
        ("resnet10t", {"drop_rat": 0.1}, "resnet10t.*drop_rat.*timm cannot build it: TypeError"),
    ],
)
def test_a_misspelt_model_or_option_is_named_with_its_near_misses(name, options, complaint):
    for use in (nets.preferred_size, lambda c: nets.timm_net(c, data())):
        with pytest.raises(UserError, match=complaint):
            use(timm_config(name, **options))


@pytest.mark.parametrize("value", ["abc", -0.1, 7, None])
def test_an_option_of_a_small_net_is_a_share(value):
    for make, key in ((nets.small_cnn, "bn_momentum"), (nets.bayesian_cnn, "dropout")):
        with pytest.raises(UserError, match=f"model.options.{key}={value}: a number from 0 to 1."):
            make(ModelConfig(options={key: value}), data())


@pytest.mark.parametrize("asked", [{"pretrained": True}, {"weights": "/nowhere.pth"}])
def test_nets_without_weights_of_their_own_refuse_them(asked):
    for make in (nets.small_cnn, nets.bayesian_cnn, nets.cifar_resnet18):
        name = {"bayesian_cnn": "bcnn"}.get(make.__name__, make.__name__)
        with pytest.raises(UserError, match=f"model={name} is trained from nothing"):
            make(ModelConfig(name=name, **asked), data())


OFFLINE = """
import shutil, sys, time
sys.path.insert(0, sys.argv[1])
from test_nets import UserError, timm_net

start = time.perf_counter()
try:
    timm_net("test_resnet", pretrained=True)
except UserError as error:
    print(f"{time.perf_counter() - start:.1f} s: {error}")
shutil.move(sys.argv[2], sys.argv[3])
timm_net("test_resnet", pretrained=True)
print("from the cache")
"""


def test_without_a_network_the_hub_is_given_up_at_once_and_its_cache_is_still_used(tmp_path):
    # In a process of its own, for huggingface_hub reads its settings once; nothing listens on port 9.
    repository, commit = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    saved(tmp_path / "w.safetensors", "test_resnet")
    cached = repository / "snapshots" / commit / "model.safetensors"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    program = [sys.executable, "-W", "ignore", "-c", OFFLINE, Path(__file__).parent, tmp_path / "w.safetensors", cached]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    seconds, _, message = first.partition(" s: ")
    assert float(seconds) < 15  # huggingface_hub alone tries for 48
    assert message.startswith("The weights of test_resnet could not be downloaded") and "model.weights=" in message
    assert second == "from the cache"
