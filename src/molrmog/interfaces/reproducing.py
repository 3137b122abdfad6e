"""What `molrmog reproduce` does: an experiment in a folder of its own, which the same command goes on in."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molrmog.experiments.cells import holds_cells
from molrmog.folders import locked, sweep
from molrmog.interfaces.places import check_folder
from molrmog.interfaces.runs import EXPERIMENT_NAME, check_out, experiment_in
from molrmog.saving import write_atomically

_OWN_OPTIONS = {
    "images": ("dataset", "device", "data_dir"),
    "hybrid": ("dataset", "device", "rows", "steps", "seeds", "data_dir"),
    "overlap": ("data_dir",),
}


def run_experiment(
    *,
    name: str,
    out: str | None = None,
    budget: str = "smoke",
    dataset: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    rows: int | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    data_dir: str | None = None,
    command: str,
) -> None:
    """Run an experiment, or what is missing of it.

    Args:
        name: an experiment, see `molrmog.experiments`.
        out: folder of the experiment.
        budget: "smoke", "cpu" or "gpu".
        dataset: of "images" and "hybrid"; mnist where None.
        seed: of everything random.
        workers: processes at a time.
        device: where networks of "images" and "hybrid" are trained; the CPU where None.
        rows: training rows of "hybrid".
        steps: training steps of "hybrid".
        seeds: how many seeds of "hybrid".
        data_dir: folder to look in first, of "images", "hybrid" and "overlap".
        command: the words that asked for this.

    Raises:
        ValueError: an option does not fit.
        OSError: the data are not there, or the folder cannot be written, or it holds something else.
        RuntimeError: a part of the experiment failed; what was finished is kept.
        KeyboardInterrupt: with a line that says how to go on.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers}: pass 1 or more")
    if rows is not None and rows < 2:
        raise ValueError(f"--rows {rows}: pass 2 or more")
    given = {"dataset": dataset, "device": device, "rows": rows, "steps": steps, "seeds": seeds, "data_dir": data_dir}
    own = {key: value for key, value in given.items() if value is not None}
    foreign = [key for key in own if key not in _OWN_OPTIONS.get(name, ())]
    if foreign:
        several = " and ".join(other for other, keys in _OWN_OPTIONS.items() if foreign[0] in keys)
        raise ValueError(f"--{foreign[0].replace('_', '-')} is an option of {several}: leave it out for {name}")
    less = [f"{word}{value}" for word, value in (("rows", rows), ("steps", steps)) if value is not None]
    folder = "-".join([name, *([dataset or "mnist"] if name in ("images", "hybrid") else []), budget, *less])
    options = {"seed": seed, "workers": workers or (1 if own.get("device", "cpu") != "cpu" else os.cpu_count() or 1)}
    place = Path(out or f"runs/{folder}")
    asked = {"experiment": name, "budget": budget, "seed": seed, "dataset": dataset, "rows": rows, "steps": steps}
    check_folder(place)
    with locked(place):
        claimed = _claim(place, asked)
        run = getattr(importlib.import_module(f"molrmog.experiments.{name}"), f"run_{name}")
        try:
            page = run(place, budget=budget, **options, **own)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; what is done is kept, go on with: {command}") from None
        except (ValueError, OSError):
            if claimed:
                _give_up(place)
            raise
    print(f"report  {page}")


def _give_up(out: Path) -> None:
    """Take the mark of this call from a folder in which nothing was computed; `locked` removes one that it made."""
    if [path.name for path in out.iterdir()] == [EXPERIMENT_NAME]:
        (out / EXPERIMENT_NAME).unlink()


def _claim(out: Path, asked: Mapping[str, Any]) -> bool:
    """Mark a folder as that of an experiment, or refuse it where it is something else.

    Returns:
        Whether it had no mark.
    """
    sweep(out, [EXPERIMENT_NAME])
    mark = out / EXPERIMENT_NAME
    if mark.is_file():
        there = experiment_in(out)
        different = [f"{key} {there[key]}, not {value}" for key, value in asked.items() if there[key] != value]
        if different:
            raise FileExistsError(f"--out {out} holds {', '.join(different)}: name another folder")
        return False
    if not holds_cells(out):  # those of an experiment that was called from Python
        check_out(out, overwrite=False)
    write_atomically(mark, lambda part: part.write_text(json.dumps(asked, indent=2) + "\n"))
    return True
