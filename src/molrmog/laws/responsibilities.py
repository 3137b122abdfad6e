"""From a row to log_prob, score and denoiser: how every mode of a law explains it, and the way back up to R^D.

The symbols are those of `molrmog.laws.levels`; a row takes three steps.

    seen      h_k and rho2_k of all subspaces in one product, in the dtype of the row
    weighed   w_c, log N_c(x), responsibilities
    lifted    zeta_k up to R^D: a score, or a denoiser

No mode of subspace k can reach more than the

    ceiling_k = max_l [ log w_k pi_kl - 1/2 log det C_kl C_kl^T ] - 1/2 [ rho2_k - sum_j log p_kj + D log 2 pi ]

so after the modes of the most promising subspace are weighed, a subspace whose ceiling lies 40 nats below what they
reached (a share of 4e-18; 24 nats and 4e-11 for a score of float32) need not see the row. Three kinds of evidence:

    Dense    all modes weigh all rows at once: with derivatives, and on a GPU
    Blocked  the same in blocks whose numbers stay in the cache
    Sparse   where most subspaces are out of reach, as at low noise, rows are weighed and lifted by the few left
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molrmog.laws.base import values_hidden
from molrmog.laws.levels import WIDTH, Level, Shares, Way, squared_norm

_OUT_OF_REACH = {torch.float64: 40.0, torch.float32: 24.0}  # nats, where results are in that dtype
_ROUNDED = 1e-6  # what float32 may do to a ceiling, in nats per unit of a row's size, at worst
# What float32 does to the log of a responsibility, in nats per unit of size, at worst: between subspaces, and between
# modes of one; the largest share of a row that is shared at all, and the log of one that is none.
_BETWEEN_SUBSPACES, _BETWEEN_MODES, _SHARED, _FAINT_SHARE = 5e-7, 1e-7, 1 - 1e-5, -14.0
_CANCELS = 1e9  # size from which float64 takes the off-subspace energy from the residual
_MOSTLY = 0.35  # share of pairs of a row and a subspace from which all subspaces weigh all rows
_TILE = 128  # rows of one subspace that are weighed together
_CACHED = 1 << 19  # whitened latents at a time, in numbers: about what a processor's cache holds
_OUTER = 1 << 22
_STREAMED = 1 << 22  # numbers of rows at a time, where few subspaces weigh them
_SCRATCH = 1 << 22  # numbers of the largest scratch that is kept

Where = Tensor | slice  # indices (b,) of rows, or all


class _Scratch(threading.local):
    """Memory that is used again: what is fresh from the system costs more than what is written to it."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def of(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Memory with a shape and the dtype of `like`, until the next call of that name; on the CPU."""
        numbers, key = math.prod(shape), (name, like.dtype)
        if numbers > _SCRATCH:
            return like.new_empty(shape)
        if key not in self.kept or self.kept[key].numel() < numbers:
            with torch.inference_mode(False):
                self.kept[key] = torch.empty(numbers, dtype=like.dtype)
        return self.kept[key][:numbers].view(shape)


_scratch = _Scratch()


def is_plain(*tensors: Tensor) -> bool:
    """Whether rows are computed on a CPU, in the open and without derivatives, so that memory may be used again."""
    on_cpu = all(t.device.type == "cpu" for t in tensors)
    return on_cpu and not (torch.is_grad_enabled() or values_hidden(*tensors))


