"""The curvature of the score-matching loss around a known truth: closed forms, printed forms, and how far they reach.

Laws of one subspace with A known, orthonormal factors (all variances 1) and tau = 0, as in the paper, at noise levels
with s^2 + gamma^2 = 1. `separation` is the distance between nearest means in data units.

| cells      | what is computed                                                                       |
| ---------- | -------------------------------------------------------------------------------------- |
| spectrum   | eigenvalues for two modes +mu, -mu with one U, learned as one, at every noise level    |
| blocks     | Gauss-Newton blocks of every mode against their closed forms, over the separation      |
| rows       | the same blocks on independent rows, over their number                                 |
| angle      | the U-block, exact and as printed, while mu turns away from the span of U               |
| radius     | how far from the truth the loss stays convex, at random and in the worst direction     |
| parameters | the spectrum when A, b, the weights and tau are learned too                            |
| large      | Lanczos on a law of thousands of parameters, against dense algebra on a small one      |

All Hessians are those of the law's own soft gates. Rows are `stratified_rows`, but for `rows`.

References:
    arXiv 2601.01475, section 6 (local strong convexity).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from molrmog.experiments.cells import report_progress, run_cells
from molrmog.experiments.curvature_page import write_report
from molrmog.mixture import MoLRMoG, Subspace
from molrmog.saving import write_atomically
from molrmog.theory.landscape import (
    basis_block,
    convex_radius,
    curvature,
    delta_factor_block,
    extreme_curvature,
    factor_block,
    horizontal,
    mean_block,
    relative_error,
    separated_blocks,
    symmetric_pair,
    worst_direction,
)
from molrmog.theory.score_loss import LEARNABLE, ScoreLoss, stratified_rows

Budget = Literal["smoke", "cpu", "gpu"]

_LATENT, _DIM = 4, 6  # d and D of the laws of one subspace
_FAR = 14.0  # a separation at which gates are hard


@dataclass(frozen=True)
class CurvatureBudget:
    """How much is spent.

    Attributes:
        gammas: noise levels of the spectrum and of the radius at two modes.
        separations: of the blocks.
        modes: n of the laws whose blocks are compared.
        radius: separations of the radius, by n; two modes at every gamma, more at gamma = 0.5.
        rows: of a loss at least.
        independent: numbers of independent rows.
        directions: random directions of a radius.
        turns: of the search for the worst direction.
        large: shape (D, K, d, n, r) of the large law.
    """

    gammas: Sequence[float]
    separations: Sequence[float]
    modes: Sequence[int]
    radius: dict[int, Sequence[float]]
    rows: int
    independent: Sequence[int]
    directions: int
    turns: int
    large: tuple[int, int, int, int, int]


_LEVELS = (0.2, 0.35, 0.5, 0.8)
_FULL: dict[str, Any] = {
    "gammas": _LEVELS,
    "separations": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16),
    "modes": (2, 4, 8),
    "large": (200, 3, 32, 2, 12),
}
BUDGETS = {
    "smoke": CurvatureBudget(
        gammas=(0.5,),
        separations=(2, 14),
        modes=(2, 4),
        radius={2: (3.0,)},
        rows=300,
        independent=(1000,),
        directions=2,
        turns=1,
        large=(20, 2, 4, 2, 2),
    ),
    "cpu": CurvatureBudget(
        **_FULL,
        radius={2: (1, 2, 3, 4, 6), 4: (2, 4, 8), 8: (4, 8)},
        rows=1000,
        independent=(1000, 10_000, 100_000),
        directions=3,
        turns=3,
    ),
    "gpu": CurvatureBudget(
        **_FULL,
        radius=dict.fromkeys((2, 4, 8), (1, 1.5, 2, 3, 4, 5, 6, 8, 10)),
        rows=4000,
        independent=(1000, 10_000, 100_000, 1_000_000),
        directions=16,
        turns=8,
    ),
}


def run_curvature(out: str | Path, budget: Budget = "cpu", seed: int = 0, workers: int = 1) -> Path:
    """Measure the curvature around known laws; the same call goes on where it stopped.

    Args:
        out: folder of the experiment: report.html, results.csv, settings.json, cells/.
        budget: "smoke" (seconds), "cpu" (minutes), or "gpu" (longer; more rows and directions, on the CPU as well).
        seed: of laws, rows and directions.
        workers: processes at a time, one thread each.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown budget, or a number out of range.
        RuntimeError: a cell failed; see `run_cells`.
    """
    if budget not in BUDGETS:
        raise ValueError(f"unknown budget {budget!r}: choose one of {', '.join(BUDGETS)}")
    if seed < 0 or workers < 1:
        raise ValueError(f"seed = {seed}, workers = {workers}: pass a seed >= 0 and at least one worker")
    out = Path(out)
    spent = BUDGETS[budget]
    cells = _grid(spent, seed)
    settings = {"budget": budget, "seed": seed, "spent": asdict(spent), "cells": cells}
    write_atomically(out / "settings.json", lambda part: part.write_text(json.dumps(settings, indent=2) + "\n"))
    results = run_cells(compute_cell, cells, out, workers=workers, title="curvature")
    records = {
        kind: [
            record for name, result in results.items() if cells[name]["kind"] == kind for record in result["records"]
        ]
        for kind in _CELLS
    }
    about = {
        "laws": f"d = {_LATENT}, D = {_DIM}, variances 1, tau = 0, s^2 + gamma^2 = 1",
        **asdict(spent),
        "command": f"molrmog reproduce curvature --budget {budget} --seed {seed}",
    }
    return write_report(out, records, about)


def _grid(spent: CurvatureBudget, seed: int) -> dict[str, dict[str, Any]]:
    """Name to settings of every cell, the longest first."""
    shared = {"seed": seed, "rows": spent.rows}
    cells: dict[str, dict[str, Any]] = {}
    search = {"directions": spent.directions, "turns": spent.turns}
    for modes in sorted(spent.radius, reverse=True):
        for gamma in spent.gammas if modes == 2 else (0.5,):
            for separation in spent.radius[modes]:
                where = {"modes": modes, "gamma": gamma, "separation": float(separation)}
                name = f"radius-{modes}-{gamma:g}-{separation:g}"
                cells[name] = {"kind": "radius", **where, **search, **shared}
    for modes in spent.modes:  # what overlap adds comes from few rows, so there are five times as many
        where = {"modes": modes, "separations": list(map(float, spent.separations)), "gammas": [0.2, 0.5, 0.8]}
        cells[f"blocks-{modes}"] = {"kind": "blocks", **where, "rows": 5 * spent.rows, "seed": seed}
    cells["spectrum"] = {"kind": "spectrum", "gammas": list(spent.gammas), **shared}
    cells["angle"] = {"kind": "angle", "degrees": [0, 15, 30, 45, 60, 75, 90], **shared}
    cells["parameters"] = {"kind": "parameters", "separations": [4.0, _FAR], **shared}
    cells["rows"] = {"kind": "rows", "numbers": list(spent.independent), **shared}
    cells["large"] = {"kind": "large", "law": list(spent.large), **shared}
    return cells


def compute_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One cell of the grid."""
    return {"records": _CELLS[settings["kind"]](settings, folder)}


