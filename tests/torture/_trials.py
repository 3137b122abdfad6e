"""What the scripts of this folder share: cases in children of limited time and memory, and a table of those that failed.

A script is a function from a number to a `Case`. What is random in a case is drawn from `rng(seed, number)`, so that
`--seed S --only N` repeats it. Cases run in a forked child, a few per child, which tells what it is about to do before
it does it: one that dies, hangs or swells names its case.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GIB = 2**30
MEMORY = 1.5 * GIB  # what a case may take over what its process had before
SECONDS = 30.0  # what a case may take


class Case(NamedTuple):
    """One trial.

    `what` is its row in the table, `words` say what is done, and `run` does it: it returns None, or why it failed.
    """

    what: str
    words: str
    run: Callable[[], str | None]


@dataclass
class Tally:
    """What was tried, and what failed of it."""

    script: str
    seed: int
    kept: Path
    tried: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, int, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, number: int, what: str, words: str, why: str | None, folder: Path | None = None) -> None:
        """Count a case; where it failed its folder is kept."""
        self.tried[what] += 1
        if why is None:
            return
        self.failed[what] += 1
        self.failures.append((what, number, words, why))
        place = self.kept / str(number)
        shutil.rmtree(place, ignore_errors=True)
        if folder is not None and folder.is_dir():
            copy_tree(folder, place)
        place.mkdir(parents=True, exist_ok=True)
        (place / "why.txt").write_text(f"{what}\n{words}\n{why}\n", errors="backslashreplace")

    def close(self) -> int:
        """Print the table and every kind of failure, and return the exit code."""
        width = max([len(what) for what in self.tried] + [4])
        print(f"\n{'what':<{width}}  tried  failed")
        for what, tried in sorted(self.tried.items()):
            print(f"{what:<{width}}  {tried:5}  {self.failed[what]:6}")
        print(f"{'all':<{width}}  {self.tried.total():5}  {self.failed.total():6}")
        for note in self.notes:
            print(note)
        kinds: dict[str, list[tuple[str, int, str, str]]] = {}
        for failure in self.failures:
            kinds.setdefault(_kind(failure[3]), []).append(failure)
        for alike in sorted(kinds.values(), key=len, reverse=True):
            what, number, words, why = alike[0]
            print(f"\n{len(alike)} x {printable(why)[:500]}")
            print(f"    {what}: {printable(words)[:300]}")
            print(f"    python {self.script} --seed {self.seed} --only {number}")
        if self.failures:
            print(f"\n{len(self.failures)} failures of {len(kinds)} kinds; their inputs are in {self.kept}")
        return 1 if self.failures else 0


def _kind(why: str) -> str:
    """A failure without what differs from case to case: numbers, quoted words, paths."""
    return re.sub(r"""'[^']*'|"[^"]*"|\S*/\S+|[\[(][^\])]*[\])]|[-+\w.]*\d[-+\w.]*""", "#", why)[:160]


def printable(text: str) -> str:
    """A text in one line that any terminal shows."""
    return " | ".join(text.encode("ascii", "backslashreplace").decode().splitlines())


def options(doc: str | None, *, tries: int, minutes: float, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words after the name of a script."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=tries, help=f"cases, at most ({tries})")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"time, at most ({minutes:g})")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other cases (0)")
    parser.add_argument("--only", type=int, metavar="N", help="repeat this case alone")
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed; a temporary one where not given")
    return parser.parse_args(argv)


def tally(script: str, asked: argparse.Namespace) -> Tally:
    """An empty tally."""
    name = Path(script)
    kept = asked.keep or Path(tempfile.mkdtemp(prefix=f"torture-{name.stem}-"))
    return Tally(str(Path(*name.parts[-3:])), asked.seed, kept / name.stem if asked.keep else kept)


def numbers(asked: argparse.Namespace) -> Iterator[int]:
    """The numbers of the cases, as many as time allows."""
    if asked.only is not None:
        yield asked.only
        return
    end = time.monotonic() + 60 * asked.minutes
    for number in range(asked.tries):
        if time.monotonic() > end:
            return
        yield number


def rng(seed: int, number: int) -> np.random.Generator:
    """What is random in a case."""
    return np.random.default_rng([seed, number])


def pick(random: np.random.Generator, among: Sequence[Any]) -> Any:
    """One of them, as it is: numpy's `choice` would make an array of them."""
    return among[int(random.integers(len(among)))]


def trials(
    result: Tally,
    asked: argparse.Namespace,
    case_of: Callable[[int, Path], Case],
    *,
    batch: int = 1,
    seconds: float = SECONDS,
    memory: float = MEMORY,
) -> None:
    """Run the cases in forked children, and count them.

    Args:
        result: where they are counted.
        asked: how many, and for how long.
        case_of: builds a case of its number and of an empty folder, in the child.
        batch: cases per child.
        seconds: of each case.
        memory: bytes that a child may take over what it had when it began.
    """
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        waiting = numbers(asked)
        group: list[int] = []
        while True:
            while len(group) < batch and (number := next(waiting, None)) is not None:
                group.append(number)
            if not group:
                return
            for number, what, words, why in _child(group, case_of, Path(place), seconds, memory):
                folder = Path(place, str(number))
                result.add(number, what, words, why, folder)
                remove_tree(folder)
                group.remove(number)
            if asked.only is None:
                sys.stderr.write(f"\r{result.script}: {result.tried.total()} tried, {result.failed.total()} failed ")
                sys.stderr.flush()


