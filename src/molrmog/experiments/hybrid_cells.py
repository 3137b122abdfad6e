"""The cells of the comparison of networks with and without a closed form beneath them.

    rows -> bases (laws, patches, blends) -> networks on them, measured while they train -> fewer steps in sampling

| stage  | a cell                     | keeps                                                                      |
| ------ | -------------------------- | -------------------------------------------------------------------------- |
| bases  | one base                   | the base, its denoising loss by noise level, its price                     |
| blends | one blend of bases         | the same                                                                   |
| arms   | one network, one seed      | the network, its quality at marks along the training                       |
| sampling | one of these             | its quality by evaluations, with and without a jump                        |

All networks of a comparison have the same backbone, rows, noise levels, weighting, batches, optimiser and number of
steps, and are measured by the moving average of their weights. Training seconds are those of steps alone, of the
processor, or of the clock on a GPU: the price of the base is in them, measurements are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from molrmog import metrics
from molrmog.data import Dataset
from molrmog.denoisers.blend import BlendDenoiser
from molrmog.denoisers.centred import CentredDenoiser
from molrmog.denoisers.patches import PatchDenoiser, patches_of
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.denoisers.unet import UNetDenoiser
from molrmog.experiments.cells import experiment_of, report_progress
from molrmog.experiments.image_cells import parts, space
from molrmog.laws.base import Law
from molrmog.learning.checkpoints import checkpoints_in, remove_checkpoint
from molrmog.learning.fit import fit
from molrmog.learning.options import TrainingOptions
from molrmog.learning.run import CHECKPOINTS_NAME
from molrmog.learning.score_matching import ScoreMatching
from molrmog.learning.trainer import training
from molrmog.models import Denoiser, SupportsDenoise, as_module
from molrmog.registry import load
from molrmog.sampling import sample
from molrmog.saving import write_atomically
from molrmog.schedules import VPSchedule
from molrmog.seeds import torch_generator, torch_seed

SCHEDULE = VPSchedule()
SHOWN = 64  # samples kept for pictures
_LOSS_ROWS = 2000  # held-out rows of a denoising loss
_LEVELS = 64  # noise levels of that
_NEIGHBOURS = 2000  # rows compared by nearest neighbours
_JUMP_ROWS = 256  # rows that a jump is chosen by
_PRICED = 10  # calls of a base that are timed

Settings = dict[str, Any]


def compute_base(settings: Settings, folder: Path) -> dict[str, Any]:
    """One base; "base" in the settings has a "kind": "law", "patches" or "blend"."""
    rows, held = parts(settings["source"])
    with metrics.Stopwatch() as watch:
        base = make_base(settings["base"], rows, lambda name: base_of(folder, name))
    base.save_pretrained(folder / "model")
    drawn = _drawn(base, rows, settings, sampler="heun", steps=settings["sampler_steps"])
    np.save(folder / "samples.npy", drawn[:SHOWN])
    return {
        "wall": watch.wall,
        "cpu": watch.cpu,
        "seconds_per_row": _price(base, rows, settings["batch_size"], settings["loss"]),
        **_loss(base, held),
        **quality(drawn, rows, held, full=True),
    }


def make_base(chosen: Mapping[str, Any], rows: Dataset, made: Callable[[str], Denoiser]) -> Denoiser:
    """A base of a plan.

    Args:
        chosen: its "kind" and options.
        rows: the training rows.
        made: a base that was made before, by its name.
    """
    options = {key: value for key, value in chosen.items() if key not in ("kind", "labels")}
    options.setdefault("noise", None)  # isotropic, where nothing else is told
    x = torch.from_numpy(np.asarray(rows.x))
    labels = rows.labels if chosen.get("labels") else None
    if chosen["kind"] == "law":
        return fit(x, labels, **options)
    if chosen["kind"] == "patches":
        size, stride, drawn, top = (options.pop(name) for name in ("size", "stride", "patches", "top"))
        patches = patches_of(x, rows.shape, size, drawn, torch.Generator().manual_seed(0))
        return PatchDenoiser(fit(patches, **options), rows.shape, size, stride, top)
    return BlendDenoiser([made(name) for name in options["parts"]]).fit_(x)


def base_of(folder: Path, name: str) -> Denoiser:
    """A base that was computed before, frozen; `folder` is that of any cell."""
    return load(_place_of(folder, name), "denoiser").requires_grad_(False).eval()


def _place_of(folder: Path, name: str) -> Path:
    return experiment_of(folder) / "cells" / "bases" / name / "model"


def compute_arm(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train one network and measure it on the way; for the settings see `hybrid`."""
    rows, held = parts(settings["source"])
    x = torch.from_numpy(np.asarray(rows.x))
    network = arm_network(settings, folder, x, rows.shape)
    with metrics.Stopwatch() as start:  # building it imports diffusers, which is nobody's price
        if isinstance(network, ResidualDenoiser):
            network.measure_(x, seed=settings["seed"])
    options = TrainingOptions(
        **settings["training"],
        seed=settings["seed"],
        device=settings["device"],
        out=folder / "run",
        log_every=settings["every"],
        checkpoint_every=settings["every"],
        validate_every=settings["every"],
        keep=2,
    )
    _forget_unmeasured(folder)
    loss = ScoreMatching(network, SCHEDULE, **settings["loss"])
    validation = [torch.from_numpy(np.asarray(held.x)[:_LOSS_ROWS])]
    for state in training(loss, [x], options, validation=validation):
        report_progress(folder, 0.9 * state.step / options.steps)
        reached = {
            "step": state.step,
            "cpu": state.cpu_seconds,
            "wall": state.seconds,
            "validation_loss": state.validation_loss,
        }
        if state.step in settings["marks"]:
            trained = cast(ScoreMatching[Denoiser], state.average).denoiser
            drawn = _drawn(trained, rows, settings, sampler="heun", steps=settings["sampler_steps"])
            reached |= quality(drawn, rows, held, full=state.step == options.steps)
            np.save(folder / "samples.npy", drawn[:SHOWN])
        _keep(folder / "marks" / f"{state.step}.json", reached)
    network.eval()
    network.save_pretrained(folder / "model")
    marks = sorted((json.loads(path.read_text()) for path in (folder / "marks").glob("*.json")), key=_step)
    result: dict[str, Any] = {"marks": marks, "parameters": network.num_parameters, "start_cpu": start.cpu}
    if isinstance(network, ResidualDenoiser):
        batch = settings["training"]["batch_size"]
        spent = _price(network.base, rows, batch, settings["loss"]) * batch
        clock = "cpu" if settings["device"] == "cpu" else "wall"
        result["base_share"] = spent / (marks[-1][clock] / marks[-1]["step"])
    with _precision(settings):
        result |= _loss(network, held)
    return result


