"""The page, tables and figures of the comparison of networks with and without a law; see `experiments.hybrid`.

Seconds are processor seconds of training steps, on a GPU those of the clock; for a network on a base, those of fitting
the base come before its first step. Measurements are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from molrmog import pictures
from molrmog.experiments import image_cells
from molrmog.experiments.hybrid_plans import LAW, PLAIN
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, mean_spread, number, write_csv, write_page
from molrmog.saving import write_atomically

Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]

_COLOURS = ("#808080", "#e08a2e", "#d8b04a", "#b0603b", "#3b7dd8", "#4f9d69", "#8b6bb8", "#c4608f", "#4bb0b8")
_MARKS = ("arm", "seed", "step", "cpu", "fit_cpu", "wall", "validation_loss", "Fréchet", "precision", "recall")
_MARKS += ("memorisation", "copies")
_LEAST = 1e-9  # distances of equal samples are rounding, on either side of zero
_SAMPLING = ("arm", "seed", "evaluations", "jump", "Fréchet")

_TEXT = """\
A network that starts from nothing spends most of its training on what a fitted law already knows. Here the same U-Net \
learns alone, and as the residual of a base that is exact or nearly free: same rows, batches, noise, optimiser, number \
of steps."""
_TIME_TEXT = """\
Fréchet distance of samples to the held-out rows against processor seconds (on a GPU, those of the clock): of fitting \
the base, where there is one, and of the training steps, with the base's share in them. Measurements are left out."""
_END_TEXT = """\
After the last step. Memorisation: median distance to the nearest training row over that of held-out rows, 1 where \
samples are as far from them as new rows are."""
_FEW_TEXT = """\
DPM-Solver++ (2M) with the spacing of Karras; with a jump it starts from exact noised samples of the law, at the \
lowest noise level from which on network and law agree within the stated tolerance. Saved: how many of the evaluations \
that the same network needs from noise for the same Fréchet distance, by interpolation, over the seeds in which it \
gets there at all."""
_LEVEL_TEXT = """\
Denoising loss on held-out rows, weighted as EDM weighs it, by range of log γ at s = 1, at the noise levels of EDM: \
bases without any network, then networks after their last step."""
_BASE_TEXT = """\
What the bases draw by themselves, without any network, by the sampler of the comparison; what they cost to fit and \
for the rows of one training step."""
_TUNING_TEXT = """\
One seed each, all else as in the comparison: whether another learning rate or choice of noise levels would have been \
better."""
_SAMPLE_TEXT = "Of the first seed, after the last step; not picked."


def write_hybrid_page(
    out: Path,
    settings: Mapping[str, Any],
    bases: Mapping[str, Run],
    cells: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, Run],
    sampled: Mapping[str, Run],
) -> Path:
    """Write results.csv, sampling.csv, the curves as SVG, and report.html.

    Args:
        out: folder of the experiment.
        settings: the command and the plan.
        bases: results of `compute_base`.
        cells: settings of the networks.
        results: results of `compute_arm`.
        sampled: results of `compute_sampling`.

    Returns:
        The path of the page.
    """
    by_arm: dict[str, list[Run]] = {}
    for name, cell in cells.items():
        fit = _fit_seconds(cell["arm"]["base"], settings["bases"], bases) + results[name].get("start_cpu", 0.0)
        clock = "cpu" if cell["device"] == "cpu" else "wall"
        marks = [{**mark, "fit_cpu": fit, "spent": fit + mark[clock]} for mark in results[name]["marks"]]
        own = {"marks": marks, "seed": cell["seed"], **sampled.get(name.replace("arms/", "sampling/"), {})}
        by_arm.setdefault(cell["arm"]["name"], []).append({**results[name], **own})
    compared = {name: runs for name, runs in by_arm.items() if not settings["arms"][name]["tunes"]}
    several = [(name, run) for name, runs in by_arm.items() for run in runs]
    records = [{"arm": name, "seed": run["seed"], **mark} for name, run in several for mark in run["marks"]]
    write_csv(out / "results.csv", _MARKS, [[record.get(column) for column in _MARKS] for record in records])
    few = [{"arm": name, "seed": run["seed"], **record} for name, run in several for record in run.get("few", ())]
    write_csv(out / "sampling.csv", _SAMPLING, [[record[column] for column in _SAMPLING] for record in few])
    curves, few_curves = _curves(compared), _few_curves(compared) if few else []
    for name, figure in zip(("quality", "loss", "evaluations"), [*curves, *few_curves], strict=False):
        write_atomically(out / f"{name}.svg", lambda part, figure=figure: part.write_bytes(figure.data))
    sections = [
        Section("Quality by training time", _TIME_TEXT, [_mark_table(compared)], curves),
        Section("At the end", _END_TEXT, [_end_table(compared)]),
        *([Section("Fewer evaluations", _FEW_TEXT, [_few_table(compared)], few_curves)] if few else []),
        Section("Loss by noise level", _LEVEL_TEXT, [_level_table(bases, compared)]),
        Section("Bases alone", _BASE_TEXT, [_base_table(settings, bases)]),
        *([Section("Options", _TUNING_TEXT, [_tuning_table(by_arm, settings["arms"])])] if by_arm != compared else []),
        Section("Samples", _SAMPLE_TEXT, (), _grids(out, cells, compared)),
    ]
    title = f"A network on a closed form: {settings['data']}"
    return write_page(out / "report.html", title, _TEXT, sections, settings, cards=_cards(compared))


