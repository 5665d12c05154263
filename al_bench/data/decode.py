"""Image files of any kind -> one uint8 array [N, size, size, 3], once, in parallel."""

import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track

from al_bench.config import OnBadImage
from al_bench.data.cache import cached_array
from al_bench.errors import UserError

LARGEST_FILE = 1 << 28  # bytes; an archive can promise any size
LISTED = 20


@dataclass(frozen=True)
class ImageFiles:
    """Files of a folder or an archive, in a fixed order, and how to read one."""

    where: Path
    names: tuple[str, ...]  # posix paths below `where`
    folders: tuple[str, ...]
    read: Callable[[str], bytes]
    fingerprint: str  # changes with any name and any content


def files_in(root: str) -> ImageFiles:
    """Every file of a folder or a zip (or of the train.zip inside a zip), hidden ones left out."""
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"dataset.root={root}: there is no such file or folder. Give the path of the images.")
    try:
        return _folder(path) if path.is_dir() else _archive(path, zipfile.ZipFile(path))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(
            f"dataset.root={root} cannot be read: {error}. It must be a folder or a zip of images; "
            "if it is a zip, is it all there, and does it open without a password?"
        ) from None


def decode(
    files: ImageFiles, size: int, antialias: bool, on_bad_image: OnBadImage, cache_dir: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [N, size, size, 3], memory-mapped, its `checksum`, and the names `skipped` (their rows are left out).

    Raises UserError that lists the files which are no sound image, unless on_bad_image is skip.
    """
    key = {
        "files": files.fingerprint,
        "names": _digest(files.names),
        "size": size,
        "antialias": antialias,
        "on_bad": on_bad_image.name,
        "decoder": 2,
    }
    fill = partial(_decode_all, files, size, antialias, on_bad_image)
    return cached_array(cache_dir, key, (len(files.names), size, size, 3), "uint8", fill)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: EXIF orientation applied, transparency laid on white, 16-bit grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def resize(image: Image.Image, size: int, antialias: bool) -> np.ndarray:
    """Both sides to `size` (squashed, not cropped), bilinear. Without antialias: the four nearest pixels alone."""
    if antialias or image.size == (size, size):
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    # Not Image.transform: it cuts the fraction off, and images come out half a grey level darker.
    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels_1CHW, (size, size), mode="bilinear")[0].permute(1, 2, 0).numpy()


def _decode_all(
    files: ImageFiles, size: int, antialias: bool, on_bad: OnBadImage, out: np.ndarray
) -> tuple[int, dict[str, Any]]:
    def one(row: int) -> str | None:
        try:
            with Image.open(io.BytesIO(files.read(files.names[row]))) as image:
                out[row] = resize(to_rgb(image), size, antialias)
        except UnidentifiedImageError:
            return "not an image"
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return "too many pixels for a photograph"
        except Exception as error:  # a broken file makes a decoder raise anything; whatever it is, the file is named
            return str(error) or type(error).__name__
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        rows = threads.map(one, range(len(out)))
        faults = list(track(rows, "Decoding images", total=len(out), disable=not sys.stdout.isatty(), transient=True))
    bad = {files.names[row]: fault for row, fault in enumerate(faults) if fault}
    kept = [row for row, fault in enumerate(faults) if not fault]
    if bad and (on_bad is OnBadImage.stop or not kept):
        raise UserError(complaint(files.where, bad))
    for to, row in enumerate(kept):
        if to != row:
            out[to] = out[row]
    return len(kept), {"skipped": list(bad)}


def complaint(where: Path, bad: dict[str, str]) -> str:
    listed = [f"  {name}: {fault}" for name, fault in list(bad.items())[:LISTED]]
    more = [f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    head = f"{len(bad)} of the files in {where} cannot be used:"
    todo = "Repair or remove them, or set dataset.on_bad_image=skip to leave them out."
    return "\n".join([head, *listed, *more, todo])


def _folder(path: Path) -> ImageFiles:
    folders, contents = [], []
    for home, subfolders, names in os.walk(path, onerror=_raise, followlinks=True):
        above = Path(home).relative_to(path).as_posix() + "/"
        above = "" if above == "./" else above
        subfolders[:] = [name for name in subfolders if _is_visible(name)]
        folders += [above + name for name in subfolders]
        for name in filter(_is_visible, names):
            facts = os.stat(os.path.join(home, name))
            if stat.S_ISREG(facts.st_mode):
                # Reading every byte would take longer than a second start may: a changed file has a new time or size.
                contents.append((above + name, facts.st_size, facts.st_mtime_ns))
    contents.sort()
    sizes = {name: size for name, size, _ in contents}

    def read(name: str) -> bytes:
        _refuse_large(sizes[name])
        return (path / name).read_bytes()

    # Where: another folder may hold files of the same names, sizes and times.
    fingerprint = _digest([str(path.resolve()), *contents])
    return ImageFiles(path, tuple(sizes), tuple(sorted(folders)), read, fingerprint)


def _archive(path: Path, archive: zipfile.ZipFile) -> ImageFiles:
    infos = {_inside(path, i.filename): i for i in archive.infolist()}
    members = {name: i for name, i in infos.items() if not i.is_dir() and _is_visible(name)}
    if inner := next((i for name, i in members.items() if name.rpartition("/")[2] == "train.zip"), None):
        return _archive(path, _inner(archive, inner))

    def read(name: str) -> bytes:
        _refuse_large(members[name].file_size)
        return archive.read(members[name])

    homes = {name if i.is_dir() else name.rpartition("/")[0] for name, i in infos.items() if _is_visible(name)}
    contents = sorted((name, i.file_size, i.CRC) for name, i in members.items())
    return ImageFiles(path, tuple(sorted(members)), _with_parents(homes), read, _digest(contents))


def _inner(outer: zipfile.ZipFile, info: zipfile.ZipInfo) -> zipfile.ZipFile:
    """A zip inside a zip, by way of a nameless file: Kaggle's is too large for the memory of each job of a sweep."""
    folder = tempfile.gettempdir()
    if info.file_size > shutil.disk_usage(folder).free:
        raise ValueError(f"its {info.filename} takes {info.file_size:,} bytes, and {folder} has less space left")
    with ExitStack() as where_it_fails, outer.open(info) as packed:
        file = where_it_fails.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(packed, file, 1 << 20)
        archive = zipfile.ZipFile(file)
        weakref.finalize(archive, where_it_fails.pop_all().close)
    return archive


def _inside(path: Path, name: str) -> str:
    """The name as a plain posix path. Raises UserError where it points outside the archive."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0].endswith(":") or (parts[0] == "" and name):
        raise UserError(
            f"{path} holds a file named {name!r}, which points outside the archive. It is not read: get a clean copy."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _with_parents(folders: Iterable[str]) -> tuple[str, ...]:
    above = (folder for name in folders for folder in (PurePosixPath(name), *PurePosixPath(name).parents))
    return tuple(sorted({str(folder) for folder in above} - {"."}))


def _is_visible(name: str) -> bool:
    return "/." not in f"/{name}" and "/__MACOSX" not in f"/{name}"


def _refuse_large(size: int) -> None:
    if size > LARGEST_FILE:
        raise ValueError(f"{size:,} bytes, too large for a photograph")


def _raise(error: OSError) -> None:
    raise error


def _digest(contents: Sequence[object]) -> str:
    return hashlib.sha256(repr(contents).encode()).hexdigest()
