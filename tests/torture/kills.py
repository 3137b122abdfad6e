"""Commands that are killed, race each other, run out of disk, or fail.

Commands on tiny data, in a folder that may hold an older run, and files of the user's own beside it and in it.

killed between writes   SIGKILL before the k-th time that the process opens a file for writing, renames, links or removes
                        one: every gap between two writes
killed at a time        SIGKILL, SIGTERM or SIGINT at a random moment of its life; one in eight is a real process
two writers             two processes begin in one folder within milliseconds
full disk               a disk that has room for a random part of what is written: a tmpfs of its own or, where that is
                        not permitted, a limit on the size of a file
errors                  words or data that are refused, some late

After each: what was there before is whole, old or new and no mixture; the user's own files have their bytes; `molrmog
info` answers, or says in one line what is missing; the same command again succeeds, and then the folder holds what an
uninterrupted one leaves, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _trials import (
    Case,
    Ended,
    Running,
    command,
    copy_tree,
    files_of,
    load_commands,
    options,
    pick,
    printable,
    remove_tree,
    rng,
    start,
    tally,
    trials,
)

from molrmog.experiments import cells

WORK = cells._work
SMALL = ["--latent-dim", "1", "--modes", "1", "--no-evaluate"]
FIT = ["fit", "xy.npz", "--out", "run", "--subspaces", "2", "--noise", "isotropic", "--max-iter", "3", *SMALL]
TRAIN = ["train", "xy.npz", "--out", "run", "--steps", "6", "--batch-size", "16", "--checkpoint-every", "2", *SMALL]
TRAIN += [
    "--validate-every",
    "3",
    "--grid-every",
    "4",
    "--log-every",
    "2",
    "--warmup",
    "2",
    "--width",
    "8",
    "--depth",
    "1",
]
OWN = {
    "notes.part": b"mine",
    "config.txt": b"mine, too",
    ".hidden": b"also",
    "sub/.kept.part": b"deep",
    "a b\n": b"",
    ".x.y.part": b"1",
}
BESIDE = {"beside.txt": b"beside", ".other.part": b"not yours", "run.bak/config.yaml": b"seed: 1\n"}
MODEL = ("config.yaml", "config.json", "model.safetensors", "data.json")
PATIENCE = 60.0


@dataclass(frozen=True)
class Scenario:
    """A command, and the folder that it works in.

    Attributes:
        name: of its row.
        words: of the command.
        before: command lines that ran in the folder before, or what was called.
        own: whether files of the user's own lie in the run folder, too.
        call: in place of the words, what is called.
        grows: whether the run is made in its place, in stages.
        appends: whether it adds to a run that is there.
    """

    name: str
    words: tuple[str, ...] = ()
    before: tuple[tuple[str, ...] | Callable[[], int], ...] = ()
    own: bool = False
    call: Callable[[], int] | None = None
    grows: bool = False
    appends: bool = False

    def start(self, folder: Path, within: Callable[[], None] | None = None, more: Sequence[str] = ()) -> Running:
        """Begin it in a forked child, in which `within` is called first."""
        act = self.call or command(*self.words, *more)

        def call() -> int:
            if within is not None:
                within()
            return act()

        return start(call, folder)


def save_model(seed: int) -> Callable[[], int]:
    """`save_pretrained` of one of two laws."""

    def call() -> int:
        import molrmog

        molrmog.MoLRMoG.random(6, (2, 1), (2, 1), noise=0.2, seed=seed).save_pretrained("run")
        return 0

    return call


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A cell of an experiment that takes no time."""
    (folder / "kept.txt").write_text(str(settings))
    return {"value": settings["i"] ** 2}


def small_experiment(out: Path, *, workers: int, **_: Any) -> Path:
    """An experiment of three such cells."""
    from molrmog.experiments.cells import run_cells
    from molrmog.saving import write_atomically

    found = run_cells(cell, {f"c{i}": {"i": i} for i in range(3)}, out, workers=1)
    write_atomically(out / "report.html", lambda part: part.write_text(json.dumps(found)))
    return out / "report.html"


