"""Records on disk: records.parquet beside media.tar, read back as pictures and tensors."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from latentflow.data.validation import Checked
from latentflow.errors import LatentflowError
from latentflow.manifest import RecordsManifest

if TYPE_CHECKING:
    from torch import Tensor

TABLE, MEDIA, QUARANTINE = "records.parquet", "media.tar", "quarantine.jsonl"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Record:
    """One captioned picture; ``offset`` and ``size`` are its bytes in media.tar, ``sha256`` their digest."""

    id: str
    media: str
    width: int
    height: int
    caption: str
    split: str
    sha256: str
    offset: int
    size: int


def split_of(record_id: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a record, from a hash of its id alone: adding records moves none between splits."""
    place = int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:8]) / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


class RecordWriter:
    """Appends checked pictures to a folder's media.tar and, on ``finish``, writes the table.

    The tar holds no times or owners, so equal records give equal bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: list[Record] = []
        self._digest = hashlib.sha256()
        # Closed by finish; a folder that is never finished is thrown away whole.
        self._tar = tarfile.open(folder / MEDIA, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, checked: Checked, split: str) -> None:
        info = tarfile.TarInfo(f"{len(self._records):08d}")
        info.size = len(checked.picture)
        self._tar.addfile(info, io.BytesIO(checked.picture))
        offset = self._tar.offset - -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        sha256 = hashlib.sha256(checked.picture).hexdigest()
        self._records.append(
            Record(
                checked.id, info.name, checked.width, checked.height, checked.caption, split, sha256, offset, info.size
            )
        )
        self._digest.update("\0".join((checked.id, checked.caption, split, sha256)).encode() + b"\n")

    def finish(self) -> tuple[str, dict[str, int]]:
        """Closes the folder's files; returns the content digest and the number of records per split."""
        self._tar.close()
        table = pa.Table.from_pylist([asdict(record) for record in self._records])
        pq.write_table(table, self.folder / TABLE)
        counts = {split: sum(record.split == split for record in self._records) for split in SPLITS}
        return self._digest.hexdigest(), counts


class RecordSet:
    """The records of a folder that ``ingest`` wrote, in the order of their ids."""

    def __init__(self, folder: Path, manifest: RecordsManifest, table: list[Record]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.table = table
        self._media = np.memmap(folder / MEDIA, dtype=np.uint8, mode="r")

    @classmethod
    def open(cls, folder: Path) -> "RecordSet":
        manifest = RecordsManifest.read(folder)
        columns = pq.read_table(folder / TABLE).to_pylist()
        return cls(folder, manifest, [Record(**row) for row in columns])

    def split(self, name: str) -> list[Record]:
        return [record for record in self.table if record.split == name]

    def image(self, record: Record, resolution: int) -> Image.Image:
        """The record's picture: upright, alpha over white, centre-cropped to a square of ``resolution`` pixels."""
        data = self._media[record.offset : record.offset + record.size].tobytes()
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise LatentflowError(f"{self.folder / MEDIA}: the bytes of record {record.id} changed; run ingest again.")
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        white.alpha_composite(upright)
        return ImageOps.fit(white.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)

    def pixels(self, records: Iterable[Record], resolution: int) -> "Tensor":
        """Pictures as (n, 3, resolution, resolution) float32 in [-1, 1]."""
        import torch

        arrays = [np.asarray(self.image(record, resolution)) for record in records]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """``count`` records spread evenly over ``records`` in the order of a hash of their ids; all if there are fewer."""
    ordered = sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).digest())
    count = min(count, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]
