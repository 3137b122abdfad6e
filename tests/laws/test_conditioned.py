"""Laws given observations, against dense algebra."""

import math

import numpy as np
import pytest
import torch
from test_patterns import NOISES, law_of

from molrmog import MoLRMoG
from molrmog.sampling import sample
from molrmog.schedules import VPSchedule
from oracles.conditioned import Mixture

KINDS = ["mask", "matrix", "wide", "function", "pair", "physics", "identity"]
SIZES = ["exact", "one", "each", "covariance"]


class Blur:
    """A physics as deepinv has them: pictures in, pictures out, and a noise model."""

    img_size = (1, 1, 7)

    class GaussianNoise:
        sigma = 0.25

    noise_model = GaussianNoise()

    def A(self, x):
        assert x.shape[1:] == self.img_size
        return x[..., :-1] + 0.5 * x[..., 1:]

    def A_adjoint(self, y):
        padded = torch.nn.functional.pad(y, (1, 1))
        return padded[..., 1:] + 0.5 * padded[..., :-1]


def observed(kind, size, dim, generator):
    """An observation, its matrix, its noise, and the covariance of that."""
    H = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    if kind == "mask":
        seen = torch.tensor([True, False, True, False, False, True, False])
        H, what = torch.eye(dim, dtype=torch.float64)[seen], seen
    elif kind == "matrix":
        what = H
    elif kind == "wide":
        H = torch.randn(dim + 2, dim, generator=generator, dtype=torch.float64)
        what = H
    elif kind == "function":
        what = lambda x: x @ H.T.to(x)  # noqa: E731
    elif kind == "pair":
        what = (lambda x: x @ H.T.to(x), lambda y: y @ H.to(y))
    elif kind == "physics":
        what = Blur()
        H = what.A(torch.eye(dim, dtype=torch.float64).view(-1, 1, 1, dim)).view(dim, -1).T
    else:
        H, what = torch.eye(dim, dtype=torch.float64), None
    m = len(H)
    N = torch.randn(m, m, generator=generator, dtype=torch.float64)
    noise = {
        "exact": 0.0,
        "one": 0.3,
        "each": torch.rand(m, generator=generator, dtype=torch.float64) + 0.1,
        "covariance": 0.05 * N @ N.T + 0.01 * torch.eye(m, dtype=torch.float64),
    }[size]
    R = noise if size == "covariance" else torch.as_tensor(noise, dtype=torch.float64).expand(m).square().diag()
    return what, H, noise, R


def cases():
    for kind in KINDS:
        for size in SIZES:
            if not (kind in ("wide", "identity") and size == "exact"):
                yield kind, size


