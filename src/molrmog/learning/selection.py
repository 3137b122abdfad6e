"""The structure of a law from the rows: which, why, and by how much.

    few rows     folds, each held out once         many rows   a fifth of a sample is held out
    labels       one subspace per class: each class chooses its own dimension and number of modes, all the same noise

See `search` for what is tried, and `trials` for how it is judged.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.rows import Rows
from molrmog.learning.search import Given, Search
from molrmog.learning.structures import Kind, Structure
from molrmog.learning.trials import FEW_NUMBERS, Trial, Trials
from molrmog.learning.unequal_starts import likelier, starting_seeds
from molrmog.learning.views import View
from molrmog.seeds import torch_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Common = tuple[Kind, float, bool, float]  # noise, its floor, whether that is even, rows of its prior

CRITERIA = ("held-out", "bic", "icl")
_BUDGET, _SMALL_BUDGET = 1e12, 2e11  # floating point operations of a search
_SAMPLE = 2**22  # numbers in the rows from which a structure is chosen
_LEAST_SAMPLE, _GREATEST_SAMPLE = 4_000, 20_000  # rows of it
# Least noise of a column where laws are judged by the rows that they were fitted to, and these are few per column.
_LEAST_NOISE, _FEW_PER_COLUMN = 0.1, 10
_STARTS = 5  # of few rows where none are held out
_SECONDS_PER_NUMBER = 7e-5  # of a search on tables of a million numbers and more
_TRIED = 2  # floors and priors of the noise of a law, the most wanted by its classes
_SAME = 1e-6  # nats per dimension by which values of one law in two disguises differ at most
_FEW = 4  # rows below which none can be held out
_PARTS = 5  # into which rows are split; how many of these are held out in turn depends on their number
_FOLDS = ((300, 10), (500, 5), (1_000, 3), (2_500, 2))  # below so many rows, so many folds


@dataclass(frozen=True)
class Selection:
    """What was tried and what was chosen.

    Attributes:
        table: a record of each candidate, the best first: subspaces K, latent_dims d, modes n, rank r, noise,
            coordinates of the noise, prior_rows, noise_rows, degrees_of_freedom, nats per row of the rows fitted to
            (train) and of held-out rows (held_out, None where none were), bic, icl, passes of EM, seconds, and behind:
            by how many nats of the criterion it is worse than the best, with its standard error.
        best: the structure that was chosen.
        criterion: by which: "held-out", "bic" or "icl".
        why: why the search ended.
        rows: how many rows there were.
        sampled: from how many of them the structure was chosen.
        dim: dimension D.
        starts: from how many starts each was fitted, of which the best counted.
        structures: of the records of the table.
    """

    table: tuple[dict[str, Any], ...]
    best: Structure
    criterion: str
    why: str
    rows: int
    sampled: int
    dim: int
    starts: int = 1
    structures: tuple[Structure, ...] = dataclasses.field(default=(), repr=False)

    def __str__(self) -> str:
        """What was chosen and by how much, in a few lines."""
        return "\n".join(self.lines())

    def plot(self) -> Figure:
        """What each candidate is worth over its degrees of freedom."""
        from molrmog.pictures import selection

        return selection(self.table, self.criterion)

    def lines(self) -> list[str]:
        """What was chosen, by how much, and what more rows would allow: a sentence each."""
        first = self.table[0]
        judged = {
            "held-out": f"{first['held_out']:,.2f} nats per held-out row",
            "bic": f"BIC {first['bic']:,.1f}",
            "icl": f"ICL {first['icl']:,.1f}",
        }[self.criterion]
        lines = [f"chosen: {first['what']}; {judged}"]
        second = next((each for each in self.table if each["behind"] > _SAME * self.dim), None)
        if second is not None:
            error = f" (standard error {second['behind_error']:.2g})" if second["behind_error"] > 0 else ""
            lines.append(f"next best: {second['behind']:.2g} nats per row behind{error}, {second['what']}")
        seen = f"{len(self.table)} candidates on {self.sampled:,} rows" + (
            "" if self.sampled == self.rows else f" of {self.rows:,}"
        )
        lines.append(f"tried: {seen}; {self.why}")
        lines.append(self._more_rows())
        return lines

    def _more_rows(self) -> str:
        first = self.table[0]
        freedom, numbers = first["degrees_of_freedom"], self.sampled * self.dim
        settled = f"{freedom:,} degrees of freedom from {numbers:,} numbers"
        if self.criterion != "held-out":
            return f"rows: {settled}"
        gain = max(0.0, first["train"] - first["held_out"]) / 4
        # Held-out rows lose what fitted ones gain, p / 2N each: twice the rows give back a quarter of the difference.
        return f"rows: {settled}; twice as many would be worth about {gain:.2g} nats per row to the same structure"


def choose(
    rows: Rows,
    *,
    labels: Tensor | None,
    weights: Tensor | None,
    held_out: Rows | None,
    given: Given,
    log_volume: float,
    criterion: str = "held-out",
    zero_mean: bool = False,
    seed: int = 0,
    budget: float | None = None,
    watch: Callable[[int, str], None] = lambda count, text: None,
) -> Selection:
    """Choose the structure of a law.

    Args:
        rows: in units of their own.
        labels: subspace of each row, with shape (N,); None to find them.
        weights: of the rows, with shape (N,).
        held_out: rows to judge by; some of `rows` where not given, and where rows have labels, as these have none.
        given: what is not to be chosen.
        log_volume: what a log-density of these rows has more than one in the units of the data, in nats.
        criterion: "held-out", "bic" or "icl".
        zero_mean: keep b = 0 and mu = 0.
        seed: of everything random.
        budget: floating point operations of the search, about; less for few rows, which are fitted less efficiently.
        watch: told how many candidates were tried, and the best so far in words.
    """
    total = len(rows)
    if budget is None:
        budget = _BUDGET if total * rows.dim > FEW_NUMBERS else _SMALL_BUDGET
    if total < _FEW and held_out is None:
        criterion = "bic"
    if held_out is not None and criterion == "held-out" and labels is None:
        rows, _, weights = _sampled(rows, None, weights, seed)
        held_out, _, _ = _sampled(held_out, None, None, seed)
        rows, weights, folds = _beside(rows, held_out, weights)
    else:
        rows, labels, weights = _sampled(rows, labels, weights, seed)
        starts = _STARTS if len(rows) * rows.dim <= FEW_NUMBERS else 1
        none = torch.zeros(len(rows)).bool()
        folds = _folds(len(rows), labels, seed) if criterion == "held-out" else [none] * starts
    if criterion != "held-out" and total < _FEW_PER_COLUMN * rows.dim:
        given = dataclasses.replace(given, least=_LEAST_NOISE)
    options: dict[str, Any] = {"log_volume": log_volume, "criterion": criterion, "zero_mean": zero_mean, "seed": seed}
    if labels is None:
        trials = Trials(rows, weights, folds, **options)
        search = Search(trials, given, budget, lambda count, best: watch(count, _in_short(best)))
        why = search.run()
        found = sorted(trials.done.values(), key=lambda each: -each.value)
        best = found[0].structure
        if best.is_put_together:
            found[0].structure = dataclasses.replace(best, start=trials.begun(best))
    else:
        found, why = _by_class(rows, labels, weights, folds, given, budget, watch, options)
    used = min(len(rows), total)
    starts = 1 if criterion == "held-out" else len(folds)
    return _selection(found, criterion, why, total, used, rows.dim, starts)


def law_of(
    rows: Rows,
    structure: Structure,
    weights: Tensor | None,
    *,
    labels: Tensor | None = None,
    zero_mean: bool = False,
    seed: int = 0,
    n_init: int = 1,
) -> tuple[View, MoLRMoG, dict[str, Any]]:
    """Where the fit of a structure to rows begins: what EM sees, the law to start from, and the options of EM."""
    view = View.of(rows, structure.coordinates, weights, seed, centred=not zero_mean)
    options: dict[str, Any] = {"prior_rows": structure.nu, "noise_rows": structure.noise_rows, "zero_mean": zero_mean}
    options |= {"spread": view.spread(structure), "noise_floor": view.floor(structure)}
    if structure.is_put_together:
        return view, view.begun(structure).to(view.rows.device, view.rows.dtype), options
    quick = len(rows) * rows.dim <= FEW_NUMBERS and labels is None
    starts: list[MoLRMoG] = []
    for one in starting_seeds(seed, n_init):
        own = dataclasses.replace(view, seed=one)
        if quick:
            starts.append(own.quick_start(structure, zero_mean=zero_mean))
        else:
            starts += own.starts(structure, zero_mean=zero_mean, labels=labels)
    starts = [law.to(view.rows.device, view.rows.dtype) for law in starts]
    return view, likelier(starts, view.rows, labels, weights, seed, **options), options


def _in_short(trial: Trial) -> str:
    s = trial.structure
    return f"K {s.subspaces}, d {max(s.latent_dims)}, n {max(s.modes)}, {s.noise}: {trial.value:,.2f} nats/row"


def rows_looked_at(rows: int, dim: int) -> int:
    """From how many rows with so many columns a structure is chosen."""
    return min(rows, max(_SAMPLE // dim, _LEAST_SAMPLE), _GREATEST_SAMPLE)


def expected_seconds(rows: int, dim: int) -> float:
    """About how long a choice takes on one core."""
    return _SECONDS_PER_NUMBER * rows_looked_at(rows, dim) * dim


def _sampled(
    rows: Rows, labels: Tensor | None, weights: Tensor | None, seed: int
) -> tuple[Rows, Tensor | None, Tensor | None]:
    """Rows few enough to choose a structure from."""
    most = rows_looked_at(len(rows), rows.dim)
    if len(rows) <= most:
        return rows, labels, weights
    at = torch.randperm(len(rows), generator=torch_generator(seed))[:most].sort().values
    labels, weights = (None if each is None else each[at] for each in (labels, weights))
    return rows.subset(at), labels, weights


def _beside(rows: Rows, held_out: Rows, weights: Tensor | None) -> tuple[Rows, Tensor | None, list[Tensor]]:
    """Rows with those that were given to judge by behind them."""
    both = Rows(torch.cat([chunk for part in (rows, held_out) for _, chunk in part.chunks()])).as_standard()
    fold = torch.arange(len(both)) >= len(rows)
    weights = None if weights is None else torch.cat([weights, torch.ones(len(held_out), dtype=weights.dtype)])
    return both, weights, [fold]


def _folds(rows: int, labels: Tensor | None, seed: int) -> list[Tensor]:
    """Rows that are held out together, each with shape (N,)."""
    count = next((folds for below, folds in _FOLDS if rows < below), 1)
    parts = max(_PARTS, count)
    order = torch.randperm(rows, generator=torch_generator(seed))
    if labels is not None:  # every class is split alike
        order = order[labels[order].argsort(stable=True)]
    part = torch.empty(rows, dtype=torch.long)
    part[order] = torch.arange(rows) % parts
    return [part == f for f in range(count)]


def _by_class(
    rows: Rows,
    labels: Tensor,
    weights: Tensor | None,
    folds: Sequence[Tensor],
    given: Given,
    budget: float,
    watch: Callable[[int, str], None],
    options: dict[str, Any],
) -> tuple[list[Trial], str]:
    """Trials of whole laws, the best first, whose classes choose their shapes for themselves."""
    classes = int(labels.max()) + 1
    searches: list[Search] = []
    for k in range(classes):
        own = (labels == k).nonzero()[:, 0]
        part = None if weights is None else weights[own]
        here = [fold[own] for fold in folds if bool((~fold[own]).any())] or [torch.zeros(len(own)).bool()]
        alone = dataclasses.replace(
            given,
            subspaces=1,
            latent_dims=_own(given.latent_dims, k),
            modes=_own(given.modes, k),
        )
        trials = Trials(rows.subset(own), part, here, **options)
        searches.append(
            Search(
                trials,
                alone,
                budget / classes,
                lambda count, best, k=k: watch(count, f"class {k + 1} of {classes}: {_in_short(best)}"),
            )
        )
    counts = torch.bincount(labels, weights)
    shares = (counts / counts.sum()).tolist()
    found: list[Trial] = []
    whys = [search.run() for search in searches]
    kinds = list(dict.fromkeys(s.kind for search in searches for s in search.trials.done))
    for kind in kinds:
        leading = [_best_of(search, kind) for search in searches]
        wanted = collections.Counter(_in_common(trial.structure) for trial in leading)
        for common, _ in wanted.most_common(_TRIED):
            own = [_best_with(search, trial, common) for search, trial in zip(searches, leading, strict=True)]
            found.append(_together(own, shares, rows))
    return sorted(found, key=lambda each: -each.value), whys[0]


def _own(numbers: tuple[int, ...] | None, k: int) -> tuple[int, ...] | None:
    return numbers if numbers is None or len(numbers) == 1 else (numbers[k],)


def _best_of(search: Search, kind: Kind) -> Trial:
    of = [each for each in search.trials.done.values() if each.structure.kind == kind]
    if not of:
        best = search.trials.best.structure
        (trial,) = search.trials.judge([dataclasses.replace(best, noise=kind[0], coordinates=kind[1])])
        of = [trial]
    return max(of, key=lambda each: each.value)


def _in_common(s: Structure) -> _Common:
    return s.kind, s.floor, s.even, s.noise_rows


def _best_with(search: Search, like: Trial, common: _Common) -> Trial:
    """The best trial that has what the subspaces of a law have in common; one like another is made if need be."""
    _, floor, even, noise_rows = common
    search.trials.judge([dataclasses.replace(like.structure, floor=floor, even=even, noise_rows=noise_rows)])
    of = [trial for s, trial in search.trials.done.items() if _in_common(s) == common]
    return max(of, key=lambda each: each.value)


def _together(trials: Sequence[Trial], shares: Sequence[float], rows: Rows) -> Trial:
    """The trial of a law of which each class has one subspace."""
    shapes = [trial.structure for trial in trials]
    leaning = [s.prior_rows for s in shapes if max(s.modes) > 1 and s.prior_rows is not None]
    structure = dataclasses.replace(
        shapes[0],
        latent_dims=tuple(s.latent_dims[0] for s in shapes),
        modes=tuple(s.modes[0] for s in shapes),
        prior_rows=sorted(leaning)[len(leaning) // 2] if leaning else None,
    )
    entropy = -sum(w * math.log(w) for w in shares if w > 0)

    def mean(name: str) -> float:
        return sum(w * getattr(trial, name) for w, trial in zip(shares, trials, strict=True))

    return Trial(
        structure,
        structure.degrees_of_freedom(rows.dim),
        value=mean("value") - entropy,
        held_out=mean("held_out") - entropy,
        train=mean("train") - entropy,
        passes=max(trial.passes for trial in trials),
        seconds=sum(trial.seconds for trial in trials),
    )


def _selection(
    found: Sequence[Trial], criterion: str, why: str, rows: int, sampled: int, dim: int, starts: int
) -> Selection:
    best = found[0]
    fitted = sampled * (0.8 if criterion == "held-out" else 1.0)
    table: list[dict[str, Any]] = []
    for trial in found:
        s = trial.structure
        error = 0.0
        if len(best.of_rows) and trial is not best and criterion == "held-out":
            apart = (best.of_rows - trial.of_rows)[(best.of_rows != 0) & (trial.of_rows != 0)]
            error = float(apart.std() / max(1, len(apart)) ** 0.5) if len(apart) > 1 else 0.0
        bic = trial.degrees_of_freedom * math.log(fitted) - 2 * fitted * trial.train
        table.append(
            {
                "what": s.words(dim),
                "subspaces": s.subspaces,
                "latent_dims": list(s.latent_dims),
                "modes": list(s.modes),
                "rank": s.rank,
                "noise": s.noise,
                "coordinates": s.coordinates,
                "prior_rows": s.prior_rows,
                "noise_rows": s.noise_rows,
                "noise_floor": s.floor,
                "even_floor": s.even,
                "degrees_of_freedom": trial.degrees_of_freedom,
                "train": trial.train,
                "held_out": None if math.isnan(trial.held_out) else trial.held_out,
                "bic": bic,
                "icl": bic + 2 * fitted * trial.entropy,
                "passes": trial.passes,
                "seconds": trial.seconds,
                "behind": best.value - trial.value,
                "behind_error": error,
            }
        )
    longest = best.passes if criterion == "held-out" and best.since else None
    chosen = dataclasses.replace(best.structure, passes=longest)
    tried = tuple(trial.structure for trial in found)
    return Selection(tuple(table), chosen, criterion, why, rows, sampled, dim, starts, tried)
