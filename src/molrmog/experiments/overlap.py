"""How much modes overlap, in laws at random and in laws of real latents, and what that costs in curvature.

| part      | laws                                                            | measured                             |
| --------- | --------------------------------------------------------------- | ------------------------------------ |
| random    | `MoLRMoG.random` over the separation of its means               | overlap of modes and of subspaces    |
| data      | EM's laws of real latents, one per expert; one of all experts   | the same, on fresh and held-out rows |
| curvature | a pair, four modes, a pair in two subspaces each, over distance | eigenvalues of the Hessian, overlap  |

Overlap is a function of sigma = gamma / s (see `theory.overlap`). Latents are standardised: their mean variance is one,
and sigma is in these units, as the noise of a diffusion in them is. A law of all experts lives in the space of the
rows, divided by the same scale.

The Hessian is that of the score-matching loss with respect to (mu, U): at the truth, and at a distance of `radii` sigma
from it, the least over the weakest direction there and back and `directions` at random. tau = 0, U orthonormal, d = 4.

| data           | rows                      | experts           | latents                          | modes    |
| -------------- | ------------------------- | ----------------- | -------------------------------- | -------- |
| digits         | digits of scikit-learn    | ten classes       | principal components, 16         | 4        |
| mnist          | MNIST                     | ten classes       | principal components, 32         | 8, 4, 40 |
| mnist-vae      | 12,000 rows of MNIST      | ten classes       | a small VAE each, 32             | 8        |
| cifar10        | CIFAR-10                  | ten classes       | principal components, 64         | 8        |
| parachute      | parachutes of 64 pixels   | four clusters     | TAEF2, 2,048, subspaces of 48    | 4        |

References:
    arXiv 2601.01475: xi_ij, eps_overlap, and "xi < 0.001" in the latents of ImageNet, noise level not said.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from molrmog.data import Dataset, load_parts
from molrmog.experiments.cells import Crew, check_choice, keep_settings, report_progress
from molrmog.experiments.latents import AutoencoderSettings, assign_experts, build_autoencoders, encode_all
from molrmog.experiments.overlap_page import write_overlap_page
from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.fit import fit
from molrmog.seeds import torch_generator
from molrmog.theory.overlap import Overlap, levels, measure_overlap, noised, smallest_near, split_curvature
from molrmog.theory.score_loss import ScoreLoss, stratified_rows
from molrmog.weights import weights_file

Budget = Literal["smoke", "cpu", "gpu"]


@dataclass(frozen=True)
class Latents:
    """Real rows, and the latents and laws that are made of them.

    Attributes:
        data: as `data.load_parts` takes it.
        kind: of the autoencoders, see `experiments.latents`.
        latent_dim: d of every subspace.
        modes: n of every expert; the law of all experts takes the first.
        rank: of every mode; d where None.
        experts: K.
        by: "label" or "cluster".
        image_size: pixels a side.
        rows: as many at most.
        steps: of each VAE.
    """

    data: str
    kind: str = "linear"
    latent_dim: int = 32
    modes: tuple[int, ...] = (8,)
    rank: int | None = None
    experts: int = 10
    by: str = "label"
    image_size: int | None = None
    rows: int | None = None
    steps: int | None = None


DATA = {
    "digits": Latents("digits", latent_dim=16, modes=(4,)),
    "mnist": Latents("mnist", modes=(8, 4, 40), rank=8),
    "mnist-vae": Latents("mnist", kind="vae", rank=8, rows=12_000, steps=300),
    "cifar10": Latents("cifar10", latent_dim=64, rank=16),
    "parachute": Latents(
        "imagenette-parachute", kind="taef2", latent_dim=48, modes=(4,), experts=4, by="cluster", image_size=64
    ),
}
KINDS = ("pair", "four", "subspaces")


@dataclass(frozen=True)
class OverlapBudget:
    """How much is spent.

    Attributes:
        sigmas: noise levels gamma / s of the first two parts.
        separations: of the means of laws at random, in deviations of the latents.
        data: names in `DATA`.
        samples: rows that an overlap is measured on; held-out rows are noised several times to be so many,
            which adds no independent rows: intervals are over clean rows.
        curvature_sigmas: noise levels of the third part.
        distances: between means there.
        radii: distance of theta from the truth, in sigma.
        directions: at random, besides the weakest.
        seeds: laws of each kind.
        rows: of the Gauss-Newton matrix; Hessians take a sixteenth.
    """

    sigmas: tuple[float, ...]
    separations: tuple[float, ...]
    data: tuple[str, ...]
    samples: int
    curvature_sigmas: tuple[float, ...]
    distances: tuple[float, ...]
    radii: tuple[float, ...]
    directions: int
    seeds: int
    rows: int


_SIGMAS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_DISTANCES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
_CPU = OverlapBudget(
    sigmas=_SIGMAS,
    separations=(0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0),
    data=("digits", "mnist", "mnist-vae", "cifar10", "parachute"),
    samples=4000,
    curvature_sigmas=(0.25, 0.5, 1.0),
    distances=_DISTANCES,
    radii=(0.1, 0.3),
    directions=2,
    seeds=2,
    rows=8_000,
)
BUDGETS = {
    "smoke": OverlapBudget(
        (0.1, 0.5, 2.0), (1.0, 4.0), ("digits",), 1000, (0.5,), (0.0, 0.3, 1.0, 2.0, 4.0), (0.1,), 1, 1, 1000
    ),
    "cpu": _CPU,
    "gpu": replace(_CPU, samples=40_000, directions=8, seeds=5, rows=128_000),
}


def run_overlap(
    out: str | Path, budget: Budget = "cpu", seed: int = 0, workers: int = 1, data_dir: str | None = None
) -> Path:
    """Measure overlap and what it costs in curvature; the same call goes on where it stopped.

    A data set that is not there is left out, and named on stderr and on the page.

    Args:
        out: folder of the experiment: report.html, overlap.csv, curvature.csv, settings.json, cells/.
        budget: "smoke" (seconds), "cpu" (minutes), or "gpu" (more rows and laws, on the CPU all the same).
        seed: of everything random.
        workers: processes at a time, one thread each.
        data_dir: folder to look for data in first.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown budget, or a number out of range.
        RuntimeError: a cell failed; see `experiments.cells`.
    """
    seed = check_choice(BUDGETS, budget, seed, workers)
    out, spent = Path(out), BUDGETS[budget]
    missing = {name: why for name in spent.data if (why := _missing(DATA[name], data_dir))}
    for name, why in missing.items():
        print(f"overlap: {name} is left out ({why})", file=sys.stderr)
    common = {"sigmas": list(spent.sigmas), "samples": spent.samples, "seed": seed}
    random_cells = {f"random/{separation:g}": {"separation": separation, **common} for separation in spent.separations}
    data_cells = {
        f"data/{name}": {"latents": asdict(DATA[name]), "data_dir": data_dir, **common}
        for name in spent.data
        if name not in missing
    }
    curvature_cells = {
        f"curvature/{kind}/sigma{sigma:g}-seed{one}": {
            "kind": kind,
            "sigma": sigma,
            "distances": list(spent.distances),
            "radii": list(spent.radii),
            "directions": spent.directions,
            "rows": spent.rows,
            "samples": 10 * spent.samples,
            "seed": one,
        }
        for one in range(seed, seed + spent.seeds)
        for kind in KINDS
        for sigma in spent.curvature_sigmas
    }
    cells: dict[str, Any] = {**random_cells, **data_cells, **curvature_cells}
    settings = {"budget": budget, "seed": seed, "missing": missing, "cells": cells}
    keep_settings(out, settings)
    with Crew(workers) as crew:
        drawn = crew.run(compute_random, random_cells, out, title="laws at random")
        real = crew.run(compute_data, data_cells, out, title="latents")
        curved = crew.run(compute_curvature, curvature_cells, out, title="curvature")
    overlaps = [record for results in (drawn, real) for result in results.values() for record in result["overlaps"]]
    curvatures = [record for result in curved.values() for record in result["points"]]
    chosen = {"budget": budget, "seed": seed, **asdict(spent), "missing": missing}
    return write_overlap_page(out, overlaps, curvatures, chosen, {name: asdict(DATA[name]) for name in spent.data})


def _missing(chosen: Latents, data_dir: str | None) -> str:
    """Why a data set cannot be used here, in one line, or nothing."""
    try:
        load_parts(chosen.data, data_dir=data_dir, image_size=chosen.image_size)
        if chosen.kind == "taef2":
            weights_file("taef2/taef2_encoder.safetensors")
            weights_file("taef2/taef2_decoder.safetensors")
    except (OSError, ValueError, ImportError) as error:
        return " ".join(str(error).split())
    return ""


def compute_random(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Overlap of a law with three subspaces of four modes each."""
    law = MoLRMoG.random(
        64, [6] * 3, [4] * 3, rank=2, noise=0.1, seed=settings["seed"], separation=settings["separation"]
    ).requires_grad_(False)
    about = {"part": "random", "name": f"{settings['separation']:g}", "modes": 4, "expert": None, "rows": "fresh"}
    draw = torch_generator(settings["seed"] + 1_000_000)
    overlaps: list[dict[str, Any]] = []
    for sigma in settings["sigmas"]:
        s, gamma = levels(sigma)
        x = law.sample(settings["samples"], draw, s=s, gamma=gamma).x
        overlaps += [
            {**about, "sigma": sigma, "of": of, **_figures(measure_overlap(law, x, s, gamma, of=of))}
            for of in ("modes", "subspaces")
        ]
    return {"overlaps": overlaps}


