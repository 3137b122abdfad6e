"""How much of what a denoiser does a law explains, noise level by noise level, and where it may take the law's place.

On rows x_0 noised to x_t, with D the denoiser, B that of the law, and G the one of an isotropic Gaussian with the
data's mean m and mean variance sd^2, G = m + (s sd^2 / (s^2 sd^2 + gamma^2)) (x_t - s m):

    share     = 1 - E |D - B|^2 / E |D - E D|^2      of the denoiser's output
    beyond    = 1 - E |D - B|^2 / E |D - G|^2        of what it knows more than such a Gaussian
    apart     = E |D - B|^2 / E |D - x_0|^2          of the denoiser's own error

At low noise all say nearly x_t / s, and the share of the output is near one whatever the law: `beyond` is the one to
read there. Where `apart` stays small from a level up to pure noise, samples of the noised law are as good a start as a
walk from there: see :func:`jump_time`.

References:
    Wang and Vastola, The unreasonable effectiveness of Gaussian score approximation, arXiv 2412.09726, section 4: a
    Gaussian explains over 99% of a network's score at high noise, and a jump saves 15 to 30% of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from molrmog.denoisers.base import Denoiser
from molrmog.metrics._rows import Rows, as_array, blocks, placement
from molrmog.schedules import Schedule

_BLOCK = 256  # rows that a denoiser sees at once


@dataclass(frozen=True)
class Agreement:
    """Denoiser and law at one noise level.

    Attributes:
        s: the signal scale.
        gamma: the noise standard deviation, in data units.
        share: of the denoiser's output that the law explains, at most 1; NaN where the denoiser says a constant.
        beyond: the same of what it adds to an isotropic Gaussian; NaN where it adds nothing.
        apart: squared distance of the two as a share of the denoiser's squared error.
        loss: mean squared error of the denoiser per coordinate, in squared data units.
        law_loss: that of the law.
    """

    s: float
    gamma: float
    share: float
    beyond: float
    apart: float
    loss: float
    law_loss: float


@torch.no_grad()
def agreement(
    denoiser: Denoiser, law: Denoiser, x: Rows, schedule: Schedule, times: Sequence[float] | int = 24, seed: int = 0
) -> list[Agreement]:
    """Compare a denoiser with a law on the same noised rows.

    Args:
        denoiser: any, over R^D; bind its expert with `given` where it has several.
        law: a law, or any other denoiser to explain it by.
        x: clean rows with shape (N, D), best held out; some hundred are enough.
        schedule: whose noise levels are looked at.
        times: which of them; a number takes so many, evenly in log(gamma / s).
        seed: of the noise, which is the same at every level.

    Returns:
        One entry per time, in the order of `times`.

    Raises:
        ValueError: there are fewer than 2 rows, or no times.
    """
    dtype, device = placement(denoiser)
    x0 = torch.from_numpy(as_array(x, least=2)).to(device, dtype)
    if isinstance(times, int):
        times = time_levels(schedule, times)
    if not len(times):
        raise ValueError("no times: pass at least one")
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)
    mean = x0.mean(0)
    sd2 = (x0 - mean).square().mean()
    found: list[Agreement] = []
    for t in times:
        s, gamma = (float(level) for level in schedule(t))
        xt = s * x0 + gamma * eps
        D, B = (_denoised(each, xt, s, gamma) for each in (denoiser, law))
        G = mean + s * sd2 / (s * s * sd2 + gamma * gamma) * (xt - s * mean)
        apart, spread, more, loss = (
            float(part.double().square().mean()) for part in (D - B, D - D.mean(0), D - G, D - x0)
        )
        found.append(
            Agreement(
                s=s,
                gamma=gamma,
                share=_one_less(apart, spread),
                beyond=_one_less(apart, more),
                apart=apart / loss if loss else math.nan,
                loss=loss,
                law_loss=float((B - x0).double().square().mean()),
            )
        )
    return found


def time_levels(schedule: Schedule, n: int) -> list[float]:
    """Times whose log(gamma / s) are even between the ends of the schedule, ascending; infinite ends are left out."""
    low, high = (-0.5 * schedule.log_snr(t) for t in (schedule.t_min, schedule.t_max))
    low, high = max(low, math.log(1e-3)), min(high, math.log(1e2))
    log_sigma = torch.linspace(low, high, n, dtype=torch.float64)
    return schedule.time(-2 * log_sigma).clamp(schedule.t_min, schedule.t_max).tolist()


def jump_time(
    denoiser: Denoiser, law: Denoiser, x: Rows, schedule: Schedule, tolerance: float = 0.05, seed: int = 0
) -> float | None:
    """The earliest time from which on, up to pure noise, denoiser and law agree.

    A sampler may start there from exact noised samples of the law, `sample(..., jump=t, jump_by="law", jump_law=law)`,
    and spend all its steps below.

    Args:
        denoiser: any, over R^D.
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
    if not tolerance > 0:
        raise ValueError(f"tolerance = {tolerance}: pass a share of the denoiser's error, > 0")
    times = time_levels(schedule, 48)
    found = agreement(denoiser, law, x, schedule, times, seed)
    best = None
    for t, level in zip(reversed(times), reversed(found), strict=True):
        if not level.apart <= tolerance:
            break
        best = t
    return best


def _denoised(denoiser: Denoiser, xt: Tensor, s: float, gamma: float) -> Tensor:
    dtype, device = placement(denoiser)
    parts = [denoiser.denoise(xt[at].to(device, dtype), s, gamma) for at in blocks(len(xt), _BLOCK)]
    return torch.cat(parts).to(xt)


def _one_less(part: float, whole: float) -> float:
    return 1 - part / whole if whole > 0 else math.nan
