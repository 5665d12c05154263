"""The images of a folder that a person labels: listed once, in a fixed order, each picture once.

The list is kept in FOLDER-labels/images.jsonl, so an image keeps its place when others are added, moved or deleted.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from PIL import Image

from al_bench import rng
from al_bench.config import DatasetConfig
from al_bench.data.arrays import Source
from al_bench.data.files import ImageFiles, files_in, some
from al_bench.data.photo import FORMATS
from al_bench.data.sources import LabelledFiles, draw_test, from_files
from al_bench.errors import UserError
from al_bench.files import accessible, is_there, read_file, write_atomically
from al_bench.labelling import ELSEWHERE
from al_bench.provenance import sha256_of
from al_bench.text import one_line

LABELS, IMAGES = "labels.jsonl", "images.jsonl"
MIDDLE = 1 << 12  # bytes
UNREAD = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")  # of cameras


@dataclass(frozen=True)
class Listed:
    """One image, as it was when it was listed."""

    path: str  # posix, below the folder
    bytes: int
    modified: int  # nanoseconds
    copies: tuple[str, ...] = ()  # paths of files with the same content; they are not asked for
    test: bool | None = None  # whether it is a test image; None: the seed draws it, as no image came later


@dataclass(frozen=True)
class Listing:
    """The images of a folder, sorted by path. Their order never changes."""

    folder: Path
    images: tuple[Listed, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)  # what is odd about the files now, in sentences

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(image.path for image in self.images)

    @property
    def is_marked(self) -> bool:
        """Whether the list names the test images."""
        return any(image.test is not None for image in self.images)

    @cached_property
    def canonical(self) -> dict[str, str]:
        """The path under which an image is asked for, by each path of it."""
        return {path: image.path for image in self.images for path in (image.path, *image.copies)}

    @cached_property
    def _moved(self) -> dict[str, str]:
        """Where files are now that do not lie where they were listed: the same name, size and time elsewhere."""
        lost = {
            (i.path.rpartition("/")[2], i.bytes, i.modified): i.path for i in self.images if not self._is_at(i.path)
        }
        if not lost:
            return {}
        there = files_in(str(self.folder)).sizes
        seen = {(path.rpartition("/")[2], *_facts(self.folder / path)): path for path in there}
        return {lost[key]: seen[key] for key in lost.keys() & seen.keys()}

    def _is_at(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def file(self, path: str) -> Path:
        """The file of a listed image, wherever it was moved below the folder. It may be gone."""
        return self.folder / (path if self._is_at(path) else self._moved.get(path, path))

    def sha256(self, path: str) -> str:
        """sha256 of a file's content. Raises OSError."""
        return sha256_of(self.file(path))

    def files(self) -> ImageFiles:
        """What the decoder reads. The fingerprint is that of the list, so deleted files stay in the cache."""
        facts = [str(self.folder), *((i.path, i.bytes, i.modified) for i in self.images)]
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        sizes = {i.path: i.bytes for i in self.images}
        return ImageFiles(self.folder, sizes, (), lambda path: self.file(path).read_bytes(), digest)


def home_of(folder: str | os.PathLike[str]) -> Path:
    """FOLDER-labels, beside the folder of images: everything about its labels."""
    path = Path(os.path.abspath(Path(folder).expanduser()))
    return path.with_name(f"{path.name}-labels")


def list_images(folder: str | os.PathLike[str]) -> Listing:
    """The images of a folder. The first call writes the list, all later ones read it and say what has changed since.

    Files whose names do not end like an image's, and byte-identical copies, are left out and noted. Only files of equal
    size are read. Raises UserError if there is no image.
    """
    root, path = Path(os.path.abspath(Path(folder).expanduser())), home_of(folder) / IMAGES
    if root.is_file():
        raise UserError(f"{one_line(str(folder))} is a file. Name the folder of images: {one_line(str(root.parent))}.")
    if not root.is_dir():
        raise UserError(f"{one_line(str(folder))}: there is no such file or folder. Name the folder of images.")
    if is_there(path):
        return _compared(root, _read(path))
    names, others = image_names(root)
    if not names:
        there = f"{len(others):,} files are there, and none is named like an image" if others else "it is empty"
        name = f"Name a folder of JPEG, PNG or other images.{convert(others)}"
        raise UserError(f"{one_line(str(folder))} has no images ({there}). {name}")
    groups = _same(root, names)
    copies = {group[0]: tuple(group[1:]) for group in groups}
    left_out = {name for group in groups for name in group[1:]}
    images = tuple(Listed(n, *_facts(root / n), copies.get(n, ())) for n in names if n not in left_out)
    write_list(root, images)
    notes = [left_out_words(others)] if others else []
    notes += [f"{len(left_out):,} files are copies of others: each picture is asked once."] if left_out else []
    return Listing(root, images, tuple(notes))


def write_list(folder: Path, images: Sequence[Listed]) -> None:
    path = home_of(folder) / IMAGES
    kept = [{key: value for key, value in asdict(image).items() if value is not None} for image in images]
    with accessible(path, "written", ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(image) + "\n" for image in kept))


def _read(path: Path) -> tuple[Listed, ...]:
    try:
        lines = [json.loads(line) for line in read_file(path).splitlines()]
        return tuple(Listed(**line | {"copies": tuple(line["copies"])}) for line in lines)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}). Bring it back, or delete it: the images are listed anew, and answers stay "
            "with their paths."
        ) from None


