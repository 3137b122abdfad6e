"""The cells of the convergence experiment: rates, methods and basins of laws that are known.

Two losses over rows that stay fixed, so that a step is a deterministic map:

    population   rows whose modes have exact shares, means and covariances (`stratified_rows`), targets the truth's own
                 score: the minimum is the truth, the Hessian there is that of the population but for the gates
    empirical    fewer rows of the truth, each noised once, targets -(x_t - s x_0) / gamma^2: minimum by Newton
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from molrmog.experiments.cells import report_progress
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.starts import mog_start
from molrmog.seeds import torch_generator
from molrmog.theory.convergence import (
    Trajectory,
    descend_together,
    distance_from,
    follow,
    measured_contraction,
    perturbed,
    predicted_rate,
    separation,
)
from molrmog.theory.descent import (
    Loss,
    SymmetricPair,
    adam,
    expectation_maximisation,
    gauss_newton_descent,
    gradient_descent,
    minimiser,
    preconditioned_descent,
)
from molrmog.theory.distances import law_distance
from molrmog.theory.score_loss import ScoreLoss, stratified_rows

LAWS = {
    "tied": "two modes ±μ, tied",
    "pair": "two modes, free",
    "four": "four modes",
    "two-by-two": "two subspaces of two modes",
}
ERRORS = (1e-2, 1e-4, 1e-6)  # of the distance of the start
STARTS = ("random", "k-means", "em")
RATE_START = 0.1  # size of the perturbation that rates and methods start from
_NEAR = 0.02  # of half the separation: so near, the limit counts as found
_EM_STEPS, _EM_LIMIT_STEPS, _DAMPED_STEPS = 100, 300, 40

Point = TypeVar("Point")


def true_law(name: str) -> MoLRMoG:
    """The law of a name in `LAWS`, in float64."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def part(
        means: Sequence[Sequence[float]], deviations: Sequence[Sequence[float]], weights: Sequence[float]
    ) -> Subspace:
        mu = torch.tensor(means, dtype=torch.float64)
        d = mu.shape[1]
        spans = [torch.linalg.qr(normal(d, len(own))).Q for own in deviations]
        return Subspace(
            weight=1.0,
            basis=torch.linalg.qr(normal(16, d)).Q,
            offset=torch.zeros(16, dtype=torch.float64),
            tau=0.0,
            mode_weights=torch.tensor(weights, dtype=torch.float64),
            means=mu,
            factors=tuple(V * torch.tensor(own, dtype=V.dtype) for V, own in zip(spans, deviations, strict=True)),
        )

    if name in ("tied", "pair"):
        two = part([[2.0, 0.0, 2.0, 0.0], [-2.0, 0.0, -2.0, 0.0]], [[1.0, 1.0]], [0.5, 0.5])
        U = torch.eye(4, dtype=torch.float64)[:, :2]  # orthonormal, at 45 degrees to mu
        parts = [replace(two, factors=(U, U))]
    elif name == "four":
        means = [[3.2, 3.2, 1.0, 0.0], [-3.2, 3.2, -1.0, 1.6], [-0.6, -3.2, 3.2, -1.6], [0.6, -1.9, -3.8, 0.0]]
        parts = [part(means, [[1.2, 0.8], [1.0, 0.7], [1.1, 0.9], [0.9, 0.7]], [0.35, 0.28, 0.21, 0.16])]
    else:
        parts = [
            part([[3.0, 0.0, 1.0], [-3.0, 1.0, 0.0]], [[1.2, 0.8], [0.9, 0.7]], [0.6, 0.4]),
            part([[0.0, 3.0, 1.0], [1.0, -3.0, 0.0]], [[1.0, 0.8], [1.1, 0.7]], [0.55, 0.45]),
        ]
    return MoLRMoG.from_subspaces(parts).requires_grad_(False)


@dataclass(frozen=True)
class Problem:
    """A loss, its minimum, and the step and rate of gradient descent there."""

    truth: MoLRMoG
    x_t: Tensor
    s: float
    gamma: float
    weight: Tensor | None
    loss: Loss
    limit: Tensor

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Problem:
        """Draw the rows of a cell and find the minimum."""
        truth, gamma = true_law(settings["law"]), settings["gamma"]
        s = math.sqrt(1 - gamma**2)
        draw = torch_generator(settings["seed"])
        if settings["loss"] == "population":
            x_t, weight = stratified_rows(truth, settings["rows"], s, gamma, draw)
            target = None
        else:
            x_0 = truth.sample(settings["rows"], draw).x
            noise = torch.randn(x_0.shape, generator=draw, dtype=x_0.dtype)
            x_t, weight, target = s * x_0 + gamma * noise, None, -noise / gamma
        free = ScoreLoss(truth, x_t, s, gamma, target=target, weight=weight)
        loss = SymmetricPair(free, truth) if settings["law"] == "tied" else free
        theta = loss.theta_of(truth)
        limit = theta if target is None else minimiser(loss, theta)
        return cls(truth, x_t, s, gamma, weight, loss, limit)

    @property
    def near(self) -> float:
        """Distance from the limit at which it counts as found, in data units."""
        return _NEAR * separation(self.truth) / 2

    @property
    def limit_law(self) -> MoLRMoG:
        """The law at the minimum."""
        return self.loss.law_of(self.limit)


