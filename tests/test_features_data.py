"""dataset=features: features that were computed elsewhere, from an .npz or an .npy."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import asked, lines_of, run_here

from al_bench import plan
from al_bench.config import DatasetConfig
from al_bench.data import feature_file, sources
from al_bench.errors import UserError
from al_bench.models import features

pytestmark = pytest.mark.usefixtures("one_thread")

N = 90
LABELS = np.arange(N) % 3
FEATURES = (np.random.default_rng(0).normal(size=(N, 4)) + 2 * np.eye(3, 4)[LABELS]).astype(np.float32)


def saved(folder: Path, **arrays) -> Path:
    """An .npz of FEATURES and LABELS, with these arrays changed, added, or left out where they are None."""
    arrays = {"features": FEATURES, "labels": LABELS} | arrays
    np.savez(folder / "x.npz", **{key: values for key, values in arrays.items() if values is not None})
    return folder / "x.npz"


def config_of(path: Path, **settings) -> DatasetConfig:
    return DatasetConfig("al_bench.data.feature_file.features", "features", str(path), test_fraction=0.2, **settings)


def loaded(path: Path, **settings):
    c = config_of(path, **settings)
    return sources.load(c, sources.find(c, None, "unused"), seed=0)


def labels_of(dataset, oracle) -> list[str]:
    """The class name of every item, in order, from the test set and from the oracle."""
    labels = dict(zip(dataset.test_idx.tolist(), dataset.test_labels_V.tolist(), strict=True))
    labels |= dict(zip(dataset.train_idx.tolist(), oracle.label(dataset.train_idx).tolist(), strict=True))
    return [dataset.class_names[labels[i]] for i in range(len(labels))]


def settings(path: Path, *overrides: str) -> tuple[str, ...]:
    return (
        "dataset=features",
        f"dataset.root={path}",
        "budget.initial=6",
        "budget.query=3",
        "budget.validation=3",
        *overrides,
    )


def test_a_run_on_features_of_ones_own(tmp_path):
    """The model, the folder, the record and the listing; the same command elsewhere gives the same records."""
    is_test = np.arange(N) >= 60
    path = saved(tmp_path, is_test=is_test, names=np.array([f"{i}.jpg" for i in range(N)]))
    cold = settings(path, "strategy=typiclust", "budget.start=k_means", "trainer.max_steps=150")
    store = run_here(tmp_path, *cold)
    assert (
        store.folder.relative_to(tmp_path).as_posix()
        == "default/features/linear-frozen-logistic/6+3x3/typiclust/seed=0"
    )
    assert len(store.records()) == 4 and store.records()[-1].metrics["accuracy"] > 0.6
    facts = json.loads((store.folder / "run.json").read_text())["dataset"]
    assert (facts["n_train"], facts["n_test"], facts["classes"], facts["warnings"]) == (60, 30, ["0", "1", "2"], [])
    listing = (store.folder / facts["images"]).read_text().splitlines()
    assert listing[:3] == ["index,file,class", "0,0.jpg,0", "1,1.jpg,1"] and len(listing) == N + 1
    assert not (store.folder / "acquired.jpg").exists()
    again = run_here(tmp_path / "again", *cold)
    assert lines_of(again.folder) == lines_of(store.folder)


@pytest.mark.parametrize("strategy", ["badge", "bald strategy.passes=3", "coreset"])
@pytest.mark.parametrize("head", ["null model.dropout=0.5", "logistic"])
def test_strategies_and_both_heads_take_them(strategy, head, tmp_path):
    store = run_here(tmp_path, *settings(saved(tmp_path), *f"strategy={strategy} model.head={head}".split()))
    assert len(store.records()) == 4


def test_the_defaults_are_those_of_experiment_frozen_features():
    own, theirs = asked("dataset=features", "dataset.root=x.npz"), asked("experiment=frozen_features")
    assert own.trainer == theirs.trainer and own.model.optimizer == theirs.model.optimizer
    assert own.model.mode == theirs.model.mode and own.model.head == theirs.model.head


@pytest.mark.parametrize(
    "labels, names, classes",
    [
        (LABELS, None, ["0", "1", "2"]),
        (LABELS - 1, None, ["-1", "0", "1"]),
        (10 * LABELS.astype(np.uint8) + 1, None, ["1", "11", "21"]),
        (LABELS == 1, None, ["False", "True"]),
        (np.array(["b", "a", "ü"])[LABELS], None, ["a", "b", "ü"]),
        (np.array([b"b", b"a", b"c"])[LABELS], None, ["a", "b", "c"]),
        (LABELS, ["z", "y", "x"], ["z", "y", "x"]),
        (LABELS + 1, ["z", "y", "x"], ["z", "y", "x"]),
        (10 * LABELS, ["z", "y", "x"], ["z", "y", "x"]),
        (np.array(["b", "a", "c"])[LABELS], ["c", "b", "a"], ["c", "b", "a"]),
    ],
)
def test_labels_are_numbers_from_any_start_or_texts(labels, names, classes, tmp_path):
    dataset, oracle = loaded(saved(tmp_path, labels=labels, class_names=None if names is None else np.array(names)))
    assert list(dataset.class_names) == classes
    if names is None:
        wanted = [v.decode() if isinstance(v, bytes) else str(v) for v in labels.tolist()]
    elif labels.dtype.kind == "U":
        wanted = labels.tolist()
    else:
        wanted = [names[i] for i in LABELS]
    assert labels_of(dataset, oracle) == wanted


@pytest.mark.parametrize("kind", ["float64", "float16", "int32", "uint8", "bool", ">f4"])
def test_any_kind_of_numbers_is_taken_as_float32(kind, tmp_path):
    values = np.abs(8 * FEATURES).astype(kind)
    dataset, _ = loaded(saved(tmp_path, features=np.asfortranarray(values)))
    assert dataset.images.dtype == torch.float32 and np.array_equal(dataset.images.numpy(), values.astype(np.float32))


def test_arrays_beside_an_npy_are_those_of_an_npz(tmp_path):
    arrays = {"labels": LABELS + 4, "class_names": np.array(list("abc")), "is_test": np.arange(N) < 20}
    one, oracle = loaded(saved(tmp_path, **arrays))
    np.save(tmp_path / "y.npy", FEATURES)
    for key, values in arrays.items():
        np.save(tmp_path / f"y_{key}.npy", values)
    other, other_oracle = loaded(tmp_path / "y.npy")
    assert torch.equal(one.images, other.images) and one.checksum == other.checksum
    assert one.test_idx.tolist() == other.test_idx.tolist() == list(range(20))
    assert labels_of(one, oracle) == labels_of(other, other_oracle) == list("abc") * 30


def test_the_checksum_is_of_features_and_labels(tmp_path):
    """Also where the file is written anew between two runs of one process."""
    changed = FEATURES.copy()
    changed[5, 2] += 1
    sums = []
    for i, arrays in enumerate(({}, {"features": changed}, {"labels": LABELS[::-1]}, {"names": LABELS}, {})):
        path = saved(tmp_path, **arrays)
        os.utime(path, ns=(i, i))
        sums.append(loaded(path)[0].checksum)
    assert len(set(sums)) == 3 and sums[0] == sums[3] == sums[4]


def test_a_sweep_reads_the_file_once(tmp_path, monkeypatch):
    path = saved(tmp_path)
    loaded(path)
    monkeypatch.setattr(np, "load", None)
    assert len(loaded(path)[0].images) == N


def test_what_is_odd_is_told_in_the_record(tmp_path):
    odd = np.concatenate([FEATURES, np.full((N, 2), 0.1, np.float32)], 1)
    dataset, _ = loaded(saved(tmp_path, features=odd, labelled=LABELS))
    assert dataset.warnings == (
        "x.npz: not read: labelled. al_bench reads features, labels, class_names, is_test, names, images.",
        "x.npz: 2 of the 6 columns of features have the same value in all rows. A linear head learns nothing from "
        "them: features[:, features.std(0) > 0] leaves them out.",
    )


def test_a_column_that_is_constant_in_training_is_0_there_and_of_its_own_size_in_the_test(tmp_path):
    is_test, column = np.arange(N) >= 60, np.full((N, 1), 0.1)
    column[70] = 3.1
    path = saved(tmp_path, features=np.concatenate([FEATURES, column], 1), is_test=is_test)
    frozen = features.freeze(asked(*settings(path)), loaded(path)[0])
    scaled = (frozen.images - frozen.mean) / frozen.std
    assert scaled[:60, 4].eq(0).all() and float(scaled[70, 4]) == pytest.approx(3)
    torch.testing.assert_close(scaled[:60, :4].std(0, correction=0), torch.ones(4))


def test_more_classes_than_columns(tmp_path):
    store = run_here(tmp_path, *settings(saved(tmp_path, features=FEATURES[:, :1]), "model.head=logistic"))
    assert len(store.records()) == 4


def test_the_plan_counts_the_features_once(tmp_path):
    made = plan.make(asked(*settings(saved(tmp_path))))
    assert made.labels == [6, 9, 12, 15, 18, 21] and made.tested == 18
    assert made.memory["features"] == 4 * 4 * N and "images" not in made.memory


def with_value(value: float) -> np.ndarray:
    changed = FEATURES.astype(np.float64)
    changed[7, 1] = changed[9, 0] = value
    return changed


@pytest.mark.parametrize(
    "arrays, said",
    [
        *(({"features": with_value(v)}, "in 2 of 90 rows, in row 7 for one") for v in (np.nan, -np.inf, 1e300, 1e13)),
        ({"features": with_value(np.inf).astype(np.float16)}, "in 2 of 90 rows, in row 7 for one"),
        ({"features": FEATURES[:, 0]}, r"numbers \[N, D\], but are float32 \[90\]. Save one row for each item"),
        ({"features": FEATURES[:, :, None]}, r"float32 \[90, 4, 1\]. features.reshape\(len\(features\), -1\)"),
        ({"features": FEATURES[:, :0]}, r"float32 \[90, 0\]"),
        ({"features": FEATURES.astype(str)}, r"but are <U32 \[90, 4\]. features.astype\(np.float32\)"),
        ({"features": FEATURES + 1j}, r"but are complex64 \[90, 4\]"),
        ({"features": None}, "lacks features. np.savez"),
        ({"labels": None, "label": LABELS}, "lacks labels. It holds label. np.savez"),
        ({"labels": LABELS[:-1]}, r"labels has to hold one value for each of the 90 rows .* int64 \[89\]. Save both"),
        ({"labels": LABELS[:, None]}, r"but is int64 \[90, 1\]. labels.ravel\(\)"),
        ({"labels": np.eye(3)[LABELS]}, r"float64 \[90, 3\]. One-hot: labels.argmax\(1\)"),
        ({"labels": LABELS.astype(float)}, r"whole numbers or texts, but are float64 \[90\]. labels.astype\(int\)"),
        ({"labels": LABELS * 0 + 7}, r"one class only \(7\): there is nothing to learn"),
        ({"labels": LABELS.astype(object)}, r"labels holds a pickle .* Save texts as labels.astype\(str\)"),
        ({"labels": np.array(["a", "\udc80"])[LABELS % 2]}, "labels hold a text that is not in UTF-8"),
        ({"class_names": np.array(list("aba"))}, "class_names has a name twice"),
        ({"class_names": np.array(list("ab"))}, "3 different numbers from 0 to 2, and class_names has 2 names"),
        ({"class_names": np.array(list("abcd"))}, r"\) has no image. Add some, or remove the class"),
        (
            {"class_names": np.array([["a"], ["b"], ["c"]])},
            r"class_names have to be a list of texts, but are <U1 \[3, 1\]",
        ),
        (
            {"labels": np.array(list("abc"))[LABELS], "class_names": np.array(list("ab"))},
            "'c', which class_names lacks",
        ),
        ({"is_test": np.arange(N) % 2}, r"is_test has to be of booleans, but is int64 \[90\]. is_test.astype\(bool\)"),
        ({"is_test": np.arange(N) >= 0}, "is_test is True for all items, so there is nothing to train on"),
        ({"is_test": np.arange(N) < 0}, "is_test is False for all items, so there is nothing to test on"),
        ({"is_test": np.arange(N - 1) < 9}, r"is_test has to hold one value for each of the 90 rows"),
        ({"is_test": LABELS == 2}, r"\) has no training image. Add some"),
        ({"names": np.array(["a"])}, "names has to hold one value for each of the 90 rows"),
        ({"names": FEATURES[:, 0]}, r"names have to be a list of texts, but are float32 \[90\]. names.astype\(str\)"),
    ],
)
def test_an_unfit_array_is_told_with_the_file_and_what_to_do(arrays, said, tmp_path):
    path = saved(tmp_path, **arrays)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{said}"):
        loaded(path)


class Planted:
    """What a pickle may do when it is read."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_no_pickle_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trap = np.array([Planted()] * N, dtype=object)
    for key in ("features", "labels", "class_names", "is_test", "names"):
        with pytest.raises(UserError, match=f"x.npz: {key} holds a pickle"):
            loaded(saved(tmp_path, **{key: trap}))
    np.save("y.npy", trap)
    with pytest.raises(UserError, match="y.npy holds a pickle"):
        loaded(Path("y.npy"))
    loaded(saved(tmp_path, other=trap))  # it is not opened
    assert not Path("planted").exists()


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    whole = saved(tmp_path).read_bytes()
    files = {
        "cut.npz": whole[:-100], "text.npz": b"a,b\n1,2\n", "empty.npz": b"", "text.npy": b"a,b\n1,2\n",
        "empty.npy": b"", "changed.npz": whole.replace(FEATURES.tobytes()[:64], bytes(64)),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "alone.npy", FEATURES)
    np.save(tmp_path / "short.npy", FEATURES)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-7])
    (tmp_path / "folder.npz").mkdir()
    for name, said in {
        "cut.npz": "no .npz, or it is cut short", "text.npz": "no .npz", "empty.npz": "no .npz",
        "changed.npz": "is damaged", "text.npy": "holds a pickle|is damaged", "empty.npy": "is damaged",
        "short.npy": "is damaged", "alone.npy": "lacks labels. Save it as alone_labels.npy in the same folder",
        "folder.npz": "cannot be read|no .npz", "gone.npz": "No such file",
        "x.csv": "needs the path of an .npz or .npy",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"{name}.*({said})"):
            loaded(tmp_path / name)
    with pytest.raises(UserError, match="dataset.root=None: dataset features needs the path"):
        feature_file.features(DatasetConfig("", "features", None), None, "")


