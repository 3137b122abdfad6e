"""The law: a mixture of low-rank Gaussians on a union of subspaces (MoLR-MoG), exact at every noise level.

Data.  k ~ Cat(w) picks a subspace, l | k ~ Cat(pi_k) a mode inside it, and

    z | k,l ~ N(mu_kl, U_kl U_kl^T),      x_0 = b_k + A_k z + tau_k e,      A_k^T A_k = I,  e ~ N(0, I_D).

Noise.  x_t = s x_0 + gamma eps stays in the family: with c = (k, l), m_c = b_k + A_k mu_c, v_k = s^2 tau_k^2 + gamma^2,

    x_t | c ~ N( s m_c,  s^2 A_k U_c U_c^T A_k^T + v_k I ).

With the eigenform U_c U_c^T = V_c diag(lam_c) V_c^T, computed once per parameter change, a change of noise level only
shifts eigenvalues, Lam_c = s^2 lam_c + v_k, and nothing is factorised per noise level:

    h_k   = A_k^T (x - s b_k),    rho2_k = |x - s b_k|^2 - |h_k|^2        latent and off-subspace energy of a subspace
    w_c   = Lam_c^-1/2 V_c^T (h_k - s mu_c)                               whitened latent of a mode, in R^{d_k}
    log N_c(x) = -1/2 [ |w_c|^2 + rho2_k / v_k + sum_j log Lam_cj + (D - d_k) log v_k + D log 2 pi ]
    r_c(x)     = softmax_c [ log w_k + log pi_c + log N_c(x) ]            the gate; log p_t(x) is the logsumexp
    E[z | x, c] = mu_c + s V_c lam_c Lam_c^-1/2 w_c                       the latent posterior mean

With zeta_k = sum_l r_kl E[z | x, kl] and R_k = sum_l r_kl, everything goes up to R^D once per subspace:

    score   = sum_k (1 / v_k) [ s (R_k b_k + A_k zeta_k) - R_k x ]
    denoise = sum_k (1 / v_k) [ gamma^2 (R_k b_k + A_k zeta_k) + s tau_k^2 R_k x ]

so a row costs one product with all A_k down, d_k^2 numbers per mode, and one product up.

Precision.  rho2 cancels when v is small against |x|^2. Densities and posteriors of float32 rows are then weighed in
float64; scores and denoisers only where a row lies between experts, where gates matter. Gates keep to 1e-3 nats.

Gradients.  V_c is held constant: V^T U U^T V = diag(lam) + E stays differentiable with E zero in value but not in
derivative, and E enters (s^2 U U^T + v)^-1 by its Neumann series. First and second derivatives are exact, equal
eigenvalues and padding included, where differentiating an eigenbasis would not be.

References:
    Yang, Li, Jiang, Chen, Li, "Multi-Subspace Multi-Modal Modeling for Diffusion Models: Estimation, Convergence and
    Mixture of Experts", ICLR 2026, arXiv 2601.01475. There b = 0, tau = 0, w_k = 1/K.
    Wang et al., "Diffusion models learn low-dimensional distributions via subspace clustering", arXiv 2409.02426: the
    special case n_k = 1, mu = 0 (MoLRG).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from molrmog.laws.base import (
    Law,
    Noise,
    Posterior,
    Samples,
    by_rows,
    compute_dtype,
    draw,
    noise_levels,
    normal,
    rows_per_chunk,
    values_hidden,
)
from molrmog.laws.responsibilities import DECIDED, NATS, Evidence, Frame, lift_means, weigh
from molrmog.laws.top_modes import denoise_by_top_modes
from molrmog.models import Expert, refuse_expert


@dataclass(frozen=True)
class Subspace:
    """One subspace of a law, without padding.

    Attributes:
        weight: probability w_k of the subspace.
        basis: A_k with orthonormal columns, with shape (D, d_k).
        offset: b_k, with shape (D,).
        tau: standard deviation of the off-subspace noise, in data units.
        mode_weights: pi_k, with shape (n_k,).
        means: mu_kl, with shape (n_k, d_k).
        factors: U_kl, each with shape (d_k, r_kl).
    """

    weight: float
    basis: Tensor
    offset: Tensor
    tau: float
    mode_weights: Tensor
    means: Tensor
    factors: tuple[Tensor, ...]


class MoLRMoG(Law):
    """A mixture of low-rank Gaussians on a union of K linear subspaces, and its noised versions.

    The shapes of the subspaces may differ; parameters are stored padded with zeros, which every method keeps out.
    A law that comes out of a fit or a file does not ask for gradients; call `law.requires_grad_()` to train it.
    What depends on the parameters alone is cached: edit them in place under `torch.no_grad()`, by an optimiser or by
    `load_state_dict`, not through `.data`, which hides the edit from the cache.

    Attributes:
        basis: A_k with orthonormal columns, side by side, with shape (D, K, d).
        offset: b_k, with shape (K, D).
        mean: mu_kl, with shape (K, n, d).
        factor: U_kl with U_kl U_kl^T the latent covariance, with shape (K, n, d, r).
        tau: off-subspace noise, standard deviation in data units (its sign does not matter), with shape (K,).
        subspace_logits: unnormalised log w_k, with shape (K,).
        mode_logits: unnormalised log pi_kl, with shape (K, n).

    Example:
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), rank=1, noise=0.1, seed=0)
        >>> x = law.sample(5, torch.Generator().manual_seed(0)).x
        >>> law.score(x, s=0.8, gamma=0.6).shape
        torch.Size([5, 8])

    References:
        arXiv 2601.01475, section 3.
    """

    has_top_modes = True
    learnable: ClassVar[Mapping[str, str]] = {
        "basis": "basis",
        "offset": "offset",
        "mean": "mean",
        "factor": "factor",
        "tau": "tau",
        "subspace_weights": "subspace_logits",
        "mode_weights": "mode_logits",
    }

    def __init__(
        self,
        dim: int,
        latent_dims: Sequence[int],
        modes: Sequence[int],
        ranks: Sequence[Sequence[int]] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocate a law; its parameters are zero but for the bases, which are coordinate axes.

        Args:
            dim: dimension D of the data.
            latent_dims: d_k of each subspace, at most D.
            modes: n_k of each subspace.
            ranks: r_kl of each mode, at most d_k; d_k where not given.
            dtype: of the parameters; torch's default where not given.
            device: of the parameters.

        Raises:
            ValueError: the shapes do not fit together.
        """
        super().__init__()
        if ranks is None:
            ranks = [[d] * n for d, n in zip(latent_dims, modes, strict=False)]
        _check_shapes(dim, latent_dims, modes, ranks)
        self.dim = dim
        self.latent_dims = tuple(latent_dims)
        self.modes = tuple(modes)
        self.ranks = tuple(tuple(row) for row in ranks)
        K, d, n = len(self.modes), max(self.latent_dims), max(self.modes)
        r = max(max(row) for row in self.ranks)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

        self.basis = zeros(dim, K, d)
        self.offset = zeros(K, dim)
        self.mean = zeros(K, n, d)
        self.factor = zeros(K, n, d, r)
        self.tau = zeros(K)
        self.subspace_logits = zeros(K)
        self.mode_logits = zeros(K, n)
        with torch.no_grad():
            for k, d_k in enumerate(self.latent_dims):
                self.basis[:d_k, k, :d_k] = torch.eye(d_k)

        real_mode = torch.arange(n) < torch.tensor(self.modes)[:, None]
        self.register_buffer("_real_mode", real_mode.to(device), persistent=False)
        self._cache: dict[torch.dtype, tuple[object, Frame, Sequence[Tensor]]] = {}

    @property
    def subspace_of(self) -> Tensor:
        """Subspace of each column of the responsibilities, with shape (sum n_k,)."""
        return self._real_mode_mask.nonzero()[:, 0]

    @property
    def mode_of(self) -> Tensor:
        """Mode inside its subspace of each column of the responsibilities, with shape (sum n_k,)."""
        return self._real_mode_mask.nonzero()[:, 1]

    @property
    def config(self) -> dict[str, Any]:
        """What builds the law: the constructor's arguments."""
        return {"dim": self.dim, "latent_dims": self.latent_dims, "modes": self.modes, "ranks": self.ranks}

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the law: A, b, mu, U, tau and the weights, padding left out."""
        per_subspace = zip(self.latent_dims, self.modes, self.ranks, strict=True)
        return sum(self.dim * (d + 1) + n * (d + 1) + d * sum(ranks) + 2 for d, n, ranks in per_subspace)

    @property
    def noise_floor(self) -> float:
        """Smallest standard deviation tau_k off a subspace, in data units."""
        return float(self.tau.detach().abs().min())

    @property
    def subspace_weights(self) -> Tensor:
        """Probabilities w_k, with shape (K,)."""
        return self.subspace_logits.softmax(0)

    @property
    def mode_weights(self) -> Tensor:
        """Probabilities pi_kl, zero where padded, with shape (K, n)."""
        return self.mode_logits.masked_fill(~self._real_mode_mask, -torch.inf).softmax(1)

    @property
    def _filled(self) -> list[bool]:
        return [d == self.dim for d in self.latent_dims]

    @property
    def _real_mode_mask(self) -> Tensor:
        return cast(Tensor, self._buffers["_real_mode"])

    def subspace(self, k: int) -> Subspace:
        """Subspace k without padding, detached from the law."""
        d, n = self.latent_dims[k], self.modes[k]
        with torch.no_grad():
            return Subspace(
                weight=float(self.subspace_weights[k]),
                basis=self.basis[:, k, :d].clone(),
                offset=self.offset[k].clone(),
                tau=float(self.tau[k].abs()),
                mode_weights=self.mode_weights[k, :n],
                means=self.mean[k, :n, :d].clone(),
                factors=tuple(self.factor[k, mode, :d, : self.ranks[k][mode]].clone() for mode in range(n)),
            )

    def extra_repr(self) -> str:
        """Shapes of the law, for `repr`."""
        return f"dim={self.dim}, latent_dims={self.latent_dims}, modes={self.modes}"

    @classmethod
    def from_subspaces(cls, subspaces: Sequence[Subspace], *, dtype: torch.dtype | None = None) -> MoLRMoG:
        """Build a law from its parts, of any shapes.

        Args:
            subspaces: each with orthonormal columns in its basis; weights need not be normalised.
            dtype: of the parameters; that of the first basis where not given.

        Raises:
            ValueError: shapes do not fit together, or a basis is not orthonormal.
        """
        if not subspaces:
            raise ValueError("a law needs at least one subspace")
        first = subspaces[0].basis
        law = cls(
            dim=len(first),
            latent_dims=[part.basis.shape[1] for part in subspaces],
            modes=[len(part.means) for part in subspaces],
            ranks=[[factor.shape[1] for factor in part.factors] for part in subspaces],
            dtype=dtype or first.dtype,
            device=first.device,
        )
        with torch.no_grad():
            for k, part in enumerate(subspaces):
                d, n = law.latent_dims[k], law.modes[k]
                gram = part.basis.T @ part.basis
                if not torch.allclose(gram, torch.eye(d, dtype=gram.dtype, device=gram.device), atol=1e-2):
                    raise ValueError(f"basis {k} is not orthonormal: pass torch.linalg.qr(basis).Q")
                law.basis[:, k, :d] = part.basis
                law.offset[k] = part.offset
                law.tau[k] = part.tau
                law.subspace_logits[k] = math.log(part.weight) if part.weight > 0 else -torch.inf
                law.mode_logits[k, :n] = part.mode_weights.log()
                law.mean[k, :n, :d] = part.means
                for mode, factor in enumerate(part.factors):
                    law.factor[k, mode, :d, : factor.shape[1]] = factor
        return law

    @classmethod
    def random(
        cls,
        dim: int,
        latent_dims: Sequence[int],
        modes: Sequence[int],
        rank: int | None = None,
        noise: float = 0.05,
        seed: int = 0,
        *,
        separation: float = 3.0,
        offset: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> MoLRMoG:
        """Draw a law at random, as ground truth for experiments and tests.

        Bases are uniform, latent factors have entries N(0, 1/r), means N(0, separation^2 / d), weights are uneven.

        Args:
            dim: dimension D of the data.
            latent_dims: d_k of each subspace.
            modes: n_k of each subspace.
            rank: rank of every mode (at most d_k is used); d_k where not given.
            noise: tau of every subspace.
            seed: of the draw.
            separation: root mean square distance of a mode's mean from the offset.
            offset: the same for the offsets b_k; 0 puts every subspace through the origin, as in the paper.
            dtype: of the parameters; torch's default where not given.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if rank is not None and rank < 0:
            raise ValueError(f"rank = {rank}: pass a rank of 0 or more, or None for full rank")
        ranks = [[d if rank is None else min(rank, d)] * n for d, n in zip(latent_dims, modes, strict=False)]
        law = cls(dim, latent_dims, modes, ranks, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        with torch.no_grad():
            law.tau.fill_(noise)
            law.subspace_logits.copy_(0.5 * drawn(law.subspaces))
            for k, (d, n) in enumerate(zip(law.latent_dims, law.modes, strict=True)):
                law.basis[:, k, :d] = torch.linalg.qr(drawn(dim, d)).Q
                law.offset[k] = offset / math.sqrt(dim) * drawn(dim)
                law.mode_logits[k, :n] = 0.5 * drawn(n)
                law.mean[k, :n, :d] = separation / math.sqrt(d) * drawn(n, d)
                for mode, r in enumerate(law.ranks[k]):
                    law.factor[k, mode, :d, :r] = drawn(d, r) / math.sqrt(max(r, 1))
        return law

    @classmethod
    def from_saved(cls, config: dict[str, Any], tensors: dict[str, Tensor], where: str = "the model") -> Self:
        """Build a law from a saved configuration and its tensors; see :meth:`from_pretrained`."""
        if config.get("law") != "MoLRMoG":
            raise ValueError(f"{where} holds a {config.get('law')} law, not a MoLRMoG: read it with molrmog.load")
        try:
            law = cls(**{key: value for key, value in config.items() if key != "law"}, dtype=tensors["basis"].dtype)
            law.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the tensors in {where} do not fit its configuration ({reason})") from None
        return law.requires_grad_(False)

    def log_prob(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Log p_t(x) in nats, with shape (B,).

        Args:
            x: rows of x_t, with shape (B, D).
            s: signal scale, a float or one per row with shape (B,).
            gamma: noise standard deviation, a float or one per row with shape (B,).

        Raises:
            ValueError: wrong shapes, a negative gamma, or gamma = 0 where tau = 0 (x_0 then has no density).
        """
        return self._by_rows(lambda x, s, gamma: (self._evidence(x, s, gamma).log_prob,), x, s, gamma)[0]

    def score(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Gradient of log p_t at x, with shape (B, D); arguments and errors as in :meth:`log_prob`."""
        return self._by_rows(lambda *row: (self._settled(self._score, *row),), x, s, gamma)[0]

    def denoise(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t = x], with shape (B, D); arguments and errors as in :meth:`log_prob`."""
        refuse_expert(self, expert, "wrap it in a ConditionalLaw, or pass none")
        return self._by_rows(lambda *row: (self._settled(self._denoise, *row),), x, s, gamma)[0]

    def denoise_by_top_modes(self, x: Tensor, s: Tensor, gamma: Tensor, top: int) -> Tensor:
        """E[x_0 | x_t] from the modes that explain a row best, for rows in groups of one noise level; no gradients.

        Args:
            x: groups of noised rows, with shape (B, L, D).
            s: the signal scale of each group, with shape (B,).
            gamma: the noise standard deviation of each group, > 0, with shape (B,).
            top: how many modes; exact from sum n_k on.

        Returns:
            Tensor: with the shape of x.

        Raises:
            ValueError: wrong shapes, no modes, or no density at this noise.
        """
        if x.ndim != 3 or x.shape[2] != self.dim or not s.shape == gamma.shape == x.shape[:1] or top < 1:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, s {tuple(s.shape)}, gamma {tuple(gamma.shape)}, top = {top}: pass "
                f"(B, L, {self.dim}), (B,), (B,) and 1 mode or more"
            )
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            dtype = compute_dtype(x.dtype)
            s, gamma = noise_levels(x.to(dtype), s, gamma, self.tau)
            return denoise_by_top_modes(self._frame(dtype), x.to(dtype), s, gamma, top, filled=self._filled).to(x.dtype)

    def posterior(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Posterior:
        """Distribution of x_0 given x_t = x; arguments and errors as in :meth:`log_prob`."""

        def posterior(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            e = self._evidence(x, s, gamma)
            return self._denoise(e), e.gates[:, self._real_mode_mask], e.log_prob

        mean, responsibilities, log_prob = self._by_rows(posterior, x, s, gamma)
        return Posterior(mean, responsibilities, log_prob, self, (x, s, gamma))

    def divergence(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Divergence of the score (trace of the Hessian of log p_t) at x, with shape (B,), in closed form.

        The trace is sum_c r_c (|score_c|^2 - tr Sigma_c^-1) - |score|^2. Arguments and errors as in :meth:`log_prob`.
        """

        def divergence(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            # In float64: far from the law the two squares are large, and their difference is not.
            e = self._evidence(x.double(), s.double(), gamma.double(), route=False)
            assert e.white is not None
            norm2 = (e.white.square() / e.Lam).sum(-1) + (e.rho2 / e.v.square())[..., None]  # (K, B, n)
            trace = e.Lam.reciprocal().sum(-1) + ((self.dim - e.Lam.shape[-1]) / e.v)[..., None]
            within = (e.gates.transpose(0, 1) * (norm2 - trace)).sum((0, 2))
            return (within - self._score(e).square().sum(1),)

        return self._by_rows(divergence, x, s, gamma)[0]

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
        """Draw exact samples of x_t; by default of x_0.

        Args:
            n: number of samples.
            generator: source of randomness, for reproducibility.
            s: signal scale.
            gamma: noise standard deviation.
            subspace: draw from this subspace only, or from one per sample with shape (n,).

        Raises:
            ValueError: n is negative, or there is no such subspace.
        """
        if n < 0:
            raise ValueError(f"n = {n} samples: ask for 0 or more")
        frame = self._frame(compute_dtype(self.basis.dtype))
        weights = frame.log_weight.exp()  # (K, modes)
        if subspace is None:
            component = draw(weights.flatten().expand(1, -1), n, generator)[0]
        else:
            wanted = torch.as_tensor(subspace, device=weights.device).expand(n)
            if n and not bool(((wanted >= 0) & (wanted < self.subspaces)).all()):
                raise ValueError(f"subspace = {subspace}: this law has subspaces 0 to {self.subspaces - 1}")
            component = draw(self.mode_weights[wanted].to(weights.dtype), 1, generator)[:, 0]
            component = component + wanted * weights.shape[1]

        def chunk(component: Tensor) -> Tensor:
            k = component // weights.shape[1]
            z = self._draw_latent(frame, component, 0.0, frame.lam.sqrt().flatten(0, 1)[component], generator)
            noise = normal((len(k), self.dim), generator, like=z)
            std = (s * s * frame.tau2[k] + gamma * gamma).sqrt()
            return s * self._lift(frame, k, z) + std[:, None] * noise

        rows = rows_per_chunk(self.basis.device, 2 * self.dim + frame.lift[0, 0].numel())
        x = torch.cat([chunk(part) for part in component.split(rows)]) if n else weights.new_empty(0, self.dim)
        return Samples(x.to(self.basis.dtype), component // weights.shape[1], component % weights.shape[1])

    @torch.no_grad()
    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode.

        Its axes are the principal directions of all subspaces and mode means together, so it is exact and never
        forms a D x D matrix.
        """
        frame = self._frame(torch.float64)
        K, n, d = frame.mean.shape
        w = frame.log_weight.exp()[..., None, None]  # (K, n, 1, 1)
        down = frame.down[..., : d + 1].flatten(1)  # m_c - center = down . lifted_c
        lifted = torch.cat([frame.mean, frame.mean.new_ones(K, n, 1)], 2)[..., None]  # (K, n, d + 1, 1)
        blocks = w * lifted @ lifted.mT
        blocks[..., :d, :d] += w * frame.lift.mT @ (frame.lam[..., None] * frame.lift)
        mean = (w * lifted).sum((1, 3)).flatten()
        core = torch.block_diag(*blocks.sum(1)) - mean[:, None] * mean
        Q, R = torch.linalg.qr(down)
        variance, axes = torch.linalg.eigh(R @ core @ R.T)
        keep = variance > 1e-12 * variance[-1].clamp(min=0)
        keep[-1] = True  # a law that is one point and noise has no axis of its own, and a subspace needs one
        remainder = (w.sum((1, 2, 3)) * frame.tau2).sum()
        gaussian = Subspace(
            weight=1.0,
            basis=Q @ axes[:, keep],
            offset=frame.center + down @ mean,
            tau=float(remainder.sqrt()),
            mode_weights=torch.ones(1, dtype=Q.dtype),
            means=Q.new_zeros(1, int(keep.sum())),
            factors=(variance[keep].clamp(min=0).sqrt().diag(),),
        )
        return MoLRMoG.from_subspaces([gaussian], dtype=self.basis.dtype).requires_grad_(False)

    def _evidence(self, x: Tensor, s: Tensor, gamma: Tensor, nats: float = NATS, route: bool = True) -> Evidence:
        """How every mode explains every row; x with shape (B, D), s and gamma with shape (B or 1,)."""
        return weigh(self._frames(), x, s, gamma, filled=self._filled, nats=nats, route=route)

    def _settled(self, result: Callable[[Evidence], Tensor], x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """`result` of the evidence, where only rows that float32 leaves undecided are weighed in float64."""
        if torch.is_grad_enabled() or values_hidden(x, s, gamma):
            return result(self._evidence(x, s, gamma))
        e = self._evidence(x, s, gamma, nats=DECIDED)
        out = result(e)
        undecided = e.undecided
        if len(undecided):
            levels = [t if len(t) == 1 else t[undecided] for t in (s, gamma)]
            out[undecided] = result(self._evidence(x[undecided], levels[0], levels[1], nats=0.0))
        return out

    def _score(self, e: Evidence) -> Tensor:
        pull = (e.gates.sum(2) / e.v.T).sum(1, keepdim=True).to(e.x.dtype)  # (B, 1)
        up = lift_means(e, e.s / e.v)
        return torch.addcmul(up, pull, e.x, value=-1, out=None if e.routed is None else up)

    def _denoise(self, e: Evidence) -> Tensor:
        keep = (e.gates.sum(2) * (e.s[:, None] * e.frame.tau2 / e.v.T)).sum(1, keepdim=True).to(e.x.dtype)  # (B, 1)
        up = lift_means(e, e.gamma.square() / e.v) + e.frame.center
        return torch.addcmul(up, keep, e.x, out=None if e.routed is None else up)

    def _posterior_variance(self, x: Tensor, s: Noise, gamma: Noise, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (B, M)."""
        K, n, d, _ = self.factor.shape

        def rotated(rows: Tensor) -> Tensor:
            return rows if onto is None else rows @ onto.T.to(rows.dtype)

        def variance(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            e = self._evidence(x, s, gamma, route=False)
            assert e.pull is not None
            frame = e.frame
            gates = e.gates.transpose(0, 1).to(x.dtype)  # (K, B, n)
            mean = rotated(self._denoise(e))
            norm2 = 1.0 if onto is None else onto.to(x.dtype).square().sum(1)
            total = torch.zeros_like(mean)
            for k in range(K):  # over subspaces, so that one subspace's loadings are held at a time
                basis = rotated(frame.down[:, k, :d].T)  # (d, D)
                loadings = frame.lift[k].flatten(0, 1) @ basis  # (n d, D)
                v = e.v[k, :, None].to(x.dtype)  # (B or 1, 1)
                shrink = gamma[:, None].square() / v
                isotropic = frame.tau2[k] * shrink * gates[k].sum(1, keepdim=True)
                along = (frame.lam[k] / e.Lam[k].to(x.dtype)) * (shrink.square() * v * gates[k])[..., None]  # (B, n, d)
                total = total + isotropic * norm2 + along.flatten(1) @ loadings.square()

                z = frame.mean[k] + s[:, None, None] * torch.einsum("bni,nid->bnd", e.pull[k], e.lift[k]).to(x.dtype)
                clean = frame.center + s[:, None] * frame.tau2[k] / v * e.x + shrink * frame.down[:, k, d]
                apart = (rotated(clean) - mean)[:, None] + shrink[..., None] * (z @ basis)  # (B, n, D)
                total = total + torch.einsum("bn,bnD->bD", gates[k], apart.square())
            return (total,)

        width = 3 * K * n * d + 3 * n * (self.dim if onto is None else len(onto))
        return self._by_rows(variance, x, s, gamma, width=width)[0]

    @torch.no_grad()
    def _posterior_sample(self, x: Tensor, s: Noise, gamma: Noise, n: int, generator: torch.Generator | None) -> Tensor:
        def sample(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            e = self._evidence(x, s, gamma, route=False)
            assert e.white is not None
            frame = e.frame
            B, modes = len(x), frame.lam.shape[1]
            gates = e.gates.flatten(1)
            lost = gates.isnan().any(1)  # rows that hold NaN or inf: nothing to draw, and no other row is to suffer
            component = draw(gates.masked_fill(lost[:, None], 1.0), n, generator).flatten()  # (B n,), a row's together
            row = torch.arange(B, device=x.device).repeat_interleave(n)
            k, mode = component // modes, component % modes
            at = row if e.v.shape[1] > 1 else torch.zeros_like(row)
            s, gamma = s.expand(B)[row], gamma.expand(B)[row]  # (B n,)
            v = e.v[k, at].to(x.dtype)
            lam, Lam = frame.lam[k, mode], e.Lam[k, at, mode].to(x.dtype)  # (B n, d)
            shift = s[:, None] * lam * (e.white[k, row, mode].to(x.dtype) / Lam.sqrt())
            spread = (lam * v[:, None] / Lam).sqrt()
            clean = self._lift(frame, k, self._draw_latent(frame, component, shift, spread, generator))
            rest = e.x[row] + s[:, None] * (frame.center - clean)
            noise = normal(tuple(clean.shape), generator, like=clean)
            tau2 = frame.tau2[k]
            drawn = clean + (s * tau2 / v)[:, None] * rest + (tau2 * gamma.square() / v).sqrt()[:, None] * noise
            return (drawn.view(B, n, self.dim).masked_fill(lost[:, None, None], torch.nan),)

        K, _, d, _ = self.factor.shape
        width = n * (d * d + K * (d + 1) + 3 * self.dim)
        return self._by_rows(sample, x, s, gamma, width=width)[0].transpose(0, 1)

    def _draw_latent(
        self,
        frame: Frame,
        component: Tensor,
        shift: Tensor | float,
        spread: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """mu_c + V_c (shift + spread eps), with shape (rows, d); component with shape (rows,)."""
        eps = normal(tuple(spread.shape), generator, like=frame.mean)
        lift = frame.lift.flatten(0, 1)[component]  # (rows, d, d)
        return frame.mean.flatten(0, 1)[component] + ((shift + spread * eps)[:, None] @ lift)[:, 0]

    def _lift(self, frame: Frame, k: Tensor, z: Tensor) -> Tensor:
        """b_k + A_k z, with shape (rows, D); k with shape (rows,), z with shape (rows, d)."""
        d = z.shape[1]
        placed = z.new_zeros(len(z), len(frame.mean), d + 1)
        placed[torch.arange(len(z), device=z.device), k] = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        return frame.center + placed.flatten(1) @ frame.down[..., : d + 1].flatten(1).T

    def _frame(self, dtype: torch.dtype) -> Frame:
        """The frame in `dtype`, from the cache unless derivatives with respect to the parameters are wanted."""
        return self._frames()(dtype)

    def _frames(self) -> Callable[[torch.dtype], Frame]:
        """The frame in any dtype; with derivatives it is built once for all of them."""
        parameters = [self.basis, self.offset, self.mean, self.factor, self.tau, self.subspace_logits, self.mode_logits]
        # Inside torch.func transforms the parameters are plain tensors, differentiated without requires_grad.
        if any(type(p) is Tensor or (torch.is_grad_enabled() and p.requires_grad) for p in parameters):
            return functools.cache(self._build_frame(differentiable=True).to)
        version = [(id(p), p.data_ptr(), p.device, 0 if p.is_inference() else p._version) for p in parameters]

        def from_cache(dtype: torch.dtype) -> Frame:
            cached = self._cache.get(dtype)
            if cached is None or cached[0] != version:
                with torch.inference_mode(False), torch.no_grad():
                    frame = self._build_frame(differentiable=False).to(dtype)
                cached = self._cache[dtype] = (version, frame, parameters)  # held, so that no address is used again
            return cached[1]

        return from_cache

    def _alone(self, k: int) -> Self:
        return cast(Self, MoLRMoG.from_subspaces([replace(self.subspace(k), weight=1.0)]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cache": {}}

    def _build_frame(self, differentiable: bool) -> Frame:
        A, b, mu, U = (p.double() for p in (self.basis, self.offset, self.mean, self.factor))
        # One Newton step to A (A^T A)^-1/2: rounded to float32, a basis is orthonormal to 1e-7 only: seen at low noise.
        A = 1.5 * A - 0.5 * torch.einsum("Dki,kij->Dkj", A, torch.einsum("Dki,Dkj->kij", A, A))
        covariance = U @ U.mT  # (K, n, d, d)
        V = torch.linalg.eigh(covariance.detach()).eigenvectors
        spectral = V.mT @ covariance @ V
        lam = spectral.diagonal(dim1=2, dim2=3)
        log_weight = self.subspace_logits.double().log_softmax(0)[:, None] + (
            self.mode_logits.double().masked_fill(~self._real_mode_mask, -torch.inf).log_softmax(1)
        )
        # The center only keeps numbers small; nothing depends on it, so it carries no derivative.
        w = log_weight.detach().exp()
        center = w.sum(1) @ b.detach() + torch.einsum("kn,Dkd,knd->D", w, A.detach(), mu.detach())
        b = b - center
        column = torch.zeros_like(b)[..., None]  # (K, D, 1)
        scalar = torch.zeros_like(b[:, :1])  # (K, 1)
        return Frame(
            center=center,
            down=torch.cat([A.transpose(0, 1), b[..., None], column], 2).transpose(0, 1).contiguous(),
            bias=torch.cat([-torch.einsum("Dkd,kD->kd", A, b), scalar, scalar + 1], 1),
            project=torch.cat([V, torch.zeros_like(V[:, :, :1]), -mu[:, :, None] @ V], 2).transpose(1, 2).contiguous(),
            lift=V.mT.contiguous(),
            mean=mu,
            lam=lam
            if differentiable
            else torch.where(lam > 1e-14 * lam.amax(2, keepdim=True), lam, 0.0),  # no rounding
            offset2=b.square().sum(1),
            tau2=self.tau.double().square(),
            log_weight=log_weight,
            coupling=spectral - lam.diag_embed() - (spectral - lam.diag_embed()).detach() if differentiable else None,
        )

    def _by_rows(
        self,
        compute: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
        x: Tensor,
        s: Noise,
        gamma: Noise,
        width: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Check the arguments and apply `compute` to chunks of rows; `width` as the numbers it holds per row."""
        K, n, d, _ = self.factor.shape
        own_levels = any(isinstance(level, Tensor) and level.numel() > 1 for level in (s, gamma))
        # Rows with noise levels of their own hold eigenvalues, roots and logarithms of their own, too.
        size = rows_per_chunk(self.basis.device, width or self.dim + (8 if own_levels else 1) * K * n * d)
        return by_rows(compute, x, s, gamma, dim=self.dim, noise=self.tau, parameters=self.parameters(), size=size)


def _check_shapes(dim: int, latent_dims: Sequence[int], modes: Sequence[int], ranks: Sequence[Sequence[int]]) -> None:
    if not len(latent_dims) == len(modes) == len(ranks) or not len(modes):
        raise ValueError(
            f"{len(latent_dims)} latent_dims, {len(modes)} modes and {len(ranks)} ranks: give one of each per subspace"
        )
    for k, (d, n, row) in enumerate(zip(latent_dims, modes, ranks, strict=True)):
        if not 1 <= d <= dim:
            raise ValueError(f"latent_dims[{k}] = {d}: a subspace of R^{dim} has a dimension from 1 to {dim}")
        if n < 1:
            raise ValueError(f"modes[{k}] = {n}: a subspace needs at least one mode")
        if len(row) != n or any(not 0 <= r <= d for r in row):
            raise ValueError(f"ranks[{k}] = {tuple(row)}: give {n} ranks from 0 to {d}")
