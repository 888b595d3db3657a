"""Adapters from one call signature to diffusers' denoiser classes, and their native pipelines."""

from latentflow.denoisers.families import DIFFUSION, FAMILIES, PIPELINES, Denoiser, load, read_diffusion
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Captions
from latentflow.denoisers.starting import (
    Beginning,
    begin,
    build,
    check,
    check_vae,
    family_for,
    pretrained,
    start,
    start_digest,
    warn_of_other_definition,
)
from latentflow.denoisers.trained_with import trained_with

__all__ = [
    "DIFFUSION",
    "FAMILIES",
    "PIPELINES",
    "Beginning",
    "Captions",
    "Denoiser",
    "Family",
    "begin",
    "build",
    "check",
    "check_vae",
    "family_for",
    "load",
    "pretrained",
    "read_diffusion",
    "start",
    "start_digest",
    "trained_with",
    "warn_of_other_definition",
]
