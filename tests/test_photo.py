import shutil
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from test_decode import BAD, SKIP, decoded, encoded, flat, grey, write
from test_sources import loaded

from al_bench.config import DatasetConfig
from al_bench.data.photo import SharedLimit, square
from al_bench.errors import UserError

SIDE = 9400


def named(value):
    return "file" if isinstance(value, bytes) else None


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png, kind, body):
    """A PNG with a chunk behind its header, where PNG expects what concerns all pixels."""
    return png[:33] + chunk(kind, body) + png[33:]


def tiff(values, dtype, bits, sample_format=1, tags=()):
    """One row, uncompressed; tags: (number, value) of 16 bits."""
    data = values if isinstance(values, bytes) else np.array(values, dtype).tobytes()
    facts = {256: len(values) if bits != 12 else 4, 257: 1, 258: bits, 259: 1, 262: 1, 277: 1, 278: 1}
    facts |= {279: len(data), 339: sample_format} | dict(tags)
    facts[273] = 8 + 2 + 12 * (len(facts) + 1) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(facts.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(facts)) + entries + b"\0\0\0\0" + data


def deep(kind, dtype, *values, **options):
    return encoded(Image.fromarray(np.array([values] * 4, dtype)), kind, **options)


def first_row(content, tmp_path, **options):
    images, notes = decoded(write(tmp_path / "in", {"image": content}), tmp_path, 4, antialias=False, **options)
    return images[0, 0, :, 0].tolist(), notes


TWELVE = [0, 1000, 2048, 4095]
SCALED = [0, 62, 127, 255]  # 1000 * 255 / 4095 = 62.3, 2048 * 255 / 4095 = 127.5
QUARTERS = [0, 0.25, 0.5, 1]


@pytest.mark.parametrize(
    "content, options, expected",
    [
        (deep("tiff", np.float32, *QUARTERS), {}, [0, 64, 128, 255]),  # 63.75, 127.5
        (deep("tiff", np.float32, 0, 77 / 255, 200 / 255, 1), {}, [0, 77, 200, 255]),
        (deep("tiff", np.float32, 0, 250, 500, 1000), {"white": 1000.0}, [0, 64, 128, 255]),
        (deep("tiff", np.int32, 0, 50_000, 100_000, 200_000), {"white": 200_000.0}, [0, 63, 127, 255]),
        (tiff(TWELVE, "<u4", 32, tags=[(281, 4095)]), {}, SCALED),
        (tiff(bytes([0x00, 0x08, 0x00, 0x3E, 0x8F, 0xFF]), None, 12), {}, [0, 127, 62, 255]),  # 000 800 3e8 fff
        (deep("tiff", np.uint16, *TWELVE, tiffinfo={281: 4095}), {}, SCALED),
        (with_chunk(deep("png", np.uint16, *TWELVE), b"sBIT", b"\x0c"), {}, SCALED),
        (deep("png", np.uint16, *TWELVE), {"white": 4095.0}, SCALED),
        (deep("tiff", np.uint16, *TWELVE), {"white": 4095.0}, SCALED),
        # 16 bits remain 16 bits: as published, or if a file's tags only describe its values
        (deep("png", np.uint16, 0, 256, 257, 65535), {}, [0, 0, 1, 255]),
        (deep("tiff", np.uint16, 0, 256, 30_000, 65535, tiffinfo={281: 4095}), {}, [0, 0, 116, 255]),
        (deep("tiff", np.uint16, 0, 256, 257, 20_000, tiffinfo={281: 20_000}), {}, [0, 0, 1, 77]),
        (with_chunk(deep("png", np.uint16, 0, 16_000, 32_768, 65_520), b"sBIT", b"\x0c"), {}, [0, 62, 127, 254]),
        (with_chunk(deep("png", np.uint16, 0, 16, 160, 4080), b"sBIT", b"\x0c"), {}, [0, 0, 0, 15]),
    ],
    ids=named,
)
def test_an_image_of_more_than_eight_bits_is_scaled_by_what_is_white_in_it(content, options, expected, tmp_path):
    assert first_row(content, tmp_path, **options)[0] == expected


@pytest.mark.parametrize(
    "content, options, why",
    [
        (deep("tiff", np.float32, 0, 1, 2, 1000), {}, "from 0 to 1000, and nothing says which one is white"),
        (deep("tiff", np.float32, -1, 0, 0.5, 1), {}, "from -1 to 1, and black is 0"),
        (deep("tiff", np.float32, 0, np.nan, 0.5, 1), {}, "from nan to nan"),
        (deep("tiff", np.int32, 0, 1000, 70_000, 200_000), {}, "from 0 to 200000, and nothing says"),
        (tiff([0, 5, 9, 32_767], "<i2", 16, sample_format=2), {}, "from 0 to 32767, and nothing says"),
        (deep("tiff", np.uint16, 0, 1, 2, 5000), {"white": 4095.0}, "from 0 to 5000, and white is 4095"),
        (tiff(QUARTERS, "<f8", 64, sample_format=3), {}, "a kind of it that is not read"),
    ],
    ids=named,
)
def test_a_file_whose_range_cannot_be_known_is_bad_by_name(content, options, why, tmp_path):
    with pytest.raises(UserError, match=f"1 of the files(?s:.*)image: .*{why}"):
        first_row(content, tmp_path, **options)


