"""What an experiment leaves behind: one page that stands alone, and its tables as CSV.

The page holds its style and pictures, asks nothing of the network, and follows the reader's choice of light or dark.
Cells are text, or numbers, which are written with four significant digits; a CSV has them in full.
"""

from __future__ import annotations

import base64
import csv
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from molrmog.saving import write_atomically

Record = TypeVar("Record", bound=Mapping[str, Any])
Cell = str | float | int | bool | None
"""What stands in a table; None where there is nothing to say."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: their names.
        rows: cells, as many as there are columns; numbers stand to the right.
        caption: what a reader must know to read it.
        align: "l" or "r" for each column; by their cells where empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    align: str = ""

    def __post_init__(self) -> None:
        _check_rows(self.columns, self.rows)
        if self.align and (len(self.align) != len(self.columns) or set(self.align) - {"l", "r"}):
            raise ValueError(f"align = {self.align!r}: pass one l or r for each of the {len(self.columns)} columns")

    @property
    def alignment(self) -> str:
        """One of "l" and "r" for each column."""
        return self.align or "".join(
            "r" if any(_is_figure(row[i]) for row in self.rows) else "l" for i in range(len(self.columns))
        )


@dataclass(frozen=True)
class Figure:
    """A picture or plot.

    Attributes:
        uri: a data URI, see `pictures.png_uri` and `pictures.svg_uri`.
        caption: what it shows.
        alt: the same for those who cannot see it; the caption where empty.
        wide: whether it takes a whole line of the page.
    """

    uri: str
    caption: str
    alt: str = ""
    wide: bool = False

    def __post_init__(self) -> None:
        if not self.uri.startswith("data:"):
            raise ValueError(f"{self.uri[:60]!r} is no data URI: the page must stand alone")

    @property
    def data(self) -> bytes:
        """The picture as a file, which a page beside this one may show."""
        return base64.b64decode(self.uri.partition("base64,")[2])

    @property
    def is_plot(self) -> bool:
        """Whether it is drawn by lines, not by pixels that are to stay sharp."""
        return self.uri.startswith("data:image/svg")


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        heading: of the section.
        text: paragraphs, with an empty line between two.
        tables: drawn below the text.
        figures: drawn below the tables.
    """

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Card:
    """A figure for the top of the page: its value, what it is, and small print."""

    value: str
    label: str
    about: str = ""


def write_page(
    path: str | Path,
    title: str,
    introduction: str,
    sections: Sequence[Section],
    settings: Mapping[str, Any],
    *,
    cards: Sequence[Card] = (),
) -> Path:
    """Write a page that stands alone.

    Args:
        path: of the page; an old one is replaced.
        title: of the page.
        introduction: paragraphs under the title, with an empty line between two.
        sections: in order.
        settings: everything that was chosen, for the last section; the machine is added.
        cards: the figures that matter most.

    Returns:
        The path.

    Raises:
        OSError: the page cannot be written; an old one is left whole.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("molrmog", "experiments"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    words = {"cell": cell, "paragraphs": _paragraphs, "setting": _setting}
    page = environment.get_template("page.html").render(
        words,
        title=title,
        introduction=introduction,
        cards=cards,
        sections=sections,
        settings=settings,
        machine=machine(),
    )
    write_atomically(Path(path), lambda part: part.write_text(page, "utf-8", "backslashreplace"))
    return Path(path)


def write_csv(path: str | Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Path:
    """Write a table for machines: a line of names, then numbers in full; empty where a cell is None.

    Args:
        path: of the file; an old one is replaced.
        columns: their names.
        rows: cells, as many as there are columns.

    Returns:
        The path.

    Raises:
        ValueError: a row has another length than `columns`.
        OSError: the file cannot be written; an old one is left whole.
    """
    _check_rows(columns, rows)

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])

    write_atomically(Path(path), write)
    return Path(path)


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records whose entries are the ones that are wanted.

    Example:
        >>> select([{"law": "a", "seed": 0}, {"law": "b", "seed": 0}], law="b")
        [{'law': 'b', 'seed': 0}]
    """
    return [record for record in records if all(record[key] == value for key, value in wanted.items())]


def mean_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (of single values, not of their mean) as text; one value alone has no spread.

    The spread has one significant digit, two where it begins with 1, and the mean ends at the same digit.

    Example:
        >>> mean_spread([11.9, 12.3, 12.7]), mean_spread([12.0, 12.1, 12.3]), mean_spread([12.3456]), mean_spread([])
        ('12.3 ± 0.4', '12.13 ± 0.15', '12.35', '–')
    """
    if not values:
        return "–"
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    if not (spread > 0 and math.isfinite(spread)):
        return number(mean)
    first, exponent = f"{spread:.1e}".split("e")
    decimals = (1 if first.startswith("1") else 0) - int(exponent)
    if decimals > 7:
        return f"{number(mean)} ± {spread:.1e}".replace("-", "−")
    return f"{mean:,.{max(0, decimals)}f} ± {spread:,.{max(0, decimals)}f}".replace("-", "−")


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: so many significant digits, no exponents where they can be helped.

    Example:
        >>> number(1234.56), number(0.0123456), number(1.5e-9), number(None)
        ('1,235', '0.01235', '1.50e−09', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "undefined" if value != value else "infinite" if value > 0 else "−infinite"
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.2e}".replace("-", "−")
    before = math.floor(math.log10(abs(value))) + 1 if value else 1
    return f"{value:,.{max(0, digits - before)}f}".replace("-", "−")


def cell(value: Cell) -> str:
    """A cell as the page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return value if isinstance(value, str) else number(value)


def machine() -> dict[str, str]:
    """What numbers were computed on: versions, processor, GPU."""
    try:
        own = version("molrmog")
    except PackageNotFoundError:
        own = "from a source tree"
    found = {
        "molrmog": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _check_rows(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells for the {len(columns)} columns {', '.join(columns)}: {row}")


def _is_figure(value: Cell) -> bool:
    if isinstance(value, str):
        return value[:1].isdigit() or (value[:1] in "−-+" and value[1:2].isdigit())
    return value is not None and not isinstance(value, bool)


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.strip().split("\n\n") if part]


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple | set):
        return ", ".join(map(_setting, value))
    return "not set" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
