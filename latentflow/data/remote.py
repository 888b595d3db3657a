"""A folder behind an fsspec URL: its files are listed, fetched, put and removed, and faults are told with the URL."""

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from latentflow.data.locations import without_secrets
from latentflow.errors import LatentflowError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK = 2**26


def local_folder(place: Path | str) -> Path | None:
    """The folder of this machine that a path or ``file://...`` names; None where it is another URL."""
    text = str(place)
    return Path(text.removeprefix("file://")) if "://" not in text or text.startswith("file://") else None


def try_writing(place: Path | str) -> None:
    """Writes, reads and removes a small file in a folder or behind a URL. Raises LatentflowError where that fails."""
    folder, name = local_folder(place), f".latentflow-{uuid4().hex}"
    with tempfile.NamedTemporaryFile() as file:
        file.write(name.encode())
        file.flush()
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.name, folder / name)
                (folder / name).unlink()
                return
            remote = RemoteFolder(str(place))
            remote.put(Path(file.name), name)
            read = remote.read(name)
            remote.remove(name)
        except OSError as error:
            raise LatentflowError(without_secrets(f"{place} cannot be written: {error}.")) from error
    if read != name.encode():
        raise LatentflowError(without_secrets(f"{place} gives back other bytes than were written there."))


class RemoteFolder:
    """What fsspec opens, such as ``s3://bucket/folder``; credentials come from the environment.

    It is opened when it is first asked, once for all threads.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[AbstractFileSystem, str] | None = None
        self._opening = threading.Lock()

    def __str__(self) -> str:
        return without_secrets(self.url)

    def names(self) -> list[str]:
        """Every file at any depth, relative to the folder; none where there is no such folder. Asks anew each time."""
        files, root = self._files()
        files.invalidate_cache()
        try:
            found: list[str] = self._asked("", "listed", partial(files.find, root))
        except FileNotFoundError:
            return []
        return [path.lstrip("/").removeprefix(root.lstrip("/")).lstrip("/") for path in found]

    def read(self, name: str) -> bytes:
        """A small file's bytes. Raises FileNotFoundError."""
        files, root = self._files()
        data: bytes = self._asked(name, "read", partial(files.cat_file, f"{root}/{name}"))
        return data

    def fetch(self, name: str, path: Path) -> str:
        """Copies a file to ``path``, in a few large requests: small ones cost more time than their bytes.

        Returns the sha256 of the bytes, which are at hand here. Raises FileNotFoundError.
        """
        files, root = self._files()
        place = f"{root}/{name}"
        digest, start, size = hashlib.sha256(), 0, BLOCK
        with path.open("wb") as copy:
            while start < size:
                end = min(start + BLOCK, size)
                block = self._asked(name, "read", partial(files.cat_file, place, start=start, end=end))
                digest.update(block)
                copy.write(block)
                start += BLOCK
                # Only a file that fills the first request is worth a question about its size.
                if size == BLOCK == len(block):
                    size = int(self._asked(name, "read", lambda: files.info(place)["size"]))
        return digest.hexdigest()

    def fetch_folder(self, name: str, path: Path) -> None:
        """Copies a folder with everything below it to ``path``. Raises FileNotFoundError."""
        files, root = self._files()
        self._asked(name, "read", partial(files.get, f"{root}/{name}", str(path), recursive=True))

    def put(self, path: Path, name: str) -> None:
        """Copies a file from ``path``, piece by piece. Raises FileNotFoundError where the bucket is missing."""
        files, root = self._files()
        self._asked(name, "written", partial(files.put_file, str(path), f"{root}/{name}"))

    def remove(self, name: str) -> None:
        """Removes a file. Raises FileNotFoundError, where the store tells."""
        files, root = self._files()
        self._asked(name, "removed", partial(files.rm_file, f"{root}/{name}"))

    def _asked(self, name: str, deed: str, ask: Callable[[], Any]) -> Any:
        """The answer of the file system; what goes wrong on the way is told with the URL."""
        try:
            return ask()
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has errors of its own
            place = f"{self.url}/{name}".rstrip("/")
            reason = str(error) or type(error).__name__
            raise LatentflowError(without_secrets(f"{place} cannot be {deed}: {reason}.")) from error

    def _files(self) -> "tuple[AbstractFileSystem, str]":
        with self._opening:
            if self._opened is None:
                try:
                    from fsspec.core import url_to_fs

                    files, root = url_to_fs(self.url)
                except (ImportError, ValueError) as error:
                    raise LatentflowError(without_secrets(f"{self.url} cannot be opened: {error}.")) from error
                self._opened = files, root.rstrip("/")
            return self._opened
