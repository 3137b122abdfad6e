"""`molrmog reproduce images`: MoE-latent MoG, Gaussian and U-Net in the same latents, and what each part is worth.

| part         | varies                                                              | stays                         |
| ------------ | ------------------------------------------------------------------- | ----------------------------- |
| networks     | the network: U-Net, MLP, Gaussians, MoG with n_k modes, EM's law,    | one autoencoder per class     |
|              | a network on that law, or seeing it (U-Net on pictures, else MLP)    |                               |
| start        | where the MoG network starts: random, k-means, EM; EM alone         | one autoencoder per class     |
| experts      | K, by label and by clustering                                       | MoG with 8 modes              |
| autoencoders | dedicated, shared, LoRA, linear                                     | MoG, Gaussian, U-Net          |
| pixels       | no autoencoder: a U-Net, the law                                    | data, samples, measurements   |

Budgets: "smoke" is a minute of everything at toy size, "cpu" at most an hour of four cores, "gpu" what a graphics card
allows. The figures of a budget are comparable among themselves only.

References:
    arXiv 2601.01475, section 5; Wang et al., arXiv 2409.02426 (MoLRG).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from molrmog.experiments import image_cells
from molrmog.experiments.cells import Crew
from molrmog.experiments.image_page import MOLRG, Arm, slug, write_image_page
from molrmog.experiments.latents import AutoencoderSettings
from molrmog.seeds import seed_of

DATASETS = ("mnist", "fashion-mnist", "cifar10", "parachute", "digits")
BUDGETS = ("smoke", "cpu", "gpu")


@dataclass(frozen=True)
class Plan:
    """What a comparison computes.

    Attributes:
        data: name or path of the data.
        image_size: crop and resize images to so many pixels a side.
        rows: rows of either part that are used; all where None.
        experts: number K of experts.
        by: how rows are shared among them, "label" or "cluster".
        autoencoder: of the networks' comparison.
        light: the autoencoder of the ablations over K and kinds, cheaper.
        training: options of `molrmog.train` that all networks share.
        rates: learning rates that differ, by the name of the network.
        patience: how many times longer one more MLP is trained; 1 leaves it out.
        mog: options of `latent_network` for "mog" and "em", but for the modes.
        gaussian: the same for "gaussian".
        modes: n_k of the MoG networks.
        laws: further laws by EM alone, (n_k, rank of the modes; full where None).
        starts: of one MoG network side by side, in the part of that name.
        unet: options of `latent_network` for "unet".
        mlp: the same for "mlp".
        seeds: of the networks' comparison; ablations take the first.
        samples: drawn from each network.
        sampler_steps: of Heun's method.
        more_experts: (by, K) of the ablation over K.
        kinds: of the ablation over autoencoders.
        ablated: networks of that ablation, beside the law by EM.
        pixel_unet: options of `UNetDenoiser` in pixel space; None leaves it out.
        pixel_training: options of `molrmog.train` that differ there.
        pixel_law: options of `molrmog.fit` in pixel space; None leaves it out.
    """

    data: str
    image_size: int | None = None
    rows: int | None = None
    experts: int = 10
    by: str = "label"
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    light: AutoencoderSettings = field(default_factory=lambda: AutoencoderSettings(passes=4, channels=(16, 32)))
    training: Mapping[str, Any] = field(
        default_factory=lambda: {"steps": 1500, "batch_size": 256, "learning_rate": 1e-3}
    )
    rates: Mapping[str, float] = field(default_factory=dict)
    patience: int = 1
    mog: Mapping[str, Any] = field(default_factory=dict)
    gaussian: Mapping[str, Any] = field(default_factory=dict)
    modes: tuple[int, ...] = (4, 8, 40)
    laws: tuple[tuple[int, int | None], ...] = ()
    starts: tuple[str, ...] = ("random", "k-means", "em")
    unet: Mapping[str, Any] = field(default_factory=lambda: {"channels": (48, 64)})
    mlp: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 5000
    sampler_steps: int = 18
    more_experts: tuple[tuple[str, int], ...] = ()
    kinds: tuple[str, ...] = ()
    ablated: tuple[str, ...] = ("mog", "gaussian", "mlp")
    pixel_unet: Mapping[str, Any] | None = None
    pixel_training: Mapping[str, Any] = field(default_factory=dict)
    pixel_law: Mapping[str, Any] | None = None


_ALL_K = (("label", 1), ("label", 5), ("label", 10), ("label", 20), ("cluster", 5), ("cluster", 10), ("cluster", 20))
_TINY = AutoencoderSettings(latent_dim=8, passes=40, channels=(8, 16))
_SMOKE = Plan(
    "digits",
    rows=400,
    experts=2,
    autoencoder=_TINY,
    light=_TINY,
    training={"steps": 60, "batch_size": 64, "learning_rate": 1e-3, "warmup": 5},
    modes=(4,),
    unet={"channels": (8, 16)},
    mlp={"width": 32, "depth": 1},
    seeds=(0,),
    samples=100,
    sampler_steps=4,
    more_experts=(("cluster", 2),),
    kinds=("linear",),
    pixel_law={"latent_dim": 8, "modes": 2},
)
_MNIST = Plan(
    "mnist",
    autoencoder=AutoencoderSettings(passes=15),
    more_experts=_ALL_K,
    kinds=("shared", "lora", "linear"),
    patience=4,
    mog={"rank": 8},
    unet={"channels": (64, 96)},
    pixel_unet={"channels": (24, 48)},
    pixel_training={"steps": 200, "batch_size": 128},
    pixel_law={"latent_dim": 32, "modes": 8},
)
_CIFAR_VAE = AutoencoderSettings(
    latent_dim=(3, 8, 8), passes=16, learning_rate=3e-3, beta=0.02, reconstruction="mse", channels=(32, 64)
)
_CIFAR10 = replace(
    _MNIST,
    data="cifar10",
    autoencoder=_CIFAR_VAE,
    light=_CIFAR_VAE,
    more_experts=(),
    kinds=("linear",),
    ablated=("gaussian",),
    training={"steps": 600, "batch_size": 256, "learning_rate": 1e-3},
    patience=1,
    mog={},
    modes=(4,),
    laws=((8, None), (4, 16)),
    starts=(),
    rates={"mog": 2e-4, "gaussian": 2e-4},
    unet={"channels": (32, 64)},
    seeds=(0,),
    pixel_unet=None,
    pixel_law={"latent_dim": 128, "modes": 4, "head": 256},
)
_PARACHUTE = replace(
    _CIFAR10,
    data="imagenette-parachute",
    image_size=64,
    experts=1,
    by="cluster",
    autoencoder=AutoencoderSettings(kind="taef2"),
    light=AutoencoderSettings(kind="taef2", latent_dim=96),
    more_experts=(("cluster", 4),),
    training={"steps": 450, "batch_size": 256, "learning_rate": 1e-3},
    mog={"latent_dim": 96},
    gaussian={"latent_dim": 96},
    laws=((8, None), (40, None), (4, 16)),
    samples=390,
    pixel_law=None,
)


def plan(dataset: str, budget: str) -> Plan:
    """The plan of a data set and budget.

    Args:
        dataset: one of `DATASETS`.
        budget: one of `BUDGETS`.

    Raises:
        ValueError: an unknown name.
    """
    if dataset not in DATASETS or budget not in BUDGETS:
        raise ValueError(
            f"dataset {dataset!r}, budget {budget!r}: choose among {', '.join(DATASETS)} and {', '.join(BUDGETS)}"
        )
    if dataset == "digits" or budget == "smoke":
        data = "imagenette-parachute" if dataset == "parachute" else dataset
        size = 32 if dataset == "parachute" else None
        return replace(_SMOKE, data=data, image_size=size, by="cluster" if dataset == "parachute" else "label")
    made = {"mnist": _MNIST, "fashion-mnist": replace(_MNIST, data="fashion-mnist"), "cifar10": _CIFAR10}.get(
        dataset, _PARACHUTE
    )
    if budget == "cpu":
        return made
    return replace(
        made,
        training={"steps": 20_000, "batch_size": 512, "learning_rate": 1e-3},
        seeds=(0, 1, 2),
        pixel_unet={"channels": (64, 128, 128), "layers": 2},
        pixel_training={"steps": 20_000, "batch_size": 256, "mixed_precision": "bf16"},
    )


def run_images(
    out: Path,
    dataset: str = "mnist",
    budget: str = "cpu",
    *,
    seed: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    data_dir: str | None = None,
) -> Path:
    """Compute a comparison, or what is missing of it, and write its page.

    Args:
        out: folder of the experiment: cells, autoencoders, results.csv, pictures and report.html.
        dataset: one of `DATASETS`.
        budget: one of `BUDGETS`.
        seed: added to the seeds of the plan.
        workers: processes at a time; as many as cores where None, one on a GPU.
        device: where networks are trained.
        data_dir: folder to look for data in first.

    Returns:
        The path of the page.

    Raises:
        ValueError: an unknown name, or data that do not fit.
        RuntimeError: a cell failed.
    """
    made, seed = plan(dataset, budget), seed_of(seed)
    workers = workers or (1 if device != "cpu" else os.cpu_count() or 1)
    source: dict[str, Any] = {"data": made.data, "image_size": made.image_size, "data_dir": data_dir, "rows": made.rows}
    rows, held = image_cells.parts(source)
    image_cells.space(rows, held)  # trains the classifier once, before the cells ask for it

    sets = _sets(made, seed)
    schemes = {(chosen["by"], chosen["experts"]) for chosen in sets.values()}
    experts = {
        f"experts/{by}-{experts}": {"source": source, "by": by, "experts": experts, "seed": seed}
        for by, experts in sorted(schemes)
    }
    samples = min(made.samples, len(held))
    latents = {
        f"latents/{name}": {"source": source, "set": chosen, "samples": samples} for name, chosen in sets.items()
    }
    arms, cells = _networks(made, sets, source, samples, seed, device)
    with Crew(workers) as crew:
        crew.run(image_cells.compute_experts, experts, out, title="experts")
        autoencoders = _autoencoder_cells(sets, source, device)
        trained = crew.run(image_cells.compute_autoencoder, autoencoders, out, title="autoencoders")
        encoded = crew.run(image_cells.compute_latents, latents, out, title="latents")
        results = crew.run(image_cells.compute_network, cells, out, title="networks")
    best = image_cells.reference(source, samples)
    return write_image_page(out, made, dataset, budget, rows, arms, cells, results, encoded, trained, best)


def _sets(made: Plan, seed: int) -> dict[str, dict[str, Any]]:
    """Name to a set of autoencoders: whose rows, and of what kind; the first is that of the networks' comparison."""

    def chosen(by: str, experts: int, settings: AutoencoderSettings, prefix: str = "") -> dict[str, Any]:
        name = f"{prefix}{settings.kind}-{by}-{experts}"
        settings = replace(settings, seed=settings.seed + seed)
        return {"name": name, "by": by, "experts": experts, "autoencoder": asdict(settings)}

    sets = [chosen(made.by, made.experts, made.autoencoder)]
    sets += [chosen(by, experts, made.light, "light-") for by, experts in made.more_experts]
    sets += [chosen(made.by, made.experts, replace(made.light, kind=kind), "light-") for kind in made.kinds]
    return {each["name"]: each for each in sets}


