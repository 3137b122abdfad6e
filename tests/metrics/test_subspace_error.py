import numpy as np
import pytest
import scipy.linalg
import torch

from molrmog import mixture
from molrmog.metrics import principal_angles, subspace_error


@pytest.mark.parametrize(("p", "q"), [(1, 1), (3, 3), (5, 2), (2, 5), (7, 6)])
def test_angles_agree_with_scipy(p, q):
    rng = np.random.default_rng(p * 10 + q)
    a, b = rng.standard_normal((8, p)), rng.standard_normal((8, q))
    np.testing.assert_allclose(
        principal_angles(a, torch.from_numpy(b)),
        np.degrees(np.sort(scipy.linalg.subspace_angles(a, b))),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("angle", [1e-12, 1e-7, 1e-3, 45.0, 90.0 - 1e-6, 90.0])
def test_tiny_and_nearly_right_angles_keep_their_digits(angle):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0]
    theta = np.radians(angle)
    turned = basis[:, :3].copy()
    turned[:, 0] = np.cos(theta) * basis[:, 0] + np.sin(theta) * basis[:, 5]
    assert principal_angles(basis[:, :3], turned)[-1] == pytest.approx(angle, rel=1e-2, abs=1e-13)


def test_subspaces_are_matched_whatever_their_order():
    law = mixture.MoLRMoG.random(dim=20, latent_dims=(3, 5, 4), modes=(2, 1, 1), seed=0, dtype=torch.float64)
    order = [2, 0, 1]
    shuffled = mixture.MoLRMoG.from_subspaces([law.subspace(k) for k in order])
    error = subspace_error(shuffled, law)
    np.testing.assert_array_equal(error.true[np.argsort(error.fitted)], order)
    assert error.max < 1e-6


def test_a_turned_subspace_shows_its_angle():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    true = [basis[:, :4], basis[:, 4:8], basis[:, 8:12]]
    theta = np.radians(7.0)
    bent = true[1].copy()
    bent[:, 2] = np.cos(theta) * bent[:, 2] + np.sin(theta) * basis[:, 20]
    error = subspace_error([bent, true[2], true[0]], true)
    assert error.max == pytest.approx(7.0)
    assert error.mean == pytest.approx(7.0 / 3)
    np.testing.assert_array_equal(error.true, [1, 2, 0])


def test_a_part_of_a_larger_subspace_has_no_error():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 9)))[0]
    error = subspace_error([basis[:, :2]], [basis[:, 5:8], basis[:, :4]])
    assert error.max < 1e-6
    np.testing.assert_array_equal(error.true, [1])


def test_bases_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"\(D, p\)"):
        principal_angles(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="no subspace"):
        subspace_error([], [np.eye(3)])
