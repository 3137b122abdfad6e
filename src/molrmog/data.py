"""Data: every source becomes one `Dataset` of scaled rows.

**Scaling.** Raw values become rows by x = raw * scale + shift, elementwise. Images of L integer levels 0..L-1 (256 for
8 bits, 17 for `digits`) are mapped onto [-1, 1] by scale = 2 / (L - 1), shift = -1; arrays of real numbers are left as
they are (scale = 1, shift = 0). Images are flattened in (C, H, W) order.

**Bits per dimension.** A density of rows is a density of raw values by the change of variables

    log p(raw) = log p(x) + D log_scale,      log_scale := log |dx/draw| = log(scale),

so that bits/dim on the raw scale are -(log p(x) / D + log_scale) / log 2.

**Dequantisation.** A density can grow without bound on integers. With `dequantise` every level gets seeded noise u,
uniform on [0, 1), before the scaling: E_u[log p(raw + u)] is then a lower bound of the log-probability of the integers
under P(raw) = int_[0,1)^D p(raw + u) du. u takes the midpoints of 2^12 equal cells of [0, 1): level + u is exact in
float32, and floor gives the level back.

A `Layout` is what a saved run keeps of its data: shape, scaling and class names, enough to turn samples into images
when the data themselves are gone.

References:
    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", ICLR 2016, section 3.1.
"""

# scikit-learn, pyarrow, pooch and datasets ship no annotations: what they leave unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import difflib
import gzip
import io
import json
import math
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL import Image as PILImage

__all__ = ["Dataset", "Layout", "load", "load_parts"]

Array = np.ndarray[Any, Any]
Values = TypeVar("Values", Array, "torch.Tensor")

