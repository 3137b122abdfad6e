"""The cells of the estimation experiment: laws that are known, scores learned from their rows, what those lack.

Laws are drawn at random in the span of their subspaces, R^q, and embedded into R^D by a random isometry, so that D
changes and the angles between subspaces do not. Rows and errors live in R^D. One noise level stands for all where not
said otherwise: gamma = 0.5, s^2 + gamma^2 = 1.

| method        | learns                          | by                                                            |
| ------------- | ------------------------------- | ------------------------------------------------------------- |
| known         | weights, mu, U                  | EM, A, b and tau held at the truth                            |
| known-tau     | weights, mu, U, tau             | EM, A and b held                                              |
| learned       | everything                      | EM without prior                                              |
| learned-prior | everything                      | EM with the library's prior                                   |
| dsm           | weights, mu, U                  | score matching at that noise level, in R^q                    |
| flat          | as many modes, full covariances | EM without prior, no subspaces                                |
| kernel        | nothing                         | the rows themselves, see `molrmog.theory.empirical`           |
| mlp           | a small network                 | score matching at that noise level, stopped at its best step  |

All but the last two start at the truth, so that what is measured is estimation and not a search; one sweep counts what
other starts end at. `known` and `dsm` are functions of the coordinates in R^q when tau is known and the same for all
subspaces: on rows that agree there, their errors agree in every D to rounding. The measurement on independent rows
shows that the code in R^D has it, too.

References:
    arXiv 2601.01475, section 4 (estimation error).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from molrmog.denoisers.mlp import MLPDenoiser
from molrmog.experiments.cells import report_progress
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit
from molrmog.learning.starts import mog_start
from molrmog.metrics import Stopwatch
from molrmog.seeds import torch_generator, torch_seed
from molrmog.theory.empirical import EmpiricalDenoiser
from molrmog.theory.estimation import (
    GapBound,
    asymptotic_error,
    block_gaps,
    embedded,
    embedded_rows,
    embedding,
    least_loss,
    row_losses,
    score_error,
)
from molrmog.theory.known_bases import fit_modes, fit_scores

GAMMA = 0.5
LEVELS = (0.2, 0.5, 0.8)
"""Noise levels whose errors add up to the total, each weighed by gamma^2, as in the loss of the noise eps."""
_NEAR = 1e-3  # nats per row that a start may end below the one at the truth, and count as the same optimum


@dataclass(frozen=True)
class LawShape:
    """A law to draw from, all subspaces of one shape, see `MoLRMoG.random`.

    Attributes:
        subspaces: K.
        modes: n of every subspace.
        latent_dim: d of every subspace.
        rank: r of every mode.
        noise: tau.
    """

    subspaces: int = 3
    modes: int = 2
    latent_dim: int = 4
    rank: int = 2
    noise: float = 0.1

    def draw(self, seed: int) -> MoLRMoG:
        """The law of a seed over R^q, q = K d, in float64."""
        K, d = self.subspaces, self.latent_dim
        shape: dict[str, Any] = {"latent_dims": [d] * K, "modes": [self.modes] * K, "rank": self.rank}
        law = MoLRMoG.random(K * d, **shape, noise=self.noise, seed=seed, dtype=torch.float64)
        return law.requires_grad_(False)


def compute_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One seed of one sweep; every record holds a method, where it was measured, and the error there."""
    sweeps = {"n": _n, "dim": _dim, "pair": _pair, "shape": _shape, "starts": _starts, "dsm": _dsm, "gap": _gap}
    sweeps |= {"peers": _peers, "few": _few}
    return {"records": sweeps[settings["sweep"]](settings, folder)}


class _Space:
    """A law embedded into R^D, and rows of it; seeds make those of one seed and D the same everywhere."""

    def __init__(self, inner: MoLRMoG, dim: int, seed: int) -> None:
        self.inner, self.dim = inner, dim
        self.Q = embedding(inner.dim, dim, seed)
        self.law = embedded(inner, self.Q)
        self.generator = torch_generator(1000 * seed + dim)

    def rows(self, y: Tensor) -> Tensor:
        """Rows in R^D that are y (n, q) in the span."""
        return embedded_rows(y, self.Q, self.inner.noise_floor, self.generator)


def s_of(gamma: float) -> float:
    """The signal scale at a noise level, variance preserving."""
    return math.sqrt(1 - gamma * gamma)


