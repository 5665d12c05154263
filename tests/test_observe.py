"""What reaches a strategy: passes, committees, candidates, fixed features, the last layer, and the initial set."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, asked, lines_of, seeded
from conftest import run_here as run_longer

from al_bench import loop, observe, rng
from al_bench.config import InitialDraw
from al_bench.data import pool, sources
from al_bench.errors import UserError
from al_bench.models.learner import Learner
from al_bench.options import whole_strategies
from al_bench.store import RunStore
from al_bench.strategies import Strategy, needs, top_k
from al_bench.strategies.random import random_sampling

SEEN = []


def run_here(folder, *overrides):
    return run_longer(folder, "trainer.max_steps=5", *overrides)


@needs(embeddings=True, labelled=True, features=True, head=True)
def spy(view, k, rng):
    SEEN.append(view)
    return top_k(torch.zeros(view.n_pool), k, rng)


@needs(embeddings=True)
def embeds(view, k, rng):
    SEEN.append(view)
    return top_k(torch.zeros(view.n_pool), k, rng)


@needs(passes=True)
def compares(view, k, rng):
    SEEN.append(view)
    return top_k(view.log_probs_PSC.std(1).sum(1), k, rng)


def mine(function, **settings):
    return ["strategy=random", "strategy.name=mine", f"strategy._target_=test_observe.{function.__name__}"] + [
        f"strategy.{key}={value}" for key, value in settings.items()
    ]


def backwards(view, k, rng):
    return torch.arange(k).flip(0)


def digits(c):
    return sources.load(c.dataset, sources.find(c.dataset, None, "unused"), c.seed)


@pytest.fixture(autouse=True)
def forget():
    SEEN.clear()


@pytest.fixture
def looked(monkeypatch):
    """The arguments of each call of observe.pool_view."""
    calls, real = [], observe.pool_view
    monkeypatch.setattr(observe, "pool_view", lambda *args: calls.append(args) or real(*args))
    return calls


def test_a_strategy_is_given_what_it_asks_for_and_nothing_else(tmp_path):
    run_here(tmp_path, *mine(spy), "budget.rounds=1")
    (view,) = SEEN
    n_pool, n_labelled = view.n_pool, len(view.labelled_labels_L)
    assert n_labelled == 20 and n_pool == 1797 - 359 - 20 - 20
    assert view.log_probs_PSC.shape == (n_pool, 1, 10) and view.labelled_log_probs_LC.shape == (20, 10)
    assert view.emb_PD.shape == (n_pool, 128) and view.labelled_emb_LD.shape == (20, 128)
    assert view.features_PF.shape == (n_pool, 64) and view.labelled_features_LF.shape == (20, 64)
    torch.testing.assert_close(view.features_PF.norm(dim=1), torch.ones(n_pool))
    logits_PC = view.emb_PD @ view.head_weight_CD.T + view.head_bias_C
    torch.testing.assert_close(logits_PC.log_softmax(1), view.log_probs_PSC[:, 0], atol=1e-5, rtol=1e-5)

    SEEN.clear()
    run_here(tmp_path / "passes", *mine(compares, passes=3), "budget.rounds=1")
    (view,) = SEEN
    assert view.log_probs_PSC.shape == (n_pool, 3, 10) and view.emb_PD is view.features_PF is view.head_bias_C is None


def test_row_i_of_the_view_is_image_i(tmp_path, looked):
    run_here(tmp_path, *mine(spy, candidates=50, members=2), "budget.rounds=1", "trainer.precision=32-true")
    ((_, learner, nets, labels, positions_P, _),), (view,) = looked, SEEN
    images, features_NF = learner.images, learner.features_NF
    idx_P, labelled_L = labels.unlabelled_P[positions_P], labels.labelled_L
    with torch.inference_mode():
        (logits_PC, emb_PD), (others_PC, _) = [net.eval()(images[idx_P]) for net in nets]
        (logits_LC, emb_LD), (others_LC, _) = [net.eval()(images[labelled_L]) for net in nets]
    torch.testing.assert_close(view.log_probs_PSC, torch.stack([logits_PC, others_PC], 1).log_softmax(2))
    torch.testing.assert_close(view.labelled_log_probs_LC.exp(), (logits_LC.softmax(1) + others_LC.softmax(1)) / 2)
    torch.testing.assert_close(view.emb_PD, emb_PD)
    torch.testing.assert_close(view.labelled_emb_LD, emb_LD)
    torch.testing.assert_close(emb_PD @ view.head_weight_CD.T + view.head_bias_C, logits_PC)
    assert torch.equal(view.features_PF, features_NF[idx_P])
    assert torch.equal(view.labelled_features_LF, features_NF[labelled_L])
    assert torch.equal(view.labelled_labels_L, labels.labels_L)


def test_labelled_embeddings_without_labelled_predictions_keep_the_order_of_acquisition(tmp_path, looked):
    run_here(tmp_path, *mine(embeds), "budget.rounds=1", "trainer.precision=32-true")
    ((_, learner, nets, labels, *_),), (view,) = looked, SEEN
    images = learner.images
    with torch.inference_mode():
        _, emb_LD = nets[0].eval()(images[labels.labelled_L])
    torch.testing.assert_close(view.labelled_emb_LD, emb_LD)
    assert view.labelled_log_probs_LC is None


def test_the_answer_is_acquired_in_its_order_from_the_candidates(tmp_path):
    run = run_here(tmp_path, *mine(backwards, candidates=12), "budget.rounds=1")
    dataset, oracle = digits(run.config)
    first = pool.start(dataset.train_idx, oracle, run.config.budget, 0)
    strategy = Strategy(backwards, "mine", candidates=12)
    shown = first.unlabelled_P[observe.candidates(strategy, len(first.unlabelled_P), seed=0, round=0)]
    assert run.records()[0].acquired == shown[:10].flip(0).tolist()


def test_every_draw_of_a_round_is_of_that_round_and_every_draw_of_a_member_is_its_own(tmp_path, monkeypatch):
    rounds, number = defaultdict(set), rng._number

    def log(seed, purpose, round):
        rounds[purpose].add(round)
        return number(seed, purpose, round)

    monkeypatch.setattr(rng, "_number", log)
    asks = mine(compares, candidates=30, members=2, passes=2)
    run_here(tmp_path, *asks, "budget.rounds=2", "trainer.augment=flip")
    trained, chosen = ("weights", "fit", "batches", "augment"), ("candidates", "dropout", "select")
    expected = {p: {0, 1, 2} for p in trained} | {p: {0, 1} for p in chosen}
    expected |= {f"{p} of member 1": {0, 1} for p in (*trained, "dropout")}
    assert {p: rounds[p] for p in expected} == expected


def test_features_by_the_model_are_its_embeddings_at_unit_length(tmp_path):
    run_here(tmp_path, *mine(spy), "features=model", "budget.rounds=1")
    (view,) = SEEN
    torch.testing.assert_close(view.features_PF, torch.nn.functional.normalize(view.emb_PD, dim=1))
    assert view.labelled_features_LF.shape == (20, 128)


def test_passes_and_members_change_neither_the_fit_nor_the_test(tmp_path):
    """All strategies of one seed share the net that is tested; a committee's other nets only choose."""
    plain = lines_of(run_here(tmp_path, "strategy=margin", "budget.rounds=1").folder)[0]
    for settings in ({"passes": 3}, {"members": 2}, {"members": 2, "passes": 2}):
        name = "-".join(f"{k}{v}" for k, v in settings.items())
        asks = [f"strategy.{k}={v}" for k, v in settings.items()]
        first = lines_of(run_here(tmp_path / name, "strategy=margin", "budget.rounds=1", *asks).folder)[0]
        assert first["metrics"] == plain["metrics"] and first["history"] == plain["history"]
        assert first["acquired"] != plain["acquired"]


