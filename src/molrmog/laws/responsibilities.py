"""From a row to log_prob, score and denoiser: how every mode of a law explains it, and the way back up to R^D.

The symbols are those of `molrmog.laws.levels`; a row takes three steps.

    seen      h_k and rho2_k of all subspaces in one product, in the dtype of the row
    weighed   w_c, log N_c(x), responsibilities
    lifted    zeta_k up to R^D: a score, or a denoiser

No mode of subspace k can reach more than the

    ceiling_k = max_l [ log w_k pi_kl - 1/2 log det C_kl C_kl^T ] - 1/2 [ rho2_k - sum_j log p_kj + D log 2 pi ]

so after the modes of the most promising subspace are weighed, a subspace whose ceiling lies 40 nats below what they
reached (a share of 4e-18) need not see the row. Where most subspaces are out of reach, as at low noise, rows are weighed
and lifted by the few that are left (`Sparse`), which are seen again for that: in float64 where rounding would show, as
it costs little then. Elsewhere all modes weigh all rows (`Dense`), block by block, so that their numbers stay in the
cache; so they do where derivatives are wanted, and on a GPU.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molrmog.laws.base import values_hidden
from molrmog.laws.levels import Level

_OUT_OF_REACH = 40.0  # nats
_ROUNDED = 1e-6  # what float32 may do to a ceiling, in nats per unit of a row's size, at worst
# What float32 does to the log of a responsibility, in nats per unit of size, at worst: between subspaces, and between
# modes of one; the largest share of a row that is shared at all, and the log of one that is none.
_BETWEEN_SUBSPACES, _BETWEEN_MODES, _SHARED, _FAINT_SHARE = 5e-7, 1e-7, 1 - 1e-5, -14.0
_CANCELS = 1e9  # size from which float64 takes the off-subspace energy from the residual
_MOSTLY = 0.35  # share of pairs of a row and a subspace from which all subspaces weigh all rows
_CACHED = 1 << 20  # whitened latents at a time, in numbers: about what a processor's cache holds

Where = Tensor | slice  # indices (b,) of rows, or all


@dataclass(frozen=True)
class Seen:
    """Rows as all subspaces see them.

    Attributes:
        level: of the law, in the dtype of what follows.
        rows: x_t, with shape (B, D).
        x: x_t - s center, with shape (B, D).
        h: latents of all subspaces side by side, with shape (B, K d).
        rho2: off-subspace energy, with shape (K, B).
        size: what rounding is relative to, with shape (K, B).
    """

    level: Level
    rows: Tensor
    x: Tensor
    h: Tensor
    rho2: Tensor
    size: Tensor

    @classmethod
    def of(cls, level: Level, rows: Tensor) -> Seen:
        """See rows x_t (B, D) in one product down, in the dtype of the level."""
        _, K, _, d = level.shapes
        x = rows.to(level.center) - level.s[:, None] * level.center
        norm2 = squared_norm(x)
        down = x @ level.down
        s = level.s[:, None]
        h = down[:, : K * d] - s * level.shift.flatten()
        energy = level.energy(x, norm2)
        size = level.size(energy)
        if cls._cancels(level, size):
            away = (level.about(k, rows.to(x)) for k in range(K))
            apart = (each - each @ A @ A.T for each, A in zip(away, level.basis, strict=True))
            rho2 = torch.stack([squared_norm(each) for each in apart])
        else:
            s = level.s
            inside = h.unflatten(1, (K, d)).square().sum(2).T
            rho2 = energy - s * (2 * down[:, K * d : K * (d + 1)].T - s * level.offset2[:, None]) - inside
        if any(level.filled):
            rho2 = rho2 * level.open
        return cls(level, rows, x, h, rho2, size)

    @staticmethod
    def _cancels(level: Level, size: Tensor) -> bool:
        """Whether a difference of squares costs float64 a digit that is seen in a density."""
        if size.dtype != torch.float64 or not size.shape[1] or all(level.filled) or values_hidden(size):
            return False
        return not float(size.detach().max()) <= _CANCELS

    def __getitem__(self, at: Where) -> Seen:
        own = self.level.own(at)
        return Seen(own, self.rows[at], self.x[at], self.h[at], self.rho2[:, at], self.size[:, at])

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
        if len(self.rho2) == 1 or not len(self.x):
            return False
        near = self.ceiling + _ROUNDED * self.size > self.ceiling.amax(0) - _OUT_OF_REACH
        return float(near.sum()) < _MOSTLY * near.numel()


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
        level: of the law, in the dtype of the evidence.
        log_joint: log w + log pi + log N, with shape (K n, B).
    """

    level: Level
    log_joint: Tensor

    @functools.cached_property
    def log_prob(self) -> Tensor:
        """Evidence log p_t(x), with shape (B,)."""
        most = self.log_joint.detach().amax(0)
        # exp(-80) changes no digit of the sum, but denormal numbers slow the exponential tenfold.
        return (self.log_joint - most).clamp(min=-80).exp().sum(0).log() + most

    @functools.cached_property
    def shares(self) -> Tensor:
        """r_c(x), with shape (K, n, B)."""
        _, K, n, _ = self.level.shapes
        r = self.log_joint.softmax(0).unflatten(0, (K, n))
        # Shares this small change no digit of any result, but as denormal numbers they slow every product tenfold.
        return nn.functional.threshold(r, 1e-20, 0.0)

    @property
    def responsibilities(self) -> Tensor:
        """r_c(x), with shape (B, K n)."""
        return self.shares.flatten(0, 1).T

    def undecided(self, size: Tensor) -> Tensor:
        """Which rows lie between subspaces or modes while float32 moves their shares by more than it may; (B,).

        Args:
            size: of the rows, with shape (K, B).
        """
        D = self.level.shapes[0]
        nats = min(1e-3, 1e-5 * D)  # in few dimensions modes that differ weigh more in the result
        share = self.shares.sum(1).clamp(min=1e-30).log()
        moved = _BETWEEN_SUBSPACES * size
        size = size.where(share + moved > _FAINT_SHARE, 0.0).amax(0)
        whole = self.shares.sum(1).amax(0), self.shares.flatten(0, 1).amax(0)
        return ((whole[0] < _SHARED) & (size * _BETWEEN_SUBSPACES > nats)) | (
            (whole[1] < _SHARED) & (size * _BETWEEN_MODES > nats)
        )

    def parts(self) -> Iterator[Part]:
        """What each subspace sees of the rows that it has a share in, and of these rows the shares of its modes."""
        raise NotImplementedError

    def score(self) -> Tensor:
        """Gradient of log p_t, with shape (B, D); once, where no derivatives are wanted."""
        raise NotImplementedError

    def denoise(self) -> Tensor:
        """E[x_0 | x_t], with shape (B, D); once, where no derivatives are wanted."""
        raise NotImplementedError


