"""What every law offers, whatever it is made of.

A law is a distribution of x_0 that stays in its family when it is noised, x_t = s x_0 + gamma eps, so that its density,
score, denoiser, posterior and samples are exact at every noise level. :class:`Law` is that face. It checks rows and
noise levels, takes tensors and NumPy arrays and answers in kind, works chunk by chunk so that temporaries stay small,
keeps what depends on the parameters alone for as long as they hold the same numbers, and lives in a folder.

A law of your own writes its formulas, for rows (b, D) and noise levels (b or 1,) that are checked already:

    _log_prob  _denoise  _responsibilities  _draw          what every law must have
    _score  _divergence  _posterior  _posterior_variance   follow by autograd where a law has nothing better
    _posterior_draw  _alone                                for posterior samples and the laws of single subspaces

and says what it is: dim, latent_dims, modes, config, noise_floor, subspace_weights, mode_weights, subspace, scaled,
moment_matched.

Precision.  Rows of float32 are computed in float32 where its digits suffice, and in float64 where they do not. What
that takes is for each law to say; noise levels reach it in float64.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch._C import _DisableFuncTorch  # pyright: ignore
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore
from torch.utils.checkpoint import checkpoint

from molrmog.arguments import real, shown, whole
from molrmog.data.arrays import as_numbers
from molrmog.models import Denoiser, Expert, Noise, refuse_expert

NumPy = np.ndarray[Any, Any]
Rows = TypeVar("Rows", Tensor, NumPy)
Result = TypeVar("Result")
Prepared = Callable[[torch.dtype], Result]
Compute = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


class HasDtype(Protocol):
    """What is there in one dtype, and can be had in another."""

    def to(self, dtype: torch.dtype, /) -> Self:
        """The same in another dtype."""
        ...


InDtype = TypeVar("InDtype", bound=HasDtype)


@dataclass(frozen=True)
class Subspace:
    """One subspace of a law, without padding.

    Attributes:
        weight: probability w_k of the subspace.
        basis: A_k with orthonormal columns, with shape (D, d_k).
        offset: b_k, with shape (D,).
        tau: standard deviation of the off-subspace noise, in data units, whose square is the `noise_variance_` of
            probabilistic PCA; or of each coordinate along the axes, with shape (D,), as in factor analysis.
        mode_weights: pi_k, with shape (n_k,).
        means: mu_kl, with shape (n_k, d_k).
        factors: U_kl, each with shape (d_k, r_kl).
        axes: orthonormal axes that tau goes along, as columns, with shape (D, D); None for those of the data.
    """

    weight: float
    basis: Tensor
    offset: Tensor
    tau: float | Tensor
    mode_weights: Tensor
    means: Tensor
    factors: tuple[Tensor, ...]
    axes: Tensor | None = None

    def isotropic_tau(self, what: str) -> float:
        """The standard deviation of the noise where it is one number.

        Args:
            what: stands on that, for the message.

        Raises:
            ValueError: the noise differs between coordinates.
        """
        if isinstance(self.tau, Tensor):
            raise ValueError(
                f"{what} needs isotropic noise, and that of this law differs between coordinates: fit it "
                "with noise='isotropic'"
            )
        return self.tau


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


@dataclass(frozen=True)
class Posterior:
    """The distribution of the clean point x_0 given the noised point x_t, exact.

    It is a mixture whose weights are the responsibilities, so its mean is the denoiser, its samples cost one
    categorical and one Gaussian draw, and its evidence is the density of x_t. The variance and samples are computed
    when asked for. All are NumPy arrays where the rows were one.

    Attributes:
        mean: E[x_0 | x_t], with shape (B, D).
        responsibilities: of the modes of all subspaces, rows summing to one, with shape (B, sum n_k).
        log_prob: log p_t(x_t), the evidence in nats, with shape (B,).
    """

    mean: Tensor
    responsibilities: Tensor
    log_prob: Tensor
    _law: Law
    _given: tuple[Any, Noise, Noise]

    @property
    def variance(self) -> Tensor:
        """Var[x_0 | x_t] of each coordinate (within modes + between modes), with shape (B, D)."""
        return self._law.posterior_variance(*self._given)

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw exact samples of x_0 given x_t, with shape (n, B, D).

        Args:
            n: samples per row.
            generator: source of randomness, for reproducibility.

        Raises:
            ValueError: n < 1.
        """
        return self._law.posterior_sample(*self._given, n, generator)


