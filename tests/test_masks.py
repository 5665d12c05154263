"""trainer.dropout_masks=bytes."""

import pytest
import torch
from conftest import asked, seeded
from scipy.stats import chisquare
from test_learner import configured, fitted, same, setting
from torch import nn

from al_bench.errors import UserError
from al_bench.models.masks import byte_masks


def drawn(layer, x):
    torch.manual_seed(0)
    with byte_masks(layer):
        return layer(x)


@pytest.mark.parametrize("p", [0.25, 0.5, 3 / 256])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (64, 5, 6, 7)])
def test_entries_are_dropped_independently_with_the_layers_probability_and_the_rest_is_scaled(p, shape):
    layer, x = nn.Dropout(p), torch.rand(shape, generator=seeded()) + 1
    kept_N = torch.stack([drawn_again.flatten() != 0 for drawn_again in several(layer, x, 400)])
    out = drawn(layer, x)
    torch.testing.assert_close(out[out != 0], (x / (1 - p))[out != 0])
    assert abs(kept_N.double().mean() - (1 - p)) < 4 * (p * (1 - p) / kept_N.numel()) ** 0.5
    if shape == (7, 3):  # neither entries side by side nor draws in a row go together
        pairs = (2 * kept_N[:, :-1].int() + kept_N[:, 1:].int()).flatten().bincount(minlength=4)
        in_a_row = (2 * kept_N[:-1].int() + kept_N[1:].int()).flatten().bincount(minlength=4)
        expected = torch.tensor([p * p, p * (1 - p), p * (1 - p), (1 - p) ** 2])
        for found in (pairs, in_a_row):
            assert p < 0.1 or chisquare(found, (expected * found.sum()).numpy()).pvalue > 1e-4


def several(layer, x, n):
    torch.manual_seed(3)
    with byte_masks(layer):
        return [layer(x) for _ in range(n)]


def test_all_byte_values_come_equally_often():
    n, above = 2**20, torch.zeros(2**20, dtype=torch.int64)
    for k in (1, *range(32, 256, 32)):
        above += drawn(nn.Dropout(k / 256), torch.ones(n)) != 0  # the same bytes each time; those below k are dropped
    shares = torch.tensor([1, 31, *[32] * 7]) / 256
    assert chisquare(above.bincount(minlength=9), (shares * n).numpy()).pvalue > 1e-4


def test_gradients_flow_through_what_is_kept_and_the_memory_format_stays():
    x = torch.rand(2, 3, 4, 4, generator=seeded()).to(memory_format=torch.channels_last).requires_grad_()
    out = drawn(nn.Dropout(0.5), x)
    out.sum().backward()
    assert torch.equal(x.grad, 2.0 * (out != 0)) and out.is_contiguous(memory_format=torch.channels_last)
    half = drawn(nn.Dropout(0.5), torch.ones(50, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16 and set(half.tolist()) == {0.0, 2.0}


def test_outside_of_training_and_of_the_block_the_layer_is_torchs_own():
    layer, x = nn.Dropout(0.5), torch.ones(1000)
    with byte_masks(layer):
        assert torch.equal(layer.eval()(x), x)
    layer.train()
    torch.manual_seed(0)
    theirs = layer(x)
    torch.manual_seed(0)
    assert torch.equal(theirs, nn.functional.dropout(x, 0.5)) and "forward" not in vars(layer)


def test_other_probabilities_and_layers_are_left_alone_and_a_net_without_any_is_refused():
    net = nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.5), nn.Dropout(0.0))
    with (
        pytest.raises(UserError, match="no nn.Dropout with a probability that is a multiple of 1/256"),
        byte_masks(net),
    ):
        pass
    with byte_masks(nn.Sequential(net, nn.Dropout(0.5))):
        assert all("forward" not in vars(layer) for layer in net)


def test_a_fit_with_them_is_repeatable_and_another_than_torchs():
    c, (dataset, pool) = configured("trainer.dropout_masks=bytes"), setting()
    first, again, theirs = (fitted(c, dataset, pool)[0] for c in (c, c, configured()))
    assert same(first, again) and first.history == again.history and not same(first, theirs)
    with pytest.raises(UserError, match="has no dropout: set trainer.dropout_masks=null"):
        asked("model.mode=frozen", "model.head=logistic", "trainer.dropout_masks=bytes")
