"""`sample`: from noise to data. It takes a sampler, by name or as it is, makes the first state, and runs.

| name      | class         | equation        | calls a step | order | reference |
| --------- | ------------- | --------------- | ------------ | ----- | --------- |
| exact     | Exact         | none, law only  | 0            | exact |                            |
| euler     | Euler         | ODE             | 1            | 1     | DDIM, arXiv 2010.02502     |
| heun      | Heun          | ODE             | 2            | 2     | arXiv 2206.00364           |
| dpm++     | DPMSolver     | ODE             | 1            | 2     | arXiv 2211.01095, 2M       |
| ancestral | Ancestral     | SDE             | 1            | 1     | DDPM, arXiv 2006.11239     |
| sde       | EulerMaruyama | SDE             | 1            | 1/2   | arXiv 2011.13456           |
"""

from __future__ import annotations

import itertools
import operator
from typing import Any, Literal, overload

import torch
from torch import Tensor

from molrmog import registry
from molrmog.arguments import flag, floating, one_of, real, shown, whole
from molrmog.devices import device_of
from molrmog.laws.base import check_generator
from molrmog.models import SupportsDenoise, check_denoiser, dim_of
from molrmog.progress import progress as stages
from molrmog.sampling.base import Sampler, SupportsSample, Trajectory, as_law
from molrmog.sampling.exact import Exact
from molrmog.sampling.jumps import gaussian_flow
from molrmog.schedules import Schedule, check_schedule

SAMPLERS: dict[str, type[Sampler]] = {name: registry.find(name, "sampler") for name in registry.SAMPLERS}
JUMPS = ("gaussian", "law")


