"""Random command lines.

The grammar is the parser's own: every command and option, with values that are good, borderline and absurd; words that
are blank, unknown, doubled, out of order, cut off; `--config` of every sort; `--out` at links, files, missing parents
and names that are too long; output that nobody reads, is full, closed, or of another encoding.

Most run as `main()` in a forked child, each in a folder of its own that holds data, a run of fit, one of train and a
model; one in twelve is a real process. The work of `demo`, `bench` and `reproduce` is left out, their words are not.
What takes longer than a few seconds is interrupted, and must end then. What fails is

- a traceback, an exit code other than 0, 1, 2, 130, 141, 143, a process that does not end;
- an error without a line `molrmog: error:`, or of more than a few lines; an error that says nothing;
- exit code 0 where an option is unknown or its value no such thing, or where the output was lost;
- a file changed that the command was not asked to write, or a temporary one left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _trials import (
    Case,
    Ended,
    command,
    copy_tree,
    files_of,
    load_commands,
    options,
    pick,
    printable,
    rng,
    start,
    tally,
    trials,
)

from molrmog.interfaces import cli

PATIENCE = 8.0  # seconds before a command is interrupted
CODES = (0, 1, 2, 130, 141, 143)
LINES = 3  # of an error

QUICK = {  # so that what is good ends soon
    "fit": [
        "--subspaces",
        "2",
        "--latent-dim",
        "1",
        "--modes",
        "1",
        "--noise",
        "isotropic",
        "--max-iter",
        "2",
        "--no-evaluate",
    ],
    "select": ["--subspaces", "1", "--latent-dim", "1", "--modes", "1", "--noise", "isotropic"],
    "train": ["--steps", "2", "--batch-size", "8", "--autoencoder-steps", "2", "--no-evaluate", "--width", "8"],
    "sample": ["--num", "3", "--steps", "2"],
    "evaluate": ["--num-samples", "20", "--steps", "2", "--features", "pca"],
    "explain": ["--levels", "2", "--rows", "10"],
    "reproduce": ["--workers", "1"],
}
DATA = ["x.npy", "xy.npz", "digits", "pictures"]
RUNS = ["law", "net"]
NOT_DATA = [
    "nothing.npy",
    "text.txt",
    "empty",
    "law",
    "net",
    "bad.npz",
    "digitz",
    "",
    " ",
    "-",
    "/",
    "/dev/null",
    "a/b",
]
PLACES = ["new", "./new/", "law", "net", "text.txt", "empty", "link", "dangling", "loop", "deep/er/still", "x.npy/run"]
PLACES += ["a" * 300, "/proc/run", "/dev/full", "", " ", ".", "..", "new\nline", "ünï", "--", "locked/run", "~nobody/x"]
PICTURES = ["s.png", "law/s.png", "text.txt", "empty", "link", "no/such.png", "/dev/full", "", "s", "a" * 300]
ABSURD = [
    "",
    " ",
    "-1",
    "0",
    "1e9",
    "nan",
    "inf",
    "-inf",
    "1.5",
    "true",
    "null",
    "[]",
    "[1,2]",
    "{}",
    "[1,",
    "abc",
    "ä",
]
ABSURD += ["99999999999999999999", "--", "-", "1e-400", "0x10", "'1'", "None", "@file", "$HOME", "*", "a\nb", "\udcff"]
CONFIGS = ["good.yaml", "law/config.yaml", "net/config.yaml", "text.txt", "nothing.yaml", "empty", "x.npy", "list.yaml"]
CONFIGS += [
    "unknown.yaml",
    "binary.yaml",
    "bomb.yaml",
    "tag.yaml",
    "",
    "/dev/null",
    "nested.yaml",
    "{seed: 3}",
    "wrong.yaml",
]


def prepare(folder: Path) -> None:
    """Data, runs, models, and what is none of these."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 4)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.savez(folder / "xy.npz", x=x, y=np.arange(60) % 2)
    (folder / "bad.npz").write_bytes((folder / "xy.npz").read_bytes()[:200])
    (folder / "text.txt").write_text("no data\n")
    (folder / "empty").mkdir()
    from PIL import Image

    (folder / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
    (folder / "link").symlink_to("empty")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "good.yaml").write_text("seed: 3\n")
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "unknown.yaml").write_text("sead: 3\n")
    (folder / "wrong.yaml").write_text("seed: abc\n")
    (folder / "nested.yaml").write_text("fit:\n  seed: 3\nseed: {a: 1}\n")
    (folder / "tag.yaml").write_text("seed: !!python/object/apply:os.system ['touch canary']\n")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "bomb.yaml").write_text(
        "a: &a [x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 8)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True))
    )
    for words in (
        ["fit", "xy.npz", "--out", "law", *QUICK["fit"]],
        ["train", "xy.npz", "--out", "net", "--network", "mlp", "--autoencoder", "none", *QUICK["train"]],
    ):
        ended = start(command(*words), folder).wait(120)
        if ended.code:
            raise RuntimeError(f"molrmog {' '.join(words)}: {ended.err}")


