"""The page of a run that trained a score network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molrmog import pictures
from molrmog.data import Dataset
from molrmog.denoisers.conditional import ConditionalLaw
from molrmog.denoisers.experts import PerExpert
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.experiments.page import number
from molrmog.interfaces import report
from molrmog.interfaces.evaluation import NETWORK_COST, in_short
from molrmog.interfaces.runs import Run
from molrmog.interfaces.trained import Trained
from molrmog.laws.base import Law
from molrmog.models import SupportsDenoise, as_module, num_experts_of

NAMES = {
    "mog": "MoG network",
    "gaussian": "Gaussian network (MoLRG)",
    "unet": "U-Net",
    "mlp": "residual MLP",
    "residual": "network on top of a base",
}
_LEADS = {
    "mog": "the closed form with several Gaussians per expert, trained like a network",
    "gaussian": "the closed form with one Gaussian per expert, trained like a network",
    "unet": "a U-Net that is told the expert",
    "mlp": "a residual MLP that is told the expert",
    "residual": "a neural network that learns what its base, a closed form, does not know",
}
_NOTES = (
    "Losses are comparable where latents, weighting and noise levels are the same.",
    "Fréchet distance, precision, recall, density and coverage belong to the feature space and the numbers of rows "
    "that stand above them; none is an Inception FID. In principal components the Fréchet distance sees means and "
    "covariances only, so one Gaussian with the data's moments scores as well as fresh data.",
    "“Training rows as samples” is what training rows score in the place of samples.",
    "Operations are those of matrix products, convolutions and attention, a multiplication and an addition as two. The "
    "autoencoder is paid once per sample, the score network at every step.",
)
_PAIRS = 16  # reconstructions that are drawn
_SHOWN = 64  # samples of a base
_LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # gamma / s at which it is said what a base leaves


def write_network_report(
    run: Run,
    trained: Trained,
    train: Dataset,
    held_out: Dataset,
    samples: np.ndarray,
    others: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write `report.html` of a run from its records and its data.

    Args:
        run: the run; its records hold the measurements.
        trained: its network.
        train: the rows it was trained on.
        held_out: rows it has not seen.
        samples: of the network, with shape (N, D).
        others: samples to be shown beside, by name; of its base where None.

    Returns:
        The path of the page.

    Raises:
        OSError: the page cannot be written; an old one is left whole.
    """
    records, settings = run.records(), run.settings()
    if others is None and trained.base is not None:
        others = {"the base alone": trained.base.sample(_SHOWN, seed=settings["seed"]).x.cpu().numpy()}
    made = next((r for r in reversed(records) if r["kind"] == "training"), {})
    place = "in the latents of autoencoders" if trained.in_latents else "on the rows themselves"
    return report.render(
        run,
        "network.html",
        records,
        train,
        held_out,
        samples,
        others=others,
        lead=f"Trained by denoising score matching {place}: {_LEADS[settings['network']]}.",
        cards=_cards(records, settings),
        curve=_curve(records),
        em=_em(records),
        left=_left(trained),
        reconstructions=_reconstructions(run, trained, held_out),
        experts=_experts(run, trained, train),
        about=describe(trained, settings),
        notes=_NOTES,
        made=made,
    )