@pytest.mark.parametrize(
    "overrides, said",
    [
        ("model=small_cnn", "model=small_cnn takes images, and dataset features holds features"),
        ("model=timm model.mode=frozen model.pretrained=false", "model=resnet18 takes images"),
        ("model.mode=finetune model.head=null", "model=linear has no backbone to train. Set model.mode=frozen"),
        ("+model.options.bias=1", "model=linear has none of them"),
        ("stressor=redundant", "stressor.copies=5 adds noise to pixels, and dataset features holds features"),
        ("dataset.image_size=32", "dataset.image_size is about images"),
        ("dataset.mean=[0.5]", "dataset.mean is about images"),
        ("dataset.on_bad_image=skip", "dataset.on_bad_image is about images"),
    ],
)
def test_settings_of_images_are_refused_by_the_run_and_by_its_plan(overrides, said, tmp_path):
    asked_for = settings(saved(tmp_path), *overrides.split())
    with pytest.raises(UserError, match=said):
        plan.make(asked(*asked_for))
    with pytest.raises(UserError, match=said):
        run_here(tmp_path, *asked_for)


@pytest.mark.parametrize(
    "overrides", ["trainer.augment=flip", "features=backbone features.name=resnet10t strategy=typiclust"]
)
def test_augmentation_and_a_second_backbone_are_refused(overrides, tmp_path):
    with pytest.raises(UserError, match="Set trainer.augment=none|has features already"):
        run_here(tmp_path, *settings(saved(tmp_path), *overrides.split()))


