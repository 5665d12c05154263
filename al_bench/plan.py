"""plan=true: what a run would acquire, compute and hold in memory. Nothing is decoded or trained."""

from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from al_bench import observe, process, replay
from al_bench.config import Config, Extractor, Head, Mode
from al_bench.data import Dataset, pool, sources
from al_bench.data.stressors import Split
from al_bench.models import contract, nets
from al_bench.models.features import PCA_HEAD
from al_bench.models.learner import images_trained
from al_bench.recipe import run_folder
from al_bench.strategies import Strategy, load


@dataclass(frozen=True)
class Plan:
    labels: list[int]  # training labels at each fit
    trained: list[int]  # images that each round's nets train on, with repeats; fewer if a fit stops early
    predicted: list[int]  # pool images predicted after each fit, once for each pass and member
    tested: int  # test images predicted after each fit, once for each pass
    memory: dict[str, int]  # bytes of each part


def show(c: Config) -> None:
    plan = make(c)
    table = Table(title=str(run_folder(c)), title_justify="left")
    for name in ("round", "labels", "acquired after", "images trained", "pool images predicted"):
        table.add_column(name, justify="right")
    acquired = [after - before for before, after in zip(plan.labels, plan.labels[1:], strict=False)] + [0]
    for row in zip(range(len(plan.labels)), plan.labels, acquired, plan.trained, plan.predicted, strict=True):
        table.add_row(*(f"{n:,}" for n in row))
    console = Console(highlight=False)
    console.print(table)
    if c.model.head is Head.logistic:
        console.print(
            "model.head=logistic trains to its optimum on all labelled images at once: model.optimizer and the keys of "
            "trainer on steps, epochs, batches and the schedule have no effect. An image is counted once a fit."
        )
    n = c.budget.validation
    console.print(f"Labels acquired: {plan.labels[-1] + n:,} ({plan.labels[-1]:,} to train on, {n:,} for validation)")
    console.print(
        f"Work: {len(plan.labels)} fits, at most {sum(plan.trained):,} images trained, {sum(plan.predicted):,} pool "
        f"images predicted, {plan.tested:,} test images predicted after each fit"
    )
    parts = ", ".join(f"{name} {_megabytes(size)}" for name, size in plan.memory.items())
    console.print(f"Memory: about {_megabytes(sum(plan.memory.values()))} ({parts})")


def make(c: Config) -> Plan:
    """Raises UserError, as the run would, for options that do not fit and for a budget that the pool does not have."""
    strategy = load(c.strategy)
    observe.try_settings(strategy, c.model)
    if strategy.needs.record:
        replay.runs(c)
    source = sources.find(c.dataset, nets.preferred_size(c.model), c.cache_dir)
    used = sources.stressed(c.dataset, source, torch.arange(len(source.labels_N)), c.seed, c.stressor)
    pool.check_budget(len(used.train_idx), c.budget)
    n_train = len(used.train_idx) - c.budget.validation
    labels = label_counts(c, n_train)
    choosing = [strategy.at(round) for round in range(len(labels) - 1)]  # the last round acquires nothing
    n_nets = [stage.members or 1 for stage in choosing] + [1]
    return Plan(
        labels=labels,
        trained=[n * _trained(c, labels[round], round) for round, n in enumerate(n_nets)],
        predicted=[_predicted(c, stage, n_train - n) for stage, n in zip(choosing, labels, strict=False)] + [0],
        tested=len(used.test_idx) * (c.trainer.test_passes or 1),
        memory=_memory(c, source.image_shape, used, strategy.stages),
    )


def _predicted(c: Config, strategy: Strategy, n_pool: int) -> int:
    """Predictions of pool images in one round."""
    needs, by_model = strategy.needs, c.features.extractor is Extractor.model
    predicts = needs.predictions or needs.embeddings or (needs.features and by_model)
    return predicts * min(n_pool, strategy.candidates or n_pool) * _times(strategy)


def _times(strategy: Strategy) -> int:
    return (strategy.members or 1) * (strategy.n_passes or 1)


def _trained(c: Config, n_labelled: int, round: int) -> int:
    """The images that a fit trains on, repeats included; of a fit to the optimum without them."""
    return n_labelled if c.model.head is Head.logistic else images_trained(c.trainer, n_labelled, round)


def label_counts(c: Config, n_train: int) -> list[int]:
    """The number of training labels at each fit. n_train: images that may be labelled for training."""
    if c.budget.initial is None:
        return [n_train]
    counts = [c.budget.initial]
    while counts[-1] < n_train and len(counts) - 1 != c.budget.rounds:
        counts.append(min(n_train, counts[-1] + c.budget.query_of(len(counts) - 1)))
    return counts


def _memory(c: Config, image_shape: tuple[int, ...], used: Split, stages: list[Strategy]) -> dict[str, int]:
    """Estimated bytes of the program and its arrays. The work space of convolutions and of the strategy comes on top.

    stages: of the strategy; the one whose view is the largest counts.
    """
    one = torch.arange(1)
    computed = len(image_shape) == 1  # features that were computed elsewhere
    image = torch.zeros(1, *image_shape, dtype=torch.float32 if computed else torch.uint8)
    mean, std = tuple(c.dataset.mean), tuple(c.dataset.std)
    fake = Dataset(c.dataset.name, image, one, one, one, used.class_names, mean, std, checksum="")
    net = _net(c, fake).eval()
    frozen = c.model.mode is Mode.frozen
    weights = sum(p.nbytes for p in net.parameters())
    n_train, n_classes = len(used.train_idx), len(used.class_names)
    seen = [
        (net.head_hidden_size + _times(stage) * n_classes) * min(n_train, stage.candidates or n_train)
        for stage in stages
    ]
    activations = 0 if frozen else _activations(net, image) * c.trainer.batch_size
    return {
        "the program": process.peak_memory(),
        **({} if computed else {"images": image.nbytes * len(used.labels_N)}),
        **({"features": 4 * net.head_hidden_size * len(used.labels_N)} if frozen else {}),
        "weights, gradients and optimiser": weights if frozen else 4 * weights,
        "a training batch": 2 * activations,
        "predictions of the pool": 4 * max(seen),
    }


def _net(c: Config, fake: Dataset) -> nn.Module:
    """The net, without a backbone's pretrained weights. That of model=pca takes components in place of the images."""
    if c.model._target_ != PCA_HEAD:
        return contract.build(replace(c.model, pretrained=False, weights=None), fake)
    width = c.features.width
    return nets.LinearHead(replace(fake, images=torch.zeros(1, width), mean=(0.0,) * width, std=(1.0,) * width))


def _activations(net: nn.Module, image: Tensor) -> int:
    """Bytes of the outputs of all layers for one image, in float32."""
    sizes: list[int] = []
    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, out: sizes.append(4 * out.numel()))
    with torch.inference_mode():
        net.forward_head(net.forward_features(image))
    return sum(sizes)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
