"""The structure of a law: what is chosen before EM can begin.

K subspaces, each with its dimension d_k and its number n_k of modes
the kind of noise, and in which coordinates
how many rows the priors are worth, by which modes lean on each other and noise on that of all rows
how far EM goes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from molrmog.laws.freedom import degrees_of_freedom

if TYPE_CHECKING:
    from molrmog.laws.molrmog import MoLRMoG

Coordinates = Literal["data", "scaled", "principal"]
Kind = tuple[str, Coordinates]

FLOOR = 1e-3
_WORDS = {
    ("isotropic", "data"): "isotropic noise",
    ("isotropic", "scaled"): "noise in proportion to each column's spread",
    ("diagonal", "data"): "noise of its own for each coordinate and subspace",
    ("diagonal", "principal"): "noise of its own for each principal axis and subspace",
    ("shared", "data"): "noise of its own for each coordinate, shared by all subspaces",
    ("shared", "principal"): "noise of its own for each principal axis, shared by all subspaces",
}


@dataclass(frozen=True)
class Structure:
    """The shape of a law, and how its fit begins and ends.

    Attributes:
        latent_dims: d_k of each subspace.
        modes: n_k of each subspace.
        noise: off the subspaces: "isotropic", "diagonal" or "shared".
        coordinates: in which noise is that: "data", those of the rows; "scaled", columns divided by their standard
            deviation; "principal", the principal axes of all rows.
        prior_rows: how many rows the prior on each mode's covariance is worth; the largest d_k where None.
        noise_rows: how many rows the prior on unequal noise is worth.
        floor: least standard deviation of the noise, of that of a column; of all columns where `even`.
        even: whether the floor is the same for all columns.
        rank: of every mode's covariance; d_k where None.
        passes: of EM, at most; None for as many as it takes.
        put_together: by which criterion, "bic" or "aic", subspaces were made of small clusters, each with a shape of
            its own; None where they begin with k-means.
        wider: dimensions that each of these has more than it came out with.
        told_subspaces: whether there had to be as many of them as there are.
        made_for: kind of noise that this was done for.
        seed: of these clusters.
        start: law of the rows that EM begins with, where it is known.
    """

    latent_dims: tuple[int, ...]
    modes: tuple[int, ...]
    noise: str = "isotropic"
    coordinates: Coordinates = "data"
    prior_rows: float | None = None
    noise_rows: float = 1.0
    floor: float = FLOOR
    even: bool = False
    rank: int | None = None
    passes: int | None = None
    put_together: Literal["bic", "aic"] | None = None
    wider: int = 0
    told_subspaces: bool = False
    made_for: str = "isotropic"
    seed: int = 0
    start: MoLRMoG | None = field(default=None, repr=False, compare=False)

    @property
    def subspaces(self) -> int:
        """Number K of subspaces."""
        return len(self.modes)

    @property
    def is_put_together(self) -> bool:
        """Whether subspaces were put together from small clusters."""
        return self.put_together is not None

    @property
    def kind(self) -> Kind:
        """The kind of noise, and its coordinates."""
        return self.noise, self.coordinates

    @property
    def nu(self) -> float:
        """How many rows the prior on each mode's covariance is worth."""
        return float(max(self.latent_dims)) if self.prior_rows is None else self.prior_rows

    def ranks(self) -> list[list[int]]:
        """Rank of each mode's covariance."""
        of = [d if self.rank is None else min(d, self.rank) for d in self.latent_dims]
        return [[r] * n for r, n in zip(of, self.modes, strict=True)]

    def degrees_of_freedom(self, dim: int) -> int:
        """Of a law of this structure over R^dim."""
        turned = self.coordinates == "principal"
        return degrees_of_freedom(dim, self.latent_dims, self.ranks(), self.noise, turned=turned)

    def __str__(self) -> str:
        return self.words()

    def words(self, dim: int | None = None) -> str:
        """The structure in words; where it fills all of R^dim, it has no noise to speak of."""
        K = self.subspaces
        several = "subspace" if K == 1 else "subspaces"
        words = f"{K} {several} of dimension {_listed(self.latent_dims)}, {_modes(self.modes)}"
        full = dim is not None and min(self.latent_dims) >= dim and self.rank is None
        if self.rank is not None and max(self.modes) > 1:
            words += f" of rank {self.rank}"
        words += ", full covariances" if full else f", {_WORDS[self.noise, self.coordinates]}"
        if max(self.modes) > 1:
            words += f", covariances of modes lean on each other by {self.nu:,.4g} rows"
        return words


def _listed(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _modes(numbers: Sequence[int]) -> str:
    many = "mode" if max(numbers) == 1 else "modes"
    return f"{_listed(numbers)} {many}{' each' if len(numbers) > 1 else ''}"
