"""How much of what a denoiser does a law explains, noise level by noise level, and where it may take the law's place.

On rows x_0 noised to x_t, with D the denoiser, B that of the law, and G that of a single Gaussian,

    share     = 1 - E |D - B|^2 / E |D - E D|^2          of the denoiser's output
    beyond    = 1 - E |D - B|^2 / E |D - G|^2            of what it knows more than the Gaussian
    worth     = E <D - B, x_0 - B> / E |D - B|^2         of what the law does not explain: how far it is right
    apart     = E |D - B|^2 / E |D - x_0|^2              of the denoiser's own error
    left_j    = E (D - B)_j^2 / E (D - E D)_j^2          coordinate by coordinate, what is not explained

At low noise all say nearly x_t / s, and the share of the output is near one whatever the law: that of an isotropic
Gaussian, m + (s sd^2 / (s^2 sd^2 + gamma^2)) (x_t - s m) with the rows' mean and mean variance, stands beside it, and
`beyond` is the one to read there.

A denoiser may differ from the law because it knows more, or because it errs. Where it is E[x_0 | x_t], D - x_0 is
orthogonal to all that x_t can say, and worth = 1; where it is noise around the law, worth = 0, since

    E |B - x_0|^2 - E |D - x_0|^2 = (2 worth - 1) E |D - B|^2.

Where `apart` stays small from a level up to pure noise, samples of the noised law are as good a start as a walk from
there: see :func:`jump_time`. Errors are standard errors over the rows, of a mean or of a ratio of means.

References:
    Wang and Vastola, The unreasonable effectiveness of Gaussian score approximation, arXiv 2412.09726, section 4: a
    Gaussian explains over 99% of a network's score at high noise, and a jump saves 15 to 30% of the steps.
    Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate Anal. 88,
    2004 (the Gaussian of few rows).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from molrmog.arguments import real, shown, whole
from molrmog.laws.base import Law, Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.metrics._rows import Rows, as_array, blocks, placement
from molrmog.models import SupportsDenoise, check_denoiser, denoise_with, num_experts_of
from molrmog.schedules import Schedule, check_schedule
from molrmog.seeds import torch_generator

_BLOCK = 256  # rows that a denoiser sees at once


@dataclass(frozen=True, eq=False)
class Agreement:
    """Denoiser and law at one noise level.

    Attributes:
        s: the signal scale.
        gamma: the noise standard deviation, in data units.
        rows: how many were looked at.
        share: of the denoiser's output that the law explains, at most 1; NaN where the denoiser says a constant.
        share_error: its standard error.
        isotropic_share: of the output that an isotropic Gaussian explains.
        gaussian_share: of the output that the single Gaussian explains.
        beyond: of what the denoiser knows more than that Gaussian, the share that the law explains; NaN where it knows
            nothing more.
        beyond_error: its standard error.
        worth: of the difference of the two, how far it is right; NaN where there is none.
        worth_error: its standard error.
        apart: squared distance of the two as a share of the denoiser's squared error.
        loss: mean squared error of the denoiser per coordinate, in squared data units.
        loss_error: its standard error.
        law_loss: that of the law.
        law_loss_error: its standard error.
        gaussian_loss: that of the single Gaussian.
        missed: mean square of the difference of the two, by coordinate, with shape (D,).
        variance: of the denoiser's output, by coordinate, with shape (D,).
    """

    s: float
    gamma: float
    rows: int
    share: float
    share_error: float
    isotropic_share: float
    gaussian_share: float
    beyond: float
    beyond_error: float
    worth: float
    worth_error: float
    apart: float
    loss: float
    loss_error: float
    law_loss: float
    law_loss_error: float
    gaussian_loss: float
    missed: Tensor
    variance: Tensor

    @property
    def sigma(self) -> float:
        """The noise level gamma / s, in data units."""
        return self.gamma / self.s if self.s else math.inf

    @property
    def left(self) -> Tensor:
        """Share of each coordinate's variance that the law does not explain, (D,); NaN where it is a constant."""
        return torch.where(self.variance > 0, self.missed / self.variance, math.nan)

    def figures(self) -> dict[str, float]:
        """The numbers without the coordinates, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("missed", "variance")}


@dataclass(frozen=True, eq=False)
class Outputs:
    """What all say of the same noised rows at one noise level; every tensor has shape (N, D).

    Attributes:
        s: the signal scale.
        gamma: the noise standard deviation, in data units.
        clean: x_0.
        noised: x_t.
        denoiser: what the denoiser says.
        law: what the law says.
        gaussian: what the single Gaussian says.
        isotropic: what an isotropic Gaussian says that has the rows' mean and mean variance.
    """

    s: float
    gamma: float
    clean: Tensor
    noised: Tensor
    denoiser: Tensor
    law: Tensor
    gaussian: Tensor
    isotropic: Tensor

    def of(self, rows: Tensor | slice) -> Outputs:
        """Some of the rows: a slice, an index or a mask with shape (N,)."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("s", "gamma")}
        return Outputs(self.s, self.gamma, **{name: part[rows] for name, part in parts.items()})

    def agreement(self) -> Agreement:
        """The figures of these rows, of which there are at least 2."""
        x0, D, B, G, white = (
            part.double() for part in (self.clean, self.denoiser, self.law, self.gaussian, self.isotropic)
        )
        spread, missed, more = (part.square() for part in (D - D.mean(0), D - B, D - G))  # (N, D)
        share, share_error = _ratio(missed.mean(1), spread.mean(1))
        beyond, beyond_error = _ratio(missed.mean(1), more.mean(1))
        worth, worth_error = _ratio(((D - B) * (x0 - B)).mean(1), missed.mean(1))
        one = torch.ones(len(D), dtype=D.dtype, device=D.device)
        (loss, loss_error), (law_loss, law_loss_error), (gaussian_loss, _) = (
            _ratio((said - x0).square().mean(1), one) for said in (D, B, G)
        )
        return Agreement(
            s=self.s,
            gamma=self.gamma,
            rows=len(D),
            share=1 - share,
            share_error=share_error,
            isotropic_share=1 - _ratio((D - white).square().mean(1), spread.mean(1))[0],
            gaussian_share=1 - _ratio(more.mean(1), spread.mean(1))[0],
            beyond=1 - beyond,
            beyond_error=beyond_error,
            worth=worth,
            worth_error=worth_error,
            apart=_ratio(missed.mean(1), (D - x0).square().mean(1))[0],
            loss=loss,
            loss_error=loss_error,
            law_loss=law_loss,
            law_loss_error=law_loss_error,
            gaussian_loss=gaussian_loss,
            missed=missed.mean(0),
            variance=spread.mean(0),
        )