def reached(
    marks: Sequence[Mapping[str, Any]], wanted: float, what: str = "Fréchet", clock: str = "spent"
) -> float | None:
    """Where on a clock a figure that falls is at most `wanted`, by interpolation between marks.

    Args:
        marks: records with the figure and the clock, which rises.
        wanted: the figure to reach.
        what: name of the figure.
        clock: name of the clock.

    Returns:
        The clock, linear in the logarithms of both between two marks; the first mark's where it is there already;
        None where it is never reached.

    Example:
        >>> marks = [{"spent": 10.0, "Fréchet": 100.0}, {"spent": 1000.0, "Fréchet": 1.0}]
        >>> round(reached(marks, 10.0))
        100
    """
    measured = [(mark[clock], mark[what]) for mark in marks if what in mark]
    if measured and measured[0][1] <= wanted:
        return measured[0][0]
    for (early, above), (late, below) in pairwise(measured):
        if below <= wanted < above:
            below, wanted = max(below, _LEAST), max(wanted, _LEAST)
            return early * (late / early) ** (math.log(above / wanted) / math.log(above / below))
    return None


def evaluations_saved(few: Sequence[Mapping[str, Any]]) -> dict[int, float | None]:
    """Share of the evaluations that a jump saves at equal Fréchet distance, by evaluations after the jump.

    Args:
        few: records with "evaluations", "jump" (None without one) and "Fréchet" of one network.

    Returns:
        One share for each record with a jump; None where the network does not get as far from noise.
    """
    from_noise = sorted((r for r in few if r["jump"] is None), key=lambda r: r["evaluations"])
    saved: dict[int, float | None] = {}
    for record in few:
        if record["jump"] is not None:
            needed = reached(from_noise, record["Fréchet"], clock="evaluations")
            saved[record["evaluations"]] = None if needed is None else 1 - record["evaluations"] / needed
    return saved


def _fit_seconds(base: str | None, chosen: Mapping[str, Any], bases: Mapping[str, Run]) -> float:
    """Processor seconds of fitting a base, and the parts of a blend before it."""
    if base is None:
        return 0.0
    parts = [_fit_seconds(part, chosen, bases) for part in chosen[base].get("parts", ())]
    return bases[f"bases/{base}"]["cpu"] + sum(parts)


def _shares(compared: Runs, arm: str) -> list[float | None]:
    """Share of the plain network's seconds after which an arm is as good as the plain one in the end, seed by seed."""
    shares: list[float | None] = []
    for plain, run in zip(compared[PLAIN], compared[arm], strict=True):
        end = plain["marks"][-1]
        spent = reached(run["marks"], end["Fréchet"])
        shares.append(None if spent is None else spent / end["spent"])
    return shares


