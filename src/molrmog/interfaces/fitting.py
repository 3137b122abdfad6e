"""What `molrmog fit` does: a law from rows, in a run folder that is whole before anything is measured."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from molrmog import pictures
from molrmog.data import Dataset, load_parts, reading_of
from molrmog.data.dataset import exact_precision
from molrmog.experiments.page import machine
from molrmog.folders import Lock
from molrmog.interfaces import evaluation
from molrmog.interfaces.memory import check_memory
from molrmog.interfaces.report import write_report
from molrmog.interfaces.runs import DATA_NAME, SAMPLES_NAME, SETTINGS_NAME, Run, append_records, check_out, staged
from molrmog.laws.base import Law
from molrmog.learning.em import EMState
from molrmog.learning.fit import check_rows, fit
from molrmog.learning.selection import rows_looked_at
from molrmog.progress import progress, status
from molrmog.saving import write_atomically

_GRID = 64  # samples in the report of a fit
_SAMPLES = 2000  # samples that a fit compares with held-out rows


def fit_run(
    *,
    data: str,
    out: str,
    overwrite: bool = False,
    labels: bool = False,
    held_out: float = 0.1,
    seed: int = 0,
    evaluate: bool = True,
    device: str = "cpu",
    command: str,
    **options: Any,
) -> None:
    """Fit a law to data and write a run folder.

    The run is in place, whole, as soon as the fit is done; measurements and the report are added to it then.

    Args:
        data: name or path of the data.
        out: run folder.
        overwrite: replace a run that is there.
        labels: one subspace per class.
        held_out: share of rows to hold out where the data have no test part.
        seed: of everything random.
        evaluate: measure samples and clusters, too.
        device: where to compute.
        command: the words that asked for this, for the record.
        **options: how the data are read, see `molrmog.data.loading`, and the remaining arguments of `molrmog.fit`.

    Raises:
        ValueError: the data or settings do not fit.
        OSError: the data are not there, or the run folder cannot be written.
    """
    folder = Path(out)
    place = check_out(folder, overwrite=overwrite, beside=True)
    train, held, source, shape = parts_for(data, labels=labels, held_out=held_out, seed=seed, options=options)
    if shape.get("latent_dim") is None:  # as runs of earlier versions have it
        shape["latent_dim"] = 32 if train.dim >= 64 else max(1, train.dim // 2)
    _check_sizes(train, 1 if labels else shape["subspaces"], shape)
    settings = {
        "data": data,
        "out": out,
        **shape,
        "labels": labels,
        "seed": seed,
        "evaluate": evaluate,
        "device": device,
    }
    settings |= {"held_out": held_out, **source}
    with closing(Lock(place)) as lock:
        with staged(place, overwrite=overwrite, lock=lock) as part:
            law, records = fit_and_record(train, labels=labels, seed=seed, device=device, command=command, **shape)
            save_run(part, law, train, held, settings, records)
        run = Run(folder)
        try:
            with status("measuring"):
                measured = evaluation.likelihood(law, train, held)
                samples = evaluation.draw(law, min(_SAMPLES, max(len(held), _GRID)) if evaluate else _GRID, seed)
                if evaluate:
                    (space,) = evaluation.feature_spaces(["pca"], train, held)
                    if min(len(train), len(held), len(samples)) > 1:
                        measured += evaluation.quality(samples, train, held, space, neighbours=False, seed=seed)
                    measured += evaluation.clusters(law, held)
                run.record([m.to_record(law="law", command=command) for m in measured])
                write_atomically(
                    folder / SAMPLES_NAME,
                    lambda file: file.write_bytes(
                        pictures.samples_picture(train, samples[:_GRID], np.asarray(held.x[:500]))
                    ),
                )
                page = write_report(run, law, train, held, samples)
        except KeyboardInterrupt:
            print(f"molrmog: the fit is done and kept; measure it with: molrmog evaluate {folder}", file=sys.stderr)
            raise
    evaluation.print_measurements(train.name, {"law": measured})
    print(f"report  {page}")
    if selection := getattr(law, "fit_summary_", None):
        print(selection)


def parts_for(
    data: str, *, labels: bool, held_out: float, seed: int, options: Mapping[str, Any]
) -> tuple[Dataset, Dataset, dict[str, Any], dict[str, Any]]:
    """The rows that a law is made of, and those that are held out.

    Args:
        data: name or path of the data.
        labels: whether the rows must have some.
        held_out: share of rows to hold out where the data have no test part.
        seed: of the split.
        options: how the data are read, and others.

    Returns:
        Both parts, how they were read, and the other options.

    Raises:
        ValueError: the data do not fit, or have no labels.
        OSError: the data are not there.
    """
    with status(f"reading {data}"):
        source = reading_of(options)
        train, held = load_parts(data, held_out=held_out, seed=seed, **source)
    if labels and train.labels is None:
        raise ValueError(f"{train.name} has no labels: leave out --labels")
    return train, held, source, {name: value for name, value in options.items() if name not in source}


def forecast(train: Dataset) -> list[str]:
    """What a fit of these rows without further options would do, a line each."""
    seen = rows_looked_at(len(train), train.dim)
    sample = "them" if seen == len(train) else f"{seen:,} of them"
    lines = [f"chooses subspaces, dimensions, modes and noise from {sample}, computed in {exact_precision(train.x)}"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            check_rows(train)
        except ValueError as error:
            lines.append(f"refused: {error}")
    return [*lines, *(f"warning: {each.message}" for each in said)]


def _check_sizes(train: Dataset, subspaces: int | str, shape: Mapping[str, Any]) -> None:
    """Refuse a law of more parts than there are rows, or than fit into memory, before any of it is made.

    Raises:
        ValueError: that is what is asked for.
    """
    counts: dict[str, list[int]] = {
        name: [1] if value == "auto" else [value] if isinstance(value, int) else list(value)
        for name, value in ((name, shape.get(name, 1)) for name in ("modes", "latent_dim"))
    }
    subspaces = 1 if isinstance(subspaces, str) else subspaces
    for name, most in (("subspaces", subspaces), ("modes", max(counts["modes"]))):
        if most > len(train):
            raise ValueError(f"--{name} {most}: the {len(train):,} training rows are fewer, pass less")
    d, n = min(max(counts["latent_dim"]), train.dim), max(counts["modes"])
    if all(len(count) == 1 for count in counts.values()):  # a basis, and the second moments of each mode
        needed = subspaces * (4 * train.dim * d + 8 * n * d * d)
        check_memory(f"--subspaces {subspaces} with --modes {n} and --latent-dim {d}", needed)


def fit_and_record(
    train: Dataset, *, labels: bool, command: str, name: str = "EM", **options: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Fit, and show how far that is on stderr.

    Args:
        train: the rows.
        labels: whether to use their labels.
        command: for the record.
        name: what the bar says.
        **options: arguments of `molrmog.fit`.

    Returns:
        The law on the CPU, and records: one for the fit, one per pass of EM.

    Raises:
        ValueError: the data or options do not fit.
    """
    passes: list[dict[str, Any]] = []
    start = time.perf_counter()
    with progress() as show:
        show(name, text="finding a start")

        def on_iteration(state: EMState) -> None:
            if state.iteration == 0:  # a fit begins; with head="auto" several do, and the last one counts
                passes.clear()
            passes.append(
                {
                    "kind": "em",
                    "iteration": state.iteration,
                    "log_likelihood": state.log_likelihood,
                    "penalised": state.penalised,
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
            total = options.get("max_iter", 50)
            text = f"pass {state.iteration} of {total} at most, {state.log_likelihood:.2f} nats/row"
            show(name, state.iteration, total, text)

        law = fit(
            train,
            labels=train.labels if labels else None,
            on_iteration=on_iteration,
            on_choice=lambda count, text: show(name, text=f"choosing: {count} tried, {text}"),
            **options,
        )
        show(name, 1, total=1)
    selection = getattr(law, "fit_summary_", None)
    chosen = {} if selection is None else {"chosen": selection.lines(), "criterion": selection.criterion}
    record = {
        "kind": "fit",
        "command": command,
        "seconds": round(time.perf_counter() - start, 3),
        "passes": passes[-1]["iteration"] if passes else 0,
        "rows": len(train),
        "labels": labels,
        **chosen,
        "machine": machine() | {"threads": torch.get_num_threads()},
    }
    tried = [] if selection is None else [{"kind": "candidate", **each} for each in selection.table]
    return law.cpu(), [record, *passes, *tried]


def save_run(
    folder: Path,
    law: Law,
    train: Dataset,
    held_out: Dataset,
    settings: Mapping[str, Any],
    records: Sequence[Any],
) -> None:
    """Write what a run must hold: settings, data, law, records."""
    law.save_pretrained(folder)
    info = train.info() | {"held_out_rows": len(held_out)}
    (folder / DATA_NAME).write_text(json.dumps(info, indent=2) + "\n")
    (folder / SETTINGS_NAME).write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    append_records(folder, records)
