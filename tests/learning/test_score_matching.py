"""The loss against the floor, closed forms of its weights and levels, and targets written out one by one."""

import math

import pytest
import torch
from scipy import stats

from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.score_matching import LEVELS, WEIGHTINGS, ScoreMatching, batch_mean
from molrmog.schedules import CosineSchedule, FlowSchedule, VESchedule, VPSchedule

SCHEDULES = [VPSchedule(), VESchedule(), CosineSchedule(), FlowSchedule(), FlowSchedule(t_min=0.0)]


def a_law(seed=0, dim=6, **options):
    shapes = {"latent_dims": (2, 3), "modes": (2, 1), **options}
    return MoLRMoG.random(dim=dim, noise=0.2, seed=seed, dtype=torch.float64, **shapes).requires_grad_(False)


def rows_of(law, n, seed=0):
    return law.sample(n, torch.Generator().manual_seed(seed)).x


def numbers(objective, n, seed=1):
    return objective.draw(n, torch.Generator().manual_seed(seed))


def noised(x, s, gamma, eps):
    return s.double()[:, None] * x + gamma.double()[:, None] * eps, s.double(), gamma.double()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [VPSchedule(), FlowSchedule()], ids=lambda schedule: schedule.name)
def test_at_the_truth_the_loss_is_the_floor(weighting, schedule):
    law = a_law()
    objective = ScoreMatching(law, schedule, weighting=weighting)
    x, drawn = rows_of(law, 20_000), numbers(objective, 20_000)
    loss = objective(x, *drawn)
    xt, s, gamma = noised(x, *drawn)
    floor = objective.weight(s, gamma) * law.posterior(xt, s, gamma).variance.sum(1) / law.dim
    apart = loss - floor
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(len(apart))
    assert float(apart.std()) / math.sqrt(len(apart)) < 0.02 * float(floor.mean())  # sharp enough to see 8%


def test_at_the_truth_the_gradient_vanishes_in_expectation():
    def t_values(law, data):
        objective = ScoreMatching(MoGDenoiser(law), VPSchedule())
        trained = [p for p in objective.parameters() if p.requires_grad]
        parts = []
        for block, x in enumerate(data.split(500)):
            grads = torch.autograd.grad(objective(x, *numbers(objective, 500, seed=block)).mean(), trained)
            parts.append(torch.cat([g.flatten() for g in grads]))
        blocks = torch.stack(parts)
        moving = blocks.abs().sum(0) > 0  # padding has none
        return (blocks.mean(0) / (blocks.std(0) / math.sqrt(len(blocks))))[moving].abs()

    law = a_law()
    data = rows_of(law, 30_000)
    assert float(t_values(law, data).max()) < 5
    wrong = a_law()
    wrong.mean.mul_(1.2)
    assert float(t_values(wrong, data).max()) > 10


def test_weights_are_those_of_the_papers():
    s, gamma = torch.rand(2, 50, dtype=torch.float64) + 0.05
    sigma, c = gamma / s, 0.7
    expected = {
        "x0": torch.ones_like(s),
        "eps": s**2 / gamma**2,
        "edm": (sigma**2 + c**2) / (sigma * c) ** 2,
        "min-snr": torch.minimum(s**2 / gamma**2, torch.tensor(5.0)),
    }
    for weighting in WEIGHTINGS:
        objective = ScoreMatching(a_law(), VPSchedule(), weighting=weighting, sigma_data=c)
        torch.testing.assert_close(objective.weight(s, gamma), expected[weighting])
        assert bool(objective.weight(torch.zeros(1), torch.ones(1)).isfinite())


