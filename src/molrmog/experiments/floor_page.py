"""The page and tables of score matching where the truth is known; see `experiments.floor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molrmog import pictures
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

if TYPE_CHECKING:
    from molrmog.experiments.floor import FloorBudget, TrueLaw

_RESULTS = ("law", "seed", "run", "excess", "excess_error", "floor", "floor_error", "share", "nats", "nats_error")
_RESULTS += ("log_likelihood", "true_log_likelihood", "gap", "gap_error", "tau")
_TIMES = ("law", "seed", "run", "start_seconds", "start_cpu_seconds", "seconds", "cpu_seconds")


def write_tables(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Figures, which a run that was stopped gives again to the last bit, and times, which it does not."""
    for name, columns in (("results.csv", _RESULTS), ("times.csv", _TIMES)):
        write_csv(out / name, columns, [[record[column] for column in columns] for record in records])
    curves = [
        (record["law"], record["seed"], record["run"], step, excess, excess / record["floor"])
        for record in records
        for step, excess in record["curve"]
    ]
    write_csv(out / "curves.csv", ("law", "seed", "run", "step", "excess", "share"), curves)


def write_report(
    out: Path,
    records: Sequence[dict[str, Any]],
    spent: FloorBudget,
    losses_of: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, Any],
) -> Path:
    """Write report.html.

    Args:
        out: folder of the experiment.
        records: of every run, with its law and seed.
        spent: the budget.
        losses_of: run to weighting and levels, where losses are compared.
        asked: "budget", "seed" and "schedule".

    Returns:
        The path of the page.
    """
    budget, seed = asked["budget"], asked["seed"]
    main = {name: law for name, law in spent.laws.items() if not law.losses}
    starts = [record for record in records if record["law"] in main]
    losses = [record for record in records if record["law"] not in main]
    from_em = [r for r in starts if r["run"] == "em-start"]
    apart = [_likelihoods_apart(starts, r) for r in from_em]
    shares = sorted(100 * r["share"] for r in from_em)
    middle, largest = _each([shares[len(shares) // 2], shares[-1]]).split(" · ")
    lower = sum(a <= b for a, b in _start_against_end(starts))
    cards = [
        Card(
            f"{sum(share < 1 for share in shares)} of {len(shares)}",
            "trained networks within 1% of the floor",
            f"from EM's law; excess {middle}% in the middle, {largest}% at most",
        ),
        Card(f"{_each([100 * max(apart)])}%", "between score matching and EM", "in held-out log-likelihood, at most"),
        Card(
            f"{lower} of {len(from_em)}",
            "start from EM below the end of random starts",
            f"no step against {spent.steps:,} steps",
        ),
    ]
    sections = [
        Section("Excess over the floor", _EXCESS_TEXT, [_excess_table(starts, main)]),
        Section("Held-out log-likelihood", _LIKELIHOOD_TEXT, [_likelihood_table(starts, main)]),
        Section(
            "Training by start",
            _CURVE_TEXT.format(steps=spent.steps),
            [_start_table(starts, main)],
            [Figure(_curve_uri(starts, name), f"{law.title}; dotted: 1%") for name, law in main.items()],
        ),
        Section(
            "Which loss learns the density",
            _LOSS_TEXT,
            [_loss_table(select(losses, law=name), law, losses_of) for name, law in spent.laws.items() if law.losses],
        ),
    ]
    settings = {
        "budget": budget,
        "seeds": f"{seed} to {seed + spent.seeds - 1}",
        "rows": spent.rows,
        "held-out rows": spent.held_out,
        "steps": spent.steps,
        "batch": 256,
        "learning rate": "0.03, from the law of EM 0.003; Adam, cosine annealing, 100 steps of warmup",
        "average of weights": 0.999,
        "schedule": asked["schedule"],
        "command": f"molrmog reproduce floor --budget {budget} --seed {seed}",
    }
    return write_page(
        out / "report.html", "The floor of score matching", _INTRODUCTION, sections, settings, cards=cards
    )


_INTRODUCTION = """\
Rows are drawn from laws that are known, and MoG networks of the same shape learn them back by denoising score \
matching. What they lack is then no estimate: the denoiser of the law itself has the smallest loss there is, the \
floor, and network and truth are compared on the same noised rows."""
_EXCESS_TEXT = """\
Loss minus floor in per cent of the floor, seed by seed: each has another law, other rows, other noise. Weight of \
EDM, log σ ~ N(−1.2, 1.2²), fresh rows. All but em-clustered start with every training row's subspace known; \
k-means-exact has the posterior means of the true law as targets. What stays at several per cent is at a local \
minimum, which targets without noise do not mend either."""
_LIKELIHOOD_TEXT = """\
Nats per held-out row. “Lacking” is, seed by seed, the truth's own log-likelihood minus that of what was learned, on \
the same rows; “from scores” is the same divergence by denoising alone, between the ends of the schedule."""
_CURVE_TEXT = """\
Loss minus floor of the averaged weights during training. The table compares where the network that EM initialised \
starts, before its first step, with where {steps} steps from other starts end."""
_LOSS_TEXT = """\
The same network, start and steps with other weights λ and other distributions of the noise level (log-normal: log σ \
~ N(−1.2, 1.2²); log-snr: log σ uniform over the schedule's range). Lacking nats are of the held-out log-likelihood."""


def _each(values: Sequence[float]) -> str:
    """The value of every seed, since one outlier makes a mean and spread that mislead."""
    return " · ".join(number(v, 2) if abs(v) >= 1e-3 else f"{v:.0e}".replace("-", "−") for v in values)


def _likelihoods_apart(records: Sequence[dict[str, Any]], run: Mapping[str, Any]) -> float:
    """Difference of a run from EM in held-out log-likelihood, as a share of that of the truth."""
    (em,) = select(records, law=run["law"], seed=run["seed"], run="em")
    return abs(run["log_likelihood"] - em["log_likelihood"]) / abs(em["true_log_likelihood"])


def _start_against_end(records: Sequence[dict[str, Any]], run: str = "random") -> list[tuple[float, float]]:
    """Share before the first step from EM, and after the last of another run on the same rows."""
    pairs: list[tuple[float, float]] = []
    for record in select(records, run="em-start"):
        (other,) = select(records, law=record["law"], seed=record["seed"], run=run)
        pairs.append((record["curve"][0][1] / record["floor"], other["curve"][-1][1] / other["floor"]))
    return pairs


def _excess_table(records: Sequence[dict[str, Any]], laws: Mapping[str, TrueLaw]) -> Table:
    runs = list(dict.fromkeys(record["run"] for record in records))
    rows: list[list[Cell]] = []
    for name, law in laws.items():
        floor = mean_spread([record["floor"] for record in select(records, law=name, run="em")])
        shares = [[100 * record["share"] for record in select(records, law=name, run=run)] for run in runs]
        rows.append([law.title, floor, *(_each(values) if values else None for values in shares)])
    error = max(record["excess_error"] / record["excess"] for record in records if record["run"] != "k-means-exact")
    caption = f"The standard error of an excess, k-means-exact apart, is at most {error:.0%} of it."
    return Table(("law", "floor", *runs), rows, caption)


def _likelihood_table(records: Sequence[dict[str, Any]], laws: Mapping[str, TrueLaw]) -> Table:
    rows: list[list[Cell]] = []
    for name, law in laws.items():
        true = [record["true_log_likelihood"] for record in select(records, law=name, run="em")]
        rows.append([law.title, "the truth", mean_spread(true), *[None] * 6])
        for run in dict.fromkeys(record["run"] for record in select(records, law=name)):
            found = select(records, law=name, run=run)
            figures = [_each([r[key] for r in found]) for key in ("gap", "nats")]
            apart = None if run == "em" else _each([100 * _likelihoods_apart(records, r) for r in found])
            times = [mean_spread([r[f"start_{key}"] + r[key] for r in found]) for key in ("seconds", "cpu_seconds")]
            likelihood, tau = (mean_spread([r[key] for r in found]) for key in ("log_likelihood", "tau"))
            rows.append(["", run, likelihood, *figures, apart, tau, *times])
    columns = ("law", "run", "log-likelihood", "lacking", "from scores", "% from EM", "τ", "seconds", "CPU seconds")
    caption = (
        "“% from EM” is the distance from EM's log-likelihood in per cent of the truth's; times include the start's."
    )
    return Table(columns, rows, caption)


def _start_table(records: Sequence[dict[str, Any]], laws: Mapping[str, TrueLaw]) -> Table:
    rows: list[list[Cell]] = []
    for name, law in laws.items():
        own = select(records, law=name)
        pairs = {run: _start_against_end(own, run) for run in ("random", "k-means")}
        before = [start for start, _ in pairs["random"]]
        ends = [_each([100 * end for _, end in pairs[run]]) for run in pairs]
        rows.append([law.title, _each([100 * share for share in before]), *ends])
        rows[-1].append(all(start <= end for start, end in pairs["random"]))
    columns = ("law", "EM, before training", "random, at the end", "k-means, at the end", "EM starts below random")
    return Table(columns, rows, "Excess in per cent of the floor, seed by seed, on the rows of the curves.")


def _loss_table(records: Sequence[dict[str, Any]], law: TrueLaw, losses_of: Mapping[str, Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for run in dict.fromkeys(record["run"] for record in records):
        found = select(records, run=run)
        loss = losses_of.get(run, {"weighting": None, "levels": run})
        gap, share = (_each([factor * r[key] for r in found]) for key, factor in (("gap", 1), ("share", 100)))
        rows.append([loss["weighting"], loss["levels"], gap, mean_spread([r["tau"] for r in found]), share])
    columns = ("λ", "levels", "nats lacking", "τ learned", "excess, % of the floor of that loss")
    return Table(columns, rows, law.title)


def _curve_uri(records: Sequence[dict[str, Any]], name: str) -> str:
    fig, (axis,) = pictures.figure(4.8, 3.0)
    colors = {"random": "#808080", "k-means": "#3b7dd8", "k-means-exact": "#4f9d69", "em-start": "#e08a2e"}
    for run, color in colors.items():
        for i, record in enumerate(select(records, law=name, run=run)):
            steps, excess = zip(*record["curve"], strict=True)
            share = [100 * value / record["floor"] for value in excess]
            axis.plot(steps, share, color=color, lw=1.2, alpha=0.9, label=run if i == 0 else None)
    axis.axhline(1.0, color="#808080", lw=0.8, ls=":")
    axis.set_yscale("log")
    axis.set_ylim(bottom=1e-4)
    axis.minorticks_off()
    axis.set_xlabel("step")
    axis.set_ylabel("excess, % of the floor")
    fig.legend(loc="outside upper center", frameon=False, fontsize=8, labelcolor="#808080", ncols=4)
    return pictures.svg_uri(fig)
