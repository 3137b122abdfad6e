"""A law in the leading coordinates, a shared Gaussian on the rest.

A rotation commutes with isotropic noise, so a law on some orthonormal coordinates times an independent Gaussian on the
others is again closed at every noise level:

    x_0 = b + H xi + T eta + tau e_rest,      [H T] orthonormal,  xi ~ MoLR-MoG in R^q,  eta ~ N(0, diag psi) in R^p,

with isotropic variance tau^2 in the D - q - p directions left. With y = T^T (x - s b) and v = s^2 tau^2 + gamma^2,

    log p_t(x) = log p_t^head(H^T (x - s b)) + sum_j log N(y_j; 0, s^2 psi_j + gamma^2) + log N(rest; 0, v I)
    score      = H score^head - T y / (s^2 psi + gamma^2) - rest / v
    denoise    = b + H denoise^head + T ( s psi y / (s^2 psi + gamma^2) ) + (s tau^2 / v) rest

Responsibilities depend on the head alone. Real images have a smoothly decaying spectrum, which one isotropic tau_k per
subspace describes crudely; the tail holds it exactly, at the cost of one product with [H T] down and one up, and
another up where any direction is left.

References:
    The composition is this library's; its head is arXiv 2601.01475, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.arguments import real
from molrmog.checks import check_orthonormal
from molrmog.laws.base import (
    MANY,
    Compute,
    Law,
    Subspace,
    contiguous_copy,
    in_float64,
    normal,
    orthonormal,
    refine_,
    values_hidden,
)
from molrmog.laws.molrmog import MoLRMoG

# (|x - s b|^2 + |s b|^2) / v, v the smallest variance off the head, up to which float32 has the digits of a score or
# density, and of a denoiser.
_SCORE, _DENOISER = 1e5, 1e6
_FEW = 16  # dimensions
_LARGEST = 1e24  # squared norm up to which float32 has room
_HEAD = 1e4  # the same over the smallest variance off the head's subspaces, up to which it takes float32 coordinates


@dataclass(frozen=True)
class Frame:
    """What the formulas need of the parameters, in one dtype.

    Attributes:
        axes: [H T], orthonormal, with shape (D, q + p).
        offset: b, with shape (D,).
        psi: variances of the tail, with shape (p,).
        tau2: variance in each direction that is left, with shape ().
    """

    axes: Tensor
    offset: Tensor
    psi: Tensor
    tau2: Tensor

    def to(self, dtype: torch.dtype) -> Frame:
        """The frame in another dtype."""
        return Frame(**{name: value.to(dtype) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Split:
    """Rows in the coordinates of a law.

    Attributes:
        frame: in the dtype of the rows.
        z: coordinates of the head, with shape (b, q); in float64 where its responsibilities need it.
        y: coordinates of the tail, with shape (b, p).
        rest: what neither holds, with shape (b, D); nothing to rely on where no direction is left.
        s: signal scale, with shape (b or 1, 1).
        gamma2: variance of the noise, with shape (b or 1, 1).
        variance: of y, with shape (b or 1, p).
        v: of the rest in each direction, with shape (b or 1, 1).
    """

    frame: Frame
    z: Tensor
    y: Tensor
    rest: Tensor
    s: Tensor
    gamma2: Tensor
    variance: Tensor
    v: Tensor


class HeadTail(Law):
    """A MoLR-MoG in q leading coordinates, independent Gaussians in p further ones, isotropic noise in what is left.

    Attributes:
        head: the law of the leading coordinates, over R^q.
        axes: [H T], orthonormal columns, with shape (D, q + p).
        offset: b, with shape (D,).
        spread: square roots of psi, standard deviations of the tail, in data units, with shape (p,).
        tau: standard deviation in each direction that is left, in data units, with shape ().

    Example:
        >>> head = MoLRMoG.random(dim=4, latent_dims=(2,), modes=(3,), noise=0.1, seed=0)
        >>> law = HeadTail(head, torch.eye(8)[:, :6], torch.zeros(8), torch.tensor([0.3, 0.2]), torch.tensor(0.1))
        >>> law.score(torch.zeros(5, 8), s=0.8, gamma=0.6).shape
        torch.Size([5, 8])
    """

    parameter_names = ("axes", "offset", "spread", "tau")

    def __init__(self, head: MoLRMoG, axes: Tensor, offset: Tensor, spread: Tensor, tau: Tensor) -> None:
        """Compose a law.

        Args:
            head: over R^q.
            axes: orthonormal columns, the first q of them for the head, with shape (D, q + p).
            offset: with shape (D,).
            spread: with shape (p,).
            tau: with shape ().

        Raises:
            ValueError: the shapes do not fit together.
        """
        super().__init__()
        head.require_isotropic("the head of a HeadTail")
        p = axes.shape[1] - head.dim
        if p < 0 or spread.shape != (p,) or offset.shape != axes.shape[:1] or tau.shape != ():
            raise ValueError(
                f"a head over R^{head.dim}, axes {tuple(axes.shape)}, offset {tuple(offset.shape)}, spread "
                f"{tuple(spread.shape)} and tau {tuple(tau.shape)} do not fit: pass (D, q + p), (D,), (p,) and ()"
            )
        self.head = head
        self.dim = len(offset)
        self.latent_dims, self.modes, self.head_dim = head.latent_dims, head.modes, head.dim
        # Products of the same numbers in other strides, or at other addresses, differ in their last bits: a law and its
        # saved copy must not.
        self.axes, self.offset, self.spread, self.tau = (
            nn.Parameter(contiguous_copy(t)) for t in (axes, offset, spread, tau)
        )

    @property
    def subspace_weights(self) -> Tensor:
        """Probabilities w_k, with shape (K,)."""
        return self.head.subspace_weights

    @property
    def mode_weights(self) -> Tensor:
        """Probabilities pi_kl, zero where padded, with shape (K, n)."""
        return self.head.mode_weights

    @property
    def config(self) -> dict[str, Any]:
        """Shapes of the law: those of the head, and D."""
        return {"dim": self.dim, "tail": len(self.spread), "head": self.head.config}

    def check_loaded(self) -> None:
        """Refuse axes, and bases of the head, that are not orthonormal."""
        super().check_loaded()
        check_orthonormal("axes", self.axes[None], [self.axes.shape[1]])

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the law: the head's, and the axes, offset, spreads and tau."""
        return self.head.num_parameters + self.axes.numel() + self.dim + len(self.spread) + 1

    @property
    def noise_floor(self) -> float:
        """Smallest standard deviation of any direction off the head's subspaces, in data units."""
        return float(self._noise.detach().abs().min())

    @property
    def _noise(self) -> Tensor:
        """Every standard deviation that must not be zero at gamma = 0."""
        noise = torch.cat([self.head.tau, self.spread])
        return torch.cat([noise, self.tau[None]]) if self._left else noise

    @property
    def _left(self) -> int:
        """How many directions neither head nor tail holds."""
        return self.dim - self.axes.shape[1]

    def subspace(self, k: int) -> Subspace:
        """Subspace k of the head, its basis and offset in R^D."""
        part = self.head.subspace(k)
        with torch.no_grad():
            H = self.axes[:, : self.head.dim]
            return Subspace(
                weight=part.weight,
                basis=H @ part.basis,
                offset=self.offset + H @ part.offset,
                tau=part.tau,
                mode_weights=part.mode_weights,
                means=part.means,
                factors=part.factors,
            )

    @torch.no_grad()
    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode.

        It holds all axes of the law, and a variance below the noise in the directions that are left is raised to it.
        """
        whole = self.head.moment_matched().subspace(0)
        factor = whole.basis.double() @ whole.factors[0].double()
        core = factor @ factor.T + whole.tau**2 * torch.eye(self.head.dim, dtype=factor.dtype, device=factor.device)
        variance, Q = torch.linalg.eigh(core)
        H, T = self.axes.double().tensor_split([self.head.dim], dim=1)
        variance = torch.cat([variance, self.spread.double().square()])
        floor = self.tau.double().square() if self._left else variance.min()
        gaussian = Subspace(
            weight=1.0,
            basis=torch.cat([H @ Q, T], 1),
            offset=self.offset.double() + H @ whole.offset.double(),
            tau=float(floor.sqrt()),
            mode_weights=torch.ones(1, dtype=H.dtype, device=H.device),
            means=torch.zeros(1, len(variance), dtype=H.dtype, device=H.device),
            factors=((variance - floor).clamp(min=0).sqrt().diag(),),
        )
        return MoLRMoG.from_subspaces([gaussian], dtype=self.axes.dtype).requires_grad_(False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the law that `config` describes, before its tensors are read."""
        head, dim, tail = MoLRMoG.from_config(config["head"]), config["dim"], config["tail"]
        return cls(head, torch.eye(dim, head.dim + tail), torch.zeros(dim), torch.zeros(tail), torch.zeros(()))

    def summary(self) -> list[tuple[str, str]]:
        """What the law is, as name and value."""
        first, *rest = super().summary()
        form = f"mixture in {self.head.dim} leading coordinates, Gaussian in {len(self.spread)} more"
        return [first, ("form", form), *rest]

    @torch.no_grad()
    def scaled(self, c: float, shift: Tensor | None = None) -> Self:
        """The law of c x_0 + shift, frozen, with shift (D,); its scaling is exact where c is a power of two."""
        c = real(c, "c")
        offset = c * self.offset
        if shift is not None:
            offset = (offset.double() + shift.to(offset.device)).to(offset.dtype)
        scaled = type(self)(self.head.scaled(c), self.axes, offset, abs(c) * self.spread, abs(c) * self.tau)
        return scaled.requires_grad_(False)

    @torch.no_grad()
    def _alone(self, k: int) -> Self:
        alone = type(self)(self.head.alone(k), self.axes, self.offset, self.spread, self.tau)
        return alone.requires_grad_(False)

    # --- what it says of rows

    def _log_prob(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        def log_prob(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            parts = self._split(x, s, gamma)
            return (self.head._log_prob(parts.z, s, gamma) + self._log_tail(parts),)

        return self._settled(log_prob, x, s, gamma, _SCORE, _faint_density)[0]

    def _score(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        def score(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            parts = self._split(x, s, gamma)
            head = self.head._score(parts.z, s, gamma).to(x.dtype)
            up = torch.cat([head, -parts.y / parts.variance], 1) @ parts.frame.axes.T
            return (up - parts.rest / parts.v if self._left else up,)

        return self._settled(score, x, s, gamma, _SCORE, _faint_score)[0]

    def _denoise(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        def denoise(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            parts = self._split(x, s, gamma)
            return (self._compose(self.head._denoise(parts.z, s, gamma), parts),)

        return self._settled(denoise, x, s, gamma, _DENOISER, self._faint_denoiser)[0]

    def _responsibilities(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        def responsibilities(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            return (self.head._responsibilities(self._split(x, s, gamma).z, s, gamma),)

        return self._settled(responsibilities, x, s, gamma, _DENOISER)[0]

    def _posterior(self, x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def posterior(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = self._split(x, s, gamma)
            mean, responsibilities, log_prob = self.head._posterior(parts.z, s, gamma)
            return self._compose(mean, parts), responsibilities, log_prob + self._log_tail(parts)

        def faint(norm2: Tensor, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
            return self._faint_denoiser(norm2, ratio, out) | _faint_density(norm2, ratio, out)

        mean, responsibilities, log_prob = self._settled(posterior, x, s, gamma, _SCORE, faint)
        return mean, responsibilities, log_prob

    def _divergence(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        parts = self._split(x, s, gamma)
        tail = parts.variance.reciprocal().sum(1)
        left = self._left / parts.v[:, 0] if self._left else 0.0
        return self.head._divergence(parts.z, s, gamma) - tail - left

    def _posterior_variance(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        parts = self._split(x, s, gamma)
        axes = parts.frame.axes
        H, T = axes.tensor_split([self.head.dim], dim=1)
        along = parts.frame.psi * parts.gamma2 / parts.variance  # (b or 1, p)
        total = self.head._posterior_variance(parts.z, s, gamma, onto=H).to(x.dtype) + along @ T.square().T
        if self._left:
            total = total + parts.frame.tau2 * parts.gamma2 / parts.v * (1 - axes.square().sum(1))
        return total

    def _posterior_draw(self, x: Tensor, s: Tensor, gamma: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        parts = self._split(x, s, gamma)
        frame, s1, gamma1 = parts.frame, parts.s, parts.gamma2.sqrt()
        xi = self.head._posterior_draw(parts.z, s, gamma, n, generator).to(x.dtype).transpose(0, 1)  # (n, b, q)
        noise = normal((n, *parts.y.shape), generator, like=x)
        eta = s1 * frame.psi / parts.variance * parts.y + frame.psi.sqrt() * gamma1 / parts.variance.sqrt() * noise
        x0 = frame.offset + torch.cat([xi, eta], 2) @ frame.axes.T
        if self._left:
            noise = self._off_axes(frame, normal((n, *x.shape), generator, like=x))
            x0 = x0 + s1 * frame.tau2 / parts.v * parts.rest + frame.tau2.sqrt() * gamma1 / parts.v.sqrt() * noise
        return x0.transpose(0, 1)

    def _draw(self, k: Tensor, mode: Tensor, s: float, gamma: float, generator: torch.Generator | None) -> Tensor:
        xi = self.head._draw(k, mode, s, gamma, generator)
        frame = self._frames()(xi.dtype)
        eta = normal((len(k), len(self.spread)), generator, like=xi) * (s * s * frame.psi + gamma**2).sqrt()
        x = s * frame.offset + torch.cat([xi, eta], 1) @ frame.axes.T
        if self._left:
            rest = self._off_axes(frame, normal((len(k), self.dim), generator, like=x))
            x = x + rest * (s * s * frame.tau2 + gamma**2).sqrt()
        return x

    def _split(self, x: Tensor, s: Tensor, gamma: Tensor) -> Split:
        """Rows (b, D) in the coordinates of the law; s and gamma with shape (b or 1,), float64."""
        frames = self._frames()
        frame = frames(x.dtype)
        s1, gamma1 = s[:, None].to(x.dtype), gamma[:, None].to(x.dtype)
        centred = x - s1 * frame.offset
        coordinates = centred @ frame.axes
        rest = centred - coordinates @ frame.axes.T if self._left else centred
        z, y = coordinates.tensor_split([self.head.dim], dim=1)
        if self._head_needs_float64(centred, s1, gamma1):
            exact = frames(torch.float64)
            z = (x.double() - s[:, None] * exact.offset) @ exact.axes[:, : self.head.dim]
        gamma2 = gamma1.square()
        variance, v = (s1.square() * each + gamma2 for each in (frame.psi, frame.tau2))
        return Split(frame, z, y, rest, s1, gamma2, variance, v)

    def _compose(self, head: Tensor, parts: Split) -> Tensor:
        """E[x_0 | x_t] with shape (b, D) from E[xi | x_t] with shape (b, q)."""
        frame = parts.frame
        tail = parts.s * frame.psi / parts.variance * parts.y
        up = frame.offset + torch.cat([head.to(tail.dtype), tail], 1) @ frame.axes.T
        return up + parts.s * frame.tau2 / parts.v * parts.rest if self._left else up

    def _log_tail(self, parts: Split) -> Tensor:
        """Log-density (b,) of what the head does not hold."""
        v = parts.v
        tail = (parts.y.square() / parts.variance + (2 * torch.pi * parts.variance).log()).sum(1)
        # Where nothing is left tau counts for nothing, but its gradient is zero rather than missing.
        left = parts.rest.square().sum(1, keepdim=True) / v + self._left * (2 * torch.pi * v).log()
        return -0.5 * (tail + (left if self._left else 0 * v)[:, 0])

    def _off_axes(self, frame: Frame, x: Tensor) -> Tensor:
        """The part of x that neither head nor tail holds."""
        return x - x @ frame.axes @ frame.axes.T

    # --- precision

    def _settled(
        self,
        compute: Compute,
        x: Tensor,
        s: Tensor,
        gamma: Tensor,
        limit: float,
        faint: Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """`compute` of the rows; of float32 rows whose digits do not suffice, each by itself, in float64.

        Digits do not suffice where (|x - s b|^2 + |s b|^2) / v exceeds `limit`, v the smallest variance off the head,
        and where the first result is `faint`, small beside its rounding. The head looks after its own digits.
        """
        if x.dtype == torch.float64:
            return compute(x, s, gamma)
        frame = self._frames()(x.dtype)
        s1, s2 = s.to(x.dtype)[:, None], s.to(x.dtype).square()
        variances = torch.cat([frame.psi, frame.tau2[None]]) if self._left else frame.psi
        smallest = variances.min() if len(variances) else torch.inf
        norm2 = (x - s1 * frame.offset).square().sum(1) + s2 * frame.offset.square().sum()
        ratio = norm2 / (s2 * smallest + gamma.to(x.dtype).square())
        if values_hidden(ratio):
            return in_float64(compute, x, s, gamma)
        norm2, ratio = norm2.detach(), ratio.detach()
        beyond = ~((ratio <= limit) & (norm2 < _LARGEST))  # NaN, too
        few = torch.is_grad_enabled() and self.dim <= _FEW  # as in a MoLRMoG: there is no second look with derivatives
        if few or int(beyond.sum()) > (0 if torch.is_grad_enabled() else MANY) * len(x):
            return in_float64(compute, x, s, gamma)
        out = compute(x, s, gamma)
        if torch.is_grad_enabled():
            return out
        if faint is not None:
            beyond |= faint(norm2, ratio, out)
        refine_(out, compute, x, s, gamma, beyond)
        return out

    def _faint_denoiser(self, norm2: Tensor, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
        """Which posterior means (B, D) are small beside the law, whose numbers they are sums of."""
        frame = self._frames()(torch.float64)
        own = frame.offset.square().sum() + frame.psi.sum() + self._left * frame.tau2
        size = float(own.detach().sqrt()) + self.head.eigenform().extent
        return torch.linalg.vector_norm(out[0], dim=1) < 5e-3 * size

    def _head_needs_float64(self, centred: Tensor, s: Tensor, gamma: Tensor) -> bool:
        """Whether the head's responsibilities need its coordinates in float64; s and gamma with shape (b or 1, 1)."""
        if centred.dtype == torch.float64 or not len(centred):
            return False
        if values_hidden(centred, s, gamma, self.head.tau):
            return True
        with torch.no_grad():
            v = s.square() * self.head.tau.to(s.dtype).square().min() + gamma.square()
            return not float((centred.square().sum(1, keepdim=True) / v).max()) <= _HEAD

    def _frames(self) -> Callable[[torch.dtype], Frame]:
        """The frame in any dtype, with derivatives where they are wanted."""
        own = [getattr(self, name) for name in self.parameter_names]
        return self._prepared(_frame, own)

    @property
    def _tensors(self) -> list[Tensor]:
        return [*(getattr(self, name) for name in self.parameter_names), *self.head._tensors]

    @property
    def _sample_numbers(self) -> int:
        return self.head._sample_numbers + 4 * self.dim

    def _row_numbers(self, own_levels: bool = False, variance_of: int = 0) -> int:
        return 3 * self.dim + self.head._row_numbers(own_levels, variance_of)


def _frame(parameters: Sequence[Tensor], differentiable: bool) -> Frame:
    axes, offset, spread, tau = parameters
    return Frame(orthonormal(axes), offset.double(), spread.double().square(), tau.double().square())


def with_tail(head: MoLRMoG, axes: Tensor, offset: Tensor, spread: Tensor, tau: Tensor) -> HeadTail:
    """The law of b + H xi + T eta + tau e, frozen, where xi follows `head`; arguments as of :class:`HeadTail`."""
    return HeadTail(head, axes, offset, spread, tau).requires_grad_(False)


def _faint_density(norm2: Tensor, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which log-densities (B,) lie near zero, where rounding is more than 1e-4 of them."""
    return 1e-2 * ratio.sqrt() > out[-1].abs()


def _faint_score(norm2: Tensor, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which scores (B, D) are small beside |x| / v, whose rounding they carry."""
    return 4e-3 * ratio > norm2.sqrt() * torch.linalg.vector_norm(out[0], dim=1)
