"""How many rows a score needs: the excess error of learned scores, E || s_theta - s* ||^2, against n, D and the shape.

Which laws, how many rows, how often; the methods and what is measured of them are in `estimation_cells`.

References:
    arXiv 2601.01475, section 4 (estimation error).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from molrmog.experiments.cells import check_choice, keep_settings, run_cells
from molrmog.experiments.estimation_cells import LawShape, compute_cell
from molrmog.experiments.estimation_page import write_report
from molrmog.experiments.page import write_csv

Budget = Literal["smoke", "cpu", "gpu"]

LOW_LEVELS = (0.1, 0.15, 0.2, 0.3)
"""Noise levels at which the gap's own power of gamma is measured."""


@dataclass(frozen=True)
class EstimationBudget:
    """How much is spent; a sweep that is given no seeds is left out.

    Attributes:
        seeds: of each sweep, by its name.
        rows: n of the sweep over n, which is in R^dim.
        dim: D of all sweeps but those over D.
        dims: D of the sweep over D.
        dim_rows: its n.
        repeats: draws of independent rows at each of the two `compared` D, for each seed.
        compared: the two D whose errors the claim compares.
        shape_rows: n of the sweeps over K, n_k, d_k and the noise level.
        shapes: those sweeps, name to values.
        dsm_rows: n of score matching.
        pool: rows from which gaps are taken, gaps at n up to an eighth of it.
        few_rows: n at which rows to 1% are looked for with A known.
        draws: of rows at each of those n and of the gaps at the fit, for each law.
        peer_dims: D of the comparison of methods.
        peer_rows: its n.
        fresh: rows on which is measured.
        steps: of the MLP.
    """

    seeds: dict[str, int]
    rows: tuple[int, ...]
    dim: int
    dims: tuple[int, ...]
    dim_rows: int
    repeats: int
    compared: tuple[int, int]
    shape_rows: int
    shapes: dict[str, tuple[int, ...]]
    dsm_rows: tuple[int, ...]
    pool: int
    few_rows: tuple[int, ...]
    draws: int
    peer_dims: tuple[int, ...]
    peer_rows: tuple[int, ...]
    fresh: int
    steps: int


_SHAPES = {"subspaces": (1, 2, 4, 8), "modes": (1, 2, 4, 8), "latent_dim": (2, 4, 8, 16)}
_CPU = EstimationBudget(
    seeds={"n": 24, "pair": 40, "dim": 16, "gap": 8, "peers": 2, "few": 12, "shape": 6, "starts": 12, "dsm": 12},
    rows=tuple(2**i for i in range(6, 16)),
    dim=64,
    dims=(32, 64, 128, 256, 512, 1024, 2048, 4096),
    dim_rows=1024,
    repeats=16,
    compared=(64, 2048),
    shape_rows=4096,
    shapes=_SHAPES,
    dsm_rows=(256, 1024, 4096),
    pool=2**17,
    few_rows=(16, 32, 64, 128, 256, 512),
    draws=16,
    peer_dims=(32, 128, 512, 2048),
    peer_rows=(64, 256, 1024, 4096, 16384),
    fresh=2048,
    steps=1500,
)
BUDGETS = {
    "smoke": EstimationBudget(
        seeds={"n": 2, "pair": 2, "dim": 2, "gap": 1, "peers": 1, "few": 1, "shape": 1, "starts": 1, "dsm": 1},
        rows=(256, 1024, 4096),
        dim=16,
        dims=(16, 64, 256),
        dim_rows=512,
        repeats=2,
        compared=(16, 256),
        shape_rows=512,
        shapes={"subspaces": (1, 2), "modes": (1, 2), "latent_dim": (2, 4)},
        dsm_rows=(256,),
        pool=2**12,
        few_rows=(32, 128, 512),
        draws=2,
        peer_dims=(16, 64),
        peer_rows=(64, 512),
        fresh=512,
        steps=60,
    ),
    "cpu": _CPU,
    "gpu": replace(
        _CPU,
        seeds={"n": 64, "pair": 64, "dim": 64, "gap": 32, "peers": 4, "few": 32, "shape": 32, "starts": 32, "dsm": 16},
        repeats=32,
        pool=2**19,
        fresh=8192,
        steps=10_000,
    ),
}


def run_estimation(out: str | Path, budget: Budget = "cpu", seed: int = 0, workers: int = 1) -> Path:
    """Measure how the errors of learned scores fall; the same call goes on where it stopped.

    Args:
        out: folder of the experiment: report.html, results.csv, settings.json, cells/.
        budget: "smoke" (seconds), "cpu" (minutes), or "gpu" (more seeds and rows, on the CPU still: hours).
        seed: of the first law; further ones count up from it.
        workers: processes at a time, one thread each.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown budget, or a number out of range.
        RuntimeError: a cell failed; see `run_cells`.
    """
    seed = check_choice(BUDGETS, budget, seed, workers)
    out, spent = Path(out), BUDGETS[budget]
    cells = _cells(spent, seed)
    settings = {"budget": budget, "seed": seed, "cells": cells}
    keep_settings(out, settings)
    results = run_cells(compute_cell, cells, out, workers=workers, title="estimation")
    records = [
        {"sweep": cells[name]["sweep"], "seed": cells[name]["seed"], **record}
        for name, result in results.items()
        for record in result["records"]
    ]
    columns = list(dict.fromkeys(key for record in records for key in record))
    write_csv(out / "results.csv", columns, [[record.get(column) for column in columns] for record in records])
    shown = {key: value for key, value in asdict(spent).items() if key != "seeds"}
    settings = {
        "budget": budget,
        "first seed": seed,
        "law": asdict(LawShape()),
        "seeds of each sweep": spent.seeds,
    } | shown
    settings["command"] = f"molrmog reproduce estimation --budget {budget} --seed {seed}"
    return write_report(out, records, spent.compared, settings)


def _cells(spent: EstimationBudget, seed: int) -> dict[str, dict[str, Any]]:
    """Name to settings: everything that a cell depends on."""
    own: dict[str, dict[str, Any]] = {
        "n": {"dim": spent.dim, "rows": spent.rows},
        "dim": {"dims": spent.dims, "rows": spent.dim_rows},
        "pair": {"compared": spent.compared, "rows": spent.dim_rows, "repeats": spent.repeats},
        "shape": {"dim": max(spent.dim, 128), "rows": spent.shape_rows, "shapes": spent.shapes},
        "starts": {"dim": spent.dim, "rows": spent.dim_rows},
        "dsm": {"rows": spent.dsm_rows},
        "gap": {"pool": spent.pool, "levels": LOW_LEVELS, "draws": spent.draws, "noises": 8},
        "few": {"rows": spent.few_rows, "draws": spent.draws},
    }
    cells: dict[str, dict[str, Any]] = {}
    for sweep, count in spent.seeds.items():
        for one in range(seed, seed + count):
            shared = {"sweep": sweep, "law": asdict(LawShape()), "seed": one, "fresh": spent.fresh}
            if sweep == "peers":
                for dim in spent.peer_dims:
                    more = {"dim": dim, "rows": spent.peer_rows, "steps": spent.steps}
                    cells[f"peers-D{dim}-seed{one}"] = shared | more
            else:
                cells[f"{sweep}-seed{one}"] = shared | own[sweep]
    return cells
