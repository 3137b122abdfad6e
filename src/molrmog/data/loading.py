"""`load`: any source as a `Dataset`, and what to hold out of it."""

# datasets ships no annotations: what it leaves unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from molrmog.arguments import flag, is_a, one_of, real, shown, whole
from molrmog.data.account import Account
from molrmog.data.arrays import is_frame
from molrmog.data.columns import ROUNDED, Choice, are_rounded, chosen
from molrmog.data.dataset import Array, Dataset, check_finite, exact_precision, scaled
from molrmog.data.files import How, Raw, read_file, read_table, refuse_columns
from molrmog.data.folders import read_folder
from molrmog.data.images import Pictures, resized
from molrmog.data.labels import as_labels
from molrmog.data.published import PUBLISHED, key_of, read_digits, read_published
from molrmog.data.sources import DATA, has_known_suffix
from molrmog.seeds import numpy_seed, seed_of

READING = ("data_dir", "label_column", "columns", "drop", "categories", "background", "image_size", "dequantise")
"""Options that say how data are read, by their names in settings and in `load`."""

# Bytes of a memory map up to which picking single rows into memory is harmless.
_IN_MEMORY = 2**30
_NO_SECOND_PART = re.compile(r"has no 'test'|no test rows|, not 'test'|nknown split")


