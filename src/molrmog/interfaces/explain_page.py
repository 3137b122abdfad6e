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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molrmog import pictures
from molrmog.data import Layout
from molrmog.experiments.page import Card, Cell, Figure, Section, Table, machine, number, write_page
from molrmog.metrics import Agreement
from molrmog.metrics.agreement import agree_from
from molrmog.progress import Show
from molrmog.saving import locked, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

FIGURES_NAME, PAGE_NAME, CURVES_NAME, MAPS_NAME = "figures.jsonl", "explain.html", "curves.png", "maps.npz"

TOLERANCE = 0.05
"""Squared distance of law and network, as a share of the network's error, up to which one may stand for the other."""

_INK, _BLUE, _ORANGE, _GREEN = "#808080", "#3b7dd8", "#e08a2e", "#4f9e58"
_STILL = 0.01  # of the mean variance: a coordinate that varies less is a constant to the network
_MOST_EXPERTS = 20  # in a table


@dataclass(frozen=True)
class Drawn:
    """What is drawn at one noise level; rows have shape (N, D), D that of the data.

    Attributes:
        clean: held-out rows.
        noised: the same noised, scaled to the spread of the data.
        law: what the law says.
        network: what the network says.
        missed: mean square of the difference over all held-out rows, by coordinate, with shape (D,).
        variance: of what the network says, with shape (D,).
    """

    clean: np.ndarray
    noised: np.ndarray
    law: np.ndarray
    network: np.ndarray
    missed: np.ndarray
    variance: np.ndarray


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
            shots.append(_png(_level_drawing(drawn, found.layout)))
            show("drawing", len(shots), len(found.drawn))
        curves = _curves(found.levels)
        for old in out.glob("level-*.png"):
            old.unlink()
        for i, shot in enumerate(shots):
            _write(out / f"level-{i + 1:02d}.png", shot)
        _write(out / CURVES_NAME, _png(curves))
        lines: list[dict[str, Any]] = [{"kind": "explain", "machine": machine(), **found.settings}]
        lines += [{"kind": "level", "sigma": level.sigma, **level.figures()} for level in found.levels]
        lines += [
            {"kind": f"level of {found.grouped_by}", found.grouped_by: name, "sigma": level.sigma, **level.figures()}
            for name, levels in found.groups.items()
            for level in levels
        ]
        _write(out / FIGURES_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode())
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
                Section("Over the noise levels", _READING, [level_table(found.levels)], [_plot(curves)]),
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
    "something there, 0.5 where its error is that of the law, 0 where it only errs. Right: squared errors over that of "
    "the Gaussian.\n\n“Apart” is the squared distance of the two over the network's own squared error: where it is "
    "small, up to pure noise, a sampler may start from samples of the noised law."
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


def _plot(curves: Drawing) -> Figure:
    return Figure(pictures.svg_uri(curves), "What is left, beyond and worth, and errors, over sigma.", wide=True)


def _curves(levels: Sequence[Agreement]) -> Drawing:
    fig, (left, middle, right) = pictures.figure(12.4, 3.3, columns=3)
    sigma = [level.sigma for level in levels]
    for name, color, explained in (
        ("isotropic Gaussian", _INK, [level.isotropic_share for level in levels]),
        ("one Gaussian", _ORANGE, [level.gaussian_share for level in levels]),
        ("law", _BLUE, [level.share for level in levels]),
    ):
        left.plot(sigma, [max(1 - value, 1e-12) for value in explained], color=color, marker="o", ms=3, label=name)
    left.set_yscale("log")
    left.set_ylabel("share of the output left")
    lowest = -0.3
    for name, color in (("beyond", _BLUE), ("worth", _GREEN)):
        value = np.array([getattr(level, name) for level in levels])
        error = np.array([getattr(level, f"{name}_error") for level in levels])
        middle.errorbar(sigma, value, error, color=color, marker="o", ms=3, lw=1.4, capsize=2, label=name)
        lowest = min([lowest, *value[np.isfinite(value)]])
    middle.set_ylim(max(lowest - 0.1, -1.5), 1.3)
    middle.axhline(0, color=_INK, lw=0.8)
    middle.set_ylabel("share, ± one standard error")
    for name, color, losses in (
        ("network", _GREEN, [level.loss for level in levels]),
        ("law", _BLUE, [level.law_loss for level in levels]),
    ):
        over = [loss / level.gaussian_loss for loss, level in zip(losses, levels, strict=True)]
        right.plot(sigma, over, color=color, marker="o", ms=3, label=name)
    right.axhline(1, color=_ORANGE, lw=1.2, label="one Gaussian")
    right.set_ylabel("squared error over the Gaussian's")
    for axis in (left, middle, right):
        axis.set_xscale("log")
        axis.set_xlabel("noise level sigma = gamma / s")
        axis.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return fig


