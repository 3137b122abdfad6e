"""Anything array-like as rows: the one place where what a caller passes becomes a table of numbers.

| what is passed                                     | what becomes of it                                             |
| -------------------------------------------------- | -------------------------------------------------------------- |
| a tensor, an array, a memory map                   | as it is                                                       |
| a data frame (pandas, polars, Arrow)               | its columns, all of them; what holds no numbers is refused     |
| a list of rows, a masked array                     | an array                                                       |
| a Dataset, samples                                 | their rows                                                     |
| masked and missing values, None                    | NaN where they may be missing; else refused, in one line       |
| sparse matrices, text, objects                     | refused, in one line                                           |
"""

# Tables may be of any library.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from molrmog.data.columns import ROUNDED, are_rounded, judge
from molrmog.data.dataset import Array, Dataset

if TYPE_CHECKING:
    import torch


def as_table(x: Any, name: str = "x", *, missing: bool = False) -> Array | torch.Tensor:
    """Rows of real numbers with shape (N, D), as a tensor where they are one, else as an array.

    Args:
        x: see the module.
        name: what a message calls it.
        missing: whether values may be masked, missing or None, and become NaN.

    Raises:
        ValueError: x is no table of at least one row and one column of real numbers.
    """
    table = as_numbers(x, name, missing=missing)
    if not is_frame(x) and str(table.dtype).endswith("int64"):
        whole: Any = table
        if are_rounded(np.asarray(whole.cpu() if hasattr(whole, "cpu") else whole)):
            warnings.warn(f"{name}: {ROUNDED}", stacklevel=3)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"{name} has shape {tuple(table.shape)}: pass at least one row and column, (N, D)")
    return table


def as_numbers(x: Any, name: str = "x", *, missing: bool = False) -> Array | torch.Tensor:
    """Real numbers of any shape, as a tensor where they are one, else as an array; see :func:`as_table`.

    Raises:
        ValueError: x holds something else.
    """
    if isinstance(x, np.ndarray) and type(x) in (np.ndarray, np.memmap):
        return x if x.dtype.kind in "fiub" else _of_objects(x, name, missing=missing)
    if isinstance(x, Dataset):
        return x.x
    if hasattr(x, "is_sparse") and hasattr(x, "detach"):
        return _tensor(x, name)
    if isinstance(x, str | bytes | os.PathLike):
        raise ValueError(f"{name} is {_shown(x)}: pass rows of numbers; molrmog.load_data reads a file or a folder")
    if type(x).__module__.startswith("scipy.sparse"):
        raise ValueError(f"{name} is sparse: pass x.toarray()")
    if is_frame(x):
        found = judge(name, as_arrow(x, name), is_file=False, missing=missing)
        assert found.values is not None
        if found.account.notes:
            warnings.warn(f"{name}: {'; '.join(found.account.notes)}", stacklevel=3)
        return found.values
    if isinstance(x, np.ma.MaskedArray):
        count = int(np.ma.count_masked(x))
        if count and not missing:
            raise ValueError(f"{name} has {count} masked values: fill them with x.filled(...), or leave such rows out")
        whole = np.asarray(as_numbers(np.asarray(x.data), name))
        if count:
            whole = whole if whole.dtype.kind == "f" else whole.astype(np.float64)
            whole = np.where(np.ma.getmaskarray(x), whole.dtype.type(np.nan), whole)
        return whole
    rows = getattr(x, "x", None)
    if not isinstance(x, np.ndarray | list | tuple) and (isinstance(rows, np.ndarray) or hasattr(rows, "is_sparse")):
        return as_numbers(rows, name, missing=missing)
    try:
        array = np.asarray(x)
    except Exception:  # whatever it is, it is no array
        raise ValueError(f"{name} is {_shown(x)}: pass rows of numbers, (N, D)") from None
    return array if array.dtype.kind in "fiub" else _of_objects(array, name, missing=missing)


def is_frame(x: Any) -> bool:
    """Whether something is a data frame: of pandas, polars, Arrow, or whatever exports its columns as these do."""
    if isinstance(x, np.ndarray) or hasattr(x, "detach"):
        return False
    named = hasattr(x, "columns") and hasattr(x, "dtypes") and hasattr(x, "shape")
    is_column = hasattr(x, "name") or hasattr(x, "chunks")  # of polars, of Arrow
    return named or (hasattr(x, "__arrow_c_stream__") and not is_column)


def as_arrow(x: Any, name: str = "x") -> Any:
    """A data frame as an Arrow table, without its index.

    Raises:
        Refused: a column cannot be one of a table.
    """
    import pyarrow as pa

    if isinstance(x, pa.Table | pa.RecordBatch):
        return pa.table(x)
    if not hasattr(x, "iloc"):
        return pa.table(x)
    columns: list[Any] = []
    for i, own in enumerate(x.columns):
        values = x.iloc[:, i]
        if getattr(getattr(values, "dtype", None), "name", "").startswith("Sparse"):
            raise ValueError(f"{name} is sparse in column {own}: pass x.sparse.to_dense()")
        try:
            columns.append(pa.array(values, from_pandas=True))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            kinds = sorted({type(each).__name__ for each in values.head(1000)})
            raise ValueError(
                f"{name}: column {own} holds {', '.join(kinds[:4])} objects, and no numbers: leave it out"
            ) from None
    return pa.Table.from_arrays(columns, names=[str(own) for own in x.columns])


def _tensor(x: Any, name: str) -> torch.Tensor:
    import torch

    if x.is_nested:
        raise ValueError(f"{name} is a nested tensor, of rows that may differ in length: pass x.to_padded_tensor(...)")
    if x.layout != torch.strided:
        raise ValueError(f"{name} is sparse: pass x.to_dense()")
    if x.is_complex() or x.is_quantized:
        raise ValueError(f"{name} holds {x.dtype} values: pass numbers, real ones")
    if x.device.type == "meta":
        raise ValueError(f"{name} is a tensor without numbers, on the device meta: pass one that holds some")
    return x.detach().resolve_neg()


def _of_objects(array: Array, name: str, *, missing: bool) -> Array:
    """Python numbers in an array of objects as float64; everything else is refused."""
    if array.dtype.kind == "c":
        raise ValueError(f"{name} holds {array.dtype} values: pass numbers, real ones")
    if array.dtype.names:
        raise ValueError(f"{name} has named fields, {', '.join(array.dtype.names[:5])}: pass columns of one type")
    if array.dtype.kind == "O":
        odd = next((each for each in array.ravel() if not _is_number(each)), None)
        if odd is None and array.size:
            known = [None if each is None or type(each).__name__ == "NAType" else each for each in array.ravel()]
            if (gone := known.count(None)) and not missing:
                raise ValueError(f"{name} lacks {gone} of {array.size} values: fill them, or leave such rows out")
            return np.array([np.nan if each is None else each for each in known], np.float64).reshape(array.shape)
        raise ValueError(f"{name} holds Python objects such as {_shown(odd)}: pass numbers")
    raise ValueError(f"{name} holds {array.dtype} values: pass numbers")


def _is_number(value: Any) -> bool:
    """Whether an object is a real number, or a missing one."""
    if value is None or type(value).__name__ in ("NAType", "Decimal", "Fraction"):
        return True
    return isinstance(value, int | float | np.integer | np.floating | np.bool_)


def _shown(x: Any) -> str:
    text = " ".join(repr(x).split())
    return text if len(text) <= 60 else f"a {type(x).__name__}"