def _child(
    group: list[int], case_of: Callable[[int, Path], Case], place: Path, seconds: float, memory: float
) -> Iterator[tuple[int, str, str, str | None]]:
    """The verdicts on cases, until all are done or the child has ended."""
    got, give = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(got)
        os.setsid()
        limit = virtual() + int(memory) + 3 * GIB  # threads and allocators reserve more than they touch
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            with os.fdopen(give, "w") as pipe:
                _cases(list(group), case_of, place, pipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(give)
    begun: tuple[int, str, str] | None = None
    buffer = b""
    late = False
    while True:
        ready, _, _ = select.select([got], [], [], seconds)
        if not ready:
            late = True
            break
        chunk = os.read(got, 2**16)
        if not chunk:
            break
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "why" not in said:
                begun = (said["number"], said["what"], said["words"])
            elif begun is not None:
                grown = said["grown"]
                why = said["why"]
                if why is None and grown > memory:
                    why = f"took {grown / GIB:.1f} GiB of memory"
                yield (*begun, why)
                begun = None
    os.close(got)
    if late:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what the child has started and left behind
    if begun is not None:
        died = f"died of signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "ended"
        yield (*begun, f"no end after {seconds:g} s" if late else died)
    elif status:
        yield group[0], "a child", "between two cases", f"ended with status {status}"


def _cases(group: list[int], case_of: Callable[[int, Path], Case], place: Path, pipe: Any) -> None:
    """Run cases, in the child, and tell the parent."""
    before = resident()  # of this child: pages of files are not handed down
    for number in group:
        folder = place / str(number)
        remove_tree(folder)
        folder.mkdir()
        os.chdir(folder)  # what a case writes under a name of its own stays there
        said = {"number": number, "what": "the script", "words": "building a case"}
        try:
            case = case_of(number, folder)
            said = {"number": number, "what": case.what, "words": case.words}
            print(json.dumps(said), file=pipe, flush=True)
            why = case.run()
        except Exception:  # of the script itself
            if said["what"] == "the script":
                print(json.dumps(said), file=pipe, flush=True)
            why = "the script failed: " + " | ".join(traceback.format_exc().splitlines()[-6:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"why": why, "grown": peak - before}), file=pipe, flush=True)
        if peak > resident() + GIB / 2:
            return  # the peak is that of the whole child: a next case would be blamed for this one


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def virtual() -> int:
    """Bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    late: bool

    @property
    def line(self) -> str:
        """The last that it said."""
        return ([line for line in self.err.splitlines() if line.strip()] or [""])[-1]


@dataclass
class Running:
    """A command that runs in a forked child, in a process group of its own."""

    pid: int
    out: Path
    err: Path
    end: float | None = None

    def wait(self, seconds: float) -> Ended:
        """Its end; one that takes longer is killed."""
        until = time.monotonic() + seconds
        pause, late = 0.001, False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                late = True
                self.signal(signal.SIGKILL)
            time.sleep(pause)
            pause = min(0.02, 1.5 * pause)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        texts = [path.read_text(errors="replace") for path in (self.out, self.err)]
        self.out.unlink()
        self.err.unlink()
        return Ended(os.waitstatus_to_exitcode(status), *texts, late)

    def signal(self, number: int) -> None:
        """Send a signal to the command itself."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(call: Callable[[], int | None], folder: Path) -> Running:
    """Fork, go to the folder, and call: what it returns is its exit code. Stdout and stderr become files."""
    names = []
    for _ in range(2):
        handle, name = tempfile.mkstemp(prefix="torture-said-")
        os.close(handle)
        names.append(name)
    pid = os.fork()
    if pid:
        with suppress(OSError):
            os.setpgid(pid, pid)
        return Running(pid, Path(names[0]), Path(names[1]))
    with suppress(OSError):
        os.setpgid(0, 0)
    code = 70
    try:
        for number, name in enumerate(names, 1):
            handle = os.open(name, os.O_WRONLY | os.O_TRUNC)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        code = call() or 0
    except SystemExit as finished:
        code = int(finished.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


# What commands import when they come to need it: two of the three seconds that a small one takes.
LATE = (
    *(f"molrmog.interfaces.{name}" for name in ("cli", "commands", "demo", "estimator", "evaluation", "explain")),
    *(f"molrmog.interfaces.{name}" for name in ("fitting", "training")),
    "accelerate",
    "jinja2.ext",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "rich.progress",
    "sklearn.cluster",
    "sklearn.datasets",
    "sklearn.mixture",
    "torch._dynamo",
)


def load_commands() -> None:
    """Import once what the commands import, so that the children need not.

    A process of its own, which a few cases start, imports late as ever.
    """
    for name in LATE:
        importlib.import_module(name)


def command(*words: str) -> Callable[[], int]:
    """What the process `molrmog WORDS` calls."""

    def call() -> int:
        from molrmog.interfaces.cli import main

        sys.argv = ["molrmog", *words]
        return main()

    return call


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file and folder beneath a folder: its bytes, or what a link or folder is."""
    found: dict[str, bytes] = {}
    for top, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(top, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = b"link to " + os.fsencode(os.readlink(path))
            elif path.is_dir():
                found[key] = b"a folder"
            elif path.is_file():
                found[key] = path.read_bytes()
            else:
                found[key] = b"neither a file nor a folder"
    return found


def copy_tree(source: Path, target: Path) -> None:
    """Copy files, folders and links; what is neither is left out."""

    def odd(top: str, names: list[str]) -> list[str]:
        paths = {name: Path(top, name) for name in names}
        return [n for n, p in paths.items() if not (p.is_symlink() or p.is_dir() or p.is_file())]

    with suppress(OSError, shutil.Error):
        shutil.copytree(source, target, symlinks=True, ignore=odd, dirs_exist_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder, also one that forbids it."""

    def allow(function: Any, path: str, _: Any) -> None:
        with suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700)
            function(path)

    shutil.rmtree(folder, onerror=allow)
