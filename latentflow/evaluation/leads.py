"""The images by which a model is led while it is judged: each record's own, as encode stored them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from latentflow.data.encoded import EncodedSet
from latentflow.data.records import SPLITS
from latentflow.errors import LatentflowError


@dataclass(frozen=True)
class Leads:
    """By the ids of records: control pictures (3, h, w) uint8, or embeddings of reference images (width,)."""

    led_by: str
    images: dict[str, Tensor]

    @classmethod
    def find(cls, led_by: str, encoded: EncodedSet, ids: Collection[str]) -> Self:
        """Those of ``ids``. Raises LatentflowError where the set has none, or not of square pictures.

        Models are judged by squares, so records of other shapes have no control picture that fits.
        """
        found: dict[str, Tensor] = {}
        square = tuple(encoded.manifest.latent_shape)
        for name in (name for name in SPLITS if encoded.manifest.counts.get(name)):
            split = encoded.split(name)
            for number, bucket in enumerate(split.buckets):
                every = split.ids(number, torch.arange(bucket.count))
                wanted = [row for row, one in enumerate(every) if one in ids]
                if not wanted or (led_by == "controlnet" and bucket.shape != square):
                    continue
                told = split.samples(number, torch.tensor(wanted)).condition
                images = told.control if led_by == "controlnet" else told.image
                if images is None:
                    raise LatentflowError(
                        f"{encoded} holds no images, and the model is led by them: give the set that it learnt from."
                    )
                found |= {every[row]: image for row, image in zip(wanted, images, strict=True)}
        if lacking := sorted(set(ids) - found.keys()):
            raise LatentflowError(
                f"evaluate: {len(lacking)} records, such as {lacking[0]}, have no square control picture; a "
                "ControlNet is judged on sets without buckets (encode.bucket_step 0)."
            )
        return cls(led_by, found)

    def arguments(self, ids: Sequence[str], guidance: float) -> dict[str, Any]:
        """What the pipeline is called with for these records."""
        images = torch.stack([self.images[one] for one in ids])
        if self.led_by == "controlnet":
            return {"image": images.float() / 255}
        told = images.float()[:, None]
        return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(told), told]) if guidance > 1 else told]}
