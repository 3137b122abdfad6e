"""The curvature of the score-matching loss at and around the truth, with soft gates, and its closed forms.

At the truth the Hessian of the population loss is the Gauss-Newton matrix E[J^T J] (see `theory.score_loss`). Its
eigenvalues off the gauge directions say how fast gradient descent converges, kappa = largest / smallest, and the radius
within which the smallest stays positive, how far from the truth it may start.

Separated modes. Where one gate is 1 the score of x_t ~ N(s m, Sigma) is -Sigma^-1 (x - s m), affine in x. With
M = (s^2 U U^T + v)^-1 in the latent space, v = s^2 tau^2 + gamma^2, and y = A^T x - s (A^T b + mu) ~ N(0, M^-1),

    change of mu by h    moves the score by s M h            curvature s^2 |M h|^2
    change of U by H     moves the score by s^2 M E M y      curvature s^4 tr(M^2 E M E),   E = H U^T + U H^T
    change of A by B     with A^T B = 0, C = U U^T           curvature tr(B G B^T),
                         G = sum_l pi_l [ (s^2 / v^2) mu mu^T + s^4 C (M / v^2 + M^2 / v) C ]

times the weight of the mode (of the subspace, for A); mu and U of different modes do not interact. With the eigenform
U = Q diag(lam)^1/2 R^T, Lam_i = s^2 lam_i + v (lam_i = 0 off span U), X = Q^T H R, the second is a sum of

    s^4 (Lam_i + Lam_j) / (Lam_i Lam_j)^2 (X_ij lam_j^1/2 + X_ji lam_i^1/2)^2     over i < j
    4 s^4 lam_i / Lam_i^3 X_ii^2                                                  over i

zero for the r (r - 1) / 2 rotations of U. With lam = 1, tau = 0, c = s^2 / (s^2 + gamma^2): mu has the curvature
s^2 / (s^2 + gamma^2)^2 along U and s^2 / gamma^4 across it; U has c^2 (s^2 + 2 gamma^2) / gamma^4 out of its span and
4 s^4 / (s^2 + gamma^2)^3 in it.

Around the truth. Moving mu by delta across U couples a turn of U towards delta with a move of mu along U. To first
order in delta their 2 x 2 block stops being positive at |delta| = v / (s (Lam + v)^1/2), Lam = s^2 lam + v, about
gamma^2 / s at low noise, whatever separation and weight: to that order no ball of convexity is larger.

As printed. The paper's score is -(y - delta) / gamma^2, delta = c U U^T y with c fixed, right for orthonormal U alone.
A change of U then has the curvature (c^2 / gamma^4) tr(E Y E), Y = E[y y^T]. The full text was not at hand; known is
that its lambda_min(H_UU) vanishes when mu is orthogonal to U. Of what Y may have stood for,

    Y = s^2 U U^T + gamma^2 I    y about its own mode: nothing vanishes; in the span of U the curvature is
                                 ((s^2 + gamma^2) / gamma^2)^2 times too large, since c does not follow U
    Y = s^2 mu mu^T              y not centred, and x replaced by s mu (separation >> gamma): E mu = H a + U H^T mu,
                                 a = U^T mu, which for a = 0 is zero for every H with H^T mu = 0

only the second vanishes: for r = 1 its smallest eigenvalue is at most (c^2 s^2 / gamma^4) a^2, for r >= 2 it is always
zero. That is a reconstruction, not a quotation; :func:`delta_factor_block` takes any Y.

References:
    arXiv 2601.01475, section 6 (local strong convexity).
    Lehoucq, Sorensen, Yang, ARPACK users' guide, 1998 (implicitly restarted Lanczos).
    Hasofer, Lind, Exact and invariant second-moment code format, 1974 (the nearest point of a limit surface).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG
from molrmog.seeds import numpy_generator
from molrmog.theory.score_loss import ScoreLoss

Matrix = Literal["hessian", "gauss-newton"]
_ROUNDING = 1e-12  # of the largest eigenvalue


@dataclass(frozen=True)
class Curvature:
    """The eigenvalues of a Hessian off the gauge directions.

    Attributes:
        eigenvalues: ascending, with shape (P - G,), or only some at both ends where found without forming the matrix.
        vectors: of these, in the same order, with shape (P, eigenvalues).
        gauge: number G of gauge directions, left out.
    """

    eigenvalues: Tensor
    vectors: Tensor
    gauge: int

    @property
    def smallest(self) -> float:
        """The constant alpha of strong convexity, where positive."""
        return float(self.eigenvalues[0])

    @property
    def largest(self) -> float:
        """The constant L' of smoothness."""
        return float(self.eigenvalues[-1])

    @property
    def kappa(self) -> float:
        """Condition number L' / alpha; infinite where alpha is negative, or rounding: 1e-12 of L' or less."""
        return self.largest / self.smallest if self.smallest > _ROUNDING * self.largest else math.inf


