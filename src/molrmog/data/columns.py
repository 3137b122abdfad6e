"""A table's columns, judged: which are numbers, which are labels, which are left out, and what is refused.

| what a column holds                          | what becomes of it                                                    |
| -------------------------------------------- | --------------------------------------------------------------------- |
| numbers, booleans, decimals                  | a coordinate                                                          |
| lists of numbers, all of one length          | a coordinate for each of their entries                                |
| text, categories                             | refused; with categories="one-hot" a coordinate for each of its texts |
| dates, bytes, records, lists that differ     | refused                                                               |
| missing values                               | refused; NaN where a frame's numbers are missing                      |
| the index of a data frame, `id` and its like | left out of a file by name, unless it is asked for                    |
| labels                                       | `label_column`, else a column named label, labels, fine_label, class, |
|                                              | target or y that holds classes                                        |

A file and a data frame are judged alike, but that every column of a frame is a coordinate: it holds nothing else.
"""

# pyarrow ships no annotations: what it leaves unknown is not our error.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from molrmog.data.account import Account, Column, Refused, listed
from molrmog.data.bounds import check_bytes
from molrmog.data.dataset import Array
from molrmog.data.labels import as_labels

_LABELS = ("label", "labels", "fine_label", "target", "y", "class")
_VAGUE = ("target", "y")  # names that numbers to be predicted have as well
_ROW_NUMBERS = re.compile(
    r"(row[ _.]?)?(id|idx|index)|row[ _.]?(names?|numbers?)|unnamed: \d+|__index_level_\d+__|", re.IGNORECASE
)
_NUMBER = re.compile(r"\W*\d[\d.,' \u00a0]*(e[-+]?\d+)?\W*", re.IGNORECASE)  # with signs of currency, per cent, ...
_MOST_TEXTS = 1000  # coordinates that a column of text may become
_WHOLE, _SEEN = 2**53, 1000  # float64 holds every whole number up to here; steps of rounding that can be seen
_BLOCK = 2**14  # rows that are put together at a time


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which columns of a table are to be used, and how.

    Attributes:
        label_column: the column of labels; found by its name where None.
        columns: those to use; all where None.
        drop: those to leave out.
        categories: what becomes of text, "refuse" or "one-hot".
        like: the columns of another part of the data, which this one must have; nothing else counts where it is given.

    Raises:
        ValueError: a name stands in two places, or `columns` has none.
    """

    label_column: str | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    categories: Literal["refuse", "one-hot"] = "refuse"
    like: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        if self.columns is not None and not self.columns:
            raise ValueError("columns names no column: leave it out, or name one")
        for name in self.drop:
            if name in (self.columns or ()) or name == self.label_column:
                raise ValueError(f"column {name} is to be dropped and to be used: pass one of these")

    @property
    def is_made(self) -> bool:
        """Whether anything is chosen."""
        return self != Choice()


@dataclass(frozen=True)
class Table:
    """What a table holds once its columns are judged.

    Attributes:
        values: rows of numbers, with shape (N, D); None where there are pictures.
        names: of the coordinates, D of them.
        labels: with shape (N,), or None.
        classes: names of the labels, where they have names.
        pictures: files or bytes of N pictures, or None.
        account: of the columns.
    """

    values: Array | None
    names: tuple[str, ...]
    labels: Array | None
    classes: tuple[str, ...] | None
    pictures: list[Any] | None
    account: Account


def chosen(
    label_column: str | None = None,
    columns: str | Sequence[str] | None = None,
    drop: str | Sequence[str] | None = None,
    categories: str = "refuse",
) -> Choice:
    """A choice of columns, from names with commas between or in a list; see :class:`Choice`."""

    def names(given: str | Sequence[str]) -> tuple[str, ...]:
        parts = given.split(",") if isinstance(given, str) else given
        return tuple(str(part).strip() if isinstance(given, str) else str(part) for part in parts)

    return Choice(
        label_column=label_column,
        columns=None if columns is None else names(columns),
        drop=() if drop is None else names(drop),
        categories=categories,  # pyright: ignore[reportArgumentType] (`load` checks it)
    )


def judge(
    name: str,
    table: Any,
    choice: Choice | None = None,
    *,
    kind: str = "table",
    is_file: bool = True,
    texts: Callable[[str], Sequence[str]] | None = None,
    missing: bool = False,
) -> Table:
    """Turn an Arrow table into rows.

    Args:
        name: of the data, for messages.
        table: the table.
        choice: which columns, and how.
        kind: of the source, for its account.
        is_file: whether labels and row numbers may be among the columns.
        texts: all texts that a column holds in any part of the data; those of this table where None.
        missing: whether numbers may be missing, and become NaN.

    Raises:
        Refused: a column cannot be used as it is, or none can.
        ValueError: a column that is named is not there, or a label is missing.
    """
    return _Judgement(name, table, choice or Choice(), kind, is_file, texts, missing).result()


@dataclass
class _Judgement:
    name: str
    table: Any
    choice: Choice
    kind: str
    is_file: bool
    texts: Callable[[str], Sequence[str]] | None
    missing: bool = False
    notes: list[str] = field(default_factory=list)
    names: list[str] = field(init=False)
    index: set[str] = field(init=False)
    asked: set[str] = field(init=False)
    dropped: set[str] = field(init=False)

    def __post_init__(self) -> None:
        if self.choice.like:
            self._align()
        # Of thousands of columns the names are looked up once.
        self.names = self.table.column_names
        self.index = set(_index_columns(self.table.schema))
        self.asked, self.dropped = set(self.choice.columns or ()), set(self.choice.drop)

    def result(self) -> Table:
        names = self.names
        self._check_names(names)
        label = self._label_column(names)
        labels, classes = (None, None) if label is None else self._labels(label)
        types = self.table.schema.types
        found = [self._column(i, own, str(types[i]), is_label=i == label) for i, own in enumerate(names)]
        picture = next((i for i, c in enumerate(found) if c.fate == "used" and _is_picture(names[i], types[i])), None)
        if picture is not None:
            return self._of_pictures(picture, found, labels, classes)
        parts: dict[int, list[tuple[str, Array]]] = {}
        mends: dict[int, str] = {}
        for i, column in enumerate(found):
            if column.fate == "used":
                try:
                    parts[i] = list(self._numbers(i))
                    found[i] = replace(column, width=len(parts[i]))
                except _NotNumbers as error:
                    mends[i] = error.mend
                    found[i] = replace(column, fate="refused", why=str(error))
        account = Account(kind=self.kind, columns=tuple(found), notes=tuple(self.notes))
        self._check(account, set(mends.values()))
        coordinates = [each for i in sorted(parts) for each in parts[i]]
        values = _side_by_side(self.name, [own for _, own in coordinates])
        return Table(values, tuple(own for own, _ in coordinates), labels, classes, None, account)

    def _align(self) -> None:
        """Bring the columns of another part into the order of the first."""
        names: list[str] = self.table.column_names
        places: dict[str, list[int]] = {}
        for i, own in enumerate(names):
            places.setdefault(own, []).append(i)
        order: list[int] = []
        like: list[Column] = []
        for column in self.choice.like:
            if places.get(column.name):
                order.append(places[column.name].pop(0))
                like.append(column)
            elif column.fate in ("used", "label"):
                own = _shown(column.name)
                raise ValueError(f"{self.name} has no column {own}, which the training part has: add it, or drop={own}")
        strange = sorted(i for left in places.values() for i in left)
        if strange:
            self.notes.append(f"columns that the training part lacks left out: {listed([names[i] for i in strange])}")
        self.table = self.table.select([*order, *strange])
        more = [Column(name=names[i], type="", fate="left out", why="the training part lacks it") for i in strange]
        self.choice = replace(self.choice, like=(*like, *more), columns=None, drop=(), label_column=None)

    def _check_names(self, names: Sequence[str]) -> None:
        """Refuse names that are not there."""
        there = set(names)
        asked = [*(self.choice.columns or ()), *self.choice.drop, *filter(None, [self.choice.label_column])]
        for own in asked:
            if own not in there:
                close = difflib.get_close_matches(own, names, n=1)
                mend = f"did you mean {_shown(close[0])}?" if close else f"it has {_some(names)}"
                raise ValueError(f"{self.name} has no column {_shown(own)}: {mend}")

    def _label_column(self, names: Sequence[str]) -> int | None:
        """The column of labels, if there is one."""
        if self.choice.like:
            return next((i for i, column in enumerate(self.choice.like) if column.fate == "label"), None)
        if self.choice.label_column is not None:
            return names.index(self.choice.label_column)
        if not self.is_file:
            return None
        taken = self.asked | self.dropped
        plain = [own.strip().lower() for own in names]
        for own in _LABELS:
            if own in plain and names[i := plain.index(own)] not in taken and self._holds_classes(plain, i):
                return i
        return None

    def _holds_classes(self, plain: Sequence[str], i: int) -> bool:
        """Whether a column that is named like labels holds some, rather than numbers; `plain` are names in small."""
        import pyarrow as pa

        own = self.names[i]
        column = _plain(self.table.column(i))
        if _is_text(column.type) or pa.types.is_boolean(column.type) or pa.types.is_null(column.type):
            return True
        vague = plain[i] in _VAGUE
        if pa.types.is_integer(column.type):
            if not vague:
                return True
            coordinates = plain[i] == "y" and "x" in plain
            coordinates = coordinates and _is_number(_plain(self.table.column(plain.index("x"))).type)
            distinct = 0 if coordinates else len(column.unique())
            if coordinates or distinct > max(20, len(column) // 10):
                self.notes.append(f"column {own} taken as numbers, not labels (label_column={own} makes it labels)")
                return False
            self.notes.append(f"column {own} taken as labels, not numbers (name it in columns= to use its numbers)")
            return True
        if (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)) and not vague:
            values = _to_numpy(column.drop_null())
            known = values[~np.isnan(values)]
            if len(known) and bool((known == np.rint(known)).all()):
                return True
            self.notes.append(f"column {own} taken as numbers: it holds fractions, no labels")
        return False

    def _labels(self, i: int) -> tuple[Array, tuple[str, ...] | None]:
        """Labels of the rows, and their names."""
        own = self.names[i]
        where = f"{self.name}: labels in column {_shown(own)}"
        column = _plain(self.table.column(i))
        names = _names_of_classes(self.table.schema, own)
        if column.null_count:
            first = _first_null(column)
            raise ValueError(
                f"{where}: {column.null_count} of {len(column)} are missing, the first in row {first}: fill them, "
                f"leave such rows out, or leave the column out with drop={own}"
            )
        if not (_is_text(column.type) or _is_real(column.type)):
            raise ValueError(f"{where} must be integers or strings, got {column.type}: leave it out with drop={own}")
        if not _is_text(column.type):
            labels = as_labels(_to_numpy(column), name=where)
            if names and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
                raise ValueError(f"{where} run from {labels.min()} to {labels.max()}, and the file names {len(names)} "
                                 f"classes: leave it out with drop={own}")  # fmt: skip
            return labels.astype(np.int64), names
        text = as_labels(column.to_pylist(), name=where)
        classes = sorted(set(text.tolist()) | set(self.texts(own) if self.texts else ()))
        return np.searchsorted(classes, text).astype(np.int64), tuple(classes)

    def _column(self, i: int, own: str, kind: str, *, is_label: bool) -> Column:
        """What is to become of a column, from its name."""
        column = Column(name=own, type=kind)
        if self.choice.like:
            return replace(column, fate=self.choice.like[i].fate, why=self.choice.like[i].why)
        if is_label:
            return replace(column, fate="label")
        if self.choice.columns is not None:
            used = own in self.asked
            return column if used else replace(column, fate="left out", why="not among the columns asked for")
        if own in self.dropped:
            return replace(column, fate="left out", why="as asked")
        if self.is_file and (why := self._row_numbers(i, own)):
            self.notes.append(f"column {_shown(own)} left out: {why}")
            return replace(column, fate="left out", why=why)
        return column

    def _row_numbers(self, i: int, own: str) -> str:
        """Why a column says which row it is, and nothing of what the row holds; empty where it does not."""
        import pyarrow as pa

        if own in self.index:
            return "the index of a data frame"
        if not _ROW_NUMBERS.fullmatch(own.strip()) or (not own.strip() and i):
            return ""
        column = _plain(self.table.column(i))
        if not (pa.types.is_integer(column.type) or _is_text(column.type)) or len(column) < 2:
            return ""
        return "it only tells the rows apart" if len(column.unique()) == len(column) else ""

    def _numbers(self, i: int) -> Iterator[tuple[str, Array]]:
        """A column as coordinates, each with its name; refuses what is none."""
        import pyarrow as pa

        own = self.names[i]
        if (period := _period(self.table.schema.field(i))) is not None:
            raise _NotNumbers(f"holds {period}")
        column = _plain(self.table.column(i))
        kind = column.type
        if pa.types.is_null(kind):
            raise _NotNumbers("holds nothing but missing values" if len(column) else "has no rows")
        if _is_list(kind):
            yield from _entries(own, column)
            return
        if column.null_count and not (self.missing and _is_real(kind)):
            first = _first_null(column)
            raise _NotNumbers(f"lacks {column.null_count} of {len(column)} values, the first in row {first}", _FILL)
        if column.null_count:
            yield own, column.cast(pa.float64()).to_numpy()
            return
        if _is_text(kind):
            yield from self._one_hot(own, column)
            return
        if not _is_real(kind):
            raise _NotNumbers(f"holds {_in_words(kind)}")
        values = _to_numpy(column)
        if are_rounded(values):
            self.notes.append(f"column {_shown(own)}: {ROUNDED}")
        yield own, values

    def _one_hot(self, own: str, column: Any) -> Iterator[tuple[str, Array]]:
        """A coordinate of zeros and ones for each text."""
        texts = column.to_pylist()
        if self.choice.categories == "refuse":
            odd = next((text for text in texts if not _looks_like_number(text)), texts[0] if texts else "")
            some = texts[:1000]
            if 2 * sum(bool(_NUMBER.fullmatch(text)) for text in some) > len(some):
                raise _NotNumbers(f"holds numbers that are written as text, and {odd[:40]!r} among them", _PLAIN)
            raise _NotNumbers(f"holds text such as {odd[:40]!r}", _TEXT)
        names = sorted(set(texts) | set(self.texts(own) if self.texts else ()))
        if len(names) > max(20, min(_MOST_TEXTS, len(texts) // 2)):
            raise _NotNumbers(f"holds {len(names)} different texts in {len(texts)} rows, too many for one-hot")
        if any(map(_looks_like_number, names)):
            odd = next((text for text in names if not _looks_like_number(text)), names[0])
            self.notes.append(
                f"column {_shown(own)} holds numbers as text, {odd[:20]!r} among them: a coordinate for each of its "
                f"{len(names)} texts"
            )
        found = np.searchsorted(names, texts)
        for k, text in enumerate(names):
            yield f"{own}={text}", (found == k).astype(np.uint8)

    def _check(self, account: Account, mends: set[str]) -> None:
        """Refuse the table where a column is refused, or none is left."""
        refused = [column.name for column in account.columns if column.fate == "refused"]
        if refused:
            why = next(column.why for column in account.columns if column.fate == "refused")
            ways = ["fill what is missing"] if _FILL in mends else []
            ways += ["write its numbers plainly, as 1234.5"] if _PLAIN in mends else []
            ways += ["pass categories=one-hot for text"] if _TEXT in mends and self.is_file else []
            drop = f" with drop={_some(refused, ',')}" if self.is_file else ""
            ways += [f"leave {'it' if len(refused) == 1 else 'them'} out{drop}"]
            others = f", and {_some(refused[1:])} cannot be used either" if refused[1:] else ""
            raise Refused(f"{self.name}: column {_shown(refused[0])} {why}{others}: {', or '.join(ways)}", account)
        if not any(column.fate == "used" for column in account.columns):
            names = _some([column.name for column in account.columns]) or "no columns at all"
            raise Refused(f"{self.name}: no image column and no numeric columns among {names}", account)

    def _of_pictures(self, i: int, found: list[Column], labels: Array | None, classes: tuple[str, ...] | None) -> Table:
        """The first column of pictures; what else there is, is left out."""
        import pyarrow as pa

        others = [c.name for j, c in enumerate(found) if j != i and c.fate == "used"]
        if others:
            self.notes.append(f"columns beside the pictures left out: {listed(others)}")
        found = [
            c if j == i or c.fate != "used" else replace(c, fate="left out", why="it lies beside pictures")
            for j, c in enumerate(found)
        ]
        cells = self.table.column(i).to_pylist()
        if pa.types.is_struct(self.table.column(i).type):  # the layout allows a path in place of the bytes
            from pathlib import Path

            cells = [cell and (cell["bytes"] or (Path(cell["path"]) if cell.get("path") else b"")) for cell in cells]
        account = Account(kind=self.kind, columns=tuple(found), notes=tuple(self.notes))
        return Table(None, (), labels, classes, [cell or b"" for cell in cells], account)


def _shown(own: str) -> str:
    """The name of a column in a message of one line."""
    return listed([own]) if own.strip() else "without a name"


def _some(names: Sequence[str], mark: str = ", ") -> str:
    """As many names as fit into a message of one line."""
    shown: list[str] = []
    for own in names:
        if len(shown) == 8 or sum(map(len, shown)) + len(_shown(own)) > 100:
            break
        shown.append(_shown(own) if mark != "," else listed([own]) if own.strip() else "")
    if len(shown) == len(names):
        return mark.join(shown)
    return mark.join(shown) + (",..." if mark == "," else f" and {len(names) - len(shown)} more")


ROUNDED = "whole numbers beyond 2^53 are rounded, and differ by little more"


def are_rounded(values: Array) -> bool:
    """Whether values (N,), or those of a column of (N, D), are whole numbers that float64 rounds visibly."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or 0 in values.shape:
        return False
    ends = zip(values.min(0).ravel().tolist(), values.max(0).ravel().tolist(), strict=True)
    sizes = ((most - least, max(-least, most)) for least, most in ends)
    return any(size > _WHOLE and spread < size / _WHOLE * _SEEN for spread, size in sizes)


