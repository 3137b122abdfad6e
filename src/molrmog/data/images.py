"""Pictures as arrays: decoded, composed where they are transparent, cropped to the central square, resized."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from molrmog.data.bounds import check_bytes
from molrmog.data.dataset import Array

if TYPE_CHECKING:
    from PIL import Image as PILImage

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".jp2"),
    )
)
BACKGROUNDS = {"white": 255, "black": 0, "grey": 128}
# Bytes below which a picture decodes faster than threads can pass the interpreter lock around.
_SMALL_PICTURE = 2**12


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How pictures become arrays.

    Attributes:
        image_size: pixels a side of the central square that they are cropped and resized to; as they are where None.
        background: what lies behind transparent pixels, "white", "black" or "grey".

    Raises:
        ValueError: an unknown background, or a size below 1.
    """

    image_size: int | None = None
    background: Literal["white", "black", "grey"] = "white"

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background = {self.background!r}: pass {', '.join(BACKGROUNDS)}")


def decode(name: str, sources: Sequence[bytes | Path], how: Pictures) -> tuple[Array, list[str]]:
    """Decode pictures in threads.

    Args:
        name: of the data, for messages.
        sources: files, or their bytes.
        how: see :class:`Pictures`.

    Returns:
        The pictures as uint8 with shape (N, C, H, W), C = 1 where all are grey, else 3; and what was done to some.

    Raises:
        ValueError: one cannot be read, or they differ in size.
    """
    from PIL import Image, ImageOps

    did: Counter[str] = Counter()

    def place(i: int) -> str:
        source = sources[i]
        # A name may hold line ends, and bytes that are no text.
        shown = os.fsencode(source).decode("utf-8", "replace") if isinstance(source, Path) else ""
        return " ".join(shown.split()) if shown else f"{name}, row {i}"

    def picture_of(i: int) -> Array:
        source = sources[i]
        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                if getattr(opened, "is_animated", False):
                    did["frames"] += 1
                # Of 16 bits a channel Pillow keeps 8 where there are several channels.
                if opened.mode[0] in "IF" or any(";16" in str(tile) for tile in getattr(opened, "tile", ())):
                    raise ValueError("more than 8 bits a channel")
                picture = ImageOps.exif_transpose(opened)
                grey = picture.mode in ("1", "L", "LA", "La")
                if "a" in picture.mode.lower().replace("lab", "") or "transparency" in picture.info:
                    picture, composed = _composed(picture, BACKGROUNDS[how.background])
                    did["alpha"] += composed
                picture = picture.convert("L" if grey else "RGB")
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise ValueError(f"{place(i)}: not a readable 8-bit image: {_line(error)}") from None
        except Exception as error:  # what else decoders of damaged files come up with
            raise ValueError(f"{place(i)}: not a readable image: {type(error).__name__} {_line(error)}") from None
        return np.asarray(picture if how.image_size is None else square(picture, how.image_size))

    if not sources:
        raise ValueError(f"{name} holds no images ({', '.join(sorted(SUFFIXES))})")
    Image.init()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of odd tags; what cannot be read is refused by name
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        first = picture_of(0)
        check_bytes(name, len(sources) * first.size * 6, "pass image_size, for smaller pictures")
        source = sources[0]
        did.clear()
        if (source.stat().st_size if isinstance(source, Path) else len(source)) < _SMALL_PICTURE:
            pictures = [picture_of(i) for i in range(len(sources))]
        else:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                pictures = list(threads.map(picture_of, range(len(sources))))
    height, width = first.shape[:2]
    images = np.empty((len(pictures), height, width, max(picture.ndim for picture in pictures) * 2 - 3), np.uint8)
    for i, picture in enumerate(pictures):
        if picture.shape[:2] != (height, width):
            sizes = f"{place(0)} is {width} x {height}, {place(i)} is {picture.shape[1]} x {picture.shape[0]}"
            raise ValueError(f"{name}: images differ in size ({sizes}): pass image_size")
        images[i] = picture if picture.ndim == 3 else picture[:, :, None]
    notes: list[str] = []
    if did["alpha"]:
        notes.append(
            f"{did['alpha']:,} transparent pictures composed on {how.background} (background= chooses another)"
        )
    if did["frames"]:
        notes.append(f"{did['frames']:,} pictures have several frames, and the first is read")
    return images.transpose(0, 3, 1, 2), notes


def _composed(picture: PILImage.Image, background: int) -> tuple[PILImage.Image, bool]:
    """A picture on a background, and whether that shows."""
    from PIL import Image

    layers = picture.convert("RGBA")
    if layers.getchannel("A").getextrema() == (255, 255):
        return picture.convert("RGB"), False
    behind = Image.new("RGBA", layers.size, (background, background, background, 255))
    return Image.alpha_composite(behind, layers).convert("RGB"), True


def _line(error: Exception) -> str:
    line = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    # What stands before it names the file.
    return line.partition(" file '")[0][:160]


def resized(images: Array, size: int, levels: int) -> Array:
    """Bring uint8 images with shape (N, C, H, W) to (N, C, size, size)."""
    from PIL import Image

    small = np.empty((*images.shape[:2], size, size), np.uint8)
    for i, channels in enumerate(images):
        for c, channel in enumerate(channels):
            small[i, c] = np.asarray(square(Image.fromarray(np.ascontiguousarray(channel)), size))
    return np.minimum(small, levels - 1)  # bicubic weights overshoot


def square(picture: PILImage.Image, size: int) -> PILImage.Image:
    """Crop to the central square and resize."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
