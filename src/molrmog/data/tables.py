"""Files of tables as Arrow tables: CSV and its relatives, parquet, Feather; one file, or shards of one table.

A text file says nothing of itself, so its first lines are looked at:

    separator      a tab in .tsv; else the one of tab ; | , or blanks that divides all of these lines into as many
                   cells, most of them numbers; a comma where none does
    header         the first line, where it has a word above a column of numbers, or no numbers, or numbers that count
                   the columns; else columns are named column1, column2, ...; what R and Excel write is understood:
                   names without one above the names of rows, sep=; at the top, a separator at the ends of lines
    comments       lines with # or % above the table; the last of them may be the header
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
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from molrmog.data.account import listed
from molrmog.data.bounds import check_bytes, check_unpacked, unpacked_limit
from molrmog.data.sources import readable, source_of

_HEAD = 2**16  # bytes that are looked at
_LONGEST_HEAD = 2**26  # the same where lines are long
_LINES = 20
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "?", "NaT")
_COMMA_DECIMAL, _POINT_DECIMAL = re.compile(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*"), re.compile(r"\s*[-+]?\d*\.\d+\s*")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
_EXCEL = re.compile(r'"?sep=(.)"?[;,\t]*', re.IGNORECASE)
_RAGGED = re.compile(r"Expected (\d+) columns, got (\d+):?(.*)", re.DOTALL)
_BLANKS, _BLANK_BYTES, _ENDS = re.compile(r"[ \t]+"), re.compile(rb"[ \t]+"), re.compile(rb" ?(\r?\n|\r) ?")


class Read(NamedTuple):
    """An Arrow table, and what was left out or decided in reading it, a clause each."""

    table: Any
    notes: tuple[str, ...] = ()


def read_tables(paths: Sequence[Path]) -> Read:
    """Read the shards of one table and put them together.

    Raises:
        ValueError: one is damaged, or too large, or has other columns than the first.
        FileNotFoundError: one is not there.
    """
    import pyarrow as pa

    read = [_READERS[source_of(path).kind](path) for path in paths]
    if len(read) == 1:
        return read[0]
    tables = [each.table for each in read]
    for path, table in zip(paths, tables, strict=True):
        missing = [name for name in tables[0].column_names if name not in table.column_names]
        strange = [name for name in table.column_names if name not in tables[0].column_names]
        if missing or strange:
            odd = f"lacks column {missing[0]}" if missing else f"has a column {strange[0]} more"
            raise ValueError(f"{path} {odd} than {paths[0].name}: shards of one table need the same columns")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        raise ValueError(_where_they_differ(paths, tables)) from None
    # What is said of each shard is said once.
    return Read(table, tuple(dict.fromkeys(note for each in read for note in each.notes)))


def read_column(paths: Sequence[Path], name: str) -> list[str]:
    """The texts of a column, of whichever of the tables have it; none where they are no texts."""
    found: set[str] = set()
    for path in paths:
        with suppress(ValueError, OSError, KeyError):
            table = _READERS[source_of(path).kind](path, only=name).table
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


def _parquet(path: Path, only: str | None = None) -> Read:
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
        return Read(file.read(columns=None if only is None else [only]))


def _has_width(kind: Any) -> bool:
    try:
        return kind.bit_width > 0
    except ValueError:
        return False


def _feather(path: Path, only: str | None = None) -> Read:
    import pyarrow as pa

    with readable(path), pa.memory_map(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            if file.read(4) == b"FEA1":  # of before 2020
                import pyarrow.feather as feather

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    table = feather.read_table(path, memory_map=False)
            else:
                file.seek(0)
                table = pa.ipc.open_stream(file).read_all()
        check_unpacked(str(path), table.nbytes, path.stat().st_size)
        return Read(table if only is None else table.select([only]))


def _text(path: Path, only: str | None = None) -> Read:
    """Read CSV and its relatives."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    packed = path.suffix.lower() == ".gz"
    with readable(path), _opened(path, packed) as file:
        head = _head(file)
    form = _Form(path, head)
    if not packed:
        check_bytes(str(path), path.stat().st_size, "pass a part of it, or write it as parquet")
    options = {
        "read_options": pacsv.ReadOptions(
            encoding=form.encoding,
            column_names=form.names,
            skip_rows=form.skipped,
            autogenerate_column_names=False,
            block_size=max(2**22, 2 * len(head)),
        ),
        "parse_options": pacsv.ParseOptions(delimiter=form.separator, newlines_in_values=form.is_quoted),
        "convert_options": pacsv.ConvertOptions(
            null_values=_MISSING,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            decimal_point=form.decimal,
        ),
    }
    with readable(path), _opened(path, packed) as file:
        try:
            table = pacsv.read_csv(_Squeezed(file) if form.is_padded else file, **options)
        except pa.ArrowInvalid as error:
            if odd := _RAGGED.search(str(error)):
                line, found = " ".join(odd[3].split())[:40], _counted(int(odd[2]), "cell")
                raise ValueError(
                    f"{path}: a line has {found} in place of {odd[1]}, {line!r}: give each line as many"
                ) from None
            raise
        try:
            names = [name.strip().lstrip("\ufeff") for name in table.column_names]
        except UnicodeDecodeError:
            raise ValueError(f"{path}: the names of its columns are not UTF-8: save it as UTF-8") from None
    if names and form.names is None:
        names[0] = names[0].removeprefix("#").strip()
    names = [name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name for name in names]
    empty = [len(table) > 0 and pa.types.is_null(kind) for kind in table.schema.types]
    blank = [j for j, name in enumerate(names) if (not name or not form.is_named) and empty[j]]
    kept = sorted(set(range(len(names))) - set(blank))
    # The first column of a data frame's file has no name; others get one, so that they can be dropped by it.
    table = table.select(kept).rename_columns([names[j] or (f"column{j + 1}" if j else "") for j in kept])
    if blank:
        form.notes.append(f"{listed([f'column{j + 1}' for j in blank])} left out: without a name or a value")
    return Read(table if only is None else table.select([only]), tuple(form.notes))


