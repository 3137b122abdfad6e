"""Files of data as raw values: arrays of numpy, tables, IDX, CIFAR-10 batches."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from molrmog.data.account import NOTHING_LEFT_OUT, Account, listed
from molrmog.data.bounds import check_bytes, check_unpacked
from molrmog.data.columns import Choice, judge
from molrmog.data.dataset import Array
from molrmog.data.images import Pictures, decode
from molrmog.data.labels import as_labels
from molrmog.data.sources import source_of
from molrmog.data.tables import read_column, read_tables

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MOST_OF_A_BATCH = 2**27  # bytes; those of CIFAR-10 have 31 million
_ROWS, _LABELS = ("x", "data", "arr_0"), ("y", "labels", "label", "arr_1")


class Raw(NamedTuple):
    """What a reader hands over: images as uint8 (N, C, H, W) with their levels, or rows (N, ...) with levels None."""

    values: Array
    labels: Array | None
    classes: tuple[str, ...] | None
    levels: int | None
    account: Account = NOTHING_LEFT_OUT
    names: tuple[str, ...] = ()  # of the coordinates, where they have some


class How(NamedTuple):
    """How a source is to be read: which columns of a table, how pictures become arrays, and whether it is held out."""

    choice: Choice = Choice()
    pictures: Pictures = Pictures()
    holds_out: bool = False


def read_file(path: Path, split: str, how: How) -> Raw:
    """Read a file of any kind that `molrmog.data.sources` lists."""
    kind = source_of(path)
    if kind.kind == "npz":
        return _read_npz(path, split, how)
    if split != "train":
        raise ValueError(f"{path.name} is one part, it has no {split!r}: load it and split it, .split(0.8)")
    if kind.is_table:
        return read_shards([path], [], how)
    refuse_columns(path.name, how.choice)
    about = Account(kind="npy")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except Exception:  # a header is a program's literal, and its numbers are anything
        raise ValueError(_never_pickled(path)) from None
    more = path.stat().st_size - array.offset - array.nbytes if isinstance(array, np.memmap) else 0
    if more:
        raise ValueError(f"{path}: holds {more:,} bytes behind its array, and another perhaps: write one array a file")
    return as_raw(array, None, about)


def read_shards(paths: Sequence[Path], others: Sequence[Path], how: How, name: str | None = None) -> Raw:
    """Read a table.

    Args:
        paths: its file, or the shards of this part of it.
        others: the files of its other parts, whose texts count as classes, too.
        how: which columns, and how pictures are read.
        name: of the data, for messages; that of the first file where None.
    """
    table, notes = read_tables(paths)
    kind = source_of(paths[0]).kind
    raw = read_table(name or paths[0].name, table, how, kind, lambda own: read_column(others, own), paths[0].parent)
    return raw._replace(account=raw.account.noted(before=notes))


def read_table(
    name: str, table: Any, how: How, kind: str = "table", texts: Any = None, home: Path | None = None
) -> Raw:
    """Rows, or pictures, from an Arrow table in the folder `home`; see `molrmog.data.columns.judge`."""
    found = judge(name, table, how.choice, kind=kind, texts=texts)
    if found.pictures is None:
        assert found.values is not None
        return Raw(found.values, found.labels, found.classes, None, found.account, found.names)
    pictures = [_below(name, home, each) if isinstance(each, Path) else each for each in found.pictures]
    images, notes = decode(name, pictures, how.pictures)
    return Raw(images, found.labels, found.classes, 256, found.account.noted(after=notes))


def _below(name: str, home: Path | None, path: Path) -> Path:
    """A picture that a table names by its path: a file below the folder of the table, for it must not choose others."""
    if home is None or path.is_absolute() or ".." in path.parts or not (home / path).is_file():
        raise ValueError(f"{name}: names the picture {path}, and there is no such file below the folder of the table")
    return home / path


def refuse_columns(name: str, choice: Choice) -> None:
    """Refuse a choice of columns where there are none.

    Raises:
        ValueError: one is made.
    """
    if choice.is_made:
        raise ValueError(f"{name} is no table with named columns: leave out label_column, columns, drop and categories")


def _never_pickled(path: Path) -> str:
    return f"{path}: damaged, or not a {path.suffix} file of plain numbers (pickled objects are never loaded)"


def _read_npz(path: Path, split: str, how: How) -> Raw:
    refuse_columns(path.name, replace(how.choice, label_column=None))
    x = y = values = labels = others = None
    names: list[str] = []
    asked = how.choice.label_column
    in_parts = False
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = list(archive)
            _check_archive(path, archive.zip)
            in_parts = f"x_{split}" in names
            x = f"x_{split}" if in_parts else next((key for key in _ROWS if key in names and split == "train"), None)
            usual = (f"y_{split}",) if in_parts else _LABELS
            y = asked or next((key for key in usual if key in names), None)
            if x is not None and (y is None or y in names):
                values, labels = archive[x], None if y is None else archive[y]
                if not all(isinstance(part, np.ndarray) for part in (values, labels) if part is not None):
                    raise ValueError  # a member that is no array comes as bytes
                other = next((key for key in ("y_train", "y_test") if in_parts and key in names and key != y), None)
                others = None if other is None else archive[other]
    except (PermissionError, _TooLarge):
        raise
    except Exception:  # archives are damaged, encrypted and compressed in many ways
        raise ValueError(_never_pickled(path)) from None
    if x is None:
        keys = f"x_{split}, x, data or arr_0" if split == "train" else f"x_{split}"
        raise ValueError(f"{path}: no {split} rows, it needs the key {keys} and holds {listed(names) or 'none'}")
    if values is None:
        raise ValueError(f"{path}: no labels {y}, it holds {listed(names)}")
    notes: list[str] = []
    if labels is not None and asked is None and _are_fractions(labels):
        notes.append(f"{y} left out: real numbers, no labels")
        labels = None
    parts = {f"{kind}_{part}" for kind in "xy" for part in ("train", "test", "val", "valid", "validation")}
    unread = [key for key in names if key not in (x, y) and not (in_parts and key in parts)]
    if unread:
        notes.append(f"{'key' if len(unread) == 1 else 'keys'} {listed(unread)} left out")
    classes = None
    if labels is not None and labels.dtype.kind in "SU" and others is not None and others.dtype.kind in "SU":
        # Classes of all parts, so that one has the same label in each.
        texts = as_labels(_column_of(labels), name=f"{path.name}: labels {y}").astype(str)
        classes = tuple(sorted({*texts.tolist(), *others.astype(str).ravel().tolist()}))
        labels = np.searchsorted(classes, texts)
    return as_raw(values, labels, Account(kind="npz", notes=tuple(notes)))._replace(classes=classes)


def _are_fractions(labels: Array) -> bool:
    return labels.dtype.kind == "f" and not np.isnan(labels).any() and not np.array_equal(labels, np.rint(labels))


class _TooLarge(ValueError):
    """An archive would unpack to more than is read."""


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    sizes = sum(each.file_size for each in archive.infolist())
    try:
        check_unpacked(str(path), sizes, path.stat().st_size)
    except ValueError as error:
        raise _TooLarge(str(error)) from None


def _column_of(labels: Array) -> Array:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def as_raw(values: Array, labels: Array | None, account: Account) -> Raw:
    """Recognise images in an array: uint8 with shape (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3."""
    if values.dtype == np.uint8 and values.size > 0:
        if values.ndim == 3:
            return Raw(values[:, None], labels, None, 256, account)
        if values.ndim == 4 and values.shape[3] in (1, 3):
            return Raw(values.transpose(0, 3, 1, 2), labels, None, 256, account)
        if values.ndim == 4 and values.shape[1] in (1, 3):
            return Raw(values, labels, None, 256, account)
    return Raw(values, labels, None, None, account)


def read_idx(images: Path) -> Raw | None:
    """Read IDX files of images, with the labels beside them."""
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if not labels.is_file():
        raise FileNotFoundError(f"{images} has no labels beside it: put {labels.name} there")
    return Raw(_read_idx(images, 3)[:, None], _read_idx(labels, 1), None, 256, Account(kind="IDX"))


def _read_idx(path: Path, axes: int) -> Array:
    """Read an IDX file of bytes: two zeros, the type (8), the number of axes, their big-endian sizes, the values."""
    start = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(start)
            if len(head) < start or head[:4] != bytes((0, 0, 8, axes)):
                raise ValueError(f"{path}: not an IDX file of bytes with {axes} axes, copy or download it again")
            shape = struct.unpack(f">{axes}I", head[4:])
            count = math.prod(shape)
            check_bytes(str(path), count, "copy or download it again")
            check_unpacked(str(path), count, path.stat().st_size)
            content = file.read(count + 1)
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path}: damaged or truncated gzip file, copy or download it again") from None
    if len(content) != count:
        found = f"more than {count}" if len(content) > count else str(len(content))
        raise ValueError(f"{path}: holds {found} values where its header says {shape}: copy or download it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


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


def read_cifar_batches(path: Path, split: str) -> Raw:
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
                contents = [member.read(_MOST_OF_A_BATCH) for member in members if member is not None]
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
    return Raw(
        np.concatenate(images).reshape(-1, 3, 32, 32),
        np.array(labels),
        CIFAR_CLASSES,
        256,
        Account(kind="CIFAR-10 batches"),
    )