class Dense(Evidence):
    """Rows that all modes weigh, in one batched product.

    Attributes:
        seen: the rows.
        white: w of all modes, with shape (K, n d, B), which lifting makes use of; with derivatives, solved for E.
    """

    def __init__(self, seen: Seen) -> None:
        level = self.level = seen.level
        _, K, n, d = level.shapes
        self.seen = seen
        h = self.latents
        ones = (level.s if len(level.s) > 1 else level.s.expand(h.shape[2])).expand(K, 1, -1)
        white = level.whiten @ torch.cat([h, ones], 1)  # (K, n d, B)
        if level.root is not None:
            white = white * level.root
        self.white = level.solved(white)
        maha = (white.square() if self.white is white else white * self.white).unflatten(1, (n, d)).sum(2)
        self.log_joint = (level.base - 0.5 * (maha + seen.shell[:, None])).flatten(0, 1)

    def parts(self) -> Iterator[Part]:
        h = self.latents
        for k, r in enumerate(self.shares):
            about = self.level.about(k, self.seen.rows.to(h))
            yield Part(k, slice(None), r.T, h[k].T, self.seen.rho2[k], about)

    def best(self, top: int) -> Dense:
        """The same evidence of the modes that explain each row best, so many of them."""
        least = self.log_joint.topk(min(top, len(self.log_joint)), 0).values[-1]
        best = copy.copy(self)
        best.log_joint = self.log_joint.masked_fill(self.log_joint < least, -torch.inf)
        return best

    @property
    def latents(self) -> Tensor:
        """h, with shape (K, d, B)."""
        _, K, _, d = self.level.shapes
        return self.seen.h.unflatten(1, (K, d)).permute(1, 2, 0)

    def score(self) -> Tensor:
        return self.level.score_by(self.shares.sum(1), self.seen.x, self._up(self.level.filled))

    def denoise(self) -> Tensor:
        return self.level.denoised_by(self.shares.sum(1), self.seen.x, self._up((False,) * len(self.level.filled)))

    def _up(self, pulled: tuple[bool, ...]) -> Tensor:
        """[zeta_k | R_k | 0] of all subspaces, with shape (B, K d + K + padding); minus the pull where `pulled`."""
        level, r = self.level, self.shares
        _, K, n, d = level.shapes
        weight = r[:, :, None]  # (K, n, 1, B)
        white = self.white.unflatten(1, (n, d))
        white = white * weight if torch.is_grad_enabled() else white.mul_(weight)
        white = white.flatten(1, 2)
        if level.root is not None:
            white = white * level.root
        zeta = level.mean @ r + level.s * level.spread(white)  # (K, d, B)
        if any(pulled):
            inside = torch.tensor(pulled, device=zeta.device)[:, None, None]
            zeta = torch.where(inside, -(level.pull @ white), zeta)
        columns = [zeta.permute(2, 0, 1).flatten(1), r.sum(1).T]
        return torch.cat([*columns, zeta.new_zeros(zeta.shape[2], level.down.shape[1] - K * (d + 1))], 1)


@dataclass(frozen=True)
class _Weighed:
    """Rows that the modes of one subspace weigh, as in a :class:`Part`, and w of the modes, with shape (b, n, d)."""

    k: int
    at: Tensor
    about: Tensor
    h: Tensor
    rho2: Tensor
    white: Tensor

    def __getitem__(self, mine: Tensor) -> _Weighed:
        own = (getattr(self, name)[mine] for name in ("at", "about", "h", "rho2", "white"))
        return _Weighed(self.k, *own)