def _head(file: Any) -> bytes:
    """The first lines of a file, whole ones: as many as `_HEAD` bytes hold, yet some of them where they are long."""
    head = file.read(_HEAD)
    while len(head) < _LONGEST_HEAD and head.count(b"\n") + head.count(b"\r") < _LINES // 4:
        more = file.read(len(head))
        if not more:
            break
        head += more
    return head


class _Form:
    """How a text file writes its table, from its first bytes.

    Attributes:
        encoding: of its bytes.
        separator: between cells.
        decimal: the point or the comma of its numbers.
        names: of the columns, or None where the first line that is read holds them.
        is_named: whether the file names its columns.
        skipped: lines at the top that are not read.
        is_quoted: whether cells may hold line ends.
        is_padded: whether several blanks stand between cells.
        notes: what was left out or decided, a clause each.
    """

    def __init__(self, path: Path, head: bytes) -> None:
        self.encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf8"
        self.notes: list[str] = []
        try:
            text = head.decode(self.encoding.replace("utf8", "utf-8-sig"), errors="replace").lstrip("\ufeff")
        except UnicodeError:
            text = ""
        self.is_quoted = '"' in text or len(head) >= _HEAD
        whole = io.StringIO(text, newline=None).read().split("\n")
        if len(head) >= _HEAD and sum(bool(line.strip()) for line in whole) > 1:
            whole.pop()  # it may be cut
        if "\0" in text or not any(line.strip() for line in whole):
            what = "bytes, not text" if "\0" in text else "no lines"
            raise ValueError(f"{path}: holds {what}: write it as CSV")
        tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
        asked, above, start = _above(whole)
        lines = [line for line in whole[start:] if line.strip()][:_LINES]
        if not lines:  # nothing but comments
            start, above, lines = 0, [], [line for line in whole if line.strip()][:_LINES]
        self.separator = asked or ("\t" if tabs and any("\t" in line for line in lines) else _separator(lines))
        # Another line of comments above the table may hold its names.
        title = _cells([above[-1].lstrip("#% ")], self.separator)[0] if above else []
        rows = _cells(lines, self.separator)
        self.is_padded = self.separator == " " and any(_squeezed(line) != line for line in lines)
        cells = [cell for row in rows[1:] for cell in row]
        commas = [cell.strip() for cell in cells if _COMMA_DECIMAL.fullmatch(cell)] if self.separator != "," else []
        self.decimal = "," if commas and not any(_POINT_DECIMAL.fullmatch(cell) for cell in cells) else "."
        if self.decimal == "," and all(_THOUSANDS.fullmatch(cell) for cell in commas):
            self.notes.append(f"numbers such as {commas[0]} read with a decimal comma, {commas[0].replace(',', '.')}")
        numbers = [[_number(cell.replace(self.decimal, ".")) for cell in row] for row in rows]
        first = [cell.strip() for cell in rows[0]]
        is_header = _is_header(first, rows, numbers)
        self.skipped, self.names, self.is_named = start, None, True
        if not is_header and len(title) == len(first) and all(_number(cell) is None for cell in title):
            above.pop()
            self.names = [cell.strip() for cell in title]
        elif not is_header:
            self.names, self.is_named = [f"column{j + 1}" for j in range(len(first))], False
            if _may_be_names(numbers):
                self.notes.append(f"the first line, {listed(first, 4)}, taken as numbers, not as names")
        elif len(rows) > 1 and {len(row) for row in rows[1:]} == {len(rows[1])} != {len(first)}:
            self.names = _fitted(first, rows[1:], lines[1:], self.separator)
            if self.names is not None:
                self.skipped = next(i for i in range(start, len(whole)) if whole[i].strip()) + 1
        if is_header and all(number is not None for number in numbers[0]):
            self.notes.append(f"the first line, {listed(first, 4)}, taken as names, not as numbers")
        if above:
            self.notes.append(f"{_counted(len(above), 'line')} above the table left out: {listed(above, 1)}")


