"""How much the modes of a law overlap at one noise level, and what that does to the curvature of its loss.

    xi_ij(x) = r_i(x) r_j(x) <= 1/4  (i != j),        eps_overlap = max_i sum_{j != i} E[xi_ij]

with the gates r of the law at x ~ p_t. They add up to one, so no pairs are needed for the sum over j:

    sum_{j != i} xi_ij = r_i (1 - r_i),               eps_overlap = max_i E[ r_i (1 - r_i) ] <= 1/4

Gates depend on x_t / s and sigma = gamma / s alone, so overlap is a function of sigma, whatever the schedule. It grows
with noise towards max_i w_i (1 - w_i): with enough noise every mixture overlaps, and no figure means anything without
its sigma. The gates may be those of all modes, or of subspaces (sums over their modes); for the modes of one subspace,
measure `denoisers.mog.latent_law` of it.

Curvature. Split the Hessian of the score-matching loss at the truth, with respect to (mu, U), into what modes give that
never meet (block-diagonal, in closed form, see `theory.landscape`), and the rest:

    H = H_sep + dH,      lambda_min(H) >= alpha - |dH|,      alpha = lambda_min(H_sep)           (Weyl)

off the gauge directions, and the paper bounds |dH| by C' eps_overlap. At the truth the Hessian is a Gauss-Newton
matrix: it is never negative. It vanishes where two modes coincide, and, overlap or none, along a column of U whose
variance does, since the curvature there is of the order of that variance. At a distance from the truth nothing keeps it
from being negative, so "strong convexity is lost" is a statement about a ball, and its radius belongs to it.

References:
    arXiv 2601.01475, the extension to overlapping modes ("bounded overlap").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from molrmog.laws.base import Law, normal
from molrmog.theory.landscape import curvature, horizontal, separated_blocks
from molrmog.theory.score_loss import ScoreLoss

APART = 1e-3
"""The xi below which arXiv 2601.01475 calls modes separated."""

_ROWS = 4096  # whose gates are held at once


@dataclass(frozen=True)
class Overlap:
    """Overlap of C modes, or C subspaces, as means over rows.

    Attributes:
        pairs: E[xi_ij], zero on the diagonal, with shape (C, C).
        pairs_error: standard errors of `pairs`, with shape (C, C).
        each: E[r_i (1 - r_i)], what i shares with all others, with shape (C,).
        each_error: standard errors of `each`, with shape (C,).
        apart: share of the rows on which every xi_ij is below `APART`.
        rows: how many rows that know nothing of each other; those made of one clean row count as one.
    """

    pairs: Tensor
    pairs_error: Tensor
    each: Tensor
    each_error: Tensor
    apart: float
    rows: int

    @property
    def eps(self) -> float:
        """eps_overlap, the largest of `each`."""
        return float(self.each.max())

    @property
    def largest_pair(self) -> float:
        """Largest E[xi_ij]."""
        return float(self.pairs.max())

    @property
    def mean_pair(self) -> float:
        """Mean E[xi_ij] over the pairs; 0 where there are none."""
        C = len(self.each)
        return float(self.pairs.sum()) / max(C * (C - 1), 1)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Interval for eps_overlap that holds whichever i is largest: of all `each` at once, by Bonferroni.

        It rests on the normal limit of means over independent rows, of which there should be many. Where modes hardly
        meet, E[xi] comes from few of them, and an interval that reaches 0 is to be read as "not seen on so many rows".

        Args:
            confidence: probability that all C means lie within theirs, in (0, 1).

        Raises:
            ValueError: confidence is out of range.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence = {confidence}: pass a probability between 0 and 1")
        reach = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * len(self.each))) * self.each_error
        return max(0.0, float((self.each - reach).max())), float((self.each + reach).max())


@torch.no_grad()
def gate_overlap(gates: Tensor, clean: Tensor | None = None) -> Overlap:
    """Overlap of gates on given rows.

    Args:
        gates: r_i of each row, rows adding up to one, with shape (B, C), B >= 2.
        clean: number of the clean row that each row was made of, with shape (B,), where some were noised several times.
            These are no independent rows: standard errors are those of sums over the rows of one clean row.

    Returns:
        Means over the rows, in float64.

    Raises:
        ValueError: gates or clean have another shape, rows do not add up to one, or there is one clean row alone.

    Example:
        >>> found = gate_overlap(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        >>> found.eps, found.largest_pair, found.apart
        (0.125, 0.125, 0.5)
    """
    if gates.ndim != 2 or len(gates) < 2 or not gates.shape[1]:
        raise ValueError(f"gates have shape {tuple(gates.shape)}: pass two rows or more, (B, C)")
    if not bool(((gates.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("gates are responsibilities, whose rows add up to one: pass those of law.posterior")
    B, C = gates.shape
    if clean is not None and clean.shape != (B,):
        raise ValueError(f"clean has shape {tuple(clean.shape)} for {B} rows: pass the number of each one's clean row")
    names, row = (torch.arange(B) if clean is None else clean).unique(return_inverse=True)
    rows = len(names)
    if rows < 2:
        raise ValueError("all rows were made of one clean row: pass two clean rows or more")
    r, row = gates.double(), row.to(gates.device)
    means, errors = r.new_empty(2, C, C + 1)
    for i in range(C):
        xi = r[:, i, None] * r  # (B, C)
        xi[:, i] = 0.0
        xi = torch.cat([xi, xi.sum(1, keepdim=True)], 1)  # not r (1 - r), which float32 rounds
        means[i] = xi.mean(0)
        sums = r.new_zeros(rows, C + 1).index_add_(0, row, xi - means[i])  # over the rows of one clean row
        errors[i] = (sums.square().sum(0) * rows / (rows - 1)).sqrt() / B
    two = r.topk(min(2, C), dim=1).values
    apart = float((two[:, 0] * two[:, 1] < APART).double().mean()) if C > 1 else 1.0
    return Overlap(means[:, :C], errors[:, :C], means[:, C], errors[:, C], apart=apart, rows=rows)


@torch.no_grad()
def measure_overlap(
    law: Law,
    x: Tensor,
    s: float,
    gamma: float,
    *,
    of: Literal["modes", "subspaces"] = "modes",
    clean: Tensor | None = None,
) -> Overlap:
    """Overlap of a law's modes, or of its subspaces, on noised rows.

    Args:
        law: any law over R^D.
        x: rows of x_t with shape (B, D): fresh ones of the law, `law.sample(n, s=s, gamma=gamma).x`, for the figure of
            the law; real rows, `noised(rows, s, gamma)`, for that of the data.
        s: signal scale.
        gamma: noise standard deviation, in data units.
        of: the modes of all subspaces, or the subspaces.
        clean: number of the clean row that each row was made of, see `gate_overlap`.

    Raises:
        ValueError: `of` is neither, or x does not fit the law.

    Example:
        >>> from molrmog.laws.molrmog import MoLRMoG
        >>> law = MoLRMoG.random(dim=16, latent_dims=(3, 3), modes=(2, 2), rank=1, noise=0.05, seed=0)
        >>> x = law.sample(2000, torch.Generator().manual_seed(0), s=0.6, gamma=0.8).x
        >>> found = measure_overlap(law, x, 0.6, 0.8)
        >>> low, high = found.interval()
        >>> 0 < low < found.eps < high < 0.25
        True

    References:
        arXiv 2601.01475, xi_ij and eps_overlap.
    """
    if of not in ("modes", "subspaces"):
        raise ValueError(f"of = {of!r}: choose modes or subspaces")
    gates = torch.cat([law.posterior(rows, s, gamma).responsibilities for rows in x.split(_ROWS)])
    if of == "subspaces":
        sums = gates.new_zeros(len(gates), law.subspaces)
        gates = sums.index_add_(1, law.component_of.to(gates.device), gates)
    return gate_overlap(gates, clean)


def noised(x: Tensor, s: float, gamma: float, generator: torch.Generator | None = None) -> Tensor:
    """Rows x_t = s x_0 + gamma eps with shape (B, D).

    Args:
        x: clean rows x_0, with shape (B, D).
        s: signal scale.
        gamma: noise standard deviation, in data units.
        generator: source of randomness, for reproducibility.
    """
    return s * x + gamma * normal(tuple(x.shape), generator, like=x)


def levels(sigma: float) -> tuple[float, float]:
    """The s and gamma with gamma / s = sigma and s^2 + gamma^2 = 1, as of every variance-preserving schedule."""
    s = 1 / math.hypot(1.0, sigma)
    return s, sigma * s


@dataclass(frozen=True)
class SplitCurvature:
    """Curvature of a score-matching loss at the truth, off the gauge directions, split by overlap.

    Attributes:
        smallest: lambda_min(H).
        largest: lambda_max(H).
        separated_smallest: alpha, lambda_min(H_sep).
        separated_largest: lambda_max(H_sep).
        change: spectral norm of dH = H - H_sep.
        weakest: unit eigenvector of `smallest` in theta, with shape (P,).
    """

    smallest: float
    largest: float
    separated_smallest: float
    separated_largest: float
    change: float
    weakest: Tensor

    @property
    def weyl(self) -> float:
        """The lower bound alpha - |dH| of `smallest`."""
        return self.separated_smallest - self.change


def separated_hessian(loss: ScoreLoss) -> Tensor:
    """H_sep: the Hessian at the truth if every row told its mode, as modes that never meet do, with shape (P, P).

    Args:
        loss: of a law whose means and factors are learned.

    Raises:
        ValueError: something else is learned.

    References:
        arXiv 2601.01475, the blocks H_mumu and H_UU of separated modes, here for every U.
    """
    if loss.learn != ("mean", "factor"):
        raise ValueError(f"learn = {loss.learn}: blocks of separated modes are known for mean and factor")
    theta = loss.theta_of(loss.truth)
    H = theta.new_zeros(len(theta), len(theta))
    for where, block in separated_blocks(loss.truth, loss.s, loss.gamma).items():
        at = loss.entries(*where)
        H[at[:, None], at] = block.to(H)
    return H


def split_curvature(loss: ScoreLoss) -> SplitCurvature:
    """Curvature at the truth, and how far it is from that of separated modes.

    Args:
        loss: of a law whose means and factors are learned. On `score_loss.stratified_rows` H_sep is without sampling
            error, so that |dH| comes from overlap alone.
    """
    theta = loss.theta_of(loss.truth)
    free = horizontal(loss, theta)
    H, separated = (free.T @ matrix @ free for matrix in (loss.gauss_newton(theta), separated_hessian(loss)))
    values, vectors = torch.linalg.eigh(H)
    alone, change = torch.linalg.eigvalsh(separated), torch.linalg.eigvalsh(H - separated)
    return SplitCurvature(
        smallest=float(values[0]),
        largest=float(values[-1]),
        separated_smallest=float(alone[0]),
        separated_largest=float(alone[-1]),
        change=float(change.abs().max()),
        weakest=free @ vectors[:, 0],
    )


def smallest_near(loss: ScoreLoss, moves: Tensor) -> Tensor:
    """Smallest eigenvalue, off the gauge there, of the Hessian at points near the truth, with shape (M,).

    Args:
        loss: whose Hessian is meant.
        moves: of theta from the truth, with shape (M, P); their lengths are the radius.
    """
    points = loss.theta_of(loss.truth) + moves
    return torch.tensor([curvature(loss, theta).smallest for theta in points], dtype=moves.dtype)
