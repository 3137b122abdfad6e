"""The closed form as a network: a MoLR-MoG whose parameters are learned by denoising score matching.

    theta = (w, b, A, pi, mu, U, tau),      D_theta(x_t, s, gamma) = E[x_0 | x_t] under the law with these parameters

Any subset of theta may be learned; the paper learns (mu, U) in the latents of an expert, where A = I. Bases stay
on the Stiefel manifold, A_k^T A_k = I: the law normalises them, A (A^T A)^-1/2, before use, so that their gradient is
tangent, and :meth:`MoGDenoiser.retract_` puts them back after an optimiser's step. Weights are learned as logits.

Orthonormal factors are the parametrisation that the paper prints: U_kl^T U_kl = I, all latent variances one inside
span(U_kl), so that with tau = 0 and v = gamma^2

    score_c(x) = -(1 / v) ( I - s^2 / (s^2 + v) A U U^T A^T ) (x - s m_c)

Only with such U is this the score; without the restriction the law takes its variances from U (see
`molrmog.laws.molrmog`).

References:
    arXiv 2601.01475, section 3 and equation for the score of the mode; its U is the orthonormal one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor
from torch.func import functional_call

from molrmog.arguments import flag, is_a, shown
from molrmog.laws.base import Law, Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.models import Denoiser, Expert, Noise, refuse_expert
from molrmog.seeds import torch_generator

LEARNABLE = MoLRMoG.learnable  # what may be learned, and the parameter of the law that holds it


def can_learn(law: object) -> TypeGuard[MoLRMoG]:
    """Whether it is a law whose parameters may be learned, see :class:`MoGDenoiser`."""
    return isinstance(law, Law) and bool(law.learnable)


def names_to_learn(learn: str | Sequence[str]) -> tuple[str, ...]:
    """What a network made of a law learns, by name; see :class:`MoGDenoiser`.

    Raises:
        ValueError: there is no such name.
    """
    names: list[Any] = [learn] if isinstance(learn, str) else list(learn) if is_a(learn, Sequence) else [None]
    if names == ["all"]:
        return tuple(LEARNABLE)
    unknown = [name for name in names if not (isinstance(name, str) and name in LEARNABLE)]
    if unknown:
        said = shown(learn if unknown == [None] else unknown)
        raise ValueError(f"learn = {said}: choose among {', '.join(LEARNABLE)}, or 'all'")
    return tuple(names)


class MoGDenoiser(Denoiser):
    """A law that is trained like a network.

    Attributes:
        law: the law as it is now; density, exact samples and all else are asked of it.
        learn: names of what is learned.
        orthonormal_factors: whether every factor has orthonormal columns.

    Example:
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), rank=1, noise=0.1, seed=0)
        >>> network = MoGDenoiser(law, learn=("mean", "factor"))
        >>> network.num_parameters  # (2 + 2) + (2 + 2) and 3 + 3
        14

    References:
        arXiv 2601.01475, section 3.
    """

    def __init__(self, law: MoLRMoG, learn: str | Sequence[str] = "all", orthonormal_factors: bool = False) -> None:
        """Start from a law, which is copied.

        Args:
            law: where training starts.
            learn: "all", or any of "basis", "offset", "mean", "factor", "tau", "subspace_weights", "mode_weights". The
                sign of tau does not matter, and a tau that is zero has no gradient: it stays zero.
            orthonormal_factors: restrict factors to orthonormal columns; those of the law are replaced by the nearest.

        Raises:
            ValueError: `learn` names something else, or the law has no parameters that may be learned.
        """
        super().__init__()
        if not can_learn(law):
            raise ValueError(f"a {type(law).__name__} has no parameters that are learned: pass a MoLRMoG")
        self.learn = names_to_learn(learn)
        orthonormal_factors = flag(orthonormal_factors, "orthonormal_factors")
        self.law = copy.deepcopy(law).requires_grad_(False)
        self.dim = law.dim
        for name in self.learn:
            self.law.get_parameter(LEARNABLE[name]).requires_grad_()
        self.orthonormal_factors = orthonormal_factors
        if orthonormal_factors:
            self._orthonormalise_factors()

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network: the shapes of its law, and what is learned."""
        return {
            "denoiser": type(self).__name__,
            "law": self.law.config,
            "learn": self.learn,
            "orthonormal_factors": self.orthonormal_factors,
        }

    def check_loaded(self) -> None:
        """Refuse bases that are not orthonormal though every step of a training makes them so."""
        if "basis" in self.learn:
            super().check_loaded()

    @property
    def num_parameters(self) -> int:
        """Numbers that are learned, padding left out."""
        real = _real_entries(self.law)
        return sum(int(real[LEARNABLE[name]].sum()) for name in self.learn)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network that `config` describes, before its parameters are read."""
        options = {key: value for key, value in config.items() if key not in ("denoiser", "law")}
        return cls(MoLRMoG.from_config(config["law"]), **options)

    @classmethod
    def from_moments(
        cls,
        mean: Tensor,
        covariance: Tensor,
        modes: int,
        rank: int | None = None,
        noise: float | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Start at random, knowing two moments of the data: modes are drawn from the Gaussian that has them.

        Args:
            mean: of the data, with shape (d,).
            covariance: of the data, with shape (d, d).
            modes: number n of modes, in one subspace that is all of R^d.
            rank: of every mode; d where not given. Modes start with the leading principal axes of the data.
            noise: tau; the root mean variance of the axes left out where not given.
            seed: of the draw.
            options: `learn` and `orthonormal_factors`.

        Raises:
            ValueError: rank or modes are out of range.
        """
        d = len(mean)
        rank = d if rank is None else rank
        if not 0 <= rank <= d or modes < 1:
            raise ValueError(f"rank = {rank}, modes = {modes}: pass a rank from 0 to {d} and at least one mode")
        variance, axes = torch.linalg.eigh(covariance.double())
        spread = axes * variance.clamp(min=0).sqrt()  # (d, d), spread spread^T = covariance
        left = float(variance[: d - rank].clamp(min=0).mean().sqrt()) if rank < d else 0.0
        draw = torch.randn(modes, d, generator=torch_generator(seed), dtype=torch.float64)
        whole = Subspace(
            weight=1.0,
            basis=torch.eye(d, dtype=mean.dtype, device=mean.device),
            offset=torch.zeros_like(mean),
            tau=left if noise is None else noise,
            mode_weights=torch.full_like(mean[:1], 1 / modes).expand(modes),
            means=mean + (draw.to(spread.device) @ spread.T).to(mean.dtype),
            factors=(spread[:, d - rank :].to(mean.dtype),) * modes,
        )
        return cls(MoLRMoG.from_subspaces([whole]), **options)

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t = x] under the law, with shape (B, D).

        Raises:
            ValueError: wrong shapes, a negative gamma, gamma = 0 where tau = 0, or an expert.
        """
        refuse_expert(self, expert)
        if self.orthonormal_factors and torch.is_grad_enabled() and self.law.factor.requires_grad:
            # One Newton step to U (U^T U)^-1/2: at orthonormal U it changes nothing but makes the gradient tangent.
            U = self.law.factor
            return functional_call(self, {"law.factor": 1.5 * U - 0.5 * U @ (U.mT @ U)}, (x, s, gamma))
        return self(x, s, gamma)

    def forward(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """The law's denoiser, with shape (B, D)."""
        return self.law.denoise(x, s, gamma)

    @torch.no_grad()
    def retract_(self) -> None:
        """Put bases, and factors where they are to be orthonormal, back on the Stiefel manifold, padding back to zero.

        To be called after every step of an optimiser.
        """
        for name, real in _real_entries(self.law).items():
            if not bool(real.all()):
                self.law.get_parameter(name).mul_(real)
        if "basis" in self.learn:
            for k, d in enumerate(self.law.latent_dims):
                self.law.basis[:, k, :d] = nearest_orthonormal(self.law.basis[:, k, :d]).to(self.law.basis.dtype)
        if self.orthonormal_factors and "factor" in self.learn:
            self._orthonormalise_factors()

    @torch.no_grad()
    def _orthonormalise_factors(self) -> None:
        factor = self.law.factor
        for k, (d, ranks) in enumerate(zip(self.law.latent_dims, self.law.ranks, strict=True)):
            for r in set(ranks) - {0}:
                modes = [mode for mode, rank in enumerate(ranks) if rank == r]
                factor[k, modes, :d, :r] = nearest_orthonormal(factor[k, modes, :d, :r]).to(factor.dtype)


