"""Does a picture drawn for a caption look like the right real one: its rank among all real pictures.

A picture is averaged to 16x16 RGB and compared with every real picture of every split by Euclidean distance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.data.records import Record, RecordSet, spread_places
from latentflow.evaluation.metrics import Share, pooled, share
from latentflow.pictures import to_bytes

SIDE = 16
_CHUNK = 64


def choose_captions(records: Sequence[Record], split: str, count: int) -> list[Record]:
    """Up to ``count`` records of a split, spread by a hash of their ids, one per distinct caption.

    A pure function of the records: no seed, so every evaluation of the same data asks the same captions.
    """
    first: dict[str, tuple[str, int]] = {}
    for place, record in enumerate(records):
        if record.split == split:
            here = (record.id, place)
            first[record.caption] = min(first.get(record.caption, here), here)
    distinct = list(first.values())
    chosen = spread_places((record_id for record_id, _ in distinct), count)
    return [records[distinct[number][1]] for number in chosen]


def picture_chunks(records: RecordSet, resolution: int, size: int = 1024) -> Iterator[Tensor]:
    """All real pictures in the table's order as uint8 (<= size, 3, r, r), so that no large set fills the memory."""
    for start in range(0, len(records.table), size):
        yield to_bytes(records.pixels(records.table[start : start + size], resolution))


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
    for start in range(0, len(rows), _CHUNK):
        # Exact differences: the matrix-product form of cdist would blur near ties.
        distance = torch.cdist(rows[start : start + _CHUNK], real, compute_mode="donot_use_mm_for_euclid_dist")
        to_right = distance.masked_fill(~wanted[start : start + _CHUNK], torch.inf).amin(1, keepdim=True)
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
