"""The contract of a strategy: a function (view, k, rng) -> positions of the k pool images to label, in order.

P pool images, L labelled, S stochastic passes or committee members (1 if neither), C classes, D embedding width,
F width of the fixed features.
A strategy sees only tensors, on the CPU. It declares with @needs what it uses beyond predictions.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from al_bench.errors import UserError
from al_bench.schedule import with_stages
from al_bench.signals import stop_behind
from al_bench.text import in_a_line

# Keys of a strategy's yaml that are no options of its function.
SETTINGS = ("name", "passes", "members", "candidates", "filter", "oracle")
ORACLES = ("al_bench.strategies.oracles.boss",)  # all that may see labels that were not acquired
ONE_PREDICTION = (  # why a strategy refuses a single prediction
    "compares several predictions of an image. Set strategy.passes=20 (dropout) or strategy.members=5 (nets trained "
    "from other weights)"
)
CHUNK = 2**22  # numbers that a chunk works on at once; tests make it smaller


Refit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (emb_ND, labels_N) -> (weight_CD, bias_C)


@dataclass(frozen=True)
class PoolView:
    """What a strategy may look at. A field it did not declare is None. Predictions and embeddings may be float16."""

    n_pool: int
    n_classes: int
    log_probs_PSC: Tensor | None = None
    emb_PD: Tensor | None = None  # input of the last linear layer
    labelled_emb_LD: Tensor | None = None
    labelled_labels_L: Tensor | None = None  # int64, always given; L may be 0
    labelled_log_probs_LC: Tensor | None = None  # mean over the passes and members that predict the pool
    features_PF: Tensor | None = None  # fixed features of the extractor `features`, unit length
    labelled_features_LF: Tensor | None = None
    head_weight_CD: Tensor | None = None  # logits = emb_PD @ head_weight_CD.T + head_bias_C
    head_bias_C: Tensor | None = None
    # Each labelled image by a head that was fit without it. None unless the model gives it: model.head=logistic does.
    held_out_log_probs_LC: Tensor | None = None
    foreign_emb_OD: Tensor | None = None  # of the O images that were acquired and belong to no class; O may be 0
    refit_head: Refit | None = None  # a last layer of its own for other images: embeddings and labels of them
    # What no strategy may know. An oracle line does, and load() lets nobody else ask for it.
    truth_P: Tensor | None = None  # int64, the labels of the pool; -1: of no class
    test_emb_VD: Tensor | None = None
    test_labels_V: Tensor | None = None


def take(view: PoolView, rows: Tensor) -> PoolView:
    """The view of the pool that consists of the images at these positions. They may repeat."""
    pool = {name: getattr(view, name) for name in ("log_probs_PSC", "emb_PD", "features_PF", "truth_P")}
    there = {name: values[rows] for name, values in pool.items() if values is not None}
    return replace(view, n_pool=len(rows), **there)


FIELDS_OF = {  # the fields that each need fills; labelled_labels_L is always given
    "predictions": ["log_probs_PSC"],
    "embeddings": ["emb_PD", "labelled_emb_LD"],
    "labelled": ["labelled_log_probs_LC"],
    "features": ["features_PF", "labelled_features_LF"],
    "head": ["head_weight_CD", "head_bias_C"],
    "held_out": ["held_out_log_probs_LC"],
    "foreign": ["foreign_emb_OD"],
    "refits": ["refit_head"],
    "oracle": ["truth_P", "test_emb_VD", "test_labels_V"],
}


@dataclass(frozen=True)
class Size:
    """The sizes that a strategy's memory depends on. k: images to choose."""

    P: int
    L: int
    S: int
    C: int
    D: int
    F: int
    k: int


@dataclass(frozen=True)
class Needs:
    predictions: bool = True
    embeddings: bool = False  # of pool and labelled images
    labelled: bool = False  # predictions for the labelled images
    features: bool = False  # fixed features of pool and labelled images
    head: bool = False  # weight and bias of the last linear layer
    held_out: bool = False  # predictions for the labelled images by a head fit without them, where there are some
    foreign: bool = False  # embeddings of the acquired images that belong to no class
    record: bool = False  # it acquires what a record names: the loop asks no function
    refits: bool = False  # last layers trained on other images; with model.mode=frozen alone
    oracle: bool = False  # labels that were not acquired, and those of the test images: see ORACLES
    passes: bool = False  # at least two passes or members
    memory: Callable[[Size], float] | None = None  # bytes it uses beyond its view; None: negligible


