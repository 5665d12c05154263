import os
import re
import signal
import sys
from functools import partial
from math import log

import pytest
import torch
from conftest import random_log_probs, seeded, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from al_bench import rng
from al_bench.errors import UserError
from al_bench.imports import function
from al_bench.strategies import Needs, PoolView, Strategy, load, needs, needs_of, top_k
from al_bench.strategies.bayesian import bald
from al_bench.strategies.guard import select
from al_bench.strategies.random import random_control, random_sampling
from al_bench.strategies.uncertainty import (
    entropy,
    entropy_score,
    least_confidence,
    least_confidence_score,
    margin,
    margin_score,
)

UNCERTAINTY = {"least_confidence": least_confidence, "margin": margin, "entropy": entropy}
SCORES = {"least_confidence": least_confidence_score, "margin": margin_score, "entropy": entropy_score}


@pytest.mark.parametrize(
    "score, expected",
    [
        (least_confidence_score, [0, 1 / 2, 0.3, 2 / 3, 0.5]),
        (margin_score, [0, 1, 1 - (0.7 - 0.2), 1, 1 - (0.5 - 0.4)]),
        (entropy_score, [0, log(2), 0.801819, log(3), 0.943348]),
    ],
)
def test_scores_match_values_computed_by_hand(score, expected):
    third = 1 / 3
    probs = [[0, 1, 0], [0.5, 0, 0.5], [0.7, 0.2, 0.1], [third, third, third], [0.1, 0.5, 0.4]]
    assert score(torch.tensor(probs, dtype=torch.float64).log()[:, None]).tolist() == pytest.approx(expected, abs=1e-6)


def slow_scores(log_probs_PSC):
    """The textbook formulas, image by image and class by class, on probabilities averaged over the passes."""
    found = {"least_confidence": [], "margin": [], "entropy": []}
    for passes_SC in log_probs_PSC.double().exp().tolist():
        mean_C = [sum(column) / len(passes_SC) for column in zip(*passes_SC, strict=True)]
        mean_C = [p / sum(mean_C) for p in mean_C]
        first, second = sorted(mean_C, reverse=True)[:2]
        found["least_confidence"].append(1 - first)
        found["margin"].append(1 - (first - second))
        total = 0.0
        for p in mean_C:
            total -= p * log(p) if p else 0.0
        found["entropy"].append(total)
    return found


@pytest.mark.parametrize("s, c", [(1, 2), (1, 10), (7, 4)])
def test_scores_and_choices_agree_with_a_slow_reference(s, c):
    log_probs = random_log_probs(200, s, c)
    log_probs[5], log_probs[6] = log(1 / c), torch.eye(c)[0].log()
    for name, slow in slow_scores(log_probs).items():
        score_P = SCORES[name](log_probs)
        rtol = 1e-9 if s == 1 else 6e-8  # a mean over passes has DIGITS
        torch.testing.assert_close(score_P, torch.tensor(slow, dtype=torch.float64), rtol=rtol, atol=1e-12)
        chosen = UNCERTAINTY[name](view_of(log_probs), 20, seeded())
        by_hand = sorted(range(200), key=lambda i: -slow[i])[:20]
        assert chosen.tolist() == by_hand


logit_gaps = st.one_of(
    st.floats(-2, 2, width=32), st.floats(-700, 700, width=32), st.floats(-(2**-20), 2**-20, width=32),
    st.sampled_from([0.0, 16.5, 17.0, 40.0, -40.0, 90.0, 700.0, 1e30]),
)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(logit_gaps, min_size=2, max_size=60), st.integers(0, 2**32), st.data())
def test_with_two_classes_the_three_scores_pick_the_same_images_in_the_same_order(gaps, seed, data):
    logits = torch.tensor([[gap, 0.0] for gap in gaps], dtype=torch.float32)
    log_probs_PC = logits.log_softmax(1)
    k = data.draw(st.integers(1, len(gaps)))
    picks = [f(view_of(log_probs_PC[:, None]), k, seeded(seed)).tolist() for f in UNCERTAINTY.values()]
    assert picks[0] == picks[1] == picks[2]


