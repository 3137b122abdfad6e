"""Words that no command can follow: each gets a line before any work, over all commands and all options."""

import contextlib
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import molrmog
from molrmog.devices import device_of, devices
from molrmog.interfaces import cli, commands, memory, places, words
from molrmog.interfaces.cli import main

pytestmark = pytest.mark.usefixtures("parsers_built_once")
PARSERS = {name: make() for name, (make, _) in cli._COMMANDS.items()}
NEEDED = {
    "fit": ["d.npz", "--out", "new"],
    "select": ["d.npz"],
    "train": ["d.npz", "--out", "new"],
    "sample": ["law"],
    "evaluate": ["law"],
    "explain": ["law"],
    "info": ["d.npz"],
    "reproduce": ["hybrid"],
    "demo": [],
    "bench": [],
}


def options(of):
    """(command, action) of every option whose kind a function knows."""
    return [
        (name, action)
        for name, parser in PARSERS.items()
        for action in parser._actions
        if action.dest not in ("help", "print_config") and of(kind_of(action))
    ]


def kind_of(action):
    return "str" if action.dest == "config" else str(getattr(action, "_typehint", None))


NUMBERS = options(lambda kind: "int" in kind or "float" in kind)
TEXTS = options(lambda kind: "str" in kind)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data and a law."""
    folder = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=rng.normal(size=(60, 4)), y=np.arange(60) % 2)
    law = [str(folder / "d.npz"), "--out", str(folder / "law"), "--subspaces", "2", "--modes", "1"]
    assert main(["fit", *law, "--no-evaluate"]) == 0
    return folder


@pytest.fixture
def at_home(home, monkeypatch):
    """Work in that folder; the commands themselves are replaced by what only notes that they were reached."""
    reached = []
    for name in commands.COMMANDS:
        monkeypatch.setitem(commands.COMMANDS, name, lambda **options: reached.append(options))
    monkeypatch.chdir(home)
    return reached


def said(argv):
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


def check_line(argv, codes, *words):
    """That a command fails by a line which holds the words; the line."""
    code, out, err = said(argv)
    lines = [line for line in err.splitlines() if not line.startswith("reading ")]  # which may take its second
    assert code in codes, (argv, code, err)
    assert lines, argv
    assert lines[0].startswith("molrmog: error: "), (argv, err)
    assert len(lines) <= 1 + (code == 2), (argv, err)
    assert len(lines[0]) < 700
    for word in words:
        assert word in lines[0], (argv, lines[0])
    assert not out
    return lines[0]


def snapshot(folder):
    """Every path with its kind, its target and its bytes."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in sorted(Path(folder).rglob("*"))
    }


# Blank words


@pytest.mark.parametrize("blank", ["", "\t \u3000"])
def test_blank_words_make_no_sense_for_any_option(blank, at_home, home):
    before = snapshot(home)
    for command, action in [*TEXTS, *NUMBERS]:
        flags = action.option_strings[:1]
        for argv in [[*flags, blank], [f"{flags[0]}={blank}"]] if flags else [[blank]]:
            check_line([command, *(NEEDED[command] if flags else []), *argv], (2,), *flags, "blank")
    assert not at_home
    assert snapshot(home) == before


def test_blank_texts_of_a_settings_file_make_no_sense(at_home, tmp_path):
    for command, action in TEXTS:
        if not action.option_strings or action.dest == "config":
            continue
        for value in ("", "  ", "a\0b"):
            (tmp_path / "c.yaml").write_text(yaml.safe_dump({action.dest: value}))
            # Required options stand in the file alone.
            others = [word for word in NEEDED[command] if action.dest != "out" or word not in ("--out", "new")]
            check_line([command, "--config", str(tmp_path / "c.yaml"), *others], (2,), action.option_strings[0])
    assert not at_home


# Numbers


def test_every_number_has_a_range():
    assert not {action.dest for _, action in NUMBERS} - set(words.RANGES)
    assert not set(words.RANGES) - {action.dest for _, action in NUMBERS}


NEVER = (".nan", "[.nan]", "1" * 5000, "[]", "&a [*a]", "!!python/object/apply:os.getcwd []")


OFTEN = ("-1", str(10**12), ".inf", "1e400", "1.5")  # tried in the inner loop, too
ABSURD = [*OFTEN, *(pytest.param(v, marks=pytest.mark.slow) for v in ("0", str(10**30), "-.inf", *NEVER))]


