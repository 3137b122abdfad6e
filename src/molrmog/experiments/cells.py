"""A grid of cells, computed by worker processes and kept one by one, as soon as each is done.

    out/cells/NAME/cell.json        the settings of the cell and its result: its mark of being done
    out/cells/NAME/...              whatever else the cell keeps, such as its checkpoints and samples

Cells know nothing of each other, so they fill all cores at one thread each, without the cost of threads that wait. The
same call again computes only the cells that are missing or have other settings; a cell that was killed goes on from
whatever it kept itself.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from molrmog.folders import locked, sweep
from molrmog.progress import progress
from molrmog.saving import write_atomically
from molrmog.seeds import seed_of

CELLS_NAME, CELL_NAME = "cells", "cell.json"
_SETTINGS_NAME, _PROGRESS_NAME, _ERROR_NAME = "settings.json", "progress", "error"

Compute = Callable[[dict[str, Any], Path], dict[str, Any]]
"""What a cell computes: settings and its folder in, a result for JSON out; a function of a module."""


def check_choice(budgets: Mapping[str, object], budget: str, seed: int, workers: int) -> int:
    """Refuse what no experiment can be asked for, and return the seed as a number that JSON knows.

    Raises:
        ValueError: an unknown budget, or a number out of range.
    """
    if budget not in budgets:
        raise ValueError(f"unknown budget {budget!r}: choose one of {', '.join(budgets)}")
    seed = seed_of(seed)
    if seed < 0 or workers < 1:
        raise ValueError(f"seed = {seed}, workers = {workers}: pass a seed >= 0 and at least one worker")
    return seed


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of an experiment into its folder."""
    text = json.dumps(settings, indent=2)
    write_atomically(out / _SETTINGS_NAME, lambda part: part.write_text(text + "\n"))


class Crew:
    """Worker processes that compute one grid after another, and end with the block.

    A process imports torch and all that cells need, which costs seconds; the stages of an experiment share a crew:

        with Crew(workers=4) as crew:
            trained = crew.run(train_cell, cells, out, title="training")
            measured = crew.run(measure_cell, others, out, title="measuring")

    Attributes:
        workers: processes at a time.
        threads: of each process.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.workers = workers
        self.threads = threads
        self._at_work: list[_Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        while self._at_work:
            self._at_work.pop().end()

    def run(
        self, compute: Compute, cells: Mapping[str, Mapping[str, Any]], out: Path, *, title: str = "cells"
    ) -> dict[str, dict[str, Any]]:
        """Compute all cells that are not there yet; see `run_cells`."""
        with locked(out / CELLS_NAME, out):
            return self._run(compute, cells, out, title)

    def _run(
        self, compute: Compute, cells: Mapping[str, Mapping[str, Any]], out: Path, title: str
    ) -> dict[str, dict[str, Any]]:
        folders = {name: out / CELLS_NAME / name for name in cells}
        waiting = [name for name in cells if _result(folders[name], cells[name]) is None]
        done = len(cells) - len(waiting)
        while len(self._at_work) < min(self.workers, len(waiting)):
            self._at_work.append(_Worker(self.threads))
        try:
            with progress() as show:
                show(title, done, len(cells), f"{done} of {len(cells)}")
                while waiting or any(worker.cell for worker in self._at_work):
                    for worker in self._at_work:
                        if worker.cell is None and waiting:
                            name = waiting.pop(0)
                            _prepare(folders[name], cells[name])
                            worker.begin(compute, name, cells[name], folders[name])
                        elif worker.cell is not None and worker.has_ended():
                            name, worker.cell = worker.cell, None
                            if _result(folders[name], cells[name]) is None:
                                raise RuntimeError(f"cell {name} failed: {_why(folders[name])}")
                            done += 1
                    parts = {w.cell: _share(folders[w.cell]) for w in self._at_work if w.cell}
                    doing = [f"{done} of {len(cells)}", *(f"{name} {part:.0%}" for name, part in parts.items())]
                    show(title, done + sum(parts.values()), len(cells), "  ".join(doing))
                    time.sleep(0.05)
        except BaseException:
            self.__exit__()  # some are in the middle of a cell
            raise
        found = {name: _result(folders[name], cells[name]) for name in cells}
        return {name: result for name, result in found.items() if result is not None}


def run_cells(
    compute: Compute,
    cells: Mapping[str, Mapping[str, Any]],
    out: Path,
    *,
    workers: int,
    threads: int = 1,
    title: str = "cells",
) -> dict[str, dict[str, Any]]:
    """Compute all cells that are not there yet, and show on stderr how far that is.

    Args:
        compute: see `Compute`.
        cells: name to settings, as JSON has them; a name may hold slashes.
        out: folder of the experiment.
        workers: processes at a time.
        threads: of each process.
        title: of what is shown.

    Returns:
        Name to result, in the order of `cells`.

    Raises:
        RuntimeError: a cell failed; the others that were running are stopped, what they kept stays.
        BlockingIOError: another process computes cells of this experiment.
    """
    with Crew(workers, threads) as crew:
        return crew.run(compute, cells, out, title=title)


class _Worker:
    """A process that computes one cell after another; `cell` is the one it is at, or None."""

    def __init__(self, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(other, threads), daemon=True)
        self.process.start()
        other.close()
        self.cell: str | None = None

    def begin(self, compute: Compute, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        self.cell = name
        with suppress(BrokenPipeError):  # a process that died is one that has ended
            self.pipe.send((compute, dict(settings), folder))

    def has_ended(self) -> bool:
        """Whether the cell is done, or the process with it."""
        if self.pipe.poll():
            with suppress(EOFError, OSError):
                self.pipe.recv()
            return True
        return not self.process.is_alive()

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def report_progress(folder: Path, share: float) -> None:
    """Say how much of a cell is done, from inside it."""
    with suppress(OSError):
        (folder / _PROGRESS_NAME).write_text(f"{share:.4f}")


def _work(pipe: Connection, threads: int) -> None:
    """Compute the cells that come through the pipe, and say when each has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and stops us
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        compute, settings, folder = pipe.recv()
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