class Line:
    """A command line, drawn at random, and whether it must be refused."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.refused: str | None = None
        # Half of the lines are good but for one thing, so that the one is seen.
        self.hostility = float(pick(random, (0.0, 0.05, 0.3)))
        self.name = str(
            pick(random, [*cli._COMMANDS, "fit", "select", "train", "sample", "evaluate", "explain", "info"])
        )
        self.actions = [a for a in cli._COMMANDS[self.name][0]()._actions if a.option_strings]
        self.words = self._line()

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def hostile(self) -> bool:
        return self.chance(self.hostility)

    def _line(self) -> list[str]:
        words = [self.name, *self._places(), *QUICK.get(self.name, [])]
        for _ in range(int(self.random.integers(0, 4))):
            words += self._option(pick(self.random, self.actions))
        if self.chance(0.08):
            words += ["--config", str(pick(self.random, CONFIGS))]
        return self._torn(words)

    def _places(self) -> list[str]:
        """What a command is about, and where it writes."""
        data = str(pick(self.random, NOT_DATA if self.hostile() else DATA))
        run = str(pick(self.random, NOT_DATA if self.hostile() else RUNS))
        out = str(pick(self.random, PLACES if self.hostile() else ["new", "deep/new"]))
        return {
            "fit": [data, "--out", out],
            "select": [data, *pick(self.random, ([], ["--plot", str(pick(self.random, PICTURES if self.hostile() else ["s.png"]))]))],
            "train": [data, "--out", out, *pick(self.random, ([], ["--autoencoder", "none"], ["--network", "mlp", "--autoencoder", "none"]))],
            "sample": [run, "--out", str(pick(self.random, PICTURES if self.hostile() else ["s.png"]))],
            "evaluate": [run],
            "explain": ["net", "--law", "law", "--out", out],
            "info": [pick(self.random, [data, run])],
            "demo": ["--out", out],
            "reproduce": [str(pick(self.random, ["floor", "estimation", "curvature", "hybrid", "images", "nothing"])), "--out", out],
            "bench": ["nothing"],
        }[self.name]  # fmt: skip

    def _option(self, action: Any) -> list[str]:
        flag = str(pick(self.random, action.option_strings))
        kind = str(getattr(action, "_typehint", None) or action.type)
        if flag in ("--help", "-h", "--config") and not self.chance(0.3):
            return []
        if type(action).__name__ == "ActionYesNo":
            return [flag] if self.chance(0.9) else [f"{flag}=maybe"]
        if action.nargs == 0:
            return [flag]
        if self.hostile():
            value = str(pick(self.random, ABSURD))
            if value == "abc" and re.fullmatch(r"<class '(int|float)'>", kind) and self.refused is None:
                self.refused = f"{flag} abc"
            return [f"{flag}={value}"] if self.chance(0.5) else [flag, value]
        choices = re.findall(r"'(\w[\w+-]*)'", kind) if "Literal" in kind else []
        good = {
            "--seed": ["0", "7"], "--steps": ["1", "3"], "--device": ["cpu"], "--out": ["new"], "--npz": ["s.npz"],
            "--latent-dim": ["1", "2"], "--modes": ["1", "2"], "--rank": ["0", "1"], "--data-dir": ["."],
            "--workers": ["1"], "--autoencoder": ["none", "linear"], "--base": ["law"], "--law": ["law"], "--data": ["xy.npz"],
            "--channels": ["[8]"], "--subspace": ["0"], "--expert": ["0"], "--learn": ["mean", "all"], "--levels": ["2", "log-normal"],
        }.get(flag) or choices or (["1", "2"] if "int" in kind else ["0.5", "0.1"] if "float" in kind else ["x"])  # fmt: skip
        return [flag, str(pick(self.random, good))]

    def _torn(self, words: list[str]) -> list[str]:
        """Words lost, doubled, moved, misspelt."""
        if self.hostile():
            words.append(str(pick(self.random, ["--nothing", "--sede", "-x", "extra", "", "--nothing=1", "--se"])))
            if words[-1].startswith("--n"):
                self.refused = words[-1]
        if self.hostile() and len(words) > 1:
            del words[int(self.random.integers(len(words)))]
            self.refused = None
        if self.hostile():
            at = int(self.random.integers(len(words)))
            words.insert(at, words[at])
        if self.hostile():
            rest = words[1:]
            self.random.shuffle(rest)
            words, self.refused = words[:1] + rest, None
        if self.hostile():
            words, self.refused = words[: int(self.random.integers(len(words)))], None
        if self.hostile():
            words = [str(pick(self.random, ["", "fitt", "FIT", "--version", "--help", "-", "\n"])), *words[1:]]
            self.refused = None
        if any(word in ("--help", "-h", "--version", "--print_config") for word in words):
            self.refused = None
        return words


def written(words: Sequence[str]) -> set[str]:
    """The first folders that a command line may write in: those that it names."""
    named = {word.partition("=")[2] or word for word in words}
    tops = {part for each in named if each.strip() for part in Path(os.path.normpath(each)).parts[:1]}
    return tops | {"empty"} if "link" in tops else tops


def judge(line: Line, output: str, ended: Ended, before: dict[str, bytes], now: dict[str, bytes]) -> str | None:
    """Why a command line went wrong, or None."""
    words, refused = line.words, line.refused
    code, err = ended.code, ended.err
    said = [line for line in err.splitlines() if line.strip() and not line.startswith("molrmog: warning:")]
    if ended.late:
        return "did not end, also when interrupted"
    if "Traceback" in err:
        return "showed a traceback: " + printable(err[-400:])
    if code not in CODES:
        return f"exit code {code}: {printable(err[-300:])}"
    if "Exception ignored" in err or "Warning:" in re.sub(r"molrmog: warning:", "", err):
        return f"said on stderr: {printable(err[:300])}"
    if code in (1, 2) and "--help" not in words and words:
        if not any(line.startswith("molrmog: error: ") for line in said):
            return f"exit code {code} without a line molrmog: error: {printable(err[:300])}"
        first = next(i for i, each in enumerate(said) if each.startswith("molrmog: error: "))
        if len(said) - first > LINES:  # what stands before it is how far the work was
            return f"an error of {len(said)} lines: {printable(err[:300])}"
        line = next(line for line in said if line.startswith("molrmog: error: ")).removeprefix("molrmog: error: ")
        if not line.strip() or len(line) > 500:
            return f"an error of {len(line)} characters: {printable(line[:300])}"
        if re.match(r"(\w*Error|\w*Exception): ", line):
            return f"an error that is not the library's own: {printable(line[:300])}"
    if code == 0 and refused:
        return f"exit code 0, with {refused}"
    if code == 0 and output == "full" and words:  # every command that succeeds says something
        return "exit code 0, and its output was lost"
    changed = {name for name in before if before[name] != now.get(name)}
    added = set(now) - set(before)
    mine = set() if code == 2 else written(words)
    foreign = sorted(name for name in changed if Path(name).parts[0] not in mine)
    if foreign:
        return f"exit code {code}, and changed {printable(foreign[0])}"
    if code in (1, 2):
        if changed and output == "file":  # else it may have done all but say so
            return f"exit code {code}, and changed {printable(min(changed))}"
        left = sorted(name for name in added if Path(name).name.startswith(".") or name.endswith(".part"))
        if left:
            return f"exit code {code}, and left {printable(left[0])}"
    if code == 0 and (left := sorted(name for name in added if name.endswith(".part"))):
        return f"exit code 0, and left {printable(left[0])}"
    if "canary" in now:
        return "ran code of a YAML file"
    return None


def without_work() -> None:
    """Leave out, in a child, what takes minutes: the words are tried, not the experiments."""
    import importlib

    from molrmog.interfaces import commands, demo

    def experiment(place: Path, **_: Any) -> Path:
        (place / "report.html").write_text("")
        return place / "report.html"

    for name in ("images", "floor", "estimation", "curvature", "convergence", "overlap", "subspaces", "hybrid"):
        setattr(importlib.import_module(f"molrmog.experiments.{name}"), f"run_{name}", experiment)

    def run_demo(out: Path, **_: Any) -> Path:
        with demo.staged(out, overwrite=True) as part:
            (part / "report.html").write_text("")
        print(f"report  {out / 'report.html'}")
        return out / "report.html"

    demo.run_demo = run_demo  # type: ignore[assignment]
    commands._relayed = lambda *_: 0  # type: ignore[assignment]


def forked(words: Sequence[str], folder: Path, output: str) -> Ended:
    """`main()` in a forked child, whose stdout goes to a file, to a full disk, or to nobody."""

    def call() -> int:
        without_work()
        if output == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        elif output == "nobody":
            got, give = os.pipe()
            os.close(got)
            os.dup2(give, 1)
        return command(*words)()

    running = start(call, folder)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)
    running.signal(signal.SIGINT)
    return running.wait(PATIENCE)


def process(words: Sequence[str], folder: Path, output: str, encoding: str | None) -> Ended:
    """A process `python -m molrmog.interfaces.cli`, with a shell's ways to lose its output."""
    env = {**os.environ, **({"PYTHONIOENCODING": encoding} if encoding else {})}
    base = [sys.executable, "-m", "molrmog.interfaces.cli", *words]
    shell = {"file": '"$@" > "$TO"', "full": '"$@" > /dev/full', "closed": '"$@" >&-', "nobody": 'set -o pipefail; "$@" | head -c 1 > "$TO"', "no stderr": '"$@" > "$TO" 2>&-'}[output]  # fmt: skip
    with tempfile.NamedTemporaryFile(prefix="torture-said-") as to:
        asked = ["bash", "-c", shell, "molrmog", *base]
        child = subprocess.Popen(
            asked, cwd=folder, env={**env, "TO": to.name}, stderr=subprocess.PIPE, start_new_session=True
        )
        late = False
        try:
            err = child.communicate(timeout=5 * PATIENCE)[1]
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            err, late = child.communicate()[1], True
        return Ended(child.returncode, Path(to.name).read_text(errors="replace"), err.decode(errors="replace"), late)


