"""What a generative model costs: numbers to learn, floating-point operations, seconds.

Where a score network lives in the latents of autoencoders, each sample costs

    steps x (score network)  +  one decoding

so both parts are stated: a small score network behind large autoencoders is not a small model.

Operations are counted as they run (`torch.utils.flop_counter`), a multiplication and an addition as two: matrix
products, convolutions and attention. Elementwise work, norms, softmax and matrix decompositions are not counted. A law
routes rows to the subspaces that can explain them, so its count depends on the rows and on the noise level; what it
caches per parameter change is not counted, for it is not paid per step. With D dimensions and K subspaces of dimension
d with n modes each, rows that every subspace must see cost about 2 K (2 D d + 2 n d^2) operations each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.utils import flop_counter

from molrmog.models import Expert, Noise, SupportsDenoise, check_denoiser, denoise_with, num_parameters_of


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)  # of shapes


# The attention kernel of CPUs, which torch's own table passes over.
_MISSING: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@runtime_checkable
class _InLatents(Protocol):
    """A denoiser of latents with autoencoders around it."""

    @property
    def autoencoder_parameters(self) -> int: ...

    def latent_denoise(self, z: Tensor, s: Noise, gamma: Noise, expert: Expert | None = None, /) -> Tensor: ...

    def decode(self, z: Tensor, expert: Expert | None = None, /) -> Tensor: ...


@dataclass(frozen=True)
class Cost:
    """Size and work of a denoiser, its autoencoders apart.

    Attributes:
        parameters: numbers that describe the score network.
        autoencoder_parameters: numbers of all autoencoders, 0 where there are none.
        flops: floating-point operations of the score network for one row and one denoising step.
        autoencoder_flops: floating-point operations of decoding one row, paid once per sample.
    """

    parameters: int
    autoencoder_parameters: int
    flops: float
    autoencoder_flops: float


def cost(
    denoiser: SupportsDenoise, x: Tensor, s: float | Tensor, gamma: float | Tensor, expert: int | Tensor | None = None
) -> Cost:
    """Count the parameters of a denoiser and its operations on a batch, per row.

    Args:
        denoiser: anything with `denoise`. One with autoencoders, as `Experts` is, has `latent_denoise` and `decode`,
            which are measured in its place, and `autoencoder_parameters`.
        x: noised rows with shape (B, D), or noised latents with shape (B, d) where there are autoencoders.
        s: signal scale, a float or one per row with shape (B,).
        gamma: noise standard deviation, a float or one per row with shape (B,).
        expert: the expert or class of all rows, or of each with shape (B,), for denoisers that take one.

    Returns:
        Parameters, and operations as means over the rows.

    Raises:
        ValueError: where there are no rows.

    Examples:
        >>> from molrmog import MoLRMoG
        >>> law = MoLRMoG.random(dim=100, latent_dims=(3,), modes=(2,), rank=1, noise=0.1, seed=0)
        >>> cost(law, torch.zeros(4, 100), s=1.0, gamma=1.0).flops > 2 * (100 * 3 + 3 * 100)
        True
    """
    check_denoiser(denoiser)
    if not len(x):
        raise ValueError("x has no rows: pass at least one")
    parameters, rows = num_parameters_of(denoiser), len(x)
    with torch.no_grad():
        if not isinstance(denoiser, _InLatents):
            return Cost(parameters, 0, count_flops(lambda: denoise_with(denoiser, x, s, gamma, expert)) / rows, 0.0)
        named = () if expert is None else (expert,)
        work = count_flops(lambda: denoiser.latent_denoise(x, s, gamma, *named))
        decoding = count_flops(lambda: denoiser.decode(x, *named))
        return Cost(parameters, denoiser.autoencoder_parameters, work / rows, decoding / rows)


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, after one that fills the caches.

    Args:
        call: run twice, in the caller's gradient mode.

    Returns:
        Twice the multiply-adds of its matrix products, convolutions and attention.

    Examples:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> count_flops(lambda: (a @ b).exp())
        48
    """
    call()
    with flop_counter.FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
        call()
    return counter.get_total_flops()


class Stopwatch:
    """Wall and CPU time of a block of code; entered again, it goes on.

    CPU time is that of all threads of this process, not of other processes (a data loader's, say). Work that was handed
    to a GPU is waited for at both ends.

    Attributes:
        wall: seconds that went by inside.
        cpu: CPU seconds that were spent inside.

    Examples:
        >>> with Stopwatch() as watch:
        ...     total = sum(range(1000))
        >>> watch.wall > 0.0
        True
    """

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0

    def __enter__(self) -> Self:
        _wait_for_device()
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        _wait_for_device()
        self.wall += time.perf_counter() - self._started[0]
        self.cpu += time.process_time() - self._started[1]


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
