"""Diffusion models whose score is known in closed form.

Data as a union of K linear subspaces with a mixture of low-rank Gaussians inside each (MoLR-MoG). Noised, the law stays
in its family, so density, score, denoiser, posterior and samples are exact at every noise level.

    law = molrmog.fit(x)                                    x: (N, D)
    law.score(x_t, s, gamma), law.denoise(x_t, s, gamma), law.log_prob(x), law.sample(64)
    molrmog.sample(law, molrmog.VPSchedule(), (64, law.dim))

Names are imported when they are first used, so that the command line answers before torch is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

from molrmog import _moved

if TYPE_CHECKING:
    from molrmog.data import Dataset
    from molrmog.data import load as load_data
    from molrmog.denoisers.base import Denoiser
    from molrmog.denoisers.blend import BlendDenoiser
    from molrmog.denoisers.centred import CentredDenoiser
    from molrmog.denoisers.conditional import ConditionalLaw
    from molrmog.denoisers.experts import Experts, PerExpert
    from molrmog.denoisers.gaussian import GaussianDenoiser
    from molrmog.denoisers.guidance import GuidedDenoiser
    from molrmog.denoisers.mlp import MLPDenoiser
    from molrmog.denoisers.mog import MoGDenoiser
    from molrmog.denoisers.patches import PatchDenoiser
    from molrmog.denoisers.pipeline import DiffusersDenoiser
    from molrmog.denoisers.residual import ResidualDenoiser
    from molrmog.denoisers.saved import load
    from molrmog.denoisers.unet import UNetDenoiser
    from molrmog.laws.base import Law, Posterior, Samples, Subspace
    from molrmog.laws.head_tail import HeadTail
    from molrmog.laws.molrmog import MoLRMoG
    from molrmog.learning.fit import fit
    from molrmog.learning.train import train
    from molrmog.sampling import sample, sample_experts
    from molrmog.schedules import CosineSchedule, DiscreteSchedule, FlowSchedule, VESchedule, VPSchedule

_HOMES = {
    "BlendDenoiser": "denoisers.blend",
    "CentredDenoiser": "denoisers.centred",
    "ConditionalLaw": "denoisers.conditional",
    "CosineSchedule": "schedules",
    "Dataset": "data",
    "Denoiser": "denoisers.base",
    "DiffusersDenoiser": "denoisers.pipeline",
    "DiscreteSchedule": "schedules",
    "Experts": "denoisers.experts",
    "FlowSchedule": "schedules",
    "GaussianDenoiser": "denoisers.gaussian",
    "GuidedDenoiser": "denoisers.guidance",
    "HeadTail": "laws.head_tail",
    "Law": "laws.base",
    "MLPDenoiser": "denoisers.mlp",
    "MoGDenoiser": "denoisers.mog",
    "MoLRMoG": "laws.molrmog",
    "PatchDenoiser": "denoisers.patches",
    "PerExpert": "denoisers.experts",
    "Posterior": "laws.base",
    "ResidualDenoiser": "denoisers.residual",
    "Samples": "laws.base",
    "Subspace": "laws.base",
    "UNetDenoiser": "denoisers.unet",
    "VESchedule": "schedules",
    "VPSchedule": "schedules",
    "fit": "learning.fit",
    "load": "denoisers.saved",
    "load_data": "data:load",
    "sample": "sampling",
    "sample_experts": "sampling",
    "train": "learning.train",
}

__all__ = [
    "BlendDenoiser",
    "CentredDenoiser",
    "ConditionalLaw",
    "CosineSchedule",
    "Dataset",
    "Denoiser",
    "DiffusersDenoiser",
    "DiscreteSchedule",
    "Experts",
    "FlowSchedule",
    "GaussianDenoiser",
    "GuidedDenoiser",
    "HeadTail",
    "Law",
    "MLPDenoiser",
    "MoGDenoiser",
    "MoLRMoG",
    "PatchDenoiser",
    "PerExpert",
    "Posterior",
    "ResidualDenoiser",
    "Samples",
    "Subspace",
    "UNetDenoiser",
    "VESchedule",
    "VPSchedule",
    "fit",
    "load",
    "load_data",
    "sample",
    "sample_experts",
    "train",
]

_moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module molrmog has no attribute {name}")
    module, _, there = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"molrmog.{module}"), there or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
