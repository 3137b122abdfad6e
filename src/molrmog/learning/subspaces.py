"""Where the fit starts: subspaces, then modes inside them.

With labels, one subspace per class: the leading principal components of its rows. Without labels, k-means++ proposes
clusters and K-subspaces refines them: assign every row to the flat b + span A that is nearest, by the squared distance
|x - b - A A^T (x - b)|^2, refit every flat by principal components, repeat; the best of several starts goes on. Inside
a subspace, k-means on the latents A^T (x - b) proposes the modes.

References:
    Bradley & Mangasarian, "k-plane clustering", 2000; Wang et al., arXiv 2409.02426, section 4.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from molrmog.laws.base import Subspace
from molrmog.laws.molrmog import MoLRMoG
from molrmog.learning.asked import check_classes
from molrmog.learning.k_means import k_means
from molrmog.learning.rows import Rows
from molrmog.seeds import seed_of, torch_generator

_ROWS = 16_384  # a start is found on at most this many rows; EM then sees all of them
_WIDEST = 4_096  # principal coordinates that a head/tail law holds at most
_STARTS, _TRIED, _STEPS = 4, 4, 20  # of K-subspaces, refinements of each, and of the best of them at most
_SMALLEST_TAU = 1e-12  # in units of the fit


@dataclass(frozen=True)
class Flat:
    """An affine subspace and how its rows spread around it.

    Attributes:
        offset: b, the mean of its rows, with shape (D,).
        basis: A with orthonormal columns, with shape (D, d).
        variance: of the rows along each column, with shape (d,).
        noise: standard deviation of the rows off the subspace, per direction, in data units.
    """

    offset: Tensor
    basis: Tensor
    variance: Tensor
    noise: float


def principal_flat(x: Tensor, dim: int, *, centred: bool = True, start: Tensor | None = None) -> Flat:
    """Fit the flat of dimension `dim` that is nearest to the rows, by principal components.

    Where many are not wanted, the components come from orthogonal iteration, a few products with the rows.

    Args:
        x: rows, with shape (N, D).
        dim: dimension d of the flat, at most D.
        centred: whether the flat may leave the origin; where not, offset = 0.
        start: a basis near the one sought, with shape (D, m) and m >= d; it saves iterations.
    """
    N, D = x.shape
    offset = x.mean(0) if centred else x.new_zeros(D)
    x = x - offset
    total = float(x.square().sum()) / N
    if 4 * dim >= D:
        Q = torch.eye(D, dtype=x.dtype, device=x.device)
    else:
        steps = 6 if start is None else 1
        wide = min(dim + 8, D)
        draw = torch.randn(D, wide, generator=torch.Generator().manual_seed(0)).to(x)
        Q = draw if start is None else torch.cat([start, draw[:, start.shape[1] :]], 1)
        for _ in range(steps):
            Q = torch.linalg.qr(x.T @ (x @ Q) + 1e-12 * total * draw).Q
    projected = (x @ Q).double()
    values, vectors = torch.linalg.eigh(projected.T @ projected / N)
    values = values.flip(0)[:dim].clamp(min=0)
    basis = torch.linalg.qr(Q.double() @ vectors.flip(1)[:, :dim]).Q
    noise2 = (total - float(values.sum())) / (D - dim) if dim < D else 0.0
    return Flat(offset, basis.to(x.dtype), values.to(x.dtype), max(noise2, 0.0) ** 0.5)


@torch.no_grad()
def principal_coordinates(
    rows: Rows, weights: Tensor | None = None, *, centred: bool = True, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Principal components of all rows, `most` at most, gathered in one pass.

    Args:
        rows: the data.
        weights: of the rows, with shape (N,).
        centred: about the mean; about the origin where not.
        most: how many are kept; the greatest number that a head/tail law holds where not given.

    Returns:
        offset (D,), axes (D, p) largest first, variance along each (p,), and variance of each direction left ().
    """
    D = rows.dim
    most = _WIDEST if most is None else most
    first = torch.zeros(D, dtype=torch.float64, device=rows.device)
    second = torch.zeros(D, D, dtype=torch.float64, device=rows.device)
    total = 0.0
    # Products about a point near the mean keep their digits in float32.
    near = next(chunk for _, chunk in rows.chunks()).mean(0)
    for at, chunk in rows.chunks():
        chunk = chunk - near
        w = chunk.new_ones(len(chunk)) if weights is None else weights[at].to(chunk)
        first += (w @ chunk).double()
        second += ((w[:, None] * chunk).T @ chunk).double()
        total += float(w.double().sum())
    mean = first / total
    offset = mean + near if centred else torch.zeros_like(first)
    second = second / total - mean[:, None] * mean
    if not centred:
        second += (mean + near)[:, None] * (mean + near)
    variance, axes = torch.linalg.eigh(second)
    variance, axes = variance.flip(0).clamp(min=0), axes.flip(1)
    left = variance[most:].mean() if most < D else variance.new_zeros(())
    out = offset, axes[:, :most].contiguous(), variance[:most], left
    return tuple(t.to(rows.dtype) for t in out)  # pyright: ignore