def _level_drawing(drawn: Drawn, layout: Layout) -> Drawing:
    rms = np.sqrt(drawn.missed)
    still = drawn.variance <= _STILL * drawn.variance.mean()
    left = np.where(still, np.nan, drawn.missed / np.where(still, 1, drawn.variance))
    return _picture_drawing(drawn, layout, rms, left) if layout.is_image else _row_drawing(drawn, rms, left)


def _picture_drawing(drawn: Drawn, layout: Layout, rms: np.ndarray, left: np.ndarray) -> Drawing:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as NewFigure

    difference = drawn.network - drawn.law
    scale = float(np.quantile(np.abs(difference), 0.995)) or 1.0
    signed = (difference / scale).clip(-1, 1).reshape(-1, *layout.shape)
    lines = [_rgb(layout.to_images(rows)) for rows in (drawn.clean, drawn.noised, drawn.law, drawn.network)]
    lines.append(_signed(signed))
    names = ("clean", "noised", "law", "network", "network − law")
    n, height = lines[0].shape[:2]

    fig = NewFigure(figsize=(1.0 * n + 4.2, 5.2), layout="constrained")
    grid = fig.add_gridspec(2, 3, width_ratios=(1.0 * n, 0.12, 3.2))
    axis = fig.add_subplot(grid[:, 0])
    axis.imshow(np.concatenate([_strip(line) for line in lines]), interpolation="nearest")
    axis.set_yticks([i * (height + 1) + height / 2 - 0.5 for i in range(len(lines))], names, fontsize=9)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = fig.add_subplot(grid[1, 1])
    colors = _diverging() if layout.shape[0] == 1 else "gray"
    fig.colorbar(ScalarMappable(Normalize(-scale, scale), colors), cax=bar)
    bar.tick_params(labelsize=7)
    bar.set_title("difference", fontsize=7)
    _map(fig, fig.add_subplot(grid[0, 2]), rms, layout, "difference, root mean square", None)
    _map(fig, fig.add_subplot(grid[1, 2]), left, layout, "share of the variance left", 1.0)
    return fig


def _map(fig: Drawing, axis: Axes, values: np.ndarray, layout: Layout, title: str, most: float | None) -> None:
    """A map over pixels; channels are averaged."""
    shown = np.ma.masked_invalid(values.reshape(layout.shape)).mean(0)
    top = float(shown.max()) if shown.count() else 0.0
    image = axis.imshow(shown, cmap="viridis", vmin=0, vmax=min(top, most or top) or 1.0, interpolation="nearest")
    axis.set_facecolor("#bbbbbb")
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    fig.colorbar(image, ax=axis, fraction=0.046).ax.tick_params(labelsize=7)


def _row_drawing(drawn: Drawn, rms: np.ndarray, left: np.ndarray) -> Drawing:
    """Rows that are no images: three of them over their coordinates, and bars for the maps."""
    from matplotlib.figure import Figure as NewFigure

    at = np.arange(len(rms))
    shown = min(3, len(drawn.clean))
    fig = NewFigure(figsize=(11, 5.2), layout="constrained")
    grid = fig.add_gridspec(6, 2, width_ratios=(3, 2))
    for i in range(shown):
        axis = fig.add_subplot(grid[2 * i : 2 * i + 2, 0])
        for name, color, rows in (
            ("clean", _INK, drawn.clean),
            ("noised", "#d0d0d0", drawn.noised),
            ("law", _BLUE, drawn.law),
            ("network", _GREEN, drawn.network),
        ):
            axis.plot(at, rows[i], color=color, lw=1.3, marker="o" if len(at) <= 20 else None, ms=3, label=name)
        if i == 0:
            axis.legend(frameon=False, fontsize=8, ncols=4)
    for place, values, title in (
        (grid[:3, 1], rms, "difference, root mean square"),
        (grid[3:, 1], left, "share of the variance left"),
    ):
        axis = fig.add_subplot(place)
        axis.bar(at, np.nan_to_num(values), color=_BLUE)
        axis.set_title(title, fontsize=9)
    axis.set_xlabel("coordinate")
    return fig


def _rgb(images: np.ndarray) -> np.ndarray:
    """Pictures with shape (N, H, W, 3)."""
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, -1)


def _signed(signed: np.ndarray) -> np.ndarray:
    """Differences with shape (N, C, H, W) in [-1, 1] as pictures: by colour in one channel, around grey in three."""
    if signed.shape[1] == 3:
        return np.rint(127.5 * (1 + signed)).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.rint(255 * _diverging()((signed[:, 0] + 1) / 2)[..., :3]).astype(np.uint8)


def _diverging() -> Any:
    from matplotlib import colormaps

    return colormaps["RdBu_r"]


def _strip(images: np.ndarray) -> np.ndarray:
    """Pictures side by side with a white gap, and one below."""
    n, height, width, _ = images.shape
    out = np.full((height + 1, n * (width + 1), 3), 255, np.uint8)
    for i, image in enumerate(images):
        out[:height, i * (width + 1) : i * (width + 1) + width] = image
    return out


def _png(drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=100, facecolor="white")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda part: part.write_bytes(content))
