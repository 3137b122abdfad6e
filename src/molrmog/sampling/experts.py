"""Sampling from experts: draw an expert, sample its latents, decode.

    k ~ Cat(w),      z_0 by any sampler with the latent denoiser of expert k,      x_0 = decode_k(z_0)

All rows are sampled together, each conditional on its own expert. With guidance the denoiser follows the expert more
than it was trained to, see `molrmog.denoisers.guidance`.

References:
    arXiv 2601.01475, section 5 (the experts); Ho & Salimans, arXiv 2207.12598 (guidance).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from molrmog.arguments import whole
from molrmog.denoisers.base import condition_on, expert_of_rows
from molrmog.denoisers.experts import Experts
from molrmog.denoisers.guidance import guide
from molrmog.laws.base import categorical
from molrmog.sampling.base import Sampler
from molrmog.sampling.draw import sample, sampler_of
from molrmog.sampling.exact import Exact
from molrmog.schedules import Schedule


@dataclass(frozen=True)
class ExpertSamples:
    """Samples and the experts they come from.

    Attributes:
        x: the samples, with shape (n, D).
        expert: the expert of each, with shape (n,).
        latent: the standardised latents they were decoded from, with shape (n, d).
    """

    x: Tensor
    expert: Tensor
    latent: Tensor


@torch.no_grad()
def sample_experts(
    model: Experts,
    schedule: Schedule,
    n: int,
    *,
    expert: int | Tensor | None = None,
    sampler: str | type[Sampler] | Sampler = "heun",
    steps: int = 32,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> ExpertSamples:
    """Draw from the whole model.

    Args:
        model: autoencoders, the denoiser of their latents, and weights.
        schedule: the noise schedule, in latent units.
        n: number of samples.
        expert: draw from this expert only, or from one per sample with shape (n,); by the weights where None.
        sampler: as for `sample`; "exact" draws from the laws of the latents, where the latent denoisers are laws.
        steps: steps from the first time to t_min.
        generator: the source of every random number; torch's global one where None.
        batch_size: rows that are sampled and decoded together.
        guidance: scale w; 1 is none, more than 1 follows the expert more than it was trained to.
        guidance_interval: least and greatest gamma / s that are guided, in latent units; all where None.

    Raises:
        ValueError: n < 1, an unknown sampler or expert, "exact" with latent denoisers that are no laws or with
            guidance, or guidance of a denoiser that does not answer without an expert.
    """
    n, batch_size = whole(n, "n"), whole(batch_size, "batch_size")
    if n < 1 or batch_size < 1:
        raise ValueError(f"n = {n}, batch_size = {batch_size}: ask for at least 1")
    solver = sampler_of(sampler, model.denoiser, schedule, generator)
    exact = isinstance(solver, Exact)
    if guidance != 1 and exact:
        raise ValueError(f"guidance = {guidance} needs a sampler with steps, and exact has none: try 'heun'")
    denoiser = guide(model.denoiser, guidance, guidance_interval)
    if expert is None:
        index = categorical(model.weights[None], n, generator)[0]
    else:
        index = expert_of_rows(expert, model.weights.new_empty(n, 0), model.num_experts)
    parts: list[tuple[Tensor, Tensor]] = []
    for k in index.split(batch_size):
        if exact:
            z = _exact(model, k, generator)
        else:
            z = sample(condition_on(denoiser, k), schedule, (len(k), model.latent_dim), solver, steps, generator)
        parts.append((model.decode(z, k), z))
    x, latent = (torch.cat(part) for part in zip(*parts, strict=True))
    return ExpertSamples(x, index, latent)


def _exact(model: Experts, expert: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exact latents with shape (n, d), each from the law of its expert."""
    laws = model.latent_laws
    if laws is None:
        raise ValueError("sampler 'exact' draws from laws, and these latent denoisers are none: try 'heun'")
    z = next(laws[0].parameters()).new_empty(len(expert), model.latent_dim)
    for k, law in enumerate(laws):
        rows = (expert == k).nonzero()[:, 0]
        z[rows] = law.sample(len(rows), generator).x.to(z.dtype)
    return z
