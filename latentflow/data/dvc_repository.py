"""A folder or tar in a DVC repository, fetched at one revision into the work store and read from there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

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

    ``revision`` is the commit's SHA. Credentials come from git's and DVC's own configuration and environment; for a
    repository behind https also from GIT_USERNAME and GIT_TOKEN.
    """

    def __init__(self, repository: str, params: IngestParams) -> None:
        self.name = _shown(repository, params)
        self.revision, fetched = _fetched(repository, params)
        try:
            self._inner = open_place(str(fetched), params)
        except LatentflowError as error:
            raise LatentflowError(f"{self.name} was fetched and is no source: {error}") from None
        self.license, self.credit = self._inner.license, self._inner.credit

    def candidates(self) -> Iterator[Candidate]:
        return self._inner.candidates()


def resolve(repository: str, params: IngestParams) -> str:
    """The SHA of the commit that ``ingest.revision`` names; nothing but the repository itself is fetched.

    Raises LatentflowError when there is no such commit, or nothing at ``ingest.path`` in it.
    """
    path = _inside(params)
    with _told(repository, params), _opened(repository, params.revision) as repo:
        _require(repo, path)
        return str(repo.get_rev())


def _fetched(repository: str, params: IngestParams) -> tuple[str, Path]:
    """The commit's SHA and the local copy; a commit that was fetched before is not asked for again."""
    path = _inside(params)
    if re.fullmatch(r"[0-9a-f]{40}", params.revision) and (place := _place(params.revision, path)).is_dir():
        return params.revision, place / path.name
    with _told(repository, params), _opened(repository, params.revision) as repo:
        sha = repo.get_rev()
        return sha, _fetch(repo, path, _place(sha, path)) / path.name


def _inside(params: IngestParams) -> PurePosixPath:
    path = PurePosixPath(params.path)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise LatentflowError(f"ingest.path: {params.path} is no path inside a repository.")
    return path


@contextmanager
def _told(repository: str, params: IngestParams) -> Iterator[None]:
    """Faults of git, DVC and the remote as one sentence without secrets."""
    try:
        yield
    except LatentflowError:
        raise
    # git, DVC and the remote's client each raise their own.
    except Exception as error:
        at = f" at revision {params.revision}" if params.revision else ""
        said = without_secrets(_first_cause(error))
        raise LatentflowError(f"ingest.source {_shown(repository, params)}{at} cannot be fetched ({said}).") from None


def _shown(repository: str, params: IngestParams) -> str:
    return without_secrets(f"dvc:{repository}/{params.path}")


def _place(sha: str, path: PurePosixPath) -> Path:
    """The copy's folder; a SHA names the same content in every repository that has it."""
    return store() / "sources" / f"{sha}-{sha256(str(path).encode()).hexdigest()[:16]}"


@contextmanager
def _opened(repository: str, revision: str) -> "Iterator[Repo]":
    try:
        from dvc.repo import Repo
        from dvc.repo.open_repo import clean_repos
    except ImportError:
        raise LatentflowError("a dvc: source needs the package dvc: pip install 'latentflow[dvc]'.") from None
    # Without a revision a local repository would be read from its working tree, which no SHA names.
    rev = revision or ("HEAD" if Path(repository).exists() else None)
    try:
        with Repo.open(_with_credentials(repository), rev=rev) as repo:
            yield repo
    finally:
        # DVC keeps its clones until the process ends, and its own command line alone removes them.
        clean_repos()


def _with_credentials(repository: str) -> str:
    """The URL with GIT_USERNAME and GIT_TOKEN, where it is https and names no user; it is never shown."""
    parts, token = urlsplit(repository), os.environ.get("GIT_TOKEN", "")
    if parts.scheme != "https" or "@" in parts.netloc or not token:
        return repository
    # Hosts that know tokens take any user name with them.
    user = os.environ.get("GIT_USERNAME") or "git"
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(token, safe='')}@{parts.netloc}"))


def _fetch(repo: "Repo", path: PurePosixPath, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            _require(repo, path)
            with atomic_folder(place) as folder:
                repo.dvcfs.get(str(path), str(folder / path.name), recursive=True)
    return place


def _require(repo: "Repo", path: PurePosixPath) -> None:
    if not repo.dvcfs.exists(str(path)):
        raise LatentflowError(f"ingest.path: {path} is not in the repository at {repo.get_rev()}.")


def _first_cause(error: BaseException) -> str:
    """The first line of what lay behind the error; DVC's own words are often `SCM error`."""
    while error.__cause__ and str(error.__cause__).strip():
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