def _cards(compared: Runs) -> list[Card]:
    shares = [math.inf if share is None else share for share in _shares(compared, LAW)]
    middle = float(np.median(shares))
    asked = "until the one on the law is as good, by Fréchet; median over seeds"
    return [
        Card(number(middle, 2) if math.isfinite(middle) else "never", "of the plain network's training seconds", asked),
        Card(_final(compared[LAW], "Fréchet"), "Fréchet, on the law", f"plain: {_final(compared[PLAIN], 'Fréchet')}"),
    ]


def _final(runs: Sequence[Run], what: str) -> str:
    return mean_spread([run["marks"][-1][what] for run in runs])


def _spread(values: Sequence[float]) -> Cell:
    return mean_spread(values) if len(values) else None


def _mark_table(compared: Runs) -> Table:
    steps = [mark["step"] for mark in compared[PLAIN][0]["marks"] if "Fréchet" in mark]
    rows: list[list[Cell]] = []
    for name, runs in compared.items():
        marks = [mark for run in runs for mark in run["marks"] if "Fréchet" in mark]
        by_step = [_spread([mark["Fréchet"] for mark in marks if mark["step"] == step]) for step in steps]
        spent = mean_spread([run["marks"][-1]["cpu"] for run in runs])
        share = _spread([100 * run["base_share"] for run in runs if "base_share" in run])
        rows.append([name, *by_step, runs[0]["marks"][0]["fit_cpu"] or None, spent, share])
    columns = ("arm", *(f"{step} steps" for step in steps), "fit, CPU s", "steps, CPU s", "base, % of a step")
    return Table(columns, rows, "Fréchet distance, mean and standard deviation over seeds.")


def _end_table(compared: Runs) -> Table:
    keys = ("Fréchet", "precision", "recall", "memorisation", "copies")
    rows: list[list[Cell]] = []
    for name, runs in compared.items():
        when = " · ".join("never" if share is None else f"{share:.2f}" for share in _shares(compared, name))
        loss = mean_spread([run["loss"] for run in runs])
        rows.append([name, runs[0]["parameters"], loss, *(_final(runs, key) for key in keys), when])
    columns = ("arm", "parameters", "loss", *keys, "time to plain's end")
    note = """\
Loss: EDM's, on held-out rows. Copies: share of samples nearer to a training row than all but 1% of held-out rows. The \
last column: share of the plain network's seconds, seed by seed; at least that of the first mark."""
    return Table(columns, rows, note)


def _few_table(compared: Runs) -> Table:
    found = {name: [record for run in runs for record in run.get("few", ())] for name, runs in compared.items()}
    evaluations = sorted({record["evaluations"] for records in found.values() for record in records})
    rows: list[list[Cell]] = []
    for name, records in found.items():
        for start in ("noise", "jump"):
            own = [record for record in records if (record["jump"] is not None) == (start == "jump")]
            if own:
                values = [[record["Fréchet"] for record in own if record["evaluations"] == n] for n in evaluations]
                rows.append([name, start, *(_spread(value) for value in values)])
        saved = [evaluations_saved(run.get("few", ())) for run in compared[name]]
        if any(saved):
            shares = [[share for own in saved if (share := own.get(n)) is not None] for n in evaluations]
            cells = [mean_spread([100 * share for share in part]) if part else "–" for part in shares]
            rows.append([name, "saved, %", *cells])
    jumps = sorted({record["jump"] for records in found.values() for record in records if record["jump"] is not None})
    where = ", ".join(f"t = {jump:.3g}" for jump in jumps)
    note = f"Fréchet distance. Jumps at {where}." if jumps else "Fréchet distance. Network and law agree nowhere."
    return Table(("arm", "from", *(f"{n} evaluations" for n in evaluations)), rows, note)


