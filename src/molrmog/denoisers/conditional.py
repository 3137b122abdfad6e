"""A law conditional on its subspace: the closed form as a class-conditional denoiser.

    denoise(x_t, s, gamma, k) = E[x_0 | x_t, k],      denoise(x_t, s, gamma) = E[x_0 | x_t] = sum_k r_k E[x_0 | x_t, k]

E[x_0 | x_t, k] is the denoiser of subspace k alone, a law as well, so both terms of guidance are exact, and a network
on this base learns what the law misses of either.

References:
    arXiv 2601.01475, section 3 (the law); Ho & Salimans, arXiv 2207.12598 (what both answers are for).
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from molrmog.denoisers.experts import by_expert
from molrmog.laws.base import Law, check_law
from molrmog.models import NULL_EXPERT, Denoiser, Expert, Noise
from molrmog.registry import build


class ConditionalLaw(Denoiser):
    """A law whose subspaces are experts: conditional on a subspace, or marginal where none is named.

    Attributes:
        law: the whole law, frozen.

    Example:
        >>> import torch
        >>> from molrmog import MoLRMoG
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), noise=0.1, seed=0).requires_grad_(False)
        >>> network = ConditionalLaw(law)
        >>> x = law.sample(4, s=0.8, gamma=0.6).x
        >>> network.denoise(x, 0.8, 0.6, expert=torch.tensor([0, 1, 1, -1])).shape
        torch.Size([4, 8])
        >>> bool((network.denoise(x, 0.8, 0.6) == law.denoise(x, 0.8, 0.6)).all())
        True
    """

    null_expert = True

    def __init__(self, law: Law) -> None:
        """Take a law as it is.

        Args:
            law: one that asks for no gradients, as it comes from a fit with `labels=`, a subspace per class.

        Raises:
            ValueError: the law is to be trained.
        """
        super().__init__()
        check_law(law)
        if any(parameter.requires_grad for parameter in law.parameters()):
            raise ValueError(
                "a ConditionalLaw keeps its law as it is: pass law.requires_grad_(False), or train a PerExpert of "
                "MoGDenoisers instead"
            )
        self.law = law
        self.dim, self.num_experts = law.dim, law.subspaces

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser: the shapes of the law."""
        return {"denoiser": "ConditionalLaw", "law": self.law.description}

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the law."""
        return self.law.num_parameters

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its law is read."""
        return cls(build(config["law"], "law").requires_grad_(False))

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t, k] with shape (B, D), exact; rows of one expert are answered together.

        Raises:
            ValueError: wrong shapes, a subspace that does not exist, no density at this noise, or a law that asks for
                gradients.
        """
        if any(parameter.requires_grad for parameter in self.law.parameters()):
            raise ValueError("a ConditionalLaw keeps its law as it is: call requires_grad_(False)")

        def by(k: int, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
            return (self.law if k == NULL_EXPERT else self.part(k)).denoise(x, s, gamma)

        return by_expert(by, expert, self.num_experts, x, s, gamma, null_expert=True)

    def part(self, k: int) -> Law:
        """The law p(x_0 | k), of subspace k alone."""
        return self.law.alone(k)
