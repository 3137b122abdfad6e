"""What explains it: the law that is named, that the network stands on, or that is fitted here; and one Gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import molrmog
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.interfaces.explain.subject import Subject
from molrmog.interfaces.training import default_latent_dim
from molrmog.laws.base import Law
from molrmog.metrics import assign, gaussian_of
from molrmog.models import Denoiser, SupportsDenoise
from molrmog.progress import Show
from molrmog.registry import load

_FIT_OPTIONS = ("subspaces", "latent_dim", "modes", "head")
_GAUSSIAN_ROWS = 20_000  # training rows of the single Gaussian
_GAUSSIAN_VALUES = 50_000_000  # and the numbers in them
_FEWEST = 10  # training rows of an expert that a law can be fitted to


def law_of(subject: Subject, settings: Mapping[str, Any], show: Show) -> tuple[SupportsDenoise, str]:
    """The law, and what it is in words."""
    asked = {name: settings[name] for name in _FIT_OPTIONS if settings[name] is not None}
    if settings["law"] is not None:
        if asked:
            flag = next(iter(asked)).replace("_", "-")
            raise ValueError(f"--law names a law and --{flag} asks for a fit: leave one of them out")
        return _named_law(settings["law"], subject)
    base = base_of(subject.network)
    if base is not None and not asked:
        return base, f"the base that it stands on ({_short(base)})"
    return _fitted_law(subject, asked, settings["seed"], show)


def base_of(network: SupportsDenoise) -> SupportsDenoise | None:
    """The base that a network stands on, of every expert together; None where it has none."""
    if isinstance(network, PerExpert):
        bases = [base for each in network.networks if isinstance(base := base_of(each), Denoiser)]
        return PerExpert(bases) if len(bases) == network.num_experts else None
    return network.base if isinstance(network, ResidualDenoiser) else None


def _named_law(path: str, subject: Subject) -> tuple[Denoiser, str]:
    law = load(path, "denoiser")
    dim = subject.held.shape[1]
    if law.dim != dim:
        where = "latents" if subject.trained.in_latents else "rows"
        raise ValueError(f"--law {path} is a law over R^{law.dim}, but the network's {where} have {dim} values")
    about = f"the law at {path} ({_short(law)})"
    if not (subject.told and isinstance(law, Law)):
        return law, about
    if law.subspaces == subject.experts:
        owner = torch.from_numpy(assign(law, subject.held)[0])
        if float((owner == subject.held_expert).float().mean()) > 0.5:
            return ConditionalLaw(law.requires_grad_(False)), f"{about}, told the expert as the network is"
    return law, f"{about}, which is not told the expert, though the network is"


def _fitted_law(subject: Subject, asked: Mapping[str, Any], seed: int, show: Show) -> tuple[SupportsDenoise, str]:
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
            subject.train,
            labels,
            asked.get("subspaces", 10),
            latent_dim=dim,
            modes=modes,
            head=head,
            noise=None,
            seed=seed,
        )
        how = "one subspace per class" if labels is not None else "subspaces by clustering"
        return law, f"a law fitted to {len(subject.train):,} training rows ({_short(law)}, {how})"
    if "subspaces" in asked:
        raise ValueError("--subspaces goes with networks that are not told experts: leave it out")
    laws: list[Law] = []
    for k in range(subject.experts):
        show("fitting the laws", k + 1, subject.experts, f"expert {k}")
        own = _rows_of(subject, k)
        most = max(1, len(own) // 2)  # modes that so few rows can hold
        d = min(dim, len(own) - 1)
        laws.append(
            molrmog.fit(own, subspaces=1, latent_dim=d, modes=min(modes, most), head=head, noise=None, seed=seed)
        )
    about = f"a law fitted to each expert's training rows, {len(subject.train):,} together ({_short(laws[0])})"
    return PerExpert(laws), about


def gaussian_for(subject: Subject, show: Show) -> Denoiser:
    """One Gaussian of the training rows, or one of each expert's."""
    most = max(2, min(_GAUSSIAN_ROWS, _GAUSSIAN_VALUES // subject.train.shape[1]))
    if not subject.told:
        show("fitting one Gaussian")
        return gaussian_of(_thinned(subject.train, most))
    parts: list[Law] = []
    for k in range(subject.experts):
        show("fitting one Gaussian", k + 1, subject.experts, f"expert {k}")
        parts.append(gaussian_of(_thinned(_rows_of(subject, k), most)))
    return PerExpert(parts)


def _rows_of(subject: Subject, k: int) -> Tensor:
    own = subject.train[subject.expert == k]
    if len(own) < _FEWEST:
        raise ValueError(f"expert {k} has {len(own)} training rows, too few to fit to: at least {_FEWEST} are needed")
    return own


def _thinned(rows: Tensor, most: int) -> Tensor:
    return rows[:: math.ceil(len(rows) / most)]


def base_words(subject: Subject, law: object) -> str:
    """What the network stands on, to be said behind its name; nothing where it stands on nothing."""
    base = base_of(subject.network)
    if base is None:
        return ""
    if isinstance(subject.network, PerExpert) or base is law:
        return " (what the base leaves is what the network has added to it)"
    return f" (it stands on a base, {_short(base)}, which is not the law here)"


def _short(model: object) -> str:
    """A law or denoiser in a few words."""
    model = model.law if isinstance(model, ConditionalLaw | MoGDenoiser) else model
    if not isinstance(model, Law):
        parts = model.networks if isinstance(model, PerExpert) else []
        return f"{type(parts[0]).__name__} of each expert" if parts else type(model).__name__
    K, d, n = model.subspaces, model.latent_dims, model.modes
    text = f"K = {K}, d = {_span(d)}, n = {_span(n)}"
    return text if model.head_dim is None else f"{text}, head of {model.head_dim} coordinates"


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"