@dataclass(frozen=True)
class Seen:
    """Rows as all subspaces see them.

    Attributes:
        level: of the law, in the dtype of what follows.
        rows: x_t, with shape (B, D).
        x: x_t - s center, with shape (B, D).
        h: latents of all subspaces and s, with shape (B, K, d + 1).
        rho2: off-subspace energy, with shape (K, B).
        size: what rounding is relative to, with shape (K, B).
        plain: whether memory may be used again.
    """

    level: Level
    rows: Tensor
    x: Tensor
    h: Tensor
    rho2: Tensor
    size: Tensor
    plain: bool

    @classmethod
    def of(cls, level: Level, rows: Tensor, *, in_scratch: bool = False) -> Seen:
        """See rows x_t (B, D) in one product down, in the dtype of the level.

        Args:
            level: of the law.
            rows: with shape (B, D).
            in_scratch: h may be overwritten by the next rows that are seen.
        """
        _, K, _, d = level.shapes
        B, s, rows = len(rows), level.s, rows.to(level.dtype)
        plain = is_plain(rows, level.s, level.offset, level.base)
        if plain and in_scratch:
            x = torch.sub(rows, s[:, None] * level.center, out=_scratch.of("x", *rows.shape, like=rows))
            down = torch.mm(x, level.down, out=_scratch.of("down", B, level.down.shape[1], like=x))
            h = _scratch.of("h", B, K, d + 1, like=x)
            torch.sub(down[:, : K * d].unflatten(1, (K, d)), s[:, None, None] * level.shift, out=h[..., :d])
            h[..., d] = s[:, None]
        else:
            x = rows - s[:, None] * level.center
            down = x @ level.down
            h = (down[:, : K * d] - s[:, None] * level.shift.flatten()).unflatten(1, (K, d))
            h = torch.cat([h, s[:, None, None].expand(B, K, 1)], 2)
        energy = level.energy(x)
        size = level.size(energy)
        if cancels(level, size):
            away = (level.about(k, rows) for k in range(K))
            apart = (each - each @ A @ A.T for each, A in zip(away, level.basis, strict=True))
            rho2 = torch.stack([squared_norm(each) for each in apart])
        else:
            inside = h[..., :d].square().sum(2).T
            rho2 = energy - s * (2 * down[:, K * d : K * (d + 1)].T - s * level.offset2[:, None]) - inside
        if any(level.filled):
            rho2 = rho2 * level.open
        return cls(level, rows, x, h, rho2, size, plain)

    def __getitem__(self, at: Tensor) -> Seen:
        size, rho2 = self.size[:, at], self.rho2[:, at]
        return Seen(self.level.own(at), self.rows[at], self.x[at], self.h[at], rho2, size, self.plain)

    @functools.cached_property
    def whole_size(self) -> Tensor:
        """The size with what moving rows to the center costs, with shape (K, B)."""
        return self.size + self.level.far

    @functools.cached_property
    def shell(self) -> Tensor:
        """What the log-densities of all modes of a subspace have in common, times -2, with shape (K, B)."""
        return self.rho2 / self.level.v + self.level.const

    @functools.cached_property
    def ceiling(self) -> Tensor:
        """The most that any mode of a subspace can reach, with shape (K, B)."""
        return self.level.base.amax(1) - 0.5 * self.shell

    @functools.cached_property
    def few(self) -> bool:
        """Whether few of many subspaces can have a share in most rows."""
        if not self.plain or len(self.rho2) == 1 or not len(self.rows):
            return False
        # What is reached lies below a ceiling by half of |w|^2, which is d or so.
        reached = self.ceiling.amax(0) - 0.5 * self.h.shape[2]
        near = self.ceiling + _ROUNDED * self.size > reached - _OUT_OF_REACH[torch.float32]
        return float(near.sum()) < _MOSTLY * near.numel()


def cancels(level: Level, size: Tensor) -> bool:
    """Whether a difference of squares costs float64 a digit that is seen in a density."""
    if size.dtype != torch.float64 or not size.shape[-1] or all(level.filled) or values_hidden(size):
        return False
    return not float(size.detach().max()) <= _CANCELS


@dataclass(frozen=True)
class Part:
    """Rows of which the modes of one subspace have a share.

    Attributes:
        k: the subspace.
        at: which rows of the evidence, with shape (b,), or all.
        r: responsibilities of its modes, with shape (b, n).
        h: latents, with shape (b, d).
        rho2: off-subspace energy, with shape (b,).
        about: x - s b_k, or y_k, with shape (b, D).
    """

    k: int
    at: Where
    r: Tensor
    h: Tensor
    rho2: Tensor
    about: Tensor


