"""Rows of a run of shards of one kind, copied from memory-mapped files straight into one new tensor."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
# Rows below this size cost less as one copy per shard and one into place; larger ones are copied one by one.
SMALL = 2048
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

    def take(self, rows: NDArray[np.int64], *keys: str, which: NDArray[np.int64] | None = None) -> Tensor:
        """Rows (n,) of a key, in the stored dtype; of several keys, row i is that of ``keys[which[i]]``."""
        numbers = self.numbers(rows)
        opened = self.open(set(numbers.tolist()))
        local = rows - self._starts[numbers]
        sources = {n * len(keys) + i: opened[n].rows[key] for n in opened for i, key in enumerate(keys)}
        taken = _gather(sources, numbers if which is None else numbers * len(keys) + which, local)
        dtype, shape = next(iter(opened.values())).kinds[keys[0]]
        return torch.from_numpy(taken).view(dtype).reshape(len(rows), *shape)

    def open(self, numbers: set[int]) -> dict[int, _Open]:
        """Those shards, mapped; missing ones of a remote place are fetched side by side."""
        missing = sorted(numbers - self._opened.keys())
        if missing and self.remote:
            with ThreadPoolExecutor(FETCHERS) as pool:
                list(pool.map(self.fetch, missing))
        with self._changing:
            for number in sorted(numbers - self._opened.keys()):
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
        for _ in range(FETCHERS):
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


def _gather(
    sources: dict[int, NDArray[np.uint8]], numbers: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Row ``rows[i]`` of ``sources[numbers[i]]`` for every i, (n, bytes)."""
    width = next(iter(sources.values())).shape[1]
    taken = np.empty((len(rows), width), np.uint8)
    if len(sources) == 1:
        (source,) = sources.values()
        # The rows are known to be there; `clip` spares numpy a buffer between.
        np.take(source, rows, axis=0, out=taken, mode="clip")
    elif width < SMALL:
        for number, source in sources.items():
            places = np.flatnonzero(numbers == number)
            taken[places] = source[rows[places]]
    else:
        for place, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            taken[place] = sources[number][row]
    return taken