class Sparse(Evidence):
    """Rows that few subspaces weigh.

    Weighing makes use of less memory than all subspaces would; lifting makes use of what was weighed.
    """

    def __init__(self, seen: Seen, level: Level) -> None:
        """Weigh rows that are seen, at the same level in the same dtype or a wider one."""
        _, K, n, _ = level.shapes
        self.level = level
        self._parts: list[_Weighed] = []
        self._rows = seen.rows
        self._joint = level.center.new_full((K, len(seen.x), n), -torch.inf)
        ceiling = seen.ceiling
        first = ceiling.argmax(0)
        for k in range(K):
            self._weigh(k, (first == k).nonzero()[:, 0])
        reached = self._joint.amax((0, 2)).to(ceiling)
        active = ceiling + _ROUNDED * seen.size > reached - _OUT_OF_REACH
        for k, mine in enumerate(active & (first != torch.arange(K, device=first.device)[:, None])):
            self._weigh(k, mine.nonzero()[:, 0])
        self.log_joint = self._joint.transpose(1, 2).flatten(0, 1)

    def _weigh(self, k: int, at: Tensor) -> None:
        if not len(at):
            return
        level = self.level.own(at)
        _, _, n, d = level.shapes
        about = level.about(k, self._rows[at].to(level.center))
        h = about @ level.basis[k]
        if Seen._cancels(level, squared_norm(about)[None] / level.v[k]):
            rho2 = squared_norm(about - h @ level.basis[k].T)
        else:
            rho2 = squared_norm(about) - squared_norm(h)
        if level.filled[k]:
            rho2 = torch.zeros_like(rho2)
        whiten = level.whiten[k]
        white = torch.addmm(level.s[:, None] * whiten[:, d], h, whiten[:, :d].T)  # (b, n d)
        white = white if level.root is None else white * level.root[k].T
        white = white.unflatten(1, (n, d))
        shell = rho2 / level.v[k] + level.const[k]
        self._joint[k, at] = level.base[k].T - 0.5 * (white.square().sum(2) + shell[:, None])
        self._parts.append(_Weighed(k, at, about, h, rho2, white))

    def score(self) -> Tensor:
        return self._lifted(pulled=True)

    def denoise(self) -> Tensor:
        return self._lifted(pulled=False)

    def _lifted(self, *, pulled: bool) -> Tensor:
        out = torch.zeros_like(self._rows, dtype=self.level.center.dtype)
        for part, r in self._shared_out():
            level, k = self.level.own(part.at), part.k
            white = (
                part.white * r[..., None]
                if level.root is None
                else part.white * (r[..., None] * level.root[k].T.unflatten(1, part.white.shape[1:]))
            )
            white = white.flatten(1)
            if pulled and level.filled[k]:
                z = -(white @ level.pull[k].T)
            else:
                z = r @ level.mean[k].T + level.s[:, None] * (white @ level.back[k].T)
            lift = level.score_of if pulled else level.denoised_of
            out.index_add_(0, part.at, lift(k, part.about, z, r.sum(1, keepdim=True)))
        return out

    def parts(self) -> Iterator[Part]:
        for part, r in self._shared_out():
            yield Part(part.k, part.at, r, part.h, part.rho2, part.about)

    def _shared_out(self) -> Iterator[tuple[_Weighed, Tensor]]:
        """What was weighed, with the responsibilities (b, n), but for rows of which a subspace has no share."""
        for part in self._parts:
            r = self.shares[part.k][:, part.at].T
            mine = ~(r.sum(1) <= 1e-2 * torch.finfo(self._rows.dtype).eps)  # NaN, too
            if bool(mine.all()):
                yield part, r
            elif bool(mine.any()):
                yield part[mine], r[mine]


def explained(seen: Seen, precise: Level | None = None) -> Iterator[tuple[Where, Evidence]]:
    """The evidence of rows, in as many pieces as serve the processor.

    Args:
        seen: the rows.
        precise: the level in float64, where the shares of these rows need it.

    Yields:
        Which of the rows, and their evidence.
    """
    _, K, n, d = seen.level.shapes
    if torch.is_grad_enabled() or values_hidden(seen.rho2) or seen.x.device.type != "cpu":
        yield slice(None), Dense(seen if precise is None else Seen.of(precise, seen.rows))
    elif seen.few:
        yield slice(None), Sparse(seen, precise or seen.level)
    else:
        size = max(64, _CACHED // (K * n * d) // 64 * 64)
        for start in range(0, len(seen.x), size):
            at = slice(start, start + size)
            yield at, Dense(seen[at] if precise is None else Seen.of(precise.own(at), seen.rows[at]))


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


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm over the last axis."""
    if torch.is_grad_enabled():
        return x.square().sum(-1)  # smooth at zero
    return torch.linalg.vector_norm(x, dim=-1).square()  # one pass over memory