class Evidence:
    """How the modes explain rows.

    Attributes:
        log_joint: log w + log pi + log N, with shape (K n, B).
    """

    log_joint: Tensor

    @property
    def shapes(self) -> tuple[int, int, int, int]:
        """D, K, n and d."""
        raise NotImplementedError

    @functools.cached_property
    def log_prob(self) -> Tensor:
        """Evidence log p_t(x), with shape (B,)."""
        most = self.log_joint.detach().amax(0)
        # exp(-80) changes no digit of the sum, but denormal numbers slow the exponential tenfold.
        return (self.log_joint - most).clamp(min=-80).exp().sum(0).log() + most

    @functools.cached_property
    def shares(self) -> Tensor:
        """r_c(x), with shape (K, n, B)."""
        _, K, n, _ = self.shapes
        r = self.log_joint.softmax(0).unflatten(0, (K, n))
        # Shares this small change no digit of any result, but as denormal numbers they slow every product tenfold.
        return nn.functional.threshold(r, 1e-20, 0.0)

    @property
    def responsibilities(self) -> Tensor:
        """r_c(x), with shape (B, K n)."""
        return self.shares.flatten(0, 1).T

    def score(self, into: Tensor | None = None) -> Tensor:
        """Gradient of log p_t, with shape (B, D), written where it is to go; once, where no derivatives are wanted."""
        raise NotImplementedError

    def denoise(self, into: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], with shape (B, D), written where it is to go; once, where no derivatives are wanted."""
        raise NotImplementedError


class SolvedEvidence(Evidence):
    """Evidence of which variances and draws are to be had: the latents of every mode given every row are known."""

    def divergence(self) -> Tensor:
        """Divergence of the score, with shape (B,)."""
        raise NotImplementedError

    def variance(self, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""
        raise NotImplementedError

    def draw(self, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 given rows, from the modes named, with shape (any, D); k, mode, row with shape (any,)."""
        raise NotImplementedError


class LevelEvidence(Evidence):
    """Evidence of rows that share the level of a law.

    Attributes:
        level: of the law, in the dtype of the evidence.
    """

    level: Level

    @property
    def shapes(self) -> tuple[int, int, int, int]:
        """D, K, n and d."""
        return self.level.shapes

    def undecided(self, size: Tensor) -> Tensor:
        """Which rows lie between subspaces or modes while float32 moves their shares by more than it may; (B,).

        Args:
            size: of the rows, with shape (K, B).
        """
        nats = min(1e-3, 1e-5 * self.shapes[0])  # in few dimensions modes that differ weigh more in the result
        share = self.shares.sum(1)
        near = share.clamp(min=1e-30).log() + _BETWEEN_SUBSPACES * size > _FAINT_SHARE
        size = size.where(near, 0.0).amax(0)
        between_subspaces = share.amax(0) < _SHARED
        between_modes = self.shares.amax((0, 1)) < _SHARED
        return (between_subspaces & (size * _BETWEEN_SUBSPACES > nats)) | (
            between_modes & (size * _BETWEEN_MODES > nats)
        )

    def parts(self) -> Iterator[Part]:
        """What each subspace sees of the rows that it has a share in, and of these rows the shares of its modes."""
        raise NotImplementedError


