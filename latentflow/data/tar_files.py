"""Tar files on this machine or behind a URL: found by a pattern, and walked member by member without unpacking."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from latentflow.data.locations import spell_out, without_secrets
from latentflow.data.media_refs import BytesMedia, SliceMedia
from latentflow.errors import LatentflowError
from latentflow.files import digest_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
# Bytes asked for at once from a store; a tar is read from its start to its end.
_BLOCK = 8 * 2**20


class _StrictMember(tarfile.TarInfo):
    """A member whose broken header is an error: tarfile takes one after the first for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


@dataclass(frozen=True)
class Tar:
    """A tar at ``path`` of a file system; ``name`` is its place below the pattern's fixed folder."""

    files: "AbstractFileSystem"
    path: str
    name: str
    size: int | None
    etag: str

    @property
    def stem(self) -> str:
        """The name without its ending."""
        ending = next((suffix for suffix in SUFFIXES if self.name.endswith(suffix)), "")
        return self.name.removesuffix(ending)

    @contextmanager
    def opened(self) -> Iterator["OpenTar"]:
        """The tar at its first member. Raises tarfile.TarError if it is none."""
        local = _local(self.files) and not _is_compressed(Path(self.path))
        file = self.files.open(self.path, "rb", **({} if _local(self.files) else {"block_size": _BLOCK}))
        mode = "r:" if local else "r|*"
        with file, tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictMember) as tar:  # type: ignore[call-overload]
            yield OpenTar(tar, Path(self.path) if local else None)


@dataclass(frozen=True)
class OpenTar:
    """A tar while it is read; ``slices`` is its path if workers can read members from it by themselves."""

    tar: tarfile.TarFile
    slices: Path | None

    def members(self) -> Iterator[tarfile.TarInfo]:
        """The members in order. Raises tarfile.TarError or EOFError where the tar breaks off."""
        while (member := self.tar.next()) is not None:
            yield member
            # tarfile would keep all of them.
            self.tar.members.clear()  # type: ignore[attr-defined]

    def media(self, member: tarfile.TarInfo) -> SliceMedia | BytesMedia:
        """The bytes of the current member, or where they lie."""
        if self.slices:
            return SliceMedia(self.slices, member.offset_data, member.size)
        return BytesMedia(self.read(member))

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of the current member, a regular file."""
        file = self.tar.extractfile(member)
        return file.read() if file else b""


def find_tars(pattern: str) -> list[Tar]:
    """The tars that a path, pattern or URL names, in its order. Raises LatentflowError if one is not there."""
    urls = spell_out(pattern)
    try:
        fixed = _fixed_folder(pattern)
        found = {url: _found(url, fixed) for url in urls}
    except ImportError as error:
        raise LatentflowError(f"ingest.source: {error}, or one of the extras latentflow[s3] and [gcs].") from None
    # Each store's client raises its own.
    except Exception as error:
        shown = without_secrets(f"{pattern} cannot be listed ({type(error).__name__}: {error})")
        raise LatentflowError(f"ingest.source: {shown}.") from None
    if missing := [url for url, tars in found.items() if not tars]:
        shown = without_secrets(", ".join(missing[:3]))
        raise LatentflowError(f"ingest.source: {len(missing)} of the tars are not there: {shown}.")
    return list({tar.path: tar for tars in found.values() for tar in tars}.values())


def tars_in(folder: Path) -> list[Tar]:
    """The tars of a local folder, by name."""
    from fsspec.implementations.local import LocalFileSystem

    paths = sorted(path for path in folder.resolve().iterdir() if path.name.endswith(SUFFIXES) and path.is_file())
    return [_tar(LocalFileSystem(), str(path), str(folder.resolve())) for path in paths]


def revision_of(tars: list[Tar]) -> str:
    """A digest over names and sizes, and over the store's own digests where it keeps some."""
    return digest_json([[tar.name, tar.size, tar.etag] for tar in tars])[:16]


def _found(url: str, fixed: str) -> list[Tar]:
    """The tars of a path or URL without braces: those that its wildcards match, or the one that it is."""
    import fsspec

    files, path = fsspec.url_to_fs(url)
    if files.isfile(path):
        return [_tar(files, path, fixed)]
    # In a web address a question mark begins the query, and there is nothing to list.
    has_wildcards = not path.startswith(("http://", "https://")) and any(letter in path for letter in "*?[")
    return [_tar(files, each, fixed) for each in sorted(files.glob(path))] if has_wildcards else []


def _tar(files: "AbstractFileSystem", path: str, fixed: str) -> Tar:
    info = files.info(path)
    etag = "" if _local(files) else str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
    name = without_secrets(path).removeprefix(fixed).lstrip("/")
    return Tar(files, path, name, info.get("size"), etag.strip('"'))


def _fixed_folder(pattern: str) -> str:
    """The folder before the first brace or wildcard, as the file system spells it; empty if there is none."""
    import fsspec

    fixed = pattern
    for letter in "{*?[":
        fixed = fixed.partition(letter)[0]
    folder = fixed.rpartition("/")[0]
    has_none = "://" in pattern and folder.count("/") < 2
    return "" if has_none else without_secrets(fsspec.url_to_fs(folder or ".")[1])


def _local(files: "AbstractFileSystem") -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith(_COMPRESSED)
