"""What the words of the command line do. Each returns nothing, prints its results, and raises what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import molrmog
from molrmog import pictures
from molrmog.data import load_parts, reading_of
from molrmog.denoisers.base import condition_on
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.guidance import check_guidance, guide
from molrmog.interfaces import evaluation
from molrmog.interfaces.memory import check_memory
from molrmog.interfaces.network_report import write_network_report
from molrmog.interfaces.places import check_file
from molrmog.interfaces.report import write_report
from molrmog.interfaces.runs import EXPERTS_NAME, RUN_FILES, SAMPLES_NAME, Run, alone_in_run
from molrmog.interfaces.streams import reader_is_gone
from molrmog.interfaces.trained import Trained
from molrmog.progress import status
from molrmog.saving import write_atomically
from molrmog.schedules import Schedule, VPSchedule
from molrmog.seeds import torch_generator


def fit(*, command: str, **settings: Any) -> None:
    """Fit a law to data and write a run folder; see `molrmog.interfaces.fitting`.

    Args:
        command: the words that asked for this, for the record.
        **settings: the options of `molrmog fit`.

    Raises:
        ValueError: the data or settings do not fit.
        OSError: the data are not there, or the run folder cannot be written.
    """
    from molrmog.interfaces.fitting import fit_run

    fit_run(**settings, command=command)


def select(*, command: str, **settings: Any) -> None:
    """Say which structure rows reward; see `molrmog.interfaces.selecting`.

    Args:
        command: the words that asked for this.
        **settings: the options of `molrmog select`.

    Raises:
        ValueError: the data or settings do not fit.
        OSError: the data are not there, or a file cannot be written.
    """
    from molrmog.interfaces.selecting import select_and_print

    select_and_print(**settings)


def train(*, command: str, **settings: Any) -> None:
    """Train a score network, or go on with its training.

    Args:
        command: the words that asked for this, for the record.
        **settings: the options of `molrmog train`.

    Raises:
        ValueError: the data or settings do not fit, or the folder holds a run with other settings.
        OSError: the data are not there, or the run folder cannot be written.
    """
    from molrmog.interfaces.training import train_run

    found = train_run(settings, command)
    if found is None:
        out = settings["out"]
        print(f"{out} is finished: draw from it with molrmog sample {out}, or train into another folder")
        return
    name, measured, page = found
    evaluation.print_measurements(name, measured)
    print(f"report  {page}")


@alone_in_run
def sample(
    *,
    run: str,
    num: int = 64,
    out: str | None = None,
    npz: str | None = None,
    overwrite: bool = False,
    sampler: str | None = None,
    steps: int = 32,
    schedule: str | None = None,
    subspace: int | None = None,
    expert: int | None = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    seed: int = 0,
    command: str,
) -> None:
    """Draw samples of a run.

    Args:
        run: run folder.
        num: how many.
        out: picture to write; the run's own where not given.
        npz: file for x, with subspace and mode, or expert.
        overwrite: replace files that are there.
        sampler: name of the sampler; "exact" for a law and "heun" for a network where not given.
        steps: steps of a sampler that walks.
        schedule: noise schedule of a sampler that walks; that of the run, or VP, where not given.
        subspace: of a law; draw from this one only.
        expert: of a network; draw from this one only.
        guidance: scale w by which a sampler that walks follows the expert, or the subspace; 1 is none.
        guidance_interval: least and greatest gamma / s that are guided.
        seed: of the samples.
        command: the words that asked for this.

    Raises:
        ValueError: an option does not fit.
        OSError: there is no run, or a file cannot be written.
    """
    if num < 1:
        raise ValueError(f"--num {num}: ask for at least 1")
    if guidance != 1 and sampler == "exact":
        raise ValueError(f"--guidance {guidance} needs a sampler that walks: leave out --sampler exact")
    check_guidance(guidance, guidance_interval, "--guidance", "--guidance-interval")
    if guidance_interval is not None and guidance == 1:
        raise ValueError(f"--guidance-interval {guidance_interval}: pass [low,high] of gamma / s, and --guidance W")
    place = Run(Path(run))
    picture, rows = _check_files(place, out, npz, overwrite=overwrite)
    interval = None if guidance_interval is None else (guidance_interval[0], guidance_interval[1])
    model, layout = place.model(), place.layout()
    check_memory(f"--num {num}", 8 * layout.dim * num)  # the samples, and one copy
    noise = None if schedule is None else Schedule.from_config({"name": schedule})
    arrays: dict[str, np.ndarray] = {}
    if isinstance(model, Trained):
        if subspace is not None:
            raise ValueError("--subspace belongs to a law, and this run is a network: pass --expert")
        with status("sampling"):
            found = model.sample(
                num,
                expert=expert,
                sampler=sampler or "heun",
                steps=steps,
                schedule=noise,
                guidance=guidance,
                guidance_interval=interval,
                seed=seed,
            )
        x, arrays = found.x, {"expert": found.expert.numpy()}
    elif expert is not None:
        raise ValueError("--expert belongs to a network, and this run is a law: pass --subspace")
    elif subspace is not None and not 0 <= subspace < model.subspaces:
        raise ValueError(f"--subspace {subspace}: the law has subspaces 0 to {model.subspaces - 1}")
    elif guidance != 1 and subspace is None:
        raise ValueError(f"--guidance {guidance} follows one subspace of a law: pass --subspace, too")
    elif sampler == "exact" or (sampler is None and guidance == 1):
        drawn = model.sample(num, torch_generator(seed), subspace=subspace)
        x = drawn.x
        arrays = {"subspace": drawn.subspace.numpy(), "mode": drawn.mode.numpy()}
    else:
        denoiser = (
            model if subspace is None else condition_on(guide(ConditionalLaw(model), guidance, interval), subspace)
        )
        x = molrmog.sample(
            denoiser,
            noise or VPSchedule(),
            (num, model.dim),
            sampler=sampler or "heun",
            steps=steps,
            generator=torch_generator(seed),
            progress=True,
        )
    x = x.numpy()
    write_atomically(picture, lambda part: part.write_bytes(pictures.samples_picture(layout, x)))
    print(f"picture  {out or place.folder / SAMPLES_NAME}")
    if rows is not None:

        def save(part: Path) -> None:
            with part.open("wb") as file:  # given a name, numpy would add a suffix to it
                np.savez_compressed(file, allow_pickle=False, x=x, **arrays)

        write_atomically(rows, save)
        print(f"rows     {npz}")


@alone_in_run
def evaluate(
    *,
    run: str,
    data: str | None = None,
    features: str | Sequence[str] | None = None,
    weights: str | None = None,
    clip: str | None = None,
    prompt: str | None = None,
    num_samples: int = 2000,
    steps: int = 32,
    seed: int = 0,
    data_dir: str | None = None,
    command: str,
) -> None:
    """Measure a run on held-out rows and write its report again.

    Args:
        run: run folder.
        data: name or path; that of the run where not given.
        features: names of feature spaces.
        weights: weights of SqueezeNet.
        clip: folder of a CLIP model.
        prompt: text that samples are compared with by that model.
        num_samples: samples to compare.
        steps: of the sampler of a network.
        seed: of the samples.
        data_dir: folder to look in first.
        command: the words that asked for this.

    Raises:
        ValueError: the data do not fit the run, or an option does not.
        OSError: there is no run or no data.
    """
    if num_samples < 10:
        raise ValueError(f"--num-samples {num_samples}: pass at least 10")
    if (clip is None) != (prompt is None):
        raise ValueError("--clip FOLDER and --prompt TEXT go together: pass both")
    place = Run(Path(run))
    place.check_finished()
    model, layout, settings = place.model(), place.layout(), place.settings()
    source = data or settings.get("data")
    if source is None:
        raise ValueError(f"{run} does not say what it was fitted to: pass DATA")
    own: dict[str, Any] = {"data_dir": data_dir or settings.get("data_dir"), "dequantise": layout.dequantised}
    with status(f"reading {source}"):
        train, held = load_parts(
            source,
            **reading_of(settings) | own,
            held_out=settings.get("held_out", 0.1),
            seed=settings.get("seed", 0),
        )
    if train.dim != layout.dim:
        raise ValueError(f"{source} has rows of {train.dim} values, {run} has {layout.dim}: pass its own data")
    check_memory(f"--num-samples {num_samples}", 8 * train.dim * num_samples)  # the samples, and one copy
    if data is not None and train.name != layout.name:
        print(f"molrmog: warning: the run was fitted to {layout.name}, not to {train.name}", file=sys.stderr)
    features = [features] if isinstance(features, str) else features
    names = features or (["pca", "classifier"] if train.labels is not None else ["pca"])
    # Outside the status line: the classifier shows its own progress.
    spaces = evaluation.feature_spaces(names, train, held, weights)
    lpips = evaluation.perceptual(held, weights)
    if isinstance(model, Trained):
        name = settings["network"]
        expert = place.experts()[1]
        expert = expert if train.name == layout.name and len(expert) == len(held) else None
        with status("measuring"):
            measured, samples = evaluation.network(
                model,
                [],  # losses and times of the training stand in its own record
                train,
                held,
                expert,
                spaces=spaces,
                num=num_samples,
                steps=steps,
                lpips=lpips,
                seed=seed,
            )
    else:
        name = "law"
        with status("measuring"):
            samples = evaluation.draw(model, num_samples, seed)
            measured = evaluation.likelihood(model, train, held)
            for space in spaces:
                measured += evaluation.quality(samples, train, held, space, seed=seed)
            measured += evaluation.memorisation(samples, train, held, seed)
            measured += evaluation.clusters(model, held)
            if lpips is not None:
                measured += evaluation.diversity(samples, train, lpips, seed)
    with status("measuring"):
        if clip is not None and prompt is not None:
            measured += evaluation.text_score(samples, held, clip, prompt)
        place.record([m.to_record(law=name, command=command) for m in measured])
        if isinstance(model, Trained):
            page = write_network_report(place, model, train, held, samples)
        else:
            page = write_report(place, model, train, held, samples)
    evaluation.print_measurements(train.name, {name: measured})
    print(f"report  {page}")


@alone_in_run
def explain(*, command: str, **settings: Any) -> None:
    """Say how much of a network a law explains; see `molrmog.interfaces.explain`.

    Args:
        command: the words that asked for this, for the record.
        **settings: the options of `molrmog explain`.

    Raises:
        ValueError: an option does not fit, or the folder holds no network.
        OSError: there is no such run, or no data, or the folder cannot be written.
    """
    from molrmog.interfaces.explain import explain_run

    explain_run(settings, command)


def info(*, target: str, command: str, **reading: Any) -> None:
    """Say what a run is, or what is read of data; see `molrmog.interfaces.info`.

    Args:
        target: run folder, or name or path of data.
        command: the words that asked for this.
        **reading: how data are read, see `molrmog.data.loading`.

    Raises:
        ValueError: the target is damaged, or neither.
        OSError: the target is not there.
    """
    from molrmog.interfaces.info import say

    say(target, reading)


def bench(*, name: str | None = None, command: str) -> None:
    """Run the benchmarks of a source tree.

    Args:
        name: one of them.
        command: the words that asked for this.

    Raises:
        FileNotFoundError: this is no source tree.
        ValueError: there is no such benchmark.
        RuntimeError: one failed; what it said stands on stderr.
    """
    folders = (Path.cwd() / "benchmarks", Path(molrmog.__file__).parents[2] / "benchmarks")
    found = {path.stem: path for folder in folders[::-1] for path in sorted(folder.glob("[a-z]*.py"))}
    if not found:
        raise FileNotFoundError("no benchmarks here: run molrmog bench inside the source tree of molrmog")
    if name is not None and name not in found:
        raise ValueError(f"no benchmark {name}: choose from {', '.join(found)}")
    for stem in [name] if name else list(found):
        print(f"-- {stem}", flush=True)
        code = _relayed([sys.executable, str(found[stem])])
        if reader_is_gone():
            return
        if code:
            raise RuntimeError(f"benchmark {stem} failed with exit code {code}")


def _relayed(words: Sequence[str]) -> int:
    """Run a program whose lines are printed as ours are; it is ended where nobody takes them any more."""
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8", errors="backslashreplace", env=env) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            if reader_is_gone():
                child.kill()
                break
    return child.returncode


def reproduce(*, command: str, **settings: Any) -> None:
    """Run an experiment, or what is missing of it; see `molrmog.interfaces.reproducing`.

    Args:
        command: the words that asked for this.
        **settings: the options of `molrmog reproduce`.

    Raises:
        ValueError: an option does not fit.
        OSError: the data are not there, or the folder cannot be written, or it holds something else.
        RuntimeError: a part of the experiment failed; what was finished is kept.
        KeyboardInterrupt: with a line that says how to go on.
    """
    from molrmog.interfaces.reproducing import run_experiment

    run_experiment(**settings, command=command)


def demo(*, out: str = "runs/demo", seed: int = 0, command: str) -> None:
    """Fit the handwritten digits and write a report; see `molrmog.interfaces.demo`."""
    from molrmog.interfaces.demo import run_demo

    run_demo(Path(out), seed=seed, command=command)


COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "select": select,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "explain": explain,
    "info": info,
    "reproduce": reproduce,
    "demo": demo,
    "bench": bench,
}


def _check_files(place: Run, out: str | None, npz: str | None, *, overwrite: bool) -> tuple[Path, Path | None]:
    """The files that samples are written to, behind all links."""
    picture = check_file(out or place.folder / SAMPLES_NAME, overwrite=overwrite or out is None)
    rows = None if npz is None else check_file(npz, "--npz", overwrite=overwrite)
    if picture == rows:
        raise ValueError(f"--out and --npz both name {npz}: name two files")
    own = {Path(os.path.realpath(place.folder / name)) for name in (*RUN_FILES, EXPERTS_NAME)} - {
        Path(os.path.realpath(place.folder / SAMPLES_NAME))
    }
    own.add(Path(os.path.realpath(str(place.settings().get("data") or place.folder))))
    for flag, path in (("--out", picture), ("--npz", rows)):
        if path in own:
            raise FileExistsError(f"{flag} {path} is a file of the run, or its data: name another file")
    return picture, rows
