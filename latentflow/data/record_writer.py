"""Checked candidates to a records folder, as they come: media into tars, rows into row groups of one table."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentflow.data.records import SPLITS, TABLE
from latentflow.data.tars import TarWriter
from latentflow.data.validation import Checked, CheckedCondition

ROW_GROUP = 10_000
NO_MEDIA = -1

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("media", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
        ("phash", pa.uint64()),
        ("license", pa.string()),
        (
            "conditions",
            pa.list_(
                pa.struct(
                    [
                        ("name", pa.string()),
                        ("text", pa.string()),
                        ("media", pa.int32()),
                        ("offset", pa.int64()),
                        ("size", pa.int64()),
                        ("sha256", pa.binary()),
                    ]
                )
            ),
        ),
    ]
)


class RecordWriter:
    """Appends records; ``counts`` per split and the content ``digest`` are those of what was added so far."""

    def __init__(self, tars: TarWriter, table: pq.ParquetWriter) -> None:
        self._tars = tars
        self._table = table
        self._rows: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        return {split: self._counts[split] for split in SPLITS}

    @property
    def digest(self) -> str:
        """Of id, captions, split, media and conditions of all records in order."""
        return self._digest.hexdigest()

    def add(self, checked: Checked, split: str) -> None:
        name = f"{self._counts.total():08d}"
        place = self._tars.add(name, checked.media)
        self._rows.append(
            {
                "id": checked.id,
                "captions": checked.captions,
                "split": split,
                "kind": checked.kind,
                "width": checked.width,
                "height": checked.height,
                "frames": checked.frames,
                "fps": checked.fps,
                "media": place.media,
                "offset": place.offset,
                "size": place.size,
                "sha256": checked.sha256,
                "phash": checked.look and checked.look.hash,
                "license": checked.license,
                "conditions": [self._condition(name, condition) for condition in checked.conditions],
            }
        )
        self._counts[split] += 1
        self._digest.update(_line(checked, split))
        if len(self._rows) == ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait as a row group."""
        if self._rows:
            self._table.write_table(pa.Table.from_pylist(self._rows, SCHEMA), row_group_size=ROW_GROUP)
            self._rows.clear()

    def _condition(self, name: str, condition: CheckedCondition) -> dict[str, Any]:
        row = {"name": condition.name, "text": condition.text, "sha256": condition.sha256}
        if condition.media is None:
            return row | {"media": NO_MEDIA, "offset": 0, "size": 0}
        place = self._tars.add(f"{name}.{condition.name}", condition.media)
        return row | {"media": place.media, "offset": place.offset, "size": place.size}


@contextmanager
def record_writer(folder: Path) -> Iterator[RecordWriter]:
    """A writer into an empty folder, whose files are complete when the context ends without an error."""
    with TarWriter(folder) as tars, pq.ParquetWriter(folder / TABLE, SCHEMA) as table:
        writer = RecordWriter(tars, table)
        yield writer
        writer.flush()


def _line(checked: Checked, split: str) -> bytes:
    conditions = [[condition.name, condition.text, condition.sha256.hex()] for condition in checked.conditions]
    value = [checked.id, checked.captions, split, checked.sha256.hex(), conditions]
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
