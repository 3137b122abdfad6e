"""What `molrmog reproduce hybrid` computes, by data set and budget; see `experiments.hybrid` for the arms.

Where `rows` or `steps` are given, plain and law alone are compared: on so many first rows, after so many steps.
Budgets: "smoke" is seconds at toy size, "cpu" hours of four cores, "gpu" what a graphics card allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

DATASETS = ("mnist", "fashion-mnist", "cifar10", "parachute", "digits")
BUDGETS = ("smoke", "cpu", "gpu")
PLAIN, LAW = "plain", "law"


@dataclass(frozen=True)
class Arm:
    """A network and what is beneath it.

    Attributes:
        base: name of a base; None for the network alone.
        as_input: whether the network sees what the base says.
        added: share of it that is added to what the network says.
        centred: whether a network alone is told the mean of the data.
        along: whether it is measured at all marks of the plan, not only at those of `marks_aside`.
        tunes: whether it only asks if options are well chosen: one seed, measured at the end.
        training: options of the trainer that differ from the plan's.
        loss: options of the loss that differ from the plan's.
    """

    base: str | None = None
    as_input: bool = True
    added: float = 1.0
    centred: bool = False
    along: bool = False
    tunes: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)


def _tunes(base: str | None = None, *, centred: bool = False, loss: Any = None, **training: Any) -> Arm:
    return Arm(base, centred=centred, tunes=True, training=training, loss=loss or {})


_ARMS = {
    PLAIN: Arm(along=True),
    LAW: Arm("law", along=True),
    "law, input only": Arm("law", added=0.0),
    "law, added only": Arm("law", as_input=False),
    "law, half added": Arm("law", added=0.5, along=True),
    "Gaussian": Arm("gaussian"),
}
_TUNING = {
    "plain, centred": _tunes(centred=True),
    "plain, rate 5e-4": _tunes(learning_rate=5e-4),
    "plain, rate 2e-3": _tunes(learning_rate=2e-3),
    "plain, cosine": _tunes(annealing="cosine"),
    "plain, EMA 0.98": _tunes(ema_decay=0.98),
    "plain, weighted as eps": _tunes(loss={"weighting": "eps"}),
    "plain, levels of EDM": _tunes(loss={"level_mean": -1.2}),
    "plain, levels at 0": _tunes(loss={"level_mean": 0.0}),
    "plain, levels at 0.4": _tunes(loss={"level_mean": 0.4}),
    "plain, even levels": _tunes(loss={"levels": "log-snr"}),
}
_AT_08 = _tunes(loss={"level_mean": 0.8})
_TRAINING = {
    "steps": 800,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup": 50,
    "ema_decay": 0.995,
    "annealing": "constant",
    "mixed_precision": "bf16",
}


@dataclass(frozen=True)
class Plan:
    """What a comparison computes.

    Attributes:
        data: name or path of the data.
        image_size: crop and resize images to so many pixels a side.
        rows: training rows; all where None.
        bases: name to kind and options, see `hybrid_cells`; a blend comes after its parts.
        arms: name to arm.
        unet: options of `UNetDenoiser`.
        training: options of `TrainingOptions` that all arms share.
        loss: options of `ScoreMatching` that all arms share.
        seeds: of network, batches, noise and samples.
        marks: shares of the steps at which samples are measured, of arms that are measured along.
        marks_aside: the same of the others; those that tune are measured at the end.
        samples: drawn at a mark.
        sampler_steps: of Heun's method at a mark.
        evaluations: of the network on the law when it samples by DPM-Solver++ in the end, with and without a jump.
        tolerance: of the jump, see `jump_time`.
    """

    data: str
    image_size: int | None = None
    rows: int | None = None
    bases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: Mapping[str, Arm] = field(default_factory=lambda: _ARMS)
    unet: Mapping[str, Any] = field(default_factory=lambda: {"channels": (24, 48, 64), "attention": False})
    training: Mapping[str, Any] = field(default_factory=lambda: _TRAINING)
    loss: Mapping[str, Any] = field(default_factory=lambda: {"weighting": "edm", "level_mean": 0.8})
    seeds: tuple[int, ...] = (0, 1, 2)
    marks: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    marks_aside: tuple[float, ...] = (1 / 4, 1)
    samples: int = 1000
    sampler_steps: int = 10
    evaluations: tuple[int, ...] = (4, 6, 8, 12, 20)
    tolerance: float = 0.05


_GAUSSIAN = {"kind": "law", "subspaces": 1, "latent_dim": 8, "modes": 1, "head": 8}
_MNIST = Plan(
    "mnist",
    bases={
        "law": {"kind": "law", "labels": True, "latent_dim": 64, "modes": 8, "head": 128},
        "diagonal": {"kind": "law", "labels": True, "latent_dim": 64, "modes": 8, "noise": "diagonal"},
        "clusters": {"kind": "law", "subspaces": 10, "latent_dim": 64, "modes": 8, "head": 128},
        "gaussian": _GAUSSIAN,
        "without tail": {"kind": "law", "labels": True, "latent_dim": 32, "modes": 8},
        "patches": {
            "kind": "patches",
            "size": 8,
            "stride": 5,
            "top": 2,
            "patches": 50_000,
            "subspaces": 10,
            "latent_dim": 32,
            "modes": 20,
        },
        "blend": {"kind": "blend", "parts": ("law", "patches")},
    },
    arms={
        **_ARMS,
        "law, diagonal noise": Arm("diagonal", along=True, loss={"levels_per_batch": 4}),
        "law, levels at 0": Arm("law", along=True, loss={"level_mean": 0.0}),
        "law without labels": Arm("clusters"),
        "blend": Arm("blend"),
        **_TUNING,
    },
)
_FASHION = replace(
    _MNIST,
    data="fashion-mnist",
    bases={
        **{name: _MNIST.bases[name] for name in ("law", "gaussian")},
        "modes": {"kind": "law", "labels": True, "latent_dim": 64, "modes": 20, "head": 128},
    },
    arms={
        **{name: _MNIST.arms[name] for name in (PLAIN, LAW, "Gaussian")},
        "law, 20 modes": Arm("modes"),
        **{name: _TUNING[name] for name in ("plain, rate 5e-4", "plain, rate 2e-3")},
        **{name: _TUNING[name] for name in ("plain, levels of EDM", "plain, levels at 0.4")},
        "plain, levels at 0.8": _AT_08,
    },
    loss={"weighting": "edm", "level_mean": 0.0},
    evaluations=(),
)
_FEW_LAWS = {  # fewer modes where there are fewer rows to find them in
    1000: {"kind": "law", "labels": True, "latent_dim": 16, "modes": 1, "head": 64},
    10_000: {"kind": "law", "labels": True, "latent_dim": 32, "modes": 2, "head": 64},
}
_CIFAR10 = replace(
    _MNIST,
    data="cifar10",
    bases={
        "law": {"kind": "law", "labels": True, "latent_dim": 128, "modes": 8, "head": 256},
        "gaussian": _GAUSSIAN,
        "patches": {
            "kind": "patches",
            "size": 8,
            "stride": 4,
            "top": 2,
            "patches": 100_000,
            "subspaces": 1,
            "latent_dim": 64,
            "modes": 50,
        },
        "blend": {"kind": "blend", "parts": ("law", "patches")},
    },
    arms={
        **{name: _MNIST.arms[name] for name in (PLAIN, LAW, "blend", "Gaussian")},
        **{name: _TUNING[name] for name in ("plain, rate 5e-4", "plain, rate 2e-3", "plain, levels at 0")},
        "plain, levels at 0.8": _AT_08,
        "plain, levels at -2": _tunes(loss={"level_mean": -2.0}),
        "law, rate 2e-3": _tunes("law", learning_rate=2e-3),
        "law, levels at 0.8": _tunes("law", loss={"level_mean": 0.8}),
    },
    loss={"weighting": "edm", "level_mean": -1.2},
    marks=(1 / 8, 1 / 4, 1 / 2, 1),
    evaluations=(),
)
_PARACHUTE = replace(
    _CIFAR10,
    data="imagenette-parachute",
    image_size=64,
    bases={**_CIFAR10.bases, "law": {"kind": "law", "subspaces": 1, "latent_dim": 64, "modes": 4, "head": 128}},
    samples=390,
)
_SMOKE = Plan(
    "digits",
    rows=600,
    bases={
        "law": {"kind": "law", "labels": True, "latent_dim": 8, "modes": 2},
        "gaussian": {**_GAUSSIAN, "latent_dim": 4, "head": 4},
        "patches": {
            "kind": "patches",
            "size": 4,
            "stride": 2,
            "top": 2,
            "patches": 2000,
            "subspaces": 2,
            "latent_dim": 8,
            "modes": 4,
        },
        "blend": {"kind": "blend", "parts": ("law", "patches")},
    },
    arms={**_ARMS, "blend": Arm("blend")},
    unet={"channels": (8, 16), "attention": False},
    training={**_TRAINING, "steps": 40, "learning_rate": 2e-3, "ema_decay": 0.9, "warmup": 5},
    seeds=(0,),
    marks=(0.5, 1),
    marks_aside=(1,),
    samples=100,
    sampler_steps=4,
    evaluations=(3, 5),
    tolerance=0.5,
)


def plan(
    dataset: str, budget: str, rows: int | None = None, steps: int | None = None, seeds: int | None = None
) -> Plan:
    """The plan of a data set and budget.

    Args:
        dataset: one of `DATASETS`.
        budget: one of `BUDGETS`.
        rows: training rows; all where None.
        steps: of training, a multiple of 16; the plan's own where None.
        seeds: how many; those of the plan where None.

    Raises:
        ValueError: an unknown name, no seed, or steps that its marks do not divide.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds {seeds}: pass 1 or more")
    if steps is not None and (steps < 1 or steps % 16):
        raise ValueError(f"--steps {steps}: networks are measured after a sixteenth of them, pass a multiple of 16")
    if dataset not in DATASETS or budget not in BUDGETS:
        raise ValueError(
            f"dataset {dataset!r}, budget {budget!r}: choose among {', '.join(DATASETS)} and {', '.join(BUDGETS)}"
        )
    if dataset == "digits" or budget == "smoke":
        data = "imagenette-parachute" if dataset == "parachute" else dataset
        made = replace(_SMOKE, data=data, image_size=16 if dataset == "parachute" else None)
        training = {**made.training, "steps": steps or made.training["steps"]}
        return replace(made, rows=rows or made.rows, training=training, seeds=_seeds(made, seeds))
    made = {
        "mnist": _MNIST,
        "fashion-mnist": _FASHION,
        "cifar10": _CIFAR10,
        "parachute": _PARACHUTE,
    }[dataset]
    if rows is not None:
        law = next((law for most, law in _FEW_LAWS.items() if rows <= most), made.bases["law"])
        made = replace(made, bases={"law": law}, training={**made.training, "steps": 400}, marks=(1 / 8, 1 / 4, 1))
    if rows is not None or steps is not None:
        alone = {name: made.arms[name] for name in (PLAIN, LAW)}
        made = replace(made, bases={"law": made.bases["law"]}, arms=alone, evaluations=())
    if budget == "gpu":
        more = {"steps": 20_000, "batch_size": 256, "ema_decay": 0.999}
        made = replace(made, unet={"channels": (64, 128, 128), "layers": 2}, samples=5000)
        made = replace(made, training={**made.training, **more})
    if steps is not None:
        made = replace(made, training={**made.training, "steps": steps})
    return replace(made, rows=rows, seeds=_seeds(made, seeds))


def _seeds(made: Plan, seeds: int | None) -> tuple[int, ...]:
    return made.seeds if seeds is None else tuple(range(seeds))
