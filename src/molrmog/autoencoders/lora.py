"""One trained autoencoder for all experts, and a low-rank adapter for each.

Every linear or convolutional weight W of the shared autoencoder becomes, for expert k,

    W_k = W + (alpha / r) B_k A_k,      B_k = 0 at first,

so that K experts cost one autoencoder and K adapters of rank r. W never changes; A_k and B_k are trained on the rows
of expert k alone, e.g. one cluster of data without labels. Each expert has its own standardisation.

References:
    Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from molrmog.autoencoders.base import Autoencoder, build_autoencoder
from molrmog.autoencoders.vae import VAE, VAELoss
from molrmog.models import Model


class LoRAExperts(Model):
    """K autoencoders that share a backbone: `experts[k]` is the autoencoder of expert k.

    It stands where a list of K autoencoders would (`len`, indexing, iteration), but is one module, so that the shared
    weights are stored once.

    Attributes:
        shared: the autoencoder with all adapters inside.
        latent_mean: mean of the raw latents of each expert, with shape (K, d).
        latent_scale: their scale, with shape (K,).

    Example:
        >>> from molrmog.autoencoders import MLPVAE
        >>> experts = LoRAExperts(MLPVAE((8,), latent_dim=2), experts=3, rank=2)
        >>> experts.encode(torch.zeros(4, 8), torch.tensor([0, 2, 2, 1])).shape
        torch.Size([4, 2])
    """

    kind = "autoencoder"
    frozen = True
    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, shared: Autoencoder, experts: int, rank: int = 4, alpha: float | None = None) -> None:
        """Give a copy of a trained autoencoder K adapters, which change nothing until they are trained.

        Args:
            shared: what is adapted; it is copied.
            experts: how many, K.
            rank: r of every adapter.
            alpha: scale of the adapters; r where not given, so that W_k = W + B_k A_k.

        Raises:
            ValueError: there is nothing to adapt, or no expert.
            ImportError: peft is not installed.
        """
        super().__init__()
        if experts < 1 or rank < 1:
            raise ValueError(f"experts = {experts}, rank = {rank}: pass 1 or more of each")
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise ImportError("LoRA experts need peft: pip install 'molrmog[lora]'") from None
        shared = copy.deepcopy(shared).requires_grad_(False)
        self._shared_config = shared.config
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        layers = [name for name, module in shared.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if not layers:
            raise ValueError(f"a {type(shared).__name__} has no layers to adapt: pass a VAE or a pretrained one")
        lora = LoraConfig(r=rank, lora_alpha=cast(int, self.alpha), target_modules=layers)
        for k in range(experts):
            inject_adapter_in_model(lora, shared, adapter_name=_name(k))
            del shared.peft_config  # left behind for peft's own files; the next injection would warn of it
        self.shared = shared
        self.register_buffer("latent_mean", shared.latent_mean.repeat(experts, 1))
        self.register_buffer("latent_scale", shared.latent_scale.repeat(experts))
        for k in range(experts):
            for parameter in self.adapter(k):
                parameter.requires_grad_(True)

    @property
    def config(self) -> dict[str, Any]:
        """What builds the experts: the shared autoencoder's configuration, and the constructor's arguments."""
        return {
            "autoencoder": "LoRAExperts",
            "shared": self._shared_config,
            "experts": len(self),
            "rank": self.rank,
            "alpha": self.alpha,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of the data."""
        return self.shared.shape

    @property
    def dim(self) -> int:
        """Dimension D of the data."""
        return self.shared.dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Event shape of the latents."""
        return self.shared.latent_shape

    @property
    def latent_dim(self) -> int:
        """Dimension d of the latents."""
        return self.shared.latent_dim

    def adapter(self, k: int) -> list[nn.Parameter]:
        """What is trained for expert k: A and B of every layer."""
        return [p for name, p in self.shared.named_parameters() if f".{_name(k)}." in name]

    def __len__(self) -> int:
        return len(self.latent_mean)

    def __getitem__(self, k: int) -> LoRAExpert:
        if not -len(self) <= k < len(self):
            raise IndexError(f"expert {k}: there are {len(self)}")
        return LoRAExpert(self, k % len(self))

    def __iter__(self) -> Iterator[LoRAExpert]:
        return (self[k] for k in range(len(self)))

    def encode(self, x: Tensor, expert: int | Tensor) -> Tensor:
        """Standardised latents with shape (B, d).

        Args:
            x: rows with shape (B, D).
            expert: index of an expert, or one per row with shape (B,).
        """
        return self._routed("encode", x, expert, self.latent_dim)

    def decode(self, z: Tensor, expert: int | Tensor) -> Tensor:
        """Rows with shape (B, D).

        Args:
            z: standardised latents with shape (B, d).
            expert: index of an expert, or one per row with shape (B,).
        """
        return self._routed("decode", z, expert, self.dim)

    def standardise_(self, x: Tensor | np.ndarray, expert: Tensor | np.ndarray, chunk: int | None = None) -> Self:
        """Set mean and scale of each expert by its own rows; see :meth:`Autoencoder.standardise_`.

        Args:
            x: rows with shape (N, D).
            expert: of each row, with shape (N,).
            chunk: rows that are in memory together.
        """
        expert = np.asarray(expert)
        for k in range(len(self)):
            self[k].standardise_(x[np.flatnonzero(expert == k)], chunk)
        return self

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the experts that `config` describes, with fresh weights."""
        return cls(build_autoencoder(config["shared"]), config["experts"], config["rank"], config["alpha"])

    def _routed(self, method: str, rows: Tensor, expert: int | Tensor, width: int) -> Tensor:
        if not isinstance(expert, Tensor) or not expert.ndim:
            return getattr(self[int(expert)], method)(rows)
        out = rows.new_empty(len(rows), width)
        for k, index in rows_by_expert(expert.to(rows.device), len(self)):
            out = out.index_copy(0, index, getattr(self[k], method)(rows[index]))
        return out

    def _activate(self, k: int) -> None:
        """Let layers use the adapter of expert k; peft would also freeze the others, which is undone."""
        layers = _lora_layers(self.shared)
        if all(layer.active_adapters == [_name(k)] for layer in layers):
            return
        trained = [parameter for parameter in self.shared.parameters() if parameter.requires_grad]
        for layer in layers:
            layer.set_adapter(_name(k))
        self.shared.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


