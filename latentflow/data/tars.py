"""Numbered tars of at most about a gibibyte, without times or owners: equal members give equal bytes."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

MAX_BYTES = 2**30
FOLDER = "media"


def tar_name(number: int) -> str:
    """A tar's path in the records folder."""
    return f"{FOLDER}/{number:05d}.tar"


@dataclass(frozen=True)
class Place:
    """Where a member's bytes lie: the tar's number, offset and size in bytes."""

    media: int
    offset: int
    size: int


class TarWriter:
    """Appends members below ``folder``, a new tar whenever the next member would pass ``max_bytes``."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._number = -1
        self._file: BinaryIO | None = None
        self._end = 0
        (folder / FOLDER).mkdir()

    def __enter__(self) -> Self:
        self._next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, name: str, data: bytes) -> Place:
        """Appends a member; its place is that of its bytes, behind the header."""
        assert self._file is not None
        info = tarfile.TarInfo(name)
        info.size = len(data)
        # The standard library's own writer would keep every member in memory.
        header = info.tobuf(tarfile.GNU_FORMAT)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        if self._end and self._end + len(header) + len(data) > self._max_bytes:
            self._next()
        self._file.writelines((header, data, padding))
        place = Place(self._number, self._end + len(header), len(data))
        self._end = place.offset + len(data) + len(padding)
        return place

    def _next(self) -> None:
        self._close()
        self._number += 1
        self._file = (self._folder / tar_name(self._number)).open("wb")
        self._end = 0

    def _close(self) -> None:
        if self._file is not None:
            ending = 2 * tarfile.BLOCKSIZE
            self._file.write(bytes(ending + -(self._end + ending) % tarfile.RECORDSIZE))
            self._file.close()
            self._file = None
