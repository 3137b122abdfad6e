"""Files of tables as Arrow tables: CSV and its relatives, parquet, Feather; one file, or shards of one table.

A text file says nothing of itself, so its first lines are looked at:

    separator      a tab in .tsv; else the one of tab ; | , that divides all of these lines into as many cells, most of
                   them numbers; a comma where none does
    header         the first line, where it has a word above a column of numbers, or no numbers, or numbers that count
                   the columns; else columns are named column1, column2, ...
    decimal comma  where cells such as 3,14 occur, none such as 3.14, and the comma does not separate
    encoding       UTF-8, or UTF-16 where the file begins with its mark
    missing        empty cells, NA, NaN, null, None, ?, and what else pandas takes for missing
"""

# pyarrow ships no annotations: what it leaves unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

from molrmog.data.account import listed
from molrmog.data.bounds import check_bytes, check_unpacked, unpacked_limit
from molrmog.data.sources import readable, source_of

_HEAD = 2**16  # bytes that are looked at
_LINES = 20
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "?", "NaT")
_COMMA_DECIMAL, _POINT_DECIMAL = re.compile(r"\s*[-+]?\d+,\d+\s*"), re.compile(r"\s*[-+]?\d*\.\d+\s*")


def read_tables(paths: Sequence[Path]) -> Any:
    """Read the shards of one table and put them together.

    Raises:
        ValueError: one is damaged, or too large, or has other columns than the first.
        FileNotFoundError: one is not there.
    """
    import pyarrow as pa

    tables = [_READERS[source_of(path).kind](path) for path in paths]
    if len(tables) == 1:
        return tables[0]
    for path, table in zip(paths, tables, strict=True):
        missing = [name for name in tables[0].column_names if name not in table.column_names]
        strange = [name for name in table.column_names if name not in tables[0].column_names]
        if missing or strange:
            odd = f"lacks column {missing[0]}" if missing else f"has a column {strange[0]} more"
            raise ValueError(f"{path} {odd} than {paths[0].name}: shards of one table need the same columns")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        raise ValueError(_where_they_differ(paths, tables)) from None


def read_column(paths: Sequence[Path], name: str) -> list[str]:
    """The texts of a column, of whichever of the tables have it; none where they are no texts."""
    found: set[str] = set()
    for path in paths:
        with suppress(ValueError, OSError, KeyError):
            table = _READERS[source_of(path).kind](path, only=name)
            column = table.column(name)
            found.update(each for each in column.unique().to_pylist() if isinstance(each, str))
    return sorted(found)


def _where_they_differ(paths: Sequence[Path], tables: Sequence[Any]) -> str:
    """Which column of which shards cannot be put together."""
    import pyarrow as pa

    for name in tables[0].column_names:
        for path, table in zip(paths[1:], tables[1:], strict=True):
            try:
                pa.concat_tables([tables[0].select([name]), table.select([name])], promote_options="permissive")
            except pa.ArrowException:
                kinds = (str(each.schema.field(name).type) for each in (tables[0], table))
                return (
                    f"column {name} is {next(kinds)} in {paths[0]} and {next(kinds)} in {path.name}: write both alike"
                )
    return f"{paths[0]} and {listed([path.name for path in paths[1:]])} are not shards of one table: write them alike"


def _parquet(path: Path, only: str | None = None) -> Any:
    import pyarrow.parquet as parquet

    with readable(path):
        file = parquet.ParquetFile(path)
        about = file.metadata
    # Runs of one value take next to nothing in the file and eight bytes each in a row.
    kinds = file.schema_arrow
    numbers = sum(kind.bit_width > 8 for kind in kinds.types if _has_width(kind))
    check_unpacked(str(path), about.num_rows * 8 * numbers, path.stat().st_size)
    sizes = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    check_unpacked(str(path), sizes, path.stat().st_size)
    with readable(path):
        return file.read(columns=None if only is None else [only])


def _has_width(kind: Any) -> bool:
    try:
        return kind.bit_width > 0
    except ValueError:
        return False


