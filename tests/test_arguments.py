"""Mistyped command lines, and the messages that say what to type instead."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import asked, command
from PIL import Image

from al_bench import arguments
from al_bench.data import sources
from al_bench.errors import UserError

pytestmark = pytest.mark.xdist_group("commands")
NAMES = {  # of files and folders, for keys that take a text
    "dataset.root": "~/data/pets",
    "study": "my pets (2)",
    "results_dir": "lr=0.1",
    "cache_dir": "Großmutters Bilder/",
    "model.weights": "it's.pth",
    "features.weights": 'the "best".pth',
    "model.name": "a[1]{b}",
    "features.name": "cats & dogs; #1 <new> `x` !",
    "budget.name": "both ' and \"",
    "logger.project": "a,b",
    "logger.entity": "C:\\data\\",
    "dataset.name": "true",
    "trainer.precision": "1e3",
}


def refusal_of(*typed: str) -> str:
    with pytest.raises(UserError) as error:
        arguments.check(list(typed))
    return str(error.value)


def pasted(folder: Path, said: str) -> subprocess.CompletedProcess[str]:
    """Run the command at the end of a message in a shell."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", said.splitlines()[-1]], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PATH": path},
    )  # fmt: skip


def test_the_names_that_files_have_are_quoted_by_a_command_to_paste(tmp_path):
    refused = command(tmp_path, "--cfg=job", *(f"{key}={name}" for key, name in NAMES.items() if "\\" not in name))
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "al_bench: dataset.root=~/data/pets cannot be read: ~ in a value needs quotes" in refused.stderr
    assert "study=my pets (2) cannot be read: ( ) in" in refused.stderr and "ß in a value" in refused.stderr
    done = pasted(tmp_path, refused.stderr)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    for key, name in NAMES.items():
        if "\\" not in name:
            group, _, rest = key.partition(".")
            assert (shown[group][rest] if rest else shown[group]) == name


@pytest.mark.parametrize("key, name", NAMES.items())
def test_each_quoted_argument_is_read_as_it_was_typed(key, name):
    quoted = arguments.quoted(f"{key}={name}", in_sweep=False)
    arguments.check([quoted])
    override = arguments.OverridesParser.create().parse_override(quoted)
    assert (override.key_or_group, override.value()) == (key, name)


def test_a_folder_of_the_home_with_blanks_and_brackets_is_found_by_the_quoted_path(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "data" / "my pets (2)" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / "my pets (2)" / name / f"{i}.png")
    said = refusal_of("dataset=image_folder", "dataset.root=~/data/my pets (2)")
    monkeypatch.setenv("HOME", str(tmp_path))
    c = asked(*shlex.split(said.splitlines()[-1])[3:])
    assert sources.find(c.dataset, None, c.cache_dir).labels_N.tolist() == [0] * 20 + [1] * 20


def test_a_sweep_over_such_names_is_quoted_name_by_name():
    said = refusal_of("-m", "dataset=image_folder", "dataset.root=~/a b,~/c")
    assert shlex.split(said.splitlines()[-1])[-1] == 'dataset.root="~/a b","~/c"'
    arguments.check(["-m", "dataset=image_folder", 'dataset.root="~/a b","~/c"'])


def test_settings_may_stand_before_and_after_flags(tmp_path):
    typed = ["strategy=random", "-m", "seed=0,1", "--config-dir", "own", "seed=2"]
    assert arguments.in_order(typed) == ["-m", "--config-dir", "own", "strategy=random", "seed=0,1", "seed=2"]
    assert arguments.in_order(["a=b", "--config-dir", "a=b"])[-1] == "a=b"
    (tmp_path / "own").mkdir()
    done = command(tmp_path, "strategy=entropy", "--cfg", "job", "seed=3", "--config-dir", "own", "study=x")
    shown = yaml.safe_load(done.stdout)
    assert (shown["strategy"]["name"], shown["seed"], shown["study"]) == ("entropy", 3, "x"), done.stderr


