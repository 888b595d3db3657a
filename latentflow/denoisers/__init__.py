"""Adapters from one call signature to diffusers' denoiser classes, and their native pipelines."""

from latentflow.denoisers.families import DIFFUSION, FAMILIES, PIPELINES, Denoiser, load, read_diffusion
from latentflow.denoisers.family import Family
from latentflow.denoisers.intake import Captions
from latentflow.denoisers.led import Images
from latentflow.denoisers.starting import (
    Beginning,
    begin,
    build,
    check,
    check_images,
    check_vae,
    family_for,
    lead,
    own_class,
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
    "Images",
    "begin",
    "build",
    "check",
    "check_images",
    "check_vae",
    "family_for",
    "lead",
    "load",
    "own_class",
    "pretrained",
    "read_diffusion",
    "start",
    "start_digest",
    "trained_with",
    "warn_of_other_definition",
]
