import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from conftest import asked
from safetensors.torch import load_file, save_file
from torch import nn

from al_bench.data import Dataset
from al_bench.errors import UserError
from al_bench.models import engine, nets

# One linear layer on the embedding in timm itself, and families whose own classifier is something else.
PLAIN = ("resnet10t", "mobilenetv3_small_050", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto")
ODD = ("levit_128s", "deit_tiny_distilled_patch16_224", "resnetv2_18", "shvit_s1")


def data(size=64, channels=3, classes=2, n=4):
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=stream).permute(0, 3, 1, 2)
    idx = torch.arange(n)
    names = tuple(map(str, range(classes)))
    return Dataset("d", images, idx, idx, idx % classes, names, (0.4,) * channels, (0.2,) * channels, "checksum")


def small_cnn(dataset, momentum=0.1):
    return nets.small_cnn(asked(f"model.options.bn_momentum={momentum}").model, dataset)


def timm_net(name, dataset, *overrides):
    torch.manual_seed(0)
    return nets.timm_net(timm_config(name, *overrides), dataset)


def timm_config(name, *overrides):
    return asked("model=timm", f"model.name={name}", "model.pretrained=false", *overrides).model


def test_the_articles_network_has_684162_trainable_parameters():
    net = small_cnn(data())
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 684_162


def test_the_articles_layers_in_the_articles_order_with_keras_settings():
    net = small_cnn(data(), momentum=0.01)
    block = ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "Dropout"]
    assert [type(layer).__name__ for layer in net.features] == 3 * block
    assert [type(layer).__name__ for layer in net.hidden] == ["Flatten", "Linear", "ReLU", "BatchNorm1d", "Dropout"]
    layers = list(net.modules())
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size, m.padding) for m in convolutions] == [
        (32, (3, 3), (1, 1)), (64, (3, 3), (0, 0)), (128, (3, 3), (0, 0)),
    ]  # fmt: skip
    assert [m.p for m in layers if isinstance(m, nn.Dropout)] == [0.25, 0.25, 0.25, 0.5]
    assert {(m.eps, m.momentum) for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm)} == {(1e-3, 0.01)}
    dense = net.hidden[1]
    bound = (6 / (4608 + 128)) ** 0.5  # Glorot's
    assert dense.weight.abs().max() <= bound and dense.weight.std() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert all(not m.bias.any() for m in [*convolutions, dense, net.classifier])


@pytest.mark.parametrize("size", [*range(8, 41), 64, 96])
def test_the_small_cnn_learns_from_images_of_any_size(size):
    channels, classes = [(1, 10), (3, 2), (3, 100)][size % 3]
    dataset = data(size, channels, classes, n=2)
    net = small_cnn(dataset)
    logits = net.forward_head(net.forward_features(dataset.images))
    assert logits.shape == (2, classes)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_images_are_scaled_by_the_data_sets_mean_and_std():
    dataset = data(8)
    x = small_cnn(dataset).normalise(dataset.images)
    torch.testing.assert_close(x, (dataset.images / 255 - 0.4) / 0.2)


def linear_head():
    dataset = data(classes=3)
    features = torch.randn(4, 20)
    return nets.LinearHead(
        Dataset("f", features, *[dataset.train_idx] * 3, ("a", "b", "c"), *features.std_mean(0)[::-1], "c")
    )


@pytest.mark.parametrize("name", ["small_cnn", "linear_head", *PLAIN, *ODD])
def test_every_net_keeps_the_contract_and_its_embedding_is_what_the_linear_layer_sees(name):
    dataset = data(32, classes=3)
    if name == "linear_head":
        net, x = linear_head(), torch.randn(4, 20)
    else:
        net, x = small_cnn(dataset) if name == "small_cnn" else timm_net(name, dataset), dataset.images
    net.eval()
    with torch.inference_mode():
        features = net.forward_features(x)
        emb = net.forward_head(features, pre_logits=True)
        classifier = net.get_classifier()
        assert isinstance(classifier, nn.Linear) and classifier.out_features == 3
        assert emb.shape == (4, net.head_hidden_size) and emb.std() > 0
        assert torch.equal(classifier(emb), net.forward_head(features))


