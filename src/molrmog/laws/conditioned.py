"""A law, given observations: p(x_0 | y) for y = H x_0 + n, and the same noised, p(x_t | y).

Observed coordinate by coordinate, y and a noised row x_t = s x_0 + gamma eps say together what one row says that is
seen with noise of its own in each coordinate:

    v_j = g_j^2 gamma^2 / (s^2 g_j^2 + gamma^2),       u_j = (s g_j^2 x_tj + gamma^2 y_j) / (s^2 g_j^2 + gamma^2)
    unobserved: v_j = gamma^2 / s^2, u_j = x_tj / s
    log p(x_t | y) = log p(u; v) - log p(y) + sum_observed log N(x_tj - s y_j; s^2 g_j^2 + gamma^2) - sum_others log |s|

so that a denoiser under a mask costs what a denoiser costs (`molrmog.laws.diagonal`). Other measurements, and laws
along axes of their own, go through `molrmog.laws.measured`. Either way E[x_0 | x_t, y] is exact: guidance that every
sampler takes as it takes a law.

References:
    Cardoso et al., "Monte Carlo guided diffusion for Bayesian linear inverse problems", 2024, and Boys et al., "Tweedie
    moment projected diffusions", 2023, judge samplers by such posteriors of mixtures built by hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from molrmog.arguments import whole
from molrmog.laws.base import (
    Noise,
    Posterior,
    as_tensor,
    categorical,
    check_generator,
    noise_levels,
    rows_per_chunk,
    to_numpy,
)
from molrmog.laws.measured import Measured, MeasuredLevel, Measurement
from molrmog.laws.observations import read_observation
from molrmog.models import Expert, refuse_expert

if TYPE_CHECKING:
    from molrmog.laws.molrmog import MoLRMoG

_LOG_2PI = math.log(2 * math.pi)


class ConditionedLaw:
    """The law of x_0 given y, and of x_t = s x_0 + gamma eps given y; exact.

    Given one y (m,), results have no axis of rows, and rows x_t (N, D) are all noised under that y. Given several,
    (B, m), results have B rows, and x_t (B, D) has a row for each. NaN in y was not observed.

    Attributes:
        law: of x_0 before anything is observed.
        dim: D.
        mean: E[x_0 | y], with shape (D,) or (B, D).
        variance: Var[x_0 | y] of each coordinate, with shape (D,) or (B, D).
        responsibilities: of the modes of all subspaces, with shape (sum n_k,) or (B, sum n_k).
        log_evidence: log p(y) in nats, with shape () or (B,).
    """

    def __init__(self, law: MoLRMoG, y: Any, observation: Any = None, noise: Any = None) -> None:
        """See :meth:`MoLRMoG.condition`."""
        self.law, self.dim = law, law.dim
        self._in_kind: Callable[[Tensor], Any] = (lambda t: t) if isinstance(y, Tensor) else to_numpy
        rows = as_tensor(y, "y", missing=True).to(law.basis.device)
        self._dtype = rows.dtype if rows.is_floating_point() else law.basis.dtype
        self._single = rows.ndim < 2
        rows = rows.double().reshape(1, -1) if self._single else rows.double()
        if rows.ndim != 2:
            raise ValueError(f"y has shape {tuple(rows.shape)}: pass one observation, (m,), or several, (B, m)")
        seen = read_observation(observation, noise, self.dim, rows.device)
        m = seen.size
        whole_rows = seen.mask is not None and rows.shape[1] == self.dim
        if not (whole_rows or rows.shape[1] == m):
            also = f", or rows of {self.dim}" if seen.mask is not None else ""
            raise ValueError(f"y has {rows.shape[1]} numbers, but {m} are observed: pass so many{also}")
        if seen.mask is not None and len(seen.mask) not in (1, len(rows)):
            raise ValueError(f"{len(seen.mask)} masks for {len(rows)} rows: pass one for all, or one each")
        self._by_coordinate = seen.by_coordinate and law.axes is None
        if seen.mask is not None and (self._by_coordinate or len(seen.mask) > 1):
            own = seen.mask.expand(len(rows), -1)
            if not whole_rows:
                rows = rows.new_zeros(own.shape).masked_scatter(own, rows)
            missing = ~own | rows.isnan()
            self._y = rows.masked_fill(missing, 0.0)
            self._noise = torch.where(missing, torch.inf, seen.noise)
            self._noise = self._noise[:1] if bool((self._noise == self._noise[:1]).all()) else self._noise
            self._groups = None if law.axes is None else _Groups.by_mask(law, self._y, self._noise)
        else:
            if whole_rows and seen.mask is not None and rows.shape[1] != m:
                rows = rows[:, seen.mask[0]]
            self._groups = _Groups.of(law, rows, seen.measurement())

    # --- what is known of x_0

    @functools.cached_property
    def _posterior(self) -> Posterior:
        """Of all rows, where coordinates are observed."""
        with _in_words_of_observations():
            return self.law.posterior(self._y.to(self._dtype), 1.0, self._noise)

    @property
    def mean(self) -> Any:
        """E[x_0 | y], with shape (D,) or (B, D)."""
        return self._answer(self._posterior.mean if self._groups is None else self._groups.each("denoise"))

    @property
    def variance(self) -> Any:
        """Var[x_0 | y] of each coordinate, with shape (D,) or (B, D)."""
        return self._answer(self._posterior.variance if self._groups is None else self._groups.each("variance"))

    @property
    def responsibilities(self) -> Any:
        """P(mode | y), with shape (sum n_k,) or (B, sum n_k)."""
        return self._answer(
            self._posterior.responsibilities if self._groups is None else self._groups.each("responsibilities")
        )

    @property
    def log_evidence(self) -> Any:
        """Log p(y) in nats, with shape () or (B,)."""
        return self._answer(self._log_evidence)

    @property
    def _log_evidence(self) -> Tensor:
        return self._posterior.log_prob if self._groups is None else self._groups.each("log_prob")

    @torch.no_grad()
    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Any:
        """Draw exact samples of x_0 given y, with shape (n, D) or (n, B, D).

        Args:
            n: samples per y.
            generator: source of randomness, for reproducibility.

        Raises:
            ValueError: n < 1.
        """
        n = whole(n, "n", 1)
        check_generator(generator)
        if self._groups is None:
            drawn = self._posterior.sample(n, generator)
        else:
            drawn = self._groups.drawn(n, generator)
        drawn = drawn.to(self._dtype)
        return self._in_kind(drawn[:, 0] if self._single else drawn)

    # --- and of x_t

    def denoise(self, x: Any, s: Noise = 1.0, gamma: Noise = 0.0, expert: Expert | None = None) -> Any:
        """E[x_0 | x_t, y], with shape (B, D).

        Args:
            x: noised rows x_t, with shape (B, D): any number given one y, else a row for each.
            s: signal scale, a float or one per row with shape (B,).
            gamma: noise standard deviation, a float or one per row with shape (B,).
            expert: none.

        Raises:
            ValueError: wrong shapes, or there is no density.
        """
        refuse_expert(self, expert, "pass none")
        return self._of_rows(x, s, gamma, self._denoise)

    def score(self, x: Any, s: Noise = 1.0, gamma: Noise = 0.0) -> Any:
        """Gradient of log p(x_t | y), with shape (B, D); arguments and errors as in :meth:`denoise`."""
        return self._of_rows(x, s, gamma, self._score)

    def log_prob(self, x: Any, s: Noise = 1.0, gamma: Noise = 0.0) -> Any:
        """Log p(x_t | y) in nats, with shape (B,); arguments and errors as in :meth:`denoise`."""
        return self._of_rows(x, s, gamma, self._log_prob)

    def __repr__(self) -> str:
        return f"ConditionedLaw({type(self.law).__name__} of R^{self.dim})"

    def _answer(self, result: Tensor) -> Any:
        result = result.to(self._dtype)
        return self._in_kind(result[0] if self._single else result)

    def _of_rows(self, x: Any, s: Noise, gamma: Noise, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
        rows = as_tensor(x).to(self.law.basis.device)
        rows = rows if rows.is_floating_point() else rows.double()
        held = len(self._y) if self._groups is None else self._groups.rows
        if rows.ndim != 2 or rows.shape[1] != self.dim or not (self._single or len(rows) == held):
            which = "any number of rows" if self._single else f"a row for each of {held} observations"
            raise ValueError(f"x has shape {tuple(rows.shape)}: pass {which}, with {self.dim} columns")
        s1, gamma1 = noise_levels(len(rows), s, gamma, rows.new_ones(1))
        found = compute(rows, s1, gamma1).to(rows.dtype)
        return found if isinstance(x, Tensor) else to_numpy(found)

    def _together(self, x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What x_t and y say together: u, its variances v, how much of u is of x_t, and the variances of x_t - s y."""
        s, gamma2, g2 = s[:, None], gamma.square()[:, None], self._noise.square()
        hidden = g2.isinf()
        known = torch.where(hidden, 1.0, g2)
        both = s.square() * known + gamma2
        both = torch.where(both > 0, both, torch.inf)  # x_t is x_0, and so is y
        alone = torch.where(s == 0, torch.inf, s)
        v = torch.where(hidden, torch.where(s == 0, torch.inf, gamma2 / alone.square()), gamma2 * known / both)
        of_x = torch.where(hidden, 1 / alone, s * known / both)
        of_y = torch.where(both.isinf(), 1.0, gamma2 / both)
        u = of_x * x + torch.where(hidden, 0.0, of_y * self._y)
        return u, v.sqrt(), of_x, torch.where(hidden, torch.inf, both)

    def _denoise(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        if self._groups is not None:
            return self._groups.each("denoise", x.double(), s, gamma)
        u, noise, _, _ = self._together(x, s, gamma)
        with _in_words_of_observations():
            return self.law.denoise(u.to(x.dtype), 1.0, noise)

    def _score(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        if self._groups is not None:
            _refuse_without_noise(gamma)
            return (s[:, None] * self._denoise(x, s, gamma) - x) / gamma.square()[:, None]
        _refuse_certain(gamma, self._noise)
        u, noise, of_x, both = self._together(x, s, gamma)
        with _in_words_of_observations():
            score = of_x * self.law.score(u, 1.0, noise)
        apart = (x - s[:, None] * self._y) / both
        lost = (s == 0)[:, None] & both.isinf()  # nothing of x_0 is in x_t: pure noise
        return torch.where(lost, -x / gamma.square()[:, None], score - apart)

    def _log_prob(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        if self._groups is not None:
            _refuse_without_noise(gamma)
            return self._groups.each("log_prob", x.double(), s, gamma) - self._log_evidence
        _refuse_certain(gamma, self._noise)
        u, noise, _, both = self._together(x, s, gamma)
        hidden = both.isinf()
        apart = torch.where(hidden, 0.0, (x - s[:, None] * self._y).square() / both)
        logs = torch.where(hidden, 0.0, both.log() + _LOG_2PI)
        scale = s[:, None].square().log().expand_as(hidden)
        pure = x.square() / gamma.square()[:, None] + gamma.square()[:, None].log() + _LOG_2PI
        others = torch.where(hidden, torch.where(s[:, None] == 0, pure, scale), 0.0)
        with _in_words_of_observations():
            joint = self.law.log_prob(u, 1.0, noise)
        return joint - 0.5 * (apart + logs + others).sum(1) - self._log_evidence


@contextmanager
def _in_words_of_observations() -> Generator[None]:
    """Say what a law refuses in the words of an observation."""
    try:
        yield
    except ValueError as error:
        if "gamma must be > 0" not in str(error):
            raise
        raise ValueError(
            "the law is certain of a coordinate that is observed without noise, so that there is no density: "
            "pass noise > 0, or fit with noise_floor > 0"
        ) from None


def _refuse_without_noise(gamma: Tensor) -> None:
    if not bool((gamma > 0).all()):
        raise ValueError("given y, x_0 has a density in some directions only: pass gamma > 0")


def _refuse_certain(gamma: Tensor, noise: Tensor) -> None:
    """Refuse densities of rows whose coordinates are known without noise."""
    if bool(((gamma == 0)[:, None] & (noise == 0)).any()):
        raise ValueError("x_0 is known where it was observed without noise, and has no density there: pass gamma > 0")


class _Groups:
    """Rows that are measured alike, each with what is measured of them.

    Attributes:
        rows: how many in all.
        parts: indices of rows, their measurements y, and what measured them.
    """

    def __init__(self, law: MoLRMoG, rows: int, parts: list[tuple[Tensor, Tensor, Measurement]]) -> None:
        self.law, self.rows, self.parts = law, rows, parts
        self._levels: dict[tuple[int, float, float], MeasuredLevel] = {}

    @classmethod
    def of(cls, law: MoLRMoG, y: Tensor, measurement: Measurement) -> _Groups:
        """Rows of one measurement, of which some numbers may be missing."""
        H = measurement.H if law.axes is None else measurement.H @ law.axes.matrix().to(measurement.H)
        parts: list[tuple[Tensor, Tensor, Measurement]] = []
        for at, own in _alike(~y.isnan()):
            parts.append((at, y[at][:, own], Measurement(H[own], measurement.noise[own])))
        return cls(law, len(y), parts)

    @classmethod
    def by_mask(cls, law: MoLRMoG, y: Tensor, noise: Tensor) -> _Groups:
        """Rows of a law along axes, observed with noise (1 or B, D), infinite where they are not."""
        assert law.axes is not None
        Q = law.axes.matrix().double()
        parts: list[tuple[Tensor, Tensor, Measurement]] = []
        for at, own in _alike(noise.expand(len(y), -1)):
            seen = own.isfinite()
            parts.append((at, y[at][:, seen], Measurement(Q[seen], own[seen])))
        return cls(law, len(y), parts)

    def _level(self, i: int, s: float, gamma: float) -> MeasuredLevel:
        """Of part i at a noise level; the last is kept."""
        key = (i, s, gamma)
        if key not in self._levels:
            for old in [each for each in self._levels if each[0] == i and math.isfinite(each[2])]:
                del self._levels[old]
            self._levels[key] = MeasuredLevel(self.law._factors(), self.parts[i][2], s, gamma)
        return self._levels[key]

    def each(self, what: str, x: Tensor | None = None, s: Tensor | None = None, gamma: Tensor | None = None) -> Tensor:
        """What the evidence of all rows says, in order; beside noised rows x_t where given, whose levels may differ."""
        count = self.rows if x is None else len(x)
        found: Tensor | None = None
        for i, (at, y, _) in enumerate(self.parts):
            if x is not None and self.rows == 1 and len(x) != 1:
                at, y = torch.arange(len(x), device=x.device), y.expand(len(x), -1)
            for some, s1, gamma1 in _levels(at, s, gamma):
                level = self._level(i, s1, gamma1)
                most = rows_per_chunk(self.law.basis.device, 4 * (len(level.W) * level.W.shape[1] + level.mean.numel()))
                for part in some.split(most):
                    rows = None if x is None else self.law._down(x[at[part]])
                    out = self._said(Measured(level, y[part], rows), what)
                    if found is None:
                        found = out.new_empty(count, *out.shape[1:])
                    found[at[part]] = out
        assert found is not None
        return found

    def _said(self, e: Measured, what: str) -> Tensor:
        if what == "denoise":
            return self.law._up(e.denoise())
        if what == "variance":
            axes = self.law.axes
            return e.variance(None if axes is None else axes.matrix().double())
        if what == "responsibilities":
            return e.responsibilities[:, self.law._real_mode.flatten()]
        return e.log_prob

    def drawn(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 of all rows, with shape (n, B, D)."""
        found = None
        for i, (at, y, _) in enumerate(self.parts):
            e = Measured(self._level(i, 0.0, math.inf), y)
            modes = e.shapes[2]
            component = categorical(e.responsibilities, n, generator).flatten()
            row = torch.arange(len(at), device=at.device).repeat_interleave(n)
            most = rows_per_chunk(self.law.basis.device, 8 * self.law.dim)
            parts = [
                e.draw(c // modes, c % modes, r, generator)
                for c, r in zip(component.split(most), row.split(most), strict=True)
            ]
            own = self.law._up(torch.cat(parts)).view(len(at), n, -1).transpose(0, 1)
            found = own.new_empty(n, self.rows, own.shape[2]) if found is None else found
            found[:, at] = own
        assert found is not None
        return found


def _alike(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Indices of rows (B, any) that are equal, and what they are."""
    if not rows.shape[1]:
        return [(torch.arange(len(rows), device=rows.device), rows[0])]
    different, which = rows.unique(dim=0, return_inverse=True)
    return [((which == i).nonzero()[:, 0], own) for i, own in enumerate(different)]


def _levels(at: Tensor, s: Tensor | None, gamma: Tensor | None) -> list[tuple[Tensor, float, float]]:
    """Positions in `at` of one noise level each, and that level; none at all where there is no x_t."""
    every = torch.arange(len(at), device=at.device)
    if s is None or gamma is None:
        return [(every, 0.0, math.inf)]
    if len(s) == len(gamma) == 1:
        return [(every, float(s), float(gamma))]
    pairs = torch.stack([s.expand(max(len(s), len(gamma))), gamma.expand(max(len(s), len(gamma)))], 1)[at]
    different, which = pairs.unique(dim=0, return_inverse=True)
    return [((which == i).nonzero()[:, 0], float(a), float(b)) for i, (a, b) in enumerate(different)]


def impute(law: MoLRMoG, x: Any, draws: int | None, generator: torch.Generator | None) -> Any:
    """See :meth:`MoLRMoG.impute`."""
    rows = x if isinstance(x, Tensor) else as_tensor(x, missing=True)
    if not rows.is_floating_point():
        rows = rows.to(law.basis.dtype)
    here = rows.to(law.basis.device)
    missing = here.isnan() if here.ndim == 2 else here.new_zeros(1, dtype=torch.bool)
    with torch.no_grad():
        if draws is None:
            found = law.denoise(here)
        else:
            found = law.posterior(here).sample(whole(draws, "draws", 1), generator)
        found = torch.where(missing, found, here).to(rows.device)
    return found if isinstance(x, Tensor) else to_numpy(found)
