"""Laws of any shape, rows of them at any noise level and distance, and how far two answers lie apart."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from molrmog import HeadTail, MoLRMoG
from molrmog.laws import Law
from molrmog.laws.axes import Axes

METHODS = ("log_prob", "score", "denoise", "divergence")
GAMMAS = [0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0, 100.0, 1e3]


def any_law(seed: int, tail: bool = False, unequal: bool = False) -> tuple[Law, random.Random]:
    """A law of any shape: d from 1 to D, noise from 1e-5 to 1, centered or not, its modes near or far apart.

    Unequal noise has variances from 1e-8 to 1e4 times those of the data, in any axes.
    """
    draw = random.Random(seed)
    D, K = draw.choice([1, 2, 3, 4, 6, 8, 16, 32, 64]), draw.choice([1, 1, 2, 3])
    dims = [draw.choice([D, D, max(1, D - 1), draw.randint(1, D)]) for _ in range(K)]
    law = MoLRMoG.random(
        D,
        dims,
        [draw.choice([1, 1, 2, 4]) for _ in range(K)],
        rank=draw.choice([None, None, 1, 2]),
        noise=draw.choice([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        seed=seed,
        offset=draw.choice([0.0, 0.0, 1.0, 10.0]),
        separation=draw.choice([0.5, 3.0, 8.0]),
        dtype=torch.float32,
    )
    if unequal:
        law = _of_unequal_noise(law, draw, seed)
    if tail:
        whole = D + draw.randint(1, 6)
        p = draw.randint(0, whole - D)
        generator = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(whole, D + p, generator=generator).double()).Q.float()
        spread = draw.choice([1e-3, 1e-1, 1.0]) * (torch.rand(p, generator=generator) + 0.3)
        law = HeadTail(
            law, axes, torch.randn(whole, generator=generator), spread, torch.tensor(draw.choice([1e-4, 0.5]))
        )
    return law.requires_grad_(False), draw


def _of_unequal_noise(law: MoLRMoG, draw: random.Random, seed: int) -> MoLRMoG:
    """The same law but for its noise, which differs by up to six powers of ten, and for axes of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise, axes = draw.choice(["diagonal", "shared"]), draw.choice([None, None, "matrix", "dct"])
    found = MoLRMoG(law.dim, law.latent_dims, law.modes, law.ranks, noise=noise, axes=axes, dtype=torch.float32)
    low, high = draw.choice([(-4.0, 2.0), (-4.0, -2.0), (-2.0, 0.0)])
    tau = 10 ** (low + (high - low) * torch.rand(found.tau.shape, generator=generator))
    found.load_state_dict({**law.state_dict(), "tau": tau}, strict=False)
    if axes == "matrix":
        Q = torch.linalg.qr(torch.randn(law.dim, law.dim, generator=generator).double()).Q
        found.axes = Axes.of(Q.float())
    return found


def rows_of(law: Law, draw: random.Random, seed: int) -> tuple[Tensor, float, float]:
    """Rows of the noised law, one time in four far away from it, and their noise level."""
    s, gamma = draw.choice([1.0, 1.0, 0.8, 0.3, 0.01]), draw.choice(GAMMAS)
    x = law.sample(32, torch.Generator().manual_seed(seed), s=s, gamma=gamma).x
    return (x * 10.0 ** draw.uniform(0, 10) if draw.random() < 0.25 else x), s, gamma


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Worst relative error of a row; of a log-density near zero the absolute one."""
    error = (ours.double() - theirs).abs()
    if ours.ndim == 1:
        return float((error / theirs.abs().clamp(min=1)).max())
    return float((error.norm(dim=1) / theirs.norm(dim=1)).nan_to_num(0.0, posinf=math.inf).max())
