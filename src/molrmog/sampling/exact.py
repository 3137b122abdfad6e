"""Ancestral sampling from the law itself: a subspace, a mode in it, a latent, off-subspace noise.

No noise level and no steps; it is what every other sampler is to be compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molrmog.models import SupportsDenoise
from molrmog.sampling.base import Sampler, SupportsSample, as_law


class Exact(Sampler):
    """Exact samples of a law: the first state is already clean, and no step moves it.

    Raises:
        ValueError: the denoiser is not a law.
    """

    def check(self, denoiser: SupportsDenoise) -> None:
        """Refuse what is no law."""
        _law(denoiser)

    def start(self, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw exact samples with shape (n, D)."""
        return _law(self.denoiser).sample(shape[0], self.generator).x.to(dtype=dtype, device=device)

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Leave x as it is."""
        return x

    def finish(self, x: Tensor, t: float) -> Tensor:
        """Leave x as it is."""
        return x


def _law(denoiser: SupportsDenoise) -> SupportsSample:
    return as_law(denoiser, "sampler 'exact' draws from a law, and a {} is not one: try 'heun'")
