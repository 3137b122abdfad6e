"""Experts side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from molrmog.denoisers.base import Denoiser, Expert, ScoreNetwork, expert_of_rows
from molrmog.denoisers.saved import build_denoiser
from molrmog.law import Noise


class PerExpert(ScoreNetwork):
    """K denoisers of the same dimension, one per expert; every row is sent to its own.

    An expert without rows in a batch is not run, so its parameters get no gradient in that step: under
    DistributedDataParallel pass find_unused_parameters=True.

    Attributes:
        denoisers: the K denoisers.

    Example:
        >>> from molrmog.denoisers.mlp import MLPDenoiser
        >>> network = PerExpert([MLPDenoiser(4, width=8), MLPDenoiser(4, width=8)])
        >>> network.denoise(torch.zeros(3, 4), 1.0, 0.5, expert=torch.tensor([0, 1, 0])).shape
        torch.Size([3, 4])
    """

    def __init__(self, denoisers: Sequence[ScoreNetwork]) -> None:
        """Put denoisers side by side.

        Args:
            denoisers: one per expert, of one dimension.

        Raises:
            ValueError: there are none, or they differ in dimension.
        """
        super().__init__()
        dims = {denoiser.dim for denoiser in denoisers}
        if len(dims) != 1:
            raise ValueError(f"denoisers of dimensions {sorted(dims)}: pass at least one, all of one dimension")
        self.denoisers = nn.ModuleList(denoisers)
        self.dim = dims.pop()

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network: the configuration of each expert."""
        return {"denoiser": "PerExpert", "denoisers": [denoiser.config for denoiser in self.networks]}

    @property
    def networks(self) -> list[ScoreNetwork]:
        """The K denoisers, as a list."""
        return [cast(ScoreNetwork, denoiser) for denoiser in self.denoisers]

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained, of all experts together."""
        return sum(denoiser.num_parameters for denoiser in self.networks)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network that `config` describes, untrained."""
        return cls([build_denoiser(each) for each in config["denoisers"]])

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Estimate E[x_0 | x_t, k] with shape (B, D), every row by its expert.

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).
            expert: index k, one for all rows or one per row with shape (B,); None where there is one expert only.

        Raises:
            ValueError: wrong shapes, or an expert that does not exist.
        """

        def by(k: int, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
            return cast(Denoiser, self.denoisers[k]).denoise(x, s, gamma)

        return by_expert(by, expert, len(self.denoisers), x, s, gamma)


def by_expert(apply: Callable[..., Tensor], expert: Expert | None, experts: int, x: Tensor, *levels: Noise) -> Tensor:
    """Apply each expert to its own rows, and put the results together in the order of the rows.

    Args:
        apply: called with an index, rows (b, D) and their levels; returns b rows.
        expert: index, one for all rows or one per row with shape (B,).
        experts: how many there are.
        x: rows, with shape (B, D).
        levels: floats, or one per row with shape (B,).
    """
    index = expert_of_rows(expert, x, experts)
    if not isinstance(expert, Tensor) or not len(x):
        return apply(int(index[0]) if len(x) else 0, x, *levels)

    order = index.argsort(stable=True)
    parts: list[Tensor] = []
    for k, rows in enumerate(order.split(torch.bincount(index, minlength=experts).tolist())):
        if len(rows):
            own = [level[rows] if isinstance(level, Tensor) and level.shape == (len(x),) else level for level in levels]
            parts.append(apply(k, x[rows], *own))
    return torch.cat(parts)[order.argsort()]
