"""Rows that lack values, or are seen with noise of their own in each coordinate, against dense algebra."""

import math

import numpy as np
import pytest
import torch

from molrmog import MoLRMoG
from molrmog.laws.axes import Axes
from oracles.conditioned import Mixture

NOISES = ["isotropic", "diagonal", "shared", "turned"]


def law_of(noise, *, dim=7, latent_dims=(2, 4), modes=(3, 2), seed=0, filled=False):
    law = MoLRMoG.random(
        dim=dim,
        latent_dims=(dim, 3) if filled else latent_dims,
        modes=modes,
        noise=0.3,
        separation=1.5,
        seed=seed,
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(seed)
    law = law.with_noise("diagonal" if noise == "turned" else noise).requires_grad_(False)
    law.tau.mul_(torch.rand(law.tau.shape, generator=generator, dtype=torch.float64) + 0.4)
    law.offset.add_(torch.randn(law.offset.shape, generator=generator, dtype=torch.float64))
    if noise == "turned":
        return law.with_axes(
            Axes.of(torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=law.tau.dtype)).Q)
        )
    return law


def patterns(kind, rows, dim, generator):
    """Noise of each coordinate, infinite where nothing is seen."""
    gamma = torch.rand(rows, dim, generator=generator, dtype=torch.float64) + 0.05
    if kind == "missing":
        gamma = torch.zeros(rows, dim, dtype=torch.float64)
    if kind != "noise":
        gamma[torch.rand(rows, dim, generator=generator) < 0.5] = torch.inf
        gamma[0], gamma[1, 1:] = torch.inf, torch.inf  # nothing is seen; less than any subspace has dimensions
    return gamma


def dense(law, x, s, gamma):
    """What the oracle says of each row: mean, covariance, gates, log_prob."""
    mixture = Mixture.of(law)
    for row, noise in zip(x, gamma, strict=True):
        seen = noise.isfinite()
        H = s * torch.eye(law.dim, dtype=torch.float64)[seen]
        yield mixture.given(row[seen], H, noise[seen].square().diag())


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["missing", "noise", "both"])
@pytest.mark.parametrize("noise", NOISES)
def test_rows_are_conditioned_as_dense_algebra_does(noise, kind, shared, filled):
    """Evidence, gates, mean, variance and score; rows of patterns of their own, and many of one pattern."""
    law, s, generator = law_of(noise, filled=filled), 0.8, torch.Generator().manual_seed(1)
    gamma = patterns(kind, 6, law.dim, generator)
    if shared:
        gamma = gamma[[0, 1, 2, 3]].repeat_interleave(12, 0)
    x = s * law.sample(len(gamma), generator).x + gamma.nan_to_num(0, posinf=0) * torch.randn(
        gamma.shape, generator=generator, dtype=torch.float64
    )
    seen = torch.where(gamma.isinf(), torch.nan, x)
    asked = {"s": s, "gamma": gamma} if kind != "missing" else {"s": s}
    posterior = law.posterior(seen, **asked)
    oracle = list(dense(law, x, s, gamma))
    torch.testing.assert_close(posterior.log_prob, torch.stack([found for _, found in oracle]), rtol=1e-9, atol=1e-9)
    gates = torch.stack([found.weight for found, _ in oracle])
    torch.testing.assert_close(posterior.responsibilities, gates, rtol=1e-8, atol=1e-10)
    mean = torch.stack([found.expectation for found, _ in oracle])
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(law.denoise(seen, **asked), mean, rtol=1e-8, atol=1e-8)
    variance = torch.stack([found.spread.diagonal() for found, _ in oracle])
    torch.testing.assert_close(posterior.variance, variance, rtol=1e-7, atol=1e-8)
    # Of NaN and of any number where nothing is seen, the same.
    given = law.log_prob(x, s, gamma)
    torch.testing.assert_close(given, posterior.log_prob, rtol=1e-12, atol=1e-12)
    wanted = x.clone().requires_grad_()
    slope = torch.autograd.grad(law.log_prob(wanted, s, gamma).sum(), wanted)[0]
    torch.testing.assert_close(law.score(seen, **asked), slope, rtol=1e-7, atol=1e-7)
    assert not slope[gamma.isinf()].any()