def _above(lines: Sequence[str]) -> tuple[str, list[str], int]:
    """What stands above a table: the separator that Excel's line names, comments, and how many lines that is."""
    asked, comments, start = "", [], 0
    for i, line in enumerate(lines):
        if said := _EXCEL.fullmatch(line.strip()):
            asked, start = said[1], i + 1
        elif line.lstrip().startswith(("#", "%")):
            comments.append(line.strip())
            start = i + 1
        elif line.strip():
            break
    return asked, comments, start


def _fitted(names: list[str], rows: Sequence[Sequence[str]], lines: Sequence[str], separator: str) -> list[str] | None:
    """Names of as many columns as the rows have, where a separator ends the lines, or R wrote the names of rows."""
    width = len(rows[0])
    if width == len(names) - 1 and not names[-1]:
        return names[:-1]
    if width == len(names) + 1 and all(not row[-1].strip() for row in rows):
        return [*names, ""]
    keys = [row[0] for row in rows]
    # Before a comma a first cell that is a number may be the whole part of one.
    are_names = separator != "," or all(
        line[0] == '"' or _number(key) is None for key, line in zip(keys, lines, strict=True)
    )
    return ["", *names] if width == len(names) + 1 and are_names and len(set(keys)) == len(keys) else None


def _squeezed(line: str) -> str:
    return _BLANKS.sub(" ", line.strip(" \t"))


