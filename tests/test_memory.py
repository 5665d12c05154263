"""What a run holds must not grow with its rounds."""

import gc
import os
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from conftest import asked, run_here
from torch.optim import Optimizer

from al_bench import cli, loop, process
from al_bench.data.pool import Pool
from al_bench.models import hardware
from al_bench.models.classifier import Classifier
from al_bench.models.learner import Learner

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("machine")]


@pytest.fixture
def nothing_collected():
    """Python looks for circles of objects only now and then; here not at all."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive():
    """How many nets, optimizers and Trainers there are, and tensors of more than one number."""
    kinds = [type(thing) for thing in gc.get_objects()]  # isinstance would ask the things themselves
    counts = [sum(issubclass(kind, one) for kind in kinds) for one in (Classifier, Optimizer, pl.Trainer)]
    large = sum(issubclass(type(thing), torch.Tensor) and thing.numel() > 1 for thing in gc.get_objects())
    return [*counts, large]


@pytest.mark.parametrize(
    "overrides",
    [
        ("logger=csv", "strategy=badge"),
        ("trainer.schedule=constant", "trainer.early_stopping.patience=1", "trainer.start=best"),
        ("strategy=bald", "strategy.passes=2", "strategy.members=2", "trainer.test_passes=2", "logger=tensorboard"),
    ],
)
def test_no_net_optimizer_or_trainer_outlives_its_round(overrides, tmp_path, nothing_collected, monkeypatch):
    counts = []  # as each round ends: this is asked for its record
    monkeypatch.setattr(hardware, "peak_memory", lambda device: counts.append(alive()) or 0)
    monkeypatch.setattr(loop, "finish", lambda *_: None)
    run_here(tmp_path, "trainer.max_steps=2", "budget.rounds=4", *overrides)
    assert len(counts) == 5
    nets, optimizers, trainers, tensors = zip(*counts, strict=True)
    committee = 2 if "strategy.members=2" in overrides else 1
    assert max(nets) <= committee + 1  # the round's, and one while a name still holds the round's before
    assert max(optimizers) == 0 and max(trainers) == 0
    assert max(tensors[2:4]) <= tensors[1], tensors  # no more after four rounds than after two


def test_a_fit_that_fails_and_a_prediction_that_fails_let_go_of_their_net(nothing_collected):
    images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    idx = torch.arange(4)
    pool = Pool(idx, idx % 2, torch.arange(4, 8), idx[:0], idx[:0])
    c = asked("trainer.max_steps=2", "trainer.progress=false")
    learner = Learner(c.model, c.trainer, SimpleNamespace(images=images), c.seed)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier, self.fails = torch.nn.Linear(64, 2), False

        def forward_features(self, x):
            if self.fails:
                raise RuntimeError("out of memory")
            return x.float().flatten(1)

        def forward_head(self, x, pre_logits=False):
            return x if pre_logits else self.classifier(x)

        def get_classifier(self):
            return self.classifier

    def attempt(act, fails):
        classifier = Classifier(Net(), c.model.optimizer, c.trainer.schedule)
        classifier.net.fails = fails
        try:
            act(classifier)
        except RuntimeError as error:
            assert fails and "out of memory" in str(error)
        return weakref.ref(classifier)

    for fails in (False, True):
        assert attempt(lambda net: learner.fit(net, pool, 0), fails)() is None
        assert attempt(lambda net: learner.predict(net, idx), fails)() is None


MANY_SIZES = """
import torch
from al_bench import process
process.prepare()
def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
net = torch.nn.Conv2d(1, 32, 3).to(memory_format=torch.channels_last)
def look(sizes):
    with torch.inference_mode():
        for n in sizes:
            net(torch.zeros(n, 1, 8, 8).to(memory_format=torch.channels_last))
    process.return_freed_memory()
    return used()
print(look(range(1, 300)), look(range(300, 800)))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured by Linux's own count")
def test_batches_of_ever_new_sizes_do_not_add_up():
    """The pool's last batch has another size in every round, and oneDNN keeps what it prepared for each."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env = {k: v for k, v in env.items() if k not in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")}
    asked = subprocess.run([sys.executable, "-c", MANY_SIZES], env=env, capture_output=True, text=True, check=True)
    early, late = map(float, asked.stdout.split())
    assert late - early < 10, (early, late)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured by Linux's own count")
def test_a_run_returns_what_it_held_to_its_end(tmp_path, monkeypatch):
    """joblib ends a worker that holds 300 MB more than after its first run, and a new one imports everything again."""

    def holds_to_its_end(c, store):
        torch.ones(10**8)

    def megabytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    process.prepare()
    monkeypatch.setattr(loop, "run", holds_to_its_end)
    cli.run_one(asked(f"results_dir={tmp_path}"))  # with all that is imported once
    before = megabytes()
    cli.run_one(asked(f"results_dir={tmp_path}", "seed=1"))
    assert megabytes() - before < 100
    before = megabytes()
    holds_to_its_end(None, None)
    assert megabytes() - before > 300  # the heap keeps what is freed until it is told to return it
    process.return_freed_memory()
