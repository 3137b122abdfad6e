"""Checkpoints of a training run: whole or not there at all, and nothing pickled.

    out/checkpoints/step-00001000/
        model.safetensors       the network as the last step left it
        average.safetensors     its moving average
        optimizer.safetensors   the moments of Adam
        state.json              step, samples, settings, ..., and the SHA-256 of each of the files above and of itself

A checkpoint is written into a folder of another name and renamed, so a run that is killed leaves no half of one. What a
disk loses later is found by the digests: such a checkpoint is passed over with a warning, and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from molrmog.folders import exchange
from molrmog.saving import write_atomically

_STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_PART = re.compile(r"\.step-\d{8,}\.part")
_OWN = re.compile(r"state\.json|(model|average|optimizer)\.safetensors|\.tmp[A-Za-z0-9]{6}")


@dataclass(frozen=True)
class Checkpoint:
    """Where a training run stood.

    Attributes:
        step: optimiser steps taken.
        state: what JSON can hold.
        tensors: name to tensor on the CPU, by file.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> bool:
    """Write a checkpoint into `folder` and delete all but the newest.

    A disk that cannot be written to is a warning: what was saved before stays, and the run can go on.

    Args:
        folder: of all checkpoints of the run.
        checkpoint: what is written; one of the same step is replaced.
        keep: how many to keep. Those of later steps belong to a course that was given up, and are deleted.

    Returns:
        Whether it was written.
    """
    from safetensors.torch import save_file

    place = folder / f"step-{checkpoint.step:08d}"
    part = folder / f".{place.name}.part"
    try:
        for left in folder.glob(".step-*.part"):  # by whoever was killed; the run has one writer at a time
            if _PART.fullmatch(left.name):
                remove_checkpoint(left)
        part.mkdir(parents=True, exist_ok=True)
        for name, tensors in checkpoint.tensors.items():
            # Clones, because safetensors takes no two names for one piece of memory, as tied weights have.
            save_file({key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}, _file(part, name))
        digests = {name: _digest(_file(part, name)) for name in checkpoint.tensors}
        state = {"step": checkpoint.step, **checkpoint.state}
        state["sha256"] = {**digests, _STATE: _digest_of_state({**state, "sha256": digests})}
        (part / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        if place.exists():
            remove_checkpoint(exchange(part, place))
        else:
            os.replace(part, place)
    except Exception as error:  # safetensors has its own error for a full disk
        remove_checkpoint(part)
        warnings.warn(
            f"no checkpoint of step {checkpoint.step}: {folder} cannot be written ({_one_line(error)}); the run goes "
            "on, and earlier checkpoints are as they were: make room",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    steps = checkpoints_in(folder)
    for step, path in steps.items():
        if step > checkpoint.step or step in sorted(s for s in steps if s <= checkpoint.step)[:-keep]:
            remove_checkpoint(path)
    return True


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The folder of every checkpoint, whole or not, by its step."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return {int(match[1]): path for match, path in found if match and any(map(_is_own, path.iterdir()))}


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and its folder where nothing of others lies in it."""
    with suppress(OSError):
        for each in sorted(path.iterdir(), key=lambda each: each.name != _STATE):
            if _is_own(each):
                each.unlink()
        path.rmdir()


def _is_own(path: Path) -> bool:
    return bool(_OWN.fullmatch(path.name)) and not path.is_dir()


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None where there is none.

    Each one that is not whole is a warning.
    """
    from safetensors import SafetensorError

    for step, path in sorted(checkpoints_in(folder).items(), reverse=True):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            warnings.warn(
                f"the checkpoint of step {step} in {path} is damaged ({_one_line(error)}): the one before is used",
                RuntimeWarning,
                stacklevel=2,
            )
    return None


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object to a file of such lines, the whole line or nothing of it.

    A disk that cannot be written to is a warning.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            line = (json.dumps(record) + "\n").encode()
            try:
                if file.write(line) != len(line):
                    raise OSError("no space left on the device")
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({_one_line(error)}): make room", RuntimeWarning, stacklevel=2)


def forget_records(path: Path, after: int, kinds: tuple[str, ...]) -> None:
    """Drop the lines of `kinds` with a step beyond `after`, and what is left of a line that was being written.

    Args:
        path: a file of JSON lines; nothing happens where there is none.
        after: the last step that is kept.
        kinds: whose lines are dropped; other lines stay.
    """
    if not path.is_file():
        return
    kept: list[str] = []
    lines = path.read_text().splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or not (record.get("kind") in kinds and record.get("step", 0) > after):
            kept.append(line)
    if kept != lines:
        write_atomically(path, lambda part: part.write_text("".join(f"{line}\n" for line in kept)))


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load

    state = json.loads((path / _STATE).read_text())
    own = state["sha256"].pop(_STATE)
    if own != _digest_of_state(state):
        raise ValueError(f"{_STATE} is not what was written")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, digest in state.pop("sha256").items():
        if _digest(_file(path, name)) != digest:
            raise ValueError(f"{_file(path, name).name} is not what was written")
        tensors[name] = load(_file(path, name).read_bytes())
    return Checkpoint(int(state.pop("step")), state, tensors)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_state(state: dict[str, Any]) -> str:
    """Of all that the state says, but for this digest."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
