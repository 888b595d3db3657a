"""Square pictures by row, as an autoencoder trains on them: in memory while they fit, else decoded when asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentflow.pictures import from_bytes

if TYPE_CHECKING:
    from latentflow.data.records import Record, RecordSet

# 350,000 pictures of 32x32 pixels, or 5,500 of 256x256.
KEPT_BYTES = 2**30


class SquarePictures:
    """Records' pictures of ``resolution`` pixels a side."""

    def __init__(self, record_set: "RecordSet", records: "Sequence[Record]", resolution: int) -> None:
        self._record_set = record_set
        self._records = records
        self._resolution = resolution
        keeps = len(records) * 3 * resolution**2 <= KEPT_BYTES
        self._kept = self._decode(range(len(records))) if keeps else None

    def __len__(self) -> int:
        return len(self._records)

    def at(self, rows: Sequence[int]) -> Tensor:
        """Pictures (n, 3, resolution, resolution) float32 in [-1, 1]."""
        pixels = self._decode(rows) if self._kept is None else self._kept[torch.as_tensor(rows)]
        return from_bytes(pixels)

    def _decode(self, rows: Sequence[int]) -> Tensor:
        side = self._resolution
        pixels = np.empty((len(rows), side, side, 3), np.uint8)
        for place, row in enumerate(rows):
            pixels[place] = np.asarray(self._record_set.image(self._records[row], side, side))
        return torch.from_numpy(pixels)