def _cells(lines: Sequence[str], mark: str) -> list[list[str]]:
    """The cells of lines; blanks count once."""
    lines = [_squeezed(line) for line in lines] if mark == " " else lines
    try:
        return list(csv.reader(lines, delimiter=mark, skipinitialspace=mark != " "))
    except csv.Error:  # a cell of more than 2^17 characters: this mark divides nothing
        return [[line] for line in lines]


def _separator(lines: Sequence[str]) -> str:
    """What divides all of the lines into the same number of cells, more than one, and most of these are numbers.

    The first line may have a cell more or less: it may hold names.
    """
    best, most = ",", (False, -1.0, 0)
    for mark in ("\t", ";", "|", ",", " "):
        if mark == " " and any("\t\t" in line for line in lines):
            continue  # a cell between tabs may be empty
        rows = _cells(lines, mark)
        widths = {len(row) for row in rows}
        even = len(widths) == 1
        if len(rows) > 1 and {len(row) for row in rows[1:]} == widths - {len(rows[0])} and not even:
            rows = rows[1:] if abs(len(rows[0]) - len(rows[1])) == 1 < len(rows[0]) else rows
        if len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
            continue
        cells = [cell for row in rows for cell in row]
        numbers = sum(_number(cell) is not None or _is_comma_number(cell, mark) for cell in cells)
        if (found := (even, numbers / len(cells), len(rows[0]))) > most:
            best, most = mark, found
    return best


def _is_comma_number(cell: str, mark: str) -> bool:
    return mark != "," and _COMMA_DECIMAL.fullmatch(cell) is not None


def _is_header(first: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[Sequence[float | None]]) -> bool:
    """Whether the first line holds names, from its cells, those of all lines, and their numbers, None for others."""
    width = len(first)
    below = [(row, own) for row, own in zip(rows[1:], numbers[1:], strict=True) if len(row) == width]
    counts = [own[0] for _, own in below]
    # A data frame writes no name above its index.
    is_index = not first[0] and counts[:1] in ([0], [1]) and _counts(counts)
    words = [j for j in range(width) if numbers[0][j] is None and first[j] not in _MISSING] + [0] * is_index
    for j in words:
        known = [own[j] is not None for _, own in below]
        if any(known) and all(
            is_known or row[j].strip() in _MISSING for (row, _), is_known in zip(below, known, strict=True)
        ):
            return True
    known = [number for number in numbers[0] if number is not None]
    if not known:
        return bool(words)
    if not below or known[0] not in (0, 1) or len(known) < 2 or not _counts(known) or len(set(first)) < width:
        return False
    return width > 2 or any(number is not None and number % 1 for _, own in below for number in own)


def _counts(numbers: Sequence[float | None]) -> bool:
    return all(a is not None and b is not None and b - a == 1 for a, b in pairwise(numbers))


def _may_be_names(numbers: Sequence[Sequence[float | None]]) -> bool:
    """Whether a first line of numbers looks like names: it counts, or holds years or wavelengths above fractions."""
    first, below = numbers[0], [row for row in numbers[1:] if len(row) == len(numbers[0])]
    if not below or not all(number is not None and number % 1 == 0 for number in first):
        return False
    if first[0] in (0, 1) and _counts(first) and len(first) > 1:
        return True
    grows = all(a is not None and b is not None and a < b for a, b in pairwise(first))
    if len(first) < 3 and first != [0]:
        return False
    return grows and all(any((row[j] or 0) % 1 for row in below) for j in range(len(first)))


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


class _Squeezed(io.RawIOBase):
    """A file whose cells are divided by any number of blanks, with one between them."""

    def __init__(self, file: Any) -> None:
        self.file, self.ready = file, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            part = self.file.read(2**20)
            if not part:
                return 0
            part += self.file.readline()
            self.ready = _ENDS.sub(rb"\1", _BLANK_BYTES.sub(b" ", part)).lstrip(b" ")
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


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


_READERS: dict[str, Callable[..., Read]] = {
    "CSV": _text,
    "parquet": _parquet,
    "Feather": _feather,
}
