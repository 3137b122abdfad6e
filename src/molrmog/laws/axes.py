"""Orthonormal axes of R^D: the coordinates u = Q^T x in which the noise of a law differs.

A rotation commutes with isotropic diffusion noise, so a law of u is a law of x = Q u, exact at every noise level. Axes
are a matrix Q of D x D numbers, such as principal axes; or the discrete cosine transform of the rows of a signal or of
every channel of a picture, which is a product per side and needs no matrix.

References:
    Ahmed, Natarajan, Rao, "Discrete cosine transform", 1974 (type II, orthonormal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from molrmog.arguments import one_of, wholes


class Axes(nn.Module):
    """Orthonormal axes Q of R^D.

    Attributes:
        dim: D.
        kind: "matrix" or "dct".
        shape: of what a row holds, (D,), (height, width) or (channels, height, width), for "dct"; None for a matrix.
    """

    def __init__(self, dim: int, kind: str = "matrix", shape: Sequence[int] | None = None) -> None:
        """Allocate axes; a matrix is the identity.

        Args:
            dim: D.
            kind: "matrix" or "dct".
            shape: of what a row holds, for "dct"; (D,) where not given.

        Raises:
            ValueError: an unknown kind, or a shape that is not that of a row.
        """
        super().__init__()
        one_of(kind, "axes", ("matrix", "dct"))
        self.dim, self.kind = dim, kind
        self.shape: tuple[int, ...] | None = None
        if kind == "matrix":
            if shape is not None:
                raise ValueError(
                    f"shape = {tuple(shape)} with axes of a matrix: a shape is for axes='dct', leave it out"
                )
            self.register_buffer("columns", torch.eye(dim))
            return
        self.shape = tuple(wholes([dim] if shape is None else shape, "shape"))
        if not 1 <= len(self.shape) <= 3 or math.prod(self.shape) != dim or min(self.shape) < 1:
            raise ValueError(
                f"shape = {self.shape}: pass (D,), (height, width) or (channels, height, width) of D = {dim}"
            )
        for name, side in zip(("_along", "_down"), reversed(self.shape[-2:]), strict=False):
            self.register_buffer(name, cosines(side), persistent=False)

    @classmethod
    def of(cls, matrix: Tensor) -> Axes:
        """Axes whose columns are those of an orthonormal matrix, with shape (D, D)."""
        axes = cls(len(matrix)).to(matrix.device)
        axes._buffers["columns"] = matrix.detach().clone(memory_format=torch.contiguous_format)
        return axes

    @classmethod
    def dct(cls, shape: Sequence[int]) -> Axes:
        """The cosines of signals (D,) or of the channels of pictures (height, width), (channels, height, width)."""
        return cls(math.prod(shape), "dct", shape)

    def down(self, x: Tensor) -> Tensor:
        """Q^T x of every row, with the shape (..., D) of x."""
        return self._turned(x, transposed=False)

    def up(self, u: Tensor) -> Tensor:
        """Q u of every row, with the shape (..., D) of u."""
        return self._turned(u, transposed=True)

    def matrix(self) -> Tensor:
        """Q, with shape (D, D)."""
        if self.kind == "matrix":
            return cast(Tensor, self._buffers["columns"])
        along = cast(Tensor, self._buffers["_along"])
        return self.down(torch.eye(self.dim, dtype=along.dtype, device=along.device))

    def _turned(self, x: Tensor, *, transposed: bool) -> Tensor:
        def side(name: str) -> Tensor:
            Q = cast(Tensor, self._buffers[name]).to(x.dtype)
            return Q.T if transposed else Q

        if self.shape is None:
            return x @ side("columns")
        if len(self.shape) == 1:
            return x @ side("_along")
        channels = x.unflatten(-1, self.shape)
        return (side("_down").T @ (channels @ side("_along"))).flatten(-len(self.shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.element_size() < 4:  # too narrow for a rotation
                self._buffers[name] = old.to(new.device, torch.promote_types(new.dtype, torch.float32))
        return self

    def extra_repr(self) -> str:
        """Kind and shape, for `repr`."""
        return f"{self.dim}, {self.kind!r}" + ("" if self.shape is None else f", shape={self.shape}")


def cosines(side: int) -> Tensor:
    """The orthonormal cosines of type II as columns, with shape (side, side), in float64."""
    at = torch.arange(side, dtype=torch.float64)
    columns = torch.cos(math.pi / side * (at[:, None] + 0.5) * at) * math.sqrt(2 / side)
    columns[:, 0] = math.sqrt(1 / side)
    return columns
