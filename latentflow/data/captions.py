"""The index of an encoded set: which record each latents row is, and which rows of text are its captions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


class CaptionIndex:
    """``index.parquet`` in columns, a few dozen bytes per record."""

    def __init__(self, ids: pa.ChunkedArray, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        self._ids = ids
        self._ends = ends
        self._text = rows

    @classmethod
    def read(cls, path: Path) -> "CaptionIndex":
        table = pq.read_table(path, columns=["id", "captions"])
        captions = table["captions"].combine_chunks()
        lengths, rows = captions.value_lengths().to_numpy(), captions.flatten().to_numpy()
        return cls(table["id"], np.cumsum(lengths, dtype=np.int64), rows.astype(np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The records' ids."""
        found: list[str] = self._ids.take(pa.array(rows)).to_pylist()
        return found

    def captions(self, rows: NDArray[np.int64], choice: NDArray[np.float32] | None = None) -> NDArray[np.int64]:
        """One row of text per row: the first caption, or the one that ``choice`` in [0, 1) points at."""
        first, count = self._span(rows)
        if choice is None:
            return self._text[first]
        # A float32 just below 1 times a large count may round up to it.
        return self._text[first + np.minimum((choice * count).astype(np.int64), count - 1)]

    def all_captions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """All rows of text of those rows, one after another."""
        first, count = self._span(rows)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        found: NDArray[np.int64] = self._text[np.repeat(first, count) + within]
        return found

    def _span(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each row's captions begin, and how many they are."""
        first = np.where(rows > 0, self._ends[rows - 1], 0)
        return first, self._ends[rows] - first
