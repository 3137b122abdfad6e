"""The score networks of the comparison, each made for the same latents.

| name     | network                                                   | starts at                        |
| -------- | --------------------------------------------------------- | -------------------------------- |
| mog      | a MoG network per expert, the closed form with n_k modes  | random, k-means, or EM           |
| gaussian | one Gaussian per expert (MoLRG), zero mean or learned     | first and second moments         |
| unet     | one U-Net for all experts, told which                     | zero output                      |
| mlp      | one residual MLP for all experts, told which              | zero output                      |
| residual | a U-Net on pictures, else an MLP, on top of a base        | the base: a law per expert, EM   |

References:
    arXiv 2601.01475, section 5 (MoE-latent MoG, Gaussian, U-Net); Wang et al., arXiv 2409.02426 (MoLRG).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.gaussian import GaussianDenoiser
from molrmog.denoisers.mlp import MLPDenoiser
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.denoisers.residual import ResidualDenoiser, gates_of
from molrmog.denoisers.unet import UNetDenoiser
from molrmog.learning.starts import mog_start
from molrmog.models import Denoiser, SupportsDenoise
from molrmog.seeds import torch_seed

NETWORKS = ("mog", "gaussian", "unet", "mlp", "residual")

_LEARN = ("mean", "factor", "mode_weights")


def latent_network(
    name: str,
    z: Tensor,
    expert: Tensor,
    latent_shape: Sequence[int],
    *,
    experts: int | None = None,
    latent_dim: int | None = None,
    modes: int = 8,
    rank: int | None = None,
    start: Literal["random", "k-means", "em"] = "k-means",
    learn: str | Sequence[str] | None = None,
    learned_mean: bool = False,
    channels: Sequence[int] = (64, 96),
    layers: int = 1,
    attention: bool = True,
    width: int = 256,
    depth: int = 3,
    base: SupportsDenoise | None = None,
    gates: bool = False,
    added: float = 1.0,
    unconditional: bool = False,
    sigma_data: float = 1.0,
    seed: int = 0,
) -> Denoiser:
    """Make an untrained network for standardised latents.

    Args:
        name: see the table of the module.
        z: latents with shape (N, d), from which Gaussians and mixtures take their start.
        expert: of each row, with shape (N,).
        latent_shape: event shape of the latents; flat ones are folded into a square of a few channels for a U-Net.
        experts: number K of experts; as many as `expert` names where None.
        latent_dim: of the subspace of the latents that "mog" and "gaussian" model; all of R^d where None.
        modes: n_k of every expert's mixture, in "mog" and in the base of "residual".
        rank: of every mode; d where None.
        start: of "mog".
        learn: parameters of the law that are learned, see `MoGDenoiser`; means, factors and weights of the modes where
            None, nothing of the base of "residual".
        learned_mean: whether "gaussian" has means.
        channels: of the stages of the U-Net.
        layers: residual blocks per stage of the U-Net.
        attention: self-attention at the lowest stage of the U-Net.
        width: of the MLP.
        depth: residual blocks of the MLP.
        base: what "residual" stands on; a law per expert, started by EM, where None.
        gates: whether the network of "residual" sees the gates of its base, see `ResidualDenoiser`.
        added: share of its base that is added to what it says, in [0, 1].
        unconditional: whether rows of "unet", "mlp" and "residual" may be told no expert, as guidance needs; the base
            of "residual" must allow it, too.
        sigma_data: standard deviation of the latents, for the preconditioning of "unet" and "mlp".
        seed: of weights and starts.

    Raises:
        ValueError: an unknown name, or shapes that do not fit.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}")
    experts = int(expert.max()) + 1 if experts is None else experts
    d = z.shape[1]
    picture = len(latent_shape) == 3

    def neural(kind: str, **inside: Any) -> Denoiser:
        torch.manual_seed(torch_seed(seed))
        told: dict[str, Any] = {"experts": experts, "sigma_data": sigma_data, "unconditional": unconditional, **inside}
        if kind == "mlp":
            return MLPDenoiser(d, width=width, depth=depth, **told)
        shape = tuple(latent_shape) if picture else folded(d)
        return UNetDenoiser(shape, channels=channels, layers=layers, attention=attention, **told)

    if name in ("unet", "mlp"):
        return neural(name)
    if name == "residual":
        if base is None:
            start_at: dict[str, Any] = {"experts": experts, "latent_dim": latent_dim, "modes": modes, "rank": rank}
            start_at |= {"start": "em", "learn": learn or (), "seed": seed}
            base = latent_network("mog", z, expert, latent_shape, **start_at)
        seen = {"inputs": 2, "gates": gates_of(base) if gates else 0}
        network = neural("unet" if picture else "mlp", **seen)
        return ResidualDenoiser(base, network, gates=gates, added=added).measure_(z, expert, seed)
    learn = _LEARN if learn is None else learn
    networks: list[Denoiser] = []
    for k in range(experts):
        own = z[expert == k]
        subspace_dim = min(latent_dim or d, len(own) - 1)
        if name == "mog":
            most = max(1, len(own) // 2)  # modes that so few rows can hold
            law = mog_start(own, subspace_dim, min(modes, most), start, seed, rank=rank)
            networks.append(MoGDenoiser(law, learn=learn))
        else:
            # Beside their mirror images rows have mean zero, and the covariance E[z z^T].
            rows = own if learned_mean else torch.cat([own, -own])
            law = mog_start(rows, subspace_dim, 1, "em", seed, rank=rank)
            learned = [learn] if isinstance(learn, str) else [part for part in learn if part != "mode_weights"]
            allowed = [part for part in learned if learned_mean or part not in ("mean", "offset")]
            networks.append(GaussianDenoiser(law, "all" if learn == "all" else allowed, learned_mean=learned_mean))
    return PerExpert(networks)


def folded(d: int) -> tuple[int, int, int]:
    """A flat latent of d numbers as (c, side, side) with the greatest side of at most 8 whose square divides d."""
    side = max(side for side in (1, 2, 4, 8) if d % side**2 == 0 and d // side**2 >= min(2, d))
    return d // side**2, side, side
