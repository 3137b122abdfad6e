"""A network on top of a closed form: the base does what it knows, the network learns what is left.

    D(x_t) = B(x_t) + c_res F( c_in x_t,  B(x_t) / sd,  c_noise  [, expert, r_1, ..., r_K] )

B is the denoiser of a law, or any other; F = 0, which is how networks start, gives exactly B. EDM's preconditioning is
the case of B(x) = c_skip x, one isotropic Gaussian, and of c_res = c_out. A better base leaves less,

    c_res(s, gamma) = ratio(gamma / s) c_out(s, gamma),      ratio^2 = E |x_0 - B(x_t)|^2 / (D c_out^2)

so that the target of F, (x_0 - B) / c_res, has unit mean square at every noise level. The ratio depends on
sigma = gamma / s alone. It is measured on rows and kept as a table; on samples of the law itself, where B is its
denoiser, it is the law's posterior variance, E tr Cov[x_0 | x_t] / D.

Where the base is a law, F may see its gates, too: r_k = P(x_0 on subspace k | x_t), one for the expert that a row of a
`ConditionalLaw` names. A network of pictures sees each gate as a constant plane.

What F stands on may be less than the base, a share `added` = a of it beside EDM's own,

    D(x_t) = a B(x_t) + (1 - a) c_skip x_t + c_res F(...)

a = 1 is B exactly where F = 0; a = 0 is EDM's network, c_res = c_out, to which the base is one more input. Where B is
good already, what it leaves is nearly all noise, and a network learns it faster if a part of B is left to be learned as
well. Without `as_input` the base is only added.

References:
    Karras et al., arXiv 2206.00364, table 1 (the preconditioning).
    arXiv 2601.01475, section 3 (the law whose denoiser is the base).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.arguments import flag, is_a, real
from molrmog.denoisers.base import check_columns, expert_of_rows, level_of_rows
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.levels import LevelTable, check_rows, log_sigma_grid, unit_level
from molrmog.denoisers.preconditioning import Preconditioned, edm_scales, noise_condition
from molrmog.laws.base import Law
from molrmog.models import (
    Denoiser,
    Expert,
    Noise,
    SupportsDenoise,
    as_module,
    check_denoiser,
    denoise_with,
    description_of,
    dim_of,
    has_null_expert,
    num_experts_of,
    refuse_expert,
)
from molrmog.registry import build
from molrmog.seeds import torch_generator

_ROWS = 256  # rows measured at each noise level
_LEAST = 1e-3  # a base that leaves less than this share of c_out is scaled as if it left so much


class ResidualDenoiser(Denoiser):
    """A base plus what a network learns on top of it.

    The base is trained along where its parameters ask for gradients; a law that comes from a fit does not.

    Attributes:
        base: any denoiser over R^D, conditional on the expert where it knows experts.
        network: F, over 2D inputs and D outputs where the base is an input.
        added: share a of the base that F is added to.
        gates: whether F sees the gates of the base.
        log_ratio: log(c_res / c_out) by noise level.
        sigma_data: root mean square sd of a coordinate of the data.

    Example:
        >>> from molrmog import MLPDenoiser, MoLRMoG
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), rank=1, noise=0.1, seed=0)
        >>> law = law.requires_grad_(False)
        >>> x = law.sample(500).x
        >>> network = ResidualDenoiser(law, MLPDenoiser(8, width=16, inputs=2)).measure_(x)
        >>> xt = law.sample(3, s=0.8, gamma=0.6).x
        >>> bool((network.denoise(xt, 0.8, 0.6) == law.denoise(xt, 0.8, 0.6)).all())  # before training
        True
    """

    _sigma_data: Tensor

    def __init__(
        self,
        base: SupportsDenoise,
        network: nn.Module,
        *,
        as_input: bool = True,
        added: float = 1.0,
        gates: bool = False,
        sigma_data: float = 0.5,
    ) -> None:
        """Put a network on a base; call :meth:`measure_` before training.

        Args:
            base: a torch module with `dim` and `denoise`.
            network: an `UNetDenoiser` or `MLPDenoiser` with `inputs=2` (1 where the base is no input), or any module
                called with rows (B, 2D), c_noise (B,), the experts (B,) or None and, where it sees them, the gates
                (B, K), that returns rows (B, D).
            as_input: whether F sees the base's estimate.
            added: share of the base's estimate that is added to what F says, in [0, 1].
            gates: whether F sees how the base weighs its K subspaces; a network of this library has `gates=K` then.
            sigma_data: of the data, in data units; :meth:`measure_` replaces it.

        Raises:
            ValueError: the network does not fit the base, or the base is neither seen nor added.
        """
        super().__init__()
        check_denoiser(base, "base")
        as_input = flag(as_input, "as_input")
        gates = bool(gates) if is_a(gates, int) else flag(gates, "gates")  # their number says so, too
        added, sigma_data = real(added, "added"), real(sigma_data, "sigma_data")
        if not 0 <= added <= 1 or not (added or as_input):
            raise ValueError(
                f"added = {added}, as_input = {as_input}: pass a share from 0 to 1, above 0 or as an input"
            )
        dim, wanted = dim_of(base), 2 if as_input else 1
        weighed = gates_of(base) if gates else 0
        if isinstance(network, Preconditioned):
            if network.inputs != wanted:
                raise ValueError(f"the network has inputs={network.inputs}: build it with inputs={wanted}")
            if network.gates != weighed:
                raise ValueError(f"the network has gates={network.gates}: build it with gates={weighed}")
            if network.dim != dim:
                raise ValueError(f"a network over R^{network.dim} on a base over R^{dim}: pass equal dimensions")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data = {sigma_data}: pass the standard deviation of the data, > 0")
        as_module(base)
        assert isinstance(base, nn.Module)  # which gives `base` both types
        self.base = base
        self.network = network
        self.dim = dim
        conditional = [part for part in (network, base) if num_experts_of(part)]
        self.num_experts = max(map(num_experts_of, conditional), default=0)
        self.null_expert = bool(conditional) and all(map(has_null_expert, conditional))
        self.as_input, self.added, self.gates = as_input, float(added), gates
        self.log_ratio = LevelTable()
        self.register_buffer("_sigma_data", torch.tensor(float(sigma_data)))

    @property
    def sigma_data(self) -> float:
        """Root mean square of a coordinate of the data."""
        return float(self._sigma_data)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network.

        Raises:
            ValueError: network or base is none of this library.
        """
        return {
            "denoiser": "ResidualDenoiser",
            "base": description_of(self.base),
            "network": description_of(self.network),
            "as_input": self.as_input,
            "added": self.added,
            **({"gates": True} if self.gates else {}),
            **({"learned": True} if any(p.requires_grad for p in self.base.parameters()) else {}),
        }

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained: those of the network, and of the base where it asks for gradients."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network that `config` describes, untrained."""
        base = build(config["base"], "denoiser")
        if not config.get("learned", False):
            base.requires_grad_(False)
        options: dict[str, Any] = {name: config[name] for name in ("as_input", "added", "gates") if name in config}
        return cls(base, build(config["network"], "denoiser"), **options)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a base that is not trained along stays as it answers."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.base.parameters()):
            self.base.eval()
        return self

    @torch.no_grad()
    def measure_(self, x: Tensor, expert: Tensor | None = None, seed: int = 0) -> Self:
        """Measure on rows what the base leaves at every noise level, so that the target of F has unit mean square.

        Args:
            x: rows with shape (N, D) that the base may know; samples of the law give its own posterior variance.
            expert: of each row, with shape (N,), where the base knows experts.
            seed: of the rows that are taken, and of the noise.

        Returns:
            Itself.

        Raises:
            ValueError: the rows have another dimension, or are too few.
        """
        check_rows(x, self.dim)
        draw = torch_generator(seed)
        self._sigma_data.fill_(x.double().square().mean().sqrt())
        for i, log_sigma in enumerate(log_sigma_grid()):
            s, gamma = unit_level(log_sigma)
            mine = torch.randint(len(x), (min(_ROWS, 4 * len(x)),), generator=draw)
            x0 = x[mine].to(self._sigma_data)
            xt = s * x0 + gamma * torch.randn(x0.shape, generator=draw).to(x0)
            base = self._base(xt, s, gamma, None if expert is None else expert[mine])
            left = (x0 - self._start(xt, base, s, gamma)).double().square().mean()
            level = torch.tensor([s, gamma], dtype=torch.float64)
            _, c_out, _ = edm_scales(level[0], level[1], self.sigma_data)
            self.log_ratio.values[i] = (left.sqrt() / c_out).clamp(min=_LEAST).log()
        return self

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """What the base says and what the network adds, with shape (B, D)."""
        check_columns(x, self.dim)
        refuse_expert(self, expert, "neither do base and network, so pass none")
        base, gates = self._base(x, s, gamma, expert), ()
        if self.gates:
            gates = (_weigh(self.base, x, s, gamma, expert),)
        s, gamma = level_of_rows(s, x), level_of_rows(gamma, x)
        sd = self._sigma_data.to(x.dtype)
        _, c_out, c_in = edm_scales(s, gamma, sd)  # (B,)
        seen = torch.cat([c_in[:, None] * x, base / sd], 1) if self.as_input else c_in[:, None] * x
        K = num_experts_of(self.network)
        index = expert_of_rows(expert, x, K, self.null_expert) if K else None
        width = next((parameter.dtype for parameter in self.network.parameters()), x.dtype)
        beside = (index, *(r.to(width) for r in gates))
        F = self.network(seen.to(width), noise_condition(s, gamma).to(width), *beside).to(x.dtype)
        c_res = self.log_ratio(s, gamma).exp() * c_out if self.added else c_out
        return self._start(x, base, s, gamma) + c_res[:, None] * F

    def _start(self, x: Tensor, base: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """What F is added to, with shape (B, D): a B(x) + (1 - a) c_skip x."""
        if self.added == 1:
            return base
        c_skip, _, _ = edm_scales(level_of_rows(s, x), level_of_rows(gamma, x), self._sigma_data.to(x.dtype))
        return self.added * base + ((1 - self.added) * c_skip)[:, None] * x

    def _base(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None) -> Tensor:
        return denoise_with(self.base, x, s, gamma, expert if num_experts_of(self.base) else None)


def gates_of(base: object) -> int:
    """Number K of subspaces that a base weighs.

    Args:
        base: a law, or a `ConditionalLaw`.

    Raises:
        ValueError: it weighs none.
    """
    return _law_of(base).subspaces


def _law_of(base: object) -> Law:
    law = base.law if isinstance(base, ConditionalLaw) else base
    if not isinstance(law, Law):
        raise ValueError(f"a {type(base).__name__} weighs no subspaces: leave out gates, or pass a law as base")
    return law


def _weigh(base: nn.Module, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None) -> Tensor:
    """P(x_0 on subspace k | x_t) with shape (B, K), one for the expert that a row of a `ConditionalLaw` names."""
    law = _law_of(base)
    r = law.subspace_responsibilities(x, s, gamma)
    if expert is None or not isinstance(base, ConditionalLaw):
        return r
    index = expert_of_rows(expert, x, law.subspaces, null_expert=True)
    known = torch.eye(law.subspaces).to(r)[index]
    return torch.where(index[:, None] < 0, r, known)
