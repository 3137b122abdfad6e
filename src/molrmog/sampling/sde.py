"""The reverse SDE: fresh noise at every step, which forgets the errors of the steps before.

    Ancestral       between (s, gamma) and (s', gamma') the forward kernel is Gaussian, so x' given x and x_0 is too.
                    With xhat for x_0 and q = s gamma' / (s' gamma) = exp(lambda - lambda'):

                        x' = s' xhat + gamma' ( q epshat + sqrt(1 - q^2) z ),   z ~ N(0, I)

                    which is DDPM with its smaller variance, and DDIM with eta = 1. Any schedule; s = 0 is q = 0.
    EulerMaruyama   x' = x + (f x - g^2 score) (t' - t) + g sqrt(t - t') z,   score = (s xhat - x) / gamma^2.
                    The textbook method; it wants hundreds of steps.

References:
    Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 6 and 7.
    Song et al., arXiv 2011.13456, eq. 6 (the reverse SDE).
"""

from __future__ import annotations

import math

from torch import Tensor

from molrmog.sampling.base import Sampler


class Ancestral(Sampler):
    """Ancestral sampling (DDPM) by the posterior of the Gaussian kernel: one call of the denoiser a step.

    References:
        Ho, Jain & Abbeel, arXiv 2006.11239, eq. 6; Song, Meng & Ermon, arXiv 2010.02502, eq. 16 with eta = 1.
    """

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Take x with shape (n, D) from time t down to time t_next."""
        s, gamma = self.schedule(t)
        s_next, gamma_next = self.schedule(t_next)
        xhat = self.denoiser.denoise(x, s, gamma)
        q = s * gamma_next / (s_next * gamma)
        mean = s_next * xhat + (gamma_next * q / gamma) * (x - s * xhat)
        spread = gamma_next * math.sqrt((1 - q) * (1 + q))
        return mean + spread * self.noise(x.shape, dtype=x.dtype, device=x.device)


class EulerMaruyama(Ancestral):
    """Euler-Maruyama on the reverse SDE: one call of the denoiser a step, order 1/2.

    From s = 0, where f and g are infinite (the flow schedule at t = 1), the one step is ancestral.

    References:
        Song et al., arXiv 2011.13456, eq. 6.
    """

    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Take x with shape (n, D) from time t down to time t_next."""
        s, gamma = self.schedule(t)
        if s == 0:
            return super().step(x, t, t_next)
        f, g = self.schedule.f(t), self.schedule.g(t)
        score = (s * self.denoiser.denoise(x, s, gamma) - x) / gamma**2
        drift = f * x - g**2 * score
        noise = self.noise(x.shape, dtype=x.dtype, device=x.device)
        return x + drift * (t_next - t) + g * math.sqrt(t - t_next) * noise
