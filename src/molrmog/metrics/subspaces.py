"""How far fitted subspaces are from true ones: principal angles.

With orthonormal bases A (D, p) and B (D, q), q <= p, the angles theta_1 <= ... <= theta_q have as cosines the
singular values of A^T B and as sines those of B - A A^T B. The arc cosine loses half of the digits below 1e-8 radians
and the arc sine near 90 degrees; the arc tangent of both keeps them everywhere.

The subspaces of a law carry no order, so fitted and true ones are paired first: the assignment that minimises the
mean of sin^2 over the angles of each pair (one bad direction then spoils no pairing, as it would with the largest
angle).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from molrmog.arguments import is_a, shown
from molrmog.laws.base import Law
from molrmog.metrics._rows import Rows, as_array


@dataclass(frozen=True)
class SubspaceError:
    """Angles between paired subspaces, in degrees.

    Attributes:
        mean: mean over pairs of the largest principal angle.
        max: the largest angle of all pairs.
        angles: largest principal angle of each pair, with shape (P,), P the smaller number of subspaces.
        fitted: fitted subspace of each pair, with shape (P,).
        true: true subspace of each pair, with shape (P,).
    """

    mean: float
    max: float
    angles: np.ndarray
    fitted: np.ndarray
    true: np.ndarray


def principal_angles(a: Rows, b: Rows) -> np.ndarray:
    """Principal angles between the column spans of two matrices.

    Args:
        a: columns with shape (D, p), independent, not necessarily orthonormal.
        b: columns with shape (D, q).

    Returns:
        The min(p, q) angles in degrees, ascending, in [0, 90].

    Raises:
        ValueError: where D differs, a matrix has no columns or more columns than rows, or an entry is not finite.

    References:
        Björck and Golub 1973, "Numerical Methods for Computing Angles Between Linear Subspaces", section 3.

    Examples:
        >>> import numpy as np
        >>> principal_angles(np.eye(3)[:, :2], np.array([[1.0], [0.0], [1.0]]))
        array([45.])
    """
    wide, narrow = as_array(a, "a").astype(np.float64), as_array(b, "b").astype(np.float64)
    if len(wide) != len(narrow) or not all(0 < m.shape[1] <= len(m) for m in (wide, narrow)):
        raise ValueError(
            f"bases must have shapes (D, p) and (D, q) with 1 <= p, q <= D, got {wide.shape}, {narrow.shape}"
        )
    if wide.shape[1] < narrow.shape[1]:
        wide, narrow = narrow, wide
    qa, qb = np.linalg.qr(wide)[0], np.linalg.qr(narrow)[0]  # (D, p), (D, q)
    overlap = qa.T @ qb  # (p, q)
    cosines = np.linalg.svd(overlap, compute_uv=False)  # descending
    sines = np.linalg.svd(qb - qa @ overlap, compute_uv=False)[::-1]  # ascending
    return np.degrees(np.arctan2(sines, cosines))


def subspace_error(fitted: Law | Sequence[Rows], true: Law | Sequence[Rows]) -> SubspaceError:
    """Error of fitted subspaces against true ones.

    Where a pair differs in dimension the angles are those of the smaller one, so 0 means that it lies in the larger;
    where the numbers of subspaces differ, those left over are not compared.

    Args:
        fitted: a law, or its bases, each with shape (D, d_k).
        true: the law that made the data, or its bases, such as `[law.subspace(k).basis for k in range(K)]`.

    Returns:
        The largest angle of each pair, their mean and maximum, and who is paired with whom.

    Raises:
        ValueError: where D differs or there is no subspace to compare.
    """
    from scipy.optimize import linear_sum_assignment

    for name, side in (("fitted", fitted), ("true", true)):
        if not is_a(side, Law, Sequence) or is_a(side, str, bytes):
            raise ValueError(f"{name} = {shown(side)}: pass a law, or a list of bases with shape (D, d)")
    ours, theirs = (
        [side.subspace(k).basis for k in range(side.subspaces)] if isinstance(side, Law) else list(side)
        for side in (fitted, true)
    )
    if not ours or not theirs:
        raise ValueError("there is no subspace to compare: both laws need at least one basis")
    angles = [[principal_angles(a, b) for b in theirs] for a in ours]
    cost = np.array([[np.mean(np.sin(np.radians(pair)) ** 2) for pair in row] for row in angles])
    rows, columns = linear_sum_assignment(cost)
    largest = np.array([angles[i][j][-1] for i, j in zip(rows, columns, strict=True)])
    return SubspaceError(float(largest.mean()), float(largest.max()), largest, np.asarray(rows), np.asarray(columns))
