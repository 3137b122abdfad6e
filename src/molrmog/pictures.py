"""Pictures of samples, of a law's subspaces, and the plots of the report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from molrmog.data import Layout
from molrmog.laws.base import Subspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_INK = "#808080"  # readable on white and on black
_BLUE, _ORANGE, _GREEN = "#3b7dd8", "#e08a2e", "#4f9e58"
_GAP = 1  # pixels between the cells of a grid, before enlarging
_CELL = 56  # pixels a cell is enlarged to, at least


def grid(images: np.ndarray, columns: int | None = None) -> Image:
    """Lay pictures out in a grid and enlarge them by a whole factor.

    Args:
        images: uint8 with shape (N, H, W) or (N, H, W, 3).
        columns: pictures in a row; a square grid where not given.

    Raises:
        ValueError: there is nothing to draw.
    """
    from PIL import Image

    if not len(images):
        raise ValueError("no pictures to draw: ask for at least one")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, *channels = images.shape[1:]
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, *channels), 128, np.uint8)
    for i, picture in enumerate(images):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = picture
    factor = max(1, math.ceil(_CELL / max(height, width)))
    picture = Image.fromarray(canvas)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def signed_images(x: np.ndarray, layout: Layout) -> np.ndarray:
    """Directions as pictures, each scaled by its largest entry: blue below 0, white at 0, red above.

    Args:
        x: directions, with shape (N, D).
        layout: of images; with three channels, 0 is grey instead.

    Returns:
        uint8 with shape (N, H, W, 3).
    """
    largest = np.abs(x).max(1, keepdims=True)
    v = x / np.where(largest > 0, largest, 1)
    v = v.reshape(-1, *layout.shape)  # (N, C, H, W)
    if layout.shape[0] == 3:
        return np.rint(127.5 * (1 + v)).astype(np.uint8).transpose(0, 2, 3, 1)
    v = v[:, 0, :, :, None]
    red, blue = np.array([196, 40, 50]), np.array([40, 90, 190])
    return np.rint(255 - np.abs(v) * (255 - np.where(v > 0, red, blue))).astype(np.uint8)


def principal_directions(part: Subspace, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions along which a subspace's modes together vary most, and the standard deviation along each.

    The columns of A_k are known up to a rotation only; this rotation does not depend on how they were found.

    Returns:
        Directions with shape (count, D), and standard deviations with shape (count,), in data units.
    """
    w, mu = part.mode_weights.double(), part.means.double()
    off = mu - w @ mu
    spread = (off.T * w) @ off + sum(w[i] * (U.double() @ U.double().T) for i, U in enumerate(part.factors))
    values, vectors = torch.linalg.eigh(spread)
    keep = vectors.flip(1)[:, :count]
    directions = (part.basis.double() @ keep).T.cpu().numpy()
    return directions, values.flip(0)[:count].clamp(min=0).sqrt().cpu().numpy()


def png(image: Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_uri(image: Image) -> str:
    """The picture as a data URI for a page that must stand alone."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def svg_uri(figure: Figure) -> str:
    """The figure as a data URI."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "molrmog"}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, with `columns` axes side by side, in a style that suits light and dark pages."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, columns)).ravel().tolist()
    for axis in axes:
        axis.tick_params(colors=_INK, labelsize=8)
        for name, spine in axis.spines.items():
            spine.set_color(_INK)
            spine.set_visible(name in ("left", "bottom"))
        for label in (axis.xaxis.label, axis.yaxis.label, axis.title):
            label.set_color(_INK)
            label.set_fontsize(9)
        axis.grid(color=_INK, alpha=0.2, linewidth=0.6)
        axis.set_axisbelow(True)
    return fig, axes