def symmetric_law(separation: float, rank: int = 2, degrees: float = 45.0, seed: int = 0) -> MoLRMoG:
    """Modes of equal weight at +mu and -mu with one orthonormal U; mu at an angle to the span of U."""
    randn = _draws(seed)
    axes = torch.linalg.qr(randn(_LATENT, _LATENT)).Q
    U, angle = axes[:, :rank], math.radians(degrees)
    mu = separation / 2 * (math.cos(angle) * axes[:, 0] + math.sin(angle) * axes[:, rank])
    return _one_subspace(randn, torch.stack([mu, -mu]), [U, U], torch.ones(2, dtype=torch.float64))


def crossed_law(modes: int, separation: float, rank: int = 2, seed: int = 0) -> MoLRMoG:
    """Modes of uneven weight at both ends of modes / 2 axes, every one with an orthonormal factor of its own."""
    randn = _draws(seed)
    axes = torch.linalg.qr(randn(_LATENT, _LATENT)).Q[:, : modes // 2].T
    factors = [torch.linalg.qr(randn(_LATENT, rank)).Q for _ in range(modes)]
    means = separation / math.sqrt(2) * torch.cat([axes, -axes])
    return _one_subspace(randn, means, factors, (0.5 * randn(modes)).exp())


def _law(modes: int, separation: float, seed: int) -> MoLRMoG:
    return symmetric_law(separation, seed=seed) if modes == 2 else crossed_law(modes, separation, seed=seed)


def _draws(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def _one_subspace(randn: Any, means: Tensor, factors: Sequence[Tensor], weights: Tensor) -> MoLRMoG:
    basis = torch.linalg.qr(randn(_DIM, _LATENT)).Q
    part = Subspace(1.0, basis, basis.new_zeros(_DIM), 0.0, weights / weights.sum(), means, tuple(factors))
    return MoLRMoG.from_subspaces([part]).requires_grad_(False)


def _loss(law: MoLRMoG, gamma: float, rows: int, seed: int, learn: Sequence[str] = ("mean", "factor")) -> ScoreLoss:
    s = math.sqrt(1 - gamma**2)
    x, weight = stratified_rows(law, rows, s, gamma, torch.Generator().manual_seed(seed))
    return ScoreLoss(law, x, s, gamma, learn, weight=weight)


def block_errors(loss: ScoreLoss) -> dict[str, float]:
    """How far the Gauss-Newton matrix at the truth is from the closed forms of separated modes.

    Returns:
        mean and factor, the largest relative error of a block in any direction, over all modes; whole, the norm of
        everything that the closed forms lack, blocks between modes included, relative to the norm of the matrix.
    """
    G = loss.gauss_newton(loss.theta_of(loss.truth))
    closed = torch.zeros_like(G)
    errors = {"mean": 0.0, "factor": 0.0}
    for (name, k, mode), block in separated_blocks(loss.truth, loss.s, loss.gamma).items():
        at = loss.entries(name, k, mode)
        closed[at[:, None], at] = block
        errors[name] = max(errors[name], relative_error(G[at][:, at], block))
    whole = torch.linalg.matrix_norm(G - closed, 2) / torch.linalg.matrix_norm(G, 2)
    return {**errors, "whole": float(whole)}


def _spectrum(settings: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    law = symmetric_law(_FAR, seed=settings["seed"])
    U = law.subspace(0).factors[0]
    d, r = U.shape
    along = U @ U.T
    out = torch.kron(torch.eye(d, dtype=U.dtype) - along, torch.eye(r, dtype=U.dtype))
    for gamma in settings["gammas"]:
        loss = _loss(law, gamma, settings["rows"], settings["seed"])
        T = symmetric_pair(loss)
        G = T.T @ loss.gauss_newton(loss.theta_of(law)) @ T
        mean, factor = G[:d, :d], G[d:, d:]
        s2, g2 = loss.s**2, gamma**2
        groups = {  # the mean of the eigenvalues that are one in closed form
            "mean_along": (along @ mean).trace() / r,
            "mean_across": (mean - along @ mean).trace() / (d - r),
            "factor_in": (factor - out @ factor).trace() / (r * (r + 1) / 2),
            "factor_out": (out @ factor).trace() / (r * (d - r)),
        }
        closed = (s2, s2 / g2**2, 4 * s2**2, s2**2 * (s2 + 2 * g2) / g2**2)
        blocks = relative_error(mean, mean_block(U, loss.s, g2)), relative_error(factor, factor_block(U, loss.s, g2))
        whole = curvature(loss, within=T)
        records.append(
            {
                "gamma": gamma,
                **{name: float(value) for name, value in groups.items()},
                **{f"{name}_closed": value for name, value in zip(groups, closed, strict=True)},
                "error": max(blocks),
                "gauge": whole.gauge,
                "gauge_eigenvalue": float(torch.linalg.eigvalsh(factor)[0]),
                "smallest": whole.smallest,
                "largest": whole.largest,
                "kappa": whole.kappa,
            }
        )
    return records


def _blocks(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for gamma in settings["gammas"]:
        for separation in settings["separations"]:
            report_progress(folder, len(records) / len(settings["gammas"]) / len(settings["separations"]))
            loss = _loss(
                _law(settings["modes"], separation, settings["seed"]), gamma, settings["rows"], settings["seed"]
            )
            where = {"modes": settings["modes"], "gamma": gamma, "separation": separation}
            records.append({**where, **block_errors(loss)})
    return records


def _rows(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    law, gamma = symmetric_law(_FAR, seed=settings["seed"]), 0.5
    s = math.sqrt(1 - gamma**2)
    records: list[dict[str, Any]] = []
    for i, n in enumerate(settings["numbers"]):
        report_progress(folder, i / len(settings["numbers"]))
        x = law.sample(n, torch.Generator().manual_seed(settings["seed"]), s=s, gamma=gamma).x
        records.append({"rows": n, **block_errors(ScoreLoss(law, x, s, gamma))})
    return records


def _angle(settings: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    gamma = 0.5
    for degrees in settings["degrees"]:
        law = symmetric_law(_FAR, rank=1, degrees=degrees, seed=settings["seed"])
        loss = _loss(law, gamma, settings["rows"], settings["seed"])
        part = law.subspace(0)
        mu, U = part.means[0], part.factors[0]
        T = symmetric_pair(loss)[:, _LATENT:]
        found = T.T @ loss.gauss_newton(loss.theta_of(law)) @ T
        inner = loss.s**2 * U @ U.T + gamma**2 * torch.eye(_LATENT, dtype=U.dtype)
        blocks = {
            "measured": found,
            "exact": factor_block(U, loss.s, gamma**2),
            "printed": delta_factor_block(U, loss.s**2 * torch.outer(mu, mu), loss.s, gamma),
            "centred": delta_factor_block(U, inner, loss.s, gamma),
        }
        smallest = {name: float(torch.linalg.eigvalsh(block)[0]) for name, block in blocks.items()}
        records.append({"degrees": degrees, **smallest, "error": relative_error(found, blocks["exact"])})
    return records


def _radius(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    modes, gamma, separation, seed = (settings[key] for key in ("modes", "gamma", "separation", "seed"))
    law = _law(modes, separation, seed)
    loss = _loss(law, gamma, settings["rows"], seed)
    fresh = _loss(law, gamma, 4 * settings["rows"], seed + 1)
    truth = curvature(loss)
    free = horizontal(loss, loss.theta_of(law))
    drawn = free @ _draws(seed)(free.shape[1], settings["directions"])
    random = list((drawn / drawn.norm(dim=0)).T)
    axes = [sign * truth.vectors[:, i] for i in (0, -1) for sign in (1, -1)]
    radii: list[float] = []
    for direction in random + axes:
        report_progress(folder, 0.5 * len(radii) / (len(random) + len(axes)))
        radii.append(convex_radius(loss, direction, start=gamma**2, tolerance=0.1))
    nearest = min(range(len(radii)), key=radii.__getitem__)
    start = (random + axes)[nearest]
    worst, radius = worst_direction(loss, start, steps=settings["turns"], start=radii[nearest], tolerance=0.1)
    # A direction found on few rows fits these rows, so what counts is measured on others.
    checked = [convex_radius(fresh, one, start=radius, tolerance=0.05) for one in (start, worst)]
    worst = worst if checked[1] < checked[0] else start
    return [
        {
            "modes": modes,
            "gamma": gamma,
            "separation": separation,
            "parameters": len(worst),
            "gauge": truth.gauge,
            "smallest": truth.smallest,
            "largest": truth.largest,
            "random": radii[: len(random)],
            "along_smallest": min(radii[len(random) : len(random) + 2]),
            "along_largest": min(radii[len(random) + 2 :]),
            "worst": min(checked),
            "worst_on_own_rows": radius,
            "worst_in_means": float(worst[loss.slices["mean"]].square().sum()),
        }
    ]


def _parameters(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    seed, gamma = settings["seed"], 0.5
    records: list[dict[str, Any]] = []
    weights = ("subspace_logits", "mode_logits")
    learned = [("mean", "factor"), ("basis", "mean", "factor"), ("basis", "offset", "mean", "factor")]
    learned += [("mean", "factor", *weights), ("mean", "factor", "tau"), LEARNABLE]
    for separation in settings["separations"]:
        # MoLRMoG.random takes the distance of means from the offset; two at random lie root 2 times that apart.
        shape: dict[str, Any] = {
            "dim": 8,
            "latent_dims": (3, 2),
            "modes": (2, 2),
            "rank": 2,
            "noise": 0.2,
            "offset": 1.0,
        }
        law = MoLRMoG.random(**shape, separation=separation / math.sqrt(2), seed=seed, dtype=torch.float64)
        for learn in learned:
            report_progress(folder, len(records) / len(learned) / len(settings["separations"]))
            loss = _loss(law.requires_grad_(False), gamma, settings["rows"], seed, learn)
            found = curvature(loss, matrix="gauss-newton")
            logits = [loss.entries(name) for name in weights if name in learn]
            share = float(found.vectors[torch.cat(logits), 0].square().sum()) if logits else None
            records.append(
                {
                    "separation": separation,
                    "learn": list(loss.learn),
                    "parameters": len(loss.theta_of(law)),
                    "gauge": found.gauge,
                    "smallest": found.smallest,
                    "largest": found.largest,
                    "kappa": found.kappa,
                    "weakest_in_weights": share,
                    "basis_error": _basis_error(loss) if learn == LEARNABLE else None,
                }
            )
    return records


def _basis_error(loss: ScoreLoss) -> float:
    """Relative error of the closed form of a basis's curvature out of its span, over all subspaces."""
    law = loss.truth
    G = loss.gauss_newton(loss.theta_of(law))
    errors: list[float] = []
    for k, d in enumerate(law.latent_dims):
        at = loss.entries("basis", k)
        outside = torch.linalg.qr(law.basis[:, k, :d], mode="complete").Q[:, d:]
        lift = torch.kron(outside.contiguous(), torch.eye(d, dtype=outside.dtype))  # (D d, (D - d) d)
        closed = torch.kron(torch.eye(law.dim - d, dtype=outside.dtype), basis_block(law, k, loss.s, loss.gamma))
        errors.append(relative_error(lift.T @ G[at][:, at] @ lift, closed))
    return max(errors)


def _large(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    gamma, seed = 0.5, settings["seed"]
    for D, K, d, n, r in ([12, 2, 4, 2, 2], settings["law"]):
        shape: dict[str, Any] = {"dim": D, "latent_dims": [d] * K, "modes": [n] * K, "rank": r, "noise": 0.1}
        law = MoLRMoG.random(**shape, separation=_FAR, seed=seed, dtype=torch.float64).requires_grad_(False)
        loss = _loss(law, gamma, 0, seed)
        found = extreme_curvature(loss, tolerance=1e-2)
        report_progress(folder, 0.1 if not records else 1.0)
        closed = [torch.linalg.eigvalsh(block) for block in separated_blocks(law, loss.s, gamma).values()]
        spectrum = torch.cat(closed).sort().values
        P = len(loss.theta_of(law))
        dense = curvature(loss, matrix="gauss-newton") if P <= 200 else None
        records.append(
            {
                "law": f"D = {D}, K = {K}, d = {d}, n = {n}, r = {r}",
                "parameters": P,
                "rows": len(loss.x_t),
                "gauge": found.gauge,
                "smallest": found.smallest,
                "largest": found.largest,
                "kappa": found.kappa,
                "dense_smallest": None if dense is None else dense.smallest,
                "dense_largest": None if dense is None else dense.largest,
                "closed_smallest": float(spectrum[found.gauge]),
                "closed_largest": float(spectrum[-1]),
            }
        )
    return records


_CELLS = {
    "spectrum": _spectrum,
    "blocks": _blocks,
    "rows": _rows,
    "angle": _angle,
    "radius": _radius,
    "parameters": _parameters,
    "large": _large,
}
