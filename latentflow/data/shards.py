"""The encoded set's files: names, keys and how each is written whole and described.

    latents/<split>-<shape>-<number>.safetensors   a run of one split's records of one latent shape, in their order
    text/<number>.safetensors                      a run of the distinct captions, in the order of their first record
    index.parquet                                  per latents row, in the shards' order: id, captions (rows of text)
    prompts.safetensors                            the empty caption, then the captions of the sample grid

Keys of latents: ``latents`` (n, c, h, w) or (n, c, f, h, w), ``latents_flipped``, ``logvar``, ``logvar_flipped`` where
asked for, ``original_size``, ``crop``, ``target_size`` (n, 2) int32 as (height, width) or (top, left) in pixels, and
``source`` (n, 32) uint8, the sha256 of the record's media. Keys of text: ``text`` (m, tokens, width), ``text_mask``
(m, tokens) bool, and ``source`` (m, 32) uint8, the sha256 of the caption in UTF-8.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, sha256_file
from latentflow.manifest import Shard

PROMPTS = "prompts.safetensors"
INDEX = "index.parquet"


def latents_name(split: str, shape: Sequence[int], number: int) -> str:
    """The file of a latents shard; ``shape`` is that of one row, of which the channels are left out."""
    return f"latents/{split}-{'x'.join(map(str, shape[1:]))}-{number:05d}.safetensors"


def text_name(number: int) -> str:
    return f"text/{number:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a safetensors file that is whole or absent. Raises LatentflowError on NaN or infinity."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            row = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).nonzero()[0, 0])
            raise LatentflowError(
                f"{path.name}: the encoder gave NaN or infinity in `{key}` for row {row} of the shard."
            )
    with atomic_file(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)


def describe_shard(path: Path, file: str, kind: Literal["latents", "text"], split: str = "") -> Shard:
    """The manifest's entry of the shard at ``path``, which is ``file`` in the set."""
    with safe_open(path, framework="pt") as opened:
        keys = {key: _describe(opened, key) for key in sorted(opened.keys())}
        moments = _moments(opened.get_tensor("latents")) if kind == "latents" else None
    count = keys[kind][0][0]
    return Shard(file=file, kind=kind, split=split, count=count, sha256=sha256_file(path), keys=keys, moments=moments)


def _describe(opened: safe_open, key: str) -> tuple[list[int], str]:
    part = opened.get_slice(key)
    return part.get_shape(), str(part.get_dtype())


def _moments(latents: Tensor) -> tuple[list[float], list[float]]:
    values = latents.double().transpose(0, 1).flatten(1)
    return values.sum(1).tolist(), values.square().sum(1).tolist()
