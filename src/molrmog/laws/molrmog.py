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
    r_c(x)     = softmax_c [ log w_k + log pi_c + log N_c(x) ]            responsibilities; log p_t(x) is the logsumexp
    E[z | x, c] = mu_c + s V_c lam_c Lam_c^-1/2 w_c                       the latent posterior mean

With zeta_k = sum_l r_kl E[z | x, kl] and R_k = sum_l r_kl, everything goes up to R^D once per subspace:

    score   = sum_k (1 / v_k) [ s (R_k b_k + A_k zeta_k) - R_k x ]
    denoise = sum_k (1 / v_k) [ gamma^2 (R_k b_k + A_k zeta_k) + s tau_k^2 R_k x ]

so a row costs one product with all A_k down, d_k^2 numbers per mode, and one product up.

Where a subspace is all of R^D, rho2 is zero, its v is the law's smallest by far, and its term of the score is written
without it, - A_k sum_l r_kl V Lam^-1 V^T (h - s mu). From a row to its score and denoiser the way is one file,
`molrmog.laws.responsibilities`.

Precision.  What float32 does to a row grows with |x - s center|^2 / v. Responsibilities are right to 1e-3 nats,
everything else to a relative 1e-4: rows that would miss that are computed again in float64, and so are rows between
two modes whose shares rounding moves. With derivatives, and where a quarter of the rows need it, the whole chunk is.

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

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from molrmog.arguments import floating, is_a, real, shown, whole
from molrmog.checks import check_orthonormal
from molrmog.laws.base import (
    MANY,
    Law,
    Subspace,
    categorical,
    compute_dtype,
    in_float64,
    known_subspace,
    noise_levels,
    normal,
    refine_,
    values_hidden,
)
from molrmog.laws.responsibilities import Eigenform, Evidence, Noised, e_step, squared_norm
from molrmog.laws.top_modes import denoise_by_top_modes
from molrmog.seeds import torch_generator

# |x|^2 / v up to which float32 has the digits of a score, of a denoiser, of a density.
_SCORE, _DENOISER, _DENSITY = 1e5, 1e6, 2e3
_FEW = 16  # dimensions


