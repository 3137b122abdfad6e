"""Degrees of freedom of a law: how many directions in which its parameters can move it.

That is fewer than the numbers that are stored, which say the same law in many ways. Of a subspace of dimension d with n
modes of rank r,

    A_k  d (D - d)      b_k across A_k  D - d      noise  1, or D, or D for all subspaces together
    modes  each d + d r - r (r - 1) / 2, their weights n - 1        and K - 1 weights of subspaces

where d is what the modes span, at most sum_l r_l + n - 1: no data tell of directions in which nothing varies. Noise
that a covariance could take over does not count: no subspace has more than n (D + D (D + 1) / 2) + n - 1.
"""

from __future__ import annotations

from collections.abc import Sequence


def degrees_of_freedom(
    dim: int,
    latent_dims: Sequence[int],
    ranks: Sequence[Sequence[int]],
    noise: str = "isotropic",
    *,
    turned: bool = False,
) -> int:
    """Rank of the Fisher information of a law of these shapes, but for sets of measure zero.

    Args:
        dim: dimension D of the data.
        latent_dims: d_k of each subspace.
        ranks: r_kl of each mode.
        noise: "isotropic", "diagonal" or "shared".
        turned: whether noise goes along axes that were found from the rows as well.
    """
    D = dim
    own_noise = {"isotropic": 1, "diagonal": D, "shared": 0}[noise]
    total, most = len(latent_dims) - 1, len(latent_dims) - 1
    for d, of_modes in zip(latent_dims, ranks, strict=True):
        n = len(of_modes)
        d = min(d, sum(of_modes) + n - 1)
        modes = sum(d + d * r - r * (r - 1) // 2 for r in (min(r, d) for r in of_modes)) + n - 1
        whole = n * (D + D * (D + 1) // 2) + n - 1
        total += min(d * (D - d) + D - d + own_noise + modes, whole)
        most += whole
    axes = D * (D - 1) // 2 if turned and noise != "isotropic" else 0
    return min(total + (D if noise == "shared" else 0) + axes, most)