@pytest.mark.parametrize(
    "typed, said",
    [
        ("trainer.deterministic=9999999999", "trainer.deterministic=9999999999: true or false."),
        ("plan=1", "plan=1: true or false."),
        ("dataset.antialias=0", "dataset.antialias=0: true or false."),
        ("trainer={deterministic: 7}", "trainer.deterministic=7: true or false."),
        ("model.pretrained='7'", "model.pretrained=7: true or false."),
        ("trainer.max_steps=99999999999999999999", "the largest whole number is 9,223,372,036,854,775,807."),
        ("strategy.candidates=-99999999999999999999", "the largest whole number is"),
        ("+model.options.depth=12345678901234567890", "the largest whole number is"),
        ("features=[1,2]", "features=[1,2]: features is one of backbone, model, pca."),
        ("features=2.5", "features=2.5: features is one of backbone, model, pca."),
        ("strategy=[random,entropy]", "For several runs: -m strategy=random,entropy"),
        ("strategy=", "strategy=: strategy is one of alfa_mix, "),
        ("logger=null", "logger=null: logger is one of csv, none, "),
        ("hydra/launcher=0", "hydra/launcher=0: hydra/launcher is one of local, ray, slurm."),
        ("hydra/sweeper=[1]", "hydra/sweeper=[1]: hydra/sweeper takes the name of an option."),
        ("hydra=5", "hydra=5: hydra takes the name of an option."),
        ("study=", "study= has no value."),
        ("dataset.root=''", "dataset.root= has no value."),
        ("seed=", "seed= has no value."),
        ("strategy.name=", "strategy.name= has no value."),
        ("seed=null", "seed=null: this key needs a value."),
        ("study=[1,2]", "study is a text, but Hydra reads [1,2] as [1, 2]."),
        ("study=1e3", "study is a text, but Hydra reads 1e3 as 1000.0."),
        ("seed=1,2", "seed=1,2 asks for several runs: add -m"),
        ("seed=range(3)", "asks for several runs: add -m"),
        ("seed", "'seed' is not a setting. Type settings as key=value."),
        ("", "'' is not a setting."),
        ("=5", "'=5' has no key."),
        ("séed=5", "There is no key 'séed'. 'séed': did you mean seed?"),
        ("trainer..max_steps=5", "did you mean trainer.max_steps"),
        ("seed=5=6", "seed=5=6 cannot be read: mismatched input '='. Several values are typed as "),
        ("features=backbone features.name=x", "is one argument with several settings."),
        ("study=\udcff", "study=\ufffd is not UTF-8."),
    ],
)
def test_what_is_wrong_with_one_argument(typed, said):
    assert said in refusal_of(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "trainer.deterministic=TRUE", "plan=yes", "plan=${trainer.progress}", "study=2024", "study=0.5", "study='a b'",
        "trainer.precision=32", "study='b${trainer.batch_size}'", "seed=99999999999999999999", "experiment=null",
        "budget={query: 7}", "dataset.mean=[0.5,0.5,0.5]", "dataset.root=null", "+model.options.drop_path_rate=0.1",
        "~strategy.passes", "model.optimizer._target_=torch.optim.SGD", "hydra/launcher=local", "stressor.noise=1e-3",
        "trainer.max_steps=1_000", "dataset.root=a/b-c_d.zip", "+mine/group=x",
    ],
)  # fmt: skip
def test_what_is_right_passes(typed):
    arguments.check([typed])


def test_sweeps_of_every_form_pass_and_each_of_their_values_is_looked_at():
    arguments.check(
        ["-m", "seed=range(10)", "strategy=glob(*)", "study=a,b", "trainer.max_steps=choice(1,2)", "plan=true,false"]
    )
    assert refusal_of("-m", "trainer.progress=true,2") == "trainer.progress=2: true or false."
    assert "features=pca,1: features is one of" in refusal_of("-m", "features=pca,1")
    assert refusal_of("-m", "seed=range(3").startswith("seed=range(3 cannot be read: ")
    assert "Hydra reads a,1e3 as 1000.0" in refusal_of("-m", "study=a,1e3")


