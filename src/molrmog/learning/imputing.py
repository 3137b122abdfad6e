"""A law to fill in missing values by: chosen by the values that it gets right, not by density.

Some of the values that were observed are hidden, laws are fitted to the rest, and that of which the conditional means
are nearest to the hidden values, in deviations of their columns, is fitted to all of them. Beside what `fit` chooses
stand Gaussians of few dimensions: density asks for the shape of every column, a mean does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit
from molrmog.seeds import torch_generator

_HIDDEN = 0.15  # of the observed values
_LEFT = 4  # values of a column that are not hidden, at least
_DIMENSIONS = (1, 2, 4, 8, 16, 32)  # of the Gaussians, as many as rows have columns and an eighth as many as rows
_ROWS_PER_DIMENSION = 8


def fit_to_impute(x: Tensor, *, seed: int = 0, **options: Any) -> MoLRMoG:
    """Fit a law whose conditional means are near to values that it has not seen.

    Args:
        x: rows, with shape (N, D), NaN where a value is missing.
        seed: of everything random.
        **options: of `molrmog.fit`; where they give numbers, these are kept and nothing is chosen by hidden values.

    Raises:
        ValueError: as `fit` does.
    """
    if options or x.shape[1] < 2 or len(x) <= 2 * _LEFT:
        return cast(MoLRMoG, fit(x, seed=seed, **options))
    hidden = _hidden(x, torch_generator(seed))
    seen = torch.where(hidden, torch.nan, x)
    chosen = cast(MoLRMoG, fit(seen, seed=seed))
    tried: list[tuple[MoLRMoG, dict[str, Any]]] = [(chosen, {"selection": chosen.fit_summary_})]
    for d in _dimensions(x.shape):
        shape: dict[str, Any] = {"subspaces": 1, "latent_dim": d, "modes": 1, "noise": "diagonal"}
        tried.append((cast(MoLRMoG, fit(seen, seed=seed, **shape)), shape))
    errors = [_error(law, seen, x, hidden) for law, _ in tried]
    return cast(MoLRMoG, fit(x, seed=seed, **tried[errors.index(min(errors))][1]))


def _dimensions(shape: Sequence[int]) -> list[int]:
    N, D = shape
    most = max(1, min(D - 1, N // _ROWS_PER_DIMENSION))
    return [d for d in _DIMENSIONS if d < most] + ([most] if most <= _DIMENSIONS[-1] else [])


def _hidden(x: Tensor, generator: torch.Generator) -> Tensor:
    """Which of the observed values are hidden, with shape (N, D)."""
    order = torch.rand(x.shape, generator=generator).masked_fill(x.isnan(), 1.0)
    kept = (order.argsort(0).argsort(0) < (~x.isnan()).sum(0) - _LEFT) & ~x.isnan()
    return (order < _HIDDEN) & kept


def _error(law: MoLRMoG, seen: Tensor, x: Tensor, hidden: Tensor) -> float:
    """Mean square distance of conditional means from hidden values, in deviations of their columns."""
    known = ~x.isnan()
    mean = torch.where(known, x, 0.0).double().sum(0) / known.sum(0)
    variance = torch.where(known, x.double() - mean, 0.0).square().sum(0) / known.sum(0)
    worth = torch.where(variance > 0, 1 / variance, 0.0)
    return float(((law.impute(seen) - x).double().square() * worth)[hidden].mean())
