"""How far long work is: bars on a terminal, and where stderr is a file or a pipe a plain line now and then.

    training: 45%, loss 0.1234, 30.0 s          every 30 seconds
    training: done, loss 0.1011, 71.2 s         at the end of a stage

Nothing is said at the end of a stage that failed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 30.0
"""Seconds between two lines about one stage."""

_SHORT = 1.0  # seconds; a stage that counts nothing and ends sooner leaves no line


class Show(Protocol):
    """Says where a stage stands; a stage of another name begins where the one before ended."""

    def __call__(self, stage: str, done: float = 0.0, total: float | None = None, text: str | None = None) -> None:
        """Show it.

        Args:
            stage: its name.
            done: how much is done, of `total`.
            total: of what is to be done; None while it is not known.
            text: what else there is to say; as before where None.
        """
        ...


@contextmanager
def progress(shown: bool = True) -> Generator[Show]:
    """Show stages of work on stderr, one after the other.

    Args:
        shown: False shows nothing.

    Yields:
        Show: to be called with the name of a stage and where it stands.

    Example:
        >>> with progress() as show:
        ...     for i in range(3):
        ...         show("counting", i + 1, total=3, text=f"{i}")
    """
    if not shown:
        yield lambda stage, done=0.0, total=None, text=None: None
        return
    console = _console()
    with _bars(console) if _is_drawn(console) else _lines() as show:
        yield show


@contextmanager
def status(stage: str) -> Generator[None]:
    """Show that one stage is at work, which counts nothing.

    Args:
        stage: its name.
    """
    console = _console()
    if _is_drawn(console):
        from rich.text import Text

        with console.status(Text(stage), spinner="line" if console.options.ascii_only else "dots"):
            yield
        return
    with _lines() as show:
        show(stage)
        yield


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _is_drawn(console: Console) -> bool:
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)


@contextmanager
def _bars(console: Console) -> Generator[Show]:
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: float = 0.0, total: float | None = None, text: str | None = None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, text="")
            bars.update(tasks[stage], completed=done, total=total)
            if text is not None:
                bars.update(tasks[stage], text=text)

        yield show


class _Stage:
    done: float = 0.0
    total: float | None = None
    text: str = ""

    def __init__(self, name: str) -> None:
        self.name, self.begun = name, time.monotonic()

    def say(self, done: str) -> None:
        parts = [part for part in (done, self.text, f"{time.monotonic() - self.begun:.1f} s") if part]
        with suppress(OSError, ValueError):  # whoever read our lines may have gone
            print(f"{self.name}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.total is not None or time.monotonic() - self.begun > _SHORT:
            self.say("done")


@contextmanager
def _lines() -> Generator[Show]:
    now: list[_Stage] = []  # the stage that is at work, if any
    ended = threading.Event()

    def show(stage: str, done: float = 0.0, total: float | None = None, text: str | None = None) -> None:
        if now and now[0].name != stage:
            now.pop().end()
        if not now:
            now.append(_Stage(stage))
        own = now[0]
        own.done, own.total, own.text = done, total or own.total, own.text if text is None else text

    def repeat() -> None:
        while not ended.wait(EVERY):
            for stage in now[:]:  # show may end it meanwhile
                stage.say(f"{stage.done / stage.total:.0%}" if stage.total else "")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield show
        for stage in now:
            stage.end()
    finally:
        ended.set()
        thread.join()