def curvature(
    loss: ScoreLoss, theta: Tensor | None = None, *, matrix: Matrix = "hessian", within: Tensor | None = None
) -> Curvature:
    """All eigenvalues of the loss's Hessian off the gauge directions of theta.

    Removing the gauge directions of theta itself gives the Hessian on the quotient by the gauge: at any theta where A
    is not learned, at an orthonormal A where it is.

    Args:
        loss: the loss.
        theta: where, with shape (P,); the truth where not given.
        matrix: "hessian", or "gauss-newton", which is the same at the truth and cheaper.
        within: changes phi -> theta + within @ phi that are allowed, with shape (P, Q), such as `symmetric_pair`;
            eigenvectors are then those of phi.

    Returns:
        The eigenvalues and eigenvectors.

    Raises:
        ValueError: there is no such matrix.
    """
    theta = loss.theta_of(loss.truth) if theta is None else theta
    _check_matrix(matrix)
    H = loss.hessian(theta) if matrix == "hessian" else loss.gauss_newton(theta)
    allowed = torch.eye(len(theta), dtype=theta.dtype, device=theta.device) if within is None else within
    free = horizontal(loss, theta, within)
    lifted = allowed @ free
    eigenvalues, vectors = torch.linalg.eigh(lifted.T @ H @ lifted)
    return Curvature(eigenvalues, free @ vectors, allowed.shape[1] - free.shape[1])


def _check_matrix(matrix: str) -> None:
    if matrix not in ("hessian", "gauss-newton"):
        raise ValueError(f"unknown matrix {matrix!r}: choose hessian or gauss-newton")


