"""Adapters from one call signature to diffusers' denoiser classes, and their native pipelines."""

from latentflow.denoisers.families import DIFFUSION, FAMILIES, Denoiser, Family, build, load, read_diffusion

__all__ = ["DIFFUSION", "FAMILIES", "Denoiser", "Family", "build", "load", "read_diffusion"]
