"""What is explained: a network, and the rows or latents that it is looked at on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from molrmog.data import Dataset, load_parts, reading_of
from molrmog.interfaces.network_report import NAMES
from molrmog.interfaces.runs import Run, settings_in
from molrmog.interfaces.trained import Trained
from molrmog.laws.base import Law
from molrmog.models import Denoiser
from molrmog.progress import status
from molrmog.registry import load
from molrmog.schedules import Schedule
from molrmog.seeds import numpy_generator

_LATENT_ROWS = 20_000  # training rows that are encoded for the fit


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
    def network(self) -> Denoiser:
        """The score network alone."""
        return self.trained.denoiser

    @property
    def experts(self) -> int:
        """How many experts the network is told apart by; 1 where it is not."""
        return len(self.trained.weights) if self.told else 1


def read_subject(settings: Mapping[str, Any]) -> Subject:
    """Read the network and its data.

    Raises:
        ValueError: it is a law, it does not say its data, or they do not fit it.
    """
    folder = Path(settings["run"])
    own = settings_in(folder) if folder.is_dir() else {}
    model = load(folder, "denoiser") if "network" not in own or settings["data"] else Run(folder).model()
    if isinstance(model, Law):
        raise ValueError(f"{folder} holds a law, which explains itself: name the folder of a network")
    source = settings["data"] or own.get("data")
    if source is None:
        raise ValueError(f"{folder} does not say what it was trained on: pass --data DATA")
    asked: dict[str, Any] = own if isinstance(model, Trained) else {}
    reading = {"image_size": settings["image_size"], **reading_of(asked)}
    reading["data_dir"] = settings["data_dir"] or reading.get("data_dir")
    with status(f"reading {source}"):
        train, held = load_parts(
            source,
            **reading,
            held_out=asked.get("held_out", 0.1),
            seed=asked.get("seed", 0),
        )
    network = model.model if isinstance(model, Trained) else model
    if network.dim != train.dim:
        raise ValueError(f"{source} has rows of {train.dim} values, {folder} has {network.dim}: pass its own data")
    if isinstance(model, Trained):
        expert, held_expert = Run(folder).experts()
        if (len(expert), len(held_expert)) != (len(train), len(held)):
            raise ValueError(f"{source} has other rows than the run was trained on: pass --data {source}")
        trained = model
    else:
        expert, held_expert, trained = _experts_by_label(network, train, held, settings)
    told = len(trained.weights) > 1
    draw = numpy_generator(settings["seed"])

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
    kind = asked.get("network")
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
    network: Denoiser, train: Dataset, held: Dataset, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Trained]:
    """Experts of rows that no run has kept: the classes, in the order of their labels."""
    K = max(1, network.num_experts)
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
