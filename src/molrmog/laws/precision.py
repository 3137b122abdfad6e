"""In which precision a row is computed: float32 where its digits suffice, float64 where they do not.

What float32 does to a row grows with its size |x - s center|^2 / v (`Seen.size`) and with that of the center. A density
is right to 1e-3 nats up to a size of 2e3, a score and a denoiser to a relative 1e-4 up to 1e5 and 1e6, unless

    a row lies between subspaces or modes while rounding moves their shares   (`LevelEvidence.undecided`)
    the result is small beside the numbers that it is a sum of                (`faint`)

Such rows are computed again in float64; those that few subspaces weigh, by these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from molrmog.laws.base import MANY, in_float64, refine_, values_hidden
from molrmog.laws.levels import Level, squared_norm
from molrmog.laws.responsibilities import Blocked, Dense, Evidence, LevelEvidence, Seen, Sparse, Where, is_plain, looks
from molrmog.laws.threads import by_thread, shared

SCORE, DENOISER, DENSITY = 1e5, 1e6, 2e3  # sizes up to which float32 has their digits
TURNED = 1e4  # the same of rows that are turned to other axes
_SOME = 256  # rows, from which it pays to find out which subspaces are out of their reach
_SMALLEST, _LARGEST = 2.0**-20, 2.0**20  # sizes of a law that float32 can square

Levels = Callable[[torch.dtype], Level]
Faint = Callable[[Seen, Tensor, Sequence[Tensor]], Tensor]
Result = tuple[Tensor, ...]


@dataclass(frozen=True)
class Question:
    """What is asked of rows.

    Attributes:
        result: of the evidence, told where the first of its tensors may be written.
        levels: the law at noise levels s, gamma, in any dtype.
        down: rows in the coordinates of the law.
        limit: size of a row up to which float32 answers.
        faint: which results (B,) are small beside their rounding, from rows as they are seen, their sizes, and results.
        shares: whether small responsibilities, or densities, are wanted for themselves.
        in_place: whether rows are in the coordinates of the law, so that results may be written where they are to go.
        ordinary: whether float32 can square the numbers of the law.
        few_dimensions: whether results are often small beside their rounding.
        patterns: the evidence of rows that each have a pattern of their own, or are turned, in float64.
        turned: whether the law lies along axes.
    """

    result: Callable[[Evidence, Tensor | None], Result]
    levels: Callable[[Tensor, Tensor], Levels]
    down: Callable[[Tensor], Tensor]
    limit: float
    faint: Faint | None
    shares: bool
    in_place: bool
    ordinary: bool
    few_dimensions: bool
    patterns: Callable[[Tensor, Tensor, Tensor], Evidence]
    turned: bool

    def answer(self, x: Tensor, s: Tensor, gamma: Tensor, into: Tensor | None = None) -> Result:
        """The result for rows x (B, D), float32 or float64, at noise levels s, gamma (B or 1,) in float64.

        Args:
            x: rows.
            s: signal scales.
            gamma: noise standard deviations; or those of all coordinates, with shape (B or 1, D).
            into: where the first of the results may be written.
        """
        if gamma.ndim == 2 and (self.turned or len(gamma) > 1):
            return tuple(out.to(x.dtype) for out in self.result(self.patterns(x, s, gamma), None))
        if x.dtype == torch.float64:
            return self._precise(x, s, gamma)
        if not self.ordinary:
            return in_float64(self._precise, x, s, gamma)
        levels, u = self.levels(s, gamma), self.down(x)
        if gamma.ndim == 2 and int(gamma.isfinite().sum()) < 2 * levels(torch.float64).shapes[3]:
            return in_float64(self._precise, x, s, gamma)  # next to nothing lies off a subspace
        plain = is_plain(u, s, gamma, levels(x.dtype).offset)
        if into is None and self.in_place and plain and len(u):
            into = torch.empty_like(u)
        if plain and shared(len(u)):
            return self._answered_by_thread(x, s, gamma, into)
        refused: list[Tensor] = []

        def of_some(at: Where, seen: Seen) -> Result:
            if torch.is_grad_enabled() or values_hidden(seen.size):
                # No second look with derivatives.
                enough = not self.few_dimensions and all_below(seen.whole_size, DENSITY)
                return self.result(Dense(seen), None) if enough else in_float64(self._precise, x, s, gamma, at)
            own = None if into is None else into[at]
            if seen.few and (self.in_place or all_below(seen.whole_size, TURNED)):
                out, again = self._of_few(seen, levels(torch.float64).own(at), own)
            else:
                out, again = self._of_many(seen, own)
            if out is None:
                return in_float64(self._precise, x, s, gamma, at)
            refused.append(again)
            return tuple(each.to(x.dtype) for each in out)

        out = _put_together(((at, of_some(at, seen)) for at, seen in looks(levels(x.dtype), u)), len(x), into)
        if refused:
            refine_(out, self._precise, x, s, gamma, torch.cat(refused))
        return out

    def _answered_by_thread(self, x: Tensor, s: Tensor, gamma: Tensor, into: Tensor | None) -> Result:
        """The same, by threads that have a share of the rows each."""

        def answered(at: slice) -> tuple[Where, Result]:
            level = [level if len(level) == 1 else level[at] for level in (s, gamma)]
            return at, self.answer(x[at], level[0], level[1], None if into is None else into[at])

        return _put_together(by_thread(answered, len(x)), len(x), into)

    def _precise(self, x: Tensor, s: Tensor, gamma: Tensor) -> Result:
        """The result in float64."""
        pieces = looks(self.levels(s, gamma)(torch.float64), self.down(x))
        return _put_together(((at, self.result(evidence(seen), None)) for at, seen in pieces), len(x))

    def _of_few(self, seen: Seen, level: Level, into: Tensor | None) -> tuple[Result, Tensor]:
        """The result of rows that few subspaces weigh, and which of them (B,) float32 cannot answer.

        Args:
            seen: the rows.
            level: theirs, in float64.
            into: where the first of the results may be written.
        """
        size = seen.whole_size.amax(0)
        beyond = ~(size <= self.limit)  # NaN, too
        if self.shares and bool(beyond.any()):
            lift = None if all_below(size, SCORE) else level
            return self.result(Sparse(seen, level, lift, all_of=True), into), torch.zeros_like(beyond)
        if int(beyond.sum()) > MANY * len(beyond):
            return self.result(Sparse(seen, level, level), into), torch.zeros_like(beyond)
        e = Sparse(seen, all_of=self.shares)
        out = self.result(e, into)
        return out, beyond | e.undecided(seen.size) | self._is_faint(seen, size, out)

    def _of_many(self, seen: Seen, into: Tensor | None) -> tuple[Result | None, Tensor]:
        """The same of rows that many subspaces weigh; None where float32 is of no use."""
        size = seen.whole_size.amax(0)
        beyond = ~(size <= self.limit)
        if int(beyond.sum()) > MANY * len(beyond):
            return None, beyond
        e = evidence(seen)
        out = self.result(e, into)
        undecided = torch.zeros_like(beyond) if self.shares else e.undecided(seen.size)
        return out, beyond | undecided | self._is_faint(seen, size, out)

    def _is_faint(self, seen: Seen, size: Tensor, out: Result) -> Tensor:
        return torch.zeros_like(size, dtype=torch.bool) if self.faint is None else self.faint(seen, size, out)


def evidence(seen: Seen) -> LevelEvidence:
    """How the modes explain rows, in the dtype in which they are seen."""
    if seen.few and len(seen.rows) >= _SOME:
        return Sparse(seen, all_of=True)
    return Blocked(seen) if seen.plain else Dense(seen)


def faint_density(seen: Seen, size: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which log-densities (B,) lie near zero, where rounding of some 2e-7 of the size is more than 1e-4 of them."""
    return 2e-3 * size > out[-1].abs()


def faint_score(seen: Seen, size: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which scores (B, D) are small beside |x| / v, whose rounding they carry."""
    return 4e-3 * size > (squared_norm(seen.rows) * squared_norm(out[0])).sqrt()


def ordinary(extent: float) -> bool:
    """Whether float32 can square the numbers of a law of that extent."""
    return _SMALLEST < extent < _LARGEST


def all_below(size: Tensor, limit: float) -> bool:
    """Whether sizes are known, and none of them is above a limit or NaN."""
    return not values_hidden(size) and (not size.numel() or float(size.detach().max()) <= limit)


def _put_together(pieces: Iterable[tuple[Where, Result]], rows: int, into: Tensor | None = None) -> Result:
    """Results of pieces of so many rows; the first may be where it is to go already."""
    whole: list[Tensor] = []
    for at, results in pieces:
        if isinstance(at, slice) and at == slice(None):
            return results
        if not whole:
            whole = [each.new_empty(rows, *each.shape[1:]) for each in results]
            if into is not None and results[0].shape[1:] == into.shape[1:] and results[0].dtype == into.dtype:
                whole[0] = into
        for out, piece in zip(whole, results, strict=True):
            if piece.data_ptr() != out[at].data_ptr():
                out[at] = piece
    return tuple(whole)
