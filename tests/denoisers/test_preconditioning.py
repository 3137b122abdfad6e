"""The preconditioning against the Gaussian that it stands for, and against EDM's table at s = 1."""

import math

import pytest
import torch

from molrmog.denoisers.preconditioning import Preconditioned, noise_condition

LEVELS = [(1.0, 0.5), (0.3, 0.9), (0.0, 1.0), (1.0, 0.0), (1.0, 80.0), (1.0, 2e-3)]


class Fixed(Preconditioned):
    """F given by a function; remembers what it was asked."""

    def __init__(self, F, sigma_data=1.0):
        super().__init__(3, 0, sigma_data)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.F = F

    config = property(lambda self: {})

    def forward(self, x, c_noise, expert):
        self.asked = x, c_noise
        return self.F(x)


@pytest.mark.parametrize(("s", "gamma"), LEVELS)
def test_zero_network_is_the_denoiser_of_a_gaussian(s, gamma):
    x, sd = torch.randn(4, 3), 0.7
    cov = sd**2 * torch.eye(3, dtype=torch.float64)
    gain = s * cov @ torch.linalg.inv(s**2 * cov + gamma**2 * torch.eye(3))
    out = Fixed(torch.zeros_like, sd).denoise(x, s, gamma)
    torch.testing.assert_close(out.double(), x.double() @ gain.T, rtol=1e-5, atol=1e-6)


def test_edm_at_unit_signal():
    x, sd, gamma = torch.randn(4, 3), 0.5, torch.tensor([0.002, 0.3, 1.0, 80.0])
    network = Fixed(torch.sin, sd)
    root = (gamma**2 + sd**2).sqrt()[:, None]
    skip, out = (sd**2 / root**2), gamma[:, None] * sd / root
    torch.testing.assert_close(network.denoise(x, 1.0, gamma), skip * x + out * torch.sin(x / root))
    torch.testing.assert_close(network.asked[1], gamma.log() / 4)


@pytest.mark.parametrize(("s", "gamma"), LEVELS)
def test_inputs_and_targets_have_unit_variance(s, gamma):
    n, sd = 20_000, 0.6
    x_0 = sd * torch.randn(n, 3)
    x = s * x_0 + gamma * torch.randn(n, 3)
    network = Fixed(torch.ones_like, sd)
    out = network.denoise(x, s, gamma)  # c_skip x + c_out
    assert float(network.asked[0].var()) == pytest.approx(1, abs=5 * math.sqrt(2 / (3 * n)))
    network.F = torch.zeros_like
    skip = network.denoise(x, s, gamma)
    if gamma > 0.01:
        target = (x_0 - skip) / (out - skip)
        assert float(target.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / (3 * n)))


def test_noise_condition_is_finite_and_increasing():
    gamma = torch.logspace(-6, 6, 100)
    c = noise_condition(torch.ones(100), gamma)
    assert c.isfinite().all()
    assert (c.diff() > -1e-6).all()
    ends = noise_condition(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(ends, torch.tensor([1.0, -1.0]) * math.log(1e4) / 4)
