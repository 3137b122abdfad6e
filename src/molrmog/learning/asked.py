"""What is asked of a fit: rows with their labels and weights, axes, and numbers per subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from molrmog.arguments import floating, one_or_several, real, shown, whole
from molrmog.checks import check_orthonormal
from molrmog.data.dataset import Dataset
from molrmog.data.labels import classes_of
from molrmog.devices import device_of
from molrmog.laws.axes import Axes
from molrmog.laws.base import as_tensor
from molrmog.learning.rows import Rows


@dataclass
class Read:
    """Rows, and what was said about them.

    Attributes:
        rows: with a weight above zero.
        labels: subspace of each row, with shape (N,), where classes were given.
        weights: with shape (N,), where given.
        held_out: rows to judge by, where given.
        classes: how many, where given.
    """

    rows: Rows
    labels: Tensor | None
    weights: Tensor | None
    held_out: Rows | None
    classes: int | None


def read(
    x: Any,
    labels: Any = None,
    weights: Any = None,
    validation: Any = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Read:
    """Rows as `fit` takes them, none of which lack values; arguments and errors as there."""
    rows = rows_of(x, dtype=dtype, device=device)
    rows.moments()
    held_out = (
        validation
        if validation is None or isinstance(validation, Rows)
        else Rows(validation, dtype=rows.dtype, device=rows.device, name="validation")
    )
    if held_out is not None:
        if held_out.dim != rows.dim:
            raise ValueError(f"validation has {held_out.dim} columns, but x has {rows.dim}: pass rows of the same kind")
        held_out.moments("validation")
    w = None if weights is None else _row_weights(weights, len(rows))
    y, classes = _classes(labels, len(rows))
    if w is not None and not bool(w.all()):
        kept = w.nonzero()[:, 0]
        rows, w, y = rows.subset(kept), w[kept], None if y is None else y[kept]
    if y is not None and w is not None and bool((torch.bincount(y, w) == 0).any()):
        raise ValueError("the rows of a class all have weight 0: leave that class out, or weigh it")
    return Read(rows, y, w, held_out, classes)


def rows_of(x: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Rows:
    """Rows as `fit` takes them; rows that were read are left as they are."""
    dtype = None if dtype is None else floating(dtype)
    return x if isinstance(x, Rows) else Rows(x, dtype=dtype, device=device_of(device))


def axes_asked(x: Any, axes: Any, dim: int) -> Axes | Literal["pca"] | None:
    """The axes that were asked for; principal ones are still to be found.

    Raises:
        ValueError: they are neither named nor orthonormal columns.
    """
    if axes is None or (isinstance(axes, str) and axes == "pca"):
        return axes
    if isinstance(axes, str) and axes == "dct":
        shape = x.shape if isinstance(x, Dataset) and x.is_image else (dim,)
        return Axes.dct(shape)
    if isinstance(axes, str):
        raise ValueError(f"unknown axes {shown(axes)}: choose pca or dct, or pass orthonormal columns ({dim}, {dim})")
    matrix = as_tensor(axes, "axes")
    if matrix.shape != (dim, dim):
        raise ValueError(f"axes have shape {tuple(matrix.shape)}: pass orthonormal columns with shape ({dim}, {dim})")
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    check_orthonormal("axes", matrix[None], [dim])
    return Axes.of(matrix)


def _classes(labels: Any, rows: int) -> tuple[Tensor | None, int | None]:
    """Labels as 0 to K - 1, and K."""
    if labels is None:
        return None, None
    index, classes = classes_of(labels, rows)
    return torch.from_numpy(index), len(classes)


def _row_weights(weights: Any, rows: int) -> Tensor:
    w = as_tensor(weights, "weights").to("cpu", torch.float64)
    if w.shape != (rows,):
        raise ValueError(f"weights have shape {tuple(w.shape)} for {rows} rows: pass one weight per row, ({rows},)")
    if not bool((w.isfinite() & (w >= 0)).all()) or not float(w.sum()) > 0:
        raise ValueError("weights must be finite, >= 0 and not all zero")
    return w


def per_subspace(name: str, value: int | Sequence[int], subspaces: int) -> list[int]:
    """A number for each subspace.

    Raises:
        ValueError: there are more or fewer, or numbers below 1.
    """
    given = one_or_several(value, name)
    values = [given] * subspaces if isinstance(given, int) else list(given)
    if len(values) != subspaces:
        raise ValueError(f"{name} = {shown(value)} for {subspaces} subspaces: pass one number, or one per subspace")
    if min(values) < 1:
        raise ValueError(f"{name} = {shown(value)}: pass numbers >= 1")
    return values


def check_sizes(rows: Rows, latent_dims: Sequence[int], modes: Sequence[int]) -> None:
    """Refuse shapes that rows are too narrow or too few for.

    Raises:
        ValueError: they are.
    """
    if max(latent_dims) > rows.dim:
        raise ValueError(
            f"latent_dim = {max(latent_dims)}, but the data have {rows.dim} columns: pass at most {rows.dim}"
        )
    if len(rows) < sum(modes):
        raise ValueError(
            f"{len(rows)} rows are fewer than the {sum(modes)} modes asked for: lower modes or subspaces, or add rows"
        )


def check_classes(labels: Tensor, modes: Sequence[int]) -> None:
    """Refuse more modes of a class than it has rows.

    Raises:
        ValueError: there are.
    """
    for k, (count, n) in enumerate(zip(torch.bincount(labels, minlength=len(modes)).tolist(), modes, strict=True)):
        if count < n:
            raise ValueError(f"class {k} has {count} rows, fewer than its {n} modes: lower modes")


def at_least_zero(rank: Any, prior_rows: Any, noise_floor: Any) -> tuple[int | None, float | None, float | None]:
    """Numbers that may be left out, as they were given.

    Raises:
        ValueError: one of them is no number, or is below zero.
    """
    numbers = {
        "rank": None if rank is None else whole(rank, "rank"),
        "prior_rows": None if prior_rows is None else real(prior_rows, "prior_rows"),
        "noise_floor": None if noise_floor is None else real(noise_floor, "noise_floor"),
    }
    for name, value in numbers.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} = {value}: pass a number >= 0")
    return numbers["rank"], numbers["prior_rows"], numbers["noise_floor"]  # pyright: ignore[reportReturnType]


def check_count(subspaces: int) -> None:
    """Refuse a law of no subspaces.

    Raises:
        ValueError: there are none.
    """
    if subspaces < 1:
        raise ValueError(f"subspaces = {subspaces}: pass 1 or more")


def is_auto(value: Any) -> bool:
    """Whether a number is to be chosen."""
    return isinstance(value, str) and value == "auto"