def distances2(x: Tensor, flats: Sequence[Flat]) -> Tensor:
    """Squared distance of each row to each flat, with shape (N, K)."""
    offsets = torch.stack([flat.offset for flat in flats])  # (K, D)
    down = x @ torch.cat([*(flat.basis for flat in flats), offsets.T], 1)  # one product for all flats
    *along, x_offsets = down.split([*(flat.basis.shape[1] for flat in flats), len(flats)], dim=1)
    energy = torch.linalg.vector_norm(x, dim=1).square()[:, None] - 2 * x_offsets + offsets.square().sum(1)
    inside = [(h - flat.offset @ flat.basis).square().sum(1) for h, flat in zip(along, flats, strict=True)]
    return energy - torch.stack(inside, 1)


def cluster_flats(
    x: Any,
    latent_dims: Sequence[int],
    *,
    seed: int = 0,
    starts: int = _STARTS,
    steps: int = _STEPS,
    centred: bool = True,
) -> tuple[list[Flat], Tensor]:
    """Cluster rows by the flat that is nearest: k-means++ starts, K-subspaces refinement, the best start wins.

    Args:
        x: rows, with shape (N, D); anything that :class:`Rows` takes.
        latent_dims: dimension of each flat.
        seed: of the starts.
        starts: number of starts.
        steps: refinements per start, at most.
        centred: whether flats may leave the origin.

    Returns:
        The flats, and the flat of each row with shape (N,).
    """
    rows, units = Rows(x).standard(centred=centred)
    flats, assigned = _cluster(rows[:], latent_dims, seed_of(seed), starts, steps, centred)

    def back(flat: Flat) -> Flat:
        offset = units.unit * flat.offset.double() + units.centre.to(flat.offset.device)
        return Flat(offset.to(flat.basis.dtype), flat.basis, units.unit**2 * flat.variance, units.unit * flat.noise)

    return [back(flat) for flat in flats], assigned


def _cluster(
    x: Tensor, latent_dims: Sequence[int], seed: int, starts: int, steps: int, centred: bool
) -> tuple[list[Flat], Tensor]:
    """As :func:`cluster_flats`, of rows in units of their own: all starts are refined a little, the best further."""
    # Flats of more than half the dimensions hold nearly every row: the clusters stay those of k-means.
    steps = steps if 2 * max(latent_dims) <= x.shape[1] else 0
    begun = [k_means(x, len(latent_dims), torch_generator(seed + start), max_iter=10) for start in range(starts)]
    if not steps:
        assigned = min(begun, key=lambda found: found[2])[0]
        return _flats(x, assigned, [], latent_dims, centred), assigned
    tried = [_refined(x, found[0], [], latent_dims, min(steps, _TRIED), centred) for found in begun]
    energy, flats, assigned = min(tried, key=lambda found: found[0])
    if steps > _TRIED:
        energy, flats, assigned = _refined(x, assigned, flats, latent_dims, steps - _TRIED, centred, energy)
    return flats, assigned


