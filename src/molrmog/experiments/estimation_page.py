"""The page of the estimation experiment: its tables, figures, and what each says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from molrmog import pictures
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, number, write_page
from molrmog.theory.estimation import Slope, loglog_slope, mean_interval

Record = Mapping[str, Any]

_SETTLED = 1024  # n from which a slope is called asymptotic
_FEW, _MANY = 512, 4096  # ends of the ranges between which the gap at the fit passes from one slope to the other
_SHARE = 0.01  # of the scale: the error whose n is sought
_COLORS = {
    "known": "#3b7dd8",
    "known-tau": "#4f9d69",
    "learned": "#e08a2e",
    "learned-prior": "#b0568f",
    "flat": "#b0568f",
    "kernel": "#808080",
    "mlp": "#4f9d69",
}
_NAMES = {
    "known": "A known",
    "known-tau": "A known, τ learned",
    "learned": "all learned",
    "learned-prior": "all learned, with prior",
    "flat": "flat mixture",
    "kernel": "kernel",
    "mlp": "MLP",
}


def write_report(out: Path, records: Sequence[Record], compared: tuple[int, int], settings: Mapping[str, Any]) -> Path:
    """Write report.html.

    Args:
        out: folder of the experiment.
        records: of all cells.
        compared: the two D whose errors the claim compares.
        settings: shown at the end.
    """
    sections = [
        _against_n(records),
        _against_dim(records, compared, settings["law"]),
        _against_shape(records),
        _gap(records),
        _peers(records, settings["steps"]),
        _score_matching(records),
        _starts(records),
    ]
    known = _slope(records, "known", least=_least(records))
    ratio = _ratio(records, compared)
    grown = _growth(records)
    gap = _gap_slope(records, "gap at the truth")
    cards = [
        Card(_interval(known.value, known.low, known.high), "slope of the squared error in n, A known", "claim: −1"),
        Card(_interval(*ratio), f"error at D = {compared[1]:,} over that at {compared[0]:,}, A known", "claim: 1"),
        Card(_interval(*grown), "growth of n E with each dimension, all learned", "b of n E = a + b D"),
        Card(_interval(gap.value, gap.low, gap.high), "slope of the gap in n, at the truth", "claim: −1/2"),
    ]
    return write_page(
        out / "report.html", "How many rows a score needs", _INTRODUCTION, sections, settings, cards=cards
    )


_INTRODUCTION = """\
Laws are known and so are their scores: what a learned score lacks, E‖s_θ − s*‖², is measured on fresh rows. Where \
not said otherwise γ = 0.5, s² + γ² = 1, and the law has K = 3 subspaces of d = 4 with n = 2 modes of rank 2 each, τ \
= 0.1.

