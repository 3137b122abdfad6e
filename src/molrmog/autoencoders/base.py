"""What an expert needs of an autoencoder: rows to standardised latents and back.

    z = (E(x) - mean) / scale,      x ~ G(mean + scale z)

E, G are the raw encoder and decoder of a subclass. After `standardise_` the latents of the data have mean zero, and
(1/d) tr Cov[z] = 1. There is one mean per coordinate and ONE scale per autoencoder: noise that is isotropic in z is
isotropic in the raw latents, too, and a coordinate that the encoder has left unused stays small instead of being blown
up to unit variance. Both are buffers, saved with the model, since a denoiser of z means nothing without them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self, overload

import numpy as np
import torch
from torch import Tensor, nn

from molrmog.arguments import whole, wholes
from molrmog.data.arrays import as_numbers
from molrmog.laws.base import as_tensor
from molrmog.models import Model, Noise
from molrmog.registry import build

# Numbers of x in a chunk: a network may hold a hundred times as many on the way.
_CHUNK_NUMBERS = 2**21


class Autoencoder(Model):
    """A pair of encode and decode on rows.

    A subclass writes :meth:`encode_raw` and :meth:`decode_raw`, and `config` with its constructor's arguments.

    Attributes:
        shape: event shape of the data, e.g. (C, H, W).
        latent_shape: event shape of the latents, (d,) or (c, h, w).
        latent_mean: mean of the raw latents, with shape (d,).
        latent_scale: their scale, in raw latent units, with shape ().
        linear: whether encode and decode are affine with orthonormal columns, so that noised pixels are noised latents.
    """

    kind = "autoencoder"
    frozen = True
    linear: ClassVar[bool] = False
    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, shape: Sequence[int], latent_shape: Sequence[int]) -> None:
        """Allocate the standardisation; it is the identity until :meth:`standardise_`.

        Args:
            shape: event shape of the data.
            latent_shape: event shape of the latents.

        Raises:
            ValueError: a shape is empty or holds a size below 1.
        """
        super().__init__()
        mend = "give positive sizes, e.g. (1, 28, 28) or (16,)"
        self.shape = wholes(shape, "shape", 1, mend)
        self.latent_shape = wholes(latent_shape, "latent_shape", 1, mend)
        self.register_buffer("latent_mean", torch.zeros(self.latent_dim))
        self.register_buffer("latent_scale", torch.ones(()))

    def check_loaded(self) -> None:
        """Refuse a scale that is not above zero."""
        if not bool((self.latent_scale > 0).all()):
            raise ValueError("latent_scale is not above zero")

    @abstractmethod
    def encode_raw(self, x: Tensor) -> Tensor:
        """Latents before standardisation, with shape (B, d), of rows with shape (B, D)."""

    @abstractmethod
    def decode_raw(self, z: Tensor) -> Tensor:
        """Rows with shape (B, D) of latents before standardisation, with shape (B, d)."""

    @property
    def dim(self) -> int:
        """Dimension D of the data."""
        return math.prod(self.shape)

    @property
    def latent_dim(self) -> int:
        """Dimension d of the latents."""
        return math.prod(self.latent_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Standardised latents with shape (B, d) of rows with shape (B, D)."""
        return (self.encode_raw(x) - self.latent_mean) / self.latent_scale

    def decode(self, z: Tensor) -> Tensor:
        """Rows with shape (B, D) of standardised latents with shape (B, d)."""
        return self.decode_raw(self.latent_mean + self.latent_scale * z)

    @torch.no_grad()
    def encode_data(self, x: Tensor | np.ndarray, chunk: int | None = None) -> Tensor:
        """Standardised latents of a whole data set, without gradients, chunk by chunk.

        Args:
            x: rows with shape (N, D); an array may be a memory map.
            chunk: rows that are in memory together; by the size of a row where not given.

        Returns:
            Latents with shape (N, d), on the autoencoder's device.
        """
        return torch.cat([self.encode(rows) for rows in self._chunks(x, chunk)])

    @torch.no_grad()
    def standardise_(self, x: Tensor | np.ndarray, chunk: int | None = None) -> Self:
        """Set mean and scale so that the latents of `x` are centred and have unit mean variance.

        Args:
            x: rows with shape (N, D), N >= 2; an array may be a memory map.
            chunk: rows that are in memory together; by the size of a row where not given.

        Returns:
            The autoencoder itself.

        Raises:
            ValueError: the latents are not finite, or are the same for all rows.
        """
        latents = (self.encode_raw(rows).double() for rows in self._chunks(x, chunk))
        mean, scale = _moments(latents)
        self.latent_mean.copy_(mean)
        self.latent_scale.copy_(scale)
        return self

    def _chunks(self, x: Tensor | np.ndarray, chunk: int | None) -> Iterator[Tensor]:
        x = as_numbers(x)
        if x.ndim != 2 or x.shape[1] != self.dim or not len(x):
            raise ValueError(f"x has shape {tuple(x.shape)}: pass at least one row, (N, {self.dim})")
        chunk = max(1, _CHUNK_NUMBERS // self.dim) if chunk is None else whole(chunk, "chunk", 1)
        for start in range(0, len(x), chunk):
            yield as_tensor(x[start : start + chunk]).to(self.latent_mean.device, self.latent_mean.dtype)

    def extra_repr(self) -> str:
        """Shapes, for `repr`."""
        return f"shape={self.shape}, latent_shape={self.latent_shape}"


class AutoencoderList(nn.ModuleList):
    """Autoencoders side by side, one per expert, or a single one that all share."""

    @overload
    def __getitem__(self, idx: slice) -> AutoencoderList: ...
    @overload
    def __getitem__(self, idx: int) -> Autoencoder: ...
    def __getitem__(self, idx: int | slice) -> Any:
        return super().__getitem__(idx)

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()

    @property
    def config(self) -> list[dict[str, Any]]:
        """What builds each of them."""
        return [each.config for each in self]


def build_autoencoder(config: dict[str, Any]) -> Autoencoder:
    """Build the autoencoder that `config` describes, with fresh weights; `load_state_dict` fills them in.

    Raises:
        ValueError: there is no such autoencoder, or it is several.
    """
    found = build(config, "autoencoder")
    if not isinstance(found, Autoencoder):
        raise ValueError(f"a {type(found).__name__} is several autoencoders: build it with build_autoencoders")
    return found


def encode_noised(autoencoder: Autoencoder, x: Tensor, s: Noise) -> Tensor:
    """Noised latents z_t = s z_0 + (gamma / latent_scale) e of noised rows, with shape (B, d), exactly.

    A linear `encode` is affine, and its constant belongs to x_0 alone: z_t = encode(x_t) + (s - 1) encode(0).

    Args:
        autoencoder: a linear one.
        x: rows of x_t = s x_0 + gamma eps, with shape (B, D).
        s: signal scale, a float or one per row with shape (B,).
    """
    s = s[:, None] if isinstance(s, Tensor) and s.ndim else s
    return autoencoder.encode(x) + (s - 1) * autoencoder.encode(torch.zeros_like(x[:1]))


def _moments(chunks: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (d,) and root mean variance () of latents that come in chunks (B, d) of float64.

    Sums are taken about the first row, so that a mean far from zero cancels nothing.
    """
    count, origin, total, squares = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for z in chunks:
        if not count:
            origin, total, squares = z[0], torch.zeros_like(z[0]), torch.zeros_like(z[0])
        count += len(z)
        total = total + (z - origin).sum(0)
        squares = squares + (z - origin).square().sum(0)
    variance = (squares / count - (total / count).square()).mean()
    if not bool(variance.isfinite()):
        raise ValueError("some latents are NaN or infinite: train the autoencoder, or drop such rows")
    if not float(variance) > 0:
        raise ValueError(f"all {count} rows have the same latents: train the autoencoder, or pass other rows")
    return origin + total / count, variance.sqrt()
