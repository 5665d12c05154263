"""The experiment: split -> fit -> test -> predict -> select -> label -> record, round after round."""

import itertools
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from al_bench import pictures, query, rng, signals, tracking
from al_bench.config import Config, Extractor, Mode, StopConfig, Weights
from al_bench.data import Dataset, sources
from al_bench.data.oracle import Oracle
from al_bench.data.pool import Pool, check_budget, start
from al_bench.errors import UserError
from al_bench.metrics import classification_metrics, loss_and_accuracy
from al_bench.models import engine, nets
from al_bench.models.classifier import Classifier, build_optimizer
from al_bench.models.dropout import Passes
from al_bench.records import RoundRecord
from al_bench.store import RunStore, reference
from al_bench.strategies import Strategy, load
from al_bench.strategies.guard import select
from al_bench.strategies.uncertainty import mean_log_probs

log = logging.getLogger("al_bench")


def run(c: Config, store: RunStore) -> None:
    """Run the rounds that `store` does not hold yet, up to one that buys nothing."""
    strategy = load(c.strategy)
    build_optimizer(c.model.optimizer, [nn.Parameter(torch.zeros(1, 1))])  # a bad one is told before images are decoded
    dataset, oracle, pool, features, records = begin(c, store, strategy)
    target = find_target(c, dataset)
    images = engine.on_device(c.trainer, dataset.images)
    store.note_hardware(**engine.use_hardware(c.trainer, images))
    test = None
    track = store.at_end.enter_context(tracking.opened(c, store.folder, dataset.class_names, records))
    announce(c, store, records)

    for round in itertools.count(len(records)):
        if records and not records[-1].acquired:
            break
        signals.stop_if_asked()
        seconds = dict.fromkeys(("fit", "evaluate", "committee", "predict", "select"), 0.0)
        with timed(seconds, "fit"):
            classifier = engine.build(c, dataset, round)
            store.identify_weights(model=nets.weights_version(c.model))  # a file may be replaced between two rounds
            if c.trainer.start is not Weights.fresh and records:
                engine.load_weights(classifier, store.weights_path(records[-1].weights_from))
            epochs, steps = engine.fit(c, classifier, images, pool, round)
        with timed(seconds, "evaluate"):
            validation = judge(c, classifier, images, pool)
            weights_from = keep_best(c, store, classifier, records, validation, round)
            passes = testing_passes(c, classifier, images, round)
            test = engine.predict(c.trainer, classifier, images, dataset.test_idx, passes=passes)
            metrics = classification_metrics(mean_log_probs(test.log_probs_PSC).float(), dataset.test_labels_V)
        kept = validation if weights_from == round else records[weights_from].validation
        why = why_stop(c, round, pool, {"test": metrics["accuracy"], "validation": kept and kept["accuracy"]}, target)
        acquired, n_candidates = torch.empty(0, dtype=torch.int64), 0
        if why is None:
            positions = query.candidates(c, strategy.candidates, len(pool.unlabelled_P), round)
            with timed(seconds, "committee"):
                committee = query.committee(c, strategy.members, classifier, dataset, images, pool, round)
            with timed(seconds, "predict"):
                view = query.look(c, strategy, committee, images, features, pool, positions, dataset.n_classes, round)
            signals.stop_if_asked()
            with timed(seconds, "select"):
                k, stream = min(c.budget.query, view.n_pool), rng.stream(c.seed, "select", round)
                chosen = positions[select(strategy, view, k, stream, round)]
                acquired, n_candidates = pool.to_indices(chosen), len(positions)
        signals.stop_if_asked()
        after = pool.acquire(acquired, oracle)
        store.note(stopped=why)
        record = RoundRecord(
            round, len(pool.labelled_L), c.budget.validation, metrics, validation, acquired.tolist(),
            weights_from, epochs, steps, classifier.history, seconds, engine.peak_memory(c.trainer), n_candidates,
            len(pool.open_set_O), pool.labels_L.bincount(minlength=dataset.n_classes).tolist(),
        )  # fmt: skip
        store.append(record)
        if c.trainer.start is not Weights.fresh:
            store.keep_weights(weights_from)
        log.info(line(record, records[-1] if records else None))
        records.append(record)
        pool = after
        track(records, partial(tracking.picked, c, classifier, dataset, images, pool, record.n_labelled))

    finish(c, store, dataset, records, test)


def begin(
    c: Config, store: RunStore, strategy: Strategy
) -> tuple[Dataset, Oracle, Pool, Tensor | None, list[RoundRecord]]:
    """Data, splits, initial set and fixed features, and the finished rounds replayed on them."""
    if stops_at_reference(c):
        reference(c)  # a missing one is told before images are decoded
    source = sources.find(c.dataset, nets.preferred_size(c.model), c.cache_dir)
    dataset, oracle = sources.load(c.dataset, source, c.seed, c.stressor, c.cache_dir, store.folder.parents[3])
    check_budget(len(dataset.train_idx), c.budget)
    dataset = engine.freeze(c, dataset) if c.model.mode is Mode.frozen else dataset
    if c.trainer.test_passes:
        testing_passes(c, engine.build(c, dataset, 0), dataset.images, 0)  # told before anything is trained
    features, used = query.prepare(c, strategy, dataset), query.wants_features(c, strategy)
    pool = start(dataset.train_idx, oracle, c.budget, c.seed, query.cold_start(c, dataset, features))
    store.identify(dataset.facts(), pool.facts())
    if used and c.features.extractor is Extractor.backbone:
        store.identify_weights(features=nets.weights_version(c.features))
    store.note(features=c.features.extractor.name if used else None)
    records = store.records()
    for past in records:
        pool = pool.acquire(torch.tensor(past.acquired, dtype=torch.int64), oracle)
    return dataset, oracle, pool, features, records


