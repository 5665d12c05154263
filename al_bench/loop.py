"""The experiment. Each round: fit, measure, predict the pool, select, label, record."""

import itertools
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from al_bench import observe, pictures, replay, rng, signals, stopping, tracking
from al_bench.config import Annotator, Config, Extractor, Head, Mode
from al_bench.data import Dataset, sources
from al_bench.data.oracle import Oracle
from al_bench.data.pool import Pool, check_budget, start
from al_bench.labelling.oracle import PersonOracle
from al_bench.metrics import measure, own_metrics, try_out
from al_bench.models import features, hardware, nets
from al_bench.models.classifier import Classifier
from al_bench.models.first_fit import FirstFit
from al_bench.models.learner import Learner, Prediction
from al_bench.models.logistic import learner_of
from al_bench.models.warm_start import WarmStart
from al_bench.records import RoundRecord
from al_bench.store import RunStore
from al_bench.strategies import Strategy, load
from al_bench.strategies.guard import select
from al_bench.strategies.uncertainty import average_prediction
from al_bench.waiting import wait_for

log = logging.getLogger("al_bench")

PARTS = ("fit", "evaluate", "committee", "predict", "select")  # of a round; their seconds are recorded


def run(c: Config, store: RunStore) -> None:
    """Run the rounds that `store` lacks. The last round acquires nothing."""
    strategy = load(c.strategy)
    own = own_metrics(c.metrics)
    to_replay = replay.runs(c) if strategy.needs.record else []
    learner, oracle, pool, records, stop = begin(c, store, strategy)
    try_out(own, len(learner.dataset.test_labels_V), learner.dataset.n_classes)
    replayed = replay.picks(c, to_replay, store.info(), records) if to_replay else []
    warm, test = WarmStart(c.trainer.start, store.folder / "weights"), None
    first_fit = FirstFit(c, learner, "/".join(store.folder.parts[-6:]), store.info())
    track = store.at_end.enter_context(tracking.opened(c, store.folder, learner.dataset.class_names, records))
    announce(c, store, records)
    for round in itertools.count(len(records)):
        if records and not records[-1].acquired:
            break
        signals.stop_if_asked()
        seconds = dict.fromkeys(PARTS, 0.0)
        # Train on all labels so far, from the weights that trainer.start names.
        with timed(seconds, "fit"):
            net = warm.load(learner.build(round), records)
            store.identify_weights(model=nets.weights_version(c.model))  # a file may be replaced between two rounds
            fit = first_fit.fit(net, pool, round)
        # Measure. Test labels are read here only.
        with timed(seconds, "evaluate"):
            validation = learner.validate(net, pool)
            weights_from, kept_validation = warm.keep(net, validation, records, round)
            test = learner.test(net, round)
            metrics = measure(average_prediction(test.log_probs_PSC).float(), learner.dataset.test_labels_V, own)
        # Stop, or let the strategy choose.
        stopped = stop.reason(round, pool, metrics, kept_validation)
        if stopped:
            acquired = Acquired()
        elif replayed:
            acquired = Acquired(replayed[round], len(pool.unlabelled_P))
        else:
            k = c.budget.query_of(round)
            acquired = acquire(strategy.at(round), learner, net, pool, k, round)
        # The record is the checkpoint: on disk before labels are asked for.
        signals.stop_if_asked()
        store.note(stopped=stopped)
        record = RoundRecord(
            round=round, n_labelled=len(pool.labelled_L), n_val=c.budget.validation, metrics=metrics,
            validation=validation, acquired=acquired.idx_K.tolist(), weights_from=weights_from, epochs=fit.epochs,
            steps=fit.steps, fit_from=fit.run, history=net.history, seconds=seconds | fit.seconds | acquired.seconds,
            n_candidates=acquired.n_candidates,
            peak_memory=hardware.peak_memory(learner.device), n_foreign=len(pool.open_set_O),
            class_counts=pool.labels_L.bincount(minlength=learner.dataset.n_classes).tolist(),
        )  # fmt: skip
        store.append(record)
        warm.forget_others(weights_from)
        log.info(line(record, records[-1] if records else None))
        records.append(record)
        if store.person:
            store.person.trained(learner, net, pool)
        pool = pool.acquire(acquired.idx_K, oracle)  # after the record: a person may take days
        track(records, partial(tracking.picked, learner, net, pool, record.n_labelled, c.logger.images))
    finish(c, store, learner.dataset, records, test)


