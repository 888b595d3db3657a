"""encode: frozen encoders turn records into the encoded set, once; training never loads them again."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.errors import LatentflowError
from latentflow.files import (
    atomic_folder,
    copy_tree_or_file,
    digest_folder,
    digest_json,
    digest_model,
    sha256_file,
    write_json,
)
from latentflow.manifest import AutoencoderManifest, EncodedManifest, RecordsManifest, Shard, fingerprint
from latentflow.params import EncodeInputs, EncodeParams
from latentflow.progress import track
from latentflow.workspace import work_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

    from latentflow.data.records import Record, RecordSet
    from latentflow.encoders.text import TextEncoder

VERSION = 1
log = logging.getLogger(__name__)


def run(inputs: EncodeInputs, records: Path, autoencoder: Path, out: Path, force_rerun: str = "") -> EncodedManifest:
    """Writes latents and text of every record as shards, with the encoders' files for the finished pipeline."""
    digests = {
        "records": RecordsManifest.read(records).digest,
        "autoencoder": AutoencoderManifest.read(autoencoder).digest,
        "text_encoder": digest_model(inputs.encode.text_encoder),
    }
    key = fingerprint("encode", VERSION, inputs, digests, force_rerun)
    with work_folder("encode", key) as work:
        done = work / "done"
        if not done.is_dir():
            # Shards are finished one by one in the work folder, so that a killed run goes on where it was.
            _make(inputs.encode, records, autoencoder, work / "parts", done, key, digests)
            shutil.rmtree(work / "parts")
        else:
            log.info("the encoded set of these records and encoders is in the work store; nothing to encode")
        with atomic_folder(out) as folder:
            copy_tree_or_file(done, folder)
    return EncodedManifest.read(out)


def _make(
    params: EncodeParams, records: Path, autoencoder: Path, parts: Path, done: Path, key: str, digests: dict[str, str]
) -> None:
    from latentflow.data.encoded import PROMPTS, EncodedSet, write_shard
    from latentflow.data.records import RecordSet
    from latentflow.devices import best_device
    from latentflow.encoders import text as text_room
    from latentflow.encoders import vae as vae_room

    text = text_room.load(params.text_encoder, params.max_tokens)
    vae = vae_room.load_from(autoencoder)
    device = best_device()
    vae.to(device)
    text.model.to(device)  # type: ignore[arg-type]
    resolution = AutoencoderManifest.read(autoencoder).resolution
    record_set = RecordSet.open(records)
    if cut := text.count_cut([record.caption for record in record_set.table]):
        log.warning("%d captions are longer than encode.max_tokens %d and are cut", cut, params.max_tokens)
    shards = _shards(params, parts, record_set, vae, text, resolution)
    with atomic_folder(done) as folder:
        copy_tree_or_file(parts, folder)
        text.save(folder)
        write_shard(folder / PROMPTS, _prompts(params, text))
        mean, std, shape = _statistics(EncodedSet.train_latents(folder, shards))
        _check_scale(mean, std, trained=AutoencoderManifest.read(autoencoder).trained)
        counts = {split: sum(s.count for s in shards if s.split == split) for split in ("train", "validation", "test")}
        content: dict[str, Any] = {
            "shards": [shard.model_dump() for shard in shards],
            "text_encoder": digest_folder(folder / "text_encoder"),
            "tokenizer": digest_folder(folder / "tokenizer"),
            "prompts": sha256_file(folder / PROMPTS),
        }
        write_json(folder / "metrics.json", {"records": sum(counts.values()), "captions_cut": cut})
        EncodedManifest(
            digest=digest_json(content),
            prompts_sha256=content["prompts"],
            cased=text.cased,
            fingerprint=key,
            inputs=digests,
            shards=shards,
            counts=counts,
            latent_shape=shape,
            latent_mean=mean,
            latent_std=std,
            text_width=text.width,
            max_tokens=params.max_tokens,
            resolution=resolution,
            sample_prompts=params.sample_prompts,
            origin=_origin(record_set.manifest),
        ).write(folder)


