"""Where the training of a MoG network starts: at random, at k-means, or at the law that EM finds.

All three are a law with one subspace for the latents of one expert. Where the subspace is all of R^d it is written in
the coordinates of the latents themselves, A = I and b = 0, so that a network which learns (mu, U) alone, as in arXiv
2601.01475, can reach every law of its shape.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit
from molrmog.learning.rows import Rows
from molrmog.learning.subspaces import initial_law, principal_flat
from molrmog.seeds import seed_of, torch_generator

STARTS = ("random", "k-means", "em")

_ROWS = 20_000  # rows from which moments are taken


def mog_start(
    x: Any,
    latent_dim: int,
    modes: int,
    start: Literal["random", "k-means", "em"] = "random",
    seed: int = 0,
    *,
    rank: int | None = None,
    noise_floor: float | None = None,
    max_iter: int = 50,
) -> MoLRMoG:
    """A law with one subspace from which score matching may start.

    Args:
        x: rows of latents or data, with shape (N, D).
        latent_dim: dimension d of the subspace; where it is D, A = I and b = 0.
        modes: number n of modes.
        start: "random" (two moments of the data shared evenly between the spread of the means, which are drawn, and the
            covariance that all modes have), "k-means" (where EM starts), or "em".
        seed: of everything random.
        rank: of every mode; d where not given.
        noise_floor: smallest tau, in data units; a thousandth of the data's standard deviation where not given.
        max_iter: passes of EM over the data, at most.

    Returns:
        The law, not asking for gradients.

    Raises:
        ValueError: an unknown start, or the shapes do not fit the data.

    Example:
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> law = mog_start(x, latent_dim=4, modes=3, start="em")
        >>> law.modes, torch.equal(law.basis[:, 0], torch.eye(4))
        ((3,), True)
    """
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}: choose one of {', '.join(STARTS)}")
    seed = seed_of(seed)
    rows, units = Rows(x).standard()
    if not 1 <= latent_dim <= rows.dim or modes < 1:
        raise ValueError(f"latent_dim = {latent_dim}, modes = {modes}: pass 1 to {rows.dim}, and at least one mode")
    draw = torch_generator(seed)
    sample = rows[torch.randperm(len(rows), generator=draw)[:_ROWS]]
    spread = float(sample.double().var(0, correction=0).mean().sqrt())
    noise_floor = 1e-3 * spread if noise_floor is None else noise_floor / units.unit
    if start == "em":
        law = fit(
            rows,
            subspaces=1,
            latent_dim=latent_dim,
            modes=modes,
            rank=rank,
            seed=seed,
            noise_floor=noise_floor,
            max_iter=max_iter,
            noise="isotropic",
        )
        part = law.subspace(0)  # pyright: ignore[reportAttributeAccessIssue]
    elif start == "k-means":
        part = initial_law(rows, None, [latent_dim], [modes], rank=rank, seed=seed, noise_floor=noise_floor).subspace(0)
    else:
        flat = principal_flat(sample, latent_dim)
        h = ((sample - flat.offset) @ flat.basis).double()
        variance, axes = torch.linalg.eigh(h.T @ h / (2 * len(h)))  # half of the covariance
        spread = axes * variance.clamp(min=0).sqrt()
        means = torch.randn(modes, latent_dim, generator=draw, dtype=torch.float64) @ spread.T.cpu()
        kept = spread[:, latent_dim - (latent_dim if rank is None else min(rank, latent_dim)) :]
        part = Subspace(
            weight=1.0,
            basis=flat.basis,
            offset=flat.offset,
            tau=max(flat.noise, noise_floor),
            mode_weights=torch.full((modes,), 1 / modes),
            means=means.to(flat.basis),
            factors=(kept.to(flat.basis),) * modes,
        )
    part = units.law_of_rows(MoLRMoG.from_subspaces([part], dtype=rows.dtype)).subspace(0)
    if latent_dim == rows.dim:
        A = part.basis
        part = replace(
            part,
            basis=torch.eye(rows.dim).to(A),
            offset=torch.zeros_like(part.offset),
            means=part.means @ A.T + part.offset,
            factors=tuple(A @ factor for factor in part.factors),
        )
    return MoLRMoG.from_subspaces([part], dtype=rows.dtype).requires_grad_(False)
