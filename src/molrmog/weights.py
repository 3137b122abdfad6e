"""Pretrained weights that are not part of the package: safetensors files, given by path or kept in one folder.

    $MOLRMOG_WEIGHTS_DIR/lpips/squeezenet1_1_features.safetensors
    $MOLRMOG_WEIGHTS_DIR/taef2/taef2_encoder.safetensors

Whatever needs such a file takes its path as an argument and looks into the folder where the argument is None.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

WEIGHTS_DIR = "MOLRMOG_WEIGHTS_DIR"
"""Environment variable that names the folder of pretrained weights."""


def weights_file(name: str, path: str | Path | None = None) -> Path:
    """Find a file of pretrained weights.

    Args:
        name: its place in the weights folder, e.g. "lpips/squeezenet1_1_features.safetensors".
        path: the file itself, which then need not be in that folder.

    Returns:
        The path of an existing file.

    Raises:
        FileNotFoundError: there is no such file, or neither a path nor $MOLRMOG_WEIGHTS_DIR is given.
    """
    folder = os.environ.get(WEIGHTS_DIR)
    if path is None and not folder:
        raise FileNotFoundError(
            f"no weights {name}: pass their path, or set {WEIGHTS_DIR} to the folder that holds them"
        )
    found = Path(path) if path is not None else Path(folder or "") / name
    if not found.is_file():
        where = "check the path" if path is not None else f"put the file there, or set {WEIGHTS_DIR} to another folder"
        raise FileNotFoundError(f"no weights at {found}: {where}")
    return found


def load_weights(module: nn.Module, path: str | Path, what: str) -> None:
    """Copy the tensors of a safetensors file into a module that has the same keys and shapes.

    Args:
        module: receives the weights, in its own dtype and on its own device.
        path: the file.
        what: what the file should hold, for the error message.

    Raises:
        ValueError: the file is corrupt, or holds other keys or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold {what}: {reason}") from None
