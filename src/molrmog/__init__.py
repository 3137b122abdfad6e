"""Diffusion models whose score is known in closed form.

Data as a union of K linear subspaces with a mixture of low-rank Gaussians inside each (MoLR-MoG). Noised, the law stays
in its family, so density, score, denoiser, posterior and samples are exact at every noise level.

    law = molrmog.fit(x)                                    x: (N, D)
    law.score(x_t, s, gamma), law.denoise(x_t, s, gamma), law.log_prob(x), law.sample(64)
    molrmog.sample(law, molrmog.VPSchedule(), (64, law.dim))

`__all__` is what most people need. Every class that can be saved and every sampler is here by its name as well, and so
are the rooms, such as `molrmog.metrics`. Names are imported when they are first used, so that the command line answers
before torch is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

from molrmog import _moved, registry

if TYPE_CHECKING:
    __version__: str

    from molrmog import (
        autoencoders as autoencoders,
        data as data,
        denoisers as denoisers,
        laws as laws,
        learning as learning,
        metrics as metrics,
        models as models,
        sampling as sampling,
        schedules as schedules,
        theory as theory,
    )
    from molrmog.autoencoders.linear import LinearAutoencoder
    from molrmog.data import Dataset, load as load_data
    from molrmog.denoisers.base import condition_on
    from molrmog.denoisers.blend import BlendDenoiser as BlendDenoiser
    from molrmog.denoisers.centred import CentredDenoiser as CentredDenoiser
    from molrmog.denoisers.conditional import ConditionalLaw
    from molrmog.denoisers.experts import Experts, PerExpert as PerExpert
    from molrmog.denoisers.gaussian import GaussianDenoiser
    from molrmog.denoisers.guidance import GuidedDenoiser as GuidedDenoiser
    from molrmog.denoisers.mlp import MLPDenoiser
    from molrmog.denoisers.mog import MoGDenoiser
    from molrmog.denoisers.patches import PatchDenoiser as PatchDenoiser
    from molrmog.denoisers.pipeline import DiffusersDenoiser as DiffusersDenoiser
    from molrmog.denoisers.residual import ResidualDenoiser
    from molrmog.denoisers.unet import UNetDenoiser
    from molrmog.laws.base import Law, Posterior as Posterior, Samples as Samples, Subspace as Subspace
    from molrmog.laws.head_tail import HeadTail
    from molrmog.laws.molrmog import MoLRMoG
    from molrmog.learning.fit import fit
    from molrmog.learning.options import TrainingOptions
    from molrmog.learning.score_matching import ScoreMatching
    from molrmog.learning.select import select
    from molrmog.learning.selection import Selection as Selection
    from molrmog.learning.train import train
    from molrmog.models import Denoiser
    from molrmog.registry import load
    from molrmog.sampling import Sampler, sample, sample_experts
    from molrmog.schedules import (
        CosineSchedule,
        DiscreteSchedule as DiscreteSchedule,
        FlowSchedule,
        VESchedule,
        VPSchedule,
    )

__all__ = [
    "ConditionalLaw",
    "CosineSchedule",
    "Dataset",
    "Denoiser",
    "Experts",
    "FlowSchedule",
    "GaussianDenoiser",
    "HeadTail",
    "Law",
    "LinearAutoencoder",
    "MLPDenoiser",
    "MoGDenoiser",
    "MoLRMoG",
    "ResidualDenoiser",
    "Sampler",
    "ScoreMatching",
    "TrainingOptions",
    "UNetDenoiser",
    "VESchedule",
    "VPSchedule",
    "condition_on",
    "fit",
    "load",
    "load_data",
    "sample",
    "sample_experts",
    "select",
    "train",
]

_OTHERS = {  # public names that are no class of the registry: module, or module:name
    "CosineSchedule": "schedules",
    "Dataset": "data",
    "Denoiser": "models",
    "DiscreteSchedule": "schedules",
    "FlowSchedule": "schedules",
    "Law": "laws.base",
    "Posterior": "laws.base",
    "Sampler": "sampling.base",
    "Samples": "laws.base",
    "ScoreMatching": "learning.score_matching",
    "Selection": "learning.selection",
    "Subspace": "laws.molrmog",
    "TrainingOptions": "learning.options",
    "VESchedule": "schedules",
    "VPSchedule": "schedules",
    "condition_on": "denoisers.base",
    "fit": "learning.fit",
    "load": "registry",
    "load_data": "data:load",
    "sample": "sampling",
    "sample_experts": "sampling",
    "select": "learning.select",
    "train": "learning.train",
}
_ROOMS = (
    "autoencoders",
    "data",
    "denoisers",
    "laws",
    "learning",
    "metrics",
    "models",
    "sampling",
    "schedules",
    "theory",
)
_HOMES = {**registry.homes(), **_OTHERS}

_moved.install()


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("molrmog")
        except PackageNotFoundError:
            value = "0+source"  # a source tree that was not installed
    elif name in _ROOMS:
        value = importlib.import_module(f"molrmog.{name}")
    elif name in _HOMES:
        module, _, there = _HOMES[name].partition(":")
        value = getattr(importlib.import_module(f"molrmog.{module}"), there or name)
    else:
        raise AttributeError(f"module molrmog has no attribute {name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES, *_ROOMS})
