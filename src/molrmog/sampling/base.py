"""What all samplers share: they walk down a grid of times and end on a clean point.

    gamma eps at times[0]  --step-->  x at times[1]  --step-->  ...  --step-->  x at t_min  --finish-->  E[x_0 | x_t]

`finish` calls the denoiser once more to remove the noise left at t_min, so that no solver has to step to gamma = 0: a
sampler with one call a step makes steps + 1 calls. A new sampler is a subclass that writes one `step`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from molrmog.denoisers.base import Denoiser
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

    Args:
        denoiser: anything with `denoise(x_t, s, gamma)`.
        schedule: the noise schedule.
        generator: the source of every random number; torch's global one where None.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, generator: torch.Generator | None = None) -> None:
        self.denoiser = denoiser
        self.schedule = schedule
        self.generator = generator

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
        """
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
