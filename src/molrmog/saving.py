"""Model folders: config.json for people, model.safetensors for machines, nothing pickled.

A file is written beside its place and renamed into it, so that a save which is killed leaves the old file whole. The
configuration also rides inside model.safetensors: where the two disagree (a save was killed between its two renames),
the tensors' own copy is the truth.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from molrmog.arguments import is_a, shown
from molrmog.checks import LONGEST, parse_configuration
from molrmog.folders import locked, room_for, sweep

__all__ = ["CONFIG_NAME", "MODEL_NAME", "load_model", "locked", "one_line", "save_model", "write_atomically"]

CONFIG_NAME = "config.json"
MODEL_NAME = "model.safetensors"


def one_line(error: object) -> str:
    """What an error says, as the part of a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of the same name in a folder beside `path`, then rename it into place.

    What writers that died have left in the folder of `path` is removed.

    Args:
        path: the file to create or replace.
        write: called with the temporary path; it must leave a complete file there.

    Raises:
        OSError: the folder cannot be written; `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with room_for(path) as part:
        part.touch()
        mode = part.stat().st_mode
        write(part)
        part.chmod(mode)  # safetensors makes the file private; a model is shared like any other file
        os.replace(part, path)


def save_model(folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write `config` and `tensors` into `folder` and return it as a path.

    Args:
        folder: created where it does not exist.
        config: JSON-serialisable; what builds the model.
        tensors: name to tensor, on any device; those that share memory, as one network in two places has, are written
            once each, and apart when they are read.

    Raises:
        OSError: the folder cannot be written; a model that was there is left whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    text = json.dumps(config, indent=2)
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if place in places else own  # safetensors takes no two names for one piece of memory
        places.add(place)
    try:
        write_atomically(folder / MODEL_NAME, lambda part: save_file(plain, part, metadata={"config": text}))
    except SafetensorError as error:  # its own error for a full disk
        reason = f"{folder / MODEL_NAME} cannot be written ({one_line(error)}): make room, or name another folder"
        raise OSError(reason) from None
    write_atomically(folder / CONFIG_NAME, lambda part: part.write_text(text + "\n"))
    return folder


def load_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`save_model` wrote; a name that is no folder is looked up on the Hugging Face hub.

    Args:
        folder: a model folder, or a hub repository such as "owner/name".

    Returns:
        The configuration, and name to tensor on the CPU.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a file is corrupt or truncated, and the message names it; or the folder is no path.
    """
    from safetensors import safe_open

    if not is_a(folder, str, os.PathLike):
        raise ValueError(f"path = {shown(folder)}: pass a folder, or the name of a model")
    folder = _local_folder(str(folder))
    path = folder / MODEL_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no model in {folder}: {MODEL_NAME} is missing (was the model saved there?)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            # Cloned, so that a tensor begins where torch lets tensors begin: products of memory that begins elsewhere
            # may be added up in another order, and a model that comes back should answer bit for bit as it did.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except PermissionError:
        raise
    except Exception as error:  # safetensors and torch have many of their own for a file that is none
        raise ValueError(f"{path} is corrupt or truncated ({one_line(error)}): save the model again") from None
    text: str | bytes | None = metadata.get("config")
    source = path
    if text is None:
        source = folder / CONFIG_NAME
        if not source.is_file():
            raise FileNotFoundError(f"no model in {folder}: {CONFIG_NAME} is missing")
        with source.open("rb") as config:
            text = config.read(LONGEST + 1)
    try:
        return parse_configuration(text), tensors
    except ValueError as error:
        raise ValueError(f"the configuration in {source} {error}: save the model again") from None


def _local_folder(name: str) -> Path:
    folder = Path(name)
    try:
        if folder.is_dir():
            return folder
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a name that no system takes is that of nothing
            raise
    said = " ".join(name.split())
    said = said if len(said) <= 200 else f"{said[:200]}..."
    if len(folder.parts) != 2 or name.startswith((".", "~")):
        raise FileNotFoundError(f"no model folder at {said}: check the path, or fit and save a model there first")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, MODEL_NAME]))
    except Exception as error:
        raise FileNotFoundError(
            f"{said} is neither a folder here nor a model on the hub ({_reason(error)}): check the path, or fit and "
            "save a model there first"
        ) from None


def _reason(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
