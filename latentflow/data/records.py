"""Records on disk, read back: the table as a sequence of records, media as bytes, pictures and tensors."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from latentflow.data.media import fit, still
from latentflow.data.tars import tar_name
from latentflow.errors import LatentflowError
from latentflow.manifest import RecordsManifest

if TYPE_CHECKING:
    from torch import Tensor

TABLE, QUARANTINE, DUPLICATES = "records.parquet", "quarantine.jsonl", "duplicates.jsonl"
REPORT, METRICS = "report.html", "metrics.json"
SPLITS = ("train", "validation", "test")
_BATCH = 1024


@dataclass(frozen=True)
class Condition:
    """A further column: plain ``text``, or media in a tar (``media`` is -1 for text)."""

    name: str
    text: str
    media: int
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Record:
    """One captioned picture or clip; ``media``, ``offset`` and ``size`` say in which tar its bytes lie, and where."""

    id: str
    captions: tuple[str, ...]
    split: str
    kind: str
    width: int
    height: int
    frames: int
    fps: float
    media: int
    offset: int
    size: int
    sha256: bytes
    license: str
    conditions: tuple[Condition, ...]

    @property
    def caption(self) -> str:
        """The first of the captions."""
        return self.captions[0]


_COLUMNS = list(Record.__dataclass_fields__)


class Records(Sequence[Record]):
    """Rows of a table in their order, as records that exist only while they are looked at."""

    def __init__(self, arrow: pa.Table, rows: NDArray[np.int64]) -> None:
        self._arrow = arrow
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> "Records": ...
    def __getitem__(self, place: int | slice) -> "Record | Records":
        rows = self._rows[place]
        if isinstance(place, slice):
            return Records(self._arrow, rows)
        return _record(self._arrow.slice(int(rows), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self._rows), _BATCH):
            rows = self._rows[start : start + _BATCH]
            # Only the stretch that holds these rows is looked at: taking from the whole table would join its chunks.
            first = int(rows.min())
            stretch = self._arrow.slice(first, int(rows.max()) + 1 - first)
            yield from map(_record, stretch.take(rows - first).to_pylist())


def _record(row: dict[str, Any]) -> Record:
    conditions = tuple(Condition(**condition) for condition in row.pop("conditions"))
    return Record(**row | {"captions": tuple(row["captions"])}, conditions=conditions)


class RecordSet:
    """The records of a folder that ``ingest`` wrote, in the order of the source.

    ``arrow`` is the whole table in columns, ``table`` the same as a sequence of records.
    """

    def __init__(self, folder: Path, manifest: RecordsManifest, arrow: pa.Table) -> None:
        self.folder = folder
        self.manifest = manifest
        self.arrow = arrow
        self._lean = arrow.select(_COLUMNS)
        self.table: Sequence[Record] = Records(self._lean, np.arange(len(arrow)))

    @classmethod
    def open(cls, folder: Path) -> "RecordSet":
        return cls(folder, RecordsManifest.read(folder), pq.read_table(folder / TABLE, memory_map=True))

    def split(self, name: str) -> Sequence[Record]:
        """The records of one split, in order."""
        return Records(self._lean, np.flatnonzero(pc.equal(self.arrow["split"], name).to_numpy()))

    def at(self, rows: NDArray[np.int64]) -> Sequence[Record]:
        """The records of those rows of the table, in their order."""
        return Records(self._lean, rows)

    def read(self, record: Record | Condition) -> bytes:
        """The media's bytes as they came. Raises LatentflowError when they changed since."""
        path = self.folder / tar_name(record.media)
        try:
            with path.open("rb") as file:
                file.seek(record.offset)
                data = file.read(record.size)
        except FileNotFoundError:
            raise LatentflowError(f"{path} is missing; run ingest again.") from None
        if hashlib.sha256(data).digest() != record.sha256:
            name = record.id if isinstance(record, Record) else record.name
            raise LatentflowError(f"{path}: the bytes of record {name} changed; run ingest again.")
        return data

    def image(self, record: Record, height: int, width: int) -> Image.Image:
        """The picture, or the clip's first frame, scaled to cover and cut to the centre, RGB."""
        return Image.fromarray(fit(still(self.read(record), record.kind), height, width)[0])

    def pixels(self, records: Iterable[Record], resolution: int) -> "Tensor":
        """Squares as (n, 3, resolution, resolution) float32 in [-1, 1]."""
        import torch

        from latentflow.pictures import from_bytes

        arrays = [np.asarray(self.image(record, resolution, resolution)) for record in records]
        return from_bytes(torch.from_numpy(np.stack(arrays)))


def split_of(record_id: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a record, from a hash of its id alone: adding records moves none between splits."""
    place = int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:8]) / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """``count`` records spread evenly over ``records`` in the order of a hash of their ids; all if there are fewer."""
    return [records[place] for place in spread_places((record.id for record in records), count)]


def spread_places(ids: Iterable[str], count: int) -> list[int]:
    """The places among ``ids`` that ``spread`` takes."""
    keys = [hashlib.sha256(record_id.encode()).digest() for record_id in ids]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    count = min(count, len(order))
    return [order[i * len(order) // count] for i in range(count)]
