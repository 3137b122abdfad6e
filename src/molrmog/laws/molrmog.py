"""The law: a mixture of low-rank Gaussians on a union of subspaces (MoLR-MoG), exact at every noise level.

Data.  k ~ Cat(w) picks a subspace, l | k ~ Cat(pi_k) a mode inside it, and

    z | k,l ~ N(mu_kl, U_kl U_kl^T),      x_0 = b_k + A_k z + tau_k e,      A_k^T A_k = I,  e ~ N(0, I_D).

Unequal noise puts a variance psi_kj of each coordinate in the place of tau_k^2, of each subspace ("diagonal") or one
for all ("shared"), in the coordinates of the data or of orthonormal axes Q: then u = Q^T x follows the law above.

Noise.  x_t = s x_0 + gamma eps stays in the family: with c = (k, l), m_c = b_k + A_k mu_c,

    x_t | c ~ N( s m_c,  s^2 A_k U_c U_c^T A_k^T + diag(s^2 psi_k + gamma^2) ).

How a row is weighed by its modes and taken up to a score or a denoiser: `molrmog.laws.levels` has the formulas,
`molrmog.laws.isotropic` and `molrmog.laws.diagonal` make them for the two kinds of noise, and
`molrmog.laws.responsibilities` goes the way. A row costs one product with all A_k down, d_k^2 numbers per mode, and one
product up.

In which precision a row is computed is `molrmog.laws.precision`: responsibilities are right to 1e-3 nats, everything
else to a relative 1e-4.

References:
    Yang, Li, Jiang, Chen, Li, "Multi-Subspace Multi-Modal Modeling for Diffusion Models: Estimation, Convergence and
    Mixture of Experts", ICLR 2026, arXiv 2601.01475. There b = 0, tau = 0, w_k = 1/K.
    Wang et al., "Diffusion models learn low-dimensional distributions via subspace clustering", arXiv 2409.02426: the
    special case n_k = 1, mu = 0 (MoLRG).
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from molrmog.arguments import floating, is_a, one_of, real, shown, whole
from molrmog.checks import check_orthonormal
from molrmog.laws.axes import Axes
from molrmog.laws.base import (
    Compute,
    Law,
    Rows,
    Subspace,
    as_tensor,
    categorical,
    compute_dtype,
    is_whole,
    known_subspace,
    noise_levels,
    normal,
    rows_per_chunk,
    to_numpy,
    values_hidden,
)
from molrmog.laws.conditioned import ConditionedLaw, impute
from molrmog.laws.diagonal import Factors, whitened
from molrmog.laws.freedom import degrees_of_freedom
from molrmog.laws.isotropic import Eigenform
from molrmog.laws.levels import Level, lifted, squared_norm
from molrmog.laws.measured import Measured, MeasuredLevel, Measurement
from molrmog.laws.patterns import OwnPatterns
from molrmog.laws.precision import (
    DENOISER,
    DENSITY,
    SCORE,
    TURNED,
    Faint,
    Question,
    all_below,
    evidence,
    faint_density,
    faint_score,
    ordinary,
)
from molrmog.laws.responsibilities import Dense, Evidence, LevelEvidence, Seen, SolvedEvidence, Sparse, Where, looks
from molrmog.laws.top_modes import denoise_by_top_modes
from molrmog.models import Noise
from molrmog.seeds import torch_generator

_FEW = 16  # dimensions
_SHARED = 8  # rows of a pattern, from which it is prepared for itself
NOISES = ("isotropic", "diagonal", "shared")


class MoLRMoG(Law):
    """A mixture of low-rank Gaussians on a union of K linear subspaces, and its noised versions.

    The shapes of the subspaces may differ; parameters are stored padded with zeros, which every method keeps out.
    What depends on the parameters alone is computed once and kept for as long as they hold the same numbers.

    Attributes:
        basis: A_k with orthonormal columns, side by side, with shape (D, K, d).
        offset: b_k, with shape (K, D).
        mean: mu_kl, with shape (K, n, d).
        factor: U_kl with U_kl U_kl^T the latent covariance, with shape (K, n, d, r).
        tau: off-subspace noise, standard deviation in data units (its sign does not matter), with shape (K,); of each
            coordinate (K, D) for diagonal noise, (1, D) for shared noise.
        noise: "isotropic", "diagonal" (of each coordinate and subspace) or "shared" (of each coordinate).
        axes: the orthonormal axes in whose coordinates basis, offset and tau are given; None for those of the data.
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
        noise: str = "isotropic",
        axes: str | None = None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocate a law; its parameters are zero but for the bases, which are coordinate axes.

        Args:
            dim: dimension D of the data.
            latent_dims: d_k of each subspace, at most D.
            modes: n_k of each subspace.
            ranks: r_kl of each mode, at most d_k; d_k where not given.
            noise: off the subspaces, "isotropic", "diagonal" or "shared".
            axes: in whose coordinates unequal noise is given, "matrix" or "dct"; None for those of the data.
            shape: of what a row holds, for the axes "dct"; (D,) where not given.
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
        self.noise = one_of(noise, "noise", NOISES)
        if axes is not None and noise == "isotropic":
            raise ValueError("isotropic noise is the same in all axes: leave out axes, or pass noise='diagonal'")
        if axes is None and shape is not None:
            raise ValueError(f"shape = {shown(shape)} without axes: leave it out, or pass axes='dct'")
        self.axes = None if axes is None else Axes(dim, axes, shape).to(device, dtype or torch.get_default_dtype())
        self.mean = zeros(K, n, d)
        self.factor = zeros(K, n, d, r)
        self.tau = zeros(*{"isotropic": (K,), "diagonal": (K, dim), "shared": (1, dim)}[noise])
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
        config: dict[str, Any] = {
            "dim": self.dim,
            "latent_dims": self.latent_dims,
            "modes": self.modes,
            "ranks": self.ranks,
        }
        if self.noise != "isotropic":
            config["noise"] = self.noise
        if self.axes is not None:
            config["axes"] = self.axes.kind
            if self.axes.shape is not None:
                config["shape"] = self.axes.shape
        return config

    def check_loaded(self) -> None:
        """Refuse a basis, and axes, that are not orthonormal."""
        check_orthonormal("basis", self.basis.transpose(0, 1), self.latent_dims)
        if self.axes is not None and self.axes.kind == "matrix":
            check_orthonormal("axes", self.axes.matrix()[None], [self.dim])

    @property
    def num_parameters(self) -> int:
        """Numbers that describe the law: A, b, mu, U, tau, the weights and the axes, padding left out."""
        per_subspace = zip(self.latent_dims, self.modes, self.ranks, strict=True)
        numbers = sum(self.dim * (d + 1) + n * (d + 1) + d * sum(ranks) + 1 for d, n, ranks in per_subspace)
        axes = 0 if self.axes is None else sum(buffer.numel() for buffer in self.axes.state_dict().values())
        return numbers + self.tau.numel() + axes

    @property
    def degrees_of_freedom(self) -> int:
        """In how many directions the parameters move the law, see `molrmog.laws.freedom`; axes of its own count."""
        turned = self.axes is not None and self.axes.kind == "matrix"
        return degrees_of_freedom(self.dim, self.latent_dims, self.ranks, self.noise, turned=turned)

    @property
    def noise_floor(self) -> float:
        """Smallest standard deviation off a subspace, of any coordinate, in data units."""
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
        """Subspace k without padding, in the coordinates of the data, detached from the law."""
        k = known_subspace(k, self.subspaces)
        d, n = self.latent_dims[k], self.modes[k]
        axes = self.axes
        with torch.no_grad():
            basis, offset = self.basis[:, k, :d].clone(), self.offset[k].clone()
            return Subspace(
                weight=float(self.subspace_weights[k]),
                basis=basis if axes is None else axes.up(basis.T.double()).T.to(basis),
                offset=offset if axes is None else axes.up(offset.double()).to(offset),
                tau=float(self.tau[k].abs()) if self.noise == "isotropic" else self._own_tau(k).abs(),
                mode_weights=self.mode_weights[k, :n],
                means=self.mean[k, :n, :d].clone(),
                factors=tuple(self.factor[k, mode, :d, : self.ranks[k][mode]].clone() for mode in range(n)),
                axes=None if axes is None else axes.matrix(),
            )

    def _own_tau(self, k: int) -> Tensor:
        """Standard deviation off subspace k, of each coordinate or of all."""
        return self.tau[min(k, len(self.tau) - 1)]

    def empty_like(self) -> MoLRMoG:
        """A frozen law of the same shapes, noise and axes, whose numbers are still to be written."""
        law = copy.copy(self)
        law._derived = {}
        law._parameters = {
            name: nn.Parameter(torch.empty_like(p), requires_grad=False)
            for name, p in self._parameters.items()
            if p is not None
        }
        return law

    @torch.no_grad()
    def with_noise(self, noise: str) -> MoLRMoG:
        """The same law, frozen, with the kind of noise that is named, which may not be isotropic where this is not.

        Shared noise is the mean of the variances of all subspaces, by their weights.
        """
        if noise == self.noise:
            return self
        if one_of(noise, "noise", NOISES) == "isotropic":
            self.require_isotropic("isotropic noise")
        law = MoLRMoG.from_config({**self.config, "noise": noise}).to(self._device, self._dtype)
        law.load_state_dict({name: t for name, t in self.state_dict().items() if name != "tau"}, strict=False)
        psi = self.tau.square().reshape(len(self.tau), -1).expand(self.subspaces, -1)  # (K, D or 1)
        law.tau.copy_((psi if noise == "diagonal" else self.subspace_weights @ psi).sqrt())
        return law.requires_grad_(False)

    def without_axes(self) -> MoLRMoG:
        """The law of the coordinates u = Q^T x, frozen; itself where it has no axes."""
        if self.axes is None:
            return self
        config = {name: value for name, value in self.config.items() if name not in ("axes", "shape")}
        law = MoLRMoG.from_config(config).to(self._device, self._dtype)
        law.load_state_dict({name: t for name, t in self.state_dict().items() if not name.startswith("axes.")})
        return law.requires_grad_(False)

    def with_axes(self, axes: Axes) -> MoLRMoG:
        """The law of x = Q u, frozen, where this one is of u.

        Raises:
            ValueError: this law has axes, or isotropic noise; or they are of another dimension.
        """
        if self.axes is not None or self.noise == "isotropic" or axes.dim != self.dim:
            raise ValueError(
                f"axes of R^{axes.dim} on a law of R^{self.dim} with {self.noise} noise: pass a law of "
                "unequal noise, without axes, of that dimension"
            )
        law = copy.deepcopy(self).requires_grad_(False)
        law.axes = copy.deepcopy(axes).to(self._device)
        return law

    def summary(self) -> list[tuple[str, str]]:
        """What the law is, as name and value."""
        first, *rest = super().summary()
        if self.noise == "isotropic":
            return [first, *rest]
        along = {"matrix": "along axes of its own", "dct": "along cosines"}
        where = "of each coordinate" if self.axes is None else along[self.axes.kind]
        of = "of all subspaces" if self.noise == "shared" else "of each subspace"
        return [first, ("noise", f"{self.noise}: {of}, {where}"), *rest]

    def extra_repr(self) -> str:
        """Shapes of the law, for `repr`."""
        noise = "" if self.noise == "isotropic" else f", noise={self.noise!r}"
        return f"dim={self.dim}, latent_dims={self.latent_dims}, modes={self.modes}{noise}"

    @classmethod
    def from_subspaces(
        cls, subspaces: Sequence[Subspace], *, shared: bool = False, dtype: torch.dtype | None = None
    ) -> MoLRMoG:
        """Build a law from its parts, of any shapes.

        Args:
            subspaces: each with orthonormal columns in its basis; weights need not be normalised.
            shared: whether the noise, one number per coordinate, is that of the first for all of them.
            dtype: of the parameters; that of the first basis where not given.

        Raises:
            ValueError: shapes do not fit together, a basis is not orthonormal, or some subspaces have other axes or
                another kind of noise than others.
        """
        parts = list(subspaces) if is_a(subspaces, Sequence) else []
        if not parts or not all(is_a(part, Subspace) for part in parts):
            raise ValueError(f"subspaces = {shown(subspaces)}: a law needs at least one subspace, pass a list of them")
        for k, part in enumerate(subspaces):
            _check_part(k, part)
        first, axes = subspaces[0].basis, subspaces[0].axes
        unequal = isinstance(subspaces[0].tau, Tensor)
        for k, part in enumerate(subspaces):
            if isinstance(part.tau, Tensor) != unequal or not _same_axes(part.axes, axes):
                raise ValueError(f"subspace {k} has another kind of noise, or other axes, than subspace 0: one for all")
        if axes is not None and not unequal:
            raise ValueError("isotropic noise is the same in all axes: leave out axes, or give tau of each coordinate")
        law = cls(
            dim=len(first),
            latent_dims=[part.basis.shape[1] for part in subspaces],
            modes=[len(part.means) for part in subspaces],
            ranks=[[factor.shape[1] for factor in part.factors] for part in subspaces],
            noise=("shared" if shared else "diagonal") if unequal else "isotropic",
            dtype=dtype or first.dtype,
            device=first.device,
        )
        if axes is not None:
            check_orthonormal("axes", axes[None], [len(axes)])
            law.axes = Axes.of(axes)
        with torch.no_grad():
            for k, part in enumerate(subspaces):
                d, n = law.latent_dims[k], law.modes[k]
                gram = part.basis.T @ part.basis
                if not torch.allclose(gram, torch.eye(d, dtype=gram.dtype, device=gram.device), atol=1e-2):
                    raise ValueError(f"basis {k} is not orthonormal: pass torch.linalg.qr(basis).Q")
                law.basis[:, k, :d] = law._down(part.basis.T.double()).T
                law.offset[k] = law._down(part.offset.double())
                if k < len(law.tau):
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
            s, gamma = noise_levels(len(x), s, gamma, self._noise)
            if self.noise == "isotropic":
                form = self.eigenform(dtype)
                return denoise_by_top_modes(form, x.to(dtype), s.to(dtype), gamma.to(dtype), top).to(x.dtype)
            out = torch.empty_like(x)
            for i, rows in enumerate(x.to(dtype)):
                s_i, gamma_i = (level if len(level) == 1 else level[i, None] for level in (s, gamma))
                e = Dense(Seen.of(self._levels(s_i.double(), gamma_i.double())(dtype), self._down(rows)))
                out[i] = self._up(e.best(top).denoise())
            return out

    @torch.no_grad()
    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode.

        Its axes are the principal directions of all subspaces and mode means together, so it is exact and never
        forms a D x D matrix.
        """
        form = self._form()(torch.float64)
        K, n, d = form.mean.shape
        w = form.log_weight.exp()[..., None, None]  # (K, n, 1, 1)
        # m_c - center = down . lifted_c
        down = torch.cat([form.basis, (form.offset - form.center)[..., None]], 2).transpose(0, 1).flatten(1)
        lifts = torch.cat([form.mean, form.mean.new_ones(K, n, 1)], 2)[..., None]  # (K, n, d + 1, 1)
        blocks = w * lifts @ lifts.mT
        blocks[..., :d, :d] += w * form.covariance
        middle = (w * lifts).sum((1, 3)).flatten()
        core = torch.block_diag(*blocks.sum(1)) - middle[:, None] * middle
        Q, R = torch.linalg.qr(down)
        variance, axes = torch.linalg.eigh(R @ core @ R.T)
        keep = variance > 1e-12 * variance[-1].clamp(min=0)
        keep[-1] = True  # a law that is one point and noise has no axis of its own, and a subspace needs one
        psi = form.variance_off  # (K or 1, D or 1)
        off = w.sum((1, 2, 3)) @ psi if len(psi) > 1 else psi[0] * w.sum()
        gaussian = Subspace(
            weight=1.0,
            basis=Q @ axes[:, keep],
            offset=form.center + down @ middle,
            tau=off.sqrt() if self.noise != "isotropic" else float(off.sqrt()),
            mode_weights=torch.ones(1, dtype=Q.dtype),
            means=Q.new_zeros(1, int(keep.sum())),
            factors=(variance[keep].clamp(min=0).sqrt().diag(),),
        )
        found = MoLRMoG.from_subspaces([gaussian], dtype=self.basis.dtype).requires_grad_(False)
        return found if self.axes is None else found.with_axes(self.axes)

    @torch.no_grad()
    def scaled(self, c: float, shift: Tensor | None = None) -> Self:
        """The law of c x_0 + shift, frozen, with shift (D,); its scaling is exact where c is a power of two."""
        c = real(c, "c")
        law = copy.deepcopy(self).requires_grad_(False)
        for each in (law.offset, law.mean, law.factor, law.tau):
            each.mul_(c)
        if shift is not None:
            law.offset.copy_(law.offset.double() + self._down(shift.to(law.offset.device, torch.float64)))
        return law

    @torch.no_grad()
    def stretched(self, scale: Tensor) -> MoLRMoG:
        """The law of diag(scale) x_0, frozen, with scale (D,) > 0; isotropic noise becomes diagonal.

        diag(scale) A_k = Q_k R_k, and R_k goes into the modes.

        Raises:
            ValueError: the law has axes, along which columns are not stretched.
        """
        if self.axes is not None:
            raise ValueError("a law along axes cannot be stretched column by column: take law.without_axes()")
        law = self.with_noise("diagonal") if self.noise == "isotropic" else copy.deepcopy(self).requires_grad_(False)
        scale = scale.to(law.offset.device, torch.float64)
        d = law.basis.shape[2]
        padded = torch.arange(d, device=scale.device) >= torch.tensor(law.latent_dims, device=scale.device)[:, None]
        A = scale[:, None] * law.basis.double().transpose(0, 1)  # (K, D, d)
        Q, R = torch.linalg.qr(torch.cat([A, padded.to(A).diag_embed()], 1))
        R = R * ~padded[..., None] * ~padded[:, None]
        law.basis.copy_((Q[:, : law.dim] * ~padded[:, None]).transpose(0, 1))
        law.mean.copy_(law.mean.double() @ R.mT)
        law.factor.copy_(R[:, None] @ law.factor.double())
        law.offset.mul_(scale)
        law.tau.mul_(scale)
        return law

    @torch.no_grad()
    def marginal(self, columns: Any) -> MoLRMoG:
        """The law of some columns of x_0, in their order, frozen.

        Args:
            columns: their indices, or a mask (D,) of booleans.

        Raises:
            ValueError: there are no such columns, or the law's noise goes along axes of its own.
        """
        if self.axes is not None:
            raise ValueError(
                "the noise of some columns is not diagonal where it goes along axes of its own: "
                "condition the law on them, or fit with axes=None"
            )
        at = known_columns(columns, self.dim).to(self._device)
        form, m = self._factors(), len(at)
        loadings, L = whitened(form.basis[:, at], form.real)
        dims = [min(d, m) for d in self.latent_dims]
        ranks = [[min(r, d) for r in row] for d, row in zip(dims, self.ranks, strict=True)]
        law = MoLRMoG(m, dims, self.modes, ranks, noise=self.noise, dtype=self._dtype, device=self._device)
        d, r = law.factor.shape[2:]
        law.basis.copy_(loadings[..., :d].transpose(0, 1))
        law.offset.copy_(self.offset[:, at])
        law.mean.copy_((form.mean @ L)[..., :d])
        factor = (L.mT[:, None] @ form.factor)[:, :, :d]
        law.factor.copy_(factor if r == factor.shape[3] else _narrowed(factor))
        law.tau.copy_(self.tau if self.noise == "isotropic" else self.tau[:, at])
        law.subspace_logits.copy_(self.subspace_logits)
        law.mode_logits.copy_(self.mode_logits)
        return law.requires_grad_(False)

    def condition(self, y: Any, observation: Any = None, noise: Any = None) -> ConditionedLaw:
        """The law of x_0 given y = H x_0 + n, exact: mean, variance, gates, evidence, draws, and its noised versions.

        Args:
            y: what was observed, with shape (m,), or (B, m) for several rows; under a mask also whole rows, (D,) or
                (B, D), whose other numbers do not matter. NaN was not observed.
            observation: H: None for the identity; a mask (D,) of booleans, or (B, D) for one of each row; a matrix
                (m, D); a function from rows (B, D) to (B, m), or a pair of it and its adjoint; or an object with
                methods `A` and `A_adjoint`, such as a physics of deepinv, whose Gaussian noise is read.
            noise: standard deviation of n, one for all or of each number, (m,); or its covariance, (m, m). None is
                that of the observation, or zero.

        Raises:
            ValueError: the shapes do not go together; the observation is not linear; or y has no density, where the
                law is certain of what is observed without noise.

        Example:
            >>> law = MoLRMoG.random(dim=4, latent_dims=(2,), modes=(3,), noise=0.1, seed=0)
            >>> given = law.condition(torch.tensor([0.5, -0.2]), torch.tensor([True, False, True, False]), noise=0.1)
            >>> given.mean.shape, given.sample(5).shape, given.denoise(torch.zeros(3, 4), 1.0, 0.5).shape
            (torch.Size([4]), torch.Size([5, 4]), torch.Size([3, 4]))
        """
        return ConditionedLaw(self, y, observation, noise)

    def impute(self, x: Any, draws: int | None = None, generator: torch.Generator | None = None) -> Any:
        """Rows with their missing values, NaN, filled in: by E[x_missing | x_observed], or by exact draws of them.

        What is observed stays as it is. A row of which nothing is observed becomes the law's mean, or a sample.

        Args:
            x: rows, with shape (N, D); a tensor or an array, which is answered in kind.
            draws: how many times to draw; None for the mean.
            generator: source of randomness, for reproducibility.

        Returns:
            Rows with shape (N, D), or (draws, N, D).

        Raises:
            ValueError: wrong shape.
        """
        return impute(self, x, draws, generator)

    @torch.no_grad()
    def _alone(self, k: int) -> Self:
        d, n, r = self.latent_dims[k], self.modes[k], max(self.ranks[k])
        config = {**self.config, "latent_dims": [d], "modes": [n], "ranks": [self.ranks[k]]}
        alone = type(self).from_config(config).to(self._device, self._dtype).requires_grad_(False)
        alone.axes = copy.deepcopy(self.axes)
        alone.basis[:, 0] = self.basis[:, k, :d]
        alone.offset[0], alone.tau[0] = self.offset[k], self._own_tau(k)
        alone.mean[0], alone.factor[0] = self.mean[k, :n, :d], self.factor[k, :n, :d, :r]
        alone.mode_logits[0] = self.mode_logits[k, :n]
        return alone

    # --- what it says of rows

    def _log_prob(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._asked(lambda e, _: (e.log_prob,), DENSITY, faint_density).answer(x, s, gamma)[0]

    def _score(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._asked(lambda e, into: (self._up(e.score(into)),), SCORE, faint_score).answer(x, s, gamma)[0]

    def _denoise(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        asked = self._asked(lambda e, into: (self._up(e.denoise(into)),), DENOISER, self._faint_denoiser)
        return asked.answer(x, s, gamma)[0]

    def _responsibilities(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        real = self._real_mode.flatten()
        return self._asked(lambda e, _: (e.responsibilities[:, real],), DENSITY).answer(x, s, gamma)[0]

    def _posterior(self, x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        real = self._real_mode.flatten()

        def posterior(e: Evidence, into: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return self._up(e.denoise(into)), e.responsibilities[:, real], e.log_prob

        mean, responsibilities, log_prob = self._asked(posterior, DENSITY, self._faint_posterior).answer(x, s, gamma)
        return mean, responsibilities, log_prob

    def _divergence(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        return self._weighed(x.double(), s, gamma).divergence()

    def _posterior_variance(self, x: Tensor, s: Tensor, gamma: Tensor, onto: Tensor | None = None) -> Tensor:
        """Variance of each coordinate of x_0, or of onto x_0 where a matrix (M, D) is given, with shape (b, M)."""
        e = self._weighed(x, s, gamma)
        if self.axes is not None:
            axes = self.axes.matrix().double()
            onto = axes if onto is None else onto.double() @ axes
        return e.variance(onto)

    def _posterior_draw(self, x: Tensor, s: Tensor, gamma: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        e = self._weighed(x, s, gamma)
        modes = e.shapes[2]
        gates = e.responsibilities
        lost = gates.isnan().any(1)  # rows that hold NaN or inf: nothing to draw, and no other row is to suffer
        component = categorical(gates.masked_fill(lost[:, None], 1.0), n, generator).flatten()  # a row's together
        row = torch.arange(len(x), device=x.device).repeat_interleave(n)
        drawn = self._up(e.draw(component // modes, component % modes, row, generator))
        return drawn.view(len(x), n, self.dim).masked_fill(lost[:, None, None], torch.nan)

    def _draw(self, k: Tensor, mode: Tensor, s: float, gamma: float, generator: torch.Generator | None) -> Tensor:
        form = self._form()(compute_dtype(self._dtype))
        form = form if ordinary(form.extent) else self._form()(torch.float64)
        clean = form.offset[k] + lifted(form.basis, k, form.draw_latent(k, mode, generator))
        noise = normal((len(k), self.dim), generator, like=clean)
        psi = form.variance_off[k.clamp(max=len(form.variance_off) - 1)]
        return self._up(s * clean + (s * s * psi + gamma * gamma).sqrt() * noise)

    # --- how a row is explained, and in which precision

    def e_steps(
        self, x: Tensor, s: Tensor, gamma: Tensor, *, limit: float = DENSITY
    ) -> Iterator[tuple[Where, LevelEvidence]]:
        """How every mode explains every row, piece by piece; in float64 where the size of a row exceeds `limit`.

        Args:
            x: rows, with shape (B, D), float32 or float64.
            s: signal scale, with shape (B or 1,), float64; with shape (1,) for unequal noise.
            gamma: noise standard deviation, with the shape of s, float64, such that there is a density.
            limit: of |x|^2 / v; rounding moves the log of a responsibility by 5e-7 of it in nats, at worst.

        Yields:
            Which of the rows, and their evidence.
        """
        levels, x = self._levels(s, gamma), self._fit_for(x)
        for at, seen in looks(levels(x.dtype), self._down(x)):
            precise = None
            if x.dtype == torch.float32 and not all_below(seen.whole_size, limit):
                precise = levels(torch.float64).own(at)
            if seen.few:
                yield at, Sparse(seen, precise, precise)
            else:
                yield at, evidence(seen if precise is None else Seen.of(precise, seen.rows, in_scratch=True))

    def _weighed(self, x: Tensor, s: Tensor, gamma: Tensor) -> SolvedEvidence:
        """How every mode explains every row, all at once."""
        if gamma.ndim == 2 and (len(gamma) > 1 or self.axes is not None):
            return self._patterns(x, s, gamma)
        levels, x = self._levels(s, gamma), self._fit_for(x)
        seen = Seen.of(levels(x.dtype), self._down(x))
        if x.dtype == torch.float32 and not all_below(seen.whole_size, DENSITY):
            seen = Seen.of(levels(torch.float64), self._down(x.double()))
        return Dense(seen)

    def _fit_for(self, x: Tensor) -> Tensor:
        """Rows in float64, where float32 cannot square the numbers of the law."""
        return x if ordinary(self._form()(torch.float32).extent) else x.double()

    def _asked(
        self,
        result: Callable[[Evidence, Tensor | None], tuple[Tensor, ...]],
        limit: float,
        faint: Faint | None = None,
    ) -> Question:
        """What is asked of rows; `limit` and `faint` say how far float32 answers it."""
        few_dimensions, shares = self.dim <= _FEW, limit <= DENSITY
        # Where next to nothing lies off a subspace, scores are small beside whitened rows.
        if few_dimensions or (self.noise != "isotropic" and 2 * max(self.latent_dims) > self.dim):
            limit = DENSITY
        return Question(
            result,
            self._levels,
            self._down,
            limit=limit if self.axes is None else min(limit, TURNED),
            faint=faint,
            shares=shares,
            in_place=self.axes is None,
            ordinary=ordinary(self._form()(torch.float32).extent),
            few_dimensions=few_dimensions,
            patterns=self._patterns,
            turned=self.axes is not None,
        )

    def _patterns(self, x: Tensor, s: Tensor, gamma: Tensor) -> OwnPatterns | Measured:
        """The evidence of rows (B, D) that are seen with noise gamma (B or 1, D) of coordinates, in float64."""
        if self.axes is None:
            return OwnPatterns(self._factors(), x, s, gamma)
        seen = gamma[0].isfinite()  # a single pattern: rows are measured along axes
        Q = self.axes.matrix().double()[seen]
        level = MeasuredLevel(self._factors(), Measurement(s[:, None] * Q, gamma[0, seen].double()))
        return Measured(level, x[:, seen], turn=Q)

    def _form(self) -> Callable[[torch.dtype], Eigenform | Factors]:
        """What the formulas need of the parameters, in any dtype; with derivatives where they are wanted."""
        return self._prepared(self._formed, self._tensors)

    def _factors(self) -> Factors:
        """What the formulas need where noise differs between coordinates, or is given for each of them; in float64."""
        if self.noise != "isotropic":
            return cast(Factors, self._form()(torch.float64))
        form = self._prepared(functools.partial(self._formed, unequal=True), self._tensors, "unequal")
        return cast(Factors, form(torch.float64))

    def eigenform(self, dtype: torch.dtype = torch.float64) -> Eigenform:
        """What the formulas of isotropic noise need of the parameters; computed when they have changed.

        Raises:
            ValueError: the noise is not isotropic.
        """
        self.require_isotropic("an eigenform")
        with torch.no_grad():
            return cast(Eigenform, self._form()(dtype))

    def require_isotropic(self, what: str) -> None:
        """Refuse what stands on isotropic noise.

        Args:
            what: stands on it.

        Raises:
            ValueError: the noise is not.
        """
        if self.noise != "isotropic":
            raise ValueError(
                f"{what} needs isotropic noise, and this law has {self.noise} noise: fit it with noise='isotropic'"
            )

    def level(self, s: float = 1.0, gamma: float = 0.0, dtype: torch.dtype = torch.float64) -> Level:
        """The law at a noise level, as rows of the coordinates of its axes are weighed, without derivatives."""
        with torch.no_grad():
            s1, gamma1 = noise_levels(1, s, gamma, self._noise)
            return self._levels(s1.expand(1), gamma1.expand(1))(dtype)

    def _levels(self, s: Tensor, gamma: Tensor) -> Callable[[torch.dtype], Level]:
        """The law at noise levels, in any dtype; those of unequal noise that were asked for last are kept."""
        forms = self._form()
        if self.noise == "isotropic" and gamma.ndim == 1:
            return lambda dtype: forms(dtype).at(s.to(dtype), gamma.to(dtype))  # pyright: ignore
        form = self._factors()
        hidden = values_hidden(s, gamma) or (torch.is_grad_enabled() and (s.requires_grad or gamma.requires_grad))
        if hidden or form.differentiable:
            return functools.cache(form.at(s, gamma).to)
        return form.kept(s, gamma)

    def _formed(self, parameters: Sequence[Tensor], differentiable: bool, unequal: bool = False) -> Eigenform | Factors:
        basis, offset, mean, factor, tau, subspace_logits, mode_logits = parameters
        within = mode_logits.double().masked_fill(~self._real_mode, -torch.inf).log_softmax(1)
        log_weight = subspace_logits.double().log_softmax(0)[:, None] + within
        if unequal:
            tau = tau[:, None].expand(-1, self.dim)
        given = basis, offset, mean, factor, tau, log_weight
        if unequal or self.noise != "isotropic":
            return Factors.of(*given, latent_dims=self.latent_dims, differentiable=differentiable)
        filled = [d == self.dim for d in self.latent_dims]
        return Eigenform.of(*given, filled=filled, differentiable=differentiable)

    # --- axes

    def _down(self, x: Tensor) -> Tensor:
        """Rows in the coordinates of the axes."""
        return x if self.axes is None else self.axes.down(x)

    def _up(self, u: Tensor) -> Tensor:
        """Rows in the coordinates of the data."""
        return u if self.axes is None else self.axes.up(u)

    def _by_rows(self, compute: Compute, x: Rows, s: Noise, gamma: Noise, **how: Any) -> tuple[Rows, ...]:
        """As `Law._by_rows`; rows of unequal noise in groups of one noise level.

        NaN is a value that is not seen, and so is what gamma (1 or B, D) has infinite noise for.
        """
        if not isinstance(x, Tensor):
            rows = as_tensor(x, missing=True).to(self._device)
            return tuple(to_numpy(each) for each in self._by_rows(compute, rows, s, gamma, **how))  # pyright: ignore
        whole = x.ndim == 2 and x.shape[1] == self.dim and len(x) > 0
        if whole and (_of_coordinates(gamma) or lacks_values(x)):
            return self._by_patterns(compute, x, s, gamma, **how)
        gamma = 1.0 if _of_coordinates(gamma) and not len(x) else gamma
        if self.noise == "isotropic" or x.ndim != 2 or all(_is_one(level) for level in (s, gamma)):
            return super()._by_rows(compute, x, s, gamma, **how)
        s, gamma = (level.expand(len(x)) for level in noise_levels(len(x), s, gamma, self._noise))
        groups = _groups(s, gamma)
        if not groups:
            return super()._by_rows(compute, x, 1.0, 1.0, **how)
        parts = [super(MoLRMoG, self)._by_rows(compute, x[at], s[at[:1]], gamma[at[:1]], **how) for at in groups]
        order = torch.cat(groups).argsort()
        return tuple(torch.cat(outs)[order] for outs in zip(*parts, strict=True))

    def _by_patterns(self, compute: Compute, x: Tensor, s: Noise, gamma: Noise, **how: Any) -> tuple[Tensor, ...]:
        """The same of rows (B, D) that lack values, or are seen with noise of their own in each coordinate."""
        noise = self._noise if self.axes is None else self._noise.abs().min()[None]
        s, gamma = noise_levels(len(x), s, gamma, noise, self.dim)
        missing = torch.zeros(x.shape, dtype=torch.bool, device=x.device) if values_hidden(x) else x.isnan()
        hidden = values_hidden(s, gamma)
        groups = list(torch.arange(len(x))[:, None]) if hidden else pattern_groups(missing, s, gamma)
        how = {**how, "several": True}
        x = x if values_hidden(x) else torch.where(missing, 0.0, x)

        def of_rows(at: Tensor | slice, rows: Tensor | slice) -> tuple[Tensor, ...]:
            s1, gamma1 = (level if len(level) == 1 else level[at] for level in (s, gamma))
            gamma1 = torch.where(missing[at], torch.inf, gamma1 if gamma1.ndim == 2 else gamma1[:, None])
            seen = torch.where(gamma1.isinf(), 0.0, x[rows])
            return super(MoLRMoG, self)._by_rows(compute, seen, s1, gamma1, **how)

        if (len(groups) * _SHARED > len(x) > 1 or hidden) and self.axes is None:
            how["size"] = rows_per_chunk(self._device, OwnPatterns.numbers(self.factor, self.dim))
            return of_rows(slice(None), slice(None))
        if len(groups) < 2:
            return of_rows(slice(0, 1), slice(None))
        parts = [of_rows(at[:1], at) for at in groups]
        order = torch.cat(groups).argsort()
        return tuple(torch.cat(outs)[order] for outs in zip(*parts, strict=True))

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

    def _faint_denoiser(self, seen: Seen, size: Tensor, out: Sequence[Tensor]) -> Tensor:
        """Which posterior means (B, D) are small beside the law, whose numbers they are sums of."""
        return squared_norm(out[0]) < (1e-2 * self._form()(torch.float32).extent) ** 2

    def _faint_posterior(self, seen: Seen, size: Tensor, out: Sequence[Tensor]) -> Tensor:
        """Which posteriors have a faint mean or a faint density."""
        return self._faint_denoiser(seen, size, out) | faint_density(seen, size, out)


def known_columns(columns: Any, dim: int) -> Tensor:
    """Indices of columns, from indices or a mask.

    Raises:
        ValueError: there are no such columns, or one is named twice.
    """
    value = as_tensor(columns, "columns")
    if value.dtype == torch.bool and value.shape == (dim,):
        value = value.nonzero()[:, 0]
    mend = f"pass indices from 0 to {dim - 1}, each once, or a mask of {dim} booleans"
    if value.ndim != 1 or not len(value) or not is_whole(value):
        raise ValueError(f"columns = {shown(columns)}: {mend}")
    at = torch.where(value < 0, value + dim, value).long()
    if bool(((at < 0) | (at >= dim)).any()) or len(at.unique()) < len(at):
        raise ValueError(f"columns = {shown(columns)}: {mend}")
    return at


def _narrowed(factor: Tensor) -> Tensor:
    """Factors (..., d, d) with the same products U U^T, from (..., d, r) with r > d."""
    return torch.linalg.qr(factor.mT).R.mT


def lacks_values(x: Tensor) -> bool:
    """Whether rows hold NaN; no where their values are hidden."""
    if not x.is_floating_point() or values_hidden(x) or x.layout != torch.strided or x.is_meta:
        return False
    with torch.no_grad():
        return bool(x.sum().isnan()) and bool(x.isnan().any())  # a sum is one pass; infinities may make it NaN, too


def _of_coordinates(gamma: Any) -> bool:
    """Whether noise is given for each coordinate."""
    return getattr(gamma, "ndim", 0) == 2


def pattern_groups(missing: Tensor, s: Tensor, gamma: Tensor) -> list[Tensor]:
    """Indices of rows that are seen alike: with the same values missing (B, D), and the same s and gamma.

    Rows are told apart by a random hash of the bits of these, modulo 2^64.

    Args:
        missing: which values are, with shape (B, D).
        s: with shape (B or 1,).
        gamma: with shape (B or 1,) or (B or 1, D).
    """
    if not len(missing):
        return []
    packed = np.packbits(missing.cpu().numpy(), axis=1)
    packed = np.ascontiguousarray(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))).view(np.int64)
    bits = [torch.from_numpy(packed).to(missing.device)]
    levels = [level.detach() for level in (s, gamma) if len(level) > 1]
    bits += [level.reshape(len(missing), -1).contiguous().view(torch.int64) for level in levels]
    whole = torch.cat(bits, 1)
    random = torch.randint(-(2**63), 2**63 - 1, (whole.shape[1],), generator=torch_generator(0))
    which = (whole * random.to(whole.device)).sum(1).unique(return_inverse=True)[1]
    order = which.argsort(stable=True)
    return list(order.split(which.bincount().tolist()))


def _is_one(level: Any) -> bool:
    """Whether a noise level is one for all rows, or nothing that could be one of each."""
    try:
        shape = level.shape if isinstance(level, Tensor) else np.asarray(level).shape
    except ValueError:
        return True
    return len(shape) == 0 or shape[0] == 1


def _groups(s: Tensor, gamma: Tensor) -> list[Tensor]:
    """Indices of rows of one noise level each, where levels may be compared; else of one row each."""
    if values_hidden(s, gamma) or (torch.is_grad_enabled() and (s.requires_grad or gamma.requires_grad)):
        return list(torch.arange(len(s), device=s.device)[:, None])
    _, which = torch.stack([s, gamma], 1).unique(dim=0, return_inverse=True)
    order = which.argsort(stable=True)
    return list(order.split(which.bincount().tolist())) if len(s) else []


def _wholes(values: Any, name: str) -> list[int]:
    """Whole numbers, one per subspace."""
    try:
        found = list(values.tolist() if isinstance(values, Tensor | np.ndarray) else values)
    except (TypeError, RuntimeError, NotImplementedError):
        raise ValueError(f"{name} = {shown(values)}: pass one number per subspace") from None
    return [whole(value, f"{name}[{k}]") for k, value in enumerate(found)]


def _same_axes(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


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
    numbers = ("weight",) if isinstance(part.tau, Tensor) else ("weight", "tau")
    for name in numbers:
        if not math.isfinite(real(getattr(part, name), f"{name} of subspace {k}")):
            raise ValueError(f"{name} of subspace {k} is not finite: pass a number")
    d, n = part.basis.shape[-1] if part.basis.ndim == 2 else -1, len(factors)
    wanted = {"basis": (len(part.offset) if part.offset.ndim == 1 else -1, d), "offset": (part.basis.shape[0],)}
    wanted |= {"mode_weights": (n,), "means": (n, d)}
    if isinstance(part.tau, Tensor):
        named["tau"], wanted["tau"] = part.tau, wanted["offset"]
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
