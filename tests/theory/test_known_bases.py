"""Fits with the bases given end where the gradient of what they optimise vanishes, and nothing else has moved."""

import itertools

import pytest
import torch

from molrmog import MoLRMoG
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.theory.known_bases import MODES, fit_modes, fit_scores


def a_law(seed=0, **given):
    shape = {"dim": 9, "latent_dims": (2, 3), "modes": (2, 3), "rank": 2, "noise": 0.2, "offset": 1.0, **given}
    return MoLRMoG.random(seed=seed, dtype=torch.float64, **shape).requires_grad_(False)


def gradients(law, learn, loss):
    """Of every learned parameter, zeros where padded."""
    network = MoGDenoiser(law, learn=learn)
    loss(network).backward()
    return [p.grad for p in network.parameters() if p.requires_grad]


@pytest.mark.parametrize("learn_tau", [False, True])
def test_em_ends_where_the_likelihood_is_stationary(learn_tau):
    law = a_law()
    x = law.sample(800, torch.Generator().manual_seed(1)).x
    found = fit_modes(law, x, learn_tau=learn_tau, tol=0.0, max_iter=3000)
    assert found.log_likelihood == pytest.approx(float(found.law.log_prob(x).mean()), abs=1e-12)
    assert found.log_likelihood > float(law.log_prob(x).mean())
    learn = (*MODES, "tau") if learn_tau else MODES
    at_start, at_end = (
        gradients(one, learn, lambda network: -network.law.log_prob(x).mean()) for one in (law, found.law)
    )
    for before, after in zip(at_start, at_end, strict=True):
        assert before.abs().max() > 1e-3
        assert after.abs().max() < 1e-5
    for name in ("basis", "offset") + (() if learn_tau else ("tau",)):
        assert torch.allclose(getattr(found.law, name), getattr(law, name), atol=1e-14)


def test_em_never_lowers_the_likelihood():
    law = a_law()
    x = law.sample(60, torch.Generator().manual_seed(1)).x
    values = [fit_modes(law, x, max_iter=i, tol=-1.0).log_likelihood for i in range(12)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


def test_a_mode_without_rows_stays_where_it_is():
    law = a_law()
    law.mean[0, 1, :2] += 1e3
    x = a_law().sample(50, torch.Generator().manual_seed(1), subspace=1).x
    found = fit_modes(law, x).law
    assert torch.equal(found.mean[0, 1], law.mean[0, 1])
    assert found.log_prob(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("learn_tau", [False, True])
def test_a_subspace_without_rows_stays_where_it_is(dtype, learn_tau):
    law = a_law(dim=6, latent_dims=(2, 2), modes=(2, 2)).to(dtype)
    x = law.sample(60, torch.Generator().manual_seed(1), subspace=1).x
    law.offset[:, 0] += 1e4
    before = law.subspace(0)
    found = fit_modes(law, x, learn_tau=learn_tau, max_iter=20).law
    after = found.subspace(0)
    assert after.weight < 1e-6
    assert torch.equal(after.means, before.means)
    assert torch.allclose(after.mode_weights, before.mode_weights)
    assert after.tau == pytest.approx(before.tau)
    assert found.log_prob(x).isfinite().all()


def test_score_matching_ends_where_its_loss_is_stationary():
    law = a_law(offset=0.0)
    x = law.sample(100, torch.Generator().manual_seed(1)).x
    s, gamma, draws = 0.8, 0.6, 4
    found = fit_scores(law, x, s, gamma, draws=draws, seed=3, max_iter=500)
    noise = torch.randn(draws // 2, *x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)

    def loss(network):
        parts = [(network.denoise(s * x + gamma * one, s, gamma) - x).square().sum(1) for e in noise for one in (e, -e)]
        return torch.stack(parts).mean()

    before, after = (gradients(one, MODES, loss) for one in (law, found))
    assert max(float(g.abs().max()) for g in after) < 1e-3 * max(float(g.abs().max()) for g in before)
    with torch.no_grad():
        assert loss(found) < loss(law)
    assert torch.equal(found.basis, law.basis)
    assert torch.equal(found.tau, law.tau)


def test_it_says_what_is_wrong():
    law = a_law()
    with pytest.raises(ValueError, match="tau > 0"):
        fit_modes(a_law(noise=0.0), torch.zeros(3, 9, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"R\^9"):
        fit_modes(law, torch.zeros(3, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="even number"):
        fit_scores(law, torch.zeros(3, 9, dtype=torch.float64), 0.8, 0.6, draws=3)
