"""latentflow: text-conditional latent diffusion by flow matching, as a pipeline."""

__version__ = "0.1.0"
