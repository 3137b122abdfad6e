"""What a run reports about its law or network: one list of measurements, each with what it depends on.

Where samples are measured, beside the number stands what training rows would get in their place: the best that a law
can hope for, or a warning where it does better than that.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrmog import metrics
from molrmog.data import Dataset, Layout
from molrmog.experiments.page import number
from molrmog.interfaces.trained import Trained
from molrmog.laws.base import Law
from molrmog.metrics import LPIPS, FeatureSpace
from molrmog.seeds import numpy_generator, torch_generator

NETWORK_COST, AUTOENCODERS_COST = "cost of the score network", "cost of the autoencoders"
"""Where what a network costs stands among the measurements."""

FEW_ROWS = "fewer than 50 rows: too few to trust"
"""What is said beside a number that so few rows, or samples, gave."""

_REFERENCE_ROWS = 20_000  # training rows that a feature space or a likelihood looks at
_NEAREST_ROWS = 60_000  # training rows among which the nearest are looked for
_CODED_ROWS = 1000  # held-out rows that are encoded and decoded
_LPIPS_PAIRS = 500
_CLIP_ROWS = 500
_NAME_WIDTH = 32  # characters, of a printed table


@dataclass(frozen=True)
class Measurement:
    """One number about a law.

    Attributes:
        name: what was measured.
        value: the number.
        where: the rows and feature space it belongs to.
        better: "lower", "higher", "one" (nearer to 1) or "" where neither is.
        reference: what the training rows get in the place of the samples; None where that makes no sense.
    """

    name: str
    value: float
    where: str
    better: str = ""
    reference: float | None = None

    def to_record(self, *, law: str, command: str) -> dict[str, Any]:
        """The line of `metrics.jsonl`."""
        return {"kind": "measurement", "law": law, **asdict(self), "command": command}


def figure(value: float | None, name: str) -> str:
    """What was measured, for people: a count in full, a share of rows in percent, all else as `number` has it.

    Example:
        >>> figure(1696353.0, "parameters"), figure(0.002, "closer than 1% of held-out"), figure(1.5, "wall seconds")
        ('1,696,353', '0.20%', '1.500')
    """
    if value is not None and math.isfinite(value):
        if name.startswith(("parameters", "FLOPs")) and value < 1e9:
            return f"{value:,.0f}"
        if name.startswith("closer than"):
            return f"{value:.2%}"
    return number(value)


def in_short(where: str) -> str:
    """`where` for small print: how it begins, and the warning where it has one."""
    begins = where.split(";")[0]
    return f"{begins}; {FEW_ROWS}" if where.endswith(f"; {FEW_ROWS}") else begins


def _warned(where: str, *rows: int) -> str:
    return f"{where}; {FEW_ROWS}" if min(rows) < 50 else where


def pick(data: Dataset, rows: int, seed: int = 0) -> Dataset:
    """At most `rows` rows at random, in their old order."""
    if len(data) <= rows:
        return data
    return data.subset(np.sort(numpy_generator(seed).choice(len(data), rows, replace=False)))


def draw(law: Law, num: int, seed: int = 0) -> np.ndarray:
    """Exact samples with shape (num, D)."""
    return law.sample(num, torch_generator(seed)).x.cpu().numpy()


def feature_spaces(
    names: Sequence[str], train: Dataset, held_out: Dataset, weights: str | Path | None = None
) -> list[FeatureSpace]:
    """Build feature spaces by name.

    Args:
        names: of "pca" (principal components of the training rows), "classifier" (trained on their labels, cached),
            "squeezenet" (from its weights).
        train: training rows.
        held_out: held-out rows, on which the classifier's accuracy is measured.
        weights: safetensors file of SqueezeNet 1.1's feature stack; looked for in $MOLRMOG_WEIGHTS_DIR where None.

    Raises:
        ValueError: a name is unknown, or the data cannot have such a space.
        FileNotFoundError: there are no such weights.
    """
    spaces: list[FeatureSpace] = []
    for name in names:
        if name == "pca":
            spaces.append(metrics.PixelPCA(pick(train, _REFERENCE_ROWS).x))
        elif name == "classifier":
            spaces.append(metrics.ClassifierFeatures(train, held_out))
        elif name == "squeezenet":
            spaces.append(metrics.SqueezeNetFeatures(train, weights))
        else:
            raise ValueError(f"unknown features {name!r}: choose from pca, classifier, squeezenet")
    return spaces


def likelihood(law: Law, train: Dataset, held_out: Dataset) -> list[Measurement]:
    """Log-likelihood of held-out and training rows, in nats a row and, for integer levels, raw bits per dimension."""
    out: list[Measurement] = []
    for kind, rows in (("held-out", held_out), ("training", pick(train, _REFERENCE_ROWS))):
        found = metrics.log_likelihood(law, rows)
        where = f"{found.rows:,} {kind} rows"
        if rows.levels is not None:
            where += ", dequantised" if rows.dequantised else ", not dequantised (no code length)"
        where = _warned(where, found.rows)
        higher, lower = ("higher", "lower") if kind == "held-out" else ("", "")
        out += [
            Measurement("log-likelihood, nats, mean", found.nats, where, higher),
            Measurement("log-likelihood, nats, median", found.nats_median, where, higher),
        ]
        if rows.levels is not None:
            out += [
                Measurement("bits/dim, mean", found.bits_per_dim, where, lower),
                Measurement("bits/dim, median", found.bits_per_dim_median, where, lower),
            ]
    return out


def quality(
    samples: np.ndarray,
    train: Dataset,
    held_out: Dataset,
    space: FeatureSpace,
    *,
    neighbours: bool = True,
    seed: int = 0,
) -> list[Measurement]:
    """Distance of samples from held-out rows in one feature space.

    Args:
        samples: with shape (N, D).
        train: training rows, N of which are measured beside the samples.
        held_out: the reference; N of its rows at most.
        space: the feature space.
        neighbours: also precision, recall, density and coverage, which cost N^2 distances.
        seed: of the rows that are picked.
    """
    real = pick(held_out, len(samples), seed)
    fake, true = space(samples), space(real.x)
    seen = space(pick(train, len(samples), seed).x)
    where = f"{space.name}; {len(samples):,} samples against {len(real):,} held-out rows"
    where = _warned(where, len(samples), len(real))
    out = [
        Measurement(
            "Fréchet distance",
            metrics.frechet_distance(fake, true),
            where,
            "lower",
            metrics.frechet_distance(seen, true),
        )
    ]
    if neighbours and min(len(fake), len(true), len(seen)) > 5:
        shares, seen_shares = (metrics.precision_recall(rows, true) for rows in (fake, seen))
        balls, seen_balls = (metrics.density_coverage(rows, true) for rows in (fake, seen))
        out += [
            Measurement(f"precision, k = {shares.k}", shares.precision, where, "higher", seen_shares.precision),
            Measurement(f"recall, k = {shares.k}", shares.recall, where, "higher", seen_shares.recall),
            Measurement(f"density, k = {balls.k}", balls.density, where, "one", seen_balls.density),
            Measurement(f"coverage, k = {balls.k}", balls.coverage, where, "higher", seen_balls.coverage),
        ]
    return out


def memorisation(samples: np.ndarray, train: Dataset, held_out: Dataset, seed: int = 0) -> list[Measurement]:
    """Distances of samples to their nearest training rows, against those of held-out rows."""
    reference = pick(train, _NEAREST_ROWS, seed)
    found = metrics.memorisation(samples, reference.x, pick(held_out, len(samples), seed).x)
    where = (
        f"distance to the nearest of {len(reference):,} training rows; {len(samples):,} samples against held-out rows"
    )
    where = _warned(where, len(reference), len(samples), len(held_out))
    return [
        Measurement("nearest row, ratio of medians", found.ratio, where, "one"),
        Measurement("closer than 1% of held-out", found.closer_than_1, where),
        Measurement("closer than 5% of held-out", found.closer_than_5, where),
    ]


def clusters(law: Law, held_out: Dataset) -> list[Measurement]:
    """Agreement of the subspaces that own the held-out rows with their labels; nothing where there are none."""
    if held_out.labels is None:
        return []
    found = metrics.clustering(metrics.assign(law, held_out.x)[0], held_out.labels)
    where = _warned(f"most probable subspace of {len(held_out):,} held-out rows, against labels", len(held_out))
    return [
        Measurement("adjusted Rand index", found.ari, where, "higher"),
        Measurement("normalised mutual information", found.nmi, where, "higher"),
        Measurement("purity", found.purity, where, "higher"),
    ]


def network(
    trained: Trained,
    records: Sequence[Mapping[str, Any]],
    train: Dataset,
    held_out: Dataset,
    held_expert: Tensor | None,
    *,
    spaces: Sequence[FeatureSpace],
    num: int,
    steps: int = 32,
    lpips: LPIPS | None = None,
    seed: int = 0,
) -> tuple[list[Measurement], np.ndarray]:
    """All that is measured of a trained network.

    Args:
        trained: the network.
        records: of its run, for the losses and times of its training; empty to leave these out.
        train: training rows.
        held_out: held-out rows.
        held_expert: their experts, with shape (M,); None where they are not known.
        spaces: feature spaces to compare in; with none, samples are not measured.
        num: samples, and held-out rows at most.
        steps: of the sampler (heun).
        lpips: to judge pictures by, where they are pictures and the weights are there.
        seed: of the samples and of the rows picked.

    Returns:
        The measurements, and the samples with shape (num, D).
    """
    with metrics.Stopwatch() as watch:
        x = trained.sample(num, steps=steps, seed=seed).x.cpu().numpy()
    out = _training_loss(records, len(held_out))
    if held_expert is not None and spaces:
        out += coding(trained, held_out, held_expert, lpips, seed)
    for space in spaces:
        out += quality(x, train, held_out, space, seed=seed)
    if spaces:
        out += memorisation(x, train, held_out, seed)
    if lpips is not None:
        out += diversity(x, train, lpips, seed)
    return out + _costs(trained, records, watch, num, steps), x


def _training_loss(records: Sequence[Mapping[str, Any]], rows: int) -> list[Measurement]:
    """The newest loss of the averaged network on held-out rows."""
    losses = [r for r in records if r["kind"] == "validation"]
    if not losses:
        return []
    where = _warned("denoising score matching, held-out rows, as weighted in the training", rows)
    return [Measurement("denoising loss", losses[-1]["loss"], where, "lower")]


def coding(
    trained: Trained, held_out: Dataset, expert: Tensor, lpips: LPIPS | None = None, seed: int = 0
) -> list[Measurement]:
    """What autoencoders keep of held-out rows, and how likely a law finds their latents.

    Args:
        trained: the network.
        held_out: held-out rows.
        expert: of each, with shape (M,).
        lpips: to judge pictures by, too.
        seed: of the rows picked.
    """
    rows = np.sort(numpy_generator(seed).permutation(len(held_out))[:_CODED_ROWS])
    real, k = np.asarray(held_out.x[rows]), expert[torch.from_numpy(rows)]
    z = trained.encode(real, k)
    out: list[Measurement] = []
    if trained.in_latents:
        decoded = trained.decode(z, k).cpu().numpy()
        about = f"reconstruction of {len(rows):,} held-out rows by their autoencoders"
        where = _warned(about, len(rows))
        out.append(
            Measurement("root mean squared error", float(np.sqrt(np.mean((decoded - real) ** 2))), where, "lower")
        )
        if lpips is not None:
            distance = lpips.reconstruction(real, decoded).mean
            out.append(Measurement("LPIPS", distance, _warned(f"{about}; {lpips.name}", len(rows)), "lower"))
    if trained.laws is not None:
        k = k.to(z.device)
        with torch.no_grad():
            nats = torch.cat([law.log_prob(z[k == own]) for own, law in enumerate(trained.laws)])
        where = f"{len(rows):,} held-out {'latents' if trained.in_latents else 'rows'}, given their experts"
        where = _warned(where, len(rows))
        out += [
            Measurement("log-likelihood, nats, mean", float(nats.double().mean()), where, "higher"),
            Measurement("log-likelihood, nats, median", float(nats.double().median()), where, "higher"),
        ]
    return out


def diversity(samples: np.ndarray, train: Dataset, lpips: LPIPS, seed: int = 0) -> list[Measurement]:
    """How different pictures are from one another; training rows say how different they should be."""
    seen = pick(train, len(samples), seed).x
    found, real = (lpips.diversity(rows, pairs=_LPIPS_PAIRS, seed=seed) for rows in (samples, seen))
    where = _warned(f"{lpips.name}; {found.pairs:,} pairs", len(samples), len(seen))
    return [Measurement("diversity", found.mean, where, "", real.mean)]


def perceptual(layout: Layout, features: str | Path | None = None) -> LPIPS | None:
    """LPIPS for pictures; None for other rows, and with a line on stderr where its weights are not there."""
    if not layout.is_image:
        return None
    try:
        return LPIPS(layout, features)
    except FileNotFoundError as missing:
        print(f"molrmog: LPIPS is left out: {missing}", file=sys.stderr)
        return None


def text_score(samples: np.ndarray, held_out: Dataset, folder: str, prompt: str) -> list[Measurement]:
    """How well pictures go with a line of text; beside it, held-out pictures.

    Args:
        samples: with shape (N, D).
        held_out: pictures to compare with.
        folder: a CLIP model of transformers.
        prompt: the text.
    """
    clip = metrics.CLIPScore(held_out, folder)
    found, real = (float(clip(rows[:_CLIP_ROWS], prompt).mean()) for rows in (samples, np.asarray(held_out.x)))
    where = f"{clip.name}, with “{prompt}”; beside it, held-out rows"
    where = _warned(where, len(samples), len(held_out))
    return [Measurement("CLIP score", found, where, "higher", real)]


def _costs(
    trained: Trained, records: Sequence[Mapping[str, Any]], watch: metrics.Stopwatch, num: int, steps: int
) -> list[Measurement]:
    """Size, operations and seconds, the score network and its autoencoders apart."""
    size = trained.cost()
    last = next((r for r in reversed(records) if r["kind"] == "train"), None)
    made = [r for r in records if r["kind"] == "stage" and r["name"] == "autoencoders"]
    start = [r for r in records if r["kind"] == "stage" and r["name"] == "start"]
    network, autoencoders = NETWORK_COST, AUTOENCODERS_COST
    sampling = f"cost of {num:,} samples, {steps} steps of heun"
    out = [
        Measurement("parameters", size.parameters, network, "lower"),
        Measurement("FLOPs per row and step", size.flops, network, "lower"),
    ]
    if last is not None:
        out += [
            Measurement("training, wall seconds", last["seconds"], network, "lower"),
            Measurement("training, CPU seconds", last["cpu_seconds"], network, "lower"),
        ]
    if start:
        out.append(Measurement("its start, CPU seconds", sum(r["cpu_seconds"] for r in start), network, "lower"))
    if trained.in_latents:
        out += [
            Measurement("parameters", size.autoencoder_parameters, autoencoders, "lower"),
            Measurement("FLOPs per sample (decoding)", size.autoencoder_flops, autoencoders, "lower"),
        ]
    if made:
        out += [
            Measurement("training, wall seconds", sum(r["seconds"] for r in made), autoencoders, "lower"),
            Measurement("training, CPU seconds", sum(r["cpu_seconds"] for r in made), autoencoders, "lower"),
        ]
    return [
        *out,
        Measurement("wall seconds", watch.wall, sampling, "lower"),
        Measurement("CPU seconds", watch.cpu, sampling, "lower"),
    ]


def print_measurements(title: str, measured: Mapping[str, Sequence[Measurement]]) -> None:
    """Print measurements as a table, one column per law or network.

    Args:
        title: above the table.
        measured: name of the law or network to its measurements.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print()
    console.print(
        Text(f"{title:<{_NAME_WIDTH}}" + "".join(f"{name:>12}" for name in (*measured, "training"))), style="bold"
    )
    by_key = {name: {(m.where, m.name): m for m in rows} for name, rows in measured.items()}
    keys = dict.fromkeys(key for rows in by_key.values() for key in rows)
    groups = {where: [key for key in keys if key[0] == where] for where in dict.fromkeys(where for where, _ in keys)}
    for where, own in groups.items():
        console.print(Text(where), style="dim")
        for key in own:
            found = [rows.get(key) for rows in by_key.values()]
            reference = next((m.reference for m in found if m is not None), None)
            shown = [figure(None if m is None else m.value, key[1]) for m in found]
            shown.append(figure(reference, key[1]))
            console.print(Text(f"  {key[1]:<{_NAME_WIDTH - 2}}" + "".join(f"{text:>12}" for text in shown)))
    console.print("training: what training rows get in the place of samples", style="dim")
    console.print()
