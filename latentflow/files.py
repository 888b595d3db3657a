"""Files that are whole or absent: atomic writes, folders that appear by rename, content digests."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# What differs between two equal models: where they lay and which release wrote them.
_CONFIG_NOISE = {"_diffusers_version", "_name_or_path", "transformers_version", "name_or_path"}


def digest_folder(folder: Path) -> str:
    """Content digest of a model folder: every file by name and bytes, configs without versions and paths."""
    entries = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json" and (config := _read_object(path)) is not None:
            entries[name] = digest_json({k: v for k, v in config.items() if k not in _CONFIG_NOISE})
        else:
            entries[name] = sha256_file(path)
    return digest_json(entries)


def _read_object(path: Path) -> dict[str, Any] | None:
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else None


def digest_model(name: str) -> str:
    """What stands for a given model in a content address: a folder's content, else the hub id or built-in name."""
    return digest_folder(Path(name)) if Path(name).is_dir() else name


@contextmanager
def atomic_file(path: Path, synced: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is synced and renamed over ``path``.

    ``synced=False`` is for what is compared with a digest before it is used and can be had again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        if synced:
            _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes text so that a reader sees the old file or the new one, never half of it."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value, indented, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``folder`` that takes its place on success.

    A folder that was there before is removed only after the new one is complete and synced.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in temporary.rglob("*"):
            _sync(path)
        _sync(temporary)
        _put_in_place(temporary, folder)
        # The name too is on disk before a caller removes what the folder replaces.
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.replace(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.replace(old / folder.name)
    temporary.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Scratch:
    """A temporary folder that goes with this object, with its ``with`` block or with the process.

    What a killed process left is known by its lock, which goes with the process.
    """

    def __init__(self, prefix: str) -> None:
        self.folder, handle = _locked_folder(prefix)
        self.close = weakref.finalize(self, _drop, self.folder, handle)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def sweep(prefix: str) -> None:
        """Removes the folders of that prefix whose process is no more."""
        for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            try:
                handle = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                _drop(folder, handle)


def _locked_folder(prefix: str) -> tuple[Path, int]:
    """A new temporary folder and the handle that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        # A sweep may have found it before it was locked.
        if folder.is_dir():
            return folder, handle
        os.close(handle)


def _drop(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)


def copy_tree_or_file(source: Path, target: Path) -> None:
    """Copies a file or a whole folder. A hard link would let a write through one name change the other."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=clone_file)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        clone_file(source, target)


# linux/fs.h: share the blocks of another file until one of the two is written.
_FICLONE = 0x40049409


def clone_file(source: str | Path, target: str | Path) -> None:
    """Copies a file's bytes; where the file system can share blocks (btrfs, xfs), without taking space."""
    with open(source, "rb") as read, open(target, "wb") as write:  # noqa: PTH123
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
            return
        except OSError:
            pass
    shutil.copyfile(source, target)
