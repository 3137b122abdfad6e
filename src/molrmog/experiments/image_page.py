"""The page of the image comparison: its claims, tables, curves and samples, and the same figures as CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from molrmog import pictures
from molrmog.data import Dataset
from molrmog.experiments.cells import CELLS_NAME
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, mean_spread, write_csv, write_page
from molrmog.saving import write_atomically

if TYPE_CHECKING:
    from molrmog.experiments.images import Plan

REPORT_NAME, RESULTS_NAME, SETTINGS_NAME, PICTURES_NAME = "report.html", "results.csv", "settings.json", "pictures"
_COLUMNS = (
    *("network", "parameters", "FLOPs/step", "train, CPU s", "samples, CPU s/1000", "held-out loss", "excess"),
    *("Fréchet", "precision", "recall", "LPIPS diversity", "memorisation"),
)
_CAPTION = (
    "Mean ± standard deviation over seeds. Parameters and FLOPs are those of the score network alone. The held-out "
    "loss is that of denoising held-out latents, the same noise for all; excess, over the lowest of the table. Fréchet "
    "distance in the features named above, {samples:,} samples against as many held-out rows. Memorisation: median "
    "distance to the nearest training row over that of held-out rows, 1 where nothing is copied, below 1 also where "
    "samples are smooth."
)
_ABOUT = (
    "Score networks trained by denoising score matching in the same latents of the same autoencoders, from the same "
    "seeds, with the same noise levels, weighting, batches, steps and sampler (Heun, {steps} steps). “Law by EM” is "
    "not trained by score matching at all: it is the closed form with the parameters that EM finds in the same "
    "latents. MoG networks start there unless it says otherwise, and learn means, factors and mode weights.\n\n"
    "Data: {data}, {rows:,} training rows. {experts} experts by {by}. Feature space: {space}."
)

Cells = Mapping[str, Mapping[str, Any]]
Column = TypeVar("Column")

MOLRG = "Gaussian, mean zero (MoLRG)"


@dataclass(frozen=True)
class Arm:
    """One seed of a line of a table.

    Attributes:
        part: of the comparison: "networks", "start", "ablations" or "pixels".
        label: of the line.
        autoencoders: name of the set of autoencoders; "pixels" where there are none.
        cell: name of the cell that computes it.
    """

    part: str
    label: str
    autoencoders: str
    cell: str


def write_image_page(
    out: Path,
    made: Plan,
    dataset: str,
    budget: str,
    rows: Dataset,
    arms: Sequence[Arm],
    cells: Cells,
    results: Cells,
    encoded: Cells,
    trained: Cells,
    best: Mapping[str, Any],
) -> Path:
    """Write report.html, results.csv, settings.json and the pictures into `out`.

    Args:
        out: folder of the experiment.
        made: the plan.
        dataset: its name.
        budget: its name.
        rows: the training rows.
        arms: what the tables show.
        cells: settings of every network, by the name of its cell.
        results: what it came to.
        encoded: by the name of a set of autoencoders, how it reconstructs.
        trained: by the name of an autoencoder's cell, its seconds.
        best: what training rows get in the place of samples.

    Returns:
        The path of the page.
    """
    found = {part: _of_part(part, arms, results) for part in ("networks", "start", "ablations", "pixels")}
    space = next(iter(results.values()))["space"]
    samples = next(iter(cells.values()))["samples"]
    caption = _CAPTION.format(samples=samples)
    sections = [
        Section(
            "Networks",
            _claims(found["networks"]),
            [Table(_COLUMNS, [*_rows(found["networks"]), _reference(best)], caption)],
            [_curves(found["networks"], "Loss on held-out latents while training, first seed.")],
        ),
        Section(
            "Samples",
            "The first seed of each network, sorted by expert, after held-out rows and what autoencoders make of them.",
            (),
            [*_reconstructions(out, rows, encoded), *_grids(out, rows, "networks", found["networks"])],
        ),
    ]
    if found["start"]:
        text = "The same MoG network from several starts; step 0 is the start itself."
        curves = _curves(found["start"], "Loss on held-out latents while training.")
        sections.append(Section("Start", text, [Table(_COLUMNS, _rows(found["start"]))], [curves]))
    if found["ablations"]:
        table = Table(
            ("autoencoders", *_without_loss(_COLUMNS)),
            [[label[0], *_without_loss(row)] for label, row in _ablations(found["ablations"])],
        )
        sections.append(Section("Experts and autoencoders", _ABLATIONS, [table]))
    sections.append(Section("Autoencoders", _AUTOENCODERS, [_autoencoders(encoded, trained)]))
    if found["pixels"]:
        text = "Without autoencoders, over the pixels themselves; after held-out rows."
        table = Table(_without_loss(_COLUMNS), [_without_loss(row) for row in _rows(found["pixels"])])
        drawn = [*_reconstructions(out, rows, encoded)[:1], *_grids(out, rows, "pixels", found["pixels"])]
        sections.append(Section("Pixels", text, [table], drawn))
    write_csv(out / RESULTS_NAME, *_flat(arms, cells, results))
    settings = {"dataset": dataset, "budget": budget, **asdict(made)}
    write_atomically(out / SETTINGS_NAME, lambda part: part.write_text(json.dumps(settings, indent=2) + "\n"))
    about = _ABOUT.format(
        steps=made.sampler_steps, data=rows.name, rows=len(rows), experts=made.experts, by=made.by, space=space
    )
    title = f"Score networks in the same latents: {rows.name}"
    return write_page(out / REPORT_NAME, title, about, sections, settings, cards=_cards(found["networks"]))


Runs = dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]]
"""(autoencoders, label) of a network to its cells and results, a seed each."""


def _of_part(part: str, arms: Sequence[Arm], results: Cells) -> Runs:
    runs: Runs = {}
    for arm in arms:
        if arm.part == part:
            runs.setdefault((arm.autoencoders, arm.label), []).append((arm.cell, results[arm.cell]))
    return runs


def _rows(runs: Runs) -> list[list[Cell]]:
    lowest = min((_mean(each, "loss") for each in runs.values() if "loss" in each[0][1]), default=0.0)
    return [_row(label, each, lowest) for (_, label), each in runs.items()]


def _row(label: str, each: Sequence[tuple[str, Mapping[str, Any]]], lowest: float) -> list[Cell]:
    first = each[0][1]
    seeds = [result for _, result in each]

    def spread(key: str, scale: float = 1.0) -> Cell:
        return mean_spread([scale * result[key] for result in seeds]) if key in first else None

    per_thousand = 1000 / first["samples"]
    excess = mean_spread([result["loss"] - lowest for result in seeds]) if "loss" in first else None
    return [
        label,
        f"{first['cost']['parameters']:,}",
        f"{first['cost']['flops']:,.0f}",
        spread("train cpu"),
        spread("sample cpu", per_thousand),
        spread("loss"),
        excess,
        spread("Fréchet"),
        spread("precision"),
        spread("recall"),
        spread("LPIPS diversity"),
        spread("memorisation"),
    ]


def _without_loss(row: Sequence[Column]) -> list[Column]:
    return [*row[:5], *row[7:]]


def _ablations(runs: Runs) -> list[tuple[tuple[str, str], list[Cell]]]:
    return [(key, _row(key[1], each, 0.0)) for key, each in runs.items()]


def _reference(best: Mapping[str, Any]) -> list[Cell]:
    cells: list[Cell] = ["training rows", *[None] * 6]
    return [*cells, best["Fréchet"], best["precision"], best["recall"], best.get("LPIPS diversity"), None]


def _mean(each: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> float:
    return mean(result[key] for _, result in each)


def _best_mog(runs: Runs) -> tuple[str, float, int]:
    """Label, mean Fréchet distance and parameters of the MoG network with the least distance."""
    mogs = {label: each for (_, label), each in runs.items() if label.startswith("MoG")}
    label = min(mogs, key=lambda label: _mean(mogs[label], "Fréchet"))
    return label, _mean(mogs[label], "Fréchet"), mogs[label][0][1]["cost"]["parameters"]


def _claims(runs: Runs) -> str:
    """What the paper claims, in figures of this run."""
    by_label = {label: each for (_, label), each in runs.items()}
    gaussian, unet, mlp = (_mean(by_label[label], "Fréchet") for label in (MOLRG, "U-Net", "MLP"))
    sizes = by_label["U-Net"][0][1]["cost"]["parameters"]
    lines = [
        "The paper finds the MoG network far better than the Gaussian, and comparable to a U-Net of ten times its "
        "parameters. Here, by Fréchet distance:"
    ]
    for label, each in by_label.items():
        if label.startswith(("MoG", "law")):
            own, parameters = _mean(each, "Fréchet"), each[0][1]["cost"]["parameters"]
            lines.append(
                f"{label}: {own / gaussian:.2f} times the Gaussian's, {own / unet:.2f} times the U-Net's, which has "
                f"{sizes / parameters:.1f} times its parameters, {own / mlp:.2f} times the MLP's."
            )
    return "\n\n".join(lines)


def _cards(runs: Runs) -> list[Card]:
    by_label = {label: each for (_, label), each in runs.items()}
    label, own, parameters = _best_mog(runs)
    gaussian, unet = _mean(by_label[MOLRG], "Fréchet"), _mean(by_label["U-Net"], "Fréchet")
    return [
        Card(f"{own:.1f}", f"Fréchet distance, {label}", f"{parameters:,} parameters"),
        Card(f"{unet:.1f}", "U-Net", f"{by_label['U-Net'][0][1]['cost']['parameters']:,} parameters"),
        Card(f"{gaussian:.1f}", "Gaussian (MoLRG)", "mean zero"),
    ]


def _curves(runs: Runs, caption: str) -> Figure:
    figure, (axis,) = pictures.figure(6.8, 3.2)
    for (_, label), each in runs.items():
        curve = each[0][1]["curve"]
        if curve["validation"]:
            axis.plot(curve["validation_step"], curve["validation"], marker="o", ms=2.5, lw=1.2, label=label)
    losses = [v for each in runs.values() for v in each[0][1]["curve"]["validation"][1:]]
    if losses:
        least, most = min(losses), max(losses)
        axis.set_ylim(least - 0.05 * (most - least), most + 0.3 * (most - least))
    axis.set_xlabel("step")
    axis.set_ylabel("denoising loss, held out")
    axis.legend(frameon=False, fontsize=7, labelcolor="#808080", ncols=2)
    return Figure(pictures.svg_uri(figure), caption, wide=True)


def _picture(out: Path, name: str, rows: Dataset, x: np.ndarray, caption: str) -> Figure | None:
    if not rows.is_image:
        return None
    image = pictures.grid(rows.to_images(x))
    place = out / PICTURES_NAME / f"{name}.png"
    write_atomically(place, lambda part: part.write_bytes(pictures.png(image)))
    return Figure(pictures.png_uri(image), caption)


def _grids(out: Path, rows: Dataset, part: str, runs: Runs) -> list[Figure]:
    drawn: list[Figure | None] = []
    for (_, label), each in runs.items():
        cell, result = each[0]
        x = np.load(out / CELLS_NAME / cell / "samples.npy")
        drawn.append(_picture(out, f"{part}-{slug(label)}", rows, x, f"{label}: Fréchet {result['Fréchet']:.1f}"))
    return [each for each in drawn if each is not None]


def _reconstructions(out: Path, rows: Dataset, encoded: Cells) -> list[Figure]:
    cell, result = next(iter(encoded.items()))
    place = out / CELLS_NAME / cell
    return [
        each
        for each in (
            _picture(out, "held-out", rows, np.load(place / "original.npy"), "held-out rows"),
            _picture(
                out,
                "reconstructed",
                rows,
                np.load(place / "decoded.npy"),
                f"the same, encoded and decoded: Fréchet {result['Fréchet']:.1f}, what is lost before any network",
            ),
        )
        if each is not None
    ]


_ABLATIONS = (
    "The networks where the number of experts, the way rows are shared among them, or the kind of autoencoder differ. "
    "Losses in different latents cannot be compared, distances of samples can."
)
_AUTOENCODERS = (
    "What held-out rows lose on the way into the latents and back. A name "
    "says the kind, how rows are shared among experts, and how many there are; “light” is a cheaper training."
)


def _autoencoders(encoded: Cells, trained: Cells) -> Table:
    columns = ("autoencoders", "latent shape", "parameters", "train, CPU s", "mean squared error", "Fréchet", "LPIPS")
    table: list[list[Cell]] = []
    for cell, result in encoded.items():
        name = cell.removeprefix("latents/")
        seconds = sum(r["cpu"] for key, r in trained.items() if f"{key}/".startswith(f"autoencoders/{name}/"))
        shape = " × ".join(map(str, result["latent_shape"]))
        figures = (result["mean squared error"], result["Fréchet"], result.get("LPIPS"))
        table.append([name, shape, f"{result['parameters']:,}", seconds, *figures])
    return Table(columns, table)


def _flat(arms: Sequence[Arm], cells: Cells, results: Cells) -> tuple[list[str], list[list[Cell]]]:
    """Every figure of every arm, a line each."""
    keys = sorted({key for result in results.values() for key, value in result.items() if not isinstance(value, dict)})
    prices = ("parameters", "autoencoder_parameters", "flops", "autoencoder_flops")
    table: list[list[Cell]] = []
    for arm in arms:
        result, settings = results[arm.cell], cells[arm.cell]
        costs: list[Cell] = [result["cost"][key] for key in prices]
        named: list[Cell] = [arm.part, arm.autoencoders, arm.label, settings["network"], settings["seed"]]
        table.append([*named, *costs, *(result.get(key) for key in keys)])
    return ["part", "autoencoders", "label", "network", "seed", *prices, *keys], table


def slug(text: str) -> str:
    """Text as the name of a file: lower case, letters, digits and hyphens.

    Example:
        >>> slug("MoG, n = 8, from k-means")
        'mog-n-8-from-k-means'
    """
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
