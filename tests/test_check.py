"""Every strategy of conf/strategy obeys every rule, and every rule catches a strategy made to break it."""

from functools import cache

import numpy as np
import pytest
import torch
import wrong_habits
import wrong_strategies as wrong
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from al_bench import strategies
from al_bench.check import process, rules
from al_bench.check.command import load
from al_bench.check.inputs import KINDS, Case, make_view
from al_bench.check.invariance import choice_matrix, differ
from al_bench.check.rules import RULES, try_rule
from al_bench.check.trial import Refused, choose, global_state
from al_bench.options import whole_strategies
from al_bench.strategies import FIELDS_OF, Needs, PoolView, Size, guard
from al_bench.strategies.random import random_sampling
from al_bench.strategies.uncertainty import entropy

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = whole_strategies()
QUICKER = {"refine": ["filter.depth=1", "filter.batches=9"]}  # with its defaults a choice takes a second
loaded = cache(lambda name: load(name, QUICKER.get(name, []))[0])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_obeys_every_rule(name, rule):
    result, remark = try_rule(rule, *loaded(name))
    assert result != "FAILED", remark


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(1, 40), st.integers(0, 12), st.integers(2, 5), st.integers(1, 6), st.integers(1, 6), st.data(),
    st.sampled_from(sorted(KINDS)),
)  # fmt: skip
def test_any_small_pool_will_do(name, p, n_labelled, c, d, f, data, kind):
    strategy, s = loaded(name)
    k, seed = data.draw(st.integers(1, p)), data.draw(st.integers(0, 2**32 - 1))
    try:
        choose(strategy, Case(Size(p, n_labelled, s, c, d, f, k), seed, kind), seed, may_refuse=True)
    except Refused:
        assert n_labelled < 2 or kind == "one labelled class"


# --- Each rule catches its mistake

