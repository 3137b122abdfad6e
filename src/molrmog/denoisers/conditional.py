"""A law that is told the subspace: the closed form as a class-conditional denoiser.

    denoise(x_t, s, gamma, k) = E[x_0 | x_t, k],      denoise(x_t, s, gamma) = E[x_0 | x_t] = sum_k r_k E[x_0 | x_t, k]

E[x_0 | x_t, k] is the denoiser of subspace k alone, a law as well, so both terms of guidance are exact, and a network
on this base learns what the law misses of either.

References:
    arXiv 2601.01475, section 3 (the law); Ho & Salimans, arXiv 2207.12598 (what both answers are for).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from molrmog.denoisers.base import NO_EXPERT, Expert, ScoreNetwork
from molrmog.denoisers.experts import by_expert
from molrmog.denoisers.saved import build_law, config_of
from molrmog.laws.base import Noise
from molrmog.laws.head_tail import HeadTail
from molrmog.laws.molrmog import MoLRMoG


class ConditionalLaw(ScoreNetwork):
    """A law whose subspaces are experts: told one, it answers by that subspace alone, told none, by all.

    Attributes:
        law: the whole law, frozen.
        unconditional: true.

    Example:
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), noise=0.1, seed=0).requires_grad_(False)
        >>> network = ConditionalLaw(law)
        >>> x = law.sample(4, s=0.8, gamma=0.6).x
        >>> network.denoise(x, 0.8, 0.6, expert=torch.tensor([0, 1, 1, -1])).shape
        torch.Size([4, 8])
        >>> bool((network.denoise(x, 0.8, 0.6) == law.denoise(x, 0.8, 0.6)).all())
        True
    """

    unconditional = True

    def __init__(self, law: MoLRMoG | HeadTail) -> None:
        """Take a law as it is.

        Args:
            law: one that asks for no gradients, as it comes from a fit with `labels=`, a subspace per class.

        Raises:
            ValueError: the law is to be trained.
        """
        super().__init__()
        if any(parameter.requires_grad for parameter in law.parameters()):
            raise ValueError(
                "a ConditionalLaw keeps its law as it is: pass law.requires_grad_(False), or train a PerExpert of "
                "MoGDenoisers instead"
            )
        self.law = law
        self.dim = law.dim
        self._parts: tuple[object, list[MoLRMoG | HeadTail], list[Tensor]] = None, [], []

    @property
    def experts(self) -> int:
        """Number K of subspaces."""
        return self.law.subspaces

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser: the shapes of the law."""
        return {"denoiser": "ConditionalLaw", "law": config_of(self.law)}

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the law."""
        return self.law.num_parameters

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its law is read."""
        return cls(build_law(config["law"]).requires_grad_(False))

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t, k] with shape (B, D), exact; rows of one expert are answered together.

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).
            expert: index k, one for all rows or one per row with shape (B,); None for E[x_0 | x_t], or -1 in a row that
                is told none.

        Raises:
            ValueError: wrong shapes, a subspace that does not exist, no density at this noise, or a law that asks for
                gradients.
        """
        if any(parameter.requires_grad for parameter in self.law.parameters()):
            raise ValueError("a ConditionalLaw keeps its law as it is: call requires_grad_(False)")

        def by(k: int, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
            return (self.law if k == NO_EXPERT else self.part(k)).denoise(x, s, gamma)

        return by_expert(by, expert, self.experts, x, s, gamma, unconditional=True)

    def part(self, k: int) -> MoLRMoG | HeadTail:
        """The law p(x_0 | k), of subspace k alone; made when the law was last changed."""
        parameters = list(self.law.parameters())
        version = [(id(p), p.data_ptr(), p.device, 0 if p.is_inference() else p._version) for p in parameters]
        if self._parts[0] != version:
            # The parameters are held, so that no address is used again.
            self._parts = version, [_alone(self.law, k) for k in range(self.experts)], [*parameters]
        return self._parts[1][k]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": (None, [], [])}


@torch.no_grad()
def _alone(law: MoLRMoG | HeadTail, k: int) -> MoLRMoG | HeadTail:
    if isinstance(law, HeadTail):  # the tail is the same for all, and shared
        head = _alone(law.head, k)
        assert isinstance(head, MoLRMoG)
        alone = HeadTail(head, law.axes, law.offset, law.spread, law.tau)
    else:
        alone = MoLRMoG.from_subspaces([replace(law.subspace(k), weight=1.0)])
    return alone.requires_grad_(False)
