"""Numbers that depend on the noise level alone, kept as a table over log sigma, sigma = gamma / s.

x_t / s = x_0 + sigma eps: whatever is asked of a denoiser that respects this scaling depends on sigma alone, so one
table serves every schedule. Between its levels it is linear in log sigma, beyond its ends constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_FEWEST = 20  # rows from which a table can be filled
_LOW, _HIGH, _LEVELS = math.log(1e-3), math.log(1e2), 47  # a quarter of a nat apart


def log_sigma_grid() -> Tensor:
    """The log(gamma / s) of a table, ascending, with shape (L,), float64."""
    return torch.linspace(_LOW, _HIGH, _LEVELS, dtype=torch.float64)


def unit_level(log_sigma: Tensor | float) -> tuple[float, float]:
    """S and gamma with gamma / s = sigma and s^2 + gamma^2 = 1.

    Example:
        >>> unit_level(0.0)
        (0.707..., 0.707...)
    """
    sigma = math.exp(float(log_sigma))
    s = 1 / math.hypot(1, sigma)
    return s, s * sigma


def check_rows(x: Tensor, dim: int) -> None:
    """Refuse rows that a table cannot be filled from.

    Raises:
        ValueError: they are not (N, dim), too few, not finite, or all zero.
    """
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}: pass rows with shape (N, {dim})")
    if len(x) < _FEWEST:
        raise ValueError(f"{len(x)} rows: pass at least {_FEWEST}, of which the table takes its figures")
    if not bool(x.isfinite().all()) or not bool(x.any()):
        raise ValueError("rows that hold NaN or infinity, or nothing but zeros: leave these rows out")


class LevelTable(nn.Module):
    """A function of the noise level, zero until it is filled.

    Attributes:
        values: at the levels of `log_sigma_grid`, with shape (L, *shape).
    """

    values: Tensor

    def __init__(self, *shape: int) -> None:
        """Allocate a table.

        Args:
            shape: of one value; a number where not given.
        """
        super().__init__()
        self.register_buffer("values", torch.zeros(_LEVELS, *shape))

    def forward(self, s: Tensor, gamma: Tensor) -> Tensor:
        """The value at each noise level, with shape (B, *shape).

        Args:
            s: signal scales, with shape (B,); zero counts as the last level, whatever gamma.
            gamma: noise standard deviations, with shape (B,); zero counts as the first level.

        A level that is not a number has values that are none.
        """
        at = torch.where(s == 0, _HIGH, gamma.log() - s.log()).clamp(_LOW, _HIGH)  # -inf and inf are clamped, too
        place = (at - _LOW) * ((_LEVELS - 1) / (_HIGH - _LOW))
        left = place.floor().clamp(max=_LEVELS - 2).nan_to_num().long()
        share = (place - left).reshape(-1, *[1] * (self.values.ndim - 1))
        values = self.values.to(place.dtype)
        return (1 - share) * values[left] + share * values[left + 1]
