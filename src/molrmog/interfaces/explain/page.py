"""What `molrmog explain` leaves behind: a page, a picture per noise level, curves, and the figures as JSON lines.

| file            | holds                                                                                      |
| --------------- | ------------------------------------------------------------------------------------------ |
| `explain.html`  | all of it as one page that stands alone                                                    |
| `level-NN.png`  | rows, noised, what the law and the network say, their difference, and where that is        |
| `curves.png`    | shares and losses over the noise level                                                     |
| `figures.jsonl` | one line for what was asked, one per level, one per level and expert, or class             |
| `maps.npz`      | sigma (L,); missed, variance (L, D): mean squares of the difference and of the output      |
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molrmog import pictures
from molrmog.data import Layout
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, machine, number, write_page
from molrmog.interfaces.explain.drawings import Drawn, curves, level_drawing, png
from molrmog.metrics import Agreement
from molrmog.metrics.agreement import agree_from
from molrmog.progress import Show
from molrmog.saving import locked, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FIGURES_NAME, PAGE_NAME, CURVES_NAME, MAPS_NAME = "figures.jsonl", "explain.html", "curves.png", "maps.npz"

TOLERANCE = 0.05
"""Squared distance of law and network, as a share of the network's error, up to which one may stand for the other."""

_MOST_EXPERTS = 20  # in a table


@dataclass(frozen=True)
class Explanation:
    """All that was found.

    Attributes:
        title: what was explained.
        network: what it is, in words.
        law: what it was explained by, in words.
        rows: what was looked at, in words.
        levels: figures by noise level, ascending.
        groups: name of each expert, or class, to its figures by level; those with fewer than 2 held-out rows are left
            out, and all of them where no more than one is left.
        drawn: by level.
        layout: what a row of the data means.
        grouped_by: what the groups are: "expert" or "class".
        space: where the figures were taken: "rows" or "latents".
        settings: all that was chosen.
    """

    title: str
    network: str
    law: str
    rows: str
    levels: Sequence[Agreement]
    groups: Mapping[str, Sequence[Agreement]]
    drawn: Sequence[Drawn]
    layout: Layout
    grouped_by: str
    space: str
    settings: Mapping[str, Any]


