"""Training by stochastic gradients: a generator that the caller watches, see `learning.run` for what a step does.

The loop knows nothing of what is learned. An :class:`~molrmog.learning.run.Objective` draws the random numbers of a
batch and gives one loss per row; :class:`~molrmog.learning.score_matching.ScoreMatching` is one, the loss of a VAE
another. A submodule with a method `retract_` has it called after every step, which is how bases stay orthonormal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from molrmog.learning.options import TrainingOptions
from molrmog.learning.run import CHECKPOINTS_NAME, Objective, Run, TrainingState, is_main_process
from molrmog.progress import progress as stages
from molrmog.saving import locked


def training(
    objective: Objective,
    data: Sequence[Any],
    options: TrainingOptions,
    *,
    validation: Sequence[Any] | None = None,
    on_grid: Callable[[Any, int], object] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[TrainingState]:
    """Minimise an objective, yielding the state every `log_every` steps; a stopped run goes on where it stood.

    When the generator ends, the objective holds the averaged weights and is in eval mode. A run that was finished
    before yields nothing and ends at once.

    Args:
        objective: what is minimised; those of its parameters that ask for gradients are trained, in place.
        data: tables with N rows each, which the objective gets slices of: (N, D) rows (tensor, array, memory map or
            Dataset), or (N,) integers; `Rows` are taken as finite.
        options: how to train.
        validation: tables like those of `data`; the loss of the average on them, with noise that is always the same, is
            taken at the start, every `validate_every` steps, and at the end.
        on_grid: called with the averaged objective and the step every `grid_every` steps, e.g. to draw samples.
        on_step: called with the number of steps taken, where the run begins or goes on and after every step.

    Yields:
        TrainingState: where the run stands.

    Raises:
        ValueError: the tables do not fit together, nothing is to be trained, or the folder holds a run with other
            settings, which the message names.
        BlockingIOError: another process trains in the folder.
        RuntimeError: the loss or the gradient is not finite; the message says at which step and what to do.
    """
    run = Run(objective, data, options, validation)
    keeps = run.out is not None and run.accelerator.is_main_process
    try:
        with locked(run.out / CHECKPOINTS_NAME, run.out) if run.out is not None and keeps else nullcontext():
            run.resume()
            if on_step is not None:
                on_step(run.step)
            while run.step < options.steps:
                run.take_step()
                if on_step is not None:
                    on_step(run.step)
                run.validate_if_due()
                done = run.step == options.steps
                state = run.log() if done or run.step % options.log_every == 0 else None
                if on_grid is not None and run.step % options.grid_every == 0 and run.accelerator.is_main_process:
                    on_grid(run.average.module, run.step)
                if done or run.step % options.checkpoint_every == 0:
                    run.save()  # last, so that a run which goes on from here has all that belongs to this step
                if state is not None:
                    yield state
    finally:
        run.close()
    run.keep_average()


def train_objective(
    objective: Objective,
    data: Sequence[Any],
    options: TrainingOptions,
    *,
    validation: Sequence[Any] | None = None,
    on_grid: Callable[[Any, int], object] | None = None,
    progress: bool = False,
) -> None:
    """Run `training` to its end; `progress` shows a bar with the loss. Arguments and errors as there."""
    shown = progress and is_main_process()
    with stages(shown) as show:
        begun = False

        def on_step(step: int) -> None:
            nonlocal begun
            if shown and step and not begun:
                print(f"training: going on from step {step}", file=sys.stderr, flush=True)
            begun = True
            show("training", step, options.steps)

        show("training", 0, options.steps)
        for state in training(objective, data, options, validation=validation, on_grid=on_grid, on_step=on_step):
            show("training", state.step, options.steps, f"loss {state.loss:.4g}")
