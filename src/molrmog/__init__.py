"""Diffusion models whose score is known in closed form.

Data as a union of K linear subspaces with a mixture of low-rank Gaussians inside each (MoLR-MoG). Noised, the law stays
in its family, so density, score, denoiser, posterior and samples are exact at every noise level.

    law = molrmog.fit(x)                                    x: (N, D)
    law.score(x_t, s, gamma), law.denoise(x_t, s, gamma), law.log_prob(x), law.sample(64)
    molrmog.sample(law, molrmog.VPSchedule(), (64, law.dim))
"""

from molrmog.data import Dataset
from molrmog.data import load as load_data
from molrmog.head_tail import HeadTail
from molrmog.head_tail import load_law as load
from molrmog.law import Law, Posterior, Samples
from molrmog.learning.fit import fit
from molrmog.mixture import MoLRMoG, Subspace
from molrmog.sampling import sample
from molrmog.schedules import CosineSchedule, FlowSchedule, VESchedule, VPSchedule

__all__ = [
    "CosineSchedule",
    "Dataset",
    "FlowSchedule",
    "HeadTail",
    "Law",
    "MoLRMoG",
    "Posterior",
    "Samples",
    "Subspace",
    "VESchedule",
    "VPSchedule",
    "fit",
    "load",
    "load_data",
    "sample",
]