def rgb_16(*values):
    """One row of 16-bit grey in three channels."""
    rows = b"\0" + np.repeat(np.array(values, ">u2"), 3).tobytes()
    header = struct.pack(">IIBBBBB", len(values), 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content, bits",
    [(deep("png", np.uint16, *TWELVE), 12), (deep("tiff", np.uint16, 0, 9, 99, 16_000), 14), (rgb_16(*TWELVE), 12)],
    ids=named,
)
def test_data_that_may_be_of_fewer_than_sixteen_bits_are_told(content, bits, tmp_path):
    def warnings(folder, **options):
        files = {f"{kind}/{i}.png": content for kind in "ab" for i in range(4)}
        return loaded(write(tmp_path / folder, files), tmp_path, "image_folder", **options)[0].warnings

    (dark,) = [w for w in warnings("in") if "come out dark" in w]
    assert f"they hold {bits} bits, set dataset.white={2**bits - 1}" in dark
    assert not any("dark" in w for w in warnings("in", white=65535.0))
    content = deep("png", np.uint16, 0, 9, 99, 16_384)
    assert not any("dark" in w for w in warnings("sixteen"))


def test_colour_of_twelve_bits_in_sixteen_is_refused_where_it_is_said_to_be(tmp_path):
    with pytest.raises(UserError, match="image: 16-bit colour .* not 4095; convert it to 8 bits"):
        first_row(rgb_16(*TWELVE), tmp_path, white=4095.0)
    assert first_row(rgb_16(0, 256, 512, 65535), tmp_path, white=65535.0)[0] == [0, 1, 2, 255]


def sideways(exif, **options):
    """An image stored with red on the left and blue on the right."""
    stored = Image.new("RGB", (16, 8), "blue")
    stored.paste("red", (0, 0, 8, 8))
    return encoded(stored, "jpeg", subsampling=0, exif=b"Exif\0\0" + exif if exif else b"", **options)


def exif(*entries, kind=b"II*\0"):
    """entries: tag, type, value of four bytes."""
    packed = b"".join(struct.pack("<HHI", tag, type_, 1) + value for tag, type_, value in entries)
    return kind + struct.pack("<IH", 8, len(entries)) + packed + b"\0\0\0\0" + struct.pack("<II", 7, 2)


TURNED, LONG = (0x0112, 3, struct.pack("<HH", 6, 0)), struct.pack("<I", 10**9)
FRACTION = struct.pack("<I", 8 + 2 + 2 * 12 + 4)


@pytest.mark.parametrize(
    "content, is_turned",
    [
        (sideways(exif((0x010F, 5, FRACTION), TURNED)), True),  # a text as a fraction
        (sideways(exif((0x010E, 10, FRACTION), TURNED)), True),
        (sideways(exif((0x010F, 11, struct.pack("<f", 1.5)), TURNED)), True),  # or as a float
        (sideways(exif(TURNED, (0x0128, 2, b"cm\0\0"))), True),  # a number as a text
        (sideways(exif((0x8769, 4, LONG), TURNED)), True),  # its value lies outside the file
        (sideways(exif((0x010F, 2, b"\xff\xfe\xfd\0"), TURNED)), True),
        (sideways(exif(TURNED, kind=b"ZZZZ")), False),
        (sideways(exif((0x0112, 3, struct.pack("<HH", 99, 0)))), False),
        (sideways(exif((0x0112, 2, b"abc\0"))), False),
        (sideways(exif((0x0112, 5, LONG))), False),
        (sideways(exif(TURNED)[:12]), False),
        (sideways(None), False),
    ],
    ids=named,
)
def test_the_orientation_is_read_whatever_else_exif_holds(content, is_turned, tmp_path):
    images, _ = decoded(write(tmp_path / "in", {"a.jpg": content}), tmp_path)
    np.testing.assert_allclose(images[0, 0, -1], [255, 0, 0] if is_turned else [0, 0, 255], atol=6)


def test_a_png_whose_exif_is_no_hexadecimal_is_not_turned(tmp_path):
    text = with_chunk(grey(7), b"tEXt", b"Raw profile type exif\0\nexif\n 9\nno hex at all\n")
    assert decoded(write(tmp_path / "in", {"a.png": text}), tmp_path)[0].max() == 7


