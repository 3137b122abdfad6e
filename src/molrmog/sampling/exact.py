"""Ancestral sampling from the law itself: a subspace, a mode in it, a latent, off-subspace noise.

No noise level and no steps; it is what every other sampler is to be compared with.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from molrmog.denoisers.base import Denoiser
from molrmog.laws.base import Law
from molrmog.sampling.base import Sampler
from molrmog.schedules import Schedule


class Exact(Sampler):
    """Exact samples of a law: the first state is already clean, and no step moves it.

    Raises:
        ValueError: the denoiser is not a law.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, generator: torch.Generator | None = None) -> None:
        super().__init__(denoiser, schedule, generator)
        if not hasattr(denoiser, "sample"):
            raise ValueError(
                f"sampler 'exact' draws from a law, and a {type(denoiser).__name__} is not one: try 'heun'"
            )

    def start(self, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw exact samples with shape (n, D)."""
        law = cast(Law, self.denoiser)
        return law.sample(shape[0], self.generator).x.to(dtype=dtype, device=device)

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Leave x as it is."""
        return x

    def finish(self, x: Tensor, t: float) -> Tensor:
        """Leave x as it is."""
        return x
