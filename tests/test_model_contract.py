"""A user's net is checked against the contract of models/nets.py before anything is trained."""

from types import SimpleNamespace

import pytest
import torch
from conftest import command
from torch import nn

from al_bench.config import ModelConfig
from al_bench.errors import UserError
from al_bench.models import contract
from al_bench.models.dropout import DropoutPasses
from al_bench.models.nets import Normalise, SimpleCNN

DATA = SimpleNamespace(
    images=torch.arange(3 * 64, dtype=torch.uint8).view(3, 1, 8, 8), mean=(0.3,), std=(0.4,), n_classes=4
)


class Tiny(SimpleCNN):
    head_hidden_size = 5

    def __init__(self, c, dataset):
        super().__init__()
        self.normalise = Normalise(dataset.mean, dataset.std, scale=255, width=8)
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(2 * 36, 5), nn.Dropout(0.5))
        self.classifier = nn.Linear(5, dataset.n_classes)


class WithoutLayers(nn.Module):
    def __init__(self, c, dataset):
        super().__init__()
        self.head_hidden_size, self.classifier = 64, nn.Linear(64, dataset.n_classes)

    def forward_features(self, x):
        return x.flatten(1).float()

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.classifier(x)

    def get_classifier(self):
        return self.classifier


class Bare(nn.Module):
    def __init__(self, c, dataset):
        super().__init__()

    def forward_features(self, x):
        return x


class NoLinear(Tiny):
    def get_classifier(self):
        return nn.Sequential(self.classifier)


class Maps(Tiny):
    def forward_head(self, x, pre_logits=False):
        return x


class OtherHead(Tiny):
    """Adds to the logits what the last layer does not know."""

    def forward_head(self, x, pre_logits=False):
        out = super().forward_head(x, pre_logits)
        return out if pre_logits else 2 * out


class WantsColour(Tiny):
    def forward_features(self, x):
        return super().forward_features(x.expand(-1, 3, -1, -1))


class TwoClasses(Tiny):
    def __init__(self, c, dataset):
        super().__init__(c, dataset)
        self.classifier = nn.Linear(5, 2)


class OtherLayers(Tiny):
    def layers(self):
        return [self.normalise, *self.features, nn.Sigmoid(), *self.hidden, self.classifier]


class Quits(Tiny):
    def __init__(self, c, dataset):
        raise SystemExit(3)


def refuses(c, dataset):
    raise UserError("bring more images")


def wants_one(c):
    return Tiny(c, DATA)


def no_net(c, dataset):
    return "a net"


def built(name):
    return contract.build(ModelConfig(name="mine", _target_=f"{__name__}.{name}", optimizer={}), DATA)


@pytest.mark.parametrize("name", ["Tiny", "WithoutLayers"])
def test_a_net_that_keeps_the_contract_is_taken_as_it_is(name):
    torch.manual_seed(0)
    net, state = built(name), torch.get_rng_state()
    torch.manual_seed(0)
    fresh = globals()[name](None, DATA)
    assert all(map(torch.equal, net.state_dict().values(), fresh.state_dict().values()))  # batch norm's sums as well
    assert torch.equal(torch.get_rng_state(), state) and net.training


@pytest.mark.parametrize(
    "name, why",
    [
        ("Bare", "model mine: the net lacks head_hidden_size, forward_head, get_classifier. .*SimpleCNN"),
        ("NoLinear", r"get_classifier\(\) returned Sequential, and the last layer has to be an nn.Linear"),
        ("Maps", r"pre_logits=True\) has the shape \[2, 2, 6, 6\], and \[2, 5\] is wanted: images, head_hidden_size"),
        ("TwoClasses", "the last layer has 2 outputs, and there are 4 classes"),
        ("OtherHead", r"forward_head\(features\) gives other outputs than the last layer on the embedding"),
        ("WantsColour", r"its net failed \(RuntimeError: .*\)\. It gets uint8 \[2, 1, 8, 8\]\."),
        ("OtherLayers", r"layers\(\), run one after the other, give other outputs"),
        ("Quits", r"Quits failed \(SystemExit: it asks to end the process"),
        (
            "wants_one",
            r"wants_one failed \(TypeError: wants_one\(\) takes 1 positional argument but 2 were given\)\. "
            r"It is called as \(config.model, dataset\)",
        ),
        ("no_net", "its function returned str, and a torch.nn.Module is wanted"),
        ("refuses", "^bring more images$"),
        ("nothing", "model._target_=.*nothing cannot be loaded"),
    ],
)
def test_a_net_that_cannot_be_used_is_told_with_the_reason(name, why):
    with pytest.raises(UserError, match=why):
        built(name)


def test_passes_with_dropout_say_that_they_need_the_layers():
    with pytest.raises(UserError, match="give it a method layers"):
        DropoutPasses(built("WithoutLayers"), 2, DATA.images[:1], torch.Generator())


@pytest.mark.parametrize("extra", [(), ("plan=true",)])
def test_a_run_and_a_plan_build_the_net_by_the_contract(extra, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    yaml = "name: mine\n_target_: nets_of_mine.two\noptimizer: {_target_: torch.optim.Adam, lr: 0.001}\n"
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(yaml)
    (tmp_path / "nets_of_mine.py").write_text("def two(c, dataset):\n    return 2\n")
    done = command(tmp_path, "--config-dir=conf", "model=mine", *extra)
    assert done.returncode == 1 and "al_bench: model mine: its function returned int" in done.stderr