# Rules that compare two runs on the same input.
COMPARED = {"chunks_do_not_matter", "threads_do_not_matter", "float16_works", "zero_is_a_small_probability"}
ORDER = {"order_does_not_matter", "order_without_labels"}
ALONE = {wrong_habits.image_by_image}  # tested only with the rule that it breaks: the others would take a minute
WRONG = {
    wrong.undeclared: {"all"},
    wrong.int32: {"all"},
    wrong_habits.leaves_the_process: {"all"},
    wrong_habits.asks_for_too_much: {"all"},
    wrong.one_is_no_list: {"every_size", "odd_proportions", "several_passes"},
    wrong.twice_when_all_are_wanted: {"every_size", "odd_proportions", "several_passes", "few_distinct_points"},
    wrong.a_labelled_image_for_each: {"odd_proportions"},
    wrong.five_neighbours: {"odd_proportions"},
    wrong.in_units_of_the_pools_spread: {"odd_proportions"},
    wrong.fewer_dimensions_than_images: {"odd_proportions"},
    wrong.one_pass_only: {"several_passes", "order_of_passes"},
    wrong.passes_are_images: {"several_passes", "order_of_passes"},
    wrong.unseeded: {"seed_decides", *COMPARED},
    wrong.every_other_call: {"seed_decides", *COMPARED},
    wrong.global_torch: {"global_generators_are_left_alone"},
    wrong.global_numpy: {"global_generators_are_left_alone", *COMPARED},
    wrong.reseeds_the_world: {"global_generators_are_left_alone"},
    **{strategy: {"settings_are_left_alone"} for strategy in wrong_habits.SETTERS},
    wrong_habits.sets_default_dtype: {"settings_are_left_alone", "float16_works", "zero_is_a_small_probability"},
    wrong_habits.a_thread_each: {"threads_do_not_matter"},
    wrong_habits.only_with_many_threads: {"threads_do_not_matter"},
    wrong.ties_by_index: {"ties_are_drawn", "no_image_is_left_out"},
    wrong.first_pick_by_index: {"ties_are_drawn"},
    wrong.in_the_order_of_the_files: {"ties_are_drawn", *ORDER},
    wrong.seeds_the_generator: {"ties_are_drawn"},
    wrong.same_draw_for_every_seed: {"ties_are_drawn", *ORDER},
    wrong.last_block_dropped: {"no_image_is_left_out"},
    wrong.last_block_scored_last: {"no_image_is_left_out", "order_does_not_matter"},
    wrong.off_by_one: ORDER,
    wrong.swaps_the_last_images: ORDER,
    wrong_habits.scores_by_size: ORDER,
    wrong.draws_the_next_image: ORDER,
    wrong.draws_late_images: {"ties_are_drawn", *ORDER},
    wrong.numpys_argsort_of_nan: {"order_does_not_matter"},
    wrong.starts_with_image_0: {"order_without_labels"},
    wrong.starts_in_the_middle: {"order_without_labels"},
    wrong.the_first_images_until_there_are_labels: {"order_without_labels"},
    wrong.first_pass_alone: {"order_of_passes"},
    wrong.later_passes_weigh_more: {"order_of_passes"},
    wrong.changes_between_passes: {"order_of_passes"},
    wrong.draws_by_the_last_pass: {"order_of_passes"},
    wrong.entropies_are_summed: {"order_of_passes"},
    wrong.likely_class_0: {"numbers_of_classes"},
    wrong.classes_are_a_scale: {"numbers_of_classes"},
    wrong.what_is_left_goes_to_the_first_classes: {"numbers_of_classes"},
    wrong.draws_class_0: {"numbers_of_classes"},
    wrong.weight_of_the_largest_label: {"numbers_of_classes"},
    wrong.far_from_the_first_labelled: {"order_of_labels"},
    wrong.unlike_the_last_label: {"order_of_labels"},
    wrong.draws_far_from_the_last_labelled: {"order_of_labels"},
    wrong.normalised_by_chunk: {"chunks_do_not_matter"},
    wrong.last_chunk_dropped: {"every_size", "chunks_do_not_matter"},
    wrong.nan_is_an_error: {
        "degenerate_predictions", "zero_is_a_small_probability", "ties_are_drawn", "view_is_read_only",
        "several_passes", "order_does_not_matter", "no_nan_is_compared",
    },
    wrong.nan_is_first: {"zero_is_a_small_probability"},
    wrong.divides_by_norm: {
        "degenerate_predictions", "ties_are_drawn", "order_does_not_matter", "no_nan_is_compared"
    },
    wrong.argmax_of_nan: {"no_nan_is_compared"},
    wrong.spread_of_one_pass: {"no_nan_is_compared"},
    wrong.mean_of_no_labelled: {"no_nan_is_compared"},
    wrong.confidence_in_float32: {"certainty_is_told_apart"},
    wrong.margin_in_float32: {"certainty_is_told_apart"},
    wrong.gini_in_float32: {"certainty_is_told_apart"},
    wrong.fewer_points_than_centres: {"few_distinct_points", "no_nan_is_compared"},
    wrong.no_labels_no_minimum: {"few_labels", "order_without_labels", "no_nan_is_compared"},
    wrong.library_refuses: {"few_labels", "order_without_labels", "no_nan_is_compared"},
    wrong.rounds_in_half: {"float16_works", "order_of_passes"},
    wrong.mixes_types: {"float16_works", "view_is_read_only", "no_nan_is_compared"},
    wrong.clamps_in_place: {"view_is_read_only"},
    wrong.sorts_in_place: {"view_is_read_only"},
    wrong.writes_through_numpy: {"view_is_read_only"},
    wrong_habits.keeps_the_view: {"nothing_is_kept"},
    wrong_habits.keeps_an_array: {"nothing_is_kept"},
    wrong_habits.keeps_a_row: {"nothing_is_kept"},
    wrong_habits.keeps_what_it_is_asked_with: {"nothing_is_kept"},
    wrong_habits.all_distances: {"large_pools"},
    wrong_habits.all_neighbours: {"large_pools"},
    wrong_habits.all_distances_of_scipy: {"large_pools"},
    wrong_habits.all_pairs_of_numpy: {"large_pools"},
    wrong_habits.all_distances_declared_too_low: {"large_pools"},
    wrong_habits.image_by_image: {"large_pools"},
}  # fmt: skip
RIGHT = [
    wrong.draw, wrong.starts_at_random, wrong_habits.all_distances_declared, wrong_habits.distances_by_chunks,
    wrong_habits.distances_by_own_blocks,
]  # fmt: skip


def broken_rules(strategy, some=RULES):
    return {rule.__name__ for rule in some if try_rule(rule, strategy, 1)[0] == "FAILED"}


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("strategy", WRONG, ids=lambda strategy: strategy.__name__)
def test_a_wrong_strategy_is_caught_by_its_rule(strategy):
    if WRONG[strategy] == {"all"}:
        assert broken_rules(strategy, [rules.it_runs])
    else:
        assert broken_rules(strategy, [rules.large_pools] if strategy in ALONE else RULES) == WRONG[strategy]


@pytest.mark.parametrize("strategy", RIGHT, ids=lambda strategy: strategy.__name__)
def test_a_strategy_that_looks_like_a_wrong_one_is_not_caught(strategy):
    assert broken_rules(strategy) == set()