# Dequantisation noise lies on this many cells: 8 bits of level and 13 of noise fit the 24 bits of a float32.
_CELLS = 2**12
_CHUNK_VALUES = 2**24
# Bytes below which a picture decodes faster than threads can pass the interpreter lock around.
_SMALL_PICTURE = 2**12
# Bytes of a memory map up to which picking single rows into memory is harmless.
_IN_MEMORY = 2**30
_NO_SECOND_PART = re.compile(r"has no 'test'|no test rows|, not 'test'|nknown split")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What one row means: its event shape, its scaling and the class names.

    Attributes:
        name: Name of the data set.
        shape: Event shape, (C, H, W) for images and (D,) for rows.
        scale: Factor in x = raw * scale + shift.
        shift: Offset in x = raw * scale + shift.
        levels: Number of integer levels of the raw values (256 for 8-bit images), None for real numbers.
        classes: Name of each label, None where there are none.
        dequantised: Whether the rows carry uniform noise on [0, 1) of a level.

    Raises:
        ValueError: If the shape is empty or the scale is not positive.
    """

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0
    levels: int | None = None
    classes: tuple[str, ...] | None = None
    dequantised: bool = False

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"{self.name}: shape must hold positive sizes, got {self.shape}")
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise ValueError(f"{self.name}: scale must be > 0 and finite, got {self.scale} (shift {self.shift})")

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Layout:
        """Build the layout back from `Dataset.info()`, e.g. from the JSON saved with a run.

        Args:
            info: The dictionary; keys that are not part of a layout are passed over.

        Raises:
            ValueError: If a key is missing.
        """
        try:
            return Layout(
                name=info["name"],
                shape=tuple(info["shape"]),
                scale=info["scale"],
                shift=info["shift"],
                levels=info["levels"],
                classes=None if info["classes"] is None else tuple(info["classes"]),
                dequantised=info["dequantised"],
            )
        except KeyError as missing:
            raise ValueError(f"data info lacks {missing}: save Dataset.info() with the run") from None

    @property
    def dim(self) -> int:
        """Number of coordinates D of a row."""
        return math.prod(self.shape)

    @property
    def log_scale(self) -> float:
        """Log |dx/draw| of one coordinate, in nats: log p(raw) = log p(x) + D log_scale."""
        return math.log(self.scale)

    @property
    def is_image(self) -> bool:
        """Whether `to_images` works: shape (1 or 3, H, W) and a known number of levels."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3) and self.levels is not None

    def to_raw(self, x: Values) -> Values:
        """Undo the scaling: (x - shift) / scale, an array or a tensor of any shape."""
        return (x - self.shift) / self.scale

    def to_images(self, x: Array | torch.Tensor) -> Array:
        """Turn rows into 8-bit pictures.

        Raw values go to the nearest level (to the level below for dequantised rows, which undoes the noise exactly),
        are clipped, and stretched from 0..levels-1 to 0..255.

        Args:
            x: Rows, with shape (N, D) or (N, C, H, W).

        Returns:
            The pictures, uint8 with shape (N, H, W) for one channel and (N, H, W, 3) for three.

        Raises:
            ValueError: If the rows are not images, or hold another number of values, or NaN.
        """
        if not self.is_image or self.levels is None:
            raise ValueError(f"{self.name}: rows of shape {self.shape} with levels={self.levels} are not images")
        array: Array = np.asarray(x if isinstance(x, np.ndarray) else x.detach().cpu().float().numpy())
        if array.ndim < 2 or math.prod(array.shape[1:]) != self.dim:
            raise ValueError(f"{self.name}: images need shape (N, {self.dim}) or (N, *{self.shape}), got {array.shape}")
        top = self.levels - 1
        images = np.empty((len(array), *self.shape), np.uint8)
        for rows in _chunks(len(array), self.dim):
            raw = self.to_raw(array[rows])
            if np.isnan(raw).any():
                raise ValueError(f"{self.name}: cannot draw rows that hold NaN")
            level = np.clip(np.floor(raw) if self.dequantised else np.rint(raw), 0, top)
            images[rows] = np.rint(level * (255 / top)).reshape(-1, *self.shape)
        return images[:, 0] if self.shape[0] == 1 else images.transpose(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Layout):
    """A `Layout` and its rows.

    Attributes:
        x: Scaled rows with shape (N, D): float32 in memory, or an `np.memmap` of any real type.
        labels: Labels with shape (N,), int64, or None.
        part: Which part of the data set the rows are from, "train" or "test".

    Raises:
        ValueError: If there are no rows, or the shapes of `x`, `labels` and `shape` do not agree.
    """

    x: Array
    labels: Array | None = None
    part: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x.ndim != 2 or len(self.x) == 0:
            raise ValueError(f"{self.name}: needs at least one row, shape (N, D), got shape {self.x.shape}")
        if self.x.shape[1] != self.dim:
            raise ValueError(f"{self.name}: rows have {self.x.shape[1]} values, shape {self.shape} needs {self.dim}")
        if self.labels is not None and self.labels.shape != (len(self.x),):
            raise ValueError(f"{self.name}: needs one label a row, got {self.labels.shape} for {len(self.x)} rows")

    # Layout would call two data sets equal whatever their rows.
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self.x)

    def to_images(self, x: Array | torch.Tensor | None = None) -> Array:
        """Turn rows (those of the data set where `x` is None) into 8-bit pictures: see `Layout.to_images`."""
        return super().to_images(self.x if x is None else x)

    def subset(self, index: slice | Sequence[int] | Array) -> Dataset:
        """Keep the rows at `index`.

        A slice of a memory map stays a memory map; rows picked one by one are read into memory.

        Raises:
            ValueError: If no row is left.
        """
        rows = index if isinstance(index, slice) else np.asarray(index, dtype=None if len(index) else np.int64)
        return replace(self, x=self.x[rows], labels=None if self.labels is None else self.labels[rows])

    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split at random into round(fraction N) rows and the others, each in their old order.

        With labels the split is stratified: every label keeps its share to within one row.

        Args:
            fraction: Share of the first part, in (0, 1).
            seed: Seed of the shuffle.

        Raises:
            ValueError: If a part would be empty.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(
                f"{self.name}: fraction {fraction} of {len(self)} rows leaves an empty part: choose another"
            )
        first, second = _split_rows(len(self), count, self.labels, seed)
        return self.subset(first), self.subset(second)

    def info(self) -> dict[str, Any]:
        """Describe the data set in JSON types, to be saved with a run; `Layout.from_info` reads it back."""
        return {
            "name": self.name,
            "part": self.part,
            "rows": len(self),
            "shape": list(self.shape),
            "scale": self.scale,
            "shift": self.shift,
            "levels": self.levels,
            "classes": None if self.classes is None else list(self.classes),
            "dequantised": self.dequantised,
        }


