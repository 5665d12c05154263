"""A folder of large photographs that differ, made quickly: the test data of bench_labelling.py.

A few small photographs are enlarged and get noise, and each becomes a JPEG with a restart marker after each row of
blocks. Such rows can be decoded one by one, so a further photograph is made of bands of these, without any decoding.
"""

import io
import random
import re
from pathlib import Path

import numpy as np
from PIL import Image

from al_bench.data.files import files_in

BASES = 40  # enlarged photographs
BANDS = 8  # of a photograph, each from one of these
ROW = 16  # pixels of a row of blocks
NOISE, QUALITY = 4.0, 75  # about 0.08 bytes a pixel: an ordinary photograph has two to four times as many
MARKERS = re.compile(rb"\xff[\xd0-\xd7]")  # of restarts; in the data itself 0xff is followed by zero


def make(folder: Path, n: int, size: tuple[int, int], photos: Path) -> None:
    """Write n JPEGs of this (width, height). photos: a folder or a zip of photographs. Files that are there stay."""
    files = files_in(str(photos))
    draw = random.Random(0)
    names = draw.sample(list(files.names), BASES)
    bases = [_split(_enlarged(files.read(name), size, seed)) for seed, name in enumerate(names)]
    for i in range(n):
        bands = [draw.choice(bases) for _ in range(BANDS)]
        file = folder / f"{i % 100:02d}" / f"{i:05d}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_joined(bands))


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _enlarged(content: bytes, size: tuple[int, int], seed: int) -> bytes:
    pixels = np.asarray(opened(content).resize(size, Image.Resampling.BICUBIC))
    noise = np.random.default_rng(seed).normal(0, NOISE, (*pixels.shape[:2], 1)).round().astype(np.int16)
    file = io.BytesIO()
    noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    noisy.save(file, "JPEG", quality=QUALITY, restart_marker_rows=1)
    return file.getvalue()


def _split(jpeg: bytes) -> tuple[bytes, list[bytes]]:
    """(the header, the rows of blocks)"""
    scan = jpeg.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return jpeg[:start], MARKERS.split(jpeg[start : -len(b"\xff\xd9")])


def _joined(bands: list[tuple[bytes, list[bytes]]]) -> bytes:
    """A JPEG whose rows come from these, a band each. All have the same tables, as they have the same quality."""
    n = len(bands[0][1])
    rows = [bands[BANDS * row // n][1][row] for row in range(n)]
    marked = (row + b"\xff" + bytes([0xD0 + i % 8]) for i, row in enumerate(rows[:-1]))
    return bands[0][0] + b"".join(marked) + rows[-1] + b"\xff\xd9"
