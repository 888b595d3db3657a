"""Frozen networks that see: DINOv2, CLIP, SigLIP or any vision model that transformers loads from safetensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from latentflow.data.batching import full_batches
from latentflow.devices import best_device
from latentflow.errors import LatentflowError
from latentflow.pictures import to_image
from latentflow.progress import track

_BATCH = 32


class VisionModel:
    """A folder or hub id, loaded once, on the GPU if there is one; pictures are prepared by its own processor.

    ``field`` names the parameter in errors. Raises LatentflowError where it cannot be loaded without pickled weights.
    """

    def __init__(self, name: str, field: str) -> None:
        self.name, self._field = name, field
        try:
            self._processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            self._model = AutoModel.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise LatentflowError(f"{field}: {name!r} cannot be loaded from safetensors: {error}") from None
        self._model.eval().requires_grad_(False).to(best_device())

    @property
    def sees_text(self) -> bool:
        """Whether pictures and captions have embeddings in one space."""
        return hasattr(self._model, "get_text_features")

    def require_text(self) -> None:
        """Raises LatentflowError where captions cannot be compared with pictures."""
        if not self.sees_text:
            raise LatentflowError(
                f"{self._field}: {self.name!r} is a {type(self._model).__name__}, which reads no captions: give a CLIP "
                "or SigLIP model."
            )

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) uint8 to (n, d) float32: the embedding beside text, else the pooled output."""
        found = []
        batches = list(full_batches(len(pictures), _BATCH))
        for rows, new in track(batches, f"evaluate: {self._field.rpartition('.')[2]}", unit="batches"):
            images = [to_image(pictures[row]) for row in rows]
            pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._model.device)
            found.append(self._embed(pixels)[:new].float().cpu())
        return torch.cat(found)

    def _embed(self, pixels: Tensor) -> Tensor:
        output = (
            self._model.get_image_features(pixel_values=pixels) if self.sees_text else self._model(pixel_values=pixels)
        )
        # DINOv2's pooled output is its normalised class token, which FD-DINOv2 is defined on.
        pooled: Tensor | None = output.pooler_output
        return output.last_hidden_state[:, 0] if pooled is None else pooled

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Captions to (n, d) float32 in the space of the pictures; longer ones are cut."""
        tokenizer = AutoTokenizer.from_pretrained(self.name)
        length = self._model.config.text_config.max_position_embeddings
        found = []
        for rows, new in full_batches(len(captions), _BATCH):
            # SigLIP learnt from captions padded to the full length; CLIP, which pools at the end token, does not care.
            tokens = tokenizer(
                [captions[row] for row in rows],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).to(self._model.device)
            output = self._model.get_text_features(**tokens)
            found.append(output.pooler_output[:new].float().cpu())
        return torch.cat(found)


def clip_scores(pictures: Tensor, captions: Tensor) -> Tensor:
    """100·max(cosine, 0) of picture embeddings (captions, seeds, d) with their caption's (captions, d).

    Hessel et al. 2021, CLIPScore, in torchmetrics' scale.
    """
    cosine = torch.nn.functional.cosine_similarity(pictures.double(), captions.double()[:, None], dim=-1)
    return 100 * cosine.clamp(min=0)