def _end_with_the_parent() -> None:
    """Leave no process behind where the parent is killed: its next run must find the folders free."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def holds_cells(out: Path) -> bool:
    """Whether a folder is that of an experiment: it has cells, or once had."""
    place = out / CELLS_NAME
    marks = (_SETTINGS_NAME, CELL_NAME)
    return (out / _SETTINGS_NAME).is_file() or any(next(place.rglob(name), None) is not None for name in marks)


def _prepare(folder: Path, settings: Mapping[str, Any]) -> None:
    """An empty folder, or one that a cell of the same settings was stopped in.

    What a cell of other settings kept is moved aside, for there may be files of others in it.

    Raises:
        FileExistsError: the folder is of no cell.
    """
    text = json.dumps(settings, sort_keys=True)
    sweep(folder, (_SETTINGS_NAME, CELL_NAME))
    with suppress(OSError, ValueError):
        if (folder / _SETTINGS_NAME).read_text() == text:
            (folder / _ERROR_NAME).unlink(missing_ok=True)
            return
    if folder.is_dir() and any(folder.iterdir()):
        if not any((folder / name).is_file() for name in (_SETTINGS_NAME, CELL_NAME)):
            raise FileExistsError(
                f"{folder} holds something else than a cell: move it elsewhere, or name another --out"
            )
        number = next(i for i in itertools.count(1) if not folder.with_name(f"{folder.name}.before-{i}").exists())
        folder.rename(folder.with_name(f"{folder.name}.before-{number}"))
    write_atomically(folder / _SETTINGS_NAME, lambda part: part.write_text(text))


def _result(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        kept = dict(json.loads((folder / CELL_NAME).read_text()))
        result = dict(kept["result"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # damaged, so it is computed again
    return result if kept.get("settings") == json.loads(json.dumps(settings)) else None


def _share(folder: Path) -> float:
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