_FILL, _TEXT, _PLAIN = "fill", "text", "plain"


class _NotNumbers(ValueError):
    """A column cannot be coordinates."""

    def __init__(self, why: str, mend: str = "") -> None:
        super().__init__(why)
        self.mend = mend


def _side_by_side(name: str, columns: Sequence[Array]) -> Array:
    """Columns (N,) as rows (N, D), put together block by block, so that a row's numbers are written together."""
    kind = np.result_type(*columns)
    rows = len(columns[0])
    check_bytes(name, rows * len(columns) * kind.itemsize, "pass fewer columns, or a part of the rows")
    values = np.empty((rows, len(columns)), kind)
    for start in range(0, rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        for j, column in enumerate(columns):
            values[block, j] = column[block]
    return values


def _entries(own: str, column: Any) -> Iterator[tuple[str, Array]]:
    """The entries of lists of one length as columns; lists in lists are flattened."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = len(column)
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.ChunkedArray):  # of no chunks, or of more than fit into one
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    while _is_list(values.type):
        if values.null_count:
            first = _first_null(values)
            raise _NotNumbers(f"lacks {values.null_count} of {rows} lists, the first in row {first}", _FILL)
        if not pa.types.is_fixed_size_list(values.type):
            lengths = cast(Any, pc).list_value_length(values).to_numpy(zero_copy_only=False)
            if len(lengths) and lengths.min() != lengths.max():
                odd = int(np.argmax(lengths != lengths[0]))
                raise _NotNumbers(f"holds lists of {lengths[0]} and of {lengths[odd]} entries")
        values = _plain_array(values.flatten())
    if values.null_count:
        first = _first_null(values) // max(1, len(values) // max(1, rows))
        raise _NotNumbers(f"lacks {values.null_count} entries of its lists, the first in row {first}", _FILL)
    if not _is_real(values.type) or not rows or not len(values):
        raise _NotNumbers(f"holds lists of {_in_words(values.type)}" if len(values) else "holds empty lists")
    numbers = _to_numpy(values).reshape(rows, -1)
    for j in range(numbers.shape[1]):
        yield f"{own}[{j}]", numbers[:, j]


def _first_null(values: Any) -> int:
    """Where the first value is missing."""
    return int(np.argmax(np.asarray(values.is_null())))


def _period(column: Any) -> str | None:
    """What the numbers of a field count that are none of their own: periods of pandas."""
    import pyarrow as pa

    extension = column.type.extension_name if isinstance(column.type, pa.BaseExtensionType) else None
    known = extension or (column.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", "replace")
    return "dates or times" if known == "pandas.period" else None


def _plain(column: Any) -> Any:
    """A column without the ways in which it is stored: dictionaries, runs, extension types."""
    import pyarrow as pa

    if not _is_stored(column.type):
        return column
    chunks = [_plain_array(chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks) if chunks else pa.chunked_array([], type=_plain_type(column.type))


def _plain_array(array: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    while _is_stored(array.type):
        if isinstance(array.type, pa.BaseExtensionType):
            is_boolean = array.type.extension_name == "arrow.bool8"  # any number but zero is true
            array = cast(Any, pc).not_equal(array.storage, 0) if is_boolean else array.storage
        elif pa.types.is_run_end_encoded(array.type):
            array = cast(Any, pc).run_end_decode(array)
        else:
            array = array.dictionary_decode()
    return array


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    while _is_stored(kind):
        if isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.bool8":
            return pa.bool_()
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _is_stored(kind: Any) -> bool:
    import pyarrow as pa

    return isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)


def _to_numpy(column: Any) -> Array:
    """A column of real numbers as an array; decimals as float64."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    elif pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.uint8())
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)


