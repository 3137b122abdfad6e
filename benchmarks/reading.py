"""What does reading cost? Each source beside the fewest steps of other libraries that give the same numbers.

    python benchmarks/reading.py [MNIST and CIFAR-10 where $MOLRMOG_DATA_DIR has them]

The floor unpacks, parses or decodes and puts the rows together, and judges nothing.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import csv, parquet

from _stopwatch import time_each
from molrmog.data import load

ROWS, PICTURES = 1_000_000, 10_000


def write_sources(folder: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=ROWS) for i in range(10)}
    table = pa.table(columns | {"n": rng.integers(0, 100, ROWS), "label": rng.integers(0, 5, ROWS)})
    parquet.write_table(table, folder / "table.parquet")
    csv.write_csv(table, folder / "table.csv")
    for i in range(PICTURES):
        path = folder / "pictures" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def rows_of(table: pa.Table) -> np.ndarray:
    return np.column_stack([table[name].to_numpy() for name in table.column_names if name != "label"])


def pictures_of(sources: list) -> np.ndarray:
    return np.stack([np.asarray(Image.open(each)) for each in sources]).astype(np.float32) * (2 / 255) - 1


def unzipped(path: Path) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).astype(np.float32) * (2 / 255) - 1


def peers(folder: Path) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Reader and floor of every source."""
    found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        f"parquet, {ROWS:,} rows": (
            lambda: load(folder / "table.parquet"),
            lambda: rows_of(parquet.read_table(folder / "table.parquet")),
        ),
        f"CSV, {ROWS:,} rows": (
            lambda: load(folder / "table.csv"),
            lambda: rows_of(csv.read_csv(folder / "table.csv")),
        ),
        f"{PICTURES:,} pictures": (
            lambda: load(folder / "pictures"),
            lambda: pictures_of(sorted((folder / "pictures").glob("*/*.png"))),
        ),
    }
    data = Path(os.environ.get("MOLRMOG_DATA_DIR", "")) / "mnist" / "train-images-idx3-ubyte.gz"
    if data.is_file():
        found["MNIST"] = lambda: load("mnist"), lambda: unzipped(data)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        write_sources(Path(name))
        print(f"{'source':28} {'ours, CPU s':>12} {'floor, CPU s':>13} {'ratio':>6} {'wall':>6}")
        for source, (ours, floor) in peers(Path(name)).items():
            times = time_each({"ours": ours, "floor": floor}, runs=3)
            a, b = times["ours"], times["floor"]
            print(f"{source:28} {a.cpu:12.3f} {b.cpu:13.3f} {a.cpu / b.cpu:6.2f} {a.wall / b.wall:6.2f}")


if __name__ == "__main__":
    main()