@overload
def sample(
    denoiser: SupportsDenoise,
    schedule: Schedule,
    shape: tuple[int, int],
    sampler: str | type[Sampler] | Sampler = "heun",
    steps: int = 32,
    generator: torch.Generator | None = None,
    *,
    spacing: str = "log-snr",
    jump: float | None = None,
    jump_by: str = "gaussian",
    jump_law: SupportsSample | None = None,
    batch_size: int | None = None,
    trajectory: Literal[False] = False,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor: ...
@overload
def sample(
    denoiser: SupportsDenoise,
    schedule: Schedule,
    shape: tuple[int, int],
    sampler: str | type[Sampler] | Sampler = "heun",
    steps: int = 32,
    generator: torch.Generator | None = None,
    *,
    spacing: str = "log-snr",
    jump: float | None = None,
    jump_by: str = "gaussian",
    jump_law: SupportsSample | None = None,
    batch_size: int | None = None,
    trajectory: Literal[True],
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Trajectory: ...
def sample(
    denoiser: SupportsDenoise,
    schedule: Schedule,
    shape: tuple[int, int],
    sampler: str | type[Sampler] | Sampler = "heun",
    steps: int = 32,
    generator: torch.Generator | None = None,
    *,
    spacing: str = "log-snr",
    jump: float | None = None,
    jump_by: str = "gaussian",
    jump_law: SupportsSample | None = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor | Trajectory:
    """Turn noise into data with a denoiser and a schedule.

    The same generator seed gives the same samples. The noise of the first state is drawn for all rows at once, so the
    samples of an ODE sampler do not depend on `batch_size` either. No gradients are recorded.

    Args:
        denoiser: anything with `denoise(x_t, s, gamma)`; a law is one.
        schedule: the noise schedule.
        shape: (n, D): how many samples, of what dimension.
        sampler: a name in `SAMPLERS`, a sampler such as `Heun()` or one of your own, or its class.
        steps: steps from the first time to t_min; the denoiser is called once more at the end.
        generator: the source of every random number; torch's global one where None.
        spacing: how the times are spread: "log-snr", "uniform" or "karras" (see `Schedule.time_grid`).
        jump: reach this time at once and spend all the steps below it.
        jump_by: how it is reached: "gaussian" carries the noise along the exact probability flow of a single Gaussian
            (the same noise gives nearly the same sample as without the jump); "law" draws exact noised samples.
        jump_law: that law, or the one whose `moment_matched()` is that Gaussian; the denoiser itself where None.
        batch_size: rows that are sampled together, to bound the memory of a network; a law bounds its own.
        trajectory: return a `Trajectory` (samples, every noised state, times) instead of the samples alone.
        progress: show a progress bar on stderr.
        dtype: of the states; that of the denoiser's parameters where None, or else torch's default.
        device: of the states; that of the denoiser's parameters where None, or else torch's default.

    Returns:
        Tensor | Trajectory: samples with shape (n, D), or with `trajectory=True` a `Trajectory` that holds them.

    Raises:
        ValueError: an unknown sampler, spacing or jump_by; steps < 1; a shape that is not (n, D) or not the denoiser's;
            jump outside (t_min, t_max); a denoiser that is not a law where one is needed.

    Examples:
        >>> from molrmog.laws.molrmog import MoLRMoG
        >>> from molrmog.schedules import VPSchedule
        >>> law = MoLRMoG.random(dim=8, latent_dims=(2, 3), modes=(2, 1), rank=1, noise=0.1, seed=0)
        >>> sample(law, VPSchedule(), (5, 8), steps=8, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 8])
    """
    check_denoiser(denoiser)
    check_schedule(schedule)
    check_generator(generator)
    solver = sampler_of(sampler, denoiser, schedule, generator)
    one_of(jump_by, "jump_by", JUMPS)
    try:
        n, D = (operator.index(size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape must be (n, D), two whole numbers, not {shown(shape)}") from None
    if min(n, D) < 1:
        raise ValueError(f"shape must be (n, D) with n, D >= 1, not {(n, D)}")
    shape = n, D
    if hasattr(denoiser, "dim") and dim_of(denoiser) != shape[1]:
        raise ValueError(f"shape {tuple(shape)} asks for D = {shape[1]}, but the denoiser has D = {dim_of(denoiser)}")
    trajectory, progress = flag(trajectory, "trajectory"), flag(progress, "progress")
    batch_size = None if batch_size is None else whole(batch_size, "batch_size", 1)
    jump = None if jump is None else real(jump, "jump")
    if jump is not None and isinstance(solver, Exact):
        raise ValueError("sampler 'exact' has no times to jump over: leave out jump, or try sampler='heun'")
    if jump is not None and not schedule.t_min < jump < schedule.t_max:
        raise ValueError(f"jump must be a time in (t_min, t_max) = ({schedule.t_min}, {schedule.t_max}), not {jump}")
    times = schedule.time_grid(steps, spacing, t_start=jump)
    solver = solver.bind(denoiser, schedule, generator)
    like = torch.empty(0)
    if isinstance(denoiser, torch.nn.Module):
        like = next(denoiser.parameters(), like)
    dtype = like.dtype if dtype is None else floating(dtype)
    device = device_of(device) or like.device

    with torch.no_grad():
        if jump is None:
            x = solver.start(shape, dtype=dtype, device=device)
        else:
            law = _law_of_jump(denoiser if jump_law is None else jump_law, shape[1])
            s, gamma = schedule(jump)
            if jump_by == "gaussian":
                noise = solver.start(shape, dtype=dtype, device=device)
                x = gaussian_flow(law.moment_matched(), noise, *schedule(schedule.t_max), s, gamma)
            else:
                x = law.sample(shape[0], generator, s=s, gamma=gamma).x.to(dtype=dtype, device=device)
        chunks = torch.split(x, batch_size or shape[0])
        states: list[Tensor] = []  # of the first chunk, then of the second, ...
        with stages(shown=progress) as show:
            done = itertools.count(1)

            def on_state(state: Tensor) -> None:
                if trajectory:
                    states.append(state)
                show("sampling", next(done), len(chunks) * len(times))

            x = torch.cat([solver.run(chunk, times, on_state) for chunk in chunks])
    if not trajectory:
        return x
    by_time = [torch.cat(states[i :: len(times)]) for i in range(len(times))]
    return Trajectory(x, torch.stack(by_time), times)


def sampler_of(sampler: object, *bound: Any) -> Sampler:
    """The sampler that is asked for, not yet bound to a denoiser.

    Args:
        sampler: a name in `SAMPLERS`, a sampler, or its class.
        bound: denoiser, schedule and generator, for a class that cannot be built without them.

    Raises:
        ValueError: there is none of that name, it is no sampler, or its class cannot be built without arguments.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {shown(sampler)}: choose one of {', '.join(SAMPLERS)}, or a Sampler")
        sampler = SAMPLERS[sampler]
    if not (isinstance(sampler, type) and issubclass(sampler, Sampler)):
        raise ValueError(f"sampler {shown(sampler)}: pass one of {', '.join(SAMPLERS)}, a Sampler, or its class")
    refused = ""
    for arguments in ((), bound):  # without, or with what every sampler was once built with
        try:
            return sampler(*arguments)
        except TypeError as error:
            refused = refused or str(error)
    raise ValueError(f"a {sampler.__name__} cannot be built ({refused}): pass sampler={sampler.__name__}(...)")


def _law_of_jump(candidate: object, dim: int) -> SupportsSample:
    law = as_law(candidate, "a jump needs a law and a {} is not one: pass jump_law=law")
    if law.dim != dim:
        raise ValueError(f"jump_law has D = {law.dim}, but the samples are to have D = {dim}")
    return law
