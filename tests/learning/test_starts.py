"""Starts against the moments of the data, and against each other."""

import pytest
import torch

from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit
from molrmog.learning.rows import Rows
from molrmog.learning.starts import STARTS, mog_start
from molrmog.learning.subspaces import initial_law


def rows(n=3000, dim=5, dtype=torch.float64):
    law = MoLRMoG.random(dim=dim, latent_dims=(3,), modes=(4,), noise=0.3, seed=0, offset=4.0, dtype=dtype)
    return law.sample(n, torch.Generator().manual_seed(0)).x


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_in_all_of_the_space_is_written_in_its_coordinates(start, dtype):
    law = mog_start(rows(dtype=dtype), 5, 3, start, seed=1)
    assert torch.equal(law.basis[:, 0], torch.eye(5, dtype=dtype))
    assert not law.offset.any()
    assert (law.modes, law.latent_dims, law.ranks) == ((3,), (5,), ((5, 5, 5),))
    assert law.mean.dtype == dtype
    assert not any(p.requires_grad for p in law.parameters())
    again = mog_start(rows(dtype=dtype), 5, 3, start, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(law.parameters(), again.parameters(), strict=True))


def test_k_means_and_em_are_the_laws_they_are_named_after():
    x = rows()
    expected = {
        "k-means": initial_law(Rows(x), None, [5], [3], seed=1, noise_floor=0.01),
        "em": fit(x, subspaces=1, latent_dim=5, modes=3, seed=1, noise_floor=0.01, noise="isotropic"),
    }
    for start, law in expected.items():
        found = mog_start(x, 5, 3, start, seed=1, noise_floor=0.01)
        torch.testing.assert_close(found.log_prob(x), law.log_prob(x))


def test_a_random_start_has_the_moments_of_the_data_on_average():
    x = rows()
    laws = [mog_start(x, 5, 50, "random", seed=seed) for seed in range(20)]
    drawn = torch.cat([law.sample(2000, torch.Generator().manual_seed(seed)).x for seed, law in enumerate(laws)])
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(drawn.T.cov(), x.T.cov(), rtol=0.1, atol=0.15)
    assert len({float(law.mean[0, 0, 0]) for law in laws}) == 20


@pytest.mark.parametrize("start", STARTS)
def test_a_start_in_a_subspace(start):
    law = mog_start(rows(), 3, 4, start, rank=2)
    torch.testing.assert_close(law.basis[:, 0].T @ law.basis[:, 0], torch.eye(3, dtype=torch.float64))
    assert law.ranks == ((2, 2, 2, 2),)
    assert 0.2 < float(law.tau[0].abs()) < 0.6


def test_better_starts_are_likelier():
    x = rows()
    found = [float(mog_start(x, 5, 4, start).log_prob(x).mean()) for start in STARTS]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("start", "latent_dim", "message"),
    [
        ("kmeans", 5, "unknown start 'kmeans': choose one of random, k-means, em"),
        ("random", 6, "latent_dim = 6, modes = 3: pass 1 to 5"),
    ],
)
def test_what_does_not_fit_is_refused(start, latent_dim, message):
    with pytest.raises(ValueError, match=message):
        mog_start(rows(100), latent_dim, 3, start)