def compute_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The rate, the methods, their limits, or the basin of one law at one noise level."""
    compute: Callable[[dict[str, Any], Problem, Path], dict[str, Any]] = {
        "rate": _rate,
        "methods": _methods,
        "limits": _limits,
        "basin": _basin,
        "damped-basin": _damped_basin,
    }[settings["kind"]]
    return compute(settings, Problem.of(settings), folder)


def _start(problem: Problem, size: float, seed: int) -> MoLRMoG:
    """The law at the minimum, perturbed; where modes are tied they stay so."""
    moved = perturbed(problem.limit_law, size, torch_generator(seed))
    return problem.loss.law_of(problem.loss.theta_of(moved))


def _em(problem: Problem, law: MoLRMoG) -> Iterator[MoLRMoG]:
    return expectation_maximisation(law, problem.x_t, problem.s, problem.gamma, problem.weight)


def _rate(settings: dict[str, Any], problem: Problem, folder: Path) -> dict[str, Any]:
    loss, limit = problem.loss, problem.limit
    rate = predicted_rate(loss.hessian(limit), loss.gauge(limit))
    gates = problem.truth.posterior(problem.x_t, problem.s, problem.gamma).responsibilities
    weight = torch.full_like(gates[:, 0], 1 / len(gates)) if problem.weight is None else problem.weight
    limit_law = problem.limit_law
    start = loss.theta_of(_start(problem, RATE_START, settings["seed"] + 1))
    distance = distance_from(loss, limit_law)
    trajectory = follow(
        gradient_descent(loss, start, rate.step),
        distance,
        until=1e-10 * distance(start),
        max_steps=math.ceil(14 * rate.kappa) + 100,
        every=max(1, round(rate.kappa / 16)),
    )
    report_progress(folder, 0.99)
    found = measured_contraction(trajectory)
    kept = slice(None, None, max(1, len(trajectory.steps) // 150))
    return {
        "alpha": rate.alpha,
        "largest": rate.largest,
        "kappa": rate.kappa,
        "predicted": rate.contraction,
        "separated_kappa": 1 / problem.gamma**4,
        "measured": found.rate,
        "early": found.early,
        "late": found.late,
        "first": found.first,
        "last": found.last,
        "overlap": float(weight @ (gates * (1 - gates)).sum(1)),
        "limit_from_truth": law_distance(limit_law, problem.truth).total,
        "steps": trajectory.steps[kept],
        "distances": trajectory.distances[kept],
    }


def _methods(settings: dict[str, Any], problem: Problem, folder: Path) -> dict[str, Any]:
    loss, limit, limit_law = problem.loss, problem.limit, problem.limit_law
    rate = predicted_rate(loss.hessian(limit), loss.gauge(limit))
    start_law = _start(problem, RATE_START, settings["seed"] + 1)
    start = loss.theta_of(start_law)
    distance = distance_from(loss, limit_law)
    until = ERRORS[-1] * distance(start)

    descents = {
        "gradient descent": (gradient_descent(loss, start, rate.step), math.ceil(10 * rate.kappa) + 100),
        "preconditioned at the limit": (preconditioned_descent(loss, start, loss.gauss_newton(limit)), 100),
        "Gauss-Newton": (gauss_newton_descent(loss, start), 100),
        **{f"Adam, {lr:g}": (adam(loss, start, lr), 1000) for lr in settings["learning_rates"]},
    }
    found: dict[str, Any] = {}
    for i, (name, (iterates, steps)) in enumerate(descents.items()):
        report_progress(folder, i / (len(descents) + 1))
        found[name] = _summary(follow(iterates, distance, until=until, max_steps=steps), distance(start))
    em_limit = _after(_em(problem, problem.truth), _EM_LIMIT_STEPS)
    own = law_distance(start_law, em_limit).total
    trajectory = follow(
        _em(problem, start_law), lambda law: law_distance(law, em_limit).total, until=ERRORS[-1] * own, max_steps=300
    )
    found["EM"] = _summary(trajectory, own)
    return {
        "kappa": rate.kappa,
        "methods": found,
        "limit_from_truth": law_distance(limit_law, problem.truth).total,
        "em_limit_from_truth": law_distance(em_limit, problem.truth).total,
    }


def _limits(settings: dict[str, Any], problem: Problem, folder: Path) -> dict[str, Any]:
    """Where the loss and EM lead from the truth, draw by draw of the rows: distances of both from the truth."""
    minima: list[float] = []
    em_limits: list[float] = []
    for i in range(settings["draws"]):
        report_progress(folder, i / settings["draws"])
        one = Problem.of({**settings, "seed": settings["seed"] + i}) if i else problem
        minima.append(law_distance(one.limit_law, one.truth).total)
        em_limits.append(law_distance(_after(_em(one, one.truth), _EM_LIMIT_STEPS), one.truth).total)
    return {"minimum_from_truth": minima, "em_limit_from_truth": em_limits}


def _after(iterates: Iterator[Point], steps: int) -> Point:
    return next(islice(iterates, steps, None))


def _summary(trajectory: Trajectory, start: float) -> dict[str, Any]:
    reached = {f"{error:g}": trajectory.reached(error * start) for error in ERRORS}
    kept = slice(None, None, max(1, len(trajectory.steps) // 150))
    return {
        "reached": reached,
        "steps": trajectory.steps[kept],
        "relative": [distance / start for distance in trajectory.distances[kept]],
    }


def _basin(settings: dict[str, Any], problem: Problem, folder: Path) -> dict[str, Any]:
    """How many starts of each size and kind end at the limit, by gradient descent and by EM."""
    loss, laws = problem.loss, _starts(settings, problem)
    rate = predicted_rate(loss.hessian(problem.limit), loss.gauge(problem.limit))
    thetas = torch.stack([loss.theta_of(law) for group in laws.values() for law in group])
    ends = descend_together(loss, thetas, rate.step, math.ceil(3 * rate.kappa) + 50)
    report_progress(folder, 0.6)
    distance = distance_from(loss, problem.limit_law)
    found = torch.tensor([distance(end) <= problem.near for end in ends]).view(len(laws), -1)
    result: dict[str, Any] = {"gradient descent": dict(zip(laws, found.sum(1).tolist(), strict=True))}
    if settings["law"] != "tied":
        limit = _after(_em(problem, problem.truth), _EM_STEPS)
        result["EM"] = {
            name: sum(
                _finds(_em(problem, law), lambda law: law_distance(law, limit).total, problem.near, _EM_STEPS)
                for law in group
            )
            for name, group in laws.items()
        }
    return {"kappa": rate.kappa, "half_separation": separation(problem.truth) / 2, "found": result}


def _damped_basin(settings: dict[str, Any], problem: Problem, folder: Path) -> dict[str, Any]:
    """The perturbed starts by damped Gauss-Newton steps, which never raise the loss: whether the step is to blame."""
    loss, laws = problem.loss, _perturbed_starts(settings, problem)
    distance = distance_from(loss, problem.limit_law)
    found: dict[str, int] = {}
    for i, (name, group) in enumerate(laws.items()):
        report_progress(folder, i / len(laws))
        descents = (gauss_newton_descent(loss, loss.theta_of(law)) for law in group)
        found[name] = sum(_finds(descent, distance, problem.near, _DAMPED_STEPS) for descent in descents)
    return {"found": {"Gauss-Newton": found}}


def _starts(settings: dict[str, Any], problem: Problem) -> dict[str, list[MoLRMoG]]:
    """The laws to start from, by size of the perturbation and by kind; tied modes have the sizes alone."""
    laws = _perturbed_starts(settings, problem)
    if settings["law"] != "tied":
        for kind in STARTS:
            laws[kind] = [mode_start(problem.truth, kind, settings["start_rows"], seed) for seed in _seeds(settings)]
    return laws


def _perturbed_starts(settings: dict[str, Any], problem: Problem) -> dict[str, list[MoLRMoG]]:
    return {f"{size:g}": [_start(problem, size, seed) for seed in _seeds(settings)] for size in settings["sizes"]}


def _seeds(settings: dict[str, Any]) -> range:
    return range(settings["seed"], settings["seed"] + settings["starts"])


def _finds(iterates: Iterator[Point], distance: Callable[[Point], float], near: float, steps: int) -> bool:
    return follow(iterates, distance, until=near, max_steps=steps, every=5).distances[-1] <= near


def mode_start(truth: MoLRMoG, kind: str, rows: int, seed: int) -> MoLRMoG:
    """The truth with the means and factors of a start on fresh rows of its one subspace.

    Weights are known and stay, so the modes of a start are put in the order of theirs.

    Args:
        truth: with one subspace, its modes by falling weight.
        kind: "random", "k-means" or "em", see `mog_start`.
        rows: how many.
        seed: of rows and start.
    """
    h = truth.sample(rows, torch_generator(seed)).x @ truth.basis[:, 0]  # (N, d)
    d, n, r = h.shape[1], truth.modes[0], truth.ranks[0][0]
    part = mog_start(h, d, n, cast(Any, kind), seed, rank=r).subspace(0)
    law = copy.deepcopy(truth)
    with torch.no_grad():
        for mode, own in enumerate(part.mode_weights.argsort(descending=True, stable=True).tolist()):
            law.mean[0, mode] = part.means[own]
            law.factor[0, mode] = part.factors[own]
    return law
