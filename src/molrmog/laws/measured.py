"""A law seen through a linear measurement y = H x_0 + n, n ~ N(0, R), and perhaps beside a noised row x_t.

Seen first through x_t = s x_0 + gamma eps, with p_k = 1 / (s^2 psi_k + gamma^2) and w_k = 1 - s^2 psi_k p_k,

    x_0 | z, x_t, k = w_k (b_k + A_k z) + s psi_k p_k x_t + N(0, Phi_k),     Phi_k = diag(psi_k w_k)
    y   | z, x_t, k = H w_k (b_k + A_k z) + s H psi_k p_k x_t + N(0, C_k),   C_k = H Phi_k H^T + R = L_k L_k^T

so that both together are isotropic with unit variance in whitened rows, D + m numbers that z has loadings for:

    a_k  = [ P_k^1/2 (x_t - s b_k) ;  L_k^-1 (y - H (w_k b_k + s psi_k p_k x_t)) ]
    loadings [ s P_k^1/2 A_k       ;  L_k^-1 H w_k A_k ]

and go on as in `molrmog.laws.levels`: orthonormal loadings W_k with triangles T_k, h = W_k^T a, rho2 = |a|^2 - |h|^2,
modes in d dimensions. With f_c = w_k (b_k + A_k E[z | x_t, y, c]) + s psi_k p_k x_t,

    E[x_0 | x_t, y] = sum_c r_c [ f_c + Phi_k H^T C_k^-1 (y - H f_c) ]
    a draw          = f + e + Phi_k H^T C_k^-1 (y - H (f + e) - n)      of draws of z, e ~ N(0, Phi_k), n ~ N(0, R)

The measurement costs K (m^2 D + m^3 / 3) once (m^2 D once in all where noise is isotropic), and a row K m (D + m)
beside its two products. All of it in float64.

References:
    Matheron's rule, see Wilson et al., "Pathwise conditioning of Gaussian processes", 2021.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from molrmog.laws.base import normal
from molrmog.laws.diagonal import Factors, inverted, posterior_factor, whitened
from molrmog.laws.levels import squared_norm
from molrmog.laws.responsibilities import SolvedEvidence

_LOG_2PI = math.log(2 * math.pi)
_CANCELS = 1e9  # size of a row from which what lies off the subspaces is taken from the residual


@dataclass(frozen=True)
class Measurement:
    """Y = H x_0 + n, in the coordinates of a law.

    Attributes:
        H: with shape (m, D).
        noise: standard deviations of n, with shape (m,), or a factor N of its covariance R = N N^T, with shape (m, m).
    """

    H: Tensor
    noise: Tensor

    @functools.cached_property
    def covariance(self) -> Tensor:
        """R, with shape (m, m)."""
        return self.noise.square().diag() if self.noise.ndim == 1 else self.noise @ self.noise.T

    @functools.cached_property
    def gram(self) -> Tensor:
        """H H^T, with shape (m, m)."""
        return self.H @ self.H.T

    def drawn(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """Draws of n, with shape (rows, m)."""
        eps = normal((rows, len(self.H)), generator, like=self.H)
        return eps * self.noise if self.noise.ndim == 1 else eps @ self.noise.T


class MeasuredLevel:
    """A law, seen through a measurement and at a noise level: what all rows share.

    Attributes:
        form: the law, in float64.
        measurement: what is measured.
        s: signal scale of x_t; zero where there is no x_t.
        root: p_k^1/2, with shape (K or 1, D).
        unknown: w_k, with shape (K or 1, D).
        of_x: s psi_k p_k, with shape (K or 1, D).
        phi: psi_k w_k, with shape (K or 1, D).
        L: Cholesky factors of C_k, with shape (K or 1, m, m).
        W: orthonormal loadings, with shape (K, D + m, d); (K, m, d) where there is no x_t.
        T: triangles, loadings = W_k T_k^T, with shape (K, d, d).
    """

    def __init__(self, form: Factors, measurement: Measurement, s: float = 0.0, gamma: float = math.inf) -> None:
        """Whiten the law.

        Args:
            form: the law, in float64.
            measurement: what is measured.
            s: signal scale of x_t.
            gamma: its noise, infinite where there is no x_t.

        Raises:
            ValueError: y has no density: it measures something twice, or what the law is certain of, without noise.
        """
        self.form, self.measurement, H = form, measurement, measurement.H
        psi, self.beside = form.psi, math.isfinite(gamma)
        self.s = s if self.beside else 0.0
        precision = 1 / (s * s * psi + gamma * gamma) if self.beside else torch.zeros_like(psi)
        self.root, self.of_x = precision.sqrt(), self.s * psi * precision
        self.unknown = gamma * gamma * precision if self.beside else torch.ones_like(psi)
        self.phi = psi * self.unknown
        alike = bool((self.phi == self.phi[:, :1]).all())
        seen = self.phi[:, :1, None] * measurement.gram if alike else (H * self.phi[:, None]) @ H.T
        C = seen + measurement.covariance
        self.L, failed = torch.linalg.cholesky_ex(C)
        if bool(failed.any()):
            raise ValueError(
                "this measurement has no density under the law: two of its numbers say the same, or what the law is "
                "certain of, and without noise: pass noise > 0, or leave them out"
            )
        K, d = form.basis.shape[0], form.basis.shape[2]
        own = torch.linalg.solve_triangular(self.L, H * self.unknown[:, None], upper=False)  # (K or 1, m, D)
        parts = [own @ form.basis]
        if self.beside:
            parts = [self.s * self.root[..., None] * form.basis, *parts]
        self.W, self.T = whitened(torch.cat([part.expand(K, -1, -1) for part in parts], 1), form.real)
        self.mean, self.factor = form.mean @ self.T, self.T.mT[:, None] @ form.factor
        one = torch.eye(d, dtype=H.dtype, device=H.device)
        Cov = torch.linalg.cholesky_ex(one + self.factor @ self.factor.mT).L
        self.inverse = inverted(Cov)  # (K, n, d, d)
        logdet = 2 * Cov.diagonal(dim1=2, dim2=3).log().sum(2)
        logs = 2 * self.L.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        logs = logs - precision.log().sum(1, keepdim=True) if self.beside else logs
        const = self.W.shape[1] * _LOG_2PI + logs  # (K or 1, 1)
        self.base = form.log_weight - 0.5 * (logdet + const)  # (K, n)

    @functools.cached_property
    def posterior_factor(self) -> Tensor:
        """F_c with F_c F_c^T = Cov[z | x_t, y, c], with shape (K, n, d, r)."""
        return posterior_factor(self.form.factor, self.factor)

    def of(self, value: Tensor, k: int) -> Tensor:
        """What subspace k has of numbers (K or 1, any)."""
        return value[min(k, len(value) - 1)]

    def gained(self, k: int, rest: Tensor) -> Tensor:
        """Phi_k H^T C_k^-1 of what a measurement says beyond what was expected, from (b, m) to (b, D)."""
        solved = torch.cholesky_solve(rest.T, self.of(self.L, k)).T
        return (solved @ self.measurement.H) * self.of(self.phi, k)


class Measured(SolvedEvidence):
    """How the modes explain measurements, and perhaps noised rows beside them; in float64.

    Attributes:
        level: of the law.
        latent: E[z | x_t, y, c], with shape (K, B, n, d).
    """

    def __init__(self, level: MeasuredLevel, y: Tensor, x: Tensor | None = None, turn: Tensor | None = None) -> None:
        """Weigh rows.

        Args:
            level: of the law.
            y: measurements, with shape (B or 1, m).
            x: noised rows, with shape (B, D), where the level has any.
            turn: from gradients in y to those that a score is made of, with shape (m, D); H where not given.
        """
        form, H = level.form, level.measurement.H
        self.level = level
        y = y.double() if x is None else y.double().expand(len(x), -1)
        x = y.new_zeros(len(y), form.dim) if x is None else x.double()
        self.y, self.x, self.turn = y, x, H if turn is None else turn
        joint, latent = [], []
        for k in range(len(form.mean)):
            away = x - level.s * form.offset[k]
            expected = level.of(level.unknown, k) * form.offset[k] + level.of(level.of_x, k) * x
            rest = y - expected @ H.T
            white = torch.linalg.solve_triangular(level.of(level.L, k), rest.T, upper=False).T
            a = torch.cat([away * level.of(level.root, k), white], 1) if level.beside else white
            h = a @ level.W[k]
            squares = squared_norm(a)
            if len(squares) and not float(squares.detach().max()) <= _CANCELS:
                rho2 = squared_norm(a - h @ level.W[k].T)
            else:
                rho2 = (squares - squared_norm(h)).clamp(min=0)
            w = (h - level.mean[k][:, None]) @ level.inverse[k].mT  # (n, B, d)
            joint.append(level.base[k] - 0.5 * (squared_norm(w).T + rho2[:, None]))
            # Cov(z, h) Cov(h)^-1 (h - mean) = U U'^T C^-T w
            pulled = w @ level.inverse[k] @ level.factor[k] @ form.factor[k].mT
            latent.append((form.mean[k][:, None] + pulled).transpose(0, 1))
        self.latent = torch.stack(latent)
        self.log_joint = torch.stack(joint).transpose(1, 2).flatten(0, 1)

    @property
    def shapes(self) -> tuple[int, int, int, int]:
        """D, K, n and d."""
        return self.level.form.shapes

    def _clean(self, k: int, z: Tensor) -> Tensor:
        """E[x_0 | z, x_t, y] of subspace k, from latents (b, d) of all rows."""
        f = self._before(k, z, self.x)
        return f + self.level.gained(k, self.y - f @ self.level.measurement.H.T)

    def _before(self, k: int, z: Tensor, x: Tensor) -> Tensor:
        """E[x_0 | z, x_t] of subspace k, before the measurement."""
        form, level = self.level.form, self.level
        return level.of(level.unknown, k) * (form.offset[k] + z @ form.basis[k].T) + level.of(level.of_x, k) * x

    def denoise(self, into: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t, y], with shape (B, D)."""
        total = torch.zeros_like(self.x)
        for k, r in enumerate(self.shares.transpose(1, 2)):
            R = r.sum(1)
            z = torch.einsum("bn,bnd->bd", r, self.latent[k]) / R.clamp(min=1e-300)[:, None]
            total = total + R[:, None] * self._clean(k, z)
        return total

    def _pull(self, k: int) -> Tensor:
        """Minus the gradient in y of log N_c(y), C_k^-1 (y - H f_c), of every mode, with shape (B, n, m)."""
        level, form = self.level, self.level.form
        H = level.measurement.H
        means = level.of(level.unknown, k) * (form.offset[k] + self.latent[k] @ form.basis[k].T)
        rest = self.y[:, None] - means @ H.T
        return torch.cholesky_solve(rest.flatten(0, 1).T, level.of(level.L, k)).T.view_as(rest)

    def score(self, into: Tensor | None = None) -> Tensor:
        """Gradient in y of log p(y) where there is no x_t, taken back by `turn`, with shape (B, D)."""
        each = [(r.T[:, None] @ self._pull(k))[:, 0] for k, r in enumerate(self.shares)]
        return -torch.stack(each).sum(0) @ self.turn

    def divergence(self) -> Tensor:
        """Divergence of that gradient, with shape (B,)."""
        level, form = self.level, self.level.form
        total, r = torch.zeros_like(self.y[:, 0] if self.y.shape[1] else self.x[:, 0]), self.shares.transpose(1, 2)
        for k in range(len(r)):
            L = level.of(level.L, k)
            inverse = torch.cholesky_inverse(L) if len(L) else L
            B = inverse @ (level.measurement.H * level.of(level.unknown, k)) @ form.basis[k]  # (m, d)
            trace = inverse.trace() - (B @ level.posterior_factor[k]).square().sum((1, 2))  # (n,)
            total = total + (r[k] * (squared_norm(self._pull(k)) - trace)).sum(1)
        return total - squared_norm(self.score())

    def variance(self, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""
        level, form = self.level, self.level.form
        H = level.measurement.H

        def turned(rows: Tensor) -> Tensor:
            return rows if onto is None else rows @ onto.T.to(rows.dtype)

        mean = turned(self.denoise())
        total = torch.zeros_like(mean)
        for k, r in enumerate(self.shares.transpose(1, 2)):
            phi, L = level.of(level.phi, k), level.of(level.L, k)
            known = torch.linalg.solve_triangular(L, H * phi, upper=False)  # (m, D), Phi - known^T known is left
            off = phi if onto is None else onto.square().to(phi) @ phi
            off = (off - turned(known).square().sum(0)).clamp(min=0)
            up = level.of(level.unknown, k) * form.basis[k].T  # (d, D)
            up = up - level.gained(k, up @ H.T)
            for mode in range(r.shape[1]):
                spread = turned(level.posterior_factor[k, mode].T @ up).square().sum(0)
                apart = turned(self._clean(k, self.latent[k, :, mode])) - mean
                total = total + r[:, mode, None] * (off + spread + apart.square())
        return total

    def draw(self, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0, with shape (any, D); k, mode, row with shape (any,)."""
        level, H = self.level, self.level.measurement.H
        F = level.posterior_factor
        drawn = self.x.new_empty(len(k), level.form.dim)
        for own in k.unique().tolist():
            at = (k == own).nonzero()[:, 0]
            eps = normal((len(at), F.shape[3]), generator, like=F)
            z = self.latent[own, row[at], mode[at]] + (F[own, mode[at]] @ eps[..., None])[..., 0]
            noise = normal((len(at), level.form.dim), generator, like=F) * level.of(level.phi, own).sqrt()
            f = self._before(own, z, self.x[row[at]]) + noise
            n = level.measurement.drawn(len(at), generator)
            drawn[at] = f + level.gained(own, self.y[row[at]] - f @ H.T - n)
        return drawn
