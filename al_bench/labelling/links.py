"""Folders of links to images, to be looked at and sorted in a file manager. Copies where links cannot be made."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from al_bench.errors import UserError
from al_bench.files import is_there, write_atomically
from al_bench.recipe import as_file_name
from al_bench.text import one_line

MADE = ".made-by-al_bench.json"  # lists the links of a folder, so that no other file is ever deleted
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of disks without links


def class_folders(names: Iterable[str]) -> dict[str, str]:
    """The folder of each class: its name, or one near it where no folder can have this name."""
    found: dict[str, str] = {}
    for name in names:
        plain = name == name.strip() and not name.startswith(".") and not {*"/\\:\0\n"} & {*name}
        folder, n = (name if plain else as_file_name(name)), 1
        while folder in found.values():
            folder, n = f"{as_file_name(name)}_{n + 1}", n + 1
        found[name] = folder
    return found


def make(folder: Path, files: Mapping[str, Path]) -> int:
    """Make the folder hold these files, by their paths in it, and none that an earlier call made besides.

    Returns how many are copies, because links cannot be made there. Raises UserError if another file is in the way,
    and OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = {*json.loads((folder / MADE).read_text())} if is_there(folder / MADE) else set()
    before |= {name for name, file in files.items() if _leads_to(folder / name, file)}  # one that the user has moved
    if strange := [name for name in files if name not in before and is_there(folder / name)]:
        raise UserError(
            f"{one_line(str(folder / strange[0]))} is in the way: al-bench did not make it. Move it out of {folder}."
        )
    write_atomically(folder / MADE, json.dumps([*before | files.keys()]))
    for name in before:
        (folder / name).unlink(missing_ok=True)
    copies = sum(_link(folder / name, file) for name, file in files.items())
    write_atomically(folder / MADE, json.dumps([*files]))
    _drop_empty(folder, {(folder / name).parent for name in before})
    return copies


def _leads_to(place: Path, file: Path) -> bool:
    return place.is_symlink() and os.readlink(place) == str(file)


def _link(place: Path, file: Path) -> bool:
    """Whether it is a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(file, place)
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    shutil.copyfile(file, place)
    return True


def _drop_empty(folder: Path, homes: set[Path]) -> None:
    """Remove the sub-folders that held links before and hold nothing now."""
    for home in sorted(homes, reverse=True):
        while home != folder and home.is_dir() and not any(home.iterdir()):
            home.rmdir()
            home = home.parent