def _forget_unmeasured(folder: Path) -> None:
    """Drop checkpoints whose mark is missing, so that a cell that was stopped while it measured does so again."""
    for step, checkpoint in checkpoints_in(folder / "run" / CHECKPOINTS_NAME).items():
        if not (folder / "marks" / f"{step}.json").is_file():
            remove_checkpoint(checkpoint)


def arm_network(settings: Settings, folder: Path, x: Tensor, shape: tuple[int, ...]) -> Denoiser:
    """The untrained network of an arm: a U-Net alone, or on a base."""
    torch.manual_seed(torch_seed(settings["seed"]))
    arm = settings["arm"]
    if arm["base"] is None:
        if not arm.get("centred"):
            return UNetDenoiser(shape, sigma_data=0.5, **settings["unet"])
        sd = float(x.var(0).mean().sqrt())
        return CentredDenoiser(UNetDenoiser(shape, sigma_data=sd, **settings["unet"]), x.mean(0))
    unet = UNetDenoiser(shape, sigma_data=0.5, inputs=2 if arm["as_input"] else 1, **settings["unet"])
    return ResidualDenoiser(base_of(folder, arm["base"]), unet, as_input=arm["as_input"], added=arm["added"])


def compute_sampling(settings: Settings, folder: Path) -> dict[str, Any]:
    """Quality of a trained network by evaluations, from pure noise and from where the law takes over."""
    rows, held = parts(settings["source"])
    device = settings["device"]
    network = load(experiment_of(folder) / "cells" / settings["network"] / "model", "denoiser").to(device)
    law = load(_place_of(folder, settings["law"]), "law").to(device)
    with _precision(settings):
        seen = np.asarray(rows.x)[:_JUMP_ROWS]
        jump = metrics.jump_time(network, law, seen, SCHEDULE, tolerance=settings["tolerance"])
    starts = (None,) if jump is None else (None, jump)
    few: list[dict[str, Any]] = []
    for evaluations, start in product(settings["evaluations"], starts):
        drawn = _drawn(
            network, rows, settings, sampler="dpm++", steps=evaluations - 1, spacing="karras", jump=start, law=law
        )
        few.append({"evaluations": evaluations, "jump": start, **quality(drawn, rows, held, full=False)})
        report_progress(folder, len(few) / (len(starts) * len(settings["evaluations"])))
    return {"few": few}


