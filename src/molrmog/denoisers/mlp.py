"""A residual network for flat latents.

    h_0 = W c_in x,    e = embedding(c_noise) + embedding(expert)
    h_i = h_{i-1} + W_2 silu( W_1 [ (1 + a_i(e)) norm(h_{i-1}) + b_i(e) ] ),    F = W_out norm(h_depth)

with W_out = 0 and a = b = 0 at the start, so that the untrained network is the linear denoiser c_skip x of a Gaussian.

References:
    He et al., Deep Residual Learning, arXiv 1512.03385; Peebles & Xie, arXiv 2212.09748 (adaptive normalisation).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from molrmog.arguments import real, whole
from molrmog.denoisers.preconditioning import Preconditioned


class MLPDenoiser(Preconditioned):
    """A small residual MLP with EDM preconditioning.

    Example:
        >>> network = MLPDenoiser(16, width=64, depth=2)
        >>> network.denoise(torch.zeros(5, 16), s=0.8, gamma=0.6).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        dim: int,
        width: int = 256,
        depth: int = 3,
        experts: int = 0,
        dropout: float = 0.0,
        sigma_data: float = 1.0,
        inputs: int = 1,
        unconditional: bool = False,
        gates: int = 0,
    ) -> None:
        """Build the network.

        Args:
            dim: dimension D of the rows.
            width: of the hidden layers, even.
            depth: number of residual blocks.
            experts: number of experts it may be conditional on; 0 for none.
            dropout: probability, inside the blocks.
            sigma_data: standard deviation of a coordinate of the data; 1 for standardised latents.
            inputs: how many rows it sees side by side: 2 inside a `ResidualDenoiser`.
            gates: how many gates it sees beside them, inside a `ResidualDenoiser` with gates.
            unconditional: whether there is a null expert; train it with `drop_expert`.

        Raises:
            ValueError: a size is out of range.
        """
        super().__init__(dim, experts, sigma_data, inputs, unconditional, gates)
        width, depth, dropout = whole(width, "width"), whole(depth, "depth"), real(dropout, "dropout")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}: pass a share in [0, 1)")
        if dim < 1 or depth < 1 or width < 2 or width % 2:
            raise ValueError(f"dim = {dim}, width = {width}, depth = {depth}: pass sizes >= 1 and an even width")
        self.width, self.depth, self.dropout = width, depth, dropout
        self.enter = nn.Linear(inputs * dim + gates, width)
        self.noise = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.expert = nn.Embedding(self.classes, width) if experts else None
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network."""
        names = ("dim", "width", "depth", "experts", "dropout", "sigma_data", "inputs")
        return {"denoiser": "MLPDenoiser", **{name: getattr(self, name) for name in names}, **self.extras}

    def forward(self, x: Tensor, c_noise: Tensor, expert: Tensor | None, gates: Tensor | None = None) -> Tensor:
        """F, with shape (B, D); x with shape (B, inputs D), c_noise and expert (B,), gates (B, K)."""
        e = self.noise(waves(c_noise, self.width))
        if self.expert is not None and expert is not None:
            e = e + self.expert(expert % self.classes)  # -1, the null expert, is the last
        h = self.enter(x if gates is None else torch.cat([x, gates], 1))
        for block in self.blocks:
            h = block(h, e)
        return self.leave(self.norm(h))


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 2 * width)
        self.hidden = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.condition(nn.functional.silu(e)).chunk(2, 1)
        return h + self.hidden((1 + scale) * self.norm(h) + shift)


def waves(c_noise: Tensor, width: int) -> Tensor:
    """Cosines and sines of c_noise at width / 2 frequencies from 1/4 to 64, with shape (B, width)."""
    octaves = torch.linspace(-2.0, 6.0, width // 2, dtype=c_noise.dtype, device=c_noise.device)
    angle = math.pi * c_noise[:, None] * octaves.exp2()
    return torch.cat([angle.cos(), angle.sin()], 1)
