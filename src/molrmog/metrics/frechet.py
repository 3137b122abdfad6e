"""Frechet distance between two sets of features.

The squared 2-Wasserstein distance of the two Gaussians that share their moments:

    d^2 = ||m_1 - m_2||^2 + tr C_1 + tr C_2 - 2 tr (C_1^{1/2} C_2 C_1^{1/2})^{1/2}

With any factors C_i = L_i L_i^T the last trace is the sum of the singular values of L_1^T L_2. The factors come from an
eigendecomposition with the eigenvalues clipped at 0 (or, with fewer rows than features, from the rows themselves), so
singular covariances need no jitter and no complex square root.

The number belongs to the feature space: only Inception-v3 features make it a "Frechet inception distance". It also
falls as sets grow (the bias of C from N rows is of order 1/N), so compare numbers of equal N only.
"""

from __future__ import annotations

import numpy as np

from molrmog.data.arrays import as_numbers
from molrmog.metrics._rows import Rows, as_array


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L with shape (F, r) and L L^T = covariance, r the numerical rank."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > np.finfo(np.float64).eps * len(values) * max(values[-1], 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean with shape (F,) and a factor of the unbiased covariance with shape (F, r)."""
    features = features.astype(np.float64, copy=False)
    mean = features.mean(0)
    centred = (features - mean) / np.sqrt(len(features) - 1)  # (N, F)
    if len(features) <= features.shape[1]:
        return mean, centred.T
    return mean, _factor(centred.T @ centred)


def _squared_distance(mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, factor2: np.ndarray) -> float:
    overlap = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    spread = np.square(factor1).sum() + np.square(factor2).sum() - 2.0 * overlap
    return float(np.square(mean1 - mean2).sum() + max(spread, 0.0))


def frechet_distance(samples: Rows, reference: Rows) -> float:
    """Squared Frechet distance between two sets of features, in float64.

    Args:
        samples: features with shape (N, F), at least 2 rows.
        reference: features with shape (M, F), at least 2 rows.

    Returns:
        The squared distance (the quantity an FID reports), in squared units of the features, never negative.

    Raises:
        ValueError: where the sets differ in F, hold fewer than 2 rows, or hold NaN or infinite entries.

    References:
        Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500), section 2.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> round(frechet_distance(x + [3.0, 4.0, 0.0], x), 6)
        25.0
    """
    reference = as_array(reference, "reference", least=2)
    samples = as_array(samples, "samples", dim=reference.shape[1], least=2)
    return _squared_distance(*_moments(samples), *_moments(reference))


def _as_row(mean: Rows) -> Rows:
    return as_numbers(mean, "mean").reshape(1, -1)


def frechet_from_moments(mean1: Rows, covariance1: Rows, mean2: Rows, covariance2: Rows) -> float:
    """Squared Frechet distance between two Gaussians given by their moments.

    Args:
        mean1: mean of the first with shape (F,).
        covariance1: covariance of the first with shape (F, F), symmetric, singular allowed.
        mean2: mean of the second with shape (F,).
        covariance2: covariance of the second with shape (F, F), symmetric, singular allowed.

    Returns:
        The squared distance, in squared units of the features, never negative.

    Raises:
        ValueError: where shapes do not agree or an entry is NaN or infinite.
    """
    m1, m2 = (as_array(_as_row(m), "the means")[0].astype(np.float64) for m in (mean1, mean2))
    c1 = as_array(covariance1, "covariance1", dim=len(m1)).astype(np.float64)
    c2 = as_array(covariance2, "covariance2", dim=len(m1)).astype(np.float64)
    if len(m2) != len(m1) or len(c1) != len(m1) or len(c2) != len(m1):
        raise ValueError(
            f"moments must have shapes (F,) and (F, F) for one F, got {m1.shape}, {c1.shape}, {m2.shape}, {c2.shape}"
        )
    return _squared_distance(m1, _factor((c1 + c1.T) / 2), m2, _factor((c2 + c2.T) / 2))
