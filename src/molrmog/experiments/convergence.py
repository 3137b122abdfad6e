"""Does gradient descent contract at the rate that the curvature predicts, against its peers, and from where?

Everything is known but the means and factors (mu, U), at one noise level of s^2 + gamma^2 = 1. Four questions:

| cells   | ask                                                                                                  |
| ------- | ---------------------------------------------------------------------------------------------------- |
| rate    | the contraction per step with the step 2 / (alpha + L'), against (kappa - 1) / (kappa + 1)            |
| methods | iterations and CPU seconds to an error, for gradient descent, preconditioned, Gauss-Newton, Adam, EM |
| limits  | how far from the truth the minimum of the loss and the limit of EM are, over draws of the rows        |
| basin   | how often a descent ends at the limit, by the size of the perturbation and by the kind of start      |

on two losses over rows that stay fixed, so that a step is a deterministic map:

    population   rows whose modes have exact moments, targets the truth's own score: the minimum is the truth
    empirical    fewer rows of the truth, each noised once, targets -(x_t - s x_0) / gamma^2: minimum by Newton

and on four laws in R^16: two modes at +mu and -mu whose parameters are tied as in the paper, the same two modes free of
each other, four modes of uneven weights and covariances, and two subspaces of two such modes each.

References:
    arXiv 2601.01475, section 4 (linear convergence of gradient descent, two modes and many).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from molrmog.experiments.cells import keep_settings, run_cells
from molrmog.experiments.convergence_cells import LAWS, compute_cell
from molrmog.experiments.convergence_page import write_report
from molrmog.seeds import seed_of

Budget = Literal["smoke", "cpu", "gpu"]


@dataclass(frozen=True)
class ConvergenceBudget:
    """How much is spent.

    Attributes:
        gammas: noise levels of the rates.
        laws: whose rates are measured, names of `LAWS`.
        seeds: how many draws of rows and starts.
        population: rows of the population loss.
        empirical: rows of the empirical loss.
        methods: noise levels at which methods are compared.
        learning_rates: of Adam.
        draws: of rows, over which the limits of the methods are compared.
        basin_gammas: noise levels at which basins are measured.
        basin_rows: rows of the population loss there.
        sizes: of the perturbations, see `perturbed`.
        starts: how many of each size, and of each kind.
        start_rows: rows from which the kinds of starts are found.
    """

    gammas: tuple[float, ...]
    laws: tuple[str, ...]
    seeds: int
    population: int
    empirical: int
    methods: tuple[float, ...]
    learning_rates: tuple[float, ...]
    draws: int
    basin_gammas: tuple[float, ...]
    basin_rows: int
    sizes: tuple[float, ...]
    starts: int
    start_rows: int


_SIZES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4)
_LOW = (0.6, 0.45, 0.35)
_LEARNING_RATES = (0.1, 0.03, 0.01)
BUDGETS = {
    "smoke": ConvergenceBudget(
        gammas=(0.8, 0.7, 0.6),
        laws=("pair", "four"),
        seeds=1,
        population=256,
        empirical=512,
        methods=(0.6,),
        learning_rates=(0.1,),
        draws=1,
        basin_gammas=(0.6,),
        basin_rows=128,
        sizes=(0.2, 0.8),
        starts=3,
        start_rows=500,
    ),
    "cpu": ConvergenceBudget(
        gammas=(0.8, *_LOW),
        laws=tuple(LAWS),
        seeds=2,
        population=2048,
        empirical=1024,
        methods=_LOW,
        learning_rates=_LEARNING_RATES,
        draws=12,
        basin_gammas=_LOW,
        basin_rows=256,
        sizes=_SIZES,
        starts=12,
        start_rows=2000,
    ),
    "gpu": ConvergenceBudget(
        gammas=(0.8, *_LOW, 0.25),
        laws=tuple(LAWS),
        seeds=5,
        population=16384,
        empirical=4096,
        methods=_LOW,
        learning_rates=_LEARNING_RATES,
        draws=48,
        basin_gammas=_LOW,
        basin_rows=1024,
        sizes=_SIZES,
        starts=64,
        start_rows=2000,
    ),
}


def run_convergence(out: str | Path, budget: Budget = "cpu", seed: int = 0, workers: int = 1) -> Path:
    """Measure contraction, methods and basins, and write the page; the same call again goes on where it stopped.

    Args:
        out: folder of the experiment: report.html, rates.csv, methods.csv, limits.csv, basins.csv, settings.json,
            cells/.
        budget: "smoke" (seconds), "cpu" (minutes), or "gpu" (more rows, seeds and a lower noise level; no GPU needed).
        seed: of the first draw of rows and starts; further ones count up from it.
        workers: processes at a time, one thread each.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown budget, or a number out of range.
    """
    if budget not in BUDGETS:
        raise ValueError(f"unknown budget {budget!r}: choose one of {', '.join(BUDGETS)}")
    if workers < 1:
        raise ValueError(f"workers = {workers}: pass at least one")
    seed = seed_of(seed)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    spent = BUDGETS[budget]
    cells = _grid(spent, seed)
    settings = {"budget": budget, "seed": seed, "cells": cells}
    keep_settings(out, settings)
    # Long cells first, so that no worker ends alone with one.
    order = sorted(cells, key=lambda name: (cells[name]["gamma"], cells[name]["law"] in ("tied", "pair")))
    results = run_cells(compute_cell, {name: cells[name] for name in order}, out, workers=workers, title="convergence")
    records = [{**cells[name], **results[name]} for name in cells]
    return write_report(out, records, asdict(spent), budget, seed)


def _grid(spent: ConvergenceBudget, seed: int) -> dict[str, dict[str, Any]]:
    """Everything a cell depends on, by name."""
    cells: dict[str, dict[str, Any]] = {}
    around = {"sizes": spent.sizes, "starts": spent.starts, "start_rows": spent.start_rows}
    for law in spent.laws:
        for gamma in spent.gammas:
            for loss, rows in (("population", spent.population), ("empirical", spent.empirical)):
                for one in range(seed, seed + spent.seeds):
                    given = {"law": law, "gamma": gamma, "loss": loss, "rows": rows, "seed": one}
                    cells[f"rate/{law}-{gamma:g}-{loss}-seed{one}"] = {"kind": "rate", **given}
        if law == "two-by-two":
            continue
        if law != "tied":
            for gamma in spent.methods:
                given = {"law": law, "gamma": gamma, "loss": "empirical", "rows": spent.empirical, "seed": seed}
                cells[f"methods/{law}-{gamma:g}"] = {"kind": "methods", **given, "learning_rates": spent.learning_rates}
                cells[f"limits/{law}-{gamma:g}"] = {"kind": "limits", **given, "draws": spent.draws}
        for gamma in spent.basin_gammas:
            given = {"law": law, "gamma": gamma, "loss": "population", "rows": spent.basin_rows, "seed": seed}
            for kind in ("basin", "damped-basin"):
                cells[f"{kind}/{law}-{gamma:g}"] = {"kind": kind, **given, **around}
    return cells
