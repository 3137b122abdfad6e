"""A run: one folder that holds a fitted law, or a trained network, and everything that is known about it.

| file | holds |
| --- | --- |
| `config.yaml` | the settings; `molrmog fit --config RUN/config.yaml --out OTHER` repeats a fit, `train` a training |
| `config.json`, `model.safetensors` | the law, or the network with its autoencoders |
| `data.json` | what a row of the data means: `Layout.info()`, and how many rows were held out |
| `metrics.jsonl` | one JSON object a line: fit and passes of EM, or losses; measurements with their commands |
| `samples.png` | a grid of samples |
| `report.html` | all of this as one page |

The run of a fit is written beside its place and renamed into it, so that a fit which is interrupted leaves nothing
behind. That of a training grows in its place, so that the same command goes on with it, see
`molrmog.interfaces.training`.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrmog.data import Layout
from molrmog.interfaces.places import check_folder
from molrmog.interfaces.trained import Trained
from molrmog.laws.base import Law
from molrmog.registry import load
from molrmog.saving import CONFIG_NAME, MODEL_NAME, locked, write_atomically
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
        missing = [name for name in (MODEL_NAME, DATA_NAME) if not (self.folder / name).is_file()]
        if MODEL_NAME in missing and "network" in self.settings():
            config = self.folder / SETTINGS_NAME
            raise FileNotFoundError(
                f"the run at {self.folder} is not finished, go on with: molrmog train --config {config}"
            )
        if not self.folder.is_dir() or missing:
            why = f"{' and '.join(missing)} missing" if self.folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"no run at {self.folder} ({why}): make one with molrmog fit DATA --out RUN")

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
        try:
            found = dict(json.loads((self.folder / DATA_NAME).read_text()))
            Layout.from_info(found)
            return found
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.folder / DATA_NAME} is damaged ({error}): fit again") from None

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
        return experts_in(self.folder)

    def records(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`, oldest first; empty where there is none.

        Raises:
            ValueError: a line is no JSON object that says its kind.
        """
        path = self.folder / METRICS_NAME
        if not path.is_file():
            return []
        try:
            found = [dict(json.loads(line)) for line in path.read_text().splitlines() if line.strip()]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete its last line, or the file") from None
        if any("kind" not in record for record in found):
            raise ValueError(f"{path} is damaged (a line names no kind): delete that line, or the file")
        return found

    def record(self, records: Sequence[dict[str, Any]]) -> None:
        """Append to `metrics.jsonl`, all lines or none."""
        append_records(self.folder, records)


def settings_in(folder: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a folder; empty where there is none.

    Raises:
        ValueError: it is not YAML.
    """
    import yaml

    path = folder / SETTINGS_NAME
    try:
        return dict(yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}): make the run again") from None


def experts_in(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the `experts.npz` of a folder, see :meth:`Run.experts`."""
    path = folder / EXPERTS_NAME
    try:
        with np.load(path) as found:
            return torch.from_numpy(found["train"]), torch.from_numpy(found["held_out"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} is damaged: delete it, and train again") from None


def append_records(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append lines to the `metrics.jsonl` of a folder, all of them or none."""
    path = folder / METRICS_NAME
    before = path.read_text() if path.is_file() else ""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_atomically(path, lambda part: part.write_text(before + lines))


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
def staged(out: Path, *, overwrite: bool = False) -> Generator[Path]:
    """A folder beside `out` to write a run into, which becomes `out` when the block ends well and vanishes otherwise.

    Where `out` exists its run is replaced file by file; what else lies there stays.

    Args:
        out: the run folder.
        overwrite: whether a run that is there may be replaced.

    Raises:
        OSError: see :func:`check_out`; or another process writes this run.
    """
    check_out(out, overwrite=overwrite)
    part = out.absolute().parent / f".{out.absolute().name}.part"
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be made ({error.strerror}): name another folder") from None
    with locked(part, out):
        try:
            for path in part.iterdir():  # what a run that was killed has left
                path.unlink()
            yield part
            if not out.exists():
                os.rename(part, out)
                return
            for name in RUN_FILES:
                if (part / name).exists():
                    os.replace(part / name, out / name)
                else:
                    (out / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
