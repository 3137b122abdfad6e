"""Sampling: from noise to data with any denoiser and any schedule, or from a law itself."""

from molrmog.sampling.base import Sampler, Trajectory
from molrmog.sampling.draw import JUMPS, SAMPLERS, sample
from molrmog.sampling.exact import Exact
from molrmog.sampling.experts import ExpertSamples, sample_experts
from molrmog.sampling.jumps import gaussian_flow
from molrmog.sampling.ode import DPMSolver, Euler, Heun
from molrmog.sampling.sde import Ancestral, EulerMaruyama

__all__ = [
    "JUMPS",
    "SAMPLERS",
    "Ancestral",
    "DPMSolver",
    "Euler",
    "EulerMaruyama",
    "Exact",
    "ExpertSamples",
    "Heun",
    "Sampler",
    "Trajectory",
    "gaussian_flow",
    "sample",
    "sample_experts",
]
