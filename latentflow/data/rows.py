"""Rows of a metadata file, JSON lines, CSV or Parquet, one after the other in constant memory.

A file that cannot be read on stops the run with its name and row: rows after a broken one would be guesses.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latentflow.errors import LatentflowError

Row = dict[str, Any]
FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_BATCH = 1024


def numbered_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Every row with its number in the file (of a CSV file the header is row 1). Raises LatentflowError.

    Of a Parquet file only ``columns`` are read, where they are given: others may be large.
    """
    if path.suffix == ".parquet":
        rows = _parquet(path, columns)
    else:
        rows = _json_lines(path) if path.suffix == ".jsonl" else _csv(path)
    number = 0
    try:
        for number, row in rows:
            yield number, row
    except UnicodeDecodeError:
        raise LatentflowError(f"{path} is not UTF-8 after row {number}; save it as UTF-8.") from None


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(path, number, line)


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    # ValueError also of a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise LatentflowError(f"{path}, row {number}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise LatentflowError(f"{path}, row {number}: expected an object, found {line.strip()[:40]}.")
    return row


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            yield from _with_header(path, reader)
        except csv.Error as error:
            raise LatentflowError(f"{path}, line {reader.line_num}: cannot be read as CSV ({error}).") from None


def _with_header(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, Row]]:
    header = next(reader, [])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise LatentflowError(f"{path}: the header names the column {twice[0]!r} twice.")
    for number, fields in enumerate(reader, start=2):
        if not fields:
            continue
        if len(fields) != len(header):
            raise LatentflowError(
                f"{path}, row {number}: {len(fields)} fields where the header names {len(header)} "
                f"({', '.join(header)}); put captions with commas into double quotes."
            )
        yield number, dict(zip(header, fields, strict=True))


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise LatentflowError(f"{path} cannot be read as Parquet after row {number}: {error}") from None
