"""What a training run is told, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from molrmog.arguments import flag, is_a, one_of, real, shown, whole
from molrmog.devices import device_of
from molrmog.seeds import seed_of


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train.

    Attributes:
        steps: optimiser steps, of the whole run.
        batch_size: rows of a step, over all processes.
        micro_batch_size: rows that a process handles at once, to bound memory; all that are its own where None.
        optimizer: "adamw" or "adam".
        learning_rate: the greatest.
        annealing: "cosine" (to zero at the last step) or "constant".
        warmup: steps over which the learning rate rises to its greatest.
        weight_decay: of the optimiser.
        betas: of the optimiser.
        grad_clip: greatest norm of the gradient; None not to clip.
        ema_decay: d of the moving average, in [0, 1); 0 for the weights of the last step.
        mixed_precision: "no", "fp16" (on a GPU) or "bf16".
        seed: of everything random, 0 or more.
        device: "cpu", "cuda", "cuda:1", ...; the best there is where None.
        out: the run folder; None keeps nothing.
        log_every: steps between two lines of metrics.jsonl, and between two states of `training`.
        checkpoint_every: steps between two checkpoints.
        keep: how many checkpoints are kept.
        validate_every: steps between two validation losses.
        grid_every: steps between two calls of `on_grid`.
        tensorboard: also write TensorBoard files.

    Raises:
        ValueError: an option is out of its range, needs another that is missing, or names a device that is not there.
    """

    steps: int
    batch_size: int = 256
    micro_batch_size: int | None = None
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    annealing: Literal["cosine", "constant"] = "cosine"
    warmup: int = 100
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = 1.0
    ema_decay: float = 0.999
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0
    device: str | None = None
    out: str | Path | None = None
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    validate_every: int = 500
    grid_every: int = 1000
    tensorboard: bool = False

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"seed": seed_of(self.seed), "tensorboard": flag(self.tensorboard, "tensorboard")}
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "validate_every", "grid_every")
        for name in (*counts, *(() if self.micro_batch_size is None else ("micro_batch_size",))):
            given[name] = whole(getattr(self, name), name, 1)
        given["warmup"] = whole(self.warmup, "warmup", 0)
        for name in ("weight_decay", "learning_rate", "ema_decay", *(() if self.grad_clip is None else ("grad_clip",))):
            given[name] = real(getattr(self, name), name)
        try:
            first, second = self.betas
        except (TypeError, ValueError):
            raise ValueError(f"betas = {shown(self.betas)}: pass two numbers in [0, 1)") from None
        given["betas"] = real(first, "betas"), real(second, "betas")
        if not (self.out is None or is_a(self.out, str, Path)):
            raise ValueError(f"out = {shown(self.out)}: pass a folder, or None")
        one_of(self.optimizer, "optimizer", ("adamw", "adam"))
        one_of(self.annealing, "annealing", ("cosine", "constant"))
        one_of(self.mixed_precision, "mixed_precision", ("no", "fp16", "bf16"))
        for name, value in given.items():
            object.__setattr__(self, name, value)  # whatever kind of number it came as
        for name in ("weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: pass 0 or more")
        if not 0 < self.learning_rate < math.inf or not (self.grad_clip is None or self.grad_clip > 0):
            raise ValueError(f"learning_rate = {self.learning_rate}, grad_clip = {self.grad_clip}: pass numbers > 0")
        if not (0 <= self.ema_decay < 1 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"ema_decay = {self.ema_decay}, betas = {self.betas}: pass numbers in [0, 1)")
        if self.tensorboard and self.out is None:
            raise ValueError("tensorboard needs a run folder: pass out")
        if (device := device_of(self.device)) is not None:
            object.__setattr__(self, "device", "cpu" if device.type == "cpu" else str(device))

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        return rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.annealing == "cosine" else rate
