import gzip
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from test_decode import grey, write, zipped
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, SVHN

from al_bench.config import DatasetConfig, OnBadImage
from al_bench.data import sources
from al_bench.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"

# The grey value says which photograph it is: cats are 0 to 3, dogs 100 to 103.
KAGGLE = {f"{kind}.{i}.jpg": grey(value + i) for kind, value in (("cat", 0), ("dog", 100)) for i in range(4)}
CHANGED = KAGGLE | {"dog.3.jpg": grey(7)}
PETS = {f"{kind}/{i}.jpg": grey(value + i) for kind, value in (("Cat", 0), ("Dog", 100)) for i in range(4)}
CATS_AND_DOGS = {0: "cat", 1: "cat", 2: "cat", 3: "cat", 100: "dog", 101: "dog", 102: "dog", 103: "dog"}
BESIDE = {"test1/1.jpg": grey(9), "sampleSubmission.csv": b"id,label"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def below(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


def loaded(root, tmp_path, source, seed=0, **options):
    options = {"test_fraction": 0.25, "image_size": 8} | options
    c = DatasetConfig(f"al_bench.data.sources.{source}", source, str(root), **options)
    return sources.load(c, sources.find(c, None, str(tmp_path / "cache")), seed)


def classes(dataset, oracle, idx=None):
    """Grey value of each image -> name of its class."""
    labels_N = torch.full((len(dataset.images),), -1)
    labels_N[dataset.train_idx] = oracle.label(dataset.train_idx)
    labels_N[dataset.test_idx] = dataset.test_labels_V
    idx = torch.arange(len(labels_N)) if idx is None else idx
    return {int(dataset.images[i, 0, 0, 0]): dataset.class_names[labels_N[i]] for i in idx}


LAYOUTS = {
    "train.zip": lambda d: zipped(d / "train.zip", below("train", KAGGLE)),
    "outer zip": lambda d: zipped(d / "all.zip", BESIDE | {"train.zip": LAYOUTS["train.zip"](d).read_bytes()}),
    "folder of zips": lambda d: zipped(d / "train.zip", below("train", KAGGLE)).parent,
    "extracted folder": lambda d: write(d, BESIDE | below("train", KAGGLE) | {"train.zip": b""}),
    "folder of images": lambda d: write(d, KAGGLE),
    "PetImages": lambda d: write(d, PETS),
    "zip of PetImages": lambda d: zipped(d / "pets.zip", below("PetImages", PETS) | {"readme[1].txt": b"hello"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_cats_and_dogs_gives_the_same_labels(layout, tmp_path, folder):
    dataset, oracle = loaded(LAYOUTS[layout](folder), tmp_path, "dogs_vs_cats")
    assert classes(dataset, oracle) == CATS_AND_DOGS
    assert dataset.class_names == ("cat", "dog") and dataset.images.shape == (8, 3, 8, 8) and len(dataset.test_idx) == 2


def test_the_same_photographs_are_the_same_data_in_a_zip_and_in_a_folder(tmp_path):
    places = zipped(tmp_path / "a.zip", KAGGLE), write(tmp_path / "b", KAGGLE), write(tmp_path / "c", CHANGED)
    one, two, other = [loaded(place, tmp_path, "dogs_vs_cats")[0].checksum for place in places]
    assert one == two != other


def test_strangers_and_broken_files_among_cats_and_dogs_stop_or_are_skipped_and_named(tmp_path, folder):
    strangers = {"train/bird.0.jpg": grey(50), "train/notes.txt": b"hello"}
    write(folder, below("train", KAGGLE) | BESIDE | strangers)
    with pytest.raises(UserError, match="(?s)2 of the files.*train/bird.0.jpg: neither.*train/notes.txt: neither"):
        loaded(folder, tmp_path, "dogs_vs_cats")
    write(folder, {"train/cat.1.jpg": b"", "train/dog.0.jpg": grey(100)[:-30]})
    dataset, oracle = loaded(folder, tmp_path, "dogs_vs_cats", on_bad_image=OnBadImage.skip)
    assert classes(dataset, oracle) == {k: v for k, v in CATS_AND_DOGS.items() if k not in (1, 100)}
    assert dataset.skipped == (*strangers, "train/cat.1.jpg", "train/dog.0.jpg")


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {name: KAGGLE[name] for name in KAGGLE if "cat" in name},
            "class 'dog' of dataset dogs_vs_cats .* has no image",
        ),
        (BESIDE, "none of its 2 files is named cat"),
        (None, "no such file or folder"),
    ],
)
def test_a_folder_without_cats_and_dogs_says_what_it_lacks(files, message, tmp_path):
    if files is not None:
        write(tmp_path / "in", files)
    with pytest.raises(UserError, match=message):
        loaded(tmp_path / "in", tmp_path, "dogs_vs_cats")


FLAT = {
    f"{kind}/{i}.png": grey(value + i) for kind, value in (("apple", 0), ("pear", 50), ("train", 100)) for i in range(4)
}
FRUIT = {value + i: kind for kind, value in (("apple", 0), ("pear", 50), ("train", 100)) for i in range(4)}
TEST = {"apple/0.png": grey(200), "pear/deep/er/1.png": grey(201)}
HIDDEN = {".git/x.png": b"", "__MACOSX/._apple/0.png": b"", "apple/.DS_Store": b"", "notes.txt": b"beside the classes"}


@pytest.mark.parametrize("place", [write, lambda d, files: zipped(d / "in.zip", files)])
@pytest.mark.parametrize("around", ["", "fruit", "one/in/another"])
def test_an_image_folder_has_a_class_for_each_sub_folder(around, place, tmp_path, folder):
    files = {f"{around}/{name}".lstrip("/"): content for name, content in (FLAT | HIDDEN).items()}
    dataset, oracle = loaded(place(folder, files), tmp_path, "image_folder")
    assert dataset.class_names == ("apple", "pear", "train")  # a class may be called train
    assert classes(dataset, oracle) == FRUIT and len(dataset.test_idx) == 3


@pytest.mark.parametrize("around", ["", "fruit/"])
def test_an_image_folder_with_train_and_test_keeps_that_split(around, tmp_path, folder):
    write(folder, below(f"{around}train", FLAT | HIDDEN) | below(f"{around}test", TEST))
    dataset, oracle = loaded(folder, tmp_path, "image_folder")
    assert classes(dataset, oracle, dataset.train_idx) == FRUIT
    assert classes(dataset, oracle, dataset.test_idx) == {200: "apple", 201: "pear"}


def test_an_image_folder_with_train_alone_gets_a_test_split_drawn(tmp_path, folder):
    dataset, oracle = loaded(write(folder, below("train", FLAT)), tmp_path, "image_folder")
    assert classes(dataset, oracle) == FRUIT and len(dataset.test_idx) == 3


@pytest.mark.parametrize(
    "files, empty, message",
    [
        (
            below("train", FLAT) | below("test", TEST | {"plum/1.png": grey(3)}),
            None,
            "a class 'plum' that train/ lacks",
        ),
        (
            below("train", FLAT) | below("test", TEST) | below("val", TEST),
            None,
            "beside train/ and test/ there is val/",
        ),
        (below("train", FLAT), "test/apple", "test/ holds no class folders with images"),
        (below("train", FLAT) | below("test", TEST), "train/plum", "class 'plum' .* has no image"),
        (
            below("train", FLAT) | below("test", TEST | {"plum/1.png": grey(3)}),
            "train/plum",
            "'plum' .* no training image",
        ),
        (FLAT, "plum", "class 'plum' of dataset image_folder .* has no image"),
        ({"apple/1.png": grey(1), "apple/2.png": grey(2)}, None, "one class only .apple."),
        ({"train/1.png": grey(1), "test/2.png": grey(2)}, None, "no class folders in train/"),
        ({"1.png": grey(1)}, None, "no class folders in it"),
    ],
)
def test_an_image_folder_of_another_shape_says_what_is_wrong(files, empty, message, tmp_path, folder):
    write(folder, files)
    if empty:
        (folder / empty).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        loaded(folder, tmp_path, "image_folder")


def test_a_source_without_a_root_or_a_test_split_asks_for_it(tmp_path):
    for name in ("dogs_vs_cats", "image_folder", "mnist"):
        with pytest.raises(UserError, match="needs dataset.root="):
            loaded(None, tmp_path, name)
    with pytest.raises(UserError, match="set dataset.test_fraction"):
        loaded(None, tmp_path, "digits", test_fraction=None)
    with pytest.raises(UserError, match="cannot be split"):
        loaded(None, tmp_path, "digits", test_fraction=1e-9)


def test_digits_come_with_scikit_learn(tmp_path):
    dataset, _ = loaded(None, tmp_path, "digits", image_size=None)
    assert dataset.images.shape == (1797, 1, 8, 8) and len(dataset.test_idx) == 449
    assert dataset.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16


@pytest.mark.parametrize("antialias, expected", [(True, [71, 117]), (False, [50, 120])])
def test_data_in_memory_is_resized_as_asked(antialias, expected):
    columns = np.array([[0, 100, 200, 40]] * 4, np.uint8)[None, :, :, None]
    c = DatasetConfig("", "columns", image_size=2, antialias=antialias)
    images = sources._in_memory(c, columns, np.array([0]), ("a", "b"), None).read()
    assert images.pixels[0, :, :, 0].tolist() == [expected, expected]  # by hand in test_decode.py


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])  # of one format
def test_mnist_keeps_its_test_split(name, tmp_path):
    if not (SHARED / "MNIST").exists():
        pytest.skip("no shared/data/MNIST beside the checkout")
    packed = (SHARED / "MNIST" / "raw").glob("*.gz")
    write(tmp_path, {f"{name}/raw/{path.stem}": gzip.decompress(path.read_bytes()) for path in packed})
    dataset, oracle = loaded(tmp_path, tmp_path, name.replace("MNIST", "_mnist").lower().lstrip("_"), image_size=None)
    assert dataset.images.shape == (70_000, 1, 28, 28) and dataset.n_classes == 10
    assert torch.equal(dataset.train_idx, torch.arange(60_000))
    assert torch.equal(dataset.test_idx, torch.arange(60_000, 70_000))
    assert oracle.label(torch.arange(5)).tolist() == [5, 0, 4, 1, 9]
    assert dataset.test_labels_V[:5].tolist() == [7, 2, 1, 0, 4]


