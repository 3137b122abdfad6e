"""What a run reports about its law: one list of measurements, each with what it depends on.

Where samples are measured, beside the number stands what training rows would get in their place: the best that a law
can hope for, or a warning where it does better than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molrmog import metrics
from molrmog.data import Dataset
from molrmog.law import Law
from molrmog.metrics import FeatureSpace

_REFERENCE_ROWS = 20_000  # training rows that a feature space or a likelihood looks at
_NEAREST_ROWS = 60_000  # training rows among which the nearest are looked for


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


def pick(data: Dataset, rows: int, seed: int = 0) -> Dataset:
    """At most `rows` rows at random, in their old order."""
    if len(data) <= rows:
        return data
    return data.subset(np.sort(np.random.default_rng(seed).choice(len(data), rows, replace=False)))


def draw(law: Law, num: int, seed: int = 0) -> np.ndarray:
    """Exact samples with shape (num, D)."""
    return law.sample(num, torch.Generator().manual_seed(seed)).x.cpu().numpy()


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
    where = f"most probable subspace of {len(held_out):,} held-out rows, against labels"
    return [
        Measurement("adjusted Rand index", found.ari, where, "higher"),
        Measurement("normalised mutual information", found.nmi, where, "higher"),
        Measurement("purity", found.purity, where, "higher"),
    ]