@pytest.mark.parametrize("value", ABSURD)
def test_absurd_numbers_are_refused_by_their_flag(value, at_home, home):
    before = snapshot(home)
    for command, action in NUMBERS:
        flag = action.option_strings[0]
        code, _, err = said([command, *NEEDED[command], f"{flag}={value}"])
        if code == 0:
            assert value not in NEVER, (command, flag)
            assert "inf" not in value
            number = at_home.pop()[action.dest]
            own = words._OF_COMMAND.get((command, action.dest)) or words.RANGES[action.dest]
            assert own.holds(number), (command, flag, number)  # nothing outside has come through
            assert own.bytes * int(number) ** own.power <= memory.memory()
        else:
            check_line([command, *NEEDED[command], f"{flag}={value}"], (1, 2), flag)
            assert "pass" in err or "at least" in err, err
        at_home.clear()
    assert snapshot(home) == before


def test_numbers_within_their_ranges_come_through(at_home):
    for command, action in NUMBERS:
        value = {"num_samples": 10, "rows": 2, "levels": 5}.get(action.dest, 0.5 if "float" in kind_of(action) else 1)
        value = [value] if kind_of(action).startswith("list") or "guidance_interval" in action.dest else value
        assert said([command, *NEEDED[command], f"{action.option_strings[0]}={value}"])[0] == 0, action.dest
        assert at_home.pop()[action.dest] == value