@pytest.mark.parametrize(("kind", "size"), list(cases()))
@pytest.mark.parametrize("noise", NOISES)
def test_everything_is_what_dense_algebra_says(noise, kind, size):
    """Evidence, gates, mean, variance; denoiser, score and density of the noised law given y; several y and one."""
    law, generator = law_of(noise), torch.Generator().manual_seed(1)
    what, H, n, R = observed(kind, size, law.dim, generator)
    y = law.sample(3, generator).x @ H.T + torch.randn(3, len(H), generator=generator, dtype=torch.float64) @ (
        torch.linalg.cholesky(R + 1e-300 * torch.eye(len(H))) if size != "exact" else R
    )
    given, mixture = law.condition(y, what, n), Mixture.of(law)
    s, gamma = 0.7, 0.4
    x = s * law.sample(3, generator).x + gamma * torch.randn(3, law.dim, generator=generator, dtype=torch.float64)
    close = {"rtol": 1e-7, "atol": 1e-8}
    for i, (found, log_evidence) in enumerate(mixture.given(row, H, R) for row in y):
        torch.testing.assert_close(given.log_evidence[i], log_evidence, **close)
        torch.testing.assert_close(given.responsibilities[i], found.weight, **close)
        torch.testing.assert_close(given.mean[i], found.expectation, **close)
        torch.testing.assert_close(given.variance[i], found.spread.diagonal(), **close)
        alone = law.condition(y[i], what, n)
        torch.testing.assert_close(alone.mean, found.expectation, **close)
        torch.testing.assert_close(alone.log_evidence, log_evidence, **close)
        noised = found.noised(s, gamma)
        torch.testing.assert_close(given.log_prob(x, s, gamma)[i], noised.log_prob(x[i : i + 1])[0], **close)
        torch.testing.assert_close(alone.log_prob(x, s, gamma), noised.log_prob(x), **close)
        wanted = x.clone().requires_grad_()
        score = torch.autograd.grad(noised.log_prob(wanted).sum(), wanted)[0]
        torch.testing.assert_close(alone.score(x, s, gamma), score, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone.denoise(x, s, gamma), (x + gamma**2 * score) / s, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(given.denoise(x, s, gamma)[i], alone.denoise(x, s, gamma)[i], **close)
    levels = torch.tensor([0.4, 0.9, 0.4]), torch.tensor([0.7, 0.2, 0.3])
    each = [law.condition(y[i], what, n).denoise(x[i : i + 1], levels[0][i], levels[1][i])[0] for i in range(3)]
    torch.testing.assert_close(given.denoise(x, *levels), torch.stack(each), **close)


@pytest.mark.parametrize(
    ("kind", "size"), [("mask", "exact"), ("mask", "covariance"), ("matrix", "one"), ("wide", "each")]
)
@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_moments_of_the_conditional(noise, kind, size):
    """Means and covariances of 40,000 draws, within five standard errors."""
    law, generator, n = law_of(noise), torch.Generator().manual_seed(2), 40_000
    what, H, sigma, R = observed(kind, size, law.dim, generator)
    y = law.sample(1, generator).x[0] @ H.T
    found = Mixture.of(law).given(y, H, R)[0]
    drawn = law.condition(y, what, sigma).sample(n, generator)
    assert bool(
        ((drawn.mean(0) - found.expectation).abs() < 5 * (found.spread.diagonal().clamp(min=0) / n).sqrt() + 1e-9).all()
    )
    apart = drawn - found.expectation
    products = apart[:, :, None] * apart[:, None]
    assert bool(((products.mean(0) - found.spread).abs() < 5 * products.std(0) / math.sqrt(n) + 1e-9).all())


@pytest.mark.parametrize("noise", NOISES)
def test_conditioning_twice_is_conditioning_on_both(noise):
    """On x_t as a measurement with noise, and on y: the denoiser of the law given y."""
    law, generator = law_of(noise), torch.Generator().manual_seed(3)
    what, H, _, R = observed("matrix", "one", law.dim, generator)
    y, x = law.sample(1, generator).x[0] @ H.T, law.sample(1, generator).x[0]
    both = torch.cat([H, torch.eye(law.dim, dtype=torch.float64)])
    sigma = torch.cat([R.diagonal().sqrt(), torch.full((law.dim,), 0.5, dtype=torch.float64)])
    at_once = law.condition(torch.cat([y, x]), both, sigma)
    torch.testing.assert_close(law.condition(y, what, 0.3).denoise(x[None], 1.0, 0.5)[0], at_once.mean)
    # Of densities: p(y) p(x_t | y) is that of both.
    joint = law.condition(y, what, 0.3).log_evidence + law.condition(y, what, 0.3).log_prob(x[None], 1.0, 0.5)[0]
    torch.testing.assert_close(joint, at_once.log_evidence)


@pytest.mark.parametrize("noise", NOISES)
def test_a_mask_and_missing_values_are_the_same(noise):
    law, generator = law_of(noise), torch.Generator().manual_seed(4)
    x = law.sample(5, generator).x
    masks = torch.rand(5, law.dim, generator=generator) < 0.5
    masks[0], masks[1] = False, True
    seen = torch.where(masks, x, torch.nan)
    by_mask, by_nan = law.condition(x, masks), law.condition(seen)
    for name in ("mean", "variance", "responsibilities", "log_evidence"):
        torch.testing.assert_close(getattr(by_mask, name), getattr(by_nan, name))
        for i in range(5):
            alone = law.condition(x[i][masks[i]], masks[i])
            torch.testing.assert_close(getattr(alone, name), getattr(by_nan, name)[i])
    torch.testing.assert_close(law.log_prob(seen), by_nan.log_evidence)
    torch.testing.assert_close(law.denoise(seen), by_nan.mean)


@pytest.mark.parametrize("dims", [(2, 4), (7, 3)])
@pytest.mark.parametrize("noise", NOISES[:3])
def test_marginals_are_laws_of_columns(noise, dims):
    """Also of fewer columns than a subspace has dimensions; a row that lacks values is a row of the marginal."""
    law, generator = law_of(noise, filled=dims[0] == 7), torch.Generator().manual_seed(5)
    x = law.sample(6, generator).x
    for columns in ([5, 0, 2, 3, 6], [4, 1], [3], list(range(7))):
        marginal, mixture = law.marginal(columns), Mixture.of(law)
        own = Mixture.of(marginal)
        torch.testing.assert_close(own.mean, mixture.mean[:, columns])
        torch.testing.assert_close(own.covariance, mixture.covariance[:, columns][:, :, columns])
        seen = torch.full_like(x, torch.nan)
        seen[:, columns] = x[:, columns]
        torch.testing.assert_close(law.log_prob(seen, 0.8, 0.3), marginal.log_prob(x[:, columns], 0.8, 0.3))
        score = marginal.score(x[:, columns], 0.8, 0.3)
        torch.testing.assert_close(law.score(seen, 0.8, 0.3)[:, columns], score)
        torch.testing.assert_close(law.posterior_variance(seen, 0.8, 0.3)[:, columns],
                                   marginal.posterior_variance(x[:, columns], 0.8, 0.3))  # fmt: skip


@pytest.mark.parametrize("noise", NOISES)
def test_impute_leaves_what_is_there(noise):
    law, generator = law_of(noise), torch.Generator().manual_seed(6)
    x = law.sample(8, generator).x
    assert torch.equal(law.impute(x), x)
    assert law.impute(x).data_ptr() != x.data_ptr()
    seen = x.clone()
    seen[torch.rand(x.shape, generator=generator) < 0.4] = torch.nan
    seen[3] = torch.nan
    filled, draws = law.impute(seen), law.impute(seen, draws=4, generator=generator)
    known = ~seen.isnan()
    assert torch.equal(filled[known], x[known])
    assert draws.shape == (4, 8, 7)
    assert all(torch.equal(draw[known], x[known]) for draw in draws)
    assert filled.isfinite().all()
    assert draws.isfinite().all()
    assert float((draws[0] - draws[1]).abs()[~known].min()) > 0
    as_array = law.impute(seen.float().numpy())
    assert isinstance(as_array, np.ndarray)
    assert as_array.dtype == np.float32


@pytest.mark.parametrize("kind", ["mask", "matrix"])
def test_a_conditioned_law_samples_as_a_law_does(kind):
    """Any sampler takes it; its draws have the mean of the conditional."""
    law, generator = law_of("diagonal"), torch.Generator().manual_seed(7)
    what, H, n, R = observed(kind, "one", law.dim, generator)
    y = law.sample(1, generator).x[0] @ H.T
    given = law.condition(y, what, n)
    drawn = sample(given, VPSchedule(), (4_000, law.dim), steps=40, generator=generator)
    found = Mixture.of(law).given(y, H, R)[0]
    error = (found.spread.diagonal() / len(drawn)).sqrt()
    assert bool(((drawn.double().mean(0) - found.expectation).abs() < 6 * error + 0.02).all())


@pytest.mark.parametrize("noise", NOISES)
def test_limits_of_noise(noise):
    """Pure noise says nothing of x_0; without noise a denoiser is y where y is exact."""
    law, generator = law_of(noise), torch.Generator().manual_seed(8)
    seen = torch.tensor([True, False, True, False, False, True, False])
    y = law.sample(1, generator).x[0][seen]
    for given in (law.condition(y, seen), law.condition(y, seen, 0.2)):
        x = torch.randn(4, law.dim, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(given.denoise(x, 0.0, 1.3), given.mean.expand(4, -1))
        pure = torch.distributions.Normal(0.0, 1.3).log_prob(x).sum(1)
        torch.testing.assert_close(given.log_prob(x, 0.0, 1.3), pure)
        torch.testing.assert_close(given.score(x, 0.0, 1.3), -x / 1.69)
    exact = law.condition(y, seen)
    torch.testing.assert_close(exact.denoise(x, 1.0, 0.1)[:, seen], y.expand(4, -1))
    torch.testing.assert_close(exact.denoise(x, 1.0, 1e-4)[:, ~seen], x[:, ~seen], rtol=0, atol=1e-5)


def test_kinds_of_arrays_and_dtypes():
    law = law_of("diagonal").float()
    y = law.sample(2, torch.Generator().manual_seed(0)).x
    given = law.condition(y.numpy()[:, :3], np.arange(7) < 3, 0.1)
    assert isinstance(given.mean, np.ndarray)
    assert given.mean.dtype == np.float32
    assert isinstance(given.sample(3), np.ndarray)
    assert given.sample(3).shape == (3, 2, 7)
    assert isinstance(law.condition(y[0]).mean, torch.Tensor)
    assert law.condition(y[0]).mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("observation", "noise", "y", "says"),
    [
        (torch.ones(5, dtype=torch.bool), 0.1, torch.zeros(5), "7 columns"),
        (torch.randn(3, 6), 0.1, torch.zeros(3), "D = 7"),
        (torch.randn(3, 7), 0.1, torch.zeros(4), "3 are observed"),
        (torch.randn(3, 7), -0.1, torch.zeros(3), "negative"),
        (torch.randn(3, 7), torch.zeros(2), torch.zeros(3), "noise has shape"),
        (torch.randn(3, 7), -torch.eye(3), torch.zeros(3), "eigenvalue"),
        (torch.randn(3, 7), torch.randn(3, 3), torch.zeros(3), "symmetric"),
        (torch.randn(1, 7).expand(2, 7), 0.0, torch.zeros(2), "two of its numbers say the same"),
        (lambda x: x.square(), 0.1, torch.zeros(7), "not linear"),
        (lambda x: x + 1, 0.1, torch.zeros(7), "not linear"),
        ((lambda x: x[:, :2], lambda y: torch.zeros(len(y), 7)), 0.1, torch.zeros(2), "not the adjoint"),
        (lambda x: x @ torch.zeros(3, 3), 0.1, torch.zeros(2), "fails on a row of 7 zeros"),
        ("eyes", 0.1, torch.zeros(2), "observation"),
    ],
)
def test_what_is_no_observation_is_refused_in_a_line(observation, noise, y, says):
    with pytest.raises(ValueError, match=says) as error:
        law_of("diagonal").condition(y, observation, noise).mean  # noqa: B018
    assert "\n" not in str(error.value)


def test_noise_that_is_not_gaussian_is_refused():
    class Poisson(Blur):
        class PoissonNoise:
            gain = 1.0

        noise_model = PoissonNoise()

    with pytest.raises(ValueError, match="PoissonNoise"):
        law_of("diagonal").condition(torch.zeros(6), Poisson())
    blurred = law_of("diagonal").condition(torch.zeros(6), Blur())
    torch.testing.assert_close(blurred.mean, law_of("diagonal").condition(torch.zeros(6), Blur(), 0.25).mean)


def test_a_law_that_is_certain_needs_noise():
    law = law_of("diagonal")
    law.tau[:, 0] = 0
    law.basis[0] = 0
    seen = torch.arange(7) < 2
    with pytest.raises(ValueError, match="certain"):
        law.condition(torch.zeros(2), seen).mean  # noqa: B018
    assert law.condition(torch.zeros(2), seen, 0.1).mean.isfinite().all()


def test_columns_that_are_none_are_refused():
    law = MoLRMoG.random(dim=4, latent_dims=(2,), modes=(1,), seed=0)
    for columns in ([], [4], [0, 0], [0.5], "ab", [[0]]):
        with pytest.raises(ValueError, match="columns"):
            law.marginal(columns)
