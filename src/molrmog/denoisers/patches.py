"""A law of patches as a denoiser of pictures: every overlapping patch is denoised by itself, and overlaps are averaged.

    D(x_t) = ( sum_p E_p^T D_law(E_p x_t) ) / ( sum_p E_p^T 1 ),      E_p x: the P x P pixels of patch p, all channels

White noise on a picture is white noise on its patches, so D_law is exact for each of them. Their average is not: it is
no E[x_0 | x_t] of any law of whole pictures, and its score no gradient. It wins at low noise, where what a pixel is
depends on its neighbours, and loses at high noise, where the whole picture speaks; `BlendDenoiser` takes both.

Patches stand `stride` pixels apart, and the last of each line at its end, so that every pixel is covered. The cost is
that of the law on L rows per picture, L about (H / stride) (W / stride). Where it is to serve inside a training step,
only the `top` modes of each patch speak, see `molrmog.laws.top_modes`: a sixth of the cost for two of 200 modes.

References:
    Zoran and Weiss, From learning models of natural image patches to whole image restoration, ICCV 2011, section 2.
    arXiv 2601.01475, section 3 (the law).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from molrmog.checks import allow_more
from molrmog.denoisers.base import check_columns, level_of_rows
from molrmog.laws.base import Law
from molrmog.models import Denoiser, Expert, Noise, refuse_expert
from molrmog.registry import build

_NUMBERS = 2**24  # of an index that is not saved; more are for who builds the denoiser


class PatchDenoiser(Denoiser):
    """The average of what a law says of each patch; an approximation, not the denoiser of a law of pictures.

    Attributes:
        law: of patches, (C, P, P) flattened.
        shape: (C, H, W) of a picture.
        size: P, in pixels.
        stride: between patches, in pixels.
        top: how many modes of a patch speak; all where None.

    Example:
        >>> from molrmog import MoLRMoG
        >>> law = MoLRMoG.random(dim=9, latent_dims=(4,), modes=(2,), noise=0.1, seed=0)
        >>> PatchDenoiser(law, shape=(1, 8, 8), size=3, stride=2).denoise(torch.zeros(5, 64), 1.0, 0.3).shape
        torch.Size([5, 64])
    """

    index: Tensor
    covered: Tensor

    def __init__(self, law: Law, shape: Sequence[int], size: int, stride: int = 1, top: int | None = None) -> None:
        """Make a denoiser of pictures from a law of their patches, see :func:`patches_of`.

        Args:
            law: over R^(C P P).
            shape: (C, H, W) of a picture.
            size: P, in pixels.
            stride: between patches, in pixels, at most P.
            top: how many modes of a patch speak; all where None, and where gradients in the picture are asked for.
                Needs a law with `denoise_by_top_modes`, whose parameters get no gradients.

        Raises:
            ValueError: law, shape, size, stride and top do not fit together.
        """
        super().__init__()
        index = patch_index(shape, size, stride)
        if law.dim != index.shape[1]:
            raise ValueError(
                f"a law over R^{law.dim} for patches of {index.shape[1]} numbers: fit it to "
                "molrmog.denoisers.patches.patches_of(x, ...)"
            )
        if top is not None and not (top >= 1 and law.has_top_modes):
            raise ValueError(f"top = {top} modes of a {type(law).__name__}: pass 1 or more of a MoLRMoG, or None")
        self.law = law
        C, H, W = (int(side) for side in shape)
        self.shape = C, H, W
        self.size, self.stride, self.top = size, stride, top
        self.dim = math.prod(self.shape)
        self.register_buffer("index", index, persistent=False)
        covered = torch.bincount(index.flatten(), minlength=self.dim)
        self.register_buffer("covered", covered, persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the denoiser."""
        shapes = {"shape": self.shape, "size": self.size, "stride": self.stride, "top": self.top}
        return {"denoiser": "PatchDenoiser", "law": self.law.description, **shapes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the denoiser that `config` describes, before its law is read."""
        law = build(config["law"], "law").requires_grad_(False)
        allow_more(_NUMBERS)
        return cls(law, config["shape"], config["size"], config["stride"], config["top"])

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Average of the patches' posterior means, with shape (B, D)."""
        check_columns(x, self.dim)
        refuse_expert(self, expert)
        if not len(x):
            return x.clone()
        s, gamma = level_of_rows(s, x), level_of_rows(gamma, x)
        patches = x[:, self.index]  # (B, L, C P P)
        if self.top is None or (torch.is_grad_enabled() and patches.requires_grad):
            L = len(self.index)
            clean = self.law.denoise(patches.flatten(0, 1), s.repeat_interleave(L), gamma.repeat_interleave(L))
        else:
            clean = self.law.denoise_by_top_modes(patches, s, gamma, self.top)
        total = torch.zeros_like(x).index_add(1, self.index.flatten(), clean.reshape(len(x), -1))
        return total / self.covered


def patch_index(shape: Sequence[int], size: int, stride: int = 1) -> Tensor:
    """Which numbers of a flattened (C, H, W) picture each patch holds, with shape (L, C P P).

    Args:
        shape: (C, H, W).
        size: P, in pixels.
        stride: between patches, in pixels; the last patch of a line ends where the line ends.

    Raises:
        ValueError: the shape is not (C, H, W), a patch does not fit into it, or patches leave pixels out.
    """
    if len(shape) != 3 or not 1 <= size <= min(shape[1:]) or not 1 <= stride <= size:
        raise ValueError(
            f"shape = {tuple(shape)}, size = {size}, stride = {stride}: pass (C, H, W), a size of at most H and W, "
            "and a stride from 1 to that size"
        )
    C, H, W = shape
    picture = torch.arange(C * H * W).reshape(C, H, W)
    tops, lefts = (sorted({*range(0, side - size + 1, stride), side - size}) for side in (H, W))
    return torch.stack([picture[:, i : i + size, j : j + size].flatten() for i in tops for j in lefts])


def patches_of(x: Tensor, shape: Sequence[int], size: int, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw patches of pictures, to fit a law to, with shape (n, C P P).

    Args:
        x: pictures as rows, with shape (N, D).
        shape: (C, H, W) of a picture.
        size: P, in pixels.
        n: how many; places and pictures are drawn alike.
        generator: source of randomness.
    """
    index = patch_index(shape, size)
    picture = torch.randint(len(x), (n,), generator=generator)
    place = torch.randint(len(index), (n,), generator=generator)
    return x[picture[:, None], index[place]]
