"""Duplicates, found as records come: equal bytes, and pictures that were saved, scaled or compressed again.

Two pictures are near when their 64-bit DCT hashes differ in few bits and their colours, averaged over an 8x8 grid,
agree everywhere: the hash alone sees no colour and little detail, and would call hearts of two colours one picture.
Of hashes that differ in at most d bits, one of d + 1 bands is equal, so only records that share a band are compared.
"""

from array import array
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GRID = 8
COLOURS = GRID * GRID * 3
# Saving a picture again moved the mean colour of a cell by up to 12 levels; another picture moves some cell by more.
_COLOUR_TOLERANCE = 12
# A picture whose grey levels spread less than this says nothing by its layout.
_LEAST_SPREAD = 3.0


@dataclass(frozen=True)
class Look:
    """What near duplicates are told by: the hash, and the mean colours as 192 bytes."""

    hash: int
    colours: bytes


@dataclass(frozen=True)
class Duplicate:
    """A line of duplicates.jsonl: ``id`` repeats ``of``; ``distance`` is in bits of the hash."""

    id: str
    of: str
    kind: Literal["exact", "near"]
    distance: int


def look(small: NDArray[np.uint8]) -> Look | None:
    """The look of a picture given as (32, 32, 3) uint8; None for a nearly constant one, whose hash would be noise.

    Bit k says whether the k-th of the 64 slowest DCT coefficients (without the mean) of the grey picture is above their
    median. All arithmetic is in integers, so every machine finds the same bits.
    """
    grey = small.astype(np.int64) @ np.array([299, 587, 114])
    if grey.std() < 1000 * _LEAST_SPREAD:
        return None
    rows, columns = _SLOWEST
    coefficients = (_DCT @ grey @ _DCT.T)[rows, columns]
    bits = np.packbits(coefficients > np.sort(coefficients)[len(coefficients) // 2 - 1])
    cell = len(small) // GRID
    means = small.reshape(GRID, cell, GRID, cell, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return Look(int.from_bytes(bits.tobytes()), means.tobytes())


def _dct_rows(count: int, side: int) -> NDArray[np.int64]:
    angles = np.outer(np.arange(count), 2 * np.arange(side) + 1) * np.pi / (2 * side)
    return np.round(np.cos(angles) * 4096).astype(np.int64)


_DCT = _dct_rows(12, 32)
_ZIGZAG = sorted((u + v, u, v) for u in range(12) for v in range(12) if u + v)[:64]
_SLOWEST = tuple(np.array([place[axis] for place in _ZIGZAG]) for axis in (1, 2))


class DuplicateFinder:
    """All records so far, about 700 bytes each; ``find`` before ``add``.

    ``distance``: bits in which the hashes of near duplicates may differ; the search slows down as it grows.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._exact: dict[bytes, str] = {}
        self._bands = [_Band(mask) for mask in _masks(distance + 1)]
        self._ids: list[str] = []
        self._colours = bytearray()

    def find(self, record_id: str, sha256: bytes, look: Look | None) -> Duplicate | None:
        """The earlier record that this one repeats: of equal bytes, else the nearest, the first of equally near."""
        if (of := self._exact.get(sha256[:16])) is not None:
            return Duplicate(record_id, of, "exact", 0)
        nearest = self._nearest(look) if look else None
        if nearest is None:
            return None
        distance, place = nearest
        return Duplicate(record_id, self._ids[place], "near", distance)

    def add(self, record_id: str, sha256: bytes, look: Look | None) -> None:
        """Remembers a record; one of bytes that are known already changes nothing."""
        if sha256[:16] in self._exact:
            return
        self._exact[sha256[:16]] = record_id
        if look is None:
            return
        for band in self._bands:
            band.add(look.hash, len(self._ids))
        self._ids.append(record_id)
        self._colours += look.colours

    def _nearest(self, look: Look) -> tuple[int, int] | None:
        """(distance, place) of the nearest record of the same colours that shares a band."""
        found = [close for band in self._bands if (close := band.within(look.hash, self._distance)) is not None]
        if not found:
            return None
        distances, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        colours = np.frombuffer(self._colours, np.uint8).reshape(-1, COLOURS)[places].astype(np.int16)
        same = np.abs(colours - np.frombuffer(look.colours, np.uint8)).max(axis=1) <= _COLOUR_TOLERANCE
        return min(zip(distances[same].tolist(), places[same].tolist(), strict=True), default=None)


def _masks(bands: int) -> list[int]:
    """Every ``bands``-th bit each: neighbouring bits are of like frequency, and a band should mix slow and fast."""
    return [sum(1 << bit for bit in range(start, 64, bands)) for start in range(bands)]


class _Band:
    """Hashes by their bits under a mask, packed so that a million records stay small."""

    def __init__(self, mask: int) -> None:
        self._mask = mask
        self._members: dict[int, tuple[array[int], array[int]]] = {}

    def add(self, value: int, place: int) -> None:
        hashes, places = self._members.setdefault(value & self._mask, (array("Q"), array("I")))
        hashes.append(value)
        places.append(place)

    def within(self, value: int, distance: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]] | None:
        """Distances and places of the hashes in this band that differ from ``value`` in at most ``distance`` bits."""
        if (members := self._members.get(value & self._mask)) is None:
            return None
        distances = np.bitwise_count(np.frombuffer(members[0], np.uint64) ^ np.uint64(value))
        if distances.min() > distance:
            return None
        close = distances <= distance
        return distances[close], np.frombuffer(members[1], np.uint32)[close]