@pytest.mark.parametrize(
    "typed, said",
    [
        ("strategy=random -m seed=range(0)", "seed=range(0) has no number in it, so the sweep has no run."),
        ("-m seed=glob(*)", "seed=glob(*) matches no option of a group seed, so the sweep has no run."),
        ("-m strategy=glob(zzz*) seed=1,2", "strategy=glob(zzz*) matches no option of a group strategy"),
        ("-m seed=interval(0,1)", "does not support sweep type : INTERVAL_SWEEP"),
        ("+trainer.max_stes=5", "There is no key trainer.max_stes. 'trainer.max_stes': did you mean trainer.max_steps"),
        ("trainer.max_stes=5", "'trainer.max_stes': did you mean trainer.max_steps"),
        ("-m +trainer.max_stes=5 seed=0,1", "There is no key trainer.max_stes."),
        ("hydra.run.dir=afile", "al_bench: afile: File exists."),
        ("--config-dir broken strategy=bad", 'broken/strategy/bad.yaml", line 1'),
        ("--config-dir latin strategy=bad", "latin/strategy/bad.yaml is not UTF-8"),
        ("--config-dir nowhere", "--config-dir nowhere: there is no such folder."),
        ("--cfg job -m", "Only one of --run, --multirun, --cfg"),
        ("--package trainer", "add --cfg job."),
        ("--experimental-rerun nowhere", "al_bench writes no such file."),
        ("strategy=entrpy", "There is no strategy=entrpy. The options are:"),
        ("strategy=entrpy", "'entrpy': did you mean entropy"),
        ("strategy=entrpy", "For one of your own write FOLDER/strategy/entrpy.yaml and type --config-dir FOLDER."),
        ("--config-dir broken strategy=mine", "write broken/strategy/mine.yaml and type --config-dir broken."),
        ("hydra/launcher=slrm", "There is no hydra/launcher=slrm."),
        ("strategy._target_=mine.f", "name random, which belongs to al_bench.strategies.random.random_sampling. Set"),
        ("strategy._target_=mine.f", "Set a name of its own: strategy.name=f"),
        ("strategy=margin strategy.name=random", "strategy._target_=al_bench.strategies.uncertainty.margin would be"),
        ("model._target_=mine.Tiny", "Set a name of its own: model.name=tiny"),
        ("dataset._target_=mine.squares", "Set a name of its own: dataset.name=squares"),
        ("dataset._target_=mine.squares dataset.name=cifar10", "belongs to al_bench.data.sources.cifar10."),
        ("-cn nope", "Cannot find primary config 'nope'"),
        ("~seed", "seed is needed: leave out ~seed."),
    ],
)
def test_a_command_line_that_cannot_be_meant_ends_with_a_sentence(tmp_path, typed, said):
    for folder in ("broken", "latin"):
        (tmp_path / folder / "strategy").mkdir(parents=True)
    (tmp_path / "broken" / "strategy" / "bad.yaml").write_text("name: [unclosed\n_target_: x: y\n")
    (tmp_path / "latin" / "strategy" / "bad.yaml").write_bytes("name: grün\n".encode("latin-1"))
    (tmp_path / "afile").write_text("")
    before = sorted(tmp_path.rglob("*"))
    done = command(tmp_path, *typed.split())
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith("al_bench: ")
    assert said in done.stderr and not re.search("Traceback|HYDRA_FULL_ERROR|use \\+", done.stderr)
    assert sorted(tmp_path.rglob("*")) == before


def test_hydras_traceback_is_shown_to_those_who_ask_for_it(tmp_path):
    done = command(tmp_path, "trainer.max_stes=5", env=os.environ | {"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_choice_that_is_typed_twice_is_refused_and_of_other_settings_the_last_one_counts():
    for twice in (["strategy=random", "strategy=margin"], ["-m", "seed=0", "seed=1"], ["model=pca", "model=pca"]):
        key = twice[-1].partition("=")[0]
        with pytest.raises(UserError, match=f"{key} is set twice. For several runs: -m {key}=FIRST,SECOND"):
            arguments.check(twice)
    arguments.check(["budget.rounds=1", "budget.rounds=2"])


def test_an_option_of_a_function_of_ones_own_is_added_with_a_plus(tmp_path):
    typed = ("strategy._target_=fn.longest", "strategy.name=longest", "strategy.power=2.0")
    done = command(tmp_path, *typed)
    assert done.returncode == 1 and "is added with a plus: +strategy.power=..." in done.stderr
    assert "a plus" not in command(tmp_path, "strategy=entropy", "strategy.power=2.0").stderr


def test_help_that_nobody_reads_to_its_end_is_no_error(tmp_path):
    program = f"set -o pipefail; {shlex.quote(sys.executable)} -m al_bench --help | head -1"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) in ((0, ""), (141, ""))
