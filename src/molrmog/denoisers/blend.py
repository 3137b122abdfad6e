"""Several denoisers as one: a linear blend, with weights per noise level from least squares on data.

    D(x_t) = m + sum_i w_i(sigma) ( D_i(x_t) - m ),      w(sigma) = argmin_w E | x_0 - D(x_t) |^2,    sigma = gamma / s

The problem is linear in w, so that its solution is closed-form, on rows noised at each level of a table, and no part is
better than the blend on these rows. Parts that know the rows by heart get too much weight: rows that they were not
fitted to give weights that hold elsewhere. At low noise patches are right, at high noise a law of whole pictures, and
in between the two err in different ways.

At low noise all parts say nearly x_t / s, and what they differ in is all that counts. So the regression is one of
x_0 - M on M - m and the D_i - M, with M the mean of the parts, each scaled to one; a ridge of 1e-4 lets parts that say
the same share their weight.

References:
    Breiman, Stacked regressions, Machine Learning 24, 1996.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.arguments import is_a, shown
from molrmog.denoisers.base import check_columns, level_of_rows
from molrmog.denoisers.levels import LevelTable, check_rows, log_sigma_grid, unit_level
from molrmog.models import (
    Denoiser,
    Expert,
    Noise,
    SupportsDenoise,
    as_module,
    denoise_with,
    description_of,
    dim_of,
    refuse_expert,
)
from molrmog.registry import build
from molrmog.seeds import torch_generator

_ROWS = 256  # rows at each noise level
_RIDGE = 1e-4


class BlendDenoiser(Denoiser):
    """A blend of denoisers; equal weights until :meth:`fit_` is called.

    Attributes:
        parts: the denoisers D_i.
        weights: w by noise level.
        mean: m, with shape (D,).

    Example:
        >>> from molrmog import MoLRMoG
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2,), modes=(2,), noise=0.1, seed=0)
        >>> other = MoLRMoG.random(dim=8, latent_dims=(2,), modes=(2,), noise=0.1, seed=1)
        >>> blend = BlendDenoiser([law, other]).fit_(law.sample(500).x)
        >>> blend.weights.values[20, 0].item() > 0.9  # the first is right
        True
    """

    mean: Tensor

    def __init__(self, parts: Sequence[SupportsDenoise]) -> None:
        """Put denoisers together.

        Args:
            parts: torch modules with `dim` and `denoise`, of one dimension.

        Raises:
            ValueError: there are none, or they differ in dimension.
        """
        super().__init__()
        if not is_a(parts, Iterable):
            raise ValueError(f"parts = {shown(parts)}: pass a list of denoisers")
        parts = list(parts)
        dims = {dim_of(part) for part in parts}
        if len(dims) != 1:
            raise ValueError(f"denoisers of dimensions {sorted(dims)}: pass at least one, all of one dimension")
        self.dim = dims.pop()
        self.parts = nn.ModuleList(as_module(part) for part in parts)
        self.weights = LevelTable(len(parts))
        self.weights.values.fill_(1 / len(parts))
        self.register_buffer("mean", torch.zeros(self.dim))

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser: the configuration of each part."""
        return {"denoiser": "BlendDenoiser", "parts": [description_of(part) for part in self.parts]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its tensors are read."""
        return cls([build(part, "denoiser").requires_grad_(False) for part in config["parts"]])

    @torch.no_grad()
    def fit_(self, x: Tensor, seed: int = 0) -> Self:
        """Solve for the weights on rows that are noised at every level of the table.

        Args:
            x: rows with shape (N, D), best such that the parts were not fitted to.
            seed: of the rows that are taken at each level, and of the noise.

        Returns:
            Itself.

        Raises:
            ValueError: the rows have another dimension, or are too few.
        """
        check_rows(x, self.dim)
        draw = torch_generator(seed)
        self.mean.copy_(x.double().mean(0))
        for i, log_sigma in enumerate(log_sigma_grid()):
            s, gamma = unit_level(log_sigma)
            mine = torch.randint(len(x), (_ROWS,), generator=draw)
            x0 = x[mine].to(self.mean)
            xt = s * x0 + gamma * torch.randn(x0.shape, generator=draw).to(x0)
            said = torch.stack(self._each(xt, s, gamma)).double()  # (parts, B, D)
            M = said.mean(0)
            apart = torch.cat([(M - self.mean)[None], said - M]).flatten(1)  # (1 + parts, B D)
            length = apart.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
            apart = apart / length[:, None]
            G = apart @ apart.T + _RIDGE * torch.eye(len(apart)).to(apart)
            shrink, *u = torch.linalg.solve(G, apart @ (x0 - M).flatten()) / length
            u = torch.stack(u)
            self.weights.values[i] = (1 + shrink) / len(u) + u - u.mean()
        return self

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """The blend's estimate of E[x_0 | x_t], with shape (B, D)."""
        refuse_expert(self, expert)
        check_columns(x, self.dim)
        w = self.weights(level_of_rows(s, x), level_of_rows(gamma, x))  # (B, parts)
        mean = self.mean.to(x.dtype)
        said = torch.stack([each - mean for each in self._each(x, s, gamma)], 1)  # (B, parts, D)
        return mean + (w[..., None] * said).sum(1)  # no product of matrices, which autocast would round

    def _each(self, x: Tensor, s: Noise, gamma: Noise) -> list[Tensor]:
        return [denoise_with(part, x, s, gamma) for part in self.parts]