def test_the_three_agree_on_a_large_pool_down_to_the_most_certain_image():
    gap_P = torch.linspace(-22, 22, 20_001)[torch.randperm(20_001, generator=seeded())]
    log_probs = torch.stack([gap_P, -gap_P], 1)[:, None].log_softmax(-1)
    picks = [f(view_of(log_probs), 20_001, seeded(1)) for f in UNCERTAINTY.values()]
    assert torch.equal(picks[0], picks[1]) and torch.equal(picks[0], picks[2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.lists(logit_gaps, min_size=12, max_size=60), st.integers(0, 2**32))
def test_with_two_classes_and_several_passes_they_pick_the_same_as_well(s, gaps, seed):
    """The pool holds every image twice, the second time with its passes reversed: exact ties."""
    gap_PS = torch.tensor(gaps[: len(gaps) // s * s], dtype=torch.float32).view(-1, s)
    gap_PS = torch.cat([gap_PS, gap_PS.flip(1)])
    log_probs = torch.stack([gap_PS, torch.zeros_like(gap_PS)], 2).log_softmax(-1)
    picks = [f(view_of(log_probs), len(log_probs), seeded(seed)).tolist() for f in UNCERTAINTY.values()]
    assert picks[0] == picks[1] == picks[2]


@pytest.mark.parametrize("strategy", UNCERTAINTY.values(), ids=UNCERTAINTY)
@pytest.mark.parametrize("row", [[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
def test_where_all_images_are_equal_the_choice_is_a_seeded_draw_and_not_the_first_files(strategy, row):
    view = view_of(torch.tensor(row).log().expand(100, 1, 3))
    picks = [strategy(view, 10, seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(picks[0], picks[1]) and not torch.equal(picks[0], picks[2])
    assert not torch.equal(picks[0].sort().values, torch.arange(10))
    counts = sum(torch.zeros(100).index_add_(0, strategy(view, 10, seeded(i)), torch.ones(10)) for i in range(100))
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("strategy", UNCERTAINTY.values(), ids=UNCERTAINTY)
def test_shuffling_the_pool_shuffles_the_choice_alike(strategy):
    log_probs = random_log_probs(300, 2, 5)
    order = torch.randperm(300, generator=seeded(4))
    plain = strategy(view_of(log_probs), 30, seeded())
    shuffled = strategy(view_of(log_probs[order]), 30, seeded(1))
    assert torch.equal(order[shuffled], plain)


def test_top_k_takes_the_highest_first_draws_among_equals_and_can_take_all_or_one():
    score = torch.tensor([1.0, 3.0, 2.0, 3.0, -torch.inf, 2.0])
    orders = {tuple(top_k(score, 6, seeded(i)).tolist()) for i in range(40)}
    assert orders == {(*a, *b, 0, 4) for a in [(1, 3), (3, 1)] for b in [(2, 5), (5, 2)]}
    assert {top_k(score, 1, seeded(i)).item() for i in range(20)} == {1, 3}
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        top_k(torch.tensor([0.0, torch.nan]), 1, seeded())


@pytest.mark.parametrize("strategy", [*UNCERTAINTY.values(), random_sampling, random_control])
@pytest.mark.parametrize("k", [1, 12])
def test_every_strategy_returns_k_positions_once_each_and_is_its_generators_doing(strategy, k):
    view = view_of(random_log_probs(12, 1, 3))
    state = torch.get_rng_state()
    picks = [select(Strategy(strategy, "s"), view, k, seeded(seed), 0) for seed in (0, 0)]
    assert torch.equal(*picks) and len(picks[0].unique()) == k
    assert torch.equal(torch.get_rng_state(), state)


def test_random_needs_no_predictions_and_the_others_predictions_alone():
    assert needs_of(random_sampling) == Needs(predictions=False)
    assert needs_of(partial(random_sampling)) == Needs(predictions=False)  # what a yaml's _partial_ makes
    assert all(needs_of(s) == Needs(predictions=True, embeddings=False) for s in UNCERTAINTY.values())
    assert len(random_sampling(PoolView(5, 2), 3, seeded())) == 3

    @needs(embeddings=True)
    def diverse(view, k, rng):
        return torch.arange(k)

    assert needs_of(partial(diverse)) == Needs(predictions=True, embeddings=True)


@pytest.mark.parametrize("strategy", [random_sampling, random_control])
def test_random_is_uniform_and_differs_between_seeds_and_rounds(strategy):
    view = PoolView(40, 2)
    picks = [strategy(view, 8, rng.stream(seed, "select", r)) for seed in range(50) for r in range(20)]
    assert len({tuple(p.tolist()) for p in picks}) == len(picks)
    assert chisquare(torch.cat(picks).bincount(minlength=40)).pvalue > 1e-3
    assert chisquare(torch.stack(picks)[:, 0].bincount(minlength=40)).pvalue > 1e-3


def test_the_random_control_has_nothing_of_the_random_arm_but_its_stream():
    """Each draws 8 of 40. Two independent draws have 1.6 images in common by chance."""
    view, streams = PoolView(40, 2), range(2000)
    ours, control = [[s(view, 8, seeded(i)) for i in streams] for s in (random_sampling, random_control)]
    common = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(ours, control, strict=True)]
    assert sum(common) / len(common) == pytest.approx(1.6, abs=0.1)
    assert needs_of(random_control) == Needs(predictions=False)


@pytest.mark.parametrize(
    "answer, complaint",
    [
        (torch.arange(3).int(), "an int64 tensor of 3 positions, but returned torch.int32"),
        (torch.arange(2), r"3 positions, but returned torch.int64 \[2\]"),
        (torch.arange(3)[:, None], r"returned torch.int64 \[3, 1\]"),
        ([0, 1, 2], "returned list"),
        (torch.tensor([1, 4, 1]), "2 different positions instead of 3"),
        (torch.tensor([0, 1, 9]), "outside the pool of 9"),
        (torch.tensor([-1, 0, 1]), "outside the pool of 9"),
        (torch.tensor([torch.nan] * 9), "9 of 9 scores are NaN"),
    ],
)
def test_a_strategy_that_answers_wrongly_is_named_with_the_round(answer, complaint):
    with pytest.raises(UserError, match=f"strategy mine, round 4: .*{complaint}"):
        mine = Strategy(lambda view, k, rng: answer if len(answer) < 9 else top_k(answer, k, rng), "mine")
        select(mine, PoolView(9, 2), 3, seeded(), 4)


def unpacks(view, k, rng):
    first, second = view.n_pool, k, rng
    return torch.tensor([first, second])


def undeclared(view, k, rng):
    return top_k(view.emb_PD.norm(dim=1), k, rng)


def of_no_field(view, k, rng):
    return k.nothing if view.features_PF is None else view.features_PF


@torch.no_grad()
def decorated(view, k, rng):
    return unpacks(view, k, rng)


def test_a_mistake_in_a_strategys_own_code_is_told_with_its_place_or_its_remedy():
    view = PoolView(9, 2, random_log_probs(9, 1, 2))
    line = unpacks.__code__.co_firstlineno + 1
    for strategy in (partial(unpacks), decorated):
        with pytest.raises(UserError, match=rf"too many values to unpack.* \(test_strategies\.py, line {line}\)\.$"):
            select(Strategy(strategy, "mine"), view, 3, seeded(), 0)
    with pytest.raises(UserError, match=r"it uses view\.emb_PD without declaring it: put @needs\(embeddings=True\)"):
        select(Strategy(undeclared, "mine"), view, 3, seeded(), 0)
    with pytest.raises(
        UserError, match=r"AttributeError: 'int' object has no attribute 'nothing' \(test_strategies\.py"
    ):
        select(Strategy(of_no_field, "mine"), view, 3, seeded(), 0)
    with pytest.raises(UserError, match=r"trained from other weights\)\.$"):  # its text needs no line
        select(Strategy(bald, "bald"), view, 3, seeded(), 0)


def of_a_wrong_field(view, k, rng):
    return top_k(view.embeddings.norm(dim=1), k, rng)


def test_a_field_that_a_view_does_not_have_is_told_with_those_that_it_has_the_nearest_first():
    line = of_a_wrong_field.__code__.co_firstlineno + 1
    with pytest.raises(UserError) as told:
        select(Strategy(of_a_wrong_field, "mine"), PoolView(9, 2), 3, seeded(), 0)
    said, names = str(told.value).split(" has only the fields ")
    assert said == f"strategy mine, round 0: it uses view.embeddings (test_strategies.py, line {line}), but a view"
    names = names.rstrip(".").split(", ")
    assert names[0] == "emb_PD" and set(names) == set(vars(PoolView(9, 2)))


@torch.no_grad()
def of_another_signature(view):
    return view


def of_a_wrong_call(view, k, rng):
    return top_k(view)


def test_a_strategy_that_cannot_be_called_is_told_how_strategies_are_called():
    hint = "A strategy is called as (view, k, rng)."
    with pytest.raises(UserError, match=rf"of_another_signature cannot be loaded \(too many.*\)\. {re.escape(hint)}$"):
        load({"name": "mine", "_target_": f"{__name__}.of_another_signature"})
    with pytest.raises(UserError, match=rf"TypeError: .* but 3 were given\. {re.escape(hint)}$"):
        select(Strategy(lambda view: view, "mine"), PoolView(9, 2), 3, seeded(), 0)
    with pytest.raises(UserError, match=r"option'\. A strategy is called as \(view, k, rng, option=\.\.\.\)\.$"):
        select(Strategy(partial(unpacks, option=1), "mine"), PoolView(9, 2), 3, seeded(), 0)
    with pytest.raises(UserError, match=r"TypeError: top_k\(\) missing .* \(test_strategies\.py, line \d+\)\.$"):
        select(Strategy(of_a_wrong_call, "mine"), PoolView(9, 2), 3, seeded(), 0)


class Stop(BaseException):
    pass


class Unreadable(Exception):
    def __str__(self):
        return 7


def endless(n):
    return endless(n + 1)


# What a user's strategy does, and what the message says about it beside strategy, round and line.
FAILURES = {
    lambda view, k, rng: sys.exit(): r"it asks to end the process, as sys\.exit\(\) does",
    lambda view, k, rng: sys.exit(143): r"it asks to end the process",  # SIGTERM's code, but nobody sent it
    lambda view, k, rng: sys.exit("enough"): r"it asks to end the process",
    lambda view, k, rng: {}["median"]: r"KeyError: 'median'",
    lambda view, k, rng: [][k]: r"IndexError: list index out of range",
    lambda view, k, rng: (
        torch.ones(2, 3) @ torch.ones(2, 3)
    ): r"RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    lambda view, k, rng: torch.empty(10**15): r"RuntimeError: .*can't allocate memory",
    lambda view, k, rng: k / 0: r"ZeroDivisionError: division by zero",
    lambda view, k, rng: endless(0): r"RecursionError: maximum recursion depth exceeded",
    lambda view, k, rng: bytearray(2**62): r"MemoryError",
    lambda view, k, rng: next(iter(())): r"StopIteration",
    lambda view, k, rng: (_ for _ in ()).throw(GeneratorExit): r"GeneratorExit",
    lambda view, k, rng: (_ for _ in ()).throw(Stop("no more")): r"test_strategies\.Stop: no more",
    lambda view, k, rng: (_ for _ in ()).throw(Unreadable): r"test_strategies\.Unreadable: <exception str\(\) failed>",
    lambda view, k, rng: (_ for _ in ()).throw(AssertionError): r"AssertionError",
    lambda view, k, rng: (_ for _ in ()).throw(ValueError): r"ValueError",
    lambda view, k, rng: (_ for _ in ()).throw(ValueError("9 labels\nare few")): r"9 labels are few",
    lambda view, k, rng: (_ for _ in ()).throw(OSError("x" * 10**5)): r"OSError: x{391}\.\.\.",
}


@pytest.mark.parametrize("strategy", FAILURES, ids=FAILURES.values())
def test_whatever_a_strategy_raises_is_told_with_strategy_round_and_its_line(strategy):
    view = PoolView(9, 2, random_log_probs(9, 1, 2))
    with pytest.raises(UserError) as told:
        select(Strategy(strategy, "mine"), view, 3, seeded(), 5)
    place = r" \(test_strategies\.py, line \d+\)\."
    pattern = rf"strategy mine, round 5: {FAILURES[strategy]}.*{place}( Return the positions, or raise ValueError\.)?"
    assert re.fullmatch(pattern, str(told.value)), told.value
    assert told.value.__cause__ is not None  # whose traceback goes to run.log


def test_a_strategys_estimate_of_its_memory_may_fail_as_well():
    @needs(memory=lambda size: size.P / size.F)
    def divides(view, k, rng):
        return torch.arange(k)

    with pytest.raises(
        UserError, match=r"strategy mine, round 2: ZeroDivisionError: .*test_strategies\.py, line \d+\)"
    ):
        select(Strategy(divides, "mine"), PoolView(9, 2), 3, seeded(), 2)


def test_a_failure_of_our_own_code_is_told_with_our_line():
    with pytest.raises(UserError, match=r"strategy entropy, round 1: TypeError: .* \(__init__\.py, line \d+\)\."):
        select(Strategy(entropy, "entropy"), PoolView(9, 2, random_log_probs(9, 1, 2)), 3, "no generator", 1)


@pytest.mark.parametrize("answer", [torch.empty(3, dtype=torch.int64, device="meta"), torch.arange(3).to_sparse()])
def test_positions_have_to_be_in_plain_memory(answer):
    with pytest.raises(UserError, match=r"an int64 tensor of 3 positions, but returned torch\.int64 \[3\] \(torch\."):
        select(Strategy(lambda view, k, rng: answer, "mine"), PoolView(9, 2), 3, seeded(), 4)


@pytest.fixture
def ends_at_sigterm():
    """SIGTERM raises where it arrives, as in a run."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    yield
    signal.signal(signal.SIGTERM, before)


def terminated(view, k, rng):
    os.kill(os.getpid(), signal.SIGTERM)
    return torch.arange(k)


def hides_it(view, k, rng):
    try:
        terminated(view, k, rng)
    except BaseException as error:
        raise ValueError("what was that?") from error


def drops_it(view, k, rng):
    try:
        terminated(view, k, rng)
    finally:
        raise KeyError("cleaning up")


def interrupted(view, k, rng):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        raise RuntimeError("a library's words") from None


@pytest.mark.parametrize("strategy", [terminated, hides_it, drops_it])
def test_sigterm_ends_the_run_whatever_the_strategy_makes_of_it(ends_at_sigterm, strategy):
    with pytest.raises(SystemExit) as end:
        select(Strategy(strategy, "mine"), PoolView(9, 2), 3, seeded(), 0)
    assert end.value.code == 143


def test_ctrl_c_ends_the_run_whatever_the_strategy_makes_of_it():
    with pytest.raises(KeyboardInterrupt):
        select(Strategy(interrupted, "mine"), PoolView(9, 2), 3, seeded(), 0)


ASKS = "import os, signal; os.kill(os.getpid(), signal.{})"


@pytest.mark.parametrize(
    "code, said",
    [
        ("import sys; sys.exit(0)", r"SystemExit\(0\)"),
        ("raise GeneratorExit", r"GeneratorExit\(\)"),
        ("class Stop(BaseException): pass\nraise Stop('no more')", r"Stop\('no more'\)"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        (ASKS.format("SIGTERM"), SystemExit),
        (ASKS.format("SIGINT"), KeyboardInterrupt),
    ],
)
def test_a_module_that_ends_the_process_when_imported_is_a_users_error_and_a_signal_is_none(
    ends_at_sigterm, tmp_path, monkeypatch, code, said
):
    monkeypatch.syspath_prepend(tmp_path)
    for load_it in (
        lambda name: load({"name": "mine", "_target_": f"{name}.f"}),
        lambda name: function("key", f"{name}.f"),
    ):
        name = f"mine_{abs(hash((code, load_it)))}"
        (tmp_path / f"{name}.py").write_text(code)
        expected = {"match": f"cannot be loaded.*{said}"} if isinstance(said, str) else {}
        with pytest.raises(UserError if expected else said, **expected):
            load_it(name)


@pytest.mark.parametrize("field", ["log_probs_PSC", "emb_PD", "labelled_emb_LD"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_models_outputs_are_refused_by_name(field, bad):
    if field == "log_probs_PSC" and bad == -torch.inf:
        return  # the logarithm of 0
    values = {"log_probs_PSC": random_log_probs(9, 1, 2)} | {field: torch.zeros(9, 1, 2)}
    values[field][3, 0, 0] = bad
    with pytest.raises(UserError, match=f"strategy entropy, round 2: the model's {field} holds NaN or infinite"):
        select(Strategy(entropy, "entropy"), PoolView(9, 2, **values), 3, seeded(), 2)


def test_a_class_that_is_ruled_out_is_no_fault():
    certain = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]).log()
    assert select(Strategy(entropy, "entropy"), view_of(certain), 1, seeded(), 0).tolist() == [1]