class MoLRMoG(Law):
    """A mixture of low-rank Gaussians on a union of K linear subspaces, and its noised versions.

    The shapes of the subspaces may differ; parameters are stored padded with zeros, which every method keeps out.
    What depends on the parameters alone is computed once and kept for as long as they hold the same numbers.

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
    parameter_names = ("basis", "offset", "mean", "factor", "tau", "subspace_logits", "mode_logits")

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
        dim, latent_dims, modes = whole(dim, "dim", 1), _wholes(latent_dims, "latent_dims"), _wholes(modes, "modes")
        dtype = None if dtype is None else floating(dtype)
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
        self.register_buffer("_real", real_mode.to(device), persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the law: the constructor's arguments."""
        return {"dim": self.dim, "latent_dims": self.latent_dims, "modes": self.modes, "ranks": self.ranks}

    def check_loaded(self) -> None:
        """Refuse a basis that is not orthonormal."""
        check_orthonormal("basis", self.basis.transpose(0, 1), self.latent_dims)

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
        return self.mode_logits.masked_fill(~self._real_mode, -torch.inf).softmax(1)

    @property
    def _real_mode(self) -> Tensor:
        """Which modes are no padding, with shape (K, n)."""
        return cast(Tensor, self._buffers["_real"])

    def subspace(self, k: int) -> Subspace:
        """Subspace k without padding, detached from the law."""
        k = known_subspace(k, self.subspaces)
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
        parts = list(subspaces) if is_a(subspaces, Sequence) else []
        if not parts or not all(is_a(part, Subspace) for part in parts):
            raise ValueError(f"subspaces = {shown(subspaces)}: a law needs at least one subspace, pass a list of them")
        for k, part in enumerate(subspaces):
            _check_part(k, part)
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
        if rank is not None and whole(rank, "rank") < 0:
            raise ValueError(f"rank = {rank}: pass a rank of 0 or more, or None for full rank")
        dim, latent_dims, modes = whole(dim, "dim", 1), _wholes(latent_dims, "latent_dims"), _wholes(modes, "modes")
        noise, separation, offset = real(noise, "noise"), real(separation, "separation"), real(offset, "offset")
        ranks = [[d if rank is None else min(rank, d)] * n for d, n in zip(latent_dims, modes, strict=False)]
        law = cls(dim, latent_dims, modes, ranks, dtype=dtype)
        generator = torch_generator(seed)

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
            s, gamma = (level.to(dtype) for level in noise_levels(len(x), s, gamma, self.tau))
            return denoise_by_top_modes(self.eigenform(dtype), x.to(dtype), s, gamma, top).to(x.dtype)

    @torch.no_grad()
    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode.

        Its axes are the principal directions of all subspaces and mode means together, so it is exact and never
        forms a D x D matrix.
        """
        form = self.eigenform()
        K, n, d = form.mean.shape
        w = form.log_weight.exp()[..., None, None]  # (K, n, 1, 1)
        down = form.down[..., : d + 1].flatten(1)  # m_c - center = down . lifted_c
        lifted = torch.cat([form.mean, form.mean.new_ones(K, n, 1)], 2)[..., None]  # (K, n, d + 1, 1)
        blocks = w * lifted @ lifted.mT
        blocks[..., :d, :d] += w * form.axes.mT @ (form.lam[..., None] * form.axes)
        mean = (w * lifted).sum((1, 3)).flatten()
        core = torch.block_diag(*blocks.sum(1)) - mean[:, None] * mean
        Q, R = torch.linalg.qr(down)
        variance, axes = torch.linalg.eigh(R @ core @ R.T)
        keep = variance > 1e-12 * variance[-1].clamp(min=0)
        keep[-1] = True  # a law that is one point and noise has no axis of its own, and a subspace needs one
        remainder = (w.sum((1, 2, 3)) * form.tau2).sum()
        gaussian = Subspace(
            weight=1.0,
            basis=Q @ axes[:, keep],
            offset=form.center + down @ mean,
            tau=float(remainder.sqrt()),
            mode_weights=torch.ones(1, dtype=Q.dtype),
            means=Q.new_zeros(1, int(keep.sum())),
            factors=(variance[keep].clamp(min=0).sqrt().diag(),),
        )
        return MoLRMoG.from_subspaces([gaussian], dtype=self.basis.dtype).requires_grad_(False)

    @torch.no_grad()
    def scaled(self, c: float, shift: Tensor | None = None) -> Self:
        """The law of c x_0 + shift, frozen, with shift (D,); its scaling is exact where c is a power of two."""
        c = real(c, "c")
        law = copy.deepcopy(self).requires_grad_(False)
        for each in (law.offset, law.mean, law.factor, law.tau):
            each.mul_(c)
        if shift is not None:
            law.offset.copy_(law.offset.double() + shift.to(law.offset.device))
        return law

    @torch.no_grad()
    def _alone(self, k: int) -> Self:
        d, n, r = self.latent_dims[k], self.modes[k], max(self.ranks[k])
        config = {"dim": self.dim, "latent_dims": [d], "modes": [n], "ranks": [self.ranks[k]]}
        alone = type(self).from_config(config).to(self._device, self._dtype).requires_grad_(False)
        alone.basis[:, 0] = self.basis[:, k, :d]
        alone.offset[0], alone.tau[0] = self.offset[k], self.tau[k]
        alone.mean[0], alone.factor[0] = self.mean[k, :n, :d], self.factor[k, :n, :d, :r]
        alone.mode_logits[0] = self.mode_logits[k, :n]
        return alone

    # --- what it says of rows

    def _log_prob(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._settled(lambda e: (e.log_prob,), x, s, gamma, _DENSITY, _faint_density)[0]

    def _score(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._settled(lambda e: (e.score(),), x, s, gamma, _SCORE, _faint_score)[0]

    def _denoise(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._settled(lambda e: (e.denoise(),), x, s, gamma, _DENOISER, _faint_denoiser)[0]

    def _responsibilities(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._settled(lambda e: (e.responsibilities[:, self._real_mode],), x, s, gamma, _DENSITY)[0]

    def _posterior(self, x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def posterior(e: Evidence) -> tuple[Tensor, Tensor, Tensor]:
            return e.denoise(), e.responsibilities[:, self._real_mode], e.log_prob

        mean, responsibilities, log_prob = self._settled(posterior, x, s, gamma, _DENSITY, _faint_posterior)
        return mean, responsibilities, log_prob

    def _divergence(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        # sum_c r_c (|score_c|^2 - tr Sigma_c^-1) - |score|^2: far from the law two large squares, hence float64.
        # Where one mode has the row whole, they are the same square.
        e = self.e_step(x.double(), s, gamma, route=False)
        norm2 = e.pulls.square().sum(-1) + (e.rho2 / e.v.square())[..., None]  # (K, B, n)
        trace = e.Lam.reciprocal().sum(-1) + ((self.dim - e.Lam.shape[-1]) / e.v)[..., None]
        r = e.responsibilities.transpose(0, 1)
        between = (r * norm2).sum((0, 2)) - e.score().square().sum(1)
        certain = e.responsibilities.flatten(1).amax(1) == 1
        return torch.where(certain, 0.0, between) - (r * trace).sum((0, 2))

    def _posterior_variance(self, x: Tensor, s: Tensor, gamma: Tensor, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (b, M)."""
        e = self.e_step(x, s, gamma, route=False)
        form, s, gamma = e.form, e.rows.s, e.rows.gamma
        d = form.mean.shape[2]

        def rotated(rows: Tensor) -> Tensor:
            return rows if onto is None else rows @ onto.T.to(rows.dtype)

        gates = e.responsibilities.transpose(0, 1)  # (K, b, n)
        mean = rotated(e.denoise())
        norm2 = 1.0 if onto is None else onto.to(mean.dtype).square().sum(1)
        total = torch.zeros_like(mean)
        for k in range(self.subspaces):  # over subspaces, so that one subspace's loadings are held at a time
            basis = rotated(form.down[:, k, :d].T)  # (d, M)
            loadings = form.axes[k].flatten(0, 1) @ basis  # (n d, M)
            v = e.v[k, :, None]  # (b or 1, 1)
            shrink = gamma[:, None].square() / v
            isotropic = form.tau2[k] * shrink * gates[k].sum(1, keepdim=True)
            along = (form.lam[k] / e.Lam[k]) * (shrink.square() * v * gates[k])[..., None]  # (b, n, d)
            total = total + isotropic * norm2 + along.flatten(1) @ loadings.square()

            z = form.mean[k] + s[:, None, None] * torch.einsum("bni,nid->bnd", form.lam[k] * e.pulls[k], form.axes[k])
            clean = form.center + s[:, None] * form.tau2[k] / v * e.rows.x + shrink * form.down[:, k, d]
            apart = (rotated(clean) - mean)[:, None] + shrink[..., None] * (z @ basis)  # (b, n, M)
            total = total + torch.einsum("bn,bnD->bD", gates[k], apart.square())
        return total

    def _posterior_draw(self, x: Tensor, s: Tensor, gamma: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        e = self.e_step(x, s, gamma, limit=_DENSITY, route=False)
        form, B, modes = e.form, len(x), e.form.lam.shape[1]
        gates = e.responsibilities.flatten(1)
        lost = gates.isnan().any(1)  # rows that hold NaN or inf: nothing to draw, and no other row is to suffer
        component = categorical(gates.masked_fill(lost[:, None], 1.0), n, generator).flatten()  # a row's together
        row = torch.arange(B, device=x.device).repeat_interleave(n)
        k, mode = component // modes, component % modes  # (B n,)
        at = row if e.v.shape[1] > 1 else torch.zeros_like(row)
        s, gamma = (level.expand(B)[row] for level in (e.rows.s, e.rows.gamma))
        v, lam, Lam = e.v[k, at], form.lam[k, mode], e.Lam[k, at, mode]  # (B n,), (B n, d)
        shift = s[:, None] * lam * e.pulls[k, row, mode]
        spread = (lam * v[:, None] / Lam).sqrt()
        clean = self._lift(form, k, self._draw_latent(form, k, mode, shift, spread, generator))
        rest = e.rows.x[row] + s[:, None] * (form.center - clean)
        noise = normal(tuple(clean.shape), generator, like=clean)
        tau2 = form.tau2[k]
        drawn = clean + (s * tau2 / v)[:, None] * rest + (tau2 * gamma.square() / v).sqrt()[:, None] * noise
        return drawn.view(B, n, self.dim).masked_fill(lost[:, None, None], torch.nan)

    def _draw(self, k: Tensor, mode: Tensor, s: float, gamma: float, generator: torch.Generator | None) -> Tensor:
        form = self.eigenform(compute_dtype(self._dtype))
        form = form if form.ordinary else self.eigenform()
        z = self._draw_latent(form, k, mode, 0.0, form.lam[k, mode].sqrt(), generator)
        noise = normal((len(k), self.dim), generator, like=z)
        std = (s * s * form.tau2[k] + gamma * gamma).sqrt()
        return s * self._lift(form, k, z) + std[:, None] * noise

    def _draw_latent(
        self,
        form: Eigenform,
        k: Tensor,
        mode: Tensor,
        shift: Tensor | float,
        spread: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """mu_c + V_c (shift + spread eps), with shape (rows, d); k and mode with shape (rows,)."""
        eps = normal(tuple(spread.shape), generator, like=form.mean)
        return form.mean[k, mode] + ((shift + spread * eps)[:, None] @ form.axes[k, mode])[:, 0]

    def _lift(self, form: Eigenform, k: Tensor, z: Tensor) -> Tensor:
        """b_k + A_k z, with shape (rows, D); k with shape (rows,), z with shape (rows, d)."""
        d = z.shape[1]
        placed = z.new_zeros(len(z), self.subspaces, d + 1)
        placed[torch.arange(len(z), device=z.device), k] = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        return form.center + placed.flatten(1) @ form.down[..., : d + 1].flatten(1).T

    # --- precision

    def e_step(self, x: Tensor, s: Tensor, gamma: Tensor, *, limit: float = _DENSITY, route: bool = True) -> Evidence:
        """How every mode explains every row, all in float64 where |x - s center|^2 / v exceeds `limit` anywhere.

        Args:
            x: rows, with shape (B, D), float32 or float64.
            s: signal scale, with shape (B or 1,), float64.
            gamma: noise standard deviation, with shape (B or 1,), float64, such that there is a density.
            limit: of that ratio; rounding moves the log of a responsibility by 5e-7 of it in nats, at worst.
            route: whether rows may be routed to the subspaces that matter to them.
        """
        forms = self._eigenforms()
        form = forms(x.dtype)
        rows = Noised.of(form, x, s, gamma)
        if x.dtype == torch.float32 and not (form.ordinary and _all_below(rows.ratio(form), limit)):
            form = forms(torch.float64)
            rows = Noised.of(form, x, s, gamma)
        return e_step(form, rows, route=route)

    def _settled(
        self,
        result: Callable[[Evidence], tuple[Tensor, ...]],
        x: Tensor,
        s: Tensor,
        gamma: Tensor,
        limit: float,
        faint: Callable[[Evidence, Tensor, Sequence[Tensor]], Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """`result` of the evidence; of float32 rows whose digits do not suffice, each by itself, of that in float64.

        Digits do not suffice where `Noised.ratio` exceeds `limit`, where the first result is `faint`, small beside its
        rounding, and where a row lies between subspaces or modes while rounding moves their shares: of such a row a
        score or denoiser needs the shares alone in float64.
        """
        forms = self._eigenforms()

        def explained(x: Tensor, s: Tensor, gamma: Tensor) -> Evidence:
            form = forms(x.dtype)
            return e_step(form, Noised.of(form, x, s, gamma))

        def compute(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
            return result(explained(x, s, gamma))

        def shared_out(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
            return result(explained(x, s, gamma).narrowed(form))

        if x.dtype == torch.float64:
            return compute(x, s, gamma)
        form = forms(x.dtype)
        rows = Noised.of(form, x, s, gamma)
        ratio = rows.ratio(form)
        if torch.is_grad_enabled() or not form.ordinary or values_hidden(ratio):
            # No second look with derivatives; in few dimensions a result is more often small beside its rounding.
            enough = form.ordinary and self.dim > _FEW and _all_below(ratio, _DENSITY)
            return compute(x, s, gamma) if enough else in_float64(compute, x, s, gamma)
        beyond = ~(ratio <= (limit if self.dim > _FEW else _DENSITY))  # NaN, too
        if int(beyond.sum()) > MANY * len(x):
            return in_float64(compute, x, s, gamma)
        e = e_step(form, rows)
        out = result(e)
        undecided = e.undecided() if faint is not _faint_density else torch.zeros_like(beyond)
        if faint is not None:
            beyond |= faint(e, ratio, out)
        weighed = shared_out if limit > _DENSITY else compute
        refine_(out, weighed, x, s, gamma, undecided & ~beyond)
        refine_(out, compute, x, s, gamma, beyond)
        return out

    def eigenform(self, dtype: torch.dtype = torch.float64) -> Eigenform:
        """What the formulas need of the parameters, without derivatives; computed when they have changed."""
        with torch.no_grad():
            return self._eigenforms()(dtype)

    def _eigenforms(self) -> Callable[[torch.dtype], Eigenform]:
        """The eigenform in any dtype; with derivatives where they are wanted, built once for all dtypes."""
        return self._prepared(self._diagonalised, self._tensors)

    def _diagonalised(self, parameters: Sequence[Tensor], differentiable: bool) -> Eigenform:
        basis, offset, mean, factor, tau, subspace_logits, mode_logits = parameters
        within = mode_logits.double().masked_fill(~self._real_mode, -torch.inf).log_softmax(1)
        log_weight = subspace_logits.double().log_softmax(0)[:, None] + within
        filled = [d == self.dim for d in self.latent_dims]
        return Eigenform.of(basis, offset, mean, factor, tau, log_weight, filled=filled, differentiable=differentiable)

    @property
    def _noise(self) -> Tensor:
        return self.tau

    @property
    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.parameter_names]

    @property
    def _sample_numbers(self) -> int:
        d = max(self.latent_dims)
        return d * d + self.subspaces * (d + 1) + 3 * self.dim

    def _row_numbers(self, own_levels: bool = False, variance_of: int = 0) -> int:
        K, n, d, _ = self.factor.shape
        if variance_of:
            return 8 * K * n * d + 3 * n * variance_of
        # Rows with noise levels of their own hold eigenvalues, roots and logarithms of their own, too.
        return self.dim + (8 if own_levels else 1) * K * n * d


def _faint_density(e: Evidence, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which log-densities (B,) lie near zero, where rounding of some 2e-7 |x|^2 / v nats is more than 1e-4 of them."""
    return 2e-3 * ratio > out[-1].abs()


def _faint_score(e: Evidence, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which scores (B, D) are small beside |x| / v, whose rounding they carry."""
    return 4e-3 * ratio > (e.rows.norm2 + e.rows.center2(e.form)).sqrt() * squared_norm(out[0]).sqrt()


def _faint_denoiser(e: Evidence, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which posterior means (B, D) are small beside the law, whose numbers they are sums of."""
    return squared_norm(out[0]) < (5e-3 * e.form.size) ** 2


def _faint_posterior(e: Evidence, ratio: Tensor, out: Sequence[Tensor]) -> Tensor:
    """Which posteriors have a faint mean or a faint density."""
    return _faint_denoiser(e, ratio, out) | _faint_density(e, ratio, out)


def _all_below(ratio: Tensor, limit: float) -> bool:
    return not values_hidden(ratio) and (not len(ratio) or float(ratio.detach().max()) <= limit)  # NaN is not below


def _wholes(values: Any, name: str) -> list[int]:
    """Whole numbers, one per subspace."""
    try:
        found = list(values.tolist() if isinstance(values, Tensor | np.ndarray) else values)
    except (TypeError, RuntimeError, NotImplementedError):
        raise ValueError(f"{name} = {shown(values)}: pass one number per subspace") from None
    return [whole(value, f"{name}[{k}]") for k, value in enumerate(found)]


def _check_part(k: int, part: Subspace) -> None:
    """Refuse a subspace whose parts are no tensors, or do not go together.

    Raises:
        ValueError: with the name of the part.
    """
    factors: list[Any] = list(part.factors) if is_a(part.factors, Sequence) else [part.factors]
    named = {name: getattr(part, name) for name in ("basis", "offset", "mode_weights", "means")}
    named |= {f"factors[{i}]": factor for i, factor in enumerate(factors)}
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise ValueError(f"{name} of subspace {k} = {shown(value)}: pass a tensor of real numbers")
    for name in ("weight", "tau"):
        if not math.isfinite(real(getattr(part, name), f"{name} of subspace {k}")):
            raise ValueError(f"{name} of subspace {k} is not finite: pass a number")
    d, n = part.basis.shape[-1] if part.basis.ndim == 2 else -1, len(factors)
    wanted = {"basis": (len(part.offset) if part.offset.ndim == 1 else -1, d), "offset": (part.basis.shape[0],)}
    wanted |= {"mode_weights": (n,), "means": (n, d)}
    wanted |= {f"factors[{i}]": (d, factor.shape[-1] if factor.ndim else -1) for i, factor in enumerate(factors)}
    for name, shape in wanted.items():
        if named[name].shape != shape:
            raise ValueError(
                f"{name} of subspace {k} has shape {tuple(named[name].shape)}: pass basis (D, d), offset (D,), "
                "mode_weights (n,), means (n, d) and n factors (d, r)"
            )


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