def _refined(
    x: Tensor,
    assigned: Tensor,
    flats: list[Flat],
    latent_dims: Sequence[int],
    steps: int,
    centred: bool,
    energy: float = float("inf"),
) -> tuple[float, list[Flat], Tensor]:
    """Mean squared distance from the nearest flat, the flats, and the flat of each row, after so many refinements."""
    for _ in range(steps):
        flats = _flats(x, assigned, flats, latent_dims, centred)
        off, assigned = distances2(x, flats).min(1)
        before, energy = energy, float(off.double().mean())
        if energy > before * (1 - 1e-4):
            break
    return energy, flats, assigned


def refined_flats(
    x: Tensor, assigned: Tensor, latent_dims: Sequence[int], steps: int, *, centred: bool
) -> tuple[list[Flat], Tensor]:
    """Flats, and the flat of each row, from clusters, by refinements by the flat that is nearest."""
    _, flats, assigned = _refined(x, assigned, [], latent_dims, steps, centred)
    return flats, assigned


def _flats(
    x: Tensor, assigned: Tensor, before: Sequence[Flat], latent_dims: Sequence[int], centred: bool
) -> list[Flat]:
    """The flats of rows by principal components, found from those before, if there are some."""
    flats: list[Flat] = []
    for k, d in enumerate(latent_dims):
        own = x[assigned == k]
        if len(own) < 2:  # an empty flat restarts from the rows that are explained worst
            worst = distances2(x, before).amin(1) if before else x.square().sum(1)
            own = x[worst.topk(min(2 * d + 2, len(x))).indices]
        flats.append(principal_flat(own, d, centred=centred, start=before[k].basis if before else None))
    return flats


def initial_law(
    rows: Rows,
    labels: Tensor | None,
    latent_dims: Sequence[int],
    modes: Sequence[int],
    *,
    rank: int | None = None,
    zero_mean: bool = False,
    seed: int = 0,
    noise_floor: float = 0.0,
    unit: Tensor | None = None,
) -> MoLRMoG:
    """A law to start EM from, of isotropic noise; of noise proportional to `unit` where that is given.

    Args:
        rows: the data.
        labels: class of each row, 0 to K - 1, with shape (N,); None to cluster.
        latent_dims: d_k of each subspace.
        modes: n_k of each subspace.
        rank: of every mode; d_k where not given.
        zero_mean: keep b = 0 and mu = 0, the law of Wang et al. 2024.
        seed: of everything random.
        noise_floor: smallest tau, in data units, or in those of `unit`.
        unit: in which the noise of the columns is alike, in units of the rows, with shape (D,): it is x / unit that
            is clustered.

    Raises:
        ValueError: a class has fewer rows than modes.
    """
    seed = seed_of(seed)
    rows, units = rows.standard(centred=not zero_mean)
    least = max(noise_floor / units.unit, _SMALLEST_TAU)
    draw = torch_generator(seed)
    K = len(modes)
    if labels is None:
        keep = torch.randperm(len(rows), generator=draw)[:_ROWS]
        x = rows[keep] if unit is None else rows[keep] / unit.to(rows.dtype)
        if K == 1:
            flats = [principal_flat(x, latent_dims[0], centred=not zero_mean)]
            assigned = torch.zeros(len(x), device=x.device)
        else:
            flats, assigned = _cluster(x, latent_dims, seed, _STARTS, _STEPS, centred=not zero_mean)
        groups = [x[assigned == k] for k in range(K)]
        shares = [len(group) / len(x) for group in groups]
    else:
        check_classes(labels, modes)
        flats, groups, shares = [], [], []
        for k, d in enumerate(latent_dims):
            own = (labels == k).nonzero()[:, 0]
            group = rows[own[torch.randperm(len(own), generator=draw)[:_ROWS]]]
            group = group if unit is None else group / unit.to(group)
            flats.append(principal_flat(group, d, centred=not zero_mean))
            groups.append(group)
            shares.append(len(own) / len(rows))

    parts = law_of_flats(
        flats, groups, modes, rank=rank, zero_mean=zero_mean, seed=seed, least=least, shares=shares, rows=len(rows)
    )  # fmt: skip
    law = MoLRMoG.from_subspaces(parts, dtype=rows.dtype).requires_grad_(False)
    return units.law_of_rows(law if unit is None else law.stretched(unit))


