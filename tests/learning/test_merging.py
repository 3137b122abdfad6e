"""Subspaces put together from small clusters."""

import math

import numpy as np
import pytest
import torch

import molrmog
from molrmog.laws.molrmog import NOISES, MoLRMoG
from molrmog.learning.merging import Merging
from molrmog.learning.rows import Rows
from molrmog.learning.views import View


def ragged(noise, D=20):
    law = MoLRMoG.random(D, (1, 3, 5), (1, 1, 2), noise=0.1, seed=3, offset=4.0, separation=8.0, dtype=torch.float64)
    law = law.requires_grad_(False).with_noise(noise)
    if noise != "isotropic":
        unequal = torch.rand(law.tau.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        law.tau.mul_((unequal - 0.5).exp())
    return law


def rows_of(law, count, seed=0):
    return law.sample(count, torch.Generator().manual_seed(seed)).x.detach()


def merging_of(x, noise, clusters, weights=None):
    ones = torch.ones(x.shape[1], dtype=torch.float64)
    return Merging(x, clusters, noise, 0.2 * ones, 1e-3 * ones, weights)


@pytest.mark.parametrize("rows", [1000, 3000])
@pytest.mark.parametrize("noise", NOISES)
def test_shapes_and_noise_of_known_laws_come_out(noise, rows):
    law = ragged(noise)
    view = View.of(Rows(rows_of(law, rows)), "data", None, 0, centred=True)
    found = view.put_together(noise, "bic", 0)
    assert sorted(zip(found.latent_dims, found.modes, strict=True)) == [(1, 1), (3, 1), (5, 2)]
    assert torch.allclose(found.noise.mean(0), law.tau.detach().reshape(len(law.tau), -1).mean(0), rtol=0.1)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_a_subspace_is_worth_the_density_of_its_rows(noise):
    x = rows_of(ragged(noise, D=9), 300)
    (part,) = merging_of(x, noise, torch.zeros(300, dtype=torch.long)).parts
    u = (x - x.mean(0)) / 0.2
    V = torch.linalg.eigh(u.T @ u / part.noise.sqrt() / part.noise.sqrt()[:, None])[1].flip(1)
    for d in range(10):
        basis = V[:, :d]
        white = u / part.noise.sqrt() @ basis
        inside = (white.T @ white + torch.eye(d, dtype=torch.float64)) / 301  # a row of noise is added
        covariance = basis @ inside @ basis.T + torch.eye(9, dtype=torch.float64) - basis @ basis.T
        covariance *= part.noise.sqrt() * part.noise.sqrt()[:, None]
        dense = torch.distributions.MultivariateNormal(torch.zeros(9, dtype=torch.float64), covariance)
        want = float(dense.log_prob(u).sum()) + 300 * 9 / 2 * math.log(2 * math.pi)
        assert float(part.base[d] + part.terms.sum(0)[d]) == pytest.approx(want, rel=1e-9)


def test_rows_that_count_twice_are_two_rows():
    x = rows_of(ragged("diagonal"), 200)
    clusters = torch.arange(200) % 8
    twice = merging_of(torch.cat([x, x]), "diagonal", torch.cat([clusters, clusters])).merge()["bic"]
    heavy = merging_of(x, "diagonal", clusters, torch.full((200,), 2.0)).merge()["bic"]
    assert heavy.latent_dims == twice.latent_dims
    assert heavy.worth == pytest.approx(twice.worth, rel=1e-9)


def test_rows_are_members_of_what_they_were_put_into():
    view = View.of(Rows(rows_of(ragged("isotropic"), 500)), "data", None, 0, centred=True)
    found = view.put_together("isotropic", "aic", 0)
    assert len(found.subspace) == 500
    for k, n in enumerate(found.modes):
        assert set(found.mode[found.subspace == k].tolist()) == set(range(n))


def test_a_plain_fit_has_subspaces_of_shapes_of_their_own():
    truth = ragged("diagonal")
    x, fresh = rows_of(truth, 1500), rows_of(truth, 4000, 1)
    law = molrmog.fit(x)
    assert law.subspaces == 3
    assert len(set(law.latent_dims)) > 1
    behind = np.mean((truth.log_prob(fresh) - torch.as_tensor(law.log_prob(fresh))).numpy())
    assert behind < 2 * truth.degrees_of_freedom / (2 * len(x))
    again = molrmog.fit(x, selection=law.fit_summary_)
    assert again.latent_dims == law.latent_dims
    assert torch.allclose(law.log_prob(fresh), again.log_prob(fresh))


@pytest.mark.parametrize("noise", NOISES)
def test_there_are_as_many_subspaces_as_asked_for(noise):
    view = View.of(Rows(rows_of(ragged(noise), 1000)), "data", None, 0, centred=True)
    free = view.put_together(noise, "bic", 0)
    worths = {}
    for K in (1, 2, 3, 5, 60):
        for by in ("bic", "aic"):
            found = view.put_together(noise, by, 0, K)
            assert len(found.modes) == len(found.latent_dims) == K
            assert len(found.subspace.unique()) == K
        worths[K] = view.put_together(noise, "bic", 0, K).worth
    assert worths[3] == pytest.approx(free.worth, rel=1e-4)
    assert max(worths, key=lambda K: worths[K]) == 3


def test_a_number_of_subspaces_that_is_given_is_kept_and_their_shapes_are_their_own():
    truth = ragged("isotropic")
    x, fresh = rows_of(truth, 1500), rows_of(truth, 4000, 1)
    law = molrmog.fit(x, subspaces=3)
    assert sorted(zip(law.latent_dims, law.modes, strict=True)) == [(1, 1), (3, 1), (5, 2)]
    assert float((truth.log_prob(fresh) - law.log_prob(fresh)).mean()) < 0.2
    for K in (2, 5):
        assert molrmog.fit(x[:200], subspaces=K).subspaces == K