def latent_law(law: MoLRMoG, k: int, mean: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> MoLRMoG:
    """What subspace k of a law is in the standardised coordinates z = (A_k^T (x - b_k) - mean) / scale of its own.

    Args:
        law: over R^D.
        k: the subspace.
        mean: of the coordinates, with shape (d_k,).
        scale: one number for all of them.

    Returns:
        The law of z over R^{d_k}, one subspace that is all of it.
    """
    part = law.subspace(k)
    d = part.basis.shape[1]
    inside = Subspace(
        weight=1.0,
        basis=torch.eye(d).to(part.basis),
        offset=torch.zeros_like(part.offset[:d]),
        tau=part.isotropic_tau("the law of one subspace's latents") / float(scale),
        mode_weights=part.mode_weights,
        means=(part.means - mean) / scale,
        factors=tuple(factor / scale for factor in part.factors),
    )
    return MoLRMoG.from_subspaces([inside]).requires_grad_(False)


def nearest_orthonormal(U: Tensor) -> Tensor:
    """The polar factor U (U^T U)^-1/2 in float64, with shape (..., m, r); dependent columns are completed."""
    U = U.double()
    square, V = torch.linalg.eigh(U.mT @ U)
    if bool((square[..., 0] > 1e-8 * square[..., -1]).all()):
        return U @ (V / square.sqrt()[..., None, :]) @ V.mT
    left, _, right = torch.linalg.svd(U, full_matrices=False)
    return left @ right


def _real_entries(law: MoLRMoG) -> dict[str, Tensor]:
    """For each parameter of a law, which entries are not padding; the shapes broadcast to that of the parameter."""
    _, n, d, r = law.factor.shape
    device = law.factor.device
    ranks = torch.tensor([[*row, *[0] * (n - len(row))] for row in law.ranks], device=device)
    in_basis = torch.arange(d, device=device) < torch.tensor(law.latent_dims, device=device)[:, None]  # (K, d)
    in_modes = torch.arange(n, device=device) < torch.tensor(law.modes, device=device)[:, None]  # (K, n)
    in_rank = torch.arange(r, device=device) < ranks[..., None]  # (K, n, r)
    real = {
        "basis": in_basis[None],
        "offset": torch.ones(1, 1, dtype=torch.bool, device=device),
        "mean": in_modes[..., None] & in_basis[:, None],
        "factor": in_basis[:, None, :, None] & in_rank[:, :, None],
        "tau": torch.ones(1, dtype=torch.bool, device=device),
        "subspace_logits": torch.ones(1, dtype=torch.bool, device=device),
        "mode_logits": in_modes,
    }
    return {name: mask.expand_as(law.get_parameter(name)) for name, mask in real.items()}
