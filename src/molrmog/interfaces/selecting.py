"""What `molrmog select` does: candidates for the structure of a law as a table, a file and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import molrmog
from molrmog.interfaces.fitting import parts_for
from molrmog.interfaces.places import check_file
from molrmog.learning.selection import Selection
from molrmog.saving import write_atomically


def select_and_print(
    *, data: str, labels: bool, held_out: float, seed: int, rows: int, plot: str | None, out: str | None, **options: Any
) -> None:
    """Choose a structure, and print what was tried.

    Args:
        data: name or path of the data.
        labels: one subspace per class.
        held_out: share of rows that `molrmog fit` would hold out to measure; they are left out here, too.
        seed: of everything random.
        rows: candidates to list.
        plot: file for a picture.
        out: file for all candidates.
        **options: how the data are read, and the remaining arguments of `molrmog.select`.

    Raises:
        ValueError: the data or settings do not fit.
        OSError: the data are not there, or a file cannot be written.
    """
    for path, endings in ((plot, (".png", ".svg")), (out, (".csv", ".json"))):
        if path is not None:
            if Path(path).suffix.lower() not in endings:
                raise ValueError(f"{path}: name a file that ends in {' or '.join(endings)}")
            check_file(Path(path), overwrite=True)
    train, _, _, asked = parts_for(data, labels=labels, held_out=held_out, seed=seed, options=options)
    asked["latent_dim"] = "auto" if asked["latent_dim"] is None else asked["latent_dim"]
    found = molrmog.select(train, train.labels if labels else None, seed=seed, progress=True, **asked)
    _print_table(found, rows)
    if out is not None:
        text = as_csv(found.table) if Path(out).suffix.lower() == ".csv" else json.dumps(found.table, indent=1) + "\n"
        write_atomically(Path(out), lambda file: file.write_bytes(text.encode()))
        print(f"table   {out}")
    if plot is not None:
        picture = io.BytesIO()
        found.plot().savefig(picture, format=Path(plot).suffix[1:].lower(), dpi=150, facecolor="white")
        write_atomically(Path(plot), lambda file: file.write_bytes(picture.getvalue()))
        print(f"plot    {plot}")


def as_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The records of a selection as CSV; lists with spaces between their numbers."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    for record in table:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()})
    return text.getvalue()


def _print_table(found: Selection, rows: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    judged = {"held-out": "nats/row", "bic": "BIC", "icl": "ICL"}[found.criterion]
    for name in ("K", "d", "n", "noise", "prior rows", "d.o.f.", judged, "behind"):
        table.add_column(name, justify="left" if name == "noise" else "right")
    for each in found.table[:rows]:
        value = each["held_out" if found.criterion == "held-out" else found.criterion]
        leaning = each["prior_rows"] if max(each["modes"]) > 1 else None
        table.add_row(
            str(each["subspaces"]),
            _in_short(each["latent_dims"]),
            _in_short(each["modes"]),
            each["noise"] if each["coordinates"] == "data" else f"{each['noise']}, {each['coordinates']}",
            "" if leaning is None else f"{leaning:.4g}",
            f"{each['degrees_of_freedom']:,}",
            f"{value:,.2f}",
            f"{each['behind']:.3g}",
        )
    Console().print(table)
    if len(found.table) > rows:
        print(f"and {len(found.table) - rows} more")
    print(found)


def _in_short(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)}-{max(numbers)}"
