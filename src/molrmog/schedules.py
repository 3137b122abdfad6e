"""Noise schedules: how much signal and how much noise there is at time t.

    x_t = s x_0 + gamma eps,   (s, gamma) = schedule(t),   sigma = gamma / s
    f(t) = d log s / dt,       g(t)^2 = s^2 d(sigma^2)/dt        (dx = f x dt + g dw)
    log_snr(t) = log(s^2 / gamma^2) = 2 log(s / gamma)           (twice the lambda of DPM-Solver)

Time runs from t_min (nearly clean) to t_max (nearly noise); a sampler goes the other way. gamma is strictly
increasing, so log-SNR is strictly decreasing and every schedule inverts it in closed form. gamma(t_min) > 0 by default:
what noise is left there is removed by one last call of the denoiser (`molrmog.sample`), never by a solver's step.

A time grid places steps + 1 times between t_max and t_min, both included. Evenly in log-SNR (or in sigma^(1/rho)) there
is no room for an end whose sigma is infinite or zero, as at t = 1 (s = 0) and t = 0 of the flow schedule: the spacing
then counts that end as sigma = 100 (or 1/1000), and the grid still begins and ends exactly at t_max and t_min.

| name     | class            | s(t)              | gamma(t)                          | reference                      |
| -------- | ---------------- | ----------------- | --------------------------------- | ------------------------------ |
| vp       | VPSchedule       | exp(-B/2)         | sqrt(1 - exp(-B))                 | Song et al. 2021, eq. 33       |
| ve       | VESchedule       | 1                 | sigma_min (sigma_max/sigma_min)^t | Song et al. 2021, eq. 31       |
| cosine   | CosineSchedule   | cos(a) / cos(a_0) | sqrt(1 - s^2)                     | Nichol & Dhariwal 2021, eq. 17 |
| flow     | FlowSchedule     | 1 - t             | t                                 | Lipman et al. 2023, eq. 20     |
| discrete | DiscreteSchedule | from a table      | sqrt(1 - s^2)                     | Ho et al. 2020, eq. 4          |

References:
    Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models, arXiv 2006.11239, section 2.
    Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
        arXiv 2011.13456, appendix C.
    Nichol & Dhariwal, Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672, section 3.2.
    Lipman et al., Flow Matching for Generative Modeling, arXiv 2210.02747, section 4.1.
    Liu et al., Flow Straight and Fast, arXiv 2209.03003, section 2.1.
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from molrmog.arguments import is_a, one_of, real, shown, whole

SPACINGS = ("log-snr", "uniform", "karras")

Time = TypeVar("Time", float, Tensor)

# Only the spacing of a grid uses these, where an end of the schedule has sigma = infinity or 0.
_SIGMA_CAP = 100.0
_SIGMA_FLOOR = 1e-3


def _on_floats_too(function: Callable[[Tensor], Tensor], value: Time) -> Time:
    if isinstance(value, Tensor):
        return function(_times(value))
    return function(torch.tensor(real(value, "t"), dtype=torch.float64)).item()


def check_schedule(schedule: object) -> None:
    """Refuse what is no schedule.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule = {shown(schedule)}: pass a schedule, such as molrmog.VPSchedule()")


