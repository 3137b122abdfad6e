"""Held-out log-likelihood of a law, in nats per row and in bits per dimension of the raw data.

A dataset maps raw values to x = scale * raw + shift, so the densities differ by the Jacobian of that map:

    log p_raw(raw) = log p(x) + D log scale
    bits/dim       = -(log p(x) + D log scale) / (D log 2)

Two numbers decide what this means, and travel with it. The noise floor: the smallest standard deviation of any
direction of the law; as it goes to 0 the density of data on a subspace, and of 8-bit data that repeat their values,
grows without bound. And whether the rows were dequantised (uniform noise of one grey level added): only then is
bits/dim an upper bound on a lossless code length and comparable with published values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molrmog.arguments import real, whole
from molrmog.data import Dataset
from molrmog.data.arrays import as_numbers
from molrmog.laws.base import Law, check_law
from molrmog.metrics._rows import Rows, as_array, blocks, placement


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a law on rows it has not seen.

    Attributes:
        nats: mean log p(x) per row, in nats, on the scale of the rows.
        nats_median: median over rows; a few outliers move the mean of a light-tailed law, not this.
        nats_se: standard error of the mean over rows (NaN for a single row).
        bits_per_dim: mean bits per dimension, on the raw scale.
        bits_per_dim_median: median over rows.
        noise_floor: smallest standard deviation of any direction of the law, in the units of the rows.
        noise_floor_raw: the same in raw units (grey levels, for images).
        dequantised: whether uniform noise was added to the raw values; None where nobody said.
        rows: number of rows N.
        dim: number of columns D.
    """

    nats: float
    nats_median: float
    nats_se: float
    bits_per_dim: float
    bits_per_dim_median: float
    noise_floor: float
    noise_floor_raw: float
    dequantised: bool | None
    rows: int
    dim: int


def log_likelihood(
    law: Law,
    data: Dataset | Rows,
    *,
    scale: float | None = None,
    dequantised: bool | None = None,
    chunk: int = 8192,
) -> Likelihood:
    """Log-likelihood of a law on held-out rows.

    Args:
        law: any law; rows are moved to its type and device, `chunk` at a time.
        data: a Dataset, which knows its scale and whether it was dequantised, or rows with shape (N, D).
        scale: x = scale * raw + shift; None takes the Dataset's, or 1 for plain rows.
        dequantised: whether uniform noise was added to the raw values; None takes the Dataset's.
        chunk: rows moved at a time, so that a memory map is never read whole.

    Returns:
        Mean, median and standard error in nats, bits per dimension, and what they depend on.

    Raises:
        ValueError: where the scale is not positive, D is not the law's, or the rows hold NaN or infinite entries.
    """
    check_law(law)
    chunk = whole(chunk, "chunk", 1)
    if isinstance(data, Dataset):
        scale = data.scale if scale is None else scale
        dequantised = data.dequantised if dequantised is None else dequantised
    data = as_numbers(data, "data")
    scale = 1.0 if scale is None else real(scale, "scale")
    if not (scale > 0.0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a positive number, got {scale}")
    if data.ndim != 2 or not len(data):
        raise ValueError(f"rows must have shape (N, D) with N >= 1, got {tuple(data.shape)}")

    dtype, device = placement(law)
    parts: list[Tensor] = []
    with torch.no_grad():
        for rows in blocks(len(data), chunk):
            x = torch.tensor(as_array(data[rows], dim=law.dim), dtype=dtype, device=device)
            parts.append(law.log_prob(x).double().cpu())
    nats = torch.cat(parts).numpy()  # (N,)
    bits = -(nats / law.dim + math.log(scale)) / math.log(2.0)  # (N,)
    return Likelihood(
        nats=float(nats.mean()),
        nats_median=float(np.median(nats)),
        nats_se=float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else math.nan,
        bits_per_dim=float(bits.mean()),
        bits_per_dim_median=float(np.median(bits)),
        noise_floor=law.noise_floor,
        noise_floor_raw=law.noise_floor / scale,
        dequantised=dequantised,
        rows=len(nats),
        dim=law.dim,
    )
