import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import asked
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from al_bench import config, plan
from al_bench.data.pool import check_budget
from al_bench.errors import UserError
from al_bench.hints import near_misses
from al_bench.imports import function
from al_bench.models.learner import images_trained, training_length
from al_bench.options import conf_dir
from al_bench.recipe import run_folder
from al_bench.strategies import load

ROOT = Path(__file__).parents[1]
OPTIONS = sorted(f"{f.parent.name}={f.stem}" for f in conf_dir().glob("*/*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_of_conf_composes_into_the_schema(option):
    needs_root = option.startswith("experiment") or option in (
        "dataset=dogs_vs_cats", "dataset=features", "dataset=image_folder", "dataset=unlabelled"
    )  # fmt: skip
    left = {"strategy=replay": ["strategy.study=here", "strategy.of=margin"]}.get(option, [])
    c = asked(option, *left, *(["dataset.root=here"] if needs_root else []))
    assert isinstance(c, config.Config) and callable(load(c.strategy).function)


def test_the_article_is_set_as_its_code_runs_it():
    c = asked("experiment=gentle_introduction", "dataset.root=train.zip")
    assert c.study == "gentle_introduction"
    t = c.trainer
    assert (c.budget.initial, c.budget.query, c.budget.rounds, c.budget.validation) == (5000, 200, 29, 2475)
    assert c.budget.initial + c.budget.rounds * c.budget.query == 10_800
    assert c.budget.stop == config.StopConfig(config.StopAt.test, 0.0025, two_sided=True)
    assert (c.dataset.image_size, c.dataset.antialias, c.dataset.mean, c.dataset.std) == (64, False, [0.0], [1.0])
    assert (t.start, t.batch_size, t.schedule) == (config.Weights.best, 16, config.Schedule.constant)
    assert t.early_stopping == config.EarlyStoppingConfig(10, config.Monitor.loss, 0.001)
    assert c.model.optimizer == {"_target_": "torch.optim.Adam", "lr": 0.001, "eps": 1e-7}
    assert [training_length(t, n, r) for n, r in ((5000, 0), (5200, 1), (20025, 0))] == [
        (1251, 200),
        (1251, 100),
        (1251, 200),
    ]

    full = asked("experiment=gentle_introduction", "dataset.root=train.zip", "budget=full")
    assert (full.budget.initial, full.budget.validation, full.budget.stop.at) == (None, 2475, None)
    assert full.trainer == t


def test_the_fair_protocol_has_fresh_weights_fixed_steps_and_six_label_counts():
    c = asked("experiment=gentle_introduction_fair", "dataset.root=train.zip")
    assert c.study == "gentle_introduction_fair"
    assert [c.budget.initial + r * c.budget.query for r in range(c.budget.rounds + 1)][-1] == 10_800
    assert (c.trainer.start, c.trainer.max_steps, c.trainer.early_stopping.patience) == (
        config.Weights.fresh,
        1000,
        None,
    )
    assert (c.budget.rounds, c.budget.validation, c.budget.stop.at) == (5, 0, None)
    assert images_trained(c.trainer, 800, 0) == images_trained(c.trainer, 10_800, 5) == 64_000


def test_the_article_trained_to_the_end_differs_from_the_fair_protocol_in_length_and_label_counts():
    names = "gentle_introduction_trained", "gentle_introduction_fair"
    c, fair = (asked(f"experiment={name}", "dataset.root=train.zip") for name in names)
    counts = [c.budget.initial + sum(c.budget.query_of(r) for r in range(n)) for n in range(c.budget.rounds + 1)]
    assert counts == [1000, 4000, 7000, 10_800]
    t = c.trainer
    assert (t.max_steps, t.augment, t.precision) == (3000, config.Augment.flip, "bf16-mixed")
    same = {"max_steps": 1000, "augment": config.Augment.none, "precision": "auto", "dropout_masks": None}
    assert replace(t, **same) == fair.trainer
    assert (c.model, c.dataset) == (fair.model, fair.dataset)


def test_cifar10_with_resnet18_is_the_literatures_set_up():
    c = asked("experiment=cifar10_resnet18")
    t = c.trainer
    assert c.budget.initial + c.budget.rounds * c.budget.query == 25_000
    assert (t.batch_size, t.schedule, t.augment) == (128, config.Schedule.step, config.Augment.flip_crop)
    assert training_length(t, 25_000, 12) == training_length(t, 25_000, 0) == (None, 200)  # of as many steps as fit
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005}
    assert c.model.optimizer == sgd


def test_an_experiment_with_all_labels_is_the_full_data_and_nothing_else_is():
    c = asked("experiment=repeated_mnist", "dataset.root=here")
    b = c.budget
    assert (b.initial, b.query, b.rounds, b.validation, b.start) == (20, 10, 18, 1024, config.InitialDraw.balanced)
    full = asked("experiment=repeated_mnist", "dataset.root=here", "budget=full")
    assert (full.budget.initial, full.budget.rounds, full.budget.validation) == (None, 0, 1024)
    assert [run_folder(x).parts[-3] for x in (c, full)] == ["20+18x10", "full"]
    assert (full.trainer, full.stressor) == (c.trainer, c.stressor)
    for part in (("budget=full", "budget.initial=50"), ("budget.initial=null",), ("budget.name=full",)):
        with pytest.raises(UserError, match="Set budget=full, which sets both, to train on the full data"):
            asked(*part)


def test_a_plan_counts_every_prediction():
    tested = []

    def planned(*overrides):
        p = plan.make(asked("budget.initial=38", "budget.query=100", "budget.rounds=1", *overrides))
        tested.append(p.tested)
        return p.predicted, p.memory["predictions of the pool"]

    # digits: 1,438 training images, 1,400 in the pool; embeddings of 128 and ten classes, 4 bytes each
    assert planned("strategy=typiclust") == ([0, 0], 4 * 138 * 1438)
    assert planned("strategy=typiclust", "features=model") == ([1400, 0], 4 * 138 * 1438)
    assert planned("strategy=margin", "strategy.passes=4", "strategy.members=3", "strategy.candidates=500") == (
        [500 * 12, 0],
        4 * (128 + 12 * 10) * 500,
    )
    planned("trainer.test_passes=5")
    assert tested == [359, 359, 359, 5 * 359]
    assert planned("model=pca", "features.width=16") == ([0, 0], 4 * (16 + 10) * 1438)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["model.optimizer.lr=-1"], "model.optimizer"),
        (["strategy=select_al"], "trains last layers on features that stay the same"),
        (["strategy=replay", "strategy.study=nowhere", "strategy.of=entropy"], "There is no folder nowhere"),
    ],
)
def test_what_a_run_refuses_its_plan_refuses(overrides, said):
    with pytest.raises(UserError, match=said):
        plan.make(asked(*overrides))


