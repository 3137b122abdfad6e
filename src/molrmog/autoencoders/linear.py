"""The linear autoencoder: a subspace, its coordinates and back, exact and without training.

    z = A^T (x - b),      x = b + A z,      A^T A = I

A rotation commutes with isotropic noise, so noising pixels is noising latents: with x_t = s x_0 + gamma eps,

    A^T (x_t - s b) = s z_0 + gamma e,      e ~ N(0, I_d),

and denoising in the latent is denoising of the part of x_t in the subspace. Through a learned encoder this is not so.
Standardised latents (z - mean) / scale see the noise gamma / scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from molrmog.arguments import is_a, shown, whole
from molrmog.autoencoders.base import Autoencoder, encode_noised
from molrmog.checks import check_orthonormal
from molrmog.laws.base import Subspace, as_tensor
from molrmog.models import Noise


class LinearAutoencoder(Autoencoder):
    """Coordinates in a subspace.

    Attributes:
        basis: A, orthonormal columns, with shape (D, d); not trained.
        offset: b, with shape (D,); not trained.

    Example:
        >>> x = torch.randn(100, 6) @ torch.randn(6, 6)
        >>> autoencoder = LinearAutoencoder.from_pca(x, 6)
        >>> torch.dist(autoencoder.decode(autoencoder.encode(x)), x) < 1e-3
        tensor(True)
    """

    linear = True

    def __init__(self, shape: Sequence[int], latent_dim: int) -> None:
        """Allocate a subspace: the first d coordinate axes through the origin.

        Args:
            shape: event shape of the data.
            latent_dim: dimension d, at most D.

        Raises:
            ValueError: there is no such subspace.
        """
        latent_dim = whole(latent_dim, "latent_dim", 1)
        super().__init__(shape, (latent_dim,))
        if latent_dim > self.dim:
            raise ValueError(f"latent_dim = {latent_dim}: a subspace of R^{self.dim} has a dimension of at most that")
        self.basis = nn.Parameter(torch.eye(self.dim, latent_dim), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(self.dim), requires_grad=False)

    def check_loaded(self) -> None:
        """Refuse a scale that is not above zero, and a basis that is not orthonormal."""
        super().check_loaded()
        check_orthonormal("basis", self.basis[None], [self.latent_dim])

    @property
    def config(self) -> dict[str, Any]:
        """What builds the autoencoder."""
        return {"autoencoder": "LinearAutoencoder", "shape": list(self.shape), "latent_dim": self.latent_dim}

    @classmethod
    def from_basis(cls, basis: Tensor, offset: Tensor, shape: Sequence[int] | None = None) -> Self:
        """Take a basis and an offset, e.g. of one subspace.

        Args:
            basis: orthonormal columns, with shape (D, d).
            offset: with shape (D,).
            shape: event shape of the data; (D,) where not given.

        Raises:
            ValueError: the basis is not orthonormal, or shapes do not fit together.
        """
        for name, value, axes in (("basis", basis, 2), ("offset", offset, 1)):
            if not is_a(value, Tensor) or not value.is_floating_point() or value.ndim != axes:
                raise ValueError(f"{name} = {shown(value)}: pass a tensor of real numbers with {axes} axes")
        autoencoder = cls((len(basis),) if shape is None else shape, basis.shape[1])
        if basis.shape != autoencoder.basis.shape or offset.shape != autoencoder.offset.shape:
            raise ValueError(
                f"basis {tuple(basis.shape)}, offset {tuple(offset.shape)} and shape {autoencoder.shape} do not fit: "
                "pass (D, d), (D,) and sizes whose product is D"
            )
        gram = basis.T @ basis
        if not torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-3):
            raise ValueError("the basis is not orthonormal: pass torch.linalg.qr(basis).Q")
        with torch.no_grad():
            autoencoder.to(basis.device, basis.dtype)
            autoencoder.basis.copy_(basis)
            autoencoder.offset.copy_(offset)
        return autoencoder

    @classmethod
    def from_subspace(cls, subspace: Subspace, shape: Sequence[int] | None = None) -> Self:
        """Take basis and offset of a law's subspace, as `law.subspace(k)` gives it."""
        return cls.from_basis(subspace.basis, subspace.offset, shape)

    @classmethod
    def from_pca(cls, x: Tensor | np.ndarray, latent_dim: int, shape: Sequence[int] | None = None) -> Self:
        """Take the mean and the leading principal axes of the rows, and standardise on them.

        Args:
            x: rows with shape (N, D).
            latent_dim: number d of axes, at most min(N - 1, D).
            shape: event shape of the data; (D,) where not given.

        Returns:
            The autoencoder whose reconstructions have the smallest mean squared error of all linear ones.

        Raises:
            ValueError: there are too few rows, or they do not vary in d directions.
        """
        rows, latent_dim = as_tensor(x), whole(latent_dim, "latent_dim")
        if rows.ndim != 2 or not 1 <= latent_dim <= min(len(rows) - 1, rows.shape[1]):
            raise ValueError(
                f"latent_dim = {latent_dim} of rows {tuple(rows.shape)}: PCA holds 1 to min(N - 1, D) axes"
            )
        if not bool(rows.isfinite().all()):
            raise ValueError("x holds NaN or infinite entries: drop or fill those rows first")
        offset = rows.double().mean(0)
        # The smaller of the two Gram matrices: a few images of many pixels cost N^2 D, not D^3.
        centred = rows.double() - offset
        if len(rows) < rows.shape[1]:
            variance, left = torch.linalg.eigh(centred @ centred.T)
            axes = centred.T @ left[:, -latent_dim:]
        else:
            variance, axes = torch.linalg.eigh(centred.T @ centred)
        if not float(variance[-latent_dim]) > 1e-12 * float(variance[-1]):
            raise ValueError(f"the rows vary in fewer than latent_dim = {latent_dim} directions: ask for fewer")
        basis = torch.linalg.qr(axes[:, -latent_dim:].flip(1)).Q
        # Of half precision no basis is orthonormal.
        dtype = rows.dtype if rows.dtype in (torch.float32, torch.float64) else torch.get_default_dtype()
        return cls.from_basis(basis.to(dtype), offset.to(dtype), shape).standardise_(rows)

    def encode_raw(self, x: Tensor) -> Tensor:
        """Coordinates A^T (x - b), with shape (B, d)."""
        return (x - self.offset) @ self.basis

    def decode_raw(self, z: Tensor) -> Tensor:
        """The points b + A z, with shape (B, D)."""
        return torch.addmm(self.offset, z, self.basis.T)

    def encode_noised(self, x: Tensor, s: Noise, gamma: Noise) -> tuple[Tensor, Noise]:
        """Noised latents of noised rows, exactly.

        Args:
            x: rows of x_t = s x_0 + gamma eps, with shape (B, D).
            s: signal scale, a float or one per row with shape (B,).
            gamma: noise standard deviation, a float or one per row with shape (B,).

        Returns:
            z_t = s z_0 + gamma_z e with shape (B, d), where z_0 is what :meth:`encode` makes of x_0 and e ~ N(0, I),
            and gamma_z = gamma / latent_scale.
        """
        return encode_noised(self, x, s), gamma / self.latent_scale
