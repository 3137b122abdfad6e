"""Maximum likelihood by expectation maximisation, on data of any size.

One pass over the rows gathers, for the gates r_c of the current law and row weights, statistics that are additive:

    per mode      N_c = sum r_c,   H1_c = sum r_c h,   H2_c = sum r_c h h^T       with h = A_k^T (x - b_k)
    per subspace  off_k = sum R_k rho2_k,   sum R_k x,   sum zeta_k x^T           with zeta_k = sum_l r_kl E[z | x, kl]

and two updates follow, each of which raises the expected log-likelihood of the modes' assignment:

    modes   mu_c = H1_c / N_c,  S_c = H2_c / N_c - mu_c mu_c^T,  U_c U_c^T = top r eigenpairs of S_c less tau_k^2,
            tau_k^2 = mean of all the variance that no factor holds: off-subspace, discarded, and clipped eigenvalues
    basis   A_k = regression of x - b_k on E[z | x, c], made orthonormal by the rotation nearest to the old basis

Both at once are nearly always an ascent too, because the basis moves across the subspace and the modes inside it. The
next pass measures it: should the log-likelihood ever have dropped, the step is taken back and the update of the modes
alone, which cannot lower it, is kept.

Prior.  Modes with few rows lean on their siblings: S_c has an inverse-Wishart prior worth `prior_rows` rows whose scale
Psi_k belongs to the subspace and is estimated along (the harmonic mean of the S_c). What EM raises is therefore the
penalised log-likelihood

    sum_n log p(x_n) - 1/2 sum_c nu ( tr Psi_k S_c^-1 + log det S_c ) + 1/2 sum_k n_k nu log det Psi_k

with S_c = U_c U_c^T + tau_k^2 I, and tau never falls below `noise_floor`, in data units, nor below 1e-9 of the spread
of the rows. Where n_k = 1 there is nothing to lean on and no prior.

References:
    arXiv 2601.01475, section 3 (the family); Tipping & Bishop, "Mixtures of probabilistic principal component
    analysers", 1999 (the update of the modes); Meng & van Dyk, "The EM algorithm: an old folk song sung to a fast new
    tune", 1997 (alternating what is treated as missing).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from molrmog.laws.base import Subspace, rows_per_chunk
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.rows import Rows
from molrmog.learning.units import Units

_SMALLEST_TAU = 1e-9  # in units of the fit
_RATIO = 2e5  # rounding may move the log of a responsibility by a tenth at worst: over many rows it averages out


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
        ambient: sum of [zeta_k, R_k] x^T, with shape (K, d + 1, D).
    """

    rows: Tensor
    log_prob: Tensor
    count: Tensor
    first: Tensor
    second: Tensor
    off: Tensor
    ambient: Tensor

    def __iadd__(self, other: Statistics) -> Statistics:
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))
        return self


@torch.no_grad()
def gather(law: MoLRMoG, rows: Rows, weights: Tensor | None = None) -> Statistics:
    """One pass over the rows with the gates of `law`.

    Args:
        law: where the gates come from; every tau must be positive.
        rows: the data.
        weights: of the rows, with shape (N,); ones where not given.
    """
    K, n, d, _ = law.factor.shape
    shapes = ((), (), (K, n), (K, n, d), (K, n, d, d), (K,), (K, d + 1, law.dim))
    total = Statistics(*(torch.zeros(shape, dtype=torch.float64, device=rows.device) for shape in shapes))
    size = 2 * rows_per_chunk(law.basis.device, law.dim + K * n * d)  # most rows meet few subspaces: less is held
    for at, chunk in rows.chunks():
        for start in range(0, len(chunk), size):
            w = None if weights is None else weights[at][start : start + size].to(chunk)
            total += _gather(law, chunk[start : start + size], w)
    return total


