"""Samplers against the exact flow of a Gaussian, against diffusers' schedulers, and against the law's own moments."""

import math
import sys

import pytest
import torch

from molrmog import registry
from molrmog.laws.molrmog import MoLRMoG
from molrmog.sampling import SAMPLERS, Ancestral, DPMSolver, Euler, Sampler, Trajectory, sample
from molrmog.schedules import SCHEDULES, SPACINGS, FlowSchedule, VESchedule, VPSchedule

ODE = ("euler", "heun", "dpm++")
SDE = ("ancestral", "sde")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def law() -> MoLRMoG:
    return MoLRMoG.random(
        dim=6, latent_dims=(1, 2), modes=(2, 2), rank=1, noise=0.1, seed=0, dtype=torch.float64
    ).requires_grad_(False)


def standard_errors(x, mean, cov):
    """How far the mean and the covariance of the rows are from the given ones, in standard errors, at worst."""
    n = len(x)
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    mean_errors = (x.mean(0) - mean).abs() / (cov.diagonal() / n).sqrt()
    cov_errors = (products.mean(0) - cov).abs() / (products.var(0) / n).sqrt()
    return max(mean_errors.max().item(), cov_errors.max().item())


def worst_error(sampler, schedule, gaussian, steps, spacing):
    x = torch.randn(16, 3, dtype=torch.float64, generator=seeded())
    start, end = schedule(schedule.t_max), schedule(schedule.t_min)
    states = []
    SAMPLERS[sampler](gaussian, schedule).run(x, schedule.time_grid(steps, spacing), states.append)
    return (states[-1] - gaussian.flow(x, start, end)).abs().max().item()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm++", 2)])
