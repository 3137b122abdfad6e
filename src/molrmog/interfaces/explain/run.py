"""`molrmog explain`: how much of a trained network a law explains, noise level by noise level, and where it does not.

    run, or saved denoiser  ->  network, its rows or latents  ->  law, one Gaussian  ->  figures, pictures, page

The law is the one that is named; else the base that the network stands on; else it is fitted here, to the training
rows. A network that is told experts is compared with laws that are told them: the subspace of each expert, or a law of
its own. The single Gaussian beside the law knows as much: its mean and covariance are those of the training rows, or
of the expert's. Where there are autoencoders, everything is compared in the latents, and drawn through the decoders.

The figures, and what they mean, are those of `molrmog.metrics.agreement`; the files those of
`molrmog.interfaces.explain.page`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from molrmog.experiments.page import number
from molrmog.folders import sweep
from molrmog.interfaces.evaluation import FEW_ROWS
from molrmog.interfaces.explain.drawings import Drawn
from molrmog.interfaces.explain.laws import base_words, gaussian_for, law_of
from molrmog.interfaces.explain.page import (
    FIGURES_NAME,
    Explanation,
    nearest_level,
    share,
    with_error,
    write_explanation,
)
from molrmog.interfaces.explain.subject import Subject, read_subject
from molrmog.interfaces.places import check_folder
from molrmog.metrics import Agreement, Outputs, outputs
from molrmog.models import SupportsDenoise, as_module
from molrmog.progress import Show, progress

_LOW, _HIGH = 1 / 50, 20.0  # the levels that are looked at, in standard deviations of the data


def explain_run(settings: Mapping[str, Any], command: str) -> Path:
    """Explain a network as the settings say, write the folder, and print the figures.

    Args:
        settings: the options of `molrmog explain`, all of them.
        command: the words that asked for this, for the record.

    Returns:
        The path of the page.

    Raises:
        ValueError: an option does not fit, or the folder holds no network.
        OSError: there is no such run, or no data, or the folder cannot be written.
    """
    out = _out(settings)
    for name, least in (("rows", 2), ("show", 1)):
        if settings[name] < least:
            raise ValueError(f"--{name} {settings[name]}: pass {least} or more")
    subject = read_subject(settings)
    if settings["device"]:
        subject.trained.model.to(settings["device"])
    times = _times(settings["levels"], subject)
    with progress() as show:
        law, about = law_of(subject, settings, show)
        gaussian = gaussian_for(subject, show)
        for model in (law, gaussian):
            as_module(model).to(subject.trained.device)
        levels, groups, drawn = _compare(subject, law, gaussian, times, settings, show)
    sd = float(subject.held.var(0).mean().sqrt())
    found = Explanation(
        title=f"{subject.data.name}: what a law explains of a network",
        network=subject.name + base_words(subject, law),
        law=about,
        rows=f"{len(subject.held):,} held-out rows of {subject.data.name}"
        + (f" ({FEW_ROWS})" if len(subject.held) < 50 else ""),
        levels=levels,
        groups=groups,
        drawn=drawn,
        layout=subject.data,
        grouped_by="expert" if subject.told else "class",
        space="latents" if subject.trained.in_latents else "rows",
        settings={"command": command, "law_used": about, **settings},
    )
    with progress() as show:
        page = write_explanation(found, out, sd, show)
    _print(found, nearest_level(levels, sd))
    print(f"page      {page}")
    print(f"pictures  {out}/level-01.png to level-{len(levels):02d}.png")
    return page


def _out(settings: Mapping[str, Any]) -> Path:
    run = Path(settings["run"])
    if settings["out"] is None and not run.is_dir():
        raise FileNotFoundError(f"no folder {run}: name a run of molrmog train, or a saved denoiser")
    out = Path(settings["out"] or run / "explain")
    check_folder(out)
    sweep(out)  # what one that was killed has left is nothing else
    if out.is_dir() and any(out.iterdir()) and not (out / FIGURES_NAME).is_file():
        raise FileExistsError(f"--out {out} holds something else: name another folder")
    return out


def _times(levels: int | Sequence[float], subject: Subject) -> list[float]:
    """Times of the noise levels, ascending."""
    schedule = subject.trained.schedule
    low, high = (math.exp(-0.5 * schedule.log_snr(t)) for t in (schedule.t_min, schedule.t_max))
    if isinstance(levels, int):
        if levels < 1:
            raise ValueError(f"--levels {levels}: pass 1 or more, or sigmas as [0.1,1]")
        sd = float(subject.held.var(0).mean().sqrt())
        sigma = np.geomspace(max(low, _LOW * sd), min(high, _HIGH * sd), levels)
    else:
        sigma = np.sort(np.asarray(levels, float))
        if not len(sigma) or not (sigma[0] >= low and sigma[-1] <= high):
            raise ValueError(
                f"--levels {list(levels)}: pass sigmas from {low:.3g} to {high:.3g}, those of the schedule"
            )
    return [min(max(schedule.time(-2 * math.log(each)), schedule.t_min), schedule.t_max) for each in sigma]


def _compare(
    subject: Subject,
    law: SupportsDenoise,
    gaussian: SupportsDenoise,
    times: Sequence[float],
    settings: Mapping[str, Any],
    show: Show,
) -> tuple[list[Agreement], dict[str, list[Agreement]], list[Drawn]]:
    """Figures by level, by expert and level, and what is drawn of each level."""
    index = subject.held_expert
    levels: list[Agreement] = []
    groups: dict[str, list[Agreement]] = {}
    drawn: list[Drawn] = []
    names = subject.data.classes or subject.data.present
    expert = index if subject.told else None
    seed = settings["seed"]
    found = outputs(
        subject.network, law, subject.held, subject.trained.schedule, times, seed, expert=expert, gaussian=gaussian
    )
    for i, level in enumerate(found):
        levels.append(level.agreement())
        show("comparing", i + 1, len(times), f"sigma {levels[-1].sigma:.3g}")
        for k in range(0 if index is None else int(index.max()) + 1):
            mine = index == k
            if int(mine.sum()) > 1:
                name = names[k] if len(names) == int(cast(Tensor, index).max()) + 1 else str(k)
                groups.setdefault(name, []).append(level.of(mine).agreement())
        drawn.append(_drawn(subject, level, settings["show"]))
    return levels, groups if len(groups) > 1 else {}, drawn


def _drawn(subject: Subject, level: Outputs, count: int) -> Drawn:
    """What is drawn of a level: some rows, and maps over all, through the decoders where there are any."""
    x0 = level.clean
    mean, sd2 = x0.mean(), x0.var()  # of all numbers together, or the mean row would show through the noise
    scaled = mean + (sd2 / (level.s**2 * sd2 + level.gamma**2)).sqrt() * (level.noised - level.s * mean)
    index = subject.held_expert if subject.told else torch.zeros(len(x0), dtype=torch.long)

    def decoded(z: Tensor, rows: slice | Tensor) -> Tensor:
        return subject.trained.decode(z[rows], cast(Tensor, index)[rows]).double().cpu()

    all_rows = slice(None)
    law, network = decoded(level.law, all_rows), decoded(level.denoiser, all_rows)
    shown = torch.linspace(0, len(x0) - 1, min(count, len(x0))).long()
    if index is not None and subject.held_expert is not None:  # in the order of the experts
        shown = subject.held_expert.argsort(stable=True)[shown]
    return Drawn(
        clean=np.asarray(subject.data.x)[shown.numpy()],
        noised=decoded(scaled, shown.to(x0.device)).numpy(),
        law=law[shown].numpy(),
        network=network[shown].numpy(),
        missed=(network - law).square().mean(0).numpy(),
        variance=network.var(0, correction=0).numpy(),
    )


def _print(found: Explanation, middle: int) -> None:
    """The figures as plain tables on stdout."""
    print(f"\n{found.network}\nby {found.law}\non {found.rows}{', in latents' if found.space == 'latents' else ''}\n")
    print(f"{'':10}{'share of its output explained by':^36}{'':38}{'squared error per coordinate':>32}")
    heads = ("sigma", "isotropic", "Gaussian", "law", "beyond", "worth", "network", "law", "Gaussian")
    widths = (10, 12, 12, 12, 19, 19, 11, 11, 11)

    def line(cells: Sequence[str], own: Sequence[int] = widths) -> None:
        print("".join(f"{text:>{width}}" for text, width in zip(cells, own, strict=True)))

    line(heads)
    for level in found.levels:
        shares = (level.isotropic_share, level.gaussian_share, level.share)
        line(
            (
                number(level.sigma, 3),
                *map(share, shares),
                with_error(level.beyond, level.beyond_error),
                with_error(level.worth, level.worth_error),
                *(number(loss, 4) for loss in (level.loss, level.law_loss, level.gaussian_loss)),
            )
        )
    print("beyond: of what the network knows more than the Gaussian; worth: how far what the law leaves is right")
    if found.groups:
        print(f"\nby {found.grouped_by}, at sigma {number(found.levels[middle].sigma, 3)}")
        own = (14, 6, 12, 19, 19, 11, 11)
        line((found.grouped_by, "rows", "law", "beyond", "worth", "network", "law"), own)
        for name, levels in found.groups.items():
            level = levels[middle]
            figures = [
                with_error(*pair) for pair in ((level.beyond, level.beyond_error), (level.worth, level.worth_error))
            ]
            losses = [number(loss, 4) for loss in (level.loss, level.law_loss)]
            line((name[:13], str(level.rows), share(level.share), *figures, *losses), own)
    print()
