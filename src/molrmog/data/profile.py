"""What rows look like, column by column: ranges, constant columns, copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from molrmog.data.dataset import Array, Dataset, chunks


@dataclass(frozen=True)
class Profile:
    """What rows look like.

    Attributes:
        low: least value of each column, with shape (D,).
        high: greatest value of each column, with shape (D,).
        constant: columns that hold one value.
        copies: pairs (first, second) of columns that hold the same values, constant ones left out.
        repeated: rows that are copies of an earlier one.
    """

    low: Array
    high: Array
    constant: list[int]
    copies: list[tuple[int, int]]
    repeated: int


def profile(data: Dataset) -> Profile:
    """Look at every row, a part at a time."""
    x = data.x
    rng = np.random.default_rng(0)
    across, along = rng.normal(size=data.dim), rng.normal(size=len(x))
    low, high = (np.full(data.dim, value) for value in (np.inf, -np.inf))
    of_rows, of_columns = np.empty(len(x)), np.zeros(data.dim)
    for rows in chunks(*x.shape):
        part = np.asarray(x[rows], dtype=np.float64)
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
        with np.errstate(over="ignore", invalid="ignore"):  # sums that tell rows and columns apart
            of_rows[rows] = (part * across).sum(1)  # a product of matrices may differ in equal rows
            of_columns += (along[rows, None] * part).sum(0)
    seen: dict[float, int] = {}
    copies: list[tuple[int, int]] = []
    for j in np.flatnonzero(low < high):
        first = seen.setdefault(float(of_columns[j]), int(j))
        if first != j and np.array_equal(x[:, first], x[:, j]):
            copies.append((first, int(j)))
    repeated = len(x) - len(np.unique(of_rows))
    return Profile(low, high, [int(j) for j in np.flatnonzero(low == high)], copies, repeated)
