"""The curvature of the score-matching loss around a known truth: closed forms, printed forms, and how far they reach.

Laws of one subspace with A known, orthonormal factors (all variances 1) and tau = 0, as in the paper, at noise levels
with s^2 + gamma^2 = 1. `separation` is the distance between nearest means in data units.

| cells      | what is computed                                                                       |
| ---------- | -------------------------------------------------------------------------------------- |
| spectrum   | eigenvalues for two modes +mu, -mu with one U, learned as one, at every noise level    |
| blocks     | Gauss-Newton blocks of every mode against their closed forms, over separation and laws |
| rows       | the same blocks on independent rows, over their number                                 |
| angle      | the U-block, exact and as printed, while mu turns away from the span of U               |
| radius     | how far from the truth the loss stays convex, at random and in the worst direction     |
| shift      | the same where the mean of one mode moves across its U, which has a closed form        |
| parameters | the spectrum when A, b, the weights and tau are learned too                            |
| large      | Lanczos on a law of thousands of parameters, against dense algebra on a small one      |

All Hessians are those of the law's own soft gates. Rows are `stratified_rows`, but for `blocks` and
learned weights, which take `border_rows`, and for `rows`.

References:
    arXiv 2601.01475, section 6 (local strong convexity).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from molrmog.experiments.cells import check_choice, keep_settings, run_cells
from molrmog.experiments.curvature_cells import CELLS, DIM, FAR, LATENT, compute_cell
from molrmog.experiments.curvature_page import write_report

Budget = Literal["smoke", "cpu", "gpu"]


@dataclass(frozen=True)
class CurvatureBudget:
    """How much is spent.

    Attributes:
        gammas: noise levels of the spectrum and of the radius at two modes.
        separations: of the blocks.
        modes: n of the laws whose blocks are compared.
        laws: of each kind; two modes differ by the angle of mu to U.
        draws: of the rows, for each law; where more than mu and U is learned, laws x draws laws of one draw.
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
    laws: int
    draws: int
    radius: dict[int, Sequence[float]]
    rows: int
    independent: Sequence[int]
    directions: int
    turns: int
    large: tuple[int, int, int, int, int]


_LEVELS = (0.2, 0.35, 0.5, 0.8)
_FULL: dict[str, Any] = {
    "gammas": _LEVELS,
    "separations": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20),
    "modes": (2, 4, 8),
    "large": (200, 3, 32, 2, 12),
}
BUDGETS = {
    "smoke": CurvatureBudget(
        gammas=(0.5,),
        separations=(2, 14),
        modes=(2, 4),
        laws=2,
        draws=1,
        radius={2: (3.0,)},
        rows=300,
        independent=(1000,),
        directions=2,
        turns=1,
        large=(20, 2, 4, 2, 2),
    ),
    "cpu": CurvatureBudget(
        **_FULL,
        laws=5,
        draws=2,
        radius={2: (1, 2, 3, 4, 6), 4: (2, 4, 8), 8: (4, 8)},
        rows=1000,
        independent=(1000, 10_000, 100_000),
        directions=3,
        turns=3,
    ),
    "gpu": CurvatureBudget(
        **_FULL,
        laws=20,
        draws=5,
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
    seed = check_choice(BUDGETS, budget, seed, workers)
    out = Path(out)
    spent = BUDGETS[budget]
    cells = _grid(spent, seed)
    settings = {"budget": budget, "seed": seed, "spent": asdict(spent), "cells": cells}
    keep_settings(out, settings)
    results = run_cells(compute_cell, cells, out, workers=workers, title="curvature")
    records = {
        kind: [
            record for name, result in results.items() if cells[name]["kind"] == kind for record in result["records"]
        ]
        for kind in CELLS
    }
    about = {
        "laws": f"d = {LATENT}, D = {DIM}, variances 1, tau = 0, s^2 + gamma^2 = 1",
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
        gammas = spent.gammas if modes == 2 else (0.5,)
        where = [[gamma, float(separation)] for gamma in gammas for separation in spent.radius[modes]]
        for gamma, separation in where:
            place = {"modes": modes, "gamma": gamma, "separation": separation}
            cells[f"radius-{modes}-{gamma:g}-{separation:g}"] = {"kind": "radius", **place, **search, **shared}
        cells[f"shift-{modes}"] = {"kind": "shift", "modes": modes, "where": where, **shared}
    drawn = {"laws": spent.laws, "draws": spent.draws, "seed": seed}
    for modes, gamma in itertools.product(sorted(spent.modes, reverse=True), (0.2, 0.5, 0.8)):
        where = {"modes": modes, "gamma": gamma, "separations": list(map(float, spent.separations))}
        cells[f"blocks-{modes}-{gamma:g}"] = {"kind": "blocks", **where, **drawn, "rows": 2 * spent.rows}
    cells["spectrum"] = {"kind": "spectrum", "gammas": list(spent.gammas), **shared}
    cells["angle"] = {"kind": "angle", "degrees": [0, 15, 30, 45, 60, 75, 90], **shared}
    cells["parameters"] = {"kind": "parameters", "separations": [4.0, FAR], **shared, "laws": spent.laws * spent.draws}
    cells["rows"] = {"kind": "rows", "numbers": list(spent.independent), "draws": 5 * spent.draws, "seed": seed}
    cells["large"] = {"kind": "large", "law": list(spent.large), **shared}
    return cells