def _gather(law: MoLRMoG, x: Tensor, weights: Tensor | None) -> Statistics:
    one = torch.ones(1, dtype=torch.float64, device=x.device)
    form = law.eigenform(x.dtype)
    K, n, d = form.mean.shape
    # E[z | x, c] = mu + G (h - mu) with G = V lam / Lam V^T
    G = form.axes.mT @ ((form.lam / (form.lam + form.tau2[:, None, None]))[..., None] * form.axes)  # (K, n, d, d)
    rest = form.mean - (G @ form.mean[..., None])[..., 0]
    count, first, second = x.new_zeros(K, n), x.new_zeros(K, n, d), x.new_zeros(K, n * d, d)
    off, ambient = x.new_zeros(K), x.new_zeros(K, d + 1, law.dim)
    log_prob = torch.zeros((), dtype=torch.float64, device=x.device)
    for where, e in law.e_steps(x, one, torch.zeros_like(one), limit=_RATIO):
        w = None if weights is None else weights[where]
        log_prob += (e.log_prob if w is None else e.log_prob * w).double().sum()
        for part in e.parts():
            r = part.r if w is None else part.r * w[part.at, None]
            r, own, about = (each.to(x.dtype) for each in (r, part.h, part.about))
            k, share = part.k, r.sum(1)
            weighted = (r[..., None] * own[:, None]).flatten(1)  # (b, n d)
            zeta = weighted @ G[k].flatten(0, 1) + r @ rest[k]
            count[k] += r.sum(0)
            first[k] += r.T @ own
            second[k] += weighted.T @ own
            off[k] += share @ part.rho2.to(x.dtype)
            lifts = torch.cat([zeta, share[:, None]], 1)
            ambient[k] += lifts.T @ about + lifts.sum(0)[:, None] * form.offset[k]
    return Statistics(
        rows=log_prob.new_tensor(len(x)) if weights is None else weights.sum(),
        log_prob=log_prob,
        count=count,
        first=first,
        second=second.unflatten(1, (n, d)),
        off=off,
        ambient=ambient,
    )


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


def em_steps(
    law: MoLRMoG,
    rows: Rows,
    *,
    weights: Tensor | None = None,
    prior_rows: float | None = None,
    noise_floor: float = 0.0,
    zero_mean: bool = False,
) -> Iterator[EMState]:
    """Run EM for as long as the caller asks for the next state.

    Args:
        law: where to start; it is not changed.
        rows: the data.
        weights: of the rows, with shape (N,).
        prior_rows: nu, how many rows the prior on each mode's covariance is worth; the largest d_k where not given.
        noise_floor: smallest tau, in data units.
        zero_mean: keep b = 0 and mu = 0, the law of Wang et al. 2024.
    """
    rows, units = rows.standard(centred=not zero_mean)
    law = units.law_inside(law).requires_grad_(False)
    noise_floor = max(noise_floor / units.unit, _SMALLEST_TAU)
    nu = float(max(law.latent_dims)) if prior_rows is None else prior_rows
    with torch.no_grad():
        law.tau.copy_(law.tau.abs().clamp(min=noise_floor))
    start = _Estimate(law, [_scale(law.subspace(k)) for k in range(law.subspaces)])
    slack = 1e-6 if rows.dtype == torch.float32 else 1e-12  # what rounding may do to the objective, relative
    estimate, fallback, reached = start, None, -math.inf
    # Weights are counts, or shares that add up to one: then a row's worth of prior shrinks with them.
    one_row = 1.0 if weights is None else min(1.0, float(weights.sum() / weights.count_nonzero()))
    nu = nu * one_row
    iteration = 0
    while True:
        statistics, value = _evaluate(estimate, rows, weights, nu)
        rejected = fallback is not None and value < reached - slack * max(abs(reached), rows.dim)
        if fallback is not None and rejected:
            estimate = fallback
            statistics, value = _evaluate(estimate, rows, weights, nu)
        log_likelihood = float(statistics.log_prob / statistics.rows)
        yield EMState(iteration, estimate.law, log_likelihood, value, rejected).in_data_units(units)
        reached = value
        iteration += 1
        estimate, fallback = _maximise(estimate, statistics, one_row, nu, noise_floor, zero_mean)


@dataclass(frozen=True)
class _Estimate:
    law: MoLRMoG
    scales: list[Tensor]  # Psi_k of each subspace, (d_k, d_k)