@pytest.mark.parametrize(
    ("argv", "limit"),
    [
        (["sample", "law", "--steps", "1", "--num", "30"], 300),
        (["evaluate", "law", "--steps", "1", "--num-samples", "30"], 300),
        (["fit", "d.npz", "--out", "new", "--latent-dim", "2", "--modes", "5", "--subspaces", "8"], 1000),
        (["train", "d.npz", "--out", "new", "--autoencoder", "none", "--batch-size", "1000000"], 12_000_000),
        (["train", "d.npz", "--out", "new", "--network", "mlp", "--width", "64", "--depth", "9"], 4_000_000),
        (["train", "d.npz", "--out", "new", "--network", "unet", "--channels", "[8,256]"], 4_000_000),
    ],
)
def test_more_than_the_memory_is_refused_before_it_is_asked_for(argv, limit, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(memory, "memory", lambda: limit)
    assert "GB of memory or more" in check_line(argv, (1,), argv[-2])
    assert not (home / "new").exists()


def test_memory_is_what_the_machine_has():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**26 < memory.memory() <= pages


def test_more_parts_than_rows_are_named_by_their_flag(home, monkeypatch):
    monkeypatch.chdir(home)
    for flags in (["--subspaces", "1000000"], ["--modes", "1000000"], ["--modes", "[1000000,1]"]):
        check_line(["fit", "d.npz", "--out", "new", *flags], (1,), flags[0])
    check_line(["train", "d.npz", "--out", "new", "--experts", "1000000"], (1,), "--experts")
    assert not (home / "new").exists()


# Files of settings

BOMB = "a0: &a0 [0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
CONFIGS = {
    "missing": (None, "no such file"),
    "folder": ("folder", "is a folder"),
    "not YAML": (b"a: [1\nb: }", "not a YAML file"),
    "tabs": (b"\ta:\n\t\tb", "not a YAML file"),
    "binary": (bytes(range(256)) * 8, "not a YAML file"),
    "a list": (b"- 1\n- 2\n", "a list"),
    "a text": (b"hello", "a text"),
    "a number": (b"3", "a int"),
    "empty": (b"", "nothing"),
    "unknown": (b"latent_dimm: 3", "did you mean latent_dim?"),
    "itself": (b"config: c.yaml", "config is no setting"),
    "a key that is no text": (b"3: 3\n[1]: 2", ""),
    "of another command": (b"network: mog", "it is one of train"),
    "of another kind": (b"modes: many", "--modes"),
    "a number out of range": (b"held_out: 3", "--held-out 3"),
    "a bomb": (BOMB.encode(), "aliases"),
    "in itself": (b"modes: &a [*a]", "nested"),
    "deep": (b"modes: " + b"[" * 600 + b"]" * 600, "nested"),
    "huge": (b"# " + b"x" * 2**21, "bytes"),
    "an object of Python": (b"seed: !!python/object/apply:os.mkdir [executed]", "not a YAML file"),
    "a name of Python": (b"seed: !!python/name:os.mkdir", "not a YAML file"),
    "two documents": (b"seed: 1\n---\nseed: 2", "not a YAML file"),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_settings_files_that_are_none(kind, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = CONFIGS[kind]
    if content == "folder":
        os.mkdir("c.yaml")
    elif content is not None:
        Path("c.yaml").write_bytes(content)
    before = snapshot(tmp_path)
    line = check_line(["fit", "d.npz", "--out", "r", *form.format("--config", "c.yaml").split()], (1, 2), message)
    assert re.search("--config|--modes|--held-out", line)
    assert snapshot(tmp_path) == before


def test_settings_files_with_aliases_and_settings_on_the_line_still_work(at_home, tmp_path):
    (tmp_path / "c.yaml").write_text("modes: &n 3\nlatent_dim: *n\nout: r\n")
    assert said(["fit", "d.npz", "--config", str(tmp_path / "c.yaml")])[0] == 0
    assert said(["fit", "d.npz", "--config", "{out: r, modes: 3}"])[0] == 0
    assert [found["modes"] for found in at_home] == [3, 3]
    for command, parser in PARSERS.items():  # each takes its own settings
        own = {a.dest: a.default for a in parser._actions if a.default is not None and a.dest in words.RANGES}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(own))
        assert said([command, *NEEDED[command], "--config", str(tmp_path / "c.yaml")])[0] == 0


# Places


def make_places(folder):
    """Names that are no place for a run, or for a file: name to the word that a message must hold."""
    (folder / "file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "thesis").write_text("mine")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop2")
    (folder / "loop2").symlink_to("loop")
    (folder / "to-file").symlink_to("file")
    (folder / "to-full").symlink_to("full")
    os.mkfifo(folder / "pipe")
    neither = {
        "dangling": "link",
        "dangling/run": "link",
        "loop": "circle",
        "loop/run": "circle",
        "file/run": "is a file",
        "to-file/run": "is a file",
        "a" * 256: "too long",
        "b/" + "a" * 300: "too long",
        "a" * 250: "too long",
        "a/" * 2100 + "b": "too long",
        "/proc/run": "cannot be written to",
        "/sys/run": "cannot be written to",
        "/dev/null": "device",
        "/dev/null/run": "device",
        "pipe": "pipe",
    }
    run = {"file": "is a file", "to-file": "is a file", "full": "not empty", "to-full": "not empty", "/": "", ".": ""}
    run |= {"..": "", "full/": "not empty", "file/": "", "data": "inside", "data/a/run": "inside", "d.npz": "is a file"}
    run |= {os.fsdecode(b"caf\xe9"): "UTF-8"}
    file = {"file": "exists", "full": "is a folder", "/": "folder", ".": "folder", "..": "folder", "new.png/": "folder"}
    file |= {"missing/a.png": "no folder", "to-file": "exists", "law/model.safetensors": "", "d.npz": "exists"}
    return neither | run, neither | file


@pytest.fixture
def places_of(home, tmp_path, monkeypatch):
    shutil.copytree(home / "law", tmp_path / "law")
    shutil.copy(home / "d.npz", tmp_path)
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "x.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return make_places(tmp_path)


def test_runs_go_to_no_place_that_cannot_be(places_of, tmp_path):
    before = snapshot(tmp_path)
    commands_ = {
        "fit": ["fit", "DATA"],
        "train": ["train", "DATA"],
        "reproduce": ["reproduce", "floor"],
        "explain": ["explain", "nothing"],
    }
    for name, message in places_of[0].items():
        for command, argv in commands_.items():
            if message == "inside" and command in ("reproduce", "explain"):
                continue
            # The data are not there: the place is refused before anybody looks.
            data = "data" if name.startswith("data") else "no-such.npz"
            argv = [data if word == "DATA" else word for word in argv]
            line = check_line([*argv, f"--out={name}"], (1,), "" if command == "explain" else message)
            assert command == "explain" or "--out" in line or "File name too long" in line
            assert "no-such.npz" not in line
    assert snapshot(tmp_path) == before


def test_demo_goes_to_no_place_that_cannot_be(places_of, tmp_path, monkeypatch):
    before = snapshot(tmp_path)
    monkeypatch.setattr("molrmog.interfaces.demo.load_parts", lambda *_, **__: pytest.fail("there was work"))
    for name, message in places_of[0].items():
        if message not in ("not empty", "inside", "") or name == "/":  # it replaces what is there
            check_line(["demo", f"--out={name}"], (1,), message)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("flag", ["--out", "--npz"])
def test_samples_go_to_no_place_that_cannot_be(flag, places_of, home, tmp_path, monkeypatch):
    before = snapshot(tmp_path)
    monkeypatch.setattr(molrmog.MoLRMoG, "sample", lambda *_, **__: pytest.fail("there was work"))
    for name, message in places_of[1].items():
        check_line(["sample", "law", f"{flag}={name}"], (1,), message, flag)
        if message != "exists":  # which --overwrite says to replace
            check_line(["sample", "law", f"{flag}={name}", "--overwrite"], (1,), message, flag)
    check_line(["sample", "law", "--out", "new.npz", "--npz", "./new.npz"], (1,), "two files")
    for own in (
        "law/config.json",
        "law/data.json",
        "law/report.html",
        str(home / "d.npz"),
    ):  # not even if that is asked for
        check_line(["sample", "law", f"{flag}={own}", "--overwrite"], (1,), "its data")
    assert snapshot(tmp_path) == before


def test_places_are_behind_all_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "real.png").touch()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "a.png").symlink_to("link/../real.png")
    assert places.check_folder(tmp_path / "link" / "deep" / "run", beside=True) == tmp_path / "disk" / "deep" / "run"
    assert places.check_file(tmp_path / "a.png", overwrite=True) == tmp_path / "real.png"
    assert places.check_folder(tmp_path / "disk" / "..") == tmp_path


