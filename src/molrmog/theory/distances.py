"""How far a law is from another of the same shape, whatever names their parameters go by.

The law of x_0 does not change when the axes of a subspace turn (A -> A R, mu -> R^T mu, U -> R^T U), when the factor of
a mode turns (U -> U R), or when modes or subspaces trade places. So modes are compared as Gaussians of R^D, and paired
where that costs least. With m = b + A mu and G = A U, the Wasserstein distance between two modes has two parts:

    W^2 = |m - m'|^2 + B^2,      B = min_R || [G, tau I] - [G', tau' I] R ||_F       over orthogonal R

B is the Bures distance between the covariances G G^T + tau^2 I, in data units like |m - m'|. In this form it is exact
to rounding, where the usual formula of traces takes the root of a difference and stops at 1e-8. All but a multiple of
the identity lies in the span of [A, A'], so no D x D matrix is built. Near a law W is a norm of the error of (mu, U)
modulo turns: it contracts at the rate at which they do.

References:
    Givens and Shortt, "A class of Wasserstein metrics for probability distributions", 1984, proposition 7.
    Bhatia, Jain, Lim, "On the Bures-Wasserstein distance between positive definite matrices", arXiv 1712.01504,
    theorem 1, for the minimum over R.
    arXiv 2601.01475, section 4, whose U is known up to a turn, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molrmog.denoisers.mog import nearest_orthonormal
from molrmog.laws.molrmog import MoLRMoG
from molrmog.metrics.subspaces import principal_angles


@dataclass(frozen=True)
class LawDistance:
    """Distance of a law from a true one of its shape, modes paired.

    Attributes:
        means: root mean square over modes of |m - m'|, in data units.
        covariances: root mean square over modes of B, in data units.
        angles: largest principal angle of each subspace with its partner, in degrees, with shape (K,).
        weights: root mean square over modes of the difference between the probabilities w_k pi_kl.
        total: root of means^2 + covariances^2 + (weights x spread)^2, in data units, where the spread is the root mean
            square distance of x_0 from its mean under the true law; zero for equal laws alone.
        subspaces: the true subspace that each one is paired with, with shape (K,).
        modes: for each subspace the true mode that each of its modes is paired with, with shapes (n_k,).
    """

    means: float
    covariances: float
    angles: np.ndarray
    weights: float
    total: float
    subspaces: tuple[int, ...]
    modes: tuple[tuple[int, ...], ...]


@torch.no_grad()
def law_distance(law: MoLRMoG, true: MoLRMoG) -> LawDistance:
    """Distance between two laws, free of turns and of the order of subspaces and modes.

    Modes are paired inside pairs of subspaces, and subspaces with one another, where `total` is least. A
    counts as its orthonormal factor A (A^T A)^-1/2, to which the law itself goes by one step of Newton's method. Modes
    count one by one: where some coincide, the law does not say how they share their weight, but the distance does.

    Args:
        law: any law.
        true: a law with as many subspaces, of the same dimensions and numbers of modes in any order.

    Returns:
        The distance, its parts, and who is paired with whom.

    Raises:
        ValueError: the laws differ in shape.

    Example:
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), seed=0, dtype=torch.float64)
        >>> parts = [law.subspace(k) for k in range(2)]
        >>> law_distance(MoLRMoG.from_subspaces(parts[::-1]), law).subspaces
        (1, 0)

    References:
        arXiv 2601.01475, section 4 (convergence up to a turn of U).
    """
    from scipy.optimize import linear_sum_assignment

    shapes, true_shapes = (list(zip(one.latent_dims, one.modes, strict=True)) for one in (law, true))
    if law.dim != true.dim or sorted(shapes) != sorted(true_shapes):
        raise ValueError(
            f"the laws have (d_k, n_k) = {shapes} over R^{law.dim} and {true_shapes} over R^{true.dim}: "
            "compare laws of one shape"
        )
    ours, theirs = ([_Part.of(one, k) for k in range(one.subspaces)] for one in (law, true))
    spread = _spread(theirs)
    pairs: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}
    cost = np.full((len(ours), len(theirs)), np.inf)
    for k, own in enumerate(ours):
        for j, other in enumerate(theirs):
            if shapes[k] == true_shapes[j]:
                means, covariances = _squares(own, other)
                gaps = (own.weights[:, None] - other.weights) ** 2
                rows, columns = linear_sum_assignment(means + covariances + spread**2 * gaps)
                pairs[k, j] = columns, *(squares[rows, columns] for squares in (means, covariances, gaps))
                cost[k, j] = (means + covariances + spread**2 * gaps)[rows, columns].sum()
    partners = [int(j) for j in linear_sum_assignment(cost)[1]]
    found = [pairs[k, j] for k, j in enumerate(partners)]
    means, covariances, weights = (float(np.sqrt(np.concatenate([one[i] for one in found]).mean())) for i in (1, 2, 3))
    angles = [principal_angles(ours[k].basis, theirs[j].basis)[-1] for k, j in enumerate(partners)]
    return LawDistance(
        means=means,
        covariances=covariances,
        angles=np.array(angles),
        weights=weights,
        total=math.sqrt(means**2 + covariances**2 + (weights * spread) ** 2),
        subspaces=tuple(partners),
        modes=tuple(tuple(map(int, columns)) for columns, *_ in found),
    )


@dataclass(frozen=True)
class _Part:
    """A subspace and its modes in R^D, in float64."""

    basis: Tensor  # (D, d)
    means: Tensor  # (n, D)       m = b + A mu
    factors: Tensor  # (n, d, r)  U, so that G = A U
    tau: float
    weights: np.ndarray  # (n,)   w_k pi_kl

    @classmethod
    def of(cls, law: MoLRMoG, k: int) -> _Part:
        law.require_isotropic("the Wasserstein distance between laws")
        d, n = law.latent_dims[k], law.modes[k]
        A, b, mu, U = (p.double() for p in (law.basis[:, k, :d], law.offset[k], law.mean[k, :n, :d], law.factor[k]))
        A = nearest_orthonormal(A)
        weights = law.subspace_weights[k].double() * law.mode_weights[k, :n].double()
        return cls(A, b + mu @ A.T, U[:n, :d], float(law.tau[k].abs()), weights.cpu().numpy())


def _squares(own: _Part, other: _Part) -> tuple[np.ndarray, np.ndarray]:
    """|m - m'|^2 and B^2 between all modes of two subspaces, each with shape (n, n)."""
    D = len(own.basis)
    Q = torch.linalg.qr(torch.cat([own.basis, other.basis], 1)).Q  # (D, q)
    q = Q.shape[1]

    def root(part: _Part) -> Tensor:
        """[G, tau I] in the coordinates of Q, with shape (n, q, r + q)."""
        G = (Q.T @ part.basis) @ part.factors
        return torch.cat([G, part.tau * torch.eye(q).to(G).expand(len(G), q, q)], 2)

    F, other_F = root(own)[:, None], root(other)[None]
    columns = max(F.shape[-1], other_F.shape[-1])
    F, other_F = (torch.nn.functional.pad(f, (0, columns - f.shape[-1])) for f in (F, other_F))
    left, _, right = torch.linalg.svd(other_F.mT @ F)  # (n, n, r + q, r + q)
    B2 = (F - other_F @ left @ right).square().sum((2, 3)) + (D - q) * (own.tau - other.tau) ** 2
    means = (own.means[:, None] - other.means).square().sum(2)
    return means.cpu().numpy(), B2.cpu().numpy()


def _spread(parts: list[_Part]) -> float:
    """Root mean square distance of x_0 from its mean, in data units."""
    w = torch.cat([torch.from_numpy(part.weights) for part in parts])
    m = torch.cat([part.means.cpu() for part in parts])
    inside = torch.cat([part.factors.square().sum((1, 2)).cpu() + len(part.basis) * part.tau**2 for part in parts])
    return float((w @ ((m - w @ m).square().sum(1) + inside)).sqrt())
