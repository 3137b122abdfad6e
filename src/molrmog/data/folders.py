"""Folders: data sets in a known layout, tables and their shards, or pictures with a folder for each class.

    train-images-idx3-ubyte ...            IDX, as MNIST comes
    data_batch_1 ... test_batch            CIFAR-10, as its authors wrote it
    train.parquet  train-00000-of-...csv   a table in parts; without such names all tables are shards of one part
    mnist_train.csv  mnist_test.csv        the same
    train/a.csv  test/b.csv
    cat/1.png  dog/2.jpg                   pictures of classes; all in one folder are pictures without labels
    train/cat/1.png  test/cat/2.png        the same in parts

Parts are train, and val, valid, validation or test, in any case. `train` is a class where other folders beside it are
no parts and it holds pictures itself. Hidden files and folders are passed over wherever they lie, and so are folders
that hold no picture; other files are counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from molrmog.data.account import Account, listed
from molrmog.data.files import How, Raw, read_cifar_batches, read_idx, read_shards, refuse_columns
from molrmog.data.images import SUFFIXES, decode
from molrmog.data.sources import is_table, source_of

_SECOND_PARTS = ("val", "valid", "validation", "test")
_PARTS = ("train", *_SECOND_PARTS)
_MADE_UP = ("/proc", "/sys")


def read_folder(folder: Path, split: str, how: How) -> Raw:
    """Read a part of whatever a folder holds.

    Raises:
        ValueError: it holds nothing that can be read, or not this part, or an option does not fit.
        FileNotFoundError: a file of a known layout is missing.
    """
    files = _Files(folder)
    known = _read_layout(folder, split, how, files)
    if known is not None:
        return known
    if not files.pictures and files.tables:
        return _read_tables(folder, {"train": files.tables}, split, how, files)
    refuse_columns(folder.name, how.choice)
    return _read_pictures(folder, split, how, files)


def read_layout(folder: Path, split: str, how: How) -> Raw | None:
    """Read a part from IDX files, CIFAR-10 batches, or tables with a part in their names; None where there are none."""
    return _read_layout(folder, split, how, _Files(folder))


def _read_layout(folder: Path, split: str, how: How, files: _Files) -> Raw | None:
    _part_names(split)
    prefix = "train" if split == "train" else "t10k"
    for images in sorted(folder.glob(f"{prefix}-images?idx3-ubyte*")):
        refuse_columns(folder.name, how.choice)
        return read_idx(images)
    if tables := _tables_in_parts(files):
        return _read_tables(folder, tables, split, how, None)
    for batches in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-python.tar.gz"):
        if batches.is_file() or (batches / "test_batch").is_file():
            refuse_columns(folder.name, how.choice)
            return read_cifar_batches(batches, split)
    return None


def _part_names(split: str) -> tuple[str, ...]:
    """Names under which a folder may hold the part, the wanted one first."""
    if split not in _PARTS:
        raise ValueError(f"unknown split {split!r}: train or test (or {', '.join(_SECOND_PARTS[:-1])})")
    return ("train",) if split == "train" else (split, *_SECOND_PARTS)


class _File(NamedTuple):
    """A file below a folder: the names of the folders it lies in, and its own."""

    inside: tuple[str, ...]
    name: str

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1].lower()


class _Files:
    """The visible files below a folder, in the order of their names: pictures, tables, and others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all = sorted(_visible(folder), key=lambda file: (*file.inside, file.name))
        self.pictures = [file for file in self.all if file.suffix in SUFFIXES]
        self.tables = [file for file in self.all if is_table(file.name)]

    def path(self, file: _File) -> Path:
        return Path(self.folder, *file.inside, file.name)

    def left_out(self, read: Iterable[_File]) -> str:
        """How many files are not among those read, by suffix; empty where there are none."""
        known = set(read)
        kinds = Counter(file.suffix or "without a suffix" for file in self.all if file not in known)
        if not kinds:
            return ""
        shown = [f"{count:,} {suffix}" for suffix, count in kinds.most_common()]
        return f"{sum(kinds.values()):,} of {len(self.all):,} files left out: {listed(shown)}"


# Tables


def _tables_in_parts(files: _Files) -> dict[str, list[_File]]:
    """Tables whose name, or the name of whose folder, says which part they are."""
    found: dict[str, list[_File]] = {}
    named = re.compile(rf"({'|'.join(_PARTS)})([-_.].*)?", re.IGNORECASE)
    for file in files.tables:
        if len(file.inside) > 1:
            continue
        own = named.fullmatch(file.name)
        match = own or (named.fullmatch(file.inside[0]) if file.inside else None)
        # Beside pictures a table is about them, unless it may hold pictures itself.
        if match is not None and (not files.pictures or (own and file.suffix == ".parquet")):
            found.setdefault(match[1].lower(), []).append(file)
    if found or files.pictures:
        return found
    # Names such as mnist_train.csv and mnist_test.csv, where all of them say it.
    ended = re.compile(rf".*[-_. ]({'|'.join(_PARTS)})(\.[^.]*){{1,2}}", re.IGNORECASE)
    for file in files.tables:
        if file.inside or (match := ended.fullmatch(file.name)) is None:
            return {}
        found.setdefault(match[1].lower(), []).append(file)
    return found if "train" in found else {}


