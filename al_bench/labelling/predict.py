"""al-bench predict MODEL FOLDER: the classes of new images, as CSV. The folder that was labelled is not needed."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from al_bench import process
from al_bench.data.decode import decode_into
from al_bench.data.files import ImageFiles, files_in
from al_bench.errors import UserError, told
from al_bench.files import accessible
from al_bench.labelling import finished_model, tables
from al_bench.labelling.finish import PREDICTED, cells_of
from al_bench.labelling.finished_model import FinishedModel
from al_bench.labelling.images import convert, image_names, left_out_words
from al_bench.text import one_line

AT_ONCE = 512  # images that are decoded and predicted together
SKIPPED = 3  # the exit code if files could not be read


@told
def main(arguments: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(
        prog="al-bench predict", description="Predict the classes of images with a model of al-bench finish.",
        epilog=f"The exit code is {SKIPPED} if broken files were left out.",
    )  # fmt: skip
    ask.add_argument("model", type=Path, help="the model.safetensors that al-bench finish wrote, or its folder")
    ask.add_argument("folder", type=Path, help="of images, flat or nested")
    ask.add_argument("--out", type=Path, help="the CSV file to write; without it the table is printed")
    ask.add_argument("--weights", help="the file of the backbone's weights, if it is elsewhere now")
    options = ask.parse_args(arguments)
    process.prepare()  # again: importing Lightning sets its own log levels
    model = finished_model.read(options.model, options.weights)
    files, others = _files(options.folder)
    with accessible(options.out or Path("the table"), "written", "--out"):
        broken = _write(options.out, model, files)
    if others:
        print(left_out_words(others), file=sys.stderr)
    for name, fault in broken.items():
        print(f"{one_line(name)} is left out: {one_line(fault)}", file=sys.stderr)
    where = f": {one_line(str(options.out))}" if options.out else ""
    print(f"{len(files.names) - len(broken):,} images predicted{where}, {len(broken):,} left out.", file=sys.stderr)
    return SKIPPED if broken else 0


def _files(folder: Path) -> tuple[ImageFiles, list[str]]:
    """(image files, names of others). Raises UserError if there is no image."""
    shown = one_line(str(folder))
    if not folder.is_dir():
        raise UserError(f"There is no folder {shown}. Name a folder of images.")
    names, others = image_names(folder)
    if not names:
        what = f"{len(others):,} other files"
        raise UserError(f"{shown} has no images ({what}). Name a folder of JPEG, PNG or other images.{convert(others)}")
    files = files_in(str(folder))
    return replace(files, sizes={name: files.sizes[name] for name in names}), others


def _write(out: Path | None, model: FinishedModel, files: ImageFiles) -> dict[str, str]:
    """Write the table, a part of the images at a time. Returns the files that cannot be read, and why."""
    broken: dict[str, str] = {}
    part = out and out.with_name(f"{out.name}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="") if part else nullcontext(sys.stdout) as file:
            file.write((tables.BOM if part else "") + tables.table([PREDICTED]))
            for rows, bad in _predicted(model, files):
                file.write(tables.table(rows))
                broken |= bad
        if part:
            part.replace(out)
    finally:
        if part:
            part.unlink(missing_ok=True)
    return broken


def _predicted(model: FinishedModel, files: ImageFiles) -> Iterator[tuple[list[list[str]], dict[str, str]]]:
    """(rows of the table, faults by name), a part of the images at a time."""
    size, settings = model.card["image_size"], model.settings["dataset"]
    for i in range(0, len(files.names), AT_ONCE):
        names = files.names[i : i + AT_ONCE]
        pixels = np.zeros((len(names), size, size, 3), np.uint8)
        seen = decode_into(pixels, replace(files, sizes={name: files.sizes[name] for name in names}), size, settings)
        good = [row for row, decoded in enumerate(seen) if not decoded.fault]
        images = torch.from_numpy(pixels[good]).permute(0, 3, 1, 2)
        probs = model.probs(images).tolist() if good else []
        rows = [cells_of(names[row], model.card["classes"], p) for row, p in zip(good, probs, strict=True)]
        yield rows, {name: decoded.fault for name, decoded in zip(names, seen, strict=True) if decoded.fault}
