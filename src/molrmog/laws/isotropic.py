"""Isotropic noise: one variance tau_k^2 off each subspace, and a noise level for every row at no cost.

With the eigenform U_c U_c^T = V_c diag(lam_c) V_c^T, computed once per parameter change, a change of noise level only
shifts eigenvalues, Lam_c = s^2 lam_c + v_k with v_k = s^2 tau_k^2 + gamma^2, and nothing is factorised per noise level:

    h_k    = A_k^T (x - s b_k),    rho2_k = |x - s b_k|^2 - |h_k|^2
    w_c    = Lam_c^-1/2 V_c^T (h_k - s mu_c)
    log N_c(x) = -1/2 [ |w_c|^2 + rho2_k / v_k + sum_j log Lam_cj + (D - d_k) log v_k + D log 2 pi ]
    E[z | x, c] = mu_c + s V_c lam_c Lam_c^-1/2 w_c
    score   = sum_k (1 / v_k) [ s (R_k b_k + A_k zeta_k) - R_k x ]
    denoise = sum_k (1 / v_k) [ gamma^2 (R_k b_k + A_k zeta_k) + s tau_k^2 R_k x ]

Where a subspace is all of R^D, rho2 is zero, its v is the law's smallest by far, and its term of the score is written
without it, - A_k sum_l r_kl V Lam^-1 V^T (h - s mu).

Gradients.  V_c is held constant: V^T U U^T V = diag(lam) + E stays differentiable with E zero in value but not in
derivative, and E enters (s^2 U U^T + v)^-1 by its Neumann series. First and second derivatives are exact, equal
eigenvalues and padding included, where differentiating an eigenbasis would not be.

References:
    arXiv 2601.01475, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from molrmog.laws.base import normal, orthonormal
from molrmog.laws.levels import Level, Shares, Way, center_of, lifted, narrowed, side_by_side, squared_norm
from molrmog.laws.responsibilities import Dense, spread_of_scores

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Eigenform:
    """What the formulas need of the parameters, computed once per parameter change; d is the largest d_k."""

    center: Tensor  # (D,)          the mean of x_0
    basis: Tensor  # (K, D, d)      A_k
    offset: Tensor  # (K, D)        b_k
    down: Tensor  # (D, K d + K + 1 + padding)
    shift: Tensor  # (K, d)         A_k^T (b_k - center)
    offset2: Tensor  # (K,)         |b_k - center|^2
    axes: Tensor  # (K, n, d, d)    V^T
    mean: Tensor  # (K, n, d)
    white_mean: Tensor  # (K, n, d) V^T mu
    lam: Tensor  # (K, n, d)
    tau2: Tensor  # (K,)
    log_weight: Tensor  # (K, n)    log w_k + log pi_kl, -inf where padded
    coupling: Tensor | None  # (K, n, d, d)  E, zero in value; present where derivatives are wanted
    filled: tuple[bool, ...]  # whether each subspace is all of R^D, so that nothing lies off it
    least: Tensor  # (K,)           smallest variance of x_0 off a subspace, or inside one that is all of R^D
    extent: float  # root mean square distance of x_0 from the origin; NaN where the values are hidden

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
        filled: Sequence[bool],
        differentiable: bool,
    ) -> Eigenform:
        """Diagonalise every mode.

        Args:
            basis: A_k, with shape (D, K, d).
            offset: b_k, with shape (K, D).
            mean: mu_kl, with shape (K, n, d).
            factor: U_kl, with shape (K, n, d, r).
            tau: tau_k, with shape (K,).
            log_weight: log w_k + log pi_kl, with shape (K, n).
            filled: whether each subspace is all of R^D.
            differentiable: keep the derivatives in the parameters.

        Returns:
            The eigenform, in float64.
        """
        A = orthonormal(basis.transpose(0, 1))  # (K, D, d)
        b, mu, U = (p.double() for p in (offset, mean, factor))
        covariance = U @ U.mT  # (K, n, d, d)
        V = torch.linalg.eigh(covariance.detach()).eigenvectors
        spectral = V.mT @ covariance @ V
        lam = spectral.diagonal(dim1=2, dim2=3)
        tau2 = tau.double().square()
        center, extent = center_of(A, b, mu, lam, log_weight, tau2[:, None])
        about = b - center
        # What is left of a variance by rounding is none; it keeps its derivative.
        lam = lam - torch.where(lam > 1e-14 * lam.amax(2, keepdim=True), 0.0, lam).detach()
        real, whole = log_weight.isfinite()[..., None], torch.tensor(filled, device=lam.device)
        flattest = (
            torch.where(real, lam.detach(), torch.inf).flatten(1).amin(1) if lam.numel() else lam.new_zeros(len(b))
        )
        return cls(
            center=center,
            basis=A.contiguous(),
            offset=b,
            down=side_by_side(A, about, center),
            shift=(A.mT @ about[..., None])[..., 0],
            offset2=about.square().sum(1),
            axes=V.mT.contiguous(),
            mean=mu,
            white_mean=(V.mT @ mu[..., None])[..., 0],
            lam=lam,
            tau2=tau2,
            log_weight=log_weight,
            coupling=spectral - lam.diag_embed() - (spectral - lam.diag_embed()).detach() if differentiable else None,
            filled=tuple(filled),
            least=tau2.detach() + torch.where(whole, flattest, 0.0),
            extent=extent,
        )

    def to(self, dtype: torch.dtype) -> Eigenform:
        """The eigenform in another dtype."""
        if dtype == self.offset.dtype:
            return self
        return replace(self, **{name: narrowed(t, dtype) for name, t in vars(self).items() if isinstance(t, Tensor)})

    @property
    def covariance(self) -> Tensor:
        """U_c U_c^T, with shape (K, n, d, d)."""
        return self.axes.mT @ (self.lam[..., None] * self.axes)

    @property
    def variance_off(self) -> Tensor:
        """tau^2, with shape (K, 1)."""
        return self.tau2[:, None]

    def draw_latent(self, k: Tensor, mode: Tensor, generator: torch.Generator | None) -> Tensor:
        """mu_c + V_c lam_c^1/2 eps, with shape (rows, d); k and mode with shape (rows,)."""
        spread = self.lam[k, mode].sqrt()
        eps = normal(tuple(spread.shape), generator, like=self.mean)
        return self.mean[k, mode] + ((spread * eps)[:, None] @ self.axes[k, mode])[:, 0]

    def at(self, s: Tensor, gamma: Tensor) -> IsotropicLevel:
        """The law at noise levels s, gamma (L or 1,) in the dtype of the form, L = 1 or one per row."""
        s, gamma = torch.broadcast_tensors(s, gamma)
        D, d = self.basis.shape[1:]
        v = s.square() * self.tau2[:, None] + gamma.square()  # (K, L)
        Lam = s.square() * self.lam[..., None] + v[:, None, None]  # (K, n, d, L)
        root = Lam.rsqrt()
        # One noise level for all rows is folded into the products.
        shared = Lam.shape[-1] == 1 and self.coupling is None
        fold = root if shared else torch.ones_like(root[..., :1])
        logdet = Lam.log().sum(2)  # (K, n, L)
        if self.coupling is not None:
            squares = self.coupling.square() @ root.square()
            logdet = logdet - 0.5 * s**4 * (squares * root.square()).sum(2)
        least = s.square() * self.least[:, None] + gamma.square()
        return IsotropicLevel(
            center=self.center,
            s=s,
            gamma2=gamma.square(),
            down=self.down,
            basis=self.basis,
            offset=self.offset,
            shift=self.shift,
            offset2=self.offset2,
            far=s.square() * self.center.square().sum() / least,
            v=v,
            const=(D - d) * v.log() + D * _LOG_2PI,
            base=self.log_weight[..., None] - 0.5 * logdet,
            whiten=(torch.cat([self.axes, -self.white_mean[..., None]], 3) * fold).flatten(1, 2),
            root=None if shared else root.flatten(1, 2),
            mean=self.mean.mT,
            back=((self.lam[..., None] * fold) * self.axes).flatten(1, 2).mT,
            pull=(fold * self.axes).flatten(1, 2).mT,
            filled=self.filled,
            form=self,
            least=least,
            Lam=Lam,
        )


@dataclass(frozen=True)
class IsotropicLevel(Level):
    """A law of isotropic noise at noise levels; h, rho2 and zeta are in data units.

    Attributes:
        form: that it is made of.
        least: least variance that rounding shows in, with shape (K, L).
        Lam: s^2 lam + v, with shape (K, n, d, L).
    """

    form: Eigenform
    least: Tensor
    Lam: Tensor

    def own(self, at: Tensor | slice) -> IsotropicLevel:
        """The level of some of the rows."""
        found = super().own(at)
        return found if len(self.s) == 1 else replace(found, least=self.least[:, at], Lam=self.Lam[..., at])

    def energy(self, x: Tensor) -> Tensor:
        """|x|^2, with shape (1, B)."""
        return squared_norm(x)[None]

    def size(self, energy: Tensor) -> Tensor:
        """|x - s center|^2, or |s (b_k - center)|^2 where that is larger, over the least variance."""
        return torch.maximum(energy, self.s.square() * self.offset2[:, None]) / self.least

    def about(self, k: int, x: Tensor) -> Tensor:
        """X - s b_k."""
        return torch.addcmul(x, self.s[:, None], self.offset[k], value=-1)

    def about_(self, k: int, x: Tensor) -> Tensor:
        """The same in place."""
        return x.addcmul_(self.s[:, None], self.offset[k], value=-1)

    def score_shares(self) -> Shares:
        """S / v_k, s / v_k and -1 / v_k; 1, 0 and 0 where a subspace is all of R^D."""
        over = self.v.reciprocal()
        inside = over * self.s
        if any(self.filled):
            over = over * self.open
            inside = inside.where(self.open > 0, 1.0)
        return Shares(inside, over * self.s, -over, 0.0, self.filled)

    def mean_shares(self) -> Shares:
        """Shares gamma^2 / v_k, gamma^2 / v_k and s tau_k^2 / v_k."""
        over = self.v.reciprocal()
        inside = over * self.gamma2
        return Shares(inside, inside, over * (self.s * self.form.tau2[:, None]), 1.0, (False,) * len(self.filled))

    def solved(self, white: Tensor) -> Tensor:
        """(I + s^2 Lam^-1/2 E Lam^-1/2)^-1 w, by its Neumann series."""
        if self.root is None or self.form.coupling is None:
            return white
        first = -self.s.square() * self.root * self._coupled(self.root * white)
        second = -self.s.square() * self.root * self._coupled(self.root * first)
        return white + first + second

    def spread(self, white: Tensor, way: Way) -> Tensor:
        """sum_l V (lam + E) of what the modes weigh, with shape (K, B, d)."""
        if self.form.coupling is None:
            return super().spread(white, way)
        lam = self.form.lam.flatten(1)[..., None]
        return (lam * white + self._coupled(white)).mT @ self.pull.mT

    def _coupled(self, white: Tensor) -> Tensor:
        """E of every mode times its numbers, with shape (K, n d, B)."""
        assert self.form.coupling is not None
        shape = self.form.lam.shape[1:]
        return (self.form.coupling @ white.unflatten(1, shape)).flatten(1, 2)

    # --- what is asked for less often, in float64

    def pulls(self, e: Dense) -> Tensor:
        """Lam_c^-1 V_c^T (h - s mu_c), with shape (K, B, n, d): minus a mode's score inside its subspace."""
        return (e.white.unflatten(1, self.form.lam.shape[1:]) * self.Lam.rsqrt()).permute(0, 3, 1, 2)

    def divergence(self, e: Dense) -> Tensor:
        """Divergence of the score, with shape (B,)."""
        D, _, _, d = self.shapes
        norm2 = self.pulls(e).square().sum(-1) + (e.seen.rho2 / self.v.square())[..., None]  # (K, B, n)
        trace = self.Lam.reciprocal().sum(2).transpose(1, 2) + ((D - d) / self.v)[..., None]
        return spread_of_scores(e, e.shares.permute(0, 2, 1), norm2, trace)

    def variance(self, e: Dense, onto: Tensor | None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""
        form, s, gamma2 = self.form, self.s, self.gamma2
        K = len(form.mean)

        def turned(rows: Tensor) -> Tensor:
            return rows if onto is None else rows @ onto.T.to(rows.dtype)

        r = e.shares.permute(0, 2, 1)  # (K, B, n)
        pulls = self.pulls(e)
        mean = turned(e.denoise())
        norm2 = 1.0 if onto is None else onto.to(mean.dtype).square().sum(1)
        total = torch.zeros_like(mean)
        for k in range(K):  # over subspaces, so that one subspace's loadings are held at a time
            basis = turned(form.basis[k].T)  # (d, M)
            loadings = form.axes[k].flatten(0, 1) @ basis  # (n d, M)
            v = self.v[k, :, None]  # (B or 1, 1)
            shrink = gamma2[:, None] / v
            isotropic = form.tau2[k] * shrink * r[k].sum(1, keepdim=True)
            Lam = self.Lam[k].permute(2, 0, 1)  # (B or 1, n, d)
            along = (form.lam[k] / Lam) * (shrink.square() * v * r[k])[..., None]  # (B, n, d)
            total = total + isotropic * norm2 + along.flatten(1) @ loadings.square()
            z = form.mean[k] + s[:, None, None] * torch.einsum("bni,nid->bnd", form.lam[k] * pulls[k], form.axes[k])
            clean = s[:, None] * form.tau2[k] / v * e.seen.rows + shrink * form.offset[k]
            apart = (turned(clean) - mean)[:, None] + shrink[..., None] * (z @ basis)  # (B, n, M)
            total = total + torch.einsum("bn,bnm->bm", r[k], apart.square())
        return total

    def draw(self, e: Dense, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 given rows, with shape (any, D); k, mode, row with shape (any,)."""
        form, at = self.form, row if self.v.shape[1] > 1 else torch.zeros_like(row)
        s, gamma2 = (level[at, None] for level in (self.s, self.gamma2))
        v, lam, Lam = self.v[k, at, None], form.lam[k, mode], self.Lam[k, mode, :, at]
        z = form.mean[k, mode] + self._turned(k, mode, s * lam * self.pulls(e)[k, row, mode])
        eps = normal(tuple(z.shape), generator, like=z)
        z = z + self._turned(k, mode, (lam * v / Lam).sqrt() * eps)
        clean = form.offset[k] + lifted(form.basis, k, z)
        rest = e.seen.rows[row] - s * clean
        noise = normal(tuple(clean.shape), generator, like=clean)
        tau2 = form.tau2[k, None]
        return clean + s * tau2 / v * rest + (tau2 * gamma2 / v).sqrt() * noise

    def _turned(self, k: Tensor, mode: Tensor, y: Tensor) -> Tensor:
        """V_c y, with shape (any, d)."""
        return (y[:, None] @ self.form.axes[k, mode])[:, 0]