class Law(Denoiser):
    """A distribution with an exact score at every noise level: `MoLRMoG`, `HeadTail`, and laws of your own.

    A law that comes out of a fit or a file does not ask for gradients; call `law.requires_grad_()` to train it.

    Attributes:
        dim: dimension D of the data.
        latent_dims: dimension d_k of each subspace.
        modes: number n_k of modes in each subspace.
        head_dim: how many leading coordinates the mixture lives in, where these are not all; None otherwise.
        has_top_modes: whether `denoise_by_top_modes` is offered.
        learnable: what a network made of the law may learn, and the parameter that holds it; empty where none can.
    """

    kind = "law"
    frozen = True
    latent_dims: tuple[int, ...]
    modes: tuple[int, ...]
    head_dim: int | None = None
    has_top_modes: ClassVar[bool] = False
    learnable: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[object, tuple[list[Tensor], Any]] = {}

    # --- what it is

    @property
    def subspaces(self) -> int:
        """Number K of subspaces."""
        return len(self.modes)

    @property
    def subspace_of(self) -> Tensor:
        """Subspace of each column of the responsibilities, with shape (sum n_k,)."""
        return torch.arange(self.subspaces).repeat_interleave(torch.tensor(self.modes)).to(self._device)

    @property
    def component_of(self) -> Tensor:
        """The former name of `subspace_of`."""
        return self.subspace_of

    @property
    def mode_of(self) -> Tensor:
        """Mode inside its subspace of each column of the responsibilities, with shape (sum n_k,)."""
        return torch.cat([torch.arange(n) for n in self.modes]).to(self._device)

    @property
    @abstractmethod
    def noise_floor(self) -> float:
        """Smallest standard deviation of any direction off the subspaces, in data units."""

    @property
    @abstractmethod
    def subspace_weights(self) -> Tensor:
        """Probabilities w_k, with shape (K,)."""

    @property
    @abstractmethod
    def mode_weights(self) -> Tensor:
        """Probabilities pi_kl, zero where padded, with shape (K, n)."""

    @property
    def degrees_of_freedom(self) -> int:
        """In how many directions the parameters move the law, see `molrmog.laws.freedom`.

        Raises:
            ValueError: the law does not say.
        """
        raise ValueError(f"a {type(self).__name__} does not know its degrees of freedom: ask a MoLRMoG")

    @abstractmethod
    def subspace(self, k: int) -> Subspace:
        """Subspace k without padding, in R^D, detached from the law."""

    def alone(self, k: int) -> Self:
        """The law p(x_0 | k) of subspace k alone, frozen; made anew when the parameters have changed."""
        k = known_subspace(k, self.subspaces)
        laws = self._remembered("alone", lambda _: [self._alone(k) for k in range(self.subspaces)], self._tensors)
        return laws[k]

    @abstractmethod
    def scaled(self, c: float, shift: Tensor | None = None) -> Self:
        """The law of c x_0 + shift, frozen, with shift (D,); its scaling is exact where c is a power of two."""

    @abstractmethod
    def moment_matched(self) -> Law:
        """The single Gaussian with the mean and covariance of x_0, as a law with one subspace and one mode."""

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

    # --- what it says of rows

    def log_prob(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0) -> Rows:
        """Log p_t(x) in nats, with shape (B,).

        Args:
            x: rows of x_t, with shape (B, D); a tensor, or a NumPy array, which is answered by one.
            s: signal scale, a float or one per row with shape (B,).
            gamma: noise standard deviation, a float or one per row with shape (B,).

        Raises:
            ValueError: wrong shapes, a negative gamma, or gamma = 0 where tau = 0 (x_0 then has no density).
        """
        return self._by_rows(lambda *rows: (self._log_prob(*rows),), x, s, gamma)[0]

    def score(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0) -> Rows:
        """Gradient of log p_t at x, with shape (B, D); arguments and errors as in :meth:`log_prob`."""
        return self._by_rows(lambda *rows: (self._score(*rows),), x, s, gamma)[0]

    def denoise(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0, expert: Expert | None = None) -> Rows:
        """E[x_0 | x_t = x], with shape (B, D); arguments and errors as in :meth:`log_prob`.

        A law is not conditional on an expert: `alone` is the law of one subspace, and a `ConditionalLaw` takes experts.
        """
        refuse_expert(self, expert, "ask law.alone(k), wrap the law in a ConditionalLaw, or pass none")
        return self._by_rows(lambda *rows: (self._denoise(*rows),), x, s, gamma)[0]

    def divergence(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0) -> Rows:
        """Divergence of the score (trace of the Hessian of log p_t) at x, with shape (B,), in closed form.

        It is computed in float64. Arguments and errors as in :meth:`log_prob`.
        """
        return self._by_rows(lambda *rows: (self._divergence(*rows),), x, s, gamma, precise=True)[0]

    def posterior(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0) -> Posterior:
        """Distribution of x_0 given x_t = x; arguments and errors as in :meth:`log_prob`."""
        # Arrays where x is one: what a posterior holds is of the kind of its rows.
        mean, responsibilities, log_prob = cast("tuple[Tensor, ...]", self._by_rows(self._posterior, x, s, gamma))
        return Posterior(mean, responsibilities, log_prob, self, (x, s, gamma))

    def posterior_variance(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0) -> Rows:
        """Var[x_0 | x_t = x] of each coordinate, with shape (B, D); arguments and errors as in :meth:`log_prob`."""
        width = self._row_numbers(variance_of=self.dim)
        return self._by_rows(lambda *rows: (self._posterior_variance(*rows),), x, s, gamma, width=width, precise=True)[
            0
        ]

    @torch.no_grad()
    def posterior_sample(
        self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0, n: int = 1, generator: torch.Generator | None = None
    ) -> Rows:
        """Exact samples of x_0 given x_t = x, with shape (n, B, D); other arguments and errors as in :meth:`log_prob`.

        Args:
            x: rows of x_t, with shape (B, D).
            s: signal scale, a float or one per row with shape (B,).
            gamma: noise standard deviation, a float or one per row with shape (B,).
            n: samples per row.
            generator: source of randomness, for reproducibility.

        Raises:
            ValueError: n < 1.
        """
        n = whole(n, "n")
        if n < 1:
            raise ValueError(f"n = {n} samples asked of a posterior: ask for at least 1")
        check_generator(generator)
        most = rows_per_chunk(self._device, self._sample_numbers)
        rows = rows_per_chunk(self._device, 4 * self._row_numbers(own_levels=True))
        pieces = [min(most, n - start) for start in range(0, n, most)]

        def drawn(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            return (torch.cat([self._posterior_draw(x, s, gamma, piece, generator) for piece in pieces], 1),)

        return self._by_rows(drawn, x, s, gamma, size=max(1, min(rows, most // n)))[0].swapaxes(0, 1)

    def bic(self, x: Any) -> float:
        """Bayesian information criterion of rows x (N, D), in nats, the smaller the better: p log N - 2 log p(x).

        Errors as in :meth:`log_prob`.

        References:
            Schwarz, "Estimating the dimension of a model", 1978.
        """
        log_prob = self._log_probs(x)
        return self.degrees_of_freedom * math.log(len(log_prob)) - 2 * float(log_prob.sum())

    def aic(self, x: Any) -> float:
        """Akaike's information criterion of rows x (N, D), in nats, the smaller the better: 2 p - 2 log p(x).

        Errors as in :meth:`log_prob`.

        References:
            Akaike, "A new look at the statistical model identification", 1974.
        """
        return 2 * self.degrees_of_freedom - 2 * float(self._log_probs(x).sum())

    def icl(self, x: Any) -> float:
        """Integrated complete likelihood of rows x (N, D), in nats, the smaller the better.

        It is BIC and twice the entropy of the responsibilities of all modes: modes that overlap cost something.
        Errors as in :meth:`log_prob`.

        References:
            Biernacki, Celeux & Govaert, "Assessing a mixture model for clustering with the integrated completed
            likelihood", 2000.
        """
        with torch.no_grad():
            shares = torch.as_tensor(self.posterior(x).responsibilities).double()
        return self.bic(x) + 2 * float(torch.special.entr(shares).sum())

    def _log_probs(self, x: Any) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(self.log_prob(x)).double()

    def subspace_responsibilities(self, x: Rows, s: Noise = 1.0, gamma: Noise = 0.0) -> Rows:
        """P(x_0 on subspace k | x_t = x), with shape (B, K); arguments and errors as in :meth:`log_prob`."""

        def shares(x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor]:
            modes = self._responsibilities(x, s, gamma)
            return (modes.new_zeros(len(x), self.subspaces).index_add(1, self.subspace_of, modes),)

        return self._by_rows(shares, x, s, gamma)[0]

    def denoise_by_top_modes(self, x: Tensor, s: Tensor, gamma: Tensor, top: int) -> Tensor:
        """E[x_0 | x_t] from the modes that explain a row best, where the law offers it; see `MoLRMoG`."""
        raise ValueError(f"a {type(self).__name__} does not offer its best modes alone: leave out top")

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
        n = whole(n, "n")
        if n < 0:
            raise ValueError(f"n = {n} samples: ask for 0 or more")
        check_generator(generator)
        mend = "pass one finite number for all samples"
        s, gamma = real(s, "s", mend), real(gamma, "gamma", mend)
        for name, level in (("s", s), ("gamma", gamma)):
            if not math.isfinite(level):
                raise ValueError(f"{name} = {level}: {mend}")
        if gamma < 0:
            raise ValueError(f"gamma = {gamma} is a standard deviation: pass gamma >= 0")
        within = self.mode_weights.to(compute_dtype(self._dtype))  # (K, modes)
        modes = within.shape[1]
        if subspace is None:
            weights = self.subspace_weights.to(within)[:, None] * within
            component = categorical(weights.flatten().expand(1, -1), n, generator)[0]
        else:
            wanted = _index(subspace).to(within.device)
            if not is_whole(wanted) or wanted.shape not in [(), (n,)]:
                raise ValueError(f"subspace has shape {tuple(wanted.shape)}: pass an index, or one per sample, ({n},)")
            wanted = wanted.long().expand(n)
            if n and not bool(((wanted >= 0) & (wanted < self.subspaces)).all()):
                raise ValueError(f"subspace = {shown(subspace)}: this law has subspaces 0 to {self.subspaces - 1}")
            component = wanted * modes + categorical(within[wanted], 1, generator)[:, 0]
        k, mode = component // modes, component % modes
        most = rows_per_chunk(self._device, self._sample_numbers)
        parts = zip(k.split(most), mode.split(most), strict=True)
        drawn = [self._draw(*part, s, gamma, generator) for part in parts]
        x = torch.cat(drawn) if n else within.new_empty(0, self.dim)
        return Samples(x.to(self._dtype), k, mode)

    # --- what a law writes: rows are float32 or float64, noise levels float64 with shape (b or 1,)

    @abstractmethod
    def _log_prob(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """Log p_t(x), with shape (b,)."""

    @abstractmethod
    def _denoise(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """E[x_0 | x_t = x], with shape (b, D)."""

    @abstractmethod
    def _responsibilities(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """Of all modes, with shape (b, sum n_k)."""

    @abstractmethod
    def _draw(self, k: Tensor, mode: Tensor, s: float, gamma: float, generator: torch.Generator | None) -> Tensor:
        """A sample of x_t from each mode of subspace k, with shape (rows, D); k and mode with shape (rows,)."""

    def _score(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """Gradient of log p_t, with shape (b, D)."""
        return _derivative(lambda x: self._log_prob(x, s, gamma), x)

    def _divergence(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """Trace of the Hessian of log p_t, with shape (b,)."""
        return _diagonal(lambda x: self._score(x, s, gamma), x).sum(1)

    def _posterior(self, x: Tensor, s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, responsibilities and log p_t(x)."""
        rows = x, s, gamma
        return self._denoise(*rows), self._responsibilities(*rows), self._log_prob(*rows)

    def _posterior_variance(self, x: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
        """Var[x_0 | x_t] with shape (b, D): gamma^2 / s times the derivative of the denoiser."""
        slope = _diagonal(lambda x: self._denoise(x, s, gamma), x)
        return gamma[:, None].square() / s[:, None] * slope

    def _posterior_draw(self, x: Tensor, s: Tensor, gamma: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw n samples of x_0 given each row, with shape (b, n, D)."""
        raise NotImplementedError(f"a {type(self).__name__} offers no posterior samples")

    def _alone(self, k: int) -> Self:
        """The law of subspace k alone, frozen."""
        raise NotImplementedError(f"a {type(self).__name__} does not offer its subspaces alone")

    @property
    def _tensors(self) -> list[Tensor]:
        """What the law is made of; parametrised tensors, too."""
        return list(self.parameters())

    @property
    def _noise(self) -> Tensor:
        """Every standard deviation that must not be zero at gamma = 0, with shape (any,)."""
        return torch.full((1,), self.noise_floor, device=self._device)

    @property
    def _sample_numbers(self) -> int:
        """Numbers that a sample takes while it is drawn."""
        return 4 * self.dim

    def _row_numbers(self, own_levels: bool = False, variance_of: int = 0) -> int:
        """Numbers that a row takes while it is computed: with noise levels of its own, for so many variances."""
        return self.dim + 3 * sum(self.modes) * variance_of

    # --- how rows get there and back

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _by_rows(
        self,
        compute: Compute,
        x: Rows,
        s: Noise,
        gamma: Noise,
        *,
        width: int | None = None,
        size: int | None = None,
        precise: bool = False,
        several: bool = False,
    ) -> tuple[Rows, ...]:
        """Check the arguments and apply `compute` to chunks of rows.

        Args:
            compute: as in :func:`by_rows`.
            x: rows, with shape (B, D).
            s: signal scale, a float or one per row.
            gamma: noise standard deviation, a float or one per row.
            width: numbers it holds per row.
            size: rows per chunk, where `width` does not say it.
            precise: compute in float64.
            several: whether gamma may differ between coordinates.
        """
        rows = x if isinstance(x, Tensor) else as_tensor(x).to(self._device)
        own_levels = not (isinstance(s, float | int) and isinstance(gamma, float | int))
        results = by_rows(
            compute,
            rows,
            s,
            gamma,
            dim=self.dim,
            noise=self._noise,
            parameters=self.parameters(),
            size=size or rows_per_chunk(self._device, width or self._row_numbers(own_levels)),
            dtype=torch.float64 if precise else None,
            several=several,
        )
        return tuple(results if isinstance(x, Tensor) else (to_numpy(result) for result in results))  # pyright: ignore

    def _prepared(
        self, build: Callable[[list[Tensor], bool], InDtype], of: Sequence[Tensor], key: str = "prepared"
    ) -> Prepared[InDtype]:
        """What `build` makes of the parameters `of`, in any dtype; with derivatives where they are wanted.

        Args:
            build: called with contiguous tensors, and whether derivatives are wanted; what it returns has `to(dtype)`.
            of: the parameters that it is made of.
            key: under which it is remembered.
        """
        # Inside torch.func transforms the parameters are plain tensors, differentiated without requires_grad.
        if any(type(p) is Tensor or (torch.is_grad_enabled() and p.requires_grad) for p in of):
            return functools.cache(build([p.contiguous() for p in of], True).to)

        def in_both_dtypes(numbers: list[Tensor]) -> Prepared[InDtype]:
            form = build(numbers, False)
            return {dtype: form.to(dtype) for dtype in (torch.float32, torch.float64)}.__getitem__

        return self._remembered(key, in_both_dtypes, of)

    def _remembered(self, key: object, make: Callable[[list[Tensor]], Result], of: Sequence[Tensor]) -> Result:
        """What `make` returned last for `key`, or anew if the tensors `of` hold other numbers than then.

        It is called with copies of these tensors, which are kept beside what it returns. The numbers themselves are
        compared, since no version counter sees every change: edits through `.data`, NumPy views and inference mode
        leave none.
        """
        with _DisableFuncTorch():  # whose transforms would wrap the parameters, which they have nothing to do with
            entry = self._derived.get(key)
            if entry is None or not same_numbers(entry[0], of):
                with torch.inference_mode(False), torch.no_grad():
                    numbers = [contiguous_copy(tensor) for tensor in of]
                    entry = numbers, make(numbers)
                self._derived[key] = entry
        return entry[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}


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


MANY = 0.25  # share of a chunk's rows that need float64 from which all are computed in it
_MOST_STEPS, _HIDDEN = 40, 8  # of Newton's iteration; and where values are hidden, so that no distance is known
_ROUNDED = 2e-6  # how far a basis rounded to float32 is from orthonormal
_EXACT_IN_FLOAT32 = (torch.bool, torch.uint8, torch.int8, torch.int16)


def by_rows(
    compute: Compute,
    x: Tensor,
    s: Noise,
    gamma: Noise,
    *,
    dim: int,
    noise: Tensor,
    parameters: Iterable[Tensor],
    size: int,
    dtype: torch.dtype | None = None,
    several: bool = False,
) -> tuple[Tensor, ...]:
    """Check rows and noise levels, and apply `compute` to chunks of rows, so that temporaries stay small.

    Args:
        compute: called with rows (b, D) in float32 or float64 and s, gamma with shape (b or 1,) in float64; returns
            tensors with b rows.
        x: rows, with shape (B, D).
        s: signal scale, a float or one per row.
        gamma: noise standard deviation, a float or one per row.
        dim: dimension D that the rows must have.
        noise: standard deviations tau of the law, any of which may be zero only where gamma is not.
        parameters: of the law; where neither they nor the arguments ask for gradients, none are prepared.
        size: rows per chunk.
        dtype: to compute in; float64 where rows or law are or where rows are wide integers, else float32.
        several: whether gamma may differ between coordinates, with shape (1 or B, D); `compute` gets it so.

    Returns:
        What `compute` returned, with B rows each, in the dtype of x, or of the law where x holds integers.

    Raises:
        ValueError: x is not (B, D), s or gamma is neither a number nor (B,), or there is no density at this noise.
    """
    if x.is_complex() or x.layout != torch.strided or x.is_meta:
        raise ValueError("x is a complex, sparse or meta tensor: pass real numbers in a dense one, as x.to_dense() is")
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}, but the law lives in R^{dim}: pass rows with shape (B, {dim})")
    answer = x.dtype if x.is_floating_point() else noise.dtype
    wide = not x.is_floating_point() and x.dtype not in _EXACT_IN_FLOAT32
    x = x.to(dtype or (torch.float64 if wide else compute_dtype(answer, noise.dtype)))
    s, gamma = noise_levels(len(x), s, gamma, noise, dim if several else None)

    def chunk(at: slice) -> tuple[Tensor, ...]:
        levels = (t if len(t) == 1 else t[at] for t in (s, gamma))
        return tuple(out.to(answer) for out in compute(x[at], *levels))

    def recomputed(at: slice) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", checkpoint(chunk, at, use_reentrant=False))

    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, s, gamma, *parameters))
    # Under torch.autocast products would be taken in bfloat16, too narrow for densities.
    with torch.set_grad_enabled(wanted), torch.autocast(x.device.type, enabled=False):
        if len(x) <= size:
            return chunk(slice(None))
        starts = range(0, len(x), size)
        if wanted or values_hidden(x, s, gamma):
            # A chunk's temporaries are recomputed on the way back rather than kept for all rows.
            run = recomputed if wanted else chunk
            parts = [run(slice(start, start + size)) for start in starts]
            return tuple(torch.cat(outs) for outs in zip(*parts, strict=True))
        first = chunk(slice(0, size))
        # Written to one place: small results between large temporaries keep memory from being used again.
        whole = tuple(out.new_empty(len(x), *out.shape[1:]) for out in first)
        for start in starts:
            at = slice(start, start + size)
            for out, part in zip(whole, chunk(at) if start else first, strict=True):
                out[at] = part
        return whole


def noise_levels(rows: int, s: Noise, gamma: Noise, noise: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Noise levels s and gamma as float64 tensors with shape (B or 1,), where every mode has a density.

    Args:
        rows: B.
        s: signal scale, a float or one per row.
        gamma: noise standard deviation, a float or one per row; or one per coordinate, (1 or B, D), where `dim` is
            given, infinite where a coordinate is not seen.
        noise: standard deviations of the law, with shape (any,), or (any, D) for those of coordinates, on the device of
            the rows.
        dim: D, where the noise may differ between coordinates; gamma then keeps its shape (B or 1, D).

    Raises:
        ValueError: s or gamma is neither a number nor (B,), gamma is negative, or there is no density at this noise.
    """
    levels = [_level(name, t).to(noise.device, torch.float64) for name, t in (("s", s), ("gamma", gamma))]
    several = dim is not None and levels[1].ndim == 2
    for name, level in zip(("s", "gamma"), levels, strict=True):
        shapes = [(1, dim), (rows, dim)] if several and name == "gamma" else [(), (1,), (rows,)]
        if level.shape not in shapes:
            also = "" if dim is None or name == "s" else f", or one per coordinate, (1, {dim}) or ({rows}, {dim})"
            raise ValueError(f"{name} has shape {tuple(level.shape)}: pass a number or one per row, ({rows},){also}")
    s, gamma = levels[0].reshape(-1), levels[1] if several else levels[1].reshape(-1)
    if not values_hidden(s, gamma, noise):
        with torch.no_grad():
            if not bool((gamma >= 0).all()):
                raise ValueError("gamma is a standard deviation, and one here is negative or NaN: pass gamma >= 0")
            scale, least = s.square(), noise.double().square()
            if several:
                scale, least = scale[:, None], least.amin(0) if least.ndim == 2 else least.amin()
            elif len(noise):
                least = least.min()
            if len(noise) and bool((scale * least + gamma.square() <= 0).any()):
                raise ValueError(
                    "gamma must be > 0 where tau = 0 (or s = 0), there is no density otherwise: "
                    "pass gamma > 0, or fit with noise_floor > 0"
                )
    return s, gamma


def _level(name: str, level: Any) -> Tensor:
    """A noise level as a tensor, or a ValueError that names it."""
    mend = "pass a number, or one per row"
    if isinstance(level, Tensor):
        if level.is_complex() or level.layout != torch.strided or level.is_meta:
            raise ValueError(f"{name} is a complex, sparse or meta tensor: {mend}")
        return level
    if level is None or np.ma.is_masked(level) or np.iscomplexobj(level) or np.asarray(level).dtype.kind in "USV":
        raise ValueError(f"{name} = {' '.join(repr(level).split())[:60]}: {mend}")
    try:
        return torch.from_numpy(np.array(level, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {' '.join(repr(level).split())[:60]}: {mend}") from None


def in_float64(
    compute: Compute, x: Tensor, s: Tensor, gamma: Tensor, at: Tensor | slice = slice(None)
) -> tuple[Tensor, ...]:
    """`compute` of the rows `at` in float64, in the dtype of x."""
    levels = (level if len(level) == 1 else level[at] for level in (s, gamma))
    return tuple(out.to(x.dtype) for out in compute(x[at].double(), *levels))


def refine_(out: Sequence[Tensor], compute: Compute, x: Tensor, s: Tensor, gamma: Tensor, where: Tensor) -> None:
    """Replace rows of `out`, those that the mask `where` (b,) names, by what `compute` gives in float64."""
    at = where.nonzero()[:, 0]
    if len(at):
        for coarse, fine in zip(out, in_float64(compute, x, s, gamma, at), strict=True):
            coarse[at] = fine.to(coarse.dtype)


def as_tensor(x: Any, name: str = "x", *, missing: bool = False) -> Tensor:
    """Numbers as a tensor, which is a copy of whatever is none, without a gradient; see `molrmog.data.arrays`.

    Raises:
        ValueError: they are no numbers, or some are missing.
    """
    array = as_numbers(x, name, missing=missing)
    if isinstance(array, Tensor):
        return array
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # becomes infinite
            array = array.astype(np.float64)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64 if array.dtype.itemsize < 8 else np.float64)
    return torch.from_numpy(np.array(array))


def to_numpy(result: Tensor) -> NumPy:
    """A result as an array; bfloat16, which NumPy does not know, as float32."""
    result = result.detach().cpu()
    return (result.float() if result.dtype == torch.bfloat16 else result).numpy()


def same_numbers(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors hold the same bits on the same device in the same shapes and dtypes."""
    return len(before) == len(now) and all(_same_bits(a, b) for a, b in zip(before, now, strict=True))


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    a, b = (t.detach().view(_BITS[t.element_size()]) for t in (a, b))
    # NumPy compares ten times as fast as torch.equal on a CPU.
    return np.array_equal(a.numpy(), b.numpy()) if a.device.type == "cpu" else torch.equal(a, b)


def is_whole(numbers: Tensor) -> bool:
    """Whether a tensor holds whole numbers, which may be indices."""
    return not (numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex())


def _index(index: Any) -> Tensor:
    """An index, or several, as a tensor on the CPU; see `Law.sample`."""
    if isinstance(index, Tensor):
        if index.layout != torch.strided or index.is_meta:
            raise ValueError("subspace is a sparse or meta tensor: pass an index, or one per sample")
        return index
    try:
        array = np.asarray(index)
        if array.dtype.kind not in "iu" or not array.size:
            raise TypeError
        return torch.from_numpy(array.astype(np.int64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"subspace = {shown(index)}: pass an index, or one per sample") from None


def known_subspace(k: Any, subspaces: int) -> int:
    """The index of a subspace that there is; negative ones count from the end.

    Raises:
        ValueError: there is none.
    """
    k = whole(k, "k")
    if not -subspaces <= k < subspaces:
        raise ValueError(f"k = {k}: this law has subspaces 0 to {subspaces - 1}")
    return k


def check_law(law: object, name: str = "law") -> None:
    """Refuse what is no law.

    Raises:
        ValueError: it is none.
    """
    speaks = any(callable(getattr(law, verb, None)) for verb in ("log_prob", "posterior"))
    if isinstance(law, type) or not speaks or not hasattr(law, "dim"):
        raise ValueError(f"{name} = {shown(law)} is no law: pass one, as molrmog.fit returns")


def check_generator(generator: object) -> None:
    """Refuse what is no source of randomness of torch.

    Raises:
        ValueError: it is none, nor None.
    """
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise ValueError(f"generator = {shown(generator)}: pass torch.Generator().manual_seed(seed), or None")


def active_rows(share: Tensor) -> list[Tensor | slice]:
    """For each expert the rows that it has a share in worth a digit; shares with shape (B, K).

    At low noise nearly every row belongs to one expert, and the others need not see it.
    """
    worth = 1e-2 * torch.finfo(share.dtype).eps < share.T  # (K, B)
    return [slice(None) if bool(mine.all()) else mine.nonzero()[:, 0] for mine in worth]


def categorical(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw n times from each row of unnormalised weights, with shape (rows, n)."""
    if not n or not len(weights):
        return torch.zeros(len(weights), n, dtype=torch.long, device=weights.device)
    device = weights.device if generator is None else generator.device
    return torch.multinomial(weights.to(device), n, replacement=True, generator=generator).to(weights.device)


def normal(shape: tuple[int, ...], generator: torch.Generator | None, *, like: Tensor) -> Tensor:
    """Standard normal numbers from any device's generator, with the dtype and device of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def contiguous_copy(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in memory of their own, laid down as torch does."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def orthonormal(A: Tensor) -> Tensor:
    """A (A^T A)^-1/2 by Newton's iteration, with shape (..., m, r), in float64.

    Rounded to float32, a basis is orthonormal to 1e-7 only, rounded to bfloat16 to 1e-2, and the average of two bases
    is not orthonormal at all; at low noise this shows. One step is always taken, so that gradients are tangent to the
    bases, and for a basis that is rounded it is enough. Columns that are zero stay zero.
    """
    A = A.double()
    for step in range(_MOST_STEPS):
        gram = A.mT @ A
        off = math.inf if values_hidden(gram) else _distance(gram.detach())
        if step == 0 and off > 0.1:  # far away, or hidden: singular values of at most one are sure to rise to it
            shrink = gram.detach().abs().sum(-1).amax(-1).clamp(min=torch.finfo(gram.dtype).tiny)[..., None, None]
            A, gram = A / shrink.sqrt(), gram / shrink
        A = 1.5 * A - 0.5 * A @ gram
        if off < _ROUNDED or (step == _HIDDEN and off == math.inf):  # a step squares the distance
            break
    return A


def _distance(gram: Tensor) -> float:
    """How far A^T A is from one, columns that are zero left out."""
    if not gram.numel():
        return 0.0
    own = gram.diagonal(dim1=-2, dim2=-1)
    return float((gram - (own > 0).to(gram).diag_embed()).abs().amax())


def _derivative(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of a row-wise function, with the shape of x."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x, create_graph=wanted)[0]


def _diagonal(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Diagonal of the Jacobian of a row-wise vector field, with the shape of x."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = f(x)
        columns = [
            torch.autograd.grad(value[:, i].sum(), x, create_graph=wanted, retain_graph=True)[0][:, i]
            for i in range(x.shape[1])
        ]
    return torch.stack(columns, 1)