def _times(t: Tensor) -> Tensor:
    """Times in a tensor, or a ValueError."""
    if not t.is_floating_point() or t.layout != torch.strided or t.is_meta:
        raise ValueError(f"times in a tensor of {t.dtype}: pass floating-point numbers in a dense one")
    return t


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A map t -> (s, gamma), with what SDEs and time grids ask of it.

    A subclass is a frozen dataclass whose fields are its config; it writes `_s_gamma`, `_f`, `_g`, `_log_snr` and
    `_time` on tensors. Every public method takes a float and returns floats (computed in float64), or takes a tensor of
    any shape and returns tensors of that shape and dtype, through which autograd passes.
    """

    name: ClassVar[str]

    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != "alphas_cumprod":
                object.__setattr__(self, each.name, real(getattr(self, each.name), each.name))
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(f"a schedule needs 0 <= t_min < t_max <= 1, not t_min={self.t_min}, t_max={self.t_max}")

    @abstractmethod
    def _s_gamma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _f(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _g(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_snr(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, log_snr: Tensor) -> Tensor: ...

    def __call__(self, t: Time) -> tuple[Time, Time]:
        """Signal scale s and noise standard deviation gamma at time t, each of the kind and shape of t."""
        if isinstance(t, Tensor):
            return self._s_gamma(_times(t))
        s, gamma = self._s_gamma(torch.tensor(real(t, "t"), dtype=torch.float64))
        return s.item(), gamma.item()

    def f(self, t: Time) -> Time:
        """Drift d log s / dt at time t."""
        return _on_floats_too(self._f, t)

    def g(self, t: Time) -> Time:
        """Diffusion sqrt(s^2 d(sigma^2)/dt) at time t."""
        return _on_floats_too(self._g, t)

    def log_snr(self, t: Time) -> Time:
        """log(s^2 / gamma^2) at time t; -inf where s = 0 and inf where gamma = 0."""
        return _on_floats_too(self._log_snr, t)

    def time(self, log_snr: Time) -> Time:
        """The time whose log-SNR is given, in closed form; not clamped to [t_min, t_max]."""
        return _on_floats_too(self._time, log_snr)

    def time_grid(
        self, steps: int, spacing: str = "log-snr", rho: float = 7.0, *, t_start: float | None = None
    ) -> Tensor:
        """Times for a sampler, decreasing, from t_max to t_min, both exactly.

        Args:
            steps: number of steps, at least 1.
            spacing: "log-snr" (even in log-SNR), "uniform" (even in t) or "karras" (even in sigma^(1/rho)).
            rho: the exponent of "karras"; larger puts more steps at low noise.
            t_start: first time instead of t_max, in (t_min, t_max].

        Returns:
            Tensor: the times with shape (steps + 1,), float64, on the CPU.

        Raises:
            ValueError: steps < 1, an unknown spacing, rho <= 0 or t_start outside (t_min, t_max].

        References:
            Karras et al., arXiv 2206.00364, eq. 5 ("karras"); Lu et al., arXiv 2206.00927 ("log-snr").
        """
        t_start = self.t_max if t_start is None else real(t_start, "t_start")
        steps, rho = whole(steps, "steps"), real(rho, "rho")
        one_of(spacing, "spacing", SPACINGS)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if not self.t_min < t_start <= self.t_max:
            raise ValueError(
                f"a time grid must start in (t_min, t_max] = ({self.t_min}, {self.t_max}], not at {t_start}"
            )
        ends = torch.tensor([t_start, self.t_min], dtype=torch.float64)
        ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        log_sigma = -0.5 * self._log_snr(ends)
        log_sigma = log_sigma.nan_to_num(posinf=math.log(_SIGMA_CAP), neginf=math.log(_SIGMA_FLOOR))
        if spacing == "uniform":
            times = torch.lerp(ends[0], ends[1], ramp)
        elif spacing == "log-snr":
            times = self._time(-2 * torch.lerp(log_sigma[0], log_sigma[1], ramp))
        else:
            if not rho > 0:
                raise ValueError(f"rho must be > 0, not {rho}")
            root = torch.exp(log_sigma / rho)
            times = self._time(-2 * rho * torch.log(torch.lerp(root[0], root[1], ramp)))
        times[0], times[-1] = ends
        return times

    @property
    def config(self) -> dict[str, Any]:
        """What builds this schedule again: its name and the arguments of its constructor."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build a schedule from its `config`; called on `Schedule` itself, the entry "name" picks the class.

        Raises:
            ValueError: the name is missing or unknown, is not a schedule of this class, or an argument is unknown.
        """
        if not is_a(config, Mapping):
            raise ValueError(f"config = {shown(config)}: pass a dictionary, as schedule.config is")
        arguments = dict(config)
        name = arguments.pop("name", getattr(cls, "name", None))
        if not isinstance(name, str) or name not in SCHEDULES or not issubclass(SCHEDULES[name], cls):
            choices = ", ".join(name for name, known in SCHEDULES.items() if issubclass(known, cls))
            raise ValueError(f"unknown schedule {shown(name)}: choose one of {choices}")
        known = [field.name for field in fields(SCHEDULES[name])]
        if unknown := sorted(set(arguments) - set(known)):
            raise ValueError(f"schedule {name!r} takes {', '.join(known)}, not {', '.join(unknown)}")
        return SCHEDULES[name](**arguments)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, kw_only=True)
class VPSchedule(Schedule):
    """Variance preserving, beta linear in t: s^2 + gamma^2 = 1.

        B(t) = beta_min t + (beta_max - beta_min) t^2 / 2,   s = exp(-B/2),   gamma^2 = 1 - exp(-B)

    References:
        Song et al., arXiv 2011.13456, eq. 33; Ho et al., arXiv 2006.11239, section 4 (its discrete form).

    Examples:
        >>> s, gamma = VPSchedule()(0.5)
        >>> round(s**2 + gamma**2, 12)
        1.0
    """

    name: ClassVar[str] = "vp"

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-4
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"need 0 < beta_min <= beta_max, not beta_min={self.beta_min}, beta_max={self.beta_max}")

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _s_gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._integral(t)
        return torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))

    def _f(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def _g(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        integral = self._integral(t)
        return -integral - torch.log(-torch.expm1(-integral))

    def _time(self, log_snr: Tensor) -> Tensor:
        integral = softplus(-log_snr, threshold=1000.0)
        # The root of a quadratic in the form that does not cancel at small t.
        return (
            2
            * integral
            / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral))
        )


@dataclass(frozen=True, kw_only=True)
class VESchedule(Schedule):
    """Variance exploding, geometric: s = 1, gamma = sigma_min (sigma_max / sigma_min)^t.

    References:
        Song et al., arXiv 2011.13456, eq. 31; the default range is that of Karras et al., arXiv 2206.00364, table 1.

    Examples:
        >>> s, gamma = VESchedule(sigma_min=0.01, sigma_max=100.0)(0.5)
        >>> s, round(gamma, 12)
        (1.0, 1.0)
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}")

    def _log_gamma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + math.log(self.sigma_max / self.sigma_min) * t

    def _s_gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.exp(self._log_gamma(t))

    def _f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _g(self, t: Tensor) -> Tensor:
        return math.sqrt(2 * math.log(self.sigma_max / self.sigma_min)) * torch.exp(self._log_gamma(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return -2 * self._log_gamma(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(Schedule):
    """Variance preserving with s a quarter of a cosine: log-SNR nearly linear in the middle.

        a(t) = (pi/2) (t + offset) / (1 + offset),   s = cos(a) / cos(a_0),   a_0 = a(0)
        gamma^2 = 1 - s^2 = sin(a - a_0) sin(a + a_0) / cos(a_0)^2                  (nothing cancels at small t)

    t = 1 has s = 0. The end is clipped to t_max = 0.9946 (sigma about 120), the continuous counterpart of clipping beta
    at 0.999.

    References:
        Nichol & Dhariwal, arXiv 2102.09672, eq. 17; Lu et al., arXiv 2206.00927 (t_max).

    Examples:
        >>> s, gamma = CosineSchedule()(0.5)
        >>> round(s**2 + gamma**2, 12)
        1.0
    """

    name: ClassVar[str] = "cosine"

    offset: float = 0.008
    t_min: float = 1e-4
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.offset > 0:
            raise ValueError(f"offset must be > 0, not {self.offset}")

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    def _cos(self, t: Tensor) -> Tensor:
        # cos(a) as the sine of the complement, which keeps its relative precision as t -> 1.
        return torch.sin(self._rate * (1 - t))

    def _s_gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = self._rate * self.offset
        sine2 = torch.sin(self._rate * t) * torch.sin(self._rate * t + 2 * start)
        return self._cos(t) / math.cos(start), torch.sqrt(sine2) / math.cos(start)

    def _f(self, t: Tensor) -> Tensor:
        return -self._rate * torch.sin(self._rate * (t + self.offset)) / self._cos(t)

    def _g(self, t: Tensor) -> Tensor:
        return torch.sqrt(-2 * self._f(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        s, gamma = self._s_gamma(t)
        return 2 * torch.log(s / gamma)

    def _time(self, log_snr: Tensor) -> Tensor:
        start = self._rate * self.offset
        cos2 = math.cos(start) ** 2
        gamma2 = torch.sigmoid(-log_snr)
        cosine = torch.exp(-0.5 * softplus(-log_snr, threshold=1000.0)) * math.cos(start)  # cos(a)
        sine = torch.sqrt(math.sin(start) ** 2 + gamma2 * cos2)  # sin(a)
        # a - a_0 by its own sine and cosine: gamma^2 cos(a_0)^2 = sin(a - a_0) sin(a + a_0).
        difference = gamma2 * cos2 / (sine * math.cos(start) + cosine * math.sin(start))
        return torch.atan2(difference, cosine * math.cos(start) + sine * math.sin(start)) / self._rate


@dataclass(frozen=True, kw_only=True)
class FlowSchedule(Schedule):
    """Flow matching, a straight line from data to noise: s = 1 - t, gamma = t.

    At t = 1 there is no signal: s = 0, log-SNR = -inf, and f and g are infinite; grids and samplers keep to s and gamma
    there.

    References:
        Lipman et al., arXiv 2210.02747, eq. 20 (time reversed here); Liu et al., arXiv 2209.03003, eq. 1.

    Examples:
        >>> FlowSchedule()(0.25)
        (0.75, 0.25)
    """

    name: ClassVar[str] = "flow"

    t_min: float = 1e-3
    t_max: float = 1.0

    def _s_gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def _f(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def _g(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * torch.log((1 - t) / t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)


def _ddpm_alphas_cumprod() -> tuple[float, ...]:
    return tuple((1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0).tolist())


@dataclass(frozen=True, kw_only=True)
class DiscreteSchedule(Schedule):
    """The noise levels of a discrete chain of T timesteps, variance preserving, and all levels between them.

        timestep i is at t = i / (T - 1):     s^2 = alpha_bar_i = prod_{j <= i} (1 - beta_j),     gamma^2 = 1 - s^2

    Between two timesteps the log-SNR is linear in t; beyond the ends it goes on with the same slope. Linear, scaled,
    cosine and trained betas are all one here: diffusers keeps the table as `scheduler.alphas_cumprod`.

    Attributes:
        alphas_cumprod: alpha_bar at each timestep, decreasing inside (0, 1); those of DDPM where not given.

    References:
        Ho, Jain & Abbeel, arXiv 2006.11239, eq. 4 and section 4 (the default).

    Examples:
        >>> schedule = DiscreteSchedule(alphas_cumprod=(0.9, 0.5, 0.1))
        >>> s, gamma = schedule(0.5)
        >>> round(s**2, 12), schedule.timestep(0.5)
        (0.5, 1.0)
    """

    name: ClassVar[str] = "discrete"

    alphas_cumprod: tuple[float, ...] = field(default_factory=_ddpm_alphas_cumprod, repr=False)
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            alphas = tuple(real(alpha, "alphas_cumprod") for alpha in self.alphas_cumprod)
        except TypeError:
            raise ValueError(f"alphas_cumprod = {shown(self.alphas_cumprod)}: pass two or more numbers") from None
        object.__setattr__(self, "alphas_cumprod", alphas)  # JSON makes it a list
        falls = all(1 > alpha > following > 0 for alpha, following in pairwise(self.alphas_cumprod))
        if len(self.alphas_cumprod) < 2 or not falls:
            raise ValueError("alphas_cumprod must decrease inside (0, 1): pass two or more such numbers")

    def timestep(self, t: Time) -> Time:
        """The timestep (T - 1) t of the chain at time t, a fraction between two of them; not clamped."""
        return (len(self.alphas_cumprod) - 1) * t

    @cached_property
    def _table(self) -> Tensor:
        return torch.logit(torch.tensor(self.alphas_cumprod, dtype=torch.float64))  # log-SNR at each timestep, (T,)

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The timestep at or before t, and the log-SNR of this and of the next, all with the shape of t."""
        last = len(self.alphas_cumprod) - 1
        left = self.timestep(t).floor().clamp(0, last - 1).nan_to_num().long()
        table = self._table.to(t.device)
        return left, table[left], table[left + 1]

    def _slope(self, t: Tensor) -> Tensor:
        _, high, low = self._between(t)
        return self.timestep(low - high).to(t.dtype)

    def _s_gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = self._log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def _f(self, t: Tensor) -> Tensor:
        return 0.5 * torch.sigmoid(-self._log_snr(t)) * self._slope(t)

    def _g(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.sigmoid(-self._log_snr(t)) * self._slope(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        left, high, low = self._between(t)
        return torch.lerp(high, low, self.timestep(t).double() - left).to(t.dtype)

    def _time(self, log_snr: Tensor) -> Tensor:
        falling, at = -self._table.to(log_snr.device), -log_snr.double()
        left = (torch.searchsorted(falling, at.detach().contiguous()) - 1).clamp(0, len(falling) - 2)
        low, high = falling[left], falling[left + 1]
        return ((left + (at - low) / (high - low)) / (len(falling) - 1)).to(log_snr.dtype)


SCHEDULES: dict[str, type[Schedule]] = {
    schedule.name: schedule for schedule in (VPSchedule, VESchedule, CosineSchedule, FlowSchedule, DiscreteSchedule)
}
