"""The structure of a law from rows: what was asked for is kept, the rest is chosen."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from molrmog.arguments import flag, one_of, one_or_several, whole
from molrmog.laws.axes import Axes
from molrmog.laws.molrmog import NOISES, MoLRMoG
from molrmog.learning.asked import (
    Read,
    at_least_zero,
    axes_asked,
    check_classes,
    check_count,
    check_sizes,
    is_auto,
    per_subspace,
    read,
    rows_of,
)
from molrmog.learning.completing import incomplete_of
from molrmog.learning.rows import Rows
from molrmog.learning.search import KINDS, Given
from molrmog.learning.selection import CRITERIA, Selection, choose, expected_seconds
from molrmog.learning.structures import Coordinates
from molrmog.learning.units import Units
from molrmog.progress import progress as stages
from molrmog.seeds import seed_of

_LONG = 120  # seconds of a choice that are said before it begins


def select(
    x: Any,
    labels: Any = None,
    subspaces: int | Literal["auto"] = "auto",
    latent_dim: int | Sequence[int] | Literal["auto"] = "auto",
    modes: int | Sequence[int] | Literal["auto"] = "auto",
    rank: int | None = None,
    seed: int = 0,
    *,
    noise: Literal["isotropic", "diagonal", "shared", "auto"] = "auto",
    axes: Literal["pca", "dct"] | Tensor | None = None,
    criterion: Literal["held-out", "bic", "icl"] = "held-out",
    zero_mean: bool = False,
    prior_rows: float | None = None,
    noise_floor: float | None = None,
    weights: Any = None,
    validation: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Choose the structure of a law from rows: K, d_k, n_k, the noise, and how far modes lean on each other.

    From one Gaussian the search goes to more parts, a step of each number at a time, until no step is an improvement.
    Few rows are judged by folds that are held out in turn, many by a fifth of a sample.

    Args:
        x: rows, with shape (N, D), as `fit` takes them.
        labels: class of each row, with shape (N,): one subspace per class, each of its own shape.
        subspaces: K where it is not to be chosen, and so for the next ones.
        latent_dim: d_k, of all subspaces or one per subspace.
        modes: n_k, of all subspaces or one per subspace.
        rank: of every mode's covariance; d_k where not given.
        seed: of everything random.
        noise: off the subspaces.
        axes: whose coordinates unequal noise goes along.
        criterion: "held-out", nats per row that was held out; "bic" or "icl", of all rows: for small tables whose parts
            are to be counted rather than their density found.
        zero_mean: keep all means at zero.
        prior_rows: how many rows the prior on each mode's covariance is worth.
        noise_floor: smallest standard deviation of the noise, in data units.
        weights: how many rows each row counts as, with shape (N,).
        validation: rows to judge by, in place of held-out ones.
        dtype: float32 or float64, to compute in.
        device: to compute on.
        progress: show how far it is.

    Returns:
        What was tried, the best first, and what was chosen. `fit(x, selection=found)` fits it.

    Raises:
        ValueError: as `fit` does.
    """
    seed, judge = seed_of(seed), one_of(criterion, "criterion", CRITERIA)
    rows = rows_of(x, dtype=dtype, device=device)
    if (incomplete := incomplete_of(rows, validation)) is not None:
        rows, validation = incomplete.completed(incomplete.gaussian(seed), seed)
    given = read(rows, labels, weights, validation)
    turn = axes_asked(x, axes, given.rows.dim)
    rank, prior_rows, noise_floor = at_least_zero(rank, prior_rows, noise_floor)
    asked = {"subspaces": subspaces, "latent_dim": latent_dim, "modes": modes, "noise": noise}
    fixed = given_numbers(given, asked, rank, turn, prior_rows, noise_floor)
    zero_mean = flag(zero_mean, "zero_mean")
    standard = Standard.of(given, turn, zero_mean=zero_mean)
    return choice(
        standard, given, fixed, criterion=judge, zero_mean=zero_mean, seed=seed, progress=flag(progress, "progress")
    )


@dataclass
class Standard:
    """Rows near the origin with a spread near one, turned to the axes that were given; see `units`."""

    rows: Rows
    held_out: Rows | None
    units: Units
    axes: Axes | None

    @classmethod
    def of(cls, read: Read, turn: Axes | Literal["pca"] | None, *, zero_mean: bool) -> Standard:
        """Rows that were read; principal axes are found later, in each fold of its own."""
        rows, units = read.rows.standard(centred=not zero_mean)
        held_out = None if read.held_out is None else read.held_out.inside(units)
        axes = turn if isinstance(turn, Axes) else None
        if axes is not None:
            rows, held_out = rows.turned(axes), None if held_out is None else held_out.turned(axes)
        return cls(rows, held_out, units, axes)

    def turned_back(self, law: MoLRMoG) -> MoLRMoG:
        """The law along the axes of the data, in the units of these rows."""
        return law if self.axes is None else law.with_axes(self.axes)

    def law_inside(self, law: MoLRMoG) -> MoLRMoG:
        """The law of these rows from that of the data."""
        return self.units.law_inside(law).without_axes()

    def law_of_rows(self, law: MoLRMoG) -> MoLRMoG:
        """The law of the data from that of these rows."""
        return self.units.law_of_rows(self.turned_back(law))


