import gzip
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from conftest import run_here
from test_decode import grey, write, zipped
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, SVHN

from al_bench.config import DatasetConfig, OnBadImage
from al_bench.data import arrays, sources
from al_bench.errors import UserError


def greys(names):
    """Images by name, each with its own grey value: 0, 1, 2..."""
    return {name: grey(value) for value, name in enumerate(names.split())}


def below(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


def loaded(root, tmp_path, source, **options):
    options = {"test_fraction": 0.25, "image_size": 8} | options
    c = DatasetConfig(f"al_bench.data.sources.{source}", source, root and str(root), **options)
    return sources.load(c, sources.find(c, None, str(tmp_path / "cache")), seed=0)


def classes(dataset, oracle):
    """Grey value of each image -> its class, and the values in the test split."""
    idx = torch.cat([dataset.train_idx, dataset.test_idx])
    labels = torch.cat([oracle.label(dataset.train_idx), dataset.test_labels_V])
    value = dataset.images[:, 0, 0, 0].tolist()
    named = {value[i]: dataset.class_names[label] for i, label in zip(idx, labels, strict=True)}
    return named, {value[i] for i in dataset.test_idx}


CATS_AND_DOGS = dict.fromkeys(range(4), "cat") | dict.fromkeys(range(100, 104), "dog")
KAGGLE = {f"{kind}.{value}.jpg": grey(value) for value, kind in CATS_AND_DOGS.items()}
TRAIN = below("train", KAGGLE)
PETS = {f"{kind.title()}/{value}.jpg": grey(value) for value, kind in CATS_AND_DOGS.items()}
BESIDE = {"test1/1.jpg": grey(9), "sampleSubmission.csv": b"id,label"}
LAYOUTS = {
    "train.zip": lambda d: zipped(d / "train.zip", TRAIN),
    "outer zip": lambda d: zipped(d / "all.zip", BESIDE | {"train.zip": zipped(d / "train.zip", TRAIN).read_bytes()}),
    "folder of zips": lambda d: write(zipped(d / "train.zip", TRAIN).parent, {"test1.zip": b""}),
    "extracted folder": lambda d: write(d, BESIDE | TRAIN | {"train.zip": b""}),
    "folder of images": lambda d: write(d, KAGGLE),
    "PetImages": lambda d: write(d, PETS),
    "zip of PetImages": lambda d: zipped(d / "pets.zip", below("PetImages", PETS) | {"readme[1].txt": b"hello"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_cats_and_dogs_gives_the_same_labels(layout, tmp_path):
    dataset, oracle = loaded(LAYOUTS[layout](write(tmp_path / "in", {})), tmp_path, "dogs_vs_cats")
    named, test = classes(dataset, oracle)
    assert named == CATS_AND_DOGS and len(test) == 2 and dataset.images.shape == (8, 3, 8, 8)


def test_the_same_photographs_are_the_same_data_in_a_zip_and_in_a_folder(tmp_path):
    changed = KAGGLE | {"dog.103.jpg": grey(7)}
    places = zipped(tmp_path / "a.zip", KAGGLE), write(tmp_path / "b", KAGGLE), write(tmp_path / "c", changed)
    one, two, other = [loaded(place, tmp_path, "dogs_vs_cats")[0].checksum for place in places]
    assert one == two != other


def test_strangers_and_broken_files_among_cats_and_dogs_stop_or_are_skipped_and_named(tmp_path):
    strangers = {"train/bird.0.jpg": grey(50), "train/notes.txt": b"hello"}
    folder = write(tmp_path / "in", TRAIN | BESIDE | strangers)
    with pytest.raises(UserError, match="(?s)2 of the files.*train/bird.0.jpg: neither.*train/notes.txt: neither"):
        loaded(folder, tmp_path, "dogs_vs_cats")
    write(folder, {"train/cat.1.jpg": b"", "train/dog.100.jpg": grey(100)[:-30]})
    dataset, oracle = loaded(folder, tmp_path, "dogs_vs_cats", on_bad_image=OnBadImage.skip)
    assert classes(dataset, oracle)[0] == {k: v for k, v in CATS_AND_DOGS.items() if k not in (1, 100)}
    assert dataset.skipped == (*strangers, "train/cat.1.jpg", "train/dog.100.jpg")


PLACES = [write, lambda folder, files: zipped(folder.with_suffix(".zip"), files)]

TENSORFLOW = {
    f"cats_and_dogs_filtered/{part}/{kind}s/{kind}.{value}.jpg": grey(value)
    for value, kind in CATS_AND_DOGS.items()
    for part in ("train", "validation")
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "source, files, message",
    [
        ("dogs_vs_cats", TENSORFLOW, "cats lie in several folders .*filtered/train/cats/, .*/validation/cats/"),
        ("dogs_vs_cats", below("train", PETS) | below("validation", PETS), "cats lie .*train/Cat/, validation/Cat/"),
        ("dogs_vs_cats", TRAIN | below("holdout", KAGGLE), "cats lie in several folders .holdout/, train/"),
        ("image_folder", TENSORFLOW, "train/ and validation/ hold the same folders .cats, dogs"),
        ("image_folder", greys("train/a/0 train/b/1 validation/a/2"), "train/ and validation/ are named like"),
        ("image_folder", greys("in/Training/a/0 in/Training/b/1 in/val/b/2"), "Training/ and val/ are named like"),
    ],
)
def test_the_parts_of_a_split_are_never_merged(source, files, message, place, tmp_path):
    with pytest.raises(UserError, match=f"{message}(?s:.*)train/ and test/"):
        loaded(place(tmp_path / "in", files), tmp_path, source)


@pytest.mark.parametrize("place", PLACES)
def test_test_images_that_are_training_images_are_told_with_their_number(place, tmp_path):
    def told(name, source, files):
        dataset, _ = loaded(place(tmp_path / name, files), tmp_path, source)
        tested = dataset.images[dataset.test_idx, 0, 0, 0].tolist()
        return [warning for warning in dataset.warnings if "byte-identical" in warning], tested.count(7)

    both = {f"{part}/{kind}/{i}.png": grey(10 * i + (kind == "a")) for i in range(20) for kind in "ab" for part in
            ("train", "test")}  # fmt: skip
    (all_of_them,), _ = told("both", "image_folder", both)
    assert all_of_them.startswith("40 of the 40 test images are byte-identical to training images")
    (some,), _ = told("some", "image_folder", both | {f"test/a/{i}.png": grey(200 + i) for i in range(15)})
    assert some.startswith("25 of the 40")
    drawn = KAGGLE | {f"cat.{i}.jpg": grey(7) for i in range(50, 90)}
    (by_chance,), n = told("drawn", "dogs_vs_cats", drawn)
    assert n > 5 and by_chance.startswith(f"{n} of the 12")
    assert not told("sound", "dogs_vs_cats", KAGGLE)[0]


@pytest.mark.parametrize(
    "names, number",
    [
        ("a/1.png a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg a/@eaDir/1.png/SYNOPHOTO_THUMB_S.jpg b/2.png b/3.png", 2),
        ("train/a/1 train/a/@eaDir/1 train/b/2 test/a/3 test/b/@eaDir/4/5", 2),
        ("a/1 a/2 b/3 b/4", 0),
    ],
)
def test_thumbnails_that_a_nas_leaves_are_told_with_their_number(names, number, tmp_path):
    warnings = loaded(write(tmp_path / "in", greys(names)), tmp_path, "image_folder")[0].warnings
    assert [w.split(" lie in ")[0] for w in warnings if "@eaDir" in w] == [f"{number} of the images"] * bool(number)


def test_what_is_told_of_data_is_in_the_log_and_beside_the_run(tmp_path, one_thread):
    parts = [(part, kind) for part in ("train", "test") for kind in "ab"]
    files = {f"{part}/{kind}/{i}.png": grey(10 * i + (kind == "a")) for part, kind in parts for i in range(20)}
    root = write(tmp_path / "in", files)
    store = run_here(
        tmp_path, "dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", "trainer.max_steps=1",
        "budget.initial=4", "budget.query=2", "budget.rounds=1", "budget.validation=2",
    )  # fmt: skip
    (warning,) = store.info()["dataset"]["warnings"]
    assert warning.startswith("40 of the 40 test images") and warning in (store.folder / "run.log").read_text()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", ["", "train/", "one/in/another/"])
def test_an_image_folder_has_a_class_for_each_sub_folder(around, place, tmp_path):
    hidden = {".git/x": b"", "__MACOSX/._a/0": b"", "a/.DS_Store": b"", "notes.txt": b"beside the classes"}
    files = greys("a/0 a/1 b/2 b/deep/er/3 train/4 train/5") | hidden  # a class may be called train
    root = place(tmp_path / "in", {around + name: content for name, content in files.items()})
    named, test = classes(*loaded(root, tmp_path, "image_folder", test_fraction=0.2))
    assert named == {0: "a", 1: "a", 2: "b", 3: "b", 4: "train", 5: "train"} and len(test) == 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("around", ["", "fruit/"])
def test_an_image_folder_with_train_and_test_keeps_that_split(around, place, tmp_path):
    files = {around + name: image for name, image in greys("train/a/0 train/b/1 test/b/2 test/a/3").items()}
    named, test = classes(*loaded(place(tmp_path / "in", files), tmp_path, "image_folder"))
    assert named == {0: "a", 1: "b", 2: "b", 3: "a"} and test == {2, 3}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "source, names, message",
    [
        ("dogs_vs_cats", "cat.0 cat.1", "class 'dog' of dataset dogs_vs_cats .* has no image"),
        ("dogs_vs_cats", "test1/1 test1/2", "none of its 2 files is named cat"),
        ("image_folder", "a/0 a/1", "one class only .a."),
        ("image_folder", "a/0 a/1 b/", "class 'b' of dataset image_folder .* has no image"),
        ("image_folder", "0 1 2", "no class folders in it"),
        ("image_folder", "train/0 test/1", "no class folders in train/"),
        ("image_folder", "train/a/0 train/b/1 train/c/ test/a/2", "class 'c' .* has no image"),
        ("image_folder", "train/a/0 train/b/ test/b/1", "class 'b' .* has no training image"),
        ("image_folder", "train/a/0 train/b/1 test/c/2", "a class 'c' that train/ lacks"),
        ("image_folder", "train/a/0 train/b/1 test/a/", "test/ holds no class folders with images"),
        ("image_folder", "train/a/0 train/b/1 val/a/2 val/b/3", "train/ and val/ hold the same folders .a, b"),
        ("image_folder", "in/Train/a/0 in/Train/b/1 in/Test/a/2 in/Test/b/3", "Test/ and Train/ hold the same folders"),
        ("image_folder", "train/a/0 train/b/1 test/a/2 val/a/3", "beside train/ and test/ there is val/"),
    ],
)
def test_a_folder_of_another_shape_says_what_is_wrong(source, names, message, place, tmp_path):
    with pytest.raises(UserError, match=message):
        loaded(place(tmp_path / "in", greys(names)), tmp_path, source)


def test_digits_refuses_a_root_that_it_would_not_read(tmp_path):
    with pytest.raises(UserError, match="dataset.root=.*: digits reads no files"):
        loaded(tmp_path, tmp_path, "digits")


def test_a_source_without_a_root_or_a_test_split_asks_for_it(tmp_path):
    for name in ("dogs_vs_cats", "image_folder", "mnist"):
        with pytest.raises(UserError, match="needs dataset.root="):
            loaded(None, tmp_path, name)
    with pytest.raises(UserError, match="set dataset.test_fraction"):
        loaded(None, tmp_path, "digits", test_fraction=None)
    with pytest.raises(UserError, match="cannot be split"):
        loaded(None, tmp_path, "digits", test_fraction=1e-9)


def test_means_of_another_number_of_channels_are_refused():
    c = DatasetConfig("al_bench.data.sources.digits", "digits", None, test_fraction=0.2)
    sources.find(replace(c, mean=[0.5], std=[1.0]), None, "")
    with pytest.raises(UserError, match="have 3 values, and the images of digits have 1 channels"):
        sources.find(replace(c, mean=[0.5] * 3, std=[1.0] * 3), None, "")


@pytest.mark.parametrize("antialias, expected", [(True, [71, 117]), (False, [50, 120])])  # by hand in test_decode.py
def test_data_in_memory_is_resized_as_asked(antialias, expected):
    columns = np.array([[0, 100, 200, 40]] * 4, np.uint8)[None, :, :, None]
    c = DatasetConfig("", "columns", image_size=2, antialias=antialias)
    images = arrays.in_memory(c, columns, np.array([0]), ("a", "b"), None).read()
    assert images.pixels[0, :, :, 0].tolist() == [expected, expected]


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])  # one format
def test_mnist_keeps_its_test_split(name, tmp_path, shared):
    packed = (shared / "MNIST" / "raw").glob("*.gz")
    write(tmp_path, {f"{name}/raw/{path.stem}": gzip.decompress(path.read_bytes()) for path in packed})
    source = "mnist" if name == "MNIST" else "fashion_mnist"
    dataset, oracle = loaded(tmp_path, tmp_path, source, image_size=None)
    assert dataset.images.shape == (70_000, 1, 28, 28) and dataset.n_classes == 10
    assert torch.equal(torch.cat([dataset.train_idx, dataset.test_idx]), torch.arange(70_000))
    assert len(dataset.test_idx) == 10_000
    assert oracle.label(torch.arange(5)).tolist() == [5, 0, 4, 1, 9]
    assert dataset.test_labels_V[:5].tolist() == [7, 2, 1, 0, 4]


def idx(values, *sizes):
    return bytes((0, 0, 8, len(sizes))) + b"".join(n.to_bytes(4, "big") for n in sizes) + bytes(values)


RAW = {
    "train-images-idx3-ubyte": idx(range(12), 3, 2, 2),
    "train-labels-idx1-ubyte": idx((7, 8, 9), 3),
    "t10k-images-idx3-ubyte": idx(range(20, 28), 2, 2, 2),
    "t10k-labels-idx1-ubyte": idx((0, 1), 2),
}


@pytest.mark.parametrize("unpacked", [set(), {"train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}, set(RAW)])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_is_read_from_gz_files_where_the_unpacked_ones_are_missing(name, unpacked, tmp_path, monkeypatch):
    """Data and cache may lie where nothing can be written."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    files = {file if file in unpacked else f"{file}.gz": content for file, content in RAW.items()}
    raw = write(tmp_path / name / "raw", {f: gzip.compress(c) if f.endswith(".gz") else c for f, c in files.items()})
    c = DatasetConfig("", "mnist", str(tmp_path))
    write(tmp_path, {"no folder": b""})
    source = getattr(sources, "mnist" if name == "MNIST" else "fashion_mnist")(c, None, str(tmp_path / "no folder"))
    pixels = source.read().pixels
    assert pixels.shape == (5, 2, 2, 1) and pixels.ravel().tolist() == [*range(12), *range(20, 28)]
    assert source.labels_N.tolist() == [7, 8, 9, 0, 1] and source.test_idx.tolist() == [3, 4]
    assert len(source.class_names) == 10 and {path.name for path in raw.iterdir()} == files.keys()


@pytest.mark.parametrize(
    "damaged",
    [lambda whole: gzip.compress(whole)[:-9], lambda _: b"no gzip", lambda _: gzip.compress(b"no images"),
     lambda whole: gzip.compress(whole[:-1])],
)  # fmt: skip
def test_a_damaged_gz_file_is_named(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    files = {f"{file}.gz": gzip.compress(whole) for file, whole in RAW.items()}
    name = "train-images-idx3-ubyte"
    write(tmp_path / "MNIST" / "raw", files | {f"{name}.gz": damaged(RAW[name])})
    with pytest.raises(UserError, match=f"{name}.gz is damaged"):
        loaded(tmp_path, tmp_path, "mnist")


def test_data_that_are_absent_or_broken_and_cannot_be_fetched_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    for files in ({}, {f"MNIST/raw/{Path(name).stem}": b"cut short" for name, _ in MNIST.resources}):
        with pytest.raises(
            UserError, match=f"mnist is not complete in dataset.root={tmp_path}, and could not be downloaded"
        ):
            loaded(write(tmp_path, files), tmp_path, "mnist")


def test_settings_about_files_are_refused_where_there_are_none():
    for key, value in (("white", 4095.0), ("max_pixels", 10**9)):
        with pytest.raises(UserError, match=f"dataset.{key} is about image files, and dataset digits has none"):
            loaded(None, Path("unused"), "digits", image_size=None, **{key: value})


# Three images to train on and two for the test, in the formats of CIFAR and SVHN.
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0])
PARTS = {"train": slice(0, 3), "test": slice(3, 5)}


def write_cifar(kind, labels, root, monkeypatch):
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "names", "md5": None})
    files = {"meta": {"names": ["a", "b", "c"]}}
    for name, rows in PARTS.items():
        monkeypatch.setattr(kind, f"{name}_list", [[name, None]])  # None instead of a checksum
        files[name] = {"data": PIXELS[rows].transpose(0, 3, 1, 2).reshape(-1, 3072), labels: LABELS[rows].tolist()}
    write(root / kind.base_folder, {name: pickle.dumps(content) for name, content in files.items()})


def write_svhn(root, monkeypatch):
    monkeypatch.setattr(SVHN, "split_list", {name: ["", f"{name}.mat", None] for name in PARTS})
    for name, rows in PARTS.items():
        digits = np.where(LABELS == 0, 10, LABELS)[rows, None]  # SVHN calls zero 10
        scipy.io.savemat(root / f"{name}.mat", {"X": PIXELS[rows].transpose(1, 2, 3, 0), "y": digits})


@pytest.mark.parametrize(
    "name, write_files, n_classes",
    [
        ("cifar10", partial(write_cifar, CIFAR10, "labels"), 3),
        ("cifar100", partial(write_cifar, CIFAR100, "fine_labels"), 3),
        ("svhn", write_svhn, 10),
    ],
)
def test_cifar_and_svhn_are_read_whichever_way_they_store_pixels(name, write_files, n_classes, tmp_path, monkeypatch):
    write_files(tmp_path, monkeypatch)
    c = DatasetConfig(f"al_bench.data.sources.{name}", name, str(tmp_path))
    source = getattr(sources, name)(c, None, str(tmp_path / "cache"))
    pixels = source.read().pixels
    assert np.array_equal(pixels, PIXELS) and source.image_shape == (3, 32, 32)
    assert pixels.flags.c_contiguous  # a batch is cut in whole rows
    assert source.labels_N.tolist() == LABELS.tolist() and source.test_idx.tolist() == [3, 4]
    assert len(source.class_names) == n_classes


def test_a_data_set_of_the_users_is_made_of_arrays():
    c = DatasetConfig(f"{__name__}.squares", "squares", None, test_fraction=0.25)
    dataset, oracle = sources.load(c, sources.find(c, None, ""), seed=0)
    assert dataset.images.shape == (8, 1, 4, 4) and dataset.class_names == ("dark", "bright")
    assert (len(dataset.train_idx), len(dataset.test_idx)) == (6, 2)
    bright = dataset.images[dataset.train_idx][:, 0, 0, 0] > 4
    assert torch.equal(oracle.label(dataset.train_idx), bright.long())


def squares(c, model_size, cache_dir):
    images = np.arange(1, 9, dtype=np.uint8).repeat(16).reshape(8, 4, 4, 1)
    return arrays.in_memory(c, images, np.arange(8) // 4, ["dark", "bright"])


def takes_nothing():
    return 1


def no_source(c, model_size, cache_dir):
    return [1, 2]


@pytest.mark.parametrize(
    "name, why",
    [
        (
            takes_nothing,
            r"dataset mine: test_sources.takes_nothing failed \(TypeError: .* takes 0 positional .*"
            r"It is called as \(config.dataset, model_size, cache_dir\)",
        ),
        (no_source, "returned list, and a Source is wanted: al_bench.data.arrays.in_memory makes one"),
    ],
)
def test_a_data_set_of_the_users_that_cannot_be_used_is_told_with_the_reason(name, why):
    with pytest.raises(UserError, match=why):
        sources.find(DatasetConfig(f"{__name__}.{name.__name__}", "mine", None, test_fraction=0.25), None, "")


GREY, TWO = np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, int)


@pytest.mark.parametrize(
    "images, labels, what, cure",
    [
        (GREY / 255, TWO, "but are float64 [8, 4, 4, 1]", "(255 * images).round().astype(np.uint8)"),
        (GREY.astype(int) + 255, TWO, "but are int64 [8, 4, 4, 1]", "images.astype(np.uint8)"),
        (GREY.tolist(), TWO, "but are list", "np.asarray(images)"),
        (torch.zeros(8, 4, 4, 1, dtype=torch.uint8), TWO, "but are torch.uint8 [8, 4, 4, 1]", "np.asarray(images)"),
        (GREY[..., 0], TWO, "but are uint8 [8, 4, 4]", "images[..., None]"),
        (GREY.transpose(0, 3, 1, 2), TWO, "but are uint8 [8, 1, 4, 4]", "images.transpose(0, 2, 3, 1)"),
        (GREY[:, :3], TWO, "but are uint8 [8, 3, 4, 1]", "Crop or pad"),
        (GREY, TWO[:7], "but are int64 [7]", ""),
        (GREY, TWO.tolist(), "but are list", "np.unique(labels, return_inverse=True)"),
        (GREY, TWO / 1, "but are float64 [8]", "np.unique(labels, return_inverse=True)"),
        (GREY, np.eye(2, dtype=int)[TWO], "but are int64 [8, 2]", "labels.argmax(1)"),
        (GREY, np.arange(8), "but go from 0 to 7", "np.unique(labels, return_inverse=True)"),
    ],
)
def test_arrays_that_do_not_fit_are_told_with_a_cure(images, labels, what, cure):
    with pytest.raises(UserError) as told:
        arrays.in_memory(DatasetConfig("mine.images", "mine", None), images, labels, ["dark", "bright"])
    assert str(told.value).startswith("dataset mine: ") and what in str(told.value) and cure in str(told.value)


def test_the_cures_of_arrays_cure():
    c = DatasetConfig("mine.images", "mine", None)
    names, labels = np.unique(np.array([7, 9] * 4), return_inverse=True)
    halves = np.full((8, 4, 4), 0.5)
    images = np.asarray(halves[..., None].transpose(0, 3, 1, 2).transpose(0, 2, 3, 1))
    source = arrays.in_memory(c, (255 * images).round().astype(np.uint8), labels, names)
    assert source.image_shape == (1, 4, 4) and source.labels_N.tolist() == [0, 1] * 4
    assert (source.read().pixels == 128).all()


@pytest.mark.parametrize(
    "mean, std, told",
    [
        ([0.3053], [0.3764], True),
        ([0.02], [0.01], False),  # others, though not those of the images
        ([0.3053], [0.2], False),
    ],
)
def test_the_mean_and_std_of_digits_are_told_where_the_images_have_others(mean, std, told):
    c = DatasetConfig(f"{__name__}.squares", "squares", None, test_fraction=0.25, mean=mean, std=std)
    dataset, _ = sources.load(c, sources.find(c, None, ""), seed=0)
    # By hand: the pixels 1 to 8 have the mean 4.5 and the standard deviation sqrt(5.25) = 2.29; 4.5 / 255 = 0.0176.
    said = (
        "dataset.mean and dataset.std are those of digits. The images of squares have others: set "
        "dataset.mean=[0.018] dataset.std=[0.009].",
    )
    assert dataset.warnings == (said if told else ())


def digits_again(c, model_size, cache_dir):
    return sources.digits(c, model_size, cache_dir)


def test_images_that_have_the_mean_and_std_of_digits_warn_nobody():
    c = DatasetConfig(f"{__name__}.digits_again", "mine", None, test_fraction=0.2, mean=[0.3053], std=[0.3764])
    assert sources.load(c, sources.find(c, None, ""), seed=0)[0].warnings == ()
