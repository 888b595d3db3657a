"""Does a model speak the language of an encoded set: the same latents for a picture, the same states for a caption."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSplit
from latentflow.data.records import Record, RecordSet
from latentflow.encoders import captions, checkpoint
from latentflow.encoders import text as text_room
from latentflow.encoders import vae as vae_room
from latentflow.errors import LatentflowError
from latentflow.manifest import EncodedManifest
from latentflow.pictures import from_bytes

_LOOKED_AT = 4
# Rounding to bfloat16 and another batch size stay well below; another encoder's rows are as far as unrelated ones.
_TOLERANCE = 0.05


def foreign(pipeline: Path, split: EncodedSplit, encoded: EncodedManifest, records: RecordSet) -> str:
    """Why the held-out loss of this model on this set would mean nothing; "" where the set was encoded as it expects.

    Some pictures and captions of the split are encoded by the model's own VAE and text encoder and compared.
    """
    bucket = next(number for number, entry in enumerate(split.buckets) if entry.count)
    shape, rows = split.buckets[bucket].shape, torch.arange(min(_LOOKED_AT, split.buckets[bucket].count))
    by_id = {record.id: record for record in records.split("test")}
    chosen = [by_id[name] for name in split.ids(bucket, rows) if name in by_id]
    if len(chosen) < len(rows):
        return "it cannot be told whether the model learnt from latents such as these"
    samples = split.samples(bucket, rows)
    latents = samples.latents.float()
    # A clip's first frame is encoded as a picture is.
    first = latents[:, :, 0] if latents.ndim == 5 else latents
    if not _near(_latents(pipeline, records, chosen, shape), first):
        return "its VAE is not the one that made these latents"
    told = _told(pipeline, chosen, encoded)
    wanted = samples.condition
    if told is None or not _near(told.text, wanted.text.float()) or not _near_if(told.pooled, wanted.pooled):
        return "its text encoder is not the one that encoded these captions"
    return ""


def _latents(pipeline: Path, records: RecordSet, chosen: list[Record], shape: tuple[int, ...]) -> Tensor:
    vae = vae_room.load(str(pipeline / "vae"))
    side = vae_room.factor(vae)
    pictures = [np.asarray(records.image(record, shape[-2] * side, shape[-1] * side)) for record in chosen]
    return vae_room.encode(vae, from_bytes(torch.from_numpy(np.stack(pictures))))


def _told(pipeline: Path, chosen: list[Record], encoded: EncodedManifest) -> Condition | None:
    """What the model is told of these captions; None where it does not read them in the way of the set at all."""
    texts = [record.caption for record in chosen]
    if not encoded.text_pipeline:
        return text_room.load_saved(pipeline, encoded.max_tokens).encode(texts)
    found = checkpoint.find(str(pipeline), "the judged model")
    if found is None or found.kind != encoded.text_pipeline:
        return None
    try:
        return captions.of_pipeline(str(pipeline), found, encoded.max_tokens).load().encode(texts)
    except LatentflowError:  # Its text models read another number of tokens, or are not there.
        return None


def _near_if(first: Tensor | None, second: Tensor | None) -> bool:
    return second is None or (first is not None and _near(first, second.float()))


def _near(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first - second).norm() <= _TOLERANCE * second.norm())