def _is_real(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        is_it(kind) for is_it in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return _is_real(kind) and not pa.types.is_boolean(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    view = getattr(pa.types, "is_string_view", lambda _: False)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    whole = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return whole or _is_view(kind)


def _is_view(kind: Any) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, name, lambda _: False)(kind) for name in ("is_list_view", "is_large_list_view"))


def _is_picture(own: str, kind: Any) -> bool:
    """Whether a column holds pictures: records of bytes, or bytes named image."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and own in ("image", "img")


def _in_words(kind: Any) -> str:
    """What a column of an Arrow type holds."""
    import pyarrow as pa

    if pa.types.is_temporal(kind):
        return "dates or times"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    if pa.types.is_nested(kind):
        return "records, not numbers"
    return "text" if _is_text(kind) else f"{kind} values"


def _looks_like_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def _index_columns(schema: Any) -> list[str]:
    """Columns that a data frame wrote as its index."""
    found = _metadata(schema, b"pandas").get("index_columns", [])
    return [own for own in found if isinstance(own, str)] if isinstance(found, list) else []


def _names_of_classes(schema: Any, own: str) -> tuple[str, ...] | None:
    """Names of the classes of a label column, in the layout of Hugging Face."""
    info = _metadata(schema, b"huggingface").get("info")
    features = info.get("features") if isinstance(info, dict) else None
    feature = features.get(own) if isinstance(features, dict) else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _metadata(schema: Any, key: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads((schema.metadata or {}).get(key, b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