def begin(
    c: Config, store: RunStore, strategy: Strategy
) -> tuple[Learner, Oracle, Pool, list[RoundRecord], stopping.StopRule]:
    """Load data and fixed features, draw the splits and the initial set, and replay the finished rounds on them.

    Raises UserError. A bad option of the strategy or the optimizer and a missing reference are reported before images
    are decoded, everything else before anything is trained.
    """
    observe.try_settings(strategy, c.model)
    reference = stopping.find_reference(c)
    source = sources.find(c.dataset, nets.preferred_size(c.model), c.cache_dir)
    dataset, oracle = sources.load(c.dataset, source, c.seed, c.stressor, c.cache_dir, store.folder.parents[3])
    if c.oracle is Annotator.person:
        oracle = PersonOracle(c, dataset, source.files, partial(wait_for, store))
        if store.person:
            store.person.decoded(oracle.paths, dataset.images)
    check_budget(len(dataset.train_idx), c.budget)
    dataset = features.freeze(c, dataset) if c.model.mode is Mode.frozen else dataset
    learner = learner_of(c, dataset)
    for stage in strategy.stages:
        observe.try_dropout(stage, learner)
    needs_features = any(stage.needs.features for stage in strategy.stages)
    used = c.features.extractor if needs_features or c.budget.start in observe.COLD_STARTS else None
    learner = replace(learner, features_NF=features.fixed_features(c, dataset) if used else None)
    learner = replace(learner, truth_N=oracle.reveal_all() if strategy.needs.oracle else None)
    pool = start(dataset.train_idx, oracle, c.budget, c.seed, observe.initial_draw(c.budget.start, learner))
    dataset = oracle.tested(dataset)
    learner = replace(learner, dataset=dataset)
    sets = pool.facts()
    if c.oracle is Annotator.person:  # whether an image has a class may be corrected: compare what was drawn
        drawn = torch.cat([pool.labelled_L, pool.open_set_O]).sort().values
        sets = {"initial_set": replace(pool, labelled_L=drawn).facts()["initial_set"]}
    store.identify(dataset.facts(), sets)
    if used is Extractor.backbone:
        store.identify_weights(features=nets.weights_version(c.features))
    store.note(features=used.name if used else None)
    if c.model.head is Head.logistic and (c.trainer.test_passes or any(stage.n_passes for stage in strategy.stages)):
        store.note(passes="weights drawn from the Laplace approximation of the logistic head, with its full Hessian")
    if asking := [stage for stage in strategy.stages if stage.needs.held_out]:
        held_out = any(observe.holds_out(stage, c.model) for stage in asking)
        store.note(held_out="by five refits of the logistic head" if held_out else None)
    records = store.records()
    for past in records:
        pool = pool.acquire(torch.tensor(past.acquired, dtype=torch.int64), oracle)
    stop = stopping.stop_rule(c, reference, dataset)
    store.note_hardware(**hardware.begin_run(c.trainer, learner.images, learner.device))
    return learner, oracle, pool, records, stop


@dataclass(frozen=True)
class Acquired:
    """What the strategy chose in one round. Empty if the run stops."""

    idx_K: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # of the data set, as chosen
    n_candidates: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def acquire(strategy: Strategy, learner: Learner, net: Classifier, pool: Pool, k: int, round: int) -> Acquired:
    """Train the other members, predict the candidates, and let the strategy choose k of them, or all that are left."""
    seconds: dict[str, float] = {}
    positions = observe.candidates(strategy, len(pool.unlabelled_P), learner.seed, round)
    with timed(seconds, "committee"):
        members = observe.committee(strategy, learner, net, pool, round)
    with timed(seconds, "predict"):
        view = observe.pool_view(strategy, learner, members, pool, positions, round)
    signals.stop_if_asked()
    with timed(seconds, "select"):
        stream = rng.stream(learner.seed, "select", round)
        chosen = positions[select(strategy, view, min(k, view.n_pool), stream, round)]
    return Acquired(pool.to_indices(chosen), len(positions), seconds)


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 3)


def announce(c: Config, store: RunStore, records: list[RoundRecord]) -> None:
    log.info(f"{c.dataset.name}, {c.model.name}, {c.strategy['name']}, seed {c.seed}")
    if c.strategy.get("oracle"):
        log.info(
            "This is an oracle line: it chooses with the labels of the pool and of the test images, and shows how much "
            "is left to gain. A report never ranks it."
        )
    if records:
        log.info(f"{len(records)} rounds are there already; going on after them.")
    log.info(f"{'round':>5}  {'labels':>7}  {'test accuracy':<17}  {'fit s':>7}  {'predict s':>9}  {'select s':>8}")
    for before, record in zip([None, *records], records, strict=False):
        log.info(line(record, before))


def line(record: RoundRecord, before: RoundRecord | None) -> str:
    accuracy = record.metrics["accuracy"]
    change = f"{100 * (accuracy - before.metrics['accuracy']):+.2f}" if before else ""
    seconds = record.seconds
    return (
        f"{record.round:>5}  {record.n_labels:>7,}  {100 * accuracy:6.2f} %  {change:>7}  "
        f"{seconds['fit']:>7.1f}  {seconds['predict']:>9.1f}  {seconds['select']:>8.2f}"
    )


def finish(c: Config, store: RunStore, dataset: Dataset, records: list[RoundRecord], test: Prediction | None) -> None:
    """Draw the pictures and say how the run ended. test: of the last round, or None if no round was left to run."""
    draw_pictures(store.folder, f"{c.strategy['name']}, seed {c.seed}", dataset, records, test)
    last = records[-1]
    validation = f" and {last.n_val:,} validation labels" if last.n_val else ""
    stopped = store.info().get("stopped", "the reason is lost")
    log.info(f"Stopped: {stopped}, with {last.n_labelled:,} training labels{validation}.")
    if last.n_foreign:
        log.info(f"{last.n_foreign:,} more acquired images belong to no class: their labels were counted and not used.")
    log.info(f"Results: {store.folder}")
    log.info(f"Learning curve: {store.folder / 'learning_curve.png'}")


def draw_pictures(
    folder: Path, name: str, dataset: Dataset, records: list[RoundRecord], test: Prediction | None
) -> None:
    """A picture that cannot be drawn is left out with a warning: it must not fail a finished run."""
    draw = {"learning_curve.png": partial(pictures.learning_curve, records=records, name=name)}
    if dataset.pictures is not None:
        draw["acquired.jpg"] = partial(pictures.picked, dataset=dataset, records=records)
        if test:
            draw["most_uncertain.jpg"] = partial(
                pictures.most_uncertain, dataset=dataset, log_probs_VSC=test.log_probs_PSC
            )
    for file, draw_it in draw.items():
        try:
            draw_it(folder / file)
        except Exception as error:
            log.warning(f"{file} could not be drawn, and the run is finished without it: {error!r}")
            log.debug(traceback.format_exc())
