"""`molrmog train`: from rows to a score network, in stages that a stopped run takes up where it stood.

    rows  ->  experts  ->  autoencoders  ->  latents  ->  base  ->  network  ->  samples, measurements, report

| place in the run  | holds                                                                             |
| ----------------- | --------------------------------------------------------------------------------- |
| `config.yaml`     | the settings, written before anything else; they may not change while a run grows |
| `experts.npz`     | the expert of every training and held-out row                                     |
| `autoencoders/`   | each autoencoder that is trained, see `molrmog.experiments.latents`               |
| `base/`           | what a residual network stands on, see `molrmog.experiments.bases`                |
| `checkpoints/`    | of the network, see `molrmog.learning.checkpoints`                                |
| `grids/`          | samples while it was trained                                                      |

and what every run holds, see `molrmog.interfaces.runs`. A run with a report is finished.

References:
    arXiv 2601.01475, section 5: score networks in the latents of one autoencoder per class.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import Tensor

from molrmog import pictures
from molrmog.data import Dataset, load_parts, reading_of
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.experts import Experts
from molrmog.denoisers.mog import LEARNABLE
from molrmog.denoisers.unet import diffusers_unet
from molrmog.experiments.bases import fitted_base, saved_base
from molrmog.experiments.latents import AutoencoderSettings, assign_experts, build_autoencoders, encode_all
from molrmog.experiments.networks import latent_network
from molrmog.experiments.page import machine
from molrmog.folders import locked, sweep
from molrmog.interfaces import evaluation
from molrmog.interfaces.memory import check_memory
from molrmog.interfaces.network_report import write_network_report
from molrmog.interfaces.places import check_folder
from molrmog.interfaces.runs import (
    DATA_NAME,
    EXPERTS_NAME,
    GRIDS_NAME,
    METRICS_NAME,
    REPORT_NAME,
    RUN_FILES,
    SAMPLES_NAME,
    SETTINGS_NAME,
    Run,
    check_out,
    experts_in,
    records_in,
    settings_in,
    write_records,
)
from molrmog.interfaces.trained import Trained
from molrmog.interfaces.words import shown
from molrmog.learning.em import EMState
from molrmog.learning.options import TrainingOptions
from molrmog.learning.rows import Rows
from molrmog.learning.run import CHECKPOINTS_NAME
from molrmog.learning.score_matching import ScoreMatching, check_level_mean
from molrmog.learning.trainer import train_objective
from molrmog.metrics import Stopwatch
from molrmog.models import Denoiser
from molrmog.progress import progress, status
from molrmog.registry import load
from molrmog.saving import CONFIG_NAME, MODEL_NAME, write_atomically
from molrmog.schedules import Schedule

AUTOENCODERS_NAME, BASE_NAME = "autoencoders", "base"
_NAMES = (*RUN_FILES, EXPERTS_NAME)
_APART = ("linear", "vae")  # autoencoders whose experts have no latents in common

# Settings that do not change what a run becomes.
_FREE = (
    *("out", "data_dir", "device", "micro_batch_size", "tensorboard", "evaluate"),
    *("log_every", "validate_every", "grid_every", "checkpoint_every"),
)
_LEARN = {"mog": "mean,factor,mode_weights", "gaussian": "mean,factor,mode_weights"}  # where nothing is asked for
Measured = list[evaluation.Measurement]

_IDLE_GATES = (
    "--gates: this law is told the expert of a row, and so is the network; leave it out, or pass --drop-expert 0.1, or "
    "a --base fitted without --labels"
)
_TRAINED = 5 * 4  # bytes of a parameter: itself, its gradient, two moments, and an average
_GRID = 64  # samples of a picture
_SAMPLES = 2000  # samples that are measured, and held-out rows
_GRID_STEPS = 18  # of the sampler, in pictures drawn while training
_STEPS = 32  # of the sampler, in the end


def train_run(settings: Mapping[str, Any], command: str) -> tuple[str, dict[str, Measured], Path] | None:
    """Train as the settings say, or go on with it; nothing is done where it is finished.

    Args:
        settings: the options of `molrmog train`, all of them.
        command: the words that asked for this, for the record.

    Returns:
        Name of the data, measurements of the network and of what it stands on, and the path of the report; None where
        the run was finished before.

    Raises:
        ValueError: settings do not fit the data or one another, or the folder holds a run with other settings.
        OSError: the data are not there, the run folder cannot be written, or another process trains in it.
        KeyboardInterrupt: with a line that says how to go on.
    """
    _check_flags(settings)
    settings = {**settings, "learn": settings["learn"] or _LEARN.get(settings["network"])}
    folder = Path(settings["out"])
    check_folder(folder)
    with locked(folder):
        begun = _begun(folder, settings)
        if (folder / REPORT_NAME).is_file():
            return None
        options = _options(settings)
        with status(f"reading {settings['data']}"):
            source = reading_of(settings)
            train, held = load_parts(settings["data"], held_out=settings["held_out"], seed=settings["seed"], **source)
        if settings["experts"] == "labels" and train.labels is None:
            raise ValueError(f"{train.name} has no labels: pass --experts K to find K experts by clustering")
        _check_sizes(settings, train)
        before = {path for path in _first_files(folder) if path.exists()}
        try:
            if begun:
                _forget_measurements(folder)
            else:
                write_atomically(folder / SETTINGS_NAME, lambda part: part.write_text(_yaml(settings)))
            trained, held_expert = _train(folder, settings, options, train, held)
            return train.name, *_finish(Run(folder), trained, held_expert, settings, train, held, command)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; what is done is kept, go on with: {command}") from None
        except (ValueError, FileNotFoundError):
            if not any((folder / name).exists() for name in (AUTOENCODERS_NAME, CHECKPOINTS_NAME)):
                _give_up(folder, before)  # nothing is trained: the right settings may have the place
            raise


def _first_files(folder: Path) -> list[Path]:
    """What a run holds before anything is trained."""
    names = (SETTINGS_NAME, EXPERTS_NAME, DATA_NAME, METRICS_NAME)
    return [folder / name for name in names] + [folder / BASE_NAME / name for name in (CONFIG_NAME, MODEL_NAME)]


def _give_up(folder: Path, before: Set[Path]) -> None:
    """Remove what this call has written, and nothing else."""
    for path in _first_files(folder):
        if path not in before:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds something of others
        (folder / BASE_NAME).rmdir()


def _check_flags(settings: Mapping[str, Any]) -> None:
    """Refuse, before any work, flags that say nothing to the network or cannot be followed.

    Raises:
        ValueError: one of them is set.
        FileNotFoundError: there is no such base.
    """
    learn, head, latent_dim = (settings[name] for name in ("learn", "head", "latent_dim"))
    experts = settings["experts"]
    if settings["network"] in ("mlp", "residual"):
        width, depth = settings["width"], settings["depth"]
        check_memory(f"--width {shown(width)} and --depth {shown(depth)}", _TRAINED * width**2 * (2 + 6 * depth))
    if experts not in (None, "labels") and experts < 1:
        raise ValueError(f"--experts {experts}: pass 1 or more, or labels")
    if learn is not None and settings["network"] in ("unet", "mlp"):
        raise ValueError(f"--learn {learn}: a {settings['network']} is learned whole, leave it out")
    if learn not in (None, "all") and not set(learn.split(",")) <= set(LEARNABLE):
        raise ValueError(f"--learn {learn}: choose among {', '.join(LEARNABLE)}, with commas between, or all")
    _check_levels(settings)
    if settings["drop_expert"]:
        _check_drop(settings)
    if settings["network"] != "residual":
        asked = [name for name in ("base", "head", "noise", "gates") if settings[name] not in (None, False)]
        asked += [] if settings["added"] == 1 else ["added"]
        if asked:
            raise ValueError(f"--{asked[0]} belongs to --network residual: leave it out, or pass that")
        return
    if not 0 <= settings["added"] <= 1:
        raise ValueError(f"--added {settings['added']}: pass a share from 0 to 1")
    if settings["zero_mean"]:
        raise ValueError(
            "--zero-mean belongs to --network gaussian: fit such a law by molrmog fit, and pass it as --base"
        )
    if settings["start"] != "em":
        raise ValueError(f"--start {settings['start']} belongs to --network mog: the law of residual is where EM ends")
    if settings["gates"] and settings["learn"]:
        raise ValueError("--gates takes a law that stays as it is: leave out --gates, or --learn")
    if settings["autoencoder"] != "none":
        asked = [name for name in ("base", "head", "noise", "gates") if settings[name] not in (None, False)]
        if asked:
            raise ValueError(f"--{asked[0]} goes with --autoencoder none: latents get a law of their own")
    elif settings["base"] is not None:
        made = [name for name in ("head", "noise", "latent_dim", "rank") if settings[name] is not None]
        if made:
            flag = made[0].replace("_", "-")
            raise ValueError(f"--base {settings['base']} is fitted already: leave out --{flag}")
        copy = Path(settings["out"], BASE_NAME)  # a run that goes on has its own
        if not any((place / MODEL_NAME).is_file() for place in (copy, Path(settings["base"]))):
            raise FileNotFoundError(
                f"--base {settings['base']}: no model in such a folder here, make one with molrmog fit DATA --out RUN"
            )
    if settings["gates"] and settings["base"] is None and not settings["drop_expert"]:
        raise ValueError(_IDLE_GATES)
    if head is not None and learn:
        raise ValueError("a law with a head is not trained along: leave out --learn, or --head")
    if isinstance(head, int) and latent_dim is not None and head < latent_dim:
        raise ValueError(f"--head {head} is less than --latent-dim {latent_dim}: raise the one, or lower the other")


def _check_sizes(settings: Mapping[str, Any], train: Dataset) -> None:
    """Refuse more experts than rows, and batches or laws that memory cannot hold, before any of it is made.

    Raises:
        ValueError: that is what is asked for.
    """
    experts, modes, rows = (settings[name] for name in ("experts", "modes", "batch_size"))
    if isinstance(experts, int) and experts > len(train):
        raise ValueError(f"--experts {experts}: the {len(train):,} training rows are fewer, pass less")
    at_once = min(rows, settings["micro_batch_size"] or rows)
    in_latents = settings["autoencoder"] != "none"
    dim = min(train.dim, settings["latent_dim"] or default_latent_dim(train.dim)) if in_latents else train.dim
    flag = "--batch-size" if settings["micro_batch_size"] is None else "--micro-batch-size"
    check_memory(f"{flag} {shown(at_once)}", 8 * rows + 8 * dim * at_once)  # rows and their noise
    if settings["network"] in ("mog", "residual"):
        check_memory(f"--modes {shown(modes)}", modes * (experts if isinstance(experts, int) else 1) * 8 * dim)


def _check_levels(settings: Mapping[str, Any]) -> None:
    """Refuse a distribution of noise levels that cannot be.

    Raises:
        ValueError: the levels have no mean, the schedule does not reach it, or their deviation is not above zero.
    """
    mean, std = settings["level_mean"], settings["level_std"]
    if settings["levels"] != "log-normal" and (mean is not None or std is not None):
        raise ValueError("--level-mean and --level-std belong to --levels log-normal: leave them out, or pass that")
    if mean is not None:
        check_level_mean(mean, Schedule.from_config({"name": settings["schedule"]}), "--level-mean")
    if std is not None and not std > 0:
        raise ValueError(f"--level-std {std}: pass a deviation above 0")


def _check_drop(settings: Mapping[str, Any]) -> None:
    """Refuse --drop-expert where nothing answers without an expert.

    Raises:
        ValueError: it is no probability, or the network, its base or the latents take the expert for granted.
    """
    drop, network, autoencoder = (settings[name] for name in ("drop_expert", "network", "autoencoder"))
    if not 0 <= drop < 1:
        raise ValueError(f"--drop-expert {drop}: pass a probability in [0, 1)")
    if network not in ("unet", "mlp", "residual"):
        raise ValueError(
            f"--drop-expert {drop}: a {network} has a part for each expert, pass --network unet, mlp or residual"
        )
    if network == "residual" and settings["learn"]:
        raise ValueError(f"--drop-expert {drop}: residual then stands on a law that stays as it is, leave out --learn")
    if autoencoder in _APART:
        raise ValueError(
            f"--drop-expert {drop}: without an expert latents of --autoencoder {autoencoder} mean nothing, for every "
            "expert has its own; pass --autoencoder none or shared"
        )


def _begun(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run with these settings.

    Raises:
        FileExistsError: it holds something else.
        ValueError: it holds a run with other settings.
    """
    sweep(folder, _NAMES)
    for name in (BASE_NAME, AUTOENCODERS_NAME, CHECKPOINTS_NAME, GRIDS_NAME):
        for place in [folder / name, *(folder / name).rglob("*")]:
            if place.is_dir():
                sweep(place, (CONFIG_NAME, MODEL_NAME))
    if not (folder / SETTINGS_NAME).is_file():
        check_out(folder, overwrite=False)
        return False
    before = settings_in(folder)
    if "network" not in before:
        raise FileExistsError(f"--out {folder} holds a run of molrmog fit: name another folder")
    now = yaml.safe_load(_yaml(settings))
    changed = [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in now
        if name not in _FREE and before.get(name, now[name]) != now[name]
    ]
    if changed:
        raise ValueError(
            f"--out {folder} holds a run with other settings ({'; '.join(changed)}): name another folder, or pass "
            "the settings of that run"
        )
    return True


