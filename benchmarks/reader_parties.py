"""The readers that benchmarks/reader.py compares: how each writes the records and how each reads them in batches.

Every peer stores raw bytes, which it hands over without decoding, and is collated with one copy per field.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LATENTS, TEXT = (4, 32, 32), (77, 768)
BATCH = 256
SEED = 0

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Records that differ from one another: latents float32 in [0, 1), text float16 in [0, 2); made chunk by chunk."""

    records: int
    shard: int

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, start in enumerate(range(0, self.records, self.shard)):
            rows = min(self.shard, self.records - start)
            random = np.random.default_rng(number)
            bits = random.integers(0, 2**16, (rows, *TEXT), dtype=np.uint16) & 0x3FFF
            yield random.random((rows, *LATENTS), dtype=np.float32), bits.view(np.float16)

    def each(self) -> Iterator[tuple[bytes, bytes]]:
        for latents, text in self.chunks():
            for one, other in zip(latents, text, strict=True):
                yield one.tobytes(), other.tobytes()

    @property
    def raw_bytes(self) -> int:
        return self.records * (4 * int(np.prod(LATENTS)) + 2 * int(np.prod(TEXT)))


@dataclass(frozen=True)
class Remote:
    """A folder of an S3 server and an empty folder for what is fetched."""

    bucket: str
    prefix: str
    endpoint: str
    cache: Path

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


Place = Path | Remote


@dataclass(frozen=True)
class Ask:
    """How many epochs of which records are wanted from where, with how many worker processes."""

    place: Place
    data: Data
    workers: int
    epochs: int


@dataclass(frozen=True)
class Party:
    """A reader: what it delivers, in which order, and with how many worker processes it is tried."""

    name: str
    module: str
    delivers: str
    write: Callable[[Path, Data], None]
    read: Callable[[Ask], Iterator[Pair]]
    workers: tuple[int, ...] = (0, 2)
    remote: bool = True
    also: tuple[str, ...] = ()
    """Further modules that reading imports."""

    def absent(self) -> str:
        """Why this reader cannot take part; empty when it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"No module named {self.module!r}"
        try:
            importlib.import_module(self.module)
        except Exception as error:  # whatever a foreign package raises is its reason
            return f"{type(error).__name__}: {error}"
        return ""


def tensor(parts: Sequence[bytes], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray().join(parts), dtype=dtype).view(len(parts), *shape)


def collate(samples: Sequence[Any]) -> Pair:
    """One copy per field, into memory that may be written to."""
    return (
        tensor([sample["latents"] for sample in samples], torch.float32, LATENTS),
        tensor([sample["text"] for sample in samples], torch.float16, TEXT),
    )


def loaded(dataset: Any, workers: int, **more: Any) -> Any:
    """PyTorch's DataLoader over a dataset; its workers stay between epochs."""
    from torch.utils.data import DataLoader

    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **more)


def write_ours(folder: Path, data: Data) -> None:
    from encoded_files import write_encoded

    chunks = ((torch.from_numpy(latents), torch.from_numpy(text)) for latents, text in data.chunks())
    write_encoded(folder, (("train", *chunk) for chunk in chunks))


@dataclass(frozen=True)
class Reading:
    """Batches of the encoded set by step, as training reads them, without what training adds."""

    split: Any
    order: Any
    coming: Any
    horizon: int

    @property
    def remote(self) -> bool:
        return bool(self.split.remote)

    def at(self, step: int) -> Pair:
        samples = self.split.samples(*self.order.at(step))
        return samples.latents, samples.text

    def fetch(self, step: int) -> Callable[[], None]:
        bucket, rows = self.coming.at(step)
        return lambda: self.split.fetch(bucket, rows)


