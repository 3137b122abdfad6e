"""What every law offers, whatever it is made of.

A law is a distribution of x_0 that stays in its family when it is noised, x_t = s x_0 + gamma eps, so that its density,
score, denoiser, posterior and samples are exact at every noise level. :class:`Law` is that face as a protocol;
:class:`Posterior` and :class:`Samples` are what its methods return.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from molrmog.mixture import MoLRMoG

Noise = float | Tensor
"""A signal scale s or a noise level gamma: a float, or one per row with shape (B,)."""


@dataclass(frozen=True)
class Samples:
    """Exact samples of a law and where they came from.

    Attributes:
        x: the samples, with shape (n, D).
        subspace: the subspace each was drawn from, with shape (n,).
        mode: the mode inside that subspace, with shape (n,).
    """

    x: Tensor
    subspace: Tensor
    mode: Tensor


class PosteriorSource(Protocol):
    """What a posterior asks of its law when somebody asks for more than the mean."""

    def _posterior_variance(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor: ...

    def _posterior_sample(
        self, x: Tensor, s: Noise, gamma: Noise, n: int, generator: torch.Generator | None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Posterior:
    """The distribution of the clean point x_0 given the noised point x_t, exact.

    It is a mixture whose weights are the gates, so its mean is the denoiser, its samples cost one categorical and one
    Gaussian draw, and its evidence is the density of x_t. The variance and samples are computed when asked for.

    Attributes:
        mean: E[x_0 | x_t], with shape (B, D).
        responsibilities: the gates over the modes of all subspaces, rows summing to one, with shape (B, sum n_k).
        log_prob: log p_t(x_t), the evidence in nats, with shape (B,).
    """

    mean: Tensor
    responsibilities: Tensor
    log_prob: Tensor
    _source: PosteriorSource
    _given: tuple[Tensor, Noise, Noise]

    @property
    def variance(self) -> Tensor:
        """Var[x_0 | x_t] of each coordinate (within modes + between modes), with shape (B, D)."""
        return self._source._posterior_variance(*self._given)

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw exact samples of x_0 given x_t, with shape (n, B, D).

        Args:
            n: samples per row.
            generator: source of randomness, for reproducibility.
        """
        if n < 1:
            raise ValueError(f"n = {n} samples asked of a posterior: ask for at least 1")
        return self._source._posterior_sample(*self._given, n, generator)


class Law(Protocol):
    """The face of a law: `MoLRMoG`, `HeadTail`, and whatever composes them."""

    @property
    def dim(self) -> int:
        """Dimension D of the data."""
        ...

    @property
    def subspaces(self) -> int:
        """Number K of subspaces."""
        ...

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """Dimension d_k of each subspace."""
        ...

    @property
    def modes(self) -> tuple[int, ...]:
        """Number n_k of modes in each subspace."""
        ...

    @property
    def component_of(self) -> Tensor:
        """Subspace of each column of the responsibilities, with shape (sum n_k,)."""
        ...

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the law."""
        ...

    @property
    def noise_floor(self) -> float:
        """Smallest standard deviation of any direction of the law, in data units."""
        ...

    def log_prob(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """log p_t(x) in nats, with shape (B,)."""
        ...

    def score(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Gradient of log p_t at x, with shape (B, D)."""
        ...

    def denoise(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """E[x_0 | x_t = x], with shape (B, D)."""
        ...

    def divergence(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Divergence of the score at x, with shape (B,)."""
        ...

    def posterior(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Posterior:
        """Distribution of x_0 given x_t = x."""
        ...

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        s: float = 1.0,
        gamma: float = 0.0,
        subspace: int | Tensor | None = None,
    ) -> Samples:
        """Exact samples of x_t (of x_0 by default)."""
        ...

    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode."""
        ...

    def save_pretrained(self, path: str | Path) -> Path:
        """Write config.json and model.safetensors into a folder."""
        ...

    def parameters(self) -> Any:
        """The tensors of the law, as of every torch module."""
        ...
