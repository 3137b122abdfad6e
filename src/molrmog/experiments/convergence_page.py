"""What the convergence experiment leaves behind: four tables as CSV, and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molrmog import pictures
from molrmog.experiments.convergence_cells import ERRORS, LAWS, RATE_START, STARTS
from molrmog.experiments.page import (
    Card,
    Cell,
    Figure,
    Section,
    Table,
    mean_spread,
    number,
    select,
    write_csv,
    write_page,
)
from molrmog.theory.convergence import wilson

Record = dict[str, Any]

_WITHIN = 0.05
_COLORS = ("#3b7dd8", "#4f9e58", "#e08a2e", "#b0476b", "#7a5fb5")
_INK = "#808080"


def write_report(out: Path, records: Sequence[Record], budget: Mapping[str, Any], name: str, seed: int) -> Path:
    """Write rates.csv, methods.csv, limits.csv, basins.csv and report.html.

    Args:
        out: folder of the experiment.
        records: settings and result of every cell.
        budget: what was spent, for the page.
        name: of the budget.
        seed: of the first draw.

    Returns:
        The path of the page.
    """
    rates, methods, limits, basins = (select(records, kind=kind) for kind in ("rate", "methods", "limits", "basin"))
    for one, damped in zip(basins, select(records, kind="damped-basin"), strict=True):
        one["found"] = {**one["found"], **damped["found"]}
    for one in rates:
        one["rate_ratio"] = one["measured"] / one["predicted"]
        one["log_ratio"] = math.log(one["measured"]) / math.log(one["predicted"])
        one["gap_ratio"] = (1 - one["measured"]) / (1 - one["predicted"])
    write_csv(out / "rates.csv", _RATE_COLUMNS, [[one[column] for column in _RATE_COLUMNS] for one in rates])
    write_csv(out / "methods.csv", _METHOD_COLUMNS, _method_rows(methods))
    write_csv(out / "limits.csv", _LIMIT_COLUMNS, _limit_rows(limits))
    write_csv(out / "basins.csv", _BASIN_COLUMNS, _basin_rows(basins))
    cards = [
        Card(_worst(rates, "rate_ratio"), "largest error of the rate r", f"{len(rates)} descents"),
        Card(_worst(rates, "log_ratio"), "largest error of log r", "iterations per digit, which is the stricter test"),
        Card(
            f"{sum(abs(one['log_ratio'] - 1) <= _WITHIN for one in rates)} of {len(rates)}",
            "descents within 5% of the predicted log r",
            "on the population and on the empirical loss",
        ),
    ]
    sections = [
        Section(
            "Contraction per step",
            _RATE_TEXT,
            [_rate_table(rates)],
            [Figure(_rate_uri(rates), _RATE_CAPTION, wide=True)],
        ),
        Section(
            "Iterations and seconds",
            _METHOD_TEXT,
            [*(_method_table(one) for one in methods), _limit_table(limits)],
            [Figure(_method_uri(methods), _METHOD_CAPTION, wide=True)],
        ),
        Section(
            "Basin of attraction",
            _BASIN_TEXT.format(starts=budget["starts"]),
            [_basin_table(basins), _start_table(basins)],
            [Figure(_basin_uri(basins), _BASIN_CAPTION, wide=True)],
        ),
    ]
    settings = {"budget": name, "seed": seed, **budget, "schedule": "s² + γ² = 1"}
    settings["command"] = f"molrmog reproduce convergence --budget {name} --seed {seed}"
    return write_page(
        out / "report.html", "Convergence of gradient descent", _INTRODUCTION, sections, settings, cards=cards
    )


_INTRODUCTION = """\
Near a minimum whose Hessian has extreme eigenvalues α and L' across the directions that change nothing, gradient \
descent with step 2/(α + L') contracts by r = (κ − 1)/(κ + 1) a step, κ = L'/α. Here the law is known, so the \
Hessian at the minimum is computed, gradient descent is run, and the two are compared; so are other ways down, and \
how far from the minimum they may begin.

