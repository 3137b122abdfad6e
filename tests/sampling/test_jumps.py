"""Jumps against the dense flow of the same Gaussian, a fine numerical solution of the ODE, and samples of the law."""

import math

import pytest
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.sampling import gaussian_flow, sample
from molrmog.schedules import SCHEDULES, VPSchedule


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_law(latent_dims, modes, noise) -> MoLRMoG:
    return MoLRMoG.random(
        dim=6, latent_dims=latent_dims, modes=modes, rank=1, noise=noise, seed=1, dtype=torch.float64
    ).requires_grad_(False)


@pytest.fixture(scope="module", params=[0.0, 0.1, "diagonal"])
def single(request) -> MoLRMoG:
    """One Gaussian of rank 1 inside a plane, without and with off-subspace noise, equal and not."""
    if request.param != "diagonal":
        return random_law((2,), (1,), request.param)
    law = random_law((2,), (1,), 0.1).with_noise("diagonal")
    law.tau.copy_(torch.linspace(0.05, 0.5, 6)[None])
    return law


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "discrete"])  # whose f leaps at each timestep
def test_the_jump_solves_the_flow_ode(name, single):
    from scipy.integrate import solve_ivp

    schedule = SCHEDULES[name]()
    t, t_next = 0.9, 0.1
    x = torch.randn(3, 6, dtype=torch.float64, generator=seeded())

    def velocity(t, flat):
        # dx/dt = f x - g^2 score / 2, by the law's own score: another form than the samplers use.
        state = torch.from_numpy(flat).view(3, 6)
        score = single.score(state, *schedule(t))
        return (schedule.f(t) * state - 0.5 * schedule.g(t) ** 2 * score).flatten().numpy()

    solved = solve_ivp(velocity, (t, t_next), x.flatten().numpy(), method="DOP853", rtol=1e-9, atol=1e-10)
    expected = torch.from_numpy(solved.y[:, -1]).view(3, 6)
    got = gaussian_flow(single, x, *schedule(t), *schedule(t_next))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_the_jump_is_the_dense_transport_map(single, dense_of):
    level, next_level = (0.3, 0.8), (0.9, 0.2)
    x = torch.randn(5, 6, dtype=torch.float64, generator=seeded())
    expected = dense_of(single).flow(x, level, next_level)
    torch.testing.assert_close(gaussian_flow(single, x, *level, *next_level), expected, rtol=1e-10, atol=1e-10)


def test_jumps_compose_and_go_back(single):
    x = torch.randn(5, 6, dtype=torch.float64, generator=seeded())
    high, middle, low = (0.0, 1.0), (0.5, 0.5), (0.99, 0.05)
    there = gaussian_flow(single, x, *high, *low)
    by_the_way = gaussian_flow(single, gaussian_flow(single, x, *high, *middle), *middle, *low)
    torch.testing.assert_close(by_the_way, there, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gaussian_flow(single, there, *low, *high), x, rtol=1e-9, atol=1e-9)


def test_one_gaussian_jumped_all_the_way_is_sampled_exactly(single, dense_of):
    noise = torch.randn(4000, 6, dtype=torch.float64, generator=seeded())
    x = gaussian_flow(single, noise, 0.0, 1.0, 1.0, 0.0)
    # x is an affine map of the noise, so least squares finds the map itself: L L^T is the covariance, not an estimate.
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([noise, ones], 1), x).solution
    root, mean = solution[:-1].T, solution[-1]
    dense = dense_of(single)
    torch.testing.assert_close(root @ root.T, dense.cov, rtol=0, atol=1e-10)
    torch.testing.assert_close(mean, dense.mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("jump", [0.8, pytest.param(0.3, marks=pytest.mark.slow)])
def test_sampling_from_a_jump_ends_where_the_whole_flow_ends(name, jump, single):
    schedule = SCHEDULES[name]()
    noise = sample(single, schedule, (4, 6), steps=1, generator=seeded(), trajectory=True).trajectory[0]
    jumped = sample(single, schedule, (4, 6), steps=200, generator=seeded(), jump=jump, trajectory=True)
    start, end = schedule(schedule.t_max), schedule(schedule.t_min)
    assert jumped.times[0] == jump
    torch.testing.assert_close(jumped.trajectory[0], gaussian_flow(single, noise, *start, *schedule(jump)))
    torch.testing.assert_close(jumped.trajectory[-1], gaussian_flow(single, noise, *start, *end), rtol=0, atol=3e-3)


@pytest.mark.slow
def test_at_high_noise_the_jump_of_a_mixture_hardly_moves_its_samples():
    law = random_law((1, 2), (2, 2), 0.1)
    runs = {
        jump: sample(law, VPSchedule(), (200, 6), steps=200, generator=seeded(), jump=jump) for jump in (None, 0.7, 0.3)
    }
    moved = {jump: (x - runs[None]).norm(dim=1).median() for jump, x in runs.items()}
    assert 0 < moved[0.7] < 0.02 * runs[None].norm(dim=1).median()
    assert moved[0.7] < moved[0.3]


def test_a_jump_by_law_starts_from_its_noised_samples():
    law = random_law((1, 2), (2, 2), 0.1)
    schedule = VPSchedule()
    s, gamma = schedule(0.4)
    result = sample(law, schedule, (5, 6), steps=3, generator=seeded(), jump=0.4, jump_by="law", trajectory=True)
    torch.testing.assert_close(result.trajectory[0], law.sample(5, seeded(), s=s, gamma=gamma).x, rtol=0, atol=0)
    assert result.times[0] == 0.4


def test_any_denoiser_jumps_by_a_law_it_is_given(single):
    class Network:
        def denoise(self, x, s, gamma):
            return single.denoise(x, s, gamma)

    arguments = {"steps": 4, "jump": 0.5, "dtype": torch.float64}
    x = sample(Network(), VPSchedule(), (3, 6), generator=seeded(), jump_law=single, **arguments)
    torch.testing.assert_close(x, sample(single, VPSchedule(), (3, 6), generator=seeded(), **arguments))
    with pytest.raises(ValueError, match="jump_law has D = 6, but the samples are to have D = 5"):
        sample(Network(), VPSchedule(), (3, 5), jump_law=single, **arguments)


def test_what_cannot_jump_says_so():
    x = torch.zeros(2, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"pass law.moment_matched\(\)"):
        gaussian_flow(random_law((2,), (2,), 0.1), x, 0.5, 0.5, 0.6, 0.4)
    with pytest.raises(ValueError, match="pass gamma > 0"):
        gaussian_flow(random_law((2,), (1,), 0.0), x, 1.0, 0.0, 0.9, 0.1)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++"])
def test_a_jump_to_the_very_end_leaves_steps_without_length(sampler):
    law = MoLRMoG.random(8, (2,), (2,), noise=0.1, seed=0, dtype=torch.float64).requires_grad_(False)
    schedule = VPSchedule()
    jump = math.nextafter(schedule.t_min, 1.0)
    draw = {"steps": 3, "spacing": "karras", "jump": jump, "jump_by": "law", "jump_law": law}
    x = sample(law, schedule, (50, 8), sampler, generator=torch.Generator().manual_seed(0), **draw)
    start = law.sample(50, torch.Generator().manual_seed(0), s=schedule(jump)[0], gamma=schedule(jump)[1]).x
    torch.testing.assert_close(x, law.denoise(start, *schedule(schedule.t_min)), rtol=1e-3, atol=1e-3)
