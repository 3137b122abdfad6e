"""Bars on a terminal, lines elsewhere."""

import re
import time

import pytest

from molrmog import progress as module
from molrmog.progress import progress, status


def test_a_stage_ends_with_a_line_where_stderr_is_no_terminal(capfd):
    with progress() as show:
        for i in range(1000):
            show("first", i + 1, 1000, f"loss [{i}]")
        show("second", 1, 4, "of four")
        show("second", 4, 4)
    out, err = capfd.readouterr()
    assert out == ""
    assert [re.sub(r"[\d.]+ s$", "S", line) for line in err.splitlines()] == [
        "first: done, loss [999], S",
        "second: done, of four, S",
    ]


def wait_for(text, lines, capfd):
    """Read stderr into `lines` until one of them holds the text."""
    deadline = time.monotonic() + 30
    while not any(text in line for line in lines) and time.monotonic() < deadline:
        time.sleep(0.02)
        lines += capfd.readouterr().err.splitlines()


def test_lines_come_now_and_then_though_nothing_is_counted(monkeypatch, capfd):
    monkeypatch.setattr(module, "EVERY", 0.05)
    lines = []
    with progress() as show:
        show("work", 1, 4, "at first")
        wait_for("work: 25%, at first, ", lines, capfd)
    with status("reading"):
        wait_for("reading: ", lines, capfd)
    assert re.fullmatch(r"work: 25%, at first, [\d.]+ s", lines[0])
    assert re.fullmatch(r"reading: [\d.]+ s", lines[-1])


def fail():
    with progress() as show:
        show("work", 1, 2)
        raise KeyError


def test_what_is_short_or_fails_leaves_no_line(capfd):
    with status("reading"):
        pass
    with progress(shown=False) as show:
        show("hidden", 1, 1)
    with pytest.raises(KeyError):
        fail()
    assert capfd.readouterr().err == ""


def test_a_terminal_has_bars(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress() as show:
        show("EM", 0, None, "finding a [start]")
        show("EM", 3, 3)
    with status("reading [x]"):
        pass
    err = capfd.readouterr().err
    assert "━" in err
    assert "finding a [start]" in err
    assert "done" not in err