def work(pipe: Any, threads: int) -> None:
    """What a worker does: it is forked here, and gives up the folders that its parent has locked, as a spawned one."""
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.isdir(os.readlink(f"/proc/self/fd/{handle}")):
                os.close(int(handle))
    WORK(pipe, threads)


def reproduce() -> int:
    """The command, with an experiment and with workers that take no time."""
    import molrmog.experiments.floor

    molrmog.experiments.floor.run_floor = small_experiment  # type: ignore[assignment]
    cells._work = work
    fork = multiprocessing.get_context("fork")
    cells.multiprocessing.get_context = lambda *_: fork  # type: ignore[assignment]
    return command("reproduce", "floor", "--out", "run")()


def demo(seed: int = 0) -> int:
    """The demo with fewer rows, laws and steps."""
    import molrmog.interfaces.demo as room

    whole = room.load_parts

    def load_parts(*arguments: Any, **kept: Any) -> Any:
        return tuple(part.subset(slice(0, 400)) for part in whole(*arguments, **kept))

    room.load_parts = load_parts  # type: ignore[assignment]
    room.STEPS, room.FEATURES = 2, ("pca",)
    room.LAWS = {"MoLR-MoG": {"subspaces": 2, "latent_dim": 4, "modes": 1, "max_iter": 2}}
    room.NETWORKS = {"MoLRG net": {"name": "gaussian"}}
    return command("demo", "--out", "run", "--seed", str(seed))()


def line(text: str, *more: str) -> tuple[str, ...]:
    return (*text.split(), *more)


OLD = (*FIT[:-1], "--no-evaluate", "--seed", "5")
NET = (*TRAIN, "--network", "mlp", "--autoencoder", "none")
SCENARIOS = (
    Scenario("fit", tuple(FIT)),
    Scenario("fit, measured", tuple(FIT[:-1])),
    Scenario("fit --overwrite", (*FIT, "--overwrite"), (OLD,), own=True),
    Scenario("fit --overwrite, empty", (*FIT, "--overwrite"), own=True),
    Scenario("train mog", tuple(TRAIN), grows=True),
    Scenario("train mlp", NET, grows=True),
    Scenario("train residual", (*TRAIN, "--network", "residual", "--autoencoder", "none", "--experts", "2"), grows=True),
    Scenario("train vae", (*TRAIN, "--network", "gaussian", "--autoencoder", "vae", "--autoencoder-steps", "4"), grows=True),
    Scenario("reproduce", call=reproduce, grows=True),
    Scenario("demo", call=demo),
    Scenario("demo, over another", call=demo, before=(lambda: demo(5),), own=True),
    Scenario("save_pretrained", call=save_model(1), appends=True),
    Scenario("evaluate", line("evaluate run --num-samples 30 --features pca"), (tuple(FIT),), own=True, appends=True),
    Scenario("evaluate a network", line("evaluate run --num-samples 30 --steps 2 --features pca"), (NET,), own=True, appends=True),
    Scenario("sample --out", line("sample run --num 4 --out s.png --npz s.npz --overwrite"), (tuple(FIT),), own=True, appends=True),
    Scenario("sample", line("sample run --num 4 --overwrite"), (tuple(FIT),), own=True, appends=True),
    Scenario("explain", line("explain run --levels 2 --rows 20 --modes 1"), (NET,), own=True, appends=True),
)  # fmt: skip
RACES = (
    ("fit / fit", Scenario("", tuple(FIT)), Scenario("", (*FIT, "--seed", "9"))),
    ("fit / fit, the same", Scenario("", tuple(FIT)), Scenario("", tuple(FIT))),
    ("train / train", Scenario("", NET), Scenario("", (*NET, "--seed", "9"))),
    ("train / train, the same", Scenario("", NET), Scenario("", NET)),
    ("train / fit", Scenario("", NET), Scenario("", tuple(FIT))),
    ("fit --overwrite / fit --overwrite", Scenario("", (*FIT, "--overwrite"), (OLD,)), Scenario("", (*FIT, "--overwrite", "--seed", "9"))),
    ("fit --overwrite / train", Scenario("", (*FIT, "--overwrite"), own=False), Scenario("", NET)),
    ("reproduce / reproduce", Scenario("", call=reproduce), Scenario("", call=reproduce)),
)  # fmt: skip
WRONG = (
    *(("fit", *words) for words in (
        line("nan.npz --out run --overwrite"), line("xy.npz --out run"), line("x.npy --out run --overwrite --labels"),
        line("xy.npz --out run --overwrite --subspaces 0"), line("xy.npz --out run --overwrite --latent-dim 99"),
        line("xy.npz --out run --overwrite --held-out 1"), line("xy.npz --out run --overwrite --device cuda:9"),
        line("one.npz --out run --overwrite"), line("xy.npz --out run --overwrite --subspaces 2 --modes [1,2,3]"),
        line("xy.npz --out run --overwrite --prior-rows -1 --max-iter 1"), line("labels.npz --out run --overwrite --labels"),
        line("xy.npz --out run --overwrite --noise-floor nan"),
    )),
    *(("train", *words) for words in (
        line("nan.npz --out run"), line("x.npy --out run --experts labels"), line("xy.npz --out run --steps 0"),
        line("xy.npz --out run --latent-dim 99"), line("xy.npz --out run --batch-size 0"), line("xy.npz --out run --ema 2"),
        line("xy.npz --out run --network unet --autoencoder none"), line("xy.npz --out run --learning-rate -1"),
        line("xy.npz --out run --autoencoder nothing"), line("xy.npz --out run --experts 1000"), line("one.npz --out run"),
        line("xy.npz --out run --network residual --autoencoder none --base beside.txt"), line("xy.npz --out run --rank 99"),
        line("xy.npz --out run --network mlp --width -3 --autoencoder none"), line("xy.npz --out run --modes 0"),
    )),
    line("reproduce floor --out run --seed -1"), line("reproduce hybrid --out run --dataset digits --rows 3"),
    line("sample run --out run/notes.part"), line("evaluate run"), line("explain run --out run"), line("demo --out beside.txt"),
)  # fmt: skip