@pytest.mark.parametrize(
    "overrides, length",
    [
        (["trainer.max_steps=7"], ((7, None), 7 * 64)),
        (["trainer.max_steps=7", "trainer.early_stopping.patience=1"], ((2, None), 7 * 64)),
        (["trainer.max_steps=null", "trainer.max_epochs=3"], ((None, 3), 3 * 100)),
        (["trainer.max_steps=null", "trainer.max_epochs=3", "trainer.steps_per_epoch=5"], ((5, 3), 15 * 64)),
        (["trainer.max_steps=null", "trainer.max_epochs=3", "trainer.later_max_epochs=2"], ((None, 2), 2 * 100)),
    ],
)
def test_the_length_of_training_by_hand(overrides, length):
    t = asked("budget.validation=10", *overrides).trainer
    assert (training_length(t, 100, 1), images_trained(t, 100, 1)) == length


@pytest.mark.parametrize(
    "override, message",
    [
        ("budget.rounds=-1", "budget.rounds=-1: 0 or more, or null"),
        ("budget.query=0", "budget.query=0"),
        ("budget.query=[]", "budget.query=[]: labels a round, one number or a list of several."),
        ("budget.query=[5,0]", "budget.query=[5, 0]: 1 or more labels a round."),
        ("budget.query=[5,true]", "budget.query=[5, True]: 1 or more labels a round."),
        ("budget.query=2.5", "budget.query=2.5: 1 or more labels a round."),
        ("budget.query=few", "budget.query=few: 1 or more labels a round."),
        ("budget.query=[10,20] strategy.candidates=15", "strategy.candidates=15: 20 or more (budget.query), or null."),
        ("budget.validation=-1", "budget.validation=-1"),
        ("trainer.batch_size=1", "trainer.batch_size=1: from 2 to 65,536 (batch norm needs two images)"),
        ("trainer.max_steps=null", "Set trainer.max_steps or trainer.max_epochs"),
        ("trainer.max_steps=0", "trainer.max_steps=0: 1 or more, or null"),
        ("dataset.image_size=4", "dataset.image_size=4: from 8 to 4,096 pixels"),
        ("dataset.test_fraction=1.0", "between 0 and 1"),
        ("trainer.test_passes=1", "trainer.test_passes=1: from 2 to 10,000 passes with dropout, or null"),
        ("trainer.later_max_epochs=1", "trainer.later_max_epochs replaces trainer.max_epochs after the first round"),
        ("stressor.noise=0.9", "stressor.noise=0.9 changes copies of images, and there are none"),
        ("dataset.mean=[] dataset.std=[]", "dataset.mean and dataset.std need equally many values"),
        ("study=b${trainer.batchsize}", "study: Interpolation key 'trainer.batchsize' not found"),
        ("trainer.max_epochs=3", "trainer.max_steps and trainer.max_epochs are both set"),
        ("trainer.num_workers=-1", "trainer.num_workers=-1"),
        ("dataset.std=[0.0]", "dataset.std=[0.0]: above 0 and at most 1"),
        ("budget.validation=0 trainer.start=best", "needs budget.validation > 0"),
        ("budget.validation=0 budget.stop.at=validation", "needs budget.validation > 0"),
        ("budget.validation=0 trainer.early_stopping.patience=3", "needs budget.validation > 0"),
        ("~strategy.name", "sampling lacks the key name. Add a line such as name: my_strategy."),
        ("~strategy._target_", "strategy random lacks the key _target_. Add a line such as _target_: my_module"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(override, message):
    with pytest.raises(UserError) as error:
        asked(*override.split())
    assert message in str(error.value)


@pytest.mark.parametrize(
    "override", ["seeed=1", "trainer.max_stps=1", "seed=one", "trainer.start=bst", "strategy=best"]
)
def test_a_misspelt_key_option_or_value_does_not_compose(override):
    with pytest.raises(HydraException):
        asked(override)


@pytest.mark.parametrize("path", ["nowhere.at_all", "al_bench.data.sources.digit", "al_bench.rng"])
def test_a_dotted_path_that_leads_nowhere_is_named_with_its_key(path):
    with pytest.raises(UserError, match=f"dataset._target_={path} cannot be loaded: ."):
        function("dataset._target_", path)


def test_near_misses_of_what_was_typed():
    assert near_misses(["strategy=random,entrpy", "sed=1", "-m", "seed=0"]) == (
        "'entrpy': did you mean entropy or mc_entropy or vote_entropy?\n'sed': did you mean seed or study?"
    )
    assert near_misses(["trainer.bach_size=3"]).startswith("'trainer.bach_size': did you mean trainer.batch_size")
    assert near_misses(["strategy=entropy", "model.optimizer.lr=0.1", "model.options.depth=3"]) == ""
    has = "has no strategy.btea: it has beta, candidates, filter, how, members, passes, score."
    assert near_misses(["strategy=power_margin", "strategy.btea=2"]) == f"strategy=power_margin {has}"
    both = near_misses(["-m", "strategy=random,power_margin", "strategy.beta=2", "strategy.passes=3"])
    assert both == "strategy=random has no strategy.beta: it has candidates, filter, members, passes."
    assert near_misses(["strategy.beta=2", "strategy=random"]) == both  # the order of arguments does not matter
    assert near_misses(["experiment=gentle_introduction", "strategy.beta=2"]) == ""  # no argument names the strategy
    assert near_misses(["model=vit_tiny_patch16_224"]) == "Nets of timm: model=timm model.name=..."
    nets = "'resnet18.a1_in1k': did you mean cifar_resnet18?\nNets of timm: model=timm model.name=..."
    assert near_misses(["model=resnet18.a1_in1k"]) == nets
    assert near_misses(["strategy=entropy", "trainer.max_steps=5", "+model.options.drop_rate=0.1"]) == ""


@pytest.mark.parametrize(
    "override, said",
    [
        ("+trainer.max_stes=5", "There is no key trainer.max_stes. 'trainer.max_stes': did you mean trainer.max_steps"),
        ("++budget.querry=3", "There is no key budget.querry. 'budget.querry': did you mean budget.query"),
        ("+trainer.early_stopping.patiense=3", "did you mean trainer.early_stopping.patience"),
        ("+qqq=1", r"There is no key qqq. \+ adds keys to strategy, model.options and model.optimizer alone."),
        ("~seed", "seed is needed: leave out ~seed."),
    ],
)
def test_keys_that_plus_adds_and_tilde_takes_away_are_refused(override, said):
    with pytest.raises(UserError, match=said):
        asked(override)


def test_a_configuration_without_the_schema_is_refused():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        with pytest.raises(UserError, match="its defaults need base_config"):
            config.read(compose("trainer/default"))


def test_plus_adds_keys_where_there_may_be_any():
    c = asked("+model.options.depth=3", "+model.optimizer.betas=[0.9,0.99]", "+strategy.more.than=1", "+hydra.x=1")
    assert (c.model.options["depth"], c.model.optimizer["betas"]) == (3, [0.9, 0.99])
    assert c.strategy["more"] == {"than": 1}


@pytest.mark.parametrize("flag", ["--config-dir={}", "--config-dir {}", "-cd {}"])
def test_names_of_a_users_own_folder_are_no_near_misses(flag, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "pick.yaml").write_text("name: pick\n")
    asked_for = flag.format(tmp_path).split()
    assert near_misses(["strategy=pick"]) == "'pick': did you mean epig?"
    assert near_misses([*asked_for, "strategy=pick"]) == ""
    assert near_misses([*asked_for, "strategy=pik"]).startswith("'pik': did you mean pick")


def test_the_configuration_is_never_written_to():
    c = asked("strategy=entropy")
    before = OmegaConf.to_yaml(OmegaConf.structured(c))
    load(c.strategy)
    assert OmegaConf.to_yaml(OmegaConf.structured(c)) == before


def test_the_readme_and_ci_give_the_same_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -e . && python -m al_bench\n" in readme
    assert "pip install -e '.[test]' && python -m pytest\n" in readme
    assert "pip install -e '.[test]' && python -m pytest" in ci


def test_the_page_of_strategies_describes_every_one_that_there_is():
    def described(table):
        return re.findall(
            r"`(\w+)`", " ".join(line.split(" | ")[0] for line in table.splitlines() if line[:3] == "| `")
        )

    page = (ROOT / "al_bench" / "strategies" / "README.md").read_text()
    strategies, initial_sets = page.split("| initial set |")
    assert sorted(described(strategies)) == sorted(p.stem for p in (conf_dir() / "strategy").glob("*.yaml"))
    assert described(initial_sets) == ["active_ft", "bilaf"]


def test_a_folder_of_images_may_have_the_name_of_a_data_set():
    c = asked("dataset=image_folder", "dataset.name=cifar10", "dataset.root=images")
    assert c.dataset.name == "cifar10" and c.dataset._target_.endswith("image_folder")


def test_the_labels_of_a_round_may_be_a_list():
    c = asked("budget.query=[10,20,50]", "budget.rounds=5")
    assert [c.budget.query_of(round) for round in range(5)] == [10, 20, 50, 50, 50]
    assert plan.label_counts(c, n_train=1000) == [20, 30, 50, 100, 150, 200]
    assert run_folder(c).parts[-3] == "20+5x10-20-50"
    c = asked("budget.query=[10,20]", "budget.rounds=null")
    assert plan.label_counts(c, n_train=85) == [20, 30, 50, 70, 85]
    one = asked("budget.query=10", "budget.rounds=5")
    assert one.budget.query == 10 and run_folder(one).parts[-3] == "20+5x10"
    assert plan.label_counts(one, n_train=1000) == [20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize("n_train, at_most", [(69, None), (68, 1), (40, 0)])
def test_a_list_of_queries_has_to_fit_the_pool(n_train, at_most):
    budget = asked("budget.query=[10,20]", "budget.rounds=2", "budget.initial=20", "budget.validation=19").budget
    if at_most is None:  # 20 + 19 + 10 + 20
        check_budget(n_train, budget)
        return
    with pytest.raises(
        UserError, match="is larger than the pool" if n_train == 40 else r"query=\[10, 20\] is more than"
    ):
        check_budget(n_train, budget)
