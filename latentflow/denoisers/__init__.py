"""Adapters from one call signature to diffusers' denoiser classes, and their native pipelines."""

from latentflow.denoisers.families import DIFFUSION, FAMILIES, Denoiser, Family, load, read_diffusion
from latentflow.denoisers.starting import Beginning, begin, build, check, start, start_digest, warn_of_other_definition

__all__ = [
    "DIFFUSION",
    "FAMILIES",
    "Beginning",
    "Denoiser",
    "Family",
    "begin",
    "build",
    "check",
    "load",
    "read_diffusion",
    "start",
    "start_digest",
    "warn_of_other_definition",
]
