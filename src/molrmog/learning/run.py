"""A training run between two steps: weights, average, optimiser, clock, and how it is kept and goes on.

Everything in step i is a function of the seed and of i alone:

    rows        positions i B, ..., (i + 1) B - 1 of one epoch's permutation of the data after another's; permutation of
                epoch e from (seed, e)
    numbers     noise levels, noise and dropped experts of all B rows from (seed, i), drawn at once on the CPU
    rate        learning_rate * min(1, (i + 1) / warmup) * (1 or (1 + cos(pi i / steps)) / 2)
    average     a_1 = theta_1,   a_(n+1) = d a_n + (1 - d) theta_(n+1),   d = min(ema_decay, (1 + n) / (10 + n))

so a run that is killed goes on from its newest checkpoint as if nothing had been, to the last bit on one CPU process.
Processes and micro-batches take slices of the B rows and of their numbers, and gradients are sums over rows divided by
B: how many there are changes only the order of summation (and which numbers a dropout inside the model sees).

A run folder holds `metrics.jsonl` (one JSON object a line: kinds "train" and "validation"), `checkpoints/` (see
`learning.checkpoints`), `tensorboard/` where asked for, and in the end the model.

References:
    Kingma & Ba, Adam, arXiv 1412.6980; Loshchilov & Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.
    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696 (averages).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from molrmog.data.arrays import as_numbers
from molrmog.learning.checkpoints import Checkpoint, append_record, forget_records, newest_checkpoint, save_checkpoint
from molrmog.learning.options import TrainingOptions
from molrmog.learning.rows import Rows

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS_NAME, CHECKPOINTS_NAME, TENSORBOARD_NAME = "metrics.jsonl", "checkpoints", "tensorboard"

Table = Rows | Tensor
"""Something with N rows: rows of data, or one number per row."""

_KINDS = ("train", "validation")
_ORDER, _NUMBERS, _MODEL, _VALIDATION = range(4)  # streams of random numbers
# Options that do not change the course of a run, so that it may go on with others.
_FREE = (
    *("steps", "micro_batch_size", "device", "out", "log_every", "checkpoint_every", "keep"),
    *("validate_every", "grid_every", "tensorboard"),
)


class Objective(Protocol):
    """What is minimised: a torch module that gives one loss per row."""

    def draw(self, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Every random number that `rows` rows need, with `rows` rows in each tensor, on the CPU.

        Args:
            rows: how many rows.
            generator: source of randomness, on the CPU.
        """
        ...

    def __call__(self, *rows_and_numbers: Tensor) -> Tensor:
        """Loss of each row, with shape (B,), from the rows of each table of data and then from their numbers."""
        ...


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: steps taken.
        samples: rows seen.
        loss: mean over the steps since the state before.
        learning_rate: of the last step.
        grad_norm: norm of the gradient before clipping, mean over the steps since the state before.
        validation_loss: the newest, of the average; None where there is none.
        seconds: wall time of the steps taken, validation, grids, checkpoints and the caller's time left out.
        cpu_seconds: the same in processor time of this process.
        objective: the objective with the weights of the last step.
        average: the objective with the moving average of the weights, in eval mode.
    """

    step: int
    samples: int
    loss: float
    learning_rate: float
    grad_norm: float
    validation_loss: float | None
    seconds: float
    cpu_seconds: float
    objective: nn.Module
    average: nn.Module


class Run:
    """A run between two steps: weights, average, optimiser, clock, and what is not yet logged."""

    def __init__(
        self, objective: Objective, data: Sequence[Any], options: TrainingOptions, validation: Sequence[Any] | None
    ) -> None:
        self.objective = cast(nn.Module, objective)
        self.draw = objective.draw
        self.options = options
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("no parameter asks for gradients: call requires_grad_() on what is to be trained")
        self.parameters = parameters
        self.data = _tables(data, parameters[0].dtype)
        self.validation = None if validation is None else _tables(validation, parameters[0].dtype)
        if self.validation is not None and len(self.validation) != len(self.data):
            raise ValueError(f"{len(self.data)} tables to train on, {len(self.validation)} to validate: pass as many")

        self.accelerator = _accelerator(options, find_unused_parameters=len(self.data) > 1)
        if options.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            raise ValueError("fp16 needs a GPU: pass mixed_precision='bf16' or 'no'")
        if options.batch_size < self.accelerator.num_processes:
            raise ValueError(f"batch_size = {options.batch_size}: pass at least one row for each of the processes")
        self.objective.to(self.accelerator.device).train()
        self.average = AveragedModel(self.objective, avg_fn=_averaging(options.ema_decay)).eval()
        retractable = [*self.objective.modules(), *self.average.modules()]
        self.retractions = [cast(Any, module).retract_ for module in retractable if hasattr(module, "retract_")]
        family = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.optimizer]
        optimizer = family(parameters, options.learning_rate, options.betas, weight_decay=options.weight_decay)
        self.settings = {} if options.out is None else _settings(self.objective, self.data, options)
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)

        self.out = None if options.out is None else Path(options.out)
        self.step = 0
        self.window: list[tuple[float, float]] = []  # loss and gradient norm of the steps since the last line
        self.validation_loss: float | None = None
        self.seconds = self.cpu_seconds = 0.0
        self.permutation = -1, torch.empty(0)

    def resume(self) -> None:
        """Go to the newest checkpoint, or to the start."""
        checkpoint = None if self.out is None else newest_checkpoint(self.out / CHECKPOINTS_NAME)
        if checkpoint is not None:
            self._check_settings(checkpoint)
            state, tensors = checkpoint.state, checkpoint.tensors
            self.step = checkpoint.step
            self.window = [(loss, norm) for loss, norm in state["window"]]
            self.validation_loss = state["validation_loss"]
            self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
            self.objective.load_state_dict(tensors["model"])
            self.average.load_state_dict(tensors["average"])
            self.optimizer.load_state_dict(_nested(tensors["optimizer"], self.optimizer.state_dict()))
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.out is not None and self.accelerator.is_main_process:
            forget_records(self.out / METRICS_NAME, self.step if checkpoint else -1, _KINDS)
        if self.options.tensorboard:
            purge = {"tensorboard": {"purge_step": self.step + 1}}
            self.accelerator.init_trackers(TENSORBOARD_NAME, init_kwargs=purge)
        if checkpoint is None:
            self.validate_if_due()

    def take_step(self) -> None:
        """One step of the optimiser."""
        started = time.perf_counter(), time.process_time()
        self.objective.train()
        options, accelerator = self.options, self.accelerator
        rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        B = options.batch_size
        rows = self._rows_of_step()
        numbers = self.draw(B, _generator(options.seed, _NUMBERS, self.step))
        rate = options.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()

        losses: list[Tensor] = []
        own = slice(B * rank // processes, B * (rank + 1) // processes)
        micro = options.micro_batch_size or B
        for i, start in enumerate(range(own.start, own.stop, micro)):
            at = slice(start, min(start + micro, own.stop))
            batch = [*(table[rows[at]] for table in self.data), *(number[at] for number in numbers)]
            numbers_inside = _seeded(options.seed, _MODEL, self.step, rank, i, device=device)
            synchronised = nullcontext() if at.stop == own.stop else accelerator.no_sync(self.model)
            with numbers_inside, synchronised:
                loss = self.model(*(part.to(device) for part in batch)).sum() / B
                accelerator.backward(loss * processes)  # processes are averaged, and rows are to be
            losses.append(loss.detach())
        loss = self._over_processes(torch.stack(losses).sum())
        limit = math.inf if options.grad_clip is None else options.grad_clip
        norm = float(cast(Tensor, accelerator.clip_grad_norm_(self.parameters, limit)))
        # With a scaler a gradient may overflow: such a step is left out, and the scale is lowered.
        if not math.isfinite(loss) or (accelerator.scaler is None and not math.isfinite(norm)):
            what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of the gradient is {norm}"
            raise RuntimeError(
                f"the {what} at step {self.step + 1}: lower learning_rate ({options.learning_rate:g}) or grad_clip "
                f"({options.grad_clip}), or lengthen warmup ({options.warmup})"
            )
        self.optimizer.step()
        self.average.update_parameters(self.objective)
        for retract in self.retractions:
            retract()
        self.step += 1
        self.window.append((loss, norm))
        self.seconds += time.perf_counter() - started[0]
        self.cpu_seconds += time.process_time() - started[1]

    @torch.no_grad()
    def validate_if_due(self) -> None:
        """Loss of the average on the validation rows; blocks of rows are dealt out to the processes."""
        due = self.step % self.options.validate_every == 0 or self.step == self.options.steps
        if self.validation is None or not due:
            return
        B, device = self.options.batch_size, self.accelerator.device
        starts = range(0, len(self.validation[0]), B)
        total = torch.zeros((), dtype=self.parameters[0].dtype, device=device)
        for block in range(self.accelerator.process_index, len(starts), self.accelerator.num_processes):
            at = torch.arange(starts[block], min(starts[block] + B, len(self.validation[0])))
            numbers = self.draw(len(at), _generator(self.options.seed, _VALIDATION, block))
            batch = [*(table[at] for table in self.validation), *numbers]
            with self.accelerator.autocast():
                total += self.average(*(part.to(device) for part in batch)).sum()
        self.validation_loss = self._over_processes(total) / len(self.validation[0])
        self._record({"kind": "validation", "step": self.step, "loss": self.validation_loss})

    def log(self) -> TrainingState:
        """Write a line about the steps since the last one."""
        norms = [norm for _, norm in self.window if math.isfinite(norm)]
        state = TrainingState(
            step=self.step,
            samples=self.step * self.options.batch_size,
            loss=math.fsum(loss for loss, _ in self.window) / len(self.window),
            learning_rate=self.options.learning_rate_at(self.step - 1),
            grad_norm=math.fsum(norms) / len(norms) if norms else math.inf,
            validation_loss=self.validation_loss,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            objective=self.objective,
            average=self.average.module,
        )
        self.window = []
        names = ("step", "samples", "loss", "learning_rate", "grad_norm", "seconds", "cpu_seconds")
        self._record({"kind": "train", **{name: getattr(state, name) for name in names}})
        return state

    def save(self) -> None:
        """Write a checkpoint."""
        if self.out is None or not self.accelerator.is_main_process:
            return
        moments = self.optimizer.state_dict()["state"]
        scaler = self.accelerator.scaler
        state = {
            "samples": self.step * self.options.batch_size,
            "settings": self.settings,
            "learning_rate": self.options.learning_rate_at(self.step),
            "window": self.window,
            "validation_loss": self.validation_loss,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        tensors = {
            "model": self.objective.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": {f"{i}.{name}": t for i, own in moments.items() for name, t in own.items()},
        }
        save_checkpoint(self.out / CHECKPOINTS_NAME, Checkpoint(self.step, state, tensors), self.options.keep)

    def keep_average(self) -> None:
        """Copy the average into the objective."""
        self.objective.load_state_dict(self.average.module.state_dict())
        self.objective.eval()
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the objective as it was given, and close the files."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _rows_of_step(self) -> Tensor:
        """Which rows of the data the step sees, with shape (B,)."""
        count, B = len(self.data[0]), self.options.batch_size
        parts: list[Tensor] = []
        seen, end = self.step * B, (self.step + 1) * B
        while seen < end:
            epoch, at = divmod(seen, count)
            if self.permutation[0] != epoch:
                self.permutation = epoch, torch.randperm(count, generator=_generator(self.options.seed, _ORDER, epoch))
            parts.append(self.permutation[1][at : at + end - seen])
            seen += len(parts[-1])
        return torch.cat(parts)

    def _over_processes(self, number: Tensor) -> float:
        return float(cast(Tensor, self.accelerator.reduce(number)))

    def _record(self, record: dict[str, Any]) -> None:
        if self.out is not None and self.accelerator.is_main_process:
            append_record(self.out / METRICS_NAME, record)
        if self.options.tensorboard:
            kind, step = record["kind"], record["step"]
            self.accelerator.log({f"{kind}/{key}": v for key, v in record.items() if key not in ("kind", "step")}, step)

    def _check_settings(self, checkpoint: Checkpoint) -> None:
        then, now = checkpoint.state["settings"], self.settings
        changed = [
            f"{name} was {then[name]}, now {now.get(name)}" for name in sorted(then) if then[name] != now.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.out} holds a run with other settings ({'; '.join(changed)}): name another folder, or pass "
                "the settings of that run"
            )
        if checkpoint.step > self.options.steps:
            raise ValueError(
                f"the run in {self.out} has taken {checkpoint.step} steps: pass steps >= {checkpoint.step}, or name "
                "another folder"
            )


def _accelerator(options: TrainingOptions, find_unused_parameters: bool) -> Accelerator:
    """An accelerator for this run, whatever the runs before it in this process used."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import patch_environment

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())

    forget()
    # Rows of an expert may all be in other processes' slices, and then its parameters have no gradient here.
    distributed = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
    # Accelerate takes processes without an accelerator for strangers, unless it is told that they are on the CPU.
    found = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    place = {} if options.device in (None, "cuda") else {"ACCELERATE_TORCH_DEVICE": str(options.device)}
    try:
        with patch_environment(**place):
            return Accelerator(
                cpu=options.device == "cpu" or (options.device is None and not found),
                mixed_precision=options.mixed_precision,
                kwargs_handlers=[distributed],
                log_with="tensorboard" if options.tensorboard else None,
                project_dir=None if options.out is None else str(options.out),
            )
    except Exception:
        forget()  # A device that is not there leaves half a state, which whoever asks next would take for a whole one.
        raise


