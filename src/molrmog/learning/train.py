"""`train`: score networks by denoising score matching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from molrmog.arguments import flag, shown
from molrmog.denoisers.mog import MoGDenoiser, can_learn
from molrmog.laws.base import as_tensor, is_whole
from molrmog.learning.options import TrainingOptions
from molrmog.learning.rows import Rows
from molrmog.learning.run import Table, is_main_process
from molrmog.learning.score_matching import Levels, ScoreMatching, Targets, Weighting
from molrmog.learning.trainer import train_objective
from molrmog.models import SupportsDenoise, as_module, check_denoiser, dim_of, num_experts_of
from molrmog.schedules import Schedule, check_schedule

Network = TypeVar("Network", bound=SupportsDenoise)


def train(
    denoiser: Network,
    data: Any,
    schedule: Schedule,
    *,
    steps: int,
    out: str | Path | None = None,
    experts: Any = None,
    validation: Any = None,
    validation_experts: Any = None,
    weighting: Weighting = "edm",
    levels: Levels = "log-normal",
    targets: Targets = "sample",
    sigma_data: float | None = None,
    level_mean: float | None = None,
    level_std: float = 1.2,
    levels_per_batch: int | None = None,
    drop_expert: float = 0.0,
    batch_size: int = 256,
    micro_batch_size: int | None = None,
    optimizer: Literal["adamw", "adam"] = "adamw",
    learning_rate: float = 1e-3,
    annealing: Literal["cosine", "constant"] = "cosine",
    warmup: int = 100,
    weight_decay: float = 0.0,
    grad_clip: float | None = 1.0,
    ema_decay: float = 0.999,
    mixed_precision: Literal["no", "fp16", "bf16"] = "no",
    seed: int = 0,
    device: str | None = None,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    keep: int = 2,
    validate_every: int = 500,
    grid_every: int = 1000,
    on_grid: Callable[[Network, int], object] | None = None,
    tensorboard: bool = False,
    progress: bool = False,
) -> Network:
    """Train a score network by denoising score matching; the same call again goes on with a run that was stopped.

    Several processes have the result of one: `accelerate launch --multi_gpu --num_processes 2 SCRIPT`, or on CPUs
    `torchrun --standalone --nproc_per_node 2 SCRIPT` (`accelerate launch --cpu` starts one, whatever it is told).

    Args:
        denoiser: a score network, or a law such as `MoLRMoG`, all of whose parameters are then learned; it is trained
            in place.
        data: rows with shape (N, D): tensor, array, memory map or Dataset (whose labels are not used).
        schedule: the noise schedule.
        steps: optimiser steps.
        out: the run folder, with checkpoints, metrics.jsonl and in the end the model; None keeps nothing.
        experts: the expert of each row, with shape (N,), for denoisers that know experts.
        validation: rows on which the loss of the averaged weights is taken.
        validation_experts: their experts.
        weighting: "edm", "x0", "eps" or "min-snr"; see `learning.score_matching`, also for the next six.
        levels: "log-normal" or "log-snr".
        targets: "sample", "batch", or the law of the data.
        sigma_data: standard deviation in the weight of EDM; that of the data where None.
        level_mean: mean of log sigma; -1.2 + log(2 sigma_data), as EDM has it, where None.
        level_std: standard deviation of log sigma.
        levels_per_batch: how many noise levels the rows share that a process handles at once; one of each row's own
            where None. Validation draws alike: its losses compare between runs with the same number of levels only.
        drop_expert: probability that a row names no expert, so that the denoiser can be guided.
        batch_size: see `TrainingOptions`, also for all that follow but the last two.
        micro_batch_size: rows that a process handles at once.
        optimizer: "adamw" or "adam".
        learning_rate: the greatest.
        annealing: "cosine" or "constant".
        warmup: steps over which the learning rate rises.
        weight_decay: of the optimiser.
        grad_clip: greatest norm of the gradient.
        ema_decay: of the moving average.
        mixed_precision: "no", "fp16" or "bf16".
        seed: of everything random.
        device: where to train.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two checkpoints.
        keep: how many checkpoints are kept.
        validate_every: steps between two validation losses.
        grid_every: steps between two calls of `on_grid`.
        on_grid: called with the averaged denoiser and the step, e.g. to draw samples.
        tensorboard: also write TensorBoard files.
        progress: show a progress bar with the loss on stderr.

    Returns:
        The denoiser itself, with the averaged weights, in eval mode, on the device where it was trained.

    Raises:
        ValueError: data, options and denoiser do not fit together, or `out` holds a run with other settings.
        RuntimeError: the loss is not finite; the message says what to do.

    Example:
        >>> from molrmog.denoisers.mlp import MLPDenoiser
        >>> from molrmog.schedules import VPSchedule
        >>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> network = train(MLPDenoiser(4, width=16, depth=1), x, VPSchedule(), steps=2, device="cpu")
        >>> network.denoise(x, s=0.8, gamma=0.6).shape
        torch.Size([100, 4])

    References:
        arXiv 2601.01475, section 5, for the networks that are compared; `molrmog.learning.score_matching` for the loss.
    """
    check_denoiser(denoiser)
    check_schedule(schedule)
    progress = flag(progress, "progress")
    if not (on_grid is None or callable(on_grid)):
        raise ValueError(f"on_grid = {shown(on_grid)}: pass a function of the denoiser and the step, or None")
    learner = MoGDenoiser(denoiser) if can_learn(denoiser) else None
    network = as_module(denoiser) if learner is None else learner
    tables = _rows_and_experts(network, data, experts)
    held_out = None if validation is None else _rows_and_experts(network, validation, validation_experts)
    if held_out is not None and len(held_out) != len(tables):
        raise ValueError("experts and validation_experts belong together: pass both or none")
    objective = ScoreMatching(
        denoiser if learner is None else learner,
        schedule,
        weighting=weighting,
        levels=levels,
        targets=targets,
        sigma_data=_deviation(tables[0]) if sigma_data is None else sigma_data,
        level_mean=level_mean,
        level_std=level_std,
        levels_per_batch=levels_per_batch,
        drop_expert=drop_expert,
    )
    options = TrainingOptions(
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        annealing=annealing,
        warmup=warmup,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        ema_decay=ema_decay,
        mixed_precision=mixed_precision,
        seed=seed,
        device=device,
        out=out,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        keep=keep,
        validate_every=validate_every,
        grid_every=grid_every,
        tensorboard=tensorboard,
    )

    def grid(average: ScoreMatching[Any], step: int) -> None:
        assert on_grid is not None
        on_grid(average.denoiser if learner is None else average.denoiser.law, step)

    on_average = None if on_grid is None else grid
    train_objective(objective, tables, options, validation=held_out, on_grid=on_average, progress=progress)
    if learner is not None:
        law = as_module(denoiser).to(next(learner.parameters()).device)
        law.load_state_dict(learner.law.state_dict())
        law.requires_grad_(False).eval()
    save = getattr(denoiser, "save_pretrained", None)  # networks of users may have it, too
    if out is not None and save is not None and is_main_process():
        save(out)
    return denoiser


def _rows_and_experts(network: nn.Module, x: Any, experts: Any) -> tuple[Table, ...]:
    """Rows in the dtype of the network, and the expert of each where given."""
    rows = Rows(x, dtype=next(network.parameters(), torch.empty(0)).dtype)
    dim = dim_of(network)
    if dim != rows.dim:
        raise ValueError(f"the data have {rows.dim} columns, but the denoiser has D = {dim}: pass rows it was made for")
    rows.check_finite()
    rows.warn_of_rounding()
    if experts is None:
        return (rows,)
    index = as_tensor(experts, "experts").cpu()
    if index.shape != (len(rows),) or not is_whole(index) or bool((index < 0).any()):
        raise ValueError(f"experts must be {len(rows)} integers >= 0, one per row: pass e.g. the labels of the data")
    known = num_experts_of(network)
    if 0 < known <= int(index.max()):
        raise ValueError(f"expert {int(index.max())} of a row is unknown: the denoiser has experts 0 to {known - 1}")
    return rows, index.long()


def _deviation(table: Table) -> float:
    """Root mean variance of the columns of a table, from at most 10 000 of its rows; 1 where these are equal."""
    x = table[torch.linspace(0, len(table) - 1, min(len(table), 10_000), dtype=torch.float64).long()].double()
    return float(x.var(0, correction=0).mean().sqrt()) or 1.0
