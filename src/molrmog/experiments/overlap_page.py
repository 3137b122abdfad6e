"""The page, figures and tables of the overlap experiment; see `experiments.overlap`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from molrmog import pictures
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, number, select, write_csv, write_page
from molrmog.theory.overlap import APART

Record = Mapping[str, Any]

_OVERLAP = ("part", "name", "of", "modes", "expert", "rows", "sigma", "eps", "eps_low", "eps_high", "largest_pair")
_OVERLAP += ("mean_pair", "apart", "measured_rows")
_INK = "#808080"
_TITLE: dict[str, Any] = {"fontsize": 9, "color": _INK}
_COLOURS = (
    "#3b7dd8",
    "#e08a2e",
    "#4f9d69",
    "#b0526e",
    "#7a5fb5",
    "#808080",
    "#2f9aa0",
    "#c4a000",
    "#a0522d",
    "#5f7f3f",
)
_KINDS = {"pair": "a pair", "four": "four modes", "subspaces": "two subspaces of two modes"}


def write_overlap_page(
    out: Path,
    overlaps: Sequence[Record],
    curvatures: Sequence[Record],
    chosen: Mapping[str, Any],
    data: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write overlap.csv, curvature.csv and report.html.

    Args:
        out: folder of the experiment.
        overlaps: records of the parts "random" and "data".
        curvatures: records of the points of the curvature part.
        chosen: the budget, and why data sets are missing.
        data: name to what was made of it.

    Returns:
        The path of the page.
    """
    write_csv(out / "overlap.csv", _OVERLAP, [[record[column] for column in _OVERLAP] for record in overlaps])
    columns = list(curvatures[0])
    write_csv(out / "curvature.csv", columns, [[record[column] for column in columns] for record in curvatures])
    real = [record for record in overlaps if record["part"] == "data"]
    sections = [
        _random_section([record for record in overlaps if record["part"] == "random"]),
        *([_data_section(real, data, chosen["missing"])] if real else []),
        _curvature_section(curvatures, chosen["radii"]),
        _bound_section(curvatures),
    ]
    settings = {key: value for key, value in chosen.items() if key != "missing"}
    settings |= {"missing data": chosen["missing"] or "none", "data": data}
    settings["command"] = f"molrmog reproduce overlap --budget {chosen['budget']} --seed {chosen['seed']}"
    return write_page(
        out / "report.html",
        "Overlap of modes, and what it costs",
        _INTRODUCTION,
        sections,
        settings,
        cards=_cards(real, curvatures, chosen["radii"]),
    )


_INTRODUCTION = """\
Modes overlap where a row may belong to more than one: ξ_ij = r_i r_j with the gates r, and \
ε = max_i E Σ_j ξ_ij = max_i E r_i (1 − r_i) ≤ 1/4. The paper (arXiv 2601.01475) assumes that ε is small, reports \
ξ < 0.001 in the latents of ImageNet without a noise level, and bounds the smallest eigenvalue of the Hessian of the \
score-matching loss from below by α − C′ε, α being that of separated modes.

ε is a function of the noise level σ = γ / s alone: it grows with σ towards max_i w_i (1 − w_i). Every figure here has \
its σ, in units of the latents' mean deviation."""
_RANDOM_TEXT = """\
Laws drawn at random, D = 64, three subspaces of dimension 6 with four modes of rank 2 each, τ = 0.1, over the \
separation, the root mean square distance of a mean from the origin. Bands are 95% intervals."""
_DATA_TEXT = """\
EM's laws, one per expert in the latents of its own autoencoder (between “modes”), and one law of all experts in one \
space (between “experts”, and between “all modes” of all). “Fresh” rows \
are drawn from the law itself: the ε of the theorem. “Held-out” rows are real ones that EM did not see, noised: they \
lie between modes more often than the law's own, since the law is a fit. Where they are few they are noised several \
times, and intervals are over clean rows (their number is measured_rows in overlap.csv); those of a few dozen rows are \
rough, and no interval knows of the error of the fit. Lines are the expert with the largest ε."""
_HOLDS_TEXT = """\
Up to which σ on the grid ξ < 0.001 holds, by four readings, for all experts: the mean of E ξ_ij over pairs, every \
E ξ_ij, ε itself, and every ξ_ij on 99% of single rows; – where it does not hold at the least σ of the grid. The first \
says little: in noise alone C equal modes have ξ_ij = 1 / C², which is below 0.001 from C = 32 on."""
_CURVATURE_TEXT = """\
Smallest eigenvalue of the Hessian of ½ E |s_θ − s*|² in (μ, U), rotations of U removed, divided by α, the closed form \
for modes that never meet. At the truth (solid) the Hessian is a Gauss–Newton matrix, so it cannot be negative; on \
this sweep of orthonormal U it is zero where two modes coincide, factors included, and positive at every other point \
(a column of U that is zero would make it zero, too). Where gates are soft it \
may also lie above α. Near the truth (dashed: at {radii} σ from \
it, the least of the weakest direction, there and back, and random ones) it does become negative: that is where strong \
convexity is lost."""
_BOUND_TEXT = """\
H = H_sep + dH; Weyl's bound is λ_min(H) ≥ α − |dH|, and the paper's α − C′ε takes |dH| ≤ C′ε. Left: |dH| / ε, which \
would be the constant C′; few rows carry it where ε is small. Right: λ_min and both bounds over α, cut off below −1."""