def load(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    label_column: str | None = None,
    columns: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    categories: Literal["refuse", "one-hot"] = "refuse",
    background: Literal["white", "black", "grey"] = "white",
    dequantise: bool = False,
    image_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load one part of a data set. What is left out of it is said in a warning, and kept in `account`.

    - `digits`: the 1,797 digits of 8 x 8 pixels inside scikit-learn; 1,297 train and 500 test rows, a fixed stratified
      split (seed 0).
    - `mnist`, `fashion-mnist`: IDX files, plain or gzipped.
    - `cifar10`: parquet files in the Hugging Face layout, or the authors' Python batches (folder or tar.gz).
    - a folder: any of the layouts above; tables, `train.*` and `test.*` or the shards of one part; or images, one
      subfolder per class or none (no labels), with the parts in `train/` and `val/` or `test/`. One channel where every
      picture is grey, else three (RGB); transparent ones are composed on `background`. See `molrmog.data.folders`.
    - a table, `.csv`, `.tsv` (plain or `.gz`), `.parquet` or `.feather`: its columns of numbers as rows, or a column of
      images; labels in `label_column`, or in a column named label, labels, fine_label, class, target or y. What becomes
      of other columns is said in `molrmog.data.columns`.
    - a `.npz` file: keys x_train and y_train (x_test, ...), or rows as x, data or arr_0 and labels as y, labels, label
      or arr_1; labels optional.
    - a `.npy` file: rows without labels, memory-mapped, so that it may be larger than memory.
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
        label_column: Column (or key of a .npz file) that holds the labels; found by its name where None.
        columns: Columns of a table to use, in a list or with commas between; all where None.
        drop: Columns of a table to leave out, likewise.
        categories: What becomes of columns of text: "refuse", or "one-hot" for a coordinate of zeros and ones for each
            of their texts.
        background: What lies behind transparent pixels, "white", "black" or "grey".
        dequantise: Add uniform noise on [0, 1) to the integer levels before scaling.
        image_size: Crop images to the central square and resize them to this many pixels a side.
        seed: Seed of the dequantisation noise.

    Returns:
        The rows, with shape (N, D), their labels and their layout.

    Raises:
        FileNotFoundError: If the files are nowhere and cannot be downloaded; the message says where to put which file.
        ValueError: If the source is unknown, damaged, empty, or holds what is no number, or lacks a number or a label,
            or an option does not fit it.
        ImportError: If the source needs an extra that is not installed.

    Examples:
        >>> digits = load("digits")
        >>> len(digits), digits.shape, float(digits.x.min()), float(digits.x.max())
        (1297, (1, 8, 8), -1.0, 1.0)
        >>> len(load("digits", "test"))
        500
    """
    how = _how(label_column, columns, drop, categories, image_size, background)
    return _load(source, split, data_dir, how, dequantise, seed)


def _how(label_column: Any, columns: Any, drop: Any, categories: Any, image_size: Any, background: Any) -> How:
    """The options of `load` that say how a source is read, checked."""
    if not (label_column is None or is_a(label_column, str)):
        raise ValueError(f"label_column = {shown(label_column)}: pass the name of a column, or None")
    for name, value in (("columns", columns), ("drop", drop)):
        several = is_a(value, Sequence, np.ndarray) and not is_a(value, bytes) and all(is_a(v, str) for v in value)
        if not (value is None or several):
            raise ValueError(f"{name} = {shown(value)}: pass names of columns in a list, or with commas between")
    one_of(categories, "categories", ("refuse", "one-hot"))
    if not is_a(background, str):
        raise ValueError(f"background = {shown(background)}: pass white, black or grey")
    size = None if image_size is None else whole(image_size, "image_size")
    choice = chosen(label_column, columns, drop, categories)
    return How(choice, Pictures(image_size=size, background=background))


def _load(source: Any, split: str, data_dir: Any, how: How, dequantise: bool, seed: int) -> Dataset:
    seed, dequantise = seed_of(seed), flag(dequantise, "dequantise")
    if not is_a(split, str):
        raise ValueError(f"split = {shown(split)}: pass train or test")
    if not (data_dir is None or is_a(data_dir, str, os.PathLike)):
        raise ValueError(f"data_dir = {shown(data_dir)}: pass a folder, or None")
    name, raw = _read(source, split, data_dir, how)
    values, levels, image_size = raw.values, raw.levels, how.pictures.image_size
    if values.ndim == 0:
        raise ValueError(f"{name}: needs real numbers with shape (N, D), got a single one")
    if len(values) == 0:
        raise ValueError(f"{name}: the {split} part is empty")
    if 0 in values.shape:
        raise ValueError(f"{name}: needs at least one column, got rows with shape {values.shape[1:]}")
    part = "train" if split == "train" else "test"
    labels, classes = _tidy_labels(name, raw.labels, raw.classes)
    about: dict[str, Any] = {"name": name, "labels": labels, "classes": classes, "part": part, "account": raw.account}
    if levels is None:
        if dequantise:
            raise ValueError(f"{name}: dequantise needs integer levels (images), these are real numbers")
        if image_size is not None:
            raise ValueError(f"{name}: image_size needs images, these are rows of real numbers")
        if values.ndim < 2 or values.dtype.kind not in "fiub":
            raise ValueError(f"{name}: needs real numbers with shape (N, D), got {values.dtype} {values.shape}")
        x = values.reshape(len(values), -1)
        about["account"] = _rounded(raw.account, x)
        if not isinstance(x, np.memmap) or x.dtype.itemsize > 8:
            with np.errstate(over="ignore"):  # what overflows is reported as inf, with its row
                x = x.astype(exact_precision(x), copy=False)
        check_finite(name, x, raw.names)
        _say(name, about["account"])
        return Dataset(x=x, shape=values.shape[1:], **about)
    if image_size is not None and values.shape[2:] != (image_size, image_size):
        values = resized(values, image_size, levels)
    scale, shift = 2 / (levels - 1), -1.0
    # The part goes into the seed: the same noise on train and test rows would tie them together.
    rng = np.random.default_rng([numpy_seed(seed), *part.encode()]) if dequantise else None
    x = scaled(values, scale, shift, rng)
    _say(name, raw.account)
    image = {"shape": values.shape[1:], "scale": scale, "shift": shift, "levels": levels, "dequantised": dequantise}
    return Dataset(x=x, **image, **about)


def _rounded(account: Account, x: Array) -> Account:
    """The account, with a note where whole numbers are too large for float64; a table has judged its own."""
    if account.columns or not are_rounded(x):
        return account
    return account.noted(after=[ROUNDED])


def _say(name: str, account: Account) -> None:
    """Warn of what was left out, or decided."""
    if account.notes:
        warnings.warn(f"{name}: {'; '.join(account.notes)}", stacklevel=4)


def load_parts(
    data: str,
    *,
    data_dir: str | None = None,
    label_column: str | None = None,
    columns: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    categories: Literal["refuse", "one-hot"] = "refuse",
    background: Literal["white", "black", "grey"] = "white",
    dequantise: bool = False,
    image_size: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Load the rows to fit and the rows to hold out.

    The data's own test part is held out where there is one, else a random share of the rows, stratified by label. Of a
    memory map above 1 GiB it is the last rows in file order, so that neither part is read into memory. Of a table both
    parts have the same columns.

    Args:
        data: name or path, see `load`.
        data_dir: folder to look in first.
        label_column: column that holds the labels.
        columns: columns of a table to use.
        drop: columns of a table to leave out.
        categories: what becomes of columns of text.
        background: what lies behind transparent pixels.
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
    held_out = real(held_out, "held_out", "pass a share between 0 and 1")
    if not 0 < held_out < 1:
        raise ValueError(f"held-out share {held_out}: pass a share between 0 and 1")
    how = _how(label_column, columns, drop, categories, image_size, background)
    train = _load(data, "train", data_dir, how, dequantise, seed)
    part = how._replace(choice=_as_in(train, how.choice), holds_out=True)
    held = _test_part(lambda: _load(data, "test", data_dir, part, dequantise, seed))
    return parted(train, held_out, seed) if held is None else (train, held)


def load_test(data: str, **reading: Any) -> Dataset | None:
    """Load the test part, None where the data have none; arguments and errors as in :func:`load`."""
    return _test_part(lambda: load(data, "test", **reading))


def _test_part(read: Callable[[], Dataset]) -> Dataset | None:
    try:
        return read()
    except ValueError as error:
        if not _NO_SECOND_PART.search(str(error)):
            raise
    return None


def parted(train: Dataset, held_out: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """The rows to fit and the rows to hold out of data without a test part; see :func:`load_parts`.

    Raises:
        ValueError: the share leaves a part empty.
    """
    if isinstance(train.x, np.memmap) and train.x.nbytes > _IN_MEMORY:
        cut = len(train) - max(1, round(held_out * len(train)))
        return train.subset(slice(0, cut)), train.subset(slice(cut, None))
    rest, held = train.split(1 - held_out, seed)
    return rest, held


def reading_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load` among settings; those that are missing, as older runs lack some, keep their defaults."""
    return {name: settings[name] for name in READING if name in settings}


def _as_in(train: Dataset, choice: Choice) -> Choice:
    """The choice of columns that another part of a table needs, to have those of the first."""
    return replace(choice, like=train.account.columns)


def _read(source: Any, split: str, data_dir: str | os.PathLike[str] | None, how: How) -> tuple[str, Raw]:
    """Find the source and read it: the name of the data set and its raw values."""
    if not isinstance(source, str | os.PathLike):
        kind = "a data frame" if is_frame(source) else f"a {type(source).__name__}"
        raise ValueError(f"the data are {kind}: pass a name or a path; molrmog.fit takes rows as they are")
    text = os.fspath(source)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"the data are {text!r}: pass a name or a path")
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get("MOLRMOG_DATA_DIR")) if root]
    known = {key_of(name): name for name in ("digits", *PUBLISHED)}
    if key_of(text) in known:
        name = known[key_of(text)]
        if split not in ("train", "test"):
            raise ValueError(f"{name} has the parts train and test, not {split!r}")
        refuse_columns(name, how.choice)
        return name, read_digits(split) if name == "digits" else read_published(name, split, roots, how)
    if not text.startswith("hf:"):
        for path in (Path(text).expanduser(), *(root / text for root in roots)):
            if _exists(path, Path.is_dir):
                return path.resolve().name or str(path.resolve()), read_folder(path, split, how)
            if _exists(path, Path.is_file):
                return path.name, read_file(path, split, how)
            if _exists(path, Path.exists):
                raise ValueError(f"{' '.join(str(path).split())} is neither a file nor a folder")
    hub_name = text.removeprefix("hf:")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_name) and not has_known_suffix(text):
        return hub_name, _read_hub(hub_name, split, how)
    if os.sep in text or Path(text).suffix:
        raise FileNotFoundError(
            f"no file or folder {' '.join(text.split())}" + "".join(f", nor in {root}" for root in roots)
        )
    if close := difflib.get_close_matches(key_of(text), known, n=1):
        raise ValueError(f"unknown data set {shown(text)}: did you mean {known[close[0]]}?")
    raise ValueError(f"unknown data set {shown(text)}: known are {DATA}")


def _exists(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether there is something of a kind at a path; a name that no system takes is that of nothing."""
    try:
        return kind(path)
    except OSError:
        return False


def _read_hub(name: str, split: str, how: How) -> Raw:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"{name}: no such path, and the Hugging Face hub needs: pip install 'molrmog[hub]'") from None

    try:
        table = datasets.load_dataset(name, split=split).with_format("arrow")[:]
    except Exception as error:  # the hub's client fails in many ways of its own: not found, offline, no such split
        raise ValueError(f"hf:{name}: {str(error).partition(chr(10))[0]}") from None
    return read_table(name, table, how, "Hugging Face")


def _tidy_labels(
    name: str, labels: Array | None, classes: tuple[str, ...] | None
) -> tuple[Array | None, tuple[str, ...] | None]:
    """Bring labels to int64 with shape (N,); strings become classes in sorted order."""
    if labels is None:
        return None, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = as_labels(labels, name=f"{name}: labels")
    if labels.dtype.kind in "US":
        strings, labels = np.unique(labels.astype(str), return_inverse=True)
        classes = tuple(strings.tolist())
    return labels.astype(np.int64), classes
