"""What a structure is worth: laws of it are fitted to some of the rows and judged on those that were held out.

Few rows are split into folds, each of which is held out once, and all folds of all structures are fitted side by side
(`stacks`). Of many rows one part is held out, and structures are fitted one after the other. EM stops when the held-out
rows are not made likelier any more, and what has no hope of becoming the best is given up.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.em import em_steps
from molrmog.learning.merging import Merged
from molrmog.learning.rows import Rows
from molrmog.learning.stacks import Stack, StackedEM
from molrmog.learning.structures import Coordinates, Structure
from molrmog.learning.unequal_starts import likelier, starting_seeds
from molrmog.learning.views import View

FEW_NUMBERS = 2**18  # numbers in rows that many laws are fitted to side by side
_PASSES = 30
_PATIENCE, _FLAT = 2, 2  # passes without better held-out rows, and that hardly raise the objective
_SEEN_BEFORE = 4  # passes before a structure is given up
_AHEAD = 10  # passes that a structure may hope to gain as much as in the last one
_RISE = 1e-6  # nats per dimension that count as better
_BATCH = 2**25  # numbers that are worked on at once: rows x dimensions x subspaces


@dataclass
class Trial:
    """A structure and what it was worth; all densities are of rows in the units of the data.

    Attributes:
        structure: the structure.
        degrees_of_freedom: of its laws.
        value: what is chosen by, in nats per row: the held-out log-density, or minus half of BIC or ICL.
        held_out: mean log-density of held-out rows, in nats; NaN where none were.
        train: mean log-density of the rows that the laws were fitted to, in nats.
        entropy: mean entropy of the responsibilities of these rows, in nats.
        passes: of EM after which held-out rows were likeliest.
        of_rows: log-density of each row when it was held out, with shape (N,); zero where it never was.
        seconds: of the fits.
    """

    structure: Structure
    degrees_of_freedom: int
    value: float = -math.inf
    held_out: float = math.nan
    train: float = -math.inf
    entropy: float = 0.0
    passes: int = 0
    of_rows: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    seconds: float = 0.0
    since: int = field(default=0, repr=False)
    flat: int = field(default=0, repr=False)
    reached: tuple[float, float] = field(default=(-math.inf, -math.inf), repr=False)

    def seen(self, iteration: int, value: float, objective: float, rise: float, flat: float) -> bool:
        """Take note of a pass.

        Args:
            iteration: which.
            value: what is chosen by.
            objective: of EM.
            rise: of the value that counts.
            flat: rise of the objective that does not count.

        Returns:
            Whether this is the best pass so far.
        """
        better = value > self.value + rise
        self.since = 0 if better else self.since + 1
        self.flat = self.flat + 1 if objective - self.reached[1] < flat else 0
        if better:
            self.value, self.passes = value, iteration
        gain, self.reached = value - self.reached[0], (value, objective)
        self.hope = value + _AHEAD * max(gain, 0.0)
        return better

    def is_done(self, iteration: int, target: float) -> bool:
        """Whether further passes are of no use."""
        hopeless = iteration >= _SEEN_BEFORE and self.hope < target
        return self.since >= _PATIENCE or self.flat >= _FLAT or hopeless


class Trials:
    """Judge of structures on rows.

    Args:
        rows: in units of their own.
        weights: of the rows, with shape (N,).
        folds: rows that are held out together, each with shape (N,), true where held out. Where none are, each is a
            start of its own, and the best of these counts.
        log_volume: what a log-density of these rows has more than one in the units of the data, in nats.
        criterion: "held-out", "bic" or "icl"; the last two look at the rows that laws are fitted to.
        zero_mean: keep b = 0 and mu = 0.
        seed: of everything random.
        tol: rise of the objective per row and dimension from which EM goes on.
    """

    def __init__(
        self,
        rows: Rows,
        weights: Tensor | None,
        folds: Sequence[Tensor],
        *,
        log_volume: float,
        criterion: str = "held-out",
        zero_mean: bool = False,
        seed: int = 0,
        tol: float = 1e-4,
    ) -> None:
        self.rows = rows
        self.weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double()
        self.folds = list(folds)
        self.log_volume = log_volume
        self.criterion = criterion
        self.zero_mean = zero_mean
        self.seed = seed
        self.tol = tol
        self.done: dict[Structure, Trial] = {}
        self.work = 0.0
        self._weighted = weights is not None
        self._views: dict[Coordinates, list[View]] = {}

    @property
    def starts(self) -> list[int]:
        """Seeds of what is tried from several starts."""
        return list(dict.fromkeys(self._seeds()))

    @property
    def best(self) -> Trial:
        """The trial that is worth most."""
        return max(self.done.values(), key=lambda each: each.value)

    def judge(self, structures: Sequence[Structure]) -> list[Trial]:
        """Trials of structures; those that were tried before are not tried again."""
        new = list(dict.fromkeys(each for each in structures if each not in self.done))
        for group in self._groups(new):
            start = time.perf_counter()
            found = self._together(group) if self._is_stacked(group[0]) else self._alone(group[0])
            for trial in found:
                trial.seconds = (time.perf_counter() - start) / len(found)
                trial.value, trial.train = trial.value - self.log_volume, trial.train - self.log_volume
                if self.criterion == "held-out":
                    trial.held_out = trial.value
                self.done[trial.structure] = trial
        return [self.done[each] for each in structures]

    def put_together(self, noise: str, by: str, seed: int, subspaces: int | None = None) -> Merged | None:
        """Subspaces made of small clusters of all rows."""
        return self._whole.put_together(noise, by, seed, subspaces)

    def begun(self, structure: Structure) -> MoLRMoG:
        """The law of all rows from which EM of a structure that was put together begins."""
        return self._whole.begun(structure)

    @functools.cached_property
    def _whole(self) -> View:
        weights = self.weights if self._weighted else None
        return View.of(self.rows, "data", weights, self.seed, centred=not self.zero_mean)

    def cost(self, structure: Structure) -> float:
        """Floating point operations of a pass over all rows, about: products with them, factors of d x d matrices."""
        D, total = self.rows.dim, 0.0
        for d, n in zip(structure.latent_dims, structure.modes, strict=True):
            total += 4.0 * len(self.rows) * d * (D + n * d) + 12.0 * n * d**3 + 8.0 * D * d**2
        return total

    def _is_stacked(self, structure: Structure) -> bool:
        """Whether a structure is fitted beside others; every fold has principal axes of its own."""
        return len(self.rows) * self.rows.dim <= FEW_NUMBERS and structure.coordinates != "principal"

    def _groups(self, structures: Sequence[Structure]) -> Iterator[list[Structure]]:
        """Structures that are fitted side by side: of one kind, of similar shapes, and not too many."""
        groups: dict[object, list[Structure]] = {}
        for each in structures:
            if not self._is_stacked(each):
                yield [each]
                continue
            kind = each.noise, each.coordinates, max(each.modes) > 1, max(each.latent_dims).bit_length()
            groups.setdefault(kind, []).append(each)
        for group in groups.values():
            begun: list[Structure] = []
            numbers = 0
            for each in group:
                own = each.subspaces * len(self.folds) * len(self.rows) * self.rows.dim
                if begun and numbers + own > _BATCH:
                    yield begun
                    begun, numbers = [], 0
                begun.append(each)
                numbers += own
            yield begun

    def _parts(self, coordinates: Coordinates) -> list[View]:
        """The rows that are not held out, for each fold, in coordinates found from them."""
        if coordinates not in self._views:
            self._views[coordinates] = []
            for fold, seed in zip(self.folds, self._seeds(), strict=True):
                at = (~fold).nonzero()[:, 0]
                weights = self.weights[at] if self._weighted else None
                rows = self.rows.subset(at)
                self._views[coordinates].append(View.of(rows, coordinates, weights, seed, centred=not self.zero_mean))
        return self._views[coordinates]

    def _seeds(self) -> list[int]:
        """Seed of each fold; all start alike where rows are held out."""
        if self.criterion == "held-out":
            return [self.seed] * len(self.folds)
        return starting_seeds(self.seed, len(self.folds))

    def _trial(self, structure: Structure) -> Trial:
        return Trial(structure, structure.degrees_of_freedom(self.rows.dim))

    def _target(self) -> float:
        return self.best.value if self.done else -math.inf

    def _together(self, group: Sequence[Structure]) -> list[Trial]:
        """Structures of one kind, all folds side by side."""
        parts = self._parts(group[0].coordinates)
        F, N, D = len(self.folds), len(self.rows), self.rows.dim
        jobs = [(each, part) for each in group for part in parts]
        held = torch.stack(self.folds).double() * self.weights  # (F, N)
        shown = self.weights - held
        em = StackedEM(
            Stack.of([part.quick_start(each, zero_mean=self.zero_mean) for each, part in jobs]),
            self.rows[slice(0, N)].double(),
            shown.repeat(len(group), 1),
            prior_rows=torch.tensor([each.nu for each, _ in jobs], dtype=torch.float64),
            noise_rows=torch.tensor([each.noise_rows for each, _ in jobs], dtype=torch.float64),
            floor=torch.stack([part.floor(each) for each, part in jobs]),
            spread2=torch.stack([part.spread(each).square() for each, part in jobs]),
            divisor=torch.stack([part.scale for _, part in jobs if part.scale is not None])
            if parts[0].scale is not None
            else None,
            zero_mean=self.zero_mean,
        )
        volume = torch.tensor([[part.log_volume] for part in parts], dtype=torch.float64)  # (F, 1)
        trials = [self._trial(each) for each in group]
        active = torch.arange(len(group))
        target = self._target()
        for iteration in itertools.count():
            state = em.state() if iteration == 0 else em.step()
            log_prob = state.log_prob.unflatten(0, (-1, F)) - volume  # (A, F, N)
            if self.criterion == "held-out":
                train = (log_prob * shown).sum((1, 2)) / shown.sum()
                entropy = state.entropy.unflatten(0, (-1, F)).mean(1).tolist()
                value = ((log_prob * held).sum((1, 2)) / held.sum()).tolist()
            else:
                train, best = ((log_prob * shown).sum(2) / shown.sum(1)).max(1)
                entropy = state.entropy.unflatten(0, (-1, F)).gather(1, best[:, None])[:, 0].tolist()
                value = [self._worth(trials[at], train[i], entropy[i]) for i, at in enumerate(active.tolist())]
            objective = state.penalised.unflatten(0, (-1, F)).mean(1).tolist()
            goes_on = []
            for i, at in enumerate(active.tolist()):
                trial = trials[at]
                if trial.seen(iteration, value[i], objective[i], _RISE * D, self.tol * D):
                    trial.train, trial.entropy = float(train[i]), entropy[i]
                    trial.of_rows = torch.where(held > 0, log_prob[i] - self.log_volume, 0.0).sum(0)
                aim = max(target + self.log_volume, max(value))
                if not trial.is_done(iteration, aim) and iteration < (trial.structure.passes or _PASSES):
                    goes_on.append(i)
            self.work += F * sum(self.cost(group[at]) for at in active.tolist())
            if not goes_on:
                return trials
            if len(goes_on) < 0.8 * len(active):
                kept = torch.tensor(goes_on)
                em.only((kept[:, None] * F + torch.arange(F)).flatten())
                active = active[kept]
        raise AssertionError  # the count has no end

    def _alone(self, structure: Structure) -> list[Trial]:
        """One structure, one fold after the other."""
        trials = [self._of_fold(structure, f) for f in range(len(self.folds))]
        if self.criterion != "held-out":
            return [max(trials, key=lambda each: each.value)]
        total = self._trial(structure)
        shares = [float((self.weights * fold).sum()) for fold in self.folds]
        total.value = sum(s * each.value for s, each in zip(shares, trials, strict=True)) / sum(shares)
        total.train = sum(each.train for each in trials) / len(trials)
        total.entropy = sum(each.entropy for each in trials) / len(trials)
        total.passes = round(sum(each.passes for each in trials) / len(trials))
        total.of_rows = torch.stack([each.of_rows for each in trials]).sum(0)
        return [total]

    def _of_fold(self, structure: Structure, f: int) -> Trial:
        part, D = self._parts(structure.coordinates)[f], self.rows.dim
        options: dict[str, Any] = {
            "prior_rows": structure.nu,
            "noise_rows": structure.noise_rows,
            "zero_mean": self.zero_mean,
            "spread": part.spread(structure),
            "noise_floor": part.floor(structure),
        }
        starts = [law.to(part.rows.device, part.rows.dtype) for law in part.starts(structure, zero_mean=self.zero_mean)]
        at = self.folds[f].nonzero()[:, 0]
        law = starts[0]
        held, weights = part.seen(self.rows.subset(at)), self.weights[at]
        trial = self._trial(structure)
        trial.of_rows = torch.zeros(len(self.rows), dtype=torch.float64)
        above, target = part.log_volume, self._target() + self.log_volume
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "EM dropped")
            start = likelier(starts, part.rows, None, part.weights, self.seed, **options)
            for state in em_steps(start, part.rows, weights=part.weights, **options):
                if self.criterion == "held-out":
                    found = [state.law.log_prob(chunk).double().cpu() for _, chunk in held.chunks()]
                    log_prob = torch.cat(found) - above
                    value = float((log_prob * weights).sum() / weights.sum())
                else:
                    log_prob, value = weights, self._worth(trial, state.log_likelihood - above, 0.0)
                if trial.seen(state.iteration, value, state.penalised, _RISE * D, self.tol * D):
                    trial.train, law = state.log_likelihood - above, state.law
                    trial.of_rows[at] = log_prob - self.log_volume
                self.work += self.cost(structure)
                if trial.is_done(state.iteration, target) or state.iteration >= (structure.passes or _PASSES):
                    break
        trial.entropy = _entropy(law, part.rows)
        if self.criterion == "icl":
            trial.value = self._worth(trial, trial.train, trial.entropy)
        return trial

    def _worth(self, trial: Trial, train: float | Tensor, entropy: float) -> float:
        """Minus half of BIC or ICL, per row."""
        N = float(self.weights.sum())
        mixed = entropy if self.criterion == "icl" else 0.0
        return float(train) - 0.5 * trial.degrees_of_freedom * math.log(N) / N - mixed


def _entropy(law: MoLRMoG, rows: Rows) -> float:
    """Mean entropy of the responsibilities of rows, in nats."""
    total = 0.0
    for _, chunk in rows.chunks():
        total += float(torch.special.entr(law.posterior(chunk).responsibilities.double()).sum())
    return total / len(rows)
