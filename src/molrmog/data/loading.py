"""`load`: any source as a `Dataset`, and what to hold out of it."""

# datasets ships no annotations: what it leaves unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from molrmog.data.dataset import Array, Dataset, check_finite, exact_precision, scaled
from molrmog.data.files import Raw, read_file, read_folder, read_images, read_table
from molrmog.data.images import resized
from molrmog.data.published import PUBLISHED, key_of, read_digits, read_published
from molrmog.seeds import numpy_seed, seed_of

# Bytes of a memory map up to which picking single rows into memory is harmless.
_IN_MEMORY = 2**30
_NO_SECOND_PART = re.compile(r"has no 'test'|no test rows|, not 'test'|nknown split")


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
    levels and come into memory; all other arrays are rows of real numbers, flattened and unscaled. Rows of any source
    are float32 where that holds every value exactly, else float64.

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
    seed = seed_of(seed)
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
                x = x.astype(exact_precision(x), copy=False)
        check_finite(name, x)
        return Dataset(name=name, x=x, labels=labels, shape=values.shape[1:], classes=classes, part=part)
    if image_size is not None and values.shape[2:] != (image_size, image_size):
        values = resized(values, image_size, levels)
    scale, shift = 2 / (levels - 1), -1.0
    # The part goes into the seed: the same noise on train and test rows would tie them together.
    rng = np.random.default_rng([numpy_seed(seed), *part.encode()]) if dequantise else None
    return Dataset(
        name=name,
        x=scaled(values, scale, shift, rng),
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
    seed = seed_of(seed)
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


def _read(
    source: str | os.PathLike[str], split: str, data_dir: str | os.PathLike[str] | None, image_size: int | None
) -> tuple[str, Raw]:
    """Find the source and read it: the name of the data set and its raw values."""
    text = os.fspath(source)
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("MOLRMOG_DATA_DIR")) if root]
    known = {key_of(name): name for name in ("digits", *PUBLISHED)}
    if key_of(text) in known:
        name = known[key_of(text)]
        if split not in ("train", "test"):
            raise ValueError(f"{name} has the parts train and test, not {split!r}")
        return name, read_digits(split) if name == "digits" else read_published(name, split, roots, image_size)
    if not text.startswith("hf:"):
        for path in (Path(text).expanduser(), *(root / text for root in roots)):
            if path.is_dir():
                raw = read_folder(path, split, image_size) or read_images(path, split, image_size)
                return path.resolve().name, raw
            if path.is_file():
                return path.name, read_file(path, split, image_size)
    hub_name = text.removeprefix("hf:")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_name) and Path(text).suffix not in (".npy", ".npz", ".parquet"):
        return hub_name, _read_hub(hub_name, split, image_size)
    if os.sep in text or Path(text).suffix:
        raise FileNotFoundError(f"no file or folder {text}" + "".join(f", nor in {root}" for root in roots))
    if close := difflib.get_close_matches(key_of(text), known, n=1):
        raise ValueError(f"unknown data set {text!r}: did you mean {known[close[0]]}?")
    raise ValueError(
        f"unknown data set {text!r}: known are digits, {', '.join(PUBLISHED)}, the path of an image folder or of a "
        ".npy, .npz or .parquet file, and hf:owner/name"
    )


def _read_hub(name: str, split: str, image_size: int | None) -> Raw:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"{name}: no such path, and the Hugging Face hub needs: pip install 'molrmog[hub]'") from None
    try:
        table = datasets.load_dataset(name, split=split).with_format("arrow")[:]
    except Exception as error:  # the hub's client fails in many ways of its own: not found, offline, no such split
        raise ValueError(f"hf:{name}: {str(error).partition(chr(10))[0]}") from None
    return read_table(name, table, image_size)


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
