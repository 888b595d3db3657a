"""Where a candidate's bytes lie: small, picklable references that a worker process reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FileMedia:
    """A file below ``root``; a name that leads out of it, also through a link, is refused."""

    root: Path
    name: Any

    def read(self) -> bytes:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError("the file's name is empty or not text")
        root, path = self.root.resolve(), (self.root / self.name).resolve()
        if not path.is_relative_to(root):
            raise ValueError("the file's name leaves the folder")
        if not path.is_file():
            raise ValueError("the file does not exist")
        return path.read_bytes()


@dataclass(frozen=True)
class BytesMedia:
    """Bytes that were read with the rest of the record."""

    data: bytes

    def read(self) -> bytes:
        return self.data
