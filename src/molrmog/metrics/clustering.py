"""Clustering by the gates of a law, against labels.

A row belongs to the subspace with the largest sum of responsibilities over its modes, and to the mode with the largest
responsibility. Neither index has a meaning of its own, so the scores compare partitions: the adjusted Rand index and
the normalised mutual information (arithmetic mean) are 1 for the labels up to renaming, and the former is 0 on average
by chance. Purity, the share of rows whose label is the commonest of their cluster, only ever grows with more clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from molrmog.arguments import whole
from molrmog.data.labels import as_labels
from molrmog.laws.base import Law, check_law
from molrmog.metrics._rows import Rows, as_array, blocks, placement


@dataclass(frozen=True)
class Clustering:
    """Agreement of a partition with labels.

    Attributes:
        ari: adjusted Rand index, at most 1.
        nmi: normalised mutual information, in [0, 1].
        purity: share of rows whose label is the commonest of their cluster, in [0, 1].
        clusters: clusters that hold at least one row.
    """

    ari: float
    nmi: float
    purity: float
    clusters: int


def assign(
    law: Law, x: Rows, *, s: float = 1.0, gamma: float = 0.0, chunk: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """The subspace and the mode that own each row.

    Args:
        law: any law.
        x: rows with shape (N, D).
        s: signal scale of the rows.
        gamma: noise level of the rows.
        chunk: rows assigned at a time.

    Returns:
        Subspace of each row with shape (N,), in 0..K-1, and column of its largest responsibility with shape (N,), in
        0..sum n_k - 1 (its subspace, `law.component_of`, need not be the row's).

    Raises:
        ValueError: where D is not the law's or the rows hold NaN or infinite entries.
    """
    check_law(law)
    chunk = whole(chunk, "chunk", 1)
    dtype, device = placement(law)
    array = as_array(x, dim=law.dim)
    subspaces: list[np.ndarray] = []
    modes: list[np.ndarray] = []
    with torch.no_grad():
        component_of = law.component_of.to(device)
        for rows in blocks(len(array), chunk):
            posterior = law.posterior(torch.tensor(array[rows], dtype=dtype, device=device), s, gamma)
            r = posterior.responsibilities  # (B, sum n_k)
            gates = torch.zeros(len(r), law.subspaces, dtype=r.dtype, device=device).index_add_(1, component_of, r)
            subspaces.append(gates.argmax(1).cpu().numpy())
            modes.append(r.argmax(1).cpu().numpy())
    return np.concatenate(subspaces), np.concatenate(modes)


def clustering(assigned: Rows, labels: Rows) -> Clustering:
    """Agreement of assigned clusters with labels.

    Args:
        assigned: cluster of each row with shape (N,), such as :func:`assign` gives.
        labels: label of each row with shape (N,).

    Returns:
        Adjusted Rand index, normalised mutual information and purity.

    Raises:
        ValueError: where the two differ in length, are empty, or hold anything but whole numbers or strings.

    Examples:
        >>> import numpy as np
        >>> clustering(np.array([2, 2, 0, 0]), np.array([0, 0, 1, 1]))
        Clustering(ari=1.0, nmi=1.0, purity=1.0, clusters=2)
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    assigned, labels = as_labels(assigned, name="assigned"), as_labels(labels)
    if assigned.shape != labels.shape or not len(labels):
        raise ValueError(
            f"clusters and labels must have one shape (N,) with N >= 1, got {assigned.shape} and {labels.shape}"
        )
    counts = np.asarray(contingency_matrix(labels, assigned))  # (labels, clusters)
    return Clustering(
        ari=float(adjusted_rand_score(labels, assigned)),
        nmi=float(normalized_mutual_info_score(labels, assigned)),
        purity=float(counts.max(0).sum() / len(labels)),
        clusters=counts.shape[1],
    )