@pytest.mark.parametrize("name", PLAIN)
def test_where_timms_classifier_is_one_linear_layer_our_net_is_timms(name):
    dataset = data(32, classes=3)
    net = timm_net(name, dataset).eval()
    theirs = timm.create_model(name, num_classes=3).eval()
    assert set(theirs.load_state_dict(net.net.state_dict(), strict=False).missing_keys) == {
        f"{theirs.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")
    }
    theirs.get_classifier().load_state_dict(net.get_classifier().state_dict())
    seen = []
    hook = next(m for m in net.net.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.inference_mode():
        ours = net.forward_head(net.forward_features(dataset.images))
        hook.remove()
        torch.testing.assert_close(theirs(seen[0]), ours)


def test_a_backbone_is_fed_at_timms_size_with_timms_mean_and_std():
    dataset = data(32)
    grey = dataset.images[:, :1].clone().fill_(51)
    for name, size, mean, std in [
        ("resnet10t", 176, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ("test_vit", 160, [0.5] * 3, [0.5] * 3),
    ]:  # fmt: skip
        net = timm_net(name, dataset)
        seen = []
        first = next(m for m in net.net.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        net.forward_features(grey)
        assert seen[0].shape == (4, 3, size, size)
        expected = (0.2 - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(seen[0], expected[:, None, None].expand_as(seen[0]), atol=1e-5, rtol=1e-5)
        assert nets.preferred_size(timm_config(name)) == size
    assert nets.preferred_size(asked().model) is None


def test_a_grey_image_is_the_same_in_all_three_channels():
    grey = data(32, channels=1)
    net = timm_net("resnet10t", grey).eval()
    with torch.inference_mode():
        assert torch.equal(net.forward_features(grey.images), net.forward_features(grey.images.repeat(1, 3, 1, 1)))


def test_weights_come_from_a_local_safetensors_file(shared):
    path = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    net = timm_net("tf_efficientnet_lite0", data(classes=3), f"model.weights={path}").net
    file, ours = load_file(path), net.state_dict()
    assert file.keys() - ours.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(ours[name], file[name]) for name in ours)


def saved(folder, name, suffix, **options):
    torch.manual_seed(1)
    state = timm.create_model(name, **options).state_dict()
    path = folder / f"{name}{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return path, state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file_whatever_classifier_it_holds(tmp_path, suffix):
    for classes in (0, 2, 7):
        path, state = saved(tmp_path, "test_resnet", suffix, num_classes=classes)
        net = timm_net("test_resnet", data(classes=2), f"model.weights={path}").net
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_position_embeddings_of_a_file_are_fitted_to_another_image_size(tmp_path):
    path, state = saved(tmp_path, "test_vit", ".pth", img_size=160)
    options = (f"model.weights={path}", "+model.options.img_size=64")
    net = nets.timm_net(timm_config("test_vit", *options), data(classes=2)).net
    assert state["pos_embed"].shape[1] == 101 and net.pos_embed.shape[1] == 17
    assert torch.equal(net.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_weights_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, save):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    save({"conv1.weight": Trap(sprung)}, path)
    with pytest.raises(UserError, match=r"weights\.pth cannot be read as weights"):
        timm_net("test_resnet", data(), f"model.weights={path}")
    assert not sprung.exists()


def test_a_weights_file_that_is_missing_cut_short_or_of_another_network_is_named(tmp_path):
    whole, _ = saved(tmp_path, "test_resnet", ".safetensors")
    (tmp_path / "short.safetensors").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 not weights")
    saved(tmp_path, "test_vit", ".pth")
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "shape.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for file, complaint in [
        ("nowhere.pth", "there is no such file"),
        ("short.safetensors", "cannot be read as weights"),
        ("photo.pth", "cannot be read as weights"),
        ("test_vit.pth", r"does not fit test_resnet: it lacks \d+ of \d+ entries, conv1"),
        ("shape.pth", "does not fit test_resnet: .*conv1.weight"),
        ("list.pth", "cannot be read as weights"),
    ]:
        with pytest.raises(UserError, match=f"model.weights=.*{file}.*{complaint}"):
            timm_net("test_resnet", data(), f"model.weights={tmp_path / file}")


@pytest.mark.parametrize(
    "name, options, complaint",
    [
        ("resnet_18", (), "model.name=resnet_18: timm has no such model. Did you mean .*resnet18"),
        ("resnet18.a1_in2k", (), "Did you mean .*resnet18.a1_in1k"),
        ("resnet10t", ("+model.options.drop_rat=0.1",), "resnet10t.*drop_rat.*timm cannot build it: TypeError"),
    ],
)
def test_a_misspelt_model_or_option_is_named_with_its_near_misses(name, options, complaint):
    with pytest.raises(UserError, match=complaint):
        nets.preferred_size(timm_config(name, *options))


def test_without_a_network_the_hub_is_given_up_at_once_and_its_cache_is_still_used(tmp_path):
    # A process of its own, for huggingface_hub reads its settings once; nothing listens on port 9.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_nets import asked, data, nets\n"
        "nets.timm_net(asked('model=timm', 'model.name=test_resnet').model, data())\n"
    )
    address = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    environment = os.environ | address
    environment.pop("HF_HUB_OFFLINE", None)

    def build():
        command = [sys.executable, "-W", "ignore", "-c", program, str(Path(__file__).parent)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    start = time.perf_counter()
    result = build()
    assert result.returncode == 1 and time.perf_counter() - start < 40  # huggingface_hub alone: 48 s of waiting
    assert "UserError: The weights of test_resnet could not be downloaded" in result.stderr
    assert "model.weights=" in result.stderr and "Retrying" not in result.stderr

    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    whole, _ = saved(tmp_path, "test_resnet", ".safetensors")
    whole.rename(repository / "snapshots" / ("0" * 40) / "model.safetensors")
    result = build()
    assert result.returncode == 0, result.stderr


def test_a_built_net_leaves_the_global_generator_as_it_was():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for overrides in ([], ["model=timm", "model.name=test_resnet", "model.pretrained=false"]):
        engine.build(asked(*overrides), data(), 0)
    assert torch.equal(torch.get_rng_state(), before)
