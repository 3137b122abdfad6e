"""Denoising loss of any denoiser, weighted as EDM weights it, by range of noise level.

At s = 1, for x_t = x_0 + gamma eps and log gamma from a stated distribution,

    L = E_{gamma, x_0, eps}  w(gamma) ||D(x_t, 1, gamma) - x_0||^2 / D_x,      w(gamma) = (gamma^2 + c^2) / (gamma c)^2

with D_x the dimension and c = sigma_data the standard deviation the weight is made for: a Gaussian of that deviation,
white in all coordinates, has the loss 1 at every gamma. The default distribution, log gamma ~ N(-1.2, 1.2^2), is the
one EDM trains with. The floor of any denoiser is the posterior variance, w(gamma) E tr Cov[x_0 | x_t] / D_x.

The noise depends on the seed and the position of a row alone, so denoisers on the same rows see the same noised rows
and their losses may be subtracted (the standard error of the difference is then far below the errors stated here).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from molrmog.arguments import is_a, real, shown, whole
from molrmog.metrics._rows import Rows, as_array, blocks, placement
from molrmog.models import SupportsDenoise, check_denoiser
from molrmog.seeds import torch_generator

# Rows noised together; a constant, because it fixes the order in which random numbers are drawn.
_BLOCK = 256


@dataclass(frozen=True)
class RangeLoss:
    """Loss at the noise levels of one range.

    Attributes:
        low: lower end of the range of log gamma, included.
        high: upper end, excluded.
        loss: mean weighted loss (NaN where no draw fell into the range).
        standard_error: of that mean, over rows.
        draws: number of noised rows in the range.
    """

    low: float
    high: float
    loss: float
    standard_error: float
    draws: int


@dataclass(frozen=True)
class DenoisingLoss:
    """Weighted denoising loss, overall and by range of noise level.

    Attributes:
        loss: mean weighted loss per dimension.
        standard_error: of that mean, over rows.
        ranges: the same by range of log gamma, ascending.
        sigma_data: the standard deviation c in the weight.
        seed: what the noise was drawn from.
    """

    loss: float
    standard_error: float
    ranges: tuple[RangeLoss, ...]
    sigma_data: float
    seed: int


def edm_weight(gamma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The weight (gamma^2 + c^2) / (gamma c)^2 of EDM, with the shape of gamma (> 0), c = sigma_data.

    Raises:
        ValueError: gamma is no dense tensor of real numbers.
    """
    if not is_a(gamma, Tensor) or gamma.is_complex() or gamma.layout != torch.strided or gamma.is_meta:
        raise ValueError(f"gamma = {shown(gamma)}: pass a dense tensor of real numbers")
    sigma_data = real(sigma_data, "sigma_data")
    return (gamma.square() + sigma_data**2) / (gamma * sigma_data).square()


def _range_loss(loss: np.ndarray, inside: np.ndarray, low: float, high: float) -> RangeLoss:
    """A ratio of sums over rows, with the error of a ratio estimator: draws of one row need not be independent."""
    count = inside.sum(1)  # (N,)
    draws, rows = int(count.sum()), int((count > 0).sum())
    if draws == 0:
        return RangeLoss(low, high, math.nan, math.nan, 0)
    total = (loss * inside).sum(1)  # (N,)
    mean = total.sum() / draws
    spread = float(np.square(total - mean * count).sum())
    error = math.sqrt(spread * rows / (rows - 1)) / draws if rows > 1 else math.nan
    return RangeLoss(low, high, float(mean), error, draws)


def denoising_loss(
    denoiser: SupportsDenoise,
    x: Rows,
    *,
    log_gamma: Distribution | None = None,
    sigma_data: float = 0.5,
    draws: int = 1,
    levels: int | None = None,
    edges: tuple[float, ...] = (-3.0, -2.0, -1.0, 0.0),
    seed: int = 0,
) -> DenoisingLoss:
    """Weighted denoising loss of a denoiser on rows.

    Args:
        denoiser: anything with `denoise(x_t, s, gamma)`; rows are moved to its type and device.
        x: clean rows with shape (N, D).
        log_gamma: distribution of log gamma, any of torch.distributions with `icdf`: Normal(-1.2, 1.2) where None,
            Uniform(-5, 2) for the same precision in every range.
        sigma_data: the standard deviation c in the weight, in the units of the rows.
        draws: noised versions of every row.
        levels: how many noise levels the rows share, the midpoints of as many equally likely parts of the distribution;
            one of each row's own where None. A law of unequal noise is slow with many.
        edges: where the ranges of log gamma part, ascending; the first is open below and the last above.
        seed: what the noise is drawn from.

    Returns:
        The mean loss with its standard error, overall and by range.

    Raises:
        ValueError: where sigma_data or draws is not positive, edges do not ascend, rows have a wrong shape or hold
            NaN or infinite entries, or the denoiser returns another shape.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364),
        section 5 and table 1.
    """
    check_denoiser(denoiser)
    sigma_data, draws = real(sigma_data, "sigma_data"), whole(draws, "draws")
    try:
        edges = tuple(real(edge, "edges") for edge in edges)
    except TypeError:
        raise ValueError(f"edges = {shown(edges)}: pass numbers that ascend") from None
    levels_of_all = None if levels is None else whole(levels, "levels", 1)
    if not sigma_data > 0.0 or draws < 1:
        raise ValueError(f"sigma_data and draws must be positive, got {sigma_data} and {draws}")
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges must ascend, got {edges}")
    array = as_array(x)
    log_gamma = Normal(-1.2, 1.2, validate_args=False) if log_gamma is None else log_gamma
    dtype, device = placement(denoiser)
    training = isinstance(denoiser, torch.nn.Module) and denoiser.training
    generator = torch_generator(seed)

    loss = np.empty((len(array), draws))
    drawn = np.empty((len(array), draws))
    if isinstance(denoiser, torch.nn.Module):
        denoiser.eval()
    try:
        with torch.no_grad():
            for rows in blocks(len(array), _BLOCK):
                x0 = torch.tensor(array[rows], dtype=dtype, device=device)  # (B, D)
                for draw in range(draws):
                    # Drawn in float32 on the CPU whatever the denoiser, so that every denoiser gets the same numbers.
                    u = torch.rand(len(x0), generator=generator).double().clamp(1e-7, 1.0 - 1e-7)
                    u = u if levels_of_all is None else ((u * levels_of_all).floor() + 0.5) / levels_of_all
                    eps = torch.randn(x0.shape, generator=generator).to(device, dtype)
                    level = log_gamma.icdf(u).double()
                    gamma = level.exp()
                    local = gamma.to(device, dtype)
                    estimate = denoiser.denoise(x0 + local[:, None] * eps, 1.0, local)
                    if estimate.shape != x0.shape:
                        raise ValueError(f"the denoiser returned {tuple(estimate.shape)} for rows {tuple(x0.shape)}")
                    error = (estimate - x0).double().square().mean(1).cpu()  # (B,)
                    loss[rows, draw] = (edm_weight(gamma, sigma_data) * error).numpy()
                    drawn[rows, draw] = level.numpy()
    finally:
        if isinstance(denoiser, torch.nn.Module):
            denoiser.train(training)

    everything = _range_loss(loss, np.ones_like(loss), -math.inf, math.inf)
    ranges = tuple(
        _range_loss(loss, ((drawn >= low) & (drawn < high)).astype(float), low, high)
        for low, high in pairwise((-math.inf, *edges, math.inf))
    )
    return DenoisingLoss(everything.loss, everything.standard_error, ranges, sigma_data, seed)
