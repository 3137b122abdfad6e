"""Rows that are each seen with noise of their own in every coordinate, infinite where one is not seen at all.

    x_j = s x_0j + gamma_j eps_j,     p_kj = 1 / (s^2 psi_kj + gamma_j^2), 0 where x_j is not seen,     P_k = diag(p_k)

Rows of one pattern share a level of the law (`molrmog.laws.diagonal`). Where nearly every row has a pattern of its own,
as in tables with missing values, nothing is shared, and all patterns are solved together, in float64:

    e = x - s b_k,   h = A_k^T P_k e,   G_k = A_k^T P_k A_k,   M_c = I + s^2 U_c^T G_k U_c
    v_c = M_c^-1 U_c^T (h - s G_k mu_c),     E[z | x, c] = mu_c + s U_c v_c,     Cov[z | x, c] = U_c M_c^-1 U_c^T
    rest_c = e - s A_k E[z | x, c]
    log N_c(x) = -1/2 [ rest_c^T P_k rest_c + s^2 |v_c|^2 + log det M_c - sum log p_k + (number seen) log 2 pi ]
    score      = - sum_c r_c P_k rest_c
    E[x_0 | x] = sum_c r_c [ b_k + A_k E[z | x, c] + s psi_k P_k rest_c ]

A row costs D d^2 numbers per subspace and d r^2 + r^3 per mode. The squares are those of what is left, so nothing
cancels at low noise.

References:
    Ghahramani & Jordan, "Supervised learning from incomplete data via an EM approach", 1993 (mixtures, rows that lack
    values).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from molrmog.laws.base import normal
from molrmog.laws.diagonal import Factors, inverted
from molrmog.laws.responsibilities import SolvedEvidence

_LOG_2PI = math.log(2 * math.pi)


class OwnPatterns(SolvedEvidence):
    """How the modes explain rows that each have a pattern of their own.

    Attributes:
        s: signal scale, with shape (B,).
        precision: p_k of each row, with shape (K, B, D).
        unknown: 1 - s^2 psi_k p_k, what a coordinate that is seen leaves to be found, with shape (K, B, D).
        latent: E[z | x, c], with shape (K, B, n, d).
        factor: F_c with F_c F_c^T = Cov[z | x, c], with shape (K, B, n, d, r).
        rest: x - s E[b_k + A_k z | x, c], zero where nothing is seen, with shape (K, B, n, D).
    """

    def __init__(self, form: Factors, x: Tensor, s: Tensor, gamma: Tensor) -> None:
        """Weigh rows.

        Args:
            form: of the law, in float64.
            x: rows, with shape (B, D), zero where they are not seen.
            s: signal scales, with shape (B or 1,).
            gamma: standard deviations of the noise, infinite where nothing is seen, with shape (B, D).
        """
        K, D, d = form.basis.shape
        _n, r = form.factor.shape[1], form.factor.shape[3]
        B, x = len(x), x.double()
        self.form, self.x, self.s = form, x, s.expand(B)
        s1, gamma2 = self.s[:, None], gamma.double().square()
        hidden = gamma2.isinf()
        finite = torch.where(hidden, 1.0, gamma2)
        v = s1.square() * form.psi[:, None] + finite  # (K or 1, B, D)
        precision = torch.where(hidden, 0.0, 1 / v)
        self.unknown = torch.where(hidden, 1.0, finite / v).expand(K, B, D)
        self.precision = precision.expand(K, B, D)
        e = x - s1 * form.offset[:, None]  # (K, B, D)
        weighed = self.precision * e
        h = weighed @ form.basis  # (K, B, d)
        G = (self.precision @ form.outer).unflatten(2, (d, d))
        A, mu, U = form.basis, form.mean[:, None], form.factor[:, None]  # (K, 1, n, d), (K, 1, n, d, r)
        seen_factor = G[:, :, None] @ U  # (K, B, n, d, r)
        s4 = self.s[:, None, None, None]
        one = torch.eye(r, dtype=x.dtype, device=x.device)
        C = torch.linalg.cholesky_ex(one + s4.square() * (U.mT @ seen_factor)).L
        pull = h[:, :, None] - s1[..., None] * (G[:, :, None] @ mu[..., None])[..., 0]  # (K, B, n, d)
        inverse = inverted(C)
        solved = inverse.mT @ (inverse @ (U.mT @ pull[..., None]))  # (K, B, n, r, 1)
        self.latent = mu + s1[..., None] * (U @ solved)[..., 0]
        self._inverse = inverse
        known = torch.where(hidden, 0.0, 1.0)[:, None]
        self.rest = known * (e[:, :, None] - s1[..., None] * (self.latent @ A[:, None].mT))
        squares = (self.precision[:, :, None] * self.rest.square()).sum(3)
        squares = squares + s1.square() * solved[..., 0].square().sum(3)
        logdet = 2 * C.diagonal(dim1=3, dim2=4).log().sum(3)
        const = (~hidden).to(x).sum(1) * _LOG_2PI + torch.where(hidden, 0.0, v.log()).sum(2)  # (K or 1, B)
        joint = form.log_weight[:, None] - 0.5 * (squares + logdet + const[..., None])  # (K, B, n)
        self.log_joint = joint.transpose(1, 2).flatten(0, 1)

    @staticmethod
    def numbers(factor: Tensor, D: int) -> int:
        """How many numbers of float32 a row of R^D takes, its variances included, by the shape of a law's factors."""
        K, n, d, r = factor.shape
        return 2 * K * (d * d + 6 * D + n * (2 * D + r * (3 * r + 3 * d + D)))

    @property
    def shapes(self) -> tuple[int, int, int, int]:
        """D, K, n and d."""
        return self.form.shapes

    @functools.cached_property
    def factor(self) -> Tensor:
        """F_c with F_c F_c^T = Cov[z | x, c], with shape (K, B, n, d, r)."""
        return self.form.factor[:, None] @ self._inverse.mT

    @functools.cached_property
    def _r(self) -> Tensor:
        """Responsibilities, with shape (K, B, n)."""
        return self.shares.transpose(1, 2)

    def score(self, into: Tensor | None = None) -> Tensor:
        """Gradient of log p_t, zero where nothing is seen, with shape (B, D)."""
        rest = (self._r[..., None] * self.rest).sum(2)
        return -(self.precision * rest).sum(0)

    def denoise(self, into: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], with shape (B, D)."""
        form, R = self.form, self._r.sum(2)[..., None]  # (K, B, 1)
        inside = (self._r[..., None] * self.latent).sum(2) @ form.basis.mT + R * form.offset[:, None]
        return (self.unknown * inside + R * self._of_x * self.x).sum(0)

    @property
    def _of_x(self) -> Tensor:
        """S psi_k p_k, with shape (K, B, D)."""
        return self.s[:, None] * self.form.psi[:, None] * self.precision

    def divergence(self) -> Tensor:
        """Divergence of the score, with shape (B,)."""
        _, _K, _n, d = self.shapes
        squares = (self.precision[:, :, None].square() * self.rest.square()).sum(3)  # (K, B, n)
        gram = (self.precision.square() @ self.form.outer).unflatten(2, (d, d))[:, :, None]
        inside = (self.factor * (gram @ self.factor)).sum((3, 4))
        trace = self.precision.sum(2)[..., None] - self.s[:, None].square() * inside
        certain = self._r.amax((0, 2)) == 1
        between = (self._r * squares).sum((0, 2)) - self.score().square().sum(1)
        return torch.where(certain, 0.0, between) - (self._r * trace).sum((0, 2))

    def variance(self, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""

        def turned(rows: Tensor) -> Tensor:
            return rows if onto is None else rows @ onto.T.to(rows.dtype)

        mean = turned(self.denoise())
        total = torch.zeros_like(mean)
        for k, r in enumerate(self._r):
            A, b, unknown = self.form.basis[k], self.form.offset[k], self.unknown[k]
            up = unknown[:, None] * (self.latent[k] @ A.T + b) + self._of_x[k][:, None] * self.x[:, None]
            total = total + (r[..., None] * (turned(up) - mean[:, None]).square()).sum(1)
            spread = turned(unknown[:, None, None] * (self.factor[k].mT @ A.T))  # (B, n, r, M)
            total = total + (r[..., None] * spread.square().sum(2)).sum(1)
            off = self.form.psi[min(k, len(self.form.psi) - 1)] * unknown
            off = off if onto is None else off @ onto.square().T.to(off)
            total = total + r.sum(1, keepdim=True) * off
        return total

    def draw(self, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 given rows, with shape (any, D); k, mode, row with shape (any,)."""
        form, F = self.form, self.factor[k, row, mode]
        z = self.latent[k, row, mode] + (F @ normal((len(k), F.shape[2]), generator, like=F)[..., None])[..., 0]
        clean = form.offset[k] + (form.basis[k] @ z[..., None])[..., 0]
        psi, unknown = form.psi[k.clamp(max=len(form.psi) - 1)], self.unknown[k, row]
        noise = normal(tuple(clean.shape), generator, like=clean)
        return unknown * clean + self._of_x[k, row] * self.x[row] + (psi * unknown).sqrt() * noise
