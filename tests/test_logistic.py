"""model.head=logistic: the optimum, its samples, and runs with it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import asked, command, lines_of, pulled_plug, run_here, seeded
from sklearn.linear_model import LogisticRegression

from al_bench import plan, rng
from al_bench.data import Dataset
from al_bench.data.cache import checksum
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.models.features import _with_features
from al_bench.models.logistic import LogisticLearner, minimise, penalty_of, relative_penalty, sample, solve
from al_bench.recipe import run_folder

pytestmark = pytest.mark.usefixtures("one_thread")

LOGISTIC = ("model.mode=frozen", "model.head=logistic", "trainer.accelerator=cpu", "trainer.progress=false")
NOTHING = torch.empty(0, dtype=torch.int64)


def clusters(n=60, width=5, classes=3, apart=1.0):
    """Features around one centre a class, float64, and their classes."""
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=seeded(1), dtype=torch.float64)
    return apart * centres[labels] + torch.randn(n, width, generator=seeded(2), dtype=torch.float64), labels


def learner_of(features_ND, labels_N, n_labelled=40, *overrides):
    """The learner on these features, and the pool with the first images labelled; the last ten are the test set."""
    train, test = torch.arange(len(labels_N) - 10), torch.arange(len(labels_N) - 10, len(labels_N))
    names = tuple(map(str, range(int(labels_N.max()) + 1)))
    plain = Dataset("d", torch.empty(0), train, test, labels_N[test], names, (0.0,), (1.0,), "checksum")
    c = asked(*LOGISTIC, *overrides)
    learner = LogisticLearner(
        c.model, c.trainer, _with_features(plain, features_ND, checksum(features_ND.numpy())), c.seed
    )
    return learner, Pool(train[:n_labelled], labels_N[:n_labelled], train[n_labelled:], NOTHING, NOTHING)


def fitted(learner, pool):
    net = learner.build(0)
    return net, learner.fit(net, pool, 0)


def loss_of(weight_CD, x_LD, labels_L, penalty):
    return float(F.cross_entropy(x_LD @ weight_CD.T, labels_L) + penalty / 2 * weight_CD.square().sum())


def hessian_of(weight_CD, x_LD, precision):
    """The whole matrix, [CD, CD], by autograd."""

    def loss(flat):
        logits = x_LD @ flat.view_as(weight_CD).T
        return -logits.log_softmax(1)[range(len(x_LD)), 0].sum() + precision / 2 * flat.square().sum()  # any label

    return torch.autograd.functional.hessian(loss, weight_CD.flatten())


# -- the optimum --


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("n, width, classes", [(60, 5, 3), (30, 50, 4), (40, 3, 2), (50, 2, 7)])
def test_the_optimum_is_that_of_scikit_learn(n, width, classes, penalty):
    x_LD, labels_L = clusters(n, width, classes)
    weight_CD, iterations = minimise(x_LD, labels_L, classes, penalty)
    # scikit-learn has one vector for two classes: w, for our -w/2 and w/2, whose squares add up to half of its square.
    c = (2 if classes == 2 else 1) / (n * penalty)
    theirs = LogisticRegression(fit_intercept=False, C=c, tol=1e-8, max_iter=10_000)
    their_CD = torch.from_numpy(theirs.fit(x_LD.numpy(), labels_L.numpy()).coef_)
    their_CD = torch.cat([-their_CD, their_CD]) / 2 if classes == 2 else their_CD
    ours, other = (loss_of(w, x_LD, labels_L, penalty) for w in (weight_CD, their_CD))
    assert ours == pytest.approx(other, abs=1e-6) and 0 < iterations < 200
    torch.testing.assert_close(weight_CD, their_CD, atol=0.01 * float(their_CD.abs().max()), rtol=0)


def test_the_penalty_follows_the_scale_of_the_features_and_the_number_of_labels():
    x_LD, labels_L = clusters()
    assert penalty_of(10 * x_LD, None) == pytest.approx(100 * penalty_of(x_LD, None))
    assert penalty_of(x_LD, 0.5) == pytest.approx(0.5 * float((x_LD**2).sum(1).mean()))
    assert [relative_penalty(n) for n in (1, 4000, 10_000)] == [1e-4, 1e-4, 4e-5]
    one, ten = (minimise(k * x_LD, labels_L, 3, penalty_of(k * x_LD, None))[0] for k in (1, 10))
    torch.testing.assert_close(one, 10 * ten, atol=1e-2, rtol=1e-3)  # the same predictions


@pytest.mark.parametrize("overrides, relative", [((), None), (("model.penalty=0.5",), 0.5)])
def test_a_fit_ends_at_the_optimum_of_the_standardised_features(overrides, relative):
    features, labels = clusters()
    learner, pool = learner_of(features.float() * torch.tensor([1, 100, 0.01, 1, 1]) + 7, labels, 40, *overrides)
    head = fitted(learner, pool)[0].net.get_classifier()
    x_LD = ((learner.dataset.images - learner.dataset.mean) / learner.dataset.std)[:40].double()
    x_LE = torch.cat([x_LD, torch.ones(40, 1)], 1)
    exact_CE, _ = minimise(x_LE, labels[:40], 3, penalty_of(x_LE, relative))
    found_CE = torch.cat([head.weight, head.bias[:, None]], 1).double()
    torch.testing.assert_close(found_CE, exact_CE, atol=2e-3 * float(exact_CE.abs().max()), rtol=0)


def test_two_fits_are_equal_to_the_bit_and_depend_on_no_seed():
    features, labels = clusters()
    (a, length), (b, _), (other, _) = (
        fitted(*learner_of(features.float(), labels, 40, f"seed={seed}")) for seed in (0, 0, 1)
    )
    weights = [net.net.get_classifier().weight for net in (a, b, other)]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2]) and weights[0].any()
    assert a.history == b.history and len(a.history) == 1 and length[0] == 1 and 0 < length[1] < 200


def test_predictions_embeddings_and_history_are_those_of_the_last_layer():
    learner, pool = learner_of(clusters()[0].float(), clusters()[1], 40, "trainer.predict_batch_size=7")
    net, _ = fitted(learner, pool)
    idx = torch.tensor([47, 3, 11, 11, *range(20, 45)])
    found, head = learner.predict(net, idx, embeddings=True), net.net.get_classifier()
    x = (learner.dataset.images[idx] - learner.dataset.mean) / learner.dataset.std
    torch.testing.assert_close(found.emb_PD, x)
    torch.testing.assert_close(found.log_probs_PSC[:, 0], (x @ head.weight.T + head.bias).log_softmax(1))
    assert head.bias.any() and found.log_probs_PSC.dtype == found.emb_PD.dtype == torch.float32
    labelled = learner.predict(net, pool.labelled_L).log_probs_PSC[:, 0]
    assert net.history[0]["loss"] == pytest.approx(float(F.nll_loss(labelled, pool.labels_L)), abs=1e-5)
    assert net.history[0]["accuracy"] == pytest.approx(float((labelled.argmax(1) == pool.labels_L).float().mean()))
    assert learner.predict(net, idx).emb_PD is None and learner.test(net, 0).log_probs_PSC.shape == (10, 1, 3)


# -- bad input --


def finite(net):
    return net.net.get_classifier().weight.isfinite().all()


def test_one_labelled_class_and_one_labelled_image_are_fitted():
    features, labels = clusters()
    for pool_labels in (torch.ones(40, dtype=torch.int64), torch.full((40,), 2)):
        learner, pool = learner_of(features.float(), labels)
        net, _ = fitted(learner, replace(pool, labels_L=pool_labels))
        predicted = learner.predict(net, pool.labelled_L).log_probs_PSC[:, 0]
        assert finite(net) and predicted[:, pool_labels[0]].mean() > predicted.mean()
    net, _ = fitted(*learner_of(features.float(), labels, 1))
    assert finite(net) and net.history[0]["accuracy"] == 1


def test_separable_images_and_fewer_columns_than_classes_have_a_finite_optimum():
    for features, labels in (clusters(apart=50.0), clusters(width=1, classes=6)):
        learner, pool = learner_of(features.float(), labels)
        net, (_, iterations) = fitted(learner, pool)
        passes = learner.passes(net, 3, "dropout", 0)
        assert finite(net) and iterations < 400 and passes.weights_SCE.isfinite().all()


def test_a_rare_class_in_few_columns_does_not_take_half_of_the_images():
    features = torch.randn(60, 4, generator=seeded())
    learner, pool = learner_of(features, torch.tensor([0] * 48 + [0, 1] * 6))
    net, _ = fitted(learner, pool)  # all forty labels are of class 0
    assert not learner.predict(net, pool.unlabelled_P).log_probs_PSC[:, 0].argmax(1).any()


@pytest.mark.parametrize("value", [0.0, 1000.1, -3e6])
def test_a_constant_column_changes_nothing(value):
    features, labels = clusters()
    with_constant = torch.cat([features, torch.full((60, 1), value)], dim=1).float()
    (learner, pool), (other, _) = learner_of(with_constant, labels), learner_of(features.float(), labels)
    net, _ = fitted(learner, pool)
    without, _ = fitted(other, pool)
    weight_CD = net.net.get_classifier().weight
    assert not weight_CD[:, -1].any() and weight_CD.any()
    torch.testing.assert_close(weight_CD[:, :-1], without.net.get_classifier().weight)


def test_features_that_are_all_constant_predict_the_shares_of_the_labelled_classes():
    learner, pool = learner_of(torch.ones(60, 4), clusters()[1])
    pool = replace(pool, labels_L=torch.tensor([0] * 30 + [1] * 10))
    net, _ = fitted(learner, pool)
    shares = torch.tensor([0.75, 0.25, 0.0]).expand(len(pool.unlabelled_P), 3)
    torch.testing.assert_close(
        learner.predict(net, pool.unlabelled_P).log_probs_PSC[:, 0].exp(), shares, atol=0.01, rtol=0
    )
    assert learner.passes(net, 2, "dropout", 0).weights_SCE.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused_in_words(bad):
    features, labels = clusters()
    spoilt = features.float().index_put((torch.tensor([45]), torch.tensor([1])), torch.tensor(bad))
    with pytest.raises(UserError, match="model.head=logistic: 1 of 5 features are NaN or infinite for one training"):
        learner_of(spoilt, labels)
    spoilt = features.float().index_put((torch.tensor([55]), torch.tensor([1])), torch.tensor(bad))  # a test image
    learner, pool = learner_of(spoilt, labels)
    net, _ = fitted(learner, pool)
    with pytest.raises(UserError, match="predictions of 1 of 10 images are not numbers. Their features hold NaN or"):
        learner.test(net, 0)


def test_float16_features_are_fitted_as_the_float32_of_their_values():
    features, labels = clusters()
    half = features.half()
    learner, pool = learner_of(half.float(), labels)
    as_half = LogisticLearner(learner.model, learner.trainer, replace(learner.dataset, images=half), 0)
    (a, _), (b, _) = fitted(learner, pool), fitted(as_half, pool)
    assert torch.equal(a.net.get_classifier().weight, b.net.get_classifier().weight)
    assert as_half.predict(b, pool.unlabelled_P, embeddings=True).emb_PD.dtype == torch.float32


def test_a_fit_that_does_not_reach_its_optimum_says_so(monkeypatch, caplog):
    monkeypatch.setattr("al_bench.models.logistic.MAX_ITERATIONS", 2)
    x_LD, labels_L = clusters()
    minimise(x_LD, labels_L, 3, 1e-4)
    assert re.search(r"not at its optimum: gradient .*\. Raise model.penalty\.", caplog.text)
    caplog.clear()
    monkeypatch.undo()
    minimise(x_LD, labels_L, 3, 1e-4)
    assert not caplog.text


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("model.mode=finetune",), "model.head=logistic trains on features that stay the same: set model.mode=frozen."),
        (("model.dropout=0.5",), "set model.dropout=0. strategy.passes=20 draws weights instead."),
        (
            ("strategy=ensemble_bald",),
            "set model.head=null. Or set strategy.members=null: strategy.passes=20 draws weights instead.",
        ),
        (("trainer.start=previous",), "ends at the same weights wherever it starts: set trainer.start=fresh."),
        (
            ("trainer.early_stopping.patience=2", "budget.validation=20"),
            "trains to its optimum: set trainer.early_stopping.patience=null.",
        ),
        (("model.penalty=0",), "model.penalty=0.0: above 0 and at most 1,000, or null."),
        (("model.head=null", "model.penalty=0.1"), "model.penalty=0.1 is for model.head=logistic: set that as well"),
    ],
)
def test_settings_that_do_not_go_with_the_head_are_refused_in_words(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        asked(*LOGISTIC, *overrides)


# -- samples --


def test_samples_have_the_exact_covariance():
    x_LD, labels_L = clusters(20, 3, 3)
    x_LD *= torch.tensor([0.2, 1.0, 3.0])
    weight_CD, _ = minimise(x_LD, labels_L, 3, 0.1)
    covariance = hessian_of(weight_CD, x_LD, 2.0).inverse()
    draws = sample(weight_CD, x_LD, 2.0, 40_000, seeded()).flatten(1)
    # The standard error of an entry is at most sqrt(2 / 40,000) = 0.7% of the largest variance.
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=0.03 * float(covariance.diag().max()))
    torch.testing.assert_close(draws.mean(0), weight_CD.flatten(), rtol=0, atol=0.02)
    assert covariance.diag().max() > 2 * covariance.diag().min()  # else the identity would pass as well


def test_conjugate_gradients_solve_each_system_by_itself():
    matrix = torch.randn(90, 90, generator=seeded(), dtype=torch.float64)
    matrix = matrix @ matrix.T / 90 + 0.3 * torch.eye(90)
    b_SCD = torch.randn(3, 9, 10, generator=seeded(1), dtype=torch.float64)
    b_SCD[1] = 0  # solved at once, which must not spoil the others
    b_SCD[2] = 1e6 * torch.linalg.eigh(matrix).eigenvectors[:, 0].view(9, 10)  # solved in one step

    found = solve(lambda v: (v.flatten(1) @ matrix).view_as(v), b_SCD).flatten(1)
    exact = torch.linalg.solve(matrix, b_SCD.flatten(1).T).T
    assert ((found - exact).norm(dim=1) <= 1e-3 * exact.norm(dim=1)).all()


def test_the_mean_prediction_of_samples_is_the_integral_in_one_dimension():
    """Two classes and one column: the difference of the logits at x is normal, and its integral has a grid."""
    x_LD = torch.tensor([[-2.0], [-1.0], [-0.5], [0.3], [1.0], [2.0]], dtype=torch.float64)
    labels_L = torch.tensor([0, 1, 0, 1, 0, 1])
    weight_CD, _ = minimise(x_LD, labels_L, 2, 0.05)
    draws_SCD = sample(weight_CD, x_LD, 0.3, 20_000, seeded())
    covariance = hessian_of(weight_CD, x_LD, 0.3).inverse()
    slope = float(weight_CD[1, 0] - weight_CD[0, 0])
    spread = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    for x in (-3.0, 0.7, 2.0):
        exact = (weights / (1 + np.exp(-x * (slope + spread * points)))).sum() / weights.sum()
        sampled = (x * draws_SCD[:, :, 0]).softmax(1)[:, 1].mean()
        assert float(sampled) == pytest.approx(exact, abs=0.01)
        plain = 1 / (1 + np.exp(-x * slope))
        assert abs(plain - exact) > 0.02 or x == 0.7  # far out the samples' mean is less certain than the optimum


@pytest.mark.filterwarnings("ignore")  # of its imports
def test_samples_agree_with_laplace_torch():
    laplace = pytest.importorskip("laplace", reason="needs laplace-torch")
    x_LD, labels_L = clusters(30, 4, 3)
    weight_CD, _ = minimise(x_LD, labels_L, 3, 0.05)
    layer = torch.nn.Linear(4, 3, bias=False).double()
    layer.weight.data.copy_(weight_CD)
    theirs = laplace.Laplace(
        layer, "classification", subset_of_weights="all", hessian_structure="full", prior_precision=1.5
    )
    theirs.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x_LD, labels_L), batch_size=30))
    draws = sample(weight_CD, x_LD, 1.5, 40_000, seeded()).flatten(1)
    covariance = theirs.posterior_covariance.double()
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=0.03 * float(covariance.diag().max()))


def test_draws_depend_on_seed_purpose_and_round_and_not_on_how_many_are_drawn_at_once(monkeypatch):
    features, labels = clusters()
    learner, pool = learner_of(features.float(), labels)
    net, _ = fitted(learner, pool)

    def drawn(purpose="dropout", round=0, by=learner, n=4):
        return by.passes(net, n, purpose, round).weights_SCE

    first = drawn()
    assert torch.equal(first, drawn()) and len(first.unique(dim=0)) == 4
    other_seed = LogisticLearner(learner.model, learner.trainer, learner.dataset, 1)
    for other in (drawn("test dropout"), drawn(round=1), drawn(by=other_seed)):
        assert not torch.isclose(first, other).all(dim=(1, 2)).any()
    torch.testing.assert_close(drawn(n=2), first[:2], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr("al_bench.models.logistic.CHUNK", 200)
    torch.testing.assert_close(drawn(), first, rtol=1e-3, atol=1e-3)


def test_passes_predict_with_the_samples_and_keep_the_embeddings():
    learner, pool = learner_of(clusters()[0].float(), clusters()[1])
    net, _ = fitted(learner, pool)
    passes = learner.passes(net, 5, "dropout", 0)
    found = learner.predict(net, pool.unlabelled_P, embeddings=True, passes=passes)
    emb_PE = torch.cat([found.emb_PD, torch.ones(len(found.emb_PD), 1)], 1)
    expected = torch.einsum("pe,sce->psc", emb_PE, passes.weights_SCE).log_softmax(2)
    torch.testing.assert_close(found.log_probs_PSC, expected)
    assert found.log_probs_PSC.shape == (len(pool.unlabelled_P), 5, 3) and net.passes is None


# -- runs --


@pytest.mark.parametrize(
    "strategy",
    ["bald", "batchbald", "power_bald", "epig", "variation_ratios", "mean_std", "mc_margin", "badge", "bait", "galaxy",
     "typiclust features=model", "alfa_mix", "uncertainty_herding"],
)  # fmt: skip
def test_strategies_run_on_a_frozen_net_without_dropout(tmp_path, strategy):
    store = run_here(tmp_path, *LOGISTIC, f"strategy={strategy.split()[0]}", *strategy.split()[1:], "budget.rounds=1")
    first, last = store.records()
    assert len(first.acquired) == 10 and first.epochs == 1 and 1 < first.steps < 200 and last.n_labelled == 30
    by_passes = store.config.strategy.get("passes") is not None
    assert ("Laplace approximation" in store.info().get("passes", "")) == by_passes


def test_a_run_learns_and_its_folder_names_the_head(tmp_path):
    store = run_here(tmp_path, *LOGISTIC, "strategy=margin", "trainer.test_passes=5", "budget.initial=400")
    assert store.records()[-1].metrics["accuracy"] > 0.7
    assert store.folder.parts[-4] == "small_cnn-frozen-logistic" and "Laplace" in store.info()["passes"]
    plain = run_here(tmp_path, *LOGISTIC, "model.head=null", "strategy=margin", "budget.rounds=0")
    assert plain.folder.parts[-4] == "small_cnn-frozen" and "passes" not in plain.info()


def test_held_out_predictions_are_those_of_fits_without_the_image():
    features, labels = clusters(apart=0.5)
    learner, pool = learner_of(features.float(), labels)
    net, _ = fitted(learner, pool)
    held_out_LC = learner.held_out(net, pool, 3)
    x_LD = learner._embeddings(net, pool.labelled_L)
    rest = torch.randperm(40, generator=rng.stream(learner.seed, "held out", 3)) % 5 != 0
    penalty = penalty_of(x_LD[rest], None)
    theirs = LogisticRegression(C=1 / (penalty * int(rest.sum())), fit_intercept=False, tol=1e-8, max_iter=10_000)
    theirs.fit(x_LD[rest].double().numpy(), pool.labels_L[rest].numpy())
    logits = torch.from_numpy(x_LD[~rest].double().numpy() @ theirs.coef_.T)
    torch.testing.assert_close(held_out_LC[~rest].double(), logits.log_softmax(1), atol=1e-3, rtol=1e-3)
    # No image's label decides its own prediction.
    first = int((~rest).nonzero()[0])
    changed = pool.labels_L.clone()
    changed[first] = (changed[first] + 1) % 3
    again = learner.held_out(net, replace(pool, labels_L=changed), 3)
    torch.testing.assert_close(again[~rest], held_out_LC[~rest], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(again[rest], held_out_LC[rest], atol=1e-3)
    assert learner.held_out(net, replace(pool, labelled_L=pool.labelled_L[:1], labels_L=labels[:1]), 0) is None


@pytest.mark.parametrize("head, says", [("logistic", "by five refits of the logistic head"), ("null", None)])
def test_a_run_notes_whether_its_temperature_is_fitted(tmp_path, head, says):
    asked_for = [
        *LOGISTIC,
        f"model.head={head}",
        "strategy=uncertainty_herding",
        "budget.rounds=1",
        "trainer.max_steps=2",
    ]
    store = run_here(tmp_path, *asked_for)
    assert store.info()["held_out"] == says
    constant = run_here(tmp_path / "constant", *asked_for, "strategy.fit_temperature=false")
    fitted, plain = store.records()[0], constant.records()[0]
    assert (fitted.acquired != plain.acquired) == (says is not None)
    with pytest.raises(UserError, match="temperature=2.0 has no effect|True needs|fit_temperature=true needs"):
        run_here(tmp_path / "no", *asked_for, "strategy.temperature=2.0" if says else "strategy.fit_temperature=true")


@pytest.mark.parametrize("strategy", ["badge", "bald"])
def test_a_run_that_was_stopped_goes_on_to_the_same_records(tmp_path, strategy):
    options = (*LOGISTIC, f"strategy={strategy}")
    whole = run_here(tmp_path / "whole", *options)
    with pulled_plug(40):
        run_here(tmp_path / "broken", *options)
    assert lines_of(run_here(tmp_path / "broken", *options).folder) == lines_of(whole.folder)
    assert len(lines_of(whole.folder)) == 4


def test_another_head_or_penalty_is_another_run(tmp_path):
    store = run_here(tmp_path, *LOGISTIC, "budget.rounds=0")
    with pytest.raises(UserError, match="model.penalty: there None, asked 0.01"):
        run_here(tmp_path, *LOGISTIC, "budget.rounds=0", "model.penalty=0.01")
    assert run_folder(asked(*LOGISTIC)).parts[-4] == store.folder.parts[-4]


def test_a_plan_counts_the_labelled_images_of_a_fit_once_and_says_what_has_no_effect(tmp_path):
    assert plan.make(asked(*LOGISTIC, "budget.initial=20", "budget.query=10", "budget.rounds=1")).trained == [20, 30]
    done = command(tmp_path, *LOGISTIC, "plan=true")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and "model.optimizer and the keys of trainer on steps, epochs, batches" in text
