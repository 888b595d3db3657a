"""Encoded sets of random tensors, written as `encode` writes them."""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from latentflow.data.shards import INDEX, PROMPTS, describe_shard, latents_name, text_name, write_shard
from latentflow.files import sha256_file
from latentflow.manifest import EncodedManifest, Shard

TOKENS, WIDTH = 3, 16


@dataclass(frozen=True)
class Recipe:
    """Per split its shards as (shape of a row, rows); every record has ``captions`` captions of its own."""

    shards: dict[str, list[tuple[tuple[int, ...], int]]]
    captions: int = 1
    text_rows: int = 1000
    extra: tuple[str, ...] = ("latents_flipped",)
    dtype: torch.dtype = torch.float32
    digest: str = "d"
    resolution: int = 16
    tokens: int = TOKENS
    width: int = WIDTH
    inputs: dict[str, str] = field(default_factory=dict)


def write_set(folder: Path, recipe: Recipe, seed: int = 0) -> EncodedManifest:
    """Writes the set.

    Record i is called ``r<i>`` and its captions are rows i·captions ... of the text. The empty caption is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    shards = _latents(folder, recipe, generator)
    total = sum(shard.count for shard in shards)
    shards += _text(folder, recipe, total * recipe.captions, generator)
    ids = [f"r{number}" for number in range(total)]
    captions = [list(range(i * recipe.captions, (i + 1) * recipe.captions)) for i in range(total)]
    pq.write_table(pa.table({"id": ids, "captions": pa.array(captions, pa.list_(pa.int32()))}), folder / INDEX)
    prompts = _captions(recipe, 3, generator)
    prompts["text"][0] = 0
    write_shard(folder / PROMPTS, prompts)
    manifest = EncodedManifest(
        digest=recipe.digest,
        fingerprint="f",
        inputs=recipe.inputs,
        shards=shards,
        counts={split: sum(count for _, count in parts) for split, parts in recipe.shards.items()},
        index_sha256=sha256_file(folder / INDEX),
        prompts_sha256=sha256_file(folder / PROMPTS),
        latent_shape=list(shards[0].shape),
        latent_mean=[0.0] * 4,
        latent_std=[1.0] * 4,
        text_width=recipe.width,
        max_tokens=recipe.tokens,
        resolution=recipe.resolution,
        sample_prompts=["a", "b"],
        cased=False,
        origin={},
    )
    manifest.write(folder)
    return manifest


def _latents(folder: Path, recipe: Recipe, generator: torch.Generator) -> list[Shard]:
    shards = []
    for split, parts in recipe.shards.items():
        for number, (shape, count) in enumerate(parts):
            tensors = {
                key: torch.randn((count, *shape), generator=generator).to(recipe.dtype)
                for key in ("latents", *recipe.extra)
            }
            for key in ("original_size", "crop", "target_size"):
                tensors[key] = torch.randint(0, 99, (count, 2), dtype=torch.int32, generator=generator)
            tensors["source"] = torch.zeros(count, 32, dtype=torch.uint8)
            name = latents_name(split, shape, number)
            write_shard(folder / name, tensors)
            shards.append(describe_shard(folder / name, name, "latents", split))
    return shards


def _text(folder: Path, recipe: Recipe, count: int, generator: torch.Generator) -> list[Shard]:
    shards = []
    for number, start in enumerate(range(0, count, recipe.text_rows)):
        name = text_name(number)
        rows = min(recipe.text_rows, count - start)
        tensors = _captions(recipe, rows, generator) | {"source": torch.zeros(rows, 32, dtype=torch.uint8)}
        write_shard(folder / name, tensors)
        shards.append(describe_shard(folder / name, name, "text"))
    return shards


def _captions(recipe: Recipe, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    text = torch.randn((count, recipe.tokens, recipe.width), generator=generator).to(recipe.dtype)
    return {"text": text, "text_mask": torch.ones(count, recipe.tokens, dtype=torch.bool)}
