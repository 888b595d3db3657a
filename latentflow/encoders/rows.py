"""What turns the rows of a shard into tensors: pictures and clips through the VAE, captions through the text encoder.

Models are loaded at the first row that has to be encoded, so a set that is already in the work store costs no model.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from filelock import FileLock
from PIL import Image
from torch import Tensor

from latentflow.data.batching import full_batches
from latentflow.data.clips import decode_clip
from latentflow.data.media import decode_picture, fit
from latentflow.data.packs import Packs
from latentflow.data.plan import LatentsJob, TextJob
from latentflow.data.records import Record, RecordSet
from latentflow.data.shards import PROMPTS
from latentflow.devices import best_device
from latentflow.encoders import vae as vae_room
from latentflow.encoders.captions import CaptionEncoder, CaptionSource
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, digest_json, write_json
from latentflow.params import EncodeParams
from latentflow.pictures import from_bytes

# Raised by hand when equal inputs would give other rows.
LATENTS_VERSION = 2
TEXT_VERSION = 2
MADE_FROM = "made_from.json"
log = logging.getLogger(__name__)


class PictureRows:
    """Latents of records: decoded, fitted to the job's size and encoded in full batches."""

    def __init__(
        self, params: EncodeParams, records: RecordSet, autoencoder: Path, digest: str, store: Path, token: str
    ) -> None:
        self.params = params
        self.records = records
        self._autoencoder = autoencoder
        self.made_from = {
            "autoencoder": digest,
            "posterior": params.posterior,
            "flip": params.flip,
            "dtype": params.dtype,
            "precision": params.precision,
            "clip": [params.clip_frames, params.clip_stride, params.clip_fps],
            "version": LATENTS_VERSION,
        } | ({"force_rerun": token} if token else {})
        self.folder = namespace(store / "latents", self.made_from)
        self._packs: dict[str, Packs] = {}

    def packs(self, job: LatentsJob) -> Packs:
        return self._packs.setdefault(job.size, Packs(self.folder / job.size, "latents"))

    def keys(self, job: LatentsJob) -> list[bytes]:
        """The sha256 of every row's media."""
        return self.records.arrow["sha256"].take(job.rows).to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def vae(self) -> ModelMixin:
        note(self.folder, self.made_from)
        vae = vae_room.load_from(self._autoencoder)
        vae.to(best_device())
        return vae

    def encode(self, job: LatentsJob, wanted: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """The tensors of the job's rows ``wanted``, batch by batch. Raises LatentflowError on NaN, naming records."""
        records = [self.records.table[int(job.rows[row])] for row in wanted]
        batches = list(full_batches(len(records), self.params.batch_size))
        decoded = _Decoded(
            self.records.folder, job, self.params, [[records[row] for row in rows] for rows, _ in batches]
        )
        loader = torch.utils.data.DataLoader(
            decoded,
            batch_size=None,
            num_workers=workers(self.params.workers, len(batches)),
            pin_memory=self.vae.device.type == "cuda",
        )
        for (rows, new), (pixels, sizes) in zip(batches, loader, strict=True):
            tensors = self._latents(pixels, clips=bool(job.frames)) | sizes
            tensors["source"] = as_rows([records[row].sha256 for row in rows])
            require_finite(tensors, [records[row].id for row in rows])
            yield {name: tensor[:new] for name, tensor in tensors.items()}

    def _latents(self, pixels: Tensor, clips: bool) -> dict[str, Tensor]:
        """Pixels (n, f, h, w, 3) uint8 to latents (n, c, f, h, w), for pictures (n, c, h, w)."""
        values = from_bytes(pixels.to(self.vae.device, non_blocking=True))
        columns = self._posterior(values, "")
        if self.params.flip:
            columns |= self._posterior(values.flip(-1), "_flipped")
        dtype = getattr(torch, self.params.dtype)
        shaped = {name: tensor if clips else tensor.squeeze(2) for name, tensor in columns.items()}
        return {name: tensor.to(dtype).cpu() for name, tensor in shaped.items()}

    def _posterior(self, values: Tensor, suffix: str) -> dict[str, Tensor]:
        """Frame by frame by an image VAE, a clip as a whole by a video VAE."""
        whole = vae_room.knows_clips(self.vae)
        with torch.autocast(values.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
            mean, logvar = vae_room.posterior(self.vae, values.transpose(1, 2) if whole else values.flatten(0, 1))
        columns = {"latents": mean}
        if self.params.posterior == "distribution":
            if logvar is None:
                raise LatentflowError(
                    f"encode.posterior distribution: {type(self.vae).__name__} gives no distribution; set it to mean."
                )
            columns["logvar"] = logvar
        if not whole:
            columns = {key: one.unflatten(0, values.shape[:2]).transpose(1, 2) for key, one in columns.items()}
        return {f"{name}{suffix}": tensor for name, tensor in columns.items()}


class CaptionRows:
    """Hidden states of distinct captions, encoded in full batches."""

    def __init__(self, params: EncodeParams, source: CaptionSource, store: Path, token: str) -> None:
        self.params = params
        self.source = source
        self.made_from = (
            source.made_from
            | {"dtype": params.dtype, "version": TEXT_VERSION}
            | ({"force_rerun": token} if token else {})
        )
        self.folder = namespace(store / "text", self.made_from)
        self._packs = Packs(self.folder / "rows", "text")

    def packs(self, job: TextJob) -> Packs:  # noqa: ARG002
        return self._packs

    def keys(self, job: TextJob) -> list[bytes]:
        return [_caption_key(caption) for caption in job.captions]

    @cached_property
    def text(self) -> CaptionEncoder:
        note(self.folder, self.made_from)
        text = self.source.load()
        text.to(best_device())
        return text

    def encode(self, job: TextJob, wanted: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """The tensors of the job's captions ``wanted``, batch by batch."""
        captions = [job.captions[row] for row in wanted]
        keys = as_rows([_caption_key(caption) for caption in captions])
        dtype = getattr(torch, self.params.dtype)
        for rows, new in full_batches(len(captions), self.params.batch_size):
            told = self.text.encode([captions[row] for row in rows])
            tensors = {"text": told.text.to(dtype).cpu(), "text_mask": told.mask.cpu(), "source": keys[rows]}
            if told.pooled is not None:
                tensors["text_pooled"] = told.pooled.to(dtype).cpu()
            require_finite(tensors, [captions[row] for row in rows])
            yield {name: tensor[:new] for name, tensor in tensors.items()}

    @property
    def prompts(self) -> TextJob:
        """The empty caption, for guidance, and the captions of the sample grid."""
        return TextJob(PROMPTS, ["", *self.params.sample_prompts])

    def saved(self) -> Path:
        """The folder with ``text_encoder/`` and ``tokenizer/`` of a model by itself, saved once beside the rows."""
        folder = self.folder / "encoder"
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    assert isinstance(self.text, TextEncoder)
                    self.text.save(temporary)
        return folder


@dataclass(frozen=True)
class _Decoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batches of fitted pixels with their sizes, read in worker processes."""

    folder: Path
    job: LatentsJob
    params: EncodeParams
    batches: list[list[Record]]

    def __len__(self) -> int:
        return len(self.batches)

    @cached_property
    def records(self) -> RecordSet:
        """Opened anew in every worker."""
        return RecordSet.open(self.folder)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.batches[number]
        fitted = [self._fitted(record) for record in batch]
        sizes = {
            "original_size": [[record.height, record.width] for record in batch],
            "crop": [crop for _, crop in fitted],
            "target_size": [[self.job.height, self.job.width]] * len(batch),
        }
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in fitted]))
        return pixels, {name: torch.tensor(value, dtype=torch.int32) for name, value in sizes.items()}

    def _fitted(self, record: Record) -> tuple[np.ndarray, tuple[int, int]]:
        """Pixels (f, height, width, 3) and the crop's top and left."""
        data = self.records.read(record)
        height, width, params = self.job.height, self.job.width, self.params
        if not self.job.frames:
            pixels, crop = fit(decode_picture(data), height, width)
            return pixels[None], crop
        clip = decode_clip(data, self.job.frames, params.clip_stride, params.clip_fps)
        frames = [fit(Image.fromarray(frame), height, width) for frame in clip]
        return np.stack([pixels for pixels, _ in frames]), frames[0][1]


def namespace(root: Path, made_from: dict[str, Any]) -> Path:
    """Where the rows lie that are made in one way."""
    return root / digest_json(made_from)[:32]


def note(folder: Path, made_from: dict[str, Any]) -> None:
    """Says beside the packs what they were made from, for `encode --explain`."""
    write_json(folder / MADE_FROM, made_from)


def _caption_key(caption: str) -> bytes:
    return hashlib.sha256(caption.encode()).digest()


def workers(wanted: int, batches: int) -> int:
    """Worker processes beside this one: at most 8 unless asked for, and none for a single batch."""
    found = wanted or min(8, len(os.sched_getaffinity(0)) - 1)
    return min(found, batches) if found > 1 and batches > 1 else 0


def as_rows(digests: Sequence[bytes]) -> Tensor:
    """Digests as (n, 32) uint8."""
    return torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32).copy())


def require_finite(tensors: dict[str, Tensor], names: Sequence[str]) -> None:
    """Raises LatentflowError that names the first of ``names`` whose row is not."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            row = int((~torch.isfinite(tensor)).flatten(1).any(dim=1).nonzero()[0, 0])
            raise LatentflowError(
                f"the encoder gave NaN or infinity in `{key}` for {names[row]!r}; try encode.precision fp32, or dtype "
                "float32 if the values are too large for float16. Nothing of its shard was kept."
            )
