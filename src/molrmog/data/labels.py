"""Labels as classes: the one place where they are judged, for files, fits, networks and the estimator."""

# The labels may be of any library.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import numpy as np

from molrmog.data.dataset import Array


def as_labels(labels: Any, rows: int | None = None, name: str = "labels") -> Array:
    """Labels as an array with shape (N,) of whole numbers, booleans or strings, none of them missing.

    Args:
        labels: one class a row: a tensor, an array, a list, a column of a data frame.
        rows: how many there must be; any number where None.
        name: what a message calls them.

    Raises:
        ValueError: one is missing, they are real numbers or mixed, or there are too few or too many.
    """
    if hasattr(labels, "is_sparse") and hasattr(labels, "detach"):
        if labels.is_meta or labels.is_sparse:
            raise ValueError(f"{name} are a tensor without plain numbers: pass a dense one, one label per row")
        labels = labels.detach().cpu()
    if isinstance(labels, np.ma.MaskedArray):
        if count := int(np.ma.count_masked(labels)):
            raise ValueError(_missing(name, count, labels.size, int(np.argmax(np.ma.getmaskarray(labels).ravel()))))
        labels = labels.data
    try:
        y = np.asarray(labels)
    except (ValueError, TypeError):
        raise ValueError(f"{name} are no list of classes: pass one label per row") from None
    if y.shape != (len(y) if y.ndim else -1,) or (rows is not None and len(y) != rows):
        wanted = f" for {rows} rows: pass one label per row, ({rows},)" if rows is not None else ": pass one per row"
        raise ValueError(f"{name} have shape {y.shape}{wanted}")
    if y.dtype.kind == "O" or y.dtype.kind in "mM" or y.dtype.kind == "T":
        y = _of_objects(y, name)
    if y.dtype.kind == "f":
        gone = np.isnan(y)
        if gone.any():
            raise ValueError(_missing(name, int(gone.sum()), len(y), int(np.argmax(gone))))
        whole = np.isfinite(y) & (y == np.rint(y)) & (np.abs(y.astype(np.float64)) < 2**63)
        if not whole.all():
            worst = int(np.argmin(whole))
            raise ValueError(f"{name} must be integers or strings, and row {worst} has {y[worst]:.6g}")
        return y.astype(np.int64)
    if y.dtype.kind not in "iubUS":
        raise ValueError(f"{name} must be integers or strings, got {y.dtype}")
    if y.dtype.kind == "u" and y.dtype.itemsize == 8 and len(y) and int(y.max()) >= 2**63:
        raise ValueError(f"{name} must be below 2^63, and one is {int(y.max())}")
    return y


def classes_of(labels: Any, rows: int | None = None, name: str = "labels") -> tuple[Array, Array]:
    """The class of every row, and the classes in sorted order; arguments and errors as in :func:`as_labels`.

    Returns:
        Indices 0 to K - 1 with shape (N,), and the labels that they stand for, with shape (K,).
    """
    classes, index = np.unique(as_labels(labels, rows, name), return_inverse=True)
    return index.astype(np.int64).reshape(-1), classes


def _of_objects(y: Array, name: str) -> Array:
    """Python objects as whole numbers or strings."""
    gone = np.array([_is_missing(each) for each in y], bool)
    if gone.any():
        raise ValueError(_missing(name, int(gone.sum()), len(y), int(np.argmax(gone))))
    if all(isinstance(each, str) for each in y):
        return y.astype(str)
    if all(isinstance(each, bool | np.bool_) for each in y):
        return y.astype(bool)
    if all(isinstance(each, int | float | np.integer | np.floating | bool | np.bool_) for each in y):
        floats = y.astype(np.float64)
        return y.astype(np.int64) if all(isinstance(e, int | np.integer) and abs(e) < 2**63 for e in y) else floats
    kinds = sorted({type(each).__name__ for each in y})
    raise ValueError(f"{name} must be integers or strings, got {', '.join(kinds[:4])}")


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT and the missing value of pandas, which is not even itself."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _missing(name: str, count: int, rows: int, first: int) -> str:
    verb = "is" if count == 1 else "are"
    return f"{name}: {count} of {rows} {verb} missing, the first in row {first}: fill them, or leave such rows out"
