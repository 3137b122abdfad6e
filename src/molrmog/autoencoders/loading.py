"""Autoencoders from what was saved of them: a configuration, or a folder; see `molrmog.registry`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molrmog.autoencoders.base import Autoencoder, AutoencoderList, build_autoencoder
from molrmog.autoencoders.lora import LoRAExperts
from molrmog.registry import build, load

__all__ = ["Autoencoders", "build_autoencoder", "build_autoencoders", "load_autoencoder"]

Autoencoders = AutoencoderList | LoRAExperts
"""Those of several experts: a module with `len` and indexing."""


def build_autoencoders(config: dict[str, Any] | Sequence[dict[str, Any]]) -> Autoencoders:
    """Build the autoencoders of several experts, with fresh weights; `load_state_dict` fills them in.

    Args:
        config: one configuration for each expert, or that of :class:`LoRAExperts`.

    Returns:
        A module with `len` and indexing by expert.

    Raises:
        ValueError: there is no such autoencoder.
    """
    if not isinstance(config, dict):
        return AutoencoderList(build_autoencoder(each) for each in config)
    several = build(config, "autoencoder")
    if not isinstance(several, LoRAExperts):
        raise ValueError(f"one {config.get('autoencoder')} is not several: pass a list of configurations")
    return several


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Read an autoencoder of any class from a folder, or from the Hugging Face hub, ready for use, frozen.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt, or no autoencoder.
    """
    found = load(path, "autoencoder")
    if not isinstance(found, Autoencoder):
        raise ValueError(f"{path} holds several autoencoders: read it with {type(found).__name__}.from_pretrained")
    return found
