"""The schema of conf/: every key and its type, so that a misspelt key or a wrong type stops before any job starts.

Values live in conf/*.yaml. A default stands here where most of those files leave the key out.

The config.yaml of an earlier run lacks each new key, and a missing key counts as null. So the default of a new key is
null, and null means what al_bench did before. With any other default all earlier runs would be refused as "made by
another configuration". The keys of StressorConfig are the exception: recipe.py gives earlier runs their defaults.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from itertools import chain
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError

from al_bench.bounds import violations
from al_bench.choices import (
    Annotator,
    Augment,
    Extractor,
    Head,
    InitialDraw,
    Masks,
    Mode,
    Monitor,
    OnBadImage,
    Schedule,
    StopAt,
    TrackingMode,
    Weights,
)
from al_bench.errors import UserError
from al_bench.options import shipped
from al_bench.schedule import stages_of, with_stages
from al_bench.text import near

SETTINGS = ("passes", "members", "candidates", "filter")  # of every strategy
UNLABELLED = "al_bench.labelling.images.unlabelled"  # the target of dataset=unlabelled


@dataclass
class DatasetConfig:
    _target_: str = MISSING
    name: str = MISSING
    root: str | None = MISSING  # where the images are; null for data that come with a library
    image_size: int | None = None  # null: the data's own size, or the model's
    test_fraction: float | None = None  # null: the data set has a test split of its own
    on_bad_image: OnBadImage = OnBadImage.stop
    antialias: bool = True
    mean: list[float] = field(default_factory=lambda: [0.0])
    std: list[float] = field(default_factory=lambda: [1.0])
    max_pixels: int | None = None  # the most in one file; null: Pillow's limit, 89,478,485
    classes: list[str] | None = None  # that a person labels with, where the images have no labels
    known: int | None = None  # lines of labels.jsonl whose labels the run begins with, besides its initial set
    jpeg_scaling: bool | None = None  # decode a large JPEG at a half, a quarter or an eighth; null: in full
    white: float | None = None  # the value of white in images of 16 or 32 bits or floats; null: as the file says


@dataclass
class StressorConfig:
    """What makes the data harder. The defaults change nothing."""

    imbalance: float = 1.0
    label_noise: float = 0.0
    images: int | None = None
    copies: int = 1
    noise: float = 0.1
    foreign: int = 0


@dataclass
class ModelConfig:
    _target_: str = MISSING
    name: str = MISSING
    pretrained: bool = False
    weights: str | None = None
    mode: Mode = Mode.finetune
    head: Head | None = None  # null: model.optimizer trains the last layer, and all of the net with mode=finetune
    penalty: float | None = None  # of head=logistic, relative to the features; null: models/logistic.py's formula
    dropout: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = MISSING


@dataclass
class StopConfig:
    """Stop when the accuracy of the full-data reference (budget=full) is reached."""

    at: StopAt | None = None
    tolerance: float = 0.0
    two_sided: bool = False


@dataclass
class BudgetConfig:
    name: str | None = None
    initial: int | None = MISSING
    query: Any = MISSING  # an int, or a list of ints: one a round, the last repeated
    rounds: int | None = MISSING
    validation: int = MISSING
    start: InitialDraw = InitialDraw.random
    stop: StopConfig = field(default_factory=StopConfig)

    @property
    def queries(self) -> list[int]:
        """The labels of the first rounds, one number a round. Later rounds acquire as many as the last of them."""
        return self.query if isinstance(self.query, list) else [self.query]

    def query_of(self, round: int) -> int:
        """How many labels the round acquires."""
        return self.queries[min(round, len(self.queries) - 1)]


@dataclass
class EarlyStoppingConfig:
    patience: int | None = None
    monitor: Monitor = Monitor.loss
    min_delta: float = 0.0


@dataclass
class TrainerConfig:
    accelerator: str = MISSING
    precision: str = MISSING
    deterministic: bool = MISSING
    batch_size: int = MISSING
    predict_batch_size: int = MISSING
    max_steps: int | None = MISSING
    max_epochs: int | None = MISSING
    steps_per_epoch: int | None = MISSING
    later_max_epochs: int | None = MISSING
    start: Weights = MISSING
    schedule: Schedule = MISSING
    augment: Augment = MISSING
    dropout_masks: Masks | None = None
    test_passes: int | None = MISSING
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    num_workers: int = MISSING
    threads: int | None = MISSING
    progress: bool = MISSING


@dataclass
class FeaturesConfig:
    extractor: Extractor = MISSING
    width: int = 64
    name: str | None = None
    pretrained: bool = True
    weights: str | None = None


@dataclass
class LoggerConfig:
    """Where the rounds are shown, besides the record. All keys but _target_ are for W&B."""

    _target_: str = MISSING
    mode: TrackingMode = TrackingMode.online
    project: str = "al_bench"
    entity: str | None = None
    images: int = 25  # how many of the images acquired in a round are shown


@dataclass
class Config:
    results_dir: str = MISSING
    study: str = MISSING
    seed: int = MISSING
    plan: bool = MISSING
    cache_dir: str = MISSING
    oracle: Annotator | None = None  # null: the labels of the data; person: those of labels.jsonl
    metrics: list[str] | None = None  # dotted paths of the user's functions (log_probs_VC, labels_V) -> float
    dataset: DatasetConfig = MISSING
    stressor: StressorConfig = field(default_factory=StressorConfig)
    model: ModelConfig = MISSING
    trainer: TrainerConfig = MISSING
    budget: BudgetConfig = MISSING
    features: FeaturesConfig = MISSING
    logger: LoggerConfig = MISSING
    # These keys, and the strategy's own options. passes: predictions of the pool with dropout. members: nets that
    # predict the pool. candidates: pool images, drawn at random, that the strategy chooses from. filter: a function.
    strategy: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SETTINGS))


ConfigStore.instance().store("base_config", Config)


def read(cfg: DictConfig) -> Config:
    """The composed configuration as plain objects. Raises UserError if a value is missing or makes no sense."""
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise UserError(f"{missing[0]} is not set. Set it on the command line: {missing[0]}=...")
        if OmegaConf.get_type(cfg) is not Config:
            raise UserError("This configuration has no schema: its defaults need base_config, as in conf/config.yaml.")
        if misfits := list(_misfits(cfg)):
            raise UserError("\n".join(misfits))
        config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    except InterpolationToMissingValueError as error:  # its text ends with the key that the value is made of
        key = str(error).splitlines()[0].split()[-1].rstrip(".")
        raise UserError(f"{key} is not set. Set it on the command line: {key}=...") from None
    except InterpolationResolutionError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}.") from error
    config.strategy.pop("_partial_", None)  # a user's yaml may have it; strategies.load sets it anyway
    config.strategy = with_stages(config.strategy)
    for mistake in chain(violations(flat(asdict(config))), _mistakes(config)):
        raise UserError(mistake)
    return config


def _mistakes(c: Config) -> Iterator[str]:
    """Yield a sentence for each combination of values that cannot work. bounds.py checks each number by itself."""
    yield from _budget_mistakes(c.budget, c.trainer)
    yield from _training_mistakes(c.trainer)
    yield from _head_mistakes(c)
    yield from _naming_mistakes(c)
    yield from _annotator_mistakes(c)
    for stage in stages_of(c.strategy):
        if (n := stage.get("candidates")) is not None and n < (most := max(c.budget.queries)):
            yield f"strategy.candidates={n}: {most} or more (budget.query), or null."
        if stage.get("members") is not None and c.trainer.start is not Weights.fresh:
            yield "strategy.members trains its nets from fresh weights: set trainer.start=fresh."
    mean, std, noise = c.dataset.mean, c.dataset.std, c.stressor.noise
    if len(mean) != len(std) or not std:
        yield "dataset.mean and dataset.std need equally many values, at least one."
    if c.stressor.copies == 1 and noise != StressorConfig.noise:
        yield f"stressor.noise={noise} changes copies of images, and there are none: set stressor.copies=2 or more."
    if c.features.extractor is Extractor.model and c.budget.start not in (InitialDraw.random, InitialDraw.balanced):
        yield f"budget.start={c.budget.start.name} chooses before any training: set features=pca or features=backbone."


def _naming_mistakes(c: Config) -> Iterator[str]:
    """Results name what was run. So the name of one of al_bench's options is refused for another function."""
    name, target = c.strategy.get("name"), c.strategy.get("_target_")
    if not name:
        yield f"The yaml of the strategy {target or ''} lacks the key name. Add a line such as name: my_strategy."
    if not target and "schedule" not in c.strategy:
        yield f"The yaml of strategy {name} lacks the key _target_. Add a line such as _target_: my_module.my_strategy."
    named = {"strategy": (name, target)} if target else {}
    named |= {group: (there.name, there._target_) for group, there in (("model", c.model), ("dataset", c.dataset))}
    for group, (name, target) in named.items():
        if group == "dataset" and target.startswith("al_bench."):
            continue  # a folder with CIFAR-10's images may be called cifar10; reports compare images by checksum
        if (there := shipped(group, name)) and there.get("_target_") != target:
            new = target.rpartition(".")[2].lower()
            yield (
                f"{group}._target_={target} would be stored under the name {name}, which belongs to "
                f"{there.get('_target_', 'a schedule')}. Set a name of its own: {group}.name={new}"
            )


