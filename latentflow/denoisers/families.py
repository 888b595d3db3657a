"""The families that are known, and a Denoiser: one of their models, as the theory sees it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.auraflow import AuraFlow
from latentflow.denoisers.controlnet import ControlledUNet, ControlledXL
from latentflow.denoisers.family import Family, NewFamily
from latentflow.denoisers.first_frame import LTXFromFrame, WanFromFrame
from latentflow.denoisers.flux import Flux
from latentflow.denoisers.flux_2 import Flux2
from latentflow.denoisers.ip_adapter import FOLDER as IP_ADAPTER
from latentflow.denoisers.ip_adapter import PromptedUNet, PromptedXL
from latentflow.denoisers.led import LedFamily
from latentflow.denoisers.ltx import LTX
from latentflow.denoisers.own_class import OwnClass
from latentflow.denoisers.pixart import PixArt
from latentflow.denoisers.qwen_image import QwenImage
from latentflow.denoisers.stable_diffusion_3 import StableDiffusion3
from latentflow.denoisers.stable_diffusion_xl import StableDiffusionXL
from latentflow.denoisers.unet import UNet
from latentflow.denoisers.wan import Wan
from latentflow.denoisers.z_image import ZImage
from latentflow.diffusion import Definition, Diffusion
from latentflow.errors import LatentflowError

DIFFUSION = "diffusion.json"
"""Beside model_index.json: what training and sampling must agree on."""

GENERATION, TOLD, FRAMES, LED_BY = "generation.json", "told_guidance", "num_frames", "led_by"
"""Beside it: how the pipeline is called, among its call's arguments the frames of a clip; the guidance scale that a
distilled model was told in training, and by what kind of image it is led."""

FAMILIES: dict[str, NewFamily] = {"unet": UNet(), "pixart": PixArt(), "auraflow": AuraFlow()}
"""Of which new models are made, by the names in ``model.denoiser``."""

OWN = OwnClass()
"""That of a class of the user's own, which ``model.denoiser`` names as ``module:Class``."""

PIPELINES: dict[str, Family] = {
    family.pipeline_class: family
    for family in (
        *FAMILIES.values(),
        OWN,
        StableDiffusionXL(),
        StableDiffusion3(),
        Flux(),
        Flux2(),
        QwenImage(),
        ZImage(),
        Wan(),
        LTX(),
        WanFromFrame(),
        LTXFromFrame(),
    )
}
"""All, by the pipelines that they ship in."""

LED: dict[str, dict[str, LedFamily]] = {
    "controlnet": {"StableDiffusionPipeline": ControlledUNet(), "StableDiffusionXLPipeline": ControlledXL()},
    "ip_adapter": {"StableDiffusionPipeline": PromptedUNet(), "StableDiffusionXLPipeline": PromptedXL()},
}
"""What a family becomes when a part beside it leads it by images: by train.adapter.kind and its own pipeline."""

CONTROLLED: dict[str, Family] = {family.pipeline_class: family for family in LED["controlnet"].values()}
"""By the pipelines that hold a ControlNet too."""


@dataclass(frozen=True)
class Denoiser:
    """A model with its family and definition: the ε̂(x_t, σ, c) of the theory.

    ``guidance`` is what a guidance-distilled model is told where the condition says nothing; None for the others.
    """

    family: Family
    model: nn.Module
    definition: Definition
    guidance: float | None = None

    def predict(self, xt: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Model output for x_t (n, c, h, w), of clips (n, c, f, h, w); ``sigma`` is (n,) or a scalar."""
        sigma = sigma.double()
        timestep = self.definition.timestep(sigma).to(device=xt.device, dtype=torch.float32).expand(len(xt))
        scale = self.definition.input_scale(sigma).to(device=xt.device, dtype=xt.dtype).expand(len(xt))
        if self.guidance is not None and condition.guidance is None:
            condition = condition.guided(self.guidance)
        xt = xt * scale.reshape(-1, *(1,) * (xt.ndim - 1))
        if self.family.clips and xt.ndim == 4:
            return self.family.predict(self.model, xt.unsqueeze(2), timestep, condition).squeeze(2)
        return self.family.predict(self.model, xt, timestep, condition)

    def tokens(self, latent_shape: Sequence[int]) -> int:
        """How many tokens a picture or a clip is."""
        config: Mapping[str, Any] = self.model.config  # type: ignore[assignment]
        return self.family.tokens(config, latent_shape)


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
    model = family.load(folder)
    return Denoiser(family, model.eval().requires_grad_(False), read_diffusion(folder).definition, _told(folder))


def _told(folder: Path) -> float | None:
    """The guidance scale that a saved model was told in training, if it is told one."""
    path = folder / GENERATION
    told: float | None = json.loads(path.read_text(encoding="utf-8")).get(TOLD) if path.is_file() else None
    return told


def family_of(folder: Path) -> Family:
    """The family whose pipeline was saved to a folder. Raises LatentflowError for another."""
    name = DiffusionPipeline.load_config(folder)["_class_name"]
    if family := LED["ip_adapter"].get(name) if (folder / IP_ADAPTER).is_dir() else CONTROLLED.get(name):
        return family
    if name not in PIPELINES:
        raise LatentflowError(f"{folder}: the pipeline is a {name}, not one of {', '.join(PIPELINES)}.")
    return PIPELINES[name]
