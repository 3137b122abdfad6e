"""Outputs that are closed, full, read by nobody, or of any encoding: the work is done, and the exit code is right."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from molrmog.interfaces import commands, streams
from molrmog.interfaces.cli import main

pytestmark = pytest.mark.usefixtures("parsers_built_once")
ENCODINGS = ("ascii", "cp1252", "latin-1", "utf-16", "utf-8", "shift_jis", "koi8-r")
EVERY_SIGN = "−–…×·±≥“x”’ Fréchet café データ ━╭┃ \u280b \udce9 \U0001f600"


class Full(io.RawIOBase):
    """A file that fails as it is told, after so many bytes."""

    def __init__(self, number, room=0):
        self.number, self.room, self.kept = number, room, b""

    def writable(self):
        return True

    def write(self, data):
        if len(self.kept) >= self.room:
            raise OSError(self.number, os.strerror(self.number))
        taken = bytes(data)[: self.room - len(self.kept)]
        self.kept += taken
        return len(taken)


def text_stream(raw, unbuffered=False, encoding="utf-8"):
    buffer = raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=encoding, errors="strict", write_through=unbuffered)


@pytest.fixture
def work(monkeypatch):
    """Every command prints, and then does something; what was done."""
    done = []

    def command(**_):
        print("a line", flush=True)
        print("x" * 100_000)
        done.append(1)

    for name in commands.COMMANDS:
        monkeypatch.setitem(commands.COMMANDS, name, command)
    return done


ALL = [
    *(["fit", "d", "--out", "r"], ["train", "d", "--out", "r"], ["sample", "r"], ["evaluate", "r"], ["explain", "r"]),
    *(["info", "d"], ["reproduce", "floor"], ["demo"], ["bench"], ["--help"], ["--version"]),
    *([name, "--help"] for name in commands.COMMANDS),
]


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(("number", "code"), [(28, 1), (32, 141), (9, 1), (5, 1)])
@pytest.mark.parametrize("room", [0, 3])
def test_results_that_are_lost_fail_after_the_work(unbuffered, number, code, room, work, monkeypatch):
    for argv in ALL:
        work.clear()
        full, err = Full(number, room), io.BytesIO()
        monkeypatch.setattr(sys, "stdout", text_stream(full, unbuffered))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8", line_buffering=True))
        try:
            assert main(argv) == code, argv
        finally:
            lines = err.getvalue().decode().splitlines()
        assert bool(work) == ("-" not in argv[-1]), argv
        assert len(full.kept) == room
        assert len(lines) == (number != 32), lines
        if lines:
            assert lines[0].startswith(f"molrmog: error: stdout: {os.strerror(number)}")
        sys.stdout.flush()  # nothing is left for the end of Python to fail with


def test_nobody_to_tell(work, monkeypatch):
    for argv in ALL:
        for out, err in ((None, None), (Full(28), Full(28)), (Full(32), Full(32)), (io.BytesIO(), Full(32))):
            fine = isinstance(out, io.BytesIO)
            for name, stream in (("stdout", out), ("stderr", err)):
                monkeypatch.setattr(sys, name, None if stream is None else text_stream(stream, not fine))
            assert main(argv) == (0 if fine else 141 if out is not None and out.number == 32 else 1)
            assert main(["fit", "d"]) == 2  # what had failed anyway says so
            assert main(["fit", "d", "--out", "r", "--seed", "-1"]) == 1


def test_a_stream_that_was_closed(work, monkeypatch):
    stream = text_stream(io.BytesIO())
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["demo"]) == 1


def test_the_streams_come_back_as_they_were(work, capsys):
    before = sys.stdout, sys.stderr
    assert main(["demo"]) == 0
    assert main(["demo", "--seed", "x"]) == 2
    assert (sys.stdout, sys.stderr) == before
    print("behind")
    assert capsys.readouterr().out.endswith("x\nbehind\n")


def test_a_pipe_that_does_not_block(monkeypatch):
    read, write = os.pipe()
    os.set_blocking(write, False)
    code = "import os, sys, time; time.sleep(0.2); sys.exit(len(sys.stdin.buffer.read()) != 1_000_001)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=read) as reader:
        os.close(read)
        with monkeypatch.context() as patch, open(write, "w") as stream:
            patch.setattr(sys, "stdout", stream)
            patch.setitem(commands.COMMANDS, "demo", lambda **_: print("x" * 1_000_000))
            assert main(["demo"]) == 0
        assert reader.wait() == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_takes_every_sign(encoding, monkeypatch):
    def command(**_):
        from rich.console import Console
        from rich.table import Table

        print(EVERY_SIGN)
        print(EVERY_SIGN, file=sys.stderr)
        table = Table("name")
        table.add_row("Fréchet −1.5")
        Console().print(table)
        print("the end")
        raise ValueError(EVERY_SIGN)

    monkeypatch.setitem(commands.COMMANDS, "demo", command)
    out, err = io.BytesIO(), io.BytesIO()
    for name, buffer in (("stdout", out), ("stderr", err)):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, errors="strict"))
    assert main(["demo"]) == 1
    said, told = (buffer.getvalue().decode(encoding) for buffer in (out, err))
    assert said.endswith("the end\n")
    assert len(told.splitlines()) == 2
    assert r"\udce9" in said  # of a name that is not UTF-8
    for word in ("Fréchet", "café"):
        assert word in said or word.replace("é", "e") in said or word.replace("é", r"\xe9") in said
    assert ("\u2212" in said) or "-1.5" in said
    if encoding == "ascii":
        assert said.startswith('--...x-+->="x"')
        assert r"caf\xe9 \u30c7\u30fc\u30bf" in said  # a path can be told from any other


def test_what_is_no_file_takes_text_as_it_is(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setitem(commands.COMMANDS, "demo", lambda **_: print(EVERY_SIGN))
    assert main(["demo"]) == 0
    assert stream.getvalue() == EVERY_SIGN + "\n"


ENV = {"PYTHONPATH": str(Path(streams.__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def shell(line, folder, **env):
    line = f"set -o pipefail; molrmog() {{ '{sys.executable}' -m molrmog \"$@\"; }}; {line}"
    env = {key: value for key, value in {**os.environ, **ENV, **env}.items() if value}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, errors="replace")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("ending", "code", "lines"),
    [
        (">&-", 1, 1),
        ("2>&-", 0, 0),
        ("<&- >&- 2>&-", 1, 0),
        (">/dev/full", 1, 1),
        ("2>/dev/full", 0, 0),
        (">/dev/full 2>/dev/full", 1, 0),
        ("| true", 141, 0),
        ("2>&1 | true", 141, 0),
    ],
)
def test_processes_with_such_outputs(ending, code, lines, unbuffered, tmp_path):
    words = "--version" if unbuffered else "fit --help"
    done = shell(f"molrmog {words} {ending}", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code, done
    assert len(done.stderr.splitlines()) == lines


def test_the_module_is_the_command(tmp_path):
    done = shell("molrmog --version; molrmog fti; echo $?", tmp_path)
    assert done.stdout.startswith("molrmog ")
    assert done.stdout.endswith("\n2\n")
    assert "did you mean fit?" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "utf-16", ""])
def test_whole_fits_in_every_encoding(encoding, tmp_path):
    for name in ("café−“x” データ\nb\x1b[31m", os.fsdecode(b"caf\xe9\xff")):
        np.savez(tmp_path / f"{name}.npz", x=np.random.default_rng(0).normal(size=(100, 4)), y=np.arange(100) % 2)
        words = [sys.executable, "-m", "molrmog", "fit", f"{name}.npz", "--out", f"r-{name}"]
        words += ["--subspaces=1", "--modes=1"]
        c_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        env = {**os.environ, **ENV, **({"PYTHONIOENCODING": encoding} if encoding else c_locale)}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True)
        out, err = (part.decode(encoding or "ascii") for part in (done.stdout, done.stderr))
        if "\udce9" in name or not encoding:  # no model can be read from there; in the C locale from no such name
            assert done.returncode == 1
            assert "the name is not UTF-8" in err
            words[6] = f"other-{len(name)}"
            done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True)
            out = done.stdout.decode(encoding or "ascii")
        assert done.returncode == 0, err
        assert "held-out" in out
        assert "report.html" in out


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [(">/dev/full", 1), ("| true", 141)])
def test_whole_commands_keep_their_work(ending, code, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(100, 4)), y=np.arange(100) % 2)
    done = shell(f"molrmog fit d.npz --out r --subspaces 1 --modes 1 {ending}", tmp_path)
    assert done.returncode == code, done
    assert (tmp_path / "r" / "report.html").is_file()
    done = shell(f"molrmog sample r --num 4 --out a.png --npz a.npz {ending}", tmp_path, PYTHONUNBUFFERED="1")
    assert done.returncode == code, done
    assert (tmp_path / "a.png").is_file()
    assert (tmp_path / "a.npz").is_file()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "counting.py").write_text("for i in range(20_000): print('line', i)\n")
    done = shell(f"molrmog bench counting {ending}", tmp_path)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