def read_ours(ask: Ask) -> Iterator[Pair]:
    import os

    from latentflow.data.encoded import EncodedSet
    from latentflow.data.order import Order
    from latentflow.training import loader

    window = 0
    if isinstance(ask.place, Remote):
        os.environ["LATENTFLOW_CACHE"], window = str(ask.place.cache), 2
    split = EncodedSet.open(ask.place.url if isinstance(ask.place, Remote) else ask.place).split("train")
    counts = tuple(bucket.counts for bucket in split.buckets)
    order, coming = (Order(SEED, BATCH, counts, window) for _ in range(2))
    reading = Reading(split, order, coming, order.horizon)
    steps = range(ask.epochs * ask.data.records // BATCH)
    if isinstance(ask.place, Remote):
        with loader.ahead(reading, steps) as ready:
            yield from ready
    else:
        yield from map(reading.at, steps)


def write_litdata(folder: Path, data: Data) -> None:
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_size=data.shard)
    for index, (latents, text) in enumerate(data.each()):
        writer.add_item(index, {"latents": latents, "text": text})
    writer.done()
    writer.merge()


def read_litdata(ask: Ask) -> Iterator[Pair]:
    from litdata import StreamingDataLoader, StreamingDataset

    if isinstance(ask.place, Remote):
        options = {"endpoint_url": ask.place.endpoint, "region_name": "us-east-1"}
        dataset = StreamingDataset(
            ask.place.url,
            cache_dir=str(ask.place.cache),
            storage_options=options,
            shuffle=True,
            drop_last=False,
            seed=SEED,
        )
    else:
        dataset = StreamingDataset(str(ask.place), shuffle=True, drop_last=False, seed=SEED)
    batches = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=ask.workers, collate_fn=collate, persistent_workers=ask.workers > 0
    )
    for _ in range(ask.epochs):
        yield from batches


