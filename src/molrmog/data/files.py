"""Files of data as raw values: IDX, CIFAR-10 batches, parquet, npy and npz, folders of pictures."""

# pyarrow ships no annotations: what it leaves unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from molrmog.data.dataset import Array
from molrmog.data.images import decode, image_files

_SECOND_PARTS = ("val", "valid", "validation", "test")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "y", "class")
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Raw(NamedTuple):
    """What a reader hands over: images as uint8 (N, C, H, W) with their levels, or rows (N, ...) with levels None."""

    values: Array
    labels: Array | None
    classes: tuple[str, ...] | None
    levels: int | None


def read_folder(folder: Path, split: str, image_size: int | None) -> Raw | None:
    """Read the part from IDX files, parquet files or CIFAR-10 batches, None where the folder holds none of them."""
    parts = _part_names(split)
    prefix = "train" if split == "train" else "t10k"
    for images in sorted(folder.glob(f"{prefix}-images?idx3-ubyte*")):
        labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
        if not labels.is_file():
            raise FileNotFoundError(f"{images} has no labels beside it: put {labels.name} there")
        return Raw(_read_idx(images, 3)[:, None], _read_idx(labels, 1), None, 256)
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


def read_file(path: Path, split: str, image_size: int | None) -> Raw:
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


def _as_raw(values: Array, labels: Array | None) -> Raw:
    """Recognise images in an array: uint8 with shape (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3."""
    if values.dtype == np.uint8 and values.size > 0:
        if values.ndim == 3:
            return Raw(values[:, None], labels, None, 256)
        if values.ndim == 4 and values.shape[3] in (1, 3):
            return Raw(values.transpose(0, 3, 1, 2), labels, None, 256)
        if values.ndim == 4 and values.shape[1] in (1, 3):
            return Raw(values, labels, None, 256)
    return Raw(values, labels, None, None)


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


def _read_cifar_batches(path: Path, split: str) -> Raw:
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
    return Raw(np.concatenate(images).reshape(-1, 3, 32, 32), np.array(labels), CIFAR_CLASSES, 256)


def _read_parquet(paths: Sequence[Path], image_size: int | None) -> Raw:
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
    return read_table(paths[0].name, pa.concat_tables(tables), image_size)


def read_table(name: str, table: Any, image_size: int | None) -> Raw:
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
            return Raw(decode(name, pictures, image_size), labels, classes, 256)
    numeric = [
        field.name
        for field in table.schema
        if field.name != label_column and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]
    if not numeric:
        raise ValueError(f"{name}: no image column and no numeric columns among {', '.join(table.column_names)}")
    return Raw(np.stack([table[column].to_numpy() for column in numeric], axis=1), labels, classes, None)


def read_images(folder: Path, split: str, image_size: int | None) -> Raw:
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
    loose = image_files(place.iterdir())
    if not classes:
        return Raw(decode(place.name, loose, image_size), None, None, 256)
    if loose:
        raise ValueError(f"{place} holds both class folders and images such as {loose[0].name}: keep one or the other")
    files = [(file, label) for label, name in enumerate(classes) for file in image_files((place / name).rglob("*"))]
    images = decode(place.name, [file for file, _ in files], image_size)
    return Raw(images, np.array([label for _, label in files]), tuple(classes), 256)
