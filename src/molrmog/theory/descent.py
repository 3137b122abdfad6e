"""Ways down a loss over the parameters of a law, each an endless generator of its iterates.

    gradient descent    theta <- theta - eta grad L(theta)
    preconditioned      theta <- theta - P^+ grad L(theta)               P fixed: Gauss-Newton matrix at the truth
    Gauss-Newton        theta <- theta - (P(theta) + nu I)^-1 grad L     P where we are, nu by Levenberg and Marquardt
    Adam                theta <- theta - eta m / sqrt(v)                 m, v running means of the gradient, its square
    EM                  maximum likelihood of the noised rows over the same (mu, U)

EM climbs another function: on the rows it was given it ends at their likeliest law, not at the least loss.

References:
    Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", 1963.
    Kingma and Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980.
    arXiv 2601.01475, section 4 (gradient descent; two modes at +mu and -mu).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count, islice, pairwise
from typing import Protocol

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG

_ROUNDING = 1e-12  # relative, of a loss


class Loss(Protocol):
    """A smooth loss over the parameters theta of a law, with shape (P,), such as `ScoreLoss`."""

    def __call__(self, theta: Tensor) -> Tensor:
        """The loss, a scalar that autograd and `torch.func` see through."""
        ...

    def hessian(self, theta: Tensor) -> Tensor:
        """Hessian, with shape (P, P)."""
        ...

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """The part of the Hessian without second derivatives of the score, with shape (P, P)."""
        ...

    def gauge(self, theta: Tensor) -> Tensor:
        """Orthonormal directions that leave the law as it is, with shape (P, G)."""
        ...

    def theta_of(self, law: MoLRMoG) -> Tensor:
        """Parameters of a law."""
        ...

    def law_of(self, theta: Tensor) -> MoLRMoG:
        """Law of parameters."""
        ...


class SymmetricPair:
    """The paper's two modes: means +mu and -mu, one factor U for both, so that theta = (mu, U).

    A linear restriction theta_free = M theta of a loss over both modes' means and factors: gradient M^T g, Hessian
    M^T H M; of the gauge directions those are left that the restriction allows.

    Attributes:
        free: the loss over two modes in one subspace, learning "mean" and "factor" in this order.
        M: with shape (2 P, P).

    References:
        arXiv 2601.01475, section 4.1.
    """

    def __init__(self, free: Loss, law: MoLRMoG) -> None:
        """Restrict `free`, whose laws have the shapes of `law`.

        Raises:
            ValueError: the law is not two modes of one rank in one subspace.
        """
        if law.modes != (2,) or len(set(law.ranks[0])) != 1:
            raise ValueError(f"modes = {law.modes}, ranks = {law.ranks}: pass one subspace with two modes of one rank")
        d, r = law.latent_dims[0], law.ranks[0][0]
        self.free = free
        signs = law.mean.new_tensor([[1.0], [-1.0]], dtype=torch.float64)
        self.M = torch.block_diag(
            torch.kron(signs, torch.eye(d).to(signs)), torch.kron(signs.abs(), torch.eye(d * r).to(signs))
        )
        self._first = torch.cat([torch.arange(d), 2 * d + torch.arange(d * r)]).to(signs.device)

    def __call__(self, theta: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self.free(self.M @ theta)

    def hessian(self, theta: Tensor) -> Tensor:
        """Hessian, with shape (P, P)."""
        return self.M.T @ self.free.hessian(self.M @ theta) @ self.M

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """Gauss-Newton matrix, with shape (P, P)."""
        return self.M.T @ self.free.gauss_newton(self.M @ theta) @ self.M

    def gauge(self, theta: Tensor) -> Tensor:
        """Orthonormal turns of the shared U, with shape (P, G)."""
        turns = self.free.gauge(self.M @ theta)
        _, size, directions = torch.linalg.svd(self.M - turns @ (turns.T @ self.M))
        return directions[size < 1e-8].T  # what M takes into the turns

    def theta_of(self, law: MoLRMoG) -> Tensor:
        """Mean and factor of the first mode."""
        return self.free.theta_of(law)[self._first]

    def law_of(self, theta: Tensor) -> MoLRMoG:
        """The law with means +mu and -mu."""
        return self.free.law_of(self.M @ theta)


def gradient(loss: Loss, theta: Tensor) -> Tensor:
    """Gradient of a loss, with shape (P,)."""
    with torch.enable_grad():
        at = theta.detach().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]


def gradient_descent(loss: Loss, theta: Tensor, step: float) -> Iterator[Tensor]:
    """Gradient descent from theta, which is the first iterate.

    Args:
        loss: to minimise.
        theta: where to start, with shape (P,).
        step: eta.
    """
    while True:
        yield theta
        theta = theta - step * gradient(loss, theta)


def preconditioned_descent(loss: Loss, theta: Tensor, metric: Tensor) -> Iterator[Tensor]:
    """Gradient descent in a fixed metric P, in which gauge directions are not moved along.

    Args:
        loss: to minimise.
        theta: where to start, with shape (P,).
        metric: P, positive semi-definite, with shape (P, P).
    """
    inverse = torch.linalg.pinv(metric, rtol=1e-9, hermitian=True)
    while True:
        yield theta
        theta = theta - inverse @ gradient(loss, theta)


def gauss_newton_descent(loss: Loss, theta: Tensor, damping: float = 1e-2) -> Iterator[Tensor]:
    """Preconditioned by the Gauss-Newton matrix of where we are; a step that raises the loss is not taken.

    Args:
        loss: to minimise.
        theta: where to start, with shape (P,).
        damping: nu as a share of the largest eigenvalue: a third after every step that is taken, else fourfold.
    """
    value = loss(theta)
    while True:
        yield theta
        curvature, V = torch.linalg.eigh(loss.gauss_newton(theta))
        along = V.T @ gradient(loss, theta)
        for _ in range(30):
            moved = theta - V @ (along / (curvature.clamp(min=0) + damping * curvature[-1]))
            lower = loss(moved)
            if bool(lower <= value * (1 + _ROUNDING)):
                theta, value, damping = moved, lower, max(damping / 3, 1e-12)
                break
            damping *= 4


def adam(loss: Loss, theta: Tensor, learning_rate: float) -> Iterator[Tensor]:
    """Adam with a constant learning rate and the usual beta = (0.9, 0.999).

    Args:
        loss: to minimise.
        theta: where to start, with shape (P,).
        learning_rate: in units of theta.
    """
    m = v = torch.zeros_like(theta)
    for k in count(1):
        yield theta
        g = gradient(loss, theta)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g.square()
        theta = theta - learning_rate * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)


@torch.no_grad()
def expectation_maximisation(
    law: MoLRMoG, x_t: Tensor, s: float, gamma: float, weight: Tensor | None = None
) -> Iterator[MoLRMoG]:
    """EM over means and factors on noised rows; everything else is known and stays.

    With gates r_c, h = A_k^T (x_t - s b_k), v_k = s^2 tau_k^2 + gamma^2 and S_c the covariance of h under r_c,

        mu_c = (mean of h under r_c) / s,      U_c U_c^T = (top r_c eigenpairs of S_c, less v_k, at least 0) / s^2

    A mode whose gates are zero on all rows stays where it is.

    Args:
        law: where to start; it is the first iterate.
        x_t: noised rows with shape (N, D).
        s: their signal scale.
        gamma: their noise level.
        weight: how much each row counts, with shape (N,); all alike where not given.
    """
    law.require_isotropic("the descent of the score-matching loss")
    A, b = law.basis, law.offset
    v = s**2 * law.tau.square() + gamma**2  # (K,)
    h = torch.einsum("nkD,Dkd->knd", x_t[:, None] - s * b, A)  # (K, N, d)
    while True:
        yield law
        gates = law.posterior(x_t, s, gamma).responsibilities  # (N, sum n_k)
        gates = gates if weight is None else gates * weight[:, None]
        law = copy.deepcopy(law)
        for c, (k, mode) in enumerate(zip(law.component_of.tolist(), law.mode_of.tolist(), strict=True)):
            d, r = law.latent_dims[k], law.ranks[k][mode]
            total = gates[:, c].sum()
            if total < torch.finfo(total.dtype).tiny:
                continue
            share = gates[:, c] / total
            rows = h[k, :, :d]
            mean = share @ rows
            off = rows - mean
            variance, axes = torch.linalg.eigh(off.T @ (share[:, None] * off))
            lam = ((variance[d - r :] - v[k]) / s**2).clamp(min=0)
            law.mean[k, mode, :d] = mean / s
            law.factor[k, mode, :d, :r] = axes[:, d - r :] * lam.sqrt()


def minimiser(loss: Loss, theta: Tensor, tolerance: float = 1e-11) -> Tensor:
    """The minimum next to a point: Gauss-Newton while that goes down, then Newton across the gauge directions.

    Args:
        loss: to minimise.
        theta: near the minimum, with shape (P,).
        tolerance: length of the last step of Newton at most, in units of theta.

    Returns:
        The minimiser, with shape (P,).

    Raises:
        RuntimeError: Newton's method does not settle, or settles where the loss is not least.
    """
    for before, after in pairwise(islice(gauss_newton_descent(loss, theta), 200)):
        theta = after
        if float((after - before).norm()) <= 1e-3 * float(after.norm()):
            break
    for _ in range(30):
        Q = off_gauge(loss.gauge(theta))
        curvature, V = torch.linalg.eigh(Q.T @ loss.hessian(theta) @ Q)
        step = Q @ V @ ((V.T @ (Q.T @ gradient(loss, theta))) / curvature)
        theta = theta - step
        if float(step.norm()) <= tolerance and bool(curvature[0] > 0):
            return theta
    raise RuntimeError("Newton's method finds no minimum here: start nearer to one")


def off_gauge(gauge: Tensor) -> Tensor:
    """Orthonormal basis of all that is across the gauge directions (P, G), with shape (P, P - G)."""
    return torch.linalg.qr(gauge, mode="complete").Q[:, gauge.shape[1] :]
