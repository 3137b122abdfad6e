"""Maximum likelihood by expectation maximisation, on data of any size.

A law is seen in its whitened latents (`molrmog.laws.levels`, s = 1 and gamma = 0): y_k = P_k^1/2 (x - b_k) with P_k
the inverse of its noise, h = A'_k^T y_k, and h | c ~ N(mu'_c, S_c) with S_c = Sigma'_c + v I. There v = 1; for
isotropic noise y_k = x - b_k is not whitened and v = tau_k^2. One pass over the rows gathers, for the gates r_c of the
current law and row weights, statistics that are additive:

    per mode      N_c = sum r_c,   H1_c = sum r_c h,   H2_c = sum r_c h h^T
    per subspace  sum [zeta_k, R_k] y^T,   sum R_k y^2,   with zeta_k = sum_l r_kl E[z' | x, kl]

and two updates follow, each of which raises the expected log-likelihood of the modes' assignment:

    modes   mu'_c = H1_c / N_c,  S_c = H2_c / N_c - mu'_c mu'_c^T,  U'_c U'_c^T = top r eigenpairs of S_c less v
            isotropic: tau_k^2 = mean of all the variance that no factor holds, off-subspace, discarded, and clipped
    basis   B_k = regression of y on E[z' | x, c], made orthonormal by the rotation nearest to the old basis
            unequal: psi_kj = psi_kj (mean square of what the regression leaves of y_j), of all subspaces where shared

Both at once are nearly always an ascent too, because the basis moves across the subspace and the modes inside it. The
next pass measures it: should the log-likelihood ever have dropped, the step is taken back and the update of the modes
alone, which cannot lower it, is kept.

Prior.  Modes with few rows lean on their siblings: S_c has an inverse-Wishart prior worth `prior_rows` rows whose scale
Psi_k belongs to the subspace and is estimated along (the harmonic mean of the S_c). A coordinate that is constant in
the N_k rows of a subspace is known to be constant to a share 1 / N_k only: psi_kj has an inverse-gamma prior worth
`noise_rows` rows, one unless told, at a variance s_j^2 that is found from all of them. EM raises

    sum_n log p(x_n) - 1/2 sum_c nu ( tr Psi_k S_c^-1 + log det S_c ) + 1/2 sum_k n_k nu log det Psi_k
                     - 1/2 noise_rows sum_kj ( s_j^2 / psi_kj - log s_j^2 / psi_kj )

The standard deviation of the noise never falls below `noise_floor`, in data units, nor below 1e-9 of the spread of the
rows. Where n_k = 1 there is nothing to lean on and no prior on S_c.

References:
    arXiv 2601.01475, section 3 (the family); Tipping & Bishop, "Mixtures of probabilistic principal component
    analysers", 1999 (the update of the modes); Ghahramani & Hinton, "The EM algorithm for mixtures of factor
    analyzers", 1996 (unequal noise); Meng & van Dyk, "The EM algorithm: an old folk song sung to a fast new tune", 1997
    (alternating what is treated as missing).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from molrmog.laws.base import rows_per_chunk
from molrmog.laws.diagonal import DiagonalLevel
from molrmog.laws.isotropic import IsotropicLevel
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.incomplete import gather_incomplete
from molrmog.learning.rows import Rows
from molrmog.learning.units import Units

_SMALLEST_TAU = 1e-9  # in units of the fit
_RATIO = 2e5  # rounding may move the log of a responsibility by a tenth at worst: over many rows it averages out
_RIDGE = 1e-11  # of the trace, that keeps what modes have in common regular
_ROUNDED = 1e-6  # of the largest eigenvalue of second moments that are summed in float32
_FLAT = 1e-6  # of the variance of the noise, that rows vary by at least where modes lean on each other
_LEANS = 3  # updates of what modes lean on, in a pass


@dataclass
class Statistics:
    """What one pass over the rows leaves behind, in float64; those of two parts of the data add up.

    Attributes:
        rows: total row weight, with shape ().
        log_prob: sum of log p(x), with shape ().
        count: N_c, with shape (K, n).
        first: H1_c, with shape (K, n, d).
        second: H2_c, with shape (K, n, d, d).
        off: off-subspace energy, with shape (K,).
        ambient: sum of [zeta_k, R_k] y^T, with shape (K, d + 1, D).
        square: sum of R_k y^2, with shape (K, D); no rows for isotropic noise, with shape (K, 0).
    """

    rows: Tensor
    log_prob: Tensor
    count: Tensor
    first: Tensor
    second: Tensor
    off: Tensor
    ambient: Tensor
    square: Tensor

    @classmethod
    def none(cls, law: MoLRMoG, device: torch.device) -> Statistics:
        """Those of no rows."""
        K, n, d, _ = law.factor.shape
        D = law.dim
        shapes = ((), (), (K, n), (K, n, d), (K, n, d, d), (K,), (K, d + 1, D))
        shapes = (*shapes, (K, 0 if law.noise == "isotropic" else D))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def __iadd__(self, other: Statistics) -> Statistics:
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))
        return self


@dataclass(frozen=True)
class Latents:
    """A law in its whitened latents, in float64.

    Attributes:
        mean: mu'_c, with shape (K, n, d).
        S: Sigma'_c + v I, with shape (K, n, d, d).
        inverse: S_c^-1, with shape (K, n, d, d).
        v: variance of the noise, with shape (K,).
        real: which modes are no padding, with shape (K, n).
        inside: which latents are no padding, with shape (K, d).
        out: from whitened latents to x - b_k, P_k^-1/2 A'_k, with shape (K, D, d).
        unit: P_k^-1/2, with shape (K or 1, D); ones for isotropic noise, with shape (1, 1).
    """

    mean: Tensor
    S: Tensor
    inverse: Tensor
    v: Tensor
    real: Tensor
    inside: Tensor
    out: Tensor
    unit: Tensor

    @classmethod
    def of(cls, law: MoLRMoG) -> Latents:
        """See a law so."""
        level = law.level()
        if isinstance(level, IsotropicLevel):
            covariance, v, unit = level.form.covariance, level.form.tau2, level.v.new_ones(1, 1)
        else:
            level = cast(DiagonalLevel, level)
            covariance, v = level.factor @ level.factor.mT, level.v[:, 0]
            unit = level.root_precision.reciprocal()
        d = covariance.shape[-1]
        S = covariance + v[:, None, None, None] * torch.eye(d).to(covariance)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(S))
        inside = torch.arange(d, device=S.device) < torch.tensor(law.latent_dims, device=S.device)[:, None]
        out = unit[..., None] * level.basis
        return cls(level.mean.mT, S, inverse, v, law._real_mode, inside, out, unit)

    @property
    def gain(self) -> Tensor:
        """G_c = I - v S_c^-1, with E[z' | x, c] = mu'_c + G_c (h - mu'_c) and Cov[z' | x, c] = v G_c."""
        one = torch.eye(self.S.shape[-1]).to(self.S)
        return (one - self.v[:, None, None, None] * self.inverse) * self.inside[:, None, :, None]


@torch.no_grad()
def gather(
    law: MoLRMoG,
    rows: Rows,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    latents: Latents | None = None,
) -> Statistics:
    """One pass over the rows with the gates of `law`.

    Args:
        law: where the gates come from; its noise must be positive.
        rows: the data.
        weights: of the rows, with shape (N,); ones where not given.
        labels: the subspace of each row, with shape (N,); log-densities are those of rows and labels together then.
        latents: of the law, where they are known.
    """
    total = Statistics.none(law, rows.device)
    if labels is not None:
        log_w = law.subspace_weights.double().log()
        for k in range(law.subspaces):
            own = (labels == k).nonzero()[:, 0]
            part = gather(law.alone(k), rows.subset(own), None if weights is None else weights[own])
            n, d = part.first.shape[1:]
            total.rows += part.rows
            total.log_prob += part.log_prob + part.rows * log_w[k]
            total.count[k, :n] += part.count[0]
            total.first[k, :n, :d] += part.first[0]
            total.second[k, :n, :d, :d] += part.second[0]
            total.off[k] += part.off[0]
            total.ambient[k, :d] += part.ambient[0, :-1]
            total.ambient[k, -1] += part.ambient[0, -1]
            total.square[k] += part.square[0]
        return total
    latents = latents or Latents.of(law)
    size = 2 * rows_per_chunk(law.basis.device, law.dim + latents.mean.numel())  # most rows meet few subspaces
    for at, chunk in rows.chunks():
        for start in range(0, len(chunk), size):
            w = None if weights is None else weights[at][start : start + size].to(chunk)
            part = chunk[start : start + size]
            if rows.shows_gaps:
                gather_incomplete(total, law, latents, part, w)
            else:
                _gather(total, law, latents, part, w)
    return total


def _gather(total: Statistics, law: MoLRMoG, latents: Latents, x: Tensor, weights: Tensor | None) -> None:
    one = torch.ones(1, dtype=torch.float64, device=x.device)
    gain = latents.gain
    rest = (latents.mean - (gain @ latents.mean[..., None])[..., 0]).to(x.dtype)  # (K, n, d)
    gain = gain.mT.to(x.dtype).flatten(1, 2)  # (K, n d, d)
    n = rest.shape[1]
    total.rows += len(x) if weights is None else weights.double().sum()
    for where, e in law.e_steps(x, one, torch.zeros_like(one), limit=_RATIO):
        w = None if weights is None else weights[where]
        total.log_prob += (e.log_prob if w is None else e.log_prob * w).double().sum()
        for part in e.parts():
            k, r = part.k, part.r if w is None else part.r * w[part.at, None]
            r, h, about = (each.to(x.dtype) for each in (r, part.h, part.about))
            weighted = (r[..., None] * h[:, None]).flatten(1)  # (b, n d)
            share = r.sum(1)
            lifts = torch.cat([weighted @ gain[k] + r @ rest[k], share[:, None]], 1)
            total.count[k] += r.sum(0)
            total.first[k] += r.T @ h
            total.second[k] += (weighted.T @ h).unflatten(0, (n, -1))
            total.ambient[k] += lifts.T @ about
            if total.square.shape[1]:
                total.square[k] += share @ about.square_()
            else:
                total.off[k] += share.to(part.rho2) @ part.rho2


@dataclass(frozen=True)
class EMState:
    """One iteration of EM, as the caller sees it.

    Attributes:
        iteration: passes over the data so far, from 0 for the law that EM started from.
        law: the law that the figures below belong to.
        log_likelihood: mean log p(x) over the rows, in nats.
        penalised: the objective, mean over the rows, in nats; it never falls, but where a mode is dropped.
        rejected: whether this pass took a step back.
    """

    iteration: int
    law: MoLRMoG
    log_likelihood: float
    penalised: float
    rejected: bool

    def in_data_units(self, units: Units) -> EMState:
        """The state of the law of x = centre + unit u, where this one is of the law of u."""
        return dataclasses.replace(
            self,
            law=units.law_of_rows(self.law),
            log_likelihood=self.log_likelihood - units.log_volume,
            penalised=self.penalised - units.log_volume,
        )


@dataclass(frozen=True)
class Terms:
    """What a fit is told, in units of the fit.

    Attributes:
        prior_rows: nu of each subspace, with shape (K,), or () for all.
        noise_rows: of the prior on unequal noise, of each subspace, with shape (K, 1), or () for all.
        one_row: weight of a row.
        floor: least standard deviation of the noise, with shape (D,), or (1,) for all coordinates.
        spread2: variance s_j^2 of each column of the rows, with shape (D,).
        zero_mean: keep b = 0 and mu = 0.
        sharing: which of several laws each subspace belongs to, with shape (K,), where unequal noise is common to the
            subspaces of a law but there are several laws; None for one law.
    """

    prior_rows: Tensor
    noise_rows: Tensor
    one_row: float
    floor: Tensor
    spread2: Tensor
    zero_mean: bool
    sharing: Tensor | None = None


def em_steps(
    law: MoLRMoG,
    rows: Rows,
    *,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
    prior_rows: float | None = None,
    noise_rows: float = 1.0,
    noise_floor: float | Tensor = 0.0,
    spread: Tensor | None = None,
    zero_mean: bool = False,
) -> Iterator[EMState]:
    """Run EM for as long as the caller asks for the next state.

    Args:
        law: where to start, without axes; it is not changed. Its kind of noise is kept.
        rows: the data.
        weights: of the rows, with shape (N,).
        labels: the subspace of each row, with shape (N,); log-likelihoods are those of rows and labels together then.
        prior_rows: nu, how many rows the prior on each mode's covariance is worth; the largest d_k where not given.
        noise_rows: how many rows the prior on unequal noise is worth.
        noise_floor: smallest standard deviation of the noise, in data units; one of each coordinate, with shape (D,),
            where unequal noise is to have several.
        spread: standard deviation of each coordinate that the prior on unequal noise is about, in data units, with
            shape (D,); that of the rows where not given.
        zero_mean: keep b = 0 and mu = 0, the law of Wang et al. 2024.
    """
    rows, units = rows.standard(centred=not zero_mean)
    law = units.law_inside(law).requires_grad_(False)
    spread = rows.deviation(weights) if spread is None else spread.to(law.tau) / units.unit
    floor = torch.as_tensor(noise_floor, dtype=torch.float64, device=law.tau.device).reshape(-1) / units.unit
    floor = floor.clamp(min=_SMALLEST_TAU)
    nu = float(max(law.latent_dims)) if prior_rows is None else prior_rows
    with torch.no_grad():
        law.tau.copy_(torch.maximum(law.tau.abs(), (floor if law.noise != "isotropic" else floor.max()).to(law.tau)))
    # Weights are counts, or shares that add up to one: then a row's worth of prior shrinks with them.
    one_row = 1.0 if weights is None else min(1.0, float(weights.sum() / weights.count_nonzero()))
    spread2 = spread.to(law.tau.device, torch.float64).square()
    prior, noise_prior = torch.tensor([nu * one_row, noise_rows * one_row], dtype=torch.float64, device=law.tau.device)
    terms = Terms(prior, noise_prior, one_row, floor, torch.maximum(spread2, floor.square()), zero_mean)
    slack = 1e-6 if rows.dtype == torch.float32 else 1e-12  # what rounding may do to the objective, relative
    estimate, fallback, reached = law, None, -math.inf
    iteration = 0
    while True:
        latents = Latents.of(estimate)
        statistics, value = _evaluate(estimate, latents, rows, weights, labels, terms)
        rejected = fallback is not None and value < reached - slack * max(abs(reached), rows.dim)
        if fallback is not None and rejected:
            estimate, latents = fallback, Latents.of(fallback)
            statistics, value = _evaluate(estimate, latents, rows, weights, labels, terms)
        log_likelihood = float(statistics.log_prob / statistics.rows)
        yield EMState(iteration, estimate, log_likelihood, value, rejected).in_data_units(units)
        reached = value
        iteration += 1
        estimate, fallback = maximise(estimate, latents, statistics, terms)


def _evaluate(
    law: MoLRMoG, latents: Latents, rows: Rows, weights: Tensor | None, labels: Tensor | None, terms: Terms
) -> tuple[Statistics, float]:
    """Statistics of one pass, and the penalised log-likelihood per row."""
    statistics = gather(law, rows, weights, labels, latents)
    penalty = float(penalty_of_modes(law, latents, terms).sum() + penalty_of_noise(law, terms).sum())
    return statistics, (float(statistics.log_prob) + penalty) / float(statistics.rows)


def penalty_of_modes(law: MoLRMoG, latents: Latents, terms: Terms) -> Tensor:
    """What the prior on the modes' covariances adds to the log-likelihood, of each subspace, with shape (K,)."""
    count = latents.real.sum(1)
    if max(law.modes) == 1 or not bool((terms.prior_rows > 0).any()):
        return torch.zeros_like(count, dtype=torch.float64)
    fit = torch.where(latents.real, _log_det(torch.linalg.cholesky(latents.S)), 0.0).sum(1)
    L = torch.linalg.cholesky(_scale(latents.inverse, latents.real))
    several = (count > 1).double()
    # tr Psi S_c^-1 adds up to n_k d_k, as Psi is the harmonic mean.
    dims = torch.tensor(law.latent_dims, device=count.device)
    return 0.5 * terms.prior_rows * several * (count * (_log_det(L) - dims) - fit)


def penalty_of_noise(law: MoLRMoG, terms: Terms) -> Tensor:
    """What the prior on unequal noise adds to the log-likelihood, of each row of tau, with shape (K or 1,)."""
    if law.noise == "isotropic":
        return law.tau.new_zeros(1, dtype=torch.float64)
    over = terms.spread2 / law.tau.double().square()
    return -0.5 * terms.noise_rows.reshape(-1) * (over - over.log()).sum(1)


def _trace(M: Tensor) -> Tensor:
    """Traces of matrices (..., d, d)."""
    return M.diagonal(dim1=-2, dim2=-1).sum(-1)


def _log_det(L: Tensor) -> Tensor:
    """Sum of log det L L^T over all Cholesky factors L (..., d, d)."""
    return 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _scale(inverse: Tensor, real: Tensor) -> Tensor:
    """Psi_k, the harmonic mean of the modes' S_c: where the penalised log-likelihood is largest in it; (K, d, d)."""
    mean = torch.where(real[..., None, None], inverse, 0.0).sum(1) / real.sum(1)[:, None, None]
    return torch.cholesky_inverse(_root(mean))


def _leaning(S: Tensor, weight: Tensor, nu: Tensor, latents: Latents) -> Tensor:
    """Covariances of modes that lean on Psi_k, which leans on them.

    Where the prior outweighs the rows, Psi_k would hardly move from what it was. What all modes have in common is then
    the other place to begin, the better of both is taken, and both are updated in turn.

    Args:
        S: H2_c / N_c - mu_c mu_c^T, with shape (K, n, d, d).
        weight: N_c, with shape (K, n, 1, 1).
        nu: of each subspace with several modes, with shape (K, 1, 1, 1).
        latents: of the law so far.
    """
    real = latents.real
    scale = _scale(latents.inverse, real)
    found = (weight * S + nu * scale[:, None]) / (weight + nu)
    rows = torch.where(real[..., None, None], weight, 0.0)
    heavy = (nu[:, 0, 0, 0] * real.sum(1) > rows.sum((1, 2, 3))).nonzero()[:, 0]
    if not len(heavy):
        return found
    weight, nu, rows, real, scale = weight[heavy], nu[heavy], rows[heavy], real[heavy], scale[heavy]
    # Padding is as it is in S_c, and padded modes are anything.
    padding = ((~latents.inside).to(S).diag_embed() * latents.v[:, None, None])[heavy, None]
    own = torch.where(real[..., None, None], S[heavy] + padding, latents.S[heavy])
    ridge = _RIDGE * _trace(own) + _FLAT * latents.v[heavy, None]
    own = _positive(own + ridge[..., None, None] * torch.eye(S.shape[-1]).to(S))

    def leaning(scale: Tensor) -> tuple[Tensor, Tensor]:
        """S_c, and minus twice the objective of each subspace; its tr S_c^-1 (N_c S + nu Psi) never changes."""
        S = (weight * own + nu * scale[:, None]) / (weight + nu)
        cost = torch.where(real, (weight + nu)[..., 0, 0] * _log_det(_root(S)), 0.0).sum(1)
        return S, cost - nu[:, 0, 0, 0] * real.sum(1) * _log_det(_root(scale))

    (as_it_was, before), (together, after) = leaning(scale), leaning((rows * own).sum(1) / rows.sum(1))
    S = torch.where((after < before)[:, None, None, None], together, as_it_was)
    for _ in range(_LEANS):
        scale = _scale(torch.cholesky_inverse(_root(S)), real)
        S = (weight * own + nu * scale[:, None]) / (weight + nu)
    found[heavy] = torch.where(real[..., None, None], S - padding, 0.0)
    return found


@torch.no_grad()
def maximise(law: MoLRMoG, latents: Latents, statistics: Statistics, terms: Terms) -> tuple[MoLRMoG, MoLRMoG | None]:
    """The next law, and the one with the old bases to fall back on, without modes lighter than one row."""
    alive = living(law, statistics, terms.one_row)
    if not bool((alive == law._real_mode).all()):
        dropped = int((law._real_mode & ~alive).sum())
        warnings.warn(f"EM dropped {dropped} mode{'s' * (dropped > 1)} that no row belonged to any more", stacklevel=2)
        law, statistics = without_lost_modes(law, statistics, alive)
        return updated_law(law, Latents.of(law), statistics, terms)[0], None
    return updated_law(law, latents, statistics, terms)


def living(law: MoLRMoG, statistics: Statistics, one_row: float) -> Tensor:
    """Which modes weigh a row or more, with shape (K, n)."""
    return (statistics.count >= one_row) & law._real_mode


def updated_law(law: MoLRMoG, latents: Latents, statistics: Statistics, terms: Terms) -> tuple[MoLRMoG, MoLRMoG]:
    """The next law, and the one with the old bases."""
    N = torch.where(latents.real, statistics.count, 1.0)  # (K, n)
    N_k = statistics.count.sum(1)  # (K,)
    weight = N[..., None, None]
    H1, H2 = statistics.first, statistics.second
    mean_y = statistics.ambient[:, -1] / N_k[:, None]  # (K, D)
    if terms.zero_mean:
        mu = torch.zeros_like(H1)
        center = mu[:, 0]
        mean_y = torch.zeros_like(mean_y)
    else:
        mu = H1 / N[..., None]
        center = H1.sum(1) / N_k[:, None]
    S = H2 / weight - mu[..., None] * mu[:, :, None]
    nu = (terms.prior_rows * (latents.real.sum(1) > 1))[:, None, None, None]
    # b_k becomes the mean of the subspace's rows, and the prior of a subspace leans on what its modes were.
    if bool((nu > 0).any()):
        S = _leaning(S, weight, nu, latents)
    S = torch.where((latents.inside[:, :, None] & latents.inside[:, None])[:, None], S, 0.0)
    ell, V = torch.linalg.eigh(0.5 * (S + S.mT) - (~latents.inside).to(S).diag_embed()[:, None])  # padding comes last
    ell, V = ell.flip(2).clamp(min=0), V.flip(3)  # (K, n, d), largest first
    d = ell.shape[2]
    ranks = torch.tensor([row + (0,) * (max(law.modes) - len(row)) for row in law.ranks], device=ell.device)
    held = (torch.arange(d, device=ell.device) < ranks[..., None]) & latents.inside[:, None]  # (K, n, d)
    if law.noise == "isotropic":
        apart = mean_y - ((mean_y[:, None] @ latents.out) @ latents.out.mT)[:, 0]
        off = (statistics.off - N_k * apart.square().sum(1)).clamp(min=0)
        dims = torch.tensor(law.latent_dims, dtype=torch.float64, device=ell.device)
        rows = torch.where(latents.real, N + nu[..., 0, 0], 0.0)
        v = pooled_noise(ell, held, latents.inside[:, None].expand_as(held), rows, off, N_k * (law.dim - dims))
        v = torch.maximum(v, terms.floor.amax(-1).square())
    else:
        v = latents.v
    U = V * (torch.where(held, ell, 0.0) - v[:, None, None]).clamp(min=0).sqrt()[:, :, None]
    U = torch.where(latents.real[..., None, None], U, 0.0)[..., : law.factor.shape[3]]
    offset = law.offset.double() + latents.unit * mean_y
    means = torch.where(latents.real[..., None], mu - center[:, None], 0.0)

    old = latents.out / latents.unit[..., None]  # A'_k
    B, left = _regression(law, latents, statistics, old, terms.zero_mean)
    tau = v.sqrt()
    cautious_tau = tau
    if law.noise != "isotropic":
        squares, rows = left * latents.unit.square(), N_k[:, None]
        if law.noise == "shared":
            squares, rows = squares.sum(0, keepdim=True), rows.sum()
        elif terms.sharing is not None:
            squares, rows = (torch.zeros_like(t).index_add(0, terms.sharing, t)[terms.sharing] for t in (squares, rows))
        prior = terms.noise_rows
        tau = torch.maximum(((squares + prior * terms.spread2) / (rows + prior)).sqrt(), terms.floor)
        cautious_tau = law.tau.double()
    logits = (N_k / N_k.sum()).log(), torch.where(latents.real, (N / N_k[:, None]).log(), 0.0)
    new = [_law_like(law, A, offset, means, U, t, logits, latents) for A, t in ((B, tau), (old, cautious_tau))]
    return new[0], new[1]


def pooled_noise(ell: Tensor, held: Tensor, inside: Tensor, weight: Tensor, off: Tensor, freedom: Tensor) -> Tensor:
    """tau_k^2: the mean of the off-subspace energy and of every eigenvalue that no factor holds or that is below it.

    Args:
        ell: eigenvalues of the modes' covariances, with shape (K, n, d).
        held: which of them a factor may hold, with shape (K, n, d).
        inside: which of them are no padding, with shape (K, n, d).
        weight: rows behind each mode, with shape (K, n).
        off: off-subspace energy, with shape (K,).
        freedom: degrees of freedom behind it, with shape (K,).
    """
    pool = inside & ~held
    while True:
        share = weight[..., None] * pool
        total = freedom + share.sum((1, 2))
        tau2 = torch.where(total > 0, (off + (share * ell).sum((1, 2))) / total.clamp(min=1e-300), 0.0)
        below = (pool | (ell < tau2[:, None, None])) & inside
        if bool((below == pool).all()):
            return tau2
        pool = below


def _regression(
    law: MoLRMoG, latents: Latents, statistics: Statistics, old: Tensor, zero_mean: bool
) -> tuple[Tensor, Tensor]:
    """Regress the rows y of every subspace on E[z' | x, c].

    Returns:
        The fit's orthonormal basis that is nearest to the old one, with shape (K, D, d), and what it leaves of the
        squares of y, summed over the rows, with shape (K, D).
    """
    N = statistics.count[..., None]  # (K, n, 1)
    H1, H2, mu, G = statistics.first, statistics.second, latents.mean, latents.gain
    v = latents.v[:, None, None, None]
    pulled = ((H1 - N * mu)[:, :, None] @ G.mT)[:, :, 0]  # (K, n, d)  sum of r_c (E z - mu)
    outer = H1[..., None] * mu[:, :, None]
    own = N[..., None] * mu[..., None] * mu[:, :, None]
    around = H2 - outer - outer.mT + own
    across = pulled[..., None] * mu[:, :, None]
    zz = v * N[..., None] * G + G @ around @ G.mT + across + across.mT + own
    zz = torch.where(latents.real[..., None, None], zz, 0.0).sum(1)  # (K, d, d)
    zx, yy = statistics.ambient[:, :-1], statistics.square  # (K, d, D), (K, D)
    rounding = 1e-13 * (_trace(zz).abs() + latents.v * N.sum((1, 2)))
    if not zero_mean:
        z = torch.where(latents.real[..., None], N * mu + pulled, 0.0).sum(1)
        N_k = statistics.count.sum(1)[:, None]
        y = statistics.ambient[:, -1]
        zz = zz - z[..., None] * (z / N_k)[:, None]
        zx = zx - z[..., None] * (y / N_k)[:, None]
        yy = yy - y.square() / N_k if yy.shape[1] else yy
    dims = latents.inside.sum(1)
    # Directions without variance stay where they are.
    keep = 1e-9 * _trace(zz).clamp(min=0) / dims + rounding + torch.finfo(zz.dtype).tiny
    ridge = (keep[:, None] * latents.inside + ~latents.inside).diag_embed()
    fit = torch.cholesky_solve(zx + keep[:, None, None] * old.mT, _root(zz + ridge)).mT  # (K, D, d)
    Q = torch.linalg.qr(fit).Q * latents.inside[:, None]
    B = Q @ nearest_rotation(Q.mT @ old + (~latents.inside).to(old).diag_embed())
    whole = torch.tensor([own == law.dim for own in law.latent_dims], device=B.device)[:, None, None]
    B = torch.where(whole, old, B)
    if not yy.shape[1]:
        return B, yy
    residual = yy - 2 * (B.mT * zx).sum(1) + ((B @ zz) * B).sum(2)
    return B, residual.clamp(min=0)


def nearest_rotation(M: Tensor) -> Tensor:
    """The orthonormal matrices nearest to square ones, with shape (K, d, d)."""
    try:
        left, _, right = torch.linalg.svd(M)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        # Divide and conquer may fail where singular values repeat; the iteration by QR does not.
        each = [scipy.linalg.svd(matrix, lapack_driver="gesvd") for matrix in M.cpu().numpy()]
        left, right = (torch.as_tensor(np.stack([found[i] for found in each])).to(M) for i in (0, 2))
    return left @ right


def _root(M: Tensor) -> Tensor:
    """Cholesky factors of matrices, with shape (..., d, d), that rounding may have left without one."""
    return torch.linalg.cholesky(_positive(M))


def _positive(M: Tensor) -> Tensor:
    """Second moments, with shape (..., d, d), positive definite where rounding has left them not so."""
    failed = torch.linalg.cholesky_ex(M).info > 0
    if not bool(failed.any()):
        return M
    values, vectors = torch.linalg.eigh(0.5 * (M + M.mT))
    least = _ROUNDED * values[..., -1:]
    mended = (vectors * torch.maximum(values, least)[..., None, :]) @ vectors.mT
    return torch.where(failed[..., None, None], mended, M)


def _law_like(
    law: MoLRMoG,
    basis: Tensor,
    offset: Tensor,
    means: Tensor,
    factors: Tensor,
    tau: Tensor,
    logits: tuple[Tensor, Tensor],
    latents: Latents,
) -> MoLRMoG:
    """A law shaped like another, from orthonormal bases (K, D, d) of whitened rows and what is in their latents."""
    new = law.empty_like()
    if law.noise != "isotropic":
        # Out of the whitened rows: P^-1/2 A' = A R, R into the modes.
        padded = (~latents.inside).to(basis).diag_embed()
        A = latents.unit[..., None] * basis
        A, R = torch.linalg.qr(torch.cat([A, padded], 1))
        basis = A[:, : law.dim] * latents.inside[:, None]
        R = R * latents.inside[..., None] * latents.inside[:, None]
        means, factors = means @ R.mT, R[:, None] @ factors
    new.basis.copy_(basis.transpose(0, 1))
    new.offset.copy_(offset)
    new.mean.copy_(means)
    new.factor.copy_(factors)
    new.tau.copy_(tau)
    new.subspace_logits.copy_(logits[0])
    new.mode_logits.copy_(logits[1])
    return new


def without_lost_modes(law: MoLRMoG, statistics: Statistics, alive: Tensor) -> tuple[MoLRMoG, Statistics]:
    """The law and the statistics without the modes that are lost, and the subspaces that lost all of theirs."""
    kept = alive.any(1).nonzero()[:, 0].tolist()
    modes = [alive[k].nonzero()[:, 0] for k in kept]
    parts = []
    for k, own in zip(kept, modes, strict=True):
        part = law.subspace(k)
        own = own.tolist()
        factors = tuple(part.factors[mode] for mode in own)
        weights = part.mode_weights[own] / part.mode_weights[own].sum()
        parts.append(dataclasses.replace(part, mode_weights=weights, means=part.means[own], factors=factors))
    smaller = MoLRMoG.from_subspaces(parts, shared=law.noise == "shared", dtype=law.basis.dtype).requires_grad_(False)
    found = Statistics.none(smaller, law.tau.device)
    found.rows, found.log_prob = statistics.rows, statistics.log_prob
    d = found.first.shape[2]
    for i, (k, own) in enumerate(zip(kept, modes, strict=True)):
        found.count[i, : len(own)] = statistics.count[k, own]
        found.first[i, : len(own)] = statistics.first[k, own, :d]
        found.second[i, : len(own)] = statistics.second[k, own, :d, :d]
        found.off[i], found.square[i] = statistics.off[k], statistics.square[k]
        found.ambient[i, :d], found.ambient[i, -1] = statistics.ambient[k, :d], statistics.ambient[k, -1]
    return smaller, found