def _compared(root: Path, images: tuple[Listed, ...]) -> Listing:
    """The list, with notes on files that are new, gone or changed."""
    listing = Listing(root, images)
    gone = [i.path for i in images if not listing.file(i.path).is_file()]
    absent = {*gone}
    changed = [i.path for i in images if i.path not in absent and _facts(listing.file(i.path)) != (i.bytes, i.modified)]
    said = (
        (gone, "listed images are gone; those not labelled yet are left out"),
        (changed, "listed images have changed since they were listed; they are shown as they are now"),
        (_new_names(listing), "images are new since the list was made, and are not asked for; --new takes them in"),
    )
    return replace(listing, notes=tuple(f"{len(names):,} {what}: {some(names)}." for names, what in said if names))


def _new_names(listing: Listing) -> list[str]:
    """Images that are neither listed nor a listed file that was moved."""
    moved = {listing.file(i.path).relative_to(listing.folder).as_posix() for i in listing.images}
    return sorted({*image_names(listing.folder)[0]} - listing.canonical.keys() - moved)


def with_new(listing: Listing) -> Listing:
    """The list with the new images of the folder behind the others, which keep their places. Copies stay copies."""
    names = _new_names(listing)
    groups = _same(listing.folder, [*listing.paths, *names])
    copies = {group[0]: tuple(name for name in group[1:] if name in names) for group in groups}
    left_out = {name for group in copies.values() for name in group}
    old = (replace(i, copies=(*i.copies, *copies.get(i.path, ()))) for i in listing.images)
    new = (Listed(n, *_facts(listing.folder / n), copies.get(n, ())) for n in names if n not in left_out)
    return Listing(listing.folder, (*old, *new))


def test_images(listing: Listing, test_share: float, seed: int) -> list[str]:
    """The paths of the test images, in a random order: a share that the seed draws, or those that the list names."""
    n = len(listing.images)
    marked = torch.tensor([bool(image.test) for image in listing.images])
    is_test = marked if listing.is_marked else draw_test(n, test_share, seed)
    rows = is_test.nonzero()[:, 0].tolist()
    order = torch.randperm(len(rows), generator=rng.stream(seed, "queue")).tolist()
    return [listing.images[rows[i]].path for i in order]


def left_out_words(others: Sequence[str]) -> str:
    """A sentence on files that are no images, or images of kinds that are not read."""
    kinds = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in others)
    shown = ", ".join(f"{one_line(kind)} {n:,}" for kind, n in kinds.most_common(5))
    return f"Files left out, as they are not named like images: {len(others):,} ({shown}).{convert(others)}"


def convert(others: Sequence[str]) -> str:
    """What to do with photographs of kinds that are not read, as a further sentence."""
    has_photos = any(name.lower().endswith(UNREAD) for name in others)
    return " Photographs of these kinds are not read: save them as JPEG." if has_photos else ""


def image_names(root: Path) -> tuple[list[str], list[str]]:
    """(names of image files, names of other files)"""
    Image.init()
    endings = {ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS}
    found: dict[bool, list[str]] = {True: [], False: []}
    for name in files_in(str(root)).names:
        found[os.path.splitext(name)[1].lower() in endings].append(name)
    return found[True], found[False]


def _same(root: Path, names: Sequence[str]) -> list[list[str]]:
    """Groups of files with the same content, each in the order of `names`."""
    sized = [(_facts(root / name)[0], name) for name in names]
    groups = _alike(((size, name) for size, name in sized if size), lambda size, name: size)
    # Among many large files some have the same size. Their middles tell most of them apart without reading all.
    groups = _alike(chain(*groups), lambda size, name: (size, _middle(root / name, size)))
    groups = _alike(chain(*groups), lambda size, name: sha256_of(root / name))
    return [[name for _, name in group] for group in groups]


def _alike(files: Iterable[tuple[int, str]], key: Callable[[int, str], Hashable]) -> list[list[tuple[int, str]]]:
    """Groups of at least two files, (bytes, name), with the same key."""
    found = defaultdict(list)
    for size, name in files:
        found[key(size, name)].append((size, name))
    return [group for group in found.values() if len(group) > 1]


def _middle(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(size // 2)
        return file.read(MIDDLE)


def _facts(path: Path) -> tuple[int, int]:
    """(bytes, time of change); zeros for a file that cannot be looked at, such as a dead link."""
    try:
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns
    except OSError:
        return 0, 0


def labelled_by_folder(listing: Listing, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(path, class) of each image below a folder that is named like a class; the nearest such folder counts."""
    known = set(classes)
    for path in listing.paths:
        found = [part for part in path.split("/")[:-1] if part in known]
        if found:
            yield path, found[-1]


def refuse_classes(classes: Sequence[str]) -> None:
    """Raises UserError for classes that cannot be told apart or that an answer of another meaning has."""
    twice = [name for name, n in Counter(classes).items() if n > 1]
    if twice:
        raise UserError(f"The class {one_line(twice[0])} is named twice. Name each class once.")
    for name in classes:
        if not name.strip():
            raise UserError("A class has no name. Name each class.")
        if name in ("skip", "unsure"):
            raise UserError(f"A class cannot be named {name!r}: skip and unsure are answers of their own. Rename it.")


def unlabelled(c: DatasetConfig, model_size: int | None, cache_dir: str) -> Source:
    """The images of dataset.root without labels. dataset.classes: what a person may answer."""
    if c.root is None:
        raise UserError("dataset=unlabelled needs dataset.root=..., the folder of images.")
    if not c.classes:
        raise UserError("dataset=unlabelled needs the classes that a person may answer: dataset.classes=[cat,dog].")
    classes = tuple(c.classes)
    refuse_classes(classes)
    listing = list_images(c.root)
    files = listing.files()
    tested = frozenset(image.path for image in listing.images if image.test)
    found = LabelledFiles(files, dict.fromkeys(files.names, 0), classes, tested)
    return replace(from_files(c, found, model_size, cache_dir), labelled=False)
