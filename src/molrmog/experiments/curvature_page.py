"""The page and table of the curvature experiment."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molrmog import pictures
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, number, select, write_csv, write_page
from molrmog.theory.landscape import shift_radius

Record = Mapping[str, Any]

_TARGET = 1e-3  # relative error of a block that counts as agreement
_COLORS = ("#3b7dd8", "#e08a2e", "#4f9d69", "#a05fb4", "#808080")
_GROUPS = {
    "mean_across": "μ across U: s²/γ⁴",
    "factor_out": "U out of its span: c²(s² + 2γ²)/γ⁴",
    "factor_in": "U in its span: 4s⁴/(s² + γ²)³",
    "mean_along": "μ along U: s²/(s² + γ²)²",
}


def write_report(out: Path, records: Mapping[str, Sequence[Record]], settings: Mapping[str, Any]) -> Path:
    """Write results.csv and the page, and return the page's path.

    Args:
        out: folder of the experiment.
        records: of every kind of cell.
        settings: for the end of the page.
    """
    _write_table(out, records)
    blocks, angle = records["blocks"], records["angle"][-1]
    shifts = {_place(record): record["shift"] for record in records["shift"]}
    radius = [{**r, "shift": shifts[_place(r)], "worst": min(r["worst"], shifts[_place(r)])} for r in records["radius"]]
    far = max(r["separation"] for r in blocks)
    error = max(_block_error(r) for r in blocks if r["separation"] == far)
    weights = max((r for r in records["parameters"] if r["weakest_in_weights"]), key=lambda r: r["separation"])
    shares = [r["worst"] / _shift_radius(r["gamma"]) for r in radius]
    cards = [
        Card(
            number(error, 2),
            "largest relative error of a block",
            f"closed form against autograd, all laws at separation {far:g}",
        ),
        Card(
            f"{_zero(angle['printed'], angle['exact'])} against {number(angle['exact'])}",
            "smallest eigenvalue of the U-block, μ across U",
            "as printed (reconstructed), and exact",
        ),
        Card(
            f"{number(min(shares), 2)} to {number(max(shares), 2)} γ²/(s√(1 + γ²))",
            "radius of convexity in the worst direction found",
            f"over {len(shares)} laws and noise levels",
        ),
        Card(
            _zero(weights["smallest"], weights["largest"]),
            "smallest eigenvalue when weights are learned too",
            f"separation {weights['separation']:g}: scores of separated modes do not see their weights",
        ),
    ]
    sections = [
        Section(
            "The spectrum at the truth",
            _SPECTRUM_TEXT,
            [_spectrum_table(records["spectrum"])],
            [Figure(_spectrum_uri(records["spectrum"]), "Points: measured. Lines: closed forms.", wide=True)],
        ),
        Section(
            "Closed forms against separation",
            _BLOCKS_TEXT,
            [_separated_table(blocks), _rows_table(records["rows"])],
            [Figure(_blocks_uri(blocks), "Largest relative error of a block: median and range over draws.", wide=True)],
        ),
        Section(
            "The printed U-block",
            _ANGLE_TEXT,
            [_angle_table(records["angle"])],
            [Figure(_angle_uri(records["angle"]), "Smallest eigenvalue of the U-block, rank 1, γ = 0.5.")],
        ),
        Section(
            "How far convexity reaches",
            _RADIUS_TEXT,
            [_worst_table(radius), _radius_table(radius)],
            [Figure(_radius_uri(radius), "Distance from the truth in data units; modes have variances 1.", wide=True)],
        ),
        Section("Learning A, b, weights and tau", _PARAMETERS_TEXT, [_parameters_table(records["parameters"])]),
        Section("A large law, by Lanczos", _LARGE_TEXT, [_large_table(records["large"])]),
    ]
    return write_page(out / "report.html", "Curvature around the truth", _INTRODUCTION, sections, settings, cards=cards)


_INTRODUCTION = """\
The paper proves that score matching is strongly convex near the truth, for modes so far apart that gates are hard. \
Here the Hessian of the population loss is computed with the soft gates of the law itself: at the truth, where its \
eigenvalues have closed forms for separated modes, and around it, until the smallest eigenvalue off the gauge \
directions reaches zero."""
_SPECTRUM_TEXT = """\
Two modes at +μ and −μ with one U, learned as one (μ, U), A known: the paper's setting, well separated. c = s²/(s² + \
γ²). Rows have exact shares, means and covariances of both modes and seldom see the border between them; what it \
changes is in the next section. Rotations of U are the gauge; their eigenvalue is the column “gauge”, and κ leaves \
them out. The paper prints s²/(s² + γ²)² as the smallest eigenvalue in μ: that is so, and it is the smallest of all."""
_BLOCKS_TEXT = """\
Gauss-Newton blocks of every mode's μ and U against the closed forms times the mode's weight. The error is the \
largest over modes and over directions, each relative to its own curvature, so that weak directions count as much as \
strong ones. What soft gates change happens on the borders between modes, where rows are rare: half of the rows are \
drawn there, with weights, and the difference from the closed form is averaged, which is zero wherever gates are hard. \
Two modes are +μ, −μ at angles of 0° to 90° to their U; more modes have uneven weights and factors of their own. Every \
law is measured on several draws of rows. With independent rows the sampling error rules."""
_ANGLE_TEXT = """\
Rank 1, two separated modes, μ turned from U (0°) to across it (90°). “Exact” is the closed form, “measured” the \
Gauss-Newton block by autograd. The full text of the paper was not at hand; “printed” is a reconstruction: its score \
has δ = c U Uᵀ y with c held fixed, and its block vanishes with Uᵀμ if y is not centred and x replaced by s μ, which \
gives (c² s²/γ⁴) |(H Uᵀ + U Hᵀ) μ|² for a change H of U. The same δ about its own mode, “δ, centred”, does not \
vanish but is ((s² + γ²)/γ²)² times too stiff in the span of U."""
_RADIUS_TEXT = """\
Along a direction the smallest eigenvalue of the Hessian, gauge directions removed where the parameters are, is \
followed until it reaches zero. “Random” is the median over directions. “Worst” is the smallest of three: the best \
of these and of the directions of smallest and largest curvature; that direction improved by descent to the nearest \
zero; and μ of one mode moved across its U. All three are measured on four times as many rows as were used to \
search, and on other rows; “found on own rows” is what the search believed. It bounds the true radius from above. \
Two modes are +μ, −μ, each with its own parameters; more modes have uneven weights and factors of their own.

Hard gates would not help: to first order a shift of μ across U by γ²/(s√(1 + γ²)) is enough, because turning U \
towards the shift and moving μ along U then lower the loss together. So the radius shrinks like γ² at low noise, \
however far the modes are apart. Where modes overlap it is smaller still."""
_PARAMETERS_TEXT = """\
K = 2 subspaces of dimensions 3 and 2 in R⁸ with two modes each, rank 2, τ = 0.2, γ = 0.5; the nearest two of all \
four means are exactly as far apart as said. Medians over laws, ranges in brackets. Gauge directions are \
removed: rotations of U; rotations, symmetric changes and unused columns of A; offsets inside their own subspace; \
constants added to logits. “Of that, in weights” is the share of the weakest direction that moves logits. The last \
column is the relative error of the closed form of A's curvature out of its span."""
_LARGE_TEXT = """\
Extreme eigenvalues off the gauge directions from products with vectors alone, mean and factor learned, γ = 0.5, \
beside dense algebra where that is cheap and the closed forms of separated modes."""