def _feather(path: Path, only: str | None = None) -> Any:
    import pyarrow as pa

    with readable(path), pa.memory_map(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            if file.read(4) == b"FEA1":  # of before 2020
                import pyarrow.feather as feather

                table = feather.read_table(path, memory_map=False)
            else:
                file.seek(0)
                table = pa.ipc.open_stream(file).read_all()
        check_unpacked(str(path), table.nbytes, path.stat().st_size)
        return table if only is None else table.select([only])


def _text(path: Path, only: str | None = None) -> Any:
    """Read CSV and its relatives."""
    import pyarrow.csv as pacsv

    packed = path.suffix.lower() == ".gz"
    with readable(path), _opened(path, packed) as file:
        head = file.read(_HEAD)
    form = _Form(path, head)
    if not packed:
        check_bytes(str(path), path.stat().st_size, "pass a part of it, or write it as parquet")
    options = {
        "read_options": pacsv.ReadOptions(
            encoding=form.encoding, column_names=form.names, autogenerate_column_names=False, block_size=2**22
        ),
        "parse_options": pacsv.ParseOptions(delimiter=form.separator, newlines_in_values=form.is_quoted),
        "convert_options": pacsv.ConvertOptions(
            null_values=_MISSING,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            decimal_point=form.decimal,
            include_columns=None if only is None else [only],
        ),
    }
    with readable(path), _opened(path, packed) as file:
        table = pacsv.read_csv(file, **options)
    names = [name.strip().lstrip("\ufeff") for name in table.column_names]
    if names and form.names is None:
        names[0] = names[0].removeprefix("#").strip()
    return table.rename_columns(names)


class _Form:
    """How a text file writes its table, from its first bytes."""

    def __init__(self, path: Path, head: bytes) -> None:
        self.encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf8"
        try:
            text = head.decode(self.encoding.replace("utf8", "utf-8-sig"), errors="replace")
        except UnicodeError:
            text = ""
        self.is_quoted = '"' in text or len(head) == _HEAD
        lines = [line for line in io.StringIO(text, newline=None).read().split("\n") if line.strip()]
        if "\0" in text or not lines:
            raise ValueError(f"{path}: {'holds no lines' if not lines else 'holds bytes, not text'}: write it as CSV")
        if len(head) == _HEAD and len(lines) > 1:
            lines.pop()  # it may be cut
        lines = lines[:_LINES]
        tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
        self.separator = "\t" if tabs else _separator(lines)
        rows = list(csv.reader(lines, delimiter=self.separator))
        cells = [cell for row in rows[1:] for cell in row]
        comma = any(_COMMA_DECIMAL.fullmatch(cell) for cell in cells) and self.separator != ","
        self.decimal = "," if comma and not any(_POINT_DECIMAL.fullmatch(cell) for cell in cells) else "."
        first = [cell.strip() for cell in rows[0]]
        numbers = [[_number(cell.replace(self.decimal, ".")) for cell in row] for row in rows]
        self.names = None if _is_header(first, numbers) else [f"column{j + 1}" for j in range(len(first))]


def _separator(lines: Sequence[str]) -> str:
    """What divides all of the lines into the same number of cells, more than one, and most of these are numbers."""
    best, most = ",", (-1.0, 0)
    for mark in ("\t", ";", "|", ",", " "):
        rows = list(csv.reader(lines, delimiter=mark))
        cells = [cell for row in rows for cell in row]
        if len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
            continue
        numbers = sum(_number(cell if mark == "," else cell.replace(",", ".", 1)) is not None for cell in cells)
        if (found := (numbers / len(cells), len(rows[0]))) > most:
            best, most = mark, found
    return best


def _is_header(cells: Sequence[str], rows: Sequence[Sequence[float | None]]) -> bool:
    """Whether the first line holds names, from its cells and the numbers of all lines, None where a cell is none."""
    first, others = rows[0], [row for row in rows[1:] if len(row) == len(cells)]
    if any(first[j] is None and others and all(row[j] is not None for row in others) for j in range(len(cells))):
        return True
    numbers = [number for number in first if number is not None]
    counts = all(b - a == 1 for a, b in pairwise(numbers))
    return not numbers or (len(numbers) > 1 and numbers[0] in (0, 1) and counts and len(set(cells)) == len(cells))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


class _Unpacking(io.RawIOBase):
    """A gzip file that refuses to unpack without end."""

    def __init__(self, path: Path) -> None:
        self.path, self.packed, self.done = path, path.stat().st_size, 0
        self.file = gzip.open(path)  # noqa: SIM115 (closed with this)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast(BinaryIO, self.file).readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]
        self.done += count
        if self.done > unpacked_limit(self.packed):
            check_unpacked(str(self.path), self.done, self.packed)
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _opened(path: Path, packed: bool) -> Any:
    return io.BufferedReader(_Unpacking(path), 2**20) if packed else path.open("rb")


_READERS: dict[str, Callable[..., Any]] = {
    "CSV": _text,
    "parquet": _parquet,
    "Feather": _feather,
}
