import numpy as np
import pytest
import torch

from molrmog.metrics import memorisation


def test_copies_are_found_with_their_rows():
    rng = np.random.default_rng(0)
    train, heldout = rng.standard_normal((2, 200, 6)).astype(np.float32)
    copied = rng.integers(0, 200, 50)
    found = memorisation(train[copied], train, heldout)
    np.testing.assert_array_equal(found.indices, copied)
    assert found.distances.max() == 0.0
    assert (found.ratio, found.closer_than_1, found.closer_than_5) == (0.0, 1.0, 1.0)


def test_fresh_rows_are_as_far_as_heldout_rows():
    rng = np.random.default_rng(0)
    train, heldout, fresh = rng.standard_normal((3, 3000, 4))
    found = memorisation(torch.from_numpy(fresh), train, heldout)
    assert found.ratio == pytest.approx(1.0, abs=0.05)
    # Two sets of 3000: four standard errors of the difference of two shares.
    assert found.closer_than_1 == pytest.approx(0.01, abs=4 * np.sqrt(2 * 0.01 * 0.99 / 3000))
    assert found.closer_than_5 == pytest.approx(0.05, abs=4 * np.sqrt(2 * 0.05 * 0.95 / 3000))


def test_half_copies_show_as_a_half():
    rng = np.random.default_rng(0)
    train, heldout, fresh = rng.standard_normal((3, 400, 5))
    samples = np.concatenate([fresh[:200], train[:200] + 1e-6])
    found = memorisation(samples, train, heldout)
    assert 0.5 <= found.closer_than_1 < 0.55
    np.testing.assert_allclose(found.distances[200:], 1e-6 * np.sqrt(5), rtol=1e-6)


def test_distances_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    samples, train, heldout = rng.standard_normal((3, 20, 3))
    found = memorisation(samples, train, heldout)
    for rows, distances in ((samples, found.distances), (heldout, found.heldout_distances)):
        np.testing.assert_allclose(distances, [np.linalg.norm(train - row, axis=1).min() for row in rows])


def test_heldout_copies_give_an_infinite_ratio():
    rng = np.random.default_rng(0)
    train, samples = rng.standard_normal((2, 20, 3))
    assert memorisation(samples, train, train).ratio == np.inf


def test_another_number_of_columns_is_refused():
    with pytest.raises(ValueError, match="3 columns where 4"):
        memorisation(np.zeros((5, 3)), np.zeros((5, 4)), np.zeros((5, 4)))
