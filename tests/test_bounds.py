"""Each number of the configuration has bounds. A number out of its bounds is named before anything starts."""

import time
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest
import torch
from conftest import asked, command, seeded

from al_bench.bounds import BOUNDS, THREADS
from al_bench.config import Config
from al_bench.data.datamodule import BatchOrder
from al_bench.errors import UserError
from al_bench.models import nets


def numbers(schema: type = Config, prefix: str = "") -> dict[str, set[type]]:
    """Return every key of the schema that holds numbers, with their types."""
    found = {}
    for f in fields(schema):
        if is_dataclass(f.type):
            found |= numbers(f.type, f"{prefix}{f.name}.")
        elif kinds := {int, float} & {f.type, *get_args(f.type)}:
            found[prefix + f.name] = kinds
    return found


NUMBERS = numbers()


def test_every_number_of_the_schema_has_a_bound():
    assert NUMBERS.keys() <= BOUNDS.keys()
    assert BOUNDS.keys() - NUMBERS.keys() == {
        "budget.query",  # a number or a list
        "strategy.passes", "strategy.members", "strategy.candidates",
    }  # fmt: skip


@pytest.mark.parametrize("key", [key for key, kinds in NUMBERS.items() if float in kinds])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1.5", "1e300"])
def test_a_number_that_is_none_or_endless_is_refused(key, value):
    lists = key in ("dataset.mean", "dataset.std")
    with pytest.raises(UserError, match=rf"^{key}=\\[?-?(nan|inf|1\\.5|1e\\+300)".replace("\\\\", "\\")):
        asked(f"{key}=[{value}]" if lists else f"{key}={value}")


@pytest.mark.parametrize("key", [key for key, kinds in NUMBERS.items() if int in kinds])
@pytest.mark.parametrize("value", [-1, 10**18])
def test_a_count_that_is_negative_or_absurd_is_refused(key, value):
    if key == "seed" and value > 0:
        assert asked(f"seed={value}").seed == value  # any seed is allowed
        return
    with pytest.raises(UserError, match=f"^{key}={value}: "):
        asked(f"{key}={value}")


@pytest.mark.parametrize(
    "override, message",
    [
        ("dataset.std=[0.3,inf,0.3]", r"dataset.std=\[0.3, inf, 0.3\]: above 0 and at most 1"),
        ("dataset.mean=[123.7,116.3,103.5]", r"dataset.mean=.*: from 0 to 1 \(of images in \[0, 1\]\)"),
        ("model.optimizer.lr=nan", "model.optimizer.lr=nan: a finite number"),
        ("model.optimizer.lr=inf", "model.optimizer.lr=inf: a finite number"),
        ("+model.optimizer.betas=[0.9,inf]", "model.optimizer.betas=.*: a finite number"),
        ("strategy.passes=2.5", "strategy.passes=2.5: from 2 to 10,000, or null"),
        ("strategy.members=true", "strategy.members=True: from 2"),
        ("strategy.candidates=many", "strategy.candidates=many: 1 or more, or null"),
        ("strategy.candidates=10", r"strategy.candidates=10: 20 or more \(budget.query\)"),
        ("trainer.threads=100000", rf"trainer.threads=100000: from 1 to {THREADS} \(\d+ cores are here\)"),
        ("trainer.num_workers=100000", rf"trainer.num_workers=100000: from 0 to {THREADS} \("),
        ("trainer.batch_size=1000000", "trainer.batch_size=1000000: from 2 to 65,536"),
    ],
)
def test_a_number_outside_its_bound_is_told_with_the_bound(override, message):
    with pytest.raises(UserError, match=message):
        asked(override)


def test_the_command_names_the_number_and_computes_nothing(tmp_path):
    done = command(tmp_path, "trainer.threads=100000", "plan=true")
    assert done.returncode == 1 and "trainer.threads=100000: from 1 to" in done.stderr and not list(tmp_path.iterdir())


# --- Batches


def slow_order(n: int, batch_size: int, steps: int, stream: torch.Generator) -> list[torch.Tensor]:
    """Cut an endless sequence of shuffled passes into batches, pass by pass."""
    left, batches = torch.empty(0, dtype=torch.int64), []
    for _ in range(steps):
        while len(left) < batch_size:
            rows = torch.randperm(n, generator=stream)
            left = torch.cat([left, rows.repeat(2) if n == 1 else rows])
        batches.append(left[:batch_size])
        left = left[batch_size:]
    return batches


@pytest.mark.parametrize("n, batch_size", [(1, 2), (1, 7), (3, 2), (5, 5), (7, 64), (20, 64), (64, 64), (130, 64)])
def test_batches_are_the_endless_row_of_a_slow_reference(n, batch_size):
    order = BatchOrder(n, batch_size, 9, seeded())
    found, stream = [*order, *order], seeded()  # the second epoch continues the sequence
    expected = slow_order(n, batch_size, 18, stream)
    assert len(found) == 18 and all(map(torch.equal, found, expected))


def test_a_large_batch_of_few_images_takes_no_quadratic_time():
    start = time.process_time()
    assert len(next(iter(BatchOrder(4, 2**18, 1, seeded())))) == 2**18
    assert time.process_time() - start < 10  # it would take minutes if each pass copied all before it


# --- Options of a net


@pytest.mark.parametrize(
    "options, message",
    [
        ("in_chans: 1", "cannot look at an image of three colours"),
        ("in_chans: 4", "cannot look at an image of three colours"),
        ("global_pool: ''", r"numbers of the shape \[\d+, \d+, \d+\], and one embedding \[\d+\] is wanted"),
        ("num_classes: 5", "timm cannot build it"),
        ("features_only: true", "model.options"),
        ("pretrained: true", "timm cannot build it"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_when_the_net_is_built(digits_dataset, options, message):
    c = asked("model=timm", "model.name=test_resnet", "model.pretrained=false", f"+model.options={{{options}}}").model
    with pytest.raises(UserError, match=message):
        nets.timm_net(c, digits_dataset)


def test_the_trial_of_a_net_changes_neither_weights_nor_randomness(digits_dataset):
    built = []
    for tried in (False, True):
        c = asked("model=timm", "model.name=test_resnet", "model.pretrained=false").model
        nets._fitting.clear()
        if tried:
            nets.timm_net(c, digits_dataset)
        torch.manual_seed(0)
        net = nets.timm_net(c, digits_dataset)
        built.append((net.state_dict(), torch.rand(3)))
        assert net.training
    (first, after_first), (second, after_second) = built
    assert torch.equal(after_first, after_second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def digits_dataset():
    from al_bench.data import sources

    c = asked()
    return sources.load(c.dataset, sources.find(c.dataset, None, ""), 0)[0]