def compute_data(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Overlap of the modes of each expert's law, in its latents, and of the experts of one law of all rows."""
    chosen, seed, name = Latents(**settings["latents"]), settings["seed"], folder.name
    rows, held = _parts(chosen, settings["data_dir"])
    by_label = chosen.by == "label"
    own, others = assign_experts(
        np.asarray(rows.x),
        rows.labels if by_label else None,
        chosen.experts,
        others=(np.asarray(held.x), held.labels if by_label else None),
        seed=seed,
    )
    made = AutoencoderSettings(
        kind=chosen.kind, latent_dim=chosen.latent_dim, steps=chosen.steps, channels=(16, 32), seed=seed
    )
    encoders = build_autoencoders(
        rows.x,
        own,
        rows.shape,
        made,
        folder / "autoencoders",
        on_step=lambda _, step, steps, __: report_progress(folder, 0.2 * step / steps),  # of each VAE
    )
    z, z_held = encode_all(encoders, rows.x, own), encode_all(encoders, held.x, cast(Tensor, others))
    shape: dict[str, Any] = {"latent_dim": chosen.latent_dim, "rank": chosen.rank, "seed": seed}
    draw = torch_generator(seed + 1_000_000)
    overlaps: list[dict[str, Any]] = []

    def measure(law: Any, x: Tensor, of: Literal["modes", "subspaces"], modes: int, expert: int | None) -> None:
        for sigma in settings["sigmas"]:
            s, gamma = levels(sigma)
            clean = torch.arange(settings["samples"]) % len(x)
            sets = {
                "fresh": (law.sample(settings["samples"], draw, s=s, gamma=gamma).x, None),
                "held-out": (noised(x[clean], s, gamma, draw), clean),
            }
            about = {"part": "data", "name": name, "modes": modes, "expert": expert, "sigma": sigma, "of": of}
            for kind, (noisy, of_row) in sets.items():
                found = measure_overlap(law, noisy, s, gamma, of=of, clean=of_row)
                overlaps.append({**about, "rows": kind, **_figures(found)})

    for modes in chosen.modes:
        for k in range(chosen.experts):
            report_progress(folder, 0.2 + 0.6 * k / chosen.experts)
            law = fit(z[own == k], subspaces=1, modes=modes, noise="isotropic", **shape)
            measure(law, z_held[others == k], "modes", modes, k)
    if chosen.kind != "vae":  # the latents of VAEs share no space
        scale = 1.0
        x, x_held = z, z_held
        if chosen.kind == "linear":
            scale = float(torch.stack([encoder.latent_scale for encoder in encoders]).mean())
            x, x_held = (torch.from_numpy(np.asarray(part.x)) / scale for part in (rows, held))
        law = fit(x, labels=own, modes=chosen.modes[0], noise="isotropic", **shape)
        picked = torch.randperm(len(x_held), generator=draw)[: settings["samples"]]
        for of in ("subspaces", "modes"):
            measure(law, x_held[picked], of, chosen.modes[0], None)
    return {"overlaps": overlaps}


def _parts(chosen: Latents, data_dir: str | None) -> tuple[Dataset, Dataset]:
    rows, held = load_parts(chosen.data, data_dir=data_dir, image_size=chosen.image_size)
    return (rows, held) if chosen.rows is None else (rows.subset(slice(0, chosen.rows)), held)


def _figures(found: Overlap) -> dict[str, Any]:
    low, high = found.interval()
    return {
        "eps": found.eps,
        "eps_low": low,
        "eps_high": high,
        "largest_pair": found.largest_pair,
        "mean_pair": found.mean_pair,
        "apart": found.apart,
        "measured_rows": found.rows,
    }


def law_at_distance(kind: str, distance: float, seed: int) -> MoLRMoG:
    """A law of means that are so far apart, with orthonormal factors, tau = 0 and equal weights, in float64.

    Args:
        kind: "pair" (means m and -m, one U, d = 4, r = 2), "four" (means at the corners of a simplex, a U each, d = 4,
            r = 2) or "subspaces" (a pair in each of two subspaces of R^8, d = 3, r = 1).
        distance: between any two means of a subspace, in units of the latent deviation.
        seed: of the directions.
    """
    draw = torch_generator(seed)

    def axes(rows: int, columns: int) -> Tensor:
        return torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64)).Q

    def part(D: int, d: int, means: Tensor, factors: tuple[Tensor, ...]) -> Subspace:
        basis = torch.eye(D, dtype=torch.float64) if d == D else axes(D, d)
        shares = torch.full((len(means),), 1 / len(means), dtype=torch.float64)
        return Subspace(1.0, basis, torch.zeros(D, dtype=torch.float64), 0.0, shares, means, factors)

    if kind == "four":
        means = distance / math.sqrt(2) * axes(4, 4)
        parts = [part(4, 4, means, tuple(axes(4, 2) for _ in means))]
    else:
        D, d, r, K = (4, 4, 2, 1) if kind == "pair" else (8, 3, 1, 2)
        parts: list[Subspace] = []
        for _ in range(K):
            m, U = distance / 2 * axes(d, 1)[:, 0], axes(d, r)
            parts.append(part(D, d, torch.stack([m, -m]), (U, U)))
    return MoLRMoG.from_subspaces(parts).requires_grad_(False)


