"""Rows of data, wherever they lie: a tensor, an array, a memory map larger than memory, or a Dataset.

Learning reads rows in chunks and never asks for all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHUNK_NUMBERS = {"cpu": 2**23, "cuda": 2**26}


class Rows:
    """N rows of dimension D, read in chunks as tensors.

    Attributes:
        dim: dimension D.
        dtype: in which chunks are handed out, float32 or float64.
        device: on which chunks are handed out.
    """

    def __init__(
        self,
        x: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        index: Tensor | None = None,
    ) -> None:
        """Wrap `x`.

        Args:
            x: (N, D) tensor, array, memory map, or anything with such an attribute `x` (a Dataset).
            dtype: float32 or float64; that of the data where not given, float32 for anything else.
            device: where chunks go; where the data is, if not given.
            index: keep only these rows, in this order, with shape (M,).

        Raises:
            ValueError: x is not a non-empty table of numbers.
        """
        source = x if isinstance(x, Tensor | np.ndarray) else getattr(x, "x", x)
        self._source: Tensor | np.ndarray = source if isinstance(source, Tensor) else np.asanyarray(source)
        if self._source.ndim != 2 or 0 in self._source.shape:
            raise ValueError(f"x has shape {tuple(self._source.shape)}: pass at least one row and column, (N, D)")
        table = self._source
        if table.is_complex() if isinstance(table, Tensor) else table.dtype.kind not in "fiub":
            raise ValueError(f"x holds {self._source.dtype} values: pass numbers")
        self.dim = int(self._source.shape[1])
        wide = self._source.dtype in (torch.float64, np.dtype(np.float64))
        self.dtype = dtype or (torch.float64 if wide else torch.float32)
        self.device = torch.device(device or (self._source.device if isinstance(self._source, Tensor) else "cpu"))
        self._index = index

    def __len__(self) -> int:
        return len(self._source) if self._index is None else len(self._index)

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """Rows as a tensor with shape (M, D)."""
        if self._index is not None:
            at = self._index[at]
        if isinstance(self._source, Tensor):
            return self._source[at].detach().to(self.device, self.dtype)
        part = self._source[at if isinstance(at, slice) else at.numpy()]
        if part.dtype.kind == "f" and (part.dtype.itemsize > 8 or not part.dtype.isnative):
            part = part.astype(np.float64)
        elif not part.flags.writeable or not part.flags.aligned or min(part.strides, default=1) < 0:
            part = np.array(part)
        return torch.from_numpy(part).to(self.device, self.dtype)

    def subset(self, index: Tensor) -> Rows:
        """The rows at `index` (M,), still unread."""
        index = index.cpu()
        if self._index is not None:
            index = self._index[index]
        return Rows(self._source, dtype=self.dtype, device=self.device, index=index)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, as (where, tensor) pairs."""
        size = max(64, _CHUNK_NUMBERS.get(self.device.type, 2**22) // self.dim)
        for start in range(0, len(self), size):
            at = slice(start, min(start + size, len(self)))
            yield at, self[at]

    def check_finite(self, name: str = "x") -> None:
        """Read every row once; raise ValueError at the first of `name` that holds NaN or infinity."""
        for at, chunk in self.chunks():
            bad = ~chunk.isfinite().all(1)
            if bool(bad.any()):
                row = at.start + int(bad.nonzero()[0])
                raise ValueError(f"row {row} of {name} holds NaN or infinity: drop or impute such rows")
