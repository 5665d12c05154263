from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import asked
from torch import nn

from al_bench.data import Dataset
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.metrics import loss_and_accuracy
from al_bench.models.learner import Learner

QUICK = (
    "trainer.max_steps=null", "trainer.max_epochs=2", "trainer.batch_size=8", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "trainer.progress=false", "trainer.schedule=constant",
)  # fmt: skip
STEPS = ("trainer.max_steps=7", "trainer.max_epochs=null")
STOPPING = ("trainer.max_epochs=9", "trainer.early_stopping.patience=2", "budget.validation=20")
NOTHING = torch.empty(0, dtype=torch.int64)


pytestmark = pytest.mark.usefixtures("one_thread")


def configured(*overrides):
    return asked(*QUICK, *overrides)


def setting(n_labelled=20, n_validation=0, flipped=False):
    """60 images, dark or bright, and the labels of some; `flipped` swaps the classes of the validation set."""
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    noise = torch.randint(0, 100, (60, 8, 8, 1), generator=stream)
    images = (noise + 100 * labels[:, None, None, None]).to(torch.uint8).permute(0, 3, 1, 2)
    idx, test = torch.arange(50), torch.arange(50, 60)
    dataset = Dataset("d", images, idx, test, labels[test], ("dark", "bright"), (0.4,), (0.3,), "checksum")
    labelled, validation = idx[:n_labelled], idx[50 - n_validation :] if n_validation else NOTHING
    answers = 1 - labels[validation] if flipped else labels[validation]
    return dataset, Pool(labelled, labels[labelled], idx[n_labelled : 50 - n_validation], validation, answers)


def learner(c, dataset):
    return Learner(c.model, c.trainer, dataset, c.seed)


def fitted(c, dataset, pool, round=0):
    net = learner(c, dataset).build(round)
    return net, learner(c, dataset).fit(net, pool, round)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def validated(net, dataset, pool):
    return learner(configured(), dataset).validate(net, pool)


def test_fresh_weights_depend_on_seed_and_round_and_not_on_the_strategy():
    dataset, _ = setting()
    first, again, other_strategy, other_round, other_seed = [
        learner(configured(*overrides), dataset).build(round)
        for overrides, round in [((), 0), ((), 0), (("strategy=entropy",), 0), ((), 1), (("seed=1",), 0)]
    ]
    assert same(first, again) and same(first, other_strategy)
    assert not same(first, other_round) and not same(first, other_seed)


@pytest.mark.parametrize("overrides", [(), ("trainer.precision=bf16-mixed", "trainer.augment=flip_crop")])
def test_the_same_seed_gives_the_same_weights_to_the_bit_whatever_the_global_generator_holds(overrides):
    c, (dataset, pool) = configured(*overrides), setting()
    torch.manual_seed(1)
    first, _ = fitted(c, dataset, pool)
    torch.manual_seed(2)
    again, _ = fitted(c, dataset, pool)
    assert same(first, again) and first.history == again.history
    assert not same(first, fitted(replace(c, seed=1), dataset, pool)[0])


def test_predicting_changes_nothing_in_the_model_and_nothing_touches_the_global_generator():
    generator = torch.get_rng_state()
    c, (dataset, pool) = configured(*STOPPING), setting(n_validation=10)
    net, _ = fitted(c, dataset, pool)
    before = deepcopy(net)
    runs = [learner(c, dataset).predict(net, dataset.train_idx).log_probs_PSC for _ in range(2)]
    assert torch.equal(*runs) and same(net, before)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    "overrides, n_labelled, round, expected",
    [
        (STEPS, 20, 0, (1, 7)),
        ((), 20, 0, (2, 6)),
        ((), 1, 0, (2, 2)),
        ((), 2, 0, (2, 2)),
        ((), 9, 0, (2, 4)),  # one more than a batch: 5 + 4
        (("trainer.steps_per_epoch=5",), 20, 0, (2, 10)),
        (("trainer.max_epochs=4", "trainer.later_max_epochs=1"), 20, 0, (4, 12)),
        (("trainer.max_epochs=4", "trainer.later_max_epochs=1"), 20, 1, (1, 3)),
        ((*STEPS, "trainer.steps_per_epoch=3"), 20, 0, (3, 7)),
    ],
)
def test_a_fit_lasts_as_many_epochs_and_steps_as_asked(overrides, n_labelled, round, expected):
    net, length = fitted(configured(*overrides), *setting(n_labelled), round)
    assert length == expected and len(net.history) == expected[0]


@pytest.mark.parametrize(
    "schedule, epochs, expected",
    [
        ("cosine", 2, [0.1, 0.0853553, 0.05, 0.0146447]),
        ("step", 5, [0.1] * 8 + [0.01] * 2),
        ("constant", 1, [0.1] * 2),
    ],
)
def test_the_learning_rate_follows_the_schedule_over_the_whole_fit(schedule, epochs, expected):
    lengths = f"trainer.max_epochs={epochs}", "trainer.batch_size=10"
    c = configured(f"trainer.schedule={schedule}", *lengths, "model.optimizer.lr=0.1")
    dataset, pool = setting()
    net, rates = learner(c, dataset).build(0), []
    last = net.net.get_classifier()
    last.register_forward_hook(lambda *_: rates.append(net.optimizers().param_groups[0]["lr"]))
    learner(c, dataset).fit(net, pool, 0)
    assert rates == pytest.approx(expected, abs=1e-6)


def test_without_augmentation_history_holds_each_epochs_mean_loss_and_accuracy():
    c = configured("trainer.max_epochs=1", "trainer.batch_size=20")
    dataset, pool = setting()
    net = learner(c, dataset).build(0)
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0
    with torch.no_grad():
        log_probs = net.train()(dataset.images[pool.labelled_L])[0].log_softmax(1)
    learner(c, dataset).fit(net, pool, 0)
    assert net.history == [pytest.approx(loss_and_accuracy(log_probs, pool.labels_L), rel=1e-5)]


