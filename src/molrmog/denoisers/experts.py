"""Experts side by side, and the whole generative model: K autoencoders, a denoiser of their latents, and weights.

    k ~ Cat(w),      z_0 ~ the latents of expert k,      x_0 = decode_k(z_0)

Sampling draws k, walks in the latents of expert k, and decodes. Where autoencoders are linear, on standardised latents

    decode_k(z) = b_k + A_k (m_k + c_k z),      A_k^T A_k = I_d,

noised rows are noised latents, and the model is a denoiser of rows, too, exactly:

    z_t = [ A_k^T (x_t - s b_k) - s m_k ] / c_k = s z_0 + (gamma / c_k) e
    E[x_0 | x_t, k] = decode_k( D_k(z_t, s, gamma / c_k) ),      E[x_0 | x_t] = sum_k r_k(x_t) E[x_0 | x_t, k]

The gate weighs what lies off a subspace as well, since latent densities alone choose wrong experts:

    log r_k = log w_k + log p_k(z_t; s, gamma / c_k) - d log c_k - rho2_k / (2 gamma^2) + what all experts share
    rho2_k  = | x_t - s b_k - A_k A_k^T (x_t - s b_k) |^2

References:
    arXiv 2601.01475, section 5: the MoE-latent networks. The gate is this library's; there, experts know their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from molrmog.autoencoders.base import Autoencoder, AutoencoderList, encode_noised
from molrmog.autoencoders.loading import Autoencoders, build_autoencoders
from molrmog.denoisers.base import expert_of_rows, level_of_rows
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.laws.base import Law, active_rows
from molrmog.models import (
    NULL_EXPERT,
    Denoiser,
    Expert,
    Noise,
    denoise_with,
    dim_of,
    num_experts_of,
)
from molrmog.registry import build


class PerExpert(Denoiser):
    """K denoisers of the same dimension, one per expert; every row is sent to its own.

    An expert without rows in a batch is not run, so its parameters get no gradient in that step: under
    DistributedDataParallel pass find_unused_parameters=True.

    Attributes:
        denoisers: the K denoisers.

    Example:
        >>> from molrmog.denoisers.mlp import MLPDenoiser
        >>> network = PerExpert([MLPDenoiser(4, width=8), MLPDenoiser(4, width=8)])
        >>> network.denoise(torch.zeros(3, 4), 1.0, 0.5, expert=torch.tensor([0, 1, 0])).shape
        torch.Size([3, 4])
    """

    def __init__(self, denoisers: Sequence[Denoiser]) -> None:
        """Put denoisers side by side.

        Args:
            denoisers: one per expert, of one dimension.

        Raises:
            ValueError: there are none, or they differ in dimension.
        """
        super().__init__()
        dims = {denoiser.dim for denoiser in denoisers}
        if len(dims) != 1:
            raise ValueError(f"denoisers of dimensions {sorted(dims)}: pass at least one, all of one dimension")
        self.denoisers = nn.ModuleList(denoisers)
        self.dim, self.num_experts = dims.pop(), len(denoisers)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the network: the description of each expert's."""
        return {"denoiser": "PerExpert", "denoisers": [denoiser.description for denoiser in self.networks]}

    @property
    def networks(self) -> list[Denoiser]:
        """The K denoisers, as a list."""
        return [denoiser for denoiser in self.denoisers if isinstance(denoiser, Denoiser)]

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained, of all experts together; a denoiser that several share counts once."""
        return sum(denoiser.num_parameters for denoiser in set(self.networks))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network that `config` describes, untrained."""
        return cls([build(each, "denoiser") for each in config["denoisers"]])

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Estimate E[x_0 | x_t, k] with shape (B, D), every row by its expert; one expert need not be named."""

        def by(k: int, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
            return denoise_with(self.denoisers[k], x, s, gamma)

        return by_expert(by, expert, self.num_experts, x, s, gamma)


class Experts(Denoiser):
    """K autoencoders, or one for all, a denoiser of their latents, and the weights of the experts.

    Attributes:
        autoencoders: one per expert, or a single one that all share.
        denoiser: of the latents, conditional on the expert: a `PerExpert`, or one network with `experts` = K.
        weights: probabilities w_k, with shape (K,).
        gate: a law of the rows with K subspaces whose responsibilities route them; None routes by the latent laws.
        latent_dim: dimension d of the latents.

    References:
        arXiv 2601.01475, section 5.
    """

    weights: Tensor

    def __init__(
        self,
        autoencoders: Sequence[Autoencoder] | Autoencoders | Autoencoder,
        denoiser: Denoiser,
        weights: Sequence[float] | Tensor,
        gate: Law | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            autoencoders: one per expert, as a list or as one module with `len` and indexing; or one for all. With a
                true attribute `linear` they are affine, and the columns of decode orthonormal but for `latent_scale`.
            denoiser: of their latents, with `denoise(z, s, gamma, expert)`.
            weights: one per expert, not all zero; need not be normalised.
            gate: a law over R^D whose subspaces are the experts.

        Raises:
            ValueError: the parts do not fit together.
        """
        super().__init__()
        w = torch.as_tensor(weights, dtype=torch.get_default_dtype()).detach().clone()
        if w.ndim != 1 or not len(w) or not bool((w >= 0).all()) or not float(w.sum()) > 0:
            raise ValueError("weights: pass one per expert, none negative, not all zero")
        self.autoencoders = _as_list(autoencoders)
        self.denoiser = denoiser
        self.gate = gate
        self.register_buffer("weights", w / w.sum())
        self.num_experts = len(w)
        self._check_parts()
        self.dim = self._autoencoder(0).dim
        self.latent_dim = self._autoencoder(0).latent_dim

    @property
    def config(self) -> dict[str, Any]:
        """What builds the model: the configurations of its parts."""
        return {
            "denoiser": "Experts",
            "experts": self.num_experts,
            "autoencoders": self.autoencoders.config,
            "latent": self.denoiser.description,
            "gate": None if self.gate is None else self.gate.description,
        }

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained in the score network; see `autoencoder_parameters` for the others."""
        return self.denoiser.num_parameters

    @property
    def autoencoder_parameters(self) -> int:
        """Numbers in all autoencoders together; what experts share counts once."""
        return sum(parameter.numel() for parameter in self.autoencoders.parameters())

    @property
    def latent_laws(self) -> list[Law] | None:
        """The law of each expert's latents, where the denoiser is made of laws."""
        networks = self.denoiser.networks if isinstance(self.denoiser, PerExpert) else []
        laws: list[Law] = [network.law for network in networks if isinstance(network, MoGDenoiser)]
        return laws if len(laws) == self.num_experts else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that `config` describes, untrained; its autoencoders and gate are frozen."""
        gate = None if config["gate"] is None else build(config["gate"], "law").requires_grad_(False)
        autoencoders = build_autoencoders(config["autoencoders"]).requires_grad_(False)
        return cls(autoencoders, build(config["latent"], "denoiser"), torch.ones(config["experts"]), gate)

    def encode(self, x: Tensor, expert: Expert | None = None) -> Tensor:
        """Standardised latents with shape (B, d) of rows with shape (B, D), each by its expert's autoencoder.

        Args:
            x: rows, with shape (B, D).
            expert: index, one for all rows or one per row with shape (B,); None where one autoencoder serves all.

        Raises:
            ValueError: an expert that does not exist, or none where there are several autoencoders.
        """
        return self._by_autoencoder(lambda k, x: self._autoencoder(k).encode(x), x, expert)

    def decode(self, z: Tensor, expert: Expert | None = None) -> Tensor:
        """Rows with shape (B, D) of standardised latents with shape (B, d); arguments as in :meth:`encode`."""
        return self._by_autoencoder(lambda k, z: self._autoencoder(k).decode(z), z, expert)

    def latent_denoise(self, z: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """Estimate E[z_0 | z_t, k] with shape (B, d).

        Args:
            z: noised standardised latents, with shape (B, d).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation in latent units, a float or one per row with shape (B,).
            expert: index k, one for all rows or one per row with shape (B,).
        """
        return self.denoiser.denoise(z, s, gamma, expert)

    def denoise(self, x: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t] with shape (B, D) through linear autoencoders; gamma > 0.

        Args:
            x: the noised rows x_t, with shape (B, D).
            s: the signal scale, a float or one per row with shape (B,).
            gamma: the noise standard deviation, a float or one per row with shape (B,), > 0.
            expert: index k, one for all rows or one per row with shape (B,); where None, responsibilities route them.

        Raises:
            ValueError: an autoencoder is not linear, or there is nothing to route by.
        """
        self._check_linear()
        s, gamma = level_of_rows(s, x), level_of_rows(gamma, x)
        if expert is not None:
            return by_expert(self._denoise_by, expert, self.num_experts, x, s, gamma)
        r = self.responsibilities(x, s, gamma)
        out = torch.zeros_like(x)
        for k, at in enumerate(active_rows(r.detach())):
            rows = torch.arange(len(x), device=x.device)[at]
            if len(rows):
                clean = self._denoise_by(k, x[rows], s[rows], gamma[rows])
                out = out.index_add(0, rows, r[rows, k, None] * clean)
        return out

    def responsibilities(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor:
        """Probabilities r_k(x_t) of the experts, with shape (B, K); arguments and errors as in :meth:`denoise`."""
        if self.gate is not None:
            return self.gate.subspace_responsibilities(x, s, gamma)
        self._check_linear()
        if self.latent_laws is None:
            raise ValueError(
                "these latent denoisers have no density to route rows by: pass expert=k, or build Experts with gate=law"
            )
        s, gamma = level_of_rows(s, x), level_of_rows(gamma, x)
        log_density = [self._log_density(k, law, x, s, gamma) for k, law in enumerate(self.latent_laws)]
        return (self.weights.double().log() + torch.stack(log_density, 1)).softmax(1).to(x.dtype)

    def _autoencoder(self, k: int) -> Autoencoder:
        return self.autoencoders[k if self._autoencoder_count > 1 else 0]

    @property
    def _autoencoder_count(self) -> int:
        return len(self.autoencoders)

    def _by_autoencoder(self, apply: Callable[..., Tensor], rows: Tensor, expert: Expert | None) -> Tensor:
        if self._autoencoder_count > 1:
            return by_expert(apply, expert, self.num_experts, rows)
        if expert is not None:
            expert_of_rows(expert, rows, self.num_experts)
        return apply(0, rows)

    def _denoise_by(self, k: int, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        autoencoder = self._autoencoder(k)
        z = encode_noised(autoencoder, x, s)
        return autoencoder.decode(self.latent_denoise(z, s, gamma / autoencoder.latent_scale, k))

    def _log_density(self, k: int, law: Law, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """Log p_t(x | k) up to what all experts share, with shape (B,), float64."""
        autoencoder, scale, d = self._autoencoder(k), self._autoencoder(k).latent_scale, self.latent_dim
        z = encode_noised(autoencoder, x, s)
        constant = autoencoder.decode(torch.zeros_like(z[:1]))
        rest = x - autoencoder.decode(z) - (s[:, None] - 1) * constant
        rho2 = rest.double().square().sum(1)
        within = law.log_prob(z, s, gamma / scale).double() - d * scale.double().log()
        return within - 0.5 * rho2 / gamma.double().square()

    def _check_linear(self) -> None:
        if not all(getattr(self._autoencoder(k), "linear", False) for k in range(self._autoencoder_count)):
            raise ValueError(
                "noised rows are not noised latents through a learned autoencoder: "
                "denoise latents with latent_denoise(z, s, gamma, expert), or build Experts with linear autoencoders"
            )

    def _check_parts(self) -> None:
        K, many = self.num_experts, self._autoencoder_count
        known, width = num_experts_of(self.denoiser), dim_of(self.denoiser)
        if many not in (1, K) or known != K:
            raise ValueError(
                f"{K} weights, {many} autoencoders and a denoiser of {known} experts: pass K autoencoders, or one for "
                f"all, and a denoiser of K experts, a PerExpert or one built with experts={K}"
            )
        sizes = {(self._autoencoder(k).dim, self._autoencoder(k).latent_dim) for k in range(many)}
        D, d = sizes.pop()
        if sizes or width != d:
            raise ValueError(
                f"autoencoders with (D, d) of {[(D, d), *sizes]} and a denoiser with D = {width}: "
                "pass autoencoders of one D and d, and a denoiser of R^d"
            )
        if self.gate is not None and (self.gate.dim, self.gate.subspaces) != (D, K):
            raise ValueError(
                f"a gate with {self.gate.subspaces} subspaces over R^{self.gate.dim}: pass a law with {K} over R^{D}"
            )


def _as_list(autoencoders: Any) -> Autoencoders:
    if not hasattr(autoencoders, "__len__"):
        return AutoencoderList([autoencoders])
    if isinstance(autoencoders, Sequence) or type(autoencoders) is nn.ModuleList:
        return AutoencoderList(autoencoders)
    return autoencoders  # a module whose experts share weights, as LoRAExperts


def by_expert(
    apply: Callable[..., Tensor],
    expert: Expert | None,
    experts: int,
    x: Tensor,
    *levels: Noise,
    null_expert: bool = False,
) -> Tensor:
    """Apply each expert to its own rows, and put the results together in the order of the rows.

    Args:
        apply: called with an index, rows (b, D) and their levels; returns b rows.
        expert: index, one for all rows or one per row with shape (B,).
        experts: how many there are.
        x: rows, with shape (B, D).
        levels: floats, or one per row with shape (B,).
        null_expert: whether a row may name no expert; `apply` is called with -1 for such rows.
    """
    index = expert_of_rows(expert, x, experts, null_expert)
    if expert is None or isinstance(expert, int) or not len(x):
        return apply(int(index[0]) if len(x) else 0, x, *levels)

    order = index.argsort(stable=True)
    parts: list[Tensor] = []
    counts = torch.bincount(index - NULL_EXPERT, minlength=experts + 1)
    for k, rows in enumerate(order.split(counts.tolist()), NULL_EXPERT):
        if len(rows):
            own = [level[rows] if isinstance(level, Tensor) and level.shape == (len(x),) else level for level in levels]
            parts.append(apply(k, x[rows], *own))
    return torch.cat(parts)[order.argsort()]
