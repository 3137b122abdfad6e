"""How fast a descent contracts towards its limit, and from how far.

One step of gradient descent near a minimum with Hessian H multiplies the error by I - eta H. Turns of U leave the loss
as it is, H is zero along them, and they are no error: let alpha and L' be the least and the largest eigenvalue across.
The step that contracts both alike, and the contraction,

    eta = 2 / (alpha + L'),      r = (kappa - 1) / (kappa + 1),      kappa = L' / alpha

hold in the limit: what is measured is the slope of log |error| on a tail, after the directions in between have died
away. The end of largest curvature changes its sign at every step, the other keeps it, so distances that are no
Euclidean norm of theta zigzag with period two, and the fit has a term for it:

    log e_k = const + k log r + z (-1)^k

A step makes log e smaller by -log r, about 2 / kappa: for large kappa r is near 1 whatever one measures, and the
relative error of log r is the one that tells.

References:
    Polyak, "Introduction to optimization", 1987, section 1.4 (step and rate).
    arXiv 2601.01475, theorems on local strong convexity and on linear convergence; the step is not printed there.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from molrmog.laws.base import normal
from molrmog.laws.molrmog import MoLRMoG
from molrmog.theory.descent import Loss, off_gauge
from molrmog.theory.distances import law_distance

Point = TypeVar("Point")


@dataclass(frozen=True)
class Rate:
    """What a Hessian says about gradient descent.

    Attributes:
        alpha: least eigenvalue across the gauge directions.
        largest: L', the largest.
    """

    alpha: float
    largest: float

    @property
    def kappa(self) -> float:
        """Condition number L' / alpha."""
        return self.largest / self.alpha

    @property
    def step(self) -> float:
        """The step 2 / (alpha + L')."""
        return 2 / (self.alpha + self.largest)

    @property
    def contraction(self) -> float:
        """Error after a step by error before it, (kappa - 1) / (kappa + 1)."""
        return (self.largest - self.alpha) / (self.largest + self.alpha)


def predicted_rate(hessian: Tensor, gauge: Tensor) -> Rate:
    """The rate of gradient descent near a minimum.

    Args:
        hessian: at the minimum, with shape (P, P).
        gauge: orthonormal directions along which nothing changes, with shape (P, G).

    Raises:
        ValueError: the Hessian is not positive across the gauge directions.

    References:
        arXiv 2601.01475, section 4 (linear convergence).
    """
    Q = off_gauge(gauge)
    eigenvalues = torch.linalg.eigvalsh(Q.T @ hessian @ Q)
    rate = Rate(float(eigenvalues[0]), float(eigenvalues[-1]))
    if rate.alpha <= 0:
        raise ValueError(f"the least eigenvalue is {rate.alpha:.2e}: take the Hessian at a minimum, and all its gauge")
    return rate


@dataclass(frozen=True)
class Trajectory:
    """Distances from the limit along a descent.

    Attributes:
        steps: iterations after which was measured.
        distances: at each of them, in data units.
        seconds: CPU seconds that the iterations took so far, those of measuring left out.
    """

    steps: tuple[int, ...]
    distances: tuple[float, ...]
    seconds: tuple[float, ...]

    def reached(self, distance: float) -> tuple[int, float] | None:
        """Iterations and CPU seconds to a distance, None where it was not reached."""
        for step, own, seconds in zip(self.steps, self.distances, self.seconds, strict=True):
            if own <= distance:
                return step, seconds
        return None


def follow(
    iterates: Iterator[Point],
    distance: Callable[[Point], float],
    *,
    until: float,
    max_steps: int,
    every: int = 1,
) -> Trajectory:
    """Follow a descent until it is near enough, lost, or out of steps.

    Args:
        iterates: see `molrmog.theory.descent`; the first one is the start.
        distance: of an iterate from the limit.
        until: distance at which to stop.
        max_steps: iterations at most.
        every: two iterations in a row are measured every so many, which shows a zigzag.

    Returns:
        The distances; the last one is not finite where the descent diverged.
    """
    steps: list[int] = []
    distances: list[float] = []
    seconds: list[float] = []
    spent = 0.0
    for step in range(max_steps + 1):
        before = time.process_time()
        point = next(iterates)
        spent += time.process_time() - before
        if step % every in (0, 1) or step == max_steps:
            own = distance(point)
            steps.append(step)
            distances.append(own)
            seconds.append(spent)
            if own <= until or not math.isfinite(own):
                break
    return Trajectory(tuple(steps), tuple(distances), tuple(seconds))


@dataclass(frozen=True)
class Contraction:
    """The slope of log distance on the tail of a trajectory.

    Attributes:
        rate: distance after an iteration by distance before it.
        first: iteration at which the tail begins; what comes before is the transient.
        last: its last iteration.
        early: the rate on the first half of the tail.
        late: the rate on the second half; far from `early`, the tail still holds a transient.
    """

    rate: float
    first: int
    last: int
    early: float
    late: float


