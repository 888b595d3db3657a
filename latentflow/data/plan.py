"""Which rows go into which shard of the encoded set: a pure function of the records and the parameters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentflow.data import buckets
from latentflow.data.records import SPLITS
from latentflow.data.shards import images_name, latents_name, text_name

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Layout:
    """What decides shapes: the square's side, the VAE, buckets (step 0: none), frames of clips, rows of a shard.

    ``images``: whether the records have control or reference images.
    ``vae_frames``: how many frames of a clip the VAE makes one of, but for the first; 0 where it knows pictures only.
    """

    resolution: int
    factor: int
    vae_frames: int
    channels: int
    bucket_step: int
    bucket_min_ratio: float
    bucket_max_ratio: float
    clip_frames: int
    clip_stride: int
    clip_fps: float
    shard_size: int
    images: bool = False

    def shape(self, height: int, width: int, frames: int) -> list[int]:
        """Of the latents of a picture (frames 0) or clip of this size in pixels."""
        time = [(frames - 1) // self.vae_frames + 1 if self.vae_frames else frames] if frames else []
        return [self.channels, *time, height // self.factor, width // self.factor]


@dataclass(frozen=True)
class LatentsJob:
    """One shard of latents: ``rows`` are record numbers, all of one split and one size; ``frames`` 0 is a picture."""

    file: str
    split: str
    height: int
    width: int
    frames: int
    rows: np.ndarray

    @property
    def size(self) -> str:
        """The preprocessing that is this job's own, as a word."""
        clip = f"{self.frames}x" if self.frames else ""
        return f"{clip}{self.height}x{self.width}"


@dataclass(frozen=True)
class ImagesJob:
    """The shard of control and reference images that goes with one of latents, row by row."""

    latents: LatentsJob

    @property
    def file(self) -> str:
        return images_name(self.latents.file)

    @property
    def split(self) -> str:
        return self.latents.split

    @property
    def size(self) -> str:
        """As of the latents."""
        return self.latents.size


@dataclass(frozen=True)
class TextJob:
    """One shard of text: ``captions`` are distinct over the whole set."""

    file: str
    captions: list[str]


Job = LatentsJob | ImagesJob | TextJob


@dataclass(frozen=True)
class EncodePlan:
    """All shards in the order of the manifest, and per record the numbers of its captions in the text table.

    ``square`` is the shape of the latents of a square picture (of a square clip where there are clips only), and
    ``left_out`` counts clips that are shorter than the frames that are wanted of them.
    Record i has ``caption_numbers[caption_starts[i]:caption_starts[i + 1]]``.
    """

    latents: list[LatentsJob]
    images: list[ImagesJob]
    text: list[TextJob]
    square: list[int]
    left_out: int
    caption_starts: np.ndarray
    caption_numbers: np.ndarray

    @property
    def jobs(self) -> list[Job]:
        return [*self.latents, *self.images, *self.text]

    def part(self, number: int, of: int) -> list[Job]:
        """The jobs of part ``number`` of ``of``, from 1: every shard is in one part."""
        return self.jobs[number - 1 :: of]


def make(records: "pa.Table", layout: Layout) -> EncodePlan:
    """The plan of a records table (columns split, width, height, kind, captions)."""
    captions, starts, numbers = _captions(records)
    text = [
        TextJob(text_name(number), captions[start : start + layout.shard_size])
        for number, start in enumerate(range(0, len(captions), layout.shard_size))
    ]
    latents = list(_latents(records, layout))
    images = [ImagesJob(job) for job in latents] if layout.images else []
    frames = min((job.frames for job in latents), default=0)
    square = layout.shape(layout.resolution, layout.resolution, frames)
    left_out = len(records) - sum(len(job.rows) for job in latents)
    return EncodePlan(latents, images, text, square, left_out, starts, numbers)


def _captions(records: "pa.Table") -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct captions in the order of their first record, and which a record has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = records["captions"].combine_chunks()
    encoded = pc.dictionary_encode(pc.list_flatten(column))
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    starts = np.concatenate([[0], np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False))])
    return encoded.dictionary.to_pylist(), starts.astype(np.int64), encoded.indices.to_numpy().astype(np.int32)


def _latents(records: "pa.Table", layout: Layout) -> Iterator[LatentsJob]:
    """Shards by split, then pictures before clips, then size from tall to wide."""
    import pyarrow.compute as pc

    sizes = buckets.sizes(layout.resolution, layout.bucket_step, layout.bucket_min_ratio, layout.bucket_max_ratio)
    heights, widths = (records[name].to_numpy().astype(np.float64) for name in ("height", "width"))
    bucket = buckets.nearest(heights, widths, sizes)
    clip = pc.equal(records["kind"], "video").to_numpy()
    kinds = {0: ~clip} | ({layout.clip_frames: clip & _long_enough(records, layout)} if layout.clip_frames else {})
    for split in SPLITS:
        member = pc.equal(records["split"], split).to_numpy()
        for frames, of_kind in kinds.items():
            for number, (height, width) in enumerate(sizes):
                rows = np.flatnonzero(member & of_kind & (bucket == number))
                yield from _runs(split, height, width, frames, rows, layout)


def _long_enough(records: "pa.Table", layout: Layout) -> np.ndarray:
    """Which clips have the last frame that would be taken of them."""
    frames, fps = (records[name].to_numpy() for name in ("frames", "fps"))
    step = layout.clip_stride * (fps / layout.clip_fps if layout.clip_fps else np.ones(len(records)))
    enough: np.ndarray = np.floor((layout.clip_frames - 1) * step + 1e-6) < frames
    return enough


def _runs(split: str, height: int, width: int, frames: int, rows: np.ndarray, layout: Layout) -> Iterator[LatentsJob]:
    shape = layout.shape(height, width, frames)
    for number, start in enumerate(range(0, len(rows), layout.shard_size)):
        file = latents_name(split, shape, number)
        yield LatentsJob(file, split, height, width, frames, rows[start : start + layout.shard_size])
