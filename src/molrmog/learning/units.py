"""Units of a fit: whatever rows are measured in, learning sees them near the origin and with a spread near one.

    x = centre + unit u,      log p(x) = log p(u) - D log unit

A length may be given in metres or in light years, a time in seconds since 1970. Learning works on u, so that none of
its floors and tolerances means anything in the units of x, no square leaves the range of float32, and no digits of the
spread are lost to the mean. The unit is a power of two: multiplying by it rounds nothing, and a fit to 2 x is the fit
to x, scaled, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from molrmog.laws.base import Law

_FAR = 16  # spreads; rows whose mean is nearer lose no more than four bits to it, and stay where they are

LawT = TypeVar("LawT", bound=Law)


@dataclass(frozen=True)
class Units:
    """How rows x in data units and rows u in the units of a fit are related: x = centre + unit u.

    Attributes:
        centre: the origin, or the mean where that is far, in data units, float64, with shape (D,).
        unit: a power of two near the spread of the rows, in data units.
    """

    centre: Tensor
    unit: float

    @property
    def log_volume(self) -> float:
        """D log unit, in nats: log p(x) = log p(u) - log_volume."""
        return len(self.centre) * math.log(self.unit)

    @property
    def _same(self) -> bool:
        return self.unit == 1 and not bool(self.centre.any())

    def law_of_rows(self, law: LawT) -> LawT:
        """The law of x from the law of u."""
        return law if self._same else law.scaled(self.unit, self.centre)

    def law_inside(self, law: LawT) -> LawT:
        """The law of u from the law of x, a copy."""
        return law.scaled(1.0, -self.centre).scaled(1 / self.unit)

    def along(self, axes: int) -> Units:
        """Units of coordinates of u on so many orthonormal axes: the same unit, no centre."""
        return Units(self.centre.new_zeros(axes), self.unit)


@dataclass(frozen=True)
class Moments:
    """Mean and spread of each column of a table.

    Attributes:
        mean: in data units, float64, with shape (D,).
        deviation: standard deviation, in data units, float64, with shape (D,).
    """

    mean: Tensor
    deviation: Tensor

    @property
    def spread(self) -> float:
        """Root mean square deviation of all entries from the mean row, in data units."""
        return _root_mean_square(self.deviation)

    def units(self, dtype: torch.dtype, *, centred: bool = True) -> Units:
        """Units in which rows of this dtype have a spread near one.

        Where all rows are equal they have no spread: their size is the unit, and one where they are zero.

        Args:
            dtype: in which rows are moved and divided, float32 or float64.
            centred: about the mean, rounded to `dtype`, where it is far; about the origin where not.
        """
        size = self.spread or _root_mean_square(self.mean) or 1.0
        most = 126 if dtype == torch.float32 else 1000  # a power of two and its inverse are in range
        fraction, exponent = math.frexp(size)  # exact, as a logarithm is not
        exponent = min(max(exponent - (fraction < math.sqrt(0.5)), -most), most)
        far = centred and float(self.mean.abs().max()) > _FAR * self.spread
        centre = self.mean.to(dtype).double() if far else torch.zeros_like(self.mean)
        return Units(centre, 2.0**exponent)


def _root_mean_square(x: Tensor) -> float:
    """Without overflow and underflow: squares of 1e160 leave the range of float64."""
    largest = float(x.abs().max())
    return largest * math.sqrt(float((x / largest).square().mean())) if largest > 0 else 0.0
