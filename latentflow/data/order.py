"""In which order training sees the rows of a split: a function of (seed, step), with nothing to save or replay."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.devices import step_generator

AHEAD = 16


class Order:
    """Batches of one bucket each; buckets take turns in proportion to their rows.

    Every bucket has its own endless sequence of shuffled epochs, from which its batches are cut one after another; a
    batch may reach from one epoch into the next. ``counts`` are, per bucket, the rows of each of its shards. With
    ``window`` 0 an epoch is a permutation of the whole bucket; with n its shards are shuffled, and rows only among n
    consecutive shards of that, so that few shards are needed at a time. What is remembered between calls only saves
    time.
    """

    def __init__(self, seed: int, batch_size: int, counts: tuple[tuple[int, ...], ...], window: int = 0) -> None:
        self._seed = seed
        self._size = batch_size
        self._epochs = [_Epochs(seed, bucket, shards, window) for bucket, shards in enumerate(counts)]
        self._turns = [max(1, round(sum(shards) / batch_size)) for shards in counts]
        self._cycle = _Cycle(-1, torch.empty(0), torch.empty(0))

    def at(self, step: int) -> tuple[int, Tensor]:
        """The bucket of the global batch of ``step``, from 0, and its rows (batch_size,) int64 in that bucket."""
        bucket, number = self._turn(step)
        return bucket, self._epochs[bucket].rows(number * self._size, self._size)

    @property
    def horizon(self) -> int:
        """How many steps ahead of the one that is read shards are worth fetching: as long as the windows last."""
        return max(AHEAD, round(sum(epochs.window_rows for epochs in self._epochs) / self._size))

    def _turn(self, step: int) -> tuple[int, int]:
        """Whose turn it is, and the how-many-eth batch of that bucket this is since the beginning."""
        if len(self._turns) == 1:
            return 0, step
        number, place = divmod(step, sum(self._turns))
        if number != self._cycle.number:
            self._cycle = _Cycle.shuffled(self._seed, number, self._turns)
        bucket = int(self._cycle.buckets[place])
        return bucket, number * self._turns[bucket] + int(self._cycle.before[place])


@dataclass(frozen=True)
class _Cycle:
    """One round of turns: the bucket of each, and how many turns that bucket had before it in this round."""

    number: int
    buckets: Tensor
    before: Tensor

    @classmethod
    def shuffled(cls, seed: int, number: int, turns: list[int]) -> "_Cycle":
        ordered = torch.repeat_interleave(torch.tensor(turns))
        buckets = ordered[torch.randperm(len(ordered), generator=step_generator(seed, "buckets", number))]
        before = torch.empty_like(buckets)
        for bucket, count in enumerate(turns):
            before[buckets == bucket] = torch.arange(count)
        return cls(number, buckets, before)


class _Epochs:
    """The endless sequence of one bucket's shuffled epochs."""

    def __init__(self, seed: int, bucket: int, shards: tuple[int, ...], window: int) -> None:
        self._seed = seed
        # The first bucket's stream has the name that it had when there was one.
        self._stream = f"order/{bucket}" if bucket else "order"
        self._counts = shards
        self._starts = torch.tensor(shards).cumsum(0) - torch.tensor(shards)
        self._total = sum(shards)
        self._window = min(window or len(shards), len(shards))
        self._whole = window == 0
        self._epoch, self._epoch_shards, self._ends = -1, torch.empty(0), torch.empty(0)
        self._part, self._part_rows = (-1, -1), torch.empty(0)

    @property
    def window_rows(self) -> float:
        return 0 if self._whole else self._window * self._total / len(self._counts)

    def rows(self, start: int, count: int) -> Tensor:
        """Rows of samples start ... start + count - 1 of the sequence."""
        pieces = []
        while count:
            epoch, offset = divmod(start, self._total)
            piece = self._from(epoch, offset)[:count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return torch.cat(pieces)

    def _from(self, epoch: int, offset: int) -> Tensor:
        """The epoch's rows from ``offset`` to the end of its window."""
        if epoch != self._epoch:
            self._enter(epoch)
        part = int(torch.searchsorted(self._ends, offset, right=True))
        if (epoch, part) != self._part:
            self._part, self._part_rows = (epoch, part), self._shuffled(epoch, part)
        return self._part_rows[offset - (int(self._ends[part - 1]) if part else 0) :]

    def _enter(self, epoch: int) -> None:
        """Shuffles the shards of an epoch and finds where its windows end."""
        count = len(self._counts)
        generator = step_generator(self._seed, f"{self._stream}/shards", epoch)
        self._epoch_shards = torch.arange(count) if self._whole else torch.randperm(count, generator=generator)
        ends = torch.tensor(self._counts)[self._epoch_shards].cumsum(0)
        last = torch.arange(self._window, count + self._window, self._window).clamp(max=count) - 1
        self._epoch, self._ends = epoch, ends[last]

    def _shuffled(self, epoch: int, part: int) -> Tensor:
        """The rows of one window of an epoch, shuffled."""
        shards = self._epoch_shards[part * self._window : (part + 1) * self._window].tolist()
        rows = torch.cat([torch.arange(self._counts[s]) + self._starts[s] for s in shards])
        stream = self._stream if self._whole else f"{self._stream}/{part}"
        return rows[torch.randperm(len(rows), generator=step_generator(self._seed, stream, epoch))]
