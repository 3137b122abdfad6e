"""Which structures are tried: from one Gaussian to as many parts as the rows reward.

    one Gaussian: which noise, how many dimensions  ->  parted, into subspaces or into modes; and put together from
    small clusters, each subspace with a shape of its own  ->  uphill: a step of each number, the other kinds of noise,
    more and less leaning, until no step is an improvement

Numbers that were given stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from molrmog.learning.structures import FLOOR, Coordinates, Structure
from molrmog.learning.trials import Trial, Trials

_FULL = 100  # dimensions up to which modes may have covariances of all of them
_WIDEST = 1024  # dimensions up to which principal axes of all rows are tried
_ROWS_PER_PART = 6  # rows that a mode must have at least
_ROUNDS = 8  # uphill, at most
_AT_ONCE = 12  # steps that are tried before the work is looked at
_FEW_ROWS = 24  # below which none are put together
_CLEAR = 5.0  # standard errors by which subspaces of their own shapes are ahead where steps to others are left out
_GAIN = 5e-4  # nats per dimension that are worth another round
KINDS: tuple[tuple[str, Coordinates], ...] = (
    ("isotropic", "data"),
    ("isotropic", "scaled"),
    ("diagonal", "data"),
    ("diagonal", "principal"),
)
_FAINT, _MANY = 0.03, 0.01  # columns that vary by less of what all do, and the share of these that is too many
_LOWER = (1e-3, 1e-2, 1e-1, 1.0)  # of the least noise
_NOISE_ROWS = (0.001, 1.0)  # that the prior on unequal noise may be worth, at least and at most
_LIGHT = 0.1  # the same where columns vary little in some clusters and much in others
_FLOORS = (0.01, 0.03, 0.1, 0.3)  # of the deviation of all columns, which are tried where rows are few for the columns


@dataclass(frozen=True)
class Given:
    """What was asked for; None where it is to be chosen.

    Attributes:
        subspaces: K.
        latent_dims: d_k, one for all or one for each.
        modes: n_k, one for all or one for each.
        rank: of every mode.
        kinds: of noise, and in which coordinates, that may be chosen.
        prior_rows: how many rows the prior on each mode's covariance is worth.
        floor: least standard deviation of the noise, of that of all columns.
        least: the same of that of each column, where the floor was not given.
    """

    subspaces: int | None = None
    latent_dims: tuple[int, ...] | None = None
    modes: tuple[int, ...] | None = None
    rank: int | None = None
    kinds: tuple[tuple[str, Coordinates], ...] = KINDS
    prior_rows: float | None = None
    floor: float | None = None
    least: float = FLOOR

    def structure(
        self,
        K: int,
        d: int,
        n: int,
        noise: str,
        coordinates: Coordinates,
        prior: float | None = None,
        rank: int | None = None,
    ) -> Structure:
        """A structure of these numbers, but for those that were given."""
        K = K if self.subspaces is None else self.subspaces
        dims, modes = _each(self.latent_dims or (d,), K), _each(self.modes or (n,), K)
        if rank is not None and (rank >= max(dims) or max(modes) == 1):
            rank = None  # one mode of a lower rank lies in a subspace of that dimension
        return Structure(
            dims,
            modes,
            noise,
            coordinates,
            prior_rows=prior if self.prior_rows is None else self.prior_rows,
            floor=self.least if self.floor is None else self.floor,
            even=self.floor is not None,
            rank=rank if self.rank is None else self.rank,
        )


def _each(numbers: Sequence[int], K: int) -> tuple[int, ...]:
    return tuple(numbers) * K if len(numbers) == 1 else tuple(numbers)


@dataclass
class Search:
    """A search for the structure of rows.

    Attributes:
        trials: the judge.
        given: what was asked for.
        budget: floating point operations from which no further round begins.
        watch: called after every round with the number of trials and the best.
    """

    trials: Trials
    given: Given
    budget: float
    watch: Callable[[int, Trial], None] = lambda count, best: None

    def __post_init__(self) -> None:
        D = self.trials.rows.dim
        self.rows = float(self.trials.weights.sum())
        most = max(1, min(D - 1, int(self.rows / 3)))
        steps = sorted({round(2 ** (i / 2)) for i in range(15)} | {3})  # 1 to 128
        self.dims = [d for d in steps if d <= most] or [1]
        if D <= _FULL and self.rows > D:
            self.dims = sorted({*self.dims, D})

    def run(self) -> str:
        """Search, and say why it ended."""
        self._one_gaussian()
        alone = self.trials.best
        self._put_together()
        # In many dimensions a few parts take the longest, and are of no use beside many that were put together.
        if self._is_narrow or not _is_clear(self.trials.best, alone):
            self._parted()
        of_one_shape, together = self._leading(put_together=False), self._leading(put_together=True)
        if not together:
            return self._uphill(of_one_shape[0])
        why = "" if _is_clear(together[0], of_one_shape[0]) else self._uphill(of_one_shape[0])
        return self._uphill(together[0]) if self.trials.best is together[0] else why

    def _leading(self, *, put_together: bool) -> list[Trial]:
        """Trials of structures that were put together, or of the others, the best first."""
        these = [each for each in self.trials.done.values() if each.structure.is_put_together == put_together]
        return sorted(these, key=lambda each: -each.value)

    def _judge(self, structures: Iterable[Structure]) -> None:
        self.trials.judge([each for each in structures if self._fits(each)])
        self.watch(len(self.trials.done), self.trials.best)

    def _fits(self, structure: Structure) -> bool:
        """Whether every part can have some rows; what was given is not judged."""
        parts = sum(structure.modes)
        minimal = sum(self.given.modes or (1,)) * (self.given.subspaces or 1)
        return parts * _ROWS_PER_PART <= self.rows or parts <= max(minimal, 1)

    @functools.cached_property
    def _is_thin(self) -> bool:
        """Whether the floor of the noise is to be chosen, too.

        That is where rows are few for their columns, or some columns hardly vary in them and may do so in others.
        """
        if self.given.floor is not None:
            return False
        deviation = self.trials.rows.moments().deviation
        faint = (deviation < _FAINT * deviation.square().mean().sqrt()).double().mean()
        return self.rows < 4 * self.trials.rows.dim or float(faint) > _MANY

    def _kinds(self) -> list[tuple[str, Coordinates]]:
        D = self.trials.rows.dim
        kinds = list(self.given.kinds)
        if self.given.kinds == KINDS:
            kinds = [kind for kind in kinds if kind[1] != "principal" or (_FULL < D <= _WIDEST and self.rows > D / 2)]
        return kinds

    def _one_gaussian(self) -> None:
        """Every kind of noise with one part, or with as many as were given."""
        coarse = self.dims[::2] if len(self.dims) % 2 else [*self.dims[::2], self.dims[-1]]
        K, n = self.given.subspaces or 1, max(self.given.modes or (1,))
        for noise, coordinates in self._kinds():
            alike = [self.given.structure(K, d, n, noise, coordinates) for d in coarse]
            self._judge(alike)
            if noise != "isotropic" and self._is_thin:
                best = self._best_of(alike)
                floors = [best, *(replace(best, floor=floor, even=True) for floor in _FLOORS)]
                self._judge(floors)
                best = self._best_of(floors)
                if best.even:
                    self._judge(floored(each, best) for each in alike)
        best = self.trials.best.structure
        self._judge(replace_dims(best, self.given, d) for d in self._near(max(best.latent_dims), (-1, 1)))
        self._judge(self._lower_floors(self.trials.best.structure))

    def _lower_floors(self, s: Structure) -> list[Structure]:
        """The same structure with less noise at least, for columns of which some nearly follow from others."""
        exact = self.trials.rows.dtype == torch.float64  # others are rounded to more than that
        if self.given.floor is not None or s.even or not self._is_held_out or not exact:
            return []
        factors = _LOWER[:1] if s.floor == self.given.least else _LOWER  # those between where the lowest was better
        return [replace(s, floor=self.given.least * each) for each in factors if self.given.least * each != s.floor]

    def _best_of(self, structures: Sequence[Structure]) -> Structure:
        """The best of structures that were judged."""
        return max((self.trials.done[each] for each in structures), key=lambda each: each.value).structure

    def _parted(self) -> None:
        """The best of each kind of noise, parted into subspaces and into modes."""
        of_kind: dict[object, Trial] = {}
        for trial in self.trials.done.values():
            kind = trial.structure.kind
            of_kind[kind] = max(of_kind.get(kind, trial), trial, key=lambda each: each.value)
        leading = sorted(of_kind.values(), key=lambda each: -each.value)[:2]
        for place, trial in enumerate(leading):
            s = trial.structure
            kind, d = s.kind, max(s.latent_dims)
            wide = self.dims[-1] if self.trials.rows.dim <= _FULL else d
            parts = ((2, 4) if self.trials.rows.dim <= _FULL else (3, 10)) if place == 0 else (3,)
            structures = [self.given.structure(1, wide, n, *kind) for n in parts]
            structures += [self.given.structure(1, 2 * d, n, *kind, rank=d) for n in parts if 2 * d < wide]
            for K in parts:
                dims = {e for share in (d, d / K**0.5, d / K) for e in self._near(share, (0,))}
                structures += [self.given.structure(K, e, 1, *kind) for e in sorted(dims)]
            self._judge(floored(each, s) for each in structures)
        if ("diagonal", "data") in self.given.kinds and self._is_held_out and self._is_narrow:
            few = [d for d in self.dims if d <= 2]
            nearly = [self.given.structure(K, d, 1, "diagonal", "data") for K in (3, 6, 12) for d in few]
            self._judge(replace(each, noise_rows=_LIGHT**2) for each in nearly)

    @property
    def _is_held_out(self) -> bool:
        """Whether rows judge that were not fitted: they alone can tell how far noise should be held back."""
        return self.trials.criterion == "held-out"

    @property
    def _is_narrow(self) -> bool:
        return self.trials.rows.dim <= _FULL

    def _put_together(self) -> None:
        """Subspaces that each have a shape of their own, made of small clusters; see `merging`."""
        given, trials = self.given, self.trials
        if given.subspaces == 1 or given.latent_dims or given.modes or given.rank is not None or trials.zero_mean:
            return
        if self.rows < _FEW_ROWS * max(1, (given.subspaces or 2) // 2):
            return
        kinds = [noise for noise, coordinates in given.kinds if coordinates == "data"]
        kinds += ["shared"] if given.kinds == KINDS else []
        for seed in trials.starts:
            found = {noise: trials.put_together(noise, "bic", seed, given.subspaces) for noise in kinds}
            several = {noise: merged for noise, merged in found.items() if merged and sum(merged.modes) > 1}
            if not several:
                continue
            noise = max(several, key=lambda noise: several[noise].worth)
            start = [self._of_its_own(noise, by, seed) for by in ("bic", "aic")]
            if self._is_thin and noise != "isotropic" and self._is_held_out:
                start += [replace(s, floor=self.given.least, even=False, noise_rows=_LIGHT) for s in start]
            self._judge(start)

    def _of_its_own(self, noise: str, by: Literal["bic", "aic"], seed: int) -> Structure:
        """Subspaces of the shapes that they come out with, with the floor that was best so far for their noise."""
        merged = self.trials.put_together(noise, by, seed, self.given.subspaces)
        assert merged is not None
        structure = Structure(
            merged.latent_dims,
            merged.modes,
            noise,
            prior_rows=self.given.prior_rows,
            floor=self.given.least if self.given.floor is None else self.given.floor,
            even=self.given.floor is not None,
            put_together=by,
            told_subspaces=self.given.subspaces is not None,
            made_for=noise,
            seed=seed,
        )
        alike = [each for each in self.trials.done.values() if each.structure.noise == noise != "isotropic"]
        return floored(structure, max(alike, key=lambda each: each.value).structure) if alike else structure

    def _uphill(self, at: Trial) -> str:
        """Steps from a structure, until none is an improvement."""
        for _ in range(_ROUNDS):
            if self.trials.work > self.budget:
                return "the work that a search may take was done"
            moves = [move for move in self._moves(at.structure) if move not in self.trials.done and self._fits(move)]
            if not moves:
                break
            for i in range(0, len(moves), _AT_ONCE):
                if i and self.trials.work > self.budget:
                    break
                self._judge(moves[i : i + _AT_ONCE])
            reached = [at, *(self.trials.done[move] for move in moves if move in self.trials.done)]
            before, at = at, max(reached, key=lambda each: each.value)
            if at.value < before.value + _GAIN * self.trials.rows.dim:
                break
        else:
            return f"{_ROUNDS} rounds of steps were taken"
        return "no step to fewer or more subspaces, dimensions or modes, or to other noise, was an improvement"

    def _moves(self, s: Structure) -> list[Structure]:
        """Structures one step away."""
        if s.is_put_together:
            return self._moves_of_its_own(s)
        K, d, n = s.subspaces, max(s.latent_dims), max(s.modes)
        kind = s.kind

        def step(
            K: int = K, d: int = d, n: int = n, prior: float | None = s.prior_rows, rank: int | None = s.rank
        ) -> Structure:
            return self.given.structure(K, d, n, *kind, prior, rank)

        moves = [step(d=e) for e in self._near(d, (-1, 1))]
        moves += [step(K=k) for k in _around(K)] if K > 1 or n == 1 else []
        moves += [step(n=m) for m in _around(n)]
        moves += [step(K=K * n, n=1), step(K=1, n=K * n)] if K * n > 1 else []
        if n > 1 and self.given.rank is None:
            moves += [step(rank=r) for r in _lower(min(d, d if s.rank is None else s.rank), d)]
            moves.append(step(rank=None))
        for noise, coordinates in self._kinds():
            if (noise, coordinates) != kind and noise != s.noise:
                moves.append(self.given.structure(K, d, n, noise, coordinates, s.prior_rows, s.rank))
        if K > 1 and s.noise == "diagonal" and self.given.kinds == KINDS:
            moves.append(self.given.structure(K, d, n, "shared", s.coordinates, s.prior_rows, s.rank))
        if n > 1 and self.given.prior_rows is None:
            moves += [step(prior=float(f"{s.nu * factor:.3g}")) for factor in (0.25, 4.0) if 1 <= s.nu * factor <= 1e6]
        moves = [floored(move, s) if move.noise == s.noise or s.even else move for move in moves]
        moves = [replace(move, noise_rows=s.noise_rows) for move in moves]
        return list(dict.fromkeys([*moves, *self._moves_of_noise(s), *self._lower_floors(s)]))

    def _moves_of_noise(self, s: Structure) -> list[Structure]:
        """The same structure with unequal noise that leans less or more on that of all rows, and with other floors."""
        if s.noise == "isotropic":
            return []
        factors = (0.1, 10.0) if self._is_held_out else ()
        worth = [float(f"{s.noise_rows * factor:.1g}") for factor in factors]
        moves = [replace(s, noise_rows=rows) for rows in worth if _NOISE_ROWS[0] <= rows <= _NOISE_ROWS[1]]
        if self._is_thin:
            floors = [(self.given.least, False)] if factors else []
            floors += [(floor, True) for floor in _FLOORS]
            moves += [replace(s, floor=floor, even=even) for floor, even in floors]
        return moves

    def _moves_of_its_own(self, s: Structure) -> list[Structure]:
        """Structures one step away from one that was put together."""
        most = self.dims[-1]
        moves = [
            replace(s, wider=wider, latent_dims=tuple(min(most, max(1, d + wider - s.wider)) for d in s.latent_dims))
            for wider in (s.wider - 1, s.wider + 1, s.wider + 4)
        ]
        if self.given.kinds == KINDS:
            moves += [replace(s, noise=noise) for noise in ("isotropic", "diagonal", "shared") if noise != s.noise]
        if max(s.modes) > 1 and self.given.prior_rows is None:
            moves += [replace(s, prior_rows=float(f"{s.nu * factor:.3g}")) for factor in (0.25, 4.0)]
        return list(dict.fromkeys([*moves, *self._moves_of_noise(s), *self._lower_floors(s)]))

    def _near(self, d: float, steps: Sequence[int]) -> list[int]:
        at = min(range(len(self.dims)), key=lambda i: abs(self.dims[i] - d))
        return sorted({self.dims[min(max(at + step, 0), len(self.dims) - 1)] for step in steps})


def _is_clear(trial: Trial, other: Trial) -> bool:
    """Whether a trial is better than another by more than chance, and by enough that steps would not change it."""
    apart = (trial.of_rows - other.of_rows)[(trial.of_rows != 0) & (other.of_rows != 0)]
    if len(apart) < 2:
        return False
    return trial.value - other.value > _CLEAR * float(apart.std()) / len(apart) ** 0.5


def floored(structure: Structure, like: Structure) -> Structure:
    """The structure with the floor of another."""
    return replace(structure, floor=like.floor, even=like.even)


def replace_dims(structure: Structure, given: Given, d: int) -> Structure:
    """The structure with other dimensions, where they were not given."""
    return structure if given.latent_dims else replace(structure, latent_dims=(d,) * structure.subspaces)


def _lower(rank: int, d: int) -> list[int]:
    """Ranks near another, from none, of modes that are alike but for their means, to below the dimension."""
    return sorted(r for r in {0, 1, rank // 2, rank - 1, rank + 1} if 0 <= r < d)


def _around(number: int) -> list[int]:
    """Numbers one step away from another."""
    return sorted({max(1, round(number / 1.5)), max(1, number - 1), number + 1, round(number * 1.5 + 0.1)} - {number})