def test_early_stopping_brings_the_best_epochs_weights_back():
    dataset, pool = setting(n_validation=20, flipped=True)  # what is learnt makes validation worse: epoch 1 is best
    stopped, length = fitted(configured(*STOPPING), dataset, pool)
    assert length == (3, 9)
    losses = [epoch["val_loss"] for epoch in stopped.history]
    assert losses[0] == min(losses)
    one_epoch, _ = fitted(configured("trainer.max_epochs=1"), dataset, pool)
    assert same(stopped, one_epoch)
    assert validated(stopped, dataset, pool)["loss"] == pytest.approx(losses[0])


def test_early_stopping_asks_for_an_improvement_of_min_delta_and_can_watch_accuracy():
    dataset, pool = setting(n_validation=20)
    net, (epochs, _) = fitted(configured(*STOPPING, "trainer.early_stopping.min_delta=10"), dataset, pool)
    losses = [epoch["val_loss"] for epoch in net.history]
    assert epochs == 3 and losses == sorted(losses, reverse=True)
    c = configured(*STOPPING, "trainer.early_stopping.monitor=accuracy")
    net, _ = fitted(c, dataset, pool)
    assert validated(net, dataset, pool)["accuracy"] == max(epoch["val_accuracy"] for epoch in net.history)


def test_an_epoch_cut_short_by_max_steps_is_judged_by_its_own_weights():
    dataset, pool = setting(n_validation=20)
    c = configured(*STOPPING, "trainer.max_steps=4", "trainer.max_epochs=null")
    net, length = fitted(c, dataset, pool)
    assert length == (2, 4)  # 3 steps, then 1
    first, second = [epoch["val_loss"] for epoch in net.history]
    assert second < first and second == pytest.approx(validated(net, dataset, pool)["loss"])


def test_augmentation_changes_the_training_and_neither_validation_nor_predictions():
    dataset, pool = setting(n_validation=20)
    plain, _ = fitted(configured(), dataset, pool)
    c = configured(*STOPPING, "trainer.max_epochs=1", "trainer.augment=flip_crop")
    augmented, _ = fitted(c, dataset, pool)
    assert augmented.history[0]["loss"] != plain.history[0]["loss"]
    seen = learner(c, dataset).predict(augmented, pool.validation_V)
    with torch.inference_mode():
        logits, _ = augmented.eval()(dataset.images[pool.validation_V])
    torch.testing.assert_close(seen.log_probs_PSC[:, 0], logits.log_softmax(1))
    assert augmented.history[0]["val_loss"] == pytest.approx(validated(augmented, dataset, pool)["loss"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predictions_are_normalised_float32_in_the_order_asked_and_the_last_layer_is_never_rounded(precision):
    c, (dataset, pool) = configured(f"trainer.precision={precision}", "trainer.predict_batch_size=7"), setting()
    net, _ = fitted(c, dataset, pool)
    seen_by_last = []
    net.net.classifier.register_forward_hook(lambda _, args, out: seen_by_last.extend([args[0].dtype, out.dtype]))
    idx = torch.tensor([41, 3, 59, 0, 22, 7, 30, 58, 1])
    seen = learner(c, dataset).predict(net, idx, embeddings=True)
    assert set(seen_by_last) == {torch.float32}
    assert seen.log_probs_PSC.shape == (9, 1, 2) and seen.emb_PD.shape == (9, 128)
    assert seen.log_probs_PSC.dtype == seen.emb_PD.dtype == torch.float32
    torch.testing.assert_close(seen.log_probs_PSC.logsumexp(2), torch.zeros(9, 1))
    for position, i in enumerate(idx.tolist()):
        alone = learner(c, dataset).predict(net, torch.tensor([i]), embeddings=True)
        torch.testing.assert_close(alone.log_probs_PSC[0], seen.log_probs_PSC[position], atol=2e-2, rtol=0)
        torch.testing.assert_close(alone.emb_PD[0], seen.emb_PD[position], atol=5e-2, rtol=0)
    assert learner(c, dataset).predict(net, idx).emb_PD is None
    logits = net.net.get_classifier()(seen.emb_PD)
    torch.testing.assert_close(logits.log_softmax(1), seen.log_probs_PSC[:, 0])


def test_a_loss_that_is_no_number_ends_the_fit_and_names_round_and_step():
    c = configured("model.optimizer.lr=1e30", "trainer.max_epochs=3")
    with pytest.raises(UserError, match=r"round 4: the loss is not a number at step [123]\. Lower model.optimizer.lr"):
        fitted(c, *setting(), round=4)


def test_predictions_that_are_no_numbers_are_refused():
    c, (dataset, _) = configured(), setting()
    net = learner(c, dataset).build(0)
    nn.init.constant_(net.net.classifier.bias, torch.inf)
    with pytest.raises(UserError, match="the predictions of 10 of 10 images are not numbers"):
        learner(c, dataset).predict(net, dataset.test_idx)


@pytest.mark.parametrize(
    "overrides, complaint",
    [
        (["trainer.accelerator=gpuu"], "trainer.accelerator=gpuu"),
        (["trainer.accelerator=tpu"], "trainer.accelerator=tpu"),
        (["trainer.precision=bf17"], "trainer.precision=bf17: there are auto, 32-true"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: there are auto, 32-true"),
        (["+model.optimizer.momentun=0.9"], "model.optimizer=.*momentun"),
    ],
)
def test_what_the_trainer_cannot_be_given_is_named(overrides, complaint):
    with pytest.raises(UserError, match=complaint):
        fitted(configured(*overrides), *setting())