def _found(
    denoiser: Any, space: _Space, fresh: Tensor, gamma: float = GAMMA, noise: Tensor | None = None
) -> dict[str, Any]:
    error = score_error(denoiser, space.law, fresh, s_of(gamma), gamma, seed=1, noise=noise)
    return {"error": error.mean, "standard_error": error.standard_error}


def _learned(start: MoLRMoG, x: Tensor, prior_rows: float | None = 0.0, **options: Any) -> MoLRMoG:
    """EM of everything from `start`; modes without rows are dropped, which the small n know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed: dict[str, Any] = {"tol": 1e-8, "max_iter": 100, **options}
        return cast(MoLRMoG, fit(x, start=start, prior_rows=prior_rows, **fixed))


def _n(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Errors against n at three noise levels; tr(F^+ G)."""
    inner = LawShape(**settings["law"]).draw(settings["seed"])
    space = _Space(inner, settings["dim"], settings["seed"])
    draw = torch_generator(settings["seed"])
    asymptotic = asymptotic_error(inner, inner.sample(4 * settings["fresh"], draw).x, s_of(GAMMA), GAMMA)
    records: list[dict[str, Any]] = [{"method": "asymptotic", "D": space.dim, "gamma": GAMMA, "error": asymptotic}]
    for i, n in enumerate(settings["rows"]):
        x, fresh = (space.rows(inner.sample(rows, draw).x) for rows in (n, settings["fresh"]))
        fits = {
            "known": fit_modes(space.law, x).law,
            "known-tau": fit_modes(space.law, x, learn_tau=True).law,
            "learned": _learned(space.law, x),
        }
        if n <= 4096:
            fits["learned-prior"] = _learned(space.law, x, prior_rows=None)
        for method, law in fits.items():
            where = {"method": method, "D": space.dim, "n": n, "modes_left": sum(law.modes)}
            records += [where | {"gamma": gamma} | _found(law, space, fresh, gamma) for gamma in LEVELS]
        report_progress(folder, (i + 1) / len(settings["rows"]))
    return records


