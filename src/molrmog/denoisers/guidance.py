"""Classifier-free guidance: away from what every expert would say, towards what one says.

    D_w(x_t | k) = D(x_t) + w (D(x_t | k) - D(x_t))

By Tweedie's formula its score is that of p_t(x_t) p_t(k | x_t)^w, up to a constant in x_t,

    (s D_w - x_t) / gamma^2 = grad log p_t(x_t) + w grad [log p_t(x_t | k) - log p_t(x_t)],

so w = 0 forgets the expert, w = 1 is the expert exactly, and w > 1 stays where the expert is more certain: clearer
samples, and less of their variety. What a walk with w > 1 ends in is not p(x_0)^(1 - w) p(x_0 | k)^w, whose noised
densities have other scores. At high noise guidance mostly takes variety away, so it may be kept to an interval of
sigma = gamma / s, outside of which w = 1.

Both answers come from one network that was trained with the expert left out of some rows (`drop_expert`), or from a
`ConditionalLaw`, which knows both exactly.

References:
    Ho & Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598, eq. 6 (its w is w - 1 here).
    Kynkaanniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution Quality,
        arXiv 2404.07724, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from molrmog.arguments import real, shown
from molrmog.denoisers.base import check_columns, expert_of_rows, level_of_rows
from molrmog.models import (
    NULL_EXPERT,
    Denoiser,
    Expert,
    Noise,
    SupportsDenoise,
    as_module,
    denoise_with,
    description_of,
    dim_of,
    has_null_expert,
    num_experts_of,
    num_parameters_of,
)
from molrmog.registry import build


class GuidedDenoiser(Denoiser):
    """A denoiser that follows its expert more, or less, than it was trained to; a row of no expert is not guided.

    Attributes:
        network: the denoiser that is asked twice.
        scale: w.
        interval: least and greatest gamma / s that are guided; None for all.

    Example:
        >>> from molrmog import ConditionalLaw, MoLRMoG, VPSchedule, sample
        >>> from molrmog.denoisers.base import condition_on
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), noise=0.1, seed=0).requires_grad_(False)
        >>> guided = GuidedDenoiser(ConditionalLaw(law), scale=2.0)
        >>> sample(condition_on(guided, 1), VPSchedule(), (5, 8), steps=4).shape
        torch.Size([5, 8])

    References:
        Ho & Salimans, arXiv 2207.12598, section 3.2.
    """

    null_expert = True

    def __init__(self, network: SupportsDenoise, scale: float, interval: tuple[float, float] | None = None) -> None:
        """Guide a denoiser.

        Args:
            network: a torch module that answers with and without an expert: a `ConditionalLaw`, or a network with
                `unconditional=True`.
            scale: w, finite and not negative.
            interval: (low, high) of gamma / s, 0 <= low < high, both guided; all noise levels where None.

        Raises:
            ValueError: the denoiser does not answer without an expert, or a number is out of its range.
        """
        super().__init__()
        if not has_null_expert(network):
            raise ValueError(
                f"this {type(network).__name__} does not answer without an expert, as guidance needs: build it with "
                "unconditional=True and train it with drop_expert=0.1, or wrap a law in ConditionalLaw"
            )
        check_guidance(scale, interval)
        self.network = as_module(network)
        self.dim, self.num_experts = dim_of(network), num_experts_of(network)
        self.scale = float(scale)
        self.interval = None if interval is None else (float(interval[0]), float(interval[1]))

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser.

        Raises:
            ValueError: the network is none of this library.
        """
        return {
            "denoiser": "GuidedDenoiser",
            "network": description_of(self.network),
            "scale": self.scale,
            "interval": self.interval,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, untrained."""
        return cls(build(config["network"], "denoiser"), config["scale"], config["interval"])

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained in the network."""
        return num_parameters_of(self.network)

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """D_w(x_t | k) with shape (B, D), by one call of the network on up to 2B rows."""
        check_columns(x, self.dim)
        index = expert_of_rows(expert, x, self.num_experts, null_expert=True)
        for level in (s, gamma):
            level_of_rows(level, x)  # before rows are picked from it
        at = self._guided(x, s, gamma, index)
        if self.scale in (0.0, 1.0) or not len(at):  # one of the two answers
            index = index if self.scale else index.index_fill(0, at, NULL_EXPERT)
            return denoise_with(self.network, x, s, gamma, index)

        def both(level: Noise) -> Noise:
            return torch.cat([level, level[at]]) if isinstance(level, Tensor) and level.numel() > 1 else level

        null = torch.full_like(at, NULL_EXPERT)
        answers = denoise_with(self.network, torch.cat([x, x[at]]), both(s), both(gamma), torch.cat([index, null]))
        D_k, D_null = answers.split([len(x), len(at)])
        return D_k.index_copy(0, at, torch.lerp(D_null, D_k[at], self.scale))

    def _guided(self, x: Tensor, s: Noise, gamma: Noise, index: Tensor) -> Tensor:
        """Which rows are guided, as indices."""
        guided = index != NULL_EXPERT
        if self.interval is not None:
            sigma = level_of_rows(gamma, x) / level_of_rows(s, x)
            guided &= (self.interval[0] <= sigma) & (sigma <= self.interval[1])
        return guided.nonzero()[:, 0]


def guide(network: SupportsDenoise, scale: float = 1.0, interval: tuple[float, float] | None = None) -> SupportsDenoise:
    """The network guided, or itself where there is nothing to guide.

    Args:
        network: a denoiser of experts.
        scale: w; 1 for the network as it is.
        interval: of gamma / s, in which it is guided.

    Raises:
        ValueError: the network cannot be guided, see :class:`GuidedDenoiser`.
    """
    return network if real(scale, "scale") == 1 else GuidedDenoiser(network, scale, interval)


def check_guidance(
    scale: float,
    interval: Sequence[float] | None = None,
    scale_name: str = "a guidance scale of",
    interval_name: str = "a guidance interval of",
) -> None:
    """Refuse a scale or an interval of guidance that is out of its range.

    Args:
        scale: w.
        interval: (low, high) of gamma / s; all noise levels where None.
        scale_name: what the message begins with.
        interval_name: the same of the interval.

    Raises:
        ValueError: one of them is.
    """
    scale = real(scale, "scale")
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"{scale_name} {scale}: pass a number >= 0; 1 for no guidance")
    try:
        low, high = (0.0, math.inf) if interval is None else (real(end, "interval") for end in interval)
        within = 0 <= low < high
    except (TypeError, ValueError):
        within = False
    if not within:
        raise ValueError(f"{interval_name} {shown(interval)}: pass (low, high) of gamma / s, 0 <= low < high")
