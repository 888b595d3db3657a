"""Entries on disk, in their order, from when a run is told them until its store has them."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from latentflow.files import Scratch, atomic_folder, copy_tree_or_file, write_text
from latentflow.registry.entries import ENTRY, Entry

NAME = "journal"
_SCRATCH, _ENTRY, _OPENING, _REFUSED = "latentflow-journal-", "entry.json", "run.json", "refused"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """An entry and the folder that holds it."""

    folder: Path
    entry: Entry

    @property
    def payload(self) -> Path:
        """The file or folder that belongs to the entry; the entry's own folder where it has none."""
        return next((path for path in self.folder.iterdir() if path.name != _ENTRY), self.folder)


class Journal:
    """A folder with a folder per entry. Without one it lies in a temporary place and goes with the process.

    One process writes at a time; the callers' lock on the work folder sees to that.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.lasting = folder is not None
        # Held, because the temporary folder goes with this object.
        self._scratch = None if folder else Scratch(_SCRATCH)
        self.folder = self._scratch.folder if self._scratch else Path(folder or "")
        self._tidy()
        numbered = [*self._folders(), *self.folder.glob(f"{_REFUSED}/*")]
        self._next = max((int(path.name) for path in numbered), default=-1) + 1

    def add(self, entry: Entry, payload: Path | None = None) -> None:
        """Keeps an entry and a copy of its payload; it is whole on disk when this returns."""
        with atomic_folder(self.folder / f"{self._next:010d}") as folder:
            if payload is not None:
                copy_tree_or_file(payload, folder / payload.name)
            (folder / _ENTRY).write_text(entry.model_dump_json(), encoding="utf-8")
        self._next += 1

    def entries(self) -> list[Kept]:
        """What waits, oldest first."""
        return [Kept(path, ENTRY.validate_json((path / _ENTRY).read_bytes())) for path in self._folders()]

    def remove(self, kept: Kept) -> None:
        """The store has it. Without its entry a folder is none, so that a kill in between leaves nothing half."""
        (kept.folder / _ENTRY).unlink()
        shutil.rmtree(kept.folder)

    def change(self, kept: Kept, entry: Entry) -> None:
        """Another entry in the place of one, with its payload."""
        write_text(kept.folder / _ENTRY, entry.model_dump_json())

    def refuse(self, folder: Path) -> Path:
        """What the store will never take is put aside, so that it does not hold up the others."""
        aside = self.folder / _REFUSED / folder.name
        aside.parent.mkdir(exist_ok=True)
        folder.replace(aside)
        return aside

    def opening(self) -> bytes | None:
        """What is needed to find or make the run, as `remember` was given it."""
        path = self.folder / _OPENING
        return path.read_bytes() if path.is_file() else None

    def remember(self, opening: str) -> None:
        """Keeps what `opening` gives back."""
        write_text(self.folder / _OPENING, opening)

    def close(self) -> None:
        """Removes the folder when nothing is left in it."""
        if not self._folders() and not (self.folder / _REFUSED).exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]" * 10) if (path / _ENTRY).is_file())

    def _tidy(self) -> None:
        """Removes what was being removed, and puts aside what this version of latentflow cannot read."""
        for path in self.folder.glob("[0-9]" * 10):
            if not (path / _ENTRY).is_file():
                shutil.rmtree(path)
                continue
            try:
                ENTRY.validate_json((path / _ENTRY).read_bytes())
            except ValidationError as error:
                log.warning("%s cannot be read and is put aside: %s", path, error)
                self.refuse(path)


def describe(entries: list[Kept]) -> str:
    """What waits, in words: "figures of 12 steps, 3 pictures, 1 artifact"."""
    counts: dict[str, int] = {}
    for kept in entries:
        counts[kept.entry.kind] = counts.get(kept.entry.kind, 0) + 1
    words = {
        "metrics": "figures of {} steps",
        "picture": "{} pictures",
        "artifact": "{} artifacts",
        "adapter": "{} adapter",
        "dataset": "{} dataset",
        "tag": "{} tags",
        "end": "how it ended",
    }
    return ", ".join(text.format(counts[kind]) for kind, text in words.items() if kind in counts)
