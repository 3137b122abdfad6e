"""What is observed of a row: y = H x_0 + n, n ~ N(0, R).

| observation                                        | H                                                              |
| -------------------------------------------------- | -------------------------------------------------------------- |
| None                                               | the identity                                                   |
| a mask, booleans (D,), or of a picture's shape     | the rows of the identity that it holds                         |
| masks of their own for each row, booleans (B, D)   | the same, row by row                                           |
| a matrix (m, D)                                    | itself                                                         |
| a function of rows, (B, D) to (B, m)               | its columns, from the identity                                 |
| functions (A, A_adjoint)                           | the same; that they are adjoint is checked                     |
| anything with `A` and `A_adjoint` (deepinv)        | the same, in its pictures' shape; its noise model is read      |

Noise is a standard deviation, one per number of y (m,), or a covariance (m, m).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from molrmog.arguments import shown
from molrmog.laws.base import as_tensor
from molrmog.laws.measured import Measurement

_MOST = 2**28  # numbers of a matrix that is made of a function, 2 GB
_ALIKE = 1e-3  # relative, what functions in float32 may differ by from linear ones
_KINDS = "a mask (D,), a matrix (m, D), functions (A, A_adjoint), an object with A and A_adjoint, or None"


@dataclass(frozen=True)
class Observation:
    """What is observed of rows of R^D, in the coordinates of the data.

    Attributes:
        mask: which coordinates are observed, with shape (1 or B, D); None where they are measured.
        H: with shape (m, D); None for a mask.
        noise: standard deviations of n, with shape (m,), or for a mask (1, D).
        factor: N with the covariance N N^T of n, with shape (m, m), in place of these; None where they are.
    """

    mask: Tensor | None
    H: Tensor | None
    noise: Tensor
    factor: Tensor | None

    @property
    def by_coordinate(self) -> bool:
        """Whether coordinates are observed each for itself."""
        return self.mask is not None and self.factor is None

    @property
    def size(self) -> int:
        """How many numbers y has; D where every row has a mask of its own."""
        return _size(self.mask, self.H)

    def measurement(self) -> Measurement:
        """The same as a matrix and its noise; a mask must be one for all rows."""
        if self.mask is None:
            assert self.H is not None
            return Measurement(self.H, self.noise if self.factor is None else self.factor)
        seen = self.mask[0]
        H = torch.eye(len(seen), dtype=torch.float64, device=seen.device)[seen]
        return Measurement(H, self.noise[0, seen] if self.factor is None else self.factor)


def read_observation(observation: Any, noise: Any, dim: int, device: torch.device) -> Observation:
    """What an observation says, as one of a few kinds.

    Args:
        observation: see the module.
        noise: see the module; None for that of the observation's own noise model, or none.
        dim: D.
        device: of the law.

    Raises:
        ValueError: it is no observation of rows of R^D, or the noise does not go with it.
    """
    if noise is None:
        noise = _own_noise(observation)
    mask, H = None, None
    if observation is None:
        mask = torch.ones(1, dim, dtype=torch.bool, device=device)
    elif callable(observation) or hasattr(observation, "A") or _is_pair(observation):
        H = _matrix_of(observation, dim, device)
    else:
        value = as_tensor(observation, "observation").to(device)
        if value.dtype == torch.bool:
            mask = value if value.ndim == 2 and value.shape[1] == dim else value.reshape(1, -1)
            if mask.shape[1] != dim:
                raise ValueError(f"a mask has shape {tuple(value.shape)}, but rows have {dim} columns: pass ({dim},)")
        elif value.ndim == 2 and value.shape[1] == dim:
            H = value.double()
        else:
            raise ValueError(
                f"observation has shape {tuple(value.shape)} and type {value.dtype}: pass {_KINDS}, where D = {dim}"
            )
    if H is not None and not bool(H.isfinite().all()):
        raise ValueError("the observation's matrix holds NaN or infinite numbers: pass finite ones")
    return Observation(mask, H, *_noise_of(noise, _size(mask, H), mask, device))


def _size(mask: Tensor | None, H: Tensor | None) -> int:
    """How many numbers y has; D where every row has a mask of its own."""
    if mask is None:
        assert H is not None
        return len(H)
    return int(mask.sum()) if len(mask) == 1 else mask.shape[1]


def _noise_of(noise: Any, m: int, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Standard deviations (m,), of a mask (1, D), and a factor (m, m) of a covariance where it is one.

    Raises:
        ValueError: it is none.
    """
    mend = f"pass a standard deviation >= 0, one per number of y, ({m},), or a covariance ({m}, {m})"
    value = as_tensor(noise, "noise").to(device).double()
    if value.ndim == 2 and value.shape == (m, m):
        if mask is not None and len(mask) > 1:
            raise ValueError("rows with masks of their own have noise by coordinate: pass a standard deviation")
        if not torch.allclose(value, value.T, rtol=1e-6, atol=1e-9 * float(value.abs().max()) if m else 0.0):
            raise ValueError(f"noise is no covariance, for it is not symmetric: {mend}")
        values, vectors = torch.linalg.eigh(0.5 * (value + value.T))
        if m and float(values[0]) < -1e-6 * float(values[-1].abs()):
            raise ValueError(f"noise is no covariance, for it has an eigenvalue {float(values[0]):.3g}: {mend}")
        return value.diagonal().clamp(min=0).sqrt(), vectors * values.clamp(min=0).sqrt()
    if value.ndim > 1 or (value.ndim == 1 and len(value) not in (1, m, *(mask.shape[1:] if mask is not None else ()))):
        raise ValueError(f"noise has shape {tuple(value.shape)}: {mend}")
    if not bool((value >= 0).all()):
        raise ValueError(f"noise = {shown(noise)} is negative or NaN: {mend}")
    if mask is None:
        return value.expand(m).clone(), None
    whole = torch.zeros(mask.shape[1:], dtype=torch.float64, device=device)
    if value.ndim == 1 and len(value) == m != len(whole):
        whole[mask[0]] = value
    else:
        whole += value
    return whole[None], None