@pytest.mark.slow
def test_links_are_followed_and_stay(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("disk")
    os.symlink("disk", "link")
    os.mkdir("disk2")
    os.symlink("disk2", "link2")
    fit = ["fit", str(home / "d.npz"), "--subspaces", "1", "--modes", "1", "--no-evaluate"]
    assert said([*fit, "--out", "link"])[0] == 0
    assert said([*fit, "--out", "link2/deep/run/"])[0] == 0
    assert os.path.islink("link")
    assert (tmp_path / "disk" / "report.html").is_file()
    assert (tmp_path / "disk2" / "deep" / "run" / "report.html").is_file()
    Path("real.png").write_bytes(b"old")
    os.symlink("real.png", "a.png")
    assert said(["sample", "link", "--num", "2", "--out", "a.png", "--overwrite"])[0] == 0
    assert os.path.islink("a.png")
    assert Path("real.png").read_bytes().startswith(b"\x89PNG")
    assert said([*fit, "--out=-dash"])[0] == 0
    assert (tmp_path / "-dash" / "report.html").is_file()


def test_a_place_is_left_as_it_was(tmp_path):
    places.check_folder(tmp_path / "a" / "b")
    places.check_file(tmp_path / "a.png", overwrite=False)
    assert not list(tmp_path.iterdir())


# Devices

NOT_THERE = [
    "cuda:77",
    "gpu",
    "tpu",
    "meta",
    "cpu:3",
    "abacus",
    "xla",
    "x" * 3000,
    "cpu\ncpu",
    "é",
    "-1",
    "privateuseone",
]
NOT_THERE += [name for name in ("cuda", "mps", "xpu") if not any(each.startswith(name) for each in devices())]


@pytest.mark.parametrize("device", NOT_THERE)
def test_a_device_that_is_not_there(device, at_home):
    for command in ("fit", "train", "explain", "reproduce"):
        line = check_line([command, *NEEDED[command], f"--device={device}"], (1,), "--device", "choose cpu")
        assert len(line) < 300
    assert not at_home
    x = np.zeros((9, 2))
    network = molrmog.MLPDenoiser(2, width=4, depth=1)
    for ask in (
        lambda: molrmog.fit(x, device=device, subspaces=10, latent_dim=32, modes=8, noise="isotropic"),
        lambda: molrmog.TrainingOptions(steps=1, device=device),
        lambda: molrmog.train(network, x, molrmog.VPSchedule(), steps=1, device=device),
    ):
        with pytest.raises(ValueError, match="there is no such device here, choose cpu") as error:
            ask()
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("device", ["", object(), 3.5, True, -1, 10**30])
def test_what_is_no_device(device):
    with pytest.raises(ValueError, match=r"device = .*choose cpu"):
        device_of(device)


def test_devices_that_are_there():
    for name in [*devices(), "cpu:0"]:
        assert str(device_of(name)) == name
        assert device_of(device_of(name)) == device_of(name)
    assert device_of(None) is None
    assert molrmog.TrainingOptions(steps=1, device="cpu:0").device == "cpu"


# What goes wrong at work


class PanicException(BaseException):
    """As Rust's panics are: no Exception."""


ERRORS = [
    MemoryError(),
    MemoryError("Unable to allocate 7.28 TiB for an array"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried\nto"),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    OSError(28, "No space left on device", "file\nwith\x1b[31m lines"),
    OSError(5, "Input/output error"),
    OSError(5, "Input/output error", b"bytes"),
    OSError("\n\n"),
    PermissionError(13, "Permission denied", 7),
    BrokenPipeError(32, "Broken pipe"),
    KeyError("name"),
    AssertionError(),
    StopIteration(),
    ValueError("x" * 100_000),
    SystemExit("a library's last words"),
    PanicException("called unwrap on None"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_of_any_kind_are_a_line(error, monkeypatch):
    def fail(**_):
        raise error

    for name in commands.COMMANDS:
        monkeypatch.setitem(commands.COMMANDS, name, fail)
    code, out, err = said(["info", "digits"])
    assert code == 1
    assert not out
    lines = err.splitlines()
    assert lines[0].startswith("molrmog: error: ")
    assert len(lines) <= 2
    assert len(err) < 1000
    assert "\x1b" not in err


def test_help_names_the_variables_that_are_read():
    texts = [make().format_help() for make, _ in cli._COMMANDS.values()]
    named = {name for text in texts for name in re.findall(r"\$(\w+)", text)}
    assert named == {"MOLRMOG_DATA_DIR", "MOLRMOG_WEIGHTS_DIR"}
