"""What overlap does to the blocks of the curvature, measured where it happens: on the borders between modes.

The Gauss-Newton block of a mode differs from its closed form (`theory.landscape`) only where gates are soft. Ordinary
rows seldom get there, and the few that do decide: over seeds the error of a block spreads over orders of magnitude, its
median far below its mean. Two things mend that. Rows come from

    q = 1/2 (the modes, in equal shares) + 1/2 (the paths between all pairs of modes, in equal shares)

with weights p / (N q), where a path between modes i and j has Gaussians proportional to N_i^(1-t) N_j^t, t = 1/4, 1/2,
3/4. Since min(p_i, p_j) <= p_i^(1-t) p_j^t, no row near a border has a large weight. And with r_c the responsibility of
mode c, J_c the derivative of the score in its parameters and Jhat_c that of the score of mode c alone,

    block_c - closed form = E [J_c^T J_c - r_c Jhat_c^T Jhat_c],     since E [r_c f] = w_c E_c [f] for every f,

which is zero on every row whose gates are hard, so that only the overlap itself has a sampling error.

References:
    Hesterberg, Weighted average importance sampling and defensive mixture distributions, 1995.
    Chernoff, A measure of asymptotic efficiency for tests of a hypothesis, 1952 (min(p, q) <= p^(1-t) q^t).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.theory.landscape import relative_error, separated_blocks
from molrmog.theory.score_loss import ScoreLoss, stratified_rows

_PATH = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class BlockErrors:
    """How far soft gates take the Gauss-Newton matrix at the truth from the closed forms of separated modes.

    Attributes:
        mean: largest relative error of a mean's block, over modes and directions, weak directions counted like strong.
        factor: the same of a factor's block.
        whole: spectral norm of all that the closed forms lack, blocks between modes included, over that of theirs.
    """

    mean: float
    factor: float
    whole: float


def border_rows(
    law: MoLRMoG, n: int, s: float, gamma: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of the modes and of the borders between them, weighted so that averages are those of the noised law.

    Args:
        law: the truth, of so few dimensions that covariances (D, D) of all pairs of modes may be formed.
        n: rows, about; half of them on paths between modes.
        s: signal scale.
        gamma: noise standard deviation.
        generator: source of randomness, for reproducibility.

    Returns:
        Rows x_t, with shape (N, D), and their weights, summing to one up to sampling, with shape (N,).
    """
    modes = _gaussians(law, s, gamma)
    pairs = list(itertools.combinations(range(len(modes)), 2))
    if not pairs:
        return stratified_rows(law, n, s, gamma, generator)
    path = [_between(modes[i], modes[j], t) for (i, j) in pairs for t in _PATH]
    own, _ = stratified_rows(law, math.ceil(n / 2), s, gamma, generator)
    each = math.ceil(n / 2 / len(path))
    drawn = [
        mean + torch.randn(each, law.dim, generator=generator, dtype=torch.float64).to(mean) @ root.mT
        for mean, root in path
    ]
    x = torch.cat([own, *drawn])
    counts = [len(own) / len(modes)] * len(modes) + [each] * len(path)
    log_q = torch.stack(
        [_log_density(x, *one) + math.log(count) for one, count in zip(modes + path, counts, strict=True)]
    )
    weights = [part.weight * float(w) for part in map(law.subspace, range(law.subspaces)) for w in part.mode_weights]
    log_p = torch.stack([_log_density(x, *one) + math.log(w) for one, w in zip(modes, weights, strict=True)])
    return x, (log_p.logsumexp(0) - log_q.logsumexp(0)).exp()


def block_errors(loss: ScoreLoss) -> BlockErrors:
    """How far soft gates take the Gauss-Newton matrix at the truth from the closed forms of separated modes.

    Args:
        loss: of a law whose means and factors are learned, on `border_rows`; on any others it is right on average, and
            the rarer its rows on the borders, the rougher.
    """
    law, (s, gamma) = loss.truth, (loss.s, loss.gamma)
    gates = law.posterior(loss.x_t, s, gamma).responsibilities
    change = loss.gauss_newton(loss.theta_of(law))
    errors, largest = {"mean": 0.0, "factor": 0.0}, 0.0
    places = [(k, mode) for k in range(law.subspaces) for mode in range(law.modes[k])]
    closed = separated_blocks(law, s, gamma)
    for gate, (k, mode) in zip(gates.T, places, strict=True):
        alone = ScoreLoss(_alone(law.subspace(k), mode), loss.x_t, s, gamma, weight=loss.weight * gate)
        at = torch.cat([loss.entries(name, k, mode) for name in errors])
        change[at[:, None], at] -= alone.gauss_newton(alone.theta_of(alone.truth))
        for name in errors:
            own, block = loss.entries(name, k, mode), closed[name, k, mode]
            if len(own):
                errors[name] = max(errors[name], relative_error(block + change[own][:, own], block))
                largest = max(largest, float(torch.linalg.matrix_norm(block, 2)))
    return BlockErrors(**errors, whole=float(torch.linalg.matrix_norm(change, 2)) / largest)


def _alone(part: Subspace, mode: int) -> MoLRMoG:
    one = torch.ones(1, dtype=torch.float64)
    alone = Subspace(1.0, part.basis, part.offset, part.tau, one, part.means[mode : mode + 1], (part.factors[mode],))
    return MoLRMoG.from_subspaces([alone])


def _gaussians(law: MoLRMoG, s: float, gamma: float) -> list[tuple[Tensor, Tensor]]:
    """Mean (D,) and Cholesky factor of the covariance (D, D) of every mode of the noised law."""
    found: list[tuple[Tensor, Tensor]] = []
    for k in range(law.subspaces):
        part = law.subspace(k)
        A = part.basis.double()
        noise = (s**2 * part.isotropic_tau("the error at the border") ** 2 + gamma**2) * torch.eye(
            law.dim, dtype=A.dtype, device=A.device
        )
        for mu, U in zip(part.means.double(), part.factors, strict=True):
            up = s * A @ U.double()
            found.append((s * (part.offset.double() + A @ mu), torch.linalg.cholesky(up @ up.T + noise)))
    return found


def _between(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], t: float) -> tuple[Tensor, Tensor]:
    """The Gaussian proportional to N_one^(1-t) N_other^t: precisions, and precisions times means, are averaged."""
    (m_i, L_i), (m_j, L_j) = one, other
    P_i, P_j = (1 - t) * torch.cholesky_inverse(L_i), t * torch.cholesky_inverse(L_j)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(P_i + P_j))
    return covariance @ (P_i @ m_i + P_j @ m_j), torch.linalg.cholesky(covariance)


def _log_density(x: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    white = torch.linalg.solve_triangular(root, (x - mean).T, upper=False)
    return -0.5 * white.square().sum(0) - root.diagonal().log().sum() - 0.5 * len(mean) * math.log(2 * math.pi)
