"""Writes an encoded set of tensors that are at hand, as `encode` would have left it, for the benchmarks."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from latentflow.data.shards import INDEX, PROMPTS, describe_shard, latents_name, text_name, write_shard
from latentflow.files import sha256_file
from latentflow.manifest import EncodedManifest

PROMPTS_DRAWN = ["one", "other"]


def write_encoded(folder: Path, chunks: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    """One latents and one text shard per chunk: its split, latents (n, c, h, w) and text (n, tokens, width).

    Every record has a caption of its own, of all tokens. Chunks of a split follow one another.
    """
    latents_shards, text_shards, counts = [], [], Counter({"train": 0, "validation": 0, "test": 0})
    for number, (split, latents, text) in enumerate(chunks):
        count = len(latents)
        counts[split] += count
        sizes = {key: torch.zeros(count, 2, dtype=torch.int32) for key in ("original_size", "crop", "target_size")}
        source = torch.zeros(count, 32, dtype=torch.uint8)
        name = latents_name(split, latents.shape[1:], number)
        write_shard(folder / name, {"latents": latents, "source": source, **sizes})
        latents_shards.append(describe_shard(folder / name, name, "latents", split))
        name = text_name(number)
        write_shard(folder / name, {"text": text, "text_mask": _whole(text), "source": source})
        text_shards.append(describe_shard(folder / name, name, "text"))
    latent_shape, (tokens, width) = latents_shards[0].shape, text_shards[0].shape
    _write_index(folder, sum(counts.values()))
    empty = torch.zeros(1 + len(PROMPTS_DRAWN), tokens, width, dtype=text.dtype)
    write_shard(folder / PROMPTS, {"text": empty, "text_mask": _whole(empty)})
    EncodedManifest(
        digest="benchmark",
        fingerprint="benchmark",
        inputs={},
        shards=latents_shards + text_shards,
        counts=dict(counts),
        index_sha256=sha256_file(folder / INDEX),
        prompts_sha256=sha256_file(folder / PROMPTS),
        latent_shape=list(latent_shape),
        latent_mean=[0.0] * latent_shape[0],
        latent_std=[1.0] * latent_shape[0],
        text_width=width,
        max_tokens=tokens,
        cased=False,
        resolution=8 * latent_shape[-1],
        sample_prompts=PROMPTS_DRAWN,
        origin={},
    ).write(folder)


def _whole(text: Tensor) -> Tensor:
    return torch.ones(text.shape[:2], dtype=torch.bool)


def _write_index(folder: Path, records: int) -> None:
    captions = pa.array([[row] for row in range(records)], pa.list_(pa.int32()))
    table = pa.table({"id": [f"{row:08d}" for row in range(records)], "captions": captions})
    pq.write_table(table, folder / INDEX)
