"""What a sampler asks of a denoiser.

    x_t = s x_0 + gamma eps,    denoise(x_t, s, gamma) = E[x_0 | x_t]

By Tweedie's formula a denoiser is a score, (s E[x_0 | x_t] - x_t) / gamma^2, and it is well scaled at every noise
level, so it is what networks learn and what samplers call. A law is the denoiser that needs no training.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """Anything that estimates the clean point behind a noised one."""

    def denoise(self, x: Tensor, s: float | Tensor, gamma: float | Tensor) -> Tensor:
        """Estimate E[x_0 | x_t] with shape (B, D) from x_t with shape (B, D).

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).
        """
        ...
