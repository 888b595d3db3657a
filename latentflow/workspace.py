"""Where a run keeps what must survive it: the work store and the default MLflow place.

Both can be moved by the environment (LATENTFLOW_STORE, MLFLOW_TRACKING_URI); by default they lie in the
current folder, outside every step's outputs.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def store() -> Path:
    """The work store's root folder."""
    return Path(os.environ.get("LATENTFLOW_STORE") or ".latentflow/store").absolute()


def work_place(step: str, fingerprint: str) -> Path:
    """Where one step's work lies under its fingerprint."""
    return store() / step / fingerprint[:32]


@contextmanager
def work_folder(step: str, fingerprint: str) -> Iterator[Path]:
    """The folder of one step's work under its fingerprint, locked while in use so that two writers never mix."""
    folder = work_place(step, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        _sweep(folder)
        yield folder


def _sweep(folder: Path) -> None:
    """Removes what writers that were killed left under temporary names; the caller holds the lock."""
    for path in list(folder.rglob(".*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file under ``mlruns/`` in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"


def artifact_root() -> str:
    """Where the default store keeps artifacts; a server decides for itself."""
    return Path("mlruns/artifacts").absolute().as_uri()