def choice(
    standard: Standard, read: Read, given: Given, *, criterion: str = "held-out", zero_mean: bool, seed: int,
    progress: bool,
    on_choice: Callable[[int, str], None] | None = None,
) -> Selection:  # fmt: skip
    """Choose the structure of rows that were read, but for what was given."""
    shape_is_free = given.latent_dims is None or given.modes is None
    seconds = expected_seconds(len(read.rows), read.rows.dim) if shape_is_free else 0.0
    long = f"takes about {seconds / 60:.0f} minutes" if seconds > _LONG else ""
    if long and not progress and on_choice is None:
        warnings.warn(
            f"choosing a structure for {len(read.rows):,} rows of {read.rows.dim:,} columns {long}: watch it with "
            "progress=True, or give subspaces, latent_dim, modes and noise",
            stacklevel=4,
        )
    with stages(shown=progress) as show:
        show("choosing", text=long)
        if on_choice is not None and long:
            on_choice(0, long)

        def watch(count: int, text: str) -> None:
            show("choosing", count, text=f"{count} tried; {text}")
            if on_choice is not None:
                on_choice(count, text)

        found = choose(
            standard.rows, labels=read.labels, weights=read.weights, held_out=standard.held_out, given=given,
            log_volume=standard.units.log_volume, criterion=criterion, zero_mean=zero_mean, seed=seed,
            watch=watch,
        )  # fmt: skip
    if found.best.start is not None:  # of the rows, in their own units
        start = standard.law_of_rows(found.best.start)
        return dataclasses.replace(found, best=dataclasses.replace(found.best, start=start))
    return found


def given_numbers(
    read: Read,
    asked: Mapping[str, Any],
    rank: int | None,
    turn: Axes | Literal["pca"] | None,
    prior_rows: float | None,
    noise_floor: float | None,
) -> Given:
    """What is not to be chosen.

    Raises:
        ValueError: the rows are too few or too narrow for it.
    """
    rows = read.rows
    shapes = {
        name: None if is_auto(asked[name]) else one_or_several(asked[name], name) for name in ("latent_dim", "modes")
    }
    several = [len(value) for value in shapes.values() if value is not None and not isinstance(value, int)]
    free = is_auto(asked["subspaces"]) and read.classes is None
    K = several[0] if free and several else 1 if free else (read.classes or whole(asked["subspaces"], "subspaces"))
    check_count(K)
    dims, counts = (None if value is None else tuple(per_subspace(name, value, K)) for name, value in shapes.items())
    if len(rows) < K:
        raise ValueError(f"{len(rows)} rows are fewer than the {K} subspaces asked for: lower subspaces")
    check_sizes(rows, dims or [1], counts or [1])
    if read.labels is not None and counts is not None:
        check_classes(read.labels, counts)
    return Given(
        subspaces=None if free and not several else K,
        latent_dims=dims if dims is None or not free or several else dims[:1],
        modes=counts if counts is None or not free or several else counts[:1],
        rank=rank,
        kinds=_kinds(asked["noise"], turn, whole=not rows.has_gaps),
        prior_rows=prior_rows,
        floor=None if noise_floor is None else noise_floor / (rows.moments().spread or 1.0),
    )


def _kinds(
    noise: str | None, turn: Axes | Literal["pca"] | None, *, whole: bool
) -> tuple[tuple[str, Coordinates], ...]:
    """Kinds of noise, and their coordinates, that may be chosen; of rows that lack values, only those of the data.

    Raises:
        ValueError: there is no such noise, or it does not go along axes.
    """
    names = ("diagonal", "shared") if turn is not None else NOISES
    noise = "isotropic" if noise is None else noise
    if not is_auto(noise):
        if one_of(noise, "noise", NOISES) not in names:
            raise ValueError("isotropic noise is the same in all axes: leave out axes, or pass noise='diagonal'")
        names = (noise,)
    elif turn is None:
        return tuple(kind for kind in KINDS if whole or kind[1] != "principal")
    coordinates: Coordinates = "principal" if turn == "pca" else "data"
    return tuple((name, coordinates) for name in names)
