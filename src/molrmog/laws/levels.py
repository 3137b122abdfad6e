"""A law at one noise level: what a row needs to be weighed by its modes and to be taken back up to R^D.

Whatever its noise off the subspaces, a law at a level (s, gamma) is isotropic with unit variance in whitened rows

    y_k = P_k^1/2 (x - s b_k),      P_k = diag(p_k),  p_kj = 1 / (s^2 psi_kj + gamma^2),

where its subspaces have orthonormal bases A'_k again, and latents h'_k = A'_k^T y_k:

    rho2_k = |y_k|^2 - |h'_k|^2                                      off-subspace energy
    w_c    = C_c^-1 (h'_k - s mu'_c),     C_c C_c^T = I + s^2 Sigma'_c     whitened latent of a mode
    log N_c(x) = -1/2 [ |w_c|^2 + rho2_k + log det C_c C_c^T - sum_j log p_kj + D log 2 pi ]
    E[z' | x, c] = mu'_c + s Sigma'_c C_c^-T w_c
    score      = sum_k [ s (P_k^1/2 A'_k zeta'_k + R_k P_k b_k) - R_k P_k x ],        zeta'_k = sum_l r_kl E[z' | x, kl]
    denoise    = sum_k [ gamma^2 (P_k^1/2 A'_k zeta'_k + R_k P_k b_k) + s R_k psi_k p_k x ]

Isotropic noise has y_k = (x - s b_k) / v_k^1/2 and bases that do not depend on the level: there h, rho2 and zeta are
kept in data units, v_k stands beside them, and every row may have a level of its own (`molrmog.laws.isotropic`).
Unequal noise has a `Level` per pair (s, gamma), shared by all its rows (`molrmog.laws.diagonal`).

References:
    The whitening of factor analysers: Ghahramani & Hinton, "The EM algorithm for mixtures of factor analyzers", 1996.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.laws.base import values_hidden

WIDTH = 16  # products whose width is no multiple of it are slow


@dataclass(frozen=True)
class Way:
    """The way from whitened latents of modes to posterior means of latents, and from these up to R^D.

    Attributes:
        mean: of the latents of each mode, with shape (K, d, n).
        back: from w (times `Level.root`) to E[z | x, c] less that mean, up to s, with shape (K, d, n d).
        up: [A_k of all k | b_k of all k | center | 0], b_k less the center, with shape (D, K d + K + 1 + padding).
        center: with shape (D,).
    """

    mean: Tensor
    back: Tensor
    up: Tensor
    center: Tensor

    @functools.cached_property
    def of_each(self) -> Tensor:
        """[A_k | b_k | center]^T of each subspace, from `up`, with shape (K, d + 2, D)."""
        K, d, _ = self.mean.shape
        bases = self.up[:, : K * d].T.unflatten(0, (K, d))
        offsets = self.up[:, K * d : K * (d + 1)].T[:, None]
        return torch.cat([bases, offsets, self.center.expand(K, 1, -1)], 1)


@dataclass(frozen=True)
class Shares:
    """What a score, or a posterior mean, is a sum of: inside A_k zeta_k + along R_k b_k + of_x R_k x over k, + center.

    Here b_k and x are less the center, and A_k, b_k are the columns of `Way.up`.

    Attributes:
        inside: with shape (K, L).
        along: with shape (K, L).
        of_x: with shape (K, L), or (K or 1, D) where x is weighed by coordinates.
        centers: how many centers are added, 0 or 1.
        pulled: whether zeta_k is minus the pull, for each subspace.
    """

    inside: Tensor
    along: Tensor
    of_x: Tensor
    centers: float
    pulled: tuple[bool, ...]


@dataclass(frozen=True)
class Level:
    """A law at the noise level of a row; L is 1, or the number of rows where each has its own.

    Attributes:
        center: where rows are taken about, which only keeps numbers small, with shape (D,).
        s: signal scale, with shape (L,).
        gamma2: variance of the noise, with shape (L,), or (1, D) where it differs between coordinates.
        down: from rows to latents, [A_k | b_k | center | 0] or [P_k^1/2 A'_k | P_k b_k | center | 0], b_k less the
            center, with shape (D, K d + K + 1 + padding).
        basis: A_k or A'_k, with shape (K, D, d).
        offset: b_k, with shape (K, D).
        shift: A_k^T b_k, or A'_k^T P_k^1/2 b_k, b_k less the center, with shape (K, d).
        offset2: |b_k|^2, or b_k^T P_k b_k, b_k less the center, with shape (K,).
        far: what moving rows to the center costs, |s center|^2 over v as `size`, with shape (K, L).
        v: variance off the subspaces in the units of rho2, with shape (K, L).
        const: what the log-densities of a subspace have in common, twice, with shape (K, L).
        base: log-weight less half the log-determinant of each mode, with shape (K, n, L).
        whiten: from [h, s] to w, up to the factor `root`, with shape (K, n d, d + 1).
        root: a factor of w that differs from row to row, with shape (K, n d, L); None where there is none.
        mean: mu_c or mu'_c, with shape (K, d, n).
        back: from w (times `root`) to E[z | x, c] - mu_c, up to s, with shape (K, d, n d).
        pull: from w (times `root`) to minus the score inside the subspace, with shape (K, d, n d).
        filled: whether each subspace is all of R^D, so that nothing lies off it.
    """

    center: Tensor
    s: Tensor
    gamma2: Tensor
    down: Tensor
    basis: Tensor
    offset: Tensor
    shift: Tensor
    offset2: Tensor
    far: Tensor
    v: Tensor
    const: Tensor
    base: Tensor
    whiten: Tensor
    root: Tensor | None
    mean: Tensor
    back: Tensor
    pull: Tensor
    filled: tuple[bool, ...]

    @property
    def shapes(self) -> tuple[int, int, int, int]:
        """D, K, n and d."""
        K, d, n = self.mean.shape
        return self.basis.shape[1], K, n, d

    @property
    def dtype(self) -> torch.dtype:
        """Of all its numbers."""
        return self.offset.dtype

    @property
    def open(self) -> Tensor:
        """One where a subspace is not all of R^D, zero where it is, with shape (K, 1)."""
        return torch.tensor([[float(not each)] for each in self.filled]).to(self.offset)

    def to(self, dtype: torch.dtype) -> Self:
        """The level in another dtype."""
        if dtype == self.dtype:
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: narrowed(t, dtype) for name, t in tensors.items() if isinstance(t, Tensor)})

    def own(self, at: Tensor | slice) -> Self:
        """The level of some of the rows."""
        if len(self.s) == 1:
            return self
        per_row = {name: getattr(self, name)[..., at] for name in ("s", "gamma2", "far", "v", "const", "base")}
        per_row["root"] = None if self.root is None else self.root[..., at]
        return replace(self, **per_row)

    @functools.cached_property
    def way_of_score(self) -> Way:
        """How a score comes up."""
        return Way(self.mean, self.back, self.down, self.center)

    @functools.cached_property
    def way_of_mean(self) -> Way:
        """How a posterior mean comes up."""
        return self.way_of_score

    def solved(self, white: Tensor) -> Tensor:
        """What takes the place of w, where w carries derivatives that its factor does not, with shape (K, n d, B)."""
        return white

    def spread(self, white: Tensor, way: Way) -> Tensor:
        """sum_l of E[z | x, kl] - mu_kl over s, weighed, with shape (K, B, d), from weighed w (times `root`)."""
        return white.mT @ way.back.mT

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """|x|^2, or x^T P_k x, of rows x - s center (B, D), with shape (K or 1, B)."""

    def size(self, energy: Tensor) -> Tensor:
        """What rounding is relative to: the energy of rows, or of a law that is larger, over v; with shape (K, B)."""
        return torch.maximum(energy, self.s.square() * self.offset2[:, None]) / self.v

    @abstractmethod
    def about(self, k: int, x: Tensor) -> Tensor:
        """X - s b_k, or y_k, of rows x (b, D); a new tensor."""

    @abstractmethod
    def about_(self, k: int, x: Tensor) -> Tensor:
        """The same in place."""

    @abstractmethod
    def score_shares(self) -> Shares:
        """What a score is a sum of."""

    @abstractmethod
    def mean_shares(self) -> Shares:
        """What a posterior mean is a sum of."""

    def mixed(self, R: Tensor, share: Tensor) -> Tensor:
        """sum_k R_k share_k, with shape (B, D) or (B, 1).

        Args:
            R: responsibilities of the subspaces, with shape (K, B).
            share: with shape (K, L), or (K or 1, D) where x is weighed by coordinates.
        """
        return (R * share).sum(0)[:, None]

    def weigh_(self, k: int, x: Tensor, R: Tensor, share: Tensor) -> Tensor:
        """R_k share_k x, written over x (b, D); R (b,), share as above."""
        return x.mul_((R * share[k])[:, None])

    @abstractmethod
    def divergence(self, e: Any) -> Tensor:
        """Divergence of the score, with shape (B,), from dense evidence in float64."""

    @abstractmethod
    def variance(self, e: Any, onto: Tensor | None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""

    @abstractmethod
    def draw(self, e: Any, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 given rows, from the modes named, with shape (any, D); k, mode, row with shape (any,)."""


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in another dtype, without those that float32 holds as denormal numbers, which slow products tenfold.

    What is cut off is a constant, so that entries which are zero keep their derivative.
    """
    if not (value.requires_grad or values_hidden(value)):
        return nn.functional.hardshrink(value.to(dtype), 1e-30)
    fixed = value.detach()
    return (value - (fixed - nn.functional.hardshrink(fixed, 1e-30)).nan_to_num(0.0)).to(dtype)  # inf - inf


def side_by_side(basis: Tensor, offset: Tensor, center: Tensor) -> Tensor:
    """[A_k of all k | b_k of all k | center | 0], with shape (D, K d + K + 1 + padding)."""
    K, D, d = basis.shape
    columns = [basis.transpose(0, 1).reshape(D, K * d), offset.T, center[:, None]]
    return torch.cat([*columns, offset.new_zeros(D, -(K * d + K + 1) % WIDTH)], 1)


def lifted(basis: Tensor, k: Tensor, z: Tensor) -> Tensor:
    """A_k z, with shape (rows, D).

    Args:
        basis: A_k, with shape (K, D, d).
        k: the subspace of each row, with shape (rows,).
        z: latents, with shape (rows, d).
    """
    K, D, d = basis.shape
    placed = z.new_zeros(len(z), K, d)
    placed[torch.arange(len(z), device=z.device), k] = z
    return placed.flatten(1) @ basis.transpose(1, 2).reshape(K * d, D)


def center_of(
    basis: Tensor, offset: Tensor, mean: Tensor, lam: Tensor, log_weight: Tensor, psi: Tensor
) -> tuple[Tensor, float]:
    """The mean of x_0, and the root mean square distance of x_0 from the origin.

    Nothing depends on the center, so it carries no derivative; the distance is NaN where the values are hidden.

    Args:
        basis: A_k, with shape (K, D, d).
        offset: b_k, with shape (K, D).
        mean: mu_kl, with shape (K, n, d).
        lam: variances inside the subspaces, with shape (K, n, any).
        log_weight: with shape (K, n).
        psi: variances off the subspaces, with shape (K or 1, D or 1).
    """
    A, b, mu, lam, w, psi = (t.detach() for t in (basis, offset, mean, lam, log_weight.exp(), psi))
    away = b[:, None] + mu @ A.mT  # (K, n, D)  m_c
    center = torch.einsum("kn,knD->D", w, away)
    square = away.square().sum(2) + lam.sum(2) + psi.expand(-1, len(center)).sum(1)[:, None]
    return center, math.nan if values_hidden(square) else float((w * square).sum().sqrt())


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm over the last axis."""
    if torch.is_grad_enabled():
        return x.square().sum(-1)  # smooth at zero
    return torch.linalg.vector_norm(x, dim=-1).square()  # one pass over memory