def test_the_linear_model_is_for_features_alone(tmp_path):
    for make in (lambda *a: plan.make(asked(*a)), lambda *a: run_here(tmp_path, *a)):
        with pytest.raises(UserError, match="model=linear takes features, and dataset digits holds images"):
            make("model=linear")


def test_other_stressors_take_features(tmp_path):
    stress = ("stressor.label_noise=0.2", "stressor.imbalance=2", "stressor.foreign=1", "stressor.images=40")
    store = run_here(tmp_path, *settings(saved(tmp_path), *stress))
    assert len(store.records()) == 4


def test_the_page_shows_how_to_save_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "conf/README.md").read_text()
    section = page.split("\n## Features of your own\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    exec(code, {})
    (root,) = re.findall(r"dataset=features dataset.root=(\S+)`", section)
    dataset, _ = loaded(Path(root))
    assert dataset.class_names == ("malignant", "benign") and dataset.images.shape == (569, 30)


def test_images_are_for_contact_sheets_alone(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (N, 8, 6, 3)).astype(np.uint8)
    plain = run_here(tmp_path / "plain", *settings(saved(tmp_path)))
    (tmp_path / "shown").mkdir()
    asked_for = settings(saved(tmp_path / "shown", images=images))
    store = run_here(tmp_path / "shown", *asked_for)
    assert lines_of(store.folder) == lines_of(plain.folder)
    assert not (plain.folder / "acquired.jpg").exists()
    assert (store.folder / "acquired.jpg").exists() and (store.folder / "most_uncertain.jpg").exists()
    dataset, _ = loaded(tmp_path / "shown" / "x.npz")
    assert torch.equal(dataset.pictures[5].permute(1, 2, 0), torch.from_numpy(images[5]))
    for grey in (images[..., 0], images[..., :1]):
        dataset, _ = loaded(saved(tmp_path, images=grey))
        assert dataset.pictures.shape == (N, 1, 8, 6)


@pytest.mark.parametrize(
    "shape, kind", [((N - 1, 8, 8, 3), "u1"), ((N, 8, 8, 4), "u1"), ((N, 64), "u1"), ((N, 8, 8), "f4")]
)
def test_images_of_another_shape_are_refused(shape, kind, tmp_path):
    with pytest.raises(UserError, match=re.escape("images have to be uint8 [90, height, width, 1 or 3], but are")):
        loaded(saved(tmp_path, images=np.zeros(shape, kind)))
