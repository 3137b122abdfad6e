"""What every law offers, whatever it is made of.

A law is a distribution of x_0 that stays in its family when it is noised, x_t = s x_0 + gamma eps, so that its density,
score, denoiser, posterior and samples are exact at every noise level. :class:`Law` is that face as a protocol;
:class:`Posterior` and :class:`Samples` are what its methods return.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore
from torch.utils.checkpoint import checkpoint

from molrmog.models import Denoiser, Expert, Noise

if TYPE_CHECKING:
    from molrmog.laws.molrmog import MoLRMoG, Subspace


@dataclass(frozen=True)
class Samples:
    """Exact samples of a law and where they came from.

    Attributes:
        x: the samples, with shape (n, D).
        subspace: the subspace each was drawn from, with shape (n,).
        mode: the mode inside that subspace, with shape (n,).
    """

    x: Tensor
    subspace: Tensor
    mode: Tensor


class PosteriorSource(Protocol):
    """What a posterior asks of its law when somebody asks for more than the mean."""

    def _posterior_variance(self, x: Tensor, s: Noise, gamma: Noise) -> Tensor: ...

    def _posterior_sample(
        self, x: Tensor, s: Noise, gamma: Noise, n: int, generator: torch.Generator | None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Posterior:
    """The distribution of the clean point x_0 given the noised point x_t, exact.

    It is a mixture whose weights are the gates, so its mean is the denoiser, its samples cost one categorical and one
    Gaussian draw, and its evidence is the density of x_t. The variance and samples are computed when asked for.

    Attributes:
        mean: E[x_0 | x_t], with shape (B, D).
        responsibilities: the gates over the modes of all subspaces, rows summing to one, with shape (B, sum n_k).
        log_prob: log p_t(x_t), the evidence in nats, with shape (B,).
    """

    mean: Tensor
    responsibilities: Tensor
    log_prob: Tensor
    _source: PosteriorSource
    _given: tuple[Tensor, Noise, Noise]

    @property
    def variance(self) -> Tensor:
        """Var[x_0 | x_t] of each coordinate (within modes + between modes), with shape (B, D)."""
        return self._source._posterior_variance(*self._given)

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw exact samples of x_0 given x_t, with shape (n, B, D).

        Args:
            n: samples per row.
            generator: source of randomness, for reproducibility.
        """
        if n < 1:
            raise ValueError(f"n = {n} samples asked of a posterior: ask for at least 1")
        return self._source._posterior_sample(*self._given, n, generator)


