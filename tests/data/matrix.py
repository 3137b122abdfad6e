"""Every source against everything that reads it: `python tests/data/matrix.py` prints docs/sources.md's table.

A column of each kind stands beside a column of plain numbers, in every format that can hold it. What becomes of it is
asked of `load_data`, of a fit, of the estimator and of `molrmog info`; all must say the same.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, feather, parquet

import molrmog
from molrmog.data import load_parts
from molrmog.interfaces.cli import main
from molrmog.interfaces.estimator import MoLRMoGEstimator

N = 24
rng = np.random.default_rng(0)
PLAIN = rng.normal(size=N)
NUMBERS = rng.integers(0, 100, N)
DAYS = [datetime.date(2020, 1, 1 + i) for i in range(N)]


MISSING = "refused in a file, missing in a frame"


def missing(values: Any, kind: Any = None) -> pa.Array:
    """The values without the third."""
    return pa.array([None if i == 3 else value for i, value in enumerate(values)], kind)


# What a column holds: its name in the table, and the column. The verdict is "used" with how many coordinates.
COLUMNS: dict[str, tuple[str, pa.Array, str]] = {
    "float16": ("c", pa.array(PLAIN.astype(np.float16)), "used 1"),
    "float32": ("c", pa.array(PLAIN.astype(np.float32)), "used 1"),
    "float64": ("c", pa.array(PLAIN), "used 1"),
    "int8": ("c", pa.array(NUMBERS.astype(np.int8)), "used 1"),
    "int64": ("c", pa.array(NUMBERS), "used 1"),
    "uint64": ("c", pa.array(NUMBERS.astype(np.uint64)), "used 1"),
    "booleans": ("c", pa.array((NUMBERS > 50).tolist()), "used 1"),
    "decimals": ("c", pa.array([Decimal(int(i)) / 4 for i in NUMBERS], pa.decimal128(9, 2)), "used 1"),
    "lists of one length": ("c", pa.array([[float(i), 1.0, 2.0] for i in NUMBERS]), "used 3"),
    "lists of fixed length": ("c", pa.array([[float(i), 1.0] for i in NUMBERS], pa.list_(pa.float32(), 2)), "used 2"),
    "lists that differ": ("c", pa.array([[1.0] * (1 + i % 2) for i in NUMBERS]), "refused"),
    "text": ("c", pa.array([f"t{i % 3}" for i in NUMBERS]), "refused"),
    "numbers as text": ("c", pa.array([f"{i},5 kg" for i in NUMBERS]), "refused"),
    "categories": ("c", pa.array([f"t{i % 3}" for i in NUMBERS]).dictionary_encode(), "refused"),
    "categories of numbers": ("c", pa.array(NUMBERS % 3).dictionary_encode(), "used 1"),
    "dates": ("c", pa.array(DAYS), "refused"),
    "times": ("c", pa.array([datetime.datetime(2020, 1, 1, int(i) % 24) for i in NUMBERS]), "refused"),
    "durations": ("c", pa.array([datetime.timedelta(hours=int(i)) for i in NUMBERS]), "refused"),
    "bytes": ("c", pa.array([b"\xff\x01"] * N), "refused"),
    "records": ("c", pa.array([{"u": 1.0, "v": 2.0}] * N), "refused"),
    "missing floats": ("c", missing(PLAIN), MISSING),
    "missing integers": ("c", missing(NUMBERS.tolist()), MISSING),
    "missing booleans": ("c", missing((NUMBERS > 50).tolist()), MISSING),
    "NaN": ("c", pa.array(np.where(np.arange(N) == 3, np.nan, PLAIN)), MISSING),
    "infinity": ("c", pa.array(np.where(np.arange(N) == 3, np.inf, PLAIN)), "refused"),
    "nothing": ("c", pa.nulls(N), "refused"),
    "one value": ("c", pa.array(np.ones(N)), "used 1"),
    "a column named x": ("x", pa.array(PLAIN), "used 1"),
    "a column named y, of fractions": ("y", pa.array(PLAIN), "used 1"),
    "a column named 日本 é": ("日本 é", pa.array(PLAIN), "used 1"),
    "a column named 0": ("0", pa.array(PLAIN), "used 1"),
    "a column named id, of measurements": ("id", pa.array(NUMBERS // 3), "used 1"),
}
# Of a file only: a data frame holds its rows, and nothing that says which they are.
FILE_COLUMNS: dict[str, tuple[str, pa.Array, str]] = {
    "row numbers named id": ("id", pa.array(rng.permutation(N)), "left out id"),
    "row names without a name": ("", pa.array([f"row {i}" for i in range(N)]), "left out without a name"),
    "labels: integers": ("label", pa.array(NUMBERS % 3), "labels 3"),
    "labels: text": ("class", pa.array([f"t{i % 3}" for i in NUMBERS]), "labels 3"),
    "labels: booleans": ("target", pa.array((NUMBERS > 50).tolist()), "labels 2"),
    "labels: categories": ("label", pa.array([f"t{i % 3}" for i in NUMBERS]).dictionary_encode(), "labels 3"),
    "labels: whole floats": ("label", pa.array((NUMBERS % 3).astype(float)), "labels 3"),
    "labels: a class of one row": ("label", pa.array((np.arange(N) == 3).astype(int)), "labels 2"),
    "labels: text, some missing": ("label", missing([f"t{i % 3}" for i in NUMBERS]), "refused"),
    "labels: integers, some missing": ("label", missing((NUMBERS % 3).tolist()), "refused"),
    "labels: fractions": ("label", pa.array(PLAIN), "used 1"),
    "labels: dates": ("label", pa.array(DAYS), "refused"),
}
TEXT_FILES = ("csv", "tsv", "csv.gz")
FORMATS = (*TEXT_FILES, "parquet", "feather", "data frame")
NOT_IN_TEXT = ("lists of one length", "lists of fixed length", "lists that differ", "bytes", "records", "durations")


def write(table: pa.Table, path: Path, form: str) -> Path:
    """Write a table in a format."""
    path = path / f"table.{form}"
    if form == "parquet":
        parquet.write_table(table, path)
    elif form == "feather":
        feather.write_feather(table, path)
    else:
        plain = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns]
        options = csv.WriteOptions(delimiter="\t" if form == "tsv" else ",")
        stream = pa.CompressedOutputStream(str(path), "gzip") if form.endswith("gz") else pa.OSFile(str(path), "wb")
        with stream as file:
            csv.write_csv(pa.Table.from_arrays(plain, table.column_names), file, options)
    return path


def verdicts(table: pa.Table, form: str, folder: Path, name: str) -> dict[str, str]:
    """What each of the four makes of the column of a name."""
    if form == "data frame":
        frame = table.to_pandas()
        return {"fit": _frame(lambda: small_fit(frame).dim), "estimator": _frame(lambda: estimated(frame))}
    path = write(table, folder, form)
    return {
        "load_data": _file(lambda: molrmog.load_data(path), name),
        "fit": _file(lambda: fitted(path), name),
        "estimator": _file(lambda: estimated_file(path), name),
        "info": _info(path, name),
    }


def small_fit(x: Any, labels: Any = None) -> Any:
    return molrmog.fit(x, labels, subspaces=1, latent_dim=1, modes=1, max_iter=1, noise="isotropic")


def estimated(x: Any) -> int:
    return MoLRMoGEstimator(1, 1, max_iter=1).fit(x).law_.dim


def fitted(path: Path) -> Any:
    train, held = load_parts(str(path))
    law = small_fit(train, train.labels)
    assert law.dim == held.dim == train.dim
    if train.labels is not None:
        assert law.subspaces == len(np.unique(train.labels))
    return train


def estimated_file(path: Path) -> Any:
    data = molrmog.load_data(path)
    model = MoLRMoGEstimator(1, 1, max_iter=1, use_labels=data.labels is not None).fit(data.x, data.labels)
    assert model.n_features_in_ == data.dim
    assert data.labels is None or len(model.classes_) == len(np.unique(data.labels))
    return data


def _frame(dim: Callable[[], int]) -> str:
    try:
        return f"used {dim() - 1}"
    except ValueError as error:
        return _refusal(error, "c")


def _file(read: Callable[[], Any], name: str) -> str:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            data = read()
        except ValueError as error:
            return _refusal(error, f"column {name}")
    if data.labels is not None:
        return f"labels {len(np.unique(data.labels))}"
    out = [column.name or "without a name" for column in data.account.columns if column.fate == "left out"]
    if out:
        assert any(f"column {out[0]} left out" in str(each.message) for each in said)
        return f"left out {out[0]}"
    return f"used {data.dim - 1}"


def _refusal(error: ValueError, named: str) -> str:
    """One line that names the column."""
    return "refused" if "\n" not in str(error) and named in str(error) else f"refused badly: {error}"


def _info(path: Path, name: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")  # a warning is no refusal, also where tests make errors of them
        code = main(["info", str(path)])
    lines = dict(line.split(maxsplit=1) for line in out.getvalue().splitlines() if len(line.split()) > 1)
    if code:
        assert f"column {name}" in err.getvalue(), err.getvalue()
        return "refused"
    if not lines["labels"].startswith("none"):
        return f"labels {lines['labels'].split()[0]}"
    if "left out" in out.getvalue():
        return f"left out {name or 'without a name'}"
    return f"used {int(lines['shape'].split()[0]) - 1}"


def cases() -> list[tuple[str, str, str, pa.Table, str]]:
    """Kind, format, name of the column, table and verdict of every case."""
    found: list[tuple[str, str, str, pa.Table, str]] = []
    for kinds, is_file in ((COLUMNS, False), (FILE_COLUMNS, True)):
        for kind, (name, column, verdict) in kinds.items():
            for form in FORMATS:
                if (form in TEXT_FILES and kind in NOT_IN_TEXT) or (form == "data frame" and is_file):
                    continue
                names = (name, "a") if not name else ("a", name)
                columns = (column, pa.array(PLAIN)) if not name else (pa.array(PLAIN), column)
                expected = {"data frame": "used 1"}.get(form, "refused") if verdict == MISSING else verdict
                found.append((kind, form, name, pa.Table.from_arrays(list(columns), list(names)), expected))
    return found


def markdown(found: dict[tuple[str, str], str]) -> str:
    """The table of docs/sources.md."""
    lines = [f"| a column of | {' | '.join(FORMATS)} |", "| --- |" + " --- |" * len(FORMATS)]
    rows = ([kind, *(found.get((kind, form), "") for form in FORMATS)] for kind in (*COLUMNS, *FILE_COLUMNS))
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def ask() -> tuple[dict[tuple[str, str], str], list[str]]:
    """The verdicts of all cases, and a line for each in which the four differ, or which is not as expected."""
    results: dict[tuple[str, str], str] = {}
    odd: list[str] = []
    for kind, form, name, table, verdict in cases():
        with tempfile.TemporaryDirectory() as folder:
            own = verdicts(table, form, Path(folder), name)
        if set(own.values()) != {verdict}:
            odd.append(f"{kind}, {form}: {own}, and {verdict} was expected")
        results[kind, form] = " / ".join(sorted(set(own.values())))
    return results, odd


if __name__ == "__main__":
    found, odd = ask()
    print(markdown(found))
    print("\n".join(odd), file=sys.stderr)
