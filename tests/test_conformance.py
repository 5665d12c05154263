"""Every strategy of conf/strategy obeys every rule, and every rule catches a strategy made to break it."""

import random
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_bench import conformance, strategies
from al_bench.cli import conf_dir
from al_bench.conformance import RULES, choose, load, main, verdict
from al_bench.conformance_inputs import KINDS, Case, make_view
from al_bench.strategies import FIELDS_OF, Needs, PoolView, Size, by_chunks, needs, top_k
from al_bench.strategies.random import random_sampling
from al_bench.strategies.uncertainty import entropy, entropy_score

NAMES = sorted(f.stem for f in (conf_dir() / "strategy").glob("*.yaml"))
loaded = cache(lambda name: load(name, []))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_obeys_every_rule(name, rule):
    result, remark = verdict(rule, *loaded(name))
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
    except conformance.Refused:
        assert n_labelled < 2 or kind == "one labelled class"


# --- Each rule catches what it is there for


def draw(view, k, rng):
    return torch.randperm(view.n_pool, generator=rng)[:k]


def score_of(view):
    return entropy_score(view.log_probs_PSC)


def undeclared(view, k, rng):
    return top_k(view.emb_PD.norm(dim=1), k, rng)


def one_is_no_list(view, k, rng):
    return entropy(view, k, rng).squeeze()


def twice_when_all_are_wanted(view, k, rng):
    chosen = entropy(view, k, rng)
    chosen[-1] = chosen[0] if 1 < k == view.n_pool else chosen[-1]
    return chosen


def int32(view, k, rng):
    return entropy(view, k, rng).int()


def unseeded(view, k, rng):
    return torch.from_numpy(np.random.default_rng().permutation(view.n_pool)[:k])


def global_torch(view, k, rng):
    return top_k(score_of(view)[order := torch.randperm(view.n_pool)], k, rng).apply_(lambda i: order[i])


def global_numpy(view, k, rng):
    return torch.from_numpy(np.random.permutation(view.n_pool)[:k])


def global_python(view, k, rng):
    return torch.tensor(random.sample(range(view.n_pool), k))


def reseeds_the_world(view, k, rng):
    torch.manual_seed(0)
    return entropy(view, k, rng)


def ties_by_index(view, k, rng):
    return score_of(view).argsort(descending=True, stable=True)[:k]


def first_pick_by_index(view, k, rng):
    first = int(score_of(view).argmax())
    return torch.tensor([first] + [i for i in draw(view, view.n_pool, rng).tolist() if i != first][: k - 1])


def same_draw_for_every_seed(view, k, rng):
    return draw(view, k, torch.Generator().manual_seed(0))


def last_block_dropped(view, k, rng):
    whole_blocks = view.n_pool // 500 * 500 or view.n_pool
    return torch.randperm(whole_blocks, generator=rng)[:k]


