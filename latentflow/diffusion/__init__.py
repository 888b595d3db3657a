"""The theory: two definitions and what follows from them. Pure math on tensors; imports torch only."""

from latentflow.diffusion.definition import Definition
from latentflow.diffusion.definitions import DEFINITIONS, FLOW, ddpm, edm, find, flow, trigonometric
from latentflow.diffusion.guidance import Guidance
from latentflow.diffusion.process import Diffusion
from latentflow.diffusion.sampling import SAMPLERS, sample
from latentflow.diffusion.schedules import SCHEDULES, Schedule, begin_at
from latentflow.diffusion.training import DENSITIES, WEIGHTINGS, Density, weights

__all__ = [
    "DEFINITIONS",
    "DENSITIES",
    "FLOW",
    "SAMPLERS",
    "SCHEDULES",
    "WEIGHTINGS",
    "Definition",
    "Density",
    "Diffusion",
    "Guidance",
    "Schedule",
    "begin_at",
    "ddpm",
    "edm",
    "find",
    "flow",
    "sample",
    "trigonometric",
    "weights",
]