def extreme_curvature(
    loss: ScoreLoss,
    theta: Tensor | None = None,
    *,
    matrix: Matrix = "gauss-newton",
    count: int = 1,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Curvature:
    """The smallest and largest eigenvalues off the gauge directions by Lanczos, from products with vectors alone.

    Args:
        loss: the loss.
        theta: where; the truth where not given.
        matrix: "hessian" or "gauss-newton".
        count: eigenvalues at each end.
        tolerance: relative, of the residual to the eigenvalue.
        seed: of the first vector.

    Returns:
        `count` smallest and `count` largest eigenvalues.

    Raises:
        ValueError: there is no such matrix.
        scipy.sparse.linalg.ArpackNoConvergence: an eigenvalue is too close to zero or to others for this tolerance.
    """
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh

    _check_matrix(matrix)
    at = loss.theta_of(loss.truth) if theta is None else theta
    gauge = loss.gauge(at)
    product = loss.hvp if matrix == "hessian" else loss.gnvp

    def times(v: Any, shift: float) -> Any:
        w = torch.as_tensor(np.asarray(v).reshape(-1)).to(at)
        along = gauge.T @ w
        w = w - gauge @ along
        out = product(at, w)
        return (out - gauge @ (gauge.T @ out) + shift * (gauge @ along)).cpu().numpy()

    def ends(which: str, shift: float) -> tuple[Tensor, Tensor]:
        operator = cast(Any, LinearOperator)((len(at), len(at)), matvec=lambda v: times(v, shift), dtype=np.float64)
        first = numpy_generator(seed).standard_normal(len(at))
        size = min(len(at), max(64, 2 * count + 1))
        values, vectors = cast(Any, eigsh)(
            operator, k=count, which=which, v0=first, ncv=size, tol=tolerance, maxiter=200
        )
        return torch.from_numpy(values).to(at), torch.from_numpy(vectors).to(at)

    high, high_vectors = ends("LA", 0.0)
    low, low_vectors = ends("SA", float(high[-1]))  # the gauge is lifted to the other end
    values, order = torch.cat([low, high]).sort()
    return Curvature(values, torch.cat([low_vectors, high_vectors], 1)[:, order], gauge.shape[1])


def horizontal(loss: ScoreLoss, theta: Tensor, within: Tensor | None = None) -> Tensor:
    """Orthonormal basis of the changes that move the law, the complement of the gauge, with shape (P or Q, free)."""
    gauge = loss.gauge(theta)
    allowed = torch.eye(len(theta), dtype=theta.dtype, device=theta.device) if within is None else within
    moving = allowed - gauge @ (gauge.T @ allowed)
    _, lengths, axes = torch.linalg.svd(moving)
    return axes[: int((lengths > 1e-9 * lengths[0]).sum())].T


def symmetric_pair(loss: ScoreLoss) -> Tensor:
    """The paper's two modes, means +mu and -mu and one U: phi = (mu, U), theta + T phi, as T with shape (P, d + d r).

    Raises:
        ValueError: the law is not one subspace of two modes of the same rank, or other parameters are learned.
    """
    law = loss.truth
    if law.modes != (2,) or loss.learn != ("mean", "factor") or law.ranks[0][0] != law.ranks[0][1]:
        raise ValueError("a symmetric pair is one subspace with two modes of one rank: learn mean and factor alone")
    pairs = [(loss.entries(name, 0, 0), loss.entries(name, 0, 1), sign) for name, sign in (("mean", -1), ("factor", 1))]
    eye = torch.eye(sum(len(part) for part in loss._at.values()), dtype=torch.float64, device=loss.x_t.device)
    return torch.cat([eye[:, first] + sign * eye[:, second] for first, second, sign in pairs], 1)


def mean_block(U: Tensor, s: float, v: float) -> Tensor:
    """Curvature in mu of a separated mode of weight one, with shape (d, d).

    Args:
        U: the mode's factor, with shape (d, r).
        s: signal scale.
        v: variance s^2 tau^2 + gamma^2 off the span of U.
    """
    M = _precision(U, s, v)
    return s**2 * M @ M


def factor_block(U: Tensor, s: float, v: float) -> Tensor:
    """Curvature in U, row by row, of a separated mode of weight one, with shape (d r, d r); see :func:`mean_block`."""
    M = _precision(U, s, v)
    E = _change_of_covariance(U)
    return s**4 * torch.einsum("aij,jk,bkl,li->ab", E, M, E, M @ M)


def basis_block(law: MoLRMoG, k: int, s: float, gamma: float) -> Tensor:
    """Curvature G in the basis of subspace k out of its span, tr(B G B^T), of separated modes, with shape (d, d)."""
    part = law.subspace(k)
    v = s**2 * part.isotropic_tau("the curvature of separated modes") ** 2 + gamma**2
    G = torch.zeros_like(part.means.T @ part.means)
    for weight, mu, U in zip(part.mode_weights, part.means, part.factors, strict=True):
        M, C = _precision(U, s, v), U @ U.T
        G += weight * ((s / v) ** 2 * torch.outer(mu, mu) + s**4 * C @ (M / v**2 + M @ M / v) @ C)
    return part.weight * G


def delta_factor_block(U: Tensor, Y: Tensor, s: float, gamma: float) -> Tensor:
    """Curvature in U of the printed score -(y - c U U^T y) / gamma^2, with shape (d r, d r); Y = E[y y^T], (d, d)."""
    c = s**2 / (s**2 + gamma**2)
    E = _change_of_covariance(U)
    return c**2 / gamma**4 * torch.einsum("aij,jk,bki->ab", E, Y, E)


def shift_radius(lam: float, s: float, v: float) -> float:
    """How far mu of a separated mode may move across U, to first order, with lam the variance along U; v as above."""
    return v / (s * math.sqrt(s**2 * lam + 2 * v))


def separated_blocks(law: MoLRMoG, s: float, gamma: float) -> dict[tuple[str, int, int], Tensor]:
    """Closed forms of the blocks of every mode's mean and factor, its weight included, by (name, subspace, mode)."""
    blocks: dict[tuple[str, int, int], Tensor] = {}
    for k in range(law.subspaces):
        part = law.subspace(k)
        v = s**2 * part.isotropic_tau("the curvature of separated modes") ** 2 + gamma**2
        for mode, (weight, U) in enumerate(zip(part.mode_weights, part.factors, strict=True)):
            blocks["mean", k, mode] = part.weight * weight * mean_block(U, s, v)
            blocks["factor", k, mode] = part.weight * weight * factor_block(U, s, v)
    return blocks


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest relative error of `found` in any direction in which `expected` (n, n), semidefinite, is not zero.

    Zero where there is no direction, as in the factor of a mode of rank 0.
    """
    values, vectors = torch.linalg.eigh(expected)
    if not len(values):
        return 0.0
    kept = values > 1e-9 * values[-1]
    white = vectors[:, kept] / values[kept].sqrt()
    return float((torch.linalg.eigvalsh(white.T @ found @ white) - 1).abs().max())


def convex_radius(
    loss: ScoreLoss,
    direction: Tensor,
    *,
    within: Tensor | None = None,
    start: float = 0.5,
    limit: float = 16.0,
    tolerance: float = 0.02,
) -> float:
    """Distance from the truth along a direction at which the smallest non-gauge eigenvalue of the Hessian reaches zero.

    Doubling or halving from `start` brackets the zero, bisection finds it; a loss that loses and regains convexity
    between two of the distances looked at is not seen.

    Args:
        loss: the loss.
        direction: of unit length, with shape (P,), or (Q,) where `within` is given.
        within: see `curvature`.
        start: the first distance looked at.
        limit: beyond which is not looked.
        tolerance: relative.

    Returns:
        The distance, in data units; infinite where none up to `limit` was found.
    """
    theta = loss.theta_of(loss.truth)
    step = direction if within is None else within @ direction
    start = min(max(start, 1e-6), limit)

    def convex(r: float) -> bool:
        return curvature(loss, theta + r * step, within=within).smallest > 0

    low, high = start, start
    if convex(start):
        while convex(high := 2 * high):
            low = high
            if high >= limit:
                return math.inf
    else:
        while not convex(low := low / 2):
            high = low
            if low < 1e-6:
                return 0.0
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if convex(middle) else (low, middle)
    return (low + high) / 2


def worst_direction(
    loss: ScoreLoss, direction: Tensor, *, within: Tensor | None = None, steps: int = 4, **options: float
) -> tuple[Tensor, float]:
    """A direction of small radius: descent to the nearest point where the smallest eigenvalue is zero.

    At the nearest point of the surface lambda_min = 0 the way to it is along -grad lambda_min. Each step turns the
    direction there, or half way where that is farther, with grad lambda_min = D^3 L[v, v, .] by second differences of
    the gradient along the eigenvector v. What it finds bounds the true radius from above.

    Args:
        loss: the loss.
        direction: to start from, of unit length and finite radius.
        within: see `curvature`.
        steps: turns at most.
        options: of `convex_radius`.

    Returns:
        The direction and its radius.
    """
    theta = loss.theta_of(loss.truth)
    free = horizontal(loss, theta, within)

    def lifted(phi: Tensor) -> Tensor:
        return phi if within is None else within @ phi

    radius = convex_radius(loss, direction, within=within, **options)
    h = 1e-3
    for _ in range(steps):
        if not 0 < radius < math.inf:
            break
        at = theta + radius * lifted(direction)
        v = h * lifted(curvature(loss, at, within=within).vectors[:, 0])
        slope = (loss.gradient(at + v) - 2 * loss.gradient(at) + loss.gradient(at - v)) / h**2
        slope = free @ (free.T @ (slope if within is None else within.T @ slope))
        turned = -slope / slope.norm()
        for candidate in (turned, direction + turned):
            candidate = candidate / candidate.norm()
            found = convex_radius(loss, candidate, within=within, **(options | {"start": radius}))
            if found < radius:
                break
        gained = 1 - found / radius
        if gained > 0:
            direction, radius = candidate, found
        if gained < 0.02:
            break
    return direction, radius


def _precision(U: Tensor, s: float, v: float) -> Tensor:
    eye = torch.eye(len(U), dtype=U.dtype, device=U.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(s**2 * U @ U.T + v * eye))


def _change_of_covariance(U: Tensor) -> Tensor:
    """H U^T + U H^T for each unit change H of an entry of U, row by row, with shape (d r, d, d)."""
    H = torch.eye(U.numel(), dtype=U.dtype, device=U.device).view(U.numel(), *U.shape)
    return H @ U.T + (H @ U.T).mT
