"""The cells of the image comparison: score networks side by side in the same latents of the same autoencoders.

    rows -> experts (by label or by clustering) -> autoencoders -> latents -> networks -> samples -> measurements

Every arrow is a stage of cells (see `cells`), so a run that was stopped goes on. All networks of a comparison get the
same latents, noise levels, weighting, batch size, number of steps and sampler, and are measured on the same held-out
rows. A network that learns nothing is among them, the law that EM finds in the latents.

| stage        | a cell                              | keeps                                              |
| ------------ | ----------------------------------- | -------------------------------------------------- |
| experts      | one way to share rows among experts | expert of each row                                 |
| autoencoders | one expert's autoencoder            | the autoencoder                                    |
| latents      | all experts of one kind             | latents, and how well rows are reconstructed       |
| networks     | one network, one seed               | the network, its curves, samples and measurements  |

References:
    arXiv 2601.01475, section 5 (networks, n_k, one VAE per expert, one shared VAE); Wang et al., arXiv 2409.02426.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from molrmog import metrics
from molrmog.autoencoders import AutoencoderList, Autoencoders
from molrmog.data import Dataset, load_parts
from molrmog.denoisers.base import condition_on
from molrmog.denoisers.experts import Experts, PerExpert
from molrmog.denoisers.mog import MoGDenoiser
from molrmog.denoisers.residual import ResidualDenoiser
from molrmog.denoisers.unet import UNetDenoiser
from molrmog.experiments.cells import experiment_of, report_progress
from molrmog.experiments.latents import (
    AutoencoderSettings,
    assign_experts,
    build_autoencoder,
    build_autoencoders,
    decode_all,
    encode_all,
)
from molrmog.experiments.networks import latent_network
from molrmog.laws.base import Law
from molrmog.learning.fit import fit
from molrmog.learning.run import METRICS_NAME
from molrmog.learning.score_matching import ScoreMatching
from molrmog.learning.train import train
from molrmog.models import SupportsDenoise, num_parameters_of
from molrmog.sampling import sample, sample_experts
from molrmog.schedules import VPSchedule
from molrmog.seeds import torch_generator, torch_seed

SCHEDULE = VPSchedule()
SHOWN = 64  # samples kept for pictures
_NEIGHBOURS = 2000  # rows compared by nearest neighbours
_LEVEL_MEAN = math.log(2 * 0.3)  # of log sigma, the -1.2 of EDM for data of deviation 1 in place of 0.5
_DRAWS = 4  # noised versions of each held-out latent

Settings = dict[str, Any]


def compute_experts(settings: Settings, folder: Path) -> dict[str, Any]:
    """Who owns which row; settings hold "source", "experts", "by" ("label" or "cluster") and "seed"."""
    rows, held = parts(settings["source"])
    by_label = settings["by"] == "label"
    own, others = assign_experts(
        np.asarray(rows.x),
        rows.labels if by_label else None,
        settings["experts"],
        others=(np.asarray(held.x), held.labels if by_label else None),
        seed=settings["seed"],
    )
    assert others is not None
    np.savez(folder / "experts.npz", train=own.numpy(), held=others.numpy())
    return {"rows": torch.bincount(own, minlength=settings["experts"]).tolist()}


def compute_autoencoder(settings: Settings, folder: Path) -> dict[str, Any]:
    """One expert's VAE, or what all experts share; settings hold "source", "set", "expert" (None for all), "device"."""
    rows, _ = parts(settings["source"])
    own, _ = _experts(folder, settings["set"])
    made = _autoencoder_settings(settings["set"])
    place = _autoencoder_folder(folder, settings["set"])
    x = torch.from_numpy(np.asarray(rows.x))
    how: dict[str, Any] = {"device": settings["device"], "on_step": _watched(folder)}
    with metrics.Stopwatch() as watch:
        if settings["expert"] is None:
            model: Any = _autoencoders(folder, settings["set"], rows, own, **how)
        else:
            mine, at = x[own == settings["expert"]], place / f"expert-{settings['expert']:02d}"
            model = build_autoencoder(mine, rows.shape, made, at, **how)
    return {"parameters": sum(p.numel() for p in model.parameters()), "wall": watch.wall, "cpu": watch.cpu}


