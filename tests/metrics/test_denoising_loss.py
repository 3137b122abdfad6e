import math

import numpy as np
import pytest
import torch
from torch.distributions import Uniform

from molrmog.laws.molrmog import MoLRMoG
from molrmog.metrics import denoising_loss, edm_weight


class Gaussian:
    """Exact denoiser of N(0, diag(deviation^2)), or a shrunken one."""

    def __init__(self, deviation, factor=1.0):
        self.variance, self.factor = torch.as_tensor(deviation).square(), factor

    def denoise(self, x, s, gamma):
        g2 = gamma[:, None].square()
        return self.factor * self.variance * s / (s * s * self.variance + g2) * x


def floor(variance, gamma, sigma_data):
    posterior = (variance * gamma[:, None] ** 2 / (variance + gamma[:, None] ** 2)).mean(1)
    return (gamma**2 + sigma_data**2) / (gamma * sigma_data) ** 2 * posterior


def test_a_white_gaussian_of_the_stated_deviation_has_loss_one_in_every_range():
    x = np.random.default_rng(0).normal(0, 0.5, (3000, 16))
    found = denoising_loss(Gaussian(torch.full((16,), 0.5)), x)
    assert abs(found.loss - 1.0) < 4 * found.standard_error
    for part in found.ranges:
        assert abs(part.loss - 1.0) < 4 * part.standard_error
    assert [part.low for part in found.ranges] == [-math.inf, -3, -2, -1, 0]
    assert sum(part.draws for part in found.ranges) == 3000


def test_a_coloured_gaussian_reaches_its_posterior_variance():
    deviation = np.array([0.05, 0.3, 1.0, 2.0])
    x = np.random.default_rng(0).normal(0, deviation, (4000, 4))
    log_gamma = Uniform(-4.0, 1.0)
    found = denoising_loss(Gaussian(deviation), x, log_gamma=log_gamma, sigma_data=0.7, edges=(-1.5,))
    grid = np.linspace(-4, 1, 20001)
    values = floor(deviation**2, np.exp(grid), 0.7)
    assert abs(found.loss - values.mean()) < 4 * found.standard_error
    assert abs(found.ranges[0].loss - values[grid < -1.5].mean()) < 4 * found.ranges[0].standard_error
    assert abs(found.ranges[1].loss - values[grid >= -1.5].mean()) < 4 * found.ranges[1].standard_error


def test_the_true_law_beats_its_gaussian_on_common_noise():
    law = MoLRMoG.random(dim=12, latent_dims=(2, 2), modes=(2, 2), noise=0.05, seed=0)
    x = law.sample(300, torch.Generator().manual_seed(0)).x
    wrong = MoLRMoG.random(dim=12, latent_dims=(2, 2), modes=(2, 2), noise=0.05, seed=1)
    assert denoising_loss(law, x).loss < 0.5 * denoising_loss(wrong, x).loss
    assert denoising_loss(law, x) == denoising_loss(law, x.double())
    assert denoising_loss(law, x) != denoising_loss(law, x, seed=1)


def test_denoisers_see_the_same_noised_rows():
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))

        def denoise(self, x, s, gamma):
            assert not self.training
            seen.append((x, gamma))
            return x * self.weight

    x = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    single, double = Spy(torch.float32), Spy(torch.float64)
    denoising_loss(single, x, draws=2)
    denoising_loss(double, x, draws=2)
    half = len(seen) // 2
    for (a, ga), (b, gb) in zip(seen[:half], seen[half:], strict=True):
        assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ga.double(), gb, rtol=1e-5, atol=0)
    assert single.training  # put back as it was


def test_the_standard_error_is_that_of_repeated_sets():
    rng = np.random.default_rng(0)
    runs = [denoising_loss(Gaussian([0.5]), rng.normal(0, 0.5, (100, 1)), draws=3, seed=i) for i in range(200)]
    spread = np.std([run.loss for run in runs], ddof=1)
    stated = math.sqrt(np.mean([run.standard_error**2 for run in runs]))
    assert stated == pytest.approx(spread, rel=0.25)  # 200 repeats: 5% standard error of the spread


def test_the_weight_makes_the_posterior_variance_of_a_white_gaussian_one():
    gamma = torch.logspace(-3, 3, 20, dtype=torch.float64)
    c2 = 0.3**2
    torch.testing.assert_close(edm_weight(gamma, 0.3) * c2 * gamma**2 / (c2 + gamma**2), torch.ones_like(gamma))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sigma_data": 0.0}, "sigma_data"), ({"draws": 0}, "draws"), ({"edges": (0.0, -1.0)}, "ascend")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        denoising_loss(Gaussian([0.5]), np.zeros((3, 1)), **options)


def test_a_denoiser_of_another_shape_is_refused():
    class Wrong:
        def denoise(self, x, s, gamma):
            return x[:, :1]

    with pytest.raises(ValueError, match="returned"):
        denoising_loss(Wrong(), np.zeros((3, 2)))