def logarithmic(axis: Axes, across: bool = True, up: bool = True) -> None:
    """Make axes logarithmic, called when all is drawn: plain numbers, some also where there is no full decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    if across:
        axis.set_xscale("log")
    if up:
        axis.set_yscale("log")
    for each in [axis.xaxis] * across + [axis.yaxis] * up:
        low, high = each.get_view_interval()
        subs = (1, 2, 5) if high < 3000 * low else (1,)
        each.set_major_locator(LogLocator(subs=subs) if high > 8 * low else MaxNLocator(5))
        each.set_major_formatter(StrMethodFormatter("{x:,g}"))
        each.set_minor_locator(NullLocator())


def _legend(axis: Axes) -> None:
    axis.legend(frameon=False, fontsize=8, labelcolor=_INK)


def curve(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Log-likelihood per row over the passes of EM."""
    from matplotlib.ticker import MaxNLocator

    fig, (axis,) = figure(6.2, 2.7)
    passes = [record["iteration"] for record in records]
    axis.plot(passes, [r["log_likelihood"] for r in records], color=_BLUE, marker="o", ms=3, label="log-likelihood")
    axis.plot(passes, [r["penalised"] for r in records], color=_ORANGE, ls="--", lw=1.2, label="penalised, never falls")
    axis.set_xlabel("pass over the data")
    axis.set_ylabel("nats per training row")
    axis.ticklabel_format(axis="y", useOffset=False)
    # The first passes dwarf the rest.
    if len(records) > 4:
        late = [r[key] for r in records[1:] for key in ("log_likelihood", "penalised")]
        margin = 0.08 * (max(late) - min(late)) or 1.0
        axis.set_ylim(min(late) - margin, max(late) + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axis)
    return fig


