"""The encoded set's files: names, keys and how each is written whole and described.

    latents/<split>-<shape>-<number>.safetensors   a run of one split's records of one latent shape, in their order
    images/<the same>.safetensors                  their control and reference images, row by row, where asked for
    text/<number>.safetensors                      a run of the distinct captions, in the order of their first record
    index.parquet                                  per latents row, in the shards' order: id, captions (rows of text)
    prompts.safetensors                            the empty caption, then the captions of the sample grid

Keys of latents: ``latents`` (n, c, h, w) or (n, c, f, h, w), ``latents_flipped``, ``logvar``, ``logvar_flipped`` where
asked for, ``original_size``, ``crop``, ``target_size`` (n, 2) int32 as (height, width) or (top, left) in pixels, and
``source`` (n, 32) uint8, the sha256 of the record's media. Keys of images: ``control`` (n, 3, h, w) uint8, of the size
of the picture, ``image`` (n, width), and ``source`` (n, 32) uint8, a sha256 of all that they were made from. Keys of
text: ``text`` (m, tokens, width), ``text_mask`` (m, tokens) bool, and ``source`` (m, 32) uint8, the sha256 of the
caption in UTF-8.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentflow.files import atomic_file, sha256_file
from latentflow.manifest import Kind, Shard

if TYPE_CHECKING:
    import pyarrow as pa

    from latentflow.data.plan import EncodePlan

PROMPTS = "prompts.safetensors"
INDEX = "index.parquet"


def latents_name(split: str, shape: Sequence[int], number: int) -> str:
    """The file of a latents shard; ``shape`` is that of one row, of which the channels are left out."""
    return f"latents/{split}-{'x'.join(map(str, shape[1:]))}-{number:05d}.safetensors"


def images_name(latents: str) -> str:
    """The file of the images that go with a latents shard."""
    return f"images/{latents.removeprefix('latents/')}"


def text_name(number: int) -> str:
    return f"text/{number:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a safetensors file that is whole or absent."""
    with atomic_file(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)


def describe_shard(path: Path, file: str, kind: Kind, split: str = "") -> Shard:
    """The manifest's entry of the shard at ``path``, which is ``file`` in the set."""
    with safe_open(path, framework="pt") as opened:
        keys = {key: _describe(opened, key) for key in sorted(opened.keys())}
        moments = _moments(opened.get_tensor("latents")) if kind == "latents" else None
    count = keys["source"][0][0]
    return Shard(file=file, kind=kind, split=split, count=count, sha256=sha256_file(path), keys=keys, moments=moments)


def _describe(opened: safe_open, key: str) -> tuple[list[int], str]:
    part = opened.get_slice(key)
    return part.get_shape(), str(part.get_dtype())


def _moments(latents: Tensor) -> tuple[list[float], list[float]]:
    values = latents.double().transpose(0, 1).flatten(1)
    return values.sum(1).tolist(), values.square().sum(1).tolist()


def write_index(path: Path, plan: "EncodePlan", ids: "pa.ChunkedArray") -> None:
    """Writes which record each row of the latents is, and the rows of its captions in the text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.concatenate([job.rows for job in plan.latents])
    per_record = pa.ListArray.from_arrays(plan.caption_starts.astype(np.int32), plan.caption_numbers)
    table = pa.table({"id": ids.combine_chunks().take(order), "captions": per_record.take(order)})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def statistics(shards: Sequence[Shard]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the training split's latents, from the shards' moments."""
    train = [shard for shard in shards if shard.split == "train" and shard.moments]
    count = sum(shard.count * math.prod(shard.shape[1:]) for shard in train)
    total, square = np.sum([np.array(shard.moments) for shard in train], axis=0)
    variance = (square - total**2 / count) / max(1, count - 1)
    return (total / count).tolist(), np.sqrt(np.maximum(variance, 0)).tolist()
