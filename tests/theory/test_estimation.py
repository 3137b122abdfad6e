"""Errors against autograd and Monte Carlo, the asymptotic one against a Gaussian's, slopes against a textbook's."""

import math

import pytest
import torch
from torch import nn

from molrmog import MoLRMoG
from molrmog.theory.estimation import (
    GapBound,
    asymptotic_error,
    block_gaps,
    embedded,
    embedded_rows,
    embedding,
    least_loss,
    loglog_slope,
    mean_interval,
    row_losses,
    score_error,
)
from molrmog.theory.known_bases import fit_modes
from oracles.dense import DenseLaw


def a_law(seed=0, **given):
    shape = {"dim": 6, "latent_dims": (2, 3), "modes": (2, 1), "rank": 2, "noise": 0.2, **given}
    return MoLRMoG.random(seed=seed, dtype=torch.float64, **shape).requires_grad_(False)


def moved(law, size=0.1):
    other = MoLRMoG.from_subspaces([law.subspace(k) for k in range(law.subspaces)]).requires_grad_(False)
    other.mean += size * drawn(law.mean.shape, 5) * (law.mean != 0)  # padding stays zero
    return other


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_error_is_that_of_dense_scores():
    law, s, gamma = a_law(), 0.8, 0.6
    other, x = moved(law), law.sample(200, torch.Generator().manual_seed(0)).x
    noise = drawn(x.shape)
    xt = (s * x + gamma * noise).requires_grad_()
    scores = [torch.autograd.grad(DenseLaw.of(one).log_prob(xt, s, gamma).sum(), xt)[0] for one in (other, law)]
    squares = (scores[0] - scores[1]).square().sum(1)
    found = score_error(other, law, x, s, gamma, noise=noise)
    assert found.mean == pytest.approx(float(squares.mean()), rel=1e-9)
    assert found.standard_error == pytest.approx(float(squares.std()) / math.sqrt(200), rel=1e-9)
    low, high = found.interval
    assert low < found.mean < high


@pytest.mark.slow
def test_the_error_is_the_excess_loss():
    law, s, gamma = a_law(), 0.8, 0.6
    other, x = moved(law, 0.3), law.sample(100_000, torch.Generator().manual_seed(0)).x
    excess = row_losses(other, x, s, gamma) - row_losses(law, x, s, gamma)
    found = score_error(other, law, x, s, gamma)
    error = float(excess.std()) / math.sqrt(len(x))
    assert found.mean > 10 * error
    assert float(excess.mean()) == pytest.approx(found.mean, abs=4 * error)


def test_the_asymptotic_error_of_a_gaussian_mean():
    law, s, gamma = a_law(dim=5, latent_dims=(3,), modes=(1,), rank=3), 0.8, 0.6
    U = law.factor[0, 0]
    C = U @ U.T + 0.2**2 * torch.eye(3)  # covariance of sqrt(n) times the estimated mean
    noised = s**2 * C + gamma**2 * torch.eye(3)
    exact = float(torch.trace(C @ (s * torch.linalg.inv(noised)) @ (s * torch.linalg.inv(noised))))
    x = law.sample(20_000, torch.Generator().manual_seed(0)).x
    assert asymptotic_error(law, x, s, gamma, learn=("mean",)) == pytest.approx(exact, rel=0.03)


@pytest.mark.slow
def test_the_error_of_maximum_likelihood_tends_to_the_asymptotic_one():
    law, s, gamma, n = a_law(), 0.8, 0.6, 1000
    generator = torch.Generator().manual_seed(0)
    due = asymptotic_error(law, law.sample(8000, generator).x, s, gamma)
    fresh = law.sample(2000, generator).x
    errors = [
        n * score_error(fit_modes(law, law.sample(n, generator).x).law, law, fresh, s, gamma).mean for _ in range(40)
    ]
    low, high = mean_interval(errors)
    assert low < 1.05 * due
    assert high > 0.95 * due
    assert high - low < 0.5 * due


def test_the_loss_of_the_truth_is_its_posterior_variance():
    law, s, gamma = a_law(), 0.8, 0.6
    x = law.sample(40_000, torch.Generator().manual_seed(0)).x
    losses = row_losses(law, x, s, gamma, seed=1)
    found = least_loss(law, x, s, gamma, seed=2)
    error = math.hypot(float(losses.std()) / 200, found.standard_error)
    assert found.standard_error < 0.5 * float(losses.std()) / 200
    assert found.mean == pytest.approx(float(losses.mean()), abs=4 * error)
    wrong = float(row_losses(moved(law, 0.3), x, s, gamma, seed=1).mean())
    assert abs(wrong - found.mean) > 4 * error


