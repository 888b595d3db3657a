"""What reference images become for an IP-Adapter: one embedding per picture, by a frozen CLIP or SigLIP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from latentflow.encoders.checkpoint import require_safetensors, require_whole
from latentflow.errors import LatentflowError

SETTING = "encode.image_encoder"
FOLDER = "image_encoder"
_CLIP, _SIGLIP = ("clip", "clip_vision_model"), ("siglip", "siglip_vision_model")


@dataclass(frozen=True)
class ImageEncoder:
    """The vision half of a model, and how it wants pictures prepared.

    A CLIP is given what ``load_ip_adapter`` of diffusers gives it, so that drawing sees what training saw: the picture
    is scaled and cut to the model's square and normalised by CLIP's own mean and deviation.
    """

    model: PreTrainedModel
    processor: CLIPImageProcessorPil | SiglipImageProcessorPil

    def prepare(self, picture: Image.Image) -> Tensor:
        """An RGB picture of any size to the model's input (3, s, s) float32."""
        pixels: Tensor = self.processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.no_grad()
    def embed(self, prepared: Tensor) -> Tensor:
        """Prepared pictures (n, 3, s, s) to embeddings (n, width) float32: CLIP's projected ones, SigLIP's pooled."""
        output = self.model(pixel_values=prepared.to(self.model.device))
        found: Tensor = output.pooler_output if isinstance(self.model, SiglipVisionModel) else output.image_embeds
        return found.float()

    def save(self, folder: Path) -> None:
        """Writes ``image_encoder/`` as diffusers loads it."""
        self.model.save_pretrained(folder / FOLDER)
        self.processor.save_pretrained(folder / FOLDER)


def width(name: str) -> int:
    """Of the embeddings, by the config alone. Raises LatentflowError where it is no CLIP and no SigLIP."""
    config = _config(name)
    vision = getattr(config, "vision_config", config)
    return int(vision.hidden_size if config.model_type in _SIGLIP else vision.projection_dim)


def load(name: str) -> ImageEncoder:
    """Loads the vision half of a folder or hub id in fp32; safetensors only.

    Raises LatentflowError where it cannot be loaded, is not whole, or is another kind of model.
    """
    siglip = _config(name).model_type in _SIGLIP
    if Path(name).is_dir():
        require_safetensors(Path(name), SETTING)
    kind = SiglipVisionModel if siglip else CLIPVisionModelWithProjection
    try:
        model, report = kind.from_pretrained(name, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
        side = model.config.image_size
        processor = (
            SiglipImageProcessorPil.from_pretrained(name)
            if siglip
            else CLIPImageProcessorPil(size=side, crop_size=side)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise LatentflowError(f"{SETTING}: {name!r} cannot be loaded from safetensors: {error}") from error
    # A whole CLIP or SigLIP also holds the half that reads captions.
    require_whole({**report, "unexpected_keys": []}, f"{SETTING}: {name!r}")
    return ImageEncoder(model.eval().requires_grad_(False), processor)


def _config(name: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise LatentflowError(f"{SETTING}: {name!r} cannot be read as an image encoder: {error}") from error
    if config.model_type not in (*_CLIP, *_SIGLIP):
        raise LatentflowError(f"{SETTING}: {name!r} is a {config.model_type}, and only CLIP and SigLIP are known here.")
    return config
