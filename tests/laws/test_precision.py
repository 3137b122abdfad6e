"""Digits: float32 against float64 with the same parameters, over every dimension, noise level and distance."""

import copy
import math

import pytest
import torch

from molrmog import MoLRMoG, fit
from molrmog.laws.base import orthonormal
from oracles.autograd import score_of
from oracles.digits import METHODS, any_law, relative, rows_of


@pytest.mark.parametrize("kind", [{}, {"tail": True}, {"unequal": True}], ids=["pure", "tail", "unequal"])
@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in (1, 2, 3))])
def test_float32_keeps_four_digits(block, kind):
    for seed in range(25 * block, 25 * block + 25):
        law, draw = any_law(seed, **kind)
        exact = copy.deepcopy(law).double()
        x, s, gamma = rows_of(law, draw, seed)
        for name in METHODS:
            ours, theirs = getattr(law, name)(x, s, gamma), getattr(exact, name)(x.double(), s, gamma)
            assert relative(ours, theirs) < 1e-4, (name, seed, gamma)
        posterior, wanted = law.posterior(x, s, gamma), exact.posterior(x.double(), s, gamma)
        assert relative(posterior.mean, wanted.mean) < 1e-4, seed
        matter = wanted.responsibilities > 1e-3
        moved = posterior.responsibilities.double().log() - wanted.responsibilities.log()
        assert float(moved[matter].abs().max()) < 1e-3, seed
        variance = posterior.variance.double()
        torch.testing.assert_close(variance, wanted.variance, rtol=1e-4, atol=1e-12 * float(wanted.variance.max()))


@pytest.mark.parametrize("dim", [1, 2, 5, 9])
def test_every_dimension_of_a_subspace(dim):
    """d from 1 to D at gamma = 0 and a tiny noise: nothing is divided by what is not there."""
    for d in range(1, dim + 1):
        for noise in (1e-6, 1e-3):
            law = MoLRMoG.random(dim, (d, d), (2, 1), noise=noise, seed=d, dtype=torch.float32).requires_grad_(False)
            x = law.sample(200, torch.Generator().manual_seed(0)).x
            exact = copy.deepcopy(law).double()
            for gamma in (0.0, 1e-5, 1e-2):
                assert relative(law.score(x, 1.0, gamma), exact.score(x.double(), 1.0, gamma)) < 1e-4, (d, noise, gamma)


@pytest.mark.parametrize("options", [{}, {"noise_floor": 1e-4}, {"noise_floor": 1e-7}])
def test_scores_of_a_fit_in_all_dimensions(options):
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    law = fit(x, subspaces=1, latent_dim=4, modes=2, max_iter=5, **{"noise": "isotropic"} | options)
    assert relative(law.score(x), copy.deepcopy(law).double().score(x.double())) < 1e-4