Means and factors (μ, U) are learned, all else is known. Distances are between laws: Wasserstein distances of paired \
modes in R^16, free of the order of modes and of turns of U."""
_RATE_TEXT = f"""\
Every descent starts with means {RATE_START:g} of half the separation off and factors {RATE_START:g} of their norm, \
and goes on to 10⁻¹⁰ of the start's distance. r is the slope of log distance on the last third of the way down, in \
orders of magnitude; all before is transient. The relative error of r itself is small whatever one measures once κ \
is large; that of log r, or of 1 − r, is not, and is what “error” says: measured log r over predicted log r, less \
one.

Prediction and descent share their rows, which stay fixed: nothing here is a statement about sampling. On the \
population loss all modes have exact moments, so that the Hessian is that of the population but for the gates; κ_μ = \
((s² + γ²)/γ²)² is the closed form for the means of a separated mode of orthonormal U. On the empirical loss the \
limit is the loss's own minimum, at some distance from the truth, and the Hessian there is not the Gauss-Newton \
matrix."""
_RATE_CAPTION = """\
Distance over iterations on the population loss, first seed; dashed: what the Hessian predicts, drawn through the last \
point."""
_METHOD_TEXT = f"""\
The empirical loss, one start as above, errors relative to the distance of the start from where a method ends: the \
minimum of the loss, or for EM its own limit, the likeliest law of the same noised rows. CPU seconds of one thread, \
the cost of measuring left out. “Preconditioned at the limit” knows the Gauss-Newton matrix there, which nobody \
does; Gauss-Newton computes it where it is. {len(ERRORS)} errors; – where it was not reached."""
_METHOD_CAPTION = "Distance from the limit over iterations, relative to the start."
_BASIN_TEXT = """\
The population loss, {starts} starts each: gradient descent with the step of the limit for 3κ + 50 iterations, EM \
for 100 on the same rows, and Gauss-Newton for 40 with damped steps that never raise the loss. Where the last one \
arrives and gradient descent does not, there is a way down from the start to the limit that gradient descent with this \
step does not follow. A start counts as found where it ends within 2% of half the separation of the \
limit.

A perturbation of size 1 moves every mean by half the smallest separation, in a random direction, and every factor \
by its own norm. The directions are the same {starts} at every size and noise level, so counts of different sizes or \
levels are not independent. Starts of the other kinds take means and factors from fresh rows, drawn by the same seeds \
at every noise level; weights are known, and modes are ordered by theirs."""
_BASIN_CAPTION = """\
Share of starts that end at the limit: gradient descent solid, with 95% intervals; EM dotted; Gauss-Newton dashed."""
_LINES = {"gradient descent": "-", "EM": ":", "Gauss-Newton": "--"}

_RATE_COLUMNS = ("law", "gamma", "loss", "seed", "rows", "overlap", "alpha", "largest", "kappa", "separated_kappa")
_RATE_COLUMNS += ("predicted", "measured", "early", "late", "first", "last", "rate_ratio", "log_ratio", "gap_ratio")
_RATE_COLUMNS += ("limit_from_truth",)
_METHOD_COLUMNS = ("law", "gamma", "kappa", "method", "error", "iterations", "cpu_seconds", "limit_from_truth")
_LIMIT_COLUMNS = ("law", "gamma", "rows", "seed", "minimum_from_truth", "em_limit_from_truth")
_BASIN_COLUMNS = ("law", "gamma", "kappa", "method", "start", "found", "starts", "low", "high")


def _worst(rates: Sequence[Record], key: str) -> str:
    return f"{100 * max(abs(one[key] - 1) for one in rates):.2g}%"


