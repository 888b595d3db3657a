"""Folders that are whole or absent elsewhere: behind a URL, the files and last ``files.json`` with their sha256.

There, a folder without its ``files.json`` is not there yet, or no more.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, TypeVar

from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, sha256_file, write_json

FILES = "files.json"
T = TypeVar("T")


class DamagedFolderError(LatentflowError):
    """A file is missing or holds other bytes than were written; the message names it."""


def seal(folder: Path) -> None:
    """Writes down what the folder's files must be found to be."""
    write_json(folder / FILES, _listed(folder))


def compare(folder: Path) -> None:
    """Compares a sealed folder's files with their digests. Raises DamagedFolderError."""
    _compare(str(folder), (folder / FILES).read_bytes, lambda name: sha256_file(folder / name))


def put(remote: RemoteFolder, folder: Path, name: str = "") -> None:
    """Copies a sealed folder to ``name`` within ``remote``, in place of what is there."""
    _send(remote, name, folder, folder / FILES)


def get(remote: RemoteFolder, folder: Path, name: str = "") -> None:
    """Copies what ``put`` wrote into ``folder``, which exists. Raises DamagedFolderError where it is not whole."""

    def fetch(file: str) -> str:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return remote.fetch(f"{_start(name)}{file}", path)

    def listed() -> bytes:
        fetch(FILES)
        return (folder / FILES).read_bytes()

    _compare(f"{remote}/{name}".rstrip("/"), listed, fetch)


def remove(remote: RemoteFolder, name: str = "") -> None:
    """Removes what ``put`` wrote, or a part of it, its list first."""
    start = _start(name)
    for found in sorted((n for n in remote.names() if n.startswith(start)), key=lambda n: n != f"{start}{FILES}"):
        remote.remove(found)


def is_there(place: Path | str) -> bool:
    """Whether a place, a folder of this machine or behind a URL, holds what ``deliver`` brought."""
    folder = local_folder(place)
    return folder.is_dir() if folder else FILES in RemoteFolder(str(place)).names()


def deliver(folder: Path, place: Path | str) -> None:
    """Copies a folder to a place, of this machine or behind a URL, where it is whole or absent at any time.

    Raises LatentflowError where a URL cannot be written to.
    """
    target = local_folder(place)
    if target is not None:
        with atomic_folder(target) as temporary:
            copy_tree_or_file(folder, temporary)
        return
    remote = RemoteFolder(str(place))
    with TemporaryDirectory() as scratch:
        write_json(Path(scratch) / FILES, _listed(folder))
        try:
            _send(remote, "", folder, Path(scratch) / FILES)
        except FileNotFoundError as error:
            raise LatentflowError(f"{remote} cannot be written: {reason(error)} Is its bucket there?") from error


def collect(place: Path | str, folder: Path) -> None:
    """Copies what ``deliver`` brought to a place into ``folder``, which appears whole.

    What comes from a URL is compared with its digests. Raises DamagedFolderError naming a missing or damaged file.
    """
    source = local_folder(place)
    with atomic_folder(folder) as temporary:
        if source is not None:
            copy_tree_or_file(source, temporary)
        else:
            get(RemoteFolder(str(place)), temporary)
            (temporary / FILES).unlink()


def _send(remote: RemoteFolder, name: str, folder: Path, listed: Path) -> None:
    # Of a folder that is written anew, a reader must not see some old and some new files.
    remove(remote, name)
    for path in _files_in(folder):
        remote.put(path, f"{_start(name)}{path.relative_to(folder).as_posix()}")
    remote.put(listed, f"{_start(name)}{FILES}")


def _listed(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files_in(folder)}


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILES)


def _start(name: str) -> str:
    """How the names of a folder's files begin."""
    return f"{name}/" if name else ""


def _compare(origin: str, listed: Callable[[], bytes], digest: Callable[[str], str]) -> None:
    """Compares the digests of the files of ``origin`` with those that are listed in its files.json."""
    for name, sha256 in _digests(origin, _read(origin, FILES, listed)).items():
        if _read(origin, name, partial(digest, name)) != sha256:
            _refuse(origin, name, "is damaged: it holds other bytes than were written")


def _read(origin: str, name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        _refuse(origin, name, "is missing")
    except OSError as error:
        raise LatentflowError(f"{origin}/{name} cannot be read: {reason(error)}") from error


def _digests(origin: str, text: bytes) -> dict[str, str]:
    """What a files.json says: names of files within its folder and their sha256."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(sha256, str) for sha256 in value.values()):
        _refuse(origin, FILES, "is damaged")
    if any(name.startswith("/") or ".." in name.split("/") for name in value):
        _refuse(origin, FILES, "names a file outside its folder")
    return value


def _refuse(origin: str, name: str, fault: str) -> NoReturn:
    raise DamagedFolderError(f"{origin} cannot be used: its file {name} {fault}.")


def reason(error: Exception) -> str:
    """An error as the end of a sentence."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{(text or type(error).__name__).rstrip('.')}."