def is_main_process() -> bool:
    """Whether this process, the only one or one of several, is the one that writes."""
    from accelerate import PartialState

    return PartialState().is_main_process


def _averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        d = min(decay, (1 + int(count)) / (10 + int(count)))
        # Frozen entries stay as they are, logits of -inf among them.
        return torch.where(averaged == current, averaged, averaged.lerp(current, 1 - d))

    return average


def _settings(objective: nn.Module, data: Sequence[Table], options: TrainingOptions) -> dict[str, Any]:
    """All that the course of a run depends on, as JSON gives it back."""
    chosen = {name: value for name, value in asdict(options).items() if name not in _FREE}
    chosen["betas"] = list(options.betas)
    if options.annealing == "cosine":
        chosen["steps"] = options.steps  # the learning rate depends on it
    trained = [f"{name} {tuple(p.shape)} {p.requires_grad}" for name, p in objective.named_parameters()]
    made = [part for part in objective.children() if hasattr(part, "config")]
    return {
        **chosen,
        "objective": type(objective).__name__,
        **getattr(objective, "config", {}),
        "model": ", ".join(f"{type(part).__name__} ({_digest(json.dumps(part.config, default=str))})" for part in made),
        "parameters": f"{sum(p.numel() for p in objective.parameters())} numbers ({_digest(*trained)})",
        "data": f"{len(data[0])} rows ({_digest_of_rows(data)})",
    }


