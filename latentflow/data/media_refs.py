"""Where a candidate's bytes lie: small, picklable references that a worker process reads.

Every ``read`` gives the bytes as they came, or raises OSError or ValueError with the reason why it cannot.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A worker holds a medium whole; what is larger is no training picture or clip.
MAX_BYTES = 2**30
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
CLIP_SUFFIXES = ("mp4", "webm", "mov", "mkv")
MEDIA_SUFFIXES = (*PICTURE_SUFFIXES, *CLIP_SUFFIXES)


@dataclass(frozen=True)
class FileMedia:
    """A file below ``root``; a name that leads out of it, also through a link, is refused."""

    root: Path
    name: Any

    def read(self) -> bytes:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError("the file's name is empty or not text")
        try:
            root, path = self.root.resolve(), (self.root / self.name).resolve()
        except RuntimeError:
            raise ValueError("the file's name is a link that leads to itself") from None
        if not path.is_relative_to(root):
            raise ValueError("the file's name leaves the folder")
        if not path.is_file():
            raise ValueError("the file does not exist")
        check_size(path.stat().st_size)
        return path.read_bytes()


@dataclass(frozen=True)
class SliceMedia:
    """``size`` bytes from ``offset`` of a local file: a member of an uncompressed tar."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        check_size(self.size)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError(f"{self.path.name} ends before this member does")
        return data


@dataclass(frozen=True)
class BytesMedia:
    """Bytes that were read with the rest of the record."""

    data: bytes

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class RefusedMedia:
    """Media that the source itself found unusable."""

    reason: str

    def read(self) -> bytes:
        raise ValueError(self.reason)


def check_size(size: int) -> None:
    """Raises ValueError when a medium of ``size`` bytes is more than a worker should hold."""
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size:,} bytes, above {MAX_BYTES:,}")
