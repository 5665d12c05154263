"""Image files of any kind -> one uint8 array [N, size, size, 3], once, in parallel."""

import hashlib
import io
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
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
    """Every file of a folder or a zip (also one zip inside another), hidden ones left out. Nothing is extracted."""
    path = Path(root).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UserError(f"dataset.root={root}: there is no such file or folder. Give the path of the images.")
    try:
        return _archive(path, zipfile.ZipFile(path))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise UserError(
            f"dataset.root={root}: not a folder, and not a zip that can be read ({error}). Download it again?"
        ) from None


def decode(
    files: ImageFiles, size: int, antialias: bool, on_bad_image: OnBadImage, cache_dir: str
) -> tuple[np.ndarray, list[str]]:
    """uint8 [N, size, size, 3], memory-mapped, and the names that were skipped (their rows are left out).

    Raises UserError that lists the files which are no sound image, unless on_bad_image is skip.
    """
    key = {
        "files": files.fingerprint,
        "names": _digest(files.names),
        "size": size,
        "antialias": antialias,
        "on_bad": on_bad_image.name,
        "decoder": 1,
    }
    fill = partial(_decode_all, files, size, antialias, on_bad_image)
    array, notes = cached_array(cache_dir, key, (len(files.names), size, size, 3), "uint8", fill)
    return array, notes["skipped"]


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: EXIF orientation applied, transparency laid on white, 16-bit grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def resize(image: Image.Image, size: int, antialias: bool) -> Image.Image:
    """Both sides to `size` (squashed, not cropped), bilinear. Without antialias: the four nearest pixels alone."""
    if image.size == (size, size):
        return image
    if antialias:
        return image.resize((size, size), Image.Resampling.BILINEAR)
    return image.transform((size, size), Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR)


def _decode_all(
    files: ImageFiles, size: int, antialias: bool, on_bad: OnBadImage, out: np.ndarray
) -> tuple[int, dict[str, Any]]:
    def one(row: int) -> str | None:
        try:
            with Image.open(io.BytesIO(files.read(files.names[row]))) as image:
                out[row] = np.asarray(resize(to_rgb(image), size, antialias))
        except UnidentifiedImageError:
            return "not an image"
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return "too many pixels for a photograph"
        except (
            Exception
        ) as error:  # whatever a broken file makes a decoder raise: the file is named, none is passed over
            return str(error) or type(error).__name__
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        rows = threads.map(one, range(len(out)))
        faults = list(track(rows, "Decoding images", total=len(out), disable=not sys.stdout.isatty(), transient=True))
    bad = {files.names[row]: fault for row, fault in enumerate(faults) if fault}
    if bad and on_bad is OnBadImage.stop:
        raise UserError(complaint(files.where, bad))
    kept = [row for row, fault in enumerate(faults) if not fault]
    for to, row in enumerate(kept):
        if to != row:
            out[to] = out[row]
    return len(kept), {"skipped": list(bad)}


def complaint(where: Path, bad: dict[str, str]) -> str:
    listed = [f"  {name}: {fault}" for name, fault in list(bad.items())[:LISTED]]
    more = [f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    head = f"{len(bad)} of the files in {where} are not sound images:"
    return "\n".join(
        [head, *listed, *more, "Repair or remove them, or set dataset.on_bad_image=skip to leave them out."]
    )


def _folder(path: Path) -> ImageFiles:
    below = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*"))
    below = [(name, p) for name, p in below if _is_visible(name)]
    folders = tuple(name for name, p in below if p.is_dir())
    # Reading every byte would take longer than a second start may: a file that changes gets a new time or size.
    contents = [(name, p.stat().st_size, p.stat().st_mtime_ns) for name, p in below if p.is_file()]
    names = tuple(name for name, _, _ in contents)
    return ImageFiles(path, names, folders, lambda name: (path / name).read_bytes(), _digest(contents))


def _archive(path: Path, archive: zipfile.ZipFile) -> ImageFiles:
    infos = [i for i in archive.infolist() if not i.is_dir()]
    for info in infos:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or name.parts[0].endswith(":"):
            raise UserError(
                f"{path} holds a file named {info.filename!r}, which points outside the archive. It is not read: get a clean copy."
            )
    if inner := next((i for i in infos if PurePosixPath(i.filename).name == "train.zip"), None):
        return _archive(path, zipfile.ZipFile(io.BytesIO(archive.read(inner))))
    sizes = {i.filename: i.file_size for i in infos if _is_visible(i.filename)}

    def read(name: str) -> bytes:
        if sizes[name] > LARGEST_FILE:
            raise ValueError(f"{sizes[name]:,} bytes, too large for a photograph")
        return archive.read(name)

    folders = {
        str(f) for i in archive.infolist() for f in PurePosixPath(i.filename + "x").parents if _is_visible(str(f))
    }
    contents = sorted((i.filename, i.file_size, i.CRC) for i in infos)
    return ImageFiles(path, tuple(sorted(sizes)), tuple(sorted(folders - {"."})), read, _digest(contents))


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _digest(contents: Sequence[object]) -> str:
    return hashlib.sha256(repr(contents).encode()).hexdigest()
