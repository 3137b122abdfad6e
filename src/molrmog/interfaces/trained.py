"""A trained network as something to sample from, whether it lives in rows or in the latents of autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.denoisers.base import condition_on, expert_of_rows
from molrmog.denoisers.experts import Experts, PerExpert
from molrmog.denoisers.guidance import guide
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.laws.base import Law, categorical
from molrmog.metrics import Cost, cost
from molrmog.models import Denoiser
from molrmog.sampling import sample, sample_experts
from molrmog.sampling.experts import ExpertSamples
from molrmog.schedules import Schedule
from molrmog.seeds import torch_generator

_BATCH = 1024  # samples that walk together


@dataclass(frozen=True)
class Trained:
    """A score network with all that sampling needs.

    Attributes:
        model: `Experts`, or a network of the rows themselves.
        schedule: the noise schedule it was trained with.
        weights: of the experts, with shape (K,).
    """

    model: Denoiser
    schedule: Schedule
    weights: Tensor

    @property
    def in_latents(self) -> bool:
        """Whether there are autoencoders."""
        return isinstance(self.model, Experts)

    @property
    def denoiser(self) -> Denoiser:
        """The score network alone."""
        return self.model.denoiser if isinstance(self.model, Experts) else self.model

    @property
    def laws(self) -> list[Law] | None:
        """The law of each expert's latents, or rows; None where the network is not made of laws."""
        networks = self.denoiser.networks if isinstance(self.denoiser, PerExpert) else []
        laws: list[Law] = [network.law for network in networks if isinstance(network, MoGDenoiser)]
        return laws if len(laws) == len(self.weights) else None

    @property
    def base(self) -> Self | None:
        """What a network on a base is while it adds nothing: the base alone; None for other networks."""
        if not isinstance(self.denoiser, ResidualDenoiser):
            return None
        alone = ResidualDenoiser(self.denoiser.base, _Nothing(self.denoiser.num_experts), as_input=False)
        model: Denoiser = alone
        if isinstance(self.model, Experts):
            model = Experts(self.model.autoencoders, alone, self.model.weights)
        return type(self)(model.to(self.device).eval(), self.schedule, self.weights)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, x: Any, expert: Tensor) -> Tensor:
        """What the network sees of rows with shape (N, D): standardised latents with shape (N, d), or the rows."""
        x = torch.as_tensor(x, dtype=torch.float32, device=self.device)
        if not isinstance(self.model, Experts):
            return x
        pairs = zip(x.split(_BATCH), expert.to(self.device).split(_BATCH), strict=True)
        return torch.cat([self.model.encode(*pair) for pair in pairs])

    @torch.no_grad()
    def decode(self, z: Tensor, expert: Tensor) -> Tensor:
        """Rows with shape (N, D) of what the network sees."""
        if not isinstance(self.model, Experts):
            return z
        pairs = zip(z.split(_BATCH), expert.to(self.device).split(_BATCH), strict=True)
        return torch.cat([self.model.decode(*pair) for pair in pairs])

    @torch.no_grad()
    def sample(
        self,
        num: int,
        *,
        expert: int | None = None,
        sampler: str = "heun",
        steps: int = 32,
        schedule: Schedule | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> ExpertSamples:
        """Draw samples.

        Args:
            num: how many.
            expert: from this one only; by the weights where None.
            sampler: a name in `SAMPLERS`; "exact" where the network is made of laws.
            steps: of a sampler that walks.
            schedule: of a sampler that walks; that of the training where None.
            guidance: scale w of a sampler that walks, see `GuidedDenoiser`; 1 is none.
            guidance_interval: least and greatest gamma / s that are guided; all where None.
            seed: of every random number.

        Raises:
            ValueError: there is no such expert, "exact" is asked of a network that is no law, or guidance of one that
                was not trained for it.
        """
        K = len(self.weights)
        if expert is not None and not 0 <= expert < K:
            raise ValueError(f"--expert {expert}: the network has experts 0 to {K - 1}")
        if sampler == "exact" and self.laws is None:
            raise ValueError("--sampler exact draws from laws, and this network is none: try --sampler heun")
        if guidance != 1 and not self.denoiser.null_expert:
            raise ValueError(
                f"--guidance {guidance}: this network was never trained without an expert: train a unet, mlp or "
                "residual with --drop-expert 0.1"
            )
        generator = torch_generator(seed)
        schedule = schedule or self.schedule
        walk: dict[str, Any] = {"sampler": sampler, "steps": steps, "generator": generator}
        if isinstance(self.model, Experts):
            walk |= {"guidance": guidance, "guidance_interval": guidance_interval}
            return sample_experts(self.model, schedule, num, expert=expert, batch_size=_BATCH, **walk)
        denoiser = guide(self.denoiser, guidance, guidance_interval)
        k = categorical(self.weights[None], num, generator)[0] if expert is None else torch.full((num,), expert)
        k = expert_of_rows(k.to(self.device), torch.empty(num, 0, device=self.device), K)
        if sampler == "exact":
            x = torch.empty(num, self.model.dim, device=self.device)
            for own, law in enumerate(self.laws or []):
                mine = (k == own).nonzero()[:, 0]
                x[mine] = law.sample(len(mine), generator).x
        else:
            shapes = [(len(part), self.model.dim) for part in k.split(_BATCH)]
            parts = [condition_on(denoiser, part) for part in k.split(_BATCH)]
            x = torch.cat([sample(part, schedule, shape, **walk) for part, shape in zip(parts, shapes, strict=True)])
        return ExpertSamples(x, k, x)

    def cost(self, num: int = 256) -> Cost:
        """Parameters and operations, for samples of the model noised as far as gamma = s."""
        drawn = self.sample(num, steps=4)
        s = gamma = 0.5**0.5
        noise = torch.randn(drawn.latent.shape, generator=torch.Generator().manual_seed(0)).to(drawn.latent)
        return cost(self.model, s * drawn.latent + gamma * noise, s, gamma, drawn.expert)


class _Nothing(nn.Module):
    """A network that adds nothing to its base."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x: Tensor, c_noise: Tensor, expert: Tensor | None) -> Tensor:
        return torch.zeros_like(x)