def outputs(
    denoiser: SupportsDenoise,
    law: SupportsDenoise,
    x: Rows,
    schedule: Schedule,
    times: Sequence[float] | int = 24,
    seed: int = 0,
    *,
    expert: Tensor | None = None,
    gaussian: SupportsDenoise | None = None,
) -> Iterator[Outputs]:
    """What a denoiser and a law say of the same noised rows, level by level.

    Args:
        denoiser: any, over R^D.
        law: a law, or any other denoiser to explain it by.
        x: clean rows with shape (N, D), best held out; some hundred are enough.
        schedule: whose noise levels are looked at.
        times: which of them; a number takes so many, evenly in log(gamma / s).
        seed: of the noise, which is the same at every level.
        expert: of each row, with shape (N,), for those that have `experts`.
        gaussian: the single Gaussian; an isotropic one with the rows' mean and mean variance where None.

    Yields:
        Outputs: at each time, in the order of `times`.

    Raises:
        ValueError: there are fewer than 2 rows, or no times.
    """
    dtype, device = placement(denoiser)
    check_denoiser(denoiser)
    check_denoiser(law, "law")
    check_schedule(schedule)
    x0 = torch.tensor(as_array(x, least=2)).to(device, dtype)
    try:
        if isinstance(times, int | np.integer):
            times = time_levels(schedule, max(0, whole(times, "times")))
        times = [real(t, "times") for t in times]
    except (TypeError, ValueError):
        raise ValueError(f"times = {shown(times)}: pass a number of them, or a list") from None
    if not len(times):
        raise ValueError("no times: pass at least one")
    eps = torch.randn(x0.shape, generator=torch_generator(seed), dtype=dtype).to(device)
    mean = x0.mean(0)
    sd2 = (x0 - mean).square().mean()
    for t in times:
        s, gamma = (float(level) for level in schedule(t))
        xt = s * x0 + gamma * eps
        isotropic = mean + s * sd2 / (s * s * sd2 + gamma * gamma) * (xt - s * mean)
        D, B = (_denoised(each, xt, s, gamma, expert) for each in (denoiser, law))
        G = isotropic if gaussian is None else _denoised(gaussian, xt, s, gamma, expert)
        yield Outputs(s, gamma, x0, xt, D, B, G, isotropic)


