"""Denoising score matching: the loss by which any denoiser is learned, under any schedule.

    x_t = s x_0 + gamma eps,      L = E_{t, x_0, eps}  lambda(s, gamma) ||D_theta(x_t, s, gamma) - y||^2 / D

With the target y = x_0 the minimiser is E[x_0 | x_t], and the loss there is the floor E lambda tr Cov[x_0 | x_t] / D.

| weighting | lambda                   | the error it counts                  | reference            |
| --------- | ------------------------ | ------------------------------------ | -------------------- |
| x0        | 1                        | of the clean point                   |                      |
| eps       | s^2 / gamma^2            | of the noise                         | arXiv 2006.11239     |
| edm       | s^2 / gamma^2 + 1 / c^2  | of the network F inside EDM          | arXiv 2206.00364     |
| min-snr   | min(s^2 / gamma^2, 5)    | of the noise, but less at low noise  | arXiv 2303.09556     |

With sigma = gamma / s the third is (sigma^2 + c^2) / (sigma c)^2, c = sigma_data. A white Gaussian of deviation c then
has the floor 1 at every noise level.

| levels     | distribution of log sigma                                                                              |
| ---------- | ------------------------------------------------------------------------------------------------------ |
| log-normal | N(level_mean, level_std^2), clamped to the schedule's range; by default -1.2 + log(2c) and 1.2, as EDM |
| log-snr    | uniform over the schedule's range: the same share for every octave of noise                            |

With `levels_per_batch` = L the rows of a batch share L levels, one drawn from each of L equal parts of that
distribution and given to rows at random. The loss is the same in expectation, and a law of unequal noise, which is
prepared anew for every level, costs L preparations a batch.

An end where sigma is infinite or zero, as at t = 1 of the flow schedule, counts as sigma = 100 (or 1/1000).

| targets    | y                                                                                                      |
| ---------- | ------------------------------------------------------------------------------------------------------ |
| sample     | x_0                                                                                                    |
| batch      | mean of the rows x_j of the batch (of the same expert), weighed by N(x_t; s x_j, gamma^2 I)            |
| a denoiser | what it says; if it is the law of the data, the loss is the excess over the floor                      |

The last two trade the variance of the gradient for a bias (small in large batches) or for a law that is known. The
batch is what one process handles at once, so with "batch" the loss depends on how rows are split.

With `drop_expert` = p a row names no expert with probability p, so that one denoiser learns E[x_0 | x_t, k] and
E[x_0 | x_t], the two that guidance needs. This is of the training alone: in eval mode every row names its own.

References:
    Vincent, A Connection Between Score Matching and Denoising Autoencoders, Neural Computation 23(7), 2011.
    Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 14.
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, table 1.
    Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv 2303.09556, section 3.4.
    Ho & Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598, algorithm 1 (experts left out).
    Xu, Tong, Jaakkola, Stable Target Field for Reduced Variance Score Estimation, arXiv 2302.00670, eq. 5.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from molrmog.arguments import one_of, real, shown, whole
from molrmog.models import NULL_EXPERT, SupportsDenoise, check_denoiser, denoise_with, dim_of, has_null_expert
from molrmog.schedules import _SIGMA_CAP, _SIGMA_FLOOR, Schedule, check_schedule

WEIGHTINGS = ("edm", "x0", "eps", "min-snr")
LEVELS = ("log-normal", "log-snr")

Weighting = Literal["edm", "x0", "eps", "min-snr"]
Levels = Literal["log-normal", "log-snr"]
Targets = Literal["sample", "batch"] | SupportsDenoise
D = TypeVar("D", bound=SupportsDenoise)

_EDM_LEVEL_MEAN, _EDM_DEVIATION = -1.2, 0.5  # EDM's mean of log sigma, and the deviation of data it is made for
_MAX_SNR = 5.0  # the gamma of min-SNR-gamma


class ScoreMatching(nn.Module, Generic[D]):
    """The denoising loss of rows, as an objective that `training` can minimise.

    Attributes:
        denoiser: what is trained.
        schedule: from which (s, gamma) are drawn.

    Example:
        >>> from molrmog.laws.molrmog import MoLRMoG
        >>> from molrmog.schedules import VPSchedule
        >>> law = MoLRMoG.random(dim=8, latent_dims=(3,), modes=(2,), noise=0.1, seed=0)
        >>> loss = ScoreMatching(law, VPSchedule())
        >>> generator = torch.Generator().manual_seed(0)
        >>> loss(law.sample(5, generator).x, *loss.draw(5, generator)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        denoiser: D,
        schedule: Schedule,
        *,
        weighting: Weighting = "edm",
        levels: Levels = "log-normal",
        targets: Targets = "sample",
        sigma_data: float = 0.5,
        level_mean: float | None = None,
        level_std: float = 1.2,
        levels_per_batch: int | None = None,
        drop_expert: float = 0.0,
    ) -> None:
        """Set up the loss.

        Args:
            denoiser: a torch module over R^D with `dim` and `denoise(x, s, gamma)`; rows with experts need one that
                takes `expert`, too.
            schedule: the noise schedule.
            weighting: "edm", "x0", "eps" or "min-snr".
            levels: "log-normal" or "log-snr".
            targets: "sample", "batch", or a denoiser that is copied and kept as it is, such as the law of the data.
            sigma_data: the standard deviation c in the weight of EDM, in data units.
            level_mean: mean of log sigma, for "log-normal"; where None EDM's for data of deviation c, -1.2 + log(2c).
            level_std: standard deviation of log sigma, for "log-normal".
            levels_per_batch: how many noise levels the rows of a batch share, at most one per row; one of each row's
                own where None. The batch is what one process handles at once. Losses of other numbers of levels have
                another variance: compare networks by `metrics.denoising_loss`.
            drop_expert: probability that a row names no expert while training, in [0, 1); more than 0 needs a
                denoiser with a null expert, and rows with experts.

        Raises:
            ValueError: an unknown name, a number out of its range, or experts dropped for a denoiser that needs them.
        """
        super().__init__()
        check_denoiser(denoiser)
        check_schedule(schedule)
        one_of(weighting, "weighting", WEIGHTINGS)
        one_of(levels, "levels", LEVELS)
        if isinstance(targets, str):
            if targets not in ("sample", "batch"):
                raise ValueError(f"unknown targets {shown(targets)}: choose sample or batch, or pass a law")
        else:
            check_denoiser(targets, "targets")
        sigma_data, level_std = real(sigma_data, "sigma_data"), real(level_std, "level_std")
        level_mean = None if level_mean is None else real(level_mean, "level_mean")
        drop_expert = real(drop_expert, "drop_expert")
        levels_per_batch = None if levels_per_batch is None else whole(levels_per_batch, "levels_per_batch", 1)
        if not (0 < sigma_data < math.inf and 0 < level_std < math.inf):
            raise ValueError(f"sigma_data = {sigma_data}, level_std = {level_std}: pass deviations > 0")
        if level_mean is None:
            level_mean = _EDM_LEVEL_MEAN + math.log(sigma_data / _EDM_DEVIATION)
        else:
            check_level_mean(level_mean, schedule)
        if not 0 <= drop_expert < 1:
            raise ValueError(f"drop_expert = {drop_expert}: pass a probability in [0, 1)")
        if drop_expert and not has_null_expert(denoiser):
            raise ValueError(
                f"drop_expert = {drop_expert}: this {type(denoiser).__name__} does not answer without an expert, build "
                "it with unconditional=True"
            )
        self.denoiser = denoiser
        self.schedule = schedule
        self.weighting, self.levels = weighting, levels
        self.sigma_data, self.level_mean, self.level_std = sigma_data, level_mean, level_std
        self.levels_per_batch = levels_per_batch
        self.drop_expert = drop_expert
        if isinstance(targets, nn.Module):
            targets = copy.deepcopy(targets).requires_grad_(False).eval()
        self.targets = targets

    @property
    def config(self) -> dict[str, Any]:
        """What the loss is, but for the denoiser."""
        shared = {} if self.levels_per_batch is None else {"levels_per_batch": self.levels_per_batch}
        return {
            "schedule": self.schedule.config,
            "weighting": self.weighting,
            "levels": self.levels,
            "targets": self.targets if isinstance(self.targets, str) else type(self.targets).__name__,
            "sigma_data": self.sigma_data,
            "level_mean": self.level_mean,
            "level_std": self.level_std,
            **shared,
            "drop_expert": self.drop_expert,
        }

    @property
    def log_sigma_range(self) -> tuple[float, float]:
        """Least and greatest log(gamma / s) that is drawn."""
        return log_sigma_range(self.schedule)

    def draw(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Noise levels s and gamma, with shape (rows,), and noise eps, with shape (rows, D), on the CPU.

        Where experts are dropped, a fourth tensor, with shape (rows,), is true in the rows that name none.

        Args:
            rows: how many.
            generator: source of randomness, on the CPU.
        """
        low, high = self.log_sigma_range
        if self.levels_per_batch is not None:
            uniform = self._shared_uniforms(rows, generator)
            normal = torch.special.ndtri(uniform) if self.levels == "log-normal" else None
        elif self.levels == "log-normal":
            uniform, normal = None, torch.randn(rows, generator=generator).double()
        else:
            uniform, normal = torch.rand(rows, generator=generator).double(), None
        if normal is not None:
            log_sigma = (self.level_mean + self.level_std * normal).clamp(low, high)
        else:
            assert uniform is not None
            log_sigma = low + (high - low) * uniform
        t = self.schedule.time(-2 * log_sigma).clamp(self.schedule.t_min, self.schedule.t_max)
        s, gamma = self.schedule(t)
        eps = torch.randn(rows, dim_of(self.denoiser), generator=generator)
        if not self.drop_expert:
            return s.float(), gamma.float(), eps
        return s.float(), gamma.float(), eps, torch.rand(rows, generator=generator) < self.drop_expert

    def _shared_uniforms(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """Numbers in (0, 1) that rows share, one from each of as many equal parts, in any order; with shape (rows,)."""
        assert self.levels_per_batch is not None
        parts = min(self.levels_per_batch, rows)
        drawn = (torch.arange(parts) + torch.rand(parts, generator=generator).double()) / parts
        drawn = drawn[torch.randperm(parts, generator=generator)]  # which parts have one row more
        return drawn.repeat(-(-rows // max(parts, 1)))[:rows][torch.randperm(rows, generator=generator)].clamp(
            1e-12, 1 - 1e-12
        )

    def forward(self, x0: Tensor, *rest: Tensor) -> Tensor:
        """Loss of each row, with shape (B,).

        Args:
            x0: clean rows, with shape (B, D).
            rest: the expert of each row with shape (B,), if rows have one; then what :meth:`draw` gives.

        Raises:
            ValueError: experts are to be dropped, and rows have none.
        """
        *expert, s, gamma, eps = rest[:-1] if self.drop_expert else rest
        if self.drop_expert and not expert:
            raise ValueError(f"drop_expert = {self.drop_expert}: pass the expert of each row")
        dropped = rest[-1] if self.drop_expert and self.training else None
        index = expert[0] if expert else None
        if index is not None and dropped is not None:
            index = index.masked_fill(dropped, NULL_EXPERT)
        s, gamma, eps = s.to(x0.dtype), gamma.to(x0.dtype), eps.to(x0.dtype)
        xt = s[:, None] * x0 + gamma[:, None] * eps  # (B, D)
        estimate = denoise_with(self.denoiser, xt, s, gamma, index)
        with torch.no_grad():
            if isinstance(self.targets, str):
                target = x0 if self.targets == "sample" else batch_mean(x0, s, gamma, eps, *expert, dropped=dropped)
            else:
                target = denoise_with(self.targets, xt, s, gamma, index)
        return self.weight(s, gamma) * (estimate.to(x0.dtype) - target).square().mean(1)

    def weight(self, s: Tensor, gamma: Tensor) -> Tensor:
        """lambda(s, gamma) with the shape of s and gamma (> 0)."""
        snr = (s / gamma).square()
        if self.weighting == "edm":
            return snr + self.sigma_data**-2
        if self.weighting == "min-snr":
            return snr.clamp(max=_MAX_SNR)
        return snr if self.weighting == "eps" else torch.ones_like(snr)


def batch_mean(
    x0: Tensor,
    s: Tensor,
    gamma: Tensor,
    eps: Tensor,
    expert: Tensor | None = None,
    dropped: Tensor | None = None,
) -> Tensor:
    """E[x_0 | x_t] where x_0 is any row of the batch alike, with shape (B, D).

        log w_ij = -||s_i (x_i - x_j) + gamma_i eps_i||^2 / (2 gamma_i^2) + const_i
                 = -(s_i / gamma_i) eps_i . (x_i - x_j) - (s_i / gamma_i)^2 ||x_i - x_j||^2 / 2

    Args:
        x0: clean rows, with shape (B, D).
        s: signal scale of each row, with shape (B,).
        gamma: noise standard deviation of each row, with shape (B,).
        eps: noise of each row, with shape (B, D).
        expert: of each row, with shape (B,): only rows of the same expert count.
        dropped: which rows name none, with shape (B,): for them rows of every expert count.

    References:
        Xu, Tong, Jaakkola, arXiv 2302.00670, eq. 5.
    """
    ratio = (s / gamma)[:, None]
    distance2 = torch.cdist(x0, x0, compute_mode="donot_use_mm_for_euclid_dist").square()  # (B, B)
    along = (eps * x0).sum(1, keepdim=True) - eps @ x0.T  # eps_i . (x_i - x_j)
    log_weight = -ratio * along - 0.5 * ratio.square() * distance2
    if expert is not None:
        apart = expert[:, None] != expert
        apart = apart if dropped is None else apart & ~dropped[:, None]
        log_weight = log_weight.masked_fill(apart, -torch.inf)
    return log_weight.softmax(1) @ x0


def log_sigma_range(schedule: Schedule) -> tuple[float, float]:
    """Least and greatest log(gamma / s) at which a network is trained for a schedule."""
    low, high = (-0.5 * schedule.log_snr(t) for t in (schedule.t_min, schedule.t_max))
    return (low if math.isfinite(low) else math.log(_SIGMA_FLOOR)), (
        high if math.isfinite(high) else math.log(_SIGMA_CAP)
    )


def check_level_mean(level_mean: float, schedule: Schedule, name: str = "level_mean =") -> None:
    """Refuse a mean of log sigma that the schedule does not reach.

    Raises:
        ValueError: it is outside; the message begins with `name`.
    """
    low, high = log_sigma_range(schedule)
    if not low <= level_mean <= high:
        raise ValueError(
            f"{name} {level_mean}: pass a mean of log sigma from {low:.3g} to {high:.3g}, as the schedule has it"
        )