Fits start at the truth, so that estimation is measured and no search; the last section counts where other starts \
end. Intervals are 95%, by Student's t over seeds, each with another law and other rows."""
_N_TEXT = """\
Slope of log E in log n, fitted seed by seed. “Total” adds up the three noise levels, each weighed by γ². The dashed \
line is tr(F⁺G) / n, what maximum likelihood tends to with A known: computed from the law alone, with no fit.

At the smallest n the modes have a dozen rows each and no theory of small errors holds; the slope over all n has \
that in it, the one from n = {settled:,} on has not."""
_DIM_TEXT = """\
The law is the same in every D, embedded by an isometry. On rows that agree in the span of the subspaces, A known \
and τ known, the fits agree, and so do the errors on the same fresh rows: with one known τ for all subspaces nothing \
in the problem knows D. Rows drawn independently show it again, to within their Monte Carlo error.

With τ learned there is one more error, off the span: 2 s⁴ τ⁴ / v³ for each subspace, over n. It does not grow with \
D, nor does it fall: the variance of τ² falls as 1 / (n D), but D coordinates share in it. (Less where gates are \
soft, which averages the errors of several τ_k.) With A learned the error grows linearly: n E = a + b D."""
_SHAPE_TEXT = """\
A known, one number of the law varied at a time; n E as geometric mean over laws. This is the excess, which the paper \
does not bound: its bound is on the gap, below. An excess is quadratic in what is estimated, and grows with how many \
numbers are estimated, each weighed by how well the rows show it. The rank stays 2 while d_k grows, so that a further \
direction of a mean holds only τ in clean rows, and costs little."""
_GAP_TEXT = """\
L_n is the mean of ‖s_θ(x_t) + ε/γ‖² over n rows, with the noise averaged over pairs of opposite sign, L its \
expectation; both in R^q, where everything that depends on θ is. “At the truth” is one fixed θ; “largest of 8 laws” \
is over the truth and seven laws around it (means moved by 0.2, factors by 20%), a stand-in for the supremum; “at \
the fit” is |L_n(θ_n) − L(θ_n)| for EM's θ_n. That one is the gap at the truth and the fit's own part, L(θ_n) − \
L(θ*) + L_n(θ*) − L_n(θ_n), measured on the same rows and noises: eight of each row, which is why the gap at the \
truth is smaller on them than on the pool's two. The fit's part falls as 1/n and the gap at the truth as n^(−1/2), so \
the first rules at small n, the second at large n, and one slope over all n is neither's.

The bound is (R + s B_μ)⁴ s² / γ⁶ · √(Σ n_k) √(Σ n_k d_k) / √n with R the largest norm among the rows, up to a \
constant that is not printed. Its slope in n is that of the gap. Its shape without the constant is {factor} times the \
largest gap of eight laws at the largest n, which says little: nobody printed the constant. Its power of γ, which no \
constant changes, stands beside the gap's."""
_PEER_TEXT = """\
All methods on the same rows; those of different D agree in the span of the subspaces. The target is 1% of E‖s* + \
x/v‖², the error of a score that knows the noise and no subspace. n is interpolated in log-log between the sizes that \
were tried, law by law; “>” marks a target that was not reached, “≤” one that the smallest n reaches. The flat mixture \
has as many modes with full covariances (and starts at the truth); it is left out above D = 128. The MLP (width 128, \
two blocks, {steps:,} steps of Adam) is trained for this one noise level and kept as it was when best on fresh rows; \
more steps lower it at large n, so its figures are of this budget. An empty cell was not computed.

With A known the error is the same in every D, by construction and to rounding, so that its rows are counted in R^q \
alone, over more laws and smaller n, each error a mean over {draws} draws of rows: {few}."""
_DSM_TEXT = """\
The same rows, start and parameters: EM (maximum likelihood) and the minimum of the denoising loss at γ = 0.5 over \
eight noises of each row, by 60 steps of L-BFGS. Nothing of either knows D. Ratios are score matching over EM on the \
same rows; CPU seconds are of one fit in R^q."""
_START_TEXT = """\
EM from other starts, four for each law: A known (modes by k-means or at random in the true subspaces) and all \
learned (subspaces by clustering, with the library's prior). A run has reached the optimum next to the truth if its \
log-likelihood lacks less than 0.001 nats per row. Starts of one law are not independent: it is laws that are \
counted. “Likeliest” is what keeping the likeliest of a law's runs gives, relative to the error from the truth."""


def _of(records: Iterable[Record], **wanted: Any) -> list[Record]:
    return [record for record in records if all(record.get(key) == value for key, value in wanted.items())]


