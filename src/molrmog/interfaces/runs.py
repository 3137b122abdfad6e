"""A run: one folder that holds a fitted law, or a trained network, and everything that is known about it.

| file | holds |
| --- | --- |
| `config.yaml` | the settings; `molrmog fit --config RUN/config.yaml --out OTHER` repeats a fit, `train` a training |
| `config.json`, `model.safetensors` | the law, or the network with its autoencoders |
| `data.json` | what a row of the data means: `Layout.info()`, and how many rows were held out |
| `metrics.jsonl` | one JSON object a line: fit and passes of EM, or losses; measurements with their commands |
| `samples.png` | a grid of samples |
| `report.html` | all of this as one page |

The run of a fit is written beside its place and then exchanged with what is there, so that a fit which is interrupted
leaves nothing behind, and one that is killed the old run or the new one, whole. Whatever else lies in the folder stays.
That of a training grows in its place, so that the same command goes on with it, see
`molrmog.interfaces.training`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrmog.data import Layout
from molrmog.folders import Lock, adopt, clear, discard, exchange, former_of, locked, recover, stage_of, sweep
from molrmog.interfaces.places import check_folder
from molrmog.interfaces.trained import Trained
from molrmog.laws.base import Law
from molrmog.registry import load
from molrmog.saving import CONFIG_NAME, MODEL_NAME, one_line, write_atomically
from molrmog.schedules import Schedule

SETTINGS_NAME, DATA_NAME, METRICS_NAME = "config.yaml", "data.json", "metrics.jsonl"
SAMPLES_NAME, REPORT_NAME = "samples.png", "report.html"
EXPERTS_NAME, GRIDS_NAME = "experts.npz", "grids"
EXPERIMENT_NAME = "experiment.json"  # what the folder of an experiment was made for
RUN_FILES = (SETTINGS_NAME, CONFIG_NAME, MODEL_NAME, DATA_NAME, METRICS_NAME, SAMPLES_NAME, REPORT_NAME)


@dataclass(frozen=True)
class Run:
    """A run folder that exists.

    Attributes:
        folder: where it is.

    Raises:
        FileNotFoundError: there is no run in the folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        recover(self.folder)
        missing = [name for name in (MODEL_NAME, DATA_NAME) if not (self.folder / name).is_file()]
        if MODEL_NAME in missing and "network" in self.settings():
            config = self.folder / SETTINGS_NAME
            raise FileNotFoundError(
                f"the run at {self.folder} is not finished, go on with: molrmog train --config {config}"
            )
        if not self.folder.is_dir() or missing:
            why = f"{' and '.join(missing)} missing" if self.folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"no run at {self.folder} ({why}): make one with molrmog fit DATA --out RUN")

    def check_finished(self) -> None:
        """Refuse the run of a network that has not come to its end.

        Raises:
            FileNotFoundError: its training goes on with the same command.
        """
        if (self.folder / REPORT_NAME).is_file() or "network" not in self.settings():
            return
        if not any(record["kind"] == "training" for record in self.records()):
            config = self.folder / SETTINGS_NAME
            raise FileNotFoundError(
                f"the run at {self.folder} is not finished, go on with: molrmog train --config {config}"
            )

    def model(self) -> Law | Trained:
        """Read the law, or the network.

        Raises:
            ValueError: the model is corrupt, or no model of a run.
        """
        found = load(self.folder, "denoiser")
        if isinstance(found, Law):
            return found
        rows = self.info().get("expert_rows")
        if not rows:
            raise ValueError(f"{self.folder / DATA_NAME} names no experts: train again, with molrmog train")
        if "network" not in self.settings():
            raise ValueError(f"{self.folder / SETTINGS_NAME} is missing or names no network: train again")
        schedule = Schedule.from_config({"name": self.settings().get("schedule", "vp")})
        return Trained(found, schedule, torch.tensor(rows, dtype=torch.float32) / sum(rows))

    def info(self) -> dict[str, Any]:
        """Read `data.json`.

        Raises:
            ValueError: it is not JSON, or something else.
        """
        path = self.folder / DATA_NAME
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number))
            _check_counts(Layout.from_info(found).dim, found)
            return found
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path} is damaged ({one_line(error)}): fit again") from None

    def layout(self) -> Layout:
        """What a row of the run's data means."""
        return Layout.from_info(self.info())

    def settings(self) -> dict[str, Any]:
        """Read `config.yaml`; empty where there is none.

        Raises:
            ValueError: it is not YAML.
        """
        return settings_in(self.folder)

    def experts(self) -> tuple[Tensor, Tensor]:
        """The expert of every training and of every held-out row of a network's data, with shapes (N,) and (M,).

        Raises:
            ValueError: the file is damaged.
            FileNotFoundError: there is none.
        """
        info = self.info()
        held = info.get("held_out_rows")
        return experts_in(self.folder, (info["rows"], held) if isinstance(held, int) and "rows" in info else None)

    def records(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`, oldest first; empty where there is none.

        Raises:
            ValueError: a line is no JSON object that says its kind.
        """
        return records_in(self.folder)

    def record(self, records: Sequence[dict[str, Any]]) -> None:
        """Append to `metrics.jsonl`, all lines or none."""
        append_records(self.folder, records)


def alone_in_run(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is the only one to write into the run it is given, or is refused; not where it writes elsewhere.

    Args:
        command: called with keywords, of which `run` names the folder; what it writes goes elsewhere if `out` is given.
    """

    @functools.wraps(command)
    def alone(**settings: Any) -> None:
        folder = Path(settings["run"])
        recover(folder)
        with locked(folder) if folder.is_dir() and settings.get("out") is None else nullcontext():
            command(**settings)

    return alone


# What is asked of the settings of a run, where they say it.
_SETTINGS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("network", "data", "data_dir", "schedule"), (str, NoneType)),
    **dict.fromkeys(("image_size", "seed"), (int, NoneType)),
    "held_out": (int, float, NoneType),
}


class _Settings(dict[str, Any]):
    """Settings that were read from a file, which is named where one is missing that it must have."""

    path: Path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} is damaged ({name} is missing): make the run again")


def settings_in(folder: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a folder; empty where there is none.

    Raises:
        ValueError: it is not YAML.
    """
    import yaml

    path = folder / SETTINGS_NAME
    try:
        found = _Settings(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else _Settings()
        found.path = path
        for name, kinds in _SETTINGS.items():
            if not isinstance(found.get(name), kinds):
                raise ValueError(f"{name} is {repr(found[name])[:40]}")
        if isinstance(found.get("schedule"), str):
            Schedule.from_config({"name": found["schedule"]})
        return found
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}): make the run again") from None


def experts_in(folder: Path, rows: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Read the `experts.npz` of a folder, see :meth:`Run.experts`; `rows` says how many training and held-out ones."""
    path = folder / EXPERTS_NAME
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is no archive")
        with path.open("rb") as file, np.load(file) as found:
            # Both are looked at before they are read: a few bytes can unpack to any size.
            sizes = [found.zip.getinfo(f"{name}.npy").file_size for name in ("train", "held_out")]
            most = _NPY + 8 * (2**31 if rows is None else max(rows))
            if max(sizes) > most:
                raise ValueError("it holds more than there are rows")
            arrays = [found[name] for name in ("train", "held_out")]
        for array in arrays:
            if array.dtype != np.int64 or array.ndim != 1 or (array.size and array.min() < 0):
                raise ValueError(f"experts are {array.dtype} of shape {array.shape}, or below 0")
        if rows is not None and rows != (len(arrays[0]), len(arrays[1])):
            raise ValueError(f"it is for {len(arrays[0])} and {len(arrays[1])} rows, not {rows[0]} and {rows[1]}")
    except FileNotFoundError:
        raise
    except Exception as error:  # of zip, zlib and numpy
        raise ValueError(f"{path} is damaged ({one_line(error)}): delete it, and train again") from None
    return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])


_NPY = 4096  # bytes of a header, and more


def experiment_in(folder: Path) -> dict[str, Any]:
    """Read the `experiment.json` of a folder: what was asked for.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / EXPERIMENT_NAME
    try:
        found = {"steps": None, **dict(json.loads(path.read_text(encoding="utf-8")))}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}): name another folder") from None
    if missing := [key for key in ("experiment", "budget", "seed", "dataset", "rows") if key not in found]:
        raise ValueError(f"{path} is damaged ({missing[0]} is missing): name another folder")
    return found


def _check_counts(dim: int, info: dict[str, Any]) -> None:
    """Refuse numbers of rows and of values that no data have; the rest `Layout` has judged.

    Raises:
        ValueError: one of them is.
    """
    rows = info.get("expert_rows", [])
    counts = [info[name] for name in ("rows", "held_out_rows") if name in info]
    right = {
        "shape": dim < 2**40,
        "rows": all(type(n) is int and 0 <= n < 2**62 for n in counts),
        "expert_rows": isinstance(rows, list) and all(type(n) is int and 0 <= n < 2**62 for n in rows),
    }
    if wrong := [name for name, fine in right.items() if not fine]:
        raise ValueError(f"{wrong[0]} is not what it was written as")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def records_in(folder: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """Read the `metrics.jsonl` of a folder, see :meth:`Run.records`; `torn` passes over a line that ends nowhere."""
    path = folder / METRICS_NAME
    if not path.is_file():
        return []
    try:
        found = [dict(json.loads(line)) for line in _lines(path, torn=torn) if line.strip()]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}): delete its last line, or the file") from None
    if any(not isinstance(record.get("kind"), str) for record in found):
        raise ValueError(f"{path} is damaged (a line names no kind): delete that line, or the file")
    for number, record in enumerate(found):
        for name, kinds in _RECORDS.get(record["kind"], {}).items():
            if not isinstance(record.get(name), kinds) or isinstance(record.get(name), bool):
                raise ValueError(
                    f"{path} is damaged (line {number + 1} of kind {record['kind']}: {name} is "
                    f"{repr(record.get(name))[:40]}): delete that line, or the file"
                )
    return found


# What is read of records.
_NUMBER = (int, float)
_RECORDS: dict[str, dict[str, tuple[type, ...]]] = {
    "em": {"iteration": _NUMBER, "log_likelihood": _NUMBER},
    "train": {"step": _NUMBER, "loss": _NUMBER, "seconds": _NUMBER, "cpu_seconds": _NUMBER},
    "validation": {"step": _NUMBER, "loss": _NUMBER},
    "stage": {"name": (str,), "seconds": _NUMBER, "cpu_seconds": _NUMBER},
    "fit": {"seconds": _NUMBER, "command": (str,), "passes": _NUMBER},
    "training": {"command": (str,)},
    "measurement": {"law": (str,), "name": (str,), "value": _NUMBER, "where": (str,), "better": (str,)},
}


def write_records(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Let `metrics.jsonl` hold these records."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(folder / METRICS_NAME, lambda part: part.write_text(text))


def append_records(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append lines to the `metrics.jsonl` of a folder, all of them or none."""
    path = folder / METRICS_NAME
    before = "".join(f"{line}\n" for line in _lines(path, torn=True)) if path.is_file() else ""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(path, lambda part: part.write_text(before + lines))


def _lines(path: Path, *, torn: bool) -> list[str]:
    """The lines of a file of records, where `torn` but for one that its writer was killed in."""
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    if torn:
        try:
            json.loads(last)
        except (ValueError, RecursionError):
            return lines
    return [*lines, last] if last else lines


def check_out(out: Path, *, overwrite: bool, beside: bool = False) -> Path:
    """Refuse an output folder that would be written over, or belongs to a training; to be called before work starts.

    Args:
        out: the folder.
        overwrite: whether its run may be replaced.
        beside: whether it is written by :func:`staged`, next to its place.

    Returns:
        The folder that links lead to.

    Raises:
        FileExistsError: the folder holds something and `overwrite` is not set, or a run of `molrmog train`.
        OSError: it is no folder, or cannot be made or written to, see :func:`molrmog.interfaces.places.check_folder`.
    """
    if os.path.isdir(out) and _is_of_train(out):
        raise FileExistsError(f"--out {out} holds a run of molrmog train, another kind of run: name another folder")
    if os.path.isdir(out) and any(out.iterdir()) and not overwrite:
        raise FileExistsError(f"--out {out} exists and is not empty: name another folder, or pass --overwrite")
    return check_folder(out, beside=beside)


def _is_of_train(folder: Path) -> bool:
    try:
        return "network" in settings_in(folder)
    except ValueError:
        return False


@contextmanager
def staged(out: Path, *, overwrite: bool = False, lock: Lock | None = None) -> Generator[Path]:
    """A folder beside `out` to write a run into, which becomes `out` when the block ends well and vanishes otherwise.

    Where `out` exists it is replaced in one step: whenever the process is killed, there is the old run or the new one,
    and with it all else that lies in the folder.

    Args:
        out: the run folder, or a link to it.
        overwrite: whether a run that is there may be replaced.
        lock: of the run, to hold it longer than the block.

    Raises:
        OSError: see :func:`check_out`; or another process writes this run.
    """
    check_out(out, overwrite=overwrite)
    place, stage = out.resolve(), stage_of(out)
    recover(place)
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be made ({error.strerror}): name another folder") from None
    with nullcontext(lock) if lock is not None else closing(Lock(place)) as held:
        held.take(stage, out)
        try:
            if place.exists():
                held.take(place, out)
            _check_again(out, overwrite)
            clear(stage, place, RUN_FILES)  # what a run that was killed has left
            discard(former_of(place), place, RUN_FILES)
        except BaseException:
            with suppress(OSError):  # it holds what is of others
                stage.rmdir()
            raise
        try:
            _try_to_keep(place, stage)
            yield stage
            if place.exists():
                sweep(place, RUN_FILES)
                adopt(place, stage, RUN_FILES)
            with _staying():
                old = exchange(stage, place)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)  # of all that is of others it has second names
            raise
        try:
            discard(old, place, RUN_FILES)
        except OSError as error:
            warnings.warn(f"the run that was replaced is still in {old} ({error})", RuntimeWarning, stacklevel=3)


@contextmanager
def _staying() -> Generator[None]:
    """Stay where the process is by name, where the folder it is in is replaced."""
    here = "."
    with suppress(OSError):  # the process is in a folder that is gone
        here = os.getcwd()
    yield
    with suppress(OSError):
        if not os.path.samefile(here, "."):
            os.chdir(here)


def _check_again(out: Path, overwrite: bool) -> None:
    """Look at the folder once it is locked, and refuse to replace what is no run.

    Raises:
        OSError: see :func:`check_out`; or files of a run's names are of something else.
    """
    check_out(out, overwrite=overwrite)
    there = [name for name in RUN_FILES if (out / name).exists()]
    if there and MODEL_NAME not in there and DATA_NAME not in there:
        raise FileExistsError(f"--out {out} holds {there[0]}, and no run: name another folder")
    if os.path.ismount(out):
        raise OSError(f"--out {out} is a disk of its own: name a folder in it")


def _try_to_keep(place: Path, stage: Path) -> None:
    """Find out before the work whether what is no part of the run can be kept.

    Raises:
        OSError: it cannot.
    """
    if place.exists():
        adopt(place, stage, RUN_FILES)
        clear(stage, place, RUN_FILES)
