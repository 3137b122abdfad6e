"""From a row to log_prob, score and denoiser: how every mode of a law explains it, and the way back up to R^D.

The symbols and formulas are those at the top of `molrmog.laws.molrmog`; each stands here beside its line:

    project   h_k = A_k^T (x - s b_k),  rho2_k = |x - s b_k|^2 - |h_k|^2
    e_step    w_c = Lam_c^-1/2 V_c^T (h_k - s mu_c),  log N_c(x),  responsibilities
    score, denoise, log_prob of an `Evidence`; `lift` goes up to R^D once per subspace

With derivatives, and on a GPU, every row is weighed by all modes in one batched product. Elsewhere rows are routed: no
mode of subspace k can reach more than the

    ceiling_k = max_l [ log w_k pi_kl - 1/2 sum_j log Lam_klj ] - 1/2 [ rho2_k / v_k + (D - d_k) log v_k + D log 2 pi ]

so after the modes of the most promising subspace are weighed, a subspace whose ceiling lies 40 nats below what they
reached (a share of 4e-18) need not see the row. At low noise nearly every row is the affair of one or two subspaces. At
high noise every subspace sees every row, one subspace at a time, so that its numbers stay in the cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import Tensor, nn

from molrmog.laws.base import orthonormal, values_hidden

_OUT_OF_REACH = 40.0  # nats
_CANCELS = 1e9  # |x|^2 / v from which float64 takes the off-subspace energy from the residual
# What float32 does to the log of a responsibility, in nats per |x|^2 / v, at worst: between subspaces, and between
# modes of one; and the largest share of a row that is shared at all.
_BETWEEN_SUBSPACES, _BETWEEN_MODES, _SHARED = 5e-7, 1e-7, 1 - 1e-5
_SMALLEST, _LARGEST = 2.0**-20, 2.0**20  # sizes of a law that float32 can square
_LOG_2PI = math.log(2 * math.pi)

Where = Tensor | slice  # indices (b,) of rows, or all


@dataclass(frozen=True)
class Eigenform:
    """What the formulas need of the parameters, computed once per parameter change; d is the largest d_k.

    `down` maps centred rows to [h, b . x, s] of every subspace in one product, up to the constant s `bias`; `whiten`
    maps these to V^T (h - s mu) of every mode, in one product per subspace.
    """

    center: Tensor  # (D,)
    down: Tensor  # (D, K, d + 2)   [A_k, b_k - center, 0]
    bias: Tensor  # (K, d + 2)      [-A_k^T (b_k - center), 0, 1]
    whiten: Tensor  # (K, d + 2, n, d)
    axes: Tensor  # (K, n, d, d)    V^T
    mean: Tensor  # (K, n, d)
    lam: Tensor  # (K, n, d)
    offset2: Tensor  # (K,)         |b_k - center|^2
    tau2: Tensor  # (K,)
    log_weight: Tensor  # (K, n)    log w_k + log pi_kl, -inf where padded
    coupling: Tensor | None  # (K, n, d, d)  E, zero in value; present where derivatives are wanted
    filled: tuple[bool, ...]  # whether each subspace is all of R^D, so that nothing lies off it
    least: Tensor  # ()             smallest variance of x_0 off a subspace, or inside one that is all of R^D
    center2: Tensor  # ()           |center|^2
    size: float  # root mean square distance of x_0 from the origin; NaN where the values are hidden

    @property
    def ordinary(self) -> bool:
        """Whether float32 can square the numbers of the law."""
        return _SMALLEST < self.size < _LARGEST

    @classmethod
    def of(
        cls,
        basis: Tensor,
        offset: Tensor,
        mean: Tensor,
        factor: Tensor,
        tau: Tensor,
        log_weight: Tensor,
        *,
        filled: Sequence[bool],
        differentiable: bool,
    ) -> Eigenform:
        """Diagonalise every mode.

        Args:
            basis: A_k, with shape (D, K, d).
            offset: b_k, with shape (K, D).
            mean: mu_kl, with shape (K, n, d).
            factor: U_kl, with shape (K, n, d, r).
            tau: tau_k, with shape (K,).
            log_weight: log w_k + log pi_kl, with shape (K, n).
            filled: whether each subspace is all of R^D.
            differentiable: keep the derivatives in the parameters.

        Returns:
            The eigenform, in float64.
        """
        A = orthonormal(basis.transpose(0, 1))  # (K, D, d)
        b, mu, U = (p.double() for p in (offset, mean, factor))
        covariance = U @ U.mT  # (K, n, d, d)
        V = torch.linalg.eigh(covariance.detach()).eigenvectors
        spectral = V.mT @ covariance @ V
        lam = spectral.diagonal(dim1=2, dim2=3)
        # The center only keeps numbers small; nothing depends on it, so it carries no derivative.
        w = log_weight.detach().exp()
        center = w.sum(1) @ b.detach() + torch.einsum("kn,kDd,knd->D", w, A.detach(), mu.detach())
        b = b - center
        column = torch.zeros_like(b)[..., None]  # (K, D, 1)
        scalar = torch.zeros_like(b[:, :1])  # (K, 1)
        # What is left of a variance by rounding is none; it keeps its derivative.
        lam = lam - torch.where(lam > 1e-14 * lam.amax(2, keepdim=True), 0.0, lam).detach()
        real, whole = log_weight.isfinite()[..., None], torch.tensor(filled, device=lam.device)
        flattest = torch.where(real, lam.detach(), torch.inf).flatten(1).amin(1) if lam.numel() else scalar[:, 0]
        away = (A.detach()[:, None] @ mu.detach()[..., None])[..., 0] + b.detach()[:, None]  # (K, n, D)  m_c - center
        square = (center + away).square().sum(2) + lam.detach().sum(2)
        square = square + len(center) * tau.detach().double().square()[:, None]  # (K, n)  E |x_0|^2
        tau2 = tau.double().square()
        return cls(
            center=center,
            down=torch.cat([A, b[..., None], column], 2).transpose(0, 1).contiguous(),
            bias=torch.cat([-torch.einsum("kDd,kD->kd", A, b), scalar, scalar + 1], 1),
            whiten=torch.cat([V, torch.zeros_like(V[:, :, :1]), -mu[:, :, None] @ V], 2).transpose(1, 2).contiguous(),
            axes=V.mT.contiguous(),
            mean=mu,
            lam=lam,
            offset2=b.square().sum(1),
            tau2=tau2,
            log_weight=log_weight,
            coupling=spectral - lam.diag_embed() - (spectral - lam.diag_embed()).detach() if differentiable else None,
            filled=tuple(filled),
            least=(tau2.detach() + torch.where(whole, flattest, 0.0)).amin(),
            center2=center.square().sum(),
            size=math.nan if values_hidden(square) else float((w * square).sum().sqrt()),
        )

    def flats(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A_k, with shape (D, d), and b_k - center, with shape (D,), of every subspace."""
        d = self.mean.shape[2]
        return ((down[:, :d], down[:, d]) for down in self.down.unbind(1))

    def to(self, dtype: torch.dtype) -> Eigenform:
        """The eigenform in another dtype."""
        if dtype == self.center.dtype:
            return self

        def narrowed(value: Tensor) -> Tensor:
            # Constant pixels leave entries that float32 holds as denormal numbers, which slow every product tenfold.
            # What is cut off is a constant, so that entries which are zero keep their derivative.
            fixed = value.detach()
            return (value - (fixed - nn.functional.hardshrink(fixed, 1e-30)).nan_to_num(0.0)).to(dtype)  # inf - inf

        narrow = {name: narrowed(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **narrow)


@dataclass(frozen=True)
class Noised:
    """Rows x_t about the center of a law, at their noise levels, in the dtype of its eigenform.

    Attributes:
        x: x_t - s center, with shape (B, D).
        norm2: its squared norms, with shape (B,).
        s: signal scale, with shape (B or 1,).
        gamma: noise standard deviation, with shape (B or 1,).
    """

    x: Tensor
    norm2: Tensor
    s: Tensor
    gamma: Tensor

    @classmethod
    def of(cls, form: Eigenform, x: Tensor, s: Tensor, gamma: Tensor) -> Noised:
        """Centre rows x (B, D); s and gamma have shape (B or 1,)."""
        s, gamma = s.to(form.center.dtype), gamma.to(form.center.dtype)
        centred = x.to(form.center.dtype) - s[:, None] * form.center
        return cls(centred, squared_norm(centred), s, gamma)

    def least_variance(self, form: Eigenform) -> Tensor:
        """Smallest variance of any direction in which rounding is seen, with shape (B or 1,)."""
        return self.s.square() * form.least + self.gamma.square()

    def ratio(self, form: Eigenform) -> Tensor:
        """(|x|^2 + |s center|^2) / v of each row, with shape (B,); float32 loses about 1e-7 of it, in nats."""
        return (self.norm2 + self.center2(form)) / self.least_variance(form)

    def cancels(self, form: Eigenform) -> bool:
        """Whether a difference of squares costs float64 a digit that is seen in a density."""
        if self.x.dtype != torch.float64 or not len(self.x) or all(form.filled):
            return False
        return (
            not values_hidden(self.norm2, self.s, self.gamma, form.least)
            and not float((self.norm2 / self.least_variance(form)).detach().max()) <= _CANCELS
        )

    def center2(self, form: Eigenform) -> Tensor:
        """|s center|^2, with shape (B or 1,)."""
        return self.s.square() * form.center2


@dataclass(frozen=True)
class Evidence:
    """How every mode explains every row; all of the dtype of the eigenform.

    `pull` is Lam_c^-1 V_c^T (h - s mu_c) but for the factor `root`, so that E[z | x, c] = mu_c + s V_c lam_c pull_c.
    """

    form: Eigenform
    rows: Noised
    v: Tensor  # (K, B or 1)
    h: Tensor  # (B, K, d)
    rho2: Tensor  # (K, B)
    Lam: Tensor  # (K, B or 1, n, d)
    root: Tensor | None  # (K, n, d)  Lam^-1/2, where one noise level for all rows keeps it out of `pull`
    pull: Tensor | None  # (K, B, n, d)   where weighed densely
    routed: list[tuple[Where, Tensor]] | None  # rows and their pull (b, n, d) for each subspace, where routed
    log_joint: Tensor  # (B, K, n)  log w + log pi + log N

    @property
    def log_prob(self) -> Tensor:
        """Evidence log p_t(x), with shape (B,)."""
        joint = self.log_joint.flatten(1)
        most = joint.detach().amax(1, keepdim=True)
        # exp(-80) changes no digit of the sum, but denormal numbers slow the exponential tenfold.
        return (joint - most).clamp(min=-80).exp().sum(1).log() + most[:, 0]

    @functools.cached_property
    def responsibilities(self) -> Tensor:
        """r_c(x), with shape (B, K, n)."""
        r = self.log_joint.flatten(1).softmax(1).view_as(self.log_joint)
        # Shares this small change no digit of any result, but as denormal numbers they slow every product tenfold.
        return nn.functional.threshold(r, 1e-20, 0.0)

    def score(self) -> Tensor:
        """sum_k (1 / v_k) [ s (R_k b_k + A_k zeta_k) - R_k x ], with shape (B, D).

        In a subspace that is all of R^D nothing is divided by v_k: - A_k sum_l r_kl V Lam^-1 V^T (h - s mu).
        """
        R = self.responsibilities.sum(2)  # (B, K)
        over_v = self.v.reciprocal()  # (K, B or 1)
        if any(self.form.filled):
            off = torch.tensor([float(not whole) for whole in self.form.filled]).to(over_v)[:, None]
            over_v = over_v * off
        up = self._lift(self.rows.s * over_v, score=True)
        return torch.addcmul(up, (R * over_v.T).sum(1, keepdim=True), self.rows.x, value=-1, out=self._in_place(up))

    def denoise(self) -> Tensor:
        """sum_k (1 / v_k) [ gamma^2 (R_k b_k + A_k zeta_k) + s tau_k^2 R_k x ], with shape (B, D)."""
        R = self.responsibilities.sum(2)
        keep = (R * (self.rows.s[:, None] * self.form.tau2 / self.v.T)).sum(1, keepdim=True)  # (B, 1)
        up = self._lift(self.rows.gamma.square() / self.v) + self.form.center
        return torch.addcmul(up, keep, self.rows.x, out=self._in_place(up))

    def undecided(self) -> Tensor:
        """Which rows lie between subspaces or modes while float32 moves their shares by more than it may; (B,)."""
        ratio = self.rows.norm2 / self.rows.least_variance(self.form)
        r = self.responsibilities
        between_subspaces = r.sum(2).amax(1) < _SHARED
        between_modes = r.flatten(1).amax(1) < _SHARED
        nats = min(1e-3, 1e-5 * len(self.form.center))  # in few dimensions modes that differ weigh more in the result
        return (between_subspaces & (ratio * _BETWEEN_SUBSPACES > nats)) | (
            between_modes & (ratio * _BETWEEN_MODES > nats)
        )

    def narrowed(self, form: Eigenform) -> Evidence:
        """The same shares in the dtype of another eigenform: for a score or denoiser, not for a density."""
        dtype = form.center.dtype
        joint = self.log_joint - self.log_joint.flatten(1).amax(1)[:, None, None]
        narrow = {f.name: v.to(dtype) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        routed = None if self.routed is None else [(at, pull.to(dtype)) for at, pull in self.routed]
        rows = Noised(*(each.to(dtype) for each in vars(self.rows).values()))
        return replace(self, **(narrow | {"form": form, "rows": rows, "routed": routed, "log_joint": joint.to(dtype)}))

    @property
    def pulls(self) -> Tensor:
        """Lam_c^-1 V_c^T (h - s mu_c), with shape (K, B, n, d): minus a mode's score inside its subspace."""
        assert self.pull is not None
        return self.pull if self.root is None else self.pull * self.root[:, None]

    def _in_place(self, up: Tensor) -> Tensor | None:
        return None if self.routed is None else up

    def _lift(self, share: Tensor, score: bool = False) -> Tensor:
        """sum_k share_k (R_k (b_k - center) + A_k zeta_k), with shape (B, D); share with shape (K, B or 1).

        For a score a filled subspace gives - A_k sum_l r_kl V Lam^-1 V^T (h - s mu) in place of its term.
        """
        form, r, s = self.form, self.responsibilities, self.rows.s
        up = form.down[..., :-1].permute(1, 2, 0)  # (K, d + 1, D)
        share = share[..., None]  # (K, B or 1, 1)
        filled = [score and each for each in form.filled]
        coupling = form.coupling if self.routed is None else None
        scale = torch.ones_like(form.lam) if self.root is None else self.root  # (K, n, d)
        back = (scale if coupling is not None else form.lam * scale)[..., None] * form.axes  # (K, n, d, d)

        def latent(k: int | slice, pull: Tensor, r: Tensor, s: Tensor, share: Tensor) -> Tensor:
            """[share_k zeta_k, share_k R_k] with shape (..., b, d + 1)."""
            if coupling is not None:
                pull = form.lam[k][:, None] * pull + _couple(pull, coupling[k])
            pulled = (pull * (r * s)[..., None]).flatten(-2)  # (..., b, n d)
            zeta = r @ form.mean[k] + pulled @ back[k].flatten(-3, -2)
            return torch.cat([zeta, r.sum(-1, keepdim=True)], -1) * share

        def whole(k: int, pull: Tensor, r: Tensor) -> Tensor:
            pulled = (pull * r[..., None]).flatten(-2)
            zeta = -(pulled @ (scale[k, ..., None] * form.axes[k]).flatten(0, 1))
            return torch.cat([zeta, torch.zeros_like(zeta[..., :1])], -1)

        if self.routed is None:
            assert self.pull is not None
            if all(filled):
                parts = [whole(k, self.pull[k], r[:, k]) for k in range(len(filled))]
                return torch.cat(parts, 1) @ up.flatten(0, 1)
            dense = latent(slice(None), self.pull, r.transpose(0, 1), s[:, None], share)  # (K, B, d + 1)
            if any(filled):
                each = [whole(k, self.pull[k], r[:, k]) if f else dense[k] for k, f in enumerate(filled)]
                dense = torch.stack(each)
            return dense.transpose(0, 1).flatten(1) @ up.flatten(0, 1)

        def part(k: int, at: Where, pull: Tensor) -> Tensor:
            if filled[k]:
                return whole(k, pull, r[at, k])
            own_s = s[:, None] if len(s) == 1 else s[at, None]
            return latent(k, pull, r[at, k], own_s, share[k] if share.shape[1] == 1 else share[k, at])

        if all(isinstance(at, slice) for at, _ in self.routed):
            return torch.cat([part(k, at, pull) for k, (at, pull) in enumerate(self.routed)], 1) @ up.flatten(0, 1)
        out = torch.zeros_like(self.rows.x)
        for k, (at, pull) in enumerate(self.routed):
            out.index_add_(0, cast(Tensor, at), part(k, at, pull) @ up[k])
        return out


def project(
    form: Eigenform, rows: Tensor, norm2: Tensor, s: Tensor, *, explicit: bool = False
) -> tuple[Tensor, Tensor]:
    """[h, b . x, s] of every row and subspace, with shape (B, K, d + 2), and rho2, with shape (K, B).

    Args:
        form: of the law, in the dtype of the rows.
        rows: x - s center, with shape (B, D).
        norm2: their squared norms, with shape (B,).
        s: with shape (B or 1, 1).
        explicit: take rho2 from the residual itself, a product more, where a difference of squares would cancel.
    """
    down = torch.addmm((s[..., None] * form.bias).flatten(1), rows, form.down.flatten(1))
    down = down.unflatten(1, form.bias.shape)
    d = form.mean.shape[2]
    if explicit:
        apart = (rows - s * b - down[:, k, :d] @ A.T for k, (A, b) in enumerate(form.flats()))
        rho2 = torch.stack([squared_norm(each) for each in apart])
    else:
        energy = norm2[:, None] + s * (s * form.offset2 - 2 * down[..., d])
        rho2 = (energy - squared_norm(down[..., :d])).T
    if any(form.filled):
        rho2 = rho2 * torch.tensor([[float(not whole)] for whole in form.filled]).to(rho2)
    return down, rho2


def e_step(form: Eigenform, rows: Noised, *, route: bool = True) -> Evidence:
    """Weigh the modes for every row.

    Args:
        form: of the law.
        rows: in its dtype.
        route: whether rows may be routed; they are only where no derivatives are wanted and it pays.
    """
    s, gamma = rows.s, rows.gamma
    s1, s3 = s[:, None], s[:, None, None]
    D = len(form.center)
    _, n, d = form.mean.shape
    down, rho2 = project(form, rows.x, rows.norm2, s1, explicit=rows.cancels(form))

    v = s1.T.square() * form.tau2[:, None] + gamma.square()  # (K, B or 1)
    Lam = s3.square() * form.lam[:, None] + v[..., None, None]  # (K, B or 1, n, d)
    root = Lam.rsqrt()
    # A GPU is done with one large product before it has looked up which rows go where.
    on_cpu = rows.x.device.type == "cpu"
    routing = route and on_cpu and not (torch.is_grad_enabled() or values_hidden(rows.x, s, gamma))
    # Of one noise level for all rows, the whitening is folded into the products.
    shared = Lam.shape[1] == 1 and (routing or form.coupling is None)
    whiten = (form.whiten * root if Lam.shape[1] == 1 else form.whiten).flatten(2)  # (K, d + 2, n d)
    shell = rho2 / v + (D - d) * v.log() + D * _LOG_2PI  # (K, B)
    logdet = Lam.log().sum(-1)
    if form.coupling is not None:
        squares = _couple(root.square(), form.coupling.square())
        logdet = logdet - 0.5 * s1**4 * (squares * root.square()).sum(-1)
    base = form.log_weight[:, None] - 0.5 * logdet  # (K, B or 1, n)

    routed = pull = None
    if routing:
        log_joint, routed = _e_step_routed(down, whiten, root, base, shell)
    else:
        white = (down.transpose(0, 1) @ whiten).unflatten(2, (n, d))  # (K, B, n, d)
        white = white if Lam.shape[1] == 1 else white * root
        if form.coupling is None:
            maha = squared_norm(white)
            pull = white if shared else white * root
        else:
            first = -s3.square() * root * _couple(root * white, form.coupling)
            second = -s3.square() * root * _couple(root * first, form.coupling)
            solved = white + first + second  # (I + s^2 Lam^-1/2 E Lam^-1/2)^-1 white
            maha = (white * solved).sum(-1)
            pull = root * solved
        log_joint = (base - 0.5 * (maha + shell[..., None])).transpose(0, 1).contiguous()
    return Evidence(form, rows, v, down[..., :d], rho2, Lam, root[:, 0] if shared else None, pull, routed, log_joint)


def _e_step_routed(
    down: Tensor, whiten: Tensor, root: Tensor, base: Tensor, shell: Tensor
) -> tuple[Tensor, list[tuple[Where, Tensor]]]:
    """log_joint (B, K, n), and for each subspace the rows that need it with their pull.

    Args:
        down: with shape (B, K, d + 2).
        whiten: with shape (K, d + 2, n d), with the root already where one noise level is shared.
        root: Lam^-1/2, with shape (K, B or 1, n, d).
        base: log_joint but for the distances, with shape (K, B or 1, n).
        shell: what all modes of a subspace share, with shape (K, B).
    """
    K, levels, n, d = root.shape
    log_joint = down.new_full((len(down), K, n), -torch.inf)

    def explain(k: int, at: Where) -> tuple[Where, Tensor]:
        white = (down[at, k] @ whiten[k]).unflatten(1, (n, d))  # (b, n, d)
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


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm over the last axis."""
    if torch.is_grad_enabled():
        return x.square().sum(-1)  # smooth at zero
    return torch.linalg.vector_norm(x, dim=-1).square()  # one pass over memory


def _couple(z: Tensor, coupling: Tensor) -> Tensor:
    """Apply each mode's symmetric (d, d) matrix to its numbers; z (..., K, B, n, d), coupling (..., n, d, d)."""
    return (z.transpose(-3, -2) @ coupling).transpose(-3, -2)
