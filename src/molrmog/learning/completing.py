"""Fits to rows that lack values: rows are completed to find where EM begins; EM itself sees what was observed.

    rows completed from their own columns  ->  one Gaussian by EM  ->  rows completed by a draw of it  ->  a law
    the law's structure, judged by what was observed  ->  rows completed by a draw of the law          ->  a law

References:
    Rubin, "Multiple imputation for nonresponse in surveys", 1987 (draws, not means: columns keep their spread).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.em import em_steps
from molrmog.learning.incomplete import passes_within
from molrmog.learning.rows import Rows
from molrmog.learning.selection import Selection, law_of
from molrmog.learning.structures import Structure
from molrmog.learning.trials import FEW_NUMBERS
from molrmog.seeds import torch_generator

_LATENTS = 32  # dimensions of the Gaussian that rows are first completed by, at most
_ROWS_PER_LATENT = 8  # and how many rows each of them takes, at least
_PASSES, _FLAT = 100, 1e-5  # of its EM, at most; and by how many nats per number a pass raises it at least
# Structures that are judged by what was observed, beside the Gaussian; in so many folds, by so many passes.
_CANDIDATES, _FOLDS, _TRIAL = 4, 3, 12
_PARTS = 5  # of many rows, one of which is held out; only what was chosen stands beside the Gaussian then


def check_gaps(gaps: Tensor, name: str = "x") -> None:
    """Refuse rows of which a column holds nothing.

    Args:
        gaps: which values are missing, with shape (N, D).
        name: what a message calls the rows.

    Raises:
        ValueError: a column does.
    """
    empty = gaps.all(0).nonzero()[:, 0].tolist()
    if empty:
        which = f"column {empty[0]}" if len(empty) == 1 else f"{len(empty)} columns, the first of them {empty[0]},"
        raise ValueError(f"{which} of {name} hold{'s' * (len(empty) == 1)} no value at all: leave out such columns")


@dataclass(frozen=True)
class Incomplete:
    """Rows that lack values, and those to judge by.

    Attributes:
        rows: of the data, NaN where a value is missing.
        gaps: where they are, with shape (N, D).
        held_out: rows to judge by, where given.
        their_gaps: where these lack values; None where they do not.
    """

    rows: Rows
    gaps: Tensor
    held_out: Rows | None
    their_gaps: Tensor | None

    def gaussian(self, seed: int) -> MoLRMoG:
        """One Gaussian, by EM that begins with rows completed by values that their columns hold elsewhere."""
        x, generator = _table(self.rows), torch_generator(seed)
        for j in self.gaps.any(0).nonzero()[:, 0].tolist():
            known = x[~self.gaps[:, j], j]
            lost = int(self.gaps[:, j].sum())
            x[self.gaps[:, j], j] = known[torch.randint(len(known), (lost,), generator=generator)]
        rows, units = self.rows.completed(x, self.gaps).standard()
        view, law, options = law_of(rows, self._whole, None, seed=seed)
        before, most = -math.inf, passes_within(law, len(rows), _PASSES)
        for state in em_steps(law, view.rows.with_gaps(), **options):
            law = state.law
            if state.iteration >= most or state.penalised - before < _FLAT * rows.dim:
                break
            before = state.penalised
        return units.law_of_rows(view.law_of_rows(law))

    @property
    def _whole(self) -> Structure:
        """Of the Gaussian."""
        N, D = self.gaps.shape
        return Structure((max(1, min(D - 1, _LATENTS, N // _ROWS_PER_LATENT)),), (1,), "diagonal")

    def completed(self, law: MoLRMoG, seed: int) -> tuple[Rows, Rows | None]:
        """Rows, and those to judge by, completed by a draw of a law."""
        generator = torch_generator(seed)

        def drawn(rows: Rows, gaps: Tensor | None) -> Rows:
            return rows if gaps is None else rows.completed(law.impute(_table(rows), 1, generator)[0], gaps)

        held_out = None if self.held_out is None else drawn(self.held_out, self.their_gaps)
        return drawn(self.rows, self.gaps), held_out

    def fitted(self, fit: Fit, start: MoLRMoG | None, seed: int, *, may_judge: bool) -> MoLRMoG:
        """The law that `fit` finds in completed rows, whose EM sees what was observed.

        Args:
            fit: see :class:`Fit`.
            start: a law to complete rows by; one Gaussian, and then the law that was found, where not given.
            seed: of everything random.
            may_judge: whether the structure, where it is chosen, may be judged by rows that are held out.
        """
        if start is not None:
            return fit(*self.completed(start, seed))
        gaussian = self.gaussian(seed)
        law = fit(*self.completed(gaussian, seed))
        found = getattr(law, "fit_summary_", None)
        if isinstance(found, Selection) and may_judge:
            found = self._judged(fit, found, gaussian, seed)
        return fit(*self.completed(law, seed + 1), selection=found)

    def _judged(self, fit: Fit, found: Selection, gaussian: MoLRMoG, seed: int) -> Selection:
        """What was chosen in completed rows, judged by the density of what was observed in rows that were held out.

        Completed rows hold more than was observed, and rows to judge by were completed, too, so that structures which
        are too rich do well among them. The best of each number of modes, and the Gaussian, are fitted again.
        """
        of_count: dict[int, Structure] = {}
        for each in (found.best, *found.structures):
            of_count.setdefault(sum(each.modes), each)
        few = self.gaps.numel() <= FEW_NUMBERS
        candidates = list(dict.fromkeys([self._whole, *list(of_count.values())[: _CANDIDATES if few else 1]]))
        part = torch.randperm(len(self.gaps), generator=torch_generator(seed)) % (_FOLDS if few else _PARTS)
        x, completed = _table(self.rows), self.completed(gaussian, seed)[0]
        held_out, trained = torch.zeros(2, len(candidates), dtype=torch.float64)
        for fold in range(_FOLDS if few else 1):
            train, test = ((part == fold) == held for held in (False, True))
            rows = completed.subset(train.nonzero()[:, 0])
            for i, each in enumerate(candidates):
                alone = dataclasses.replace(found, best=dataclasses.replace(each, start=None))
                law = fit(rows, None, selection=alone, at=train, passes=_TRIAL)
                held_out[i] += law.log_prob(x[test]).mean() / (_FOLDS if few else 1)
                trained[i] += law.log_prob(x[train]).mean() / (_FOLDS if few else 1)
        return _selection(found, candidates, held_out.tolist(), trained.tolist())


def _selection(
    found: Selection, candidates: Sequence[Structure], held_out: Sequence[float], trained: Sequence[float]
) -> Selection:
    """What was chosen, with the records of candidates that were judged by what was observed.

    Args:
        found: what was chosen in completed rows.
        candidates: that were judged.
        held_out: nats per row of what was observed, of rows that were held out.
        trained: the same of rows that were fitted to.
    """
    known = dict(zip(found.structures, found.table, strict=True))
    order = sorted(range(len(candidates)), key=lambda i: -held_out[i])
    table: list[dict[str, Any]] = []
    for i in order:
        s = candidates[i]
        of, freedom = known.get(s, found.table[0]), s.degrees_of_freedom(found.dim)
        bic = freedom * math.log(found.sampled) - 2 * found.sampled * trained[i]
        shape = {"what": s.words(found.dim), "subspaces": s.subspaces, "latent_dims": list(s.latent_dims)}
        shape |= {"modes": list(s.modes), "rank": s.rank, "noise": s.noise, "coordinates": s.coordinates}
        priors = {"prior_rows": s.prior_rows, "noise_rows": s.noise_rows, "noise_floor": s.floor, "even_floor": s.even}
        judged = {"degrees_of_freedom": freedom, "train": trained[i], "held_out": held_out[i], "bic": bic}
        entropy = of["icl"] - of["bic"] if s in known else 0.0
        behind = {"icl": bic + entropy, "behind": held_out[order[0]] - held_out[i], "behind_error": 0.0}
        table.append({**of, **shape, **priors, **judged, **behind})
    structures = tuple(candidates[i] for i in order)
    why = f"{found.why}; the best were judged by what was observed of held-out rows"
    best = dataclasses.replace(structures[0], start=None)
    return dataclasses.replace(found, table=tuple(table), structures=structures, best=best, why=why)


class Fit(Protocol):
    """A fit of completed rows, whose EM sees what was observed."""

    def __call__(
        self,
        rows: Rows,
        held_out: Rows | None,
        *,
        selection: Selection | None = ...,
        at: Tensor | None = ...,
        passes: int = ...,
    ) -> MoLRMoG:
        """A law of the rows.

        Args:
            rows: completed.
            held_out: to judge by.
            selection: the structure, where it is known.
            at: which of all rows these are, with shape (N,); all where not given.
            passes: of EM, at most.
        """
        ...


def incomplete_of(rows: Rows, validation: Any) -> Incomplete | None:
    """Rows that lack values; None where neither they nor those to judge by do.

    Args:
        rows: of the data.
        validation: rows to judge by, or None.

    Raises:
        ValueError: a value is infinite, or a column holds none.
    """
    gaps = None if rows.has_gaps else rows.gaps()
    held_out = validation
    if validation is not None and not isinstance(validation, Rows):
        held_out = Rows(validation, dtype=rows.dtype, device=rows.device, name="validation")
    their_gaps = None if held_out is None or held_out.has_gaps else held_out.gaps("validation")
    if gaps is None and their_gaps is None:
        return None
    gaps = torch.zeros(len(rows), rows.dim, dtype=torch.bool) if gaps is None else gaps
    check_gaps(gaps)
    if held_out is not None and held_out.dim != rows.dim:
        raise ValueError(f"validation has {held_out.dim} columns, but x has {rows.dim}: pass rows of the same kind")
    return Incomplete(rows, gaps, held_out, their_gaps)


def _table(rows: Rows) -> Tensor:
    """All rows in memory, a copy, with shape (N, D)."""
    return torch.cat([chunk for _, chunk in rows.chunks()]).cpu().clone()
