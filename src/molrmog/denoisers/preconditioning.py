"""Preconditioning: what a network F is asked for, so that its input and target have unit variance at every noise level.

For data with standard deviation sd in each coordinate, x_t = s x_0 + gamma eps has variance v = s^2 sd^2 + gamma^2, and

    D(x_t) = c_skip x_t + c_out F(c_in x_t, c_noise)

    c_in = 1 / sqrt(v),    c_skip = s sd^2 / v,    c_out = gamma sd / sqrt(v),    c_noise = log(gamma / s) / 4

c_skip x_t is E[x_0 | x_t] for x_0 ~ N(0, sd^2 I), so F learns what such a Gaussian misses, in units
of the standard deviation c_out of x_0 given x_t. With s = 1 this is EDM; s = 0 and gamma = 0 are finite, too.

References:
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, table 1 and
    appendix B.6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from molrmog.arguments import real, whole
from molrmog.denoisers.base import check_columns, expert_of_rows, level_of_rows
from molrmog.models import Denoiser, Expert, Noise, refuse_expert

_RATIO = 1e-4  # smallest gamma / s or s / gamma that c_noise tells from zero


def noise_condition(s: Tensor, gamma: Tensor) -> Tensor:
    """c_noise = log(gamma / s) / 4, kept within +-2.3; s and gamma with shape (B,)."""
    least = _RATIO * torch.hypot(s, gamma)
    return 0.25 * (gamma.maximum(least).log() - s.maximum(least).log())


class Preconditioned(Denoiser):
    """Base class of the neural denoisers: owns the preconditioning, a subclass writes F as `forward`.

    Attributes:
        sigma_data: standard deviation sd of a coordinate of the data; 1 for standardised latents.
        inputs: how many rows F sees side by side; more than one only inside a `ResidualDenoiser`.
        gates: how many gates F sees beside them; more than none only inside a `ResidualDenoiser`.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        sigma_data: float,
        inputs: int = 1,
        unconditional: bool = False,
        gates: int = 0,
    ) -> None:
        super().__init__()
        dim, experts, inputs = whole(dim, "dim", 1), whole(experts, "experts"), whole(inputs, "inputs")
        gates, sigma_data = whole(gates, "gates"), real(sigma_data, "sigma_data")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data = {sigma_data}: pass the standard deviation of the data, > 0")
        if experts < 0:
            raise ValueError(f"experts = {experts}: pass 0 for a network that knows no experts")
        if unconditional and not experts:
            raise ValueError("unconditional=True: the null expert is one beside others, so pass experts=K, too")
        if inputs < 1:
            raise ValueError(f"inputs = {inputs}: pass 1, or 2 for a network inside a ResidualDenoiser")
        if gates < 0:
            raise ValueError(f"gates = {gates}: pass 0, or the number of subspaces inside a ResidualDenoiser")
        self.dim = dim
        self.num_experts = experts
        self.null_expert = unconditional
        self.sigma_data = sigma_data
        self.inputs = inputs
        self.gates = gates

    @property
    def extras(self) -> dict[str, Any]:
        """What the configuration of a network names only where it is so."""
        return {name: getattr(self, name) for name in ("unconditional", "gates") if getattr(self, name)}

    @property
    def classes(self) -> int:
        """How many embeddings F chooses from: one per expert, and a last one for the null expert."""
        return self.num_experts + self.null_expert

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """c_skip x_t + c_out F(c_in x_t, c_noise), with shape (B, D).

        Raises:
            ValueError: wrong shapes, an expert that the network does not know, or a network with more inputs than x_t.
        """
        check_columns(x, self.dim)
        if self.inputs > 1 or self.gates:
            raise ValueError(
                f"this network sees {self.inputs} rows side by side and {self.gates} gates: put it into a "
                "ResidualDenoiser"
            )
        refuse_expert(self, expert, "build it with experts=K, or pass none")
        index = expert_of_rows(expert, x, self.num_experts, self.null_expert) if self.num_experts else None
        s, gamma = level_of_rows(s, x), level_of_rows(gamma, x)
        c_noise = noise_condition(s, gamma)
        c_skip, c_out, c_in = edm_scales(s[:, None], gamma[:, None], self.sigma_data)  # (B, 1)
        width = next(self.parameters()).dtype
        F = self((c_in * x).to(width), c_noise.to(width), index)
        return c_skip * x + c_out * F.to(x.dtype)


def edm_scales(s: Tensor, gamma: Tensor, sd: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in, each with the shape of s, for data of standard deviation sd."""
    c_in = (s.square() * sd**2 + gamma.square()).rsqrt()
    return s * sd**2 * c_in.square(), gamma * sd * c_in, c_in