def _read_tables(folder: Path, parts: dict[str, list[_File]], split: str, how: How, files: _Files | None) -> Raw:
    own = next((part for part in _part_names(split) if part in parts), None)
    if own is None:
        raise ValueError(f"{folder} has the parts {', '.join(parts)}, not {split!r}: load it, and .split(0.8)")
    shards = parts[own]
    paths = [Path(folder, *file.inside, file.name) for file in shards]
    if len({source_of(path).kind for path in paths}) > 1:
        raise ValueError(f"{folder} holds tables of several kinds, {listed([p.name for p in paths])}: name one of them")
    others = [file for part, several in parts.items() if part != own for file in several]
    keys = sorted({name.partition("=")[0] for file in shards for name in file.inside if "=" in name})
    notes = [f"{listed(keys)} left out: in the names of folders, not in the tables"] if keys else []
    notes.append(_unread(own, parts) if how.holds_out else "")
    other_paths = [Path(folder, *file.inside, file.name) for file in others]
    raw = read_shards(paths, other_paths, how, folder.name if len(paths) > 1 else None)
    notes.append(files.left_out([*shards, *others]) if files is not None else "")
    return raw._replace(account=raw.account.noted(after=notes))


def _unread(own: str, parts: Iterable[str]) -> str:
    """Which parts are neither fitted nor held out."""
    more = [part for part in parts if part.lower() not in ("train", own.lower())]
    return f"{'part' if len(more) == 1 else 'parts'} {listed(more)} left out: {own} is held out" if more else ""


# Pictures


def _read_pictures(folder: Path, split: str, how: How, files: _Files) -> Raw:
    """Read a folder of pictures: parts, then one subfolder a class, or no labels."""
    parts = _parts_of(folder)
    notes: list[str] = []
    if parts:
        own = next((part for name in _part_names(split) for part in parts if part.lower() == name), None)
        if own is None:
            raise ValueError(f"{folder} has the parts {', '.join(parts)}, not {split!r}")
        notes.append(_unread(own, parts) if how.holds_out else "")
    elif split == "train":
        parts, own = [""], ""
    else:
        raise ValueError(f"{folder} is one part, it has no {split!r}: load it and split it, .split(0.8)")
    # Names over all parts, so that a class has the same label in each.
    found: dict[str, dict[str, list[_File]]] = {part: {} for part in parts}
    outside: list[_File] = []
    for file in files.pictures:
        part, inner = (file.inside[0] if file.inside else None, file.inside[1:]) if own else ("", file.inside)
        if part in found:
            found[part].setdefault(inner[0] if inner else "", []).append(file)
        else:
            outside.append(file)
    classes = sorted({name for names in found.values() for name in names if name})
    place, loose = folder / own, found[own].get("", [])
    if loose and classes:
        raise ValueError(f"{place} holds both class folders and images such as {loose[0].name}: keep one or the other")
    if outside:
        notes.append(f"{len(outside):,} pictures outside of {', '.join(parts)} left out")
    notes.append(files.left_out(files.pictures))
    empty = sorted({name for part in parts for name in _folders(folder / part)} - set(classes))
    if empty and classes:
        notes.append(f"folders without pictures left out: {listed(empty)}")
    inside = {name: {file.inside[bool(own) + 1 :][:1] for file in found[own].get(name, [])} for name in classes}
    alike = next(iter(inside.values()), set())
    if len(inside) > 1 and len(alike) > 1 and all(names == alike for names in inside.values()):
        shown = listed(sorted(name for names in alike for name in names))
        notes.append(f"{listed(classes)} taken as classes, though each has the folders {shown}")
    chosen = [(file, label) for label, name in enumerate(classes) for file in found[own].get(name, [])]
    read = [file for file, _ in chosen] or loose
    images, said = decode(place.name, [files.path(file) for file in read], how.pictures)
    labels = np.array([label for _, label in chosen]) if classes else None
    raw = Raw(images, labels, tuple(classes) or None, 256, Account(kind="pictures"))
    return raw._replace(account=raw.account.noted(after=[*notes, *said]))


def _parts_of(folder: Path) -> list[str]:
    """Names of the folders that are parts; none where `train` is the name of a class."""
    own = _folders(folder)
    parts = [name for part in _PARTS for name in own if name.lower() == part]
    if not parts or parts[0].lower() != "train":
        return []
    # Beside classes it is one of them, unless it holds classes itself.
    if set(own) - set(parts) and not _folders(folder / parts[0]):
        return []
    return parts


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def _visible(folder: Path) -> Iterator[_File]:
    """Files below a folder, links followed but not in circles; hidden ones are passed over.

    Raises:
        ValueError: the folder is one that the system makes up, whose links lead everywhere.
    """
    made_up = next((each for each in _MADE_UP if Path(each) in (Path(folder).resolve() / "x").parents), None)
    if made_up is not None:
        raise ValueError(f"{folder} is in {made_up}, which the system makes up: pass a folder of files")
    waiting: list[tuple[str, tuple[str, ...], tuple[tuple[int, int], ...]]] = [(str(folder), (), ())]
    while waiting:
        place, inside, above = waiting.pop()
        about = os.stat(place)
        own = about.st_dev, about.st_ino
        if own in above:
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, (*inside, entry.name), (*above, own)))
                elif entry.is_file():
                    yield _File(inside, entry.name)
