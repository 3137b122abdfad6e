"""Precision and recall, density and coverage of samples, by nearest neighbours in a feature space.

The support of a set is estimated by closed balls B(x_i, r_k(x_i)) around its rows, r_k the distance to the k-th nearest
other row of the same set:

    precision = share of samples inside some ball of the reference         (are the samples real?)
    recall    = share of the reference inside some ball of the samples     (is everything there?)
    density   = (1 / kN) sum over samples of the number of reference balls it lies in      (may pass 1)
    coverage  = share of reference balls that hold at least one sample

Density and coverage put balls around the reference only, so an outlier among the samples cannot inflate them; when both
sets come from one law density is 1 and coverage 1 - (M-1)...(M-k) / ((N+M-1)...(N+M-k)), about 1 - 2^-k at M = N.
All four depend on the feature space, on k and on the sizes of both sets: compare numbers of equal settings only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molrmog.arguments import whole
from molrmog.metrics._rows import Rows, as_array, blocks
from molrmog.metrics.neighbours import neighbour_radii

# A point exactly on a ball's surface (a copied row) must count, whichever way the last bit of its distance rounds.
_SLACK = 1.0 + 1e-9
# Distances held at a time: 128 MB.
_NUMBERS = 2**24


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall in one feature space.

    Attributes:
        precision: share of samples inside the support of the reference, in [0, 1].
        recall: share of the reference inside the support of the samples, in [0, 1].
        k: which neighbour sets the radius of a ball.
        samples: number of samples N.
        reference: number of reference rows M.
    """

    precision: float
    recall: float
    k: int
    samples: int
    reference: int


@dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage in one feature space.

    Attributes:
        density: mean number of reference balls a sample lies in, over k; 1 for samples of the same law.
        coverage: share of reference balls that hold a sample, in [0, 1].
        k: which neighbour sets the radius of a ball.
        samples: number of samples N.
        reference: number of reference rows M.
    """

    density: float
    coverage: float
    k: int
    samples: int
    reference: int


def _sets(samples: Rows, reference: Rows, k: int) -> tuple[Tensor, Tensor]:
    k = whole(k, "k", 1)
    real = as_array(reference, "reference", least=k + 1)
    fake = as_array(samples, "samples", dim=real.shape[1], least=k + 1)
    # Distances do not depend on the origin, their rounding does.
    centre = real.mean(0, dtype=np.float64)
    return torch.from_numpy(fake - centre), torch.from_numpy(real - centre)


def precision_recall(samples: Rows, reference: Rows, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    Args:
        samples: features of the samples with shape (N, F).
        reference: features of real rows with shape (M, F).
        k: which neighbour sets the radius of a ball.

    Returns:
        Both shares, with the settings they depend on.

    Raises:
        ValueError: where k < 1, a set has fewer than k + 1 rows, the sets differ in F or hold NaN or infinite entries.

    References:
        Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models"
        (arXiv 1904.06991), section 2.
    """
    fake, real = _sets(samples, reference, k)
    fake_radii, real_radii = neighbour_radii(fake, k) * _SLACK, neighbour_radii(real, k) * _SLACK
    inside = 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows in blocks(len(fake), max(1, _NUMBERS // len(real))):
        distance = torch.cdist(fake[rows], real)  # (B, M)
        inside += int((distance <= real_radii).any(1).sum())
        covered |= (distance <= fake_radii[rows, None]).any(0)
    return PrecisionRecall(inside / len(fake), float(covered.double().mean()), k, len(fake), len(real))


def density_coverage(samples: Rows, reference: Rows, k: int = 5) -> DensityCoverage:
    """Density and coverage.

    Args:
        samples: features of the samples with shape (N, F).
        reference: features of real rows with shape (M, F).
        k: which neighbour sets the radius of a ball.

    Returns:
        Both numbers, with the settings they depend on.

    Raises:
        ValueError: where k < 1, a set has fewer than k + 1 rows, the sets differ in F or hold NaN or infinite entries.

    References:
        Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models" (arXiv 2002.09797), section
        3.
    """
    fake, real = _sets(samples, reference, k)
    radii = neighbour_radii(real, k) * _SLACK
    hits = 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows in blocks(len(fake), max(1, _NUMBERS // len(real))):
        within = torch.cdist(fake[rows], real) <= radii  # (B, M)
        hits += int(within.sum())
        covered |= within.any(0)
    return DensityCoverage(hits / (k * len(fake)), float(covered.double().mean()), k, len(fake), len(real))