def _annotator_mistakes(c: Config) -> Iterator[str]:
    unlabelled = c.dataset._target_ == UNLABELLED
    if unlabelled != (c.oracle is Annotator.person):
        yield "oracle=person and dataset=unlabelled go together: a person labels a folder of images without labels."
    if c.oracle is None:
        return
    if c.stressor != StressorConfig():
        yield "oracle=person: a stressor changes known labels, and a person's are not known before. Leave it out."
    if c.budget.start is InitialDraw.balanced:
        yield "budget.start=balanced needs all labels before the first is asked for. Try budget.start=typiclust."


def _budget_mistakes(b: BudgetConfig, t: TrainerConfig) -> Iterator[str]:
    if (b.name == "full") != (b.initial is None):
        initial = "null" if b.initial is None else b.initial
        yield (
            f"budget.initial={initial} does not go with budget.name={b.name or 'null'}. Set budget=full, which sets "
            "both, to train on the full data."
        )
    uses_validation = {
        "budget.stop.at=validation": b.stop.at is StopAt.validation,
        "trainer.early_stopping.patience": t.early_stopping.patience is not None,
        "trainer.start=best": t.start is Weights.best,
    }
    for key, is_set in uses_validation.items():
        if is_set and b.validation == 0:
            yield f"{key} needs budget.validation > 0."


