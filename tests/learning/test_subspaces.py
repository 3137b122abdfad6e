"""Where the fit starts, against scikit-learn's principal components and laws that are known."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from molrmog import MoLRMoG
from molrmog.learning import subspaces
from molrmog.learning.rows import Rows
from molrmog.learning.subspaces import (
    cluster_flats,
    distances2,
    initial_law,
    principal_coordinates,
    principal_flat,
)
from molrmog.metrics import principal_angles, subspace_error

DECAYING = torch.linspace(3, 0.1, 12, dtype=torch.float64)


def spread_rows(n, spectrum=DECAYING):
    draw = torch.Generator().manual_seed(0)
    D = len(spectrum)
    turn = torch.linalg.qr(torch.randn(D, D, generator=draw, dtype=torch.float64)).Q
    return 2 + (torch.randn(n, D, generator=draw, dtype=torch.float64) * spectrum) @ turn


@pytest.mark.parametrize("n", [200, 9], ids=["more rows than columns", "fewer rows than columns"])
def test_principal_flat_is_principal_components(n):
    x = spread_rows(n)
    flat = principal_flat(x, 4)
    peer = PCA(4, svd_solver="full").fit(x.numpy())
    assert principal_angles(flat.basis, peer.components_.T)[-1] < 1e-4
    torch.testing.assert_close(flat.basis.T @ flat.basis, torch.eye(4, dtype=torch.float64))
    np.testing.assert_allclose(flat.offset, peer.mean_)
    np.testing.assert_allclose(flat.variance, peer.explained_variance_ * (n - 1) / n, rtol=1e-6)
    off = x - flat.offset
    left = off.square().sum() / n - flat.variance.sum()
    assert flat.noise**2 == pytest.approx(float(left) / 8, rel=1e-6)
    torch.testing.assert_close(distances2(x, [flat])[:, 0], (off - off @ flat.basis @ flat.basis.T).square().sum(1))


def test_principal_flat_in_many_dimensions_is_near_principal_components():
    """Found by iteration, where the leading variances stand out."""
    x = spread_rows(300, torch.cat([torch.tensor([5.0, 4.0, 3.0]), torch.linspace(0.8, 0.1, 57)]).double())
    flat, peer = principal_flat(x, 3), PCA(3, svd_solver="full").fit(x.numpy())
    assert principal_angles(flat.basis, peer.components_.T)[-1] < 0.01
    np.testing.assert_allclose(flat.variance, peer.explained_variance_ * 299 / 300, rtol=1e-5)
    refined = principal_flat(x, 3, start=principal_flat(x[:150], 3).basis)
    assert principal_angles(refined.basis, peer.components_.T)[-1] < 3
    assert refined.variance.sum() > 0.999 * flat.variance.sum()


def test_principal_flat_through_the_origin():
    x = spread_rows(200)
    flat = principal_flat(x, 4, centred=False)
    assert not flat.offset.any()
    _, _, right = torch.linalg.svd(x, full_matrices=False)
    assert principal_angles(flat.basis, right[:4].T)[-1] < 1e-4


@pytest.mark.parametrize("n", [1, 2, 3])
def test_principal_flat_of_hardly_any_rows(n):
    flat = principal_flat(spread_rows(n), 4)
    torch.testing.assert_close(flat.basis.T @ flat.basis, torch.eye(4, dtype=torch.float64))
    assert bool(flat.variance.isfinite().all())
    assert flat.noise == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_principal_coordinates_of_all_rows(weighted, monkeypatch):
    monkeypatch.setattr("molrmog.learning.rows._CHUNK_NUMBERS", {"cpu": 1})
    x = spread_rows(200)
    weights = torch.randint(0, 4, (200,)).double() if weighted else None
    repeated = x if weights is None else x.repeat_interleave(weights.long(), 0)
    offset, axes, variance, left = principal_coordinates(Rows(x), weights)
    torch.testing.assert_close(offset, repeated.mean(0))
    torch.testing.assert_close(axes.T @ axes, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(axes @ variance.diag() @ axes.T, torch.cov(repeated.T, correction=0))
    assert bool((variance.diff() <= 0).all())
    assert left == 0
    monkeypatch.setattr(subspaces, "_WIDEST", 5)
    _, axes, leading, left = principal_coordinates(Rows(x), weights)
    torch.testing.assert_close(leading, variance[:5])
    assert float(left) == pytest.approx(float(variance[5:].mean()))
    assert axes.shape == (12, 5)


def test_clusters_are_the_subspaces():
    true = MoLRMoG.random(30, (2, 3, 3), (2, 2, 2), noise=0.02, seed=1, offset=2.0, dtype=torch.float64)
    samples = true.sample(900, torch.Generator().manual_seed(0))
    flats, assigned = cluster_flats(samples.x, (3, 3, 3), seed=0)
    assert adjusted_rand_score(samples.subspace, assigned) > 0.95
    assert len(flats) == 3
    again = cluster_flats(samples.x, (3, 3, 3), seed=0)[1]
    assert torch.equal(again, assigned)


@pytest.mark.parametrize("labelled", [False, True])
def test_initial_law_is_near_the_truth(labelled):
    true = MoLRMoG.random(30, (3, 3, 3), (2, 2, 2), noise=0.05, seed=1, offset=2.0, dtype=torch.float64)
    samples = true.requires_grad_(False).sample(900, torch.Generator().manual_seed(0))
    law = initial_law(Rows(samples.x), samples.subspace if labelled else None, (3, 3, 3), (2, 2, 2), seed=0)
    assert (law.latent_dims, law.modes) == ((3, 3, 3), (2, 2, 2))
    assert subspace_error(law, true).max < 10
    assert float(law.log_prob(samples.x).mean()) > float(true.log_prob(samples.x).mean()) - 3
    torch.testing.assert_close(law.tau, torch.full((3,), 0.05, dtype=torch.float64), rtol=0.1, atol=0)
    if labelled:
        share = torch.bincount(samples.subspace).double() / 900
        torch.testing.assert_close(law.subspace_weights, share)


def test_initial_law_keeps_to_its_bounds():
    x = spread_rows(100)
    law = initial_law(Rows(x), None, (4, 2), (3, 2), rank=2, noise_floor=5.0)
    assert law.ranks == ((2, 2, 2), (2, 2))
    assert bool((law.tau >= 5.0).all())
    zero = initial_law(Rows(x), None, (4, 2), (1, 1), zero_mean=True)
    assert not zero.mean.any()
    assert not zero.offset.any()


def test_initial_law_is_reproducible():
    x = spread_rows(100)
    a, b, c = (initial_law(Rows(x), None, (4, 2), (3, 2), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_a_class_with_too_few_rows_is_named():
    labels = torch.tensor([0] * 97 + [1] * 3)
    with pytest.raises(ValueError, match="class 1 has 3 rows, fewer than its 4 modes"):
        initial_law(Rows(spread_rows(100)), labels, (2, 2), (4, 4))