def compute_curvature(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Overlap and eigenvalues of one kind of law at one noise level, over the distance of its means."""
    s, gamma = levels(settings["sigma"])
    seed = settings["seed"]
    points: list[dict[str, Any]] = []
    for at, distance in enumerate(settings["distances"]):
        report_progress(folder, at / len(settings["distances"]))
        law = law_at_distance(settings["kind"], distance, seed)
        # The same numbers at every distance, so that a curve is smooth; not those that the law is made of.
        draw = torch_generator(seed + 1_000_000)
        overlap = measure_overlap(law, law.sample(settings["samples"], draw, s=s, gamma=gamma).x, s, gamma)
        x, weight = stratified_rows(law, settings["rows"], s, gamma, draw)
        found = split_curvature(ScoreLoss(law, x, s, gamma, weight=weight))
        x, weight = stratified_rows(law, settings["rows"] // 16, s, gamma, draw)
        drawn = torch.randn(settings["directions"], len(found.weakest), generator=draw, dtype=torch.float64)
        moves = torch.cat([found.weakest[None], -found.weakest[None], drawn / drawn.norm(dim=1, keepdim=True)])
        loss = ScoreLoss(law, x, s, gamma, weight=weight)
        near = {
            f"near {radius:g}": float(smallest_near(loss, radius * settings["sigma"] * moves).min())
            for radius in settings["radii"]
        }
        low, high = overlap.interval()
        points.append(
            {
                "kind": settings["kind"],
                "sigma": settings["sigma"],
                "seed": seed,
                "distance": distance,
                "eps": overlap.eps,
                "eps_low": low,
                "eps_high": high,
                "smallest": found.smallest,
                "largest": found.largest,
                "alpha": found.separated_smallest,
                "separated_largest": found.separated_largest,
                "change": found.change,
                "weyl": found.weyl,
                **near,
            }
        )
    return {"points": points}