def ftyp(*brands):
    return struct.pack(">I", 8 + 4 * (len(brands) + 1)) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "content, name",
    [
        (ftyp(b"heic", b"mif1", b"heic") + bytes(99), "HEIC"),
        (ftyp(b"mif1", b"mif1", b"heix") + bytes(99), "HEIC"),
        (EPS, "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(99), "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg width="8"></svg>', "SVG"),
    ],
    ids=named,
)
def test_a_format_that_is_not_read_is_named_and_no_other_program_is_started(content, name, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it starts another program"))
    with pytest.raises(UserError, match=f"a.jpg: {name} is not a format that is read; convert it"):
        decoded(write(tmp_path / "in", {"a.jpg": content}), tmp_path)


def test_the_limit_of_pixels_can_be_raised_and_lowered(tmp_path):
    large = encoded(flat("1", 1, 9500))  # 90,250,000
    folder = write(tmp_path / "in", {"a.png": large, "b.png": BAD["gigapixel.png"], "c.png": grey(3)})
    images, notes = decoded(folder, tmp_path, on_bad=SKIP)
    assert notes["skipped"] == ["a.png", "b.png"] and images[:, 0, 0, 0].tolist() == [3]
    images, notes = decoded(folder, tmp_path, on_bad=SKIP, max_pixels=90_250_000)
    assert notes["skipped"] == ["b.png"] and images[:, 0, 0, 0].tolist() == [255, 3]
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match="(?s)c.png: too many pixels, more than 63; dataset.max_pixels=... raises"):
        decoded(folder, tmp_path, max_pixels=63)
    assert Image.MAX_IMAGE_PIXELS == before


CHILD = """
import resource, sys
from al_bench import process
from al_bench.config import DatasetConfig
from al_bench.data.decode import decode, n_cores
from al_bench.data.files import files_in
from al_bench.data import decode as module

process.prepare()  # as in a run, where freed memory is kept
module.n_cores = lambda: 2
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
images, _ = decode(files_in(sys.argv[1]), 8, DatasetConfig(), sys.argv[2])
print(images.shape[0], peak() - before)
"""


def test_large_images_are_decoded_one_at_a_time_in_bounded_memory(tmp_path):
    """Pillow holds grey with alpha in four bytes a pixel. Each image took five times that, on every thread."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(bytes(SIDE * 2 + 1)) for _ in range(SIDE)) + rows.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 4, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert len(png) < 1_000_000
    write(tmp_path / "in", {"a.png": png})
    shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / "b.png")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "in", tmp_path / "cache"], capture_output=True, text=True
    )
    n, kibibytes = map(int, child.stdout.split())
    assert n == 2 and kibibytes * 1024 < 10 * SIDE**2, child.stderr


def photograph(width, height, mode="RGB"):
    """Waves of several lengths with noise, as an image of this mode."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(x / (25 + 40 * i)) + np.cos(y / (90 - 20 * i)) for i in range(4)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    pixels = (128 + 45 * np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8)
    return {"RGB": Image.fromarray(pixels[..., :3]), "L": Image.fromarray(pixels[..., 0]),
            "CMYK": Image.frombytes("CMYK", (width, height), pixels.tobytes())}[mode]  # fmt: skip


def both_ways(content, tmp_path, size, **options):
    """The image decoded in full, and with libjpeg's scaling, as numbers that may be subtracted."""
    root = write(tmp_path / "in", {"image.jpg": content})
    found = [decoded(root, tmp_path, size, jpeg_scaling=scaling, **options) for scaling in (None, True)]
    assert all(notes["skipped"] == [] for _, notes in found)
    return [pixels[0].astype(int) for pixels, _ in found]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("turn", [None, 6, 8, 2])
def test_a_large_jpeg_is_decoded_at_the_scale_that_is_needed(mode, progressive, turn, tmp_path):
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    content = encoded(photograph(900, 680, mode), "jpeg", quality=90, progressive=progressive, exif=exif)
    full, scaled = both_ways(content, tmp_path, 64)
    assert 0 < abs(full - scaled).mean() < 1 and abs((full - scaled).mean()) < 0.5
    assert abs(full[::-1] - scaled).mean() > 10  # a wrong turn would be seen


@pytest.mark.parametrize("width, height, is_equal", [(191, 500, True), (500, 191, True), (192, 192, False)])
def test_a_jpeg_that_is_not_three_times_as_large_is_decoded_in_full(width, height, is_equal, tmp_path):
    content = encoded(photograph(width, height), "jpeg", quality=90)
    full, scaled = both_ways(content, tmp_path, 64)
    assert (full == scaled).all() == is_equal


def test_other_formats_and_images_without_antialias_are_decoded_in_full(tmp_path):
    for name, kind in (("a", "png"), ("b", "webp")):
        full, scaled = both_ways(encoded(photograph(600, 500), kind), tmp_path / name, 64)
        assert (full == scaled).all()
    full, scaled = both_ways(encoded(photograph(600, 500), "jpeg"), tmp_path, 64, antialias=False)
    assert (full == scaled).all()


def test_scaling_a_jpeg_takes_less_time(tmp_path):
    content = encoded(photograph(4000, 3000), "jpeg", quality=90)
    took = {False: [], True: []}
    for scaling in (False, True) * 3:
        start = time.thread_time()
        square(content, 64, DatasetConfig(jpeg_scaling=scaling), SharedLimit(1 << 30))
        took[scaling].append(time.thread_time() - start)
    assert min(took[True]) < 0.7 * min(took[False])
