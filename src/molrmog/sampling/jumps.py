"""Jumps over the first steps, where the law is nearly one Gaussian and the flow of a Gaussian is known.

For a single Gaussian N(m, Cov) the probability-flow ODE from (s, gamma) to (s', gamma') has a closed form: each
eigendirection of Cov[x_t] is scaled by its own ratio of standard deviations. With Cov = sum_j lam_j q_j q_j^T + tau^2 I
and v = s^2 tau^2 + gamma^2,

    x'    = s' m + sqrt(v' / v) (x - s m) + sum_j (rho_j - sqrt(v' / v)) q_j q_j^T (x - s m)
    rho_j = sqrt((s'^2 lam_j + v') / (s^2 lam_j + v))

Noise that differs between coordinates leaves no direction alike: then all D principal axes of Cov are found, once.

At high noise the Gaussian with the law's mean and covariance has nearly the law's score, so one such jump replaces the
steps above some time t. It is exact for a law that is one Gaussian, whatever t.

References:
    Wang & Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models and its
    Applications, arXiv 2412.09726 ("analytical teleportation").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from molrmog.laws.base import Law, Subspace


def gaussian_flow(gaussian: Law, x: Tensor, s: float, gamma: float, s_next: float, gamma_next: float) -> Tensor:
    """Carry x along the exact probability flow of a single Gaussian, between any two noise levels.

    Args:
        gaussian: a law with one subspace and one mode, as `law.moment_matched()` is.
        x: states at (s, gamma), with shape (B, D).
        s: signal scale of x.
        gamma: noise standard deviation of x.
        s_next: signal scale to go to.
        gamma_next: noise standard deviation to go to.

    Returns:
        Tensor: states at (s_next, gamma_next), with shape (B, D).

    Raises:
        ValueError: the law has more than one mode, or no noise to start from (gamma = 0 and tau = 0).

    References:
        Wang & Vastola, arXiv 2412.09726.
    """
    if gaussian.modes != (1,):
        raise ValueError(f"a jump needs one Gaussian, not modes={gaussian.modes}: pass law.moment_matched()")
    if gaussian.noise_floor == 0 and gamma == 0:
        raise ValueError("a jump cannot start from gamma = 0 with tau = 0: pass gamma > 0")
    only = gaussian.subspace(0)
    mean = (only.offset + only.basis @ only.means[0]).to(x)  # (D,)
    if isinstance(only.tau, Tensor):
        variance, axes = gaussian._remembered("spectrum", lambda _: _spectrum(only), gaussian._tensors)
        ratio = ((s_next**2 * variance + gamma_next**2) / (s**2 * variance + gamma**2)).sqrt()
        return s_next * mean + (((x - s * mean).double() @ axes * ratio) @ axes.T).to(x)
    svd = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", torch.linalg.svd)  # pyright: ignore[reportUnknownMemberType]
    latent, root, _ = svd(only.factors[0].double(), full_matrices=False)
    directions = (only.basis.double() @ latent).to(x)  # (D, r)
    lam = root.square()  # (r,)
    v, v_next = s**2 * only.tau**2 + gamma**2, s_next**2 * only.tau**2 + gamma_next**2
    rest = (v_next / v) ** 0.5
    ratio = torch.sqrt((s_next**2 * lam + v_next) / (s**2 * lam + v)).to(x)  # (r,)
    centred = x - s * mean  # (B, D)
    return s_next * mean + rest * centred + ((ratio - rest) * (centred @ directions)) @ directions.T


def _spectrum(only: Subspace) -> tuple[Tensor, Tensor]:
    """Variances (D,) of a single Gaussian of unequal noise along its principal axes (D, D)."""
    up = only.basis.double() @ only.factors[0].double()
    turn = torch.eye(len(up)).to(up) if only.axes is None else only.axes.double()
    psi = torch.as_tensor(only.tau).double().square()
    variance, axes = torch.linalg.eigh(up @ up.T + (turn * psi) @ turn.T)
    return variance.clamp(min=0), axes