def test_ode_samplers_converge_to_the_exact_flow_at_their_order(sampler, order, name, gaussian):
    # From s = 0 only a grid even in t shrinks the first step, so flow is measured on that one.
    spacing = "uniform" if name == "flow" else "log-snr"
    coarse, fine = (worst_error(sampler, SCHEDULES[name](), gaussian, steps, spacing) for steps in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert fine < (0.05 if order == 1 else 2e-3)


class Discrete:
    """The noise levels of a diffusers scheduler as a schedule on its integer times."""

    def __init__(self, scheduler):
        self.alphas = scheduler.alphas_cumprod.double()

    def __call__(self, t):
        alpha = self.alphas[int(t)].item()
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def log_snr(self, t):
        s, gamma = self(t)
        return 2 * math.log(s / gamma)


def diffusers_run(scheduler, gaussian, x, steps, **step_arguments):
    """Run a diffusers scheduler on the Gaussian's noise prediction; the last step goes to gamma = 0, as in `finish`."""
    levels = Discrete(scheduler)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        s, gamma = levels(t)
        eps = (x - s * gaussian.denoise(x, s, gamma)) / gamma
        x = scheduler.step(eps, t, x, **step_arguments).prev_sample
    return x, levels, scheduler.timesteps


def test_euler_is_the_ddim_of_diffusers(gaussian):
    from diffusers import DDIMScheduler

    x = torch.randn(8, 3, dtype=torch.float64, generator=seeded())
    ddim = DDIMScheduler(1000, clip_sample=False)
    expected, levels, times = diffusers_run(ddim, gaussian, x, 25)
    # Their alphas are float32.
    torch.testing.assert_close(Euler(gaussian, levels).run(x, times), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
def test_dpm_solver_is_the_multistep_solver_of_diffusers(gaussian):
    from diffusers import DPMSolverMultistepScheduler

    x = torch.randn(8, 3, dtype=torch.float64, generator=seeded())
    dpm = DPMSolverMultistepScheduler(1000, solver_order=2, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    expected, levels, times = diffusers_run(dpm, gaussian, x, 25)
    torch.testing.assert_close(DPMSolver(gaussian, levels).run(x, times), expected, rtol=1e-4, atol=1e-5)


def test_ancestral_is_the_ddpm_of_diffusers(gaussian):
    from diffusers import DDPMScheduler

    x = torch.randn(8, 3, dtype=torch.float64, generator=seeded())
    ddpm = DDPMScheduler(1000, clip_sample=False, variance_type="fixed_small")
    expected, levels, times = diffusers_run(ddpm, gaussian, x, 50, generator=seeded(1))
    got = Ancestral(gaussian, levels, seeded(1)).run(x, times)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SDE)
def test_sde_samples_have_the_moments_of_the_gaussian(sampler, name, gaussian):
    # The bias of 400 steps is below one standard error of 2000 rows.
    x = sample(gaussian, SCHEDULES[name](), (2000, 3), sampler, 400, seeded(), dtype=torch.float64)
    assert standard_errors(x, gaussian.mean, gaussian.cov) < 5


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", ["exact", "heun", "dpm++"])
def test_samples_of_a_law_have_its_moments(sampler, name, law, dense_of):
    dense = dense_of(law.moment_matched())
    x = sample(law, SCHEDULES[name](), (2000, law.dim), sampler, 64, seeded())
    assert standard_errors(x, dense.mean, dense.cov) < 5


def test_exact_delegates_to_the_law(law):
    x = sample(law, VPSchedule(), (7, law.dim), "exact", generator=seeded(3))
    torch.testing.assert_close(x, law.sample(7, seeded(3)).x, rtol=0, atol=0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_flow_from_no_signal_to_no_noise_stays_finite(sampler, spacing, law):
    schedule = FlowSchedule(t_min=1e-4, t_max=1.0)
    x = sample(law, schedule, (50, law.dim), sampler, 24, seeded(), spacing=spacing, dtype=torch.float32)
    assert x.isfinite().all()
    assert x.norm(dim=1).max() < 10 * law.sample(1000, seeded()).x.norm(dim=1).max()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "ancestral"])
def test_a_step_to_no_noise_is_the_denoiser(sampler, gaussian):
    schedule = FlowSchedule(t_min=0.0)
    solver = SAMPLERS[sampler](gaussian, schedule, seeded())
    x = torch.randn(8, 3, dtype=torch.float64, generator=seeded())
    x = solver.step(x, 1.0, 0.4)
    expected = gaussian.denoise(x, *schedule(0.4))
    torch.testing.assert_close(solver.step(x, 0.4, 0.0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_samples(sampler, law):
    first, again, other = (sample(law, VPSchedule(), (6, law.dim), sampler, 4, seeded(k)) for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sampler", ODE)
def test_batches_do_not_change_an_ode(sampler, law):
    whole = sample(law, VPSchedule(), (7, law.dim), sampler, 5, seeded(), trajectory=True)
    parts = sample(law, VPSchedule(), (7, law.dim), sampler, 5, seeded(), trajectory=True, batch_size=3)
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts.trajectory, whole.trajectory, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", [*ODE, *SDE])
def test_trajectory_holds_every_state_at_its_time(sampler, law):
    schedule = VESchedule()
    result = sample(law, schedule, (5, law.dim), sampler, 6, seeded(), spacing="karras", trajectory=True)
    assert isinstance(result, Trajectory)
    assert result.trajectory.shape == (7, 5, law.dim)
    assert torch.equal(result.times, schedule.time_grid(6, "karras"))
    assert torch.equal(result.x, sample(law, schedule, (5, law.dim), sampler, 6, seeded(), spacing="karras"))
    torch.testing.assert_close(result.x, law.denoise(result.trajectory[-1], *schedule(schedule.t_min)))
    noise = torch.randn(5, law.dim, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(result.trajectory[0], 80.0 * noise)


def test_dtype_and_device_follow_the_law_unless_given(law):
    assert sample(law, VPSchedule(), (2, law.dim), steps=2).dtype == torch.float64
    assert sample(law, VPSchedule(), (2, law.dim), steps=2, dtype=torch.float32, device="cpu").dtype == torch.float32


def test_no_gradients_are_recorded():
    law = MoLRMoG.random(dim=4, latent_dims=(2,), modes=(2,), rank=1, noise=0.1, seed=0).requires_grad_()
    assert not sample(law, VPSchedule(), (2, 4), steps=2).requires_grad


class Interrupted:
    """A denoiser whose user presses Ctrl-C at the third call."""

    calls = 0

    def denoise(self, x, s, gamma):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return x


def test_an_interrupt_passes_through_and_leaves_the_terminal_usable(law, capfd):
    with pytest.raises(KeyboardInterrupt):
        sample(Interrupted(), VPSchedule(), (2, 4), steps=8, progress=True)
    # A second display starts only if the first was closed.
    sample(law, VPSchedule(), (2, law.dim), steps=2, progress=True, batch_size=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "sampling: done" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "ddim"}, "choose one of exact, euler, heun, dpm\\+\\+, ancestral, sde"),
        ({"spacing": "linear"}, "choose one of log-snr, uniform, karras"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"shape": (3,)}, r"shape must be \(n, D\)"),
        ({"shape": (0, 6)}, "n, D >= 1"),
        ({"shape": (3, 7)}, "the denoiser has D = 6"),
        ({"batch_size": 0}, "batch_size = 0: pass 1 or more"),
        ({"jump": 2.0}, "jump must be a time in"),
        ({"jump": 0.5, "sampler": "exact"}, "no times to jump over"),
        ({"jump": 0.5, "jump_by": "magic"}, "choose one of gaussian, law"),
        ({"denoiser": Interrupted(), "jump": 0.5}, "pass jump_law=law"),
        ({"denoiser": Interrupted(), "sampler": "exact"}, "draws from a law"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments, message, law):
    call = {"denoiser": law, "schedule": VPSchedule(), "shape": (3, 6)} | arguments
    with pytest.raises(ValueError, match=message) as caught:
        sample(**call)
    assert "\n" not in str(caught.value)


def test_every_sampler_says_where_it_comes_from():
    for name, sampler in SAMPLERS.items():
        page = sys.modules[sample.__module__].__doc__
        assert f"| {name} " in page
        assert sampler.__name__ in page


class Overshoot(Sampler):
    """Euler's method with more noise than it should have: a sampler of ten lines with an option of its own."""

    def __init__(self, by=1.0):
        self.by = by

    def step(self, x, t, t_next):
        (s, gamma), (s_next, gamma_next) = self.schedule(t), self.schedule(t_next)
        xhat = self.denoiser.denoise(x, s, gamma)
        return s_next * xhat + self.by * gamma_next * (x - s * xhat) / gamma


def drawn(sampler, law, seed=0):
    return sample(law, VPSchedule(), (5, law.dim), sampler, 4, seeded(seed))


def test_a_sampler_of_ones_own_is_passed_as_class_as_instance_or_by_a_name(law, monkeypatch):
    expected = drawn(Overshoot, law)
    torch.testing.assert_close(expected, drawn("euler", law))
    assert torch.equal(drawn(Overshoot(), law), expected)
    assert not torch.allclose(drawn(Overshoot(by=1.5), law), expected)
    monkeypatch.setitem(SAMPLERS, "overshoot", Overshoot)
    assert torch.equal(drawn("overshoot", law), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_passed_by_name_class_or_instance(name, law):
    kind = registry.find(name, "sampler")
    assert SAMPLERS[name] is kind
    for sampler in (kind, kind()):
        assert torch.equal(drawn(sampler, law), drawn(name, law))


def test_an_instance_is_not_changed_by_use(law):
    for solver in (DPMSolver(), Overshoot(by=1.5)):
        before = dict(vars(solver))
        first = drawn(solver, law)
        assert vars(solver) == before
        assert torch.equal(drawn(solver, law), first)
    bound = Euler(law, VPSchedule(), seeded())
    other = bound.bind(law.moment_matched(), VESchedule())
    assert bound.denoiser is law
    assert (type(other), other.generator) == (Euler, None)


def test_what_is_no_sampler_gets_one_line(law):
    class Needy(Overshoot):
        def __init__(self, by):
            self.by = by

    for sampler, message in (
        (Needy, r"a Needy cannot be built \(.*'by'\): pass sampler=Needy\(...\)"),
        (law, "a Sampler, or its class"),
        (int, "a Sampler, or its class"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            drawn(sampler, law)
        assert "\n" not in str(caught.value).replace(repr(law), "")
    with pytest.raises(ValueError, match=r"this Euler has nothing to sample with: call bind\(denoiser, schedule\)"):
        Euler().run(torch.zeros(1, 3), torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="draws from a law, and a Interrupted is not one"):
        SAMPLERS["exact"](Interrupted(), VPSchedule())