def _options(settings: Mapping[str, Any]) -> TrainingOptions:
    """What the trainer is told.

    Raises:
        ValueError: an option is out of its range.
    """
    if settings["mixed_precision"] == "fp16" and (settings["device"] == "cpu" or not torch.cuda.is_available()):
        raise ValueError("--mixed-precision fp16 needs a GPU: pass bf16 or no")
    same = (
        *("steps", "batch_size", "micro_batch_size", "learning_rate", "warmup", "mixed_precision", "seed", "device"),
        *("out", "log_every", "checkpoint_every", "validate_every", "grid_every", "tensorboard"),
    )
    return TrainingOptions(ema_decay=settings["ema"], **{name: settings[name] for name in same})


def _train(
    folder: Path, settings: Mapping[str, Any], options: TrainingOptions, train: Dataset, held: Dataset
) -> tuple[Trained, Tensor]:
    """The trained network, saved, and the expert of every held-out row."""
    expert, held_expert = _experts(folder, settings, train, held)
    count = torch.bincount(expert)
    info = train.info() | {"held_out_rows": len(held), "expert_rows": count.tolist()}
    write_atomically(folder / DATA_NAME, lambda part: part.write_text(json.dumps(info, indent=2) + "\n"))

    # Networks compute in float32, whatever the rows are.
    Rows(train, dtype=torch.float32).warn_of_rounding()
    x, held_x = (np.asarray(part.x, dtype=np.float32) for part in (train, held))
    latent_dim = settings["latent_dim"] or default_latent_dim(train.dim)
    rank = settings["rank"]
    if settings["autoencoder"] == "none":
        autoencoders, latent_shape = None, train.shape
        z, held_z = torch.as_tensor(x), torch.as_tensor(held_x)
        sigma_data = float(z[:: max(1, len(z) // 10_000)].var(0).mean().sqrt())
        rank = rank or min(latent_dim, train.dim)
    else:
        made = AutoencoderSettings(
            kind=settings["autoencoder"],
            latent_dim=latent_dim,
            steps=settings["autoencoder_steps"],
            beta=settings["beta"],
            seed=settings["seed"],
        )
        with _stage(folder, "autoencoders"), progress() as show:

            def on_step(name: str, step: int, steps: int, loss: float) -> None:
                show(name, step, steps, f"loss {loss:.4g}")

            place, device = folder / AUTOENCODERS_NAME, settings["device"]
            autoencoders = build_autoencoders(x, expert, train.shape, made, place, device=device, on_step=on_step)
            z, held_z = (encode_all(autoencoders, *rows) for rows in ((x, expert), (held_x, held_expert)))
        latent_shape, sigma_data = autoencoders[0].latent_shape, 1.0

    base = None
    if settings["network"] == "residual":
        base = _base(folder, settings, train, z, expert, latent_dim)
    if settings["network"] == "unet" or (settings["network"] == "residual" and len(latent_shape) == 3):
        diffusers_unet()  # seconds that are not the start's
    same = ("modes", "start", "channels", "attention", "width", "depth", "gates", "added", "seed")
    again = (folder / CHECKPOINTS_NAME).exists()
    with nullcontext() if again else _stage(folder, "start", of="network"), status("finding a start"):
        network = latent_network(
            settings["network"],
            z,
            expert,
            latent_shape,
            experts=len(count),
            rank=rank,
            learn=_learned(settings),
            learned_mean=not settings["zero_mean"],
            base=base,
            unconditional=settings["drop_expert"] > 0,
            sigma_data=sigma_data,
            **{name: settings[name] for name in same},
        )
    schedule = Schedule.from_config({"name": settings["schedule"]})
    weights = count / count.sum()

    def assembled(network: Denoiser) -> Trained:
        if autoencoders is None:
            return Trained(network, schedule, weights)
        model = Experts(autoencoders, network, weights)
        return Trained(model.to(next(network.parameters()).device), schedule, weights)

    def on_grid(average: Any, step: int) -> None:
        drawn = assembled(average.denoiser).sample(_GRID, steps=_GRID_STEPS, seed=settings["seed"])
        picture = pictures.samples_picture(train, drawn.x.cpu().numpy(), np.asarray(held.x[:500]))
        write_atomically(folder / GRIDS_NAME / f"step-{step:08d}.png", lambda part: part.write_bytes(picture))

    objective = ScoreMatching(
        network,
        schedule,
        sigma_data=sigma_data,
        **{name: settings[name] for name in ("weighting", "levels", "targets", "drop_expert")},
        **{
            name: settings[name]
            for name in ("level_mean", "level_std", "levels_per_batch")
            if settings[name] is not None
        },
    )
    some = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:_SAMPLES]
    validation = (held_z[some], held_expert[some])
    train_objective(objective, (z, expert), options, validation=validation, on_grid=on_grid, progress=True)
    trained = assembled(network)
    trained.model.save_pretrained(folder)
    return trained, held_expert


def _learned(settings: Mapping[str, Any]) -> str | list[str] | None:
    """The parts of a law that are learned."""
    learn = settings["learn"]
    return learn if learn in (None, "all") else learn.split(",")


def _base(
    folder: Path, settings: Mapping[str, Any], train: Dataset, z: Tensor, expert: Tensor, latent_dim: int
) -> Denoiser:
    """What a residual network stands on, made once and kept."""
    place, learn = folder / BASE_NAME, _learned(settings) or ()
    if not (place / MODEL_NAME).is_file():
        with _stage(folder, "start", of="base"):
            if settings["base"] is not None:
                by_label = _by_label(settings, train) and bool(settings_in(Path(settings["base"])).get("labels"))
                base = saved_base(settings["base"], train.dim, int(expert.max()) + 1, learn=learn, by_expert=by_label)
                if settings["gates"] and isinstance(base, ConditionalLaw) and not settings["drop_expert"]:
                    raise ValueError(_IDLE_GATES)
            else:
                base = _fitted(folder, settings, z, expert, latent_dim, learn)
        base.save_pretrained(place)
    base = load(place, "denoiser")
    if not (place / CONFIG_NAME).is_file():  # the call that saved it was killed between the two
        base.save_pretrained(place)
    return base if learn else base.requires_grad_(False)


def _fitted(
    folder: Path, settings: Mapping[str, Any], z: Tensor, expert: Tensor, latent_dim: int, learn: Sequence[str] | str
) -> Denoiser:
    """A law of rows or of latents that the experts share, or one for the latents of each expert."""
    same: dict[str, Any] = {name: settings[name] for name in ("modes", "rank", "seed")}
    if settings["autoencoder"] in _APART:
        with status("fitting the base"):
            return latent_network("mog", z, expert, z.shape[1:], start="em", learn=learn, **same)
    passes: list[dict[str, Any]] = []
    with progress() as show:
        show("base", text="finding a start")

        def on_iteration(state: EMState) -> None:
            reached = {name: getattr(state, name) for name in ("iteration", "log_likelihood", "penalised")}
            passes.append({"kind": "em", **reached})
            show("base", state.iteration, text=f"{state.log_likelihood:.2f} nats/row")

        same |= {"head": settings["head"], "noise": settings["noise"]}
        latent_dim = latent_dim if settings["autoencoder"] == "none" else z.shape[1]
        base = fitted_base(z, expert, latent_dim=latent_dim, learn=learn, on_iteration=on_iteration, **same)
    _keep_passes(folder, passes)
    return base


def _by_label(settings: Mapping[str, Any], train: Dataset) -> bool:
    """Whether the experts are the classes."""
    return settings["experts"] == "labels" or (settings["experts"] is None and train.labels is not None)


def _experts(folder: Path, settings: Mapping[str, Any], train: Dataset, held: Dataset) -> tuple[Tensor, Tensor]:
    """The expert of every training and held-out row, found once and kept."""
    if (folder / EXPERTS_NAME).is_file():
        return experts_in(folder, (len(train), len(held)))
    asked = settings["experts"]
    by_label = _by_label(settings, train)
    if by_label and train.labels is None:
        raise ValueError(f"{train.name} has no labels: pass --experts K, to find K experts by clustering")
    count = len(np.unique(cast(Any, train.labels))) if by_label else int(asked or 1)
    labels, held_labels = (train.labels, held.labels) if by_label else (None, None)
    with _stage(folder, "experts"), status("finding the experts"):
        found = assign_experts(
            np.asarray(train.x), labels, count, others=(np.asarray(held.x), held_labels), seed=settings["seed"]
        )
    arrays = {name: cast(Tensor, own).numpy() for name, own in zip(("train", "held_out"), found, strict=True)}

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(folder / EXPERTS_NAME, save)
    return found[0], cast(Tensor, found[1])


def default_latent_dim(dim: int) -> int:
    """Latent dimension of rows with so many columns where none is asked for."""
    return 32 if dim >= 128 else 16 if dim >= 32 else max(1, dim // 2)


def _finish(
    run: Run,
    trained: Trained,
    held_expert: Tensor,
    settings: Mapping[str, Any],
    train: Dataset,
    held: Dataset,
    command: str,
) -> tuple[dict[str, Measured], Path]:
    """Samples, measurements, and the report."""
    num = min(_SAMPLES, max(len(held), _GRID)) if settings["evaluate"] else _GRID
    spaces = evaluation.feature_spaces(["pca"] if settings["evaluate"] else [], train, held)
    options: dict[str, Any] = {"spaces": spaces, "num": num, "steps": _STEPS, "seed": settings["seed"]}
    work = "drawing and measuring samples" if settings["evaluate"] else "drawing samples"
    with status(work):
        found, x = evaluation.network(trained, run.records(), train, held, held_expert, **options)
    measured, others = {settings["network"]: found}, {}
    if trained.base is not None:
        # Before its first step a network to which all of its base is added is that base.
        whole = settings["added"] == 1 and not settings["learn"]
        before = [r for r in run.records() if whole and r["kind"] == "validation" and r["step"] == 0][:1]
        with status(f"{work} of the base alone"):
            measured["base"], drawn = evaluation.network(trained.base, before, train, held, None, **options)
        others["the base alone"] = drawn
    with status("writing the report"):
        picture = pictures.samples_picture(train, x[:_GRID], np.asarray(held.x[:500]))
        write_atomically(run.folder / SAMPLES_NAME, lambda part: part.write_bytes(picture))
        run.record(
            [
                {
                    "kind": "training",
                    "command": command,
                    "rows": len(train),
                    "machine": machine() | {"threads": torch.get_num_threads()},
                },
                *(m.to_record(law=name, command=command) for name, each in measured.items() for m in each),
            ]
        )
        page = write_network_report(run, trained, train, held, x, others)
    return measured, page


@contextmanager
def _stage(folder: Path, name: str, of: str = "") -> Generator[None]:
    """Keep in the records how long a stage took, all calls that worked at it together, also where it is stopped.

    Args:
        folder: of the run.
        name: of the stage.
        of: what it is a stage of, where there are several of one name.
    """
    which = {"kind": "stage", "name": name, **({"of": of} if of else {})}
    watch, done = Stopwatch(), False
    try:
        with watch:
            yield
        done = True
    finally:
        records = records_in(folder, torn=True)
        found = [i for i, each in enumerate(records) if which.items() <= each.items() and each.get("of", "") == of]
        before = records[found[0]] if found else {}
        times = {"seconds": watch.wall, "cpu_seconds": watch.cpu}
        times = {key: round(before.get(key, 0.0) + time, 3) for key, time in times.items()}
        record = {**which, **times, **({} if done else {"stopped": True})}
        if found and not before.get("stopped"):  # it was done once, and what came after it stays after it
            records[found[0]] = {**which, **times}
        else:
            records = [each for i, each in enumerate(records) if i not in found] + [record]
        write_records(folder, records)


def _keep_passes(folder: Path, passes: Sequence[dict[str, Any]]) -> None:
    """Keep the passes of EM in the records, in the place of those of a call that was killed."""
    records = records_in(folder, torn=True)
    at = next((i for i, each in enumerate(records) if each["kind"] == "em"), len(records))
    records = [each for each in records if each["kind"] != "em"]
    write_records(folder, [*records[:at], *passes, *records[at:]])


def _forget_measurements(folder: Path) -> None:
    """Drop what a call that was killed at the report has measured, for this call measures it again."""
    records = records_in(folder, torn=True)
    kept = [each for each in records if each["kind"] not in ("training", "measurement")]
    if kept != records:
        write_records(folder, kept)


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False)
