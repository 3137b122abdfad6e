"""The drawings of `molrmog explain`: one of each noise level, and curves over all levels.

A level is drawn as rows, the same noised, what the law and the network say and their difference, beside two maps over
the coordinates: the root mean square of the difference, and its mean square over the variance of what the network says,
which is left out where that is next to nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from molrmog import pictures
from molrmog.data import Layout
from molrmog.metrics import Agreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_INK, _BLUE, _ORANGE, _GREEN = "#808080", "#3b7dd8", "#e08a2e", "#4f9e58"
_WORTH = -1.5, 5.0  # shares that are drawn; those outside are an arrow at the edge
_STILL = 0.01  # of the mean variance: a coordinate that varies less is a constant to the network


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


def curves(levels: Sequence[Agreement]) -> Drawing:
    """Shares left, beyond and worth, and errors, over the noise level."""
    fig, (left, middle, right) = pictures.figure(12.4, 3.3, columns=3)
    sigma = [level.sigma for level in levels]
    for name, color, explained in (
        ("isotropic Gaussian", _INK, [level.isotropic_share for level in levels]),
        ("one Gaussian", _ORANGE, [level.gaussian_share for level in levels]),
        ("law", _BLUE, [level.share for level in levels]),
    ):
        left.plot(sigma, [max(1 - value, 1e-12) for value in explained], color=color, marker="o", ms=3, label=name)
    left.set_ylabel("share of the output left")
    for name, color in (("beyond", _BLUE), ("worth", _GREEN)):
        value = np.array([getattr(level, name) for level in levels])
        error = np.array([getattr(level, f"{name}_error") for level in levels])
        middle.errorbar(sigma, value, error, color=color, marker="o", ms=3, lw=1.4, capsize=2, label=name)
        for outside, edge, mark in ((value > _WORTH[1], _WORTH[1], "^"), (value < _WORTH[0], _WORTH[0], "v")):
            for at in np.array(sigma)[outside]:
                middle.plot(at, edge, mark, color=color, ms=7, clip_on=False)
    low, high = middle.get_ylim()
    middle.set_ylim(max(min(low, -0.4), _WORTH[0]), min(max(high, 1.3), _WORTH[1]))
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
        pictures.logarithmic(axis, up=axis is left)
        axis.set_xlabel("noise level sigma = gamma / s")
        axis.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return fig


def level_drawing(drawn: Drawn, layout: Layout) -> Drawing:
    """Rows and maps of one noise level: pictures where rows are, else lines over the coordinates."""
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
    names = ("clean", "noised, scaled", "law", "network", "network − law")
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


def png(drawing: Drawing) -> bytes:
    """A drawing as the bytes of a PNG."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=100, facecolor="white")
    return buffer.getvalue()