def _autoencoder_cells(sets: Mapping[str, Any], source: Mapping[str, Any], device: str) -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    for name, chosen in sets.items():
        dedicated = chosen["autoencoder"]["kind"] == "vae"
        for k in range(chosen["experts"]) if dedicated else [None]:
            cell = f"autoencoders/{name}" if k is None else f"autoencoders/{name}/{k:02d}"
            cells[cell] = {"source": source, "set": chosen, "expert": k, "device": device}
    return cells


def _networks(
    made: Plan, sets: Mapping[str, Any], source: Mapping[str, Any], samples: int, seed: int, device: str
) -> tuple[list[Arm], dict[str, dict[str, Any]]]:
    """What the tables show, and name to settings of the cells for it; two lines may show one cell."""
    arms: list[Arm] = []
    cells: dict[str, dict[str, Any]] = {}
    common = {"source": source, "samples": samples, "sampler_steps": made.sampler_steps, "device": device}

    def add(
        part: str, chosen: Any, label: str, network: str, own: int, options: Mapping[str, Any], **training: Any
    ) -> None:
        rate = {"learning_rate": made.rates[network]} if network in made.rates else {}
        where = "pixels" if chosen is None else chosen["name"]
        settings = {
            **common,
            "set": chosen,
            "network": network,
            "seed": seed + own,
            "options": dict(options),
            "training": {} if network == "em" else {**made.training, **rate, **training},
        }
        cell = next((name for name, other in cells.items() if other == settings), None)
        if cell is None:
            cell = f"networks/{where}/{slug(label)}/{own}"
            cells[cell] = settings
        arms.append(Arm(part, label, where, cell))

    main, *others = sets.values()
    mean = {**made.gaussian, "learned_mean": True}
    for own in made.seeds:
        add("networks", main, "U-Net", "unet", own, made.unet)
        add("networks", main, "MLP", "mlp", own, made.mlp)
        add("networks", main, MOLRG, "gaussian", own, made.gaussian)
        add("networks", main, "Gaussian, mean learned", "gaussian", own, mean)
        for n in made.modes:
            add("networks", main, f"MoG, n = {n}", "mog", own, {**made.mog, "modes": n, "start": "em"})
            add("networks", main, f"law by EM, n = {n}", "em", own, {**made.mog, "modes": n})
            on_law = {**made.mog, **made.mlp, **made.unet, "modes": n}
            add("networks", main, f"network on the law, n = {n}", "residual", own, on_law)
            add("networks", main, f"network seeing the law, n = {n}", "residual", own, {**on_law, "added": 0.0})
        for n, rank in made.laws:
            label = f"law by EM, n = {n}, {'full rank' if rank is None else f'rank {rank}'}"
            add("networks", main, label, "em", own, {**made.mog, "modes": n, "rank": rank})
    if made.patience > 1:
        label, steps = f"MLP, {made.patience}x steps", made.patience * made.training["steps"]
        add("networks", main, label, "mlp", made.seeds[0], made.mlp, steps=steps)
    n = 8 if 8 in made.modes else made.modes[-1]
    for start in made.starts:
        # Only EM knows tau beforehand; all three learn it.
        rate = {} if start == "em" else {"learning_rate": 5e-3}
        learn = ("mean", "factor", "mode_weights", "tau")
        options = {**made.mog, "modes": n, "start": start, "learn": learn}
        add("start", main, f"MoG, n = {n}, from {start}", "mog", made.seeds[0], options, **rate)
    if made.starts:
        add("start", main, f"law by EM, n = {n}", "em", made.seeds[0], {**made.mog, "modes": n})
    for chosen in others:
        add("ablations", chosen, f"law by EM, n = {n}", "em", made.seeds[0], {**made.mog, "modes": n})
        if chosen["autoencoder"]["kind"] == "vae":
            continue
        if "mog" in made.ablated:
            start = {**made.mog, "modes": n, "start": "em"}
            add("ablations", chosen, f"MoG, n = {n}", "mog", made.seeds[0], start)
        if "gaussian" in made.ablated:
            add("ablations", chosen, MOLRG, "gaussian", made.seeds[0], made.gaussian)
            add("ablations", chosen, "Gaussian, mean learned", "gaussian", made.seeds[0], mean)
        if "mlp" in made.ablated:
            add("ablations", chosen, "MLP", "mlp", made.seeds[0], made.mlp)
    if made.pixel_unet is not None:
        add("pixels", None, "U-Net", "unet", made.seeds[0], made.pixel_unet, **made.pixel_training)
    if made.pixel_law is not None:
        add("pixels", None, "law by EM", "em", made.seeds[0], made.pixel_law)
    return arms, cells