@pytest.mark.parametrize("weighting", ["eps", "edm"])
def test_a_weight_turns_the_error_of_the_clean_point_into_that_of_its_name(weighting):
    law, wrong = a_law(), a_law(seed=1)
    objective = ScoreMatching(wrong, VPSchedule(), weighting=weighting, sigma_data=0.7)
    x, drawn = rows_of(law, 50), numbers(objective, 50)
    xt, s, gamma = (t if t.ndim == 2 else t[:, None] for t in noised(x, *drawn))
    estimate = wrong.denoise(xt, s[:, 0], gamma[:, 0])
    if weighting == "eps":
        error = (xt - s * estimate) / gamma - drawn[2]
    else:  # D = c_skip x_t + c_out F, and F's target solves for it
        v = s**2 * 0.7**2 + gamma**2
        skip, out = s * 0.7**2 / v, gamma * 0.7 / v.sqrt()
        error = (estimate - skip * xt) / out - (x - skip * xt) / out
    torch.testing.assert_close(objective(x, *drawn), error.square().mean(1), rtol=1e-5, atol=0)


def test_log_normal_levels():
    objective = ScoreMatching(a_law(), VESchedule(sigma_min=1e-4, sigma_max=1e4), level_mean=-0.7, level_std=0.9)
    s, gamma, eps = numbers(objective, 20_000)
    assert stats.kstest((gamma / s).log().numpy(), "norm", (-0.7, 0.9)).pvalue > 1e-3
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([gamma.log(), eps[:, 0]]))[0, 1])) < 0.03


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"{schedule.name}-{schedule.t_min}")
def test_log_snr_levels_are_uniform_between_the_ends(schedule):
    objective = ScoreMatching(a_law(), schedule, levels="log-snr")
    s, gamma, _ = numbers(objective, 20_000)
    low, high = objective.log_sigma_range
    log_sigma = (gamma / s).double().log()
    assert stats.kstest(log_sigma.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    ends = [math.log(g / s) if g > 0 and s > 0 else None for s, g in map(schedule, (schedule.t_min, schedule.t_max))]
    assert low == pytest.approx(math.log(1e-3) if ends[0] is None else ends[0])
    assert high == pytest.approx(math.log(100) if ends[1] is None else ends[1])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"{schedule.name}-{schedule.t_min}")
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_levels_keep_to_the_schedule_and_losses_are_finite(schedule, levels, weighting):
    law = a_law()
    objective = ScoreMatching(law, schedule, levels=levels, weighting=weighting, level_std=8.0)
    s, gamma, eps = numbers(objective, 500)
    low, high = objective.log_sigma_range
    log_sigma = (gamma / s).log()
    assert low - 1e-4 < float(log_sigma.min()) < float(log_sigma.max()) < high + 1e-4
    expected = schedule(schedule.time(-2 * log_sigma.double()).clamp(schedule.t_min, schedule.t_max))
    torch.testing.assert_close(torch.stack([s, gamma]).double(), torch.stack(expected), rtol=1e-3, atol=1e-5)
    assert bool(objective(rows_of(law, 500), s, gamma, eps).isfinite().all())


