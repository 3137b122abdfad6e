"""k-means against scikit-learn's, and on rows that repeat."""

import pytest
import torch
from sklearn.cluster import KMeans

from molrmog import load_data
from molrmog.learning.k_means import k_means


def test_clusters_are_as_tight_as_those_of_scikit_learn():
    x = torch.from_numpy(load_data("digits").x)
    tight = [k_means(x, 10, torch.Generator().manual_seed(seed), 30)[2] for seed in range(8)]
    peers = [KMeans(10, n_init=1, max_iter=30, random_state=seed).fit(x.numpy()).inertia_ / len(x) for seed in range(8)]
    assert sum(tight) / 8 == pytest.approx(sum(peers) / 8, rel=0.03)


def test_what_is_returned_belongs_together():
    x = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100
    nearest, centers, mean = k_means(x, 5, torch.Generator().manual_seed(0), 300)
    away = torch.cdist(x, centers).square()
    assert torch.equal(nearest, away.argmin(1))
    assert mean == pytest.approx(float(away.amin(1).mean()))
    for k in range(5):
        torch.testing.assert_close(centers[k], x[nearest == k].mean(0), rtol=0, atol=0.1)


@pytest.mark.parametrize("x", [torch.ones(6, 2), torch.eye(2).repeat(3, 1)])
def test_rows_that_repeat(x):
    nearest, centers, mean = k_means(x, 4, torch.Generator().manual_seed(0), 10)
    assert mean == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(centers[nearest], x)