def load(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    dequantise: bool = False,
    image_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load one part of a data set.

    - `digits`: the 1,797 digits of 8 x 8 pixels inside scikit-learn; 1,297 train and 500 test rows, a fixed stratified
      split (seed 0).
    - `mnist`, `fashion-mnist`: IDX files, plain or gzipped.
    - `cifar10`: parquet files in the Hugging Face layout, or the authors' Python batches (folder or tar.gz).
    - a folder: any of the layouts above, or images, one subfolder per class or none (no labels), with the parts in
      `train/` and `val/` or `test/`. One channel where every picture is grey, else three (RGB).
    - a `.npz` file: keys x_train and y_train (x_test, ...), or rows as x, data or arr_0 and labels as y, labels, label
      or arr_1; labels optional.
    - a `.npy` file: rows without labels, memory-mapped, so that it may be larger than memory.
    - a `.parquet` file: an image column, or numeric columns as rows; labels in a column named label, labels,
      fine_label, target, y or class.
    - `owner/name` or `hf:owner/name`: a data set of the Hugging Face hub (extra `molrmog[hub]`).

    Named sets and relative paths are looked for in `data_dir`, then in $MOLRMOG_DATA_DIR. Named sets are then
    downloaded into the user's cache folder and checked against their published md5 sums.

    In .npy and .npz, uint8 arrays with shape (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3, are images of 256
    levels and come into memory; all other arrays are rows of real numbers, flattened and unscaled.

    Args:
        source: Name or path, as in the table.
        split: The part, "train" or "test" ("val" and "validation" also name the second part of a folder).
        data_dir: Folder to look in first.
        dequantise: Add uniform noise on [0, 1) to the integer levels before scaling.
        image_size: Crop images to the central square and resize them to this many pixels a side.
        seed: Seed of the dequantisation noise.

    Returns:
        The rows, with shape (N, D), their labels and their layout.

    Raises:
        FileNotFoundError: If the files are nowhere and cannot be downloaded; the message says where to put which file.
        ValueError: If the source is unknown, damaged, empty, or holds NaN or inf, or an option does not fit it.
        ImportError: If the source needs an extra that is not installed.

    Examples:
        >>> digits = load("digits")
        >>> len(digits), digits.shape, float(digits.x.min()), float(digits.x.max())
        (1297, (1, 8, 8), -1.0, 1.0)
        >>> len(load("digits", "test"))
        500
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    name, read = _read(source, split, data_dir, image_size)
    values, labels, classes, levels = read
    if values.ndim == 0:
        raise ValueError(f"{name}: needs real numbers with shape (N, D), got a single one")
    if len(values) == 0:
        raise ValueError(f"{name}: the {split} part is empty")
    part = "train" if split == "train" else "test"
    labels, classes = _tidy_labels(name, labels, classes)
    if levels is None:
        if dequantise:
            raise ValueError(f"{name}: dequantise needs integer levels (images), these are real numbers")
        if image_size is not None:
            raise ValueError(f"{name}: image_size needs images, these are rows of real numbers")
        if values.ndim < 2 or values.dtype.kind not in "fiub":
            raise ValueError(f"{name}: needs real numbers with shape (N, D), got {values.dtype} {values.shape}")
        x = values.reshape(len(values), -1)
        if not isinstance(x, np.memmap):
            with np.errstate(over="ignore"):  # what overflows is reported as inf, with its row
                x = x.astype(np.float32)
        _check_finite(name, x)
        return Dataset(name=name, x=x, labels=labels, shape=values.shape[1:], classes=classes, part=part)
    if image_size is not None and values.shape[2:] != (image_size, image_size):
        values = _resize(values, image_size, levels)
    scale, shift = 2 / (levels - 1), -1.0
    # The part goes into the seed: the same noise on train and test rows would tie them together.
    rng = np.random.default_rng([seed, *part.encode()]) if dequantise else None
    return Dataset(
        name=name,
        x=_scale(values, scale, shift, rng),
        labels=labels,
        shape=values.shape[1:],
        scale=scale,
        shift=shift,
        levels=levels,
        classes=classes,
        part=part,
        dequantised=dequantise,
    )


def load_parts(
    data: str,
    *,
    data_dir: str | None = None,
    dequantise: bool = False,
    image_size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Load the rows to fit and the rows to hold out.

    The data's own test part is held out where there is one, else a random share of the rows, stratified by label. Of a
    memory map above 1 GiB it is the last rows in file order, so that neither part is read into memory.

    Args:
        data: name or path, see `load`.
        data_dir: folder to look in first.
        dequantise: add uniform noise on [0, 1) to integer levels.
        image_size: crop and resize images to this many pixels a side.
        held_out: share of the rows to hold out where there is no test part.
        seed: of the split and of the dequantisation noise.

    Returns:
        The training rows and the held-out rows.

    Raises:
        ValueError: the data are unknown or damaged, or the share leaves a part empty.
        FileNotFoundError: they are not there.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held-out share {held_out}: pass a share between 0 and 1")
    options: dict[str, Any] = {"data_dir": data_dir, "dequantise": dequantise, "image_size": image_size, "seed": seed}
    train = load(data, **options)
    try:
        return train, load(data, "test", **options)
    except ValueError as error:
        if not _NO_SECOND_PART.search(str(error)):
            raise
    if isinstance(train.x, np.memmap) and train.x.nbytes > _IN_MEMORY:
        cut = len(train) - max(1, round(held_out * len(train)))
        return train.subset(slice(0, cut)), train.subset(slice(cut, None))
    rest, held = train.split(1 - held_out, seed)
    return rest, held


class _Raw(NamedTuple):
    """What a reader hands over: images as uint8 (N, C, H, W) with their levels, or rows (N, ...) with levels None."""

    values: Array
    labels: Array | None
    classes: tuple[str, ...] | None
    levels: int | None


@dataclass(frozen=True)
class _Published:
    """A data set with a name: its classes, and the files of its publisher with their md5 sums."""

    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]


_DIGITS = tuple("0123456789")
_CIFAR_TAR = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
_PUBLISHED = {
    "mnist": _Published(
        classes=_DIGITS,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files={
            "train": {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            },
            "test": {
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        },
    ),
    "fashion-mnist": _Published(
        classes=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        files={
            "train": {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            },
            "test": {
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        },
    ),
    "cifar10": _Published(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        files={"train": _CIFAR_TAR, "test": _CIFAR_TAR},
    ),
}
_SECOND_PARTS = ("val", "valid", "validation", "test")
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "y", "class")


def _key(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def _read(
    source: str | os.PathLike[str], split: str, data_dir: str | os.PathLike[str] | None, image_size: int | None
) -> tuple[str, _Raw]:
    """Find the source and read it: the name of the data set and its raw values."""
    text = os.fspath(source)
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("MOLRMOG_DATA_DIR")) if root]
    known = {_key(name): name for name in ("digits", *_PUBLISHED)}
    if _key(text) in known:
        name = known[_key(text)]
        if split not in ("train", "test"):
            raise ValueError(f"{name} has the parts train and test, not {split!r}")
        return name, _read_digits(split) if name == "digits" else _read_published(name, split, roots, image_size)
    if not text.startswith("hf:"):
        for path in (Path(text).expanduser(), *(root / text for root in roots)):
            if path.is_dir():
                raw = _read_folder(path, split, image_size) or _read_images(path, split, image_size)
                return path.resolve().name, raw
            if path.is_file():
                return path.name, _read_file(path, split, image_size)
    hub_name = text.removeprefix("hf:")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_name) and Path(text).suffix not in (".npy", ".npz", ".parquet"):
        return hub_name, _read_hub(hub_name, split, image_size)
    if os.sep in text or Path(text).suffix:
        raise FileNotFoundError(f"no file or folder {text}" + "".join(f", nor in {root}" for root in roots))
    if close := difflib.get_close_matches(_key(text), known, n=1):
        raise ValueError(f"unknown data set {text!r}: did you mean {known[close[0]]}?")
    raise ValueError(
        f"unknown data set {text!r}: known are digits, {', '.join(_PUBLISHED)}, the path of an image folder or of a "
        ".npy, .npz or .parquet file, and hf:owner/name"
    )


def _read_digits(split: str) -> _Raw:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    rows = _split_rows(len(values), 1297, labels, seed=0)[split == "test"]
    return _Raw(values[rows].astype(np.uint8).reshape(-1, 1, 8, 8), labels[rows], _DIGITS, 17)


def _read_published(name: str, split: str, roots: Sequence[Path], image_size: int | None) -> _Raw:
    """Read a named set from the data folders or the cache, else download it."""
    classes = _PUBLISHED[name].classes
    wanted = (_key(name), f"{_key(name)}batchespy")
    for root in roots:
        inside = sorted(root.iterdir()) if root.is_dir() else []
        for folder in (root, *inside):
            if _key(folder.resolve().name) in wanted and folder.is_dir():
                for place in (folder, folder / "raw"):
                    if raw := _read_folder(place, split, image_size):
                        return raw._replace(classes=classes)
    cache = _download(name, split, roots)
    if raw := _read_folder(cache, split, image_size):
        return raw._replace(classes=classes)
    raise FileNotFoundError(f"{name}: the download left no {split} files in {cache}: empty that folder and try again")


def _download(name: str, split: str, roots: Sequence[Path]) -> Path:
    """Fetch the files of a named set into the cache, where they are not there yet, and check their sums."""
    import pooch

    published = _PUBLISHED[name]
    cache = Path(pooch.os_cache("molrmog")) / name
    for file, md5 in published.files[split].items():
        for mirror in published.mirrors:
            try:
                pooch.retrieve(mirror + file, known_hash=f"md5:{md5}", fname=file, path=cache)
                break
            except (OSError, ValueError):  # no network, or a mirror that serves something else
                continue
        else:
            looked = ", ".join(map(str, roots)) or "a data folder (none given)"
            folder = (roots[0] if roots else Path("DATA")) / name
            how = "" if roots else " and pass data_dir=DATA or set MOLRMOG_DATA_DIR=DATA"
            raise FileNotFoundError(
                f"{name}: no {split} files in {looked}, and no download from {published.mirrors[0]}: "
                f"put {' and '.join(published.files[split])} into {folder}{how}"
            )
    return cache


def _read_folder(folder: Path, split: str, image_size: int | None) -> _Raw | None:
    """Read the part from IDX files, parquet files or CIFAR-10 batches, None where the folder holds none of them."""
    parts = _part_names(split)
    prefix = "train" if split == "train" else "t10k"
    for images in sorted(folder.glob(f"{prefix}-images?idx3-ubyte*")):
        labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
        if not labels.is_file():
            raise FileNotFoundError(f"{images} has no labels beside it: put {labels.name} there")
        return _Raw(_read_idx(images, 3)[:, None], _read_idx(labels, 1), None, 256)
    for part in parts:
        for pattern in (f"{part}.parquet", f"{part}-*.parquet", f"*/{part}-*.parquet"):
            if shards := sorted(folder.glob(pattern)):
                return _read_parquet(shards, image_size)
    for batches in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-python.tar.gz"):
        if batches.is_file() or (batches / "test_batch").is_file():
            return _read_cifar_batches(batches, split)
    return None


def _part_names(split: str) -> tuple[str, ...]:
    """Names under which a folder may hold the part, the wanted one first."""
    if split not in ("train", *_SECOND_PARTS):
        raise ValueError(f"unknown split {split!r}: train or test (or {', '.join(_SECOND_PARTS[:-1])})")
    return ("train",) if split == "train" else (split, *_SECOND_PARTS)


def _read_file(path: Path, split: str, image_size: int | None) -> _Raw:
    """Read a .npy, .npz or .parquet file."""
    damaged = f"{path}: damaged, or not a {path.suffix} file of plain numbers (pickled objects are never loaded)"
    if path.suffix == ".npz":
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                names: list[str] = list(archive)
                if f"x_{split}" in names:
                    y = f"y_{split}"
                    return _as_raw(archive[f"x_{split}"], archive[y] if y in names else None)
                x = next((key for key in ("x", "data", "arr_0") if key in names), None)
                if x is not None and split == "train":
                    y = next((key for key in ("y", "labels", "label", "arr_1") if key in names), None)
                    return _as_raw(archive[x], None if y is None else archive[y])
        except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
            raise ValueError(damaged) from None
        keys = f"x_{split}, x, data or arr_0" if split == "train" else f"x_{split}"
        raise ValueError(f"{path}: no {split} rows, it needs the key {keys} and holds {', '.join(names) or 'none'}")
    if split != "train":
        raise ValueError(f"{path.name} is one part, it has no {split!r}: load it and split it, .split(0.8)")
    if path.suffix == ".parquet":
        return _read_parquet([path], image_size)
    if path.suffix == ".npy":
        try:
            return _as_raw(np.load(path, mmap_mode="r", allow_pickle=False), None)
        except (ValueError, OSError, EOFError):
            raise ValueError(damaged) from None
    raise ValueError(f"{path}: unknown kind of file, known are .npy, .npz, .parquet and folders")


def _as_raw(values: Array, labels: Array | None) -> _Raw:
    """Recognise images in an array: uint8 with shape (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3."""
    if values.dtype == np.uint8 and values.size > 0:
        if values.ndim == 3:
            return _Raw(values[:, None], labels, None, 256)
        if values.ndim == 4 and values.shape[3] in (1, 3):
            return _Raw(values.transpose(0, 3, 1, 2), labels, None, 256)
        if values.ndim == 4 and values.shape[1] in (1, 3):
            return _Raw(values, labels, None, 256)
    return _Raw(values, labels, None, None)


def _read_idx(path: Path, axes: int) -> Array:
    """Read an IDX file of bytes: two zeros, the type (8), the number of axes, their big-endian sizes, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path}: damaged or truncated gzip file, copy or download it again") from None
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(f"{path}: not an IDX file of bytes with {axes} axes, copy or download it again")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        found = len(content) - start
        raise ValueError(f"{path}: holds {found} values where its header says {shape}: copy or download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class _Inert:
    """Stands in for every numpy name in a CIFAR-10 batch: keeps what it is given and does nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Reads the containers, numbers and strings of a CIFAR-10 batch and nothing else.

    A pickle is a program: it may name any callable of any module and call it, so opening a downloaded one with
    `pickle.load` runs whatever its author wished. The batches need only the three names with which numpy pickles an
    array. Each is answered by `_Inert`, not by numpy, whose C code trusts the dtype and shape that it is handed; every
    other name is refused.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is never loaded")
        return _Inert


def _read_cifar_batches(path: Path, split: str) -> _Raw:
    """Read the batches of the authors, from their folder or from the tar.gz around it."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    if path.is_dir():
        if missing := [name for name in names if not (path / name).is_file()]:
            raise FileNotFoundError(f"{path}: put {', '.join(missing)} of cifar-10-python.tar.gz there")
        contents = [(path / name).read_bytes() for name in names]
    else:
        try:
            with tarfile.open(path) as tar:
                members = [tar.extractfile(f"cifar-10-batches-py/{name}") for name in names]
                contents = [member.read() for member in members if member is not None]
        except (tarfile.TarError, OSError, EOFError, KeyError, zlib.error):
            raise ValueError(f"{path}: damaged or truncated, copy or download it again") from None
    images: list[Array] = []
    labels: list[int] = []
    for name, content in zip(names, contents, strict=True):
        try:
            batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
            batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
            _, shape, dtype, fortran_order, buffer = batch["data"].state
            if dtype.arguments[0] not in (b"u1", "u1") or fortran_order or shape[1:] != (3072,):
                raise ValueError(f"its data are not rows of 3072 bytes but {shape}")
            images.append(np.frombuffer(buffer, np.uint8).reshape(shape))
            labels += [int(label) for label in batch["labels"]]
        except Exception as error:  # a damaged pickle is a damaged program: it can fail in any way
            raise ValueError(f"{path}, {name}: not a CIFAR-10 batch: {error}") from None
    return _Raw(np.concatenate(images).reshape(-1, 3, 32, 32), np.array(labels), _PUBLISHED["cifar10"].classes, 256)


def _read_parquet(paths: Sequence[Path], image_size: int | None) -> _Raw:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError(f"{paths[0].name} needs pyarrow: pip install 'molrmog[parquet]'") from None
    tables: list[Any] = []
    for path in paths:
        try:
            tables.append(parquet.read_table(path))
        except (pa.ArrowException, OSError):
            raise ValueError(f"{path}: damaged, or not a parquet file, copy or download it again") from None
    return _read_table(paths[0].name, pa.concat_tables(tables), image_size)


def _read_table(name: str, table: Any, image_size: int | None) -> _Raw:
    """Read an Arrow table: an image column, or numeric columns as rows, and a label column."""
    import pyarrow as pa

    label_column = next((column for column in _LABEL_COLUMNS if column in table.column_names), None)
    labels = None if label_column is None else table[label_column].to_numpy()
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(label_column, {})
    classes = tuple(feature["names"]) if isinstance(feature, dict) and "names" in feature else None
    for field in table.schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or (pa.types.is_binary(field.type) and field.name in ("image", "img")):
            cells = table[field.name].to_pylist()
            if is_struct:  # the layout allows a path in place of the bytes
                cells = [cell and (cell["bytes"] or Path(cell["path"] or "")) for cell in cells]
            pictures = [cell or b"" for cell in cells]
            return _Raw(_decode(name, pictures, image_size), labels, classes, 256)
    numeric = [
        field.name
        for field in table.schema
        if field.name != label_column and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]
    if not numeric:
        raise ValueError(f"{name}: no image column and no numeric columns among {', '.join(table.column_names)}")
    return _Raw(np.stack([table[column].to_numpy() for column in numeric], axis=1), labels, classes, None)


def _read_hub(name: str, split: str, image_size: int | None) -> _Raw:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"{name}: no such path, and the Hugging Face hub needs: pip install 'molrmog[hub]'") from None
    try:
        table = datasets.load_dataset(name, split=split).with_format("arrow")[:]
    except Exception as error:  # the hub's client fails in many ways of its own: not found, offline, no such split
        raise ValueError(f"hf:{name}: {str(error).partition(chr(10))[0]}") from None
    return _read_table(name, table, image_size)


def _read_images(folder: Path, split: str, image_size: int | None) -> _Raw:
    """Read a folder of images: parts, then one subfolder a class, or no labels."""
    parts = [folder / part for part in ("train", *_SECOND_PARTS) if (folder / part).is_dir()]
    if folder / "train" in parts:
        place = next((folder / part for part in _part_names(split) if folder / part in parts), None)
        if place is None:
            raise ValueError(f"{folder} has the parts {', '.join(part.name for part in parts)}, not {split!r}")
    elif split == "train":
        parts, place = [folder], folder
    else:
        raise ValueError(f"{folder} is one part, it has no {split!r}: load it and split it, .split(0.8)")
    # Names over all parts, so that a class has the same label in each.
    entries = [entry for part in parts for entry in part.iterdir()]
    classes = sorted({entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."})
    loose = _image_files(place.iterdir())
    if not classes:
        return _Raw(_decode(place.name, loose, image_size), None, None, 256)
    if loose:
        raise ValueError(f"{place} holds both class folders and images such as {loose[0].name}: keep one or the other")
    files = [(file, label) for label, name in enumerate(classes) for file in _image_files((place / name).rglob("*"))]
    images = _decode(place.name, [file for file, _ in files], image_size)
    return _Raw(images, np.array([label for _, label in files]), tuple(classes), 256)


def _image_files(entries: Iterable[Path]) -> list[Path]:
    return sorted(entry for entry in entries if entry.suffix.lower() in _IMAGE_SUFFIXES and entry.name[0] != ".")


def _square(picture: PILImage.Image, size: int) -> PILImage.Image:
    """Crop to the central square and resize."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


def _decode(name: str, sources: Sequence[bytes | Path], image_size: int | None) -> Array:
    """Decode pictures in threads into uint8 with shape (N, C, H, W): C = 1 where all are grey, else 3."""
    from PIL import Image, ImageOps

    def place(i: int) -> str:
        source = sources[i]
        return str(source) if isinstance(source, Path) else f"{name}, row {i}"

    def decode(i: int) -> Array:
        source = sources[i]
        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode[0] in "IF":
                    raise ValueError(f"mode {picture.mode} has more than 8 bits a channel")
                picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise ValueError(f"{place(i)}: not a readable 8-bit image: {error}") from None
        return np.asarray(picture if image_size is None else _square(picture, image_size))

    if not sources:
        raise ValueError(f"{name} holds no images ({', '.join(sorted(_IMAGE_SUFFIXES))})")
    Image.init()
    first = sources[0]
    if (first.stat().st_size if isinstance(first, Path) else len(first)) < _SMALL_PICTURE:
        pictures = [decode(i) for i in range(len(sources))]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            pictures = list(threads.map(decode, range(len(sources))))
    height, width = pictures[0].shape[:2]
    images = np.empty((len(pictures), height, width, max(picture.ndim for picture in pictures) * 2 - 3), np.uint8)
    for i, picture in enumerate(pictures):
        if picture.shape[:2] != (height, width):
            sizes = f"{place(0)} is {width} x {height}, {place(i)} is {picture.shape[1]} x {picture.shape[0]}"
            raise ValueError(f"{name}: images differ in size ({sizes}): pass image_size")
        images[i] = picture if picture.ndim == 3 else picture[:, :, None]
    return images.transpose(0, 3, 1, 2)


def _resize(images: Array, size: int, levels: int) -> Array:
    """Bring uint8 images with shape (N, C, H, W) to (N, C, size, size)."""
    from PIL import Image

    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for i, channels in enumerate(images):
        for c, channel in enumerate(channels):
            resized[i, c] = np.asarray(_square(Image.fromarray(np.ascontiguousarray(channel)), size))
    return np.minimum(resized, levels - 1)  # bicubic weights overshoot


def _tidy_labels(
    name: str, labels: Array | None, classes: tuple[str, ...] | None
) -> tuple[Array | None, tuple[str, ...] | None]:
    """Bring labels to int64 with shape (N,); strings become classes in sorted order."""
    if labels is None:
        return None, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "OSU":
        strings, labels = np.unique(labels.astype(str), return_inverse=True)
        classes = tuple(strings.tolist())
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise ValueError(f"{name}: labels must be integers or strings, one of them is not")
    if labels.dtype.kind not in "fiub":
        raise ValueError(f"{name}: labels must be integers or strings, got {labels.dtype}")
    return labels.astype(np.int64), classes


def _chunks(rows: int, dim: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // dim)
    return (slice(start, start + step) for start in range(0, rows, step))


def _scale(images: Array, scale: float, shift: float, rng: np.random.Generator | None) -> Array:
    """Turn integer levels with shape (N, C, H, W) into float32 rows, with dequantisation noise where `rng` is given."""
    x = np.empty((len(images), math.prod(images.shape[1:])), np.float32)
    for rows in _chunks(*x.shape):
        chunk = x[rows]
        chunk[:] = images[rows].reshape(chunk.shape)
        if rng is not None:
            chunk += (rng.integers(_CELLS, size=chunk.shape, dtype=np.uint16) + np.float32(0.5)) / np.float32(_CELLS)
        chunk *= scale
        chunk += shift
    return x


def _check_finite(name: str, x: Array) -> None:
    for rows in _chunks(*x.shape):
        finite = np.isfinite(x[rows]).all(axis=1)
        if not finite.all():
            row = rows.start + int(np.argmin(finite))
            raise ValueError(f"{name}: row {row} holds NaN or inf (as {x.dtype}): drop or fill such rows first")


def _split_rows(rows: int, count: int, labels: Array | None, seed: int) -> tuple[Array, Array]:
    """Pick `count` of the rows at random, in equal shares of every label, and return their indices and the others'.

    The rows are shuffled and sorted by label; of every stretch of that order the first part takes its share, to within
    one row.
    """
    order = np.random.default_rng(seed).permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    steps = np.arange(rows + 1) * count // rows
    first = steps[1:] > steps[:-1]
    return np.sort(order[first]), np.sort(order[~first])
