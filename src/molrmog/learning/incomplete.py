"""Rows that lack values: what EM gathers from them.

A row with values missing is, to EM, a row whose missing values are known in distribution given the rest. In the
whitened rows of `molrmog.learning.em`, y = A' z' + e with e ~ N(0, I), of which y_m is missing and y_o observed,

    Q = A'_m^T A'_m,   V_c = Cov[z' | y_o, c],   zeta_c = E[z' | y_o, c]                 (`molrmog.laws.patterns`)
    E[h | y_o, c]      = A'_o^T y_o + Q zeta_c
    E[h h^T | y_o, c]  = E h E h^T + Q V_c Q + Q
    E[(G h + g) y_m^T] = [ (G E h + g) zeta_c^T + G (Q V_c + I) ] A'_m^T
    E[y_m y_m^T]       = A'_m (zeta_c zeta_c^T + V_c) A'_m^T + I

so that the statistics are those of whole rows in expectation, additive as ever, and what is maximised is the same: the
log-likelihood of what is observed never falls.

References:
    Dempster, Laird & Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977; Ghahramani & Jordan,
    "Supervised learning from incomplete data via an EM approach", 1993.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from molrmog.laws.base import rows_per_chunk
from molrmog.laws.diagonal import DiagonalLevel
from molrmog.laws.isotropic import IsotropicLevel
from molrmog.laws.molrmog import MoLRMoG
from molrmog.laws.patterns import OwnPatterns

if TYPE_CHECKING:
    from molrmog.learning.em import Latents, Statistics


_BUDGET = 1e12  # floating point operations of EM on rows that lack values, about


def passes_within(law: MoLRMoG, rows: int, most: int) -> int:
    """How many passes over rows that lack values are worth their time: three at least, and at most so many."""
    K, n, d, r = law.factor.shape
    each = K * (6 * law.dim * d * d + n * (4 * law.dim * d + 6 * d * d * r + 2 * r**3))
    return min(most, max(3, int(_BUDGET / (rows * each))))


@torch.no_grad()
def gather_incomplete(total: Statistics, law: MoLRMoG, latents: Latents, x: Tensor, weights: Tensor | None) -> None:
    """Add what rows with missing values (NaN) are in expectation.

    Args:
        total: what was gathered so far.
        law: where the gates come from, without axes.
        latents: of the law.
        x: rows, with shape (B, D).
        weights: of these, with shape (B,).
    """
    K, n, d = latents.mean.shape
    size = rows_per_chunk(x.device, OwnPatterns.numbers(law.factor, law.dim) + 4 * K * (n + 2) * d * d)
    form, level = law._factors(), law.level()
    if isinstance(level, IsotropicLevel):
        unit = level.form.tau2.sqrt()  # of whitened latents
        A, L, root = level.basis, torch.eye(d).to(latents.mean) / unit[:, None, None], 1 / unit[:, None]
    else:
        level = cast(DiagonalLevel, level)
        unit, A, L, root = level.v[:, 0], level.basis, level.triangle, level.root_precision
    outer = (A[..., None] * A[:, :, None]).flatten(2)  # (K, D, d^2)
    gain, mean = latents.gain, latents.mean / unit[:, None, None]
    rest = mean - (gain @ mean[..., None])[..., 0]  # (K, n, d)
    one = torch.eye(d).to(mean)
    for start in range(0, len(x), size):
        rows = x[start : start + size].double()
        w = rows.new_ones(len(rows)) if weights is None else weights[start : start + size].double()
        missing = rows.isnan()
        lost = missing.to(rows)
        rows = torch.where(missing, 0.0, rows)
        gamma = torch.where(missing, torch.inf, 0.0).to(rows)
        e = OwnPatterns(form, rows, rows.new_ones(1), gamma)
        total.rows += w.sum()
        total.log_prob += (e.log_prob * w).sum()
        for k in range(K):
            r = e.shares[k].T * w[:, None]  # (B, n)
            R = r.sum(1)
            y = (rows - form.offset[k]) * root[min(k, len(root) - 1)] * ~missing  # (B, D)
            Q = (lost @ outer[k]).unflatten(1, (d, d))[:, None]  # (B, 1, d, d)
            zeta = e.latent[k] @ L[k]  # (B, n, d)
            F = L[k].T @ e.factor[k]  # (B, n, d, r)
            h = (y @ A[k])[:, None] + (Q @ zeta[..., None])[..., 0]
            QF = Q @ F
            spread = (r[..., None, None] * QF).flatten(3)  # (B, n, d, r)
            second = torch.einsum("bn,bnd,bne->nde", r, h, h) + torch.einsum("bndr,bner->nde", spread, QF)
            second = second + (r.T @ Q.flatten(1)).unflatten(1, (d, d))
            lifted = torch.einsum("nde,bne->bnd", gain[k], h) + rest[k]  # (B, n, d)  E of what z' is regressed to
            QV = QF @ F.mT + one  # (B, n, d, d)
            with_missing = torch.einsum("bn,bnd,bne->bde", r, lifted, zeta)
            with_missing = with_missing + torch.einsum("bn,ndf,bnfe->bde", r, gain[k], QV)
            inside = torch.einsum("bn,bnd,bne->bde", r, zeta, zeta) + torch.einsum(
                "bndr,bner->bde", r[..., None, None] * F, F
            )
            mean_z = (r[..., None] * zeta).sum(1)  # (B, d)
            ambient = (r[..., None] * lifted).sum(1).T @ y
            ambient = ambient + torch.einsum(
                "Dde,De->dD", (lost.T @ with_missing.flatten(1)).unflatten(1, (d, d)), A[k]
            )
            along = R @ y + ((lost.T @ mean_z) * A[k]).sum(1)
            square = R @ y.square() + ((lost.T @ inside.flatten(1)) * outer[k]).sum(1) + R @ lost
            u = unit[k]
            total.count[k] += r.sum(0)
            total.first[k] += u * torch.einsum("bn,bnd->nd", r, h)
            total.second[k] += u.square() * second
            total.ambient[k, :d] += u.square() * ambient
            total.ambient[k, d] += u * along
            if total.square.shape[1]:
                total.square[k] += square
            else:
                total.off[k] += u.square() * (square.sum() - second.diagonal(dim1=1, dim2=2).sum())
