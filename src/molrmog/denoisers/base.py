"""What a sampler asks of a denoiser, and what all score networks share.

    x_t = s x_0 + gamma eps,    denoise(x_t, s, gamma) = E[x_0 | x_t]

By Tweedie's formula a denoiser is a score, (s E[x_0 | x_t] - x_t) / gamma^2, and it is well scaled at every noise
level, so it is what networks learn and what samplers call. A law is the denoiser that needs no training.

Where data come from K experts, a denoiser may be told which expert each row belongs to; `given` binds that knowledge.
One with a true attribute `unconditional` also answers where it is told none, for all rows (None) or some (-1), which is
what guidance needs, see `molrmog.denoisers.guidance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from molrmog.laws.base import Noise
from molrmog.saving import load_model, save_model

Expert = int | Tensor
"""Which expert: an index for all rows, or one per row with shape (B,)."""

NO_EXPERT = -1
"""The index of a row that is told no expert."""


class Denoiser(Protocol):
    """Anything that estimates the clean point behind a noised one."""

    def denoise(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """Estimate E[x_0 | x_t] with shape (B, D) from x_t with shape (B, D).

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).
        """
        ...


class ExpertDenoiser(Protocol):
    """A denoiser that can be told the expert of every row."""

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Estimate E[x_0 | x_t, k] with shape (B, D) from x_t with shape (B, D).

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,).
            expert: index k, one for all rows or one per row with shape (B,).
        """
        ...


class ScoreNetwork(nn.Module, ABC):
    """Base class of the denoisers that are trained: how they are described, counted, saved and read.

    Attributes:
        dim: dimension D of the rows.
    """

    dim: int

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What builds the network: the name of its class under "denoiser", and the constructor's arguments."""

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network that `config` describes, untrained."""
        return cls(**{key: value for key, value in config.items() if key != "denoiser"})

    def save_pretrained(self, path: str | Path) -> Path:
        """Write config.json and model.safetensors into the folder `path`, atomically, and return it.

        Raises:
            OSError: the folder cannot be written; a model that was there is left whole.
        """
        return save_model(path, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read a network of this class from a folder, or from the Hugging Face hub; in eval mode, not frozen.

        `molrmog.load` reads any class.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: the model is corrupt or of another kind.
        """
        return cls.from_saved(*load_model(path), where=str(path))

    @classmethod
    def from_saved(cls, config: dict[str, Any], tensors: dict[str, Tensor], where: str = "the model") -> Self:
        """Build a network from a saved configuration and its tensors; see :meth:`from_pretrained`."""
        kind = config.get("denoiser", "no denoiser")
        if kind != cls.__name__:
            raise ValueError(f"{where} holds {kind}, not {cls.__name__}: read it with molrmog.load")
        try:
            network = cls.from_config(config)
            network.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the tensors in {where} do not fit its configuration ({reason})") from None
        return network.eval()


class Given(nn.Module):
    """A denoiser whose expert is chosen; see `given`."""

    def __init__(self, denoiser: ExpertDenoiser, expert: Expert) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.expert = expert
        self.dim: int = denoiser.dim  # pyright: ignore[reportAttributeAccessIssue]

    def denoise(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """E[x_0 | x_t, k] with shape (B, D)."""
        return self.denoiser.denoise(x, s, gamma, self.expert)


def given(denoiser: ExpertDenoiser, expert: Expert) -> Given:
    """Choose the expert of a denoiser once, so that a sampler can walk with it.

    Args:
        denoiser: one that takes an expert.
        expert: index k, or one per row with shape (B,), which fixes the number of rows.

    Returns:
        A denoiser with the same `dim` and parameters.

    Example:
        >>> from molrmog.denoisers.mlp import MLPDenoiser
        >>> given(MLPDenoiser(4, experts=3), 2).denoise(torch.ones(1, 4), s=1.0, gamma=0.0)
        tensor([[1., 1., 1., 1.]], grad_fn=...)
    """
    return Given(denoiser, expert)


def check_columns(x: Tensor, dim: int) -> None:
    """Refuse rows of another dimension.

    Raises:
        ValueError: x is not (B, dim).
    """
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}: pass rows with shape (B, {dim})")


def expert_of_rows(expert: Expert | None, x: Tensor, experts: int, unconditional: bool = False) -> Tensor:
    """Check an expert index and give it to every row, with shape (B,).

    Args:
        expert: an index, one per row, or None where there is one expert only, or none need be told.
        x: the rows, B of them.
        experts: how many there are.
        unconditional: whether rows may be told no expert; their index is -1.

    Raises:
        ValueError: there is no such expert, none is named among several, or there is not one per row.
    """
    if expert is None:
        if not unconditional and experts > 1:
            raise ValueError(f"there are {experts} experts: pass expert=k, or one per row with shape ({len(x)},)")
        expert = NO_EXPERT if unconditional else 0
    index = torch.as_tensor(expert, device=x.device)
    if index.is_floating_point() or index.shape not in [(), (len(x),)]:
        raise ValueError(f"expert has shape {tuple(index.shape)}: pass an index or one per row, ({len(x)},), integers")
    least = NO_EXPERT if unconditional else 0
    if index.numel() and not bool(((index >= least) & (index < experts)).all()):
        none = f", and {NO_EXPERT} for none" if unconditional else ""
        raise ValueError(f"expert = {expert}: there are experts 0 to {experts - 1}{none}")
    return index.long().expand(len(x))


def level_of_rows(level: Noise, x: Tensor) -> Tensor:
    """S or gamma as a tensor with shape (B,), in the dtype and on the device of the rows."""
    level = torch.as_tensor(level, dtype=x.dtype, device=x.device)
    if level.shape not in [(), (1,), (len(x),)]:
        raise ValueError(f"a noise level has shape {tuple(level.shape)}: pass a number or one per row, ({len(x)},)")
    return level.expand(len(x))
