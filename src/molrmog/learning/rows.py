"""Rows of data, wherever they lie: a tensor, an array, a memory map larger than memory, or a Dataset.

Learning reads rows in chunks and never asks for all of them at once.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from molrmog.data.arrays import as_table
from molrmog.data.dataset import exact_precision
from molrmog.laws.axes import Axes
from molrmog.learning.units import Moments, Units

_CHUNK_NUMBERS = {"cpu": 2**23, "cuda": 2**26}
_TURNED_AT_ONCE = 2**28  # numbers, 1 GiB in float32
_VISIBLE = 1e-3  # rounding of so much of a column's spread is worth a word
_LEAST, _GREATEST = 1e-140, 1e140  # deviations that float64 can square


class Rows:
    """N rows of dimension D, read in chunks as tensors.

    Attributes:
        dim: dimension D.
        dtype: in which chunks are handed out, float32 or float64.
        exact: the narrower of the two that holds the rows as they are.
        is_turned: whether they are in the coordinates of axes, which are alike in their units.
        shows_gaps: whether NaN is handed out where values are missing; else what they were completed by.
        device: on which chunks are handed out.
    """

    def __init__(
        self,
        x: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        name: str = "x",
    ) -> None:
        """Wrap `x`.

        Args:
            x: (N, D) tensor, array, memory map, data frame or Dataset, see `molrmog.data.arrays`.
            dtype: float32 or float64; where not given, float32 if that holds every value of x exactly, as it does what
                is float32 already and whole numbers of up to 24 bits, else float64.
            device: where chunks go; where the data is, if not given.
            name: what a message calls the rows.

        Raises:
            ValueError: x is not a non-empty table of numbers.
        """
        self._source: Tensor | np.ndarray = as_table(x, name, missing=True)
        table = self._source
        self.dim = int(table.shape[1])
        self.device = torch.device(device or (table.device if isinstance(table, Tensor) else "cpu"))
        if isinstance(table, Tensor) and not table.is_floating_point():
            self._source = table = table.detach().cpu().numpy()  # torch lacks much for its unsigned types
        if isinstance(table, Tensor):
            self.exact = torch.float64 if table.dtype == torch.float64 else torch.float32
        else:
            self.exact = torch.float64 if exact_precision(table) == "float64" else torch.float32
        self.dtype = dtype or self.exact
        self._index: Tensor | None = None
        self._units: Units | None = None
        self._scale: Tensor | None = None
        self._axes: Axes | None = None
        self.is_turned = False
        self._is_standard = False
        self._moments: Moments | None = None
        self._gaps: Tensor | None = None
        self.shows_gaps = False

    def __len__(self) -> int:
        return len(self._source) if self._index is None else len(self._index)

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """Rows as a tensor with shape (M, D)."""
        part = self._read(at)
        part = part.to(self.device, self.dtype) if self._units is None else self._in_units(part).to(self.dtype)
        if self._scale is not None:
            part = part / self._scale.to(part)
        if self.shows_gaps:
            gaps = cast(Tensor, self._gaps)[at if self._index is None else self._index[at]]
            part = torch.where(gaps.to(part.device), torch.nan, part)
        return part if self._axes is None else self._axes.down(part)

    def _in_units(self, part: Tensor) -> Tensor:
        """(x - centre) / unit, before it is rounded to `dtype`: rows far from the origin keep their digits."""
        assert self._units is not None
        centre, unit = self._units.centre, self._units.unit
        part = part.to(self.device, self._wide)
        # One pass, and nothing but the sum is rounded: the unit is a power of two.
        return torch.add((centre / -unit).to(part), part, alpha=1 / unit) if bool(centre.any()) else part * (1 / unit)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.exact, self.dtype)

    def _read(self, at: slice | Tensor) -> Tensor:
        """Rows as the source holds them, whole numbers in `exact`, row after row in memory, with shape (M, D)."""
        if self._index is not None:
            at = self._index[at]
        if isinstance(self._source, Tensor):
            return self._source[at].detach().contiguous()
        part = self._source[at if isinstance(at, slice) else at.numpy()]
        if part.dtype.kind != "f" or part.dtype.itemsize > 8 or not part.dtype.isnative:
            part = part.astype(np.float64 if self.exact == torch.float64 else np.float32, order="C")
        elif not (part.flags.writeable and part.flags.aligned and part.flags.c_contiguous and min(part.strides) >= 0):
            part = np.array(part, order="C")
        return torch.from_numpy(part)

    def subset(self, index: Tensor) -> Rows:
        """The rows at `index` (M,), still unread."""
        index = index.cpu()
        part = copy.copy(self)
        part._index = index if self._index is None else self._index[index]
        part._moments = None
        return part

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, as (where, tensor) pairs."""
        return ((at, self[at]) for at in self._slices())

    def _slices(self) -> Iterator[slice]:
        size = max(64, _CHUNK_NUMBERS.get(self.device.type, 2**22) // self.dim)
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def gaps(self, name: str = "x") -> Tensor | None:
        """Which values are missing, NaN, with shape (N, D); None where none are.

        Args:
            name: of the rows, for the message.

        Raises:
            ValueError: a value is infinite.
        """
        try:
            self.moments(name)
            return None
        except ValueError:
            parts = [(chunk.isnan().cpu(), chunk.isinf().any(1).cpu()) for _, chunk in self.chunks()]
        missing, infinite = (torch.cat(each) for each in zip(*parts, strict=True))
        if bool(infinite.any()):
            raise ValueError(f"row {int(infinite.nonzero()[0])} of {name} holds infinity: drop such rows, or pass NaN")
        return missing

    @property
    def has_gaps(self) -> bool:
        """Whether values are missing, which rows were completed for."""
        return self._gaps is not None

    def completed(self, x: Tensor, gaps: Tensor) -> Rows:
        """Rows in place of these, completed where values are missing.

        Args:
            x: completed rows, with shape (N, D).
            gaps: where they were, with shape (N, D).
        """
        rows = Rows(x, dtype=self.dtype, device=self.device)
        rows._gaps = gaps
        return rows

    def with_gaps(self) -> Rows:
        """The same rows with NaN where values are missing; themselves where none are."""
        if self._gaps is None:
            return self
        rows = copy.copy(self)
        rows.shows_gaps = True
        return rows

    def without_gaps(self) -> Rows:
        """The same rows, completed, as if nothing had been missing."""
        rows = copy.copy(self)
        rows._gaps, rows.shows_gaps = None, False
        return rows

    def check_finite(self, name: str = "x") -> None:
        """Read every row once; raise ValueError at the first of `name` that holds NaN or infinity."""
        for at, chunk in self.chunks():
            bad = ~chunk.isfinite().all(1)
            if bool(bad.any()):
                row = at.start + int(bad.nonzero()[0])
                raise ValueError(f"row {row} of {name} holds NaN or infinity: drop or impute such rows")

    @torch.no_grad()
    def moments(self, name: str = "x") -> Moments:
        """Mean and spread of the columns, in float64, from one pass over the rows; they are kept.

        Args:
            name: of the rows, for the message.

        Raises:
            ValueError: a row holds NaN or infinity.
        """
        if self._moments is None:
            mean, square = self._sums(1.0)
            if not bool(square.isfinite().all()):
                self.check_finite(name)
            # Squares may have left the range of float64: again, then, with the greatest deviation near one.
            if not _LEAST < float(square.max()) < _GREATEST and (half := self._greatest_half()) > 0:
                scale = 2.0 ** min(max(-1 - math.frexp(half)[1], -1000), 1000)
                mean, square = (moment / scale for moment in self._sums(scale))
            self._moments = Moments(mean, square)
        return self._moments

    def deviation(self, weights: Tensor | None = None) -> Tensor:
        """Standard deviation of each column of weighted rows, in float64, with shape (D,).

        Args:
            weights: of the rows, with shape (N,); ones where not given.
        """
        if weights is None:
            return self.moments().deviation
        center, shares = self.moments().mean, weights.double() / weights.double().sum()
        first, second = torch.zeros_like(center), torch.zeros_like(center)
        for at in self._slices():
            off = self._doubled(at).sub_(center)
            share = shares[at].to(off)
            first += share @ off
            second += share @ off.square_()
        return (second - first.square()).clamp(min=0).sqrt()

    def _sums(self, scale: float) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) of the columns of the rows times a power of two."""
        near = self._doubled(slice(0, 1))[0]
        mean, square = torch.zeros_like(near), torch.zeros_like(near)
        for at in self._slices():
            # About a point among the rows, so that rows far from the origin keep their digits.
            off = self._doubled(at)
            off = off.mul_(scale).sub_(near * scale) if scale < 1 else off.sub_(near).mul_(scale)
            part = off.mean(0)
            squares = torch.linalg.vector_norm(off.sub_(part), dim=0).square()
            before, count = at.start, at.stop - at.start
            square += squares + (part - mean).square() * (before * count / (before + count))
            mean += (part - mean) * (count / (before + count))
        return mean + near * scale, (square / len(self)).sqrt()

    def _greatest_half(self) -> float:
        """Half of the greatest distance of an entry from that of the first row."""
        half = self._doubled(slice(0, 1))[0] / 2
        return max(float((self._doubled(at) / 2 - half).abs().max()) for at in self._slices())

    def _doubled(self, at: slice) -> Tensor:
        """Rows in float64 before they are rounded to `dtype`; a copy, with shape (M, D)."""
        part = self._read(at)
        part = part.to(self.device) if self._units is None else self._in_units(part)
        if self._scale is not None:
            part = part.double() / self._scale
        return part.to(torch.float64, copy=True) if self._axes is None else self._axes.down(part.double())

    def warn_of_rounding(self, least: float = 0.0) -> None:
        """Warn about columns that float32 would round visibly.

        Args:
            least: deviation, in data units; columns that vary by less are passed over.
        """
        if self.dtype == torch.float64 or self.exact == torch.float32:
            return
        mean, deviation = self.moments().mean, self.moments().deviation
        step = 0.5 * torch.finfo(self.dtype).eps * mean.abs()
        seen = (deviation > 0) & (step > _VISIBLE * deviation.clamp(min=least))
        if bool(seen.any()):
            worst = (step / deviation).where(seen, 0).argmax()
            warnings.warn(
                f"float32 rounds {int(seen.sum())} of {self.dim} columns, such as one with mean "
                f"{float(mean[worst]):.6g} and standard deviation {float(deviation[worst]):.3g}: use float64, or "
                "subtract the mean beforehand",
                stacklevel=3,
            )

    def inside(self, units: Units) -> Rows:
        """The same rows in other units: (x - centre) / unit."""
        part = copy.copy(self)
        part._units, part._is_standard, part._moments = units, True, None
        return part

    def divided(self, scale: Tensor) -> Rows:
        """The same rows with each column divided by a number, with shape (D,)."""
        part = copy.copy(self)
        part._scale, part._moments = scale.to(self.device), None
        return part

    def turned(self, axes: Axes) -> Rows:
        """The same rows in the coordinates of axes: at once where they fit into memory, else whenever they are read."""
        part = copy.copy(self)
        if self.has_gaps:
            raise ValueError("rows that lack values are fitted in their own coordinates: leave out axes and head")
        part._axes, part._moments = copy.deepcopy(axes).to(self.device, self.dtype), None
        part.is_turned = True
        if len(self) * self.dim > _TURNED_AT_ONCE:
            return part
        turned = Rows(torch.cat([chunk for _, chunk in part.chunks()]))
        turned._is_standard, turned.is_turned = self._is_standard, True
        return turned

    def as_standard(self, *, turned: bool = False) -> Rows:
        """The same rows, taken to be in units of their own, and as coordinates of axes where told."""
        part = copy.copy(self)
        part._is_standard, part.is_turned = True, self.is_turned or turned
        return part

    def standard(self, *, centred: bool = True) -> tuple[Rows, Units]:
        """The rows in units of their own, and these units; rows that are so already stay as they are.

        Args:
            centred: whether they may be moved to their mean, where that is far.

        Raises:
            ValueError: a row holds NaN or infinity.
        """
        if self._is_standard:
            return self, Units(torch.zeros(self.dim, dtype=torch.float64), 1.0)
        moments = self.moments()
        units = moments.units(self._wide, centred=centred)
        rows = self.inside(units)
        rows._moments = Moments((moments.mean - units.centre) / units.unit, moments.deviation / units.unit)
        return rows, units
