"""What all samplers share: they go down a grid of times and end on a clean point.

    gamma eps at times[0]  --step-->  x at times[1]  --step-->  ...  --step-->  x at t_min  --finish-->  E[x_0 | x_t]

`finish` calls the denoiser once more to remove the noise left at t_min, so that no solver has to step to gamma = 0: a
sampler with one call a step makes steps + 1 calls.

A new sampler is a subclass that writes one `step`; `molrmog.sample` takes the class, or an instance with options of its
own. A line in `molrmog.registry` gives it a name.

    class Overshoot(Sampler):
        def __init__(self, by: float = 1.1) -> None:
            self.by = by

        def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
            (s, gamma), (s_next, gamma_next) = self.schedule(t), self.schedule(t_next)
            xhat = self.denoiser.denoise(x, s, gamma)
            return s_next * xhat + self.by * gamma_next * (x - s * xhat) / gamma

    molrmog.sample(denoiser, schedule, (64, D), sampler=Overshoot(by=1.05))
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from molrmog.laws.base import Samples
from molrmog.laws.molrmog import MoLRMoG
from molrmog.models import SupportsDenoise
from molrmog.schedules import Schedule


@dataclass(frozen=True)
class Trajectory:
    """Samples and how they came about.

    Attributes:
        x: the clean samples, with shape (n, D).
        trajectory: the noised states, one per time, with shape (steps + 1, n, D).
        times: the times of the states, decreasing, with shape (steps + 1,), float64, on the CPU.
    """

    x: Tensor
    trajectory: Tensor
    times: Tensor


class Sampler(ABC):
    """Base class of the samplers: owns the loop, a subclass writes `step`.

    What it samples with is bound when it is built, or later by :meth:`bind`, as `molrmog.sample` does.
    """

    denoiser: SupportsDenoise
    schedule: Schedule
    generator: torch.Generator | None = None

    def __init__(
        self,
        denoiser: SupportsDenoise | None = None,
        schedule: Schedule | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Make a sampler; a subclass with options of its own need not call this.

        Args:
            denoiser: anything with `denoise(x_t, s, gamma)`.
            schedule: the noise schedule.
            generator: the source of every random number; torch's global one where None.
        """
        if denoiser is not None:
            self.check(denoiser)
            self.denoiser = denoiser
        if schedule is not None:
            self.schedule = schedule
        self.generator = generator

    def bind(self, denoiser: SupportsDenoise, schedule: Schedule, generator: torch.Generator | None = None) -> Self:
        """A copy, options and all, that samples with these; the sampler itself stays as it is.

        Raises:
            ValueError: the denoiser is not one that the sampler can use.
        """
        self.check(denoiser)
        bound = copy.copy(self)
        bound.denoiser, bound.schedule, bound.generator = denoiser, schedule, generator
        return bound

    def check(self, denoiser: SupportsDenoise) -> None:  # noqa: B027
        """Refuse a denoiser that cannot be sampled with; every one can, unless a subclass needs more of it."""

    @abstractmethod
    def step(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Take x with shape (n, D) from time t down to time t_next."""

    def reset(self) -> None:  # noqa: B027
        """Forget earlier steps; called at the start of every run. Only multistep samplers have something to forget."""

    def start(self, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw the first state, gamma eps at t_max, with shape (n, D)."""
        _, gamma = self.schedule(self.schedule.t_max)
        return gamma * self.noise(shape, dtype=dtype, device=device)

    def finish(self, x: Tensor, t: float) -> Tensor:
        """Remove the noise left at the last time t: E[x_0 | x_t] with shape (n, D)."""
        return self.denoiser.denoise(x, *self.schedule(t))

    def run(self, x: Tensor, times: Tensor, on_state: Callable[[Tensor], object] | None = None) -> Tensor:
        """Take x from times[0] through every time, then finish.

        Args:
            x: the state at times[0], with shape (n, D).
            times: decreasing times, with shape (steps + 1,); see `Schedule.time_grid`.
            on_state: called with every state, the first included, with shape (n, D).

        Returns:
            Tensor: clean samples with shape (n, D).

        Raises:
            ValueError: the sampler is not bound.
        """
        if not (hasattr(self, "denoiser") and hasattr(self, "schedule")):
            raise ValueError(f"this {type(self).__name__} has nothing to sample with: call bind(denoiser, schedule)")
        self.reset()
        grid = [float(t) for t in times]
        if on_state is not None:
            on_state(x)
        for t, t_next in pairwise(grid):
            x = self.step(x, t, t_next)
            if on_state is not None:
                on_state(x)
        return self.finish(x, grid[-1])

    def noise(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal numbers, drawn where the generator lives and moved to the device."""
        source = device if self.generator is None else self.generator.device
        return torch.randn(shape, generator=self.generator, dtype=dtype, device=source).to(device)


@runtime_checkable
class SupportsSample(Protocol):
    """What is asked of a law: exact samples at any noise level, and the Gaussian that it is at high noise."""

    @property
    def dim(self) -> int:
        """Dimension D of the data."""
        ...

    def sample(
        self, n: int, generator: torch.Generator | None = None, *, s: float = 1.0, gamma: float = 0.0
    ) -> Samples:
        """Exact samples of x_t."""
        ...

    def moment_matched(self) -> MoLRMoG:
        """The single Gaussian with the mean and covariance of x_0."""
        ...


def as_law(candidate: object, refusal: str) -> SupportsSample:
    """The candidate as a law, for what no other denoiser can do.

    Args:
        candidate: a law.
        refusal: the message where it is none, "{}" standing for its class.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(candidate, SupportsSample):
        raise ValueError(refusal.format(type(candidate).__name__))
    return candidate
