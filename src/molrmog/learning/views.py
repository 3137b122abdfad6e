"""Rows as a structure sees them: in the coordinates of the data, scaled column by column, or along principal axes.

A view knows how the columns of its rows spread, where a fit to them begins, and how a law of what it sees becomes one
of the data.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from molrmog.laws.axes import Axes
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.k_means import k_means
from molrmog.learning.merging import Merged, Merging
from molrmog.learning.rows import Rows
from molrmog.learning.structures import Coordinates, Structure
from molrmog.learning.subspaces import (
    Flat,
    initial_law,
    law_of_flats,
    principal_coordinates,
    principal_flat,
    refined_flats,
)
from molrmog.learning.unequal_starts import unexplained
from molrmog.seeds import torch_generator

_SMALLEST = 1e-9  # standard deviation of noise, in units of the fit
_CONSTANT = 1e-9  # of the overall deviation, from which a coordinate counts as one that varies
_REFINED = 8  # times that clusters of few rows are refined by the flats that are nearest
_SHARED = 1e-3  # of a column's deviation, at least, that others do not tell
_TRIED = 2  # starts of k-means
_CLUSTERS, _ROWS_PER_CLUSTER = 40, 12  # that subspaces and modes are made of, and the rows of one at least
_FEWEST = 5  # rows of a cluster, below which they go to others
_NARROW = 100  # dimensions up to which all principal axes are found at once

Spectrum = tuple[Tensor, Tensor, Tensor]


@dataclass
class View:
    """Rows in some coordinates, near the origin and with a spread near one.

    Attributes:
        rows: in the coordinates of the view.
        coordinates: which these are.
        weights: of the rows, with shape (N,).
        scale: by which columns were divided, with shape (D,), where they were.
        axes: to which rows were turned, where they were.
        seed: of what is looked at.
    """

    rows: Rows
    coordinates: Coordinates
    weights: Tensor | None
    scale: Tensor | None
    axes: Axes | None
    seed: int

    @classmethod
    def of(cls, rows: Rows, coordinates: Coordinates, weights: Tensor | None, seed: int, *, centred: bool) -> View:
        """See rows, which are in units of their own, in coordinates that are found from them."""
        scale = axes = None
        if coordinates == "scaled":
            deviation = rows.deviation(weights)
            overall = float(deviation.square().mean().sqrt())
            scale = torch.where(deviation > _CONSTANT * overall, deviation, overall or 1.0)
        elif coordinates == "principal":
            axes = Axes.of(principal_coordinates(rows, weights, centred=centred, most=rows.dim)[1])
        view = cls(rows, coordinates, weights, scale, axes, seed)
        view.rows = view.seen(rows)
        return view

    def seen(self, rows: Rows) -> Rows:
        """Other rows in the coordinates of this view."""
        if self.scale is not None:
            return rows.divided(self.scale)
        return rows if self.axes is None else rows.turned(self.axes)

    @property
    def log_volume(self) -> float:
        """What a log-density of the view has more than that of the rows, in nats."""
        return 0.0 if self.scale is None else float(self.scale.log().sum())

    def law_of_rows(self, law: MoLRMoG) -> MoLRMoG:
        """The law of the rows from that of what is seen of them."""
        if self.axes is not None:
            return law.with_axes(self.axes)
        return law if self.scale is None else law.stretched(self.scale)

    # --- how the columns spread

    @functools.cached_property
    def deviation(self) -> Tensor:
        """Standard deviation of each column, with shape (D,)."""
        return self.rows.deviation(self.weights)

    @functools.cached_property
    def overall(self) -> float:
        """Root mean square of the deviations."""
        return float(self.deviation.square().mean().sqrt())

    @functools.cached_property
    def _unexplained(self) -> Tensor:
        return unexplained(self.rows, self.weights, self.seed)

    @functools.cached_property
    def _least(self) -> Tensor:
        return (_SHARED * self.deviation).clamp(min=max(_CONSTANT * self.overall, _SMALLEST))

    @functools.cached_property
    def _unit(self) -> Tensor:
        """In which the noise of all columns is about the same, with shape (D,)."""
        return torch.maximum(self._unexplained, self._least)

    def floor(self, structure: Structure) -> Tensor:
        """Least standard deviation of the noise of each column, with shape (D,)."""
        if structure.even or structure.noise == "isotropic":
            least = torch.full_like(self.deviation, self.overall)
        elif self.coordinates == "principal":
            least = self.deviation.clamp(min=self.overall)
        else:
            least = torch.where(self.deviation > _CONSTANT * self.overall, self.deviation, self.overall)
        return (structure.floor * least).clamp(min=_SMALLEST)

    def spread(self, structure: Structure) -> Tensor:
        """Standard deviation of each column that the prior on unequal noise is about, with shape (D,)."""
        if structure.noise == "isotropic" or self.coordinates == "principal":
            return self.deviation
        return torch.maximum(self._unexplained, self.floor(structure))

    # --- where fits begin

    def put_together(self, noise: str, by: str, seed: int, subspaces: int | None = None) -> Merged | None:
        """Subspaces of a kind of noise, made of small clusters; None where rows are too few for several of these.

        Args:
            noise: of a subspace.
            by: "bic" or "aic".
            seed: of the clusters.
            subspaces: how many there are to be; None for as many as gain most.
        """
        asked = noise, seed, subspaces
        if asked not in self._mergings:
            self._mergings[asked] = self._merging(*asked)
        merging = self._mergings[asked]
        return None if merging is None else merging.merge()[by]

    @functools.cached_property
    def _mergings(self) -> dict[tuple[str, int, int | None], Merging | None]:
        return {}

    def _merging(self, noise: str, seed: int, subspaces: int | None) -> Merging | None:
        if len(self.rows) < 2 * _FEWEST:
            return None
        least_count = subspaces or 2
        count = max(least_count, min(_CLUSTERS, int(len(self.rows) / _ROWS_PER_CLUSTER)))
        x = self.rows[slice(0, len(self.rows))].double().cpu()
        least, unit = self._least.cpu(), self._unit.cpu()
        if noise == "isotropic":
            unit = unit.square().mean().sqrt().expand_as(unit)
        clusters, centers = _tightest_clusters(x / unit, count, seed)
        sizes = clusters.bincount(minlength=count)
        enough = min(_FEWEST, int(sizes.sort(descending=True).values[least_count - 1]))
        large = (sizes >= enough).nonzero()[:, 0]  # a row or two are no cluster, unless there have to be so many
        clusters = large[torch.cdist(x / unit, centers[large]).argmin(1)]
        return Merging(x, clusters, noise, unit, least, self.weights, subspaces)

    def begun(self, structure: Structure) -> MoLRMoG:
        """The law from which EM starts where it is known, or where subspaces are put together."""
        if structure.start is not None:
            return structure.start.with_noise(structure.noise).to(self.rows.device)
        assert structure.put_together is not None
        told = structure.subspaces if structure.told_subspaces else None
        merged = self.put_together(structure.made_for, structure.put_together, structure.seed, told)
        if merged is None:
            raise ValueError(f"{len(self.rows)} rows are too few to put subspaces together: give subspaces")
        x = self.rows[slice(0, len(self.rows))].double().cpu()
        least = self.floor(structure).cpu()
        parts: list[Subspace] = []
        for k, (d, n) in enumerate(zip(merged.latent_dims, merged.modes, strict=True)):
            own = merged.subspace == k
            unit = torch.ones_like(least) if structure.noise == "isotropic" else merged.noise[k]
            group = x[own] / unit
            (part,) = law_of_flats(
                [principal_flat(group, max(1, min(d + structure.wider, self.rows.dim)))], [group], [n],
                rank=structure.rank, zero_mean=False, seed=self.seed, least=float((least / unit).max()),
                shares=[len(group) / len(x)], members=[merged.mode[own]],
            )  # fmt: skip
            if structure.noise != "isotropic":
                law = MoLRMoG.from_subspaces([part], dtype=torch.float64).requires_grad_(False)
                part = dataclasses.replace(law.stretched(unit).subspace(0), weight=part.weight)
            parts.append(part)
        law = MoLRMoG.from_subspaces(parts, dtype=torch.float64).requires_grad_(False)
        return law.with_noise(structure.noise).to(self.rows.device)

    def starts(self, structure: Structure, *, zero_mean: bool, labels: Tensor | None = None) -> list[MoLRMoG]:
        """Laws from which EM may start, on any number of rows: see `subspaces` and `unequal_starts`."""
        if structure.is_put_together:
            return [self.begun(structure)]
        shape = self.rows, labels, structure.latent_dims, structure.modes
        options: dict[str, Any] = {"rank": structure.rank, "zero_mean": zero_mean, "seed": self.seed}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "a subspace starts with")
            laws = [initial_law(*shape, noise_floor=float(self.floor(structure).max()), **options)]
            if structure.noise != "isotropic" and self.coordinates == "data":
                laws.append(initial_law(*shape, unit=self.spread(structure), **options))
        return [law.with_noise(structure.noise) for law in laws]

    def quick_start(self, structure: Structure, *, zero_mean: bool) -> MoLRMoG:
        """A law from which EM may start, on rows few enough that clusters are found once for all dimensions."""
        if structure.is_put_together:
            return self.begun(structure)
        u, unit, assigned, spectra = self._clustered(
            structure.subspaces, structure.noise != "isotropic" and self.coordinates == "data", not zero_mean
        )
        dims = structure.latent_dims
        if len(dims) > 1 and 2 * max(dims) <= u.shape[1]:
            flats, assigned = refined_flats(u, assigned, dims, _REFINED, centred=not zero_mean)
        else:
            groups = [u[assigned == k] for k in range(len(dims))]
            groups = [group if len(group) else u for group in groups]  # where rows repeat, clusters remain empty
            flats = [
                principal_flat(group, d, centred=not zero_mean) if spectrum is None else _leading(spectrum, d)
                for d, group, spectrum in zip(dims, groups, spectra, strict=True)
            ]
        least = float(self.floor(structure).max()) if unit is None else structure.floor
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "a subspace starts with")
            parts = law_of_flats(
                flats, [u[assigned == k] for k in range(len(dims))], structure.modes,
                rank=structure.rank, zero_mean=zero_mean, seed=self.seed, least=least,
            )  # fmt: skip
        law = MoLRMoG.from_subspaces(parts, dtype=torch.float64).requires_grad_(False)
        return (law if unit is None else law.stretched(unit)).with_noise(structure.noise)

    @functools.cached_property
    def _clusters(self) -> dict[tuple[int, bool], tuple[Tensor, Tensor | None, Tensor, list[Spectrum | None]]]:
        return {}

    def _clustered(
        self, K: int, in_units: bool, centred: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Spectrum | None]]:
        """Rows, in units where told, the units, the cluster of each row, and its spectrum where that is cheap."""
        if (K, in_units) not in self._clusters:
            x = self.rows[slice(0, len(self.rows))].double()
            unit = self._unit if in_units else None
            u = x if unit is None else x / unit
            assigned = _tightest_clusters(u, K, self.seed)[0]
            groups = [u[assigned == k] for k in range(K)]
            spectra = [
                _spectrum(group, centred) if u.shape[1] <= _NARROW and len(group) > 1 else None for group in groups
            ]
            self._clusters[K, in_units] = u, unit, assigned, spectra
        return self._clusters[K, in_units]


def _tightest_clusters(u: Tensor, K: int, seed: int) -> tuple[Tensor, Tensor]:
    """The cluster of each row, and the centres, of the best of some starts."""
    tries = range(_TRIED if K > 1 else 1)
    found = [k_means(u, K, torch_generator(seed + i), max_iter=10) for i in tries]
    assigned, centers, _ = min(found, key=lambda each: each[2])
    return assigned, centers


def _spectrum(x: Tensor, centred: bool) -> Spectrum:
    """Mean (D,), variances (D,), largest first, and principal axes (D, D) of rows."""
    center = x.mean(0) if centred else x.new_zeros(x.shape[1])
    off = x - center
    values, vectors = torch.linalg.eigh(off.T @ off / len(x))
    return center, values.flip(0).clamp(min=0), vectors.flip(1)


def _leading(spectrum: Spectrum, d: int) -> Flat:
    """The flat of the leading axes."""
    center, values, vectors = spectrum
    noise = float(values[d:].mean().sqrt()) if d < len(values) else 0.0
    return Flat(center, vectors[:, :d].contiguous(), values[:d], noise)
