"""Does a picture drawn for a caption look like the right real one: its rank among all real pictures.

A picture is averaged to 16x16 RGB and compared with every real picture of every split by Euclidean distance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.data.records import Record, RecordSet
from latentflow.evaluation.metrics import Share, pooled, share
from latentflow.pictures import to_bytes

SIDE = 16
CHUNK = 1024
_BLOCK = 64


def picture_chunks(
    records: RecordSet, resolution: int, chosen: Sequence[Record] | None = None, size: int = CHUNK
) -> Iterator[Tensor]:
    """The chosen real pictures, by default all in the table's order, as uint8 (<= size, 3, r, r).

    In chunks, so that no large set fills the memory.
    """
    table = records.table if chosen is None else chosen
    for start in range(0, len(table), size):
        yield to_bytes(records.pixels(table[start : start + size], resolution))


def features(pictures: Tensor) -> Tensor:
    """What distances are taken in: (n, 3, h, w) uint8 to (n, 768) float64."""
    return pooled(pictures, SIDE)


def right_ones(asked: Sequence[Record], table: Sequence[Record]) -> Tensor:
    """(asked, real) bool: which real pictures carry the asked caption, usually one; the model is told no more."""
    where: dict[str, list[int]] = {}
    for index, record in enumerate(table):
        where.setdefault(record.caption, []).append(index)
    right = torch.zeros(len(asked), len(table), dtype=torch.bool)
    for row, record in enumerate(asked):
        right[row, where[record.caption]] = True
    return right


@dataclass(frozen=True)
class Retrieval:
    """``rank`` (captions, seeds): 1 is nearest. ``nearest`` (captions, seeds): index of the nearest real picture."""

    rank: Tensor
    nearest: Tensor

    def top(self, k: int) -> Share:
        """Share of drawn pictures whose right real picture is among the ``k`` nearest."""
        return share(self.rank <= k)


def retrieve(drawn: Tensor, real: Tensor, right: Tensor) -> Retrieval:
    """Ranks the right real picture of every drawn one.

    ``drawn``: features (captions, seeds, d); ``real``: (m, d); ``right``: (captions, m) bool. The rank is one more
    than the number of real pictures strictly nearer than the right one, so equal real pictures share a rank.
    """
    captions, seeds, width = drawn.shape
    rows, wanted = drawn.reshape(-1, width), right.repeat_interleave(seeds, 0)
    ranks, nearest = [], []
    for start in range(0, len(rows), _BLOCK):
        # Exact differences: the matrix-product form of cdist would blur near ties.
        distance = torch.cdist(rows[start : start + _BLOCK], real, compute_mode="donot_use_mm_for_euclid_dist")
        to_right = distance.masked_fill(~wanted[start : start + _BLOCK], torch.inf).amin(1, keepdim=True)
        ranks.append(1 + (distance < to_right).sum(1))
        nearest.append(distance.argmin(1))
    shape = (captions, seeds)
    return Retrieval(torch.cat(ranks).reshape(shape), torch.cat(nearest).reshape(shape))


def chance(right: Tensor, k: int) -> float:
    """Share of hits among the ``k`` nearest that a random order of the real pictures would give."""
    total = right.shape[1]
    misses = torch.ones(len(right), dtype=torch.float64)
    for taken in range(min(k, total)):
        misses *= ((total - right.sum(1) - taken).clamp(min=0) / (total - taken)).double()
    return (1 - misses).mean().item()
