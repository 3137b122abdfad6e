"""An oracle: a law as a mixture of D x D Gaussians, conditioned on y = H x_0 + n by textbook algebra in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from molrmog import MoLRMoG


@dataclass
class Mixture:
    """Weights (C,), means (C, D) and covariances (C, D, D)."""

    weight: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, law: MoLRMoG) -> Mixture:
        """Every mode of a law."""
        weight, mean, covariance = [], [], []
        for k in range(law.subspaces):
            part = law.subspace(k)
            A, b = part.basis.double(), part.offset.double()
            tau = torch.as_tensor(part.tau, dtype=torch.float64).expand(law.dim)
            Q = torch.eye(law.dim, dtype=torch.float64) if part.axes is None else part.axes.double()
            off = Q @ tau.square().diag() @ Q.T
            for w, mu, U in zip(part.mode_weights, part.means, part.factors, strict=True):
                weight.append(part.weight * float(w))
                mean.append(b + A @ mu.double())
                covariance.append(A @ U.double() @ U.double().T @ A.T + off)
        return cls(torch.tensor(weight, dtype=torch.float64), torch.stack(mean), torch.stack(covariance))

    def given(self, y: Tensor, H: Tensor, R: Tensor) -> tuple[Mixture, Tensor]:
        """The mixture of x_0 given one y (m,) = H x_0 + n, n ~ N(0, R), and log p(y)."""
        seen = self.covariance @ H.T  # (C, D, m)
        C = H @ seen + R
        gain = torch.linalg.solve(C, seen.mT).mT
        apart = y - self.mean @ H.T
        log_joint = self.weight.log()
        if len(y):
            log_joint = log_joint + MultivariateNormal(self.mean @ H.T, 0.5 * (C + C.mT)).log_prob(y)
        mean = self.mean + (gain @ apart[..., None])[..., 0]
        return Mixture(log_joint.softmax(0), mean, self.covariance - gain @ seen.mT), log_joint.logsumexp(0)

    def noised(self, s: float, gamma: float) -> Mixture:
        """The mixture of s x_0 + gamma eps."""
        one = torch.eye(self.mean.shape[1], dtype=torch.float64)
        return Mixture(self.weight, s * self.mean, s * s * self.covariance + gamma * gamma * one)

    def log_prob(self, x: Tensor) -> Tensor:
        """Of rows (B, D)."""
        return (self.weight.log() + MultivariateNormal(self.mean, self.covariance).log_prob(x[:, None])).logsumexp(1)

    @property
    def expectation(self) -> Tensor:
        """With shape (D,)."""
        return self.weight @ self.mean

    @property
    def spread(self) -> Tensor:
        """The covariance (D, D)."""
        apart = self.mean - self.expectation
        between = (self.weight[:, None, None] * apart[:, :, None] * apart[:, None]).sum(0)
        return (self.weight[:, None, None] * self.covariance).sum(0) + between
