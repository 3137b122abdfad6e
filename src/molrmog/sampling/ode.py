"""The probability-flow ODE and three ways to solve it.

The ODE moves x_t so that its law is p_t at every time, with nothing random but the start. With xhat = E[x_0 | x_t] and
epshat = (x_t - s xhat) / gamma it reads, for any schedule and without the quotients that blow up at s = 0,

    dx = xhat ds + epshat dgamma       or, the same,       d(x / gamma) = xhat d(s / gamma)

    Euler     hold xhat and epshat over the step: x' = s' xhat + gamma' epshat         (order 1; 1 call a step; DDIM)
    Heun      average xhat and epshat over both ends, the far one guessed by Euler      (order 2; 2 calls a step)
    DPMSolver extrapolate xhat linearly in log(s / gamma) from this and the last step   (order 2; 1 call a step)

References:
    Song, Meng & Ermon, Denoising Diffusion Implicit Models, arXiv 2010.02502, eq. 12 and 13.
    Karras et al., arXiv 2206.00364, algorithm 1 (Heun, there with t for the variable).
    Lu et al., DPM-Solver++, arXiv 2211.01095, algorithm 2.
"""

from __future__ import annotations

import math

from torch import Tensor

from molrmog.sampling.base import Sampler


class Euler(Sampler):
    """Euler's method, which for this ODE is DDIM: order 1, one call of the denoiser a step.

    References:
        Song, Meng & Ermon, arXiv 2010.02502, eq. 12 with sigma = 0.
    """

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Take x with shape (n, D) from time t down to time t_next."""
        s, gamma = self.schedule(t)
        s_next, gamma_next = self.schedule(t_next)
        xhat = self.denoiser.denoise(x, s, gamma)
        return s_next * xhat + (gamma_next / gamma) * (x - s * xhat)


class Heun(Sampler):
    """Heun's method (trapezoidal rule): order 2, two calls of the denoiser a step; the default.

    References:
        Karras et al., arXiv 2206.00364, algorithm 1.
    """

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Take x with shape (n, D) from time t down to time t_next; by Euler where gamma is 0 there."""
        s, gamma = self.schedule(t)
        s_next, gamma_next = self.schedule(t_next)
        xhat = self.denoiser.denoise(x, s, gamma)
        epshat = (x - s * xhat) / gamma
        guess = s_next * xhat + gamma_next * epshat
        if gamma_next == 0:
            return guess
        xhat_next = self.denoiser.denoise(guess, s_next, gamma_next)
        epshat_next = (guess - s_next * xhat_next) / gamma_next
        return x + 0.5 * (s_next - s) * (xhat + xhat_next) + 0.5 * (gamma_next - gamma) * (epshat + epshat_next)


class DPMSolver(Sampler):
    """DPM-Solver++(2M): order 2 in log-SNR, multistep, one call of the denoiser a step.

    The first step is Euler's, and so is a step whose far end has gamma = 0. After a step from s = 0, infinitely long in
    log-SNR, the extrapolation vanishes by itself.

    References:
        Lu et al., arXiv 2211.01095, algorithm 2.
    """

    _last: tuple[Tensor, float] | None = None

    def reset(self) -> None:
        """Forget the estimate of the last step."""
        self._last = None

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Take x with shape (n, D) from time t down to time t_next."""
        s, gamma = self.schedule(t)
        s_next, gamma_next = self.schedule(t_next)
        h = 0.5 * (self.schedule.log_snr(t_next) - self.schedule.log_snr(t))
        xhat = self.denoiser.denoise(x, s, gamma)
        ahead = xhat
        if self._last is not None and math.isfinite(h):
            xhat_last, h_last = self._last
            ahead = xhat + 0.5 * (h / h_last) * (xhat - xhat_last)
        self._last = (xhat, h) if h else None  # a step may be shorter than rounding
        return (gamma_next / gamma) * x + (s_next - s * gamma_next / gamma) * ahead