def _is_pair(observation: Any) -> bool:
    return isinstance(observation, tuple) and len(observation) == 2 and all(callable(each) for each in observation)


def _own_noise(observation: Any) -> Any:
    """The standard deviation of an observation's own noise model, zero where it has none.

    Raises:
        ValueError: its noise is not Gaussian.
    """
    model = getattr(observation, "noise_model", None)
    sigma = getattr(model, "sigma", None)
    name = type(model).__name__
    if model is None or name == "ZeroNoise":
        return 0.0
    if sigma is None or "Gaussian" not in name or "Poisson" in name:
        raise ValueError(f"this observation has noise of kind {name}, and the law takes Gaussian noise: pass noise")
    return sigma


def _matrix_of(observation: Any, dim: int, device: torch.device) -> Tensor:
    """The matrix (m, D) of functions of rows, in float64.

    Raises:
        ValueError: they fail, are not linear, or not adjoint.
    """
    A: Callable[[Tensor], Any]
    adjoint: Callable[[Tensor], Any] | None
    if _is_pair(observation):
        A, adjoint = observation
    elif hasattr(observation, "A"):
        A, adjoint = observation.A, getattr(observation, "A_adjoint", None)
    else:
        A, adjoint = observation, None
    shape = getattr(observation, "img_size", None)
    shape = tuple(shape) if shape is not None and math.prod(shape) == dim else (dim,)

    def applied(rows: Tensor) -> Tensor:
        for dtype in (torch.float64, torch.float32):
            try:
                found = A(rows.to(dtype).view(-1, *shape))
                break
            except RuntimeError:  # of parts in another dtype
                if dtype == torch.float32:
                    raise
        return torch.as_tensor(found).detach().double().reshape(len(rows), -1).to(device)  # pyright: ignore

    with torch.no_grad():
        try:
            nothing = applied(torch.zeros(1, dim, device=device))
        except Exception as error:  # of a function of anybody's
            raise ValueError(
                f"the observation fails on a row of {dim} zeros ({' '.join(str(error).split())[:80]}): pass a function "
                f"from (B, {dim}) to (B, m)"
            ) from None
        m = nothing.shape[1]
        if m * dim > _MOST:
            raise ValueError(f"this observation makes a matrix of {m:,} x {dim:,} numbers: pass one with fewer rows")
        H = torch.cat([applied(rows) for rows in torch.eye(dim, device=device, dtype=torch.float64).split(256)]).T
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(2, dim, generator=generator, dtype=torch.float64).to(device)
        size = float((some @ H.T).abs().max()) or 1.0
        if float(nothing.abs().max() if m else 0.0) > _ALIKE * size or not torch.allclose(
            applied(some), some @ H.T, rtol=0, atol=_ALIKE * size
        ):
            raise ValueError("this observation is not linear: pass one that is, and what it adds as part of y")
        if adjoint is not None:
            y = torch.randn(1, m, generator=generator, dtype=torch.float64).to(device)
            like = A(some[:1].float().view(-1, *shape))
            back = torch.as_tensor(adjoint(y.float().view_as(torch.as_tensor(like)))).detach().double().reshape(1, -1)
            if back.shape[1] != dim or not torch.allclose(
                back.to(device), y @ H, rtol=0, atol=_ALIKE * (float((y @ H).abs().max()) or 1.0)
            ):
                raise ValueError("A_adjoint is not the adjoint of A: pass its transpose")
    return H
