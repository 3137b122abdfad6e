"""Denoisers of which everything is known, beside their laws; and the jump that follows from agreement."""

import math

import pytest
import torch

from molrmog import FlowSchedule, MoLRMoG, VPSchedule, sample
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.metrics import agreement, frechet_distance, gaussian_of, jump_time, outputs
from molrmog.metrics.agreement import agree_from, time_levels
from oracles.dense import DenseLaw


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


@pytest.mark.parametrize(
    ("apart", "first"),
    [
        ([0.01, 0.2, 0.05, 0.0], 2),  # not the first that is near, but the first from which on all are
        ([0.05, 0.01], 0),
        ([0.0, 0.2], None),
        ([0.0, math.nan, 0.0], 2),
        ([math.nan], None),
        ([], None),
    ],
)
def test_they_agree_from_the_level_on_above_which_no_level_differs(apart, first):
    assert agree_from(apart, tolerance=0.05) == first


@pytest.mark.slow
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


class Plus(torch.nn.Module):
    """A law and a known perturbation of what it says: a delta of its own for every row of the test."""

    def __init__(self, law, delta):
        super().__init__()
        self.law, self.delta, self.dim = law, delta, law.dim

    def denoise(self, x, s, gamma):
        return self.law.denoise(x, s, gamma) + self.delta


def test_a_known_perturbation_of_the_law():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0, dtype=torch.float64).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    x = law.sample(200, draw).x  # fewer than a block, so that rows and deltas are in step
    delta = torch.randn(200, 8, generator=draw, dtype=torch.float64) * torch.linspace(0, 1, 8).double()
    (found,) = outputs(Plus(law, delta), law, x, FlowSchedule(), [0.4], gaussian=law.moment_matched())
    level = found.agreement()
    clean = DenseLaw.of(law).posterior_mean(found.noised, 0.6, 0.4)
    said = clean + delta
    variance = said.var(0, correction=0)
    torch.testing.assert_close(level.missed, delta.square().mean(0))
    torch.testing.assert_close(level.variance, variance)
    torch.testing.assert_close(level.left, delta.square().mean(0) / variance)
    assert level.share == pytest.approx(1 - float(delta.square().mean() / variance.mean()), abs=1e-12)
    mean, C = DenseLaw.of(law).moments()
    gain = 0.6 * C @ torch.linalg.inv(0.36 * C + 0.16 * torch.eye(8).double())
    single = mean + (found.noised - 0.6 * mean) @ gain.T
    assert level.beyond == pytest.approx(1 - float(delta.square().sum() / (said - single).square().sum()), abs=1e-12)
    truth = float((delta * (x - clean)).sum() / delta.square().sum())
    assert level.worth == pytest.approx(truth, abs=1e-12)
    assert level.law_loss - level.loss == pytest.approx((2 * level.worth - 1) * float(level.missed.mean()), abs=1e-12)
    assert abs(level.worth) < 4 * level.worth_error  # the deltas know nothing


def test_what_the_posterior_mean_says_beyond_a_worse_law_is_right():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0).requires_grad_(False)
    x = law.sample(4000, torch.Generator().manual_seed(0)).x
    for level in agreement(law, law.moment_matched(), x, FlowSchedule(), times=[0.3, 0.6]):
        assert abs(level.worth - 1) < 4 * level.worth_error < 0.2
        assert level.beyond == pytest.approx(0.0, abs=1e-6)  # the law is itself the single Gaussian
    for level in agreement(law.moment_matched(), law, x, FlowSchedule(), times=[0.3, 0.6]):
        assert abs(level.worth) < 4 * level.worth_error < 0.2


class Linear(torch.nn.Linear):
    """A x_t, whatever the noise."""

    def __init__(self, A):
        super().__init__(*A.shape, bias=False, dtype=A.dtype)
        self.weight.data, self.dim = A, len(A)

    def denoise(self, x, s, gamma):
        return self(x)


def test_a_linear_denoiser_under_one_gaussian_in_dense_form():
    law = MoLRMoG.random(6, (3,), (1,), noise=0.2, seed=1, dtype=torch.float64).requires_grad_(False)
    A = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = law.sample(40_000, torch.Generator().manual_seed(2)).x
    (level,) = agreement(Linear(A), law, x, FlowSchedule(), [0.5])
    mean, C = DenseLaw.of(law).moments()
    C_t = 0.25 * C + 0.25 * torch.eye(6).double()
    gain = 0.5 * C @ torch.linalg.inv(C_t)
    off = A - gain
    shift = off @ (0.5 * mean) - (mean - gain @ (0.5 * mean))
    missed = (off @ C_t @ off.T).diag() + shift.square()
    variance = (A @ C_t @ A.T).diag()
    torch.testing.assert_close(level.left, missed / variance, rtol=0.05, atol=0.01)
    assert level.share == pytest.approx(1 - float(missed.sum() / variance.sum()), abs=5 * level.share_error + 1e-9)
    assert level.beyond == pytest.approx(0.0, abs=1e-9)


def test_standard_errors_are_the_spread_over_draws():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0).requires_grad_(False)
    other = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=1).requires_grad_(False)
    found = [
        agreement(other, law, law.sample(200, torch.Generator().manual_seed(i)).x, FlowSchedule(), [0.5], seed=i)[0]
        for i in range(150)
    ]
    for name in ("share", "beyond", "worth", "loss", "law_loss"):
        spread = float(torch.tensor([getattr(level, name) for level in found]).std())
        stated = sum(getattr(level, f"{name}_error") for level in found) / len(found)
        assert stated == pytest.approx(spread, rel=0.25), name


def test_experts_are_told_in_step_with_their_rows_and_parts_add_up():
    law = MoLRMoG.random(8, (2, 3), (2, 1), noise=0.1, seed=0).requires_grad_(False)
    told = ConditionalLaw(law)
    drawn = law.sample(600, torch.Generator().manual_seed(0))  # several blocks
    (found,) = outputs(told, law, drawn.x, FlowSchedule(), [0.5], expert=drawn.subspace)
    torch.testing.assert_close(found.denoiser, told.denoise(found.noised, 0.5, 0.5, drawn.subspace))
    torch.testing.assert_close(found.law, law.denoise(found.noised, 0.5, 0.5))
    parts = [found.of(drawn.subspace == k).agreement() for k in range(2)]
    whole = found.agreement()
    assert sum(part.rows for part in parts) == whole.rows == 600
    for name in ("loss", "law_loss", "gaussian_loss"):
        assert sum(part.rows * getattr(part, name) for part in parts) / 600 == pytest.approx(getattr(whole, name))


@pytest.mark.parametrize(("rows", "dim"), [(300, 7), (30, 12), (9, 20)])
def test_the_single_gaussian_is_that_of_ledoit_and_wolf(rows, dim):
    from sklearn.covariance import LedoitWolf

    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.linspace(0.1, 2, dim) + 1.5
    mean, C = DenseLaw.of(gaussian_of(x)).moments()
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(C, torch.from_numpy(LedoitWolf().fit(x.numpy()).covariance_))


def test_rows_that_are_all_the_same_have_no_gaussian():
    with pytest.raises(ValueError, match="all the same"):
        gaussian_of(torch.ones(5, 3))