def test_the_first_member_is_the_net_that_is_tested_and_each_other_is_built_trained_and_thinned_on_its_own(
    tmp_path, looked
):
    run_here(tmp_path, *mine(spy, members=3, passes=2), "budget.rounds=1")
    ((_, learner, nets, labels, positions_P, _),), (view,) = looked, SEEN
    assert [len(net.history) for net in nets] == [1, 1, 1]
    pool_PSC, labelled_LSC = [], []
    for member, net in enumerate(nets):
        alone = learner.build(0, member)
        learner.fit(alone, labels, 0, member)
        assert all(torch.equal(*pair) for pair in zip(net.parameters(), alone.parameters(), strict=True))
        passes = learner.passes(alone, 2, f"dropout of member {member}" if member else "dropout", 0)
        for idx, seen in ((labels.unlabelled_P[positions_P], pool_PSC), (labels.labelled_L, labelled_LSC)):
            seen.append(learner.predict(alone, idx, passes=passes).log_probs_PSC)
    torch.testing.assert_close(view.log_probs_PSC, torch.cat(pool_PSC, 1))
    torch.testing.assert_close(view.labelled_log_probs_LC.exp(), torch.cat(labelled_LSC, 1).exp().mean(1))


def test_the_test_by_passes_is_the_mean_of_their_probabilities_and_changes_nothing_else(tmp_path, monkeypatch):
    predict, measure, tested, measured = Learner.predict, loop.measure, [], []

    def kept(learner, net, idx, *args, **kwargs):
        seen = predict(learner, net, idx, *args, **kwargs)
        tested.extend([seen.log_probs_PSC] * (idx is learner.dataset.test_idx))
        return seen

    monkeypatch.setattr(Learner, "predict", kept)
    monkeypatch.setattr(loop, "measure", lambda *seen: measured.append(seen[0]) or measure(*seen))
    plain, by_passes, other = (
        lines_of(run_here(tmp_path / name, *ask, "budget.rounds=1").folder)
        for name, ask in (
            ("plain", ["strategy=margin"]),
            ("passes", ["strategy=margin", "trainer.test_passes=3"]),
            ("other", ["strategy=random", "trainer.test_passes=3"]),
        )
    )
    assert [t.shape[1] for t in tested] == [1, 1, 3, 3, 3, 3]
    assert not torch.equal(tested[2][:, 0], tested[2][:, 1])
    for seen_VSC, measured_VC in zip(tested, measured, strict=True):
        torch.testing.assert_close(measured_VC.exp(), seen_VSC.exp().mean(1))
    assert [r["metrics"] != p["metrics"] for r, p in zip(by_passes, plain, strict=True)] == [True, True]
    assert [r | {"metrics": 0} for r in by_passes] == [p | {"metrics": 0} for p in plain]
    assert other[0]["metrics"] == by_passes[0]["metrics"]  # the masks are those of the seed, not of the strategy