def write_streaming(folder: Path, data: Data) -> None:
    from streaming import MDSWriter

    size = data.shard * (data.raw_bytes // data.records)
    with MDSWriter(out=str(folder), columns={"latents": "bytes", "text": "bytes"}, size_limit=size) as writer:
        for latents, text in data.each():
            writer.write({"latents": latents, "text": text})


def read_streaming(ask: Ask) -> Iterator[Pair]:
    import os

    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    if isinstance(ask.place, Remote):
        os.environ["S3_ENDPOINT_URL"] = ask.place.endpoint
        where = {"remote": ask.place.url, "local": str(ask.place.cache)}
    else:
        where = {"local": str(ask.place)}
    dataset = StreamingDataset(**where, shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
    batches = loaded(dataset, ask.workers, batch_size=BATCH, collate_fn=collate)
    for _ in range(ask.epochs):
        yield from batches


def write_webdataset(folder: Path, data: Data) -> None:
    import webdataset

    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=data.shard, verbose=0) as writer:
        for index, (latents, text) in enumerate(data.each()):
            writer.write({"__key__": f"{index:08d}", "latents": latents, "text": text})


def read_webdataset(ask: Ask) -> Iterator[Pair]:
    import webdataset

    names = [f"{number:05d}.tar" for number in range(-(-ask.data.records // ask.data.shard))]
    if isinstance(ask.place, Remote):
        urls = [f"{ask.place.endpoint}/{ask.place.bucket}/{ask.place.prefix}/{name}" for name in names]
    else:
        urls = [str(ask.place / name) for name in names]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=SEED, empty_check=False)
        .shuffle(2 * ask.data.shard)
        .batched(BATCH, collation_fn=collate)
    )
    batches = loaded(dataset, ask.workers, batch_size=None)
    for _ in range(ask.epochs):
        yield from batches


def write_datasets(folder: Path, data: Data) -> None:
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, Value

    def records() -> Iterator[dict[str, bytes]]:
        for latents, text in data.each():
            yield {"latents": latents, "text": text}

    features = Features({"latents": Value("binary"), "text": Value("binary")})
    temporary = folder.parent / f"{folder.name}-building"
    made = Dataset.from_generator(records, features=features, cache_dir=str(temporary), writer_batch_size=data.shard)
    shards = -(-data.records // data.shard)
    made.save_to_disk(str(folder / "arrow"), num_shards=shards)
    (folder / "parquet").mkdir()
    for number in range(shards):
        table = made.shard(shards, number, contiguous=True).with_format("arrow")[:]
        path = folder / "parquet" / f"{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=BATCH, compression="none", use_dictionary=False)
    shutil.rmtree(temporary)


def from_arrow(table: Any) -> Pair:
    """The bytes of a column, joined by Arrow in one copy, as a tensor."""

    def field(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        column = table[name].combine_chunks()
        # The values of rows that lie side by side begin where the first row's do.
        start = np.frombuffer(column.buffers()[1], np.int32)[column.offset]
        width = int(np.prod(shape)) * dtype.itemsize
        values = np.frombuffer(column.buffers()[2], np.uint8)[start : start + len(column) * width]
        return torch.from_numpy(values).view(dtype).view(len(column), *shape)

    return field("latents", torch.float32, LATENTS), field("text", torch.float16, TEXT)


def read_datasets(ask: Ask) -> Iterator[Pair]:
    from datasets import load_dataset, load_from_disk
    from torch.utils.data import BatchSampler, RandomSampler

    if isinstance(ask.place, Remote):
        files = [
            f"{ask.place.url}/parquet/{number:05d}.parquet" for number in range(-(-ask.data.records // ask.data.shard))
        ]
        options = {"endpoint_url": ask.place.endpoint}
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True, storage_options=options)
        shuffled = stream.shuffle(seed=SEED, buffer_size=2 * ask.data.shard)
        batches = loaded(shuffled, ask.workers, batch_size=BATCH, collate_fn=collate)
    else:
        # By hand: Arrow's own format, and tensors over the joined bytes. Its tensor format is the party below.
        dataset = load_from_disk(str(ask.place / "arrow")).with_format("arrow")
        random = BatchSampler(RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED)), BATCH, False)
        batches = loaded(dataset, ask.workers, sampler=random, batch_size=None, collate_fn=from_arrow)
    for _ in range(ask.epochs):
        yield from batches


def write_datasets_torch(folder: Path, data: Data) -> None:
    from datasets import Array2D, Array3D, Dataset, Features

    def records() -> Iterator[dict[str, np.ndarray]]:
        for latents, text in data.chunks():
            for one, other in zip(latents, text, strict=True):
                yield {"latents": one, "text": other}

    features = Features({"latents": Array3D(LATENTS, "float32"), "text": Array2D(TEXT, "float16")})
    temporary = folder.parent / f"{folder.name}-building"
    made = Dataset.from_generator(records, features=features, cache_dir=str(temporary), writer_batch_size=256)
    made.save_to_disk(str(folder), num_shards=-(-data.records // data.shard))
    shutil.rmtree(temporary)


def read_datasets_torch(ask: Ask) -> Iterator[Pair]:
    from datasets import load_from_disk
    from torch.utils.data import BatchSampler, RandomSampler

    assert isinstance(ask.place, Path)
    dataset = load_from_disk(str(ask.place)).with_format("torch")
    random = BatchSampler(RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED)), BATCH, False)
    batches = loaded(dataset, ask.workers, sampler=random, batch_size=None)
    for _ in range(ask.epochs):
        for batch in batches:
            # Its torch format gives every floating type as float32.
            yield batch["latents"], batch["text"].half()


PARTIES = (
    Party(
        "latentflow",
        "latentflow",
        "latents, text, mask and three sizes; any row of the set (S3: any of 2 shards)",
        write_ours,
        read_ours,
        (0,),
        also=("latentflow.data.encoded", "latentflow.training.loader", "pandas"),
    ),
    Party("litdata", "litdata", "latents and text; chunks shuffled, then rows in a chunk", write_litdata, read_litdata),
    Party(
        "mosaicml-streaming",
        "streaming",
        "latents and text; rows shuffled among many shards (py1e)",
        write_streaming,
        read_streaming,
    ),
    Party(
        "webdataset",
        "webdataset",
        "latents and text; tars shuffled, a buffer of two tars' rows",
        write_webdataset,
        read_webdataset,
    ),
    Party(
        "datasets, torch format",
        "datasets",
        "latents and text; any row of the set, as its documentation shows",
        write_datasets_torch,
        read_datasets_torch,
        remote=False,
    ),
    Party(
        "datasets",
        "datasets",
        "the same by hand on Arrow's buffers (S3: Parquet, a buffer of two files' rows)",
        write_datasets,
        read_datasets,
    ),
)
