"""Models in folders: from the name that a configuration carries to the class that reads it.

The table below is all that a configuration can name; nothing else is imported on a file's word.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molrmog.denoisers.base import ScoreNetwork
from molrmog.laws.head_tail import HeadTail
from molrmog.laws.molrmog import MoLRMoG
from molrmog.saving import load_model

_HOMES = {
    "MoGDenoiser": "denoisers.mog",
    "GaussianDenoiser": "denoisers.gaussian",
    "UNetDenoiser": "denoisers.unet",
    "MLPDenoiser": "denoisers.mlp",
    "PerExpert": "denoisers.experts",
    "Experts": "denoisers.experts",
    "PatchDenoiser": "denoisers.patches",
    "BlendDenoiser": "denoisers.blend",
    "ResidualDenoiser": "denoisers.residual",
    "CentredDenoiser": "denoisers.centred",
    "ConditionalLaw": "denoisers.conditional",
    "GuidedDenoiser": "denoisers.guidance",
}


def denoiser_class(config: dict[str, Any], where: str = "the configuration") -> type[ScoreNetwork]:
    """The class that a configuration names.

    Args:
        config: of a network.
        where: what an error calls the configuration.

    Raises:
        ValueError: it names none that there is.
    """
    name = config.get("denoiser")
    if name not in _HOMES:
        raise ValueError(f"{where} names the denoiser {name!r}: there are {', '.join(_HOMES)}")
    return getattr(importlib.import_module(f"molrmog.{_HOMES[name]}"), name)


def build_denoiser(config: dict[str, Any]) -> ScoreNetwork:
    """Build the network that `config` describes, untrained."""
    return denoiser_class(config).from_config(config)


def build_law(config: dict[str, Any]) -> MoLRMoG | HeadTail:
    """Build the law that `config` describes, with its name under "law", before its parameters are read.

    Raises:
        ValueError: there is no such law.
    """
    if config.get("law") == "MoLRMoG":
        return MoLRMoG(**{key: value for key, value in config.items() if key != "law"})
    if config.get("law") != "HeadTail":
        raise ValueError(f"the configuration names the law {config.get('law')!r}: there are MoLRMoG, HeadTail")
    head, dim, tail = MoLRMoG(**config["head"]), config["dim"], config["tail"]
    return HeadTail(head, torch.eye(dim, head.dim + tail), torch.zeros(dim), torch.zeros(tail), torch.zeros(()))


def config_of(model: object) -> dict[str, Any]:
    """What builds a law or a denoiser, for :func:`build_base`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(model, MoLRMoG | HeadTail):
        return {"law": type(model).__name__, **model.config}
    if isinstance(model, ScoreNetwork):
        return model.config
    raise ValueError(f"a {type(model).__name__} is no law and no network of this library: save its state_dict yourself")


def build_base(config: dict[str, Any]) -> ScoreNetwork | MoLRMoG | HeadTail:
    """Build the law or the denoiser that :func:`config_of` described."""
    return build_denoiser(config) if "denoiser" in config else build_law(config)


def build_autoencoders(config: dict[str, Any] | list[dict[str, Any]]) -> nn.Module:
    """Build the autoencoders of several experts, untrained: a module with `len` and indexing by expert.

    The rooms of denoisers and autoencoders do not know each other; only a saved model needs both.
    """
    return importlib.import_module("molrmog.autoencoders.loading").build_autoencoders(config)


def load_denoiser(path: str | Path) -> ScoreNetwork:
    """Read a score network of any kind from a folder, or from the Hugging Face hub; in eval mode.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt or no score network.
    """
    config, tensors = load_model(path)
    return denoiser_class(config, f"the configuration in {path}").from_saved(config, tensors, where=str(path))


def load(path: str | Path) -> MoLRMoG | HeadTail | ScoreNetwork:
    """Read a law or a score network from a folder, or from the Hugging Face hub.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt or of another kind.
    """
    config, tensors = load_model(path)
    if "denoiser" in config:
        return denoiser_class(config, f"the configuration in {path}").from_saved(config, tensors, where=str(path))
    law = HeadTail if config.get("law") == "HeadTail" else MoLRMoG
    return law.from_saved(config, tensors, where=str(path))