def _distinct(records: Sequence[Record], key: str, *more: str) -> list[Any]:
    """Values of a key, or of several together, in order."""
    return list(dict.fromkeys(tuple(r[name] for name in (key, *more)) if more else r[key] for r in records))


def _random_section(records: Sequence[Record]) -> Section:
    fig, axes = pictures.figure(9.6, 3.2, columns=2)
    for axis, of in zip(axes, ("modes", "subspaces"), strict=True):
        for name, colour in zip(_distinct(records, "name"), _COLOURS, strict=False):
            own = select(records, name=name, of=of)
            sigma = [r["sigma"] for r in own]
            axis.plot(sigma, [r["eps"] for r in own], color=colour, lw=1.2, marker="o", ms=3, label=name)
            _band(axis, own, colour)
        _levels(axis, of)
    axes[0].set_ylabel("ε")
    _legend(fig, axes[0], "separation ")
    return Section("Laws at random", _RANDOM_TEXT, figures=[Figure(pictures.svg_uri(fig), "ε against σ.", wide=True)])


def _data_section(records: Sequence[Record], data: Mapping[str, Record], missing: Mapping[str, str]) -> Section:
    main = [r for r in records if r["modes"] == data[r["name"]]["modes"][0]]
    figures: list[Figure] = []
    scopes: list[tuple[str, list[Record]]] = [
        ("modes of one expert, in its latents", [r for r in main if r["expert"] is not None]),
        ("experts of one law", [r for r in main if r["expert"] is None and r["of"] == "subspaces"]),
    ]
    fig, axes = pictures.figure(9.6, 3.2, columns=2)
    for axis, (title, part) in zip(axes, scopes, strict=True):
        for name, colour in zip(_distinct(records, "name"), _COLOURS, strict=False):
            for rows, style in (("fresh", "-"), ("held-out", "--")):
                own = select(part, name=name, rows=rows)
                sigmas = _distinct(own, "sigma")
                worst = [max(select(own, sigma=sigma), key=lambda r: r["eps"]) for sigma in sigmas]
                label = name if rows == "fresh" and own else None
                axis.plot(sigmas, [r["eps"] for r in worst], color=colour, ls=style, lw=1.3, label=label)
                _band(axis, worst, colour)
        _levels(axis, title)
    axes[0].set_ylabel("ε")
    _legend(fig, axes[0])
    figures.append(
        Figure(pictures.svg_uri(fig), "ε against σ: solid fresh rows, dashed held-out; dotted 0.001.", wide=True)
    )
    text = _DATA_TEXT
    for name, why in missing.items():
        text += f"\n\n{name} is left out: {why}"
    return Section("Laws of real latents", text, [_data_table(main), _holds_table(records)], figures)


def _data_table(records: Sequence[Record]) -> Table:
    sigmas = _distinct(records, "sigma")[::2]
    rows: list[list[Cell]] = []
    for name, of, modes, rows_of in _distinct(records, "name", "of", "modes", "rows"):
        for inside in (True, False):
            own = select(records, name=name, of=of, modes=modes, rows=rows_of)
            own = [r for r in own if (r["expert"] is not None) == inside]
            if own:
                worst = [max(select(own, sigma=sigma), key=lambda r: r["eps"]) for sigma in sigmas]
                rows.append([name, _scope(of, inside), modes, rows_of, *(_interval(r) for r in worst)])
    columns = ("data", "between", "n", "rows", *(f"σ = {sigma:g}" for sigma in sigmas))
    return Table(
        columns, rows, "ε and its 95% interval, for the expert with the largest; overlap.csv has every expert and σ."
    )