def _digest_of_rows(data: Sequence[Table]) -> str:
    """Of every number of every table, in the order of the rows and the dtype of the training: a second for 1 GB."""
    digest = hashlib.sha256()
    for table in data:
        for part in [table] if isinstance(table, Tensor) else (chunk for _, chunk in table.chunks()):
            digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _nested(flat: dict[str, Tensor], like: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser from tensors named "index.moment"; hyperparameters as in `like`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {**like, "state": state}


def _tables(data: Sequence[Any], dtype: torch.dtype) -> list[Table]:
    """The tables as what rows can be picked from, checked once."""
    if not data:
        raise ValueError("there is no data: pass at least one table of rows")
    tables: list[Table] = []
    for table in data:
        if not isinstance(table, Rows):
            given = as_numbers(table, "a table of the data")
            table = torch.as_tensor(given) if given.ndim == 1 else Rows(given, dtype=dtype)
            if isinstance(table, Rows):
                table.check_finite()
        tables.append(table)
    if len({len(table) for table in tables}) > 1:
        raise ValueError(f"the tables have {', '.join(str(len(table)) for table in tables)} rows: pass as many in each")
    return tables


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*key))


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def _seeded(*key: int, device: torch.device) -> Generator[None]:
    """Torch's global generators seeded for what happens inside, and put back afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(*key))
        yield
