"""Where a fit of unequal noise starts: in the columns as they are, or in units in which their noise is alike.

Principal components of columns whose noise differs are the noisiest columns, and EM does not soon leave a subspace that
holds a column of its own. In units of what the other columns do not tell of each one,

    unit_j^2 = s_j^2 / (R^-1)_jj,      R = (1 - a) corr(x) + a I,   a = max(10^-3, D / (N + D)),

every column counts by what it shares with others. Pictures, whose columns are alike, often start better as they are.
So both are tried, a few passes of EM over some rows, and the likelier start is taken.

References:
    Jöreskog, "Some contributions to maximum likelihood factor analysis", 1967 (the units).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.em import em_steps
from molrmog.learning.rows import Rows
from molrmog.seeds import torch_generator

_ROWS = 16_384  # from which units are found
_TRIED, _PASSES = 4_096, 2  # rows and passes of EM with which starts are tried
_WIDEST = 4_096  # dimensions in which a matrix is inverted
_SHRINKAGE = 1e-3


@torch.no_grad()
def unexplained(rows: Rows, weights: Tensor | None = None, seed: int = 0) -> Tensor:
    """Standard deviation of what the other columns do not tell of each column, in float64, with shape (D,).

    Beyond a few thousand columns it is that of the columns themselves.

    Args:
        rows: the data.
        weights: of the rows, with shape (N,).
        seed: of the rows that are looked at.
    """
    deviation = rows.deviation(weights)
    D = rows.dim
    if D > _WIDEST:
        return deviation
    at = _some(rows, _ROWS, seed)
    some, shares = rows.subset(at), torch.ones(len(at)) if weights is None else weights[at]
    center = rows.moments().mean
    unit = torch.where(deviation > 0, deviation, 1.0)
    first = torch.zeros(D, dtype=torch.float64, device=rows.device)
    second = torch.zeros(D, D, dtype=torch.float64, device=rows.device)
    for where, chunk in some.chunks():
        u = (chunk - center.to(chunk)) / unit.to(chunk)
        share = shares[where].to(u)
        first += share @ u
        second += (share[:, None] * u).T @ u
    total = float(shares.sum())
    covariance = second / total - (first / total)[:, None] * (first / total)
    a = max(_SHRINKAGE, D / (max(len(at), total) + D))
    shrunk = (1 - a) * covariance + a * torch.eye(D).to(covariance)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(shrunk))
    return deviation * inverse.diagonal().rsqrt().clamp(max=1.0)


def starting_seeds(seed: int, n_init: int) -> list[int]:
    """Seeds of several starts of a fit, far enough apart for what each of them tries."""
    return [seed + 100 * i for i in range(n_init)]


def likelier(
    laws: Sequence[MoLRMoG],
    rows: Rows,
    labels: Tensor | None,
    weights: Tensor | None,
    seed: int = 0,
    **options: Any,
) -> MoLRMoG:
    """The law from which a few passes of EM over some rows lead to the greater objective.

    Args:
        laws: to choose from.
        rows: the data.
        labels: the subspace of each row, with shape (N,).
        weights: of the rows, with shape (N,).
        seed: of the rows that are looked at.
        options: of EM.
    """
    if len(laws) == 1:
        return laws[0]
    at = _some(rows, _TRIED, seed)
    some, y, w = rows.subset(at), *(None if each is None else each[at] for each in (labels, weights))

    def reached(law: MoLRMoG) -> float:
        steps = em_steps(law, some, weights=w, labels=y, **options)
        return max(state.penalised for state in itertools.islice(steps, _PASSES + 1))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EM dropped")
        return max(laws, key=reached)


def _some(rows: Rows, most: int, seed: int) -> Tensor:
    """Which rows are looked at, in order."""
    return torch.randperm(len(rows), generator=torch_generator(seed))[:most].sort().values