def test_every_rule_has_a_strategy_that_it_catches():
    shown = {"it_runs", "broken_models_are_refused"}  # below, and by "all"
    assert set.union(*WRONG.values()) - {"all"} | shown == {rule.__name__ for rule in RULES}


def refuses(view, k, rng):
    if not len(view.labelled_labels_L):
        raise ValueError("it needs labelled images: set budget.initial=10 or more")
    return entropy(view, k, rng)


def test_a_refusal_is_a_sentence_of_the_strategys_own_and_only_where_labels_are_few():
    rule = rules.few_labels
    assert try_rule(rule, refuses, 1) == (
        "refused",
        "no labelled image: it needs labelled images: set budget.initial=10 or more",
    )
    assert broken_rules(refuses) == set()
    assert try_rule(rule, wrong.library_refuses, 1)[0] == try_rule(rule, wrong.no_labels_no_minimum, 1)[0] == "FAILED"

    def never(view, k, rng):
        raise ValueError("not today")

    assert "It raised ValueError: not today (test_check.py, line" in try_rule(rules.it_runs, never, 1)[1]


def raises_on_the_line_of_its_condition(view, k, rng):
    if not len(view.labelled_labels_L): raise ValueError("it needs labelled images")  # fmt: skip  # noqa: E701
    return entropy(view, k, rng)


def raises_over_several_lines(view, k, rng):
    with torch.no_grad():
        if not len(view.labelled_labels_L):
            raise ValueError(
                "it needs "  # the error's line may be any of these
                f"{'labelled images'}"
            )
    return entropy(view, k, rng)


def raises_in_place_of_another_error(view, k, rng):
    try:
        max(view.labelled_labels_L.tolist())
    except ValueError as error:
        raise ValueError("it needs labelled images") from error
    return entropy(view, k, rng)


@pytest.mark.parametrize(
    "strategy",
    [raises_on_the_line_of_its_condition, raises_over_several_lines, raises_in_place_of_another_error],
)
def test_a_raise_statement_is_a_refusal_however_it_is_laid_out(strategy):
    wanted = ("refused", "no labelled image: it needs labelled images")
    assert try_rule(rules.few_labels, strategy, 1) == wanted


def reads_a_number(view, k, rng):
    int("3" if len(view.labelled_labels_L) else "x")
    return entropy(view, k, rng)


def unpacks_two_labels(view, k, rng):
    first, second, *_ = view.labelled_labels_L.tolist()
    return entropy(view, k, rng)


def raises_again(view, k, rng):
    try:
        return reads_a_number(view, k, rng)
    except ValueError:
        raise


def asserts(view, k, rng):
    assert len(view.labelled_labels_L), "it needs labelled images"
    return entropy(view, k, rng)


@pytest.mark.parametrize("strategy", [reads_a_number, unpacks_two_labels, raises_again, asserts])
def test_an_error_without_a_raise_statement_for_it_is_a_failure(strategy):
    assert try_rule(rules.few_labels, strategy, 1)[0] == "FAILED"


def test_a_failure_names_the_cause_and_an_input_that_can_be_made_again():
    result, remark = try_rule(rules.it_runs, wrong.undeclared, 1)
    assert result == "FAILED"
    assert remark.startswith("It uses view.emb_PD without declaring it: put @needs(embeddings=True) above it. Input: ")
    made = eval(remark.split("Input: ")[1].split(", k=2, seed")[0], {"make_view": make_view, "Size": Size})
    assert made.n_pool == 5 and torch.equal(made.emb_PD, make_view(Size(5, 3, 1, 2, 2, 3, 2), 1).emb_PD)
    assert "returned torch.int64 []. Input: " in try_rule(rules.every_size, wrong.one_is_no_list, 1)[1]
    assert "torch.int32" in try_rule(rules.it_runs, wrong.int32, 1)[1]


def test_a_broken_model_that_nobody_refuses_breaks_the_rule(monkeypatch):
    rule = rules.broken_models_are_refused
    assert try_rule(rule, wrong.nan_is_first, 1) == ("ok", "")
    assert try_rule(rule, random_sampling, 1) == ("ok", "not tried: the strategy uses no output of the model")
    monkeypatch.setattr(guard, "check_view", lambda view, where: None)
    assert "nan in view.log_probs_PSC the message was: nothing" in try_rule(rule, wrong.nan_is_first, 1)[1]


def test_a_strategy_sees_what_it_declared_and_nothing_else():
    always = {"n_pool", "n_classes", "labelled_labels_L"}
    size = Size(6, 4, 3, 2, 5, 7, 2)
    full = {name for name, value in vars(make_view(size, 0)).items() if value is not None}
    assert full == set(vars(PoolView(1, 1)))
    for need, names in FIELDS_OF.items():
        only = Needs(**{other: other == need for other in FIELDS_OF})
        view = Case(size).view(only)
        assert {name for name, value in vars(view).items() if value is not None} == {*names, *always}
    assert {f for names in FIELDS_OF.values() for f in names} | always == full