def stops_at_reference(c: Config) -> bool:
    """At the full-data reference's accuracy. It has none itself: the same command with budget=full trains it."""
    return c.budget.stop.at is not None and c.budget.initial is not None


def find_target(c: Config, dataset: Dataset) -> float | None:
    """The full-data accuracy to stop at, if any. Raises UserError where the reference saw other data."""
    if not stops_at_reference(c):
        return None
    accuracy, checksum, weights = reference(c)
    if checksum != dataset.checksum:
        raise UserError("The full-data reference was trained on other images. Train it again with budget=full.")
    ours = nets.weights_version(c.model) or ""
    if weights and not weights.startswith(ours):  # before a download the hub's revision is not known
        raise UserError("The full-data reference began from other weights. Train it again with budget=full.")
    return accuracy[c.budget.stop.at.name]


def testing_passes(c: Config, classifier: Classifier, images: Tensor, round: int) -> Passes | None:
    """What the test set is predicted by; None: the net without dropout. Raises UserError for a net that has none."""
    if c.trainer.test_passes is None:
        return None
    try:
        stream = rng.stream(c.seed, "test dropout", round)
        return engine.dropout_passes(c.trainer, classifier, images, c.trainer.test_passes, stream)
    except UserError as error:
        raise UserError(f"trainer.test_passes={c.trainer.test_passes}: {error}.") from None


def judge(c: Config, classifier: Classifier, images: Tensor, pool: Pool) -> dict[str, float] | None:
    if not len(pool.validation_V):
        return None
    seen = engine.predict(c.trainer, classifier, images, pool.validation_V)
    return loss_and_accuracy(seen.log_probs_PSC[:, 0], pool.validation_labels_V)


def keep_best(
    c: Config,
    store: RunStore,
    classifier: Classifier,
    records: list[RoundRecord],
    validation: dict[str, float] | None,
    round: int,
) -> int:
    """The round whose weights `classifier` holds from here on; with trainer.start=best perhaps an earlier one."""
    if c.trainer.start is Weights.fresh:
        return round
    if c.trainer.start is Weights.best and records:
        best = records[-1].weights_from
        if validation["loss"] >= records[best].validation["loss"]:
            engine.load_weights(classifier, store.weights_path(best))
            return best
    engine.save_weights(classifier, store.weights_path(round))
    return round


def why_stop(c: Config, round: int, pool: Pool, accuracy: dict[str, float | None], target: float | None) -> str | None:
    if not len(pool.unlabelled_P):
        return "the pool is empty"
    if c.budget.rounds is not None and round >= c.budget.rounds:
        return "the budget is used up"
    if target is not None and is_reached(accuracy[c.budget.stop.at.name], target, c.budget.stop):
        return f"the full-data reference is reached on {c.budget.stop.at.name} ({target:.2%})"
    return None


def is_reached(accuracy: float, target: float, stop: StopConfig) -> bool:
    """Within the tolerance below the target or anywhere above it; two_sided: not far above it either."""
    gap = abs(accuracy - target) if stop.two_sided else target - accuracy
    return gap <= stop.tolerance + 1e-9  # accuracies are fractions of counts: 0.0025 off has to count as 0.0025


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)


def announce(c: Config, store: RunStore, records: list[RoundRecord]) -> None:
    log.info(f"{c.dataset.name}, {c.model.name}, {c.strategy['name']}, seed {c.seed}")
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


def finish(
    c: Config, store: RunStore, dataset: Dataset, records: list[RoundRecord], test: engine.Prediction | None
) -> None:
    """test: the last round's; None where only this was left to do."""
    curve, name = store.folder / "learning_curve.png", f"{c.strategy['name']}, seed {c.seed}"
    drawn = {curve: partial(pictures.learning_curve, records=records, name=name)}
    if dataset.images.ndim == 4:  # frozen features have no pixels
        drawn[store.folder / "acquired.jpg"] = partial(pictures.picked, dataset=dataset, records=records)
        if test:
            uncertain = partial(pictures.most_uncertain, dataset=dataset, log_probs_NSC=test.log_probs_PSC)
            drawn[store.folder / "most_uncertain.jpg"] = uncertain
    for path, draw in drawn.items():
        try:
            draw(path)
        except Exception as error:  # no picture is worth a finished run
            log.warning(f"{path.name} could not be drawn, and the run is finished without it: {error!r}")
            log.debug(traceback.format_exc())
    validation = f" and {records[-1].n_val:,} validation labels" if records[-1].n_val else ""
    stopped = store.info().get("stopped", "the reason is lost")
    log.info(f"Stopped: {stopped}, with {records[-1].n_labelled:,} training labels{validation}.")
    if records[-1].n_foreign:
        log.info(f"{records[-1].n_foreign:,} more labels were bought in vain: those images belong to no class.")
    log.info(f"Results: {store.folder}")
    log.info(f"Learning curve: {curve}")
