"""Exact nearest neighbours, in blocks of rows.

scikit-learn finds them by ||q||^2 - 2 q.x + ||x||^2 in float64, which is exact but for distances near 0; the
distances of the rows found are then taken from their differences, so that a copied row is at distance 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrmog.arguments import whole
from molrmog.metrics._rows import Rows, as_array, blocks


def nearest(queries: Rows, reference: Rows, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of the reference to every query.

    Args:
        queries: rows with shape (N, D).
        reference: rows with shape (M, D), M >= k.
        k: how many neighbours.

    Returns:
        Euclidean distances with shape (N, k), float64, ascending, and their row numbers with shape (N, k), int64.

    Raises:
        ValueError: where D differs, the reference has fewer than k rows or an entry is NaN or infinite.
    """
    from sklearn.neighbors import NearestNeighbors

    k = whole(k, "k", 1)
    reference = as_array(reference, "reference", least=k)
    queries = as_array(queries, "queries", dim=reference.shape[1])
    dtype = np.float32 if reference.dtype == queries.dtype == np.float32 else np.float64
    search: Any = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference.astype(dtype, copy=False))
    index: np.ndarray = search.kneighbors(queries.astype(dtype, copy=False), return_distance=False)
    distance = np.empty(index.shape)
    for rows in blocks(len(queries), 1024):
        for j in range(k):
            difference = queries[rows].astype(np.float64) - reference[index[rows, j]]
            distance[rows, j] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    order = np.argsort(distance, axis=1, kind="stable")
    return np.take_along_axis(distance, order, 1), np.take_along_axis(index, order, 1)


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Distance of every row to its k-th nearest other row, with shape (N,), for rows with shape (N, D)."""
    # The row itself is at distance 0, so the k-th other row comes (k+1)-th, also among copies.
    return torch.from_numpy(nearest(x, x, k + 1)[0][:, k])
