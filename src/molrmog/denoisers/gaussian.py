"""The Gaussian baseline: a mixture of low-rank Gaussians with one mode per subspace (MoLRG), as a network.

    x_0 | k ~ N(0, A_k U_k U_k^T A_k^T),      D_theta(x_t) = sum_k r_k(x_t) A_k U_k (...) U_k^T A_k^T x_t

It is the MoG network with n_k = 1 and zero means. With learned means it is what a mode more than zero buys.

References:
    Wang et al., Diffusion models learn low-dimensional distributions via subspace clustering, arXiv 2409.02426.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from molrmog.arguments import flag, is_a, shown
from molrmog.denoisers.mog import LEARNABLE, MoGDenoiser, names_to_learn
from molrmog.laws.base import check_law
from molrmog.laws.molrmog import MoLRMoG


class GaussianDenoiser(MoGDenoiser):
    """A law with one mode per subspace that is trained like a network; means and offsets zero unless they are allowed.

    Attributes:
        learned_mean: whether subspaces have means.

    Example:
        >>> law = MoLRMoG.random(dim=8, latent_dims=(3,), modes=(1,), noise=0.1, seed=0)
        >>> GaussianDenoiser(law, learn="factor").denoise(torch.zeros(1, 8), s=1.0, gamma=0.5).abs().max().item()
        0.0
    """

    def __init__(
        self,
        law: MoLRMoG,
        learn: str | Sequence[str] = "all",
        orthonormal_factors: bool = False,
        learned_mean: bool = False,
    ) -> None:
        """Start from a law, which is copied.

        Args:
            law: where training starts, with one mode per subspace.
            learn: as for `MoGDenoiser`; "all" leaves out means and offsets where they are zero.
            orthonormal_factors: as for `MoGDenoiser`.
            learned_mean: allow means; without it those of the law are set to zero.

        Raises:
            ValueError: the law has more modes, or `learn` names means that are not allowed.
        """
        check_law(law)
        learned_mean = flag(learned_mean, "learned_mean")
        if any(n > 1 for n in law.modes):
            raise ValueError(f"modes = {law.modes}: a MoLRG has one mode per subspace; for more use MoGDenoiser")
        if is_a(learn, str) and learn == "all":
            learn = [name for name in LEARNABLE if learned_mean or name not in ("offset", "mean")]
        elif not learned_mean and {"offset", "mean"} & set(names_to_learn(learn)):
            raise ValueError(f"learn = {shown(learn)} with zero means: pass learned_mean=True, or leave means out")
        super().__init__(law, learn, orthonormal_factors)
        self.learned_mean = learned_mean
        if not learned_mean:
            with torch.no_grad():
                self.law.mean.zero_()
                self.law.offset.zero_()

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network."""
        return {**super().config, "learned_mean": self.learned_mean}

    @classmethod
    def from_moments(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        mean: Tensor,
        covariance: Tensor,
        rank: int | None = None,
        noise: float | None = None,
        learned_mean: bool = False,
        **options: Any,
    ) -> Self:
        """Start at the Gaussian with two moments of the data; with zero mean, those about zero.

        Args:
            mean: of the data, with shape (d,).
            covariance: of the data, with shape (d, d).
            rank: of the Gaussian; d where not given.
            noise: tau; the root mean variance of the axes left out where not given.
            learned_mean: allow a mean.
            options: `learn` and `orthonormal_factors`.
        """
        if not learned_mean:
            mean, covariance = torch.zeros_like(mean), covariance + mean[:, None] * mean
        network = super().from_moments(mean, covariance, 1, rank, noise, learned_mean=learned_mean, **options)
        with torch.no_grad():
            network.law.mean[0, 0] = mean
        return network