def _training_mistakes(t: TrainerConfig) -> Iterator[str]:
    if t.max_steps is not None and t.max_epochs is not None:
        yield (
            "trainer.max_steps and trainer.max_epochs are both set, and each says how long a round trains. Set one of "
            "them to null."
        )
    if t.max_steps is None and t.max_epochs is None:
        yield "Set trainer.max_steps or trainer.max_epochs, which say how long a round trains."
    if t.later_max_epochs is not None and t.max_epochs is None:
        yield (
            "trainer.later_max_epochs replaces trainer.max_epochs after the first round: set trainer.max_epochs too, "
            "and trainer.max_steps=null."
        )


def _head_mistakes(c: Config) -> Iterator[str]:
    m, t = c.model, c.trainer
    if m.head is None:
        if m.penalty is not None:
            yield f"model.penalty={m.penalty} is for model.head=logistic: set that as well, or model.penalty=null."
        return
    unfit = {
        "trains on features that stay the same: set model.mode=frozen": m.mode is not Mode.frozen,
        "has no dropout: set model.dropout=0. strategy.passes=20 draws weights instead": m.dropout > 0,
        "ends at the same weights wherever it starts: set trainer.start=fresh": t.start is not Weights.fresh,
        "has no dropout: set trainer.dropout_masks=null": t.dropout_masks is not None,
        "trains to its optimum: set trainer.early_stopping.patience=null": t.early_stopping.patience is not None,
        "would make all members the same: set model.head=null. Or set strategy.members=null: strategy.passes=20 draws "
        "weights instead": any(stage.get("members") is not None for stage in stages_of(c.strategy)),
    }
    yield from (f"model.head={m.head.name} {why}." for why, is_so in unfit.items() if is_so)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as one mapping with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree.name if isinstance(tree, Enum) else tree}
    return {
        k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def types(schema: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every key of the schema, dotted: seed, dataset.root, trainer.early_stopping.patience."""
    found = {}
    for f in fields(schema):
        found[prefix + f.name] = f.type
        found |= types(f.type, f"{prefix}{f.name}.") if is_dataclass(f.type) else {}
    return found


def keys(schema: type = Config, prefix: str = "") -> list[str]:
    return list(types(schema, prefix))


def _misfits(cfg: DictConfig, schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Yield a sentence for each key that is unknown or missing. Hydra's + and ~ add and remove keys of any node."""
    there, known = set(map(str, cfg)), {f.name: f.type for f in fields(schema)}
    for key in sorted(f"{prefix}{name}" for name in there - known.keys()):
        hint = near(key, keys()) or "+ adds keys to strategy, model.options and model.optimizer alone."
        yield f"There is no key {key}. {hint}"
    for key in sorted(f"{prefix}{name}" for name in known.keys() - there):
        yield f"{key} is needed: leave out ~{key}."
    for name in known:
        if name in there and is_dataclass(known[name]):
            yield from _misfits(cfg[name], known[name], f"{prefix}{name}.")
