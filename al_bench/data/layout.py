"""Which class a file belongs to: the folder layouts that can be read, and what is wrong with others."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from al_bench.config import DatasetConfig
from al_bench.data.files import ImageFiles, some
from al_bench.errors import UserError
from al_bench.text import one_line

PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"}  # of a split


def cat_or_dog(names: Sequence[str]) -> dict[str, str]:
    """The kind of each photograph, from Microsoft's `Cat/0.jpg`, or Kaggle's `cat.0.jpg` and all files beside it."""
    places = [(name, *name.rpartition("/")[::2]) for name in names]
    pets = {name: home.rpartition("/")[2].lower() for name, home, _ in places if f"/{home}".endswith(("/Cat", "/Dog"))}
    homes = {home for _, home, file in places if file.startswith(("cat.", "dog."))}
    return pets or {name: file.split(".")[0] for name, home, file in places if home in homes}


def refuse_merging(c: DatasetConfig, kinds: dict[str, str]) -> None:
    """Refuse TensorFlow's train/cats/, validation/cats/: merging them would lose the given split in silence."""
    homes = defaultdict(set)
    for name, kind in kinds.items():
        homes[kind].add(name.rpartition("/")[0] + "/")
    for kind in ("cat", "dog"):
        if len(homes[kind]) > 1:
            raise UserError(
                f"dataset.root={c.root}: {kind}s lie in several folders ({some(sorted(homes[kind]))}). If they are "
                "parts of a split, name the parts train/ and test/, with a folder for each class in both, and set "
                "dataset=image_folder. If they belong together, put them into one folder."
            )


def subfolders(files: ImageFiles, above: str) -> list[str]:
    below = [folder.removeprefix(above) for folder in files.folders if folder.startswith(above)]
    return sorted(folder for folder in below if "/" not in folder)


def by_class(files: ImageFiles, above: str) -> dict[str, str]:
    """Each file's class: the first folder below `above`, however deep the file lies in it."""
    below = {name: name.removeprefix(above) for name in files.names if name.startswith(above)}
    return {name: rest.split("/")[0] for name, rest in below.items() if "/" in rest}


def refuse_unnamed_split(c: DatasetConfig, top: list[str], inside: Iterator[list[str]]) -> None:
    """Refuse train/ and val/, or Train/ and Test/: they would be taken for two classes.

    inside: the sub-folders of each folder in `top`. It is read no further than needed.
    """
    first = next(inside, [])
    are_doubled = len(first) > 1 and all(folders == first for folders in inside)
    if len(top) > 1 and (are_doubled or {name.lower() for name in top} <= PARTS):
        parts = "/ and ".join(map(one_line, top))
        why = f"hold the same folders ({some(first)})" if are_doubled else "are named like the parts of a split"
        raise UserError(
            f"dataset.root={c.root}: {parts}/ {why}, so they are not classes. Name the parts of a split train/ and "
            "test/, with a folder for each class in both."
        )


def refuse_unreadable_name(c: DatasetConfig, class_names: tuple[str, ...]) -> None:
    """Refuse a name that is not in UTF-8: no record, table or picture of a run could show it."""
    for name in class_names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"dataset.root={c.root}: the name of the class folder {one_line(name)} is not in UTF-8. Rename it."
            )


def refuse_layout(c: DatasetConfig, top: list[str], class_names: tuple[str, ...], test: dict[str, str]) -> None:
    if not class_names:
        raise UserError(
            f"dataset.root={c.root}: no class folders in {'train/' if 'train' in top else 'it'}. "
            "It needs one sub-folder for each class, with that class's images in it."
        )
    if not {"train", "test"} <= set(top):
        return
    if others := sorted(set(top) - {"train", "test"}):
        raise UserError(
            f"dataset.root={c.root}: beside train/ and test/ there is {one_line(others[0])}/, which would not "
            "be read. Move its images into train/ (validation images are drawn from there), or remove it."
        )
    if not test:
        raise UserError(f"dataset.root={c.root}: test/ holds no class folders with images. Fill it or remove it.")
    if strange := sorted(set(test.values()) - set(class_names)):
        raise UserError(f"dataset.root={c.root}: test/ has a class {strange[0]!r} that train/ lacks.")