def agreement(
    denoiser: SupportsDenoise,
    law: SupportsDenoise,
    x: Rows,
    schedule: Schedule,
    times: Sequence[float] | int = 24,
    seed: int = 0,
    *,
    expert: Tensor | None = None,
    gaussian: SupportsDenoise | None = None,
) -> list[Agreement]:
    """Compare a denoiser with a law on the same noised rows.

    Args:
        denoiser: any, over R^D.
        law: a law, or any other denoiser to explain it by.
        x: clean rows with shape (N, D), best held out; some hundred are enough.
        schedule: whose noise levels are looked at.
        times: which of them; a number takes so many, evenly in log(gamma / s).
        seed: of the noise, which is the same at every level.
        expert: of each row, with shape (N,), for those that have `experts`.
        gaussian: the single Gaussian that `beyond` asks for, best the :func:`gaussian_of` the training rows; the law's
            `moment_matched()` where None, or an isotropic one with the rows' moments where the law has none.

    Returns:
        One entry per time, in the order of `times`.

    Raises:
        ValueError: there are fewer than 2 rows, or no times.

    Example:
        >>> from molrmog import MoLRMoG, VPSchedule
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), noise=0.1, seed=0).requires_grad_(False)
        >>> x = law.sample(200).x
        >>> low, high = agreement(law.moment_matched(), law, x, VPSchedule(), times=2)  # a network that is a Gaussian
        >>> f"{low.share:.3f} {high.apart:.3f}"
        '1.000 0.000'
    """
    if gaussian is None and isinstance(law, Law):
        gaussian = law.moment_matched()
    levels = outputs(denoiser, law, x, schedule, times, seed, expert=expert, gaussian=gaussian)
    return [level.agreement() for level in levels]


def gaussian_of(x: Rows) -> MoLRMoG:
    """A single Gaussian fitted to rows, as a law: their mean, and their covariance S shrunk as Ledoit and Wolf do.

        C = (1 - rho) S + rho (tr S / D) I,      rho = sum_i |x_i x_i^T - S|^2 / N^2 / |S - (tr S / D) I|^2, at most 1

    No D x D matrix is formed where there are fewer rows than columns.

    Args:
        x: rows, with shape (N, D), at least 2.

    Raises:
        ValueError: the rows have a wrong shape, are too few or all the same.

    Example:
        >>> law = gaussian_of(torch.randn(500, 6, generator=torch.Generator().manual_seed(0)))
        >>> law.denoise(torch.zeros(1, 6), s=1.0, gamma=1.0).abs().max().item() < 0.1
        True
    """
    array = torch.tensor(as_array(x, least=2))
    rows = array.double()
    mean = rows.mean(0)
    rows = rows - mean
    N, D = rows.shape
    if N < D:
        lam, U = torch.linalg.eigh(rows @ rows.T / N)
        keep = lam > 1e-10 * lam[-1]
        lam = lam[keep]
        Q = torch.linalg.qr(rows.T @ U[:, keep]).Q  # (D, r)
    else:
        lam, Q = torch.linalg.eigh(rows.T @ rows / N)
        lam = lam.clamp(min=0)
    width = lam.sum() / D
    if not width > 0:
        raise ValueError("the rows are all the same: pass rows that vary")
    off = lam.square().sum() - D * width.square()  # |S - width I|^2
    noise = (rows.square().sum(1).square().mean() - lam.square().sum()) / N
    rho = (noise / off).clamp(0, 1) if off > 0 else torch.ones_like(width)
    gaussian = Subspace(
        weight=1.0,
        basis=Q,
        offset=mean,
        tau=float((rho * width).sqrt()),
        mode_weights=torch.ones(1, dtype=Q.dtype),
        means=Q.new_zeros(1, len(lam)),
        factors=(((1 - rho) * lam).sqrt().diag(),),
    )
    return MoLRMoG.from_subspaces([gaussian], dtype=array.dtype).requires_grad_(False)


