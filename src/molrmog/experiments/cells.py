"""A grid of cells, computed by worker processes and kept one by one, as soon as each is done.

    out/cells/NAME/cell.json        the settings of the cell and its result: its mark of being done
    out/cells/NAME/...              whatever else the cell keeps, such as its checkpoints and samples

Cells know nothing of each other, so they fill all cores at one thread each, without the cost of threads that wait. The
same call again computes only the cells that are missing or have other settings; a cell that was killed goes on from
whatever it kept itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from molrmog.saving import write_atomically

CELLS_NAME, CELL_NAME = "cells", "cell.json"
_SETTINGS_NAME, _PROGRESS_NAME, _ERROR_NAME = "settings.json", "progress", "error"

Compute = Callable[[dict[str, Any], Path], dict[str, Any]]
"""What a cell computes: settings and its folder in, a result for JSON out; a function of a module."""


def run_cells(
    compute: Compute,
    cells: Mapping[str, Mapping[str, Any]],
    out: Path,
    *,
    workers: int,
    threads: int = 1,
    title: str = "cells",
) -> dict[str, dict[str, Any]]:
    """Compute all cells that are not there yet, with a progress bar on stderr.

    Args:
        compute: see `Compute`.
        cells: name to settings, as JSON has them; a name may hold slashes.
        out: folder of the experiment.
        workers: processes at a time.
        threads: of each process.
        title: of the progress bar.

    Returns:
        Name to result, in the order of `cells`.

    Raises:
        RuntimeError: a cell failed; the others that were running are stopped, what they kept stays.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    folders = {name: out / CELLS_NAME / name for name in cells}
    waiting = [name for name in cells if _result(folders[name], cells[name]) is None]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[doing]}"), TimeElapsedColumn())
    done = len(cells) - len(waiting)
    crew = [_Worker(compute, threads) for _ in range(min(workers, len(waiting)))]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=len(cells), completed=done, doing=f"{done} of {len(cells)}")
        try:
            while waiting or any(worker.cell for worker in crew):
                for worker in crew:
                    if worker.cell is None and waiting:
                        name = waiting.pop(0)
                        _prepare(folders[name], cells[name])
                        worker.begin(name, cells[name], folders[name])
                    elif worker.cell is not None and worker.has_ended():
                        name, worker.cell = worker.cell, None
                        if _result(folders[name], cells[name]) is None:
                            raise RuntimeError(f"cell {name} failed: {_why(folders[name])}")
                        done += 1
                parts = {worker.cell: _progress(folders[worker.cell]) for worker in crew if worker.cell}
                doing = f"{done} of {len(cells)}  " + "  ".join(f"{name} {part:.0%}" for name, part in parts.items())
                bar.update(task, completed=done + sum(parts.values()), doing=doing)
                time.sleep(0.05)
        finally:
            for worker in crew:
                worker.end()
    found = {name: _result(folders[name], cells[name]) for name in cells}
    return {name: result for name, result in found.items() if result is not None}


class _Worker:
    """A process that computes one cell after another; `cell` is the one it is at, or None."""

    def __init__(self, compute: Compute, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(compute, other, threads), daemon=True)
        self.process.start()
        other.close()
        self.cell: str | None = None

    def begin(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        self.cell = name
        self.pipe.send((dict(settings), folder))

    def has_ended(self) -> bool:
        """Whether the cell is done, or the process with it."""
        if self.pipe.poll():
            with suppress(EOFError):
                self.pipe.recv()
            return True
        return not self.process.is_alive()

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def report_progress(folder: Path, share: float) -> None:
    """Say how much of a cell is done, from inside it; a cell whose parent is gone ends here."""
    with suppress(OSError):
        (folder / _PROGRESS_NAME).write_text(f"{share:.4f}")
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        raise SystemExit("the process that asked for this cell is gone")


def _serve(compute: Compute, pipe: Connection, threads: int) -> None:
    """Compute the cells that come through the pipe, and say when each has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and stops us
    import torch

    torch.set_num_threads(threads)
    while True:
        settings, folder = pipe.recv()
        try:
            result = compute(settings, folder)
        except Exception as error:
            line = " ".join(str(error).split()) or type(error).__name__
            detail = traceback.format_exc() if os.environ.get("MOLRMOG_DEBUG") else ""
            (folder / _ERROR_NAME).write_text(f"{line}\n{detail}".strip())
        else:
            text = json.dumps({"settings": settings, "result": result}, indent=2)
            write_atomically(folder / CELL_NAME, lambda part, text=text: part.write_text(text + "\n"))
            (folder / _PROGRESS_NAME).unlink(missing_ok=True)
        pipe.send(None)


def _prepare(folder: Path, settings: Mapping[str, Any]) -> None:
    """An empty folder, or one that a cell of the same settings was stopped in."""
    text = json.dumps(settings, sort_keys=True)
    with suppress(OSError):
        if (folder / _SETTINGS_NAME).read_text() == text:
            (folder / _ERROR_NAME).unlink(missing_ok=True)
            return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _SETTINGS_NAME).write_text(text)


def _result(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        kept = json.loads((folder / CELL_NAME).read_text())
    except (OSError, ValueError):
        return None
    return kept["result"] if kept.get("settings") == json.loads(json.dumps(settings)) else None


def _progress(folder: Path) -> float:
    try:
        return float((folder / _PROGRESS_NAME).read_text())
    except (OSError, ValueError):
        return 0.0


def _why(folder: Path) -> str:
    try:
        return (folder / _ERROR_NAME).read_text()
    except OSError:
        return "its process was ended (out of memory?): run again, with fewer workers"


def experiment_of(folder: Path) -> Path:
    """The folder of the experiment that a cell's folder belongs to."""
    return next(parent.parent for parent in folder.parents if parent.name == CELLS_NAME)
