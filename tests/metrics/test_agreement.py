"""Two isotropic Gaussians, of which everything is known; and the jump that follows from agreement."""

import math

import pytest
import torch

from molrmog import FlowSchedule, MoLRMoG, VPSchedule, sample
from molrmog.metrics import agreement, frechet_distance, jump_time
from molrmog.metrics.agreement import time_levels


class White:
    """E[x_0 | x_t] of N(0, sd^2 I)."""

    def __init__(self, sd, dim=20):
        self.sd2, self.dim = sd**2, dim

    def factor(self, s, gamma):
        return s * self.sd2 / (s**2 * self.sd2 + gamma**2)

    def denoise(self, x, s, gamma):
        return self.factor(s, gamma) * x


ROWS = torch.randn(20_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_figures_of_two_gaussians():
    ours, law = White(1.5), White(0.5)
    for level in agreement(ours, law, ROWS, VPSchedule(), times=6):
        s, gamma = level.s, level.gamma
        a, b, g = (each.factor(s, gamma) for each in (ours, law, White(1.0)))
        variance = s**2 + gamma**2  # of a coordinate of x_t; x_0 has variance 1
        assert level.share == pytest.approx(1 - (a - b) ** 2 / a**2, abs=0.02)
        if 0.1 < gamma / s < 10:  # beyond, a and g differ by less than the rows' moments from their expectation
            assert level.beyond == pytest.approx(1 - (a - b) ** 2 / (a - g) ** 2, rel=0.05, abs=0.02)
        error = 1 - 2 * a * s + a**2 * variance
        assert level.loss == pytest.approx(error, rel=0.03)
        assert level.apart == pytest.approx((a - b) ** 2 * variance / error, rel=0.05)
        assert level.law_loss == pytest.approx(1 - 2 * b * s + b**2 * variance, rel=0.03)


def test_a_law_explains_itself():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0).requires_grad_(False)
    for level in agreement(law, law, law.sample(300).x, FlowSchedule(), times=5):
        assert (level.share, level.beyond, level.apart) == (1.0, 1.0, 0.0)
        assert level.loss == level.law_loss


def test_levels_are_even_in_log_sigma_and_inside_the_schedule():
    for schedule in (VPSchedule(), FlowSchedule()):
        times = time_levels(schedule, 9)
        assert schedule.t_min <= times[0] < times[-1] <= schedule.t_max
        steps = torch.tensor([schedule.log_snr(t) for t in times]).diff()
        torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-4, atol=1e-4)


class Switch:
    """One denoiser below a noise level, another above."""

    def __init__(self, low, high, sigma):
        self.low, self.high, self.sigma, self.dim = low, high, sigma, low.dim

    def denoise(self, x, s, gamma):
        return (self.high if gamma / s > self.sigma else self.low).denoise(x, s, gamma)


def test_a_jump_goes_to_where_they_begin_to_agree():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0).requires_grad_(False)
    other = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=1).requires_grad_(False)
    schedule = VPSchedule()
    x = law.sample(500, torch.Generator().manual_seed(0)).x
    t = jump_time(Switch(other, law, 0.7), law, x, schedule, tolerance=0.01)
    sigma = math.exp(-0.5 * schedule.log_snr(t))
    assert 0.7 <= sigma < 0.7 * 1.5  # the next of the levels that are looked at
    assert jump_time(Switch(law, other, 0.7), law, x, schedule, tolerance=1e-9) is None
    assert jump_time(law, law, x, schedule) == pytest.approx(time_levels(schedule, 48)[0])


def test_samples_from_the_jump_are_as_good_as_those_from_noise():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    x = law.sample(4000, draw).x
    t = jump_time(law, law.moment_matched(), x, VPSchedule(), tolerance=0.5)
    whole = sample(law, VPSchedule(), (4000, 8), steps=16, generator=draw)
    jumped = sample(law, VPSchedule(), (4000, 8), steps=8, generator=draw, jump=t, jump_by="law", jump_law=law)
    assert frechet_distance(jumped, x) <= 1.5 * frechet_distance(whole, x) + 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agreement(White(1.0), White(1.0), ROWS, VPSchedule(), times=[]), "no times"),
        (lambda: agreement(White(1.0), White(1.0), ROWS[:1], VPSchedule()), "at least 2"),
        (lambda: jump_time(White(1.0), White(1.0), ROWS, VPSchedule(), tolerance=0.0), "tolerance = 0.0"),
    ],
)
def test_a_bad_request_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