def losses(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Losses over optimiser steps.

    Args:
        curves: name to records with "step" and "loss"; those without records are left out.
    """
    fig, (axis,) = figure(6.2, 2.7)
    for (name, records), color in zip(curves.items(), (_BLUE, _ORANGE, _GREEN), strict=False):
        if records:
            steps, loss = [r["step"] for r in records], [r["loss"] for r in records]
            axis.plot(steps, loss, color=color, lw=1.2, marker="o" if len(steps) < 40 else None, ms=3, label=name)
    # The first steps dwarf the rest.
    late = np.concatenate([[r["loss"] for r in records[len(records) // 10 :]] for records in curves.values()])
    low, high = np.quantile(late, [0.0, 0.98])
    margin = 0.08 * (high - low) or 0.1
    axis.set_ylim(low - margin, high + margin)
    axis.set_xlabel("step")
    axis.set_ylabel("weighted loss per coordinate")
    _legend(axis)
    return fig


def selection(table: Sequence[Mapping[str, Any]], criterion: str = "held-out") -> Figure:
    """What each candidate structure is worth, over its degrees of freedom.

    Args:
        table: of a `Selection`, the best first.
        criterion: by which it was chosen.
    """
    fig, (axis,) = figure(6.2, 3.0)
    best = 0.0 if criterion != "held-out" else float(table[0]["held_out"])
    worth = np.array([best - each["behind"] for each in table])
    freedom = np.array([each["degrees_of_freedom"] for each in table])
    for name, colour in zip(("isotropic", "diagonal", "shared"), (_BLUE, _ORANGE, _GREEN), strict=True):
        for several, marker in ((False, "o"), (True, "s")):
            at = [i for i, e in enumerate(table) if e["noise"] == name and (e["subspaces"] > 1) == several]
            label = f"{name} noise, {'several subspaces' if several else 'one subspace'}"
            if at:
                axis.scatter(freedom[at], worth[at], s=14, color=colour, marker=marker, alpha=0.8, label=label, lw=0)
    axis.scatter(freedom[:1], worth[:1], s=110, facecolors="none", edgecolors=_INK, linewidths=1.2)
    axis.annotate(
        "chosen", (freedom[0], worth[0]), (0, 9), textcoords="offset points", ha="center", fontsize=8, color=_INK
    )
    low, high = np.quantile(worth, 0.25), worth.max()  # what is far behind would flatten the rest
    axis.set_ylim(low - 0.08 * (high - low or 1.0), high + 0.22 * (high - low or 1.0))
    axis.set_xlabel("degrees of freedom")
    axis.set_ylabel(
        "nats per held-out row" if criterion == "held-out" else f"nats per row behind, by {criterion.upper()}"
    )
    fig.legend(frameon=False, fontsize=7, labelcolor=_INK, loc="outside upper left", ncols=2)
    logarithmic(axis, up=False)
    return fig


def gate_usage(weights: np.ndarray, shares: np.ndarray) -> Figure:
    """Weight of each subspace beside its mean responsibility on held-out rows, both with shape (K,)."""
    fig, (axis,) = figure(6.2, 2.7)
    at = np.arange(len(weights))
    axis.bar(at - 0.2, weights, 0.4, color=_BLUE, label="weight in the law")
    axis.bar(at + 0.2, shares, 0.4, color=_ORANGE, label="mean gate on held-out rows")
    axis.set_xlabel("subspace")
    axis.set_ylabel("share")
    if len(at) <= 40:
        axis.set_xticks(at)
    axis.set_ylim(0, 1.28 * max(weights.max(), shares.max()))
    axis.legend(frameon=False, fontsize=8, labelcolor=_INK, ncols=2, loc="upper right")
    return fig


def clouds(sets: Mapping[str, np.ndarray], reference: np.ndarray) -> Figure:
    """Rows that are no images: their leading principal coordinates, and the coordinates themselves.

    Args:
        sets: name to rows with shape (N, D), the real ones first.
        reference: rows that the principal components are taken from, with shape (M, D).
    """
    from matplotlib.ticker import MaxNLocator

    fig, (plane, lines) = figure(9.6, 3.6, columns=2)
    if len(reference) < 2:  # one row has no second axis
        reference = np.concatenate([reference, *sets.values()])
    mean = reference.mean(0)
    axes = np.linalg.svd(reference - mean, full_matrices=False)[2][:2]  # (min(2, D), D)
    D = reference.shape[1]
    for (name, rows), color, marker in zip(sets.items(), (_INK, _BLUE, _ORANGE), "oxx", strict=False):
        at = (rows - mean) @ axes.T
        if D > 1:
            plane.scatter(at[:, 0], at[:, 1], s=12, marker=marker, color=color, alpha=0.6, linewidths=0.9, label=name)
        else:
            plane.hist(at[:, 0], bins=30, density=True, color=color, alpha=0.5, label=name)
        low, middle, high = np.quantile(rows, [0.05, 0.5, 0.95], axis=0)
        lines.plot(np.arange(D), middle, color=color, lw=1.4, marker="o" if D <= 20 else None, ms=3, label=name)
        lines.fill_between(np.arange(D), low, high, color=color, alpha=0.2, linewidth=0)
    plane.set_xlabel("first principal coordinate of the training rows")
    plane.set_ylabel("second" if D > 1 else "density")
    lines.set_xlabel("coordinate")
    lines.set_ylabel("median, 5% to 95%")
    lines.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(plane)
    _legend(lines)
    return fig


def profile(part: Subspace, modes: int = 8, directions: int = 2) -> Figure:
    """A subspace whose rows are no images: offset, mode means and leading directions over the coordinates."""
    from matplotlib.ticker import MaxNLocator

    fig, (means, basis) = figure(9.6, 2.2, columns=2)
    at = np.arange(len(part.offset))
    marker = "o" if len(at) <= 20 else None
    centres = (part.offset + part.means @ part.basis.T).cpu().numpy()
    for i in part.mode_weights.argsort(descending=True)[:modes].tolist():
        means.plot(at, centres[i], color=_BLUE, lw=1, alpha=0.6, marker=marker, ms=3)
    means.plot(at, part.offset.cpu().numpy(), color=_INK, lw=1.4, label="offset")
    means.plot([], [], color=_BLUE, lw=1, label="mode means")
    vectors, deviations = principal_directions(part, directions)
    for vector, deviation, color in zip(vectors, deviations, (_BLUE, _ORANGE), strict=False):
        basis.plot(at, vector, color=color, lw=1.2, marker=marker, ms=3, label=f"direction, deviation {deviation:.3g}")
    for axis in (means, basis):
        axis.set_xlabel("coordinate")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axis)
    return fig


def samples_picture(layout: Layout, samples: np.ndarray, real: np.ndarray | None = None) -> bytes:
    """Samples as a PNG file: a grid where they are images, a plot of their coordinates otherwise.

    Args:
        layout: what a row means.
        samples: with shape (N, D).
        real: rows to compare with where they are no images, with shape (M, D).
    """
    if layout.is_image:
        return png(grid(layout.to_images(samples)))
    sets = {"samples": samples} if real is None else {"held-out rows": real, "samples": samples}
    buffer = io.BytesIO()
    clouds(sets, samples if real is None else real).savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()