# --- folders


def data(folder: Path) -> None:
    """What the commands are about, and what is not theirs."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 6)), np.arange(200) % 2
    np.savez(folder / "xy.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    np.savez(folder / "one.npz", x=x[:1])
    np.savez(folder / "labels.npz", x=x, y=np.arange(200))
    x[150, 3] = np.nan
    np.savez(folder / "nan.npz", x=x, y=y)
    put(folder, BESIDE)


def put(folder: Path, own: dict[str, bytes]) -> None:
    for name, content in own.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def fresh(folder: Path, scenario: Scenario) -> None:
    """The folder as it is before the command."""
    data(folder)
    for words in scenario.before:
        ended = start(words if callable(words) else command(*words), folder).wait(PATIENCE)
        if ended.code:
            raise RuntimeError(f"{scenario.name}, before: {words}: {ended.err}")
    if scenario.name == "save_pretrained":
        start(save_model(0), folder).wait(PATIENCE)
    if scenario.own:
        put(folder / "run", OWN)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def marks(files: dict[str, bytes]) -> dict[str, str]:
    """What tells one run from another, and does not hold times."""
    kept = {name: digest(files[f"run/{name}"]) for name in MODEL if f"run/{name}" in files}
    return kept | {name: digest(content) for name, content in files.items() if name.endswith("kept.txt")}


def kinds(files: dict[str, bytes]) -> Counter[str]:
    """How many records of each kind a run has."""
    lines = files.get("run/metrics.jsonl", b"").splitlines()
    return Counter(json.loads(each)["kind"] for each in lines)


def leftovers(files: dict[str, bytes]) -> list[str]:
    """Temporary files that are not the user's own."""
    own = {*BESIDE, *(f"run/{name}" for name in OWN)}
    found = [name for name in files if name.endswith(".part") or Path(name).name.startswith((".tmp", "tmp"))]
    found += [name for name in files if Path(name).name.startswith(".run")]
    return sorted({name for name in found if name not in own})