@pytest.mark.parametrize("ask", [("strategy.passes=3",), ("strategy.members=2",), ("trainer.test_passes=3",)])
def test_a_resumed_run_sees_the_same_masks_and_members(tmp_path, ask):
    whole = run_here(tmp_path / "whole", "strategy=margin", *ask, "budget.rounds=2")
    run = run_here(tmp_path / "cut", "strategy=margin", *ask, "budget.rounds=2")
    lines = run.rounds_path.read_text().splitlines(keepends=True)
    run.rounds_path.write_text(lines[0])
    run.note(state="running")
    assert lines_of(run_here(tmp_path / "cut", "strategy=margin", *ask, "budget.rounds=2").folder) == lines_of(
        whole.folder
    )


def test_a_strategy_chooses_among_the_candidates_which_differ_by_round_not_by_strategy(tmp_path):
    by_name = {}
    for name in ("entropy", "margin", "random"):
        store = run_here(tmp_path, f"strategy={name}", "strategy.candidates=30", "budget.rounds=2")
        by_name[name] = lines_of(store.folder)
        assert [r["n_candidates"] for r in by_name[name]] == [30, 30, 0]
    strategy = Strategy(backwards, "mine", candidates=30)
    first, second = (observe.candidates(strategy, 1398, 0, round) for round in (0, 1))
    assert len(first.unique()) == 30 and not torch.equal(first, second) and first.max() < 1398
    assert torch.equal(observe.candidates(strategy, 30, 0, 0), torch.arange(30))
    pool = run_here(tmp_path / "all", "strategy=random", "budget.rounds=1")
    assert lines_of(pool.folder)[0]["n_candidates"] == 1398


