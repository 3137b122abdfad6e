"""Random laws of every shape: ragged dimensions, modes and ranks, tau = 0, equal eigenvalues."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from molrmog import HeadTail, MoLRMoG, Subspace
from molrmog.laws.axes import Axes


def ragged_law(
    seed: int = 0,
    dim: int = 5,
    latent_dims=(2, 3, 1),
    ranks=((2, 1), (3, 0, 2), (1,)),
    taus=(0.3, 0.0, 0.2),
    factors: str = "any",
    dtype: torch.dtype = torch.float64,
) -> MoLRMoG:
    """A law with the given shapes and random numbers of order one.

    Args:
        factors: "any", "orthonormal" (all eigenvalues equal to one) or "deficient" (the first column is zero).
    """
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def factor(d: int, r: int) -> Tensor:
        U = randn(d, r)
        if factors == "orthonormal":
            return torch.linalg.qr(U).Q if r else U
        if factors == "deficient":
            U[:, :1] = 0
        return U

    parts = [
        Subspace(
            weight=float(torch.rand(1, generator=draw)) + 0.2,
            basis=torch.linalg.qr(randn(dim, d)).Q,
            offset=randn(dim),
            tau=tau,
            mode_weights=torch.rand(len(own), generator=draw, dtype=torch.float64) + 0.2,
            means=1.5 * randn(len(own), d),
            factors=tuple(factor(d, r) for r in own),
        )
        for d, own, tau in zip(latent_dims, ranks, taus, strict=True)
    ]
    return MoLRMoG.from_subspaces(parts, dtype=dtype)


def unequal_law(
    seed: int = 0, noise: str = "diagonal", axes: str | None = None, least: float = 0.05, **shapes
) -> MoLRMoG:
    """A law like `ragged_law`, with noise that differs between coordinates, from `least` to ten times that or more."""
    draw = torch.Generator().manual_seed(seed + 2)
    isotropic = ragged_law(seed, **shapes)
    dim = isotropic.dim
    law = MoLRMoG(
        dim, isotropic.latent_dims, isotropic.modes, isotropic.ranks, noise=noise, axes=axes, dtype=isotropic.tau.dtype
    )
    spread = least * 10 ** (2 * torch.rand(law.tau.shape, generator=draw, dtype=torch.float64))
    law.load_state_dict({**isotropic.state_dict(), "tau": spread.to(law.tau.dtype)}, strict=False)
    if axes == "matrix":
        law.axes = Axes.of(torch.linalg.qr(torch.randn(dim, dim, generator=draw, dtype=torch.float64)).Q)
    return law


def head_tail_law(seed: int = 0, dim: int = 8, tail: int = 2, tau: float = 0.25, dtype=torch.float64) -> HeadTail:
    """A head over R^5, `tail` further coordinates, the rest isotropic."""
    draw = torch.Generator().manual_seed(seed + 1)
    axes = torch.linalg.qr(torch.randn(dim, 5 + tail, generator=draw, dtype=torch.float64)).Q
    offset = torch.randn(dim, generator=draw, dtype=torch.float64)
    spread = torch.rand(tail, generator=draw, dtype=torch.float64) + 0.3
    head = ragged_law(seed, taus=(0.3, 0.15, 0.2), dtype=dtype)
    return HeadTail(head, *(t.to(dtype) for t in (axes, offset, spread, torch.tensor(tau, dtype=torch.float64))))


@st.composite
def ragged_laws(draw: st.DrawFn, noiseless: bool = True) -> MoLRMoG:
    """Laws with 1 <= d_k <= D <= 6, 0 <= r <= d_k, some tau = 0 where `noiseless` allows it."""
    dim = draw(st.integers(1, 6))
    latent_dims = draw(st.lists(st.integers(1, dim), min_size=1, max_size=3))
    ranks = [draw(st.lists(st.integers(0, d), min_size=1, max_size=3)) for d in latent_dims]
    tau = st.sampled_from([0.0, 0.1, 0.7] if noiseless else [0.1, 0.4, 0.7])
    return ragged_law(
        seed=draw(st.integers(0, 10_000)),
        dim=dim,
        latent_dims=latent_dims,
        ranks=ranks,
        taus=[draw(tau) for _ in latent_dims],
        factors=draw(st.sampled_from(["any", "orthonormal", "deficient"])),
    )


@st.composite
def unequal_laws(draw: st.DrawFn) -> MoLRMoG:
    """Laws like those of `ragged_laws` with noise that differs by a hundredfold, diagonal or shared, in any axes."""
    dim = draw(st.integers(1, 6))
    latent_dims = draw(st.lists(st.integers(1, dim), min_size=1, max_size=3))
    return unequal_law(
        seed=draw(st.integers(0, 10_000)),
        noise=draw(st.sampled_from(["diagonal", "shared"])),
        axes=draw(st.sampled_from([None, "matrix", "dct"])),
        dim=dim,
        latent_dims=latent_dims,
        ranks=[draw(st.lists(st.integers(0, d), min_size=1, max_size=3)) for d in latent_dims],
        taus=[0.1] * len(latent_dims),
    )


@st.composite
def noised_rows(draw: st.DrawFn, law: MoLRMoG | HeadTail, rows: int = 4):
    """Rows of x_t and their noise levels: numbers, or one per row; s = 0 among them."""
    levels = (st.sampled_from([0.0, 0.3, 1.0, 1.7]), st.sampled_from([0.05, 0.4, 2.0]))
    per_row = draw(st.tuples(st.booleans(), st.booleans()))
    s, gamma = (
        torch.tensor([draw(level) for _ in range(rows)], dtype=torch.float64) if each else draw(level)
        for level, each in zip(levels, per_row, strict=True)
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    noise = torch.randn(rows, law.dim, generator=generator, dtype=torch.float64)
    column = (torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1) for t in (s, gamma))
    scale, spread = column
    return scale * law.sample(rows, generator).x + spread * noise, s, gamma