@dataclass
class Known:
    """What is known of a scenario: the folder before, after it ran undisturbed, its life and its writes."""

    before: dict[str, bytes]
    after: dict[str, bytes]
    seconds: float
    writes: int
    at: Path


def learn(scenario: Scenario, place: Path) -> Known:
    """Run it undisturbed, or remember how it went: on the disk, for cases run in processes of their own."""
    kept = place / "known.pickle"
    if kept.is_file():
        return pickle.loads(kept.read_bytes())
    remove_tree(place)
    place.mkdir()
    base, work = place / "base", place / "work"
    base.mkdir()
    fresh(base, scenario)
    copy_tree(base, work)
    counter = Counter_()
    begin = time.monotonic()
    ended = scenario.start(work, lambda: watch(work, counter)).wait(2 * PATIENCE)
    if ended.code:
        raise RuntimeError(f"{scenario.name}, undisturbed: exit code {ended.code}: {ended.err}")
    known = Known(files_of(base), files_of(work), time.monotonic() - begin, counter.value, base)
    kept.write_bytes(pickle.dumps(known))
    return known


# --- disturbances


class Counter_:
    """A number that children can count in."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return struct.unpack("q", self._memory[:8])[0]

    def step(self) -> int:
        now = self.value + 1
        self._memory[:8] = struct.pack("q", now)
        return now


_CHANGES = (
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watch(folder: Path, counter: Counter_, kill_at: int = 0) -> None:
    """Count what this process changes beneath the folder, and let it die just before the change of this number."""
    top, me = str(folder), os.getpid()

    def beneath(name: Any, at: Any = None) -> bool:
        if isinstance(name, int):
            return False
        path = os.fsdecode(name)
        if isinstance(at, int) and at >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), path)
        return os.path.abspath(path).startswith(top)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            name, mode, flags = arguments
            changes = (isinstance(mode, str) and set(mode) & set("wax+")) or (mode is None and flags & _FOR_WRITING)
            where = (name,)
        elif event in _CHANGES:
            changes = True
            where = (arguments[0], arguments[1] if event in ("os.remove", "os.rmdir") else None)
        else:
            return
        if changes and os.getpid() == me and beneath(*where) and counter.step() == kill_at:
            os.kill(me, signal.SIGKILL)

    sys.addaudithook(hear)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Make the folder a disk of so many bytes; whether that is permitted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            os.chdir("/")
            subprocess.run(["umount", "-l", folder], check=False)


def used(files: dict[str, bytes]) -> int:
    return sum(4096 * (1 + len(content) // 4096) for content in files.values())


# --- what must hold


def whole(scenario: Scenario, known: Known, now: dict[str, bytes]) -> str | None:
    """Whether what was there before is still there, or what is there now is all new."""
    lost = [
        name
        for name, content in {**BESIDE, **_own(scenario), "xy.npz": known.before["xy.npz"]}.items()
        if now.get(name) != content
    ]
    if lost:
        return f"a file of the user's own is changed or gone: {printable(lost[0])}"
    if scenario.name == "save_pretrained":
        if "run/model.safetensors" not in now:
            return "the model that was there is gone"
        tensors = digest(now["run/model.safetensors"])
        return None if tensors in (digest(f["run/model.safetensors"]) for f in (known.before, known.after)) else "a model that is neither the old nor the new"  # fmt: skip
    for name, content in now.items():
        if any(part.endswith(".part") for part in Path(name).parts) or content == known.before.get(name):
            continue
        if name.endswith(".png") and b"IEND" not in content[-16:]:
            return f"half a picture: {name}"
        if name.endswith("run/report.html") and b"</html>" not in content[-200:] and scenario.name != "reproduce":
            return f"half a page: {name}"
        if name.endswith(".jsonl") and content:
            try:
                [json.loads(each) for each in content.splitlines()]
            except ValueError:
                return f"a damaged line in {name}"
    if scenario.grows:
        return None
    old, new, here = marks(known.before), marks(known.after), marks(now)
    if scenario.appends:
        if here != old:
            return "the run was changed by a command that only adds to it"
        if not now["run/metrics.jsonl"].startswith(known.before["run/metrics.jsonl"]):
            return "records of the run were lost"
        return None
    if here == old:
        changed = [n for n in known.before if n.startswith("run/") and now.get(n) != known.before[n]]
        return f"the old run, but for {printable(changed[0])}" if changed and old else None
    if here != new:
        of = {
            name: "old" if here.get(name) == old.get(name) else "new" if here.get(name) == new.get(name) else "?"
            for name in {*old, *new}
        }
        return f"a mixture of two runs: {of}"
    stale = [
        f"run/{n}"
        for n in ("metrics.jsonl", "report.html", "samples.png")
        if old and now.get(f"run/{n}") == known.before.get(f"run/{n}")
    ]
    stale = [name for name in stale if name in now]
    return f"the new run with the old {stale[0]}" if stale else None


def _own(scenario: Scenario) -> dict[str, bytes]:
    return {f"run/{name}": content for name, content in OWN.items()} if scenario.own else {}


def one_line(ended: Ended, codes: Sequence[int]) -> str | None:
    """Whether a command ended as it may, and in few words."""
    said = [each for each in ended.err.splitlines() if each.startswith("molrmog: error:")]
    if ended.late:
        return "did not end"
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        return f"showed a traceback: {printable(ended.err[-300:])}"
    if ended.code not in codes:
        return f"exit code {ended.code}: {printable(ended.line)}"
    if ended.code == 1 and (len(said) != 1 or "MOLRMOG_DEBUG" in ended.err):
        return f"an error that is not one line of its own: {printable(ended.err[-300:])}"
    return None


def afterwards(scenario: Scenario, known: Known, folder: Path, gently: bool) -> str | None:
    """All that must hold once a command was stopped."""
    now = files_of(folder)
    if why := whole(scenario, known, now):
        return why
    if gently and not scenario.grows and leftovers(now):
        return f"was asked to stop, and left {printable(leftovers(now)[0])}"
    if scenario.name != "save_pretrained" and (folder / "run").is_dir():
        told = start(command("info", "run"), folder).wait(PATIENCE)
        need = (0,) if scenario.before else (0, 1)
        if why := one_line(told, need):
            return f"info: {why}"
    return again(scenario, known, folder)


def again(scenario: Scenario, known: Known, folder: Path) -> str | None:
    """The same command succeeds, and leaves what it leaves when nobody stops it."""
    ended = scenario.start(folder).wait(2 * PATIENCE)
    complete = marks(files_of(folder)) == marks(known.after)
    if ended.code == 1 and scenario.words[:1] == ("fit",) and "--overwrite" in ended.err and complete:
        ended = scenario.start(folder, more=["--overwrite"]).wait(2 * PATIENCE)  # the fit was done, its measures not
    if why := one_line(ended, (0,)):
        return f"the same command again: {why}"
    now = files_of(folder)
    if why := whole(scenario, known, now):
        return f"the same command again: {why}"
    if left := leftovers(now):
        return f"the same command again left {printable(left[0])}"
    extra, missing = sorted(set(now) - set(known.after)), sorted(set(known.after) - set(now))
    # Where the disk is full a checkpoint is left out with a warning, and an autoencoder that is finished needs none.
    missing = [name for name in missing if not ("autoencoders/" in name and "/checkpoints" in name)]
    if extra or missing:
        return f"the same command again: {'more' if extra else 'less'} than undisturbed: {printable((extra or missing)[0])}"
    if marks(now) != marks(known.after):
        return "the same command again: another model or settings than undisturbed"
    here, wanted = kinds(now), kinds(known.after)
    for name in ("stage", "measurement") if scenario.appends or scenario.grows else ():
        here.pop(name, None), wanted.pop(name, None)  # kept of every attempt
    return (
        None
        if here == wanted
        else f"the same command again: other records than undisturbed: {dict(here)}, not {dict(wanted)}"
    )


# --- the cases


def killed_between(
    scenario: Scenario, known: Known, folder: Path, random: np.random.Generator
) -> tuple[str, Callable[[], str | None]]:
    at = int(random.integers(1, known.writes + 1))

    def run() -> str | None:
        ended = scenario.start(folder, lambda: watch(folder, Counter_(), at)).wait(PATIENCE)
        if ended.code not in (0, -signal.SIGKILL):
            return f"exit code {ended.code}: {printable(ended.line)}"
        return afterwards(scenario, known, folder, gently=False)

    return f"killed before write {at} of {known.writes}", run


def killed_at(
    scenario: Scenario, known: Known, folder: Path, random: np.random.Generator
) -> tuple[str, Callable[[], str | None]]:
    number = pick(random, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    real = bool(scenario.words and random.random() < 1 / 8)
    moment = float(random.uniform(0, 1.05)) * known.seconds + (float(random.uniform(0, 4)) if real else 0)

    def run() -> str | None:
        if real:
            with tempfile.TemporaryFile("w+") as err:
                child = subprocess.Popen(
                    [sys.executable, "-m", "molrmog.interfaces.cli", *scenario.words], cwd=folder, stderr=err,
                    stdout=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                time.sleep(moment)
                child.send_signal(number)
                late = False
                try:
                    child.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()
                    late = True
                err.seek(0)
                ended = Ended(child.wait(), "", err.read(), late)
            if ended.code in (-number, 1) and "molrmog" not in ended.err.replace("molrmog/", ""):
                ended = ended._replace(code=0, err="")  # Python itself was still on its way to us
        else:
            running = scenario.start(folder)
            time.sleep(moment)
            running.signal(number)
            ended = running.wait(PATIENCE)
        gentle = {signal.SIGKILL: (0, -9), signal.SIGTERM: (0, 143, -15), signal.SIGINT: (0, 130)}[number]
        if number != signal.SIGKILL and (why := one_line(ended, gentle)):
            return f"{number.name}: {why}"
        return afterwards(scenario, known, folder, gently=number != signal.SIGKILL)

    return f"{number.name} after {moment:.2f} of {known.seconds:.2f} s{', a real process' if real else ''}", run


def short_of_disk(
    scenario: Scenario, known: Known, folder: Path, random: np.random.Generator
) -> tuple[str, Callable[[], str | None]]:
    share = float(random.uniform(0, 1))
    before, after = used(known.before), used(known.after)
    size = int(before + 16384 + share * (after - before))
    largest = max(
        len(content)
        for name, content in known.after.items()
        if name not in known.before or content != known.before[name]
    )

    def run() -> str | None:
        disk = folder / "disk"
        disk.mkdir()
        with small_disk(disk, size) as permitted:
            copy_tree(known.at, disk)

            def limit() -> None:
                if not permitted:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), int(share * largest)))

            ended = scenario.start(disk, limit).wait(PATIENCE)
            why = one_line(ended, (0, 1)) or whole(scenario, known, files_of(disk))
            if why is None and permitted:
                room = ["mount", "-o", f"remount,size={2 * size + 10**7}", disk]
                subprocess.run(room, check=True, capture_output=True)
            why = why or again(scenario, known, disk)
            copy_tree(disk, folder / "left")
        return why

    return f"a disk of {size} bytes, or files of {share:.0%}", run


def race(number: int, folder: Path, random: np.random.Generator) -> Case:
    name, first, second = pick(random, RACES)
    delay = float(pick(random, (0, 0.002, 0.02, random.uniform(0, 0.6))))

    def run() -> str | None:
        results: list[dict[str, bytes]] = []
        for each in (first, second):
            place = folder / f"alone{len(results)}"
            place.mkdir()
            fresh(place, first)
            each.start(place).wait(PATIENCE)
            results.append(files_of(place))
        work = folder / "both"
        work.mkdir()
        fresh(work, first)
        one = first.start(work)
        time.sleep(delay)
        two = second.start(work)
        ends = [one.wait(PATIENCE), two.wait(PATIENCE)]
        for each in ends:
            if why := one_line(each, (0, 1)):
                return why
        now = files_of(work)
        if all(each.code for each in ends):
            return f"neither has won: {printable(ends[0].line)}; {printable(ends[1].line)}"
        won = [marks(files) for each, files in zip(ends, results, strict=True) if each.code == 0]
        if marks(now) not in won:
            return "the run is that of none who ended with success"
        if left := leftovers(now):
            return f"left {printable(left[0])}"
        names = [set(files) for each, files in zip(ends, results, strict=True) if each.code == 0]
        if set(now) not in names:
            return f"other files than those of a winner: {printable(str(sorted(set(now) ^ names[0])[:3]))}"
        if any(now.get(name) != content for name, content in BESIDE.items()):
            return "a file of the user's own is changed or gone"
        told = start(command("info", "run"), work).wait(PATIENCE)
        return f"info: {why}" if (why := one_line(told, (0,))) else None

    return Case("two writers", f"{name}, {1000 * delay:.0f} ms apart", run)


def error(number: int, folder: Path, random: np.random.Generator) -> Case:
    words = pick(random, WRONG)
    names = [name for name in OWN if random.random() < 0.5] or ["notes.part"]
    own = {f"run/{name}": OWN[name] for name in names}

    def run() -> str | None:
        data(folder)
        put(folder, own)
        before = files_of(folder)
        ended = start(command(*words), folder).wait(PATIENCE)
        if ended.code == 0:
            return None  # it was right after all, and wrote where it was asked to
        if why := one_line(ended, (1, 2)):
            return why
        now = files_of(folder)
        lost = [name for name, content in before.items() if now.get(name) != content]
        if lost:
            return f"exit code {ended.code}, and changed or removed {printable(lost[0])}"
        added = sorted(set(now) - set(before))
        return f"exit code {ended.code}, and left {printable(added[0])}" if added else None

    return Case("errors", f"molrmog {' '.join(words)}, beside {names}", run)


def case_of(number: int, folder: Path, seed: int, place: Path) -> Case:
    """One disturbance."""
    random = rng(seed, number)
    choice = random.random()
    if choice < 0.12:
        return race(number, folder, random)
    if choice < 0.24:
        return error(number, folder, random)
    scenario = pick(random, SCENARIOS)
    of = learn(scenario, place / scenario.name)
    disturb = killed_between if choice < 0.6 else killed_at if choice < 0.88 else short_of_disk
    how, act = disturb(scenario, of, folder, random)

    def run() -> str | None:
        if disturb is not short_of_disk:
            copy_tree(of.at, folder)
        return act()

    what = {killed_between: "killed between writes", killed_at: "killed at a time", short_of_disk: "full disk"}[disturb]
    return Case(f"{what}: {scenario.name}", f"molrmog {' '.join(scenario.words) or scenario.name}, {how}", run)


def main() -> int:
    asked = options(__doc__, tries=200, minutes=10)
    result = tally(__file__, asked)
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        probe = Path(place, "a disk")
        probe.mkdir()
        with small_disk(probe, 2**20) as permitted:
            if not permitted:
                result.notes.append("no disk may be mounted here: full disks were limits on the size of a file")
        trials(
            result,
            asked,
            lambda number, folder: case_of(number, folder, asked.seed, Path(place)),
            batch=5,
            seconds=4 * PATIENCE,
        )
        known = {path.parent.name: pickle.loads(path.read_bytes()) for path in Path(place).glob("*/known.pickle")}
    result.notes.append("writes of each command: " + ", ".join(f"{name} {each.writes}" for name, each in known.items()))
    return result.close()


if __name__ == "__main__":
    load_commands()

    sys.exit(main())
