"""What can be read: the one table of sources, from which help, errors and the choice of a reader are made."""

from __future__ import annotations

import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A kind of file.

    Attributes:
        kind: its name.
        suffixes: by which it is recognised, in any case; also with .gz after them where `may_be_packed`.
        begins: bytes by which it is recognised where the suffix is another one.
        holds: what its rows are.
        may_be_packed: whether it may be compressed by gzip.
    """

    kind: str
    suffixes: tuple[str, ...]
    begins: bytes
    holds: str
    may_be_packed: bool = False

    @property
    def is_table(self) -> bool:
        """Whether it has columns with names."""
        return self.kind in ("CSV", "parquet", "Feather")


SOURCES = (
    Source("CSV", (".csv", ".tsv", ".tab", ".txt", ".data"), b"", "columns of a text file", may_be_packed=True),
    Source("parquet", (".parquet", ".pq"), b"PAR1", "columns, or a column of images"),
    Source("Feather", (".feather", ".arrow", ".ipc"), b"ARROW1", "columns, or a column of images"),
    Source("npy", (".npy",), b"\x93NUMPY", "rows without labels, read as they are needed"),
    Source("npz", (".npz",), b"PK", "x_train and y_train (x_test, ...), or x and y, data and labels, arr_0 and arr_1"),
)
FILES = "a .csv, .tsv, .parquet, .feather, .npy or .npz file"
DATA = f"digits, mnist, fashion-mnist, cifar10, a folder of images or of tables, {FILES}, or hf:owner/name"


def source_of(path: Path) -> Source:
    """The kind of a file, by its suffix, else by its first bytes.

    Raises:
        ValueError: there is no such kind.
        OSError: the file cannot be read.
    """
    found = _by_suffix(path.name)
    if found is not None:
        return found
    with path.open("rb") as file:
        head = file.read(8)
    for source in SOURCES:
        if source.begins and head.startswith(source.begins):
            return source
    suffixes = ", ".join(suffix for source in SOURCES for suffix in source.suffixes)
    idx = ": pass the folder that holds it" if "ubyte" in path.name else f", known are {suffixes} and folders"
    raise ValueError(f"{path}: unknown kind of file{idx}")


def is_table(name: str) -> bool:
    """Whether a file of that name is a table with columns, as far as its suffix says; plain text is not."""
    found = _by_suffix(name)
    plain = name.lower().removesuffix(".gz").endswith((".txt", ".data"))
    return found is not None and found.is_table and not plain


def has_known_suffix(name: str) -> bool:
    """Whether a file of that name can be data."""
    return _by_suffix(name) is not None


def _by_suffix(name: str) -> Source | None:
    lower = name.lower()
    for source in SOURCES:
        plain = lower.removesuffix(".gz") if source.may_be_packed else lower
        if plain.endswith(source.suffixes) and plain not in source.suffixes:
            return source
    return None


@contextmanager
def readable(path: Path) -> Generator[None]:
    """Turn whatever a reader fails with into one line that names the file.

    Raises:
        ValueError: the file is damaged, or too large.
        OSError: it is not there, or may not be read.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except MemoryError:
        raise ValueError(f"{path}: does not fit into memory: pass a part of it") from None
    except (Exception, zlib.error) as error:  # libraries that read files fail in ways of their own
        if str(error).startswith(str(path)):
            raise ValueError(str(error)) from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"{path}: damaged, or written in a way that is not read ({reason}): copy or write it again"
        ) from None
