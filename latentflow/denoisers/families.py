"""A family is a denoiser class of diffusers with the pipeline it ships in; a Denoiser is one of its models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.auraflow import AuraFlow
from latentflow.denoisers.intake import Intake
from latentflow.denoisers.pixart import PixArt
from latentflow.denoisers.unet import UNet
from latentflow.diffusion import Definition, Diffusion
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError
from latentflow.params import ModelParams


class Family(Protocol):
    """What the project needs to know of a denoiser class."""

    subfolder: str
    model_class: str
    pipeline_class: str
    flow_pipeline: bool
    """Whether the pipeline never scales its initial noise, so that it fits flow matching's own scheduler only."""
    fixed_positions: bool
    """Whether a new model learns its patches' positions, so that it knows pictures of one size only."""
    memory_format: torch.memory_format
    """How the weights are laid out while training."""
    adapter_targets: tuple[str, ...]
    """Endings of the names of the layers that get low-rank changes unless the parameters name others."""
    loads_adapters: bool
    """Whether the pipeline loads a file of low-rank changes; else only the merged model can be delivered."""

    def patch_size(self, params: ModelParams) -> int:
        """The side of a patch of a new model."""

    def intake(self, config: Mapping[str, Any]) -> Intake:
        """What a saved model takes, by its config. Raises ValueError where it needs what training does not give."""

    def build(self, params: ModelParams, latent_shape: list[int], text_width: int) -> ModelMixin:
        """A new model for latents of shape (c, h, w) and captions of ``text_width``."""

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The repeated parts that hold most of the weights, in order: what is sharded and compiled one by one."""

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The model's output (n, c, h, w) for x_t, timesteps in thousandths (n,) and the conditions."""

    def pipeline(
        self, model: ModelMixin, vae: AutoencoderKL, text: TextEncoder, scheduler: SchedulerMixin
    ) -> DiffusionPipeline:
        """The native pipeline around the model."""

    def call_arguments(self, max_tokens: int) -> dict[str, Any]:
        """What the pipeline's call must be given so that it conditions as training did."""


DIFFUSION = "diffusion.json"
"""Beside model_index.json: what training and sampling must agree on."""

FAMILIES: dict[str, Family] = {"unet": UNet(), "pixart": PixArt(), "auraflow": AuraFlow()}


@dataclass(frozen=True)
class Denoiser:
    """A model with its family and definition: the ε̂(x_t, σ, c) of the theory."""

    family: Family
    model: nn.Module
    definition: Definition

    def predict(self, xt: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Model output for x_t (n, c, h, w); ``sigma`` is (n,) or a scalar."""
        sigma = sigma.double()
        timestep = self.definition.timestep(sigma).to(device=xt.device, dtype=torch.float32).expand(len(xt))
        scale = self.definition.input_scale(sigma).to(device=xt.device, dtype=xt.dtype).expand(len(xt))
        return self.family.predict(self.model, xt * scale[:, None, None, None], timestep, condition)

    def tokens(self, latent_shape: list[int]) -> int:
        """How many tokens a picture is; a UNet, which has none, counts patches of 2x2 as others do."""
        patch: int = getattr(self.model.config, "patch_size", 2)
        return latent_shape[1] * latent_shape[2] // patch**2


def read_diffusion(folder: Path) -> Diffusion:
    """The definition and schedule with which a saved pipeline folder was trained."""
    path = folder / DIFFUSION
    if not path.is_file():
        raise LatentflowError(f"{folder} holds no {DIFFUSION}: run `latentflow train` again.")
    try:
        diffusion = Diffusion.from_json(json.loads(path.read_text(encoding="utf-8")))
        diffusion.definition  # noqa: B018  a user's own definition must be found now
    except ValueError as error:
        raise LatentflowError(f"{path}: {error}.") from None
    return diffusion


def load(folder: Path) -> Denoiser:
    """The frozen denoiser of a saved pipeline folder, with the definition it was trained with."""
    family = family_of(folder)
    model = model_class(family).from_pretrained(folder / family.subfolder, use_safetensors=True)
    return Denoiser(family, model.eval().requires_grad_(False), read_diffusion(folder).definition)


def family_of(folder: Path) -> Family:
    """The family whose pipeline was saved to a folder. Raises LatentflowError for another."""
    name = DiffusionPipeline.load_config(folder)["_class_name"]
    for family in FAMILIES.values():
        if name == family.pipeline_class:
            return family
    known = ", ".join(family.pipeline_class for family in FAMILIES.values())
    raise LatentflowError(f"{folder}: the pipeline is a {name}, not one of {known}.")


def model_class(family: Family) -> type[ModelMixin]:
    """diffusers' class of the family's denoisers."""
    import diffusers

    return getattr(diffusers, family.model_class)  # type: ignore[no-any-return]
