"""A tiny checkpoint as the pipeline's steps see it, and as diffusers does."""

from pathlib import Path

import numpy as np
import torch
import trainings
from checkpoints import Tiny
from diffusers import DiffusionPipeline, WanImageToVideoPipeline, WanPipeline
from diffusers.utils import is_ftfy_available
from encoding import PARAMS
from PIL import Image
from torch import Tensor

from latentflow import denoisers
from latentflow.data.condition import Condition, square
from latentflow.denoisers import Captions
from latentflow.denoisers.packing import pack, unpack
from latentflow.encoders import captions
from latentflow.encoders import vae as vae_room
from latentflow.params import load
from latentflow.pictures import from_bytes

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
    frame = first_frame(folder, tiny).expand(len(prompts), -1, -1, -1, -1) if tiny.led else None
    return Condition(told.text, told.mask, told.pooled, square(len(prompts), tiny.side), frame=frame), kind


def still(tiny: Tiny) -> Image.Image:
    """What a clip begins with, where one is given."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (tiny.side, tiny.side, 3), dtype=np.uint8))


def first_frame(folder: Path, tiny: Tiny) -> Tensor:
    """The latents of ``still`` (1, c, 1, h, w)."""
    pixels = from_bytes(torch.from_numpy(np.array(still(tiny))))
    return vae_room.encode(vae_room.load(str(folder)), pixels[None]).unsqueeze(2)


def started(folder: Path, tiny: Tiny, kind: Captions) -> denoisers.Denoiser:
    """The denoiser of a checkpoint as training begins with it."""
    params = load(PARAMS, [f"model.pretrained={folder}"]).model
    family = denoisers.family_for(params)
    config = denoisers.pretrained(params).config(family.subfolder)
    model = denoisers.start(params, list(tiny.latents), kind, seed=0).eval()
    told = GUIDANCE if family.told_guidance(config) else None
    return denoisers.Denoiser(family, model, denoisers.trained_with(folder).definition, told)


def settings(folder: Path, tiny: Tiny) -> dict[str, object]:
    """100 steps of LoRA on a tiny checkpoint."""
    checkpoint = dict.fromkeys(("autoencoder.pretrained", "encode.text_encoder", "model.pretrained"), str(folder))
    few = {f"train.{name}": value for name, value in trainings.FEW.items()}
    return checkpoint | few | {
        "autoencoder.resolution": tiny.side,
        "encode.clip_frames": tiny.frames,
        "encode.max_tokens": tiny.tokens,
        "encode.sample_prompts": [PROMPTS[0]],
        "train.adapter.kind": "lora",
        "train.adapter.rank": 4,
        "train.steps": 100,
        "train.batch_size": 4,
        "train.learning_rate": 0.003,
        "train.caption_dropout": 0.1,
        "train.ema_decay": 0.5,
        "train.validate_every": 100,
        "train.sample_every": 100,
        "train.checkpoint_every": 100,
        "train.log_every": 50,
        "train.sigma_sampling": "uniform",
    }  # fmt: skip


def noise(tiny: Tiny, count: int = 2, seed: int = 2) -> Tensor:
    return torch.randn((count, *tiny.latents), generator=torch.Generator().manual_seed(seed))


def packed(latents: Tensor, tiny: Tiny, frame: Tensor | None = None) -> Tensor:
    """As the pipeline takes them, with the first frame in its place where there is one."""
    if frame is not None:
        latents = torch.cat([frame.expand(len(latents), -1, -1, -1, -1), latents[:, :, 1:]], 2)
    if tiny.packed == 1:
        return latents.flatten(2).transpose(1, 2)
    return pack(latents) if tiny.packed else latents


def unpacked(latents: Tensor, tiny: Tiny) -> Tensor:
    """As the pipeline gives them."""
    if tiny.packed == 1:
        return latents.transpose(1, 2).unflatten(2, tiny.latents[1:])
    return unpack(latents, *tiny.latents[1:]) if tiny.packed else latents


def _read_alike(pipeline: WanImageToVideoPipeline, prompt: object, tiny: Tiny) -> dict[str, Tensor]:
    """Captions as WanPipeline reads them; in this pipeline diffusers forgets to ask whether ftfy is there."""
    parts = {name: pipeline.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    told, empty = WanPipeline(**parts).encode_prompt(prompt, **tiny.call)
    return {"prompt_embeds": told, "negative_prompt_embeds": empty}


def called(pipeline: DiffusionPipeline, tiny: Tiny, **more: object) -> Tensor:
    """The latents that a pipeline gives."""
    size = {"height": tiny.side, "width": tiny.side} | ({"num_frames": tiny.frames} if tiny.frames else {})
    if tiny.led:
        more["image"] = still(tiny)
    if isinstance(pipeline, WanImageToVideoPipeline) and not is_ftfy_available():
        more |= _read_alike(pipeline, more.pop("prompt"), tiny)
    drawn = pipeline(output_type="latent", **size, **tiny.call, **more)
    latents = drawn["frames" if tiny.frames else "images"]
    if tiny.whitened:
        statistics = pipeline.vae.bn
        packed = pipeline._patchify_latents(latents) - statistics.running_mean.reshape(1, -1, 1, 1)
        return packed / (statistics.running_var + statistics.eps).sqrt().reshape(1, -1, 1, 1)
    return unpacked(latents, tiny)
