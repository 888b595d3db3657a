"""A folder or tar in a DVC repository, fetched at one revision into the work store and read from there."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filelock import FileLock

from latentflow.data.locations import without_secrets
from latentflow.data.sources import Candidate, open_place
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder
from latentflow.params import IngestParams
from latentflow.workspace import store

if TYPE_CHECKING:
    from dvc.repo import Repo


class DvcSource:
    """What lies at ``ingest.path`` of a repository at ``ingest.revision``, in any form that a local source has.

    ``revision`` is the commit's SHA. Credentials come from git's and DVC's own configuration and environment.
    """

    def __init__(self, repository: str, params: IngestParams) -> None:
        self.name = without_secrets(f"dvc:{repository}/{params.path}")
        self.revision, fetched = _fetched(repository, params, self.name)
        self._inner = open_place(str(fetched), params)
        self.license, self.credit = self._inner.license, self._inner.credit

    def candidates(self) -> Iterator[Candidate]:
        return self._inner.candidates()


def _fetched(repository: str, params: IngestParams, shown: str) -> tuple[str, Path]:
    """The commit's SHA and the local copy; a commit that was fetched before is not asked for again."""
    path = PurePosixPath(params.path)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise LatentflowError(f"ingest.path: {params.path} is no path inside a repository.")
    if re.fullmatch(r"[0-9a-f]{40}", params.revision) and (place := _place(params.revision, path)).is_dir():
        return params.revision, place / path.name
    try:
        with _opened(repository, params.revision) as repo:
            sha = repo.get_rev()
            return sha, _fetch(repo, path, _place(sha, path)) / path.name
    except LatentflowError:
        raise
    # git, DVC and the remote's client each raise their own; the first line says what they missed.
    except Exception as error:
        said = without_secrets((str(error).strip() or type(error).__name__).splitlines()[0]).rstrip(".")
        at = f" at revision {params.revision}" if params.revision else ""
        raise LatentflowError(f"ingest.source {shown}{at} cannot be fetched ({said}).") from None


def _place(sha: str, path: PurePosixPath) -> Path:
    return store() / "sources" / f"{sha}-{sha256(str(path).encode()).hexdigest()[:16]}"


def _opened(repository: str, revision: str) -> "AbstractContextManager[Repo]":
    try:
        from dvc.repo import Repo
    except ImportError:
        raise LatentflowError("a dvc: source needs the package dvc: pip install 'latentflow[dvc]'.") from None
    # Without a revision a local repository would be read from its working tree, which no SHA names.
    rev = revision or ("HEAD" if Path(repository).exists() else None)
    return Repo.open(repository, rev=rev)


def _fetch(repo: "Repo", path: PurePosixPath, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            if not repo.dvcfs.exists(str(path)):
                raise LatentflowError(f"ingest.path: {path} is not in the repository at {repo.get_rev()}.")
            with atomic_folder(place) as folder:
                repo.dvcfs.get(str(path), str(folder / path.name), recursive=True)
    return place
