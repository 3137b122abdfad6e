"""EM over rows that lack values, and fits that begin with them."""

import math

import numpy as np
import pytest
import torch

import molrmog
from molrmog import MoLRMoG
from molrmog.learning.em import Latents, Statistics, em_steps, gather
from molrmog.learning.incomplete import gather_incomplete
from molrmog.learning.rows import Rows

NOISES = ["isotropic", "diagonal", "shared"]


def truth(noise="diagonal", *, dim=6, seed=0):
    law = MoLRMoG.random(
        dim=dim, latent_dims=(2, 3), modes=(2, 1), noise=0.3, separation=4, offset=2, seed=seed, dtype=torch.float64
    ).with_noise(noise)
    generator = torch.Generator().manual_seed(seed)
    law = law.requires_grad_(False)
    law.tau.mul_(torch.rand(law.tau.shape, generator=generator, dtype=torch.float64) + 0.5)
    return law


def with_gaps(law, rows, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = law.sample(rows, generator).x
    gaps = torch.rand(x.shape, generator=generator) < share
    return x, gaps, torch.where(gaps, torch.nan, x)


def incomplete(x, gaps):
    return Rows(x).completed(x, gaps).as_standard().with_gaps()


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("noise", NOISES)
def test_rows_that_lack_nothing_give_the_statistics_of_whole_rows(noise, weighed):
    law = truth(noise)
    x = law.sample(200, torch.Generator().manual_seed(1)).x
    w = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) if weighed else None
    whole = gather(law, Rows(x).as_standard(), w)
    found = Statistics.none(law, x.device)
    gather_incomplete(found, law, Latents.of(law), x, w)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-9, atol=1e-7, msg=name)


@pytest.mark.parametrize("noise", NOISES)
def test_statistics_are_expectations_of_those_of_whole_rows(noise):
    """Monte Carlo: rows completed by posterior draws, each weighed by the gates of its own draw's mode; one mode."""
    law = truth(noise).alone(1)  # one mode: gates do not vary between draws
    x, _gaps, seen = with_gaps(law, 20, 0.5)
    found = Statistics.none(law, x.device)
    latents = Latents.of(law)
    gather_incomplete(found, law, latents, seen, None)
    n = 4_000
    draws = law.impute(seen, n, torch.Generator().manual_seed(3))
    names = ("first", "second", "ambient", "off" if noise == "isotropic" else "square")
    each = {name: [] for name in names}
    for part in draws.split(100):
        whole = gather(law, Rows(part.flatten(0, 1)).as_standard(), latents=latents)
        for name in names:
            each[name].append(getattr(whole, name) / 100)
    for name in names:
        values = torch.stack(each[name])
        error = values.std(0) / math.sqrt(len(values)) + 1e-9
        apart = (values.mean(0) - getattr(found, name)).abs()
        assert bool((apart < 5.5 * error).all()), name


@pytest.mark.parametrize("noise", NOISES)
def test_em_never_falls_and_ends_where_no_parameter_moves_the_likelihood(noise):
    """The gradient of the log-likelihood of what is observed, by autograd, at the end of EM without priors."""
    x, gaps, seen = with_gaps(truth(noise), 400, 0.3)
    start = molrmog.fit(x, subspaces=2, latent_dim=2, modes=[2, 1], noise=noise, max_iter=2)
    steps = em_steps(start, incomplete(x, gaps), prior_rows=0.0, noise_rows=0.0)
    before = -math.inf
    for state in steps:
        assert state.penalised >= before - 1e-9
        before = state.penalised
        if state.iteration == 400:
            break
    law = MoLRMoG.from_config(state.law.config).double()
    law.load_state_dict(state.law.state_dict())
    assert math.isclose(float(law.log_prob(seen).detach().mean()), state.log_likelihood, rel_tol=1e-9)
    law.requires_grad_()
    law.log_prob(seen).mean().backward()
    for name in ("offset", "mean", "factor", "tau", "subspace_logits", "mode_logits"):
        assert float(getattr(law, name).grad.abs().max()) < 2e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_a_known_law_is_recovered_from_half_of_its_values(noise):
    law = truth(noise)
    _, _, seen = with_gaps(law, 6_000, 0.5)
    start, generator = truth(noise), torch.Generator().manual_seed(7)
    for parameter in (start.offset, start.mean, start.factor):
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * (parameter != 0))
    fitted = molrmog.fit(seen, start=start, max_iter=200, tol=1e-6)
    fresh = law.sample(5_000, torch.Generator().manual_seed(9)).x
    behind = [float((law.log_prob(fresh) - each.log_prob(fresh)).mean()) for each in (start, fitted)]
    assert behind[1] < 0.02
    assert behind[0] > 0.2


def test_rows_without_gaps_are_fitted_as_ever():
    """To the last bit, whether or not the same rows were fitted with gaps before."""
    x = truth().sample(300, torch.Generator().manual_seed(0)).x.numpy()
    one = molrmog.fit(x, subspaces=2, latent_dim=2, modes=1, noise="diagonal", max_iter=10)
    other = molrmog.fit(np.array(x), subspaces=2, latent_dim=2, modes=1, noise="diagonal", max_iter=10)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_plain_call_takes_gaps():
    _, _, seen = with_gaps(truth(), 300, 0.2)
    law = molrmog.fit(seen)
    first = law.fit_summary_.table[0]
    assert (first["latent_dims"], first["modes"]) == (list(law.latent_dims), list(law.modes))
    assert "observed" in law.fit_summary_.why
    assert torch.equal(law.impute(seen)[~seen.isnan()], seen[~seen.isnan()])
    found = molrmog.select(seen)
    assert found.best.coordinates != "principal"


def test_gaps_with_labels_weights_and_rows_to_judge_by():
    law = truth()
    samples = law.sample(300, torch.Generator().manual_seed(0))
    seen = samples.x.clone()
    seen[torch.rand(seen.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = torch.nan
    seen[5] = torch.nan
    weights = torch.ones(300, dtype=torch.float64)
    weights[:50] = 0.0
    fitted = molrmog.fit(
        seen[:250], samples.subspace[:250], latent_dim=2, modes=1, noise="diagonal", weights=weights[:250],
        validation=seen[250:],
    )  # fmt: skip
    assert fitted.subspaces == 2
    assert fitted.log_prob(seen).isfinite().all()
    again = molrmog.fit(seen, start=fitted)
    assert float(again.log_prob(seen).mean()) >= float(fitted.log_prob(seen).mean())


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        (lambda x: x[:, 2].fill_(math.nan), {}, "column 2 of x holds no value"),
        (lambda x: x[:, 2:4].fill_(math.nan), {}, "2 columns, the first of them 2,"),
        (lambda x: x[3, :2].copy_(torch.tensor([math.inf, math.nan])), {}, "row 3 of x holds infinity"),
        (lambda x: x[3, 0].fill_(math.nan), {"axes": "pca", "noise": "diagonal"}, "their own coordinates"),
        (lambda x: x[3, 0].fill_(math.nan), {"head": 3}, "their own coordinates"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_line(spoil, options, says):
    x = truth().sample(40, torch.Generator().manual_seed(0)).x
    spoil(x)
    with pytest.raises(ValueError, match=says) as error:
        molrmog.fit(x, **options)
    assert "\n" not in str(error.value)
