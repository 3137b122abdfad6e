"""The gates: how every mode of a law explains every row, and the way back up to R^D.

This is the engine under `molrmog.laws.molrmog`, whose formulas and symbols it keeps. With derivatives, every row is
weighed
by all modes in one batched product. Without, rows are routed: no mode of subspace k can reach more than the

    ceiling_k = max_l [ log w_k pi_kl - 1/2 sum_j log Lam_klj ] - 1/2 [ rho2_k / v_k + (D - d_k) log v_k + D log 2 pi ]

so after the modes of the most promising subspace are weighed, a subspace whose ceiling lies 40 nats below what they
reached (a share of 4e-18) need not see the row. At low noise nearly every row is the affair of one or two subspaces. At
high noise every subspace sees every row, one subspace at a time, so that its numbers stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from molrmog.laws.base import values_hidden

# What float32 does to the log of a gate, in nats per |x|^2 / v, at worst: between subspaces, and between modes of one.
BETWEEN_SUBSPACES, BETWEEN_MODES = 5e-7, 1e-7
NATS, DECIDED = 1e-3, 0.5  # what gates keep to; what does not matter where one expert takes the whole row
_OUT_OF_REACH = 40.0  # nats
_LOG_2PI = math.log(2 * math.pi)


Rows = Tensor | slice  # indices (b,), or all


@dataclass(frozen=True)
class Frame:
    """What the formulas need of the parameters, computed once per parameter change; d is the largest d_k.

    `down` maps centred rows to [h, b . x, s] of every subspace in one product, up to the constant s `bias`; `project`
    maps these to V^T (h - s mu) of every mode, in one product per subspace.
    """

    center: Tensor  # (D,)
    down: Tensor  # (D, K, d + 2)   [A_k, b_k - center, 0]
    bias: Tensor  # (K, d + 2)      [-A_k^T (b_k - center), 0, 1]
    project: Tensor  # (K, d + 2, n, d)
    lift: Tensor  # (K, n, d, d)    V^T
    mean: Tensor  # (K, n, d)
    lam: Tensor  # (K, n, d)
    offset2: Tensor  # (K,)         |b_k - center|^2
    tau2: Tensor  # (K,)
    log_weight: Tensor  # (K, n)    log w_k + log pi_kl, -inf where padded
    coupling: Tensor | None  # (K, n, d, d)  E, zero in value; present where derivatives are wanted

    def to(self, dtype: torch.dtype) -> Frame:
        """The frame in another dtype."""
        if dtype == self.center.dtype:
            return self

        def narrowed(value: Tensor) -> Tensor:
            # Constant pixels leave entries that float32 holds as denormal numbers, which slow every product tenfold.
            # What is cut off is a constant, so that entries which are zero keep their derivative.
            fixed = value.detach()
            return (value - (fixed - nn.functional.hardshrink(fixed, 1e-30)).nan_to_num(0.0)).to(dtype)  # inf - inf

        narrow = {name: None if value is None else narrowed(value) for name, value in vars(self).items()}
        return replace(self, **narrow)


@dataclass(frozen=True)
class Evidence:
    """How every mode explains every row. E[z | x, c] = mu_c + s pull_c lift_c."""

    frame: Frame  # in the dtype of the rows
    x: Tensor  # (B, D)            centred rows x - s center
    s: Tensor  # (B or 1,)
    gamma: Tensor  # (B or 1,)
    v: Tensor  # (K, B or 1)
    h: Tensor  # (B, K, d)
    rho2: Tensor  # (K, B)
    Lam: Tensor  # (K, B or 1, n, d)
    lift: Tensor  # (K, n, d, d)
    white: Tensor | None  # (K, B, n, d)   where weighed densely
    pull: Tensor | None  # (K, B, n, d)
    routed: list[tuple[Rows, Tensor]] | None  # rows and their pull (b, n, d) for each subspace, where routed
    log_joint: Tensor  # (B, K, n)  log w + log pi + log N
    ratio: Tensor  # (B,)          |x|^2 / v where rounding is in float32, else zero

    @property
    def log_prob(self) -> Tensor:
        """Evidence log p_t(x), with shape (B,)."""
        joint = self.log_joint.flatten(1)
        # exp(-80) changes no digit of the sum, but denormal numbers slow the exponential tenfold.
        return joint.maximum(joint.amax(1, keepdim=True) - 80).logsumexp(1)

    @property
    def gates(self) -> Tensor:
        """Responsibilities r_c(x), with shape (B, K, n)."""
        gates = self.log_joint.flatten(1).softmax(1).view_as(self.log_joint)
        # Gates this small change no digit of any result, but as denormal numbers they slow every product tenfold.
        return nn.functional.threshold(gates, 1e-20, 0.0)

    @property
    def undecided(self) -> Tensor:
        """Rows (b,) that lie between subspaces or modes while float32 moves the gates by more than `NATS`."""
        gates = self.gates
        between_subspaces = gates.sum(2).amax(1) < 1 - 1e-5
        between_modes = gates.flatten(1).amax(1) < 1 - 1e-5
        return (
            (between_subspaces & (self.ratio * BETWEEN_SUBSPACES > NATS))
            | (between_modes & (self.ratio * BETWEEN_MODES > NATS))
        ).nonzero()[:, 0]


def weigh(
    frame_in: Callable[[torch.dtype], Frame],
    x: Tensor,
    s: Tensor,
    gamma: Tensor,
    *,
    filled: Sequence[bool],
    nats: float = NATS,
    route: bool = True,
) -> Evidence:
    """Weigh the modes for every row.

    Args:
        frame_in: the law's frame in a dtype.
        x: rows, with shape (B, D), float32 or float64.
        s: signal scale, with shape (B or 1,).
        gamma: noise standard deviation, with shape (B or 1,).
        filled: whether each subspace is all of R^D, so that nothing lies off it.
        nats: what rounding may move the log of a gate by.
        route: whether rows may be routed; they are only where no derivatives are wanted and it pays.
    """
    frame = frame_of_rows = frame_in(x.dtype)
    centred = exact = x - s[:, None] * frame.center
    norm2 = squared_norm(centred)
    ratio = _rounding_ratio(frame, norm2, s, gamma, nats)
    if ratio is None:
        frame = frame_in(torch.float64)
        x64, s64, gamma = x.double(), s.double(), gamma.double()
        exact = x64 - s64[:, None] * frame.center
        norm2 = squared_norm(exact)
        ratio = torch.zeros_like(norm2)
    weighed = exact.dtype
    s1, s3 = s.to(weighed)[:, None], s.to(weighed)[:, None, None]
    D = len(frame.center)
    _, n, d = frame.mean.shape
    down, rho2 = go_down(frame, exact, norm2, s1, filled)
    h = down[..., :d]

    v = s1.T.square() * frame.tau2[:, None] + gamma.square()  # (K, B or 1)
    Lam = s3.square() * frame.lam[:, None] + v[..., None, None]  # (K, B or 1, n, d)
    root = Lam.rsqrt()
    shared = Lam.shape[1] == 1  # one noise level for all rows: the whitening is folded into the products
    project = (frame.project * root if shared else frame.project).flatten(2)  # (K, d + 2, n d)
    lift = (frame.lam * root[:, 0] if shared else frame.lam)[..., None] * frame.lift
    shell = rho2 / v + (D - d) * v.log() + D * _LOG_2PI  # (K, B)
    logdet = Lam.log().sum(-1)
    if frame.coupling is not None:
        squares = _couple(root.square(), frame.coupling.square())
        logdet = logdet - 0.5 * s1**4 * (squares * root.square()).sum(-1)
    base = frame.log_weight[:, None] - 0.5 * logdet  # (K, B or 1, n)

    routed = white = pull = None
    if route and not (torch.is_grad_enabled() or values_hidden(x, s, gamma)):
        log_joint, routed = _weigh_routed(down, project, root, base, shell)
    else:
        white = (down.transpose(0, 1) @ project).unflatten(2, (n, d))  # (K, B, n, d)
        white = white if shared else white * root
        if frame.coupling is None:
            maha = squared_norm(white)
            pull = white if shared else white * root
        else:
            first = -s3.square() * root * _couple(root * white, frame.coupling)
            second = -s3.square() * root * _couple(root * first, frame.coupling)
            solved = white + first + second  # (I + s^2 Lam^-1/2 E Lam^-1/2)^-1 white
            maha = (white * solved).sum(-1)
            pull = frame.lam[:, None] * root * solved + _couple(root * solved, frame.coupling)
            lift = frame.lift
        log_joint = (base - 0.5 * (maha + shell[..., None])).transpose(0, 1).contiguous()
    return Evidence(
        frame_of_rows, centred, s, gamma.to(s.dtype), v, h, rho2, Lam, lift, white, pull, routed, log_joint, ratio
    )


def go_down(frame: Frame, centred: Tensor, norm2: Tensor, s: Tensor, filled: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """[h, b . x, s] of every row and subspace, with shape (B, K, d + 2), and rho2, with shape (K, B).

    Args:
        frame: of the law, in the dtype of the rows.
        centred: rows x - s center, with shape (B, D).
        norm2: their squared norms, with shape (B,).
        s: with shape (B or 1, 1).
        filled: whether each subspace is all of R^D, so that nothing lies off it.
    """
    down = torch.addmm((s[..., None] * frame.bias).flatten(1), centred, frame.down.flatten(1))
    down = down.unflatten(1, frame.bias.shape)
    d = frame.mean.shape[2]
    energy = norm2[:, None] + s * (s * frame.offset2 - 2 * down[..., d])
    rho2 = (energy - squared_norm(down[..., :d])).T
    if any(filled):
        rho2 = rho2 * torch.tensor([[float(not whole)] for whole in filled]).to(rho2)
    return down, rho2


def _weigh_routed(
    down: Tensor, project: Tensor, root: Tensor, base: Tensor, shell: Tensor
) -> tuple[Tensor, list[tuple[Rows, Tensor]]]:
    """log_joint (B, K, n), and for each subspace the rows that need it with their pull.

    Args:
        down: with shape (B, K, d + 2).
        project: with shape (K, d + 2, n d), whitened already where one noise level is shared.
        root: Lam^-1/2, with shape (K, B or 1, n, d).
        base: log_joint but for the distances, with shape (K, B or 1, n).
        shell: what all modes of a subspace share, with shape (K, B).
    """
    K, levels, n, d = root.shape
    log_joint = down.new_full((len(down), K, n), -torch.inf)

    def explain(k: int, at: Rows) -> tuple[Rows, Tensor]:
        white = (down[at, k] @ project[k]).unflatten(1, (n, d))  # (b, n, d)
        here = slice(None) if levels == 1 else at
        white = white if levels == 1 else white * root[k, here]
        log_joint[at, k] = base[k, here] - 0.5 * (squared_norm(white) + shell[k, at, None])
        return at, white if levels == 1 else white * root[k, here]

    ceiling = base.amax(2) - 0.5 * shell  # (K, B)
    if float((ceiling > ceiling.amax(0) - _OUT_OF_REACH).double().mean()) > 0.5:
        return log_joint, [explain(k, slice(None)) for k in range(K)]
    first = ceiling.argmax(0)
    for k in range(K):
        explain(k, (first == k).nonzero()[:, 0])
    reached = log_joint.flatten(1).amax(1)
    return log_joint, [explain(k, mine.nonzero()[:, 0]) for k, mine in enumerate(ceiling > reached - _OUT_OF_REACH)]


def lift_means(e: Evidence, share: Tensor) -> Tensor:
    """sum_k share_k (R_k (b_k - center) + A_k zeta_k), with shape (B, D).

    Args:
        e: the evidence of the rows.
        share: with shape (K, B or 1).
    """
    frame, dtype = e.frame, e.x.dtype
    gates, share, lift = e.gates.to(dtype), share.to(dtype)[..., None], e.lift.to(dtype).flatten(1, 2)
    up = frame.down[..., :-1].permute(1, 2, 0)  # (K, d + 1, D)

    def weighted(pull: Tensor, gates: Tensor, s: Tensor, share: Tensor, mean: Tensor, lift: Tensor) -> Tensor:
        pulled = (pull * (gates * s)[..., None]).flatten(-2).to(dtype)  # (..., b, n d)
        zeta = gates @ mean + pulled @ lift  # (..., b, d)
        return torch.cat([zeta, gates.sum(-1, keepdim=True)], -1) * share

    if e.routed is None:
        assert e.pull is not None
        whole = weighted(e.pull, gates.transpose(0, 1), e.s[:, None], share, frame.mean, lift)  # (K, B, d + 1)
        return whole.transpose(0, 1).flatten(1) @ up.flatten(0, 1)

    def part(k: int, at: Rows, pull: Tensor) -> Tensor:
        s = e.s[:, None] if len(e.s) == 1 else e.s[at, None]
        shares = share[k] if share.shape[1] == 1 else share[k, at]
        return weighted(pull, gates[at, k], s, shares, frame.mean[k], lift[k])  # (b, d + 1)

    if all(isinstance(at, slice) for at, _ in e.routed):
        return torch.cat([part(k, at, pull) for k, (at, pull) in enumerate(e.routed)], 1) @ up.flatten(0, 1)
    out = torch.zeros_like(e.x)
    for k, (at, pull) in enumerate(e.routed):
        out.index_add_(0, cast(Tensor, at), part(k, at, pull) @ up[k])
    return out


def _rounding_ratio(frame: Frame, norm2: Tensor, s: Tensor, gamma: Tensor, nats: float) -> Tensor | None:
    """|x|^2 / v of each row (B,), or None where these rows must be weighed in float64 to keep their gates to `nats`."""
    if norm2.dtype == torch.float64:
        return torch.zeros_like(norm2)
    if values_hidden(norm2, s, gamma, frame.tau2):
        return None
    with torch.no_grad():
        ratio = norm2 / (s.square() * frame.tau2.min() + gamma.square())
        return ratio if not len(ratio) or float(ratio.max()) * BETWEEN_SUBSPACES <= nats else None


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm over the last axis."""
    if torch.is_grad_enabled():
        return x.square().sum(-1)  # smooth at zero
    return torch.linalg.vector_norm(x, dim=-1).square()  # one pass over memory


def _couple(z: Tensor, coupling: Tensor) -> Tensor:
    """Apply each mode's symmetric (d, d) matrix to its numbers; z (K, B, n, d), coupling (K, n, d, d)."""
    return (z.transpose(1, 2) @ coupling).transpose(1, 2)
