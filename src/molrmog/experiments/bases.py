"""What `molrmog train --network residual` puts a network on.

| the network sees | base                                                                  | told the expert          |
| ---------------- | --------------------------------------------------------------------- | ------------------------ |
| rows             | one law of all, fitted by EM, its subspaces the experts; or head/tail | yes                      |
| rows             | a law or a denoiser that was saved                                    | if its experts are these |
| latents of all   | one law, fitted by EM, its subspaces the experts                      | yes                      |
| latents of each  | a law for each expert's, fitted by EM                                 | yes                      |

Told an expert k the base says E[x_0 | x_t, k]. It is frozen, or trained along in the parts that `learn` names.

References:
    arXiv 2601.01475, section 3 (the law), section 5 (the laws of latents).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.mog import MoGDenoiser, can_learn
from molrmog.laws.base import Law
from molrmog.learning.em import EMState
from molrmog.learning.fit import fit
from molrmog.models import Denoiser
from molrmog.registry import load


def fitted_base(
    x: Any,
    expert: Tensor,
    *,
    latent_dim: int,
    modes: int = 8,
    rank: int | None = None,
    head: int | Literal["auto"] | None = None,
    noise: Literal["isotropic", "diagonal", "shared"] | None = None,
    axes: Literal["pca"] | None = None,
    learn: Sequence[str] | str = (),
    seed: int = 0,
    on_iteration: Callable[[EMState], None] | None = None,
) -> Denoiser:
    """Fit a law to rows, a subspace per expert; experts of few rows get smaller subspaces, and fewer modes.

    Args:
        x: rows with shape (N, D).
        expert: of each row, with shape (N,); every expert owns two at least.
        latent_dim: dimension of every subspace.
        modes: of every subspace.
        rank: of every mode; that of its subspace where None.
        head: fit in so many leading principal coordinates, see `molrmog.fit`.
        noise: off the subspaces.
        axes: along which unequal noise goes.
        learn: parts of the law that are trained along, see `MoGDenoiser`.
        seed: of everything random.
        on_iteration: called after every pass of EM.

    Returns:
        A denoiser that is conditional on the expert.

    Raises:
        ValueError: the sizes do not fit the rows, or a head/tail law is to be trained along.
    """
    if learn and head is not None:
        raise ValueError("a law with a head is not trained along: leave out --learn, or --head")
    rows = torch.bincount(expert).tolist()
    law = fit(
        x,
        labels=expert,
        latent_dim=[min(latent_dim, own - 1) for own in rows],
        modes=[min(modes, max(1, own // 2)) for own in rows],
        rank=rank,
        head=head,
        noise=noise,
        axes=axes,
        seed=seed,
        on_iteration=on_iteration,
    )
    return _as_conditional(law.cpu(), learn)


def saved_base(
    path: str | Path, dim: int, experts: int, *, learn: Sequence[str] | str = (), by_expert: bool = False
) -> Denoiser:
    """Read a law or a denoiser to put a network on.

    Args:
        path: a folder that `save_pretrained` wrote, such as that of a run, or a name on the Hugging Face hub.
        dim: dimension D of the rows.
        experts: number K of experts.
        learn: parts of a law that are trained along, see `MoGDenoiser`.
        by_expert: whether the subspaces of a law, if there are K, are the experts.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: it is of another dimension, knows other experts, or is no law and is to be trained along.
    """
    base = load(path, "denoiser")
    if base.dim != dim:
        raise ValueError(
            f"--base {path} is a {type(base).__name__} over R^{base.dim}, and the rows have {dim} columns: name one "
            "that was made for such rows"
        )
    if learn and not can_learn(base):
        raise ValueError(
            f"--base {path} is a {type(base).__name__}, which stays as it is: leave out --learn, or pass a law"
        )
    base.requires_grad_(False)
    if base.num_experts not in (0, experts):
        known = base.num_experts
        raise ValueError(f"--base {path} knows {known} experts, and the rows have {experts}: pass --experts {known}")
    if isinstance(base, Law) and by_expert and base.subspaces == experts:
        return _as_conditional(base, learn)
    return MoGDenoiser(base, learn) if learn and can_learn(base) else base


def _as_conditional(law: Law, learn: Sequence[str] | str) -> Denoiser:
    """The law as a denoiser that is conditional on the subspace."""
    if not learn:
        return ConditionalLaw(law)
    parts = [law.alone(k) for k in range(law.subspaces)]
    return PerExpert([MoGDenoiser(part, learn) for part in parts if can_learn(part)])