def test_the_inputs_are_what_their_names_say():
    size = Size(12, 6, 2, 4, 5, 7, 2)
    view = {kind: make_view(size, 3, kind) for kind in KINDS}
    assert torch.equal(view["random"].log_probs_PSC, make_view(size, 3).log_probs_PSC)
    assert not torch.equal(view["random"].log_probs_PSC, make_view(size, 4).log_probs_PSC)
    for kind, distinct in (
        ("random", 12), ("identical", 1), ("identical, certain", 1), ("identical, uniform, embeddings 0", 1),
        ("every image twice", 6), ("three distinct images", 3), ("a probability of 0", 12),
    ):  # fmt: skip
        assert len(view[kind].log_probs_PSC.unique(dim=0)) == len(view[kind].features_PF.unique(dim=0)) == distinct
    torch.testing.assert_close(view["random"].features_PF.norm(dim=1), torch.ones(12))
    assert set(view["certain"].log_probs_PSC.flatten().tolist()) == {0, -torch.inf}
    assert not view["embeddings 0"].emb_PD.any() and view["uniform"].log_probs_PSC.exp().allclose(torch.tensor(0.25))
    zero = view["a probability of 0"].log_probs_PSC == -torch.inf
    assert zero.sum((1, 2)).tolist() == [2, 0, 0] * 4
    small = view["a probability of exp(-80)"].log_probs_PSC
    assert (small[zero] == -80).all() and torch.equal(small[~zero], view["a probability of 0"].log_probs_PSC[~zero])
    assert view["one labelled class"].labelled_labels_L.unique().tolist() == [0]
    assert view["float16"].emb_PD.dtype == view["float16"].labelled_log_probs_LC.dtype == torch.float16
    assert torch.equal(view["float16"].emb_PD.float(), view["float16 as float32"].emb_PD)


def test_a_check_leaves_the_process_as_it_was():
    chunk, state, setting = strategies.CHUNK, global_state(), process.settings()
    # The second strategy fails while chunks are small, the others while a setting is changed.
    for strategy in (entropy, wrong.last_chunk_dropped, wrong_habits.a_thread_each, *wrong_habits.SETTERS):
        broken_rules(strategy, [rules.chunks_do_not_matter, rules.settings_are_left_alone, rules.threads_do_not_matter])
        assert strategies.CHUNK == chunk and global_state() == state and process.settings() == setting
    rule = rules.global_generators_are_left_alone
    for strategy in (wrong.reseeds_the_world, wrong.global_torch, wrong.global_numpy, wrong.global_python):
        assert try_rule(rule, strategy, 1)[0] == "FAILED" and global_state() == state


def test_choices_are_told_apart_by_how_often_each_image_is_chosen():
    def sample(weights, seed):
        picks = [torch.multinomial(torch.tensor(weights), 3, generator=seeded(seed + i)).tolist() for i in range(24)]
        return choice_matrix(picks, len(weights))

    rising = [float(i) for i in range(1, 21)]
    assert not differ(sample(rising, 0), sample(rising, 100))
    assert differ(sample(rising, 0), sample(rising[::-1], 100))
    always = torch.eye(20)[[3] * 24]
    assert not differ(always, always) and differ(always, torch.eye(20)[[4] * 24])
    # Two fixed batches, chosen by a coin: 24 tosses say little about either.
    whole = torch.cat([torch.ones(1, 10), torch.zeros(1, 10)], 1)
    both = torch.cat([whole, 1 - whole])
    assert not differ(both[torch.arange(24) % 2], both[(torch.arange(24) % 3 == 0).long()])
    false_alarms = sum(differ(sample(rising, 1000 + 50 * i), sample(rising, 10**6 + 50 * i)) for i in range(60))
    assert false_alarms == 0


def test_memory_is_what_is_held_at_a_time():
    case = Case(Size(P=100, L=3, S=1, C=3, D=4, F=4, k=2))

    def grows(view, k, rng):
        for _ in range(5):
            torch.zeros(10**6, dtype=torch.uint8)  # freed before the next
        one, other = torch.zeros(10**6, dtype=torch.uint8), np.ones(2 * 10**6, dtype=np.uint8)
        assert one.view(10, -1)[0].sum() == 0 and len(other)  # a view takes no more memory
        return torch.arange(k)

    assert 3e6 <= process.memory_of(grows, case) < 3.1e6
    assert process.memory_of(random_sampling, case) < 1e5