@pytest.mark.parametrize("levels", LEVELS)
def test_draws_depend_on_the_generator_alone(levels):
    objective = ScoreMatching(a_law(), VPSchedule(), levels=levels)
    first = numbers(objective, 9)
    torch.manual_seed(17)
    again, other = numbers(objective, 9), numbers(objective, 9, seed=2)
    assert [t.shape for t in first] == [(9,), (9,), (9, 6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.unique().numel() > 1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("rows", "parts", "counts"), [(10, 4, [2, 2, 3, 3]), (8, 4, [2] * 4), (3, 5, [1] * 3)])
def test_rows_of_a_batch_share_levels(levels, rows, parts, counts):
    objective = ScoreMatching(a_law(), VPSchedule(), levels=levels, levels_per_batch=parts)
    gamma = numbers(objective, rows)[1]
    assert sorted(gamma.unique(return_counts=True)[1].tolist()) == counts


def test_shared_levels_have_the_distribution_of_own_ones():
    """One of each equal part of it: together they spread over it more evenly than chance would."""
    objective = ScoreMatching(
        a_law(), VESchedule(sigma_min=1e-4, sigma_max=1e4), level_mean=-0.7, level_std=0.9, levels_per_batch=4
    )
    draws = [numbers(objective, 4, seed)[1] for seed in range(2000)]
    quarter = torch.from_numpy(stats.norm(-0.7, 0.9).cdf(torch.stack(draws).log().numpy()))
    assert bool(((4 * quarter).floor().sort(1).values == torch.arange(4)).all())
    assert stats.kstest(quarter[:, 0].numpy(), "uniform").pvalue > 1e-3  # of any one row, whatever the others have


def one_by_one(x, s, gamma, eps, expert):
    rows = []
    for i in range(len(x)):
        own = x[expert == expert[i]]
        xt = s[i] * x[i] + gamma[i] * eps[i]
        log_weight = -(xt - s[i] * own).square().sum(1) / (2 * gamma[i] ** 2)
        rows.append((log_weight.softmax(0)[:, None] * own).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_the_batch_is_the_posterior_mean_over_its_rows(dtype):
    draw = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 40, 5, generator=draw, dtype=torch.float64)
    x[1] = x[0] + 1e-3  # neighbours that only the least noise tells apart
    s = torch.linspace(0, 1, 40, dtype=torch.float64)
    gamma = torch.logspace(-3, 1, 40, dtype=torch.float64)[torch.randperm(40, generator=draw)]
    s[:2], gamma[:2] = 1.0, 1e-3
    expert = torch.arange(40) % 3
    expert[1] = 0
    for which in (expert, torch.zeros_like(expert)):
        found = batch_mean(*(t.to(dtype) for t in (x, s, gamma, eps)), which)
        torch.testing.assert_close(found.double(), one_by_one(x, s, gamma, eps, which), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(batch_mean(x, s, gamma, eps), one_by_one(x, s, gamma, eps, torch.zeros(40)))


def test_the_law_as_target_leaves_the_excess_over_the_floor():
    law, wrong = a_law(), a_law(seed=1)
    exact, sampled = (ScoreMatching(wrong, VPSchedule(), targets=targets) for targets in (law, "sample"))
    x, drawn = rows_of(law, 20_000), numbers(exact, 20_000)
    xt, s, gamma = noised(x, *drawn)
    floor = exact.weight(s, gamma) * law.posterior(xt, s, gamma).variance.mean(1)
    apart = sampled(x, *drawn) - exact(x, *drawn) - floor
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(len(apart))
    assert float(ScoreMatching(law, VPSchedule(), targets=law)(x, *drawn).max()) < 1e-20
    assert exact.targets is not law  # a copy: the law may itself be trained


def test_smoother_targets_move_the_gradient_less():
    law = a_law()
    start = a_law(seed=1)

    def spread(targets):
        objective = ScoreMatching(MoGDenoiser(start, learn="mean"), VPSchedule(), targets=targets)
        mean = objective.denoiser.law.mean
        blocks = [
            torch.autograd.grad(objective(rows_of(law, 64, seed=i), *numbers(objective, 64, seed=99)).mean(), mean)[0]
            for i in range(30)
        ]
        return float(torch.stack(blocks).var(0).sum())

    assert spread(law) < spread("sample")


def test_rows_with_experts_are_told_apart():
    laws = [a_law(seed=k, latent_dims=(2,), modes=(2,)) for k in range(3)]
    together = ScoreMatching(PerExpert([MoGDenoiser(law) for law in laws]), VPSchedule())
    expert = torch.arange(30) % 3
    x, drawn = rows_of(a_law(), 30), numbers(together, 30)
    found = together(x, expert, *drawn)
    for k, law in enumerate(laws):
        own = expert == k
        alone = ScoreMatching(law, VPSchedule())(x[own], *(t[own] for t in drawn))
        torch.testing.assert_close(found[own], alone)
    batch = ScoreMatching(together.denoiser, VPSchedule(), targets="batch")
    apart = batch(x, expert, *drawn)
    own = expert == 1
    torch.testing.assert_close(apart[own], batch(x[own], expert[own], *(t[own] for t in drawn)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "snr"}, "weighting 'snr': choose one of edm, x0, eps, min-snr"),
        ({"levels": "uniform"}, "levels 'uniform': choose one of"),
        ({"targets": "law"}, "targets 'law': choose sample or batch, or pass a law"),
        ({"sigma_data": 0.0}, "sigma_data = 0.0"),
        ({"level_std": -1.0}, "level_std = -1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatching(a_law(), VPSchedule(), **options)
