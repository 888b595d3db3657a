"""A family is a denoiser class of diffusers with the pipeline it ships in; a Denoiser is one of its models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from latentflow.denoisers.auraflow import AuraFlow
from latentflow.denoisers.pixart import PixArt
from latentflow.denoisers.unet import UNet
from latentflow.devices import seeded_weights
from latentflow.diffusion import Definition
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError
from latentflow.params import ModelParams


class Family(Protocol):
    """What the project needs to know of a denoiser class."""

    subfolder: str
    model_class: str
    pipeline_class: str

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> ModelMixin:
        """A new model for latents of shape (c, h, w) and captions of ``text_width``."""

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The model's output (n, c, h, w) for x_t, timesteps in thousandths (n,), text (n, t, w), mask (n, t)."""

    def pipeline(self, model: ModelMixin, vae: AutoencoderKL, text: TextEncoder, shift: float) -> DiffusionPipeline:
        """The native pipeline with the scheduler that training used."""

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        """What the pipeline's call must be given so that it conditions as training did."""


FAMILIES: dict[str, Family] = {"unet": UNet(), "pixart": PixArt(), "auraflow": AuraFlow()}


@dataclass(frozen=True)
class Denoiser:
    """A model with its family and definition: the ε̂(x_t, σ, c) of the theory."""

    family: Family
    model: nn.Module
    definition: Definition

    def predict(self, xt: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Model output for x_t (n, c, h, w); ``sigma`` is (n,) or a scalar, text (n, t, w), mask (n, t) bool."""
        timestep = self.definition.timestep(sigma.double()).to(device=xt.device, dtype=torch.float32).expand(len(xt))
        return self.family.predict(self.model, xt, timestep, text, mask)


def build(params: ModelParams, latent_shape: list[int], text_width: int, seed: int) -> ModelMixin:
    """A new denoiser with weights drawn from ``seed``. Raises LatentflowError where sizes do not fit."""
    name = params.denoiser
    try:
        with seeded_weights(seed):
            return FAMILIES[name].build(params, latent_shape, text_width)
    except ValueError as error:
        raise LatentflowError(f"model.{name} does not fit latents of shape {tuple(latent_shape)}: {error}") from None


def load(folder: Path, definition: Definition) -> Denoiser:
    """The frozen denoiser of a saved pipeline folder."""
    for family in FAMILIES.values():
        if DiffusionPipeline.load_config(folder)["_class_name"] == family.pipeline_class:
            kind = _model_class(family)
            model = kind.from_pretrained(folder / family.subfolder, use_safetensors=True)
            return Denoiser(family, model.eval().requires_grad_(False), definition)
    known = ", ".join(family.pipeline_class for family in FAMILIES.values())
    raise LatentflowError(f"{folder}: the pipeline's class is not one of {known}.")


def _model_class(family: Family) -> type[ModelMixin]:
    import diffusers

    return getattr(diffusers, family.model_class)  # type: ignore[no-any-return]
