"""Turn the content of an image file into upright 8-bit RGB and then a square, by Pillow's in-process decoders only."""

import ctypes
import io
import math
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError, features

from al_bench.config import DatasetConfig

# Not EPS, which starts Ghostscript, and no format that only calls another program. TGA has no signature: it is last.
FORMATS = (
    "AVIF", "BMP", "CUR", "DDS", "DIB", "FITS", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP", "PCX", "PNG",
    "PPM", "PSD", "QOI", "SGI", "SUN", "TIFF", "WEBP", "XBM", "XPM", "TGA",
)  # fmt: skip
NOT_READ = {  # how files of other common formats start, which none of these decoders reads
    "HEIC": rb".{4}ftyp(.{4}){0,16}?(hei[cxms]|hev[cxms])",
    "AVIF": rb".{4}ftyp(.{4}){0,16}?avi[fs]",  # an older Pillow, or one built without AVIF
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!.*?>\s*)*<svg",
    "WMF": rb"\xd7\xcd\xc6\x9a",
    "DICOM": rb".{128}DICM",
    "HDF5": rb"\x89HDF",
}
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION, BITS, SAMPLE_FORMAT, HIGHEST, HIGHEST_SIGNED = 0x0112, 258, 339, 281, 341  # tags of EXIF and TIFF
FULL_16 = 65535
LARGE = 1 << 24  # pixels
STRIP = 1 << 20  # pixels converted at once: whole copies of a large image would take more memory than the image
SPARE = 1.5  # a scaled JPEG stays this many times larger than needed: libjpeg's scaling aliases more than `resize`
SLACK = 1e-3  # share of white by which a float image may lie outside 0 to white, for rounding


class SharedLimit:
    """A limit on what all threads use at once. A request above the limit waits until nothing else is in use."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self.changed = threading.Condition()

    @contextmanager
    def taken(self, n: int) -> Iterator[None]:
        n = min(n, self.size)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= n)
            self.free -= n
        try:
            yield
        finally:
            with self.changed:
                self.free += n
                self.changed.notify_all()


def square(content: bytes, size: int, c: DatasetConfig, limit: SharedLimit) -> tuple[np.ndarray, int | None]:
    """uint8 [size, size, 3] of a file's content, and the peak of `upright_rgb`. limit: on pixels decoded at once."""
    image = opened(content)
    n = image.width * image.height  # also of a scaled JPEG: a progressive one is held in full while it is decoded
    if c.jpeg_scaling and c.antialias:  # without antialias only four pixels count, and scaling averages more
        scale_jpeg(image, (math.ceil(SPARE * size),) * 2)
    with limit.taken(n):
        image, peak = upright_rgb(image, content, c.white)
        pixels = resize(image, size, c.antialias)
        del image
        if n > LARGE:
            return_freed_memory()
    return pixels, peak


def scale_jpeg(image: Image.Image, needed: tuple[int, int]) -> None:
    """Let libjpeg decode at a half, a quarter or an eighth, not below the needed (width, height). To call before load.

    A JPEG that is not twice as large on both sides, and any other image, stays as it is.
    """
    image.draft(None, needed)


def return_freed_memory() -> None:
    """glibc keeps freed memory for each thread separately, so that the memory of large images would add up."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def opened(content: bytes) -> Image.Image:
    """Open an image: the header is read, no pixel is decoded. Raises what Pillow raises."""
    Image.init()  # formats that this Pillow lacks are left out
    return Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


def why_bad(content: bytes, error: Exception, most_pixels: int) -> str:
    """Why a file cannot be read, for the person whose file it is."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too many pixels, more than {most_pixels:,}; dataset.max_pixels=... raises the limit"
    is_unknown = isinstance(error, UnidentifiedImageError)
    for name, start in NOT_READ.items():
        is_asked = is_unknown or name == "HEIC"  # an AVIF decoder may have tried HEIC
        if is_asked and re.match(start, content[:1024], re.DOTALL) and not (name == "AVIF" and features.check("avif")):
            return f"{name} is not a format that is read; convert it to JPEG or PNG"
    if is_unknown and content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a damaged TIFF, or a kind of it that is not read; convert it to 8 or 16 bits"
    return "not an image" if is_unknown else str(error) or type(error).__name__


def upright_rgb(image: Image.Image, content: bytes, white: float | None) -> tuple[Image.Image, int | None]:
    """Upright 8-bit RGB: EXIF orientation applied, transparency laid on white, deeper images scaled to 8 bits.

    white: the value that is white in images of more than 8 bits; None: what the file says. Also returns the peak: the
    highest value if white is known only from 16 bits a sample, else None. Raises ValueError if white is unknown.
    """
    is_deep_colour = image.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in image.tile)
    image.load()
    turn = _turn(image)  # after load(): some formats store it behind the pixels, and TIFF is turned by then
    if is_deep_colour:
        peak = _peak_of_colour(image, white)
    elif image.mode[0] in "IF":
        image, peak = _grey(image, content, white)
    else:
        peak = None
    rgb = _rgb(image)
    return (rgb if turn is None else rgb.transpose(turn)), peak