def _dim(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Errors against D on rows that agree in the span."""
    seed, n = settings["seed"], settings["rows"]
    inner = LawShape(**settings["law"]).draw(seed)
    draw = torch_generator(seed)
    y, y_fresh = inner.sample(n, draw).x, inner.sample(settings["fresh"], draw).x
    eps = torch.randn(y_fresh.shape, generator=draw, dtype=y.dtype)
    records: list[dict[str, Any]] = []
    for i, dim in enumerate(settings["dims"]):
        space = _Space(inner, dim, seed)
        x, fresh = space.rows(y), space.rows(y_fresh)
        noise = embedded_rows(eps, space.Q, 1.0, space.generator)
        with_tau = fit_modes(space.law, x, learn_tau=True).law
        fits = {"known": fit_modes(space.law, x).law, "known-tau": with_tau, "learned": _learned(space.law, x)}
        for method, law in fits.items():
            records.append(
                {"method": method, "D": dim, "n": n, "gamma": GAMMA, **_found(law, space, fresh, noise=noise)}
            )
        for gamma in LEVELS:
            off = _off_span(with_tau, space, fresh, gamma)
            records.append({"method": "tau off the span", "D": dim, "n": n, "gamma": gamma, "error": off})
        report_progress(folder, (i + 1) / len(settings["dims"]))
    return records


def _pair(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Errors with A known at two D, on rows, fresh rows and noise that are drawn anew every time."""
    seed, n = settings["seed"], settings["rows"]
    inner = LawShape(**settings["law"]).draw(seed)
    draw = torch_generator(seed)
    spaces = [_Space(inner, dim, seed) for dim in settings["compared"]]
    records: list[dict[str, Any]] = []
    for repeat in range(settings["repeats"]):
        for space in spaces:
            x, fresh = (space.rows(inner.sample(rows, draw).x) for rows in (n, settings["fresh"] // 2))
            noise = torch.randn(fresh.shape, generator=space.generator, dtype=fresh.dtype)
            found = _found(fit_modes(space.law, x).law, space, fresh, noise=noise)
            where = {"method": "known, independent rows", "D": space.dim, "n": n, "gamma": GAMMA, "repeat": repeat}
            records.append(where | found)
        report_progress(folder, (repeat + 1) / settings["repeats"])
    return records


@torch.no_grad()
def _off_span(law: MoLRMoG, space: _Space, fresh: Tensor, gamma: float) -> float:
    """The part of the error off the span of all subspaces, where only tau can be wrong."""
    xt = s_of(gamma) * fresh + gamma * torch.randn(fresh.shape, generator=space.generator, dtype=fresh.dtype)
    apart = law.score(xt, s_of(gamma), gamma) - space.law.score(xt, s_of(gamma), gamma)
    return float((apart.square().sum(1) - (apart @ space.Q).square().sum(1)).mean())


def _shape(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Errors with A known against K, n_k and d_k, one at a time, and against the noise level."""
    seed, n = settings["seed"], settings["rows"]
    draw = torch_generator(seed)
    records: list[dict[str, Any]] = []
    settled = LawShape(**settings["law"])
    sweeps = [(name, value) for name, values in settings["shapes"].items() for value in values]
    for i, (name, value) in enumerate([*sweeps, ("gamma", 0)]):
        shape = settled if name == "gamma" else replace(settled, **{name: value})
        space = _Space(shape.draw(seed), settings["dim"], seed)
        x, fresh = (space.rows(space.inner.sample(rows, draw).x) for rows in (n, settings["fresh"]))
        law = fit_modes(space.law, x).law
        for gamma in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if name == "gamma" else (GAMMA,):
            where = {"method": "known", "D": space.dim, "n": n, "varied": name, "gamma": gamma}
            numbers = {"K": shape.subspaces, "n_k": shape.modes, "d_k": shape.latent_dim}
            records.append(where | numbers | _found(law, space, fresh, gamma))
        report_progress(folder, (i + 1) / (1 + len(sweeps)))
    return records


def _starts(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Which starts end at the optimum next to the truth, and what the likeliest of them is worth."""
    seed, n = settings["seed"], settings["rows"]
    shape = LawShape(**settings["law"])
    space = _Space(shape.draw(seed), settings["dim"], seed)
    draw = torch_generator(seed)
    x, fresh = (space.rows(space.inner.sample(rows, draw).x) for rows in (n, settings["fresh"]))
    best = fit_modes(space.law, x)
    known = [
        (start, fit_modes(_start(space.law, x, shape, start, one), x, max_iter=300))
        for start in ("k-means", "random")
        for one in range(4)
    ]
    runs: list[tuple[str, MoLRMoG]] = [("known, truth", best.law)]
    runs += [(f"known, {start}", found.law) for start, found in known]
    report_progress(folder, 0.5)
    runs.append(("learned, truth", _learned(space.law, x)))
    options: dict[str, Any] = {"subspaces": shape.subspaces, "latent_dim": shape.latent_dim, "modes": shape.modes}
    for one in range(4):
        law = cast(MoLRMoG, fit(x, **options, noise="isotropic", rank=shape.rank, seed=one, max_iter=200, tol=1e-6))
        runs.append(("learned, clustered", law))
    truth = {run.split(",")[0]: float(law.log_prob(x).mean()) for run, law in runs if run.endswith("truth")}
    records: list[dict[str, Any]] = []
    for run, law in runs:
        likelihood = float(law.log_prob(x).mean())
        at = {"method": run, "D": space.dim, "n": n, "gamma": GAMMA, "log_likelihood": likelihood}
        lacking = truth[run.split(",")[0]] - likelihood
        records.append(at | {"lacking": lacking, "reached": lacking < _NEAR} | _found(law, space, fresh))
    return records


def _start(truth: MoLRMoG, x: Tensor, shape: LawShape, start: str, seed: int) -> MoLRMoG:
    """The true subspaces with modes that start on the rows nearest to each."""
    parts = [truth.subspace(k) for k in range(truth.subspaces)]
    latents = torch.stack([(x - part.offset) @ part.basis for part in parts])  # (K, n, d)
    nearest = latents.square().sum(2).argmax(0)  # all offsets are 0: the most energy inside is the least outside
    for k, part in enumerate(parts):
        own = latents[k, nearest == k]
        found = mog_start(own, shape.latent_dim, shape.modes, cast(Any, start), seed, rank=shape.rank).subspace(0)
        parts[k] = replace(
            part,
            weight=len(own) / len(x),
            mode_weights=found.mode_weights.to(x),
            means=found.means,
            factors=found.factors,
        )
    return MoLRMoG.from_subspaces(parts).requires_grad_(False)


def _dsm(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Score matching beside EM on the same rows in R^q, and what each costs."""
    inner = LawShape(**settings["law"]).draw(settings["seed"])
    space = _Space(inner, inner.dim, settings["seed"])
    draw = torch_generator(settings["seed"])
    fresh = space.rows(inner.sample(4 * settings["fresh"], draw).x)
    records: list[dict[str, Any]] = []
    for i, n in enumerate(settings["rows"]):
        x = space.rows(inner.sample(n, draw).x)
        for method in ("known", "dsm"):
            with Stopwatch() as watch:
                if method == "known":
                    law = fit_modes(space.law, x).law
                else:
                    law = fit_scores(space.law, x, s_of(GAMMA), GAMMA, draws=8, max_iter=60)
            where = {"method": method, "D": space.dim, "n": n, "gamma": GAMMA, "cpu_seconds": watch.cpu}
            records.append(where | _found(law, space, fresh))
        report_progress(folder, (i + 1) / len(settings["rows"]))
    return records


def _gap(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """E |L - L_n| at the truth, the largest over laws around it, and at EM's fit; the bound's shape."""
    seed, s = settings["seed"], s_of(GAMMA)
    inner = LawShape(**settings["law"]).draw(seed)
    draw = torch_generator(seed)
    y = inner.sample(settings["pool"], draw).x
    laws = [inner] + [_moved(inner, draw) for _ in range(7)]
    records: list[dict[str, Any]] = []

    def add(gaps: Tensor, n: int, gamma: float) -> None:
        bound = GapBound.of(inner, y, s_of(gamma), gamma)
        named = {"R": bound.radius, "B_mu": bound.mean_radius, "constant": bound.constant}
        at = {"D": inner.dim, "n": n, "gamma": gamma}
        records.append({"method": "gap at the truth", **at, "error": float(gaps[0].mean())})
        records.append({"method": "largest gap of 8 laws", **at, "error": float(gaps.amax(0).mean())})
        records.append({"method": "shape of the bound", **at, **named, "error": bound.at(n)})

    losses = torch.stack([row_losses(law, y, s, GAMMA, seed=seed) for law in laws])
    sizes = [2**i for i in range(6, 40) if 2**i <= settings["pool"] // 8]
    for n in sizes:
        add(block_gaps(losses, n).abs(), n, GAMMA)
    report_progress(folder, 0.3)
    part, n_low = y[: settings["pool"] // 4], min(1024, settings["pool"] // 64)
    for gamma in settings["levels"]:
        low = torch.stack([row_losses(law, part, s_of(gamma), gamma, seed=seed) for law in laws])
        add(block_gaps(low, n_low).abs(), n_low, gamma)
    report_progress(folder, 0.6)
    floor = least_loss(inner, y, s, GAMMA, seed=seed)
    fresh = y[: 4 * settings["fresh"]]
    for n in sizes:
        for one in range(settings["draws"]):
            rows = inner.sample(n, draw).x
            records += _gap_at_fit(inner, rows, fresh, floor.mean, settings["noises"] // 2, one)
    return records


def _moved(law: MoLRMoG, generator: torch.Generator) -> MoLRMoG:
    """A law nearby: means moved by 0.2, factors by 20%."""
    near = MoLRMoG.from_subspaces([law.subspace(k) for k in range(law.subspaces)]).requires_grad_(False)
    near.mean.add_(0.2 * torch.randn(law.mean.shape, generator=generator, dtype=law.mean.dtype))
    near.factor.mul_(1 + 0.2 * torch.randn(law.factor.shape, generator=generator, dtype=law.factor.dtype))
    return near


def _gap_at_fit(law: MoLRMoG, x: Tensor, fresh: Tensor, least: float, pairs: int, draw: int) -> list[dict[str, Any]]:
    """L_n(theta_n) - L(theta_n) for EM's theta_n, and its two parts, on the same rows and noises."""
    s, own = s_of(GAMMA), fit_modes(law, x).law
    fitted, true = (row_losses(one, x, s, GAMMA, pairs=pairs, seed=2 + draw).mean() for one in (own, law))
    added = float(fitted - true) - score_error(own, law, fresh, s, GAMMA, seed=1).mean
    at = {"D": law.dim, "n": len(x), "gamma": GAMMA, "repeat": draw}
    gaps = {
        "gap at the fit": float(true) - least + added,
        "at the truth, the same rows": float(true) - least,
        "the fit's own part": added,
    }
    return [{"method": method, **at, "error": abs(gap), "signed": gap} for method, gap in gaps.items()]


def _few(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Errors with A known at small n in R^q, over many draws of rows, and the scale they are measured by."""
    seed = settings["seed"]
    inner = LawShape(**settings["law"]).draw(seed)
    space = _Space(inner, inner.dim, seed)
    draw = torch_generator(seed)
    fresh = space.rows(inner.sample(settings["fresh"], draw).x)
    records: list[dict[str, Any]] = [{"method": "scale", "D": space.dim, "gamma": GAMMA, "error": _scale(space, fresh)}]
    for i, n in enumerate(settings["rows"]):
        for one in range(settings["draws"]):
            law = fit_modes(space.law, space.rows(inner.sample(n, draw).x)).law
            where = {"method": "known", "D": space.dim, "n": n, "gamma": GAMMA, "repeat": one}
            records.append(where | _found(law, space, fresh))
        report_progress(folder, (i + 1) / len(settings["rows"]))
    return records


def _peers(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """All methods on the same rows of one D."""
    seed, dim = settings["seed"], settings["dim"]
    inner = LawShape(**settings["law"]).draw(seed)
    space = _Space(inner, dim, seed)
    draw = torch_generator(seed)
    fresh = space.rows(inner.sample(settings["fresh"] // 2, draw).x)
    held_out = space.rows(inner.sample(settings["fresh"] // 4, draw).x)
    records: list[dict[str, Any]] = [{"method": "scale", "D": dim, "gamma": GAMMA, "error": _scale(space, fresh)}]
    for i, n in enumerate(settings["rows"]):
        x = space.rows(inner.sample(n, draw).x)
        fits: dict[str, Any] = {"known": fit_modes(space.law, x).law, "kernel": EmpiricalDenoiser(x)}
        if n * dim <= 2**23:
            fits["learned"] = _learned(space.law, x)
        if dim <= 128 and n > 64:
            floor = 0.5 * inner.noise_floor
            fits["flat"] = _learned(flat_law(space.law), x, noise_floor=floor, tol=1e-6, max_iter=30)
        if dim <= 512 and n > 64:
            fits["mlp"] = _mlp(x, space, held_out, settings["steps"], seed)
        for method, denoiser in fits.items():
            records.append({"method": method, "D": dim, "n": n, "gamma": GAMMA, **_found(denoiser, space, fresh)})
        report_progress(folder, (i + 1) / len(settings["rows"]))
    return records


@torch.no_grad()
def _scale(space: _Space, fresh: Tensor) -> float:
    """E || s* + x / v ||^2: the error of a score that knows the noise and no subspace, the same in every D."""
    s = s_of(GAMMA)
    v = s * s * space.inner.noise_floor**2 + GAMMA * GAMMA
    xt = s * fresh + GAMMA * torch.randn(fresh.shape, generator=space.generator, dtype=fresh.dtype)
    return float((space.law.score(xt, s, GAMMA) + xt / v).square().sum(1).mean())


def flat_law(law: MoLRMoG) -> MoLRMoG:
    """The same density as a flat mixture: one subspace, all of R^D, with every mode in it.

    Args:
        law: whose tau is the same for all subspaces.
    """
    parts = [law.subspace(k) for k in range(law.subspaces)]
    axes = parts[0].basis.new_zeros(law.dim, law.dim).fill_diagonal_(1.0)
    factors = [part.basis @ U for part in parts for U in part.factors]
    flat = Subspace(
        weight=1.0,
        basis=axes,
        offset=axes.new_zeros(law.dim),
        tau=parts[0].tau,
        mode_weights=torch.cat([part.weight * part.mode_weights for part in parts]),
        means=torch.cat([part.offset + part.means @ part.basis.T for part in parts]),
        factors=tuple(torch.cat([U, axes[:, U.shape[1] :] * 0], 1) for U in factors),  # room for full rank
    )
    return MoLRMoG.from_subspaces([flat]).requires_grad_(False)


def _mlp(x: Tensor, space: _Space, held_out: Tensor, steps: int, seed: int) -> MLPDenoiser:
    """A small network trained at one noise level in float32, as it was when best on fresh rows (which favours it)."""
    s, best = s_of(GAMMA), math.inf
    rows, draw = x.float(), torch_generator(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed))
        network = MLPDenoiser(space.dim, width=128, depth=2, sigma_data=float(rows.square().mean().sqrt()))
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        x0 = rows[torch.randint(len(rows), (256,), generator=draw)]
        xt = s * x0 + GAMMA * torch.randn(x0.shape, generator=draw)
        loss = (network.denoise(xt, s, GAMMA) - x0).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            error = score_error(network, space.law, held_out.float(), s, GAMMA).mean
            if error < best:
                best, kept = error, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network.double()
