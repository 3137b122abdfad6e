"""k-means, with which subspaces and modes begin.

Centres are drawn by greedy k-means++ and moved by Lloyd's algorithm. scikit-learn has the same and more; importing it
takes longer than all there is to cluster here.

References:
    Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SETTLED = 1e-4  # movement of the centres, of the mean variance of a column, from which they stand still


def k_means(x: Tensor, clusters: int, generator: torch.Generator, max_iter: int) -> tuple[Tensor, Tensor, float]:
    """Cluster rows by the centre that is nearest.

    Args:
        x: rows, with shape (N, D), N >= clusters.
        clusters: how many; some remain empty where rows repeat.
        generator: of the first centres, on the CPU.
        max_iter: moves of the centres, at most.

    Returns:
        The cluster of each row, with shape (N,), the centres, with shape (clusters, D), and the mean squared distance.
    """
    mean = x.mean(0)
    x = x - mean
    energy = x.square().sum(1)
    centers = _spread_out(x, energy, clusters, generator)
    enough = _SETTLED * float(energy.mean()) / x.shape[1]
    for _ in range(max_iter):
        _, nearest = _nearest(x, centers)
        count = nearest.bincount(minlength=clusters)
        sums = torch.zeros_like(centers).index_add_(0, nearest, x)
        moved = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], centers)
        shift, centers = float((moved - centers).square().sum()), moved
        if shift <= enough:
            break
    off, nearest = _nearest(x, centers)
    return nearest, centers + mean, float((off + energy).double().mean())


def _nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre, less the squared norm of the row, and which centre it is."""
    return torch.addmm(centers.square().sum(1), x, centers.T, alpha=-2).min(1)


def _spread_out(x: Tensor, energy: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Rows far from each other: each is the best of some that are drawn by their squared distance from those before."""
    N, trials = len(x), 2 + int(math.log(clusters))
    centers = x[torch.randint(N, (1,), generator=generator).to(x.device)]
    off = (x - centers).square().sum(1)
    for _ in range(1, clusters):
        ladder = off.double().cumsum(0)
        drawn = torch.rand(trials, generator=generator, dtype=torch.float64).to(x.device) * ladder[-1]
        at = torch.searchsorted(ladder, drawn, right=True).clamp(max=N - 1)
        reach = torch.minimum(off, (energy - 2 * x[at] @ x.T + energy[at, None]).clamp(min=0))  # (trials, N)
        best = int(reach.double().sum(1).argmin())
        centers, off = torch.cat([centers, x[at[best], None]]), reach[best]
    return centers