def _values(records: Iterable[Record], key: str) -> list[Any]:
    return sorted({record[key] for record in records if record.get(key) is not None})


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def _interval(value: float, low: float, high: float) -> str:
    """A value and its interval; the value alone where there is no interval."""
    return number(value, 3) if math.isnan(low) else f"{number(value, 3)} [{number(low, 3)}, {number(high, 3)}]"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, and the least and largest."""
    return f"{number(median(values), digits)} ({number(min(values), digits)} to {number(max(values), digits)})"


def _show(slope: Slope) -> str:
    return _interval(slope.value, slope.low, slope.high)


def _by_seed(records: Sequence[Record], x: str, total: bool = False) -> tuple[list[Any], list[list[float]]]:
    """The values of x that all seeds have, and for each seed the errors there."""
    at = _values(records, x)
    rows: list[list[float]] = []
    for seed in _values(records, "seed"):
        row: list[float] = []
        for value in at:
            found = _of(records, seed=seed, **{x: value})
            weights = [r["gamma"] ** 2 if total else 1 / len(found) for r in found]
            row.append(sum(w * r["error"] for w, r in zip(weights, found, strict=True)))
        rows.append(row)
    return at, rows


def _least(records: Sequence[Record]) -> int:
    """The n from which a slope is asymptotic, or the smallest where too few are larger."""
    n = _values(_of(records, sweep="n"), "n")
    return _SETTLED if sum(one >= _SETTLED for one in n) > 1 else n[0]


def _slope(records: Sequence[Record], method: str, gamma: float | None = 0.5, least: int = 0) -> Slope:
    """Slope in n at a noise level; of the total where gamma is None."""
    own = [r for r in _of(records, sweep="n", method=method) if r["n"] >= least]
    return loglog_slope(*_by_seed(own if gamma is None else _of(own, gamma=gamma), "n", total=gamma is None))


def _against_n(records: Sequence[Record]) -> Section:
    own, least = _of(records, sweep="n"), _least(records)
    methods = [m for m in ("known", "known-tau", "learned", "learned-prior") if _of(own, method=m)]
    levels = _values(_of(own, method="known"), "gamma")
    rows: list[list[Cell]] = []
    for method in methods:
        for gamma in [*levels, None]:
            n = _values(_of(own, method=method), "n")
            after = [one for one in n if one >= least]
            late = _show(_slope(records, method, gamma, least)) if len(after) > 1 else None
            where = "total" if gamma is None else number(gamma)
            rows.append([_NAMES[method], where, f"{n[0]:,} to {n[-1]:,}", _show(_slope(records, method, gamma)), late])
    columns = ("learned", "γ", "n", "slope over all n", f"slope from n = {least:,}")
    asymptotic = _geometric([r["error"] for r in _of(own, method="asymptotic")])
    n = _values(_of(own, method="known"), "n")
    reached = [[r["n"] * r["error"] for r in _of(own, method="known", gamma=0.5, n=one)] for one in n]
    traces = [r["error"] for r in _of(own, method="asymptotic")]
    ratio = [[error / trace for error, trace in zip(errors, traces, strict=True)] for errors in reached]
    near = Table(
        ("n", "n E", "n E / tr(F⁺G)"),
        [
            [one, number(_geometric(errors)), _interval(sum(part) / len(part), *mean_interval(part))]
            for one, errors, part in zip(n, reached, ratio, strict=True)
        ],
        "A known, γ = 0.5, beside the asymptotic value; n E as geometric mean, the ratio as mean over seeds.",
    )
    curves = [(_NAMES[m], _COLORS[m], *_mean_curve(_of(own, method=m, gamma=0.5), "n")) for m in ("known", "learned")]
    line = ("tr(F⁺G) / n", "#808080", [n[0], n[-1]], [asymptotic / n[0], asymptotic / n[-1]])
    dim = _values(own, "D")[-1]
    plot = _plot(curves, "rows n", "E‖s_θ − s*‖²", dashed=[line])
    return Section(
        "Error against n",
        _N_TEXT.format(settled=least),
        [Table(columns, rows, f"D = {dim}, {len(traces)} seeds."), near],
        [
            Figure(
                plot,
                f"D = {dim}, γ = 0.5; geometric mean over seeds. τ learned and the prior change neither visibly",
                wide=True,
            )
        ],
    )


def _mean_curve(records: Sequence[Record], x: str) -> tuple[list[Any], list[float]]:
    at = _values(records, x)
    return at, [_geometric([r["error"] for r in _of(records, **{x: value})]) for value in at]


def _ratio(records: Sequence[Record], compared: tuple[int, int]) -> tuple[float, float, float]:
    """Error at the second D over that at the first, on independent rows: geometric mean over seeds and its interval."""
    own = _of(records, sweep="pair")
    logs: list[float] = []
    for seed in _values(own, "seed"):
        first, second = ([r["error"] for r in _of(own, seed=seed, D=dim)] for dim in compared)
        logs.append(math.log(sum(second) / sum(first)))
    low, high = mean_interval(logs)
    return math.exp(sum(logs) / len(logs)), math.exp(low), math.exp(high)


def _growth(records: Sequence[Record]) -> tuple[float, float, float]:
    """B of n E = a + b D with everything learned, and its interval."""
    own = _of(records, sweep="dim", method="learned")
    at, errors = _by_seed(own, "D")
    n, middle = own[0]["n"], sum(at) / len(at)
    square = sum((dim - middle) ** 2 for dim in at)
    slopes = [n * sum((dim - middle) * e for dim, e in zip(at, row, strict=True)) / square for row in errors]
    return sum(slopes) / len(slopes), *mean_interval(slopes)


def _against_dim(records: Sequence[Record], compared: tuple[int, int], law: Mapping[str, Any]) -> Section:
    own = _of(records, sweep="dim")
    n = own[0]["n"]
    dims, known = _by_seed(_of(own, method="known"), "D")
    apart = [max(abs(row[i] / row[0] - 1) for row in known) for i in range(len(dims))]
    levels = _values(_of(own, method="tau off the span"), "gamma")
    rows: list[list[Cell]] = []
    for i, dim in enumerate(dims):
        here = {m: [n * r["error"] for r in _of(own, method=m, D=dim)] for m in ("known", "known-tau", "learned")}
        off = [[n * r["error"] for r in _of(own, method="tau off the span", D=dim, gamma=g)] for g in levels]
        parts = [_interval(sum(v) / len(v), *mean_interval(v)) for v in off]
        rows.append([dim, *(number(_geometric(v)) for v in here.values()), f"{apart[i]:.0e}", *parts])
    names = ("A known", "A known, τ learned", "all learned", f"A known apart from D = {dims[0]}")
    columns = ("D", *names, *(f"τ off the span, γ = {g:g}" for g in levels))
    due = [law["subspaces"] * _tau_cost(law["noise"], g) for g in levels]
    caption = (
        f"n E at n = {n:,} on rows that agree in the span; geometric mean over {len(known)} seeds. “Apart” is the "
        "largest relative difference of any seed. Off the span K · 2 s⁴τ⁴/v³ · (D − q)/(D − d) is due, for D → ∞ "
        + " · ".join(f"{number(value, 3)} (γ = {g:g})" for value, g in zip(due, levels, strict=True))
        + "; means over seeds."
    )
    claims: list[list[Cell]] = [
        [
            f"error at D = {compared[1]:,} over D = {compared[0]:,}, A known, independent rows",
            _interval(*_ratio(records, compared)),
        ],
        ["slope of log E in log D, A known, rows agree", _show(loglog_slope(dims, known))],
    ]
    at, learned = _by_seed(_of(own, method="learned"), "D")
    claims.append(["slope of log E in log D, all learned, all D", _show(loglog_slope(at, learned))])
    large = [i for i, dim in enumerate(at) if dim >= 256]
    if len(large) > 1:
        later = loglog_slope([at[i] for i in large], [[row[i] for i in large] for row in learned])
        claims.append(["the same from D = 256", _show(later)])
    claims.append(["b of n E = a + b D, all learned", _interval(*_growth(records))])
    curves = [(_NAMES[m], _COLORS[m], *_mean_curve(_of(own, method=m), "D")) for m in ("learned", "known")]
    free = _mean_curve(_of(records, sweep="pair"), "D")
    plot = _plot(curves, "dimension D", "E‖s_θ − s*‖²", points=[("A known, independent rows", "#4f9d69", *free)])
    return Section(
        "Error against D",
        _DIM_TEXT,
        [Table(("claim", "measured"), claims), Table(columns, rows, caption)],
        [Figure(plot, f"n = {n:,}, γ = 0.5; geometric mean over seeds", wide=True)],
    )


def _tau_cost(tau: float, gamma: float) -> float:
    """2 s^4 tau^4 / v^3."""
    s2 = 1 - gamma * gamma
    return 2 * s2**2 * tau**4 / (s2 * tau**2 + gamma * gamma) ** 3


def _against_shape(records: Sequence[Record]) -> Section:
    own = _of(records, sweep="shape")
    rows: list[list[Cell]] = []
    for name, key in (("subspaces", "K"), ("modes", "n_k"), ("latent_dim", "d_k")):
        varied = _of(own, varied=name)
        at, errors = _by_seed(varied, key)
        shown = " · ".join(number(_geometric([row[i] * varied[0]["n"] for row in errors]), 3) for i in range(len(at)))
        rows.append([key, " · ".join(map(str, at)), shown, _show(loglog_slope(at, errors))])
    noise = _of(own, varied="gamma")
    at, errors = _by_seed(noise, "gamma")
    middle = [_geometric([row[i] * noise[0]["n"] for row in errors]) for i in range(len(at))]
    rows.append(
        [
            "γ",
            " · ".join(f"{g:g}" for g in at),
            " · ".join(number(v, 3) for v in middle),
            _show(loglog_slope(at, errors)),
        ]
    )
    low = [i for i, g in enumerate(at) if g <= 0.3]
    slope = loglog_slope([at[i] for i in low], [[row[i] for i in low] for row in errors])
    rows.append(["γ ≤ 0.3", " · ".join(f"{at[i]:g}" for i in low), "", _show(slope)])
    caption = f"n = {noise[0]['n']:,}, D = {noise[0]['D']}, {len(errors)} laws."
    return Section(
        "Error against the law's shape and the noise",
        _SHAPE_TEXT,
        [Table(("varied", "values", "n E", "slope"), rows, caption, "lllr")],
    )


def _gap_slope(records: Sequence[Record], method: str) -> Slope:
    own = _of(records, sweep="gap", method=method, gamma=0.5)
    return loglog_slope(*_by_seed(own, "n"))


def _gap(records: Sequence[Record]) -> Section:
    fit = ("gap at the fit", "at the truth, the same rows", "the fit's own part")
    methods = ("gap at the truth", "largest gap of 8 laws", *fit, "shape of the bound")
    every = _of(records, sweep="gap")
    own = _of(every, gamma=0.5)
    n = _values(own, "n")
    gap, shape = (_mean_curve(_of(own, method=m, n=n[-1]), "n")[1][0] for m in (methods[1], methods[-1]))
    ranges = [(n[0], n[-1])] + ([(n[0], _FEW), (_MANY, n[-1])] if n[-1] > _MANY else [])
    rows: list[list[Cell]] = []
    for method in methods:
        mine = _of(own, method=method)
        row: list[Cell] = [method]
        for low, high in ranges:
            inside = [r for r in mine if low <= r["n"] <= high]
            row.append(_show(loglog_slope(*_by_seed(inside, "n"))) if len(_values(inside, "n")) > 1 else None)
        rows.append(row)
    columns = ("gap", *(f"slope, n = {low:,} to {high:,}" for low, high in ranges))
    draws = len(_of(own, method="gap at the fit", n=n[0], seed=own[0]["seed"]))
    caption = f"{len(_values(own, 'seed'))} laws; at the fit a mean over {draws} draws of rows for each law and n."
    low = [r for r in every if r["gamma"] < 0.5]
    levels = _values(low, "gamma")
    powers: list[list[Cell]] = []
    for method in (methods[0], methods[1], methods[-1]):
        at, errors = _by_seed(_of(low, method=method), "gamma")
        means = " · ".join(number(sum(row[i] for row in errors) / len(errors), 3) for i in range(len(at)))
        powers.append([method, means, _show(loglog_slope(at, errors))])
    first = _of(own, method="shape of the bound")[0]
    constants: list[list[Cell]] = [
        ["R, largest norm of a row", first["R"]],
        ["B_μ, largest norm of a mean", first["B_mu"]],
        ["(R + s B_μ)⁴ s² / γ⁶", first["constant"]],
        [f"the bound's shape at n = {first['n']:,}", first["error"]],
    ]
    colors = zip(methods, ("#3b7dd8", "#e08a2e", "#4f9d69", "#9ac7e8", "#b0568f", "#808080"), strict=True)
    *curves, line = [(name, color, *_mean_absolute(_of(own, method=name))) for name, color in colors]
    plot = _plot(curves, "rows n", "|L − L_n|", dashed=[line])
    return Section(
        "The gap |L − L_n|",
        _GAP_TEXT.format(factor=f"{shape / gap:.1e}"),
        [
            Table(columns, rows, caption),
            Table(
                ("gap", "at γ = " + " · ".join(f"{g:g}" for g in levels), "power of γ"),
                powers,
                f"n = {low[0]['n']:,}; means over laws.",
                "llr",
            ),
            Table(("constants of the bound, first law", ""), constants),
        ],
        [Figure(plot, "Mean over draws and laws; the bound's shape is dashed", wide=True)],
    )


def _mean_absolute(records: Sequence[Record]) -> tuple[list[Any], list[float]]:
    at, rows = _by_seed(records, "n")
    return at, [sum(row[i] for row in rows) / len(rows) for i in range(len(at))]


def _needed(n: Sequence[int], error: Sequence[float], target: float) -> tuple[float, str]:
    """N at which the error falls to the target, and the text for it; NaN where it does not."""
    if error[0] <= target:
        return n[0], f"≤ {n[0]:,}"
    for i in range(1, len(n)):
        if error[i] <= target:
            share = math.log(error[i - 1] / target) / math.log(error[i - 1] / error[i])
            found = math.exp(math.log(n[i - 1]) + share * math.log(n[i] / n[i - 1]))
            return found, number(found, 2)
    return math.nan, f"> {n[-1]:,}"


def _few(records: Sequence[Record]) -> list[tuple[float, str]]:
    """Rows to 1% of the scale with A known, for each law; from means over draws of rows."""
    own = _of(records, sweep="few")
    found: list[tuple[float, str]] = []
    for seed in _values(own, "seed"):
        (scale,) = (r["error"] for r in _of(own, seed=seed, method="scale"))
        n, (errors,) = _by_seed(_of(own, seed=seed, method="known"), "n")
        found.append(_needed(n, errors, _SHARE * scale))
    return found


def _peers(records: Sequence[Record], steps: int) -> Section:
    own = _of(records, sweep="peers")
    methods = [m for m in ("known", "learned", "flat", "kernel", "mlp") if _of(own, method=m)]
    dims, laws = _values(own, "D"), _values(own, "seed")
    needed: list[list[Cell]] = []
    errors: list[list[Cell]] = []
    curves: dict[tuple[str, int], tuple[list[int], list[float]]] = {(m, law): ([], []) for m in methods for law in laws}
    for dim in dims:
        row: list[Cell] = [dim]
        for method in methods:
            mine = _of(own, method=method, D=dim)
            texts: list[str] = []
            shares: list[list[float]] = []
            for law in laws if mine else ():
                (scale,) = (r["error"] for r in _of(own, method="scale", D=dim, seed=law))
                n, (error,) = _by_seed(_of(mine, seed=law), "n")
                found, text = _needed(n, error, _SHARE * scale)
                texts.append(text)
                shares.append([100 * one / scale for one in error])
                if found > n[0]:
                    curves[method, law][0].append(dim)
                    curves[method, law][1].append(found)
            row.append(" · ".join(texts) or None)
            if mine:
                n = _values(mine, "n")
                text = " · ".join(" | ".join(number(share[i], 2) for share in shares) for i in range(len(n)))
                errors.append([dim, _NAMES[method], " · ".join(f"{one:,}" for one in n), text])
        needed.append(row)
    names = tuple(_NAMES[m] for m in methods)
    middle = dims[min(1, len(dims) - 1)]
    against_n = [(_NAMES[m], _COLORS[m], *_mean_curve(_of(own, method=m, D=middle), "n")) for m in methods]
    against_dim: list[_Curve] = []
    for method in (m for m in methods if m != "known"):
        shown = [curves[method, law] for law in laws if curves[method, law][0]]
        against_dim += [(_NAMES[method] if not i else "_", _COLORS[method], *one) for i, one in enumerate(shown)]
    found = [value for value, _ in _few(records) if not math.isnan(value)]
    lines: list[_Curve] = []
    if found:
        lines = [
            ("A known" if i == 1 else "_", _COLORS["known"], [dims[0], dims[-1]], [value, value])
            for i, value in enumerate((min(found), median(found), max(found)))
        ]
    tried = _of(records, sweep="few", method="known")
    few = f"{_spread(found, 2)} over {len(found)} laws, as median, least and largest" if found else "not reached"
    draws = len(_of(tried, seed=tried[0]["seed"], n=tried[0]["n"]))
    return Section(
        "How many rows the others need",
        _PEER_TEXT.format(steps=steps, draws=draws, few=few),
        [
            Table(("D", *names), needed, f"Rows to 1% of the scale, {len(laws)} laws.", "r" * (1 + len(names))),
            Table(
                ("D", "method", "n", "error, % of the scale"),
                errors,
                "E‖s_θ − s*‖² in per cent of E‖s* + x/v‖², law | law.",
                "rlll",
            ),
        ],
        [
            Figure(_plot(against_n, "rows n", "E‖s_θ − s*‖²"), f"D = {middle}, γ = 0.5; geometric mean over laws"),
            Figure(
                _plot(against_dim, "dimension D", "rows to 1% of the scale", dashed=lines),
                "Rows needed, a line for each law; methods end where n did. Dashed: A known, least, median, largest",
            ),
        ],
    )


def _score_matching(records: Sequence[Record]) -> Section:
    own = _of(records, sweep="dsm")
    rows: list[list[Cell]] = []
    ratio: list[float] = []
    for n in _values(own, "n"):
        em, dsm = (_of(own, n=n, method=method) for method in ("known", "dsm"))
        ratio = [b["error"] / a["error"] for a, b in zip(em, dsm, strict=True)]
        means = [number(_geometric([n * r["error"] for r in part])) for part in (em, dsm)]
        seconds = [number(sum(r["cpu_seconds"] for r in part) / len(part), 2) for part in (em, dsm)]
        slower = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(em, dsm, strict=True)]
        rows.append([n, *means, _spread(ratio), *seconds, _spread(slower)])
    columns = ("n", "n E, EM", "n E, score matching", "ratio of E", "CPU s, EM", "score matching", "ratio of CPU s")
    caption = f"Geometric means of n E, means of seconds; ratios as median (least to largest) of {len(ratio)} laws."
    tables = [Table(columns, rows, caption)]
    if len(_values(own, "n")) > 1:
        slopes = [
            [name, _show(loglog_slope(*_by_seed(_of(own, method=m), "n")))]
            for name, m in (("EM", "known"), ("score matching", "dsm"))
        ]
        tables.append(Table(("learned by", "slope in n"), slopes))
    return Section("Score matching beside maximum likelihood", _DSM_TEXT, tables)


def _starts(records: Sequence[Record]) -> Section:
    own = _of(records, sweep="starts")
    rows: list[list[Cell]] = []
    for run in dict.fromkeys(r["method"] for r in own):
        mine = _of(own, method=run)
        likeliest: list[float] = []
        reached: list[int] = []
        laws = _values(mine, "seed")
        for seed in laws:
            (truth,) = _of(own, seed=seed, method=run.split(",")[0] + ", truth")
            best = min(_of(mine, seed=seed), key=lambda r: r["lacking"])
            likeliest.append(best["error"] / truth["error"])
            reached.append(sum(r["reached"] for r in _of(mine, seed=seed)))
        some, every = sum(map(bool, reached)), sum(count == len(mine) // len(laws) for count in reached)
        rows.append([run, f"{every} of {len(laws)}", f"{some} of {len(laws)}", _spread(likeliest)])
    caption = f"n = {own[0]['n']:,}, D = {own[0]['D']}; errors as median (least to largest) of laws."
    return Section(
        "Other starts",
        _START_TEXT,
        [
            Table(
                ("start", "laws: all starts reached it", "laws: any did", "likeliest: error / that from the truth"),
                rows,
                caption,
                "lrrr",
            )
        ],
    )


_Curve = tuple[str, str, Sequence[float], Sequence[float]]


def _plot(
    curves: Sequence[_Curve],
    x: str,
    y: str,
    dashed: Sequence[_Curve] = (),
    points: Sequence[_Curve] = (),
) -> str:
    """Curves in log-log coordinates, as a data URI."""
    fig, (axis,) = pictures.figure(5.6, 3.4)
    for group, marker, line in ((curves, "o", "-"), (dashed, "", "--"), (points, "x", "")):
        for name, color, at, values in group:
            axis.plot(at, values, color=color, lw=1.3, marker=marker, ms=4, ls=line, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    fig.legend(loc="outside upper center", frameon=False, fontsize=8, labelcolor="#808080", ncols=3)
    return pictures.svg_uri(fig)