def _drawn(
    denoiser: Denoiser,
    rows: Dataset,
    settings: Settings,
    *,
    jump: float | None = None,
    law: Law | None = None,
    **how: Any,
) -> np.ndarray:
    generator = torch_generator(settings["seed"])
    start: Settings = {} if jump is None else {"jump": jump, "jump_by": "law", "jump_law": law}
    with _precision(settings):
        several = [
            sample(denoiser, SCHEDULE, (n, rows.dim), generator=generator, **start, **how)
            for n in _batches(settings["samples"], 256)
        ]
    return torch.cat(several).float().cpu().numpy()


def _precision(settings: Settings) -> torch.autocast:
    """Networks are measured in the precision that they are trained in; laws keep their own."""
    narrow = settings["mixed_precision"] == "bf16"
    return torch.autocast(torch.device(settings["device"]).type, torch.bfloat16, enabled=narrow)


def _loss(denoiser: Denoiser, held: Dataset) -> dict[str, Any]:
    """Denoising loss as EDM weighs it, at the levels of EDM, in all and by range of log gamma at s = 1."""
    loss = metrics.denoising_loss(denoiser, np.asarray(held.x)[:_LOSS_ROWS], draws=2, levels=_LEVELS)
    ranges = [(part.low, part.high, part.loss) for part in loss.ranges]
    return {"loss": loss.loss, "standard_error": loss.standard_error, "ranges": ranges}


def quality(x: np.ndarray, rows: Dataset, held: Dataset, *, full: bool) -> dict[str, Any]:
    """Fréchet distance of samples to held-out rows; precision, recall and memorisation where `full`."""
    features = space(rows, held)
    found: dict[str, Any] = {"Fréchet": metrics.frechet_distance(features(x), features(np.asarray(held.x)))}
    if full:
        few, real = x[:_NEIGHBOURS], np.asarray(held.x)[:_NEIGHBOURS]
        shares = metrics.precision_recall(features(few), features(real))
        copies = metrics.memorisation(few, np.asarray(rows.x), real)
        found |= {"precision": shares.precision, "recall": shares.recall}
        found |= {"memorisation": copies.ratio, "copies": copies.closer_than_1}
    return found


def _price(base: SupportsDenoise, rows: Dataset, batch: int, loss: Settings) -> float:
    """Seconds per row of a base at noise levels as in training: of the processor, or of the clock on a GPU."""
    device = next(as_module(base).parameters()).device
    x = torch.from_numpy(np.asarray(rows.x)[:batch])
    objective, generator = ScoreMatching(base, SCHEDULE, **loss), torch.Generator().manual_seed(0)
    batches: list[tuple[Tensor, ...]] = []
    for _ in range(1 + _PRICED):  # other levels in each, as a law keeps what it was asked for last
        s, gamma, eps = objective.draw(len(x), generator)
        batches.append(tuple(t.to(device) for t in (s[:, None] * x + gamma[:, None] * eps, s, gamma)))
    with torch.no_grad():
        said = base.denoise(*batches[0])
        with metrics.Stopwatch() as watch:
            for noised in batches[1:]:
                said = base.denoise(*noised)
            said[0, 0].item()  # a GPU has to be done
    return (watch.cpu if device.type == "cpu" else watch.wall) / (_PRICED * len(x))


def _keep(path: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record)
    write_atomically(path, lambda part: part.write_text(text))


def _step(record: Mapping[str, Any]) -> int:
    return record["step"]


def _batches(rows: int, most: int) -> list[int]:
    return [min(most, rows - start) for start in range(0, rows, most)]
