"""What denoisers share: checks of rows, noise levels and experts, and the expert that is chosen once.

What a denoiser is, see `molrmog.models`. Where data come from K experts, one may be conditional on the expert of each
row; `condition_on` chooses it, so that a sampler can use the denoiser. What the null expert is for, see
`molrmog.denoisers.guidance`.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from molrmog.arguments import is_a, shown
from molrmog.laws.base import is_whole
from molrmog.models import (
    NULL_EXPERT,
    Denoiser,
    Expert,
    Noise,
    SupportsDenoise,
    denoise_with,
    description_of,
    dim_of,
    num_experts_of,
    refuse_expert,
)
from molrmog.registry import build

__all__ = [
    "NULL_EXPERT",
    "Denoiser",
    "Expert",
    "Given",
    "Noise",
    "SupportsDenoise",
    "check_columns",
    "condition_on",
    "expert_of_rows",
    "given",
    "level_of_rows",
]

ScoreNetwork = ExpertDenoiser = Denoiser  # former names
NO_EXPERT = NULL_EXPERT


class Given(Denoiser):
    """A denoiser whose expert is chosen; see `condition_on`."""

    def __init__(self, denoiser: SupportsDenoise, expert: Expert) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.expert = expert
        self.dim = dim_of(denoiser)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser."""
        expert = self.expert.tolist() if isinstance(self.expert, Tensor) else self.expert
        return {"denoiser": "Given", "network": description_of(self.denoiser), "expert": expert}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its tensors are read."""
        expert, network = config["expert"], build(config["network"], "denoiser")
        for each in expert if isinstance(expert, list) and expert else [expert]:
            if type(each) is not int or not NULL_EXPERT <= each < num_experts_of(network):
                raise ValueError(f"expert is {each}, and the network knows {num_experts_of(network)}")
        return cls(network, expert if isinstance(expert, int) else torch.tensor(expert))

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t, k] with shape (B, D); the expert is chosen already."""
        refuse_expert(self, expert)
        return denoise_with(self.denoiser, x, s, gamma, self.expert)


def condition_on(denoiser: SupportsDenoise, expert: Expert) -> Given:
    """Choose the expert of a denoiser once, so that a sampler can use it.

    Args:
        denoiser: one that takes an expert.
        expert: index k, or one per row with shape (B,), which fixes the number of rows.

    Returns:
        A denoiser with the same `dim` and parameters.

    Example:
        >>> from molrmog.denoisers.mlp import MLPDenoiser
        >>> condition_on(MLPDenoiser(4, experts=3), 2).denoise(torch.ones(1, 4), s=1.0, gamma=0.0)
        tensor([[1., 1., 1., 1.]], grad_fn=...)
    """
    return Given(denoiser, expert)


given = condition_on  # its former name


def check_columns(x: Tensor, dim: int) -> None:
    """Refuse rows of another dimension.

    Raises:
        ValueError: x is not (B, dim).
    """
    if not is_a(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided or x.is_meta:
        kind = f"a tensor of {x.dtype}" if is_a(x, Tensor) else shown(x)
        raise ValueError(f"x is {kind}: pass a dense tensor of floating-point numbers, rows with shape (B, {dim})")
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}: pass rows with shape (B, {dim})")


def expert_of_rows(expert: Expert | None, x: Tensor, experts: int, null_expert: bool = False) -> Tensor:
    """Check an expert index and give it to every row, with shape (B,).

    Args:
        expert: an index, one per row, or None where there is one expert only, or a null expert.
        x: the rows, B of them.
        experts: how many there are.
        null_expert: whether a row may name no expert; its index is -1.

    Raises:
        ValueError: there is no such expert, none is named among several, or there is not one per row.
    """
    if not is_a(x, Tensor) or x.layout != torch.strided or x.is_meta:
        kind = "a sparse or meta tensor" if is_a(x, Tensor) else shown(x)
        raise ValueError(f"x is {kind}: pass a dense tensor, rows with shape (B, D)")
    if expert is None:
        if not null_expert and experts > 1:
            raise ValueError(f"there are {experts} experts: pass expert=k, or one per row with shape ({len(x)},)")
        expert = NULL_EXPERT if null_expert else 0
    index = _tensor_of(expert, "expert", "an index, or one per row").to(x.device)
    if not is_whole(index) or index.shape not in [(), (len(x),)]:
        raise ValueError(f"expert has shape {tuple(index.shape)}: pass an index or one per row, ({len(x)},), integers")
    least = NULL_EXPERT if null_expert else 0
    if index.numel() and not bool(((index >= least) & (index < experts)).all()):
        none = f", and {NULL_EXPERT} for none" if null_expert else ""
        raise ValueError(f"expert = {shown(expert)}: there are experts 0 to {experts - 1}{none}")
    return index.long().expand(len(x))


def level_of_rows(level: Noise, x: Tensor) -> Tensor:
    """A noise level, s or gamma, as a tensor with shape (B,), in the dtype and on the device of the rows."""
    level = _tensor_of(level, "a noise level", "a number, or one per row")
    if level.is_complex():
        raise ValueError("a noise level is complex: pass a number, or one per row")
    level = level.to(x.device, x.dtype)
    if level.shape not in [(), (1,), (len(x),)]:
        raise ValueError(f"a noise level has shape {tuple(level.shape)}: pass a number or one per row, ({len(x)},)")
    return level.expand(len(x))


def _tensor_of(value: Any, name: str, wanted: str) -> Tensor:
    """A number, a tensor or an array as a tensor; floats as float64."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{name} is a sparse or meta tensor: pass {wanted}")
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or np.ma.is_masked(value):
            raise TypeError
        return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {shown(value)}: pass {wanted}") from None
