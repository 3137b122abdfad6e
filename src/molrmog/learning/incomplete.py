"""Rows that lack values: what EM gathers from them, and how a fit begins.

EM.  A row with values missing is, to EM, a row whose missing values are known in distribution given the rest. In the
whitened rows of `molrmog.learning.em`, y = A' z' + e with e ~ N(0, I), of which y_m is missing and y_o observed,

    Q = A'_m^T A'_m,   V_c = Cov[z' | y_o, c],   zeta_c = E[z' | y_o, c]                 (`molrmog.laws.patterns`)
    E[h | y_o, c]      = A'_o^T y_o + Q zeta_c
    E[h h^T | y_o, c]  = E h E h^T + Q V_c Q + Q
    E[(G h + g) y_m^T] = [ (G E h + g) zeta_c^T + G (Q V_c + I) ] A'_m^T
    E[y_m y_m^T]       = A'_m (zeta_c zeta_c^T + V_c) A'_m^T + I

so that the statistics are those of whole rows in expectation, additive as ever, and what is maximised is the same: the
log-likelihood of what is observed never falls.

A fit.  Where EM begins, and which structure is best, is found from rows completed by draws of a law: first of one
Gaussian, then of the law that came of it. EM itself sees only what was observed.

References:
    Dempster, Laird & Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977; Ghahramani & Jordan,
    "Supervised learning from incomplete data via an EM approach", 1993.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from molrmog.laws.base import rows_per_chunk
from molrmog.laws.diagonal import DiagonalLevel
from molrmog.laws.isotropic import IsotropicLevel
from molrmog.laws.molrmog import MoLRMoG
from molrmog.laws.patterns import OwnPatterns
from molrmog.learning.rows import Rows
from molrmog.seeds import torch_generator

if TYPE_CHECKING:
    from molrmog.learning.em import Latents, Statistics

_ROUNDS = 2  # of completing rows and fitting
_LATENTS = 32  # dimensions of the Gaussian that rows are first completed by, at most
_ROWS_PER_LATENT = 8  # and how many rows each of them takes, at least
_PASSES = 100  # of its EM, at most


@torch.no_grad()
def gather_incomplete(
    total: Statistics, law: MoLRMoG, latents: Latents, x: Tensor, weights: Tensor | None
) -> None:
    """Add what rows with missing values (NaN) are in expectation.

    Args:
        total: what was gathered so far.
        law: where the gates come from, without axes.
        latents: of the law.
        x: rows, with shape (B, D).
        weights: of these, with shape (B,).
    """
    K, n, d = latents.mean.shape
    shapes = law.factor.shape
    size = rows_per_chunk(x.device, OwnPatterns.numbers(*shapes, law.dim) + 4 * K * (n + 2) * d * d)
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
            ambient = ambient + torch.einsum("Dde,De->dD", (lost.T @ with_missing.flatten(1)).unflatten(1, (d, d)), A[k])
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


def check_gaps(gaps: Tensor, name: str = "x") -> None:
    """Refuse rows of which a column holds nothing.

    Args:
        gaps: which values are missing, with shape (N, D).
        name: what a message calls the rows.

    Raises:
        ValueError: a column does.
    """
    empty = gaps.all(0).nonzero()[:, 0].tolist()
    if empty:
        which = f"column {empty[0]}" if len(empty) == 1 else f"{len(empty)} columns, the first of them {empty[0]},"
        raise ValueError(f"{which} of {name} hold{'s' * (len(empty) == 1)} no value at all: leave out such columns")


@dataclass(frozen=True)
class Incomplete:
    """Rows that lack values, and those to judge by.

    Attributes:
        rows: of the data, NaN where a value is missing.
        gaps: where they are, with shape (N, D).
        held_out: rows to judge by, where given.
        their_gaps: where these lack values; None where they do not.
    """

    rows: Rows
    gaps: Tensor
    held_out: Rows | None
    their_gaps: Tensor | None

    def gaussian(self, seed: int) -> MoLRMoG:
        """One Gaussian: EM from rows completed by values that their columns hold elsewhere."""
        from molrmog.learning.fit import fit

        x, generator = _table(self.rows), torch_generator(seed)
        for j in self.gaps.any(0).nonzero()[:, 0].tolist():
            known = x[~self.gaps[:, j], j]
            lost = int(self.gaps[:, j].sum())
            x[self.gaps[:, j], j] = known[torch.randint(len(known), (lost,), generator=generator)]
        N, D = x.shape
        d = max(1, min(D - 1, _LATENTS, N // _ROWS_PER_LATENT))
        filled = self.rows.completed(x, self.gaps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = fit(filled, None, 1, d, 1, noise="diagonal", max_iter=_PASSES, seed=seed)
        return cast(MoLRMoG, law)

    def completed(self, law: MoLRMoG, seed: int) -> tuple[Rows, Rows | None]:
        """Rows, and those to judge by, completed by a draw of a law."""
        generator = torch_generator(seed)

        def drawn(rows: Rows, gaps: Tensor | None) -> Rows:
            return rows if gaps is None else rows.completed(law.impute(_table(rows), 1, generator)[0], gaps)

        held_out = None if self.held_out is None else drawn(self.held_out, self.their_gaps)
        return drawn(self.rows, self.gaps), held_out

    def fitted(self, fit: Callable[[Rows, Rows | None], MoLRMoG], start: MoLRMoG | None, seed: int) -> MoLRMoG:
        """The law that `fit` finds in completed rows, whose EM sees what was observed.

        Args:
            fit: of rows, and of those to judge by.
            start: a law to complete rows by; one Gaussian, and then the law that was found, where not given.
            seed: of everything random.
        """
        law = start or self.gaussian(seed)
        for i in range(1 if start is not None else _ROUNDS):
            law = fit(*self.completed(law, seed + i))
        return law


def incomplete_of(rows: Rows, validation: Any) -> Incomplete | None:
    """Rows that lack values; None where neither they nor those to judge by do.

    Args:
        rows: of the data.
        validation: rows to judge by, or None.

    Raises:
        ValueError: a value is infinite, or a column holds none.
    """
    gaps = None if rows.has_gaps else rows.gaps()
    held_out = validation
    if validation is not None and not isinstance(validation, Rows):
        held_out = Rows(validation, dtype=rows.dtype, device=rows.device, name="validation")
    their_gaps = None if held_out is None or held_out.has_gaps else held_out.gaps("validation")
    if gaps is None and their_gaps is None:
        return None
    gaps = torch.zeros(len(rows), rows.dim, dtype=torch.bool) if gaps is None else gaps
    check_gaps(gaps)
    if held_out is not None and held_out.dim != rows.dim:
        raise ValueError(f"validation has {held_out.dim} columns, but x has {rows.dim}: pass rows of the same kind")
    return Incomplete(rows, gaps, held_out, their_gaps)


def _table(rows: Rows) -> Tensor:
    """All rows in memory, a copy, with shape (N, D)."""
    return torch.cat([chunk for _, chunk in rows.chunks()]).cpu().clone()
