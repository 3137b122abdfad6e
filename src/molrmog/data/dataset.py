"""What every source becomes: a `Dataset` of scaled rows.

**Scaling.** Raw values become rows by x = raw * scale + shift, elementwise. Images of L integer levels 0..L-1 (256 for
8 bits, 17 for `digits`) are mapped onto [-1, 1] by scale = 2 / (L - 1), shift = -1; arrays of real numbers are left as
they are (scale = 1, shift = 0). Images are flattened in (C, H, W) order.

**Bits per dimension.** A density of rows is a density of raw values by the change of variables

    log p(raw) = log p(x) + D log_scale,      log_scale := log |dx/draw| = log(scale),

so that bits/dim on the raw scale are -(log p(x) / D + log_scale) / log 2.

**Precision.** Rows are float32 where that holds every one of their values as it came: numbers that were float32 or
narrower, whole numbers of up to 24 bits, scaled levels. All else is float64, whichever kind of source it came from:
float32 would tell a time in seconds to two minutes, and a place in metres on the map of a country to half a metre. See
`exact_precision`.

**Dequantisation.** A density can grow without bound on integers. With `dequantise` every level gets seeded noise u,
uniform on [0, 1), before the scaling: E_u[log p(raw + u)] is then a lower bound of the log-probability of the integers
under P(raw) = int_[0,1)^D p(raw + u) du. u takes the midpoints of 2^12 equal cells of [0, 1): level + u is exact in
float32, and floor gives the level back.

A `Layout` is what a saved run keeps of its data: shape, scaling and class names, enough to turn samples into images
when the data themselves are gone.

References:
    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", ICLR 2016, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from molrmog.arguments import flag, is_a, real, shown, whole, wholes
from molrmog.data.account import NOTHING_LEFT_OUT, Account, listed
from molrmog.seeds import numpy_generator

if TYPE_CHECKING:
    import torch


Array = np.ndarray[Any, Any]
Values = TypeVar("Values", Array, "torch.Tensor")
# Dequantisation noise lies on this many cells: 8 bits of level and 13 of noise fit the 24 bits of a float32.
_CELLS = 2**12
_CHUNK_VALUES = 2**24
_WHOLE = 2**24  # float32 holds every whole number up to here


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
        ValueError: If the shape is empty, the scale is not positive, or anything is of another kind.
    """

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0
    levels: int | None = None
    classes: tuple[str, ...] | None = None
    dequantised: bool = False

    def __post_init__(self) -> None:
        if not is_a(self.name, str):
            raise ValueError(f"name = {shown(self.name)}: pass a text")
        given = {
            "shape": wholes(self.shape, f"{self.name}: shape", 1, "pass positive sizes, (D,) or (C, H, W)"),
            "scale": real(self.scale, f"{self.name}: scale"),
            "shift": real(self.shift, f"{self.name}: shift"),
            "levels": None if self.levels is None else whole(self.levels, f"{self.name}: levels", 2),
            "classes": None if self.classes is None else _names(self.classes, f"{self.name}: classes"),
            "dequantised": flag(self.dequantised, f"{self.name}: dequantised"),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)  # as the class says, whatever kind of number it came as
        if not (self.scale > 0 and math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise ValueError(f"{self.name}: scale must be > 0 and finite, got {self.scale} (shift {self.shift})")

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Layout:
        """Build the layout back from `Dataset.info()`, e.g. from the JSON saved with a run.

        Args:
            info: The dictionary; keys that are not part of a layout are passed over.

        Raises:
            ValueError: If a key is missing, or what it holds is not of its kind.
        """
        if not is_a(info, Mapping):
            raise ValueError(f"info = {shown(info)}: pass a dictionary, as Dataset.info() returns")
        keys = ("name", "shape", "scale", "shift", "levels", "classes", "dequantised")
        try:
            return Layout(**{key: info[key] for key in keys})
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
        """Undo the scaling: (x - shift) / scale, an array or a tensor of any shape.

        Raises:
            ValueError: If x holds anything but real numbers.
        """
        from molrmog.data.arrays import as_numbers  # which knows what a Dataset is

        numbers: Any = as_numbers(x)
        values: Any = numbers if isinstance(numbers, np.ndarray) else x  # a tensor keeps its gradient
        return (values - self.shift) / self.scale

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
        from molrmog.data.arrays import as_numbers  # which knows what a Dataset is

        values = as_numbers(x)
        array: Array = np.asarray(values if isinstance(values, np.ndarray) else values.cpu().float().numpy())
        if array.ndim < 2 or math.prod(array.shape[1:]) != self.dim:
            raise ValueError(f"{self.name}: images need shape (N, {self.dim}) or (N, *{self.shape}), got {array.shape}")
        top = self.levels - 1
        images = np.empty((len(array), *self.shape), np.uint8)
        for rows in chunks(len(array), self.dim):
            with np.errstate(over="ignore"):  # what overflows is clipped
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
        x: Scaled rows with shape (N, D): float32 or, where that would round them, float64 in memory; or an `np.memmap`
            of any real type. Whatever is passed as rows becomes that.
        labels: Labels with shape (N,), int64, or None.
        part: Which part of the data set the rows are from, "train" or "test".
        account: What was read of the source, and what was left out.

    Raises:
        ValueError: If there are no rows, the shapes of `x`, `labels` and `shape` do not agree, or `x` holds anything
            but real numbers, or `labels` anything but whole ones.
    """

    x: Array
    labels: Array | None = None
    part: str = "train"
    account: Account = NOTHING_LEFT_OUT

    def __post_init__(self) -> None:
        from molrmog.data.arrays import as_numbers  # which knows what a Dataset is
        from molrmog.data.labels import as_labels

        super().__post_init__()
        x = as_numbers(self.x, f"{self.name}: x")
        if not isinstance(x, np.ndarray):
            x = (x if "bfloat16" not in str(x.dtype) else x.float()).cpu().numpy()
        if not isinstance(x, np.memmap) and x.dtype not in (np.float32, np.float64):
            x = x.astype(exact_precision(x))
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"{self.name}: needs at least one row, shape (N, D), got shape {x.shape}")
        if x.shape[1] != self.dim:
            raise ValueError(f"{self.name}: rows have {x.shape[1]} values, shape {self.shape} needs {self.dim}")
        object.__setattr__(self, "x", x)
        if self.labels is not None:
            labels = as_labels(self.labels, len(x), f"{self.name}: labels")
            if labels.dtype.kind in "US":
                raise ValueError(f"{self.name}: labels are text: pass whole numbers, and the texts as classes")
            object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))
        if not is_a(self.part, str):
            raise ValueError(f"{self.name}: part = {shown(self.part)}: pass a text, train or test")

    # Layout would call two data sets equal whatever their rows.
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self.x)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the classes that have rows, in the order of their labels: those of a fit by class."""
        known: Sequence[str] = self.classes or ()
        labels: list[int] = [] if self.labels is None else np.unique(self.labels).tolist()
        return tuple(known[label] if 0 <= label < len(known) else str(label) for label in labels)

    def to_images(self, x: Array | torch.Tensor | None = None) -> Array:
        """Turn rows (those of the data set where `x` is None) into 8-bit pictures: see `Layout.to_images`."""
        return super().to_images(self.x if x is None else x)

    def subset(self, index: slice | Sequence[int] | Array) -> Dataset:
        """Keep the rows at `index`.

        A slice of a memory map stays a memory map; rows picked one by one are read into memory.

        Args:
            index: A slice, numbers of rows with any length, or one boolean per row with shape (N,).

        Raises:
            ValueError: If no row is left, or there is no such row.
        """
        rows = _index(index, len(self), self.name)
        return replace(self, x=self.x[rows], labels=None if self.labels is None else self.labels[rows])

    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split at random into round(fraction N) rows and the others, each in their old order.

        With labels the split is stratified: every label keeps its share to within one row, and the larger part has a
        row of every class.

        Args:
            fraction: Share of the first part, in (0, 1).
            seed: Seed of the shuffle.

        Raises:
            ValueError: If a part would be empty.
        """
        fraction = real(fraction, "fraction", "pass a share, such as 0.5")
        count = round(fraction * len(self)) if 0 < fraction < 1 else 0
        if not 0 < count < len(self):
            raise ValueError(
                f"{self.name}: fraction {fraction} of {len(self)} rows leaves an empty part: choose another"
            )
        first, second = split_rows(len(self), count, self.labels, seed)
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


def _names(classes: Any, name: str) -> tuple[str, ...]:
    """Names of classes, from any sequence of texts."""
    found: list[Any] = (
        list(classes) if is_a(classes, Sequence, np.ndarray) and not is_a(classes, str, bytes) else [None]
    )
    if not all(isinstance(each, str) for each in found):
        raise ValueError(f"{name} = {shown(classes)}: pass a list of texts, or None")
    return tuple(str(each) for each in found)


def _index(index: Any, rows: int, name: str) -> slice | Array:
    """What picks some of so many rows."""
    mend = f"{name}: index = {shown(index)}: pass a slice, numbers of rows below {rows}, or one boolean per row"
    try:
        if isinstance(index, slice):
            index.indices(rows)
            return index
        from molrmog.data.arrays import as_numbers

        found = np.asarray(as_numbers(index, "index"))
    except (TypeError, ValueError):
        raise ValueError(mend) from None
    if found.ndim == 1 and not len(found):
        return found.astype(np.int64)  # an empty list is one of floats; the Dataset refuses to have no rows
    ways = found.shape == (rows,) if found.dtype.kind == "b" else found.ndim == 1 and found.dtype.kind in "iu"
    if not ways or (found.dtype.kind != "b" and not (-rows <= int(found.min()) and int(found.max()) < rows)):
        raise ValueError(mend)
    return found if found.dtype.kind == "b" else found.astype(np.int64, copy=False)


def exact_precision(x: Array) -> Literal["float32", "float64"]:
    """The narrower of float32 and float64 that holds the values as they are; float64 for what neither does.

    Args:
        x: real numbers of any type and shape; a table of wide integers is read once.
    """
    if x.dtype.kind == "f":
        return "float32" if x.dtype.itemsize <= 4 else "float64"
    if x.dtype.itemsize <= 2 or x.size == 0:  # booleans and short integers
        return "float32"
    return "float32" if int(x.min()) >= -_WHOLE and int(x.max()) <= _WHOLE else "float64"


def split_rows(rows: int, count: int, labels: Array | None, seed: int) -> tuple[Array, Array]:
    """Pick `count` of the rows at random, in equal shares of every label, and return their indices and the others'.

    The rows are shuffled and sorted by label; of every stretch of that order the first part takes its share, to within
    one row. Where that leaves the larger part without a class, it gets a row of it for one of its commonest class.
    """
    order = numpy_generator(seed).permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    steps = np.arange(rows + 1) * count // rows
    first = steps[1:] > steps[:-1]
    if labels is not None:
        _keep_rare(labels[order], first if 2 * count >= rows else ~first, first)
    return np.sort(order[first]), np.sort(order[~first])


def _keep_rare(labels: Array, larger: Array, first: Array) -> None:
    """Swap rows in `first` (N,), a choice of rows sorted by label, until every class is among the `larger` (N,)."""
    classes, index = np.unique(labels, return_inverse=True)
    held = np.bincount(index[larger], minlength=len(classes))
    for lost in np.flatnonzero(held == 0):
        plenty = int(held.argmax())
        if held[plenty] < 2:
            return  # more classes than rows
        taken = np.flatnonzero((index == lost) & ~larger)[0]
        given = np.flatnonzero((index == plenty) & larger)[0]
        first[[taken, given]] = first[[given, taken]]
        larger[[taken, given]] = True, False
        held[lost], held[plenty] = 1, held[plenty] - 1


def chunks(rows: int, dim: int) -> Iterator[slice]:
    """Slices of so many rows as fit into memory beside a large table."""
    step = max(1, _CHUNK_VALUES // dim)
    return (slice(start, start + step) for start in range(0, rows, step))


def scaled(images: Array, scale: float, shift: float, rng: np.random.Generator | None) -> Array:
    """Turn integer levels with shape (N, C, H, W) into float32 rows, with dequantisation noise where `rng` is given."""
    x = np.empty((len(images), math.prod(images.shape[1:])), np.float32)
    for rows in chunks(*x.shape):
        chunk = x[rows]
        chunk[:] = images[rows].reshape(chunk.shape)
        if rng is not None:
            chunk += (rng.integers(_CELLS, size=chunk.shape, dtype=np.uint16) + np.float32(0.5)) / np.float32(_CELLS)
        chunk *= scale
        chunk += shift
    return x


def check_finite(name: str, x: Array, columns: Sequence[str] = ()) -> None:
    """Refuse rows with NaN or inf.

    Args:
        name: of the data.
        x: rows, with shape (N, D).
        columns: names of the coordinates, where they have some.

    Raises:
        ValueError: with the number of the first such row, and its column where that has a name.
    """
    for rows in chunks(*x.shape):
        finite = np.isfinite(x[rows])
        if not finite.all():
            first = int(np.argmin(finite.all(axis=1)))
            where = f"row {rows.start + first} holds NaN or inf"
            if not columns:
                raise ValueError(f"{name}: {where} (as {x.dtype}): drop or fill such rows first")
            bad = sorted({int(j) for part in chunks(*x.shape) for j in np.flatnonzero(~np.isfinite(x[part]).all(0))})
            names = list(dict.fromkeys(columns[j] for j in bad))
            raise ValueError(
                f"{name}: {where} in column {columns[int(np.argmin(finite[first]))]}: fill such values, leave out such "
                f"rows, or leave out the columns with drop={','.join(names) if len(names) <= 8 else listed(names, 8)}"
            )
