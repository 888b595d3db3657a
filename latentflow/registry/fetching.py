"""A folder of an MLflow store to the disk, file by file: with a bar, and going on where an earlier try broke off."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from latentflow.errors import RegistryError
from latentflow.files import atomic_folder, write_text
from latentflow.progress import track
from latentflow.registry import store
from latentflow.workspace import tracking_uri

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

MARK = ".latentflow-pulled"


class _File(NamedTuple):
    """A file of the store's folder, by its path in it, and its bytes."""

    path: str
    size: int


def fetch(source: str, target: Path, mark: str) -> int:
    """Makes ``target`` the store's folder ``source`` and returns how many files had to be downloaded for that.

    ``mark`` tells one content from another: a target that holds it whole is left as it is. Files wait in a hidden
    folder beside the target until all are there; after a failure the next call goes on with those that are.
    Raises RegistryError when the store has no such folder.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = target.parent / f".{target.name}.{mark}.partial"
    with FileLock(f"{waiting}.lock"):
        if _is_whole(target, mark):
            return 0
        repository = _repository(source)
        files = _files(repository)
        if not files:
            raise RegistryError(f"{store.shown(source)} holds no files: the model was deleted from the store.")
        missing = [file for file in files if not _is_there(waiting, file)]
        total = sum(file.size for file in missing) / 1e6
        for file in track(missing, f"pulling {total:.0f} MB", unit="files"):
            _download(repository, file, waiting)
        _put_in_place(waiting, files, target, mark)
    Path(f"{waiting}.lock").unlink(missing_ok=True)
    return len(missing)


def _is_whole(target: Path, mark: str) -> bool:
    """Whether a finished fetch of that mark lies there, all of its files in their sizes."""
    try:
        first, *lines = (target / MARK).read_text(encoding="utf-8").splitlines()
        files = [_File(path, int(size)) for size, path in (line.split(" ", 1) for line in lines)]
    except (OSError, ValueError):
        return False
    return first == mark and all(_is_there(target, file) for file in files)


def _is_there(folder: Path, file: _File) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


def _repository(source: str) -> "ArtifactRepository":
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(source, tracking_uri=tracking_uri())


def _files(repository: "ArtifactRepository", folder: str | None = None) -> list[_File]:
    found: list[_File] = []
    for entry in repository.list_artifacts(folder):
        found += _files(repository, entry.path) if entry.is_dir else [_File(entry.path, int(entry.file_size or 0))]
    return found


def _download(repository: "ArtifactRepository", file: _File, waiting: Path) -> None:
    """One file, under its name only when it is complete."""
    fresh = waiting / ".fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with store.environment("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"):
        got = Path(repository.download_artifacts(file.path, dst_path=str(fresh)))
    if (size := got.stat().st_size) != file.size:
        raise OSError(f"{file.path} came with {size} of {file.size} bytes")
    (waiting / file.path).parent.mkdir(parents=True, exist_ok=True)
    got.replace(waiting / file.path)
    shutil.rmtree(fresh)


def _put_in_place(waiting: Path, files: list[_File], target: Path, mark: str) -> None:
    lines = [mark, *(f"{file.size} {file.path}" for file in files)]
    with atomic_folder(target) as folder:
        for file in files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (waiting / file.path).replace(folder / file.path)
        write_text(folder / MARK, "\n".join(lines) + "\n")
    shutil.rmtree(waiting)
