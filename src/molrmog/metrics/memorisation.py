"""Memorisation: are samples closer to the training rows than fresh rows of the same law are?

For every sample the Euclidean distance to its nearest training row, against the same distance of held-out rows. A law
that generalises gives a ratio of medians near 1 (below 1 also where its samples are merely smoother than the data),
and about 1% and 5% of its samples closer than the 1% and 5% quantiles of the held-out distances. Copies give 0 and
100%.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from molrmog.metrics._rows import Rows
from molrmog.metrics.neighbours import nearest


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training row, samples against held-out rows.

    Attributes:
        ratio: median distance of the samples over the median distance of the held-out rows (infinite or NaN where the
            latter is 0: the held-out rows are themselves copies).
        closer_than_1: share of samples strictly closer than the 1% quantile of the held-out distances, in [0, 1].
        closer_than_5: the same for the 5% quantile.
        distances: distance of each sample, with shape (N,), in the units of the rows.
        indices: row number of each sample's nearest training row, with shape (N,).
        heldout_distances: distance of each held-out row, with shape (M,).
    """

    ratio: float
    closer_than_1: float
    closer_than_5: float
    distances: np.ndarray
    indices: np.ndarray
    heldout_distances: np.ndarray


def memorisation(samples: Rows, train: Rows, heldout: Rows) -> Memorisation:
    """Compare distances to the nearest training row.

    Args:
        samples: rows with shape (N, D): raw rows, or features of them.
        train: the rows the law was fitted to, with shape (T, D).
        heldout: rows it has not seen, with shape (M, D).

    Returns:
        The ratio of medians, the shares that are too close, every distance and the nearest training rows.

    Raises:
        ValueError: where D differs, a set is empty or holds NaN or infinite entries.
    """
    distances, indices = nearest(samples, train)
    heldout_distances = nearest(heldout, train)[0][:, 0]
    distances = distances[:, 0]
    one, five = np.quantile(heldout_distances, [0.01, 0.05])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.median(distances) / np.median(heldout_distances)
    return Memorisation(
        ratio=float(ratio),
        closer_than_1=float(np.mean(distances < one)),
        closer_than_5=float(np.mean(distances < five)),
        distances=distances,
        indices=indices[:, 0],
        heldout_distances=heldout_distances,
    )
