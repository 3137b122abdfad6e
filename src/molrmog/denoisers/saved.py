"""Models in folders: from the name that a configuration carries to the class that reads it.

The table below is all that a configuration can name; nothing else is imported on a file's word.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from molrmog.denoisers.base import ScoreNetwork
from molrmog.head_tail import HeadTail
from molrmog.mixture import MoLRMoG
from molrmog.saving import load_model

_HOMES = {
    "MoGDenoiser": "denoisers.mog",
    "GaussianDenoiser": "denoisers.gaussian",
    "UNetDenoiser": "denoisers.unet",
    "MLPDenoiser": "denoisers.mlp",
    "PerExpert": "denoisers.experts",
}


def denoiser_class(config: dict[str, Any]) -> type[ScoreNetwork]:
    """The class that a configuration names.

    Raises:
        ValueError: it names none that there is.
    """
    name = config.get("denoiser")
    if name not in _HOMES:
        raise ValueError(f"the configuration names the denoiser {name!r}: there are {', '.join(_HOMES)}")
    return getattr(importlib.import_module(f"molrmog.{_HOMES[name]}"), name)


def build_denoiser(config: dict[str, Any]) -> ScoreNetwork:
    """Build the network that `config` describes, untrained."""
    return denoiser_class(config).from_config(config)


def load_denoiser(path: str | Path) -> ScoreNetwork:
    """Read a score network of any kind from a folder, or from the Hugging Face hub; in eval mode.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt or no score network.
    """
    config, tensors = load_model(path)
    return denoiser_class(config).from_saved(config, tensors, where=str(path))


def load(path: str | Path) -> MoLRMoG | HeadTail | ScoreNetwork:
    """Read a law or a score network from a folder, or from the Hugging Face hub.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt or of another kind.
    """
    config, tensors = load_model(path)
    if "denoiser" in config:
        return denoiser_class(config).from_saved(config, tensors, where=str(path))
    law = HeadTail if config.get("law") == "HeadTail" else MoLRMoG
    return law.from_saved(config, tensors, where=str(path))
