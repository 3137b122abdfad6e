"""Pictures as arrays: decoded, cropped to the central square, resized."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from molrmog.data.dataset import Array

if TYPE_CHECKING:
    from PIL import Image as PILImage

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# Bytes below which a picture decodes faster than threads can pass the interpreter lock around.
_SMALL_PICTURE = 2**12


def decode(name: str, sources: Sequence[bytes | Path], image_size: int | None) -> Array:
    """Decode pictures in threads into uint8 with shape (N, C, H, W): C = 1 where all are grey, else 3."""
    from PIL import Image, ImageOps

    def place(i: int) -> str:
        source = sources[i]
        return str(source) if isinstance(source, Path) else f"{name}, row {i}"

    def picture_of(i: int) -> Array:
        source = sources[i]
        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode[0] in "IF":
                    raise ValueError(f"mode {picture.mode} has more than 8 bits a channel")
                picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise ValueError(f"{place(i)}: not a readable 8-bit image: {error}") from None
        return np.asarray(picture if image_size is None else square(picture, image_size))

    if not sources:
        raise ValueError(f"{name} holds no images ({', '.join(sorted(_SUFFIXES))})")
    Image.init()
    first = sources[0]
    if (first.stat().st_size if isinstance(first, Path) else len(first)) < _SMALL_PICTURE:
        pictures = [picture_of(i) for i in range(len(sources))]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            pictures = list(threads.map(picture_of, range(len(sources))))
    height, width = pictures[0].shape[:2]
    images = np.empty((len(pictures), height, width, max(picture.ndim for picture in pictures) * 2 - 3), np.uint8)
    for i, picture in enumerate(pictures):
        if picture.shape[:2] != (height, width):
            sizes = f"{place(0)} is {width} x {height}, {place(i)} is {picture.shape[1]} x {picture.shape[0]}"
            raise ValueError(f"{name}: images differ in size ({sizes}): pass image_size")
        images[i] = picture if picture.ndim == 3 else picture[:, :, None]
    return images.transpose(0, 3, 1, 2)


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


def image_files(entries: Iterable[Path]) -> list[Path]:
    """Pictures among files, by their suffix, in the order of their names."""
    return sorted(entry for entry in entries if entry.suffix.lower() in _SUFFIXES and entry.name[0] != ".")
