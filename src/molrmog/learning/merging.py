"""Subspaces and modes put together from small clusters, each with a shape of its own.

k-means cuts the rows into more clusters than there are modes. Then, as long as the penalised likelihood of rows and
clusters together rises,

    two subspaces become one, with the modes of both        two modes of a subspace become one

whichever gains more. It takes no more than the moments of the clusters. Let psi be the noise of a subspace and
lambda_i, v_i the eigenpairs of the scatter of its rows, whitened by psi. Then v_1 .. v_d span it, and it is worth

    max_d  - 1/2 sum_{i > d} lambda_i - 1/2 sum_l N_l ( log det S_l + tr S_l^-1 S'_l ) + sum_l N_l log N_l / N - c p(d)

with S'_l the covariance of mode l in it, S_l the same with a row of noise added, p its degrees of freedom, and
c = 1/2 log N for BIC, 1 for AIC. Two subspaces that become one have the mean of their noise, by their rows.

References:
    Fraley, "Algorithms for model-based Gaussian hierarchical clustering", 1998; Tipping & Bishop, "Probabilistic
    principal component analysis", 1999 (the profile over d); Lawley & Maxwell, "Factor analysis as a statistical
    method", 1971 (the noise).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WIDEST, _LEADING = 256, 80  # columns up to which scatters are those of all, and principal coordinates beyond
_DIMS = 32  # of a subspace, at most
_NUMBERS = 2**24  # that are worked on at once
_ROUNDS = 3  # in which the noise of a cluster is found
_PER_DIM = 3  # rows of a cluster for each of its dimensions, at least, while its noise is not known
_NOISE_ROWS = 2.0  # rows that the common noise counts as in that of a cluster
_NEAREST = 8  # subspaces that one is tried with
_ROW = 1.0  # rows of noise that are added to a mode


@dataclass(frozen=True, eq=False)
class Merged:
    """Clusters of rows, put together.

    Attributes:
        worth: penalised log-likelihood of rows and clusters together, in nats.
        latent_dims: d_k.
        modes: n_k.
        subspace: of each row, with shape (N,).
        mode: of each row in its subspace, with shape (N,).
        noise: standard deviation of the noise of each subspace and column, with shape (K, D).
    """

    worth: float
    latent_dims: tuple[int, ...]
    modes: tuple[int, ...]
    subspace: Tensor
    mode: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class _Mode:
    """Moments of the rows of a mode: their weight N_l, mean (D,), scatter about it (p, p), and its diagonal (D,)."""

    rows: float
    mean: Tensor
    scatter: Tensor
    square: Tensor
    clusters: tuple[int, ...]

    def and_(self, other: _Mode, across: Tensor | None) -> _Mode:
        """The mode of the rows of both."""
        rows = self.rows + other.rows
        apart = (other.mean - self.mean) * math.sqrt(self.rows * other.rows / rows)
        inside = _inside(apart, across)
        return _Mode(
            rows,
            self.mean + (other.rows / rows) * (other.mean - self.mean),
            self.scatter + other.scatter + torch.outer(inside, inside),
            self.square + other.square + apart.square(),
            self.clusters + other.clusters,
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """A subspace in the making; where there is one number per dimension, it is of the leading 0 to m.

    Attributes:
        modes: of it.
        noise: variance of each column, with shape (D,).
        base: what each dimension is worth without the modes, with shape (m + 1,).
        terms: what each mode adds to it, with shape (n, m + 1).
        free: degrees of freedom, with shape (m + 1,).
        into: from principal coordinates to whitened ones of the leading dimensions, with shape (p, m).
        spanned: variance of each column along each of them, times the rows, with shape (m, D).
        total: modes in one.
    """

    modes: tuple[_Mode, ...]
    noise: Tensor
    base: Tensor
    terms: Tensor
    free: Tensor
    into: Tensor
    spanned: Tensor
    total: _Mode

    def worths(self, price: float) -> Tensor:
        """What each dimension is worth in the end."""
        return self.base + self.terms.sum(0) - price * self.free

    def worth(self, price: float) -> float:
        """What the best dimension is worth."""
        return float(self.worths(price).max())

    def dim(self, price: float) -> int:
        """The best dimension."""
        return int(self.worths(price).argmax())


_Asked = tuple[tuple[_Mode, ...], _Mode, Tensor]  # modes, all of them in one, and variances of the noise


class Merging:
    """Clusters of rows of which subspaces and modes are made.

    Args:
        x: rows, with shape (N, D), in float64.
        clusters: of each row, with shape (N,), from 0.
        noise: of a subspace: "isotropic", "diagonal" or "shared".
        unit: in which the noise of all columns is about the same, with shape (D,).
        least: least standard deviation of the noise, with shape (D,).
        weights: of the rows, with shape (N,).
        subspaces: how many there are to be; None for as many as gain most.
    """

    def __init__(
        self,
        x: Tensor,
        clusters: Tensor,
        noise: str,
        unit: Tensor,
        least: Tensor,
        weights: Tensor | None = None,
        subspaces: int | None = None,
    ) -> None:
        u = x / unit
        self.unit, self.clusters, self.least2 = unit, clusters, (least / unit).square()
        self.kind = noise
        self.subspaces = subspaces
        self.has_common = False
        self.merged: dict[str, Merged] | None = None
        w = u.new_ones(len(u)) if weights is None else weights.to(u)
        self.rows, self.dim = float(w.sum()), u.shape[1]
        u = u - (w @ u) / self.rows
        self.across: Tensor | None = None
        if self.dim > _WIDEST:
            self.across = torch.linalg.eigh((w[:, None] * u).T @ u)[1][:, -_LEADING:].contiguous()
        modes: list[_Mode] = []
        for k in clusters.unique().tolist():
            at = clusters == k
            own, count = u[at], float(w[at].sum())
            if count <= 0:
                continue
            mean = (w[at] @ own) / count
            own = (own - mean) * w[at].sqrt()[:, None]
            inside = _inside(own, self.across)
            modes.append(_Mode(count, mean, inside.T @ inside, own.square().sum(0), (k,)))
        self.prices = {"aic": 1.0, "bic": max(1.0, 0.5 * math.log(self.rows))}
        self.first = modes
        self.parts = self._first(modes)

    def merge(self) -> dict[str, Merged]:
        """Put together what gains by it: the best by "bic", and the best by "aic" of those on the way there."""
        if self.merged is None:
            if self.kind == "shared":
                self._find_common()
            self.merged = {name: self._merged(parts, self.prices[name]) for name, parts in self._path().items()}
        return self.merged

    def _find_common(self) -> None:
        """The noise that subspaces share: that of subspaces with noise of their own, on average."""
        common = self._mean_noise(self._path()["bic"])
        self.has_common = True
        self.parts = self._judged([((mode,), mode, common) for mode in self.first])

    def _path(self) -> dict[str, list[_Part]]:
        """What BIC puts together, step by step, to its end, and to where AIC is best."""
        parts, price = list(self.parts), self.prices["bic"]
        at, highest = parts, -math.inf
        unions: dict[tuple[_Part, _Part], _Part] = {}
        joined: dict[_Part, list[_Part]] = {}
        fewest = self.subspaces or 1
        while len(parts) > fewest or max(len(part.modes) for part in parts) > 1:
            too_many = self.subspaces is not None and len(parts) > self.subspaces
            pairs = self._near(parts) if len(parts) > fewest else []
            new = [pair for pair in pairs if pair not in unions]
            unions |= zip(new, self._judged([self._union(*pair) for pair in new]), strict=True)
            joined |= {part: self._joined(part) for part in parts if part not in joined}
            total = sum(part.worth(self.prices["aic"]) for part in parts)
            at, highest = (parts, total) if total >= highest and not too_many else (at, highest)
            worth = {part: part.worth(price) for part in parts}
            moves = [
                (unions[pair].worth(price) - worth[pair[0]] - worth[pair[1]], pair, unions[pair]) for pair in pairs
            ]
            joins = [(other.worth(price) - worth[part], (part,), other) for part in parts for other in joined[part]]
            gain, gone, found = max([*moves, *joins], key=lambda move: move[0])
            if gain <= 0 and not too_many:
                break
            if gain <= 0:
                _, gone, found = max(moves, key=lambda move: move[0])
            (found,) = self._judged([(found.modes, found.total, self._noise_of(found, found.dim(price)))])
            parts = [*(part for part in parts if part not in gone), found]
        last = sum(part.worth(self.prices["aic"]) for part in parts)
        return {"bic": parts, "aic": parts if last >= highest else at}

    def _first(self, modes: Sequence[_Mode]) -> list[_Part]:
        """Every cluster a subspace of its own."""
        self.common = torch.ones(self.dim, dtype=torch.float64).maximum(self.least2)
        parts = self._judged([((mode,), mode, self.common) for mode in modes])
        for _ in range(_ROUNDS):
            parts = self._judged(
                [(part.modes, part.total, self._noise_of(part, self._profiled(part))) for part in parts]
            )
            self.common = self._mean_noise(parts)
        return parts

    def _mean_noise(self, parts: Sequence[_Part]) -> Tensor:
        return torch.stack([part.noise * part.total.rows for part in parts]).sum(0) / self.rows

    def _profiled(self, part: _Part) -> int:
        """The dimension where the level of the noise is not known, by BIC."""
        N, D = part.total.rows, self.dim
        most = max(0, min(len(part.spanned), int(N / _PER_DIM), D - 1))
        along = (part.spanned[:most] / part.noise).sum(1)  # N lambda_i
        d = torch.arange(most + 1, dtype=torch.float64)
        left = (part.total.square / part.noise).sum() - torch.cat([along.new_zeros(1), along.cumsum(0)])
        level = (left / (N * (D - d))).clamp(min=1e-12)
        logs = torch.cat([along.new_zeros(1), (along / N).clamp(min=1e-12).log().cumsum(0)])
        fit = -0.5 * N * (logs + (D - d) * level.log())
        return int((fit - self.prices["bic"] * part.free[: most + 1]).argmax())

    def _noise_of(self, part: _Part, d: int) -> Tensor:
        """Variance of the noise of each column: a step to psi = diag(T / N - Lambda Lambda^T), its likeliest value."""
        if self.has_common:
            return part.noise
        N = part.total.rows
        white = part.spanned[:d] / part.noise
        inside = (white / white.sum(1, keepdim=True).clamp(min=1e-300)).sum(0)  # of the noise of a column
        left = (part.total.square - part.spanned[:d].sum(0)).clamp(min=0)
        freedom = N * (1 - inside).clamp(min=0.1)
        if self.kind == "isotropic":
            left, freedom = left.mean().expand_as(left), freedom.mean().expand_as(left)
        return ((left + _NOISE_ROWS * self.common) / (freedom + _NOISE_ROWS)).maximum(self.least2)

    def _union(self, a: _Part, b: _Part) -> _Asked:
        total = a.total.and_(b.total, self.across)
        return a.modes + b.modes, total, (a.total.rows * a.noise + b.total.rows * b.noise) / total.rows

    def _near(self, parts: Sequence[_Part]) -> list[tuple[_Part, _Part]]:
        """Pairs of subspaces of which one has the mean of the other near itself."""
        count = len(parts)
        mean = torch.stack([part.total.mean for part in parts])
        off = torch.empty(count, count, dtype=torch.float64)
        for i, part in enumerate(parts):
            apart = mean - mean[i]
            along = _inside(apart, self.across) @ part.into[:, : part.dim(self.prices["bic"])]
            off[i] = (apart.square() / part.noise).sum(1) - along.square().sum(1)
        nearest = off.fill_diagonal_(torch.inf).argsort(1)[:, :_NEAREST]
        pairs = {(max(i, j), min(i, j)) for i, row in enumerate(nearest.tolist()) for j in row if i != j}
        return [(parts[i], parts[j]) for i, j in sorted(pairs)]

    def _joined(self, part: _Part) -> list[_Part]:
        """Two modes in one, in every way; the subspace remains, and so do the other modes."""
        n = len(part.modes)
        pairs = [(i, j) for i in range(n) for j in range(i)]
        modes = [part.modes[i].and_(part.modes[j], self.across) for i, j in pairs]
        if not modes:
            return []
        terms = self._terms(modes, part.into.expand(len(modes), -1, -1))
        free = part.free - _mode_freedom(len(part.free))
        found = []
        for (i, j), mode, term in zip(pairs, modes, terms, strict=True):
            rest = [k for k in range(n) if k not in (i, j)]
            own = tuple(part.modes[k] for k in rest)
            found.append(
                dataclasses.replace(
                    part, modes=(*own, mode), terms=torch.cat([part.terms[rest], term[None]]), free=free
                )
            )
        return found

    def _judged(self, asked: Sequence[_Asked]) -> list[_Part]:
        """Subspaces of these modes and this noise, as many at once as memory allows."""
        p = self.dim if self.across is None else self.across.shape[1]
        step = max(1, _NUMBERS // (p * p + _DIMS * self.dim))
        return [part for i in range(0, len(asked), step) for part in self._at_once(asked[i : i + step])]

    def _at_once(self, asked: Sequence[_Asked]) -> list[_Part]:
        """Subspaces of the eigenvectors of their whitened scatter; see the head of this file."""
        of = torch.tensor([i for i, (modes, _, _) in enumerate(asked) for _ in modes])
        totals = [total for _, total, _ in asked]
        rows = torch.tensor([total.rows for total in totals], dtype=torch.float64)
        noise = torch.stack([variance for _, _, variance in asked])  # (C, D)
        square = torch.stack([total.square for total in totals])
        T = torch.stack([total.scatter for total in totals])  # (C, p, p)
        if self.across is None:
            L = noise.sqrt().diag_embed()  # of the noise in principal coordinates, L L^T
            beyond = T.new_zeros(len(T))
        else:
            L = torch.linalg.cholesky(self.across.T @ (noise[..., None] * self.across))
            outside = square - ((self.across @ T) * self.across).sum(2)
            beyond = (outside.clamp(min=0) / noise).sum(1)
        T = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, T, upper=False).mT, upper=False)
        values, vectors = torch.linalg.eigh(0.5 * (T + T.mT))
        m = min(_DIMS, T.shape[1])
        values, V = values.flip(1)[:, :m].clamp(min=0), vectors.flip(2)[:, :, :m]
        left = T.diagonal(dim1=1, dim2=2).sum(1)[:, None] - _summed(values) + beyond[:, None]  # (C, m + 1)
        base = -0.5 * (left + rows[:, None] * noise.log().sum(1, keepdim=True))

        into = torch.linalg.solve_triangular(L.mT, V, upper=True)
        out = (L @ V if self.across is None else self.across @ (L @ V)).mT  # (C, m, D)
        spanned = values[..., None] * out.square()
        terms = self._terms([mode for modes, _, _ in asked for mode in modes], into[of])
        counts = [len(modes) for modes, _, _ in asked]
        d, D = torch.arange(m + 1, dtype=torch.float64), self.dim
        own_noise = 1 if self.kind == "isotropic" else 0 if self.has_common else D
        free = d * (D - d) + D - d + own_noise
        return [
            _Part(
                modes, noise[i], base[i], term, free + len(modes) * _mode_freedom(m + 1), into[i], spanned[i], totals[i]
            )
            for i, ((modes, _, _), term) in enumerate(zip(asked, terms.split(counts), strict=True))
        ]

    def _terms(self, modes: Sequence[_Mode], into: Tensor) -> Tensor:
        """What modes add to the likelihood in the leading dimensions of their subspaces, with shape (Q, m + 1)."""
        S = into.mT @ torch.stack([mode.scatter for mode in modes]) @ into  # (Q, m, m)
        N = torch.tensor([mode.rows for mode in modes], dtype=torch.float64)[:, None]
        one = torch.eye(S.shape[1], dtype=torch.float64)
        # Leading blocks of a Cholesky factor are factors of the leading blocks.
        root = torch.linalg.cholesky((0.5 * (S + S.mT) + _ROW * one) / (N + _ROW)[..., None])
        inverse = torch.linalg.solve_triangular(root, one, upper=False)
        d = torch.arange(len(one) + 1, dtype=torch.float64)
        log_det = _summed(2 * root.diagonal(dim1=1, dim2=2).log())
        trace = (N + _ROW) * d - _ROW * _summed(inverse.square().sum(2))
        return -0.5 * (N * log_det + trace) + N * (N / self.rows).log()

    def _merged(self, parts: Sequence[_Part], price: float) -> Merged:
        parts = sorted(parts, key=lambda part: -part.total.rows)
        count = int(self.clusters.max()) + 1
        subspace, mode = (torch.zeros(count, dtype=torch.long) for _ in range(2))
        for k, part in enumerate(parts):
            for i, each in enumerate(part.modes):
                subspace[list(each.clusters)], mode[list(each.clusters)] = k, i
        worth = sum(part.worth(price) for part in parts) - self.rows * float(self.unit.log().sum())
        return Merged(
            worth - (price * self.dim if self.has_common else 0.0),
            tuple(max(1, part.dim(price)) for part in parts),
            tuple(len(part.modes) for part in parts),
            subspace[self.clusters],
            mode[self.clusters],
            torch.stack([part.noise for part in parts]).sqrt() * self.unit,
        )


def _inside(x: Tensor, across: Tensor | None) -> Tensor:
    return x if across is None else x @ across


def _summed(x: Tensor) -> Tensor:
    """Sums of none, one, two ... of the last dimension."""
    return torch.cat([x.new_zeros(*x.shape[:-1], 1), x.cumsum(-1)], -1)


def _mode_freedom(count: int) -> Tensor:
    """Degrees of freedom of a mode in none, one, two ... dimensions, with its weight."""
    d = torch.arange(count, dtype=torch.float64)
    return d + d * (d + 1) / 2 + 1
