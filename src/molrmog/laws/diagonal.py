"""Unequal noise: a variance psi_kj of each coordinate off the subspaces, of each subspace or common to all.

At a noise level (s, gamma), p_k = 1 / (s^2 psi_k + gamma^2), rows are whitened by P_k^1/2, and so is the law:

    P_k^1/2 A_k = A'_k L_k^T,  A'_k^T A'_k = I         by Cholesky, twice, so that A' is orthonormal to the last digit
    mu'_c = L_k^T mu_c,   U'_c = L_k^T U_c,   C_c C_c^T = I + s^2 U'_c U'_c^T

after which it is isotropic with unit variance (`molrmog.laws.levels`). Nothing is inverted that noise has not made
positive. What depends on the level alone costs K D d^2 + sum_c d^3 and is kept for the levels that were asked for last;
a row then costs what it costs under isotropic noise, two products.

    Cov[z' | x, c]  = F_c F_c^T,   F_c = U'_c M_c^-T/2,   M_c = I + s^2 U'_c^T U'_c
    Var[x_0j | x, c] = psi_kj gamma^2 p_kj + gamma^4 p_kj |F_c^T a'_kj|^2                    a'_kj the j-th row of A'_k
    div score       = sum_c r_c ( |score_c|^2 - tr Cov_c^-1 ) - |score|^2,
                      tr Cov_c^-1 = sum_j p_kj - tr( A'^T P A' (I - (C_c C_c^T)^-1) )

Gradients go through the Cholesky factors.

References:
    Ghahramani & Hinton, "The EM algorithm for mixtures of factor analyzers", 1996 (the family, without the subspaces).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from molrmog.laws.base import normal, orthonormal, values_hidden
from molrmog.laws.levels import Level, Shares, Way, center_of, lifted, narrowed, side_by_side
from molrmog.laws.responsibilities import Dense, spread_of_scores

_LOG_2PI = math.log(2 * math.pi)
_LEAF = 16  # size of triangles that are solved at once
_KEPT = 2**24  # numbers of noise levels that are kept, in float64


@dataclass(frozen=True)
class Factors:
    """What the formulas need of the parameters at any noise level; d is the largest d_k."""

    center: Tensor  # (D,)          the mean of x_0
    basis: Tensor  # (K, D, d)      A_k
    offset: Tensor  # (K, D)        b_k
    mean: Tensor  # (K, n, d)
    factor: Tensor  # (K, n, d, r)
    psi: Tensor  # (K or 1, D)
    log_weight: Tensor  # (K, n)    log w_k + log pi_kl, -inf where padded
    real: Tensor  # (K, d)          whether a latent is no padding
    filled: tuple[bool, ...]  # whether each subspace is all of R^D
    differentiable: bool
    extent: float  # root mean square distance of x_0 from the origin; NaN where the values are hidden
    levels: dict[tuple[float, bytes], dict[torch.dtype, DiagonalLevel]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        basis: Tensor,
        offset: Tensor,
        mean: Tensor,
        factor: Tensor,
        tau: Tensor,
        log_weight: Tensor,
        *,
        latent_dims: Sequence[int],
        differentiable: bool,
    ) -> Factors:
        """Make bases orthonormal.

        Args:
            basis: A_k, with shape (D, K, d).
            offset: b_k, with shape (K, D).
            mean: mu_kl, with shape (K, n, d).
            factor: U_kl, with shape (K, n, d, r).
            tau: square roots of psi_k, with shape (K or 1, D).
            log_weight: log w_k + log pi_kl, with shape (K, n).
            latent_dims: d_k of each subspace.
            differentiable: keep the derivatives in the parameters.

        Returns:
            The factors, in float64.
        """
        A = orthonormal(basis.transpose(0, 1))
        b, mu, U, psi = offset.double(), mean.double(), factor.double(), tau.double().square()
        center, extent = center_of(A, b, mu, U.square().sum(3), log_weight, psi)
        d = A.shape[2]
        real = torch.arange(d, device=A.device) < torch.tensor(latent_dims, device=A.device)[:, None]
        filled = tuple(each == A.shape[1] for each in latent_dims)
        return cls(center, A.contiguous(), b, mu, U, psi, log_weight, real, filled, differentiable, extent)

    def to(self, dtype: torch.dtype) -> Factors:
        """The factors in another dtype."""
        if dtype == self.offset.dtype:
            return self
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        floats = {name: t for name, t in own.items() if isinstance(t, Tensor) and t.is_floating_point()}
        return replace(self, **{name: narrowed(t, dtype) for name, t in floats.items()})

    @property
    def covariance(self) -> Tensor:
        """U_c U_c^T, with shape (K, n, d, d)."""
        return self.factor @ self.factor.mT

    @property
    def variance_off(self) -> Tensor:
        """psi, with shape (K or 1, D)."""
        return self.psi

    @functools.cached_property
    def outer(self) -> Tensor:
        """Outer products of the rows of A_k, with shape (K, D, d^2)."""
        return (self.basis[..., None] * self.basis[:, :, None]).flatten(2)

    def draw_latent(self, k: Tensor, mode: Tensor, generator: torch.Generator | None) -> Tensor:
        """mu_c + U_c eps, with shape (rows, d); k and mode with shape (rows,)."""
        eps = normal((len(k), self.factor.shape[3]), generator, like=self.mean)
        return self.mean[k, mode] + (self.factor[k, mode] @ eps[..., None])[..., 0]

    def kept(self, s: Tensor, gamma: Tensor) -> Callable[[torch.dtype], DiagonalLevel]:
        """As `at`, without derivatives, in any dtype; the levels that were asked for last are kept."""
        key = float(s), gamma.detach().cpu().numpy().tobytes()
        of = self.levels.pop(key, None)
        if of is None:
            with torch.inference_mode(False), torch.no_grad():
                level = self.at(s.detach().clone(), gamma.detach().clone())
            numbers = sum(t.numel() for t in vars(level).values() if isinstance(t, Tensor))
            while len(self.levels) >= max(2, _KEPT // numbers):
                self.levels.pop(next(iter(self.levels)))
            of = {torch.float64: level}
        self.levels[key] = of

        def level_in(dtype: torch.dtype) -> DiagonalLevel:
            if dtype not in of:
                with torch.inference_mode(False), torch.no_grad():
                    of[dtype] = of[torch.float64].to(dtype)
            return of[dtype]

        return level_in

    def at(self, s: Tensor, gamma: Tensor) -> DiagonalLevel:
        """The law at one noise level s (1,), gamma (1,), or (1, D) where coordinates are seen with noise of their own.

        A coordinate of infinite noise is not seen at all. In float64.
        """
        s, gamma2 = s.double(), gamma.double().square()
        unseen = gamma2.isinf()
        finite = torch.where(unseen, 1.0, gamma2)
        precision = torch.where(unseen, 0.0, 1 / (s.square() * self.psi + finite))
        seen = None if gamma.ndim == 1 or not bool(unseen.any()) else ~unseen[0]
        D = self.dim if seen is None else int(seen.sum())
        root = precision.sqrt()  # (K or 1, D)
        A = root[..., None] * self.basis
        if seen is None:
            A, L = whitened(A, self.real)
        else:
            some, L = whitened(A[:, seen], self.real)
            A = torch.zeros_like(A).index_copy(1, seen.nonzero()[:, 0], some)
        mean = self.mean @ L  # (K, n, d)  mu'
        factor = L.mT[:, None] @ self.factor  # (K, n, d, r)  U'
        one = torch.eye(mean.shape[2], dtype=L.dtype, device=L.device)
        covariance = factor @ factor.mT
        C = torch.linalg.cholesky_ex(one + s.square() * covariance).L  # NaN where s or gamma is
        inverse = inverted(C)  # (K, n, d, d)
        logdet = 2 * C.diagonal(dim1=2, dim2=3).log().sum(2)
        weighed = root * (self.offset - self.center)  # (K, D)
        far = (s.square() * (precision @ self.center.square()[:, None])).expand(len(A), 1)
        logs = (precision if seen is None else precision[:, seen]).log().sum(1, keepdim=True)
        level = DiagonalLevel(
            center=self.center,
            s=s,
            gamma2=gamma2,
            down=side_by_side(root[..., None] * A, root * weighed, self.center),
            basis=A,
            offset=self.offset,
            shift=(A.mT @ weighed[..., None])[..., 0],
            offset2=weighed.square().sum(1),
            far=far,
            v=torch.ones_like(weighed[:, :1]),
            const=(D * _LOG_2PI - logs).expand(len(A), 1),
            base=(self.log_weight - 0.5 * logdet)[..., None],
            whiten=torch.cat([inverse, -(inverse @ mean[..., None])], 3).flatten(1, 2),
            root=None,
            mean=mean.mT,
            back=(inverse @ covariance).flatten(1, 2).mT,
            pull=inverse.flatten(1, 2).mT,
            filled=self.filled if seen is None else tuple(dims >= D for dims in self.real.sum(1).tolist()),
            precision=precision,
            root_precision=root,
            unknown=torch.where(unseen, 1.0, finite * precision),
            psi=self.psi,
            factor=factor,
            triangle=L,
        )
        return level if gamma.ndim == 1 else ObservedLevel.of(self, level, inverse)

    @property
    def dim(self) -> int:
        """D."""
        return self.offset.shape[1]

    @property
    def shapes(self) -> tuple[int, int, int, int]:
        """D, K, n and d."""
        K, n, d = self.mean.shape
        return self.dim, K, n, d


@dataclass(frozen=True)
class DiagonalLevel(Level):
    """A law of unequal noise at one noise level; h, rho2 and zeta are whitened.

    Attributes:
        precision: p_k, with shape (K or 1, D).
        root_precision: p_k^1/2, with shape (K or 1, D).
        unknown: 1 - s^2 psi_k p_k, what a coordinate that is seen leaves to be found, with shape (K or 1, D).
        psi: variances off the subspaces, with shape (K or 1, D).
        factor: U'_c, with shape (K, n, d, r).
        triangle: L_k, with mu'_c = L_k^T mu_c and U'_c = L_k^T U_c, with shape (K, d, d).
    """

    precision: Tensor
    root_precision: Tensor
    unknown: Tensor
    psi: Tensor
    factor: Tensor
    triangle: Tensor

    def energy(self, x: Tensor) -> Tensor:
        """x^T P_k x, with shape (K or 1, B)."""
        return self.precision @ x.square().T

    def _of(self, k: int, value: Tensor) -> Tensor:
        return value[min(k, len(value) - 1)]

    def about(self, k: int, x: Tensor) -> Tensor:
        """Whitened rows y_k = P_k^1/2 (x - s b_k)."""
        return torch.addcmul(x, self.s, self.offset[k], value=-1) * self._of(k, self.root_precision)

    def about_(self, k: int, x: Tensor) -> Tensor:
        """The same in place."""
        return x.addcmul_(self.s, self.offset[k], value=-1).mul_(self._of(k, self.root_precision))

    def score_shares(self) -> Shares:
        """Shares s, s and -p_k; 1, 0 and 0 where a subspace is all of R^D."""
        inside = self.s.expand(len(self.basis), 1)
        if not any(self.filled):
            return Shares(inside, inside, -self.precision, 0.0, self.filled)
        within = inside.where(self.open > 0, 1.0)
        return Shares(within, inside * self.open, -self.precision * self.open, 0.0, self.filled)

    def mean_shares(self) -> Shares:
        """Shares gamma^2, gamma^2 and s psi_k p_k."""
        inside = self.gamma2.expand(len(self.basis), 1)
        return Shares(inside, inside, self.s * self.psi * self.precision, 1.0, (False,) * len(self.filled))

    def mixed(self, R: Tensor, share: Tensor) -> Tensor:
        """sum_k R_k share_k, with shape (B, D)."""
        return R.sum(0)[:, None] * share if len(share) == 1 else R.T @ share

    def weigh_(self, k: int, x: Tensor, R: Tensor, share: Tensor) -> Tensor:
        """R_k share_k x, written over x (b, D); R (b,), share (K or 1, D)."""
        return x.mul_(self._of(k, share)).mul_(R[:, None])

    # --- what is asked for less often, in float64

    @functools.cached_property
    def posterior_factor(self) -> Tensor:
        """F_c, with shape (K, n, d, r)."""
        return posterior_factor(self.factor, self.factor, self.s)

    def divergence(self, e: Dense) -> Tensor:
        """Divergence of the score, with shape (B,)."""
        _, K, n, d = self.shapes
        inverse = self.pull.mT.unflatten(1, (n, d))  # C_c^-1
        pulls = (inverse.mT @ e.white.unflatten(1, (n, d))).permute(0, 3, 1, 2)  # (K, B, n, d)
        norms, traces = [], []
        for k in range(K):
            A, p = self.basis[k], self._of(k, self.precision)
            gram = A.T @ (p[:, None] * A)  # A'^T P A'
            norm2 = torch.einsum("bnd,de,bne->bn", pulls[k], gram, pulls[k])
            within = torch.einsum("nij,jk,nik->n", inverse[k], gram, inverse[k])
            if self.filled[k]:
                traces.append(within.expand_as(norm2))
            else:
                y = self.about(k, e.seen.rows)
                across = y - (y @ A) @ A.T
                weighed = across * p
                norm2 = norm2 + (across * weighed).sum(1, keepdim=True)
                norm2 = norm2 + 2 * torch.einsum("bd,bnd->bn", weighed @ A, pulls[k])
                traces.append((p.sum() - gram.trace() + within).expand_as(norm2))
            norms.append(norm2)
        r = e.shares.permute(0, 2, 1)
        return spread_of_scores(e, r, torch.stack(norms), torch.stack(traces))

    @property
    def loadings(self) -> Tensor:
        """From the latents of `way_of_mean` to x_0 - b_k, P^-1/2 A', with shape (K, D, d)."""
        return self.basis / self.root_precision[..., None]

    def variance(self, e: Dense, onto: Tensor | None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""
        _, K, n, d = self.shapes
        s, way, loadings = self.s, self.way_of_mean, self.loadings

        def turned(rows: Tensor) -> Tensor:
            return rows if onto is None else rows @ onto.T.to(rows.dtype)

        r = e.shares.permute(0, 2, 1)  # (K, B, n)
        latents = (way.back.mT.unflatten(1, (n, d)).mT @ e.white.unflatten(1, (n, d))).permute(0, 3, 1, 2)
        mean = turned(e.denoise())
        total = torch.zeros_like(mean)
        for k in range(K):
            p, psi, unknown = (self._of(k, value) for value in (self.precision, self.psi, self.unknown))
            up = unknown * loadings[k].T  # (d, D)
            spread = turned((self.posterior_factor[k].mT @ up).flatten(0, 1))  # (n r, M)
            off = psi * unknown
            off = off if onto is None else onto.square().to(off) @ off
            weights = r[k].repeat_interleave(self.posterior_factor.shape[3], 1)  # (B, n r)
            total = total + r[k].sum(1, keepdim=True) * off + weights @ spread.square()
            z = way.mean[k].T + s * latents[k]  # (B, n, d)
            clean = unknown * self.offset[k] + s * psi * p * e.seen.rows
            apart = (turned(clean) - mean)[:, None] + z @ turned(up)
            total = total + torch.einsum("bn,bnm->bm", r[k], apart.square())
        return total

    def draw(self, e: Dense, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 given rows, with shape (any, D); k, mode, row with shape (any,)."""
        _, _, n, d = self.shapes
        white = e.white.unflatten(1, (n, d))[k, mode, :, row]  # (any, d)
        way, F = self.way_of_mean, self.posterior_factor
        back = way.back.mT.unflatten(1, (n, d))
        z = way.mean[k, :, mode] + self.s * (white[:, None] @ back[k, mode])[:, 0]
        z = z + (F[k, mode] @ normal((len(k), F.shape[3]), generator, like=z)[..., None])[..., 0]
        own = k.clamp(max=len(self.psi) - 1)
        p, psi, unknown = (value[own] for value in (self.precision, self.psi, self.unknown))
        clean = self.offset[k] + lifted(self.loadings, k, z)
        noise = normal(tuple(clean.shape), generator, like=clean)
        return unknown * clean + self.s * psi * p * e.seen.rows[row] + (psi * unknown).sqrt() * noise


@dataclass(frozen=True)
class ObservedLevel(DiagonalLevel):
    """A law seen with noise of its own in each coordinate, infinite where a coordinate is not seen at all.

    Rows hold zeros there. What is seen is weighed as ever. The way up is that of z itself, of which the latents of what
    is seen need not tell all:

        E[z | x, c] = mu_c + s Sigma_c L_k C_c^-T w_c
        E[x_0 | x]  = sum_k [ (1 - s^2 psi_k p_k) (A_k zeta_k + R_k b_k) + s R_k psi_k p_k x ]

    Attributes:
        subspaces: A_k, with shape (K, D, d).
        latent_factor: U_c, with shape (K, n, d, r).
        latent_mean: mu_c, with shape (K, d, n).
        latent_back: from w to E[z | x, c] - mu_c, up to s, with shape (K, d, n d).
        up: [A_k | b_k | center | 0] of all k, A_k and b_k times `unknown`, with shape (D, K d + K + 1 + padding).
    """

    subspaces: Tensor
    latent_factor: Tensor
    latent_mean: Tensor
    latent_back: Tensor
    up: Tensor

    @classmethod
    def of(cls, form: Factors, level: DiagonalLevel, inverse: Tensor) -> ObservedLevel:
        """The level of a law, from one whose way up is that of whitened latents.

        Args:
            form: the law.
            level: what is seen of it.
            inverse: C_c^-1, with shape (K, n, d, d).
        """
        A, b = level.unknown[..., None] * form.basis, level.unknown * (form.offset - form.center)
        return cls(
            **vars(level),
            subspaces=form.basis,
            latent_factor=form.factor,
            latent_mean=form.mean.mT,
            latent_back=(inverse @ level.triangle.mT[:, None] @ form.covariance).flatten(1, 2).mT,
            up=side_by_side(A, b, form.center),
        )

    @functools.cached_property
    def way_of_mean(self) -> Way:
        """From w to E[z | x, c], and up to x_0."""
        return Way(self.latent_mean, self.latent_back, self.up, self.center)

    @property
    def loadings(self) -> Tensor:
        """A_k, with shape (K, D, d)."""
        return self.subspaces

    def mean_shares(self) -> Shares:
        """Shares 1, 1 and s psi_k p_k: the way up holds the rest."""
        inside = self.s.new_ones(len(self.basis), 1)
        return Shares(inside, inside, self.s * self.psi * self.precision, 1.0, (False,) * len(self.filled))

    @functools.cached_property
    def posterior_factor(self) -> Tensor:
        """F_c of z itself, with shape (K, n, d, r)."""
        return posterior_factor(self.latent_factor, self.factor, self.s)


def posterior_factor(U: Tensor, seen: Tensor, s: Tensor | float = 1.0) -> Tensor:
    """F_c with F_c F_c^T = Cov[z | x, c], U_c M_c^-T/2 with M_c = I + s^2 U'_c^T U'_c, with shape (K, n, d, r).

    Args:
        U: factors U_c of latents z, with shape (K, n, d, r); or U'_c, for whitened latents.
        seen: U'_c of whitened latents, with shape (K, n, d, r).
        s: signal scale.
    """
    one = torch.eye(seen.shape[3], dtype=seen.dtype, device=seen.device)
    M = torch.linalg.cholesky_ex(one + s * s * seen.mT @ seen).L
    return torch.linalg.solve_triangular(M, U.mT, upper=False).mT


def whitened(A: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """A' (K, m, d) with orthonormal columns and L (K, d, d), lower triangular, with A = A' L^T.

    Where m < d, the columns that so few rows do not suffice for are zero.

    Args:
        A: with shape (K, m, d).
        real: which columns are no padding, with shape (K, d).
    """
    d, padded = A.shape[2], (~real).to(A).diag_embed()
    if A.shape[1] < d:
        Q, upper = torch.linalg.qr(A)
        few = Q.shape[2]
        Q = Q * (torch.arange(few, device=A.device) < real.sum(1, keepdim=True))[:, None]
        fill = A.new_zeros(len(A), d - few, d)
        return torch.cat([Q, fill[..., : A.shape[1]].mT], 2), torch.cat([upper, fill], 1).mT
    L = torch.eye(d, dtype=A.dtype, device=A.device).expand(len(A), -1, -1)
    for _ in range(2):
        R, failed = torch.linalg.cholesky_ex(A.mT @ A + padded)
        hidden = values_hidden(failed)
        if not hidden and (bool(failed.any()) or not _condition(R.detach(), real) < 1e12):
            Q, upper = torch.linalg.qr(A)  # columns that float64 hardly tells apart
            signs = torch.where(upper.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
            A, R = Q * signs[:, None], (signs[..., None] * upper).mT
            A, R = A * real[:, None], torch.where(real[..., None], R, padded)
        else:
            A = A @ inverted(R).mT
        L = L @ R
        if not hidden and _condition(R.detach(), real) < 1e4:
            break
    return A, L


def _condition(R: Tensor, real: Tensor) -> float:
    """How far R R^T is from well conditioned: bases made orthonormal once are so to eleven digits below 1e4."""
    diagonal = R.diagonal(dim1=1, dim2=2)
    spread = diagonal.amax(1) / diagonal.masked_fill(~real, torch.inf).amin(1)
    return float(spread.max()) ** 2


def inverted(L: Tensor) -> Tensor:
    """The inverses of lower triangular matrices (..., d, d): halves and a product, as a batch of many is large."""
    d = L.shape[-1]
    if d <= _LEAF:
        one = torch.eye(d, dtype=L.dtype, device=L.device)
        return torch.linalg.solve_triangular(L, one.expand_as(L), upper=False)
    half = d // 2
    upper, lower = inverted(L[..., :half, :half]), inverted(L[..., half:, half:])
    below = -lower @ (L[..., half:, :half] @ upper)
    top = torch.cat([upper, upper.new_zeros(*upper.shape[:-1], d - half)], -1)
    return torch.cat([top, torch.cat([below, lower], -1)], -2)