class Dense(LevelEvidence, SolvedEvidence):
    """Rows that all modes weigh, in one batched product.

    Attributes:
        seen: the rows.
        white: w of all modes, with shape (K, n d, B), which lifting makes use of; with derivatives, solved for E.
    """

    def __init__(self, seen: Seen) -> None:
        """Weigh rows that are seen."""
        level = self.level = seen.level
        _, _, n, d = level.shapes
        self.seen = seen
        white = level.whiten @ seen.h.permute(1, 2, 0)
        white = white if level.root is None else white * level.root
        self.white = level.solved(white)
        squares = white.square() if self.white is white else white * self.white
        maha = squares.unflatten(1, (n, d)).sum(2)
        self.log_joint = (level.base - 0.5 * (maha + seen.shell[:, None])).flatten(0, 1)

    def best(self, top: int) -> Dense:
        """The same evidence of the modes that explain each row best, so many of them."""
        least = self.log_joint.topk(min(top, len(self.log_joint)), 0).values[-1]
        best = copy.copy(self)
        best.log_joint = self.log_joint.masked_fill(self.log_joint < least, -torch.inf)
        return best

    def score(self, into: Tensor | None = None) -> Tensor:
        """Gradient of log p_t, with shape (B, D)."""
        return self._lifted(self.level.score_shares(), self.level.way_of_score, into)

    def denoise(self, into: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], with shape (B, D)."""
        return self._lifted(self.level.mean_shares(), self.level.way_of_mean, into)

    def divergence(self) -> Tensor:
        """Divergence of the score, with shape (B,)."""
        return self.level.divergence(self)

    def variance(self, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""
        return self.level.variance(self, onto)

    def draw(self, k: Tensor, mode: Tensor, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """Samples of x_0 given rows, from the modes named, with shape (any, D); k, mode, row with shape (any,)."""
        return self.level.draw(self, k, mode, row, generator)

    def _lifted(self, of: Shares, way: Way, into: Tensor | None) -> Tensor:
        """What is a sum of shares, with shape (B, D)."""
        level, r, x = self.level, self.shares, self.seen.x
        _, K, n, d = level.shapes
        R = r.sum(1)  # (K, B)
        white = (self.white.unflatten(1, (n, d)) * r[:, :, None]).flatten(1, 2)
        white = white if level.root is None else white * level.root
        zeta = level.s[:, None] * level.spread(white, way) + r.mT @ way.mean.mT  # (K, B, d)
        if any(of.pulled):
            filled = torch.tensor(of.pulled, device=zeta.device)[:, None, None]
            zeta = torch.where(filled, -(white.mT @ level.pull.mT), zeta)
        padding = zeta.new_zeros(len(x), way.up.shape[1] - K * (d + 1) - 1)
        inside = (of.inside[..., None] * zeta).transpose(0, 1).flatten(1)
        up = torch.cat([inside, (of.along * R).T, of.centers * R.sum(0)[:, None], padding], 1)
        return level.mixed(R, of.of_x) * x + up @ way.up.T


class Blocked(LevelEvidence):
    """Rows that all modes weigh, block by block, so that what the modes say of a block stays in the cache.

    What the subspaces say of the rows is lifted in one product. Where lifting is wanted, it is prepared while the rows
    are weighed.
    """

    def __init__(self, seen: Seen) -> None:
        """Weigh rows that are seen, when something is asked of them."""
        self.level, self.seen = seen.level, seen
        self._joint: Tensor | None = None

    @property
    def log_joint(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Log w + log pi + log N, with shape (K n, B)."""
        if self._joint is None:
            self._weigh()
        assert self._joint is not None
        return self._joint

    def _weigh(self, pulled: tuple[bool, ...] = (), way: Way | None = None) -> Tensor | None:
        """Weigh the rows, and give what is to be lifted: zeta_k, or minus the pull where `pulled`, (B, K, d)."""
        level, seen = self.level, self.seen
        _, K, n, d = level.shapes
        B, like = len(seen.rows), seen.h
        joint = self._joint = like.new_empty(K * n, B)
        zeta = None if way is None else _scratch.of("zeta", B, K, d, like=like)
        shares = like.new_empty(K, n, B)
        size = max(32, _CACHED // (K * n * d) // 32 * 32)
        h, shell = seen.h.permute(1, 2, 0), seen.shell
        for start in range(0, B, size):
            at = slice(start, min(B, start + size))
            own = level.own(at)
            shape = K, n * d, at.stop - start
            white = torch.bmm(own.whiten, h[..., at], out=_scratch.of("white", *shape, like=like))
            if own.root is not None:
                white.mul_(own.root)
            maha = _scratch.of("maha", K, n, shape[2], like=like)
            squares = _scratch.of("squares", *shape[1:], like=like)
            for k in range(K):
                torch.mul(white[k], white[k], out=squares)
                torch.sum(squares.unflatten(0, (n, d)), 1, out=maha[k])
            maha.add_(shell[:, None, at])
            joint[:, at] = torch.add(own.base, maha, alpha=-0.5).flatten(0, 1)
            if zeta is None or way is None:
                continue
            # Shares this small change no digit of any result, but as denormal numbers they slow products tenfold.
            r = nn.functional.threshold(joint[:, at].softmax(0), 1e-20, 0.0).unflatten(0, (K, n))
            shares[..., at] = r
            white.unflatten(1, (n, d)).mul_(r[:, :, None])
            if own.root is not None:
                white.mul_(own.root)
            latent = torch.bmm(white.mT, way.back.mT, out=_scratch.of("latent", K, shape[2], d, like=like))
            latent.mul_(own.s[:, None]).baddbmm_(r.mT, way.mean.mT)
            for k in range(K):
                if pulled[k]:
                    latent[k] = -(white[k].T @ own.pull[k].T)
            zeta[at] = latent.transpose(0, 1)
        if zeta is not None:
            self.__dict__["shares"] = shares
        return zeta

    def parts(self) -> Iterator[Part]:
        """What each subspace sees of the rows, and of these rows the shares of its modes."""
        d = self.level.shapes[3]
        for k, r in enumerate(self.shares):
            about = self.level.about(k, self.seen.rows)
            yield Part(k, slice(None), r.T, self.seen.h[:, k, :d], self.seen.rho2[k], about)

    def score(self, into: Tensor | None = None) -> Tensor:
        """Gradient of log p_t, with shape (B, D)."""
        return self._lifted(self.level.score_shares(), self.level.way_of_score, into)

    def denoise(self, into: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], with shape (B, D)."""
        return self._lifted(self.level.mean_shares(), self.level.way_of_mean, into)

    def _lifted(self, of: Shares, way: Way, into: Tensor | None) -> Tensor:
        """As that of :class:`Dense`."""
        level, x = self.level, self.seen.x
        _, K, _, d = level.shapes
        zeta = self._weigh(of.pulled, way)
        assert zeta is not None
        R = self.shares.sum(1)  # (K, B)
        up = _scratch.of("up", len(x), way.up.shape[1], like=x)
        torch.mul(zeta, of.inside.T[..., None], out=up[:, : K * d].unflatten(1, (K, d)))
        up[:, K * d : K * (d + 1)] = (of.along * R).T
        torch.mul(R.sum(0), of.centers, out=up[:, K * (d + 1)])
        up[:, K * (d + 1) + 1 :] = 0
        out = torch.empty_like(x) if into is None else into
        return torch.mm(up, way.up.T, out=out).addcmul_(x, level.mixed(R, of.of_x))


class _Pairs:
    """Pairs of a row and a subspace that weighs it, sorted by subspace, in tiles of rows of one subspace.

    All tiles are weighed at once. What tiles hold has shape (T, t, any), with padding; what pairs hold (P, any).

    Attributes:
        k: the subspace of each pair, in order, with shape (P,).
        row: its row, with shape (P,).
        segments: the subspaces that there are, and where their pairs are.
        tile: the subspace of each tile, with shape (T,).
        rows: the rows of each tile, with shape (T, t).
        h: latents of the pairs, with shape (P, d), once they are weighed.
        rho2: off-subspace energy of the pairs, with shape (P,).
        white: w of the modes, with shape (T, t, n, d).
    """

    h: Tensor
    rho2: Tensor
    white: Tensor

    def __init__(self, k: Tensor, row: Tensor, subspaces: int) -> None:
        """Lay out pairs.

        Args:
            k: the subspaces, in order, with shape (P,).
            row: the rows, with shape (P,).
            subspaces: K.
        """
        self.k, self.row = k, row
        count = k.bincount(minlength=subspaces)
        counts, device = count.tolist(), k.device
        self.size = min(_TILE, -(-max(counts) // WIDTH) * WIDTH) if len(k) else WIDTH
        tiles = (count + self.size - 1) // self.size
        begin, first = count.cumsum(0) - count, tiles.cumsum(0) - tiles
        self._slot = first[k] * self.size + torch.arange(len(k), device=device) - begin[k]
        self.tile = torch.arange(subspaces, device=device).repeat_interleave(tiles)
        self.rows = row.new_zeros(len(self.tile) * self.size).index_copy_(0, self._slot, row).view(-1, self.size)
        ends = list(itertools.accumulate(counts))
        self.segments = [(i, slice(end - n, end)) for i, (n, end) in enumerate(zip(counts, ends, strict=True)) if n]

    def of_tiles(self, value: Tensor) -> Tensor:
        """What tiles hold, of the pairs."""
        return value.flatten(0, 1).index_select(0, self._slot)

    def in_tiles(self, value: Tensor) -> Tensor:
        """What pairs hold, in tiles; zero where padded."""
        whole = value.new_zeros(self.rows.numel(), *value.shape[1:])
        return whole.index_copy_(0, self._slot, value).unflatten(0, self.rows.shape)

    def own(self, value: Tensor) -> Tensor:
        """Numbers (K, any, L) of subspaces at the noise levels of rows, with shape (T, t or 1, any)."""
        if value.shape[-1] == 1:
            return value[self.tile].movedim(-1, 1)
        return value[self.tile[:, None], ..., self.rows]

    def level(self, level: Level, at: slice) -> Level:
        """The level of the rows of some pairs."""
        return level if len(level.s) == 1 else level.own(self.row[at])


class Sparse(LevelEvidence):
    """Rows that few subspaces weigh: the most promising one, and those that are in its reach."""

    def __init__(
        self, seen: Seen, level: Level | None = None, lift: Level | None = None, *, all_of: bool = False
    ) -> None:
        """Weigh rows that are seen.

        Args:
            seen: the rows.
            level: the same in the dtype to weigh them in; as they were seen where not given.
            lift: the same in the dtype to keep and lift them in; as they were seen where not given.
            all_of: whether small responsibilities are wanted for themselves.
        """
        self.level = level = level or seen.level
        self._lift, self._seen = lift or seen.level, seen
        _, K, n, _ = level.shapes
        B = len(seen.rows)
        ceiling = seen.ceiling
        best = ceiling.argmax(0)
        self._joint = level.offset.new_full((K * B, n), -torch.inf)
        order = best.argsort(stable=True)
        self._first = _Pairs(best[order], order, K)
        reached = torch.empty_like(ceiling[0])
        reached[order] = self._weigh(self._first).amax(1).to(ceiling)
        reach = _OUT_OF_REACH[torch.float64 if all_of else self._lift.dtype]
        near = ceiling + _ROUNDED * seen.size > reached - reach
        near[best, torch.arange(B, device=best.device)] = False
        k, row = near.nonzero().unbind(1)
        self._further = _Pairs(k, row, K)
        self._weigh(self._further)

    @functools.cached_property
    def log_joint(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Log w + log pi + log N, with shape (K n, B)."""
        return self._joint.unflatten(0, (self.level.shapes[1], -1)).transpose(1, 2).flatten(0, 1)

    def _weigh(self, pairs: _Pairs) -> Tensor:
        """Weigh rows by the modes of their subspaces: log w + log pi + log N of the pairs, with shape (P, n)."""
        level, seen = self.level, self._seen
        _, _, n, d = level.shapes
        if level.dtype == seen.level.dtype:
            h = seen.h[pairs.rows, pairs.tile[:, None]]  # (T, t, d + 1)
            pairs.rho2 = seen.rho2[pairs.k, pairs.row]
        else:
            h = self._seen_again(pairs)
        pairs.h = pairs.of_tiles(h[..., :d])
        white = h @ level.whiten[pairs.tile].mT
        if level.root is not None:
            white = white.mul_(pairs.own(level.root))
        pairs.white = white.unflatten(2, (n, d))  # (T, t, n, d)
        shell = pairs.in_tiles(pairs.rho2) / pairs.own(level.v) + pairs.own(level.const)
        maha = pairs.white.square().sum(3)
        joint = pairs.of_tiles(pairs.own(level.base) - 0.5 * (maha + shell[..., None]))
        self._joint[pairs.k * len(seen.rows) + pairs.row] = joint
        return joint

    def _seen_again(self, pairs: _Pairs) -> Tensor:
        """Latents and s in a finer dtype, in tiles; the off-subspace energy, too."""
        level, seen = self.level, self._seen
        d = level.shapes[3]
        h = level.offset.new_empty(len(pairs.k), d + 1)
        pairs.rho2 = h.new_empty(len(h))
        for k, at in pairs.segments:
            own = pairs.level(level, at)
            fine = _scratch.of("fine", at.stop - at.start, seen.rows.shape[1], like=level.offset)
            fine = own.about_(k, fine.copy_(seen.rows[pairs.row[at]]))
            latent = fine @ level.basis[k]
            h[at, :d], h[at, d] = latent, own.s
            rho2 = squared_norm(fine)
            if level.filled[k]:
                rho2 = torch.zeros_like(rho2)
            elif cancels(own, rho2 / own.v[k]):
                rho2 = squared_norm(fine - latent @ level.basis[k].T)
            else:
                rho2 = rho2 - squared_norm(latent)
            pairs.rho2[at] = rho2
        return pairs.in_tiles(h)

    def score(self, into: Tensor | None = None) -> Tensor:
        """Gradient of log p_t, with shape (B, D)."""
        return self._lifted(self._lift.score_shares(), self.level.way_of_score, self._lift.way_of_score, into)

    def denoise(self, into: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], with shape (B, D)."""
        return self._lifted(self._lift.mean_shares(), self.level.way_of_mean, self._lift.way_of_mean, into)

    def _lifted(self, of: Shares, way: Way, up: Way, into: Tensor | None) -> Tensor:
        """As that of :class:`Dense`, with ways in the dtypes to weigh and to lift in."""
        first, further = self._first, self._further
        lifted = self._lifted_pairs(first, of, way, up, "sorted")
        place = torch.empty_like(first.row)
        place[first.row] = torch.arange(len(place), device=place.device)
        if len(further.row):
            lifted.index_add_(0, place[further.row], self._lifted_pairs(further, of, way, up, "further"))
        out = torch.empty_like(lifted) if into is None or into.dtype != lifted.dtype else into
        return torch.index_select(lifted, 0, place, out=out)

    def _lifted_pairs(self, pairs: _Pairs, of: Shares, way: Way, up: Way, name: str) -> Tensor:
        """The share of every pair in the result of its row, with shape (P, D)."""
        level, lift, seen = self.level, self._lift, self._seen
        r = self.shares[pairs.tile[:, None], :, pairs.rows]  # (T, t, n)
        white = pairs.white * r[..., None]
        if level.root is not None:
            white = white * pairs.own(level.root).unflatten(2, white.shape[2:])
        white = white.flatten(2)
        z = pairs.own(level.s.expand(len(way.mean), -1))[..., None] * (white @ way.back[pairs.tile].mT)
        z = z + r @ way.mean[pairs.tile].mT
        if any(of.pulled):
            pulled = torch.tensor(of.pulled, device=z.device)[pairs.tile, None, None]
            z = torch.where(pulled, -(white @ level.pull[pairs.tile].mT), z)
        R = r.sum(2)
        z, R = z.to(lift.dtype), R.to(lift.dtype)
        columns = [pairs.own(of.inside)[..., None] * z, (pairs.own(of.along) * R)[..., None]]
        columns = [*columns, R[..., None]] if of.centers else columns
        lifts, R = pairs.of_tiles(torch.cat(columns, 2)), pairs.of_tiles(R)
        fine = lift.dtype != seen.level.dtype
        rows = seen.rows if fine else seen.x
        x = torch.index_select(rows, 0, pairs.row, out=_scratch.of(name, len(pairs.row), rows.shape[1], like=rows))
        if fine:
            x = x.to(lift.dtype).addcmul_(pairs.level(lift, slice(None)).s[:, None], lift.center, value=-1)
        for k, at in pairs.segments:
            own = of.of_x if len(lift.s) == 1 else of.of_x[:, pairs.row[at]]
            lift.weigh_(k, x[at], R[at], own).addmm_(lifts[at], up.of_each[k, : lifts.shape[1]])
        return x

    def parts(self) -> Iterator[Part]:
        """What each subspace sees of the rows that it has a share in, and of these rows the shares of its modes."""
        for pairs in (self._first, self._further):
            for k, at in pairs.segments:
                row = pairs.row[at]
                r, h, rho2 = self.shares[k, :, row].T, pairs.h[at], pairs.rho2[at]
                mine = ~(r.sum(1) <= 1e-2 * torch.finfo(self._lift.dtype).eps)  # NaN, too
                if not bool(mine.any()):
                    continue
                if not bool(mine.all()):
                    row, r, h, rho2 = row[mine], r[mine], h[mine], rho2[mine]
                own = self._lift if len(self._lift.s) == 1 else self._lift.own(row)
                yield Part(k, row, r, h, rho2, own.about_(k, self._seen.rows[row].to(self._lift.dtype)))


def looks(level: Level, rows: Tensor) -> Iterator[tuple[Where, Seen]]:
    """Rows as they are seen, in pieces that stay in a processor's cache while all modes weigh them.

    Where few subspaces weigh them, the pieces are larger: there are many short products then. What a piece saw is
    overwritten by the next.

    Args:
        level: in the dtype to see them in.
        rows: with shape (B, D).

    Yields:
        Which of the rows, and how they are seen.
    """
    D, K, _, d = level.shapes
    size = max(64, _OUTER // (D + K * d) // 64 * 64)
    if len(rows) <= size or not is_plain(rows, level.s, level.offset, level.base):
        yield slice(None), Seen.of(level, rows, in_scratch=True)
        return
    start = 0
    few = False
    while start < len(rows):
        at = slice(start, min(len(rows), start + (max(size, _STREAMED // D) if few else size)))
        seen = Seen.of(level.own(at), rows[at], in_scratch=True)
        few = seen.few
        yield at, seen
        start = at.stop


def spread_of_scores(e: Dense, r: Tensor, norm2: Tensor, trace: Tensor) -> Tensor:
    """sum_c r_c (|score_c|^2 - tr Cov_c^-1) - |score|^2, the divergence of the score, with shape (B,).

    Far from the law the squares are large, and where one mode has a row whole they are the same.

    Args:
        e: the evidence, in float64.
        r: responsibilities, with shape (K, B, n).
        norm2: squared norms of the modes' scores, with shape (K, B, n).
        trace: of the modes' precisions, with shape (K, B or 1, n).
    """
    between = (r * norm2).sum((0, 2)) - e.score().square().sum(1)
    certain = r.amax((0, 2)) == 1
    return torch.where(certain, 0.0, between) - (r * trace).sum((0, 2))