def _zero(value: float, scale: float) -> str:
    """A number, or 0 where it is rounding on a scale."""
    return "0" if abs(value) < 1e-12 * scale else number(value)


def _shift_radius(gamma: float) -> float:
    return shift_radius(1.0, math.sqrt(1 - gamma**2), gamma**2)


def _place(record: Record) -> tuple[Any, ...]:
    return record["modes"], record["gamma"], record["separation"]


def _values(records: Sequence[Record], key: str) -> list[Any]:
    return list(dict.fromkeys(record[key] for record in records))


def _write_table(out: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """One line per number: kind of cell, where, what, value."""
    places = ("modes", "gamma", "separation", "degrees", "rows", "learn", "law", "draw")
    lines: list[list[Cell]] = []
    for kind, found in records.items():
        for record in found:
            where = " ".join(f"{key}={_plain(record[key])}" for key in places if key in record)
            for key, value in record.items():
                if key not in places:
                    values = value if isinstance(value, list) else [value]
                    lines += [[kind, where, key, one] for one in values if one is not None]
    write_csv(out / "results.csv", ("kind", "where", "what", "value"), lines)


def _plain(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _spectrum_table(records: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = [
        [
            r["gamma"],
            *(f"{number(r[name])} ({number(r[name + '_closed'])})" for name in _GROUPS),
            number(r["error"], 2),
            _zero(r["gauge_eigenvalue"], r["largest"]),
            r["smallest"],
            r["largest"],
            r["kappa"],
        ]
        for r in records
    ]
    columns = ("γ", *_GROUPS.values(), "largest error", "gauge", "smallest", "largest", "κ")
    return Table(columns, rows, "Measured, and the closed form in brackets.", "r" * len(columns))


def _separated_table(records: Sequence[Record]) -> Table:
    gammas = _values(records, "gamma")
    rows: list[list[Cell]] = []
    for n in sorted(_values(records, "modes")):
        cells: list[Cell] = [n]
        for gamma in gammas:
            own = select(records, modes=n, gamma=gamma)
            bad = [r["separation"] for r in own if _block_error(r) >= _TARGET]
            good = [r["separation"] for r in own if not bad or r["separation"] > max(bad)]
            there = [_block_error(r) for r in own if good and r["separation"] == min(good)]
            before = [_block_error(r) for r in own if bad and r["separation"] == max(bad)]
            cells += [f"{min(good):g}" if good else None, _range(there), _range(before)]
        rows.append(cells)
    columns = ["n", *(f"γ = {g:g}: {what}" for g in gammas for what in ("from", "error there", "one step before"))]
    caption = f"First separation of the grid from which every draw agrees to {_TARGET:g}; median and range of errors."
    return Table(columns, rows, caption, "r" * len(columns))


def _block_error(record: Record) -> float:
    return max(record["mean"], record["factor"])


def _range(values: Sequence[float], digits: int = 2) -> str:
    """Median (smallest – largest)."""
    if not values:
        return "–"
    shown = (number(value, digits) for value in (statistics.median(values), min(values), max(values)))
    return "{} ({} – {})".format(*shown)


def _rows_table(records: Sequence[Record]) -> Table:
    rows = [
        [f"{n:,}", *(_range([r[key] for r in select(records, rows=n)]) for key in ("mean", "factor"))]
        for n in _values(records, "rows")
    ]
    return Table(
        ("independent rows", "error in μ", "error in U"),
        rows,
        "Two separated modes, γ = 0.5, over draws of rows; μ suffers by their shares alone.",
    )


def _angle_table(records: Sequence[Record]) -> Table:
    rows = [
        [f"{r['degrees']}°", *(_zero(r[key], r["exact"]) for key in ("measured", "exact")), number(r["error"], 2)]
        + [_zero(r[key], r["exact"]) for key in ("printed", "centred")]
        for r in records
    ]
    columns = ("angle", "measured", "exact", "error of the block", "printed", "δ, centred")
    return Table(columns, rows, "Smallest eigenvalue of the U-block; 0 where below 1e−12 of the exact one.", "r" * 6)


def _worst_table(records: Sequence[Record]) -> Table:
    two = select(records, modes=2)
    separations = _values(two, "separation")
    rows: list[list[Cell]] = []
    for gamma in _values(two, "gamma"):
        found = {r["separation"]: r for r in select(two, gamma=gamma)}
        rows.append([f"{gamma:g}", *(number(found[one]["worst"], 3) for one in separations)])
        rows[-1].append(number(_shift_radius(gamma), 3))
    columns = ("γ", *(f"separation {one:g}" for one in separations), "γ²/(s√(1 + γ²))")
    return Table(columns, rows, "Worst radius, two modes.", "r" * len(columns))


def _radius_table(records: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = [
        [
            r["modes"],
            f"{r['gamma']:g}",
            f"{r['separation']:g}",
            f"{r['parameters']} − {r['gauge']}",
            number(r["smallest"], 3),
            number(r["largest"], 3),
            number(statistics.median(r["random"]), 2),
            number(r["along_smallest"], 2),
            number(r["along_largest"], 2),
            number(r["shift"], 2),
            number(r["worst"], 2),
            number(r["worst_on_own_rows"], 2),
            f"{r['worst_in_means']:.0%}",
        ]
        for r in sorted(records, key=_place)
    ]
    columns = ("n", "γ", "separation", "P − gauge", "smallest", "largest", "random", "along smallest", "along largest")
    columns += ("μ across U", "worst", "found on own rows", "of it, in μ")
    return Table(columns, rows, "Eigenvalues are those at the truth.", "r" * len(columns))


def _parameters_table(records: Sequence[Record]) -> Table:
    names = {"mean": "μ", "factor": "U", "basis": "A", "offset": "b", "tau": "τ", "mode_logits": "weights"}
    rows: list[list[Cell]] = []
    for separation, learn in itertools.product(_values(records, "separation"), _learned(records)):
        own = select(records, separation=separation, learn=learn)
        plain = {r["law"]: r["kappa"] for r in select(records, separation=separation, learn=["mean", "factor"])}
        zero = all(r["smallest"] < 1e-12 * r["largest"] for r in own)
        rows.append(
            [
                f"{separation:g}",
                ", ".join(short for name, short in names.items() if name in learn),
                own[0]["parameters"],
                own[0]["gauge"],
                "0" if zero else _range([r["smallest"] for r in own]),
                _range([r["largest"] for r in own]),
                "infinite" if zero else _range([r["kappa"] for r in own]),
                "infinite" if zero else _range([r["kappa"] / plain[r["law"]] for r in own]),
                None if own[0]["weakest_in_weights"] is None else _range([r["weakest_in_weights"] for r in own]),
                None if own[0]["basis_error"] is None else _range([r["basis_error"] for r in own]),
            ]
        )
    columns = ("separation", "learned", "P", "gauge", "smallest", "largest", "κ", "κ over that of μ, U")
    columns += ("weakest direction, in weights", "A: error")
    return Table(columns, rows, "0: below 1e−12 of the largest in every law.", "rl" + "r" * 8)


def _learned(records: Sequence[Record]) -> list[list[str]]:
    return [list(learn) for learn in dict.fromkeys(tuple(record["learn"]) for record in records)]


def _large_table(records: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = [
        [r["law"], r["parameters"], r["gauge"], r["rows"]]
        + [number(r[f"{source}{end}"]) for end in ("smallest", "largest") for source in ("", "dense_", "closed_")]
        for r in records
    ]
    ends = [f"{end}, {how}" for end in ("smallest", "largest") for how in ("Lanczos", "dense", "closed form")]
    return Table(("law", "P", "gauge", "rows", *ends), rows, "", "l" + "r" * 9)


def _legend(axis: Any) -> None:
    axis.legend(frameon=False, fontsize=8, labelcolor="#808080")


def _spectrum_uri(records: Sequence[Record]) -> str:
    fig, (left, right) = pictures.figure(8.6, 3.2, columns=2)
    gammas = [r["gamma"] for r in records]
    grid = [gammas[0] + (gammas[-1] - gammas[0]) * i / 100 for i in range(101)] if len(gammas) > 1 else gammas
    closed = {
        "mean_across": lambda s2, g2: s2 / g2**2,
        "factor_out": lambda s2, g2: s2**2 * (s2 + 2 * g2) / g2**2,
        "factor_in": lambda s2, g2: 4 * s2**2,
        "mean_along": lambda s2, g2: s2,
    }
    for (name, label), color in zip(_GROUPS.items(), _COLORS, strict=False):
        left.plot(grid, [closed[name](1 - g**2, g**2) for g in grid], color=color, lw=1.2)
        left.plot(gammas, [r[name] for r in records], "o", color=color, ms=4, label=label.split(":")[0])
    right.plot(grid, [g**-4 for g in grid], color=_COLORS[0], lw=1.2, label="((s² + γ²)/γ²)²")
    right.plot(gammas, [r["kappa"] for r in records], "o", color=_COLORS[0], ms=4, label="measured κ")
    for axis, label in ((left, "eigenvalue"), (right, "κ, gauge left out")):
        axis.set_yscale("log")
        axis.set_xlabel("noise level γ, s² = 1 − γ²")
        axis.set_ylabel(label)
        _legend(axis)
    return pictures.svg_uri(fig)


def _blocks_uri(records: Sequence[Record]) -> str:
    gammas = _values(records, "gamma")
    fig, axes = pictures.figure(8.6, 2.9, columns=len(gammas))
    for axis, gamma in zip(axes, gammas, strict=True):
        for n, color in zip(_values(records, "modes"), _COLORS, strict=False):
            own = select(records, modes=n, gamma=gamma)
            at = _values(own, "separation")
            errors = [[max(_block_error(r), 1e-15) for r in select(own, separation=one)] for one in at]
            axis.fill_between(at, list(map(min, errors)), list(map(max, errors)), color=color, alpha=0.2, lw=0)
            middle = list(map(statistics.median, errors))
            axis.plot(at, middle, color=color, marker="o", ms=3, lw=1.2, label=f"n = {n}")
        axis.axhline(_TARGET, color="#808080", lw=0.8, ls=":")
        axis.set_yscale("log")
        axis.set_title(f"γ = {gamma:g}", fontsize=9)
        axis.set_xlabel("separation")
    axes[0].set_ylabel("relative error")
    _legend(axes[-1])
    return pictures.svg_uri(fig)


def _angle_uri(records: Sequence[Record]) -> str:
    fig, (axis,) = pictures.figure(4.8, 3.0)
    degrees = [r["degrees"] for r in records]
    for key, label, color, style in (
        ("printed", "printed, reconstructed", _COLORS[1], "-"),
        ("centred", "δ, centred", _COLORS[4], "--"),
        ("exact", "exact", _COLORS[0], "-"),
    ):
        axis.plot(degrees, [max(r[key], 0.0) for r in records], style, color=color, lw=1.2, label=label)
    axis.plot(degrees, [r["measured"] for r in records], "o", color=_COLORS[0], ms=4, label="measured")
    axis.set_yscale("symlog", linthresh=1.0)
    axis.set_xlabel("angle between μ and the span of U, degrees")
    axis.set_ylabel("smallest eigenvalue")
    _legend(axis)
    return pictures.svg_uri(fig)


def _radius_uri(records: Sequence[Record]) -> str:
    fig, (left, right) = pictures.figure(8.6, 3.2, columns=2)
    two = select(records, modes=2)
    far = max(r["separation"] for r in two)
    own = select(two, separation=far)
    gammas = [r["gamma"] for r in own]
    left.plot(gammas, [statistics.median(r["random"]) for r in own], color=_COLORS[4], marker="o", ms=3, label="random")
    left.plot(gammas, [r["worst"] for r in own], color=_COLORS[0], marker="o", ms=3, label="worst")
    left.plot(gammas, [_shift_radius(g) for g in gammas], color="#808080", lw=0.9, ls=":", label="γ²/(s√(1 + γ²))")
    left.set_xscale("log")
    left.set_xticks(gammas, [f"{g:g}" for g in gammas])
    left.minorticks_off()
    left.set_xlabel(f"noise level γ (two modes, separation {far:g})")
    for n, color in zip(_values(records, "modes")[::-1], _COLORS, strict=False):
        own = sorted(select(records, modes=n, gamma=0.5), key=lambda r: r["separation"])
        at = [r["separation"] for r in own]
        right.plot(at, [r["worst"] for r in own], color=color, marker="o", ms=3, label=f"n = {n}, worst")
        right.plot(at, [statistics.median(r["random"]) for r in own], color=color, lw=0.9, ls="--", label="random")
    right.axhline(_shift_radius(0.5), color="#808080", lw=0.9, ls=":")
    right.set_xlabel("separation (γ = 0.5)")
    for axis in (left, right):
        axis.set_yscale("log")
        axis.set_ylabel("radius")
        _legend(axis)
    return pictures.svg_uri(fig)
