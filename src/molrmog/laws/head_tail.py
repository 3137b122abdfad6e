"""A law in the leading coordinates, a shared Gaussian on the rest.

A rotation commutes with isotropic noise, so a law on some orthonormal coordinates times an independent Gaussian on the
others is again closed at every noise level:

    x_0 = b + H xi + T eta + tau e_rest,      [H T] orthonormal,  xi ~ MoLR-MoG in R^q,  eta ~ N(0, diag psi) in R^p,

with isotropic variance tau^2 in the D - q - p directions left. With y = T^T (x - s b) and v = s^2 tau^2 + gamma^2,

    log p_t(x) = log p_t^head(H^T (x - s b)) + sum_j log N(y_j; 0, s^2 psi_j + gamma^2) + log N(rest; 0, v I)
    score      = H score^head - T y / (s^2 psi + gamma^2) - rest / v
    denoise    = b + H denoise^head + T ( s psi y / (s^2 psi + gamma^2) ) + (s tau^2 / v) rest

The gates depend on the head alone. Real images have a smoothly decaying spectrum, which one isotropic tau_k per
subspace describes crudely; the tail holds it exactly, at the cost of one product with [H T] down and one up.

References:
    The composition is this library's; its head is arXiv 2601.01475, section 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.laws.base import Law, Noise, Posterior, Samples, by_rows, normal, rows_per_chunk, values_hidden
from molrmog.laws.molrmog import MoLRMoG, Subspace
from molrmog.laws.responsibilities import BETWEEN_MODES, NATS
from molrmog.models import Expert, refuse_expert
from molrmog.saving import load_model


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
        p = axes.shape[1] - head.dim
        if p < 0 or spread.shape != (p,) or offset.shape != axes.shape[:1] or tau.shape != ():
            raise ValueError(
                f"a head over R^{head.dim}, axes {tuple(axes.shape)}, offset {tuple(offset.shape)}, spread "
                f"{tuple(spread.shape)} and tau {tuple(tau.shape)} do not fit: pass (D, q + p), (D,), (p,) and ()"
            )
        self.head = head
        self.dim, self.latent_dims, self.modes = len(offset), head.latent_dims, head.modes
        self.axes = nn.Parameter(axes)
        self.offset = nn.Parameter(offset)
        self.spread = nn.Parameter(spread)
        self.tau = nn.Parameter(tau)

    @property
    def subspace_of(self) -> Tensor:
        """Subspace of each column of the responsibilities, with shape (sum n_k,)."""
        return self.head.subspace_of

    @property
    def subspace_weights(self) -> Tensor:
        """Probabilities w_k, with shape (K,)."""
        return self.head.subspace_weights

    @property
    def config(self) -> dict[str, Any]:
        """Shapes of the law: those of the head, and D."""
        return {"dim": self.dim, "tail": len(self.spread), "head": self.head.config}

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

    @property
    def head_dim(self) -> int | None:
        """How many leading coordinates the mixture lives in."""
        return self.head.dim

    def summary(self) -> list[tuple[str, str]]:
        """What the law is, as name and value."""
        first, *rest = super().summary()
        form = f"mixture in {self.head.dim} leading coordinates, Gaussian in {len(self.spread)} more"
        return [first, ("form", form), *rest]

    def _alone(self, k: int) -> Self:
        return type(self)(self.head.alone(k), self.axes, self.offset, self.spread, self.tau)

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

    def log_prob(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Log p_t(x) in nats, with shape (B,); arguments and errors as in :meth:`MoLRMoG.log_prob`."""

        def log_prob(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            z, y, rest, variance, v = self._split(x, s, gamma)
            return (self.head.log_prob(z, s, gamma) + self._log_tail(y, rest, variance, v),)

        return self._by_rows(log_prob, x, s, gamma)[0]

    def score(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Gradient of log p_t at x, with shape (B, D); arguments and errors as in :meth:`MoLRMoG.log_prob`."""

        def score(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            z, y, rest, variance, v = self._split(x, s, gamma)
            up = torch.cat([self.head.score(z, s, gamma).to(y.dtype), -y / variance], 1) @ self._cast(self.axes, x).T
            return (up - rest / v if self._left else up,)

        return self._by_rows(score, x, s, gamma)[0]

    def denoise(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t = x], with shape (B, D); arguments and errors as in :meth:`MoLRMoG.log_prob`."""
        refuse_expert(self, expert, "wrap it in a ConditionalLaw, or pass none")

        def denoise(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            z, y, rest, variance, v = self._split(x, s, gamma)
            return (self._compose(x, self.head.denoise(z, s, gamma), s, y, rest, variance, v),)

        return self._by_rows(denoise, x, s, gamma)[0]

    def divergence(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Divergence of the score at x, with shape (B,); arguments and errors as in :meth:`MoLRMoG.log_prob`."""

        def divergence(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            z, _, _, variance, v = self._split(x, s, gamma)
            tail = variance.reciprocal().sum(1)
            return (self.head.divergence(z, s, gamma) - tail - (self._left / v[:, 0] if self._left else 0.0),)

        return self._by_rows(divergence, x, s, gamma)[0]

    def posterior(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Posterior:
        """Distribution of x_0 given x_t = x; arguments and errors as in :meth:`MoLRMoG.log_prob`."""

        def posterior(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            z, y, rest, variance, v = self._split(x, s, gamma)
            head = self.head.posterior(z, s, gamma)
            mean = self._compose(x, head.mean, s, y, rest, variance, v)
            return mean, head.responsibilities, head.log_prob + self._log_tail(y, rest, variance, v)

        mean, responsibilities, log_prob = self._by_rows(posterior, x, s, gamma)
        return Posterior(mean, responsibilities, log_prob, self, (x, s, gamma))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        s: float = 1.0,
        gamma: float = 0.0,
        subspace: int | Tensor | None = None,
    ) -> Samples:
        """Draw exact samples of x_t, by default of x_0; arguments and errors as in :meth:`MoLRMoG.sample`."""
        head = self.head.sample(n, generator, s=s, gamma=gamma, subspace=subspace)
        eta = normal((n, len(self.spread)), generator, like=head.x) * (s * s * self.spread**2 + gamma**2).sqrt()
        x = s * self.offset + torch.cat([head.x, eta], 1) @ self.axes.T
        if self._left:
            x = x + self._off_axes(normal((n, self.dim), generator, like=x)) * (s * s * self.tau**2 + gamma**2).sqrt()
        return Samples(x, head.subspace, head.mode)

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

    @classmethod
    def from_saved(cls, config: dict[str, Any], tensors: dict[str, Tensor], where: str = "the model") -> Self:
        """Build a law from a saved configuration and its tensors; see :meth:`from_pretrained`."""
        if config.get("law") != "HeadTail":
            raise ValueError(f"{where} holds a {config.get('law')} law, not a HeadTail: read it with molrmog.load")
        inside = {name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")}
        try:
            head = MoLRMoG.from_saved({"law": "MoLRMoG", **config["head"]}, inside, where)
            parts = [tensors[name] for name in ("axes", "offset", "spread", "tau")]
        except KeyError as error:
            raise ValueError(f"{where} lacks {error}: save the model again") from None
        try:
            return cls(head, *parts).requires_grad_(False)
        except ValueError as error:
            raise ValueError(f"the tensors in {where} do not fit together ({error})") from None

    def _split(self, x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Coordinates (B, q) and (B, p), the rest (B, D), tail variances (B or 1, p) and v (B or 1, 1)."""
        axes, offset, spread, tau = (self._cast(t, x) for t in (self.axes, self.offset, self.spread, self.tau))
        s, gamma = s[:, None], gamma[:, None]
        centred = x - s * offset
        coordinates = centred @ axes
        rest = centred - coordinates @ axes.T if self._left else centred
        z, y = coordinates.tensor_split([self.head.dim], dim=1)
        if self._rounds(centred, s, gamma):
            z = (x.double() - s.double() * self.offset.double()) @ self.axes[:, : self.head.dim].double()
        return z, y, rest, s.square() * spread.square() + gamma.square(), s.square() * tau.square() + gamma.square()

    def _compose(
        self, x: Tensor, head: Tensor, s: Tensor, y: Tensor, rest: Tensor, variance: Tensor, v: Tensor
    ) -> Tensor:
        """E[x_0 | x_t] from E[xi | x_t] (B, q) and what :meth:`_split` returned."""
        axes, offset, spread, tau = (self._cast(t, x) for t in (self.axes, self.offset, self.spread, self.tau))
        s = s[:, None]
        up = offset + torch.cat([head.to(y.dtype), s * spread.square() / variance * y], 1) @ axes.T
        return up + s * tau.square() / v * rest if self._left else up

    def _log_tail(self, y: Tensor, rest: Tensor, variance: Tensor, v: Tensor) -> Tensor:
        """Log-density (B,) of what the head does not hold, from what :meth:`_split` returned."""
        tail = (y.square() / variance + (2 * torch.pi * variance).log()).sum(1)
        # Where nothing is left tau counts for nothing, but its gradient is zero rather than missing.
        left = rest.square().sum(1, keepdim=True) / v + self._left * (2 * torch.pi * v).log() if self._left else 0 * v
        return -0.5 * (tail + left[:, 0])

    def _rounds(self, centred: Tensor, s: Tensor, gamma: Tensor) -> bool:
        """Whether the head's gates need its coordinates in float64; centred (B, D), s and gamma (B or 1, 1)."""
        if centred.dtype == torch.float64 or not len(centred):
            return False
        if values_hidden(centred, s, gamma, self.head.tau):
            return True
        with torch.no_grad():
            v = s.square() * self.head.tau.square().min() + gamma.square()
            return float((centred.square().sum(1, keepdim=True) / v).max()) * BETWEEN_MODES > NATS

    def _posterior_variance(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        def variance(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            z, y, _, tail, v = self._split(x, s, gamma)
            axes = self._cast(self.axes, x)
            H, T = axes.tensor_split([self.head.dim], dim=1)
            gamma2 = gamma[:, None].square()
            along = self._cast(self.spread, x).square() * gamma2 / tail  # (B or 1, p)
            total = self.head._posterior_variance(z, s, gamma, onto=H).to(y.dtype) + along @ T.square().T
            if self._left:
                left = self._cast(self.tau, x).square() * gamma2 / v  # (B or 1, 1)
                total = total + left * (1 - axes.square().sum(1))
            return (total,)

        return self._by_rows(variance, x, s, gamma)[0]

    @torch.no_grad()
    def _posterior_sample(self, x: Tensor, s: Noise, gamma: Noise, n: int, generator: torch.Generator | None) -> Tensor:
        def sample(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            z, y, rest, tail, v = self._split(x, s, gamma)
            axes, offset, spread, tau = (self._cast(t, x) for t in (self.axes, self.offset, self.spread, self.tau))
            s1, gamma1 = s[:, None], gamma[:, None]
            xi = self.head._posterior_sample(z, s, gamma, n, generator)  # (n, B, q)
            noise = normal((n, *y.shape), generator, like=y)
            eta = s1 * spread.square() / tail * y + spread * gamma1 / tail.sqrt() * noise
            x0 = offset + torch.cat([xi.to(y.dtype), eta], 2) @ axes.T
            if self._left:
                noise = self._off_axes(normal((n, *x.shape), generator, like=x))
                x0 = x0 + s1 * tau.square() / v * rest + tau * gamma1 / v.sqrt() * noise
            return (x0.transpose(0, 1),)

        return self._by_rows(sample, x, s, gamma, width=3 * n * self.dim)[0].transpose(0, 1)

    def _off_axes(self, x: Tensor) -> Tensor:
        """The part of x that neither head nor tail holds."""
        axes = self._cast(self.axes, x)
        return x - x @ axes @ axes.T

    def _cast(self, parameter: Tensor, like: Tensor) -> Tensor:
        return parameter.to(like.dtype)

    def _by_rows(self, compute: Any, x: Tensor, s: Noise, gamma: Noise, width: int | None = None) -> tuple[Tensor, ...]:
        """Check the arguments and apply `compute` to chunks of rows; `width` as the numbers it holds per row."""
        size = rows_per_chunk(self.axes.device, width or 3 * self.dim)
        return by_rows(compute, x, s, gamma, dim=self.dim, noise=self._noise, parameters=self.parameters(), size=size)


def load_law(path: str | Path) -> MoLRMoG | HeadTail:
    """Read a law of either kind from a folder, or from the Hugging Face hub.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model is corrupt or of another kind.
    """
    config, tensors = load_model(path)
    kind = HeadTail if config.get("law") == "HeadTail" else MoLRMoG
    return kind.from_saved(config, tensors, where=str(path))