@pytest.mark.parametrize("noise", NOISES)
def test_divergence_is_the_trace_of_the_hessian(noise):
    law, generator = law_of(noise), torch.Generator().manual_seed(2)
    for gamma in (patterns("both", 5, law.dim, generator), patterns("both", 3, law.dim, generator)[[2] * 9]):
        x = law.sample(len(gamma), generator).x
        hessian = torch.autograd.functional.jacobian(lambda x, gamma=gamma: law.score(x, 0.7, gamma).sum(0), x)
        trace = torch.einsum("dbd->b", hessian)
        torch.testing.assert_close(law.divergence(x, 0.7, gamma), trace, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_moments_of_the_posterior(noise, own):
    """Means and covariances of 40,000 draws, within five standard errors."""
    law, generator = law_of(noise), torch.Generator().manual_seed(3)
    gamma = patterns("both", 4, law.dim, generator)
    gamma = gamma if own else gamma[[2] * 9]
    x = law.sample(len(gamma), generator).x
    n, some = 40_000, slice(0, 4)
    drawn = law.posterior(x, 1.0, gamma).sample(n, generator)[:, some]
    for i, (found, _) in enumerate(dense(law, x[some], 1.0, gamma[some])):
        error = (found.spread.diagonal() / n).sqrt()
        assert bool(((drawn[:, i].mean(0) - found.expectation).abs() < 5 * error + 1e-9).all())
        apart = drawn[:, i] - found.expectation
        products = apart[:, :, None] * apart[:, None]
        error = products.std(0) / math.sqrt(n)
        assert bool(((products.mean(0) - found.spread).abs() < 5 * error + 1e-9).all())


@pytest.mark.parametrize("noise", NOISES)
def test_noise_of_all_coordinates_alike_is_a_noise_level(noise):
    law, generator = law_of(noise), torch.Generator().manual_seed(4)
    x = law.sample(20, generator).x
    for ask in (law.log_prob, law.score, law.denoise, law.divergence, law.posterior_variance):
        one = ask(x, 0.6, 0.4)
        torch.testing.assert_close(
            ask(x, 0.6, torch.full((1, law.dim), 0.4, dtype=torch.float64)), one, rtol=1e-9, atol=1e-9
        )
        each = torch.full((20, law.dim), 0.4, dtype=torch.float64)
        each[:, 0] += torch.linspace(0, 1e-13, 20)  # patterns of their own, but for rounding
        torch.testing.assert_close(ask(x, 0.6, each), one, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("noise", NOISES)
def test_float32_has_its_digits(noise):
    """Many rows of few patterns, as pictures with masks, in float32 and in float64."""
    law, generator = law_of(noise, dim=60, latent_dims=(5, 8, 6), modes=(3, 2, 2)), torch.Generator().manual_seed(5)
    gamma = patterns("both", 3, law.dim, generator).repeat_interleave(300, 0)
    x = law.sample(len(gamma), generator).x
    narrow = MoLRMoG.from_config(law.config)
    narrow.load_state_dict(law.state_dict())
    narrow.requires_grad_(False)
    fine = narrow.double()
    coarse = MoLRMoG.from_config(law.config)
    coarse.load_state_dict(fine.state_dict())
    coarse.requires_grad_(False)
    x, gamma = x.float(), gamma.float()
    one, other = fine.posterior(x.double(), 0.9, gamma), coarse.posterior(x, 0.9, gamma)
    torch.testing.assert_close(other.log_prob.double(), one.log_prob, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(other.responsibilities.double(), one.responsibilities, rtol=0, atol=2e-3)
    apart = (other.mean - one.mean).norm(dim=1) / one.mean.norm(dim=1)
    assert float(apart.max()) < 1e-4


def test_variance_asked_in_float64_does_not_spoil_the_level_for_float32():
    law = law_of("diagonal").float()
    x = law.sample(3, torch.Generator().manual_seed(0)).x
    law.posterior_variance(x.double(), 1.0, 0.3)
    assert law.log_prob(x, 1.0, 0.3).isfinite().all()


def test_arrays_are_answered_by_arrays():
    law = law_of("diagonal")
    x = law.sample(4, torch.Generator().manual_seed(0)).x
    seen = x.numpy().copy()
    seen[1, 2], seen[3] = np.nan, np.nan
    mean = law.denoise(seen)
    assert isinstance(mean, np.ndarray)
    assert np.isfinite(mean).all()
    known = ~np.isnan(seen)
    np.testing.assert_allclose(mean[known], seen[known], rtol=1e-12)
    np.testing.assert_allclose(law.log_prob(seen)[3], 0.0, atol=1e-12)


def test_derivatives_go_through_noise_and_parameters():
    """In the noise of coordinates, against differences; and through torch.func."""
    law, generator = law_of("diagonal"), torch.Generator().manual_seed(6)
    for rows in (5, 1):
        gamma = patterns("noise", rows, law.dim, generator).requires_grad_()
        x = law.sample(5, generator).x
        assert torch.autograd.gradcheck(lambda g, x=x: law.log_prob(x, 0.8, g), gamma, atol=1e-6)
        assert torch.autograd.gradcheck(lambda g, x=x: law.denoise(x, 0.8, g), gamma, atol=1e-6)
    slope = torch.func.vmap(torch.func.grad(lambda row: law.log_prob(row[None], 0.8, gamma.detach())[0]))(x)
    torch.testing.assert_close(slope, law.score(x, 0.8, gamma.detach()), rtol=1e-8, atol=1e-8)
    trained = law_of("diagonal").requires_grad_()
    seen = torch.where(torch.rand(x.shape, generator=generator) < 0.4, torch.nan, x)
    trained.log_prob(seen).sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in trained.parameters())


def test_no_rows_and_one_row():
    law = law_of("diagonal")
    gamma = torch.full((1, law.dim), 0.4, dtype=torch.float64)
    assert law.denoise(torch.zeros(0, law.dim).double(), 1.0, gamma).shape == (0, law.dim)
    seen = torch.zeros(1, law.dim).double()
    seen[0, 2] = torch.nan
    both = law.denoise(seen.expand(3, -1))
    torch.testing.assert_close(law.denoise(seen), both[:1])


def test_what_has_no_density_is_refused():
    law = law_of("diagonal")
    x = law.sample(4, torch.Generator().manual_seed(0)).x
    law.tau[:, 2] = 0
    gamma = torch.full((1, law.dim), 0.2)
    assert law.log_prob(x, 1.0, gamma).isfinite().all()
    gamma[0, 2] = 0
    with pytest.raises(ValueError, match="gamma must be > 0"):
        law.log_prob(x, 1.0, gamma)
    gamma[0, 2] = torch.inf
    assert law.log_prob(x, 1.0, gamma).isfinite().all()
    for wrong in (torch.zeros(1, 3), torch.zeros(3, law.dim), torch.full((1, law.dim), -1.0)):
        with pytest.raises(ValueError, match="gamma"):
            law.log_prob(x, 1.0, wrong)
