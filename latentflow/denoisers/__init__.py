"""Adapters from one call signature to diffusers' denoiser classes, and their native pipelines."""

from latentflow.denoisers.families import FAMILIES, Denoiser, Family, build, load

__all__ = ["FAMILIES", "Denoiser", "Family", "build", "load"]
