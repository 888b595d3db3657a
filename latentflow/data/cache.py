"""A folder of fetched files under their sha256, of limited size, shared by the processes of a machine."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, sha256_file
from latentflow.workspace import store

GB = 1_000_000_000
LIMIT_GB = 50.0


class Cache:
    """Files by content; when they are more than ``limit`` bytes, those that were not used for longest are dropped."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        # Looking through the folder takes time, so it is done once per hundredth of the limit, and at first.
        self._unseen = limit
        self._checked: set[str] = set()

    @classmethod
    def from_environment(cls) -> "Cache":
        """In LATENTFLOW_CACHE (default: beside the work store), up to LATENTFLOW_CACHE_GB (default 50)."""
        folder = Path(os.environ.get("LATENTFLOW_CACHE") or store().parent / "cache").absolute()
        given = os.environ.get("LATENTFLOW_CACHE_GB") or LIMIT_GB
        try:
            limit = float(given)
        except ValueError:
            raise LatentflowError(f"LATENTFLOW_CACHE_GB: expected a number of gigabytes, found {given!r}.") from None
        return cls(folder, int(limit * GB))

    def get(self, sha256: str, origin: str, fetch: Callable[[Path], str]) -> Path:
        """The file of that digest; ``fetch`` writes it to the path that it is given if it is not here yet.

        ``fetch`` returns the sha256 of what it wrote. A file that was there is compared with its digest once; one that
        a crash of the machine or a bad disk damaged is fetched again. One process fetches, others wait for it.
        Raises LatentflowError, naming ``origin``, on other bytes than wanted.
        """
        path = self.folder / "files" / sha256[:2] / sha256
        if sha256 in self._checked and self.use(path):
            return path
        with self._lock(sha256):
            if self.use(path) and (sha256 in self._checked or sha256_file(path) == sha256):
                self._checked.add(sha256)
                return path
            for left in path.parent.glob(f".{path.name}.*"):
                left.unlink(missing_ok=True)
            with atomic_file(path, synced=False) as temporary:
                if (found := fetch(temporary)) != sha256:
                    raise LatentflowError(
                        f"{origin} has sha256 {found}, the manifest says {sha256}: upload the file again."
                    )
            self._checked.add(sha256)
        self._shrink(path)
        return path

    def use(self, path: Path) -> bool:
        """Marks a file of the cache as used now; False where it is not there (any more)."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _lock(self, name: str) -> FileLock:
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def _shrink(self, kept: Path) -> None:
        """Drops files until the rest fits. ``kept`` stays, and with it the work that waits for it."""
        self._unseen += kept.stat().st_size
        if self._unseen < self._limit / 100:
            return
        self._unseen = 0
        with self._lock("shrink"):
            files = sorted((path.stat().st_mtime_ns, path) for path in (self.folder / "files").glob("*/[!.]*"))
            total = sum(path.stat().st_size for _, path in files)
            for _, path in files:
                if total <= self._limit:
                    return
                if path != kept:
                    total -= path.stat().st_size
                    path.unlink()
