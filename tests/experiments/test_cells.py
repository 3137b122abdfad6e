"""Grids of cells: each computed once, whatever ends the process that asked for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from molrmog.experiments.cells import CELL_NAME, Crew, report_progress, run_cells


def square(settings, folder):
    """A cell that keeps how often it was computed."""
    import torch

    calls = folder.parent / f"{folder.name}.calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    report_progress(folder, 0.5)
    return {"value": settings["x"] ** 2, "threads": torch.get_num_threads()}


def broken(settings, folder):
    if settings["x"] == 1:
        raise ValueError("x = 1 is\nnot wanted")
    return {"value": 0}


def gone(settings, folder):
    os._exit(7)


def endless(settings, folder):
    """A cell in two parts, of which the second waits until it is allowed to end."""
    part = folder / "part"
    part.write_text(part.read_text() + "x" if part.exists() else "x")
    (folder / "process").write_text(str(os.getpid()))
    allowed = folder.parent.parent / "allowed"
    while not allowed.exists():
        report_progress(folder, 0.5)
        time.sleep(0.05)
    return {"parts": len(part.read_text())}


def computed(out, name):
    return len((out / "cells" / f"{name}.calls").read_text())


@pytest.mark.slow
def test_cells_are_computed_once_and_in_order(tmp_path, capfd):
    cells = {"b": {"x": 2}, "a": {"x": 3}}
    expected = {"b": {"value": 4, "threads": 1}, "a": {"value": 9, "threads": 1}}
    found = run_cells(square, cells, tmp_path, workers=2, title="squares")
    assert (found, list(found)) == (expected, ["b", "a"])
    assert "squares" in capfd.readouterr().err
    assert run_cells(square, cells, tmp_path, workers=1) == expected
    assert (computed(tmp_path, "a"), computed(tmp_path, "b")) == (1, 1)
    assert capfd.readouterr().out == ""
    kept = json.loads((tmp_path / "cells/a" / CELL_NAME).read_text())
    assert kept == {"settings": {"x": 3}, "result": expected["a"]}

    # Other settings, and a file that is no JSON, are computed anew; the rest is not.
    (tmp_path / "cells/b" / CELL_NAME).write_text("{")
    cells = {"b": {"x": 2}, "a": {"x": 4}}
    assert run_cells(square, cells, tmp_path, workers=2)["a"]["value"] == 16
    assert (computed(tmp_path, "a"), computed(tmp_path, "b")) == (2, 2)


@pytest.mark.slow
def test_what_a_cell_of_other_settings_kept_is_thrown_away(tmp_path):
    folder = tmp_path / "cells/a"
    run_cells(square, {"a": {"x": 2}}, tmp_path, workers=1)
    (folder / "checkpoint").write_text("of 2")
    (folder / CELL_NAME).unlink()
    run_cells(square, {"a": {"x": 2}}, tmp_path, workers=1)
    assert (folder / "checkpoint").exists()  # the same cell goes on from it
    run_cells(square, {"a": {"x": 3}}, tmp_path, workers=1)
    assert not (folder / "checkpoint").exists()


@pytest.mark.slow
def test_a_cell_that_fails_says_why_in_a_line_and_the_others_stay(tmp_path):
    cells = {"fine": {"x": 0}, "bad": {"x": 1}, "never": {"x": 2}}
    with pytest.raises(RuntimeError, match="cell bad failed: x = 1 is not wanted"):
        run_cells(broken, cells, tmp_path, workers=1)
    assert (tmp_path / "cells/fine" / CELL_NAME).exists()
    assert not (tmp_path / "cells/never").exists()
    # What failed is tried again, and what it said is forgotten.
    with pytest.raises(RuntimeError, match="cell bad failed: its process was ended"):
        run_cells(gone, {"bad": {"x": 1}}, tmp_path, workers=1)


def who(settings, folder):
    return {"process": os.getpid()}


@pytest.mark.slow
def test_a_crew_serves_several_grids(tmp_path):
    with Crew(workers=1) as crew:
        assert crew.run(square, {}, tmp_path) == {}
        processes = {crew.run(who, {name: {"x": 1}}, tmp_path, title=name)[name]["process"] for name in "ab"}
        assert len(processes) == 1
        assert crew.run(square, {"c": {"x": 3}}, tmp_path)["c"]["value"] == 9
        # A cell that fails ends the processes, and later grids have others.
        with pytest.raises(RuntimeError, match="cell d failed"):
            crew.run(gone, {"d": {"x": 1}}, tmp_path)
        processes.add(crew.run(who, {"e": {"x": 1}}, tmp_path)["e"]["process"])
        assert len(processes) == 2
    assert all(ends(process) for process in processes)


PARENT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell runs in the background
sys.path.insert(0, sys.argv[1])
import test_cells
from molrmog.experiments.cells import run_cells
if __name__ == "__main__":
    run_cells(test_cells.endless, {"a": {"x": 1}, "b": {"x": 2}}, Path(sys.argv[2]), workers=1)
"""


def ends(process, seconds=60):
    """Whether a process that is not our child ends within so many seconds."""
    for _ in range(int(seconds / 0.1)):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGINT])
def test_a_grid_that_is_killed_leaves_no_process_and_goes_on(tmp_path, killed_by):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        place = tmp_path / "cells/a/process"
        while not (place.exists() and place.read_text()):
            assert parent.poll() is None
            time.sleep(0.05)
        child = int(place.read_text())
        parent.send_signal(killed_by)
        parent.wait(60)
    assert parent.returncode != 0
    try:
        assert ends(child)
    finally:
        (tmp_path / "allowed").touch()
    assert not (tmp_path / "cells/a" / CELL_NAME).exists()
    found = run_cells(endless, {"a": {"x": 1}, "b": {"x": 2}}, tmp_path, workers=2)
    assert found == {"a": {"parts": 2}, "b": {"parts": 1}}