def compute_latents(settings: Settings, folder: Path) -> dict[str, Any]:
    """Latents of all rows, and what a row loses on the way there and back; settings hold "source" and "set"."""
    rows, held = parts(settings["source"])
    own, others = _experts(folder, settings["set"])
    model = _autoencoders(folder, settings["set"], rows, own)
    z, z_held = encode_all(model, rows.x, own), encode_all(model, held.x, others)
    np.savez(folder / "latents.npz", train=z.numpy(), held=z_held.numpy())
    picked = _pick(held, settings["samples"])
    decoded = decode_all(model, z_held[picked], others[picked]).numpy()
    np.save(folder / "decoded.npy", decoded[:SHOWN])
    np.save(folder / "original.npy", np.asarray(held.x)[picked[:SHOWN]])
    real = np.asarray(held.x)[picked]
    found = {"mean squared error": float(np.square(decoded - real).mean())}
    features = space(rows, held)
    found["Fréchet"] = metrics.frechet_distance(features(decoded), features(real))
    if (perceptual := _lpips(rows)) is not None:
        found["LPIPS"] = perceptual.reconstruction(real[:_NEIGHBOURS], decoded[:_NEIGHBOURS]).mean
    parameters = sum(p.numel() for p in model.parameters())
    return {"latent_shape": list(model[0].latent_shape), "parameters": parameters, **found}