def describe(trained: Trained, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the network is, as name and value."""
    model: Any = trained.model
    out = [
        ("network", NAMES[settings["network"]]),
        ("parameters", f"{model.num_parameters:,}"),
        ("experts K", str(len(trained.weights))),
        ("dimension D", f"{model.dim:,}"),
    ]
    if trained.in_latents:
        out += [
            ("autoencoders", settings["autoencoder"]),
            ("autoencoder parameters", f"{model.autoencoder_parameters:,}"),
            ("latent dimension d", f"{model.latent_dim:,}"),
        ]
    if isinstance(trained.denoiser, ResidualDenoiser):
        out += [("base", _about(trained.denoiser.base)), ("network on it", type(trained.denoiser.network).__name__)]
    if trained.laws is not None:
        modes = sorted({n for law in trained.laws for n in law.modes})
        out.append(("modes per expert n", " to ".join(map(str, dict.fromkeys((modes[0], modes[-1]))))))
    return out


def _cards(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures for the top of the page: value, name, small print."""
    newest = {(r["name"], r["where"], r["law"]): r for r in records if r["kind"] == "measurement"}
    cards: list[tuple[str, str, str]] = []
    for name in ("denoising loss", "Fréchet distance"):
        found = next((r for (own, _, law), r in newest.items() if own == name and law != "base"), None)
        if found is not None:
            base = newest.get((name, found["where"], "base"), {}).get("value")
            about = in_short(found["where"]) + ("" if base is None else f"; the base alone {number(base)}")
            cards.append((number(found["value"]), name, about))
    size = newest.get(("parameters", NETWORK_COST, settings["network"]))
    if size is not None:
        cards.append((f"{size['value']:,.0f}", "parameters", "of the score network"))
    last = next((r for r in reversed(records) if r["kind"] == "train"), None)
    if last is not None:
        about = f"{last['step']:,} steps of {settings['batch_size']} rows"
        cards.append((f"{last['seconds']:.1f} s", "training", about))
    return cards


def _curve(records: Sequence[Mapping[str, Any]]) -> str | None:
    trained = [r for r in records if r["kind"] == "train"]
    held = [r for r in records if r["kind"] == "validation"]
    return pictures.svg_uri(pictures.losses({"training": trained, "held-out": held})) if len(trained) > 1 else None


def _em(records: Sequence[Mapping[str, Any]]) -> str | None:
    passes = [r for r in records if r["kind"] == "em"]
    return pictures.svg_uri(pictures.curve(passes)) if len(passes) > 1 else None


def _left(trained: Trained) -> list[tuple[str, str]] | None:
    """What a base leaves of the error of one isotropic Gaussian, as noise level and ratio."""
    if not isinstance(trained.denoiser, ResidualDenoiser):
        return None
    sigma = torch.tensor(_LEVELS, device=trained.device)
    ratio = trained.denoiser.log_ratio(torch.ones_like(sigma), sigma).exp()
    return [(number(level), number(float(left))) for level, left in zip(_LEVELS, ratio, strict=True)]


def _about(base: SupportsDenoise) -> str:
    """What a base is, in a line."""
    K = num_experts_of(base)
    told = f", told which of {K} experts" if K else ""
    first = base.networks[0] if isinstance(base, PerExpert) else base
    law = first.law if isinstance(first, ConditionalLaw | MoGDenoiser) else first
    learned = ", trained along" if any(p.requires_grad for p in as_module(base).parameters()) else ", frozen"
    if not isinstance(law, Law):
        return type(base).__name__ + told + learned
    several = (
        "a law per expert" if isinstance(base, PerExpert) else f"one law ({type(law).__name__}), K = {law.subspaces}"
    )
    return f"{several}, d = {law.latent_dims[0]}, n = {law.modes[0]}{told}{learned}"


def _reconstructions(run: Run, trained: Trained, held_out: Dataset) -> str | None:
    if not (trained.in_latents and held_out.is_image):
        return None
    expert = run.experts()[1]
    if len(expert) != len(held_out):
        return None
    rows = np.sort(np.random.default_rng(0).permutation(len(held_out))[:_PAIRS])
    real, k = np.asarray(held_out.x[rows]), expert[torch.from_numpy(rows)]
    decoded = trained.decode(trained.encode(real, k), k).cpu().numpy()
    pairs = np.concatenate([held_out.to_images(real), held_out.to_images(decoded)])
    return pictures.png_uri(pictures.grid(pairs, columns=len(rows)))


def _experts(run: Run, trained: Trained, train: Dataset) -> list[dict[str, Any]]:
    rows: list[int] = run.info()["expert_rows"]
    classes = train.present
    named = run.settings()["experts"] in (None, "labels") and len(classes) == len(rows)
    return [
        {"name": classes[k] if named else k, "rows": count, "weight": count / sum(rows)} for k, count in enumerate(rows)
    ]
