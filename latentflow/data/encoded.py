"""The encoded set as training reads it: rows of a split by bucket, from memory-mapped shards, here or elsewhere."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from latentflow.data.captions import CaptionIndex
from latentflow.data.condition import Condition, square
from latentflow.data.mapped import MappedShards
from latentflow.data.places import LocalPlace, RemotePlace, find, open_place, read_manifest
from latentflow.data.shards import INDEX, PROMPTS, images_name
from latentflow.errors import LatentflowError
from latentflow.manifest import EncodedManifest, Shard

CARRIED = ("text_encoder", "tokenizer")
IMAGE_ENCODER = "image_encoder"


@dataclass(frozen=True)
class Samples:
    """n rows of one bucket in the dtypes that are stored.

    ``latents`` (n, c, h, w) or (n, c, f, h, w) are in the scale that the denoiser sees: the posterior's mean where
    ``logvar``, of the same shape, is there. ``text`` (n, tokens, width), ``text_mask`` (n, tokens) bool,
    ``text_pooled`` (n, width) where the text encoder gives it.
    ``original_size``, ``crop`` and ``target_size`` (n, 2) int32 are (height, width) or (top, left) in pixels.
    ``control`` (n, 3, h, w) uint8 and ``image`` (n, width) are the control picture and the reference image's embedding,
    where the set has them. ``extra`` holds further keys of the latents that were asked for by name.
    """

    latents: Tensor
    logvar: Tensor | None
    text: Tensor
    text_mask: Tensor
    text_pooled: Tensor | None
    original_size: Tensor
    crop: Tensor
    target_size: Tensor
    control: Tensor | None
    image: Tensor | None
    extra: dict[str, Tensor]

    @property
    def condition(self) -> Condition:
        """What the denoiser is told of them."""
        sizes = torch.cat([self.original_size, self.crop, self.target_size], dim=1)
        return Condition(self.text, self.text_mask, self.text_pooled, sizes, control=self.control, image=self.image)


@dataclass(frozen=True)
class Bucket:
    """The records of a split whose latents have one shape, and the shards that hold them, in the order of the rows."""

    shape: tuple[int, ...]
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows per shard."""
        return tuple(shard.count for shard in self.shards)


