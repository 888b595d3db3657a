"""What ended trainings and evaluations could not tell MLflow: found in the work store, and sent."""

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from latentflow.registry import journal, tracking
from latentflow.registry.journal import Kept
from latentflow.registry.store import connect
from latentflow.workspace import store as work_store
from latentflow.workspace import work_place


def waiting() -> list[Path]:
    """The folders of work whose journal is not empty; trainings first: evaluations are children of their runs."""
    return [
        place.parent
        for step in ("train", "evaluate")
        for place in sorted(work_store().glob(f"{step}/*/{journal.NAME}"))
    ]


def deliver(folders: Sequence[Path]) -> list[Kept]:
    """Sends what waits in folders of work; returns what is left. One that a process is writing now is passed over.

    Raises RegistryError when the store does not answer.
    """
    left: list[Kept] = []
    present = [folder for folder in folders if (folder / journal.NAME).is_dir()]
    if present:
        connect()
    for folder in present:
        try:
            with FileLock(f"{folder}.lock", timeout=0):
                left += tracking.deliver(folder / journal.NAME)
        except Timeout:
            continue
    return left


def deliver_for(training: str, evaluation: str) -> list[Kept]:
    """The same for the work of these two fingerprints, so far as it was done with this work store."""
    return deliver([work_place("train", training), work_place("evaluate", evaluation)])