def time_levels(schedule: Schedule, n: int) -> list[float]:
    """Times whose log(gamma / s) are even between the ends of the schedule, ascending; infinite ends are left out."""
    low, high = (-0.5 * schedule.log_snr(t) for t in (schedule.t_min, schedule.t_max))
    low, high = max(low, math.log(1e-3)), min(high, math.log(1e2))
    log_sigma = torch.linspace(low, high, n, dtype=torch.float64)
    return schedule.time(-2 * log_sigma).clamp(schedule.t_min, schedule.t_max).tolist()


def jump_time(
    denoiser: SupportsDenoise, law: SupportsDenoise, x: Rows, schedule: Schedule, tolerance: float = 0.05, seed: int = 0
) -> float | None:
    """The earliest time from which on, up to pure noise, denoiser and law agree.

    A sampler may start there from exact noised samples of the law, `sample(..., jump=t, jump_by="law", jump_law=law)`,
    and spend all its steps below.

    Args:
        denoiser: any, over R^D; see `condition_on` where it knows experts.
        law: the law to start from.
        x: clean rows with shape (N, D).
        schedule: of the sampler.
        tolerance: greatest E |D - B|^2 / E |D - x_0|^2.
        seed: of the noise.

    Returns:
        The time, or None where they do not agree even at the end of the schedule.

    Raises:
        ValueError: the tolerance is not positive.
    """
    if not real(tolerance, "tolerance") > 0:
        raise ValueError(f"tolerance = {tolerance}: pass a share of the denoiser's error, > 0")
    check_schedule(schedule)
    times = time_levels(schedule, 48)
    apart = [level.agreement().apart for level in outputs(denoiser, law, x, schedule, times, seed)]
    first = agree_from(apart, tolerance)
    return None if first is None else times[first]


def agree_from(apart: Sequence[float], tolerance: float) -> int | None:
    """Index of the first level from which on, up to the last, denoiser and law agree; None where the last differs.

    Args:
        apart: `Agreement.apart` by noise level, ascending; NaN is no agreement.
        tolerance: the greatest of them that counts as agreement.

    Example:
        >>> agree_from([0.01, 0.2, 0.05, 0.0], tolerance=0.05)
        2
    """
    far = [i for i, distance in enumerate(apart) if not distance <= tolerance]
    first = far[-1] + 1 if far else 0
    return first if first < len(apart) else None


@torch.no_grad()
def _denoised(denoiser: SupportsDenoise, xt: Tensor, s: float, gamma: float, expert: Tensor | None) -> Tensor:
    dtype, device = placement(denoiser)
    known = expert if num_experts_of(denoiser) else None
    parts: list[Tensor] = []
    for at in blocks(len(xt), _BLOCK):
        index = None if known is None else known[at].to(device)
        parts.append(denoise_with(denoiser, xt[at].to(device, dtype), s, gamma, index))
    return torch.cat(parts).to(xt)


def _ratio(part: Tensor, whole: Tensor) -> tuple[float, float]:
    """Sum of `part` over sum of `whole`, both with shape (N,), and its standard error; NaN where the whole is zero."""
    n, total = len(whole), float(whole.sum())
    if not total > 0:
        return math.nan, math.nan
    ratio = float(part.sum()) / total
    error = float((part - ratio * whole).square().sum() * n / max(1, n - 1)) ** 0.5 / total
    return ratio, error
