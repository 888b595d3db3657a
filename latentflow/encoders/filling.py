"""Completes shards in the work store: what is there is taken, what is missing is encoded and written meanwhile."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from latentflow.data.packs import Packs, missing
from latentflow.data.plan import ImagesJob, Job, LatentsJob, TextJob
from latentflow.encoders.image_rows import ImageRows
from latentflow.encoders.rows import CaptionRows, PictureRows
from latentflow.manifest import Shard
from latentflow.params import EncodeParams
from latentflow.progress import track

J = TypeVar("J", LatentsJob, ImagesJob, TextJob, contravariant=True)


class Rows(Protocol[J]):
    """What makes the rows of a kind of job."""

    params: EncodeParams

    def packs(self, job: J) -> Packs: ...

    def keys(self, job: J) -> list[bytes]: ...

    def encode(self, job: J, wanted: Sequence[int]) -> Iterator[dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Encoders:
    """Who makes which kind of row."""

    pictures: PictureRows
    images: ImageRows
    captions: CaptionRows

    def of(self, job: Job) -> "Rows[Any]":
        if isinstance(job, TextJob):
            return self.captions
        return self.images if isinstance(job, ImagesJob) else self.pictures


@dataclass(frozen=True)
class Finished:
    """A shard of the set and the pack in the work store that is the same file."""

    shard: Shard
    pack: Path


def fill(encoders: Encoders, jobs: Sequence[Job]) -> list[Finished]:
    """Completes the jobs' shards, in their order.

    One shard is written while the next is encoded; a kill costs no more than these. Another process that makes the
    same shard is waited for.
    """
    finished: list[Future[Finished]] = []
    with ThreadPoolExecutor(1, "write shards") as writer:
        for job in jobs:
            rows = encoders.of(job)
            packs, keys = rows.packs(job), rows.keys(job)
            with ExitStack() as held:
                held.enter_context(packs.lock(keys))
                if (shard := packs.whole(keys)) is not None:
                    finished.append(_ready(_named(shard, job, packs.path(keys))))
                    continue
                tensors = _tensors(rows, packs, job, keys)
                if finished:
                    finished[-1].result()
                finished.append(writer.submit(_write, packs, job, keys, tensors, held.pop_all()))
    return [future.result() for future in finished]


def _tensors(rows: "Rows[J]", packs: Packs, job: J, keys: list[bytes]) -> dict[str, Tensor]:
    """The shard's tensors, of which only those rows are encoded that no pack holds."""
    places = packs.places(keys)
    wanted = missing(keys, places)
    new: dict[str, list[Tensor]] = {}
    if wanted:
        number = {key: row for row, key in reversed(list(enumerate(keys)))}
        chosen = [number[key] for key in wanted]
        total = -(-len(chosen) // rows.params.batch_size)
        for batch in track(rows.encode(job, chosen), f"encode {job.file}", total, unit="batches"):
            for name, tensor in batch.items():
                new.setdefault(name, []).append(tensor)
    fresh = {name: torch.cat(parts) for name, parts in new.items()}
    return packs.assemble(keys, places, fresh) if places or len(wanted) < len(keys) else fresh


def _write(packs: Packs, job: Job, keys: list[bytes], tensors: dict[str, Tensor], held: ExitStack) -> Finished:
    with held:
        return _named(packs.write(keys, tensors), job, packs.path(keys))


def _named(shard: Shard, job: Job, pack: Path) -> Finished:
    split = "" if isinstance(job, TextJob) else job.split
    return Finished(shard.model_copy(update={"file": job.file, "split": split}), pack)


def _ready(finished: Finished) -> "Future[Finished]":
    future: Future[Finished] = Future()
    future.set_result(finished)
    return future
