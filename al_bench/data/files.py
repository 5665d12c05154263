"""List the image files of a folder or a zip in a fixed order, and read them."""

import hashlib
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from al_bench.errors import UserError
from al_bench.text import one_line

LARGEST_FILE = 1 << 28  # bytes; an archive can claim any size
NAMED = 3  # files that a warning names

NOT_A_FILE = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class ImageFiles:
    """Files of a folder or an archive, in a fixed order, and how to read one."""

    where: Path
    sizes: dict[str, int]  # bytes, by posix path below `where`
    folders: tuple[str, ...]
    read: Callable[[str], bytes]
    fingerprint: str  # changes with any name and any content
    faults: dict[str, str] = field(default_factory=dict)  # why some of them cannot be read
    warnings: tuple[str, ...] = ()  # what is odd about them; none of it stops a run

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.sizes)


def files_in(root: str) -> ImageFiles:
    """Every file of a folder or a zip, or of the train.zip inside a zip. Hidden files are left out.

    Raises UserError if root is neither or cannot be read.
    """
    path, shown = Path(root).expanduser(), f"dataset.root={one_line(root)}"
    try:
        if not path.exists():
            raise UserError(f"{shown}: there is no such file or folder. Give the path of the images.")
        if not (path.is_dir() or path.is_file()):  # opening a pipe would block for ever
            raise UserError(f"{shown} is {NOT_A_FILE[stat.S_IFMT(path.stat().st_mode)]}. Give a folder or a zip.")
        return _folder(path) if path.is_dir() else _archive(path, zipfile.ZipFile(path))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{shown} cannot be read: {one_line(str(error))}. It must be a folder or a zip of images; "
            "if it is a zip, is it all there, and does it open without a password?"
        ) from None


def some(names: Sequence[str]) -> str:
    """The first few names, for a warning."""
    return ", ".join(map(one_line, names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def stamp(root: str) -> tuple[Hashable, ...]:
    """What changes with every file that is added to, removed from or rewritten in a folder, or with an archive.

    No content is read: sizes, inodes and times are compared. The inode's change time is one of the times: a copy can
    keep the modification time, but not this one. Empty where root cannot be looked at, which `files_in` reports.
    """
    path = Path(root).expanduser()
    try:
        return _entries(path) if path.is_dir() else facts_of(path.stat())
    except OSError:
        return ()


def facts_of(info: os.stat_result) -> tuple[int, ...]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_mode, info.st_ino


def _entries(path: Path) -> tuple[tuple[str, int, int, int, int, int], ...]:
    """Name, size, times, mode and inode of all that is visible below a folder; zeros where it cannot be looked at."""
    found, todo = [], [("", str(path))]
    while todo:
        above, home = todo.pop()
        with os.scandir(home) as entries:
            for entry in entries:
                name = above + entry.name
                if not _is_visible(entry.name):
                    continue
                try:
                    facts = facts_of(entry.stat())
                except OSError:
                    facts = (0, 0, 0, 0, 0)
                if stat.S_ISDIR(facts[3]):
                    _refuse_loop(Path(entry.path))
                    todo.append((f"{name}/", entry.path))
                    name, facts = f"{name}/", (0, 0, 0, *facts[3:])  # its files say what changed
                found.append((name, *facts))
    return tuple(sorted(found))


def _folder(path: Path) -> ImageFiles:
    entries = _entries(path)
    folders = tuple(sorted(name.rstrip("/") for name, *_ in entries if name.endswith("/")))
    contents = [entry[:4] for entry in entries if not entry[0].endswith("/")]
    faults = {name: fault for name, *_, mode, _ in entries if (fault := _fault(path / name, mode))}

    def read(name: str) -> bytes:
        if name in faults:
            raise ValueError(faults[name])
        return (path / name).read_bytes()

    # The path is included: another folder may hold files of the same names, sizes and times.
    fingerprint = _digest([str(path.resolve()), *contents])
    return ImageFiles(path, {name: size for name, size, *_ in contents}, folders, read, fingerprint, faults)


def _fault(path: Path, mode: int) -> str | None:
    """Why a file cannot be read. mode: 0 where it cannot be looked at."""
    if not mode:
        return "a link that leads nowhere" if path.is_symlink() else "it cannot be looked at"
    kind = NOT_A_FILE.get(stat.S_IFMT(mode))
    return kind and f"{kind}, not a file"


def _refuse_loop(folder: Path) -> None:
    if folder.is_symlink() and any(above.samefile(folder) for above in folder.parents):
        raise UserError(
            f"{one_line(str(folder))} is a link to a folder that contains it, so its images never end. Remove the link."
        )


def _archive(path: Path, archive: zipfile.ZipFile) -> ImageFiles:
    infos = {_inside(path, i.filename): i for i in archive.infolist()}
    members = {name: i for name, i in infos.items() if not i.is_dir() and _is_visible(name)}
    if inner := next((i for name, i in members.items() if name.rpartition("/")[2] == "train.zip"), None):
        return _archive(path, _inner(archive, inner))
    homes = {name if i.is_dir() else name.rpartition("/")[0] for name, i in infos.items() if _is_visible(name)}
    contents = sorted((name, i.file_size, i.CRC) for name, i in members.items())
    return ImageFiles(
        path,
        {name: size for name, size, _ in contents},
        _with_parents(homes),
        lambda name: archive.read(members[name]),
        _digest(contents),
        warnings=_doubled(path, archive),
    )


def _doubled(path: Path, archive: zipfile.ZipFile) -> tuple[str, ...]:
    times = Counter(_inside(path, i.filename) for i in archive.infolist() if not i.is_dir())
    twice = [name for name, n in times.items() if n > 1 and _is_visible(name)]
    if not twice:
        return ()
    lost = sum(times[name] - 1 for name in twice)
    return (
        f"{one_line(str(path))} holds several files of one name ({some(twice)}): only the last of each name is read, "
        f"{lost:,} files are not.",
    )


def _inner(outer: zipfile.ZipFile, info: zipfile.ZipInfo) -> zipfile.ZipFile:
    """Open a zip inside a zip from a nameless temporary file: Kaggle's would fill the memory of a sweep's jobs."""
    folder = tempfile.gettempdir()
    if info.file_size > shutil.disk_usage(folder).free:
        raise ValueError(f"its {info.filename} takes {info.file_size:,} bytes, more than is free in {folder}")
    with ExitStack() as where_it_fails, outer.open(info) as packed:
        file = where_it_fails.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(packed, file, 1 << 20)
        archive = zipfile.ZipFile(file)
        weakref.finalize(archive, where_it_fails.pop_all().close)
    return archive


def _inside(path: Path, name: str) -> str:
    """The name as a plain posix path. Raises UserError if it points outside the archive."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0].endswith(":") or (parts[0] == "" and name):
        raise UserError(
            f"{one_line(str(path))} holds a file named {name!r}, which points outside the archive. It is "
            "not read: get a clean copy."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _with_parents(folders: Iterable[str]) -> tuple[str, ...]:
    above = (folder for name in folders for folder in (PurePosixPath(name), *PurePosixPath(name).parents))
    return tuple(sorted({str(folder) for folder in above} - {"."}))


def _is_visible(name: str) -> bool:
    return "/." not in f"/{name}" and "/__MACOSX" not in f"/{name}"


def _digest(contents: Sequence[object]) -> str:
    return hashlib.sha256(repr(contents).encode()).hexdigest()