class Law(Denoiser):
    """The face of a law: `MoLRMoG`, `HeadTail`, and whatever composes them.

    Attributes:
        latent_dims: dimension d_k of each subspace.
        modes: number n_k of modes in each subspace.
        has_top_modes: whether there is `denoise_by_top_modes`.
        learnable: what a network made of the law may learn, and the parameter that holds it; empty where none can.
    """

    kind = "law"
    frozen = True
    has_top_modes: ClassVar[bool] = False
    learnable: ClassVar[Mapping[str, str]] = {}
    latent_dims: tuple[int, ...]
    modes: tuple[int, ...]

    @property
    def subspaces(self) -> int:
        """Number K of subspaces."""
        return len(self.modes)

    @property
    @abstractmethod
    def subspace_of(self) -> Tensor:
        """Subspace of each column of the responsibilities, with shape (sum n_k,)."""

    @property
    def component_of(self) -> Tensor:
        """The former name of `subspace_of`."""
        return self.subspace_of

    @property
    @abstractmethod
    def noise_floor(self) -> float:
        """Smallest standard deviation of any direction of the law, in data units."""

    @property
    def head_dim(self) -> int | None:
        """How many leading coordinates the mixture lives in; None where it is all of them."""
        return None

    def summary(self) -> list[tuple[str, str]]:
        """What the law is, as name and value."""
        d, n = self.latent_dims, self.modes
        return [
            ("dimension D", f"{self.dim:,}"),
            ("subspaces K", str(self.subspaces)),
            ("latent dimension d", str(d[0]) if min(d) == max(d) else f"{min(d)} to {max(d)}"),
            ("modes per subspace n", str(n[0]) if min(n) == max(n) else f"{min(n)} to {max(n)}"),
            ("parameters", f"{self.num_parameters:,}"),
            ("noise floor", f"{self.noise_floor:.4g} data units"),
        ]

    @abstractmethod
    def subspace(self, k: int) -> Subspace:
        """Subspace k without padding, detached from the law."""

    @abstractmethod
    def log_prob(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Log p_t(x) in nats, with shape (B,)."""

    @abstractmethod
    def score(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Gradient of log p_t at x, with shape (B, D)."""

    @abstractmethod
    def denoise(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0, expert: Expert | None = None) -> Tensor:
        """E[x_0 | x_t = x], with shape (B, D)."""

    def denoise_by_top_modes(self, x: Tensor, s: Tensor, gamma: Tensor, top: int) -> Tensor:
        """E[x_0 | x_t] from the modes that explain a row best."""
        raise ValueError(f"a {type(self).__name__} has no denoise_by_top_modes: call denoise")

    @abstractmethod
    def divergence(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """Divergence of the score at x, with shape (B,)."""

    @abstractmethod
    def posterior(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Posterior:
        """Distribution of x_0 given x_t = x."""

    def subspace_responsibilities(self, x: Tensor, s: Noise = 1.0, gamma: Noise = 0.0) -> Tensor:
        """P(x_0 on subspace k | x_t), with shape (B, K)."""
        r = self.posterior(x, s, gamma).responsibilities
        return r.new_zeros(len(x), self.subspaces).index_add(1, self.subspace_of, r)

    @abstractmethod
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        s: float = 1.0,
        gamma: float = 0.0,
        subspace: int | Tensor | None = None,
    ) -> Samples:
        """Exact samples of x_t (of x_0 by default)."""

    @abstractmethod
    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode."""

    def alone(self, k: int) -> Self:
        """The law p(x_0 | k), of subspace k alone; made when the law was last changed."""
        parameters = list(self.parameters())
        version = [(id(p), p.data_ptr(), p.device, 0 if p.is_inference() else p._version) for p in parameters]
        parts = self.__dict__.get("_parts", (None, {}, []))
        if parts[0] != version:
            parts = version, {}, parameters
            object.__setattr__(self, "_parts", parts)
        if k not in parts[1]:
            with torch.no_grad():
                parts[1][k] = self._alone(k).requires_grad_(False)
        return parts[1][k]

    @abstractmethod
    def _alone(self, k: int) -> Self: ...

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_parts"}


_CHUNK_NUMBERS = {"cpu": 2**24, "cuda": 2**26}  # numbers held at once: 64 MiB in float32, 256 MiB on a GPU


def rows_per_chunk(device: torch.device, width: int) -> int:
    """How many rows to handle at once when each holds `width` numbers."""
    return max(16, _CHUNK_NUMBERS.get(device.type, 2**22) // width)


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any of the dtypes is, float32 otherwise (float16 and bfloat16 are too narrow for densities)."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def values_hidden(*tensors: Tensor) -> bool:
    """Whether a functional transform (torch.func) hides the values of a tensor, so that none may be looked at."""
    return any(is_functorch_wrapped_tensor(t) for t in tensors)


def by_rows(
    compute: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    x: Tensor,
    s: Noise,
    gamma: Noise,
    *,
    dim: int,
    noise: Tensor,
    parameters: Iterable[Tensor],
    size: int,
) -> tuple[Tensor, ...]:
    """Check rows and noise levels, and apply `compute` to chunks of rows, so that temporaries stay small.

    Args:
        compute: called with rows (b, D) and s, gamma with shape (b or 1,); returns tensors with b rows.
        x: rows, with shape (B, D).
        s: signal scale, a float or one per row.
        gamma: noise standard deviation, a float or one per row.
        dim: dimension D that the rows must have.
        noise: standard deviations tau of the law, any of which may be zero only where gamma is not.
        parameters: of the law; where neither they nor the arguments ask for gradients, none are prepared.
        size: rows per chunk.

    Returns:
        What `compute` returned, with B rows each, in the dtype of x.

    Raises:
        ValueError: x is not (B, D), s or gamma is neither a number nor (B,), or there is no density at this noise.
    """
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}, but the law lives in R^{dim}: pass rows with shape (B, {dim})")
    given = x.dtype if x.is_floating_point() else noise.dtype
    x = x.to(compute_dtype(given, noise.dtype))
    s, gamma = noise_levels(x, s, gamma, noise)

    def chunk(at: slice) -> tuple[Tensor, ...]:
        levels = (t if len(t) == 1 else t[at] for t in (s, gamma))
        return tuple(out.to(given) for out in compute(x[at], *levels))

    def recomputed(at: slice) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", checkpoint(chunk, at, use_reentrant=False))

    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, s, gamma, *parameters))
    # Under torch.autocast products would be taken in bfloat16, too narrow for densities.
    with torch.set_grad_enabled(wanted), torch.autocast(x.device.type, enabled=False):
        if len(x) <= size:
            return chunk(slice(None))
        # With gradients, a chunk's temporaries are recomputed on the way back rather than kept for all rows.
        run = recomputed if wanted else chunk
        parts = [run(slice(start, start + size)) for start in range(0, len(x), size)]
        return tuple(torch.cat(outs) for outs in zip(*parts, strict=True))


def noise_levels(x: Tensor, s: Noise, gamma: Noise, noise: Tensor) -> tuple[Tensor, Tensor]:
    """S and gamma as tensors with shape (B or 1,), where every mode has a density."""
    levels = [torch.as_tensor(t, dtype=x.dtype, device=x.device) for t in (s, gamma)]
    for name, level in zip(("s", "gamma"), levels, strict=True):
        if level.shape not in [(), (1,), (len(x),)]:
            raise ValueError(f"{name} has shape {tuple(level.shape)}: pass a number or one per row, ({len(x)},)")
    s, gamma = (level.reshape(-1) for level in levels)
    if not values_hidden(s, gamma, noise):
        with torch.no_grad():
            if bool((gamma < 0).any()):
                raise ValueError("gamma is a standard deviation: pass gamma >= 0")
            if len(noise) and bool((s.square() * noise.square().min() + gamma.square() <= 0).any()):
                raise ValueError(
                    "gamma must be > 0 where tau = 0 (or s = 0), there is no density otherwise: "
                    "pass gamma > 0, or fit with noise_floor > 0"
                )
    return s, gamma


def routes(share: Tensor) -> list[Tensor | slice]:
    """For each expert the rows that it has a share in worth a digit; shares with shape (B, K).

    At low noise nearly every row belongs to one expert, and the others need not see it.
    """
    worth = 1e-2 * torch.finfo(share.dtype).eps < share.T  # (K, B)
    return [slice(None) if bool(mine.all()) else mine.nonzero()[:, 0] for mine in worth]


def draw(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """N categorical draws for each row of unnormalised weights, with shape (rows, n)."""
    if not n or not len(weights):
        return torch.zeros(len(weights), n, dtype=torch.long, device=weights.device)
    device = weights.device if generator is None else generator.device
    return torch.multinomial(weights.to(device), n, replacement=True, generator=generator).to(weights.device)


def normal(shape: tuple[int, ...], generator: torch.Generator | None, *, like: Tensor) -> Tensor:
    """Standard normal numbers from any device's generator, with the dtype and device of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