def _origin(records: RecordsManifest) -> dict[str, str]:
    """Where the data came from; it travels with everything that is made of it."""
    return {
        "source": records.source,
        "revision": records.revision,
        "digest": records.digest,
        "license": records.license,
        "credit": records.credit,
    }


def _shards(
    params: EncodeParams,
    parts: Path,
    record_set: "RecordSet",
    vae: "AutoencoderKL",
    text: "TextEncoder",
    resolution: int,
) -> list[Shard]:
    """Encodes the shards that are not there yet; a shard is a run of ``shard_size`` records of one split."""
    from latentflow.data.encoded import describe_shard, write_shard

    plan: list[tuple[str, Path, list[Record]]] = []
    for split in ("train", "validation", "test"):
        members = record_set.split(split)
        for number, start in enumerate(range(0, len(members), params.shard_size)):
            path = parts / "shards" / f"{split}-{number:05d}.safetensors"
            plan.append((split, path, members[start : start + params.shard_size]))
    shards = []
    for split, path, members in plan:
        if not path.is_file():
            write_shard(path, _encode(params, members, record_set, vae, text, resolution, path.stem))
        shards.append(describe_shard(parts, path, split))
    return shards


def _encode(
    params: EncodeParams,
    members: "list[Record]",
    record_set: "RecordSet",
    vae: "AutoencoderKL",
    text: "TextEncoder",
    resolution: int,
    name: str,
) -> "dict[str, Tensor]":
    import torch

    from latentflow.data.batching import full_batches
    from latentflow.encoders import vae as vae_room

    dtype = getattr(torch, params.dtype)
    columns: dict[str, list[Tensor]] = {}

    def add(key: str, tensor: "Tensor", new: int) -> None:
        columns.setdefault(key, []).append(tensor[:new].cpu())

    batches = list(full_batches(len(members), params.batch_size))
    for rows, new in track(batches, f"encode {name}", unit="batches"):
        batch = [members[row] for row in rows]
        pixels = record_set.pixels(batch, resolution).to(vae.device)
        add("latents", vae_room.encode(vae, pixels).to(dtype), new)
        if params.flip:
            add("latents_flipped", vae_room.encode(vae, pixels.flip(-1)).to(dtype), new)
        hidden, mask = text.encode([record.caption for record in batch])
        add("text", hidden.to(dtype), new)
        add("text_mask", mask, new)
    return {key: torch.cat(parts) for key, parts in columns.items()}


def _prompts(params: EncodeParams, text: "TextEncoder") -> "dict[str, Tensor]":
    """The empty caption, for guidance, and the captions of the sample grid."""
    import torch

    dtype = getattr(torch, params.dtype)
    hidden, mask = text.encode(["", *params.sample_prompts])
    hidden = hidden.cpu().to(dtype)
    mask = mask.cpu()
    return {"empty_text": hidden[:1], "empty_mask": mask[:1], "text": hidden[1:], "text_mask": mask[1:]}


def _statistics(latents: "Tensor") -> tuple[list[float], list[float], list[int]]:
    values = latents.double()
    mean, std = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    return mean.tolist(), std.tolist(), list(latents.shape[1:])


def _check_scale(mean: list[float], std: list[float], trained: bool) -> None:
    """Latents far from unit scale spoil the noise schedule: an error for our own VAE, a warning for a given one."""
    off = max(abs(m) for m in mean) > 0.1 or not all(0.9 < s < 1.1 for s in std)
    shown = f"mean {[round(m, 2) for m in mean]}, standard deviation {[round(s, 2) for s in std]}"
    if off and trained:
        raise LatentflowError(
            f"the trained VAE's latents should have mean 0 and deviation 1 per channel, found {shown}."
        )
    if off:
        log.warning("latents are not of unit scale (%s); does the VAE's config lack its scaling_factor?", shown)
