"""Where the files of a set lie: folders of this machine, or an fsspec URL that is read through the cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from latentflow.data.cache import Cache
from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, sha256_file
from latentflow.manifest import FILE, EncodedManifest


class Place(Protocol):
    """One folder with files of a set, here or elsewhere."""

    def find(self, name: str, sha256: str) -> Path | None:
        """A local path of the file, whose bytes were compared with ``sha256``; None where the place has no such file.

        Raises LatentflowError when the place has other bytes under that name.
        """

    def use(self, path: Path) -> None:
        """Says that a file which ``find`` gave is still being read."""

    def with_folders(self, names: Sequence[str], digest: str) -> Path | None:
        """A local folder with these folders of the set of that digest; None where the place has not all of them."""


def open_place(place: Path | str) -> "LocalPlace | RemotePlace":
    """A folder, ``file://...``, or what fsspec opens, such as ``s3://bucket/folder``."""
    if (folder := local_folder(place)) is not None:
        return LocalPlace(folder)
    return RemotePlace(str(place), Cache.from_environment())


class LocalPlace:
    """A folder of this machine; a file is compared with its digest once, when it is first found."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: set[str] = set()

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, name: str, sha256: str) -> Path | None:
        path = self.folder / name
        if not path.is_file():
            return None
        if name not in self._checked:
            if (found := sha256_file(path)) != sha256:
                raise LatentflowError(
                    f"{path} is not the file that was encoded (sha256 {found}, expected {sha256}); run `latentflow "
                    "encode` again."
                )
            self._checked.add(name)
        return path

    def use(self, path: Path) -> None:
        """Nothing is dropped from a folder."""

    def with_folders(self, names: Sequence[str], _digest: str) -> Path | None:
        return self.folder if all((self.folder / name).is_dir() for name in names) else None


class RemotePlace(RemoteFolder):
    """A folder behind an fsspec URL; its files come through the cache, where their digest is checked on arrival."""

    remote = True

    def __init__(self, url: str, cache: Cache) -> None:
        super().__init__(url)
        self.cache = cache

    def find(self, name: str, sha256: str) -> Path | None:
        try:
            return self.cache.get(sha256, f"{self}/{name}", lambda path: self.fetch(name, path))
        except FileNotFoundError:
            return None

    def use(self, path: Path) -> None:
        self.cache.use(path)

    def with_folders(self, names: Sequence[str], digest: str) -> Path | None:
        folder = self.cache.folder / "sets" / digest
        if not folder.is_dir():
            try:
                with atomic_folder(folder) as temporary:
                    for name in names:
                        self.fetch_folder(name, temporary / name)
            except FileNotFoundError:
                return None
        return folder


def read_manifest(place: Path | str) -> EncodedManifest:
    """The manifest of the encoded set in a folder or behind a URL. Raises LatentflowError where there is none."""
    opened = open_place(place)
    if isinstance(opened, LocalPlace):
        return EncodedManifest.read(opened.folder)
    try:
        return EncodedManifest.parse(opened.read(FILE), f"{opened}/{FILE}")
    except FileNotFoundError:
        raise LatentflowError(
            f"{opened} holds no {FILE}: upload the whole folder that `latentflow encode` wrote."
        ) from None


def find(
    places: Sequence["LocalPlace | RemotePlace"], name: str, sha256: str
) -> tuple[Path, "LocalPlace | RemotePlace"]:
    """The first place's copy of a file. Raises LatentflowError when none has it."""
    for place in places:
        if path := place.find(name, sha256):
            return path, place
    shown = ", ".join(map(str, places))
    raise LatentflowError(f"{name} (sha256 {sha256}) is missing in {shown}; run `latentflow encode` again.")
