"""The cells of the curvature experiment: laws of which everything is known, and what is measured on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molrmog.experiments.cells import report_progress
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.seeds import torch_generator
from molrmog.theory.border import block_errors, border_rows
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

LATENT, DIM = 4, 6  # d and D of the laws of one subspace
FAR = 14.0  # a separation at which gates are hard


def compute_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One cell of the grid."""
    return {"records": CELLS[settings["kind"]](settings, folder)}


def symmetric_law(separation: float, rank: int = 2, degrees: float = 45.0, seed: int = 0) -> MoLRMoG:
    """Modes of equal weight at +mu and -mu with one orthonormal U; mu at an angle to the span of U."""
    randn = _draws(seed)
    axes = torch.linalg.qr(randn(LATENT, LATENT)).Q
    U, angle = axes[:, :rank], math.radians(degrees)
    mu = separation / 2 * (math.cos(angle) * axes[:, 0] + math.sin(angle) * axes[:, rank])
    return _one_subspace(randn, torch.stack([mu, -mu]), [U, U], torch.ones(2, dtype=torch.float64))


def crossed_law(modes: int, separation: float, rank: int = 2, seed: int = 0) -> MoLRMoG:
    """Modes of uneven weight at both ends of modes / 2 axes, every one with an orthonormal factor of its own."""
    randn = _draws(seed)
    axes = torch.linalg.qr(randn(LATENT, LATENT)).Q[:, : modes // 2].T
    factors = [torch.linalg.qr(randn(LATENT, rank)).Q for _ in range(modes)]
    means = separation / math.sqrt(2) * torch.cat([axes, -axes])
    return _one_subspace(randn, means, factors, (0.5 * randn(modes)).exp())


def two_subspaces(separation: float, seed: int = 0) -> MoLRMoG:
    """K = 2 subspaces of dimensions 3 and 2 in R^8, two modes each; the nearest two of all means so far apart."""
    shape: dict[str, Any] = {"dim": 8, "latent_dims": (3, 2), "modes": (2, 2), "rank": 2, "noise": 0.2}
    law = MoLRMoG.random(**shape, separation=4.0, offset=1.0, seed=seed, dtype=torch.float64).requires_grad_(False)
    parts = [law.subspace(k) for k in range(2)]
    apart = torch.pdist(torch.cat([part.offset + part.means @ part.basis.T for part in parts]))
    for means in (law.mean, law.offset):
        means.mul_(separation / apart.min())
    return law


def angled_law(modes: int, separation: float, seed: int) -> MoLRMoG:
    """As `crossed_law`; two modes are symmetric and, rotations aside, differ by the angle of mu to U: seed x 22.5."""
    if modes > 2:
        return crossed_law(modes, separation, seed=seed)
    return symmetric_law(separation, degrees=22.5 * (seed % 5), seed=seed)


def _law(modes: int, separation: float, seed: int) -> MoLRMoG:
    return symmetric_law(separation, seed=seed) if modes == 2 else crossed_law(modes, separation, seed=seed)


def _draws(seed: int) -> Any:
    generator = torch_generator(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def _one_subspace(randn: Any, means: Tensor, factors: Sequence[Tensor], weights: Tensor) -> MoLRMoG:
    basis = torch.linalg.qr(randn(DIM, LATENT)).Q
    part = Subspace(1.0, basis, basis.new_zeros(DIM), 0.0, weights / weights.sum(), means, tuple(factors))
    return MoLRMoG.from_subspaces([part]).requires_grad_(False)


def _loss(law: MoLRMoG, gamma: float, rows: int, seed: int, learn: Sequence[str] = ("mean", "factor")) -> ScoreLoss:
    s = math.sqrt(1 - gamma**2)
    x, weight = stratified_rows(law, rows, s, gamma, torch_generator(seed))
    return ScoreLoss(law, x, s, gamma, learn, weight=weight)


def _spectrum(settings: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    law = symmetric_law(FAR, seed=settings["seed"])
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
    modes, gamma, seed = (settings[key] for key in ("modes", "gamma", "seed"))
    s = math.sqrt(1 - gamma**2)
    draws = list(itertools.product(settings["separations"], range(settings["laws"]), range(settings["draws"])))
    records: list[dict[str, Any]] = []
    for separation, law_number, draw in draws:
        report_progress(folder, len(records) / len(draws))
        law = angled_law(modes, separation, seed + law_number)
        generator = torch_generator(1000 * (seed + draw) + law_number)
        x, weight = border_rows(law, settings["rows"], s, gamma, generator)
        errors = block_errors(ScoreLoss(law, x, s, gamma, weight=weight))
        where = {"modes": modes, "gamma": gamma, "separation": separation, "law": law_number, "draw": draw}
        records.append({**where, **asdict(errors)})
    return records


def _rows(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    law, gamma = symmetric_law(FAR, seed=settings["seed"]), 0.5
    s = math.sqrt(1 - gamma**2)
    records: list[dict[str, Any]] = []
    draws = list(itertools.product(settings["numbers"], range(settings["draws"])))
    for n, draw in draws:
        report_progress(folder, len(records) / len(draws))
        x = law.sample(n, torch_generator(1000 * settings["seed"] + draw), s=s, gamma=gamma).x
        loss = ScoreLoss(law, x, s, gamma)
        G = loss.gauss_newton(loss.theta_of(law))
        errors = {"mean": 0.0, "factor": 0.0}
        for (name, k, mode), block in separated_blocks(law, s, gamma).items():
            at = loss.entries(name, k, mode)
            errors[name] = max(errors[name], relative_error(G[at][:, at], block))
        records.append({"rows": n, "draw": draw, **errors})
    return records


def _angle(settings: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    gamma = 0.5
    for degrees in settings["degrees"]:
        law = symmetric_law(FAR, rank=1, degrees=degrees, seed=settings["seed"])
        loss = _loss(law, gamma, settings["rows"], settings["seed"])
        part = law.subspace(0)
        mu, U = part.means[0], part.factors[0]
        T = symmetric_pair(loss)[:, LATENT:]
        found = T.T @ loss.gauss_newton(loss.theta_of(law)) @ T
        inner = loss.s**2 * U @ U.T + gamma**2 * torch.eye(LATENT, dtype=U.dtype)
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


def _shift(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    seed, modes = settings["seed"], settings["modes"]
    records: list[dict[str, Any]] = []
    for gamma, separation in settings["where"]:
        report_progress(folder, len(records) / len(settings["where"]))
        law = _law(modes, separation, seed)
        loss = _loss(law, gamma, 4 * settings["rows"], seed + 1)
        direction = torch.zeros_like(loss.theta_of(law))
        direction[loss.entries("mean", 0, 0)] = torch.linalg.svd(law.subspace(0).factors[0]).U[:, -1]
        radius = convex_radius(loss, direction, start=gamma**2, tolerance=0.02)
        records.append({"modes": modes, "gamma": gamma, "separation": separation, "shift": radius})
    return records


def _parameters(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    seed, gamma = settings["seed"], 0.5
    records: list[dict[str, Any]] = []
    weights = ("subspace_logits", "mode_logits")
    learned = [("mean", "factor"), ("basis", "mean", "factor"), ("basis", "offset", "mean", "factor")]
    learned += [("mean", "factor", *weights), ("mean", "factor", "tau"), LEARNABLE]
    s = math.sqrt(1 - gamma**2)
    for separation, law_number in itertools.product(settings["separations"], range(settings["laws"])):
        law = two_subspaces(separation, seed + law_number)
        for learn in learned:
            report_progress(folder, len(records) / len(learned) / len(settings["separations"]) / settings["laws"])
            loss = _loss(law, gamma, settings["rows"], seed + law_number, learn)
            if "mode_logits" in learn:  # weights are seen on borders alone
                generator = torch_generator(seed + law_number)
                x, weight = border_rows(law, 4 * settings["rows"], s, gamma, generator)
                loss = ScoreLoss(law, x, s, gamma, learn, weight=weight)
            found = curvature(loss, matrix="gauss-newton")
            logits = [loss.entries(name) for name in weights if name in learn]
            share = float(found.vectors[torch.cat(logits), 0].square().sum()) if logits else None
            alone = _loss(law, gamma, settings["rows"], seed + law_number, ("basis",)) if learn == LEARNABLE else None
            records.append(
                {
                    "separation": separation,
                    "law": law_number,
                    "learn": list(loss.learn),
                    "parameters": len(loss.theta_of(law)),
                    "gauge": found.gauge,
                    "smallest": found.smallest,
                    "largest": found.largest,
                    "kappa": found.kappa,
                    "weakest_in_weights": share,
                    "basis_error": None if alone is None else _basis_error(alone),
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
        law = MoLRMoG.random(**shape, separation=FAR, seed=seed, dtype=torch.float64).requires_grad_(False)
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


CELLS = {
    "spectrum": _spectrum,
    "blocks": _blocks,
    "rows": _rows,
    "angle": _angle,
    "radius": _radius,
    "shift": _shift,
    "parameters": _parameters,
    "large": _large,
}