class EncodedSplit:
    """One split: buckets of rows, of which each call reads some. Nothing but the index stays in memory."""

    def __init__(
        self,
        buckets: tuple[Bucket, ...],
        latents: Sequence[MappedShards],
        images: Sequence[MappedShards],
        starts: Sequence[NDArray[np.int64]],
        text: MappedShards,
        index: CaptionIndex,
    ) -> None:
        """``images`` are those of ``latents``, or none where the set has none."""
        self.buckets = buckets
        self._latents = latents
        self._images = images
        self._starts = starts
        self._text = text
        self._index = index

    def __len__(self) -> int:
        return sum(bucket.count for bucket in self.buckets)

    @property
    def remote(self) -> bool:
        """Whether shards come over the network, so that it is worth to ask for them early."""
        return self._text.remote

    def without(self, key: str) -> str | None:
        """A shard of latents that does not hold ``key``, if there is one."""
        shards = (shard for bucket in self.buckets for shard in bucket.shards)
        return next((shard.file for shard in shards if key not in shard.keys), None)

    def samples(
        self,
        bucket: int,
        rows: Tensor,
        choice: Tensor | None = None,
        flip: Tensor | None = None,
        extra: Sequence[str] = (),
    ) -> Samples:
        """Rows (n,) int64 of a bucket. ``choice`` (n,) in [0, 1) picks one of a record's captions, else the first.

        ``flip`` (n,) bool asks for the mirrored picture; where the set holds none, it has no effect.
        ``extra`` names further keys, which every shard holds (see ``without``); ``flip`` goes for them too.
        Raises LatentflowError naming a shard that is missing or damaged, and on rows that are not there.
        """
        wanted, shards = rows.numpy(), self._latents[bucket]
        captions = self._index.captions(self._rows(bucket, wanted), None if choice is None else choice.numpy())
        latents, text = shards.at(wanted), self._text.at(captions)

        def either(key: str) -> Tensor:
            if flip is None or not shards.has(f"{key}_flipped"):
                return latents.copy(key)
            return latents.copy_either(key, f"{key}_flipped", flip.numpy())

        control, image = self._led(bucket, wanted)
        if control is not None and flip is not None and shards.has("latents_flipped"):
            control[flip] = control[flip].flip(-1)
        return Samples(
            latents=either("latents"),
            logvar=either("logvar") if shards.has("logvar") else None,
            text=text.copy("text"),
            text_mask=text.copy("text_mask"),
            text_pooled=text.copy("text_pooled") if self._text.has("text_pooled") else None,
            original_size=latents.copy("original_size"),
            crop=latents.copy("crop"),
            target_size=latents.copy("target_size"),
            control=control,
            image=image,
            extra={key: either(key) for key in extra},
        )

    def _led(self, bucket: int, rows: NDArray[np.int64]) -> tuple[Tensor | None, Tensor | None]:
        """Control pictures and the embeddings of reference images, where the set has them."""
        if not self._images:
            return None, None
        shards = self._images[bucket]
        images = shards.at(rows)
        control, image = (images.copy(key) if shards.has(key) else None for key in ("control", "image"))
        return control, image

    def ids(self, bucket: int, rows: Tensor) -> list[str]:
        """The records' ids of rows (n,) int64 of a bucket."""
        return self._index.ids(self._rows(bucket, rows.numpy()))

    def fetch(self, bucket: int, rows: Tensor) -> None:
        """Brings the shards of those rows, their images and of all their captions, to this machine."""
        wanted, latents = rows.numpy(), self._latents[bucket]
        for number in np.unique(latents.numbers(wanted)).tolist():
            latents.fetch(number)
            if self._images:
                self._images[bucket].fetch(number)
        for number in np.unique(self._text.numbers(self._index.all_captions(self._rows(bucket, wanted)))).tolist():
            self._text.fetch(number)

    def _rows(self, bucket: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the index; a bucket's shards need not be neighbours there."""
        numbers = self._latents[bucket].numbers(rows)
        return rows + self._starts[bucket][numbers]


class EncodedSet:
    """An encoded set that ``encode`` wrote; ``empty`` is the empty caption, ``prompts`` those of the sample grid."""

    def __init__(self, manifest: EncodedManifest, places: Sequence[LocalPlace | RemotePlace]) -> None:
        self.manifest = manifest
        self._places = places
        self._text = MappedShards([shard for shard in manifest.shards if shard.kind == "text"], places)
        self._splits: dict[str, EncodedSplit] = {}
        self._opening = threading.Lock()
        prompts = load_file(find(places, PROMPTS, manifest.prompts_sha256)[0])
        sizes = square(len(prompts["text"]), manifest.resolution)
        every = Condition(prompts["text"], prompts["text_mask"], prompts.get("text_pooled"), sizes)
        self.prompts = every.each(lambda rows: rows[1:])
        self.empty = replace(every.each(lambda rows: rows[:1]), control=self._blank(), image=self._no_image())

    @classmethod
    def open(cls, place: Path | str, parts: Sequence[Path | str] = ()) -> "EncodedSet":
        """Opens the set in a folder or behind an fsspec URL; its shards may also lie in ``parts``, of either kind.

        A shard's bytes are compared with their digest when it is first used, not now.
        """
        places = [open_place(one) for one in (place, *parts)]
        return cls(read_manifest(place), places)

    def _blank(self) -> Tensor | None:
        """A black control picture, where the set has any."""
        side = self.manifest.resolution
        return torch.zeros(1, 3, side, side, dtype=torch.uint8) if self.manifest.images.control else None

    def _no_image(self) -> Tensor | None:
        """What stands for no reference image, where the set has any."""
        width = self.manifest.images.width
        return torch.zeros(1, width) if width else None

    def __str__(self) -> str:
        """Where the set lies, in words."""
        return str(self._places[0])

    @cached_property
    def text_folder(self) -> Path:
        """A folder of this machine with ``text_encoder/`` and ``tokenizer/``; of several parts the first has them.

        Raises LatentflowError when no place has them.
        """
        for place in self._places:
            if folder := place.with_folders(CARRIED, self.manifest.digest):
                return folder
        raise LatentflowError(f"{self} holds no {CARRIED[0]}/: give the first part's folder too, which carries it.")

    @cached_property
    def image_folder(self) -> Path:
        """A folder of this machine with ``image_encoder/``. Raises LatentflowError when no place has it."""
        for place in self._places:
            # A remote place keeps what it fetched of a set by the digest it is asked for.
            if folder := place.with_folders((IMAGE_ENCODER,), f"{self.manifest.digest}-images"):
                return folder
        raise LatentflowError(f"{self} holds no {IMAGE_ENCODER}/: give the first part's folder too, which carries it.")

    def split(self, name: str) -> EncodedSplit:
        """A split's rows. Raises LatentflowError where it holds none."""
        with self._opening:
            if name not in self._splits:
                self._splits[name] = self._open(name)
            return self._splits[name]

    @cached_property
    def _index(self) -> CaptionIndex:
        return CaptionIndex.read(find(self._places, INDEX, self.manifest.index_sha256)[0])

    def _open(self, name: str) -> EncodedSplit:
        """Groups the split's shards by shape and remembers where each one's rows begin in the index."""
        members: dict[tuple[int, ...], list[tuple[int, Shard]]] = {}
        start = 0
        for shard in (shard for shard in self.manifest.shards if shard.kind == "latents"):
            if shard.split == name:
                members.setdefault(shard.shape, []).append((start, shard))
            start += shard.count
        if not members:
            raise LatentflowError(f"{self} holds no records in the {name} split.")
        if start != len(self._index):
            raise LatentflowError(
                f"{self}: {INDEX} has {len(self._index)} rows for {start} latents; run `latentflow encode`."
            )
        buckets = tuple(Bucket(shape, tuple(shard for _, shard in group)) for shape, group in members.items())
        latents = [MappedShards(bucket.shards, self._places) for bucket in buckets]
        images = self._images(buckets)
        starts = [_shifts(bucket, [first for first, _ in members[bucket.shape]]) for bucket in buckets]
        return EncodedSplit(buckets, latents, images, starts, self._text, self._index)

    def _images(self, buckets: Sequence[Bucket]) -> list[MappedShards]:
        """The images of the buckets' latents, in their order; none where the set has none."""
        by_file = {shard.file: shard for shard in self.manifest.shards if shard.kind == "images"}
        if not by_file:
            return []
        along = [[by_file[images_name(shard.file)] for shard in bucket.shards] for bucket in buckets]
        return [MappedShards(shards, self._places) for shards in along]


def _shifts(bucket: Bucket, firsts: list[int]) -> NDArray[np.int64]:
    """Per shard, what to add to a row of the bucket to get its row in the index."""
    starts: NDArray[np.int64] = np.cumsum((0, *bucket.counts))[:-1]
    return np.asarray(firsts, np.int64) - starts