def law_of_flats(
    flats: Sequence[Flat],
    groups: Sequence[Tensor],
    modes: Sequence[int],
    *,
    rank: int | None,
    zero_mean: bool,
    seed: int,
    least: float,
    shares: Sequence[float] | None = None,
    rows: int | None = None,
    members: Sequence[Tensor] | None = None,
) -> list[Subspace]:
    """Subspaces of a law to start EM from, from flats and the rows on them.

    Args:
        flats: one for each subspace.
        groups: rows of each, with shape (N_k, D).
        modes: n_k of each.
        rank: of every mode; d_k where not given.
        zero_mean: keep mu = 0.
        seed: of the modes.
        least: smallest tau.
        shares: weight of each subspace; its share of the rows where not given.
        rows: how many rows there are; those of the groups where not given.
        members: mode of each row, with shape (N_k,), from 0; k-means finds them where not given.
    """
    total = sum(map(len, groups))
    shares = [len(group) / total for group in groups] if shares is None else shares
    parts: list[Subspace] = []
    for k, (flat, group) in enumerate(zip(flats, groups, strict=True)):
        d = flat.basis.shape[1]
        r = d if rank is None else min(rank, d)
        h = ((group - flat.offset) @ flat.basis).double()
        if members is None:
            weights, means, covariances = _initial_modes(h, modes[k], zero_mean=zero_mean, seed=seed)
        else:
            weights, means, covariances = _modes_of(h, members[k], modes[k])
        noise = max(flat.noise, least)
        values, vectors = torch.linalg.eigh(covariances)
        spread = (values.flip(1)[:, :r] - noise**2).clamp(min=0).sqrt()  # (n, r)
        parts.append(
            Subspace(
                weight=max(shares[k], 1.0 / (rows or total)),
                basis=flat.basis,
                offset=flat.offset,
                tau=noise,
                mode_weights=weights,
                means=means.to(flat.basis.dtype),
                factors=tuple((vectors.flip(2)[:, :, :r] * spread[:, None]).to(flat.basis.dtype)),
            )
        )
    return parts


def _initial_modes(h: Tensor, modes: int, *, zero_mean: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n,), means (n, d) and covariances (n, d, d) of k-means clusters of the latents h (N, d)."""
    N, d = h.shape
    if zero_mean or modes == 1 or modes >= N:
        if modes > N:
            warnings.warn(f"a subspace starts with {N} rows for {modes} modes: its modes start equal", stacklevel=2)
        mean = h.mean(0) if N and not zero_mean else h.new_zeros(d)
        off = h - mean
        covariance = off.T @ off / max(N, 1) + _SMALLEST_TAU * torch.eye(d, dtype=h.dtype, device=h.device)
        # Equal modes would stay equal for ever: spread their means a little.
        nudge = torch.randn(modes, d, dtype=h.dtype, generator=torch_generator(seed)).to(h.device)
        apart = 0.1 * nudge * covariance.diagonal().sqrt() if modes > 1 and not zero_mean else torch.zeros_like(nudge)
        return h.new_full((modes,), 1 / modes), mean + apart, covariance.expand(modes, d, d)
    return _modes_of(h, k_means(h, modes, torch_generator(seed), max_iter=30)[0], modes)


def _modes_of(h: Tensor, nearest: Tensor, modes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (n,), means (n, d) and covariances (n, d, d) of modes whose latents h (N, d) are known."""
    N, d = h.shape
    member = torch.nn.functional.one_hot(nearest, modes).to(h)  # (N, n)
    count = member.sum(0)
    means = torch.where(count[:, None] > 0, member.T @ h / count.clamp(min=1)[:, None], h.mean(0))
    off = h[:, None] - means  # (N, n, d)
    within = torch.einsum("Nn,Nni,Nnj->nij", member, off, off)
    pooled = within.sum(0) / N
    # Small clusters lean on the pooled covariance: d rows' worth of it.
    covariances = (within + d * pooled) / (count + d)[:, None, None]
    return (count + 1) / (N + modes), means, covariances
