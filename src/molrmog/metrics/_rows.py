"""Rows as the metrics take them: (N, D), finite, from an array, a tensor or a memory map."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from molrmog.data.arrays import as_numbers

Rows = Tensor | np.ndarray
_GREATEST = 1e150


def as_array(x: Rows, name: str = "x", dim: int | None = None, least: int = 1) -> np.ndarray:
    """Return rows as a floating-point array with shape (N, D).

    Args:
        x: rows with shape (N, D), a tensor on any device, an array or a memory map.
        name: what the rows are called in error messages.
        dim: the number of columns they must have; None takes any.
        least: the fewest rows that make sense.

    Returns:
        The rows with shape (N, D), float32 or float64, not copied where they are so already.

    Raises:
        ValueError: where the shape is wrong, rows are too few or an entry is NaN, infinite or beyond 1e150.
    """
    x = as_numbers(x, name)
    if isinstance(x, Tensor):
        x = (x if x.dtype == torch.float64 else x.float()).detach().cpu().numpy()
    array = np.asarray(x)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (N, D), got {array.shape}: flatten each row first")
    if dim is not None and array.shape[1] != dim:
        raise ValueError(f"{name} has {array.shape[1]} columns where {dim} are needed")
    if len(array) < least:
        raise ValueError(f"{name} has {len(array)} rows where at least {least} are needed")
    if array.dtype.name not in ("float32", "float64") or not array.dtype.isnative:
        with np.errstate(over="ignore"):  # of long doubles: what overflows is refused below
            array = array.astype(np.float64)
    if min(array.strides, default=0) < 0 or not array.flags.aligned:  # which torch cannot take
        array = np.array(array, order="C")
    # Both are NaN where an entry is, and need no mask as large as the data.
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not math.isfinite(high - low):
        raise ValueError(f"{name} holds NaN or infinite entries: drop or impute those rows first")
    if max(-low, high) > _GREATEST:
        raise ValueError(f"{name} holds entries beyond {_GREATEST:g}, whose squares are no numbers: rescale the rows")
    return array


def blocks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `rows` rows in order."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def placement(model: object) -> tuple[torch.dtype, torch.device]:
    """Floating type and device of a model's tensors; float32 on the CPU where it has none."""
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype, tensor.device
    return torch.float32, torch.device("cpu")