def _method_rows(methods: Sequence[Record]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for one in methods:
        for method, found in one["methods"].items():
            limit = one["em_limit_from_truth" if method == "EM" else "limit_from_truth"]
            for error, reached in found["reached"].items():
                iterations, seconds = reached or (None, None)
                rows.append([one["law"], one["gamma"], one["kappa"], method, float(error), iterations, seconds, limit])
    return rows


def _limit_rows(limits: Sequence[Record]) -> list[list[Cell]]:
    return [
        [one["law"], one["gamma"], one["rows"], one["seed"] + i, minimum, em_limit]
        for one in limits
        for i, (minimum, em_limit) in enumerate(zip(one["minimum_from_truth"], one["em_limit_from_truth"], strict=True))
    ]


def _basin_rows(basins: Sequence[Record]) -> list[list[Cell]]:
    return [
        [one["law"], one["gamma"], one["kappa"], method, start, found, one["starts"], *wilson(found, one["starts"])]
        for one in basins
        for method, starts in one["found"].items()
        for start, found in starts.items()
    ]


def _rate_table(rates: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = []
    for law in dict.fromkeys(one["law"] for one in rates):
        for loss in ("population", "empirical"):
            for gamma in dict.fromkeys(one["gamma"] for one in rates):
                own = select(rates, law=law, loss=loss, gamma=gamma)
                rows.append([LAWS[law], loss, gamma, _span(own, "overlap", 1), number(1 / gamma**4, 3)])
                rows[-1] += [_span(own, key) for key in ("kappa", "predicted", "measured")]
                rows[-1].append(" · ".join(f"{100 * (one['log_ratio'] - 1):+.2f}%" for one in own).replace("-", "−"))
                rows[-1] += [" · ".join(f"{one['first']:,}" for one in own), _span(own, "limit_from_truth", 2)]
    columns = ("law", "loss", "γ", "overlap", "κ_μ", "κ", "r predicted", "r measured", "error of log r")
    columns += ("transient", "limit from truth")
    return Table(
        columns, rows, "Seed by seed. Overlap: Σ r_c (1 − r_c), mean over rows. Transient: iterations before the tail."
    )


def _span(records: Sequence[Record], key: str, digits: int = 4) -> str:
    return " · ".join(number(one[key], digits) if one[key] > 1e-12 else "0" for one in records)


def _method_table(one: Record) -> Table:
    rows: list[list[Cell]] = []
    for method, found in one["methods"].items():
        cells: list[Cell] = [method]
        for reached in found["reached"].values():
            cells += ["–", "–"] if reached is None else [int(reached[0]), number(reached[1], 2)]
        rows.append([*cells, number(one["em_limit_from_truth" if method == "EM" else "limit_from_truth"], 3)])
    columns = [name for error in ERRORS for name in (f"{error:.0e}: iterations", "CPU s")]
    title = f"{LAWS[one['law']]}, γ = {one['gamma']:g}, κ = {number(one['kappa'], 3)}"
    return Table(("method", *columns, "limit from truth"), rows, title)


def _limit_table(limits: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = []
    for one in limits:
        minima, em_limits = one["minimum_from_truth"], one["em_limit_from_truth"]
        nearer = sum(em_limit < minimum for minimum, em_limit in zip(minima, em_limits, strict=True))
        rows.append([LAWS[one["law"]], one["gamma"], mean_spread(minima), mean_spread(em_limits)])
        rows[-1].append(f"{nearer} of {len(minima)}")
    columns = ("law", "γ", "minimum of the loss", "limit of EM", "EM's is nearer")
    return Table(
        columns, rows, f"Distance from the truth over draws of {limits[0]['rows']:,} noised rows, mean ± spread."
    )


def _sizes(one: Record) -> list[str]:
    return [start for start in one["found"]["gradient descent"] if start not in STARTS]


def _basin_table(basins: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = []
    for one in basins:
        reach = one["half_separation"] * math.sqrt(1 - one["gamma"] ** 2) / one["gamma"]  # of size 1, in units of gamma
        for method, found in one["found"].items():
            rows.append([LAWS[one["law"]], one["gamma"], number(reach, 2), method])
            rows[-1] += [f"{found[size]}" for size in _sizes(one)]
    columns = ("law", "γ", "size 1 in γ", "method", *_sizes(basins[0]))
    caption = (
        f"Found, of {basins[0]['starts']}, by size of the perturbation; “size 1 in γ” is s × half the separation / γ."
    )
    return Table(columns, rows, caption)


def _start_table(basins: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = [
        [LAWS[one["law"]], one["gamma"], method, *(f"{found[start]}" for start in STARTS)]
        for one in basins
        for method, found in one["found"].items()
        if STARTS[0] in found  # Gauss-Newton, and tied modes, have the sizes alone
    ]
    return Table(("law", "γ", "method", *STARTS), rows, f"Found, of {basins[0]['starts']}, by kind of start.")


def _axes(count: int) -> tuple[Any, list[Any]]:
    return pictures.figure(3.1 * count, 2.9, count)


def _rate_uri(rates: Sequence[Record]) -> str:
    laws = list(dict.fromkeys(one["law"] for one in rates))
    fig, axes = _axes(len(laws))
    for axis, law in zip(axes, laws, strict=True):
        own = select(rates, law=law, loss="population", seed=min(one["seed"] for one in rates))
        for color, one in zip(_COLORS, own, strict=False):
            x = [1 + step for step in one["steps"]]
            label = f"γ = {one['gamma']:g}, κ = {number(one['kappa'], 3)}"
            axis.plot(x, one["distances"], color=color, lw=2.2, alpha=0.6, label=label)
            line = [one["distances"][-1] * one["predicted"] ** (step - one["steps"][-1]) for step in one["steps"]]
            axis.plot(x, line, color=_INK, lw=1.0, ls="--")
        _logarithmic(axis)
        axis.set_title(LAWS[law], fontsize=9, color=_INK)
        axis.set_xlabel("1 + iterations")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
        axis.legend(frameon=False, fontsize=7, labelcolor=_INK, **below)
    axes[0].set_ylabel("distance from the limit")
    return pictures.svg_uri(fig)


def _method_uri(methods: Sequence[Record]) -> str:
    gamma = min(one["gamma"] for one in methods)
    own = select(methods, gamma=gamma)
    fig, axes = _axes(len(own))
    colors = {"gradient descent": "#3b7dd8", "preconditioned at the limit": "#7a5fb5", "Gauss-Newton": "#4f9e58"}
    colors |= {"EM": "#b0476b", "Adam, 0.1": "#e0b48a", "Adam, 0.03": "#e08a2e", "Adam, 0.01": "#8a5a1e"}
    for axis, one in zip(axes, own, strict=True):
        for method, found in one["methods"].items():
            x = [1 + step for step in found["steps"]]
            axis.plot(x, found["relative"], color=colors[method], lw=1.3, label=method)
        _logarithmic(axis)
        axis.set_title(f"{LAWS[one['law']]}, γ = {gamma:g}, κ = {number(one['kappa'], 3)}", fontsize=9, color=_INK)
        axis.set_xlabel("1 + iterations")
    axes[0].set_ylabel("relative distance")
    _legend(fig, axes[0], columns=4)
    return pictures.svg_uri(fig)


def _basin_uri(basins: Sequence[Record]) -> str:
    laws = list(dict.fromkeys(one["law"] for one in basins))
    fig, axes = _axes(len(laws))
    for axis, law in zip(axes, laws, strict=True):
        for color, one in zip(_COLORS[1:], select(basins, law=law), strict=False):
            sizes = [float(size) for size in _sizes(one)]
            for method, found in one["found"].items():
                shares = [found[size] / one["starts"] for size in _sizes(one)]
                style = _LINES[method]
                label = f"γ = {one['gamma']:g}" if style == "-" else None
                axis.plot(sizes, shares, color=color, lw=1.3, ls=style, marker="o", ms=3, label=label)
                if style == "-":
                    low, high = zip(*(wilson(found[size], one["starts"]) for size in _sizes(one)), strict=True)
                    axis.fill_between(sizes, low, high, color=color, alpha=0.12, lw=0)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(LAWS[law], fontsize=9, color=_INK)
        axis.set_xlabel("size of the perturbation")
    axes[0].set_ylabel("share found")
    _legend(fig, axes[0])
    return pictures.svg_uri(fig)


def _logarithmic(axis: Any) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.minorticks_off()


def _legend(fig: Any, axis: Any, columns: int = 5) -> None:
    handles, labels = axis.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", frameon=False, fontsize=8, labelcolor=_INK, ncols=columns)