def compute_network(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train one network and measure it; settings hold "source", "set", "network", "seed" and how to train."""
    if settings["set"] is None:
        return _in_pixels(settings, folder)
    rows, held = parts(settings["source"])
    own, others = _experts(folder, settings["set"])
    autoencoders = _autoencoders(folder, settings["set"], rows, own)
    place = experiment_of(folder) / "cells" / "latents" / settings["set"]["name"]
    with np.load(place / "latents.npz") as kept:
        z, z_held = torch.from_numpy(kept["train"]), torch.from_numpy(kept["held"])
    name, seed = settings["network"], settings["seed"]
    with metrics.Stopwatch() as watch:
        network = latent_network(
            "mog" if name == "em" else name,
            z,
            own,
            autoencoders[0].latent_shape,
            seed=seed,
            **({"start": "em"} if name == "em" else {}),
            **settings["options"],
        )
        if name != "em":
            train(
                network,
                z,
                SCHEDULE,
                experts=own,
                validation=z_held,
                validation_experts=others,
                out=folder / "run",
                seed=seed,
                sigma_data=1.0,
                level_mean=_LEVEL_MEAN,
                device=settings["device"],
                on_grid=_grid_watched(settings, folder),
                grid_every=max(1, settings["training"]["steps"] // 50),
                validate_every=max(1, settings["training"]["steps"] // 6),
                keep=1,
                **settings["training"],
            )
    network, z_held = network.to(settings["device"]).eval(), z_held.to(settings["device"])
    autoencoders = autoencoders.to(settings["device"])
    model = Experts(autoencoders, network, torch.bincount(own).float())
    model = model.to(settings["device"])
    model.save_pretrained(folder / "model")
    result: dict[str, Any] = {"train wall": watch.wall, "train cpu": watch.cpu, "curve": _curve(folder / "run")}
    loss = ScoreMatching(network, SCHEDULE, sigma_data=1.0, level_mean=_LEVEL_MEAN)
    result |= _held_out_loss(loss, z_held, others)
    if model.latent_laws is not None:
        result["log-likelihood"] = _log_likelihood(model.latent_laws, z_held, others)
    generator = torch_generator(seed)
    with metrics.Stopwatch() as watch:
        drawn = sample_experts(
            model, SCHEDULE, settings["samples"], sampler="heun", steps=settings["sampler_steps"], generator=generator
        )
    result |= {"sample wall": watch.wall, "sample cpu": watch.cpu}
    if model.latent_laws is not None:
        with metrics.Stopwatch() as watch:
            exact = sample_experts(model, SCHEDULE, settings["samples"], sampler="exact", generator=generator)
        result |= {"exact sample cpu": watch.cpu, "exact Fréchet": _frechet(exact.x.cpu().numpy(), rows, held)}
    noisy = SCHEDULE(0.5)
    price = metrics.cost(model, z_held[:256], *noisy, expert=others[:256])
    counted = {"parameters": _numbers(network)}
    x, expert = drawn.x.cpu().numpy(), drawn.expert.cpu().numpy()
    return result | {"cost": asdict(price) | counted} | _quality(x, rows, held, expert, folder)


def _numbers(network: SupportsDenoise) -> int:
    """All numbers of a network, learned or not, with those of a base beneath it.

    A law of a subspace that is all of R^d is written with A = I and b = 0, which are free.
    """
    if isinstance(network, ResidualDenoiser):
        return network.num_parameters + _numbers(network.base)
    if isinstance(network, PerExpert):
        return sum(_numbers(each) for each in network.networks)
    if isinstance(network, MoGDenoiser):
        law = network.law
        return law.num_parameters - (law.dim * (law.dim + 1) if law.latent_dims[0] == law.dim else 0)
    return num_parameters_of(network)


def _in_pixels(settings: Settings, folder: Path) -> dict[str, Any]:
    """The same without autoencoders: a U-Net told the class, or the law that EM finds."""
    rows, held = parts(settings["source"])
    labels = np.zeros(len(rows), np.int64) if rows.labels is None else rows.labels
    x, expert = torch.from_numpy(np.asarray(rows.x)), torch.from_numpy(labels)
    generator = torch_generator(settings["seed"])
    with metrics.Stopwatch() as training:
        draw, price = (_pixel_law if settings["network"] == "em" else _pixel_unet)(settings, folder, rows, x, expert)
    weights = torch.bincount(expert).float()
    chosen = torch.multinomial(weights, settings["samples"], replacement=True, generator=generator)
    with metrics.Stopwatch() as drawing:
        drawn = draw(chosen, generator).numpy()
    seconds = {"train wall": training.wall, "train cpu": training.cpu}
    seconds |= {"sample wall": drawing.wall, "sample cpu": drawing.cpu}
    curve = {"curve": _curve(folder / "run"), "cost": asdict(price)}
    return seconds | curve | _quality(drawn, rows, held, chosen.numpy(), folder)


Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Samples with shape (n, D), on the CPU, for classes with shape (n,)."""


def _pixel_law(settings: Settings, folder: Path, rows: Dataset, x: Tensor, expert: Tensor) -> tuple[Draw, metrics.Cost]:
    law = fit(x, labels=expert, seed=settings["seed"], noise="isotropic", **settings["options"])
    law.save_pretrained(folder / "model")
    return lambda k, generator: law.sample(len(k), generator, subspace=k).x, metrics.cost(law, x[:256], *SCHEDULE(0.5))


def _pixel_unet(
    settings: Settings, folder: Path, rows: Dataset, x: Tensor, expert: Tensor
) -> tuple[Draw, metrics.Cost]:
    torch.manual_seed(torch_seed(settings["seed"]))
    network = UNetDenoiser(rows.shape, experts=int(expert.max()) + 1, sigma_data=0.5, **settings["options"])
    train(
        network,
        x,
        SCHEDULE,
        experts=expert,
        out=folder / "run",
        seed=settings["seed"],
        device=settings["device"],
        on_grid=_grid_watched(settings, folder),
        grid_every=max(1, settings["training"]["steps"] // 50),
        keep=1,
        **settings["training"],
    )

    def draw(expert: Tensor, generator: torch.Generator) -> Tensor:
        parts = [
            sample(condition_on(network, k), SCHEDULE, (len(k), rows.dim), "heun", settings["sampler_steps"], generator)
            for k in expert.split(256)
        ]
        return torch.cat(parts).cpu()

    device = next(network.parameters()).device
    return draw, metrics.cost(condition_on(network, 0), x[:16].to(device), *SCHEDULE(0.5))


def _quality(x: np.ndarray, rows: Dataset, held: Dataset, expert: np.ndarray, folder: Path) -> dict[str, Any]:
    """What samples are worth; the first of them are kept for pictures, sorted by expert."""
    shown = np.argsort(expert[:SHOWN], kind="stable")
    np.save(folder / "samples.npy", x[:SHOWN][shown])
    features = space(rows, held)
    few, real = x[:_NEIGHBOURS], np.asarray(held.x)[_pick(held, _NEIGHBOURS)]
    shares = metrics.precision_recall(features(few), features(real))
    copies = metrics.memorisation(few, np.asarray(rows.x), real)
    found: dict[str, Any] = {
        "Fréchet": _frechet(x, rows, held),
        "space": features.name,
        "samples": len(x),
        "precision": shares.precision,
        "recall": shares.recall,
        "memorisation": copies.ratio,
        "copies": copies.closer_than_1,
    }
    if (perceptual := _lpips(rows)) is not None:
        found["LPIPS diversity"] = perceptual.diversity(few).mean
    return found


def _frechet(x: np.ndarray, rows: Dataset, held: Dataset) -> float:
    features = space(rows, held)
    return metrics.frechet_distance(features(x), features(np.asarray(held.x)[_pick(held, len(x))]))


def reference(source: Settings, samples: int) -> dict[str, Any]:
    """What training rows get in the place of samples: the best that a network can hope for."""
    rows, held = parts(source)
    picked = np.asarray(rows.x)[_pick(rows, min(samples, len(held)))]
    features = space(rows, held)
    few, real = features(picked[:_NEIGHBOURS]), features(np.asarray(held.x)[_pick(held, _NEIGHBOURS)])
    shares = metrics.precision_recall(few, real)
    found = {"Fréchet": _frechet(picked, rows, held), "precision": shares.precision, "recall": shares.recall}
    if (perceptual := _lpips(rows)) is not None:
        found["LPIPS diversity"] = perceptual.diversity(picked[:_NEIGHBOURS]).mean
    return found


def space(rows: Dataset, held: Dataset) -> metrics.FeatureSpace:
    """Features of a classifier where rows have several labels, of SqueezeNet where its weights are there, else PCA."""
    if rows.labels is not None and int(rows.labels.max()) > 0:
        return metrics.ClassifierFeatures(rows, held)
    try:
        return metrics.SqueezeNetFeatures(rows)
    except FileNotFoundError:
        return metrics.PixelPCA(rows.x)


def _lpips(rows: Dataset) -> metrics.LPIPS | None:
    try:
        return metrics.LPIPS(rows)
    except (FileNotFoundError, ValueError):
        return None


def _held_out_loss(loss: ScoreMatching, z: Tensor, expert: Tensor) -> dict[str, float]:
    """Denoising loss on held-out latents, the same noise for every network."""
    generator = torch.Generator().manual_seed(0)
    parts: list[Tensor] = []
    with torch.no_grad():
        for _ in range(_DRAWS):
            numbers = [t.to(z.device) for t in loss.draw(len(z), generator)]
            parts += [loss(z[at], expert[at], *(t[at] for t in numbers)) for at in torch.arange(len(z)).split(1024)]
    each = torch.cat(parts).double()
    return {"loss": float(each.mean()), "loss error": float(each.std()) / math.sqrt(len(z))}


def _log_likelihood(laws: Sequence[Law], z: Tensor, expert: Tensor) -> float:
    """Mean log p(z | k) of held-out latents, in nats."""
    with torch.no_grad():
        total = sum(float(law.log_prob(z[expert == k]).double().sum()) for k, law in enumerate(laws))
    return total / len(z)


def _curve(run: Path) -> dict[str, list[Any]]:
    """Steps and losses of a training run, from its metrics.jsonl."""
    curve: dict[str, list[Any]] = {"step": [], "loss": [], "validation_step": [], "validation": []}
    if (run / METRICS_NAME).is_file():
        for line in (run / METRICS_NAME).read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "train":
                curve["step"].append(record["step"])
                curve["loss"].append(record["loss"])
            elif record["kind"] == "validation":
                curve["validation_step"].append(record["step"])
                curve["validation"].append(record["loss"])
    return curve


def parts(source: Settings) -> tuple[Dataset, Dataset]:
    """Training and held-out rows, as many as the plan uses."""
    options = {key: value for key, value in source.items() if key != "rows"}
    rows, held = load_parts(**options)
    if source["rows"] is not None:
        rows, held = rows.subset(slice(0, source["rows"])), held.subset(slice(0, source["rows"]))
    return rows, held


def _pick(data: Dataset, rows: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(data))[:rows]


def _experts(folder: Path, chosen: Settings) -> tuple[Tensor, Tensor]:
    place = experiment_of(folder) / "cells" / "experts" / f"{chosen['by']}-{chosen['experts']}"
    with np.load(place / "experts.npz") as kept:
        return torch.from_numpy(kept["train"]), torch.from_numpy(kept["held"])


def _autoencoder_settings(chosen: Settings) -> AutoencoderSettings:
    # JSON has lists for tuples.
    settings: dict[str, Any] = {
        key: tuple(cast("list[Any]", value)) if isinstance(value, list) else value
        for key, value in chosen["autoencoder"].items()
    }
    return AutoencoderSettings(**settings)


def _autoencoder_folder(folder: Path, chosen: Settings) -> Path:
    return experiment_of(folder) / "autoencoders" / chosen["name"]


def _autoencoders(folder: Path, chosen: Settings, rows: Dataset, own: Tensor, **how: Any) -> Autoencoders:
    made, place = _autoencoder_settings(chosen), _autoencoder_folder(folder, chosen)
    if made.kind != "linear":
        return build_autoencoders(rows.x, own, rows.shape, made, place, **how)
    # Principal components of 3,000 pixels take seconds an expert: every cell reads them, one computes.
    x = torch.from_numpy(np.asarray(rows.x))
    at = enumerate(place / f"expert-{k:02d}" for k in range(chosen["experts"]))
    return AutoencoderList(build_autoencoder(x[own == k], rows.shape, made, out) for k, out in at).eval()


def _watched(folder: Path) -> Callable[[str, int, int, float], None]:
    return lambda name, step, steps, loss: report_progress(folder, step / steps)


def _grid_watched(settings: Settings, folder: Path) -> Callable[[Any, int], None]:
    """Training as nine tenths of a cell; the rest is sampling and measuring."""
    return lambda _, step: report_progress(folder, 0.9 * step / settings["training"]["steps"])
