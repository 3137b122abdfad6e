"""Data with a mean of their own, for networks that are made for data around zero.

    D(x_t) = m + D_0(x_t - s m),      m = E x_0

x_t - s m is x_0 - m, noised, so D_0 is asked for nothing but what lies around the mean. Preconditioning counts on it:
with sd the deviation of the data, c_in (x_t - s m) and the target of F then have unit mean square. On pictures that are
mostly black, as digits in [-1, 1] are, the target has up to four times as much without it, most of it one constant
picture.

References:
    Karras et al., arXiv 2206.00364, appendix B.6 (the preconditioning, for data of mean zero).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from molrmog.arguments import is_a, shown
from molrmog.denoisers.base import check_columns, level_of_rows
from molrmog.models import (
    Denoiser,
    Expert,
    Noise,
    SupportsDenoise,
    as_module,
    denoise_with,
    description_of,
    dim_of,
    has_null_expert,
    num_experts_of,
    refuse_expert,
)
from molrmog.registry import build


class CentredDenoiser(Denoiser):
    """A denoiser of x_0 as one of x_0 - m.

    Attributes:
        network: D_0.
        mean: m, with shape (D,).

    Example:
        >>> from molrmog import MLPDenoiser
        >>> x = 3 + torch.randn(100, 8)
        >>> network = CentredDenoiser(MLPDenoiser(8, width=16, sigma_data=1.0), x.mean(0))
        >>> network.denoise(x, 1.0, 0.5).shape
        torch.Size([100, 8])
    """

    mean: Tensor

    def __init__(self, network: SupportsDenoise, mean: Tensor) -> None:
        """Put a mean beneath a network.

        Args:
            network: a torch module with `dim` and `denoise`.
            mean: m, with shape (D,), in data units.

        Raises:
            ValueError: the mean has another dimension.
        """
        super().__init__()
        self.dim = dim_of(network)
        if not is_a(mean, Tensor) or mean.is_complex() or mean.layout != torch.strided or mean.is_meta:
            raise ValueError(f"mean = {shown(mean)}: pass a dense tensor of real numbers with shape ({self.dim},)")
        if mean.shape != (self.dim,):
            raise ValueError(f"a mean with shape {tuple(mean.shape)}: pass ({self.dim},), as rows.mean(0) has")
        self.network = as_module(network)
        self.num_experts, self.null_expert = num_experts_of(network), has_null_expert(network)
        self.register_buffer("mean", mean.detach().float().clone(memory_format=torch.contiguous_format))

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser."""
        return {"denoiser": "CentredDenoiser", "network": description_of(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its tensors are read."""
        network = build(config["network"], "denoiser")
        return cls(network, torch.zeros(network.dim))

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """The mean plus D_0(x_t - s m), with shape (B, D)."""
        check_columns(x, self.dim)
        refuse_expert(self, expert)
        mean = self.mean.to(x.dtype)
        return mean + denoise_with(self.network, x - level_of_rows(s, x)[:, None] * mean, s, gamma, expert)