def resize(image: Image.Image, size: int, antialias: bool) -> np.ndarray:
    """Scale both sides to `size` (squashed, not cropped), bilinearly. Without antialias only four pixels count."""
    if antialias or image.size == (size, size):
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    # Not Image.transform: it truncates values, and images come out half a grey level darker.
    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels_1CHW, (size, size), mode="bilinear")[0].permute(1, 2, 0).numpy()


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright, or None. Other EXIF tags are ignored: a sound photograph may have bad ones."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # whatever a damaged header makes Pillow raise
        return None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        if strip.has_transparency_data:
            rgba = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        rgb.paste(strip.convert("RGB"), (0, top))
    return rgb


def _grey(image: Image.Image, content: bytes, asked: float | None) -> tuple[Image.Image, int | None]:
    """Scale an image of 16 or 32 bits, integer or float, to 8 bits; also returns the peak of `upright_rgb`."""
    is_float = image.mode == "F"
    low, high = _range(image)
    white, is_said = (asked, True) if asked else _white(image, content, high)
    slack = SLACK * (white or 1) if is_float else 0
    if why := _why_unknown(low, high, white, slack):
        raise ValueError(f"its values go from {low:g} to {high:g}, {why}")
    grey = Image.new("L", image.size)
    for top, strip in _strips(image):
        values = np.asarray(strip).astype(np.float64) * 255 / white
        values = np.rint(values) if is_float else np.floor(values)
        grey.paste(Image.fromarray(values.clip(0, 255).astype(np.uint8)), (0, top))
    return grey, None if is_said else int(high)


def _why_unknown(low: float, high: float, white: float | None, slack: float) -> str | None:
    if not low >= -slack:  # also true of NaN
        return "and black is 0; convert it to 8 bits"
    if white is None:
        return "and nothing says which one is white; set dataset.white=..."
    return f"and white is {white:g}; raise dataset.white" if high > white + slack else None


def _range(image: Image.Image) -> tuple[float, float]:
    ends = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _strips(image))]
    low, high = np.array(ends, dtype=np.float64).T
    return float(low.min()), float(high.max())


def _white(image: Image.Image, content: bytes, high: float) -> tuple[float | None, bool]:
    """The value that is white (None: unknown), and whether anything but 16 bits a sample says so."""
    if image.mode == "F":
        return (1.0 if high <= 1 + SLACK else None), True
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        is_16 = image.mode != "I" or image.format in ("PNG", "PPM")  # some versions of Pillow widen these to 32 bits
        bits = _significant_bits(image, content) if image.format == "PNG" else 16
        return (float(2**bits - 1) if is_16 else None), bits < 16
    if said := _white_in_tags(tags, high):
        return said, True
    if tags.get(SAMPLE_FORMAT, (1,))[0] != 1 or tags.get(BITS, (1,))[0] > 16:  # signed, or 32 bits
        return None, True
    bits = tags.get(BITS, (16,))[0]
    return float(2**bits - 1), bits < 16


def _white_in_tags(tags: dict, high: float) -> float | None:
    """The highest possible value by TIFF's tags; None if not 2^bits - 1: some files note the highest actual value."""
    said = [float(value) for tag in (HIGHEST, HIGHEST_SIGNED) for value in np.ravel(tags.get(tag, ()))[:1]]
    depths = [value for value in said if value in {float(2**bits - 1) for bits in range(9, 16)}]
    return min(depths) if depths and high <= min(depths) else None


def _significant_bits(image: Image.Image, png: bytes) -> int:
    """The bits of sBIT if the values were not scaled to the full 16 bits, which PNG asks for; else 16.

    A scaled value that does not exceed sBIT's highest value ends in zero bits.
    """
    at = 8
    while (kind := png[at + 4 : at + 8]) not in (b"sBIT", b"IDAT", b""):
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    bits = png[at + 8] if kind == b"sBIT" else 16
    if not 8 < bits < 16 or _range(image)[1] >= 2**bits:
        return 16
    ends = (1 << (16 - bits)) - 1
    return bits if any((np.asarray(strip).astype(np.int64) & ends).any() for _, strip in _strips(image)) else 16


def _peak_of_colour(image: Image.Image, asked: float | None) -> int | None:
    """The peak of `upright_rgb` for 16-bit colour. Pillow gives only its upper eight bits, so it cannot be scaled."""
    if asked == FULL_16:
        return None
    colours = [band for band, name in zip(image.split(), image.getbands(), strict=True) if name != "A"]
    peak = 256 * max(band.getextrema()[1] for band in colours) + 255
    said = _white_in_tags(getattr(image, "tag_v2", {}), peak)
    if asked or said:
        raise ValueError(
            f"16-bit colour is read only if {FULL_16} is white, not {asked or said:g}; convert it to 8 bits"
        )
    return peak
