"""Schedules against autograd, closed forms of others, and their own inverses."""

import json
import math

import pytest
import torch

from molrmog.schedules import (
    SCHEDULES,
    SPACINGS,
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    Schedule,
    VESchedule,
    VPSchedule,
)

NAMES = tuple(SCHEDULES)


def inner_times(schedule: Schedule) -> torch.Tensor:
    """Times strictly inside, crowded at both ends, where formulas lose digits."""
    span = schedule.t_max - schedule.t_min
    u = torch.cat([torch.logspace(-5, -0.5, 20), 1 - torch.logspace(-0.5, -4, 20)]).double()
    return schedule.t_min + span * u


@pytest.mark.parametrize("name", NAMES)
def test_f_g_and_log_snr_agree_with_autograd_of_s_and_gamma(name):
    schedule = SCHEDULES[name]()
    t = inner_times(schedule).requires_grad_()
    s, gamma = schedule(t)
    # The term 0 t is for VE, whose s does not depend on t.
    (dlog_s,) = torch.autograd.grad((s.log() + 0 * t).sum(), t, retain_graph=True)
    (dsigma2,) = torch.autograd.grad((gamma / s).square().sum(), t)
    torch.testing.assert_close(schedule.f(t), dlog_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.g(t), (s.square() * dsigma2).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.log_snr(t), 2 * torch.log(s / gamma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_time_inverts_log_snr(name):
    schedule = SCHEDULES[name]()
    t = inner_times(schedule)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    log_snr = torch.linspace(-8, 12, 41, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(schedule.time(log_snr)), log_snr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_variance_is_preserved_down_to_tiny_times(name):
    schedule = SCHEDULES[name]()
    t = torch.logspace(-12, -1, 30, dtype=torch.float64)
    s, gamma = schedule(t)
    torch.testing.assert_close(s.square() + gamma.square(), torch.ones_like(t), rtol=1e-14, atol=0)
    # gamma^2 grows like its slope at 0; 1 - s^2 in float64 would be off by 1e-4 at the smallest times.
    slope = schedule.g(0.0) ** 2
    assert gamma[0].item() ** 2 / 1e-12 == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_float32_times_keep_their_precision(name):
    schedule = SCHEDULES[name]()
    t = inner_times(schedule).float()
    for got, expected in zip(schedule(t), schedule(t.double()), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_floats_give_floats_and_tensors_keep_their_shape(name):
    schedule = SCHEDULES[name]()
    t = 0.3
    s, gamma = schedule(t)
    for value in (s, gamma, schedule.f(t), schedule.g(t), schedule.log_snr(t), schedule.time(1.0)):
        assert type(value) is float
    rows = torch.full((2, 3), t, dtype=torch.float64)
    many = (*schedule(rows), schedule.f(rows), schedule.g(rows), schedule.log_snr(rows))
    one = (s, gamma, schedule.f(t), schedule.g(t), schedule.log_snr(t))
    for tensor, value in zip(many, one, strict=True):
        assert tensor.shape == rows.shape
        assert tensor.flatten().tolist() == pytest.approx([value] * 6)


def test_known_values():
    s, gamma = VPSchedule()(1.0)
    assert s == pytest.approx(math.exp(-0.25 * 19.9 - 0.5 * 0.1))
    assert VESchedule(sigma_min=0.01, sigma_max=50.0)(1.0) == (1.0, pytest.approx(50.0))
    assert FlowSchedule()(1.0) == (0.0, 1.0)
    assert FlowSchedule().log_snr(1.0) == -math.inf
    assert VPSchedule().log_snr(0.0) == math.inf
    s, gamma = CosineSchedule()(0.9946)
    assert gamma / s == pytest.approx(118.8, abs=0.1)


def test_vp_is_the_limit_of_the_discrete_chain_of_diffusers():
    from diffusers import DDPMScheduler

    discrete = DDPMScheduler(1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    s, gamma = VPSchedule()(t)
    alphas = discrete.alphas_cumprod.double()
    # log prod (1 - beta_i) = -sum beta_i - sum beta_i^2 / 2 - ...: the second sum is at most 1000 * 0.02^2 / 6 = 0.07,
    # and the Riemann sum of beta is off by at most (beta_max - beta_min) / 2000 = 0.01.
    assert (alphas.log() - 2 * s.log()).abs().max() < 0.08
    torch.testing.assert_close((1 - alphas).sqrt()[1:], gamma[1:], rtol=0.05, atol=0)


def test_cosine_is_the_curve_of_diffusers():
    from diffusers import DDPMScheduler

    discrete = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    s, _ = CosineSchedule()(t)
    # The product telescopes to the same curve; only the last step is capped (beta <= 0.999), and it is float32.
    torch.testing.assert_close(discrete.alphas_cumprod.double()[:-1], s.square()[:-1], rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_a_discrete_schedule_has_the_levels_of_diffusers_at_its_timesteps(betas):
    from diffusers import DDPMScheduler

    chain = DDPMScheduler(50, beta_schedule=betas, beta_end=0.2)
    schedule = DiscreteSchedule(alphas_cumprod=tuple(chain.alphas_cumprod.tolist()))
    t = torch.arange(50, dtype=torch.float64) / 49
    torch.testing.assert_close(schedule.timestep(t), torch.arange(50.0).double(), rtol=0, atol=1e-12)
    s, gamma = schedule(t)
    alphas = chain.alphas_cumprod.double()
    torch.testing.assert_close(s, alphas.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gamma, (1 - alphas).sqrt(), rtol=1e-12, atol=0)


def test_a_discrete_schedule_is_ddpms_by_default_and_geometric_between_timesteps():
    from diffusers import DDPMScheduler

    schedule = DiscreteSchedule()
    s, _ = schedule(torch.arange(1000, dtype=torch.float64) / 999)
    torch.testing.assert_close(s.square(), DDPMScheduler(1000).alphas_cumprod.double(), rtol=1e-4, atol=0)
    sigma = torch.tensor([gamma / s for s, gamma in map(schedule, (300 / 999, 300.5 / 999, 301 / 999))])
    assert sigma[1] ** 2 == pytest.approx(sigma[0] * sigma[2])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_grids_decrease_between_the_right_ends(name, spacing, steps):
    schedule = SCHEDULES[name]()
    times = schedule.time_grid(steps, spacing)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == schedule.t_max
    assert times[-1] == schedule.t_min
    assert (times.diff() < 0).all()
    assert schedule.time_grid(steps, spacing, t_start=0.5)[0] == 0.5


def test_grids_are_even_in_what_they_say():
    schedule = VPSchedule()
    uniform = schedule.time_grid(10, "uniform").diff()
    log_snr = schedule.log_snr(schedule.time_grid(10, "log-snr")).diff()
    root_sigma = torch.exp(-0.5 * schedule.log_snr(schedule.time_grid(10, "karras", rho=3.0)) / 3.0).diff()
    for differences in (uniform, log_snr, root_sigma):
        torch.testing.assert_close(differences, differences.mean().expand(10), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_flow_grids_are_finite_from_no_signal_to_no_noise(spacing):
    times = FlowSchedule(t_min=0.0, t_max=1.0).time_grid(16, spacing)
    assert times.isfinite().all()
    assert (times.diff() < 0).all()
    assert (times[0], times[-1]) == (1.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_the_same_schedule(name):
    schedule = SCHEDULES[name](t_max=0.9)
    assert Schedule.from_config(schedule.config) == schedule
    assert SCHEDULES[name].from_config(schedule.config) == schedule
    assert SCHEDULES[name].from_config({"t_max": 0.9}) == schedule
    assert Schedule.from_config(json.loads(json.dumps(schedule.config))) == schedule


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VPSchedule().time_grid(0), "steps must be at least 1"),
        (lambda: VPSchedule().time_grid(4, "linear"), "choose one of log-snr, uniform, karras"),
        (lambda: VPSchedule().time_grid(4, "karras", rho=0.0), "rho must be > 0"),
        (lambda: VPSchedule().time_grid(4, t_start=1.5), "must start in"),
        (lambda: VPSchedule(beta_min=-1.0), "0 < beta_min"),
        (lambda: VESchedule(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: CosineSchedule(offset=0.0), "offset must be > 0"),
        (lambda: FlowSchedule(t_min=0.5, t_max=0.5), "t_min < t_max"),
        (lambda: DiscreteSchedule(alphas_cumprod=(0.5, 0.9)), "must decrease"),
        (lambda: DiscreteSchedule(alphas_cumprod=(0.5, 0.0)), r"inside \(0, 1\)"),
        (lambda: DiscreteSchedule(alphas_cumprod=(0.5,)), "two or more"),
        (lambda: Schedule.from_config({"name": "linear"}), "choose one of vp, ve, cosine, flow, discrete"),
        (lambda: Schedule.from_config({"beta_min": 1.0}), "unknown schedule None"),
        (lambda: VPSchedule.from_config({"name": "ve"}), "choose one of vp"),
        (lambda: Schedule.from_config({"name": "flow", "beta_min": 1.0}), "takes t_min, t_max, not beta_min"),
    ],
)
def test_bad_input_gets_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