def case_of(number: int, folder: Path, seed: int, base: Path) -> Case:
    """One command line."""
    random = rng(seed, number)
    line = Line(random)
    words = line.words
    real = random.random() < 1 / 12 and line.name not in ("demo", "bench", "reproduce")
    output = str(pick(random, ["file"] * 6 + ["full", "nobody"] + (["closed", "no stderr"] if real else [])))
    encoding = pick(random, [None, None, "ascii", "latin-1", "cp437", "ascii:strict"]) if real else None

    def run() -> str | None:
        copy_tree(base, folder)
        before = files_of(folder)
        ended = process(words, folder, output, encoding) if real else forked(words, folder, output)
        if output == "no stderr" and ended.code in CODES:
            return None
        return judge(line, output, ended, before, files_of(folder))

    how = f"{' as a process' if real else ''}, stdout: {output}{f', {encoding}' if encoding else ''}"
    what = words[0] if words and words[0] in cli._COMMANDS else "no command"
    return Case(what, f"molrmog {' '.join(map(repr, words))}{how}", run)


def main() -> int:
    asked = options(__doc__, tries=1000, minutes=4)
    result = tally(__file__, asked)
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        base = Path(place, "base")
        base.mkdir()
        prepare(base)
        of: Callable[[int, Path], Case] = lambda number, folder: case_of(number, folder, asked.seed, base)  # noqa: E731
        trials(result, asked, of, batch=20, seconds=8 * PATIENCE)
    shutil.rmtree(place, ignore_errors=True)
    return result.close()


if __name__ == "__main__":
    load_commands()

    sys.exit(main())