def test_data_that_are_absent_or_broken_and_cannot_be_fetched_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    for files in ({}, {f"MNIST/raw/{Path(name).stem}": b"cut short" for name, _ in MNIST.resources}):
        with pytest.raises(UserError, match=f"mnist is not whole in dataset.root={tmp_path}, and could not be fetched"):
            loaded(write(tmp_path, files), tmp_path, "mnist")


# Three images to train on, two for the test, in the formats of CIFAR and SVHN.
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0])
PARTS = {"train": slice(0, 3), "test": slice(3, 5)}


def write_cifar(kind, labels, root, monkeypatch):
    for attribute, name in (("train_list", "train"), ("test_list", "test")):
        monkeypatch.setattr(kind, attribute, [[name, None]])  # None in place of the checksum
        content = {
            "data": PIXELS[PARTS[name]].transpose(0, 3, 1, 2).reshape(-1, 3072),
            labels: LABELS[PARTS[name]].tolist(),
        }
        write(root, {f"{kind.base_folder}/{name}": pickle.dumps(content)})
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "names", "md5": None})
    write(root, {f"{kind.base_folder}/meta": pickle.dumps({"names": ["a", "b", "c"]})})


def write_svhn(root, monkeypatch):
    monkeypatch.setattr(SVHN, "split_list", {name: ["", f"{name}.mat", None] for name in PARTS})
    for name, rows in PARTS.items():
        digits = np.where(LABELS == 0, 10, LABELS)[rows, None]  # SVHN calls zero 10
        scipy.io.savemat(root / f"{name}.mat", {"X": PIXELS[rows].transpose(1, 2, 3, 0), "y": digits})


FORMATS = {
    "cifar10": partial(write_cifar, CIFAR10, "labels"),
    "cifar100": partial(write_cifar, CIFAR100, "fine_labels"),
}
FORMATS["svhn"] = write_svhn


@pytest.mark.parametrize("name", FORMATS)
def test_cifar_and_svhn_are_read_whichever_way_they_store_their_pixels(name, tmp_path, monkeypatch):
    FORMATS[name](tmp_path, monkeypatch)
    c = DatasetConfig(f"al_bench.data.sources.{name}", name, str(tmp_path))
    source = getattr(sources, name)(c, None, str(tmp_path / "cache"))
    pixels = source.read().pixels
    np.testing.assert_array_equal(pixels, PIXELS)
    assert pixels.flags.c_contiguous  # a batch is cut in whole rows
    assert source.image_shape == (3, 32, 32) and len(source.class_names) == (10 if name == "svhn" else 3)
    assert source.labels_N.tolist() == LABELS.tolist() and source.test_idx.tolist() == [3, 4]