def measured_contraction(trajectory: Trajectory, share: float = 1 / 3) -> Contraction:
    """Contraction per iteration on the tail.

    Args:
        trajectory: of a descent that came near its limit.
        share: of the way down, in orders of magnitude, that counts as the tail.

    Raises:
        ValueError: fewer than six distances on the tail, or the descent did not come down.

    Example:
        >>> ks = range(40)
        >>> found = measured_contraction(Trajectory(tuple(ks), tuple(0.5**k for k in ks), (0.0,) * 40))
        >>> round(found.rate, 6), found.first, found.last
        (0.5, 27, 39)
    """
    steps, logs = np.array(trajectory.steps), np.log(trajectory.distances)
    if not (len(logs) and logs[-1] < logs[0]):
        raise ValueError("the descent did not come nearer to its limit: take a smaller step or a nearer start")
    bound = logs[-1] + share * (logs[0] - logs[-1])
    first = int(np.flatnonzero(logs > bound)[-1]) + 1
    steps, logs = steps[first:], logs[first:]
    if len(logs) < 6:
        raise ValueError(f"{len(logs)} distances on the tail: go on to a smaller distance, or measure more often")
    middle = len(logs) // 2
    rate, early, late = (_slope(steps[at], logs[at]) for at in (slice(None), slice(middle), slice(middle, None)))
    return Contraction(rate, int(steps[0]), int(steps[-1]), early, late)


def _slope(steps: np.ndarray, logs: np.ndarray) -> float:
    """The rate r in log e_k = const + k log r + z (-1)^k, by least squares."""
    terms = np.stack([np.ones(len(steps)), steps - steps.mean(), (-1.0) ** steps], 1)
    return float(np.exp(np.linalg.lstsq(terms, logs, rcond=None)[0][1]))


def separation(law: MoLRMoG) -> float:
    """Smallest distance between the means of two modes in R^D, in data units; infinite for a single mode."""
    parts = [law.subspace(k) for k in range(law.subspaces)]
    means = torch.cat([part.offset + part.means @ part.basis.T for part in parts])
    return min(torch.pdist(means).tolist(), default=math.inf)


@torch.no_grad()
def perturbed(law: MoLRMoG, size: float, generator: torch.Generator) -> MoLRMoG:
    """A law whose means and factors are off in random directions.

    Args:
        law: the truth.
        size: every mean moves by `size` x separation / 2, so that at 1 it may reach half-way to its neighbour; every
            factor by `size` x its own Frobenius norm.
        generator: of the directions.

    Raises:
        ValueError: the law has a single mode, which has no neighbour.
    """
    if sum(law.modes) < 2:
        raise ValueError("the law has a single mode: perturbations are measured by the separation of two or more")
    moved = copy.deepcopy(law)
    reach = size * separation(law) / 2
    for k, (d, ranks) in enumerate(zip(law.latent_dims, law.ranks, strict=True)):
        for mode, r in enumerate(ranks):
            v, V = (normal(shape, generator, like=law.mean) for shape in ((d,), (d, r)))
            moved.mean[k, mode, :d] += reach * v / v.norm()
            if r:
                moved.factor[k, mode, :d, :r] += size * law.factor[k, mode].norm() * V / V.norm()
    return moved


def distance_from(loss: Loss, limit: MoLRMoG) -> Callable[[Tensor], float]:
    """How far parameters are from a law, see `law_distance`; infinite where they are not finite."""
    return lambda theta: law_distance(loss.law_of(theta), limit).total if bool(theta.isfinite().all()) else math.inf


@torch.no_grad()
def descend_together(loss: Loss, starts: Tensor, step: float, steps: int) -> Tensor:
    """Gradient descent from many starts at once.

    Args:
        loss: to minimise; `torch.func` must see through it.
        starts: with shape (B, P).
        step: eta.
        steps: of each.

    Returns:
        Where each ends, with shape (B, P); not a number where it ran a thousand times as far as any start.
    """
    gradients = vmap(grad(loss))
    theta, bound = starts, 1e3 * float(starts.norm(dim=1).max())
    lost = torch.zeros(len(starts), 1, dtype=torch.bool, device=starts.device)
    for _ in range(steps):
        moved = theta - step * gradients(theta)
        lost = lost | ~(moved.norm(dim=1, keepdim=True) < bound)
        theta = torch.where(lost, theta, moved)
    return torch.where(lost, torch.nan, theta)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a success rate."""
    z, p = 1.959964, successes / trials
    middle, half = p + z**2 / (2 * trials), z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return (middle - half) / (1 + z**2 / trials), (middle + half) / (1 + z**2 / trials)