def _evaluate(estimate: _Estimate, rows: Rows, weights: Tensor | None, prior_rows: float) -> tuple[Statistics, float]:
    """Statistics of one pass, and the penalised log-likelihood per row."""
    statistics = gather(estimate.law, rows, weights)
    penalty = 0.0
    for k, scale in enumerate(estimate.scales):
        part = estimate.law.subspace(k)
        n = len(part.means)
        if n > 1 and prior_rows > 0:
            L = torch.linalg.cholesky(_latent_covariances(part))
            fit = torch.cholesky_solve(scale.expand_as(L), L).diagonal(dim1=1, dim2=2).sum() + _log_det(L)
            penalty += 0.5 * prior_rows * float(n * _log_det(torch.linalg.cholesky(scale)) - fit)
    return statistics, (float(statistics.log_prob) + penalty) / float(statistics.rows)


def _latent_covariances(part: Subspace) -> Tensor:
    """U U^T + tau^2 I of every mode, with shape (n, d, d), in float64."""
    noise = part.tau**2 * torch.eye(part.means.shape[1], dtype=torch.float64, device=part.means.device)
    return torch.stack([U.double() @ U.double().T + noise for U in part.factors])


def _log_det(L: Tensor) -> Tensor:
    """Sum of log det L L^T over all Cholesky factors L (..., d, d)."""
    return 2 * L.diagonal(dim1=-2, dim2=-1).log().sum()


def _inverse(S: Tensor) -> Tensor:
    """Inverse of symmetric positive definite matrices (by Cholesky: torch's batched LU breaks on some CPUs)."""
    return torch.cholesky_inverse(torch.linalg.cholesky(S))


def _scale(part: Subspace) -> Tensor:
    """Psi, the harmonic mean of the modes' covariances: where the penalised log-likelihood is largest in Psi."""
    return _inverse(_inverse(_latent_covariances(part)).mean(0))


@torch.no_grad()
def _maximise(
    estimate: _Estimate,
    statistics: Statistics,
    one_row: float,
    prior_rows: float,
    noise_floor: float,
    zero_mean: bool,
) -> tuple[_Estimate, _Estimate | None]:
    """The next estimate, and the one with the old bases to fall back on, without modes lighter than `one_row`."""
    law = estimate.law
    old_bases: list[Subspace] = []
    new_bases: list[Subspace] = []
    scales: list[Tensor] = []
    dropped = 0
    for k in range(law.subspaces):
        alive = statistics.count[k, : law.modes[k]] >= one_row
        dropped += int((~alive).sum())
        if not bool(alive.any()):
            continue
        part = _new_modes(law, k, alive, statistics, estimate.scales[k], prior_rows, noise_floor, zero_mean)
        old_bases.append(part)
        basis = _new_basis(law, k, statistics, zero_mean)
        new_bases.append(dataclasses.replace(part, basis=basis))
        scales.append(_scale(part))
    if dropped:
        warnings.warn(f"EM dropped {dropped} modes that no row belonged to any more", stacklevel=2)
    bold, cautious = (
        _Estimate(MoLRMoG.from_subspaces(parts, dtype=law.basis.dtype).requires_grad_(False), scales)
        for parts in (new_bases, old_bases)
    )
    return bold, None if dropped else cautious


def _new_modes(
    law: MoLRMoG,
    k: int,
    alive: Tensor,
    statistics: Statistics,
    scale: Tensor,
    prior_rows: float,
    noise_floor: float,
    zero_mean: bool,
) -> Subspace:
    """Update weights, b, mu, U and tau of subspace k for the basis as it is."""
    d, D = law.latent_dims[k], law.dim
    n = int(alive.sum())
    nu = prior_rows if n > 1 else 0.0
    N = statistics.count[k, : law.modes[k]][alive]  # (n,)
    H1 = statistics.first[k, : law.modes[k], :d][alive]  # (n, d)
    H2 = statistics.second[k, : law.modes[k], :d, :d][alive]  # (n, d, d)
    N_k = N.sum()

    basis, offset = law.basis[:, k, :d].double(), law.offset[k].double()
    off = statistics.off[k]
    if zero_mean:
        mu = torch.zeros_like(H1)
        center = torch.zeros_like(mu[0])
    else:
        mu = H1 / N[:, None]
        center = H1.sum(0) / N_k
        # b_k becomes the mean of the subspace's rows.
        mean = statistics.ambient[k, -1] / statistics.count[k].sum()
        across = mean - offset - basis @ (basis.T @ (mean - offset))
        off = off - N_k * across.square().sum()
        offset = mean
    S = (H2 - N[:, None, None] * mu[:, :, None] * mu[:, None]) / N[:, None, None]
    S = (N[:, None, None] * S + nu * scale) / (N + nu)[:, None, None]
    ell, V = torch.linalg.eigh(0.5 * (S + S.mT))
    ell, V = ell.flip(1).clamp(min=0), V.flip(2)  # (n, d), largest first
    ranks = torch.tensor(law.ranks[k], device=N.device)[alive]
    held = torch.arange(d, device=N.device) < ranks[:, None]  # (n, d)
    tau2 = _noise(ell, held, N + nu, off.clamp(min=0), N_k * (D - d))
    tau2 = max(tau2, noise_floor**2)
    U = V * (torch.where(held, ell, 0.0) - tau2).clamp(min=0).sqrt()[:, None]
    dtype = law.basis.dtype
    return Subspace(
        weight=float(N_k / statistics.count.sum()),
        basis=law.basis[:, k, :d],
        offset=offset.to(dtype),
        tau=math.sqrt(tau2),
        mode_weights=(N / N_k).to(dtype),
        means=(mu - center).to(dtype),
        factors=tuple(U[mode, :, : int(r)].to(dtype) for mode, r in enumerate(ranks)),
    )