StrategyFunction = Callable[[PoolView, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Strategy:
    """A strategy's function with its options bound, and the settings that the loop reads."""

    function: StrategyFunction
    name: str
    n_passes: int | None = None  # predictions of the pool with dropout; None: one without
    members: int | None = None  # nets that predict the pool; None: the round's net alone
    candidates: int | None = None  # pool images, drawn at random, to choose from; None: all
    rounds: int | None = None  # in which it chooses, before `then`; None: in all that are left
    then: "Strategy | None" = None  # the next stage of a schedule

    @property
    def needs(self) -> Needs:
        return needs_of(self.function)

    @property
    def stages(self) -> list["Strategy"]:
        """The strategies of a schedule in their order; otherwise the strategy alone."""
        return [self, *(self.then.stages if self.then else [])]

    def at(self, round: int) -> "Strategy":
        """The stage that chooses in this round."""
        return self if self.then is None or round < self.rounds else self.then.at(round - self.rounds)


def needs(**declared: Any) -> Callable[[StrategyFunction], StrategyFunction]:
    """Declare what a strategy's view holds: fields of Needs. Without this decorator it gets predictions only."""
    wanted = Needs(**declared)

    def declare(function: StrategyFunction) -> StrategyFunction:
        function.needs = wanted  # type: ignore[attr-defined]
        return function

    return declare


def needs_by_options(declare: Callable[..., Needs]) -> Callable[[StrategyFunction], StrategyFunction]:
    """As `needs`, for a strategy whose needs depend on its options: `declare` gets them by name."""

    def attach(function: StrategyFunction) -> StrategyFunction:
        function.needs = declare  # type: ignore[attr-defined]
        return function

    return attach


def union(some: Iterable[Needs], memory: Callable[[Size], float] | None = None) -> Needs:
    """What several strategies need together."""
    flags = {f.name for f in fields(Needs)} - {"memory"}
    there = list(some)
    return Needs(**{flag: any(getattr(needs, flag) for needs in there) for flag in flags}, memory=memory)


def load(settings: dict[str, Any]) -> Strategy:
    """Build the strategy of a yaml's settings: import the function that _target_ names, and bind its options.

    Every key that is not in SETTINGS is an option. Of a schedule it is the first stage, which holds the next. Raises
    UserError if the function cannot be imported or called with these options, or if the settings contradict its needs.
    """
    name, stages = settings["name"], with_stages(settings).get("schedule")
    if stages:
        found = None
        for stage in reversed(stages):
            alone = {key: value for key, value in stage.items() if key != "rounds"}
            strategy = load(alone | {"name": f"{name} ({stage['name']})"})
            if strategy.needs.record:
                raise UserError(f"strategy {strategy.name}: a run that replays another one does so in all rounds.")
            found = replace(strategy, rounds=stage.get("rounds"), then=found)
        return found
    options = {key: value for key, value in settings.items() if key not in SETTINGS}
    function = imported(name, options)
    if wanted := settings.get("filter"):
        keep = imported(f"{name}, filter", {"_target_": wanted} if isinstance(wanted, str) else wanted)
        function = partial(after_filter, choose=function, keep=keep)
    several = [key for key in ("passes", "members") if settings.get(key)]
    needs = needs_of(function)
    for key in ("candidates", "filter"):
        if needs.record and settings.get(key):
            raise UserError(
                f"strategy {name} replays another run, so strategy.{key} would have no effect. Leave it out."
            )
    if several and not needs.predictions:
        raise UserError(
            f"strategy {name} uses no predictions, so strategy.{several[0]} would have no effect. "
            f"Set strategy.{several[0]}=null."
        )
    check_oracle(settings, needs)
    if needs.passes and not several:
        raise UserError(f"strategy {name} {ONE_PREDICTION}.")
    return Strategy(function, name, *(settings.get(key) for key in ("passes", "members", "candidates")))


def check_oracle(settings: dict[str, Any], needs: Needs) -> None:
    """Raises UserError if a strategy asks for labels that it may not see, or is wrongly called an oracle."""
    name, is_one = settings["name"], settings["_target_"] in ORACLES
    if needs.oracle and not is_one:
        raise UserError(
            f"strategy {name} asks for labels that were not acquired. Only {', '.join(ORACLES)} may see them."
        )
    if bool(settings.get("oracle")) != is_one:
        raise UserError(
            f"strategy {name}: oracle=true marks a strategy that sees all labels, and no other. Ask for one by its "
            "name: strategy=oracle/boss."
        )


def imported(name: str, node: dict[str, Any]) -> StrategyFunction:
    """The function that node["_target_"] names, with the other keys bound as its options. Raises UserError."""
    try:
        function = instantiate(node | {"_partial_": True}, _convert_="all")
        check_options(function)
    except BaseException as error:  # a user's module may raise anything when imported
        if stop := stop_behind(error):
            raise stop from None
        reason = in_a_line(error.__cause__ or error)
        options = [key for key in node if not key.startswith("_")]
        hint = f" {call_with(options)}" if isinstance(error, TypeError) else ""  # the signature does not fit
        raise UserError(f"strategy {name}: {node['_target_']} cannot be loaded ({reason}).{hint}") from error
    return function


def _needs_of_both(choose: StrategyFunction, keep: StrategyFunction) -> Needs:
    # The strategy itself sees only what the filter keeps, and that is known when it has run.
    return union([needs_of(choose), needs_of(keep)], needs_of(keep).memory)


@needs_by_options(_needs_of_both)
def after_filter(
    view: PoolView, k: int, rng: torch.Generator, *, choose: StrategyFunction, keep: StrategyFunction
) -> Tensor:
    """`choose` among the images that `keep` leaves: a function as a strategy, of which k or more positions come back.

    Positions may repeat. They are sorted, so the strategy does not see in which order they were kept.
    """
    kept = keep(view, k, rng).unique()
    if len(kept) < k:
        raise ValueError(f"the filter kept {len(kept)} images, and {k} are to be chosen")
    return kept[choose(take(view, kept), k, rng)]


def call_with(options: Iterable[str]) -> str:
    """Say in a sentence how a strategy with these options is called."""
    arguments = ["view", "k", "rng", *(f"{option}=..." for option in options)]
    return f"A strategy is called as ({', '.join(arguments)})."


def check_options(function: Callable[..., Tensor]) -> None:
    """Raises TypeError if an option of a partial is missing or unknown, ValueError if a bool gets another value."""
    signature = inspect.signature(function.func)
    signature.bind(None, 1, None, **function.keywords)
    for option, parameter in signature.parameters.items():
        value = function.keywords.get(option, False)
        if parameter.annotation is bool and not isinstance(value, bool):
            raise ValueError(f"{option}={value}: true or false")


def needs_of(function: StrategyFunction) -> Needs:
    plain = getattr(function, "func", function)  # of a partial
    declared = getattr(plain, "needs", Needs())
    if isinstance(declared, Needs):
        return declared
    defaults = {name: p.default for name, p in inspect.signature(plain).parameters.items() if p.kind is p.KEYWORD_ONLY}
    return declared(**defaults | getattr(function, "keywords", {}))


def top_k(score_P: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Positions of the k highest scores. Ties are broken at random, never by file order. NaN raises ValueError."""
    if score_P.isnan().any():
        raise ValueError(f"{int(score_P.isnan().sum())} of {len(score_P)} scores are NaN")
    order_P = torch.randperm(len(score_P), generator=rng)
    return order_P[score_P[order_P].argsort(descending=True, stable=True)[:k]]


def by_chunks(f: Callable[..., Tensor], *tensors: Tensor, width: int | None = None) -> Tensor:
    """Apply f to tensors that all have P rows, a few rows at a time, so that its temporary arrays stay small.

    width: numbers that f works on for a row; None: as many as a row of the first tensor has.
    """
    rows = max(1, CHUNK // max(1, width or tensors[0][0:1].numel()))
    return joined((f(*parts) for parts in zip(*(t.split(rows) for t in tensors), strict=True)), len(tensors[0]))


def joined(parts: Iterable[Tensor], n: int) -> Tensor:
    """Concatenate the parts, n rows in all, into one array that is allocated at the first part.

    Small results kept between large temporary arrays would keep the memory of those arrays from being reused.
    """
    out, start = None, 0
    for part in parts:
        if out is None:
            out = part.new_empty(n, *part.shape[1:])
        out[start : start + len(part)] = part
        start += len(part)
    return out