def _scope(of: str, inside: bool) -> str:
    return "modes" if inside else "experts" if of == "subspaces" else "all modes"


def _interval(record: Record) -> str:
    return f"{_short(record['eps'])} ({_short(record['eps_low'])}–{_short(record['eps_high'])})"


def _short(value: float) -> str:
    return "0" if value == 0 else number(value, 2) if value >= 1e-3 else f"{value:.0e}".replace("-", "−")


def _holds_table(records: Sequence[Record]) -> Table:
    readings: dict[str, Callable[[Record], bool]] = {
        "mean E ξ_ij": lambda r: r["mean_pair"] < APART,
        "every E ξ_ij": lambda r: r["largest_pair"] < APART,
        "ε": lambda r: r["eps"] < APART,
        "99% of rows": lambda r: r["apart"] > 0.99,
    }
    rows: list[list[Cell]] = []
    for name, of, modes, inside in dict.fromkeys(
        (r["name"], r["of"], r["modes"], r["expert"] is not None) for r in records
    ):
        cells: list[Cell] = []
        for rows_of in ("fresh", "held-out"):
            own = select(records, name=name, of=of, modes=modes, rows=rows_of)
            own = [r for r in own if (r["expert"] is not None) == inside]
            cells += [_up_to(own, holds) for holds in readings.values()]
        rows.append([name, _scope(of, inside), modes, *cells])
    columns = (
        "data",
        "between",
        "n",
        *(f"{reading}, {kind}" for kind in ("fresh", "held-out") for reading in readings),
    )
    return Table(columns, rows, _HOLDS_TEXT)


def _up_to(records: Sequence[Record], holds: Callable[[Record], bool]) -> str:
    """The largest sigma up to which a reading holds for all experts."""
    reached = "–"
    for sigma in sorted(_distinct(records, "sigma")):
        if not all(holds(r) for r in select(records, sigma=sigma)):
            return reached
        reached = f"{sigma:g}"
    return reached


def _curves(records: Sequence[Record]) -> list[list[Record]]:
    """Points of one law and noise level, by distance."""
    return [
        sorted(select(records, kind=kind, sigma=sigma, seed=seed), key=lambda r: r["distance"])
        for kind, sigma, seed in _distinct(records, "kind", "sigma", "seed")
    ]


