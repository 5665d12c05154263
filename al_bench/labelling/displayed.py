"""What the browser gets of an image file: the file itself, or a smaller JPEG of what browsers cannot show quickly."""

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from al_bench.data.photo import ORIENTATION, opened, scale_jpeg, upright_rgb, why_bad
from al_bench.errors import UserError
from al_bench.text import one_line

# What browsers show themselves. MPO is what Pillow calls a JPEG that holds a second picture, as telephones write it.
AS_IT_IS = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif",
}  # fmt: skip
MOST_PIXELS = 2_000_000  # of a file that is sent as it is
MOST_BYTES = 8_000_000  # of the same: an animation has few pixels and many bytes
SIDE = 1600  # of a scaled image, the longer one
KEPT = 64_000_000  # bytes of images that are kept for another request
AT_ONCE = 2  # images that are decoded at the same time: each may take 300 MB


@dataclass(frozen=True)
class Displayed:
    content: bytes
    kind: str  # MIME type


class Display:
    """Images as the browser gets them. The last ones are kept. Threads may share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, int], Displayed] = OrderedDict()
        self._lock, self._decoding = threading.Lock(), threading.Semaphore(AT_ONCE)

    def of(self, file: Path) -> Displayed:
        """Raises UserError if the file is gone or is no image."""
        try:
            facts = file.stat()
            key = (file, facts.st_size, facts.st_mtime_ns)
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{one_line(file.name)} cannot be read ({error.strerror}). Bring it back.") from None
        with self._decoding:
            try:
                made = displayed(content)
            except Exception as error:  # whatever a damaged file makes Pillow raise
                why = why_bad(content, error, Image.MAX_IMAGE_PIXELS or 0)
                raise UserError(f"{one_line(file.name)} cannot be shown: {one_line(why)}. Skip it.") from None
        self._keep(key, made)
        return made

    def _keep(self, key: tuple[Path, int, int], made: Displayed) -> None:
        with self._lock:
            self._kept[key] = made
            while sum(len(image.content) for image in self._kept.values()) > KEPT and len(self._kept) > 1:
                self._kept.popitem(last=False)


def displayed(content: bytes) -> Displayed:
    """Raises what Pillow raises."""
    image = opened(content)
    is_deep = image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile)
    is_small = image.width * image.height <= MOST_PIXELS and len(content) <= MOST_BYTES
    if is_small and not is_deep and image.format in AS_IT_IS:
        return Displayed(content, AS_IT_IS[image.format])
    share = min(1.0, SIDE / max(image.size))
    target = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    scale_jpeg(image, target)
    rgb = _stretched(image) if image.mode[0] in "IF" else upright_rgb(image, content, None)[0]
    rgb.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=88)
    return Displayed(file.getvalue(), "image/jpeg")


def _stretched(image: Image.Image) -> Image.Image:
    """Upright RGB, from the lowest to the highest value: few files of 16 or 32 bits say which value is white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    grey = Image.fromarray(((values - low) * (255 / ((high - low) or 1))).astype(np.uint8))
    grey.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return ImageOps.exif_transpose(grey).convert("RGB")
