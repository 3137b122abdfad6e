"""What `molrmog info` does: a run in a few lines; or, of data, what was read, as what, and what was left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from molrmog.data import Dataset, load, load_test, parted
from molrmog.data.account import Column, Refused, listed
from molrmog.data.profile import Profile, profile
from molrmog.interfaces import evaluation
from molrmog.interfaces.evaluation import Measurement
from molrmog.interfaces.fitting import forecast
from molrmog.interfaces.network_report import describe
from molrmog.interfaces.runs import DATA_NAME, EXPERIMENT_NAME, Run, experiment_in
from molrmog.interfaces.trained import Trained
from molrmog.progress import status

_MOST_COLUMNS = 60  # that are listed one by one
_MOST_CLASSES = 40
Lines = list[tuple[str, Any]]


def say(target: str, reading: Mapping[str, Any]) -> None:
    """Print what a run or a data set is.

    Args:
        target: run folder, or name or path of data.
        reading: how data are read, see `molrmog.data.loading`.

    Raises:
        ValueError: the target is damaged, or neither, or cannot be read; what is known of its columns is printed.
        OSError: the target is not there.
    """
    measured: dict[str, list[Measurement]] = {}
    if (Path(target) / DATA_NAME).is_file():
        lines, measured = _of_run(Path(target))
    elif (Path(target) / EXPERIMENT_NAME).is_file():
        lines = _of_experiment(Path(target))
    else:
        lines = _of_data(target, reading)
    _print(lines)
    if measured:
        evaluation.print_measurements("measurements", measured)


def _print(lines: Lines) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # paths are long, and are not to be cut
    for name, value in lines:
        table.add_row(Text(name), Text(str(value)))
    Console().print(table)


def _of_run(folder: Path) -> tuple[Lines, dict[str, list[Measurement]]]:
    place = Run(folder)
    model, about, records = place.model(), place.info(), place.records()
    lines: Lines = [("run", folder)]
    if isinstance(model, Trained):
        lines += describe(model, place.settings())
        lines.append(("trained on", f"{about['name']}, {about['rows']:,} rows"))
        if last := next((r for r in reversed(records) if r["kind"] == "train"), None):
            lines.append(("training", f"{last['seconds']:.1f} s, {last['step']:,} steps"))
    else:
        lines += [
            ("law", type(model).__name__),
            ("dimension", model.dim),
            ("subspaces", model.subspaces),
            ("latent dimensions", ", ".join(map(str, model.latent_dims))),
            ("modes", ", ".join(map(str, model.modes))),
            ("parameters", f"{model.num_parameters:,}"),
            ("noise floor", f"{model.noise_floor:.4g} data units"),
            ("fitted to", f"{about['name']}, {about['rows']:,} rows"),
        ]
    if made := next((r for r in records if r["kind"] in ("fit", "training")), None):
        if made["kind"] == "fit":
            lines.append(("fit", f"{made['seconds']:.1f} s, {made['passes']} passes"))
            lines += [tuple(each.split(": ", 1)) for each in made.get("chosen", ())]
        lines.append(("command", made["command"]))
    latest: dict[tuple[str, str, str], Any] = {}
    for r in records:
        if r["kind"] == "measurement":
            key = (r["where"], r["name"], r["law"])
            latest.pop(key, None)
            latest[key] = r
    measured: dict[str, list[Measurement]] = {}
    for r in latest.values():
        measured.setdefault(r["law"], []).append(Measurement(*(r[field.name] for field in fields(Measurement))))
    return lines, measured


def _of_experiment(folder: Path) -> Lines:
    asked = experiment_in(folder)
    page = folder / "report.html"
    lines: Lines = [(key, value) for key, value in asked.items() if value is not None]
    return [*lines, ("report", page if page.is_file() else "not finished: give the same command again")]


def _of_data(target: str, reading: Mapping[str, Any]) -> Lines:
    try:
        with status(f"reading {target}"):
            data = load(target, **reading)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said of the first part
                held = load_test(target, **reading)
            look = profile(data)
    except Refused as error:
        _print([("data", target), *_columns(error.account.columns, None)])
        raise
    precision = "in a memory map" if isinstance(data.x, np.memmap) else str(data.x.dtype)
    scaling = f", x = raw * {data.scale:.6g} {data.shift:+.6g}" if data.levels else ""
    lines: Lines = [
        ("data", f"{data.name}, {data.account.kind or 'rows'}"),
        ("rows", f"{len(data):,}{f', and {len(held):,} of a test part' if held is not None else ''}"),
        ("shape", f"{' x '.join(map(str, data.shape))}{' (channels, height, width)' if data.is_image else ''}"),
        ("levels", f"{data.levels} integer levels" if data.levels else f"real numbers, {precision}"),
        ("values", f"{look.low.min():.4g} to {look.high.max():.4g}{scaling}"),
        *_columns(data.account.columns, look),
        *[("note", note) for note in data.account.notes],
        *_classes(data),
        ("missing", "no values"),
        *_warnings(data, look),
    ]
    if held is None:
        try:
            held = parted(data, 0.1)[1]
            lines.append(("a fit", f"holds out {len(held):,} rows of these"))
        except ValueError as error:
            lines.append(("a fit", f"refused: {error}"))
    return [*lines, *[("a fit", line) for line in forecast(data)]]


def _columns(columns: tuple[Column, ...], look: Profile | None) -> Lines:
    """What became of each column of a table."""
    lines: Lines = []
    at = 0
    for column in columns[:_MOST_COLUMNS]:
        what = {"used": "", "label": ", the labels"}.get(column.fate, f", {column.fate}: {column.why}")
        if column.fate == "used":
            here = slice(at, at + column.width)
            at += column.width
            if column.width > 1:
                what += f", {column.width:,} coordinates"
            if look is not None:
                what += f", {look.low[here].min():.4g} to {look.high[here].max():.4g}"
        lines.append((f"  {' '.join(column.name.split()) or 'without a name'}", f"{column.type}{what}"))
    if not columns:
        return []
    count = sum(column.fate == "used" for column in columns)
    more = [("  ...", f"{len(columns) - _MOST_COLUMNS:,} more")] if len(columns) > _MOST_COLUMNS else []
    return [("columns", f"{count:,} of {len(columns):,} used"), *lines, *more]


def _classes(data: Dataset) -> Lines:
    """The labels, and how many rows each class has."""
    if data.labels is None:
        return [("labels", "none")]
    labels, counts = np.unique(data.labels, return_counts=True)
    shown = [f"{name}: {count:,}" for name, count in zip(data.present, counts, strict=True)]
    absent = sorted(set(range(len(data.classes or ()))) - set(labels.tolist()))
    lines: Lines = [("labels", f"{len(labels):,} classes, {counts.min():,} to {counts.max():,} rows each")]
    lines.append(("classes", listed(shown, _MOST_CLASSES)))
    if absent and data.classes:
        lines.append(("classes", f"without rows: {listed([data.classes[k] for k in absent], _MOST_CLASSES)}"))
    return lines


def _warnings(data: Dataset, look: Profile) -> Lines:
    """What is odd about the rows."""
    names = [
        f"{column.name}[{j}]" if column.width > 1 else column.name
        for column in data.account.columns
        if column.fate == "used"
        for j in range(column.width)
    ] or [str(j) for j in range(data.dim)]
    what = "pixels" if data.is_image else "columns"
    lines: Lines = []
    if look.constant:
        shown = "" if data.is_image else f": {listed([names[j] for j in look.constant])}"
        lines.append(("constant", f"{len(look.constant):,} of {data.dim:,} {what}{shown}"))
    if look.copies:
        shown = "" if data.is_image else f": {listed([f'{names[b]} of {names[a]}' for a, b in look.copies])}"
        lines.append(("copies", f"{len(look.copies):,} {what}{shown}"))
    if look.repeated:
        lines.append(("repeated", f"{look.repeated:,} rows are copies of earlier ones"))
    return lines