@pytest.mark.parametrize(
    "asks, message",
    [
        (("strategy.passes=1",), "strategy.passes=1: from 2 to 10,000"),
        (("strategy.members=1",), "strategy.members=1: from 2 to 1,000"),
        (("strategy.candidates=5", "budget.query=10"), "strategy.candidates=5: 10 or more"),
        (("strategy.members=2", "trainer.start=previous"), "set trainer.start=fresh"),
        (("budget.start=typiclust", "features=model"), "chooses before any training"),
        (("model.dropout=1",), "model.dropout=1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(asks, message):
    with pytest.raises(UserError, match=message):
        asked(*asks)


def test_a_strategy_that_compares_predictions_says_what_to_set(tmp_path):
    with pytest.raises(UserError, match="mine compares several predictions.*strategy.passes=20.*strategy.members=5"):
        run_here(tmp_path, *mine(compares))


def test_passes_of_a_model_without_dropout_are_refused_before_anything_is_trained(tmp_path):
    from al_bench.recipe import run_folder

    ask = ("model=timm", "model.name=test_resnet", "model.pretrained=false", "strategy=margin", "strategy.passes=4")
    with pytest.raises(
        UserError, match="strategy margin: the model has no dropout.*model.dropout=0.5.*strategy.members=5"
    ):
        run_here(tmp_path, *ask)
    folder = run_folder(asked(f"results_dir={tmp_path}", *ask))
    assert not (folder / "rounds.jsonl").exists() or not (folder / "rounds.jsonl").read_text()
    run_here(tmp_path, *ask, "model.dropout=0.5", "budget.rounds=1")


def test_a_test_with_dropout_of_a_model_without_it_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "fit", None)
    ask = ("model=timm", "model.name=test_resnet", "model.pretrained=false", "trainer.test_passes=4")
    with pytest.raises(UserError) as error:
        run_here(tmp_path, *ask)
    assert str(error.value) == (
        "trainer.test_passes=4: the model has no dropout, so all passes would be the same. Set model.dropout=0.5 (timm "
        "and frozen models) or model.head=logistic (frozen models), or choose model=small_cnn or bcnn."
    )


@pytest.mark.parametrize("start", ["k_center", "k_means", "typiclust", "prob_cover", "active_ft", "bilaf"])
def test_the_initial_set_can_be_chosen_without_a_label_and_is_shared_by_all_strategies(tmp_path, start):
    ask = (f"budget.start={start}", "budget.rounds=1")
    runs = [run_here(tmp_path, f"strategy={name}", *ask).info()["initial_set"] for name in ("random", "margin")]
    assert runs[0] == runs[1] and runs[0]["n"] == 20
    plain = run_here(tmp_path / "plain", "budget.rounds=1").info()["initial_set"]
    assert plain["checksum"] != runs[0]["checksum"]


def test_an_initial_set_is_chosen_by_the_features_of_the_images_it_is_chosen_from():
    features_NF = torch.arange(60.0)[:, None]
    features_NF[57] = 1000
    learner = SimpleNamespace(dataset=SimpleNamespace(n_classes=2), features_NF=features_NF)
    choose = observe.initial_draw(InitialDraw.k_center, learner)
    assert 57 in choose(torch.arange(20, 60), 2, seeded())


@pytest.mark.parametrize("name", whole_strategies())
def test_every_strategy_runs_end_to_end_and_again_the_same(tmp_path, name):
    """The real loop on real images: passes, committees, features and all."""
    fewer = ["strategy.members=2"] if asked(f"strategy={name}").strategy.get("members") else []
    frozen = ["model=pca"] if name == "select_al" else []  # it trains layers on features that stay
    runs = [run_here(tmp_path / str(i), f"strategy={name}", "budget.rounds=1", *fewer, *frozen) for i in range(2)]
    assert lines_of(runs[0].folder) == lines_of(runs[1].folder)
    assert len(set(lines_of(runs[0].folder)[0]["acquired"])) == 10


@pytest.mark.parametrize("name", ["random", "coreset", "typiclust", "drop_query"])
def test_passes_and_members_for_a_strategy_that_looks_at_no_predictions_are_refused(tmp_path, name):
    for ask in ("passes", "members"):
        with pytest.raises(UserError, match=f"strategy {name} uses no predictions, so strategy.{ask} .*=null"):
            run_here(tmp_path, f"strategy={name}", f"strategy.{ask}=3")


def test_features_count_as_another_configuration_only_where_they_are_used(tmp_path):
    for name, used in (("random", False), ("typiclust", True)):
        first = run_here(tmp_path, f"strategy={name}", "features.width=32", "budget.rounds=1")
        other = asked(f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache", *QUICK, "trainer.max_steps=5",
                      f"strategy={name}", "features.width=16", "budget.rounds=1")  # fmt: skip
        assert first.info()["features"] == ("pca" if used else None)
        if used:
            with pytest.raises(UserError, match="features.width: there 32, asked 16"):
                RunStore(other).finished()
        else:
            assert RunStore(other).finished()


@pytest.mark.parametrize(
    "ask, message",
    [
        ("strategy=max_herding strategy.sigma=0", "sigma is 0 and has to be above 0"),
        ("strategy=prob_cover strategy.delta=-1", "delta is -1 and has to be above 0, or null"),
        ("strategy=cal strategy.neighbours=0", "neighbours is 0 and has to be at least 1"),
        ("strategy=alfa_mix strategy.step=0", "step is 0 and has to be above 0"),
        ("strategy=batchbald strategy.configurations=0", "configurations is 0 and has to be at least 1"),
        ("strategy=epig strategy.targets=-1", "targets is -1 and has to be at least 1"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, ask, message):
    with pytest.raises(UserError, match=f"round 0: {message}"):
        run_here(tmp_path, *ask.split())


def test_a_frozen_small_cnn_can_have_dropout_before_its_last_layer(tmp_path):
    ask = ("model.mode=frozen", "strategy=margin", "strategy.passes=3", "budget.rounds=1")
    with pytest.raises(UserError, match="no dropout"):
        run_here(tmp_path, *ask)
    run_here(tmp_path, *ask, "model.dropout=0.5")


def test_random_sampling_is_not_even_predicted(tmp_path):
    assert lines_of(run_here(tmp_path, "strategy=random", "budget.rounds=1").folder)
    learner = Learner(asked().model, asked().trainer, SimpleNamespace(n_classes=2), 0)
    view = observe.pool_view(Strategy(random_sampling, "random"), learner, [None], _labels(), torch.arange(3), 0)
    assert view.log_probs_PSC is None and view.n_pool == 3


def _labels():
    from al_bench.data.pool import Pool

    nothing = torch.empty(0, dtype=torch.int64)
    return Pool(nothing, nothing, torch.arange(3), nothing, nothing)