def write_explanation(found: Explanation, out: Path, sd: float, show: Show) -> Path:
    """Write the files of the table above into `out`, which may hold older ones of the same kind.

    Args:
        found: what was found.
        out: the folder, made where it does not exist.
        sd: root mean variance of a coordinate, the noise level around which most is decided.
        show: says how many levels are drawn.

    Returns:
        The path of the page.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        shots: list[bytes] = []
        for drawn in found.drawn:
            shots.append(png(level_drawing(drawn, found.layout)))
            show("drawing", len(shots), len(found.drawn))
        over_levels = curves(found.levels)
        for old in out.glob("level-*.png"):
            if (out / FIGURES_NAME).is_file() and re.fullmatch(r"level-\d{2,}\.png", old.name):
                old.unlink()  # of an older explanation
        lines: list[dict[str, Any]] = [{"kind": "explain", "machine": machine(), **found.settings}]
        lines += [{"kind": "level", "sigma": level.sigma, **level.figures()} for level in found.levels]
        lines += [
            {"kind": f"level of {found.grouped_by}", found.grouped_by: name, "sigma": level.sigma, **level.figures()}
            for name, levels in found.groups.items()
            for level in levels
        ]
        # The first file, for it marks the folder: one that is stopped in any later is found to be ours.
        _write(out / FIGURES_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for i, shot in enumerate(shots):
            _write(out / f"level-{i + 1:02d}.png", shot)
        _write(out / CURVES_NAME, png(over_levels))
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            sigma=np.array([level.sigma for level in found.levels]),
            missed=np.stack([drawn.missed for drawn in found.drawn]),
            variance=np.stack([drawn.variance for drawn in found.drawn]),
        )
        _write(out / MAPS_NAME, buffer.getvalue())
        return write_page(
            out / PAGE_NAME,
            found.title,
            _introduction(found),
            [
                Section("Over the noise levels", _READING, [level_table(found.levels)], [_plot(over_levels)]),
                *([_by_expert(found, sd)] if found.groups else []),
                Section("Level by level", _pictures_text(found), figures=_shots(found, shots)),
            ],
            found.settings,
            cards=_cards(found.levels, sd),
        )


def level_table(levels: Sequence[Agreement]) -> Table:
    """The figures by noise level."""
    columns = ("sigma", "isotropic", "Gaussian", "law", "beyond", "worth", "apart", "network", "law", "Gaussian")
    rows: list[Sequence[Cell]] = [
        (
            number(level.sigma, 3),
            share(level.isotropic_share),
            share(level.gaussian_share),
            share(level.share),
            with_error(level.beyond, level.beyond_error),
            with_error(level.worth, level.worth_error),
            number(level.apart, 3),
            *(number(loss, 4) for loss in (level.loss, level.law_loss, level.gaussian_loss)),
        )
        for level in levels
    ]
    caption = (
        "Three columns of shares of the network's output that are explained, then beyond, worth and apart, then the "
        f"squared errors per coordinate on {levels[0].rows:,} held-out rows. After ± stands one standard error."
    )
    return Table(columns, rows, caption, "r" * len(columns))


def nearest_level(levels: Sequence[Agreement], sigma: float) -> int:
    """Index of the level nearest to a sigma, by ratio."""
    return min(range(len(levels)), key=lambda i: abs(math.log(levels[i].sigma / sigma)))


def share(value: float) -> str:
    """A share, with as many digits as tell it from one.

    Example:
        >>> share(0.51234), share(0.99931), share(0.9999993), share(1.0), share(-0.2)
        ('0.512', '0.99931', '0.9999993', '1', '−0.200')
    """
    if not value < 1:
        return "1" if value == 1 else number(value)
    digits = min(8, max(3, 1 - math.floor(math.log10(1 - value))))
    return f"{value:.{digits if value > 0.99 else 3}f}".rstrip("0" if value > 0.99 else "").replace("-", "−")


def with_error(value: float, error: float) -> str:
    """A figure and its standard error.

    Example:
        >>> with_error(0.81234, 0.0123), with_error(0.99712, 0.00042), with_error(float("nan"), 0.0)
        ('0.812 ± 0.012', '0.99712 ± 0.00042', 'undefined')
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return number(value)
    decimals = 3 if not error else min(5, max(3, 1 - math.floor(math.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


_READING = (
    "Left: what is left of the network's output when that of the law, of one Gaussian with the covariance of the "
    "training rows, or of an isotropic one is taken from it. At low noise every denoiser says nearly what it sees, so "
    "all leave little, and only their ratio tells them apart. Middle: “beyond” is that ratio, the share that the law "
    "explains of what the network knows more than the Gaussian; below zero the Gaussian is nearer to the network than "
    "the law. “Worth” says how far what the law does not explain is right: 1 where the network knows "
    "something there, 0.5 where its error is that of the law, 0 where it only errs; above 1 it should go further the "
    "same way. Right: squared errors over that of the Gaussian.\n\n“Apart” is the squared distance of the two over the "
    "network's own squared error: where it is small, up to pure noise, a sampler may start from samples of the noised "
    "law."
)


def _introduction(found: Explanation) -> str:
    where = "" if found.space == "rows" else " All figures are taken in the latents that the network denoises."
    return f"How much of a network a law explains: {found.network}, by {found.law}, on {found.rows}.{where}"


def _cards(levels: Sequence[Agreement], sd: float) -> list[Card]:
    middle = levels[nearest_level(levels, sd)]
    near = f"at sigma = {number(middle.sigma, 3)}, nearest to the deviation of the data"
    first = agree_from([level.apart for level in levels], TOLERANCE)
    reached = f"squared distance at most {TOLERANCE:.0%} of the network's error"
    return [
        Card(share(middle.share), "of the output explained", near),
        Card(number(middle.beyond, 3), "of what a Gaussian leaves", near),
        Card(number(middle.law_loss / middle.loss, 3), "law's error over the network's", near),
        Card(
            "nowhere" if first is None else f"sigma ≥ {number(levels[first].sigma, 3)}",
            "law and network agree",
            f"looked at {len(levels)} levels; {reached}",
        ),
    ]


def _by_expert(found: Explanation, sd: float) -> Section:
    middle = nearest_level(found.levels, sd)
    near = f"sigma = {number(found.levels[middle].sigma, 3)}"
    heaviest = sorted(found.groups, key=lambda name: -found.groups[name][middle].rows)[:_MOST_EXPERTS]
    names = [name for name in found.groups if name in heaviest]
    hidden = len(found.groups) - len(names)
    more = f" The {len(names)} with most rows; the other {hidden} stand in {FIGURES_NAME}." if hidden else ""
    at_one = Table(
        (found.grouped_by, "rows", "law explains", "beyond", "worth", "network's error", "law's error"),
        [
            (
                name,
                str(level.rows),
                share(level.share),
                with_error(level.beyond, level.beyond_error),
                with_error(level.worth, level.worth_error),
                with_error(level.loss, level.loss_error),
                with_error(level.law_loss, level.law_loss_error),
            )
            for name, level in ((name, found.groups[name][middle]) for name in names)
        ],
        f"At {near}; shares of the output's variance within the {found.grouped_by}.{more}",
        "lrrrrrr",
    )
    errors = Table(
        (found.grouped_by, *(f"{number(level.sigma, 2)}" for level in found.levels)),
        [(name, *(number(level.law_loss / level.loss, 3) for level in found.groups[name])) for name in names],
        "The law's squared error over the network's, by sigma; above 1 the network is better.",
        "l" + "r" * len(found.levels),
    )
    return Section(f"By {found.grouped_by}", tables=[at_one, errors])


def _pictures_text(found: Explanation) -> str:
    text = (
        "Held-out rows, the same for all levels. The difference is the network's answer minus the law's, on one scale "
        "per level that stands beside it. The first map is its root mean square over all held-out rows, the second "
        "its mean square over the variance of the network's answer, coordinate by coordinate; grey where the network "
        "says a constant."
    )
    if found.space == "latents":
        text += " Latents are shown, and the maps taken, through the decoders."
    return text


def _shots(found: Explanation, shots: Sequence[bytes]) -> list[Figure]:
    return [
        Figure(
            "data:image/png;base64," + base64.b64encode(shot).decode(),
            f"sigma = {number(level.sigma, 3)}: the law explains {share(level.share)} of the output, "
            f"{number(level.beyond, 3)} of what a Gaussian leaves.",
            wide=True,
        )
        for level, shot in zip(found.levels, shots, strict=True)
    ]


def _plot(over_levels: Drawing) -> Figure:
    return Figure(pictures.svg_uri(over_levels), "What is left, beyond and worth, and errors, over sigma.", wide=True)


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda part: part.write_bytes(content))