def test_an_error_is_compared_at_a_noise_level():
    law = a_law()
    with pytest.raises(ValueError, match="noise level above 0"):
        score_error(law, law, law.sample(4).x, 1.0, 0.0)


def test_gaps_of_independent_losses():
    losses = 3 * drawn((2, 2**15)) + torch.tensor([[1.0], [2.0]])
    for n in (16, 64, 2**12):
        gaps = block_gaps(losses, n)
        assert gaps.shape == (2, 2**15 // n)
        assert float(gaps.square().mean()) == pytest.approx(9 / n, rel=5 * math.sqrt(2 / gaps.numel()))
    with pytest.raises(ValueError, match="pass n from 1"):
        block_gaps(losses, 2**15)


def test_the_bound_has_its_constants():
    law = a_law()
    bound = GapBound.of(law, torch.tensor([[3.0, 4, 0, 0, 0, 0]], dtype=torch.float64), 0.8, 0.5)
    B = max(float(mean.norm()) for k in range(2) for mean in law.subspace(k).means)
    assert bound.constant == pytest.approx((5 + 0.8 * B) ** 4 * 0.64 / 0.5**6)
    assert bound.at(100) == pytest.approx(bound.constant * math.sqrt(3) * math.sqrt(2 * 2 + 3) / 10)


def test_slopes_and_intervals_are_those_of_the_textbook():
    from scipy import stats

    x, y = [1.0, 3.0, 10.0, 40.0], (drawn((5, 4)).exp() + 0.1).tolist()
    slopes = [stats.linregress([math.log(a) for a in x], [math.log(b) for b in row]).slope for row in y]
    found = loglog_slope(x, y)
    assert found.value == pytest.approx(sum(slopes) / 5)
    interval = stats.t.interval(0.95, 4, loc=sum(slopes) / 5, scale=stats.sem(slopes))
    assert (found.low, found.high) == pytest.approx(interval)
    assert math.isnan(loglog_slope(x, y[:1]).low)
    with pytest.raises(ValueError, match="positive y"):
        loglog_slope([1.0, 2.0], [[1.0, 0.0]])


def test_an_embedded_law_is_the_law_and_noise():
    law, gamma = a_law(offset=1.0), 0.3
    Q = embedding(6, 20, seed=1)
    big = embedded(law, Q)
    x = drawn((10, 20))
    rest = x - x @ Q @ Q.T
    v = 0.2**2 + gamma**2
    noise = -0.5 * (rest.square().sum(1) / v + 14 * math.log(2 * math.pi * v))
    assert torch.allclose(big.log_prob(x, 1.0, gamma), law.log_prob(x @ Q, 1.0, gamma) + noise)
    y = law.sample(2000, torch.Generator().manual_seed(0)).x
    rows = embedded_rows(y, Q, 0.2, torch.Generator().manual_seed(1))
    assert torch.allclose(rows @ Q, y)
    off = (rows - y @ Q.T).square().sum(1).mean()
    assert float(off) == pytest.approx(14 * 0.2**2, rel=0.05)
    with pytest.raises(ValueError, match="does not fit"):
        embedding(6, 5, seed=0)


def test_with_the_bases_known_the_error_is_free_of_the_dimension():
    law, s, gamma = a_law(), 0.8, 0.6
    generator = torch.Generator().manual_seed(0)
    y, fresh, noise = law.sample(300, generator).x, law.sample(300, generator).x, drawn((300, 6))
    errors = [score_error(fit_modes(law, y).law, law, fresh, s, gamma, noise=noise).mean]
    for dim in (8, 200):
        Q = embedding(6, dim, seed=dim)
        big = embedded(law, Q)
        x, x_fresh, eps = (
            embedded_rows(part, Q, tau, generator) for part, tau in ((y, 0.2), (fresh, 0.2), (noise, 1.0))
        )
        errors.append(score_error(fit_modes(big, x).law, big, x_fresh, s, gamma, noise=eps).mean)
    assert errors[0] > 1e-3
    assert errors[1:] == pytest.approx([errors[0]] * 2, rel=1e-6)


def test_any_denoiser_has_an_error():
    class Zero(nn.Module):
        def denoise(self, x, s, gamma):
            return torch.zeros_like(x)

    law = a_law()
    x = law.sample(100, torch.Generator().manual_seed(0)).x
    assert score_error(Zero(), law, x, 0.8, 0.6).mean > score_error(moved(law, 0.01), law, x, 0.8, 0.6).mean
