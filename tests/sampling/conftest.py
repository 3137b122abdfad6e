"""The oracle of this room: one dense Gaussian in float64, whose denoiser and probability flow are textbook formulas."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG


@dataclass
class DenseGaussian:
    mean: Tensor  # (D,)
    cov: Tensor  # (D, D)

    def _marginal(self, s, gamma):
        return s**2 * self.cov + gamma**2 * torch.eye(len(self.mean)).to(self.cov)

    def denoise(self, x, s, gamma):
        gain = s * self.cov @ torch.linalg.inv(self._marginal(s, gamma))
        return self.mean + (x - s * self.mean) @ gain.T

    def flow(self, x, level, next_level):
        """The map x -> s' m + (s'^2 C + gamma'^2)^(1/2) (s^2 C + gamma^2)^(-1/2) (x - s m)."""
        _, vectors = torch.linalg.eigh(self.cov)
        scales = [(vectors.T @ self._marginal(*each) @ vectors).diagonal().sqrt() for each in (level, next_level)]
        transport = vectors @ torch.diag(scales[1] / scales[0]) @ vectors.T
        return next_level[0] * self.mean + (x - level[0] * self.mean) @ transport.T


@pytest.fixture(scope="session")
def dense_of():
    """Turns a law with one mode into the dense Gaussian that it is."""

    def dense(law: MoLRMoG) -> DenseGaussian:
        only = law.subspace(0)
        factor = only.basis @ only.factors[0]
        cov = factor @ factor.T + torch.as_tensor(only.tau, dtype=torch.float64) ** 2 * torch.eye(
            law.dim, dtype=factor.dtype
        )
        return DenseGaussian(only.offset + only.basis @ only.means[0], cov)

    return dense


@pytest.fixture(scope="session")
def gaussian() -> DenseGaussian:
    root = torch.tensor([[1.0, 0.3, -0.2], [0.0, 0.6, 0.4], [0.0, 0.0, 0.2]], dtype=torch.float64)
    return DenseGaussian(torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64), root @ root.T)
