import numpy as np
import pytest
import scipy.linalg
import torch

from molrmog.metrics import frechet_distance, frechet_from_moments


def covariance(rng, dim, rank):
    factor = rng.standard_normal((dim, rank))
    return factor @ factor.T


def by_square_root(m1, c1, m2, c2):
    root = np.real(scipy.linalg.sqrtm(c1 @ c2))
    return float(np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * root))


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_full_rank_moments_agree_with_the_matrix_square_root(dim):
    rng = np.random.default_rng(dim)
    m1, m2 = rng.standard_normal((2, dim))
    c1, c2 = (covariance(rng, dim, 2 * dim) for _ in range(2))
    assert frechet_from_moments(m1, c1, m2, c2) == pytest.approx(by_square_root(m1, c1, m2, c2), rel=1e-10)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    a, b = rng.uniform(0, 3, (2, 8))
    a[:3], b[2:5] = 0.0, 0.0  # singular, with overlapping and separate null directions
    mean = rng.standard_normal(8)
    expected = np.square(mean).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    got = frechet_from_moments(mean, basis * a @ basis.T, np.zeros(8), basis * b @ basis.T)
    assert got == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("ours", "theirs"), [(40, 60), (40, 5), (6, 5)])
def test_features_agree_with_their_moments_also_with_fewer_rows_than_features(ours, theirs):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((ours, 12)) * 2
    b = rng.standard_normal((theirs, 12)) + 1
    expected = frechet_from_moments(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_distance_to_itself_is_zero_and_it_is_symmetric():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 10)) @ rng.standard_normal((10, 30))  # rank 10 in 30 features
    assert frechet_distance(a, a) < 1e-10 * np.trace(np.cov(a.T))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_constant_features_are_at_the_distance_of_their_means():
    assert frechet_distance(np.ones((5, 4)), np.zeros((7, 4))) == pytest.approx(4.0)


def test_agrees_with_torchmetrics_on_the_same_features():
    fid = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.standard_normal((2, 100, 6))), torch.from_numpy(rng.standard_normal((6, 6)))

    class Features(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x.flatten(1)

    metric = fid.FrechetInceptionDistance(Features(), normalize=True, input_img_size=(6,)).set_dtype(torch.float64)
    metric.update(a[1] @ b, real=True)
    metric.update(a[0], real=False)
    assert frechet_distance(a[0], a[1] @ b) == pytest.approx(float(metric.compute()), rel=1e-5)


@pytest.mark.parametrize(
    ("samples", "reference"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4))),
        (np.zeros((1, 3)), np.zeros((5, 3))),
        (np.full((5, 3), np.nan), np.zeros((5, 3))),
        (np.zeros(5), np.zeros((5, 3))),
    ],
)
def test_bad_features_are_refused(samples, reference):
    with pytest.raises(ValueError, match="samples"):
        frechet_distance(samples, reference)


def test_moments_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(F,\)"):
        frechet_from_moments(np.zeros(3), np.eye(3), np.zeros(4), np.eye(3))
