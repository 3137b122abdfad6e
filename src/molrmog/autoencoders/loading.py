"""Autoencoders from what was saved of them: a configuration, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from molrmog.autoencoders.base import Autoencoder, restore
from molrmog.autoencoders.linear import LinearAutoencoder
from molrmog.autoencoders.lora import LoRAExperts
from molrmog.autoencoders.pretrained import TAEF2, PretrainedAutoencoder
from molrmog.autoencoders.vae import MLPVAE, ConvVAE
from molrmog.saving import load_model

AUTOENCODERS: dict[str, type[Autoencoder]] = {
    kind.__name__: kind for kind in (LinearAutoencoder, MLPVAE, ConvVAE, PretrainedAutoencoder, TAEF2)
}


def build_autoencoder(config: dict[str, Any]) -> Autoencoder:
    """Build the autoencoder that `config` describes, with fresh weights; `load_state_dict` fills them in.

    Args:
        config: `config` of an autoencoder.

    Raises:
        ValueError: there is no such autoencoder.
    """
    kind = config.get("autoencoder")
    if kind not in AUTOENCODERS:
        raise ValueError(f"no autoencoder is called {kind!r}: choose from {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[kind].from_config(config)


def build_autoencoders(config: dict[str, Any] | Sequence[dict[str, Any]]) -> nn.ModuleList | LoRAExperts:
    """Build the autoencoders of several experts, with fresh weights; `load_state_dict` fills them in.

    Args:
        config: one configuration for each expert, or that of :class:`LoRAExperts`.

    Returns:
        A module with `len` and indexing by expert.

    Raises:
        ValueError: there is no such autoencoder.
    """
    if not isinstance(config, dict):
        return nn.ModuleList(build_autoencoder(each) for each in config)
    if config.get("autoencoder") != LoRAExperts.__name__:
        raise ValueError(f"one {config.get('autoencoder')} is not several: pass a list of configurations")
    return LoRAExperts.from_config(config)


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Read an autoencoder of any kind from a folder, or from the Hugging Face hub, ready for use, frozen.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt, or no autoencoder.
    """
    config, tensors = load_model(path)
    kind = config.get("autoencoder")
    if kind == LoRAExperts.__name__:
        raise ValueError(f"{path} holds {kind}, several autoencoders: read it with LoRAExperts.from_pretrained")
    if kind not in AUTOENCODERS:
        raise ValueError(f"{path} holds no autoencoder: save one there with save_pretrained")
    return restore(kind, build_autoencoder, config, tensors, where=str(path))