def _noise(ell: Tensor, held: Tensor, weight: Tensor, off: Tensor, freedom: Tensor) -> float:
    """tau^2: the mean of the off-subspace energy and of every eigenvalue that no factor holds or that lies below tau^2.

    Args:
        ell: eigenvalues of the modes' covariances, with shape (n, d).
        held: which of them a factor may hold, with shape (n, d).
        weight: rows behind each mode, with shape (n,).
        off: off-subspace energy, with shape ().
        freedom: degrees of freedom behind it, with shape ().
    """
    pool = ~held
    while True:
        share = weight[:, None] * pool
        total = freedom + share.sum()
        tau2 = float((off + (share * ell).sum()) / total) if total > 0 else 0.0
        below = pool | (ell < tau2)
        if bool((below == pool).all()):
            return tau2
        pool = below


def _new_basis(law: MoLRMoG, k: int, statistics: Statistics, zero_mean: bool) -> Tensor:
    """Regress the rows of subspace k on E[z | x, c]; of the fit's orthonormal bases, the one nearest to the old."""
    d, n = law.latent_dims[k], law.modes[k]
    old = law.basis[:, k, :d].double()
    if d == law.dim:
        return law.basis[:, k, :d]
    N = statistics.count[k, :n, None]  # (n, 1)
    H1 = statistics.first[k, :n, :d]
    form = law.eigenform()
    mu = form.mean[k, :n, :d]
    # h has covariance S = U U^T + tau^2 I, E[z | x, c] = mu + G (h - mu), Cov[z | x, c] = tau^2 G
    S = _latent_covariances(law.subspace(k))
    tau2 = form.tau2[k]
    G = torch.eye(d, dtype=S.dtype, device=S.device) - tau2 * _inverse(S)  # (n, d, d)
    pulled = ((H1 - N * mu)[:, None] @ G)[:, 0]  # (n, d)  sum of r_c (E z - mu)
    outer = H1[:, :, None] * mu[:, None]
    around = statistics.second[k, :n, :d, :d] - outer - outer.mT + N[..., None] * mu[:, :, None] * mu[:, None]
    across = pulled[:, :, None] * mu[:, None]
    zz = tau2 * N[..., None] * G + G @ around @ G + across + across.mT + N[..., None] * mu[:, :, None] * mu[:, None]
    zz = zz.sum(0)
    zx = statistics.ambient[k, :d]  # (d, D)
    z = (N * mu + pulled).sum(0)
    if not zero_mean:
        zz = zz - z[:, None] * z / N.sum()
        zx = zx - z[:, None] * statistics.ambient[k, -1] / N.sum()
    keep = 1e-9 * zz.diagonal().mean() + torch.finfo(zz.dtype).tiny  # directions without variance stay where they are
    fit = torch.linalg.solve(zz + keep * torch.eye(d, dtype=zz.dtype, device=zz.device), zx + keep * old.T).T
    Q = torch.linalg.qr(fit).Q
    left, _, right = torch.linalg.svd(Q.T @ old)
    return (Q @ left @ right).to(law.basis.dtype)