def last_block_scored_last(view, k, rng):
    score_P = score_of(view)
    score_P[view.n_pool // 250 * 250 :] -= 10 * (view.n_pool > 250)
    return top_k(score_P, k, rng)


def off_by_one(view, k, rng):
    return (entropy(view, k, rng) + 1) % view.n_pool


def swaps_the_last_images(view, k, rng):
    score_P = score_of(view)
    return top_k(torch.cat([score_P[:-2], score_P[-2:].flip(0)]), k, rng)


def normalised_by_chunk(view, k, rng):
    return top_k(by_chunks(lambda lp: entropy_score(lp) - entropy_score(lp).mean(), view.log_probs_PSC), k, rng)


def last_chunk_dropped(view, k, rng):
    rows = max(1, strategies.CHUNK // view.log_probs_PSC[0].numel())
    whole = view.n_pool // rows * rows or view.n_pool
    return top_k(score_of(view)[:whole], k, rng)


def nan_is_an_error(view, k, rng):
    probs_PC = view.log_probs_PSC.float().exp().mean(1)
    return top_k(-(probs_PC * probs_PC.log()).sum(1), k, rng)


def nan_is_first(view, k, rng):
    probs_PC = view.log_probs_PSC.float().exp().mean(1)
    order = torch.randperm(view.n_pool, generator=rng)  # ties are drawn, so nothing else is wrong
    score_P = -(probs_PC * probs_PC.log()).sum(1)[order].double().numpy()
    return order[np.argsort(score_P)[::-1].copy()[:k]]


@needs(embeddings=True)
def divides_by_norm(view, k, rng):
    return top_k((view.emb_PD.float() / view.emb_PD.float().norm(dim=1, keepdim=True))[:, 0], k, rng)


@needs(embeddings=True)
def fewer_points_than_centres(view, k, rng):
    """D^2 sampling without a thought for the day when all distances are 0, unless they are from the start."""
    emb_PD = view.emb_PD.double()
    picks = [int(torch.randint(view.n_pool, (1,), generator=rng))]
    if len(emb_PD.unique(dim=0)) == 1:
        return draw(view, k, rng)
    while len(picks) < k:
        sq_dist_P = (emb_PD[:, None] - emb_PD[picks]).square().sum(-1).min(1).values
        picks.append(int(torch.multinomial(sq_dist_P, 1, generator=rng)))
    return torch.tensor(picks)


@needs(embeddings=True)
def no_labels_no_minimum(view, k, rng):
    return top_k(torch.cdist(view.emb_PD.double(), view.labelled_emb_LD.double()).min(1).values, k, rng)


@needs(embeddings=True)
def library_refuses(view, k, rng):
    max(view.labelled_labels_L.tolist())  # ValueError, but nobody's sentence
    return top_k(view.emb_PD.double().norm(dim=1), k, rng)


def rounds_in_half(view, k, rng):
    log_probs_PC = view.log_probs_PSC[:, 0]
    return top_k(-(log_probs_PC.exp() * log_probs_PC.clamp_min(-100)).sum(1), k, rng)


@needs(embeddings=True, head=True)
def mixes_types(view, k, rng):
    return top_k((view.emb_PD.unique(dim=0) @ view.head_weight_CD.T).sum() + score_of(view), k, rng)


def clamps_in_place(view, k, rng):
    view.log_probs_PSC.clamp_(min=-1e4)
    return entropy(view, k, rng)


def sorts_in_place(view, k, rng):
    chosen = entropy(view, k, rng)
    view.labelled_labels_L.zero_()
    return chosen


WRONG = {
    undeclared: {"all"},
    one_is_no_list: {"every_size"},
    twice_when_all_are_wanted: {"every_size", "few_distinct_points"},
    int32: {"all"},
    unseeded: {"seed_decides", "chunks_do_not_matter", "float16_works", "zero_is_a_small_probability"},
    global_torch: {"global_generators_are_left_alone"},
    reseeds_the_world: {"global_generators_are_left_alone"},
    ties_by_index: {"ties_are_drawn", "no_image_is_left_out"},
    first_pick_by_index: {"ties_are_drawn"},
    same_draw_for_every_seed: {"ties_are_drawn", "order_does_not_matter"},
    last_block_dropped: {"no_image_is_left_out"},
    last_block_scored_last: {"no_image_is_left_out", "order_does_not_matter"},
    off_by_one: {"order_does_not_matter"},
    swaps_the_last_images: {"order_does_not_matter"},
    normalised_by_chunk: {"chunks_do_not_matter"},
    last_chunk_dropped: {"every_size", "chunks_do_not_matter"},
    nan_is_an_error: {"degenerate_predictions", "zero_is_a_small_probability", "ties_are_drawn", "view_is_read_only"},
    nan_is_first: {"zero_is_a_small_probability"},
    divides_by_norm: {"degenerate_predictions", "ties_are_drawn"},
    fewer_points_than_centres: {"few_distinct_points"},
    no_labels_no_minimum: {"few_labels"},
    library_refuses: {"few_labels"},
    rounds_in_half: {"float16_works"},
    mixes_types: {"float16_works", "view_is_read_only"},
    clamps_in_place: {"view_is_read_only"},
    sorts_in_place: {"view_is_read_only"},
}


def broken_rules(strategy):
    return {rule.__name__ for rule in RULES if verdict(rule, strategy, 1)[0] == "FAILED"}


@pytest.mark.parametrize("strategy", WRONG, ids=lambda strategy: strategy.__name__)
def test_a_wrong_strategy_is_caught_by_its_rule(strategy):
    broken = broken_rules(strategy)
    assert broken == WRONG[strategy] or (WRONG[strategy] == {"all"} and "it_runs" in broken)


def test_every_rule_has_a_strategy_that_it_catches():
    shown = {"it_runs", "broken_models_are_refused"}  # below, and by "all"
    assert set.union(*WRONG.values()) - {"all"} | shown == {rule.__name__ for rule in RULES}


def refuses(view, k, rng):
    if not len(view.labelled_labels_L):
        raise ValueError("it needs labelled images: set budget.initial=10 or more")
    return entropy(view, k, rng)


def test_a_refusal_is_a_sentence_of_the_strategys_own_and_only_where_labels_are_few():
    rule = conformance.few_labels
    assert verdict(rule, refuses, 1) == (
        "refused",
        "no labelled image: it needs labelled images: set budget.initial=10 or more",
    )
    assert broken_rules(refuses) == set()
    assert verdict(rule, library_refuses, 1)[0] == verdict(rule, no_labels_no_minimum, 1)[0] == "FAILED"

    def never(view, k, rng):
        raise ValueError("not today")

    assert "It raised ValueError: not today (test_conformance.py, line" in verdict(conformance.it_runs, never, 1)[1]


def test_a_failure_names_the_cause_and_an_input_that_can_be_made_again():
    result, remark = verdict(conformance.it_runs, undeclared, 1)
    assert result == "FAILED"
    assert remark.startswith("It uses view.emb_PD without declaring it: put @needs(embeddings=True) above it. Input: ")
    made = eval(remark.split("Input: ")[1].split(", k=2, seed")[0], {"make_view": make_view, "Size": Size})
    assert made.n_pool == 5 and torch.equal(made.emb_PD, make_view(Size(5, 3, 1, 2, 2, 3, 2), 1).emb_PD)
    assert "returned torch.int64 []. Input: " in verdict(conformance.every_size, one_is_no_list, 1)[1]
    assert "torch.int32" in verdict(conformance.it_runs, int32, 1)[1]


def test_a_broken_model_that_nobody_refuses_breaks_the_rule(monkeypatch):
    rule = conformance.broken_models_are_refused
    assert verdict(rule, nan_is_first, 1) == ("ok", "")
    assert verdict(rule, random_sampling, 1) == ("ok", "nothing to break: it looks at no numbers of the model")
    monkeypatch.setattr(strategies, "check_view", lambda view, where: None)
    assert "nan in view.log_probs_PSC it said: nothing" in verdict(rule, nan_is_first, 1)[1]


def test_a_strategy_that_samples_is_not_compared_with_itself_on_a_permuted_pool():
    rule = conformance.order_does_not_matter
    assert verdict(rule, draw, 1) == ("ok", "not compared: it samples, or its scores have ties")
    assert verdict(rule, entropy, 1) == ("ok", "")


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
        ("random", 12), ("alike", 1), ("alike, certain", 1), ("alike, uniform, embeddings 0", 1),
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
    chunk, state = strategies.CHUNK, conformance.global_state()
    for strategy in (entropy, last_chunk_dropped):  # the second fails while chunks are small
        broken_rules(strategy)
        assert strategies.CHUNK == chunk and conformance.global_state() == state
    rule = conformance.global_generators_are_left_alone
    for strategy in (reseeds_the_world, global_torch, global_numpy, global_python):
        assert verdict(rule, strategy, 1)[0] == "FAILED" and conformance.global_state() == state


# --- The command


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_checked.py").write_text(MINE)
    (tmp_path / "mine_unclosed.py").write_text("x = (")
    (tmp_path / "mine.yaml").write_text("name: mine\n_target_: mine_checked.scaled\npasses: 3\nby: 2.0\n")
    (tmp_path / "mine_script.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "list.yaml").write_text("- name: mine\n")
    (tmp_path / "latin.yaml").write_bytes("name: médiane\n".encode("latin-1"))
    (tmp_path / "nothing.yaml").write_text("_target_:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


MINE = """
import torch
from al_bench.strategies import needs, top_k
from al_bench.strategies.uncertainty import entropy_score

NUMBER = 3

def scaled(view, k, rng, *, by=1.0):
    return top_k(by * entropy_score(view.log_probs_PSC), k, rng)

def by_index(view, k, rng):
    return entropy_score(view.log_probs_PSC).argsort(descending=True, stable=True)[:k]

@needs(passes=True)
def committee(view, k, rng):
    assert view.log_probs_PSC.shape[1] > 1
    return top_k(entropy_score(view.log_probs_PSC), k, rng)

def undeclared(view, k, rng):
    return top_k(view.features_PF[:, 0], k, rng)

def no_strategy(view):
    return view
"""


@pytest.mark.parametrize(
    "ask", ["entropy", "mine_checked.scaled", "mine_checked.scaled by=2", "mine_checked.committee", "mine.yaml"]
)
def test_the_command_prints_a_line_a_rule_and_a_verdict(mine, capsys, ask):
    assert main(ask.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"ok       {rule.__doc__}" for rule in RULES] + [f"{ask.split()[0]} obeys all {len(RULES)} rules."]


def test_the_command_says_what_failed_and_stops_where_nothing_runs(mine, capsys):
    assert main(["mine_checked.by_index"]) == 1
    out = capsys.readouterr().out
    assert (
        f"FAILED   {conformance.ties_are_drawn.__doc__}\n         In 30 draws the 12 images were chosen [30, 30" in out
    )
    assert out.splitlines()[-1] == f"mine_checked.by_index breaks 2 of {len(RULES)} rules."
    assert main(["mine_checked.undeclared"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2] == "mine_checked.undeclared does not run, so the other rules were not tried."


@pytest.mark.parametrize(
    "ask, said",
    [
        ("entrpy", "There is no strategy entrpy. Name your own with its module: my_module.my_strategy. Did you mean"),
        ("nowhere.yaml", "There is no strategy nowhere.yaml."),
        ("broken.yaml", "broken.yaml  cannot be read: "),
        ("list.yaml", "list.yaml holds a list, and a strategy's file has keys: name, _target_ and its options."),
        ("latin.yaml", "latin.yaml  cannot be read: 'utf-8' codec can't decode"),
        ("nothing.yaml", "nothing.yaml: _target_=None is no dotted path, such as my_module.my_strategy."),
        ("badge _target_=[a]", "badge: _target_=['a'] is no dotted path, such as my_module.my_strategy."),
        ("mine_script.f", "mine_script.f cannot be loaded: SystemExit(0)."),
        ("no_module.f", "no_module.f cannot be loaded: No module named 'no_module'."),
        ("mine_unclosed.f", "mine_unclosed.f cannot be loaded: '(' was never closed"),
        ("mine_checked.f", "mine_checked.f cannot be loaded: module 'mine_checked' has no attribute 'f'."),
        ("mine_checked.NUMBER", "mine_checked.NUMBER is no function, and a strategy is one: (view, k, rng, *, opt"),
        ("mine_checked.no_strategy", "mine_checked.no_strategy cannot be loaded (too many positional arguments)."),
        ("mine_checked.scaled bye=2", "cannot be loaded (got an unexpected keyword argument 'bye')."),
        ("mine_checked.scaled by", "by: an option is given as name=value."),
    ],
)
def test_a_mistake_gets_a_sentence(mine, capsys, ask, said):
    assert main(ask.split()) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("al_bench: ") and said in shown.err and shown.out == ""


def test_without_a_name_the_command_says_how_it_is_used(capsys):
    assert main([]) == 1 and main(["--help"]) == 0
    assert capsys.readouterr().out.count("al-bench check NAME [option=value ...]") == 2
