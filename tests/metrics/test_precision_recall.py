import numpy as np
import pytest

from molrmog.metrics import density_coverage, nearest, precision_recall


def radius(x, i, k):
    return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]


def inside(point, x, i, k):
    return np.linalg.norm(point - x[i]) <= radius(x, i, k)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_loops_over_all_pairs(k, seed):
    rng = np.random.default_rng(seed)
    real, fake = rng.standard_normal((25, 3)) + 100, rng.standard_normal((18, 3)) + np.array([100.8, 100, 100])
    hits = np.array([[inside(f, real, i, k) for i in range(len(real))] for f in fake])
    back = np.array([[inside(r, fake, j, k) for j in range(len(fake))] for r in real])

    pr = precision_recall(fake, real, k)
    assert pr.precision == pytest.approx(hits.any(1).mean())
    assert pr.recall == pytest.approx(back.any(1).mean())
    dc = density_coverage(fake, real, k)
    assert dc.density == pytest.approx(hits.sum() / (k * len(fake)))
    assert dc.coverage == pytest.approx(hits.any(0).mean())


def test_samples_of_the_same_law_reach_the_expected_values():
    rng = np.random.default_rng(0)
    m, n, k, repeats = 200, 300, 5, 40
    draws = [density_coverage(rng.standard_normal((n, 2)), rng.standard_normal((m, 2)), k) for _ in range(repeats)]
    expected = 1 - np.prod([(m - j) / (n + m - j) for j in range(1, k + 1)])
    for values, target in (([d.coverage for d in draws], expected), ([d.density for d in draws], n / n)):
        error = np.std(values, ddof=1) / np.sqrt(repeats)
        assert abs(np.mean(values) - target) < 4 * error + 0.01  # the law has edges, the formula none
    pr = precision_recall(rng.standard_normal((2000, 2)), rng.standard_normal((2000, 2)))
    assert min(pr.precision, pr.recall) > 0.9


def test_disjoint_sets_share_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 60, 4))
    pr, dc = precision_recall(a + 1000, b), density_coverage(a + 1000, b)
    assert (pr.precision, pr.recall, dc.density, dc.coverage) == (0, 0, 0, 0)


def test_copies_of_the_reference_lie_in_every_ball_they_should():
    x = np.random.default_rng(0).standard_normal((50, 4)) + 1e3
    pr, dc = precision_recall(x, x), density_coverage(x, x, k=5)
    assert (pr.precision, pr.recall, dc.coverage) == (1, 1, 1)
    assert dc.density == pytest.approx(6 / 5)  # each ball holds its centre and its 5 neighbours


def test_one_missing_mode_lowers_recall_and_not_precision():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((400, 2)) + 50 * (np.arange(400) % 2)[:, None]
    pr = precision_recall(real[::2] + 0.01 * rng.standard_normal((200, 2)), real)
    assert pr.precision > 0.95
    assert pr.recall == pytest.approx(0.5, abs=0.05)


def test_neighbours_agree_with_loops_and_copies_are_at_distance_zero():
    rng = np.random.default_rng(0)
    reference = (rng.standard_normal((30, 5)) + 50).astype(np.float32)
    queries = np.concatenate([reference[[4]], (rng.standard_normal((9, 5)) + 50).astype(np.float32)])
    distance, index = nearest(queries, reference, 4)
    full = np.linalg.norm(queries[:, None].astype(float) - reference[None].astype(float), axis=2)
    np.testing.assert_array_equal(index, np.argsort(full, 1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(full, 1)[:, :4], rtol=1e-12)
    assert distance[0, 0] == 0.0


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_too_few_rows_and_a_bad_k_are_refused(metric):
    x = np.random.default_rng(0).standard_normal((3, 2))
    with pytest.raises(ValueError, match="at least 4"):
        metric(x, x, k=3)
    with pytest.raises(ValueError, match="k = 0: pass 1"):
        metric(x, x, k=0)
