"""The former home of `molrmog.registry`: its names as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from molrmog.models import Denoiser, description_of
from molrmog.registry import build, find, load

__all__ = ["build_base", "build_denoiser", "build_law", "config_of", "denoiser_class", "load", "load_denoiser"]

build_base = build_denoiser = build_law = build
config_of = description_of


def denoiser_class(config: dict[str, Any], where: str = "the configuration") -> type[Denoiser]:
    """The class that a configuration names; see :func:`molrmog.registry.find`."""
    return find(config.get("denoiser"), "denoiser", where)


def load_denoiser(path: str | Path) -> Denoiser:
    """Read a denoiser of any class; see :func:`molrmog.registry.load`."""
    return load(path, "denoiser")
