"""Rows of a run of shards of one kind, copied from memory-mapped files straight into one new tensor."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from latentflow.data.places import LocalPlace, RemotePlace, find
from latentflow.errors import LatentflowError
from latentflow.manifest import Shard

FETCHERS = 8
ATTEMPTS = 5
# Rows below this size cost less as one copy per shard and one into place; larger ones are copied one by one, by
# several threads, because one core alone does not fill the memory's bandwidth.
SMALL = 2048
COPIERS = 4
MARK_SECONDS = 10.0


@dataclass
class _Open:
    """A mapped shard: per key its rows as bytes (n, bytes per row), and what a row is."""

    path: Path
    place: LocalPlace | RemotePlace
    rows: dict[str, NDArray[np.uint8]]
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    marked: float


class MappedShards:
    """Shards one after another, as one table of rows. Each is mapped when a row of it is first asked for.

    May be used from several threads. ``places`` are where the files may lie, tried in order.
    """

    def __init__(self, shards: Sequence[Shard], places: Sequence[LocalPlace | RemotePlace]) -> None:
        self.shards = tuple(shards)
        self.remote = any(place.remote for place in places)
        self._places = places
        self._starts = np.cumsum([0, *(shard.count for shard in shards)])
        self._opened: dict[int, _Open] = {}
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def has(self, key: str) -> bool:
        return key in self.shards[0].keys

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which shard each row lies in. Raises LatentflowError for a row that there is not."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise LatentflowError(f"rows {rows.min()} to {rows.max()} were asked for, the encoded set has {len(self)}.")
        return np.searchsorted(self._starts, rows, side="right") - 1

    def at(self, rows: NDArray[np.int64]) -> "Rows":
        """Those rows (n,), to be copied key by key. Raises LatentflowError on a missing or damaged shard."""
        numbers = self.numbers(rows)
        return Rows(self.open(set(numbers.tolist())), numbers, rows - self._starts[numbers])

    def open(self, numbers: set[int]) -> dict[int, _Open]:
        """Those shards, mapped; missing ones of a remote place are fetched side by side."""
        missing = [number for number in sorted(numbers) if number not in self._opened]
        if missing and self.remote:
            with ThreadPoolExecutor(FETCHERS) as pool:
                list(pool.map(self.fetch, missing))
        with self._changing:
            for number in sorted(numbers):
                if number not in self._opened:
                    self._opened[number] = self._map(self.shards[number])
            if missing and self.remote:
                self._let_go(numbers)
            opened = {number: self._opened[number] for number in numbers}
        self._mark(opened)
        return opened

    def fetch(self, number: int) -> None:
        """Brings a shard to this machine and compares it with its digest."""
        find(self._places, self.shards[number].file, self.shards[number].sha256)

    def _map(self, shard: Shard) -> _Open:
        for _ in range(ATTEMPTS):
            path, place = find(self._places, shard.file, shard.sha256)
            try:
                with safe_open(path, framework="pt") as file:
                    tensors = {key: file.get_tensor(key) for key in shard.keys}
            except FileNotFoundError:  # another process made room in the cache at this very moment
                continue
            rows = {key: tensor.reshape(shard.count, -1).view(torch.uint8).numpy() for key, tensor in tensors.items()}
            kinds = {key: (tensor.dtype, tuple(tensor.shape[1:])) for key, tensor in tensors.items()}
            return _Open(path, place, rows, kinds, monotonic())
        raise LatentflowError(
            f"{shard.file} is dropped from the cache as fast as it arrives: raise LATENTFLOW_CACHE_GB."
        )

    def _let_go(self, needed: set[int]) -> None:
        """Unmaps what the cache has dropped, or its space on disk would stay taken."""
        for number in [n for n, shard in self._opened.items() if n not in needed and not shard.path.exists()]:
            del self._opened[number]

    def _mark(self, opened: dict[int, _Open]) -> None:
        now = monotonic()
        for shard in opened.values():
            if now - shard.marked > MARK_SECONDS:
                shard.marked = now
                shard.place.use(shard.path)


class Rows:
    """Chosen rows of mapped shards: row ``local[i]`` of shard ``numbers[i]`` for every i."""

    def __init__(self, opened: dict[int, _Open], numbers: NDArray[np.int64], local: NDArray[np.int64]) -> None:
        self._opened = opened
        self._numbers = numbers
        self._local = local

    @cached_property
    def _places(self) -> dict[int, NDArray[np.int64]]:
        """Per shard, which of the rows are its."""
        order = np.argsort(self._numbers, kind="stable")
        found, starts = np.unique(self._numbers[order], return_index=True)
        return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))

    def copy(self, key: str) -> Tensor:
        """The rows of a key (n, ...) in the stored dtype, in memory of their own."""
        sources = {number: shard.rows[key] for number, shard in self._opened.items()}
        width = next(iter(sources.values())).shape[1]
        copied = np.empty((len(self._local), width), np.uint8)
        if width >= SMALL:
            _side_by_side(lambda part: self._copy_rows(sources, copied, part), len(copied))
        elif len(sources) == 1:
            # The rows are known to be there; `clip` spares numpy a buffer between.
            np.take(next(iter(sources.values())), self._local, axis=0, out=copied, mode="clip")
        else:
            for number, places in self._places.items():
                copied[places] = sources[number][self._local[places]]
        return self._typed(copied, key)

    def _copy_rows(self, sources: dict[int, NDArray[np.uint8]], copied: NDArray[np.uint8], part: range) -> None:
        numbers, local = self._numbers[part.start : part.stop].tolist(), self._local[part.start : part.stop].tolist()
        for place, number, row in zip(part, numbers, local, strict=True):
            copied[place] = sources[number][row]

    def copy_either(self, key: str, other: str, which: NDArray[np.bool_]) -> Tensor:
        """As ``copy``, but row i is that of ``other`` where ``which[i]``."""
        names = [other if chosen else key for chosen in which.tolist()]
        places = zip(self._numbers.tolist(), names, self._local.tolist(), strict=True)
        return self._typed(np.stack([self._opened[number].rows[name][row] for number, name, row in places]), key)

    def _typed(self, copied: NDArray[np.uint8], key: str) -> Tensor:
        dtype, shape = next(iter(self._opened.values())).kinds[key]
        return torch.from_numpy(copied).view(dtype).reshape(len(copied), *shape)


def _side_by_side(work: Callable[[range], None], count: int) -> None:
    """Does ``work`` on equal parts of ``range(count)`` at once."""
    copiers = _copiers()
    size = -(-count // COPIERS)
    for done in [copiers.submit(work, range(start, min(start + size, count))) for start in range(0, count, size)]:
        done.result()


@cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(COPIERS, len(os.sched_getaffinity(0))), "copy rows")