class LoRAExpert(Autoencoder):
    """One of :class:`LoRAExperts`, as an autoencoder of its own: a view, made anew by each `experts[k]`.

    It is saved as a plain autoencoder of the shared kind, the adapter merged into the weights.
    """

    def __init__(self, experts: LoRAExperts, k: int) -> None:
        super().__init__(experts.shape, experts.latent_shape)
        self.experts = experts
        self.k = k
        self.latent_mean = experts.latent_mean[k]
        self.latent_scale = experts.latent_scale[k]

    @property
    def config(self) -> dict[str, Any]:
        """What builds the autoencoder with its adapter merged: the shared one's configuration."""
        return self.experts.shared.config

    @property
    def num_parameters(self) -> int:
        """Numbers in the shared autoencoder and this expert's adapter."""
        own = sum(parameter.numel() for parameter in self.experts.adapter(self.k))
        return self.experts.num_parameters - (len(self.experts) - 1) * own

    def encode_raw(self, x: Tensor) -> Tensor:
        """Latents before standardisation, with shape (B, d)."""
        self.experts._activate(self.k)
        return self.experts.shared.encode_raw(x)

    def decode_raw(self, z: Tensor) -> Tensor:
        """Rows with shape (B, D) of latents before standardisation."""
        self.experts._activate(self.k)
        return self.experts.shared.decode_raw(z)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), where the shared autoencoder is a VAE.

        Raises:
            TypeError: it is none.
        """
        shared = self.experts.shared
        if not isinstance(shared, VAE):
            raise TypeError(f"a {type(shared).__name__} has no posterior: adapters are trained on a VAE")
        self.experts._activate(self.k)
        return shared.posterior(x)

    def merged(self) -> Autoencoder:
        """A plain autoencoder with weights W + (alpha / r) B_k A_k, independent of the experts."""
        plain = copy.deepcopy(self.experts.shared)
        for layer in _lora_layers(plain):
            layer.merge(adapter_names=[_name(self.k)])
        for name, module in list(plain.named_modules()):
            if hasattr(module, "base_layer"):
                parent, _, child = name.rpartition(".")
                setattr(plain.get_submodule(parent), child, module.base_layer)
        with torch.no_grad():
            plain.latent_mean.copy_(self.latent_mean)
            plain.latent_scale.copy_(self.latent_scale)
        return plain

    def save_pretrained(self, path: str | Path) -> Path:
        """Write the merged autoencoder into the folder `path`, atomically, and return it."""
        return self.merged().save_pretrained(path)


class LoRALoss(nn.Module):
    """The loss of `VAELoss`, every row through the adapter of its own expert.

    An expert without rows in a batch gets gradients of zero, so that several processes agree on what has gradients.

    Example:
        >>> from molrmog.autoencoders import MLPVAE
        >>> loss = LoRALoss(LoRAExperts(MLPVAE((8,), latent_dim=2), experts=3, rank=2))
        >>> loss(torch.zeros(4, 8), torch.tensor([0, 2, 2, 1]), *loss.draw(4)).shape
        torch.Size([4])
    """

    def __init__(self, experts: LoRAExperts, beta: float = 0.01, reconstruction: Literal["mse", "l1"] = "mse") -> None:
        """Wrap the experts for training; arguments as in :class:`VAELoss`."""
        super().__init__()
        self.experts = experts
        self.beta = beta
        self.reconstruction: Literal["mse", "l1"] = reconstruction

    @property
    def config(self) -> dict[str, Any]:
        """What the loss is, but for the autoencoders."""
        return {"beta": self.beta, "reconstruction": self.reconstruction}

    def draw(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor]:
        """The noise eps of `rows` rows, with shape (rows, d), on the CPU."""
        return (torch.randn(rows, self.experts.latent_dim, generator=generator),)

    def forward(self, x: Tensor, expert: Tensor, eps: Tensor) -> Tensor:
        """Loss of each row, with shape (B,).

        Args:
            x: rows with shape (B, D).
            expert: of each row, with shape (B,).
            eps: standard normal noise with shape (B, d), as :meth:`draw` gives it.
        """
        nothing = sum((0.0 * p.sum() for p in self.experts.parameters() if p.requires_grad), x.new_zeros(()))
        loss = nothing.expand(len(x))
        for k, index in rows_by_expert(expert, len(self.experts)):
            own = VAELoss(self.experts[k], self.beta, self.reconstruction)
            loss = loss.index_add(0, index, own(x[index], eps[index]))
        return loss


def rows_by_expert(expert: Tensor, experts: int) -> Iterator[tuple[int, Tensor]]:
    """Pairs of an expert that has rows, and the indices of its rows.

    Args:
        expert: of each row, with shape (B,).
        experts: how many there are.

    Raises:
        ValueError: a row's expert does not exist.
    """
    for k in expert.unique().tolist():
        if not 0 <= k < experts:
            raise ValueError(f"expert = {k}: there are experts 0 to {experts - 1}")
        yield int(k), (expert == k).nonzero()[:, 0]


def _name(k: int) -> str:
    return f"expert{k}"


def _lora_layers(module: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
