"""`molrmog explain`: how much of a trained network a law explains, noise level by noise level, and where it does not.

    run, or saved denoiser  ->  network, its rows or latents  ->  law, one Gaussian  ->  figures, pictures, page

The law is the one that is named; else the base that the network stands on; else it is fitted here, to the training
rows. A network that is told experts is compared with laws that are told them: the subspace of each expert, or a law of
its own. The single Gaussian beside the law knows as much: its mean and covariance are those of the training rows, or
of the expert's. Where there are autoencoders, everything is compared in the latents, and drawn through the decoders.

The figures, and what they mean, are those of `molrmog.metrics.agreement`; the files those of
`molrmog.interfaces.explain_page`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import molrmog
from molrmog.data import Dataset, load_parts
from molrmog.denoisers.base import ExpertDenoiser, ScoreNetwork
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.denoisers.saved import load
from molrmog.experiments.page import number
from molrmog.head_tail import HeadTail
from molrmog.interfaces.evaluation import FEW_ROWS
from molrmog.interfaces.explain_drawings import Drawn
from molrmog.interfaces.explain_page import (
    FIGURES_NAME,
    Explanation,
    nearest_level,
    share,
    with_error,
    write_explanation,
)
from molrmog.interfaces.network_report import NAMES
from molrmog.interfaces.runs import Run, settings_in
from molrmog.interfaces.trained import Trained
from molrmog.interfaces.training import default_latent_dim
from molrmog.metrics import Agreement, Outputs, assign, gaussian_of, outputs
from molrmog.mixture import MoLRMoG
from molrmog.progress import Show, progress, status
from molrmog.schedules import Schedule

_FIT_OPTIONS = ("subspaces", "latent_dim", "modes", "head")
_LATENT_ROWS = 20_000  # training rows that are encoded for the fit
_GAUSSIAN_ROWS = 20_000  # training rows of the single Gaussian
_GAUSSIAN_VALUES = 50_000_000  # and the numbers in them
_FEWEST = 10  # training rows of an expert that a law can be fitted to
_LOW, _HIGH = 1 / 50, 20.0  # the levels that are looked at, in standard deviations of the data


@dataclass(frozen=True)
class Subject:
    """A network and the rows that it is looked at on.

    Attributes:
        trained: the network with its autoencoders, schedule and weights of experts.
        name: what it is, in words.
        train: training rows, or latents of them, with shape (N, d).
        held: held-out rows, or latents of them, with shape (M, d).
        expert: of each training row, or its class, with shape (N,); None where neither is known.
        held_expert: of each held-out row, with shape (M,).
        told: whether the network is told the expert.
        data: the held-out rows as they were read, in the order of `held`.
    """

    trained: Trained
    name: str
    train: Tensor
    held: Tensor
    expert: Tensor | None
    held_expert: Tensor | None
    told: bool
    data: Dataset

    @property
    def network(self) -> ExpertDenoiser:
        """The score network alone."""
        return self.trained.denoiser

    @property
    def experts(self) -> int:
        """How many experts the network is told apart by; 1 where it is not."""
        return len(self.trained.weights) if self.told else 1


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
    subject = _subject(settings)
    if settings["device"]:
        subject.trained.model.to(settings["device"])
    times = _times(settings["levels"], subject)
    with progress() as show:
        law, about = _law(subject, settings, show)
        gaussian = _gaussian(subject, show)
        for model in (law, gaussian):
            cast(nn.Module, model).to(subject.trained.device)
        levels, groups, drawn = _compare(subject, law, gaussian, times, settings, show)
    sd = float(subject.held.var(0).mean().sqrt())
    found = Explanation(
        title=f"{subject.data.name}: what a law explains of a network",
        network=subject.name + _base_words(subject, law),
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
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / FIGURES_NAME).is_file():
        raise FileExistsError(f"--out {out} holds something else: name another folder")
    return out


def _subject(settings: Mapping[str, Any]) -> Subject:
    """Read the network and its data.

    Raises:
        ValueError: it is a law, it does not say its data, or they do not fit it.
    """
    folder = Path(settings["run"])
    own = settings_in(folder) if folder.is_dir() else {}
    model: Any = load(folder) if "network" not in own or settings["data"] else Run(folder).model()
    if isinstance(model, MoLRMoG | HeadTail):
        raise ValueError(f"{folder} holds a law, which explains itself: name the folder of a network")
    source = settings["data"] or own.get("data")
    if source is None:
        raise ValueError(f"{folder} does not say what it was trained on: pass --data DATA")
    is_own = isinstance(model, Trained)
    asked: dict[str, Any] = own if is_own else {}
    with status(f"reading {source}"):
        train, held = load_parts(
            source,
            data_dir=settings["data_dir"] or asked.get("data_dir"),
            dequantise=asked.get("dequantise", False),
            image_size=asked.get("image_size", settings["image_size"]),
            held_out=asked.get("held_out", 0.1),
            seed=asked.get("seed", 0),
        )
    network = model.model if is_own else model
    if network.dim != train.dim:
        raise ValueError(f"{source} has rows of {train.dim} values, {folder} has {network.dim}: pass its own data")
    if is_own:
        expert, held_expert = Run(folder).experts()
        if (len(expert), len(held_expert)) != (len(train), len(held)):
            raise ValueError(f"{source} has other rows than the run was trained on: pass --data {source}")
        trained: Trained = model
    else:
        expert, held_expert, trained = _experts_by_label(network, train, held, settings)
    told = len(trained.weights) > 1
    draw = np.random.default_rng(settings["seed"])

    def some(rows: int, most: int) -> np.ndarray:
        return np.sort(draw.choice(rows, min(rows, most), replace=False))

    seen = some(len(held), settings["rows"])
    fitted = some(len(train), _LATENT_ROWS if trained.in_latents else len(train))
    with status("encoding"):
        x, held_x = (
            trained.encode(np.asarray(data.x[at]), index[at]).cpu()
            for data, at, index in ((train, fitted, expert), (held, seen, held_expert))
        )
    if not told:
        expert, held_expert = _labels(train, held) if train.labels is not None else (None, None)
    kind = own.get("network") if is_own else None
    return Subject(
        trained=trained,
        name=NAMES.get(kind, type(trained.denoiser).__name__) if kind else type(trained.denoiser).__name__,
        train=x,
        held=held_x,
        expert=None if expert is None else expert[fitted],
        held_expert=None if held_expert is None else held_expert[seen],
        told=told,
        data=held.subset(seen),
    )


def _experts_by_label(
    network: ScoreNetwork, train: Dataset, held: Dataset, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Trained]:
    """Experts of rows that no run has kept: the classes, in the order of their labels."""
    K = max(1, int(getattr(network, "experts", 0)))
    schedule = Schedule.from_config({"name": settings["schedule"] or "vp"})
    if K == 1:
        first, second = (torch.zeros(len(data), dtype=torch.long) for data in (train, held))
        return first, second, Trained(network, schedule, torch.ones(1))
    if train.labels is None:
        raise ValueError(f"the network is told one of {K} experts, and {train.name} has no labels that could be them")
    expert, held_expert = _labels(train, held)
    count = torch.bincount(expert)
    if len(count) != K:
        raise ValueError(f"the network is told one of {K} experts, but {train.name} has {len(count)} classes")
    return expert, held_expert, Trained(network, schedule, count / count.sum())


def _labels(train: Dataset, held: Dataset) -> tuple[Tensor, Tensor]:
    """Classes in the order of their labels, of training and held-out rows.

    Raises:
        ValueError: a held-out row is of a class that no training row has.
    """
    names = np.unique(cast(Any, train.labels))
    unknown = np.setdiff1d(cast(Any, held.labels), names)
    if len(unknown):
        raise ValueError(
            f"held-out rows of {train.name} have the label {unknown[0]}, which no training row has: "
            "pass --data whose classes have rows enough for both parts"
        )
    known, held_known = (torch.from_numpy(np.searchsorted(names, cast(Any, data.labels))) for data in (train, held))
    return known, held_known


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


def _law(subject: Subject, settings: Mapping[str, Any], show: Show) -> tuple[ExpertDenoiser, str]:
    """The law, and what it is in words."""
    asked = {name: settings[name] for name in _FIT_OPTIONS if settings[name] is not None}
    if settings["law"] is not None:
        if asked:
            flag = next(iter(asked)).replace("_", "-")
            raise ValueError(f"--law names a law and --{flag} asks for a fit: leave one of them out")
        return _named_law(settings["law"], subject)
    base = base_of(subject.network)
    if base is not None and not asked:
        return cast(Any, base), f"the base that it stands on ({_short(base)})"
    return _fitted_law(subject, asked, settings["seed"], show)


def base_of(network: object) -> nn.Module | None:
    """The base that a network stands on, of every expert together; None where it has none."""
    if isinstance(network, PerExpert):
        bases = [base_of(each) for each in network.networks]
        return None if any(base is None for base in bases) else PerExpert(cast(Any, bases))
    return getattr(network, "base", None)


def _named_law(path: str, subject: Subject) -> tuple[ExpertDenoiser, str]:
    law: Any = load(path)
    dim = subject.held.shape[1]
    if law.dim != dim:
        where = "latents" if subject.trained.in_latents else "rows"
        raise ValueError(f"--law {path} is a law over R^{law.dim}, but the network's {where} have {dim} values")
    about = f"the law at {path} ({_short(law)})"
    if not (subject.told and isinstance(law, MoLRMoG | HeadTail)):
        return law, about
    if law.subspaces == subject.experts:
        owner = torch.from_numpy(assign(law, subject.held)[0])
        if float((owner == subject.held_expert).float().mean()) > 0.5:
            return ConditionalLaw(law.requires_grad_(False)), f"{about}, told the expert as the network is"
    return cast(Any, law), f"{about}, which is not told the expert, though the network is"


def _fitted_law(subject: Subject, asked: Mapping[str, Any], seed: int, show: Show) -> tuple[ExpertDenoiser, str]:
    """A law of the training rows, or one of each expert's where the network is told it."""
    D = subject.train.shape[1]
    in_latents = subject.trained.in_latents
    dim = asked.get("latent_dim") or (D if in_latents else min(D, default_latent_dim(D)))
    modes = asked.get("modes") or 8
    head = asked.get("head", None if in_latents or D < 64 else "auto")
    if not subject.told:
        labels = None if "subspaces" in asked else subject.expert
        show("fitting the law")
        law = molrmog.fit(
            subject.train, labels, asked.get("subspaces", 10), latent_dim=dim, modes=modes, head=head, seed=seed
        )
        how = "one subspace per class" if labels is not None else "subspaces by clustering"
        return cast(Any, law), f"a law fitted to {len(subject.train):,} training rows ({_short(law)}, {how})"
    if "subspaces" in asked:
        raise ValueError("--subspaces goes with networks that are not told experts: leave it out")
    laws: list[nn.Module] = []
    for k in range(subject.experts):
        show("fitting the laws", k + 1, subject.experts, f"expert {k}")
        own = _rows_of(subject, k)
        most = max(1, len(own) // 2)  # modes that so few rows can hold
        d = min(dim, len(own) - 1)
        laws.append(molrmog.fit(own, subspaces=1, latent_dim=d, modes=min(modes, most), head=head, seed=seed))
    about = f"a law fitted to each expert's training rows, {len(subject.train):,} together ({_short(laws[0])})"
    return cast(Any, PerExpert(cast(Any, laws))), about


def _gaussian(subject: Subject, show: Show) -> ExpertDenoiser:
    """One Gaussian of the training rows, or one of each expert's."""
    most = max(2, min(_GAUSSIAN_ROWS, _GAUSSIAN_VALUES // subject.train.shape[1]))
    if not subject.told:
        show("fitting one Gaussian")
        return cast(Any, gaussian_of(_thinned(subject.train, most)))
    parts: list[nn.Module] = []
    for k in range(subject.experts):
        show("fitting one Gaussian", k + 1, subject.experts, f"expert {k}")
        parts.append(gaussian_of(_thinned(_rows_of(subject, k), most)))
    return cast(Any, PerExpert(cast(Any, parts)))


def _rows_of(subject: Subject, k: int) -> Tensor:
    own = subject.train[subject.expert == k]
    if len(own) < _FEWEST:
        raise ValueError(f"expert {k} has {len(own)} training rows, too few to fit to: at least {_FEWEST} are needed")
    return own


def _thinned(rows: Tensor, most: int) -> Tensor:
    return rows[:: math.ceil(len(rows) / most)]


def _compare(
    subject: Subject,
    law: ExpertDenoiser,
    gaussian: ExpertDenoiser,
    times: Sequence[float],
    settings: Mapping[str, Any],
    show: Show,
) -> tuple[list[Agreement], dict[str, list[Agreement]], list[Drawn]]:
    """Figures by level, by expert and level, and what is drawn of each level."""
    index = subject.held_expert
    levels: list[Agreement] = []
    groups: dict[str, list[Agreement]] = {}
    drawn: list[Drawn] = []
    names = subject.data.classes
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
                classes = names is not None and len(names) == int(cast(Tensor, index).max()) + 1
                name = cast(Any, names)[k] if classes else str(k)
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


def _base_words(subject: Subject, law: object) -> str:
    base = base_of(subject.network)
    if base is None:
        return ""
    if isinstance(subject.network, PerExpert) or base is law:
        return " (what the base leaves is what the network has added to it)"
    return f" (it stands on a base, {_short(base)}, which is not the law here)"


def _short(model: object) -> str:
    """A law or denoiser in a few words."""
    model = model.law if isinstance(model, ConditionalLaw | MoGDenoiser) else model
    if not isinstance(model, MoLRMoG | HeadTail):
        parts = model.networks if isinstance(model, PerExpert) else []
        return f"{type(parts[0]).__name__} of each expert" if parts else type(model).__name__
    K, d, n = model.subspaces, model.latent_dims, model.modes
    text = f"K = {K}, d = {_span(d)}, n = {_span(n)}"
    return f"{text}, head of {model.head.dim} coordinates" if isinstance(model, HeadTail) else text


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"


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
