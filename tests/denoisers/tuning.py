"""A tiny checkpoint as the pipeline's steps see it, and as diffusers does."""

from pathlib import Path

import torch
from checkpoints import LATENT, SIDE, Tiny
from diffusers import DiffusionPipeline
from encoding import PARAMS
from torch import Tensor

from latentflow import denoisers
from latentflow.data.condition import Condition, square
from latentflow.denoisers import Captions
from latentflow.encoders import captions
from latentflow.params import load

PROMPTS = ["a red heart", "the cat of blue dogs and a star, longer than the others are"]
GUIDANCE = 3.0


def opened(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditions(folder: Path, tiny: Tiny, prompts: list[str]) -> tuple[Condition, Captions]:
    """As encode makes them, and what its manifest says of them."""
    params = load(PARAMS, [f"encode.text_encoder={folder}", f"encode.max_tokens={tiny.tokens}"]).encode
    source = captions.find(params)
    told = source.load().encode(prompts)
    pooled = 0 if told.pooled is None else told.pooled.shape[-1]
    kind = Captions(told.text.shape[-1], pooled, source.made_from["pipeline"], source.digest)
    return Condition(told.text, told.mask, told.pooled, square(len(prompts), SIDE)), kind


def started(folder: Path, kind: Captions) -> denoisers.Denoiser:
    """The denoiser of a checkpoint as training begins with it."""
    params = load(PARAMS, [f"model.pretrained={folder}"]).model
    family = denoisers.family_for(params)
    config = denoisers.pretrained(params).config(family.subfolder)
    shape = [family.intake(config).channels, LATENT, LATENT]
    model = denoisers.start(params, shape, kind, seed=0).eval()
    told = GUIDANCE if family.told_guidance(config) else None
    return denoisers.Denoiser(family, model, denoisers.trained_with(folder).definition, told)


def noise(channels: int, seed: int = 2) -> Tensor:
    return torch.randn((2, channels, LATENT, LATENT), generator=torch.Generator().manual_seed(seed))