def _level_table(bases: Mapping[str, Run], compared: Runs) -> Table:
    first = next(iter(bases.values()))
    ends = [f"{low:g} to {high:g}" for low, high, _ in first["ranges"]]
    ends = [end.replace("-inf to", "below").replace(" to inf", " up") for end in ends]
    rows: list[list[Cell]] = [
        [name.removeprefix("bases/"), "base", base["loss"], *(loss for _, _, loss in base["ranges"])]
        for name, base in bases.items()
    ]
    for name, runs in compared.items():
        ranges = np.mean([[loss for _, _, loss in run["ranges"]] for run in runs], 0)
        rows.append([name, "network", float(np.mean([run["loss"] for run in runs])), *map(float, ranges)])
    return Table(("denoiser", "", "all levels", *ends), rows, "Networks: mean over seeds.")


def _base_table(settings: Mapping[str, Any], bases: Mapping[str, Run]) -> Table:
    batch = settings["training"]["batch_size"]
    rows: list[list[Cell]] = [
        [
            name.removeprefix("bases/"),
            *(base[key] for key in ("Fréchet", "precision", "recall", "memorisation", "cpu")),
            batch * base["seconds_per_row"],
        ]
        for name, base in bases.items()
    ]
    return Table(("base", "Fréchet", "precision", "recall", "memorisation", "fit, CPU s", "a step, CPU s"), rows)


def _tuning_table(by_arm: Runs, arms: Mapping[str, Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = [
        [name, run["loss"], run["marks"][-1]["Fréchet"]]
        for name, runs in by_arm.items()
        for run in runs[:1]
        if name in (PLAIN, LAW) or arms[name]["tunes"]
    ]
    return Table(
        ("network", "loss", "Fréchet"), rows, "Loss: EDM's, at EDM's noise levels, whatever it was trained at."
    )


def _curves(compared: Runs) -> list[Figure]:
    figures: list[Figure] = []
    for what, caption in (
        ("Fréchet", "Fréchet distance"),
        ("validation_loss", "held-out loss, at the training's levels"),
    ):

        def lines(run: Run, what: str = what) -> list[list[tuple[float, float]]]:
            return [[(mark["spent"], mark[what]) for mark in run["marks"] if mark.get(what) is not None]]

        figures.append(_figure(compared, lines, "fit and training, CPU seconds", caption))
    return figures


def _few_curves(compared: Runs) -> list[Figure]:
    def lines(run: Run) -> list[list[tuple[float, float]]]:
        records = sorted(run.get("few", ()), key=lambda record: record["evaluations"])
        apart = [[r for r in records if (r["jump"] is not None) == jumps] for jumps in (False, True)]
        return [[(record["evaluations"], record["Fréchet"]) for record in part] for part in apart if part]

    sampled = {name: runs for name, runs in compared.items() if any(run.get("few") for run in runs)}
    return [_figure(sampled, lines, "evaluations of the network", "Fréchet distance", "; dashed after a jump")]


def _figure(
    compared: Runs, lines: Callable[[Run], list[list[tuple[float, float]]]], across: str, up: str, more: str = ""
) -> Figure:
    fig, (axis,) = pictures.figure(5.2, 3.4)
    for (name, runs), colour in zip(compared.items(), cycle(_COLOURS), strict=False):
        for i, run in enumerate(runs):
            for points, style in zip(lines(run), ("-", "--"), strict=False):
                label = name if i == 0 and style == "-" else None
                axis.plot(*zip(*points, strict=True), style, color=colour, lw=1.2, marker=".", label=label)
    pictures.logarithmic(axis)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    fig.legend(loc="outside upper center", frameon=False, fontsize=8, labelcolor="#808080", ncols=3)
    return Figure(pictures.svg_uri(fig), f"{up} by {across}, every seed{more}")


def _grids(out: Path, cells: Mapping[str, Mapping[str, Any]], compared: Runs) -> list[Figure]:
    rows, _ = image_cells.parts(next(iter(cells.values()))["source"])
    shown = {"bases/law": "the law alone"}
    for name, cell in cells.items():
        if name.endswith("/0") and cell["arm"]["name"] in compared:
            shown[name] = cell["arm"]["name"]
    figures: list[Figure] = []
    for name, caption in shown.items():
        samples = np.load(out / "cells" / name / "samples.npy")
        uri = pictures.png_uri(pictures.grid(rows.to_images(samples)))
        figures.append(Figure(uri, caption, f"samples of {caption}"))
    return figures
