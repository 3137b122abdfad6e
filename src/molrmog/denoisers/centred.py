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

from typing import Any, Self, cast

import torch
from torch import Tensor

from molrmog.denoisers.base import Denoiser, ScoreNetwork, check_columns, level_of_rows
from molrmog.denoisers.saved import build_base, config_of
from molrmog.laws.base import Noise


class CentredDenoiser(ScoreNetwork):
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

    def __init__(self, network: Denoiser, mean: Tensor) -> None:
        """Put a mean beneath a network.

        Args:
            network: a torch module with `dim` and `denoise`.
            mean: m, with shape (D,), in data units.

        Raises:
            ValueError: the mean has another dimension.
        """
        super().__init__()
        self.dim = int(cast(Any, network).dim)
        if mean.shape != (self.dim,):
            raise ValueError(f"a mean with shape {tuple(mean.shape)}: pass ({self.dim},), as rows.mean(0) has")
        self.network = cast(torch.nn.Module, network)
        self.register_buffer("mean", mean.detach().float())

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser."""
        return {"denoiser": "CentredDenoiser", "network": config_of(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its tensors are read."""
        network = cast(Denoiser, build_base(config["network"]))
        return cls(network, torch.zeros(cast(Any, network).dim))

    def denoise(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """Estimate E[x_0 | x_t] with shape (B, D).

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).

        Raises:
            ValueError: wrong shapes.
        """
        check_columns(x, self.dim)
        mean = self.mean.to(x.dtype)
        return mean + cast(Any, self.network).denoise(x - level_of_rows(s, x)[:, None] * mean, s, gamma)