@pytest.mark.parametrize("distance", [1e2, 1e6, 1e9, 1e14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_far_away_is_that_of_the_nearest_mode(distance, dtype):
    """Beyond |log p| = 1e16 two neighbouring floats lie nats apart, and one mode has it all the same."""
    law = MoLRMoG.random(6, (2, 3), (2, 2), noise=1e-3, seed=0, dtype=dtype).requires_grad_(False)
    x = distance * torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    exact = copy.deepcopy(law).double()
    by_autograd = score_of(law.log_prob, x)
    assert relative(by_autograd, exact.score(x.double())) < 1e-4
    assert relative(law.score(x), exact.score(x.double())) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tail", [False, True])
def test_half_precision_laws_are_as_good_as_their_numbers(dtype, tail):
    """Their bases, rounded to two digits, are made orthonormal; from there on nothing is lost."""
    for seed in range(8):
        law, draw = any_law(seed, tail)
        law = law.to(dtype)
        exact = copy.deepcopy(law).double()
        x, s, gamma = rows_of(copy.deepcopy(law).float(), draw, seed)
        for name in METHODS:
            ours, theirs = getattr(law, name)(x, s, gamma), getattr(exact, name)(x.double(), s, gamma)
            assert relative(ours, theirs) < 1e-4, (name, seed)


def test_a_rounded_law_is_still_a_density():
    """A HeadTail whose axes are bfloat16: the log-density of its samples is minus the entropy of the turned law."""
    exact, _ = any_law(3, tail=True)
    rounded = copy.deepcopy(exact).bfloat16()
    x = rounded.sample(4000, torch.Generator().manual_seed(0), gamma=0.3).x.float()
    y = exact.sample(4000, torch.Generator().manual_seed(0), gamma=0.3).x
    ours, theirs = rounded.log_prob(x, 1.0, 0.3), exact.log_prob(y, 1.0, 0.3)
    assert abs(float(ours.mean() - theirs.mean())) < 0.1 + 4 * float(theirs.std()) / 4000**0.5


@pytest.mark.parametrize(
    ("dtype", "scales"), [(torch.float64, (1e-15, 1e15)), (torch.float32, (1e-12, 1e12, 3e-7, 1e6))]
)
@pytest.mark.parametrize("tail", [False, True])
def test_units_do_not_matter(dtype, scales, tail):
    """The law of c x_0 at c x, at noise c gamma: densities move by D log c, scores by 1 / c."""
    for seed in (0, 5, 9):
        law, _ = any_law(seed, tail)
        law = copy.deepcopy(law).to(dtype)
        x = law.sample(16, torch.Generator().manual_seed(0), gamma=0.1).x.double()
        exact = copy.deepcopy(law).double()
        for c in scales:
            scaled = law.scaled(c)
            if dtype == torch.float32:
                exact = scaled.double().scaled(1 / c)
                scaled = law.scaled(c)
            rows = (c * x).to(dtype)
            x_of_rows = rows.double() / c
            for gamma in (0.0, 0.1, 10.0):
                given = rows, 1.0, c * gamma
                wanted = x_of_rows, 1.0, gamma
                shift = law.dim * math.log(c)
                assert relative(scaled.score(*given).double() * c, exact.score(*wanted)) < 1e-4
                assert relative(scaled.denoise(*given).double() / c, exact.denoise(*wanted)) < 1e-4
                log_prob = scaled.log_prob(*given).double() + shift
                assert relative(log_prob, exact.log_prob(*wanted)) < (1e-4 if dtype == torch.float32 else 1e-9)
                variance = scaled.posterior(*given).variance.double() / c / c
                torch.testing.assert_close(variance, exact.posterior(*wanted).variance, rtol=1e-4, atol=1e-20)


def test_bases_far_from_orthonormal_are_taken_as_the_nearest():
    """As an average of weights or an optimiser leaves them: A (A^T A)^-1/2, differentiable, nothing infinite."""
    draw = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.3, 1.0, 4.0, 1e5):
        A = size * torch.randn(7, 3, generator=draw, dtype=torch.float64)
        left, _, right = torch.linalg.svd(A, full_matrices=False)
        torch.testing.assert_close(orthonormal(A), left @ right)
    law = MoLRMoG.random(6, (2, 3), (2, 2), noise=0.1, seed=0, dtype=torch.float64).requires_grad_(False)
    x = law.sample(5, draw).x
    before = law.score(x, 1.0, 0.1)
    law.basis.mul_(5.0)
    torch.testing.assert_close(law.score(x, 1.0, 0.1), before)
    law.basis[:, 0, 0] = 0.0  # no direction at all
    assert bool(law.score(x, 1.0, 0.1).isfinite().all())
    A = torch.randn(5, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormal, (A,))
    rounded = torch.linalg.qr(A.detach()).Q.float().double().requires_grad_()
    assert torch.autograd.gradcheck(orthonormal, (rounded,))


@pytest.mark.parametrize("tail", [False, True])
def test_a_posterior_is_as_precise_as_its_parts(tail):
    """Means near zero and densities near one nat, where float32 has least to say."""
    for seed in range(40):
        law, draw = any_law(seed, tail)
        exact = copy.deepcopy(law).double()
        gamma = draw.choice([1e-4, 1e-2, 1.0, 100.0])
        x = law.sample(16, torch.Generator().manual_seed(seed), gamma=gamma).x
        for rows in (x, 1e-3 * x, 1e-5 * x, x - x.mean(0)):
            ours, theirs = law.posterior(rows, 1.0, gamma), exact.posterior(rows.double(), 1.0, gamma)
            assert relative(ours.mean, theirs.mean) < 2e-4, (seed, gamma)
            assert relative(ours.log_prob, theirs.log_prob) < 1e-4, (seed, gamma)
            assert relative(law.denoise(rows, 1.0, gamma), theirs.mean) < 2e-4, (seed, gamma)


def along_the_axes(tau, offset):
    """Two subspaces of coordinate axes and a mode in each: a density is a sum over coordinates, nothing cancels."""
    law = MoLRMoG(6, (2, 3), (1, 1), dtype=torch.float64).requires_grad_(False)
    law.offset.copy_(offset * torch.linspace(-1, 1, 12).view(2, 6))
    law.tau.fill_(tau)
    law.factor.copy_(torch.diag_embed(torch.tensor([[[0.5, 1.5, 0.0]], [[1.0, 0.7, 2.0]]], dtype=torch.float64)))
    spread = torch.full((2, 6), tau, dtype=torch.float64)
    spread[0, :2] = (law.factor[0, 0].diagonal()[:2].square() + tau**2).sqrt()
    spread[1, :3] = (law.factor[1, 0].diagonal().square() + tau**2).sqrt()
    return law, spread


@pytest.mark.parametrize("offset", [1.0, 100.0])
@pytest.mark.parametrize("tau", [1e-3, 1e-5, 1e-7, 1e-9])
def test_float64_densities_at_the_smallest_noise(tau, offset):
    law, spread = along_the_axes(tau, offset)
    x = law.sample(50, torch.Generator().manual_seed(0)).x
    normal = torch.distributions.Normal(law.offset, spread)
    wanted = (normal.log_prob(x[:, None]).sum(2) + math.log(0.5)).logsumexp(1)
    # What x itself, rounded, leaves of a coordinate off the subspace.
    loose = 8 * torch.finfo(torch.float64).eps * 3 * offset / tau
    torch.testing.assert_close(law.log_prob(x), wanted, rtol=1e-9, atol=1e-6 + 6 * loose)


@pytest.mark.parametrize("tau", [1e-6, 1e-7, 1e-8])
def test_a_law_that_asks_for_gradients_answers_as_a_frozen_one(tau):
    law = MoLRMoG.random(6, (3, 2), (2, 2), rank=1, noise=tau, seed=0, dtype=torch.float64)
    frozen = copy.deepcopy(law).requires_grad_(False)
    x = frozen.sample(50, torch.Generator().manual_seed(0)).x
    for name in ("log_prob", "score", "denoise"):
        assert relative(getattr(law, name)(x).detach(), getattr(frozen, name)(x)) < 1e-6, name


def test_parametrised_laws_draw_numbers():
    law = MoLRMoG.random(6, (3, 2), (2, 2), rank=1, noise=0.1, seed=0).requires_grad_(False)
    torch.nn.utils.parametrizations.weight_norm(law, "mean")
    assert bool(law.sample(500).x.isfinite().all())
    assert bool(law.posterior(law.sample(5).x, 1.0, 0.5).sample(50).isfinite().all())


@pytest.mark.parametrize("c", [1e-30, 1e-20, 1e-13, 1e13, 2e19, 1e30])
@pytest.mark.parametrize("tail", [False, True])
def test_samples_in_any_units(c, tail):
    """Also where float32 cannot square the numbers of the law, the noise off its subspaces above all."""
    law, _ = any_law(5, tail)
    ours = law.scaled(c).sample(20_000, torch.Generator().manual_seed(0)).x.double() / c
    theirs = law.sample(20_000, torch.Generator().manual_seed(1)).x.double()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.05, atol=0)
    tight = law.scaled(c)
    subspace = tight.subspace(0)
    apart = tight.sample(2000, torch.Generator().manual_seed(0), subspace=0).x.double() - subspace.offset.double()
    off = apart - apart @ subspace.basis.double() @ subspace.basis.double().T
    freedom = law.dim - subspace.basis.shape[1]
    if freedom and not tail:
        assert float(off.square().sum(1).mean() / freedom) ** 0.5 == pytest.approx(subspace.tau, rel=0.1)
