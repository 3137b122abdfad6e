"""`law.scaled(c)` until laws have it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from molrmog.laws.head_tail import HeadTail
from molrmog.laws.molrmog import MoLRMoG


def _scaled(self: Any, c: float) -> Any:
    """The law of c x_0, exact where c is a power of two."""
    law = copy.deepcopy(self)
    with torch.no_grad():
        for part in (law, law.head) if isinstance(law, HeadTail) else (law,):
            for name in ("offset", "mean", "factor", "tau", "spread"):
                if hasattr(part, name):
                    getattr(part, name).mul_(c)
    return law


if not hasattr(MoLRMoG, "scaled"):
    MoLRMoG.scaled = HeadTail.scaled = _scaled  # type: ignore