def plot_eigenvalues(records: Sequence[Record], radii: Sequence[float]) -> Any:
    """Smallest eigenvalue over alpha against eps, one kind of law beside the other."""
    kinds = _distinct(records, "kind")
    fig, axes = pictures.figure(3.3 * len(kinds) + 0.6, 3.2, columns=len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        for sigma, colour in zip(_distinct(records, "sigma"), _COLOURS, strict=False):
            for i, curve in enumerate(_curves(select(records, kind=kind, sigma=sigma))):
                eps = [r["eps"] for r in curve]
                label = f"σ = {sigma:g}" if i == 0 else None
                axis.plot(eps, _over(curve, "smallest"), color=colour, lw=1.2, marker="o", ms=2.5, label=label)
                for radius, style in zip(radii, ("--", ":"), strict=False):
                    near = [max(value, -1.0) for value in _over(curve, f"near {radius:g}")]
                    axis.plot(eps, near, color=colour, lw=1, ls=style)
        axis.axhline(0, color=_INK, lw=0.8)
        axis.set_ylim(-0.55, 1.55)
        axis.set_xlim(0, 0.26)
        axis.set_xlabel("ε")
        axis.set_title(_KINDS[kind], **_TITLE)
    axes[0].set_ylabel("λ_min / α")
    _legend(fig, axes[0])
    return fig


def _curvature_section(records: Sequence[Record], radii: Sequence[float]) -> Section:
    names = " and ".join(f"{radius:g}" for radius in radii)
    caption = f"Solid at the truth, dashed and dotted at {names} σ from it; every law is one line."
    return Section(
        "Smallest eigenvalue against overlap",
        _CURVATURE_TEXT.format(radii=names),
        [_loss_table(records, radii)],
        [Figure(pictures.svg_uri(plot_eigenvalues(records, radii)), caption, wide=True)],
    )


def _over(curve: Sequence[Record], key: str) -> list[float]:
    return [r[key] / r["alpha"] for r in curve]


def lost_at(curve: Sequence[Record], key: str) -> tuple[float, float] | None:
    """The least eps at which an eigenvalue is not positive, and that of the point before; None where it always is.

    Args:
        curve: points of one law.
        key: of the eigenvalue.
    """
    lost = min((r["eps"] for r in curve if r[key] <= 0), default=None)
    return None if lost is None else (max((r["eps"] for r in curve if r["eps"] < lost), default=0.0), lost)


def _loss_table(records: Sequence[Record], radii: Sequence[float]) -> Table:
    rows: list[list[Cell]] = []
    for kind, sigma in _distinct(records, "kind", "sigma"):
        curves = _curves(select(records, kind=kind, sigma=sigma))
        apart = [r for curve in curves for r in curve if r["distance"] > 0]
        together = [r["smallest"] / r["alpha"] for curve in curves for r in curve if r["distance"] == 0]
        closest = min(apart, key=lambda r: r["smallest"] / r["alpha"])
        cells: list[Cell] = [number(sum(c[0]["alpha"] for c in curves) / len(curves), 3)]
        cells.append(f"{number(closest['smallest'] / closest['alpha'], 2)} at ε = {number(closest['eps'], 3)}")
        cells.append(" · ".join(_zero(value) for value in together))
        cells.append(_brackets([_turn(curve, lambda r: r["smallest"] > r["alpha"] / 2) for curve in curves]))
        cells += [_brackets([lost_at(curve, key) for curve in curves]) for key in (f"near {r:g}" for r in radii)]
        rows.append([_KINDS[kind], f"{sigma:g}", *cells])
    columns = ("law", "σ", "α", "least λ_min/α, means apart", "means together", "half of α at the truth")
    columns += tuple(f"zero {radius:g} σ away" for radius in radii)
    caption = (
        "Last columns: the least ε of the sweep at which λ_min is lower, after that of the point before, law by law. "
        "“Means together” is the point of distance 0; four modes then still differ in their factors."
    )
    return Table(columns, rows, caption)


def _zero(value: float) -> str:
    return "0" if abs(value) < 1e-9 else number(value, 2)


def _turn(curve: Sequence[Record], above: Callable[[Record], bool]) -> tuple[float, float] | None:
    return lost_at([{"eps": r["eps"], "above": 1.0 if above(r) else -1.0} for r in curve], "above")


def _brackets(found: Sequence[tuple[float, float] | None]) -> str:
    return " · ".join("–" if pair is None else f"{_short(pair[0])}–{_short(pair[1])}" for pair in found)


def _measured(records: Sequence[Record]) -> list[Record]:
    """Points whose eps is known to a fifth, so that |dH| / eps says something."""
    return [r for r in records if r["distance"] > 0 and r["eps_low"] > 0.8 * r["eps"]]


def _bound_section(records: Sequence[Record]) -> Section:
    fig, (ratio, bounds) = cast(Any, pictures.figure(9.6, 3.4, columns=2))
    for (kind, sigma), colour in zip(_distinct(records, "kind", "sigma"), _COLOURS, strict=False):
        for i, curve in enumerate(_curves(select(records, kind=kind, sigma=sigma))):
            own = _measured(curve)
            label = f"{_KINDS[kind]}, σ = {sigma:g}" if i == 0 else None
            ratio.plot(
                [r["eps"] for r in own], [r["change"] / r["eps"] for r in own], color=colour, lw=1.2, label=label
            )
    for sigma, colour in zip(_distinct(records, "sigma"), _COLOURS, strict=False):
        curve = [r for r in _curves(select(records, kind=records[0]["kind"], sigma=sigma))[0] if r["eps"] > 0]
        eps, cost = [r["eps"] for r in curve], max((r["change"] / r["eps"] for r in _measured(curve)), default=math.nan)
        bounds.plot(eps, _over(curve, "smallest"), color=colour, lw=1.4, label=f"σ = {sigma:g}")
        bounds.plot(eps, [max(v, -1.0) for v in _over(curve, "weyl")], color=colour, lw=1, ls="--")
        bounds.plot(eps, [max(1 - cost * r["eps"] / r["alpha"], -1.0) for r in curve], color=colour, lw=1, ls=":")
    for axis in (ratio, bounds):
        axis.set_xscale("log")
        axis.set_xlabel("ε")
    bounds.set_xlim(1e-7, 0.3)
    ratio.set_yscale("log")
    ratio.set_ylabel("|dH| / ε")
    bounds.set_ylabel("over α")
    bounds.set_title(f"{_KINDS[records[0]['kind']]}: λ_min, Weyl (dashed), α − C′ε (dotted)", **_TITLE)
    _legend(fig, ratio)
    figure = Figure(
        pictures.svg_uri(fig), "Left: what C′ would be. Right: the bounds beside what they bound.", wide=True
    )
    return Section("The bounds", _BOUND_TEXT, [_bound_table(records)], [figure])


def _bound_table(records: Sequence[Record]) -> Table:
    rows: list[list[Cell]] = []
    for kind, sigma in _distinct(records, "kind", "sigma"):
        own = _measured(select(records, kind=kind, sigma=sigma))
        if not own:
            continue
        costs = [r["change"] / r["eps"] for r in own]
        alpha = own[0]["alpha"]
        reach = alpha / max(costs)
        few = min(own, key=lambda r: r["eps"])
        some = min(own, key=lambda r: abs(math.log(r["eps"] / 0.05)))
        rows.append(
            [
                _KINDS[kind],
                f"{sigma:g}",
                f"{number(min(costs), 2)} to {number(max(costs), 2)}",
                f"{_short(few['eps'])}",
                _slope(own),
                _short(reach),
                _brackets([lost_at(curve, "weyl") for curve in _curves(select(records, kind=kind, sigma=sigma))]),
                number(own[0]["separated_largest"] / alpha, 3),
                f"{number(some['largest'] / some['smallest'], 3)} at ε = {_short(some['eps'])}",
            ]
        )
    columns = (
        "law",
        "σ",
        "|dH| / ε",
        "least ε",
        "slope of log |dH| in log ε",
        "α − C′ε > 0 below",
        "Weyl's bound is zero at ε",
        "κ separated",
        "κ measured",
    )
    caption = (
        "Points with ε known to 20%, modes apart. C′ is the largest |dH| / ε of them. The paper's "
        "κ_eff = L′ / (α − C′ε) is finite only where α − C′ε > 0."
    )
    return Table(columns, rows, caption)


def _slope(records: Sequence[Record]) -> Cell:
    if len(records) < 3:
        return None
    x, y = ([math.log(r[key]) for r in records] for key in ("eps", "change"))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def _cards(real: Sequence[Record], records: Sequence[Record], radii: Sequence[float]) -> list[Card]:
    apart = [r for r in records if r["distance"] > 0]
    least = min(apart, key=lambda r: r["smallest"] / r["alpha"])
    lost = [pair for curve in _curves(records) if (pair := lost_at(curve, f"near {radii[0]:g}")) is not None]
    cards = [
        Card(
            f"{sum(r['smallest'] > 0 for r in apart)} of {len(apart)}",
            "laws of distinct modes strictly convex at the truth",
            f"least λ_min {number(least['smallest'] / least['alpha'], 2)} α, at ε = {number(least['eps'], 3)}",
        ),
        Card(
            f"{number(min(p[0] for p in lost), 2)} to {number(max(p[1] for p in lost), 2)}" if lost else "nowhere",
            f"ε at which convexity is lost {radii[0]:g} σ from the truth",
            f"{len(lost)} of {len(_curves(records))} sweeps cross zero",
        ),
    ]
    if real:
        inside = [r for r in real if r["expert"] is not None and r["rows"] == "fresh"]
        low = min(r["sigma"] for r in inside)
        at_low = select(inside, sigma=low)
        cards.append(
            Card(
                f"{sum(r['largest_pair'] < APART for r in at_low)} of {len(at_low)}",
                f"laws of real latents with every E ξ_ij < 0.001 at σ = {low:g}",
                "modes of one expert, the law's own rows",
            )
        )
    return cards


def _band(axis: Any, records: Sequence[Record], colour: str) -> None:
    low, high = ([max(r[key], 1e-12) for r in records] for key in ("eps_low", "eps_high"))
    axis.fill_between([r["sigma"] for r in records], low, high, color=colour, alpha=0.15, linewidth=0)


def _levels(axis: Any, title: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(1e-7, 0.4)
    axis.axhline(APART, color=_INK, lw=0.8, ls=":")
    axis.set_xlabel("σ = γ / s")
    axis.set_title(title, **_TITLE)


def _legend(fig: Any, axis: Any, prefix: str = "") -> None:
    handles, labels = axis.get_legend_handles_labels()
    names = [prefix + label for label in labels]
    fig.legend(handles, names, loc="outside upper center", frameon=False, fontsize=8, labelcolor=_INK, ncols=5)
